"""Reader of a training run's log.jsonl while it grows, for a cycle's driver, page and audit. Needs no torch."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOG = "log.jsonl"
SETTINGS = "train.json"
WEIGHTS, CONFIG, README = "model.safetensors", "config.json", "README.md"  # of a model that is passed on
STRIP = re.compile(r"step-(\d+)\.png")
LATELY = 50  # steps that the pace is taken from


@dataclass
class TrainingLog:
    """Lines of a training log so far, and their sums; `read` goes on from there.

    curve: (step, loss, seconds, waited seconds, samples) of each step. evaluations: (step, scores) of held-out objects.
    norms: (step, norm of the gradient). skipped: steps that updated nothing. slots: shard number -> samples of that shard, in a
    cycle.
    """

    folder: Path
    curve: list[tuple[int, float, float, float, int]] = field(default_factory=list)
    evaluations: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    norms: list[tuple[int, float]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    slots: dict[int, int] = field(default_factory=dict)
    samples: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    _at: tuple[int, int] = (0, 0)  # inode, bytes read

    def read(self, until: int | None = None) -> TrainingLog:
        """Add new lines up to step `until`, and return the log: a new one if the file was replaced or cut meanwhile."""
        try:
            with (self.folder / LOG).open("rb") as file:
                found = os.fstat(file.fileno())
                if self._at[1] and (found.st_ino != self._at[0] or found.st_size < self._at[1]):
                    return TrainingLog(self.folder).read(until)
                file.seek(self._at[1])
                data = file.read()
        except FileNotFoundError:
            return self
        whole = data[: data.rfind(b"\n") + 1]
        self._at = (found.st_ino, self._at[1] + len(whole))
        for line in whole.splitlines():
            entry = json.loads(line)
            if until is None or entry["step"] <= until:
                self._take(entry)
        return self

    def _take(self, entry: dict[str, Any]) -> None:
        step = int(entry["step"])
        if "evaluation" in entry:
            self.evaluations.append((step, entry["evaluation"]))
            return
        loss = entry["loss"] if entry["loss"] is not None else float("nan")
        self.curve.append((step, loss, entry["seconds"], entry["waited_s"], entry["samples"]))
        if isinstance(norm := entry.get("grad_norm"), int | float):
            self.norms.append((step, norm))
        if entry.get("void"):
            self.skipped.append(step)
        self.samples += entry["samples"]
        self.seconds += entry["seconds"]
        self.waited += entry["waited_s"]
        for slot, count in entry.get("slots", {}).items():
            self.slots[int(slot)] = self.slots.get(int(slot), 0) + count

    @property
    def step(self) -> int:
        return self.curve[-1][0] if self.curve else 0

    @property
    def samples_per_s(self) -> float | None:
        """Samples per second while not waiting for data; None before the second step, as the first includes startup."""
        if len(self.curve) < 2:
            return None
        _, _, seconds, waited, samples = self.curve[0]
        busy = self.seconds - self.waited - (seconds - waited)
        return (self.samples - samples) / busy if busy > 0 else None

    @property
    def steps_per_s(self) -> float | None:
        """Steps per second of the last LATELY steps; None before the second step, as the first includes startup."""
        lately = self.curve[1:][-LATELY:]
        spent = sum(seconds for _, _, seconds, _, _ in lately)
        return len(lately) / spent if spent > 0 else None


def strips(run: Path) -> dict[int, Path]:
    """Step -> picture of held-out objects after it, of a training run."""
    return {int(match[1]): path for path in (run / "strips").glob("*.png") if (match := STRIP.fullmatch(path.name))}


CHECKPOINTS = "checkpoints"
COMMIT = re.compile(r"step-(\d{8})\.json")  # a finished checkpoint


def commits(run: Path) -> list[int]:
    """Steps of a training run's finished checkpoints, ascending."""
    names = (path.name for path in (run / CHECKPOINTS).glob("*.json"))
    return sorted(int(match[1]) for name in names if (match := COMMIT.fullmatch(name)))
