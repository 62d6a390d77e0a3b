"""Image metrics of a render against its target: PSNR (whole image, or object only), SSIM, LPIPS.

All take RGB images (N, 3, H, W) in [0, 1] and return one value per image (N,), float32. All are differentiable, so that they
serve as losses too. Higher is better for PSNR and SSIM, lower for LPIPS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from lvsm_train.losses.vgg import BLOCKS, CACHE, Features, Net, Weights, layer_names, lpips_weights
from pipeline.core.errors import UserError

SSIM_SIGMA, SSIM_RADIUS = 1.5, 5  # pixels: eleven taps
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # for a data range of 1


def psnr(render: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB: -10 log10 of the MSE of values clamped to [0, 1]; inf for equal images."""
    return _decibels(_squared_error(render, target).mean((1, 2, 3)))


def foreground(target: torch.Tensor, grow: int = 3, tolerance: float = 4 / 255) -> torch.Tensor:
    """Mask (N, 1, H, W), bool, of the object on its white background.

    True for pixels with a channel darker than white by more than `tolerance` (JPEG keeps a white background within 3/255), and
    within `grow` pixels of these, where a render can miss the outline.
    """
    check_images(target, target)
    mask = (target.amin(1, keepdim=True) < 1 - tolerance).float()
    return functional.max_pool2d(mask, 2 * grow + 1, 1, grow) > 0


def foreground_psnr(render: torch.Tensor, target: torch.Tensor, grow: int = 3) -> torch.Tensor:
    """PSNR in dB over the pixels of `foreground`, which a white background cannot inflate; NaN if there are none."""
    mask = foreground(target, grow)
    error = _squared_error(render, target).mean(1, keepdim=True)
    return _decibels((error * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)))


def ssim(render: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004) as in scikit-image, which LVSM reports:

    `structural_similarity(a, b, win_size=11, gaussian_weights=True, data_range=1, channel_axis=...)`: a Gaussian of sigma 1.5
    truncated at 5 pixels, *sample* covariances (times 121/120), without a border of 5 pixels, mean over channels. Computed in
    the images' precision, at least float32. Raises ValueError for images of fewer than 11 pixels.
    """
    check_images(render, target)
    if min(render.shape[-2:]) < 2 * SSIM_RADIUS + 1:
        raise ValueError(f"images of {tuple(render.shape[-2:])} pixels; SSIM needs {2 * SSIM_RADIUS + 1}")
    dtype = torch.promote_types(torch.promote_types(render.dtype, target.dtype), torch.float32)
    with torch.autocast(render.device.type, enabled=False):
        a, b = render.to(dtype), target.to(dtype)
        middle_a, middle_b = (z.detach().mean((2, 3), keepdim=True) for z in (a, b))
        x, y = a - middle_a, b - middle_b  # equal variances, with less cancellation
        mean_x, mean_y, xx, yy, xy = _blurred(torch.cat([x, y, x * x, y * y, x * y], 1)).chunk(5, 1)
        samples = (2 * SSIM_RADIUS + 1) ** 2
        sample = samples / (samples - 1)
        var_x, var_y = sample * (xx - mean_x * mean_x), sample * (yy - mean_y * mean_y)
        covariance = sample * (xy - mean_x * mean_y)
        mean_x, mean_y = mean_x + middle_a, mean_y + middle_b
        luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x * mean_x + mean_y * mean_y + SSIM_C1)
        structure = (2 * covariance + SSIM_C2) / (var_x + var_y + SSIM_C2)
        return (luminance * structure).mean((1, 2, 3))


class Lpips(nn.Module):
    """LPIPS v0.1 (Zhang et al. 2018): (N, 3, H, W) twice, in [0, 1] (what the lpips package calls normalize=True) -> (N,).

    The trunk is frozen, and absent from `state_dict()` and `parameters()`. bf16: run the trunk in bfloat16, for a GPU.
    """

    def __init__(self, trunk: Weights, linear: list[torch.Tensor], bf16: bool = False) -> None:
        super().__init__()
        self.features = Features(trunk, lpips_taps(trunk.net), "max", torch.bfloat16 if bf16 else torch.float32)
        self.says = f"LPIPS v0.1, {trunk.says}"
        for index, weight in enumerate(linear):
            self.register_buffer(f"linear{index}", weight[:, None, None], persistent=False)

    @classmethod
    def load(
        cls,
        net: Literal["vgg16", "alex"] = "vgg16",
        archive: Path | None = None,
        cache: Path = CACHE,
        bf16: bool = False,
    ) -> Lpips:
        """LPIPS with its published weights (vgg.lpips_weights, also for errors). LVSM reports the VGG-16 version."""
        return cls(*lpips_weights(net, archive, cache), bf16=bf16)

    def forward(self, render: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        check_images(render, target)
        with torch.autocast(render.device.type, enabled=False):
            total = torch.zeros(len(render), device=render.device)
            for index, (x, y) in enumerate(zip(self.features(render), self.features(target), strict=True)):
                # eps keeps pixels whose features are all 0, and their gradients, at 0 instead of NaN
                x, y = (functional.normalize(z.float(), dim=1, eps=1e-10) for z in (x, y))
                total = total + (getattr(self, f"linear{index}") * (x - y).square()).sum(1).mean((1, 2))
        return total


def load_lpips(wanted: bool, archive: Path | None, device: torch.device) -> tuple[Lpips | None, list[str]]:
    """(LPIPS with published weights on a device, notes); (None, notes that say why) if not wanted or not available.

    Raises UserError if the user named an archive that is missing or wrong.
    """
    if not wanted:
        return None, []
    try:
        return Lpips.load("vgg16", archive).to(device), []
    except UserError as error:
        if archive:
            raise
        return None, [f"LPIPS was not measured: {str(error).splitlines()[0]}"]


def lpips_taps(net: Net) -> list[str]:
    """Convolutions whose features LPIPS compares: the last of each VGG block, all five of AlexNet."""
    if net == "alex":
        return layer_names(net)
    return [f"conv{block + 1}_{count}" for block, count in enumerate(BLOCKS[net])]


def check_images(render: torch.Tensor, target: torch.Tensor) -> None:
    """Raise ValueError unless both are (N, 3, H, W)."""
    if render.shape != target.shape or render.dim() != 4 or render.shape[1] != 3:
        raise ValueError(f"images of {tuple(render.shape)} and {tuple(target.shape)}; both must be (N, 3, H, W)")


def _squared_error(render: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    check_images(render, target)
    return (render.float().clamp(0, 1) - target.float().clamp(0, 1)).square()


def _decibels(error: torch.Tensor) -> torch.Tensor:
    return -10 * torch.log10(error)


def _blurred(x: torch.Tensor) -> torch.Tensor:
    """Gaussian-filter (N, C, H, W) without padding -> (N, C, H - 10, W - 10)."""
    offset = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, device=x.device, dtype=x.dtype)
    weight = torch.exp(-0.5 * (offset / SSIM_SIGMA) ** 2)
    weight = weight / weight.sum()
    flat = x.flatten(0, 1)[:, None]
    rows = functional.conv2d(flat, weight[None, None, :, None])
    return functional.conv2d(rows, weight[None, None, None, :])[:, 0].unflatten(0, x.shape[:2])
