"""A trained model as its run left it: what `eval` and `latent` start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lvsm_train import checkpoint, model
from lvsm_train.config import TrainConfig
from lvsm_train.devices import device_of
from lvsm_train.model import LVSM
from pipeline.scene import UserError


@dataclass(frozen=True)
class Trained:
    """net: in eval mode, on its device, with the averaged weights where the run has these. cfg: what it was trained with."""

    net: LVSM
    cfg: TrainConfig
    step: int
    run: Path


def open_run(run: Path, step: int | None = None, device: str = "auto") -> Trained:
    """The model of a folder that `lvsm-data train` wrote, at a step or at its newest checkpoint.

    Raises UserError: there is no checkpoint, none of that step, or it cannot be read.
    """
    at = device_of(device)
    found = checkpoint.load(run, step, str(at))
    if found is None:
        raise UserError(f"{run} has no checkpoint", "give the --out of lvsm-data train, after its first checkpoint")
    state, facts = found
    cfg = TrainConfig.from_json(facts["config"])
    net = model.build(cfg.model, cfg.data.seed).to(at)
    net.load_state_dict(state["average"]["weights"] if state["average"] else state["model"])
    return Trained(net.eval().requires_grad_(False), cfg, int(facts["step"]), run)
