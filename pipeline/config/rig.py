"""Poses in files, both ways: ours, {"c2w": [4x4, ...]}, and nerfstudio's camera paths, {"camera_path": [...]}."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import cameras
from pipeline.core.cameras import SAMPLERS
from pipeline.core.errors import UserError

SAME_FOV = 1e-3  # degrees by which fields of view may differ and still count as one
HINT = 'a file such as {"c2w": [[[1, 0, 0, 0], [0, 0, 1, -2], [0, -1, 0, 0], [0, 0, 0, 1]]], "others": "shell"}'


@dataclass(frozen=True)
class Rig:
    """Fixed poses, the same for every object. c2w: F times the 16 numbers of a row-major 4x4, OpenCV axes."""

    c2w: tuple[tuple[float, ...], ...]

    def poses(self) -> np.ndarray:
        """c2w (F, 4, 4) float64."""
        return np.array(self.c2w).reshape(-1, 4, 4)


@dataclass(frozen=True)
class CameraPath:
    """Cameras of a file. c2w: (F, 4, 4) float64, OpenCV axes. fxfycxcy: (F, 4) in pixels of pictures of size `hw`; both None
    where the file says no lens. fovs: horizontal fields of view in degrees, as far as it says them."""

    c2w: np.ndarray
    fxfycxcy: np.ndarray | None
    hw: tuple[int, int] | None
    fovs: list[float]


def read_path(path: Path, flag: str = "--poses") -> CameraPath:
    """Cameras of a JSON file of either kind. Raises UserError, which names `flag`: no such file, no poses, no pinholes."""
    return _read(path, flag)[1]


def read_rig(path: Path, flag: str = "--cameras") -> tuple[Rig, str, float | None]:
    """(Rig, sampler of the other views, horizontal field of view in degrees) of a JSON file of either kind.

    The sampler is shell, and the field of view None, where the file does not say. Raises UserError, which names `flag`: no such
    file, no poses, fields of view that differ, a camera that is no pinhole.
    """
    document, found = _read(path, flag)
    rig, fovs = found.c2w, found.fovs
    if fovs and max(fovs) - min(fovs) > SAME_FOV:
        said = f"{flag} {path}: fields of view from {min(fovs):g} to {max(fovs):g} degrees, and a run has one"
        raise UserError(said, "make a path with one, as `lvsm-data paths` does")
    others = document.get("others", "shell")
    if others not in SAMPLERS or SAMPLERS[others].views is not None:
        free = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.views is None)
        raise UserError(f"{flag} {path}: others cannot be {others!r}", f"one of {free}")
    return Rig(tuple(tuple(pose.ravel().tolist()) for pose in rig)), others, fovs[0] if fovs else None


def _read(path: Path, flag: str) -> tuple[dict[str, Any], CameraPath]:
    """JSON object of a file, and its cameras. Raises UserError like `read_path`."""
    try:
        document = json.loads(path.expanduser().read_text())
        if not isinstance(document, dict):
            raise ValueError("no JSON object")
        found = (_of_nerfstudio if "camera_path" in document else _of_ours)(document)
        if not len(found.c2w):
            raise ValueError("it has no poses")
        return document, dataclasses.replace(found, c2w=cameras.nearest_rigid(found.c2w))
    except OSError as error:
        makes = "`lvsm-data paths` makes one" if flag == "--poses" else ", ".join(SAMPLERS)
        raise UserError(f"{flag} {path}: {error.strerror}", f"{makes}; or {HINT}") from None
    except UnicodeDecodeError:
        raise UserError(f"{flag} {path} is no rig: no text", HINT) from None
    except KeyError as error:
        raise UserError(f"{flag} {path} is no rig: it has no {error.args[0]!r}", HINT) from None
    except (ValueError, TypeError, IndexError, OverflowError, RecursionError) as error:
        raise UserError(f"{flag} {path} is no rig: {error}", HINT) from None


def _of_ours(document: dict[str, Any]) -> CameraPath:
    """Cameras of a file of ours, whose intrinsics, if it has any, are of all poses alike or of each."""
    c2w = np.array(document["c2w"], np.float64)
    if "fxfycxcy" not in document:
        return CameraPath(c2w, None, None, [])
    k, width = np.array(document["fxfycxcy"], np.float64).reshape(-1, 4), document["width"]
    if len(k) not in (1, len(c2w)) or not (np.isfinite(k).all() and (k[:, :2] > 0).all() and width > 0):
        raise ValueError(f"{len(k)} intrinsics for {len(c2w)} poses, or some that are no camera's")
    fovs = [_degrees(width / 2 / fx) for fx in k[:, 0].tolist()]
    if "height" not in document:
        return CameraPath(c2w, None, None, fovs)
    return CameraPath(c2w, np.resize(k, (len(c2w), 4)), (int(document["height"]), int(width)), fovs)


def _of_nerfstudio(document: dict[str, Any]) -> CameraPath:
    """Cameras of a camera path; a file has vertical fields of view, and the aspect of the picture."""
    if (kind := document.get("camera_type", "perspective")) != "perspective":
        raise ValueError(f"its cameras are {kind}, not perspective")
    frames = document["camera_path"]
    c2w = np.array([frame["camera_to_world"] for frame in frames], np.float64).reshape(len(frames), 4, 4)
    size = float(document["render_width"]) / float(document["render_height"]) if "render_height" in document else 1.0
    fovs = [
        _degrees(float(frame.get("aspect", size)) * math.tan(math.radians(float(frame["fov"])) / 2))
        for frame in frames
        if "fov" in frame
    ]
    c2w = cameras.from_opengl(c2w)
    if len(fovs) < len(frames) or "render_height" not in document:
        return CameraPath(c2w, None, None, fovs)
    height, width = int(document["render_height"]), int(document["render_width"])
    tangents = [math.tan(math.radians(float(frame["fov"])) / 2) for frame in frames]
    k = np.array([[height / 2 / half, height / 2 / half, width / 2, height / 2] for half in tangents])
    if not (np.isfinite(k).all() and (k > 0).all()):
        raise ValueError("a field of view that no pinhole has, or a picture without a size")
    return CameraPath(c2w, k.reshape(-1, 4), (height, width), fovs)


def _degrees(half: float) -> float:
    """Angle in degrees whose half has this tangent."""
    return 2 * math.degrees(math.atan(half))


def ours(c2w: np.ndarray, fxfycxcy: np.ndarray, hw: tuple[int, int]) -> dict[str, Any]:
    """Poses (F, 4, 4) as a file of ours, with the intrinsics, (4,) or (F, 4), that they were made for."""
    return {"c2w": c2w.tolist(), "fxfycxcy": fxfycxcy.tolist(), "height": hw[0], "width": hw[1]}


def nerfstudio(c2w: np.ndarray, fxfycxcy: np.ndarray, hw: tuple[int, int], fps: float, cycle: bool) -> dict[str, Any]:
    """Camera path as `ns-render camera-path` reads it: OpenGL axes, vertical fields of view in degrees."""
    fov, aspect = _degrees(hw[0] / 2 / fxfycxcy[1]), hw[1] / hw[0]
    path = [{"camera_to_world": pose.ravel().tolist(), "fov": fov, "aspect": aspect} for pose in cameras.to_opengl(c2w)]
    size = {"camera_type": "perspective", "render_height": hw[0], "render_width": hw[1]}
    timing = {"fps": fps, "seconds": len(c2w) / fps, "is_cycle": cycle, "smoothness_value": 0.5}
    return size | {"camera_path": path} | timing
