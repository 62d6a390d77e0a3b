"""Batches of each training step, from complete runs in epochs. stream.py: from the shards of a cycle."""

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
    """Input of step `step` on one rank. data: source of validation samples. batches: this rank's. waited: seconds for them.

    progress: in steps of the learning-rate schedule. last: no step follows. cursor: of a cycle, after the step. slots: of a
    cycle, samples of the step by shard.
    """

    step: int
    data: Data
    batches: list[Batch]
    waited: float
    progress: float
    last: bool
    cursor: Cursor | None = None
    slots: dict[int, int] = dataclasses.field(default_factory=dict)


class StepSource(Protocol):
    """steps(start): inputs of all steps from `start` on. urgent(saved): True if somebody waits for a newer checkpoint."""

    def steps(self, start: int) -> Generator[StepInput, None, None]: ...

    def urgent(self, saved: Cursor | None) -> bool: ...


class EpochSource:
    """Steps over complete shards, epoch after epoch; images grow from stage to stage of a curriculum."""

    def __init__(self, cfg: TrainConfig, ranks: Ranks, device: torch.device, say: Callable[..., None]) -> None:
        self.cfg, self.ranks, self.device, self.say = cfg, ranks, device, say

    def steps(self, start: int) -> Generator[StepInput, None, None]:
        """Yield the inputs of all steps from `start` on."""
        first, cfg = 0, self.cfg
        for end, res in cfg.stages():
            if start < end:
                settings = dataclasses.replace(cfg.data, res=res)
                opened = Data(settings, self.ranks.rank, self.ranks.world, self.device, cfg.accumulate)
                with contextlib.closing(opened) as data:
                    self.say(*data.notes, data.summary())
                    with contextlib.closing(data.batches(max(first, start))) as batches:
                        for step in range(max(first, start), end):
                            clock = time.perf_counter()
                            some = list(itertools.islice(batches, cfg.accumulate))
                            yield StepInput(step, data, some, time.perf_counter() - clock, step, step + 1 == cfg.steps)
            first = end

    def urgent(self, saved: Cursor | None) -> bool:
        """Return False: nobody waits for a checkpoint."""
        return False


class RankBarrier:
    """Lets ranks, which wait for a cycle's shards each by itself, begin a step when all have it, and end when one has to.

    stop: returns True if this rank has to end. Ranks meet in all-reduces: a rank with its next step repeats them until all are
    ready; a rank without calls `poll` each time that it looks for shards.
    """

    def __init__(self, ranks: Ranks, device: torch.device, stop: Callable[[], bool]) -> None:
        self.ranks, self.device, self.stop = ranks, device, stop
        self.stopped = False

    def poll(self) -> bool:
        """Meet the other ranks while this one waits for data. True if all have to stop."""
        _, self.stopped = self.ranks.agree(False, self.stop(), self.device)
        return self.stopped

    def steps(self, steps: Iterable[StepInput]) -> Iterator[StepInput]:
        """Yield each of `steps` once all ranks have theirs. `steps` must call `poll` while it waits."""
        for step_input in steps:
            ready = False
            while not ready:
                ready, self.stopped = self.ranks.agree(True, self.stop(), self.device)
                if self.stopped:
                    return
            yield step_input
        if not self.stopped:  # the others have no further step either, but some may not know yet
            self.ranks.agree(False, True, self.device)
