"""Room for a cycle's shards: reserved before they are filled, given up by younger ones for older ones."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.cycle import CycleConfig, Shares
from pipeline.core.budget import DiskBudget
from pipeline.core.disk import write_json
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome
from pipeline.cycle.open_shards import AT_ONCE, CAUTION, CAUTION_FEW, FEW, OpenShard, OpenShards, objects_per_shard
from pipeline.cycle.protocol import Slot, Window
from pipeline.cycle.source_order import MOST_WAITING, SourceOrder
from pipeline.cycle.trainer import Trainer
from pipeline.report.page import LivePage
from pipeline.storage.ledger import Kept, Ledger
from pipeline.storage.shards import Entry, Shard

KEPT = {"val-000000": Kept("complete", FEW, FEW * 1000, 0)}


def open_shards(out: Path, shards: float, kept: dict[str, Kept] = KEPT) -> OpenShards:
    made = OpenShards(CycleConfig(out=out, window=3), Shares(shards, 0, 0, 0, 0), kept)
    made.disk_budget.spare = 0
    return made


def test_what_an_object_takes_is_guessed_then_known(tmp_path: Path) -> None:
    config = CycleConfig(out=tmp_path)
    guessed = open_shards(tmp_path, 1e6, {}).expected()
    assert guessed > 0.3 * config.scene.views * 64**2  # bytes of JPEGs
    assert open_shards(tmp_path, 1e6).expected() == CAUTION * 1000
    few = {"val-000000": Kept("complete", FEW - 1, (FEW - 1) * 1000, 0)}
    assert open_shards(tmp_path, 1e6, few).expected() == pytest.approx(CAUTION_FEW * 1000)


def test_a_shard_is_reserved_as_a_whole_and_twice(tmp_path: Path) -> None:
    made = open_shards(tmp_path, 20_000)
    first, second = OpenShard("train-000000", 0), OpenShard("train-000001", 1)
    assert made.reserve(first, 4)
    assert made.disk_budget.held(first.name) == 2 * 4 * CAUTION * 1000
    assert made.reserve(second, 4)
    assert not made.reserve(OpenShard("train-000002", 2), 4)
    made.open[first.name] = first
    made.close(first, None, 3000)
    assert made.disk_budget.held(first.name) == 3000
    assert not made.reserve(OpenShard("train-000002", 2), 4)
    made.disk_budget.release(first.name)
    assert made.reserve(OpenShard("train-000002", 2), 4)


def test_a_guess_refuses_nothing(tmp_path: Path) -> None:
    made = open_shards(tmp_path, 20_000, {})
    first = OpenShard("val-000000", 0)
    assert made.all_of(first, 16) > made.disk_budget.budget
    assert made.reserve(first, 16)
    assert made.disk_budget.free == 0


def test_younger_shards_step_back_for_older_ones(tmp_path: Path) -> None:
    made = open_shards(tmp_path, 20_000)
    first, second = OpenShard("train-000000", 0), OpenShard("train-000001", 1)
    for one in (first, second):
        made.open[one.name] = one
        assert made.reserve(one, 4)
    first.written, second.written = 15_000, 2_000
    assert made.fits(first)
    assert made.disk_budget.held(second.name) == 2_000
    second.written = 6_000
    assert not made.fits(second)
    made.disk_budget.release(first.name)
    assert made.fits(second)


def test_what_can_never_fit_is_said_with_the_budget_that_would_do(tmp_path: Path) -> None:
    made = open_shards(tmp_path, 20e6)
    with pytest.raises(UserError) as refused:
        made.reserve(OpenShard("train-000000", 0), 20_000)
    assert str(refused.value).startswith("the disk budget of 20.0 MB is too small")
    assert refused.value.hint == "the same command with --disk-budget 71MB goes on"


def test_waiting_is_counted_once(tmp_path: Path) -> None:
    made = open_shards(tmp_path, 1e6)
    now = 1000.0
    made.clock = lambda: now
    assert not made.blocked
    assert made.mark_blocked(True)
    assert not made.mark_blocked(True)
    now += 0.5
    assert made.blocked
    assert made.waited() == 0.5
    assert made.mark_blocked(False)
    assert not made.mark_blocked(False)
    now += 4
    assert made.waited() == 0.5
    assert made.mark_blocked(True)
    now += 1
    assert made.waited() == 1.5


def test_others_who_fill_the_disk_are_told_from_a_full_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = open_shards(tmp_path, 1e6)
    one = OpenShard("train-000000", 0)
    assert not made.lacks_disk(one, 1000)
    made.disk_budget.spare = 1e18
    assert made.lacks_disk(one, 1000)
    assert made.lacks_disk(one, 1000)
    assert capsys.readouterr().err.count("is full: waiting") == 1
    assert not made.lacks_disk(one, 2_000_000)  # that is the budget's


def test_shards_are_as_large_as_lets_the_window_fit(tmp_path: Path) -> None:
    config = CycleConfig(out=tmp_path, window=3)
    assert objects_per_shard(config, 10 * (3 + AT_ONCE) * 1000, 1000, 10_000) == 10
    assert objects_per_shard(config, 1e12, 1000, 600) == 20  # else most would be trained on when rendering has ended
    assert objects_per_shard(config, 1e12, 1e6, 10**9) == 512
    asked = CycleConfig(out=tmp_path, window=3, shard_objects=5)
    assert objects_per_shard(asked, 1e12, 1000, 600) == 5
    with pytest.raises(UserError, match="8 shards of 5 objects have to fit") as refused:
        objects_per_shard(asked, 30_000, 1000, 600)
    assert "1 MB more for --disk-budget" in refused.value.hint or "2 MB more" in refused.value.hint


def test_outcomes_wait_in_memory_unless_an_older_shard_is_under_way(tmp_path: Path) -> None:
    cfg = CycleConfig(out=tmp_path, executor="inline", workers=1).resolved()
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        policy = SourceOrder(cfg, ledger, Shares(1e6, 0, 0, 0, 0), Trainer(tmp_path, ["true"], None), LivePage)
        older, younger = OpenShard("train-000000", 0), OpenShard("train-000001", 1)
        policy.open_shards.open = {one.name: one for one in (older, younger)}
        for number in range(MOST_WAITING + 1):
            assert not policy._must_wait()
            item = Item(f"young-{number}", "test")
            policy.places[item.uid] = younger
            younger.missing.add(item.uid)
            policy.waiting.append(Outcome(item, None, "test"))
        assert policy._must_wait()
        policy.places["old"] = older
        older.missing.add("old")
        assert (
            not policy._must_wait()
        )  # else its outcome would never be taken, and the younger ones wait for it for ever
        policy.waiting.append(Outcome(Item("old", "test"), None, "test"))
        assert policy._must_wait()
        policy.session.stop()
        assert not policy._must_wait()


def test_a_session_after_a_shard_of_nothing_but_failures_has_nothing_to_delete(tmp_path: Path) -> None:
    cfg = CycleConfig(out=tmp_path, executor="inline", workers=1).resolved()
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.add_shard(Shard("train-000000", (), 0), 1)
        (path := tmp_path / "64" / "train-000001.parquet").parent.mkdir()
        pq.write_table(pa.table({"uid": ["one"]}), path)
        ledger.add_shard(Shard(path.stem, (Entry(Item("one", "test"), 1, 10),), path.stat().st_size), 1)
        policy = SourceOrder(cfg, ledger, Shares(1e6, 0, 0, 0, 0), Trainer(tmp_path, ["true"], None), LivePage)
    assert path.exists()
    assert policy.supervisor.idle()  # else a Ctrl-C would wait for ever for what cannot be deleted yet


@pytest.mark.parametrize("lost", [False, True])
def test_training_begins_when_what_is_measured_with_is_there(lost: bool, tmp_path: Path) -> None:
    """A session after one that had laid out its shards, whose shard for validation is there, or was lost since."""
    cfg = CycleConfig(out=tmp_path, executor="inline", workers=1).resolved()
    write_json(tmp_path / "layout.json", {"val": 1, "objects": 4, "shard_objects": 2})
    Window(life=3, objects=4, slots={0: Slot(2, 1)}, validated=True).write(tmp_path)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        (path := tmp_path / "64" / "val-000000.parquet").parent.mkdir()
        pq.write_table(pa.table({"uid": ["one"]}), path)
        ledger.add_shard(Shard(path.stem, (Entry(Item("one", "test"), 1, 10),), path.stat().st_size))
        if lost:
            path.unlink()
        policy = SourceOrder(cfg, ledger, Shares(1e6, 0, 0, 0, 0), Trainer(tmp_path, ["true"], None), LivePage)
        policy.background()
    window = Window.read(tmp_path)
    assert window and window.validated != lost and window.begun != lost


def test_a_room_says_what_is_free(tmp_path: Path) -> None:
    disk_budget = DiskBudget(tmp_path, 1000, spare=0)
    disk_budget.settle("x", 1500)
    assert disk_budget.free == -500
