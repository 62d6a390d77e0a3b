"""What must spoil a model that uses what it is given, and what must not change it. Functions from batch to batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from lvsm_train.data.batches import Batch
from pipeline.core import cameras

TURN, SHIFT = (0.5, -0.3, 0.6, 0.4), (0.3, -0.5, 0.2)  # a quaternion; a translation in units of the world


def with_inputs_of(batch: Batch, other: Batch) -> Batch:
    """Targets and their cameras as they are, pictures and cameras of the inputs from other objects: a wrong scene, whole in
    itself."""
    return dataclasses.replace(batch, image=other.image, c2w=other.c2w, fxfycxcy=other.fxfycxcy)


def shuffled_cameras(batch: Batch) -> Batch:
    """Each target is asked for from the camera of another target of its object; pictures stay. Half a turn, since neighbours
    in a clip look alike. Raises ValueError where there is one target alone."""
    count = batch.target_image.shape[1]
    if count < 2:
        raise ValueError("one target has no other to take a camera from")
    return dataclasses.replace(
        batch,
        target_c2w=batch.target_c2w.roll(count // 2, 1),
        target_fxfycxcy=batch.target_fxfycxcy.roll(count // 2, 1),
    )


def moved_world(batch: Batch) -> Batch:
    """All cameras in a world that is turned by TURN and moved by SHIFT: the same pictures. What PRoPE sees stays as it is."""
    frame = torch.eye(4, dtype=torch.float64)
    frame[:3, :3] = torch.from_numpy(cameras.rotation_of(np.array(TURN)))
    frame[:3, 3] = torch.tensor(SHIFT, dtype=torch.float64)
    frame = frame.to(batch.c2w.device)
    return dataclasses.replace(
        batch,
        c2w=(frame @ batch.c2w.double()).float(),
        target_c2w=(frame @ batch.target_c2w.double()).float(),
    )
