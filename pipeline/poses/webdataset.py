"""WebDataset (github.com/webdataset/webdataset): tar files in which files with one stem are a sample.

A sample is a view: KEY.jpg as stored, and KEY.json with uid, view, c2w (4x4, OpenCV axes), fxfycxcy, height and width. Keys hold
no dots, since a stem ends at the first.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import Skip
from pipeline.poses.capture import matrices, number
from pipeline.poses.shots import Shots

SHARD_BYTES = 200_000_000
MEMBER = re.compile(r"(?:\./)?([\w-]+)_(\d{4,}\.(?:jpg|json))")


def scene_of(name: str) -> tuple[str, str] | None:
    """Map a member of a tar to (name of its scene, NNNN.jpg or NNNN.json)."""
    found = MEMBER.fullmatch(name)
    return (found[1], found[2]) if found else None


def cameras_of(facts: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Cameras of V views from their JSON: c2w (V, 4, 4), fxfycxcy (V, 4). Raises Skip("bad_cameras")."""
    c2w = matrices([fact.get("c2w") for fact in facts])
    try:
        k = np.array([fact.get("fxfycxcy") for fact in facts], np.float64).reshape(len(facts), 4)
    except (ValueError, TypeError) as error:
        raise Skip("bad_cameras", f"fxfycxcy: {error}") from None
    if not (np.isfinite(c2w).all() and np.isfinite(k).all()):
        raise Skip("bad_cameras", "cameras with numbers that are none")
    return c2w, k


def times_of(facts: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Times of V views, [] where none has one. Raises Skip("bad_cameras") for what is no number."""
    times = [number(fact, "time") for fact in facts]
    return times if any(time is not None for time in times) else []


class Writer:
    """Writer of SPLIT-NNNNNN.tar, a new one after SHARD_BYTES; views without a role have the split of their object in the run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir(parents=True, exist_ok=True)
        self.open: dict[str, tarfile.TarFile] = {}
        self.counts: defaultdict[str, int] = defaultdict(int)

    def add(self, shots: Shots) -> None:
        """Write the views of one scene."""
        for view, jpeg in enumerate(shots.jpegs):
            facts = {
                "uid": shots.uid,
                "view": view,
                "c2w": shots.c2w[view].tolist(),
                "fxfycxcy": shots.fxfycxcy[view].tolist(),
                "height": shots.hw[0],
                "width": shots.hw[1],
                **shots.time(view),
            }
            tar = self._tar(shots.roles[view] or ("val" if shots.held_out else "train"))
            for suffix, data in (("jpg", jpeg), ("json", json.dumps(facts).encode())):
                member = tarfile.TarInfo(f"{shots.name}_{view:04d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

    def _tar(self, split: str) -> tarfile.TarFile:
        if split in self.open and self.open[split].offset > SHARD_BYTES:
            self.open.pop(split).close()
        if split not in self.open:
            path = self.root / f"{split}-{self.counts[split]:06d}.tar"
            self.open[split] = tarfile.open(path, "w")  # noqa: SIM115 - `close` does
            self.counts[split] += 1
        return self.open[split]

    def close(self) -> list[str]:
        """Finish the tar files, and tell how to open them."""
        while self.open:
            self.open.popitem()[1].close()
        ranges = [f"{split}-{{000000..{count - 1:06d}}}.tar" for split, count in sorted(self.counts.items())]
        return [f'webdataset.WebDataset("{self.root}/{name}").decode("rgb")' for name in ranges]
