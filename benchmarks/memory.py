"""Memory of one Blender process over many objects, without recycling: does the reset between objects leak?

python benchmarks/memory.py --objects 500
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from pipeline.config.render import RenderConfig, SceneConfig
from pipeline.core import cameras
from pipeline.sources import procedural
from pipeline.worker.blender import Blender, Limits
from pipeline.worker.render import build_job


@dataclass(frozen=True)
class Options:
    """What to measure."""

    objects: int = 500
    """Procedural objects through one process."""
    res: int = 64
    """Image width."""
    views: int = 4
    """Views per object."""
    every: int = 50
    """Objects per printed line."""


def measure(options: Options, scratch: Path) -> list[float]:
    """Resident memory in MB after each object."""
    cfg = RenderConfig(scene=SceneConfig(res=(options.res,), views=options.views, samples=4)).resolved()
    poses = cameras.sample("shell", np.random.default_rng(0), options.views)
    blender = Blender(
        scratch / "blender", Limits(recycle_objects=options.objects + 1, recycle_rss_mb=1e9), readable=[scratch]
    )
    resident = []
    try:
        for _, item in zip(range(options.objects), procedural.items(cfg, cfg.scene.seed, None), strict=False):
            path = procedural.fetch(item, scratch)
            job = build_job(cfg.scene, item.uid, poses, 1) | {"path": str(path), "format": "procedural"}
            for _ in blender.render(job):
                pass
            resident.append(blender.rss_mb)
    finally:
        blender.close()
    return resident


def main() -> None:
    """Print the curve and its slope over the second half."""
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        resident = measure(options, Path(scratch))
    print("objects  resident MB")
    for count in [1, *range(options.every, options.objects + 1, options.every)]:
        print(f"{count:7d}  {resident[count - 1]:8.0f}")
    half = np.array(resident[len(resident) // 2 :])
    slope = np.polyfit(np.arange(len(half)), half, 1)[0]
    print(f"growth over the second half: {slope * 100:.1f} MB per 100 objects; peak {max(resident):.0f} MB")


if __name__ == "__main__":
    main()
