"""Section of the page for a cycle: training, pace of rendering and training, shards, disk. Inline SVG, no script."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core import images
from pipeline.core.text import duration, duration_words, size
from pipeline.cycle import disk_log
from pipeline.cycle.disk_log import Note
from pipeline.cycle.protocol import TRAIN
from pipeline.cycle.snapshot import Snapshot, Throughput, rate, take_snapshot, who_waits
from pipeline.report.charts import Line, Panel, panels, smooth, unit_of
from pipeline.report.markup import render
from pipeline.storage.ledger import Ledger
from pipeline.storage.train_run import SETTINGS, TrainingLog, strips

STEEP = 8  # losses that span more than this factor get a logarithmic axis
LOW = 4  # the budget is drawn if at least 1/LOW of it was used
STRIP_WIDTH, STRIP_BYTES, STRIP_QUALITY = 1400, 600_000, 88  # a strip within these is embedded unchanged
FLAG = re.compile(r"(--[a-z.-]*[a-z])")  # options in a command
STRIP_TARGETS = 3  # most targets shown of each object


@dataclass(frozen=True)
class Story:
    """State and history of a cycle. strip: newest picture of held-out objects for the page, if any."""

    snapshot: Snapshot
    log: TrainingLog
    notes: list[Note]
    strip: dict[str, Any] | None


def read_story(run: Path, ledger: Ledger, log: TrainingLog | None) -> Story | None:
    """Read the story of a cycle; None if the run is no cycle. log: the training log if already read; None: read here."""
    log = log or TrainingLog(run / TRAIN).read()
    found = take_snapshot(run, ledger, log)
    return Story(found, log, disk_log.read(run), _strip(run)) if found else None


def section(story: Story) -> Any:
    """Markup of the cycle's section of the page."""
    now = story.snapshot
    says, do = who_waits(now.pace)
    disk, far = _disk(story.notes)
    return render(
        "cycle.html",
        figures=_figures(now),
        says=says[0].upper() + says[1:],
        do=FLAG.split(do[0].upper() + do[1:]) if do else [],
        trained=now.pace.trainer_s,
        others=now.others,
        shards=_shards(now),
        training=_training(story.log),
        strip=story.strip,
        disk=disk,
        far=far,
    )


def _figures(now: Snapshot) -> list[tuple[str, str, str]]:
    pace = now.pace
    unseen = ("Unseen objects", "–", f"{now.held_out:,} held out; no look at them yet")
    if now.unseen:
        step, psnr, nearest = (now.unseen[name] for name in ("step", "psnr", "nearest"))
        better = f"nearest view {nearest:.2f} ({psnr - nearest:+.2f})"
        unseen = (
            "Unseen objects",
            f"{psnr:.2f} dB",
            f"PSNR after {step:,.0f} steps; {better}; {now.held_out:,} held out",
        )
    loss = "" if now.loss is None else f"loss {now.loss:.4f}; "
    left = f"; about {duration_words(now.left_s)} left" if now.left_s else ""
    return [
        (
            "Training",
            f"step {now.step:,}",
            f"{loss}{now.samples:,} of {now.samples_due:,} samples of the shards so far{left}",
        ),
        unseen,
        ("Rendering makes", rate(pace.made_per_s), _recipe(pace)),
        ("Training takes", rate(pace.samples_per_s), "while it has data"),
        (
            "Trainer idle for data",
            f"{pace.idle:.0%}",
            f"{duration_words(pace.waited_s)} of {duration_words(pace.trainer_s)}",
        ),
        (
            "Rendering idle for disk",
            f"{pace.blocked:.0%}",
            f"{duration_words(pace.blocked_s)} of {duration_words(pace.rendering_s)}",
        ),
        (
            "Disk",
            size(now.disk_bytes),
            f"{size(now.disk_peak)} at most" + (f", of {size(now.budget)}" if now.budget else ""),
        ),
        (
            "Objects of the shards",
            f"{now.on_disk_objects + now.deleted_objects:,}",
            f"{now.on_disk_objects:,} on disk + {now.deleted_objects:,} trained on and deleted",
        ),
    ]


def _recipe(pace: Throughput) -> str:
    if not pace.objects_per_s or not pace.passes:
        return "not known before the first shard"
    return f"{pace.objects_per_s:.3g} objects/s × {pace.passes:.3g} passes, while it has disk"


def _shards(now: Snapshot) -> list[tuple[str, str, int]]:
    """(look, name, number of shards) of each part of the bar."""
    return [
        ("soft", "trained and deleted", now.deleted),
        ("good", "on disk", now.on_disk),
        ("other", "filling", now.filling),
        ("rest", "to come, about" if now.to_come else "to come", now.to_come or 0),
    ]


def _training(log: TrainingLog) -> Any:
    """Markup of loss, and of PSNR at held-out objects, over steps; "" while there is nothing to draw."""
    some = []
    steps, losses, width = smooth([(step, loss) for step, loss, *_ in log.curve])
    if len(steps) > 1:
        steep = min(losses) > 0 and max(losses) > STEEP * min(losses)
        title = f"loss, mean of {width:,} steps" if width > 1 else "loss"
        some.append(Panel(title, [Line(title, list(zip(steps, losses, strict=True)), "third")], steep=steep))
    looks = {
        name: [(float(step), float(scores[name])) for step, scores in log.evaluations if scores.get(name) is not None]
        for name in ("psnr", "nearest")
    }
    if looks["psnr"]:
        lines = [Line("PSNR at unseen objects", looks["psnr"], dots=True)]
        if looks["nearest"]:
            lines.append(Line("nearest view, which needs no model", looks["nearest"], "other", dots=True))
        some.append(Panel("PSNR (dB)", lines))
    return panels(some, float(max(log.step, 1)), "steps") if some else ""


def _disk(notes: Sequence[Note]) -> tuple[Any, str]:
    """Markup of disk bytes over working time, pauses between sessions cut out; and the budget if it lies far above, else ""."""
    parts = disk_log.sessions(notes)
    at, pauses, now = [], [], 0.0
    for number, session in enumerate(parts):
        if number:
            pauses.append((now, f"pause of {duration(max(0.0, session[0].when - parts[number - 1][-1].when))}"))
        at += [now + note.when - session[0].when for note in session]
        now = at[-1]
    total = now
    if total <= 0:
        return "", ""
    unit, unit_s = unit_of(total)
    most, budget = max(note.most for note in notes), notes[-1].budget
    scale, word = next(
        (s, w) for s, w in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if most >= s or w == "kB"
    )
    x = [each / unit_s for each in at]
    kinds = [
        ("all, at most", "most", "good"),
        ("of it shards", "shards", "other"),
        ("checkpoints", "checkpoints", "third"),
    ]
    near = LOW * most >= budget
    kinds += [("budget", "budget", "limit")] if near else []
    lines = [
        Line(
            name,
            [(when, getattr(note, of) / scale) for when, note in zip(x, notes, strict=True)],
            look,
            area=of == "most",
        )
        for name, of, look in kinds
    ]
    marks = [(when / unit_s, says) for when, says in pauses]
    picture = panels([Panel(f"disk ({word})", lines, low=0.0)], total / unit_s, f"working time ({unit})", marks)
    return picture, "" if near else size(budget)


# ---- what the model renders


def _strip(run: Path) -> dict[str, Any] | None:
    """Step, data URI, inputs and targets of the newest strip that is whole: the trainer may be writing one. None without any."""
    found = strips(run / TRAIN)
    for step in sorted(found, reverse=True):
        with contextlib.suppress(OSError):
            return {"step": step, "source": _embedded(found[step].read_bytes())} | _views(run)
    return None


def _views(run: Path) -> dict[str, int]:
    """Inputs and targets of a row of the strip, from the trainer's settings; 0 if they cannot be read."""
    try:
        settings = json.loads((run / TRAIN / SETTINGS).read_text())
        return {"inputs": int(settings["data"]["inputs"]), "targets": min(STRIP_TARGETS, int(settings["eval_targets"]))}
    except (OSError, ValueError, KeyError, TypeError):
        return {"inputs": 0, "targets": 0}


def _embedded(png: bytes) -> str:
    """Data URI of a PNG; a large picture is shrunk and re-encoded as JPEG. Raises OSError if the PNG is not whole."""
    pixels = images.decode(png)
    height, width = pixels.shape[:2]
    if width <= STRIP_WIDTH and len(png) <= STRIP_BYTES:
        return f"data:image/png;base64,{base64.b64encode(png).decode()}"
    if width > STRIP_WIDTH:
        pixels = images.shrink(pixels, (max(1, round(height * STRIP_WIDTH / width)), STRIP_WIDTH))
    return f"data:image/jpeg;base64,{base64.b64encode(images.encode_jpeg(pixels, STRIP_QUALITY)).decode()}"
