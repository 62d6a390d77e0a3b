"""Camera paths: where they go, how smooth they are, and that nerfstudio and `render` take them."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.export import PathsConfig
from pipeline.config.render import SceneConfig
from pipeline.core import cameras
from pipeline.core.errors import UserError
from pipeline.export import camera_paths
from pipeline.export.camera_paths import around, novelty, slerp, through, write_paths
from pipeline.storage.shards import ROLE
from pipeline.storage.writer import ShardWriter
from tests.conftest import lvsm_data_here
from tests.pipeline.export.test_exports import FACTS, VIEWS, nerfstudio, plain, scene

__all__ = ["nerfstudio", "plain"]  # fixtures


def is_rigid(c2w: np.ndarray) -> bool:
    rotation = c2w[:, :3, :3]
    return bool(
        np.allclose(np.swapaxes(rotation, 1, 2) @ rotation, np.eye(3), atol=1e-5)
        and np.allclose(np.linalg.det(rotation), 1, atol=1e-5)
    )


@given(
    st.sampled_from(["orbit", "circle", "spiral", "lissajous"]),
    st.integers(2, 90),
    st.booleans(),
    st.floats(1, 5),
    st.floats(-80, 80),
    st.tuples(*[st.floats(-1, 1)] * 3),
)
def test_paths_look_at_their_target(
    kind: str, frames: int, cycle: bool, distance: float, elevation: float, target: tuple[float, float, float]
) -> None:
    cfg = PathsConfig(kind=kind, frames=frames, cycle=cycle, elevation_deg=elevation, target=target, radius=0.2)  # type: ignore[arg-type]
    c2w = around(cfg, distance)
    assert c2w.shape == (frames, 4, 4) and is_rigid(c2w)
    arms = np.array(target) - c2w[:, :3, 3]
    far = np.linalg.norm(arms, axis=-1)
    np.testing.assert_allclose(c2w[:, :3, 2], arms / far[:, None], atol=1e-9)
    if kind in ("orbit", "spiral"):
        np.testing.assert_allclose(far, distance)
    else:
        middle = np.array(target) + distance * camera_paths.direction(np.array(0.0), np.array(math.radians(elevation)))
        off = c2w[:, :3, 3] - middle
        assert (np.linalg.norm(off, axis=-1) <= 0.2 * math.sqrt(2) + 1e-9).all()
        np.testing.assert_allclose(off @ (middle - target), 0, atol=1e-9)
        if kind == "circle":
            np.testing.assert_allclose(np.linalg.norm(off, axis=-1), 0.2)
    ends = np.linalg.norm(c2w[0, :3, 3] - c2w[-1, :3, 3])
    if kind != "spiral":
        assert (ends > 1e-6) == cycle or frames == 2  # a path that is no cycle ends where it began


@given(st.integers(0, 999), st.integers(1, 6), st.integers(2, 60), st.booleans())
def test_a_path_goes_through_its_keys(seed: int, count: int, frames: int, cycle: bool) -> None:
    keys = cameras.sample("shell", np.random.default_rng(seed), count).astype(np.float64)
    made = through(keys, frames, cycle)
    assert made.shape == (frames, 4, 4) and is_rigid(made)
    np.testing.assert_allclose(made[0], keys[0], atol=1e-6)
    if not cycle:
        np.testing.assert_allclose(made[-1], keys[-1], atol=1e-6)
    spans = count if cycle else count - 1
    steps = frames if cycle else frames - 1
    for number in range(count):
        if spans and (number * steps) % spans == 0 and number * steps // spans < frames:
            np.testing.assert_allclose(made[number * steps // spans], keys[number], atol=1e-6)


def test_slerp_turns_evenly_and_the_short_way() -> None:
    turn = np.radians(100)
    start, end = np.array([[1.0, 0, 0, 0]]), np.array([[math.cos(turn / 2), 0, 0, math.sin(turn / 2)]])
    shares = np.linspace(0, 1, 11)
    for sign in (1, -1):
        made = slerp(np.repeat(start, 11, 0), sign * np.repeat(end, 11, 0), shares)
        rotation = cameras.rotation_of(made)
        np.testing.assert_allclose(np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0]), shares * turn, atol=1e-9)


def test_novelty_is_zero_at_known_views_and_right_beside_them() -> None:
    known = cameras.sample("shell", np.random.default_rng(1), 8).astype(np.float64)
    view, angle, distance = novelty(known[[3, 5]], known)
    assert view.tolist() == [3, 5] and angle.max() < 1e-4 and distance.max() == 0
    moved = known[[2]].copy()
    moved[0, :3, 3] += 0.01 * moved[0, :3, 0]
    turn = np.radians(7)
    moved[0, :3, :3] = moved[0, :3, :3] @ np.array(
        [[math.cos(turn), 0, math.sin(turn)], [0, 1, 0], [-math.sin(turn), 0, math.cos(turn)]]
    )
    view, angle, distance = novelty(moved, known)
    assert view.tolist() == [2] and angle[0] == pytest.approx(7) and distance[0] == pytest.approx(0.01)


@pytest.mark.parametrize("name", ["rig.json", "camera_path.json"])
def test_render_takes_both_files_of_a_path(name: str, tmp_path: Path) -> None:
    path = PathsConfig(kind="spiral", frames=7, out=tmp_path, width=64, height=48, fov_x_deg=40)
    write_paths(path.resolved())
    made = SceneConfig(poses=tmp_path / name).resolved()
    assert made.rig is not None and made.views == 7 and made.poses is None and made.fov_x_deg == pytest.approx(40)
    np.testing.assert_allclose(made.rig.poses(), around(path, 1.1 * cameras.fitting_distance(40, "sphere")), atol=1e-9)
    assert (
        made.resolved() == made and SceneConfig(poses=tmp_path / name, views=7, fov_x_deg=30).resolved().fov_x_deg == 30
    )
    more = SceneConfig(cameras=tmp_path / name, views=9).resolved()
    assert more.rig == made.rig and more.fov_x_deg == made.fov_x_deg and more.views == 9
    besides = f"--cameras {shlex.quote(str(tmp_path / name))} --views 9 draws others besides"
    for flags, error, hint in (
        ({"views": 9}, "has 7 poses, --views asks for 9", besides),
        ({"views": 3}, "has 7 poses, --views asks for 3", "leave --views out, or give a file with as many poses"),
        ({"cameras": "orbit"}, "both say where cameras stand", "leave one"),
        ({"poses": tmp_path / "nope.json"}, "nope.json: No such file", "`lvsm-data paths` makes one"),
        ({"poses": tmp_path}, "Is a directory", "`lvsm-data paths` makes one"),
    ):
        with pytest.raises(UserError, match=error) as refused:
            SceneConfig(**({"poses": tmp_path / name} | flags)).resolved()  # type: ignore[arg-type]
        assert hint in refused.value.hint and "orbit" not in refused.value.hint


def test_a_path_has_one_field_of_view(tmp_path: Path) -> None:
    """As nerfstudio's viewer writes them: a vertical one per frame, and the aspect."""
    pose = np.diag([1.0, 1, 1, 1]).ravel().tolist()
    frames = [{"camera_to_world": pose, "fov": fov, "aspect": 16 / 9} for fov in (50, 60)]
    (tmp_path / "path.json").write_text(json.dumps({"camera_type": "perspective", "camera_path": frames}))
    with pytest.raises(UserError, match=r"fields of view from 79\.\d+ to 91\.\d+ degrees"):
        SceneConfig(poses=tmp_path / "path.json").resolved()
    (tmp_path / "path.json").write_text(json.dumps({"camera_path": frames[:1]}))
    made = SceneConfig(poses=tmp_path / "path.json").resolved()
    assert made.fov_x_deg == pytest.approx(2 * math.degrees(math.atan(16 / 9 * math.tan(math.radians(25)))))
    assert made.rig is not None and made.rig.poses()[0].tolist() == np.diag([1, -1, -1, 1]).tolist()


def test_files_of_a_path(plain: Path, tmp_path: Path) -> None:
    cfg = PathsConfig(
        kind="views", run=plain, uid="chair", views=(0, 4, 8), frames=9, out=tmp_path / "path", width=64, height=48
    )
    assert "9 poses" in write_paths(cfg.resolved())[0]
    keys = scene("chair", "plain").c2w
    made = SceneConfig(cameras=tmp_path / "path/rig.json", views=9).resolved()
    assert made.rig is not None
    np.testing.assert_allclose(made.rig.poses()[[0, 4, 8]], keys[[0, 4, 8]], atol=1e-6)
    rows = list(csv.DictReader((tmp_path / "path/novelty.csv").read_text().splitlines()))
    assert len(rows) == 9 and [rows[frame]["nearest_view"] for frame in (0, 4, 8)] == ["0", "4", "8"]
    assert float(rows[0]["distance"]) < 1e-5 and float(rows[2]["distance"]) > 0.01
    page = (tmp_path / "path/index.html").read_text()
    assert f"Beside {VIEWS} views of chair" in page and page.count("<svg") == 2


def test_a_pose_is_new_beside_the_views_that_train(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "run", (64,), (ROLE,), FACTS, 1e12)
    roles = ["train", "test", "", "val", "train", "test", "train", "train", "test"]
    writer.add(dataclasses.replace(scene("chair", "plain"), roles=roles), "train", 0)
    writer.close("train")
    cfg = PathsConfig(kind="views", run=tmp_path / "run", views=(4, 5, 2), frames=3, out=tmp_path / "path")
    write_paths(cfg.resolved())
    at, of_tests, other = csv.DictReader((tmp_path / "path/novelty.csv").read_text().splitlines())
    assert (at["nearest_view"], other["nearest_view"]) == ("4", "2")
    assert float(of_tests["distance"]) > 0.01 and roles[int(of_tests["nearest_view"])] in ("", "train")
    assert "Beside 5 views of chair" in (tmp_path / "path/index.html").read_text()


@pytest.mark.filterwarnings("ignore")
def test_nerfstudio_reads_a_path(tmp_path: Path, nerfstudio: types.ModuleType) -> None:
    import torch

    for name in (
        "nerfstudio.viewer_legacy",
        "nerfstudio.viewer_legacy.server",
        viewer := "nerfstudio.viewer_legacy.server.utils",
    ):
        sys.modules.setdefault(name, types.ModuleType(name))  # its viewer, for one function: that of three.js
    focal = lambda fov, height: height / 2 / math.tan(math.radians(fov) / 2)  # noqa: E731
    sys.modules[viewer].three_js_perspective_camera_focal_length = focal  # type: ignore[attr-defined]
    from nerfstudio.cameras.camera_paths import get_path_from_json

    write_paths(PathsConfig(kind="lissajous", frames=5, out=tmp_path, width=64, height=48, fov_x_deg=40).resolved())
    rig = json.loads((tmp_path / "rig.json").read_text())
    found = get_path_from_json(json.loads((tmp_path / "camera_path.json").read_text()))
    points = np.random.default_rng(0).uniform(-0.3, 0.3, (20, 3))
    for frame, pose in enumerate(rig["c2w"]):
        local = (np.linalg.inv(pose) @ np.c_[points, np.ones(20)].T)[:3]
        k = np.array(rig["fxfycxcy"])
        pixels = (k[:2, None] * local[:2] / local[2] + k[2:, None]).T
        rays = found.generate_rays(frame, coords=torch.tensor(pixels[:, ::-1].copy()).float())
        arms = points - rays.origins.numpy()
        aside = np.linalg.norm(np.cross(arms, rays.directions.numpy()), axis=-1) / np.linalg.norm(arms, axis=-1)
        assert aside.max() < 2e-5


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--kind", "views"), "need --run"),
        (("--frames", "0"), "must be positive"),
        (("--elevation-deg", "90"), "between -89 and 89"),
        (("--run", "RUN", "--uid", "nobody"), "has no object nobody"),
        (("--run", "RUN", "--kind", "views", "--views", "0", "99"), "has no view 99"),
        (("--distance", "nan"), "--distance is no number"),
        (("--distance", "inf"), "--distance is no number"),
        (("--elevation-deg", "nan"), "--elevation-deg is no number"),
        (("--target", "0", "nan", "0"), "--target y is no number"),
        (("--run", "RUN", "--kind", "views", "--views", "3"), "names one view"),
        (("--run", "RUN", "--kind", "views", "--views", "3", "3"), "names one view"),
        (("--run", "RUN", "--views", "1"), "--views are numbers of views for --kind views"),
    ],
)
def test_flags_that_cannot_be(arguments: tuple[str, ...], error: str, plain: Path, tmp_path: Path) -> None:
    given = [str(plain) if each == "RUN" else each for each in arguments]
    done = lvsm_data_here("paths", "--out", tmp_path / "path", *given)
    assert done.returncode == 2 and error in done.stderr and not (tmp_path / "path").exists()


def test_paths_and_exports_leave_runs_alone(plain: Path, tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    trained.mkdir()
    for name in ("train.json", "log.jsonl"):
        (trained / name).write_text("{}")
    assert f"{trained} is the folder of a run" in lvsm_data_here("paths", "--out", trained).stderr
    (tmp_path / "run.json").write_text("{}")
    for out in (tmp_path, tmp_path / "paths"):
        done = lvsm_data_here("paths", "--out", out)
        assert done.returncode == 2 and f"{tmp_path} is the folder of a run" in done.stderr
    done = lvsm_data_here("export", plain, "--out", tmp_path / "new")
    assert done.returncode == 2 and f"{tmp_path} is the folder of a run" in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["log.jsonl", "run.json", "train.json", "trained"]


def test_poses_within_the_object_are_counted(plain: Path, tmp_path: Path) -> None:
    keys = scene("chair", "plain").c2w
    across = np.unravel_index(
        (keys[:, :3, 3] @ keys[:, :3, 3].T).argmin(), (VIEWS, VIEWS)
    )  # all but opposite each other
    apart = np.linalg.norm(through(keys[list(across)], 120)[:, :3, 3], axis=1)
    inside = int((apart < 0.5).sum())
    command = ("paths", "--kind", "views", "--views", *across, "--run", plain, "--uid", "chair")
    said = lvsm_data_here(*command, "--out", tmp_path / "views").stdout
    assert 0 < inside < 120 and f"{inside} of 120 poses are nearer to the origin than 0.5" in said
    for more in ((), ("--run", plain)):
        assert "nearer" not in lvsm_data_here("paths", *more, "--out", tmp_path / "orbit").stdout
    said = lvsm_data_here("paths", "--run", plain, "--distance", "0.4", "--out", tmp_path / "near").stdout
    assert "120 of 120 poses are nearer" in said


def test_files_of_a_path_come_all_at_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails in the middle leaves the path of before, and nothing half written."""
    write_paths(PathsConfig(frames=3, out=tmp_path / "path").resolved())
    before = {path.name: path.read_bytes() for path in (tmp_path / "path").iterdir()}
    assert set(before) == {"rig.json", "camera_path.json"}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.export.camera_paths.rig.nerfstudio", full)
        with pytest.raises(UserError, match="cannot be written"):
            write_paths(PathsConfig(frames=4, out=tmp_path / "path").resolved())
    assert {path.name: path.read_bytes() for path in (tmp_path / "path").iterdir()} == before
    write_paths(PathsConfig(frames=4, out=tmp_path / "path").resolved())
    assert {path.name for path in (tmp_path / "path").iterdir()} == set(before)
