"""Memory of saved activations: measure what each block keeps for the backward pass, choose how many blocks to recompute."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lvsm_train.device.sharding import local, sharded_modules
from lvsm_train.models.lvsm import LVSM

SHARE = 0.9  # of the free memory, since the allocator cannot use all of it
GRADIENT_BYTES, MOMENTS_BYTES = 4, 8  # per weight, which a first step allocates: gradient and AdamW's two moments


class Saved(NamedTuple):
    """Bytes kept from forward to backward, without weights. blocks: what recomputing each block would save, in the order of
    `LVSM.every_block`. rest: everything else, including the inputs of blocks."""

    blocks: list[int]
    rest: int


def weight_storages(module: torch.nn.Module) -> set[int]:
    """Storage addresses of a module's parameters."""
    return {local(parameter).untyped_storage().data_ptr() for parameter in module.parameters()}


def measure_saved(net: LVSM, forward: Callable[[], Any]) -> Saved:
    """Run `forward`, which calls net once, without recomputation, and sum the tensors that its autograd graph saves.

    Recomputation is set as before afterwards. Blocks must not be compiled yet; compiled blocks keep less.
    """
    place = {id(block): i for i, block in enumerate(net.every_block())}
    sizes = [0] * len(place)
    rest = 0
    current: list[int] = []
    seen = weight_storages(net)
    gathered: list[set[int]] = []  # full weights while FSDP has them; their addresses may be reused afterwards

    def count(tensor: Tensor) -> int:
        """Bytes of a storage that is new. Counted storages stay alive until the end, so that no address recurs."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen:
            return 0
        seen.add(storage.data_ptr())
        return storage.nbytes()

    def pack(tensor: Tensor) -> Tensor:
        nonlocal rest
        if current:
            sizes[current[-1]] += count(tensor)
        else:
            rest += count(tensor)
        return tensor

    def enter(block: torch.nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal rest
        rest += sum(count(one) for one in tree_leaves(args) if isinstance(one, Tensor))
        current.append(place[id(block)])

    def leave(block: torch.nn.Module, args: tuple[Any, ...], made: Tensor) -> None:
        current.pop()

    def gather(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        gathered.append(weight_storages(module) - seen)
        seen.update(gathered[-1])

    def release(module: torch.nn.Module, args: tuple[Any, ...], made: Any) -> None:
        seen.difference_update(gathered.pop())

    before = [block.recompute for block in net.every_block()]
    net.set_recompute(0)
    hooks = [block.register_forward_pre_hook(enter) for block in net.every_block()]
    hooks += [block.register_forward_hook(leave) for block in net.every_block()]
    for module in sharded_modules(net):
        hooks += [module.register_forward_pre_hook(gather), module.register_forward_hook(release)]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            held = forward()
        del held
    finally:
        for hook in hooks:
            hook.remove()
        for block, was in zip(net.every_block(), before, strict=True):
            block.recompute = was
    return Saved(sizes, rest)


def estimate_saved(net: LVSM, forward: Callable[[int], Any], batch: int) -> Saved:
    """Extrapolate `measure_saved` to a batch too large to try, from `forward(1)` and `forward(2)` samples.

    Activations grow with the batch; weights that autocast keeps in another precision do not.
    """
    one, two = measure_saved(net, lambda: forward(1)), measure_saved(net, lambda: forward(2))

    def line(first: int, second: int) -> int:
        return first + (second - first) * (batch - 1)

    return Saved([line(*pair) for pair in zip(one.blocks, two.blocks, strict=True)], line(one.rest, two.rest))


def correct_for_compiled(saved: Saved, net: LVSM, forward: Callable[[int], Any], batch: int) -> Saved:
    """Correct the estimate `saved`, made before blocks were compiled: compiled ones keep less, which is measured for all of
    them together, for 1 and 2 samples. Not for sharded weights."""
    before = [block.recompute for block in net.every_block()]
    net.set_recompute(0)
    one, two = (_total_saved(net, functools.partial(forward, samples)) for samples in (1, 2))
    for block, was in zip(net.every_block(), before, strict=True):
        block.recompute = was
    share = (one + (two - one) * (batch - 1) - saved.rest) / sum(saved.blocks)
    return Saved([round(size * min(1.0, max(0.0, share))) for size in saved.blocks], saved.rest)


def _total_saved(net: LVSM, forward: Callable[[], Any]) -> int:
    """Bytes that the autograd graph of `forward` saves, without weights."""
    own, sizes = weight_storages(net), {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = forward()  # noqa: F841  (keeps what is counted, so that no address recurs)
    return sum(sizes.values())


def blocks_to_recompute(saved: Saved, budget: float) -> int:
    """Least number of blocks, counted from the first, to recompute so that a step stays within `budget` bytes; all of them
    if even that is too much memory.

    One block more than what is kept exists at a time: recomputed, or as its gradients.
    """
    total = saved.rest + sum(saved.blocks) + max(saved.blocks)
    for count, size in enumerate(saved.blocks):
        if total <= budget:
            return count
        total -= size
    return len(saved.blocks)


def budget(net: LVSM, device: torch.device) -> float | None:
    """Bytes of a GPU available to activations, before the optimiser's first step; None for other devices."""
    if device.type != "cuda":
        return None
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    first_step = sum(
        local(parameter).numel() * (MOMENTS_BYTES + GRADIENT_BYTES * (parameter.grad is None))
        for parameter in net.parameters()
    )
    return SHARE * free - first_step
