"""Flags of `export`: a run's views in the formats of other tools."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from pipeline.config.shared import absolute, address_of
from pipeline.core.errors import UserError

FORMATS = {  # name -> the function or class, as module:name, that makes a writer of pipeline/poses/shots.py from a folder
    "nerfstudio": "pipeline.poses.transforms:nerfstudio",
    "nerf-synthetic": "pipeline.poses.transforms:nerf_synthetic",
    "colmap": "pipeline.poses.colmap:writer",
    "llff": "pipeline.poses.llff:writer",
    "neus": "pipeline.poses.neus:writer",
    "instant-ngp": "pipeline.poses.transforms:instant_ngp",
    "lvsm": "pipeline.poses.lvsm:Writer",
    "pixelsplat": "pipeline.poses.pixelsplat:Writer",
    "zero123": "pipeline.poses.zero123:Writer",
    "webdataset": "pipeline.poses.webdataset:Writer",
}
if TYPE_CHECKING:
    FormatName = str
else:  # the type of the flag, made from the table
    FormatName = Literal[tuple(FORMATS)]


@dataclass(frozen=True)
class ExportConfig:
    """Which views of which objects go out, and how."""

    run: tyro.conf.Positional[Path]
    """Folder of a run, of one resolution, or an address of a run."""
    to: FormatName = "nerfstudio"
    """The format. docs/exports.md says what reads it."""
    out: Path | None = None
    """A new folder. Default: RUN-FORMAT beside the run."""
    res: int | None = None
    """Width of the pictures, where the run has several."""
    uid: tuple[str, ...] = ()
    """Only these objects."""
    n: int | None = None
    """Only so many objects, the first ones. Default: all."""
    every: int = 1
    """Only every so-many-th view of each object."""
    keep_ends: bool = False
    """With --every: the last view too."""
    split_indices: Path | None = None
    """JSON file with the views of each split, for all objects or by uid: {"train": [0, 2], "test": [1]} or {UID: {"train": ...}}.
    Views that it does not name stay out. Default: no split, or what the format needs."""

    def resolved(self) -> ExportConfig:
        """Copy with absolute paths and defaults. Raises UserError for flags out of range."""
        if self.every < 1 or (self.n is not None and self.n < 1):
            raise UserError("--every and --n must be 1 or more", "--every 4 takes views 0, 4, 8, ...")
        if self.split_indices and (self.every > 1 or self.keep_ends):
            raise UserError("--split-indices names the views, and --every does too", "leave one of them out")
        if self.keep_ends and self.every == 1:
            raise UserError("--keep-ends has no effect without --every", "--every 4 --keep-ends")
        out = self.out
        if out is None:
            if address_of(self.run):
                raise UserError("export of an address needs --out", "--out FOLDER")
            whole = self.run.expanduser().absolute()
            out = whole.with_name(f"{whole.name}-{self.to}")
        out = absolute(out)
        assert out is not None
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is there already", "--out with the name of a new folder")
        return dataclasses.replace(self, out=out, split_indices=absolute(self.split_indices))
