"""The turntable that fits pictures best, for sets that ship no cameras: found by their silhouettes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.config.views import MixCameras
from pipeline.core import cameras
from pipeline.core.records import Posed
from pipeline.worker import silhouettes

ELEVATIONS = (-30.0, -20.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0, 60.0)
FOVS = (30.0, 39.6, 49.134, 60.0)
FOV_MARGIN = 0.002  # another field of view has to fill the silhouettes better by this share


@dataclass(frozen=True)
class Suggestion:
    """The best-fitting cameras of a turntable, and the share of the silhouettes that these and the present ones fill."""

    best: MixCameras
    filled: float
    filled_now: float

    def __str__(self) -> str:
        fields = ("elevation_deg", "fov_x_deg", "radius", "clockwise")
        flags = [_flag(name, getattr(self.best, name)) for name in fields]
        return f"{' '.join(flags)} fits: {self.filled:.3f} instead of {self.filled_now:.3f}"


def _flag(name: str, value: float | bool) -> str:
    dashed = name.replace("_", "-")
    return (f"--{dashed}" if value else f"--no-{dashed}") if isinstance(value, bool) else f"--{dashed} {value:g}"


def best_turntable(scenes: Sequence[Posed], now: MixCameras) -> Suggestion | None:
    """The turntable that fits the scenes' silhouettes best: direction, elevation, field of view and radius. None without any.

    scenes: as loaded with the cameras `now`. The azimuth of view 0 only turns the world, so pictures cannot tell it. Radius
    and field of view follow from the objects' size, which is 1 along the longest side.
    """
    shapes = [found for posed in scenes if (found := silhouettes.Outlines(posed).spread()) is not None]
    if not shapes:
        return None

    def filled(mix: MixCameras) -> float:
        return float(np.mean([_turned(shape, now, mix).filled(silhouettes.FEW_RAYS)[0] for shape in shapes]))

    scored = {now: filled(now)}

    def better(mixes: list[MixCameras], margin: float = 0.0) -> MixCameras:
        for mix in mixes:
            if mix not in scored:
                scored[mix] = filled(mix) - margin
        return max(scored, key=lambda mix: scored[mix])

    best = better([replace(now, elevation_deg=up, clockwise=way) for way in (False, True) for up in ELEVATIONS])
    best = better([replace(best, elevation_deg=best.elevation_deg + change) for change in (-2.5, 2.5)])
    # the score hardly depends on the field of view: require a clear gain
    best = better([replace(best, fov_x_deg=fov) for fov in FOVS], FOV_MARGIN)
    best = better([replace(best, elevation_deg=best.elevation_deg + change) for change in (-2.5, 2.5)])
    sides = [side for shape in shapes if (side := _turned(shape, now, best).filled()[1]) is not None]
    if sides and abs(np.median(sides) - 1) > 0.1:
        best = replace(best, radius=float(np.round(best.radius / np.median(sides), 2)))
    return Suggestion(best, filled(best), scored[now])


def _turned(shapes: silhouettes.Silhouettes, now: MixCameras, mix: MixCameras) -> silhouettes.Silhouettes:
    """Silhouettes of turntable `now` with the cameras of turntable `mix`."""
    x, y = shapes.c2w[:, 0, 3], shapes.c2w[:, 1, 3]
    steps = (np.arctan2(y, x) - np.radians(now.azimuth_deg)) * (-1 if now.clockwise else 1)
    azimuth = np.radians(mix.azimuth_deg) + steps * (-1 if mix.clockwise else 1)
    elevation = np.radians(mix.elevation_deg)
    flat = np.cos(elevation)
    eyes = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.full_like(azimuth, np.sin(elevation))], -1)
    zoom = np.tan(np.radians(now.fov_x_deg) / 2) / np.tan(np.radians(mix.fov_x_deg) / 2)
    fxfycxcy = shapes.fxfycxcy * [zoom, zoom, 1, 1]
    return replace(shapes, c2w=cameras.look_at(mix.radius * eyes), fxfycxcy=fxfycxcy)
