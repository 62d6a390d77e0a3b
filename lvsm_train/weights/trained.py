"""Loading of trained models, for `eval`, `latent` and --start-from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lvsm_train.config.train import DataConfig, TrainConfig
from lvsm_train.config.trained import EvalConfig, LatentConfig
from lvsm_train.device.devices import device_of
from lvsm_train.models import lvsm
from lvsm_train.models.lvsm import LVSM
from lvsm_train.weights import checkpoint
from lvsm_train.weights.official import from_official
from lvsm_train.weights.readers import read_torch
from pipeline.core.errors import UserError

AUX_HEADS = "aux."  # begins the names of weights that rendering does without


@dataclass(frozen=True)
class Trained:
    """A trained model. net: in eval mode, with the averaged weights if the run has them. cfg: the run's settings."""

    net: LVSM
    cfg: TrainConfig
    step: int
    run: Path

    def data_config(self, cfg: EvalConfig | LatentConfig, **more: Any) -> DataConfig:
        """Data settings of the run, with the folders and the width of `cfg` if given, and no cache: few objects are read."""
        own = self.cfg.data
        return dataclasses.replace(own, data=cfg.data or own.data, res=cfg.res or own.res, cache="none", **more)


def open_run(run: Path, step: int | None = None, device: str = "auto") -> Trained:
    """Load the model of a run's folder at a step, by default of the newest checkpoint.

    Raises UserError if there is no checkpoint, none of that step, or it cannot be read.
    """
    at = device_of(device)
    state, facts = _load(run, step, str(at))
    cfg = TrainConfig.from_json(facts["config"])
    net = lvsm.build(cfg.model, cfg.data.seed).to(at)
    net.load_state_dict(_weights(state))
    return Trained(net.eval().requires_grad_(False), cfg, int(facts["step"]), run)


def start_weights(net: LVSM, where: Path) -> str:
    """Load into a model the weights of a run (averaged, if it has them) or of a checkpoint file of the official LVSM.

    Heads of --aux that are not there stay new, and those that the model has not are left; returned is a line that says so, or "".
    Raises UserError if they cannot be read, or are of another model.
    """
    own = {name: weight for name, weight in net.state_dict().items() if name.startswith(AUX_HEADS)}
    try:
        if where.is_dir():
            found = _weights(_load(where, None, "cpu")[0])
        else:
            found = from_official(read_torch(where), dataclasses.replace(net.config, aux=())).state_dict()
        heads = {name for name in found if name.startswith(AUX_HEADS)}
        kept = {name: weight for name, weight in found.items() if name not in heads - own.keys()}
        net.load_state_dict(own | kept)
    except (ValueError, RuntimeError) as error:  # PyTorch's for wrong names and shapes
        said = " ".join(str(error).split("\n")[:2])
        raise UserError(f"--start-from {where}: {said}", "the model's flags must be those of these weights") from None
    told = {"new": own.keys() - heads, "left out": heads - own.keys()}
    said = "; ".join(f"its {_heads(names)} is {what}" for what, names in told.items() if names)
    return f"--start-from {where}: {said}" if said else ""


def _heads(names: Iterable[str]) -> str:
    """Heads that weights of these names belong to: aux.depth.norm.weight -> --aux depth."""
    return f"--aux {' '.join(sorted({name.split('.')[1] for name in names}))}"


def _load(run: Path, step: int | None, device: str) -> tuple[dict[str, Any], dict[str, Any]]:
    loaded = checkpoint.load(run, step, device)
    if loaded is None:
        raise UserError(f"{run} has no checkpoint", "give the --out of lvsm-data train, after its first checkpoint")
    return loaded


def _weights(state: dict[str, Any]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = state["average"]["weights"] if state["average"] else state["model"]
    return weights
