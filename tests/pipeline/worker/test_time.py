"""Objects that move: where they are at each instant, one normalisation for all of it, and what is said of those that do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.render import RenderConfig, SceneConfig
from pipeline.core import cameras, images
from pipeline.core.errors import UserError
from pipeline.core.records import Outcome, Scene
from pipeline.worker.blender import Blender, Frame
from pipeline.worker.render import build_job
from tests.conftest import Render
from tests.pipeline.worker.test_reprojection import CENTRES, RADIUS, centroids, sphere_pixels

INSTANTS = 6


def centres_at(turns: np.ndarray) -> np.ndarray:
    """Centres (T, 3, 3) of the spheres of tests/assets.py at shares of the animation, by its curves, in the file's units."""
    angle = 2 * np.pi * turns
    nothing = np.zeros_like(angle)
    shifts = [
        [0.2 * np.sin(angle), 0.1 * np.cos(angle), nothing],
        [nothing, 0.2 * np.sin(angle), 0.1 * np.sin(2 * angle)],
        [nothing, nothing, 0.3 * (0.5 - 0.5 * np.cos(angle))],
    ]
    return CENTRES + np.moveaxis(np.array(shifts), -1, 0)


def normalised_at(turns: np.ndarray) -> tuple[np.ndarray, float]:
    """Centres (T, 3, 3) and radius of the spheres after the box of all that is seen at any instant got longest side 1."""
    centres = centres_at(turns)
    low, high = centres.min((0, 1)) - RADIUS, centres.max((0, 1)) + RADIUS
    scale = 1 / (high - low).max()
    return (centres - (low + high) / 2) * scale, RADIUS * scale


@pytest.mark.parametrize("name", ["moving.glb", "moving.usdc", "moving.blend"])
@pytest.mark.parametrize("time_cameras", ["fixed", "moving"])
def test_spheres_are_where_pose_and_time_say(assets: Path, blender: Blender, name: str, time_cameras: Any) -> None:
    """A place, a bone and a shape key: at every view and instant within 0.1 pixels of the curve, in one world."""
    width, turns = 256, np.arange(INSTANTS) / INSTANTS
    centres, radius = normalised_at(turns)
    asked = SceneConfig(
        res=(width,), views=INSTANTS, samples=64, normalize="box", frames=INSTANTS, time_cameras=time_cameras
    )
    cfg = asked.resolved()
    poses = cameras.sample("shell", np.random.default_rng(3), 200, normalize="box").astype(np.float64)
    k = cfg.intrinsics((width, width))

    def gap(pose: np.ndarray) -> float:
        """Least distance of two spheres in a picture, in their own widths, at any instant."""
        seen = np.stack([sphere_pixels(pose, k, at, radius) for at in centres])
        reach = 2.6 * radius * k[0] / (np.linalg.norm(pose[:3, 3]) - 0.65)
        return float(np.linalg.norm(seen[:, [0, 1, 2]] - seen[:, [1, 2, 0]], axis=-1).min() / reach)

    poses = np.stack(sorted(poses, key=gap)[-INSTANTS:])
    assert min(map(gap, poses)) > 1
    job = build_job(cfg, "moving", poses, 2)
    job |= {"path": str(assets / name), "format": name.split(".")[1], "denoise": False}
    job["lights"] = {"world": [0, 0, 0], "lobes": [], "suns": []}
    loaded, *frames = blender.render(job)
    assert isinstance(loaded, dict) and loaded["times"] == pytest.approx(turns.tolist())
    shots = cfg.shots()
    assert len(shots) == {"fixed": INSTANTS**2, "moving": INSTANTS}[time_cameras]
    seen: dict[int, float] = {}
    for frame in frames:
        assert isinstance(frame, Frame)
        if frame.index < len(shots):
            camera, instant = shots[frame.index]
            there = sphere_pixels(poses[camera], k, centres[instant], radius)
            seen[frame.index] = float(np.linalg.norm(centroids(frame.full("rgba")[..., :3]) - there, axis=-1).max())
    assert sorted(seen) == list(range(len(shots))) and max(seen.values()) < 0.1, seen


def scene_of(outcome: Outcome) -> Scene:
    assert isinstance(outcome.scene, Scene), f"{outcome.reason}: {outcome.detail}"
    return outcome.scene


def test_one_normalisation_for_the_whole_animation(assets: Path, render: Render) -> None:
    """Each instant lies within the cube that all of them fill together, also for caches of Alembic, which have no materials."""
    centres = centres_at(np.arange(INSTANTS) / INSTANTS)
    low, high = centres.min((0, 1)) - RADIUS, centres.max((0, 1)) + RADIUS
    for name, within in (("moving.glb", 1e-3), ("moving.abc", 1e-3)):
        scene = scene_of(render(assets / name, normalize="box", frames=INSTANTS, views=1, time_cameras="fixed"))
        raw = np.array(scene.meta["raw_bounds"])
        np.testing.assert_allclose(raw, [low, high], atol=within)
        matrix = np.array(scene.meta["transform"])
        np.testing.assert_allclose(np.diag(matrix)[:3], 1 / (high - low).max(), rtol=1e-3)
        assert scene.meta["animated"] and scene.meta["motion"] > 0.3
        assert scene.meta["animation"]["seconds"] == pytest.approx(1)
        assert list(scene.times) == pytest.approx([number / INSTANTS for number in range(INSTANTS)])
        assert scene.numbers["frame"].tolist() == list(range(INSTANTS))
        assert np.ptp(scene.c2w, axis=0).max() == 0  # one camera


@pytest.mark.parametrize("time_cameras", ["moving", "fixed", "both"])
def test_the_same_seed_and_uid_give_the_same_pixels(assets: Path, render: Render, time_cameras: str) -> None:
    asked: dict[str, object] = {"frames": 3, "views": 4, "time_cameras": time_cameras}
    first = scene_of(render(assets / "moving.glb", **asked))
    render(assets / "two_animations.glb", frames=2)
    again = scene_of(render(assets / "moving.glb", **asked))
    assert first.by_width[64].jpegs == again.by_width[64].jpegs and first.meta == again.meta
    assert np.array_equal(first.c2w, again.c2w) and list(first.times) == list(again.times)
    cfg = SceneConfig(**({"samples": 16} | asked)).resolved()  # type: ignore[arg-type]
    shots = cfg.shots()
    assert len(first.c2w) == len(shots) == cfg.pictures == {"moving": 4, "fixed": 12, "both": 8}[time_cameras]
    assert first.numbers["frame"].tolist() == [instant for _, instant in shots]
    still = scene_of(render(assets / "moving.glb", views=4))
    assert np.array_equal(first.c2w, still.c2w[[camera for camera, _ in shots]])  # cameras do not depend on time


def test_what_stands_still_has_one_instant(assets: Path, render: Render) -> None:
    """A cube with --frames is the cube without, at time 0."""
    for cameras_of in ("moving", "fixed", "both"):
        timed = scene_of(render(assets / "two_roots.glb", frames=3, time_cameras=cameras_of))
        plain = scene_of(render(assets / "two_roots.glb"))
        assert timed.by_width[64].jpegs == plain.by_width[64].jpegs and np.array_equal(timed.c2w, plain.c2w)
        assert list(timed.times) == [0.0, 0.0] and timed.numbers["frame"].tolist() == [0, 0]
        assert "motion" not in timed.meta and "animation" not in timed.meta


@pytest.mark.parametrize(("time_cameras", "views"), [("moving", 2), ("fixed", 2), ("both", 1)])
def test_what_nobody_sees_move_is_left_out(assets: Path, render: Render, time_cameras: str, views: int) -> None:
    outcome = render(assets / "turning_ball.glb", frames=4, time_cameras=time_cameras, views=views)
    assert outcome.reason == "does_not_move" and "pixels at most" in outcome.detail


def test_one_of_several_animations_is_chosen(assets: Path, render: Render) -> None:
    """The first of the file, the longest, or one by its name; a name that is not there is said with those that are."""

    def chosen(which: str) -> tuple[str, float, list[float]]:
        scene = scene_of(
            render(
                assets / "two_animations.glb", frames=4, animation=which, animation_end="clamp", time_cameras="fixed"
            )
        )
        low, high = np.array(scene.meta["raw_bounds"])
        return scene.meta["animation"]["name"], scene.meta["animation"]["seconds"], (high - low).round(3).tolist()

    assert chosen("along") == chosen("longest") == ("along", 2.0, [3.0, 1.0, 1.0])
    assert chosen("up") == ("up", 0.5, [1.0, 1.0, 3.0])
    assert chosen("first")[0] in ("along", "up")
    refused = render(assets / "two_animations.glb", frames=4, animation="Walk")
    assert refused.reason == "no_such_animation"
    assert refused.detail == "none is called 'Walk'; the file has 'along', 'up'"


@pytest.mark.parametrize(
    ("asked", "times", "places"),
    [
        ({"frames": 4}, [0, 0.125, 0.25, 0.375], [0, 0.5, 1, 1.5]),  # the end is the beginning again
        ({"frames": 5, "animation_end": "clamp"}, [0, 0.125, 0.25, 0.375, 0.5], [0, 0.5, 1, 1.5, 2]),
        (
            {"frames": 4, "fps": 4.0},
            [0, 0.25, 0.5, 0.75],
            [0, 1, 2, 1],
        ),  # a second of half a second: once more from the start
        ({"frames": 4, "fps": 4.0, "animation_end": "clamp"}, [0, 0.25, 0.5, 0.75], [0, 1, 2, 2]),
        ({"frames": 2, "duration": 0.25, "animation_end": "clamp"}, [0, 0.25], [0, 1]),
    ],
)
def test_instants(assets: Path, render: Render, asked: dict[str, Any], times: list[float], places: list[float]) -> None:
    """Where a cube is that rises by 4 units per second for half a second, from its pictures of one camera at its height."""
    scene = scene_of(
        render(assets / "two_animations.glb", animation="up", views=12, cameras="orbit", time_cameras="fixed", **asked)
    )
    assert list(scene.times)[::12] == pytest.approx(times)
    first = [
        jpeg for jpeg, c2w in zip(scene.by_width[64].jpegs, scene.c2w, strict=True) if np.array_equal(c2w, scene.c2w[0])
    ]
    tops = [np.argwhere(images.decode(jpeg).min(-1) < 250)[:, 0].min() for jpeg in first]
    order = np.argsort(places, kind="stable")
    assert np.corrcoef(places, tops)[0, 1] < -0.98, tops  # higher in the world is a lower row
    same = [(a, b) for a in order for b in order if a < b and places[a] == places[b]]
    assert all(first[a] == first[b] for a, b in same)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"frames": 0}, "must be positive"),
        ({"frames": 3, "fps": -1.0}, "must be positive"),
        ({"frames": 3, "fps": 2.0, "duration": 1.0}, "both say how far instants are apart"),
        ({"time_cameras": "fixed"}, "--time-cameras: of an object's animation one instant is shown"),
        ({"animation": "Walk", "fps": 3.0}, "--fps, --animation: of an object's animation"),
    ],
)
def test_flags_that_contradict_each_other(asked: dict[str, Any], error: str) -> None:
    with pytest.raises(UserError, match=error):
        SceneConfig(**asked).resolved()


def test_settings_of_time_do_not_end_old_runs(tmp_path: Path) -> None:
    """Flags at their defaults leave the hash as it was; any other changes it."""
    plain = RenderConfig(out=tmp_path).resolved().identity()["config_hash"]
    assert plain == RenderConfig(out=tmp_path, scene=SceneConfig(frames=1)).resolved().identity()["config_hash"]
    timed = SceneConfig(frames=4)
    assert plain != RenderConfig(out=tmp_path, scene=timed).resolved().identity()["config_hash"]
    assert json.loads(json.dumps(timed.shots())) == [[view, view * 4 // 32] for view in range(32)]
