"""Do poses fit pictures: right cameras pass, and each way in which cameras are commonly wrong is told."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest

from pipeline.config.views import MixCameras
from pipeline.core import cameras
from pipeline.core.records import Posed
from pipeline.run import turntables
from pipeline.run.vetting import judge
from pipeline.worker import epipolar, silhouettes
from pipeline.worker.silhouettes import Verdict, check
from tests import balls
from tests.balls import Eye
from tests.importing import opencv

PINHOLE, BENT = (0.0,) * 8, (-0.2, 0.05, 0.002, -0.001, 0.0, 0.0, 0.0, 0.0)
MIRROR = np.diag([-1.0, 1, 1, 1])


def c2w_of(one: Eye) -> np.ndarray:
    c2w = np.eye(4)
    c2w[:3] = np.stack([one.right, -one.up, -one.back, one.position], -1)
    return c2w


@functools.cache
def turntable(size: int = 256) -> Posed:
    """Twelve RGBA views of the balls, elevation 30 degrees, as Objaverse-MIX is thought to be."""
    eyes = balls.circle(12, 35 / 32, size)
    return Posed(
        [balls.png(picture) for picture in balls.pictures(eyes)],
        np.stack([c2w_of(one) for one in eyes]),
        np.array([one.k for one in eyes]),
    )


@functools.cache
def turntable_of(count: int) -> Posed:
    """As many views of the balls, which show no features."""
    eyes = balls.circle(count, 35 / 32, 256)
    files = [balls.png(picture) for picture in balls.pictures(eyes)]
    return Posed(files, np.stack([c2w_of(one) for one in eyes]), np.array([one.k for one in eyes]))


@functools.cache
def room(bent: tuple[float, ...] = PINHOLE) -> Posed:
    """Seven photographs in a textured room."""
    eyes = balls.walk(7, (216, 240), bent, 0.2)
    files = [balls.photo(picture) for picture in balls.pictures(eyes, in_room=True)]
    lenses = (opencv(bent),) * 7 if any(bent) else ()
    return Posed(files, np.stack([c2w_of(one) for one in eyes]), np.array([one.k for one in eyes]), lenses)


checked = functools.cache(lambda make, *given: check(make(*given)))  # what right cameras get


def lifted(posed: Posed, degrees: float) -> Posed:
    """The turntable's cameras that much higher."""
    return replace(posed, c2w=cameras.circle(len(posed.images), 30 + degrees, 2.0))


def shaken(posed: Posed, degrees: float) -> Posed:
    """Every camera turned a little, by itself."""
    rng, c2w = np.random.default_rng(1), posed.c2w.copy()
    for pose in c2w:
        axis = rng.standard_normal(3)
        pose[:3, :3] = cv2.Rodrigues(axis / np.linalg.norm(axis) * np.radians(degrees))[0] @ pose[:3, :3]
    return replace(posed, c2w=c2w)


def shuffled(posed: Posed) -> Posed:
    return replace(posed, c2w=posed.c2w[np.random.default_rng(3).permutation(len(posed.c2w))])


WRONG = {
    "OpenGL for OpenCV": lambda posed: replace(posed, c2w=posed.c2w @ cameras.FLIP_YZ),
    "w2c for c2w": lambda posed: replace(posed, c2w=np.linalg.inv(posed.c2w)),
    "mirrored": lambda posed: replace(posed, c2w=MIRROR @ posed.c2w @ MIRROR),
    "shuffled": shuffled,
    "backwards": lambda posed: replace(posed, c2w=posed.c2w[::-1]),
    "y and z swapped": lambda posed: replace(posed, c2w=posed.c2w @ np.eye(4)[[0, 2, 1, 3]] * [1, 1, -1, 1]),
}


# ---- silhouettes


def test_right_cameras_fill_every_silhouette() -> None:
    verdict = checked(turntable)
    assert verdict.says == "fits"
    assert verdict.hull is not None and verdict.hull > 0.998
    assert verdict.control is not None and verdict.control < 0.7
    assert verdict.longest_side == pytest.approx(np.ptp(balls.CENTRES, axis=0).max() + 2 * balls.RADIUS, abs=0.05)


@pytest.mark.parametrize("size", [48, 96])
def test_small_pictures_do_too(size: int) -> None:
    right = turntable(size)
    assert check(right).says == "fits"
    assert check(lifted(right, 5)).says == check(lifted(right, -5)).says == "does_not_fit"


@pytest.mark.parametrize("how", WRONG)
def test_silhouettes_tell_wrong_conventions(how: str) -> None:
    verdict = check(WRONG[how](turntable()))
    assert verdict.says == "does_not_fit"
    assert verdict.hull is not None and verdict.hull < 0.75


@pytest.mark.parametrize("degrees", [5, -5, 20])
def test_silhouettes_tell_a_wrong_elevation(degrees: float) -> None:
    verdict = check(lifted(turntable(), degrees))
    assert verdict.says == "does_not_fit"


def test_turns_shifts_and_scales_of_the_world_are_no_errors() -> None:
    right = turntable()
    moved = np.eye(4)
    moved[:3, :3] = cv2.Rodrigues(np.array([0.3, -1.1, 0.4]))[0]
    moved[:3, 3] = [3, -40, 7]
    large = right.c2w.copy()
    large[:, :3, 3] *= 30
    for c2w in (moved @ right.c2w, large, np.roll(right.c2w, 4, 0)):
        assert check(replace(right, c2w=c2w)).says == "fits"


def test_a_ball_in_the_middle_cannot_tell() -> None:
    y, x = np.mgrid[:128, :128] - 63.5
    picture = np.zeros((128, 128, 4))
    picture[np.hypot(x, y) < 30] = [0.5, 0.5, 0.5, 1]
    one = Posed(
        [balls.png(picture)] * 12, cameras.circle(12, 30, 2), np.tile(cameras.intrinsics(50, (128, 128)), (12, 1))
    )
    for posed in (one, shuffled(one)):
        verdict = check(posed)
        assert verdict.says == "undecided" and verdict.control is not None and verdict.control > 0.98


@pytest.mark.parametrize("margin", [40, 60, 80])
def test_an_object_that_leaves_the_picture_is_no_error(margin: int) -> None:
    """Beyond the edges nothing is known; where that is too much, nothing is said."""
    right, inner = turntable(), np.s_[margin:-margin, margin:-margin]
    cut = [balls.png(picture[inner]) for picture in balls.pictures(balls.circle(12, 35 / 32, 256))]
    verdict = check(replace(right, images=cut, fxfycxcy=right.fxfycxcy - [0, 0, margin, margin]))
    assert verdict.says == ("undecided" if margin == 60 else "fits")
    assert verdict.hull is not None and verdict.hull > 0.995


def test_the_cameras_that_fit_are_suggested() -> None:
    right, used = turntable(), MixCameras(radius=1.5, elevation_deg=45.0, clockwise=True)
    c2w = cameras.circle(12, used.elevation_deg, used.radius, clockwise=used.clockwise)
    suggestion = turntables.best_turntable([replace(right, c2w=c2w)], used)
    assert suggestion is not None
    assert suggestion.best.elevation_deg == 30 and not suggestion.best.clockwise
    assert suggestion.filled > 0.998 > 0.9 > suggestion.filled_now
    assert suggestion.best.radius == pytest.approx(2.0, rel=0.06)
    assert "--elevation-deg 30" in str(suggestion) and "--no-clockwise" in str(suggestion)
    assert turntables.best_turntable([room()], used) is None


# ---- epipolar lines


@pytest.mark.parametrize("bent", [PINHOLE, BENT], ids=["pinhole", "distorted"])
def test_right_cameras_explain_every_match(bent: tuple[float, ...]) -> None:
    verdict = checked(room, bent)
    assert verdict.focal == 1
    assert verdict.says == "fits" and verdict.matches > 200
    assert verdict.lines is not None and verdict.lines > 0.97
    assert verdict.chance is not None and verdict.chance < 0.1
    assert verdict.hull is None


@pytest.mark.parametrize("how", WRONG)
def test_epipolar_lines_tell_wrong_conventions(how: str) -> None:
    verdict = check(WRONG[how](room()))
    assert verdict.says == "does_not_fit"
    assert verdict.lines is not None and verdict.lines < 0.2


def test_how_much_noise_is_told() -> None:
    lines = {degrees: check(shaken(room(), degrees)).lines for degrees in (0.1, 3.0)}
    assert lines[0.1] is not None and lines[0.1] > 0.9
    assert lines[3.0] is not None and lines[3.0] < 0.3


@pytest.mark.parametrize("factor", [0.7, 0.8, 0.9, 1.1, 1.25, 1.5])
def test_a_wrong_focal_length_is_told_and_the_right_one_named(factor: float) -> None:
    right = room()
    verdict = check(replace(right, fxfycxcy=right.fxfycxcy * [factor, factor, 1, 1]))
    assert verdict.says == "does_not_fit"
    assert verdict.focal == pytest.approx(1 / factor, rel=0.13)
    assert "focal lengths" in str(verdict)


def test_a_focal_length_that_pictures_cannot_tell_is_not_confirmed() -> None:
    """Points of a flat, distant thing move alike whatever the focal length: with a wrong one, matches are near lines too."""
    seen = Verdict("undecided", lines=1.0, chance=0.0, matches=500, apart=0.2, rise=1.2)
    assert silhouettes._says(seen) == "undecided" and "other focal lengths fit as well" in str(seen)
    assert silhouettes._says(replace(seen, hull=0.999, control=0.5)) == "undecided"
    assert silhouettes._says(replace(seen, rise=1.5)) == "fits"
    right = check(room())
    assert right.rise > 3 and right.score["rise"] == pytest.approx(right.rise, abs=1e-4)
    for factor in (0.9, 1.1):
        wrong = check(from_afar(factor))
        assert wrong.says == "undecided" and wrong.apart is not None and wrong.apart < 0.1 and wrong.matches > 1000


def test_a_few_matches_that_another_focal_length_suits_better_do_not_outvote_those_of_neighbours() -> None:
    matches = epipolar.Matches(room())
    alone, near = epipolar.Matches(room()), matches.neighbours
    pair = matches.between(0, 1)
    assert pair is not None
    few = replace(pair.zoomed(1.1), a=pair.a[:20] / 1.1, b=pair.b[:20] / 1.1)
    alone.between = matches.between = lambda i, j: few if (i, j) == (0, 1) else None  # type: ignore[method-assign, assignment]
    alone.neighbours, matches.neighbours = {}, near
    misled, told = (epipolar.explained(of, range(7)) for of in (alone, matches))
    assert misled.matches == told.matches == 20 and misled.scale == 0.9 and misled.gain < silhouettes.FOCAL_GAIN
    assert told.scale == 1 and told.gain == 1 and told.rise > 3 and told.pairs == 1 + len(near)


def from_afar(factor: float) -> Posed:
    """A shallow relief, seen from 40 of its sizes through a long lens; focal lengths are said to be `factor` times as long."""
    rng, size, focal = np.random.default_rng(1), 320, 40 * 320.0
    noise = cv2.resize(rng.random((160, 160)).astype(np.float32), (640, 640), interpolation=cv2.INTER_CUBIC)
    files, poses = [], []
    for angle in np.radians([-16.0, -8.0, 0.0, 8.0, 16.0]):
        back = np.array([np.sin(angle), -np.cos(angle), 0.1]) / np.sqrt(1.01)
        right = np.cross([0, 0, 1.0], back)
        right /= np.linalg.norm(right)
        axes = np.stack([right, -np.cross(back, right), -back], -1)
        eye = 40 * back
        y, x = np.mgrid[:size, :size] + 0.5
        rays = np.stack([(x - size / 2) / focal, (y - size / 2) / focal, np.ones_like(x)], -1) @ axes.T
        along = -eye[1] / rays[..., 1]
        for _ in range(4):  # onto y = 0.02 sin(9 x)
            along = (0.02 * np.sin(9 * (eye[0] + along * rays[..., 0])) - eye[1]) / rays[..., 1]
        points = eye + along[..., None] * rays
        u, v = ((points[..., axis] + 1) * 320 for axis in (0, 2))
        grey = cv2.remap(noise, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR)
        rgba = np.stack([grey.clip(0, 1)] * 3 + [np.ones_like(grey)], -1)
        files.append(balls.photo(rgba, "PNG"))
        poses.append(np.vstack([np.c_[axes, eye], [0, 0, 0, 1]]))
    return Posed(files, np.stack(poses), np.tile([factor * focal, factor * focal, size / 2, size / 2], (5, 1)))


def test_the_score_is_what_a_shard_keeps() -> None:
    score = checked(room, PINHOLE).score
    assert score["says"] == "fits" and score["apart"] < 0.5 and score["lines"] > 0.97 and score["matches"] > 200
    assert checked(turntable).score["hull"] > 0.998
    unread = {"apart": [None] * 12, "undecided": list(range(12))}
    assert check(replace(turntable(), images=[b"no picture"] * 12)).score == {"says": "undecided", "views": unread}
    assert json.loads(json.dumps(check(WRONG["OpenGL for OpenCV"](room())).score))["says"] == "does_not_fit"


def test_silhouettes_that_might_be_fuller_confirm_nothing() -> None:
    """Whatever the matches say; and two tests that contradict each other do not either."""
    seen = Verdict("undecided", hull=0.995, control=0.5, lines=1.0, chance=0.0, matches=500, apart=0.2)
    assert silhouettes._says(seen) == "undecided"
    assert silhouettes._says(replace(seen, hull=0.999)) == "fits"
    assert silhouettes._says(replace(seen, coarse=True)) == "fits"
    assert silhouettes._says(replace(seen, hull=0.9)) == "undecided"
    assert silhouettes._says(replace(seen, hull=0.999, apart=4.0)) == "undecided"
    assert silhouettes._says(replace(seen, hull=0.9, apart=4.0)) == "does_not_fit"


def test_a_distortion_that_is_forgotten_shows() -> None:
    forgotten = check(replace(room(BENT), lenses=())).lines
    right = checked(room, BENT).lines
    assert right is not None and forgotten is not None and forgotten < right


def test_pictures_without_motion_prove_nothing_and_cameras_without_it_are_wrong() -> None:
    one = room()
    assert check(replace(one, images=one.images[:1] * 7)).says == "undecided"
    stuck = replace(one, c2w=np.tile(one.c2w[:1], (7, 1, 1)))
    assert check(stuck).says == "does_not_fit"


def test_cameras_that_only_turn_have_points_for_lines() -> None:
    """Views of one place, each turned: matched by a rotation, and told from a wrong one."""
    eye = balls.walk(7, (216, 240), step=0.2)[0]
    turned = []
    for angle in np.radians([0, 4, -5, 7]):
        right, back = (
            eye.right * np.cos(angle) - eye.back * np.sin(angle),
            eye.back * np.cos(angle) + eye.right * np.sin(angle),
        )
        turned.append(replace(eye, right=right, back=back))
    posed = Posed(
        [balls.photo(picture) for picture in balls.pictures(turned, in_room=True)],
        np.stack([c2w_of(one) for one in turned]),
        np.array([one.k for one in turned]),
    )
    assert check(posed).says == "fits"
    assert check(replace(posed, c2w=posed.c2w[[0, 2, 1, 3]])).wrong == [1, 2]
    assert check(replace(posed, c2w=posed.c2w[[3, 2, 1, 0]])).says == "does_not_fit"


# ---- single views


def tilted(degrees: float, axis: int) -> np.ndarray:
    """Pose of a camera that is turned about one of its axes: pitch, yaw, roll."""
    turn = np.eye(4)
    turn[:3, :3] = cv2.Rodrigues(np.eye(3)[axis] * np.radians(degrees))[0]
    return turn


def with_poses(posed: Posed, poses: dict[int, np.ndarray]) -> Posed:
    c2w = posed.c2w.copy()
    for view, pose in poses.items():
        c2w[view] = pose
    return replace(posed, c2w=c2w)


def longer(posed: Posed, view: int, factor: float) -> Posed:
    fxfycxcy = posed.fxfycxcy.copy()
    fxfycxcy[view, :2] *= factor
    return replace(posed, fxfycxcy=fxfycxcy)


SPOILT = {
    "pitch": ([2], lambda posed: with_poses(posed, {2: posed.c2w[2] @ tilted(10, 0)})),
    "yaw": ([0], lambda posed: with_poses(posed, {0: posed.c2w[0] @ tilted(-10, 1)})),
    "roll": ([6], lambda posed: with_poses(posed, {6: posed.c2w[6] @ tilted(10, 2)})),
    "twice the focal length": ([3], lambda posed: longer(posed, 3, 2)),
    "half the focal length": ([5], lambda posed: longer(posed, 5, 0.5)),
    "another view's pose": ([1], lambda posed: with_poses(posed, {1: posed.c2w[5]})),
    "two views swapped": ([1, 4], lambda posed: with_poses(posed, {1: posed.c2w[4], 4: posed.c2w[1]})),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_single_wrong_view_is_told_and_the_others_fit(how: str) -> None:
    wrong, spoil = SPOILT[how]
    names = [f"{view}.png" for view in range(7)]
    verdict = check(replace(spoil(room()), names=names))
    assert verdict.wrong == wrong and verdict.says == "fits"
    assert {view.says for index, view in enumerate(verdict.views) if index not in wrong} == {"fits"}
    assert f"{len(wrong)} of 7 views contradict the others ({', '.join(names[view] for view in wrong)})" in str(verdict)
    left = verdict.part([view for view in range(7) if view not in wrong]).score["views"]
    assert max(left["apart"]) < 0.5 and len(left["apart"]) == 7 - len(wrong) and left["undecided"] == []


def test_too_many_wrong_views_are_a_wrong_scene() -> None:
    posed = room()
    spoilt = with_poses(posed, {view: posed.c2w[view] @ tilted(10 + 5 * view, view % 3) for view in (0, 2, 4, 5)})
    assert check(spoilt).says == "does_not_fit"
    assert check(with_poses(posed, {2: posed.c2w[2] @ tilted(20, 0)}).part([2, 5])).says == "does_not_fit"


def test_of_a_view_without_matches_nothing_is_said() -> None:
    posed = room()
    blank = balls.photo(np.full((216, 240, 4), 0.5))
    verdict = check(replace(posed, images=[*posed.images[:3], blank, *posed.images[4:]]))
    assert verdict.says == "fits" and not verdict.wrong
    assert verdict.views[3].says == "undecided" and verdict.views[3].apart is None
    assert verdict.score["views"]["undecided"] == [3] and verdict.score["views"]["apart"][3] is None


def test_a_view_is_blamed_only_where_others_agree() -> None:
    blamed = epipolar._blamed
    around = {(0, 1): False, (1, 2): False, (0, 2): False}
    assert blamed(around | {(0, 3): True, (1, 3): True}) == {3}
    assert blamed(around | {(0, 3): True}) == {3}
    assert blamed(around | {(0, 3): True, (1, 3): False}) == set()  # half are not enough
    assert blamed({(0, 1): True}) == blamed({(0, 1): True, (1, 2): True, (0, 2): True}) == set()
    assert blamed(dict.fromkeys([*around, (0, 3), (1, 3), (2, 3)], True)) == set()  # nobody agrees with anybody
    many = {(i, j): bool({i, j} & {3, 7}) for i in range(9) for j in range(i + 1, 9)}
    assert blamed(many) == {3, 7} and blamed(many | {(3, 7): False}) == {3, 7}


def test_few_matches_refuse_where_none_lie_on_their_lines_and_never_confirm() -> None:
    seen = Verdict("undecided", lines=0.0, chance=0.0, matches=28, apart=40.0)
    assert silhouettes._says(seen) == "does_not_fit"
    for kept in (replace(seen, matches=24), replace(seen, lines=0.1), replace(seen, lines=1.0, apart=0.2, rise=3)):
        assert silhouettes._says(kept) == "undecided"


@pytest.mark.parametrize("how", ["pitch", "twice the focal length"])
def test_silhouettes_judge_views_that_matches_do_not(how: str) -> None:
    """Of 15 views the hull is carved from 12; the others are held against it."""
    right = turntable_of(15)
    assert set(cameras.spread(15, silhouettes.SILHOUETTE_VIEWS).tolist()).isdisjoint({4, 9, 14})
    assert {view.says for view in checked(turntable_of, 15).views} == {"fits"}
    spoilt = with_poses(right, {9: right.c2w[9] @ tilted(10, 0)}) if how == "pitch" else longer(right, 9, 2)
    verdict = check(spoilt)
    assert verdict.says == "fits" and verdict.wrong == [9]
    assert {view.says for index, view in enumerate(verdict.views) if index not in (4, 9, 14)} == {"fits"}


@pytest.mark.parametrize("how", [*SPOILT, "w2c for c2w"])
def test_a_wrong_view_that_spoils_the_hull_is_left_out_alone(how: str) -> None:
    """Of views without features, all of which carve; as long as they are few, and enough others carve too."""
    right = turntable()
    wrong, spoil = SPOILT.get(how, ([3], lambda posed: with_poses(posed, {3: np.linalg.inv(posed.c2w[3])})))
    verdict = check(spoil(right))
    assert verdict.says == "fits" and verdict.wrong == wrong
    assert {view.says for index, view in enumerate(verdict.views) if index not in wrong} == {"fits"}
    more = with_poses(spoil(right), {view: right.c2w[view] @ tilted(15, view % 3) for view in (8, 10)})
    assert check(more).says == "does_not_fit"
    few = spoil(right).part(range(7))
    assert check(few).says == "does_not_fit"


@pytest.mark.parametrize("two", [(0, 1), (2, 7)])
def test_two_swapped_views_of_few_are_left_out(two: tuple[int, int]) -> None:
    """Each silhouette proves the other's pose: no other two, and none that are wrong in another way, are left out of so few."""
    right = turntable_of(8)
    i, j = two
    swapped = with_poses(right, {i: right.c2w[j], j: right.c2w[i]})
    verdict = check(swapped)
    assert verdict.says == "fits" and verdict.wrong == [i, j]
    assert {view.says for index, view in enumerate(verdict.views) if index not in two} == {"fits"}
    assert check(swapped.part(range(1, 8))).says == "does_not_fit"  # 7 carve: the hull of so few may be full by chance


NO_SWAP: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "two tilted": lambda c2w: np.stack([c2w[0], c2w[1] @ tilted(15, 0), *c2w[2:4], c2w[4] @ tilted(-12, 1), *c2w[5:]]),
    "all shaken": lambda c2w: np.stack([pose @ tilted(1.5, view % 3) for view, pose in enumerate(c2w)]),
    "three in a circle": lambda c2w: c2w[[1, 2, 0, 3, 4, 5, 6, 7]],
    "two times two": lambda c2w: c2w[[1, 0, 3, 2, 4, 5, 6, 7]],
}


@pytest.mark.parametrize("how", NO_SWAP)
def test_what_is_no_swap_is_not_mended(how: str) -> None:
    right = turntable_of(8)
    assert check(replace(right, c2w=NO_SWAP[how](right.c2w))).says == "does_not_fit"


def test_pictures_are_decoded_once_for_silhouettes(monkeypatch: pytest.MonkeyPatch) -> None:
    right, decoded = turntable_of(32), list[int]()
    places = {id(data): view for view, data in enumerate(right.images)}
    outline = silhouettes.Outlines._decoded

    def counted(self: silhouettes.Outlines, view: int) -> silhouettes._Outline | None:
        decoded.append(view)
        return outline(self, view)

    monkeypatch.setattr(silhouettes.Outlines, "_decoded", counted)
    wrong = with_poses(right, {5: right.c2w[5] @ tilted(10, 0), 30: right.c2w[30] @ tilted(10, 2)})
    assert check(wrong).wrong == [5, 30]
    assert len(places) == 32 and sorted(decoded) == list(range(32))


# ---- together


def test_what_cannot_be_read_is_undecided() -> None:
    right = turntable()
    assert check(replace(right, images=[b"no picture"] * 12)).says == "undecided"
    white = balls.photo(np.zeros((64, 64, 4)))
    verdict = check(Posed([white] * 4, right.c2w[:4], right.fxfycxcy[:4]))
    assert {view.says for view in verdict.views} == {verdict.says} == {"undecided"} and "neither" in str(verdict)
    assert check(Posed([right.images[0]], right.c2w[:1], right.fxfycxcy[:1])).says == "undecided"


def test_several_scenes_are_judged_together() -> None:
    fits, wrong, open_ = Verdict("fits", hull=1.0), Verdict("does_not_fit", hull=0.5), Verdict("undecided")
    assert judge([])[0] == judge([open_, open_])[0] == "undecided"
    assert judge([fits, open_])[0] == judge([fits, fits, wrong])[0] == judge([fits, wrong])[0] == "fits"
    assert judge([wrong, open_])[0] == judge([wrong] * 3 + [fits])[0] == "does_not_fit"
    assert judge([wrong, wrong, fits])[0] == "undecided"
    assert judge([fits, fits, wrong])[1] == "2 scenes fit, 1 do not, 0 cannot tell; median: silhouettes filled 100.0%"
    assert "elevation" not in str(check(turntable())) and "filled" in str(check(turntable()))
