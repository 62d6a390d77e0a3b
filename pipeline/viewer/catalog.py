"""Columns of all objects of a run, for a page that filters and sorts them: those in the shards, and those that failed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
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

    failed: (uid, source, license, reason, detail) of each item that was not delivered. facts: by uid, those that the ledger has.
    moment: as of `moment_of` when it was read.
    """

    folder: Path
    data: Dataset | None
    small: Dataset | None
    failed: list[tuple[str, str, str, str, str]]
    facts: dict[str, dict[str, Any]]
    moment: tuple[Any, ...]

    def __len__(self) -> int:
        """Number of rows: the objects in the order of the shards, then what failed."""
        return (len(self.data) if self.data else 0) + len(self.failed)

    def columns(self) -> dict[str, Any]:
        """Columns as JSON values.

        uid: of each row. delivered: number of rows that are objects, the first ones. detail: of the others. words: name ->
        {"names": [...], "of": [number of the name of each row]}. numbers: name -> value of each row or None.
        """
        data, failed = self.data, self.failed
        uids = [*(data.uids if data else []), *(uid for uid, *_ in failed)]
        found = [self.facts.get(uid, {}) for uid in (data.uids if data else [])]
        count = len(found)
        columns: dict[str, list[Any]] = {
            "split": [*(data.split_of(number) for number in range(count))] if data else [],
            "source": [fact.get("source", "") for fact in found],
            "license": [fact.get("license", "") for fact in found],
            "reason": [""] * count,
        }
        for name, at in (("source", 1), ("license", 2), ("reason", 3)):
            columns[name] += [row[at] for row in failed]
        columns["split"] += [""] * len(failed)
        words, numbers = _kinds(found)
        for name in words:
            columns[name] = [_word(fact.get(name)) for fact in found] + [""] * len(failed)
        return {
            "uid": uids,
            "delivered": count,
            "detail": [row[4] for row in failed],
            "words": {name: _counted(values) for name, values in columns.items() if any(values)},
            "numbers": {name: [fact.get(name) for fact in found] + [None] * len(failed) for name in numbers},
        }


def moment_of(folder: Path) -> tuple[Any, ...]:
    """What changes when a run's objects do, and is quick to look at."""
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
    failed, facts = [], {}
    if ledger.exists():
        with Ledger(ledger, readonly=True) as books:
            for uid, source, license_name, _, _, told in books.ended("delivered"):
                facts[uid] = {"source": source, "license": license_name} | json.loads(told)
            for uid, source, license_name, reason, detail, _ in books.ended("failed"):
                failed.append((uid, source, license_name, reason, detail[:DETAIL]))
    if not data and not failed:
        raise UserError(f"{shown(folder)} holds no object and no failure yet", f"lvsm-data status {shown(folder)}")
    return Catalog(folder, data, small, failed, facts, moment)


def _kinds(found: Iterable[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Names of the facts that are words or yes and no, and of those that are numbers, of any object."""
    kinds: dict[str, bool] = {}  # name -> True for words
    for fact in found:
        for name, value in fact.items():
            if name not in ("source", "license") and isinstance(value, str | int | float):
                kinds[name] = kinds.get(name, False) or isinstance(value, str | bool)
    return [name for name, words in kinds.items() if words], [name for name, words in kinds.items() if not words]


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else "" if value is None else str(value)


def _counted(values: Sequence[str]) -> dict[str, Any]:
    """Distinct values, most frequent first, and which of them each row has."""
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    names = sorted(counts, key=lambda name: (-counts[name], name))
    number = {name: at for at, name in enumerate(names)}
    return {"names": names, "of": [number[value] for value in values]}
