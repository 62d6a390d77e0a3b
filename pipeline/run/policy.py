"""State of a session, and policies of a driver: which items to draw, where outcomes go, when shards close."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from pipeline.config.clip import ClipConfig
from pipeline.config.cycle import Cycling
from pipeline.config.run import RunConfig
from pipeline.config.source_table import SOURCES
from pipeline.core.records import Item, Outcome
from pipeline.core.text import last_line
from pipeline.run.selection import Selection
from pipeline.run.vetting import Vetting
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import run_facts, says_gone, says_lost, whole_shards
from pipeline.storage.shards import (
    CAPTION,
    INTRINSICS,
    LAYERS,
    NUMBERS,
    ROLE,
    TIME,
    Shard,
    complete_shards,
    number_of,
    remove_shard,
    split_of,
)
from pipeline.storage.uploads import Sink
from pipeline.storage.writer import ShardWriter

Listing = Callable[[Container[str] | None], Iterator[Item]]  # uids that may be left out -> items of the source
SHOWN_DETAIL = 500  # characters of a failure that are shown
PUBLISHING = 1  # full shards that may be in publication while the next shard is filled


def writer_of(cfg: RunConfig) -> ShardWriter:
    """Make the shard writer of a run's folder; cfg is resolved."""
    assert cfg.out is not None
    optional = tuple(name for name in LAYERS if getattr(cfg.scene, name, False))
    optional += NUMBERS if isinstance(cfg, ClipConfig) else ()
    optional += (ROLE,) if SOURCES[cfg.source].roles else ()
    optional += (TIME,) if SOURCES[cfg.source].times else ()
    optional += ("frame", TIME) if getattr(cfg.scene, "is_timed", False) else ()
    optional += (CAPTION,) if cfg.captions or SOURCES[cfg.source].captions else ()
    optional += (INTRINSICS[getattr(cfg.scene, "projection", "perspective")],)
    return ShardWriter(cfg.out, cfg.scene.res, optional, run_facts(cfg), cfg.shard_mb * 1e6)


def failure_text(ledger: Ledger) -> str:
    """Say what is known of an item that failed for the commonest reason; "" where nothing did, or nothing is."""
    reasons = ledger.reasons()
    commonest = max(reasons, key=lambda reason: reasons[reason], default="")
    for uid, detail, _ in ledger.examples(commonest, 1):
        if said := last_line(detail):
            return f"{commonest}: {uid}: {said[:SHOWN_DETAIL]}"
    return ""


class Session:
    """State of a run. ledger: recovered. notes: lines for stderr before work begins; to_repeat: lines to print at the end too."""

    def __init__(self, cfg: RunConfig, ledger: Ledger, writer: ShardWriter, notes: list[str]) -> None:
        assert cfg.out is not None
        self.cfg, self.out, self.ledger, self.writer = cfg, cfg.out, ledger, writer
        self.notes = list(notes)
        if cfg.retry_failed and not isinstance(cfg, Cycling) and (count := ledger.forget_failed()):
            self.notes.append(f"trying {count} failed objects again")
        self.counts = ledger.counts()
        self.finished = ledger.finished_uids()
        self.under_way: set[str] = set()
        self.stopping = False
        self.to_repeat: list[str] = []

    @property
    def delivered(self) -> int:
        return self.counts.get("delivered", 0)

    def forget(self, uid: str) -> None:
        """Forget that an item failed."""
        self.ledger.forget_failed(uid)
        self.counts["failed"] -= 1

    def count(self, outcome: Outcome) -> None:
        """Count an outcome that has been recorded."""
        self.finished.add(outcome.item.uid)
        state = "delivered" if outcome.scene else "failed"
        self.counts[state] = self.counts.get(state, 0) + 1

    def say(self, line: str) -> None:
        """Print a line on stderr now, and keep it for the end."""
        print(line, file=sys.stderr, flush=True)
        self.to_repeat.append(line)

    def stop(self) -> None:
        """Ask for the end: no new item begins, and items under way are finished."""
        self.stopping = True


class Policy(Protocol):
    """Interface that a driver calls, always in its own thread. `accept`, `settle` and `conclude` yield each outcome right after
    it was recorded.
    """

    session: Session

    @property
    def complete(self) -> bool:
        """True when nothing is left to do."""

    def draw(self, listing: Listing) -> Iterator[Item | None]:
        """Yield the items to process, in order, and mark each as under way; None: no item now, ask again."""

    def accept(self, outcome: Outcome) -> Iterator[Outcome]:
        """Take an outcome that has just arrived, and record it or let it wait."""

    def close(self) -> None:
        """Close the shards, or leave them open for the next session; called in any case."""

    def lines(self) -> list[str]:
        """Lines for the user at the end: which objects were passed over, and why."""

    def settle(self) -> Iterator[Outcome]:
        """Record waiting outcomes, as far as possible; called after each None of `draw`."""
        return iter(())

    def conclude(self) -> Iterator[Outcome]:
        """Record the outcomes that waited for the end of all items."""
        return iter(())

    def throttle(self, items: Iterator[Item | None]) -> Iterator[Item | None]:
        """Pass on items to the workers; an override may delay them."""
        return items

    def background(self) -> contextlib.AbstractContextManager[object]:
        """Context manager of work in the background of the driver's loop; nothing by default."""
        return contextlib.nullcontext()

    def finish(self) -> None:
        """Do what is left when all items have ended and the workers are gone."""
        return

    def facts(self) -> dict[str, Any]:
        """Figures of a cycle for status.json; {} of other runs."""
        return {}


class ArrivalOrder(Policy):
    """Policy that fills shards in order of arrival until n objects are delivered. numbers: split -> number of its next shard."""

    def __init__(self, cfg: RunConfig, ledger: Ledger, sink: Sink) -> None:
        """Make disk, sink and ledger agree, and begin a session that continues the run."""
        writer, self.sink = writer_of(cfg), sink
        self.numbers, notes = recover(cfg, ledger, writer, sink)
        self.session = Session(cfg, ledger, writer, notes)
        self.selection = Selection(cfg)
        self.vetting = Vetting(cfg, verified=self.session.delivered > 0)
        self.publisher = ThreadPoolExecutor(1, "publish")
        self.publishing: deque[Future[Shard | None]] = deque()

    @property
    def complete(self) -> bool:
        return self.session.delivered >= self.session.cfg.n

    def draw(self, listing: Listing) -> Iterator[Item | None]:
        """Yield selected items that are not in the ledger yet, never more under way than are still missing."""
        session, n = self.session, self.session.cfg.n
        for item in listing(session.finished):
            if item.uid in session.finished or item.uid in session.under_way or not self.selection.takes(item):
                continue
            while session.delivered + len(session.under_way) + self.vetting.scenes >= n and not session.stopping:
                if self.complete:
                    return
                yield None
            if session.stopping:
                return
            session.under_way.add(item.uid)
            yield self.vetting.mark(item)

    def accept(self, outcome: Outcome) -> Iterator[Outcome]:
        """Record the outcome, unless it is held back until the cameras are verified."""
        return self._record(self.vetting.take(outcome))

    def conclude(self) -> Iterator[Outcome]:
        """Record the outcomes held back. Raises UserError where the cameras do not fit."""
        return self._record(self.vetting.conclude())

    def _record(self, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
        """Write outcomes: journal first, then the ledger, so that a crash between the two loses nothing."""
        session, writer = self.session, self.session.writer
        for outcome in outcomes:
            shard, full = None, False
            if outcome.scene is not None:
                scene = writer.pack(outcome.scene)
                split = split_of(scene.group, session.cfg.val_percent)
                shard, full = writer.add(scene, split, self.numbers.get(split, 0))
            session.ledger.record(outcome, shard)
            session.count(outcome)
            if shard and full:
                self.numbers[split] = number_of(shard) + 1
                self.publishing.append(self.publisher.submit(writer.publish, shard))
            self._book_shards(PUBLISHING)
            yield outcome

    def _book_shards(self, left: int) -> None:
        """Add published shards to the ledger; wait until at most `left` shards are still in publication."""
        while self.publishing and (len(self.publishing) > left or self.publishing[0].done()):
            if shard := self.publishing.popleft().result():
                self._shard_closed(shard)

    def _shard_closed(self, shard: Shard) -> None:
        self.session.ledger.add_shard(shard)
        self.numbers[shard.split] = max(self.numbers.get(shard.split, 0), number_of(shard.name) + 1)
        self.sink.take(shard.name)

    def close_shards(self) -> None:
        """Publish and book every open shard."""
        self._book_shards(0)
        for split in ("train", "val"):
            if shard := self.session.writer.close(split):
                self._shard_closed(shard)

    def close(self) -> None:
        """Publish and book every open shard, and end the thread that publishes."""
        self.publisher.shutdown()
        self.close_shards()

    def lines(self) -> list[str]:
        """Lines for the user: objects passed over, and how the cameras fit."""
        return self.selection.lines() + self.vetting.lines()


def recover(cfg: RunConfig, ledger: Ledger, writer: ShardWriter, sink: Sink) -> tuple[dict[str, int], list[str]]:
    """Make disk, sink and ledger agree after whatever ended the last session.

    Returns the number of each split's next shard, and notes for the user.
    """
    out, widths, notes = writer.out, cfg.scene.res, []
    recovered = writer.recover()
    lost = sum(map(ledger.add_shard, recovered))
    numbers: dict[str, int] = {}
    for name in complete_shards(out, widths) | sink.there | set(ledger.shards()):
        split = name.split("-")[0]
        numbers[split] = max(numbers.get(split, 0), number_of(name) + 1)
    here, damaged = whole_shards(out, widths, ledger)
    notes += damaged
    for name in sorted(sink.there - set(ledger.shards())):
        ledger.add_shard(sink.as_found(name))
    notes += says_lost(lost)
    if recovered:
        notes.append(f"recovered {sum(len(shard.uids) for shard in recovered)} objects of an interrupted session")
    gone = ledger.forget_missing(here | sink.there)
    for name in gone:  # files left at other resolutions would duplicate the objects rendered again
        remove_shard(out, widths, name)
        sink.drop(name)
    notes += says_gone(gone, cfg.store or "on disk")
    for name in sorted(here):
        sink.take(name)
    return numbers, notes
