"""Cap3D's renderings of Objaverse and Objaverse-XL (tiange/Cap3D): 20 views each of over a million objects, a zip per object.

RenderedImage_perobj_zips/compressed_imgs_perobj_NN.zip hold a zip UID.zip for each of thousands of objects, and that has
NNNNN.png and NNNNN.json of each view: cameras as G-Objaverse writes them (x, y, z, origin in a world with z up; x_fov, y_fov in
radians). On the Hub, only the directory of an outer zip and the inner zips that are asked for are read.

NNNNN_depth.png has 16 bits: depth along the axis, 65535 for `max_depth` of the JSON file, and for what is beyond.
"""

from __future__ import annotations

import functools
import io
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.config.views import ImportConfig
from pipeline.core import cameras
from pipeline.core.disk import replacing
from pipeline.core.errors import Skip, UserError
from pipeline.core.records import Fetched, Item, Posed, item_rng
from pipeline.download.fetch import Fetcher
from pipeline.formats import archives, bundles
from pipeline.poses import capture
from pipeline.sources import gobjaverse, objaverse, posed_views

SAYS = "Cap3D's renderings"
HOWTO = "--source cap3d (fetched object by object), or with --input FOLDER or compressed_imgs_perobj_NN.zip"
REPO = "tiange/Cap3D"
OUTER = "RenderedImage_perobj_zips/compressed_imgs_perobj_{:02d}.zip"
OUTERS = 53  # numbered from 0, of Objaverse; those of Objaverse-XL follow
FILE = re.compile(r"\d{5}\.(?:json|png)")
DEPTH = re.compile(r"\d{5}_depth\.png")
UID = re.compile(r"[0-9a-f]{32}")
MAX_INNER = 512_000_000  # bytes of an object's zip
BATCH = 64
root_of = posed_views.root_of


def remote(cfg: ImportConfig) -> bool:
    """True if files have to be fetched before a worker can read them."""
    return cfg.input is None


def items(cfg: ImportConfig, seed: int, net: Fetcher | None = None) -> Iterator[Item]:
    """One item per object. uid: the name of its zip or folder. UserError where there is none, or the Hub does not answer."""
    found = _remote(cfg, seed, net) if cfg.input is None else _local(cfg.input, cfg.source, seed)
    return posed_views.asked_for(found, cfg, str(cfg.input or REPO), HOWTO)


def _remote(cfg: ImportConfig, seed: int, net: Fetcher | None) -> Iterator[Item]:
    numbers = item_rng(seed, "cap3d", "order").permutation(OUTERS).tolist()
    for number, url, outer in posed_views.zips_on_the_hub(REPO, OUTER, numbers, net):
        members = _members(outer)
        for i in item_rng(seed, str(number), "order").permutation(len(members)).tolist():
            yield _item(members[i], cfg.source, url)


def _local(given: Path, source: str, seed: int) -> Iterator[Item]:
    zips = [given] if given.is_file() else sorted([*given.glob("*.zip"), *given.glob("*/*.zip")])
    for i in item_rng(seed, "cap3d", "order").permutation(len(zips)).tolist():
        if UID.fullmatch(zips[i].stem):
            yield Item(zips[i].stem, source, url=str(zips[i]), credit=_credit(zips[i].stem))
            continue
        try:
            with zipfile.ZipFile(zips[i]) as outer:
                members = _members(outer)
        except posed_views.BROKEN_ZIP as error:
            raise UserError(f"{zips[i]} cannot be read: {error}", "download it again") from None
        yield from (_item(member, source, str(zips[i])) for member in members)
    if given.is_dir():
        for folder in bundles.folders(given, lambda one: (one / "00000.json").is_file(), seed):
            uid = posed_views.uid_of(folder, given)
            yield Item(uid, source, url=str(folder), credit=_credit(uid))


def _item(member: str, source: str, url: str) -> Item:
    uid = PurePosixPath(member).stem
    return Item(uid, source, url=url, credit=_credit(uid), extra={"member": member})


def _credit(uid: str) -> dict[str, str]:
    return {"page": f"{objaverse.PAGE}{uid}"} if UID.fullmatch(uid) else {}


def _members(outer: zipfile.ZipFile) -> list[str]:
    """Names of the zips in a zip, one for each stem, sorted."""
    return sorted({PurePosixPath(name).stem: name for name in outer.namelist() if name.endswith(".zip")}.values())


def batch(item: Item) -> str:
    """Key of a batch: the outer zip, whose directory is read once for it."""
    return item.url


def fetch_many(items: Sequence[Item], folder_of: Callable[[Item], Path], net: Fetcher) -> Iterator[Fetched]:
    """Fetch the zips of objects out of one outer zip."""

    def extract(item: Item, outer: zipfile.ZipFile) -> Path:
        path = folder_of(item) / "views.zip"
        if not path.is_file():
            data = posed_views.member_of(outer, item.extra["member"], MAX_INNER)
            net.disk_budget.reserve(item.uid, len(data))
            with replacing(path) as part:
                part.write_bytes(data)
        return path

    return posed_views.out_of_zip(items, net, extract)


def load(item: Item, path: Path, cfg: ImportConfig) -> Posed:
    """Read a scene. Skip: no_images, no_cameras, count_mismatch, bad_cameras, broken_image, broken_archive, missing."""
    files = _files(item, path, cfg.scene.depth)
    views = posed_views.paired(sorted(filter(FILE.fullmatch, files)), ".json", f"no NNNNN.png in {item.uid}")
    chosen = [views[i] for i in cameras.spread(len(views), cfg.scene.views)]
    pictures, poses, fxfycxcy, most = [files[f"{view}.png"] for view in chosen], [], [], []
    for view, hw in zip(chosen, posed_views.sizes_of(pictures), strict=True):
        facts = capture.json_object(files[f"{view}.json"], f"{view}.json")
        poses.append(gobjaverse.c2w_of(facts, view))
        fxfycxcy.append(gobjaverse.fxfycxcy_of(facts, hw, view))
        most.append(capture.number(facts, "max_depth"))
    layer = functools.partial(_depth, files, chosen, most)
    meta, named = {"views_found": len(views)}, [f"{view}.png" for view in chosen]
    return Posed(pictures, np.stack(poses), np.array(fxfycxcy), meta=meta, layer=layer, names=named)


def _depth(
    files: dict[str, bytes], views: Sequence[str], most: Sequence[float | None], name: str, index: int
) -> np.ndarray:
    """Implement Posed.layer, of depth alone."""
    file = f"{views[index]}_depth.png"
    if name != "depth" or file not in files:
        raise Skip("layer_missing", f"{name}: no {file}")
    if not (scale := most[index]):
        raise Skip("layer_missing", f"depth: {views[index]}.json says no max_depth")
    shares = posed_views.numbers(files[file], file, 1) / 65535
    return posed_views.depths(np.where(shares < 1, scale * shares, np.inf))


def _files(item: Item, path: Path, depth: bool) -> dict[str, bytes]:
    """Read name -> content of the files that FILE names, and DEPTH if asked: of a folder, an object's zip, or one in a zip."""

    def wanted_name(name: str) -> bool:
        return bool(FILE.fullmatch(name) or (depth and DEPTH.fullmatch(name)))

    if path.is_dir():
        return {child.name: bundles.read_file(child) for child in sorted(path.iterdir()) if wanted_name(child.name)}
    if not path.is_file():
        raise Skip("missing", str(path))
    try:
        if item.extra.get("member") and path.name != "views.zip":
            with zipfile.ZipFile(path) as outer:
                inside: io.BytesIO | Path = io.BytesIO(posed_views.member_of(outer, item.extra["member"], MAX_INNER))
        else:
            inside = path
        with zipfile.ZipFile(inside) as archive:
            found = {PurePosixPath(info.filename).name: info for info in archive.infolist()}
            wanted = {name: info for name, info in found.items() if wanted_name(name)}
            if any(info.file_size > archives.MAX_MEMBER for info in wanted.values()) or len(wanted) > bundles.MAX_FILES:
                raise Skip("broken_archive", f"{item.uid}: files that are no pictures")
            return {name: archive.read(info) for name, info in wanted.items()}
    except posed_views.BROKEN_ZIP as error:
        raise Skip("broken_archive", f"{item.uid}: {error}") from None
