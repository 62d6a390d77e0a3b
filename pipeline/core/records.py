"""Records that pass between packages: Item, what a source loads (Posed, Clip), Scene, Packed, Outcome."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from pipeline.core.cameras import Lens
from pipeline.core.errors import Retry, Skip

# Of a scene's facts, those that the ledger keeps too.
LEDGER_FACTS = (
    *("coverage", "visible", "black", "contrast"),
    *("cameras_fit", "views_missing", "left_out", "left_out_views", "views_wrong"),
    *("textured", "has_vertex_colors", "animated", "missing_textures", "missing_materials", "missing_libraries"),
    *("mended", "read_by", "motion"),
)
HEARTBEAT = "heartbeat"  # a file in a worker's scratch folder: the number of views rendered so far, and the uid
# Of a scene's views, those that must be left after the ones without a picture or with a wrong camera are left out.
LEAST_SHARE = 0.5
HELD_OUT = ("val", "test")  # roles of views that never train


@dataclass(frozen=True)
class Item:
    """One manifest line: what to render, never its bytes.

    uid: unique within a source. url: where the payload is (a path for local files, empty for embedded sources).
    license: a name of pipeline/core/licenses.py or "unknown". sha256: of the payload, lower-case hex, or "" when not known.
    credit: whom to name for the object: title, author and page, each where known. extra: facts for the source itself alone.
    """

    uid: str
    source: str
    url: str = ""
    license: str = "unknown"
    sha256: str = ""
    credit: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def instants(times: Iterable[float | None]) -> int:
    """Number of different times among those that are known."""
    return len(set(times) - {None})


@dataclass(frozen=True)
class Posed:
    """Views that were rendered or photographed elsewhere, with their cameras: loaded by a source of kind "posed".

    images: V encoded files (PNG, JPEG, WebP, TIFF, AVIF), with or without alpha (straight). c2w: (V, 4, 4) as in Scene.
    fxfycxcy: (V, 4) pixels of the images as they are encoded; pixel centres at +0.5. lenses: V of them, or () for pinholes.
    roles: V of them ("train", "val", "test"), or () where the set has no split of its views.
    names: V of the pictures, as the set says them, for messages and meta, or (). meta: facts (JSON-able).
    times: V of them in the set's unit, None where it says none, or () where it has none at all.
    layer: (name, index of an image) -> what the set says of its pixels beside colour, as large as the image: "depth" (H, W) along
    the camera's axis in units of the world, infinite where nothing is; "normals" (H, W, 3) of length 1 in axes of the world, 0
    where nothing is; "albedo" (H, W, 3) sRGB bytes. Raises Skip: layer_missing, broken_image. None where the set says nothing.
    """

    images: list[bytes]
    c2w: np.ndarray
    fxfycxcy: np.ndarray
    lenses: Sequence[Lens] = ()
    roles: Sequence[str] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    layer: Callable[[str, int], np.ndarray] | None = None
    names: Sequence[str] = ()
    times: Sequence[float | None] = ()

    @property
    def moves(self) -> bool:
        """True if views are of different times."""
        return instants(self.times) > 1

    def name(self, view: int) -> str:
        """Name of a view for messages."""
        return self.names[view] if self.names else f"view {view}"

    def of(self, view: int) -> Callable[[str], np.ndarray] | None:
        """Layers of a view by name, None where the set says nothing."""
        whole = self.layer
        return None if whole is None else lambda name: whole(name, view)

    def part(self, views: Sequence[int]) -> Posed:
        """Take these of the views alone."""
        some, whole = list(views), self.layer
        layer = None if whole is None else lambda name, index: whole(name, some[index])
        lenses = [self.lenses[view] for view in some] if self.lenses else ()
        roles, names = ([of[view] for view in some] if of else () for of in (self.roles, self.names))
        times = [self.times[view] for view in some] if self.times else ()
        pictures = [self.images[view] for view in some]
        return Posed(pictures, self.c2w[some], self.fxfycxcy[some], lenses, roles, self.meta, layer, names, times)


@dataclass(frozen=True)
class Clip:
    """A stretch of a video, and where its camera was: loaded by a source of kind "video".

    path: a cut (see pipeline/video/cut.py).
    frame: (V,) which entries of the camera file these are, counted from 0. times_us: (V,) when
    they are shown, microseconds from the start of the video. c2w: (V, 4, 4) as in Scene. shares: (V, 4) fx fy cx cy as shares of
    the frame's width and height, with its corners at 0 and 1. meta: facts (JSON-able).
    """

    path: Path
    frame: np.ndarray
    times_us: np.ndarray
    c2w: np.ndarray
    shares: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Views:
    """The V images of a scene at one resolution, and the intrinsics that belong to that resolution.

    jpegs: V files. intrinsics: (V, 4) float32, fxfycxcy of pinholes or sxsycxcy of orthographic cameras (core/cameras.py), in
    pixels; the centre of pixel (0, 0) is (0.5, 0.5). hw: (height, width).
    layers: optional lossless companions, each V byte strings (see docs/shard_format.md).
    """

    jpegs: list[bytes]
    intrinsics: np.ndarray
    hw: tuple[int, int]
    layers: dict[str, list[bytes]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """V posed views of one static scene, at one or several resolutions.

    c2w: (V, 4, 4) float32 camera-to-world, OpenCV axes (+x right, +y down, +z forward), world z up.
    by_width: image width in pixels -> Views. meta: facts about the object (JSON-able), the same for all its views.
    numbers: name -> (V,) int64, further facts about each view (see docs/shard_format.md). roles, times: as in Posed.
    """

    item: Item
    c2w: np.ndarray
    by_width: dict[int, Views]
    meta: dict[str, Any]
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    roles: Sequence[str] = ()
    times: Sequence[float | None] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """Facts that the ledger keeps, see LEDGER_FACTS."""
        return ledger_facts(self.meta)

    @property
    def view_count(self) -> int:
        return len(self.c2w)

    @property
    def jpeg_bytes(self) -> int:
        return sum(len(jpeg) for views in self.by_width.values() for jpeg in views.jpegs)


@dataclass(frozen=True)
class Packed:
    """A scene ready for the journal, and what the driver needs to know of it: workers pack, so that the driver only writes.

    record: an Arrow message (pipeline/storage/writer.py).
    group: key of the items that train and val must not split. widest_bytes: of the JPEGs at the
    largest resolution; jpeg_bytes: at all resolutions. meta: facts for the driver that no shard stores. facts: see LEDGER_FACTS.
    """

    item: Item
    record: bytes
    group: str
    view_count: int
    jpeg_bytes: int
    widest_bytes: int
    meta: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Result of one item: a scene, or the reason why there is none. timings: stage -> seconds.

    passing: the reason may be due to this machine; the item may succeed on another.
    """

    item: Item
    scene: Scene | Packed | None = None
    reason: str = ""
    detail: str = ""
    tries: int = 1
    worker: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    passing: bool = False


Fetched = tuple[Item, Path | Skip | Retry]  # item, and its file's path or the reason why the file cannot be had


def ledger_facts(meta: dict[str, Any]) -> dict[str, Any]:
    """Facts of a scene that the ledger keeps, see LEDGER_FACTS."""
    return {name: meta[name] for name in LEDGER_FACTS if name in meta}


class _Key(np.random.bit_generator.ISeedSequence):
    """Key of a Philox stream, handed over as its seed: `Philox(key=...)` asks the system for randomness first, and drops it."""

    def __init__(self, key: bytes) -> None:
        self.words = np.frombuffer(key, "<u8")

    def generate_state(self, n_words: int, dtype: object = np.uint32) -> np.ndarray:
        """The key, whatever is asked for."""
        return self.words


def item_rng(seed: int, uid: str, purpose: str) -> np.random.Generator:
    """Random stream of one item: depends on (seed, uid, purpose) alone, not on order, worker or retries."""
    digest = hashlib.blake2b(f"{seed}\0{uid}\0{purpose}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(_Key(digest)))  # type: ignore[arg-type]


@contextlib.contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Set timings[stage] to the seconds that the block took, unless the block raises."""
    start = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - start


YOUTUBE = re.compile(r"(?:.*\.)?(?:youtube\.com|youtube-nocookie\.com|youtu\.be)")
YOUTUBE_ID = re.compile(r"[0-9A-Za-z_-]{11}")


def video_of(url: str) -> str:
    """Name of a video, however its YouTube address is written: the YouTube id, else 16 hex digits of a hash of `url`."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        host = ""
    if YOUTUBE.fullmatch(host):
        asked = parse_qs(parts.query).get("v", [""])[0] or parts.path.rstrip("/").rsplit("/", 1)[-1]
        if YOUTUBE_ID.fullmatch(asked):
            return asked
    return hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
