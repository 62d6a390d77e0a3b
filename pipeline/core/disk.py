"""Replacing files as a whole, the disk that files take, and waiting while a disk is full."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core.errors import UserError

LOOK_AGAIN_S = 1.0  # between attempts while a disk is full
SAY_AGAIN_S = 60.0
Made = TypeVar("Made")


def bytes_below(folder: Path) -> int:
    """Total size in bytes of all files in `folder` and below (a link counts as itself). Files may come and go meanwhile."""
    return sum(found.st_size for found in _files_below(folder))


def disk_below(folder: Path) -> int:
    """Disk in bytes that a folder's files take: their blocks, or their sizes where the file system has not chosen blocks yet."""
    return sum(_blocks(found) for found in _files_below(folder))


def disk_of(path: Path) -> int:
    """Disk in bytes that a file takes; 0 if there is no such file (any more)."""
    try:
        return _blocks(path.lstat())
    except FileNotFoundError:
        return 0


def _blocks(found: os.stat_result) -> int:
    return max(found.st_size, 512 * found.st_blocks)


def _files_below(folder: Path) -> Iterator[os.stat_result]:
    for here, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a temporary file that its writer has removed
                yield os.lstat(os.path.join(here, name))


def is_full(error: BaseException) -> bool:
    """True if `error` says that the disk or the user's quota on it is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def append(sink: FileIO, *parts: bytes | memoryview) -> None:
    """Append all `parts` to a file that was opened without a buffer. On OSError, which is raised, nothing stays appended."""
    start = sink.seek(0, os.SEEK_END)
    try:
        left = [memoryview(part) for part in parts]
        while left:
            written = os.writev(sink.fileno(), left)
            while left and written >= left[0].nbytes:
                written -= left.pop(0).nbytes
            if left:
                left[0] = left[0][written:]
    except OSError:
        os.ftruncate(sink.fileno(), start)
        raise


@contextlib.contextmanager
def replacing(path: Path, beside: Path | None = None, sync: bool = False) -> Iterator[Path]:
    """Temporary path to write to, renamed to `path` at the end; removed, with `path` untouched, if anything is raised.

    beside: the temporary path, on the same disk; default: `path` with ".tmp" appended. sync: the content and the rename
    survive a power cut.
    """
    temporary = beside or path.with_name(f"{path.name}.tmp")
    with contextlib.ExitStack() as unfinished:
        unfinished.callback(_discard, temporary)
        yield temporary
        if sync:
            fsync(temporary)
        os.replace(temporary, path)
        unfinished.pop_all()  # another writer of `path` may have made the next temporary file already
    if sync:
        fsync(path.parent)


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def fsync(path: Path) -> None:
    """Wait until a file or folder has reached the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Replace a text file as a whole. Raises OSError, with nothing changed, if the disk is full."""
    with replacing(path, path.with_suffix(".tmp")) as temporary:
        temporary.write_text(text)


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Replace a JSON file as a whole. Raises OSError, with nothing changed, if the disk is full."""
    replace_text(path, json.dumps(facts, indent=2))


def read_json(path: Path, hint: str = "put a copy of it back; no program of ours leaves one half written") -> Any:
    """Read a JSON file of ours, a dict. Raises UserError, with the hint, if something has damaged it, else OSError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged, it is no JSON: {error}", hint) from None
    except IsADirectoryError:
        raise UserError(f"{path} is damaged, it is a folder", hint) from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged, it holds {type(found).__name__}", hint)
    return found


def warn_full(where: Path) -> None:
    """Tell the user on stderr that the disk of `where` is full, and that nothing is lost."""
    says = "is full: waiting; everything goes on where it is as soon as there is room"
    print(f"the disk of {where} {says}", file=sys.stderr, flush=True)


def retried(act: Callable[[], Made], pause_s: Callable[[OSError], float]) -> Made:
    """Result of `act`, called again `pause_s(error)` seconds after each OSError; `pause_s` raises to give up."""
    while True:
        try:
            return act()
        except OSError as error:
            pause = pause_s(error)
        time.sleep(pause)


def patiently(write: Callable[[], Made], where: Path, enough: Callable[[], bool] = lambda: False) -> Made:
    """Result of `write`, called again while the disk of `where` is full, which stderr says; other OSErrors are raised.

    write: leaves nothing behind if it fails. enough: once true, the error of a full disk is raised too.
    """
    warned = -SAY_AGAIN_S

    def pause_s(error: OSError) -> float:
        nonlocal warned
        if not is_full(error) or enough():
            raise error
        if time.monotonic() - warned >= SAY_AGAIN_S:
            warned = time.monotonic()
            warn_full(where)
        return LOOK_AGAIN_S

    made = retried(write, pause_s)
    if warned > 0:
        print(f"the disk of {where} has room again: going on", file=sys.stderr, flush=True)
    return made
