"""Fixed cameras that film together: a video of each, and one calibration for the whole time.

The calibration is a poses_bounds.npy (a row per video in the order of their names, as LLFF's and the Neural 3D Video sets), or a
transforms.json whose frames name videos.
"""

from __future__ import annotations

import functools
from pathlib import Path

from pipeline.core import cameras
from pipeline.core.errors import Skip
from pipeline.formats import bundles
from pipeline.poses import llff, transforms
from pipeline.poses.capture import Capture, View, json_object, npy
from pipeline.poses.pictures import Finder, pictures_in

SAYS = "videos of fixed cameras, with poses_bounds.npy or transforms.json"
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
FOLDERS = ("", "videos")  # where the videos are
FILE = "transforms.json"


def is_scene(folder: Path) -> bool:
    """True if the folder holds videos, here or in videos/, and a calibration that is of these and not of pictures."""
    if not any(_videos_in(folder / name) for name in FOLDERS):
        return False
    if (folder / llff.FILE).is_file():
        return not pictures_in(folder / "images")
    try:
        frames = json_object(bundles.read_file(folder / FILE), FILE).get("frames")
    except (Skip, OSError):
        return False
    named = (
        [frame.get("file_path") for frame in frames[:1] if isinstance(frame, dict)] if isinstance(frames, list) else []
    )
    return any(isinstance(name, str) and name.lower().endswith(VIDEOS) for name in named)


def read(folder: Path, finder: Finder, only: str = "") -> Capture:
    """Read the cameras of a folder; `picture` of a view is its video. Raises Skip: count_mismatch, bad_cameras, no_cameras."""
    if only.endswith(".json") or not (folder / llff.FILE).is_file():
        return transforms.read(folder, finder, only)
    rows = npy(bundles.read_file(folder / llff.FILE), llff.FILE)
    poses, hwf = llff.cameras_of(rows)
    place = next(name for name in FOLDERS if _videos_in(folder / name))
    names = _videos_in(folder / place)
    if len(names) != len(rows):
        said = f"{len(rows)} poses in {llff.FILE} and {len(names)} videos"
        raise Skip("count_mismatch", f"{said}: put back, or take away, the videos that differ")
    paths = [f"{place}/{name}".lstrip("/") for name in names]
    views = [
        View(path, finder.find(path, folder), pose, functools.partial(llff.camera, own, path))
        for path, pose, own in zip(paths, cameras.homogeneous(poses), hwf, strict=True)
    ]
    return Capture(views)


def _videos_in(folder: Path) -> list[str]:
    """Names of the videos in a folder, sorted; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.suffix.lower() in VIDEOS and path.name[0] != ".")
