"""Page of all objects of a run, and what it asks for: columns to filter by, an object's facts and cameras, its pictures."""

from __future__ import annotations

import functools
import gzip
import json
import re
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import cameras, images
from pipeline.core.errors import UserError
from pipeline.core.signals import first_interrupt
from pipeline.dataset.opened import Object
from pipeline.poses.shots import unprojected
from pipeline.report import markup
from pipeline.report.tiles import described
from pipeline.storage.shards import CONVENTION, PNGS, layer_of, number_of
from pipeline.viewer.catalog import Catalog, moment_of, read_catalog
from pipeline.viewer.local_server import Answer, LocalServer, said

PORT = 8764  # of `view --serve`
READERS = 2  # threads that read shards: each keeps some open, which takes 6 MB for one of 500 objects
CLOUD = 40_000  # points of an object, at most
CLOUD_VIEWS = 24  # views that they are taken from, at most
THUMB_WIDTH, THUMBS = 128, 8192  # pixels of a picture in the gallery, and how many stay in memory
OBJECTS = 16  # that were looked at last, and stay in memory
HTML, JSON, JPEG, PNG = "text/html; charset=utf-8", "application/json", "image/jpeg", "image/png"
BYTES = "application/octet-stream"
KEPT = {"Cache-Control": "private, max-age=3600"}  # of what an address always gives: it names the catalog
PLACE = re.compile(
    r"/(\d{1,9})/(columns|object|thumb|view|layer|points)(?:/(\d{1,9}))?(?:/(\d{1,9}))?(?:/([a-z]{1,20}))?"
)
PARTS = {"columns": 0, "object": 1, "thumb": 1, "view": 2, "layer": 3, "points": 1}  # of an address, after its kind
ADDRESSES = (
    "there are /, and of catalog C: columns, object/N, thumb/N, points/N, view/N/VIEW, layer/N/VIEW/NAME below /C/"
)


class _Shown:
    """Catalog that a page was loaded with, and what is kept of it. number: in the addresses that the page asks for."""

    def __init__(self, catalog: Catalog, number: int) -> None:
        self.catalog, self.number = catalog, number
        self.thumb = functools.lru_cache(THUMBS)(functools.partial(_thumb, catalog))
        self.object = functools.lru_cache(OBJECTS)(functools.partial(_object, catalog))
        self.columns = functools.cache(lambda: gzip.compress(_packed(catalog.columns()), 1))

    def told(self, which: int) -> dict[str, Any]:
        """Facts and cameras of an object."""
        assert self.catalog.data is not None
        one = self.object(which)
        more = {"layers": list(one.layers), "points": _has_points(one), "again": self.catalog.again(one.uid)}
        return described(one, self.catalog.data.shard_of(which)) | more


class Gallery:
    """Answers of the page. A page shows the catalog that it was loaded with; loading it again looks for new shards.

    Raises UserError where there is nothing to show.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        # a shard is always read by the same thread, which keeps it open
        self._readers = [ThreadPoolExecutor(1, f"reader {number}") for number in range(READERS)]
        # by chance: browsers keep pictures of other runs that were shown at this port
        self._shown = self._ready(read_catalog(folder), secrets.randbelow(10**8))

    @property
    def number(self) -> int:
        """Number of the catalog that a page gets now."""
        return self._shown.number

    def close(self) -> None:
        """Read nothing any more."""
        for reader in self._readers:
            reader.shutdown(cancel_futures=True)

    def answer(self, path: str, query: str) -> Answer:
        """Answer to an address of the page. For any thread."""
        if path == "/" and not query:
            return self._page()
        found, shown = PLACE.fullmatch(path), self._shown
        if not found or query or 3 - found.groups()[2:].count(None) != PARTS[found[2]]:
            return said(404, ADDRESSES)
        if int(found[1]) != shown.number:
            return said(410, "the run has changed meanwhile: load the page again")
        which, view = (int(part or 0) for part in found.group(3, 4))
        if found[2] != "columns" and which >= shown.catalog.delivered:
            return said(404, f"there is no object {which}")
        answers: dict[str, Callable[[], Answer]] = {
            "columns": lambda: Answer(shown.columns(), BYTES, more={"Content-Encoding": "gzip"}),
            "object": lambda: Answer(_json(shown.told(which)), JSON, more=KEPT),
            "thumb": lambda: Answer(shown.thumb(which), JPEG, more=KEPT),
            "view": lambda: Answer(shown.object(which).jpegs[view], JPEG, more=KEPT),
            "layer": lambda: Answer(_layer(shown.object(which), view, found[5]), PNG, more=KEPT),
            "points": lambda: Answer(_points(shown.object(which)), BYTES, more=KEPT),
        }
        try:
            return self._reader(shown.catalog, which).submit(answers[found[2]]).result()
        except (CancelledError, RuntimeError):
            return said(503, "the program ends")
        except (IndexError, KeyError):
            return said(404, f"object {which} has no such view, layer or points")
        except (UserError, OSError, ValueError) as error:  # damaged, or deleted by a cycle since
            return said(500, f"object {which} cannot be read: {error}")

    def _ready(self, catalog: Catalog, number: int) -> _Shown:
        """Catalog to show, whose columns are made while the page is on its way."""
        shown = _Shown(catalog, number)
        self._reader(catalog, 0).submit(shown.columns)
        return shown

    def _reader(self, catalog: Catalog, which: int) -> ThreadPoolExecutor:
        shard = number_of(catalog.data.shard_of(which)) if catalog.data and which < len(catalog.data) else 0
        return self._readers[shard % READERS]

    def _page(self) -> Answer:
        with self._lock:
            try:
                if moment_of(self.folder) != self._shown.catalog.moment:
                    self._shown = self._ready(read_catalog(self.folder), self._shown.number + 1)
            except UserError as error:
                return said(500, str(error))
            shown = self._shown
        catalog = shown.catalog
        page = markup.render(
            "gallery.html",
            title=f"{self.folder.name} · lvsm-data",
            name=self.folder.name,
            place=str(self.folder),
            delivered=catalog.delivered,
            failed=catalog.failed,
            number=shown.number,
            width=catalog.data.width if catalog.data else 0,
            convention=CONVENTION,
        )
        return Answer(str(page).encode(errors="replace"), HTML)


def show(folder: Path, port: int) -> None:
    """Show the page of a run's folder at a port of this machine, 0 for one that is free, until Ctrl-C.

    Raises UserError: nothing to show there, a port that cannot be had.
    """
    gallery, ended = Gallery(folder.absolute()), threading.Event()
    try:
        with LocalServer(port, gallery.answer) as server, first_interrupt(ended.set):
            server.begin()
            print(f"open {server.url} in a browser on this machine; Ctrl-C ends it", flush=True)
            while not ended.wait(0.5):
                pass
            server.shutdown()
    finally:
        gallery.close()


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode(errors="replace")


def _packed(columns: dict[str, Any]) -> bytes:
    """Columns of a catalog for the page: length of the JSON (4 bytes), the JSON, and the values of each name in its `numbers` and
    `words`, in this order, as little-endian float32, NaN for none: browsers need not parse them.
    """
    numbers, words = columns["numbers"], columns["words"]
    told = columns | {"numbers": list(numbers), "words": {name: of["names"] for name, of in words.items()}}
    head = _json(told)
    head += b" " * (-len(head) % 4)
    with np.errstate(over="ignore"):  # beyond 3e38: inf
        values = [np.array(of, "<f4") for of in (*numbers.values(), *(of["of"] for of in words.values()))]
    return b"".join([len(head).to_bytes(4, "little"), head, *(of.tobytes() for of in values)])


def _object(catalog: Catalog, which: int) -> Object:
    assert catalog.data is not None
    return catalog.data[which]


def _thumb(catalog: Catalog, which: int) -> bytes:
    """First picture of an object as a JPEG of at most THUMB_WIDTH pixels."""
    data, small = catalog.data, catalog.small
    assert data is not None and small is not None
    first = small[data.uids[which]].jpegs[0]
    pixels = images.decode(first)
    if pixels.shape[1] <= THUMB_WIDTH:
        return first
    hw = max(1, round(THUMB_WIDTH * pixels.shape[0] / pixels.shape[1])), THUMB_WIDTH
    return images.encode_jpeg(images.shrink(pixels, hw), 85)


def _has_points(one: Object) -> bool:
    """True if depth says where the surfaces are, and these do not move from view to view."""
    return "depth" in one.layers and one.projection == "perspective" and not one.moves


def _points(one: Object) -> bytes:
    """Points of the surfaces: x, y, z of each as little-endian float32, then red, green, blue of each as bytes.

    Raises KeyError where there are none.
    """
    if not _has_points(one):
        raise KeyError("depth")
    views = cameras.spread(len(one.jpegs), CLOUD_VIEWS)
    depth = layer_of("depth", [one.layers["depth"][view] for view in views], one.hw)
    jpegs = [one.jpegs[view] for view in views]
    found = unprojected(one.uid, jpegs, depth, one.c2w[views], one.fxfycxcy[views], CLOUD)
    return found.xyz.astype("<f4").tobytes() + found.rgb.tobytes()


def _layer(one: Object, view: int, name: str) -> bytes:
    """Picture of a companion of a view: depth from white (near) to black, normals as colours, shares as grey."""
    (values,) = layer_of(name, [one.layers[name][view]], one.hw)
    if name in PNGS:
        return images.encode_png(values)
    if name == "normals":
        return images.encode_png(np.round(127.5 * (np.nan_to_num(values) + 1)).clip(0, 255).astype(np.uint8))
    there = np.isfinite(values)
    near, far = (float(values[there].min()), float(values[there].max())) if there.any() else (0.0, 1.0)
    grey = np.where(there, 1 - 0.8 * (np.where(there, values, near) - near) / max(far - near, 1e-9), 0)
    return images.encode_png(np.round(255 * grey).astype(np.uint8))
