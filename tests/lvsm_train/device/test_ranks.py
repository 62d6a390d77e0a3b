"""Several ranks train as one does, however weights are sharded and whichever rank dies or stops in between."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings

torch = pytest.importorskip("torch")

from lvsm_train.config.train import DataConfig, OptimConfig, TrainConfig  # noqa: E402
from lvsm_train.data.rounds import Rounds  # noqa: E402
from lvsm_train.device import sharding  # noqa: E402
from lvsm_train.device.ranks import Ranks  # noqa: E402
from lvsm_train.training import launch  # noqa: E402
from lvsm_train.training.train import train_fn  # noqa: E402
from pipeline.core.errors import FEWER_THAN_ASKED, UserError  # noqa: E402
from pipeline.cycle.protocol import TRAIN, Waiting, committed  # noqa: E402
from pipeline.storage.run_folder import locked  # noqa: E402
from pipeline.storage.train_run import commits  # noqa: E402
from tests.lvsm_train.data import test_step_inputs  # noqa: E402
from tests.lvsm_train.data.test_rounds import CASES, Case  # noqa: E402
from tests.lvsm_train.data.test_step_inputs import SLOTS, WHOLE  # noqa: E402
from tests.lvsm_train.training.test_engine import TINY  # noqa: E402
from tests.lvsm_train.training.test_train import config, losses, weights  # noqa: E402

cycle = test_step_inputs.cycle
ADAM = OptimConfig(lr=1e-3, warmup=2, ema=0.9)  # elementwise: shards give the bits of whole weights


def short(folder: Path, out: Path, **more: Any) -> TrainConfig:
    """Settings of a few steps of 4 samples, for any number of ranks."""
    usual: dict[str, Any] = {
        "model": TINY,
        "data": DataConfig((folder,), inputs=2, targets=2, batch=4, workers=0),
        "optim": ADAM,
        "global_batch": 4,
        "steps": 8,
        "eval_every": 4,
        "checkpoint_every": 2,
        "tensorboard": False,
    }
    return config(folder, out, **(usual | more))


def torchrun(folder: Path, work: list[tuple[str, int, TrainConfig]], *more: str) -> str:
    """Run `work` on two ranks, see tests/ranked.py. Returns what they say."""
    (folder / "work").write_bytes(pickle.dumps(work))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *more]
    command += ["-m", "tests.ranked", str(folder)]
    calm = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=calm, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def stop_in(step: int, cfg: TrainConfig) -> None:
    """Train one rank in this process, which gets a SIGTERM in step `step` (from 1) and ends after the next one."""
    with pytest.MonkeyPatch.context() as patch:
        from lvsm_train.training.state import State

        before, count = State.step, itertools.count(1)

        def counted(self: State, *given: Any) -> Any:
            if next(count) == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return before(self, *given)

        patch.setattr(State, "step", counted)
        assert not train_fn(cfg).finished


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one rank that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert train_fn(short(data, out)).finished
    return out


def far(one: Any, other: Any) -> float:
    """The greatest difference of two numbers in trees of the same form."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max((far(one[name], other[name]) for name in one), default=0.0)
    if isinstance(one, list | tuple):
        return max((far(*pair) for pair in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, torch.Tensor):
        assert type(one) is type(other) and one.dtype == other.dtype
        return float((one - other).abs().max())
    if isinstance(one, int | float) and not isinstance(one, bool):
        return abs(one - other)
    assert one == other
    return 0.0


def assert_same(out: Path, other: Path) -> None:
    """Weights, their mean, moments, losses and scores, to 1e-5."""
    ours, theirs = weights(out), weights(other)
    for group in (*ours["optimizers"]["0"]["param_groups"], *theirs["optimizers"]["0"]["param_groups"]):
        del group["fused"]  # how it counts, not what
    for part in ("model", "average", "optimizers"):
        assert far(ours[part], theirs[part]) < 1e-5, part
    assert [step for step, _ in losses(out)] == [step for step, _ in losses(other)]
    assert far(losses(out), losses(other)) < 1e-5
    assert ours["scores"]["psnr"] == pytest.approx(theirs["scores"]["psnr"], abs=1e-3)


# ---- one rank or several


def test_what_is_trained_depends_neither_on_ranks_nor_on_what_each_of_them_has(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    """Replicated or sharded weights; and one rank, then two with shards, two with replicas, and one again."""
    mixed = short(data, tmp_path / "mixed")
    stop_in(1, mixed)
    apart = dataclasses.replace(mixed, sharding="fsdp", data=dataclasses.replace(mixed.data, batch=1), recompute=1)
    muon = OptimConfig(optimizer="muon", lr=4e-3, warmup=2, ema=0.9)
    runs = [short(data, tmp_path / f"muon-{kind}", optim=muon, sharding=kind, steps=4) for kind in ("ddp", "fsdp")]
    ddp = short(data, tmp_path / "ddp", sharding="ddp")
    fsdp = dataclasses.replace(apart, out=tmp_path / "fsdp")
    work = [("train", 0, cfg) for cfg in (ddp, fsdp, *runs)]
    late = short(data, tmp_path / "late", sharding="ddp")
    as_on_gpus = [("unattended", 4, late), ("unattended", 0, late)]
    torchrun(tmp_path, [*work, ("train", 1, apart), ("train", 1, mixed), *as_on_gpus, ("memory", 0, mixed)])
    assert commits(tmp_path / "mixed")[-1] == 6
    assert train_fn(mixed).finished
    for name in ("ddp", "fsdp", "mixed", "late"):
        assert_same(tmp_path / name, whole)
    both, sharded_muon = (weights(cfg.out) for cfg in runs if cfg.out)
    assert far(both["model"], sharded_muon["model"]) < 1e-5
    before, after = json.loads((tmp_path / "memory").read_text())
    for kept in (0, 1):
        assert after[kept] == pytest.approx(before[kept], rel=0.02)  # what is freed at once is met again, or not


def test_a_rank_that_is_killed_costs_the_steps_since_the_newest_checkpoint(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    """Each of two ranks that make their own group takes a sample at a time; one goes on with what they did."""
    cfg = short(data, tmp_path / "run", data=DataConfig((data,), inputs=2, targets=2, batch=1, workers=0))
    (tmp_path / "die").touch()
    said = torchrun(tmp_path, [("train", 0, cfg)], "--max-restarts=1")
    assert not (tmp_path / "die").exists()
    assert (
        2 <= said.count("unseen objects") <= 3
    )  # the first rank speaks for all: of steps 4 and 8, and perhaps of 4 again
    assert_same(tmp_path / "run", whole)
    again = train_fn(short(data, tmp_path / "run"))
    assert again.finished and again.step == 8


@pytest.mark.parametrize(
    ("batch", "ranks", "each", "accumulate"), [(8, 1, 8, 8), (8, 4, 8, 2), (8, 16, 4, 1), (5, 8, 4, 2), (7, 1, 4, 16)]
)
def test_how_a_step_is_shared(batch: int, ranks: int, each: int, accumulate: int, data: Path, tmp_path: Path) -> None:
    cfg = short(data, tmp_path, global_batch=64, data=DataConfig((data,), inputs=2, targets=2, batch=batch))
    made = cfg.shared(ranks)
    assert (made.data.batch, made.accumulate) == (each, accumulate)
    assert made.identity(ranks) == cfg.identity() and made.samples(ranks) == 64


def test_what_ranks_cannot_share(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--global-batch 4 cannot be shared by 3 ranks") as error:
        short(data, tmp_path).shared(3)
    assert "--global-batch 6" in error.value.hint
    with pytest.raises(UserError, match="cannot be shared by 8 ranks"):
        short(data, tmp_path, ranks=8)
    with pytest.raises(UserError, match="--ranks are of this machine"):
        short(data, tmp_path, ranks=2, ray_workers=2)


def test_another_batch_is_refused_with_what_to_do(data: Path, whole: Path) -> None:
    cfg = dataclasses.replace(short(data, whole), global_batch=0, data=DataConfig((data,), inputs=2, targets=2))
    with pytest.raises(UserError, match="batch was 4, now 8") as error:
        train_fn(cfg)
    assert "--global-batch 4" in error.value.hint


@pytest.mark.parametrize(("memory_gb", "cut"), [(80, False), (1.5, True)])
def test_weights_are_sharded_where_they_do_not_fit(
    memory_gb: float, cut: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 million weights with gradients, two moments and a mean take 1 GB; of a GPU that is not here."""

    class Properties:
        total_memory = memory_gb * 1e9

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    cfg, gpu = short(data, tmp_path), torch.device("cuda", 0)
    assert sharding.state_bytes(50_000_000, True) == 1_000_000_000
    assert sharding.should_shard(cfg, 50_000_000, gpu, Ranks(0, 2)) is cut
    assert not sharding.should_shard(cfg, 50_000_000, gpu, Ranks())
    assert not sharding.should_shard(cfg, 50_000_000, torch.device("cpu"), Ranks(0, 2))


# ---- the shards of a cycle


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_the_cursor_of_a_cycle_does_not_depend_on_ranks(case: Case) -> None:
    """Each step by another number of ranks, which goes on from the cursor of the one before."""
    alone, window = case.rounds(), case.window()
    turn, cursor = 0, alone.cursor
    while (taken := alone.take(window, 12)) is not None and len(taken.entries) == 12 and not taken.last:
        turn += 1
        other = Rounds(case.seed, cursor).take(window, 12, (1, 2, 3, 4, 6)[turn % 5])
        assert other is not None and other.entries.tolist() == taken.entries.tolist() and other.first == taken.first
        if other.last:  # of what comes, less is left than there are ranks
            return
        assert other.after == taken.after
        cursor = other.after


def until(seen: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not seen():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def test_a_cycle_with_two_ranks_of_which_one_is_stopped_while_they_wait(cycle: Path, tmp_path: Path) -> None:
    """Both end, with one checkpoint; one rank goes on, and sees what it would have seen."""
    reference = tmp_path / "reference"
    shutil.copytree(cycle, reference)
    optim = dataclasses.replace(ADAM, skip_above=0, warmup=1)
    train_fn(test_step_inputs.config(reference, optim=optim))
    dataclasses.replace(WHOLE, slots={0: SLOTS[0], 1: SLOTS[1]}, end=None).write(cycle)
    cfg = test_step_inputs.config(cycle, optim=optim, global_batch=4, ranks=2)
    (cycle / TRAIN / "train.json").write_text(json.dumps(cfg.as_json()))
    process = subprocess.Popen([sys.executable, "-m", "lvsm_train.cycle.trainer", str(cycle)], stdin=subprocess.PIPE)
    assert process.stdin is not None
    with process, process.stdin:
        until(lambda: Waiting.read(cycle).slot == 2, process)
        (second,) = [each for each in psutil.Process(process.pid).children() if each.environ().get("RANK") == "1"]
        second.terminate()
        assert process.wait(60) == FEWER_THAN_ASKED
    assert committed(cycle)[0] == 1 and committed(cycle)[1].position == 4
    WHOLE.write(cycle)
    assert train_fn(dataclasses.replace(cfg, ranks=0)).finished
    assert committed(cycle) == committed(reference)
    assert far(test_step_inputs.logged(cycle), test_step_inputs.logged(reference)) < 1e-5
    for part in ("model", "average", "optimizers"):
        assert far(test_step_inputs.weights(cycle)[part], test_step_inputs.weights(reference)[part]) < 1e-5


def test_ranks_end_with_the_driver_of_a_cycle(cycle: Path) -> None:
    """At once, since another driver may start others: the folder is free."""
    dataclasses.replace(WHOLE, slots={0: SLOTS[0], 1: SLOTS[1]}, end=None).write(cycle)
    cfg = test_step_inputs.config(cycle, global_batch=4, ranks=2)
    (cycle / TRAIN / "train.json").write_text(json.dumps(cfg.as_json()))
    process = subprocess.Popen([sys.executable, "-m", "lvsm_train.cycle.trainer", str(cycle)], stdin=subprocess.PIPE)
    assert process.stdin is not None
    with process:
        until(lambda: Waiting.read(cycle).slot == 2, process)
        ranks = psutil.Process(process.pid).children()
        process.stdin.close()
        assert process.wait(10) == 1
        gone, alive = psutil.wait_procs(ranks, 10)
    assert len(gone) == 2 and not alive
    with locked(cycle / TRAIN):
        pass


@pytest.mark.campaign
def test_what_is_wrong_with_settings_is_said_once(data: Path, whole: Path, capfd: Any) -> None:
    cfg = dataclasses.replace(short(data, whole, ranks=2), optim=dataclasses.replace(ADAM, lr=2e-3))
    with pytest.raises(UserError, match="was trained with other settings: lr was"):
        launch.launch(cfg)
    assert "Traceback" not in capfd.readouterr().err
