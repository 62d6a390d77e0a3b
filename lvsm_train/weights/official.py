"""Conversion of weights from and to the official LVSM (arXiv 2410.17242)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from lvsm_train.config.train import ModelConfig
from lvsm_train.models.lvsm import LVSM, build

WHOLE = "give the whole state dict of an official LVSM with qk-norm"
STEMS = {
    "image_tokens.linear.weight": "image_tokenizer.1.weight",
    "ray_tokens.linear.weight": "target_pose_tokenizer.1.weight",
    "head.norm.weight": "image_token_decoder.0.weight",
    "head.linear.weight": "image_token_decoder.1.weight",
}
OWN_STEMS = {
    "decoder_only": {"norm.weight": "transformer_input_layernorm.weight"},
    "encoder_decoder": {
        "norm.weight": "transformer_input_layernorm_decoder.weight",
        "latents": "n_light_field_latent",
    },
}
STACKS = {
    "decoder_only": {"blocks": "transformer_blocks"},
    "encoder_decoder": {"encoder": "transformer_encoder", "decoder": "transformer_decoder"},
}
IN_BLOCK = {
    "norm1.weight": "norm1.weight",
    "attn.qkv.weight": "attn.to_qkv.weight",
    "attn.out.weight": "attn.fc.weight",
    "attn.q_norm.weight": "attn.q_norm.weight",
    "attn.k_norm.weight": "attn.k_norm.weight",
    "norm2.weight": "norm2.weight",
    "mlp.up.weight": "mlp.mlp.0.weight",
    "mlp.down.weight": "mlp.mlp.2.weight",
}


def from_official(state_dict: Mapping[str, Any], config: ModelConfig | None = None) -> LVSM:
    """Build an equivalent model of ours from the official state dict, bare or as a checkpoint {"model": state dict}.

    config: None to read it from the weights (`config_of`). Keys loss_computer.* (perceptual network) are ignored. Weights are
    float32 copies. Raises ValueError for missing or unexpected keys, other shapes, or a config of another model.
    """
    weights = _weights(state_dict)
    actual = config_of(weights)
    if config is not None:
        _compare(config, actual)
        actual = config
    model = build(actual, seed=0)
    names, ours = official_names(actual), model.state_dict()
    wrong = {
        "missing": (set(names.values()) - set(weights), WHOLE),
        "unexpected": (set(weights) - set(names.values()), "remove what is no weight of the official LVSM"),
    }
    for what, (keys, hint) in wrong.items():
        if keys:
            raise ValueError(
                f"{len(keys)} weights are {what}, first {min(keys)}: {hint} (read as {actual.kind}, {actual.layers} layers)"
            )
    for name, theirs in names.items():
        if weights[theirs].shape != ours[name].shape:
            raise ValueError(
                f"{theirs} is {tuple(weights[theirs].shape)}, and a model of dim {actual.dim}, head_dim {actual.head_dim}, patch "
                f"{actual.patch} has {tuple(ours[name].shape)}: look whether the file is damaged or the model was changed"
            )
    model.load_state_dict({name: weights[theirs] for name, theirs in names.items()})
    return model


def to_official(model: LVSM) -> dict[str, Tensor]:
    """State dict under official names, as copies on the CPU; torch.save({"model": ...}) makes an official checkpoint.

    Raises ValueError for models that the official code cannot run: unidirectional, or with prope.
    """
    ours = model.state_dict()
    return {theirs: ours[name].detach().cpu().clone() for name, theirs in official_names(model.config).items()}


def config_of(state_dict: Mapping[str, Any]) -> ModelConfig:
    """Config of official weights, read from their names and shapes. Raises ValueError if these are inconsistent."""
    weights = _weights(state_dict)
    kind: Literal["decoder_only", "encoder_decoder"]
    kind = "encoder_decoder" if "n_light_field_latent" in weights else "decoder_only"
    depths = [_depth(weights, stack) for stack in STACKS[kind].values()]
    dim, pixels = _shape(weights, STEMS["image_tokens.linear.weight"], 2)
    patch = math.isqrt(pixels // 9)
    if patch * patch * 9 != pixels:
        raise ValueError(
            f"image tokens are made of {pixels} numbers, not 9 for each pixel of a square patch: "
            "take a model of RGB and Plücker rays"
        )
    first = f"{next(iter(STACKS[kind].values()))}.0.attn.q_norm.weight"
    (head_dim,) = _shape(weights, first, 1)
    config = ModelConfig(kind=kind, dim=dim, head_dim=head_dim, patch=patch, layers=sum(depths))
    if kind == "encoder_decoder":
        latents = _shape(weights, "n_light_field_latent", 2)[0]
        config = dataclasses.replace(config, encoder_layers=depths[0], latents=latents)
    return config


def official_names(config: ModelConfig) -> dict[str, str]:
    """Our parameter name -> official name, for every parameter. Raises ValueError if there is no such official model."""
    if config.kind not in STACKS:
        raise ValueError(f"the official LVSM has no {config.kind} model: use {' or '.join(STACKS)}")
    if config.prope:
        raise ValueError(
            "prope True: the official LVSM has none, and its weights would mean something else; use prope False"
        )
    depths = [config.layers]
    if config.kind == "encoder_decoder":
        depths = [config.encoder_layers, config.layers - config.encoder_layers]
    names = STEMS | OWN_STEMS[config.kind]
    for (stack, theirs), depth in zip(STACKS[config.kind].items(), depths, strict=True):
        for i in range(depth):
            names |= {f"{stack}.{i}.{name}": f"{theirs}.{i}.{other}" for name, other in IN_BLOCK.items()}
    return names


def _weights(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of a state dict or checkpoint, without the perceptual network's."""
    inner = state_dict.get("model", state_dict)
    if not isinstance(inner, Mapping):
        raise ValueError(f"the checkpoint's model is a {type(inner).__name__}: give a dict from names to tensors")
    weights = {name: value for name, value in inner.items() if not name.startswith("loss_computer.")}
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{name} is a {type(value).__name__}: give the official state dict, or a checkpoint with a key model"
            )
    return weights


def _shape(weights: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    if name not in weights:
        raise ValueError(f"{name} is missing among {len(weights)} weights: {WHOLE}")
    shape = tuple(weights[name].shape)
    if len(shape) != dims:
        raise ValueError(f"{name} is {shape}, and {dims} dimensions are expected: {WHOLE}")
    return shape


def _depth(weights: Mapping[str, Tensor], stack: str) -> int:
    """Number of blocks of a stack: the highest number plus 1, so that a gap shows as missing weights."""
    numbers = [int(match[1]) for name in weights if (match := re.match(rf"{stack}\.(\d+)\.", name))]
    if not numbers:
        raise ValueError(f"no weight begins with {stack}.: {WHOLE}")
    return max(numbers) + 1


def _compare(config: ModelConfig, actual: ModelConfig) -> None:
    official_names(config)  # raises if there is no such official model
    fields = ["kind", "dim", "head_dim", "patch", "layers"]
    if actual.kind == "encoder_decoder":
        fields += ["encoder_layers", "latents"]
    for name in fields:
        asked, read = getattr(config, name), getattr(actual, name)
        if asked != read:
            raise ValueError(
                f"config has {name} {asked}, and the weights {read}: set {name} to {read}, or take other weights"
            )
