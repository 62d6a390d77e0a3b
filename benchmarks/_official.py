"""The LVSM authors' decoder-only class out of a checkout of a user's own, to be timed beside ours: none of it is in this project.

git clone https://github.com/Haian-Jin/LVSM   # CC BY-NC-SA 4.0: for research, not for products
pip install einops easydict
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lvsm_train.config.train import ModelConfig
from pipeline.core.errors import UserError


def official(checkout: Path, config: ModelConfig, inputs: int, targets: int, res: int) -> nn.Module:
    """Their model with their initial weights, on the CPU. `render` calls it.

    xformers' attention is SDPA here, which runs the same flash attention on a GPU; their loss, which wants weights from the
    network, is left out. Raises UserError where the checkout or a package is missing.
    """
    if not (checkout / "model" / "LVSM_scene_decoder_only.py").is_file():
        raise UserError(f"--official {checkout} is no checkout of LVSM", "git clone https://github.com/Haian-Jin/LVSM")
    for name in ("einops", "easydict"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"the official classes need {name}", f"pip install {name}")
    _stand_in("xformers.ops", memory_efficient_attention=_attention, fmha=_Flash)
    _stand_in("model.loss", LossComputer=_NoLoss)
    _stand_in("utils.camera_utils")  # for videos
    if "imageio" not in sys.modules and importlib.util.find_spec("imageio") is None:
        _stand_in("imageio")  # for videos
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    edict = importlib.import_module("easydict").EasyDict
    made: nn.Module = importlib.import_module("model.LVSM_scene_decoder_only").Images2LatentScene(
        edict(_settings(config, inputs, targets, res))
    )
    return made


def render(model: nn.Module, image: Tensor, c2w: Tensor, fxfycxcy: Tensor) -> Tensor:
    """Views (B, V + T, ...), inputs first -> their T targets (B, T, 3, H, W)."""
    batch = importlib.import_module("easydict").EasyDict(image=image, c2w=c2w, fxfycxcy=fxfycxcy)
    picture: Tensor = model(batch, has_target_image=False).render
    return picture


def _settings(config: ModelConfig, inputs: int, targets: int, res: int) -> dict[str, Any]:
    def tokenizer(channels: int) -> dict[str, int]:
        return {"image_size": res, "patch_size": config.patch, "in_channels": channels}

    transformer = {"d": config.dim, "d_head": config.head_dim, "n_layer": config.layers, "use_qk_norm": True}
    views = {"num_input_views": inputs, "num_target_views": targets, "num_views": inputs + targets}
    return {
        "model": {
            "image_tokenizer": tokenizer(9),
            "target_pose_tokenizer": tokenizer(6),
            "transformer": transformer | {"special_init": True, "depth_init": True},
        },
        "training": views | {"target_has_input": False, "grad_checkpoint_every": 1},
        "inference": {},
    }


class _NoLoss(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()


class _Flash:
    class flash:  # noqa: N801 (their name)
        FwOp = BwOp = None


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_bias: Any = None, p: float = 0.0, op: Any = None) -> Tensor:
    """(B, N, heads, head_dim), as xformers has it."""
    assert attn_bias is None and p == 0.0
    return functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def _stand_in(name: str, **has: Any) -> None:
    """A module of that name with these things in it, in place of one that is not installed or not wanted."""
    parent, _, child = name.rpartition(".")
    made = types.ModuleType(name)
    vars(made).update(has)
    sys.modules[name] = made
    if parent == "xformers":
        package = sys.modules.setdefault(parent, types.ModuleType(parent))
        setattr(package, child, made)


def autocast(device: torch.device) -> torch.autocast:
    """Theirs: bf16 on a GPU. On a CPU none, where their rays fail under it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
