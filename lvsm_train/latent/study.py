"""Studies: renders of an operation at several strengths, and their differences from the unedited renders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lvsm_train.evaluation.scores import finite, in_parts
from lvsm_train.losses.metrics import Lpips, psnr


@dataclass(frozen=True)
class Step:
    """One strength of an operation. label: row label of the renders `image` (T, 3, H, W). value: strength as a number."""

    label: str
    value: float
    image: Tensor


@dataclass(frozen=True)
class Study:
    """An operation on one object or two.

    name: stem of files, equal for all objects. says: caption. unedited, goal: renders (T, 3, H, W) of the first and second
    object, with which `steps` are compared. frames: (F, T, 3, H, W) of a film. facts: further numbers. tensors: of
    latent.safetensors.
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
    tensors: dict[str, Tensor] = field(default_factory=dict)


def change(image: Tensor, other: Tensor, lpips: Lpips | None) -> dict[str, Any]:
    """Difference of renders from others, (T, 3, H, W) both, for latent.json.

    psnr: mean, dB, over the views that differ, None if none does. lpips: mean over all views, None if not measured.
    largest_change: of a value in [0, 1]. psnr_views, lpips_views: of each view, None for a PSNR of equal views.
    """
    decibels = finite(psnr(image, other).tolist())
    perceived = None if lpips is None else in_parts(lpips, image, other).tolist()
    return {
        "psnr": mean_of(decibels),
        "lpips": mean_of(perceived or ()),
        "largest_change": float((image - other).abs().max()),
        "psnr_views": decibels,
        "lpips_views": perceived,
    }


def measure(study: Study, lpips: Lpips | None) -> dict[str, Any]:
    """Study as JSON: every step against the unedited renders, and against the second object's, if any."""
    steps = []
    for step in study.steps:
        entry = {"label": step.label, "value": step.value} | change(step.image, study.unedited, lpips)
        if study.goal is not None:
            entry["to_second"] = change(step.image, study.goal, lpips)
        steps.append(entry)
    return {"name": study.name, "title": study.title, "objects": list(study.uids), "steps": steps} | study.facts


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are not None; None if there are none."""
    numbers = [each for each in values if each is not None]
    return sum(numbers) / len(numbers) if numbers else None
