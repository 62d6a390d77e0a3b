"""The model card OUT/card.json: what a run's weights are, what they were trained on, and how they score."""

from __future__ import annotations

import dataclasses
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lvsm_train.config.train import TrainConfig
from lvsm_train.data.batches import Data
from lvsm_train.evaluation.scores import Scores, finite
from lvsm_train.models import lvsm
from lvsm_train.training.optim import count
from pipeline.core.disk import write_json
from pipeline.cycle.protocol import committed
from pipeline.report.attribution import Account, findings
from pipeline.storage.ledger import Ledger

PAPERS = {
    "model": "LVSM (arXiv 2410.17242)",
    "prope": "PRoPE (arXiv 2507.10496)",
    "unidirectional": "after SVSM (arXiv 2602.21341)",
    "muon": "Muon (Jordan et al. 2024)",
}


def write_card(cfg: TrainConfig, data: Data, step: int, scores: Scores | None) -> Path:
    """Write the card of a run that has done `step` steps, and return its path."""
    path = cfg.folder / "card.json"
    write_json(path, card(cfg, data, step, scores))
    return path


def card(cfg: TrainConfig, data: Data, step: int, scores: Scores | None) -> dict[str, Any]:
    """Card as JSON values. Licenses count all objects that the shards have or had, trained on or held out."""
    settings = cfg.as_json()
    if cfg.cycle:
        licenses, trained_on, passes = _of_cycle(cfg)
    else:
        licenses, trained_on, passes = data.index.licenses, len(data.planner.train), data.epochs(step)
    built_on = ["model", *(["prope"] * cfg.model.prope)]
    built_on += [name for name in (cfg.model.kind, cfg.optim.optimizer) if name in PAPERS]
    with torch.device("meta"):
        weights = count(lvsm.BY_KIND[cfg.model.kind](cfg.model).parameters())
    return {
        "model": {
            "what": "renders new views of a scene out of a few posed images",
            "after": [PAPERS[name] for name in built_on],
            "weights": weights,
            "conventions": "c2w camera to world, OpenCV axes; fxfycxcy in pixels; images sRGB in [0, 1]",
            "settings": settings["model"],
        },
        "data": {
            "folders": [str(path) for path in cfg.data.data],
            "trained_on": trained_on,
            "held_out": len(data.planner.val),
            "kinds": data.planner.kinds(),
            "views": len(data.index.c2w),
            "size": list(data.hw),
            "sizes": [list(hw) for hw in data.sizes],
            "licenses": licenses,
            "what_they_allow": findings(Account(cfg.data.data[0], licenses, {}, {}, 0)),
            "settings": settings["data"],
        },
        "training": {
            "preset": cfg.preset,
            "steps": step,
            "of": cfg.steps,
            "passes_over_the_data": round(passes, 3),
            "settings": {name: value for name, value in settings.items() if name not in ("model", "data")},
        },
        "held_out_objects": finite(dataclasses.asdict(scores)) if scores else None,
        "made_with": {
            "lvsm-data": metadata.version("lvsm-data"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name(data.device) if data.device.type == "cuda" else "cpu",
        },
    }


def _of_cycle(cfg: TrainConfig) -> tuple[dict[str, int], int, float]:
    """Objects per license, number of training objects, and epochs done in a cycle: its ledger also counts deleted shards."""
    (out,) = cfg.data.data
    with Ledger(out / "ledger.sqlite", readonly=True) as ledger:
        licenses, trained_on = ledger.licenses(), ledger.delivered_by_split().get("train", 0)
    return licenses, trained_on, committed(out, cfg.folder.name)[1].position / max(1, trained_on)
