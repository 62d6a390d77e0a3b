"""Which views of which objects the trainer takes, what is done to poses, and what is kept for measuring."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from lvsm_train.data import samples, view_sampling  # noqa: E402
from lvsm_train.data.batches import Data  # noqa: E402
from pipeline.core import cameras  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from pipeline.formats.trajectories import Example, evaluation_index  # noqa: E402
from tests.noise import VIEWS, config, digest, scene, ten_and_three, views_of, write  # noqa: E402

PARITY = (
    Path(__file__).parents[4] / "shared/parity/perceptual_and_poses.pt"
)  # beside the checkout, where it is there at all


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ten_and_three(tmp_path_factory.mktemp("run"))


# ---- the order


@given(st.integers(0, 2**40), st.integers(1, 40), st.integers(1, 4), st.integers(0, 5))
def test_every_epoch_shows_every_object(seed: int, objects: int, repeats: int, epoch: int) -> None:
    start = epoch * objects * repeats
    shown = [view_sampling.object_at(seed, start + place, objects, repeats) for place in range(objects * repeats)]
    assert sorted(shown) == sorted(list(range(objects)) * repeats)
    assert all(len(set(shown[at : at + repeats])) == 1 for at in range(0, len(shown), repeats))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(view_sampling.permutation(seed, epoch, 20)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_number_of_inputs_varies_by_step(run: Path) -> None:
    opened = Data(config(run, inputs_from=1, inputs=4, cache="none"))
    counts = [next(opened.batches(step)).image.shape[1] for step in range(40)]
    assert set(counts) == {1, 2, 3, 4}
    assert {next(opened.batches(step)).target_image.shape[1] for step in range(5)} == {2}


# ---- which views


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 5), st.integers(0, 4), st.booleans(), st.booleans())
def test_views_of_objects(seed: int, inputs: int, targets: int, more: int, farthest: bool, among: bool) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 3, (inputs + targets + more, 3)).astype(float)  # some cameras stand at one place
    shown, asked = view_sampling.object_views(rng, len(centres), inputs, targets, among, centres if farthest else None)
    assert (len(shown), len(asked)) == (len(set(shown)), len(set(asked))) == (inputs, targets)
    assert {*shown, *asked} <= set(range(len(centres)))
    assert among or not set(shown) & set(asked)


def test_views_kept_for_tests_never_train(tmp_path: Path) -> None:
    """Nor those for validation; other objects' views all do, and shards without roles go beside."""
    split = [("train", "val", "test", "train", "")[view % 5] for view in range(VIEWS)]
    write(tmp_path / "split", [replace(scene(f"split-{i}"), roles=split) for i in range(6)])
    write(tmp_path / "whole", [scene(f"whole-{i}") for i in range(6)])
    opened = Data(config(tmp_path / "split", tmp_path / "whole", cache="none", held_views=2))
    plans = [sample for step in range(60) for sample in opened.planner.training(step, 0, 1)]
    may = [view for view in range(VIEWS) if split[view] in ("train", "")]
    seen: dict[str, set[int]] = {"split": set(), "whole": set()}
    for sample in plans:
        seen[sample.uid[:5]] |= {*sample.inputs, *sample.targets}
    assert seen == {"split": set(may[:-2]), "whole": set(range(VIEWS - 2))}
    held = [sample for sample in opened.planner.evaluation("held", 3, 2) if sample.uid.startswith("split")]
    assert held and all(set(sample.targets) == set(may[-2:]) for sample in held)
    opened.close()


def test_targets_may_be_inputs_where_asked_for(run: Path) -> None:
    opened = Data(config(run, inputs=2, targets=6, target_among_inputs=True, cache="none"))
    plans = [sample for step in range(30) for sample in opened.planner.training(step, 0, 1)]
    overlap = [len(set(sample.inputs) & set(sample.targets)) for sample in plans]
    assert {len({*sample.inputs, *sample.targets}) for sample in plans} <= {6, 7, 8}
    assert 1 < np.mean(overlap) < 2  # six of eight views: 1.5 of the two inputs


def test_farthest_points_are_far() -> None:
    points = np.array([[0.0, 0], [0.1, 0], [10, 0], [5, 0], [0, 1]])
    assert view_sampling.farthest_points(points, 4, 1).tolist() == [1, 2, 3, 4]
    assert sorted(view_sampling.farthest_points(np.zeros((5, 3)), 5, 2).tolist()) == [0, 1, 2, 3, 4]


@given(
    st.lists(st.integers(0, 120), min_size=5, max_size=60, unique=True),
    st.integers(2, 4),
    st.integers(1, 3),
    st.integers(1, 60),
    st.integers(0, 60),
    st.booleans(),
    st.integers(0, 2**32),
)
@example([0, 1, 2, 3, 10], 2, 1, 4, 0, False, 0)  # three frames apart there is a pair, four apart none
@example([0, 1, 2, 3, 10], 2, 1, 3, 0, False, 0)
def test_windows_of_clips(
    frames: list[int], inputs: int, targets: int, least: int, more: int, among: bool, seed: int
) -> None:
    frame, gap = np.sort(frames), (least, least + more)
    pairs = itertools.combinations(range(len(frame)), 2)
    fits = any(gap[0] <= frame[j] - frame[i] <= gap[1] and j - i + 1 >= inputs + targets for i, j in pairs)
    assert view_sampling.clip_fits(frame, inputs + targets, gap) == fits
    if fits:
        shown, asked = view_sampling.clip_views(np.random.default_rng(seed), frame, inputs, targets, gap, among)
        assert gap[0] <= frame[shown[1]] - frame[shown[0]] <= gap[1]
        assert ((shown >= shown[0]) & (shown <= shown[1])).all() and ((asked >= shown[0]) & (asked <= shown[1])).all()
        assert len(set(shown)) == inputs and len(set(asked)) == targets
        assert among or not set(shown) & set(asked)


def test_windows_are_of_all_widths() -> None:
    rng, frame = np.random.default_rng(0), np.arange(300)
    ends = np.array([view_sampling.clip_views(rng, frame, 2, 3, (25, 192), False)[0] for _ in range(3000)])
    width = ends[:, 1] - ends[:, 0]
    assert width.min() == 25 and width.max() == 192
    counts = np.histogram(width, 8, (25, 193))[0]
    assert counts.min() > 0.8 * counts.mean()  # uniform
    assert ends.min() == 0 and ends.max() == 299


# ---- poses of clips


def similar(c2w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same cameras in a world that is turned, moved and scaled."""
    moved = c2w.astype(np.float64)
    turn = cameras.rotation_of(rng.normal(size=4))
    moved[:, :3, :3] = turn @ moved[:, :3, :3]
    moved[:, :3, 3] = 3.7 * moved[:, :3, 3] @ turn.T + rng.normal(size=3)
    return moved


def test_normalised_poses() -> None:
    rng = np.random.default_rng(0)
    c2w = cameras.look_at(rng.normal(size=(6, 3)) + np.array([0, 0, 5]), rng.normal(size=3))
    made = view_sampling.normalise_poses(c2w)
    centres, mean = made[:, :3, 3], made[:, :3, :3].mean(0)
    np.testing.assert_allclose(centres.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(np.abs(centres).max(), 1 / 1.35, rtol=1e-6)
    np.testing.assert_allclose(mean[:2, 2], 0, atol=1e-6)  # forward is +z
    np.testing.assert_allclose(mean[0, 1], 0, atol=1e-6)  # down has no part to the side
    assert mean[2, 2] > 0 and mean[1, 1] > 0
    np.testing.assert_allclose(np.linalg.det(made[:, :3, :3]), 1, atol=1e-5)
    np.testing.assert_allclose(
        view_sampling.normalise_poses(similar(c2w, rng)), made, atol=1e-5
    )  # the world does not show
    apart = np.linalg.norm(centres[:, None] - centres, axis=-1) / np.linalg.norm(
        c2w[:, None, :3, 3] - c2w[:, :3, 3], axis=-1
    ).clip(1e-9)
    np.testing.assert_allclose(apart[~np.eye(6, dtype=bool)], apart[0, 1], rtol=1e-4)  # one scale


def test_poses_that_have_no_mean_or_no_size() -> None:
    still = np.tile(cameras.look_at(np.array([1.0, 2, 3])), (4, 1, 1))
    np.testing.assert_allclose(view_sampling.normalise_poses(still), np.tile(np.eye(4), (4, 1, 1)), atol=1e-6)
    opposite = cameras.look_at(np.array([[1.0, 0, 0], [-1, 0, 0]]))
    made = view_sampling.normalise_poses(opposite)
    assert np.isfinite(made).all()
    np.testing.assert_allclose(np.abs(made[:, :3, 3]).max(), 1 / 1.35, rtol=1e-6)


@pytest.mark.skipif(not PARITY.is_file(), reason="the tensors of the official code are not here")
def test_poses_as_the_official_code_normalises_them() -> None:
    fixture = torch.load(PARITY, weights_only=True)
    made = view_sampling.normalise_poses(fixture["c2w_in"].numpy())
    np.testing.assert_allclose(made, fixture["c2w_normalised"].numpy(), atol=1e-6)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of six videos, two of each: 30 frames, every second or third; and one that is too short."""
    names = [f"video{number:06d}.{part}" for number in range(6) for part in "ab"]
    made = [scene(name, (16,), 30, 4 + np.arange(30) * (2 + index % 2), 0.75) for index, name in enumerate(names)]
    made.append(scene("video000009.a", (16,), 6, np.arange(6), 0.75))
    return write(tmp_path_factory.mktemp("clips"), made, shards=2)


def test_batches_of_clips(clips: Path) -> None:
    opened = Data(config(clips, scenes=True, gap_min=20, gap_max=50, targets=4))
    assert "1 of" in opened.notes[-1] and "no window" in opened.notes[-1]
    widths = []
    for step in range(25):
        plan, batch = opened.planner.training(step, 0, 1), next(opened.batches(step))
        for place, sample in enumerate(plan):
            frame = opened.index.frame[opened.index.of(sample.number)]
            shown, asked = frame[list(sample.inputs)], frame[list(sample.targets)]
            widths.append(shown[1] - shown[0])
            assert shown[0] == shown.min() < asked.min() and asked.max() < shown.max() == shown[1]
            made = [(view, c2w) for view, _, c2w, _ in views_of(batch, sample, place)]
            raw = opened.index.c2w[opened.index.of(sample.number)][[view for view, _ in made]]
            np.testing.assert_array_equal([c2w for _, c2w in made], view_sampling.normalise_poses(raw))
    assert 20 <= min(widths) < 25 and 45 < max(widths) <= 50
    made = opened.planner.evaluation("val", 2, 3)
    assert [len(sample.inputs + sample.targets) for sample in made] == [5] * len(opened.planner.val)
    other = Data(config(clips, scenes=True, gap_min=20, gap_max=50, seed=9, target_among_inputs=True))
    assert other.planner.evaluation("val", 2, 3) == made


def test_clips_and_objects_follow_their_own_rules(clips: Path, tmp_path: Path) -> None:
    """Whatever the settings are for, and in one batch; each kind as it would be trained alone."""
    many = [scene(f"object{number}", (16,), 30, height=0.75) for number in range(12)]
    objects = write(tmp_path, many, facts={"source": "local"})
    seen: dict[str, set[str]] = {"clips": set(), "objects": set()}
    for scenes in (False, True):
        opened = Data(config(clips, objects, scenes=scenes, gap_min=20, gap_max=50))
        assert opened.planner.kinds() == {"clips": 13, "objects": 12}
        assert opened.notes[0].startswith("12 of 25 are objects" if scenes else "13 of 25 are clips"), opened.notes
        for step in range(12):
            plan, batch = opened.planner.training(step, 0, 1), next(opened.batches(step))
            for place, sample in enumerate(plan):
                made = list(views_of(batch, sample, place))
                raw = opened.index.c2w[opened.index.of(sample.number)][[view for view, *_ in made]]
                kind = "objects" if sample.uid.startswith("object") else "clips"
                seen[kind].add(sample.uid)
                if kind == "clips":
                    expected = view_sampling.normalise_poses(raw)
                    frame = opened.index.frame[opened.index.of(sample.number)]
                    shown, asked = frame[list(sample.inputs)], frame[list(sample.targets)]
                    assert shown[0] < asked.min() and asked.max() < shown[1] and 20 <= shown[1] - shown[0] <= 50
                else:
                    assert sample.angle
                    expected = view_sampling.rotate_z(raw[None], np.array([sample.angle]))[0]
                np.testing.assert_array_equal([c2w for _, _, c2w, _ in made], expected)
    assert min(map(len, seen.values())) > 8
    for kind, of in (("objects", False), ("clips", True)):
        assert {sample.is_scene for sample in opened.planner.evaluation("all", 2, 3, scenes=of)} == {of}, kind


@pytest.mark.parametrize("setting", [{"inputs": 1}, {"farthest_inputs": True}, {"held_views": 2}])
def test_settings_that_clips_cannot_have_are_refused(clips: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="13 of 13 are clips"):
        Data(config(clips, **setting))


def test_clips_of_a_video_stay_on_one_side(clips: Path) -> None:
    opened = Data(config(clips, gap_min=20, gap_max=50))
    uids = opened.index.uids
    held = {uids[number].split(".")[0] for number in opened.planner.val}
    assert held and not held & {uids[number].split(".")[0] for number in opened.planner.train}
    assert any("no val-*.parquet" in note for note in opened.notes)


def test_samples_of_an_evaluation_index(clips: Path, tmp_path: Path) -> None:
    entries = {
        "video000000.a": {"context": [4, 54], "target": [10, 8, 30]},  # every second frame from the fourth
        "video000000.b": {"context": [4, 55], "target": [7]},  # every third
        "video000001.a": {"context": [4, 5], "target": [8]},  # it has no fifth
        "elsewhere": {"context": [0, 5], "target": [8]},
    }
    (tmp_path / "index.json").write_text(json.dumps(entries))
    opened = Data(config(clips, scenes=True))
    made = samples.index_samples(evaluation_index(tmp_path / "index.json"), opened.index, opened.planner.is_scene)
    assert [(sample.uid, sample.inputs, sample.targets) for sample in made] == [
        ("video000000.a", (0, 25), (3, 2, 13)),
        ("video000000.b", (0, 17), (1,)),
    ]
    first, second = opened.evaluation_batches(made, 8)  # other numbers of targets, other batches
    assert first.target_image.shape == (1, 3, 3, 12, 16) and second.target_image.shape[1] == 1
    with pytest.raises(ValueError, match="equally many"):
        opened.gather(made)
    with pytest.raises(UserError, match="none of the clips"):
        samples.index_samples({"no": Example((0,), (1,))}, opened.index, opened.planner.is_scene)


# ---- who trains, who does not


def test_validation_never_trains(run: Path) -> None:
    opened = Data(config(run, cache="none"))
    assert opened.notes == []
    trained = {sample.uid for step in range(20) for sample in opened.planner.training(step, 0, 1)}
    assert trained == {f"train-{number}" for number in range(10)}
    measured = opened.planner.evaluation("val")
    assert {sample.uid for sample in measured} == {"val-0", "val-1", "val-2"}
    assert all(len(set(sample.inputs + sample.targets)) == VIEWS for sample in measured)  # 4 inputs, 9 that are left
    other = Data(config(run, seed=5, batch=1, inputs=2, farthest_inputs=True, cache="none"))
    assert other.planner.evaluation("val") == measured  # whatever the training is like
    assert other.planner.evaluation("val", count=2) == measured[:2]
    assert digest(opened.gather(measured)) == digest(next(other.evaluation_batches(measured, 3)))


def test_held_views_never_train(run: Path) -> None:
    opened = Data(config(run, held_views=4, cache="none", farthest_inputs=True))
    for step in range(20):
        assert all(max(sample.inputs + sample.targets) < 9 for sample in opened.planner.training(step, 0, 1))
    measured = opened.planner.evaluation("held", targets=3)
    assert len(measured) == 10
    assert all(max(sample.inputs) < 9 <= min(sample.targets) and len(sample.targets) == 3 for sample in measured)
    with pytest.raises(UserError, match="held out"):
        Data(config(run, cache="none")).planner.evaluation("held")


def test_an_object_on_both_sides_is_an_error(run: Path, tmp_path: Path) -> None:
    write(tmp_path, [scene("train-3")], "val")
    with pytest.raises(UserError, match="train-3"):
        Data(config(run, tmp_path))


def test_without_validation_shards_some_are_held_out(tmp_path: Path) -> None:
    small, large = write(tmp_path / "small", [scene(f"a{i}", (24,)) for i in range(3)]), tmp_path / "large"
    opened = Data(config(small, cache="none"))
    assert len(opened.planner.val) == 1 and len(opened.planner.train) == 2
    write(large, [scene(f"b{i}", (24,), 5) for i in range(200)])
    more = Data(config(large, cache="none"))
    assert 2 <= len(more.planner.val) <= 20
    assert not set(more.planner.val) & set(more.planner.train)
    assert more.notes == [f"no val-*.parquet: {len(more.planner.val)} of 200 are held out, by a hash of their names"]


def test_objects_with_too_few_views_are_told(tmp_path: Path, run: Path) -> None:
    write(tmp_path, [scene("few", (48,), 4), scene("enough", (48,), 5)])
    opened = Data(config(run, tmp_path, cache="none"))
    assert opened.notes == ["1 of 12 do not train: too few views"]
    assert opened.hw == (48, 48)
    nothing = Data(config(tmp_path, inputs=20, cache="none", workers=2))
    with pytest.raises(UserError, match="nothing to train on"):
        next(nothing.batches())
