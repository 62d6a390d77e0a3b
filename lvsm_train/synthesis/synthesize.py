"""Own photos in, new views out: what `lvsm-data synthesize` does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from lvsm_train.config.synthesis import SynthesisConfig
from lvsm_train.device.devices import now
from lvsm_train.media.films import write_film
from lvsm_train.synthesis import page, stage
from lvsm_train.synthesis.album import BrokenPhoto, album
from lvsm_train.synthesis.model import Encoded, Model, load
from lvsm_train.synthesis.plan import Plan, plan
from lvsm_train.synthesis.stage import Stage
from pipeline.config import rig
from pipeline.core import images
from pipeline.core.text import shown
from pipeline.export.folder import whole


@dataclass
class Speed:
    """Seconds of reading the inputs, and of rendering the views of all calls but the first, which warms up."""

    encode_s: float
    calls: list[tuple[int, float]] = field(default_factory=list)

    @property
    def views_per_s(self) -> float:
        """Views per second after encoding."""
        counted = self.calls[1:] or self.calls
        return sum(views for views, _ in counted) / sum(seconds for _, seconds in counted)


@dataclass(frozen=True)
class Synthesized:
    """New views as they stand in `out`. psnr: of each beside the photo that was taken there, with --poses others."""

    out: Path
    plan: Plan
    facts: dict[str, Any]
    psnr: list[float]

    def lines(self) -> list[str]:
        """Lines for the user."""
        facts, made = self.facts, self.plan
        height, width = made.hw
        lines = [
            f"{len(made.c2w)} pictures of {width}x{height} pixels: {shown(self.out)}/pictures"
            f"{', film.mp4' if len(made.c2w) > 1 else ''}; cameras.json has their cameras",
            f"{facts['views_per_s']:.3g} views/s on {facts['device']}, after the inputs were read in {facts['encode_ms']:.3g} ms",
        ]
        if self.psnr:
            lines.append(f"PSNR beside the photos that were taken there: {np.mean(self.psnr):.2f} dB")
        return lines


@dataclass(frozen=True)
class Read:
    """Photos of a plan as a model has read them. place: the world of the photos -> where the model sees it. seconds: it took."""

    model: Model
    plan: Plan
    encoded: Encoded
    place: Stage
    seconds: float

    def views(self, c2w: np.ndarray, fxfycxcy: np.ndarray, time: np.ndarray, batch: int = 1) -> Iterator[np.ndarray]:
        """Yield what cameras in the world of the photos see, as `Encoded.views` does."""
        return self.encoded.views(self.place.to(c2w), fxfycxcy, batch=batch, time=time)

    def lines(self) -> list[str]:
        """Lines for the user: what the photos are, and which of them the model sees."""
        made = self.plan
        names = ", ".join(made.album.posed.name(view) for view in made.inputs)
        said = f"{made.album.name}: {len(made.inputs)} of {len(made.album)} photos are shown, {made.choice}: {names}"
        return [*filter(None, [made.album.says]), said]


def read(cfg: SynthesisConfig, warn: Callable[[str], object] = lambda warning: None) -> Read:
    """Load the model, plan what cfg (resolved) asks for, and show the model its photos. warn: gets the plan's warnings first.

    Raises UserError: no such model, photos, uid or path, cameras that are none, too few photos.
    """
    model = load(cfg.run, cfg.step, cfg.device, cfg.preset)
    width = cfg.res or (model.hw[1] if model.hw else None)
    try:
        made = plan(cfg, model, album(cfg, width))
    except BrokenPhoto:  # to decode all of them takes long, and hardly ever is needed
        made = plan(cfg, model, album(cfg, width, decode=True))
    for warning in made.warnings:
        warn(warning)
    place = stage.of_clip(np.concatenate([made.input_c2w, made.c2w])) if made.is_scene else made.stage
    begun = now(model.device)
    encoded = model.encode(made.shown.image, place.to(made.input_c2w), made.shown.fxfycxcy, made.input_time)
    return Read(model, made, encoded, place, now(model.device) - begun)


def synthesize(cfg: SynthesisConfig, seen: Read) -> Synthesized:
    """Render the views that are planned, and write pictures, a film, cameras.json and index.html into cfg.out.

    Raises UserError for a disk that is full, or a folder that cannot be written.
    """
    assert cfg.out is not None
    with whole(cfg.out) as part:
        return _rendered(cfg, seen, part)


def _rendered(cfg: SynthesisConfig, seen: Read, part: Path) -> Synthesized:
    """Render a plan into the folder `part`, which becomes cfg.out."""
    assert cfg.out is not None
    model, made = seen.model, seen.plan
    speed, psnr = Speed(seen.seconds), list[float]()
    (part / "pictures").mkdir()
    frames = _frames(cfg, seen, part / "pictures", speed, psnr)
    if len(made.c2w) > 1:
        write_film(part / "film.mp4", frames, cfg.fps)
    else:
        list(frames)
    facts = {
        "run": str(cfg.run),
        "step": model.trained.step,
        "device": device_name(model),
        "encode_ms": 1000 * speed.encode_s,
        "views_per_s": speed.views_per_s,
    }
    _write_cameras(part / "cameras.json", made, facts, psnr)
    found = Synthesized(cfg.out, made, facts, psnr)
    page.write(made, facts, psnr, part)
    return found


def device_name(model: Model) -> str:
    """Name of the device for people: the GPU's, or how many threads of a CPU compute."""
    import torch

    return (
        torch.cuda.get_device_name(model.device)
        if model.device.type == "cuda"
        else f"cpu ({torch.get_num_threads()} threads)"
    )


def _frames(cfg: SynthesisConfig, seen: Read, folder: Path, speed: Speed, psnr: list[float]) -> Iterator[np.ndarray]:
    """Yield new views (H, W, 3) uint8, each also written to `folder`; note times in `speed`, and what compares in `psnr`."""
    made, device, number = seen.plan, seen.model.device, 0
    chunks = seen.views(made.c2w, made.fxfycxcy, made.time, cfg.batch)
    console = Console(stderr=True)
    calls = range(-(-len(made.c2w) // cfg.batch))
    for _ in track(calls, "rendering", console=console, transient=True, disable=not sys.stderr.isatty()):
        begun = now(device)
        views = next(chunks)
        speed.calls.append((len(views), now(device) - begun))
        for view in views:
            if made.truth:
                psnr.append(_psnr(view, made.truth.image[number]))
            pixels = levels(view)
            (folder / picture_name(number)).write_bytes(images.encode_png(pixels))
            yield pixels
            number += 1


def levels(view: np.ndarray) -> np.ndarray:
    """Round a view in [0, 1] to bytes."""
    return np.asarray(np.round(view * 255), np.uint8)


def picture_name(number: int) -> str:
    """File name of a new view."""
    return f"{number:05d}.png"


def _psnr(view: np.ndarray, photo: np.ndarray) -> float:
    """PSNR in dB of a view in [0, 1] beside a photo of bytes; 99 for equal ones."""
    error = float(((view - photo.astype(np.float32) / 255) ** 2).mean())
    return float(-10 * np.log10(error)) if error > 1e-9 else 99.0


def _write_cameras(path: Path, made: Plan, facts: dict[str, Any], psnr: list[float]) -> None:
    """Write the cameras of all pictures, in the world of the photos, as a file that --poses takes; and where they come from."""
    posed = made.album.posed
    about = {
        "pictures": [f"pictures/{picture_name(number)}" for number in range(len(made.c2w))],
        "photos": [posed.name(view) for view in made.others],
        "psnr": psnr,
        **({"time": made.time.tolist()} if made.album.time.any() else {}),
        "inputs": {
            "views": made.inputs,
            "names": [posed.name(view) for view in made.inputs],
            "c2w": made.input_c2w.tolist(),
            "fxfycxcy": made.shown.fxfycxcy.tolist(),
        },
        "kind": "scene" if made.is_scene else "object",
        "stage": made.stage.matrix().tolist(),
        "warnings": made.warnings,
        "made_by": facts,
    }
    path.write_text(json.dumps(rig.ours(made.c2w, made.fxfycxcy, made.hw) | about, indent=1))
