"""A trained model as a folder to pass on: model.safetensors, config.json beside it that says all about it, README.md for people.

`export --to safetensors` writes it, `push` uploads it, and `weights.trained.open_model` reads it, from a folder or from the Hub.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lvsm_train.config.train import TrainConfig
from lvsm_train.weights.readers import read_safetensors
from pipeline.core.disk import read_json
from pipeline.core.errors import UserError
from pipeline.core.text import size
from pipeline.download.fetch import sha256_of
from pipeline.storage.train_run import CHECKPOINTS, CONFIG, WEIGHTS

LIBRARY, VERSION = "lvsm-data", 1
AGAIN = "fetch or export it again"


@dataclass(frozen=True)
class Published:
    """What a config.json says. cfg: settings of the run, without the paths of the machine that it ran on. step: of its weights.

    card: what the weights were trained on and how they score (training/card.py). bytes, sha256: of the file of weights.
    """

    cfg: TrainConfig
    step: int
    card: dict[str, Any]
    bytes: int
    sha256: str


def is_published(folder: Path) -> bool:
    """True for a folder that holds an exported model."""
    return (folder / CONFIG).is_file() and not (folder / CHECKPOINTS).is_dir()


def is_ours(folder: Path) -> bool:
    """True if a folder's config.json is of a model of ours, whole or not."""
    try:
        return bool(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["library"] == LIBRARY)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_config(path: Path) -> Published:
    """Read a config.json. Raises UserError for one of another program, of a later version, or with values that are missing."""
    try:
        said = read_json(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}", AGAIN) from None
    if not isinstance(said, dict) or said.get("library") != LIBRARY:
        raise UserError(
            f"{path} is not of a model of {LIBRARY}",
            "of the official LVSM: name the file of weights itself, with --preset; else `lvsm-data export RUN --to safetensors`",
        )
    if said.get("version") != VERSION:
        raise UserError(f"{path} is of version {said.get('version')}, and {VERSION} is known here", "update lvsm-data")
    try:
        cfg, weights = TrainConfig.from_json(said["settings"]), said["weights"]
        cfg.model.check()
        cfg.data.check()
        return Published(cfg, int(said["step"]), dict(said["card"]), int(weights["bytes"]), str(weights["sha256"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not whole: {type(error).__name__}: {error}", AGAIN) from None


def read(folder: Path) -> tuple[dict[str, Tensor], Published]:
    """(weights, what its config.json says) of an exported model. Raises UserError where the file is not the one that it names."""
    said, file = read_config(folder / CONFIG), folder / WEIGHTS
    if not file.is_file():
        raise UserError(f"{folder} holds no {WEIGHTS}", AGAIN)
    if (found := file.stat().st_size) != said.bytes:
        raise UserError(f"{file} has {size(found)} ({found:,} bytes), and {CONFIG} says {said.bytes:,}", AGAIN)
    if (digest := sha256_of(file)) != said.sha256:
        raise UserError(f"{file} has the sha256 {digest}, and {CONFIG} says {said.sha256}", AGAIN)
    return read_safetensors(file), said
