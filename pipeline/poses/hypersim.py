"""Hypersim: SCENE/_detail/cam_NN/*.hdf5, the poses of a camera's path, and pictures in SCENE/images/scene_cam_NN_final_preview/.

Poses are camera-to-world with OpenGL axes, positions in units of the scene's asset. A matrix M_cam_from_uv of each scene, in
metadata_camera_parameters.csv of the data set's tools, takes u, v in -1 to 1 (v up) to directions of the camera; lenses with
tilt and shift make it more than a focal length, and turn the pinhole camera that shows the same.

images/scene_cam_NN_geometry_hdf5 has depth_meters, distances from the camera's centre in metres (metadata_scene.csv says how long
a unit of the asset is), and normal_world; images/scene_cam_NN_final_hdf5 has diffuse_reflectance, linear light.
"""

from __future__ import annotations

import csv
import functools
import re
from pathlib import Path

import numpy as np

from pipeline.core import images
from pipeline.core.cameras import FLIP_YZ, PINHOLE, Lens, homogeneous
from pipeline.core.errors import Skip
from pipeline.formats import hdf5
from pipeline.poses.capture import CameraOf, Capture, View, decomposed, finite, fitted, inverted
from pipeline.poses.pictures import Finder, pictures_in

SAYS = "Hypersim scenes with _detail/ and images/"
POSITIONS, ORIENTATIONS = "camera_keyframe_positions.hdf5", "camera_keyframe_orientations.hdf5"
INDICES = "camera_keyframe_frame_indices.hdf5"
PARAMETERS = "metadata_camera_parameters.csv"
ABOVE = 6  # folders above a camera's in which PARAMETERS may be
SCENE = "metadata_scene.csv"
LAYERS = {"depth": ("geometry", "depth_meters"), "normals": ("geometry", "normal_world")}
LAYERS |= {"albedo": ("final", "diffuse_reflectance")}  # name -> folder, and kind of its files
PICTURE = re.compile(r"frame\.(\d{4})\.(tonemap|color)\.(?:jpg|png)")


def is_scene(folder: Path) -> bool:
    """True if the folder holds a camera's path."""
    return (folder / POSITIONS).is_file() and (folder / ORIENTATIONS).is_file()


def name_of(folder: Path) -> str:
    """Name of a camera's path: SCENE/cam_NN."""
    folder = folder.absolute()
    return f"{folder.parent.parent.name}/{folder.name}"


def read(folder: Path, finder: Finder, only: str = "") -> Capture:
    """Read a camera's path, with its tone-mapped previews. Raises Skip: no_cameras, no_images, bad_cameras."""
    folder = folder.absolute()
    scene = folder.parent.parent
    positions, rotations = _numbers(folder / POSITIONS, 3), _numbers(folder / ORIENTATIONS, 9).reshape(-1, 3, 3)
    frames = _numbers(folder / INDICES, 1)[:, 0] if (folder / INDICES).is_file() else np.arange(len(positions))
    if not len(positions) == len(rotations) == len(frames):
        raise Skip("bad_cameras", f"{len(positions)} positions, {len(rotations)} orientations, {len(frames)} frames")
    place = scene / "images" / f"scene_{folder.name}_final_preview"
    pictures = {int(match[1]): name for name in reversed(_by_kind(place)) if (match := PICTURE.fullmatch(name))}
    if not pictures:
        raise Skip("no_images", f"no frame.NNNN.tonemap.jpg in {place.name}")
    hw, rays = _lens(scene)
    pixels = np.linalg.inv(FLIP_YZ[:3, :3] @ rays @ _uv_of_pixels(hw))  # directions with OpenCV axes -> pixels
    poses = homogeneous(finite(np.concatenate([rotations, positions[..., None]], -1))) @ FLIP_YZ
    views, inside = [], finder.within(place)
    if not np.isfinite(frames).all():
        raise Skip("bad_cameras", f"{INDICES} holds numbers that are none")
    for frame, w2c in zip(frames.astype(int).tolist(), inverted(poses), strict=True):
        k, c2w = decomposed(pixels @ w2c[:3])
        name = pictures.get(frame, f"frame.{frame:04d}.tonemap.jpg")
        camera = functools.partial(_camera, k, hw, name)
        layer = functools.partial(_layer, folder, finder, frame, camera)
        views.append(View(name, inside.find(name, place), c2w, camera, layer=layer))
    return Capture(views)


def _layer(folder: Path, finder: Finder, frame: int, camera: CameraOf, name: str) -> np.ndarray:
    """Implement View.layer of a frame of the camera's path in a folder. Raises Skip: layer_missing, broken_image."""
    part, kind = LAYERS[name]
    place = folder.parent.parent / "images" / f"scene_{folder.name}_{part}_hdf5"
    file = f"frame.{frame:04d}.{kind}.hdf5"
    path = finder.within(place).find(file, place)
    if path is None:
        raise Skip("layer_missing", f"{name}: no {place.name}/{file}")
    try:
        values = np.asarray(hdf5.array(path, "dataset"), np.float32)
    except ValueError as error:
        raise Skip("broken_image", f"{file}: {error}") from None
    if values.ndim != (2 if name == "depth" else 3):
        raise Skip("broken_image", f"{file}: an array of shape {values.shape}")
    values = np.where(np.isfinite(values), values, 0)
    if name == "albedo":
        return images.srgb8(values)
    if name == "normals":
        return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-6)
    height, width = values.shape
    try:
        fx, fy, cx, cy = camera((height, width))[0]
    except Skip as failure:
        raise Skip("broken_image", f"{file}: {failure.detail}") from None
    y, x = np.mgrid[:height, :width] + 0.5
    along = values / _metres(folder.parent.parent) / np.sqrt(1 + ((x - cx) / fx) ** 2 + ((y - cy) / fy) ** 2)
    return np.where(along > 0, along, np.inf).astype(np.float32)


def _metres(scene: Path) -> float:
    """Length of a unit of the asset in metres. Raises Skip("layer_missing")."""
    path = scene / "_detail" / SCENE
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            found = {row[0].strip(): row[1] for row in csv.reader(lines) if len(row) > 1}
        metres = float(found["meters_per_asset_unit"])
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError) as error:
        raise Skip("layer_missing", f"depth: no length of a unit in {SCENE}: {type(error).__name__} {error}") from None
    if not 0 < metres < np.inf:
        raise Skip("layer_missing", f"depth: a unit of {metres:g} metres in {SCENE}")
    return metres


def _by_kind(place: Path) -> list[str]:
    """Pictures of a folder, tone-mapped ones first."""
    return sorted(pictures_in(place), key=lambda name: (".tonemap." not in name, name))


def _uv_of_pixels(hw: tuple[float, float]) -> np.ndarray:
    """Matrix (3, 3) of pixels, with corners at 0, to u to the right and v up, in -1 to 1."""
    return np.array([[2 / hw[1], 0, -1], [0, -2 / hw[0], 1], [0, 0, 1]])


def _camera(k: np.ndarray, stated_hw: tuple[float, float], name: str, hw: tuple[int, int]) -> tuple[np.ndarray, Lens]:
    return fitted(k, stated_hw, hw, name), PINHOLE


def _numbers(path: Path, columns: int) -> np.ndarray:
    """Read a data set as (N, columns) float64. Raises Skip("bad_cameras")."""
    try:
        found = np.asarray(hdf5.array(path, "dataset"), np.float64).reshape(-1, columns)
    except ValueError as error:
        raise Skip("bad_cameras", f"{path.name}: {error}") from None
    return found


def _lens(scene: Path) -> tuple[tuple[float, float], np.ndarray]:
    """(height, width) of the pictures and M_cam_from_uv (3, 3) of a scene. Raises Skip: no_cameras, bad_cameras."""
    places = [scene / "_detail", scene, *list(scene.parents)[:ABOVE]]
    path = next((place / PARAMETERS for place in places if (place / PARAMETERS).is_file()), None)
    if path is None:
        raise Skip("no_cameras", f"no {PARAMETERS} above {scene.name}: it comes with the data set's tools")
    row = _rows(path, path.stat().st_mtime_ns).get(scene.name)
    if row is None:
        raise Skip("no_cameras", f"{path.name} has no line of {scene.name}")
    try:
        hw = float(row["settings_output_img_height"]), float(row["settings_output_img_width"])
        rays = np.array([[float(row[f"M_cam_from_uv_{i}{j}"]) for j in range(3)] for i in range(3)])
    except (KeyError, ValueError, TypeError) as error:
        raise Skip("bad_cameras", f"{path.name}: {error}") from None
    if not np.isfinite(rays).all() or abs(np.linalg.det(rays)) < 1e-9 or min(hw) < 1:
        raise Skip("bad_cameras", f"{path.name}: a matrix that cannot be inverted")
    return hw, rays


@functools.lru_cache(maxsize=2)
def _rows(path: Path, mtime_ns: int) -> dict[str, dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            return {str(row.get("scene_name")): row for row in csv.DictReader(lines)}
    except (UnicodeDecodeError, csv.Error) as error:
        raise Skip("bad_cameras", f"{path.name}: {error}") from None
