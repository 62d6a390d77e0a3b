"""CO3D and CO3Dv2: CATEGORY/frame_annotations.jgz for all sequences of a category, CATEGORY/SEQUENCE/images/.

Viewpoints are PyTorch3D's: row vectors, x R + T is in camera axes left, up, forward. Focal length and principal point are in
NDC: of `ndc_norm_image_bounds` in halves of the width and of the height, of `ndc_isotropic` in halves of the shorter side; both
run from the middle of the picture to the left and up.
"""

from __future__ import annotations

import functools
import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.cameras import PINHOLE, Lens
from pipeline.core.errors import Skip
from pipeline.poses.capture import Capture, View, finite, fitted, inverted, json_lists
from pipeline.poses.pictures import Finder, named

SAYS = "CO3D categories with frame_annotations.jgz"
FILE = "frame_annotations.jgz"
MAX_BYTES = 4_000_000_000  # of the annotations of a category, unpacked
AXES = np.diag([-1.0, -1.0, 1.0])  # left, up, forward -> right, down, forward
FORMATS = ("ndc_norm_image_bounds", "ndc_isotropic")


def is_scene(folder: Path) -> bool:
    """True if the folder is a sequence of a category with annotations."""
    return named(folder, "images").is_dir() and (folder.absolute().parent / FILE).is_file()


def read(folder: Path, finder: Finder, only: str = "") -> Capture:
    """Read the sequence in a folder. Raises Skip: no_images, bad_cameras, unsupported_camera, escapes_folder."""
    path = folder.absolute().parent / FILE
    frames = _annotations(path, path.stat().st_mtime_ns).get(folder.absolute().name, [])
    if not frames:
        raise Skip("no_images", f"{FILE} has no frame of {folder.name}")
    try:
        return Capture([_view(frame, folder, finder) for frame in frames])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise Skip("bad_cameras", f"{FILE}: {type(error).__name__} {error}") from None


@functools.lru_cache(maxsize=1)
def _annotations(path: Path, mtime_ns: int) -> dict[str, list[dict[str, Any]]]:
    """Frames of each sequence of a category; cached, since its sequences follow each other. Raises Skip("bad_cameras")."""
    try:
        with gzip.open(path) as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise Skip("bad_cameras", f"{FILE}: {error}") from None
    if len(data) > MAX_BYTES:
        raise Skip("bad_cameras", f"{FILE} unpacks to more than {MAX_BYTES / 1e9:.0f} GB")
    found: dict[str, list[dict[str, Any]]] = {}
    for frame in json_lists(data, FILE):
        found.setdefault(str(frame.get("sequence_name")), []).append(frame)
    return found


def _view(frame: dict[str, Any], folder: Path, finder: Finder) -> View:
    seen, image = frame["viewpoint"], frame["image"]
    name = str(image["path"]).rsplit("/", 1)[-1]
    camera = functools.partial(_camera, seen, image.get("size"), name)
    return View(name, finder.find(f"images/{name}", folder), _pose(seen), camera, _role(frame))


def _pose(seen: dict[str, Any]) -> np.ndarray:
    """c2w (4, 4) of a viewpoint; NaN where it has none."""
    try:
        said = np.c_[np.array(seen["R"], np.float64).reshape(3, 3).T, np.array(seen["T"], np.float64).reshape(3)]
    except (KeyError, ValueError, TypeError):
        return np.full((4, 4), np.nan)
    return inverted(AXES @ finite(said[None]))[0]


def _camera(seen: dict[str, Any], size: Any, name: str, hw: tuple[int, int]) -> tuple[np.ndarray, Lens]:
    try:
        height, width = (float(side) for side in size)
        focal, point = (np.array(seen[part], np.float64).reshape(2) for part in ("focal_length", "principal_point"))
    except (KeyError, ValueError, TypeError) as error:
        raise Skip("bad_cameras", f"{name}: size, focal_length or principal_point: {error}") from None
    kind = seen.get("intrinsics_format") or FORMATS[0]
    if kind not in FORMATS or min(height, width) < 1:
        raise Skip("unsupported_camera", f"intrinsics_format {str(kind)[:40]} for {width:g}x{height:g} pixels")
    half = np.array([width, height]) / 2
    unit = half if kind == FORMATS[0] else np.full(2, half.min())
    k = np.concatenate([focal * unit, half - point * unit])
    return fitted(k, (height, width), hw, name), PINHOLE


def _role(frame: dict[str, Any]) -> str:
    """Role by frame_type of CO3D's first version: train_known, train_unseen, test_known, test_unseen."""
    kind = str((frame.get("meta") or {}).get("frame_type", ""))
    return "test" if kind.startswith("test") else "val" if kind == "train_unseen" else "train" if kind else ""
