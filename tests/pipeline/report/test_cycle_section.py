"""How a cycle stands, in text and on its page: the sums, the pictures, and that its driver may write it at any moment."""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.cycle import Shares
from pipeline.core import images
from pipeline.core.budget import DiskBudget
from pipeline.core.errors import UserError
from pipeline.core.records import Outcome
from pipeline.cycle import disk_log
from pipeline.cycle.disk_log import Note
from pipeline.cycle.protocol import Slot, Window
from pipeline.cycle.snapshot import Throughput, take_snapshot, who_waits
from pipeline.cycle.supervisor import Supervisor
from pipeline.report import charts, cycle_section
from pipeline.report import page as report
from pipeline.report.page import LivePage, write_page
from pipeline.report.status import read_status, status_text
from pipeline.report.tiles import make_tiles
from pipeline.run.progress import training
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import locked
from pipeline.storage.train_run import TrainingLog
from tests.chromium import faults_of
from tests.pipeline.report.test_page import Maker, Reader, browse, data_of, dom, needs_browser, scene

START = 1_700_000_000.0
BUDGET = 20_000_000
REFRESH = '<meta http-equiv="refresh" content="30">'
PASSES = 4


def line(step: int, **more: Any) -> str:
    told = {"step": step, "loss": 0.5 * 0.9**step + 0.01, "waited_s": 0.05, "seconds": 0.25, "samples": 8} | more
    return json.dumps(told) + "\n"


def look(step: int, psnr: float | None, nearest: float | None = 15.0) -> str:
    return json.dumps({"step": step, "evaluation": {"psnr": psnr, "nearest": nearest}}) + "\n"


def close(maker: Maker, name: str) -> None:
    """As a cycle closes a shard, which has a name of its own."""
    shard = maker.writer.publish(name)
    assert shard is not None
    maker.ledger.add_shard(shard, passes=PASSES if name.startswith("train") else 0)


def deliver(maker: Maker, uid: str, shard: str) -> None:
    made = scene(uid)
    maker.writer.append(shard, maker.writer.pack(made))
    maker.now = (maker.now + 2) if maker.now > START else START + 2
    maker.ledger.record(Outcome(made.item, made), shard)
    maker.ledger.db.execute("UPDATE item SET finished = ? WHERE uid = ?", (maker.now, uid))


def make_cycle(out: Path) -> Path:
    """Two held-out objects; of six to train on two are trained on and deleted, two are on disk, one is in a journal.

    Objects end every 2 s from START + 2 on, in a session of 20 s that waited 4 s for disk; a second session has done nothing.
    """
    maker = Maker(out)
    maker.now = 0.0
    (out / "run.json").write_text(json.dumps({"identity": {"n": 8, "passes": "4"}, "facts": {"source": "local"}}))
    (out / "layout.json").write_text(json.dumps({"val": 2, "objects": 6, "shard_objects": 2}))
    for uid in ("v0", "v1"):
        deliver(maker, uid, "val-000000")
    close(maker, "val-000000")
    for number, uids in enumerate((("a", "b"), ("c", "d"))):
        for uid in uids:
            deliver(maker, uid, f"train-{number:06d}")
        close(maker, f"train-{number:06d}")
    deliver(maker, "e", "train-000002")
    maker.writer.leave()
    maker.ledger.delete_shards(["train-000000"])
    (out / "64" / "train-000000.parquet").unlink()
    maker.ledger.db.close()
    Window(2, 6, {0: Slot(2, PASSES), 1: Slot(2, PASSES)}, validated=True).write(out)
    (out / "status.json").write_text(json.dumps({"state": "stopped", "n": 8, "updated": START}))
    for session in (START, START + 3600):
        for tick in range(5):
            note = Note(
                session + 5 * tick, (1 + tick) * 10**6, 10**5, BUDGET, (2 + tick) * 10**6, 10**6, 1.0 * (tick == 2)
            )
            disk_log.add(out, note)
    strips = out / "train" / "strips"
    strips.mkdir(parents=True)
    steps = "".join(line(step) for step in range(1, 41))
    (out / "train" / "log.jsonl").write_text(steps + look(20, 12.0) + look(40, 16.5))
    (out / "train" / "train.json").write_text(json.dumps({"data": {"inputs": 4}, "eval_targets": 8}))
    for step, light in ((20, 10), (40, 200)):
        strips.joinpath(f"step-{step:08d}.png").write_bytes(images.encode_png(np.full((134, 338, 3), light, np.uint8)))
    strips.joinpath("step-00000060.png").write_bytes(b"\x89PNG half of it")
    return out


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_cycle(tmp_path / "a cycle")


def words(page: Path) -> str:
    return re.sub(r"\s+", " ", Reader(page).text)


# ---- how it stands


def test_a_snapshot_adds_up(run: Path) -> None:
    with Ledger(run / "ledger.sqlite", readonly=True) as ledger:
        now = take_snapshot(run, ledger)
    assert now is not None
    assert (now.filling, now.on_disk, now.deleted, now.to_come) == (1, 1, 1, 0)
    assert (now.held_out, now.on_disk_objects, now.deleted_objects) == (2, 2, 2)
    assert (now.step, now.samples, now.samples_due) == (40, 320, 4 * PASSES)
    assert now.unseen == {"step": 40, "psnr": 16.5, "nearest": 15.0}
    assert now.disk_peak == 6 * 10**6 and now.budget == BUDGET
    pace = now.pace
    # Seven objects, 2 s apart: six intervals, less the second of waiting that was noted while they went on.
    assert pace.objects_per_s == pytest.approx(6 / (12 - 1)) and pace.blocked_s == pytest.approx(2)
    assert pace.passes == PASSES and pace.made_per_s == pytest.approx(6 / 11 * PASSES)
    assert pace.samples_per_s == pytest.approx(8 / 0.2)
    assert pace.idle == pytest.approx(0.2) and pace.trainer_s == pytest.approx(10)


def test_status_says_it_in_words_and_as_json(run: Path) -> None:
    status = read_status(run)
    text = status_text(status)
    for expected in (
        "stopped",
        "step 40, loss 0.",
        "320 of 16 samples",
        "unseen objects (2): PSNR 16.50 dB after 40 steps, nearest view 15.00",
        "rendering makes 2.18 samples/s, training takes 40 samples/s",
        "the trainer waited 2 s for data (20%), rendering 2 s for disk (15%)",
        "larger --disk-budget",
        "6.0 MB at most, of 20.0 MB",
        "1 filling, 1 on disk, 1 trained and deleted",
        "the same command goes on",
    ):
        assert expected in text, expected
    told = json.loads(json.dumps(status))["cycle"]
    assert told["pace"]["waited_s"] == pytest.approx(2) and told["deleted"] == 1


def test_status_of_a_cycle_that_has_just_begun_and_of_what_is_none(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "new")
    assert read_status(maker.out)["cycle"] is None
    (maker.out / "run.json").write_text(json.dumps({"identity": {"passes": "auto"}}))
    text = status_text(read_status(maker.out))
    assert "step 0" in text and "? samples/s" in text and "to come" not in text
    page = write_page(maker.out, tmp_path / "p.html")
    assert "No step yet." in words(page) and "objects to measure with come first" in words(page)
    maker.ledger.db.close()


def test_a_crash_of_the_last_evaluation_is_no_score(run: Path) -> None:
    with (run / "train" / "log.jsonl").open("a") as file:
        file.write(line(41, loss=None) + look(41, None))
    status = read_status(run)
    assert status["cycle"]["unseen"] is None and math.isfinite(status["cycle"]["loss"])
    assert "Unseen objects –" in words(write_page(run, run / "index.html"))


@given(*(st.floats(0, 1e6) for _ in range(4)))
def test_who_waits_names_the_side_that_waits(waited: float, trainer: float, blocked: float, rendering: float) -> None:
    pace = Throughput(1.0, 1.0, 1.0, min(waited, trainer), trainer, min(blocked, rendering), rendering)
    assert 0 <= pace.idle <= 1 and 0 <= pace.blocked <= 1
    _, do = who_waits(pace)
    if max(pace.idle, pace.blocked) < 0.05:
        assert do == ""
    elif pace.idle > 2.001 * pace.blocked:
        assert do.startswith("rendering is slower")
    elif pace.blocked > 2.001 * pace.idle:
        assert do.startswith("training is slower")


def test_a_line_for_the_terminal() -> None:
    facts: dict[str, Any] = {"step": 3, "loss": 0.25, "unseen": {"psnr": 16.5, "nearest": None}, "samples_per_s": 40.0}
    facts |= {
        "trainer_waited_s": 1.0,
        "trainer_seconds": 4.0,
        "disk_bytes": 10**6,
        "budget": 2 * 10**6,
        "blocked": True,
    }
    assert training(facts) == (
        "step 3, loss 0.2500, unseen objects 16.50 dB, 40.0 samples/s, waited 25% | disk 1.0 MB of 2.0 MB, rendering waits for it"
    )
    assert training(facts | {"loss": None, "unseen": None, "blocked": False}).endswith("of 2.0 MB")


# ---- the disk's notes


@given(st.lists(st.floats(-100, 200), max_size=40))
def test_sessions_keep_all_notes_and_part_at_breaks(gaps: list[float]) -> None:
    notes = [Note(float(when), 1, 1, 1, 1, 1, 0.0) for when in START + np.cumsum([0.0, *gaps])]
    parts = disk_log.sessions(notes)
    assert [note for part in parts for note in part] == notes
    assert len(parts) == 1 + sum(
        not 0 <= two.when - one.when <= disk_log.BREAK_S for one, two in itertools.pairwise(notes)
    )


def test_what_a_power_cut_left_of_the_notes_is_skipped(tmp_path: Path) -> None:
    assert disk_log.read(tmp_path) == []
    note = Note(START, 1, 2, 3, 4, 5, 0.25)
    disk_log.add(tmp_path, note)
    with (tmp_path / disk_log.DISK).open("ab") as file:
        file.write(b"\0\0\0\n170000")
    assert disk_log.read(tmp_path) == [note]


def test_the_janitor_counts_how_long_rendering_waits(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    shares = Shares(BUDGET, 5e6, 1e6, 0, 1e6)
    supervisor = Supervisor(
        run, run / "ledger.sqlite", DiskBudget(run, shares.shards), shares, cast(Any, None), (64,), 0, LivePage
    )
    assert supervisor.facts()["blocked_s"] == 2  # of the sessions before
    for pressed, seconds in ((True, 0.5), (True, 0.5), (False, 1.0), (False, 7.0)):
        Window(2, 6, validated=True, pressed=pressed).write(run)
        supervisor.meter.measure()
        assert supervisor.facts()["blocked"] is pressed
        clock += seconds
    supervisor.meter.measure(last=True)
    assert supervisor.facts()["blocked_s"] == 3
    assert sum(note.blocked_s for note in disk_log.read(run)) == 3
    last = disk_log.read(run)[-1]
    assert last.budget == BUDGET and last.used == supervisor.meter.used() > last.shards > 0


# ---- the page


def test_the_page_tells_all(run: Path) -> None:
    page = write_page(run, run / "index.html")
    text, source = words(page), page.read_text()
    for expected in (
        "Training step 40",
        "16.50 dB PSNR after 40 steps; nearest view 15.00 (+1.50); 2 held out",
        "0.545 objects/s × 4 passes",
        "Training takes 40 samples/s",
        "Trainer idle for data 20% 2 s of 10 s",
        "Rendering idle for disk 15%",
        "Both wait in turn: a larger --disk-budget",
        "trained and deleted 1 on disk 1 filling 1 to come 0",
        "PSNR (dB)",
        "nearest view, which needs no model",
        "After 40 steps.",
        "input views target prediction target prediction target prediction",
        "pause of 0:59:40",
        "budget",
    ):
        assert expected in text, expected
    assert 'http-equiv="refresh"' not in source
    strip = re.search(r"data:image/png;base64,([^']+)'", source)
    assert strip is not None
    assert images.decode(base64.b64decode(strip[1])).mean() == 200  # the newest that is whole
    assert source.index("id=cycle") < source.index('id="objects"')


def test_a_large_strip_is_shrunk() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 4000, 3), np.uint8)
    embedded = cycle_section._embedded(images.encode_png(noise))
    assert embedded.startswith("data:image/jpeg;base64,") and len(embedded) < 500_000


def test_a_budget_far_above_is_said_and_not_drawn(run: Path) -> None:
    (run / disk_log.DISK).unlink()
    for tick in range(3):
        disk_log.add(run, Note(START + 5 * tick, 10**6, 10**5, 10**9, 10**6, 0, 0.0))
    text = words(write_page(run, run / "index.html"))
    assert "The budget of 1.0 GB lies far above this picture." in text


def test_a_page_of_a_running_cycle_loads_itself_again(run: Path, tmp_path: Path) -> None:
    with locked(run):
        assert REFRESH in write_page(run, run / "index.html").read_text()
        assert REFRESH not in write_page(run, tmp_path / "mine.html").read_text()  # which nobody writes again
    (run / "run.json").write_text("{}")
    with locked(run):
        assert REFRESH not in write_page(run, run / "index.html").read_text()  # a plain run


def test_shards_may_vanish_while_they_are_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(paths: list[Path], counts: dict[str, int], objects: int) -> list[dict[str, Any]]:
        (run / "64" / "train-000001.parquet").unlink(missing_ok=True)
        return make_tiles(paths, counts, objects)

    monkeypatch.setattr(report, "make_tiles", late)
    tiles = data_of(write_page(run, run / "index.html"))
    assert {tile["uid"] for tile in tiles} == {"v0", "v1"}


def test_a_page_by_hand_while_shards_come_and_go(run: Path) -> None:
    shard = run / "64" / "train-000001.parquet"
    data, stop = shard.read_bytes(), threading.Event()

    def churn() -> None:
        while not stop.is_set():
            shard.unlink(missing_ok=True)
            shard.with_suffix(".tmp").write_bytes(data)
            shard.with_suffix(".tmp").replace(shard)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(20):
            assert len(data_of(write_page(run, run / "index.html"))) in (2, 4)
    finally:
        stop.set()
        thread.join()


def test_what_never_was_there_is_still_an_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Iterator[Any]:
        raise FileNotFoundError("something else")

    monkeypatch.setattr(report, "make_tiles", broken)
    with pytest.raises(FileNotFoundError):
        write_page(run, run / "index.html")


def test_the_driver_writes_the_page_now_and_then(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, made = SimpleNamespace(now=5000.0), []
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)

    def slow(*arguments: Any) -> list[dict[str, Any]]:
        made.append(arguments)
        clock.now += 3
        return make_tiles(*arguments)

    monkeypatch.setattr(report, "make_tiles", slow)
    page, log, out = LivePage(run), TrainingLog(run / "train").read(), run / "index.html"
    with locked(run):
        page.refresh(log)
        assert REFRESH in out.read_text() and "· <b>running</b>" in out.read_text()
        assert {tile["shard"] for tile in data_of(out)} == {"val-000000"}
        out.unlink()
        clock.now += 59  # 3 s of work: at most a twentieth of the time
        page.refresh(log)
        assert not out.exists()
        clock.now += 1
        page.refresh(log)
        assert out.exists()
        assert [objects for _, _, objects in made] == [16]  # the pictures of held-out objects are made once
    page.end(log)
    assert "refresh" not in out.read_text().split("<title>")[0] and "· <b>stopped</b>" in out.read_text()


def test_a_live_page_is_small(run: Path) -> None:
    some = report._some(dict.fromkeys(range(32), b""), 8)
    assert list(some) == [0, 4, 8, 12, 16, 20, 24, 28] and report._some({0: 1, 1: 2}, 8) == {0: 1, 1: 2}
    assert report._some({}, 8) == {} and len(report._some(dict.fromkeys(range(31)), 8)) <= 8


def test_a_live_page_that_cannot_be_written_is_left_for_later(run: Path) -> None:
    out = run / "index.html"
    out.mkdir()
    page, log = LivePage(run), TrainingLog(run / "train").read()
    page.refresh(log)
    page.end(log)
    assert not list(run.glob("*.tmp"))
    out.rmdir()
    (run / "64" / "val-000000.parquet").write_bytes(b"damaged")
    page.end(log)
    (run / "ledger.sqlite").write_bytes(b"damaged")
    page.end(log)
    assert not out.exists()
    with pytest.raises(UserError):
        write_page(run, out)


# ---- charts


@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=30), st.booleans(), st.sampled_from([None, 0.0]))
def test_an_axis_holds_all_values_between_few_round_numbers(
    values: list[float], steep: bool, low: float | None
) -> None:
    ticks = charts._scale(values, None if steep else low, steep)
    least = min(values) if low is None or steep else low
    assert ticks[0] <= least * (1 + 1e-6) + 1e-9 and ticks[-1] >= max(values) * (1 - 1e-6)
    assert 2 <= len(ticks) <= (50 if steep else 7) and ticks == sorted(set(ticks))


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=1200))
def test_a_smooth_loss_stays_within_its_bounds(losses: list[float]) -> None:
    steps, means, width = charts.smooth(list(enumerate(losses, 1)))
    assert min(losses) - 1e-6 <= min(means) and max(means) <= max(losses) + 1e-6
    assert steps == sorted(set(steps)) and steps[-1] == len(losses) and len(steps) <= charts.POINTS
    assert means[-1] == pytest.approx(np.mean(losses[-width:]))
    with_nan = charts.smooth([*enumerate(losses, 1), (len(losses) + 1, math.nan)])
    assert with_nan == (steps, means, width)


# ---- a real browser


@needs_browser
def test_browser_draws_the_cycle(run: Path, tmp_path: Path) -> None:
    page = write_page(run, run / "index.html")
    _, facts, console = dom(page, "", tmp_path)
    assert console == [] and facts["broken"] == "0" and "error" not in facts
    assert faults_of(page, tmp_path) == []
    alone = tmp_path / "alone.html"
    alone.write_text(page.read_text().replace("</head>", "<style>main > :not(#cycle) {display: none}</style></head>"))
    for dark, blue, orange in ((0, [37, 99, 168], [180, 83, 26]), (1, [125, 179, 236], [233, 152, 95])):
        shot = tmp_path / f"{dark}.png"
        scheme = f"--blink-settings=preferredColorScheme={1 - dark}"
        browse(alone.as_uri(), tmp_path, f"--screenshot={shot}", "--window-size=1000,1700", scheme)
        pixels = images.decode(shot.read_bytes())[..., :3].astype(int)
        for colour in (blue, orange):
            assert (np.abs(pixels - colour).max(-1) < 12).sum() > 1000
