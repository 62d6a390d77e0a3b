"""How good are renderings of views that a model was not shown? Beside what costs nothing: the nearest input, the mean, white."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from lvsm_train.data import Batch
from lvsm_train.metrics import foreground_psnr, psnr, ssim
from pipeline import images

BASELINES = ("nearest", "best_input", "mean", "white")
Render = Callable[[Batch], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Means over all targets of all samples, in decibels but for ssim. nearest: the input whose camera is nearest to the
    target's; best_input: the input that happens to be most like it; mean: of the inputs; white: a white picture.
    """

    psnr: float
    foreground_psnr: float
    ssim: float
    nearest: float
    best_input: float
    mean: float
    white: float
    targets: int

    def line(self) -> str:
        """For people."""
        beside = ", ".join(f"{name.replace('_', ' ')} {getattr(self, name):.2f}" for name in BASELINES)
        return f"PSNR {self.psnr:.2f} dB ({beside}), foreground {self.foreground_psnr:.2f} dB, SSIM {self.ssim:.3f}"


def measure(render: Render, batches: Iterable[Batch]) -> Scores:
    """render: a batch -> (B, T, 3, H, W) in [0, 1]."""
    found: dict[str, list[torch.Tensor]] = defaultdict(list)
    for batch in batches:
        target = batch.target_rgb.flatten(0, 1)
        made = render(batch).float().clamp(0, 1).flatten(0, 1)
        found["psnr"].append(psnr(made, target))
        found["foreground_psnr"].append(foreground_psnr(made, target))
        found["ssim"].append(ssim(made, target))
        for name, values in baselines(batch).items():
            found[name].append(values)
    means = {name: float(torch.cat(values).mean()) for name, values in found.items()}
    return Scores(**means, targets=sum(len(values) for values in found["psnr"]))


def baselines(batch: Batch) -> dict[str, torch.Tensor]:
    """PSNR (B * T,) of what needs no model, for each of BASELINES."""
    inputs, target = batch.rgb, batch.target_rgb  # (B, V, 3, H, W), (B, T, 3, H, W)
    count = target.shape[1]
    apart = torch.cdist(batch.target_c2w[..., :3, 3], batch.c2w[..., :3, 3])  # (B, T, V)
    nearest = inputs[torch.arange(len(inputs), device=inputs.device)[:, None], apart.argmin(-1)]
    each = torch.stack([_psnr(view[:, None].expand_as(target), target) for view in inputs.unbind(1)])
    mean = inputs.mean(1, keepdim=True).expand(-1, count, -1, -1, -1)
    return {
        "nearest": _psnr(nearest, target),
        "best_input": each.max(0).values,
        "mean": _psnr(mean, target),
        "white": _psnr(torch.ones_like(target), target),
    }


def _psnr(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return psnr(made.flatten(0, 1), target.flatten(0, 1))


def strip(render: Render, batch: Batch, path: Path, objects: int = 6) -> Path:
    """Writes a PNG: a row per object with its inputs, then target and rendering side by side for up to three targets."""
    made = render(batch).float().clamp(0, 1)
    rows = []
    for b in range(min(objects, len(batch.uids))):
        pairs = [(batch.target_rgb[b, t], made[b, t]) for t in range(min(3, made.shape[1]))]
        rows.append([_pixels(view) for view in (*batch.rgb[b], *(view for pair in pairs for view in pair))])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(images.encode_png(images.contact_sheet(rows)))
    return path


def _pixels(image: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray((image * 255).round().byte().permute(1, 2, 0).cpu().numpy())
