"""Choice of a source's objects by name, score and license. What is passed over is counted."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline import sources
from pipeline.config.clip import ClipConfig
from pipeline.config.shared import Listing
from pipeline.config.source_table import SOURCES
from pipeline.config.views import ImportConfig
from pipeline.core import licenses
from pipeline.core.records import Item
from pipeline.download import route
from pipeline.formats import tables
from pipeline.storage.shards import CAPTION


class Selection:
    """Filter of items. passed_over: count by reason; by_license: count by license of those passed over for it."""

    def __init__(self, cfg: Listing | ImportConfig | ClipConfig) -> None:
        self.names = sources.asked_for(cfg)
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
