"""Settings of new views by a trained model. Imports no torch: the command line reads this module."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import tyro

from lvsm_train.config import shapes
from lvsm_train.config.places import place_of
from lvsm_train.config.train import Published
from pipeline.config.export import check_new
from pipeline.config.shared import absolute, address_of, port_of
from pipeline.config.source_table import AUTO, PosedSource
from pipeline.core.errors import UserError
from pipeline.core.paths import file_stem

Route = Literal["orbit", "circle", "spiral", "lissajous", "views", "others"]
ROUTES: tuple[Route, ...] = get_args(Route)
ASPECTS = ("trained", "photos")
PORT = 8765  # of --serve


@dataclass(frozen=True)
class SynthesisConfig:
    """New views of photos with known cameras, or of an object of a run."""

    run: tyro.conf.Positional[Path]
    """A trained model: folder of a run of lvsm-data train, or any other place that `eval` takes."""
    preset: Published | None = None
    """What a checkpoint of the official LVSM, which does not say it, was trained as."""
    input: Path | None = None
    """Folder of photos with cameras of COLMAP, nerfstudio, transforms.json, ...: all that `import` reads from this machine."""
    source: PosedSource = AUTO
    """What the photos of --input and their cameras look like; auto: recognised. docs/sources.md."""
    data: Path | None = None
    """In place of --input: a run of lvsm-data with the object --uid."""
    uid: str | None = None
    """Object of --data, or the one of several captures in --input. Default: the first of --data, the only one of --input."""
    poses: str | None = None
    """A file, as `lvsm-data paths` writes them, in the world of the photos; or orbit, circle, spiral, lissajous: around what the
    cameras look at; views: through the inputs; others: where the photos that are no inputs were taken, to compare. Default: orbit
    for objects, views for scenes."""
    frames: int = 48
    """Pictures along a path that has a name."""
    fps: float = 24.0
    """Frames per second of the film."""
    inputs: int | None = None
    """Number of photos that the model sees. Default: as in training."""
    views: tuple[int, ...] = ()
    """Exactly these photos, counted from 0 in the order of the camera file. Default: chosen, as --choose says."""
    choose: Literal["far", "near", "even"] | None = None
    """Photos far from each other, near the path, or evenly spread in their order. Default: far for objects; for scenes near, and
    even for --poses views."""
    kind: Literal["object", "scene"] | None = None
    """What the photos show. Cameras of scenes are normalised as in training on clips. Default: what the shards say, or what the
    model was trained on."""
    time: float | None = None
    """What is shown of something that moves, by models with --temporal: from 0, the photos' first instant, to 1, their last one.
    Default: a path runs through all of it, and --poses others takes that of each photo."""
    world: Literal["keep", "fit"] | None = None
    """Of objects: keep the world's origin and scale, or move and scale it as those of rendered objects are. Default: fit where
    cameras do not look at the origin from about as far as in training."""
    res: int | None = None
    """Width of the pictures in pixels, to whole patches. Default: as many pixels as in training."""
    aspect: str = "trained"
    """Shape of the pictures: trained, photos (the first one's), or W:H, such as 16:9. Photos are cropped around their middle."""
    verify_cameras: bool = True
    """Check that photos and cameras fit (silhouettes, epipolar lines), and warn where they do not."""
    batch: int = 8
    """Pictures that are rendered together."""
    step: int | None = None
    """Checkpoint to take. Default: the newest."""
    out: Path | None = None
    """A new folder. Default: synthesized/NAME, or NAME-POSES; none with --serve."""
    serve: tuple[int, ...] | None = None
    """Show a page on this machine, at http://127.0.0.1:PORT/, where any view is rendered as you turn it. Ctrl-C ends it. Default
    port: 8765; 0: a free one."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... auto: the GPU where there is one."""

    @property
    def port(self) -> int | None:
        """Port of --serve, None without it."""
        return None if self.serve is None else port_of(self.serve, PORT)

    @property
    def path_file(self) -> Path | None:
        """File with the poses; None for a path that has a name."""
        return Path(os.path.expanduser(self.poses)) if self.poses and self.poses not in ROUTES else None

    @property
    def shape(self) -> tuple[float, float] | None:
        """(width, height) that --aspect names by numbers; None for those of ASPECTS."""
        return None if self.aspect in ASPECTS else shapes.parsed(self.aspect)

    def resolved(self) -> SynthesisConfig:
        """Copy with absolute paths and defaults. Raises UserError for flags out of range or without effect."""
        if (self.input is None) == (self.data is None):
            raise UserError("synthesize needs --input PHOTOS or --data RUN, one of them", "--input captures/flower")
        given = self.input or self.data
        assert given is not None
        if not address_of(given) and not given.expanduser().exists():
            raise UserError(f"--{'input' if self.input else 'data'} {given} does not exist")
        if self.data and self.source != AUTO:
            raise UserError("--source is for --input; --data is shards of lvsm-data", "leave it out")
        self._check_numbers()
        if self.path_file and not self.path_file.is_file():
            hint = f"a file of `lvsm-data paths`, or one of {', '.join(ROUTES)}"
            raise UserError(f"--poses {self.poses} is no path and no file", hint)
        if self.frames != SynthesisConfig.frames and (self.path_file or self.poses == "others"):
            raise UserError("--frames is for paths that have a name, and these poses are counted", "leave it out")
        if self.world and self.kind == "scene":
            raise UserError("--world is for objects: scenes are normalised as in training", "leave it out")
        self._check_serve()
        parts = [self.uid or given.name, self.path_file.stem if self.path_file else self.poses]
        place = Path("synthesized") / "-".join(map(file_stem, filter(None, parts))) if self.serve is None else None
        if out := absolute(self.out or place):
            check_new(out)
        return dataclasses.replace(
            self, run=place_of(self.run), input=absolute(self.input), data=absolute(self.data), out=out
        )

    def _check_serve(self) -> None:
        """Raise UserError for what is no port, and for what is of files where none are written."""
        if self.serve is None:
            return
        port_of(self.serve, PORT)
        if self.out:
            return
        for name in ("fps", "batch"):
            if getattr(self, name) != getattr(SynthesisConfig, name):
                raise UserError(
                    f"--{name} is for files, and --serve writes none without --out", "add --out, or leave it out"
                )
        if self.poses == "others":
            said = "--poses others is to compare pictures, and --serve writes none without --out"
            raise UserError(said, "add --out, or another --poses")

    def _check_numbers(self) -> None:
        """Raise UserError for numbers out of range."""
        for name in ("frames", "inputs", "res", "batch"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise UserError(f"--{name} {number} is not positive")
        if self.time is not None and not 0 <= self.time <= 1:
            raise UserError(f"--time {self.time:g} is no share of the photos' time", "0 to 1")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise UserError(f"--fps {self.fps} is no rate", "--fps 24")
        if min(self.views, default=0) < 0 or len(set(self.views)) < len(self.views):
            raise UserError("--views are numbers of photos, each once, counted from 0", "--views 0 5 9")
        if self.views and (self.inputs or self.choose):
            raise UserError("--views names the inputs, which --inputs and --choose would choose", "leave --views out")
        if self.aspect not in ASPECTS:
            shapes.parsed(self.aspect, ASPECTS)
