"""State of a cycle, read from files alone, at work or at rest: shards made, trained on and deleted, pace, waiting, disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.core.disk import disk_below
from pipeline.core.errors import UserError
from pipeline.core.text import duration_words, size
from pipeline.cycle import disk_log
from pipeline.cycle.disk_log import Note
from pipeline.cycle.protocol import TRAIN, Window, layout, trainers_of
from pipeline.storage.ledger import Kept, Ledger
from pipeline.storage.run_folder import identity_of, is_locked
from pipeline.storage.train_run import TrainingLog

WORTH_A_WORD = 0.05  # least share of time waited that is reported
SLOWER = 1.25  # rendering faster than training by this factor is reported
ALIKE = 0.5  # both sides wait in turn if the lesser wait is more than this share of the greater
FIRST_S = 10.0  # delay of a session's first note, at most
LAST = 50  # steps over which the loss is averaged


@dataclass(frozen=True)
class Throughput:
    """Speed of rendering and training, and how long each waited, over all sessions.

    objects_per_s: rendered, without waits for disk. passes: mean per object. samples_per_s: trained on, without waits for data.
    None: unknown yet. waited_s, blocked_s: seconds that training, rendering waited. trainer_s, rendering_s: with waiting.
    """

    objects_per_s: float | None
    passes: float | None
    samples_per_s: float | None
    waited_s: float
    trainer_s: float
    blocked_s: float
    rendering_s: float

    @property
    def made_per_s(self) -> float | None:
        """Samples per second that rendering provides; None if unknown."""
        return self.objects_per_s * self.passes if self.objects_per_s and self.passes else None

    @property
    def idle(self) -> float:
        """Share of the trainer's time that it waited for data."""
        return self.waited_s / self.trainer_s if self.trainer_s > 0 else 0.0

    @property
    def blocked(self) -> float:
        """Share of rendering's time that it waited for disk."""
        return self.blocked_s / self.rendering_s if self.rendering_s > 0 else 0.0


@dataclass(frozen=True)
class Snapshot:
    """State of a cycle. loss: mean of the last steps. unseen: step, psnr, nearest (dB) of the last look at held-out objects.

    samples_due: of the shards so far. filling, on_disk, deleted: train shards; to_come: estimate of further train shards.
    left_s: estimate of the time left. disk_bytes, disk_peak, budget: bytes. held_out, on_disk_objects, deleted_objects: objects.
    All on training is the first model's; others: a line on each further one.
    """

    step: int
    loss: float | None
    unseen: dict[str, float] | None
    samples: int
    samples_due: int
    left_s: float | None
    pace: Throughput
    disk_bytes: int
    disk_peak: int
    budget: int
    filling: int
    on_disk: int
    deleted: int
    to_come: int | None
    on_disk_objects: int
    deleted_objects: int
    held_out: int
    others: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Tell a user how the cycle stands, in lines."""
        loss = "" if self.loss is None else f", loss {self.loss:.4f}"
        lines = [
            f"trained: step {self.step}{loss}, {self.samples:,} of {self.samples_due:,} samples of the shards so far"
        ]
        if self.unseen:
            step, psnr, nearest = self.unseen["step"], self.unseen["psnr"], self.unseen["nearest"]
            lines.append(
                f"unseen objects ({self.held_out}): PSNR {psnr:.2f} dB after {step:.0f} steps, nearest view {nearest:.2f}"
            )
        lines += self.others
        lines.append(
            f"pace: rendering makes {rate(self.pace.made_per_s)}, training takes {rate(self.pace.samples_per_s)}"
        )
        says, do = who_waits(self.pace)
        lines.append(f"waiting: {says}" + (f"; {do}" if do else ""))
        if self.left_s:
            lines.append(f"left: about {duration_words(self.left_s)}")
        budget = f", of {size(self.budget)}" if self.budget else ""
        lines.append(f"disk: {size(self.disk_bytes)} now, {size(self.disk_peak)} at most{budget}")
        more = "" if self.to_come is None else f", about {self.to_come} to come" if self.to_come else ", none to come"
        lines.append(
            f"shards to train on: {self.filling} filling, {self.on_disk} on disk, {self.deleted} trained and deleted{more}"
        )
        return lines


def rate(per_s: float | None) -> str:
    """Format samples per second for display; "?" if unknown."""
    return "? samples/s" if per_s is None else f"{per_s:.3g} samples/s" if per_s < 100 else f"{per_s:,.0f} samples/s"


def who_waits(pace: Throughput) -> tuple[str, str]:
    """Say which side waits for the other and how long, and what to change ("" for nothing)."""
    trainer, rendering = pace.idle, pace.blocked
    says = (
        f"the trainer waited {duration_words(pace.waited_s)} for data ({trainer:.0%}), "
        f"rendering {duration_words(pace.blocked_s)} for disk ({rendering:.0%})"
    )
    if max(trainer, rendering) < WORTH_A_WORD:
        made, taken = pace.made_per_s, pace.samples_per_s
        slow = made is not None and taken is not None and made > SLOWER * taken
        return says, "training is slower, and the disk holds what is made meanwhile" if slow else ""
    if min(trainer, rendering) > ALIKE * max(trainer, rendering):
        return (
            says,
            "both wait in turn: a larger --disk-budget; next time smaller --shard-objects, or --train.checkpoint-every",
        )
    if trainer > rendering:
        return says, "rendering is slower: more --workers; next time more --passes, fewer --views or --samples"
    return says, "training is slower: a faster GPU, or fewer --workers do as well; next time fewer --passes"


def take_snapshot(run: Path, ledger: Ledger, log: TrainingLog | None = None) -> Snapshot | None:
    """Take a snapshot of the cycle in `run`; None where it is no cycle. log: of the trainer, if read already."""
    if not is_cycle(run):
        return None
    log = log or TrainingLog(run / TRAIN).read()
    notes, kept = disk_log.read(run), ledger.kept()
    slots = {name: shard for name, shard in kept.items() if name.startswith("train") and shard.objects}
    gone = [shard for shard in slots.values() if shard.state == "deleted"]
    here = [shard for shard in slots.values() if shard.state != "deleted"]
    filling = len([path for path in (run / "journal").glob("train-*.arrow") if path.stem not in kept])
    used = disk_below(run)
    pace = _pace(notes, ledger, list(slots.values()), log)
    return Snapshot(
        step=log.step,
        loss=_loss(log),
        unseen=_unseen(log),
        samples=log.samples,
        samples_due=sum(shard.objects * shard.passes for shard in slots.values()),
        left_s=_left(run, ledger, pace, log),
        pace=pace,
        disk_bytes=used,
        disk_peak=max([used, *(note.most for note in notes)]),
        budget=notes[-1].budget if notes else 0,
        filling=filling,
        on_disk=len(here),
        deleted=len(gone),
        to_come=_to_come(run, len(slots) + filling),
        on_disk_objects=sum(shard.objects for shard in here),
        deleted_objects=sum(shard.objects for shard in gone),
        held_out=ledger.delivered_by_split().get("val", 0),
        others=tuple(_other(run, name) for name in trainers_of(run)[1:]),
    )


def _other(run: Path, name: str) -> str:
    """Say how a further model stands."""
    log = TrainingLog(run / name).read()
    mean, unseen = _loss(log), _unseen(log)
    loss = "" if mean is None else f", loss {mean:.4f}"
    seen = f", PSNR {unseen['psnr']:.2f} dB of unseen objects after {unseen['step']:.0f} steps" if unseen else ""
    return f"{name}: step {log.step}{loss}, {log.samples:,} samples{seen}"


def is_cycle(run: Path) -> bool:
    """True if a run's folder is one of `cycle`."""
    try:
        return "passes" in identity_of(run)
    except (OSError, UserError):
        return False


def _loss(log: TrainingLog) -> float | None:
    """Mean loss of the last steps."""
    losses = [loss for _, loss, *_ in log.curve[-LAST:] if math.isfinite(loss)]
    return sum(losses) / len(losses) if losses else None


def _unseen(log: TrainingLog) -> dict[str, float] | None:
    if not log.evaluations or any(log.evaluations[-1][1].get(name) is None for name in ("psnr", "nearest")):
        return None
    step, scores = log.evaluations[-1]
    return {"step": step, "psnr": scores["psnr"], "nearest": scores["nearest"]}


def _left(run: Path, ledger: Ledger, pace: Throughput, log: TrainingLog) -> float | None:
    """Seconds until rendering and training are done; None if no cycle is at work or the trainer's speed is unknown."""
    sizes = layout(run)
    if not is_locked(run) or sizes is None or not pace.passes or not pace.samples_per_s:
        return None
    objects = sizes["objects"] - ledger.delivered_by_split().get("train", 0)
    samples = sizes["objects"] * pace.passes - log.samples
    rendering = objects / pace.objects_per_s if pace.objects_per_s else 0.0
    return max(0.0, rendering, samples / pace.samples_per_s)


def _to_come(run: Path, known: int) -> int | None:
    sizes, window = layout(run), Window.read(run)
    if sizes is None:
        return None
    ended = window is not None and window.end is not None
    return 0 if ended else max(0, math.ceil(sizes["objects"] / sizes["shard_objects"]) - known)


def _pace(notes: Sequence[Note], ledger: Ledger, shards: Sequence[Kept], log: TrainingLog) -> Throughput:
    """Measure the pace. Rendering is timed from the first to the last object of each session, to leave out start-up."""
    ends = np.array([when for when, state, _ in ledger.timeline() if state == "delivered"])
    objects, busy, blocked = 0, 0.0, 0.0
    for session in disk_log.sessions(notes):
        some = ends[(ends > session[0].when - FIRST_S) & (ends <= session[-1].when)]
        blocked += sum(note.blocked_s for note in session)
        if len(some) > 1:
            objects += len(some) - 1
            between = sum(note.blocked_s for note in session if note.when <= some[-1])
            busy += max(0.0, float(some[-1] - some[0]) - between)
    total = sum(shard.objects for shard in shards)
    return Throughput(
        objects_per_s=objects / busy if objects and busy > 0 else None,
        passes=sum(shard.objects * shard.passes for shard in shards) / total if total else None,
        samples_per_s=log.samples_per_s,
        waited_s=log.waited,
        trainer_s=log.seconds,
        blocked_s=blocked,
        rendering_s=busy + blocked,
    )
