"""The verb `latent`: from a run of an encoder_decoder and names of objects to pictures, films, numbers, and one page."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from lvsm_train.config.trained import OPERATIONS, LatentConfig
from lvsm_train.data.batches import Data
from lvsm_train.evaluation.scores import enlarged, pixels
from lvsm_train.latent import atlas, grids, instants, latent_page, latents
from lvsm_train.latent.atlas import Finding
from lvsm_train.latent.latent_page import Report
from lvsm_train.latent.laws import laws
from lvsm_train.latent.operations import EDITS, MIXTURES
from lvsm_train.latent.study import Study, change, measure
from lvsm_train.latent.workbench import Bench, net_with_latents, open_bench
from lvsm_train.losses.metrics import Lpips, load_lpips
from lvsm_train.media.films import LEAST, write_film
from lvsm_train.weights.trained import open_model
from lvsm_train.weights.writers import write_safetensors
from pipeline.core import images

FINDINGS: dict[str, tuple[Callable[[Bench], Finding | None], str]] = {  # and what it needs where it finds nothing
    "influence": (atlas.influences, ""),
    "pca": (atlas.spectrum, "it needs three objects with enough views"),
    "time": (instants.through_time, instants.LACKS),
}
FPS = 12.0  # of films
FILM_VIEWS = 4
LEARNED = 0.2  # of the targets' variance: renders of a model that has learned anything explain more


def explore(cfg: LatentConfig) -> Report:
    """Run the operations of cfg (resolved), and write pictures, films, numbers, tensors and index.html into cfg.out.

    Deterministic for a seed; float32 throughout. Raises UserError for a missing run or checkpoint, another kind of model, objects
    or tokens that do not exist, and broken shards.
    """
    trained = open_model(cfg.run, cfg.step, cfg.device, cfg.preset)
    net_with_latents(trained)  # said before data are looked at
    device = next(trained.net.parameters()).device
    own, patch = trained.data_config(cfg), trained.cfg.model.patch
    with (
        contextlib.closing(Data(own, device=device, patch=patch, temporal=trained.cfg.model.temporal)) as data,
        torch.no_grad(),
    ):
        bench = open_bench(trained, data, cfg)
        lpips, notes = load_lpips(cfg.lpips, cfg.lpips_weights, device)
        report = Report(cfg.out or trained.results("latent"), _facts(bench, lpips), notes=[*trained.notes, *notes])
        report.out.mkdir(parents=True, exist_ok=True)
        _render_objects(bench, report, lpips)
        report.laws = laws(bench)
        for study in _studies(bench, report):
            _save(study, bench, report, lpips)
    told = report.as_json()
    (report.out / "latent.json").write_text(json.dumps(told, indent=1, allow_nan=False))
    about = {"objects": [each["uid"] for each in report.objects], "step": trained.step, "seed": cfg.seed}
    about |= {"pca_objects": told["pca"]["objects"]} if "pca" in told else {}
    write_safetensors(report.tensors, report.out / "latent.safetensors", ("about", json.dumps(about)))
    latent_page.write(report, report.out / "index.html")
    return report


def _facts(bench: Bench, lpips: Lpips | None) -> dict[str, Any]:
    cfg, model = bench.trained.cfg, bench.trained.cfg.model
    return {
        "run": str(bench.trained.run),
        "step": bench.trained.step,
        "prope": model.prope,
        "latents": model.latents,
        "dim": model.dim,
        "inputs": cfg.data.inputs,
        "height_width": list(bench.data.hw),
        "seed": bench.cfg.seed,
        "tokens": bench.chosen(bench.subjects[0]).tolist(),
        "lpips": lpips.says if lpips else None,
        "frames_apart": bench.frame_difference(),
        "device": str(bench.data.device),
    }


def _render_objects(bench: Bench, report: Report, lpips: Lpips | None) -> None:
    """Write inputs, targets and unedited renders of each object, and record how far renders are from targets.

    Adds a note where renders tell no more of the targets than their mean colours do.
    """
    renders = [subject.render(bench.net) for subject in bench.subjects]
    for number, (subject, render) in enumerate(zip(bench.subjects, renders, strict=True), 1):
        name = f"object-{number}.png"
        rows = [("inputs", subject.inputs), ("targets", subject.target), ("rendered", render)]
        _write(report.out / name, grids.sheet(rows))
        to_target = change(render, subject.target, lpips)
        report.objects.append({"uid": subject.uid, "picture": name, "to_target": to_target})
        mine = {"tokens": subject.scene.tokens, "direction": latents.direction(subject.scene.tokens)}
        mine |= {"frame": subject.scene.frame, "c2w": subject.c2w, "fxfycxcy": subject.fxfycxcy, "render": render}
        report.tensors |= {f"object-{number}/{part}": values for part, values in mine.items()}
    share = explained(renders, [subject.target for subject in bench.subjects])
    if share < LEARNED:
        report.notes.append(
            f"renders explain {max(0.0, share):.0%} of how the targets' pixels differ: this model has learned next to "
            "nothing, and what is true by construction is true of any model; train longer before reading the rest"
        )


def explained(renders: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> float:
    """Share of the targets' variance that renders explain: 1 if they are equal, 0 or less if the mean colour of each picture
    would do as well. renders, targets: each (T, 3, H, W)."""
    error = sum(float((render - target).square().mean()) for render, target in zip(renders, targets, strict=True))
    variance = sum(float(target.var((-2, -1), correction=0).mean()) for target in targets)
    return 1 - error / max(variance, 1e-12)


def _studies(bench: Bench, report: Report) -> Iterator[Study]:
    """Yield the studies of cfg's operations, in the order of OPERATIONS."""
    usual = [name for name in OPERATIONS if name != "time" or bench.trained.cfg.model.temporal]
    wanted = [name for name in OPERATIONS if name in (bench.cfg.only or usual)]
    console = Console(stderr=True)
    for name in track(wanted, "operations", console=console, disable=not console.is_terminal, transient=True):
        if name in EDITS:
            yield from itertools.chain.from_iterable(EDITS[name](bench, subject) for subject in bench.subjects)
        elif name in MIXTURES:
            yield from _mixtures(name, bench, report)
        else:
            yield from _findings(name, bench, report)


def _mixtures(name: str, bench: Bench, report: Report) -> list[Study]:
    if len(bench.subjects) < 2:
        report.notes.append(f"{name} was left out: it needs two objects")
        return []
    return MIXTURES[name](bench, *bench.subjects[:2])


def _findings(name: str, bench: Bench, report: Report) -> list[Study]:
    find, lacks = FINDINGS[name]
    finding = find(bench)
    if finding is None:
        report.notes.append(f"{name} was left out: {lacks}")
        return []
    for file, (_, picture) in finding.pictures.items():
        _write(report.out / f"{file}.png", picture)
    report.findings.append(finding)
    report.tensors |= finding.tensors
    return finding.studies


def _save(study: Study, bench: Bench, report: Report, lpips: Lpips | None) -> None:
    """Write a study's pictures and films, and record its numbers in the report."""
    number = [subject.uid for subject in bench.subjects].index(study.uids[0])
    stem = study.name if number == 0 else f"{study.name}-{number + 1}"
    entry = measure(study, lpips) | {"picture": f"{stem}.png"}
    rows = [("unedited", study.unedited)]
    for step, numbers in zip(study.steps, entry["steps"], strict=True):
        decibels = "equal" if numbers["psnr"] is None else f"{numbers['psnr']:.1f} dB"
        rows.append((f"{step.label}\n{decibels}", step.image))
    if study.goal is not None:
        rows.append(("the other", study.goal))
    _write(report.out / f"{stem}.png", grids.sheet(rows))
    if study.frames is not None:
        frames = [_frame(views) for views in study.frames]
        entry["films"] = [f"{stem}{suffix}" for suffix in (".mp4", ".gif")]
        for name in entry["films"]:
            write_film(report.out / name, frames + frames[-2:0:-1], FPS)  # there and back, since films loop
    report.says[study.name] = study.says
    report.tensors |= study.tensors
    report.studies.append(entry)


def _write(path: Path, picture: np.ndarray) -> None:
    path.write_bytes(images.encode_png(picture, level=2))  # 5 times as fast as 6 on noisy renders, hardly larger


def _frame(views: torch.Tensor) -> np.ndarray:
    return images.contact_sheet([[enlarged(pixels(view), LEAST) for view in views[:FILM_VIEWS]]])
