"""Index of the objects and cameras in shards, and their images: decoded once into memory, or from disk at each use.

The index holds in memory where each object's JPEGs lie, and all cameras (96 bytes a view), so that a sample's views are chosen
without file access, and an object's JPEGs need a single read. Parsing the shard's footer instead would take 50 ms where objects
are small and many, a hundred times what decoding eight views takes.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.progress import track

from lvsm_train.data import parquet_pages
from lvsm_train.data.kept import read_kept
from lvsm_train.data.shard_index import HINT, ShardIndex, reading, unreadable
from pipeline.core import cameras, images
from pipeline.core.errors import UserError
from pipeline.core.records import video_of
from pipeline.dataset.copies import at_hand
from pipeline.storage.shards import find_shards, image_sha

try:  # libjpeg-turbo with little around it: two thirds of OpenCV's time for a small picture, the same bits
    import simplejpeg
except ImportError:  # machines that have torch, pyarrow and OpenCV alone
    simplejpeg = None

AS_STORED = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
END_OF_IMAGE = b"\xff\xd9"
OPEN_FILES = 256  # kept open; further ones are opened for each read
FOOTERS = 16  # that are kept parsed: of many small objects one takes megabytes
Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Index:
    """N objects of some shards, with M views in all. Per object:

    uids: (N,). path: (N,) number of its file among the P `paths`, each of which shows "clips", "objects" or "" (`subjects`) and
    has some layers (`layers`).
    group: (N,) its row group there. chunk: (N, 2) offset and length of its JPEGs' column chunk; length 0 if only pyarrow can
    read that. first: (N + 1,) its first view in the arrays below. val: (N,) True if for validation. stored_hw: (N, 2) size of
    its stored images. Per view: c2w: (M, 4, 4), fxfycxcy: (M, 4) for images of size hw, float32. frame: (M,) its frame in the
    clip, else its number within the object. time: (M,) float32, of scenes that move from 0 to 1.
    trains: (M,) False for views that their set keeps for validation or tests. sha: (M,)
    uint64 checksum of its JPEG, 0 where there is none; (0,) if they are not to be compared. licenses: number of objects per
    license, most frequent first. places: (M, 2) start and end of its JPEG in the chunk, 0 until one of its object is read.
    """

    uids: list[str]
    paths: list[Path]
    subjects: list[str]
    layers: list[list[str]]
    path: np.ndarray
    group: np.ndarray
    chunk: np.ndarray
    first: np.ndarray
    val: np.ndarray
    stored_hw: np.ndarray
    c2w: np.ndarray
    fxfycxcy: np.ndarray
    frame: np.ndarray
    time: np.ndarray
    places: np.ndarray
    trains: np.ndarray
    sha: np.ndarray
    hw: tuple[int, int]
    licenses: dict[str, int]

    def views(self, number: int) -> int:
        """Number of views of an object."""
        return int(self.first[number + 1] - self.first[number])

    def of(self, number: int) -> slice:
        """Slice of an object's views in c2w, fxfycxcy and frame."""
        return slice(int(self.first[number]), int(self.first[number + 1]))

    def moves(self, number: int) -> bool:
        """True if an object's views are of different times."""
        return bool(self.time[self.of(number)].any())

    def videos(self) -> list[str]:
        """Name of each object's video, or its uid if it is no clip (N,): training and validation must not share one."""
        names = list(self.uids)
        for which in [number for number, subject in enumerate(self.subjects) if subject == "clips"]:
            path = self.paths[which]
            numbers = np.flatnonzero(self.path == which)
            with reading(path), pq.ParquetFile(path) as file:
                for number in numbers:
                    meta = file.read_row_group(int(self.group[number]), ["meta"])["meta"][0].as_py()
                    video = json.loads(meta).get("video")
                    names[number] = video_of(video) if video else names[number]
        return names

    def packed(self, number: int, files: Files) -> tuple[bytes | bytearray, np.ndarray]:
        """JPEGs of an object's views among some bytes, until this thread's next reading, and start and end of each (V, 2).

        Raises UserError if they cannot be read.
        """
        path, places = self.paths[self.path[number]], self.places[self.of(number)]
        offset, length = self.chunk[number].tolist()
        if length:
            data, read = files.read(path, length, offset)
            if read == length and places[-1, 1]:  # found before
                return data, places
            with contextlib.suppress(ValueError):
                found = np.array(parquet_pages.byte_strings(memoryview(data)[:read], len(places)))
                places[:-1], places[-1] = found[:-1], found[-1]  # the last one last: other threads look at it
                return data, places
        with reading(path), pq.ParquetFile(path) as file:
            table = file.read_row_group(int(self.group[number]), ["image.bytes"], use_threads=False)
            jpegs = pc.struct_field(table["image"], "bytes").to_pylist()
            ends = np.cumsum([len(jpeg) for jpeg in jpegs])
            return b"".join(jpegs), np.stack([np.append(0, ends[:-1]), ends], -1)

    def decode(
        self,
        number: int,
        views: Sequence[int],
        packed: tuple[bytes | bytearray, np.ndarray],
        planes: Iterable[np.ndarray],
    ) -> None:
        """Decode some views of an object, each into planes (3, H, W) uint8, bit for bit like PIL. packed: see there.

        Raises UserError if one is broken or of another size.
        """
        data, places = packed
        stored_hw = tuple(self.stored_hw[number].tolist())
        shape, smaller, compared = (*stored_hw, 3), stored_hw != self.hw, len(self.sha) > 0
        within, pixels = memoryview(data), np.empty(shape, np.uint8)
        for view, (start, end), into in zip(views, places.take(views, 0).tolist(), planes, strict=True):
            sha = int(self.sha[self.first[number] + view]) if compared else 0
            if sha and image_sha(within[start:end]) != sha:
                raise self._broken(
                    number, f"the bytes of view {view} of {self.uids[number]} are not those that were written"
                )
            whole = data.endswith(END_OF_IMAGE, start, end)  # a truncated image would be filled with grey
            rgb = _rgb(within[start:end], pixels) if whole else None
            if rgb is None or rgb.shape != shape:
                size = f"{stored_hw[1]}x{stored_hw[0]}"
                raise self._broken(number, f"view {view} of {self.uids[number]} is no whole JPEG of {size} pixels")
            rgb = images.shrink(rgb, self.hw) if smaller else rgb
            cv2.split(rgb, into)  # type: ignore[call-overload]  # a sequence of planes; 5 times as fast as NumPy's transpose

    def _broken(self, number: int, said: str) -> UserError:
        return UserError(f"{self.paths[self.path[number]]}: {said}", HINT)


def _rgb(jpeg: memoryview, memory: np.ndarray) -> np.ndarray | None:
    """Pixels (H, W, 3) of a JPEG as they are stored, in `memory` where that helps; None if it is broken or larger than that."""
    if simplejpeg is None:
        return cv2.imdecode(np.frombuffer(jpeg, np.uint8), AS_STORED)
    with contextlib.suppress(ValueError):
        return simplejpeg.decode_jpeg(jpeg, "RGB", buffer=memory, strict=False)
    return None


class Files:
    """Shard files that are kept open, for reads from any thread. footer: parses that of a file."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._own = threading.local()
        self.footer: Callable[[Path], pq.FileMetaData] = functools.lru_cache(FOOTERS)(pq.read_metadata)

    def read(self, path: Path, length: int, offset: int) -> tuple[bytearray, int]:
        """Read `length` bytes at `offset`, fewer at the end of the file: memory that begins with them, and how many they are.

        A thread has one such memory, which its next reading fills again: new memory for each would push all else out of the
        processor's cache, which takes as long as decoding a small picture. Raises UserError.
        """
        block: bytearray = getattr(self._own, "block", bytearray())
        if len(block) < length:
            block = self._own.block = bytearray(length)
        part = [memoryview(block)[:length]]
        try:
            with self._lock:
                descriptor = self._open.get(path)
                if descriptor is None and len(self._open) < OPEN_FILES:
                    descriptor = self._open[path] = os.open(path, os.O_RDONLY)
            if descriptor is not None:
                return block, os.preadv(descriptor, part, offset)
            with path.open("rb", buffering=0) as file:
                return block, os.preadv(file.fileno(), part, offset)
        except OSError as error:
            raise unreadable(path, error) from None

    def forget(self, path: Path) -> None:
        """Close a file that nobody reads any more, so that the disk space of a deleted one becomes free."""
        with self._lock:
            descriptor = self._open.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Close all files. No read may be under way."""
        while self._open:
            os.close(self._open.popitem()[1])


# ---- reading the index


def read_index(
    folders: Sequence[Path], res: int | None, workers: int, split: str = "", check_images: bool = False
) -> Index:
    """Index of run folders, or folders of one resolution, for images `res` pixels wide.

    res: None is the largest width that all folders can give. Of each folder the smallest sufficient width is read. split: train
    or val for shards of that split alone. check_images: with the checksums of pictures, for those who decode. Folders at a
    network address are copied first. Raises UserError: no shards, a larger width than stored, broken files, images of different
    shapes, an object in both training and validation shards.
    """
    if not folders:
        raise UserError("no data to train on", "--data RUN, a folder that lvsm-data made")
    here = [at_hand(Path(one), shards=None, least=res) for one in folders]
    stored = [{width: paths for width, paths in find_shards(one).items() if paths} for one in here]
    width = res or min(max(by_width) for by_width in stored)
    paths: list[Path] = []
    for folder, by_width in zip(folders, stored, strict=True):
        enough = [one for one in by_width if one >= width]
        if not enough:
            raise UserError(f"{folder} has pictures of {max(by_width)} pixels at most, --res asks for {width}")
        paths += [path for path in by_width[min(enough)] if path.stem.startswith(split)]
    files = list(_in_threads(read_kept, paths, workers, "reading cameras" if len(paths) > 16 else ""))
    return merge(paths, files, width, check_images)


def merge(paths: Sequence[Path], files: Sequence[ShardIndex], width: int, check_images: bool = False) -> Index:
    """Index of some shard files, for images of that width. Raises UserError like `read_index`."""
    uids = [uid for file in files for uid in file.uids]
    path = np.repeat(np.arange(len(files)), [len(file.uids) for file in files])
    val = np.array([one.stem.startswith("val-") for one in paths])[path]
    _check_unique(uids, val)
    views, chunk, c2w, fxfycxcy, hw, frame, time, trains, sha = (
        np.concatenate([getattr(file, name) for file in files])
        for name in ("views", "chunk", "c2w", "fxfycxcy", "hw", "frame", "time", "trains", "sha")
    )
    first = np.concatenate([[0], np.cumsum(views)])
    heights = np.round(hw[:, 0] * width / hw[:, 1]).astype(int)
    for odd in np.flatnonzero(heights != heights[0])[:1]:
        number = int(np.searchsorted(first, odd, side="right")) - 1
        raise UserError(
            f"{paths[path[number]]}: pictures of {uids[number]} become {width}x{heights[odd]} pixels, those of "
            f"{uids[0]} {width}x{heights[0]}",
            "a batch needs one shape; lvsm-data clip --height-crop gives clips one",
        )
    new_hw = (int(heights[0]), width)
    alike = bool((hw == hw[0]).all())  # to sort the sizes of all views takes longer than all the rest
    for size in hw[:1] if alike else np.unique(hw, axis=0):
        same = slice(None) if alike else (hw == size).all(1)
        fxfycxcy[same] = cameras.resize_intrinsics(fxfycxcy[same].astype(np.float64), tuple(size.tolist()), new_hw)
    group = np.concatenate([np.arange(len(file.uids)) for file in files])
    subjects = [file.subject for file in files]
    licenses = Counter[str]()
    for file in files:
        licenses.update(file.licenses)
    return Index(
        uids=uids,
        paths=list(paths),
        subjects=subjects,
        layers=[file.layers for file in files],
        path=path,
        group=group,
        chunk=chunk,
        first=first,
        val=val,
        stored_hw=hw[first[:-1]],
        c2w=c2w,
        fxfycxcy=fxfycxcy,
        frame=frame,
        time=time,
        places=np.zeros((len(c2w), 2), int),
        trains=trains,
        sha=sha if check_images else sha[:0],
        hw=new_hw,
        licenses=dict(licenses.most_common()),
    )


def _check_unique(uids: list[str], val: np.ndarray) -> None:
    if both := set(itertools.compress(uids, val)) & set(itertools.compress(uids, ~val)):
        raise UserError(
            f"{len(both)} objects are in train-*.parquet and in val-*.parquet, for example {min(both)}",
            "runs to be trained on together need the same --val-percent",
        )


# ---- everything in memory


def decode_all(index: Index, device: torch.device, workers: int, quiet: bool = True) -> torch.Tensor:
    """Images of all views, (M, 3, H, W) uint8 on a device. Raises UserError if one is broken."""
    pixels = torch.empty((len(index.c2w), 3, *index.hw), dtype=torch.uint8, device=device)
    files = Files()

    def read(number: int, out: np.ndarray) -> None:
        index.decode(number, range(len(out)), index.packed(number, files), out)

    try:
        fill(pixels, index, range(len(index.uids)), read, workers, "" if quiet else f"decoding {len(pixels)} views")
    finally:
        files.close()
    return pixels


def fill(
    kept: torch.Tensor,
    index: Index,
    numbers: Sequence[int],
    read: Callable[[int, np.ndarray], None],
    workers: int,
    say: str,
) -> None:
    """Fill `kept` (M, ...), a row per view on any device, with what `read` writes of each of these objects, in threads.

    read: gets an object's number and the array (V, ...) to fill. say: label of a progress bar, where it takes a while.
    """

    def one(number: int) -> None:
        own = kept[index.of(number)]
        host = own if own.device.type == "cpu" else torch.empty(own.shape, dtype=own.dtype)
        read(number, host.numpy())
        if host is not own:
            own.copy_(host)

    for _ in _in_threads(one, numbers, workers, say if kept.nbytes > 1e8 else ""):
        pass


def memory_free() -> int:
    """Bytes of host memory that this process may still take, in the system or its container."""
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        caches = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(caches.get("inactive_file", 0)))
    return free


def _in_threads(work: Callable[[Given], Made], items: Sequence[Given], workers: int, say: str) -> Iterator[Made]:
    """Yield work(item) for all items, in order; the first error ends it. say: label of a progress bar, "" for none."""
    pool = ThreadPoolExecutor(workers)
    try:
        results = pool.map(work, items)
        console = Console(stderr=True)
        shown = say and console.is_terminal  # elsewhere a transient bar would leave an empty line
        yield from track(results, say, len(items), console=console, transient=True) if shown else results
    finally:
        pool.shutdown(cancel_futures=True)
