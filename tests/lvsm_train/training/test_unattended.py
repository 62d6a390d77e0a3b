"""Steps as GPUs make them, on a CPU: decided in tensors, recorded, read one step later, and launched by few operations."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from lvsm_train.config.presets import PRESETS  # noqa: E402
from lvsm_train.config.train import OptimConfig, TrainConfig  # noqa: E402
from lvsm_train.device import tuning  # noqa: E402
from lvsm_train.device.graphs import WARM_UP, Settled  # noqa: E402
from lvsm_train.losses import vgg  # noqa: E402
from lvsm_train.losses.vgg import CAFFE, Weights  # noqa: E402
from lvsm_train.models import lvsm  # noqa: E402
from lvsm_train.training import gradients, guards, state, train  # noqa: E402
from lvsm_train.training.guards import NormGuard  # noqa: E402
from lvsm_train.training.muon import batches  # noqa: E402
from lvsm_train.training.optim import Average, Optimizers  # noqa: E402
from lvsm_train.training.train import train_fn  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from tests.lvsm_train.training.test_engine import TINY  # noqa: E402
from tests.lvsm_train.training.test_optim import backward, model  # noqa: E402
from tests.lvsm_train.training.test_presets import narrow_convs  # noqa: E402
from tests.lvsm_train.training.test_train import config, losses  # noqa: E402

OUTSIDE = 60  # launches of a step beside its graphs
# operations of clipping, skipping, optimisers and mean, in one graph; as many tensors as a preset has, of tiny width
INSIDE = {"muon": 240, "adamw": 80}  # by optimiser


@pytest.fixture
def unattended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs decide on the device, as on a GPU."""
    monkeypatch.setattr(state, "Optimizers", lambda *given, **_: Optimizers(*given, unattended=True))


# ---- what a step does


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_does_what_it_does_where_somebody_decides(optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipped steps, skipped ones of every kind, and entries that are no numbers: weights, moments, their mean."""
    monkeypatch.setattr(guards, "RECENT", 3)
    cfg = OptimConfig(optimizer=optimizer, lr=0.01, warmup=2, clip=0.3, skip_above=40, skip_factor=10, ema=0.9)
    nets = model(), model()
    made = [
        Optimizers(net, cfg, 20, NormGuard(10), unattended=way) for net, way in zip(nets, (False, True), strict=True)
    ]
    means = [Average(net, 0.9, way) for net, way in zip(nets, (False, True), strict=True)]
    made[1].bind_gradients()
    void = []
    for step in range(20):
        before = [value.clone() for value in nets[1].state_dict().values()]
        moments = [value.clone() for value in moments_of(made[1])]
        scale = {7: 300.0, 11: 1e9}.get(step, 0.2 if step % 2 else 1.0)
        loss = torch.tensor(float("nan") if step == 14 else 1.0)
        told = []
        for net, optimizers, mean in zip(nets, made, means, strict=True):
            backward(net, step, scale)
            if step == 1:  # in the warm-up, where nothing is an outlier
                net.head.weight.grad[0, 0], net.tokens.weight.grad[1, 1] = float("nan"), float("-inf")
            if step == 16:  # an entry that is no number is one thing, a norm that never was another
                net.head.weight.grad[0, 0] = float("inf")
            told.append(optimizers.step(step, loss))
            mean.update(net)
        torch.testing.assert_close(told[0].norm, told[1].norm, rtol=1e-4, atol=0, equal_nan=True)
        assert bool(told[0].void) == bool(told[1].void)
        void.append(bool(told[1].void))
        if void[-1]:  # not a bit has changed
            assert all(map(torch.equal, before, nets[1].state_dict().values()))
            assert all(map(torch.equal, moments, moments_of(made[1])))
        assert all(not each.grad.any() for each in nets[1].parameters())
    assert [step for step, skipped in enumerate(void) if skipped] == [7, 11, 14, 16]
    for one, other in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for one, other in zip(means[0].weights.values(), means[1].weights.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def moments_of(optimizers: Optimizers) -> Iterator[torch.Tensor]:
    for optimizer in optimizers.all:
        for of_one in optimizer.state.values():
            yield from (value for value in of_one.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("first", [False, True])
def test_states_go_from_one_kind_of_device_to_the_other(first: bool) -> None:
    cfg = OptimConfig(optimizer="muon", lr=0.01, warmup=2)
    nets = model(), model()
    one, other = (Optimizers(net, cfg, 20, unattended=way) for net, way in zip(nets, (first, not first), strict=True))
    for step in range(4):
        backward(nets[0], step)
        one.step(step)
    nets[1].load_state_dict(nets[0].state_dict())
    saved = one.state_dict()
    assert all(type(group["lr"]) is float for part in saved.values() for group in part["param_groups"])
    other.load_state_dict(copy.deepcopy(saved))
    for step in range(4, 8):
        for net, optimizers in zip(nets, (one, other), strict=True):
            backward(net, step)
            optimizers.step(step)
    for ours, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_work_is_recorded_once_its_memory_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, place, taped = [], [1], []
    settled = Settled(lambda: calls.append("work") or torch.zeros(1), lambda: place[0], True)  # type: ignore[func-returns-value]
    replay = lambda: calls.append("replay") or torch.ones(1)  # type: ignore[func-returns-value]  # noqa: E731
    monkeypatch.setattr(settled, "_recorded", lambda: taped.append(place[0]) or replay)
    for _ in range(WARM_UP + 2):
        settled()
    place[0] = 2  # other gradients
    for _ in range(WARM_UP + 1):
        settled()
    settled.forget()  # other moments
    settled()
    assert calls == ["work"] * WARM_UP + ["replay"] * 2 + ["work"] * WARM_UP + ["replay", "work"] and taped == [1, 2]


class Tape:
    """Stands for a CUDA graph: plays what ran while it recorded."""

    refuses = False

    def __init__(self) -> None:
        self.played = 0

    def replay(self) -> None:
        self.played += 1

    @staticmethod
    @contextlib.contextmanager
    def recording(graph: Tape, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"  # threads that load data go on
        yield
        if Tape.refuses:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.mark.parametrize("refuses", [False, True])
def test_what_cannot_be_recorded_is_said_and_done(refuses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", Tape.recording)
    monkeypatch.setattr(Tape, "refuses", refuses)
    runs: list[int] = []
    settled = Settled(lambda: runs.append(1) or torch.ones(1), lambda: 0, True)  # type: ignore[func-returns-value]
    made = [settled() for _ in range(WARM_UP + 4)]
    assert all(torch.equal(one, torch.ones(1)) for one in made)
    assert len(runs) == WARM_UP + 1 + 4 * refuses  # once for the recording
    assert settled.says == refuses * (
        "the optimiser cannot be recorded as a CUDA graph: operation not permitted when stream is capturing"
    )
    assert settled.record is not refuses


# ---- whole runs


def told(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [
        {name: line[name] for name in ("step", "loss", "grad_norm", "void", "lr")} for line in lines if "loss" in line
    ]


@pytest.mark.usefixtures("unattended")
def test_numbers_are_read_one_step_later_and_are_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a stop in between, and where checkpoints and looks fall on steps that were not read yet."""
    seen: list[int] = []
    step = train.Log.step
    monkeypatch.setattr(train.Log, "step", lambda self, done, *more: seen.append(done) or step(self, done, *more))
    launch = state.State.step
    late: list[int] = []

    def launched(self: Any, number: int, *more: Any) -> Any:
        late.append(number - len(seen))
        return launch(self, number, *more)

    monkeypatch.setattr(state.State, "step", launched)
    optim = OptimConfig(optimizer="muon", lr=4e-3, warmup=2, ema=0.9, skip_factor=5)
    runs = {name: config(data, tmp_path / name, model=TINY, optim=optim, steps=9) for name in ("late", "cut", "now")}
    train_fn(runs["late"])
    assert late == [0, 1, 1, 1, 0, 1, 0, 1, 0]  # checkpoints of steps 4 and 8, a look at step 6
    whole = list(seen)
    seen.clear()
    monkeypatch.setattr(train.Log, "step", lambda self, done, *more: step(self, done, *more))
    at_once = train.Behind.__init__

    def now(self: Any, *given: Any) -> None:
        at_once(self, *given)
        self.most = 0

    with monkeypatch.context() as patch:
        patch.setattr(train.Behind, "__init__", now)
        train_fn(runs["now"])
    with monkeypatch.context() as patch:
        patch.setattr(state.State, "step", interrupted(launch, 3))
        assert not train_fn(runs["cut"]).finished
    assert train_fn(runs["cut"]).finished
    assert whole == list(range(1, 10))
    assert told(tmp_path / "late") == told(tmp_path / "now") == told(tmp_path / "cut")


def interrupted(step: Callable[..., Any], at: int) -> Callable[..., Any]:
    """State.step, with a Ctrl-C while step `at` is on its way."""

    def stepped(self: Any, number: int, *more: Any) -> Any:
        if number == at:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number, *more)

    return stepped


@pytest.mark.usefixtures("unattended")
def test_a_run_that_skips_every_step_ends_here_too(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "MAX_SKIPPED", 5)
    optim = OptimConfig(lr=2e-3, warmup=2, skip_above=1e-4)
    with pytest.raises(UserError, match=r"the last 5 steps were all skipped.*norm is"):
        train_fn(config(data, tmp_path, optim=optim, eval_every=0))
    assert len(losses(tmp_path)) == 4


# ---- how many operations


class Launches(TorchDispatchMode):
    """Counts operations that launch something: all but views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.paused = 0, False
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        aliases = [each.alias_info for each in func._schema.returns]
        is_view = bool(aliases) and all(each is not None and not each.is_write for each in aliases)
        self.names.add(func.name() + " to a device" * bool(kwargs and kwargs.get("device") and "copy" in func.name()))
        idle = is_view or func.name().split("::")[1].split(".")[0] in ("empty", "set_", "empty_like", "empty_strided")
        self.count += not (idle or self.paused)
        return made

    def pausing(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, of which nothing counts: it is in a graph."""

        def quietly(*given: Any) -> Any:
            self.paused = True
            with contextlib.ExitStack() as stack:
                stack.callback(setattr, self, "paused", False)
                return work(*given)

        return quietly


@pytest.mark.parametrize("name", PRESETS)
def test_operations_of_an_update(name: Any) -> None:
    """A tiny width, but as many layers: how many operations there are does not depend on the width, if a batch of matrices does
    not."""
    cfg = PRESETS[name]
    tiny = dataclasses.replace(cfg.model, dim=32, head_dim=16, latents=8)
    net = lvsm.build(tiny, 0)
    optimizers = Optimizers(net, cfg.optim, cfg.steps, unattended=True)
    optimizers.bind_gradients()
    mean = Average(net, cfg.optim.ema, True) if cfg.optim.ema else None
    counted = []
    for step in range(3):
        for parameter in net.parameters():
            parameter.grad.copy_(torch.full_like(parameter, 0.01))
        optimizers.plan(step)
        loss = torch.tensor(1.0)
        with Launches() as launches:
            optimizers.move(loss)
            if mean:
                mean.move(net)
        counted.append(launches.count)
        if step:  # nothing that asks the host, or comes from it: moments are there
            asked = {"aten::_local_scalar_dense", "aten::lift_fresh", "aten::_to_copy to a device"}
            assert not launches.names & asked
    assert counted[1] == counted[2] <= INSIDE[cfg.optim.optimizer]
    if cfg.optim.optimizer == "muon":
        with torch.device("meta"):
            wide = lvsm.BY_KIND[cfg.model.kind](cfg.model)
        shapes = [
            len(list(batches(Optimizers(one, cfg.optim, 1, unattended=False).all[1].param_groups[0]["params"])))
            for one in (net, wide)
        ]
        assert shapes[0] == shapes[1] == 5


@pytest.mark.usefixtures("unattended")
@pytest.mark.parametrize("name", PRESETS)
def test_operations_of_a_step_beside_its_graphs(
    name: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the whole loop: batch, forward and backward, update, numbers for the log."""
    monkeypatch.setattr(vgg, "load", lambda *_: Weights("vgg19", narrow_convs(), CAFFE, "random"))
    monkeypatch.setattr(tuning, "compile_blocks", lambda *_: None)  # what is in a graph counts for nothing anyway
    launches, counts = Launches(), []
    step = train.Behind.step

    def counting(self: Any, *given: Any) -> Any:
        counts.append(launches.count)
        return step(self, *given)

    monkeypatch.setattr(train.Behind, "step", counting)
    monkeypatch.setattr(state.State, "_move", launches.pausing(state.State._move))
    monkeypatch.setattr(gradients.Gradients, "_backward", launches.pausing(gradients.Gradients._backward))
    with launches:
        train_fn(small_run(name, data, tmp_path))
    of_each = [after - before for before, after in itertools.pairwise(counts)]
    assert 0 < max(of_each[1:]) <= OUTSIDE, of_each


def small_run(name: Any, data: Path, out: Path) -> TrainConfig:
    """A preset's recipe and graphs for a tiny model, six steps."""
    known = PRESETS[name]
    return dataclasses.replace(
        known,
        model=dataclasses.replace(known.model, dim=32, head_dim=16, layers=4, encoder_layers=2, latents=8),
        data=dataclasses.replace(
            known.data, data=(data,), res=32, batch=2, inputs=2, targets=2, scenes=False, workers=0
        ),
        out=out,
        steps=6,
        eval_every=0,
        device="cpu",
        precision="fp32",
        compile="graphs",
        tensorboard=False,
    ).resolved()
