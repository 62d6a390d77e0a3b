"""Which token of one scene becomes which of another: by slot, by an assignment, by optimal transport, or none at all.

Tokens are a set, and a picture does not depend on their order; the way from one scene to another does. A token without a
partner comes by its weight, from 0, or goes, so that scenes of different sizes can be paired too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from ot.lp import emd
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lvsm_train.latent.latents import Pairing

if TYPE_CHECKING:
    from lvsm_train.latent.latents import LatentScene


def costs(one: LatentScene, other: LatentScene) -> Tensor:
    """(N, M): 1 - cosine of the directions of every two tokens, 0 to 2."""
    a, b = (
        torch.nn.functional.normalize(each.tokens - each.tokens.mean(-1, keepdim=True), dim=-1) for each in (one, other)
    )
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
