"""What samples and the denoiser buy: milliseconds per view against PSNR, at one resolution.

    python benchmarks/samples.py --res 64
    python benchmarks/samples.py --res 512 --views 1 --reference-samples 1024

One Blender renders the same views with every setting; quality is PSNR of whole views in sRGB bytes on white, before JPEG,
against many samples without denoiser. Behind the defaults of `--samples` and `--denoise`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from _heavy import write_glb
from render import TIMEOUT_S, TRUTH_SEED, psnr, say

from pipeline import cameras, images, sources
from pipeline.blender import Blender, Frame, Limits
from pipeline.config import RenderConfig, SceneConfig
from pipeline.produce import build_job
from pipeline.scene import item_rng


@dataclass(frozen=True)
class Options:
    """What to render."""

    res: int = 64
    """Image width."""
    views: int = 8
    """Views per object."""
    objects: int = 3
    """Procedural objects, besides the heavy one."""
    lights: Literal["uniform", "studio", "random"] = "uniform"
    """As in `lvsm-data render`."""
    samples: tuple[int, ...] = (8, 16, 32, 64)
    """Samples per pixel to compare."""
    reference_samples: int = 4096
    """Samples of the views that quality is measured against."""


def render(blender: Blender, job: dict[str, Any]) -> tuple[float, list[np.ndarray]]:
    """Seconds per view (the first one, which pays for the BVH, left out where there are more), pictures."""
    frames = [answer for answer in blender.render(job) if isinstance(answer, Frame)]
    pictures = [images.srgb8(images.over_white(frame.full("rgba"))) for frame in frames]
    return statistics.fmean([frame.seconds for frame in frames[1:] or frames]), pictures


def jobs(options: Options, folder: Path) -> list[dict[str, Any]]:
    """One per object, at the project's defaults."""
    scene = SceneConfig(res=(options.res,), views=options.views, lights=options.lights, denoise="off").resolved()
    procedural, files = sources.load("procedural"), {}
    for _, item in zip(range(options.objects), procedural.items(RenderConfig(scene=scene)), strict=False):
        home = folder / item.uid
        home.mkdir()
        files[item.uid] = (procedural.fetch(item, home), "procedural")
    write_glb(folder / "heavy.glb")
    files["heavy"] = (folder / "heavy.glb", "glb")
    made = []
    for uid, (path, file_format) in files.items():
        c2w = cameras.sample(scene.cameras, item_rng(scene.seed, uid, "cameras"), scene.views)
        job = build_job(scene, uid, c2w, len(os.sched_getaffinity(0)))
        made.append(job | {"path": str(path), "format": file_format})
    return made


def main() -> None:
    """Prints a table: a row per setting, means over the objects."""
    options = tyro.cli(Options, description=__doc__)
    settings = [(samples, denoise) for denoise in (False, True) for samples in options.samples]
    seconds: dict[tuple[int, bool], list[float]] = {setting: [] for setting in settings}
    quality: dict[tuple[int, bool], list[float]] = {setting: [] for setting in settings}
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(Blender(Path(folder) / "blender", Limits(TIMEOUT_S * 10))) as blender,
    ):
        for job in jobs(options, Path(folder)):
            many = {"samples": options.reference_samples, "seed": job["seed"] + TRUTH_SEED}
            _, truth = render(blender, job | many)
            for samples, denoise in settings:
                spent, pictures = render(blender, job | {"samples": samples, "denoise": denoise})
                seconds[samples, denoise].append(spent)
                quality[samples, denoise].append(statistics.fmean(map(psnr, pictures, truth)))
            say(f"{job['path']}: done")
    print(f"{'samples':>8}{'denoiser':>10}{'ms/view':>10}{'PSNR dB':>10}{'worst':>8}")
    for samples, denoise in settings:
        found = quality[samples, denoise]
        milliseconds = 1000 * statistics.fmean(seconds[samples, denoise])
        row = f"{samples:8}{'on' if denoise else 'off':>10}{milliseconds:10.1f}{statistics.fmean(found):10.1f}"
        print(f"{row}{min(found):8.1f}")
    print(f"{options.res} px, {dataclasses.asdict(options)}, {len(os.sched_getaffinity(0))} threads")


if __name__ == "__main__":
    main()
