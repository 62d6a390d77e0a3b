"""What a training run is fed with, step by step: from shards that all are there, in epochs. stream.py: from those of a cycle."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from lvsm_train.config.train import TrainConfig
from lvsm_train.data.batches import Batch, Data
from lvsm_train.device.ranks import Ranks
from pipeline.cycle.protocol import Cursor


@dataclass(frozen=True)
class StepInput:
    """A step. data: what validation is taken from. batches: this rank's, for which it waited so many seconds.

    place: of the step in the schedule of learning rates, in steps. slots: shards of a cycle -> samples of them.
    """

    step: int
    data: Data
    batches: list[Batch]
    waited: float
    place: float
    last: bool
    cursor: Cursor | None = None
    slots: dict[int, int] = dataclasses.field(default_factory=dict)


class Feed(Protocol):
    """steps(start) -> every step from there on. urgent(cursor): whether a checkpoint of that cursor is waited for."""

    def steps(self, start: int) -> Generator[StepInput, None, None]: ...

    def urgent(self, saved: Cursor | None) -> bool: ...


class Epochs:
    """Shards that all are there, again and again; larger pictures from stage to stage of a curriculum."""

    def __init__(self, cfg: TrainConfig, ranks: Ranks, device: torch.device, say: Callable[..., None]) -> None:
        self.cfg, self.ranks, self.device, self.say = cfg, ranks, device, say

    def steps(self, start: int) -> Generator[StepInput, None, None]:
        """Every step from `start` on."""
        first, cfg = 0, self.cfg
        for end, res in cfg.stages():
            if start < end:
                settings = dataclasses.replace(cfg.data, res=res)
                made = Data(settings, self.ranks.rank, self.ranks.world, self.device, cfg.accumulate)
                with contextlib.closing(made) as data:
                    self.say(*data.notes, data.says())
                    with contextlib.closing(data.batches(max(first, start))) as batches:
                        for step in range(max(first, start), end):
                            clock = time.perf_counter()
                            some = list(itertools.islice(batches, cfg.accumulate))
                            yield StepInput(step, data, some, time.perf_counter() - clock, step, step + 1 == cfg.steps)
            first = end

    def urgent(self, saved: Cursor | None) -> bool:
        """Nobody waits for a checkpoint."""
        return False


class RankBarrier:
    """For ranks that wait for shards of a cycle, each by itself: they begin a step when all have it, and end when one is to.

    stop: whether this rank is to end. Ranks meet in rounds: one that has its next step waits for the others there; one that has
    not comes whenever it looks for shards again, by `asked`.
    """

    def __init__(self, ranks: Ranks, device: torch.device, stop: Callable[[], bool]) -> None:
        self.ranks, self.device, self.stop = ranks, device, stop
        self.stopped = False

    def asked(self) -> bool:
        """A round of a rank that waits. Whether it should no longer."""
        _, self.stopped = self.ranks.agree(False, self.stop(), self.device)
        return self.stopped

    def steps(self, steps: Iterable[StepInput]) -> Iterator[StepInput]:
        """Those that all ranks have. What `steps` waits with has to be `asked`."""
        for fed in steps:
            ready = False
            while not ready:
                ready, self.stopped = self.ranks.agree(True, self.stop(), self.device)
                if self.stopped:
                    return
            yield fed
        if not self.stopped:  # none of the others has a step more, but some may not know yet
            self.ranks.agree(False, True, self.device)
