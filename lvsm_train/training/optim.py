"""Optimisers, skipped steps, and the exponential moving average of the weights."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lvsm_train.config.train import OptimConfig
from lvsm_train.device.sharding import full, local, shard_like
from lvsm_train.training.muon import Muon
from lvsm_train.training.schedule import Schedule
from pipeline.core.errors import UserError

WITHIN_BLOCKS = re.compile(r"(^|\.)(attn|mlp|scene_keys)\.")


class Optimizers:
    """One or two optimisers that act as one. The schedule also advances over skipped steps."""

    def __init__(self, model: nn.Module, cfg: OptimConfig, steps: int) -> None:
        self.cfg = cfg
        self.schedule = Schedule(steps, cfg.warmup, cfg.final_lr, cfg.cooldown)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        matrices = [parameter for name, parameter in model.named_parameters() if _is_block_matrix(name, parameter)]
        chosen = {id(parameter) for parameter in matrices} if cfg.optimizer == "muon" else set()
        rest = [parameter for parameter in self.parameters if id(parameter) not in chosen]
        groups = [
            {"params": [each for each in rest if each.ndim != 1], "weight_decay": cfg.weight_decay},
            {"params": [each for each in rest if each.ndim == 1], "weight_decay": 0.0},
        ]
        on_gpu = bool(self.parameters) and self.parameters[0].is_cuda
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), eps=1e-8, fused=on_gpu)
        ]
        if chosen:
            self.all.append(Muon(matrices, lr=cfg.lr, weight_decay=cfg.weight_decay))

    def norm(self) -> torch.Tensor:
        """Global gradient norm, as a scalar tensor on the device (no host sync)."""
        return full(nn.utils.get_total_norm(self._gradients(), foreach=True))

    def step(self, number: float, norm: float | None = None) -> dict[str, float]:
        """Clip gradients, update the weights unless the step is skipped, and clear gradients in any case.

        number: position in the schedule. norm: what `norm` gave. Non-finite gradient entries count as 0, as published.
        Returns grad_norm (before clipping), lr, and void: 1.0 if the step was skipped.
        """
        lr = self.cfg.lr * self.schedule.share(number)
        norm = float(self.norm()) if norm is None else norm
        if not math.isfinite(norm):
            for gradient in self._gradients():
                torch.nan_to_num_(local(gradient), nan=0.0, posinf=0.0, neginf=0.0)
            norm = float(self.norm())
        skipped = not math.isfinite(norm) or (self.cfg.skip_above > 0 and norm > self.cfg.skip_above)
        if not skipped:
            if norm > self.cfg.clip:
                torch._foreach_mul_([local(each) for each in self._gradients()], self.cfg.clip / (norm + 1e-6))
            for optimizer in self.all:
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
        self.zero_grad()
        return {"grad_norm": norm, "lr": lr, "void": float(skipped)}

    def _gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def zero_grad(self) -> None:
        """Clear all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """States by the optimiser's number, as strings."""
        return {str(i): optimizer.state_dict() for i, optimizer in enumerate(self.all)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state`, sharded like the weights. Raises UserError if optimisers of other weights wrote it."""
        sizes = [[len(group["params"]) for group in optimizer.param_groups] for optimizer in self.all]
        saved_sizes = [[len(group["params"]) for group in state[str(i)]["param_groups"]] for i in range(len(state))]
        if sizes != saved_sizes:
            raise UserError(
                "the checkpoint is of an earlier version, whose optimisers shared the weights out in another way",
                "--start-from this run, with another --out, takes its weights and begins a new schedule",
            )
        for i, optimizer in enumerate(self.all):
            saved = state[str(i)]
            own = itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups)
            of_each = {
                number: {name: shard_like(value, parameter) for name, value in saved["state"][number].items()}
                for number, parameter in enumerate(own)
                if number in saved["state"]
            }
            optimizer.load_state_dict(saved | {"state": of_each})


def _is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """True for matrices between hidden states: not tokenizers, head or latents, one side of which is pixels or slots."""
    return parameter.requires_grad and parameter.ndim == 2 and bool(WITHIN_BLOCKS.search(name))


class Average:
    """Moving average of a model's weights: mean = decay * mean + (1 - decay) * weight, with a smaller decay at first."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the current weights of `model`."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        state = model.state_dict()
        means = [local(mean) for mean in self.weights.values()]
        torch._foreach_lerp_(means, [local(state[name]) for name in self.weights], 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Mean weights and the number of updates."""
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, sharded like the weights."""
        self.updates = int(state["updates"])
        for name, value in state["weights"].items():
            self.weights[name].copy_(shard_like(value, self.weights[name]))


def count(parameters: Iterable[nn.Parameter]) -> int:
    """Number of trainable weights."""
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
