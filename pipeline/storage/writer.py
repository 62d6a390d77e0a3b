"""Write scenes into shards: first a crash-safe journal, then Parquet. See docs/shard_format.md.

A finished object is appended to a journal (one checksummed record, all resolutions together), so that a killed process loses
nothing that was rendered. A full journal becomes one Parquet file per resolution, written under a temporary name, fsynced and
renamed; then the journal is deleted. A name that ends in .parquet is complete; while a journal exists, the journal is the truth.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core.disk import fsync, replacing
from pipeline.core.records import Packed, Scene, video_of
from pipeline.storage import journal as journals
from pipeline.storage.object_table import OBJECT_COLUMNS, facts_of_objects
from pipeline.storage.shards import (
    CAPTION,
    CONVENTION,
    ENTRY_COLUMNS,
    FOOTER_KEY,
    FORMAT_VERSION,
    IMAGE_SHA,
    INTRINSICS,
    LAYERS,
    METADATA_KEY,
    NUMBERS,
    OBJECTS_KEY,
    PNGS,
    ROLE,
    TIME,
    Entry,
    Shard,
    entries_of,
    image_sha,
    intrinsics_column,
    is_web,
    schema,
    shard_name,
    shard_paths,
)

FSYNC_BYTES = 16_000_000  # bytes that a power cut may lose; a killed process loses none
TOGETHER = 32  # objects joined into one table for writing: a call for each takes twice the time
SMALL = 128  # bytes of a column per row group, below which it stays uncompressed
# bytes by which an object may be larger in a shard than in a journal: its row group's share of the footer
PARQUET_EXTRA = 8192


@dataclass
class _Journal:
    """Open shard: first a record with the schema, then one per object, with its rows at all resolutions."""

    path: Path
    sink: FileIO
    image_bytes: int = 0
    unsynced: int = 0


class ShardWriter:
    """Write scenes into OUT/<width>/<split>-NNNNNN.parquet. One process, one writer per folder.

    widths: resolutions of every scene. metadata: run-level facts for the file metadata. target_bytes: size at which a
    shard is closed, counted in image bytes of the largest width.
    """

    def __init__(
        self,
        out: Path,
        widths: tuple[int, ...],
        optional: tuple[str, ...],
        metadata: dict[str, Any],
        target_bytes: float,
    ) -> None:
        self.out = out
        self.widths = widths
        begun, later = _begun_with(out, widths), (IMAGE_SHA, ROLE, TIME)
        names = (*optional, IMAGE_SHA)
        self.schema = schema(tuple(name for name in names if begun is None or name in begun or name not in later))
        self.pack = Packer(self.schema, metadata["config_hash"])
        self.metadata = metadata
        self.target_bytes = target_bytes
        self.open: dict[str, _Journal] = {}  # by shard name
        for width in widths:
            (out / str(width)).mkdir(parents=True, exist_ok=True)
        (out / "journal").mkdir(exist_ok=True)

    def add(self, scene: Scene | Packed, split: str, next_number: int) -> tuple[str, bool]:
        """Append one scene durably. Returns its shard's name, and True if the shard is now full and waits for `publish`,
        which may be called in another thread.

        next_number: the number of a new shard, used only when none of this split is open.
        """
        name = next((name for name in self.open if name.startswith(split)), shard_name(split, next_number))
        packed = self.pack(scene)
        self.append(name, packed)
        self.open[name].image_bytes += packed.widest_bytes
        full = self.open[name].image_bytes >= self.target_bytes
        if full:
            self.open.pop(name).sink.close()
        return name, full

    def append(self, name: str, packed: Packed) -> None:
        """Append one scene durably to the shard `name`. Raises OSError, with nothing written, if the disk is full."""
        journal = self.open.get(name) or self._start(name)
        journals.append(journal.sink, packed.record)
        journal.unsynced += len(packed.record)
        if journal.unsynced > FSYNC_BYTES:
            fsync(journal.path)
            journal.unsynced = 0

    def close(self, split: str) -> Shard | None:
        """Publish the open journal of a split as Parquet files. None if no journal is open."""
        return next((self.publish(name) for name in list(self.open) if name.startswith(split)), None)

    def recover(self) -> list[Shard]:
        """Publish the journals that a killed run left behind, after removing its half-written files."""
        return [shard for path in self._left_behind() if (shard := self.publish(path.stem))]

    def reopen(self) -> dict[str, list[Entry]]:
        """Reopen the journals that a killed run left behind. Returns shard name -> the objects in its journal."""
        found: dict[str, list[Entry]] = {}
        for path in self._left_behind():
            batches, end = journals.mend(path)
            found[path.stem] = entries_of(batches, len(self.widths))
            journal = _Journal(path, path.open("ab", buffering=0))
            os.ftruncate(journal.sink.fileno(), end)
            if not end:  # not even its schema was written
                journals.append(journal.sink, self.schema.serialize())
            self.open[path.stem] = journal
        return found

    def _left_behind(self) -> list[Path]:
        """Journals of a killed run, sorted; its half-written Parquet files are removed."""
        for width in self.widths:
            for half_written in (self.out / str(width)).glob("*.tmp"):
                half_written.unlink()
        return journals.left_in(self.out)

    def publish(self, name: str, order: Sequence[str] = ()) -> Shard | None:
        """Turn a journal into the Parquet files of its shard and delete the journal. None (and no files) if it is empty.

        order: uids in the order in which the shard shall hold them (default: as appended). May be called again after an OSError.
        """
        path = self.out / "journal" / f"{name}.arrow"
        batches = journals.read(path)
        if order:
            place = {uid: number for number, uid in enumerate(order)}
            batches.sort(key=lambda batch: place[batch.column("uid")[0].as_py()])
        file_bytes = 0
        if batches:
            rows = pa.Table.from_batches(batches).select([name for name in self.schema.names if name in OBJECT_COLUMNS])
            told = facts_of_objects(rows, [batch.num_rows for batch in batches], self.metadata)
            objects = json.dumps(told, separators=(",", ":"))
            for width in self.widths:
                file_bytes += self._write_parquet(name, width, batches, objects)
        entries = tuple(entries_of(batches, len(self.widths)))
        if journal := self.open.pop(name, None):
            journal.sink.close()
        path.unlink()
        return Shard(name, entries, file_bytes) if batches else None

    def leave(self) -> None:
        """Close open journals as they are, for a session that will `reopen` them."""
        while self.open:
            self.open.popitem()[1].sink.close()

    def _start(self, name: str) -> _Journal:
        path = self.out / "journal" / f"{name}.arrow"
        sink = path.open("wb", buffering=0)
        try:
            journals.append(sink, self.schema.serialize())
        except OSError:
            sink.close()
            raise
        self.open[name] = _Journal(path, sink)
        return self.open[name]

    def _write_parquet(self, name: str, width: int, batches: list[pa.RecordBatch], objects: str) -> int:
        final = self.out / str(width) / f"{name}.parquet"
        facts = json.dumps(self.metadata | {"width": width, "format_version": FORMAT_VERSION, "convention": CONVENTION})
        with_facts = self.schema.with_metadata((self.schema.metadata or {}) | {METADATA_KEY: facts.encode()})
        with (
            replacing(final, sync=True) as temporary,
            pq.ParquetWriter(
                temporary,
                with_facts,
                compression=dict.fromkeys(_compressible(batches[:TOGETHER], len(self.widths)), "zstd"),
                use_dictionary=False,  # zstd alone packs a group's repeated values smaller than a dictionary page does
                column_encoding={"c2w.list.element": "BYTE_STREAM_SPLIT"},
                write_statistics=["uid"],
                write_page_checksum=True,
            ) as writer,
        ):
            for start in range(0, len(batches), TOGETHER):
                some = batches[start : start + TOGETHER]
                rows = pa.Table.from_batches(some).combine_chunks()
                rows = rows.filter(pc.equal(rows["width"], width)).cast(with_facts)
                place = 0
                for views, alike in itertools.groupby(batch.num_rows // len(self.widths) for batch in some):
                    count = views * sum(1 for _ in alike)
                    writer.write_table(rows.slice(place, count), row_group_size=views)
                    place += count
            writer.add_key_value_metadata({OBJECTS_KEY: objects, FOOTER_KEY: str(writer.file_handle.tell())})
        return final.stat().st_size


def _compressible(objects: list[pa.RecordBatch], widths: int) -> list[str]:
    """Parquet paths of the columns for zstd: not JPEG and PNG bytes, and none so small that starting zstd takes the most time."""
    leaves = {"image": "image.path", **{name: f"{name}.list.element" for name in ("c2w", *INTRINSICS.values())}}
    enough = SMALL * widths * len(objects)
    names = [name for name in objects[0].schema.names if name not in PNGS]  # compressed already
    return [leaves.get(name, name) for name in names if sum(one.column(name).nbytes for one in objects) >= enough]


def _begun_with(out: Path, widths: Sequence[int]) -> list[str] | None:
    """Columns that a run has, perhaps of an earlier version: all of its shards have equal ones. None for a new run, and where
    no file can be read."""
    for path in itertools.chain.from_iterable(shard_paths(out / str(width)) for width in widths):
        with contextlib.suppress(OSError, pa.ArrowInvalid):  # what is damaged is told by those who read it
            return list(pq.read_schema(path).names)
    for path in journals.left_in(out):
        if found := journals.schema_of(path):
            return list(found.names)
    return None


@dataclass(frozen=True)
class Packer:
    """Turn scenes of one run into records for `ShardWriter.append`. Sent to workers."""

    schema: pa.Schema
    config_hash: str

    def __call__(self, scene: Scene | Packed) -> Packed:
        """Pack a scene; return one that is packed already unchanged."""
        if isinstance(scene, Packed):
            return scene
        aside = {name: scene.meta.pop(name) for name in [*scene.meta] if name.startswith("_")}
        return Packed(
            item=scene.item,
            record=to_batch(scene, self.schema, self.config_hash).serialize().to_pybytes(),
            group=group_of(scene),
            view_count=scene.view_count,
            jpeg_bytes=scene.jpeg_bytes,
            widest_bytes=sum(map(len, scene.by_width[max(scene.by_width)].jpegs)),
            meta=aside,
            facts=scene.facts,
        )


def group_of(scene: Scene) -> str:
    """Group that train and val must not share: the video of a clip; for any other item, its uid."""
    video = scene.meta.get("video")
    return video_of(video) if video else scene.item.uid


def to_batch(scene: Scene, of: pa.Schema, config_hash: str) -> pa.RecordBatch:
    """Record batch of one scene at all its resolutions: widths ascending, views in order within each."""
    columns: dict[str, list[Any]] = {name: [] for name in of.names}
    poses = scene.c2w.reshape(len(scene.c2w), 16)
    for width, views in sorted(scene.by_width.items()):
        count = len(views.jpegs)
        columns["view"] += range(count)
        columns["image"] += [{"bytes": jpeg, "path": None} for jpeg in views.jpegs]
        if IMAGE_SHA in columns:
            columns[IMAGE_SHA] += map(image_sha, views.jpegs)
        columns["c2w"] += list(poses)
        columns[intrinsics_column(columns)] += list(views.intrinsics)
        columns["height"] += [views.hw[0]] * count
        columns["width"] += [width] * count
        for name in LAYERS:
            if name in columns:
                columns[name] += views.layers[name]
        for name in NUMBERS:
            if name in columns:
                columns[name] += scene.numbers[name].tolist()
        if ROLE in columns:
            columns[ROLE] += scene.roles or [""] * count
        if TIME in columns:
            columns[TIME] += scene.times or [None] * count
    rows = len(columns["view"])
    item = scene.item
    if CAPTION in columns:
        columns[CAPTION] = [item.extra.get(CAPTION, "")] * rows
    known = {"credit": item.credit, "url": item.url if is_web(item.url) else ""}  # local paths stay private
    facts = scene.meta | {name: value for name, value in known.items() if value}
    meta = json.dumps(facts, separators=(",", ":"), sort_keys=True)
    same = {name: getattr(item, name) for name in ENTRY_COLUMNS} | {"meta": meta, "config_hash": config_hash}
    for name, value in same.items():
        columns[name] = [value] * rows
    return pa.RecordBatch.from_arrays([pa.array(columns[name], of.field(name).type) for name in of.names], schema=of)
