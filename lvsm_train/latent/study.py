"""What an operation on latents shows: renders at several strengths beside the one without it, and how far they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lvsm_train.evaluation.scores import finite, in_parts
from lvsm_train.losses.metrics import Lpips, psnr


@dataclass(frozen=True)
class Step:
    """One strength of an operation. label: what stands beside its pictures (T, 3, H, W). value: the strength, as a number."""

    label: str
    value: float
    image: Tensor


@dataclass(frozen=True)
class Study:
    """An operation on an object, or two.

    name: of its files, the same for all objects. says: what was done. unedited: (T, 3, H, W) what `steps` are compared with.
    goal: the same for a second object. frames: (F, T, 3, H, W) of a film. facts: further numbers.
    """

    name: str
    title: str
    says: str
    uids: tuple[str, ...]
    unedited: Tensor
    steps: list[Step]
    goal: Tensor | None = None
    frames: Tensor | None = None
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """How far renders (T, 3, H, W) are from others. psnr: of each view, dB, inf where no bit differs. lpips: of each view, None
    where it was not measured. largest: the greatest difference of a value in [0, 1]."""

    psnr: list[float]
    lpips: list[float] | None
    largest: float

    @property
    def mean_psnr(self) -> float:
        """Of the views that differ; inf where none does."""
        differ = [each for each in self.psnr if math.isfinite(each)]
        return sum(differ) / len(differ) if differ else math.inf

    @property
    def mean_lpips(self) -> float | None:
        """Of all views."""
        return None if self.lpips is None else sum(self.lpips) / len(self.lpips)

    def as_json(self) -> dict[str, Any]:
        """PSNRs of equal pictures are null."""
        return {
            "psnr": finite(self.mean_psnr),
            "lpips": self.mean_lpips,
            "largest_change": self.largest,
            "psnr_views": finite(self.psnr),
            "lpips_views": self.lpips,
        }


def change(image: Tensor, other: Tensor, lpips: Lpips | None) -> Change:
    """Renders against others, (T, 3, H, W) both."""
    perceived = None if lpips is None else in_parts(lpips, image, other).tolist()
    return Change(psnr(image, other).tolist(), perceived, float((image - other).abs().max()))


def measure(study: Study, lpips: Lpips | None) -> dict[str, Any]:
    """A study as JSON: every step against the unedited render, and against the second object's where there is one."""
    steps = []
    for step in study.steps:
        told = {"label": step.label, "value": step.value} | change(step.image, study.unedited, lpips).as_json()
        if study.goal is not None:
            told["to_second"] = change(step.image, study.goal, lpips).as_json()
        steps.append(told)
    return {"name": study.name, "title": study.title, "objects": list(study.uids), "steps": steps} | study.facts


def mean_of(told: Sequence[float | None]) -> float | None:
    """Of the numbers among these; None where there are none."""
    numbers = [each for each in told if each is not None]
    return sum(numbers) / len(numbers) if numbers else None
