"""The promise of the project: what is rendered lies where the stored poses say, to a tenth of a pixel."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config.render import SceneConfig
from pipeline.core import cameras
from pipeline.worker.blender import Blender, Frame
from pipeline.worker.render import build_job
from tests.conftest import lvsm_data, lvsm_data_here

# as in tests/assets.py: emissive spheres, one per colour channel
RADIUS = 0.07
CENTRES = np.array([[0.4, 0.1, -0.3], [-0.35, 0.3, 0.25], [0.05, -0.4, 0.35]])


def normalised() -> tuple[np.ndarray, float]:
    """Centres (3, 3) of the spheres, and their radius, after centring and scaling the longest side to 1, by hand."""
    low, high = CENTRES.min(0) - RADIUS, CENTRES.max(0) + RADIUS
    scale = 1 / (high - low).max()
    return (CENTRES - (low + high) / 2) * scale, RADIUS * scale


def sphere_pixels(c2w: np.ndarray, fxfycxcy: np.ndarray, centres: np.ndarray, radius: float) -> np.ndarray:
    """Centres (3, 2) of the ellipses that the spheres project to: X Z / (Z^2 - r^2) in place of X / Z. Formulas of its own."""
    w2c = np.linalg.inv(np.asarray(c2w, np.float64))
    x, y, z = (w2c @ np.c_[centres, np.ones(3)].T)[:3]
    stretch = z / (z * z - radius * radius)
    fx, fy, cx, cy = fxfycxcy
    return np.stack([fx * x * stretch + cx, fy * y * stretch + cy], -1)


def centroids(coverage: np.ndarray) -> np.ndarray:
    """(H, W, 3) coverage by each sphere -> centroids (3, 2) in pixels, pixel centres at +0.5."""
    height, width, _ = coverage.shape
    total = coverage.sum((0, 1))
    x = (coverage * (np.arange(width) + 0.5)[None, :, None]).sum((0, 1)) / total
    y = (coverage * (np.arange(height) + 0.5)[:, None, None]).sum((0, 1)) / total
    return np.stack([x, y], -1)


def near_peak(coverage: np.ndarray, reach: float) -> np.ndarray:
    """Pixels (H, W, 3) within `reach` of each channel's brightest spot: leaves out the ripple of JPEG blocks elsewhere."""
    rows, columns, _ = np.indices(coverage.shape)
    near = np.zeros(coverage.shape, bool)
    for channel in range(3):
        spot = np.argwhere(coverage[..., channel] > 0.9 * coverage[..., channel].max()).mean(0)
        near[..., channel] = np.hypot(rows[..., 0] - spot[0], columns[..., 0] - spot[1]) < reach
    return near


def apart(c2w: np.ndarray, fxfycxcy: np.ndarray, hw: tuple[int, int], centres: np.ndarray, radius: float) -> bool:
    """True if each sphere is wholly in the frame and none hides another."""
    seen = sphere_pixels(c2w, fxfycxcy, centres, radius)
    reach = 1.3 * radius * fxfycxcy[:2].max() / (np.linalg.norm(c2w[:3, 3]) - 0.65)
    distance = np.linalg.norm(seen[[0, 1, 2]] - seen[[1, 2, 0]], axis=-1)
    inside = (seen > reach).all() and (seen < np.array(hw[::-1]) - reach).all()
    return bool(inside and distance.min() > 2 * reach)


@pytest.mark.parametrize("width", [64, 512])
@pytest.mark.parametrize(
    ("stretch", "shift", "ratio"),
    [((1, 1), (0, 0), 1), ((1.0, 1.25), (0, 0), 1), ((1.3, 1.0), (0.06, -0.04), 1), ((0.9, 1.15), (-0.05, 0.07), 0.75)],
    ids=["centred", "fx<fy", "fx>fy,off-centre", "not square"],
)
def test_spheres_are_where_the_pose_says(
    assets: Path, blender: Blender, width: int, stretch: tuple[float, float], shift: tuple[float, float], ratio: float
) -> None:
    hw = (round(width * ratio), width)
    focal = cameras.focal_from_fov(52, width)
    k = np.array([focal * stretch[0], focal * stretch[1], width * (0.5 + shift[0]), hw[0] / 2 + width * shift[1]])
    poses = cameras.sample("shell", np.random.default_rng(3), 40, normalize="box")
    poses = np.stack([pose for pose in poses if apart(pose, k, hw, *normalised())])[:3]
    cfg = SceneConfig(res=(width,), samples=512 if width == 64 else 32, normalize="box").resolved()
    job = build_job(cfg, "spheres", poses, 2)
    job |= {"path": str(assets / "spheres.glb"), "format": "glb", "hw": hw, "denoise": False}
    job["cameras"] = [cameras.blender_camera(pose, k, hw) for pose in poses]
    job["lights"] = {"world": [0, 0, 0], "lobes": [], "suns": []}
    frames = [answer for answer in blender.render(job) if isinstance(answer, Frame)]
    assert len(frames) == len(poses) >= 3
    for pose, frame in zip(poses, frames, strict=True):
        error = np.linalg.norm(centroids(frame.full("rgba")[..., :3]) - sphere_pixels(pose, k, *normalised()), axis=-1)
        assert error.max() < 0.1, f"off by {error} px"


@pytest.mark.parametrize(("stretch", "shift"), [(1, (0, 0)), (1.3, (0.06, -0.04))], ids=["centred", "stretched"])
def test_spheres_are_where_an_orthographic_pose_says(
    assets: Path, blender: Blender, stretch: float, shift: tuple[float, float]
) -> None:
    """Parallel rays see a sphere as an ellipse whose centre is the sphere's own, wherever the camera stands along its axis."""
    width = 256
    cfg = SceneConfig(res=(width,), samples=64, normalize="box", projection="ortho").resolved()
    k = cfg.intrinsics((width, width)) * [1, stretch, 1, 1] + [0, 0, width * shift[0], width * shift[1]]
    centres, radius = normalised()

    def seen_by(pose: np.ndarray) -> np.ndarray:
        x, y, _ = (np.linalg.inv(pose) @ np.c_[centres, np.ones(3)].T)[:3]
        return np.stack([k[0] * x + k[2], k[1] * y + k[3]], -1)

    def is_apart(seen: np.ndarray) -> bool:
        gaps = np.linalg.norm((seen[[0, 1, 2]] - seen[[1, 2, 0]]) / k[:2], axis=-1)
        return bool(gaps.min() > 2.2 * radius and (seen > 30).all() and (seen < width - 30).all())

    drawn = cameras.sample("shell", np.random.default_rng(3), 12, normalize="box").astype(np.float64)
    poses = np.stack([pose for pose in drawn if is_apart(seen_by(pose))])[:4]
    job = build_job(cfg, "spheres", poses, 2) | {"path": str(assets / "spheres.glb"), "format": "glb", "denoise": False}
    job["cameras"] = [cameras.blender_camera(pose, k, (width, width), ortho=True) for pose in poses]
    job["lights"] = {"world": [0, 0, 0], "lobes": [], "suns": []}
    frames = [answer for answer in blender.render(job) if isinstance(answer, Frame)]
    assert len(frames) == len(poses) >= 3
    for pose, frame in zip(poses, frames, strict=True):
        error = np.linalg.norm(centroids(frame.full("rgba")[..., :3]) - seen_by(pose), axis=-1)
        assert error.max() < 0.1, f"off by {error} px"


@pytest.mark.parametrize(("width", "views", "within"), [(64, 40, 0.15), (512, 8, 0.06)])
@pytest.mark.usefixtures("blender_lent")
def test_default_settings_keep_edges_where_they_are(
    assets: Path, tmp_path: Path, width: int, views: int, within: float
) -> None:
    """End to end as a user has it: samples, denoiser and JPEG quality by default; 95 % of the spheres are within `within`."""
    manifest = tmp_path / "spheres.csv"
    manifest.write_text(f"path,uid\n{assets / 'spheres.glb'},spheres\n")
    run = lvsm_data_here(
        *("render", "--source", "local", "--input", manifest, "--n", 1, "--res", width, "--views", views),
        *("--executor", "inline", "--out", tmp_path / "run", "--val-percent", 0),
    )
    assert run.returncode == 0, run.stderr
    table = pq.read_table(tmp_path / "run" / str(width) / "train-000000.parquet").to_pylist()
    matrix = np.array(json.loads(table[0]["meta"])["transform"])
    spheres = CENTRES @ matrix[:3, :3].T + matrix[:3, 3], RADIUS * matrix[0, 0]
    errors = [error for row in table for error in errors_of(row, *spheres)]
    assert len(errors) >= views
    assert np.percentile(errors, 95) <= within


def errors_of(row: dict[str, Any], centres: np.ndarray, radius: float) -> list[float]:
    """Distances in pixels of the spheres in a row's JPEG from where its pose says, [] where they hide each other."""
    c2w, k = np.array(row["c2w"]).reshape(4, 4), np.array(row["fxfycxcy"])
    if not apart(c2w, k, (row["height"], row["width"]), centres, radius):
        return []
    srgb = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])), np.float64) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    # on white, a red sphere takes away green and blue: solve the three channels for the three coverages
    coverage = np.clip((1 + 2 * linear - linear.sum(-1, keepdims=True)) / 2, 0, 1)
    coverage = np.where(near_peak(coverage, 1.6 * radius / 1.4 * k[0] + 1), coverage, 0)
    return list(np.linalg.norm(centroids(coverage) - sphere_pixels(c2w, k, centres, radius), axis=-1))


def test_shards_as_a_reader_sees_them(assets: Path, tmp_path: Path) -> None:
    """End to end with pyarrow, PIL and NumPy alone: JPEG pixels of both resolutions against the stored columns."""
    manifest = tmp_path / "spheres.csv"
    manifest.write_text(f"path,uid\n{assets / 'spheres.glb'},spheres\n")
    run = lvsm_data(
        *("render", "--source", "local", "--input", manifest, "--n", 1, "--res", 64, 512, "--views", 8),
        *(
            "--samples",
            16,
            "--quality",
            100,
            "--denoise",
            "off",
            "--normalize",
            "box",
            "--executor",
            "inline",
            "--out",
            tmp_path / "run",
            "--val-percent",
            0,
        ),
    )
    assert run.returncode == 0, run.stderr
    checked = 0
    for width in (64, 512):
        table = pq.read_table(tmp_path / "run" / str(width) / "train-000000.parquet").to_pylist()
        assert len(table) == 8
        for row in table:
            error = np.array(errors_of(row, *normalised()))
            if not len(error):
                continue
            assert error.max() < 0.1, f"{width}: off by {error} px"
            checked += 1
    assert checked >= 4
