"""Training loss: squared error and a perceptual loss as in LVSM (arXiv 2410.17242), optionally L1, SSIM and LPIPS."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from lvsm_train.config.train import LossConfig
from lvsm_train.device.devices import has_bfloat16
from lvsm_train.losses import vgg
from lvsm_train.losses.metrics import Lpips, check_images, ssim
from lvsm_train.losses.vgg import CACHE, Features, Layer, Weights

SAME_CAMERA = 1e-5  # of numbers of c2w: cameras that are turned about z with their world differ by rounding
TAPS = ("conv1_2", "conv2_2", "conv3_2", "conv4_2", "conv5_2")
# for MatConvNet's VGG-19, from Chen & Koltun 2017 (arXiv 1707.09405)
DIVISORS = (2.6, 4.8, 3.7, 5.6, 1.5 / 10)


class Perceptual(nn.Module):
    """Weighted sum of mean absolute differences of the pixels and of five features of a VGG with average pooling.

    (e0 + e1/2.6 + e2/4.8 + e3/3.7 + e4/5.6 + 10 e5/1.5) / 255, where e0 is of the network's input in grey levels, and e1 ... e5
    of the ReLUs after conv1_2, conv2_2, ... conv5_2. This is LVSM's loss with MatConvNet's VGG-19. The divisors are for features
    of grey levels; torchvision's weights take inputs in standard deviations, so each e is multiplied by one standard deviation
    in grey levels (57.6). The terms then balance alike, but loss values differ from LVSM's, above all with VGG-16, whose deeper
    features are not VGG-19's.

    render, target: (N, 3, H, W) in [0, 1], at least 16 pixels wide and high. Returns a scalar, float32.
    """

    def __init__(self, weights: Weights, bf16: bool = False) -> None:
        super().__init__()
        self.features = Features(weights, TAPS, "avg", torch.bfloat16 if bf16 else torch.float32)
        self.grey_levels = weights.preprocessing.grey_levels
        self.says = f"perceptual loss, {weights.says}"

    def forward(self, render: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with torch.autocast(render.device.type, enabled=False):
            total = _l1(self.features.preprocess(render), self.features.preprocess(target))
            pairs = zip(self.features(render), self.features(target), DIVISORS, strict=True)
            for ours, theirs, divisor in pairs:
                total = total + _l1(ours.float(), theirs.float()) / divisor
        return total * (self.grey_levels / 255)


class Loss(nn.Module):
    """loss(render, target, step) -> (scalar, terms): the weighted sum to minimise; its terms by name, unweighted and detached.

    render, target: (N, 3, H, W) in [0, 1]. Gradients flow to the render only. Always float32, also under autocast, except
    networks with `vgg_bf16` (None: on GPUs with units for it); on a GPU networks follow torch.backends.cudnn.allow_tf32. Terms
    of weight 0, and perceptual, ssim and lpips before step `perceptual_from`, are neither computed nor returned. Weights of
    networks are loaded at construction, so that a run cannot fail later at `perceptual_from`; UserError if unobtainable.

    Nothing is learned or stored: `state_dict()` and `parameters()` are empty, also of a module that contains this one.
    """

    def __init__(self, cfg: LossConfig, cache: Path = CACHE, device: torch.device | str = "cpu") -> None:
        super().__init__()
        cfg.check()
        self.cfg = cfg
        bf16 = has_bfloat16(torch.device(device)) if cfg.vgg_bf16 is None else cfg.vgg_bf16
        self.perceptual = Perceptual(vgg.load(cfg.vgg, cache), bf16) if cfg.perceptual else None
        self.lpips = Lpips.load("vgg16", cfg.lpips_weights, cache, bf16) if cfg.lpips else None
        self.networks = [part for part in (self.perceptual, self.lpips) if part is not None]
        self.to(device)

    def says(self) -> list[str]:
        """Log lines, one per network: origin and file of its weights, since losses of different weights do not compare."""
        rough = ", in bfloat16"
        return [part.says + rough * (part.features.dtype == torch.bfloat16) for part in self.networks]

    def flops(self, images: int, hw: tuple[int, int], step: int) -> float:
        """Floating-point operations of the networks for so many renders of (height, width) hw: forward for render and target,
        and back to the render's pixels."""
        if step < self.cfg.perceptual_from:
            return 0.0
        return 3.0 * images * sum(forward_flops(part.features.layers, hw) for part in self.networks)

    def forward(
        self, render: torch.Tensor, target: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        check_images(render, target)
        cfg, terms = self.cfg, {}
        with torch.autocast(render.device.type, enabled=False):
            render, target = render.float(), target.detach().float()
            if cfg.mse:
                terms["mse"] = (render - target).square().mean()
            if cfg.l1:
                terms["l1"] = _l1(render, target)
            if step >= cfg.perceptual_from:
                if self.perceptual is not None:
                    terms["perceptual"] = self.perceptual(render, target)
                if cfg.ssim:
                    terms["ssim"] = 1 - ssim(render, target).mean()
                if self.lpips is not None:
                    terms["lpips"] = self.lpips(render, target).mean()
            total = torch.stack([getattr(cfg, name) * term for name, term in terms.items()]).sum()
        return total, {name: term.detach() for name, term in terms.items()}


def temporal_gradient(
    render: torch.Tensor, target: torch.Tensor, c2w: torch.Tensor, time: torch.Tensor
) -> torch.Tensor:
    """Mean absolute error of what changes from each target to the next one (the first follows the last), over those pairs that
    one camera sees at two times; 0 without such pairs. No host sync.

    render, target: (B, T, 3, H, W) in [0, 1]. c2w: (B, T, 4, 4). time: (B, T).
    """
    with torch.autocast(render.device.type, enabled=False):
        changes = (render - render.roll(1, 1)).float() - (target - target.roll(1, 1)).float()
        same = (c2w - c2w.roll(1, 1)).abs().amax((-2, -1)) < SAME_CAMERA
        weight = (same & (time != time.roll(1, 1))).float()
        return (changes.abs().mean((-3, -2, -1)) * weight).sum() / weight.sum().clamp(min=1)


def forward_flops(layers: Iterable[Layer], hw: tuple[int, int]) -> float:
    """Floating-point operations of convolutions for one image of (height, width) hw, a multiply-add counted as two."""
    total, sides = 0.0, list(hw)
    for layer in layers:
        window, stride = layer.pool or (1, 1)
        border = 2 * layer.padding - layer.shape[-1]
        sides = [((side - window) // stride + 1 + border) // layer.stride + 1 for side in sides]
        total += 2.0 * math.prod(layer.shape) * math.prod(sides)
    return total


def _l1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).abs().mean()
