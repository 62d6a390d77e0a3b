"""Flags of `export`, `push` and `paths`: a run's views in the formats of other tools, and on the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from pipeline.config.shared import Trait, absolute, address_of
from pipeline.core.errors import UserError

FORMATS = {  # name -> the function or class, as module:name, that makes a writer of pipeline/poses/shots.py from a folder
    "nerfstudio": "pipeline.poses.transforms:nerfstudio",
    "nerf-synthetic": "pipeline.poses.transforms:nerf_synthetic",
    "colmap": "pipeline.poses.colmap:writer",
    "llff": "pipeline.poses.llff:writer",
    "neus": "pipeline.poses.neus:writer",
    "instant-ngp": "pipeline.poses.transforms:instant_ngp",
    "lvsm": "pipeline.poses.realestate:Writer",
    "pixelsplat": "pipeline.poses.pixelsplat:Writer",
    "zero123": "pipeline.poses.zero123:Writer",
    "webdataset": "pipeline.poses.webdataset:Writer",
}
WITH_TIMES = ("nerfstudio", "instant-ngp", "nerf-synthetic", "webdataset")  # formats that say when a view was taken
NO_SPLITS = ("colmap", "llff", "neus", "instant-ngp", "zero123")  # formats that say of no view what it is for
ABSOLUTE = ("lvsm",)  # formats whose files say where they stand
MODEL = "safetensors"  # what a training run is written as
HUB = "hf"  # the format that is shards as they stand, with a card: what `push` uploads
if TYPE_CHECKING:
    FormatName = str
else:  # the type of the flag, made from the table
    FormatName = Literal[(*FORMATS, HUB, MODEL)]


def _outside_runs(out: Path) -> None:
    """Raise UserError for a folder that is a run's or a training run's, or lies in one: its files are its own."""
    marks = (("run.json",), ("train.json", "log.jsonl"))
    for folder in (out, *out.parents):
        if any(all((folder / name).is_file() for name in mark) for mark in marks):
            raise UserError(
                f"--out {out}: {folder} is the folder of a run", "--out with the name of a folder elsewhere"
            )


def check_new(out: Path) -> None:
    """Raise UserError for a folder that is there already, unless it is empty, and for one in a run or a training run."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already", "--out with the name of a new folder")
    _outside_runs(out)


def _is_model(run: Path) -> bool:
    """True for the folder of a training run."""
    return not address_of(run) and (run.expanduser() / "train.json").is_file()


@dataclass(frozen=True)
class ExportConfig:
    """Which views of which objects go out, and how; or the model of a training run."""

    run: tyro.conf.Positional[Path]
    """Folder of a run, of one resolution, or an address of a run. Or the folder of a training run."""
    to: FormatName | None = None
    """The format. docs/exports.md says what reads it. Default: nerfstudio, and safetensors for a training run."""
    out: Path | None = None
    """A new folder. Default: RUN-FORMAT beside the run."""
    res: int | None = None
    """Width of the pictures, where the run has several."""
    uid: tuple[str, ...] = ()
    """Only these objects."""
    only: tuple[Trait, ...] = ()
    """Only objects with image textures, vertex colours, animation: with all that is named."""
    n: int | None = None
    """Only so many objects, the first ones. Default: all."""
    every: int = 1
    """Only every so-many-th view of each object."""
    keep_ends: bool = False
    """With --every: the last view too."""
    split_indices: Path | None = None
    """JSON file with the views of each split, for all objects or by uid: {"train": [0, 2], "test": [1]} or {UID: {"train": ...}}.
    Views that it does not name stay out. Default: the split that the run's views have, else none, or what the format needs."""
    step: int | None = None
    """Of a training run: the checkpoint. Default: the newest."""

    def resolved(self) -> ExportConfig:
        """Copy with absolute paths and defaults. Raises UserError for flags out of range."""
        cfg = dataclasses.replace(self, to=self.to or (MODEL if _is_model(self.run) else "nerfstudio"))
        return cfg._resolved()

    def _resolved(self) -> ExportConfig:
        self._check_model()
        if self.every < 1 or (self.n is not None and self.n < 1):
            raise UserError("--every and --n must be 1 or more", "--every 4 takes views 0, 4, 8, ...")
        if self.split_indices and (self.every > 1 or self.keep_ends):
            raise UserError("--split-indices names the views, and --every does too", "leave one of them out")
        if self.to == HUB and (self.uid or self.only or self.n or self.every > 1 or self.split_indices):
            raise UserError(
                f"--to {HUB} takes shards whole, without --uid, --only, --n, --every and --split-indices",
                "--to webdataset takes some of the views",
            )
        if self.keep_ends and self.every == 1:
            raise UserError("--keep-ends has no effect without --every", "--every 4 --keep-ends")
        out = self.out
        if out is None:
            if address_of(self.run):
                raise UserError("export of an address needs --out", "--out FOLDER")
            whole = self.run.expanduser().absolute()
            out = whole.with_name(f"{whole.name}-{self.to}")
            if (whole.parent / "run.json").is_file():  # one resolution of a run
                out = whole.parent.with_name(f"{whole.parent.name}-{out.name}")
        out = absolute(out)
        assert out is not None
        check_new(out)
        return dataclasses.replace(self, out=out, split_indices=absolute(self.split_indices))

    def _check_model(self) -> None:
        """Raise UserError where a model is asked for of what is none, views of a model, or flags for views with a model."""
        if _is_model(self.run) != (self.to == MODEL):
            what = "is a training run, which has no views" if self.to != MODEL else "is no training run"
            raise UserError(f"--to {self.to}: {self.run} {what}", f"--to {MODEL} is for the --out of lvsm-data train")
        if self.step is not None and self.to != MODEL:
            raise UserError("--step names the checkpoint of a training run", "leave it out")
        views = {name: getattr(self, name) for name in ("res", "uid", "only", "n", "keep_ends", "split_indices")}
        views["every"] = self.every > 1
        if self.to == MODEL and (given := [name for name, value in views.items() if value]):
            raise UserError(
                f"--{given[0].replace('_', '-')} is for views, and {self.run} is a training run", "leave it out"
            )


@dataclass(frozen=True)
class PushConfig:
    """A run, or a trained model, on its way to the Hugging Face Hub."""

    run: tyro.conf.Positional[Path]
    """Folder of a run that has ended or was stopped, or its address. Or the folder of a training run, or of an exported model."""
    repo: str
    """Name of the dataset, or of the model: OWNER/NAME, or NAME for one of your own. It is made where it is not there."""
    private: bool = False
    """Make it a private one, where it is made."""
    revision: str | None = None
    """Branch to upload to, made where it is not there. Default: main."""
    replace: bool = False
    """Delete shards that stand there and are not the run's. Without it they end the upload before it begins, since whoever loads
    the dataset would get them too. Of a model: take the place of another run's."""
    step: int | None = None
    """Of a training run: the checkpoint. Default: the newest."""


@dataclass(frozen=True)
class PathsConfig:
    """A camera path, for films and for `render --poses`."""

    kind: Literal["orbit", "circle", "spiral", "lissajous", "views"] = "orbit"
    """orbit: a turn around the target. circle, lissajous: within --radius of one place. spiral: --turns of an orbit while the
    elevation changes. views: through views of an object of --run."""
    out: Path | None = None
    """Folder to write to. Default: paths/KIND."""
    frames: int = 120
    """Number of poses."""
    cycle: bool = False
    """The path ends one step before its first pose, so that a film of it loops."""
    distance: float | None = None
    """From the target, in units of the world. Default: that of the cameras of --run, on average; else where rendered objects fill
    the picture, which lie within 0.5 of the origin."""
    target: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """The point that all cameras look at."""
    radius: float = 0.3
    """Of circle and lissajous."""
    azimuth_deg: float = 0.0
    """Where the path begins, or its middle lies: from +x towards +y."""
    elevation_deg: float = 20.0
    """Above the horizon; of a spiral at its beginning."""
    elevation_to_deg: float = 70.0
    """Of a spiral at its end."""
    turns: float = 3.0
    """Of a spiral."""
    fov_x_deg: float = 50.0
    """Horizontal field of view."""
    width: int = 512
    """Of the pictures, in pixels."""
    height: int = 512
    """Of the pictures, in pixels."""
    fps: float = 24.0
    """Frames per second, for nerfstudio."""
    run: Path | None = None
    """A run: its views say how new each pose is, and are what --kind views goes through."""
    uid: str | None = None
    """Object of the run. Default: its first."""
    res: int | None = None
    """Width of the run's pictures, where it has several."""
    views: tuple[int, ...] = ()
    """With --kind views: these, in this order. Default: all, as they are numbered."""

    def resolved(self) -> PathsConfig:
        """Copy with absolute paths and defaults. Raises UserError for flags out of range or without effect."""
        numbers = {name: value for name, value in vars(self).items() if isinstance(value, float)}
        numbers |= {f"target {axis}": value for axis, value in zip("xyz", self.target, strict=True)}
        if wild := [name for name, value in numbers.items() if not math.isfinite(value)]:
            raise UserError(f"--{wild[0].replace('_', '-')} is no number: {numbers[wild[0]]}", "a finite one")
        if self.frames < 1 or min(self.width, self.height) < 8 or self.fps <= 0:
            raise UserError("--frames and --fps must be positive, --width and --height 8 or more", "--frames 120")
        if (self.distance is not None and self.distance <= 0) or self.radius < 0 or not 0 < self.fov_x_deg < 180:
            raise UserError("--distance must be positive, --radius not negative, --fov-x-deg between 0 and 180")
        if max(abs(self.elevation_deg), abs(self.elevation_to_deg)) > 89:
            raise UserError("elevations lie between -89 and 89 degrees", "straight up has no azimuth")
        if (self.kind == "views" or self.uid or self.views or self.res) and self.run is None:
            raise UserError("--kind views, --uid, --views and --res need --run", "--run data/try")
        if (self.views and self.kind != "views") or min(self.views, default=0) < 0:
            raise UserError("--views are numbers of views for --kind views", "--kind views --views 0 5 9")
        if self.views and len(set(self.views)) < 2:
            raise UserError("--views names one view, and a path goes through two or more", "--kind views --views 0 5 9")
        out = absolute(self.out or Path("paths") / self.kind)
        assert out is not None
        _outside_runs(out)
        return dataclasses.replace(self, out=out)
