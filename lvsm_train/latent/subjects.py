"""Objects of the laboratory: latent scenes, and cameras to render them from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lvsm_train.config.shapes import HW
from lvsm_train.data import view_sampling
from lvsm_train.data.batches import Batch, Data
from lvsm_train.data.samples import Sample
from lvsm_train.latent import latents
from lvsm_train.latent.latents import LatentScene
from lvsm_train.models.lvsm import EncoderDecoder


@dataclass(frozen=True)
class Subject:
    """An object. scene: encoded from `inputs` (V, 3, H, W). c2w (T, 4, 4), fxfycxcy (T, 4), time (T,): cameras and times of
    `target` (T, 3, H, W). Pictures are float32 in [0, 1]."""

    uid: str
    scene: LatentScene
    inputs: Tensor
    target: Tensor
    c2w: Tensor
    fxfycxcy: Tensor
    time: Tensor

    @property
    def hw(self) -> HW:
        """(height, width) of the pictures."""
        return self.target.shape[-2], self.target.shape[-1]

    def render(self, net: EncoderDecoder, scene: LatentScene | None = None) -> Tensor:
        """Render a scene, by default the subject's, from the subject's cameras: (T, 3, H, W) in [0, 1].

        One scene per batch, so that equal scenes give equal bits.
        """
        return render(net, [scene or self.scene], self.c2w, self.fxfycxcy, self.hw, self.time)[0]


def render(
    net: EncoderDecoder,
    scenes: Sequence[LatentScene],
    c2w: Tensor,
    fxfycxcy: Tensor,
    hw: HW,
    time: Tensor | None = None,
) -> Tensor:
    """Render S scenes in one batch, each from cameras (T, 4, 4), (T, 4) at times (T,), by default 0: (S, T, 3, H, W) in [0, 1],
    float32."""
    tokens, weight = latents.collate(scenes)
    count = len(scenes)
    with torch.no_grad():
        cameras = c2w.expand(count, -1, -1, -1), fxfycxcy.expand(count, -1, -1)
        made = net.decode(tokens, *cameras, hw, weight, time=None if time is None else time.expand(count, -1))
    return made.float().clamp(0, 1)


def gather(net: EncoderDecoder, data: Data, samples: Sequence[Sample]) -> list[Subject]:
    """Load and encode samples, one by one, on the data's device."""
    return [_subject(net, data.gather([sample])) for sample in samples]


def _subject(net: EncoderDecoder, batch: Batch) -> Subject:
    with torch.no_grad():
        scene = latents.scenes_of(net.encode(batch.rgb, batch.c2w, batch.fxfycxcy, time=batch.time))[0]
    cameras = batch.target_c2w[0], batch.target_fxfycxcy[0], batch.target_time[0]
    return Subject(batch.uids[0], scene, batch.rgb[0], batch.target_rgb[0], *cameras)


# ---- one frame for several scenes


def align_first_cameras(data: Data, samples: Sequence[Sample]) -> list[Sample]:
    """Choose new inputs for all samples but the first: the first camera is nearest to the first sample's in elevation and
    distance (`pose_difference`), at any azimuth; further inputs are farthest points from the first.

    For models with prope, whose latents live in the frame of the first input camera: tokens of two scenes are comparable if
    both cameras see their objects from equal elevation and distance.
    """
    c2w = data.index.c2w
    anchor = c2w[data.index.first[samples[0].number] + samples[0].inputs[0]]
    aligned = [samples[0]]
    for sample in samples[1:]:
        poses = c2w[data.index.of(sample.number)]
        first = int(np.argmin([sum(pose_difference(pose, anchor)) for pose in poses]))
        shown = view_sampling.farthest_points(poses[:, :3, 3], len(sample.inputs), first)
        inputs = tuple(shown.tolist())
        free = [view for view in dict.fromkeys((*sample.targets, *range(len(poses)))) if view not in inputs]
        aligned.append(dataclasses.replace(sample, inputs=inputs, targets=tuple(free[: len(sample.targets)])))
    return aligned


def pose_difference(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Difference of two c2w (4, 4) up to azimuth: (radians between the world's z axis, distance between the world's origin), each
    in camera coordinates. Both are 0 if a rotation about z takes one camera to the other."""
    up = np.clip(np.dot(one[2, :3], other[2, :3]), -1, 1)  # the third row of a rotation is z in camera coordinates
    centre = [-pose[:3, :3].T @ pose[:3, 3] for pose in (one, other)]
    return float(np.arccos(up)), float(np.linalg.norm(centre[0] - centre[1]))
