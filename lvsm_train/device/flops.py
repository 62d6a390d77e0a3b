"""Floating-point operations of a model, and peak rates of GPUs. A multiply-add counts as two operations."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lvsm_train.config.parts import AUX, ModelConfig

HW = tuple[int, int]

# Dense bf16 TFLOPS with float32 accumulation, by the driver's device name (the first match counts), from the makers' data
# sheets; half of the figure if that is for sparse matrices.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200 NVL": 835.5,
    "H200": 989.4,
    "GH200": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.5,
    "H100": 989.4,
    "H800": 989.4,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 6000 Ada": 364.2,
    "RTX A6000": 154.8,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


class Attention(NamedTuple):
    """One attention shape of a model, used in `blocks` blocks: in each of `batch` sequences `queries` attend to `keys`."""

    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    blocks: int


class Stack(NamedTuple):
    """`blocks` transformer blocks over `batch` sequences of `tokens` tokens."""

    batch: int
    tokens: int
    blocks: int


def stacks(config: ModelConfig, batch: int, inputs: int, targets: int, hw: HW) -> list[Stack]:
    """Transformer stacks of a model over `batch` scenes of V inputs and T targets; hw = (height, width) in pixels."""
    own = _tokens(config, hw)
    views, encoder = inputs * own, config.encoder_layers
    if config.kind == "decoder_only":
        return [Stack(batch * targets, views + own, config.layers)]
    latents = config.latents if config.kind == "encoder_decoder" else 0
    return [Stack(batch, latents + views, encoder), Stack(batch * targets, own + latents, config.layers - encoder)]


def attentions(config: ModelConfig, batch: int, inputs: int, targets: int, hw: HW) -> list[Attention]:
    """Attention shapes of a model: self-attention of each stack, and cross-attention of all targets to their scene."""
    heads, head_dim = config.dim // config.head_dim, config.head_dim
    read = stacks(config, batch, inputs, targets, hw)
    asked = [Attention(one.batch, heads, one.tokens, one.tokens, head_dim, one.blocks) for one in read]
    if config.kind == "unidirectional":
        own = _tokens(config, hw)
        asked.append(Attention(batch, heads, targets * own, inputs * own, head_dim, read[-1].blocks))
    return asked


def forward_flops(config: ModelConfig, batch: int, inputs: int, targets: int, hw: HW) -> float:
    """FLOPs of one forward pass over `batch` scenes of V inputs and T targets: matrix products, including attention's.

    Norms, GELU, softmax, rays and PRoPE's transforms are not counted, as is usual.
    """
    pixels, dim, own = config.patch**2, config.dim, _tokens(config, hw)
    shown, asked = batch * inputs * own, batch * targets * own
    read = stacks(config, batch, inputs, targets, hw)
    total = shown * 9 * pixels * dim + asked * (6 + 3) * pixels * dim  # tokens in, colours out
    total += sum(one.batch * one.tokens * one.blocks for one in read) * 12 * dim**2  # qkv 3, out 1, MLP 8
    if config.kind == "unidirectional":
        total += shown * read[-1].blocks * 2 * dim**2  # the scene's keys and values
    for one in attentions(config, batch, inputs, targets, hw):
        total += 2 * one.blocks * one.batch * one.heads * one.queries * one.keys * one.head_dim
    return 2.0 * total


def training_flops(config: ModelConfig, batch: int, inputs: int, targets: int, hw: HW) -> float:
    """FLOPs of a training step: three forward passes, with the heads of --aux. Attention is counted, recomputation and the loss
    are not."""
    numbers = config.patch**2 * sum(AUX[name] for name in config.aux)
    heads = 2.0 * batch * targets * _tokens(config, hw) * config.dim * numbers
    return 3 * (forward_flops(config, batch, inputs, targets, hw) + heads)


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 operations per second from PEAK_TFLOPS; None for other devices and unknown GPUs."""
    if device.type != "cuda":
        return None
    name = f" {torch.cuda.get_device_name(device)} ".replace("-", " ")
    if " MIG " in name or " Laptop " in name:  # slower than the GPU of that name
        return None
    return next((tera * 1e12 for known, tera in PEAK_TFLOPS.items() if f" {known} " in name), None)


def _tokens(config: ModelConfig, hw: HW) -> int:
    """Tokens of one view."""
    return (hw[0] // config.patch) * (hw[1] // config.patch)
