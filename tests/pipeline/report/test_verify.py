"""A good run is ok; every kind of damage is named, with the object or the file that has it."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config.render import RenderConfig, SceneConfig
from pipeline.core import cameras
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome, Scene, Views
from pipeline.report.status import read_status, status_text
from pipeline.report.verify import Report, verify
from pipeline.run.policy import recover
from pipeline.storage.ledger import Ledger
from pipeline.storage.object_table import objects_told
from pipeline.storage.run_folder import locked
from pipeline.storage.uploads import InFolder
from pipeline.storage.writer import ShardWriter
from tests.conftest import lvsm_data_here

FACTS = {"config_hash": "0123456789abcdef"}
WIDTHS = (16, 32)
VIEWS = 2
LAYERS = ("alpha", "depth", "normals")


def picture(rng: np.random.Generator, hw: tuple[int, int], mode: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    pixels = rng.integers(0, 256, hw if mode == "PNG" else (*hw, 3), np.uint8)
    Image.fromarray(pixels).save(stream, mode)
    return stream.getvalue()


def scene(uid: str) -> Scene:
    rng = np.random.default_rng(list(uid.encode()))
    by_width = {
        width: Views(
            [picture(rng, (width, width)) for _ in range(VIEWS)],
            np.tile(cameras.intrinsics(50, (width, width)), (VIEWS, 1)).astype(np.float32),
            (width, width),
            {
                "alpha": [picture(rng, (width, width), "PNG") for _ in range(VIEWS)],
                "depth": [rng.bytes(4 * width * width) for _ in range(VIEWS)],
                "normals": [rng.bytes(12 * width * width) for _ in range(VIEWS)],
            },
        )
        for width in WIDTHS
    }
    return Scene(Item(uid, "local"), cameras.sample("shell", rng, VIEWS), by_width, {})


class Run:
    """A folder as the driver leaves it: two closed shards (a, b, c and d, e), an open one (f) and a failure (x)."""

    def __init__(self, out: Path) -> None:
        self.out = out
        out.mkdir()
        writer = ShardWriter(out, WIDTHS, LAYERS, FACTS, 1e12)
        with Ledger(out / "ledger.sqlite") as ledger:
            for number, uids in enumerate(["abc", "de"]):
                for uid in uids:
                    name, _ = writer.add(scene(uid), "train", number)
                    ledger.record(Outcome(scene(uid).item, scene(uid)), name)
                shard = writer.close("train")
                assert shard is not None
                ledger.add_shard(shard)
            ledger.record(Outcome(scene("f").item, scene("f")), writer.add(scene("f"), "train", 2)[0])
            ledger.record(Outcome(Item("x", "local"), None, "tiny"), None)
        # as kill -9 leaves it, with its journal
        journal = writer.open["train-000002"].path.read_bytes()
        writer.open["train-000002"].sink.close()
        (out / "journal" / "train-000002.arrow").write_bytes(journal)

    def path(self, number: int = 0, width: int = 16) -> Path:
        return self.out / str(width) / f"train-{number:06d}.parquet"

    def rewrite(self, change: Callable[[list[dict[str, Any]]], object], number: int = 0, width: int = 16) -> None:
        """The file again with changed rows, a group per object and the same metadata."""
        path = self.path(number, width)
        of = pq.read_schema(path)
        rows = pq.read_table(path).to_pylist()
        change(rows)
        with pq.ParquetWriter(path, of) as writer:
            for uid in dict.fromkeys(row["uid"] for row in rows):
                group = [row for row in rows if row["uid"] == uid]
                writer.write_table(pa.Table.from_pylist(group, schema=of))

    def books(self, statement: str) -> None:
        with sqlite3.connect(self.out / "ledger.sqlite") as database:
            assert database.execute(statement).rowcount == 1
        database.close()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Run(tmp_path_factory.mktemp("verify") / "run").out


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Run:
    """A copy of the good run, to be damaged."""
    copy = Run.__new__(Run)
    copy.out = tmp_path / "run"
    shutil.copytree(good, copy.out)
    return copy


def test_the_good_run_is_ok(good: Path) -> None:
    report = verify(good)
    assert report.problems == []
    assert (report.files, report.objects, report.views, report.ledger) == (4, 5, 5 * VIEWS, True)
    views = read_status(good)["views"] - VIEWS  # which of the open shard's object no shard holds yet
    assert report.line().startswith(
        f"ok: 4 shard files, 5 objects, {views} views at each of 16 and 32 px, ledger agrees"
    )
    assert "ledger agrees" in report.line()


def test_one_resolution_by_itself_is_ok(good: Path) -> None:
    report = verify(good / "32")
    assert report.problems == []
    assert (report.files, report.objects, report.views, report.ledger) == (2, 5, 5 * VIEWS, False)
    assert "no ledger" in report.line()


def test_a_table_of_objects_that_is_another_is_found(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, WIDTHS, LAYERS, FACTS, 1e12)
    for uid in "abcdef":
        writer.add(scene(uid), "train", 0)
    writer.close("train")
    path = tmp_path / "16" / "train-000000.parquet"
    assert verify(tmp_path).problems == []
    table = objects_told(path)
    table["uid"][1:3] = table["uid"][2:0:-1]
    groups = [pq.ParquetFile(path).read_row_group(group) for group in range(6)]
    with pq.ParquetWriter(path, pq.read_schema(path)) as file:
        for group in groups:
            file.write_table(group.replace_schema_metadata(file.schema.metadata))
        file.add_key_value_metadata({"lvsm_data_objects": json.dumps(table)})
    (problem,) = verify(tmp_path).problems
    assert "names others than its rows" in problem


def test_checking_changes_nothing(run: Run) -> None:
    """But for what SQLite puts beside a ledger that somebody reads, to keep readers and writers apart."""

    def files() -> dict[Path, bytes]:
        return {
            path: path.read_bytes()
            for path in run.out.rglob("*")
            if path.is_file() and not path.name.endswith(("-shm", "-wal"))
        }

    before = files()
    verify(run.out)
    assert files() == before


def test_nothing_to_check_is_a_user_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError):
            verify(folder)


# ---- damage, each with what has to be named


def truncated(run: Run) -> None:
    path = run.path(1)
    path.write_bytes(path.read_bytes()[:-100])


def emptied(run: Run) -> None:
    run.path(1).write_bytes(b"")


def flipped_data(run: Run) -> None:
    data = bytearray(run.path().read_bytes())
    at = data.index(scene("b").by_width[16].jpegs[0]) + 2
    data[at : at + 30] = bytes(30)  # behind the first marker of a JPEG; the container cannot see it
    run.path().write_bytes(bytes(data))


def flipped_pose(run: Run) -> None:
    path = run.path()
    place = (
        pq.read_metadata(path).row_group(1).column(pq.read_schema(path).names.index("c2w") + 1)
    )  # image is two columns
    data = bytearray(path.read_bytes())
    data[place.data_page_offset + place.total_compressed_size - 1] ^= 1
    path.write_bytes(bytes(data))


def other_pixels(run: Run) -> None:
    """A JPEG that decodes, of the right size, which is not the one that was written."""
    run.rewrite(lambda rows: rows[3]["image"].update(bytes=rows[2]["image"]["bytes"]))


def wrong_column(run: Run) -> None:
    table = pq.read_table(run.path())
    pq.write_table(table.drop_columns(["sha256"]), run.path())


def wrong_type(run: Run) -> None:
    table = pq.read_table(run.path())
    wide = table["view"].cast(pa.int64())
    pq.write_table(table.set_column(table.schema.get_field_index("view"), "view", wide), run.path())


def somebody_elses(run: Run) -> None:
    pq.write_table(pa.table({"a": [1]}), run.path(1))


def broken_jpeg(run: Run) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[3]["image"]["bytes"] = rows[3]["image"]["bytes"][:-40]

    run.rewrite(change)


def absurd_jpeg(run: Run) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        data = bytearray(rows[3]["image"]["bytes"])
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, 65_000, 65_000)
        rows[3]["image"]["bytes"] = bytes(data)

    run.rewrite(change)


def no_jpeg(run: Run) -> None:
    run.rewrite(lambda rows: rows[3]["image"].update(bytes=b""))


def gray_jpeg(run: Run) -> None:
    stream = io.BytesIO()
    Image.new("L", (16, 16)).save(stream, "JPEG")
    run.rewrite(lambda rows: rows[3]["image"].update(bytes=stream.getvalue()))


def wrong_size_image(run: Run) -> None:
    data = picture(np.random.default_rng(0), (16, 24))
    run.rewrite(lambda rows: rows[3]["image"].update(bytes=data))


def wrong_width(run: Run) -> None:
    data = picture(np.random.default_rng(0), (16, 24))
    run.rewrite(lambda rows: [row.update(width=24, image={"bytes": data, "path": None}) for row in rows[2:4]])


def scaled_pose(run: Run) -> None:
    run.rewrite(lambda rows: rows[3].update(c2w=(np.array(rows[3]["c2w"]) * ([1.01] * 12 + [1] * 4)).tolist()))


def mirrored_pose(run: Run) -> None:
    run.rewrite(lambda rows: rows[3].update(c2w=(np.array(rows[3]["c2w"]) * ([-1, 1, 1, 1] * 3 + [1] * 4)).tolist()))


def transposed_pose(run: Run) -> None:
    run.rewrite(lambda rows: rows[3].update(c2w=np.reshape(rows[3]["c2w"], (4, 4)).T.ravel().tolist()))


def wrong_last_row(run: Run) -> None:
    run.rewrite(lambda rows: rows[3].update(c2w=[*rows[3]["c2w"][:15], 1.001]))


def not_a_number(run: Run) -> None:
    run.rewrite(lambda rows: rows[3].update(c2w=[float("nan"), *rows[3]["c2w"][1:]]))


def infinite_focal(run: Run) -> None:
    run.rewrite(lambda rows: rows[3].update(fxfycxcy=[float("inf"), 20, 8, 8]))


def negative_focal(run: Run) -> None:
    run.rewrite(lambda rows: rows[3].update(fxfycxcy=[20, -20, 8, 8]))


def short_depth(run: Run) -> None:
    run.rewrite(lambda rows: rows[3].update(depth=rows[3]["depth"][:-4]))


def short_normals(run: Run) -> None:
    run.rewrite(lambda rows: rows[3].update(normals=rows[3]["depth"]))


def broken_alpha(run: Run) -> None:
    run.rewrite(lambda rows: rows[3].update(alpha=b"no PNG"))


def missing_image(run: Run) -> None:
    run.rewrite(lambda rows: rows[3].update(image=None))


def missing_pose(run: Run) -> None:
    run.rewrite(lambda rows: rows[3].update(c2w=None))


def meta_is_no_json(run: Run) -> None:
    run.rewrite(lambda rows: [row.update(meta="{") for row in rows[2:4]])


def a_view_too_few(run: Run) -> None:
    run.rewrite(lambda rows: rows.pop(3))


def views_in_another_order(run: Run) -> None:
    run.rewrite(lambda rows: rows.insert(2, rows.pop(3)))


def other_poses_than_the_other_resolution(run: Run) -> None:
    run.rewrite(lambda rows: rows[3].update(c2w=rows[2]["c2w"]))


def two_objects_in_one_group(run: Run) -> None:
    path = run.path()
    table, of = pq.read_table(path), pq.read_schema(path)
    pq.write_table(table.cast(of), path, row_group_size=2 * VIEWS)  # a and b, then c


def twice_in_two_shards(run: Run) -> None:
    for width in WIDTHS:
        group = pq.ParquetFile(run.path(0, width)).read_row_group(1)
        with pq.ParquetWriter(run.path(2, width), pq.read_schema(run.path(0, width))) as writer:
            writer.write_table(group)


def missing_resolution_of_a_shard(run: Run) -> None:
    run.path(0, 16).unlink()


def missing_largest_resolution_of_a_shard(run: Run) -> None:
    run.path(0, 32).unlink()


def missing_object_at_one_resolution(run: Run) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[:] = [row for row in rows if row["uid"] != "b"]

    run.rewrite(change)


def wrong_folder(run: Run) -> None:
    run.path(0, 32).rename(run.path(0, 16))


def ledger_says_another_shard(run: Run) -> None:
    run.books("UPDATE item SET shard = 'train-000001' WHERE uid = 'b'")


def ledger_says_failed(run: Run) -> None:
    run.books("UPDATE item SET state = 'failed', shard = NULL WHERE uid = 'b'")


def ledger_says_another_license(run: Run) -> None:
    run.books("UPDATE item SET license = 'CC0-1.0' WHERE uid = 'b'")


def other_license_than_the_other_resolution(run: Run) -> None:
    run.rewrite(lambda rows: [row.update(license="CC0-1.0") for row in rows[2:4]])


def ledger_does_not_know(run: Run) -> None:
    run.books("DELETE FROM item WHERE uid = 'b'")


def ledger_claims_more(run: Run) -> None:
    run.books("INSERT INTO item (uid, state, shard, finished) VALUES ('ghost', 'delivered', 'train-000001', 0)")


def ledger_claims_a_journal_that_is_gone(run: Run) -> None:
    (run.out / "journal" / "train-000002.arrow").unlink()


DAMAGE: dict[Callable[[Run], None], str] = {
    truncated: r"^train-000001\.parquet: ",
    emptied: r"^train-000001\.parquet: ",
    flipped_data: r"^train-000000\.parquet: b: cannot be read: .*checksum",
    flipped_pose: r"^train-000000\.parquet: b: cannot be read: .*checksum",
    other_pixels: r"^train-000000\.parquet: b: bytes of views \[1\] are not those that were written",
    wrong_column: r"^train-000000\.parquet: columns differ",
    wrong_type: r"^train-000000\.parquet: columns differ",
    somebody_elses: r"^train-000001\.parquet: .*not written by",
    broken_jpeg: r"^train-000000\.parquet: b: an image does not decode",
    absurd_jpeg: r"^train-000000\.parquet: b: an image ",
    no_jpeg: r"^train-000000\.parquet: b: an image does not decode",
    gray_jpeg: r"^train-000000\.parquet: b: an image has shape \(16, 16\)",
    wrong_size_image: r"^train-000000\.parquet: b: an image has shape \(16, 24, 3\)",
    wrong_width: r"^train-000000\.parquet: b: width 24 among 16",
    scaled_pose: r"^train-000000\.parquet: b: rotations are not orthonormal",
    mirrored_pose: r"^train-000000\.parquet: b: rotations are not orthonormal",
    transposed_pose: r"^train-000000\.parquet: b: the last row",
    wrong_last_row: r"^train-000000\.parquet: b: the last row",
    not_a_number: r"^train-000000\.parquet: b: poses are not finite",
    infinite_focal: r"^train-000000\.parquet: b: poses are not finite",
    negative_focal: r"^train-000000\.parquet: b: a focal length",
    short_depth: r"^train-000000\.parquet: b: depth has not 1024 bytes",
    short_normals: r"^train-000000\.parquet: b: normals has not 3072 bytes",
    broken_alpha: r"^train-000000\.parquet: b: .*alpha",
    missing_image: r"^train-000000\.parquet: ",
    missing_pose: r"^train-000000\.parquet: ",
    meta_is_no_json: r"^train-000000\.parquet: ",
    a_view_too_few: r"\bb\b",
    views_in_another_order: r"\bb\b",
    other_poses_than_the_other_resolution: r"\bb\b",
    two_objects_in_one_group: r"^train-000000\.parquet: ",
    twice_in_two_shards: r"^train-000002\.parquet: b stands in train-000000 already",
    missing_resolution_of_a_shard: r"16 px and 32 px hold different objects, for example a",
    missing_largest_resolution_of_a_shard: r"16 px and 32 px hold different objects, for example a",
    missing_object_at_one_resolution: r"16 px and 32 px hold different objects, for example b",
    wrong_folder: r"^train-000000\.parquet: says width 32, stands in 16",
    ledger_says_another_shard: r"^b stands in train-000000, the ledger says train-000001",
    ledger_says_failed: r"^b stands in train-000000, the ledger says nothing",
    ledger_says_another_license: r"^b has license 'unknown', the ledger says 'CC0-1.0'",
    other_license_than_the_other_resolution: r"16 px and 32 px hold different objects, for example b",
    ledger_does_not_know: r"^b stands in train-000000, the ledger says nothing",
    ledger_claims_more: r"^ghost: the ledger says train-000001, no shard holds it",
    ledger_claims_a_journal_that_is_gone: r"^f: the ledger says train-000002, no shard holds it",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_reported_and_named(run: Run, damage: Callable[[Run], None]) -> None:
    damage(run)
    report = verify(run.out)
    assert [problem for problem in report.problems if re.search(DAMAGE[damage], problem)], report.problems
    assert report.line().startswith(f"{len(report.problems)} problems: ")


def test_damage_in_one_shard_does_not_hide_damage_in_the_next(run: Run) -> None:
    truncated(run)
    broken_jpeg(run)
    named = "\n".join(verify(run.out).problems)
    assert "train-000001.parquet: " in named
    assert "train-000000.parquet: b: an image does not decode" in named


def test_rewriting_by_itself_is_no_damage(run: Run) -> None:
    """Else the tests above would show nothing."""
    run.rewrite(lambda rows: None)
    assert verify(run.out).problems == []


def test_a_shard_that_was_deleted_on_record_is_no_problem(run: Run) -> None:
    for width in WIDTHS:
        run.path(1, width).unlink()
    assert any(re.match("d: the ledger says train-000001", problem) for problem in verify(run.out).problems)
    run.books("UPDATE shard SET state = 'deleted' WHERE name = 'train-000001'")
    report = verify(run.out)
    assert report.problems == []
    assert report.objects == 3


def test_a_license_that_an_earlier_version_lost_is_no_problem(run: Run) -> None:
    run.books("UPDATE item SET license = '' WHERE uid = 'b'")
    assert verify(run.out).problems == []


def test_a_run_without_a_ledger_is_checked_all_the_same(run: Run) -> None:
    for path in run.out.glob("ledger.sqlite*"):
        path.unlink()
    assert verify(run.out).problems == []
    wrong_last_row(run)
    assert len(verify(run.out).problems) == 2  # the pose itself, and that the other resolution has another one


def test_a_run_whose_shards_are_all_gone_is_damaged(run: Run) -> None:
    for width in WIDTHS:
        shutil.rmtree(run.out / str(width))
    assert any(re.match("a: the ledger says train-000000", problem) for problem in verify(run.out).problems)


def test_status_says_that_shards_are_gone(run: Run) -> None:
    assert read_status(run.out)["shards_missing"] == 0
    run.path(1, 16).unlink()
    said = status_text(read_status(run.out))
    assert "\n1 of these shards are gone: the same command makes their objects again" in said
    run.books("UPDATE shard SET state = 'deleted' WHERE name = 'train-000001'")
    assert read_status(run.out)["shards_missing"] == 0


@pytest.mark.parametrize("file", ["run.json", "status.json", "ledger.sqlite"])
def test_damaged_papers_of_a_run_are_named(file: str, run: Run) -> None:
    (run.out / file).write_text("{ this is damaged " * 300)
    for verb in ("status", "verify"):
        done = lvsm_data_here(verb, run.out)
        assert done.returncode == 0 or str(run.out / file) in done.stderr, done.stderr
    if file == "status.json":  # which a run writes, and does not go by
        return
    done = lvsm_data_here("render", "--n", 7, "--res", *WIDTHS, "--executor", "inline", "--out", run.out)
    assert done.returncode == 2 and str(run.out / file) in done.stderr, done.stderr


def test_the_verdict_in_one_line() -> None:
    assert Report(files=1, objects=2, views=6).line() == "ok: 1 shard files, 2 objects, 6 views, no ledger"
    two = Report(files=2, objects=2, views=6, widths=(64, 256))
    assert two.line() == "ok: 2 shard files, 2 objects, 6 views at each of 64 and 256 px, no ledger"
    bad = dataclasses.replace(Report(ledger=True), problems=["one"])
    assert bad.line().startswith("1 problems: ")
    assert "ledger agrees" not in bad.line()
    assert json.dumps(dataclasses.asdict(bad))


JOURNAL = {
    "cut": lambda data: data[: len(data) // 2],
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1 :],
    "zeros": lambda data: bytes(len(data)),
    "empty": lambda data: b"",
}
FILE = {
    "cut": lambda data: data[:-9],
    "longer": lambda data: data + b"more",
    "footer": lambda data: (
        data[: (begin := len(data) - 8 - int.from_bytes(data[-8:-4], "little"))] + bytes(32) + data[begin + 32 :]
    ),
    "empty": lambda data: b"",
}


def resumed(run: Run) -> list[str]:
    """What a session says at its start; what `verify` then finds has to be nothing."""
    cfg = RenderConfig(n=9, out=run.out, scene=SceneConfig(res=WIDTHS)).resolved()
    with Ledger(run.out / "ledger.sqlite") as ledger:
        notes = recover(cfg, ledger, ShardWriter(run.out, WIDTHS, LAYERS, FACTS, 1e12), InFolder())[1]
    assert verify(run.out).problems == []
    return notes


@pytest.mark.parametrize("how", JOURNAL)
def test_a_session_begins_without_what_a_damaged_journal_lost(how: str, run: Run) -> None:
    path = run.out / "journal" / "train-000002.arrow"
    path.write_bytes(JOURNAL[how](path.read_bytes()))
    (note,) = resumed(run)
    assert note.endswith((" damaged: making them again", "making what they held again"))
    with Ledger(run.out / "ledger.sqlite") as ledger:
        assert ledger.counts() == {"delivered": 5, "failed": 1}


@pytest.mark.parametrize("how", FILE)
def test_a_session_begins_without_damaged_shards(how: str, run: Run) -> None:
    path = run.path(1, 32)
    path.write_bytes(FILE[how](before := path.read_bytes()))
    damaged, recovered, gone = resumed(run)
    assert (
        damaged.startswith("train-000001 is damaged, and taken away: ")
        and "1 shard no longer on disk (train-000001)" in gone
    )
    assert recovered == "recovered 1 objects of an interrupted session"
    assert path.with_name("train-000001.parquet.damaged").read_bytes() == FILE[how](before)
    with Ledger(run.out / "ledger.sqlite") as ledger:
        assert ledger.counts() == {"delivered": 4, "failed": 1}


def test_repair_takes_away_what_is_damaged_within(run: Run) -> None:
    """Bytes in the middle of an image, which neither size nor footer show; and an object that the ledger alone has."""
    data = bytearray(run.path(0, 32).read_bytes())
    data[len(data) // 3] ^= 255
    run.path(0, 32).write_bytes(data)
    run.books("INSERT INTO item (uid, state, shard, finished) VALUES ('lost', 'delivered', 'train-000001', 0)")
    found = lvsm_data_here("verify", run.out, "--repair")
    assert found.returncode == 1 and "set aside: 32/train-000000.parquet.damaged" in found.stdout
    assert "4 objects to be made again: by the command that made the run" in found.stdout
    assert verify(run.out).problems == []
    assert "to be made again" not in lvsm_data_here("verify", run.out, "--repair").stdout
    with locked(run.out):
        run.path(1).write_bytes(b"")
        refused = lvsm_data_here("verify", run.out, "--repair")
    assert refused.returncode == 2 and "another run is writing" in refused.stderr


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "other bytes": lambda data: np.random.default_rng(0).bytes(len(data)),
    "no facts": lambda data: b"{}",
    "a list": lambda data: b"[1]",
    "null": lambda data: b"null",
    "another kind": lambda data: b'{"identity": "x", "facts": [], "state": "running"}',
}


@pytest.mark.parametrize("name", ["run.json", "status.json", "ledger.sqlite"])
def test_damaged_files_of_a_run_are_refused_with_a_next_step_or_do_not_matter(name: str, run: Run) -> None:
    """A folder in the place of the file as well."""
    (run.out / "run.json").write_text(json.dumps({"identity": {"res": WIDTHS, "source": "local", "n": 5}, "facts": {}}))
    (run.out / "status.json").write_text(json.dumps({"state": "finished", "n": 5}))
    path = run.out / name
    whole, said = path.read_bytes(), []
    for how in (*SPOILED, "folder"):
        if how == "folder":
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(SPOILED[how](whole))
        for words in (("status",), ("verify",), ("licenses",), ("audit",), ("view", "--out", run.out / "page.html")):
            ended = lvsm_data_here(words[0], run.out, *words[1:])
            assert ended.returncode in (0, 1, 2), (how, words, ended.stderr)
            if ended.returncode == 2:
                error, hint = ended.stderr.strip().splitlines()[-2:]
                assert error.startswith("error: ") and hint.startswith("hint: "), (how, words)
                said.append(error)
    assert any(name in error for error in said) or name == "status.json"
