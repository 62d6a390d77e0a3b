"""Objaverse-XL (Deitke et al., arXiv 2307.05663): ten million files of GitHub, Sketchfab, Thingiverse and the Smithsonian.

The lists are Parquet files of the Hub's allenai/objaverse-xl with the columns fileIdentifier, source, license, fileType,
sha256, metadata, kept at CACHE/<source>/<source>.parquet as the objaverse package (0.1.7) keeps them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from objaverse.utils import get_uid_from_str

from pipeline import sources
from pipeline.config.shared import Listing
from pipeline.core import licenses
from pipeline.core.errors import UserError
from pipeline.core.records import Item, item_rng
from pipeline.download import huggingface, route
from pipeline.download.fetch import Fetcher
from pipeline.sources import objaverse

SAYS = "Objaverse-XL (Hugging Face, GitHub, Smithsonian, Thingiverse)"
HOWTO = "--source objaverse-xl"
REPO = "allenai/objaverse-xl"
COLUMNS = ("fileIdentifier", "source", "license", "fileType", "sha256")
REPEATED = ("source", "license", "fileType")
LINES, WINDOW = 1 << 16, 1 << 20  # lines read at once, lines held in memory
BLOCK = 4096  # lines grouped together: files of one repository follow each other, to be fetched together
UID = re.compile(r"[0-9a-f]{32}|[0-9a-f-]{36}")
THING = re.compile(r"thing:(\d+)/files\?fileId=(\d+)")
batch, fetch_many, root_of = route.batch, route.fetch_many, route.root_of
BATCH = route.FILES_PER_CHECKOUT


def items(cfg: Listing, seed: int, net: Fetcher) -> Iterator[Item]:
    """List all parts mixed, ordered by the seed and each file's sha256: leaving lines out does not move the others.

    uid: Sketchfab's own for its objects, so that they match Objaverse 1.0; else the objaverse package's, a hash of the
    fileIdentifier. Of files with the same sha256 the first is taken. Raises UserError where a list cannot be had.
    """
    lists = [
        huggingface.list_file(net, REPO, f"{source}/{source}.parquet", cfg.cache) for source in sorted(cfg.xl_sources)
    ]
    lines = _Lines(lists, sources.asked_for(cfg))
    if not len(lines):
        raise UserError("no object of Objaverse-XL is among those asked for", "--uids and --scores narrow it together")
    sketchfab = objaverse.object_paths(net, cfg.cache) if "sketchfab" in cfg.xl_sources else {}
    order = np.argsort(
        lines.keys ^ item_rng(seed, "objaverse-xl", "order").integers(2**64, dtype=np.uint64), kind="stable"
    )
    last = None
    for rows in lines.blocks(order):
        block = []
        for row in rows:
            if row["sha256"] != last or not last:  # equal sums are neighbours in this order
                block.append(row)
            last = row["sha256"]
        for row in _grouped(block):
            yield _item(row, sketchfab)


def _grouped(block: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reorder lines: those of one repository and commit are moved up to the first of them."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in block:
        groups.setdefault(route.repository(row["fileIdentifier"]) or row["fileIdentifier"], []).append(row)
    return [row for group in groups.values() for row in group]


class _Lines:
    """Lines of several lists, numbered consecutively: those of `names`, or all. keys: (N,) uint64, from the sha256 sums.

    Ten million lines would be 4 GB. So only their keys are kept; the lines are read again, WINDOW of them at a time.
    """

    def __init__(self, lists: list[Path], names: frozenset[str] | None) -> None:
        self.lists = lists
        wanted = None if names is None else _Wanted(names)
        keys, chosen, first = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], 0
        for rows in _read(lists, COLUMNS if names is None else ("fileIdentifier", "sha256")):
            asked = np.ones(len(rows), bool) if wanted is None else wanted.among(rows)
            chosen.append(first + np.flatnonzero(asked))
            keys.append(_heads(rows.column("sha256"))[asked])
            first += len(rows)
        self.chosen, self.keys = np.concatenate(chosen), np.concatenate(keys)

    def __len__(self) -> int:
        return len(self.keys)

    def blocks(self, order: np.ndarray) -> Iterator[list[dict[str, Any]]]:
        """Yield the lines in the order of `order`, (N,) indices into keys, BLOCK at a time."""
        for start in range(0, len(order), WINDOW):
            numbers = self.chosen[order[start : start + WINDOW]]
            ascending = np.sort(numbers)
            window = self._window(ascending)
            for place in range(0, len(numbers), BLOCK):
                yield window.take(np.searchsorted(ascending, numbers[place : place + BLOCK])).to_pylist()

    def _window(self, ascending: np.ndarray) -> Any:
        """Arrow table of the lines with these numbers, which ascend."""
        import pyarrow as pa

        parts, first = [], 0
        for rows in _read(self.lists, COLUMNS):
            low, high = np.searchsorted(ascending, [first, first + len(rows)])
            if low < high:
                parts.append(rows.take(pa.array(ascending[low:high] - first)))
            first += len(rows)
        return pa.Table.from_batches(parts).unify_dictionaries().combine_chunks()


class _Wanted:
    """Test for lines that `names` has, by identifier, sha256, or the uid made of the identifier."""

    def __init__(self, names: frozenset[str]) -> None:
        import pyarrow as pa

        self.names = pa.array(sorted(names), pa.string())
        uids = names - {get_uid_from_str(name) for name in names}
        self.uids = uids if any(map(UID.fullmatch, uids)) else frozenset[str]()  # hashing millions of lines takes 30 s

    def among(self, rows: Any) -> np.ndarray:
        """Mask (N,) bool of the rows of a record batch that were named."""
        import pyarrow.compute as pc

        identifiers = rows["fileIdentifier"]
        found = pc.or_(pc.is_in(identifiers, self.names), pc.is_in(rows["sha256"], self.names))
        asked = np.asarray(found.to_numpy(zero_copy_only=False), bool)
        if self.uids and not asked.all():
            asked = asked | np.array([_uid(identifier) in self.uids for identifier in identifiers.to_pylist()], bool)
        return asked


def _heads(sums: Any) -> np.ndarray:
    """First 64 bits of sha256 sums in hex, (N,) uint64; a missing sum counts as zeros."""
    import pyarrow as pa
    import pyarrow.compute as pc

    heads = pc.utf8_rpad(pc.utf8_slice_codeunits(pc.fill_null(sums, ""), 0, 16), 16, "0").cast(pa.binary(16))
    digits = np.frombuffer(heads.buffers()[1], np.uint8, 16 * len(heads), 16 * heads.offset)
    nibbles = (np.where(digits < 58, digits - 48, (digits | 32) - 87) & 15).reshape(-1, 16)
    return np.asarray(((nibbles[:, ::2] << 4) | nibbles[:, 1::2]).view(">u8").astype(np.uint64).reshape(-1))


def _read(lists: list[Path], columns: Sequence[str]) -> Iterator[Any]:
    """Yield record batches with these columns from all lists. UserError if a list cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    words = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema([(name, words if name in REPEATED else pa.string()) for name in columns])
    for path in lists:
        try:
            with pq.ParquetFile(path, read_dictionary=list(REPEATED), pre_buffer=False) as file:
                if missing := set(COLUMNS) - set(file.schema_arrow.names):
                    lacks = f"{path} lacks the columns {', '.join(sorted(missing))}"
                    raise UserError(lacks, "remove it; it is fetched anew")
                for batch in file.iter_batches(LINES, columns=list(columns)):
                    yield batch.select(list(columns)).cast(schema)
        except (pa.ArrowInvalid, KeyError, OSError) as error:
            raise UserError(
                f"{path} is no list of Objaverse-XL: {error}", "remove it; the same command fetches it anew"
            ) from None


def _item(row: dict[str, Any], sketchfab: dict[str, str]) -> Item:
    identifier, source = row["fileIdentifier"], row["source"] or ""
    sha256 = (row["sha256"] or "").lower()
    extra = {"id": identifier, "type": (row["fileType"] or "").lower().lstrip(".")}
    if source == "sketchfab":
        uid = _uid(identifier)
        facts = {"license": row["license"], "viewerUrl": identifier}
        path = sketchfab.get(uid, f"glbs/unknown/{uid}.glb")
        return objaverse.item_of(uid, path, facts, source, sha256=sha256, extra=extra)
    credit, url = {"page": identifier}, identifier
    if source == "github":
        organization, repository, path = route.github_parts(identifier) or ("", "", "")[:3]
        credit |= {"title": path.rsplit("/", 1)[-1], "author": f"{organization}/{repository}"}
    elif thing := THING.search(identifier):
        url = f"https://www.thingiverse.com/download:{thing[2]}"
        credit |= {"page": f"https://www.thingiverse.com/thing:{thing[1]}"}
        extra |= {"cached": f"thingiverse/thing-{thing[1]}-file-{thing[2]}.stl"}
    elif source == "smithsonian":
        credit |= {"title": unquote(urlsplit(identifier).path).rsplit("/", 1)[-1], "author": "Smithsonian Institution"}
        extra |= {"cached": f"smithsonian/objects/{get_uid_from_str(identifier)}.glb"}
    license_name = licenses.normalise(row["license"])
    return Item(_uid(identifier), source, url, license_name, sha256, {k: v for k, v in credit.items() if v}, extra)


def _uid(identifier: str) -> str:
    if identifier.startswith(objaverse.PAGE):
        return identifier[len(objaverse.PAGE) :]
    return get_uid_from_str(identifier)
