"""Camera paths through a scene, and the frames that a model renders along them."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch

from lvsm_train.data.batches import Batch
from lvsm_train.evaluation.scores import pixels
from lvsm_train.models.lvsm import LVSM, image_size
from pipeline.core import cameras

ELEVATION_DEG = 20.0  # of the cameras of an orbit
AT_ONCE = 8  # views decoded in one call


def orbit(c2w: np.ndarray, fxfycxcy: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spaced cameras on one circle around the origin: c2w (count, 4, 4), fxfycxcy (count, 4) float32.

    c2w (V, 4, 4), fxfycxcy (V, 4): of the inputs. The distance is the mean of the inputs' distances; the first azimuth and the
    intrinsics of all cameras are those of the first input.
    """
    centre = c2w[:, :3, 3].astype(np.float64)
    azimuth = float(np.degrees(np.arctan2(centre[0, 1], centre[0, 0])))
    path = cameras.circle(count, ELEVATION_DEG, float(np.linalg.norm(centre, axis=-1).mean()), azimuth)
    return path.astype(np.float32), np.repeat(fxfycxcy[:1], count, 0).astype(np.float32)


def between(c2w: np.ndarray, fxfycxcy: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cameras from the first input's to the last one's through all others: c2w (count, 4, 4), fxfycxcy (count, 4) float32.

    c2w (V, 4, 4), fxfycxcy (V, 4): of the inputs, in their order along the path. count is 2 at least. Each stretch between two
    inputs takes equally long; centres and intrinsics go straight, rotations along the shortest arc (Shoemake 1985).
    """
    along = np.linspace(0, len(c2w) - 1, count)
    first = np.minimum(along.astype(int), max(len(c2w) - 2, 0))
    last = np.minimum(first + 1, len(c2w) - 1)
    share = (along - first)[:, None]
    c2w, fxfycxcy = c2w.astype(np.float64), fxfycxcy.astype(np.float64)
    path = np.tile(np.eye(4), (count, 1, 1))
    path[:, :3, 3] = (1 - share) * c2w[first, :3, 3] + share * c2w[last, :3, 3]
    for place, (a, b) in enumerate(zip(c2w[first, :3, :3], c2w[last, :3, :3], strict=True)):
        arc = cv2.Rodrigues(a.T @ b)[0]
        path[place, :3, :3] = a @ cv2.Rodrigues(share[place] * arc)[0]
    k = (1 - share) * fxfycxcy[first] + share * fxfycxcy[last]
    return path.astype(np.float32), k.astype(np.float32)


def render_frames(
    net: LVSM, batch: Batch, c2w: np.ndarray, fxfycxcy: np.ndarray, time: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Render the object of a batch of one from the cameras c2w (F, 4, 4), fxfycxcy (F, 4), at times (F,), by default 0; yields F
    frames (H, W, 3) uint8.

    Inputs are encoded once. The caller sets autocast and no_grad.
    """
    scene = net.encode(batch.rgb, batch.c2w, batch.fxfycxcy, time=batch.time)
    time = np.zeros(len(c2w), np.float32) if time is None else time
    for start in range(0, len(c2w), AT_ONCE):
        some, k, when = (
            torch.from_numpy(given[start : start + AT_ONCE]).to(batch.c2w.device)[None]
            for given in (c2w, fxfycxcy, time)
        )
        for image in net.decode(scene, some, k, image_size(batch.image), time=when)[0].float().clamp(0, 1):
            yield pixels(image)
