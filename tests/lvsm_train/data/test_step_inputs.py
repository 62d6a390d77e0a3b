"""A cycle's trainer on shards made by hand: the same batches as from shards that all are there, whatever comes when."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lvsm_train.config.train import DataConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig  # noqa: E402
from lvsm_train.cycle.settings import checkpoint_bytes  # noqa: E402
from lvsm_train.data import batches as loading  # noqa: E402
from lvsm_train.data import step_inputs  # noqa: E402
from lvsm_train.data.batches import TENSORS, Data  # noqa: E402
from lvsm_train.data.index import Index  # noqa: E402
from lvsm_train.data.rounds import Rounds  # noqa: E402
from lvsm_train.data.step_inputs import StepInput, Stream  # noqa: E402
from lvsm_train.device.ranks import Ranks  # noqa: E402
from lvsm_train.training.state import State  # noqa: E402
from lvsm_train.training.train import train_fn  # noqa: E402
from lvsm_train.weights import checkpoint  # noqa: E402
from pipeline.core.disk import is_full  # noqa: E402
from pipeline.core.records import Scene  # noqa: E402
from pipeline.cycle.protocol import TRAIN, Cursor, Slot, Waiting, Window, committed  # noqa: E402
from pipeline.storage.ledger import Ledger  # noqa: E402
from pipeline.storage.shards import Shard  # noqa: E402
from pipeline.storage.train_run import commits  # noqa: E402
from pipeline.storage.writer import ShardWriter  # noqa: E402
from tests.noise import FACTS, digest, scene  # noqa: E402
from tests.pipeline.cycle.test_cycle_parts import small_disk  # noqa: E402

WIDTH, LIFE = 24, 2
SLOTS = {0: Slot(3, 2), 1: Slot(0, 4), 2: Slot(2, 3), 3: Slot(3, 1)}
WHOLE = Window(LIFE, 8, SLOTS, True, 4)


@functools.cache
def drawn(uid: str) -> Scene:
    return scene(uid, (WIDTH,), views=8)


def shard(out: Path, name: str, objects: int) -> None:
    """On disk and in the ledger."""
    writer = ShardWriter(out, (WIDTH,), (), FACTS, 1e12)
    for number in range(objects):
        writer.append(name, writer.pack(drawn(f"{name}-{number}")))
    made = writer.publish(name) if objects else None
    with Ledger(out / "ledger.sqlite") as ledger:
        ledger.add_shard(made or Shard(name, (), 0))


def shards(out: Path, slots: Iterable[int]) -> None:
    for number in slots:
        shard(out, f"train-{number:06d}", SLOTS[number].objects)


@pytest.fixture
def cycle(tmp_path: Path) -> Path:
    """A cycle whose last object has been rendered."""
    out = tmp_path / "cycle"
    (out / TRAIN).mkdir(parents=True)
    shard(out, "val-000000", 2)
    shards(out, SLOTS)
    WHOLE.write(out)
    return out


def config(out: Path, **more: Any) -> TrainConfig:
    data = {"batch": 4, "inputs": 2, "targets": 2, "workers": 0} | more.pop("data", {})
    usual = TrainConfig(
        model=ModelConfig(kind="unidirectional", dim=32, head_dim=16, layers=2, encoder_layers=1, init="width_aware"),
        data=DataConfig((out,), **data),
        loss=LossConfig(perceptual=0),
        optim=OptimConfig(optimizer="muon", lr=4e-3, warmup=1, skip_above=0, ema=0.9),
        out=out / TRAIN,
        steps=4,
        eval_every=4,
        eval_objects=1,
        eval_targets=2,
        checkpoint_every=2,
        device="cpu",
        precision="fp32",
        deterministic=True,
        tensorboard=False,
        cycle=True,
    )
    return dataclasses.replace(usual, **more).resolved()


@contextlib.contextmanager
def streaming(
    out: Path,
    cursor: Cursor | None = None,
    ranks: Ranks | None = None,
    waiting: Callable[[], bool] | None = None,
    start: int = 0,
    **more: Any,
) -> Iterator[tuple[Stream, Iterator[StepInput]]]:
    """A stream and its steps. waiting: by default nobody waits for anything."""
    made = Stream(
        config(out, **more),
        ranks or Ranks(),
        torch.device("cpu"),
        lambda *lines: None,
        cursor or Cursor(),
        waiting or (lambda: pytest.fail("it waits")),
    )
    with contextlib.closing(made.steps(start)) as steps:
        yield made, steps


def digests(out: Path, **more: Any) -> list[list[str]]:
    with streaming(out, **more) as (_, steps):
        return [[digest(batch) for batch in fed.batches] for fed in steps]


# ---- what a step sees


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_shards_that_all_are_there(cycle: Path, workers: int) -> None:
    cfg = config(cycle).data
    data, rounds = Data(cfg), Rounds(cfg.seed, Cursor())
    number_of = {uid: number for number, uid in enumerate(data.index.uids)}
    seen, place = 0, 0.0
    with streaming(cycle, data={"workers": workers}) as (_, steps):
        for fed in steps:
            taken = rounds.take(WHOLE, 4)
            assert taken is not None
            numbers = [number_of[f"train-{slot:06d}-{place}"] for slot, place in taken.entries.tolist()]
            samples = data.planner.step_samples(fed.step, taken.first, numbers)
            assert [digest(batch) for batch in fed.batches] == [digest(data.gather(samples))]
            assert (fed.cursor, fed.last) == (taken.after, taken.last)
            assert fed.slots == Counter(taken.entries[:, 0].tolist())
            assert fed.progress == pytest.approx(4 * place)  # of four steps
            seen, place = seen + len(samples), taken.after.place
    data.close()
    assert seen == 15 and fed.last


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_is_decoded_once_while_its_shard_lives(
    cycle: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cameras of the same shards read anew make an index of their own, which changes nothing."""
    without, decoded = digests(cycle, data={"workers": workers, "cache": "none"}), Counter[tuple[str, int]]()
    decode = Index.decode

    def counted(index: Index, number: int, views: Any, *rest: Any) -> None:
        decoded.update((index.uids[number], view) for view in views)
        decode(index, number, views, *rest)

    monkeypatch.setattr(Index, "decode", counted)
    held = []
    with streaming(cycle, data={"workers": workers}) as (_, steps):
        for fed in steps:
            assert [digest(batch) for batch in fed.batches] == without[fed.step]
            held.append(fed.data.decoded.bytes)
    trained = {key: count for key, count in decoded.items() if key[0].startswith("train")}
    assert max(trained.values()) == 1 or workers  # two threads may decode one at once
    assert max(held) > 0 == held[-1]  # the last shards are given up with the last step
    assert sum(trained.values()) < 15 * 4  # samples, each of four views


def test_without_memory_pictures_are_decoded_again(cycle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = digests(cycle)
    monkeypatch.setattr(loading, "MEMORY_SHARE", 3 * 8 * WIDTH**2 / loading.memory_free())  # one object of eight views
    assert digests(cycle) == expected


def test_a_step_is_the_same_however_it_is_shared(cycle: Path) -> None:
    """By two ranks, or in two batches one after the other. Of the last three samples one is left out."""
    with streaming(cycle) as (_, steps):
        whole = [fed.batches[0] for fed in steps]
    half = {"data": {"batch": 2}}
    with (
        streaming(cycle, None, Ranks(0, 2), **half) as (_, one),
        streaming(cycle, None, Ranks(1, 2), **half) as (_, two),
    ):
        by_ranks = [[*a.batches, *b.batches] for a, b in zip(one, two, strict=True)]
    with streaming(cycle, accumulate=2, **half) as (_, steps):
        in_turn = [fed.batches for fed in steps]
    for some in (by_ranks, in_turn):
        assert [[len(each.uids) for each in each_step] for each_step in some] == [[2, 2]] * 3 + [[1, 1]]
        for batches, both in zip(some, whole, strict=True):
            for name in TENSORS:
                joined = torch.cat([getattr(batch, name) for batch in batches])
                assert torch.equal(joined, getattr(both, name)[: len(joined)])


def test_it_goes_on_from_any_cursor_without_what_was_deleted(cycle: Path) -> None:
    with streaming(cycle) as (_, steps):
        cursors = [fed.cursor for fed in steps]
    whole = digests(cycle)
    for at, cursor in enumerate(cursors, 1):
        assert cursor is not None
        without_trained(cycle, cursor)
        with streaming(cycle, cursor, start=at) as (made, steps):
            for number, fed in enumerate(steps, at):
                assert [digest(batch) for batch in fed.batches] == whole[number]
                assert fed.cursor == made.trained == cursors[number]
        assert made.trained == cursors[-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_that_were_trained_on_are_closed(cycle: Path, workers: int) -> None:
    """Else their disk would not be free once they are deleted."""

    def opened() -> set[str]:
        links = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.lexists(entry.path)]
        return {Path(link).name for link in links if link.startswith(str(cycle)) and ".parquet" in link}

    most = set()
    with streaming(cycle, data={"workers": workers}) as (made, steps):
        for _ in steps:
            most |= opened()
            done = {f"train-{number:06d}.parquet" for number in range(made.trained.done)}
            assert not done & opened()
    assert most and not opened()


def without_trained(out: Path, cursor: Cursor) -> None:
    """What the janitor and the driver do after a checkpoint of this cursor."""
    for number in range(cursor.done):
        (out / str(WIDTH) / f"train-{number:06d}.parquet").unlink(missing_ok=True)
    left = {number: slot for number, slot in SLOTS.items() if number >= cursor.done - LIFE}
    dataclasses.replace(WHOLE, slots=left).write(out)


# ---- while shards come


class Driver:
    """Closes the next shard whenever the trainer has waited three times; notes what it said to wait for."""

    def __init__(self, out: Path, events: list[Callable[[], None]]) -> None:
        self.out, self.events, self.calls = out, events, 0
        self.said: list[int | None] = []

    def __call__(self) -> bool:
        self.calls += 1
        if self.calls % 3:
            return False
        self.said.append(Waiting.read(self.out).slot)
        if self.events:
            self.events.pop(0)()
            return False
        return True


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_inputs, "LOOK_AGAIN_S", 0.001)
    monkeypatch.setattr("pipeline.core.disk.LOOK_AGAIN_S", 0.01)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("workers", [0, 2])
def test_it_waits_for_shards_and_says_for_which(cycle: Path, tmp_path: Path, workers: int) -> None:
    out = tmp_path / "slow"
    (out / TRAIN).mkdir(parents=True)

    def closed(count: int, ended: bool = False) -> Callable[[], None]:
        def event() -> None:
            shards(out, range(max(0, count - 1), count))
            there = {number: SLOTS[number] for number in range(count)}
            dataclasses.replace(WHOLE, slots=there, end=4 if ended else None).write(out)

        return event

    def validated() -> None:
        Window(LIFE, 8).write(out)
        shard(out, "val-000000", 2)
        closed(0)()

    Waiting(9).write(out)  # of a session before
    driver = Driver(out, [validated, *[closed(count) for count in range(1, 5)], closed(4, ended=True)])
    made, more = [], {"workers": workers}
    with streaming(out, waiting=driver, data=more) as (_, steps):
        for fed in steps:
            made.append([digest(batch) for batch in fed.batches])
            assert Waiting.read(out).slot is None or workers  # a batch that was made ahead needs no shard
    assert made == digests(cycle, data=more)
    assert driver.said[:2] == [None, 0] and not driver.events
    told = [slot for slot in driver.said if slot is not None]
    assert told == [
        0,
        1,
        2,
        3,
        4,
    ]  # each of them once: the driver looks whether the trainer waits for what it cannot make


@pytest.mark.usefixtures("soon")
def test_waiting_can_be_ended(cycle: Path) -> None:
    dataclasses.replace(WHOLE, end=None).write(cycle)
    driver = Driver(cycle, [])
    with streaming(cycle, waiting=driver) as (made, steps):
        assert len(list(steps)) == 3  # of 15 samples the last three need to know that nothing follows
        assert made.trained.position == 12
    assert driver.said == [4]
    (cycle / "window.json").unlink()
    with streaming(cycle, waiting=lambda: True) as (_, steps):
        assert list(steps) == []


def test_a_checkpoint_is_urgent_where_it_frees_what_is_waited_for(tmp_path: Path) -> None:
    """With shards of one object: the next one alone does not make a step."""
    out = tmp_path
    (out / TRAIN).mkdir()
    slots = {0: Slot(4, 1), 1: Slot(1, 1), 2: Slot(1, 1), 3: Slot(3, 1)}
    shard(out, "val-000000", 1)
    for number, slot in slots.items():
        shard(out, f"train-{number:06d}", slot.objects)

    def window(count: int, **more: Any) -> None:
        there = {number: slots[number] for number in range(count)}
        Window(1, 9, there, True, **more).write(out)

    window(2)
    with streaming(out, waiting=lambda: False) as (made, steps):
        fed = next(steps)
        assert fed.cursor is not None and fed.cursor.done == 1
        assert made.urgent(None) and made.urgent(Cursor())
        assert not made.urgent(fed.cursor)  # it is saved
        window(3)
        assert made.urgent(None)  # the next shard is there, and does not suffice
        window(4)
        assert not made.urgent(None)
        window(4, pressed=True)
        assert made.urgent(None) and not made.urgent(fed.cursor)
        window(2, end=2)
        assert not made.urgent(None)  # the last step comes, with a checkpoint


def test_a_checkpoint_is_not_urgent_while_there_is_work(tmp_path: Path) -> None:
    """With batches that are made ahead."""
    (tmp_path / TRAIN).mkdir()
    shard(tmp_path, "val-000000", 1)
    slots = {0: Slot(2, 1), 1: Slot(2, 1), 2: Slot(1, 1)}
    for number, slot in slots.items():
        shard(tmp_path, f"train-{number:06d}", slot.objects)
    Window(1, 9, slots, True).write(tmp_path)
    with streaming(tmp_path, waiting=lambda: False, data={"batch": 2, "workers": 1}) as (made, steps):
        assert next(steps).slots == {0: 2} and not made.urgent(None)
        assert next(steps).slots == {1: 2} and made.urgent(None)


# ---- a training run


def weights(out: Path) -> dict[str, Any]:
    found = checkpoint.load(out / TRAIN)
    assert found is not None
    return found[0]


def logged(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / TRAIN / "log.jsonl").read_text().splitlines()]
    return [
        {name: line[name] for name in ("step", "loss", "lr", "samples", "slots")} for line in lines if "loss" in line
    ]


def same(one: Any, other: Any) -> None:
    """Down to the last bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_a_run_that_was_cut_anywhere_ends_with_the_same_bits(cycle: Path, tmp_path: Path) -> None:
    result = train_fn(config(cycle, checkpoint_every=1, keep=9))
    assert result.finished and result.step == 4 and result.scores is not None
    lines = logged(cycle)
    assert [line["samples"] for line in lines] == [4, 4, 4, 3] and all(line["lr"] > 0 for line in lines[1:])
    early, late = (checkpoint.load(cycle / TRAIN, step) for step in (1, 4))
    assert early and late and not torch.equal(*(each[0]["model"]["decoder.0.mlp.up.weight"] for each in (early, late)))
    slots = sum((Counter(line["slots"]) for line in lines), Counter[str]())
    assert slots == {str(number): slot.samples for number, slot in SLOTS.items() if slot.samples}
    step, cursor = committed(cycle)
    assert (step, cursor.position, cursor.done, cursor.counts) == (4, 15, 4, {}) and cursor.place == pytest.approx(1)
    for cut in commits(cycle / TRAIN)[:-1]:
        again = tmp_path / f"cut-{cut}"
        shutil.copytree(cycle, again)
        for later in range(cut + 1, 5):
            (again / TRAIN / "checkpoints" / f"step-{later:08d}.json").unlink()
        with (again / TRAIN / "log.jsonl").open("a") as log:
            log.write('{"step": 9, "lo')
        without_trained(again, committed(again)[1])
        assert train_fn(config(again, checkpoint_every=1, keep=9)).finished
        assert logged(again) == lines
        same(weights(again), weights(cycle))
        assert committed(again) == (step, cursor)


@pytest.mark.usefixtures("soon")
def test_a_run_that_was_stopped_while_it_waited_goes_on(cycle: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(cycle, whole)
    train_fn(config(whole))
    dataclasses.replace(WHOLE, slots={0: SLOTS[0], 1: SLOTS[1]}, end=None).write(cycle)

    def stop() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if Waiting.read(cycle).slot == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.01)

    stopping = threading.Thread(target=stop)
    stopping.start()
    result = train_fn(config(cycle))
    stopping.join()
    assert (result.finished, result.step) == (False, 1)
    assert committed(cycle) == (1, Cursor(round=1, offset=1, position=4, counts={0: 4}, place=0.25))
    WHOLE.write(cycle)
    assert train_fn(config(cycle)).finished
    assert logged(cycle) == logged(whole)
    same(weights(cycle), weights(whole))


def test_nothing_to_train_on_is_a_run_without_steps(cycle: Path) -> None:
    """Every object has failed."""
    Window(LIFE, 1, {0: Slot(0, 4)}, True, 1).write(cycle)
    result = train_fn(config(cycle))
    assert result.finished and result.step == 0 and committed(cycle) == (0, Cursor())


# ---- checkpoints and their disk


def test_extra_checkpoints_go_with_the_next(tmp_path: Path) -> None:
    stay = []
    for step, best in ((4, 4), (5, 5), (6, 5), (8, 5), (9, 5), (12, 5), (13, 13)):
        checkpoint.save(tmp_path, step, {}, {"best": best}, keep=2, every=4)
        stay.append(commits(tmp_path))
    assert stay == [[4], [4, 5], [4, 5, 6], [4, 5, 8], [4, 5, 8, 9], [5, 8, 12], [8, 12, 13]]
    assert len(list((tmp_path / "checkpoints").glob("*.pt"))) == 3


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_disk_of_checkpoints_is_known_before(cycle: Path, optimizer: Any, ema: float) -> None:
    model = ModelConfig(kind="encoder_decoder", dim=256, layers=6, encoder_layers=3)
    cfg = config(cycle, model=model, optim=OptimConfig(optimizer=optimizer, ema=ema), keep=2)
    state = State(cfg, torch.device("cpu"), Ranks())
    for parameter in state.optimizers.parameters:
        parameter.grad = torch.zeros_like(parameter)
    state.optimizers.step(0)
    state.save(1, Cursor())
    files = sum(path.stat().st_size for path in (cycle / TRAIN / "checkpoints").iterdir())
    shutil.rmtree(cycle / TRAIN / "checkpoints")
    assert files < checkpoint_bytes(cfg) / (cfg.keep + 3) < 1.1 * files


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("free", [0, 4096, 1_000_000, 2_900_000, None])
def test_a_full_disk_is_waited_for(tmp_path: Path, free: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    """free: bytes of it; None: as many as the tensors take, and not the note beside them."""

    def state(step: int) -> dict[str, Any]:
        return {"a": torch.full((750_000,), float(step))}

    with small_disk(tmp_path / "disk", 8) as disk:
        first = checkpoint.save(disk, 1, state(1), {}, keep=1)
        size = 4096 * -(-first.stat().st_size // 4096)
        left = shutil.disk_usage(disk).free
        (disk / "others").write_bytes(bytes(left - (size if free is None else free)))
        with pytest.raises(OSError, match="No space left") as error:
            checkpoint.save(disk, 2, state(2), {}, keep=1)
        assert is_full(error.value)
        assert_loads(disk, 1)
        times = 0

        def enough() -> bool:
            nonlocal times
            times += 1
            assert_loads(disk, 1)
            if times == 3:
                (disk / "others").unlink()
            return False

        checkpoint.save(disk, 2, state(2), {}, keep=1, enough=enough)
        assert times == 3
        assert_loads(disk, 2)
        assert sorted(path.name for path in (disk / "checkpoints").iterdir()) == [
            "step-00000002.json",
            "step-00000002.pt",
        ]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "is full: waiting" in said[0] and "has room again" in said[1]


def assert_loads(run: Path, step: int) -> None:
    found = checkpoint.load(run)
    assert found is not None and found[1]["step"] == step and bool((found[0]["a"] == step).all())
    assert not list((run / "checkpoints").glob("*.tmp"))
