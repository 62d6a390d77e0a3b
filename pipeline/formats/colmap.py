"""Cameras and images of a COLMAP model, .bin and .txt (colmap.github.io/format.html). Points, rigs and frames are not read.

Poses are world-to-camera: a Hamilton quaternion, real part first, and a translation, with OpenCV axes. Pixels are counted as
ours, the centre of the first one at (0.5, 0.5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.core.errors import Skip

# model -> (number in .bin files, meaning of its parameters)
MODELS: dict[str, tuple[int, tuple[str, ...]]] = {
    "SIMPLE_PINHOLE": (0, ("f", "cx", "cy")),
    "PINHOLE": (1, ("fx", "fy", "cx", "cy")),
    "SIMPLE_RADIAL": (2, ("f", "cx", "cy", "k1")),
    "RADIAL": (3, ("f", "cx", "cy", "k1", "k2")),
    "OPENCV": (4, ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2")),
    "FULL_OPENCV": (6, ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")),
}
OTHERS = {  # number -> name, count of parameters: skipped over in .bin files
    5: ("OPENCV_FISHEYE", 8),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
}
NAMED = {number: (name, len(parameters)) for name, (number, parameters) in MODELS.items()} | OTHERS
ORDER = ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
CAMERA = struct.Struct("<iiQQ")
IMAGE = struct.Struct("<I7dI")
POINT2D = 24  # bytes
MOST = 1_000_000  # cameras or images; more are damage


@dataclass(frozen=True)
class Camera:
    """A camera. hw: size of its pictures. parameters: in the order that MODELS gives."""

    model: str
    hw: tuple[int, int]
    parameters: tuple[float, ...]

    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """Return fxfycxcy (4,) and OpenCV's distortion (8,). Raises Skip: unsupported_camera, bad_cameras."""
        if self.model not in MODELS:
            raise Skip(
                "unsupported_camera", f"{self.model}; one of {', '.join(MODELS)} is needed: colmap image_undistorter"
            )
        names = MODELS[self.model][1]
        if len(names) != len(self.parameters) or not np.isfinite(self.parameters).all() or min(self.hw) < 1:
            raise Skip("bad_cameras", f"{self.model} of {self.hw} with parameters {self.parameters[:4]}...")
        values = dict(zip(names, self.parameters, strict=True))
        values |= {"fx": values["f"], "fy": values["f"]} if "f" in values else {}
        made = np.array([values.get(name, 0.0) for name in ORDER])
        return made[:4], made[4:]


@dataclass(frozen=True)
class Registered:
    """An image with a pose: quaternion (4,) and translation (3,) of w2c. camera: the number of its Camera."""

    name: str
    quaternion: np.ndarray
    translation: np.ndarray
    camera: int


def is_model(folder: Path) -> bool:
    """True if the folder holds cameras and images of a model."""
    return any((folder / f"cameras{end}").is_file() and (folder / f"images{end}").is_file() for end in (".bin", ".txt"))


def read(folder: Path) -> tuple[dict[int, Camera], list[Registered]]:
    """Read a model: cameras by number, images sorted by name. Raises Skip: no_cameras, bad_cameras, unsupported_camera."""
    binary = (folder / "cameras.bin").is_file() and (folder / "images.bin").is_file()
    try:
        if binary:
            cameras = _cameras_bin((folder / "cameras.bin").read_bytes())
            images = list(_images_bin((folder / "images.bin").read_bytes()))
        else:
            cameras = dict(_cameras_txt((folder / "cameras.txt").read_text(encoding="utf-8")))
            images = list(_images_txt((folder / "images.txt").read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise Skip("no_cameras", f"no model in {folder}: {error.filename}") from None
    except (struct.error, ValueError, IndexError, OSError) as error:
        raise Skip("bad_cameras", f"{folder.name} cannot be read: {error}") from None
    return cameras, sorted(images, key=lambda image: image.name)


def _count(data: bytes) -> int:
    (count,) = struct.unpack_from("<Q", data)
    if count > MOST:
        raise ValueError(f"{count} entries")
    return int(count)


def _cameras_bin(data: bytes) -> dict[int, Camera]:
    cameras, at = {}, 8
    for _ in range(_count(data)):
        number, model, width, height = CAMERA.unpack_from(data, at)
        if model not in NAMED:
            raise Skip(
                "unsupported_camera", f"model {model}; one of {', '.join(MODELS)} is needed: colmap image_undistorter"
            )
        name, count = NAMED[model]
        cameras[number] = Camera(name, (height, width), struct.unpack_from(f"<{count}d", data, at + CAMERA.size))
        at += CAMERA.size + 8 * count
    return cameras


def _images_bin(data: bytes) -> Iterator[Registered]:
    at = 8
    for _ in range(_count(data)):
        _, *pose, camera = IMAGE.unpack_from(data, at)
        end = data.index(b"\0", at + IMAGE.size)
        name = data[at + IMAGE.size : end].decode()
        (points,) = struct.unpack_from("<Q", data, end + 1)
        at = end + 9 + POINT2D * points
        if at > len(data):
            raise ValueError("cut off")
        yield Registered(name, np.array(pose[:4]), np.array(pose[4:]), camera)


def _cameras_txt(text: str) -> Iterator[tuple[int, Camera]]:
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            number, model, width, height, *parameters = line.split()
            yield int(number), Camera(model, (int(height), int(width)), tuple(map(float, parameters)))


def _images_txt(text: str) -> Iterator[Registered]:
    """Parse two lines per image; the second, of points, may be empty."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    while lines and not lines[0].strip():
        lines.pop(0)
    for line in lines[::2]:
        if not line.strip():
            continue
        fields = line.split(maxsplit=9)  # names may have spaces
        if len(fields) != 10:
            raise ValueError(f"images.txt: {line[:60]!r}")
        numbers = np.array(fields[1:8], np.float64)
        yield Registered(fields[9].strip(), numbers[:4], numbers[4:], int(fields[8]))
