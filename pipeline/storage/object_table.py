"""Table of a shard's objects, which its footer holds: what lists and filters objects need not read them. docs/shard_format.md"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.shards import CAPTION, OBJECTS_KEY, facts_in, numbers, open_shard, subject_of

OBJECT_COLUMNS = ("uid", "view", "c2w", "source", "license", "meta", "frame", CAPTION)  # that they are made from
UNLISTED = ("url", "blender", "device")  # facts of one value that no list of objects needs
TEXT_CHARS = 300  # of a text among these facts


def facts_of_objects(rows: pa.Table, counts: Sequence[int], run: dict[str, Any]) -> dict[str, list[Any]]:
    """Facts by name, a value for each object or None, from the rows of objects at any number of resolutions, without pictures.

    counts: rows of each. run: as of `facts_of`. uid, views, source, license, caption; whatever their `meta` has of one value
    (coverage, polygons, textured, ...); cameras and camera_score: what was found of given cameras. Of objects, where their
    cameras are, from the world's origin: elevation_min, elevation_max in degrees, distance_min, distance_max in units.
    """
    if not len(counts):
        return {}
    starts = np.cumsum(counts) - counts
    own = [name for name in ("uid", "source", "license", CAPTION, "meta") if name in rows.column_names]
    views = np.maximum.reduceat(rows["view"].to_numpy(), starts) + 1
    where: dict[str, np.ndarray] = {}
    if subject_of(run, rows.column_names) == "objects":
        where = _ranges(numbers(rows["c2w"]).reshape(-1, 4, 4)[:, :3, 3].astype(float), starts)
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
        return _told(pq.read_metadata(path))
    except (pa.ArrowInvalid, ValueError):  # told where its objects are read
        return {}


def _told(footer: pq.FileMetaData) -> dict[str, list[Any]]:
    """Table of objects of a footer, {} where there is none of these row groups: whoever rewrites a file may keep an old one."""
    found, count = json.loads((footer.metadata or {}).get(OBJECTS_KEY, b"{}")), footer.num_row_groups
    if not isinstance(found, dict) or not all(isinstance(of, list) and len(of) == count for of in found.values()):
        return {}
    uids = found.get("uid", [])
    looked = {0, count // 2, count - 1} if uids else set()  # all of them would take as long as reading without a table
    sound = all(isinstance(uid, str) for uid in uids) and all(_least(footer, at) in (None, uids[at]) for at in looked)
    return found if sound else {}


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
