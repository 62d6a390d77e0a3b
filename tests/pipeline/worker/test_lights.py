"""Light set-ups: irradiance against numerical integration, and what Blender shows of them against both."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.render import PASSES, RenderConfig, SceneConfig
from pipeline.core import images
from pipeline.core.errors import UserError
from pipeline.core.records import Scene
from pipeline.worker import lights
from pipeline.worker.blender import Blender, Frame
from pipeline.worker.lights import LIGHTS, background, irradiance
from pipeline.worker.render import build_job, poses
from tests.conftest import Render

os.environ["OPENCV_IO_ENABLE_OPENEXR"] = "1"  # before OpenCV is imported
import cv2

seeds = st.integers(0, 2**32 - 1)


def sky(setup: dict, directions: np.ndarray) -> np.ndarray:
    """Radiance (N, 3) by direction (N, 3), as the module's docstring has it."""
    total = np.tile(np.asarray(setup["world"], float), (len(directions), 1))
    for lobe in setup["lobes"]:
        total += (((1 + directions @ np.array(lobe["direction"])) / 2) ** 2)[:, None] * lobe["color"]
    return total


def many_directions(count: int, seed: int) -> np.ndarray:
    direction = np.random.default_rng(seed).normal(size=(count, 3))
    return direction / np.linalg.norm(direction, axis=1, keepdims=True)


@given(seeds)
def test_irradiance_is_the_integral_of_the_sky(seed: int) -> None:
    """A quasi-random integral of radiance times cosine over each normal's hemisphere, over pi."""
    setup = lights._random_dome(np.random.default_rng(seed))
    around, normals = lights._fibonacci(20_000), many_directions(5, seed)
    weights = np.maximum(normals @ around.T, 0) * 4 / len(around)  # 4 pi / N, over pi
    np.testing.assert_allclose(
        irradiance(setup["world"], setup["lobes"], normals), weights @ sky(setup, around), rtol=2e-3
    )


@given(seeds)
def test_no_white_surface_in_a_dome_is_as_bright_as_a_white_background(seed: int) -> None:
    for setup in (LIGHTS["dome"](np.random.default_rng(seed)), lights._random_dome(np.random.default_rng(seed))):
        bright = irradiance(setup["world"], setup["lobes"], many_directions(4000, seed))
        assert 0.79 < bright.max() < 0.802  # WHITEST, between the directions that were tried too
        assert images.srgb8(bright).max() <= 231
        assert setup["suns"] == []
        np.testing.assert_allclose([np.linalg.norm(lobe["direction"]) for lobe in setup["lobes"]], 1)


def test_the_dome_is_the_same_for_every_object_and_random_ones_are_not() -> None:
    assert LIGHTS["dome"](np.random.default_rng(0)) == LIGHTS["dome"](np.random.default_rng(1))
    drawn = [LIGHTS["random"](np.random.default_rng(seed)) for seed in range(60)]
    domes = [setup for setup in drawn if setup["lobes"]]
    assert 20 < len(domes) < 40 and all(len(setup["lobes"]) in (2, 3) for setup in domes)
    assert len({str(setup) for setup in drawn}) == 60
    assert LIGHTS["random"](np.random.default_rng(7)) == LIGHTS["random"](np.random.default_rng(7))


def ball(path: Path) -> Path:
    """A sphere of 20,000 triangles as STL: no material, so Blender's own grey (0.8) with a little gloss."""
    rows, columns = np.meshgrid(np.linspace(0, np.pi, 101), np.linspace(0, 2 * np.pi, 101), indexing="ij")
    at = np.stack([np.sin(rows) * np.cos(columns), np.sin(rows) * np.sin(columns), np.cos(rows)], -1)
    quads = np.stack([at[:-1, :-1], at[1:, :-1], at[1:, 1:], at[:-1, 1:]], 2).reshape(-1, 4, 3)
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype("<f4")
    records = np.zeros(len(triangles), [("normal", "<f4", 3), ("points", "<f4", (3, 3)), ("rest", "<u2")])
    records["points"] = triangles
    path.write_bytes(b"\0" * 80 + np.uint32(len(triangles)).tobytes() + records.tobytes())
    return path


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two environment maps, 64 x 32: one with a bright, wide, coloured spot to one side and above, and one that is all grey."""
    folder = tmp_path_factory.mktemp("maps")
    at = lights.map_directions(32, 64)
    towards = np.array([0.3, 0.8, 0.52])
    spot = np.exp(8 * (at @ (towards / np.linalg.norm(towards)) - 1))[..., None]
    for name, rgb in [("a.hdr", 0.2 + spot * [6.0, 4.0, 2.0]), ("b.exr", np.full((32, 64, 3), 3.0))]:
        assert cv2.imwrite(str(folder / name), np.ascontiguousarray(rgb[..., ::-1], np.float32))
    (folder / "c.txt").write_text("no map")
    return folder


def test_maps_are_drawn_by_seed_and_never_leave_white_surfaces_white(maps: Path) -> None:
    cfg = SceneConfig(lights="hdri", hdri=str(maps)).resolved()
    drawn = [lights.lights_of(cfg, f"object {number}")["hdri"] for number in range(40)]
    assert {Path(each["path"]).name for each in drawn} == {"a.hdr", "b.exr"}
    assert len({each["turn"] for each in drawn}) == 40
    assert lights.lights_of(cfg, "object 3")["hdri"] == drawn[3]
    around, normals = lights.EVERYWHERE, many_directions(50, 0)
    for each in drawn[:6]:
        radiance = each["strength"] * lights.seen_towards(lights.environment(each["path"], 64), around, each["turn"])
        weights = np.maximum(normals @ around.T, 0) * 4 / len(around)
        assert 0.7 < (weights @ radiance).max() < 0.83


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lights": "hdri"}, "--lights hdri and --hdri FOLDER go together"),
        ({"hdri": "."}, "--lights hdri and --hdri FOLDER go together"),
        ({"lights": "hdri", "hdri": "/nowhere"}, "--hdri /nowhere is no folder"),
        ({"background": "hdri"}, "--background hdri needs --lights hdri"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        SceneConfig(**settings).resolved()


def test_folders_and_files_that_are_no_maps(tmp_path: Path, assets: Path, render: Render) -> None:
    with pytest.raises(UserError, match="holds no environment map"):
        SceneConfig(lights="hdri", hdri=str(tmp_path)).resolved()
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "broken.hdr").write_bytes(b"#?RADIANCE\nnot much")
    outcome = render(assets / "off_origin.glb", lights="hdri", hdri=str(tmp_path / "maps"))
    assert outcome.reason == "bad_environment_map" and "broken.hdr is no environment map" in outcome.detail


def test_another_choice_of_maps_is_another_run(maps: Path, tmp_path: Path) -> None:
    scene = SceneConfig(lights="hdri", hdri=str(maps))
    assert RenderConfig(scene=scene).resolved().identity()["hdri_maps"] == ["a.hdr", "b.exr"]


def test_a_ball_under_a_map_is_lit_from_where_the_background_is_bright(
    tmp_path: Path, maps: Path, blender: Blender
) -> None:
    """Ties Blender's lookup of the map, its turn and its strength to ours, which paints the background."""
    cfg = SceneConfig(
        res=(64,), views=4, samples=128, lights="hdri", hdri=str(maps), background="hdri", normals=True
    ).resolved()
    uid = next(uid for uid in map(str, range(99)) if lights.lights_of(cfg, uid)["hdri"]["path"].endswith("a.hdr"))
    setup = lights.lights_of(cfg, uid)
    chosen = setup["hdri"]
    around = lights._fibonacci(4000)
    sky = chosen["strength"] * lights.seen_towards(lights.environment(chosen["path"], 64), around, chosen["turn"])
    job = build_job(cfg, uid, poses(cfg, uid), 1) | {"path": str(ball(tmp_path / "ball.stl")), "format": "stl"}
    for frame in (answer for answer in blender.render(job) if isinstance(answer, Frame)):
        normals, rgba = frame.full("normals"), frame.full("rgba")
        facing = (rgba[..., 3] > 0.999) & (normals @ -poses(cfg, uid)[frame.index][:3, 2] > 0.5)
        predicted = 0.8 * np.maximum(normals[facing] @ around.T, 0) @ sky * 4 / len(around)
        ratio = rgba[facing][:, :3] / predicted
        assert 0.95 < ratio.mean() < 1.2, ratio.mean()
        assert np.corrcoef(rgba[facing][:, 0], predicted[:, 0])[0, 1] > 0.97
    behind, facts = background(cfg, uid, setup)
    assert facts == {
        "background": "hdri",
        "hdri": "a.hdr",
        "hdri_turn": chosen["turn"],
        "hdri_strength": chosen["strength"],
    }
    picture = behind(poses(cfg, uid)[0], 64)
    assert picture.shape == (64, 64, 3)
    forward = poses(cfg, uid)[0][:3, 2][None]
    middle = (
        chosen["strength"] * lights.seen_towards(lights.environment(chosen["path"], 64), forward, chosen["turn"])[0]
    )
    np.testing.assert_allclose(picture[31:33, 31:33].mean((0, 1)), middle, rtol=0.05)


@pytest.mark.parametrize("name", ["dome", "uniform"])
def test_a_ball_is_as_bright_as_its_normals_say(tmp_path: Path, blender: Blender, name: str) -> None:
    """From below, above and beside: so the sky's directions are the world's, and its strength is the one that was asked for."""
    cfg = SceneConfig(res=(64,), views=8, samples=64, lights=name, normals=True, seed=2).resolved()  # type: ignore[arg-type]
    path = ball(tmp_path / "ball.stl")
    setup = LIGHTS[name](np.random.default_rng(0))
    job = build_job(cfg, "ball", poses(cfg, "ball"), 1) | {"path": str(path), "format": "stl"}
    for frame in (answer for answer in blender.render(job) if isinstance(answer, Frame)):
        normals, rgba = frame.full("normals"), frame.full("rgba")
        inside = (rgba[..., 3] > 0.999) & (np.linalg.norm(normals, axis=-1) > 0.99)
        # light that arrives at grazing angles is reflected by the gloss, so only what faces the camera is compared
        facing = inside & (normals @ -poses(cfg, "ball")[frame.index][:3, 2] > 0.5)
        predicted = 0.8 * irradiance(setup["world"], setup["lobes"], normals[facing])
        ratio = rgba[facing][:, :3] / predicted
        assert 0.97 < ratio.mean() < 1.12 and ratio.std() < 0.05, (frame.index, ratio.mean(), ratio.std())
        if name == "dome":
            assert np.corrcoef(rgba[facing][:, 1], predicted[:, 1])[0, 1] > 0.98


# ---- backgrounds


@pytest.mark.parametrize(("name", "color"), [("white", 255), ("black", 0), ("grey", 128)])
def test_where_nothing_is_the_background_is_exact(assets: Path, render: Render, name: str, color: int) -> None:
    made = render(assets / "off_origin.glb", background=name, quality=100).scene
    assert made is not None and made.meta["background"] == [color] * 3
    for jpeg in made.by_width[64].jpegs:
        assert (images.decode(jpeg)[[0, 0, -1, -1], [0, -1, 0, -1]] == color).all()


def test_random_backgrounds_are_of_the_object_and_its_seed(assets: Path, render: Render) -> None:
    made = [render(assets / "off_origin.glb", uid=uid, background="random").scene for uid in ("a", "b", "a")]
    colors = [scene.meta["background"] for scene in made if scene is not None]
    assert len(colors) == 3 and colors[0] == colors[2] != colors[1]
    corner = images.decode(made[0].by_width[64].jpegs[0])[0, 0]  # type: ignore[union-attr]
    np.testing.assert_allclose(corner, colors[0], atol=4)


def test_the_documented_way_to_another_background(assets: Path, render: Render) -> None:
    """The code block of docs/cameras.md makes of a picture on white what rendering on another colour makes."""
    docs = (Path(__file__).parents[3] / "docs" / "cameras.md").read_text(encoding="utf-8")
    block = re.findall(r"```python\n(.*?)```", docs, re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(block, names)
    white, grey = (
        render(assets / "off_origin.glb", background=name, alpha=True, quality=100) for name in ("white", "grey")
    )
    assert white.scene is not None and grey.scene is not None
    views = white.scene.by_width[64]
    for number, expected in enumerate(grey.scene.by_width[64].jpegs):
        row = {
            "image": {"bytes": views.jpegs[number]},
            "alpha": views.layers["alpha"][number],
            "meta": json.dumps(white.scene.meta),
        }
        made = 255 * names["on"](row, [128 / 255] * 3)
        apart = np.abs(made - images.decode(expected))
        assert apart.max() < 14 and apart.mean() < 0.5  # alpha has 8 bits, and an edge on white few levels


def test_a_picture_before_a_map_shows_it_where_nothing_is(assets: Path, maps: Path, render: Render) -> None:
    made = render(assets / "off_origin.glb", lights="hdri", hdri=str(maps), background="hdri", alpha=True, quality=100)
    assert made.scene is not None, f"{made.reason}: {made.detail}"
    cfg = SceneConfig(lights="hdri", hdri=str(maps), background="hdri").resolved()
    behind, _ = background(cfg, "off_origin.glb", lights.lights_of(cfg, "off_origin.glb"))
    views = made.scene.by_width[64]
    for pose, jpeg, png in zip(made.scene.c2w, views.jpegs, views.layers["alpha"], strict=True):
        empty = images.decode(png) == 0
        np.testing.assert_allclose(
            images.decode(jpeg)[empty].astype(int), images.srgb8(behind(pose, 64))[empty].astype(int), atol=6
        )


# ---- determinism

LOOKS = {
    **{f"{name} light": {"lights": name} for name in LIGHTS},
    "a map": {"lights": "hdri", "background": "hdri"},
    "a box": {"normalize": "box"},
    "a random background": {"background": "random"},
    "all passes": dict.fromkeys(("alpha", *PASSES), True),
    "the denoiser": {"denoise": "on"},
}


Scenes = dict[str, list[Scene]]


@pytest.fixture(scope="module")
def rendered(assets: Path, maps: Path, blender: Blender, render: Render) -> Scenes:
    """An object in each look three times: before and after another one, and in a new process, also after another one."""

    def scene(name: str, look: str) -> Scene:
        made = render(assets / name, **LOOKS[look] | ({"hdri": str(maps)} if look == "a map" else {}))
        assert made.scene is not None, f"{made.reason}: {made.detail}"
        return made.scene

    scenes: Scenes = {look: [] for look in LOOKS}
    for look in LOOKS:
        first = scene("surfaces.blend", look)
        scene("off_origin.glb", look if look != "a map" else "dome light")  # a map takes Blender two seconds each time
        scenes[look] = [first, scene("surfaces.blend", look)]
    blender.close()
    for look in LOOKS:
        scene("two_roots.glb", look if look != "a map" else "dome light")
        scenes[look].append(scene("surfaces.blend", look))
    return scenes


@pytest.mark.parametrize("look", LOOKS)
def test_bits_depend_on_neither_what_came_before_nor_the_process(rendered: Scenes, look: str) -> None:
    first, *others = rendered[look]
    assert len(others) == 2
    for other in others:
        assert np.array_equal(first.c2w, other.c2w) and first.meta == other.meta
        for width, views in first.by_width.items():
            assert views.jpegs == other.by_width[width].jpegs and views.layers == other.by_width[width].layers
