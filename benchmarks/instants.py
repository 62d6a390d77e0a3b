"""Are objects that move rendered quicker together than instant by instant? Same objects, cameras and samples, in turns.

    python benchmarks/instants.py --input FOLDER

A: a fresh Blender for each object and instant. B: one Blender that stays, which opens the object anew for each instant.
C: one Blender that stays and opens the object once, all instants and views: this project's way, its test of motion included.
Pictures are rendered and read back, not encoded: that costs all three the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from _objects import job_of

from pipeline import sources
from pipeline.config.render import RenderConfig, SceneConfig
from pipeline.core.records import Item
from pipeline.worker.blender import Blender, Frame, Limits

SUFFIXES = (".glb", ".gltf", ".fbx")


@dataclass(frozen=True)
class Options:
    """What to render."""

    input: Path | None = None
    """Folder of animated files beside the procedural objects."""
    objects: int = 4
    """Procedural objects."""
    frames: int = 16
    """Instants of each."""
    views: int = 8
    """Cameras that see every instant."""
    res: int = 64
    """Pixels of width."""
    repeats: int = 3
    """Times that all is done; medians are printed."""


def collected(options: Options, folder: Path) -> list[Item]:
    """Procedural recipes, written below `folder`, and the user's files."""
    items, procedural = [], sources.load("procedural")
    for item in itertools.islice(procedural.items(RenderConfig(), 0, None), options.objects):
        home = folder / item.uid
        home.mkdir()
        items.append(dataclasses.replace(item, url=str(procedural.fetch(item, home))))
    found = sorted(options.input.rglob("*.*")) if options.input else []
    return items + [Item(path.name, "local", url=str(path)) for path in found if path.suffix in SUFFIXES]


def pictures(blender: Blender, job: dict[str, Any]) -> int:
    """Render a job. Returns the number of its pictures."""
    return sum(isinstance(answer, Frame) for answer in blender.render(job))


def main() -> None:
    """Print a table."""
    options = tyro.cli(Options, description=__doc__)
    moving = SceneConfig(
        res=(options.res,), views=options.views, frames=options.frames, time_cameras="fixed"
    ).resolved()
    still = SceneConfig(res=(options.res,), views=options.views).resolved()
    with tempfile.TemporaryDirectory() as folder:
        items = collected(options, Path(folder))
        readable = [Path(folder), *([options.input] if options.input else [])]
        seconds: dict[str, list[list[float]]] = {way: [[] for _ in items] for way in "ABC"}
        with contextlib.closing(Blender(Path(folder) / "stays", Limits(), readable=readable)) as stays:
            stays.start()
            for _ in range(options.repeats):
                for number, item in enumerate(items):
                    for way in "ABC":
                        begun = time.perf_counter()
                        if way == "C":
                            made = pictures(stays, job_of(item, moving, 1))
                        else:
                            made = 0
                            for instant in range(options.frames):
                                if way == "B":
                                    made += pictures(stays, job_of(item, still, 1))
                                    continue
                                place = Path(folder) / f"{number}-{instant}"
                                with contextlib.closing(Blender(place, Limits(), readable=readable)) as fresh:
                                    made += pictures(fresh, job_of(item, still, 1))
                        assert made == options.frames * options.views, f"{item.uid}: {made} pictures; does it move?"
                        seconds[way][number].append(time.perf_counter() - begun)
    print(f"{options.frames} instants x {options.views} views at {options.res} pixels; seconds per object, medians")
    print(f"{'object':<34}{'A':>8}{'B':>8}{'C':>8}{'A/C':>8}{'B/C':>8}")
    total = dict.fromkeys("ABC", 0.0)
    for number, item in enumerate(items):
        a, b, c = (statistics.median(seconds[way][number]) for way in "ABC")
        total = {way: total[way] + one for way, one in zip("ABC", (a, b, c), strict=True)}
        print(f"{item.uid[-32:]:<34}{a:8.2f}{b:8.2f}{c:8.2f}{a / c:8.1f}{b / c:8.1f}")
    a, b, c = total.values()
    print(f"{'all':<34}{a:8.2f}{b:8.2f}{c:8.2f}{a / c:8.1f}{b / c:8.1f}")
    rates = [f"{way} {3600 * len(items) / spent:,.0f}" for way, spent in total.items()]
    print(f"objects/h of this process: {', '.join(rates)}")


if __name__ == "__main__":
    sys.exit(main())
