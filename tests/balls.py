"""Seven coloured balls with known centres: drawn by a ray tracer of its own, and found again by their colours.

Shares nothing with the pipeline: cameras are positions and unit vectors, and every format writes them down in its own way
(tests/foreign.py).
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image
from scipy.ndimage import map_coordinates

RADIUS = 0.085
CENTRES = np.array(
    [
        [0.42, 0.05, -0.3],
        [-0.33, 0.36, 0.22],
        [0.06, -0.42, 0.36],
        [-0.4, -0.3, -0.12],
        [0.3, 0.38, 0.3],
        [-0.05, 0.1, -0.4],
        [0.36, -0.34, 0.02],
    ]
)
HUES = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 0.3, 0]])
SUB = 4  # samples along each side of a pixel
Rays = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Eye:
    """Where a camera is and how it is turned: unit vectors in the world. k: fx fy cx cy.

    bent: k1 k2 p1 p2 k3 k4 k5 k6 of OpenCV's model, or four for its fisheye model: k1 k2 k3 k4.
    """

    position: np.ndarray
    right: np.ndarray
    up: np.ndarray
    back: np.ndarray
    k: tuple[float, float, float, float]
    hw: tuple[int, int]
    bent: tuple[float, ...] = (0.0,) * 8

    def rays(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Pixels from the picture's upper left corner -> directions."""
        fx, fy, cx, cy = self.k
        x, y = (unfished if len(self.bent) == 4 else straightened)((u - cx) / fx, (v - cy) / fy, self.bent)
        return x[..., None] * self.right - y[..., None] * self.up - self.back


def straightened(xd: np.ndarray, yd: np.ndarray, bent: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Inverts OpenCV's lens model by Newton's method with numerical derivatives."""
    if not any(bent):
        return xd, yd

    def model(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        k1, k2, p1, p2, k3, k4, k5, k6 = bent
        r2 = x**2 + y**2
        factor = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
        return (
            x * factor + 2 * p1 * x * y + p2 * (r2 + 2 * x**2),
            y * factor + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y,
        )

    x, y, step = xd.copy(), yd.copy(), 1e-6
    for _ in range(6):
        (a, b), (ax, bx), (ay, by) = model(x, y), model(x + step, y), model(x, y + step)
        j11, j12, j21, j22 = (ax - a) / step, (ay - a) / step, (bx - b) / step, (by - b) / step
        det = j11 * j22 - j12 * j21
        dx, dy = (j22 * (a - xd) - j12 * (b - yd)) / det, (j11 * (b - yd) - j21 * (a - xd)) / det
        x, y = x - dx, y - dy
        if max(np.abs(dx).max(initial=0), np.abs(dy).max(initial=0)) < 1e-9:
            break
    return x, y


@functools.cache
def _fish_table(bent: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    theta = np.linspace(0, 1.5, 200_001)
    return theta * (1 + sum(k * theta ** (2 * i + 2) for i, k in enumerate(bent))), theta


def unfished(xd: np.ndarray, yd: np.ndarray, bent: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Inverts theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8) by a table, then tan theta is the radius."""
    r = np.hypot(xd, yd)
    factor = np.tan(np.interp(r, *_fish_table(bent))) / np.maximum(r, 1e-12)
    return xd * factor, yd * factor


def eye(
    position: Sequence[float],
    target: Sequence[float],
    k: tuple[float, ...],
    hw: tuple[int, int],
    roll: float = 0.0,
    **more: object,
) -> Eye:
    """A camera at `position` that looks at `target`, turned about its axis by `roll` radians."""
    p = np.asarray(position, float)
    back = p - np.asarray(target, float)
    back /= np.linalg.norm(back)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    up = np.cross(back, right)
    right, up = np.cos(roll) * right + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * right
    return Eye(p, right, up, back, k, hw, **more)  # type: ignore[arg-type]


def _hits(origin: np.ndarray, rays: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Which ball (-1: none) each ray meets first, and where along it."""
    best, ball = np.full(rays.shape[:-1], np.inf), np.full(rays.shape[:-1], -1)
    a = (rays**2).sum(-1)
    for i, centre in enumerate(CENTRES):
        b = rays @ (origin - centre)
        c = ((origin - centre) ** 2).sum() - radius**2
        with np.errstate(invalid="ignore"):
            t = (-b - np.sqrt(b * b - a * c)) / a
        nearer = (t > 0) & (t < best)
        best[nearer], ball[nearer] = t[nearer], i
    return best, ball


@functools.cache
def _noise(octave: int) -> np.ndarray:
    return np.random.default_rng(octave).random((64, 64, 64))


def room(origin: np.ndarray, rays: np.ndarray, half: float = 1.6) -> np.ndarray:
    """The textured inside of a box: grey levels (...,) in 0.05..0.95."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.nanmin(np.where(rays > 0, (half - origin) / rays, (-half - origin) / rays), -1)
    points = origin + rays * t[..., None]
    total = np.zeros(t.shape)
    for octave, (cell, weight) in enumerate([(0.4, 0.5), (0.13, 0.3), (0.05, 0.2)]):
        total += weight * map_coordinates(_noise(octave), (points / cell + 17.3).T, order=1, mode="grid-wrap").T
    return np.clip(3 * (total - 0.5) + 0.5, 0.05, 0.95)


def _light(origin: np.ndarray, rays: np.ndarray, in_room: bool) -> np.ndarray:
    """Premultiplied linear RGBA (..., 4)."""
    t, ball = _hits(origin, rays, RADIUS)
    met = ball >= 0
    rgba = np.zeros((*t.shape, 4))
    local = (origin + rays[met] * t[met][:, None] - CENTRES[ball[met]]) / RADIUS
    waves = np.sin(9 * local[:, 0] + 2) * np.sin(11 * local[:, 1]) * np.sin(8 * local[:, 2] + 1)
    rgba[met, :3] = HUES[ball[met]] * (0.72 + 0.28 * waves)[:, None]
    rgba[met, 3] = 1
    if in_room:
        rgba[~met, :3] = room(origin, rays[~met])[:, None]
        rgba[..., 3] = 1
    return rgba


def draw(one: Eye, in_room: bool = False) -> np.ndarray:
    """The picture (H, W, 4): premultiplied linear light, SUB x SUB samples in a pixel where a ball may end, one within."""
    height, width = one.hw
    picture = np.zeros((height, width, 4))

    def met(rows: np.ndarray, columns: np.ndarray, beyond: float) -> np.ndarray:
        """The ball that is met at each pixel's centre if each is larger by `beyond` pixels, where the farthest one is."""
        radius = max(0, RADIUS + beyond * 2.5 / min(one.k[:2]))
        return _hits(one.position, one.rays(columns + 0.5, rows + 0.5), radius)[1]

    def trace(rows: np.ndarray, columns: np.ndarray, sub: int) -> None:
        for i, j in np.ndindex(sub, sub):
            rays = one.rays(columns + (j + 0.5) / sub, rows + (i + 0.5) / sub)
            picture[rows, columns] += _light(one.position, rays, in_room) / sub**2

    if in_room:
        trace(*np.indices((height, width)).reshape(2, -1), sub=2)
        return picture
    block = max(1, min(one.hw) // 128)
    middles = np.indices((height // block + 1, width // block + 1)) * block + block // 2
    rough = met(*middles, beyond=2 + block) >= 0
    rows, columns = np.nonzero(np.kron(rough, np.ones((block, block)))[:height, :width])
    near, core = met(rows, columns, 2), met(rows, columns, -2)
    for sub, part in ((SUB, near != core), (1, (near >= 0) & (near == core))):
        trace(rows[part], columns[part], sub)
    return picture


def to_srgb(light: np.ndarray) -> np.ndarray:
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.clip(light, 0, None) ** (1 / 2.4) - 0.055)
    return np.round(255 * np.clip(curve, 0, 1)).astype(np.uint8)


def from_srgb(levels: np.ndarray) -> np.ndarray:
    curve = levels / 255.0
    return np.where(curve <= 0.04045, curve / 12.92, ((curve + 0.055) / 1.055) ** 2.4)


FROM_SRGB = from_srgb(np.arange(256))


def png(rgba: np.ndarray) -> bytes:
    """Straight alpha, as renderers save it."""
    alpha = rgba[..., 3:]
    straight, met = np.zeros(rgba.shape, np.uint8), alpha[..., 0] > 0
    straight[met] = np.concatenate([to_srgb(rgba[met, :3] / alpha[met]), np.round(255 * alpha[met])], -1)
    return _saved(straight, "PNG")


def photo(rgba: np.ndarray, kind: str = "JPEG") -> bytes:
    """Opaque, on white."""
    picture, met = np.full((*rgba.shape[:2], 3), 255, np.uint8), rgba[..., 3] > 0
    picture[met] = to_srgb(rgba[met, :3] + 1 - rgba[met, 3:])
    return _saved(picture, kind)


def _saved(pixels: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


# ---- where the balls are in a picture, by colour


def balls_in(rgb: np.ndarray, reach: int) -> dict[int, np.ndarray]:
    """sRGB bytes (H, W, 3) on white -> ball: centroid (2,) of its coverage, from the upper left corner.

    A pixel is p * hue + q * white; 1 - q is how much of it is covered, whatever the ball's texture does to p.
    reach: pixels around the clearly coloured ones that belong to a ball too.
    """
    coloured = rgb.min(-1) < 255
    light = FROM_SRGB[rgb[coloured]]
    best, which = np.full(len(light), np.inf), np.full(len(light), -1)
    whose, covered = np.full(rgb.shape[:2], -1), np.zeros((len(HUES), *rgb.shape[:2]))
    for i, hue in enumerate(HUES):
        basis = np.stack([hue, np.ones(3)], -1)
        solved = light @ np.linalg.pinv(basis).T
        left = ((light - solved @ basis.T) ** 2).sum(-1)
        covered[i, coloured] = np.clip(1 - solved[..., 1], 0, 1)
        nearer = (solved[..., 0] > 0.15) & (left < best)
        best[nearer], which[nearer] = left[nearer], i
    whose[coloured] = which
    found = {}
    for i in range(len(HUES)):
        _, labels, stats, _ = cv2.connectedComponentsWithStats((whose == i).astype(np.uint8))
        if len(stats) < 2 or stats[1:, cv2.CC_STAT_AREA].max() < 6:
            continue
        rows, columns = np.nonzero(
            labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
        )  # others are seams of two colours
        top, left_edge = max(0, rows.min() - reach), max(0, columns.min() - reach)
        part = np.s_[top : rows.max() + reach + 1, left_edge : columns.max() + reach + 1]
        weight = np.where((whose[part] == i) | (whose[part] == -1), covered[i][part], 0)
        y, x = np.mgrid[: weight.shape[0], : weight.shape[1]] + 0.5
        found[i] = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum() + [left_edge, top]
    return found


def expected(c2w: np.ndarray, k: np.ndarray, hw: tuple[int, int]) -> dict[int, np.ndarray]:
    """Ball -> the centre of the ellipse that it projects to, for balls that are whole in the picture and touch no other."""
    x, y, z = (np.linalg.inv(np.asarray(c2w, float)) @ np.c_[CENTRES, np.ones(len(CENTRES))].T)[:3]
    stretch = z / (z * z - RADIUS**2)
    places = np.stack([k[0] * x * stretch + k[2], k[1] * y * stretch + k[3]], -1)
    size = 1.15 * RADIUS * max(k[:2]) / z
    found = {}
    for i, place in enumerate(places):
        apart = all(
            np.linalg.norm(place - other) > size[i] + size[j] + 8 * max(k[:2]) / 560 + 1
            for j, other in enumerate(places)
            if j != i
        )
        if apart and (place > size[i] + 2).all() and (place < np.array(hw[::-1]) - size[i] - 2).all() and z[i] > 0:
            found[i] = place
    return found


# ---- the cameras of object sets and of photographs


@functools.cache
def circle(count: int, focal: float, size: int, elevation: float = 30.0, radius: float = 2.0) -> tuple[Eye, ...]:
    """A turntable, as allenai/objaverse-rendering sets it: theta = 2 pi i / count, phi from the pole."""
    phi = np.radians(90 - elevation)
    eyes = []
    for i in range(count):
        theta = 2 * np.pi * i / count
        p = radius * np.array([np.sin(phi) * np.cos(theta), np.sin(phi) * np.sin(theta), np.cos(phi)])
        eyes.append(eye(p, (0, 0, 0), (focal * size, focal * size, size / 2, size / 2), (size, size)))
    return tuple(eyes)


@functools.cache
def walk(count: int, hw: tuple[int, int], bent: tuple[float, ...] = (0.0,) * 8, step: float = 0.5) -> tuple[Eye, ...]:
    """Somebody with a camera: fx != fy, the principal point off the centre, a little roll."""
    rng = np.random.default_rng(4)
    k = (1.21 * hw[1], 1.13 * hw[1], 0.48 * hw[1], 0.53 * hw[0])
    eyes = []
    for i in range(count):
        angle = step * i
        p = np.array([np.cos(angle), np.sin(angle), 0.25 + 0.4 * np.sin(1.7 * angle)])
        p *= 1.9 / np.linalg.norm(p) * (1 + 0.03 * rng.standard_normal())
        eyes.append(eye(p, 0.04 * rng.standard_normal(3), k, hw, roll=0.2 * rng.standard_normal(), bent=bent))
    return tuple(eyes)


_pictures: dict[tuple[int, bool], tuple[Eye, np.ndarray]] = {}


def pictures(eyes: Sequence[Eye], in_room: bool = False) -> list[np.ndarray]:
    """Each drawn once per session."""
    for one in eyes:
        if (id(one), in_room) not in _pictures:
            _pictures[id(one), in_room] = one, draw(one, in_room)
    return [_pictures[id(one), in_room][1] for one in eyes]
