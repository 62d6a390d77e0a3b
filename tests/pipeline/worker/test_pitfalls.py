"""Every row of the field's list of rendering mistakes that a small scene can show, through the real worker."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.render import RenderConfig, SceneConfig
from pipeline.core import cameras, images
from pipeline.core.records import Item, Outcome
from pipeline.worker.blender import Blender
from pipeline.worker.render import Renderer
from pipeline.worker.worker import make_worker
from tests.conftest import SHARED_OBJECTS, Render

OFFICIAL = sorted(SHARED_OBJECTS.glob("example*.*")) if SHARED_OBJECTS.is_dir() else []


def pixels(outcome: Outcome, width: int = 64) -> np.ndarray:
    """(V, H, W, 3) bytes of a delivered scene."""
    assert outcome.scene is not None, f"{outcome.reason}: {outcome.detail}"
    return np.stack([images.decode(jpeg) for jpeg in outcome.scene.by_width[width].jpegs])


def foreground(picture: np.ndarray) -> np.ndarray:
    """Mean colour of what is not white."""
    return picture[picture.min(-1) < 200].mean(0)


def bounds_after(outcome: Outcome) -> np.ndarray:
    """The stored raw bounds (2, 3), moved by the stored transform."""
    assert outcome.scene is not None, f"{outcome.reason}: {outcome.detail}"
    matrix = np.array(outcome.scene.meta["transform"])
    return np.array(outcome.scene.meta["raw_bounds"]) @ matrix[:3, :3].T + matrix[:3, 3]


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("off_origin.glb", [[499.5, -300.5, 199.5], [500.5, -299.5, 200.5]]),
        ("two_roots.glb", [[-5.5, -0.5, -0.5], [5.5, 0.5, 0.5]]),
        ("rigged.glb", [[-0.05, -0.05, 4.95], [0.05, 0.05, 5.05]]),
        ("animated.blend", [[-0.5, -0.5, 6.5], [0.5, 0.5, 7.5]]),
        ("instances.blend", [[-1, -1, 2], [7, 1, 4]]),
        ("curve.blend", [[7.7, -2.3, -0.3], [12.3, 2.3, 0.3]]),
        ("text.blend", None),
        ("hidden.blend", [[2.5, -0.5, -0.5], [7.5, 0.5, 0.5]]),
        ("tiny.glb", [[1.5e-4, -5e-5, -5e-5], [2.5e-4, 5e-5, 5e-5]]),
        ("huge.glb", [[1.5e5, -5e4, -5e4], [2.5e5, 5e4, 5e4]]),
    ],
)
def test_what_is_rendered_is_measured_and_centred(
    assets: Path, render: Render, name: str, raw: list[list[float]] | None
) -> None:
    outcome = render(assets / name, normalize="box")
    low, high = bounds_after(outcome)
    np.testing.assert_allclose(low, -high, atol=1e-4)
    assert (high - low).max() == pytest.approx(1, abs=1e-4)
    if raw is not None:
        scale = (np.array(raw)[1] - np.array(raw)[0]).max()
        np.testing.assert_allclose(outcome.scene.meta["raw_bounds"], raw, atol=1e-3 * scale)
    for picture in pixels(outcome):
        shown = np.argwhere(picture.min(-1) < 240)
        assert len(shown) >= 10  # every view shows it
        assert shown.min() > 0  # and all of it
        assert shown.max() < 63
        predicted, _ = cameras.project(np.zeros((1, 3)), outcome.scene.c2w[0], outcome.scene.by_width[64].intrinsics[0])
        np.testing.assert_allclose(predicted[0], [32, 32], atol=1e-4)


@pytest.mark.parametrize(
    "name", ["off_origin.glb", "two_roots.glb", "rigged.glb", "instances.blend", "tiny.glb", "huge.glb"]
)
def test_the_objects_sphere_gets_radius_one_half(assets: Path, render: Render, name: str) -> None:
    """Of boxes along the axes the farthest points are the corners of their bounds, of other objects they lie within."""
    outcome = render(assets / name, alpha=True)
    low, high = bounds_after(outcome)
    np.testing.assert_allclose(low, -high, atol=1e-4)
    farthest = np.linalg.norm(high)
    assert 0.5 - 1e-4 <= farthest <= np.sqrt(0.75)
    if name != "instances.blend":
        assert farthest == pytest.approx(0.5, abs=1e-4)
    assert outcome.scene is not None
    alphas = np.stack([images.decode(png) for png in outcome.scene.by_width[64].layers["alpha"]])
    assert alphas[:, [0, -1]].max() < 128 and alphas[:, :, [0, -1]].max() < 128  # never cut


def test_two_roots_are_both_in_the_picture(assets: Path, render: Render) -> None:
    picture = pixels(render(assets / "two_roots.glb", views=8)).reshape(-1, 3).astype(int)
    assert ((picture[:, 0] - picture[:, 2]) > 60).sum() > 20  # the red one
    assert ((picture[:, 2] - picture[:, 0]) > 60).sum() > 20  # the blue one, ten units away


def test_imported_lights_do_not_shine(assets: Path, render: Render) -> None:
    colour = foreground(pixels(render(assets / "hidden.blend", views=8)))
    assert colour.max() < 245  # a sun of 1000 W/m2 in the file would burn it white


def test_deep_stacks_of_transparent_layers_stay_transparent(assets: Path, render: Render) -> None:
    pictures = pixels(render(assets / "alpha_layers.blend", views=8))
    assert (pictures.min((1, 2)) >= 0).all()
    dark = (pictures.max(-1) < 150).mean()
    assert dark == 0  # at 3 bounces, as the reference renderers set it, the planes are black
    np.testing.assert_allclose(foreground(pictures), [255, 0, 0], atol=35)


@pytest.mark.parametrize("lights", ["dome", "uniform", "studio", "random"])
def test_background_is_exactly_white(assets: Path, render: Render, lights: str) -> None:
    pictures = pixels(render(assets / "off_origin.glb", lights=lights, views=4))
    assert (pictures[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    assert foreground(pictures)[0] > foreground(pictures)[2] + 40  # and the box is still red


@pytest.mark.parametrize("name", ["red.ply", "embedded.fbx"])
def test_colours_of_the_file_are_shown(assets: Path, render: Render, name: str) -> None:
    red, green, blue = foreground(pixels(render(assets / name, lights="uniform")))
    assert red > 200
    assert max(green, blue) < 80


def test_missing_texture_is_neutral_and_flagged(assets: Path, render: Render) -> None:
    outcome = render(assets / "missing_texture.obj")
    colour = foreground(pixels(outcome))
    assert np.ptp(colour) < 3  # grey, where Blender shows magenta
    assert 60 < colour.mean() < 200
    assert outcome.scene.meta["missing_textures"] == 1


@pytest.mark.parametrize(
    "name", ["clear_shell.glb", "scale_0.glb", "sliver.glb", "growing.blend", "cube_of_side_2.glb"]
)
def test_what_no_ray_can_hit_does_not_count(assets: Path, render: Render, name: str) -> None:
    outcome = render(assets / name)
    low, high = bounds_after(outcome)
    np.testing.assert_allclose(high - low, 1 / np.sqrt(3), atol=1e-3)  # a cube in a sphere of radius 0.5
    np.testing.assert_allclose(low, -high, atol=1e-3)
    assert outcome.scene is not None and outcome.scene.meta["coverage"] > 0.15
    assert outcome.scene.meta["animated"] == (name == "growing.blend")


@pytest.mark.parametrize(
    ("name", "has"),
    [
        ("embedded.fbx", {"textured"}),
        ("missing_texture.obj", set()),
        ("red.ply", {"has_vertex_colors"}),
        ("growing.blend", {"animated"}),
    ],
)
def test_traits_are_facts_and_what_only_goes_by(
    assets: Path, blender: Blender, tmp_path: Path, render: Render, name: str, has: set[str]
) -> None:
    scene = render(assets / name).scene
    flags = {"textured": "textured", "colored": "has_vertex_colors", "animated": "animated"}
    assert scene is not None and {fact for fact in flags.values() if scene.meta[fact]} == has
    assert scene.facts.items() >= {fact: scene.meta[fact] for fact in flags.values()}.items()  # of the ledger
    for flag, fact in flags.items():
        quick = SceneConfig(views=1, samples=1, res=(16,))
        cfg = RenderConfig(source="local", input=assets, allow_blend=True, out=tmp_path, only=(flag,), scene=quick)  # type: ignore[arg-type]
        worker = make_worker(cfg.resolved())
        assert isinstance(worker.maker, Renderer)
        worker.maker.blender = blender
        outcome = worker(Item(uid=name, source="local", url=str(assets / name)))
        assert (outcome.reason or "delivered") == ("delivered" if fact in has else f"not_{flag}")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nan.obj", "outlier_geometry"),
        ("empty_scene.obj", "empty"),
        ("degenerate.obj", "degenerate"),
        ("unheard_of.glb", "unsupported_extension"),
    ],
)
def test_unusable_files_end_with_a_reason(assets: Path, render: Render, name: str, reason: str) -> None:
    outcome = render(assets / name)
    assert outcome.scene is None
    assert outcome.reason == reason
    assert outcome.detail
    assert outcome.tries == 1


def test_scripts_in_blend_files_do_not_run(assets: Path, render: Render) -> None:
    assert render(assets / "scripted.blend").scene is not None
    assert not (assets / "canary").exists()


def test_broken_importer_input_is_a_reason_with_the_importers_words(tmp_path: Path, render: Render) -> None:
    (tmp_path / "broken.fbx").write_bytes(b"Kaydara FBX Binary  \x00\x1a\x00" + os.urandom(300))
    outcome = render(tmp_path / "broken.fbx")
    assert outcome.reason in ("import_failed", "empty")
    assert outcome.detail
    assert render(tmp_path.parent / "nothing.glb").reason == "file_missing"


@pytest.mark.skipif(not OFFICIAL, reason="the official example objects are not beside this checkout")
@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.name)
def test_official_example_objects(path: Path, render: Render) -> None:
    outcome = render(path, views=6, normalize="box")
    pictures = pixels(outcome)
    assert (pictures.min((1, 2, 3)) < 245).all()  # no view is blank
    low, high = bounds_after(outcome)
    np.testing.assert_allclose(low, -high, atol=1e-4)
    side = high - low
    assert side.max() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(np.sort(side), [1 / 6, 5 / 6, 1], atol=0.08)  # one object, ten formats


@pytest.mark.parametrize("projection", ["perspective", "ortho"])
def test_layers_are_lossless_and_fit_the_intrinsics_of_every_resolution(
    assets: Path, render: Render, projection: str
) -> None:
    layers = {"alpha": True, "depth": True, "normals": True}
    outcome = render(assets / "off_origin.glb", res=(32, 64), normalize="box", projection=projection, **layers)
    for width, views in outcome.scene.by_width.items():
        for view, pose in enumerate(outcome.scene.c2w):
            alpha = images.decode(views.layers["alpha"][view])
            depth = np.frombuffer(views.layers["depth"][view], "<f4").reshape(width, width)
            normals = np.frombuffer(views.layers["normals"][view], "<f4").reshape(width, width, 3)
            hit = alpha == 255
            assert 0.1 < hit.mean() < 0.9
            assert (alpha[0] == 0).all()
            assert np.isinf(depth[alpha == 0]).all()
            rows, columns = np.nonzero(hit & np.isfinite(depth))
            fx, fy, cx, cy = views.intrinsics[view]
            deep = depth[rows, columns]
            wide = deep if projection == "perspective" else 1.0
            points = np.stack([(columns + 0.5 - cx) / fx * wide, (rows + 0.5 - cy) / fy * wide, deep], -1)
            points = points @ pose[:3, :3].T + pose[:3, 3]
            assert np.abs(np.abs(points).max(-1) - 0.5).max() < 4.0 / width  # on the cube, to a pixel's slant
            longest = np.abs(normals[rows, columns]).max(-1)  # a face's normal is an axis; pixels on an edge mix two
            assert ((longest > 0.999) & (longest < 1.001)).mean() > 0.8
    small, large = outcome.scene.by_width[32], outcome.scene.by_width[64]
    np.testing.assert_allclose(small.intrinsics * 2, large.intrinsics)
    averaged = images.decode(large.layers["alpha"][0]).reshape(32, 2, 32, 2).mean((1, 3))
    np.testing.assert_allclose(images.decode(small.layers["alpha"][0]), averaged, atol=1)
