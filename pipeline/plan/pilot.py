"""The pilot of a plan: a few objects rendered for real while a trainer takes real steps beside them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.clip import ClipConfig
from pipeline.config.cycle import AnyCycle
from pipeline.config.render import RenderConfig
from pipeline.config.run import RunConfig
from pipeline.config.views import ImportConfig
from pipeline.core import licenses
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome
from pipeline.core.text import reasons_text
from pipeline.cycle.trainer import TAIL, USER, spawn
from pipeline.plan.forecast import Drawn, Measurements
from pipeline.run.driver import Driver, Intake, Workers, opened
from pipeline.run.policy import ArrivalOrder, Listing
from pipeline.storage.ledger import Ledger
from pipeline.storage.uploads import InFolder, Sink
from pipeline.worker.worker import Lacks, checked_worker

FOLDER = "pilot"  # within the cycle's folder
MOST_DRAWN = 10  # objects drawn per object asked for
MOST_S = 1200.0  # seconds after which no further object is drawn
TRAIN_AFTER = 0.25  # share of the objects delivered when the trainer is started
MEASURE_S = 300.0  # to measure the throughput, once rendering has ended
UP_S = 120.0  # until the trainer's first step
BESIDE = 3  # steps beside renderers that suffice


class ThroughputProcess:
    """Process that trains on the shards in `folder` to measure the throughput. command: to run, given the folder."""

    def __init__(self, folder: Path, command: Sequence[str], threads: int | None) -> None:
        self.output, self.errors = folder / "pace.jsonl", folder / "pace.log"
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            self.process = spawn([*command, str(folder)], threads, output, errors)

    def has_stepped(self) -> bool:
        """True when the process has done its first step, or never will."""
        return self.output.stat().st_size > 0 or self.process.poll() is not None

    def measured(self) -> dict[str, Any]:
        """Wait for the process; returns the fields of Measurements that it measured. Raises UserError where it cannot train."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the output until then will do
            self.process.wait(MEASURE_S)
        status = self.process.poll()
        if status:
            words = "\n".join(self.errors.read_text(errors="replace").strip().splitlines()[-TAIL:])
            how = "cannot train" if status == USER else f"ended with status {status}"  # -9: perhaps for want of memory
            raise UserError(f"the trainer of the pilot {how}:\n{words}")
        lines = [json.loads(line) for line in self.output.read_text().splitlines() if line.startswith("{")]
        steps = [one for one in lines if "step" in one]
        if not steps:
            raise UserError(
                f"no step of training was done within {MEASURE_S:.0f} seconds",
                "a smaller preset, or a GPU: see --train.device",
            )
        beside = [one["seconds"] for one in steps[1:] if one["beside"]]
        found: dict[str, Any] = {
            "step_s": beside if len(beside) >= BESIDE else [one["seconds"] for one in steps[1:] or steps],
            "samples": steps[0]["samples"],
            "train_start_s": steps[0]["start_s"],
        }
        for one in lines:
            found |= {name: one[name] for name in ("save_s", "checkpoint_bytes", "look_s") if name in one}
        return found

    def close(self) -> None:
        """Kill the process, if it lives."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Pilot(ArrivalOrder):
    """Policy that gives up on a source in which there are too few good objects, and measures.

    start: called once, when a quarter is there to train on. What is rendered after that is so beside a trainer.
    """

    def __init__(self, cfg: RunConfig, ledger: Ledger, sink: Sink, start: Callable[[], ThroughputProcess]) -> None:
        super().__init__(cfg, ledger, sink)
        self.intake, self.start = Intake(self.session), start
        self.urls: list[str] = []  # of what was drawn
        self.trainer: ThroughputProcess | None = None
        self.wait_until = self.paused_s = 0.0
        self.before: set[str] = set()  # uids begun before the trainer
        self.ended: list[Drawn] = []
        self.workers: set[str] = set()
        self.begun = time.monotonic()
        self.first: float | None = None  # when the first object was begun
        self.last = self.begun

    def draw(self, listing: Listing) -> Iterator[Item | None]:
        """Yield items until MOST_DRAWN per object, or MOST_S seconds, are reached."""
        count = 0
        for item in super().draw(listing):
            if item is not None:
                count += 1
                self.urls.append(item.url)
            yield item
            if count >= MOST_DRAWN * self.session.cfg.n or time.monotonic() - self.begun >= MOST_S:
                return

    def throttle(self, items: Iterator[Item | None]) -> Iterator[Item | None]:
        """Pass on items, but hold them back from the trainer's start to its first step."""
        for item in items:
            began = time.monotonic()
            while self.trainer and time.monotonic() < self.wait_until:
                if self.trainer.has_stepped() or self.session.stopping:
                    break
                yield None
            self.paused_s += time.monotonic() - began
            if self.trainer is None and item is not None:
                self.before.add(item.uid)
            yield item

    def accept(self, outcome: Outcome) -> Iterator[Outcome]:
        """Measure and record the outcome; start the trainer once TRAIN_AFTER of the objects are delivered."""
        self.last = time.monotonic()
        seconds = outcome.timings.get("total", 0.0)
        stages = sum(took for name, took in outcome.timings.items() if name != "total")
        if outcome.scene is not None and outcome.worker not in self.workers and outcome.tries == 1:
            seconds = min(seconds, stages)  # a worker's first object waits for its Blender
        self.first = min(self.first or self.last, self.last - seconds)
        self.workers.add(outcome.worker)
        jpeg_bytes = outcome.scene.jpeg_bytes if outcome.scene else 0
        beside = outcome.item.uid not in self.before
        fetched = self.intake.held(outcome.item.uid)
        self.ended.append(Drawn(outcome.scene is not None, seconds, fetched, jpeg_bytes, beside))
        for recorded in super().accept(outcome):
            if self.trainer is None and self.session.delivered >= max(1, int(TRAIN_AFTER * self.session.cfg.n)):
                self.close_shards()
                self.trainer = self.start()
                self.wait_until = self.last + UP_S
            yield recorded

    def measurements(self, shard_bytes: int, trained: dict[str, Any]) -> Measurements:
        """Measurements of the pilot. trained: the fields that the trainer measured."""
        ledger, workers = self.session.ledger, self.session.cfg.workers or max(1, len(self.workers))
        moments = sorted(self.intake.downloads.moments) if self.intake.downloads else []
        span = max(1e-9, self.last - (self.first or self.begun) - self.paused_s)
        busy = sum(one.seconds for one in self.ended) / min(workers, max(1, len(self.ended)))
        return Measurements(
            self.ended,
            ledger.reasons(),
            licenses.tally(ledger.licenses()),
            workers,
            (self.first or self.begun) - self.begun,
            time.monotonic() - self.begun,
            max(0.0, 1 - busy / span) if self.intake.downloads else 0.0,
            shard_bytes,
            len(ledger.kept()),
            fetch_s=[after - before for before, after in itertools.pairwise(moments)],
            least_fetch_s=self._least_fetch_s(),
            **trained,
        )

    def _least_fetch_s(self) -> float:
        """Seconds per item that --videos-per-hour allows: a pilot is through before the limit is felt."""
        cfg = self.session.cfg
        if not isinstance(cfg, ClipConfig) or cfg.videos or not cfg.videos_per_hour or not self.urls:
            return 0.0
        return 3600 / cfg.videos_per_hour * len(set(self.urls)) / len(self.urls)


def run_pilot(
    cfg: AnyCycle, objects: int, command: Sequence[str], settings: dict[str, Any], lacks: Lacks | None
) -> Measurements:
    """Make `objects` objects of a cycle's source into OUT/pilot, train on them, measure both, and remove the folder.

    command: measures the trainer's throughput, given the folder. settings: the trainer's. lacks: as of `cycle`. Raises UserError:
    no object could be made; the trainer cannot train; Ctrl-C.
    """
    assert cfg.out is not None
    folder = cfg.out / FOLDER
    verb: Any = next(one for one in (RenderConfig, ImportConfig, ClipConfig) if isinstance(cfg, one))
    same = {one.name: getattr(cfg, one.name) for one in dataclasses.fields(verb)}
    # objects for all workers of the cycle; none for validation, since quality is not measured
    own = {"n": min(cfg.n, max(objects, cfg.workers or 1)), "out": folder, "val_percent": 0.0}
    shutil.rmtree(folder, ignore_errors=True)
    pilot_cfg: RunConfig = verb(**same | own)
    with contextlib.ExitStack() as ended:
        ended.callback(shutil.rmtree, folder, ignore_errors=True)

        def start() -> ThroughputProcess:
            trained = settings | {"out": str(folder / "train"), "cycle": False, "tensorboard": False}
            trained["data"] = settings["data"] | {"data": [str(folder)]}
            (folder / "train.json").write_text(json.dumps(trained))
            return ended.enter_context(contextlib.closing(ThroughputProcess(folder, command, cfg.train_threads)))

        pilot = Pilot(pilot_cfg, ended.enter_context(opened(pilot_cfg)), InFolder(), start)
        make = functools.partial(checked_worker, pilot_cfg, lacks) if lacks else None
        summary = Driver(pilot, pilot.sink, pilot.intake, Workers(pilot.session, make=make)).go()
        if summary.stopped:
            raise UserError("the plan was stopped", "the same command starts it anew")
        if not summary.delivered:
            made = "rendered" if verb is RenderConfig else "made"
            raise UserError(
                f"none of {len(pilot.ended)} objects could be {made} ({reasons_text(summary.reasons)})",
                summary.failure or "another source, or another --seed",
            )
        assert pilot.trainer is not None
        return pilot.measurements(summary.shard_bytes, pilot.trainer.measured())
