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
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from lvsm_train.models.blocks import EPS
from lvsm_train.models.lvsm import Latents

Path = Literal["linear", "slerp"]
PATHS: tuple[Path, ...] = ("linear", "slerp")


@dataclass(frozen=True)
class LatentScene:
    """One scene: an unordered set of N tokens with weights.

    tokens: (N, dim). weight: (N,), multiplicities, see EncoderDecoder.decode. frame: (4, 4), see models.lvsm.LVSM: c2w of the
    first input camera, for models with prope; unused by others.
    """

    tokens: Tensor
    weight: Tensor
    frame: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def only(self, which: Tensor) -> LatentScene:
        """Keep the tokens `which` (k,), in that order."""
        return dataclasses.replace(self, tokens=self.tokens[which], weight=self.weight[which])

    def with_tokens(self, which: Tensor, tokens: Tensor) -> LatentScene:
        """Replace the tokens `which` (k,) by `tokens` (k, dim), or all of them by one (dim,)."""
        made = self.tokens.clone()
        made[which] = tokens.to(made)
        return dataclasses.replace(self, tokens=made)

    def with_weight(self, which: Tensor, weight: Tensor | float) -> LatentScene:
        """Replace the weights of the tokens `which` (k,) by `weight` (k,), or by one number."""
        made = self.weight.clone()
        made[which] = torch.as_tensor(weight).to(made)
        return dataclasses.replace(self, weight=made)


def scenes_of(latents: Latents) -> list[LatentScene]:
    """Split latents of B scenes (`EncoderDecoder.encode`) into single scenes, all weights 1."""
    return [
        LatentScene(tokens, tokens.new_ones(len(tokens)), frame)
        for tokens, frame in zip(latents.tokens.float(), latents.frame, strict=True)
    ]


def collate(scenes: Sequence[LatentScene]) -> tuple[Latents, Tensor]:
    """Batch B scenes for `EncoderDecoder.decode`: latents and weights (B, N), padded to the largest N by tokens of weight 0."""
    most = max(map(len, scenes))
    tokens = [functional.pad(scene.tokens, (0, 0, 0, most - len(scene))) for scene in scenes]
    weight = [functional.pad(scene.weight, (0, most - len(scene))) for scene in scenes]
    return Latents(torch.stack(tokens), torch.stack([scene.frame for scene in scenes])), torch.stack(weight)


# ---- directions, which the decoder sees, and means and spreads, which it does not


def direction(tokens: Tensor) -> Tensor:
    """Normalise tokens (..., dim) to mean 0 and mean square 1: the decoder's LayerNorm without its gain."""
    return functional.layer_norm(tokens, tokens.shape[-1:], eps=EPS)


def invisible(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (...) and spread (...) of tokens (..., dim), with token = mean + spread * direction. The decoder sees neither.

    spread = sqrt(variance + EPS): a token whose variance is not large beside EPS has a slightly shorter direction.
    """
    return tokens.mean(-1), (tokens.var(-1, correction=0) + EPS).sqrt()


def with_directions(tokens: Tensor, directions: Tensor) -> Tensor:
    """Replace the directions of tokens (..., dim), keeping their means and spreads."""
    mean, spread = invisible(tokens)
    return mean[..., None] + spread[..., None] * directions


def random_directions(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """Uniformly distributed random directions (count, dim), on the CPU."""
    return direction(torch.randn(count, dim, generator=generator))


# ---- edits of one scene


def scale(scene: LatentScene, which: Tensor, factor: float) -> LatentScene:
    """Multiply the tokens `which` (k,): above 0 only spreads change, 0 leaves no direction, below 0 directions flip."""
    return scene.with_tokens(which, scene.tokens[which] * factor)


def shift(scene: LatentScene, which: Tensor, amount: float) -> LatentScene:
    """Add a number to all values of the tokens `which` (k,): only their means change, which the decoder does not see."""
    return scene.with_tokens(which, scene.tokens[which] + amount)


def rotate(scene: LatentScene, which: Tensor, towards: Tensor, angle: float) -> LatentScene:
    """Rotate the tokens `which` (k,) by `angle`, radians, in the plane of their direction and `towards` (k, dim) or (dim,).

    Raises ValueError if `towards` is parallel to a token's direction, since there is no plane then.
    """
    own = direction(scene.tokens[which])
    aim = direction(towards.to(own)).expand_as(own)
    across = aim - own * ((aim * own).mean(-1, keepdim=True) / own.square().mean(-1, keepdim=True).clamp(min=1e-12))
    size = across.square().mean(-1, keepdim=True).sqrt()
    if bool((size < 1e-4).any()):
        raise ValueError("a token cannot be turned towards its own direction: choose another")
    made = math.cos(angle) * own + math.sin(angle) * across / size
    return scene.with_tokens(which, with_directions(scene.tokens[which], made))


def approach(scene: LatentScene, which: Tensor, towards: Tensor, share: float) -> LatentScene:
    """Rotate the tokens `which` (k,) by a share of their angle to `towards` (k, dim): 0 is no change, 1 its directions."""
    own = scene.tokens[which]
    return scene.with_tokens(which, with_directions(own, slerp(direction(own), direction(towards), share)))


def noise(scene: LatentScene, which: Tensor, share: float, generator: torch.Generator) -> LatentScene:
    """Mix directions of the tokens `which` (k,) with random ones. share: noise's part of the variance, which stays 1 in total.

    Raises ValueError for a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share of {share}; it lies in [0, 1]")
    own = direction(scene.tokens[which])
    random = random_directions(len(own), own.shape[1], generator).to(own)
    return scene.with_tokens(
        which, with_directions(scene.tokens[which], (1 - share) ** 0.5 * own + share**0.5 * random)
    )


def remove(scene: LatentScene, which: Tensor) -> LatentScene:
    """Remove the tokens `which` (k,), bit for bit as with weight 0. Raises ValueError if no token would remain."""
    stays = torch.ones(len(scene), dtype=torch.bool, device=scene.tokens.device)
    stays[which] = False
    if not bool(stays.any()):
        raise ValueError(f"all {len(scene)} tokens would be removed: leave one")
    return scene.only(stays.nonzero()[:, 0])


def keep(scene: LatentScene, order: Tensor, count: int) -> LatentScene:
    """Keep the first `count` tokens of an order (N,), in the scene's own order."""
    return scene.only(order[:count].sort().values)


def add(scene: LatentScene, tokens: Tensor, weight: float = 1.0) -> LatentScene:
    """Append tokens (k, dim) of a weight; weight 0 changes nothing."""
    more = scene.weight.new_full((len(tokens),), weight)
    return LatentScene(torch.cat([scene.tokens, tokens.to(scene.tokens)]), torch.cat([scene.weight, more]), scene.frame)


def duplicate(scene: LatentScene, which: Tensor, copies: int = 2, shared: bool = False) -> LatentScene:
    """Repeat the tokens `which` (k,) `copies` times. shared: copies split their token's weight, which changes nothing."""
    weight = scene.weight[which] / copies if shared else scene.weight[which]
    more = scene.tokens[which].repeat(copies - 1, 1), weight.repeat(copies - 1)
    kept = scene.with_weight(which, weight)
    return LatentScene(torch.cat([kept.tokens, more[0]]), torch.cat([kept.weight, more[1]]), scene.frame)


def reorder(scene: LatentScene, order: Tensor) -> LatentScene:
    """Permute the tokens by `order` (N,), which leaves the set unchanged. Raises ValueError if `order` is no permutation."""
    if not torch.equal(order.sort().values, torch.arange(len(scene), device=order.device)):
        raise ValueError(f"an order of {len(scene)} tokens names each of them once")
    return scene.only(order)


def random_tokens(scene: LatentScene, count: int, generator: torch.Generator) -> Tensor:
    """Tokens (count, dim) of random directions, with the average mean and spread of the scene's tokens."""
    mean, spread = (each.mean() for each in invisible(scene.tokens))
    return mean + spread * random_directions(count, scene.tokens.shape[1], generator).to(scene.tokens)


# ---- pairings: which token of one scene becomes which of another
#
# Tokens are a set, and a picture does not depend on their order; the way from one scene to another does. A token without a
# partner fades in from weight 0, or out, so that scenes of different sizes can be paired too.


@dataclass(frozen=True)
class Pairing:
    """P pairs of a token of one scene and a token of another.

    first, second: (P,) token numbers, -1 for no partner. before, after: (P,) weights of the pair at the first and at the second
    scene; over the pairs of a token they sum to the token's weight.
    """

    first: Tensor
    second: Tensor
    before: Tensor
    after: Tensor

    def __len__(self) -> int:
        return len(self.first)


def costs(one: LatentScene, other: LatentScene) -> Tensor:
    """Cost matrix (N, M): 1 - cosine of the directions of every two tokens, 0 to 2."""
    a, b = (functional.normalize(each.tokens - each.tokens.mean(-1, keepdim=True), dim=-1) for each in (one, other))
    return 1 - a @ b.mT


def slot(one: LatentScene, other: LatentScene) -> Pairing:
    """Pair tokens by number, i.e. by the model's learned latent that they started from. Surplus tokens of the larger scene have
    no partner."""
    same = torch.arange(min(len(one), len(other)))
    return _one_to_one(one, other, same, same)


def hungarian(one: LatentScene, other: LatentScene) -> Pairing:
    """One-to-one assignment of least total cost (Kuhn 1955, by scipy). Surplus tokens of the larger scene have no partner."""
    rows, columns = linear_sum_assignment(costs(one, other).double().cpu().numpy())
    return _one_to_one(one, other, torch.from_numpy(rows), torch.from_numpy(columns))


def transport(
    one: LatentScene, other: LatentScene, mass: Tensor | None = None, other_mass: Tensor | None = None
) -> Pairing:
    """Optimal transport of mass under `costs`: exact, by network simplex (POT). A token may be split among several.

    mass (N,), other_mass (M,): positive masses of tokens, normalised by their sums; default: weights. For equal masses and N = M
    the plan is an assignment. The weight of a pair, at either end, is its share of the token's weight. At most N + M - 1
    pairs. Raises ValueError for masses that are not positive.
    """
    from ot.lp import emd  # a second to import, with all of SciPy

    a, b = (_shares(each, given) for each, given in ((one, mass), (other, other_mass)))
    plan = emd(a, b, costs(one, other).double().cpu().numpy(), numItermax=10_000_000)
    rows, columns = np.nonzero(plan)
    moved = plan[rows, columns]
    before = moved / plan.sum(1)[rows] * one.weight.double().cpu().numpy()[rows]
    after = moved / plan.sum(0)[columns] * other.weight.double().cpu().numpy()[columns]
    return Pairing(*(_like(one, each) for each in (rows, columns, before, after)))


def union(one: LatentScene, other: LatentScene) -> Pairing:
    """No pairs: all tokens of the first scene fade out while all of the second fade in."""
    none = torch.arange(0)
    return _one_to_one(one, other, none, none)


PAIRINGS: dict[str, Callable[[LatentScene, LatentScene], Pairing]] = {
    "slot": slot,
    "hungarian": hungarian,
    "transport": transport,
    "union": union,
}


def _one_to_one(one: LatentScene, other: LatentScene, first: Tensor, second: Tensor) -> Pairing:
    """Pairing of `first` with `second` (k,), then unpaired tokens of the first scene, then of the second."""
    device = one.tokens.device
    first, second = first.to(device), second.to(device)
    left, right = _missing(first, len(one)), _missing(second, len(other))
    zeros = one.weight.new_zeros
    return Pairing(
        torch.cat([first, left, torch.full_like(right, -1)]),
        torch.cat([second, torch.full_like(left, -1), right]),
        torch.cat([one.weight[first], one.weight[left], zeros(len(right))]),
        torch.cat([other.weight[second], zeros(len(left)), other.weight[right]]),
    )


def _missing(which: Tensor, count: int) -> Tensor:
    """Numbers below `count` that are not in `which`, ascending."""
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
    """Exchange tokens and weights of two scenes: `which` (k,) of one for `counterpart` (k,) of the other; frames stay.

    counterpart: None for equal numbers. A second swap restores both scenes.
    """
    theirs = which if counterpart is None else counterpart
    return (
        one.with_tokens(which, other.tokens[theirs]).with_weight(which, other.weight[theirs]),
        other.with_tokens(theirs, one.tokens[which]).with_weight(theirs, one.weight[which]),
    )


def interpolate(one: LatentScene, other: LatentScene, pairing: Pairing, t: float, path: Path = "linear") -> LatentScene:
    """Interpolate from one scene, t = 0, to the other, t = 1, in the frame of the first.

    Each pair moves from its token in one to its token in the other; weights are interpolated linearly, and unpaired tokens stay
    in place. Directions are interpolated, so that spreads, which the decoder does not see, have no effect on the speed: `linear`
    along the chord, `slerp` along the arc at constant speed, through the same directions. At t = 0 and 1 the scenes themselves
    are returned. Raises ValueError for t outside [0, 1].
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
    """Spherical interpolation of vectors (..., dim) of equal length: at the share t of the shortest arc (Shoemake 1985).

    Linear for nearly equal and nearly opposite vectors.
    """
    difference, total = torch.linalg.vector_norm(one - other, dim=-1), torch.linalg.vector_norm(one + other, dim=-1)
    angle = 2 * torch.atan2(difference, total)[..., None]
    sine = angle.sin()
    flat = sine.abs() < 1e-4
    safe = torch.where(flat, 1, sine)
    arc = ((1 - t) * angle).sin() / safe * one + (t * angle).sin() / safe * other
    return torch.where(flat, torch.lerp(one, other, t), arc)
