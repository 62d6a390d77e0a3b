"""One training run, from shards to checkpoints: `train_fn(cfg)`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lvsm_train import checkpoint, evaluate, model
from lvsm_train.config import TrainConfig
from lvsm_train.data import Batch, Data
from lvsm_train.devices import autocast, device_of
from lvsm_train.evaluate import Scores
from lvsm_train.loss import Loss
from lvsm_train.model import LVSM
from lvsm_train.optim import Average, Optimizers, count
from lvsm_train.progress import Log
from pipeline.scene import UserError


@dataclasses.dataclass(frozen=True)
class Result:
    """How a session ended. step: how many steps the run has done. scores: of the last evaluation, None without one."""

    out: Path
    step: int
    finished: bool
    scores: Scores | None


def train_fn(cfg: TrainConfig) -> Result:
    """Trains until cfg.steps are done, from the newest checkpoint in cfg.out on. cfg is resolved.

    Raises UserError: no data, a folder of another run, memory that does not suffice (with what to lower).
    """
    assert cfg.out is not None
    device = device_of(cfg.device)
    with _setting(cfg, device), contextlib.closing(Data(cfg.data, device=device)) as data:
        state = _State(cfg, device)
        start = state.resume()
        loss = Loss(cfg.loss).to(device)
        samples = (
            data.planner.evaluation("val", cfg.data.inputs, cfg.eval_targets, cfg.eval_objects)
            if cfg.eval_every
            else []
        )
        scores = None
        done = start
        with Log(cfg, start, [*data.notes, *loss.says(), *_about(state, data)]) as log, _stopping() as stopped:
            clock = time.perf_counter()
            for step, batch in zip(range(start, cfg.steps), data.batches(start), strict=False):
                waited = time.perf_counter() - clock
                value, terms = _backward(state.net, loss, batch, step, cfg)
                facts = state.step(step, value)
                done = step + 1
                log.step(done, value, terms, facts, waited, batch)
                if samples and (done % cfg.eval_every == 0 or done == cfg.steps):
                    scores = _look(state, data, samples, done, cfg)
                    log.evaluation(done, scores)
                    state.note(done, scores)
                if done % cfg.checkpoint_every == 0 or done == cfg.steps or stopped:
                    state.save(done)
                if stopped:
                    break
                clock = time.perf_counter()
    return Result(cfg.out, done, done >= cfg.steps, scores)


def _backward(
    net: LVSM, loss: Loss, batch: Batch, step: int, cfg: TrainConfig
) -> tuple[float, dict[str, torch.Tensor]]:
    try:
        with autocast(cfg.precision, batch.image.device):
            render = net(batch.rgb, batch.c2w, batch.fxfycxcy, batch.target_c2w, batch.target_fxfycxcy)
        value, terms = loss(render.flatten(0, 1), batch.target_rgb.flatten(0, 1), step)
        value.backward()
    except torch.OutOfMemoryError as error:
        hint = f"lower --batch ({cfg.data.batch}), --targets ({cfg.data.targets}) or --inputs; or --recompute {cfg.model.layers}"
        raise UserError(f"the memory of {batch.image.device} is full: {str(error).splitlines()[0]}", hint) from None
    return float(value.detach()), terms


class _State:
    """Everything that moves in training, and its way to and from a checkpoint. The data's cursor is the step."""

    def __init__(self, cfg: TrainConfig, device: torch.device) -> None:
        assert cfg.out is not None
        self.cfg, self.device, self.out = cfg, device, cfg.out
        self.net = model.build(cfg.model, cfg.data.seed).to(device)
        self.net.set_recompute(cfg.recompute)
        self.optimizers = Optimizers(self.net, cfg.optim, cfg.steps)
        self.average = Average(self.net, cfg.optim.ema) if cfg.optim.ema else None
        self.best: tuple[float, int] | None = None
        self.scores: dict[str, Any] = {}

    def step(self, number: int, value: float) -> dict[str, float]:
        """Moves the weights; a loss that is no number makes the step void."""
        if math.isfinite(value):
            facts = self.optimizers.step(number)
        else:
            self.optimizers.zero_grad()
            facts = {"grad_norm": math.nan, "lr": math.nan, "void": 1.0}
        if self.average:
            self.average.update(self.net)
        return facts

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[LVSM]:
        """The model with the averaged weights, where there are any."""
        if self.average is None:
            yield self.net
            return
        own = {name: value.clone() for name, value in self.net.state_dict().items()}
        self.net.load_state_dict(self.average.weights)
        try:
            yield self.net
        finally:
            self.net.load_state_dict(own)

    def note(self, step: int, scores: Scores) -> None:
        """Remembers which step did best."""
        self.scores = dataclasses.asdict(scores)
        if self.best is None or scores.psnr > self.best[0]:
            self.best = (scores.psnr, step)

    def save(self, step: int) -> None:
        """Commits a checkpoint."""
        state = {
            "model": self.net.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "random": torch.get_rng_state(),
            "best": list(self.best) if self.best else [],
        }
        facts = {
            "best": self.best[1] if self.best else None,
            "scores": self.scores,
            "identity": self.cfg.identity(),
            "config": self.cfg.as_json(),
        }
        checkpoint.save(self.out, step, state, facts, self.cfg.keep)

    def resume(self) -> int:
        """The step to go on with. Raises UserError where the folder holds another run."""
        found = checkpoint.load(self.out, device=str(self.device))
        if found is None:
            return 0
        state, facts = found
        before, now = facts["identity"], self.cfg.identity()
        if changed := _differences(before, now):
            raise UserError(
                f"{self.out} was trained with other settings: {'; '.join(changed)}",
                "use the same settings to go on, or another --out",
            )
        self.net.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])
        if self.average:
            self.average.load_state_dict(state["average"])
        torch.set_rng_state(state["random"].cpu())
        self.best = (float(state["best"][0]), int(state["best"][1])) if state["best"] else None
        return int(facts["step"])


def _differences(before: dict[str, Any], now: dict[str, Any], path: str = "") -> list[str]:
    told = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            told += _differences(old, new, f"{name}.")
        elif old != new:
            told.append(f"{name.replace('_', '-')} was {old}, now {new}")
    return told


def _look(state: _State, data: Data, samples: list[Any], step: int, cfg: TrainConfig) -> Scores:
    """Measures the model on samples that do not train, and writes a picture of some."""
    with state.evaluated() as net, torch.no_grad(), autocast(cfg.precision, state.device):

        def render(batch: Batch) -> torch.Tensor:
            return net(batch.rgb, batch.c2w, batch.fxfycxcy, batch.target_c2w, batch.target_fxfycxcy)

        scores = evaluate.measure(render, data.evaluation_batches(samples, cfg.data.batch))
        evaluate.strip(
            render, next(data.evaluation_batches(samples[:6], 6)), state.out / "strips" / f"step-{step:08d}.png"
        )
    return scores


def _about(state: _State, data: Data) -> list[str]:
    cfg = state.cfg.model
    return [
        f"{cfg.kind}, {count(state.net.parameters()) / 1e6:.1f} million weights, on {state.device}; "
        f"{len(data.planner.train)} objects train, {len(data.planner.val)} are held out; pictures in {data.cached}"
    ]


@contextlib.contextmanager
def _setting(cfg: TrainConfig, device: torch.device) -> Iterator[None]:
    """The run's folder, its random numbers, and deterministic algorithms where asked for."""
    assert cfg.out is not None
    cfg.out.mkdir(parents=True, exist_ok=True)
    path = cfg.out / "train.json"
    path.with_suffix(".tmp").write_text(json.dumps(cfg.as_json(), indent=2))
    os.replace(path.with_suffix(".tmp"), path)
    torch.manual_seed(cfg.data.seed)
    before = torch.are_deterministic_algorithms_enabled()
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def _stopping() -> Iterator[list[int]]:
    """Fills with the first SIGINT or SIGTERM; a second one raises KeyboardInterrupt."""
    import signal
    import sys

    seen: list[int] = []

    def handler(number: int, frame: object) -> None:
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt
        print("\nstopping after this step, with a checkpoint; Ctrl-C again ends at once", file=sys.stderr)

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, old in before.items():
            signal.signal(number, old)
