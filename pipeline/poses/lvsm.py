"""The official LVSM's layout of RealEstate10K (arXiv 2410.17242): a JSON file for each scene, and a list of them.

SPLIT/metadata/SCENE.json is {"scene_name", "frames": [{"image_path", "fxfycxcy" in pixels, "w2c" 4x4 with OpenCV axes}]};
SPLIT/full_list.txt has the path of each. Paths are opened as they are written, so they are absolute here.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from pipeline.poses.shots import Shots, write_pictures

LEAST_FRAMES = 26  # fewer never pass the view selector of its training data


class Writer:
    """Writer of all scenes into train/ or test/: a scene goes to test/ if all its views are for tests."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.listed: defaultdict[str, list[str]] = defaultdict(list)
        self.fewest: int | None = None

    def add(self, shots: Shots) -> None:
        """Write one scene: its pictures and its JSON file."""
        split = shots.scene_split
        folder = self.root / split / "images" / shots.name
        names = write_pictures(shots, folder)
        frames = [
            {"image_path": str(folder / name), "fxfycxcy": k.tolist(), "w2c": w2c.tolist()}
            for name, k, w2c in zip(names, shots.fxfycxcy.astype(float), shots.w2c(), strict=True)
        ]
        path = self.root / split / "metadata" / f"{shots.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"scene_name": shots.name, "frames": frames}))
        self.listed[split].append(str(path))
        self.fewest = min(len(shots), self.fewest or len(shots))

    def close(self) -> list[str]:
        """Write the lists."""
        for split, paths in self.listed.items():
            (self.root / split / "full_list.txt").write_text("\n".join([*paths, ""]))
        notes = [f"paths are absolute: after moving {self.root}, export again"]
        if self.fewest and self.fewest < LEAST_FRAMES:
            notes.append(
                f"a scene has {self.fewest} views; LVSM's own training draws from windows of at least {LEAST_FRAMES} frames of a "
                "video, and passes over such scenes: evaluate by an index, or change its view selector"
            )
        return notes
