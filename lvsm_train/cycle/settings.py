"""Facts of a cycle's trainer that its driver needs before starting one: settings, and the disk that checkpoints take."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from lvsm_train.config.train import TrainConfig
from pipeline.core.errors import UserError
from pipeline.cycle.protocol import folder_of

FILE_OVERHEAD = 1.03  # size of a checkpoint as a multiple of its tensors
PER_FILE = 2e6  # bytes


def settings(cfg: TrainConfig, out: Path, scene: Any, samples: float, number: int = 0) -> TrainConfig:
    """Settings of a trainer in the cycle at `out`.

    number: among the cycle's trainers; where there are several GPUs, each has its own. scene: what shards hold, a SceneConfig,
    PosedConfig or ClipScene. samples: to train on in all. Images have the preset's width, or the stored one if smaller. Raises
    UserError for flags that a cycle sets itself, too few views, columns that are not made, or partial patches.
    """
    data = cfg.data
    if cfg.out or data.data or cfg.curriculum:
        raise UserError(
            "a cycle says itself where data and checkpoints are", "no --train.out, --data.data, --train.curriculum"
        )
    pictures = getattr(scene, "pictures", scene.views)
    if pictures is not None and pictures < data.held_views + data.inputs + data.targets:
        raise UserError(
            f"--views {scene.views} are too few for {data.inputs} inputs and {data.targets} targets",
            f"--views {data.held_views + data.inputs + data.targets}, or --data.inputs and --data.targets",
        )
    if lacking := [name for name in cfg.model.aux if not getattr(scene, name, False)]:
        said = f"--model.aux {' '.join(lacking)} is learned from columns that this cycle does not render"
        raise UserError(said, f"add {' '.join(f'--{name}' for name in lacking)}")
    widest = max(scene.res)
    width = min(widest, data.res or widest)
    cfg.model.check_pictures((round(width * getattr(scene, "rows", widest) / widest), width))
    if number and cfg.device == "auto" and not cfg.ray_workers:
        cfg = dataclasses.replace(cfg, device=_gpu(number))
    steps = max(1, math.ceil(samples / cfg.samples(cfg.world)))
    out.mkdir(parents=True, exist_ok=True)
    return dataclasses.replace(
        cfg,
        data=dataclasses.replace(data, data=(out,), res=width),
        out=out / folder_of(number, cfg.preset),
        cycle=True,
        steps=steps,
    ).resolved()


def _gpu(number: int) -> str:
    """Device of a further trainer: a GPU of its own where there is one, else what the first one has."""
    import torch

    return f"cuda:{number}" if torch.cuda.device_count() > number else "auto"


def on_cpu(cfg: TrainConfig) -> bool:
    """True if training takes CPU cores of this machine, not of a cluster's other machines."""
    if cfg.ray_workers and cfg.address:
        return False
    from lvsm_train.device.devices import device_of

    return device_of(cfg.device, 0).type == "cpu"


def checkpoint_bytes(cfg: TrainConfig) -> float:
    """Disk in bytes for all checkpoints that may exist at once: cfg.keep, the best, the newest, and one being written."""
    import torch

    from lvsm_train.models import lvsm
    from lvsm_train.training.muon import Muon
    from lvsm_train.training.optim import Optimizers

    with torch.device("meta"):
        net = lvsm.BY_KIND[cfg.model.kind](cfg.model)
    weights = sum(value.numel() for value in net.state_dict().values())
    moments = 0
    for optimizer in Optimizers(net, cfg.optim, cfg.steps).all:
        per_weight = 1 if isinstance(optimizer, Muon) else 2
        moments += sum(per_weight * each.numel() for group in optimizer.param_groups for each in group["params"])
    size = 4 * (weights * (2 if cfg.optim.ema else 1) + moments) * FILE_OVERHEAD + PER_FILE
    return (cfg.keep + 3) * size
