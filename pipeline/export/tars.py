"""WebDataset tars that `export` wrote, back as posed views: SPLIT-NNNNNN.tar, in which a view is a JPEG and a JSON file."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.views import ImportConfig
from pipeline.core import cameras
from pipeline.core.errors import Skip
from pipeline.core.records import Item, Posed, item_rng
from pipeline.download.fetch import Fetcher
from pipeline.formats import archives, bundles
from pipeline.poses import webdataset
from pipeline.poses.capture import json_object
from pipeline.sources import posed_views

SAYS = "WebDataset tars of lvsm-data"
HOWTO = "--source webdataset --input FOLDER (or one .tar)"
Parts = list[tuple[Path, bundles.ArchivedScene]]  # of a scene: the tars that hold views of it


def items(cfg: ImportConfig, seed: int, net: Fetcher | None = None) -> Iterator[Item]:
    """One item per scene, in an order that the seed gives. uid: as its views say. UserError where there is no view."""
    return bundles.never_empty(_items(cfg, seed), f"{cfg.input} holds no tar with NAME_NNNN.jpg and .json", HOWTO)


def _items(cfg: ImportConfig, seed: int) -> Iterator[Item]:
    root = posed_views.input_of(cfg)
    scenes = _scenes(root)
    keys = sorted(scenes)
    for i in item_rng(seed, "webdataset", "order").permutation(len(keys)):
        key = keys[i]
        yield Item(_uid(key, scenes[key]), cfg.source, url=str(root), extra={"key": key})


def _uid(key: str, parts: Parts) -> str:
    """Uid that the first view of a scene says, else the scene's name."""
    try:
        _, facts = next(_views(key, parts))
    except Skip:
        return key
    return str(facts.get("uid") or key)


def _scenes(root: Path) -> dict[str, Parts]:
    """Scenes of a folder's tars, or of one tar, by name. Raises UserError for a tar that cannot be read."""
    tars = sorted(root.glob("*.tar")) if root.is_dir() else [root]
    return _listed(tuple((tar, tar.stat().st_mtime_ns) for tar in tars))


@functools.lru_cache(maxsize=2)
def _listed(tars: tuple[tuple[Path, int], ...]) -> dict[str, Parts]:
    found: dict[str, Parts] = {}
    for tar, _ in tars:
        for key, scene in bundles.index(tar, webdataset.scene_of).items():
            found.setdefault(key, []).append((tar, scene))
    return found


def _views(key: str, parts: Parts) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """JPEG and facts of each view of a scene, with `role`: the split that its tar is named after."""
    for tar, scene in parts:
        if scene.fault:
            raise Skip("unsafe_archive", scene.fault)
        stems = {name.rpartition(".")[0] for name in scene.files}
        for stem in sorted(stems):
            if lacks := [end for end in ("jpg", "json") if f"{stem}.{end}" not in scene.files]:
                raise Skip("count_mismatch", f"{tar.name} has no {key}_{stem}.{lacks[0]}")
            jpeg, data = (archives.read(tar, *scene.files[f"{stem}.{end}"]) for end in ("jpg", "json"))
            yield jpeg, json_object(data, f"{key}_{stem}.json") | {"role": tar.name.partition("-")[0]}


def load(item: Item, path: Path, cfg: ImportConfig) -> Posed:
    """Read a scene. Raises Skip: missing, unsafe_archive, broken_archive, count_mismatch, bad_cameras, broken_image."""
    key = bundles.key_of(item)
    parts = _scenes(path).get(key)
    if parts is None:
        raise Skip("missing", f"{path.name} has no view of {key}")
    views = sorted(_views(key, parts), key=lambda view: str(view[1].get("view", "")).zfill(9))
    views, found = [views[i] for i in cameras.spread(len(views), cfg.scene.views)], len(views)
    facts = [fact for _, fact in views]
    c2w, fxfycxcy = webdataset.cameras_of(facts)
    names = [f"view {fact.get('view')}" for fact in facts]
    roles = [fact["role"] for fact in facts]
    split = roles if set(roles) - {"train"} else []
    pictures, meta = [jpeg for jpeg, _ in views], {"views_found": found}
    return Posed(
        pictures, np.asarray(c2w), fxfycxcy, roles=split, meta=meta, names=names, times=webdataset.times_of(facts)
    )
