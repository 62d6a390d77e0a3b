"""Capture: views of one scene as a camera file lists them, before any picture is read."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import cameras
from pipeline.core.cameras import PINHOLE, Lens
from pipeline.core.errors import Skip

MAX_JSON = 64_000_000  # bytes
MOST_SKEW = 0.5  # pixels; more is a camera that fxfycxcy does not hold
MOST_OFF_CENTRE = 0.45  # of half the picture; pictures of half or twice the size are farther off
ROLES = ("train", "val", "test")
TEXT = r'("(?:[^"\\]|\\.)*")'  # of JSON: what stands in it is no comment and no comma
COMMENT = re.compile(TEXT + r"|//[^\n]*|/\*.*?\*/", re.DOTALL)
TRAILING = re.compile(TEXT + r"|,(?=\s*[\]}])")

CameraOf = Callable[[tuple[int, int]], tuple[np.ndarray, Lens]]


@dataclass(frozen=True)
class View:
    """View of a capture. name: of its picture, as the camera file says it; picture: its file, None if that is missing. sought:
    where it is not then, "in images" if the name does not say the folder.

    c2w (4, 4) with OpenCV axes, NaN where the file says no pose. camera: (height, width) of the picture -> fxfycxcy (4,) in its
    pixels, and the lens; raises Skip. role: one of ROLES, or "" where the capture has none. time: of a scene that moves, in the
    units of its file. layer: name -> as of Posed.layer, of this view; None where the format has none. mask: reads the file of
    the share of each pixel that the object covers, raises Skip; None where the format has none. frame: reads the picture where
    `picture` is a video, as a file of its own, raises Skip.
    """

    name: str
    picture: Path | None
    c2w: np.ndarray
    camera: CameraOf
    role: str = ""
    time: float | None = None
    layer: Callable[[str], np.ndarray] | None = None
    mask: Callable[[], bytes] | None = None
    sought: str = "there"
    frame: Callable[[], bytes] | None = None


@dataclass(frozen=True)
class Capture:
    """Views of one scene, and facts about it (JSON-able)."""

    views: list[View]
    meta: dict[str, Any] = field(default_factory=dict)


def finite(poses: np.ndarray) -> np.ndarray:
    """Poses (V, ...), NaN throughout where one of their numbers is NaN or infinite."""
    there = np.isfinite(poses).reshape(len(poses), -1).all(1)
    return np.where(there.reshape(-1, *[1] * (poses.ndim - 1)), poses, np.nan)


def inverted(w2c: np.ndarray) -> np.ndarray:
    """Invert w2c (V, 3 or 4, 4) -> c2w (V, 4, 4), keeping the axis convention; NaN for those that have no inverse."""
    whole = finite(cameras.homogeneous(np.asarray(w2c, np.float64)[:, :3]))
    with np.errstate(all="ignore"):
        singular = ~(np.abs(np.linalg.det(whole)) > 0)
    return np.asarray(np.linalg.inv(np.where(singular[:, None, None], np.nan, whole)))


def matrices(values: Sequence[Any]) -> np.ndarray:
    """Convert V matrices from JSON, 3x4 or 4x4 each -> (V, 4, 4) float64. Raises Skip("bad_cameras")."""
    try:
        rows = [np.asarray(value, np.float64) for value in values]
        if wrong := [row.shape for row in rows if row.shape not in ((3, 4), (4, 4))]:
            raise ValueError(f"a pose of shape {wrong[0]}")
        return np.stack([row if len(row) == 4 else cameras.homogeneous(row) for row in rows])
    except (ValueError, TypeError) as error:
        raise Skip("bad_cameras", str(error)) from None


def matrices_of(values: Sequence[Any]) -> np.ndarray:
    """Convert V matrices from JSON as `matrices` does, but NaN (4, 4) for those that are none."""
    return finite(np.stack([_matrix(value) for value in values]))


def _matrix(value: Any) -> np.ndarray:
    try:
        return matrices([value])[0]
    except Skip:
        return np.full((4, 4), np.nan)


def check_intrinsics(name: str, fxfycxcy: np.ndarray, hw: tuple[int, int]) -> None:
    """Raise Skip("bad_cameras") for a focal length or principal point (4,) that no camera has. hw: size of the image `name`."""
    fx, fy, cx, cy = fxfycxcy
    height, width = hw
    if not (0.05 * width < fx < 100 * width and 0.05 * height < fy < 100 * height):
        raise Skip("bad_cameras", f"{name}: focal lengths {fx:.4g}, {fy:.4g} for {width}x{height} pixels")
    if not (-width < cx < 2 * width and -height < cy < 2 * height):
        raise Skip("bad_cameras", f"{name}: principal point {cx:.4g}, {cy:.4g} for {width}x{height} pixels")


def npy(data: bytes, name: str) -> np.ndarray:
    """Read a .npy file as float64, never pickled objects. Raises Skip("bad_cameras")."""
    try:
        return np.asarray(np.lib.format.read_array(io.BytesIO(data), allow_pickle=False), np.float64)
    except (ValueError, TypeError, EOFError, OSError, SyntaxError, MemoryError, OverflowError) as error:
        raise Skip("bad_cameras", f"{name}: {error}") from None


def json_value(data: bytes, name: str) -> Any:
    """Parse JSON, also with comments, trailing commas and a byte order mark, as tools for captures do. Skip("bad_cameras")."""
    if len(data) > MAX_JSON:
        raise Skip("bad_cameras", f"{name} is {len(data)} bytes long")
    try:
        text = data.decode("utf-8-sig") if data[:2] not in (b"\xff\xfe", b"\xfe\xff") else data.decode("utf-16")
        try:
            return json.loads(text)
        except ValueError:
            for aside in (COMMENT, TRAILING):
                text = aside.sub(lambda found: found[1] or " ", text)
            return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Skip("bad_cameras", f"{name} is not JSON: {error}") from None


def json_object(data: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON file that holds an object. Raises Skip("bad_cameras")."""
    value = json_value(data, name)
    if not isinstance(value, dict):
        raise Skip("bad_cameras", f"{name} holds no JSON object")
    return value


def json_lists(data: bytes, name: str) -> list[dict[str, Any]]:
    """Parse a JSON file that holds a list of objects, of any length. Raises Skip("bad_cameras")."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Skip("bad_cameras", f"{name} is not JSON: {error}") from None
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise Skip("bad_cameras", f"{name} holds no list of objects")
    return value


def number(record: Mapping[str, Any], name: str) -> float | None:
    """Get a finite number from a JSON object, also one in quotes, None if absent. Raises Skip("bad_cameras")."""
    value = record.get(name)
    if value is None:
        return None
    try:
        found = math.nan if isinstance(value, bool) or not isinstance(value, int | float | str) else float(value)
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise Skip("bad_cameras", f"{name} is {str(value)[:40]!r}, not a number")
    return found


def focal(size: float, fov: float) -> float:
    """Focal length in pixels of a side of `size` pixels seen under `fov` radians. Raises Skip("bad_cameras")."""
    if not 0 < fov < math.pi:
        raise Skip("bad_cameras", f"a field of view of {fov:g} radians")
    return size / 2 / math.tan(fov / 2)


def fitted(fxfycxcy: np.ndarray, stated_hw: tuple[float, float], hw: tuple[int, int], name: str) -> np.ndarray:
    """Scale intrinsics (4,) from the stated size to the picture's size hw, which differs for smaller copies.

    Raises Skip("bad_cameras") if the aspect ratios differ by more than rounding.
    """
    sy, sx = hw[0] / stated_hw[0], hw[1] / stated_hw[1]
    if abs(sx - sy) > sx * (1.5 / min(hw) + 0.002):
        stated = f"{stated_hw[1]:g}x{stated_hw[0]:g}"
        raise Skip("bad_cameras", f"{name} is {hw[1]}x{hw[0]} pixels, its camera says {stated}")
    return np.asarray(fxfycxcy, np.float64) * [sx, sy, sx, sy]


def unsized(fxfycxcy: np.ndarray, hw: tuple[int, int]) -> tuple[np.ndarray, Lens]:
    """Intrinsics of a format that says no picture size, as they are. Raises Skip("bad_cameras") if they are of another size."""
    off = np.abs(np.asarray(fxfycxcy)[2:] / [hw[1] / 2, hw[0] / 2] - 1)
    if not (off < MOST_OFF_CENTRE).all():
        cx, cy = fxfycxcy[2:]
        raise Skip(
            "bad_cameras",
            f"a principal point of {cx:.4g}, {cy:.4g} for {hw[1]}x{hw[0]} pixels: of pictures of another size",
        )
    return np.asarray(fxfycxcy, np.float64), PINHOLE


def decomposed(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World to pixels (3, 4), any factor -> fxfycxcy (4,), c2w (4, 4); pixels as the matrix counts them.

    Both are NaN where the matrix is no camera's. Raises Skip("unsupported_camera").
    """
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:, :3])) < 1e-12:
        return np.full(4, np.nan), np.full((4, 4), np.nan)
    # K R by the QR decomposition of the rows from the last to the first
    q, r = np.linalg.qr(matrix[::-1, :3].T)
    k, rotation = r.T[::-1, ::-1], q.T[::-1]
    signs = np.sign(np.diag(k))
    k, rotation = k * signs, signs[:, None] * rotation
    if np.linalg.det(rotation) < 0:  # the matrix had a negative factor
        rotation = -rotation
    k = k / k[2, 2]
    if abs(k[0, 1]) > MOST_SKEW:
        raise Skip("unsupported_camera", f"a skew of {k[0, 1]:.3g} pixels")
    centre = -np.linalg.solve(matrix[:, :3], matrix[:, 3])
    c2w = cameras.homogeneous(np.c_[rotation.T, centre])
    return np.array([k[0, 0], k[1, 1], k[0, 2], k[1, 2]]), c2w
