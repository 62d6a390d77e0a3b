"""One training run, from shards to checkpoints: `train_fn(cfg)`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from lvsm_train.config.train import TrainConfig
from lvsm_train.data.batches import Data
from lvsm_train.data.step_inputs import Epochs, Feed, RankBarrier
from lvsm_train.data.stream import Stream
from lvsm_train.device.devices import autocast, device_of
from lvsm_train.device.ranks import Ranks, process_group
from lvsm_train.evaluation import scores as evaluate
from lvsm_train.evaluation.scores import Scores
from lvsm_train.training.card import write_card
from lvsm_train.training.gradients import Gradients
from lvsm_train.training.guards import Watchdog
from lvsm_train.training.log import Log
from lvsm_train.training.optim import count
from lvsm_train.training.state import State
from lvsm_train.weights import official
from pipeline.core.disk import is_full, patiently, put
from pipeline.core.errors import UserError
from pipeline.cycle.protocol import Cursor


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
    with process_group(cfg.hang_minutes) as ranks, _setting(cfg, ranks):
        cfg = cfg.shared(ranks.world)
        assert cfg.out is not None
        device = device_of(cfg.device, ranks.local)
        state = State(cfg, device, ranks)
        done = start = state.resume()
        gradients = Gradients(cfg, state.net, device, ranks)
        stop, saved = 0.0, start
        with Log(cfg, start, ranks, device) as log, Watchdog(cfg.hang_minutes) as dog, _stopping() as stopped:
            log.say(
                *gradients.loss.says(),
                f"{cfg.model.kind}, {count(state.net.parameters()) / 1e6:.1f} million weights, on {device}",
            )

            def waiting() -> bool:
                dog.reset()
                return bool(stopped)

            state.enough = log.enough = waiting
            together = RankBarrier(ranks, device, waiting)
            feed = _feed(cfg, ranks, device, log, state, together.asked)
            with contextlib.closing(feed.steps(start)) as steps:
                for fed in together.steps(steps) if cfg.cycle else steps:
                    log.say(*gradients.suit(fed.batches[0]))
                    told = gradients(fed.batches, fed.step)
                    asked = [float(bool(stopped)), float(feed.urgent(state.cursor))]
                    shared = ranks.all_reduce_mean(torch.stack([*told.values(), *told["loss"].new_tensor(asked)]))
                    # the one wait for a GPU
                    *means, stop, urgent, norm = torch.cat([shared, state.optimizers.norm()[None]]).tolist()
                    terms = dict(zip(told, means, strict=True))
                    facts = state.step(fed.place, terms["loss"], norm)
                    done = fed.step + 1
                    log.step(done, terms | facts, fed)
                    log.say(state.settle(done, terms["loss"]))
                    if cfg.eval_every and (done % cfg.eval_every == 0 or fed.last):
                        dog.reset()
                        _look(state, fed.data, done, cfg, log)
                    if done % cfg.checkpoint_every == 0 or fed.last or stop or urgent:
                        dog.reset()
                        state.save(done, fed.cursor)
                        saved = done
                        if ranks.first:
                            patiently(partial(write_card, cfg, fed.data, done, state.scores), cfg.out, waiting)
                    dog.reset()
                    if stop:
                        break
            if saved < done:  # stopped while it waited for data
                state.save(done, fed.cursor)
        finished = not (stop or stopped or together.stopped) or (start < done and fed.last)
        if finished and cfg.export_official:
            _export(state, cfg.export_official)
        return Result(cfg.out, done, finished, state.scores, ranks.first)


def _feed(
    cfg: TrainConfig, ranks: Ranks, device: torch.device, log: Log, state: State, waiting: Callable[[], bool]
) -> Feed:
    if cfg.cycle:
        return Stream(cfg, ranks, device, log.say, state.cursor or Cursor(), waiting)
    return Epochs(cfg, ranks, device, log.say)


def _look(state: State, data: Data, step: int, cfg: TrainConfig, log: Log) -> None:
    """Measures the model on objects that do not train, and makes a picture of some. Of all ranks the first one does."""
    samples = data.planner.evaluation("val", cfg.data.inputs, cfg.eval_targets, cfg.eval_objects)
    if not samples:
        log.say(f"step {step}: no held-out object has {cfg.data.inputs} views and one more: nothing is measured")
        return
    with state.evaluated() as net, torch.no_grad(), autocast(cfg.precision, state.device):
        if not state.ranks.first:
            return
        render = evaluate.render_of(net)

        def look() -> None:
            scores = evaluate.measure(render, data.evaluation_batches(samples, cfg.data.batch))
            picture = state.out / "strips" / f"step-{step:08d}.png"
            evaluate.strip(render, next(data.evaluation_batches(samples[:6], 6)), picture)
            state.note(step, scores)
            log.evaluation(step, scores, picture)

        patiently(look, state.out, state.enough)


def _export(state: State, path: Path) -> None:
    """What a run leaves for others. All ranks have to come; the first one writes."""
    with state.evaluated() as net:
        if state.ranks.first:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"model": official.to_official(net)}, path)


@contextlib.contextmanager
def _setting(cfg: TrainConfig, ranks: Ranks) -> Iterator[None]:
    """The run's folder, its random numbers, and deterministic algorithms where asked for."""
    assert cfg.out is not None
    if ranks.first:
        cfg.out.mkdir(parents=True, exist_ok=True)
        path = cfg.out / "train.json"
        patiently(lambda: put(path, cfg.as_json()), cfg.out)
    torch.manual_seed(cfg.data.seed)
    before = torch.are_deterministic_algorithms_enabled()
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("high")
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise UserError(
            f"the disk of {cfg.out} is full", "make room; the same command goes on from the newest checkpoint"
        ) from None
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
