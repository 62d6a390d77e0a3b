"""Tokens that encoder_decoder keeps of a scene: edits of one scene, pairings of two, and interpolation between them.

A decoder normalises each token first (LayerNorm), so it sees the direction alone: the token less its mean, over its standard
deviation. No picture shows that mean and spread (`invisible`); edits that turn a token keep both.
All functions map scenes to scenes and need no model; `Subject.render` of subjects.py renders the result.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from ot.lp import emd
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from lvsm_train.models.blocks import EPS
from lvsm_train.models.lvsm import Latents

Path = Literal["linear", "slerp"]
PATHS: tuple[Path, ...] = ("linear", "slerp")


@dataclass(frozen=True)
class LatentScene:
    """One scene: an unordered set of N tokens, each of which counts so many times.

    tokens: (N, dim). weight: (N,), see EncoderDecoder.decode. frame: (4, 4), see model.LVSM: of a model with prope the camera,
    c2w, that the tokens were seen from; others have no use for it.
    """

    tokens: Tensor
    weight: Tensor
    frame: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def only(self, which: Tensor) -> LatentScene:
        """These tokens, in this order. which: (k,) numbers."""
        return dataclasses.replace(self, tokens=self.tokens[which], weight=self.weight[which])

    def with_tokens(self, which: Tensor, tokens: Tensor) -> LatentScene:
        """tokens (k, dim), or (dim,) for all of them, in the places `which` (k,)."""
        made = self.tokens.clone()
        made[which] = tokens.to(made)
        return dataclasses.replace(self, tokens=made)

    def with_weight(self, which: Tensor, weight: Tensor | float) -> LatentScene:
        """weight (k,), or one for all, in the places `which` (k,)."""
        made = self.weight.clone()
        made[which] = torch.as_tensor(weight).to(made)
        return dataclasses.replace(self, weight=made)


def scenes_of(latents: Latents) -> list[LatentScene]:
    """What `EncoderDecoder.encode` made of B scenes, one by one: every token counts once."""
    return [
        LatentScene(tokens, tokens.new_ones(len(tokens)), frame)
        for tokens, frame in zip(latents.tokens.float(), latents.frame, strict=True)
    ]


def joined(scenes: Sequence[LatentScene]) -> tuple[Latents, Tensor]:
    """B scenes for `EncoderDecoder.decode`: latents, and weights (B, N) for the largest N; smaller ones are filled up with tokens
    of weight 0, which are not there."""
    most = max(map(len, scenes))
    tokens = [functional.pad(scene.tokens, (0, 0, 0, most - len(scene))) for scene in scenes]
    weight = [functional.pad(scene.weight, (0, most - len(scene))) for scene in scenes]
    return Latents(torch.stack(tokens), torch.stack([scene.frame for scene in scenes])), torch.stack(weight)


# ---- what the decoder sees of a token, and what it does not


def direction(tokens: Tensor) -> Tensor:
    """(..., dim) -> the same with mean 0 and mean square 1: what the decoder makes of them before its gain."""
    return functional.layer_norm(tokens, tokens.shape[-1:], eps=EPS)


def invisible(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(..., dim) -> mean (...) and spread (...), with token = mean + spread * direction. The decoder sees neither.

    spread is the root of the variance and of the norm's 1e-5 together: a token whose variance is not large beside that is seen
    a little shorter than others.
    """
    return tokens.mean(-1), (tokens.var(-1, correction=0) + EPS).sqrt()


def turned(tokens: Tensor, directions: Tensor) -> Tensor:
    """Tokens (..., dim) with these directions (..., dim), but their own mean and spread."""
    mean, spread = invisible(tokens)
    return mean[..., None] + spread[..., None] * directions


def random_directions(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """(count, dim) on the CPU, evenly spread over all directions."""
    return direction(torch.randn(count, dim, generator=generator))


# ---- edits of one scene


def scale(scene: LatentScene, which: Tensor, factor: float) -> LatentScene:
    """Chosen tokens (k,) times a factor: above 0 only the spread changes, 0 leaves no direction, below 0 it is opposite."""
    return scene.with_tokens(which, scene.tokens[which] * factor)


def shift(scene: LatentScene, which: Tensor, amount: float) -> LatentScene:
    """The same number added to all values of chosen tokens (k,): their mean, which is not seen."""
    return scene.with_tokens(which, scene.tokens[which] + amount)


def rotate(scene: LatentScene, which: Tensor, towards: Tensor, angle: float) -> LatentScene:
    """Chosen tokens (k,) turned by `angle`, in radians, in the plane of their own direction and of `towards` (k, dim) or (dim,).

    Raises ValueError where `towards` is the direction of a token, or its opposite: there is no plane then.
    """
    own = direction(scene.tokens[which])
    aim = direction(towards.to(own)).expand_as(own)
    across = aim - own * ((aim * own).mean(-1, keepdim=True) / own.square().mean(-1, keepdim=True).clamp(min=1e-12))
    size = across.square().mean(-1, keepdim=True).sqrt()
    if bool((size < 1e-4).any()):
        raise ValueError("a token cannot be turned towards its own direction: choose another")
    made = math.cos(angle) * own + math.sin(angle) * across / size
    return scene.with_tokens(which, turned(scene.tokens[which], made))


def approach(scene: LatentScene, which: Tensor, towards: Tensor, share: float) -> LatentScene:
    """Chosen tokens (k,) turned by a share of their angle to `towards` (k, dim): 0 leaves them, 1 gives them its directions."""
    own = scene.tokens[which]
    return scene.with_tokens(which, turned(own, slerp(direction(own), direction(towards), share)))


def noise(scene: LatentScene, which: Tensor, share: float, generator: torch.Generator) -> LatentScene:
    """Directions of chosen tokens (k,) mixed with random ones. share: of the variance that is noise, 0 to 1; it stays 1 in all.

    Raises ValueError for another share.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share of {share}; it lies in [0, 1]")
    own = direction(scene.tokens[which])
    random = random_directions(len(own), own.shape[1], generator).to(own)
    return scene.with_tokens(which, turned(scene.tokens[which], (1 - share) ** 0.5 * own + share**0.5 * random))


def remove(scene: LatentScene, which: Tensor) -> LatentScene:
    """Without chosen tokens (k,): to the bit what weight 0 makes of them. Raises ValueError where none would stay."""
    stays = torch.ones(len(scene), dtype=torch.bool, device=scene.tokens.device)
    stays[which] = False
    if not bool(stays.any()):
        raise ValueError(f"all {len(scene)} tokens would be removed: leave one")
    return scene.only(stays.nonzero()[:, 0])


def keep(scene: LatentScene, order: Tensor, count: int) -> LatentScene:
    """The first `count` tokens of an order (N,), in the scene's own order."""
    return scene.only(order[:count].sort().values)


def add(scene: LatentScene, tokens: Tensor, weight: float = 1.0) -> LatentScene:
    """With further tokens (k, dim), each of this weight. With weight 0 they are not there."""
    more = scene.weight.new_full((len(tokens),), weight)
    return LatentScene(torch.cat([scene.tokens, tokens.to(scene.tokens)]), torch.cat([scene.weight, more]), scene.frame)


def duplicate(scene: LatentScene, which: Tensor, copies: int = 2, shared: bool = False) -> LatentScene:
    """Chosen tokens (k,) so many times. shared: copies share the weight of their token, which changes nothing."""
    weight = scene.weight[which] / copies if shared else scene.weight[which]
    more = scene.tokens[which].repeat(copies - 1, 1), weight.repeat(copies - 1)
    kept = scene.with_weight(which, weight)
    return LatentScene(torch.cat([kept.tokens, more[0]]), torch.cat([kept.weight, more[1]]), scene.frame)


def reorder(scene: LatentScene, order: Tensor) -> LatentScene:
    """The same tokens in another order (N,): the same set. Raises ValueError where `order` leaves one out."""
    if not torch.equal(order.sort().values, torch.arange(len(scene), device=order.device)):
        raise ValueError(f"an order of {len(scene)} tokens names each of them once")
    return scene.only(order)


def random_tokens(scene: LatentScene, count: int, generator: torch.Generator) -> Tensor:
    """(count, dim) of random directions, with the mean and spread that the scene's tokens have on average."""
    mean, spread = (each.mean() for each in invisible(scene.tokens))
    return mean + spread * random_directions(count, scene.tokens.shape[1], generator).to(scene.tokens)


# ---- pairings: which token of one scene becomes which of another
#
# Tokens are a set, and a picture does not depend on their order; the way from one scene to another does. A token without a
# partner fades in from weight 0, or out, so that scenes of different sizes can be paired too.


@dataclass(frozen=True)
class Pairing:
    """P pairs of a token of one scene and a token of another.

    first, second: (P,) their numbers, -1 where there is none. before, after: (P,) what a pair counts at the first scene and at
    the second. Over the pairs of a token these add up to its own weight.
    """

    first: Tensor
    second: Tensor
    before: Tensor
    after: Tensor

    def __len__(self) -> int:
        return len(self.first)


def costs(one: LatentScene, other: LatentScene) -> Tensor:
    """(N, M): 1 - cosine of the directions of every two tokens, 0 to 2."""
    a, b = (functional.normalize(each.tokens - each.tokens.mean(-1, keepdim=True), dim=-1) for each in (one, other))
    return 1 - a @ b.mT


def slot(one: LatentScene, other: LatentScene) -> Pairing:
    """The first with the first, and so on: by which of the model's learned latents they grew from. The rest of the larger scene
    has no partners."""
    same = torch.arange(min(len(one), len(other)))
    return _one_to_one(one, other, same, same)


def hungarian(one: LatentScene, other: LatentScene) -> Pairing:
    """One to one, with the least sum of `costs` (Kuhn 1955, by scipy): the rest of the larger scene has no partners."""
    rows, columns = linear_sum_assignment(costs(one, other).double().cpu().numpy())
    return _one_to_one(one, other, torch.from_numpy(rows), torch.from_numpy(columns))


def transport(
    one: LatentScene, other: LatentScene, mass: Tensor | None = None, other_mass: Tensor | None = None
) -> Pairing:
    """Optimal transport of mass under `costs`: exact, by network simplex (POT). A token may be split among several.

    mass (N,), other_mass (M,), positive: how much of a token is to be carried; default: its weight.
    They are taken as shares of their sums. Of equal masses and as many tokens it is an assignment. A pair counts, at either end,
    its share of the token's weight. N + M - 1 pairs at most. Raises ValueError for masses that are not positive.
    """
    a, b = (_shares(each, given) for each, given in ((one, mass), (other, other_mass)))
    plan = emd(a, b, costs(one, other).double().cpu().numpy(), numItermax=10_000_000)
    rows, columns = np.nonzero(plan)
    moved = plan[rows, columns]
    before = moved / plan.sum(1)[rows] * one.weight.double().cpu().numpy()[rows]
    after = moved / plan.sum(0)[columns] * other.weight.double().cpu().numpy()[columns]
    return Pairing(*(_like(one, each) for each in (rows, columns, before, after)))


def union(one: LatentScene, other: LatentScene) -> Pairing:
    """No pairs: all tokens of the first scene go by their weights, while all of the second come."""
    nobody = torch.arange(0)
    return _one_to_one(one, other, nobody, nobody)


PAIRINGS: dict[str, Callable[[LatentScene, LatentScene], Pairing]] = {
    "slot": slot,
    "hungarian": hungarian,
    "transport": transport,
    "union": union,
}


def _one_to_one(one: LatentScene, other: LatentScene, first: Tensor, second: Tensor) -> Pairing:
    """Pairs, then the tokens of the first scene that have no partner, then those of the second."""
    device = one.tokens.device
    first, second = first.to(device), second.to(device)
    left, right = _others(first, len(one)), _others(second, len(other))
    nothing = one.weight.new_zeros
    return Pairing(
        torch.cat([first, left, torch.full_like(right, -1)]),
        torch.cat([second, torch.full_like(left, -1), right]),
        torch.cat([one.weight[first], one.weight[left], nothing(len(right))]),
        torch.cat([other.weight[second], nothing(len(left)), other.weight[right]]),
    )


def _others(which: Tensor, count: int) -> Tensor:
    """The numbers below count that are not in `which`, ascending."""
    free = torch.ones(count, dtype=torch.bool, device=which.device)
    free[which] = False
    return free.nonzero()[:, 0]


def _shares(scene: LatentScene, given: Tensor | None) -> np.ndarray:
    mass = (scene.weight if given is None else given).detach().double().cpu().numpy()
    if mass.shape != (len(scene),) or not (np.isfinite(mass) & (mass > 0)).all():
        raise ValueError(f"masses of {mass.shape} for {len(scene)} tokens: give each a positive one, or remove it")
    shares: np.ndarray = mass / mass.sum()
    return shares


def _like(scene: LatentScene, values: np.ndarray) -> Tensor:
    made = torch.from_numpy(values).to(scene.tokens.device)
    return made.to(scene.weight.dtype) if made.is_floating_point() else made


# ---- exchange and interpolation


def swap(
    one: LatentScene, other: LatentScene, which: Tensor, counterpart: Tensor | None = None
) -> tuple[LatentScene, LatentScene]:
    """Both scenes with tokens exchanged, and their weights: `which` (k,) of one for `counterpart` (k,) of the other.

    counterpart: None for the same numbers. Frames stay. The same again takes it back.
    """
    there = which if counterpart is None else counterpart
    return (
        one.with_tokens(which, other.tokens[there]).with_weight(which, other.weight[there]),
        other.with_tokens(there, one.tokens[which]).with_weight(there, one.weight[which]),
    )


def interpolate(one: LatentScene, other: LatentScene, pairing: Pairing, t: float, path: Path = "linear") -> LatentScene:
    """On the way from one scene, at t = 0, to the other, at t = 1, in the frame of the first.

    Each pair moves from the token that it has in one to that of the other; its weight goes evenly from what it counts there to
    what it counts here, and what has no partner stays where it is. Directions are mixed, so that spreads, which nobody sees, do
    not decide how fast: `linear` along the chord, `slerp` along the arc at an even speed. Both pass the same directions. The
    ends are the scenes themselves. Raises ValueError for t outside [0, 1].
    """
    if not 0 <= t <= 1:
        raise ValueError(f"t is {t}; it lies in [0, 1]")
    if t in (0, 1):
        return one if t == 0 else dataclasses.replace(other, frame=one.frame)
    first, second = pairing.first, pairing.second
    start = torch.where((first >= 0)[:, None], one.tokens[first.clamp(min=0)], other.tokens[second.clamp(min=0)])
    end = torch.where((second >= 0)[:, None], other.tokens[second.clamp(min=0)], one.tokens[first.clamp(min=0)])
    mixed = (
        slerp(direction(start), direction(end), t)
        if path == "slerp"
        else torch.lerp(direction(start), direction(end), t)
    )
    mean, spread = (torch.lerp(a, b, t) for a, b in zip(invisible(start), invisible(end), strict=True))
    weight = torch.lerp(pairing.before, pairing.after, t)
    return LatentScene(mean[:, None] + spread[:, None] * mixed, weight, one.frame)


def slerp(one: Tensor, other: Tensor, t: float) -> Tensor:
    """Vectors (..., dim) of equal length -> at the share t of the shortest arc (Shoemake 1985), as long as they are.

    Where they are nearly the same or nearly opposite the chord stands for the arc.
    """
    apart, together = torch.linalg.vector_norm(one - other, dim=-1), torch.linalg.vector_norm(one + other, dim=-1)
    angle = 2 * torch.atan2(apart, together)[..., None]
    sine = angle.sin()
    flat = sine.abs() < 1e-4
    safe = torch.where(flat, 1, sine)
    arc = ((1 - t) * angle).sin() / safe * one + (t * angle).sin() / safe * other
    return torch.where(flat, torch.lerp(one, other, t), arc)
