"""The plan before the work: the maths of its ranges, a real small one through the command line, and what became of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.cycle import CycleConfig, Shares
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome
from pipeline.cycle import disk_log
from pipeline.cycle.disk_log import Note
from pipeline.cycle.open_shards import AT_ONCE, CAUTION
from pipeline.plan.forecast import Drawn, Forecast, Measurements, Range, Z, in_blocks, means, wilson
from pipeline.plan.pilot import ThroughputProcess
from pipeline.plan.plan import PLAN, WORDS, _training, compare, real_figures
from pipeline.storage.ledger import Ledger
from pipeline.storage.shards import Entry, Shard
from tests import trees
from tests.conftest import lvsm_data, lvsm_data_here
from tests.hub import Hub

TIMES = st.lists(st.floats(0.01, 1000), min_size=2, max_size=40)
FEW = settings(max_examples=40, deadline=None)
SHARES = Shares(total=1e9, papers=3e7, checkpoints=1e8, raw=0.0, scratch=8e6)
TRAINER: dict[str, Any] = {
    "model": {},
    "loss": {},
    "optim": {},
    "accumulate": 1,
    "global_batch": 0,
    "ranks": 0,
    "ray_workers": 0,
    "precision": "auto",
    "device": "auto",
    "eval_every": 100,
    "eval_objects": 32,
    "checkpoint_every": 200,
    "keep": 2,
    "data": {"res": 64, "batch": 8, "inputs": 4, "targets": 4},
}


def found(good: list[float], bad: list[float] | None = None, step_s: float = 0.5, **more: Any) -> Measurements:
    """A pilot with objects that took so many seconds each, 4 kB of pictures and 1 MB of downloads, and 30 steps."""
    drawn = [Drawn(True, one, 1_000_000, 4000) for one in good] + [Drawn(False, one, 1_000_000, 0) for one in bad or []]
    steps = [step_s * (1 + 0.02 * (number % 3)) for number in range(30)]
    told: dict[str, Any] = {"workers": 2, "start_s": 5.0, "seconds": 60.0, "idle_share": 0.0, "samples": 8}
    told |= {"shard_bytes": 5000 * len(good) + 6000, "shards": 1, "step_s": steps, "train_start_s": 4.0}
    return Measurements(drawn, {}, {"CC0-1.0": len(good)}, **told | more)


def forecast(pilot: Measurements, **more: Any) -> Forecast:
    return Forecast(CycleConfig(n=10_000, window=8, **more), SHARES, TRAINER, pilot)


@FEW
@given(count=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_solves_the_score_equation(count: int, share: float) -> None:
    good = round(share * count)
    told = wilson(good, count)
    assert 0 <= told.low <= told.likely <= told.high <= 1
    for end in (told.low, told.high):
        assert abs(good / count - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / count), abs=1e-6)


def test_wilson_is_right_nine_times_in_ten() -> None:
    covered = []
    for share in np.linspace(0.05, 0.95, 37):
        chances = [math.comb(20, k) * share**k * (1 - share) ** (20 - k) for k in range(21)]
        covered.append(sum(c for k, c in enumerate(chances) if wilson(k, 20).low <= share <= wilson(k, 20).high))
    assert 0.88 < np.mean(covered) < 0.93


@FEW
@given(values=TIMES)
def test_ranges_are_in_order_and_repeat(values: list[float]) -> None:
    told = Range.of(float(np.mean(values)), means(values, "one"))
    assert 0 < told.low <= told.likely <= told.high
    assert told == Range.of(float(np.mean(values)), means(values, "one"))


@FEW
@given(values=TIMES)
def test_more_objects_make_a_range_narrower(values: list[float]) -> None:
    few, many = (Range.of(float(np.mean(values)), means(some, "one")) for some in (values, values * 16))
    assert many.high - many.low <= 0.5 * (few.high - few.low) + 1e-9 * few.high


def test_ranges_of_means_of_twenty_uneven_times_are_right_about_nine_times_in_ten() -> None:
    rng, right = np.random.default_rng(0), 0
    for _ in range(400):
        seen = rng.lognormal(0, 0.6, 20)
        told = Range.of(float(seen.mean()), means(seen.tolist(), "one"))
        right += told.low <= math.exp(0.18) <= told.high
    assert 0.86 <= right / 400 <= 0.94


def test_what_was_measured_once_may_be_half_or_double() -> None:
    told = Range.of(3.0, means([3.0], "one"))
    assert told.low == pytest.approx(1.5, rel=0.1)
    assert told.high == pytest.approx(6.0, rel=0.1)


@given(values=st.lists(st.floats(0.1, 10), min_size=1, max_size=300))
def test_blocks_keep_the_mean_where_they_are_as_long(values: list[float]) -> None:
    blocks = in_blocks(values)
    assert len(blocks) <= 50
    assert min(values) - 1e-9 <= min(blocks) <= max(blocks) <= max(values) + 1e-9
    assert np.mean(in_blocks(values * 50)) == pytest.approx(np.mean(values))


@FEW
@given(window=st.integers(1, 20), size=st.integers(1_000, 500_000))
def test_the_window_of_a_forecast_fits_into_the_budget(window: int, size: int) -> None:
    cfg, pilot = CycleConfig(n=10_000, window=window), found([2.0] * 20, shard_bytes=20 * size + 6000)
    told = Forecast(cfg, SHARES, TRAINER, pilot)
    assert told.of_each >= 1
    assert 100 * size + (window + AT_ONCE) * told.of_each * CAUTION * size <= SHARES.shards


def test_a_budget_that_is_too_small_for_the_window_is_said() -> None:
    with pytest.raises(UserError, match="of the disk budget are left") as error:
        forecast(found([2.0] * 20, shard_bytes=20 * 50_000_000))
    assert "--disk-budget" in error.value.hint


def test_figures_follow_from_what_was_measured() -> None:
    told = forecast(found([2.0] * 20), passes="8").ranges()
    assert list(told) == list(WORDS)
    assert all(one.low <= one.likely <= one.high for one in told.values())
    assert told["render_hours"].likely == pytest.approx(10_000 * 2 / 2 / 3600)
    assert told["samples"].likely == 9900 * 8
    assert told["train_hours"].likely == pytest.approx(9900 * 0.51 / 3600, rel=0.01)
    assert told["shards_gb"].likely == pytest.approx(5e-6 * 10_000, rel=0.02)
    assert told["downloaded_gb"].likely == pytest.approx(10.0)
    assert told["hours"].low > told["render_hours"].low
    assert told["peak_disk_gb"].high <= 1.0


def test_failures_cost_draws_time_and_downloads() -> None:
    told = forecast(found([2.0] * 15, bad=[6.0] * 5)).ranges()
    assert told["yield_share"] == wilson(15, 20)
    assert told["objects_drawn"].likely == pytest.approx(10_000 / 0.75)
    assert told["render_hours"].likely == pytest.approx(10_000 * (2 + 6 / 3) / 2 / 3600)
    assert told["downloaded_gb"].likely == pytest.approx(10 / 0.75)


def test_objects_beside_a_trainer_say_how_long_objects_take() -> None:
    alone = [Drawn(True, 1.0, 0, 4000, beside=False)] * 5
    both = dataclasses.replace(found([]), drawn=alone + found([2.0] * 15).drawn, shard_bytes=106_000)
    assert forecast(both).ranges()["render_hours"].likely == pytest.approx(10_000 * 2 / 2 / 3600)
    assert forecast(dataclasses.replace(both, drawn=alone)).ranges()["render_hours"].likely == pytest.approx(
        1.39, rel=0.01
    )


def test_automatic_passes_keep_the_trainer_busy() -> None:
    told = forecast(found([2.0] * 20)).ranges()  # 8 samples in 0.51 s: 15.7 of them while an object is made
    assert told["passes"].likely == 16
    assert told["samples"].likely == pytest.approx(9900 * 16, rel=0.02)
    assert forecast(found([2.0] * 20), max_passes=10).ranges()["passes"].high == 10
    assert forecast(found([2.0] * 20, step_s=50.0)).ranges()["passes"].likely == 1


def test_the_bottleneck() -> None:
    assert forecast(found([2.0] * 20), passes="2").bottleneck() == "rendering"
    assert forecast(found([2.0] * 20), passes="60").bottleneck() == "training"
    assert forecast(found([0.3, 9.0, 0.4]), passes="16").bottleneck() == "either"


SMALL = "--res 32 --views 12 --samples 4 --val-percent 15 --passes 4 --train.device cpu --train.eval-every 5".split()
TINY = "--model.dim 64 --model.layers 4 --model.encoder-layers 2 --data.batch 4 --data.targets 4".split()


def test_downloads_that_are_slower_than_workers_set_the_pace() -> None:
    """20 objects of 2 s by 2 workers take a second each; files that come every 4 s take four times as long."""
    fast, slow = (forecast(found([2.0] * 20, fetch_s=[each] * 20), passes="1") for each in (0.1, 4.0))
    none = forecast(found([2.0] * 20), passes="1")
    assert not none.figures["download_hours"].any()
    assert fast.figures["hours"][0] == none.figures["hours"][0]
    assert slow.figures["download_hours"][0] == pytest.approx(10_000 * 4 / 3600)
    assert slow.figures["render_hours"][0] == none.figures["render_hours"][0]
    assert slow.figures["hours"][0] == pytest.approx(4 * none.figures["hours"][0], rel=0.05)
    assert slow.bottleneck() == "downloading"
    limited = forecast(found([2.0] * 20, fetch_s=[0.1] * 20, least_fetch_s=15.0), passes="1")
    assert limited.figures["download_hours"][0] == pytest.approx(10_000 * 15 / 3600)
    lossy = forecast(found([2.0] * 10, [0.1] * 10, fetch_s=[4.0] * 20), passes="1")
    assert lossy.figures["download_hours"][0] == pytest.approx(
        2 * 10_000 * 4 / 3600
    )  # every second file is for nothing


def test_a_plan_of_a_small_cycle(tmp_path: Path) -> None:
    """Measured for real: downloads, objects, steps, a checkpoint, a look; and nothing is left of them but plan.json."""
    pytest.importorskip("torch")
    made = trees.objaverse(tmp_path / "hub", count=4)
    sizes = [(tmp_path / "hub/datasets/allenai/objaverse" / path).stat().st_size for path in made.paths.values()]
    more = ("--source", "objaverse", "--license", "any", "--n", 1000, "--pilot", 4, "--executor", "inline")
    where = ("--disk-budget", "300MB", "--out", tmp_path / "out", "--json")
    with Hub(tmp_path / "hub") as hub:
        run = lvsm_data("plan", *SMALL, *TINY, *more, *where, env=hub.environment(tmp_path), timeout=120)
    assert run.returncode == 0, run.stderr[-3000:]
    told = json.loads(run.stdout)
    assert told == json.loads((tmp_path / "out" / PLAN).read_text())
    assert [path.name for path in (tmp_path / "out").iterdir()] == [PLAN]
    assert (told["pilot"]["drawn"], told["pilot"]["delivered"]) == (4, 4)
    assert told["pilot"]["steps"] >= 3
    assert sum(told["licenses"].values()) == 4
    figures = {name: Range(**one) for name, one in told["figures"].items()}
    assert all(0 <= one.low <= one.likely <= one.high for one in figures.values())
    assert (figures["samples"].likely, figures["steps"].likely) == (850 * 4, 850)
    per_drawn = figures["downloaded_gb"].likely / figures["objects_drawn"].likely
    assert per_drawn == pytest.approx(np.mean(sizes) / 1e9, rel=1e-6)
    assert figures["look_hours"].low > 0
    assert 0 < figures["peak_disk_gb"].high <= 0.3
    assert told["bottleneck"] in ("rendering", "training", "either", "neither")


def measured(script: str, folder: Path) -> dict[str, Any]:
    with contextlib.closing(ThroughputProcess(folder, [sys.executable, "-c", script], None)) as process:
        return process.measured()


def test_what_a_trainer_measures_is_read_and_chatter_is_not(tmp_path: Path) -> None:
    said = [{"step": 0, "seconds": 9.0, "samples": 8, "beside": True, "start_s": 4.0}, {"save_s": 1.0}]
    said += [{"step": n, "seconds": float(n), "samples": 8, "beside": n < 4} for n in range(1, 6)]
    script = "print('compiling'); print({!r})".format("\n".join(map(json.dumps, said)))
    told = measured(script, tmp_path)
    assert told == {"step_s": [1.0, 2.0, 3.0], "samples": 8, "train_start_s": 4.0, "save_s": 1.0}


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("import sys; print('error: no weights', file=sys.stderr); sys.exit(2)", "cannot train:\nerror: no weights"),
        ("import os; os.kill(os.getpid(), 9)", "ended with status -9"),
        ("pass", "no step of training"),
    ],
)
def test_a_trainer_that_cannot_be_measured_is_the_users_to_know(script: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        measured(script, tmp_path)


@pytest.fixture
def hopeless(tmp_path: Path) -> Path:
    """A folder of files that are no models."""
    for number in range(3):
        (tmp_path / f"models/{number}.glb").parent.mkdir(exist_ok=True)
        (tmp_path / f"models/{number}.glb").write_bytes(b"no model")
    return tmp_path / "models"


def test_a_source_without_good_objects_ends_a_plan(hopeless: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    more = ("--source", "local", "--input", hopeless, "--executor", "inline", "--out", tmp_path / "out")
    run = lvsm_data_here("plan", "--n", 40, *SMALL, *TINY, *more)
    assert run.returncode == 2
    assert "none of 3 objects could be rendered" in run.stderr
    assert "Traceback" not in run.stderr
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--disk-budget", "20MB"), "leaves nothing for shards"),
        (("--pilot", 0), "--pilot 0"),
        (("--train-config", "large"), "is no preset"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(flags: tuple[object, ...], says: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    run = lvsm_data_here("plan", *flags, "--out", tmp_path / "out")
    assert run.returncode == 2
    assert says in run.stderr
    assert "hint:" in run.stderr


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    """A made-up cycle: 8 delivered of 10, 4 seconds each by 2 workers, 20 steps of 2 seconds, 90 seconds in two sessions."""
    now = time.time() - 10_000
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        for number in range(10):
            item = Item(f"{number}", "procedural")
            ledger.record(Outcome(item, None, "timeout", worker=f"{number % 2}", timings={"total": 4.0}), None)
        for name, uids in (("val-000000", range(2)), ("train-000000", range(2, 8))):
            entries = tuple(Entry(Item(f"{number}", "procedural"), 12, 4000) for number in uids)
            ledger.add_shard(Shard(name, entries, 30_000_000), 3)
        ledger.db.execute("UPDATE item SET finished = ?", (now + 5,))
    for when in (0, 30, 60, 5000, 5030):
        disk_log.add(tmp_path, Note(now + when, 1_000_000, 0, 10**9, 2_000_000 + when, 0, 0.0))
    (tmp_path / "train").mkdir()
    lines: list[dict[str, Any]] = [
        {"step": step, "loss": 0.1, "seconds": 2.5 if step > 1 else 60, "waited_s": 0.5, "samples": 8, "slots": {}}
        for step in range(1, 21)
    ]
    (tmp_path / "train/log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (tmp_path / "train/train.json").write_text(json.dumps(TRAINER))
    (tmp_path / "run.json").write_text(json.dumps({"identity": {"n": 8}}))
    figures = {
        "yield_share": Range(0.7, 0.85, 0.9),
        "objects_drawn": Range(20, 30, 40),
        "hours": Range(0.001, 0.002, 0.003),
        "downloaded_gb": Range(0, 0, 0),
    }
    told = {name: dataclasses.asdict(one) for name, one in figures.items()}
    plan = {"identity": {"n": 8}, "training": _training(TRAINER), "workers": 4, "figures": told}
    (tmp_path / PLAN).write_text(json.dumps(plan))
    return tmp_path


def test_real_figures_are_counted_over_all_sessions(ended: Path) -> None:
    real = real_figures(ended)
    assert real["yield_share"] == 0.8
    assert real["objects_drawn"] == 10
    assert real["render_hours"] == pytest.approx(10 * 4 / 4 / 3600)
    assert real["train_hours"] == pytest.approx(20 * 2 / 3600)
    assert real["hours"] == pytest.approx(90 / 3600, abs=1e-4)
    assert real["shards_gb"] == pytest.approx(0.06)
    assert real["peak_disk_gb"] == pytest.approx(2_005_030 / 1e9)
    assert (real["samples"], real["steps"], real["passes"]) == (160, 20, 3)
    assert set(real) <= set(WORDS)


def test_a_plan_and_what_became_of_it(ended: Path) -> None:
    lines = compare(ended, real_figures(ended))
    assert len(lines) == 3  # what nobody counted is not compared
    assert lines[0] == "yield: planned 85% (70% to 90%), was 80%: within"
    assert lines[1] == "objects drawn: planned 30 (20 to 40), was 10: below"
    assert lines[2] == "the whole: planned 7.2 s (3.6 s to 10.8 s), was 0:01:30: above"


@pytest.mark.parametrize("what", ["no plan", "other objects", "another model"])
def test_a_plan_of_something_else_is_not_compared(what: str, ended: Path) -> None:
    if what == "no plan":
        (ended / PLAN).unlink()
    elif what == "other objects":
        (ended / "run.json").write_text(json.dumps({"identity": {"n": 9}}))
    else:
        (ended / "train/train.json").write_text(json.dumps(TRAINER | {"model": {"dim": 1}}))
    assert compare(ended, real_figures(ended)) == []
