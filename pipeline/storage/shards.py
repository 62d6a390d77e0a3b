"""Parquet shards: schema, contents and reading. writer.py writes them. See docs/shard_format.md."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.source_table import SOURCES
from pipeline.core import images
from pipeline.core.disk import replacing
from pipeline.core.errors import A_RUN, UserError
from pipeline.core.records import Item, instants, ledger_facts
from pipeline.core.text import quoted

FORMAT_VERSION = "1"
CONVENTION = (
    "c2w: 4x4 row-major camera-to-world, OpenCV axes (+x right, +y down, +z forward). "
    "fxfycxcy: pixels of the stored image, the centre of pixel (0, 0) is (0.5, 0.5). "
    "sxsycxcy, of orthographic cameras, in its place: sx, sy in pixels per world unit, pixel = s * (x, y) in camera axes + c. "
    "Poses are raw: no scene normalisation was applied."
)
PNGS = ("alpha", "albedo", "roughness", "metallic")
INTRINSICS = {
    "perspective": "fxfycxcy",
    "ortho": "sxsycxcy",
}  # a column of its own each: no reader takes one for the other
LAYERS = ("alpha", "depth", "normals", "albedo", "roughness", "metallic")
ROLE = "role"  # string column of views that their set splits: "train", "val" or "test", "" for others
TIME = "time"  # float64 column of views of scenes that may move, in the unit of their set, null where it says none
CAPTION = "caption"  # string column of texts, with --captions
NUMBERS = (
    "frame",
    "asked_us",
    "time_us",
)  # int64 columns of views that are video frames; frame also of objects that move
IMAGE_SHA = "image_sha"  # uint64 column of checksums, which shards of earlier versions lack
SHARD_NAME = re.compile(r"^(train|val)-(\d{6})$")
ENTRY_COLUMNS = ("uid", "source", "license", "sha256")  # fields of an Item that are columns
METADATA_KEY = b"lvsm_data"
OBJECTS_KEY = b"lvsm_data_objects"  # facts of each object, in the footer: what lists them need not read the objects
FOOTER_KEY = b"lvsm_data_footer"  # byte at which the footer begins that these facts were written into


def schema(optional: tuple[str, ...] = ()) -> pa.Schema:
    """Arrow schema of a shard. optional: which of LAYERS, NUMBERS, ROLE, TIME, CAPTION, IMAGE_SHA it has; sxsycxcy is there in
    place of fxfycxcy.

    The Hugging Face metadata makes `image` a picture for `datasets` and the hub's viewer.
    """
    columns = {
        "uid": pa.string(),
        "view": pa.int32(),
        "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        **({IMAGE_SHA: pa.uint64()} if IMAGE_SHA in optional else {}),
        "c2w": pa.list_(pa.float32(), 16),
        intrinsics_column(optional): pa.list_(pa.float32(), 4),
        "height": pa.int32(),
        "width": pa.int32(),
        **dict.fromkeys(("source", "license", "sha256", "config_hash", "meta"), pa.string()),
        **{name: pa.binary() for name in LAYERS if name in optional},
        **{name: pa.int64() for name in NUMBERS if name in optional},
        **{name: pa.string() for name in (ROLE, CAPTION) if name in optional},
        **({TIME: pa.float64()} if TIME in optional else {}),
    }
    features = {name: _feature(kind) for name, kind in columns.items()}
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def image_sha(image: bytes | memoryview) -> int:
    """First 8 bytes of the SHA-256 of an image file's bytes, as a little-endian number."""
    return int.from_bytes(hashlib.sha256(image).digest()[:8], "little")


def intrinsics_column(names: Iterable[str]) -> str:
    """Name of the intrinsics' column of a shard with columns of these names: sxsycxcy if it is among them, else fxfycxcy."""
    return INTRINSICS["ortho" if INTRINSICS["ortho"] in names else "perspective"]


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """Feature of the library `datasets` for a column of this type; the only struct is a picture."""
    if pa.types.is_struct(kind):
        return {"_type": "Image"}
    if pa.types.is_fixed_size_list(kind):
        return {"feature": _feature(kind.value_type), "length": kind.list_size, "_type": "Sequence"}
    return {"dtype": "float32" if pa.types.is_float32(kind) else str(kind), "_type": "Value"}


def split_of(uid: str, val_percent: float) -> str:
    """ "val" for val_percent % of all uids, else "train". Depends on the uid alone, so a split never leaks across runs."""
    digest = hashlib.blake2b(uid.encode(), digest_size=8).digest()
    return "val" if int.from_bytes(digest, "little") / 2**64 < val_percent / 100 else "train"


@dataclass(frozen=True)
class Entry:
    """Ledger record of an object: item and facts as far as its rows hold them, views, image bytes at all resolutions together."""

    item: Item
    views: int
    image_bytes: int
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """A complete shard: one name, one file per resolution with the same objects in the same order."""

    name: str
    entries: tuple[Entry, ...]
    file_bytes: int

    @property
    def uids(self) -> tuple[str, ...]:
        return tuple(entry.item.uid for entry in self.entries)

    @property
    def rows(self) -> int:
        return sum(entry.views for entry in self.entries)

    @property
    def split(self) -> str:
        return self.name.split("-")[0]


def entries_of(objects: Sequence[pa.RecordBatch | pa.Table], widths: int) -> list[Entry]:
    """Ledger records of objects, each given as its rows at all `widths` resolutions (a number) together."""
    if not objects:
        return []
    rows = pa.concat_tables([one if isinstance(one, pa.Table) else pa.Table.from_batches([one]) for one in objects])
    counts = np.array([one.num_rows for one in objects])
    starts = np.cumsum(counts) - counts
    sizes = pc.binary_length(pc.struct_field(rows["image"], "bytes")).to_numpy()
    image_bytes = np.add.reduceat(sizes, starts, dtype=np.int64).tolist()
    firsts = rows.select([*ENTRY_COLUMNS, "meta"]).take(starts).to_pylist()
    entries = []
    for first, count, of_images in zip(firsts, counts.tolist(), image_bytes, strict=True):
        meta = json.loads(first.pop("meta"))
        item = Item(**first, url=meta.get("url", ""), credit=meta.get("credit", {}))
        entries.append(Entry(item, count // widths, of_images, ledger_facts(meta)))
    return entries


def is_web(url: str) -> bool:
    """True for an address that others can open too: with a scheme, and not file:."""
    return "://" in url and not url.startswith("file:")


def shard_name(split: str, number: int) -> str:
    """train, 42 -> train-000042."""
    return f"{split}-{number:06d}"


def number_of(name: str) -> int:
    """train-000042 -> 42."""
    return int(name[-6:])


def shard_paths(folder: Path) -> list[Path]:
    """Complete shards of one resolution's folder, sorted."""
    return sorted(path for path in folder.glob("*.parquet") if is_shard(path.name))


def is_shard(name: str) -> bool:
    """True for the file name of a complete shard."""
    return name.endswith(".parquet") and bool(SHARD_NAME.match(name.removesuffix(".parquet")))


def complete_shards(out: Path, widths: Sequence[int]) -> set[str]:
    """Names of the shards in a run's folder that exist at all resolutions `widths`."""
    return set.intersection(*({path.stem for path in shard_paths(out / str(width))} for width in widths))


def widths_in(out: Path) -> list[int]:
    """Resolutions that a run's folder holds: widths in pixels, ascending."""
    return sorted(int(path.name) for path in out.iterdir() if path.is_dir() and path.name.isdecimal())


def find_shards(folder: Path) -> dict[int, list[Path]]:
    """Width -> complete shards of a run's folder, or of one resolution's folder given by itself.

    Raises UserError if the folder does not exist or holds no shard.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder", "give the --out of a run")
    found = {width: shard_paths(folder / str(width)) for width in widths_in(folder)}
    if not any(found.values()) and (here := shard_paths(folder)):
        found = {int(facts_of(here[0])["width"]): here}
    if not any(found.values()):
        is_run = (folder / "ledger.sqlite").exists()
        hint = f"lvsm-data status {quoted(folder)} shows how the run stands" if is_run else A_RUN
        raise UserError(f"{folder} holds no finished shard", hint)
    return found


def facts_of(path: Path) -> dict[str, Any]:
    """Run-level facts of a shard file. Raises UserError if the file is unreadable or was not written by lvsm-data."""
    try:
        of = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from None
    return facts_in(of, str(path))


def facts_in(of: pa.Schema, name: str) -> dict[str, Any]:
    """Run-level facts in the schema of a shard file. Raises UserError, which names `name`, if lvsm-data did not write it."""
    metadata = of.metadata or {}
    if METADATA_KEY not in metadata:
        raise UserError(f"{name} was not written by lvsm-data")
    facts: dict[str, Any] = json.loads(metadata[METADATA_KEY])
    return facts


def subject_of(facts: dict[str, Any], columns: Iterable[str]) -> str:
    """Subject of a shard: "clips" (frames of videos), "objects", or "" where it does not tell. facts: as of `facts_of`.

    Objects that move have frames too, and beside them times.
    """
    source, names = SOURCES.get(facts.get("source", "")), set(columns)
    return "clips" if "frame" in names and TIME not in names else "objects" if source and source.objects else ""


def open_shard(file: Path | Any, check: bool = True) -> pq.ParquetFile:
    """Open a shard for reading: a path, or what `Store.open` returns. To be closed.

    check: reading damaged pages raises OSError; shards of earlier versions have no checksums of pages.
    """
    return pq.ParquetFile(file, page_checksum_verification=check)


def counts_of(path: Path) -> list[int]:
    """Numbers of views of the objects of a shard file, in order. Raises UserError if the file cannot be read."""
    try:
        footer = pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path} cannot be read as Parquet: {error}", "`lvsm-data verify` says what is broken"
        ) from None
    return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]


def columns_of(path: Path) -> dict[str, str]:
    """Name -> Arrow type of the columns of a shard file."""
    return {field.name: str(field.type) for field in pq.read_schema(path)}


def files_of(out: Path, widths: Iterable[int], name: str) -> list[Path]:
    """Paths of a shard's files in the run's folder `out`, one per width, whether they exist or not."""
    return [out / str(width) / f"{name}.parquet" for width in widths]


def remove_shard(out: Path, widths: Iterable[int], name: str) -> None:
    """Remove the files of a shard, at all widths, as far as there are any."""
    for path in files_of(out, widths, name):
        path.unlink(missing_ok=True)


def set_aside(out: Path, widths: Iterable[int], name: str) -> list[Path]:
    """Rename the files of a damaged shard to NAME.parquet.damaged, at all widths, so that nobody takes them for a shard.

    Returns the new paths of those that were there.
    """
    return [
        path.replace(path.with_name(f"{path.name}.damaged")) for path in files_of(out, widths, name) if path.exists()
    ]


def damage_of(out: Path, widths: Iterable[int], name: str, file_bytes: int, objects: int | None) -> str:
    """Damage of a complete shard's files as far as their size and, slower, their footers tell; "" if there is none.

    file_bytes: how many bytes the files should have together. objects: how many objects each footer should name, None: not read.
    """
    paths = files_of(out, widths, name)
    if (size := sum(path.stat().st_size for path in paths)) != file_bytes:
        return f"{size:,} bytes, {file_bytes:,} were written"
    for path in paths if objects is not None else ():
        try:
            found = pq.read_metadata(path).num_row_groups
        except (pa.ArrowException, OSError) as error:
            return str(error)
        if found != objects:
            return f"{found} objects, {objects} were written"
    return ""


def shard_on_disk(out: Path, widths: Sequence[int], name: str) -> Shard:
    """Read a complete shard from its files, for a ledger that lacks it. Raises UserError if a file is unreadable."""
    entries: dict[str, Entry] = {}
    paths = files_of(out, widths, name)
    for path in paths:
        try:
            for table in _row_groups(path, [*ENTRY_COLUMNS, "meta", "image"]):
                (entry,) = entries_of([table], 1)
                before = entries[entry.item.uid].image_bytes if entry.item.uid in entries else 0
                entries[entry.item.uid] = dataclasses.replace(entry, image_bytes=before + entry.image_bytes)
        except (pa.ArrowException, OSError, ValueError) as error:
            hint = f"move {name}.parquet of every resolution away; the same command renders its objects again"
            raise UserError(f"{path} cannot be read: {error}", hint) from None
    return Shard(name, tuple(entries.values()), sum(path.stat().st_size for path in paths))


@dataclass(frozen=True)
class Rows:
    """One object as read back: c2w (V, 4, 4), intrinsics (V, 4) of a projection that INTRINSICS names, V JPEG files.

    shas: (V,) what `image_sha` should give of each, None if the shard has no such column; roles, times: V, likewise, a time
    None where the set says none. numbers: (V,) each, where the shard has them.
    """

    uid: str
    jpegs: list[bytes]
    c2w: np.ndarray
    intrinsics: np.ndarray
    projection: str
    hw: tuple[int, int]
    meta: dict[str, Any]
    license: str
    layers: dict[str, list[bytes]]
    numbers: dict[str, np.ndarray]
    shas: list[int] | None = None
    caption: str = ""
    roles: list[str] | None = None
    times: list[float | None] | None = None
    source: str = ""
    sha256: str = ""

    @property
    def moves(self) -> bool:
        """True if views are of different times."""
        return instants(self.times or ()) > 1


def read_objects(path: Path) -> Iterator[Rows]:
    """Yield the objects of one shard file, one row group at a time."""
    yield from map(rows_of, _row_groups(path))


def read_object(path: Path, group: int) -> Rows:
    """Read the object of one row group of a shard file."""
    with open_shard(path) as file:
        return rows_of(file.read_row_group(group))


def rows_of(table: pa.Table) -> Rows:
    """Convert the rows of one object, with all columns of a shard."""
    first = {name: table[name][0].as_py() for name in (*ENTRY_COLUMNS, "height", "width", "meta")}
    column = intrinsics_column(table.column_names)
    return Rows(
        uid=first["uid"],
        jpegs=pc.struct_field(table["image"], "bytes").to_pylist(),
        c2w=numbers(table["c2w"]).reshape(-1, 4, 4),
        intrinsics=numbers(table[column]).reshape(-1, 4),
        projection=next(kind for kind, name in INTRINSICS.items() if name == column),
        hw=(first["height"], first["width"]),
        meta=json.loads(first["meta"]),
        license=first["license"],
        layers={name: table[name].to_pylist() for name in LAYERS if name in table.column_names},
        numbers={name: table[name].to_numpy() for name in NUMBERS if name in table.column_names},
        shas=table[IMAGE_SHA].to_pylist() if IMAGE_SHA in table.column_names else None,
        caption=table[CAPTION][0].as_py() if CAPTION in table.column_names else "",
        roles=table[ROLE].to_pylist() if ROLE in table.column_names else None,
        times=table[TIME].to_pylist() if TIME in table.column_names else None,
        source=first["source"],
        sha256=first["sha256"],
    )


def layer_of(name: str, cells: Sequence[bytes], hw: tuple[int, int]) -> np.ndarray:
    """Decode N cells of a column of LAYERS, of views of size hw: depth (N, H, W) and normals (N, H, W, 3) float32; albedo
    (N, H, W, 3), alpha, roughness and metallic (N, H, W) uint8. Raises ValueError, OSError where a cell is none."""
    if name in PNGS:
        return np.stack([images.decode(png) for png in cells])
    shape = (*hw, 3) if name == "normals" else hw
    return np.stack([np.frombuffer(cell, "<f4").reshape(shape) for cell in cells])


def write_rows(table: pa.Table, path: Path) -> None:
    """Write the rows of one object, with all columns of a shard, as a file of their own, as a whole or not at all."""
    # the table of objects is of the whole shard
    kept = {
        name: value for name, value in (table.schema.metadata or {}).items() if name not in (OBJECTS_KEY, FOOTER_KEY)
    }
    with replacing(path) as temporary:
        table = table.replace_schema_metadata(kept)
        pq.write_table(table, temporary, row_group_size=table.num_rows, compression="none", use_dictionary=False)


def _row_groups(path: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the row groups of a shard file, one per object. columns: those to read; None: all."""
    with open_shard(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns)


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Numbers of a column of lists, one list after the other."""
    return np.asarray(column.combine_chunks().flatten())
