"""Operations on the tokens of two scenes: exchange and interpolation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from lvsm_train.latent import latents
from lvsm_train.latent.edits import SHARES
from lvsm_train.latent.latents import LatentScene, Pairing
from lvsm_train.latent.study import Step, Study
from lvsm_train.latent.subjects import Subject
from lvsm_train.latent.workbench import Bench
from lvsm_train.losses.metrics import psnr

ROWS = 9  # in the picture of an interpolation
SAYS = {
    "slot": "Each token goes to the one that grew from the same learned latent.",
    "hungarian": "Each token goes to one of its own, so that the sum of 1 - cosine is least.",
    "transport": "Tokens have masses, the more the more pictures change without them; mass travels as little as it can; a token "
    "may be split among several.",
    "union": "No token moves: those of the first object go by their weights, while those of the second come.",
}


def swap(bench: Bench, one: Subject, other: Subject) -> list[Study]:
    """Exchange ever more tokens of one object for the other's: by slot, and by the Hungarian assignment."""
    theirs = _in_frame_of(other, one)
    order = bench.order(one, "swap")
    plan = latents.hungarian(one.scene, theirs)
    partner = torch.empty_like(order)
    partner[plan.first] = plan.second
    made = []
    for name, title, counterpart in (
        ("swap", "Tokens exchanged by slot", order),
        ("swap-hungarian", "Tokens exchanged by the assignment", partner[order]),
    ):
        counts = [round(share * len(order)) for share in (*SHARES, 1.0)]
        mixed = [latents.swap(one.scene, theirs, order[:count], counterpart[:count])[0] for count in counts]
        steps = [
            Step(f"{count} of {len(order)}", count / len(order), one.render(bench.net, scene))
            for count, scene in zip(counts, mixed, strict=True)
        ]
        says = "Random tokens of the first object were exchanged for tokens of the second: in the last row all of them."
        goal = one.render(bench.net, theirs)
        made.append(Study(name, title, says, (one.uid, other.uid), one.render(bench.net), steps, goal))
    return made


def interpolate(bench: Bench, one: Subject, other: Subject) -> list[Study]:
    """Interpolate between two scenes by cfg's pairings and paths, and between the first and half of the second."""
    theirs = _in_frame_of(other, one)
    made = []
    for name in bench.cfg.pairings:
        plan = paired(bench, name, one, other)
        for path in ("linear",) if name == "union" else bench.cfg.paths:  # without motion, paths are equal
            title = f"From one object to another: {name}" + ("" if name == "union" else f", {path}")
            made.append(_way(bench, (one, other), theirs, plan, path, f"{name}-{path}", title, SAYS[name]))
    half = bench.order(other, "sizes")[: max(1, len(theirs) // 2)]
    few = theirs.only(half)
    for name in bench.cfg.pairings:
        says = (
            f"From {len(one.scene)} tokens to {len(few)}, a random half of the second object's. {SAYS[name]} What has no partner "
            "comes or goes by its weight; both ends are exact."
        )
        title = f"Different numbers of tokens: {name}"
        plan = paired(bench, name, one, other, half)
        made.append(_way(bench, (one, other), few, plan, "linear", f"sizes-{name}", title, says))
    return made


def paired(bench: Bench, name: str, one: Subject, other: Subject, of_other: Tensor | None = None) -> Pairing:
    """Pairing by its name in PAIRINGS, with all tokens of the other object or `of_other` (k,). Masses of transport are the
    tokens' influence (`Bench.strength`)."""
    which = torch.arange(len(other.scene), device=other.scene.tokens.device) if of_other is None else of_other
    theirs = other.scene.only(which)
    if name != "transport":
        return latents.PAIRINGS[name](one.scene, theirs)
    mass, other_mass = (bench.strength(each).mean(1).clamp(min=1e-6) for each in (one, other))
    return latents.transport(one.scene, theirs, mass, other_mass[which])


MIXTURES: dict[str, Callable[[Bench, Subject, Subject], list[Study]]] = {"swap": swap, "interpolate": interpolate}


def _way(
    bench: Bench,
    uids: tuple[Subject, Subject],
    theirs: LatentScene,
    plan: Pairing,
    path: latents.Path,
    name: str,
    title: str,
    says: str,
) -> Study:
    one = uids[0]

    def at(t: float) -> Tensor:
        return one.render(bench.net, latents.interpolate(one.scene, theirs, plan, t, path))

    steps = [Step(f"t = {row / (ROWS - 1):.3g}", row / (ROWS - 1), at(row / (ROWS - 1))) for row in range(ROWS)]
    count = bench.cfg.frames
    frames = torch.stack([at(frame / (count - 1)) for frame in range(count)])
    faded = torch.lerp(steps[0].image, steps[-1].image, 0.5)
    facts: dict[str, float] = _pace(frames) | {"pairs": len(plan)}
    if math.isfinite(fade_psnr := float(psnr(at(0.5), faded).mean())):
        facts["psnr_to_cross_fade"] = fade_psnr
    both = (plan.first >= 0) & (plan.second >= 0)
    if bool(both.any()):
        cost = latents.costs(one.scene, theirs)[plan.first[both], plan.second[both]]
        facts["mean_angle_deg"] = float((1 - cost).clamp(-1, 1).acos().rad2deg().mean())
    ends = steps[0].image, steps[-1].image
    return Study(name, title, says, tuple(each.uid for each in uids), ends[0], steps, ends[1], frames, facts)


def _pace(frames: Tensor) -> dict[str, float]:
    """Evenness of a film's frames (F, ...), from RMS changes between frames. detour: their sum over the change from first to last
    frame (1 is shortest). unevenness: the largest over their mean (1 is even)."""
    changes = (frames[1:] - frames[:-1]).square().flatten(1).mean(1).sqrt()
    straight = (frames[-1] - frames[0]).square().mean().sqrt().clamp(min=1e-9)
    mean = changes.mean().clamp(min=1e-9)
    return {"detour": float(changes.sum() / straight), "unevenness": float(changes.max() / mean)}


def _in_frame_of(other: Subject, one: Subject) -> LatentScene:
    """Scene of `other` in the frame of `one`, as if both first cameras stood at one place."""
    return dataclasses.replace(other.scene, frame=one.scene.frame)
