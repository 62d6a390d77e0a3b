"""Flags of `render`: the one source of the command line, of run.json and of the config hash."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import tyro

from pipeline.config.rig import Rig, read_rig
from pipeline.config.shared import LOOK, Fetching, Listing, Running, Trait, config_hash, folder_name, plain
from pipeline.config.source_table import SOURCES
from pipeline.core import cameras
from pipeline.core.cameras import BOUNDING_RADIUS, ORTHO_MARGIN, SAMPLERS, is_framed
from pipeline.core.errors import UserError

PASSES = ("depth", "normals", "albedo", "roughness", "metallic")
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}  # sRGB bytes
# of run.json, what decides which objects there are; `Listing.listing_identity`
LISTED = ("input", "manifest", "xl_sources", "lvis", "license", "captions")
ONE = "one.txt"  # list of a single uid
SMALL = 128  # pixels of width: up to it, more samples improve quality more than a denoiser, and JPEG at 95 costs more than noise


SamplerName = Literal["shell", "xl", "grm", "orbit", "sphere12", "hammersley"]


@functools.cache
def environment_maps(folder: str) -> tuple[str, ...]:
    """Paths of the environment maps straight in a folder, sorted. UserError if there are none, or no folder."""
    hint = "equirectangular .hdr or .exr files, straight in the folder"
    if not Path(folder).is_dir():
        raise UserError(f"--hdri {folder} is no folder", hint)
    if not (found := sorted(str(path) for path in Path(folder).iterdir() if path.suffix.lower() in (".hdr", ".exr"))):
        raise UserError(f"--hdri {folder} holds no environment map", hint)
    return tuple(found)


@dataclass(frozen=True)
class SceneConfig:
    """What a scene looks like. Every field changes pixels or poses, so all of them enter `config_hash`."""

    res: tuple[int, ...] = (64,)
    """Image widths (square images). Rendered once at the largest, then area-averaged in linear light to the others."""
    views: int = 32
    """Camera poses per object."""
    seed: int = 0
    """Chooses procedural objects, cameras, lights and noise. Same seed and uid, same pixels."""
    frames: int = 1
    """Instants at which an animated object is shown, spread over its animation; what does not move has one. docs/time.md."""
    fps: float | None = None
    """Instants per second, in place of spreading them."""
    duration: float | None = None
    """Seconds over which the instants are spread, in place of the whole animation."""
    time_cameras: Literal["moving", "fixed", "both"] = "moving"
    """moving: each view has an instant of its own, in their order. fixed: each camera sees every instant: VIEWS x FRAMES
    pictures. both: the first half of the cameras are fixed, the others see one instant each."""
    animation: str = "first"
    """Of a file with several animations: first, longest, or its name."""
    animation_end: Literal["loop", "clamp"] = "loop"
    """What follows an animation's end: its beginning, or the end for good."""
    samples: int | None = None
    """Paths per pixel. Default: 32, or 16 where the denoiser is on. docs/performance.md weighs time against quality."""
    engine: Literal["auto", "cycles", "eevee"] = "auto"
    """auto is Cycles. EEVEE needs a GPU to be fast."""
    device: Literal["auto", "cpu", "optix", "cuda", "hip", "oneapi", "metal"] = "auto"
    """Where Cycles traces. auto: OptiX or CUDA where there is one, else CPU threads."""
    cameras: SamplerName | Path = "shell"
    """How camera poses are drawn, or a JSON file with poses of your own; docs/cameras.md has the numbers and the file's form."""
    poses: Path | None = None
    """A camera path, of `lvsm-data paths` or of nerfstudio: its poses are the views of every object, and no others."""
    rig: Annotated[Rig | None, tyro.conf.Suppress] = None
    """Poses of the file that --cameras or --poses was; `cameras` is what draws the other views then."""
    normalize: Literal["sphere", "box"] = "sphere"
    """sphere: the object's sphere, around its box's centre, gets radius 0.5. box: its longest side gets length 1."""
    projection: Literal["perspective", "ortho"] = "perspective"
    """ortho: parallel rays, as in technical drawings. Shards then hold sxsycxcy in place of fxfycxcy, and do not train."""
    ortho_scale: float | None = None
    """Width of an orthographic picture in world units. Default: 1.015 times the diameter of the object's sphere."""
    fov_x_deg: float | None = None
    """Horizontal field of view in degrees. Default: the sampler's own (50 for shell)."""
    lights: Literal["dome", "uniform", "studio", "random", "hdri"] = "dome"
    """A smooth sky; white from all sides (GS-LRM); the Objaverse-XL suns; skies and suns drawn per object from the seed; or
    environment maps of --hdri, one per object by the seed, turned about z."""
    hdri: str | None = None
    """Folder of environment maps (equirectangular .hdr or .exr), for --lights hdri."""
    background: Literal["white", "black", "grey", "random", "hdri"] = "white"
    """Behind the object: a colour, random: one per object by the seed, or the environment map. With --alpha it can be changed."""
    denoise: Literal["auto", "on", "off"] = "auto"
    """Open Image Denoise on every view. auto: above 128 pixels."""
    quality: int | None = None
    """JPEG quality; chroma is never subsampled. Default: 98 up to 128 pixels, 95 above; docs/performance.md says why."""
    alpha: bool = False
    """Add a lossless coverage column (8-bit PNG)."""
    depth: bool = False
    """Add a lossless depth column (float32, along the camera axis)."""
    normals: bool = False
    """Add a lossless world-space normal column (float32)."""
    albedo: bool = False
    """Add a column of the materials' base colour (8-bit PNG, sRGB)."""
    roughness: bool = False
    """Add a column of the materials' roughness (8-bit PNG, 255 is 1)."""
    metallic: bool = False
    """Add a column of the materials' metallic share (8-bit PNG, 255 is 1)."""
    max_polygons: int = 20_000_000
    """Objects with more polygons, instances counted, are skipped as too_many_polygons."""

    @property
    def width(self) -> int:
        """Width to render at: the largest of `res`."""
        return max(self.res)

    def jpeg_quality(self, width: int) -> int:
        """JPEG quality of pictures of this width."""
        return self.quality or (98 if width <= SMALL else 95)

    @property
    def is_timed(self) -> bool:
        """True if objects are shown at several instants."""
        return self.frames > 1

    def shots(self) -> list[tuple[int, int]]:
        """(camera, instant) of each picture of an object that moves, by instant and camera; both are counted from 0."""
        fixed = {"moving": 0, "fixed": self.views, "both": self.views // 2}[self.time_cameras]
        everywhere = [(camera, instant) for camera in range(fixed) for instant in range(self.frames)]
        moving = self.views - fixed
        once = [(fixed + number, number * self.frames // moving) for number in range(moving)]
        return sorted(everywhere + once, key=lambda shot: (shot[1], shot[0]))

    @property
    def pictures(self) -> int:
        """Most pictures of an object, at one resolution."""
        return len(self.shots()) if self.is_timed else self.views

    @property
    def framed(self) -> bool:
        """True if every view is known to hold the whole object (settings resolved)."""
        assert self.fov_x_deg is not None
        return self.rig is None and is_framed(self.sampler, self.fov_x_deg, self.normalize, self.ortho_scale)

    def intrinsics(self, hw: tuple[int, int]) -> np.ndarray:
        """fxfycxcy (4,) of all views, or sxsycxcy of orthographic ones, in pixels of pictures of size hw (settings resolved)."""
        if self.ortho_scale is not None:
            return cameras.ortho_intrinsics(self.ortho_scale, hw)
        assert self.fov_x_deg is not None
        return cameras.intrinsics(self.fov_x_deg, hw)

    @property
    def sampler(self) -> str:
        """Name of what draws the views that no rig fixes (settings resolved)."""
        assert isinstance(self.cameras, str)
        return self.cameras

    def resolved(self) -> SceneConfig:
        """Fill in the defaults that depend on other fields. UserError for impossible values."""
        if not self.res or min(self.res) < 8 or max(self.res) > 8192:
            raise UserError(f"--res {' '.join(map(str, self.res))} is outside 8..8192", "for example --res 64 512")
        quality = 95 if self.quality is None else self.quality
        if self.views < 1 or not 1 <= quality <= 100 or (self.samples is not None and self.samples < 1):
            raise UserError("--views and --samples must be positive, --quality between 1 and 100")
        if (self.lights == "hdri") != (self.hdri is not None):
            raise UserError(
                "--lights hdri and --hdri FOLDER go together", "a folder of equirectangular .hdr or .exr files"
            )
        hdri = self.hdri and str(Path(self.hdri).expanduser().absolute())
        if hdri:
            environment_maps(hdri)
        if self.background == "hdri" and self.lights != "hdri":
            raise UserError("--background hdri needs --lights hdri", "add --lights hdri --hdri FOLDER")
        self._check_time()
        ortho_scale = self._resolved_ortho_scale()
        if self.seed < 0:
            raise UserError(f"--seed {self.seed} is negative", "seeds are whole numbers from 0 up")
        if self.poses or isinstance(self.cameras, Path):
            return self._with_rig().resolved()
        if self.rig and len(self.rig.c2w) > self.views:
            fixed = len(self.rig.c2w)
            raise UserError(f"the rig has {fixed} views, --views asks for {self.views}", f"--views {fixed} or more")
        sampler = SAMPLERS[self.cameras]
        if sampler.views not in (None, self.views):
            raise UserError(
                f"--cameras {self.cameras} has {sampler.views} views, --views asks for {self.views}",
                f"add --views {sampler.views}",
            )
        if self.engine == "eevee" and (asked := [f"--{name}" for name in PASSES if getattr(self, name)]):
            raise UserError(f"{', '.join(asked)}: only Cycles renders these", "drop --engine eevee")
        fov = sampler.fov_x_deg if self.fov_x_deg is None else self.fov_x_deg
        if not 1 <= fov <= 150:
            raise UserError(f"--fov-x-deg {fov:g} is outside 1..150 degrees")
        denoise = ("on" if self.width > SMALL else "off") if self.denoise == "auto" else self.denoise
        return dataclasses.replace(
            self,
            res=tuple(sorted(set(self.res))),
            hdri=hdri,
            engine="cycles" if self.engine == "auto" else self.engine,
            fov_x_deg=fov,
            ortho_scale=ortho_scale,
            samples=self.samples or (16 if denoise == "on" else 32),
            denoise=denoise,
        )

    def _check_time(self) -> None:
        """Raise UserError for impossible flags of time."""
        if self.frames < 1 or (self.fps or 1) <= 0 or (self.duration or 1) <= 0:
            raise UserError(
                "--frames, --fps and --duration must be positive", "--frames 16 spreads them over the animation"
            )
        if self.fps and self.duration:
            raise UserError(
                "--fps and --duration both say how far instants are apart",
                f"{self.frames} instants: leave one of them out",
            )
        names = ("fps", "duration", "time_cameras", "animation", "animation_end")
        if not self.is_timed and (asked := [n for n in names if getattr(self, n) != getattr(SceneConfig, n)]):
            flags = ", ".join("--" + name.replace("_", "-") for name in asked)
            raise UserError(
                f"{flags}: of an object's animation one instant is shown", "add --frames, for example --frames 16"
            )

    def _with_rig(self) -> SceneConfig:
        """Copy with the poses of the file that --poses or --cameras is, and its field of view where none is asked for."""
        if self.poses is None:
            assert isinstance(self.cameras, Path)
            rig, others, fov = read_rig(self.cameras)
            views = self.views
        else:
            if self.cameras != SceneConfig.cameras:
                raise UserError("--poses and --cameras both say where cameras stand", "leave one of them out")
            rig, others, fov = read_rig(self.poses, "--poses")
            views = len(rig.c2w)
            if self.views not in (views, SceneConfig.views):
                more = f"; --cameras {shlex.quote(str(self.poses))} --views {self.views} draws others besides"
                hint = f"leave --views out{more if self.views > views else ', or give a file with as many poses'}"
                raise UserError(f"--poses {self.poses} has {views} poses, --views asks for {self.views}", hint)
        fov = fov if self.fov_x_deg is None else self.fov_x_deg
        chosen: Any = others
        return dataclasses.replace(self, poses=None, rig=rig, cameras=chosen, views=views, fov_x_deg=fov)

    def _resolved_ortho_scale(self) -> float | None:
        """Width of orthographic pictures, None for pinholes. UserError for flags that do not go with the projection."""
        if self.projection == "perspective":
            if self.ortho_scale is not None:
                raise UserError("--ortho-scale is the width of orthographic pictures", "add --projection ortho")
            return None
        if self.background == "hdri":
            raise UserError("parallel rays see a single point of a map behind the object", "drop --background hdri")
        if self.ortho_scale is None:
            return 2 * BOUNDING_RADIUS[self.normalize] * ORTHO_MARGIN
        if not 0.01 <= self.ortho_scale <= 100:
            raise UserError(f"--ortho-scale {self.ortho_scale:g} is outside 0.01..100 world units")
        return self.ortho_scale


@dataclass(frozen=True)
class RenderConfig(Fetching, Running, Listing):
    """A run of the renderer: what to render, from where, to where, and how hard."""

    scene: Annotated[SceneConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=SceneConfig)
    only: tuple[Trait, ...] = ()
    """Only objects with image textures, vertex colours, animation; others fail when they are opened, as `not_textured` ..."""
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
        work = scene.pictures * (scene.width / 512) ** 2 * scene.samples / 32
        timeout_s = self.timeout_s or 300 + 20 * work
        return dataclasses.replace(self, scene=scene, timeout_s=timeout_s, **placed, **listed)

    def identity(self) -> dict[str, Any]:
        """JSON values by flag that must not change for a run to go on in its folder; written to run.json."""
        run = {"val_percent": self.val_percent, "look": LOOK, "config_hash": config_hash(self.scene)}
        if self.scene.hdri:  # which map an object gets depends on what there is to choose from
            run["hdri_maps"] = [Path(path).name for path in environment_maps(self.scene.hdri)]
        if self.only:
            run["only"] = sorted(self.only)
        return self.listing_identity() | self.running_identity() | run | plain(self.scene)


def again(identity: dict[str, Any], uid: str) -> str:
    """Commands that render one object of a run again, as text for a shell; "" where the run made no renderings.

    identity: of the run's run.json, see `RenderConfig.identity`.
    """
    if "engine" not in identity or identity.get("source") not in SOURCES:
        return ""
    plainly = plain(SceneConfig(res=tuple(identity["res"])).resolved())
    rig, names = identity.get("rig"), [name for name in plainly if name in identity and name not in ("rig", "poses")]
    asked = {name: identity[name] for name in ("source", *LISTED) if identity.get(name)}
    asked |= {name: identity[name] for name in names if name == "res" or identity[name] != plainly[name]}
    if rig:
        alone = len(rig["c2w"]) == identity["views"]
        asked = {name: value for name, value in asked.items() if not (alone and name in ("views", "cameras"))}
        asked["poses" if alone else "cameras"] = "POSES.json"  # the file that the run was given
    flags = [part for name, value in (asked | {"uids": ONE}).items() for part in _flag(name, value)]
    return f"printf '%s\\n' {shlex.quote(uid)} > {ONE}\nlvsm-data render {' '.join(flags)} --n 1 --out again"


def _flag(name: str, value: Any) -> list[str]:
    """A flag of the command line with its value, quoted."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *(shlex.quote(f"{one:g}" if isinstance(one, float) else str(one)) for one in values)]
