"""What a laboratory of latents looks at: objects as scenes of tokens, and the cameras that they are rendered from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lvsm_train.data import view_sampling
from lvsm_train.data.batches import Batch, Data
from lvsm_train.data.samples import Sample
from lvsm_train.latent import latents
from lvsm_train.latent.latents import LatentScene
from lvsm_train.models.lvsm import HW, EncoderDecoder


@dataclass(frozen=True)
class Subject:
    """An object. scene: as encoded from its inputs (V, 3, H, W). c2w (T, 4, 4), fxfycxcy (T, 4): cameras of its targets
    (T, 3, H, W). Pictures are float32 in [0, 1]."""

    uid: str
    scene: LatentScene
    inputs: Tensor
    target: Tensor
    c2w: Tensor
    fxfycxcy: Tensor

    @property
    def hw(self) -> HW:
        """(height, width) of its pictures."""
        return self.target.shape[-2], self.target.shape[-1]

    def render(self, net: EncoderDecoder, scene: LatentScene | None = None) -> Tensor:
        """A scene, by default its own, from its cameras: (T, 3, H, W) in [0, 1].

        One scene at a time, so that equal scenes give equal bits.
        """
        return render(net, [scene or self.scene], self.c2w, self.fxfycxcy, self.hw)[0]

    def from_cameras(self, c2w: Tensor, fxfycxcy: Tensor) -> Subject:
        """The same, to be rendered from other cameras (T, 4, 4), (T, 4). Its targets are the old ones."""
        return dataclasses.replace(self, c2w=c2w.to(self.c2w), fxfycxcy=fxfycxcy.to(self.fxfycxcy))


def render(net: EncoderDecoder, scenes: Sequence[LatentScene], c2w: Tensor, fxfycxcy: Tensor, hw: HW) -> Tensor:
    """S scenes together, all from the same cameras (T, 4, 4), (T, 4): (S, T, 3, H, W) in [0, 1], float32."""
    tokens, weight = latents.joined(scenes)
    count = len(scenes)
    with torch.no_grad():
        made = net.decode(tokens, c2w.expand(count, -1, -1, -1), fxfycxcy.expand(count, -1, -1), hw, weight)
    return made.float().clamp(0, 1)


def gather(net: EncoderDecoder, data: Data, samples: Sequence[Sample]) -> list[Subject]:
    """Samples to subjects, one by one: encoded, and on the data's device."""
    return [_subject(net, data.gather([sample])) for sample in samples]


def _subject(net: EncoderDecoder, batch: Batch) -> Subject:
    with torch.no_grad():
        scene = latents.scenes_of(net.encode(batch.rgb, batch.c2w, batch.fxfycxcy))[0]
    return Subject(
        batch.uids[0], scene, batch.rgb[0], batch.target_rgb[0], batch.target_c2w[0], batch.target_fxfycxcy[0]
    )


# ---- one frame for several scenes


def stand_alike(data: Data, samples: Sequence[Sample]) -> list[Sample]:
    """Samples of objects with the inputs of all but the first chosen anew: their first camera stands to the object as nearly as
    possible as the first sample's does, whatever its azimuth.

    For models with prope, whose latents say what the first input's camera sees: tokens of two scenes mean the same when these two
    cameras see their objects from the same height and distance. The other inputs are farthest points from it.
    """
    c2w = data.index.c2w
    anchor = c2w[data.index.first[samples[0].number] + samples[0].inputs[0]]
    made = [samples[0]]
    for sample in samples[1:]:
        poses = c2w[data.index.of(sample.number)]
        first = int(np.argmin([sum(standing_apart(pose, anchor)) for pose in poses]))
        shown = view_sampling.farthest_points(poses[:, :3, 3], len(sample.inputs), first)
        asked = [
            view for view in dict.fromkeys((*sample.targets, *range(len(poses)))) if view not in set(shown.tolist())
        ]
        targets = tuple(asked[: len(sample.targets)])
        made.append(dataclasses.replace(sample, inputs=tuple(shown.tolist()), targets=targets))
    return made


def standing_apart(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Two cameras (4, 4) -> the angle in radians between the world's up axis as each sees it, and how far apart each sees the
    origin. Both are 0 where a turn about z takes one camera to the other."""
    up = np.clip(np.dot(one[2, :3], other[2, :3]), -1, 1)  # the third row of a rotation is z as the camera sees it
    centre = [-pose[:3, :3].T @ pose[:3, 3] for pose in (one, other)]
    return float(np.arccos(up)), float(np.linalg.norm(centre[0] - centre[1]))
