"""Loss of what --aux predicts of each target beside its picture: depth, normals and alpha."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lvsm_train.config.parts import AUX, Layer

WEIGHTS: dict[Layer, float] = {"depth": 0.02, "normals": 0.01, "alpha": 0.01}
SURFACE = 0.5  # square of a normal's length: shorter ones are means over an edge, or nothing


def layer_loss(made: dict[Layer, Tensor], target: Tensor) -> tuple[Tensor, dict[Layer, Tensor]]:
    """Loss of what the heads make of targets: the weighted sum to minimise; its terms by name, unweighted and detached.

    made: (B, T, channels, H, W) by name. target: all these channels in the same order (B, T, C, H, W), as `data.layers` says.
    Each term is a mean over images of means over pixels where something is, so that it does not matter how a step is divided.
    """
    parts = target.float().flatten(0, 1).split([AUX[name] for name in made], 1)
    terms = {
        name: TERMS[name](of.float().flatten(0, 1), part) for (name, of), part in zip(made.items(), parts, strict=True)
    }
    total = torch.stack([WEIGHTS[name] * term for name, term in terms.items()]).sum()
    return total, {name: term.detach() for name, term in terms.items()}


def _depth(made: Tensor, log: Tensor) -> Tensor:
    """Mean absolute difference of logarithms of depth (N, 1, H, W), up to a constant in each image: a unit, or a factor."""
    there = torch.isfinite(log)
    off = made - torch.where(there, log, 0)
    return _mean((off - _mean(off, there)).abs(), there).mean()


def _normals(made: Tensor, normal: Tensor) -> Tensor:
    """Mean of 1 - cosine of the angle between normals (N, 3, H, W) of any length."""
    there = normal.square().sum(1, keepdim=True) > SURFACE
    return _mean(1 - functional.cosine_similarity(made, normal, 1)[:, None], there).mean()


def _alpha(made: Tensor, alpha: Tensor) -> Tensor:
    """Mean cross entropy of logits with shares in [0, 1], (N, 1, H, W) each."""
    return functional.binary_cross_entropy_with_logits(made, alpha)


TERMS = {"depth": _depth, "normals": _normals, "alpha": _alpha}


def _mean(values: Tensor, there: Tensor) -> Tensor:
    """Mean over the pixels of each image that are `there`, 0 without any: (N, 1, 1, 1)."""
    return torch.where(there, values, 0).sum((1, 2, 3), True) / there.sum((1, 2, 3), True).clamp(min=1)
