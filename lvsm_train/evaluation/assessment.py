"""Results of an evaluation: scores of every object, speed, controls, films; as lines of text, as JSON, as a table."""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvsm_train.data.samples import Sample
from lvsm_train.evaluation.instants import Distance
from lvsm_train.evaluation.scores import BASELINES, ImageScores, Scores, finite
from lvsm_train.evaluation.stopwatch import Lap
from pipeline.core.text import counted

NAMES = {"nearest": "nearest input", "best_input": "best input", "mean": "mean of inputs", "white": "white"}
METRICS = ("psnr", "ssim", "lpips")


@dataclass(frozen=True)
class Control:
    """A control. says: what was changed. plain, changed: mean PSNR in dB over one set of images, without and with the change.
    expected: what a model that uses its inputs and cameras does then.
    """

    says: str
    plain: float
    changed: float
    expected: str = ""

    @property
    def difference(self) -> float:
        return self.changed - self.plain

    @property
    def gain(self) -> str:
        """Format `difference` with sign and two digits; never -0.00."""
        return f"{round(self.difference, 2) + 0.0:+.2f}"


@dataclass(frozen=True)
class Assessment:
    """Results of an evaluation.

    out: the folder of the written files. facts: about the run and the protocol. laps: uid -> time of its batch. by_inputs:
    number of inputs -> scores, of one set of targets for all. films: uid -> file. distances: of objects that move, scores by the
    distance in time. time_films: (what is seen, file) of one of these. notes: lines that a user should read.
    """

    out: Path
    facts: dict[str, Any]
    samples: list[Sample]
    images: ImageScores
    laps: dict[str, Lap]
    controls: list[Control] = field(default_factory=list)
    by_inputs: dict[int, Scores] = field(default_factory=dict)
    films: dict[str, Path] = field(default_factory=dict)
    distances: list[Distance] = field(default_factory=list)
    time_films: list[tuple[str, Path]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        """Rows of objects.csv, one per object: mean scores over the object's images, and the speed of the object's batch."""
        return [
            {"uid": uid} | dataclasses.asdict(scores) | self.laps[uid].rates()
            for uid, scores in self.images.by_object().items()
        ]

    def speed(self) -> dict[str, float]:
        """Rates (`Lap.rates`) over all batches; a batch of several objects counts once."""
        each = {id(lap): lap for lap in self.laps.values()}
        return functools.reduce(Lap.__add__, each.values()).rates()

    def ranked(self) -> list[str]:
        """Uids by the mean PSNR of their images, NaN first, then from worst to best."""
        psnrs = {uid: scores.psnr for uid, scores in self.images.by_object().items()}
        return sorted(psnrs, key=lambda uid: (not math.isnan(psnrs[uid]), psnrs[uid], uid))

    def lines(self) -> list[str]:
        """Lines of text for the terminal: scores of model and baselines, speed, controls, notes."""
        scores, speed, facts = self.images.scores(), self.speed(), self.facts
        report = [
            f"{facts['protocol']}: {facts['says']}",
            f"{facts['objects']} objects, {facts['images']} images{self.of_step(', ')}; means over images:",
        ]
        for name, values in table(scores).items():
            beside = [f"  {metric.upper()} {value:.3f}" for metric, value in values.items() if metric != "psnr"]
            foreground = f"  foreground {scores.foreground_psnr:.2f} dB" if name == "model" else ""
            report.append(f"  {name:<15}PSNR {values['psnr']:6.2f} dB{''.join(beside)}{foreground}")
        report.append(f"mean over objects: PSNR {self.images.over_objects().psnr:.2f} dB")
        report += self.left_out()
        report.append(
            f"{speed['ms_per_view']:.3g} ms per view ({speed['fps']:.3g} a second, {speed['rays_per_s']:.3g} rays/s) and "
            f"{speed['encode_ms']:.3g} ms per object for its inputs, {facts['batch']} objects at a time, on {facts['device']}"
        )
        report += [f"{one.says}: {one.changed:.2f} dB ({one.gain} dB)" for one in self.controls]
        if self.by_inputs:
            each = ", ".join(f"{count}: {found.psnr:.2f}" for count, found in self.by_inputs.items())
            report.append(f"PSNR by number of inputs, in dB: {each}")
        for row in self.distances:
            others = f"nearest {row.nearest:.2f}, blend of neighbours {row.blend:.2f}"
            others += "" if row.static is None else f", static model {row.static:.2f}"
            others += f"; {counted(row.images, 'image')}"
            report.append(f"up to {row.most:.3f} of the time from an input: {row.model:.2f} dB ({others})")
        return report + self.notes

    def of_step(self, before: str) -> str:
        """Words for the model's step, after `before`; "" where it is not known."""
        return f"{before}step {self.facts['step']}" if self.facts["step"] else ""

    def left_out(self) -> list[str]:
        """Lines of text that say how many images are left out of the mean PSNRs, and why."""
        scores = self.images.scores()
        report = []
        if scores.equal:
            report.append(f"{scores.equal} renderings are their target, to the bit: their PSNR, inf, is in no mean")
        if scores.blank:
            report.append(f"{scores.blank} targets are blank: they have no foreground PSNR")
        return report

    def as_json(self) -> dict[str, Any]:
        """JSON values of summary.json: everything but the rows of objects.csv. inf and NaN become null."""
        report = {
            "facts": self.facts,
            "means_over_images": dataclasses.asdict(self.images.scores()),
            "means_over_objects": dataclasses.asdict(self.images.over_objects()),
            "speed": self.speed(),
            "controls": [dataclasses.asdict(one) | {"difference": one.difference} for one in self.controls],
            "by_inputs": {str(count): dataclasses.asdict(scores) for count, scores in self.by_inputs.items()},
            "films": {uid: path.name for uid, path in self.films.items()},
            "distances_in_time": [dataclasses.asdict(row) for row in self.distances],
            "time_films": {says: path.name for says, path in self.time_films},
            "notes": self.notes,
        }
        return dict(finite(report))


def table(scores: Scores) -> dict[str, dict[str, float]]:
    """Scores of the model and of what needs none: name for people -> psnr, ssim, lpips, as far as they were measured."""
    model = {metric: getattr(scores, metric) for metric in METRICS}
    rows = {"model": model} | {NAMES[one]: {metric: scores.of(one, metric) for metric in METRICS} for one in BASELINES}
    return {name: {metric: value for metric, value in row.items() if value is not None} for name, row in rows.items()}


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows, which share their keys, as CSV with a header. None, inf and NaN become empty cells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(finite(row) for row in rows)
    return path
