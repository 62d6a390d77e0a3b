"""Table of a shard's objects, which its footer holds: what lists and filters objects need not read them. docs/shard_format.md"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.records import instants
from pipeline.storage.shards import CAPTION, FOOTER_KEY, OBJECTS_KEY, TIME, facts_in, numbers, open_shard, subject_of

OBJECT_COLUMNS = ("uid", "view", "c2w", "source", "license", "meta", "frame", TIME, CAPTION)  # that they are made from
UNLISTED = ("url", "blender", "device")  # facts of one value that no list of objects needs
TEXT_CHARS = 300  # of a text among these facts
TAIL = b"PAR1"  # last bytes of a Parquet file, after its footer and the length of that
TEXT = b"\x18"  # before each text of a pair in a footer


def facts_of_objects(rows: pa.Table, counts: Sequence[int], run: dict[str, Any]) -> dict[str, list[Any]]:
    """Facts by name, a value for each object or None, from the rows of objects at any number of resolutions, without pictures.

    counts: rows of each. run: as of `facts_of`. uid, views, source, license, caption; whatever their `meta` has of one value
    (coverage, polygons, textured, ...); cameras and camera_score: what was found of given cameras; instants: number of times
    of the views of what moves. Of objects, where their cameras are, from the world's origin: elevation_min, elevation_max in
    degrees, distance_min, distance_max in units.
    """
    if not len(counts):
        return {}
    starts = np.cumsum(counts) - counts
    own = [name for name in ("uid", "source", "license", CAPTION, "meta") if name in rows.column_names]
    views = np.maximum.reduceat(rows["view"].to_numpy(), starts) + 1
    where: dict[str, np.ndarray] = {}
    if subject_of(run, rows.column_names) == "objects":
        where = _ranges(numbers(rows["c2w"]).reshape(-1, 4, 4)[:, :3, 3].astype(float), starts)
    times = rows[TIME].to_pylist() if TIME in rows.column_names else []
    told = []
    for number, first in enumerate(rows.select(own).take(starts).to_pylist()):
        meta = json.loads(first.pop("meta"))
        more = {CAPTION: first.pop(CAPTION)} if CAPTION in first else {}
        more |= {
            name: meta[name] for name in meta if isinstance(meta[name], str | int | float) and name not in UNLISTED
        }
        if isinstance(fit := meta.get("cameras_fit"), dict):
            more |= {"cameras": fit.get("says"), "camera_score": fit.get("score")}
        more |= {name: float(values[number]) for name, values in where.items()}
        different = instants(times[starts[number] : starts[number] + counts[number]])
        more |= {"instants": different} if different > 1 else {}
        kept = {name: one[:TEXT_CHARS] if isinstance(one, str) else one for name, one in more.items() if _is_json(one)}
        told.append(kept | first | {"views": int(views[number])})
    names = dict.fromkeys(name for one in told for name in one)
    return {name: [one.get(name) for one in told] for name in names}


def _is_json(value: Any) -> bool:
    """True for what JSON has a word for, and is no null."""
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _ranges(centres: np.ndarray, starts: np.ndarray) -> dict[str, np.ndarray]:
    """Ranges of elevations and distances of camera centres (N, 3) of objects that begin at `starts`; nan where none is known."""
    with np.errstate(all="ignore"):
        distances = np.linalg.norm(centres, axis=1)
        distances = np.where(distances > 0, distances, np.nan)
        elevations = np.degrees(np.arcsin(centres[:, 2] / distances))
    found = {"elevation": elevations.round(1), "distance": distances.round(3)}
    least = {f"{name}_min": np.fmin.reduceat(of, starts) for name, of in found.items()}  # which pass over nan
    return least | {f"{name}_max": np.fmax.reduceat(of, starts) for name, of in found.items()}


def uid_of(file: pq.ParquetFile, group: int) -> str:
    """Uid of the object in a row group of a shard, from the footer if it is there."""
    return _least(file.metadata, group) or str(file.read_row_group(group, ["uid"])["uid"][0].as_py())


def objects_at_end(file: IO[bytes]) -> dict[str, list[Any]]:
    """Facts of a shard's objects from its last bytes, {} where these do not vouch for them: see `objects_in` for the others.

    A footer's row groups, which take eight times as long to parse, are not looked at: that the footer is where the one stood
    that the table was written into shows that nobody has rewritten the file.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(TAIL) - 4))
    length, tail = int.from_bytes(file.read(4), "little"), file.read()
    start = size - len(TAIL) - 4 - length
    if tail != TAIL or start < 0:
        return {}
    file.seek(start)
    footer = file.read(length)
    if _value(footer, FOOTER_KEY) != str(start).encode():
        return {}
    return _table(_value(footer, OBJECTS_KEY))


def _value(footer: bytes, key: bytes) -> bytes:
    """Value of a key in the bytes of a footer, b"" without: texts in Thrift's compact protocol, each a byte, length and bytes."""
    before = TEXT + bytes([len(key)]) + key + TEXT
    found = footer.rfind(before)
    if found < 0:
        return b""
    at, size, shift = found + len(before), 0, 0
    for number in footer[at : at + 10]:  # seven bits each, the lowest first
        at, size, shift = at + 1, size | (number & 127) << shift, shift + 7
        if number < 128:
            break
    return footer[at : at + size]


def objects_in(file: pq.ParquetFile) -> dict[str, list[Any]]:
    """Facts of a shard's objects, see `facts_of_objects`: from its footer, or, of an earlier version's shard, from its rows."""
    if told := _told(file.metadata):
        return told
    there = file.schema_arrow.names
    rows = file.read([name for name in OBJECT_COLUMNS if name in there], use_threads=False)
    counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return facts_of_objects(rows, counts, facts_in(file.schema_arrow, "it"))


def objects_told(path: Path) -> dict[str, list[Any]]:
    """Facts of a shard's objects as its footer has them: {} of an earlier version's, and of a file that is none."""
    try:
        with path.open("rb") as file:
            return objects_at_end(file) or _told(pq.read_metadata(file))
    except (pa.ArrowInvalid, ValueError):  # told where its objects are read
        return {}


def _told(footer: pq.FileMetaData) -> dict[str, list[Any]]:
    """Table of objects of a footer, {} where there is none of these row groups: whoever rewrites a file may keep an old one."""
    found, count = _table((footer.metadata or {}).get(OBJECTS_KEY, b"")), footer.num_row_groups
    uids = found.get("uid", [])
    if len(uids) != count:
        return {}
    looked = {0, count // 2, count - 1} if uids else set()  # all of them would take as long as reading without a table
    return found if all(_least(footer, at) in (None, uids[at]) for at in looked) else {}


def _table(text: bytes) -> dict[str, list[Any]]:
    """Table of objects as a footer has it, {} where it is none. Raises ValueError for what is no JSON."""
    found = json.loads(text or b"{}")
    columns = list(found.values()) if isinstance(found, dict) else []
    if not all(isinstance(of, list) for of in columns) or len({len(of) for of in columns}) != 1 or "uid" not in found:
        return {}
    return dict(found) if all(isinstance(uid, str) for uid in found["uid"]) else {}


def _least(footer: pq.FileMetaData, group: int) -> str | None:
    """Uid of a row group as its statistics have it, None without."""
    statistics = footer.row_group(group).column(0).statistics  # of `uid`, equal in all rows
    known = statistics is not None and statistics.has_min_max and isinstance(statistics.min, str)
    return str(statistics.min) if known else None


def uids_in(file: pq.ParquetFile) -> list[str]:
    """Uids of the objects of a shard, in order, from the footer if they are there."""
    return _told(file.metadata).get("uid") or [uid_of(file, group) for group in range(file.num_row_groups)]


def uids_of(path: Path) -> list[str]:
    """Uids of the objects of a shard file, in order."""
    with open_shard(path) as file:
        return uids_in(file)
