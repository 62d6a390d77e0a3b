"""The GPU trainer's side: what turns shards into an LVSM's inputs, and the LVSM itself."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvsm_train.synthesis.model import load
    from lvsm_train.weights.official import from_official, to_official

# Before torch is imported: threads that wait sleep. Where other work needs the cores, threads that spin for each other made
# training on a CPU seven times as slow (2 cores, load 8: 0.11 and 0.72 steps a second)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_HOME = {  # name -> its module
    "from_official": "lvsm_train.weights.official",
    "to_official": "lvsm_train.weights.official",
    "load": "lvsm_train.synthesis.model",
}
__all__ = ["from_official", "load", "to_official"]


def __getattr__(name: str) -> Any:
    """On first use, since not all that imports this package needs torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
