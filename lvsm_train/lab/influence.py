"""What each token does for a picture: how much changes when its weight goes to 0."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lvsm_train.lab.subjects import Subject, render
from lvsm_train.model import EncoderDecoder


def without_each(net: EncoderDecoder, subject: Subject, which: Tensor, at_once: int) -> Iterator[Tensor]:
    """For each token of `which` (k,): the picture without it less the whole one, (T, 3, H, W).

    Of `at_once` tokens together. The whole picture is rendered beside each part of them, so that rounding is the same.
    """
    scene = subject.scene
    for some in which.split(at_once):
        scenes = [scene, *(scene.with_weight(token[None], 0.0) for token in some)]
        made = render(net, scenes, subject.c2w, subject.fxfycxcy, subject.hw)
        yield from (made[1:] - made[:1]).unbind(0)


def strengths(net: EncoderDecoder, subject: Subject, which: Tensor | None = None, at_once: int = 16) -> Tensor:
    """(k, T): the root of the mean squared change of each picture, in units of [0, 1], without each token. Default: of all N."""
    every = torch.arange(len(subject.scene), device=subject.scene.tokens.device) if which is None else which
    changes = without_each(net, subject, every, at_once)
    return torch.stack([change.square().mean((1, 2, 3)).sqrt() for change in changes])


def maps(net: EncoderDecoder, subject: Subject, which: Tensor, at_once: int = 16) -> Tensor:
    """(k, T, H, W): by how much each pixel changes without each of these tokens (k,), the mean over its channels."""
    return torch.stack([change.abs().mean(1) for change in without_each(net, subject, which, at_once)])
