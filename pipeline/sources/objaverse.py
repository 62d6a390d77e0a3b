"""Objaverse 1.0 (Deitke et al., arXiv 2212.08051): 800,000 GLB files of Sketchfab on the Hugging Face Hub.

Lists lie where the objaverse package (0.1.7) keeps them, in its layout: CACHE/hf-objaverse-v1/object-paths.json.gz,
metadata/000-NNN.json.gz (one per folder of files), lvis-annotations.json.gz. The package reads those that name all objects.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import objaverse

from pipeline import sources
from pipeline.config.shared import Listing
from pipeline.core import licenses
from pipeline.core.errors import UserError
from pipeline.core.records import Item, item_rng
from pipeline.download import huggingface, route
from pipeline.download.fetch import Fetcher

SAYS = "Objaverse 1.0 (Hugging Face)"
HOWTO = "--source objaverse"
PAGE = "https://sketchfab.com/3d-models/"  # how Objaverse-XL identifies the same objects
batch, fetch_many, root_of = route.batch, route.fetch_many, route.root_of


def items(cfg: Listing, seed: int, net: Fetcher) -> Iterator[Item]:
    """List objects folder by folder, folders and objects shuffled by the seed: a run of a few thousand reads one or two lists.

    Raises UserError where a list cannot be had, for an unknown --lvis category, and where nothing is left to choose from.
    """
    paths = object_paths(net, cfg.cache)
    uids = set(paths)
    if cfg.lvis:
        uids &= _of_categories(net, cfg)
    if (names := sources.asked_for(cfg)) is not None:
        uids = {uid for uid in uids if uid in names or f"{PAGE}{uid}" in names}
    if not uids:
        raise UserError(
            "no object of Objaverse is among those asked for", "--uids, --lvis and --scores narrow it together"
        )
    folders: dict[str, list[str]] = defaultdict(list)
    for uid in uids:
        folders[paths[uid].split("/")[1]].append(uid)
    for folder in item_rng(seed, "objaverse", "order").permutation(sorted(folders)):
        facts = metadata(net, cfg.cache, str(folder))
        for uid in item_rng(seed, str(folder), "order").permutation(sorted(folders[folder])):
            yield item_of(str(uid), paths[uid], facts.get(str(uid), {}))


def item_of(uid: str, path: str, facts: dict[str, Any], source: str = "objaverse", **more: Any) -> Item:
    """Make an Item from an object's path in the repository and its Sketchfab annotations. more: further fields of the Item."""
    url, extra = huggingface.url_of(route.OBJAVERSE, path), {"id": f"{PAGE}{uid}"}
    return Item(uid, source, **({"url": url, "extra": extra} | rights_of(uid, facts) | more))


def rights_of(uid: str, facts: dict[str, Any]) -> dict[str, Any]:
    """License and credit of an object, as fields of an Item, from its Sketchfab annotations."""
    user = facts.get("user") or {}
    credit = {
        "title": facts.get("name") or "",
        "author": user.get("displayName") or user.get("username") or "",
        "page": facts.get("viewerUrl") or f"{PAGE}{uid}",
    }
    named = {name: value for name, value in credit.items() if value}
    return {"license": licenses.of_sketchfab(facts.get("license")), "credit": named}


def metadata(net: Fetcher, cache: Path, folder: str) -> dict[str, Any]:
    """Map uid -> Sketchfab annotations, for the objects of one folder (000-NNN)."""
    with gzip.open(_list(net, cache, f"metadata/{folder}.json.gz"), "rt", encoding="utf-8") as stream:
        return dict(json.load(stream))


def object_paths(net: Fetcher, cache: Path) -> dict[str, str]:
    """Map uid -> path in the repository, glbs/000-NNN/<uid>.glb."""
    _list(net, cache, "object-paths.json.gz")
    return dict(_package(cache)._load_object_paths())


def _package(cache: Path) -> ModuleType:
    """The objaverse package, looking into this cache. It finds there what we have fetched, and fetches nothing itself."""
    objaverse.BASE_PATH, objaverse._VERSIONED_PATH = str(cache), str(cache / route.OBJAVERSE_FOLDER)
    return objaverse


def _of_categories(net: Fetcher, cfg: Listing) -> set[str]:
    _list(net, cfg.cache, "lvis-annotations.json.gz")
    categories = _package(cfg.cache).load_lvis_annotations()
    for name in cfg.lvis:
        if name not in categories:
            near = [known for known in sorted(categories) if name.lower() in known.lower()][:5]
            hint = f"near it: {', '.join(near)}" if near else "the names are those of LVIS, for example chair, mug"
            raise UserError(f"--lvis {name} is no category of Objaverse's {len(categories)}", hint)
    return {uid for name in cfg.lvis for uid in categories[name]}


def _list(net: Fetcher, cache: Path, path: str) -> Path:
    """File of a list, fetched if it is not there. Raises UserError as `huggingface.list_file`."""
    return huggingface.list_file(net, route.OBJAVERSE, path, cache / route.OBJAVERSE_FOLDER)
