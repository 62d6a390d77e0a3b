"""Beside a cycle's driver: deletes what was trained on, keeps the trainer alive, and watches the disk. A thread of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.cycle_config import Shares
from pipeline.ledger import Ledger
from pipeline.room import Room, append, disk_below, patiently
from pipeline.scene import Item
from pipeline.trainer import Trainer
from pipeline.training_log import TrainingLog
from pipeline.window import CHECKPOINTS, TRAIN, Window, committed

TICK_S = 0.5
NOTE_S = 5.0  # between two lines of disk.csv
DISK = "disk.csv"  # unix time, bytes that the run takes, bytes of it that are shards, budget


class Janitor:
    """Within a `with` block it works."""

    def __init__(
        self,
        out: Path,
        ledger: Path,
        room: Room,
        shares: Shares,
        trainer: Trainer,
        widths: tuple[int, ...],
    ) -> None:
        self.out, self.ledger, self.room, self.shares, self.trainer, self.widths = (
            out,
            ledger,
            room,
            shares,
            trainer,
            widths,
        )
        self.log = TrainingLog(out / TRAIN)
        self.step, self.cursor = committed(out)
        self.deleted = self.cursor.done
        self.disk: dict[str, int] = {}
        self.peak = 0
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, "janitor")
        self._work_done: Future[None] | None = None
        self._noted = 0.0

    def __enter__(self) -> Janitor:
        self._work_done = self._pool.submit(self._work)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._pool.shutdown()

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

    def _tick(self, ledger: Ledger) -> None:
        self.step, self.cursor = committed(self.out)
        self.log.read()
        if self.trainer.process is None and (window := Window.read(self.out)) and window.validated and window.slots:
            self.trainer.start()
        self.trainer.look()
        if self.cursor.done > self.deleted:
            self._delete(ledger)
        self._measure()

    def _delete(self, ledger: Ledger) -> None:
        """Shards that a finished checkpoint has done with: the ledger first, so that nobody misses them, then the files."""
        names = [f"train-{number:06d}" for number in range(self.deleted, self.cursor.done)]
        patiently(lambda: ledger.delete_shards(names), self.out, self._stop.is_set)
        for name in names:
            for width in self.widths:
                (self.out / str(width) / f"{name}.parquet").unlink(missing_ok=True)
            self.room.release(name)
        self.deleted = self.cursor.done

    def _measure(self) -> None:
        """What the run takes; where logs and scratch take more than their share, there is less for shards."""
        parts = {path.name: path for path in self.out.iterdir() if path.is_dir()}
        self.disk = {name: disk_below(path) for name, path in parts.items()}
        self.disk["checkpoints"] = disk_below(self.out / TRAIN / CHECKPOINTS)
        self.disk[TRAIN] = self.disk.get(TRAIN, 0) - self.disk["checkpoints"]
        self.disk["files"] = disk_below(self.out) - sum(self.disk.values())
        self.peak = max(self.peak, self.used())
        papers = self.disk["files"] + self.disk[TRAIN]
        over = max(0, papers - self.shares.papers / 2) + max(0, self.disk.get("scratch", 0) - self.shares.scratch)
        self.room.budget = int(self.shares.shards - over)
        now = time.time()
        if now - self._noted >= NOTE_S:
            self._noted = now
            shards = sum(self.disk.get(str(width), 0) for width in self.widths) + self.disk.get("journal", 0)
            line = f"{now:.0f},{self.used()},{shards},{self.shares.total:.0f}\n"
            with contextlib.suppress(OSError), (self.out / DISK).open("ab", buffering=0) as file:
                append(file, line.encode())  # a full disk is others' to report

    def facts(self) -> dict[str, Any]:
        """For status.json."""
        loss = self.log.curve[-1][1] if self.log.curve else None
        return {
            "disk_bytes": self.used(),
            "disk_peak": self.peak,
            "budget": int(self.shares.total),
            "step": self.log.step,
            "loss": loss,
            "unseen": self.log.looks[-1][1] if self.log.looks else None,
            "samples": self.log.samples,
            "samples_per_s": self.log.samples_per_s,
            "trainer_waited_s": round(self.log.waited, 1),
            "trainer_seconds": round(self.log.seconds, 1),
            "shards_deleted": self.deleted,
        }
