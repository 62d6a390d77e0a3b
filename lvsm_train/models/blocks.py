"""Building blocks of the models: attention and the choice of its kernel, norms, tokenizers, head, and initial weights."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from lvsm_train.models import prope
from lvsm_train.models.prope import Codes

EPS = 1e-5  # of every norm
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
KeysValues = tuple[Tensor, Tensor]  # (B, heads, M, head_dim) each


def _automatic(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _only(backend: SDPBackend) -> Kernel:
    def kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None:  # flash attention takes none
            return _automatic(q, k, v, bias)
        with sdpa_kernel(backend):
            return _automatic(q, k, v, None)

    return kernel


KERNELS: dict[str, Kernel] = {
    "auto": _automatic,
    "flash": _only(SDPBackend.FLASH_ATTENTION),
    "cudnn": _only(SDPBackend.CUDNN_ATTENTION),
    "efficient": _only(SDPBackend.EFFICIENT_ATTENTION),
    "math": _only(SDPBackend.MATH),
}
_kernel: Kernel = _automatic


def set_attention(choice: str | Kernel) -> Kernel:
    """Set the kernel of `attend` in this process: a name of KERNELS or a function (q, k, v, bias). Returns the kernel before.

    A named kernel serves all attention without a bias, and PyTorch raises RuntimeError if the kernel cannot; attention with a
    bias always uses "auto". Raises ValueError for an unknown name.
    """
    global _kernel
    if isinstance(choice, str) and choice not in KERNELS:
        raise ValueError(f"attention kernel {choice!r} is unknown: choose one of {', '.join(KERNELS)}")
    before, _kernel = _kernel, KERNELS[choice] if isinstance(choice, str) else choice
    return before


@contextmanager
def attention(choice: str | Kernel) -> Iterator[None]:
    """`set_attention` for a `with` block, which must include the backward pass of recomputed blocks."""
    before = set_attention(choice)
    try:
        yield
    finally:
        set_attention(before)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """q (B, heads, N, head_dim), k and v (B, heads, M, head_dim), bias to (B, heads, N, M) -> (B, heads, N, head_dim).

    softmax(q k^T / sqrt(head_dim) + bias) v by the kernel of `set_attention`, in the dtype of v. A bias of -inf masks a key.
    """
    return _kernel(q.to(v.dtype), k.to(v.dtype), v, None if bias is None else bias.to(v.dtype))


def layer_norm(dim: int) -> nn.LayerNorm:
    """The models' LayerNorm: a gain and no bias."""
    return nn.LayerNorm(dim, eps=EPS, bias=False)


class HeadNorm(nn.Module):
    """RMSNorm of each head's queries or keys with a learned gain, always in float32."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., head_dim) -> (..., head_dim) in float32."""
        x = x.float()
        if x.is_cuda:  # a fused kernel; on CPUs up to three times slower than the formula below
            return functional.rms_norm(x, self.weight.shape, self.weight.float(), EPS)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * self.weight.float()


class Attention(nn.Module):
    """Self-attention within a sequence; given a scene, plus cross-attention of the same queries to its keys (own softmax)."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_norm, self.k_norm = HeadNorm(head_dim), HeadNorm(head_dim)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: Tensor, codes: Codes | None = None, bias: Tensor | None = None, scene: KeysValues | None = None
    ) -> Tensor:
        """x (B, N, dim), its tokens' codes, bias to (B, heads, N, N), keys and values of S scenes, B = S * T -> (B, N, dim)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.head_dim)).unbind(-3)  # (B, N, heads, head_dim)
        q, k = self.q_norm(q), self.k_norm(k)
        if codes is not None:
            q, k, v = prope.query(q, codes), prope.key(k, codes), prope.key(v, codes).to(v.dtype)
        attended = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias).transpose(1, 2)
        if scene is not None:  # all targets of a scene in one query sequence: no copy of its keys per target
            q = q.reshape(scene[0].shape[0], -1, *q.shape[2:])
            attended = attended + attend(q.transpose(1, 2), *scene).transpose(1, 2).reshape(attended.shape)
        if codes is not None:
            attended = prope.output(attended, codes).to(v.dtype)
        return self.out(attended.flatten(-2))


class SceneKeys(nn.Module):
    """Scene keys and values of one decoder block of the unidirectional model, computed once for any number of targets."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.kv = nn.Linear(dim, 2 * dim, bias=False)
        self.k_norm = HeadNorm(head_dim)

    def forward(self, tokens: Tensor, codes: Codes | None) -> KeysValues:
        """Scene tokens (B, M, dim) and their codes -> keys and values (B, heads, M, head_dim), of one dtype."""
        k, v = self.kv(tokens).unflatten(-1, (2, -1, self.head_dim)).unbind(-3)
        dtype, k = v.dtype, self.k_norm(k)
        if codes is not None:
            k, v = prope.key(k, codes), prope.key(v, codes)
        return k.to(dtype).transpose(1, 2), v.to(dtype).transpose(1, 2)


class MLP(nn.Module):
    """Two linear layers with an exact GELU between, hidden width 4 * dim."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 4 * dim, bias=False)
        self.down = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return self.down(functional.gelu(self.up(x)))


class Block(nn.Module):
    """A pre-norm transformer block. recompute: activation checkpointing; `Stack` saves only the block's input and recomputes
    the block in the backward pass, with equal values and gradients."""

    recompute = False

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = layer_norm(dim), layer_norm(dim)
        self.attn = Attention(dim, head_dim)
        self.mlp = MLP(dim)

    def forward(
        self, x: Tensor, codes: Codes | None = None, bias: Tensor | None = None, scene: KeysValues | None = None
    ) -> Tensor:
        """(B, N, dim) -> (B, N, dim); further arguments as in `Attention`."""
        x = x + self.attn(self.norm1(x), codes, bias, scene)
        return x + self.mlp(self.norm2(x))


class Stack(nn.ModuleList):
    """Transformer blocks in sequence."""

    def __init__(self, dim: int, head_dim: int, layers: int) -> None:
        super().__init__(Block(dim, head_dim) for _ in range(layers))

    def forward(
        self,
        x: Tensor,
        codes: Codes | None = None,
        bias: Tensor | None = None,
        scenes: Sequence[KeysValues | None] | None = None,
    ) -> Tensor:
        """(B, N, dim) -> (B, N, dim). scenes: one per block; codes and bias, as in `Attention`, are shared by all blocks."""
        for block, scene in zip(self, scenes or [None] * len(self), strict=True):
            if block.recompute and torch.is_grad_enabled():  # no dropout, so no random state to preserve
                x = checkpoint(block, x, codes, bias, scene, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, codes, bias, scene)
        return x


class Tokenizer(nn.Module):
    """Linear patch embedding, in float32 also under autocast: bfloat16 would move rays by half a pixel."""

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.linear = nn.Linear(patch * patch * channels, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, V, channels, H, W) -> (B, V * hh * ww, dim), patches row-major; within a patch (row, column, channel)."""
        p = self.patch
        batch, views, channels, height, width = x.shape
        patches = x.reshape(batch, views, channels, height // p, p, width // p, p).permute(0, 1, 3, 5, 4, 6, 2)
        with torch.autocast(x.device.type, enabled=False):
            return functional.linear(patches.flatten(4).flatten(1, 3).float(), self.linear.weight.float())


class Head(nn.Module):
    """Linear projection of tokens to patches of `channels` numbers per pixel. bounded: these are in (0, 1), as of RGB."""

    def __init__(self, dim: int, patch: int, channels: int = 3, bounded: bool = True) -> None:
        super().__init__()
        self.patch, self.channels, self.bounded = patch, channels, bounded
        self.norm = layer_norm(dim)
        self.linear = nn.Linear(dim, patch * patch * channels, bias=False)

    def forward(self, x: Tensor, targets: int, hw: tuple[int, int]) -> Tensor:
        """(B * T, hh * ww, dim) -> (B, T, channels, H, W), float32."""
        p, (height, width) = self.patch, hw
        pixels = self.linear(self.norm(x)).float()  # bfloat16 has only 128 values in [0.5, 1]
        pixels = pixels.sigmoid() if self.bounded else pixels
        pixels = pixels.reshape(-1, targets, height // p, width // p, p, p, self.channels)
        return pixels.permute(0, 1, 6, 2, 4, 3, 5).reshape(-1, targets, self.channels, height, width)


def initialise(model: nn.Module, init: str, seed: int) -> None:
    """Initialise every parameter from (seed, its name), independently of PyTorch's random state and of other parameters.

    init official (arXiv 2410.17242): N(0, 0.02), in block i (from 0) N(0, 0.02 / sqrt(2 (i + 1))), latents truncated N(0, 0.02).
    width_aware: N(0, fan_in^-1/2), residual outputs divided by sqrt(2 * depth of the stack), latents N(0, 1). Gains are 1.
    """
    for name, parameter in model.named_parameters():
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        with torch.no_grad():
            if parameter.dim() == 1:
                parameter.fill_(1)
            elif name == "latents" and init == "official":
                nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
            else:
                parameter.normal_(0, _std(model, name, parameter, init), generator=generator)


def _std(model: nn.Module, name: str, parameter: Tensor, init: str) -> float:
    """Standard deviation of a matrix's initial values."""
    block = re.match(r"(\w+)\.(\d+)\.", name)  # stack and number
    if init == "official":
        return 0.02 / math.sqrt(2 * (int(block[2]) + 1)) if block else 0.02
    if name == "latents":
        return 1.0
    std: float = parameter.shape[1] ** -0.5
    if block and name.endswith(("attn.out.weight", "mlp.down.weight")):
        std /= math.sqrt(2 * len(list(model.get_submodule(block[1]).children())))
    return std
