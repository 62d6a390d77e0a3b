"""Zero-1-to-3's layout (Liu et al., arXiv 2303.11328): UID/NNN.png with alpha and UID/NNN.npy, and valid_paths.json.

NNN.npy is a 3x4 world-to-camera matrix with Blender's axes (+x right, +y up, -z forward) of a world with z up. There are no
intrinsics: the lens is 35 mm on a 32 mm sensor, so the focal length is exactly 35/32 widths, and pictures are square.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from pipeline.core import cameras
from pipeline.core.errors import Skip
from pipeline.poses.capture import inverted
from pipeline.poses.shots import Shots

FOCAL = 35 / 32  # of the width
VIEWS = 12  # that its reader takes by default


def intrinsics(hw: tuple[int, int]) -> list[float]:
    """fxfycxcy in pixels of a picture."""
    return [FOCAL * hw[1], FOCAL * hw[1], hw[1] / 2, hw[0] / 2]


def from_w2c_gl(w2c_gl: np.ndarray) -> np.ndarray:
    """Convert w2c (V, 3 or 4, 4) with Blender's axes -> c2w (V, 4, 4) with OpenCV axes. Raises Skip("bad_cameras")."""
    return cameras.from_opengl(inverted(w2c_gl))


def to_w2c_gl(c2w: np.ndarray) -> np.ndarray:
    """Convert c2w (V, 4, 4) with OpenCV axes -> w2c (V, 3, 4) float64 with Blender's axes."""
    return np.asarray(np.linalg.inv(cameras.to_opengl(c2w.astype(np.float64)))[:, :3])


class Writer:
    """Writer of a folder for each object, and of the list of all."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: list[str] = []
        self.counts: set[int] = set()

    def add(self, shots: Shots) -> None:
        """Write one object. Raises Skip("not_expressible") for cameras with another field of view, or not square."""
        k = shots.one_camera("Zero123")
        if shots.hw[0] != shots.hw[1] or abs(k[0] / shots.hw[1] / FOCAL - 1) > 1e-4:
            degrees = 2 * math.degrees(math.atan(shots.hw[1] / 2 / k[0]))
            said = f"Zero123 has no intrinsics: its readers take 49.134 degrees and squares, these have {degrees:.3f} degrees"
            raise Skip("not_expressible", f"{said} (render --fov-x-deg 49.1343426412)")
        pngs = [shots.rgba(view) for view in range(len(shots))]
        folder = self.root / shots.name
        folder.mkdir(parents=True)
        for view, (png, w2c_gl) in enumerate(zip(pngs, to_w2c_gl(shots.c2w), strict=True)):
            (folder / f"{view:03d}.png").write_bytes(png)
            np.save(folder / f"{view:03d}.npy", w2c_gl)
        self.names.append(shots.name)
        self.counts.add(len(shots))

    def close(self) -> list[str]:
        """Write the list of objects."""
        (self.root / "valid_paths.json").write_text(json.dumps(self.names))
        others = sorted(self.counts - {VIEWS})
        return [f"Zero123's reader takes {VIEWS} views unless told otherwise; there are {others[0]}"] if others else []
