"""A list of objects with their addresses, as `lvsm-data manifest` writes it; manifests/README.md says what a line means."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import licenses, transport
from pipeline.fetch import Fetcher
from pipeline.files import tables
from pipeline.flags import Listing
from pipeline.scene import Item, UserError

KIND = "object"
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
CREDIT = ("title", "author", "page")
batch, fetch_many, root_of, BATCH = (
    transport.batch,
    transport.fetch_many,
    transport.root_of,
    transport.FILES_PER_CHECKOUT,
)


def items(cfg: Listing, seed: int, net: Fetcher) -> Iterator[Item]:
    """The lines in their order. Raises UserError for a line without url or path, or two lines with one uid."""
    assert cfg.manifest is not None
    seen: set[str] = set()
    for number, row in enumerate(tables.rows(cfg.manifest), 1):
        item = _item(cfg.manifest, number, row)
        if item.uid in seen:
            raise UserError(f"{cfg.manifest}: uid {item.uid!r} appears twice (entry {number})", "uids must be unique")
        seen.add(item.uid)
        yield item
    if not seen:
        raise UserError(f"{cfg.manifest} lists no object", "`lvsm-data manifest --help` writes one")


def _item(manifest: Path, number: int, row: dict[str, Any]) -> Item:
    text = {name: str(value).strip() for name, value in row.items() if name and value not in (None, "")}
    url = text.get("url") or (str(manifest.parent / text["path"]) if "path" in text else "")
    if not url:
        raise UserError(
            f"{manifest}: entry {number} has neither url nor path", f"columns: {', '.join(n for n, _ in COLUMNS)}"
        )
    return Item(
        uid=text.get("uid") or text.get("path") or url,
        source=text.get("source", "manifest"),
        url=url,
        license=licenses.normalise(text.get("license")),
        sha256=text.get("sha256", "").lower(),
        credit={name: text[name] for name in CREDIT if name in text},
        extra=_extra(text),
    )


def _extra(text: dict[str, str]) -> dict[str, Any]:
    size = text.get("size", "")
    facts = {
        "id": text.get("file_identifier"),
        "type": text.get("file_type"),
        "size": int(size) if size.isdecimal() else None,
    }
    return {name: value for name, value in facts.items() if value}


def row_of(item: Item) -> dict[str, Any]:
    """An item as a line of a manifest: a value for every one of COLUMNS."""
    return {
        "uid": item.uid,
        "source": item.source,
        "url": item.url,
        "license": item.license,
        "sha256": item.sha256,
        "size": int(item.extra.get("size", 0)),
        "file_type": transport.file_type(item),
        **{name: item.credit.get(name, "") for name in CREDIT},
        "file_identifier": item.extra.get("id", ""),
    }
