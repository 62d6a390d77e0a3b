"""What a training run says: a bar on a terminal, lines elsewhere, and OUT/log.jsonl, a line per step, for everybody else."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections import deque
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from lvsm_train.config import TrainConfig
from lvsm_train.data import Batch
from lvsm_train.evaluate import Scores

LINE_S = 10.0  # between plain lines
WINDOW = 50  # steps that figures are means over


class Log:
    """Open while a run trains."""

    def __init__(self, cfg: TrainConfig, start: int, notes: list[str]) -> None:
        assert cfg.out is not None
        self.cfg = cfg
        self.console = Console(stderr=True)
        self.path = cfg.out / "log.jsonl"
        self._cut(start)
        self.file = self.path.open("a")
        self.recent: deque[tuple[float, float, float, int]] = deque(maxlen=WINDOW)
        self.last = self.next_line = time.monotonic()
        self.bar = Bar(
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self.console,
        )
        self.task = self.bar.add_task("", total=cfg.steps, completed=start)
        for note in notes:
            self.console.print(note, highlight=False, soft_wrap=True)

    def __enter__(self) -> Log:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()
        self.file.close()

    def _cut(self, start: int) -> None:
        """Steps behind the checkpoint that a run goes on from are done again: their lines go."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= start and line.endswith("\n"):
                    kept.append(line)
            except ValueError:  # cut off by a crash
                break
        self.path.write_text("".join(kept))

    def step(
        self,
        done: int,
        loss: float,
        terms: dict[str, torch.Tensor],
        facts: dict[str, float],
        waited: float,
        batch: Batch,
    ) -> None:
        """One step is done."""
        now = time.monotonic()
        numbers = {name: float(value) for name, value in terms.items()}
        line = (
            {"step": done, "loss": loss}
            | numbers
            | facts
            | {"waited_s": round(waited, 5), "seconds": round(now - self.last, 5)}
        )
        self._write(line | {"samples": len(batch.uids)})
        images = batch.target_image.shape[0] * (batch.target_image.shape[1] + batch.image.shape[1])
        self.recent.append((numbers.get("mse", math.nan), now - self.last, waited, images))
        self.last = now
        if self.console.is_terminal:
            self.bar.update(self.task, completed=done, description=self._says(loss))
        elif now >= self.next_line:
            self.next_line = now + LINE_S
            self.console.print(f"step {done}/{self.cfg.steps}: {self._says(loss)}", highlight=False, soft_wrap=True)

    def _says(self, loss: float) -> str:
        errors, seconds, waits, images = zip(*self.recent, strict=True)
        total = sum(seconds) or 1e-9
        error = sum(errors) / len(errors)
        quality = f"PSNR {-10 * math.log10(error):.2f} dB, " if error > 0 else ""
        return (
            f"loss {loss:.4f}, {quality}{len(seconds) / total:.2f} steps/s, {sum(images) / total:.0f} images/s, "
            f"{sum(waits) / total:.0%} waiting for data"
        )

    def evaluation(self, done: int, scores: Scores) -> None:
        """Objects that do not train were looked at."""
        self._write({"step": done, "evaluation": dataclasses.asdict(scores)})
        self.console.print(f"step {done}: unseen objects: {scores.line()}", highlight=False, soft_wrap=True)
        self.last = time.monotonic()

    def _write(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
