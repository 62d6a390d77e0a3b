"""Controls, as functions from batch to batch: two must worsen a model that uses its inputs and cameras, one is neutral."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from lvsm_train.data.batches import Batch
from pipeline.core import cameras

TURN, SHIFT = (0.5, -0.3, 0.6, 0.4), (0.3, -0.5, 0.2)  # a quaternion; a translation in units of the world


def with_inputs_of(batch: Batch, other: Batch) -> Batch:
    """Replace the input pictures and cameras of `batch` by those of `other`, whose scenes are wrong but consistent; keep the
    targets and their cameras."""
    return dataclasses.replace(batch, image=other.image, c2w=other.c2w, fxfycxcy=other.fxfycxcy)


def shuffled_cameras(batch: Batch) -> Batch:
    """Give each target picture the camera of another target of its object. Cameras are rolled by half the targets, since
    neighbours in a clip look alike. Raises ValueError for fewer than two targets."""
    count = batch.target_image.shape[1]
    if count < 2:
        raise ValueError("one target has no other to take a camera from")
    return dataclasses.replace(
        batch,
        target_c2w=batch.target_c2w.roll(count // 2, 1),
        target_fxfycxcy=batch.target_fxfycxcy.roll(count // 2, 1),
    )


def moved_world(batch: Batch) -> Batch:
    """Turn the world with all cameras by TURN and move it by SHIFT. Pictures and relative poses (PRoPE) do not change."""
    frame = torch.eye(4, dtype=torch.float64)
    frame[:3, :3] = torch.from_numpy(cameras.rotation_of(np.array(TURN)))
    frame[:3, 3] = torch.tensor(SHIFT, dtype=torch.float64)
    frame = frame.to(batch.c2w.device)
    return dataclasses.replace(
        batch,
        c2w=(frame @ batch.c2w.double()).float(),
        target_c2w=(frame @ batch.target_c2w.double()).float(),
    )
