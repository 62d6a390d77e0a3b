"""The driver: a loop that hands items of a source to workers, and their outcomes to a policy. One process per run folder."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import sources
from pipeline.cluster import executors
from pipeline.cluster.nodes import Share
from pipeline.config.clip import ClipConfig
from pipeline.config.run import RunConfig
from pipeline.config.shared import Granting, default_workers
from pipeline.core import licenses
from pipeline.core.disk import is_full
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome
from pipeline.core.signals import first_interrupt
from pipeline.core.text import duration, reasons_text, shown, size
from pipeline.download.ahead import Downloads
from pipeline.run import availability
from pipeline.run.left_out import left_out, untold
from pipeline.run.policy import ArrivalOrder, Listing, Policy, Session, failure_text
from pipeline.run.progress import Progress
from pipeline.run.selection import captioned
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import check_identity, locked
from pipeline.storage.uploads import LEDGER, Sink, attached, sink_of
from pipeline.worker.worker import Packing, make_worker


def deliver(cfg: RunConfig) -> Summary:
    """Deliver cfg.n objects into shards, going on where an earlier session stopped. cfg is resolved.

    Raises UserError: another run holds the folder; the folder was made with other settings; the source cannot be listed.
    """
    with opened(cfg) as ledger, sink_of(cfg) as sink:
        policy = ArrivalOrder(cfg, ledger, sink)
        return Driver(policy, sink, Intake(policy.session), Workers(policy.session)).go()


@contextlib.contextmanager
def opened(cfg: RunConfig) -> Iterator[Ledger]:
    """Lock the folder of a run, with an empty scratch/, and open its ledger. Raises UserError like `deliver`."""
    assert cfg.out is not None
    try:
        cfg.out.mkdir(parents=True, exist_ok=True)
        store = attached(cfg.store, cfg.out, cfg.backup_s, cfg.store_timeout)
        with locked(cfg.out), store, Ledger(cfg.out / LEDGER) as ledger:
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
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR):
            raise UserError(f"--out {shown(cfg.out)} cannot be written: {error}", "use another --out") from error
        raise


@dataclass(frozen=True)
class Summary:
    """Counts of a run. drawn = delivered + failed, over all sessions of the run. failure: one that failed for the commonest
    reason, and what is known of it; "" where nothing failed.
    """

    n: int
    out: Path
    delivered: int
    reasons: dict[str, int]
    seconds: float
    views: int
    shard_bytes: int
    stopped: bool
    bugs: list[str]
    licenses: dict[str, int]
    notes: list[str]
    store: str | None
    failure: str = ""

    @property
    def complete(self) -> bool:
        return self.delivered >= self.n

    def lines(self) -> list[str]:
        """Lines for the user: requested, drawn = delivered + failed by reason, then details, licenses, sizes."""
        failed = sum(self.reasons.values())
        by_reason = f" ({reasons_text(self.reasons)})" if failed else ""
        at = self.store or shown(self.out)
        lines = [f"bug in lvsm-data, please report: {bug}" for bug in self.bugs]
        lines.append(
            f"requested {self.n}: drawn {self.delivered + failed} = delivered {self.delivered} + failed {failed}{by_reason}"
        )
        if not self.complete:
            why = "stopped; the same command goes on" if self.stopped else "the source has no more objects"
            lines.append(f"{self.n - self.delivered} fewer than requested: {why}")
        lines += [self.failure] if self.failure else []
        lines += [f"details: lvsm-data status {shlex.quote(at)}"] if failed else []
        lines += self.notes
        if set(self.licenses) - {"unknown", "CC0-1.0"}:  # attribution is due
            lines.append(f"licenses: {reasons_text(self.licenses)}; whom to name: lvsm-data licenses {shlex.quote(at)}")
        lines.append(
            f"{self.views} views, {size(self.shard_bytes)} of shards in {at}, {duration(self.seconds)} this session"
        )
        return lines + ([f"look at them: lvsm-data view {shlex.quote(at)}"] if self.views else [])


class Intake:
    """The way from a source to the workers. Nothing is listed or fetched before `opened`."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.downloads: Downloads | None = None

    @contextlib.contextmanager
    def opened(self, draw: Callable[[Listing], Iterator[Item | None]]) -> Iterator[Iterator[Item | None]]:
        """Items that `draw` takes from the source, the first drawn on entry: lists are fetched before Progress takes over."""
        cfg, source = self.session.cfg, sources.load(self.session.cfg.source)
        net = sources.fetcher(cfg, self.session.out / "raw", cfg.cache) if sources.is_remote(cfg) else None
        if net and not cfg.address:  # the workers of a cluster fetch for themselves
            self.downloads = Downloads(source, net, cfg.downloads, self.session.finished)

        def listing(ended: Container[str] | None) -> Iterator[Item]:
            known = {"ended": ended} if ended is not None and getattr(source, "LEAVES_OUT", False) else {}
            items: Iterator[Item] = source.items(cfg, cfg.scene.seed, net, **known)
            items = map(cfg.grant, items) if isinstance(cfg, Granting) else items
            return captioned(items, cfg.captions) if cfg.captions else items

        try:
            drawn = draw(listing)
            first = list(itertools.islice(drawn, 1))
            yield itertools.chain(first, drawn)
        finally:
            if self.downloads:
                self.downloads.close()

    def stream(self, drawn: Iterator[Item | None], failed: Callable[[Outcome], None]) -> Iterator[Item | None]:
        """Pass on items once their files are fetched; `failed` gets the outcomes of items whose file cannot be fetched."""
        return self.downloads.stream(drawn, failed) if self.downloads else drawn

    def held(self, uid: str) -> int:
        """Bytes of disk that the fetched files of the item `uid` take."""
        return self.downloads.net.disk_budget.held(uid) if self.downloads else 0

    def done(self, item: Item) -> None:
        """Remove the files of an item that was recorded."""
        if self.downloads:
            self.downloads.remove(item.uid)

    def stop(self) -> None:
        """End the stream, and the downloads under way."""
        if self.downloads:
            self.downloads.stop()

    def lines(self) -> list[str]:
        """Line for the user, where an archive was fetched, or a video opened, more than once in this session."""
        count = self.downloads.net.fetches if self.downloads else Counter[str]()
        did, what = ("opened", "videos") if isinstance(self.session.cfg, ClipConfig) else ("fetched", "archives")
        again = f"{did} {len(count)} {what} {count.total()} times, as not all their items were asked for at once"
        return [again] if count.total() > len(count) else []

    def snapshot(self) -> dict[str, int]:
        """Figures of the downloads for status.json; {} where nothing is fetched here."""
        return self.downloads.snapshot() if self.downloads else {}


class Workers:
    """Executor of a session. apart: True keeps workers off nodes with a GPU. make: makes a worker; default: by the source."""

    def __init__(self, session: Session, apart: bool = False, make: Callable[[], Any] | None = None) -> None:
        self.session, self.apart = session, apart
        self.packing = functools.partial(
            Packing, make or functools.partial(make_worker, session.cfg), session.writer.pack
        )

    def connected(self) -> contextlib.AbstractContextManager[object]:
        """Context manager of the connection to a cluster, which outlives the workers: metrics use the connection to the end."""
        cfg = self.session.cfg
        return executors.connected(cfg.address) if cfg.executor == "ray" and cfg.address else contextlib.nullcontext()

    def outcomes(self, items: Iterator[Item | None], started: Callable[[int, Item], None]) -> Iterator[Outcome]:
        """Process items; yields outcomes in completion order. started(worker, item) is called when a worker takes an item."""
        return self._executor()(self.packing, items, started)

    def _executor(self) -> Callable[..., Iterator[Outcome]]:
        cfg, missing = self.session.cfg, self.session.cfg.n - self.session.delivered
        if cfg.executor == "inline" or missing <= 0:  # nothing is missing when a cycle only has to train
            return executors.inline
        if not cfg.address:
            workers = min(cfg.workers or default_workers(cfg.threads), missing)
            return functools.partial(executors.on_ray, workers=workers, share=Share(cfg.threads), say=self.session.say)
        source = sources.load(cfg.source)
        return functools.partial(
            executors.on_ray,
            workers=cfg.workers,
            share=Share(cfg.threads, cfg.gpus, cfg.memory_gb * 1e9),
            address=cfg.address,
            apart=self.apart,
            key=source.batch if hasattr(source, "BATCH") else None,
            together=getattr(source, "BATCH", 1),
            most=missing,
            say=self.session.say,
        )


class Driver:
    """The loop of one session: items from the intake to the workers, their outcomes to the policy, shards to the sink."""

    def __init__(self, policy: Policy, sink: Sink, intake: Intake, workers: Workers) -> None:
        self.session, self.policy, self.sink, self.intake, self.workers = policy.session, policy, sink, intake, workers
        self.bugs: list[str] = []
        session = self.session
        self.progress = Progress(
            session.cfg.n,
            None if getattr(session.cfg.scene, "is_timed", False) else session.cfg.scene.views,
            session.delivered,
            session.ledger.reasons(),
            session.out,
            downloads=intake.snapshot,
            uploads=sink.snapshot,
            cycle=policy.facts,
        )

    def go(self) -> Summary:
        """Work until the policy is complete, the source is exhausted or the user stops; shards are closed in any case.

        status.json says which it was, and why a run was refused.
        """
        start = time.perf_counter()
        session, ledger = self.session, self.session.ledger
        for note in session.notes:
            print(note, file=sys.stderr)
        if not self.policy.complete:
            try:
                with first_interrupt(self._stop), self.intake.opened(self.policy.draw) as drawn:
                    self._work(drawn)
            except UserError as error:
                self.progress.end("refused", error)
                raise
        whole = self.policy.complete and session.delivered >= session.cfg.n
        self.progress.end("finished" if whole else "stopped" if session.stopping else "exhausted")
        ledger.flush()  # or the copy of the ledger in the sink would lack unwritten rows
        self.sink.finish()
        if session.delivered >= session.cfg.n:
            shutil.rmtree(session.out / "raw", ignore_errors=True)
        notes = [*session.to_repeat, *self.policy.lines(), *self.intake.lines()]
        for views in (left_out, untold):
            notes += views(ledger, session.cfg.source).lines(session.cfg.store or shown(session.out))
        if isinstance(session.cfg, ClipConfig):
            notes.append(availability.write(session.out, ledger))
        totals = ledger.totals()
        return Summary(
            n=session.cfg.n,
            out=session.out,
            delivered=session.delivered,
            reasons=ledger.reasons(),
            seconds=time.perf_counter() - start,
            views=totals["views"],
            shard_bytes=totals["shard_bytes"],
            stopped=session.stopping,
            bugs=self.bugs,
            licenses=licenses.tally(ledger.licenses()),
            notes=notes,
            store=session.cfg.store,
            failure=failure_text(ledger),
        )

    def _work(self, drawn: Iterator[Item | None]) -> None:
        with self.policy.background(), self.workers.connected(), self.progress:
            items = self.intake.stream(self._settling(drawn), self._arrived)
            try:
                for outcome in self.workers.outcomes(self.policy.throttle(items), self.progress.on_start):
                    self._arrived(outcome)
                self._recorded(self.policy.conclude())
                self.progress.on_rest()
                self.policy.finish()
            finally:
                self.policy.close()
                self.progress.state = "stopped"  # whatever happens now, this process does not go on

    def _settling(self, drawn: Iterator[Item | None]) -> Iterator[Item | None]:
        """Pass on items; after each None (nothing to draw now), record waiting outcomes before the next draw."""
        for item in drawn:
            yield item
            if item is None:
                self._recorded(self.policy.settle())

    def _arrived(self, outcome: Outcome) -> None:
        """Hand an outcome to the policy; drop a late second outcome of an item."""
        if outcome.item.uid in self.session.under_way:
            self.session.under_way.remove(outcome.item.uid)
            self._recorded(self.policy.accept(outcome))

    def _recorded(self, outcomes: Iterator[Outcome]) -> None:
        """Remove the files of each item that has been recorded, and show its outcome."""
        for outcome in outcomes:
            self.intake.done(outcome.item)
            self.progress.on_outcome(outcome)
            if outcome.reason == "bug":
                self.bugs.append(f"{outcome.item.uid}\n{outcome.detail}")

    def _stop(self) -> None:
        self.session.stop()
        self.intake.stop()
        print("\nstopping: objects in flight are finished first; Ctrl-C again ends at once", file=sys.stderr)
