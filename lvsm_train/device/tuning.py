"""What suits the device: kernels of attention by measurement, compiled blocks, and which of the ways to launch a step."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from lvsm_train.device.flops import Attention
from lvsm_train.models import blocks
from lvsm_train.models.lvsm import LVSM

Compile = Literal["no", "blocks", "graphs"]

GPU_KERNELS = ("auto", "cudnn", "flash", "efficient")  # without "math", which keeps queries x keys numbers
WARM_UP, REPEATS = 3, 10
VARIANTS = 64  # of a block that torch may compile: with a gradient or not, with a scene or not, shapes
LAUNCH_BOUND_FLOPS = (
    1e13  # steps below take a GPU less time than Python needs to launch them; an estimate, not measured
)


def choose_attention(
    asked: Sequence[Attention], device: torch.device, dtype: torch.dtype, candidates: Sequence[str] | None = None
) -> dict[Attention, str]:
    """The quickest of `candidates`, names of blocks.KERNELS, for each attention of a model (`flops.attentions`).

    Measured forward and backward on the device, once per process and shape; a kernel that cannot do a shape is not chosen for
    it. candidates: by default those for GPUs; on other devices there is nothing to choose, and all get "auto" without a look.
    """
    if candidates is None:
        candidates = GPU_KERNELS if device.type == "cuda" else ("auto",)
    return {one: _quickest(one._replace(blocks=1), device, dtype, tuple(candidates)) for one in asked}


def use_attention(chosen: dict[Attention, str]) -> str:
    """Has `blocks.attend` use what `choose_attention` found, in this process, and "auto" for all other shapes, as evaluation
    may have them. Answers what a user should hear of it.
    """
    table = [(one.queries, one.keys, blocks.KERNELS[name]) for one, name in chosen.items() if name != "auto"]

    def kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        for queries, keys, best in table:  # comparisons: a dict would have torch compile every shape anew
            if q.shape[2] == queries and k.shape[2] == keys:
                return best(q, k, v, bias)
        return blocks.KERNELS["auto"](q, k, v, bias)

    blocks.set_attention(kernel if table else "auto")
    return "attention by " + ", ".join(f"{name} ({one.queries} x {one.keys})" for one, name in chosen.items())


@functools.cache
def _quickest(one: Attention, device: torch.device, dtype: torch.dtype, candidates: tuple[str, ...]) -> str:
    if len(candidates) == 1:
        return candidates[0]
    seconds = {name: _seconds(one, blocks.KERNELS[name], device, dtype) for name in candidates}
    return min(seconds, key=lambda name: seconds[name])


def _seconds(one: Attention, kernel: blocks.Kernel, device: torch.device, dtype: torch.dtype) -> float:
    """Forward and backward, the median; infinite where the kernel cannot do it."""

    def tensor(tokens: int) -> Tensor:  # heads behind tokens in memory, as in the model
        made = torch.randn(one.batch, tokens, one.heads, one.head_dim, device=device, dtype=dtype)
        return made.transpose(1, 2).requires_grad_()

    q, k, v = tensor(one.queries), tensor(one.keys), tensor(one.keys)
    slope = torch.randn_like(q)
    spent = []
    try:
        for _ in range(WARM_UP + REPEATS):
            _wait(device)
            start = time.perf_counter()
            torch.autograd.grad(kernel(q, k, v, None), (q, k, v), slope)
            _wait(device)
            spent.append(time.perf_counter() - start)
    except (RuntimeError, torch.OutOfMemoryError):
        return float("inf")
    return statistics.median(spent[WARM_UP:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def how_to_compile(device: torch.device, step_flops: float, fixed: bool) -> Compile:
    """What `auto` means: nothing on a CPU, where it gains a tenth and costs a minute; CUDA graphs where launching kernels would
    take longer than running them; else block by block.

    step_flops: `flops.training_flops` of a rank's batch. fixed: steps have one shape, and there is one rank.
    """
    if device.type != "cuda":
        return "no"
    return "graphs" if fixed and step_flops < LAUNCH_BOUND_FLOPS else "blocks"


def compile_blocks(net: LVSM, fixed: bool, backend: str | Callable[..., object] = "inductor") -> None:
    """Compiles each block where it stands, when it is first used: names and values of weights stay, and so do recomputation,
    evaluation and DistributedDataParallel around it. Blocks share what is compiled.

    fixed: steps have one shape; each of encoder, decoder and evaluation is then compiled for its own. Else sizes that differ
    are variables after their second value, so that further numbers of inputs compile nothing.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for block in net.every_block():
        block.compile(backend=backend, dynamic=False if fixed else None)
