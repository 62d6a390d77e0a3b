"""Dome-Objaverse (zeyuanyin, 2026): 48 views each of 83,296 Objaverse objects, 512x512 RGBA, a Parquet file per object.

dome_objaverse/GROUP/ID.parquet has rows of view_id, image_png, nd_png; metadata/objects.parquet says of each object its
Objaverse uid and how far its cameras are. Views 0 to 11 stand at elevation 0, then 30, 60 and 90 degrees, 30 degrees of azimuth
apart, look at the origin of a world with z up, and see 0.691150367 radians; the right vector is (-sin azimuth, cos azimuth, 0),
also from above. nd_png has 16 bits: alpha is depth along the axis, 65535 for 5; blue, green, red are the normal's x, y, z in axes
of the world, 0 for -1 and 65535 for 1.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import sources
from pipeline.config.views import ImportConfig
from pipeline.core import cameras
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.core.paths import below
from pipeline.core.records import Fetched, Item, Posed, item_rng
from pipeline.download import huggingface
from pipeline.download.fetch import Fetcher, Wanted
from pipeline.formats import bundles, tables
from pipeline.sources import objaverse, posed_views
from pipeline.storage.shards import CAPTION

SAYS = "Dome-Objaverse renderings"
HOWTO = "--source dome-objaverse (fetched object by object), or with --input FOLDER"
REPO = "zeyuanyin/Dome-Objaverse"
LIST = "metadata/objects.parquet"
COLUMNS = ("object_id", "objaverse_uid", "glb_path", "caption", "camera_distance")
VIEWS, RING = 48, 12
ELEVATIONS = np.radians([0.0, 30.0, 60.0, 90.0])
FOV = 0.691150367  # radians, of the width
FILE = "views.parquet"
MOST_DEPTH = 5.0  # of 65535 in nd_png
root_of = posed_views.root_of


def remote(cfg: ImportConfig) -> bool:
    """True if files have to be fetched before a worker can read them."""
    return cfg.input is None


def items(cfg: ImportConfig, seed: int, net: Fetcher | None = None) -> Iterator[Item]:
    """One item per object. uid: Objaverse's. Raises UserError where the input holds no list, or it cannot be had."""
    nothing = f"{cfg.input or REPO} holds no object that was asked for"
    return bundles.never_empty(_items(cfg, seed, net), nothing, HOWTO)


def _items(cfg: ImportConfig, seed: int, net: Fetcher | None) -> Iterator[Item]:
    """List objects by Objaverse's folders, by which its licenses and authors are listed."""
    path = (
        cfg.input / LIST if cfg.input else huggingface.list_file(_needed(net), REPO, LIST, cfg.cache / "dome-objaverse")
    )
    if not path.is_file():
        raise UserError(f"{cfg.input} holds no {LIST}", "--input names a copy of the repository")
    names, folders = sources.asked_for(cfg), defaultdict(list)
    for block in tables.blocks(path, COLUMNS):
        if lacks := [name for name in COLUMNS if name not in block]:
            raise UserError(f"{path} has no column {lacks[0]}", "delete it; it is fetched again")
        for row in zip(*(block[name] for name in COLUMNS), strict=True):
            known = dict(zip(COLUMNS, row, strict=True))
            if names is None or not names.isdisjoint((known["objaverse_uid"], known["object_id"])):
                folders[Path(known["glb_path"]).parent.name].append(known)
    for folder in item_rng(seed, "dome-objaverse", "order").permutation(sorted(folders)):
        facts = objaverse.metadata(net, cfg.cache, str(folder)) if net else {}
        some = sorted(folders[str(folder)], key=lambda one: str(one["object_id"]))
        for i in item_rng(seed, str(folder), "order").permutation(len(some)):
            yield _item(some[i], facts, cfg)


def _needed(net: Fetcher | None) -> Fetcher:
    assert net is not None
    return net


def _item(known: dict[str, Any], facts: dict[str, Any], cfg: ImportConfig) -> Item:
    uid, name = str(known["objaverse_uid"]), f"dome_objaverse/{known['object_id']}.parquet"
    url = str(below(cfg.input, name)) if cfg.input else huggingface.url_of(REPO, name)
    extra = {"distance": known["camera_distance"], CAPTION: known["caption"] or ""}
    return Item(uid, cfg.source, url=url, extra=extra, **objaverse.rights_of(uid, facts.get(uid, {})))


def batch(item: Item) -> str:
    """Key of a batch: the object, since each is a file of its own."""
    return item.uid


def fetch_many(items: Sequence[Item], folder_of: Callable[[Item], Path], net: Fetcher) -> Iterator[Fetched]:
    """Fetch an object's file."""
    for item in items:
        address = huggingface.parse(item.url)
        assert address is not None
        try:
            path = folder_of(item) / FILE
            yield item, path if path.is_file() else huggingface.get(net, *address, path, Wanted(item.uid))
        except (Skip, Retry) as failure:
            yield item, failure


def load(item: Item, path: Path, cfg: ImportConfig) -> Posed:
    """Read a scene. Raises Skip: missing, no_images, bad_cameras (a distance or a view that is none), broken_image."""
    if not path.is_file():
        raise Skip("missing", str(path))
    try:
        found = {int(row["view_id"]): (row["image_png"], row.get("nd_png")) for row in tables.rows(path)}
    except (UserError, KeyError, TypeError, ValueError, OSError) as error:
        raise Skip("broken_image", f"{path.name}: {error}") from None
    if not found:
        raise Skip("no_images", f"{path.name} has no row")
    views = sorted(found)
    if views[0] < 0 or views[-1] >= VIEWS or not isinstance(item.extra["distance"], float):
        raise Skip("bad_cameras", f"views {views[0]} to {views[-1]} at distance {item.extra['distance']}")
    chosen = [views[i] for i in cameras.spread(len(views), cfg.scene.views)]
    pictures = [data if isinstance(data := found[view][0], bytes) else b"" for view in chosen]
    layer = functools.partial(_layer, [found[view][1] for view in chosen])
    fxfycxcy = [cameras.intrinsics(float(np.degrees(FOV)), hw) for hw in posed_views.sizes_of(pictures)]
    c2w = dome(np.array(chosen), item.extra["distance"])
    return Posed(pictures, c2w, np.array(fxfycxcy), meta={"views_found": len(views)}, layer=layer)


def _layer(files: Sequence[Any], name: str, index: int) -> np.ndarray:
    """Implement Posed.layer."""
    if not isinstance(files[index], bytes):
        raise Skip("layer_missing", f"{name}: no nd_png")
    shares = posed_views.numbers(files[index], "nd_png", 4) / 65535
    depth = posed_views.depths(np.where(shares[..., 3] < 1, MOST_DEPTH * shares[..., 3], np.inf))
    return depth if name == "depth" else posed_views.normals(2 * shares[..., 2::-1] - 1, np.isfinite(depth))


def dome(views: np.ndarray, distance: float) -> np.ndarray:
    """c2w (V, 4, 4) of views by their numbers (V,)."""
    azimuth, elevation = np.radians(30.0) * (views % RING), ELEVATIONS[views // RING]
    zero, flat = np.zeros(len(views)), np.cos(elevation)
    outwards = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], -1)
    right = np.stack([-np.sin(azimuth), np.cos(azimuth), zero], -1)
    down = np.cross(-outwards, right)
    return cameras.homogeneous(np.stack([right, down, -outwards, distance * outwards], -1))
