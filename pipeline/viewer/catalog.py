"""Columns of all objects of a run, for a page that filters and sorts them: those in the shards, and those that failed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.text import shown
from pipeline.dataset.opened import Dataset
from pipeline.storage.ledger import Ledger
from pipeline.storage.shards import find_shards
from pipeline.storage.uploads import LEDGER

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

    def columns(self) -> dict[str, Any]:
        """Read the columns: JSON values of each row, the objects in the order of the shards, then what failed.

        uid: of each row. delivered: number of rows that are objects. detail: why, of the others. words: name ->
        {"names": [...], "of": [number of the name of each row]}. numbers: name -> value of each row or None.
        """
        uids, details = list(self.data.uids) if self.data else [], list[str]()
        table = _Table(self.delivered + self.failed)
        for number in range(self.delivered):
            assert self.data is not None
            table.put(number, "split", self.data.split_of(number))
        if (self.folder / LEDGER).exists():
            with Ledger(self.folder / LEDGER, readonly=True) as books:
                for uid, source, license_name, _, _, told in books.ended("delivered"):
                    if self.data and uid in self.data:  # not of a shard that is still open, or gone
                        facts = {"source": source, "license": license_name} | json.loads(told)
                        table.put_all(self.data.number(uid), facts)
                for uid, source, license_name, reason, detail, _ in books.ended("failed"):
                    if len(details) < self.failed:  # others have come since
                        table.put_all(len(uids), {"source": source, "license": license_name, "reason": reason})
                        uids.append(uid)
                        details.append(detail[:DETAIL])
        return {"uid": uids, "delivered": self.delivered, "detail": details} | table.as_json(len(uids))


class _Table:
    """Values of facts by name and row, None where a row has none."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.columns: dict[str, list[Any]] = {}

    def put(self, row: int, name: str, value: Any) -> None:
        if name not in self.columns:
            self.columns[name] = [None] * self.rows
        self.columns[name][row] = value

    def put_all(self, row: int, facts: dict[str, Any]) -> None:
        for name, value in facts.items():
            if isinstance(value, str | int | float):
                self.put(row, name, value)

    def as_json(self, rows: int) -> dict[str, Any]:
        """Columns of the first `rows` rows: words, which flags are too, and numbers."""
        words, numbers = {}, {}
        for name, values in self.columns.items():
            if any(isinstance(value, str | bool) for value in values):
                words[name] = _counted([_word(value) for value in values[:rows]])
            else:
                numbers[name] = values[:rows]
        return {"words": words, "numbers": numbers}


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
        data = Dataset(folder, max(found))
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


def _counted(values: Sequence[str]) -> dict[str, Any]:
    """Distinct values, most frequent first, and which of them each row has."""
    counts = Counter(values)
    names = sorted(counts, key=lambda name: (-counts[name], name))
    number = {name: at for at, name in enumerate(names)}
    return {"names": names, "of": [number[value] for value in values]}
