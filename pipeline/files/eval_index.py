"""Evaluation indices of pixelSplat (Charatan et al., arXiv 2312.12337), which LVSM uses too: which frames of which clip to show
a model, and which to ask it for. {key: {"context": [a, b], "target": [t1, t2, t3]}}, or null for a clip that has no such frames.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.scene import UserError


@dataclass(frozen=True)
class Example:
    """Frames of one clip, as entries of its camera file counted from 0."""

    context: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True)
class EvalIndex:
    """examples: key of a clip -> Example. Clips with null are left out."""

    examples: dict[str, Example]

    @staticmethod
    def read(path: Path) -> EvalIndex:
        """Raises UserError where the file is none."""
        try:
            found = json.loads(path.read_bytes())
            examples = {str(key): _example(value) for key, value in found.items() if value is not None}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            hint = '{key: {"context": [0, 50], "target": [10, 20, 30]}} is needed'
            raise UserError(f"{path} is no evaluation index: {error or type(error).__name__}", hint) from None
        if not examples:
            raise UserError(f"{path} names no clip")
        return EvalIndex(examples)

    def __contains__(self, key: str) -> bool:
        return key in self.examples

    def frames(self, key: str) -> list[int]:
        """Every frame that the clip's example needs, sorted."""
        example = self.examples[key]
        return sorted({*example.context, *example.target})


def _example(value: Any) -> Example:
    context, target = ([int(frame) for frame in value[name]] for name in ("context", "target"))
    if not context or not target or min(context + target) < 0:
        raise ValueError(f"context {context[:8]} and target {target[:8]} name no frames")
    return Example(tuple(context), tuple(target))
