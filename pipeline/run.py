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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import availability, executors, licenses, sources
from pipeline.config import ClipConfig, ImportConfig, RunConfig
from pipeline.downloads import Downloads, fetcher
from pipeline.files.camera_files import video_of
from pipeline.folder import check_identity, held, run_facts
from pipeline.ledger import Ledger
from pipeline.produce import Worker, make_worker
from pipeline.progress import Progress, duration, reasons_text, shown, size
from pipeline.room import is_full
from pipeline.scene import Item, Outcome, Scene, UserError
from pipeline.selection import Selection
from pipeline.shards import LAYERS, NUMBERS, SHARD_NAME, Shard, number_of, shard_on_disk, shard_paths, split_of
from pipeline.writer import ShardWriter

if TYPE_CHECKING:
    from pipeline.vetting import Vetting


@dataclass
class Summary:
    """How a run ended. drawn = delivered + failed, over all sessions of the run."""

    n: int
    out: Path
    delivered: int
    reasons: dict[str, int]
    seconds: float = 0.0
    views: int = 0
    shard_bytes: int = 0
    stopped: bool = False
    bugs: list[str] = field(default_factory=list)
    licenses: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.delivered >= self.n

    def lines(self) -> list[str]:
        """What a user wants to know at the end, adding up: requested, drawn = delivered + failed by reason."""
        failed = sum(self.reasons.values())
        by_reason = f" ({reasons_text(self.reasons)})" if failed else ""
        lines = [f"bug in lvsm-data, please report: {bug}" for bug in self.bugs]
        lines.append(
            f"requested {self.n}: drawn {self.delivered + failed} = delivered {self.delivered} + failed {failed}{by_reason}"
        )
        if not self.complete:
            why = "stopped; the same command goes on" if self.stopped else "the source has no more objects"
            lines.append(f"{self.n - self.delivered} fewer than requested: {why}")
        if failed:
            lines.append(f"details: lvsm-data status {shown(self.out)}")
        lines += self.notes
        if set(self.licenses) - {"unknown", "CC0-1.0"}:  # somebody is to be named
            lines.append(f"licenses: {reasons_text(self.licenses)}; whom to name: lvsm-data licenses {shown(self.out)}")
        lines.append(
            f"{self.views} views, {size(self.shard_bytes)} of shards in {shown(self.out)}, {duration(self.seconds)} this session"
        )
        lines.append(f"look at them: lvsm-data view {shown(self.out)}")
        return lines


def deliver(cfg: RunConfig) -> Summary:
    """Delivers cfg.n objects into shards, going on where an earlier session stopped. cfg is resolved.

    Raises UserError: another run holds the folder; the folder was made with other settings; the source cannot be listed.
    """
    with opened(cfg) as ledger:
        return Run(cfg, ledger).go()


@contextlib.contextmanager
def opened(cfg: RunConfig) -> Iterator[Ledger]:
    """The folder of a run, for this process alone, with an empty scratch/. Raises UserError like `deliver`."""
    assert cfg.out is not None
    try:
        cfg.out.mkdir(parents=True, exist_ok=True)
        with held(cfg.out), Ledger(cfg.out / "ledger.sqlite") as ledger:
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


class Run:
    """One session: holds the writer and the counts while outcomes come in. Shards fill in the order in which objects come."""

    def __init__(self, cfg: RunConfig, ledger: Ledger) -> None:
        assert cfg.out is not None
        self.cfg = cfg
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
        self.under_way = 0
        self.stopping = False
        self.bugs: list[str] = []
        self.selection = Selection(cfg)
        self.downloads: Downloads | None = None
        self.vetting: Vetting | None = None
        if isinstance(cfg, ImportConfig) and cfg.verify_cameras and not self.delivered:  # an earlier session has looked
            from pipeline.vetting import Vetting  # and with it what compares pictures, which renderers never need

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
        if self.delivered >= self.cfg.n:
            shutil.rmtree(self.out / "raw", ignore_errors=True)
        notes = [*self.selection.lines(), *([self.vetting.says] if self.vetting and self.vetting.says else [])]
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
        )

    def _work(self, drawn: Iterator[Item | None]) -> None:
        reasons = self.ledger.reasons()
        with Progress(self.cfg.n, self.cfg.scene.views, self.delivered, reasons, self.out) as progress:
            items = drawn
            self._shows(progress)
            if self.downloads:
                items = self.downloads.stream(drawn, lambda outcome: self._end(outcome, progress))
                progress.downloads = self.downloads.snapshot
            try:
                for outcome in self._executor()(self._make_worker, items, progress.on_start):
                    self._end(outcome, progress)
                if self.vetting:
                    self._record(self.vetting.conclude(), progress)
                self._afterwards(progress)
            finally:
                self._close_shards()
                progress.state = "finished" if self.complete else "stopped"

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
            self.downloads = Downloads(source, net, self.cfg.downloads, self.finished)
        try:
            drawn = self._draw(lambda: source.items(self.cfg, self.cfg.scene.seed, net))
            first = list(itertools.islice(drawn, 1))
            yield itertools.chain(first, drawn)
        finally:
            if self.downloads:
                self.downloads.close()

    def _end(self, outcome: Outcome, progress: Progress) -> None:
        """An item has ended: it is recorded, unless its cameras are still under suspicion."""
        self.under_way -= 1
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
        workers = self.cfg.workers
        if not self.cfg.address:
            workers = min(workers or executors.default_workers(self.cfg.threads), self.cfg.n - self.delivered)
        return functools.partial(executors.on_ray, workers=workers, threads=self.cfg.threads, address=self.cfg.address)

    def _draw(self, listing: Callable[[], Iterator[Item]]) -> Iterator[Item | None]:
        """Items that were asked for and are not in the ledger yet, never more at once than are still missing."""
        for item in listing():
            if not self.selection.takes(item) or item.uid in self.finished:
                continue
            while self.delivered + self.under_way + self._held() >= self.cfg.n and not self.stopping:
                if self.delivered >= self.cfg.n:
                    return
                yield None
            if self.stopping:
                return
            self.under_way += 1
            yield self.vetting.mark(item) if self.vetting else item

    def _held(self) -> int:
        """Scenes that wait for a verdict on the cameras."""
        return sum(outcome.scene is not None for outcome in self.vetting.held) if self.vetting else 0

    def _take(self, outcome: Outcome) -> None:
        """Writes one outcome: journal first, then the ledger, so that a crash between the two loses nothing."""
        uid = outcome.item.uid
        if uid in self.finished:
            return
        shard = closed = None
        if outcome.scene is not None:
            split = split_of(group_of(outcome.scene), self.cfg.val_percent)
            shard, closed = self.writer.add(outcome.scene, split, self.numbers.get(split, 0))
        self.ledger.record(outcome, shard)
        if closed is not None:
            self._shard_closed(closed)
        self._count(outcome)

    def _count(self, outcome: Outcome) -> None:
        self.finished.add(outcome.item.uid)
        state = "delivered" if outcome.scene else "failed"
        self.counts[state] = self.counts.get(state, 0) + 1

    def _shard_closed(self, shard: Shard) -> None:
        self.ledger.add_shard(shard)
        self.numbers[shard.split] = max(self.numbers.get(shard.split, 0), number_of(shard.name) + 1)

    def _close_shards(self) -> None:
        for split in ("train", "val"):
            if shard := self.writer.close(split):
                self._shard_closed(shard)

    def _recover(self) -> list[str]:
        """Makes disk and ledger agree after whatever ended the last session. Returns what a user should know of it."""
        notes = []
        recovered = self.writer.recover()
        widths = self.cfg.scene.res
        on_disk = set.intersection(*({path.stem for path in shard_paths(self.out / str(width))} for width in widths))
        self.numbers: dict[str, int] = {}
        for name in on_disk | set(self.ledger.shards()):
            match = SHARD_NAME.match(name)
            assert match is not None
            split, number = match[1], int(match[2])
            self.numbers[split] = max(self.numbers.get(split, 0), number + 1)
        for shard in recovered:
            self.ledger.add_shard(shard)
        for name in sorted(on_disk - set(self.ledger.shards())):
            self.ledger.add_shard(shard_on_disk(self.out, widths, name))
        if recovered:
            notes.append(f"recovered {sum(len(shard.uids) for shard in recovered)} objects of an interrupted session")
        if gone := self.ledger.forget_missing(on_disk):
            for name in gone:  # what is left of it at other resolutions would stand there twice
                for width in widths:
                    (self.out / str(width) / f"{name}.parquet").unlink(missing_ok=True)
            some = ", ".join(gone[:3]) + (" ..." if gone[3:] else "")
            notes.append(f"{len(gone)} shards are no longer on disk ({some}): rendering them again")
        return notes

    def _stop(self) -> None:
        self.stopping = True
        if self.downloads:
            self.downloads.stop()
        print("\nstopping: objects in flight are finished first; Ctrl-C again ends at once", file=sys.stderr)


def group_of(scene: Scene) -> str:
    """What must not be torn apart between train and val: all clips of one video; else every item stands alone."""
    video = scene.meta.get("video")
    return video_of(video) if video else scene.item.uid


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
