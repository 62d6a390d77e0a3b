"""Work of ranks in tests/lvsm_train/device/test_ranks.py: `python -m tests.ranked FOLDER`, whose file `work` is a pickled list.

An entry: train, unattended or memory, the step in which the second rank gets a SIGTERM, and settings. In its fifth step the
second rank kills itself if there is a file `die`, which it deletes.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from lvsm_train.config.train import TrainConfig
from lvsm_train.device import activations, sharding
from lvsm_train.device.ranks import exit_now, process_group
from lvsm_train.models import lvsm
from lvsm_train.training import state
from lvsm_train.training.optim import Optimizers
from lvsm_train.training.state import State
from lvsm_train.training.train import train_fn


def train(cfg: TrainConfig, stop: int, folder: Path) -> None:
    """A run, perhaps not to its end."""
    step, before, die = 0, State.step, folder / "die"

    def counted(self: State, *given: Any) -> Any:
        nonlocal step
        step += 1
        if os.environ["RANK"] == "1":
            if step == 5 and die.exists():
                die.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            if step == stop:
                os.kill(os.getpid(), signal.SIGTERM)
        return before(self, *given)

    State.step = counted  # type: ignore[method-assign,assignment]
    train_fn(cfg)
    State.step = before  # type: ignore[method-assign]


def unattended(cfg: TrainConfig, stop: int, folder: Path) -> None:
    """A run that decides on the device and reads numbers a step later, as on GPUs."""
    state.Optimizers = lambda *given, **_: Optimizers(*given, unattended=True)  # type: ignore[misc,assignment]
    train(cfg, stop, folder)
    state.Optimizers = Optimizers  # type: ignore[misc]


def memory(cfg: TrainConfig, stop: int, folder: Path) -> None:
    """Write the bytes of saved activations, before and after sharding, into a file `memory`."""
    net = lvsm.build(cfg.model, 0)

    def forward(count: int) -> torch.Tensor:
        image, c2w, k = torch.zeros(count, 2, 3, 32, 32), torch.eye(4).expand(count, 2, 4, 4), torch.ones(count, 2, 4)
        made: torch.Tensor = net(image, c2w, k, c2w, k)
        return made

    whole = activations.estimate_saved(net, forward, 4)
    sharding.shard(net, torch.device("cpu"))
    (folder / "memory").write_text(json.dumps([whole, activations.estimate_saved(net, forward, 4)]))


def main() -> None:
    """Do all work in one process group; what is alone makes its own."""
    folder = Path(sys.argv[1])
    work = pickle.loads((folder / "work").read_bytes())
    with process_group(5) if len(work) > 1 else contextlib.nullcontext():
        for name, stop, cfg in work:
            {"train": train, "unattended": unattended, "memory": memory}[name](cfg, stop, folder)
    exit_now(0)


if __name__ == "__main__":
    main()
