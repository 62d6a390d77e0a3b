"""Page of an evaluation: the model beside the baselines, the worst, median and best objects, controls, films."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from lvsm_train.data.batches import Batch
from lvsm_train.data.samples import Sample
from lvsm_train.evaluation.assessment import NAMES, Assessment, table
from lvsm_train.evaluation.scores import BASELINES, enlarged, strip_row
from pipeline.core import images
from pipeline.core.text import counted
from pipeline.report.charts import Plot
from pipeline.report.findings import Figure, Section, Table, write_page

Show = Callable[[Sample], tuple[Batch, torch.Tensor]]
EACH = 3  # at most, of the objects shown as worst, as median and as best
LEAST = 128  # pixels of width; narrower views are enlarged
LINES = 200  # most rows of the table of objects


def write(found: Assessment, show: Show, path: Path) -> Path:
    """Write the page. show: a sample -> its batch of one, and the model's renderings (1, T, 3, H, W)."""
    facts = found.facts
    lead = (
        f"{facts['says']}: {facts['objects']} objects, {facts['images']} images of {facts['height_width'][1]}x"
        f"{facts['height_width'][0]} pixels.\n{facts['kind']}{' with PRoPE' if facts['prope'] else ''}{found.of_step(', ')} of "
        f"{facts['run']}.\nObjects of {', '.join(facts['data'])} ({facts['split']})."
    )
    sections = [
        _summary(found),
        _strips(found, show),
        *_films(found),
        *_time(found),
        *_controls(found),
        *_by_inputs(found),
        _objects(found),
    ]
    return write_page(path, f"Evaluation: {facts['protocol']}", lead, sections)


def _summary(found: Assessment) -> Section:
    scores, over_objects = found.images.scores(), found.images.over_objects()
    over = {"model": over_objects.psnr} | {NAMES[name]: over_objects.of(name, "psnr") for name in BASELINES}
    rows = [
        [
            name,
            _db(values["psnr"]),
            _db(over[name]),
            _db(scores.foreground_psnr) if name == "model" else "",
            *(_index(values.get(metric)) for metric in ("ssim", "lpips")),
        ]
        for name, values in table(scores).items()
    ]
    header = ["", "PSNR, dB", "over objects", "foreground", "SSIM", "LPIPS"]
    speed, facts = found.speed(), found.facts
    rates = [f"{float(f'{speed[name]:.3g}'):,g}" for name in ("encode_ms", "ms_per_view", "fps", "rays_per_s")]
    speeds = Table(["", "ms per object", "ms per view", "views/s", "rays/s"], [[facts["device"], *rates]])
    text = [
        "Means over images, as papers give them; the second column: over objects. LPIPS: lower is better.",
        f"Speed: {counted(facts['batch'], 'object')} at a time{' in bf16' if facts['bf16'] else ''}; "
        "inputs are read once per object, then views are rendered.",
        *found.left_out(),
        *found.notes,
    ]
    return Section("Summary", "\n".join(text), [Table(header, rows), speeds])


def _controls(found: Assessment) -> list[Section]:
    if not found.controls:
        return []
    rows = [[one.says, one.expected, _db(one.plain), _db(one.changed), one.gain] for one in found.controls]
    text = (
        "What the score does if one thing is changed, beside what it does for a model that uses its inputs and cameras."
    )
    return [Section("Controls", text, [Table(["", "expected", "PSNR, dB", "changed", "difference"], rows)])]


def _by_inputs(found: Assessment) -> list[Section]:
    if not found.by_inputs:
        return []
    names = {"psnr": "model", "nearest": "nearest input", "best_input": "best input"}
    series = {
        says: [(float(count), getattr(scores, name)) for count, scores in found.by_inputs.items()]
        for name, says in names.items()
    }
    finite = {says: line for says, line in series.items() if np.isfinite(line).all()}
    if not finite:
        return []
    plot = Plot(finite, "inputs", "PSNR, dB", "The same targets for all, none of which is an input.")
    return [Section("Number of inputs", "", [plot])]


def _strips(found: Assessment, show: Show) -> Section:
    ranked = found.ranked()
    each = min(EACH, max(1, len(ranked) // 3))
    middle = len(ranked) // 2 - each // 2
    places = {"Worst": ranked[:each], "Median": ranked[middle : middle + each], "Best": ranked[-each:][::-1]}
    sample_of = {sample.uid: sample for sample in found.samples}
    scores = found.images.by_object()
    figures, seen = [], set()
    for name, uids in places.items():
        for uid in uids:
            if uid in seen:
                continue
            seen.add(uid)
            caption = f"{name}: {uid}, PSNR {scores[uid].psnr:.2f} dB, nearest input {scores[uid].nearest:.2f} dB"
            figures.append(Figure(_strip(*show(sample_of[uid])), caption))
    return Section("Objects", "Inputs, then target and rendering in turn.", figures)


def _strip(batch: Batch, made: torch.Tensor) -> bytes:
    inputs = batch.image.shape[1]
    views = [enlarged(view, LEAST) for view in strip_row(batch, made, 0)]
    left, right = (images.contact_sheet([part]) for part in (views[:inputs], views[inputs:]))
    apart = np.full((len(left), 16, 3), 128, np.uint8)
    return images.encode_png(np.concatenate([left, apart, right], 1))


def _films(found: Assessment) -> list[Section]:
    if not found.films:
        return []
    scores = found.images.by_object()
    figures = [Figure(path, f"{uid}, PSNR {scores[uid].psnr:.2f} dB") for uid, path in found.films.items()]
    return [Section("Novel views", "Renderings along a path of cameras that nobody has pictures of.", figures)]


def _time(found: Assessment) -> list[Section]:
    if not found.distances:
        return []
    names = {"model": "model", "nearest": "nearest input", "blend": "blend of neighbours"}
    names |= {} if found.distances[0].static is None else {"static": "static model"}
    header = ["distance in time, up to", "images", *(f"{says}, dB" for says in names.values())]
    rows = [[f"{row.most:.3f}", row.images, *(_db(getattr(row, name)) for name in names)] for row in found.distances]
    series = {says: [(row.most, getattr(row, name)) for row in found.distances] for name, says in names.items()}
    text = (
        "PSNR by how far a target's time is from that of the nearest input, as a share of the object's whole time.\n"
        "Nearest input: in place and time. Blend of neighbours: the nearest inputs before and after, linearly in time."
    )
    plot = [Plot(series, "distance in time", "PSNR, dB", "")] if len(found.distances) > 1 else []
    return [
        Section("Time", text, [Table(header, rows), *plot, *(Figure(path, says) for says, path in found.time_films)])
    ]


def _objects(found: Assessment) -> Section:
    rows: Sequence[Sequence[object]] = [
        [
            row["uid"],
            _db(row["psnr"]),
            _db(row["foreground_psnr"]),
            f"{row['ssim']:.3f}",
            _index(row["lpips"]),
            *(_db(row[name]) for name in BASELINES),
        ]
        for row in map({row["uid"]: row for row in found.rows()}.__getitem__, found.ranked())
    ]
    text = f"The {min(LINES, len(rows))} worst of {len(rows)}; all are in objects.csv." if len(rows) > LINES else ""
    header = ["", "PSNR, dB", "foreground", "SSIM", "LPIPS", *(NAMES[name] for name in BASELINES)]
    return Section("All objects", text, [Table(header, rows[:LINES])])


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _index(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
