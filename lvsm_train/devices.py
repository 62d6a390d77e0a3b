"""Where a model runs, and in which precision."""

from __future__ import annotations

import torch

from pipeline.scene import UserError


def device_of(name: str) -> torch.device:
    """The device of that name; auto: the GPU where there is one. Raises UserError for a device that is not here."""
    wanted = name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}", "--device cpu works everywhere") from None
    return device


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """What blocks compute in. auto: bf16 on GPUs, and on processors with matrix units for it."""
    if precision == "auto":
        precision = "bf16" if device.type != "cpu" or torch.cpu._is_amx_tile_supported() else "fp32"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
