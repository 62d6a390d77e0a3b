"""What a cycle needs to know of its trainer before there is one: its settings, and the disk that its checkpoints take."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from lvsm_train.config.train import TrainConfig
from pipeline.core.errors import UserError
from pipeline.cycle.protocol import TRAIN

ROUNDING = 1.03  # what a file takes more than its tensors do
PER_FILE = 2e6


def settings(cfg: TrainConfig, out: Path, res: tuple[int, ...], views: int, samples: float) -> TrainConfig:
    """The trainer's settings in the cycle at `out`, which renders so many views of these widths and trains on so many samples.

    The pictures are as large as the preset has them, or as they are rendered where that is smaller. Raises UserError where the
    views do not suffice.
    """
    data = cfg.data
    if cfg.out or data.data or cfg.curriculum:
        raise UserError(
            "a cycle says itself where data and checkpoints are", "no --train.out, --data.data, --train.curriculum"
        )
    if views < data.held_views + data.inputs + data.targets:
        raise UserError(
            f"--views {views} are too few for {data.inputs} inputs and {data.targets} targets",
            f"--views {data.held_views + data.inputs + data.targets}, or --data.inputs and --data.targets",
        )
    width = min(max(res), data.res or max(res))
    if width % cfg.model.patch:
        raise UserError(
            f"pictures of {width} pixels have no whole patches of {cfg.model.patch}",
            "--res a multiple, or --model.patch",
        )
    steps = max(1, math.ceil(samples / cfg.samples(cfg.world)))
    out.mkdir(parents=True, exist_ok=True)
    return dataclasses.replace(
        cfg,
        data=dataclasses.replace(data, data=(out,), res=width),
        out=out / TRAIN,
        cycle=True,
        steps=steps,
    ).resolved()


def on_cpu(cfg: TrainConfig) -> bool:
    """Whether it trains on this machine's CPU: of a cluster's other machines it takes none."""
    if cfg.ray_workers and cfg.address:
        return False
    from lvsm_train.device.devices import device_of

    return device_of(cfg.device, 0).type == "cpu"


def checkpoint_bytes(cfg: TrainConfig) -> float:
    """Of all checkpoints that may exist at once: those that are kept, the best, the newest, and one that is being written."""
    import torch

    from lvsm_train.models import lvsm
    from lvsm_train.training.optim import Optimizers

    with torch.device("meta"):
        net = lvsm.BY_KIND[cfg.model.kind](cfg.model)
    numbers = sum(value.numel() for value in net.state_dict().values())
    moments = 0
    for optimizer in Optimizers(net, cfg.optim, cfg.steps).all:
        of_each = 1 if isinstance(optimizer, torch.optim.Muon) else 2
        moments += sum(of_each * one.numel() for group in optimizer.param_groups for one in group["params"])
    one = 4 * (numbers * (2 if cfg.optim.ema else 1) + moments) * ROUNDING + PER_FILE
    return (cfg.keep + 3) * one
