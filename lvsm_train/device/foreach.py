"""Operations on lists of tensors by factors that may be tensors, which a recorded step can change and numbers cannot."""

from __future__ import annotations

import torch
from torch import Tensor


def storages(tensors: list[Tensor]) -> list[Tensor]:
    """Flat tensors over all the memory that `tensors` lie in, one for those that share theirs."""
    memory = {each.untyped_storage().data_ptr(): each for each in tensors}
    return [
        torch.empty(0, dtype=each.dtype, device=each.device).set_(each.untyped_storage()) for each in memory.values()
    ]


def add_(tensors: list[Tensor], others: list[Tensor], factor: float | Tensor) -> None:
    """Add `factor` times `others`. factor: a number, or a scalar on the same device."""
    if isinstance(factor, Tensor):
        torch._foreach_add_(tensors, torch._foreach_mul(others, factor))
    else:
        torch._foreach_add_(tensors, others, alpha=factor)


def lerp_(tensors: list[Tensor], towards: list[Tensor], share: float | Tensor) -> None:
    """Move tensors by `share` of the way towards others. share: a number, or a scalar on the same device."""
    if isinstance(share, Tensor):
        add_(tensors, list(torch._foreach_sub(towards, tensors)), share)
    else:
        torch._foreach_lerp_(tensors, towards, share)
