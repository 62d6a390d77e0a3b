"""A budget of disk for files that wait to be used, shared by many writers."""

from __future__ import annotations

import errno
import hashlib
import shutil
import threading
from pathlib import Path

from pipeline.core.errors import Retry, Skip

FREE_AT_LEAST = 500e6  # bytes of the disk that downloads keep free for others


class DiskBudget:
    """Disk for files that wait to be used: reserved per owner before writing, released when the owner is done.

    budget: bytes. folder: on the disk in question. spare: bytes of this disk left to others. patient: with nothing held, wait for
    a disk that others have filled, instead of raising OSError (ENOSPC). Thread-safe; first come, first served.
    """

    def __init__(self, folder: Path, budget: float, spare: float = FREE_AT_LEAST, patient: bool = False) -> None:
        self.folder = folder
        self.budget = int(budget)
        self.spare = spare
        self.patient = patient
        self.peak = 0
        self._held: dict[str, int] = {}
        self._queue: list[object] = []
        self._closed = False
        self._changed = threading.Condition()

    def folder_of(self, owner: str) -> Path:
        """Path of the owner's own folder, which need not exist."""
        return self.folder / hashlib.blake2b(owner.encode(), digest_size=12).hexdigest()

    @property
    def used(self) -> int:
        return sum(list(self._held.values()))

    @property
    def free(self) -> int:
        """Bytes of the budget that nobody holds; negative where the budget has become smaller than what is held."""
        return self.budget - self.used

    def try_reserve(self, owner: str, size: int) -> bool:
        """Reserve `size` more bytes for `owner` if they are free now and nobody waits; else False. Raises Skip("too_large")."""
        with self._changed:
            self._check(owner, size)
            if self._queue or not self._fits(size):
                return False
            self._take(owner, size)
            return True

    def reserve(self, owner: str, size: int) -> None:
        """Wait for `size` more bytes and reserve them for `owner`. Raises Skip("too_large"), Retry("stopped") after `close`."""
        ticket = object()
        with self._changed:
            self._check(owner, size)
            self._queue.append(ticket)
            try:
                while not self._closed and (self._queue[0] is not ticket or not self._fits(size)):
                    self._changed.wait(timeout=1.0)  # other programs may free disk unnoticed
                if self._closed:
                    raise Retry("stopped")
                self._take(owner, size)
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()

    def settle(self, owner: str, size: int) -> None:
        """Set what `owner` holds to `size` bytes in all, the size that its files turned out to have."""
        with self._changed:
            self._held[owner] = size
            self._changed.notify_all()

    def release(self, owner: str) -> None:
        """Free all bytes that `owner` holds."""
        with self._changed:
            self._held.pop(owner, None)
            self._changed.notify_all()

    def held(self, owner: str) -> int:
        """Bytes reserved by `owner`."""
        return self._held.get(owner, 0)

    def lacks_disk(self, size: int) -> bool:
        """True when the budget allows `size` more bytes but the disk lacks them, as others have filled it."""
        return self.used + size <= self.budget and shutil.disk_usage(self.folder).free < size + self.spare

    def close(self) -> None:
        """Make every waiting and later `reserve` raise Retry("stopped")."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _check(self, owner: str, size: int) -> None:
        if self._held.get(owner, 0) + size > self.budget:
            raise Skip("too_large", f"{size / 1e6:.0f} MB do not fit into a budget of {self.budget / 1e6:.0f} MB")

    def _fits(self, size: int) -> bool:
        if self.used + size > self.budget:
            return False
        if shutil.disk_usage(self.folder).free >= size + self.spare:
            return True
        if not self._held and not self.patient:  # no file of this budget will make room by going
            raise OSError(errno.ENOSPC, "No space left on device", str(self.folder))
        return False

    def _take(self, owner: str, size: int) -> None:
        self._held[owner] = self._held.get(owner, 0) + size
        self.peak = max(self.peak, self.used)
