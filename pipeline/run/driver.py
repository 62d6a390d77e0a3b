"""The driver: pull outcomes, write shards, keep the ledger. One process per run folder."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from pipeline import sources
from pipeline.cluster import executors
from pipeline.cluster.nodes import Share
from pipeline.config.clip import ClipConfig
from pipeline.config.run import RunConfig
from pipeline.config.shared import default_workers
from pipeline.config.views import ImportConfig
from pipeline.core import licenses
from pipeline.core.disk import is_full
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome
from pipeline.core.text import shown
from pipeline.download.ahead import Downloads
from pipeline.run import availability
from pipeline.run.progress import Progress
from pipeline.run.summary import Summary
from pipeline.sources.fetchers import fetcher
from pipeline.sources.selection import Selection
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import check_identity, held, run_facts
from pipeline.storage.shards import (
    LAYERS,
    NUMBERS,
    SHARD_NAME,
    Shard,
    complete_shards,
    number_of,
    shard_on_disk,
    split_of,
)
from pipeline.storage.uploads import LEDGER, Uploads, attached
from pipeline.storage.writer import ShardWriter
from pipeline.worker.worker import Packing, Worker, make_worker

if TYPE_CHECKING:
    from pipeline.run.vetting import Vetting


def deliver(cfg: RunConfig) -> Summary:
    """Delivers cfg.n objects into shards, going on where an earlier session stopped. cfg is resolved.

    Raises UserError: another run holds the folder; the folder was made with other settings; the source cannot be listed.
    """
    with opened(cfg) as ledger, _uploads(cfg) as uploads:
        return Run(cfg, ledger, uploads).go()


def _uploads(cfg: RunConfig) -> contextlib.AbstractContextManager[Uploads | None]:
    if cfg.store is None:
        return contextlib.nullcontext()
    from pipeline.storage.object_store import Store

    assert cfg.out is not None
    return Uploads(Store(cfg.store), cfg.out, cfg.scene.res, cfg.backup_s)


@contextlib.contextmanager
def opened(cfg: RunConfig) -> Iterator[Ledger]:
    """The folder of a run, for this process alone, with an empty scratch/. Raises UserError like `deliver`."""
    assert cfg.out is not None
    try:
        cfg.out.mkdir(parents=True, exist_ok=True)
        with held(cfg.out), attached(cfg.store, cfg.out, cfg.backup_s), Ledger(cfg.out / LEDGER) as ledger:
            check_identity(cfg, ledger)
            scratch = cfg.out / "scratch"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            try:
                yield ledger
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        if is_full(error) or "No space left" in str(error):
            raise UserError(
                f"the disk of {shown(cfg.out)} is full", "make room; the same command goes on, nothing finished is lost"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR):
            raise UserError(f"--out {shown(cfg.out)} cannot be written: {error}", "use another --out") from error
        raise


PUBLISHING = 1  # full shards that may be on their way to disk while the next is filled


class Run:
    """One session: holds the writer and the counts while outcomes come in. Shards fill in the order in which objects come."""

    apart = False  # whether nodes with a GPU are left to others
    passes_over = True  # whether a list may leave out what has ended

    def __init__(self, cfg: RunConfig, ledger: Ledger, uploads: Uploads | None = None) -> None:
        assert cfg.out is not None
        self.cfg = cfg
        self.uploads = uploads
        self.out = cfg.out
        self.ledger = ledger
        scene = cfg.scene
        optional = tuple(name for name in LAYERS if getattr(scene, name, False))
        optional += NUMBERS if isinstance(cfg, ClipConfig) else ()
        self.writer = ShardWriter(cfg.out, scene.res, optional, run_facts(cfg), cfg.shard_mb * 1e6)
        self.notes = self._recover()
        if cfg.retry_failed and (count := ledger.forget_failed()):
            self.notes.append(f"trying {count} failed objects again")
        self.counts = ledger.counts()
        self.finished = ledger.finished_uids()
        self.under_way: set[str] = set()
        self.publisher = ThreadPoolExecutor(1, "publish")
        self.publishing: deque[Future[Shard | None]] = deque()
        self.stopping = False
        self.bugs: list[str] = []
        self.said: list[str] = []  # of the machines
        self.selection = Selection(cfg)
        self.downloads: Downloads | None = None
        self.vetting: Vetting | None = None
        if isinstance(cfg, ImportConfig) and cfg.verify_cameras and not self.delivered:  # an earlier session has looked
            from pipeline.run.vetting import Vetting  # and with it what compares pictures, which renderers never need

            self.vetting = Vetting(cfg)

    @property
    def delivered(self) -> int:
        return self.counts.get("delivered", 0)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.delivered >= self.cfg.n

    def go(self) -> Summary:
        """Works until n are delivered, the source is exhausted or the user stops it; shards are closed in any case."""
        start = time.perf_counter()
        for note in self.notes:
            print(note, file=sys.stderr)
        if not self.complete:
            with _first_interrupt(self._stop), self._sources() as drawn:
                self._work(drawn)
        if self.uploads:
            self.ledger.flush()  # or the copy would lack what waits
            self.uploads.finish()
        if self.delivered >= self.cfg.n:
            shutil.rmtree(self.out / "raw", ignore_errors=True)
        notes = [
            *self.said,
            *self.selection.lines(),
            *([self.vetting.says] if self.vetting and self.vetting.says else []),
        ]
        if isinstance(self.cfg, ClipConfig):
            notes.append(availability.write(self.out, self.ledger))
        totals = self.ledger.totals()
        return Summary(
            n=self.cfg.n,
            out=self.out,
            delivered=self.delivered,
            reasons=self.ledger.reasons(),
            seconds=time.perf_counter() - start,
            views=totals["views"],
            shard_bytes=totals["shard_bytes"],
            stopped=self.stopping,
            bugs=self.bugs,
            licenses=licenses.tally(self.ledger.licenses()),
            notes=notes,
            store=self.cfg.store,
        )

    def _work(self, drawn: Iterator[Item | None]) -> None:
        reasons = self.ledger.reasons()
        with self._cluster(), Progress(self.cfg.n, self.cfg.scene.views, self.delivered, reasons, self.out) as progress:
            items = drawn
            packing = functools.partial(Packing, self._make_worker, self.writer.pack)
            self._shows(progress)
            if self.uploads:
                progress.uploads = self.uploads.snapshot
            if self.downloads:
                items = self.downloads.stream(drawn, lambda outcome: self._arrived(outcome, progress))
                progress.downloads = self.downloads.snapshot
            try:
                for outcome in self._executor()(packing, items, progress.on_start):
                    self._arrived(outcome, progress)
                if self.vetting:
                    self._record(self.vetting.conclude(), progress)
                progress.on_rest()
                self._afterwards(progress)
            finally:
                self._close_shards()
                progress.state = "finished" if self.complete else "stopped"

    def _cluster(self) -> contextlib.AbstractContextManager[object]:
        """The connection to a cluster outlives the workers there: metrics go through it to the end, of a cycle's training too."""
        on_cluster = self.cfg.executor == "ray" and self.cfg.address
        return executors.connected(self.cfg.address) if on_cluster else contextlib.nullcontext()

    def _shows(self, progress: Progress) -> None:
        """Further things to show."""

    def _afterwards(self, progress: Progress) -> None:
        """What is left to do when all objects have ended."""

    @contextlib.contextmanager
    def _sources(self) -> Iterator[Iterator[Item | None]]:
        """The items to come, the first of them drawn: the lists are there, and Progress may take over the terminal."""
        source = sources.load(self.cfg.source)
        net = None
        if sources.is_remote(self.cfg):
            net = fetcher(self.cfg, self.out / "raw", self.cfg.cache)
        if net and not self.cfg.address:  # the workers of a cluster fetch for themselves
            self.downloads = Downloads(source, net, self.cfg.downloads, self.finished)
        try:
            quick = self.passes_over and getattr(source, "LEAVES_OUT", False)
            ended = {"ended": self.finished} if quick else {}
            drawn = self._draw(lambda: source.items(self.cfg, self.cfg.scene.seed, net, **ended))
            first = list(itertools.islice(drawn, 1))
            yield itertools.chain(first, drawn)
        finally:
            if self.downloads:
                self.downloads.close()

    def _arrived(self, outcome: Outcome, progress: Progress) -> None:
        """An outcome is here; a second one of the same item, that comes late, is dropped."""
        if outcome.item.uid in self.under_way:
            self.under_way.remove(outcome.item.uid)
            self._end(outcome, progress)

    def _end(self, outcome: Outcome, progress: Progress) -> None:
        """An item has ended: it is recorded, unless its cameras are still under suspicion."""
        self._record(self.vetting.take(outcome) if self.vetting else [outcome], progress)

    def _record(self, outcomes: list[Outcome], progress: Progress) -> None:
        """Shards, ledger and screen hear of it, and the files go."""
        for outcome in outcomes:
            self._take(outcome)
            if self.downloads:
                self.downloads.done(outcome.item)
            progress.on_outcome(outcome)
            if outcome.reason == "bug":
                self.bugs.append(f"{outcome.item.uid}\n{outcome.detail}")

    @property
    def _make_worker(self) -> Callable[[], Worker]:
        return functools.partial(make_worker, self.cfg)

    def _executor(self) -> Callable[..., Iterator[Outcome]]:
        if self.cfg.executor == "inline":
            return executors.inline
        cfg = self.cfg
        if not cfg.address:
            workers = min(cfg.workers or default_workers(cfg.threads), cfg.n - self.delivered)
            return functools.partial(executors.on_ray, workers=workers, share=Share(cfg.threads), say=self._say)
        source = sources.load(cfg.source)
        return functools.partial(
            executors.on_ray,
            workers=cfg.workers,
            share=Share(cfg.threads, cfg.gpus, cfg.memory_gb * 1e9),
            address=cfg.address,
            apart=self.apart,
            key=source.batch if hasattr(source, "BATCH") else None,
            together=getattr(source, "BATCH", 1),
            most=cfg.n - self.delivered,
            say=self._say,
        )

    def _say(self, line: str) -> None:
        """Something that a user should know now, and find at the end again."""
        print(line, file=sys.stderr, flush=True)
        self.said.append(line)

    def _draw(self, listing: Callable[[], Iterator[Item]]) -> Iterator[Item | None]:
        """Items that were asked for and are not in the ledger yet, never more at once than are still missing."""
        for item in listing():
            if item.uid in self.finished or item.uid in self.under_way or not self.selection.takes(item):
                continue
            while self.delivered + len(self.under_way) + self._held() >= self.cfg.n and not self.stopping:
                if self.delivered >= self.cfg.n:
                    return
                yield None
            if self.stopping:
                return
            self.under_way.add(item.uid)
            yield self.vetting.mark(item) if self.vetting else item

    def _held(self) -> int:
        """Scenes that wait for a verdict on the cameras."""
        return sum(outcome.scene is not None for outcome in self.vetting.held) if self.vetting else 0

    def _take(self, outcome: Outcome) -> None:
        """Writes one outcome: journal first, then the ledger, so that a crash between the two loses nothing."""
        shard, full = None, False
        if outcome.scene is not None:
            scene = self.writer.pack(outcome.scene)
            split = split_of(scene.group, self.cfg.val_percent)
            shard, full = self.writer.add(scene, split, self.numbers.get(split, 0))
        self.ledger.record(outcome, shard)
        self._count(outcome)
        if shard and full:
            self.numbers[split] = number_of(shard) + 1
            self.publishing.append(self.publisher.submit(self.writer.publish, shard))
        self._book_shards(PUBLISHING)

    def _book_shards(self, left: int) -> None:
        """The ledger hears of the shards that are published; at most so many are still on their way afterwards."""
        while self.publishing and (len(self.publishing) > left or self.publishing[0].done()):
            if shard := self.publishing.popleft().result():
                self._shard_closed(shard)

    def _count(self, outcome: Outcome) -> None:
        self.finished.add(outcome.item.uid)
        state = "delivered" if outcome.scene else "failed"
        self.counts[state] = self.counts.get(state, 0) + 1

    def _shard_closed(self, shard: Shard) -> None:
        self.ledger.add_shard(shard)
        self.numbers[shard.split] = max(self.numbers.get(shard.split, 0), number_of(shard.name) + 1)
        if self.uploads:
            self.uploads.take(shard.name)

    def _close_shards(self) -> None:
        self.publisher.shutdown()
        self._book_shards(0)
        for split in ("train", "val"):
            if shard := self.writer.close(split):
                self._shard_closed(shard)

    def _recover(self) -> list[str]:
        """Makes disk and ledger agree after whatever ended the last session. Returns what a user should know of it."""
        notes = []
        recovered = self.writer.recover()
        widths = self.cfg.scene.res
        here = complete_shards(self.out, widths)
        there = self.uploads.there if self.uploads else set()
        self.numbers: dict[str, int] = {}
        for name in here | there | set(self.ledger.shards()):
            match = SHARD_NAME.match(name)
            assert match is not None
            split, number = match[1], int(match[2])
            self.numbers[split] = max(self.numbers.get(split, 0), number + 1)
        for shard in recovered:
            self.ledger.add_shard(shard)
        for name in sorted((here | there) - set(self.ledger.shards())):
            found = self.uploads.as_found(name) if self.uploads and name not in here else None
            self.ledger.add_shard(found or shard_on_disk(self.out, widths, name))
        if recovered:
            notes.append(f"recovered {sum(len(shard.uids) for shard in recovered)} objects of an interrupted session")
        if gone := self.ledger.forget_missing(here | there):
            for name in gone:  # what is left of it at other resolutions would stand there twice
                for width in widths:
                    (self.out / str(width) / f"{name}.parquet").unlink(missing_ok=True)
                if self.uploads:
                    self.uploads.drop(name)
            some = ", ".join(gone[:3]) + (" ..." if gone[3:] else "")
            place = self.cfg.store or "on disk"
            notes.append(f"{len(gone)} shards are no longer {place} ({some}): rendering them again")
        if self.uploads:
            for name in sorted(here):
                self.uploads.take(name)
        return notes

    def _stop(self) -> None:
        self.stopping = True
        if self.downloads:
            self.downloads.stop()
        print("\nstopping: objects in flight are finished first; Ctrl-C again ends at once", file=sys.stderr)


@contextlib.contextmanager
def _first_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM calls `stop`; a second one raises KeyboardInterrupt."""
    seen: list[int] = []

    def handler(number: int, frame: object) -> None:
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt
        stop()

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
