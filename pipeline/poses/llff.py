"""LLFF's poses_bounds.npy (Mildenhall et al., arXiv 1905.00889): 17 numbers for each picture, in the order of their names.

A 3x5 matrix [R | t | (height, width, focal)], row-major, then near and far along the axis. Columns of R are down, right and
backward; t is the camera's centre. One focal length, square pixels, and the centre in the middle.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.poses.shots import Folders, Shots, Writer, write_pictures


def to_llff(c2w: np.ndarray) -> np.ndarray:
    """Convert c2w (V, 4, 4) with OpenCV axes -> (V, 3, 4) with LLFF's: down, right, backward."""
    return np.concatenate([c2w[:, :3, 1:2], c2w[:, :3, 0:1], -c2w[:, :3, 2:3], c2w[:, :3, 3:4]], -1)


def writer(root: Path) -> Writer:
    """Writer of NAME/poses_bounds.npy and NAME/images."""
    return Folders(root, _write, "LLFF's readers centre and scale poses anew unless they are told not to")


def _write(shots: Shots, folder: Path) -> None:
    k = shots.one_camera("LLFF")
    near, far = shots.near_far()
    write_pictures(shots, folder / "images")
    hwf = np.tile(np.array([*shots.hw, k[0]])[None, :, None], (len(shots), 1, 1))
    rows = np.concatenate([to_llff(shots.c2w.astype(np.float64)), hwf], -1).reshape(len(shots), 15)
    np.save(folder / "poses_bounds.npy", np.concatenate([rows, near[:, None], far[:, None]], 1))
