"""Curves and strips for those who look at them elsewhere: TensorBoard, Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lvsm_train.config import TrainConfig
from pipeline.scene import UserError


class Boards:
    """All that cfg asks for; none is no error. start: the step that a run goes on from; what was told of later ones goes."""

    def __init__(self, cfg: TrainConfig, start: int) -> None:
        assert cfg.out is not None
        self.tensorboard = _tensorboard(cfg.out / "tensorboard", start) if cfg.tensorboard else None
        self.wandb = _wandb(cfg, cfg.wandb) if cfg.wandb else None

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step, by name."""
        if self.tensorboard:
            for name, value in values.items():
                self.tensorboard.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(values, step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """(H, W, 3) uint8."""
        if self.tensorboard:
            self.tensorboard.add_image(name, pixels, step, dataformats="HWC")
        if self.wandb:
            import wandb

            self.wandb.log({name: wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        """Writes what is not written yet."""
        if self.tensorboard:
            self.tensorboard.close()
        if self.wandb:
            self.wandb.finish()


def _tensorboard(folder: Path, start: int) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=start + 1 if start else None, write_to_disk=True)


def _wandb(cfg: TrainConfig, project: str) -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError("--wandb needs the package wandb", "pip install wandb") from None
    assert cfg.out is not None
    return wandb.init(
        project=project, name=cfg.out.name, id=cfg.out.name, dir=cfg.out, resume="allow", config=cfg.as_json()
    )
