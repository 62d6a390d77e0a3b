"""Writer of tensors as safetensors, which anybody reads without running code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pipeline.core.disk import replacing


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, about: tuple[str, str]) -> None:
    """Write tensors by name, from any device, into a file that is complete when it is there; others may read it as any file.

    about: name and text of the one entry of metadata: with several, safetensors writes them in an order of its own each time. Of
    equal tensors come equal bytes. Raises OSError where it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(whole, temporary, metadata=dict([about]))
        except SafetensorError as error:
            raise OSError(str(error)) from error
        temporary.chmod(mode)  # safetensors lets nobody else read it
