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
from dataclasses import dataclass, field
from typing import Any

from pipeline import executors
from pipeline.audit import audit
from pipeline.cycle_config import CycleConfig, Shares
from pipeline.janitor import Janitor
from pipeline.ledger import Ledger
from pipeline.progress import Progress, duration, size
from pipeline.room import Room, disk_of, patiently
from pipeline.run import Run, opened
from pipeline.scene import Item, Outcome, Skip, UserError
from pipeline.shards import Shard, shard_on_disk, shard_paths, split_of
from pipeline.trainer import Trainer
from pipeline.window import LAYOUT, TRAIN, Hunger, Slot, Window, committed, layout, put
from pipeline.writer import PARQUET_EXTRA

SPARE = 50e6  # bytes of the disk that are left alone
VAL_OBJECTS = 64  # per shard
BYTES_PER_PIXEL = 0.75  # of pictures that nobody has seen yet
CAUTION, CAUTION_FEW = 1.25, 1.5  # a shard may be so much larger than the mean says; with few objects to know it from
FEW = 16
MOST_SHARD = 512e6  # bytes
AT_ONCE = 5  # shards beside the window: one on its way out; one being closed and one being filled, which count twice
WAIT_S = 0.2
WORTH_A_WORD = 0.05  # of the time


@dataclass
class Open:
    """A shard that is being filled. order: its uids so far, as the source has them. missing: those that have not ended.

    full: nothing will be added to `order`. written: bytes that it takes, and will take until it is closed.
    """

    name: str
    number: int
    order: list[str] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    full: bool = False
    written: int = 0


class Cycle(Run):
    """One session of a cycle."""

    cfg: CycleConfig

    def __init__(self, cfg: CycleConfig, ledger: Ledger, shares: Shares, trainer: Trainer) -> None:
        assert cfg.out is not None
        self.room = Room(cfg.out, shares.shards, SPARE, patient=True)
        self.shares = shares
        self.places: dict[str, Open] = {}
        self.open: dict[str, Open] = {}
        self.blocked_s = 0.0
        self.blocked: float | None = None  # since when production waits for disk
        super().__init__(cfg, ledger)
        self.by_split = Counter(ledger.delivered_by_split())
        self.on_way: Counter[str] = Counter()
        self.layout = layout(self.out)
        self.end: int | None = None
        self.validated = self.layout is not None
        self.rendering: float | None = None  # since when train objects are rendered in this session
        self.janitor = Janitor(self.out, ledger.path, self.room, shares, trainer, cfg.scene.res)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.janitor.trainer.finished

    # ---- where objects go

    def _draw(self, listing: Callable[[], Iterator[Item]]) -> Iterator[Item | None]:
        """First what validation needs, then what is trained on; see `_in_slots`."""
        quota = min(self.cfg.held_out, max(1, self.cfg.n - 1))
        yield from self._in_slots(listing, "val", quota if self.layout is None else self.layout["val"], VAL_OBJECTS)
        if self.stopping:
            return
        self._lay_out()
        assert self.layout is not None
        self.rendering = time.monotonic()
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
            if self.stopping:
                return 0
            if not known and self.by_split[split] >= quota:
                break
            number = place // of_each
            place += 1
            name = f"{split}-{number:06d}"
            if name in closed:
                continue
            if slot is None or slot.name != name:
                self._filled(slot)
                slot = self.open.setdefault(name, Open(name, number))
            slot.order.append(item.uid)
            if known:
                continue
            while not self._reserve(slot, of_each) and not self.stopping:
                self._wait(slot)
                yield None
            self._go_on()
            if self.stopping:
                return 0
            slot.missing.add(item.uid)
            self.places[item.uid] = slot
            self.on_way[split] += 1
            self.under_way += 1
            yield item
        self._filled(slot)
        while any(one.name.startswith(split) for one in self.open.values()) and not self.stopping:
            yield None
        return -(-place // of_each)

    def _lay_out(self) -> None:
        """Validation is there. Decides, once for all sessions, how large shards are: so that the window fits into the budget."""
        self.validated = True
        if self.layout is None:
            held_out = self.by_split["val"]
            if not held_out:
                raise UserError(
                    f"no object of the source is for validation (--val-percent {self.cfg.val_percent:g}, by a hash of its uid)",
                    "a larger --val-percent",
                )
            objects = self.cfg.n - held_out
            free = self.room.budget - self.room.used
            at_once = self.cfg.window + AT_ONCE
            most = int(free // (at_once * self._expected()))
            if most < (self.cfg.shard_objects or 1):
                need = self.shares.total - free + at_once * self._expected() * (self.cfg.shard_objects or 1)
                raise UserError(
                    f"{size(free)} of the disk budget are left for shards to train on, and {at_once} of "
                    f"{self.cfg.shard_objects or 1} objects have to fit",
                    f"--disk-budget {math.ceil(need / 1e6) + 1}MB, or a smaller --window",
                )
            usual = min(most, max(1, int(MOST_SHARD // self._expected())), max(1, objects // (4 * self.cfg.window)))
            self.layout = {
                "val": held_out,
                "objects": objects,
                "shard_objects": self.cfg.shard_objects or usual,
            }
            put(self.out / LAYOUT, self.layout)
        self.tell()

    def _expected(self) -> float:
        """Bytes that an object takes in shards."""
        if not self.closed_objects:
            pixels = sum(width**2 for width in self.cfg.scene.res)
            return BYTES_PER_PIXEL * self.cfg.scene.views * pixels + PARQUET_EXTRA
        caution = CAUTION if self.closed_objects >= FEW else CAUTION_FEW
        return caution * self.closed_bytes / self.closed_objects

    # ---- disk

    def _reserve(self, slot: Open, of_each: int) -> bool:
        """Room for all of a shard, twice: it stands in a journal and in its files for a moment. False: not now."""
        wanted = max(slot.written, math.ceil(2 * of_each * self._expected()))
        return self._grow(slot, wanted) if self.room.held(slot.name) < wanted else True

    def _grow(self, slot: Open, wanted: int) -> bool:
        try:
            return self.room.try_reserve(slot.name, wanted - self.room.held(slot.name))
        except Skip:
            raise self._too_small() from None

    def _make_room(self, slot: Open) -> None:
        """Waits until what a shard has to take fits. Those after it have to step back, if they have only reserved."""
        while self.room.held(slot.name) < slot.written and not self._grow(slot, slot.written):
            for later in self.open.values():
                if later.number > slot.number:
                    self.room.settle(later.name, later.written)
            self._wait(slot)
            time.sleep(WAIT_S)
        self._go_on()

    def _wait(self, slot: Open) -> None:
        """Notes that production waits for disk. Raises UserError where that would be for ever."""
        self.janitor.check()
        if self.blocked is None:
            self.blocked = time.monotonic()
            self.tell()
        waits = Hunger.read(self.out).slot
        trains = slot.name.startswith("train")
        if trains and waits is not None and waits >= slot.number and self.janitor.idle() and not self.room.disk_full():
            raise self._too_small()

    def _go_on(self) -> None:
        if self.blocked is not None:
            self.blocked_s += time.monotonic() - self.blocked
            self.blocked = None
            self.tell()

    def _too_small(self) -> UserError:
        need = (
            self.shares.total + 2 * self._expected() * (self.layout or {"shard_objects": VAL_OBJECTS})["shard_objects"]
        )
        return UserError(
            f"the disk budget of {size(self.shares.total)} is too small: the trainer waits for a shard that does not fit",
            f"the same command with --disk-budget {math.ceil(need / 1e6)}MB goes on",
        )

    # ---- what becomes of objects

    def _take(self, outcome: Outcome) -> None:
        """Writes one outcome: journal first, then the ledger. A full disk is waited for."""
        uid, name = outcome.item.uid, None
        if uid in self.finished:
            return
        slot = self.places.pop(uid)
        split = slot.name.split("-")[0]
        if outcome.scene is not None:
            name = slot.name
            batch = self.writer.packed(outcome.scene)
            slot.written += 2 * batch.nbytes + PARQUET_EXTRA
            self._make_room(slot)
            self._patiently(lambda: self.writer.append(slot.name, batch))
            self.by_split[split] += 1
        self._patiently(lambda: self.ledger.record(outcome, name))
        self.on_way[split] -= 1
        self._count(outcome)
        slot.missing.discard(uid)
        self._close(slot)

    def _patiently(self, write: Callable[[], object]) -> None:
        patiently(write, self.out, lambda: self.stopping)

    def _filled(self, slot: Open | None) -> None:
        """The source has no more for this one."""
        if slot is not None:
            slot.full = True
            self._close(slot)

    def _close(self, slot: Open) -> None:
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
        self.room.settle(slot.name, self._disk_of(slot.name))
        if shard:
            self.closed_objects += len(shard.entries)
            self.closed_bytes += shard.file_bytes
        del self.open[slot.name]
        self.tell()

    def _disk_of(self, name: str) -> int:
        return sum(disk_of(self.out / str(width) / f"{name}.parquet") for width in self.cfg.scene.res)

    def _passes(self) -> int:
        """How often the shard that is closed now will be trained on. auto: what keeps the trainer busy while the next is made."""
        if self.cfg.passes != "auto":
            return int(self.cfg.passes)
        rate, made = self.janitor.log.samples_per_s, self.made_per_s()
        if not rate or not made:
            return max(1, self.cfg.max_passes // 4)
        return max(1, min(self.cfg.max_passes, math.ceil(rate / made)))

    def made_per_s(self) -> float | None:
        """Objects to train on per second, while there was disk for them; None before there are any."""
        if self.rendering is None:
            return None
        blocked = self.blocked_s + (time.monotonic() - self.blocked if self.blocked else 0)
        seconds = time.monotonic() - self.rendering - blocked
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
        on_disk = set.intersection(*({path.stem for path in shard_paths(self.out / str(width))} for width in widths))
        for name in sorted(on_disk - set(ledger.kept()) - set(journals)):
            ledger.add_shard(
                shard_on_disk(self.out, widths, name), int(self.cfg.passes) if self.cfg.passes.isdecimal() else 1
            )
        gone = ledger.forget_missing(on_disk | set(journals))
        for name in gone:
            self._unlink(name)
        for name in journals:
            number = int(name[-6:])
            written = 2 * disk_of(self.writer.open[name].path) + PARQUET_EXTRA * len(journals[name])
            self.open[name] = Open(name, number, written=written)
            self.room.settle(name, written)
        for name in on_disk - set(journals):
            self.room.settle(name, self._disk_of(name))
        self.before = ledger.delivered_by_split().get("train", 0)
        self.closed_objects = sum(shard.objects for shard in ledger.kept().values())
        self.closed_bytes = sum(shard.bytes for shard in ledger.kept().values())
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
        slots = {int(name[-6:]): shard for name, shard in self.ledger.kept().items() if name.startswith("train")}
        window = Window(
            life=self.cfg.window,
            objects=self.layout["objects"],
            slots={number: Slot(one.objects, one.passes) for number, one in sorted(slots.items()) if number >= first},
            validated=self.validated,
            end=self.end,
            pressed=self.blocked is not None,
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
        with self.janitor:
            super()._work(self.janitor.attended(drawn))

    def _shows(self, progress: Progress) -> None:
        progress.cycle = self.janitor.facts

    def _afterwards(self, progress: Progress) -> None:
        """All objects have ended: the trainer has yet to use what there is."""
        if not self.stopping:
            self.tell()
        while not self.complete and not self.stopping:
            self.janitor.check()
            time.sleep(WAIT_S)
        self.janitor.trainer.stop()

    def lines(self) -> list[str]:
        """What a user wants to know at the end: does it add up, who waited for whom, how good has it become."""
        found = audit(self.out)
        facts = self.janitor.facts()
        lines = (
            [f"bug in lvsm-data, please report: {bug}" for bug in self.bugs] + self.selection.lines() + found.lines()
        )
        if facts["trainer_seconds"]:
            lines.append(who_waits(self.blocked_s, facts["trainer_waited_s"], facts["trainer_seconds"]))
        if self.janitor.log.looks:
            step, scores = self.janitor.log.looks[-1]
            lines.append(
                f"unseen objects after {step} steps: PSNR {scores['psnr']:.2f} dB, nearest view {scores['nearest']:.2f}"
            )
        lines.append(f"disk: {size(self.janitor.peak)} at most in this session, of {size(self.shares.total)}")
        if not self.complete:
            lines.append("stopped; the same command goes on")
        elif self.delivered < self.cfg.n:
            lines.append(f"{self.cfg.n - self.delivered} fewer than requested: the source has no more objects")
        return lines


def who_waits(blocked_s: float, waited_s: float, seconds: float) -> str:
    """Which side of a cycle waits for the other, for how long, and what to change. seconds: of the trainer."""
    trainer, rendering = waited_s / seconds, blocked_s / seconds
    says = f"the trainer waited {duration(waited_s)} for data ({trainer:.0%}), rendering {duration(blocked_s)} for disk"
    if max(trainer, rendering) < WORTH_A_WORD:
        return f"{says}: neither holds up the other"
    if trainer > rendering:
        return f"{says}: rendering is slower; more --workers, more --passes, fewer --views"
    return f"{says}: training is slower; fewer --passes, more GPUs, fewer --workers do as well"


def cycle(cfg: CycleConfig, shares: Shares, command: Sequence[str], settings: dict[str, Any]) -> Cycle:
    """Runs a cycle, or goes on with one. command: what starts its trainer, which finds its settings in OUT/train/train.json.

    Answers how it stands. Raises UserError like `deliver`.
    """
    assert cfg.out is not None
    with opened(cfg) as ledger, contextlib.closing(Trainer(cfg.out, command, cfg.train_threads)) as trainer:
        (cfg.out / TRAIN).mkdir(exist_ok=True)
        put(cfg.out / TRAIN / "train.json", settings)
        run = Cycle(cfg, ledger, shares, trainer)
        run.go()
        return run
