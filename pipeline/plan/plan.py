"""The verb plan: forecast of a cycle's time, disk and steps, with ranges, from a pilot; and comparison with the real figures."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.cycle import AnyPlan, Shares
from pipeline.core.disk import write_json
from pipeline.core.errors import UserError
from pipeline.core.text import duration, reasons_text, shown, size
from pipeline.cycle import disk_log
from pipeline.cycle.protocol import TRAIN
from pipeline.plan.forecast import Forecast, Range
from pipeline.plan.pilot import run_pilot
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import IDENTITY, identity_of, is_locked
from pipeline.storage.train_run import TrainingLog
from pipeline.worker.worker import Lacks

PLAN = "plan.json"
TRAINED = (
    "model",
    "loss",
    "optim",
    "accumulate",
    "global_batch",
    "ranks",
    "ray_workers",
    "precision",
    "device",
    "eval_every",
)
WORDS = {  # figure -> label for the user
    "yield_share": "yield",
    "objects_drawn": "objects drawn",
    "download_hours": "downloads",
    "render_hours": "rendering",
    "train_hours": "training",
    "look_hours": "looks at unseen objects",
    "hours": "the whole",
    "downloaded_gb": "downloaded",
    "shards_gb": "shards in all",
    "peak_disk_gb": "peak disk",
    "passes": "passes",
    "samples": "samples",
    "steps": "steps",
}


@dataclass(frozen=True)
class Plan:
    """Contents of OUT/plan.json. identity, training: settings of the planned cycle. pilot: facts about the pilot."""

    identity: dict[str, Any]
    training: dict[str, Any]
    figures: dict[str, Range]
    bottleneck: str
    shard_objects: int
    window: int
    workers: int
    budget: float
    licenses: dict[str, int]
    pilot: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """Lines for the user: pilot, figures with ranges, shards, bottleneck, licenses."""
        pilot = self.pilot
        failed = f" ({reasons_text(pilot['reasons'])})" if pilot["reasons"] else ""
        lines = [
            f"pilot: drawn {pilot['drawn']}, delivered {pilot['delivered']}{failed}, {pilot['steps']} steps, "
            f"{duration(pilot['seconds'])}; workers: {self.workers}",
            f"{'':24} {'likely':>10}   90 % between",
        ]
        for name, one in self.figures.items():
            if name == "download_hours" and not one.high:  # nothing is fetched
                continue
            low, likely, high = (_shown(name, value) for value in (one.low, one.likely, one.high))
            lines.append(f"{WORDS[name]:24} {likely:>10}   {low} and {high}")
        lines.append(f"objects per shard: {self.shard_objects}; {self.window} shards are shuffled together")
        lines.append(f"bottleneck: {SAYS[self.bottleneck]}")
        lines.append(f"licenses: {reasons_text(self.licenses)}")
        return lines


SAYS = {
    "downloading": "downloads; more --downloads, a nearer --mirror, more --passes",
    "rendering": "rendering; more --workers, more --passes, fewer --views",
    "training": "training; fewer --passes or another GPU, and fewer --workers do as well",
    "neither": "neither; both sides take as long",
    "either": "cannot be told: the ranges of both sides overlap; a larger --pilot tells more",
}


def _shown(name: str, value: float) -> str:
    """Format a figure for display."""
    if name.endswith("hours"):
        return duration(3600 * value) if value > 1 / 60 else f"{3600 * value:.1f} s"
    if name.endswith("_gb"):
        return size(1e9 * value)
    return f"{value:.0%}" if name.endswith("_share") else f"{value:,.0f}"


def plan(
    cfg: AnyPlan,
    shares: Shares,
    command: Sequence[str],
    settings: dict[str, Any],
    lacks: Lacks | None = None,
) -> Plan:
    """Run the pilot, write OUT/plan.json. command: measures a trainer's throughput, see pilot.py. settings: the trainer's.
    lacks: as of `cycle`.

    Raises UserError: the budget is too small; nothing could be rendered, or trained; a run works in OUT.
    """
    assert cfg.out is not None
    if is_locked(cfg.out):
        raise UserError(f"a run is writing to {shown(cfg.out)}", "plan before it, or with another --out")
    cfg.out.mkdir(parents=True, exist_ok=True)
    found = run_pilot(cfg, cfg.pilot, command, settings, lacks)
    forecast = Forecast(cfg, shares, settings, found)
    pilot = {name: getattr(found, name) for name in ("delivered", "reasons", "seconds", "idle_share")}
    made = Plan(
        cfg.identity(),
        _training(settings),
        forecast.ranges(),
        forecast.bottleneck(),
        forecast.of_each,
        cfg.window,
        found.workers,
        shares.total,
        found.licenses,
        pilot | {"drawn": len(found.drawn), "steps": len(found.step_s)},
    )
    write_json(cfg.out / PLAN, made.as_json())
    return made


def _training(settings: dict[str, Any]) -> dict[str, Any]:
    """Pick the settings of a trainer that a plan depends on."""
    data = {name: settings["data"][name] for name in ("res", "batch", "inputs", "targets")}
    return {name: settings[name] for name in TRAINED} | {"data": data}


def compare(out: Path, real: dict[str, float]) -> list[str]:
    """Lines that compare planned and real figures of the cycle in `out`; [] without a plan of the cycle's settings."""
    try:
        planned = json.loads((out / PLAN).read_text())
        identity = identity_of(out)
        settings = json.loads((out / TRAIN / "train.json").read_text())
    except FileNotFoundError:
        return []
    if planned["identity"] != identity or planned["training"] != _training(settings):
        return []
    lines = []
    for name, one in planned["figures"].items():
        if name in real:
            low, likely, high = (_shown(name, one[part]) for part in ("low", "likely", "high"))
            where = "below" if real[name] < one["low"] else "above" if real[name] > one["high"] else "within"
            lines.append(f"{WORDS[name]}: planned {likely} ({low} to {high}), was {_shown(name, real[name])}: {where}")
    return lines


def real_figures(out: Path) -> dict[str, float]:
    """Real figures of the cycle in `out` so far, by the names of a plan's figures; unknown figures are left out."""
    with Ledger(out / "ledger.sqlite", readonly=True) as ledger:
        ledger.snapshot()
        counts, kept, moments = ledger.counts(), ledger.kept(), [when for when, _, _ in ledger.timeline()]
        busy, workers = ledger.busy()
    log, disk, drawn = TrainingLog(out / TRAIN).read(), disk_log.read(out), sum(counts.values())
    if not drawn:
        return {}
    if (out / PLAN).exists():
        workers = json.loads((out / PLAN).read_text())["workers"]
    moments += [note.when for note in disk]
    if (out / IDENTITY).exists():  # written when the first session began
        moments.append((out / IDENTITY).stat().st_mtime)
    found = {
        "yield_share": counts.get("delivered", 0) / drawn,
        "objects_drawn": float(drawn),
        "render_hours": busy / max(1, workers) / 3600,
        "hours": sum(b - a for a, b in itertools.pairwise(sorted(moments)) if b - a < disk_log.BREAK_S) / 3600,
        "shards_gb": sum(shard.bytes for shard in kept.values()) / 1e9,
        "samples": float(log.samples),
        "steps": float(log.step),
    }
    if steps := [seconds - waited for _, _, seconds, waited, _ in log.curve]:
        # the first step includes start-up: count the median instead
        found["train_hours"] = (sum(steps) - steps[0] + float(np.median(steps))) / 3600
    trained = [shard for name, shard in kept.items() if name.startswith("train")]
    if objects := sum(shard.objects for shard in trained):
        found["passes"] = sum(shard.objects * shard.passes for shard in trained) / objects
    return found | ({"peak_disk_gb": max(max(note.used, note.most) for note in disk) / 1e9} if disk else {})
