"""Status, check and page of a training run, or of several beside each other. Reads its folder alone, and needs no torch."""

from __future__ import annotations

import itertools
import json
import math
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core import images
from pipeline.core.errors import UserError
from pipeline.core.text import duration, duration_words, size
from pipeline.report.charts import Plot, smooth
from pipeline.report.findings import Block, Figure, Section, Table, write_page
from pipeline.storage.train_run import CHECKPOINTS, CONFIG, LOG, SETTINGS, WEIGHTS, TrainingLog, commits, strips

FRESH_S = 120.0  # since the last line of a log: later it is not known whether the run still works
STRIPS = 6  # pictures of held-out objects on a page
MOST_RUNS = 4  # beside each other: as many lines as a plot has
SCORES = {  # name in the log -> name for people
    "psnr": "model",
    "nearest": "nearest input",
    "best_input": "best input",
    "mean": "mean input",
}


@dataclass(frozen=True)
class TrainRun:
    """A training run's folder as it stands. settings: of train.json. checkpoints: (step, bytes), ascending. age_s: seconds since
    its log grew, None without a log.
    """

    folder: Path
    settings: dict[str, Any]
    log: TrainingLog
    checkpoints: list[tuple[int, int]]
    age_s: float | None

    @property
    def steps(self) -> int:
        """Steps that were asked for."""
        return int(self.settings.get("steps") or 0)

    @property
    def left_s(self) -> float | None:
        """Seconds that the steps left will take; None where no step was done lately."""
        pace = self.log.steps_per_s
        if not pace or self.age_s is None or self.age_s > FRESH_S:
            return None
        return max(0, self.steps - self.log.step) / pace

    @property
    def state(self) -> str:
        """finished; else running, or stopped if its log has not grown for FRESH_S."""
        if self.steps and self.log.step >= self.steps:
            return "finished"
        return "running" if self.age_s is not None and self.age_s < FRESH_S else "stopped"

    @property
    def scores(self) -> dict[str, Any]:
        """Newest scores of held-out objects, with their step; {} without any."""
        if not self.log.evaluations:
            return {}
        step, scores = self.log.evaluations[-1]
        return {"step": step} | scores


def is_training(folder: Path) -> bool:
    """True for the folder of a training run."""
    return (folder / SETTINGS).is_file()


def is_model(folder: Path) -> bool:
    """True for the folder of a training run, and for that of a model that was exported from one."""
    return is_training(folder) or ((folder / WEIGHTS).is_file() and (folder / CONFIG).is_file())


def read(folder: Path) -> TrainRun:
    """Read the folder of a training run. Raises UserError where its settings or its log cannot be read."""
    try:
        settings = json.loads((folder / SETTINGS).read_text())
        log = TrainingLog(folder).read()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no training run that can be read: {error}", "give the --out of a run") from None
    files = [(step, folder / CHECKPOINTS / f"step-{step:08d}.pt") for step in commits(folder)]
    kept = [(step, path.stat().st_size if path.exists() else 0) for step, path in files]
    grown = (folder / LOG).stat().st_mtime if (folder / LOG).exists() else None
    return TrainRun(folder, settings, log, kept, None if grown is None else max(0.0, time.time() - grown))


# ---- status


def status(run: TrainRun) -> dict[str, Any]:
    """Return the state of a training run as JSON values."""
    return {
        "run": str(run.folder),
        "state": run.state,
        "step": run.log.step,
        "steps": run.steps,
        "loss": run.log.curve[-1][1] if run.log.curve else None,
        "skipped": len(run.log.skipped),
        "steps_per_s": run.log.steps_per_s,
        "left_s": run.left_s,
        "held_out_objects": run.scores,
        "checkpoints": [step for step, _ in run.checkpoints],
        "checkpoint_bytes": sum(taken for _, taken in run.checkpoints),
    }


def status_text(found: dict[str, Any]) -> str:
    """Format the result of `status` for people."""
    lines = [f"{found['run']}: {found['state']}, step {found['step']:,} of {found['steps']:,}"]
    if found["loss"] is not None:
        lines[0] += f", loss {found['loss']:.4f}"
    if found["steps_per_s"]:
        left = f", about {duration_words(found['left_s'])} left" if found["left_s"] else ""
        lines.append(f"{found['steps_per_s']:.2f} steps/s{left}")
    if found["skipped"]:
        lines.append(f"{found['skipped']:,} steps were skipped: their loss or gradient was out of range")
    if scores := found["held_out_objects"]:
        lines.append(f"held-out objects, step {scores['step']:,}: {_scores_text(scores)}")
    if found["checkpoints"]:
        steps = ", ".join(f"{step:,}" for step in found["checkpoints"])
        lines.append(f"checkpoints of steps {steps}: {size(found['checkpoint_bytes'])}")
    if found["state"] == "stopped":
        lines.append("the same train command goes on from the newest checkpoint")
    return "\n".join(lines)


def _scores_text(scores: dict[str, Any]) -> str:
    parts = [f"PSNR {_number(scores, 'psnr', '.2f')} dB (nearest input {_number(scores, 'nearest', '.2f')})"]
    if scores.get("lpips") is not None:
        nearest = _number(scores, "nearest_lpips", ".3f")
        parts.append(f"LPIPS {_number(scores, 'lpips', '.3f')} (nearest input {nearest}; lower is better)")
    return ", ".join([*parts, f"SSIM {_number(scores, 'ssim', '.3f')}"])


def _number(scores: dict[str, Any], name: str, form: str) -> str:
    value = scores.get(name)
    return format(value, form) if isinstance(value, int | float) else "–"


# ---- verify


@dataclass(frozen=True)
class TrainReport:
    """Result of `verify`. problems: a line each; empty is good. says: what was looked at."""

    problems: list[str]
    says: str

    def line(self) -> str:
        """Verdict in one line."""
        return f"{f'{len(self.problems)} problems' if self.problems else 'ok'}: {self.says}"


def verify(folder: Path) -> TrainReport:
    """Check a training run: each checkpoint by its checksums, its log for gaps and doubles, its pictures.

    Raises UserError as `read` does.
    """
    run = read(folder)
    problems = [problem for step, _ in run.checkpoints if (problem := _damage(folder, step))]
    steps = [step for step, *_ in run.log.curve]
    for before, after in itertools.pairwise(steps):
        if after != before + 1:
            problems.append(f"{LOG}: step {after} follows step {before}")
    if steps and steps[0] != 1:
        problems.append(f"{LOG}: begins with step {steps[0]}")
    if run.checkpoints and (newest := run.checkpoints[-1][0]) > run.log.step:
        problems.append(f"{LOG}: ends with step {run.log.step}, before the checkpoint of step {newest}")
    pictures = strips(folder)
    for path in pictures.values():
        try:
            images.decode(path.read_bytes())
        except OSError as error:
            problems.append(f"{path.name}: {error}")
    taken = size(sum(count for _, count in run.checkpoints))
    says = f"{len(run.checkpoints)} checkpoints ({taken}), {len(steps):,} steps, {len(pictures)} pictures"
    return TrainReport(problems, says)


def _damage(folder: Path, step: int) -> str:
    """Return what is wrong with a checkpoint's files, "" if nothing is: a .pt is a zip archive, with a CRC-32 for each tensor."""
    path = folder / CHECKPOINTS / f"step-{step:08d}.pt"
    try:
        facts = json.loads(path.with_suffix(".json").read_text())
        if facts["step"] != step:
            return f"{path.stem}.json: says step {facts['step']}"
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                return f"{path.name}: {bad} is damaged"
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, NotImplementedError) as error:
        return f"{path.name}: {error}"
    return ""


# ---- page


def write_training_page(folders: Sequence[Path], out: Path) -> Path:
    """Write the page of a training run, or of several beside each other: curves, baselines, pictures. Returns `out`.

    Raises UserError: a folder is no training run, there are more than MOST_RUNS, the page cannot be written.
    """
    if len(folders) > MOST_RUNS:
        raise UserError(f"{len(folders)} runs are too many for one page", f"{MOST_RUNS} at most")
    runs = [read(folder) for folder in folders]
    names = _names(folders)
    title = " and ".join(names)
    lead = "\n".join(status_text(status(run)) for run in runs)
    sections = [*_held_out(runs, names), *_curves(runs, names), *_pictures(runs, names), _settings(runs, names)]
    return write_page(out, f"Training: {title}", lead, sections)


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of the paths, as many as tell the folders apart."""
    parts = [folder.absolute().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{folders[0]} is given twice", "give each run once")


def _held_out(runs: Sequence[TrainRun], names: Sequence[str]) -> list[Section]:
    """PSNR and LPIPS of held-out objects over steps, beside what needs no model."""
    if not any(run.log.evaluations for run in runs):
        return [Section("Held-out objects", "Not measured yet.")]
    if len(runs) == 1:
        psnr = {says: _over_steps(runs[0], name) for name, says in SCORES.items()}
        lpips = {"model": _over_steps(runs[0], "lpips"), "nearest input": _over_steps(runs[0], "nearest_lpips")}
    else:
        psnr, lpips = (
            {name: _over_steps(run, of) for name, run in zip(names, runs, strict=True)} for of in ("psnr", "lpips")
        )
    told = (
        "Objects that never train. PSNR in dB, higher is better; LPIPS, lower is better. "
        "The inputs themselves are the baselines: a model that is no better than the nearest input has learned little."
    )
    plots: list[Block] = [
        Plot(kept, "steps", label)
        for label, series in (("PSNR, dB", psnr), ("LPIPS", lpips))
        if (kept := {name: line for name, line in series.items() if line})
    ]
    header = ["", "step", "PSNR, dB", "nearest input, dB", "SSIM", "LPIPS", "nearest input, LPIPS"]
    forms = {"psnr": ".2f", "nearest": ".2f", "ssim": ".3f", "lpips": ".3f", "nearest_lpips": ".3f"}
    rows = []
    for name, run in zip(names, runs, strict=True):
        if run.scores:
            rows.append(
                [name, f"{run.scores['step']:,}", *(_number(run.scores, of, form) for of, form in forms.items())]
            )
    return [Section("Held-out objects", told, [Table(header, rows), *plots])]


def _over_steps(run: TrainRun, name: str) -> list[tuple[float, float]]:
    pairs = [(float(step), scores.get(name)) for step, scores in run.log.evaluations]
    return [(step, float(value)) for step, value in pairs if isinstance(value, int | float) and math.isfinite(value)]


def _curves(runs: Sequence[TrainRun], names: Sequence[str]) -> list[Section]:
    """Loss and gradient over steps, and which steps were skipped."""

    def plot(points: Callable[[TrainingLog], Sequence[tuple[int, float]]], label: str) -> list[Block]:
        """Plot a curve of each run that has one."""
        series, widths = {}, []
        for name, run in zip(names, runs, strict=True):
            steps, means, width = smooth(points(run.log))
            if len(steps) > 1:
                series[name] = list(zip(steps, means, strict=True))
                widths.append(width)
        mean = f", means of up to {max(widths):,} steps" if widths and max(widths) > 1 else ""
        return [Plot(series, "steps", f"{label}{mean}", dots=False)] if series else []

    skipped = [
        f"{name}: {len(run.log.skipped):,} steps were skipped, the last of them step {run.log.skipped[-1]:,}."
        for name, run in zip(names, runs, strict=True)
        if run.log.skipped
    ]
    blocks = plot(lambda log: [(step, loss) for step, loss, *_ in log.curve], "loss")
    blocks += plot(lambda log: log.norms, "norm of the gradient")
    return [Section("Training", "\n".join(skipped or ["No step was skipped."]), blocks)] if blocks else []


def _pictures(runs: Sequence[TrainRun], names: Sequence[str]) -> list[Section]:
    """Renderings of held-out objects over time; of several runs the newest of each."""
    figures = []
    for name, run in zip(names, runs, strict=True):
        found = strips(run.folder)
        steps = sorted(found)
        count = STRIPS if len(runs) == 1 else 1
        chosen = [steps[round(i * (len(steps) - 1) / max(1, count - 1))] for i in range(count)] if steps else []
        for step in dict.fromkeys(reversed(chosen if count > 1 else steps[-1:])):
            figures.append(Figure(found[step], f"{name}, step {step:,}" if len(runs) > 1 else f"step {step:,}"))
    told = "Each row is a held-out object: its inputs, then true pictures, each with its rendering beside it. Newest first."
    return [Section("Pictures", told, figures)] if figures else []


def _settings(runs: Sequence[TrainRun], names: Sequence[str]) -> Section:
    """Settings; of several runs those that differ."""
    flat = [_flat(run.settings) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    if len(runs) > 1:
        keys = [key for key in keys if len({str(one.get(key)) for one in flat}) > 1]
    rows = [[key, *(str(one.get(key, "")) for one in flat)] for key in keys]
    spent = "\n".join(
        f"{name}: {duration(run.log.seconds)} of training, of it {run.log.waited / (run.log.seconds or 1):.0%} waiting for data."
        for name, run in zip(names, runs, strict=True)
    )
    differ = "Only settings that differ." if rows else "All settings are the same."
    told = f"{spent}\n{differ}" if len(runs) > 1 else spent
    return Section("Settings", told, [Table(["", *names], rows)] if rows else [])


def _flat(settings: dict[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return found
