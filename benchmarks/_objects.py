"""What the benchmarks render, the jobs that Blender gets for it, and how good the pictures are that come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from _heavy import write_glb

from pipeline import sources
from pipeline.config.render import RenderConfig, SceneConfig
from pipeline.core import images
from pipeline.core.records import Item
from pipeline.worker import preflight
from pipeline.worker.blender import Frame
from pipeline.worker.render import build_job, poses

TRUTH_SEED = 2**30  # jobs' own seeds lie below; with theirs, their samples would be among the truth's


def collect(folder: Path, scene: SceneConfig, count: int) -> list[Item]:
    """`count` procedural recipes and the heavy object, written to files below `folder`: all of them are local files."""
    procedural, items = sources.load("procedural"), []
    for _, item in zip(range(count), procedural.items(RenderConfig(), scene.seed, None), strict=False):
        home = folder / "recipes" / item.uid
        home.mkdir(parents=True)
        items.append(Item(item.uid, "local", url=str(procedural.fetch(item, home))))
    write_glb(folder / "heavy.glb")
    return [*items, Item("heavy", "local", url=str(folder / "heavy.glb"))]


def job_of(item: Item, scene: SceneConfig, threads: int) -> dict[str, Any]:
    """Exactly what `Renderer` sends to Blender for this item."""
    file_format = preflight.check(Path(item.url))
    return build_job(scene, item.uid, poses(scene, item.uid), threads) | {"path": item.url, "format": file_format}


def truth_of(job: dict[str, Any], samples: int) -> dict[str, Any]:
    """The job whose pictures the job's are measured against: many samples of their own, no denoiser."""
    return job | {"samples": samples, "denoise": False, "seed": job["seed"] + TRUTH_SEED}


def pictures(frames: list[Frame]) -> list[np.ndarray]:
    """Views as sRGB bytes on white."""
    return [images.srgb8(images.over(frame.full("rgba"))) for frame in frames]


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """PSNR in dB of two images of bytes. Equal ones count as one level off in one value."""
    squared = np.square(image.astype(float) - truth)
    return float(10 * np.log10(255**2 / max(squared.mean(), 1 / squared.size)))
