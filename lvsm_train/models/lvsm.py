"""The models: from posed images and the cameras of targets to the targets' images (arXiv 2410.17242 and what followed it)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lvsm_train.config.train import ModelConfig
from lvsm_train.models import prope
from lvsm_train.models.blocks import Block, Head, KeysValues, SceneKeys, Stack, Tokenizer, initialise, layer_norm
from lvsm_train.models.prope import Codes
from lvsm_train.models.rays import plucker_rays

HW = tuple[int, int]


class Tokens(NamedTuple):
    """What decoder_only keeps of B scenes: tokens (B, V * n, dim) and their codes. frame: (B, 4, 4), see `LVSM`."""

    tokens: Tensor
    codes: Codes | None
    frame: Tensor


class Latents(NamedTuple):
    """What encoder_decoder keeps of B scenes. tokens: (B, N, dim), an unordered set. frame: (B, 4, 4), see `LVSM`."""

    tokens: Tensor
    frame: Tensor


class Views(NamedTuple):
    """What unidirectional keeps of B scenes: keys and values for each of its decoder's blocks. frame: (B, 4, 4), see `LVSM`."""

    keys_values: tuple[KeysValues, ...]
    frame: Tensor


class LVSM(nn.Module):
    """What the three models share. Images are float (B, V, 3, H, W) in [0, 1]; c2w (B, V, 4, 4) is camera to world, OpenCV
    axes; fxfycxcy (B, V, 4) is in pixels of the image, the first pixel's centre at 0.5; sizes are (height, width) in pixels, both
    multiples of the patch. Anything else raises ValueError.

    Rays and tokenizers are float32 also under autocast, images come out as float32; the rest follows the caller's autocast.

    With prope, cameras are taken as the first input camera sees them (`frame`, its c2w). Between tokens of cameras the choice of
    a frame cancels; latents have no camera (the identity, no rotary code), so that theirs is this one. Hence a rigid change of
    the world's frame never matters, and the order of inputs matters for encoder_decoder alone.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_tokens = Tokenizer(9, config.patch, config.dim)
        self.ray_tokens = Tokenizer(6, config.patch, config.dim)
        self.head = Head(config.dim, config.patch)

    def every_block(self) -> list[Block]:
        """All transformer blocks, as data meets them: what to compile, shard or recompute one by one."""
        return [module for module in self.modules() if isinstance(module, Block)]

    def set_recompute(self, count: int | None = None) -> None:
        """Save memory in training: the first `count` blocks (None: all) are computed again in the backward pass."""
        for i, block in enumerate(self.every_block()):
            block.recompute = count is None or i < count

    def encode(self, image: Tensor, c2w: Tensor, fxfycxcy: Tensor) -> Any:
        """V posed inputs of B scenes -> what the model keeps of them, for `decode`."""
        raise NotImplementedError

    def decode(self, scene: Any, target_c2w: Tensor, target_fxfycxcy: Tensor, target_hw: HW) -> Tensor:
        """What `encode` made and cameras of T targets of size target_hw -> (B, T, 3, H, W), as often as wanted."""
        raise NotImplementedError

    def forward(
        self,
        image: Tensor,
        c2w: Tensor,
        fxfycxcy: Tensor,
        target_c2w: Tensor,
        target_fxfycxcy: Tensor,
        target_hw: HW | None = None,
    ) -> Tensor:
        """V inputs and the cameras of T targets -> (B, T, 3, H, W), of the inputs' size unless target_hw says otherwise."""
        scene = self.encode(image, c2w, fxfycxcy)
        return self.decode(scene, target_c2w, target_fxfycxcy, target_hw or image_size(image))

    def _view_tokens(self, image: Tensor, c2w: Tensor, fxfycxcy: Tensor) -> Tensor:
        """Posed images -> (B, V * n, dim), view by view."""
        if image.dim() != 5 or image.shape[2] != 3 or not image.numel() or not image.is_floating_point():
            raise ValueError(
                f"image is {tuple(image.shape)} {image.dtype}: give a float tensor (B, V, 3, H, W) with values in [0, 1]"
            )
        if c2w.shape[:2] != image.shape[:2]:
            raise ValueError(
                f"c2w is {tuple(c2w.shape)} for an image of {tuple(image.shape)}: give one camera per view, (B, V, 4, 4)"
            )
        rays = self._rays(c2w, fxfycxcy, image_size(image))
        return self.image_tokens(torch.cat([image.float() * 2 - 1, rays], 2))

    def _target_tokens(self, c2w: Tensor, fxfycxcy: Tensor, hw: HW) -> Tensor:
        """Cameras -> (B * T, n, dim), a sequence per target: index b * T + t."""
        tokens = self.ray_tokens(self._rays(c2w, fxfycxcy, hw))
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

    def _codes(self, c2w: Tensor, fxfycxcy: Tensor, hw: HW, frame: Tensor) -> Codes | None:
        """Of the tokens of _view_tokens. (B, V, 4, 4), (B, V, 4), frame (B, 4, 4) -> B x (V * n)."""
        if not self.config.prope:
            return None
        return prope.camera_codes(prope.seen_from(c2w, frame), fxfycxcy, hw, self.config.patch, self.config.head_dim)

    def _target_codes(self, c2w: Tensor, fxfycxcy: Tensor, hw: HW, frame: Tensor) -> Codes | None:
        """Of the tokens of _target_tokens: (B * T) x n."""
        one = c2w.flatten(0, 1)[:, None], fxfycxcy.flatten(0, 1)[:, None]
        return self._codes(*one, hw, _each_target(frame, c2w.shape[1]))


class DecoderOnly(LVSM):
    """Per target one sequence, [tokens of all input views, the target's tokens], in full attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.norm = layer_norm(config.dim)
        self.blocks = Stack(config.dim, config.head_dim, config.layers)

    def encode(self, image: Tensor, c2w: Tensor, fxfycxcy: Tensor) -> Tokens:
        """V posed inputs -> their tokens. All the work is left to `decode`."""
        tokens = self.norm(self._view_tokens(image, c2w, fxfycxcy))  # goes token by token: once per scene will do
        frame = c2w[:, 0]
        return Tokens(tokens, self._codes(c2w, fxfycxcy, image_size(image), frame), frame)

    def decode(self, scene: Tokens, target_c2w: Tensor, target_fxfycxcy: Tensor, target_hw: HW) -> Tensor:
        """A scene and the cameras of T targets -> (B, T, 3, H, W)."""
        _check_scene(scene.frame, target_c2w)
        own = self.norm(self._target_tokens(target_c2w, target_fxfycxcy, target_hw))
        targets, views = target_c2w.shape[1], scene.tokens.shape[1]
        codes = self._target_codes(target_c2w, target_fxfycxcy, target_hw, scene.frame)
        if codes is not None and scene.codes is not None:
            project, lift = (_each_target(matrix, targets) for matrix in scene.codes[:2])
            codes = prope.join(scene.codes._replace(project=project, lift=lift), codes)
        x = self.blocks(torch.cat([_each_target(scene.tokens, targets), own], 1), codes)
        return self.head(x[:, views:], targets, target_hw)


class EncoderDecoder(LVSM):
    """The encoder turns [latents, tokens of all input views] into a scene, the latents alone; the decoder reads
    [a target's tokens, latents] per target."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.latents = nn.Parameter(torch.empty(config.latents, config.dim))
        self.encoder = Stack(config.dim, config.head_dim, config.encoder_layers)
        self.norm = layer_norm(config.dim)
        self.decoder = Stack(config.dim, config.head_dim, config.layers - config.encoder_layers)

    def encode(self, image: Tensor, c2w: Tensor, fxfycxcy: Tensor) -> Latents:
        """V posed inputs -> their scene, of config.latents tokens."""
        views = self._view_tokens(image, c2w, fxfycxcy)
        frame, latents = c2w[:, 0], self.latents.expand(len(views), -1, -1)
        codes = self._codes(c2w, fxfycxcy, image_size(image), frame)
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
    ) -> Tensor:
        """A scene of N tokens, as encoded or edited, and the cameras of T targets -> (B, T, 3, H, W).

        weight (B, N) in [0, inf) lets a latent count as so many of its kind: log(weight) is added to the scores of its key
        in every block. Two copies of weight 1/2 are the one they came from; latents of weight 0 are not there. Those that no
        scene of the batch has are left out before anything is computed, so that they change no bit, and weights that are
        all 1 are no weights: hence a look at the values, which a GPU waits for and torch.compile breaks at. Gradients
        reach weights above 0. Raises ValueError for weights that are negative or not finite.
        """
        _check_scene(scene.frame, target_c2w)
        tokens, weight = _counted(scene.tokens, weight)
        own = self.norm(self._target_tokens(target_c2w, target_fxfycxcy, target_hw))
        targets = target_c2w.shape[1]
        x = torch.cat([own, _each_target(self.norm(tokens), targets)], 1)
        codes = self._target_codes(target_c2w, target_fxfycxcy, target_hw, scene.frame)
        if codes is not None:
            nowhere = prope.without_camera(len(x), tokens.shape[1], self.config.head_dim, x.device)
            codes = prope.join(codes, nowhere)
        bias = None
        if weight is not None:
            there = weight > 0
            some = torch.where(there, weight, 1)  # else the gradient at 0 is NaN
            log = functional.pad(torch.where(there, some.log(), -torch.inf), (own.shape[1], 0))
            bias = _each_target(log, targets)[:, None, None, :]
        x = self.decoder(x, codes, bias)
        return self.head(x[:, : own.shape[1]], targets, target_hw)


class Unidirectional(LVSM):
    """The encoder reads the tokens of all input views once; a target's tokens attend to each other and to the encoder's
    output, and nothing looks back (after SVSM, arXiv 2602.21341).

    A decoder block projects its tokens once and sums two attentions of the same queries: to the target's own tokens, and to
    the scene's keys. It costs what one joint attention over both would, without a copy of the scene's keys per target, and learns
    alike (15.5 and 15.6 dB after 500 steps on a toy); two sublayers would cost a sixth more in products of matrices. The input
    tokens, what the encoder makes of them and the targets' tokens pass a LayerNorm each.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        decoder_layers = config.layers - config.encoder_layers
        self.view_norm, self.scene_norm, self.norm = (layer_norm(config.dim) for _ in range(3))
        self.encoder = Stack(config.dim, config.head_dim, config.encoder_layers)
        self.scene_keys = nn.ModuleList(SceneKeys(config.dim, config.head_dim) for _ in range(decoder_layers))
        self.decoder = Stack(config.dim, config.head_dim, decoder_layers)

    def encode(self, image: Tensor, c2w: Tensor, fxfycxcy: Tensor) -> Views:
        """V posed inputs -> all that the decoder wants to know of them."""
        x = self.view_norm(self._view_tokens(image, c2w, fxfycxcy))
        frame = c2w[:, 0]
        codes = self._codes(c2w, fxfycxcy, image_size(image), frame)
        x = self.scene_norm(self.encoder(x, codes))
        return Views(tuple(keys(x, codes) for keys in self.scene_keys), frame)

    def decode(self, scene: Views, target_c2w: Tensor, target_fxfycxcy: Tensor, target_hw: HW) -> Tensor:
        """A scene and the cameras of T targets -> (B, T, 3, H, W). Targets know nothing of each other."""
        _check_scene(scene.frame, target_c2w)
        x = self.norm(self._target_tokens(target_c2w, target_fxfycxcy, target_hw))
        codes = self._target_codes(target_c2w, target_fxfycxcy, target_hw, scene.frame)
        x = self.decoder(x, codes, None, scene.keys_values)
        return self.head(x, target_c2w.shape[1], target_hw)


BY_KIND: dict[str, type[LVSM]] = {
    "decoder_only": DecoderOnly,
    "encoder_decoder": EncoderDecoder,
    "unidirectional": Unidirectional,
}


def build(config: ModelConfig, seed: int) -> LVSM:
    """A model with the initial weights of (config, seed), on the CPU in float32, whatever the state of PyTorch's generators.

    Raises ValueError where the config makes no model.
    """
    config.check()
    with torch.device("meta"):  # no storage yet, so that no layer draws its own start
        model = BY_KIND[config.kind](config)
    model.to_empty(device="cpu")
    initialise(model, config.init, seed)
    return model


def image_size(image: Tensor) -> HW:
    """(height, width) of (..., H, W)."""
    return image.shape[-2], image.shape[-1]


def _each_target(x: Tensor, targets: int) -> Tensor:
    """(B, ...) -> (B * T, ...): a scene's own for each of its targets."""
    return x[:, None].expand(-1, targets, *x.shape[1:]).flatten(0, 1)


def _check_scene(frame: Tensor, target_c2w: Tensor) -> None:
    if len(frame) != len(target_c2w):
        raise ValueError(
            f"{len(frame)} scenes meet targets for {len(target_c2w)}: give target_c2w (B, T, 4, 4) with the scenes' B"
        )


def _counted(tokens: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Without the latents that count nothing anywhere, and without weights where each counts 1."""
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
    there = (weight > 0).any(0)
    tokens, weight = tokens[:, there], weight.float()[:, there]
    return tokens, weight if weight.requires_grad or bool((weight != 1).any()) else None
