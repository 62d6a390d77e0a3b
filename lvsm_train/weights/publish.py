"""A training run's model to pass on: written to a folder (`export`) and uploaded to the Hugging Face Hub (`push`)."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from lvsm_train.config.places import on_hub
from lvsm_train.config.train import TrainConfig
from lvsm_train.weights import published, readme
from lvsm_train.weights.trained import Trained, open_model
from lvsm_train.weights.writers import write_safetensors
from pipeline.config.export import ExportConfig, PushConfig
from pipeline.core.disk import write_json
from pipeline.core.errors import UserError
from pipeline.core.text import quoted, shown, size
from pipeline.download.fetch import sha256_of
from pipeline.export.card import without_paths
from pipeline.export.folder import whole
from pipeline.export.push import push_model
from pipeline.storage.train_run import CHECKPOINTS, CONFIG, README, WEIGHTS


def export(cfg: ExportConfig) -> list[str]:
    """Write the model of a run into a new folder. cfg: resolved. Returns lines for the user. Raises UserError as open_model."""
    assert cfg.out is not None
    trained = open_model(cfg.run, cfg.step, "cpu")
    with whole(cfg.out) as part:
        files = write(trained, part, cfg.out.name)
        weights = files[WEIGHTS].stat().st_size
    place = quoted(cfg.out)
    return [
        f"step {trained.step}, {size(weights)} of weights{_averaged(trained)}: {shown(cfg.out)}",
        f"`lvsm-data eval {place} --data RUN`, `lvsm-data synthesize {place} --input PHOTOS` and "
        f"`train --start-from {place}` read it; `lvsm-data push {place}` uploads it",
    ]


def push(cfg: PushConfig) -> list[str]:
    """Upload the model of a run, or one that was exported. Returns lines for the user. Raises UserError, also as open_model."""
    run = cfg.run.expanduser().absolute()
    if (run / CHECKPOINTS).is_dir() or not published.is_published(run):
        return push_model(cfg, functools.partial(write, open_model(run, cfg.step, "cpu")))
    if cfg.step is not None:
        raise UserError(f"--step {cfg.step} is for the folder of a run, which {cfg.run} is not", "leave --step out")
    open_model(run, device="cpu")  # the files are whole
    files = {name: run / name for name in (WEIGHTS, CONFIG, README) if (run / name).is_file()}
    return push_model(cfg, lambda folder, name: files)


def write(trained: Trained, folder: Path, name: str) -> dict[str, Path]:
    """Write a model into a folder: file's name -> file. name: that the card loads it by. Of equal models come equal bytes."""
    weights = trained.net.state_dict()
    files = {file: folder / file for file in (WEIGHTS, CONFIG, README)}
    write_safetensors(weights, files[WEIGHTS], ("format", "pt"))
    said = config(trained, files[WEIGHTS], len(weights), sum(value.numel() for value in weights.values()))
    write_json(files[CONFIG], said)
    files[README].write_text(readme.text(said, name), encoding="utf-8")
    return files


def config(trained: Trained, file: Path, tensors: int, numbers: int) -> dict[str, Any]:
    """Contents of config.json: all that one needs to use it, and nothing of the machine that it was trained on."""
    cfg = trained.cfg
    card = {name: value for name, value in without_paths(dict(trained.card)).items() if name != "model"}
    for part in ("data", "training"):
        card.get(part, {}).pop("settings", None)
    if "training" in card and card["training"].get("steps") != trained.step:
        card["training"]["steps"] = trained.step  # the card is of the newest checkpoint, and so are its scores
        card.pop("held_out_objects", None)
    size_of = trained.card.get("data", {}).get("size") or [cfg.data.res, cfg.data.res]
    return {
        "library": published.LIBRARY,
        "version": published.VERSION,
        "run": _run(cfg),
        "architecture": f"LVSM, {cfg.model.kind}{' with PRoPE' if cfg.model.prope else ''}",
        "step": trained.step,
        "pictures": {"height": size_of[0], "width": size_of[1], "patch": cfg.model.patch},
        "views": {
            "inputs": [cfg.data.least_inputs, cfg.data.inputs],
            "targets": [cfg.data.least_targets, cfg.data.targets],
        },
        "conventions": {
            "c2w": "4x4, camera to world, OpenCV axes: +x right, +y down, +z forward",
            "fxfycxcy": "in pixels of the picture; the middle of the first pixel is at 0.5",
            "pictures": "sRGB in [0, 1], height and width multiples of the patch",
        },
        "weights": {
            "file": WEIGHTS,
            "bytes": file.stat().st_size,
            "sha256": sha256_of(file),
            "tensors": tensors,
            "numbers": numbers,
            "averaged": bool(cfg.optim.ema),
        },
        "settings": _portable(cfg).as_json(),
        "card": card,
    }


def _averaged(trained: Trained) -> str:
    return ", averaged over steps" if trained.cfg.optim.ema else ""


def _portable(cfg: TrainConfig) -> TrainConfig:
    """Settings without what is of one machine: paths and addresses."""
    return dataclasses.replace(
        cfg,
        data=dataclasses.replace(cfg.data, data=()),
        loss=dataclasses.replace(cfg.loss, vgg=None, lpips_weights=None),
        out=None,
        start_from=cfg.start_from if on_hub(cfg.start_from or "") else None,
        export_official=None,
        address=None,
        wandb=None,
        device="auto",
    )


def _run(cfg: TrainConfig) -> str:
    """Hash (16 hex digits) of the settings that a run cannot change: two steps of one run share it."""
    canonical = json.dumps(cfg.identity(cfg.world), sort_keys=True)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()
