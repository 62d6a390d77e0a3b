"""The cycle: renders into shards, lets a trainer use them, deletes what it has used, under one disk budget. See docs/cycle.md.

What is trained on when depends on the order of the source alone: objects for validation come first, then the others fill slot
after slot, a shard each, by their place in that order and not by when they are done. So a run that was killed goes on with the
same data.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.cluster import executors
from pipeline.config.cycle import CycleConfig, Shares
from pipeline.core.disk import disk_of, patiently, put
from pipeline.core.errors import FEWER_THAN_ASKED, UserError
from pipeline.core.records import Item, Outcome
from pipeline.core.text import shown
from pipeline.cycle.audit import Audit, audit
from pipeline.cycle.open_shards import VAL_OBJECTS, OpenShard, OpenShards, objects_per_shard
from pipeline.cycle.protocol import LAYOUT, TRAIN, Slot, Waiting, Window, committed, layout
from pipeline.cycle.snapshot import standing
from pipeline.cycle.supervisor import Page, Supervisor
from pipeline.cycle.trainer import Trainer
from pipeline.run.driver import Run, opened
from pipeline.run.progress import Progress
from pipeline.sources.selection import Selection
from pipeline.storage.ledger import Ledger, train_shards
from pipeline.storage.shards import Shard, complete_shards, number_of, shard_name, shard_on_disk, split_of
from pipeline.storage.train_run import TrainingLog
from pipeline.storage.writer import PARQUET_EXTRA

LivePage = Callable[[Path, TrainingLog], Page]
MOST_WAITING = 16  # outcomes, in memory
WAIT_S = 0.2


class Cycle(Run):
    """One session of a cycle."""

    passes_over = False  # an object's place among all tells its shard
    cfg: CycleConfig
    progress: Progress
    found: Audit

    def __init__(self, cfg: CycleConfig, ledger: Ledger, shares: Shares, trainer: Trainer, live_page: LivePage) -> None:
        assert cfg.out is not None
        self.slots = OpenShards(cfg, shares, ledger.kept())
        self.places: dict[str, OpenShard] = {}
        self.ended: list[Outcome] = []  # that wait for room
        super().__init__(cfg, ledger)
        self.by_split = Counter(ledger.delivered_by_split())
        self.on_way: Counter[str] = Counter()
        self.layout = layout(self.out)
        self.end: int | None = None
        self.validated = self.layout is not None
        self.rendering: float | None = None  # since when train objects are rendered in this session
        self.supervisor = Supervisor(
            self.out, ledger.path, self.slots.disk_budget, shares, trainer, cfg.scene.res, self.gone, live_page
        )

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.supervisor.trainer.finished

    # ---- where objects go

    def _draw(self, listing: Callable[[], Iterator[Item]]) -> Iterator[Item | None]:
        """First what validation needs, then what is trained on; see `_in_slots`."""
        quota = self.layout["val"] if self.layout else self.cfg.held_out
        yield from self._in_slots(listing, "val", quota, min(VAL_OBJECTS, self.cfg.held_out))
        if self.stopping:
            return
        self._lay_out()
        assert self.layout is not None
        self.rendering = time.monotonic()
        self.selection = Selection(self.cfg)  # or it would count twice what it passes over
        objects, of_each = self.layout["objects"], self.layout["shard_objects"]
        slots = yield from self._in_slots(listing, "train", objects, of_each)
        if not self.stopping:
            self.end = slots
            self.tell()

    def _in_slots(
        self, listing: Callable[[], Iterator[Item]], split: str, quota: int, of_each: int
    ) -> Generator[Item | None, None, int]:
        """Items of a split in the order of the source, until so many are delivered; answers how many slots there are then.

        An item's slot is its place among those of its split, whatever becomes of it and of others.
        """
        closed = {name for name in self.ledger.kept() if name.startswith(split)}
        place, slot = 0, None
        for item in listing():
            if not self.selection.takes(item) or split_of(item.uid, self.cfg.val_percent) != split:
                continue
            known = item.uid in self.finished
            while not known and self.by_split[split] + self.on_way[split] >= quota and not self.stopping:
                if self.by_split[split] >= quota:
                    break
                yield None
                self._settle()
            if self.stopping:
                return 0
            if not known and self.by_split[split] >= quota:
                break
            number = place // of_each
            place += 1
            name = shard_name(split, number)
            if name in closed:
                continue
            if slot is None or slot.name != name:
                self._filled(slot)
                slot = self.slots.open.setdefault(name, OpenShard(name, number))
            slot.order.append(item.uid)
            if known:
                continue
            while not self.slots.reserve(slot, of_each) and not self.stopping:
                self._wait(slot, self.slots.all_of(slot, of_each))
                yield None
                self._settle()
            self._go_on()
            if self.stopping:
                return 0
            slot.missing.add(item.uid)
            self.places[item.uid] = slot
            self.on_way[split] += 1
            self.under_way.add(item.uid)
            yield item
        self._filled(slot)
        while any(one.name.startswith(split) for one in self.slots.open.values()) and not self.stopping:
            yield None
            self._settle()
        return -(-place // of_each)

    def _lay_out(self) -> None:
        """Validation is there: how large shards are is decided now, once for all sessions."""
        self.validated = True
        if self.layout is None:
            held_out = self.by_split["val"]
            if not held_out:
                raise UserError(
                    f"no object of the source is for validation (--val-percent {self.cfg.val_percent:g}, by a hash of its uid)",
                    "a larger --val-percent",
                )
            objects = self.cfg.n - held_out
            of_each = objects_per_shard(self.cfg, self.slots.disk_budget.free, self.slots.expected(), objects)
            self.layout = {"val": held_out, "objects": objects, "shard_objects": of_each}
            put(self.out / LAYOUT, self.layout)
        self.tell()

    def _wait(self, slot: OpenShard, wanted: int) -> None:
        """Production waits for disk. Raises UserError where that would be for ever."""
        self.supervisor.check()
        if self.slots.block():
            self.tell()
        waits = Waiting.read(self.out).slot
        hungry = slot.name.startswith("train") and waits is not None and waits >= slot.number and self.supervisor.idle()
        if not self.slots.lacks_disk(slot, wanted) and hungry:
            raise self.slots.too_small(slot, wanted)

    def _go_on(self) -> None:
        if self.slots.unblock():
            self.tell()

    # ---- what becomes of objects

    def _end(self, outcome: Outcome, progress: Progress) -> None:
        """An item has ended: it is recorded, unless there is no room for it now."""
        slot = self.places[outcome.item.uid]
        if outcome.scene is not None:
            slot.written += 2 * len(self.writer.pack(outcome.scene).record) + PARQUET_EXTRA
        self.ended.append(outcome)
        self.progress = progress
        self._settle()
        while self._must_wait():  # nothing more is taken from workers meanwhile
            time.sleep(WAIT_S)
            self._settle()

    def _must_wait(self) -> bool:
        """Whether there is enough in memory, and nothing that workers have is of an older shard, which would come first."""
        if len(self.ended) <= MOST_WAITING or self.stopping:
            return False
        here = {outcome.item.uid for outcome in self.ended}
        first = min(self.places[uid].number for uid in here)
        return not any(one.missing - here for one in self.slots.open.values() if one.number < first)

    def _settle(self) -> None:
        """Records what has ended, as far as there is room: of older shards first, since younger ones may wait for them."""
        for outcome in sorted(self.ended, key=lambda one: self.places[one.item.uid].number):
            slot = self.places[outcome.item.uid]
            if outcome.scene is not None and not self.slots.fits(slot):
                self._wait(slot, slot.written)
                return
            self.ended.remove(outcome)
            super()._end(outcome, self.progress)
            self._go_on()

    def _take(self, outcome: Outcome) -> None:
        """Writes one outcome: journal first, then the ledger. A full disk is waited for."""
        uid, name = outcome.item.uid, None
        slot = self.places.pop(uid)
        split = slot.name.split("-")[0]
        if outcome.scene is not None:
            name, scene = slot.name, self.writer.pack(outcome.scene)
            self._patiently(lambda: self.writer.append(slot.name, scene))
            self.by_split[split] += 1
        self._patiently(lambda: self.ledger.record(outcome, name))
        self.on_way[split] -= 1
        self._count(outcome)
        slot.missing.discard(uid)
        self._close(slot)

    def _patiently(self, write: Callable[[], object]) -> None:
        patiently(write, self.out, lambda: self.stopping)

    def _filled(self, slot: OpenShard | None) -> None:
        """The source has no more for this one."""
        if slot is not None:
            slot.full = True
            self._close(slot)

    def _close(self, slot: OpenShard) -> None:
        """Turns a journal into a shard, once all that may go into it has ended."""
        if not slot.full or slot.missing:
            return
        shard: Shard | None = None
        if slot.name in self.writer.open:
            shard = patiently(
                functools.partial(self.writer.publish, slot.name, slot.order), self.out, lambda: self.stopping
            )
        passes = self._passes() if slot.name.startswith("train") else 0
        self._patiently(lambda: self.ledger.add_shard(shard or Shard(slot.name, (), 0), passes))
        self.slots.close(slot, shard, self._disk_of(slot.name))
        self.tell()

    def _disk_of(self, name: str) -> int:
        return sum(disk_of(self.out / str(width) / f"{name}.parquet") for width in self.cfg.scene.res)

    def _passes(self) -> int:
        """How often the shard that is closed now will be trained on. auto: what keeps the trainer busy while the next is made."""
        rate, made = self.supervisor.log.samples_per_s, self.made_per_s()
        if self.cfg.passes != "auto" or not rate or not made:
            return self.cfg.first_passes
        return max(1, min(self.cfg.max_passes, math.ceil(rate / made)))

    def made_per_s(self) -> float | None:
        """Objects to train on per second, while there was disk for them; None before there are any."""
        if self.rendering is None:
            return None
        seconds = time.monotonic() - self.rendering - self.slots.waited()
        made = self.by_split["train"] - self.before
        return made / seconds if made and seconds > 0 else None

    # ---- sessions

    def _recover(self) -> list[str]:
        """Makes disk, journals and ledger agree after whatever ended the last session."""
        widths, ledger = self.cfg.scene.res, self.ledger
        for name, shard in ledger.kept().items():
            if shard.state == "deleted":
                self._unlink(name)
        journals = self.writer.reopen()
        for name, entries in journals.items():
            ledger.book(entries, name)
        on_disk = complete_shards(self.out, widths)
        for name in sorted(on_disk - set(ledger.kept()) - set(journals)):
            ledger.add_shard(shard_on_disk(self.out, widths, name), self.cfg.first_passes)
        gone = ledger.forget_missing(on_disk | set(journals))
        for name in gone:
            self._unlink(name)
        for name in journals:
            number = number_of(name)
            written = 2 * disk_of(self.writer.open[name].path) + PARQUET_EXTRA * len(journals[name])
            self.slots.open[name] = OpenShard(name, number, written=written)
            self.slots.disk_budget.settle(name, written)
        for name in on_disk - set(journals):
            self.slots.disk_budget.settle(name, self._disk_of(name))
        there = [number_of(name) for name in on_disk if name.startswith("train")]
        self.gone = min([committed(self.out)[1].done, *there])  # of shards that hold nothing there are no files
        self.before = ledger.delivered_by_split().get("train", 0)
        found = sum(map(len, journals.values()))
        return [f"going on with {found} objects of an interrupted session"] * bool(found)

    def _unlink(self, name: str) -> None:
        for width in self.cfg.scene.res:
            (self.out / str(width) / f"{name}.parquet").unlink(missing_ok=True)

    def tell(self) -> None:
        """Says to the trainer which shards there are."""
        if self.layout is None:
            return
        first = max(0, committed(self.out)[1].done - self.cfg.window)
        slots = train_shards(self.ledger.kept())
        window = Window(
            life=self.cfg.window,
            objects=self.layout["objects"],
            slots={number: Slot(one.objects, one.passes) for number, one in slots.items() if number >= first},
            validated=self.validated,
            end=self.end,
            pressed=self.slots.blocked,
        )
        self._patiently(lambda: window.write(self.out))

    def _close_shards(self) -> None:
        """Journals stay open for the next session: what else goes into them is settled."""
        self.writer.leave()

    def _executor(self) -> Callable[..., Iterator[Outcome]]:
        if self.delivered >= self.cfg.n:
            return executors.inline  # nothing is to be rendered
        return super()._executor()

    def _work(self, drawn: Iterator[Item | None]) -> None:
        with self.supervisor:
            super()._work(self.supervisor.attended(drawn))

    def _shows(self, progress: Progress) -> None:
        progress.cycle = self.supervisor.facts

    def _afterwards(self, progress: Progress) -> None:
        """All objects have ended: the trainer has yet to use what there is."""
        if not self.stopping:
            self.tell()
        while not self.complete and not self.stopping:
            self.supervisor.check()
            time.sleep(WAIT_S)
        self.supervisor.trainer.stop()
        while not self.supervisor.idle():  # what its last checkpoint has done with goes before we do
            self.supervisor.check()
            time.sleep(WAIT_S)

    @property
    def status(self) -> int:
        """Exit status: 1 where it does not add up, 3 where it is less than was asked for."""
        if self.found.problems:
            return 1
        return 0 if self.complete and self.delivered >= self.cfg.n else FEWER_THAN_ASKED

    def lines(self, compared: Sequence[str] = ()) -> list[str]:
        """What a user wants to know at the end: does it add up, who waited for whom, how good has it become."""
        lines = (
            [f"bug in lvsm-data, please report: {bug}" for bug in self.bugs]
            + self.selection.lines()
            + self.found.lines()
        )
        with Ledger(self.out / "ledger.sqlite", readonly=True) as ledger:
            now = standing(self.out, ledger, self.supervisor.log)
        lines += now.lines() if now else []
        lines.append(
            f"page: {shown(self.out)}/index.html; lvsm-data eval {shown(self.out)}/train tells more of the model"
        )
        lines += compared
        if not self.complete:
            lines.append("stopped; the same command goes on")
        elif self.delivered < self.cfg.n:
            lines.append(f"{self.cfg.n - self.delivered} fewer than requested: the source has no more objects")
        return lines


def cycle(
    cfg: CycleConfig, shares: Shares, command: Sequence[str], settings: dict[str, Any], live_page: LivePage
) -> Cycle:
    """Runs a cycle, or goes on with one. command: what starts its trainer, which finds its settings in OUT/train/train.json.

    Answers how it stands. Raises UserError like `deliver`.
    """
    assert cfg.out is not None
    with opened(cfg) as ledger, contextlib.closing(Trainer(cfg.out, command, cfg.train_threads)) as trainer:
        (cfg.out / TRAIN).mkdir(exist_ok=True)
        put(cfg.out / TRAIN / "train.json", settings)
        run = Cycle(cfg, ledger, shares, trainer, live_page)
        run.apart = bool(settings.get("ray_workers"))  # nodes with a GPU are the trainer's
        run.go()
        run.found = audit(cfg.out)
        return run
