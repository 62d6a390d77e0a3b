"""Steps whose numbers the host has not read yet."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch

from lvsm_train.data.step_inputs import StepInput
from lvsm_train.device.devices import Numbers, on_device
from lvsm_train.device.ranks import Ranks
from lvsm_train.training.log import Log
from lvsm_train.training.state import State


class _Launched(NamedTuple):
    """A step that the device may still be at. values: what the host knew; numbers: means by `names`, then wishes, norm, void."""

    step_input: StepInput
    names: list[str]
    values: dict[str, float]
    numbers: Numbers


class Behind:
    """Steps whose numbers the host has not read yet.

    On a GPU one may be: the device then has its next step before it ends this one, and never waits for the host. What follows
    from a step's numbers (log, spikes, an end after too many skipped ones) comes one step later there.
    """

    def __init__(self, state: State, log: Log, ranks: Ranks) -> None:
        self.state, self.log, self.ranks = state, log, ranks
        # ranks of a cycle have to know at once whether one of them wants a checkpoint: no step follows where they wait
        at_once = state.cfg.cycle and ranks.world > 1
        self.most = 1 if state.optimizers.unattended and not at_once else 0
        self.launched: deque[_Launched] = deque()
        self.wishes = False, False

    def step(
        self, terms: dict[str, torch.Tensor], step_input: StepInput, wishes: tuple[bool, bool], due: bool
    ) -> tuple[bool, bool]:
        """Update the weights by the gradients that gave `terms`, and report what is known by now.

        wishes: (stop, a checkpoint) of this rank; returned are those of all ranks. due: the host needs all numbers now.
        """
        shared = torch.stack([*terms.values()])
        if self.ranks.world > 1:
            shared = self.ranks.all_reduce_mean(torch.cat([shared, on_device(wishes, shared)]))
        lr, moved = self.state.step(step_input.step, step_input.progress, shared[list(terms).index("loss")])
        numbers = Numbers(torch.cat([shared.double(), moved]))
        self.launched.append(_Launched(step_input, list(terms), {"lr": lr}, numbers))
        if self.ranks.world == 1:
            self.wishes = wishes
        self.catch_up(self.most)
        if due or any(self.wishes):
            self.catch_up()
        return self.wishes

    def catch_up(self, most: int = 0) -> None:
        """Report all steps but the last `most`. Raises UserError where too many were skipped, or losses spike again."""
        while len(self.launched) > most:
            step_input, names, known, numbers = self.launched.popleft()
            *means, norm, void = numbers.read()
            if self.ranks.world > 1:
                *means, stop, save = means
                self.wishes = stop > 0, save > 0
            values = dict(zip(names, means, strict=True)) | {"grad_norm": norm, "void": void} | known
            self.state.count_skipped(values)
            self.log.step(step_input.step + 1, values, step_input)
            self.log.say(self.state.move.says, self.state.roll_back_on_spike(step_input.step + 1, values["loss"]))
            self.state.move.says = ""
