"""Flags of `render`: the one source of the command line, of run.json and of the config hash."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro

from pipeline.config.shared import LOOK, Fetching, Listing, Running, config_hash, folder_name, plain
from pipeline.core.cameras import SAMPLERS
from pipeline.core.errors import UserError

DENOISE_ABOVE = 128  # pixels of width; below, more samples in the same time improve quality more


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
        """Width to render at: the largest of `res`."""
        return max(self.res)

    def resolved(self) -> SceneConfig:
        """Fill in the defaults that depend on other fields. UserError for impossible values."""
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

    def resolved(self) -> Self:
        """Fill in defaults. UserError where flags contradict each other."""
        self.check_running()
        self.check_fetching()
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise UserError(f"--timeout-s {self.timeout_s:g} gives no object any time")
        scene = self.scene.resolved()
        listed = self.listed()
        placed = self.placed(Path("data") / folder_name(listed["source"], scene.res))
        assert scene.samples is not None
        work = scene.views * (scene.width / 512) ** 2 * scene.samples / 32
        timeout_s = self.timeout_s or 300 + 20 * work
        return dataclasses.replace(self, scene=scene, timeout_s=timeout_s, **placed, **listed)

    def identity(self) -> dict[str, Any]:
        """JSON values by flag that must not change for a run to go on in its folder; written to run.json."""
        run = {"val_percent": self.val_percent, "look": LOOK, "config_hash": config_hash(self.scene)}
        return self.listing_identity() | run | plain(self.scene)
