"""Scores of rendered target views (PSNR, SSIM, LPIPS), and of baselines without a model: nearest or best input, mean, white."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lvsm_train.data.batches import Batch
from lvsm_train.data.view_sampling import SPREAD
from lvsm_train.losses.metrics import Lpips, foreground_psnr, psnr, ssim
from lvsm_train.models.lvsm import LVSM
from pipeline.core import images

BASELINES = ("nearest", "best_input", "mean", "white")
LPIPS_AT_ONCE = 16  # images: VGG's first features take 64/3 times the numbers of a picture
Render = Callable[[Batch], torch.Tensor]


@dataclass(frozen=True)
class Scores:
    """Mean scores over images, as papers give them: each target counts alike, so that objects with more targets count for more.

    In decibels except what ends in ssim or lpips. nearest: PSNR of the input whose camera is nearest to the target's; best_input:
    of the input with the highest PSNR; mean: of the mean of the inputs; white: of a white picture; nearest_ssim, white_lpips ...:
    the same pictures by SSIM and LPIPS, None if not measured. Left out of the means: PSNRs of inf, of pictures equal to their
    target (`equal` counts the model's), and the foreground PSNR of `blank` targets, which have no foreground. If nothing else is
    left, the mean is inf, or NaN without any value. A model that renders NaN has NaN for its means.
    """

    psnr: float
    foreground_psnr: float
    ssim: float
    nearest: float
    best_input: float
    mean: float
    white: float
    targets: int
    lpips: float | None = None
    nearest_lpips: float | None = None
    equal: int = 0
    blank: int = 0
    nearest_ssim: float | None = None
    best_input_ssim: float | None = None
    mean_ssim: float | None = None
    white_ssim: float | None = None
    best_input_lpips: float | None = None
    mean_lpips: float | None = None
    white_lpips: float | None = None

    def of(self, baseline: str, metric: str) -> float | None:
        """Score of one of BASELINES by psnr, ssim or lpips; None if not measured."""
        found: float | None = getattr(self, baseline if metric == "psnr" else f"{baseline}_{metric}")
        return found

    def line(self) -> str:
        """Format the scores as one line of text."""
        beside = ", ".join(f"{name.replace('_', ' ')} {getattr(self, name):.2f}" for name in BASELINES)
        lpips = "" if self.lpips is None else f", LPIPS {self.lpips:.3f} (nearest {self.nearest_lpips:.3f})"
        return (
            f"PSNR {self.psnr:.2f} dB ({beside}), foreground {self.foreground_psnr:.2f} dB, SSIM {self.ssim:.3f}{lpips}"
        )


@dataclass(frozen=True)
class ImageScores:
    """Scores of N images. uids: (N,), the object of each image. values: name of a field of Scores -> (N,) float64."""

    uids: np.ndarray
    values: dict[str, np.ndarray]

    def scores(self) -> Scores:
        """Mean scores over all images."""
        psnrs, foregrounds = self.values["psnr"], self.values["foreground_psnr"]
        blank = np.isnan(foregrounds) & ~np.isnan(psnrs)
        means = {
            name: _mean(values) for name, values in (self.values | {"foreground_psnr": foregrounds[~blank]}).items()
        }
        return Scores(**means, targets=len(self.uids), equal=int(np.isposinf(psnrs).sum()), blank=int(blank.sum()))

    def by_object(self) -> dict[str, Scores]:
        """Mean scores over the images of each object: uid -> scores, in order of first appearance."""
        rows: dict[str, list[int]] = defaultdict(list)
        for row, uid in enumerate(self.uids.tolist()):
            rows[uid].append(row)
        return {uid: self._at(np.array(some)).scores() for uid, some in rows.items()}

    def over_objects(self) -> Scores:
        """Mean scores over objects, each with the mean of its images; `targets` is the number of objects."""
        each = self.by_object()
        means = {name: np.array([getattr(scores, name) for scores in each.values()]) for name in self.values}
        return ImageScores(np.array(list(each)), means).scores()

    def only(self, uids: Iterable[str]) -> ImageScores:
        """Select the images of the objects `uids`."""
        return self._at(np.isin(self.uids, list(uids)))

    def _at(self, rows: np.ndarray) -> ImageScores:
        return ImageScores(self.uids[rows], {name: values[rows] for name, values in self.values.items()})


def render_of(net: LVSM) -> Render:
    """Wrap a model as the `render` function of `measure`. The caller sets autocast and no_grad."""
    return lambda batch: net(
        batch.rgb,
        batch.c2w,
        batch.fxfycxcy,
        batch.target_c2w,
        batch.target_fxfycxcy,
        time=batch.time,
        target_time=batch.target_time,
    )


def measure(render: Render, batches: Iterable[Batch], lpips: Lpips | None = None) -> Scores:
    """Mean scores over all images of `batches`. render: a batch -> (B, T, 3, H, W) in [0, 1]."""
    return examine(render, batches, lpips).scores()


def examine(render: Render, batches: Iterable[Batch], lpips: Lpips | None = None, whole: bool = False) -> ImageScores:
    """Score each target image of `batches`. render: a batch -> (B, T, 3, H, W) in [0, 1].

    whole: measure all baselines by SSIM and LPIPS too, which takes about five times as long; else the nearest by LPIPS alone.
    """
    uids: list[str] = []
    found: dict[str, list[torch.Tensor]] = defaultdict(list)
    for batch in batches:
        made = render(batch).float().clamp(0, 1).flatten(0, 1)
        target = batch.target_rgb.flatten(0, 1)
        values = {
            "psnr": psnr(made, target),
            "foreground_psnr": foreground_psnr(made, target),
            "ssim": ssim(made, target),
        }
        beside = {name: pictures.flatten(0, 1) for name, pictures in baselines(batch).items()}
        values |= {name: psnr(pictures, target) for name, pictures in beside.items()}
        if whole:
            values |= {f"{name}_ssim": ssim(pictures, target) for name, pictures in beside.items()}
        if lpips is not None:
            values["lpips"] = in_parts(lpips, made, target)
            for name in BASELINES if whole else ("nearest",):
                values[f"{name}_lpips"] = in_parts(lpips, beside[name], target)
        for name, some in values.items():
            found[name].append(some.cpu())
        uids += np.repeat(batch.uids, batch.target_image.shape[1]).tolist()
    return ImageScores(np.array(uids), {name: torch.cat(some).double().numpy() for name, some in found.items()})


def nearest(batch: Batch) -> torch.Tensor:
    """Input pictures (B, T, 3, H, W) in [0, 1], for each target the one whose camera centre is nearest to the target's; of scenes
    that move, the nearest in place and time, where the whole time counts like SPREAD of `view_sampling`."""
    apart = torch.cdist(places_of(batch, "target_"), places_of(batch))  # (B, T, V)
    return batch.rgb[torch.arange(len(apart), device=apart.device)[:, None], apart.argmin(-1)]


def places_of(batch: Batch, part: str = "") -> torch.Tensor:
    """Camera centres and times of inputs, or of targets with part "target_": (B, V, 4). Time counts as `nearest` says."""
    inputs = batch.c2w[..., :3, 3]
    far = (inputs - inputs.mean(1, keepdim=True)).norm(dim=-1).mean(1)[:, None, None]
    far = torch.where(far > 0, far, 1)  # of one camera, times alone tell views apart
    return torch.cat(
        [getattr(batch, f"{part}c2w")[..., :3, 3], SPREAD * far * getattr(batch, f"{part}time")[..., None]], -1
    )


def baselines(batch: Batch) -> dict[str, torch.Tensor]:
    """Pictures (B, T, 3, H, W) in [0, 1] of each of BASELINES, by name."""
    inputs, target = batch.rgb, batch.target_rgb  # (B, V, 3, H, W), (B, T, 3, H, W)
    each = torch.stack([_psnr(view[:, None].expand_as(target), target) for view in inputs.unbind(1)])
    best = each.argmax(0).unflatten(0, target.shape[:2])  # (B, T)
    return {
        "nearest": nearest(batch),
        "best_input": inputs[torch.arange(len(best), device=best.device)[:, None], best],
        "mean": inputs.mean(1, keepdim=True).expand_as(target),
        "white": torch.ones_like(target),
    }


def _mean(values: np.ndarray) -> float:
    """Mean of the values that are not inf; inf if all are, NaN of an empty array."""
    counted = values[~np.isposinf(values)]
    return float(counted.mean()) if len(counted) else np.inf if len(values) else np.nan


def _psnr(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return psnr(made.flatten(0, 1), target.flatten(0, 1))


def in_parts(lpips: Lpips, made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """LPIPS (N,) of pictures (N, 3, H, W), a few at a time."""
    parts = zip(made.split(LPIPS_AT_ONCE), target.split(LPIPS_AT_ONCE), strict=True)
    with torch.no_grad():
        return torch.cat([lpips(*part) for part in parts])


def strip(render: Render, batch: Batch, path: Path, objects: int = 6) -> Path:
    """Write a PNG: a row per object with its inputs, then target and rendering side by side for up to three targets."""
    made = render(batch).float().clamp(0, 1)
    rows = [strip_row(batch, made, b) for b in range(min(objects, len(batch.uids)))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(images.encode_png(images.contact_sheet(rows)))
    return path


def strip_row(batch: Batch, made: torch.Tensor, b: int, targets: int = 3) -> list[np.ndarray]:
    """Pictures of object b: inputs, then up to `targets` pairs of target and rendering. made: (B, T, 3, H, W) in [0, 1]."""
    pairs = [(batch.target_rgb[b, t], made[b, t]) for t in range(min(targets, made.shape[1]))]
    return [pixels(view) for view in (*batch.rgb[b], *(view for pair in pairs for view in pair))]


def pixels(image: torch.Tensor) -> np.ndarray:
    """Convert a picture (3, H, W) in [0, 1] to (H, W, 3) uint8."""
    return np.ascontiguousarray((image * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def enlarged(picture: np.ndarray, least: int) -> np.ndarray:
    """Enlarge (H, W, 3) uint8 by the least integer factor that makes it at least `least` pixels wide."""
    factor = max(1, -(-least // picture.shape[1]))
    return images.resize_nearest(picture, (picture.shape[0] * factor, picture.shape[1] * factor))


def finite(json_value: Any) -> Any:
    """Copy of JSON values with None in place of inf and NaN, which JSON lacks."""
    if isinstance(json_value, dict):
        return {name: finite(value) for name, value in json_value.items()}
    if isinstance(json_value, list):
        return [finite(value) for value in json_value]
    return None if isinstance(json_value, float) and not math.isfinite(json_value) else json_value
