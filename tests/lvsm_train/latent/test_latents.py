"""Edits of latents by their properties: what must change nothing in a picture, and what pairings and paths promise."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from lvsm_train.latent import influence, latents  # noqa: E402
from lvsm_train.latent.latents import PAIRINGS, PATHS, LatentScene, Pairing  # noqa: E402
from lvsm_train.latent.subjects import Subject, pose_difference, render  # noqa: E402
from lvsm_train.models.lvsm import EncoderDecoder  # noqa: E402
from pipeline.core.cameras import look_at  # noqa: E402
from tests.lvsm_train.models.test_lvsm import cameras, posed, tiny  # noqa: E402

HW = (12, 8)
N, DIM = 12, 32
ROUNDING = 1e-5
few = settings(max_examples=12, deadline=None)
seeds = st.integers(0, 10_000)


@pytest.fixture(scope="module", params=[False, True], ids=["pluecker", "prope"])
def net(request: pytest.FixtureRequest) -> EncoderDecoder:
    made = tiny("encoder_decoder", prope=request.param).eval().requires_grad_(False)
    assert isinstance(made, EncoderDecoder)
    return made


@pytest.fixture(scope="module")
def subjects(net: EncoderDecoder) -> list[Subject]:
    """Two scenes, each with three cameras."""
    image, c2w, k = posed(2, 2, HW)
    asked = cameras(2, 3, HW, 7)
    scenes = latents.scenes_of(net.encode(image, c2w, k))
    blank = torch.zeros(3, 3, *HW)
    return [
        Subject(f"object-{b}", scenes[b], image[b], blank, asked[0][b], asked[1][b], torch.zeros(len(asked[0][b])))
        for b in range(2)
    ]


def scene(count: int, seed: int) -> LatentScene:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(count, DIM, generator=generator) * 3 + 1
    return LatentScene(tokens, torch.rand(count, generator=generator) + 0.2, torch.eye(4))


def some(seed: int, count: int = 5, among: int = N) -> torch.Tensor:
    return torch.randperm(among, generator=torch.Generator().manual_seed(seed))[:count]


def changed(net: EncoderDecoder, subject: Subject, made: LatentScene) -> float:
    return float((subject.render(net, made) - subject.render(net)).abs().max())


# What no picture shows


@few
@given(seed=seeds)
def test_order_is_nothing(seed: int, net: EncoderDecoder, subjects: list[Subject]) -> None:
    for subject in subjects:
        assert changed(net, subject, latents.reorder(subject.scene, some(seed, N))) <= ROUNDING


@few
@given(seed=seeds, factor=st.floats(0.5, 50), amount=st.floats(-20, 20))
def test_length_and_mean_are_nothing(
    seed: int, factor: float, amount: float, net: EncoderDecoder, subjects: list[Subject]
) -> None:
    own = subjects[0].scene
    assert changed(net, subjects[0], latents.scale(own, some(seed), factor)) <= ROUNDING
    assert changed(net, subjects[0], latents.shift(own, some(seed), amount)) <= ROUNDING


@few
@given(seed=seeds, count=st.integers(1, 20))
def test_weight_0_is_nothing_to_the_bit(seed: int, count: int, net: EncoderDecoder, subjects: list[Subject]) -> None:
    subject, which = subjects[0], some(seed)
    strange = latents.random_tokens(subject.scene, count, torch.Generator().manual_seed(seed))
    assert changed(net, subject, latents.add(subject.scene, strange, 0.0)) == 0.0
    without = subject.render(net, latents.remove(subject.scene, which))
    assert torch.equal(without, subject.render(net, subject.scene.with_weight(which, 0.0)))


@few
@given(seed=seeds, copies=st.integers(2, 5))
def test_parts_of_a_token_are_the_token(seed: int, copies: int, net: EncoderDecoder, subjects: list[Subject]) -> None:
    made = latents.duplicate(subjects[0].scene, some(seed), copies, shared=True)
    assert len(made) == N + 5 * (copies - 1)
    assert made.weight.sum().item() == pytest.approx(N)
    assert changed(net, subjects[0], made) <= ROUNDING


def test_everything_else_is_seen(net: EncoderDecoder, subjects: list[Subject]) -> None:
    subject, other = subjects
    own, which, generator = subject.scene, some(1), torch.Generator().manual_seed(0)
    aim = latents.random_directions(len(which), DIM, generator)
    for made in (
        latents.scale(own, which, -1),
        latents.scale(own, which, 0),
        latents.rotate(own, which, aim, math.radians(30)),
        latents.approach(own, which, other.scene.tokens[which], 0.5),
        latents.noise(own, which, 0.3, generator),
        latents.remove(own, which),
        latents.keep(own, some(2, N), 6),
        own.with_weight(which, 0.5),
        own.with_tokens(which, torch.zeros(DIM)),
        latents.add(own, latents.random_tokens(own, 3, generator)),
        latents.add(own, torch.zeros(1, DIM)),
        latents.duplicate(own, which),
        latents.swap(own, other.scene, which)[0],
    ):
        assert changed(net, subject, made) > 1e-3


def test_scenes_of_different_sizes_are_rendered_together(net: EncoderDecoder, subjects: list[Subject]) -> None:
    own = subjects[0]
    made = [own.scene, latents.remove(own.scene, some(1)), latents.duplicate(own.scene, some(2), 3, shared=True)]
    together = render(net, made, own.c2w, own.fxfycxcy, HW)
    for one, image in zip(made, together, strict=True):
        assert float((image - own.render(net, one)).abs().max()) <= ROUNDING


# Edits


def test_mean_and_spread_are_all_that_a_direction_lacks() -> None:
    own = scene(N, 0).tokens
    mean, spread = latents.invisible(own)
    again = mean[:, None] + spread[:, None] * latents.direction(own)
    torch.testing.assert_close(again, own, atol=1e-5, rtol=1e-5)
    assert np.allclose(latents.direction(own).mean(-1), 0, atol=1e-6)


@few
@given(seed=seeds, degrees=st.floats(0, 180))
def test_tokens_turn_by_the_angle_that_was_asked_for(seed: int, degrees: float) -> None:
    own, which = scene(N, seed), some(seed)
    aim = latents.random_directions(1, DIM, torch.Generator().manual_seed(seed + 1))[0]
    made = latents.rotate(own, which, aim, math.radians(degrees))
    before, after = latents.direction(own.tokens), latents.direction(made.tokens)
    angle = 2 * torch.atan2((before - after).norm(dim=1), (before + after).norm(dim=1)).rad2deg()
    expected = torch.zeros(N).index_fill(0, which, degrees)
    torch.testing.assert_close(angle, expected, atol=0.05, rtol=0)
    for a, b in zip(latents.invisible(own.tokens), latents.invisible(made.tokens), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="its own direction"):
        latents.rotate(own, which[:1], own.tokens[which[:1]], 1.0)


def test_noise_is_of_the_share_that_was_asked_for() -> None:
    own, every = scene(400, 1), torch.arange(400)
    for share in (0.0, 0.1, 0.5, 1.0):
        made = latents.noise(own, every, share, torch.Generator().manual_seed(3))
        before, after = latents.direction(own.tokens), latents.direction(made.tokens)
        assert (before * after).mean().item() == pytest.approx((1 - share) ** 0.5, abs=0.02)
    with pytest.raises(ValueError, match=r"it lies in \[0, 1\]"):
        latents.noise(own, every, 1.1, torch.Generator())


@few
@given(seed=seeds)
def test_a_swap_taken_twice_is_none(seed: int) -> None:
    one, other = scene(N, seed), scene(N, seed + 1)
    which, there = some(seed), some(seed + 2)
    again = latents.swap(*latents.swap(one, other, which, there), which, there)
    for a, b in zip((one, other), again, strict=True):
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.weight, b.weight)
    every = torch.arange(N)
    assert torch.equal(latents.swap(one, other, every)[0].tokens, other.tokens)


def test_keeping_and_reordering() -> None:
    own, order = scene(N, 0), some(4, N)
    assert torch.equal(latents.keep(own, order, 3).tokens, own.tokens[order[:3].sort().values])
    with pytest.raises(ValueError, match="names each of them once"):
        latents.reorder(own, torch.zeros(N, dtype=torch.long))
    with pytest.raises(ValueError, match="leave one"):
        latents.remove(own, torch.arange(N))


# Pairings


@few
@given(seed=seeds, n=st.integers(1, 5), m=st.integers(1, 5))
def test_the_assignment_is_the_cheapest_of_all(seed: int, n: int, m: int) -> None:
    one, other = scene(n, seed), scene(m, seed + 1)
    cost = latents.costs(one, other).numpy()
    plan = latents.hungarian(one, other)
    both = (plan.first >= 0) & (plan.second >= 0)
    found = cost[plan.first[both], plan.second[both]].sum()
    small, large = (cost, m) if n <= m else (cost.T, n)
    ways = itertools.permutations(range(large), min(n, m))
    best = min(sum(small[row, column] for row, column in enumerate(way)) for way in ways)
    assert found == pytest.approx(best, abs=1e-5)


def test_the_assignment_finds_a_shuffle_again() -> None:
    one, order = scene(40, 5), some(6, 40, 40)
    plan = latents.hungarian(one, one.only(order))
    assert torch.equal(order[plan.second], plan.first)
    exact = latents.transport(
        one.with_weight(torch.arange(40), 1.0), one.only(order).with_weight(torch.arange(40), 1.0)
    )
    assert torch.equal(order[exact.second], exact.first)


@few
@given(seed=seeds, n=st.integers(1, 9), m=st.integers(1, 9), name=st.sampled_from(list(PAIRINGS)))
def test_pairs_add_up_to_the_weights_of_both_scenes(seed: int, n: int, m: int, name: str) -> None:
    one, other = scene(n, seed), scene(m, seed + 1)
    plan = PAIRINGS[name](one, other)
    for number, share, own in ((plan.first, plan.before, one), (plan.second, plan.after, other)):
        there = number >= 0
        assert (share[~there] == 0).all()
        found = torch.zeros(len(own)).index_add(0, number[there], share[there])
        torch.testing.assert_close(found, own.weight, atol=1e-6, rtol=1e-5)
    assert len(plan) <= (n + m - 1 if name == "transport" else n + m)


def test_transport_moves_the_masses_that_it_was_given_as_cheaply_as_can_be() -> None:
    one, other = scene(2, 1), scene(2, 2)
    mass, theirs = torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5])
    plan = latents.transport(one, other, mass, theirs)
    moved = torch.zeros(2, 2)
    moved[plan.first, plan.second] = plan.before / one.weight[plan.first] * mass[plan.first]
    torch.testing.assert_close(moved.sum(1), mass)
    torch.testing.assert_close(moved.sum(0), theirs)
    cost = latents.costs(one, other)
    all_plans = [torch.tensor([[x, 0.75 - x], [0.5 - x, x - 0.25]]) for x in np.linspace(0.25, 0.5, 26)]
    assert (moved * cost).sum() <= min((each * cost).sum() for each in all_plans) + 1e-6
    with pytest.raises(ValueError, match="give each a positive one"):
        latents.transport(one, other, torch.tensor([1.0, 0.0]))


# Paths


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", PAIRINGS)
@pytest.mark.parametrize("missing", [0, 5])
def test_ways_begin_and_end_at_the_scenes(
    name: str, path: latents.Path, missing: int, net: EncoderDecoder, subjects: list[Subject]
) -> None:
    subject, other = subjects[0], subjects[1].scene
    theirs = latents.remove(other, some(3, missing)) if missing else other
    plan = PAIRINGS[name](subject.scene, theirs)
    ends = subject.render(net), subject.render(net, dataclasses.replace(theirs, frame=subject.scene.frame))

    def at(t: float) -> torch.Tensor:
        return subject.render(net, latents.interpolate(subject.scene, theirs, plan, t, path))

    assert torch.equal(at(0), ends[0]) and torch.equal(at(1), ends[1])
    assert float((at(1e-6) - ends[0]).abs().max()) < 1e-4  # so that no jump hides behind the ends
    assert float((at(1 - 1e-6) - ends[1]).abs().max()) < 1e-4
    assert float((at(0.5) - ends[0]).abs().max()) > 1e-3 < float((at(0.5) - ends[1]).abs().max())
    with pytest.raises(ValueError, match="t is 2"):
        at(2)


@few
@given(seed=seeds, t=st.floats(0, 1))
def test_an_arc_keeps_its_length_and_goes_at_an_even_speed(seed: int, t: float) -> None:
    one, other = (latents.direction(scene(N, seed + number).tokens) for number in range(2))
    made = latents.slerp(one, other, t)
    torch.testing.assert_close(made.square().mean(-1), torch.ones(N), atol=1e-4, rtol=0)
    whole, part = (_angle(one, each) for each in (other, made))
    torch.testing.assert_close(part, t * whole, atol=1e-3, rtol=1e-3)
    assert torch.equal(latents.slerp(one, one, t), one.lerp(one, t))


def _angle(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return 2 * torch.atan2((one - other).norm(dim=-1), (one + other).norm(dim=-1))


def test_chord_and_arc_pass_the_same_directions() -> None:
    one, other = scene(N, 1), scene(N, 2)
    plan: Pairing = latents.slot(one, other)
    start, end = (latents.direction(each.tokens) for each in (one, other))
    chord = latents.direction(latents.interpolate(one, other, plan, 0.3, "linear").tokens)
    share = _angle(start, chord) / _angle(start, end)
    arc = torch.stack([latents.slerp(a, b, float(t)) for a, b, t in zip(start, end, share, strict=True)])
    torch.testing.assert_close(chord, arc, atol=1e-4, rtol=1e-4)


# Influence, components, frames


def test_influence_is_the_change_without_a_token(net: EncoderDecoder, subjects: list[Subject]) -> None:
    subject = subjects[0]
    found = influence.strengths(net, subject, at_once=5)
    assert found.shape == (N, 3)
    for token in (0, 7):
        without = subject.render(net, latents.remove(subject.scene, torch.tensor([token])))
        difference = without - subject.render(net)
        torch.testing.assert_close(found[token], difference.square().mean((1, 2, 3)).sqrt(), atol=1e-5, rtol=1e-4)
        there = influence.maps(net, subject, torch.tensor([token]))[0]
        torch.testing.assert_close(there, difference.abs().mean(1), atol=1e-5, rtol=1e-4)
    nothing = dataclasses.replace(subject, scene=latents.add(subject.scene, torch.ones(1, DIM), 0.0))
    assert influence.strengths(net, nothing, torch.tensor([N])).max() == 0


def test_components_find_a_plane_and_give_points_back() -> None:
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(9, 2, generator=generator))[0].mT
    points = torch.randn(60, 2, generator=generator) * torch.tensor([5.0, 1.0]) @ axes + 3
    found = influence.principal(points)
    assert len(found.axes) == 2 and found.needed(0.5) == 1 and found.needed(1.0) == 2
    torch.testing.assert_close(found.points(found.coordinates(points)), points, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.coordinates(points).std(0), found.spread, atol=1e-4, rtol=1e-4)
    assert (found.axes[0] @ axes.mT).norm() == pytest.approx(1, abs=1e-5)
    assert torch.equal(influence.principal(points.flip(0)).axes.sign(), found.axes.sign())
    with pytest.raises(ValueError, match="all the same"):
        influence.principal(torch.ones(4, 3))


def test_cameras_stand_alike_where_a_turn_about_z_takes_one_to_the_other() -> None:
    position = np.array([1.2, 0.3, 0.9])
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    one, turned = look_at(position), look_at(turn @ position)
    assert pose_difference(one, turned) == pytest.approx((0, 0), abs=1e-6)
    up, distance = pose_difference(one, look_at(1.5 * position))
    assert up == pytest.approx(0, abs=1e-6) and distance == pytest.approx(0.5 * np.linalg.norm(position))
    assert pose_difference(one, look_at(np.array([0.1, 0.1, 1.5])))[0] > 0.5
