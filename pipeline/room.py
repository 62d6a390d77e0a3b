"""Disk for files that wait to be used, shared by many who write."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

from pipeline.scene import Retry, Skip

FREE_AT_LEAST = 500e6  # bytes of the disk that downloads leave alone


class Room:
    """Disk for files that wait to be used: reserved by owner before it is written, released when the owner is done.

    budget: bytes. folder: on the disk in question. Thread-safe; waiting is first come, first served.
    """

    def __init__(self, folder: Path, budget: float) -> None:
        self.folder = folder
        self.budget = int(budget)
        self.peak = 0
        self._held: dict[str, int] = {}
        self._queue: list[object] = []
        self._closed = False
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        return sum(list(self._held.values()))

    def try_reserve(self, owner: str, size: int) -> bool:
        """Takes `size` more bytes for `owner` if they are free now and nobody waits. Raises Skip("too_large")."""
        with self._changed:
            self._check(owner, size)
            if self._queue or not self._fits(size):
                return False
            self._take(owner, size)
            return True

    def reserve(self, owner: str, size: int) -> None:
        """Takes `size` more bytes for `owner`, waiting for them. Raises Skip("too_large"), Retry("stopped") after `close`."""
        ticket = object()
        with self._changed:
            self._check(owner, size)
            self._queue.append(ticket)
            try:
                while not self._closed and (self._queue[0] is not ticket or not self._fits(size)):
                    self._changed.wait(timeout=1.0)  # others may free the disk without telling us
                if self._closed:
                    raise Retry("stopped")
                self._take(owner, size)
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()

    def settle(self, owner: str, size: int) -> None:
        """`owner` turned out to hold `size` bytes in all."""
        with self._changed:
            self._held[owner] = size
            self._changed.notify_all()

    def release(self, owner: str) -> None:
        """Gives back what `owner` holds."""
        with self._changed:
            self._held.pop(owner, None)
            self._changed.notify_all()

    def held(self, owner: str) -> int:
        """Bytes reserved by `owner`."""
        return self._held.get(owner, 0)

    def close(self) -> None:
        """Sends everybody home who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _check(self, owner: str, size: int) -> None:
        if self._held.get(owner, 0) + size > self.budget:
            raise Skip("too_large", f"{size / 1e6:.0f} MB do not fit into a budget of {self.budget / 1e6:.0f} MB")

    def _fits(self, size: int) -> bool:
        if self.used + size > self.budget:
            return False
        if shutil.disk_usage(self.folder).free >= size + FREE_AT_LEAST:
            return True
        if not self._held:  # nothing of ours will ever make room
            raise OSError(errno.ENOSPC, "No space left on device", str(self.folder))
        return False

    def _take(self, owner: str, size: int) -> None:
        self._held[owner] = self._held.get(owner, 0) + size
        self.peak = max(self.peak, self.used)


def bytes_below(folder: Path) -> int:
    """Of all files in a folder and below, links counted as links. Files may come and go meanwhile."""
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(here, name)).st_size
            except FileNotFoundError:  # somebody's temporary file
                continue
    return total
