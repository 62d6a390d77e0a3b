"""The GPU trainer's side: what turns shards into an LVSM's inputs, and the LVSM itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvsm_train.weights.official import from_official, to_official

# Before torch is imported: threads that wait sleep. Where other work needs the cores, threads that spin for each other made
# training on a CPU seven times as slow (2 cores, load 8: 0.11 and 0.72 steps a second)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["from_official", "to_official"]


def __getattr__(name: str) -> Any:
    """On first use, since not all that imports this package needs torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lvsm_train.weights import official

    return getattr(official, name)
