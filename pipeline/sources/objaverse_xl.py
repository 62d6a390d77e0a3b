"""Objaverse-XL (Deitke et al., arXiv 2307.05663): ten million files of GitHub, Sketchfab, Thingiverse and the Smithsonian.

The lists are Parquet files of the Hub's allenai/objaverse-xl with the columns fileIdentifier, source, license, fileType,
sha256, metadata, kept at CACHE/<source>/<source>.parquet as the objaverse package (0.1.7) keeps them.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from pipeline import hub, licenses, selection, transport
from pipeline.fetch import Fetcher
from pipeline.flags import Listing
from pipeline.scene import Item, UserError, item_rng
from pipeline.sources import objaverse

KIND = "object"
SAYS = "Objaverse-XL (Hugging Face, GitHub, Smithsonian, Thingiverse)"
HOWTO = "--source objaverse-xl"
REPO = "allenai/objaverse-xl"
COLUMNS = ("fileIdentifier", "source", "license", "fileType", "sha256")
REPEATED = ("source", "license", "fileType")
BLOCK = 4096  # lines that are put in order together: files of one repository follow each other, to be fetched together
THING = re.compile(r"thing:(\d+)/files\?fileId=(\d+)")
batch, fetch_many, root_of, BATCH = (
    transport.batch,
    transport.fetch_many,
    transport.root_of,
    transport.FILES_PER_CHECKOUT,
)


def items(cfg: Listing, seed: int, net: Fetcher) -> Iterator[Item]:
    """All parts mixed, in an order that the seed and each file's sha256 give: what is left out moves nothing else.

    uid: Sketchfab's own for its objects, so that they match Objaverse 1.0; else uuid5 of the fileIdentifier, as in the
    objaverse package. Of files with the same sha256 the first is taken. Raises UserError where a list cannot be had.
    """
    tables = [_table(net, cfg, source) for source in sorted(cfg.xl_sources)]
    lines = _Lines(tables, selection.names(cfg))
    if not len(lines):
        raise UserError("no object of Objaverse-XL is among those asked for", "--uids and --scores narrow it together")
    sketchfab = objaverse.object_paths(net, cfg.cache) if "sketchfab" in cfg.xl_sources else {}
    order = np.argsort(
        lines.keys ^ item_rng(seed, "objaverse-xl", "order").integers(2**64, dtype=np.uint64), kind="stable"
    )
    last = None
    for start in range(0, len(order), BLOCK):
        block = []
        for row in lines.rows(order[start : start + BLOCK]):
            if row["sha256"] != last or not last:  # equal sums are neighbours in this order
                block.append(row)
            last = row["sha256"]
        for row in _grouped(block):
            yield _item(row, sketchfab)


def _grouped(block: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same lines, those of one repository and commit moved up to the first of them."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in block:
        groups.setdefault(transport.repository(row["fileIdentifier"]) or row["fileIdentifier"], []).append(row)
    return [row for group in groups.values() for row in group]


class _Lines:
    """Lines of several tables, numbered through. keys: (N,) uint64, from the sha256 sums."""

    def __init__(self, tables: list[Any], names: frozenset[str] | None) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        table = pa.concat_tables(tables).unify_dictionaries()
        if names is not None:
            wanted = pa.array(sorted(names), pa.string())
            uids = {_uuid5(name) for name in names}  # a list may hold identifiers or the uids made of them
            asked = pc.or_(pc.is_in(table["fileIdentifier"], wanted), pc.is_in(table["sha256"], wanted))
            if not pc.all(asked).as_py():
                asked = pc.or_(asked, _by_uid(table["fileIdentifier"], names - uids))
            table = table.filter(asked)
        self.table = table
        self.keys = _first_64_bits(table["sha256"])

    def __len__(self) -> int:
        return self.table.num_rows

    def rows(self, numbers: np.ndarray) -> list[dict[str, Any]]:
        """The lines of these numbers, in that order."""
        return list(self.table.take(numbers).to_pylist())


def _by_uid(identifiers: Any, names: frozenset[str]) -> Any:
    """Which identifiers have their uid among `names`: hashing millions takes half a minute, so only where it may help."""
    import pyarrow as pa

    if not any(re.fullmatch(r"[0-9a-f]{32}|[0-9a-f-]{36}", name) for name in names):
        return pa.array(np.zeros(len(identifiers), bool))
    return pa.array([_uid(identifier) in names for identifier in identifiers.to_pylist()], pa.bool_())


def _first_64_bits(sums: Any) -> np.ndarray:
    """sha256 sums in hex, any of them missing -> (N,) uint64."""
    return np.concatenate([np.zeros(0, np.uint64), *map(_heads, sums.chunks)])


def _heads(sums: Any) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    heads = pc.utf8_rpad(pc.utf8_slice_codeunits(pc.fill_null(sums, ""), 0, 16), 16, "0").cast(pa.binary(16))
    digits = np.frombuffer(heads.buffers()[1], np.uint8, 16 * len(heads), 16 * heads.offset)
    nibbles = (np.where(digits < 58, digits - 48, (digits | 32) - 87) & 15).reshape(-1, 16)
    return np.asarray(((nibbles[:, ::2] << 4) | nibbles[:, 1::2]).view(">u8").astype(np.uint64).reshape(-1))


def _table(net: Fetcher, cfg: Listing, source: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = hub.list_file(net, REPO, f"{source}/{source}.parquet", cfg.cache)
    try:
        table = pq.read_table(path, columns=list(COLUMNS), read_dictionary=list(REPEATED))
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise UserError(
            f"{path} is no list of Objaverse-XL: {error}", "remove it; the same command fetches it anew"
        ) from None
    if missing := set(COLUMNS) - set(table.column_names):
        raise UserError(f"{path} lacks the columns {', '.join(sorted(missing))}", "remove it; it is fetched anew")
    words = pa.dictionary(pa.int32(), pa.string())
    return table.cast(pa.schema([(name, words if name in REPEATED else pa.string()) for name in COLUMNS]))


def _item(row: dict[str, Any], sketchfab: dict[str, str]) -> Item:
    identifier, source = row["fileIdentifier"], row["source"] or ""
    sha256, extra = (
        (row["sha256"] or "").lower(),
        {"id": identifier, "type": (row["fileType"] or "").lower().lstrip(".")},
    )
    if source == "sketchfab":
        uid = _uid(identifier)
        facts, path = (
            {"license": row["license"], "viewerUrl": identifier},
            sketchfab.get(uid, f"glbs/unknown/{uid}.glb"),
        )
        return objaverse.item_of(uid, path, facts, source, sha256=sha256, extra=extra)
    credit, url = {"page": identifier}, identifier
    if source == "github":
        organization, repository, path = transport.github_parts(identifier) or ("", "", "")[:3]
        credit |= {"title": path.rsplit("/", 1)[-1], "author": f"{organization}/{repository}"}
    elif thing := THING.search(identifier):
        url = f"https://www.thingiverse.com/download:{thing[2]}"
        credit |= {"page": f"https://www.thingiverse.com/thing:{thing[1]}"}
        extra |= {"cached": f"thingiverse/thing-{thing[1]}-file-{thing[2]}.stl"}
    elif source == "smithsonian":
        credit |= {"title": unquote(urlsplit(identifier).path).rsplit("/", 1)[-1], "author": "Smithsonian Institution"}
        extra |= {"cached": f"smithsonian/objects/{_uuid5(identifier)}.glb"}
    license_name = licenses.normalise(row["license"])
    return Item(_uid(identifier), source, url, license_name, sha256, {k: v for k, v in credit.items() if v}, extra)


def _uid(identifier: str) -> str:
    if identifier.startswith(objaverse.PAGE):
        return identifier[len(objaverse.PAGE) :]
    return _uuid5(identifier)


def _uuid5(identifier: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, identifier))
