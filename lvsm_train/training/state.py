"""Model, optimisers and all else that changes in training, and how it is saved to and restored from checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from lvsm_train.config.schedule import prolonged, schedule_of
from lvsm_train.config.train import TrainConfig
from lvsm_train.device.graphs import Settled
from lvsm_train.device.ranks import Ranks
from lvsm_train.device.sharding import gather_full, shard, shard_like, should_shard
from lvsm_train.evaluation.scores import Scores, finite
from lvsm_train.models import lvsm
from lvsm_train.models.lvsm import LVSM
from lvsm_train.training.guards import MAX_SPIKES, RECENT, NormGuard, SpikeGuard
from lvsm_train.training.optim import Average, Optimizers, count
from lvsm_train.weights import checkpoint
from lvsm_train.weights.trained import start_weights
from pipeline.core.errors import UserError
from pipeline.cycle.protocol import Cursor
from pipeline.storage.train_run import commits


class State:
    """net: the model on its device, replicated on all ranks or sharded among them. Only the first rank writes checkpoints.
    notes: for the user, of what `start_from` lacks and of settings that changed."""

    def __init__(self, cfg: TrainConfig, device: torch.device, ranks: Ranks) -> None:
        self.cfg, self.device, self.out, self.ranks = cfg, device, cfg.folder, ranks
        self.net: LVSM = lvsm.build(cfg.model, cfg.data.seed)
        new = not commits(cfg.folder)  # a run that goes on has its own weights, wherever the first ones are by now
        self.notes = [start_weights(self.net, cfg.start_from)] if cfg.start_from and new else []
        self.sharded = should_shard(cfg, count(self.net.parameters()), device, ranks)
        if self.sharded:
            shard(self.net, device)
        else:
            self.net.to(device)
        self.norm_guard = NormGuard(cfg.optim.skip_factor, device)
        # sharded weights are put together step by step; what is decided on the way is read
        unattended = False if self.sharded else None
        self.optimizers = Optimizers(self.net, cfg.optim, cfg.steps, self.norm_guard, unattended=unattended)
        if self.optimizers.unattended and ranks.world == 1:
            self.optimizers.bind_gradients()
        self.average = Average(self.net, cfg.optim.ema, self.optimizers.unattended) if cfg.optim.ema else None
        record = self.optimizers.unattended and device.type == "cuda" and cfg.compile != "no"
        self.move = Settled(self._move, self.optimizers.memory, record)
        self.spike_guard = SpikeGuard(cfg.optim.spike_above)
        self.changes = cfg.changes()
        self.loss = torch.zeros((), device=device)
        self.best: tuple[float, int] | None = None
        self.scores: Scores | None = None
        self.cursor: Cursor | None = None  # of a cycle, in the newest checkpoint
        self.stop_waiting: Callable[[], bool] = lambda: True  # for room on a full disk

    def step(self, number: int, progress: float, loss: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Update the weights and their mean, or skip the step. Returns the learning rate, and on the device the gradient's
        norm and 1.0 if the step was skipped (2,).

        number: of the step, from 0. progress: in steps of the learning-rate schedule. loss: mean over ranks, on the device.
        """
        if number in self.changes:
            self.norm_guard.forget()
        lr = self.optimizers.plan(progress)
        if self.average:
            self.average.plan()
        self.loss.copy_(loss)
        return lr, self.move()

    def _move(self) -> torch.Tensor:
        moved = self.optimizers.move(self.loss)
        if self.average:
            self.average.move(self.net)
        return torch.stack([moved.norm, moved.void.double()])

    def count_skipped(self, values: dict[str, float]) -> None:
        """Count skipped steps in a row by what a step said. Raises UserError where too many are."""
        finite = math.isfinite(values["loss"])
        said = f"the gradient's norm is {values['grad_norm']:.3g}" if finite else f"the loss is {values['loss']}"
        self.norm_guard.count(bool(values["void"]), said)

    def roll_back_on_spike(self, done: int, loss: float) -> str:
        """Restore weights and optimisers from before a loss spike; the data goes on. Returns a note for the user, "" if none.
        Raises UserError after more than MAX_SPIKES spikes."""
        if done in self.changes:
            self.spike_guard.forget()
            return ""
        if not self.spike_guard.observe(loss):
            return ""
        said = f"step {done}: the loss is {self.cfg.optim.spike_above:g} times what it was"
        if self.spike_guard.spikes > MAX_SPIKES:
            raise UserError(
                f"{said}, for the {self.spike_guard.spikes}th time", f"lower --lr ({self.cfg.optim.lr:g}) or --clip"
            )
        # checkpoints that a cycle makes in between depend on when somebody waited
        regular = [step for step in commits(self.out) if step % self.cfg.checkpoint_every == 0]
        before = [step for step in regular if step <= done - 2 * RECENT]
        if not before:
            return f"{said}, and there is no checkpoint from before"
        found = self._load(before[-1])
        assert found is not None
        self._restore(found[0])
        return f"{said}: weights and optimiser are those of step {before[-1]} again, and go on with new data"

    @contextlib.contextmanager
    def evaluation_net(self) -> Iterator[LVSM]:
        """Model with averaged weights, if any, and unsharded, for the first rank. Others get `net`, but must call this too.

        Compiled blocks run as they are: to compile for the shapes of evaluation takes longer than evaluation.
        """
        with torch.compiler.set_stance("force_eager"), self._averaged_net() as net:
            yield net

    @contextlib.contextmanager
    def _averaged_net(self) -> Iterator[LVSM]:
        if self.sharded:
            weights = gather_full(self.average.weights if self.average else self.net.state_dict(), self.ranks.is_main)
            yield self._unsharded(weights) if self.ranks.is_main else self.net
            return
        if self.average is None or not self.ranks.is_main:
            yield self.net
            return
        own = {name: value.clone() for name, value in self.net.state_dict().items()}
        self.net.load_state_dict(self.average.weights)
        try:
            yield self.net
        finally:
            self.net.load_state_dict(own)

    def _unsharded(self, weights: dict[str, torch.Tensor]) -> LVSM:
        with torch.device("meta"):
            net = lvsm.BY_KIND[self.cfg.model.kind](self.cfg.model)
        net.load_state_dict(weights, assign=True)
        return net.to(self.device)

    def record_scores(self, step: int, scores: Scores) -> None:
        """Keep the newest scores, and the step with the best PSNR."""
        self.scores = scores
        if self.best is None or scores.psnr > self.best[0]:
            self.best = (scores.psnr, step)

    def save(self, step: int, cursor: Cursor | None = None) -> None:
        """Write a checkpoint, independent of sharding. All ranks must call this. cursor: of a cycle's data, else None."""
        self.cursor = cursor
        tensors = {
            "model": self.net.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "average": self.average.state_dict() if self.average else {},
        }
        if self.sharded:
            tensors = gather_full(tensors, self.ranks.is_main)
        if self.ranks.is_main:
            scores = dataclasses.asdict(self.scores) if self.scores else {}
            state = tensors | {
                "spikes": self.spike_guard.state_dict(),
                "norms": self.norm_guard.state_dict(),
                "random": torch.get_rng_state(),
                "stable": self.optimizers.schedule.stable,
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
            checkpoint.save(self.out, step, state, facts, self.cfg.keep, self.cfg.checkpoint_every, self.stop_waiting)
        self.ranks.barrier()

    def resume(self) -> int:
        """Restore the newest checkpoint and return its step, 0 without one. Raises UserError if it is of another run."""
        found = self._load()
        if found is None:
            return 0
        state, facts = found
        self.notes = []  # what it once started from does not matter any more
        saved = TrainConfig.from_json(facts["config"])
        if self.cfg.loss.vgg_bf16 is None:  # left to the device: runs of earlier versions stay as they were
            loss = dataclasses.replace(self.cfg.loss, vgg_bf16=saved.loss.vgg_bf16)
            self.cfg = dataclasses.replace(self.cfg, loss=loss)
        now = self.cfg.identity(self.ranks.world)
        before = saved.identity()  # settings that came later: their defaults
        before["data"]["batch"] = facts["identity"]["data"]["batch"]
        if changed := _differences(before, now):
            hint = "use the same settings to go on, or another --out"
            if (size := before["data"]["batch"]) != now["data"]["batch"]:  # most often from another number of ranks
                hint += f"; --global-batch {size} has as many samples per step with any number of ranks"
            raise UserError(f"{self.out} was trained with other settings: {'; '.join(changed)}", hint)
        done, scheduled = int(facts["step"]), schedule_of(saved, state.get("stable", 1.0))
        if not self.cfg.cycle:
            self.optimizers.schedule, note = prolonged(scheduled, self.cfg, done)
            self.notes.append(note)
        self._restore(state)
        self.spike_guard.load_state_dict(state["spikes"])
        if "norms" in state:  # not in checkpoints of earlier versions
            self.norm_guard.load_state_dict(state["norms"])
        torch.set_rng_state(state["random"].cpu())
        self.best = (float(state["best"][0]), int(state["best"][1])) if state["best"] else None
        self.scores = Scores(**state["scores"]) if state["scores"] else None
        self.cursor = Cursor.from_json(facts["cursor"]) if facts.get("cursor") else None
        return done

    def _load(self, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Contents and facts of a checkpoint. To be sharded, tensors stay on the CPU: all of them may not fit the device."""
        return checkpoint.load(self.out, step, "cpu" if self.sharded else str(self.device))

    def _restore(self, state: dict[str, Any]) -> None:
        own = self.net.state_dict()
        self.net.load_state_dict({name: shard_like(value, own[name]) for name, value in state["model"].items()})
        self.optimizers.load_state_dict(state["optimizers"])
        self.move.forget()
        if self.average:
            self.average.load_state_dict(state["average"])


def _differences(before: dict[str, Any], now: dict[str, Any], path: str = "") -> list[str]:
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{name}.")
        elif old != new:
            found.append(f"{name.replace('_', '-')} was {old}, now {new}")
    return found
