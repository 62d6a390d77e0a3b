"""Reports of a training run: a progress bar or lines on stderr, OUT/log.jsonl with a line per step, TensorBoard and W&B."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from lvsm_train.config.shapes import HW
from lvsm_train.config.train import TrainConfig
from lvsm_train.data.step_inputs import StepInput
from lvsm_train.device.flops import peak_flops, training_flops
from lvsm_train.device.ranks import Ranks
from lvsm_train.evaluation.scores import Scores, finite
from lvsm_train.models.lvsm import image_size
from pipeline.core import images
from pipeline.core.disk import append, patiently, replace_text
from pipeline.core.errors import UserError
from pipeline.core.text import duration, duration_words

LINE_S = 10.0  # between lines, where stderr is no terminal
WINDOW = 50  # steps that reported rates are means over
FIRST = 5  # steps after which the time for all is known well enough
SMOKE_TEST = 500  # steps: fewer show nothing of a model
CURVE_EVERY = 10  # steps between two points of a curve


class _Step(NamedTuple):
    """error: mean squared. norm: of the gradient; skipped: 1.0 if it updated nothing. seconds: in all, `waited` of them for
    data. images, flops (of the model), loss_flops (of the loss's networks): of all ranks."""

    error: float
    norm: float
    skipped: float
    seconds: float
    waited: float
    images: int
    flops: float
    loss_flops: float


class Log:
    """Context manager around a training run. Only the first rank prints and writes."""

    def __init__(self, cfg: TrainConfig, start: int, ranks: Ranks, device: torch.device) -> None:
        self.cfg, self.ranks = cfg, ranks
        self.stop_waiting: Callable[[], bool] = lambda: True  # for room on a full disk
        self.loss_flops: Callable[[int, HW, int], float] = lambda images, hw, step: 0.0  # as Loss.flops
        self.peak, self.on_cpu, self.steps = peak_flops(device), device.type == "cpu", 0  # steps of this session
        self.console = Console(stderr=True)
        self.path = cfg.folder / "log.jsonl"
        self.recent: deque[_Step] = deque(maxlen=WINDOW)
        self.last = self.next_line = time.monotonic()
        self.bar = Bar(
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self.console,
        )
        self.task = self.bar.add_task("", total=cfg.steps, completed=start)
        if ranks.is_main:
            self._drop_lines_after(start)
            self.curves = Curves(cfg, start)
            self.file = self.path.open("ab", buffering=0)

    def __enter__(self) -> Log:
        if self.ranks.is_main and self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()
        if self.ranks.is_main:
            self.file.close()
            self.curves.close()

    def say(self, *lines: str) -> None:
        """Print notes for the user, empty ones left out."""
        for line in filter(None, lines):
            if self.ranks.is_main:
                self.console.print(line, highlight=False, soft_wrap=True)

    def _drop_lines_after(self, start: int) -> None:
        """Delete the lines of steps after `start`, the checkpoint that the run goes on from: these steps are done again."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= start and line.endswith("\n"):
                    kept.append(line)
            except ValueError:  # cut off by a crash
                break
        patiently(lambda: replace_text(self.path, "".join(kept)), self.path.parent)

    def step(self, done: int, values: dict[str, float], step_input: StepInput) -> None:
        """Report a step. values: its loss, loss terms, and what Optimizers.step returned."""
        if not self.ranks.is_main:
            return
        now = time.monotonic()
        samples, pictures, flops, loss_flops = self._work(step_input)
        spent = now - self.last
        self.recent.append(
            _Step(
                values.get("mse", math.nan),
                values["grad_norm"],
                values["void"],
                spent,
                step_input.waited,
                pictures,
                flops,
                loss_flops,
            )
        )
        times = {"waited_s": round(step_input.waited, 5), "seconds": round(spent, 5)}
        slots = {"slots": {str(slot): count for slot, count in step_input.slots.items()}} if step_input.slots else {}
        self._write({"step": done} | values | times | {"samples": samples} | slots)
        self.last = now
        rates = self._rates()
        if done % CURVE_EVERY == 0 or done == 1:
            self.curves.scalars(done, {f"train/{name}": value for name, value in (values | rates).items()})
        if self.console.is_terminal:
            self.bar.update(self.task, completed=done, description=self._summary(values["loss"], rates))
        elif now >= self.next_line:
            self.next_line = now + LINE_S
            left = "" if self.cfg.cycle else f", {duration((self.cfg.steps - done) / rates['steps_per_s'])} left"
            self.say(f"step {done}/{self.cfg.steps}: {self._summary(values['loss'], rates)}{left}")
        self.steps += 1
        if self.steps == FIRST and self.on_cpu and not self.cfg.cycle:
            self._say_what_it_takes(done, rates["steps_per_s"])

    def _say_what_it_takes(self, done: int, pace: float) -> None:
        """Say how long training takes on this CPU, as soon as the first steps tell."""
        left = self.cfg.steps - done
        if left > 0:
            self.say(f"on this CPU {left:,} steps take about {duration_words(left / pace)}")
        if self.cfg.steps < SMOKE_TEST:
            self.say(f"{self.cfg.steps} steps show that everything runs; pictures that one can look at take thousands")

    def _work(self, step_input: StepInput) -> tuple[int, int, float, float]:
        """Samples, images, and floating-point operations of model and loss in a step, of all ranks."""
        samples = pictures = 0
        flops = loss_flops = 0.0
        for batch in step_input.batches:
            count, inputs, targets = *batch.image.shape[:2], batch.target_image.shape[1]
            hw = image_size(batch.image)
            samples, pictures = samples + count, pictures + count * (inputs + targets)
            flops += training_flops(self.cfg.model, count, inputs, targets, hw)
            loss_flops += self.loss_flops(count * targets, hw, step_input.step)
        world = self.ranks.world
        return samples * world, pictures * world, flops * world, loss_flops * world

    def _rates(self) -> dict[str, float]:
        """Throughput, share of time spent waiting for data, PSNR (dB) and MFU over the last WINDOW steps."""
        total = sum(step.seconds for step in self.recent) or 1e-9
        error = sum(step.error for step in self.recent) / len(self.recent)
        rates = {
            "steps_per_s": len(self.recent) / total,
            "images_per_s": sum(step.images for step in self.recent) / total,
            "data_wait": sum(step.waited for step in self.recent) / total,
        }
        if error > 0:
            rates["psnr"] = -10 * math.log10(error)
        if self.peak:
            for name in ("mfu", "mfu_loss"):
                work = sum(step.flops if name == "mfu" else step.loss_flops for step in self.recent)
                rates[name] = work / total / self.peak / self.ranks.world
        return rates

    def _summary(self, loss: float, rates: dict[str, float]) -> str:
        quality = f"PSNR {rates['psnr']:.2f} dB, " if "psnr" in rates else ""
        beside = f" + {rates['mfu_loss']:.0%} of the loss" if rates.get("mfu_loss") else ""
        share = f"MFU {rates['mfu']:.0%}{beside}, " if "mfu" in rates else ""
        skipped = sum(step.skipped for step in self.recent)
        steps = f", {skipped:.0f} of the last {len(self.recent)} steps skipped" if skipped else ""
        return (
            f"loss {loss:.4f}, {quality}gradient {self.recent[-1].norm:.3g}{steps}, {rates['steps_per_s']:.2f} steps/s, "
            f"{rates['images_per_s']:.0f} images/s, {share}{rates['data_wait']:.0%} waiting for data"
        )

    def evaluation(self, done: int, scores: Scores, picture: Path) -> None:
        """Report the scores of held-out objects, and the file of their picture."""
        if not self.ranks.is_main:
            return
        facts = dataclasses.asdict(scores)
        self._write({"step": done, "evaluation": facts})
        self.curves.scalars(
            done, {f"unseen/{name}": float(value) for name, value in facts.items() if value is not None}
        )
        self.curves.picture(done, "inputs, then target and rendering", images.decode(picture.read_bytes()))
        self.say(f"step {done}: unseen objects: {scores.line()}")
        self.last = time.monotonic()

    def _write(self, line: dict[str, Any]) -> None:
        data = f"{json.dumps(finite(line))}\n".encode()
        patiently(lambda: append(self.file, data), self.path.parent, self.stop_waiting)


class Curves:
    """TensorBoard and W&B, each if `cfg` enables it. start: step that the run goes on from; later points are dropped."""

    def __init__(self, cfg: TrainConfig, start: int) -> None:
        self.tensorboard: Any = None
        self.wandb: Any = None
        if cfg.tensorboard:
            from tensorboardX import SummaryWriter

            purge_step = start + 1 if start else None
            self.tensorboard = SummaryWriter(str(cfg.folder / "tensorboard"), purge_step=purge_step, write_to_disk=True)
        if cfg.wandb:
            try:
                import wandb
            except ImportError:
                raise UserError("--wandb needs the package wandb", "pip install wandb") from None
            name = cfg.folder.name
            self.wandb = wandb.init(
                project=cfg.wandb, name=name, id=name, dir=cfg.folder, resume="allow", config=cfg.as_json()
            )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add the values of a step to the curves of these names."""
        if self.tensorboard:
            for name, value in values.items():
                self.tensorboard.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(values, step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Add an image. pixels: (H, W, 3) uint8."""
        if self.tensorboard:
            self.tensorboard.add_image(name, pixels, step, dataformats="HWC")
        if self.wandb:
            import wandb

            self.wandb.log({name: wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        """Flush and close both."""
        if self.tensorboard:
            self.tensorboard.close()
        if self.wandb:
            self.wandb.finish()
