"""What a forward pass keeps for the backward pass, and how many blocks have to be recomputed for it to fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lvsm_train.device.sharding import cut_modules, local
from lvsm_train.models.lvsm import LVSM

SHARE = 0.9  # of the free memory, since the allocator cannot use all of it
UNMADE = 12  # bytes per weight that a first step adds: its gradient and AdamW's two moments


class Kept(NamedTuple):
    """Bytes that are kept from forward to backward, weights not counted. blocks: of each block, in the order of
    `LVSM.every_block`, what recomputing it would spare. rest: everything else, inputs of blocks among it."""

    blocks: list[int]
    rest: int


def own(module: torch.nn.Module) -> set[int]:
    """Where its weights lie."""
    return {local(parameter).untyped_storage().data_ptr() for parameter in module.parameters()}


def kept(net: LVSM, forward: Callable[[], Any]) -> Kept:
    """Runs forward, which calls net once, with nothing recomputed, and sums what its autograd graph holds on to.

    Recomputation that was set is set again afterwards. Blocks must not be compiled yet; once they are, they keep less.
    """
    place = {id(block): i for i, block in enumerate(net.every_block())}
    sizes = [0] * len(place)
    rest = 0
    current: list[int] = []
    seen = own(net)
    lent: list[
        set[int]
    ] = []  # weights that are cut, and whole while they are used: later others may lie where they lay

    def count(tensor: Tensor) -> int:
        """Bytes of a storage that was not met before. What is met stays alive until the end, so that no address recurs."""
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

    def lend(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        lent.append(own(module) - seen)
        seen.update(lent[-1])

    def take_back(module: torch.nn.Module, args: tuple[Any, ...], made: Any) -> None:
        seen.difference_update(lent.pop())

    before = [block.recompute for block in net.every_block()]
    net.set_recompute(0)
    hooks = [block.register_forward_pre_hook(enter) for block in net.every_block()]
    hooks += [block.register_forward_hook(leave) for block in net.every_block()]
    for module in cut_modules(net):
        hooks += [module.register_forward_pre_hook(lend), module.register_forward_hook(take_back)]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            held = forward()
        del held
    finally:
        for hook in hooks:
            hook.remove()
        for block, was in zip(net.every_block(), before, strict=True):
            block.recompute = was
    return Kept(sizes, rest)


def kept_by(net: LVSM, forward: Callable[[int], Any], batch: int) -> Kept:
    """`kept` for a batch that is too large to try: from batches of 1 and 2 samples, whose number is given to forward.

    Activations grow with the batch; weights that autocast keeps in another precision do not.
    """
    one, two = kept(net, lambda: forward(1)), kept(net, lambda: forward(2))

    def line(first: int, second: int) -> int:
        return first + (second - first) * (batch - 1)

    return Kept([line(*pair) for pair in zip(one.blocks, two.blocks, strict=True)], line(one.rest, two.rest))


def blocks_to_recompute(found: Kept, budget: float) -> int:
    """The least number of blocks, counted from the first, that have to be recomputed for a step to stay within so many bytes;
    all of them where even that is too little. 0 where everything fits.

    One block more than what is kept is there at a time: recomputed, or as its gradients.
    """
    total = found.rest + sum(found.blocks) + max(found.blocks)
    for count, size in enumerate(found.blocks):
        if total <= budget:
            return count
        total -= size
    return len(found.blocks)


def budget(net: LVSM, device: torch.device) -> float | None:
    """Bytes of a GPU that activations may take, before the first step of an optimiser; None for other devices."""
    if device.type != "cuda":
        return None
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return SHARE * free - UNMADE * sum(local(parameter).numel() for parameter in net.parameters())
