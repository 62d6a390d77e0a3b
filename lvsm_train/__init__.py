"""The GPU trainer's side: what turns shards into an LVSM's inputs, and the LVSM itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvsm_train.weights.official import from_official, to_official

__all__ = ["from_official", "to_official"]


def __getattr__(name: str) -> Any:
    """On first use, since not all that imports this package needs torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lvsm_train.weights import official

    return getattr(official, name)
