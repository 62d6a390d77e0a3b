"""Columns of all objects of a run, for a page that filters and sorts them: those in the shards, and those that failed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.render import again
from pipeline.core.errors import UserError
from pipeline.core.text import shown
from pipeline.dataset.opened import Dataset
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import identity_of
from pipeline.storage.shards import CAPTION, find_shards
from pipeline.storage.uploads import LEDGER

CHOICES = 64  # most different words to choose from: of more, texts are searched
PLACES = ("shard", "row_group")  # facts of an object's place, which is said where it is opened
DETAIL = 300  # characters of why an item failed
LEAST = 64  # pixels of width from which on pictures show what an object is


@dataclass(frozen=True)
class Catalog:
    """Objects of a run at one moment. data: at the largest width. small: at the smallest one that shows what an object is.

    failed: number of items that were not delivered. moment: as of `moment_of` when it was read.
    """

    folder: Path
    data: Dataset | None
    small: Dataset | None
    failed: int
    moment: tuple[Any, ...]

    @property
    def delivered(self) -> int:
        """Number of objects in the shards."""
        return len(self.data) if self.data else 0

    def again(self, uid: str) -> str:
        """Commands that render an object of the run again, "" where that is not known."""
        try:
            return again(identity_of(self.folder), uid)
        except (OSError, ValueError, KeyError, TypeError, UserError):
            return ""

    def columns(self) -> dict[str, Any]:
        """Read the columns: JSON values of each row, the objects in the order of the shards, then what failed.

        uid: of each row. delivered: number of rows that are objects. detail: why, of the others. words: name ->
        {"names": [...], "of": [number of the name of each row]}. texts: name -> text of each row or None, of too many different
        ones to choose from. numbers: name -> value of each row or None.
        """
        known = self.data.objects() if self.data else {"uid": []}
        failed = self._failures()
        uids = known.pop("uid") + failed.pop("uid", [])
        details = [detail[:DETAIL] for detail in failed.pop("detail", [])]
        for name in PLACES:
            known.pop(name, None)
        words, texts, numbers = {}, {}, {}
        for name in known | failed:
            values = known.get(name, [None] * self.delivered) + failed.get(name, [None] * len(details))
            kinds = set(map(type, values)) - {type(None)}
            if not kinds:
                continue  # nobody's value is known
            if not kinds & {str, bool}:
                numbers[name] = values
            elif name != "reason" and (name == CAPTION or len(set(values)) > CHOICES):
                texts[name] = values
            else:
                words[name] = _numbered(values)
        told = {"words": words, "texts": texts, "numbers": numbers}
        return {"uid": uids, "delivered": self.delivered, "detail": details} | told

    def _failures(self) -> dict[str, list[Any]]:
        """Columns of what failed."""
        if not (self.folder / LEDGER).exists():
            return {}
        with Ledger(self.folder / LEDGER, readonly=True) as books:
            rows = list(itertools.islice(books.ended("failed"), self.failed))  # others have come since
        names = ("uid", "source", "license", "reason", "detail")
        return {name: [row[at] for row in rows] for at, name in enumerate(names)}


def moment_of(folder: Path) -> tuple[Any, ...]:
    """Values that change when a run's objects do, and are quick to look at."""
    books = [path.stat() for name in (LEDGER, f"{LEDGER}-wal") if (path := folder / name).exists()]
    written = [one.st_mtime_ns for one in books if one.st_size]  # whoever reads leaves an empty log behind
    return *written, *(path for paths in _shards(folder).values() for path in paths)


def _shards(folder: Path) -> dict[int, list[Path]]:
    """Shards by width. Raises UserError for a folder that is none of a run."""
    try:
        return {width: paths for width, paths in find_shards(folder).items() if paths}
    except UserError:
        if not (folder / LEDGER).exists():
            raise
        return {}


def read_catalog(folder: Path) -> Catalog:
    """Catalog of a run's folder, or of a folder of shards. Raises UserError where there is neither, and for broken shards."""
    ledger, moment, found = folder / LEDGER, moment_of(folder), _shards(folder)
    data = small = None
    if found:
        data = Dataset(folder, max(found), listed=True)
        width = min((one for one in found if one >= LEAST), default=max(found))
        small = data if width == max(found) else Dataset(folder, width)
    failed = 0
    if ledger.exists():
        with Ledger(ledger, readonly=True) as books:
            failed = books.counts().get("failed", 0)
    if not data and not failed:
        raise UserError(f"{shown(folder)} holds no object and no failure yet", f"lvsm-data status {shown(folder)}")
    return Catalog(folder, data, small, failed, moment)


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else "" if value is None else str(value)


def _numbered(values: Sequence[Any]) -> dict[str, Any]:
    """Distinct words, most frequent first, and which of them each row has."""
    counts: Counter[str] = Counter()
    for value, count in Counter(values).items():
        counts[_word(value)] += count
    names = sorted(counts, key=lambda name: (-counts[name], name))
    number = {value: names.index(_word(value)) for value in set(values)}
    return {"names": names, "of": [number[value] for value in values]}
