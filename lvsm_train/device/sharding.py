"""Weights, gradients and moments sharded among ranks (FSDP2), for models that one GPU cannot hold.

Checkpoints do not depend on sharding: tensors are gathered before writing, and sharded again after reading.
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

SHARE = 0.6  # of a GPU's memory for the training state, the rest for activations; an estimate, not measured


def state_bytes(weights: int, averaged: bool) -> int:
    """Bytes of unsharded training state: weights, gradients, AdamW's two moments and, if `averaged`, the weights' average."""
    return 4 * weights * (5 if averaged else 4)


def is_sharded(net: torch.nn.Module) -> bool:
    """True after `shard`."""
    return any(isinstance(each, DTensor) for each in net.parameters())


def sharded_modules(net: LVSM) -> list[torch.nn.Module]:
    """Modules whose weights FSDP gathers when they are used."""
    return [module for module in net.modules() if isinstance(module, FSDPModule)]


def should_shard(cfg: TrainConfig, weights: int, device: torch.device, ranks: Ranks) -> bool:
    """True if `weights` weights are to be sharded. auto: if `state_bytes` exceeds SHARE of the GPU's memory."""
    if ranks.world == 1 or cfg.sharding != "auto":
        return ranks.world > 1 and cfg.sharding == "fsdp"
    if device.type != "cuda":
        return False
    needed = state_bytes(weights, bool(cfg.optim.ema))
    return needed > SHARE * torch.cuda.get_device_properties(device).total_memory


def shard(net: LVSM, device: torch.device) -> None:
    """Keep on each rank's device only its shard of each weight; FSDP gathers weights block by block as they are needed.

    Weights are gathered in float32 for autocast, so norms stay as exact as on one rank. Under bfloat16, autocast's copies of
    the gathered matrices live from forward to backward, 2 bytes per weight, except in recomputed blocks.
    """
    # about views of keys and values, which nothing changes in place
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for module in net.modules():
        if isinstance(module, Block | SceneKeys):
            fully_shard(module, mesh=mesh)
    fully_shard(net, mesh=mesh)


def local(tensor: Tensor) -> Tensor:
    """Shard of this rank, in the same memory; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """Tensor gathered from all ranks; the tensor itself if it is not sharded. Collective: all ranks must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_full(tree: Any, keep: bool) -> Any:
    """Copy of nested dicts and lists with sharded tensors gathered on the CPU; if not `keep`, None in their place.

    Collective: all ranks must call, with equal trees.
    """
    if isinstance(tree, dict):
        return {name: gather_full(one, keep) for name, one in tree.items()}
    if isinstance(tree, list):
        return [gather_full(one, keep) for one in tree]
    if isinstance(tree, DTensor):
        full = tree.full_tensor()
        return full.cpu() if keep else None
    return tree


def shard_like(full: Tensor, model: Tensor) -> Tensor:
    """Shard a tensor that all ranks have as `model` is sharded; the tensor itself if shapes differ or `model` is unsharded."""
    if not isinstance(model, DTensor) or full.shape != model.shape:
        return full
    return distribute_tensor(full.to(model.device), model.device_mesh, model.placements, src_data_rank=None)
