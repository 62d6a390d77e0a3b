"""Captures on this machine: folders of pictures with their cameras, in any format of pipeline/poses."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from pipeline.config.source_table import CAPTURES
from pipeline.config.views import ImportConfig
from pipeline.core import cameras
from pipeline.core.errors import Skip
from pipeline.core.records import Item, Posed
from pipeline.download.fetch import Fetcher
from pipeline.formats import bundles
from pipeline.poses.pictures import Finder
from pipeline.sources import posed_views

SAYS = "captures"
HOWTO = f"--source {'|'.join(CAPTURES)} --input FOLDER"
LEAST_SHARE = 0.5  # of a capture's views whose pictures must be there


def reader(source: str) -> ModuleType:
    """Module of pipeline/poses that reads the captures of a source."""
    return importlib.import_module(f"pipeline.poses.{CAPTURES[source]}")


def items(cfg: ImportConfig, seed: int, net: Fetcher | None = None) -> Iterator[Item]:
    """One item per folder with a capture. uid: the folder relative to the input. UserError where there is none."""
    root = posed_views.input_of(cfg)
    form = reader(cfg.source)
    if root.is_file():
        root = root.parent
    folders = bundles.folders(root, form.is_scene, seed)
    found = (Item(posed_views.uid_of(folder, root), cfg.source, url=str(folder)) for folder in folders)
    hint = f"--source {cfg.source} --input FOLDER; docs/sources.md shows what belongs into it"
    return bundles.never_empty(found, f"{root} holds no {form.SAYS}", hint)


def load(item: Item, path: Path, cfg: ImportConfig) -> Posed:
    """Read one scene; views whose picture is missing are left out and counted.

    Raises Skip: no_cameras, no_images, bad_cameras, unsupported_camera, image_missing (fewer than LEAST_SHARE are there),
    broken_image, escapes_folder.
    """
    given = posed_views.input_of(cfg)
    root, only = (given.parent, given.name) if given.is_file() else (given, "")
    capture = reader(cfg.source).read(path, Finder((path, root), cfg.follow_links), only)
    there = [view for view in capture.views if view.picture is not None]
    missing = [view.name for view in capture.views if view.picture is None]
    if not there or len(there) < LEAST_SHARE * len(capture.views):
        raise Skip("image_missing", f"{len(missing)} of {len(capture.views)} pictures, {missing[0][:200]} in {path}")
    chosen = [there[i] for i in cameras.spread(len(there), cfg.scene.views)]
    pictures = [bundles.read_file(view.picture) for view in chosen if view.picture is not None]
    made = [view.camera(posed_views.hw_of(data, view.name)) for view, data in zip(chosen, pictures, strict=True)]
    fxfycxcy, lenses = zip(*made, strict=True)
    meta = capture.meta | {"views_found": len(there)} | ({"views_missing": len(missing)} if missing else {})
    roles = [view.role for view in chosen] if any(view.role for view in chosen) else []
    return Posed(pictures, np.stack([view.c2w for view in chosen]), np.stack(fxfycxcy), lenses, roles, meta)
