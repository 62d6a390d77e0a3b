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

Source = Literal["procedural", "local"]
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
class RenderConfig:
    """A run: what to render, from where, to where, and how hard."""

    n: int = 100
    """Objects to deliver. Failures are replaced from the source until n good ones stand in the shards."""
    scene: Annotated[SceneConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=SceneConfig)
    source: Source = "procedural"
    """Where objects come from: procedural (embedded, unlimited) or local (--input)."""
    input: Path | None = None
    """For --source local: a folder, or a manifest (.parquet, .csv, .jsonl with path, uid, license)."""
    allow_blend: bool = False
    """Take .blend files too. They are opened with scripts off."""
    out: Path | None = None
    """Folder of the run. Default: data/SOURCE-RES. The same command on the same folder goes on where it stopped."""
    workers: int | None = None
    """Blender processes at once. Default: one per core, as far as the memory reaches."""
    threads: int = 1
    """CPU cores of each worker."""
    address: str | None = None
    """Ray cluster to join (auto, or ray://HOST:10001). Default: a private Ray on this machine."""
    executor: Literal["ray", "inline"] = "ray"
    """inline renders in this process, one object at a time, without Ray."""
    retry_failed: bool = False
    """Try again what failed in earlier sessions."""
    timeout_s: float | None = None
    """Seconds until an object that does not finish is killed. Default: 300, and 20 more per 512x512 view of 32 samples."""
    shard_mb: float = 64.0
    """Target size of a shard of the largest resolution."""
    val_percent: float = 1.0
    """Share of the objects, chosen by a hash of the uid, that goes to val-*.parquet."""

    def resolved(self) -> RenderConfig:
        """The same with defaults filled in. Raises UserError where flags contradict each other."""
        if self.n < 1:
            raise UserError(f"--n {self.n} asks for nothing", "for example --n 100")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers} would never finish", "leave it out for one per core")
        if self.source == "local" and self.input is None:
            raise UserError("--source local needs --input", "--input FOLDER or --input MANIFEST.csv")
        if self.source != "local" and self.input is not None:
            raise UserError(f"--input does not go with --source {self.source}", "add --source local")
        if not 0 <= self.val_percent < 100:
            raise UserError(f"--val-percent {self.val_percent:g} leaves nothing to train on", "0 <= percent < 100")
        if self.threads < 1 or (self.timeout_s is not None and self.timeout_s <= 0) or self.shard_mb <= 0:
            raise UserError("--threads, --timeout-s and --shard-mb must be positive")
        scene = self.scene.resolved()
        out = self.out or Path("data") / f"{self.source}-{'-'.join(map(str, scene.res))}"
        source = self.input.absolute() if self.input else None
        assert scene.samples is not None
        work = scene.views * (scene.width / 512) ** 2 * scene.samples / 32
        timeout_s = self.timeout_s or 300 + 20 * work
        return dataclasses.replace(self, scene=scene, out=out.absolute(), input=source, timeout_s=timeout_s)

    def identity(self) -> dict[str, Any]:
        """What must stay the same for a run to go on in the same folder: JSON values by flag; written to run.json."""
        source = {
            "source": self.source,
            "input": str(self.input) if self.input else None,
            "val_percent": self.val_percent,
        }
        return source | {"look": LOOK, "config_hash": config_hash(self.scene)} | _plain(self.scene)


def _plain(scene: SceneConfig) -> dict[str, Any]:
    """A scene's settings as they read back from JSON: tuples are lists."""
    return dict(json.loads(json.dumps(dataclasses.asdict(scene))))


def config_hash(scene: SceneConfig) -> str:
    """16 hex digits that change with every setting, and every change of ours, that can change a pixel or a pose."""
    canonical = json.dumps(dataclasses.asdict(scene) | {"look": LOOK}, sort_keys=True)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()
