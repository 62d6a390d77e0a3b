"""`python -m lvsm_train.cycle.throughput PILOT`: training speed on a pilot's shards, for `lvsm-data plan`.

Reads PILOT/train.json, trains as `train` does, and prints measurements on stdout, each a line of JSON:

    {"step": 0, "seconds": 1.31, "samples": 8, "beside": true, "start_s": 6.2}
    {"save_s": 0.04, "checkpoint_bytes": 3911680}                a checkpoint
    {"look_s": 0.012, "objects": 8}                              an evaluation of 8 unseen objects, seconds per object

start_s: with the first step, seconds since the process started. beside: whether stdin was open, that is, renderers ran beside
this. Training goes on until stdin is closed, as renderers' neighbour on the machine, and then until enough steps are measured.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from lvsm_train.config.train import TrainConfig
from lvsm_train.data.batches import Batch, Data
from lvsm_train.device.devices import autocast, device_of
from lvsm_train.device.ranks import Ranks
from lvsm_train.evaluation import scores
from lvsm_train.training.gradients import Gradients
from lvsm_train.training.guards import when_starter_ends
from lvsm_train.training.state import State
from pipeline.core.disk import disk_below
from pipeline.core.errors import UserError
from pipeline.storage.train_run import CHECKPOINTS

MIN_STEPS = 8  # after the first
CLOSED_MAX_S = 45.0  # after stdin was closed, even with fewer than MIN_STEPS
MAX_S = 3600.0


def main() -> int:
    """Measure. Exit status 0, or 2 after a UserError."""
    closed = threading.Event()
    when_starter_ends(closed.set)
    try:
        cfg = TrainConfig.from_json(json.loads((Path(sys.argv[1]) / "train.json").read_text()))
        measure(cfg, closed)
    except UserError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return 2
    return 0


def measure(cfg: TrainConfig, closed: threading.Event) -> None:
    """Train one rank on all objects of cfg.data until `closed` is set and MIN_STEPS are done, or CLOSED_MAX_S are over.

    cfg: resolved; a checkpoint is written to cfg.out. Raises UserError like `train_fn`.
    """
    cfg = cfg.shared(cfg.world)
    torch.manual_seed(cfg.data.seed)
    torch.set_float32_matmul_precision("high")
    device = device_of(cfg.device)
    state = State(cfg, device, Ranks())
    gradients = Gradients(cfg, state.net, device, Ranks())
    model = cfg.model
    opened = Data(cfg.data, device=device, accumulate=cfg.accumulate, aux=model.aux, patch=model.patch)
    with contextlib.closing(opened) as data:
        enough = _enough(closed)
        with contextlib.closing(data.batches()) as batches:
            for number in itertools.count():
                clock = time.perf_counter()
                some = list(itertools.islice(batches, cfg.accumulate))
                step(state, gradients, some, cfg.loss.perceptual_from + number)
                now = time.perf_counter()
                samples = sum(len(batch.uids) for batch in some)
                facts = {"step": number, "seconds": now - clock, "samples": samples, "beside": not closed.is_set()}
                _report(facts | ({} if number else {"start_s": time.time() - psutil.Process().create_time()}))
                if number == 1:
                    _save(state)
                    _evaluate(state, data)
                if next(enough):
                    return


def _enough(closed: threading.Event) -> Iterator[bool]:
    """Yield after each step whether to stop."""
    begun, until = time.monotonic(), None
    for number in itertools.count():
        now = time.monotonic()
        if until is None and closed.is_set():
            until = now + CLOSED_MAX_S
        yield now > begun + MAX_S or (until is not None and (number >= MIN_STEPS or now > until))


def step(state: State, gradients: Gradients, batches: list[Batch], number: int) -> None:
    """Take one training step, and wait for it."""
    gradients.prepare(batches[0])
    state.step(number, number, gradients(batches, number)["loss"])[1].tolist()


def _save(state: State) -> None:
    clock = time.perf_counter()
    state.save(1)
    _report({"save_s": time.perf_counter() - clock, "checkpoint_bytes": disk_below(state.out / CHECKPOINTS)})


def _evaluate(state: State, data: Data) -> None:
    """Time an evaluation of any objects: its speed does not depend on which."""
    cfg = state.cfg
    samples = data.planner.evaluation("all", cfg.data.inputs, cfg.eval_targets, min(cfg.data.batch, cfg.eval_objects))
    if not cfg.eval_every or not samples:
        return
    for _ in range(2):  # the first run warms up
        clock = time.perf_counter()
        with state.evaluation_net() as net, torch.no_grad(), autocast(cfg.precision, state.device):
            scores.measure(scores.render_of(net), data.evaluation_batches(samples, cfg.data.batch))
        seconds = time.perf_counter() - clock
    _report({"look_s": seconds / len(samples), "objects": len(samples)})


def _report(facts: dict[str, float]) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    sys.exit(main())
