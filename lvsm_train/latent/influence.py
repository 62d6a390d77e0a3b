"""Influence of each token on pictures (how much they change at weight 0), and principal components of tokens and scenes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lvsm_train.latent.subjects import Subject, render
from lvsm_train.models.lvsm import EncoderDecoder

# ---- influence


def without_each(net: EncoderDecoder, subject: Subject, which: Tensor, at_once: int) -> Iterator[Tensor]:
    """For each token of `which` (k,): renders without that token minus renders of the whole scene, (T, 3, H, W).

    Renders `at_once` tokens per batch; the whole scene is part of every batch, so that rounding cancels.
    """
    scene = subject.scene
    for part in which.split(at_once):
        scenes = [scene, *(scene.with_weight(token[None], 0.0) for token in part)]
        made = render(net, scenes, subject.c2w, subject.fxfycxcy, subject.hw, subject.time)
        yield from (made[1:] - made[:1]).unbind(0)


def strengths(net: EncoderDecoder, subject: Subject, which: Tensor | None = None, at_once: int = 16) -> Tensor:
    """(k, T): RMS change of each render, values in [0, 1], without each token of `which` (k,), by default of all N."""
    every = torch.arange(len(subject.scene), device=subject.scene.tokens.device) if which is None else which
    changes = without_each(net, subject, every, at_once)
    return torch.stack([change.square().mean((1, 2, 3)).sqrt() for change in changes])


def maps(net: EncoderDecoder, subject: Subject, which: Tensor, at_once: int = 16) -> Tensor:
    """(k, T, H, W): absolute change of each pixel, mean over channels, without each token of `which` (k,)."""
    return torch.stack([change.abs().mean(1) for change in without_each(net, subject, which, at_once)])


# ---- principal components


@dataclass(frozen=True)
class Components:
    """Principal components. mean (D,); axes (K, D), orthonormal, in descending order of variance; spread (K,), standard
    deviations along the axes; share (K,), of the total variance."""

    mean: Tensor
    axes: Tensor
    spread: Tensor
    share: Tensor

    def coordinates(self, points: Tensor) -> Tensor:
        """Points (..., D) -> coordinates (..., K) along the axes."""
        return (points - self.mean) @ self.axes.mT

    def points(self, coordinates: Tensor) -> Tensor:
        """Coordinates (..., k) along the first k axes -> points (..., D): inverse of `coordinates` on these axes' span."""
        return self.mean + coordinates @ self.axes[: coordinates.shape[-1]]

    def needed(self, share: float) -> int:
        """Number of axes that hold a share of the variance."""
        return int((self.share.cumsum(0) < share - 1e-6).sum()) + 1


def principal(points: Tensor) -> Components:
    """Principal components of points (S, D), S > 1: as many axes as the points span, at most S - 1, each with its largest
    entry positive. Raises ValueError if all points are equal.
    """
    mean = points.mean(0)
    _, values, axes = torch.linalg.svd(points - mean, full_matrices=False)
    spans = values > 1e-5 * values[0]
    if len(points) < 2 or not float(values[0]) > 0:
        raise ValueError(f"{len(points)} points that are all the same have no components")
    values, axes = values[spans][: len(points) - 1], axes[spans][: len(points) - 1]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    variance = values.square()
    return Components(mean, axes * largest.sign(), values / (len(points) - 1) ** 0.5, variance / variance.sum())
