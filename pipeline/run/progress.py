"""Live progress: a panel on a terminal, plain lines elsewhere, and OUT/status.json for `lvsm-data status`."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.cluster.prometheus import Metrics
from pipeline.core.disk import write_json
from pipeline.core.errors import UserError
from pipeline.core.records import HEARTBEAT, Item, Outcome
from pipeline.core.text import duration, plain, reasons_text, size

WINDOW_S = 300.0  # rates are over the last five minutes
TICK_S = 1.0
LINE_S = 10.0  # between plain lines


class Progress:
    """Current state of a run, fed by the driver; within a `with` block a thread shows the state and writes status.json."""

    def __init__(
        self,
        n: int,
        views: int | None,
        delivered: int,
        reasons: dict[str, int],
        out: Path,
        *,
        downloads: Callable[[], dict[str, int]] = dict,
        uploads: Callable[[], dict[str, int]] = dict,
        cycle: Callable[[], dict[str, Any]] = dict,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """views: per object, None if objects differ. downloads, uploads, cycle: functions that return figures for status.json."""
        self.clock = clock
        self.n = n
        self.views_per_object = views
        self.delivered = delivered
        self.reasons = dict(reasons)
        self.bytes = self.views = 0
        self.idle_s = 0.0  # idle time of workers, up to their latest item
        self.started = clock()
        self.out = out
        self.state, self.why = "running", ""
        self.workers: dict[int, tuple[str, float]] = {}
        self.served: dict[int, int] = {}
        self.under_way: dict[str, int] = {}
        self.recent: deque[list[int]] = deque()  # [second, objects, views] that arrived in that second
        self.downloads, self.uploads, self.cycle = downloads, uploads, cycle
        self.last_cycle: dict[str, Any] = {}
        self.lock = threading.Lock()
        self.console = Console(stderr=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> Progress:
        self.started = self.clock()
        begun = self._snapshot(cycle={})  # a cycle has not read its log yet
        self._metrics = Metrics(self.out.resolve().name, begun)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def on_start(self, worker: int, item: Item) -> None:
        """Record that a worker took an item."""
        with self.lock:
            now = self.clock()
            before, since = self.workers.get(worker, ("", now))
            self.idle_s += 0.0 if before else now - since
            self.workers[worker] = (item.uid, now)
            self.under_way[item.uid] = worker

    def on_outcome(self, outcome: Outcome) -> None:
        """Record that an item ended."""
        with self.lock:
            worker = self.under_way.pop(outcome.item.uid, None)
            if worker is not None:  # else the item ended before a worker took it
                self.served[worker] = self.served.get(worker, 0) + 1
                if self.workers[worker][0] == outcome.item.uid:  # else the worker has its next item already
                    self.workers[worker] = ("", self.clock())
            if outcome.scene is None:
                self.reasons[outcome.reason] = self.reasons.get(outcome.reason, 0) + 1
                return
            views = outcome.scene.view_count
            self.delivered += 1
            self.views += views
            self.bytes += outcome.scene.jpeg_bytes
            second = int(self.clock())
            if not self.recent or self.recent[-1][0] != second:
                self.recent.append([second, 0, 0])
            self.recent[-1][1] += 1
            self.recent[-1][2] += views

    def on_rest(self) -> None:
        """Record that all workers have ended; none is idle from now on."""
        with self.lock:
            now = self.clock()
            self.idle_s += sum(now - since for uid, since in self.workers.values() if not uid)
            self.workers.clear()

    def end(self, state: str, why: UserError | None = None) -> None:
        """Write how the session ended: finished, stopped, exhausted (the source has no more objects), or refused, and why."""
        self.state, self.why = state, "\n".join(filter(None, (str(why), why.hint))) if why else ""
        self._write(self._snapshot(self.last_cycle))

    def snapshot(self) -> dict[str, Any]:
        """Contents of status.json. Rates in objects per hour and views per second; eta_s is None when unknown."""
        self.last_cycle = self.cycle()
        return self._snapshot(self.last_cycle)

    def _snapshot(self, cycle: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            now = self.clock()
            while self.recent and self.recent[0][0] < now - WINDOW_S:
                self.recent.popleft()
            seconds = max(1e-9, min(WINDOW_S, now - self.started))
            begun = self._begun()
            recent = sum(views for _, _, views in self.recent)
            views_per_s = (recent + sum(begun.values())) / seconds
            per_s = views_per_s / (
                self.views_per_object or recent / max(1, sum(objects for _, objects, _ in self.recent)) or 1
            )
            missing = max(0, self.n - self.delivered)
            workers = sorted(self.workers.items())
            workers = [(worker, at) for worker, at in workers if not at[0] or self.under_way.get(at[0]) == worker]
            idle_s = self.idle_s + sum(now - since for _, (uid, since) in workers if not uid)
            return {
                "pid": os.getpid(),
                "state": self.state,
                "why": self.why,
                "started": self.started,
                "updated": now,
                "n": self.n,
                "delivered": self.delivered,
                "failed": sum(self.reasons.values()),
                "reasons": self.reasons.copy(),
                "views_per_s": views_per_s,
                "objects_per_h": per_s * 3600,
                "eta_s": missing / per_s if per_s else None,
                "views": self.views,
                "bytes_written": self.bytes,
                "under_way": len(self.under_way),
                "idle_s": round(idle_s, 3),
                "downloads": self.downloads(),
                "uploads": self.uploads(),
                "cycle": cycle,
                "workers": [
                    {
                        "worker": worker,
                        "uid": uid,
                        "seconds": round(now - since, 1),
                        "views": begun.get(uid, 0),
                        "done": self.served.get(worker, 0),
                    }
                    for worker, (uid, since) in workers  # a worker whose item went to another worker was lost
                ],
            }

    def _begun(self) -> dict[str, int]:
        """Views so far of the objects under way, from the heartbeats of workers on this machine."""
        begun = {}
        for path in (self.out / "scratch").glob(f"*/{HEARTBEAT}"):
            with contextlib.suppress(OSError, ValueError):  # heartbeat half-written, or its worker has just ended
                views, uid = path.read_text().split(" ", 1)
                if uid in self.under_way:
                    begun[uid] = int(views)
        return begun

    def _show(self) -> None:
        if not self.console.is_terminal:
            next_line = time.monotonic() + LINE_S
            while not self._stop.wait(TICK_S):
                self._write_status()
                if time.monotonic() >= next_line:
                    next_line += LINE_S
                    self.console.print(Text(one_line(self.snapshot())), highlight=False, soft_wrap=True)
        else:
            with Live(console=self.console, refresh_per_second=4, transient=True) as live:
                while not self._stop.wait(TICK_S / 2):
                    snapshot = self._write_status()
                    live.update(panel(snapshot))
        self._write_status()

    def _write_status(self) -> dict[str, Any]:
        snapshot = self.snapshot()
        self._metrics.publish(snapshot)
        self._write(snapshot)
        return snapshot

    def _write(self, snapshot: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a full disk is the driver's to report
            write_json(self.out / "status.json", snapshot)


def one_line(status: dict[str, Any]) -> str:
    """Format a status as one plain line."""
    failed = f", {status['failed']} failed ({reasons_text(status['reasons'])})" if status["failed"] else ""
    waiting = status["downloads"]
    fetched = f" | {waiting['ready']} fetched ahead, {size(waiting['bytes'])} of disk" if waiting else ""
    if leaving := status["uploads"]:
        fetched += f" | {leaving['waiting']} shards to upload, {size(leaving['bytes'])}"
    objects = f"{status['delivered']}/{status['n']} objects{failed}"
    rates = (
        f" | {status['views_per_s']:.1f} views/s | {status['objects_per_h']:.0f} objects/h | "
        f"ETA {duration(status['eta_s'])} | {size(status['bytes_written'])} written{fetched}"
    )
    if not status.get("cycle"):
        return objects + rates
    rendered = status["delivered"] >= status["n"]  # a cycle still trains then
    return f"{objects}{'' if rendered else rates} | {training(status['cycle'])}"


def training(cycle: dict[str, Any]) -> str:
    """Format a cycle's figures: step, scores, pace, waiting, disk."""
    loss = f", loss {cycle['loss']:.4f}" if cycle["loss"] is not None else ""
    unseen = _unseen(cycle["unseen"]) if cycle["unseen"] else ""
    pace = f", {cycle['samples_per_s']:.1f} samples/s" if cycle["samples_per_s"] else ""
    waits = f", waited {cycle['trainer_waited_s'] / cycle['trainer_seconds']:.0%}" if cycle["trainer_seconds"] else ""
    blocked = ", rendering waits for it" if cycle["blocked"] else ""
    disk = f"disk {size(cycle['disk_bytes'])} of {size(cycle['budget'])}{blocked}"
    return f"step {cycle['step']}{loss}{unseen}{pace}{waits} | {disk}"


def _unseen(scores: dict[str, Any]) -> str:
    """Format the scores on unseen objects; a score of None (inf or NaN in training) is left out."""
    named = {"unseen objects": scores["psnr"], "nearest view": scores["nearest"]}
    return "".join(f", {name} {value:.2f} dB" for name, value in named.items() if value is not None)


def doing(worker: dict[str, Any]) -> str:
    """Format what a worker of a snapshot is doing."""
    return f"{worker['uid']}: {worker['views']} views, {worker['seconds']:.0f} s" if worker["uid"] else "idle"


def panel(status: dict[str, Any]) -> Group:
    """Format a status for a terminal: bar, line, one row per worker."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for worker in status["workers"]:
        table.add_row(f"worker {worker['worker']}", f"{worker['done']} done", Text(plain(doing(worker))))
    bar = Table.grid()  # gives the bar a line of its own
    bar.add_row(ProgressBar(total=status["n"], completed=status["delivered"], width=60))
    return Group(bar, Text(one_line(status)), table)
