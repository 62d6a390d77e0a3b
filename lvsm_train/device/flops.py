"""Floating-point operations of a model, and what devices can do: a product and a sum are two operations."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lvsm_train.config.train import ModelConfig

HW = tuple[int, int]

# Dense bf16 tera-operations per second, summed in float32, by what the driver calls a device: the first name that fits. From
# the makers' data sheets; where these count zeros of sparse matrices too, half of that.
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
    """An attention of a model, in `blocks` blocks: `queries` of each of `batch` sequences look at `keys` of the same one."""

    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    blocks: int


class Stack(NamedTuple):
    """`blocks` transformer blocks that read `batch` sequences of so many tokens."""

    batch: int
    tokens: int
    blocks: int


def stacks(config: ModelConfig, batch: int, inputs: int, targets: int, hw: HW) -> list[Stack]:
    """Of a model that reads `batch` scenes of V inputs and T targets of hw = (height, width) pixels."""
    own = _tokens(config, hw)
    views, encoder = inputs * own, config.encoder_layers
    if config.kind == "decoder_only":
        return [Stack(batch * targets, views + own, config.layers)]
    latents = config.latents if config.kind == "encoder_decoder" else 0
    return [Stack(batch, latents + views, encoder), Stack(batch * targets, own + latents, config.layers - encoder)]


def attentions(config: ModelConfig, batch: int, inputs: int, targets: int, hw: HW) -> list[Attention]:
    """What kernels of attention are asked for: by the stacks, and by targets that look at a scene, all in one row."""
    heads, head_dim = config.dim // config.head_dim, config.head_dim
    read = stacks(config, batch, inputs, targets, hw)
    asked = [Attention(one.batch, heads, one.tokens, one.tokens, head_dim, one.blocks) for one in read]
    if config.kind == "unidirectional":
        own = _tokens(config, hw)
        asked.append(Attention(batch, heads, targets * own, inputs * own, head_dim, read[-1].blocks))
    return asked


def forward_flops(config: ModelConfig, batch: int, inputs: int, targets: int, hw: HW) -> float:
    """Of `batch` scenes of V inputs and T targets of hw = (height, width) pixels: products of matrices, attention's included.

    Norms, GELU, softmax, rays and the transforms of PRoPE are not counted, as is usual.
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
    """Of a step forward and backward, three times forward; attention counted, recomputation and the loss not."""
    return 3 * forward_flops(config, batch, inputs, targets, hw)


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 operations per second that a GPU's maker promises; None for other devices, and for GPUs not known here."""
    if device.type != "cuda":
        return None
    name = f" {torch.cuda.get_device_name(device)} ".replace("-", " ")
    if " MIG " in name or " Laptop " in name:  # parts of what the name promises
        return None
    return next((tera * 1e12 for known, tera in PEAK_TFLOPS.items() if f" {known} " in name), None)


def _tokens(config: ModelConfig, hw: HW) -> int:
    """Of one view."""
    return (hw[0] // config.patch) * (hw[1] // config.patch)
