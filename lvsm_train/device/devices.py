"""Device and precision of a model."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from pipeline.core.errors import UserError


def device_of(name: str, local_rank: int = 0) -> torch.device:
    """Device of a name; auto: a GPU if there is one. Each rank of a machine gets its own GPU (`local_rank`).

    Raises UserError if the machine has no such device.
    """
    wanted = name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError):  # the latter from Python, for what is no text
        raise UserError(f"--device {name} is no device", "auto, cpu, cuda, cuda:1, mps, ...") from None
    try:
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise RuntimeError("this machine has no GPU that this torch can use")
            device = torch.device("cuda", local_rank if device.index is None else device.index)
            torch.cuda.set_device(device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, AttributeError) as error:  # the last two from a torch without that device
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}", "--device cpu works everywhere") from None
    return device


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """Compute dtype of the blocks. auto: bf16 on GPUs and on CPUs with AMX, else fp32."""
    if precision == "auto":
        precision = "bf16" if device.type != "cpu" or torch.cpu._is_amx_tile_supported() else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """True for GPUs with units for bfloat16."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Context manager in which blocks compute in `dtype_of(precision, device)`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype_of(precision, device) == torch.bfloat16)


def now(device: torch.device) -> float:
    """Seconds of time.perf_counter when the device has done all work so far."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def on_device(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """Copy numbers to the device and type of `like`, without waiting for the device."""
    host = torch.tensor(values, dtype=like.dtype)
    return host.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else host


class Numbers:
    """Numbers on their way to the host, which go when the device has made them, while the host goes on."""

    def __init__(self, values: torch.Tensor) -> None:
        self.host, self.there = values, None
        if values.device.type == "cuda":
            self.host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self.host.copy_(values, non_blocking=True)
            self.there = torch.cuda.Event()
            self.there.record()

    def read(self) -> list[float]:
        """Wait for the numbers, and return them."""
        if self.there:
            self.there.synchronize()
        return [float(value) for value in self.host.tolist()]
