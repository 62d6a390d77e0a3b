"""PRoPE (arXiv 2507.10496): projective positional encoding, attention from relative cameras and patch positions.

The first half of each head's channels, in groups of four, is multiplied by the projective matrix of the token's camera; the
second half is rotated by two-dimensional rotary codes of the patch. With D for both together, attention becomes
D_i softmax((D_i^T q_i) . (D_j^-1 k_j)) D_j^-1 v_j: only D_i D_j^-1 matters, which a rigid change of the world frame leaves
unchanged.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

BASE = 100.0  # the slowest rotary code turns by about 1/BASE radian per patch, the fastest by 1


class Codes(NamedTuple):
    """PRoPE's codes for B sequences of N tokens, in C runs of N / C tokens that share a camera; all float32.

    project: (B, C, 4, 4), P = K [R|t], world to image; lift: (B, C, 4, 4), inverse of project. cos, sin: (N, head_dim / 4), or
    (B, N, head_dim / 4) with times, of the rotary angles: first half for the patch's row, second half for its column. Of views
    with a time the slower half of either turns with that.
    """

    project: Tensor
    lift: Tensor
    cos: Tensor
    sin: Tensor


def camera_codes(
    c2w: Tensor, fxfycxcy: Tensor, hw: tuple[int, int], patch: int, head_dim: int, time: Tensor | None = None
) -> Codes:
    """Rigid c2w (B, V, 4, 4), fxfycxcy (B, V, 4) in pixels of an image of size hw -> codes of B x (V * hh * ww) tokens, C = V.

    K is normalised by the image's width and height, its centre at 0, so that P does not depend on resolution. Lengths enter P
    unscaled: scenes should have a size of about 1. Patches count 0, 1, ... down and to the right. time: (B, V), about 0 to 1.
    """
    height, width = hw
    rows, columns = height // patch, width // patch
    with torch.autocast(c2w.device.type, enabled=False):
        fx, fy, cx, cy = fxfycxcy.float().unbind(-1)
        fx, fy, cx, cy = fx / width, fy / height, cx / width - 0.5, cy / height - 0.5
        zero, one = torch.zeros_like(fx), torch.ones_like(fx)
        k = [fx, zero, cx, zero, zero, fy, cy, zero, zero, zero, one, zero, zero, zero, zero, one]
        k_inverse = [1 / fx, zero, -cx / fx, zero, zero, 1 / fy, -cy / fy, zero, *k[8:]]
        project = _product(torch.stack(k, -1).unflatten(-1, (4, 4)), _inverse(c2w))
        lift = _product(c2w.float(), torch.stack(k_inverse, -1).unflatten(-1, (4, 4)))
        angle = _angles(rows, columns, head_dim, c2w.device)
        many = angle.repeat(c2w.shape[1], 1) if time is None else _with_time(angle, time.float()).flatten(1, 2)
    return Codes(project, lift, many.cos(), many.sin())


def without_camera(batch: int, tokens: int, head_dim: int, device: torch.device) -> Codes:
    """Identity codes, for tokens without a camera or position."""
    eye = torch.eye(4, device=device).expand(batch, 1, 4, 4)
    angle = torch.zeros(tokens, head_dim // 4, device=device)
    return Codes(eye, eye, angle.cos(), angle.sin())


def join(first: Codes, second: Codes) -> Codes:
    """Concatenate codes of B x N and B x M tokens -> B x (N + M), in runs whose length divides those of both."""
    runs = [codes.cos.shape[-2] // codes.project.shape[1] for codes in (first, second)]
    cuts = [run // math.gcd(*runs) for run in runs]
    matrices = (
        torch.cat([matrix.repeat_interleave(cut, 1) for matrix, cut in zip(pair, cuts, strict=True)], 1)
        for pair in zip(first[:2], second[:2], strict=True)
    )
    batch = () if first.cos.dim() == second.cos.dim() == 2 else (len(first.project), -1, -1)
    angles = (
        torch.cat([each.expand(batch) if batch else each for each in pair], -2)
        for pair in zip(first[2:], second[2:], strict=True)
    )
    return Codes(*matrices, *angles)


def seen_from(c2w: Tensor, frame: Tensor) -> Tensor:
    """c2w (B, V, 4, 4) relative to the rigid camera `frame` (B, 4, 4): frame^-1 c2w, float32."""
    with torch.autocast(c2w.device.type, enabled=False):
        return _product(_inverse(frame)[:, None], c2w.float())


def query(x: Tensor, codes: Codes) -> Tensor:
    """Queries (B, N, heads, head_dim) -> D^T q, float32."""
    return _apply(x, codes.project.mT, codes.cos, -codes.sin)


def key(x: Tensor, codes: Codes) -> Tensor:
    """Keys or values (B, N, heads, head_dim) -> D^-1 k, float32: from camera to world."""
    return _apply(x, codes.lift, codes.cos, -codes.sin)


def output(x: Tensor, codes: Codes) -> Tensor:
    """Attention output (B, N, heads, head_dim) -> D x, float32: from world to the query's camera."""
    return _apply(x, codes.project, codes.cos, codes.sin)


def _apply(x: Tensor, matrix: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    quarter = x.shape[-1] // 4
    with torch.autocast(x.device.type, enabled=False):
        camera, u, v = x.float().split((2 * quarter, quarter, quarter), -1)
        camera = _mix(camera.unflatten(-1, (-1, 4)), matrix).flatten(-2)
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)  # one code for all heads
        return torch.cat([camera, u * cos - v * sin, u * sin + v * cos], -1)


def _mix(x: Tensor, matrix: Tensor) -> Tensor:
    """Each group of four channels (B, N, heads, groups, 4) times the matrix of its token's run (B, C, 4, 4)."""
    runs = x.unflatten(1, (matrix.shape[1], -1))  # (B, C, N / C, heads, groups, 4)
    if torch.compiler.is_compiling():  # elementwise code fuses with its neighbours; a matmul would stay a kernel
        return (matrix[:, :, None, None, None] * runs[..., None, :]).sum(-1).flatten(1, 2)
    # one block-diagonal matmul for all groups: more arithmetic, but a third of the time, of products with four columns
    diagonal = torch.eye(x.shape[3], device=x.device)[:, None, :, None] * matrix.mT[..., None, :, None, :]
    return (runs.flatten(4).flatten(2, 3) @ diagonal.flatten(4).flatten(2, 3)).reshape(x.shape)


def _angles(rows: int, columns: int, head_dim: int, device: torch.device) -> Tensor:
    """Rotary angles (rows * columns, head_dim / 4) of patches in row-major order."""
    each = head_dim // 8
    speed = BASE ** (-torch.arange(each, device=device) / each)
    y = torch.arange(rows, device=device)[:, None, None] * speed
    x = torch.arange(columns, device=device)[None, :, None] * speed
    return torch.cat(torch.broadcast_tensors(y, x), -1).flatten(0, 1)


def _with_time(angle: Tensor, time: Tensor) -> Tensor:
    """Angles (n, head_dim / 4) of patches, of which the slower half of rows and columns, that hardly differ from patch to patch,
    are replaced by angles of times (B, V) that turn by pi, 2 pi, 4 pi, ...: (B, V, n, head_dim / 4)."""
    each = angle.shape[-1] // 2
    slow = (torch.arange(2 * each, device=angle.device) % each) >= (each + 1) // 2
    turns = math.pi * 2.0 ** (slow.cumsum(0) - 1) * slow
    return angle * ~slow + time[..., None, None] * turns


def _inverse(c2w: Tensor) -> Tensor:
    """Inverse of a rigid transform (..., 4, 4), float32; written out because a general inverse synchronises the GPU."""
    rotation, centre = c2w[..., :3, :3].float().mT, c2w[..., :3, 3:].float()
    upper = torch.cat([rotation, -_product(rotation, centre)], -1)
    return torch.cat([upper, c2w[..., 3:, :].float()], -2)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of small matrices, not by matmul, which may round to TF32 on a GPU: too coarse for poses."""
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)
