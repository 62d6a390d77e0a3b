"""Beside a cycle's driver, in a thread: deletes shards that a checkpoint is done with, minds the trainer, meters the disk."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from pipeline.config.cycle import Shares
from pipeline.core.budget import DiskBudget
from pipeline.core.disk import disk_below, disk_of, patiently
from pipeline.cycle import disk_log, protocol
from pipeline.cycle.disk_log import Note
from pipeline.cycle.protocol import TRAIN, Window
from pipeline.cycle.trainer import Trainer, Trainers
from pipeline.storage.ledger import Ledger
from pipeline.storage.shards import remove_shard, shard_name
from pipeline.storage.train_run import CHECKPOINTS, TrainingLog

TICK_S = 0.5
NOTE_S = 5.0  # between two lines of disk.csv


class Page(Protocol):
    """Interface of a page that shows a cycle while it runs: `refresh` is called every tick, `end` once."""

    def refresh(self, log: TrainingLog) -> None: ...

    def end(self, log: TrainingLog) -> None: ...


class DiskMeter:
    """Measures the run's disk, and keeps disk.csv. parts: bytes by folder; peak: highest use measured.

    blocked_s: seconds that rendering waited for disk, in all sessions; blocked: rendering waits now.
    """

    def __init__(self, out: Path, shares: Shares, disk_budget: DiskBudget, widths: tuple[int, ...]) -> None:
        self.out, self.shares, self.disk_budget, self.widths = out, shares, disk_budget, widths
        self.parts: dict[str, int] = {}
        self.peak = 0
        self.blocked_s = sum(note.blocked_s for note in disk_log.read(out))
        self.blocked = False
        self._noted, self._looked = float("-inf"), 0.0
        self._most, self._blocked_s = 0, 0.0  # bytes, and seconds of waiting, since the last note

    def used(self) -> int:
        """Bytes that the run takes."""
        return sum(self.parts.values())

    def measure(self, last: bool = False) -> None:
        """Measure, note the result, and lower the budget of shards by what logs and scratch take beyond their shares."""
        paths = list(self.out.iterdir())
        disk = {path.name: disk_below(path) for path in paths if path.is_dir()}
        disk["files"] = sum(disk_of(path) for path in paths if not path.is_dir())
        names = protocol.trainers_of(self.out)
        disk["checkpoints"] = sum(disk_below(self.out / name / CHECKPOINTS) for name in names)
        disk[TRAIN] = sum(disk.pop(name, 0) for name in names) - disk["checkpoints"]
        self.parts = disk  # replaced as a whole, since other threads read it
        self.peak = max(self.peak, self.used())
        papers = disk["files"] + disk[TRAIN]
        over = max(0, papers - self.shares.papers / 2) + max(0, disk.get("scratch", 0) - self.shares.scratch)
        self.disk_budget.budget = int(self.shares.shards - over)
        self._note(last)

    def _note(self, last: bool) -> None:
        """Write a note of disk use and of rendering's waits for disk, at most every NOTE_S seconds, and for the `last` call."""
        now = time.monotonic()
        if self.blocked:
            self.blocked_s += now - self._looked
            self._blocked_s += now - self._looked
        self._looked = now
        self.blocked = (window := Window.read(self.out)) is not None and window.pressed
        self._most = max(self._most, self.used())
        if now - self._noted < NOTE_S and not last:
            return
        self._noted = now
        shards = sum(self.parts.get(name, 0) for name in (*map(str, self.widths), "journal"))
        budget, checkpoints = int(self.shares.total), self.parts["checkpoints"]
        note = Note(time.time(), self.used(), shards, budget, self._most, checkpoints, self._blocked_s)
        with contextlib.suppress(OSError):  # a full disk is reported elsewhere
            disk_log.add(self.out, note)
            self._most, self._blocked_s = 0, 0.0


class Supervisor:
    """Thread that tends trainer, shards, disk and page, within a `with` block. deleted: train shards before it are deleted."""

    def __init__(
        self,
        out: Path,
        ledger: Path,
        disk_budget: DiskBudget,
        shares: Shares,
        trainer: Trainer | Trainers,
        widths: tuple[int, ...],
        deleted: int,
        live_page: Callable[[Path], Page],
    ) -> None:
        self.ledger, self.trainer, self.deleted = ledger, trainer, deleted
        self.logs = {name: TrainingLog(out / name) for name in protocol.trainers_of(out)}
        self.meter = DiskMeter(out, shares, disk_budget, widths)
        self.page = live_page(out)
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, "supervisor")
        self._work_done: Future[None] | None = None

    @property
    def log(self) -> TrainingLog:
        """Log of the first trainer."""
        return self.logs[TRAIN]

    @property
    def samples_per_s(self) -> float | None:
        """Samples that the slowest trainer takes in a second; None before all are known."""
        rates = [log.samples_per_s for log in self.logs.values()]
        return min((rate for rate in rates if rate), default=None) if all(rates) else None

    def __enter__(self) -> Supervisor:
        self._work_done = self._pool.submit(self._work)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        self._read_logs()
        self.page.end(self.log)

    def check(self) -> None:
        """Raise what went wrong in the thread: UserError of the trainer, or a bug."""
        if self._work_done is not None and self._work_done.done():
            self._work_done.result()

    def idle(self) -> bool:
        """True when every shard that the newest checkpoint is done with has been deleted."""
        return self.deleted == protocol.done(self.meter.out)

    def _read_logs(self) -> None:
        self.logs = {name: log.read() for name, log in self.logs.items()}  # replaced, since other threads read it

    def _work(self) -> None:
        with Ledger(self.ledger) as ledger:
            while not self._stop.wait(TICK_S):
                self._tick(ledger)
            self.meter.measure(last=True)

    def _tick(self, ledger: Ledger) -> None:
        done = protocol.done(self.meter.out)
        self._read_logs()
        if not self.trainer.begun and (window := Window.read(self.meter.out)) and window.begun:
            self.trainer.start()
        self.trainer.poll()
        if done > self.deleted:
            self._delete(done, ledger)
        self.meter.measure()
        self.page.refresh(self.log)

    def _delete(self, until: int, ledger: Ledger) -> None:
        """Delete train shards before `until`, which finished checkpoints of all trainers are done with.

        First in the ledger, so that no reader expects their files, then the files.
        """
        names = [shard_name("train", number) for number in range(self.deleted, until)]
        patiently(lambda: ledger.delete_shards(names), self.meter.out, self._stop.is_set)
        for name in names:
            remove_shard(self.meter.out, self.meter.widths, name)
            self.meter.disk_budget.release(name)
        self.deleted = until

    def facts(self) -> dict[str, Any]:
        """Figures for status.json; called from another thread than the one that counts."""
        log, curve, evaluations = self.log, self.log.curve, self.log.evaluations
        return {
            "disk_bytes": self.meter.used(),
            "disk_peak": self.meter.peak,
            "budget": int(self.meter.shares.total),
            "step": log.step,
            "loss": curve[-1][1] if curve else None,
            "unseen": evaluations[-1][1] if evaluations else None,
            "samples": log.samples,
            "samples_per_s": log.samples_per_s,
            "trainer_waited_s": round(log.waited, 1),
            "trainer_seconds": round(log.seconds, 1),
            "blocked_s": round(self.meter.blocked_s, 1),
            "blocked": self.meter.blocked,
            "shards_deleted": self.deleted,
        }
