"""Settings of a training run. Imports no torch: the command line reads this module."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lvsm_train.config.parts import DataConfig, LossConfig, ModelConfig, OptimConfig
from lvsm_train.config.places import place_of
from pipeline.config.shared import absolute, address_of
from pipeline.core.errors import UserError

__all__ = ["DataConfig", "LossConfig", "ModelConfig", "OptimConfig", "TrainConfig"]

Published = Literal["official-dec", "official-encdec", "official-dec-objects", "official-encdec-objects"]
Preset = Literal["thesis64", "thesis64-time", "small", "base", Published]


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
    """Initial weights: a run of train, an exported model, a checkpoint of the official LVSM, or hf:OWNER/NAME[@REVISION]."""
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
        start_from = place_of(self.start_from) if self.start_from else None
        return dataclasses.replace(
            self, data=data, out=out, start_from=start_from, export_official=absolute(self.export_official)
        )

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
        own = values["data"]
        data = _build(DataConfig, own, data=tuple(map(Path, own["data"])), aspect=tuple(own.get("aspect", ())))
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
        if not self.data.aspect:  # models that were passed on before there were shapes keep their name
            del data["aspect"]
        if not self.cycle:
            del settings["optim"]["cooldown"]
        kept = ("model", "loss", "optim", "precision", "curriculum", "start_from")
        return {name: settings[name] for name in kept} | {"data": data}


def _build(kind: type[Any], values: dict[str, Any], **given: Any) -> Any:
    known = {each.name for each in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in known} | given)


def _paths(values: dict[str, Any], *names: str) -> dict[str, Path]:
    return {name: Path(values[name]) for name in names if values.get(name) is not None}
