"""LVSM models (arXiv 2410.17242 and later work): posed input images and target cameras -> target images."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lvsm_train.config.parts import AUX, ModelConfig
from lvsm_train.config.shapes import HW
from lvsm_train.models import prope
from lvsm_train.models.blocks import Block, Head, KeysValues, SceneKeys, Stack, Tokenizer, initialise, layer_norm
from lvsm_train.models.prope import Codes

TIME_WAVES = 5  # of a time: the fastest has eight periods from 0 to 1


class TimeTokens(nn.Module):
    """Adds to the tokens of a view what a linear layer makes of its time t: of t and of sin and cos of pi t, 2 pi t, 4 pi t, ...

    Like rays beside a picture's colours, which a linear layer reads too, but equal for all patches of a view.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(1 + 2 * TIME_WAVES, dim, bias=False)

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        """Tokens (B, V * n, dim), times (B, V) -> (B, V * n, dim), float32."""
        with torch.autocast(tokens.device.type, enabled=False):
            angle = math.pi * time.float()[..., None] * 2.0 ** torch.arange(TIME_WAVES, device=time.device)
            features = torch.cat([time.float()[..., None], angle.sin(), angle.cos()], -1)
            added = functional.linear(features, self.linear.weight.float())
            return (tokens.unflatten(1, (time.shape[1], -1)) + added[:, :, None]).flatten(1, 2)


class Tokens(NamedTuple):
    """Encoded scenes of decoder_only: input tokens (B, V * n, dim) and their codes. frame: (B, 4, 4), see `LVSM`."""

    tokens: Tensor
    codes: Codes | None
    frame: Tensor


class Latents(NamedTuple):
    """Encoded scenes of encoder_decoder. tokens: (B, N, dim), an unordered set. frame: (B, 4, 4), see `LVSM`."""

    tokens: Tensor
    frame: Tensor


class Views(NamedTuple):
    """Encoded scenes of unidirectional: keys and values for each decoder block. frame: (B, 4, 4), see `LVSM`."""

    keys_values: tuple[KeysValues, ...]
    frame: Tensor


class LVSM(nn.Module):
    """Base class of the three models. Images are float (B, V, 3, H, W) in [0, 1]; c2w (B, V, 4, 4) is camera to world, OpenCV
    axes; fxfycxcy (B, V, 4) is in pixels of the image, the first pixel's centre at 0.5; sizes are (height, width) in pixels,
    multiples of the patch. Raises ValueError for anything else.

    Rays, tokenizers and output images are float32 also under autocast; the rest follows the caller's autocast.

    With prope, cameras are expressed relative to the first input camera (`frame`, its c2w). Between tokens with cameras the
    choice of frame cancels; latents have no camera (identity, no rotary code), so they live in this frame. Hence a rigid
    change of the world frame never matters, and the order of inputs matters for encoder_decoder alone.

    With temporal, views have times too, (B, V) and (B, T), 0 where none are given: see `TimeTokens`, and with prope the codes of
    `prope.camera_codes`. Other models pass over times.

    aux: a head of its own for each of config.aux, which training alone asks for; docs/training.md says what they predict.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_tokens = Tokenizer(9, config.patch, config.dim)
        self.ray_tokens = Tokenizer(6, config.patch, config.dim)
        self.head = Head(config.dim, config.patch)
        if config.temporal:
            self.input_time, self.target_time = TimeTokens(config.dim), TimeTokens(config.dim)
        self.aux = nn.ModuleDict({name: Head(config.dim, config.patch, AUX[name], False) for name in config.aux})

    def every_block(self) -> list[Block]:
        """All transformer blocks in forward order: the units to compile, shard and recompute."""
        return [module for module in self.modules() if isinstance(module, Block)]

    def set_recompute(self, count: int | None = None) -> None:
        """Save memory in training: recompute the first `count` blocks (None: all) in the backward pass."""
        for i, block in enumerate(self.every_block()):
            block.recompute = count is None or i < count

    def encode(self, image: Tensor, c2w: Tensor, fxfycxcy: Tensor, *, time: Tensor | None = None) -> Any:
        """V posed inputs of B scenes -> encoded scenes for `decode`."""
        raise NotImplementedError

    def decode(
        self, scene: Any, target_c2w: Tensor, target_fxfycxcy: Tensor, target_hw: HW, *, time: Tensor | None = None
    ) -> Tensor:
        """Scenes of `encode`, which may be reused, and cameras of T targets of size target_hw -> (B, T, 3, H, W)."""
        states = self.states(scene, target_c2w, target_fxfycxcy, target_hw, time=time)
        return self.head(states, target_c2w.shape[1], target_hw)

    def states(
        self, scene: Any, target_c2w: Tensor, target_fxfycxcy: Tensor, target_hw: HW, *, time: Tensor | None = None
    ) -> Tensor:
        """Scenes and cameras as of `decode` -> what heads read: the targets' tokens after the last block (B * T, n, dim)."""
        raise NotImplementedError

    def forward(
        self,
        image: Tensor,
        c2w: Tensor,
        fxfycxcy: Tensor,
        target_c2w: Tensor,
        target_fxfycxcy: Tensor,
        target_hw: HW | None = None,
        aux: bool = False,
        time: Tensor | None = None,
        target_time: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """V inputs and cameras of T targets -> (B, T, 3, H, W). target_hw: default the inputs' size. aux: return also what the
        heads of config.aux make of each target, by name, (B, T, channels, H, W) each."""
        scene = self.encode(image, c2w, fxfycxcy, time=time)
        hw, targets = target_hw or image_size(image), target_c2w.shape[1]
        states = self.states(scene, target_c2w, target_fxfycxcy, hw, time=target_time)
        rendered = self.head(states, targets, hw)
        return (rendered, {name: head(states, targets, hw) for name, head in self.aux.items()}) if aux else rendered

    def _view_tokens(self, image: Tensor, c2w: Tensor, fxfycxcy: Tensor, time: Tensor | None) -> Tensor:
        """Posed images -> tokens (B, V * n, dim), view by view."""
        if image.dim() != 5 or image.shape[2] != 3 or not image.numel() or not image.is_floating_point():
            raise ValueError(
                f"image is {tuple(image.shape)} {image.dtype}: give a float tensor (B, V, 3, H, W) with values in [0, 1]"
            )
        if c2w.shape[:2] != image.shape[:2]:
            raise ValueError(
                f"c2w is {tuple(c2w.shape)} for an image of {tuple(image.shape)}: give one camera per view, (B, V, 4, 4)"
            )
        rays = self._rays(c2w, fxfycxcy, image_size(image))
        tokens = self.image_tokens(torch.cat([image.float() * 2 - 1, rays], 2))
        return self.input_time(tokens, _times(time, c2w)) if self.config.temporal else tokens

    def _target_tokens(self, c2w: Tensor, fxfycxcy: Tensor, hw: HW, time: Tensor | None) -> Tensor:
        """Cameras -> tokens (B * T, n, dim), one sequence per target at index b * T + t."""
        tokens = self.ray_tokens(self._rays(c2w, fxfycxcy, hw))
        tokens = self.target_time(tokens, _times(time, c2w)) if self.config.temporal else tokens
        return tokens.unflatten(1, (c2w.shape[1], -1)).flatten(0, 1)

    def _rays(self, c2w: Tensor, fxfycxcy: Tensor, hw: HW) -> Tensor:
        patch = self.config.patch
        if hw[0] % patch or hw[1] % patch:
            raise ValueError(
                f"an image of {hw[0]}x{hw[1]} (height x width) has no whole patches of {patch}: crop or resize it"
            )
        if c2w.dim() != 4 or c2w.shape[2:] != (4, 4) or fxfycxcy.shape != (*c2w.shape[:2], 4):
            raise ValueError(
                f"c2w is {tuple(c2w.shape)} and fxfycxcy {tuple(fxfycxcy.shape)}: give (B, V, 4, 4) and (B, V, 4)"
            )
        if self.config.prope:
            c2w = torch.eye(4, device=c2w.device).expand_as(c2w)
        return plucker_rays(c2w, fxfycxcy, hw)

    def _codes(self, c2w: Tensor, fxfycxcy: Tensor, hw: HW, frame: Tensor, time: Tensor | None) -> Codes | None:
        """Codes of B x (V * n) tokens of _view_tokens. c2w (B, V, 4, 4), fxfycxcy (B, V, 4), frame (B, 4, 4), time (B, V)."""
        if not self.config.prope:
            return None
        own = prope.seen_from(c2w, frame), fxfycxcy, hw, self.config.patch, self.config.head_dim
        return prope.camera_codes(*own, _times(time, c2w) if self.config.temporal else None)

    def _target_codes(self, c2w: Tensor, fxfycxcy: Tensor, hw: HW, frame: Tensor, time: Tensor | None) -> Codes | None:
        """Codes of (B * T) x n tokens of _target_tokens."""
        cameras = c2w.flatten(0, 1)[:, None], fxfycxcy.flatten(0, 1)[:, None]
        own = None if time is None else time.flatten(0, 1)[:, None]
        return self._codes(*cameras, hw, _repeat_per_target(frame, c2w.shape[1]), own)


class DecoderOnly(LVSM):
    """Full self-attention over one sequence per target: [tokens of all input views, the target's tokens]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.norm = layer_norm(config.dim)
        self.blocks = Stack(config.dim, config.head_dim, config.layers)

    def encode(self, image: Tensor, c2w: Tensor, fxfycxcy: Tensor, *, time: Tensor | None = None) -> Tokens:
        """V posed inputs -> their tokens. `decode` runs all blocks."""
        tokens = self.norm(self._view_tokens(image, c2w, fxfycxcy, time))  # acts per token, so once per scene is enough
        frame = c2w[:, 0]
        return Tokens(tokens, self._codes(c2w, fxfycxcy, image_size(image), frame, time), frame)

    def states(
        self, scene: Tokens, target_c2w: Tensor, target_fxfycxcy: Tensor, target_hw: HW, *, time: Tensor | None = None
    ) -> Tensor:
        """A scene and the cameras of T targets -> their tokens (B * T, n, dim)."""
        _check_scene(scene.frame, target_c2w)
        own = self.norm(self._target_tokens(target_c2w, target_fxfycxcy, target_hw, time))
        targets, views = target_c2w.shape[1], scene.tokens.shape[1]
        codes = self._target_codes(target_c2w, target_fxfycxcy, target_hw, scene.frame, time)
        if codes is not None and scene.codes is not None:
            own_of = (_repeat_per_target(each, targets) if each.dim() > 2 else each for each in scene.codes)
            codes = prope.join(Codes(*own_of), codes)
        x = self.blocks(torch.cat([_repeat_per_target(scene.tokens, targets), own], 1), codes)
        return x[:, views:]


class EncoderDecoder(LVSM):
    """Encoder over [latents, tokens of all input views], of which the latents are the scene; decoder over [target's tokens,
    latents] per target."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.latents = nn.Parameter(torch.empty(config.latents, config.dim))
        self.encoder = Stack(config.dim, config.head_dim, config.encoder_layers)
        self.norm = layer_norm(config.dim)
        self.decoder = Stack(config.dim, config.head_dim, config.layers - config.encoder_layers)

    def encode(self, image: Tensor, c2w: Tensor, fxfycxcy: Tensor, *, time: Tensor | None = None) -> Latents:
        """V posed inputs -> scene of config.latents tokens."""
        views = self._view_tokens(image, c2w, fxfycxcy, time)
        frame, latents = c2w[:, 0], self.latents.expand(len(views), -1, -1)
        codes = self._codes(c2w, fxfycxcy, image_size(image), frame, time)
        if codes is not None:
            nowhere = prope.without_camera(len(views), latents.shape[1], self.config.head_dim, views.device)
            codes = prope.join(nowhere, codes)
        x = self.encoder(torch.cat([latents, views], 1), codes)
        return Latents(x[:, : self.config.latents], frame)

    def decode(
        self,
        scene: Latents,
        target_c2w: Tensor,
        target_fxfycxcy: Tensor,
        target_hw: HW,
        weight: Tensor | None = None,
        *,
        time: Tensor | None = None,
    ) -> Tensor:
        """A scene of N tokens, as encoded or edited, and the cameras of T targets -> (B, T, 3, H, W). weight: as of `states`."""
        states = self.states(scene, target_c2w, target_fxfycxcy, target_hw, weight, time=time)
        return self.head(states, target_c2w.shape[1], target_hw)

    def states(
        self,
        scene: Latents,
        target_c2w: Tensor,
        target_fxfycxcy: Tensor,
        target_hw: HW,
        weight: Tensor | None = None,
        *,
        time: Tensor | None = None,
    ) -> Tensor:
        """A scene of N tokens, as encoded or edited, and the cameras of T targets -> their tokens (B * T, n, dim).

        weight (B, N) in [0, inf): multiplicity of each latent; log(weight) is added to the attention scores of its key in
        every block. Two copies of weight 1/2 equal one latent; weight 0 equals absence. Latents of weight 0 in all scenes
        are removed before any computation, so they change no bit, and weights that are all 1 equal None. Both checks read
        values: a host sync, and a graph break under torch.compile. Gradients reach weights above 0. Raises ValueError for
        negative or non-finite weights.
        """
        _check_scene(scene.frame, target_c2w)
        tokens, weight = _drop_weightless(scene.tokens, weight)
        own = self.norm(self._target_tokens(target_c2w, target_fxfycxcy, target_hw, time))
        targets = target_c2w.shape[1]
        x = torch.cat([own, _repeat_per_target(self.norm(tokens), targets)], 1)
        codes = self._target_codes(target_c2w, target_fxfycxcy, target_hw, scene.frame, time)
        if codes is not None:
            nowhere = prope.without_camera(len(x), tokens.shape[1], self.config.head_dim, x.device)
            codes = prope.join(codes, nowhere)
        bias = None
        if weight is not None:
            present = weight > 0
            positive = torch.where(present, weight, 1)  # otherwise the gradient at 0 is NaN
            log = functional.pad(torch.where(present, positive.log(), -torch.inf), (own.shape[1], 0))
            bias = _repeat_per_target(log, targets)[:, None, None, :]
        x = self.decoder(x, codes, bias)
        return x[:, : own.shape[1]]


class Unidirectional(LVSM):
    """Encoder over the tokens of all input views, once; a target's tokens attend to each other and to the encoder's output,
    and nothing attends to targets (after SVSM, arXiv 2602.21341).

    A decoder block projects its tokens once and sums two attentions of the same queries: to the target's own tokens, and to
    the scene's keys. The cost equals one joint attention over both, without a copy of the scene's keys per target, and training
    is alike (15.5 and 15.6 dB after 500 steps on a toy); two sublayers would cost a sixth more in matrix products. Input
    tokens, the encoder's output and target tokens pass a LayerNorm each.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        decoder_layers = config.layers - config.encoder_layers
        self.view_norm, self.scene_norm, self.norm = (layer_norm(config.dim) for _ in range(3))
        self.encoder = Stack(config.dim, config.head_dim, config.encoder_layers)
        self.scene_keys = nn.ModuleList(SceneKeys(config.dim, config.head_dim) for _ in range(decoder_layers))
        self.decoder = Stack(config.dim, config.head_dim, decoder_layers)

    def encode(self, image: Tensor, c2w: Tensor, fxfycxcy: Tensor, *, time: Tensor | None = None) -> Views:
        """V posed inputs -> keys and values for every decoder block."""
        x = self.view_norm(self._view_tokens(image, c2w, fxfycxcy, time))
        frame = c2w[:, 0]
        codes = self._codes(c2w, fxfycxcy, image_size(image), frame, time)
        x = self.scene_norm(self.encoder(x, codes))
        return Views(tuple(keys(x, codes) for keys in self.scene_keys), frame)

    def states(
        self, scene: Views, target_c2w: Tensor, target_fxfycxcy: Tensor, target_hw: HW, *, time: Tensor | None = None
    ) -> Tensor:
        """A scene and the cameras of T targets -> their tokens (B * T, n, dim). Targets do not attend to each other."""
        _check_scene(scene.frame, target_c2w)
        x = self.norm(self._target_tokens(target_c2w, target_fxfycxcy, target_hw, time))
        codes = self._target_codes(target_c2w, target_fxfycxcy, target_hw, scene.frame, time)
        return self.decoder(x, codes, None, scene.keys_values)


BY_KIND: dict[str, type[LVSM]] = {
    "decoder_only": DecoderOnly,
    "encoder_decoder": EncoderDecoder,
    "unidirectional": Unidirectional,
}


def build(config: ModelConfig, seed: int) -> LVSM:
    """Build a model with the initial weights of (config, seed), on the CPU in float32, independent of PyTorch's random state.

    Raises ValueError for an invalid config.
    """
    config.check()
    with torch.device("meta"):  # no storage yet: layers skip their own initialisation
        model = BY_KIND[config.kind](config)
    model.to_empty(device="cpu")
    initialise(model, config.init, seed)
    return model


def image_size(image: Tensor) -> HW:
    """(height, width) of (..., H, W)."""
    return image.shape[-2], image.shape[-1]


def plucker_rays(c2w: Tensor, fxfycxcy: Tensor, hw: HW) -> Tensor:
    """c2w (..., 4, 4), fxfycxcy (..., 4) in pixels of an image of size hw -> Plücker rays (..., 6, H, W), float32.

    Channels are [o x d, d] with |d| = 1, in the order of the official LVSM (arXiv 2410.17242): o is the camera centre, d
    points through the pixel's centre at +0.5. Always float32: under bfloat16 a ray of a 256-pixel image is half a pixel off.
    """
    with torch.autocast(c2w.device.type, enabled=False):
        c2w, k = c2w.float(), fxfycxcy.float()[..., None, None]
        height, width = hw
        y = torch.arange(height, device=c2w.device)[:, None] + 0.5
        x = torch.arange(width, device=c2w.device)[None, :] + 0.5
        camera_x = (x - k[..., 2, :, :]) / k[..., 0, :, :]  # (..., 1, W)
        camera_y = (y - k[..., 3, :, :]) / k[..., 1, :, :]  # (..., H, 1)
        camera = torch.stack(torch.broadcast_tensors(camera_x, camera_y, camera_x.new_ones(())), -1)  # (..., H, W, 3)
        direction = (c2w[..., None, None, :3, :3] * camera[..., None, :]).sum(-1)
        direction = functional.normalize(direction, dim=-1)
        origin = c2w[..., None, None, :3, 3].expand_as(direction)
        return torch.cat([torch.linalg.cross(origin, direction), direction], -1).movedim(-1, -3)


def _repeat_per_target(x: Tensor, targets: int) -> Tensor:
    """(B, ...) -> (B * T, ...): repeat each scene's tensor for each of its targets."""
    return x[:, None].expand(-1, targets, *x.shape[1:]).flatten(0, 1)


def _times(time: Tensor | None, c2w: Tensor) -> Tensor:
    """Times (B, V) of views, 0 where none are given. Raises ValueError for others than one per view."""
    if time is None:
        return c2w.new_zeros(c2w.shape[:2])
    if time.shape != c2w.shape[:2]:
        raise ValueError(f"time is {tuple(time.shape)} for views of {tuple(c2w.shape[:2])}: give one per view, (B, V)")
    return time


def _check_scene(frame: Tensor, target_c2w: Tensor) -> None:
    if len(frame) != len(target_c2w):
        raise ValueError(
            f"{len(frame)} scenes meet targets for {len(target_c2w)}: give target_c2w (B, T, 4, 4) with the scenes' B"
        )


def _drop_weightless(tokens: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Remove latents of weight 0 in all scenes; weights become None if all are 1."""
    if weight is None:
        return tokens, None
    if weight.shape != tokens.shape[:2]:
        raise ValueError(
            f"weight is {tuple(weight.shape)} for {tuple(tokens.shape[:2])} latents: give one number per latent"
        )
    if not bool((torch.isfinite(weight) & (weight >= 0)).all()):
        raise ValueError(
            f"weight goes from {weight.min().item()} to {weight.max().item()}: it must be finite and not negative"
        )
    present = (weight > 0).any(0)
    tokens, weight = tokens[:, present], weight.float()[:, present]
    return tokens, weight if weight.requires_grad or bool((weight != 1).any()) else None
