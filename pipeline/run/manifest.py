"""`lvsm-data manifest`: a source's objects as a list that can be kept, shared and rendered again."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import sources
from pipeline.config.manifest import ManifestConfig
from pipeline.config.shared import Fetching
from pipeline.core.errors import UserError
from pipeline.core.records import Item
from pipeline.core.text import reasons_text, shown, size
from pipeline.download import huggingface
from pipeline.download.fetch import Fetcher
from pipeline.formats import tables
from pipeline.run.selection import Selection
from pipeline.sources import manifest


def write_manifest(cfg: ManifestConfig) -> list[str]:
    """Write cfg.n rows to cfg.out: the objects that `render` with the seed cfg.seed would take, in order.

    cfg is resolved. Returns lines for the user: counts, bytes, licenses. Raises UserError where the source cannot be listed.
    """
    assert cfg.out is not None
    if not sources.is_remote(cfg):
        raise UserError(f"--source {cfg.source} needs no manifest", "for example --source objaverse")
    selection = Selection(cfg)
    counts: Counter[str] = Counter()
    total_bytes = 0
    with (
        tempfile.TemporaryDirectory(prefix="lvsm-manifest-", ignore_cleanup_errors=True) as scratch,
        contextlib.closing(sources.fetcher(Fetching(), Path(scratch), cfg.cache)) as net,
    ):
        items = sources.load(cfg.source).items(cfg, cfg.seed, net)
        chosen = itertools.islice((item for item in items if selection.takes(item)), cfg.n)

        def lines() -> Iterator[dict[str, Any]]:
            nonlocal total_bytes
            for item in _with_facts(net, chosen):
                counts[item.license] += 1
                total_bytes += item.extra.get("size", 0)
                yield manifest.row_of(item)

        written = tables.write(cfg.out, lines(), manifest.COLUMNS)
    summary = [f"{written} objects in {shown(cfg.out)}" + (f", {size(total_bytes)} to download" if total_bytes else "")]
    if written < cfg.n:
        summary.append(f"{cfg.n - written} fewer than requested: the source has no more")
    summary.append(f"licenses: {reasons_text(dict(counts))}")
    return [*summary, *selection.lines(), f"render them: lvsm-data render --manifest {shown(cfg.out)} --n {written}"]


def _with_facts(net: Fetcher, items: Iterator[Item]) -> Iterator[Item]:
    """Add to each item the size of its file, and the sha256 where the list has none, by the Hub. One request per 500 files."""
    while block := list(itertools.islice(items, huggingface.PATHS_PER_REQUEST)):
        by_repository: dict[str, list[str]] = {}
        for item in block:
            if address := huggingface.parse(item.url):
                by_repository.setdefault(address[0], []).append(address[1])
        facts: dict[tuple[str, str], tuple[int, str]] = {}
        for repo, paths in by_repository.items():
            facts |= {(repo, path): known for path, known in huggingface.facts(net, repo, paths).items()}
        for item in block:
            bytes_, sha256 = facts.get(huggingface.parse(item.url) or ("", ""), (0, ""))
            extra = item.extra | ({"size": bytes_} if bytes_ else {})
            yield dataclasses.replace(item, sha256=item.sha256 or sha256, extra=extra)
