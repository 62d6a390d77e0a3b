"""Index of the objects and cameras in shards, and their images: decoded once into memory, or from disk at each use.

The index holds in memory where each object's JPEGs lie, and all cameras (80 bytes a view), so that a sample's views are chosen
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.progress import track

from lvsm_train.data import parquet_pages
from pipeline.core import cameras, images
from pipeline.core.errors import UserError
from pipeline.core.records import video_of
from pipeline.storage.copies import at_hand
from pipeline.storage.shards import (
    IMAGE_SHA,
    INTRINSICS,
    METADATA_KEY,
    find_shards,
    image_sha,
    open_shard,
    subject_of,
    uid_of,
)

END_OF_IMAGE = b"\xff\xd9"
OPEN_FILES = 256  # kept open; further ones are opened for each read
Given = TypeVar("Given")
Made = TypeVar("Made")
HINT = "`lvsm-data verify` says what is broken; a shard that is moved away is left out"


@dataclass(frozen=True)
class Index:
    """N objects of some shards, with M views in all. Per object:

    uids: (N,). path: (N,) number of its file among the P `paths`, each of which shows "clips", "objects" or "" (`subjects`).
    group: (N,) its row group there. chunk: (N, 2) offset and length of its JPEGs' column chunk; length 0 if only pyarrow can
    read that. first: (N + 1,) its first view in the arrays below. val: (N,) True if for validation. stored_hw: (N, 2) size of
    its stored images. Per view: c2w: (M, 4, 4), fxfycxcy: (M, 4) for images of size hw, float32. frame: (M,) its frame in the
    clip, else its number within the object. sha: (M,) uint64 checksum of its JPEG to compare, 0 where there is none.
    """

    uids: list[str]
    paths: list[Path]
    subjects: list[str]
    path: np.ndarray
    group: np.ndarray
    chunk: np.ndarray
    first: np.ndarray
    val: np.ndarray
    stored_hw: np.ndarray
    c2w: np.ndarray
    fxfycxcy: np.ndarray
    frame: np.ndarray
    sha: np.ndarray
    hw: tuple[int, int]

    def views(self, number: int) -> int:
        """Number of views of an object."""
        return int(self.first[number + 1] - self.first[number])

    def of(self, number: int) -> slice:
        """Slice of an object's views in c2w, fxfycxcy and frame."""
        return slice(int(self.first[number]), int(self.first[number + 1]))

    def videos(self) -> list[str]:
        """Name of each object's video, or its uid if it is no clip (N,): training and validation must not share one."""
        names = list(self.uids)
        for which in [number for number, subject in enumerate(self.subjects) if subject == "clips"]:
            path = self.paths[which]
            numbers = np.flatnonzero(self.path == which)
            with _reading(path), pq.ParquetFile(path) as file:
                for number in numbers:
                    meta = file.read_row_group(int(self.group[number]), ["meta"])["meta"][0].as_py()
                    video = json.loads(meta).get("video")
                    names[number] = video_of(video) if video else names[number]
        return names

    def jpegs(self, number: int, files: Files) -> list[memoryview]:
        """JPEGs of an object's views. Raises UserError if they cannot be read."""
        path = self.paths[self.path[number]]
        offset, length = self.chunk[number].tolist()
        with _reading(path):
            if length:
                data = files.read(path, length, offset)
                with contextlib.suppress(ValueError):
                    return parquet_pages.byte_strings(data, self.views(number))
            with pq.ParquetFile(path) as file:
                table = file.read_row_group(int(self.group[number]), ["image.bytes"], use_threads=False)
                return [memoryview(jpeg.as_buffer()) for jpeg in pc.struct_field(table["image"], "bytes")]

    def decode(self, number: int, view: int, jpeg: memoryview, planes: np.ndarray) -> None:
        """Decode a view of an object into planes (3, H, W) uint8, contiguous. Raises UserError if broken or of another size."""
        if (sha := int(self.sha[self.first[number] + view])) and image_sha(jpeg) != sha:
            said = f"the bytes of view {view} of {self.uids[number]} are not those that were written"
            raise UserError(f"{self.paths[self.path[number]]}: {said}", HINT)
        stored = tuple(self.stored_hw[number].tolist())
        rgb = _decode(jpeg)
        if rgb is None or rgb.shape[:2] != stored:
            path, size = self.paths[self.path[number]], f"{stored[1]}x{stored[0]}"
            raise UserError(f"{path}: view {view} of {self.uids[number]} is no whole JPEG of {size} pixels", HINT)
        cv2.split(images.shrink(rgb, self.hw), list(planes))  # in place, and 20 times as fast as a transpose in NumPy


def _decode(jpeg: memoryview) -> np.ndarray | None:
    """RGB of a JPEG, bit for bit like PIL's in half the time; None if it is broken."""
    if bytes(jpeg[-2:]) != END_OF_IMAGE:  # OpenCV would fill a truncated image with grey
        return None
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


class Files:
    """Shard files that are kept open, for reads from any thread."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}
        self._lock = threading.Lock()

    def read(self, path: Path, length: int, offset: int) -> bytes:
        """Read `length` bytes at `offset`, fewer at the end of the file. Raises OSError."""
        with self._lock:
            descriptor = self._open.get(path)
            if descriptor is None and len(self._open) < OPEN_FILES:
                descriptor = self._open[path] = os.open(path, os.O_RDONLY)
        if descriptor is not None:
            return os.pread(descriptor, length, offset)
        with path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), length, offset)

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


@dataclass(frozen=True)
class ShardIndex:
    """An Index's part from one shard file. views: (n,) number of views per object. hw: (m, 2) stored size of each view."""

    subject: str
    uids: list[str]
    views: np.ndarray
    chunk: np.ndarray
    c2w: np.ndarray
    fxfycxcy: np.ndarray
    hw: np.ndarray
    frame: np.ndarray
    sha: np.ndarray


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
    read = functools.partial(read_shard, check_images=check_images)
    files = list(_in_threads(read, paths, workers, "reading cameras" if len(paths) > 16 else ""))
    return merge(paths, files, width)


def merge(paths: Sequence[Path], files: Sequence[ShardIndex], width: int) -> Index:
    """Index of some shard files, for images of that width. Raises UserError like `read_index`."""
    uids = [uid for file in files for uid in file.uids]
    path = np.repeat(np.arange(len(files)), [len(file.uids) for file in files])
    val = np.array([one.stem.startswith("val-") for one in paths])[path]
    _check_unique(uids, val)
    views, chunk, c2w, fxfycxcy, hw, frame, sha = (
        np.concatenate([getattr(file, name) for file in files])
        for name in ("views", "chunk", "c2w", "fxfycxcy", "hw", "frame", "sha")
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
    for size in np.unique(hw, axis=0):
        same = (hw == size).all(1)
        fxfycxcy[same] = cameras.resize_intrinsics(fxfycxcy[same].astype(np.float64), tuple(size.tolist()), new_hw)
    group = np.concatenate([np.arange(len(file.uids)) for file in files])
    subjects = [file.subject for file in files]
    return Index(
        uids, list(paths), subjects, path, group, chunk, first, val, hw[first[:-1]], c2w, fxfycxcy, frame, sha, new_hw
    )


def _check_unique(uids: list[str], val: np.ndarray) -> None:
    if both := set(itertools.compress(uids, val)) & set(itertools.compress(uids, ~val)):
        raise UserError(
            f"{len(both)} objects are in train-*.parquet and in val-*.parquet, for example {min(both)}",
            "runs to be trained on together need the same --val-percent",
        )


def read_shard(path: Path, check_images: bool = False) -> ShardIndex:
    """Read all but the images of one shard. check_images: with their checksums. Raises UserError for a broken file."""
    with _reading(path), open_shard(path) as file:
        if METADATA_KEY not in (file.schema_arrow.metadata or {}):
            raise UserError(f"{path} was not written by lvsm-data")
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        names = [groups[0].column(i).path_in_schema for i in range(groups[0].num_columns)] if groups else []
        if any(name.startswith(INTRINSICS["ortho"]) for name in names):
            raise UserError(
                f"{path} holds orthographic views, and LVSM's rays are those of pinholes",
                "train on pictures that were rendered without --projection ortho",
            )
        pictures = names.index("image.bytes")
        subject = subject_of(json.loads(file.schema_arrow.metadata[METADATA_KEY]), file.schema_arrow.names)
        optional = [name for name in ("frame", *[IMAGE_SHA] * check_images) if name in names]
        table = file.read(["height", "width", "c2w", "fxfycxcy", *optional], use_threads=False)
        uids = [uid_of(file, number) for number in range(len(groups))]
    views = np.array([group.num_rows for group in groups])
    chunk = np.array([_chunk(group.column(pictures)) for group in groups])
    counted = np.concatenate([np.arange(count) for count in views])
    c2w, k = _numbers(table["c2w"]).reshape(-1, 4, 4), _numbers(table["fxfycxcy"]).reshape(-1, 4)
    if len(c2w) != len(counted) or not (np.isfinite(c2w).all() and np.isfinite(k).all() and (k[:, :2] > 0).all()):
        raise UserError(f"{path} has cameras that are none", HINT)
    try:
        cameras.check_rigid(c2w)
    except ValueError as error:
        raise UserError(f"{path} has poses that are not rigid: {error}", HINT) from None
    hw = np.stack([table["height"].to_numpy(), table["width"].to_numpy()], -1).astype(int)
    frame = table["frame"].to_numpy() if "frame" in optional else counted
    sha = table[IMAGE_SHA].to_numpy() if IMAGE_SHA in optional else np.zeros(len(c2w), np.uint64)
    return ShardIndex(subject, uids, views, chunk, c2w, k, hw, frame, sha)


def licenses(index: Index) -> dict[str, int]:
    """Number of objects per license, most frequent first."""
    counted: Counter[str] = Counter()
    for path in index.paths:
        with _reading(path), pq.ParquetFile(path) as file:
            rows = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            column = file.read(["license"], use_threads=False)["license"]
            counted.update(column.take(np.concatenate([[0], np.cumsum(rows)[:-1]]).astype(int)).to_pylist())
    return dict(counted.most_common())


def _chunk(column: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """Offset and length of a column chunk that `parquet_pages` can read, else zeros."""
    plain = column.compression == "UNCOMPRESSED" and set(column.encodings) <= {"PLAIN", "RLE"}
    return (column.data_page_offset, column.total_compressed_size) if plain else (0, 0)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.combine_chunks().flatten(), np.float32)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a missing or broken file raises into a UserError that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, TypeError, KeyError, IndexError) as error:
        raise UserError(f"{path} cannot be read: {error}", HINT) from None


# ---- everything in memory


def decode_all(index: Index, device: torch.device, workers: int, quiet: bool = True) -> torch.Tensor:
    """Images of all views, (M, 3, H, W) uint8 on a device. Raises UserError if one is broken."""
    pixels = torch.empty((len(index.c2w), 3, *index.hw), dtype=torch.uint8, device=device)
    files = Files()

    def decode(number: int) -> None:
        own = pixels[index.of(number)]
        host = own.numpy() if device.type == "cpu" else np.empty(own.shape, np.uint8)
        for view, jpeg in enumerate(index.jpegs(number, files)):
            index.decode(number, view, jpeg, host[view])
        if device.type != "cpu":
            own.copy_(torch.from_numpy(host))

    say = f"decoding {len(pixels)} views" if pixels.nbytes > 1e8 and not quiet else ""
    try:
        for _ in _in_threads(decode, range(len(index.uids)), workers, say):
            pass
    finally:
        files.close()
    return pixels


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
