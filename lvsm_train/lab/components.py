"""Principal components: the directions in which points spread most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Components:
    """mean (D,), axes (K, D): orthonormal, the widest first. spread: (K,) standard deviations along these. share: (K,) of the
    whole variance."""

    mean: Tensor
    axes: Tensor
    spread: Tensor
    share: Tensor

    def coordinates(self, points: Tensor) -> Tensor:
        """Points (..., D) -> (..., K), along the axes."""
        return (points - self.mean) @ self.axes.mT

    def points(self, coordinates: Tensor) -> Tensor:
        """(..., k) along the first k axes -> (..., D): the inverse of `coordinates`, as far as these axes reach."""
        return self.mean + coordinates @ self.axes[: coordinates.shape[-1]]

    def needed(self, share: float) -> int:
        """How many axes hold that share of the variance."""
        return int((self.share.cumsum(0) < share - 1e-6).sum()) + 1


def principal(points: Tensor) -> Components:
    """Of points (S, D), S > 1: as many axes as they span, at most S - 1. Each points to where its largest number is positive.

    Raises ValueError where all points are the same.
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
