"""A list of objects with their addresses, as `lvsm-data manifest` writes it; manifests/README.md says what a line means."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config.shared import Listing
from pipeline.core import licenses
from pipeline.core.errors import UserError
from pipeline.core.records import Item
from pipeline.download import route
from pipeline.download.fetch import Fetcher
from pipeline.formats import tables
from pipeline.storage.uids import Uids

SAYS = "the objects of a manifest"
HOWTO = "--manifest FILE"
COLUMNS: tuple[tuple[str, type], ...] = (
    ("uid", str),
    ("source", str),
    ("url", str),
    ("license", str),
    ("sha256", str),
    ("size", int),
    ("file_type", str),
    ("title", str),
    ("author", str),
    ("page", str),
    ("file_identifier", str),
)
LEAVES_OUT = True  # `items` takes the uids that have ended
CREDIT = ("title", "author", "page")
READ = ("uid", "path", "url", "source", "license", "sha256", "size", "file_type", "file_identifier", *CREDIT)
batch, fetch_many, root_of = route.batch, route.fetch_many, route.root_of
BATCH = route.FILES_PER_CHECKOUT


def items(cfg: Listing, seed: int, net: Fetcher, ended: Uids | None = None) -> Iterator[Item]:
    """Items of the lines in their order. ended: uids to leave out, so that resuming a list of millions costs little.

    Raises UserError for a line without url or path, or two lines with one uid.
    """
    assert cfg.manifest is not None
    first, seen = 1, Uids()  # the number of a block's first line
    for block in tables.blocks(cfg.manifest, READ):
        uids = _uids(cfg.manifest, first, block)
        if (place := seen.known(uids)) is not None:
            twice = f"uid {uids[place]!r} appears twice (entry {first + place})"
            raise UserError(f"{cfg.manifest}: {twice}", "uids must be unique")
        if ended and len(left := ended.fresh(uids)) < len(uids):
            block = {name: [values[place] for place in left] for name, values in block.items()}
        yield from _block(cfg.manifest, block)
        first += len(uids)
    if first == 1:
        raise UserError(f"{cfg.manifest} lists no object", "`lvsm-data manifest --help` writes one")


def _uids(manifest: Path, first: int, block: dict[str, list[Any]]) -> list[str]:
    """uids of a block of lines, a list per column. first: number of the block's first line. Raises UserError."""
    uids, paths, urls = (_texts(block, name) for name in ("uid", "path", "url"))
    for place, (path, url) in enumerate(zip(paths, urls, strict=True)):
        if not url and not path:
            columns = f"columns: {', '.join(n for n, _ in COLUMNS)}"
            raise UserError(f"{manifest}: entry {first + place} has neither url nor path", columns)
    return [uid or path or url for uid, path, url in zip(uids, paths, urls, strict=True)]


def _block(manifest: Path, block: dict[str, list[Any]]) -> Iterator[Item]:
    """Items of a block of lines, a list per column."""
    columns = [_texts(block, name) for name in READ]
    normalise = functools.cache(licenses.normalise)
    for uid, path, url, source, license_name, sha256, size, file_type, identifier, *credit in zip(
        *columns, strict=True
    ):
        extra: dict[str, Any] = {"id": identifier} if identifier else {}
        if file_type:
            extra["type"] = file_type
        if size.isdecimal() and int(size):
            extra["size"] = int(size)
        yield Item(
            uid=uid or path or url,
            source=source or "manifest",
            url=url or str(manifest.parent / path),
            license=normalise(license_name),
            sha256=sha256.lower(),
            credit={name: value for name, value in zip(CREDIT, credit, strict=True) if value},
            extra=extra,
        )


def _texts(block: dict[str, list[Any]], name: str) -> list[str]:
    """One column of a block as stripped strings; empty strings for missing values, or a missing column."""
    count = len(next(iter(block.values())))
    return ["" if value is None else str(value).strip() for value in block.get(name, [None] * count)]


def row_of(item: Item) -> dict[str, Any]:
    """Convert an item to a line of a manifest: a value for every one of COLUMNS."""
    return {
        "uid": item.uid,
        "source": item.source,
        "url": item.url,
        "license": item.license,
        "sha256": item.sha256,
        "size": int(item.extra.get("size", 0)),
        "file_type": route.file_type(item),
        **{name: item.credit.get(name, "") for name in CREDIT},
        "file_identifier": item.extra.get("id", ""),
    }
