"""NeuS's and IDR's cameras_sphere.npz (arXiv 2106.10689, 2003.09852): for picture i, world_mat_i and scale_mat_i, 4x4 float32.

world_mat = [K [R | t]; 0 0 0 1] of world-to-camera with OpenCV axes; scale_mat maps the unit sphere to the sphere that holds the
object. Their readers shoot rays through whole numbers, so that (0, 0) is the centre of the first pixel: half a pixel from ours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.core import images
from pipeline.core.errors import Skip
from pipeline.poses.shots import Folders, Shots, Writer

HALF_PIXEL = 0.5


def world_mats(w2c: np.ndarray, fxfycxcy: np.ndarray) -> np.ndarray:
    """Convert w2c (V, 4, 4) and fxfycxcy (V, 4), pixel centres at +0.5 -> world_mat (V, 4, 4)."""
    k = np.tile(np.eye(4), (len(w2c), 1, 1))
    k[:, 0, 0], k[:, 1, 1] = fxfycxcy[:, 0], fxfycxcy[:, 1]
    k[:, 0, 2], k[:, 1, 2] = fxfycxcy[:, 2] - HALF_PIXEL, fxfycxcy[:, 3] - HALF_PIXEL
    return np.asarray(k @ w2c)


def writer(root: Path) -> Writer:
    """Writer of NAME/cameras_sphere.npz, NAME/image and NAME/mask."""
    return Folders(root, _write)


def _write(shots: Shots, folder: Path) -> None:
    if shots.alpha is None:
        raise Skip("not_expressible", "NeuS reads a mask for each view, and the run has no alpha (render --alpha)")
    if shots.radius is None:
        raise Skip("not_expressible", "NeuS wants the sphere that holds the object, which is not known of captures")
    for name in ("image", "mask"):
        (folder / name).mkdir(parents=True)
    for view, (jpeg, png) in enumerate(zip(shots.jpegs, shots.alpha, strict=True)):
        (folder / "image" / f"{view:03d}.png").write_bytes(images.encode_png(images.decode(jpeg)))
        mask = np.repeat(images.decode(png)[..., None], 3, -1)
        (folder / "mask" / f"{view:03d}.png").write_bytes(images.encode_png(mask))
    scale = np.diag([shots.radius] * 3 + [1.0]).astype(np.float32)
    world = world_mats(shots.w2c(), shots.fxfycxcy.astype(np.float64)).astype(np.float32)
    arrays = {f"world_mat_{view}": matrix for view, matrix in enumerate(world)}
    np.savez(folder / "cameras_sphere.npz", **arrays, **{f"scale_mat_{view}": scale for view in range(len(world))})
