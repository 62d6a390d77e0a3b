"""Folders with transforms.json (nerfstudio, instant-ngp, DL3DV) or transforms_train, _val, _test.json (NeRF's Blender scenes).

Poses are camera-to-world with OpenGL axes (+x right, +y up, -z forward). They stay in the world that the file speaks of:
`applied_transform` says how that came about and is only noted, since undoing it would move all cameras alike.
Intrinsics are for pictures of w x h; where the pictures are smaller (images_4 of DL3DV), they are scaled with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.views import ImportConfig
from pipeline.core import cameras
from pipeline.core.errors import Skip
from pipeline.core.records import Item, Posed
from pipeline.download.fetch import Fetcher
from pipeline.formats import bundles
from pipeline.sources import posed_views

SAYS = "nerfstudio folders"
HOWTO = "--source nerfstudio --input FOLDER"
FILES = ("transforms.json", "transforms_train.json", "transforms_val.json", "transforms_test.json")
PERSPECTIVE = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
DISTORTION = ("k1", "k2", "p1", "p2", "k3")  # in OpenCV's order; nerfstudio's k4 is another one than OpenCV's


def items(cfg: ImportConfig, seed: int, net: Fetcher | None = None) -> Iterator[Item]:
    """One item per folder with one of FILES. uid: the folder relative to the input. UserError where there is none."""
    root = posed_views.input_of(cfg)
    folders = bundles.folders(root, lambda folder: any((folder / name).is_file() for name in FILES), seed)
    found = (Item(posed_views.uid_of(folder, root), cfg.source, url=str(folder)) for folder in folders)
    return bundles.never_empty(found, f"{root} holds no transforms.json", HOWTO)


def load(item: Item, path: Path, cfg: ImportConfig) -> Posed:
    """Read one scene. Raises Skip: no_cameras, no_images (an empty list), bad_cameras, unsupported_camera, image_missing,
    broken_image, escapes_folder.
    """
    frames: list[dict[str, Any]] = []
    meta: dict[str, Any] = {}
    names = [name for name in FILES if (path / name).is_file()]
    if not names:
        raise Skip("no_cameras", f"no transforms.json in {path}")
    for name in names[:1] if names[0] == FILES[0] else names:
        shared = posed_views.json_object(bundles.read_file(path / name), name)
        listed = shared.pop("frames", None)
        if not isinstance(listed, list) or not all(isinstance(frame, dict) for frame in listed):
            raise Skip("no_cameras", f"{name} has no list of frames")
        frames += [shared | frame for frame in listed]
        if "applied_transform" in shared:
            meta["applied_transform"] = posed_views.matrices([shared["applied_transform"]])[0].tolist()
    if not frames:
        raise Skip("no_images", f"{names[0]} lists no frame")
    frames = _unique(frames)
    chosen = [frames[i] for i in cameras.spread(len(frames), cfg.scene.views)]
    roots = (path, posed_views.input_of(cfg))
    files = [posed_views.picture(frame["file_path"], path, roots) for frame in chosen]
    c2w_gl = posed_views.matrices([frame.get("transform_matrix") for frame in chosen])
    pictures = [bundles.read_file(file) for file in files]
    made = [
        _camera(frame, posed_views.hw_of(data, file.name))
        for frame, data, file in zip(chosen, pictures, files, strict=True)
    ]
    fxfycxcy, distortion = (np.stack(part) for part in zip(*made, strict=True))
    meta["views_found"] = len(frames)
    return Posed(pictures, cameras.from_opengl(c2w_gl), fxfycxcy, distortion if distortion.any() else None, meta)


def _unique(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop frames whose picture came before. Raises Skip("bad_cameras") for a frame without file_path."""
    for frame in frames:
        if not isinstance(frame.get("file_path"), str) or not frame["file_path"]:
            raise Skip("bad_cameras", "a frame without file_path")
    return list({frame["file_path"]: frame for frame in frames}.values())


def _camera(frame: dict[str, Any], hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics of a frame: fxfycxcy (4,) in pixels of a picture of size hw, and OpenCV distortion (8,)."""
    values = {
        name: posed_views.number(frame, name) for name in ("w", "h", "fl_x", "fl_y", "cx", "cy", "k4", *DISTORTION)
    }
    model = frame.get("camera_model", "OPENCV")
    if model not in PERSPECTIVE or frame.get("is_fisheye") or values["k4"]:
        what = (
            f"camera_model {model}" if model not in PERSPECTIVE else "a fisheye" if frame.get("is_fisheye") else "a k4"
        )
        raise Skip(
            "unsupported_camera", f"{what}; one of {', '.join(PERSPECTIVE)} is needed: undistort the pictures first"
        )
    if "w" in frame and min(values["w"] or 0, values["h"] or 0) < 1:
        raise Skip("bad_cameras", f"pictures of {values['w']}x{values['h']} pixels")
    width, height = values["w"] or float(hw[1]), values["h"] or float(hw[0])
    fx, fy = values["fl_x"], values["fl_y"]
    if fx is None and (angle := posed_views.number(frame, "camera_angle_x")) is not None:
        fx = posed_views.focal(width, angle)
        if fy is None and (angle_y := posed_views.number(frame, "camera_angle_y")) is not None:
            fy = posed_views.focal(height, angle_y)
    if fx is None:
        raise Skip("no_cameras", "neither fl_x nor camera_angle_x")
    cx, cy = values["cx"], values["cy"]
    made = [fx, fx if fy is None else fy, width / 2 if cx is None else cx, height / 2 if cy is None else cy]
    coefficients = np.zeros(8)
    coefficients[:5] = [values[name] or 0.0 for name in DISTORTION]
    return posed_views.fitted(np.array(made), (height, width), hw, Path(frame["file_path"]).name), coefficients
