"""Speed on a device: attention kernels chosen by measurement, compiled blocks, and how to launch a step."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from lvsm_train.device.devices import now
from lvsm_train.device.flops import Attention
from lvsm_train.models import blocks
from lvsm_train.models.lvsm import LVSM

Compile = Literal["no", "blocks", "graphs"]

GPU_KERNELS = ("auto", "cudnn", "flash", "efficient")  # without "math", which stores queries x keys scores
WARM_UP, REPEATS = 3, 10
VARIANTS = 64  # that torch may compile of a block: with or without gradient or scene, shapes
LAUNCH_BOUND_FLOPS = 1e13  # a GPU runs smaller steps faster than Python launches them; an estimate, not measured


def choose_attention(
    asked: Sequence[Attention], device: torch.device, dtype: torch.dtype, candidates: Sequence[str] | None = None
) -> dict[Attention, str]:
    """Fastest of `candidates`, names of blocks.KERNELS, for each attention shape of a model (`flops.attentions`).

    Measured forward and backward on the device, once per process and shape; kernels that cannot do a shape are skipped.
    candidates: GPU_KERNELS by default; on other devices "auto" for all, without a measurement.
    """
    if candidates is None:
        candidates = GPU_KERNELS if device.type == "cuda" else ("auto",)
    return {one: _quickest(one._replace(blocks=1), device, dtype, tuple(candidates)) for one in asked}


def use_attention(chosen: dict[Attention, str]) -> str:
    """Set `blocks.attend`, in this process, to the kernels of `choose_attention`, and to "auto" for other shapes (evaluation).
    Returns a line for the log."""
    table = [(one.queries, one.keys, blocks.KERNELS[name]) for one, name in chosen.items() if name != "auto"]

    def kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        for queries, keys, best in table:  # not a dict: torch would recompile for every shape
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
    """Median seconds of forward and backward; infinity if the kernel cannot do the shape."""

    def tensor(tokens: int) -> Tensor:  # memory layout as in the model: tokens before heads
        made = torch.randn(one.batch, tokens, one.heads, one.head_dim, device=device, dtype=dtype)
        return made.transpose(1, 2).requires_grad_()

    q, k, v = tensor(one.queries), tensor(one.keys), tensor(one.keys)
    grad = torch.randn_like(q)
    spent = []
    try:
        for _ in range(WARM_UP + REPEATS):
            start = now(device)
            torch.autograd.grad(kernel(q, k, v, None), (q, k, v), grad)
            spent.append(now(device) - start)
    except (RuntimeError, torch.OutOfMemoryError):
        return float("inf")
    return statistics.median(spent[WARM_UP:])


def compile_mode(device: torch.device, step_flops: float, fixed: bool) -> Compile:
    """Choose for --compile auto: "no" on a CPU, where compiling gains a tenth and costs a minute; "graphs" (CUDA graphs) if
    launching kernels takes longer than running them; else "blocks".

    step_flops: `flops.training_flops` of a rank's batch. fixed: all steps have one shape, on one rank.
    """
    if device.type != "cuda":
        return "no"
    return "graphs" if fixed and step_flops < LAUNCH_BOUND_FLOPS else "blocks"


def compile_blocks(net: LVSM, fixed: bool, backend: str | Callable[..., object] = "inductor") -> None:
    """Compile each block in place, at its first use. Names and values of weights, recomputation, evaluation and
    DistributedDataParallel are unaffected; blocks share compiled code.

    fixed: steps have one shape, so encoder, decoder and evaluation are compiled for one shape each. Otherwise sizes become
    dynamic at their second value, so that further numbers of inputs need no compilation.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for block in net.every_block():
        block.compile(backend=backend, dynamic=False if fixed else None)
