"""What the importers' tests share: a source's whole way from its list to scenes, and how far balls are off in what is stored."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from pipeline import sources
from pipeline.config.source_table import CAPTURES
from pipeline.config.views import ImportConfig, PosedConfig
from pipeline.core.budget import DiskBudget
from pipeline.core.cameras import Lens
from pipeline.core.errors import Retry, Skip
from pipeline.core.records import Item, Scene
from pipeline.download.fetch import Fetcher, FetchLimits
from pipeline.sources import arb, cap3d, captures, dome, gobjaverse, objaverse_mix, pixelsplat, zero123
from pipeline.worker.posed import Importer, to_scene
from tests.balls import balls_in, expected

SOURCES: dict[str, ModuleType] = {
    "zero123": zero123,
    "gobjaverse": gobjaverse,
    "objaverse-mix": objaverse_mix,
    "dome-objaverse": dome,
    "cap3d": cap3d,
    "arb-objaverse": arb,
    "pixelsplat": pixelsplat,
    **dict.fromkeys(CAPTURES, captures),
}


def opencv(bent: Sequence[float]) -> Lens:
    """Lens of OpenCV's k1 k2 p1 p2 k3 k4 k5 k6."""
    k1, k2, p1, p2, k3, k4, k5, k6 = map(float, bent)
    return Lens(radial=(k1, k2, k3, 0.0), denominator=(k4, k5, k6), tangential=(p1, p2))


def config(source: str, given: Path | None, cache: Path, **scene: Any) -> ImportConfig:
    """Resolved, as the run hands it to a source."""
    taken = PosedConfig(**({"quality": 100} | scene))  # type: ignore[arg-type]
    made = ImportConfig(source=source, input=given, cache=cache, verify_cameras=False, scene=taken)
    return made.resolved()


def staged(
    source: str, cfg: ImportConfig, items: list[Item], folder: Path, net: Fetcher | None = None
) -> dict[str, Path | Skip | Retry]:
    """What fetch_many makes of the items, in batches, each in a folder of its own. Every item comes exactly once."""
    module = SOURCES[source]
    if net is None:
        folder.mkdir(parents=True, exist_ok=True)
        net = Fetcher(FetchLimits(), DiskBudget(folder, 1e9))

    def folder_of(item: Item) -> Path:
        made = folder / hashlib.blake2b(item.uid.encode(), digest_size=12).hexdigest()
        made.mkdir(parents=True, exist_ok=True)
        return made

    got: dict[str, Path | Skip | Retry] = {}
    keys = list(dict.fromkeys(module.batch(item) for item in items))
    for key in keys:
        for item, end in module.fetch_many([item for item in items if module.batch(item) == key], folder_of, net):
            assert item.uid not in got
            got[item.uid] = end
    assert got.keys() == {item.uid for item in items}
    return got


def imported(source: str, given: Path, work: Path, **scene: Any) -> dict[str, Scene | Skip | Retry]:
    """uid -> the scene, or why there is none."""
    cfg = config(source, given, work / "cache", **scene)
    module = SOURCES[source]
    items = list(module.items(cfg, 0, None))
    assert [item.uid for item in module.items(cfg, 0, None)] == [item.uid for item in items]
    places: Mapping[str, Path | Skip | Retry] = {item.uid: Path(item.url) for item in items}
    if sources.is_remote(cfg):
        places = staged(source, cfg, items, work / "staged")
    ends: dict[str, Scene | Skip | Retry] = {}
    importer = Importer(cfg, functools.partial(to_scene, cfg=cfg.scene))
    for item in items:
        place = places[item.uid]
        try:
            if isinstance(place, Path):
                ends[item.uid] = importer.make(item, lambda _, place=place: place, {})
            else:
                ends[item.uid] = place
        except Skip as failure:
            ends[item.uid] = failure
    return ends


def only(ends: Mapping[str, Scene | Skip | Retry]) -> Scene:
    """The one scene that there is."""
    (end,) = ends.values()
    assert isinstance(end, Scene), end
    return end


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def errors(scene: Scene, width: int) -> np.ndarray:
    """How far (pixels) each ball is from where the stored columns say, over all views."""
    views, off = scene.by_width[width], []
    for jpeg, c2w, k in zip(views.jpegs, scene.c2w, views.intrinsics, strict=True):
        rgb = pixels(jpeg)
        assert rgb.shape == (*views.hw, 3)
        found, right = balls_in(rgb, 3 if width > 128 else 2), expected(c2w, k, views.hw)
        off += [float(np.linalg.norm(found[i] - place)) for i, place in right.items() if i in found]
        assert len(found.keys() & right.keys()) == len(right)
    return np.array(off)


# ---- archives


def zipped(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, files: Mapping[str, bytes], *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for info in more:
            archive.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def seven_zipped(path: Path, files: Mapping[str, bytes]) -> Path:
    import py7zr

    with py7zr.SevenZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(data, name)
    return path


def under(folder: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": data for name, data in files.items()}


def changed(item: Item, **extra: Any) -> Item:
    return replace(item, extra=item.extra | extra)


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path
