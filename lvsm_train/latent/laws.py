"""Invariances of a scene's tokens that hold by construction, measured on a trained model, and similar edits that do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lvsm_train.latent import latents
from lvsm_train.latent.latents import Pairing
from lvsm_train.latent.operations import paired
from lvsm_train.latent.subjects import Subject
from lvsm_train.latent.workbench import Bench

ROUNDING = 1e-5  # change of a picture's value that float32 rounding may cause


@dataclass(frozen=True)
class Law:
    """An invariance. says: what was done. bound: greatest allowed change of a value in [0, 1], None if nothing is promised.
    largest: greatest measured change."""

    says: str
    bound: float | None
    largest: float

    @property
    def holds(self) -> bool | None:
        """True if `largest` is within the bound; None if nothing is promised."""
        return None if self.bound is None else self.largest <= self.bound

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"holds": self.holds}


def laws(bench: Bench) -> list[Law]:
    """Measure the invariances of the first object, and of interpolation to the second. A bound of 0 means bit equality."""
    return [*_of_one(bench, bench.subjects[0]), *_of_two(bench)]


def _of_one(bench: Bench, subject: Subject) -> Iterator[Law]:
    scene = subject.scene
    unedited = subject.render(bench.net)
    every = torch.arange(len(scene), device=scene.tokens.device)
    some = bench.order(subject, "laws")[: max(1, len(scene) // 4)]
    foreign = latents.random_tokens(scene, 5, bench.generator("laws"))

    def changed(made: latents.LatentScene) -> float:
        return float((subject.render(bench.net, made) - unedited).abs().max())

    without = subject.render(bench.net, latents.remove(scene, some)) if len(some) < len(scene) else unedited
    weightless = subject.render(bench.net, scene.with_weight(some, 0.0)) if len(some) < len(scene) else unedited
    yield Law("tokens shuffled", ROUNDING, changed(latents.reorder(scene, bench.order(subject, "laws"))))
    yield Law("all tokens times 1/2", ROUNDING, changed(latents.scale(scene, every, 0.5)))
    yield Law("all tokens times 8", ROUNDING, changed(latents.scale(scene, every, 8.0)))
    yield Law("1 added to all values of all tokens", ROUNDING, changed(latents.shift(scene, every, 1.0)))
    yield Law("5 random tokens of weight 0 added", 0.0, changed(latents.add(scene, foreign, 0.0)))
    yield Law(f"weight 0 for {len(some)} tokens, against their removal", 0.0, float((without - weightless).abs().max()))
    yield Law(
        "all tokens in two halves of weight 1/2", ROUNDING, changed(latents.duplicate(scene, every, 2, shared=True))
    )
    yield Law(f"{len(some)} tokens twice", None, changed(latents.duplicate(scene, some)))
    yield Law("5 random tokens added", None, changed(latents.add(scene, foreign)))
    yield Law("a token of zeros added", None, changed(latents.add(scene, torch.zeros_like(scene.tokens[:1]))))


def _of_two(bench: Bench) -> Iterator[Law]:
    if len(bench.subjects) < 2:
        return
    one, other = bench.subjects[:2]
    theirs = dataclasses.replace(other.scene, frame=one.scene.frame)
    ends = one.render(bench.net), one.render(bench.net, theirs)
    near = 1e-7
    for name in bench.cfg.pairings:
        plan = paired(bench, name, one, other)

        def gap(t: float, plan: Pairing = plan) -> float:
            made = one.render(bench.net, latents.interpolate(one.scene, theirs, plan, t))
            return float((made - ends[round(t)]).abs().max())

        yield Law(f"{name} at t = 0 and 1, against the scenes", 0.0, max(gap(0.0), gap(1.0)))
        yield Law(
            f"{name} at t = {near:g} and 1 - {near:g}, against the scenes",
            1e-4,
            max(gap(near), gap(1 - near)),
        )
