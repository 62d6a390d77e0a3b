"""Photos as a model sees them: cameras that follow, paths, worlds that move; and what is refused or warned of."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

import lvsm_train  # noqa: E402
from lvsm_train.config.synthesis import ROUTES, SynthesisConfig  # noqa: E402
from lvsm_train.data.batches import Data, DataConfig  # noqa: E402
from lvsm_train.evaluation import protocols  # noqa: E402
from lvsm_train.evaluation.scores import render_of  # noqa: E402
from lvsm_train.synthesis import stage  # noqa: E402
from lvsm_train.synthesis.album import album, framed, pictures  # noqa: E402
from lvsm_train.synthesis.model import Model  # noqa: E402
from pipeline.config import rig  # noqa: E402
from pipeline.core import cameras  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from pipeline.dataset.opened import Dataset, Object  # noqa: E402
from tests import balls, foreign, noise  # noqa: E402
from tests.conftest import lvsm_data_here  # noqa: E402
from tests.lvsm_train.synthesis.test_synthesize import pictures_in, run_of, synthesize  # noqa: E402

BARREL = (-0.12, 0.03, 0.001, -0.0015, 0.0, 0.0, 0.0, 0.0)
PHOTO = (240, 320)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("run"), data)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of five photos of 320x240 pixels through a lens that bends."""
    return foreign.colmap(tmp_path_factory.mktemp("walk") / "in", balls.walk(5, PHOTO, BARREL), "OPENCV", True)


def config(folder: Path, **more: object) -> SynthesisConfig:
    return SynthesisConfig(run=folder, input=folder, **more)  # type: ignore[arg-type]


# ---- cameras follow pixels


@pytest.mark.parametrize("hw", [(160, 160), (120, 208), (240, 320), (200, 104), (320, 320)])
def test_balls_are_where_the_cameras_of_pictures_say(walked: Path, hw: tuple[int, int]) -> None:
    """After undistortion, at shapes that cut the sides or top and bottom, and enlarged."""
    photos = album(config(walked), None)
    made = pictures(photos, [0, 2, 4], hw)
    off, seen = [], 0
    for view, image, k in zip([0, 2, 4], made.image, made.fxfycxcy, strict=True):
        found, there = balls.balls_in(image, 3), balls.expected(photos.c2w[view], k, hw)
        seen += len(there.keys() & found.keys())
        off += [np.linalg.norm(found[ball] - there[ball]) for ball in there.keys() & found.keys()]
    assert seen >= 4
    assert max(off) < 0.3, off
    assert made.lost == pytest.approx(1 - min(1, 4 / 3 * hw[0] / hw[1]) * min(1, 3 / 4 * hw[1] / hw[0]), abs=0.01)
    assert made.enlarged == pytest.approx(max(1, hw[0] / 240, hw[1] / 320), rel=0.01)


@given(
    st.tuples(st.integers(8, 600), st.integers(8, 600)),
    st.tuples(st.integers(8, 600), st.integers(8, 600)),
    st.tuples(*[st.floats(1, 500)] * 4),
)
def test_cameras_of_a_file_keep_the_middle_of_their_picture(
    hw: tuple[int, int], new: tuple[int, int], k: tuple[float, ...]
) -> None:
    """The ray through the middle stays, pixels keep their shape, and nothing is seen that the file's camera does not see."""
    own = np.array(k)
    made, lost = framed(own[None], hw, new)
    middle, there = np.array(hw[::-1]) / 2, np.array(new[::-1]) / 2
    assert np.allclose((there - made[0, 2:]) / made[0, :2], (middle - own[2:]) / own[:2], atol=1e-9)
    assert made[0, 0] / made[0, 1] == pytest.approx(own[0] / own[1])
    kept = np.array(new[::-1]) / made[0, :2] / (np.array(hw[::-1]) / own[:2])  # shares of the width and height
    assert kept.max() == pytest.approx(1) and lost == pytest.approx(1 - kept.prod())


# ---- scenes


def test_scenes_are_normalised_as_in_training(tmp_path: Path) -> None:
    """Pictures of a clip are those that `eval` renders, whose cameras are normalised together."""
    shards = noise.write(tmp_path / "clips", [noise.scene(f"clip-{n}", frame=np.arange(13) * 4) for n in range(2)])
    run = run_of(tmp_path / "run", shards, scenes=True, inputs=2, gap_min=8, gap_max=40)
    data = Data(DataConfig((shards,), cache="none", scenes=True, inputs=2, gap_min=8, gap_max=40))
    sample = protocols.plan("clips", data.planner, "all")[0]
    model = lvsm_train.load(run, device="cpu")
    assert model.is_scene and model.hw == (48, 48) and model.inputs == 2
    with torch.no_grad():
        expected = 255 * render_of(model.net)(data.gather([sample]))[0].clamp(0, 1).movedim(1, -1).numpy()
    data.close()
    one, asked = Dataset(shards, 48)[sample.uid], list(sample.targets)
    poses = tmp_path / "poses.json"
    poses.write_text(json.dumps(rig.ours(one.c2w[asked].astype(float), one.fxfycxcy[asked].astype(float), one.hw)))
    views = ["--data", shards, "--uid", sample.uid, "--views", *sample.inputs, "--poses", poses]
    synthesize(run, *views, "--out", tmp_path / "made")
    assert np.abs(pictures_in(tmp_path / "made") - expected).max() < 1
    synthesize(run, *views, "--kind", "object", "--out", tmp_path / "wrong")
    assert np.abs(pictures_in(tmp_path / "wrong") - expected).max() > 5
    synthesize(run, "--data", shards, "--frames", 6, "--out", tmp_path / "through")  # by default through the inputs
    through = json.loads((tmp_path / "through/cameras.json").read_text())
    assert through["kind"] == "scene" and through["inputs"]["views"] == [0, 12]
    assert np.allclose(through["c2w"][0], through["inputs"]["c2w"][0], atol=1e-6)
    assert np.allclose(through["c2w"][-1], through["inputs"]["c2w"][1], atol=1e-6)


# ---- worlds and paths


@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(20, 80))
def test_an_object_of_any_world_is_put_where_objects_of_training_are(seed: int, scale: float, fov: float) -> None:
    rng = np.random.default_rng(seed)
    target, turn = rng.uniform(-9, 9, 3), cameras.rotation_of(rng.standard_normal(4))
    eyes = rng.uniform((-1, -1, 1.5), (1, 1, 3.5), (9, 3))
    c2w = cameras.look_at(eyes)
    c2w[:, :3, :3] = turn @ c2w[:, :3, :3]
    c2w[:, :3, 3] = scale * eyes @ turn.T + target
    found = stage.fitted(c2w, fov)
    placed = found.to(c2w)
    assert np.allclose(found.back(placed), c2w, atol=1e-6 * (10 + scale))
    assert np.allclose(cameras.looked_at(placed), 0, atol=1e-6)
    distance = np.linalg.norm(placed[:, :3, 3], axis=-1).mean()
    assert distance == pytest.approx(1.05 * cameras.fitting_distance(fov, "sphere"))
    assert stage.as_in_training(placed, fov)
    assert cameras.flaw(placed[0]) == ""
    points = np.c_[rng.standard_normal((5, 3)), np.ones(5)]  # the matrix moves points as `to` moves cameras
    moved = points @ found.matrix().T
    kept, expected = (
        cameras.project(each[:, :3], pose, np.ones(4))[0] for each, pose in ((moved, placed), (points, c2w))
    )
    assert np.allclose(kept, expected, rtol=1e-5, atol=1e-5)


def test_cameras_that_look_at_no_point_have_one_before_them() -> None:
    side_by_side = np.tile(np.eye(4), (3, 1, 1))
    side_by_side[:, 0, 3] = [0, 1, 2]
    assert np.allclose(cameras.looked_at(side_by_side), [1, 0, 1])
    on_the_spot = cameras.look_at(np.zeros((3, 3)), np.array([[1.0, 0, 0], [1, 1, 0], [1, -1, 0]]))
    assert np.allclose(cameras.looked_at(on_the_spot), [1, 0, 0], atol=1e-9)


def test_inputs_near_a_path_are_those_that_see_what_it_sees() -> None:
    ring = cameras.circle(36, 20.0, 2.0)
    path = cameras.circle(360, 20.0, 2.0)[:90]
    chosen = stage.near(ring, path, 3)
    assert len(set(chosen)) == 3 and max(chosen) <= 9
    assert max(np.diff([0, *chosen, 9])) <= 4, "spread along the path"


@pytest.mark.parametrize("route", ROUTES)
def test_paths_that_have_a_name(route: str, run: Path, data: Path, tmp_path: Path) -> None:
    frames = [] if route == "others" else ["--frames", 7]
    said, _ = synthesize(run, "--data", data, "--uid", "ball-3", "--poses", route, *frames, "--out", tmp_path / "o")
    cams = json.loads((tmp_path / "o/cameras.json").read_text())
    c2w, one = np.array(cams["c2w"]), Dataset(data)["ball-3"]
    count = 8 if route == "others" else 7
    assert len(c2w) == len(cams["pictures"]) == len(pictures_in(tmp_path / "o")) == count
    assert all(cameras.flaw(pose) == "" for pose in c2w)
    if route == "others":
        left = np.setdiff1d(range(12), cams["inputs"]["views"])
        assert np.array_equal(c2w, one.c2w[left]) and "PSNR beside the photos" in said and len(cams["psnr"]) == 8
    elif route != "views":
        toward = -c2w[:, :3, 3] / np.linalg.norm(c2w[:, :3, 3], axis=-1, keepdims=True)
        assert np.allclose(c2w[:, :3, 2], toward, atol=1e-6)
        mean = np.linalg.norm(one.c2w[:, :3, 3], axis=-1).mean()
        assert np.linalg.norm(c2w[:, :3, 3], axis=-1).mean() == pytest.approx(mean, rel=0.05)
    assert (tmp_path / "o/film.mp4").stat().st_size > 500
    page = (tmp_path / "o/index.html").read_text()
    assert "video/mp4" in page and "New views of ball-3" in page


def test_own_cameras_are_taken_again(run: Path, walked: Path, tmp_path: Path) -> None:
    """cameras.json is in the world of the photos: given as --poses it leads to the same pictures. Its world was moved."""
    said, warned = synthesize(run, "--input", walked, "--frames", 4, "--world", "fit", "--out", tmp_path / "a")
    assert "looks like colmap" in said and "the world is moved by" in warned and "25% of a photo is cropped" in warned
    synthesize(
        run,
        "--input",
        walked,
        "--world",
        "fit",
        "--poses",
        tmp_path / "a/cameras.json",
        "--choose",
        "far",
        "--out",
        tmp_path / "b",
    )
    assert np.abs(pictures_in(tmp_path / "a").astype(int) - pictures_in(tmp_path / "b")).max() <= 1


def test_poses_of_the_verb_paths_in_both_files(run: Path, data: Path, tmp_path: Path) -> None:
    made = lvsm_data_here(
        "paths", "--kind", "orbit", "--frames", 3, "--width", 64, "--height", 64, "--out", tmp_path / "p"
    )
    assert made.returncode == 0, made.stderr
    for name in ("rig", "camera_path"):
        synthesize(run, "--data", data, "--poses", tmp_path / f"p/{name}.json", "--out", tmp_path / name)
    assert np.array_equal(pictures_in(tmp_path / "rig"), pictures_in(tmp_path / "camera_path"))
    k = json.loads((tmp_path / "rig/cameras.json").read_text())["fxfycxcy"]
    assert np.allclose(k, cameras.intrinsics(50.0, (32, 32)))


# ---- warnings and refusals


def test_another_shape_is_warned_of_and_never_stretched(run: Path, walked: Path, tmp_path: Path) -> None:
    _, warned = synthesize(
        run, "--input", walked, "--aspect", "photos", "--poses", "circle", "--frames", 1, "--out", tmp_path / "o"
    )
    assert "pictures of 40x24 pixels, and the model was trained at 32x32" in warned and "`train --aspect`" in warned
    assert "is cropped" in warned and "a larger --res comes nearer" in warned and "--aspect photos" not in warned
    cams = json.loads((tmp_path / "o/cameras.json").read_text())
    fx, fy = cams["inputs"]["fxfycxcy"][0][:2]
    assert fx / fy == pytest.approx(1.21 / 1.13, rel=0.02)  # that of the camera, and no other
    assert pictures_in(tmp_path / "o").shape == (1, 24, 40, 3)
    assert not (tmp_path / "o/film.mp4").exists()


def test_shapes_of_training_are_taken_without_a_warning(data: Path, tmp_path: Path) -> None:
    several = run_of(tmp_path / "run", data, aspect=("1:1", "16:9", "2:3"))
    assert lvsm_train.load(several, device="cpu").sizes == [(32, 32), (16, 32), (32, 24)]
    views = ["--data", data, "--poses", "circle", "--frames", 1]
    for aspect, hw in (("16:9", (16, 32)), ("2:3", (32, 24)), ("trained", (32, 32))):
        _, warned = synthesize(several, *views, "--aspect", aspect, "--out", tmp_path / aspect.replace(":", "-"))
        assert pictures_in(tmp_path / aspect.replace(":", "-")).shape[1:3] == hw and "artefacts" not in warned
    _, warned = synthesize(several, *views, "--aspect", "3:1", "--out", tmp_path / "wide")
    assert "trained at 32x32 and 32x16 and 24x32" in warned and "afterwards" not in warned
    assert "--aspect photos keeps the first photo's shape" in warned
    _, warned = synthesize(several, *views, "--res", 64, "--out", tmp_path / "large")
    assert "without --res, are better, also when they are enlarged" in warned


def test_a_broken_photo_is_left_out(run: Path, walked: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(walked, tmp_path / "in")
    first = photos / "images/left eye/000.jpg"
    first.write_bytes(first.read_bytes()[:2000])
    _, warned = synthesize(run, "--input", photos, "--frames", 2, "--out", tmp_path / "o")
    assert "1 photos are left out: left eye/000.jpg" in warned
    assert len(json.loads((tmp_path / "o/cameras.json").read_text())["inputs"]["names"]) == 4


def test_cameras_that_do_not_fit_are_warned_of(run: Path, tmp_path: Path) -> None:
    photos = foreign.nerfstudio(tmp_path / "in", balls.walk(4, PHOTO, step=0.2), in_room=True)
    facts = foreign.read_json(photos / "transforms.json")
    poses = [frame["transform_matrix"] for frame in facts["frames"]]
    for frame, pose in zip(facts["frames"], [poses[3], poses[2], poses[1], poses[0]], strict=True):
        frame["transform_matrix"] = pose
    (photos / "transforms.json").write_text(json.dumps(facts))
    _, warned = synthesize(run, "--input", photos, "--frames", 2, "--out", tmp_path / "o")
    assert "the cameras do not fit" in warned
    _, warned = synthesize(run, "--input", photos, "--frames", 2, "--no-verify-cameras", "--out", tmp_path / "quiet")
    assert "do not fit" not in warned


@pytest.mark.parametrize(
    ("arguments", "says", "next_step"),
    [
        (["--input", "{walked}", "--data", "{data}"], "one of them", "--input"),
        (["--input", "{empty}"], "looks like no capture", "--source"),
        (["--input", "{data}"], "holds shards of lvsm-data", "--data"),
        (["--input", "{empty}/nowhere"], "does not exist", ""),
        (["--data", "{data}", "--uid", "nobody"], "has no object nobody", "ball-0"),
        (["--input", "{walked}", "--uid", "nobody"], "has no capture nobody", "in"),
        (["--input", "{walked}", "--inputs", 9], "5 photos that can be used, and the model is to see 9", "--inputs 5"),
        (["--data", "{data}", "--views", 1, 40], "has no photo 40", "0 to 11"),
        (["--data", "{data}", "--views", 1, "--inputs", 1], "--views names the inputs", "leave"),
        (["--data", "{data}", "--poses", "{broken}"], "is no rig", "c2w"),
        (["--data", "{data}", "--poses", "sideways"], "no path and no file", "orbit"),
        (["--data", "{data}", "--poses", "views", "--inputs", 1], "two inputs or more", "--inputs 2"),
        (["--data", "{data}", "--poses", "views", "--choose", "near"], "--choose near needs a path", "far"),
        (["--data", "{data}", "--aspect", "wide"], "is no shape", "16:9"),
        (["--data", "{data}", "--frames", "3", "--poses", "others"], "--frames is for paths", "leave it out"),
        (["--data", "{data}", "--world", "fit", "--kind", "scene"], "--world is for objects", "leave it out"),
        (["--data", "{data}", "--res", "100000"], "over 8 times as large as the 32 of training", "--res 32"),
        (["--data", "{data}", "--out", "{walked}"], "is there already", "--out"),
        (["--data", "{data}", "--frames", 0], "--frames 0 is not positive", ""),
    ],
)
def test_what_is_refused_leaves_nothing(
    arguments: list[object], says: str, next_step: str, run: Path, data: Path, walked: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text('{"c2w": [[1, 2], [3]]}')
    places = {"walked": walked, "data": data, "empty": tmp_path / "empty", "broken": tmp_path / "broken.json"}
    given = [each.format(**places) if isinstance(each, str) else each for each in arguments]
    out = [] if "--out" in given else ["--out", tmp_path / "o"]
    ended = lvsm_data_here("synthesize", run, *given, *out)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    error, _, hint = ended.stderr.partition("hint: ")
    assert says in error and next_step in hint
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "broken.json"}


# ---- from Python


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return lvsm_train.load(run, device="cpu")


@pytest.fixture(scope="module")
def one(data: Path) -> Object:
    return Dataset(data)["ball-4"]


def test_render_takes_arrays_and_tensors(model: Model, one: Object) -> None:
    shown, asked = [0, 3, 5, 7], [1, 2, 9]
    given_ = one.images[shown], one.c2w[shown], one.fxfycxcy[shown], one.c2w[asked], one.fxfycxcy[asked]
    made = model.render(*given_)
    assert made.shape == (3, 32, 32, 3) and made.dtype == np.float32 and 0 <= made.min() < made.max() <= 1
    floats = (torch.tensor(given_[0]).float() / 255, *map(torch.tensor, given_[1:]))
    assert np.allclose(model.render(*floats), made, atol=1e-6)
    assert np.allclose(model.render(*given_, batch=1), made, atol=1e-5)
    half = (floats[0].bfloat16(), *floats[1:])
    assert np.allclose(model.render(*half), made, atol=0.05)
    assert model.render(*given_, hw=(24, 40)).shape == (3, 24, 40, 3)
    assert not np.allclose(model.render(*given_, is_scene=True), made, atol=1e-2)


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (0, np.zeros((4, 3, 32, 32), np.uint8), "give (N, H, W, 3)"),
        (0, np.full((4, 32, 32, 3), 255.0), "floats lie in"),
        (0, np.zeros((4, 30, 32, 3), np.uint8), "no whole patches of 8"),
        (1, np.eye(4)[None], "one pose per picture"),
        (1, np.tile(2 * np.eye(4), (4, 1, 1)), "c2w[0]: axes that are not orthonormal"),
        (0, [np.zeros((32, 32, 3), np.uint8), np.zeros((16, 32, 3), np.uint8)], "images are of different sizes"),
        (1, [{}], "c2w is no array of numbers"),
        (2, np.zeros((4, 4)), "fxfycxcy has numbers that are not finite, or focal lengths that are not positive"),
        (2, np.full((4, 4), np.nan), "fxfycxcy has numbers that are not finite"),
        (3, np.eye(4), "target_c2w is (4, 4)"),
        (4, np.ones((2, 4)), "target_fxfycxcy is (2, 4)"),
    ],
)
def test_render_says_what_is_no_picture_or_camera(place: int, value: Any, says: str, model: Model, one: Object) -> None:
    given_: list[Any] = [one.images[:4], one.c2w[:4], one.fxfycxcy[:4], one.c2w[4:5], one.fxfycxcy[4:5]]
    given_[place] = value
    with pytest.raises(ValueError) as raised:
        model.render(*given_)
    assert says in str(raised.value)


@pytest.mark.parametrize("hw", [(0, 32), (-8, 32), (32.0, 32.0), (32,), 32])
def test_render_says_what_is_no_size(hw: Any, model: Model, one: Object) -> None:
    with pytest.raises(ValueError, match="give \\(height, width\\) in pixels"):
        model.render(one.images[:4], one.c2w[:4], one.fxfycxcy[:4], one.c2w[4:5], one.fxfycxcy[4:5], hw=hw)


@pytest.mark.parametrize("batch", [0, -1, 2.5, None])
def test_render_says_what_is_no_batch(batch: Any, model: Model, one: Object) -> None:
    with pytest.raises(ValueError, match="give a number of views, 1 or more"):
        model.render(one.images[:4], one.c2w[:4], one.fxfycxcy[:4], one.c2w[4:5], one.fxfycxcy[4:5], batch=batch)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"step": "7"}, "step '7' is no whole number"),
        ({"step": 7.0}, "step 7.0 is no whole number"),
        ({"step": 8}, "it has 7"),
        ({"device": None}, "--device None is no device"),
        ({"device": "banana"}, "--device banana is no device"),
    ],
    ids=["text", "float", "none", "nothing", "banana"],
)
def test_load_says_what_is_no_step_or_device(more: dict[str, Any], says: str, run: Path) -> None:
    with pytest.raises(UserError, match=says):
        lvsm_train.load(run, **more)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says that there is no GPU")
def test_a_gpu_that_is_not_there_is_named(run: Path) -> None:
    with pytest.raises(UserError, match="--device cuda: this machine has no GPU"):
        lvsm_train.load(run, device="cuda")


def test_the_package_is_light_until_a_model_is_loaded() -> None:
    code = "import sys, lvsm_train; assert 'load' in lvsm_train.__all__; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
