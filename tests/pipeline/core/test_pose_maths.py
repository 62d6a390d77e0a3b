"""Pose and lens mathematics of the importers, each against a second way to compute the same."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.core import cameras
from pipeline.core.cameras import Lens
from pipeline.core.errors import Skip
from pipeline.worker import posed
from tests import balls
from tests.importing import opencv
from tests.pipeline.worker.test_posed import pixels, saved, scene_of, views

quick = settings(deadline=None, max_examples=60)


def lens(bent: tuple[float, ...], hw: tuple[int, int] = (270, 300)) -> tuple[np.ndarray, np.ndarray]:
    return np.array([1.1 * hw[1], 1.05 * hw[1], 0.49 * hw[1], 0.52 * hw[0]]), np.array(bent)


BENT = {
    "barrel": (-0.25, 0.07, 0, 0, 0, 0, 0, 0),
    "pincushion": (0.2, 0.05, 0, 0, 0, 0, 0, 0),
    "tangential": (0.01, 0, 0.01, -0.008, 0, 0, 0, 0),
    "rational": (0.3, -0.05, 0.001, 0.001, 0.01, 0.42, -0.02, 0.005),
    "hardly": (1e-9, 0, 0, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("kind", BENT)
def test_undistortion_against_opencv(kind: str) -> None:
    """Our map takes each new pixel to the place that cv2.projectPoints says; and cv2's own model of a lens is ours."""
    k, bent = lens(BENT[kind])
    made = posed.undistortion((270, 300), k, opencv(bent))
    assert made.fxfycxcy[2:].tolist() == k[2:].tolist()
    assert made.fxfycxcy[0] / k[0] == pytest.approx(made.fxfycxcy[1] / k[1])
    y, x = np.mgrid[:270, :300] + 0.5
    rays = np.stack(
        [(x - made.fxfycxcy[2]) / made.fxfycxcy[0], (y - made.fxfycxcy[3]) / made.fxfycxcy[1], np.ones_like(x)], -1
    )
    matrix = np.array([[k[0], 0, k[2]], [0, k[1], k[3]], [0, 0, 1]])
    there = cv2.projectPoints(rays.reshape(-1, 3), np.zeros(3), np.zeros(3), matrix, bent)[0].reshape(270, 300, 2)
    np.testing.assert_allclose(np.stack([made.map_x, made.map_y], -1), there - 0.5, atol=2e-3)
    assert made.map_x.min() >= -1e-3 and made.map_x.max() <= 299 + 1e-3  # nothing from beyond the picture
    assert made.map_y.min() >= -1e-3 and made.map_y.max() <= 269 + 1e-3
    edges = [made.map_x.min(), 299 - made.map_x.max(), made.map_y.min(), 269 - made.map_y.max()]
    assert min(edges) < 0.05  # and no more is lost than has to be


FISHEYES = {
    "equidistant": (0.0, 0.0, 0.0, 0.0),
    "calibrated": (-0.021, 0.011, -0.009, 0.002),
    "strong": (0.08, -0.02, 0.004, 0.0),
}


@pytest.mark.parametrize("kind", FISHEYES)
def test_fisheyes_against_opencv(kind: str) -> None:
    """Where cv2.fisheye sends the rays of the new picture's pixels, and back; nothing of it lies outside of the old picture."""
    k, bent = np.array([160.0, 158, 148, 140]), np.array(FISHEYES[kind])
    lens = Lens("theta", radial=tuple(FISHEYES[kind]))
    made = posed.undistortion((270, 300), k, lens)
    assert made.fxfycxcy[0] >= k[0] - 1e-9
    y, x = np.mgrid[:270, :300] + 0.5
    plane = np.stack([(x - made.fxfycxcy[2]) / made.fxfycxcy[0], (y - made.fxfycxcy[3]) / made.fxfycxcy[1]], -1)
    matrix = np.array([[k[0], 0, k[2]], [0, k[1], k[3]], [0, 0, 1]])
    there = cv2.fisheye.distortPoints(plane.reshape(1, -1, 2), matrix, bent).reshape(270, 300, 2)
    np.testing.assert_allclose(np.stack([made.map_x, made.map_y], -1), there - 0.5, atol=2e-3)
    assert min(made.map_x.min(), made.map_y.min(), 299 - made.map_x.max(), 269 - made.map_y.max()) >= -1e-3


@pytest.mark.parametrize(
    "lens",
    [
        opencv((-0.21, 0.06, 0.0021, -0.0013, 0.01, 0.02, -0.01, 0.003)),
        Lens("theta", (-0.02, 0.01, 0.002, 0.001), tangential=(0.002, -0.001), prism=(0.003, 0.001)),
        Lens("fov", omega=0.9),
        Lens(radial=(0.1, 0.02, 0.01, 0.005)),
    ],
    ids=["rational", "thin prism", "fov", "fourth"],
)
def test_what_a_lens_bends_it_straightens(lens: Lens) -> None:
    y, x = np.mgrid[-0.8:0.8:31j, -0.8:0.8:31j]
    points = np.stack([x, y], -1).reshape(-1, 2)
    bent = lens.distort(points)
    assert np.abs(bent - points).max() > 0.01
    np.testing.assert_allclose(lens.straighten(bent), points, atol=1e-5)


def test_beside_the_pinholes_half_space_nothing_is_straight() -> None:
    """A fisheye sees rays that no plane in front of it meets, and those of 86 degrees or more are left out."""
    there = np.array([[0.3, 0.2], [1.55, 0.0], [2.0, 1.0]])
    straight = Lens("theta").straighten(there)
    assert np.isfinite(straight[0]).all() and np.isnan(straight[1:]).all()


def test_no_border_is_in_an_undistorted_picture() -> None:
    k, bent = lens(BENT["pincushion"])
    picture = np.full((270, 300, 3), 90, np.uint8)
    picture[100:150, 100:150] = 200
    scene = scene_of(replace(views(saved(picture), k=tuple(k)), lenses=[opencv(bent)]), res=(64, 256), quality=100)
    assert pixels(scene, 256).min() > 80
    assert scene.meta["undistorted_zoom"][0] > 1
    assert scene_of(replace(views(saved(picture)), lenses=[opencv([0.0] * 8)])).meta.get("undistorted_zoom") is None


@pytest.mark.parametrize(
    "bent",
    [(-3.0, 0, 0, 0, 0, 0, 0, 0), (1e6, 0, 0, 0, 0, 0, 0, 0), (0, 0, 5, 5, 0, 0, 0, 0), (0, 0, 0, 0, 0, -9, 0, 0)],
)
def test_lenses_that_are_none(bent: tuple[float, ...]) -> None:
    """Either refused, or so little is left of the picture that it is too small, or it is right."""
    k, distortion = lens(bent)
    try:
        made = posed.undistortion((270, 300), k, opencv(distortion))
    except Skip as end:
        reason = end.reason
    else:
        turned = np.diff(made.map_x[:-1], axis=1) * np.diff(made.map_y[:, :-1], axis=0)
        assert turned.min() > 0
        return
    assert reason == "bad_distortion"


@quick
@given(st.lists(st.floats(-0.5, 0.5), min_size=8, max_size=8))
def test_any_lens_is_refused_or_holds(bent: list[float]) -> None:
    k, distortion = lens(tuple(bent), (60, 80))
    try:
        made = posed.undistortion((60, 80), k, opencv(distortion))
    except Skip as end:
        assume(end.reason == "bad_distortion")
        return
    assert np.isfinite(made.map_x).all() and made.map_x.min() >= -0.02 and made.map_x.max() <= 79.02
    assert made.map_y.min() >= -0.02 and made.map_y.max() <= 59.02


# ---- conversions of poses


unit = st.floats(-1, 1, allow_nan=False)


@quick
@given(st.tuples(unit, unit, unit, unit))
def test_quaternions_rotate_as_hamilton_says(numbers: tuple[float, ...]) -> None:
    """q v q* with the products written out, and whatever length q has."""
    q = np.array(numbers)
    assume(np.linalg.norm(q) > 0.05 and not 0 < np.abs(q[1:]).max() < 1e-6)  # where Rodrigues' formula gives way

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.array([a[0] * b[0] - a[1:] @ b[1:], *(a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:]))])

    v = np.array([0.3, -0.7, 1.1])
    turned = product(product(q, np.array([0, *v])), q * [1, -1, -1, -1]) / (q @ q)
    rotation = cameras.rotation_of(q)
    np.testing.assert_allclose(rotation @ v, turned[1:], atol=1e-12)
    np.testing.assert_allclose(cameras.rotation_of(-3 * q), rotation, atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(
        rotation,
        cv2.Rodrigues(2 * np.arctan2(np.linalg.norm(q[1:]), q[0]) * q[1:] / max(np.linalg.norm(q[1:]), 1e-300))[0],
        atol=1e-9,
    )


def test_opengl_cameras_see_what_opencv_cameras_see() -> None:
    one = balls.walk(3, (90, 120))[1]
    c2w_gl = np.eye(4)
    c2w_gl[:3] = np.stack([one.right, one.up, one.back, one.position], -1)
    c2w = cameras.from_opengl(c2w_gl)
    np.testing.assert_allclose(c2w[:3], np.stack([one.right, -one.up, -one.back, one.position], -1))
    np.testing.assert_array_equal(cameras.homogeneous(c2w[None, :3])[0], c2w)


def test_a_circle_goes_round_as_it_says() -> None:
    c2w = cameras.circle(12, 30.0, 2.0)
    np.testing.assert_allclose(c2w[0, :3, 3], [np.sqrt(3), 0, 1], atol=1e-12)
    np.testing.assert_allclose(c2w[3, :3, 3], [0, np.sqrt(3), 1], atol=1e-12)
    np.testing.assert_allclose(cameras.circle(12, 30.0, 2.0, clockwise=True)[1:], c2w[:0:-1], atol=1e-12)
    np.testing.assert_allclose(cameras.circle(12, 30.0, 2.0, azimuth_deg=30.0)[:-1], c2w[1:], atol=1e-12)
    np.testing.assert_allclose(c2w, cameras.sample("sphere12", np.random.default_rng(0), 12), atol=1e-6)


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4))
@quick
def test_quaternions_there_and_back(numbers: list[float]) -> None:
    q = np.array(numbers)
    assume(np.linalg.norm(q) > 1e-3)
    rotation = cameras.rotation_of(q)
    found = cameras.quaternion_of(rotation)
    assert np.linalg.norm(found) == pytest.approx(1) and found[0] >= 0
    np.testing.assert_allclose(cameras.rotation_of(found), rotation, atol=1e-7)


@pytest.mark.parametrize("axis", range(3))
def test_quaternions_of_half_turns(axis: int) -> None:
    half = np.diag([1.0 if place == axis else -1.0 for place in range(3)])
    many = cameras.quaternion_of(np.stack([half, np.eye(3)]))
    np.testing.assert_allclose(cameras.rotation_of(many), [half, np.eye(3)], atol=1e-12)


def test_opengl_axes_there_and_back() -> None:
    c2w = cameras.look_at(np.array([1.0, 2, 3]))
    np.testing.assert_array_equal(cameras.from_opengl(cameras.to_opengl(c2w)), c2w)
