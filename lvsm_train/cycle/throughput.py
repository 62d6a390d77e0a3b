"""`python -m lvsm_train.cycle.throughput PILOT`: training speed on a pilot's shards, for `lvsm-data plan`.

Reads PILOT/train.json, takes steps as `train` does, and says on stdout what each took, a line of JSON at a time:

    {"step": 0, "seconds": 1.31, "samples": 8, "beside": true, "start_s": 6.2}
    {"save_s": 0.04, "checkpoint_bytes": 3911680}                a checkpoint
    {"look_s": 0.012, "objects": 8}                              a look at so many unseen objects, seconds per object

start_s: with the first one, since the process was started. beside: before stdin was closed. It goes on until then, as what
renderers have to share a machine with, and after that until there is enough to know.
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

LEAST = 8  # steps behind the first
WITHIN_S = 45.0  # after stdin was closed, even where these are fewer
MOST_S = 3600.0


def main() -> int:
    """Measures. Exit status 0, or 2 where what was asked for cannot be done."""
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
    """Steps of one rank, on all objects of cfg.data, until `closed` is set; then LEAST of them, or WITHIN_S seconds.

    cfg: resolved, its cfg.out is free for a checkpoint. Raises UserError like `train_fn`.
    """
    cfg = cfg.shared(cfg.world)
    torch.manual_seed(cfg.data.seed)
    torch.set_float32_matmul_precision("high")
    device = device_of(cfg.device)
    state = State(cfg, device, Ranks())
    gradients = Gradients(cfg, state.net, device, Ranks())
    with contextlib.closing(Data(cfg.data, device=device, accumulate=cfg.accumulate)) as data:
        enough = _enough(closed)
        with contextlib.closing(data.batches()) as batches:
            for number in itertools.count():
                clock = time.perf_counter()
                some = list(itertools.islice(batches, cfg.accumulate))
                step(state, gradients, some, cfg.loss.perceptual_from + number)
                now = time.perf_counter()
                samples = sum(len(batch.uids) for batch in some)
                said = {"step": number, "seconds": now - clock, "samples": samples, "beside": not closed.is_set()}
                _say(said | ({} if number else {"start_s": time.time() - psutil.Process().create_time()}))
                if number == 1:
                    _save(state)
                    _look(state, data)
                if next(enough):
                    return


def _enough(closed: threading.Event) -> Iterator[bool]:
    """After each step: whether it was the last."""
    begun, until = time.monotonic(), None
    for number in itertools.count():
        now = time.monotonic()
        if until is None and closed.is_set():
            until = now + WITHIN_S
        yield now > begun + MOST_S or (until is not None and (number >= LEAST or now > until))


def step(state: State, gradients: Gradients, batches: list[Batch], number: int) -> None:
    """One step of training, with the one wait for a GPU that it has."""
    gradients.suit(batches[0])
    told = gradients(batches, number)
    *_, loss, norm = torch.stack([told["loss"], state.optimizers.norm()]).tolist()
    state.step(number, loss, norm)


def _save(state: State) -> None:
    clock = time.perf_counter()
    state.save(1)
    _say({"save_s": time.perf_counter() - clock, "checkpoint_bytes": disk_below(state.out / CHECKPOINTS)})


def _look(state: State, data: Data) -> None:
    """The pictures of a look have no say in how long it takes: those that train will do."""
    cfg = state.cfg
    samples = data.planner.evaluation("all", cfg.data.inputs, cfg.eval_targets, min(cfg.data.batch, cfg.eval_objects))
    if not cfg.eval_every or not samples:
        return
    for _ in range(2):  # the first one starts things
        clock = time.perf_counter()
        with state.evaluated() as net, torch.no_grad(), autocast(cfg.precision, state.device):
            scores.measure(scores.render_of(net), data.evaluation_batches(samples, cfg.data.batch))
        seconds = time.perf_counter() - clock
    _say({"look_s": seconds / len(samples), "objects": len(samples)})


def _say(told: dict[str, float]) -> None:
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    sys.exit(main())
