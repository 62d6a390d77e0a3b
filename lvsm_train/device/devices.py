"""Where a model runs, and in which precision."""

from __future__ import annotations

import torch

from pipeline.core.errors import UserError


def device_of(name: str, local_rank: int = 0) -> torch.device:
    """The device of that name; auto: the GPU where there is one. Of several ranks on a machine each gets a GPU of its own.

    Raises UserError for a device that is not here.
    """
    wanted = name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        if device.type == "cuda":
            device = torch.device("cuda", local_rank if device.index is None else device.index)
            torch.cuda.set_device(device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, AttributeError) as error:  # the last from a torch without CUDA
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}", "--device cpu works everywhere") from None
    return device


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """What blocks compute in. auto: bf16 on GPUs, and on processors with matrix units for it."""
    if precision == "auto":
        precision = "bf16" if device.type != "cpu" or torch.cpu._is_amx_tile_supported() else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Has blocks compute in it, for a `with` block."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype_of(precision, device) == torch.bfloat16)
