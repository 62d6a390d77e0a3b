"""Everything that moves in training, and its way to and from a checkpoint. The data's cursor is the step, or a cycle's."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from lvsm_train.config.train import TrainConfig
from lvsm_train.device.ranks import Ranks
from lvsm_train.device.sharding import gather_full, shard, shard_like, should_shard
from lvsm_train.evaluation.scores import Scores, finite
from lvsm_train.models import lvsm
from lvsm_train.models.lvsm import LVSM
from lvsm_train.training.guards import MAX_SPIKES, RECENT, SpikeGuard
from lvsm_train.training.optim import Average, Optimizers, count
from lvsm_train.weights import checkpoint
from lvsm_train.weights.trained import start_weights
from pipeline.core.errors import UserError
from pipeline.cycle.protocol import Cursor
from pipeline.storage.train_run import commits


class State:
    """net: the model, on its device. The same on all ranks, or cut among them; the first one alone writes."""

    def __init__(self, cfg: TrainConfig, device: torch.device, ranks: Ranks) -> None:
        assert cfg.out is not None
        self.cfg, self.device, self.out, self.ranks = cfg, device, cfg.out, ranks
        self.net: LVSM = lvsm.build(cfg.model, cfg.data.seed)
        if cfg.start_from:
            start_weights(self.net, cfg.start_from)
        self.cut = should_shard(cfg, count(self.net.parameters()), device, ranks)
        if self.cut:
            shard(self.net, device)
        else:
            self.net.to(device)
        self.optimizers = Optimizers(self.net, cfg.optim, cfg.steps)
        self.average = Average(self.net, cfg.optim.ema) if cfg.optim.ema else None
        self.spike_guard = SpikeGuard(cfg.optim.spike_above)
        self.best: tuple[float, int] | None = None
        self.scores: Scores | None = None
        self.cursor: Cursor | None = None  # of a cycle, as it was saved last
        self.enough: Callable[[], bool] = lambda: True  # waited for a disk that is full

    def step(self, place: float, loss: float, norm: float) -> dict[str, float]:
        """Moves the weights; a loss that is no number makes the step void. place: in the schedule of learning rates, in steps."""
        if math.isfinite(loss):
            facts = self.optimizers.step(place, norm)
        else:
            self.optimizers.zero_grad()
            facts = {"grad_norm": norm, "lr": math.nan, "void": 1.0}
        if self.average:
            self.average.update(self.net)
        return facts

    def settle(self, done: int, loss: float) -> str:
        """Goes back to weights from before, where the loss has gone astray; says so. What comes next is other data.

        Raises UserError where that does not help.
        """
        if not self.spike_guard.observe(loss):
            return ""
        said = f"step {done}: the loss is {self.cfg.optim.spike_above:g} times what it was"
        if self.spike_guard.spikes > MAX_SPIKES:
            raise UserError(
                f"{said}, for the {self.spike_guard.spikes}th time", f"lower --lr ({self.cfg.optim.lr:g}) or --clip"
            )
        # those that a cycle makes in between depend on when somebody waited
        regular = [step for step in commits(self.out) if step % self.cfg.checkpoint_every == 0]
        before = [step for step in regular if step <= done - 2 * RECENT]
        if not before:
            return f"{said}, and there is no checkpoint from before"
        found = self._load(before[-1])
        assert found is not None
        self._take(found[0])
        return f"{said}: weights and optimiser are those of step {before[-1]} again, and go on with new data"

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[LVSM]:
        """The model with the averaged weights, where there are any, for the first rank.

        All ranks have to come: of weights that are cut the first one gets a whole copy.
        """
        if self.cut:
            weights = gather_full(self.average.weights if self.average else self.net.state_dict(), self.ranks.first)
            yield self._whole(weights) if self.ranks.first else self.net
            return
        if self.average is None or not self.ranks.first:
            yield self.net
            return
        own = {name: value.clone() for name, value in self.net.state_dict().items()}
        self.net.load_state_dict(self.average.weights)
        try:
            yield self.net
        finally:
            self.net.load_state_dict(own)

    def _whole(self, weights: dict[str, torch.Tensor]) -> LVSM:
        with torch.device("meta"):
            net = lvsm.BY_KIND[self.cfg.model.kind](self.cfg.model)
        net.load_state_dict(weights, assign=True)
        return net.to(self.device)

    def note(self, step: int, scores: Scores) -> None:
        """Remembers which step did best."""
        self.scores = scores
        if self.best is None or scores.psnr > self.best[0]:
            self.best = (scores.psnr, step)

    def save(self, step: int, cursor: Cursor | None = None) -> None:
        """Commits a checkpoint, of the first rank for all. cursor: of a cycle's data; else the step says where it is.

        All ranks have to come. How weights are cut is not seen in it.
        """
        self.cursor = cursor
        moving = {
            "model": self.net.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "average": self.average.state_dict() if self.average else {},
        }
        if self.cut:
            moving = gather_full(moving, self.ranks.first)
        if self.ranks.first:
            scores = dataclasses.asdict(self.scores) if self.scores else {}
            state = moving | {
                "spikes": self.spike_guard.state_dict(),
                "random": torch.get_rng_state(),
                "best": list(self.best) if self.best else [],
                "scores": scores,
            }
            facts = {
                "best": self.best[1] if self.best else None,
                "scores": finite(scores),
                "identity": self.cfg.identity(self.ranks.world),
                "config": self.cfg.as_json(),
                "cursor": cursor.as_json() if cursor else None,
            }
            checkpoint.save(self.out, step, state, facts, self.cfg.keep, self.cfg.checkpoint_every, self.enough)
        self.ranks.barrier()

    def resume(self) -> int:
        """The step to go on with. Raises UserError where the folder holds another run."""
        found = self._load()
        if found is None:
            return 0
        state, facts = found
        before, now = facts["identity"], self.cfg.identity(self.ranks.world)
        if changed := _differences(before, now):
            hint = "use the same settings to go on, or another --out"
            if (size := before["data"]["batch"]) != now["data"]["batch"]:  # with other numbers of ranks, most often
                hint += f"; --global-batch {size} has as many samples per step with any number of ranks"
            raise UserError(f"{self.out} was trained with other settings: {'; '.join(changed)}", hint)
        self._take(state)
        self.spike_guard.load_state_dict(state["spikes"])
        torch.set_rng_state(state["random"].cpu())
        self.best = (float(state["best"][0]), int(state["best"][1])) if state["best"] else None
        self.scores = Scores(**state["scores"]) if state["scores"] else None
        self.cursor = Cursor.from_json(facts["cursor"]) if facts.get("cursor") else None
        return int(facts["step"])

    def _load(self, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """What is to be cut goes to the device tensor by tensor: the whole would not fit."""
        return checkpoint.load(self.out, step, "cpu" if self.cut else str(self.device))

    def _take(self, state: dict[str, Any]) -> None:
        own = self.net.state_dict()
        self.net.load_state_dict({name: shard_like(value, own[name]) for name, value in state["model"].items()})
        self.optimizers.load_state_dict(state["optimizers"])
        if self.average:
            self.average.load_state_dict(state["average"])


def _differences(before: dict[str, Any], now: dict[str, Any], path: str = "") -> list[str]:
    told = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            told += _differences(old, new, f"{name}.")
        elif old != new:
            told.append(f"{name.replace('_', '-')} was {old}, now {new}")
    return told
