"""Muon (Jordan et al. 2024): momentum whose matrices are orthogonalised before they are added to the weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lvsm_train.device.devices import has_bfloat16
from lvsm_train.device.foreach import add_, lerp_
from lvsm_train.device.sharding import full, local, shard_like

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic; Jordan's, as in torch.optim.Muon
ITERATIONS = 5
AT_ONCE = 1 << 26  # entries that are orthogonalised together: 128 MiB in bfloat16, and as much again twice for products


class Muon(torch.optim.Optimizer):
    """Muon for matrices, replicated or sharded. One learning rate serves it and AdamW (`match_rms_adamw`, arXiv 2502.16982).

    The same rule and state as torch.optim.Muon; matrices of one shape are orthogonalised as one batch, which takes 20 kernels
    in place of 20 for each matrix. matrices: each of shape [rows, columns]. Raises ValueError for other shapes.

    found_inf: None, or a scalar on the device that is 1.0 where the next step is to change nothing, as torch's fused optimisers
    have it; the learning rate may then be a scalar on the device too.
    """

    found_inf: Tensor | None = None

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for weight in itertools.chain.from_iterable(group["params"] for group in self.param_groups):
            if weight.ndim != 2:
                raise ValueError(f"Muon takes matrices, not a weight of shape {tuple(weight.shape)}")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all weights that have a gradient. Collective for sharded weights: all ranks must call."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients = [local(weight.grad) for weight in weights if weight.grad is not None]
            for weight in weights:
                if "momentum_buffer" not in self.state[weight]:
                    self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
            momenta = [local(self.state[weight]["momentum_buffer"]) for weight in weights]
            # a skipped step leaves momenta and weights: its share and its rate are 0
            keep = 1.0 if self.found_inf is None else 1 - self.found_inf
            rate = group["lr"] * keep
            lerp_(momenta, gradients, (1 - group["momentum"]) * keep)
            torch._foreach_lerp_(
                gradients, momenta, group["momentum"]
            )  # Nesterov's look ahead; gradients are not used again
            torch._foreach_mul_([local(weight) for weight in weights], 1 - rate * group["weight_decay"])
            for batch in batches(weights):
                directions = orthogonalized(
                    torch.stack([full(weight.grad) for weight in batch if weight.grad is not None])
                )
                shards = [local(shard_like(way, weight)) for way, weight in zip(directions, batch, strict=True)]
                add_([local(weight) for weight in batch], shards, -(rate * 0.2 * math.sqrt(max(batch[0].shape))))


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices [n, rows, columns] with singular values brought near 1 (0.7 to 1.2), same shape, float32.

    Newton-Schulz iterations (kellerjordan.github.io/posts/muon) in bfloat16 on GPUs that count in it, else in float32: CPUs
    without bfloat16 instructions need 40 times as long for its products.
    """
    x = matrices.to(torch.bfloat16 if has_bfloat16(matrices.device) else torch.float32)
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if is_tall else x).float()


def batches(weights: list[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    """Weights of equal shape together, at most AT_ONCE entries of them, in an order that all ranks share."""
    by_shape = sorted(weights, key=lambda weight: tuple(weight.shape))
    for shape, group in itertools.groupby(by_shape, key=lambda weight: tuple(weight.shape)):
        alike, size = list(group), max(1, AT_ONCE // math.prod(shape))
        yield from (alike[i : i + size] for i in range(0, len(alike), size))
