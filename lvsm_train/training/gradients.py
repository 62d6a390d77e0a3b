"""From the batches of a step to the gradient of its loss, in the way that suits the device and the ranks."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lvsm_train.config.train import TrainConfig
from lvsm_train.data.batches import TENSORS, Batch
from lvsm_train.device import activations, tuning
from lvsm_train.device.devices import autocast, dtype_of
from lvsm_train.device.flops import attentions, training_flops
from lvsm_train.device.graphs import Recorded
from lvsm_train.device.ranks import Ranks
from lvsm_train.device.sharding import is_sharded
from lvsm_train.losses.loss import Loss
from lvsm_train.models.lvsm import HW, LVSM, image_size
from pipeline.core.errors import UserError

Terms = dict[str, Tensor]


class Gradients:
    """gradients(batches, step) leaves the gradient of the mean over batches, and over ranks, in the weights of net.

    loss: what is brought down. Kernels are chosen, blocks compiled and recomputed with the first batch.
    """

    def __init__(self, cfg: TrainConfig, net: LVSM, device: torch.device, ranks: Ranks) -> None:
        self.cfg, self.net, self.device, self.ranks = cfg, net, device, ranks
        self.loss = Loss(cfg.loss).to(device)
        self.model: torch.nn.Module = net
        self.recorded: Recorded | None = None
        self.known: set[HW] = set()

    def suit(self, batch: Batch) -> list[str]:
        """Prepares for batches of this size of picture, once. Answers what a user should hear.

        Raises UserError for CUDA graphs that cannot be.
        """
        hw = image_size(batch.image)
        if hw in self.known:
            return []
        data = self.cfg.data
        counts = data.batch, data.inputs, data.targets
        notes = []
        if self.device.type == "cuda":
            dtype = dtype_of(self.cfg.precision, self.device)
            asked = attentions(self.cfg.model, *counts, hw)
            notes.append(tuning.use_attention(tuning.choose_attention(asked, self.device, dtype)))
        if not self.known:
            notes += self._start(training_flops(self.cfg.model, *counts, hw), hw)
        self.known.add(hw)
        return notes

    def _start(self, flops: float, hw: HW) -> list[str]:
        """What is done once: recomputation has to be known before blocks are compiled, and both before ranks are joined."""
        cfg, data, notes = self.cfg, self.cfg.data, []
        count = self._recomputed(hw) if cfg.recompute is None else cfg.recompute
        self.net.set_recompute(count)
        if count:
            notes.append(
                f"{min(count, cfg.model.layers)} of {cfg.model.layers} blocks are computed again in the backward pass"
            )
        fixed = data.least_inputs == data.inputs and data.least_targets == data.targets
        alone = fixed and self.ranks.world == 1
        way = tuning.compile_mode(self.device, flops, alone) if cfg.compile == "auto" else cfg.compile
        if way == "graphs" and not alone:
            raise UserError(
                "--compile graphs records one step and plays it again: it needs one rank, and steps of one shape",
                "--compile blocks",
            )
        if way != "no":
            tuning.compile_blocks(self.net, fixed)
            notes.append(
                "blocks are compiled with the first steps" + (", which become CUDA graphs" * (way == "graphs"))
            )
        if way == "graphs":
            self.recorded = Recorded(self.net, self._backward)
        if self.ranks.world > 1 and not is_sharded(self.net):
            on = [self.device] if self.device.type == "cuda" else None
            self.model = DistributedDataParallel(self.net, device_ids=on, gradient_as_bucket_view=True)
        return notes

    def _recomputed(self, hw: HW) -> int:
        """As few blocks as the memory asks for, with pictures as large as they will become."""
        budget = activations.budget(self.net, self.device)
        if budget is None:
            return 0
        data = self.cfg.data
        width = data.res or hw[1]

        def forward(samples: int) -> Tensor:
            def views(count: int) -> list[Tensor]:
                image = torch.zeros((samples, count, 3, hw[0] * width // hw[1], width), dtype=torch.uint8)
                c2w, k = torch.eye(4).expand(samples, count, 4, 4), torch.ones(4).expand(samples, count, 4)
                return [image.to(self.device), c2w.to(self.device), k.to(self.device)]

            return self._loss(True, *views(data.inputs), *views(data.targets))[0]

        return activations.blocks_to_recompute(activations.estimate_saved(self.net, forward, data.batch), budget)

    def __call__(self, batches: list[Batch], step: int) -> Terms:
        """Answers this rank's loss and its terms. Raises UserError where memory does not suffice."""
        told: Terms = {}
        late = step >= self.cfg.loss.perceptual_from
        for number, batch in enumerate(batches):
            tensors = [getattr(batch, name) for name in ("image", "c2w", "fxfycxcy", *TENSORS[3:])]
            try:
                with self._apart(number + 1 < len(batches)):
                    terms = (self.recorded or self._backward)(late, *tensors)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"the memory of {self.device} is full: {str(error).splitlines()[0]}", self._hint()
                ) from None
            for name, term in terms.items():
                told[name] = told[name] + term if name in told else term
        return {name: term / len(batches) for name, term in told.items()}

    def _apart(self, more: bool) -> Any:
        """Ranks meet at the last batch of a step alone; with weights that are cut at each, for gradients to stay cut."""
        if more and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _backward(self, late: bool, *tensors: Tensor) -> Terms:
        value, terms = self._loss(late, *tensors)
        (value / self.cfg.accumulate).backward()
        return {"loss": value.detach()} | terms

    def _loss(
        self, late: bool, image: Tensor, c2w: Tensor, k: Tensor, target: Tensor, target_c2w: Tensor, target_k: Tensor
    ) -> tuple[Tensor, Terms]:
        """late: with the terms that set in later."""
        with autocast(self.cfg.precision, self.device):
            render = self.model(image.float() / 255, c2w, k, target_c2w, target_k)
        wanted = target.float() / 255
        value, terms = self.loss(
            render.flatten(0, 1), wanted.flatten(0, 1), self.cfg.loss.perceptual_from if late else -1
        )
        return value, terms

    def _hint(self) -> str:
        cfg = self.cfg
        raised = "" if cfg.global_batch else f" and raise --accumulate ({cfg.accumulate})"
        return (
            f"lower --batch ({cfg.data.batch}){raised}, which keeps the recipe; or lower "
            f"--targets ({cfg.data.targets}) or --inputs; or --recompute {cfg.model.layers}"
        )
