"""Poses in files, both ways: ours, {"c2w": [4x4, ...]}, and nerfstudio's camera paths, {"camera_path": [...]}."""

from __future__ import annotations

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


def read_rig(path: Path, flag: str = "--cameras") -> tuple[Rig, str, float | None]:
    """(Rig, sampler of the other views, horizontal field of view in degrees) of a JSON file of either kind.

    The sampler is shell, and the field of view None, where the file does not say. Raises UserError, which names `flag`: no such
    file, no poses, fields of view that differ, a camera that is no pinhole.
    """
    try:
        document = json.loads(path.expanduser().read_text())
        if not isinstance(document, dict):
            raise ValueError("no JSON object")
        read = _of_nerfstudio if "camera_path" in document else _of_ours
        c2w, fovs = read(document)
        if not len(c2w):
            raise ValueError("it has no poses")
        rig = cameras.nearest_rigid(c2w)
    except OSError as error:
        makes = "`lvsm-data paths` makes one" if flag == "--poses" else ", ".join(SAMPLERS)
        raise UserError(f"{flag} {path}: {error.strerror}", f"{makes}; or {HINT}") from None
    except UnicodeDecodeError:
        raise UserError(f"{flag} {path} is no rig: no text", HINT) from None
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
        raise UserError(f"{flag} {path} is no rig: {error}", HINT) from None
    if fovs and max(fovs) - min(fovs) > SAME_FOV:
        said = f"{flag} {path}: fields of view from {min(fovs):g} to {max(fovs):g} degrees, and a run has one"
        raise UserError(said, "make a path with one, as `lvsm-data paths` does")
    others = document.get("others", "shell")
    if others not in SAMPLERS or SAMPLERS[others].views is not None:
        free = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.views is None)
        raise UserError(f"{flag} {path}: others cannot be {others!r}", f"one of {free}")
    return Rig(tuple(tuple(pose.ravel().tolist()) for pose in rig)), others, fovs[0] if fovs else None


def _of_ours(document: dict[str, Any]) -> tuple[np.ndarray, list[float]]:
    """c2w (F, 4, 4), and horizontal fields of view where there are intrinsics."""
    c2w = np.array(document["c2w"], np.float64)
    if "fxfycxcy" not in document:
        return c2w, []
    focal = np.array(document["fxfycxcy"], np.float64).reshape(-1, 4)[:, 0]
    return c2w, [_degrees(document["width"] / 2 / fx) for fx in focal.tolist()]


def _of_nerfstudio(document: dict[str, Any]) -> tuple[np.ndarray, list[float]]:
    """c2w (F, 4, 4), and horizontal fields of view; a file has vertical ones, and the aspect of the picture."""
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
    return cameras.from_opengl(c2w), fovs


def _degrees(half: float) -> float:
    """Angle in degrees whose half has this tangent."""
    return 2 * math.degrees(math.atan(half))


def ours(c2w: np.ndarray, fxfycxcy: np.ndarray, hw: tuple[int, int]) -> dict[str, Any]:
    """Poses (F, 4, 4) as a file of ours, with the intrinsics (4,) that they were made for."""
    return {"c2w": c2w.tolist(), "fxfycxcy": fxfycxcy.tolist(), "height": hw[0], "width": hw[1]}


def nerfstudio(c2w: np.ndarray, fxfycxcy: np.ndarray, hw: tuple[int, int], fps: float, cycle: bool) -> dict[str, Any]:
    """Camera path as `ns-render camera-path` reads it: OpenGL axes, vertical fields of view in degrees."""
    fov, aspect = _degrees(hw[0] / 2 / fxfycxcy[1]), hw[1] / hw[0]
    path = [{"camera_to_world": pose.ravel().tolist(), "fov": fov, "aspect": aspect} for pose in cameras.to_opengl(c2w)]
    size = {"camera_type": "perspective", "render_height": hw[0], "render_width": hw[1]}
    timing = {"fps": fps, "seconds": len(c2w) / fps, "is_cycle": cycle, "smoothness_value": 0.5}
    return size | {"camera_path": path} | timing
