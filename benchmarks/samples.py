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
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from _objects import collect, job_of, pictures, psnr, truth_of

from pipeline.config.render import SceneConfig
from pipeline.worker.blender import Blender, Frame, Limits


@dataclass(frozen=True)
class Options:
    """What to render."""

    res: int = 64
    """Image width."""
    views: int = 8
    """Views per object."""
    objects: int = 3
    """Procedural objects, besides the heavy one."""
    lights: Literal["dome", "uniform", "studio", "random"] = "dome"
    """As in `lvsm-data render`."""
    samples: tuple[int, ...] = (8, 16, 32, 64)
    """Samples per pixel to compare."""
    reference_samples: int = 4096
    """Samples of the views that quality is measured against."""


def render(blender: Blender, job: dict[str, Any]) -> tuple[float, list[np.ndarray]]:
    """Seconds per view (the first one, which pays for the BVH, left out where there are more), pictures."""
    frames = [answer for answer in blender.render(job) if isinstance(answer, Frame)]
    return statistics.fmean([frame.seconds for frame in frames[1:] or frames]), pictures(frames)


def main() -> None:
    """Print a table: a row per setting, means over the objects."""
    options = tyro.cli(Options, description=__doc__)
    scene = SceneConfig(res=(options.res,), views=options.views, lights=options.lights, denoise="off").resolved()
    threads = len(os.sched_getaffinity(0))
    settings = [(samples, denoise) for denoise in (False, True) for samples in options.samples]
    seconds: dict[tuple[int, bool], list[float]] = {setting: [] for setting in settings}
    quality: dict[tuple[int, bool], list[float]] = {setting: [] for setting in settings}
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(
            Blender(Path(folder) / "blender", Limits(timeout_s=86400), readable=[Path(folder)])
        ) as blender,
    ):
        for item in collect(Path(folder), scene, options.objects):
            job = job_of(item, scene, threads)
            _, truth = render(blender, truth_of(job, options.reference_samples))
            for samples, denoise in settings:
                spent, made = render(blender, job | {"samples": samples, "denoise": denoise})
                seconds[samples, denoise].append(spent)
                quality[samples, denoise].append(statistics.fmean(map(psnr, made, truth)))
            print(f"{item.uid}: done", file=sys.stderr, flush=True)
    print(f"{'samples':>8}{'denoiser':>10}{'ms/view':>10}{'PSNR dB':>10}{'worst':>8}")
    for samples, denoise in settings:
        found = quality[samples, denoise]
        milliseconds = 1000 * statistics.fmean(seconds[samples, denoise])
        row = f"{samples:8}{'on' if denoise else 'off':>10}{milliseconds:10.1f}{statistics.fmean(found):10.1f}"
        print(f"{row}{min(found):8.1f}")
    print(f"{options.res} px, {dataclasses.asdict(options)}, {threads} threads")


if __name__ == "__main__":
    main()
