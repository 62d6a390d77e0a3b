"""What a trainer reads before its first step, and what it writes with each checkpoint, of data sets of any size.

    python benchmarks/index.py --objects 1000000

One real shard (1,000 objects of 32 views, tiny pictures) stands there under as many names as are needed: rows are the same, their
row groups and files are as many as those of a real run. Its cameras are read without anything kept, and again with what the first
reading kept; then samples are planned, and two cards written.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from lvsm_train.config.presets import PRESETS
from lvsm_train.data import kept
from lvsm_train.data.batches import Data
from lvsm_train.training.card import write_card
from pipeline.core import cameras, images
from pipeline.core.records import Item, Scene, Views
from pipeline.storage.writer import ShardWriter

PER_SHARD = 1000


@dataclass(frozen=True)
class Options:
    """What to measure."""

    objects: int = 100_000
    """Objects, a multiple of 1,000."""
    views: int = 32
    """Views of each."""
    folder: Path = Path(tempfile.gettempdir())
    """Where shards and what is kept of them go, both removed at the end."""


def main() -> None:
    """Print a line for each part."""
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        measure(options, Path(scratch))


def measure(options: Options, scratch: Path) -> None:
    """Time all parts below `scratch`."""
    shards = shards_of(options, scratch / "run")
    kept.LEAST_BYTES = 0
    kept.read_kept.__defaults__ = (scratch / "kept",)
    cfg = PRESETS["thesis64"]
    own = dataclasses.replace(cfg.data, data=(shards,), cache="none", res=8)
    for name in ("read for the first time", "read again"):
        with timed(f"{options.objects:,} objects, {options.objects * options.views:,} views, {name}"):
            data = Data(own)
    cfg = dataclasses.replace(cfg, data=own, out=scratch)
    for step in (1000, 2000):
        with timed(f"card of step {step}"):
            write_card(cfg, data, step, None)
    with timed("samples of a step"):
        data.planner.training(0, 0, 1)
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB of memory at most")


def shards_of(options: Options, folder: Path) -> Path:
    """Folder with one shard under as many names as are needed."""
    writer = ShardWriter(folder, (8,), (), {"config_hash": "0"}, 1e12)
    jpeg = [images.encode_jpeg(np.full((8, 8, 3), 200, np.uint8), 80)] * options.views
    k = np.tile(cameras.intrinsics(50.0, (8, 8)), (options.views, 1)).astype(np.float32)
    rng = np.random.default_rng(0)
    for number in range(PER_SHARD):
        c2w = cameras.look_at(rng.normal(size=(options.views, 3))).astype(np.float32)
        item = Item(f"object-{number}", "test", license=("cc0", "cc-by-4.0")[number % 2])
        writer.add(Scene(item, c2w, {8: Views(jpeg, k, (8, 8))}, {}), "train", 0)
    writer.close("train")
    (first,) = (folder / "8").glob("*.parquet")
    for number in range(1, options.objects // PER_SHARD):
        os.link(first, first.with_name(f"train-{number:06d}.parquet"))
    return folder


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Print how long the block took."""
    clock, used = time.perf_counter(), time.process_time()
    yield
    print(f"{name}: {time.perf_counter() - clock:.2f} s, {time.process_time() - used:.2f} s of cores", flush=True)


if __name__ == "__main__":
    main()
