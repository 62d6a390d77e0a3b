"""NeuS, IDR and their DTU scenes: cameras_sphere.npz or cameras.npz beside image/, a matrix per picture in the order of names.

world_mat_i takes the world to pixels (K [R|t], OpenCV axes), counted from the centre of the first pixel: half a pixel is added.
scale_mat_i takes the unit sphere to the object; poses stay in the world that it leads to. Masks in mask/ say what it covers.
"""

from __future__ import annotations

import functools
import io
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.core import images
from pipeline.core.errors import Skip
from pipeline.formats import bundles
from pipeline.poses.capture import Capture, View, decomposed, matrices_of, npy, unsized
from pipeline.poses.pictures import Finder, named, pictures_in
from pipeline.poses.shots import Folders, Shots, Writer

SAYS = "cameras_sphere.npz or cameras.npz of NeuS and IDR with its images"
FILES = ("cameras_sphere.npz", "cameras.npz")
FOLDERS = ("image", "images", "rgb", ".")
MASKS = ("mask", "masks")
MATRIX = re.compile(r"world_mat_(\d+)")
HALF_PIXEL = 0.5  # from the centre of the first pixel to its corner
MOST = 100_000  # matrices
MAX_MATRIX = 4096  # bytes of a .npy of 16 numbers, with its head


def is_scene(folder: Path) -> bool:
    """True if the folder holds one of FILES, and pictures in one of FOLDERS."""
    return any((folder / name).is_file() for name in FILES) and any(
        pictures_in(named(folder, name)) for name in FOLDERS
    )


def read(folder: Path, finder: Finder, only: str = "") -> Capture:
    """Read the capture in a folder. Raises Skip: no_cameras, no_images, count_mismatch, bad_cameras, unsupported_camera."""
    name = only or next((name for name in FILES if (folder / name).is_file()), "")
    if not name:
        raise Skip("no_cameras", f"no {FILES[0]} in {folder}")
    matrices = _matrices(folder / name)
    places = [named(folder, name).relative_to(folder).as_posix() for name in FOLDERS]
    place = next((one for one in places if pictures_in(folder / one)), None)
    if place is None:
        raise Skip("no_images", f"no pictures in {FOLDERS[0]}/ beside {name}")
    found = pictures_in(folder / place)
    views, masks = [], _masks(folder, finder, found)
    for picture, matrix, mask in zip(found, _matched(found, matrices, name), masks, strict=True):
        k, pose = decomposed(matrix)
        k += np.array([0, 0, HALF_PIXEL, HALF_PIXEL])
        file = finder.find(f"{place}/{picture}", folder)
        views.append(View(f"{place}/{picture}", file, pose, functools.partial(unsized, k), mask=mask))
    return Capture(views)


def _masks(folder: Path, finder: Finder, names: Sequence[str]) -> Sequence[Callable[[], bytes] | None]:
    """Return what reads the mask of each picture: of its name or number, else, of as many, by order. None without masks."""
    place = next((one for one in (named(folder, name) for name in MASKS) if pictures_in(one)), None)
    if place is None:
        return [None] * len(names)
    masks = pictures_in(place)
    by_key = {_key(mask): mask for mask in masks}
    alike = [by_key.get(_key(name)) for name in names]
    if not any(alike) and len(masks) == len(names):
        alike = [*masks]
    return [functools.partial(_mask, folder, finder, place.name, *pair) for pair in zip(names, alike, strict=True)]


def _key(name: str) -> str | int:
    """Number that is a file's name, else its stem."""
    stem = Path(name).stem
    return int(stem) if stem.isdecimal() else stem


def _mask(folder: Path, finder: Finder, place: str, picture: str, name: str | None) -> bytes:
    """Implement View.mask. Raises Skip: layer_missing, escapes_folder."""
    path = finder.find(f"{place}/{name}", folder) if name else None
    if path is None:
        raise Skip("layer_missing", f"alpha: {place}/ has no mask of {picture}; without --alpha it is not needed")
    return bundles.read_file(path)


def _matched(names: list[str], matrices: dict[int, np.ndarray], file: str) -> list[np.ndarray]:
    """Matrix of each picture: by order where there are as many, else by the number that is its name."""
    if len(names) == len(matrices):
        return [matrices[number] for number in sorted(matrices)]
    numbers = [key if isinstance(key := _key(name), int) else -1 for name in names]
    if not set(numbers) <= matrices.keys():
        raise Skip("count_mismatch", f"{len(matrices)} matrices in {file} and {len(names)} pictures")
    return [matrices[number] for number in numbers]


def _matrices(path: Path) -> dict[int, np.ndarray]:
    """Read number -> world_mat (3, 4), NaN for one that is none. Raises Skip("bad_cameras")."""
    try:
        with zipfile.ZipFile(io.BytesIO(bundles.read_file(path))) as archive:
            members = {
                int(match[1]): member
                for member in archive.infolist()
                if (match := MATRIX.fullmatch(member.filename.removesuffix(".npy")))
            }
            if not members or len(members) > MOST or max(one.file_size for one in members.values()) > MAX_MATRIX:
                raise Skip("bad_cameras", f"{path.name} holds {len(members)} matrices world_mat_N")
            found = [npy(archive.read(member), member.filename) for member in members.values()]
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError) as error:
        raise Skip("bad_cameras", f"{path.name}: {error}") from None
    return dict(zip(members, matrices_of(found)[:, :3], strict=True))


# ---- writing


def world_mats(w2c: np.ndarray, fxfycxcy: np.ndarray) -> np.ndarray:
    """Convert w2c (V, 4, 4) and fxfycxcy (V, 4), pixel centres at +0.5 -> world_mat (V, 4, 4). See `decomposed`."""
    k = np.tile(np.eye(4), (len(w2c), 1, 1))
    k[:, 0, 0], k[:, 1, 1] = fxfycxcy[:, 0], fxfycxcy[:, 1]
    k[:, 0, 2], k[:, 1, 2] = fxfycxcy[:, 2] - HALF_PIXEL, fxfycxcy[:, 3] - HALF_PIXEL
    return np.asarray(k @ w2c)


def writer(root: Path) -> Writer:
    """Writer of NAME/cameras_sphere.npz, NAME/image and NAME/mask."""
    return Folders(root, _write)


def _write(shots: Shots, folder: Path) -> None:
    if shots.radius is None:
        raise Skip("not_expressible", "NeuS wants the sphere that holds the object, which is not known of captures")
    if shots.alpha is None:
        raise Skip("not_expressible", "NeuS reads a mask for each view, and the run has no alpha (render --alpha)")
    for name in ("image", "mask"):
        (folder / name).mkdir(parents=True)
    for view, (jpeg, png) in enumerate(zip(shots.jpegs, shots.alpha, strict=True)):
        (folder / "image" / f"{view:03d}.png").write_bytes(images.encode_png(images.decode(jpeg)))
        mask = np.repeat(images.decode(png)[..., None], 3, -1)
        (folder / "mask" / f"{view:03d}.png").write_bytes(images.encode_png(mask))
    scale = np.diag([shots.radius] * 3 + [1.0]).astype(np.float32)
    world = world_mats(shots.w2c(), shots.fxfycxcy.astype(np.float64))
    arrays = {f"world_mat_{view}": matrix for view, matrix in enumerate(world)}
    np.savez(folder / FILES[0], **arrays, **{f"scale_mat_{view}": scale for view in range(len(world))})
