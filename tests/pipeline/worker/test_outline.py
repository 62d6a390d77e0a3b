"""Only the rectangle that can show the object is traced: it must hold everything, and change nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.config.render import SceneConfig
from pipeline.core import cameras
from pipeline.worker.blender import Blender, Frame
from pipeline.worker.render import build_job

SCRIPT = Path(__file__).parents[3] / "blender_scripts" / "outline.py"
NOTHING_KNOWN = [
    [0.0] * 4,
    [0.0] * 4,
    [0.0, 0.0, 0.0, -1.0],
]  # all points behind the camera: the whole picture is traced


@pytest.fixture(scope="module")
def outline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("outline", SCRIPT)  # as Blender finds it: a file, not a package
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@settings(max_examples=200, deadline=None)
@given(
    points=hnp.arrays(np.float64, st.tuples(st.integers(1, 40), st.just(3)), elements=st.floats(-0.5, 0.5)),
    seed=st.integers(0, 2**32 - 1),
    width=st.sampled_from([8, 64, 512]),
)
def test_rectangle_holds_every_point_with_a_margin(
    outline: ModuleType, points: np.ndarray, seed: int, width: int
) -> None:
    c2w = cameras.sample("shell", np.random.default_rng(seed), 4)
    k = cameras.intrinsics(50, (width, width))
    collected = outline.Outline()
    for part in np.array_split(points, 3):
        if len(part):
            collected.add(part)
    pixels, _ = cameras.project(points, c2w, k)
    for pose, seen in zip(c2w, pixels, strict=True):
        top, bottom, left, right = outline.rectangle(collected.corners(), cameras.projection(pose, k), (width, width))
        assert 0 <= top < bottom <= width
        assert 0 <= left < right <= width
        assert left <= max(0, seen[:, 0].min() - 1)  # the pixel filter reaches 0.75 pixels
        assert right >= min(width, seen[:, 0].max() + 1)
        assert top <= max(0, seen[:, 1].min() - 1)
        assert bottom >= min(width, seen[:, 1].max() + 1)


def test_a_compact_object_has_a_small_rectangle(outline: ModuleType) -> None:
    collected = outline.Outline()
    collected.add(np.random.default_rng(0).normal(size=(5000, 3)) * 0.05)
    pose = cameras.look_at(np.array([0.0, -2.3, 0.0]))
    k = cameras.intrinsics(50, (512, 512))
    top, bottom, left, right = outline.rectangle(collected.corners(), cameras.projection(pose, k), (512, 512))
    assert (bottom - top) * (right - left) < 0.15 * 512 * 512


@pytest.mark.parametrize(
    "position",
    [(0.0, 0.0, 0.3), (0.0, 0.0, 0.0)],
)
def test_a_camera_inside_the_object_sees_it_everywhere(outline: ModuleType, position: tuple[float, ...]) -> None:
    collected = outline.Outline()
    collected.add(np.array([[-0.5, -0.5, -0.5], [0.5, 0.5, 0.5]]))
    pose = cameras.look_at(np.array(position), (0.1, 0.2, 0.0))
    k = cameras.intrinsics(50, (64, 64))
    assert outline.rectangle(collected.corners(), cameras.projection(pose, k), (64, 64)) == (0, 64, 0, 64)


def test_an_object_beside_the_picture_leaves_one_pixel(outline: ModuleType) -> None:
    pose = cameras.look_at(np.array([0.0, -2.0, 0.0]), (50.0, 0.0, 0.0))
    k = cameras.intrinsics(50, (64, 64))
    top, bottom, left, right = outline.rectangle(np.zeros((1, 3)), cameras.projection(pose, k), (64, 64))
    assert right - left == 1
    assert bottom > top


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_projection_is_project_as_a_matrix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    c2w = cameras.sample("shell", rng, 3)
    k = np.array([80.0, 70, 30, 34]) + rng.normal(size=(3, 4))
    points = rng.uniform(-0.5, 0.5, (7, 3))
    x, y, depth = np.moveaxis(
        points @ np.swapaxes(p := cameras.projection(c2w, k), 1, 2)[:, :3] + p[:, None, :, 3], -1, 0
    )
    pixels, expected_depth = cameras.project(points, c2w, k)
    np.testing.assert_allclose(np.stack([x / depth, y / depth], -1), pixels, atol=1e-9)
    np.testing.assert_allclose(depth, expected_depth, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "tight"),
    [
        ("off_origin.glb", True),
        ("rigged.glb", True),
        ("animated.blend", True),
        ("instances.blend", True),
        ("alpha_layers.blend", True),
        ("two_roots.glb", True),
        ("spheres.glb", True),
        ("curve.blend", True),
        ("displaced.blend", False),
        ("hair.blend", False),
    ],
)
def test_tracing_less_changes_no_pixel(assets: Path, blender: Blender, name: str, tight: bool) -> None:
    cfg = SceneConfig(res=(64,), views=4, samples=4, depth=True, normals=True).resolved()
    traced, expected = traced_and_whole(assets / name, cfg, blender)
    area = np.mean([frame.passes["rgba"][..., 0].size for frame in traced]) / 64**2
    assert area < 0.8 if tight else area == 1
    for ours, theirs in zip(traced, expected, strict=True):
        for layer in ("rgba", "depth", "normals"):
            np.testing.assert_array_equal(ours.full(layer), theirs.full(layer))


@pytest.mark.parametrize("width", [11, 37, 77, 100, 333, 1021])
def test_rectangles_end_on_pixels_at_any_width(assets: Path, blender: Blender, width: int) -> None:
    cfg = SceneConfig(res=(width,), views=6 if width < 1000 else 2, samples=1, denoise="off").resolved()
    traced, expected = traced_and_whole(assets / "off_origin.glb", cfg, blender)
    for ours, theirs in zip(traced, expected, strict=True):
        np.testing.assert_array_equal(ours.full("rgba"), theirs.full("rgba"))


def traced_and_whole(path: Path, cfg: SceneConfig, blender: Blender) -> tuple[list[Frame], list[Frame]]:
    """Each view twice: its rectangle traced, and, with projections that bound nothing, the whole picture."""
    poses = cameras.sample("shell", np.random.default_rng(3), cfg.views)
    job = build_job(cfg, path.name, poses, 2) | {"path": str(path), "format": path.suffix[1:]}
    whole = job | {"cameras": [camera | {"projection": NOTHING_KNOWN} for camera in job["cameras"]]}
    traced, expected = ([f for f in blender.render(j) if isinstance(f, Frame)] for j in (job, whole))
    return traced, expected
