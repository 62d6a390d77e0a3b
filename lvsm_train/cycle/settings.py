"""Facts of a cycle's trainer that its driver needs before starting one: settings, and the disk that checkpoints take."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lvsm_train.config.train import TrainConfig
from lvsm_train.data import view_sampling
from pipeline.config.source_table import SOURCES
from pipeline.core.errors import UserError
from pipeline.core.records import HELD_OUT, Scene
from pipeline.cycle.protocol import TRAIN

FILE_OVERHEAD = 1.03  # size of a checkpoint as a multiple of its tensors
PER_FILE = 2e6  # bytes


@dataclass(frozen=True)
class Lacking:
    """Says what a scene lacks to be trained on. Sent to workers. views: that must train; gap: of clips, widths of the window."""

    views: int
    gap: tuple[int, int] | None

    def __call__(self, scene: Scene) -> str:
        """Return what the scene lacks, "" for nothing."""
        able = np.array([role not in HELD_OUT for role in scene.roles or [""] * scene.view_count])
        if self.gap is None:
            return "" if able.sum() >= self.views else f"{able.sum()} views, {self.views} are needed"
        frame = np.sort(scene.numbers.get("frame", np.arange(scene.view_count))[able])
        if view_sampling.clip_fits(frame, self.views, self.gap):
            return ""
        return f"no window of {self.gap[0]} to {self.gap[1]} frames with {self.views} views among {len(frame)}"


def lacking(cfg: TrainConfig, source: str) -> Lacking:
    """Make the check of scenes of a source for a trainer: clips, and with `scenes` captures, have windows of frames."""
    data, known = cfg.data, SOURCES[source]
    if known.kind == "video" or (data.scenes and not known.objects):
        return Lacking(data.inputs + data.targets, data.gap)
    return Lacking(data.held_views + data.inputs + data.targets, None)


def settings(cfg: TrainConfig, out: Path, scene: Any, samples: float) -> TrainConfig:
    """Settings of the trainer in the cycle at `out`.

    scene: what shards hold, a SceneConfig, PosedConfig or ClipScene. samples: to train on in all. Images have the preset's width,
    or the stored one if smaller. Raises UserError for flags that a cycle sets itself, too few views, columns that are not made,
    or partial patches.
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
