"""Pose maths and samplers, each against a second way to compute the same: OpenCV, 4x4 algebra, Blender's own formulas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.config.render import RenderConfig, SceneConfig
from pipeline.config.shared import config_hash
from pipeline.config.source_table import names
from pipeline.core import cameras
from pipeline.core.cameras import SAMPLERS
from pipeline.core.errors import UserError
from pipeline.worker.lights import LIGHTS
from pipeline.worker.render import poses as poses_of

quick = settings(deadline=None, max_examples=80)
coordinate = st.floats(-20, 20, allow_nan=False, width=32)
point = st.tuples(coordinate, coordinate, coordinate).map(np.array)
seeds = st.integers(0, 2**32 - 1)

RADII = {  # the numbers of docs/cameras.md
    "shell": (1.015 * 0.5 / np.sin(np.radians(25)), 1.095 * 0.5 / np.sin(np.radians(25))),
    "xl": (1.5, 2.2),
    "grm": (0.75, 1.4),
    "orbit": (2.2, 2.2),
    "sphere12": (2.0, 2.0),
    "hammersley": (2.2, 2.2),
}


def count_of(name: str, count: int) -> int:
    return SAMPLERS[name].views or count


def poses(name: str, count: int, seed: int = 0) -> np.ndarray:
    return cameras.sample(name, np.random.default_rng(seed), count_of(name, count))


def centres(name: str, count: int, seed: int = 0) -> np.ndarray:
    return poses(name, count, seed)[:, :3, 3].astype(np.float64)


def max_gap(sorted_samples: np.ndarray, cdf: Callable[[np.ndarray], np.ndarray]) -> float:
    """The Kolmogorov-Smirnov statistic: the largest gap between the samples' steps and a distribution function."""
    count = len(sorted_samples)
    expected = cdf(sorted_samples)
    steps = np.arange(count)
    return float(max((expected - steps / count).max(), ((steps + 1) / count - expected).max()))


def ks_limit(count: int) -> float:
    """Above it, chance has 1 in 1000 (and the seeds are fixed)."""
    return 1.95 / np.sqrt(count)


# ---- look_at


@quick
@given(point, point)
def test_look_at_is_a_rigid_pose_that_looks_at_its_target(position: np.ndarray, target: np.ndarray) -> None:
    distance = np.linalg.norm(target - position)
    assume(distance > 1e-2)
    c2w = cameras.look_at(position, target)
    rotation = c2w[:3, :3]
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-9)
    np.testing.assert_array_equal(c2w[:3, 3], position)
    np.testing.assert_array_equal(c2w[3], [0, 0, 0, 1])
    seen = np.linalg.inv(c2w) @ [*target, 1]
    np.testing.assert_allclose(seen, [0, 0, distance, 1], atol=1e-9 * max(1, distance))  # straight ahead, along +z
    level = 1e-12 if abs(rotation[2, 2]) <= 1 - 1e-9 else 1e-4  # straight up or down there is no horizon
    assert abs(rotation[2, 0]) < level  # no roll: the horizon is level
    assert rotation[2, 1] <= level  # image down is never world up


@quick
@given(point, st.floats(0.05, 3))
def test_what_is_higher_in_the_world_is_higher_in_the_image(position: np.ndarray, lift: float) -> None:
    assume(np.linalg.norm(position[:2]) > 1e-2)  # elsewhere than above or below the origin
    c2w, k = cameras.look_at(position), cameras.intrinsics(50, (64, 64))
    near = lift * 1e-3 * np.linalg.norm(position)
    pixels, depth = cameras.project(np.array([[0, 0, 0], [0, 0, near]]), c2w, k)
    assert (depth > 0).all()
    assert pixels[1, 1] < pixels[0, 1]


@pytest.mark.parametrize("height", [2.0, -2.0])
def test_poles_have_the_documented_up(height: float) -> None:
    c2w = cameras.look_at(np.array([0.0, 0.0, height]))
    np.testing.assert_allclose(c2w[:3, 2], [0, 0, -np.sign(height)])
    np.testing.assert_allclose(c2w[:3, 1], [0, -1, 0])  # image up is +y
    assert np.linalg.det(c2w[:3, :3]) == pytest.approx(1)


def test_look_at_of_many_is_look_at_of_each() -> None:
    positions = np.random.default_rng(1).normal(size=(3, 5, 3))
    positions[1, 2] = [0, 0, 3]  # one of them at the pole
    together = cameras.look_at(positions)
    assert together.shape == (3, 5, 4, 4)
    for index in np.ndindex(3, 5):
        np.testing.assert_array_equal(together[index], cameras.look_at(positions[index]))


# ---- projection


@quick
@given(
    point,
    seeds,
    st.tuples(*[st.floats(10, 2000)] * 4),
)
def test_project_agrees_with_opencv(position: np.ndarray, seed: int, k: tuple[float, ...]) -> None:
    assume(np.linalg.norm(position) > 1)
    rng = np.random.default_rng(seed)
    c2w = cameras.look_at(position, rng.uniform(-0.3, 0.3, 3))
    points = rng.uniform(-0.4, 0.4, (7, 3))
    pixels, depth = cameras.project(points, c2w, np.array(k))
    assume((depth > 0.1).all())
    inverse = np.linalg.inv(c2w)
    matrix = np.array([[k[0], 0, k[2]], [0, k[1], k[3]], [0, 0, 1]])
    rvec = cv2.Rodrigues(inverse[:3, :3])[0]
    expected = cv2.projectPoints(points, rvec, inverse[:3, 3], matrix, None)[0][:, 0]
    np.testing.assert_allclose(pixels, expected, atol=1e-4, rtol=1e-6)
    np.testing.assert_allclose(depth, (np.c_[points, np.ones(7)] @ inverse.T)[:, 2], atol=1e-9)


def test_project_takes_a_batch_of_cameras() -> None:
    c2w = poses("shell", 5)
    k = np.random.default_rng(0).uniform(20, 90, (5, 4))
    points = np.random.default_rng(1).uniform(-0.5, 0.5, (9, 3))
    pixels, depth = cameras.project(points, c2w, k)
    assert pixels.shape == (5, 9, 2)
    assert depth.shape == (5, 9)
    for view in range(5):
        x, y, z = (np.linalg.inv(c2w[view].astype(np.float64)) @ np.c_[points, np.ones(9)].T)[:3]
        fx, fy, cx, cy = k[view]
        np.testing.assert_allclose(pixels[view], np.stack([fx * x / z + cx, fy * y / z + cy], -1), atol=1e-4)
        np.testing.assert_allclose(depth[view], z, atol=1e-6)


@quick
@given(point, point)
def test_w2c_is_the_inverse(position: np.ndarray, target: np.ndarray) -> None:
    assume(np.linalg.norm(target - position) > 1e-2)
    c2w = cameras.look_at(position, target)
    np.testing.assert_allclose(cameras.w2c(c2w), np.linalg.inv(c2w), atol=1e-8)
    np.testing.assert_allclose(
        cameras.w2c(np.stack([c2w, np.eye(4)])) @ np.stack([c2w, np.eye(4)]), [np.eye(4)] * 2, atol=1e-8
    )


@quick
@given(st.floats(1, 150), st.integers(8, 8192))
def test_focal_length_is_trigonometry(fov: float, width: int) -> None:
    focal = cameras.focal_from_fov(fov, width)
    assert 2 * np.degrees(np.arctan2(width / 2, focal)) == pytest.approx(fov, abs=1e-9)
    fx, fy, cx, cy = cameras.intrinsics(fov, (width // 2, width))
    assert (fx, fy) == (focal, focal)
    assert (cx, cy) == (width / 2, width // 2 / 2)


def test_known_focal_lengths() -> None:
    assert cameras.focal_from_fov(90, 64) == pytest.approx(32)
    assert cameras.focal_from_fov(2 * np.degrees(np.arctan(16 / 35)), 32) == pytest.approx(
        35
    )  # a 35 mm lens, 32 mm film
    assert SAMPLERS["xl"].fov_x_deg == pytest.approx(2 * np.degrees(np.arctan(16 / 35)), abs=5e-4)


hws = st.tuples(st.integers(8, 2000), st.integers(8, 2000))


@quick
@given(hws, hws, seeds)
def test_resized_intrinsics_see_the_same(hw: tuple[int, int], new_hw: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    k = rng.uniform(0.3, 2, 4) * [hw[1], hw[0], hw[1], hw[0]]
    resized = cameras.resize_intrinsics(k, hw, new_hw)
    # The ray through a place of the picture, in shares of its sides, stays that ray; so the corners map to the corners.
    for share in (np.array([0, 0]), np.array([1, 1]), rng.random(2)):
        before = (share * [hw[1], hw[0]] - k[2:]) / k[:2]
        after = (share * [new_hw[1], new_hw[0]] - resized[2:]) / resized[:2]
        np.testing.assert_allclose(after, before, atol=1e-9)
    np.testing.assert_allclose(cameras.resize_intrinsics(resized, new_hw, hw), k, rtol=1e-12)


def test_resized_intrinsics_of_a_batch() -> None:
    k = np.tile([50.0, 60.0, 32.0, 24.0], (4, 1))
    np.testing.assert_array_equal(cameras.resize_intrinsics(k, (48, 64), (24, 16)), np.tile([12.5, 30, 8, 12], (4, 1)))


# ---- Blender's camera


def blender_pixels(camera: dict[str, Any], hw: tuple[int, int], points: np.ndarray) -> np.ndarray:
    """What Blender makes of its settings: BKE_camera_params_compute_viewplane and a frustum, in Blender's words and floats.

    The view plane lies at clip_start; it is cut into winx times winy pixels, y up, and the image is stored y down.
    """
    winy, winx = hw
    f32 = np.float32
    sensor, lens = float(f32(camera["sensor_width"])), float(f32(camera["lens"]))
    shift_x, shift_y = float(f32(camera["shift_x"])), float(f32(camera["shift_y"]))
    ycor = float(f32(camera["pixel_aspect_y"])) / float(f32(camera["pixel_aspect_x"]))
    clip_start = 0.1
    viewfac = winx  # sensor_fit HORIZONTAL
    pixsize = sensor * clip_start / lens / viewfac
    xmin, xmax = -0.5 * winx + shift_x * viewfac, 0.5 * winx + shift_x * viewfac
    ymin, ymax = -0.5 * ycor * winy + shift_y * viewfac, 0.5 * ycor * winy + shift_y * viewfac
    left, right, bottom, top = (edge * pixsize for edge in (xmin, xmax, ymin, ymax))
    world_to_camera = np.linalg.inv(np.array(camera["matrix_world"]))
    x, y, z = (world_to_camera @ np.c_[points, np.ones(len(points))].T)[:3]
    assert (z < 0).all()  # a Blender camera looks along -z
    ndc_x = (2 * clip_start * x / -z - (right + left)) / (right - left)
    ndc_y = (2 * clip_start * y / -z - (top + bottom)) / (top - bottom)
    return np.stack([(ndc_x + 1) / 2 * winx, (1 - ndc_y) / 2 * winy], -1)


@settings(deadline=None, max_examples=300)
@given(
    hw=st.tuples(st.integers(8, 1024), st.integers(8, 1024)),
    focal=st.floats(0.4, 3),
    stretch=st.floats(0.4, 2.5),
    centre=st.tuples(st.floats(0.1, 0.9), st.floats(0.1, 0.9)),
    seed=seeds,
)
def test_blender_would_project_to_the_same_pixels(
    hw: tuple[int, int], focal: float, stretch: float, centre: tuple[float, float], seed: int
) -> None:
    height, width = hw
    k = np.array([focal * width, focal * width * stretch, centre[0] * width, centre[1] * height])
    rng = np.random.default_rng(seed)
    c2w = cameras.look_at(rng.normal(size=3) * 3, rng.uniform(-0.2, 0.2, 3))
    directions = np.c_[(np.array([[0, 0], [width, height], [width * 0.3, height * 0.8]]) - k[2:]) / k[:2], np.ones(3)]
    points = (c2w[:3, :3] @ (directions * [[1.0], [2.5], [4]]).T).T + c2w[:3, 3]  # through two corners and the inside
    expected, _ = cameras.project(points, c2w, k)
    np.testing.assert_allclose(expected[:2], [[0, 0], [width, height]], atol=1e-6)
    made = cameras.blender_camera(c2w, k, hw)
    assert min(made["pixel_aspect_x"], made["pixel_aspect_y"]) == 1  # Blender takes >= 1
    np.testing.assert_allclose(blender_pixels(made, hw, points), expected, atol=1e-3)


@settings(deadline=None)
@given(seed=seeds, scale=st.floats(0.1, 10))
def test_an_orthographic_picture_is_as_wide_as_it_says(seed: int, scale: float) -> None:
    """Points of its borders, at any depth, by the camera's own axes; the rows that Blender's worker gets say the same."""
    rng = np.random.default_rng(seed)
    c2w, width = cameras.look_at(rng.normal(size=3) * 3), 48
    k = cameras.ortho_intrinsics(scale, (width, width))
    depths = rng.uniform(0.1, 5, 3)
    points = c2w[:3, 3] + np.stack(
        [
            x * c2w[:3, 0] + y * c2w[:3, 1] + z * c2w[:3, 2]
            for (x, y), z in zip(
                [(-scale / 2, -scale / 2), (scale / 2, scale / 2), (0, scale / 4)], depths, strict=True
            )
        ]
    )
    x, y, one = cameras.projection(c2w, k, ortho=True) @ np.c_[points, np.ones(3)].T
    np.testing.assert_allclose(np.stack([x, y], -1), [[0, 0], [48, 48], [24, 36]], atol=1e-6)
    np.testing.assert_allclose(one, 1, atol=1e-9)
    made = cameras.blender_camera(c2w, k, (width, width), ortho=True)
    assert made["ortho_scale"] == pytest.approx(scale) and "lens" not in made


def test_the_plain_camera_in_blenders_numbers() -> None:
    made = cameras.blender_camera(np.eye(4), np.array([35.0, 35.0, 18.0, 18.0]), (36, 36))
    assert made["lens"] == pytest.approx(35)
    assert made["shift_x"] == made["shift_y"] == 0
    np.testing.assert_array_equal(made["matrix_world"], np.diag([1, -1, -1, 1]))


# ---- samplers


def test_names_are_what_the_command_line_offers() -> None:
    offered = get_type_hints(SceneConfig)
    assert set(get_args(get_args(offered["cameras"])[0])) == set(SAMPLERS) == set(RADII)
    assert set(get_args(offered["lights"])) == {*LIGHTS, "hdri"}
    assert set(get_args(get_type_hints(RenderConfig)["source"])) == set(names("object"))


@pytest.mark.parametrize("name", SAMPLERS)
@settings(deadline=None, max_examples=15)
@given(seed=seeds, count=st.integers(1, 40))
def test_every_sampler_gives_rigid_float32_poses_in_its_radii(name: str, seed: int, count: int) -> None:
    c2w = poses(name, count, seed)
    assert c2w.shape == (count_of(name, count), 4, 4)
    assert c2w.dtype == np.float32
    rotation = c2w[:, :3, :3].astype(np.float64)
    np.testing.assert_allclose(np.swapaxes(rotation, 1, 2) @ rotation, np.tile(np.eye(3), (len(c2w), 1, 1)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-6)
    np.testing.assert_array_equal(c2w[:, 3], np.tile([0, 0, 0, 1], (len(c2w), 1)))
    pixels, depth = cameras.project(np.zeros((1, 3)), c2w, np.tile(cameras.intrinsics(50, (64, 64)), (len(c2w), 1)))
    np.testing.assert_allclose(pixels, 32, atol=1e-3)  # the object's middle is the image's
    low, high = RADII[name]
    assert depth.min() >= low - 1e-5
    assert depth.max() <= high + 1e-5


@pytest.mark.parametrize("name", ["shell", "xl", "grm"])
def test_radii_fill_their_range_evenly(name: str) -> None:
    radii = np.sort(np.linalg.norm(centres(name, 4000), axis=-1))
    low, high = RADII[name]
    assert max_gap(radii, lambda r: np.clip((r - low) / (high - low), 0, 1)) < ks_limit(4000)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_is_a_function_of_the_generator(name: str) -> None:
    np.testing.assert_array_equal(poses(name, 16, 3), poses(name, 16, 3))
    fixed = name in ("orbit", "sphere12")
    assert np.array_equal(poses(name, 16, 3), poses(name, 16, 4)) == fixed


HOLDING = [  # samplers whose views hold the whole sphere of radius 0.5, and around a box of side 1
    ("sphere", ["shell", "xl", "orbit", "sphere12", "hammersley"]),
    ("box", ["shell", "orbit", "hammersley"]),
]


@pytest.mark.parametrize(("normalize", "holding"), HOLDING)
@pytest.mark.parametrize("name", SAMPLERS)
def test_framed_means_that_every_view_holds_the_bounding_sphere(name: str, normalize: str, holding: list[str]) -> None:
    fov, width = SAMPLERS[name].fov_x_deg, 64
    assert cameras.is_framed(name, fov, normalize) == (name in holding)
    radius = {"sphere": 0.5, "box": np.sqrt(0.75)}[normalize]
    rngs = (np.random.default_rng(seed) for seed in range(3))
    c2w = np.concatenate([cameras.sample(name, rng, count_of(name, 400), fov, normalize) for rng in rngs]).astype(float)
    half = np.arcsin(
        np.minimum(1, radius / np.linalg.norm(c2w[:, :3, 3], axis=-1))
    )  # a sphere from d: asin(r / d) to each side
    assert (half <= np.radians(fov / 2)).all() == (name in holding)  # else at least one view of many cuts the sphere
    if name in holding:
        focal = width / 2 / np.tan(np.radians(fov / 2))
        index = np.arange(20000) + 0.5
        z, azimuth = 1 - index / 10000, index * np.pi * (3 - np.sqrt(5))
        ring = np.sqrt(1 - z * z)
        sphere = radius * np.stack([ring * np.cos(azimuth), ring * np.sin(azimuth), z], -1)
        for pose in c2w[:60]:
            seen = np.linalg.inv(pose) @ np.c_[sphere, np.ones(len(sphere))].T
            assert (np.abs(focal * seen[:2] / seen[2]) < width / 2).all()


@pytest.mark.parametrize("normalize", ["sphere", "box"])
@pytest.mark.parametrize("fov", [12.0, 50.0, 110.0])
def test_the_shell_follows_the_field_of_view(fov: float, normalize: str) -> None:
    """At any field of view the sphere spans between 1 / 1.095 and 1 / 1.015 of what fits, so nothing is cut and nothing tiny."""
    c2w = cameras.sample("shell", np.random.default_rng(0), 400, fov, normalize).astype(float)
    radius = {"sphere": 0.5, "box": np.sqrt(0.75)}[normalize]
    needed = radius / np.sin(np.radians(fov / 2)) / np.linalg.norm(c2w[:, :3, 3], axis=-1)
    assert 1 / 1.095 - 1e-6 < needed.min() < 0.92 and 0.98 < needed.max() < 1 / 1.015 + 1e-6
    assert cameras.is_framed("shell", fov, normalize)


def test_an_orthographic_picture_holds_the_sphere_if_it_is_wide_enough_and_the_camera_outside() -> None:
    assert cameras.is_framed("shell", 50, "sphere", 1.0) and not cameras.is_framed("shell", 50, "sphere", 0.99)
    assert cameras.is_framed("grm", 50, "sphere", 1.0) and not cameras.is_framed("grm", 50, "box", 2.0)
    for normalize, width in (("sphere", 1.015), ("box", 1.015 * np.sqrt(3))):
        cfg = SceneConfig(projection="ortho", normalize=normalize).resolved()  # type: ignore[arg-type]
        assert cfg.ortho_scale == pytest.approx(width) and cfg.framed


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"ortho_scale": 2.0}, "--ortho-scale is the width of orthographic pictures"),
        ({"projection": "ortho", "ortho_scale": 0.0}, "--ortho-scale 0 is outside"),
        ({"projection": "ortho", "ortho_scale": float("nan")}, "--ortho-scale nan is outside"),
        ({"projection": "ortho", "lights": "hdri", "hdri": ".", "background": "hdri"}, "parallel rays"),
    ],
)
def test_flags_that_do_not_go_with_the_projection(flags: dict[str, Any], said: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("pipeline.config.render.environment_maps", lambda folder: ("one.hdr",))
    with pytest.raises(UserError, match=said):
        SceneConfig(**flags).resolved()


def test_a_narrow_view_from_a_fixed_radius_is_not_framed() -> None:
    assert cameras.is_framed("orbit", 50, "box") and not cameras.is_framed("orbit", 40, "box")


@pytest.mark.parametrize("name", ["shell", "grm"])
def test_directions_are_uniform_on_the_sphere(name: str) -> None:
    count = 4000
    position = centres(name, count)
    unit = position / np.linalg.norm(position, axis=-1, keepdims=True)
    for axis in range(3):  # Archimedes: every coordinate of a uniform direction is uniform
        assert max_gap(np.sort(unit[:, axis]), lambda value: (value + 1) / 2) < ks_limit(count)
    azimuth = np.sort(np.arctan2(unit[:, 1], unit[:, 0]))
    assert max_gap(azimuth, lambda value: value / (2 * np.pi) + 0.5) < ks_limit(count)
    np.testing.assert_allclose(unit.T @ unit / count, np.eye(3) / 3, atol=4 / np.sqrt(count) / 3)


@pytest.mark.parametrize("name", ["shell", "xl", "grm"])
@settings(deadline=None, max_examples=15)
@given(seed=seeds, few=st.integers(1, 20), more=st.integers(1, 20))
def test_the_first_views_stay_when_more_are_asked_for(name: str, seed: int, few: int, more: int) -> None:
    np.testing.assert_array_equal(poses(name, few + more, seed)[:few], poses(name, few, seed))


def test_xl_has_the_normalised_cubes_distribution_and_not_the_spheres() -> None:
    count = 4000
    position = centres("xl", count)
    unit = position / np.linalg.norm(position, axis=-1, keepdims=True)
    # In a cube, a ray's place on the face that it leaves through is uniform, so max |d| is 1 / sqrt(1 + x^2 + y^2).
    grid = (np.arange(1000) + 0.5) / 1000
    by_cube = np.sort((1 / np.sqrt(1 + grid[:, None] ** 2 + grid[None] ** 2)).ravel())
    largest = np.sort(np.abs(unit).max(-1))
    assert max_gap(largest, lambda value: np.searchsorted(by_cube, value) / len(by_cube)) < ks_limit(count)
    uniform = np.random.default_rng(0).normal(size=(10**6, 3))
    by_sphere = np.sort(np.abs(uniform).max(-1) / np.linalg.norm(uniform, axis=-1))
    assert max_gap(largest, lambda value: np.searchsorted(by_sphere, value) / len(by_sphere)) > 3 * ks_limit(count)


def cap_discrepancy(unit: np.ndarray) -> float:
    """The largest error of the share of points in any of many spherical caps, against the caps' areas."""
    rng = np.random.default_rng(99)
    axes = rng.normal(size=(2000, 3))
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    heights = rng.uniform(-1, 1, 2000)
    inside = (axes @ unit.T > heights[:, None]).mean(-1)
    return float(np.abs(inside - (1 - heights) / 2).max())


@pytest.mark.parametrize("count", [32, 128, 500])
def test_hammersley_covers_the_sphere_more_evenly_than_chance(count: int) -> None:
    ours = [cap_discrepancy(centres("hammersley", count, seed) / 2.2) for seed in range(8)]
    shell = [centres("shell", count, seed) for seed in range(8)]
    chance = [cap_discrepancy(position / np.linalg.norm(position, axis=-1, keepdims=True)) for position in shell]
    assert max(ours) < 0.75 * np.median(chance)
    assert max(ours) < min(chance)


def test_hammersley_is_stratified_in_height() -> None:
    z = np.sort(centres("hammersley", 64, 5)[:, 2]) / 2.2
    np.testing.assert_allclose(np.diff(z), 2 / 64, atol=1e-6)  # one view in each of 64 bands of equal area


def test_orbit_is_a_turntable() -> None:
    position = centres("orbit", 24)
    np.testing.assert_allclose(position[:, 2], 2.2 * np.sin(np.radians(20)), atol=1e-6)
    azimuth = np.unwrap(np.arctan2(position[:, 1], position[:, 0]))
    np.testing.assert_allclose(np.diff(azimuth), 2 * np.pi / 24, atol=1e-6)


def test_sphere12_is_twelve_fixed_views() -> None:
    position = centres("sphere12", 12)
    assert position.shape == (12, 3)
    np.testing.assert_array_equal(position, centres("sphere12", 12, seed=7))
    np.testing.assert_allclose(position[:, 2], 1, atol=1e-6)  # 2 sin 30 deg
    azimuth = np.sort(np.degrees(np.arctan2(position[:, 1], position[:, 0])) % 360)
    np.testing.assert_allclose(np.round(azimuth, 3) % 360, np.arange(12) * 30, atol=1e-3)


# ---- rigs


def test_a_rig_comes_first_and_the_rest_is_drawn_as_ever(tmp_path: Path) -> None:
    fixed = cameras.circle(3, 10.0, 2.0)
    (tmp_path / "rig.json").write_text(json.dumps({"c2w": fixed.tolist(), "others": "hammersley"}))
    cfg = SceneConfig(cameras=tmp_path / "rig.json", views=8, seed=4).resolved()
    assert cfg.sampler == "hammersley" and not cfg.framed and cfg.resolved() == cfg
    made = poses_of(cfg, "a")
    assert made.shape == (8, 4, 4) and made.dtype == np.float32
    np.testing.assert_array_equal(made[:3], fixed.astype(np.float32))
    plain = SceneConfig(cameras="hammersley", views=5, seed=4).resolved()
    np.testing.assert_array_equal(made[3:], poses_of(plain, "a"))
    all_fixed = poses_of(SceneConfig(cameras=tmp_path / "rig.json", views=3).resolved(), "a")
    np.testing.assert_array_equal(all_fixed, fixed.astype(np.float32))
    (tmp_path / "rig.json").write_text(json.dumps({"c2w": fixed[::-1].tolist()}))
    changed = SceneConfig(cameras=tmp_path / "rig.json", views=8, seed=4).resolved()
    assert changed.sampler == "shell" and config_hash(changed) != config_hash(cfg)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no rig"),
        ("[]", "is no rig"),
        ('{"c2w": []}', "has no poses"),
        ('{"camera_path": []}', "has no poses"),
        ('{"camera_path": [{"camera_to_world": [1, 0, 0]}]}', "is no rig"),
        ('{"camera_path": [{}]}', "is no rig"),
        ('{"camera_path": [1], "camera_type": "equirectangular"}', "are equirectangular, not perspective"),
        ('{"c2w": [[1, 2], [3]]}', "is no rig"),
        ('{"c2w": [[[2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]]}', "axes that are not orthonormal"),
        ('{"c2w": [[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]]}', "mirrored axes"),
        (
            '{"c2w": [[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]], "others": "sphere12"}',
            "cannot be 'sphere12'",
        ),
        ('{"c2w": [[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]], "others": 3}', "cannot be 3"),
    ],
)
def test_files_that_are_no_rig_say_why(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "rig.json").write_text(text)
    with pytest.raises(UserError, match=said):
        SceneConfig(cameras=tmp_path / "rig.json").resolved()
    with pytest.raises(UserError, match="No such file"):
        SceneConfig(cameras=tmp_path / "none.json").resolved()


def test_a_rig_with_more_poses_than_views(tmp_path: Path) -> None:
    (tmp_path / "rig.json").write_text(json.dumps({"c2w": cameras.circle(5, 10.0, 2.0).tolist()}))
    with pytest.raises(UserError, match="the rig has 5 views, --views asks for 4"):
        SceneConfig(cameras=tmp_path / "rig.json", views=4).resolved()
