"""Baselines, controls and losses of time, on pictures whose grey is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lvsm_train.data.batches import Batch
from lvsm_train.data.shard_index import shares_of_time
from lvsm_train.evaluation import instants, scores
from lvsm_train.losses.loss import temporal_gradient
from pipeline.core import cameras

HW = (16, 16)


def batch(
    times: list[float], asked: list[float], poses: list[int] | None = None, seen: list[int] | None = None
) -> Batch:
    """One object that is as grey as its time, seen at `times`, asked for at `asked`, by cameras of these numbers (default: 0)."""

    def views(when: list[float], which: list[int] | None) -> tuple[torch.Tensor, ...]:
        angle = np.array(which or [0] * len(when)) * 0.5
        eyes = 1.5 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)
        grey = torch.tensor(when)[:, None, None, None].expand(-1, 3, *HW)
        c2w = torch.from_numpy(cameras.look_at(eyes)).float()
        k = torch.tensor([20.0, 20, 8, 8]).expand(len(when), 4)
        return tuple(one[None] for one in ((255 * grey).byte(), c2w, k, torch.tensor(when)))

    return Batch(*views(times, poses), *views(asked, seen), ["grey"])


def greys(pictures: torch.Tensor) -> list[float]:
    return [round(float(one), 2) for one in pictures[0].mean((1, 2, 3))]


def test_the_blend_of_neighbours_is_linear_in_time() -> None:
    one = batch([0.0, 0.4, 1.0], [0.2, 0.4, 0.7, 0.0, 1.0])
    assert greys(instants.blend(one)) == [0.2, 0.4, 0.7, 0.0, 1.0]
    assert greys(instants.blend(batch([0.4, 0.8], [0.1, 0.9]))) == [0.4, 0.8]  # nothing before, nothing after
    # of the inputs before and after, those of the nearest cameras
    several = batch([0.0, 0.2, 1.0], [0.6], poses=[0, 6, 0], seen=[0])
    assert greys(instants.blend(several)) == [0.6]


def test_the_nearest_view_is_near_in_place_and_time() -> None:
    assert greys(scores.nearest(batch([0.0, 0.4, 1.0], [0.1, 0.5, 0.8], poses=[0, 0, 0]))) == [0.0, 0.4, 1.0]
    assert greys(scores.nearest(batch([0.3, 0.3], [0.3], poses=[0, 2], seen=[2]))) == [0.3]
    assert greys(scores.nearest(batch([0.0, 1.0], [0.9], poses=[0, 5], seen=[5]))) == [1.0]


def test_scores_by_distance_in_time() -> None:
    one = batch([0.0, 1.0], [0.1, 0.25, 0.5, 0.75, 0.9])
    rows = instants.by_distance(lambda given: given.target_rgb + 0.1, [one])
    assert [row.most for row in rows] == [0.1, 0.25, 0.5] and [row.images for row in rows] == [2, 2, 1]
    assert all(row.model == pytest.approx(20, abs=0.1) for row in rows)
    assert rows[0].nearest > rows[1].nearest > rows[2].nearest and all(row.blend > 40 for row in rows)
    many = batch([0.0], np.linspace(0.01, 0.8, 40).tolist())
    found = instants.by_distance(lambda given: given.target_rgb + 0.1, [many])
    assert len(found) == instants.BINS and sum(row.images for row in found) == 40
    assert found[-1].most == pytest.approx(0.8)


def test_shuffled_times_belong_to_other_targets() -> None:
    one = batch([0.0], [0.3, 0.1, 0.9, 0.6])
    made = instants.shuffled_times(one)
    assert sorted(made.target_time[0].tolist()) == sorted(one.target_time[0].tolist())
    assert (made.target_time != one.target_time).all() and torch.equal(made.target_image, one.target_image)
    with pytest.raises(ValueError, match="no other"):
        instants.shuffled_times(batch([0.0], [0.3]))


def test_films_of_time() -> None:
    path = cameras.circle(5, 20, 1.5, 0).astype(np.float32), np.tile(np.float32([20, 20, 8, 8]), (5, 1))
    one = batch([0.0, 1.0], [0.5])
    films = {says: (c2w, time) for says, c2w, _, time in instants.routes(one, *path)}
    fixed, frozen, both = films.values()
    assert np.ptp(fixed[0], 0).max() == 0 and fixed[1].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert np.array_equal(frozen[0], path[0]) and set(frozen[1].tolist()) == {0.5}
    assert np.array_equal(both[0], path[0]) and both[1].tolist() == fixed[1].tolist()


@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), min_size=1, max_size=6), st.floats(0.1, 10))
def test_times_become_shares_of_their_own_range(times: list[float], scale: float) -> None:
    """Of two objects, one after the other; a unit and an origin of time change nothing."""
    given_times = np.array([*times, 5.0, 6.0, 7.0])
    made = shares_of_time(given_times, np.array([len(times), 3]))
    assert made[-3:].tolist() == [0, 0.5, 1] and made.dtype == np.float32 and ((made >= 0) & (made <= 1)).all()
    known = np.array(times)[~np.isnan(times)]
    if len(known) and np.ptp(known) > 1:
        assert made[:-3].max() == 1 and np.allclose(
            made, shares_of_time(scale * given_times + 3, np.array([len(times), 3])), atol=1e-3
        )
    elif len(set(known.tolist())) < 2:
        assert not made[:-3].any()


def test_the_temporal_gradient_compares_changes_of_one_camera() -> None:
    """A constant error costs nothing; pictures that do not change cost what changes; pairs of two cameras do not count."""
    one = batch([0.0], [0.0, 0.2, 0.6], seen=[0, 0, 0])
    target, c2w, time = one.target_rgb, one.target_c2w, one.target_time
    assert temporal_gradient(target + 0.1, target, c2w, time) < 1e-6
    still = target[:, :1].expand_as(target)
    assert float(temporal_gradient(still, target, c2w, time)) == pytest.approx((0.2 + 0.4 + 0.6) / 3, abs=0.01)
    apart = batch([0.0], [0.0, 0.2, 0.6], seen=[0, 1, 2])
    assert temporal_gradient(still, target, apart.target_c2w, time) == 0
    assert temporal_gradient(still, target, c2w, torch.zeros_like(time)) == 0
    moved = dataclasses.replace(one, target_c2w=one.target_c2w.clone())
    assert torch.equal(moved.target_c2w, c2w)
