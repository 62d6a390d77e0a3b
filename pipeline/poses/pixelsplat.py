"""Chunks of pixelSplat (Charatan et al., arXiv 2312.12337), which MVSplat and DepthSplat read too.

SPLIT/NNNNNN.torch is a list of {url, timestamps int64 (V,), cameras float32 (V, 18), images: V files as uint8, key}, and
SPLIT/index.json maps key -> file. A camera is fx fy cx cy as shares of width and height, two zeros, and a 3x4 world-to-camera
matrix with OpenCV axes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.formats import pickles
from pipeline.poses.capture import inverted
from pipeline.poses.shots import Shots, write_index

CHUNK_BYTES = 100_000_000
READER_HW = (360, 640)  # its readers leave out scenes of any other size


def rows_of(w2c: np.ndarray, fxfycxcy: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Convert w2c (V, 4, 4) and fxfycxcy (V, 4) in pixels of pictures of size hw -> cameras (V, 18) float32."""
    shares = np.asarray(fxfycxcy, np.float64) / [hw[1], hw[0], hw[1], hw[0]]
    return np.concatenate([shares, np.zeros((len(w2c), 2)), w2c[:, :3].reshape(-1, 12)], 1).astype(np.float32)


def cameras_of(rows: np.ndarray, hws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverse of `rows_of`: cameras (V, 18) and (height, width) (V, 2) -> c2w (V, 4, 4), fxfycxcy (V, 4). Skip("bad_cameras")."""
    return inverted(rows[:, 6:].reshape(-1, 3, 4)), rows[:, :4] * hws[:, [1, 0, 1, 0]]


GIVEN = 2  # views that pixelSplat's evaluation index names as given


class Writer:
    """Writer of all scenes into chunks of train/ or test/."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.open: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self.index: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self.chunks: defaultdict[str, int] = defaultdict(int)
        self.sizes: set[tuple[int, int]] = set()
        self.evaluations: dict[str, dict[str, list[int]]] = {}

    def add(self, shots: Shots) -> None:
        """Put one scene into the open chunk of its split."""
        split = shots.scene_split
        self.sizes.add(shots.hw)
        if shots.evaluation:
            self.evaluations[shots.name] = shots.evaluation
        chunk = self.open[split]
        chunk.append(
            {
                "url": shots.uid,
                "timestamps": np.arange(len(shots), dtype=np.int64),
                "cameras": rows_of(shots.w2c(), shots.fxfycxcy, shots.hw),
                "images": [np.frombuffer(jpeg, np.uint8) for jpeg in shots.jpegs],
                "key": shots.name,
            }
        )
        if sum(len(image) for scene in chunk for image in scene["images"]) > CHUNK_BYTES:
            self._write(split)

    def _write(self, split: str) -> None:
        name = f"{self.chunks[split]:06d}.torch"
        (self.root / split).mkdir(parents=True, exist_ok=True)
        pickles.write(self.root / split / name, self.open[split])
        self.index[split] |= {scene["key"]: name for scene in self.open.pop(split)}
        self.chunks[split] += 1

    def close(self) -> list[str]:
        """Write the chunks that are still open, and the indices."""
        for split in list(self.open):
            self._write(split)
        for split, keys in self.index.items():
            (self.root / split / "index.json").write_text(json.dumps(keys))
        notes = write_index(self.root / "test", self.evaluations)
        if any(len(one["context"]) != GIVEN for one in self.evaluations.values()):
            notes.append(f"pixelSplat's reader takes exactly {GIVEN} given views of each scene (MVSplat's any number)")
        if other := sorted(self.sizes - {READER_HW}):
            notes.append(
                f"pixelSplat's reader leaves out pictures that are not 640x360; these are {other[0][1]}x{other[0][0]}: "
                "change its check, or in MVSplat say dataset.skip_bad_shape=false"
            )
        return notes
