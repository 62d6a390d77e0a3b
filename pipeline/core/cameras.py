"""Pose maths and camera samplers. Pure NumPy functions.

Convention, everywhere in this project: `c2w` is camera-to-world with OpenCV axes (+x right, +y down, +z forward) in a
world with z up; `fxfycxcy` is in pixels of the stored image and the centre of pixel (0, 0) is (0.5, 0.5). Orthographic cameras
have `sxsycxcy` instead: the point (x, y, z) of camera space is seen at (sx x + cx, sy y + cy), with sx, sy in pixels per unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

FLIP_YZ = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenCV camera axes <-> OpenGL/Blender camera axes
# of the sphere around the origin that holds every object: its own sphere (around its box's centre) scaled to that, or the sphere
# around a box with longest side 1
BOUNDING_RADIUS = {"sphere": 0.5, "box": float(np.sqrt(3.0) / 2)}
NEAR_ORIGIN = 0.25  # distance of what cameras look at, up to which it counts as the origin; objects lie within 0.5
SENSOR_WIDTH_MM = 36.0
ORTHO_MARGIN = (
    1.015  # width of an orthographic picture over the diameter of the bounding sphere: half a pixel a side at 64
)


@dataclass(frozen=True)
class Lens:
    """Lens of a camera: where light that a pinhole would show at a place of the plane at depth 1 comes instead.

    bend: of the radius r: "none", "theta" (fisheyes, r -> atan r), "fov" (r -> atan(2 r tan(omega / 2)) / omega). Polynomials of
    the bent radius follow: radial (k1 k2 k3, and a fourth that OpenCV lacks) over denominator (OpenCV's k4 k5 k6), tangential
    (p1 p2), prism (factors of r^2 in x and y). crop: radius of the part of the picture that shows something, as a share of its
    width, around its middle; 0: all of it.
    """

    bend: Literal["none", "theta", "fov"] = "none"
    radial: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    denominator: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tangential: tuple[float, float] = (0.0, 0.0)
    prism: tuple[float, float] = (0.0, 0.0)
    omega: float = 0.0
    crop: float = 0.0

    @property
    def numbers(self) -> tuple[float, ...]:
        """All coefficients in one row."""
        return (*self.radial, *self.denominator, *self.tangential, *self.prism, self.omega, self.crop)

    @property
    def is_pinhole(self) -> bool:
        """True if the lens bends nothing."""
        return self.bend == "none" and not any(self.numbers)

    def distort(self, points: np.ndarray) -> np.ndarray:
        """Places (..., 2) of a pinhole on the plane at depth 1 -> places (..., 2) of this lens."""
        if self.bend == "none":
            return self._shift(points)
        r = np.linalg.norm(points, axis=-1, keepdims=True)
        if self.bend == "theta":
            bent = np.arctan(r)
        else:
            bent = np.arctan(2 * r * np.tan(self.omega / 2)) / self.omega
            middle = 2 * np.tan(self.omega / 2) / self.omega
        factor = np.where(r > 1e-9, bent / np.maximum(r, 1e-9), 1.0 if self.bend == "theta" else middle)
        return self._shift(points * factor)

    def straighten(self, places: np.ndarray) -> np.ndarray:
        """Invert `distort` by Newton's method: (N, 2) -> (N, 2), nan where no light of a pinhole comes from."""
        at, step = np.array(places, np.float64), 1e-6
        with np.errstate(all="ignore"):
            for _ in range(12):
                here = self._shift(at)
                along_x, along_y = ((self._shift(at + change) - here) / step for change in np.eye(2) * step)
                det = along_x[..., 0] * along_y[..., 1] - along_x[..., 1] * along_y[..., 0]
                off = here - places
                dx = (along_y[..., 1] * off[..., 0] - along_y[..., 0] * off[..., 1]) / det
                dy = (along_x[..., 0] * off[..., 1] - along_x[..., 1] * off[..., 0]) / det
                at = at - np.stack([dx, dy], -1)
            at[~(np.abs(self._shift(at) - places).max(-1) < 1e-6)] = np.nan
            if self.bend == "none":
                return at
            r = np.linalg.norm(at, axis=-1, keepdims=True)
            angle = r if self.bend == "theta" else r * self.omega
            plane = np.tan(angle) / (1 if self.bend == "theta" else 2 * np.tan(self.omega / 2))
            straight = at * np.where(r > 1e-9, plane / np.maximum(r, 1e-9), 1.0)
            return np.where(angle < 1.5, straight, np.nan)

    def _shift(self, points: np.ndarray) -> np.ndarray:
        """Polynomials of the model at bent places (..., 2)."""
        (k1, k2, k3, k4), (d1, d2, d3), (p1, p2) = self.radial, self.denominator, self.tangential
        x, y = np.moveaxis(points, -1, 0)
        r2 = x * x + y * y
        radial = (1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))) / (1 + r2 * (d1 + r2 * (d2 + r2 * d3)))
        bent_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x) + self.prism[0] * r2
        bent_y = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y + self.prism[1] * r2
        return np.stack([bent_x, bent_y], -1)


PINHOLE = Lens()


def look_at(position: np.ndarray, target: np.ndarray | tuple[float, ...] = (0.0, 0.0, 0.0)) -> np.ndarray:
    """Positions (..., 3) -> c2w (..., 4, 4), looking at `target`, image up along world +z (+y where looking along z)."""
    position = np.asarray(position, np.float64)
    forward = np.asarray(target) - position
    forward = forward / np.linalg.norm(forward, axis=-1, keepdims=True)
    up = np.broadcast_to([0.0, 0.0, 1.0], forward.shape)
    vertical = np.abs(forward[..., 2:]) > 1 - 1e-9
    up = np.where(vertical, [0.0, 1.0, 0.0], up)
    right = np.cross(forward, up)
    right = right / np.linalg.norm(right, axis=-1, keepdims=True)
    c2w = np.zeros((*position.shape[:-1], 4, 4))
    c2w[..., :3, 0] = right
    c2w[..., :3, 1] = np.cross(forward, right)
    c2w[..., :3, 2] = forward
    c2w[..., :3, 3] = position
    c2w[..., 3, 3] = 1
    return c2w


def focal_from_fov(fov_x_deg: float, width: float) -> float:
    """Horizontal field of view in degrees -> focal length in pixels of an image that is `width` pixels wide."""
    return float(width / 2 / np.tan(np.radians(fov_x_deg) / 2))


def intrinsics(fov_x_deg: float, hw: tuple[int, int]) -> np.ndarray:
    """fxfycxcy (4,) in pixels, with square pixels and a centred principal point."""
    height, width = hw
    focal = focal_from_fov(fov_x_deg, width)
    return np.array([focal, focal, width / 2, height / 2])


def ortho_intrinsics(ortho_scale: float, hw: tuple[int, int]) -> np.ndarray:
    """sxsycxcy (4,) of an orthographic picture that is `ortho_scale` world units wide, with square pixels, centred."""
    height, width = hw
    scale = width / ortho_scale
    return np.array([scale, scale, width / 2, height / 2])


def resize_intrinsics(fxfycxcy: np.ndarray, hw: tuple[int, int], new_hw: tuple[int, int]) -> np.ndarray:
    """fxfycxcy (..., 4) of an image of size hw -> fxfycxcy after resizing it to new_hw. Exact: corners map to corners."""
    sy, sx = new_hw[0] / hw[0], new_hw[1] / hw[1]
    return np.asarray(fxfycxcy) * np.array([sx, sy, sx, sy])


def w2c(c2w: np.ndarray) -> np.ndarray:
    """Inverse of rigid c2w (..., 4, 4), in closed form."""
    inverse = np.zeros_like(c2w)
    rotation = np.swapaxes(c2w[..., :3, :3], -1, -2)
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3] = -(rotation @ c2w[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1
    return inverse


def project(points: np.ndarray, c2w: np.ndarray, fxfycxcy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World points (N, 3) seen by cameras (..., 4, 4), (..., 4) -> pixels (..., N, 2), depth (..., N). Pixel centres at +0.5."""
    inverse = w2c(np.asarray(c2w, np.float64))
    camera = points @ np.swapaxes(inverse[..., :3, :3], -1, -2) + inverse[..., None, :3, 3]
    depth = camera[..., 2]
    k = np.asarray(fxfycxcy, np.float64)[..., None, :]
    pixels = camera[..., :2] / depth[..., None] * k[..., :2] + k[..., 2:]
    return pixels, depth


def projection(c2w: np.ndarray, intrinsics: np.ndarray, ortho: bool = False) -> np.ndarray:
    """c2w (..., 4, 4), fxfycxcy (..., 4) -> (..., 3, 4): world to homogeneous pixels and depth, `project` as a matrix.

    ortho: intrinsics are sxsycxcy; the third row is then 0 0 0 1, and the first two give pixels.
    """
    fx, fy, cx, cy = np.moveaxis(np.asarray(intrinsics, np.float64), -1, 0)
    zero = np.zeros_like(fx)
    offset, last = ([zero, zero], [cx, cy]) if ortho else ([cx, cy], [zero, zero])
    rows = [fx, zero, offset[0], last[0], zero, fy, offset[1], last[1]]
    rows += [zero, zero, zero, zero + 1] if ortho else [zero, zero, zero + 1, zero]
    return np.asarray(np.stack(rows, -1).reshape(*fx.shape, 3, 4) @ w2c(np.asarray(c2w, np.float64)))


def looked_at(c2w: np.ndarray) -> np.ndarray:
    """Point (3,) nearest to the optical axes of cameras (N, 4, 4), in front of them.

    Where the axes do not meet in front of them (parallel ones, or a camera that turns on the spot), it lies before their middle,
    as far as they stand apart, or 1 where they do not.
    """
    centres, axes = c2w[:, :3, 3], c2w[:, :3, 2]
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    total = across.sum(0)
    if np.linalg.eigvalsh(total)[0] > 1e-3 * len(c2w):
        point = np.linalg.solve(total, (across @ centres[:, :, None]).sum(0)[:, 0])
        if (((point - centres) * axes).sum(-1) > 1e-6).mean() > 0.5:
            return point
    apart = float(np.linalg.norm(centres - centres.mean(0), axis=-1).max())
    forward = axes.mean(0)
    forward = axes[0] if np.linalg.norm(forward) < 1e-6 else forward / np.linalg.norm(forward)
    return np.asarray(centres.mean(0) + (apart if apart > 1e-9 else 1.0) * forward)


def from_opengl(c2w_gl: np.ndarray) -> np.ndarray:
    """c2w (..., 4, 4) of a camera with OpenGL/Blender axes (+x right, +y up, -z forward) -> c2w with OpenCV axes."""
    return np.asarray(np.asarray(c2w_gl, np.float64) @ FLIP_YZ)


def to_opengl(c2w: np.ndarray) -> np.ndarray:
    """c2w (..., 4, 4) with OpenCV axes -> c2w of the same camera with OpenGL/Blender axes. Inverse of `from_opengl`."""
    return np.asarray(np.asarray(c2w, np.float64) @ FLIP_YZ)


def homogeneous(rows: np.ndarray) -> np.ndarray:
    """(..., 3, 4) -> (..., 4, 4) float64 with the row 0 0 0 1."""
    rows = np.asarray(rows, np.float64)
    last = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (*rows.shape[:-2], 1, 4))
    return np.concatenate([rows, last], -2)


def rotation_of(quaternion: np.ndarray) -> np.ndarray:
    """Hamilton quaternions (..., 4), real part first, of any length but 0 -> rotation matrices (..., 3, 3)."""
    quaternion = np.asarray(quaternion, np.float64)
    w, x, y, z = np.moveaxis(quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def quaternion_of(rotation: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) -> unit Hamilton quaternions (..., 4), real part first and not negative.

    The eigenvector of the largest eigenvalue of a symmetric matrix (Bar-Itzhack 2000), which has no special cases.
    """
    r = np.asarray(rotation, np.float64)
    k = np.empty((*r.shape[:-2], 4, 4))
    k[..., 0, 0] = np.trace(r, axis1=-2, axis2=-1)
    k[..., 1:, 1:] = r + np.swapaxes(r, -1, -2) - k[..., 0, 0, None, None] * np.eye(3)
    for axis, (row, column) in enumerate(((2, 1), (0, 2), (1, 0)), 1):
        k[..., 0, axis] = k[..., axis, 0] = r[..., row, column] - r[..., column, row]
    q = np.linalg.eigh(k / 3)[1][..., -1]
    return np.asarray(np.where(q[..., :1] < 0, -q, q))


def flaw(c2w: np.ndarray, tolerance: float = 1e-3) -> str:
    """Say what keeps a c2w (4, 4) from being rigid; "" for one that is. tolerance: how far R^T R may be off the identity."""
    rotation = c2w[:3, :3]
    if not np.isfinite(c2w).all():
        return "a pose that is no matrix of finite numbers"
    if np.abs(c2w).max() > 1e6:
        return f"a pose with numbers up to {np.abs(c2w).max():.3g}, of which 1e6 is the most: move or scale its world"
    if (off := np.abs(rotation.T @ rotation - np.eye(3)).max()) > tolerance:
        return f"axes that are not orthonormal (off by {off:.2g})"
    if np.linalg.det(rotation) < 0:
        return "mirrored axes (a determinant of -1)"
    return "a last row that is not 0 0 0 1" if (np.abs(c2w[3] - [0, 0, 0, 1]) > 1e-6).any() else ""


def check_rigid(c2w: np.ndarray, tolerance: float = 1e-3, name: Callable[[int], str] = "view {}".format) -> None:
    """Raise ValueError unless all c2w (V, 4, 4) are rigid, with the first view that is not and its `flaw`. name: names a view."""
    if c2w.ndim != 3 or c2w.shape[1:] != (4, 4):
        raise ValueError(f"poses of shape {c2w.shape}")
    for view, pose in enumerate(c2w):
        if said := flaw(pose, tolerance):
            raise ValueError(f"{name(view)}: {said}")


def nearest_rigid(
    c2w: np.ndarray, tolerance: float = 1e-3, name: Callable[[int], str] = "view {}".format
) -> np.ndarray:
    """c2w (V, 4, 4) with its rotations made orthonormal to float64. Raises ValueError like `check_rigid`."""
    c2w = np.asarray(c2w, np.float64)
    check_rigid(c2w, tolerance, name)
    rotation = c2w[:, :3, :3]
    u, _, v = np.linalg.svd(rotation)
    rigid = c2w.copy()
    rigid[:, :3, :3] = u @ v
    return rigid


def circle(
    count: int, elevation_deg: float, radius: float, azimuth_deg: float = 0.0, clockwise: bool = False
) -> np.ndarray:
    """c2w (V, 4, 4) float64 of a turntable: V even steps of azimuth from +x towards +y (or -y), looking at the origin."""
    step = -360 / count if clockwise else 360 / count
    azimuth, elevation = np.radians(azimuth_deg + step * np.arange(count)), np.radians(elevation_deg)
    return look_at(_ring(azimuth, elevation, radius))


def spread(count: int, limit: int | None) -> np.ndarray:
    """Indices of at most `limit` of `count` views, spread evenly, always with the first view."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.arange(limit) * count // limit


def blender_camera(
    c2w: np.ndarray, intrinsics: np.ndarray, hw: tuple[int, int], ortho: bool = False
) -> dict[str, object]:
    """Parameters of Blender's own camera for one c2w and fxfycxcy (sensor_fit HORIZONTAL, sensor width 36 mm).

    c2w (4, 4), fxfycxcy (4,), or sxsycxcy if `ortho`, in pixels of an image of size hw -> matrix_world (rows), lens in mm or
    ortho_scale in world units, shifts, pixel aspects; and the `projection` (3, 4), to find where in the picture a point is.
    """
    height, width = hw
    fx, fy, cx, cy = (float(v) for v in intrinsics)
    aspect_x, aspect_y = max(1.0, fy / fx), max(1.0, fx / fy)
    return {
        **({"ortho_scale": width / fx} if ortho else {"lens": fx * SENSOR_WIDTH_MM / width}),
        "matrix_world": (np.asarray(c2w, np.float64) @ FLIP_YZ).tolist(),
        "sensor_width": SENSOR_WIDTH_MM,
        "shift_x": (width / 2 - cx) / width,
        # shifts are in units of the width, pixels may not be square
        "shift_y": (cy - height / 2) / width * aspect_y / aspect_x,
        "pixel_aspect_x": aspect_x,
        "pixel_aspect_y": aspect_y,
        "projection": projection(c2w, intrinsics, ortho).tolist(),
    }


def _sphere(u: np.ndarray, v: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """Area-preserving map of the unit square to a sphere: u, v (V,) in [0, 1) -> positions (V, 3)."""
    z = 2 * u - 1
    ring = np.sqrt(np.maximum(0, 1 - z * z))
    direction = np.stack([ring * np.cos(2 * np.pi * v), ring * np.sin(2 * np.pi * v), z], -1)
    return direction * np.reshape(radius, (-1, 1))


def _ring(azimuth: np.ndarray, elevation: float, radius: float) -> np.ndarray:
    """Positions (V, 3) around the z axis. azimuth (V,), elevation: radians."""
    flat = np.cos(elevation)
    sides = [flat * np.cos(azimuth), flat * np.sin(azimuth), np.full(len(azimuth), np.sin(elevation))]
    return radius * np.stack(sides, -1)


def _turntable(rng: np.random.Generator, count: int, elevation_deg: float, radius: float) -> np.ndarray:
    return _ring(2 * np.pi * np.arange(count) / count, np.radians(elevation_deg), radius)


def _shell(rng: np.random.Generator, count: int, nearest: float, thickness: float) -> np.ndarray:
    u, v, w = rng.random((count, 3)).T  # a row per view: the first views stay the same when more are asked for
    return _sphere(u, v, nearest + thickness * w)


def _xl(rng: np.random.Generator, count: int) -> np.ndarray:
    draws = rng.random((count, 4))
    direction = 2 * draws[:, :3] - 1  # not uniform on the sphere, as in the Objaverse-XL renderer
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    return direction * (1.5 + 0.7 * draws[:, 3:])


def _radical_inverse(index: np.ndarray) -> np.ndarray:
    """Van der Corput sequence in base 2: index (V,) -> (V,) in [0, 1)."""
    bits = (index[:, None] >> np.arange(32)) & 1
    return bits @ (0.5 ** np.arange(1, 33))


def _hammersley(rng: np.random.Generator, count: int) -> np.ndarray:
    index = np.arange(count)
    offset = rng.random(2)
    return _sphere(((index + 0.5) / count + offset[0]) % 1, (_radical_inverse(index) + offset[1]) % 1, 2.2)


@dataclass(frozen=True)
class Sampler:
    """positions(rng, V) -> (V, 3) around a normalised, centred object, all looking at the origin.

    nearest: the smallest radius. fitted: radii are multiples of the distance at which the bounding sphere just fits into the
    picture; else they are those that were published. views: the fixed number of views, or None for any.
    """

    positions: Callable[[np.random.Generator, int], np.ndarray]
    fov_x_deg: float
    nearest: float
    says: str
    fitted: bool = False
    views: int | None = None


_SHELL = partial(_shell, nearest=1.015, thickness=0.08)  # at 64 pixels, 1.015 leaves half a pixel
_GRM = partial(_shell, nearest=0.75, thickness=0.65)  # published for [-1, 1]^3, our objects are half as large
_ORBIT = partial(_turntable, elevation_deg=20.0, radius=2.2)
_SPHERE12 = partial(_turntable, elevation_deg=30.0, radius=2.0)
SAMPLERS: dict[str, Sampler] = {
    "shell": Sampler(
        _SHELL, 50.0, 1.015, "uniform on the sphere, 1.015-1.095 times as far as the object's sphere needs", fitted=True
    ),
    "xl": Sampler(_xl, 49.134, 1.5, "Objaverse-XL: normalised uniform cube direction, radius 1.5-2.2, lens 35/32"),
    "grm": Sampler(_GRM, 50.0, 0.75, "GS-LRM: uniform on the sphere, radius 0.75-1.4 (1.5-2.8 around [-1,1]^3)"),
    "orbit": Sampler(_ORBIT, 50.0, 2.2, "a turntable at elevation 20 deg, radius 2.2"),
    "sphere12": Sampler(_SPHERE12, 49.134, 2.0, "12 fixed azimuths, elevation 30 deg, radius 2", views=12),
    "hammersley": Sampler(_hammersley, 50.0, 2.2, "low-discrepancy points with a random offset, radius 2.2"),
}


def fitting_distance(fov_x_deg: float, normalize: str) -> float:
    """Distance from the origin at which the bounding sphere of a normalised object just fits into a square picture."""
    return float(BOUNDING_RADIUS[normalize] / np.sin(np.radians(fov_x_deg) / 2))


def is_framed(sampler: str, fov_x_deg: float, normalize: str, ortho_scale: float | None = None) -> bool:
    """True if every view holds the whole bounding sphere, so that an object that touches the border is an error.

    ortho_scale: width in world units of orthographic pictures, None for pinholes.
    """
    kind, radius = SAMPLERS[sampler], BOUNDING_RADIUS[normalize]
    if ortho_scale is not None:  # what is behind a camera is not seen, whatever the width
        return ortho_scale >= 2 * radius and (kind.fitted or kind.nearest >= radius)
    return kind.fitted or kind.nearest >= fitting_distance(fov_x_deg, normalize)


def sample(
    sampler: str, rng: np.random.Generator, count: int, fov_x_deg: float | None = None, normalize: str = "sphere"
) -> np.ndarray:
    """c2w (V, 4, 4) float32 of the named sampler. These float32 values are both rendered and stored.

    fov_x_deg: horizontal field of view, by default the sampler's own. normalize: a key of BOUNDING_RADIUS. Both move the
    cameras of fitted samplers alone.
    """
    kind = SAMPLERS[sampler]
    scale = fitting_distance(fov_x_deg or kind.fov_x_deg, normalize) if kind.fitted else 1.0
    return look_at(scale * kind.positions(rng, kind.views or count)).astype(np.float32)
