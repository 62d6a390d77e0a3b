"""Set of millions of uids in little memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

import numpy as np

RECENT = 1 << 17  # uids in a Python set, before they join the sorted array


class Uids:
    """Set of uids that only grows: 8 bytes each, a 64-bit hash.

    Among ten million uids two share a hash with probability 3e-6; the second of these would pass for known.
    """

    def __init__(self, uids: Iterable[str] = ()) -> None:
        self._recent: set[int] = set()
        self._hashes = np.fromiter(map(hash, uids), np.int64)
        self._hashes.sort()
        self._view = memoryview(self._hashes.data)  # yields Python ints: quicker for single uids

    def __contains__(self, uid: object) -> bool:
        key = hash(uid)
        if key in self._recent:
            return True
        place = bisect_left(self._view, key)
        return place < len(self._view) and self._view[place] == key

    def __len__(self) -> int:
        return len(self._hashes) + len(self._recent)

    def add(self, uid: str) -> None:
        """Add one uid, which may be in the set already."""
        if uid not in self:
            self._recent.add(hash(uid))
            if len(self._recent) >= RECENT:
                recent, self._recent = self._recent, set()
                self._join(np.fromiter(recent, np.int64, len(recent)))

    def fresh(self, uids: Sequence[str]) -> list[int]:
        """Indices of the `uids` that are not in the set; for thousands at once."""
        keys = np.fromiter(map(hash, uids), np.int64, len(uids))
        return [place for place in np.flatnonzero(~self._among(keys)).tolist() if uids[place] not in self]

    def _among(self, keys: np.ndarray) -> np.ndarray:
        """Boolean mask of the `keys` that are in the sorted array."""
        places = np.minimum(self._hashes.searchsorted(keys), max(0, len(self._hashes) - 1))
        return self._hashes[places] == keys if len(self._hashes) else np.zeros(len(keys), bool)

    def known(self, uids: Sequence[str]) -> int | None:
        """Add thousands of uids at once and return None; or add none and return the index of the first known or repeated one."""
        keys = np.fromiter(map(hash, uids), np.int64, len(uids))
        fresh = np.unique(keys)
        if len(fresh) < len(keys) or self._among(fresh).any() or not self._recent.isdisjoint(keys.tolist()):
            so_far: set[str] = set()
            for place, uid in enumerate(uids):
                if uid in self or uid in so_far:
                    return place
                so_far.add(uid)
        self._join(fresh)
        return None

    def _join(self, hashes: np.ndarray) -> None:
        joined = np.concatenate([self._hashes, np.sort(hashes)])
        joined.sort(kind="stable")  # two sorted runs, which a stable sort merges
        self._hashes, self._view = joined, memoryview(joined.data)
