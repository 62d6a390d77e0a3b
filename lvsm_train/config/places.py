"""Where a trained model is: a path of this machine, or hf:OWNER/NAME[@REVISION][/FILE] on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path


def on_hub(model: Path | str) -> bool:
    """True for the address of a model on the Hub."""
    return str(model).startswith("hf:")


def place_of(model: Path) -> Path:
    """Make the path of a model absolute; an address stays as it is."""
    return model if on_hub(model) else model.expanduser().absolute()
