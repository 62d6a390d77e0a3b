"""Frozen dataclasses: the one source of the command line's flags, of the run's JSON and of the config hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro

from pipeline.cameras import SAMPLERS
from pipeline.flags import Fetching, Listing, Running, absolute
from pipeline.scene import UserError

PosedSource = Literal["objaverse-mix", "gobjaverse", "zero123", "pixelsplat", "nerfstudio", "colmap"]
VideoSource = Literal["realestate10k", "acid"]
LOOK = 2  # counted up by every change of ours that gives other pixels for the same settings
DENOISE_ABOVE = 128  # pixels; below, what a denoiser costs buys more quality as samples


@dataclass(frozen=True)
class SceneConfig:
    """What a scene looks like. Every field changes pixels or poses, so all of them enter `config_hash`."""

    res: tuple[int, ...] = (64,)
    """Image widths (square images). Rendered once at the largest, then area-averaged in linear light to the others."""
    views: int = 32
    """Camera poses per object."""
    seed: int = 0
    """Chooses procedural objects, cameras, lights and noise. Same seed and uid, same pixels."""
    samples: int | None = None
    """Paths per pixel. Default: 32, or 16 where the denoiser is on. docs/performance.md weighs time against quality."""
    engine: Literal["auto", "cycles", "eevee"] = "auto"
    """auto is Cycles. EEVEE needs a GPU to be fast."""
    device: Literal["auto", "cpu", "optix", "cuda", "hip", "oneapi", "metal"] = "auto"
    """Where Cycles traces. auto: OptiX or CUDA where there is one, else CPU threads."""
    cameras: Literal["shell", "xl", "grm", "orbit", "sphere12", "hammersley"] = "shell"
    """How camera poses are drawn; docs/cameras.md has the numbers."""
    fov_x_deg: float | None = None
    """Horizontal field of view in degrees. Default: the sampler's own (50 for shell)."""
    lights: Literal["uniform", "studio", "random"] = "uniform"
    """White from all sides; the Objaverse-XL suns; or suns drawn per object from the seed."""
    denoise: Literal["auto", "on", "off"] = "auto"
    """Open Image Denoise on every view. auto: above 128 pixels."""
    quality: int = 95
    """JPEG quality; chroma is never subsampled."""
    alpha: bool = False
    """Add a lossless coverage column (8-bit PNG)."""
    depth: bool = False
    """Add a lossless depth column (float32, along the camera axis)."""
    normals: bool = False
    """Add a lossless world-space normal column (float32)."""
    max_polygons: int = 20_000_000
    """Objects with more polygons, instances counted, are skipped as too_many_polygons."""

    @property
    def width(self) -> int:
        """The width that is rendered: the largest asked for."""
        return max(self.res)

    def resolved(self) -> SceneConfig:
        """The same with every default that depends on another field filled in. Raises UserError on nonsense."""
        if not self.res or min(self.res) < 8 or max(self.res) > 8192:
            raise UserError(f"--res {' '.join(map(str, self.res))} is outside 8..8192", "for example --res 64 512")
        if self.views < 1 or not 1 <= self.quality <= 100 or (self.samples is not None and self.samples < 1):
            raise UserError("--views and --samples must be positive, --quality between 1 and 100")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed} is negative", "seeds are whole numbers from 0 up")
        sampler = SAMPLERS[self.cameras]
        if sampler.views not in (None, self.views):
            raise UserError(
                f"--cameras {self.cameras} has {sampler.views} views, --views asks for {self.views}",
                f"add --views {sampler.views}",
            )
        if self.engine == "eevee" and (self.depth or self.normals):
            raise UserError("--depth and --normals need Cycles", "drop --engine eevee")
        fov = sampler.fov_x_deg if self.fov_x_deg is None else self.fov_x_deg
        if not 1 <= fov <= 150:
            raise UserError(f"--fov-x-deg {fov:g} is outside 1..150 degrees")
        denoise = ("on" if self.width > DENOISE_ABOVE else "off") if self.denoise == "auto" else self.denoise
        return dataclasses.replace(
            self,
            res=tuple(sorted(set(self.res))),
            engine="cycles" if self.engine == "auto" else self.engine,
            fov_x_deg=fov,
            samples=self.samples or (16 if denoise == "on" else 32),
            denoise=denoise,
        )


@dataclass(frozen=True)
class RenderConfig(Fetching, Running, Listing):
    """A run of the renderer: what to render, from where, to where, and how hard."""

    scene: Annotated[SceneConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=SceneConfig)
    timeout_s: float | None = None
    """Seconds until an object that does not finish is killed. Default: 300, and 20 more per 512x512 view of 32 samples."""

    def resolved(self) -> RenderConfig:
        """The same with defaults filled in. Raises UserError where flags contradict each other."""
        self.check_running()
        self.check_fetching()
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise UserError(f"--timeout-s {self.timeout_s:g} gives no object any time")
        scene = self.scene.resolved()
        listed = self.listed()
        placed = self.placed(Path("data") / _folder_name(listed["source"], scene.res))
        assert scene.samples is not None
        work = scene.views * (scene.width / 512) ** 2 * scene.samples / 32
        timeout_s = self.timeout_s or 300 + 20 * work
        return dataclasses.replace(self, scene=scene, timeout_s=timeout_s, **placed, **listed)

    def identity(self) -> dict[str, Any]:
        """What must stay the same for a run to go on in the same folder: JSON values by flag; written to run.json."""
        run = {"val_percent": self.val_percent, "look": LOOK, "config_hash": config_hash(self.scene)}
        return self.listing_identity() | run | _plain(self.scene)


@dataclass(frozen=True)
class MixCameras:
    """The cameras of Objaverse-MIX, which ships none: an inference from the script that its layout points to.

    Twelve on a circle that look at the origin, world z up; see docs/sources.md. --verify-cameras tells whether they fit.
    """

    radius: float = 2.0
    """Distance from the origin; the object's longest side is 1."""
    elevation_deg: float = 30.0
    """Above the horizon."""
    fov_x_deg: float = 49.134
    """Horizontal field of view: 35 mm lens, 32 mm sensor."""
    azimuth_deg: float = 0.0
    """Of view 0, from +x towards +y."""
    clockwise: bool = False
    """Whether the views go round from +x towards -y."""


@dataclass(frozen=True)
class PictureConfig:
    """What becomes of pictures that somebody else took. Every field changes pixels or poses, so all enter `config_hash`."""

    res: tuple[int, ...] = (64,)
    """Image widths, area-averaged in linear light from one decoding. Pictures are never enlarged."""
    views: int | None = None
    """Most views per scene, spread evenly over those that are there. Default: all."""
    seed: int = 0
    """Chooses the order of the objects."""
    quality: int = 95
    """JPEG quality; chroma is never subsampled."""

    def resolved(self) -> Self:
        """The same, sorted. Raises UserError on nonsense."""
        if not self.res or min(self.res) < 8 or max(self.res) > 8192:
            raise UserError(f"--res {' '.join(map(str, self.res))} is outside 8..8192", "for example --res 64 512")
        if (self.views is not None and self.views < 1) or not 1 <= self.quality <= 100 or self.seed < 0:
            raise UserError("--views must be positive, --quality between 1 and 100, --seed 0 or more")
        return dataclasses.replace(self, res=tuple(sorted(set(self.res))))


@dataclass(frozen=True)
class PosedConfig(PictureConfig):
    """What becomes of pictures that come with their cameras."""

    crop: Literal["square", "none"] = "square"
    """square: the centre of each picture, as LVSM takes it. The intrinsics follow."""
    alpha: bool = False
    """Add a lossless coverage column (8-bit PNG), where the pictures have one."""
    mix: MixCameras = field(default_factory=MixCameras)


@dataclass(frozen=True)
class ImportConfig(Fetching, Running):
    """A run of the importer: views that exist already become the same shards."""

    source: PosedSource = "nerfstudio"
    """What the pictures and their cameras look like. docs/sources.md."""
    input: Path | None = None
    """A folder, or an archive (.zip, .tar, .tar.gz, .7z). Default for objaverse-mix and gobjaverse: fetched, bit by bit."""
    scene: Annotated[PosedConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=PosedConfig)
    verify_cameras: bool = True
    """Check on the first scenes that poses and pictures fit (silhouettes, epipolar lines), and refuse where they do not."""
    uids: Path | None = None
    """Only the scenes that this text file names, one per line or CSV field."""
    cache: Path = Path("~/.objaverse")
    """Where lists are kept."""
    max_file_mb: float = 6000.0
    """Larger files are left out, as too_large. An archive of Objaverse-MIX has about 4,650 MB."""

    def resolved(self) -> ImportConfig:
        """The same with defaults filled in. Raises UserError where flags contradict each other."""
        self.check_running()
        self.check_fetching()
        if self.input is None and self.source not in ("objaverse-mix", "gobjaverse"):
            raise UserError(f"--source {self.source} needs --input", "--input FOLDER")
        for name in ("input", "uids"):
            path = getattr(self, name)
            if path is not None and not path.exists():
                raise UserError(f"--{name} {path} does not exist")
        scene = self.scene.resolved()
        placed = self.placed(Path("data") / _folder_name(self.source, scene.res))
        paths: dict[str, Any] = {"input": absolute(self.input), "uids": absolute(self.uids)}
        cache = self.cache.expanduser().absolute()
        return dataclasses.replace(self, scene=scene, cache=cache, **placed, **paths)

    def identity(self) -> dict[str, Any]:
        """What must stay the same for a run to go on in the same folder: JSON values by flag; written to run.json."""
        listing = {"source": self.source, "input": str(self.input) if self.input else None}
        listing |= {"uids": str(self.uids)} if self.uids else {}
        run = {"val_percent": self.val_percent, "config_hash": config_hash(self.scene)}
        return listing | run | _plain(self.scene)


@dataclass(frozen=True)
class ClipScene(PictureConfig):
    """What becomes of a video's frames."""

    height_crop: int | None = None
    """Rows of the largest images: the centre of each frame is cut to that shape. Default: a square; 0: the whole frame."""
    max_error_ms: float = 50.0
    """Most that a frame may be shown before or after the time of its pose."""

    def hw(self, width: int, frame_hw: tuple[int, int]) -> tuple[int, int]:
        """Of the images of one width, out of frames of that size."""
        rows = frame_hw[0] * width / frame_hw[1] if self.height_crop == 0 else self.rows * width / max(self.res)
        return max(1, round(rows)), width

    @property
    def rows(self) -> int:
        """Of the images at the largest width; of a whole frame, as many as one of 16:9 has."""
        return self.height_crop or (round(max(self.res) * 9 / 16) if self.height_crop == 0 else max(self.res))

    @property
    def stream_height(self) -> int:
        """Rows that a stream must have: what is cut out of it, and half as much again, since codecs blur their finest detail."""
        return math.ceil(1.5 * max(self.rows, max(self.res) * 9 / 16))


@dataclass(frozen=True)
class ClipConfig(Fetching, Running):
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
        """The same with defaults filled in. Raises UserError where flags contradict each other."""
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
        placed = self.placed(Path("data") / _folder_name(self.source, scene.res))
        return dataclasses.replace(self, scene=scene, **placed, **paths)

    def identity(self) -> dict[str, Any]:
        """What must stay the same for a run to go on in the same folder: JSON values by flag; written to run.json."""
        named = ("split", "eval_index", "uids")
        listing = {"source": self.source, "cameras": str(self.cameras)}
        listing |= {name: str(getattr(self, name)) for name in named if getattr(self, name)}
        run = {"val_percent": self.val_percent, "config_hash": config_hash(self.scene)}
        return listing | run | _plain(self.scene)


RunConfig = RenderConfig | ImportConfig | ClipConfig


@dataclass(frozen=True)
class ManifestConfig(Listing):
    """A reproducible list of objects, without their files."""

    n: int = 1000
    """Lines to write; fewer where the source has no more."""
    seed: int = 0
    """Chooses the objects and their order; `render` with the same seed takes the same ones."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The file: .parquet, .csv or .jsonl. Default: manifests/SOURCE-N.parquet."""

    def resolved(self) -> ManifestConfig:
        """The same with defaults filled in. Raises UserError where flags contradict each other."""
        listed = self.listed()
        if self.n < 1 or self.seed < 0:
            raise UserError("--n must be positive, --seed 0 or more", "for example --n 1000 --seed 0")
        out = self.out or Path("manifests") / f"{listed['source']}-{self.n}.parquet"
        if out.suffix not in (".parquet", ".csv", ".jsonl"):
            raise UserError(f"--out {out}: {out.suffix or 'no suffix'} is no manifest", "use .parquet, .csv or .jsonl")
        return dataclasses.replace(self, out=out.absolute(), **listed)


def _folder_name(source: str, res: tuple[int, ...]) -> str:
    return f"{source}-{'-'.join(map(str, res))}"


def _plain(scene: SceneConfig | PictureConfig) -> dict[str, Any]:
    """A scene's settings as they read back from JSON: tuples are lists."""
    return dict(json.loads(json.dumps(dataclasses.asdict(scene))))


def config_hash(scene: SceneConfig | PictureConfig) -> str:
    """16 hex digits that change with every setting, and every change of ours, that can change a pixel or a pose."""
    canonical = json.dumps(dataclasses.asdict(scene) | {"look": LOOK}, sort_keys=True)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()
