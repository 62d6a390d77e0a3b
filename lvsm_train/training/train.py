"""One training run, from shards to checkpoints: `train_fn(cfg)`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from lvsm_train.config.presets import batch_note
from lvsm_train.config.train import TrainConfig
from lvsm_train.data.batches import Data
from lvsm_train.data.step_inputs import EpochSource, RankBarrier, StepInput, StepSource, Stream
from lvsm_train.device.devices import Numbers, autocast, device_of, on_device
from lvsm_train.device.ranks import Ranks, process_group
from lvsm_train.evaluation.scores import Scores, measure, render_of, strip
from lvsm_train.training.card import write_card
from lvsm_train.training.gradients import Gradients
from lvsm_train.training.guards import Watchdog
from lvsm_train.training.log import Log
from lvsm_train.training.optim import count
from lvsm_train.training.state import State
from lvsm_train.weights import official
from pipeline.core.disk import is_full, patiently, write_json
from pipeline.core.errors import UserError
from pipeline.core.signals import first_interrupt
from pipeline.cycle.protocol import Cursor


@dataclasses.dataclass(frozen=True)
class Result:
    """step: steps that the run has done. finished: False if stopped before. scores: of the last evaluation, on the first rank
    alone, None without one. is_main: True for the first rank's."""

    out: Path
    step: int
    finished: bool
    scores: Scores | None
    is_main: bool = True


def train_fn(cfg: TrainConfig) -> Result:
    """Train from the newest checkpoint in cfg.out until cfg.steps are done. cfg: resolved.

    Called by every rank: a single process, or each of torchrun or Ray Train. Raises UserError: no data, a folder of another
    run, full memory (with settings to lower), a loss that keeps spiking.
    """
    with process_group(cfg.hang_minutes) as ranks, _run_setup(cfg, ranks):
        cfg = cfg.shared(ranks.world)
        device = device_of(cfg.device, ranks.local)
        state = State(cfg, device, ranks)
        done = start = state.resume()
        cfg = state.cfg
        if ranks.is_main:  # what was refused has written nothing
            patiently(lambda: write_json(cfg.folder / "train.json", cfg.as_json()), cfg.folder)
        gradients = Gradients(cfg, state.net, device, ranks)
        stop, saved = False, start
        with (
            Log(cfg, start, ranks, device) as log,
            Watchdog(cfg.hang_minutes) as dog,
            first_interrupt(_say_stopping) as stopped,
        ):
            log.say(
                *state.notes,
                batch_note(cfg, ranks.world),
                *gradients.loss.says(),
                f"{cfg.model.kind}, {count(state.net.parameters()) / 1e6:.1f} million weights, on {device}",
            )

            def stop_waiting() -> bool:
                dog.reset()
                return bool(stopped)

            state.stop_waiting = log.stop_waiting = stop_waiting
            log.loss_flops = gradients.loss.flops
            barrier = RankBarrier(ranks, device, stop_waiting)
            source = _source(cfg, state, log, barrier)
            behind = Behind(state, log, ranks)
            with contextlib.closing(source.steps(start)) as steps:
                for step_input in barrier.steps(steps) if cfg.cycle else steps:
                    log.say(*gradients.prepare(step_input.batches[0], step_input.data.sizes))
                    terms = gradients(step_input.batches, step_input.step)
                    done = step_input.step + 1
                    looks = bool(cfg.eval_every) and (done % cfg.eval_every == 0 or step_input.last)
                    saves = done % cfg.checkpoint_every == 0 or step_input.last
                    wishes = bool(stopped), source.urgent(state.cursor)
                    stop, urgent = behind.step(terms, step_input, wishes, looks or saves)
                    if looks:
                        dog.reset()
                        _evaluate(state, step_input.data, done, cfg, log)
                    if saves or stop or urgent:
                        dog.reset()
                        _save(state, step_input)
                        saved = done
                    dog.reset()
                    if stop:
                        break
            behind.catch_up()
            if saved < done:  # stopped while waiting for data
                state.save(done, step_input.cursor)
        finished = not (stop or stopped or barrier.stopped) or (start < done and step_input.last)
        if finished and cfg.export_official:
            _export(state, cfg.export_official)
        return Result(cfg.folder, done, finished, state.scores, ranks.is_main)


class _Launched(NamedTuple):
    """A step that the device may still be at. values: what the host knew; numbers: means by `names`, then wishes, norm, void."""

    step_input: StepInput
    names: list[str]
    values: dict[str, float]
    numbers: Numbers


class Behind:
    """Steps whose numbers the host has not read yet.

    On a GPU one may be: the device then has its next step before it ends this one, and never waits for the host. What follows
    from a step's numbers (log, spikes, an end after too many skipped ones) comes one step later there.
    """

    def __init__(self, state: State, log: Log, ranks: Ranks) -> None:
        self.state, self.log, self.ranks = state, log, ranks
        # ranks of a cycle have to know at once whether one of them wants a checkpoint: no step follows where they wait
        at_once = state.cfg.cycle and ranks.world > 1
        self.most = 1 if state.optimizers.unattended and not at_once else 0
        self.launched: deque[_Launched] = deque()
        self.wishes = False, False

    def step(
        self, terms: dict[str, torch.Tensor], step_input: StepInput, wishes: tuple[bool, bool], due: bool
    ) -> tuple[bool, bool]:
        """Update the weights by the gradients that gave `terms`, and report what is known by now.

        wishes: (stop, a checkpoint) of this rank; returned are those of all ranks. due: the host needs all numbers now.
        """
        shared = torch.stack([*terms.values()])
        if self.ranks.world > 1:
            shared = self.ranks.all_reduce_mean(torch.cat([shared, on_device(wishes, shared)]))
        lr, moved = self.state.step(step_input.step, step_input.progress, shared[list(terms).index("loss")])
        numbers = Numbers(torch.cat([shared.double(), moved]))
        self.launched.append(_Launched(step_input, list(terms), {"lr": lr}, numbers))
        if self.ranks.world == 1:
            self.wishes = wishes
        self.catch_up(self.most)
        if due or any(self.wishes):
            self.catch_up()
        return self.wishes

    def catch_up(self, most: int = 0) -> None:
        """Report all steps but the last `most`. Raises UserError where too many were skipped, or losses spike again."""
        while len(self.launched) > most:
            step_input, names, known, numbers = self.launched.popleft()
            *means, norm, void = numbers.read()
            if self.ranks.world > 1:
                *means, stop, save = means
                self.wishes = stop > 0, save > 0
            values = dict(zip(names, means, strict=True)) | {"grad_norm": norm, "void": void} | known
            self.state.count_skipped(values)
            self.log.step(step_input.step + 1, values, step_input)
            self.log.say(self.state.move.says, self.state.roll_back_on_spike(step_input.step + 1, values["loss"]))
            self.state.move.says = ""


def _save(state: State, step_input: StepInput) -> None:
    """Write a checkpoint after a step, and the card, on the first rank. All ranks must call this."""
    done = step_input.step + 1
    state.save(done, step_input.cursor)
    if state.ranks.is_main:
        card = partial(write_card, state.cfg, step_input.data, done, state.scores)
        patiently(card, state.out, state.stop_waiting)


def _source(cfg: TrainConfig, state: State, log: Log, barrier: RankBarrier) -> StepSource:
    """Steps over complete shards, or over those of a cycle."""
    if not cfg.cycle:
        return EpochSource(cfg, state.ranks, state.device, log.say)
    return Stream(cfg, state.ranks, state.device, log.say, state.cursor or Cursor(), barrier.poll)


def _evaluate(state: State, data: Data, step: int, cfg: TrainConfig, log: Log) -> None:
    """Score the model on held-out objects and write a picture of six, on the first rank. All ranks must call this."""
    samples = data.planner.evaluation("val", cfg.data.inputs, cfg.eval_targets, cfg.eval_objects)
    if not samples:
        log.say(f"step {step}: no held-out object has {cfg.data.inputs} views and one more: nothing is measured")
        return
    with (
        state.evaluation_net() as net,
        torch.no_grad(),
        autocast(cfg.precision, state.device),
    ):
        if not state.ranks.is_main:
            return
        render = render_of(net)

        def report() -> None:
            scores = measure(render, data.evaluation_batches(samples, cfg.data.batch))
            picture = state.out / "strips" / f"step-{step:08d}.png"
            strip(render, next(data.evaluation_batches(samples[:6], 6)), picture)
            state.record_scores(step, scores)
            log.evaluation(step, scores, picture)

        patiently(report, state.out, state.stop_waiting)


def _export(state: State, path: Path) -> None:
    """Write the weights as a checkpoint of the official LVSM, on the first rank. All ranks must call this."""
    with state.evaluation_net() as net:
        if state.ranks.is_main:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"model": official.to_official(net)}, path)


@contextlib.contextmanager
def _run_setup(cfg: TrainConfig, ranks: Ranks) -> Iterator[None]:
    """Make the folder, seed torch, and use deterministic algorithms within the block if cfg says so. Full disk: UserError."""
    if ranks.is_main:
        cfg.folder.mkdir(parents=True, exist_ok=True)
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
            f"the disk of {cfg.folder} is full", "make room; the same command goes on from the newest checkpoint"
        ) from None
    finally:
        torch.use_deterministic_algorithms(before)


def _say_stopping() -> None:
    print("\nstopping after this step, with a checkpoint; Ctrl-C again ends at once", file=sys.stderr)
