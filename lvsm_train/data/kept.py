"""What is kept from one use to the next: memory of batches, decoded pictures, and cameras below ~/.cache/lvsm-data/cameras.

A second reading of cameras takes a twentieth of the first. A shard never changes once it has its name: what is kept belongs to
its path, size, time and last bytes, which are its footer's end; any other file is read anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import threading
import time
import weakref
import zipfile
from collections import deque
from pathlib import Path

import numpy as np
import torch

from lvsm_train.data.shard_index import ShardIndex, read_shard
from pipeline.core.disk import replacing

CACHE = Path("~/.cache/lvsm-data/cameras")
LEAST_BYTES = 4_000_000  # smaller shards are read as quickly
TAIL = 65_536  # bytes of a shard that are compared
FORGOTTEN_S = 30 * 86_400.0  # after which what nobody reads is deleted
FORM = b"4"  # of what is kept


class Memory:
    """Memory of batches, which is used again once nobody holds any part of a batch: the system would have to clear what is new.

    At 256 pixels that takes a quarter as long as decoding. Pinned memory is kept likewise by torch itself.
    """

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque()

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Tensor of uint8 with any content."""
        size = math.prod(shape)
        block = np.empty(0, np.uint8)
        with contextlib.suppress(IndexError):  # none is free
            block = self._free.pop()
        if block.size < size:
            block = np.empty(size, np.uint8)
        held = block[:size]  # as long as the tensor and all that shares its memory
        weakref.finalize(held, self._free.append, block).atexit = False
        return torch.from_numpy(held).view(shape)


class DecodedPictures:
    """Decoded pictures of objects whose shards come and go, as long as all together take at most `limit` bytes.

    An object that comes when the memory is full is not kept. For any thread: two that decode a picture write the same.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.bytes = 0
        self._of: dict[Path, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
        self._lock = threading.Lock()

    def of(self, path: Path, uid: str, shape: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray] | None:
        """Pictures (V, 3, H, W) uint8 of an object of a shard, and which of them are there (V,); None if there is no room.

        Whoever decodes one that is not there writes it, and says so after that.
        """
        with self._lock:
            objects = self._of.setdefault(path, {})
            if uid not in objects:
                if self.bytes + math.prod(shape) > self.limit:
                    return None
                objects[uid] = np.empty(shape, np.uint8), np.zeros(shape[0], bool)
                self.bytes += math.prod(shape)
            return objects[uid]

    def forget(self, path: Path) -> None:
        """Give up the memory of a shard's objects."""
        with self._lock:
            self.bytes -= sum(pictures.nbytes for pictures, _ in self._of.pop(path, {}).values())


def read_kept(path: Path) -> ShardIndex:
    """Read all but the images of one shard, or what an earlier reading kept. Raises UserError for a broken file.

    A cache (CACHE) that cannot be read or written only costs time.
    """
    with contextlib.suppress(OSError):
        if path.stat().st_size >= LEAST_BYTES:
            return _read(path, CACHE.expanduser() / f"{_key(path)}.npz")
    return read_shard(path)


def _read(path: Path, place: Path) -> ShardIndex:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        found = _load(place)
        os.utime(place)
        return found
    read = read_shard(path)
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        _save(place, read)
        _forget(place.parent)
    return read


def _key(path: Path) -> str:
    found = path.stat()
    with path.open("rb") as file:
        file.seek(-min(TAIL, found.st_size), os.SEEK_END)
        tail = file.read()
    facts = json.dumps([str(path.resolve()), found.st_size, found.st_mtime_ns]).encode()
    return hashlib.sha256(FORM + facts + tail).hexdigest()


def _save(place: Path, read: ShardIndex) -> None:
    arrays = {each.name: getattr(read, each.name) for each in dataclasses.fields(read)}
    words = {name: arrays.pop(name) for name in ("subject", "layers", "uids", "licenses")}
    words["licenses"] = list(words["licenses"].items())
    arrays["words"] = np.frombuffer(json.dumps(words).encode(), np.uint8)
    with (
        replacing(place, place.with_name(f"{place.name}.{os.getpid()}-{threading.get_ident()}.tmp")) as temporary,
        temporary.open("wb") as file,
    ):
        np.savez(file, **arrays)


def _load(place: Path) -> ShardIndex:
    with place.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    words = json.loads(found.pop("words").tobytes())
    return ShardIndex(**found, **(words | {"licenses": dict(words["licenses"])}))


@functools.cache  # once
def _forget(folder: Path) -> None:
    """Delete what nobody has read for FORGOTTEN_S."""
    now = time.time()
    for each in folder.glob("*.npz"):
        with contextlib.suppress(OSError):
            if each.stat().st_mtime < now - FORGOTTEN_S:
                each.unlink()
