"""Operations on the tokens of one scene, each at several strengths, and on those of two: exchange and interpolation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from lvsm_train.latent import latents
from lvsm_train.latent.latents import LatentScene, Pairing
from lvsm_train.latent.study import Step, Study
from lvsm_train.latent.subjects import Subject
from lvsm_train.latent.workbench import Bench
from lvsm_train.losses.metrics import psnr

SHARES = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))
ANGLES_DEG = (5, 15, 30, 60, 90, 180)
QUARTERS = (0.25, 0.5, 0.75, 1.0)
NOISE = (0.01, 0.03, 0.1, 0.3, 0.6, 1.0)
ROWS = 9  # in the picture of an interpolation
SAYS = {
    "slot": "Each token goes to the one that grew from the same learned latent.",
    "hungarian": "Each token goes to one of its own, so that the sum of 1 - cosine is least.",
    "transport": "Tokens have masses, the more the more pictures change without them; mass travels as little as it can; a token "
    "may be split among several.",
    "union": "No token moves: those of the first object go by their weights, while those of the second come.",
}


# ---- of one scene


def values(bench: Bench, subject: Subject) -> list[Study]:
    """Multiply the chosen tokens, shift their means, and set them to other tokens."""
    scene, which = subject.scene, bench.chosen(subject)
    spread = float(latents.invisible(scene.tokens)[1].mean())
    mean = latents.direction(scene.tokens).mean(0)
    variants = [(f"times {factor:g}", factor, latents.scale(scene, which, factor)) for factor in (0.5, 2.0, 8.0)]
    variants.append(("mean moved", spread, latents.shift(scene, which, spread)))
    variants += [(f"times {factor:g}", factor, latents.scale(scene, which, factor)) for factor in (0.0, -1.0)]
    variants.append(("set to mean", 1.0, scene.with_tokens(which, mean)))
    variants.append(("set to first", 1.0, scene.with_tokens(which, scene.tokens[which[0]])))
    says = (
        f"{_count(which, scene)} were multiplied by a number, moved along their mean by one standard deviation, set to the mean "
        "direction of all tokens, and to the first of them. A decoder sees directions alone: what scales a token by a number "
        "above 0 or moves its mean is invisible; 0 leaves no direction, and -1 turns it round."
    )
    return [bench.study(subject, "values", "Other values", says, variants)]


def rotate(bench: Bench, subject: Subject) -> list[Study]:
    """Rotate the chosen tokens towards random directions, and towards another object's tokens in the same slots."""
    scene, which = subject.scene, bench.chosen(subject)
    random = latents.random_directions(len(which), scene.tokens.shape[1], bench.generator(f"rotate {subject.uid}"))
    variants = [
        (f"{angle} degrees", float(angle), latents.rotate(scene, which, random.to(scene.tokens), math.radians(angle)))
        for angle in ANGLES_DEG
    ]
    says = f"{_count(which, scene)} were turned, each towards a random direction, by an angle; means and spreads stay."
    made = [bench.study(subject, "rotate", "Other directions", says, variants)]
    if other := bench.partner(subject):
        aim = other.scene.tokens[which]
        variants = [
            (f"{share:.0%} of the arc", share, latents.approach(scene, which, aim, share)) for share in QUARTERS
        ]
        says = f"{_count(which, scene)} were turned towards the tokens that another object has in the same slots."
        made.append(bench.study(subject, "rotate-other", "Towards another object's directions", says, variants))
    return made


def noise(bench: Bench, subject: Subject) -> list[Study]:
    """Add noise to all tokens, and to the chosen ones."""
    scene, made = subject.scene, []
    every = torch.arange(len(scene), device=scene.tokens.device)
    for name, title, which in (
        ("noise", "Noise in all tokens", every),
        ("noise-chosen", "Noise in chosen tokens", bench.chosen(subject)),
    ):
        variants = [
            (f"{share:.0%} noise", share, latents.noise(scene, which, share, bench.generator(f"{name} {subject.uid}")))
            for share in NOISE
        ]
        says = (
            f"{_count(which, scene)} had a share of their directions' variance replaced by noise, the same in each row."
        )
        made.append(bench.study(subject, name, title, says, variants))
    return made


def remove(bench: Bench, subject: Subject) -> list[Study]:
    """Fade the chosen tokens by their weight, and remove ever more of the strongest."""
    scene, which = subject.scene, bench.chosen(subject)
    variants = [
        (f"weight {weight:g}", weight, scene.with_weight(which, weight)) for weight in (4.0, 2.0, 0.5, 0.25, 0.1, 0.0)
    ]
    says = f"{_count(which, scene)} count more or less often: at weight 0 they are not there."
    faded = bench.study(subject, "fade", "Weights", says, variants)
    order = bench.strongest(subject)
    counts = [count for count in _powers_of_two(len(scene)) if count < len(scene)]
    variants = [(f"without {count}", float(count), latents.remove(scene, order[:count])) for count in counts]
    says = "Tokens were removed, those first without which alone pictures change most."
    return [faded, bench.study(subject, "remove", "Without the strongest tokens", says, variants)]


def keep(bench: Bench, subject: Subject) -> list[Study]:
    """Keep shares of the tokens, in four orders."""
    scene = subject.scene
    strongest = bench.strongest(subject)
    norm = torch.linalg.vector_norm(scene.tokens, dim=1).argsort(descending=True, stable=True)
    orders = {
        "random": ("Random tokens kept", "Which ones is the seed's.", bench.order(subject, "keep")),
        "strongest": ("The strongest tokens kept", "First those without which alone pictures change most.", strongest),
        "weakest": (
            "The weakest tokens kept",
            "First those without which alone pictures change least.",
            strongest.flip(0),
        ),
        "norm": ("The longest tokens kept", "First those of the largest norm, which no decoder sees.", norm),
    }
    made = []
    for name, (title, first, order) in orders.items():
        counts = [max(1, round(share * len(scene))) for share in SHARES]
        variants = [
            (f"{count} of {len(scene)}", share, latents.keep(scene, order, count))
            for share, count in zip(SHARES, counts, strict=True)
        ]
        made.append(bench.study(subject, f"keep-{name}", title, f"Only so many tokens stay. {first}", variants))
    return made


def add(bench: Bench, subject: Subject) -> list[Study]:
    """Add random tokens, and another object's."""
    scene, counts = subject.scene, _powers_of_two(len(subject.scene))[::2]
    more = latents.random_tokens(scene, len(scene), bench.generator(f"add {subject.uid}"))
    variants = [(f"{len(more)} of weight 0", 0.0, latents.add(scene, more, 0.0))]
    variants += [(f"{count} more", float(count), latents.add(scene, more[:count])) for count in counts]
    says = "Random directions were added, as long as the scene's tokens are on average. Of weight 0 they are not there."
    made = [bench.study(subject, "add", "Random tokens added", says, variants)]
    if other := bench.partner(subject):
        theirs = other.scene.tokens[bench.order(other, "add")]
        variants = [(f"{count} more", float(count), latents.add(scene, theirs[:count])) for count in counts]
        says = "Tokens of another object were added to all of the scene's own."
        made.append(bench.study(subject, "add-other", "Another object's tokens added", says, variants))
    return made


def duplicate(bench: Bench, subject: Subject) -> list[Study]:
    """Duplicate tokens: copies of full weight, and copies that split the weight."""
    scene, which = subject.scene, bench.chosen(subject)
    every = torch.arange(len(scene), device=scene.tokens.device)
    variants = [
        ("chosen, halves", 2.0, latents.duplicate(scene, which, 2, shared=True)),
        ("all, halves", 2.0, latents.duplicate(scene, every, 2, shared=True)),
        ("chosen, twice", 2.0, latents.duplicate(scene, which, 2)),
        ("chosen, 4 times", 4.0, latents.duplicate(scene, which, 4)),
        ("all, twice", 2.0, latents.duplicate(scene, every, 2)),
    ]
    says = (
        f"{_count(which, scene)}, and all of them, were doubled. Halves have weight 1/2 each and are what the token was; whole "
        "copies count twice, so that attention looks more at them."
    )
    return [bench.study(subject, "duplicate", "Copies", says, variants)]


def reorder(bench: Bench, subject: Subject) -> list[Study]:
    """Reverse and shuffle the order of the tokens."""
    scene = subject.scene
    order = bench.order(subject, "reorder")
    variants = [
        ("reversed", 0.0, latents.reorder(scene, order.sort().values.flip(0))),
        ("shuffled", 1.0, latents.reorder(scene, order)),
    ]
    says = (
        "Tokens have no place but in the tensor that holds them, and attention sums over them: their order is not seen."
    )
    return [bench.study(subject, "reorder", "Another order", says, variants)]


EDITS: dict[str, Callable[[Bench, Subject], list[Study]]] = {
    "reorder": reorder,
    "values": values,
    "rotate": rotate,
    "noise": noise,
    "remove": remove,
    "keep": keep,
    "add": add,
    "duplicate": duplicate,
}


def _count(which: Tensor, scene: LatentScene) -> str:
    return f"{len(which)} of {len(scene)} tokens"


def _powers_of_two(limit: int) -> list[int]:
    return [2**power for power in range(limit.bit_length())]


# ---- of two scenes


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
        pairs = _tensors(f"pairing/{name}", plan)
        for path in ("linear",) if name == "union" else bench.cfg.paths:  # without motion, paths are equal
            title = f"From one object to another: {name}" + ("" if name == "union" else f", {path}")
            way = _way(bench, (one, other), theirs, plan, path, f"{name}-{path}", title, SAYS[name])
            made.append(dataclasses.replace(way, tensors=pairs))
    half = bench.order(other, "sizes")[: max(1, len(theirs) // 2)]
    few = theirs.only(half)
    for name in bench.cfg.pairings:
        says = (
            f"From {len(one.scene)} tokens to {len(few)}, a random half of the second object's. {SAYS[name]} What has no partner "
            "comes or goes by its weight; both ends are exact."
        )
        title = f"Different numbers of tokens: {name}"
        plan = paired(bench, name, one, other, half)
        way = _way(bench, (one, other), few, plan, "linear", f"sizes-{name}", title, says)
        made.append(dataclasses.replace(way, tensors=_tensors(f"sizes/{name}", plan) | {"sizes/tokens": half}))
    return made


def _tensors(name: str, plan: Pairing) -> dict[str, Tensor]:
    return {f"{name}/{part}": values for part, values in vars(plan).items()}


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
