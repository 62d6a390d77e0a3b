"""A trained model as its run left it: what `eval` and `latent` start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lvsm_train.config.train import TrainConfig
from lvsm_train.device.devices import device_of
from lvsm_train.models import lvsm
from lvsm_train.models.lvsm import HW, LVSM
from lvsm_train.weights import checkpoint
from lvsm_train.weights.official import from_official
from lvsm_train.weights.readers import read_torch
from pipeline.core.errors import UserError


@dataclass(frozen=True)
class Trained:
    """net: in eval mode, on its device, with the averaged weights where the run has these. cfg: what it was trained with."""

    net: LVSM
    cfg: TrainConfig
    step: int
    run: Path

    def check(self, hw: HW) -> None:
        """Raises UserError where pictures of that (height, width) are none for this model."""
        patch = self.cfg.model.patch
        if hw[0] % patch or hw[1] % patch:
            raise UserError(f"pictures of {hw[1]}x{hw[0]} have no whole patches of {patch}", "--res chooses a width")


def open_run(run: Path, step: int | None = None, device: str = "auto") -> Trained:
    """The model of a folder that `lvsm-data train` wrote, at a step or at its newest checkpoint.

    Raises UserError: there is no checkpoint, none of that step, or it cannot be read.
    """
    at = device_of(device)
    state, facts = _newest(run, step, str(at))
    cfg = TrainConfig.from_json(facts["config"])
    net = lvsm.build(cfg.model, cfg.data.seed).to(at)
    net.load_state_dict(_weights(state))
    return Trained(net.eval().requires_grad_(False), cfg, int(facts["step"]), run)


def start_weights(net: LVSM, where: Path) -> None:
    """Fills a model with the weights of a run (its average's), or of a checkpoint file of the official LVSM.

    Raises UserError where they cannot be read, or are of another model.
    """
    try:
        if where.is_dir():
            net.load_state_dict(_weights(_newest(where, None, "cpu")[0]))
        else:
            net.load_state_dict(from_official(read_torch(where), net.config).state_dict())
    except (ValueError, RuntimeError) as error:  # PyTorch tells wrong names and shapes as a RuntimeError
        said = " ".join(str(error).split("\n")[:2])
        raise UserError(f"--start-from {where}: {said}", "the model's flags must be those of these weights") from None


def _newest(run: Path, step: int | None, device: str) -> tuple[dict[str, Any], dict[str, Any]]:
    found = checkpoint.load(run, step, device)
    if found is None:
        raise UserError(f"{run} has no checkpoint", "give the --out of lvsm-data train, after its first checkpoint")
    return found


def _weights(state: dict[str, Any]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = state["average"]["weights"] if state["average"] else state["model"]
    return weights
