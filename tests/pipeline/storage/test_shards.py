"""Shards as others read them, journals cut at every byte, and the ledger: no render, no mock."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.core import cameras
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome, Scene, Views
from pipeline.storage import journal as journals
from pipeline.storage import shards, writer
from pipeline.storage.ledger import Ledger
from pipeline.storage.object_table import facts_of_objects, objects_at_end, objects_in, objects_told, uids_of
from pipeline.storage.shards import (
    FOOTER_KEY,
    OBJECTS_KEY,
    ROLE,
    TIME,
    Entry,
    Shard,
    open_shard,
    read_objects,
    shard_on_disk,
    split_of,
    write_rows,
)
from pipeline.storage.writer import Packer, ShardWriter
from tests.conftest import put_anew

FACTS = {"config_hash": "0123456789abcdef", "seed": 7, "res": [16, 32]}
WIDTHS = (16, 32)
VIEWS = 3


def jpeg(rng: np.random.Generator, width: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (width, width, 3), np.uint8)).save(stream, "JPEG", quality=80)
    return stream.getvalue()


def scene(
    uid: str,
    widths: tuple[int, ...] = WIDTHS,
    views: int = VIEWS,
    layers: tuple[str, ...] = (),
    sizes: tuple[int, int] | None = None,
) -> Scene:
    """Pictures of noise, or as many random bytes as `sizes` says, at poses of the default sampler."""
    rng = np.random.default_rng(list(uid.encode()))
    c2w = cameras.sample("shell", rng, views)
    by_width = {}
    for width in widths:
        pictures = [rng.bytes(rng.integers(*sizes)) if sizes else jpeg(rng, width) for _ in range(views)]
        companions = {name: [rng.bytes(width * width * 4) for _ in range(views)] for name in layers}
        k = rng.uniform(0.5, 2, (views, 4)).astype(np.float32) * width
        by_width[width] = Views(pictures, k, (width, width), companions)
    meta = {"polygons": 12, "raw_bounds": [[-2.125, -1, -1], [2, 1, 1]], "name": f"ü {uid}"}
    sha256, credit = hashlib.sha256(uid.encode()).hexdigest(), {"title": f"A ü {uid}", "author": "somebody", "page": ""}
    item = Item(uid, "local", f"https://example.org/{uid}", "CC-BY-4.0", sha256, credit)
    return Scene(item, c2w, by_width, meta)


def write(
    out: Path, scenes: list[Scene], layers: tuple[str, ...] = (), target: float = 1e12, split: str = "train"
) -> ShardWriter:
    """A writer after these scenes, its last journal still open."""
    widths = tuple(scenes[0].by_width)
    out.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(out, widths, layers, FACTS, target)
    number = 0
    for one in scenes:
        name, full = writer.add(one, split, number)
        assert name == f"{split}-{number:06d}"
        if full:
            writer.publish(name)
        number += full
    return writer


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Scene]]:
    """A folder with one shard of four objects at two resolutions."""
    out = tmp_path_factory.mktemp("shards")
    scenes = [scene(uid) for uid in ("chair", "a b/ü.glb", "'quote\"", "last")]
    write(out, scenes).close("train")
    return out, scenes


def rows_of(scenes: list[Scene], width: int) -> list[dict[str, Any]]:
    """What a reader has to find, spelled out."""
    return [
        {
            "uid": one.item.uid,
            "view": view,
            "jpeg": one.by_width[width].jpegs[view],
            "c2w": one.c2w[view].ravel().tolist(),
            "fxfycxcy": one.by_width[width].intrinsics[view].tolist(),
        }
        for one in scenes
        for view in range(len(one.c2w))
    ]


# ---- the table of objects in the footer


@pytest.mark.parametrize("width", WIDTHS)
def test_a_footer_tells_of_the_objects_what_their_rows_tell(
    width: int, written: tuple[Path, list[Scene]], tmp_path: Path
) -> None:
    out, scenes = written
    path = out / str(width) / "train-000000.parquet"
    told = objects_told(path)
    assert told["uid"] == [one.item.uid for one in scenes] and told["polygons"] == [12] * len(scenes)
    assert told["views"] == [one.view_count for one in scenes] and told["license"] == ["CC-BY-4.0"] * len(scenes)
    assert told["name"] == [one.meta["name"] for one in scenes] and "raw_bounds" not in told
    assert at_end(path) == told
    with open_shard(path) as file:
        assert objects_in(file) == told
        earlier = tmp_path / "earlier.parquet"  # as a version wrote it that knew no such table
        with pq.ParquetWriter(earlier, file.schema_arrow) as writer:
            for group in range(file.num_row_groups):
                writer.write_table(file.read_row_group(group).replace_schema_metadata(file.schema_arrow.metadata))
    assert objects_told(earlier) == at_end(earlier) == {}
    with open_shard(earlier) as file:
        assert objects_in(file) == told


def at_end(path: Path) -> dict[str, list[Any]]:
    with path.open("rb") as file:
        return objects_at_end(file)


def test_many_objects_are_told_from_the_end_of_a_file_too(tmp_path: Path) -> None:
    """More than a writer holds back, so that the footer would not begin where it says if it held anything back."""
    made = [scene(f"uid-{number}-{'long' * 20}", (16,)) for number in range(300)]
    write(tmp_path, made).close("train")
    assert at_end(tmp_path / "16" / "train-000000.parquet")["uid"] == [one.item.uid for one in made]


@given(st.binary(max_size=60), st.binary(max_size=30), st.integers(0, 2**32 - 1) | st.integers(0, 90))
def test_the_end_of_any_file_is_no_table_and_no_error(footer: bytes, text: bytes, length: int) -> None:
    keys = b"".join(b"\x18" + bytes([len(key)]) + key + b"\x18" for key in (OBJECTS_KEY, FOOTER_KEY))
    for data in (footer, text, footer + keys + text):
        assert objects_at_end(io.BytesIO(data + length.to_bytes(4, "little") + b"PAR1")) == {}
        assert objects_at_end(io.BytesIO(data)) == {}


def rewritten(path: Path, to: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Copy of a shard whose table of objects is another."""
    with open_shard(path) as file, pq.ParquetWriter(to, file.schema_arrow, write_statistics=["uid"]) as writer:
        for group in range(file.num_row_groups):
            writer.write_table(file.read_row_group(group).replace_schema_metadata(file.schema_arrow.metadata))
        footer = pq.read_metadata(path).metadata[FOOTER_KEY]
        told = json.dumps(change(objects_told(path)))
        writer.add_key_value_metadata({OBJECTS_KEY: told, FOOTER_KEY: footer})
    return to


@pytest.mark.parametrize(
    "change",
    [
        lambda told: [1, 2],
        lambda told: told | {"uid": told["uid"][:-1]},
        lambda told: told | {"uid": told["uid"][::-1]},
        lambda told: told | {"uid": [7, *told["uid"][1:]]},
        lambda told: told | {"polygons": 12},
    ],
    ids=["a list", "too few", "in another order", "a number", "no list"],
)
def test_a_table_that_is_not_of_these_objects_is_passed_over(
    change: Callable[[dict[str, Any]], Any], written: tuple[Path, list[Scene]], tmp_path: Path
) -> None:
    out, scenes = written
    path = rewritten(out / str(WIDTHS[0]) / "train-000000.parquet", tmp_path / "changed.parquet", change)
    assert objects_told(path) == {} and uids_of(path) == [one.item.uid for one in scenes]
    with open_shard(path) as file:
        assert objects_in(file)["uid"] == [one.item.uid for one in scenes]


def test_long_uids_stay_whole(tmp_path: Path) -> None:
    uids = [f"{'folder/' * 60}{number}" for number in range(3)]
    write(tmp_path, [scene(uid, (16,)) for uid in uids]).close("train")
    assert objects_told(tmp_path / "16" / "train-000000.parquet")["uid"] == uids


def test_the_rows_of_one_object_leave_the_table_of_all_behind(
    written: tuple[Path, list[Scene]], tmp_path: Path
) -> None:
    out, scenes = written
    with open_shard(out / str(WIDTHS[0]) / "train-000000.parquet") as file:
        write_rows(file.read_row_group(1), tmp_path / "one.parquet")
    assert objects_told(tmp_path / "one.parquet") == {}
    (one,) = read_objects(tmp_path / "one.parquet")
    assert one.uid == scenes[1].item.uid


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=400)
        | st.lists(st.integers(), max_size=2),
        max_size=6,
    )
)
def test_any_meta_has_facts_that_are_json(meta: dict[str, Any]) -> None:
    row = {"uid": "u", "view": 0, "source": "local", "license": "", "meta": json.dumps(meta)}
    c2w = pa.array([np.eye(4, dtype=np.float32).ravel()], pa.list_(pa.float32(), 16))
    table = pa.Table.from_pylist([row]).append_column("c2w", c2w)
    columns = facts_of_objects(table, [1], {"source": "local"})
    assert json.loads(json.dumps(columns, allow_nan=False)) == columns
    facts = {name: value for name, (value,) in columns.items()}
    assert (facts["uid"], facts["views"], facts["source"]) == ("u", 1, "local")
    assert all(len(value) <= 300 for value in facts.values() if isinstance(value, str))


# ---- what is in a file


@pytest.mark.parametrize("width", WIDTHS)
def test_our_reader_gives_back_what_was_written(written: tuple[Path, list[Scene]], width: int) -> None:
    out, scenes = written
    found = list(read_objects(out / str(width) / "train-000000.parquet"))
    assert [rows.uid for rows in found] == [one.item.uid for one in scenes]
    for rows, one in zip(found, scenes, strict=True):
        views = one.by_width[width]
        assert rows.jpegs == views.jpegs
        assert rows.c2w.dtype == rows.intrinsics.dtype == np.float32
        assert rows.c2w.tobytes() == one.c2w.tobytes()  # to the bit
        assert rows.intrinsics.tobytes() == views.intrinsics.tobytes()
        origin = {"url": f"https://example.org/{rows.uid}", "credit": one.item.credit}
        assert (rows.hw, rows.meta, rows.license) == (views.hw, one.meta | origin, "CC-BY-4.0")
        assert rows.layers == {}


def test_files_are_named_and_described_as_documented(written: tuple[Path, list[Scene]]) -> None:
    out, scenes = written
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == [
        "16/train-000000.parquet",
        "32/train-000000.parquet",
    ]
    assert shards.widths_in(out) == [16, 32]
    for width in WIDTHS:
        path = out / str(width) / "train-000000.parquet"
        facts = shards.facts_of(path)
        assert facts == FACTS | {"width": width, "format_version": "1", "convention": shards.CONVENTION}
        assert uids_of(path) == [one.item.uid for one in scenes]
        assert shards.find_shards(out / str(width)) == {width: [path]}


def test_a_row_per_view_and_a_row_group_per_object(written: tuple[Path, list[Scene]]) -> None:
    out, scenes = written
    with pq.ParquetFile(out / "16" / "train-000000.parquet") as file:
        assert file.num_row_groups == len(scenes)
        for group, one in enumerate(scenes):
            table = file.read_row_group(group)
            assert table["uid"].to_pylist() == [one.item.uid] * VIEWS
            assert table["view"].to_pylist() == list(range(VIEWS))
            statistics = file.metadata.row_group(group).column(0).statistics  # lets a reader find a uid
            assert statistics.min == statistics.max == one.item.uid


def test_poses_of_any_bits_come_back(tmp_path: Path) -> None:
    one = scene("bits", (16,), 2)
    rng = np.random.default_rng(0)
    one.c2w[:] = rng.integers(0, 2**32, one.c2w.shape, np.uint32).view(np.float32)
    one.c2w[0, 0] = [-0.0, np.inf, 1e-45, np.nan]
    write(tmp_path, [one]).close("train")
    (rows,) = read_objects(tmp_path / "16" / "train-000000.parquet")
    assert rows.c2w.tobytes() == one.c2w.tobytes()


def test_layers_are_columns(tmp_path: Path) -> None:
    layers = ("alpha", "depth", "normals")
    scenes = [scene(f"o{i}", layers=layers) for i in range(2)]
    write(tmp_path, scenes, layers).close("train")
    for width in WIDTHS:
        for rows, one in zip(read_objects(tmp_path / str(width) / "train-000000.parquet"), scenes, strict=True):
            assert rows.layers == one.by_width[width].layers


def test_what_is_no_shard_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no Parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    for name in ("text", "other"):
        with pytest.raises(UserError, match=name):
            shards.facts_of(tmp_path / f"{name}.parquet")
    with pytest.raises(UserError, match="no finished shard"):
        shards.find_shards(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        shards.find_shards(tmp_path / "nothing")


# ---- readers that are not ours


def test_pandas_reads_it(written: tuple[Path, list[Scene]]) -> None:
    out, scenes = written
    frame = pd.read_parquet(out / "32" / "train-000000.parquet")
    expected = rows_of(scenes, 32)
    assert frame["uid"].tolist() == [row["uid"] for row in expected]
    assert frame["view"].tolist() == [row["view"] for row in expected]
    assert [image["bytes"] for image in frame["image"]] == [row["jpeg"] for row in expected]
    np.testing.assert_array_equal(np.stack(frame["c2w"]), np.array([row["c2w"] for row in expected], np.float32))
    assert set(frame["width"]) == set(frame["height"]) == {32}
    assert set(frame["config_hash"]) == {FACTS["config_hash"]}
    assert [json.loads(meta)["name"] for meta in frame["meta"]] == [f"ü {row['uid']}" for row in expected]
    assert frame["sha256"][0] == hashlib.sha256(b"chair").hexdigest()


def test_duckdb_reads_it(written: tuple[Path, list[Scene]]) -> None:
    out, scenes = written
    with duckdb.connect() as database:
        rows = database.execute(
            "SELECT uid, view, octet_length(image.bytes), c2w[4], fxfycxcy[1], len(c2w), image.path "
            "FROM read_parquet(?) WHERE uid <> 'chair' ORDER BY uid, view",
            [str(out / "16" / "*.parquet")],
        ).fetchall()
    expected = sorted(
        (row["uid"], row["view"], len(row["jpeg"]), row["c2w"][3], row["fxfycxcy"][0], 16, None)
        for row in rows_of(scenes[1:], 16)
    )
    assert rows == expected


def test_hugging_face_datasets_show_pictures(written: tuple[Path, list[Scene]], tmp_path: Path) -> None:
    out, scenes = written
    datasets.disable_progress_bars()
    files = str(out / "32" / "train-000000.parquet")
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert isinstance(loaded.features["image"], datasets.Image)
    expected = rows_of(scenes, 32)
    assert len(loaded) == len(expected)
    for row, want in zip(loaded, expected, strict=True):
        assert isinstance(row["image"], Image.Image)
        assert row["image"].size == (32, 32)
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(Image.open(io.BytesIO(want["jpeg"]))))
        assert (row["uid"], row["view"], row["c2w"]) == (want["uid"], want["view"], want["c2w"])


# and Ray Data in tests/test_docs.py


# ---- splits and sizes


def test_split_is_a_hash_of_the_uid_alone() -> None:
    """Written down: were they ever to change, objects would wander from train to val between runs."""
    assert [i for i in range(300) if split_of(f"procedural-0-{i:07d}", 1) == "val"] == [8, 25, 41, 201, 266]
    digest = hashlib.blake2b("ü".encode(), digest_size=8).digest()
    share = sum(byte * 256**place for place, byte in enumerate(digest)) / 2**64 * 100
    assert split_of("ü", share - 1e-6) == "train"
    assert split_of("ü", share + 1e-6) == "val"


@pytest.mark.parametrize("percent", [0, 1, 10, 50])
def test_split_has_its_share(percent: float) -> None:
    count = 20_000
    val = sum(split_of(f"object/{i}.glb", percent) == "val" for i in range(count))
    spread = np.sqrt(count * percent / 100 * (1 - percent / 100))
    assert abs(val - count * percent / 100) <= 4 * spread


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=30), st.floats(0, 100), st.floats(0, 100))
def test_a_larger_share_keeps_what_was_held_out(uid: str, one: float, other: float) -> None:
    if split_of(uid, min(one, other)) == "val":
        assert split_of(uid, max(one, other)) == "val"
    assert split_of(uid, 0) == "train"


def test_a_full_shard_is_closed_and_the_next_begun(tmp_path: Path) -> None:
    scenes = [scene(f"o{i}", (16, 32), 2, sizes=(1000, 1001)) for i in range(7)]
    for one in scenes:
        one.by_width[16].jpegs[:] = [b"small"] * 2  # does not count: the largest width does
    writer = ShardWriter(tmp_path, (16, 32), (), FACTS, 6000)  # three objects of two views of 1000 bytes
    done: list[Shard] = []
    for one in scenes:
        name, full = writer.add(one, "train", len(done))
        assert name == f"train-{len(done):06d}"
        if full:
            done.append(writer.publish(name))
    assert [shard.uids for shard in done] == [("o0", "o1", "o2"), ("o3", "o4", "o5")]
    assert [(shard.name, shard.rows, shard.split) for shard in done] == [
        ("train-000000", 6, "train"),
        ("train-000001", 6, "train"),
    ]
    last = writer.close("train")
    assert last is not None
    assert last.uids == ("o6",)
    assert writer.close("train") is None
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*.parquet"))
    assert on_disk == sum(shard.file_bytes for shard in [*done, last])
    assert not list((tmp_path / "journal").iterdir())


def test_splits_are_open_beside_each_other(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, WIDTHS, (), FACTS, 1e12)
    for i, split in enumerate(["train", "val", "train", "val", "train"]):
        assert writer.add(scene(f"o{i}"), split, 4)[0] == f"{split}-000004"
    assert writer.close("val").uids == ("o1", "o3")
    assert writer.close("train").uids == ("o0", "o2", "o4")
    assert [path.name for path in shards.shard_paths(tmp_path / "16")] == ["train-000004.parquet", "val-000004.parquet"]


@pytest.mark.parametrize(
    ("width", "sizes", "poses", "limit"), [(512, (20_000, 30_000), 0, 0.02), (64, (1400, 1600), 64 + 8, 0.047)]
)
def test_the_container_costs_little(
    tmp_path: Path, width: int, sizes: tuple[int, int], poses: int, limit: float
) -> None:
    """Beyond the pictures (and, where they are small, the 72 bytes of a pose and a checksum). The first shard: 16 objects."""
    scenes = [scene(f"o{i}", (width,), 32, sizes=sizes) for i in range(16)]
    shard = write(tmp_path, scenes).close("train")
    assert shard is not None
    payload = sum(one.jpeg_bytes for one in scenes)
    assert shard.file_bytes > payload
    assert (shard.file_bytes - payload - poses * shard.rows) / payload < limit


# ---- crashes


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int], list[Scene]]:
    """A journal's bytes, where each object ends in it, and the objects. It was never closed, as after kill -9."""
    out = tmp_path_factory.mktemp("journal")
    scenes = [scene(f"o{i}", (16, 32), 1, sizes=(90, 120)) for i in range(3)]
    writer = ShardWriter(out, (16, 32), (), FACTS, 1e12)
    path, ends = out / "journal" / "train-000000.arrow", []
    for one in scenes:
        writer.add(one, "train", 0)
        ends.append(path.stat().st_size)
    data = path.read_bytes()
    assert len(data) == ends[-1]  # nothing waits in a buffer of ours
    writer.close("train")
    return data, ends, scenes


def whole(ends: list[int], length: int) -> int:
    return sum(end <= length for end in ends)


def test_a_journal_cut_anywhere_gives_its_whole_objects(
    journal: tuple[bytes, list[int], list[Scene]], tmp_path: Path
) -> None:
    data, ends, scenes = journal
    path = tmp_path / "train-000000.arrow"
    near = {length for end in (0, *ends) for length in range(end - 90, end + 90)}  # heads, ends and their alignment
    for length in sorted(near | set(range(0, len(data), 19))):
        put_anew(path, data[: max(0, length)])
        batches = journals.read(path)
        assert [batch["uid"][0].as_py() for batch in batches] == [one.item.uid for one in scenes[: whole(ends, length)]]


@settings(deadline=None, max_examples=80)
@given(data=st.data(), tail=st.binary(max_size=64))
def test_rubbish_after_the_last_object_does_no_harm(
    journal: tuple[bytes, list[int], list[Scene]],
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    tail: bytes,
) -> None:
    stored, ends, _ = journal
    path = tmp_path_factory.getbasetemp() / "rubbish.arrow"
    count = data.draw(st.integers(1, len(ends)))
    put_anew(path, stored[: ends[count - 1]] + tail)
    assert len(journals.read(path)) == count


def test_a_tail_of_zeros_as_a_power_cut_leaves_it_is_no_object(
    journal: tuple[bytes, list[int], list[Scene]], tmp_path: Path
) -> None:
    """File systems may extend a file before its data arrive: the size is right, the end is zeros."""
    data, ends, scenes = journal
    path = tmp_path / "train-000000.arrow"
    for length in range(ends[0], len(data), 7):
        put_anew(path, data[:length].ljust(len(data), b"\0"))
        found = [(batch["uid"].to_pylist(), batch["image"].to_pylist()) for batch in journals.read(path)]
        for (uids, pictures), one in zip(found, scenes, strict=False):
            assert uids == [one.item.uid] * 2
            assert [picture["bytes"] for picture in pictures] == [views.jpegs[0] for views in one.by_width.values()]
        assert len(found) >= whole(ends, length)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_recovery_publishes_exactly_the_whole_objects(
    journal: tuple[bytes, list[int], list[Scene]], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    stored, ends, scenes = journal
    near = st.sampled_from(ends).flatmap(lambda end: st.integers(end - 9, min(end + 9, len(stored))))
    length = data.draw(near | st.integers(0, len(stored)), label="length")
    published = data.draw(st.booleans(), label="one resolution was published before the crash")
    out = tmp_path_factory.mktemp("recover")
    writer = ShardWriter(out, (16, 32), (), FACTS, 1e12)
    (out / "journal" / "train-000003.arrow").write_bytes(stored[:length])
    (out / "16" / "train-000003.tmp").write_bytes(b"half a file")
    (out / "32" / "val-000009.tmp").write_bytes(b"")
    if published:
        (out / "16" / "train-000003.parquet").write_bytes(b"an older one")
    expected = [one.item.uid for one in scenes[: whole(ends, length)]]
    found = writer.recover()
    assert not list((out / "journal").iterdir())
    assert not list(out.rglob("*.tmp"))
    if not expected:
        assert found == []
        assert not list((out / "32").iterdir())
        return
    (shard,) = found
    assert (shard.name, list(shard.uids), shard.rows) == ("train-000003", expected, len(expected))
    for width in (16, 32):
        rows = pq.read_table(out / str(width) / "train-000003.parquet").to_pylist()
        assert [row["uid"] for row in rows] == expected
        assert [row["image"]["bytes"] for row in rows] == [one.by_width[width].jpegs[0] for one in scenes[: len(rows)]]


def test_a_crash_does_not_lose_whom_to_name(tmp_path: Path) -> None:
    """Neither from a journal, nor from a shard that the ledger has not heard of; image bytes and views neither."""
    scenes = [scene("web"), scene("local")]
    local = Item("local", "local", "/home/me/private/model.glb", "MIT")
    scenes[1] = dataclasses.replace(scenes[1], item=local)
    write(tmp_path, scenes).open["train-000000"].sink.close()  # as kill -9 leaves it: the journal is all there is
    (recovered,) = ShardWriter(tmp_path, WIDTHS, (), FACTS, 1e12).recover()
    assert recovered == shard_on_disk(tmp_path, WIDTHS, "train-000000")
    assert recovered.entries == (
        Entry(scenes[0].item, VIEWS, scenes[0].jpeg_bytes),
        Entry(dataclasses.replace(local, url=""), VIEWS, scenes[1].jpeg_bytes),
    )
    assert recovered.rows == 2 * VIEWS
    for path in tmp_path.rglob("*.parquet"):
        assert "private" not in "".join(pq.read_table(path)["meta"].to_pylist())
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.add_shard(recovered)
        assert [(item.uid, item.license, item.credit.get("author")) for item, _ in ledger.works()] == [
            ("local", "MIT", None),
            ("web", "CC-BY-4.0", "somebody"),
        ]
        assert ledger.totals()["image_bytes"] == sum(one.jpeg_bytes for one in scenes)
        ledger.record(Outcome(local, scenes[1]), "train-000000")
        ledger.add_shard(recovered)  # does not forget where the local file lies, which the shard never knew
        assert next(item.url for item, _ in ledger.works()) == local.url


def test_the_ledger_keeps_what_pictures_show_also_after_a_crash(tmp_path: Path) -> None:
    shown = {"coverage": 0.25, "visible": 0.9, "black": 0.1, "contrast": 12.5}
    scenes = [scene("a"), scene("b")]
    scenes[0].meta.update(shown)
    write(tmp_path, scenes).open["train-000000"].sink.close()  # as kill -9 leaves it
    (recovered,) = ShardWriter(tmp_path, WIDTHS, (), FACTS, 1e12).recover()

    def facts(ledger: Ledger) -> list[dict[str, Any]]:
        return [json.loads(text) for (text,) in ledger.db.execute("SELECT facts FROM item ORDER BY uid")]

    with Ledger(tmp_path / "first.sqlite") as ledger:
        ledger.add_shard(recovered)
        assert facts(ledger) == [shown, {}]
    with Ledger(tmp_path / "second.sqlite") as ledger:
        for one in scenes:
            ledger.record(Outcome(one.item, Packer(shards.schema(), "0")(one)), "train-000000")
        ledger.record(Outcome(scene("c").item, None, "tiny"), None)
        assert facts(ledger) == [shown, {}, {}]


def test_a_shard_that_cannot_be_adopted_is_a_user_error(tmp_path: Path) -> None:
    write(tmp_path, [scene("a")]).close("train")
    path = tmp_path / "32" / "train-000000.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"32/train-000000.parquet cannot be read") as caught:
        shard_on_disk(tmp_path, WIDTHS, "train-000000")
    assert "move train-000000.parquet" in caught.value.hint


def test_recovery_of_nothing_is_nothing(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, WIDTHS, (), FACTS, 1e12)
    assert writer.recover() == []
    write(tmp_path, [scene("a")]).close("train")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    assert ShardWriter(tmp_path, WIDTHS, (), FACTS, 1e12).recover() == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == before


def test_an_open_shard_has_no_name_that_a_reader_finds(tmp_path: Path) -> None:
    writer = write(tmp_path, [scene("a"), scene("b")])
    assert not list(tmp_path.rglob("*.parquet"))
    assert shards.shard_paths(tmp_path / "16") == []
    (tmp_path / "16" / "train-000000.tmp").write_bytes(b"half")
    (tmp_path / "16" / "notes.parquet").write_bytes(b"somebody else's")
    assert shards.shard_paths(tmp_path / "16") == []
    writer.close("train")
    assert [path.name for path in shards.shard_paths(tmp_path / "16")] == ["train-000000.parquet"]


def test_the_same_scenes_make_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, [scene("a"), scene("b")]).close("train")
    for width in WIDTHS:
        first, second = (tmp_path / name / str(width) / "train-000000.parquet" for name in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()


# ---- the ledger


def delivered(uid: str) -> Outcome:
    return Outcome(scene(uid).item, scene(uid), worker="node:1", timings={"render": 1.23456})


def booked(name: str, uids: str, file_bytes: int) -> Shard:
    """One object for each letter."""
    return Shard(name, tuple(Entry(scene(uid).item, VIEWS, scene(uid).jpeg_bytes) for uid in uids), file_bytes)


def failed(uid: str, reason: str, tries: int = 1) -> Outcome:
    return Outcome(Item(uid, "local"), None, reason, f"why {uid}", tries)


def test_ledger_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.record(delivered("a"), "train-000000")
        ledger.record(delivered("b"), "train-000001")
        ledger.record(failed("c", "tiny"), None)
        ledger.record(failed("d", "timeout", 2), None)
        ledger.record(failed("e", "tiny"), None)
        ledger.add_shard(booked("train-000000", "a", 1000))
        ledger.add_shard(booked("val-000000", "f", 500))  # whose line a crash ate
    with Ledger(path, readonly=True) as ledger:
        assert ended(ledger, "abcdefg") == set("abcdef")
        assert ledger.counts() == {"delivered": 3, "failed": 3}
        assert list(ledger.reasons().items()) == [("tiny", 2), ("timeout", 1)]
        assert ledger.examples("tiny", 10) == [("c", "why c", 1), ("e", "why e", 1)]
        assert ledger.examples("tiny", 1) == [("c", "why c", 1)]
        assert ledger.examples("timeout", 10) == [("d", "why d", 2)]
        assert ledger.shards() == {"train-000000": "complete", "val-000000": "complete"}
        assert ledger.delivered_in() == {"a": "train-000000", "b": "train-000001", "f": "val-000000"}
        image_bytes = sum(scene(uid).jpeg_bytes for uid in "abf")
        views = 3 * VIEWS
        assert ledger.totals() == {"views": views, "image_bytes": image_bytes, "shards": 2, "shard_bytes": 1500}


def test_a_shard_overrules_an_older_failure(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.record(failed("a", "timeout"), None)
        ledger.add_shard(booked("train-000000", "a", 10))
        assert ledger.delivered_in() == {"a": "train-000000"}
        assert ledger.counts() == {"delivered": 1}
        assert ledger.reasons() == {}
        assert ledger.totals()["views"] == VIEWS
        ledger.record(delivered("a"), "train-000000")
        ledger.add_shard(booked("train-000000", "a", 12))  # twice, as after a crash in between
        assert (ledger.totals()["views"], ledger.totals()["shard_bytes"]) == (VIEWS, 12)


def ended(ledger: Ledger, uids: str) -> set[str]:
    """Which of these one-letter uids have ended."""
    finished = ledger.finished_uids()
    return {uid for uid in uids if uid in finished}


def old_ledger(path: Path) -> None:
    """As versions before sources and credits wrote it. The line of "lost" was eaten by a crash: no license."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(
            "CREATE TABLE item (uid TEXT PRIMARY KEY, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', "
            "detail TEXT NOT NULL DEFAULT '', tries INTEGER NOT NULL DEFAULT 1, shard TEXT, "
            "license TEXT NOT NULL DEFAULT '', views INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0, "
            "worker TEXT NOT NULL DEFAULT '', timings TEXT NOT NULL DEFAULT '{}', finished REAL NOT NULL) WITHOUT ROWID;"
            "CREATE INDEX item_by_shard ON item (shard);"
            "CREATE TABLE shard (name TEXT PRIMARY KEY, state TEXT NOT NULL, objects INTEGER NOT NULL, "
            "rows INTEGER NOT NULL, bytes INTEGER NOT NULL, finished REAL NOT NULL) WITHOUT ROWID;"
            "INSERT INTO item VALUES ('kept', 'delivered', '', '', 1, 'train-000000', 'MIT', 3, 10, 'w', '{}', 1);"
            "INSERT INTO item (uid, state, shard, views, finished) VALUES ('lost', 'delivered', 'train-000000', 3, 1);"
            "INSERT INTO shard VALUES ('train-000000', 'complete', 2, 6, 99, 1)"
        )


def test_a_ledger_of_an_earlier_version_is_read_as_it_is(tmp_path: Path) -> None:
    old_ledger(tmp_path / "ledger.sqlite")
    before = (tmp_path / "ledger.sqlite").read_bytes()
    with Ledger(tmp_path / "ledger.sqlite", readonly=True) as ledger:
        assert ledger.licenses() == {"": 1, "MIT": 1}
        assert ledger.licenses_of() == {"kept": "MIT"}
        assert list(ledger.works()) == [
            (Item("kept", "", license="MIT"), "train-000000"),
            (Item("lost", "", license=""), "train-000000"),
        ]
        assert [(group.source, group.license, group.named, group.count) for group in ledger.owed()] == [
            ("", "", 0, 1),
            ("", "MIT", 0, 1),
        ]
    assert (tmp_path / "ledger.sqlite").read_bytes() == before


def test_a_ledger_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    old_ledger(tmp_path / "ledger.sqlite")
    for _ in range(2):  # the second time nothing is missing
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            ledger.record(delivered("new"), "train-000001")
            ledger.record(failed("bad", "tiny"), None)
    with Ledger(tmp_path / "ledger.sqlite", readonly=True) as ledger:
        assert ledger.counts() == {"delivered": 3, "failed": 1}
        items = {item.uid: item for item, _ in ledger.works()}
    assert items["kept"] == Item("kept", "", license="MIT")
    credit = {"title": "A ü new", "author": "somebody"}
    assert items["new"] == dataclasses.replace(scene("new").item, credit=credit)


def test_ledger_knows_whom_to_name(tmp_path: Path) -> None:
    nasty = {"title": '"author": "nobody"', "page": "p\x00\ud800"}
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        for uid, credit in {"b": nasty, "a": {"author": "ü"}, "c": {"author": ""}}.items():
            one = dataclasses.replace(scene(uid), item=Item(uid, "web", "w://x", "MIT", "00", credit))
            ledger.record(Outcome(one.item, one), "train-000000")
        ledger.record(Outcome(Item("d", "web", license="MIT"), None, "tiny"), None)
        assert {(group.state, group.named): group.count for group in ledger.owed()} == {
            ("delivered", 0): 2,
            ("delivered", 1): 1,
            ("failed", 0): 1,
        }
        assert [item.uid for item, _ in ledger.works()] == ["a", "b", "c"]
        assert next(item for item, _ in ledger.works() if item.uid == "b").credit == nasty


def test_ledger_forgets_what_is_gone_and_what_failed(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        for uid, name in {"a": "train-000000", "b": "train-000001", "c": "train-000002"}.items():
            ledger.record(delivered(uid), name)
        ledger.record(failed("x", "tiny"), None)
        ledger.add_shard(booked("train-000000", "a", 10))
        ledger.add_shard(booked("train-000001", "b", 10))
        assert ledger.forget_missing(["train-000000", "train-000002"]) == ["train-000001"]  # 2 is an open journal
        assert ledger.delivered_in() == {"a": "train-000000", "c": "train-000002"}
        assert ledger.shards() == {"train-000000": "complete"}
        ledger.db.execute("UPDATE shard SET state = 'deleted' WHERE name = 'train-000000'")
        assert ledger.forget_missing([]) == ["train-000002"]  # a deletion on record is no loss
        assert ledger.delivered_in() == {"a": "train-000000"}
        assert ledger.totals()["shards"] == 0
        assert ledger.counts() == {"delivered": 1, "failed": 1}
        assert ledger.forget_failed() == 1
        assert ended(ledger, "abcdefx") == {"a"}


def test_ledger_orders_reasons_by_number(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        for i, reason in enumerate("rare often often zeal often middle middle".split()):
            ledger.record(failed(str(i), reason), None)
        assert list(ledger.reasons()) == ["often", "middle", "rare", "zeal"]
        assert [count for _, state, count in ledger.timeline() if state == "failed"] == [0] * 7
        ledger.record(failed("0", "often"), None)  # tried again: one line per item
        assert ledger.reasons() == {"often": 4, "middle": 2, "zeal": 1}


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.fixture(scope="module")
def one_ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with Ledger(tmp_path_factory.mktemp("words") / "ledger.sqlite") as ledger:
        yield ledger


@settings(deadline=None, max_examples=60)
@given(words, words, words)
def test_ledger_keeps_any_words(one_ledger: Ledger, uid: str, reason: str, detail: str) -> None:
    one_ledger.record(Outcome(Item(uid, "local"), None, reason, detail), None)
    assert (uid, detail, 1) in one_ledger.examples(reason, 10**6)
    assert uid in one_ledger.finished_uids()


@pytest.mark.parametrize("name", ["run #1", "50%41", "what?mode=ro", "a&b=c;d"])
def test_a_folder_of_any_name_holds_its_own_ledger(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with Ledger(folder / "ledger.sqlite") as ledger:
        ledger.record(failed("a", "tiny"), None)
    assert (folder / "ledger.sqlite").exists()
    with Ledger(folder / "ledger.sqlite", readonly=True) as ledger:
        assert ended(ledger, "abcdefx") == {"a"}
    assert {path.name for path in tmp_path.iterdir()} == {name}


def test_reading_a_ledger_that_is_not_there_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        Ledger(tmp_path / "ledger.sqlite", readonly=True)
    assert not list(tmp_path.iterdir())


# ---- checksums


def without_checksums(out: Path, scenes: list[Scene], close: bool) -> None:
    """A run as an earlier version leaves it: a shard, or an open journal, without the column."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_begun_with", lambda out, widths: [])
        begun = write(out, scenes)
    if close:
        begun.close("train")
    else:
        begun.leave()


def test_checksums_are_of_the_bytes(written: tuple[Path, list[Scene]]) -> None:
    frame = pd.read_parquet(written[0] / "32" / "train-000000.parquet")
    expected = [hashlib.sha256(image["bytes"]).digest()[:8] for image in frame["image"]]
    assert [int(number).to_bytes(8, "little") for number in frame["image_sha"]] == expected


@pytest.mark.parametrize("close", [True, False], ids=["closed", "open"])
def test_a_run_keeps_the_columns_that_it_began_with(tmp_path: Path, close: bool) -> None:
    first, second = scene("first"), scene("second")
    without_checksums(tmp_path, [first], close)
    later = ShardWriter(tmp_path, WIDTHS, (ROLE, TIME), FACTS, 1e12)
    later.reopen()
    later.add(second, "train", 1)
    later.close("train")
    found = [rows for path in sorted((tmp_path / "16").glob("*.parquet")) for rows in read_objects(path)]
    assert [(rows.uid, rows.shas, rows.roles, rows.times) for rows in found] == [
        (uid, None, None, None) for uid in ("first", "second")
    ]
    assert [rows.jpegs for rows in found] == [one.by_width[16].jpegs for one in (first, second)]
