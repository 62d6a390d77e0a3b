"""One training run, from shards to checkpoints: `train_fn(cfg)`."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from lvsm_train import evaluate, official
from lvsm_train.card import write_card
from lvsm_train.config import TrainConfig
from lvsm_train.data import Batch, Data
from lvsm_train.devices import autocast, device_of
from lvsm_train.evaluate import Scores
from lvsm_train.gradients import Gradients
from lvsm_train.optim import count
from lvsm_train.progress import Log
from lvsm_train.ranks import Ranks, joined
from lvsm_train.state import State
from lvsm_train.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class Result:
    """How a session ended. step: how many steps the run has done. scores: of the last evaluation, None without one, and of the
    first rank alone. first: whether this is that rank, which speaks for all."""

    out: Path
    step: int
    finished: bool
    scores: Scores | None
    first: bool = True


def train_fn(cfg: TrainConfig) -> Result:
    """Trains until cfg.steps are done, from the newest checkpoint in cfg.out on. cfg is resolved.

    Every rank calls it: one process alone, those of torchrun, those of Ray Train. Raises UserError: no data, a folder of
    another run, memory that does not suffice (with what to lower), a loss that cannot be brought down.
    """
    assert cfg.out is not None
    with joined(cfg.hang_minutes) as ranks, _setting(cfg, ranks):
        device = device_of(cfg.device, ranks.local)
        state = State(cfg, device, ranks)
        done = start = state.resume()
        gradients = Gradients(cfg, state.net, device, ranks)
        with Log(cfg, start, ranks, device) as log, Watchdog(cfg.hang_minutes) as dog, _stopping() as stopped:
            log.say(
                *gradients.loss.says(),
                f"{cfg.model.kind}, {count(state.net.parameters()) / 1e6:.1f} million weights, on {device}",
            )
            for data, step, batches, waited in _fed(cfg, ranks, device, start, log):
                log.say(*gradients.suit(batches[0]))
                told = gradients(batches, step)
                stopping = told["loss"].new_tensor(float(bool(stopped)))
                shared = ranks.mean(torch.stack([*told.values(), stopping]))
                # the one wait for a GPU
                *means, stop, norm = torch.cat([shared, state.optimizers.norm()[None]]).tolist()
                terms = dict(zip(told, means, strict=True))
                facts = state.step(step, terms["loss"], norm)
                done = step + 1
                log.step(done, terms | facts, waited, batches)
                log.say(state.settle(done, terms["loss"]))
                if cfg.eval_every and (done % cfg.eval_every == 0 or done == cfg.steps):
                    dog.alive()
                    _look(state, data, done, cfg, log)
                if done % cfg.checkpoint_every == 0 or done == cfg.steps or stop:
                    dog.alive()
                    state.save(done)
                    if ranks.first:
                        write_card(cfg, data, done, state.scores)
                dog.alive()
                if stop:
                    break
        if ranks.first and done >= cfg.steps:
            _conclude(state, cfg)
        return Result(cfg.out, done, done >= cfg.steps, state.scores, ranks.first)


def _fed(
    cfg: TrainConfig, ranks: Ranks, device: torch.device, start: int, log: Log
) -> Iterator[tuple[Data, int, list[Batch], float]]:
    """Of each step from `start` on: its data, its number, this rank's batches, and the seconds that were waited for them."""
    first = 0
    for end, res in cfg.stages():
        if start < end:
            settings = dataclasses.replace(cfg.data, res=res)
            with contextlib.closing(Data(settings, ranks.rank, ranks.world, device, cfg.accumulate)) as data:
                log.say(*data.notes, data.says())
                with contextlib.closing(data.batches(max(first, start))) as batches:
                    for step in range(max(first, start), end):
                        clock = time.perf_counter()
                        some = list(itertools.islice(batches, cfg.accumulate))
                        yield data, step, some, time.perf_counter() - clock
        first = end


def _look(state: State, data: Data, step: int, cfg: TrainConfig, log: Log) -> None:
    """Measures the model on objects that do not train, and makes a picture of some. Of all ranks the first one does."""
    if not state.ranks.first:
        return
    samples = data.planner.evaluation("val", cfg.data.inputs, cfg.eval_targets, cfg.eval_objects)
    if not samples:
        log.say(f"step {step}: no held-out object has {cfg.data.inputs} views and one more: nothing is measured")
        return
    with state.evaluated() as net, torch.no_grad(), autocast(cfg.precision, state.device):
        render = evaluate.render_of(net)
        scores = evaluate.measure(render, data.evaluation_batches(samples, cfg.data.batch))
        picture = state.out / "strips" / f"step-{step:08d}.png"
        evaluate.strip(render, next(data.evaluation_batches(samples[:6], 6)), picture)
    state.note(step, scores)
    log.evaluation(step, scores, picture)


def _conclude(state: State, cfg: TrainConfig) -> None:
    """What a run leaves for others."""
    if cfg.export_official:
        with state.evaluated() as net:
            cfg.export_official.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"model": official.to_official(net)}, cfg.export_official)


@contextlib.contextmanager
def _setting(cfg: TrainConfig, ranks: Ranks) -> Iterator[None]:
    """The run's folder, its random numbers, and deterministic algorithms where asked for."""
    assert cfg.out is not None
    if ranks.first:
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
    seen: list[int] = []

    def handler(number: int, frame: object) -> None:
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt
        print("\nstopping after this step, with a checkpoint; Ctrl-C again ends at once", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():  # a worker of Ray Train: its controller stops it
        yield seen
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, old in before.items():
            signal.signal(number, old)
