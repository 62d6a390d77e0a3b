"""Flags of `clip`: frames of videos."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pipeline.config.shared import Fetching, Granting, Running, absolute, config_hash, folder_name, plain
from pipeline.config.source_table import VideoSource
from pipeline.config.views import PictureConfig
from pipeline.core.errors import UserError

DECODER = "FFmpeg by PyAV"  # part of a run's identity: others round colours differently


@dataclass(frozen=True)
class ClipScene(PictureConfig):
    """What becomes of a video's frames."""

    height_crop: int | None = None
    """Rows of the largest images: the centre of each frame is cut to that shape. Default: a square; 0: the whole frame."""
    max_error_ms: float = 50.0
    """Most that a frame may be shown before or after the time of its pose."""

    def hw(self, width: int, frame_hw: tuple[int, int]) -> tuple[int, int]:
        """Size (rows, width) of stored images of this width, cut from frames of frame_hw."""
        rows = frame_hw[0] * width / frame_hw[1] if self.height_crop == 0 else self.rows * width / max(self.res)
        return max(1, round(rows)), width

    @property
    def rows(self) -> int:
        """Rows of the images at the largest width; for whole frames, those of a 16:9 frame."""
        return self.height_crop or (round(max(self.res) * 9 / 16) if self.height_crop == 0 else max(self.res))

    @property
    def stream_height(self) -> int:
        """Rows that a stream must have: 1.5 times the rows cut out of a frame, since codecs blur the finest detail."""
        return math.ceil(1.5 * max(self.rows, max(self.res) * 9 / 16))


@dataclass(frozen=True)
class ClipConfig(Granting, Fetching, Running):
    """A run over videos: frames at the times of known poses become the same shards."""

    source: VideoSource = "realestate10k"
    """Whose camera files they are; both have one format. docs/sources.md."""
    cameras: Path | None = None
    """The camera files: a folder (with train/ and test/, or files alone), or an archive (.tar.gz, .tar, .zip)."""
    split: Literal["train", "test"] | None = None
    """The part to take, where there are two. Default: train."""
    scene: Annotated[ClipScene, tyro.conf.OmitArgPrefixes] = field(default_factory=ClipScene)
    eval_index: Path | None = None
    """Only the clips and frames of an evaluation index ({key: {context, target}}), as pixelSplat and LVSM have it."""
    uids: Path | None = None
    """Only the clips that this text file names, one per line or CSV field."""
    report: bool = False
    """Only say which of the clips can still be had, by the pages of their videos: OUT/report.csv. Nothing else is fetched."""
    videos: Path | None = None
    """A folder with videos named by their YouTube id; nothing is fetched then."""
    cookies: Path | None = None
    """Cookies of a browser that is logged in, in Netscape's format. The file is only read."""
    videos_per_hour: float = 240.0
    """Most videos to ask for in an hour; YouTube serves guests about 300. 0: no limit, for a server of your own."""
    backoff_s: float = 60.0
    """Pause of all downloads after the first refusal for asking too often; it doubles with every further one."""
    cache: Path = Path("~/.cache/lvsm-data")
    """Where camera files of a compressed archive are kept for random access (as a .zip)."""
    downloads: int = 4
    """Videos at once, fetched ahead of the workers."""

    def resolved(self) -> ClipConfig:
        """Fill in defaults. UserError where flags contradict each other."""
        self.check_running()
        self.check_fetching()
        if self.cameras is None:
            raise UserError("clip needs --cameras", "--cameras RealEstate10K.tar.gz, or the folder that it unpacks to")
        for name in ("cameras", "eval_index", "uids", "videos", "cookies"):
            path = getattr(self, name)
            if path is not None and not path.expanduser().exists():
                raise UserError(f"--{name.replace('_', '-')} {path} does not exist")
        if self.keep_raw:
            hint = "yt-dlp -f 'bv[height<=480]' -o '%(id)s.%(ext)s' downloads whole videos, --videos DIR uses them"
            raise UserError("--keep-raw does not go with clip, which never has a whole video", hint)
        if self.videos_per_hour < 0 or self.backoff_s <= 0 or self.scene.max_error_ms <= 0:
            raise UserError("--videos-per-hour must be 0 or more, --backoff-s and --max-error-ms positive")
        if self.scene.height_crop is not None and self.scene.height_crop < 0:
            raise UserError(f"--height-crop {self.scene.height_crop} is negative", "0 keeps the whole frame")
        if self.eval_index and self.scene.views:
            raise UserError("--eval-index says itself which frames", "leave --views out")
        scene = self.scene.resolved()
        names = ("cameras", "eval_index", "uids", "videos", "cookies", "cache")
        paths: dict[str, Any] = {name: absolute(getattr(self, name)) for name in names}
        placed = self.placed(Path("data") / folder_name(self.source, scene.res))
        return dataclasses.replace(self, scene=scene, **placed, **paths, **self.granted())

    def identity(self) -> dict[str, Any]:
        """JSON values by flag that must not change for a run to go on in its folder; written to run.json."""
        named = ("split", "eval_index", "uids")
        listing = {"source": self.source, "cameras": str(self.cameras), "decoder": DECODER}
        listing |= {name: str(getattr(self, name)) for name in named if getattr(self, name)}
        run = {"val_percent": self.val_percent, "config_hash": config_hash(self.scene)}
        return listing | self.grant_identity() | self.running_identity() | run | plain(self.scene)
