"""Frozen dataclasses: the one source of the command line's flags, of the run's JSON and of the config hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pipeline.cameras import SAMPLERS
from pipeline.scene import UserError

Source = Literal["procedural", "local", "objaverse", "objaverse-xl", "manifest"]
PosedSource = Literal["objaverse-mix", "gobjaverse", "zero123", "pixelsplat", "nerfstudio", "colmap"]
XlSource = Literal["github", "sketchfab", "smithsonian", "thingiverse"]
LicenseFamily = Literal[
    "any", "cc0", "by", "by-sa", "by-nc", "by-nc-sa", "by-nd", "by-nc-nd", "open", "copyleft", "reserved", "unknown"
]
REMOTE = ("objaverse", "objaverse-xl", "manifest")  # sources whose lists have licenses, and whose files are fetched
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
class Listing:
    """Which objects, from where: what a source's `items` goes by."""

    source: Source = "procedural"
    """Where objects come from: procedural (embedded, unlimited), local (--input), objaverse, objaverse-xl. docs/sources.md."""
    input: Path | None = None
    """For --source local: a folder, or a manifest (.parquet, .csv, .jsonl with path, uid, license)."""
    manifest: Path | None = None
    """A list of objects with their URLs, as `lvsm-data manifest` writes it; stands in place of --source."""
    xl_sources: tuple[XlSource, ...] = ("github", "sketchfab", "smithsonian", "thingiverse")
    """The parts of Objaverse-XL to draw from."""
    lvis: tuple[str, ...] = ()
    """LVIS categories of Objaverse, for example chair mug."""
    uids: Path | None = None
    """Only the objects that this text file names: uids, sha256 sums or file identifiers, one per line or CSV field."""
    scores: Path | None = None
    """A table (.csv, .parquet) of scores by uid, sha256 or file identifier; objects that it lacks are left out."""
    min_score: float | None = None
    """The least score to take, for example 5.5."""
    score_column: str | None = None
    """Column of --scores. Default: aesthetic_score or score."""
    license: tuple[LicenseFamily, ...] = ()
    """Licenses to take. Default: all that allow passing on derivatives; any: whatever it is. docs/sources.md."""
    allow_blend: bool = False
    """Take .blend files too. They are opened with scripts off."""
    cache: Path = Path("~/.objaverse")
    """Where lists are kept, and files that are there already are used; the layout is the objaverse package's."""

    def listed(self) -> dict[str, Any]:
        """The same with defaults filled in and paths made absolute, as keyword arguments.

        Raises UserError where flags contradict each other.
        """
        source: str = self.source
        if self.manifest is not None:
            if source not in ("procedural", "manifest"):
                raise UserError("--manifest says itself where each object is", f"leave --source {source} out")
            source = "manifest"
        elif source == "manifest":
            raise UserError("--source manifest needs --manifest FILE", "`lvsm-data manifest` writes one")
        if source == "local" and self.input is None:
            raise UserError("--source local needs --input", "--input FOLDER or --input MANIFEST.csv")
        if source != "local" and self.input is not None:
            raise UserError(f"--input does not go with --source {source}", "add --source local")
        if self.lvis and source != "objaverse":
            raise UserError("--lvis names categories of Objaverse", "add --source objaverse")
        if source == "procedural" and (self.uids or self.scores or self.license):
            raise UserError(
                "--uids, --scores and --license choose from a list; procedural objects have none", "add --source"
            )
        if (self.scores is None) != (self.min_score is None):
            raise UserError("--scores and --min-score go together", "--scores scores.csv --min-score 5.5")
        for name in ("manifest", "uids", "scores"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise UserError(f"--{name} {path} is no file")
        if not self.xl_sources:
            raise UserError("--xl-sources is empty", "for example --xl-sources github sketchfab")
        made: dict[str, Any] = {
            name: _absolute(getattr(self, name)) for name in ("input", "manifest", "uids", "scores")
        }
        return made | {"source": source, "cache": self.cache.expanduser().absolute()}

    def listing_identity(self) -> dict[str, Any]:
        """What decides which objects come in which order, as JSON values by flag; what was not asked for stays out."""
        asked: dict[str, Any] = {"source": self.source, "input": str(self.input) if self.input else None}
        if self.source == "objaverse-xl":
            asked["xl_sources"] = sorted(self.xl_sources)
        for name in ("manifest", "lvis", "uids", "scores", "min_score", "score_column", "license"):
            if value := getattr(self, name):
                asked[name] = sorted(value) if isinstance(value, tuple) else value
        return dict(json.loads(json.dumps(asked, default=str)))


@dataclass(frozen=True)
class Fetching:
    """How hard to download, and how much disk it may take. Never changes what comes out."""

    downloads: int = 16
    """Downloads at once, which run ahead of the renderers."""
    per_host: int = 8
    """Connections to one host at once."""
    raw_gb: float = 8.0
    """Disk for downloaded files that were not rendered yet; reserved before a download starts."""
    max_file_mb: float = 1000.0
    """Larger files are left out, as too_large."""
    stall_s: float = 60.0
    """A connection that brings nothing for so long is given up, and tried again."""
    keep_raw: bool = False
    """Keep downloaded files, in --cache. Without it they go as soon as their shard has them."""
    mirror: tuple[str, ...] = ()
    """FROM=TO: fetch from another place what stands at a URL, for example https://host/=http://mirror/host/."""

    def check_fetching(self) -> None:
        """Raises UserError on nonsense."""
        if min(self.downloads, self.per_host, self.raw_gb, self.max_file_mb, self.stall_s) <= 0:
            raise UserError("--downloads, --per-host, --raw-gb, --max-file-mb and --stall-s must be positive")
        if self.max_file_mb / 1e3 > self.raw_gb:
            raise UserError(f"--max-file-mb {self.max_file_mb:g} does not fit into --raw-gb {self.raw_gb:g}")
        for rule in self.mirror:
            before, _, after = rule.partition("=")
            if "://" not in before or "://" not in after:
                raise UserError(f"--mirror {rule} is no FROM=TO of two URLs", "--mirror https://host/=http://mirror/")


@dataclass(frozen=True)
class Running:
    """A run: how many, to where, and by how many workers."""

    n: int = 100
    """Objects to deliver. Failures are replaced from the source until n good ones stand in the shards."""
    out: Path | None = None
    """Folder of the run. Default: data/SOURCE-RES. The same command on the same folder goes on where it stopped."""
    workers: int | None = None
    """Processes at once. Default: one per core, as far as the memory reaches."""
    threads: int = 1
    """CPU cores of each worker."""
    address: str | None = None
    """Ray cluster to join (auto, or ray://HOST:10001). Default: a private Ray on this machine."""
    executor: Literal["ray", "inline"] = "ray"
    """inline works in this process, one object at a time, without Ray."""
    retry_failed: bool = False
    """Try again what failed in earlier sessions."""
    shard_mb: float = 64.0
    """Target size of a shard of the largest resolution."""
    val_percent: float = 1.0
    """Share of the objects, chosen by a hash of the uid, that goes to val-*.parquet."""

    def check_running(self) -> None:
        """Raises UserError on nonsense."""
        if self.n < 1:
            raise UserError(f"--n {self.n} asks for nothing", "for example --n 100")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers} would never finish", "leave it out for one per core")
        if not 0 <= self.val_percent < 100:
            raise UserError(f"--val-percent {self.val_percent:g} leaves nothing to train on", "0 <= percent < 100")
        if self.threads < 1 or self.shard_mb <= 0:
            raise UserError("--threads and --shard-mb must be positive")


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
        out = self.out or Path("data") / _folder_name(listed["source"], scene.res)
        assert scene.samples is not None
        work = scene.views * (scene.width / 512) ** 2 * scene.samples / 32
        timeout_s = self.timeout_s or 300 + 20 * work
        return dataclasses.replace(self, scene=scene, out=out.absolute(), timeout_s=timeout_s, **listed)

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
class PosedConfig:
    """What becomes of pictures that exist already. Every field changes pixels or poses, so all enter `config_hash`."""

    res: tuple[int, ...] = (64,)
    """Image widths, area-averaged in linear light from one decoding. Pictures are never enlarged."""
    views: int | None = None
    """Most views per scene, spread evenly over those that are there. Default: all."""
    seed: int = 0
    """Chooses the order of the objects."""
    quality: int = 95
    """JPEG quality; chroma is never subsampled."""
    crop: Literal["square", "none"] = "square"
    """square: the centre of each picture, as LVSM takes it. The intrinsics follow."""
    alpha: bool = False
    """Add a lossless coverage column (8-bit PNG), where the pictures have one."""
    mix: MixCameras = field(default_factory=MixCameras)

    def resolved(self) -> PosedConfig:
        """The same, sorted. Raises UserError on nonsense."""
        if not self.res or min(self.res) < 8 or max(self.res) > 8192:
            raise UserError(f"--res {' '.join(map(str, self.res))} is outside 8..8192", "for example --res 64 512")
        if (self.views is not None and self.views < 1) or not 1 <= self.quality <= 100 or self.seed < 0:
            raise UserError("--views must be positive, --quality between 1 and 100, --seed 0 or more")
        return dataclasses.replace(self, res=tuple(sorted(set(self.res))))


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
        out = self.out or Path("data") / _folder_name(self.source, scene.res)
        paths: dict[str, Any] = {"input": _absolute(self.input), "uids": _absolute(self.uids)}
        cache = self.cache.expanduser().absolute()
        return dataclasses.replace(self, scene=scene, out=out.absolute(), cache=cache, **paths)

    def identity(self) -> dict[str, Any]:
        """What must stay the same for a run to go on in the same folder: JSON values by flag; written to run.json."""
        listing = {"source": self.source, "input": str(self.input) if self.input else None}
        listing |= {"uids": str(self.uids)} if self.uids else {}
        run = {"val_percent": self.val_percent, "config_hash": config_hash(self.scene)}
        return listing | run | _plain(self.scene)


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


def _absolute(path: Path | None) -> Path | None:
    return path.expanduser().absolute() if path else None


def _folder_name(source: str, res: tuple[int, ...]) -> str:
    return f"{source}-{'-'.join(map(str, res))}"


def _plain(scene: SceneConfig | PosedConfig) -> dict[str, Any]:
    """A scene's settings as they read back from JSON: tuples are lists."""
    return dict(json.loads(json.dumps(dataclasses.asdict(scene))))


def config_hash(scene: SceneConfig | PosedConfig) -> str:
    """16 hex digits that change with every setting, and every change of ours, that can change a pixel or a pose."""
    canonical = json.dumps(dataclasses.asdict(scene) | {"look": LOOK}, sort_keys=True)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()
