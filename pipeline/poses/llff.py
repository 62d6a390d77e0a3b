"""LLFF: poses_bounds.npy beside images/, a row of 17 numbers per picture in the order of their names.

A row is a 3x5 matrix and two bounds of depth. The matrix is camera-to-world with columns down, right, backwards and the camera's
centre, then height, width and the one focal length; the principal point is the middle.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.core import cameras
from pipeline.core.cameras import PINHOLE, Lens
from pipeline.core.errors import Skip
from pipeline.core.records import LEAST_SHARE
from pipeline.formats import bundles
from pipeline.poses import colmap
from pipeline.poses.capture import Capture, View, finite, fitted, inverted, npy
from pipeline.poses.pictures import SMALLER, Finder, named, pictures_in
from pipeline.poses.shots import Folders, Shots, Writer, write_pictures

SAYS = "poses_bounds.npy of LLFF with its images"
FILE = "poses_bounds.npy"
NUMBERED = re.compile(r"(.*?)(\d+)(\D*\.\w+)")
SAME_CENTRE = 1e-3  # of the cameras' extent
COLUMNS = np.array(
    [[0.0, 1, 0], [1, 0, 0], [0, 0, -1]]
)  # right, down, forward out of down, right, backwards, and the other way round


def is_scene(folder: Path) -> bool:
    """True if the folder holds poses_bounds.npy."""
    return (folder / FILE).is_file()


def read(folder: Path, finder: Finder, only: str = "") -> Capture:
    """Read the capture in a folder. Raises Skip: no_images, count_mismatch, bad_cameras, escapes_folder."""
    rows = npy(bundles.read_file(folder / FILE), FILE)
    poses, hwf = cameras_of(rows)
    places = [named(folder, name).name for name in ("images", *SMALLER)]
    counts = {name: found for name in places if (found := pictures_in(folder / name))}
    if not counts:
        raise Skip("no_images", f"no images/ beside {FILE}")
    place, names, meta = _pictures(folder, rows, counts)
    views = [
        View(f"{place}/{name}", finder.find(f"{place}/{name}", folder), pose, functools.partial(camera, own, name))
        for name, pose, own in zip(names, cameras.homogeneous(poses), hwf, strict=True)
    ]
    return Capture(views, meta)


def cameras_of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (V, 17) of poses_bounds.npy -> c2w (V, 3, 4), OpenCV axes, and height, width, focal length (V, 3); NaN for those that
    are none. Raises Skip("bad_cameras")."""
    if rows.ndim != 2 or rows.shape[1] != 17 or not len(rows):
        raise Skip("bad_cameras", f"{FILE} of shape {rows.shape}, (views, 17) is needed")
    matrices = finite(rows[:, :15]).reshape(-1, 3, 5)
    return np.concatenate([matrices[..., :3] @ COLUMNS, matrices[..., 3:4]], -1), matrices[..., 4]


def _pictures(folder: Path, rows: np.ndarray, counts: dict[str, list[str]]) -> tuple[str, list[str], dict[str, str]]:
    """Folder of the pictures, their names in the order of the rows (V, 17), and how these were found if not by that order alone.

    Names of pictures that are not there are among them where it is certain which these are. Raises Skip("count_mismatch").
    """
    for place, found in counts.items():
        if len(found) == len(rows):
            return place, found, {}
    registered = _registered(folder, rows)
    for place, found in counts.items():
        if len(set(registered) & set(found)) >= LEAST_SHARE * len(rows):
            return place, registered, {"pictures_matched": "by the names in the COLMAP model beside"}
    for place, found in counts.items():
        if alike := _as_beside(folder, found, len(rows)):
            return place, alike, {"pictures_matched": "by the names in a folder beside"}
        if numbered := _numbered(found, len(rows)):
            return place, numbered, {"pictures_matched": "by the numbers in their names"}
    most = max(map(len, counts.values()))
    said = f"{len(rows)} poses and {most} pictures; {FILE} has no names, and neither numbers in names, a COLMAP model"
    raise Skip(
        "count_mismatch",
        f"{said} nor a folder beside says which are which: put back, or take away, the pictures that differ",
    )


def _registered(folder: Path, rows: np.ndarray) -> list[str]:
    """Names in the COLMAP model beside, if it is that which the rows (V, 17) were made of: as many, with the same centres."""
    for model in (folder / "sparse" / "0", folder / "sparse"):
        try:
            images = colmap.read_model(model)[1] if colmap.is_model(model) else []
        except Skip:
            continue
        if len(images) == len(rows):
            w2c = [np.c_[cameras.rotation_of(image.quaternion), image.translation] for image in images]
            off = np.abs(inverted(np.stack(w2c))[:, :3, 3] - rows[:, [3, 8, 13]]).max()
            if off < SAME_CENTRE * max(1e-9, np.ptp(rows[:, [3, 8, 13]], 0).max()):
                return [image.name for image in images]
    return []


def _as_beside(folder: Path, found: Sequence[str], count: int) -> list[str]:
    """Names as those of the pictures in a folder beside (masks, depth) that has one for each pose, and all that are found."""
    named = {Path(name).stem: name for name in found}
    for child in sorted(folder.iterdir()):
        others = pictures_in(child)
        if len(others) == count and named.keys() <= {Path(name).stem for name in others}:
            return [named.get(Path(name).stem, name) for name in others]
    return []


def _numbered(found: Sequence[str], count: int) -> list[str]:
    """Names of so many pictures, more than those that are found, if only one even row of numbers holds the found ones; else none.

    Of 0.png, 1.png, 3.png, 4.png and 5 poses, 2.png is missing; of 0.png, 2.png, 4.png it may be 1.png and 3.png, or 6.png and
    8.png; of 1.png to 4.png, 0.png or 5.png.
    """
    parts = [NUMBERED.fullmatch(name) for name in found]
    if len(found) >= count or len({(part[1], part[3]) if part else None for part in parts}) > 1 or not parts[0]:
        return []
    (before, digits, after), numbers = parts[0].groups(), sorted(int(part[2]) for part in parts if part)
    common = math.gcd(*(number - numbers[0] for number in numbers))
    rows = []
    for step in (step for step in range(1, common + 1) if common % step == 0):
        length = (numbers[-1] - numbers[0]) // step + 1
        if length == count or (length < count and numbers[0] < step):
            rows.append([f"{before}{numbers[0] + step * k:0{len(digits)}d}{after}" for k in range(count)])
        elif length < count:
            return []  # the row may begin earlier
    return rows[0] if len(rows) == 1 else []


def camera(hwf: np.ndarray, name: str, hw: tuple[int, int]) -> tuple[np.ndarray, Lens]:
    """Intrinsics (4,) of a row's height, width and focal length for its picture of size hw. Raises Skip("bad_cameras")."""
    height, width, focal = hwf.tolist()
    if not min(height, width) >= 1:
        raise Skip("bad_cameras", f"pictures of {width:g}x{height:g} pixels")
    return fitted(np.array([focal, focal, width / 2, height / 2]), (height, width), hw, name), PINHOLE


# ---- writing


def writer(root: Path) -> Writer:
    """Writer of NAME/poses_bounds.npy and NAME/images."""
    return Folders(root, _write, "LLFF's readers centre and scale poses anew unless they are told not to")


def _write(shots: Shots, folder: Path) -> None:
    k = shots.one_camera("LLFF")
    near, far = shots.near_far()
    write_pictures(shots, folder / "images")
    c2w = shots.c2w.astype(np.float64)
    hwf = np.tile(np.array([*shots.hw, k[0]])[None, :, None], (len(shots), 1, 1))
    rows = np.concatenate([c2w[:, :3, :3] @ COLUMNS, c2w[:, :3, 3:4], hwf], -1).reshape(len(shots), 15)
    np.save(folder / FILE, np.concatenate([rows, near[:, None], far[:, None]], 1))
