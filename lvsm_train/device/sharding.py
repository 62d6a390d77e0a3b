"""Weights, gradients and moments that are cut among ranks (FSDP2), for models that one GPU cannot hold.

A checkpoint knows nothing of it: tensors are put together when they are written, and cut when they are read.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lvsm_train.config.train import TrainConfig
from lvsm_train.device.ranks import Ranks
from lvsm_train.models.blocks import Block, SceneKeys
from lvsm_train.models.lvsm import LVSM

SHARE = 0.6  # of a GPU's memory for what stands from step to step, the rest for activations; an estimate, not measured


def standing_bytes(weights: int, averaged: bool) -> int:
    """What so many weights take on a GPU that has all of them: with gradients, AdamW's two moments and perhaps a mean of them."""
    return 4 * weights * (5 if averaged else 4)


def is_sharded(net: torch.nn.Module) -> bool:
    """Whether `shard` was here."""
    return any(isinstance(each, DTensor) for each in net.parameters())


def cut_modules(net: LVSM) -> list[torch.nn.Module]:
    """Those whose weights are put together when they are used."""
    return [module for module in net.modules() if isinstance(module, FSDPModule)]


def to_be_cut(cfg: TrainConfig, weights: int, device: torch.device, ranks: Ranks) -> bool:
    """Whether ranks cut so many weights among them. auto: where `standing_bytes` is more than SHARE of the GPU's memory."""
    if ranks.world == 1 or cfg.sharding != "auto":
        return ranks.world > 1 and cfg.sharding == "fsdp"
    if device.type != "cuda":
        return False
    needed = standing_bytes(weights, bool(cfg.optim.ema))
    return needed > SHARE * torch.cuda.get_device_properties(device).total_memory


def shard(net: LVSM, device: torch.device) -> None:
    """Leaves each rank, on its device, its part of each weight; they are put together block by block as they are needed.

    In float32, as autocast wants them: norms stay as exact as they are on one rank. Under bfloat16, what autocast makes of
    matrices stays whole from forward to backward, 2 bytes per weight, except of blocks that are recomputed.
    """
    # of keys and values, which nobody changes in place
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for module in net.modules():
        if isinstance(module, Block | SceneKeys):
            fully_shard(module, mesh=mesh)
    fully_shard(net, mesh=mesh)


def local(tensor: Tensor) -> Tensor:
    """This rank's part, in the same memory; of a tensor that is not cut, all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_number(value: Tensor) -> Tensor:
    """A scalar that ranks computed together, as each of them has it then."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gather_full(tree: Any, keep: bool) -> Any:
    """Dicts and lists with whole tensors in place of cut ones, on the CPU; None for these where they are not to be kept.

    All ranks have to call it, with equal trees.
    """
    if isinstance(tree, dict):
        return {name: gather_full(one, keep) for name, one in tree.items()}
    if isinstance(tree, list):
        return [gather_full(one, keep) for one in tree]
    if isinstance(tree, DTensor):
        whole = tree.full_tensor()
        return whole.cpu() if keep else None
    return tree


def shard_like(whole: Tensor, model: Tensor) -> Tensor:
    """This rank's part of a tensor that all have, cut as `model` is; the tensor itself where that is of another shape."""
    if not isinstance(model, DTensor) or whole.shape != model.shape:
        return whole
    there = whole.to(model.device)
    return distribute_tensor(there, model.device_mesh, model.placements, src_data_rank=None)


class CutMuon(torch.optim.Muon):
    """Muon on matrices that are cut. Each is put together for its step: to turn it into an orthogonal one takes ten products of
    matrices in bfloat16, whose rounding would differ with every way to cut it."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step. All ranks have to come."""
        for group in self.param_groups:
            settings = {name: value for name, value in group.items() if name != "params"}
            for mine in group["params"]:
                moment = self.state[mine].setdefault("momentum_buffer", torch.zeros_like(mine))
                matrix, whole = mine.full_tensor(), moment.full_tensor()
                matrix.grad = mine.grad.full_tensor()
                alone = torch.optim.Muon([matrix], **settings)
                alone.state[matrix]["momentum_buffer"] = whole
                alone.step()
                mine.copy_(shard_like(matrix, mine))
                moment.copy_(shard_like(whole, moment))
