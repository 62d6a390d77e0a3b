"""COLMAP models, .bin and .txt (colmap.github.io/format.html), and where their pictures are.

Points, rigs and frames are not read.

A project may hold several models (sparse/0, sparse/1, dense/0/sparse, ...), each with its own folder of pictures; the one with
most pictures that are there is taken. Poses stay in the model's own world, which has no unit and no up: world-to-camera, a
Hamilton quaternion, real part first, and a translation, with OpenCV axes. Pixels are counted as ours, the centre of the first
one at (0.5, 0.5).
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.core.cameras import Lens, quaternion_of, rotation_of
from pipeline.core.errors import Skip
from pipeline.poses import lenses
from pipeline.poses.capture import Capture, View, finite, fitted, inverted
from pipeline.poses.lenses import PARAMETERS
from pipeline.poses.pictures import SMALLER, Finder, named
from pipeline.poses.shots import Folders, Points, Shots, Writer, write_pictures

NUMBERS = dict(  # in .bin files -> name
    enumerate(
        "SIMPLE_PINHOLE PINHOLE SIMPLE_RADIAL RADIAL OPENCV OPENCV_FISHEYE FULL_OPENCV FOV SIMPLE_RADIAL_FISHEYE "
        "RADIAL_FISHEYE THIN_PRISM_FISHEYE".split()
    )
)
COUNT = struct.Struct("<Q")
CAMERA = struct.Struct("<iiQQ")
IMAGE = struct.Struct("<I7dI")
POINT2D = 24  # bytes
POINT3D = np.dtype(  # with a track of one pixel: the number of its image, and its place in that image's list
    [
        ("id", "<u8"),
        ("xyz", "<f8", 3),
        ("rgb", "u1", 3),
        ("error", "<f8"),
        ("length", "<u8"),
        ("image", "<u4"),
        ("place", "<u4"),
    ]
)
NO_POINTS = "there are no points without depth (render --depth): gsplat then wants --no-normalize-world-space --init-type random"
MOST = 1_000_000  # cameras or images; more are damage
Made = TypeVar("Made")


@dataclass(frozen=True)
class Camera:
    """A camera. hw: size of its pictures. parameters: in the order that PARAMETERS gives."""

    model: str
    hw: tuple[int, int]
    parameters: tuple[float, ...]

    def numbers(self) -> tuple[np.ndarray, Lens]:
        """Return fxfycxcy (4,) and the lens. Raises Skip: unsupported_camera, bad_cameras."""
        if self.model not in PARAMETERS:
            lenses.lens(self.model, {})  # raises
        names = PARAMETERS[self.model]
        if len(names) != len(self.parameters) or not np.isfinite(self.parameters).all() or min(self.hw) < 1:
            said = f"{self.model} of {self.hw[1]}x{self.hw[0]} pixels with parameters {self.parameters[:12]}"
            raise Skip("bad_cameras", f"{said}; {len(names)} finite numbers are needed: {', '.join(names)}")
        values = dict(zip(names, self.parameters, strict=True))
        values |= {"fx": values["f"], "fy": values["f"]} if "f" in values else {}
        return np.array([values[name] for name in ("fx", "fy", "cx", "cy")]), lenses.lens(self.model, values)

    def at(self, hw: tuple[int, int], name: str) -> tuple[np.ndarray, Lens]:
        """`numbers` for a picture of size hw that `name` names: smaller copies of the pictures are taken too."""
        k, lens = self.numbers()
        return fitted(k, self.hw, hw, name), lens


@dataclass(frozen=True)
class Registered:
    """An image with a pose: quaternion (4,) and translation (3,) of w2c. camera: the number of its Camera."""

    name: str
    quaternion: np.ndarray
    translation: np.ndarray
    camera: int


SAYS = "COLMAP models with their images"
FOLDERS = ("images", *SMALLER)
OTHERS = ("input", "image", "rgb", "color", "frames")  # folders of pictures where there is none of FOLDERS
MODELS = ("sparse", "colmap_sparse", "colmap_text")  # folders that hold a model, or models by number
UNDISTORTED = ("dense", "mvs", "colmap_dense")  # folders with a model and pictures of their own


def is_scene(folder: Path) -> bool:
    """True if the folder is a project with a model, or a model itself."""
    return any(True for _ in _projects(folder))


def read(folder: Path, finder: Finder, only: str = "") -> Capture:
    """Read the project in a folder. Raises Skip: no_cameras, no_images (none registered), bad_cameras, escapes_folder."""
    best: list[View] | None = None
    failure: Skip | None = None
    for model, places in _projects(folder):
        try:
            views = _views(model, places, finder.within(*places), _said(places, folder))
        except Skip as error:
            failure = failure or error
            continue
        if best is None or _rank(views) > _rank(best):
            best = views
    if best is None:
        raise failure or Skip("no_cameras", f"no COLMAP model in {folder}")
    return Capture(best)


def _projects(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yield (model, folders of its pictures) of a project, as COLMAP, nerfstudio, 3DGS and colmap2nerf lay it out."""
    if folder.absolute().name in MODELS and not is_model(folder):
        folder = folder.absolute().parent
    inner = [folder / name for name in UNDISTORTED] + sorted((folder / "dense").glob("[0-9]*"))
    layouts: list[tuple[Path, Path, tuple[str, ...]]] = [
        (folder, folder, FOLDERS),
        (folder / "colmap", folder, FOLDERS),
    ]
    layouts += [(one, one, FOLDERS) for one in inner] + [(folder / "distorted", folder, ("input",))]
    for above, pictures, names in layouts:
        for sparse in (above / name for name in MODELS):
            for model in (*sorted(sparse.glob("[0-9]*"), key=_by_number), sparse):
                if is_model(model):
                    yield model, _places(pictures, names)
    if is_model(folder):
        around = (folder, folder.absolute().parent, folder.absolute().parent.parent)
        yield folder, next((_places(one, FOLDERS) for one in around if _places(one, FOLDERS) != [one]), [folder])


def _said(places: Sequence[Path], folder: Path) -> str:
    """Name folders as they lie in the capture's."""
    return f"in {' or '.join(Path(os.path.relpath(place, folder)).as_posix() for place in places)}"


def _by_number(folder: Path) -> tuple[int, str]:
    return (int(folder.name) if folder.name.isdecimal() else 1 << 30), folder.name


def _places(folder: Path, names: Sequence[str]) -> list[Path]:
    """Folders of these names that exist in `folder`; without any, `folder` itself and those of OTHERS."""
    found, others = ([place for name in some if (place := named(folder, name)).is_dir()] for some in (names, OTHERS))
    return found or [folder, *others]


def _rank(views: list[View]) -> tuple[int, int]:
    return sum(view.picture is not None for view in views), len(views)


def _views(model: Path, places: list[Path], finder: Finder, sought: str) -> list[View]:
    cameras, registered = read_model(model)
    if not registered:
        raise Skip("no_images", "the model has no registered image")
    quaternions = finite(np.stack([image.quaternion for image in registered]))
    quaternions[~(np.linalg.norm(quaternions, axis=-1) > 1e-6)] = np.nan  # no rotation
    translations = np.stack([image.translation for image in registered])
    c2w = inverted(np.concatenate([rotation_of(quaternions), translations[..., None]], -1))
    views = []
    for image, pose in zip(registered, c2w, strict=True):
        if image.camera not in cameras:
            raise Skip("bad_cameras", f"{image.name} has camera {image.camera}, which the model lacks")
        found = (finder.find(image.name, place) for place in places)
        picture = next((file for file in found if file is not None), None)
        camera = functools.partial(cameras[image.camera].at, name=image.name)
        views.append(View(image.name, picture, pose, camera, sought=sought))
    return views


def is_model(folder: Path) -> bool:
    """True if the folder holds cameras and images of a model."""
    return any((folder / f"cameras{end}").is_file() and (folder / f"images{end}").is_file() for end in (".bin", ".txt"))


def read_model(folder: Path) -> tuple[dict[int, Camera], list[Registered]]:
    """Read a model: cameras by number, images sorted by name. Raises Skip: no_cameras, bad_cameras, unsupported_camera."""
    binary = (folder / "cameras.bin").is_file() and (folder / "images.bin").is_file()
    try:
        if binary:
            cameras = dict(_cameras_bin(_Bytes(folder / "cameras.bin", "camera")))
            images = list(_images_bin(_Bytes(folder / "images.bin", "image")))
        else:
            cameras = dict(_each(_camera_txt, folder / "cameras.txt"))
            images = list(_each(_image_txt, folder / "images.txt", every=2))
    except FileNotFoundError as error:
        raise Skip("no_cameras", f"no model in {folder}: {error.filename}") from None
    except OSError as error:
        raise Skip("bad_cameras", f"{folder} cannot be read: {error}") from None
    return cameras, sorted(images, key=lambda image: image.name)


class _Bytes:
    """Reader of a .bin file from front to back; what is damaged raises Skip("bad_cameras") with the file, entry and byte."""

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what, self.data = path, what, path.read_bytes()
        self.at, self.number, self.count = 0, 0, 0

    def entries(self) -> Iterator[int]:
        """Read the number of entries and count them."""
        (self.count,) = self.take(COUNT)
        if self.count > MOST:
            raise Skip("bad_cameras", f"{self.path} begins with a count of {self.count} {self.what}s: damaged")
        for number in range(1, self.count + 1):
            self.number = number
            yield number

    def take(self, form: struct.Struct) -> tuple[Any, ...]:
        """Next numbers."""
        found = self.skip(form.size)
        return form.unpack_from(self.data, found)

    def text(self) -> str:
        """Text up to the next NUL."""
        end = self.data.find(b"\0", self.at)
        start = self.skip((end if end >= 0 else len(self.data)) + 1 - self.at)
        return self.data[start:end].decode(errors="replace")

    def skip(self, size: int) -> int:
        """Go on by so many bytes. Returns where they begin."""
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            entry = f"{self.what} {self.number} of {self.count}" if self.number else "its count"
            said = f"{len(self.data)} bytes, and {entry} needs those from {start} to {self.at}"
            raise Skip("bad_cameras", f"{self.path} is cut off or damaged: it has {said}; copy the model again")
        return start


def _cameras_bin(file: _Bytes) -> Iterator[tuple[int, Camera]]:
    for _ in file.entries():
        number, model, width, height = file.take(CAMERA)
        if model not in NUMBERS:
            lenses.lens(f"model {model}", {})  # raises: how long its parameters are is not known
        parameters = file.take(struct.Struct(f"<{len(PARAMETERS[NUMBERS[model]])}d"))
        yield number, Camera(NUMBERS[model], (height, width), parameters)


def _images_bin(file: _Bytes) -> Iterator[Registered]:
    for _ in file.entries():
        _, *pose, camera = file.take(IMAGE)
        name = file.text()
        (points,) = file.take(COUNT)
        file.skip(POINT2D * points)
        yield Registered(name, np.array(pose[:4]), np.array(pose[4:]), camera)


def _each(parse: Callable[[str], Made], path: Path, every: int = 1) -> Iterator[Made]:
    """Parse every so-many-th line of a .txt file from the first that says something, without comments. Skip("bad_cameras")."""
    said = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    lines = [(number, line) for number, line in enumerate(said, 1) if not line.startswith("#")]
    while lines and not lines[0][1].strip():
        lines.pop(0)
    for number, line in lines[::every]:
        if not line.strip():
            continue
        try:
            yield parse(line)
        except ValueError as error:
            raise Skip("bad_cameras", f"{path}, line {number}: {error}: {line[:60]!r}") from None


def _camera_txt(line: str) -> tuple[int, Camera]:
    number, model, width, height, *parameters = line.split()
    return int(number), Camera(model, (int(height), int(width)), tuple(map(float, parameters)))


def _image_txt(line: str) -> Registered:
    """Parse the first of the two lines of an image; the second, of points, may be empty."""
    fields = line.split(maxsplit=9)  # names may have spaces
    if len(fields) != 10:
        raise ValueError(f"{len(fields)} of 10 fields")
    numbers = np.array(fields[1:8], np.float64)
    return Registered(fields[9].strip(), numbers[:4], numbers[4:], int(fields[8]))


# ---- writing


def writer(root: Path) -> Writer:
    """Writer of COLMAP projects: NAME/sparse/0 and NAME/images, as COLMAP, gsplat and 3DGS read them."""
    return Folders(root, _write)


def _write(shots: Shots, folder: Path) -> str | None:
    """Write one PINHOLE camera for each set of intrinsics that differs; points from depth, none without.

    A point's track is the one pixel that it was taken from: gsplat's depth loss looks for the points of each image.
    Returns a note where there are no points.
    """
    names = write_pictures(shots, folder / "images")
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    distinct, camera_of = np.unique(shots.fxfycxcy.astype(np.float64), axis=0, return_inverse=True)
    pinhole = next(number for number, name in NUMBERS.items() if name == "PINHOLE")
    cameras = [
        CAMERA.pack(number, pinhole, shots.hw[1], shots.hw[0]) + struct.pack("<4d", *k)
        for number, k in enumerate(distinct, 1)
    ]
    (model / "cameras.bin").write_bytes(struct.pack("<Q", len(cameras)) + b"".join(cameras))
    points = shots.points()
    seen, place = _pixels(points, len(shots))
    w2c = shots.w2c()
    quaternions = quaternion_of(w2c[:, :3, :3])
    images = [
        IMAGE.pack(number, *q, *pose[:3, 3], int(camera) + 1) + name.encode() + b"\0" + own
        for number, (name, q, pose, camera, own) in enumerate(
            zip(names, quaternions, w2c, np.ravel(camera_of), seen, strict=True), 1
        )
    ]
    (model / "images.bin").write_bytes(struct.pack("<Q", len(images)) + b"".join(images))
    rows = np.zeros(len(points), POINT3D)
    rows["id"], rows["xyz"], rows["rgb"] = np.arange(1, len(points) + 1), points.xyz, points.rgb
    rows["length"], rows["image"], rows["place"] = 1, points.view + 1, place
    (model / "points3D.bin").write_bytes(struct.pack("<Q", len(points)) + rows.tobytes())
    return None if len(points) else NO_POINTS


def _pixels(points: Points, views: int) -> tuple[list[bytes], np.ndarray]:
    """Return the list of 2D points of each image, as images.bin has it, and the place (P,) of each point in its list."""
    place = np.empty(len(points), np.int64)
    lists = []
    for view in range(views):
        (own,) = np.nonzero(points.view == view)
        place[own] = np.arange(len(own))
        rows = np.empty(len(own), [("xy", "<f8", 2), ("point", "<i8")])
        rows["xy"], rows["point"] = points.xy[own], own + 1
        lists.append(struct.pack("<Q", len(own)) + rows.tobytes())
    return lists, place
