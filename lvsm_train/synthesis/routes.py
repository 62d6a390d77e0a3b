"""Cameras of new views: along a path with a name, of a file, where photos were taken that a model is not shown, or by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lvsm_train.config.shapes import HW
from lvsm_train.config.synthesis import Route, SynthesisConfig
from lvsm_train.synthesis.album import framed
from pipeline.config.export import PathsConfig
from pipeline.config.rig import read_path
from pipeline.core.errors import UserError
from pipeline.export import camera_paths

STEEPEST = 85.0  # degrees of elevation of a path
LEAST_CLIMB = 20.0  # degrees of elevation that a spiral goes through
TURNS = 2.0  # of a spiral
SWAY = 0.2  # of the distance: radius of circle and lissajous
LOOPS = ("orbit", "circle", "lissajous")


@dataclass(frozen=True)
class Cameras:
    """Cameras of F new views. c2w: (F, 4, 4) in the world of the photos. fxfycxcy: (F, 4) in pixels, None where those of the
    inputs are to be taken. lost: share of a file's picture that its shape costs."""

    c2w: np.ndarray
    fxfycxcy: np.ndarray | None = None
    lost: float = 0.0


def of_file(cfg: SynthesisConfig, hw: HW) -> Cameras:
    """Cameras of the file that --poses names, for pictures of size hw. Raises UserError for one that is none."""
    assert cfg.path_file is not None
    found = read_path(cfg.path_file)
    if found.fxfycxcy is None or found.hw is None:
        return Cameras(found.c2w)
    k, lost = framed(found.fxfycxcy, found.hw, hw)
    return Cameras(found.c2w, k, lost)


def around(kind: Route, frames: int, c2w: np.ndarray) -> np.ndarray:
    """Path (frames, 4, 4) on the stage: around its origin, where and as far as cameras (V, 4, 4) are on average.

    kind: orbit, circle, spiral or lissajous, as `lvsm-data paths` makes them. An orbit begins at the first camera's azimuth; a
    spiral goes through the elevations of the cameras.
    """
    centres = c2w[:, :3, 3]
    distance = np.linalg.norm(centres, axis=-1)
    if not (distance > 1e-9).all():
        raise UserError(f"--poses {kind} goes around what all cameras look at, and one stands there", "--poses views")
    elevation = np.degrees(np.arcsin(np.clip(centres[:, 2] / distance, -1, 1)))
    low, high = (float(share) for share in np.percentile(elevation, (10, 90)))
    if high - low < LEAST_CLIMB:
        low, high = (low + high - LEAST_CLIMB) / 2, (low + high + LEAST_CLIMB) / 2
    begins = centres[0] if kind in ("orbit", "spiral") else centres.mean(0)
    mean = float(distance.mean())
    path = PathsConfig(
        kind=kind,  # type: ignore[arg-type]
        frames=frames,
        cycle=kind in LOOPS,
        radius=SWAY * mean,
        azimuth_deg=float(np.degrees(np.arctan2(begins[1], begins[0]))),
        elevation_deg=_clipped(low if kind == "spiral" else float(np.median(elevation))),
        elevation_to_deg=_clipped(high),
        turns=TURNS,
    )
    return camera_paths.around(path, mean)


def _clipped(elevation_deg: float) -> float:
    return min(max(elevation_deg, -STEEPEST), STEEPEST)


def through(c2w: np.ndarray, frames: int) -> np.ndarray:
    """Path (frames, 4, 4) through cameras (N, 4, 4), in their order. Raises UserError for a single one."""
    if len(c2w) < 2:
        raise UserError("--poses views goes through two inputs or more", "--inputs 2, or --poses circle")
    return camera_paths.through(c2w, frames)


@dataclass(frozen=True)
class Viewpoint:
    """Camera beside the origin of the stage, by six numbers that stand for one pose each, also where it looks elsewhere.

    azimuth: from +x towards +y, elevation: above the horizon, both of where it looks from. roll: clockwise, of the camera. All in
    degrees. distance: depth of the origin. right, down: of the camera from where it would look at the origin.
    """

    azimuth: float
    elevation: float
    roll: float
    distance: float
    right: float = 0.0
    down: float = 0.0

    @classmethod
    def of(cls, c2w: np.ndarray) -> Viewpoint:
        """Viewpoint of a camera (4, 4) on the stage. The roll of one that looks straight up or down is 0."""
        right, down, forward, centre = c2w[:3].T
        level = math.hypot(forward[0], forward[1])
        azimuth = math.atan2(-forward[1], -forward[0]) if level > 1e-9 else math.atan2(-right[0], right[1])
        level_right, level_down = _level(azimuth, forward)
        return cls(
            math.degrees(azimuth),
            math.degrees(math.atan2(-forward[2], level)),
            math.degrees(math.atan2(right @ level_down, right @ level_right)),
            *(float(length) for length in (-centre @ forward, centre @ right, centre @ down)),
        )

    def c2w(self) -> np.ndarray:
        """Pose (4, 4) on the stage."""
        azimuth, elevation, roll = (math.radians(angle) for angle in (self.azimuth, self.elevation, self.roll))
        forward = -camera_paths.direction(np.array(azimuth), np.array(elevation))
        right, down = _level(azimuth, forward)
        right, down = math.cos(roll) * right + math.sin(roll) * down, math.cos(roll) * down - math.sin(roll) * right
        made = np.eye(4)
        made[:3] = np.stack([right, down, forward, self.right * right + self.down * down - self.distance * forward], -1)
        return made


def _level(azimuth: float, forward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Axes (3,) to the right and down of a camera without roll, from its azimuth in radians and where it looks."""
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
    return right, np.cross(forward, right)
