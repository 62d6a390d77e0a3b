"""The learning rate by step, and what becomes of it when a run goes on with other --steps or another --cooldown."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from lvsm_train.config.train import TrainConfig
from pipeline.core.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a share of its peak: linear warm-up, then half a cosine; or constant, with a linear cooldown at the end.

    steps: in all. warmup: of these, for the rise from 0. final: share at the end. cooldown: steps of the fall at the end, 0 for
    the cosine. stable: share between warm-up and cooldown. With final=0 and the cosine equal to transformers'
    `get_cosine_schedule_with_warmup`, whose first step has a rate of 0; with a cooldown: WSD (arXiv 2404.06395).
    """

    steps: int
    warmup: int
    final: float
    cooldown: int = 0
    stable: float = 1.0

    @property
    def falls_at(self) -> int:
        """Step at which the cooldown begins."""
        return self.steps - self.cooldown

    def share(self, step: float) -> float:
        """Learning rate at `step` (from 0, may be fractional), as a share of its peak."""
        if step < self.warmup:
            return step / max(1, self.warmup)
        if self.cooldown:
            fallen = min(1.0, max(0.0, (step - self.falls_at) / self.cooldown))
            return self.stable + (min(self.final, self.stable) - self.stable) * fallen
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))


def schedule_of(cfg: TrainConfig, stable: float = 1.0) -> Schedule:
    """Schedule of a run. stable: see `Schedule`."""
    return Schedule(cfg.steps, cfg.optim.warmup, cfg.optim.final_lr, cfg.optim.cooldown, stable)


def prolonged(before: Schedule, cfg: TrainConfig, done: int) -> tuple[Schedule, str]:
    """Schedule with which a run goes on after `done` steps, and a line for the user ("" if nothing changes).

    before: with which it did these steps. Steps may grow, a cosine is stretched then. A cooldown may begin at `done` or later,
    at the rate that the run then has. Raises UserError for settings with which the steps so far would have been others.
    """
    now = schedule_of(cfg, before.stable)
    if now == before:
        return now, ""
    if now.cooldown and now.falls_at < done:
        begin = f"--steps {done + now.cooldown} --cooldown {now.cooldown}"
        raise UserError(
            f"--cooldown {now.cooldown} of --steps {now.steps} begins at step {now.falls_at}, and {done} are done",
            f"{begin} begins it now",
        )
    if now.steps < before.steps and not now.cooldown:
        raise UserError(
            f"--steps was {before.steps}, now {now.steps}, and {done} are done: steps can only grow",
            "--cooldown N lets a run end sooner, N steps from where it is",
        )
    if now.cooldown and not before.cooldown:
        now = dataclasses.replace(now, stable=before.share(max(done, now.warmup)))
    was, will = before.share(done), now.share(done)
    rate = (
        f"at {will:.3g} of its peak" if math.isclose(was, will) else f"at {will:.3g} of its peak instead of {was:.3g}"
    )
    falls = f"falls from step {now.falls_at} on" if now.cooldown else "follows a longer cosine"
    steps = f"{done} steps are done, of {before.steps} before and of {now.steps} now"
    return now, f"{steps}: the learning rate is {rate}, and {falls}"
