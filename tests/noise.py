"""Shards of noise for the trainer's tests: every picture, pose and intrinsic differs, so that none passes for another."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lvsm_train.data.batches import TENSORS, Batch, Data, DataConfig, Sample
from pipeline.core import cameras, images
from pipeline.core.records import Item, Scene, Views, item_rng
from pipeline.storage.shards import NUMBERS, ROLE
from pipeline.storage.writer import ShardWriter

FACTS = {"config_hash": "0123456789abcdef", "seed": 7}
VIEWS = 13


def scene(
    uid: str, widths: tuple[int, ...] = (24, 48), views: int = VIEWS, frame: np.ndarray | None = None, height: float = 1
) -> Scene:
    """Pictures of noise, each different, at poses and intrinsics of its own."""
    rng = item_rng(0, uid, "test")
    by_width = {}
    for width in widths:
        hw = (round(width * height), width)
        pictures = [images.encode_jpeg(rng.integers(0, 256, (*hw, 3), np.uint8), 90) for _ in range(views)]
        by_width[width] = Views(pictures, (rng.uniform(0.5, 2, (views, 4)) * width).astype(np.float32), hw)
    numbers = {} if frame is None else dict.fromkeys(NUMBERS, frame)
    meta = {"video": f"https://www.youtube.com/watch?v={uid.split('.')[0]}"} if numbers else {}
    return Scene(Item(uid, "local"), cameras.sample("shell", rng, views), by_width, meta, numbers)


def write(
    out: Path, scenes: list[Scene], split: str = "train", shards: int = 1, facts: dict[str, Any] | None = None
) -> Path:
    """So many shards of one split, of objects in this order."""
    out.mkdir(parents=True, exist_ok=True)
    optional = (*scenes[0].numbers, *(ROLE,) * bool(scenes[0].roles))
    writer = ShardWriter(out, tuple(scenes[0].by_width), optional, FACTS | (facts or {}), 1e12)
    for number, some in enumerate(np.array_split(np.arange(len(scenes)), shards)):
        for one in some:
            writer.add(scenes[one], split, number)
        writer.close(split)
    return out


def ten_and_three(out: Path) -> Path:
    """Ten objects to train on in three shards, three for validation, at two resolutions."""
    write(out, [scene(f"train-{number}") for number in range(10)], "train", 3)
    return write(out, [scene(f"val-{number}") for number in range(3)], "val")


def config(*folders: Path, **changes: Any) -> DataConfig:
    return DataConfig(**({"data": folders, "batch": 4, "inputs": 3, "targets": 2, "workers": 0} | changes))


def digest(batch: Batch) -> str:
    """Of every bit of a batch."""
    made = hashlib.sha256(" ".join(batch.uids).encode())
    for name in TENSORS:
        made.update(getattr(batch, name).numpy().tobytes())
    return made.hexdigest()


def digests(cfg: DataConfig, count: int = 6, start: int = 0) -> list[str]:
    opened = Data(cfg)
    batches = opened.batches(start)
    made = [digest(batch) for batch in itertools.islice(batches, count)]
    batches.close()  # type: ignore[attr-defined]
    opened.close()
    return made


def views_of(batch: Batch, sample: Sample, place: int) -> Any:
    """(view, picture, c2w, fxfycxcy) of one sample of a batch."""
    whole = [
        torch.cat([getattr(batch, name), getattr(batch, f"target_{name}")], 1)[place].numpy() for name in TENSORS[:3]
    ]
    return zip(sample.inputs + sample.targets, *whole, strict=True)
