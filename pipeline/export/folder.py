"""A folder that is there whole or not at all: written beside its place, and renamed at the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.core.disk import is_full
from pipeline.core.errors import UserError
from pipeline.core.text import shown


def part_of(out: Path) -> Path:
    """Folder beside `out` that holds what is not finished."""
    return out.with_name(f".{out.name}.part")


@contextlib.contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Empty folder to write to, which becomes `out` at the end; it goes again, and `out` is not made, if anything is raised.

    out: a path at which nothing or an empty folder is. What a killed process left is started anew. Raises UserError: the disk is
    full or cannot be written, or another process writes there.
    """
    try:
        out = out.resolve()
        part = part_of(out)
        if out.exists():
            out.rmdir()  # at once: what cannot be replaced, such as the place of another disk, costs no work
        part.mkdir(parents=True, exist_ok=True)
        with _alone(part, out), contextlib.ExitStack() as unfinished:
            unfinished.callback(shutil.rmtree, part, ignore_errors=True)
            for left in part.iterdir():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield part
            part.rename(out)
            unfinished.pop_all()
    except OSError as error:
        if is_full(error):
            raise UserError(f"the disk of {shown(out)} is full", "make room; the same command starts anew") from error
        raise UserError(f"{shown(out)} cannot be written: {error}", "--out with the name of a new folder") from error


@contextlib.contextmanager
def _alone(part: Path, out: Path) -> Iterator[None]:
    """Hold a folder against other processes. Raises UserError if one has it, OSError for a link."""
    handle = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(
            f"{shown(out)} is being written by another process", "wait for its end, or another --out"
        ) from None
    finally:
        os.close(handle)
