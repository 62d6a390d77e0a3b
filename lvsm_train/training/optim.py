"""Optimisers, skipped steps, and the exponential moving average of the weights."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lvsm_train.config.schedule import Schedule
from lvsm_train.config.train import OptimConfig
from lvsm_train.device.foreach import lerp_, storages
from lvsm_train.device.sharding import full, local, shard_like
from lvsm_train.training.guards import NormGuard
from lvsm_train.training.muon import Muon
from pipeline.core.errors import UserError

WITHIN_BLOCKS = re.compile(r"(^|\.)(attn|mlp|scene_keys)\.")
FUSED = ("lr", "fused", "capturable", "foreach")  # settings of an optimiser that depend on the device, not on the run


class Moved(NamedTuple):
    """Outcome of a step, as scalar tensors on the device. norm: of the gradient before clipping. void: the step was skipped."""

    norm: Tensor
    void: Tensor


class Optimizers:
    """One or two optimisers that act as one. The schedule also advances over skipped steps.

    unattended: decide on the device whether a step is skipped and how much is clipped, with learning rate and decisions in
    tensors. A step then never waits for the device, launches the same kernels on the same memory each time, and can be recorded
    as a CUDA graph. By default so on GPUs; elsewhere decisions are read, and skipped steps cost nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: OptimConfig,
        steps: int,
        guard: NormGuard | None = None,
        unattended: bool | None = None,
    ) -> None:
        self.cfg = cfg
        self.schedule = Schedule(steps, cfg.warmup, cfg.final_lr, cfg.cooldown)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        on_gpu = bool(self.parameters) and self.parameters[0].is_cuda
        self.unattended = on_gpu if unattended is None else unattended
        self.is_guarded = False
        device = self.parameters[0].device if self.parameters else torch.device("cpu")
        self.guard = guard or NormGuard(cfg.skip_factor, device)
        matrices = [parameter for name, parameter in model.named_parameters() if _is_block_matrix(name, parameter)]
        chosen = {id(parameter) for parameter in matrices} if cfg.optimizer == "muon" else set()
        rest = [parameter for parameter in self.parameters if id(parameter) not in chosen]
        groups = [
            {"params": [each for each in rest if each.ndim != 1], "weight_decay": cfg.weight_decay},
            {"params": [each for each in rest if each.ndim == 1], "weight_decay": 0.0},
        ]
        fused = on_gpu or self.unattended
        adamw = torch.optim.AdamW(groups, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), eps=1e-8, fused=fused)
        self.all: list[torch.optim.Optimizer] = [adamw]
        if chosen:
            self.all.append(Muon(matrices, lr=cfg.lr, weight_decay=cfg.weight_decay))
        if self.unattended:
            self.lr, self.guarded, self.void = (torch.zeros((), device=device) for _ in range(3))
            self._attach()

    def _attach(self) -> None:
        """Give both optimisers the tensors that they read learning rate and decision from (torch's names, as GradScaler has)."""
        for optimizer in self.all:
            optimizer.found_inf = self.void  # type: ignore[attr-defined]
            optimizer._warned_capturable_if_run_uncaptured = True  # the first steps are not captured
            for group in optimizer.param_groups:
                group["lr"] = self.lr
                if group.get("fused"):
                    group["capturable"] = self.lr.is_cuda

    def bind_gradients(self) -> None:
        """Give all weights gradients of 0 that lie in one piece of memory for good: few kernels treat them all, and graphs
        find them. Not for ranks, whose gradients lie in buckets."""
        flat = self.parameters[0].new_zeros(sum(each.numel() for each in self.parameters))
        for parameter, part in zip(self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def memory(self) -> tuple[int, ...]:
        """Addresses of all gradients, 0 for those that are not there."""
        return tuple(0 if each.grad is None else each.grad.data_ptr() for each in self.parameters)

    def norm(self) -> Tensor:
        """Global gradient norm, as a scalar tensor on the device, float64 (no host sync)."""
        return full(nn.utils.get_total_norm(self._gradients(), foreach=True)).double()

    def step(self, number: float, loss: Tensor | None = None) -> Moved:
        """Clip gradients, update the weights unless the step is skipped, and clear gradients in any case.

        number: position in the schedule. loss: a step whose loss is not finite is skipped. Non-finite entries of the gradient
        count as 0, as published; a step is skipped whose norm is larger than --skip-above, or an outlier to the guard.
        """
        self.plan(number)
        return self.move(loss)

    def plan(self, number: float) -> float:
        """Set learning rate and guard for the step at `number` of the schedule; returns the rate."""
        lr = self.cfg.lr * self.schedule.share(number)
        guarded = number >= self.cfg.warmup
        if self.unattended:
            self.lr.fill_(lr)
            self.guarded.fill_(float(guarded))
        else:
            self.is_guarded = guarded
            for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in self.all):
                group["lr"] = lr
        return lr

    def move(self, loss: Tensor | None = None) -> Moved:
        """Take the step that was planned."""
        moved, share = self._judge(loss)
        gradients = [local(each) for each in self._gradients()]
        if self.unattended:
            self.void.copy_(moved.void)
            torch._foreach_mul_(storages(gradients), share * (1 - self.void))
        elif not moved.void:
            torch._foreach_mul_(gradients, share)
        if self.unattended or not moved.void:
            for optimizer in self.all:
                optimizer.step()
        self.zero_grad()
        return moved

    def _judge(self, loss: Tensor | None) -> tuple[Moved, Tensor]:
        """Outcome of a step, and what its gradient, whose non-finite entries become 0, is multiplied by to be clipped."""
        raw = self.norm()
        void = self.guard.is_outlier(raw, self.guarded if self.unattended else self.is_guarded)
        for flat in storages([local(each) for each in self._gradients()]):
            torch.nan_to_num_(flat, nan=0.0, posinf=0.0, neginf=0.0)
        norm = self.norm()
        void = void | ~torch.isfinite(norm)
        if self.cfg.skip_above:
            void = void | (norm > self.cfg.skip_above)
        if loss is not None:
            void = void | ~torch.isfinite(loss)
        share = torch.where(norm > self.cfg.clip, self.cfg.clip / (norm + 1e-6), 1.0)
        return Moved(norm, void), share.float()

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def zero_grad(self) -> None:
        """Clear all gradients. Unattended, they keep their memory."""
        if self.unattended:
            torch._foreach_zero_(storages(self._gradients()))
            return
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """States by the optimiser's number, as strings. Learning rates are numbers."""
        states = {str(i): optimizer.state_dict() for i, optimizer in enumerate(self.all)}
        for group in itertools.chain.from_iterable(state["param_groups"] for state in states.values()):
            group["lr"] = float(group["lr"])
        return states

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
            groups = [
                there | {name: here[name] for name in FUSED if name in here}
                for there, here in zip(saved["param_groups"], optimizer.param_groups, strict=True)
            ]
            optimizer.load_state_dict({"state": of_each, "param_groups": groups})
        if self.unattended:
            self._attach()


def _is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """True for matrices between hidden states: not tokenizers, head or latents, one side of which is pixels or slots."""
    return parameter.requires_grad and parameter.ndim == 2 and bool(WITHIN_BLOCKS.search(name))


class Average:
    """Moving average of a model's weights: mean = decay * mean + (1 - decay) * weight, with a smaller decay at first.

    unattended: as in Optimizers, the decay is in a tensor.
    """

    def __init__(self, model: nn.Module, decay: float, unattended: bool = False) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.share: float | Tensor = 0.0
        if unattended:
            self.share = torch.zeros((), device=next(iter(self.weights.values())).device)

    def update(self, model: nn.Module) -> None:
        """Add the current weights of `model`."""
        self.plan()
        self.move(model)

    def plan(self) -> None:
        """Set by how much the mean moves with the next weights."""
        self.updates += 1
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        if isinstance(self.share, Tensor):
            self.share.fill_(share)
        else:
            self.share = share

    @torch.no_grad()
    def move(self, model: nn.Module) -> None:
        """Move the mean as was planned."""
        state = model.state_dict()
        means = [local(mean) for mean in self.weights.values()]
        lerp_(means, [local(state[name]) for name in self.weights], self.share)

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
