"""RealEstate10K as frames on a disk: as LVSM's process_data.py writes it, and as pictures named by their times.

- {train,test}/metadata/KEY.json with images/KEY/ beside: scene_name, and frames of {image_path, fxfycxcy in pixels, w2c 4x4};
  full_list.txt has the path of each. LVSM opens paths as they are written, so they are written absolute;
- a folder KEY of pictures named by microseconds, and its camera file KEY.txt: in the folder, beside it, or in one of CAMERAS.

Poses are world-to-camera with OpenCV axes. Intrinsics of camera files are shares of width and height. A scene's name is its key,
which evaluation indices name.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from pipeline.core.cameras import PINHOLE, Lens
from pipeline.core.errors import Skip
from pipeline.formats import bundles, trajectories
from pipeline.poses.capture import Capture, View, inverted, json_object, matrices_of, unsized
from pipeline.poses.pictures import Finder, pictures_in
from pipeline.poses.shots import Shots, write_index, write_pictures

SAYS = "RealEstate10K in LVSM's layout, or frames beside camera files"
LEAST_FRAMES = 26  # fewer never pass the view selector of LVSM's training data
CAMERAS = ("cameras", "metadata", "RealEstate10K", "txt", "annotations")


def is_scene(folder: Path) -> bool:
    """True if the folder holds the pictures of a scene whose cameras are found."""
    return _facts(folder).is_file() or _cameras(folder) is not None


def name_of(folder: Path) -> str:
    """Key of the scene."""
    return folder.absolute().name


def read(folder: Path, finder: Finder, only: str = "") -> Capture:
    """Read the scene whose pictures a folder holds. Raises Skip: no_cameras, no_images, bad_cameras, unsupported_camera."""
    facts = _facts(folder)
    if facts.is_file():
        return Capture(_listed(facts, folder, finder.within(facts.parent.parent)))
    cameras = _cameras(folder)
    if cameras is None:
        raise Skip("no_cameras", f"no {folder.name}.txt near {folder}")
    return Capture(_timed(cameras, folder, finder))


def _facts(folder: Path) -> Path:
    """Path of the JSON file that LVSM's layout has for the pictures of a folder."""
    folder = folder.absolute()
    return folder.parent.parent / "metadata" / f"{folder.name}.json"


def _cameras(folder: Path) -> Path | None:
    folder = folder.absolute()
    name, split = f"{folder.name}.txt", folder.parent.name
    places = [folder, folder.parent]
    places += [above / named for above in (folder.parent, folder.parent.parent) for named in CAMERAS]
    places += [folder.parent.parent / named / split for named in CAMERAS] + [
        folder.parent.parent.parent / "cameras" / split
    ]
    found = next((place / name for place in places if (place / name).is_file()), None)
    return found if found and any(Path(one).stem.isdecimal() for one in pictures_in(folder)) else None


def _listed(facts: Path, folder: Path, finder: Finder) -> list[View]:
    frames = json_object(bundles.read_file(facts), facts.name).get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise Skip("no_cameras", f"{facts.name} has no list of frames")
    if not frames:
        raise Skip("no_images", f"{facts.name} lists no frame")
    poses = inverted(matrices_of([frame.get("w2c") for frame in frames]))
    views = []
    for number, (frame, pose) in enumerate(zip(frames, poses, strict=True)):
        name = frame.get("image_path")
        if not isinstance(name, str) or not name:
            raise Skip(
                "bad_cameras", f"frame {number} of {facts.name} has image_path {str(name)[:40]!r}; a picture is needed"
            )
        # image_path is for the working directory of whoever wrote it: the base name in the scene's own folder counts
        file = finder.find(name.replace("\\", "/").rsplit("/", 1)[-1], folder)
        views.append(View(name, file, pose, functools.partial(_stated, frame.get("fxfycxcy"))))
    return views


def _stated(k: object, hw: tuple[int, int]) -> tuple[np.ndarray, Lens]:
    try:
        numbers = np.array(k, np.float64).reshape(4)
    except (ValueError, TypeError):
        raise Skip("bad_cameras", f"fxfycxcy is {str(k)[:40]}, not four numbers") from None
    return unsized(numbers, hw)


def _timed(cameras: Path, folder: Path, finder: Finder) -> list[View]:
    path = trajectories.parse(bundles.read_file(cameras), cameras.name)
    poses = inverted(path.w2c)
    files = {int(Path(name).stem): name for name in pictures_in(folder) if Path(name).stem.isdecimal()}
    views = []
    for time, shares, pose in zip(path.times_us.tolist(), path.fxfycxcy, poses, strict=True):
        name = files.get(time)
        file = finder.find(name, folder) if name else None
        views.append(View(name or str(time), file, pose, functools.partial(_shares, shares)))
    return views


def _shares(shares: np.ndarray, hw: tuple[int, int]) -> tuple[np.ndarray, Lens]:
    return shares * [hw[1], hw[0], hw[1], hw[0]], PINHOLE


# ---- writing


class Writer:
    """Writer of LVSM's layout into train/ or test/. stands: where the folder will be read, if elsewhere."""

    def __init__(self, root: Path, stands: Path | None = None) -> None:
        self.root = root.absolute()
        self.stands = (stands or root).absolute()
        self.listed: defaultdict[str, list[str]] = defaultdict(list)
        self.fewest: int | None = None
        self.evaluations: dict[str, dict[str, list[int]]] = {}

    def add(self, shots: Shots) -> None:
        """Write one scene: its pictures and its JSON file."""
        split = shots.scene_split
        folder = self.root / split / "images" / shots.name
        names = write_pictures(shots, folder)
        frames = [
            {"image_path": self._standing(folder / name), "fxfycxcy": k.tolist(), "w2c": w2c.tolist()}
            for name, k, w2c in zip(names, shots.fxfycxcy.astype(float), shots.w2c(), strict=True)
        ]
        path = self.root / split / "metadata" / f"{shots.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"scene_name": shots.name, "frames": frames}))
        self.listed[split].append(self._standing(path))
        if split == "train":
            self.fewest = min(len(shots), self.fewest or len(shots))
        if shots.evaluation:
            self.evaluations[shots.name] = shots.evaluation

    def _standing(self, path: Path) -> str:
        return str(self.stands / path.relative_to(self.root))

    def close(self) -> list[str]:
        """Write the lists."""
        for split, paths in self.listed.items():
            (self.root / split / "full_list.txt").write_text("\n".join([*paths, ""]))
        notes = [f"paths are absolute: after moving {self.stands}, export again"]
        notes += write_index(self.root / "test", self.evaluations)
        if self.fewest and self.fewest < LEAST_FRAMES:
            notes.append(
                f"a scene has {self.fewest} views; LVSM's own training draws from windows of at least {LEAST_FRAMES} frames of a "
                "video, and passes over such scenes: evaluate by an index, or change its view selector"
            )
        return notes
