"""Beside a cycle's driver: deletes what was trained on, keeps the trainer alive, and watches the disk. A thread of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from pipeline.config.cycle import Shares
from pipeline.core.budget import DiskBudget
from pipeline.core.disk import disk_below, disk_of, patiently
from pipeline.core.records import Item
from pipeline.cycle import disk_log
from pipeline.cycle.disk_log import Note
from pipeline.cycle.protocol import TRAIN, Window, committed
from pipeline.cycle.trainer import Trainer
from pipeline.storage.ledger import Ledger
from pipeline.storage.shards import shard_name
from pipeline.storage.train_run import CHECKPOINTS, TrainingLog

TICK_S = 0.5
NOTE_S = 5.0  # between two lines of disk.csv


class Page(Protocol):
    """What shows a cycle while it runs: `refresh` is called every tick, `end` once."""

    def refresh(self) -> None: ...

    def end(self) -> None: ...


class Supervisor:
    """Within a `with` block it works. deleted: train shards before this one have gone already."""

    def __init__(
        self,
        out: Path,
        ledger: Path,
        disk_budget: DiskBudget,
        shares: Shares,
        trainer: Trainer,
        widths: tuple[int, ...],
        deleted: int,
        live_page: Callable[[Path, TrainingLog], Page],
    ) -> None:
        self.out, self.ledger, self.disk_budget = out, ledger, disk_budget
        self.shares, self.trainer, self.widths = shares, trainer, widths
        self.log = TrainingLog(out / TRAIN)
        self.step, self.cursor = committed(out)
        self.deleted = deleted
        self.disk: dict[str, int] = {}
        self.peak = 0
        # seconds that rendering waited for disk, in all sessions
        self.blocked_s = sum(note.blocked_s for note in disk_log.read(out))
        self.page = live_page(out, self.log)
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, "janitor")
        self._work_done: Future[None] | None = None
        self._noted, self._looked = float("-inf"), 0.0
        self._most = 0  # bytes since the last note
        self._blocked_s = 0.0  # the same
        self._waits = False

    def __enter__(self) -> Supervisor:
        self._work_done = self._pool.submit(self._work)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        self.log.read()
        self.page.end()

    def check(self) -> None:
        """Raises what went wrong here: UserError of the trainer, or a bug."""
        if self._work_done is not None and self._work_done.done():
            self._work_done.result()

    def attended(self, drawn: Iterator[Item | None]) -> Iterator[Item | None]:
        """The same items, as long as nothing goes wrong here."""
        for item in drawn:
            self.check()
            yield item

    def idle(self) -> bool:
        """Whether all that may be deleted has been."""
        return self.deleted == committed(self.out)[1].done

    def used(self) -> int:
        """Bytes that the run takes."""
        return sum(self.disk.values())

    def _work(self) -> None:
        with Ledger(self.ledger) as ledger:
            while not self._stop.wait(TICK_S):
                self._tick(ledger)
            self._measure(last=True)

    def _tick(self, ledger: Ledger) -> None:
        self.step, self.cursor = committed(self.out)
        self.log.read()
        if self.trainer.process is None and (window := Window.read(self.out)) and window.begun:
            self.trainer.start()
        self.trainer.look()
        if self.cursor.done > self.deleted:
            self._delete(ledger)
        self._measure()
        self.page.refresh()

    def _delete(self, ledger: Ledger) -> None:
        """Shards that a finished checkpoint has done with: the ledger first, so that nobody misses them, then the files."""
        names = [shard_name("train", number) for number in range(self.deleted, self.cursor.done)]
        patiently(lambda: ledger.delete_shards(names), self.out, self._stop.is_set)
        for name in names:
            for width in self.widths:
                (self.out / str(width) / f"{name}.parquet").unlink(missing_ok=True)
            self.disk_budget.release(name)
        self.deleted = self.cursor.done

    def _measure(self, last: bool = False) -> None:
        """What the run takes; where logs and scratch take more than their share, there is less for shards."""
        parts = list(self.out.iterdir())
        disk = {path.name: disk_below(path) for path in parts if path.is_dir()}
        disk["files"] = sum(disk_of(path) for path in parts if not path.is_dir())
        disk["checkpoints"] = disk_below(self.out / TRAIN / CHECKPOINTS)
        disk[TRAIN] = disk.get(TRAIN, 0) - disk["checkpoints"]
        self.disk = disk  # as a whole: others read it meanwhile
        self.peak = max(self.peak, self.used())
        papers = disk["files"] + disk[TRAIN]
        over = max(0, papers - self.shares.papers / 2) + max(0, disk.get("scratch", 0) - self.shares.scratch)
        self.disk_budget.budget = int(self.shares.shards - over)
        self._note(last)

    def _note(self, last: bool) -> None:
        """The disk, and how long rendering has waited for it, into disk.csv from time to time."""
        now = time.monotonic()
        if self._waits:
            self.blocked_s += now - self._looked
            self._blocked_s += now - self._looked
        self._looked = now
        self._waits = (window := Window.read(self.out)) is not None and window.pressed
        self._most = max(self._most, self.used())
        if now - self._noted < NOTE_S and not last:
            return
        self._noted = now
        shards = sum(self.disk.get(str(width), 0) for width in self.widths) + self.disk.get("journal", 0)
        budget, checkpoints = int(self.shares.total), self.disk["checkpoints"]
        note = Note(time.time(), self.used(), shards, budget, self._most, checkpoints, self._blocked_s)
        with contextlib.suppress(OSError):  # a full disk is others' to report
            disk_log.add(self.out, note)
            self._most, self._blocked_s = 0, 0.0

    def facts(self) -> dict[str, Any]:
        """For status.json. Asked for by another thread than the one that counts."""
        curve, looks = self.log.curve, self.log.looks
        return {
            "disk_bytes": self.used(),
            "disk_peak": self.peak,
            "budget": int(self.shares.total),
            "step": self.log.step,
            "loss": curve[-1][1] if curve else None,
            "unseen": looks[-1][1] if looks else None,
            "samples": self.log.samples,
            "samples_per_s": self.log.samples_per_s,
            "trainer_waited_s": round(self.log.waited, 1),
            "trainer_seconds": round(self.log.seconds, 1),
            "blocked_s": round(self.blocked_s, 1),
            "blocked": self._waits,
            "shards_deleted": self.deleted,
        }
