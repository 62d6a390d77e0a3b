"""Batches of each training step: from complete shards in epochs, or from a cycle's shards while they come and go."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from lvsm_train.config.train import TrainConfig
from lvsm_train.data.batches import END, Batch, Data, End, Plan, not_white
from lvsm_train.data.index import Index, merge
from lvsm_train.data.layers import check_layers
from lvsm_train.data.rounds import Rounds, StepEntries
from lvsm_train.data.samples import Planner, Sample
from lvsm_train.data.shard_index import ShardIndex, read_shard
from lvsm_train.device.ranks import Ranks
from pipeline.core.disk import patiently
from pipeline.cycle.protocol import Cursor, Waiting, Window
from pipeline.storage.shards import shard_name, widths_in

LOOK_AGAIN_S = 0.1


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
        first, cfg, patch = 0, self.cfg, self.cfg.model.patch
        for end, res in cfg.stages():
            if start < end:
                settings = dataclasses.replace(cfg.data, res=res)
                opened = Data(
                    *(settings, self.ranks.rank, self.ranks.world, self.device, cfg.accumulate),
                    aux=cfg.model.aux,
                    patch=patch,
                    temporal=cfg.model.temporal,
                )
                with contextlib.closing(opened) as data:
                    cfg.model.check_pictures(data.hw)
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


class Stream:
    """Steps over the shards of a cycle; a step depends on seed and cursor alone (rounds.py).

    cursor: where to go on. stop_waiting: called repeatedly while waiting; True ends.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        ranks: Ranks,
        device: torch.device,
        say: Callable[..., None],
        cursor: Cursor,
        stop_waiting: Callable[[], bool],
    ) -> None:
        self.cfg, self.ranks, self.device, self.say, self.stop_waiting = cfg, ranks, device, say, stop_waiting
        (self.out,) = cfg.data.data
        self.rounds = Rounds(cfg.data.seed, cursor)
        self.trained = cursor  # `rounds` is ahead of this by the batches that are prefetched
        self.parts = ranks.world * cfg.accumulate
        self.ours = range(ranks.rank, self.parts, ranks.world)
        self.files: dict[int, tuple[Path, ShardIndex]] = {}
        self.planner: Planner | None = None
        self.first: dict[int, int] = {}  # slot -> number of its first object in the index of `planner`
        self.planned: deque[tuple[int, StepEntries]] = deque()  # steps under way
        self.reported: int | None = -1  # slot in the newest `Waiting` file; -1: none written yet

    def steps(self, start: int) -> Generator[StepInput, None, None]:
        """Yield the inputs of all steps from `start` on, until the cycle ends or `stop_waiting` is True."""
        self._report_waiting(None)
        while not self._window().validated:
            if self.stop_waiting():
                return
            time.sleep(LOOK_AGAIN_S)
        cfg, ranks = self.cfg, self.ranks
        model = cfg.model
        opened = Data(
            *(cfg.data, ranks.rank, ranks.world, self.device, cfg.accumulate, "val"),
            aux=model.aux,
            patch=model.patch,
            temporal=model.temporal,
        )
        with contextlib.closing(opened) as data:
            self.say(*not_white(data.index.paths))
            self.say(f"{len(data.index.uids)} objects at {data.hw[1]}x{data.hw[0]} pixels are held out")
            with contextlib.closing(data.poll(self._plans(start), bool(cfg.model.aux))) as batches:
                while True:
                    clock = time.perf_counter()
                    some = self._next(batches)
                    if not some:
                        return
                    yield self._step_input(data, some, time.perf_counter() - clock)

    def urgent(self, saved: Cursor | None) -> bool:
        """True if a checkpoint now would free shards, and this trainer or the driver waits for the next ones or their disk."""
        frees = self.trained.done > (saved.done if saved else 0)
        return frees and ((not self.planned and not self._ready()) or self._window().pressed)

    def _ready(self) -> bool:
        return self.rounds.ready(self._window(), self.parts * self.cfg.data.batch, self.parts)

    def _window(self) -> Window:
        return Window.read(self.out) or Window(life=1, objects=1)

    def _next(self, batches: Iterator[Batch | None]) -> list[Batch]:
        """Batches of the next step on this rank; [] at the end."""
        some: list[Batch] = []
        while len(some) < self.cfg.accumulate:
            batch = next(batches, END)
            if isinstance(batch, End):
                return []
            if batch is not None:
                some.append(batch)
                continue
            self._report_waiting(self.rounds.round)
            if self.stop_waiting():
                return []
            time.sleep(LOOK_AGAIN_S)
        self._report_waiting(None)
        return some

    def _report_waiting(self, slot: int | None) -> None:
        if self.ranks.is_main and self.reported != slot:
            self.reported = slot
            name = self.cfg.folder.name
            patiently(lambda: Waiting(slot).write(self.out, name), self.out, self.stop_waiting)

    def _step_input(self, data: Data, batches: list[Batch], waited: float) -> StepInput:
        step, taken = self.planned.popleft()
        progress = self.trained.place * self.cfg.steps
        for slot in range(self.trained.done, taken.after.done):
            if slot in self.files:
                data.forget(self.files.pop(slot)[0])
        self.trained = taken.after
        slots = dict(Counter(taken.entries[:, 0].tolist()))
        batches = [data.shaped(batch, step) for batch in batches]
        return StepInput(step, data, batches, waited, progress, taken.last, taken.after, slots)

    def _plans(self, step: int) -> Iterator[Plan | None]:
        """Yield plans of this rank's batches of all steps from `step` on, and None while their shards are not there yet."""
        count = self.parts * self.cfg.data.batch
        while True:
            taken = self.rounds.take(self._window(), count, self.parts)
            if taken is None:
                if self.rounds.over:
                    return
                yield None
                continue
            self.planned.append((step, taken))
            self._hold(sorted(set(taken.entries[:, 0].tolist())))
            planner, first = self.planner, self.first
            assert planner is not None
            numbers = [first[slot] + offset for slot, offset in taken.entries.tolist()]
            size = len(numbers) // self.parts
            for part in self.ours:
                mine = slice(part * size, (part + 1) * size)
                yield functools.partial(_plan, planner, step, taken.first + mine.start, numbers[mine])
            step += 1

    def _hold(self, slots: Sequence[int]) -> None:
        """Put these shards into the index, and drop those that were trained on for the last time."""
        if self.planner and self.first.keys() >= set(slots):
            return
        width = self.cfg.data.res or max(widths_in(self.out))
        folder = self.out / str(min(one for one in widths_in(self.out) if one >= width))
        for slot in slots:
            if slot not in self.files:
                path = folder / f"{shard_name('train', slot)}.parquet"
                self.files[slot] = path, read_shard(path)
        held = sorted(self.files)
        paths, files = [self.files[slot][0] for slot in held], [self.files[slot][1] for slot in held]
        index: Index = merge(paths, files, width, self.cfg.data.check_images)
        counts = np.cumsum([0, *(len(file.uids) for file in files)])
        self.first = dict(zip(held, counts.tolist(), strict=False))
        check_layers(index, range(len(index.uids)), self.cfg.model.aux)
        self.planner = Planner(self.cfg.data, index, choose=False)


def _plan(planner: Planner, step: int, position: int, numbers: Sequence[int]) -> tuple[Index, list[Sample]]:
    return planner.index, planner.step_samples(step, position, numbers)


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
