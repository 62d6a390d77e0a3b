"""Gradients of a step: forward and backward passes of its batches, compiled, recomputed and reduced as device and ranks allow."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lvsm_train.config.shapes import HW
from lvsm_train.config.train import TrainConfig
from lvsm_train.data.batches import Batch
from lvsm_train.data.layers import channels
from lvsm_train.device import activations, tuning
from lvsm_train.device.devices import autocast, dtype_of
from lvsm_train.device.flops import attentions, training_flops
from lvsm_train.device.graphs import Recorded
from lvsm_train.device.ranks import Ranks
from lvsm_train.device.sharding import is_sharded
from lvsm_train.losses.layers import layer_loss
from lvsm_train.losses.loss import Loss, temporal_gradient
from lvsm_train.models.lvsm import LVSM, image_size
from pipeline.core.errors import UserError

Terms = dict[str, Tensor]


class Gradients:
    """gradients(batches, step) leaves the gradient of the mean loss over batches and ranks in the weights of `net`.

    `prepare` chooses kernels and recomputation, and compiles blocks, before the first batch of each image size.
    """

    def __init__(self, cfg: TrainConfig, net: LVSM, device: torch.device, ranks: Ranks) -> None:
        self.cfg, self.net, self.device, self.ranks = cfg, net, device, ranks
        self.loss = Loss(cfg.loss, device=device)
        self.model: torch.nn.Module = net
        self.recorded: Recorded | None = None
        self.prepared: set[HW] = set()

    def prepare(self, batch: Batch, sizes: Sequence[HW] = ()) -> list[str]:
        """Prepare for batches of this image size, once, and return notes for the user. sizes: of all that come before the
        curriculum's next stage.

        Raises UserError for --compile graphs where steps cannot be recorded.
        """
        hw = image_size(batch.image)
        if hw in self.prepared:
            return []
        data = self.cfg.data
        counts = data.batch, data.inputs, data.targets
        notes = []
        if self.device.type == "cuda":
            dtype = dtype_of(self.cfg.precision, self.device)
            shapes = attentions(self.cfg.model, *counts, hw)
            kernels = ("auto",) if self.cfg.deterministic else None  # a measurement may choose another one next time
            notes.append(tuning.use_attention(tuning.choose_attention(shapes, self.device, dtype, kernels)))
        if not self.prepared:
            largest = max((*sizes, hw), key=math.prod)
            notes += self._start(training_flops(self.cfg.model, *counts, largest), largest, len({*sizes, hw}) == 1)
        self.prepared.add(hw)
        return notes

    def _start(self, flops: float, hw: HW, one_size: bool) -> list[str]:
        """Set up compilation and recomputation, then DDP, which has to know both. hw: the largest of this stage."""
        cfg, data, notes = self.cfg, self.cfg.data, []
        fixed = data.least_inputs == data.inputs and data.least_targets == data.targets
        recordable = fixed and one_size and self.ranks.world == 1
        mode = tuning.compile_mode(self.device, flops, recordable) if cfg.compile == "auto" else cfg.compile
        if mode == "graphs" and not recordable:
            raise UserError(
                "--compile graphs records one step and plays it again: it needs one rank, and steps of one shape",
                "--compile blocks",
            )
        count = self._compile(hw, mode != "no", fixed)
        self.net.set_recompute(count)
        if count:
            notes.append(
                f"{min(count, cfg.model.layers)} of {cfg.model.layers} blocks are computed again in the backward pass"
            )
        if mode != "no":
            notes.append(
                "blocks are compiled with the first steps" + (", which become CUDA graphs" * (mode == "graphs"))
            )
        if mode == "graphs":
            self.recorded = Recorded(self.net, self._backward)
        if self.ranks.world > 1 and not is_sharded(self.net):
            on = [self.device] if self.device.type == "cuda" else None
            self.model = DistributedDataParallel(self.net, device_ids=on, gradient_as_bucket_view=True)
        return notes

    def _compile(self, hw: HW, wanted: bool, fixed: bool) -> int:
        """Compile blocks if wanted. Returns the smallest number of recomputed blocks that fits the memory budget at the
        curriculum's largest image size, or what --recompute says. Compiled blocks are measured only where others do not fit."""
        budget = None if self.cfg.recompute is not None else activations.budget(self.net, self.device)
        forward, batch = self._forward_of_zeros(hw), self.cfg.data.batch
        saved = None if budget is None else activations.estimate_saved(self.net, forward, batch)
        if wanted:
            tuning.compile_blocks(self.net, fixed)
        if budget is None or saved is None:
            return self.cfg.recompute or 0
        count = activations.blocks_to_recompute(saved, budget)
        if count and wanted and not is_sharded(self.net):
            saved = activations.correct_for_compiled(saved, self.net, forward, batch)
            count = activations.blocks_to_recompute(saved, budget)
        return count

    def _forward_of_zeros(self, hw: HW) -> Callable[[int], Tensor]:
        """Function from a number of samples to what is minimised for such a batch of zeros, at the largest image size."""
        data = self.cfg.data
        width = data.res or hw[1]

        def forward(samples: int) -> Tensor:
            def views(count: int) -> list[Tensor]:
                image = torch.zeros((samples, count, 3, hw[0] * width // hw[1], width), dtype=torch.uint8)
                c2w, k = torch.eye(4).expand(samples, count, 4, 4), torch.ones(4).expand(samples, count, 4)
                return [one.to(self.device) for one in (image, c2w, k, torch.zeros(samples, count))]

            tensors, numbers = [*views(data.inputs), *views(data.targets)], channels(self.cfg.model.aux)
            if numbers:
                shape = (samples, data.targets, numbers, *image_size(tensors[0]))
                tensors.append(torch.zeros(shape, dtype=torch.float16, device=self.device))
            return self._loss(True, *tensors)[0]

        return forward

    def __call__(self, batches: list[Batch], step: int) -> Terms:
        """Return this rank's mean loss and loss terms, on the device. Raises UserError when memory is full."""
        sums: Terms = {}
        late = step >= self.cfg.loss.perceptual_from
        for number, batch in enumerate(batches):
            try:
                with self._reduction(number + 1 == len(batches)):
                    terms = (self.recorded or self._backward)(late, *batch.tensors)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"the memory of {self.device} is full: {str(error).splitlines()[0]}", self._hint()
                ) from None
            for name, term in terms.items():
                sums[name] = sums[name] + term if name in sums else term
        return {name: term / len(batches) for name, term in sums.items()} if len(batches) > 1 else sums

    def _reduction(self, last: bool) -> Any:
        """Context of a backward pass: DDP all-reduces at a step's last batch only; FSDP at each, or gradients would be whole."""
        if not last and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _backward(self, late: bool, *tensors: Tensor) -> Terms:
        value, terms = self._loss(late, *tensors)
        (value / self.cfg.accumulate).backward()
        return terms

    def _loss(
        self,
        late: bool,
        image: Tensor,
        c2w: Tensor,
        k: Tensor,
        time: Tensor,
        target: Tensor,
        target_c2w: Tensor,
        target_k: Tensor,
        target_time: Tensor,
        layers: Tensor | None = None,
    ) -> tuple[Tensor, Terms]:
        """Value to be minimised, and what a step reports: "loss", of the pictures alone, and all terms.

        late: include the terms that start at loss.perceptual_from. layers: targets of --aux, whose terms are aux_NAME.
        """
        aux = layers is not None
        with autocast(self.cfg.precision, self.device):
            times = {"time": time, "target_time": target_time}
            made = self.model(image.float() / 255, c2w, k, target_c2w, target_k, aux=aux, **times)
        render, heads = made if aux else (made, {})
        expected = target.float() / 255
        value, terms = self.loss(
            render.flatten(0, 1), expected.flatten(0, 1), self.cfg.loss.perceptual_from if late else -1
        )
        if weight := self.cfg.loss.temporal_gradient:
            terms["temporal_gradient"] = (
                change := temporal_gradient(render, expected, target_c2w, target_time)
            ).detach()
            value = value + weight * change
        if layers is None:
            return value, {"loss": value.detach()} | terms
        beside, of_layers = layer_loss(heads, layers)
        terms |= {f"aux_{name}": term for name, term in of_layers.items()}
        # curves and the guard against spikes compare pictures; what is not finite shows all the same, and the step is skipped
        return value + self.cfg.loss.aux_weight * beside, {"loss": (value + 0 * beside).detach()} | terms

    def _hint(self) -> str:
        cfg = self.cfg
        raised = "" if cfg.global_batch else f" and raise --accumulate ({cfg.accumulate})"
        return (
            f"lower --batch ({cfg.data.batch}){raised}, which keeps the recipe; or lower "
            f"--targets ({cfg.data.targets}) or --inputs; or --recompute {cfg.model.layers}"
        )
