"""All of one shard but its images: which objects it holds, where their JPEGs lie, and their cameras."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core import cameras
from pipeline.core.errors import UserError
from pipeline.core.records import HELD_OUT
from pipeline.storage.object_table import uid_of
from pipeline.storage.shards import IMAGE_SHA, INTRINSICS, LAYERS, ROLE, TIME, facts_in, open_shard, subject_of

HINT = "`lvsm-data verify` says what is broken; a shard that is moved away is left out"


@dataclass(frozen=True)
class ShardIndex:
    """An Index's part from one shard file. subject: see `shards.subject_of`. layers: which of LAYERS it has. views: (n,) number
    of views per object. hw: (m, 2) stored size of each view. time: (m,) float32, see `shares_of_time`.
    sha: (m,) checksums of pictures, 0 without. licenses: number of
    objects per license."""

    subject: str
    layers: list[str]
    uids: list[str]
    views: np.ndarray
    chunk: np.ndarray
    c2w: np.ndarray
    fxfycxcy: np.ndarray
    hw: np.ndarray
    frame: np.ndarray
    time: np.ndarray
    trains: np.ndarray
    sha: np.ndarray
    licenses: dict[str, int]


def read_shard(path: Path) -> ShardIndex:
    """Read all but the images of one shard. Raises UserError for a broken file."""
    with reading(path), open_shard(path) as file:
        facts = facts_in(file.schema_arrow, str(path))
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        names = [groups[0].column(i).path_in_schema for i in range(groups[0].num_columns)] if groups else []
        if any(name.startswith(INTRINSICS["ortho"]) for name in names):
            raise UserError(
                f"{path} holds orthographic views, and LVSM's rays are those of pinholes",
                "train on pictures that were rendered without --projection ortho",
            )
        pictures = names.index("image.bytes")
        subject, layers = subject_of(facts, names), [name for name in LAYERS if name in names]
        optional = [name for name in ("frame", TIME, ROLE, IMAGE_SHA) if name in names]
        table = file.read(["height", "width", "c2w", "fxfycxcy", "license", *optional], use_threads=False)
        uids = [uid_of(file, number) for number in range(len(groups))]
    views = np.array([group.num_rows for group in groups])
    licenses = Counter(table["license"].take(np.cumsum(views) - views).to_pylist())
    chunk = np.array([_chunk(group.column(pictures)) for group in groups])
    counted = np.concatenate([np.arange(count) for count in views])
    c2w, k = _numbers(table["c2w"]).reshape(-1, 4, 4), _numbers(table["fxfycxcy"]).reshape(-1, 4)
    if len(c2w) != len(counted) or not (np.isfinite(c2w).all() and np.isfinite(k).all() and (k[:, :2] > 0).all()):
        raise UserError(f"{path} has cameras that are none", HINT)
    try:
        cameras.check_rigid(c2w)
    except ValueError as error:
        raise UserError(f"{path} has poses that are not rigid: {error}", HINT) from None
    hw = np.stack([table["height"].to_numpy(), table["width"].to_numpy()], -1).astype(int)
    frame = table["frame"].to_numpy() if "frame" in optional else counted
    time = np.zeros(len(counted), np.float32)
    if TIME in optional:
        time = shares_of_time(table[TIME].to_numpy().astype(float), views)
    roles = table[ROLE].to_numpy() if ROLE in optional else np.full(len(counted), "")
    trains = ~np.isin(roles.astype(str), HELD_OUT)
    sha = table[IMAGE_SHA].to_numpy() if IMAGE_SHA in optional else np.zeros(len(c2w), np.uint64)
    return ShardIndex(subject, layers, uids, views, chunk, c2w, k, hw, frame, time, trains, sha, dict(licenses))


def shares_of_time(times: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Times (m,) of the views of objects that have `views` of them each, NaN for none -> (m,) float32: 0 at an object's first
    time, 1 at its last one, whatever their unit; 0 where an object has one alone, and of views without."""
    starts = np.cumsum(views) - views
    first, last = (np.repeat(end.reduceat(times, starts), views) for end in (np.fmin, np.fmax))  # which pass over NaN
    with np.errstate(all="ignore"):
        return np.nan_to_num(np.where(last > first, (times - first) / (last - first), 0)).astype(np.float32)


def _chunk(column: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """Offset and length of a column chunk that `parquet_pages` can read, else zeros."""
    plain = column.compression == "UNCOMPRESSED" and set(column.encodings) <= {"PLAIN", "RLE"}
    return (column.data_page_offset, column.total_compressed_size) if plain else (0, 0)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.combine_chunks().flatten(), np.float32)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a missing or broken file raises into a UserError that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, TypeError, KeyError, IndexError) as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> UserError:
    """Error to tell the user of a file that raised one."""
    return UserError(f"{path} cannot be read: {error}", HINT)
