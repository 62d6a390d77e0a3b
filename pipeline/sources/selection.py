"""Choice of a source's objects by name, score and license. What is passed over is counted."""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.config.clip import ClipConfig
from pipeline.config.shared import Listing
from pipeline.config.source_table import SOURCES
from pipeline.config.views import ImportConfig
from pipeline.core import licenses
from pipeline.core.errors import UserError
from pipeline.core.records import Item
from pipeline.download import route
from pipeline.formats import tables
from pipeline.storage.shards import CAPTION

KEYS = ("uid", "sha256", "file_identifier", "fileIdentifier")  # columns of score tables that name an object
SCORES = ("aesthetic_score", "score", "aesthetic")


class Selection:
    """Filter of items. passed_over: count by reason; by_license: count by license of those passed over for it."""

    def __init__(self, cfg: Listing | ImportConfig | ClipConfig) -> None:
        self.names = names(cfg)
        self.families: frozenset[str] | None = None
        if isinstance(cfg, Listing) and (cfg.license or SOURCES[cfg.source].fetched):
            self.families = frozenset(cfg.license or licenses.DERIVATIVES)
        self.blend = not isinstance(cfg, Listing) or cfg.allow_blend or not SOURCES[cfg.source].fetched
        self.passed_over: Counter[str] = Counter()
        self.by_license: Counter[str] = Counter()

    def takes(self, item: Item) -> bool:
        """True if the item is to be taken; else counts why it is not."""
        if self.names is not None and self.names.isdisjoint(keys(item)):
            self.passed_over["not asked for"] += 1
            return False
        if not self.blend and route.file_type(item) == "blend":
            self.passed_over["blend"] += 1
            return False
        if self.families is not None and not licenses.is_allowed(item.license, self.families):
            self.passed_over["license"] += 1
            self.by_license[item.license] += 1
            return False
        return True

    def lines(self) -> list[str]:
        """Summarize what was passed over for its license or as .blend, in lines for display."""
        found = []
        if self.by_license:
            most = ", ".join(f"{name} {count}" for name, count in self.by_license.most_common(5))
            rest = ", ..." if len(self.by_license) > 5 else ""
            count = self.by_license.total()
            found.append(f"passed over {count} for their license ({most}{rest}); --license any takes them too")
        if count := self.passed_over["blend"]:
            found.append(f"passed over {count} .blend files; --allow-blend takes them too, with scripts off")
        return found


def keys(item: Item) -> set[str]:
    """Names that a list may give an item: its uid, the sha256 of its file, its identifier in Objaverse-XL."""
    return {item.uid, item.sha256, item.extra.get("id", "")} - {""}


def captioned(items: Iterable[Item], table: Path) -> Iterator[Item]:
    """Items with the text that a table has for them, by any of their `keys`, in extra[CAPTION]. Raises UserError as `rows`."""
    texts = tables.captions(table)
    for item in items:
        text = next((texts[key] for key in sorted(keys(item)) if key in texts), "")
        yield dataclasses.replace(item, extra=item.extra | {CAPTION: text}) if text else item


def names(cfg: Listing | ImportConfig | ClipConfig) -> frozenset[str] | None:
    """Names that both --uids and --scores allow; None if neither was given. UserError for unusable files."""
    chosen = [_listed(cfg.uids)] if cfg.uids else []
    if isinstance(cfg, Listing) and cfg.scores is not None:
        assert cfg.min_score is not None
        chosen.append(_scored(cfg.scores, cfg.min_score, cfg.score_column))
    return frozenset.intersection(*chosen) if chosen else None


@functools.lru_cache(maxsize=4)
def _listed(path: Path) -> frozenset[str]:
    """Read lines of a text file, or all fields of a .csv or .tsv; a path such as 000-001/abc.glb also gives abc."""
    found: set[str] = set()
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            delimiter = {".csv": ",", ".tsv": "\t"}.get(path.suffix.lower())
            for fields in csv.reader(lines, delimiter=delimiter) if delimiter else ([line] for line in lines):
                found.update(name for field in fields if (name := field.strip()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--uids {path} cannot be read as UTF-8 text: {error}") from None
    found |= {Path(name).stem for name in found if "/" in name and "://" not in name}
    if not found:
        raise UserError(f"--uids {path} names nothing", "one uid per line")
    return frozenset(found)


@functools.lru_cache(maxsize=4)
def _scored(path: Path, least: float, column: str | None) -> frozenset[str]:
    found: set[str] = set()
    score_column = column
    for number, row in enumerate(tables.rows(path), 1):
        if number == 1:
            score_column = _score_column(path, row, column)
            if not any(key in row for key in KEYS):
                raise UserError(f"--scores {path} names no objects", f"one of the columns {', '.join(KEYS)} is needed")
        assert score_column is not None
        if _number(path, number, row[score_column]) >= least:
            found.update(str(row[key]) for key in KEYS if row.get(key))
    return frozenset(found)


def _score_column(path: Path, row: dict[str, Any], column: str | None) -> str:
    wanted = (column,) if column else SCORES
    if found := [name for name in wanted if name in row]:
        return found[0]
    raise UserError(
        f"--scores {path} has no column {' or '.join(wanted)}", f"--score-column takes one of {', '.join(row)}"
    )


def _number(path: Path, number: int, value: Any) -> float:
    if value in (None, ""):
        return float("-inf")
    try:
        return float(value)
    except ValueError:
        raise UserError(f"--scores {path}: row {number} has no number but {value!r}") from None
