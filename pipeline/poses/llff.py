"""LLFF: poses_bounds.npy beside images/, a row of 17 numbers per picture in the order of their names.

A row is a 3x5 matrix and two bounds of depth. The matrix is camera-to-world with columns down, right, backwards and the camera's
centre, then height, width and the one focal length; the principal point is the middle.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from pipeline.core import cameras
from pipeline.core.cameras import PINHOLE, Lens
from pipeline.core.errors import Skip
from pipeline.formats import bundles
from pipeline.poses.capture import Capture, View, finite, fitted, npy
from pipeline.poses.pictures import SMALLER, Finder, named, pictures_in
from pipeline.poses.shots import Folders, Shots, Writer, write_pictures

SAYS = "poses_bounds.npy of LLFF with its images"
FILE = "poses_bounds.npy"
COLUMNS = np.array(
    [[0.0, 1, 0], [1, 0, 0], [0, 0, -1]]
)  # right, down, forward out of down, right, backwards, and the other way round


def is_scene(folder: Path) -> bool:
    """True if the folder holds poses_bounds.npy."""
    return (folder / FILE).is_file()


def read(folder: Path, finder: Finder, only: str = "") -> Capture:
    """Read the capture in a folder. Raises Skip: no_images, count_mismatch, bad_cameras, escapes_folder."""
    rows = npy(bundles.read_file(folder / FILE), FILE)
    if rows.ndim != 2 or rows.shape[1] != 17 or not len(rows):
        raise Skip("bad_cameras", f"{FILE} of shape {rows.shape}, (views, 17) is needed")
    places = [named(folder, name).name for name in ("images", *SMALLER)]
    counts = {name: pictures_in(folder / name) for name in places}
    if not any(counts.values()):
        raise Skip("no_images", f"no images/ beside {FILE}")
    place = next((name for name, found in counts.items() if len(found) == len(rows)), None)
    if place is None:
        most = max(map(len, counts.values()))
        raise Skip("count_mismatch", f"{len(rows)} poses and {most} pictures; {FILE} says not which are which")
    matrices = finite(rows[:, :15]).reshape(-1, 3, 5)
    poses = np.concatenate([matrices[..., :3] @ COLUMNS, matrices[..., 3:4]], -1)
    views = [
        View(f"{place}/{name}", finder.find(f"{place}/{name}", folder), pose, functools.partial(_camera, hwf, name))
        for name, pose, hwf in zip(counts[place], cameras.homogeneous(poses), matrices[..., 4], strict=True)
    ]
    return Capture(views)


def _camera(hwf: np.ndarray, name: str, hw: tuple[int, int]) -> tuple[np.ndarray, Lens]:
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
