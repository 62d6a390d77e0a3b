"""The policy of a cycle: which shard each object goes to, and when a shard is closed. See docs/cycle.md.

The order of training depends on the order of the source alone: objects for validation come first, then the others fill train
shard after train shard by their place in the source, not by when they are rendered. So a killed run continues with the data
that it would have had. What may be deleted is decided in `pipeline/cycle/supervisor.py`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline import sources
from pipeline.config.cycle import AnyCycle, Shares
from pipeline.core.disk import Made, disk_of, patiently, write_json
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome
from pipeline.core.text import reasons_text
from pipeline.cycle.open_shards import VAL_OBJECTS, OpenShard, OpenShards, objects_per_shard
from pipeline.cycle.protocol import LAYOUT, Slot, Window, done, layout, starving
from pipeline.cycle.supervisor import Page, Supervisor
from pipeline.cycle.trainer import Trainer, Trainers
from pipeline.run.policy import Listing, Policy, Session, failure_text, writer_of
from pipeline.run.selection import Selection
from pipeline.run.vetting import Vetting
from pipeline.storage.ledger import Ledger, train_shards
from pipeline.storage.run_folder import says_gone, says_lost, whole_shards
from pipeline.storage.shards import (
    Shard,
    files_of,
    number_of,
    remove_shard,
    shard_name,
    split_of,
)
from pipeline.storage.writer import PARQUET_EXTRA, ShardWriter

LivePage = Callable[[Path], Page]
MOST_WAITING = 16  # outcomes to hold in memory
WAIT_S = 0.2


class SourceOrder(Policy):
    """Policy that fills shards in the order of the source, as far as `open_shards` has disk."""

    def __init__(
        self, cfg: AnyCycle, ledger: Ledger, shares: Shares, trainer: Trainer | Trainers, live_page: LivePage
    ) -> None:
        """Make disk, journals and ledger agree, and begin a session that continues the cycle."""
        assert cfg.out is not None
        self.cfg, self.open_shards, writer = cfg, OpenShards(cfg, shares, ledger.kept()), writer_of(cfg)
        deleted, notes = recover(cfg, ledger, writer, self.open_shards)
        self.session = Session(cfg, ledger, writer, notes)
        disk_budget = self.open_shards.disk_budget
        self.supervisor = Supervisor(
            cfg.out, ledger.path, disk_budget, shares, trainer, cfg.scene.res, deleted, live_page
        )
        self.places: dict[str, OpenShard] = {}
        self.waiting: list[Outcome] = []  # for disk
        self.selection = Selection(cfg)
        self.by_split = Counter(ledger.delivered_by_split())
        self.before = self.by_split["train"]
        self.on_way: Counter[str] = Counter()
        self.layout = layout(cfg.out)
        self.end: int | None = None
        # not where a shard for validation was lost: the trainer begins when its objects are made again
        self.validated = self.layout is not None and self.by_split["val"] >= self.layout["val"]
        self.rendering: float | None = None  # when this session began to render train objects
        self.vetting = Vetting(cfg, verified=self.session.delivered > 0)
        self.group: Callable[[Item, AnyCycle], str] | None = getattr(sources.load(cfg.source), "group", None)
        self.to_retry = ledger.failed_uids() if cfg.retry_failed else set()
        # with failures to try again: what was delivered into shards that are still open, and not met in the source's order yet
        before = ledger.delivered_in() if self.to_retry else {}
        self.to_place = {uid: name for uid, name in before.items() if name in self.open_shards.open}
        self.retried = 0

    @property
    def complete(self) -> bool:
        return self.supervisor.trainer.finished

    def background(self) -> contextlib.AbstractContextManager[object]:
        """Context manager that runs the supervisor."""
        if not self.validated:
            self.write_window()  # that of an earlier session would let the trainer start
        return self.supervisor

    def facts(self) -> dict[str, Any]:
        """Figures of trainer and disk."""
        return self.supervisor.facts()

    def lines(self) -> list[str]:
        """Lines for the user: objects passed over, how the cameras fit, failures that were tried again."""
        lines = self.selection.lines() + self.vetting.lines()
        if self.to_retry:
            stay = len(self.to_retry) - self.retried
            lines.append(
                f"tried {self.retried} failed objects again; {stay} stay as they are: their shards are closed, or full"
            )
        return lines

    # ---- where objects go

    def draw(self, listing: Listing) -> Iterator[Item | None]:
        """Yield items; raises what went wrong in the supervisor."""
        for item in self._drawn(listing):
            self.supervisor.check()
            yield item

    def _drawn(self, listing: Listing) -> Iterator[Item | None]:
        """Yield the items for validation, then those to train on; see `_of_split`."""
        quota = self.layout["val"] if self.layout else self.cfg.held_out
        yield from self._of_split(listing, "val", quota, min(VAL_OBJECTS, self.cfg.held_out))
        if self.session.stopping:
            return
        self._lay_out()
        assert self.layout is not None
        self.rendering = time.monotonic()
        self.selection = Selection(self.cfg)  # afresh, or passed-over objects would count twice
        objects, of_each = self.layout["objects"], self.layout["shard_objects"]
        shards = yield from self._of_split(listing, "train", objects, of_each)
        if not self.session.stopping:
            self.end = shards
            self.write_window()

    def _of_split(self, listing: Listing, split: str, quota: int, of_each: int) -> Generator[Item | None, None, int]:
        """Yield items of a split in the order of the source, until `quota` are delivered; returns the number of shards.

        An item's place among the items of the split decides its shard, whether items succeed or fail.
        """
        session, stopping = self.session, lambda: self.session.stopping
        closed = {name for name in session.ledger.kept() if name.startswith(split)}
        place, shard = 0, None
        for item in listing(None):  # ended items too: the place among all decides the shard
            if not self.selection.takes(item) or self._split_of(item) != split:
                continue
            again = item.uid in self.to_retry and shard_name(split, place // of_each) not in closed
            known = item.uid in session.finished and not again
            while not known and self.by_split[split] + self.on_way[split] >= quota and not stopping():
                if self.by_split[split] >= quota:
                    break
                yield None
            if stopping():
                return 0
            if not known and self.by_split[split] >= quota:
                if not again and not any(name.startswith(split) for name in self.to_place.values()):
                    break
                known = (
                    True  # others took its place, which failures tried again can bring about; they follow in the source
                )
            number = place // of_each
            place += 1
            name = shard_name(split, number)
            if name in closed:
                continue
            if shard is None or shard.name != name:
                self._filled(shard)
                shard = self.open_shards.open.setdefault(name, OpenShard(name, number))
            shard.order.append(item.uid)
            self.to_place.pop(item.uid, None)
            if known:
                continue
            while not self.open_shards.reserve(shard, of_each) and not stopping():
                self._wait(shard, self.open_shards.all_of(shard, of_each))
                yield None
            self._mark_blocked(False)
            if stopping():
                return 0
            if item.uid in session.finished:
                session.forget(item.uid)
                self.retried += 1
            shard.missing.add(item.uid)
            self.places[item.uid] = shard
            self.on_way[split] += 1
            session.under_way.add(item.uid)
            yield self.vetting.mark(item)
        self._filled(shard)
        while any(one.name.startswith(split) for one in self.open_shards.open.values()) and not stopping():
            yield None
        return -(-place // of_each)

    def _split_of(self, item: Item) -> str:
        """Split of an item, by its group: train and val must not share the clips of a video."""
        group = self.group(item, self.cfg) if self.group else item.uid
        return split_of(group, self.cfg.val_percent)

    def _lay_out(self) -> None:
        """Choose the objects per shard, once for all sessions, after the objects for validation are delivered."""
        self.validated = True
        if self.layout is None:
            held_out = self.by_split["val"]
            if not held_out:
                raise self._nothing_held_out()
            objects = self.cfg.n - held_out
            of_each = objects_per_shard(
                self.cfg, self.open_shards.disk_budget.free, self.open_shards.expected(), objects
            )
            self.layout = {"val": held_out, "objects": objects, "shard_objects": of_each}
            write_json(self.session.out / LAYOUT, self.layout)
        self.write_window()

    def _nothing_held_out(self) -> UserError:
        """Make the error for a source without an object for validation: none is chosen for that, or all that are have failed."""
        ledger, percent = self.session.ledger, self.cfg.val_percent
        if reasons := ledger.reasons():
            said = f"no object for validation could be made: {sum(reasons.values())} failed ({reasons_text(reasons)})"
            return UserError(said, failure_text(ledger))
        by = "of its video" if self.group else "of its uid"
        said = f"no object of the source is for validation (--val-percent {percent:g}, by a hash {by})"
        return UserError(said, "a larger --val-percent")

    def _wait(self, shard: OpenShard, wanted: int) -> None:
        """Mark rendering as waiting for disk. Raises UserError where the wait would never end."""
        self.supervisor.check()
        self._mark_blocked(True)
        waits = starving(self.session.out)
        starved = shard.name.startswith("train") and waits is not None and waits >= shard.number
        starved = starved and self.supervisor.idle()
        if not self.open_shards.lacks_disk(shard, wanted) and starved:
            raise self.open_shards.too_small(shard, wanted)

    def _mark_blocked(self, blocked: bool) -> None:
        if self.open_shards.mark_blocked(blocked):
            self.write_window()

    # ---- what becomes of objects

    def accept(self, outcome: Outcome) -> Iterator[Outcome]:
        """Record the outcome; without disk for its shard, or until the cameras are verified, keep it in memory."""
        self._take(self.vetting.take(outcome))
        yield from self.settle()
        while self._must_wait():  # no outcome is taken from workers meanwhile
            time.sleep(WAIT_S)
            yield from self.settle()

    def _take(self, outcomes: Iterable[Outcome]) -> None:
        """Let outcomes wait for the disk of their shards."""
        for outcome in outcomes:
            if outcome.scene is not None:
                record = self.session.writer.pack(outcome.scene).record
                self.places[outcome.item.uid].written += 2 * len(record) + PARQUET_EXTRA
            self.waiting.append(outcome)

    def _must_wait(self) -> bool:
        """True when memory holds enough outcomes, and no worker has an item of an older shard, to be recorded first."""
        if len(self.waiting) <= MOST_WAITING or self.session.stopping:
            return False
        here = {outcome.item.uid for outcome in self.waiting}
        first = min(self.places[uid].number for uid in here)
        return not any(one.missing - here for one in self.open_shards.open.values() if one.number < first)

    def settle(self) -> Iterator[Outcome]:
        """Record waiting outcomes, as far as disk suffices: older shards first, since younger shards may wait for them."""
        if not self.session.under_way:  # nothing else comes: then the cameras are judged by what is there
            self._take(self.vetting.conclude())
        for outcome in sorted(self.waiting, key=lambda one: self.places[one.item.uid].number):
            shard = self.places[outcome.item.uid]
            if outcome.scene is not None and not self.open_shards.fits(shard):
                self._wait(shard, shard.written)
                return
            self.waiting.remove(outcome)
            self._record(outcome)
            yield outcome
            self._mark_blocked(False)

    def _record(self, outcome: Outcome) -> None:
        """Write one outcome: journal first, then the ledger. On a full disk, wait for room."""
        uid, name = outcome.item.uid, None
        shard = self.places.pop(uid)
        split = shard.name.split("-")[0]
        if outcome.scene is not None:
            name, scene = shard.name, self.session.writer.pack(outcome.scene)
            self._patiently(lambda: self.session.writer.append(shard.name, scene))
            self.by_split[split] += 1
        self._patiently(lambda: self.session.ledger.record(outcome, name))
        self.on_way[split] -= 1
        self.session.count(outcome)
        shard.missing.discard(uid)
        self._close(shard)

    def _patiently(self, write: Callable[[], Made]) -> Made:
        return patiently(write, self.session.out, lambda: self.session.stopping)

    def _filled(self, shard: OpenShard | None) -> None:
        """Mark a shard as full: the source has no more items for it."""
        if shard is not None:
            shard.full = True
            self._close(shard)

    def _close(self, shard: OpenShard) -> None:
        """Turn the journal into a shard, once the shard is full and all of its items have ended."""
        if not shard.full or shard.missing:
            return
        writer, made = self.session.writer, None
        if shard.name in writer.open:
            made = self._patiently(functools.partial(writer.publish, shard.name, shard.order))
        passes = self._passes() if shard.name.startswith("train") else 0
        self._patiently(lambda: self.session.ledger.add_shard(made or Shard(shard.name, (), 0), passes))
        self.open_shards.close(shard, made, disk_of_shard(self.cfg, shard.name))
        self.write_window()

    def close(self) -> None:
        """Leave journals for the next session, which fills them with the rest of their items."""
        self.session.writer.leave()

    def _passes(self) -> int:
        """Passes for the shard that is being closed. auto: enough to keep the trainer busy while the next shard is made."""
        rate, made = self.supervisor.samples_per_s, self.made_per_s()
        if self.cfg.passes != "auto" or not rate or not made:
            return self.cfg.first_passes
        return max(1, min(self.cfg.max_passes, math.ceil(rate / made)))

    def made_per_s(self) -> float | None:
        """Train objects rendered per second, without waits for disk; None before the first."""
        if self.rendering is None:
            return None
        seconds = time.monotonic() - self.rendering - self.open_shards.waited()
        made = self.by_split["train"] - self.before
        return made / seconds if made and seconds > 0 else None

    def write_window(self) -> None:
        """Write OUT/window.json, which tells the trainer the available shards."""
        if self.layout is None:
            return
        first = max(0, done(self.session.out) - self.cfg.window)
        shards = train_shards(self.session.ledger.kept())
        window = Window(
            life=self.cfg.window,
            objects=self.layout["objects"],
            slots={number: Slot(one.objects, one.passes) for number, one in shards.items() if number >= first},
            validated=self.validated,
            end=self.end,
            pressed=self.open_shards.blocked,
        )
        self._patiently(lambda: window.write(self.session.out))

    def finish(self) -> None:
        """Wait until the trainer has used all shards, after all objects have ended, and stop it."""
        if not self.session.stopping:
            self.write_window()
        while not self.complete and not self.session.stopping:
            self.supervisor.check()
            time.sleep(WAIT_S)
        self.supervisor.trainer.stop()
        while not self.supervisor.idle():  # shards that the last checkpoint is done with are deleted first
            self.supervisor.check()
            time.sleep(WAIT_S)


def disk_of_shard(cfg: AnyCycle, name: str) -> int:
    """Bytes of disk that a shard's files take, over all widths."""
    assert cfg.out is not None
    return sum(map(disk_of, files_of(cfg.out, cfg.scene.res, name)))


def recover(cfg: AnyCycle, ledger: Ledger, writer: ShardWriter, open_shards: OpenShards) -> tuple[int, list[str]]:
    """Make disk, journals and ledger agree after whatever ended the last session, and fill `open_shards`.

    Returns the number of the first train shard that may still have files, and notes for the user.
    """
    out, widths = writer.out, cfg.scene.res
    for name, shard in ledger.kept().items():
        if shard.state == "deleted":
            remove_shard(out, widths, name)
    journals = writer.reopen()
    lost = sum(ledger.book(entries, name) for name, entries in journals.items())
    on_disk, notes = whole_shards(out, widths, ledger, cfg.first_passes, remove_shard)
    gone = ledger.forget_missing(on_disk | set(journals))
    for name in gone:
        remove_shard(out, widths, name)
    notes += says_gone(gone)
    for name, entries in journals.items():
        written = 2 * disk_of(writer.open[name].path) + PARQUET_EXTRA * len(entries)
        open_shards.open[name] = OpenShard(name, number_of(name), written=written)
        open_shards.disk_budget.settle(name, written)
    for name in on_disk - set(journals):
        open_shards.disk_budget.settle(name, disk_of_shard(cfg, name))
    there = [number_of(name) for name in on_disk if name.startswith("train")]
    deleted = min([done(out), *there])  # empty shards have no files
    if found := sum(map(len, journals.values())):
        notes.append(f"going on with {found} objects of an interrupted session")
    return deleted, notes + says_lost(lost)
