"""Light set-ups for Blender: a world colour and suns. The pictures' background stays white in all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.core.cameras import FLIP_YZ, look_at


def _sun(direction: np.ndarray, strength: float, color: tuple[float, ...] = (1, 1, 1)) -> dict[str, Any]:
    """A sun that shines from `direction` (3,) towards the origin; strength in W/m^2. Soft (10 deg), for less noise."""
    matrix = look_at(np.asarray(direction, float)) @ FLIP_YZ
    matrix[:3, 3] = 0
    return {"matrix_world": matrix.tolist(), "strength": strength, "color": list(color), "angle_deg": 10.0}


def _uniform(rng: np.random.Generator) -> dict[str, Any]:
    return {"world": [1.0, 1.0, 1.0], "suns": []}


def _studio(rng: np.random.Generator) -> dict[str, Any]:
    """The four suns of the Objaverse-XL renderer (key, fill, rim, bottom) at the lowest of its random strengths."""
    slant = np.sqrt(0.5)
    suns = [
        _sun(np.array([-0.5, -0.5, slant]), 3.0),
        _sun(np.array([0.5, 0.5, slant]), 2.0),
        _sun(np.array([-0.5, 0.5, slant]), 3.0),
        _sun(np.array([0.0, 0.0, -1.0]), 1.0),
    ]
    return {"world": [0.25, 0.25, 0.25], "suns": suns}


def _random(rng: np.random.Generator) -> dict[str, Any]:
    """One to three suns from anywhere above -30 deg, slightly tinted, over a white world of random strength."""
    suns = []
    for _ in range(int(rng.integers(1, 4))):
        azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 1)
        flat = np.sqrt(1 - height * height)
        direction = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), height])
        suns.append(_sun(direction, rng.uniform(0.5, 2.5), tuple(rng.uniform(0.85, 1, 3))))
    return {"world": [float(rng.uniform(0.3, 0.8))] * 3, "suns": suns}


LIGHTS: dict[str, Callable[[np.random.Generator], dict[str, Any]]] = {
    "uniform": _uniform,
    "studio": _studio,
    "random": _random,
}
