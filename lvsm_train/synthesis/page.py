"""Page of new views: the film, the photos that the model saw, the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lvsm_train.evaluation.scores import enlarged
from lvsm_train.synthesis import stage
from lvsm_train.synthesis.album import Pictures
from lvsm_train.synthesis.plan import Plan
from pipeline.core import images
from pipeline.report.findings import Figure, Section, Table, write_page

SHOWN = 24  # pictures, at most
COLUMNS = 6
LEAST = 128  # pixels of width; narrower pictures are enlarged


def write(made: Plan, facts: dict[str, Any], psnr: Sequence[float], folder: Path) -> Path:
    """Write index.html into a folder that has `pictures` and, of more than one, film.mp4."""
    height, width = made.hw
    route = made.route if made.truth is None else "where other photos were taken"
    lead = (
        f"{len(made.c2w)} new views of {width}x{height} pixels ({route}), out of {len(made.inputs)} of {len(made.album)} "
        "photos.\n"
        f"Step {facts['step']} of {facts['run']}."
    )
    return write_page(
        folder / "index.html", f"New views of {made.album.name}", lead, _sections(made, facts, psnr, folder)
    )


def _sections(made: Plan, facts: dict[str, Any], psnr: Sequence[float], folder: Path) -> list[Section]:
    speed = Table(
        ["", "ms to read the inputs", "views/s after that"],
        [[facts["device"], f"{facts['encode_ms']:.3g}", f"{facts['views_per_s']:.3g}"]],
    )
    sections = [Section("Warnings", "\n".join(made.warnings))] if made.warnings else []
    if (folder / "film.mp4").is_file():
        sections.append(Section("Film", "", [Figure(folder / "film.mp4")]))
    names = ", ".join(made.album.posed.name(view) for view in made.inputs)
    sections.append(Section("What the model saw", f"Chosen {made.choice}: {names}", [_sheet(list(made.shown.image))]))
    sections.append(_pictures(folder, made.truth, psnr))
    return [*sections, Section("Speed", "", [speed])]


def _pictures(folder: Path, truth: Pictures | None, psnr: Sequence[float]) -> Section:
    files = sorted((folder / "pictures").iterdir())
    some = stage.even(len(files), min(len(files), SHOWN))
    made = [images.decode(files[number].read_bytes()) for number in some]
    text = f"{len(some)} of {len(files)}, evenly spread; cameras.json has the cameras of all."
    if truth is None:
        return Section("Pictures", text, [_sheet(made)])
    pairs = [one for number, view in zip(some, made, strict=True) for one in (truth.image[number], view)]
    compared = (
        f"Photo, then new view, in turn; PSNR {np.mean(psnr):.2f} dB on average, {min(psnr):.2f} to {max(psnr):.2f} dB."
    )
    return Section("Beside the photos", f"{text}\n{compared}", [_sheet(pairs)])


def _sheet(pictures: Sequence[np.ndarray]) -> Figure:
    """Contact sheet of equally large pictures (H, W, 3)."""
    large = [enlarged(one, LEAST) for one in pictures]
    rows = [large[at : at + COLUMNS] for at in range(0, len(large), COLUMNS)]
    return Figure(images.encode_png(images.contact_sheet(rows)))
