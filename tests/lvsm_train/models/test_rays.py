"""Rays of the trainer against the projection of the renderer: two derivations of one convention."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lvsm_train.models.rays import plucker_rays  # noqa: E402
from pipeline.core import cameras  # noqa: E402


@pytest.mark.parametrize("autocast", [False, True])
def test_points_on_a_ray_project_to_its_pixel(autocast: bool) -> None:
    c2w = cameras.sample("shell", np.random.default_rng(1), 6)
    k = np.array([70.0, 80.0, 30.0, 21.0], np.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        rays = plucker_rays(torch.from_numpy(c2w), torch.from_numpy(np.tile(k, (6, 1))), (40, 64)).numpy()
    assert rays.shape == (6, 6, 40, 64)
    assert rays.dtype == np.float32
    moment, direction = rays[:, :3], rays[:, 3:]
    np.testing.assert_allclose(np.linalg.norm(direction, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose((moment * direction).sum(1), 0, atol=1e-6)  # a moment is normal to its line
    for view, row, column, depth in [(0, 0, 0, 1.5), (2, 39, 63, 0.3), (5, 20, 7, 4.0)]:
        d, m = direction[view, :, row, column], moment[view, :, row, column]
        nearest = np.cross(d, m)  # the line's point nearest to the origin of the world
        centre = c2w[view, :3, 3]
        along = float((centre - nearest) @ d)
        np.testing.assert_allclose(nearest + along * d, centre, atol=1e-5)  # the line passes through the camera
        pixel, z = cameras.project((centre + depth * d)[None], c2w[view], k)
        np.testing.assert_allclose(pixel[0], [column + 0.5, row + 0.5], atol=1e-3)
        assert z[0] > 0
