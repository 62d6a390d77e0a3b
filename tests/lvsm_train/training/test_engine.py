"""What stands around a step: ranks, accumulation, curricula, spikes, hangs, launchers, boards, cards."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lvsm_train.config.train import DataConfig, ModelConfig, OptimConfig, TrainConfig  # noqa: E402
from lvsm_train.data.batches import Data  # noqa: E402
from lvsm_train.models import lvsm  # noqa: E402
from lvsm_train.training import guards, launch, state  # noqa: E402
from lvsm_train.training.guards import BASELINE, HUNG, MAX_SPIKES, RECENT, SpikeGuard  # noqa: E402
from lvsm_train.training.optim import Optimizers  # noqa: E402
from lvsm_train.training.train import train_fn  # noqa: E402
from lvsm_train.weights.official import to_official  # noqa: E402
from lvsm_train.weights.trained import open_model  # noqa: E402
from pipeline.cluster.executors import connected  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from pipeline.storage.train_run import commits  # noqa: E402
from tests.lvsm_train.training.test_train import config, losses, weights  # noqa: E402
from tests.warm import without_dashboard  # noqa: E402

PYTHON = [sys.executable, "-c"]
TINY = ModelConfig(
    kind="unidirectional", dim=32, head_dim=16, layers=2, encoder_layers=1, prope=True, init="width_aware"
)


def short(folder: Path, out: Path, batch: int = 4, **more: Any) -> TrainConfig:
    """Few steps of a tiny model."""
    usual: dict[str, Any] = {
        "model": TINY,
        "data": DataConfig((folder,), inputs=2, targets=2, batch=batch, workers=0),
        "optim": OptimConfig(optimizer="muon", lr=4e-3, warmup=2, ema=0.9),
        "steps": 4,
        "eval_every": 0,
        "checkpoint_every": 2,
        "tensorboard": False,
    }
    return config(folder, out, **(usual | more))


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, with whole batches."""
    out = tmp_path_factory.mktemp("alone")
    train_fn(short(data, out))
    return out


def told(out: Path) -> list[str]:
    return [line for line in (out / "log.jsonl").read_text().splitlines() if "loss" in line]


def close(out: Path, other: Path) -> None:
    """Two runs went alike, but for rounding."""
    assert [step for step, _ in losses(out)] == [step for step, _ in losses(other)]
    for name, rel in (("loss", 1e-5), ("mse", 1e-5), ("grad_norm", 1e-3)):
        ours, theirs = ([json.loads(line)[name] for line in told(each)] for each in (out, other))
        assert ours == pytest.approx(theirs, rel=rel)
    before = lvsm.build(TINY, 0).state_dict()
    ours, theirs = (weights(each)["model"] for each in (out, other))
    for name, value in ours.items():
        assert (value - theirs[name]).norm() < 1e-3 * (value - before[name]).norm(), name


def test_accumulation_is_a_larger_batch(data: Path, alone: Path, tmp_path: Path) -> None:
    train_fn(short(data, tmp_path / "run", batch=1, accumulate=4))
    close(tmp_path / "run", alone)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray that tests share: to start one takes longer than they do."""
    with pytest.MonkeyPatch.context() as patch:
        without_dashboard(patch.setattr)
        with connected(None, 3):
            yield


RAY = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within Ray Data, which Ray Train imports


@RAY
@pytest.mark.usefixtures("cluster")
def test_two_workers_of_ray_train_are_one(data: Path, alone: Path, tmp_path: Path) -> None:
    result = launch.launch(short(data, tmp_path / "run", batch=2, ray_workers=2))
    assert result.finished and result.step == 4
    close(tmp_path / "run", alone)


@RAY
@pytest.mark.campaign
@pytest.mark.usefixtures("cluster")
def test_ray_train_goes_on_after_a_rank_dies(data: Path, alone: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The first rank kills itself once, within the commit of the last checkpoint; Ray starts both anew."""
    out, died, worker = tmp_path / "run", tmp_path / "died", launch._worker

    def mortal(given: dict[str, Any]) -> None:
        def look(event: str, args: tuple[object, ...]) -> None:
            if event == "open" and str(args[0]).endswith("step-00000004.pt.tmp") and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(look)
        worker(given)

    monkeypatch.setattr(launch, "_worker", mortal)
    launch.launch(short(data, out, batch=2, ray_workers=2))
    assert died.exists()
    close(out, alone)


@RAY
@pytest.mark.campaign
@pytest.mark.usefixtures("cluster")
def test_ray_train_says_what_a_user_did_wrong(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no checkpoint"):
        launch.launch(short(data, tmp_path / "run", ray_workers=1, start_from=tmp_path))


def test_a_curriculum_changes_the_size_of_pictures(data: Path, tmp_path: Path) -> None:
    views = DataConfig((data,), res=32, inputs=2, targets=2, batch=4, workers=0)
    cfg = short(data, tmp_path / "run", curriculum=("16:2", "24:3"), data=views)
    assert cfg.stages() == [(2, 16), (3, 24), (4, 32)]
    whole = train_fn(cfg)
    assert whole.finished
    told = (tmp_path / "run" / "log.jsonl").read_text()
    # resumed in the middle of a stage, from the checkpoint of step 2
    for suffix in ("pt", "json"):
        (tmp_path / "run" / "checkpoints" / f"step-00000004.{suffix}").unlink()
    train_fn(cfg)
    assert [json.loads(line)["loss"] for line in told.splitlines()] == [loss for _, loss in losses(tmp_path / "run")]


@pytest.mark.parametrize("given", ["64", "64:x", "4:2", "64:4", "64:9", "64:2"])
def test_a_curriculum_that_is_none(given: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--curriculum"):
        short(data, tmp_path, curriculum=(given,))


def test_numbers_of_views_vary_from_step_to_step_and_not_with_the_ranks(data: Path) -> None:
    cfg = DataConfig((data,), inputs=4, inputs_from=1, targets=3, targets_from=1, batch=4, workers=0)
    whole = Data(cfg)
    halves = [Data(dataclasses.replace(cfg, batch=2), rank, 2) for rank in range(2)]
    seen = set()
    for step in range(12):
        plan = whole.planner.training(step, 0, 1)
        seen.add((len(plan[0].inputs), len(plan[0].targets)))
        assert [each for half in halves for each in half.planner.training(step, half.ours[0], 2)] == plan
    assert {inputs for inputs, _ in seen} == {1, 2, 3, 4} and {targets for _, targets in seen} == {1, 2, 3}


# ---- what goes wrong


def test_what_a_spike_is() -> None:
    watch = SpikeGuard(3.0)
    assert not any(watch.observe(1 + 0.5 * math.sin(step)) for step in range(BASELINE))
    assert not any(watch.observe(loss) for loss in [100.0, math.nan] * (RECENT // 5))  # a few bad batches are none
    assert not any(watch.observe(1.0) for _ in range(RECENT))
    after = [watch.observe(math.nan) for _ in range(RECENT)]
    assert after.count(True) == 1 and watch.spikes == 1
    other = SpikeGuard(3.0)
    other.load_state_dict(watch.state_dict())
    assert other.spikes == 1 and list(other.losses) == list(watch.losses)
    assert not any(SpikeGuard(0).observe(10.0**step) for step in range(50))


@pytest.mark.parametrize("unattended", [False, True], ids=["", "as_on_gpus"])
def test_a_spike_takes_training_back(
    unattended: bool, data: Path, tmp_path: Path, capfd: Any, monkeypatch: Any
) -> None:
    """A learning rate that wrecks the model: the loss never comes back by itself."""
    monkeypatch.setattr(
        state, "Optimizers", lambda *given, **more: Optimizers(*given, **more | {"unattended": unattended})
    )
    for module in (guards, state):
        monkeypatch.setattr(module, "RECENT", 4)
    monkeypatch.setattr(guards, "BASELINE", 16)
    wreck = iter([False] * 30 + [True] + [False] * 100)
    before = state.State.step

    def step(self: Any, *given: Any) -> Any:
        facts = before(self, *given)
        if next(wreck):
            with torch.no_grad():
                self.net.head.linear.weight.copy_(torch.randn_like(self.net.head.linear.weight) * 50)
        return facts

    monkeypatch.setattr(state.State, "step", step)
    optim = OptimConfig(lr=2e-3, warmup=2, spike_above=1.5)
    cfg = short(data, tmp_path / "run", steps=48, optim=optim, checkpoint_every=4, keep=9)
    train_fn(cfg)
    said = capfd.readouterr().err
    assert "weights and optimiser are those of step" in said
    told = dict(losses(tmp_path / "run"))
    assert told[33] > 2 * told[28] and told[48] < 1.5 * told[28]
    assert MAX_SPIKES == 3


def test_a_process_that_hangs_ends_and_says_where() -> None:
    """A watchdog lets who works and who is done."""
    code = (
        "import time; from lvsm_train.training.guards import Watchdog\n"
        "def waits_for_nobody():\n    time.sleep(60)\n"
        "with Watchdog(2 / 60) as dog:\n    for _ in range(22): time.sleep(0.1); dog.reset()\n"
        "time.sleep(3.2); print('done', flush=True)\n"
        "with Watchdog(2 / 60) as dog:\n    dog.reset(); waits_for_nobody()"
    )
    done = subprocess.run([*PYTHON, code], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.returncode) == ("done\n", HUNG)
    assert "--hang-minutes" in done.stderr and "waits_for_nobody" in done.stderr


# ---- what goes in and out


def test_weights_of_others_to_start_from(data: Path, alone: Path, tmp_path: Path) -> None:
    none = OptimConfig(lr=1e-12, warmup=0)
    train_fn(short(data, tmp_path / "more", steps=1, start_from=alone, optim=none))
    ours, theirs = open_model(tmp_path / "more").net.state_dict(), open_model(alone).net.state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-7)
    other = short(data, tmp_path / "other", start_from=alone, model=dataclasses.replace(TINY, dim=48))
    with pytest.raises(UserError, match=r"--start-from .*size mismatch"):
        train_fn(other)


def test_official_weights_in_and_out(data: Path, tmp_path: Path) -> None:
    official = ModelConfig(kind="decoder_only", dim=32, head_dim=16, layers=2)
    torch.save({"model": to_official(lvsm.build(official, 5))}, tmp_path / "theirs.pt")
    optim = OptimConfig(warmup=10**6)  # a first step has no rate
    cfg = short(data, tmp_path / "run", steps=1, model=official, optim=optim, start_from=tmp_path / "theirs.pt")
    train_fn(dataclasses.replace(cfg, export_official=tmp_path / "ours" / "official.pt"))
    ours, theirs = (
        torch.load(tmp_path / name, weights_only=True)["model"] for name in ("ours/official.pt", "theirs.pt")
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(UserError, match="no such model"):
        short(data, tmp_path / "run", export_official=tmp_path / "x.pt")


def test_curves_strips_and_a_card_are_written(data: Path, tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  (the format below is its)

    out = tmp_path / "run"
    result = train_fn(short(data, out, steps=20, eval_every=20, tensorboard=True, checkpoint_every=10))
    tags = set()
    for path in (out / "tensorboard").iterdir():
        raw, at = path.read_bytes(), 0
        while at < len(raw):  # length (8), its sum (4), the event, its sum (4)
            length = int.from_bytes(raw[at : at + 8], "little")
            event = Event.FromString(raw[at + 12 : at + 12 + length])
            tags |= {(event.step, value.tag) for value in event.summary.value}
            at += 16 + length
    assert {(1, "train/loss"), (20, "train/loss"), (20, "train/images_per_s"), (20, "unseen/psnr")} <= tags
    assert any("rendering" in tag for step, tag in tags if step == 20)
    card = json.loads((out / "card.json").read_text())
    assert card["data"]["licenses"] == {"unknown": 10} and card["data"]["trained_on"] == 8
    assert "not known" in card["data"]["what_they_allow"]["passing on"]
    assert card["training"]["steps"] == 20 and card["training"]["passes_over_the_data"] == 10
    assert result.scores is not None and card["held_out_objects"]["psnr"] == result.scores.psnr
    assert card["model"]["weights"] == sum(value.numel() for value in open_model(out).net.parameters())


def test_wandb_that_is_not_here(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs the package wandb"):
        train_fn(short(data, tmp_path / "run", wandb="lvsm"))


def test_checkpoints_name_what_they_are(alone: Path) -> None:
    facts = json.loads((alone / "checkpoints" / "step-00000004.json").read_text())
    assert facts["step"] == 4 and facts["identity"]["data"]["batch"] == 4
    assert commits(alone) == [2, 4]
