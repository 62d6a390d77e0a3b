"""The driver: a loop that hands the outcomes of the workers to a policy. One process per run folder."""

from __future__ import annotations

import contextlib
import errno
import shutil
import sys
import time
from collections.abc import Iterator

from pipeline.config.clip import ClipConfig
from pipeline.config.run import RunConfig
from pipeline.core import licenses
from pipeline.core.disk import is_full
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome
from pipeline.core.signals import first_interrupt
from pipeline.core.text import shown
from pipeline.run import availability
from pipeline.run.intake import Intake
from pipeline.run.policy import ArrivalOrder, Policy
from pipeline.run.progress import Progress
from pipeline.run.session import Session
from pipeline.run.summary import Summary
from pipeline.run.workers import Workers
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import check_identity, held
from pipeline.storage.uploads import LEDGER, Sink, attached, sink_of


def deliver(cfg: RunConfig) -> Summary:
    """Deliver cfg.n objects into shards, going on where an earlier session stopped. cfg is resolved.

    Raises UserError: another run holds the folder; the folder was made with other settings; the source cannot be listed.
    """
    with opened(cfg) as ledger, sink_of(cfg) as sink:
        policy = ArrivalOrder.recovered(cfg, ledger, sink)
        session = policy.session
        return Driver(session, policy, sink, Intake(session), Workers(session)).go()


@contextlib.contextmanager
def opened(cfg: RunConfig) -> Iterator[Ledger]:
    """Lock the folder of a run, with an empty scratch/, and open its ledger. Raises UserError like `deliver`."""
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


class Driver:
    """The loop of one session: items from the intake to the workers, their outcomes to the policy, shards to the sink."""

    def __init__(self, session: Session, policy: Policy, sink: Sink, intake: Intake, workers: Workers) -> None:
        self.session, self.policy, self.sink, self.intake, self.workers = session, policy, sink, intake, workers
        self.bugs: list[str] = []
        n, views, reasons = session.cfg.n, session.cfg.scene.views, session.ledger.reasons()
        self.progress = Progress(
            n,
            views,
            session.delivered,
            reasons,
            session.out,
            downloads=intake.snapshot,
            uploads=sink.snapshot,
            cycle=policy.facts,
        )

    def go(self) -> Summary:
        """Work until the policy is complete, the source is exhausted or the user stops; shards are closed in any case."""
        start = time.perf_counter()
        session, ledger = self.session, self.session.ledger
        for note in session.notes:
            print(note, file=sys.stderr)
        if not self.policy.complete:
            with first_interrupt(self._stop), self.intake.opened(self.policy.draw) as drawn:
                self._work(drawn)
        ledger.flush()  # or the copy of the ledger in the sink would lack unwritten rows
        self.sink.finish()
        if session.delivered >= session.cfg.n:
            shutil.rmtree(session.out / "raw", ignore_errors=True)
        notes = [*session.said, *self.policy.lines()]
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
        )

    def _work(self, drawn: Iterator[Item | None]) -> None:
        with self.policy.beside(), self.workers.connected(), self.progress:
            items = self.intake.stream(self._settling(drawn), self._arrived)
            try:
                for outcome in self.workers.outcomes(self.policy.pace(items), self.progress.on_start):
                    self._arrived(outcome)
                self._recorded(self.policy.conclude())
                self.progress.on_rest()
                self.policy.finish()
            finally:
                self.policy.close()
                self.progress.state = "finished" if self.policy.complete else "stopped"

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
