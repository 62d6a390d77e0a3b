"""Cap3D's renderings of Objaverse and Objaverse-XL (tiange/Cap3D): 20 views each of over a million objects, a zip per object.

RenderedImage_perobj_zips/compressed_imgs_perobj_NN.zip hold a zip UID.zip for each of thousands of objects, and that has
NNNNN.png and NNNNN.json of each view: cameras as G-Objaverse writes them (x, y, z, origin in a world with z up; x_fov, y_fov in
radians). On the Hub, only the directory of an outer zip and the inner zips that are asked for are read.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.config.views import ImportConfig
from pipeline.core import cameras
from pipeline.core.disk import replacing
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.core.records import Fetched, Item, Posed, item_rng
from pipeline.download import huggingface
from pipeline.download.fetch import Fetcher
from pipeline.download.ranges import NoRanges
from pipeline.formats import archives, bundles
from pipeline.poses import capture
from pipeline.sources import gobjaverse, objaverse, posed_views, selection

SAYS = "Cap3D's renderings"
HOWTO = "--source cap3d (fetched object by object), or with --input FOLDER or compressed_imgs_perobj_NN.zip"
REPO = "tiange/Cap3D"
OUTER = "RenderedImage_perobj_zips/compressed_imgs_perobj_{:02d}.zip"
OUTERS = 53  # numbered from 0, of Objaverse; those of Objaverse-XL follow
FILE = re.compile(r"\d{5}\.(?:json|png)")
UID = re.compile(r"[0-9a-f]{32}")
MAX_INNER = 512_000_000  # bytes of an object's zip
BATCH = 64
BUFFER = 1 << 20
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)
root_of = posed_views.root_of


def remote(cfg: ImportConfig) -> bool:
    """True if files have to be fetched before a worker can read them."""
    return cfg.input is None


def items(cfg: ImportConfig, seed: int, net: Fetcher | None = None) -> Iterator[Item]:
    """One item per object. uid: the name of its zip or folder. UserError where there is none, or the Hub does not answer."""
    found = _remote(cfg, seed, net) if cfg.input is None else _local(cfg.input, cfg.source, seed)
    names = selection.names(cfg)
    wanted = (item for item in found if names is None or item.uid in names)
    return bundles.never_empty(wanted, f"{cfg.input or REPO} holds no object that was asked for", HOWTO)


def _remote(cfg: ImportConfig, seed: int, net: Fetcher | None) -> Iterator[Item]:
    assert net is not None
    for number in item_rng(seed, "cap3d", "order").permutation(OUTERS).tolist():
        url = huggingface.url_of(REPO, OUTER.format(number))
        try:
            with _outer(url, net) as outer:
                members = _members(outer)
        except Skip as error:
            if error.reason == "missing":  # not all numbers need be there
                continue
            raise UserError(f"{url} cannot be read: {error}", "give a copy by --input") from None
        except (Retry, NoRanges, *BROKEN) as error:
            raise UserError(f"{url} cannot be read: {error}", "the same command goes on later") from None
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
        except BROKEN as error:
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


def _outer(url: str, net: Fetcher) -> zipfile.ZipFile:
    """Open a zip of the Hub, of which only what is read is fetched. Raises Skip, Retry, NoRanges, BadZipFile."""
    address = huggingface.parse(url)
    assert address is not None
    return zipfile.ZipFile(io.BufferedReader(huggingface.opened(net, *address), BUFFER))


def batch(item: Item) -> str:
    """Key of a batch: the outer zip, whose directory is read once for it."""
    return item.url


def fetch_many(items: Sequence[Item], folder_of: Callable[[Item], Path], net: Fetcher) -> Iterator[Fetched]:
    """Fetch the zips of objects out of one outer zip."""
    try:
        outer = _outer(items[0].url, net)
    except (Skip, Retry) as failure:
        yield from ((item, failure) for item in items)
        return
    except (NoRanges, *BROKEN) as error:
        yield from ((item, Retry("connection", str(error))) for item in items)
        return
    with outer:
        for item in items:
            path = folder_of(item) / "views.zip"
            try:
                if not path.is_file():
                    data = _inner(outer, item.extra["member"])
                    net.disk_budget.reserve(item.uid, len(data))
                    with replacing(path) as part:
                        part.write_bytes(data)
                yield item, path
            except (Skip, Retry) as failure:
                yield item, failure


def _inner(outer: zipfile.ZipFile, member: str) -> bytes:
    """Read an object's zip out of another. Raises Skip: missing, too_large, broken_archive."""
    try:
        info = outer.getinfo(member)
        if info.file_size > MAX_INNER:
            raise Skip("too_large", f"{member} has {info.file_size} bytes")
        return outer.read(info)
    except KeyError:
        raise Skip("missing", member) from None
    except BROKEN as error:
        raise Skip("broken_archive", f"{member}: {error}") from None


def load(item: Item, path: Path, cfg: ImportConfig) -> Posed:
    """Read a scene. Skip: no_images, no_cameras, count_mismatch, bad_cameras, broken_image, broken_archive, missing."""
    files = _files(item, path)
    views = posed_views.paired(sorted(files), ".json", f"no NNNNN.png in {item.uid}")
    chosen = [views[i] for i in cameras.spread(len(views), cfg.scene.views)]
    pictures, poses, fxfycxcy = [], [], []
    for view in chosen:
        data = files[f"{view}.png"]
        facts = capture.json_object(files[f"{view}.json"], f"{view}.json")
        pictures.append(data)
        poses.append(gobjaverse.c2w_of(facts, view))
        fxfycxcy.append(gobjaverse.fxfycxcy_of(facts, posed_views.hw_of(data, f"{view}.png"), view))
    return Posed(pictures, np.stack(poses), np.array(fxfycxcy), meta={"views_found": len(views)})


def _files(item: Item, path: Path) -> dict[str, bytes]:
    """Read name -> content of the files that FILE names, of a folder, an object's zip, or one in another zip."""
    if path.is_dir():
        return {child.name: bundles.read_file(child) for child in sorted(path.iterdir()) if FILE.fullmatch(child.name)}
    if not path.is_file():
        raise Skip("missing", str(path))
    try:
        if item.extra.get("member") and path.name != "views.zip":
            with zipfile.ZipFile(path) as outer:
                inside: io.BytesIO | Path = io.BytesIO(_inner(outer, item.extra["member"]))
        else:
            inside = path
        with zipfile.ZipFile(inside) as archive:
            found = {PurePosixPath(info.filename).name: info for info in archive.infolist()}
            wanted = {name: info for name, info in found.items() if FILE.fullmatch(name)}
            if any(info.file_size > archives.MAX_MEMBER for info in wanted.values()) or len(wanted) > bundles.MAX_FILES:
                raise Skip("broken_archive", f"{item.uid}: files that are no pictures")
            return {name: archive.read(info) for name, info in wanted.items()}
    except BROKEN as error:
        raise Skip("broken_archive", f"{item.uid}: {error}") from None
