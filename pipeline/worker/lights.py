"""Light set-ups for Blender: a sky (a colour and wide lobes, or a map) and suns; and backgrounds, put behind outside Blender.

A set-up is JSON: {"world": colour (3,), "lobes": [{"direction": (3,) unit, "color": (3,)}], "suns": [...]}, radiance in linear
light. The sky in direction d is world + sum of color * ((1 + d . direction) / 2)^2, fixed in the world.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.render import BACKGROUNDS, SceneConfig, environment_maps
from pipeline.core import cameras, images
from pipeline.core.cameras import FLIP_YZ, look_at
from pipeline.core.errors import Skip
from pipeline.core.records import item_rng


def _fibonacci(count: int) -> np.ndarray:
    """Directions (count, 3), evenly spread over the sphere."""
    index = np.arange(count) + 0.5
    z, azimuth = 1 - 2 * index / count, index * np.pi * (3 - np.sqrt(5))
    ring = np.sqrt(1 - z * z)
    return np.stack([ring * np.cos(azimuth), ring * np.sin(azimuth), z], -1)


EVERYWHERE = _fibonacci(1024)


def _sun(direction: np.ndarray, strength: float, color: tuple[float, ...] = (1, 1, 1)) -> dict[str, Any]:
    """A sun that shines from `direction` (3,) towards the origin; strength in W/m^2. Soft (10 deg), for less noise."""
    matrix = look_at(np.asarray(direction, float)) @ FLIP_YZ
    matrix[:3, 3] = 0
    return {"matrix_world": matrix.tolist(), "strength": strength, "color": list(color), "angle_deg": 10.0}


WHITEST = 0.8  # of white: what a white surface shows at most in a dome (231 of 255), so that it never vanishes on white


def irradiance(world: np.ndarray, lobes: list[dict[str, Any]], normals: np.ndarray) -> np.ndarray:
    """Radiance (N, 3) of a white diffuse surface under a sky, by its normals (N, 3): irradiance over pi, in closed form.

    With x = n . direction, a lobe (1 + 2 y + y^2) / 4 of y = d . direction is clamped-cosine convolved by degree
    (Ramamoorthi and Hanrahan 2001): 1 -> 1, y -> 2 x / 3, y^2 -> 1 / 3 + P2(x) / 6.
    """
    total = np.broadcast_to(np.asarray(world, float), normals.shape).copy()
    for lobe in lobes:
        x = normals @ np.asarray(lobe["direction"])
        total += ((4 + 4 * x + (1.5 * x * x - 0.5) / 2) / 12)[:, None] * lobe["color"]
    return total


def _dome_of(world: np.ndarray, directions: np.ndarray, colors: np.ndarray) -> dict[str, Any]:
    """A sky of these lobes, scaled so that the brightest white surface under it shows WHITEST in its brightest channel."""
    units = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    lobes = [{"direction": unit, "color": color} for unit, color in zip(units, colors, strict=True)]
    scale = WHITEST / irradiance(world, lobes, EVERYWHERE).max()
    plain = [
        {"direction": unit.tolist(), "color": (scale * color).tolist()}
        for unit, color in zip(units, colors, strict=True)
    ]
    return {"world": (scale * np.asarray(world)).tolist(), "lobes": plain, "suns": []}


def _dome(rng: np.random.Generator) -> dict[str, Any]:
    """A smooth sky: key from the upper left front, a weaker fill from the right."""
    return _dome_of(
        np.full(3, 0.15), np.array([[-0.55, -0.6, 0.6], [0.8, 0.3, 0.1]]), np.array([[1.0] * 3, [0.35] * 3])
    )


def _uniform(rng: np.random.Generator) -> dict[str, Any]:
    return {"world": [1.0, 1.0, 1.0], "lobes": [], "suns": []}


def _studio(rng: np.random.Generator) -> dict[str, Any]:
    """The four suns of the Objaverse-XL renderer (key, fill, rim, bottom) at the lowest of its random strengths."""
    slant = np.sqrt(0.5)
    suns = [
        _sun(np.array([-0.5, -0.5, slant]), 3.0),
        _sun(np.array([0.5, 0.5, slant]), 2.0),
        _sun(np.array([-0.5, 0.5, slant]), 3.0),
        _sun(np.array([0.0, 0.0, -1.0]), 1.0),
    ]
    return {"world": [0.25, 0.25, 0.25], "lobes": [], "suns": suns}


def _random(rng: np.random.Generator) -> dict[str, Any]:
    """For every other object a sky of two or three lobes, for the rest suns; both slightly tinted."""
    return _random_dome(rng) if rng.random() < 0.5 else _random_suns(rng)


def _random_dome(rng: np.random.Generator) -> dict[str, Any]:
    """Two or three lobes from anywhere, the first the strongest, over a white base of random strength."""
    count = int(rng.integers(2, 4))
    strengths = np.concatenate([[1.0], rng.uniform(0.1, 0.7, count - 1)])
    colors = strengths[:, None] * rng.uniform(0.85, 1, (count, 3))
    return _dome_of(np.full(3, rng.uniform(0.05, 0.3)), rng.normal(size=(count, 3)), colors)


def _random_suns(rng: np.random.Generator) -> dict[str, Any]:
    """One to three suns from anywhere above -30 deg, over a white world of random strength."""
    suns = []
    for _ in range(int(rng.integers(1, 4))):
        azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 1)
        flat = np.sqrt(1 - height * height)
        direction = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), height])
        suns.append(_sun(direction, rng.uniform(0.5, 2.5), tuple(rng.uniform(0.85, 1, 3))))
    return {"world": [float(rng.uniform(0.3, 0.8))] * 3, "lobes": [], "suns": suns}


LIGHTS: dict[str, Callable[[np.random.Generator], dict[str, Any]]] = {
    "dome": _dome,
    "uniform": _uniform,
    "studio": _studio,
    "random": _random,
}


def lights_of(cfg: SceneConfig, uid: str) -> dict[str, Any]:
    """Set-up of an object: a function of the settings (resolved), the uid and, for hdri, the names in the folder."""
    rng = item_rng(cfg.seed, uid, "lights")
    return _hdri(rng, cfg.hdri) if cfg.lights == "hdri" else LIGHTS[cfg.lights](rng)


def _hdri(rng: np.random.Generator, folder: str | None) -> dict[str, Any]:
    """An environment map of the folder, turned about z, as strong as leaves a white surface at WHITEST at most."""
    assert folder is not None
    maps = environment_maps(folder)
    path, turn = maps[int(rng.integers(len(maps)))], float(rng.uniform(0, 2 * np.pi))
    brightest = _brightest(path)
    chosen = {"path": path, "turn": turn, "strength": WHITEST / brightest if brightest else 0.0}
    return {"world": [0.0, 0.0, 0.0], "lobes": [], "suns": [], "hdri": chosen}


@functools.lru_cache(8)
def environment(path: str, width: int) -> np.ndarray:
    """An equirectangular map at most `width` pixels wide, linear light (H, W, 3) float32. Skip if it cannot be read."""
    try:
        rgb = images.read_hdr(path)
    except OSError as error:
        raise Skip(
            "bad_environment_map", f"{error}: not an equirectangular .hdr or .exr of three finite colours"
        ) from None
    return images.resize_area(rgb, (max(1, width // 2), width)) if width < rgb.shape[1] else rgb


@functools.lru_cache(64)
def _brightest(path: str) -> float:
    """Radiance of the brightest white surface under the map as it is, in its brightest channel."""
    rgb = environment(path, 128)
    height, width = rgb.shape[:2]
    at = map_directions(height, width)
    solid_angle = np.hypot(at[..., 0], at[..., 1]) * (np.pi / height) * (2 * np.pi / width)
    cosines = np.maximum(EVERYWHERE @ at.reshape(-1, 3).T, 0)
    return float((cosines @ (rgb * solid_angle[..., None]).reshape(-1, 3) / np.pi).max())


def map_directions(height: int, width: int) -> np.ndarray:
    """Unit directions (H, W, 3) of the pixels of an equirectangular map that is not turned, the inverse of `seen_towards`."""
    polar = np.pi * (np.arange(height)[:, None] + 0.5) / height
    azimuth = 2 * np.pi * (0.5 - (np.arange(width)[None] + 0.5) / width)
    x, y = np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth)
    return np.stack([x, y, np.broadcast_to(np.cos(polar), x.shape)], -1)


def seen_towards(around: np.ndarray, directions: np.ndarray, turn: float) -> np.ndarray:
    """Radiance (..., 3) of a map (H, W, 3), looked up bilinearly in world directions (..., 3) turned by `turn` radians about z.

    As Blender's environment texture has it: +x is the middle of the map, +y a quarter of its width to the left, +z its top.
    """
    height, width = around.shape[:2]
    x, y, z = np.moveaxis(directions / np.linalg.norm(directions, axis=-1, keepdims=True), -1, 0)
    u = (0.5 - (np.arctan2(y, x) + turn) / (2 * np.pi)) % 1
    v = 0.5 - np.arcsin(np.clip(z, -1, 1)) / np.pi
    wrapped = np.concatenate([around[:, -1:], around, around[:, :1]], 1)
    return images.sample_bilinear(wrapped, u * width + 1, v * height)


# ---- backgrounds

Background = Callable[[np.ndarray, int], np.ndarray]
"""(c2w (4, 4), image width) -> linear light (3,), or (width, width, 3) where every pixel has its own."""


def background(cfg: SceneConfig, uid: str, lights: dict[str, Any]) -> tuple[Background, dict[str, Any]]:
    """Background of an object, and its facts for the shard: a function of settings (resolved), uid and lights.

    facts: {"background": sRGB bytes (3,) or "hdri"}; under a map also "hdri" (file name), "hdri_turn" (radians by which
    directions are turned about z before it is looked up) and "hdri_strength" (factor).
    """
    facts: dict[str, Any] = {}
    if cfg.lights == "hdri":
        path, turn, strength = (lights["hdri"][name] for name in ("path", "turn", "strength"))
        facts = {"hdri": Path(path).name, "hdri_turn": turn, "hdri_strength": strength}
    if cfg.background == "hdri":
        assert cfg.fov_x_deg is not None
        fov_x_deg = cfg.fov_x_deg

        def sky(c2w: np.ndarray, width: int) -> np.ndarray:
            # as many pixels around as the picture would have, so that none is skipped and none is larger than the picture's
            around = environment(path, round(360 * width / fov_x_deg))
            return strength * seen_towards(around, _directions(c2w, fov_x_deg, width), turn)

        return sky, facts | {"background": "hdri"}
    if cfg.background == "random":
        color = item_rng(cfg.seed, uid, "background").integers(0, 256, 3).tolist()
    else:
        color = list(BACKGROUNDS[cfg.background])
    light = images.linear(np.array(color, np.uint8))
    return lambda c2w, width: light, facts | {"background": color}


def _directions(c2w: np.ndarray, fov_x_deg: float, width: int) -> np.ndarray:
    """World directions (width, width, 3), not of length 1, through the centres of a square picture's pixels."""
    focal = cameras.focal_from_fov(fov_x_deg, width)
    across = (np.arange(width) + 0.5 - width / 2) / focal
    x, y = np.meshgrid(across, across)
    return np.stack([x, y, np.ones_like(x)], -1) @ np.asarray(c2w, np.float64)[:3, :3].T
