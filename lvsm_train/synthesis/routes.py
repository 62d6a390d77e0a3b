"""Cameras of new views: along a path with a name, of a file, or where the photos were taken that a model is not shown."""

from __future__ import annotations

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
