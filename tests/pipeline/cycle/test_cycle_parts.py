"""The pieces of a cycle's driver: sizes, a disk that is full, journals, ledger, audit, the trainer's process and its log."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsm_train.config.train import DataConfig, TrainConfig
from pipeline.config.cycle import FREE_SHARE, CycleConfig, bytes_of, divide
from pipeline.core.disk import append, bytes_below, disk_below, disk_of, is_full, patiently, write_json
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome, Scene, Views
from pipeline.cycle import audit as auditing
from pipeline.cycle import protocol
from pipeline.cycle.audit import audit
from pipeline.cycle.protocol import TRAIN, Cursor, Slot, Waiting, Window, committed, layout
from pipeline.cycle.trainer import LOG, TIMES, Trainer
from pipeline.storage import journal as journals
from pipeline.storage.ledger import Kept, Ledger
from pipeline.storage.object_table import uids_of
from pipeline.storage.run_folder import locked
from pipeline.storage.shards import Entry, Shard
from pipeline.storage.train_run import CHECKPOINTS, TrainingLog
from pipeline.storage.writer import ShardWriter
from tests.conftest import lvsm_data_here

FACTS = {"config_hash": "0"}
WIDTHS = (8, 16)


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Path]:
    """A disk of so many MiB at a path. Skips the test where mounting is not allowed."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(path)]
    try:
        made = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if made.returncode:
        pytest.skip(f"mounting is not allowed: {made.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path, left: int) -> Path:
    """A file of others that leaves so many bytes of a disk free."""
    path = disk / "others"
    path.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - left)))
    return path


def scene(uid: str, size: int = 50, views: int = 2) -> Scene:
    """Not a picture: bytes of which nobody here looks at one."""
    rng = np.random.default_rng(size)
    by_width = {
        width: Views([rng.bytes(size) for _ in range(views)], np.ones((views, 4), np.float32), (width, width))
        for width in WIDTHS
    }
    return Scene(Item(uid, "test", license="cc0"), np.zeros((views, 4, 4), np.float32), by_width, {})


def writer(out: Path) -> ShardWriter:
    return ShardWriter(out, WIDTHS, (), FACTS, 1e12)


def entry(uid: str) -> Entry:
    return Entry(Item(uid, "test", license="cc0"), 2, 100)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.core.disk.LOOK_AGAIN_S", 0.001)


# ---- sizes and flags


@pytest.mark.parametrize(
    ("text", "size"),
    [("50GB", 5e10), ("300mb", 3e8), ("1.5 T", 1.5e12), ("2GiB", 2e9), ("700", 700), ("12k", 12e3), (" 1 b ", 1)],
)
def test_sizes(text: str, size: float) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "0.0GB", "-1GB", "1e9", "5 bytes", "1,5GB", "50GBB", "ten"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UserError, match="is no size") as error:
        bytes_of(text)
    assert "50GB" in error.value.hint


@given(st.floats(0.1, 9e3), st.sampled_from("kmgt"), st.booleans(), st.booleans())
def test_sizes_as_people_write_them(number: float, unit: str, upper: bool, spaced: bool) -> None:
    text = f"{number:.3f}{' ' * spaced}{unit}b"
    expected = float(f"{number:.3f}") * 1000 ** ("kmgt".index(unit) + 1)
    assert bytes_of(text.upper() if upper else text) == pytest.approx(expected)


def test_a_budget_is_divided_into_all_of_it() -> None:
    cfg = CycleConfig(n=1000, workers=2)
    shares = divide(cfg, 1e9, 2e8, steps=5000, looks=10)
    parts = (shares.shards, shares.papers, shares.checkpoints, shares.raw, shares.scratch)
    assert sum(parts) == 1e9 and min(parts[:3]) > 0 and shares.raw == 0 and shares.checkpoints == 2e8
    assert "at most 1.0 GB = shards" in shares.line() and "downloads" not in shares.line()
    remote = divide(CycleConfig(n=1000, workers=2, source="objaverse", raw_gb=50), 1e9, 2e8, 5000, 10)
    assert remote.raw == pytest.approx(2e8) and "downloads 200.0 MB" in remote.line()
    assert divide(CycleConfig(n=1000, workers=2, source="objaverse", raw_gb=0.05), 1e9, 2e8, 5000, 10).raw == 5e7


def test_a_budget_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"budget of 100\.0 MB leaves nothing for shards: checkpoints 90\.0 MB"
    ) as error:
        divide(CycleConfig(n=10, workers=1), 1e8, 9e7, 100, 0)
    assert "more than --disk-budget 123MB" in error.value.hint
    assert divide(CycleConfig(n=10, workers=1), 123e6, 9e7, 100, 0).shards > 0
    with pytest.raises(UserError, match="downloads") as error:
        divide(CycleConfig(n=10, workers=1, source="objaverse"), 1e8, 9e7, 100, 0)
    assert "more than --disk-budget 153MB" in error.value.hint
    assert divide(CycleConfig(n=10, workers=1, source="objaverse"), 153e6, 9e7, 100, 0).shards > 0


def test_without_a_budget_it_is_a_share_of_what_is_free(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 10) as disk:
        cfg = CycleConfig(out=disk / "not" / "yet")
        assert cfg.budget() == pytest.approx(FREE_SHARE * 10 * 2**20, rel=0.01)
        assert dataclasses.replace(cfg, disk_budget="3MB").budget() == 3e6
        (disk / "not" / "yet").mkdir(parents=True)
        (disk / "not" / "yet" / "shard").write_bytes(bytes(2**20))  # ours: it counts as free
        assert cfg.budget() == pytest.approx(FREE_SHARE * 10 * 2**20, rel=0.01)


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--passes", "many"), "error: --passes many is no number of passes"),
        (("--passes", "0"), "error: --passes 0 is no number of passes"),
        (("--window", 0), "error: --window 0 is too small"),
        (("--max-passes", -1), "error: --max-passes -1 is too small"),
        (("--val-percent", 0), "error: a cycle keeps some objects to measure with"),
        (("--keep-raw",), "error: --keep-raw does not go with a cycle"),
        (("--disk-budget", "lots"), "error: --disk-budget lots is no size"),
        (("--disk-budget", "30MB", "--passes", 1), "error: a disk budget of 30.0 MB leaves nothing for shards"),
    ],
)
def test_flags_that_make_no_sense(flags: tuple[object, ...], error: str, tmp_path: Path) -> None:
    made = lvsm_data_here("cycle", "--n", 4, "--out", tmp_path / "out", *flags)
    assert made.returncode == 2 and made.stderr.startswith(error) and "hint: " in made.stderr
    assert "Traceback" not in made.stderr and not (tmp_path / "out" / "ledger.sqlite").exists()


def test_a_budget_that_is_no_size_is_found_at_once() -> None:
    with pytest.raises(UserError, match="--disk-budget lots is no size"):
        CycleConfig(disk_budget="lots").resolved()


@pytest.mark.parametrize("name", ["max_passes", "window", "shard_objects", "train_threads"])
def test_counts_of_a_cycle_are_positive(name: str) -> None:
    for value in (0, -1):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} {value} is too small"):
            CycleConfig(**{name: value}).resolved()  # type: ignore[arg-type]
    assert getattr(CycleConfig(**{name: 1}).resolved(), name) == 1  # type: ignore[arg-type]


# ---- a disk that is full


@given(st.lists(st.integers(0, 9000), min_size=1, max_size=4))
@settings(deadline=None, max_examples=20)
def test_an_append_is_whole_or_nothing(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    parts = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    with (
        small_disk(tmp_path_factory.mktemp("room") / "disk", 1) as disk,
        (disk / "log").open("ab", buffering=0) as sink,
    ):
        append(sink, b"before")
        fill(disk, 8192)
        if sum(sizes) <= 8192:
            append(sink, *parts)
            assert (disk / "log").read_bytes() == b"before" + b"".join(parts)
        if sum(sizes) > 4090 + 8192:  # the rest of a page that is there, and two more
            with pytest.raises(OSError, match="No space left") as error:
                append(sink, *parts)
            assert is_full(error.value) and (disk / "log").read_bytes() == b"before"
        (disk / "others").unlink()
        before = (disk / "log").read_bytes()
        append(sink, *parts)
        assert (disk / "log").read_bytes() == before + b"".join(parts)


@pytest.mark.usefixtures("soon")
def test_patience_ends_when_there_is_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        others, asked = fill(disk, 0), itertools.count(1)

        def enough() -> bool:
            if next(asked) == 3:
                others.unlink()
            return False

        (disk / TRAIN).mkdir()
        patiently(lambda: Waiting(3).write(disk), disk, enough)
        assert next(asked) == 4 and Waiting.read(disk) == Waiting(3)
    said = capsys.readouterr().err.splitlines()
    assert [f"the disk of {disk} is full" in said[0], f"the disk of {disk} has room again" in said[1]] == [True, True]
    assert len(said) == 2


@pytest.mark.usefixtures("soon")
def test_patience_has_its_limits(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        old = Window(2, 5, {0: Slot(3, 4)}, True, 1, True)
        old.write(disk)
        fill(disk, 0)
        with pytest.raises(OSError, match="No space left"):
            patiently(lambda: Window(1, 1).write(disk), disk, lambda: True)
        assert Window.read(disk) == old and not list(disk.glob("*.tmp"))  # the old one is in place

    def quota() -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with pytest.raises(OSError, match="quota"):
        patiently(quota, tmp_path, lambda: True)
    with pytest.raises(FileNotFoundError):  # no matter of patience
        patiently(lambda: (tmp_path / "nowhere" / "file").write_text(""), tmp_path)


# ---- journals


def journal() -> tuple[bytes, list[int]]:
    """Four objects, and where the record of each ends, that of the schema first."""
    with tempfile.TemporaryDirectory() as folder:
        of, ends = writer(Path(folder)), []
        for number in range(4):
            of.append("train-000003", of.pack(scene(f"object-{number}", 20 + 30 * number)))
            ends.append((Path(folder) / "journal" / "train-000003.arrow").stat().st_size)
        of.leave()
        data = (Path(folder) / "journal" / "train-000003.arrow").read_bytes()
    (length,) = np.frombuffer(data[:8], np.uint64).tolist()
    return data, [journals.RECORD.size + length, *ends]


JOURNAL, ENDS = journal()


@given(st.integers(0, len(JOURNAL)), st.sampled_from(["cut", "zeros", "flipped"]), st.permutations(range(5)))
@settings(deadline=None, max_examples=50)
def test_a_journal_that_was_cut_anywhere_goes_on(at: int, how: str, order: list[int]) -> None:
    data = JOURNAL[:at]
    if how == "zeros":
        data += bytes(len(JOURNAL) - at)
    if how == "flipped" and at < len(JOURNAL):
        data += bytes([JOURNAL[at] ^ 64]) + JOURNAL[at + 1 :]
    whole = [f"object-{number}" for number, end in enumerate(ENDS[1:]) if end <= at]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        of = writer(out)
        (out / "8" / "train-000002.tmp").write_bytes(b"half")
        path = out / "journal" / "train-000003.arrow"
        path.write_bytes(data)
        assert [batch.column("uid")[0].as_py() for batch in journals.mend(path)[0]] == whole
        found = of.reopen()
        assert [each.item.uid for each in found["train-000003"]] == whole and not list(out.glob("8/*"))
        assert all((each.views, each.item.license) == (2, "cc0") for each in found["train-000003"])
        rest = [f"object-{number}" for number in range(5) if f"object-{number}" not in whole]
        for uid in rest:
            of.append("train-000003", of.pack(scene(uid)))
        made = of.publish("train-000003", [f"object-{number}" for number in order])
        assert made is not None and not path.exists()
        assert list(made.uids) == [f"object-{number}" for number in order]
        assert all(list(made.uids) == uids_of(out / str(width) / "train-000003.parquet") for width in WIDTHS)


def test_an_empty_journal_makes_no_shard(tmp_path: Path) -> None:
    of = writer(tmp_path)
    (tmp_path / "journal" / "train-000000.arrow").touch()
    assert of.reopen() == {"train-000000": []} and of.publish("train-000000") is None
    assert not list(tmp_path.rglob("*.arrow")) and not list(tmp_path.rglob("*.parquet"))


def test_a_full_disk_loses_no_object(tmp_path: Path) -> None:
    """Neither where an object is appended, nor where a journal becomes a shard: both can be tried again."""
    with small_disk(tmp_path / "disk", 2) as disk:
        of = writer(disk)
        of.append("train-000000", of.pack(scene("one", 100_000)))
        others = fill(disk, 60_000)
        for name in ("train-000000", "train-000001"):
            with pytest.raises(OSError, match="No space left") as error:
                of.append(name, of.pack(scene("two", 100_000)))
            assert is_full(error.value)
        with pytest.raises(OSError, match="No space left") as error:
            of.publish("train-000000")
        assert is_full(error.value) and not list(disk.rglob("*.tmp"))
        others.unlink()
        of.append("train-000000", of.pack(scene("two", 1000)))
        made = of.publish("train-000000", ["two", "one"])
        assert made is not None and made.uids == ("two", "one")
        assert made.file_bytes == sum(path.stat().st_size for path in disk.rglob("*.parquet"))
        of.leave()


# ---- the ledger


def test_the_ledger_books_what_journals_hold(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.book([entry("a"), entry("b")], "train-000000")
        ledger.book([entry("c")], "train-000001")
        ledger.book([entry("b"), entry("d")], "train-000000")  # a power cut took a; d's line was not written yet
        assert ledger.delivered_in() == {"b": "train-000000", "c": "train-000001", "d": "train-000000"}
        ledger.book([], "train-000001")
        assert ledger.counts() == {"delivered": 2} and ledger.kept() == {}
        assert ledger.licenses() == {"cc0": 2} and ledger.delivered_by_split() == {"train": 2}


def test_the_ledger_remembers_shards_that_are_gone(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.add_shard(Shard("train-000000", (entry("a"), entry("b")), 900), passes=3)
        ledger.add_shard(Shard("train-000001", (entry("c"),), 500), passes=2)
        ledger.add_shard(Shard("train-000002", (), 0), passes=2)
        ledger.delete_shards(["train-000000", "train-000007"])
        assert ledger.kept() == {
            "train-000000": Kept("deleted", 2, 900, 3),
            "train-000001": Kept("complete", 1, 500, 2),
            "train-000002": Kept("deleted", 0, 0, 2),  # there never was a file
        }
        assert ledger.forget_missing(["train-000001"]) == []
        assert ended(ledger, "abcd") == {"a", "b", "c"}
        assert ledger.forget_missing([]) == ["train-000001"]
        assert ended(ledger, "abcd") == {"a", "b"} and set(ledger.kept()) == {"train-000000", "train-000002"}


def test_a_ledger_of_an_earlier_version_learns_of_passes(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db, db:
        db.execute(
            "CREATE TABLE shard (name TEXT PRIMARY KEY, state TEXT, objects INTEGER, rows INTEGER, bytes INTEGER, finished REAL)"
        )
        db.execute("INSERT INTO shard VALUES ('train-000000', 'complete', 5, 50, 1000, 0)")
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.kept() == {"train-000000": Kept("complete", 5, 1000, 0)}


def test_a_ledger_on_a_full_disk_says_so_and_goes_on(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk, Ledger(disk / "ledger.sqlite") as ledger:
        ledger.add_shard(Shard("train-000000", (entry("first"),), 1), 1)
        others = fill(disk, 0)
        booked = itertools.count()
        with pytest.raises(OSError, match="No space left") as error:
            fail_many(ledger, booked)
        assert is_full(error.value)
        failed = next(booked) - 1
        assert ledger.counts()["delivered"] == 1  # it can be read meanwhile
        for write in (
            lambda: ledger.book([entry(f"more-{number}") for number in range(500)], "train-000001"),
            lambda: ledger.add_shard(Shard("train-000001", tuple(entry(f"o-{i}") for i in range(500)), 1), 1),
        ):
            with pytest.raises(OSError, match="No space left"):
                write()
        others.unlink()
        ledger.record(Outcome(Item("last", "test"), None, "blank"), None)
        ledger.book([entry("more")], "train-000001")
        ledger.delete_shards(["train-000000"])
        assert ledger.counts() == {"delivered": 2, "failed": failed + 1}
        assert ledger.kept()["train-000000"].state == "deleted"


def ended(ledger: Ledger, uids: str) -> set[str]:
    finished = ledger.finished_uids()
    return {uid for uid in uids if uid in finished}


def fail_many(ledger: Ledger, numbers: Iterator[int]) -> None:
    for number in itertools.islice(numbers, 3000):
        ledger.record(Outcome(Item(f"failed-{number}", "test"), None, "blank", "x" * 500), None)


def test_a_ledger_cannot_be_opened_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        with Ledger(disk / "ledger.sqlite") as ledger:
            ledger.add_shard(Shard("train-000000", (entry("a"),), 1), 1)
        others = fill(disk, 0)
        with pytest.raises(OSError, match="No space left") as error:
            Ledger(disk / "ledger.sqlite")
        assert is_full(error.value)
        others.unlink()
        with Ledger(disk / "ledger.sqlite") as ledger:
            assert ledger.counts() == {"delivered": 1}


# ---- the newest checkpoint, and the audit


def note(out: Path, step: int, cursor: Cursor) -> None:
    (out / TRAIN / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    write_json(out / TRAIN / CHECKPOINTS / f"step-{step:08d}.json", {"step": step, "cursor": cursor.as_json()})


def test_the_newest_checkpoint_may_go_while_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extra one does, as soon as the next is there."""
    assert committed(tmp_path) == (0, Cursor())
    cursor = Cursor(round=2, position=9, done=1, counts={1: 4}, place=0.5)
    note(tmp_path, 8, cursor)
    lists = iter([[4, 6], [4, 8]])
    monkeypatch.setattr(protocol, "commits", lambda run: next(lists))
    assert committed(tmp_path) == (8, cursor)


def log_line(step: int, samples: int, slots: dict[str, int] | None = None, loss: float | None = 0.5) -> str:
    told = {"step": step, "loss": loss, "seconds": 2.0, "waited_s": 0.5, "samples": samples, "slots": slots or {}}
    return f"{json.dumps(told)}\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Of seven objects one is for validation, two are deleted, two under way, one is in an open shard, and one is missing."""
    out = tmp_path / "cycle"
    of = writer(out)
    with Ledger(out / "ledger.sqlite") as ledger:
        for name, count, passes in (("val-000000", 1, 0), ("train-000000", 2, 2), ("train-000001", 2, 2)):
            for number in range(count):
                of.append(name, of.pack(scene(f"{name}-{number}")))
            made = of.publish(name)
            assert made is not None
            ledger.add_shard(made, passes)
        ledger.add_shard(Shard("train-000002", (), 0), 2)
        of.append("train-000003", of.pack(scene("open")))
        ledger.book([entry("open")], "train-000003")
        ledger.record(Outcome(Item("bad", "test"), None, "blank"), None)
        ledger.delete_shards(["train-000000"])
    of.leave()
    for width in WIDTHS:
        (out / str(width) / "train-000000.parquet").unlink()
    write_json(out / "layout.json", {"val": 1, "objects": 6, "shard_objects": 2})
    write_json(out / "run.json", {"identity": {"n": 7, "passes": "2", "res": list(WIDTHS)}})
    note(out, 1, Cursor(position=4, counts={0: 3, 1: 1}))
    note(out, 2, Cursor(round=1, position=7, done=1, counts={1: 3}))
    lines = [log_line(1, 4, {"0": 3, "1": 1}), log_line(2, 3, {"0": 1, "1": 2}), log_line(3, 1, {"1": 1})]
    (out / TRAIN / "log.jsonl").write_text("".join(lines))
    return out


def test_the_audit_adds_up(run: Path) -> None:
    found = audit(run)
    assert found.lines() == [
        "requested 7 = delivered 6 + 1 missing",
        "drawn 7 = delivered 6 + failed 1 (blank 1)",
        "delivered 6 = on disk 4 (of them 1 for validation) + trained and deleted 2",
        "trained 7 samples in 2 steps (log.jsonl: 7) of 8 = 4 objects x 2",
        "it adds up",
    ]
    made = lvsm_data_here("audit", run, "--json")
    assert made.returncode == 0 and json.loads(made.stdout)["problems"] == []


def on_disk(out: Path, name: str, *uids: str, booked: bool = True) -> None:
    of = writer(out)
    for uid in uids:
        of.append(name, of.pack(scene(uid)))
    made = of.publish(name)
    assert made is not None
    if booked:
        with Ledger(out / "ledger.sqlite") as ledger:
            ledger.add_shard(made, 2)


def lost(out: Path) -> None:
    (out / "journal" / "train-000003.arrow").unlink()


def deleted_too_soon(out: Path) -> None:
    with Ledger(out / "ledger.sqlite") as ledger:
        ledger.delete_shards(["train-000001"])


def other_log(*slots: dict[str, int]) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        lines = [log_line(step, sum(each.values()), each) for step, each in enumerate(slots, 1)]
        (out / TRAIN / "log.jsonl").write_text("".join(lines))

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lost, "open was delivered into train-000003, and is neither there nor deleted"),
        (deleted_too_soon, "shard train-000001 is deleted, and no checkpoint has done with it"),
        (other_log({"0": 4}), "the checkpoint counts 7 samples, log.jsonl 4"),
        (other_log({"0": 4}), "of shard train-000001 3 samples were trained on, log.jsonl says 0"),
        (other_log({"0": 4, "1": 2}, {"3": 1}), "of shard train-000001 3 samples were trained on, log.jsonl says 2"),
        (other_log({"0": 5, "1": 2}), "shard train-000000 was trained on 5 times, 4 are its passes"),
        (lambda out: on_disk(out, "train-000004", "train-000001-0"), "train-000001-0 is in train-000001 and in train-000004"),
        (lambda out: on_disk(out, "train-000004", "new", booked=False), "new is in train-000004, the ledger says nothing"),
        (
            lambda out: on_disk(out, "train-000001", "train-000001-0", booked=False),
            "8/train-000001 has 1 objects, the ledger says 2",
        ),
        (
            lambda out: on_disk(out, "train-000004", "train-000000-0", booked=False),
            "1 objects are deleted and on disk",
        ),
        (
            lambda out: (out / "16" / "train-000001.parquet").unlink(),
            "16/train-000001 is complete, says the ledger, and is not there",
        ),
        (
            lambda out: write_json(out / "layout.json", {"val": 1, "objects": 5, "shard_objects": 2}),
            "1 objects for validation and 5 to train on are not 7",
        ),
        (
            lambda out: (out / TRAIN / CHECKPOINTS / "step-00000002.json").unlink(),
            "shard train-000000 is deleted, and no checkpoint has done with it",
        ),
    ],
)  # fmt: skip
def test_the_audit_finds_what_does_not_add_up(run: Path, change: Callable[[Path], None], problem: str) -> None:
    change(run)
    found = audit(run)
    assert problem in found.problems
    assert found.lines()[-1] == f"it does not add up: {len(found.problems)} problems"
    made = lvsm_data_here("audit", run)
    assert made.returncode == 1 and f"problem: {problem}\n" in made.stdout


def test_what_does_not_make_a_step_is_no_problem(run: Path) -> None:
    """The last samples of a run whose steps have several parts: the cursor says which are left out."""
    note(run, 4, Cursor(round=5, position=7, done=4, counts={1: 3}))
    with Ledger(run / "ledger.sqlite") as ledger:
        ledger.delete_shards(["train-000001"])
    other_log({"0": 3, "1": 1}, {"0": 1, "1": 2})(run)
    assert audit(run).problems == []


def test_the_audit_of_a_cycle_that_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it counts, a shard is deleted."""
    moved = []

    def reads(path: Path) -> list[str]:
        if path.stem == "train-000001" and not moved:
            moved.append(path)
            note(run, 3, Cursor(round=2, position=8, done=3))
            deleted_too_soon(run)
            for width in WIDTHS:
                (run / str(width) / "train-000001.parquet").unlink()
        return uids_of(path)

    monkeypatch.setattr(auditing, "uids_of", reads)
    with locked(run):
        found = audit(run)
    assert moved and found.problems == [] and (found.deleted, found.on_disk, found.samples) == (4, 2, 8)
    lost(run)
    with locked(run):
        assert audit(run).problems == [
            "6 delivered are not 1 on disk and 4 deleted",
            "open was delivered into train-000003, and is neither there nor deleted",
        ]


def test_only_cycles_are_audited(run: Path, tmp_path: Path) -> None:
    made = lvsm_data_here("audit", tmp_path / "nowhere")
    assert made.returncode == 2 and "holds no run" in made.stderr
    write_json(run / "run.json", {"identity": {"n": 7, "res": [8]}})
    made = lvsm_data_here("audit", run)
    assert made.returncode == 2 and "is no cycle" in made.stderr and "lvsm-data verify" in made.stderr


# ---- the trainer's process


@contextlib.contextmanager
def training(out: Path, program: str, threads: int | None = None) -> Iterator[Trainer]:
    """A trainer that runs a Python program instead; its first argument is the cycle's folder."""
    out.mkdir()
    made = Trainer(out, [sys.executable, "-S", "-c", program, str(out)], threads)
    try:
        yield made
    finally:
        made.close()


def until(true: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.01)


def looked(trainer: Trainer) -> bool:
    trainer.poll()
    return trainer.finished


TURN = """
import json, os, sys
from pathlib import Path
out = Path(sys.argv[1])
turn = len(list(out.glob("turn-*")))
(out / f"turn-{turn}").touch()
print("turn", turn, flush=True)
def commit(step):
    folder = out / "train" / "checkpoints"
    folder.mkdir(exist_ok=True)
    cursor = {"round": 0, "offset": 0, "position": step, "done": 0, "counts": {}, "place": 0.0}
    (folder / f"step-{step:08d}.json").write_text(json.dumps({"step": step, "cursor": cursor}))
"""


def test_a_trainer_that_has_finished(tmp_path: Path) -> None:
    program = TURN + "print('threads', os.environ['OMP_NUM_THREADS'])"
    with training(tmp_path / "run", program, threads=3) as trainer:
        trainer.poll()
        assert not trainer.finished  # it has not been started
        trainer.start()
        until(lambda: looked(trainer))
        assert trainer.last_words() == "turn 0\nthreads 3" and trainer.starts == [0]
        assert (tmp_path / "run" / TRAIN / LOG).read_text() == "turn 0\nthreads 3\n"


def test_a_trainer_that_crashes_is_started_again(tmp_path: Path) -> None:
    with training(tmp_path / "run", TURN + "sys.exit(1 if turn < 2 else 0)") as trainer:
        trainer.start()
        until(lambda: looked(trainer))
        assert trainer.starts == [0] * TIMES


def test_a_trainer_that_gets_somewhere_may_crash_often(tmp_path: Path) -> None:
    program = TURN + "if turn == 5: sys.exit(0)\ncommit(turn + 1)\nos.kill(os.getpid(), 9)"
    with training(tmp_path / "run", program) as trainer:
        trainer.start()
        until(lambda: looked(trainer))
        assert trainer.starts == [0, 1, 2, 3, 4, 5] and committed(tmp_path / "run")[0] == 5


def test_a_trainer_that_gets_nowhere_is_given_up(tmp_path: Path) -> None:
    with training(tmp_path / "run", TURN + "commit(7)\nraise ValueError(f'broken in turn {turn}')") as trainer:
        trainer.start()
        with pytest.raises(UserError) as error:
            until(lambda: looked(trainer))
        assert trainer.starts == [0, *[7] * TIMES]
    first, *words = str(error.value).splitlines()
    assert first == f"the trainer ended {TIMES} times at step 7; its last words:"
    assert words[0] == "turn 3" and words[-1] == "ValueError: broken in turn 3"


def test_a_trainer_that_cannot_go_on(tmp_path: Path) -> None:
    """What it says last is told, however much it said before."""
    program = TURN + "print(2500 * 'much to say\\n' + 'error: this is no good\\nhint: do it better')\nsys.exit(2)"
    with training(tmp_path / "run", program) as trainer:
        trainer.start()
        with pytest.raises(
            UserError, match=r"(?s)the trainer cannot go on:\n.*\nerror: this is no good\nhint: do it better$"
        ):
            until(lambda: looked(trainer))
        assert trainer.starts == [0]


@pytest.mark.parametrize(("status", "finished"), [(3, False), (0, True)])
def test_a_trainer_that_is_stopped_stays_so(tmp_path: Path, status: int, finished: bool) -> None:
    program = f"""
import signal, time
def end(number, frame):
    commit(4)
    sys.exit({status})
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(60)
"""
    with training(tmp_path / "run", TURN + program) as trainer:
        trainer.start()
        until(lambda: "ready\n" in trainer.words)
        process = trainer.process
        trainer.stop()
        assert process is not None and process.returncode == status and committed(tmp_path / "run")[0] == 4
        trainer.poll()  # somebody else does, at the same time
        trainer.start()
        assert trainer.process is process and trainer.starts == [0] and trainer.finished == finished


def test_a_trainer_dies_with_its_driver(tmp_path: Path) -> None:
    """The real one, which waits for its folder here: another one still holds it."""
    folder = tmp_path / TRAIN
    folder.mkdir()
    write_json(folder / "train.json", TrainConfig(data=DataConfig((tmp_path,)), out=folder, cycle=True).as_json())
    driver = f"""
import sys, time
from pathlib import Path
from pipeline.cycle.trainer import Trainer
trainer = Trainer(Path({str(tmp_path)!r}), [sys.executable, "-m", "lvsm_train.cycle.trainer", {str(tmp_path)!r}], None)
trainer.start()
print(trainer.process.pid, flush=True)
time.sleep(60)
"""
    with locked(folder), subprocess.Popen([sys.executable, "-c", driver], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        trainer = psutil.Process(int(process.stdout.readline()))
        until(lambda: trainer.num_threads() > 1)  # the one that reads
        time.sleep(0.2)
        assert trainer.is_running() and trainer.status() != psutil.STATUS_ZOMBIE
        process.kill()
        process.wait()
        until(lambda: not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE)


# ---- the log of a training run


def test_a_log_is_read_while_it_grows(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path)
    assert log.read().step == 0 and log.samples_per_s is None  # there is none yet
    path = tmp_path / "log.jsonl"
    with path.open("a") as file:
        for step in range(1, 6):
            file.write(log_line(step, 4, {"0": 1, str(step): 3}, None if step == 2 else 1 / step))
            file.write(json.dumps({"step": step, "evaluation": {"psnr": 10.0 + step}}) + "\n")
            file.write('{"step": ')
            file.flush()
            log.read()
            assert (log.step, log.samples, len(log.evaluations)) == (step, 4 * step, step)
            assert log.read().samples == 4 * step  # nothing is new
            file.truncate(file.tell() - len('{"step": '))
            file.seek(0, os.SEEK_END)
    assert log.slots == {0: 5, **dict.fromkeys(range(1, 6), 3)}
    assert (log.seconds, log.waited) == (10, 2.5) and np.isnan(log.curve[1][1]) and log.curve[2][1] == 1 / 3
    assert log.samples_per_s == pytest.approx(16 / (4 * 1.5))
    whole = TrainingLog(tmp_path).read()
    assert (whole.evaluations, whole.slots, whole.samples) == (log.evaluations, log.slots, log.samples)
    assert [line[0] for line in whole.curve] == [line[0] for line in log.curve] == [1, 2, 3, 4, 5]


def test_a_line_that_is_half_there_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path, line = tmp_path / "log.jsonl", log_line(1, 4)
    log = TrainingLog(tmp_path)
    for cut in range(len(line)):
        path.write_text(line[:cut])
        assert log.read().samples == 0
    with path.open("a") as file:
        file.write(line[cut:])
    assert log.read().samples == 4


@pytest.mark.parametrize("replaced", [True, False])
def test_a_log_that_was_cut_is_read_anew(tmp_path: Path, replaced: bool) -> None:
    """A trainer that is started again takes back the steps behind its checkpoint."""
    path = tmp_path / "log.jsonl"
    path.write_text("".join(log_line(step, 4, {"0": 4}) for step in range(1, 10)))
    log = TrainingLog(tmp_path)
    assert log.read().samples == 36
    kept = "".join(log_line(step, 4, {"0": 4}) for step in range(1, 4))
    if replaced:
        (tmp_path / "log.tmp").write_text(kept + "".join(log_line(step, 5, {"1": 5}) for step in range(4, 12)))
        os.replace(tmp_path / "log.tmp", path)
        log = log.read()
        assert (log.samples, log.step, log.slots) == (52, 11, {0: 12, 1: 40})
    else:
        path.write_text(kept)
        log = log.read()
        assert (log.samples, log.step, log.slots) == (12, 3, {0: 12})
    assert TrainingLog(tmp_path).read(until=2).samples == 8


def test_disk_is_counted_in_blocks(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "one").write_bytes(b"x")
    os.sync()
    assert disk_of(tmp_path / "below" / "one") == disk_below(tmp_path) == 4096
    assert disk_of(tmp_path / "nothing") == 0 and bytes_below(tmp_path) == 1


@pytest.mark.parametrize(
    "data", [b"", b"{", b"{}", b"[]", b"null", b"\0\0", b'{"slots": 3}', b'{"slots": {"x": [1, 2]}}']
)
def test_a_damaged_window_is_as_none_and_a_damaged_layout_is_refused(data: bytes, tmp_path: Path) -> None:
    """The driver writes the first one again; the second one says which shard each object is in."""
    for name in ("window.json", "layout.json"):
        (tmp_path / name).write_bytes(data)
    assert Window.read(tmp_path) is None
    with pytest.raises(UserError, match=r"layout\.json is damaged") as refused:
        layout(tmp_path)
    assert refused.value.hint
