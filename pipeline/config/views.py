"""Flags of `import`: views that exist already."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro

from pipeline.config.shared import Fetching, Granting, Running, absolute, address_of, config_hash, folder_name, plain
from pipeline.config.source_table import AUTO, SOURCES, PosedSource, names
from pipeline.core.errors import UserError


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
    """Processing of existing pictures. Every field changes pixels or poses, so all enter `config_hash`."""

    res: tuple[int, ...] = (64,)
    """Image widths, area-averaged in linear light from one decoding. Pictures are never enlarged."""
    views: int | None = None
    """Most views per scene, spread evenly over those that are there. Default: all."""
    seed: int = 0
    """Chooses the order of the objects."""
    quality: int = 95
    """JPEG quality of what is encoded anew; chroma is never subsampled. A JPEG without subsampling and metadata that needs no
    other shape or size keeps its bytes."""

    def resolved(self) -> Self:
        """Sort `res`. UserError for impossible values."""
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
    """Add a lossless coverage column (8-bit PNG). Scenes whose pictures have neither transparency nor masks as NeuS's end as
    layer_missing."""
    depth: bool = False
    """Add a lossless depth column (float32, along the camera axis, units of the world), from rendered sets that have depth."""
    normals: bool = False
    """Add a lossless world-space normal column (float32), from rendered sets that have normals."""
    albedo: bool = False
    """Add a column of the materials' base colour (8-bit PNG, sRGB), from rendered sets that have it."""
    frames: int = 16
    """Instants of --source rig, videos of fixed cameras: spread over the time that all of them show."""
    fps: float | None = None
    """Instants per second of --source rig, in place of spreading them."""
    mix: MixCameras = field(default_factory=MixCameras)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the columns beside colour and coverage that are asked for."""
        return tuple(name for name in ("depth", "normals", "albedo") if getattr(self, name))


@dataclass(frozen=True)
class ImportConfig(Granting, Fetching, Running):
    """A run of the importer: views that exist already become the same shards."""

    source: PosedSource = AUTO
    """What the pictures and their cameras look like; auto: recognised in the folder that --input names. docs/sources.md."""
    input: Path | None = None
    """A folder; of rendered sets also an archive (.zip, .tar, .tar.gz, .7z); or a run: a folder, hf:OWNER/NAME, s3://BUCKET/RUN.
    Default for objaverse-mix and gobjaverse: fetched, bit by bit."""
    follow_links: bool = True
    """Take pictures of captures that links lead to, also out of their folder. Archives never hold links."""
    scene: Annotated[PosedConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=PosedConfig)
    verify_cameras: bool = True
    """Check that poses and pictures of each scene fit (silhouettes, epipolar lines): views that do not are left out, as
    views_wrong, scenes that do not as cameras_do_not_fit, and a run whose first scenes do not ends."""
    verify_percent: float = 100.0
    """Share of the scenes to check, chosen by a hash of the uid. The first ones always are."""
    uids: Path | None = None
    """Only the scenes that this text file names, one per line or CSV field."""
    cache: Path = Path("~/.objaverse")
    """Where lists are kept."""
    max_file_mb: float = 6000.0
    """Larger files are left out, as too_large. An archive of Objaverse-MIX has about 4,650 MB."""

    def resolved(self) -> ImportConfig:
        """Fill in defaults. UserError where flags contradict each other."""
        self.check_running()
        self.check_fetching()
        if self.source == AUTO:
            raise UserError(
                "import needs --input or --source", f"--input FOLDER, or --source {' | '.join(names('posed'))}"
            )
        if self.input is None and (hint := SOURCES[self.source].input):
            raise UserError(f"--source {self.source} needs --input", hint)
        for name in ("input", "uids"):
            path = getattr(self, name)
            if path is not None and not address_of(path) and not path.exists():
                raise UserError(f"--{name} {path} does not exist")
        if address_of(self.input) and not SOURCES[self.source].ready:
            raise UserError(f"--source {self.source} takes files of this machine", "addresses are for --source shards")
        if self.scene.frames < 1 or (self.scene.fps is not None and self.scene.fps <= 0):
            raise UserError("--frames and --fps must be positive", "--frames 16 spreads instants over the videos")
        if self.source != "rig" and (self.scene.frames, self.scene.fps) != (PosedConfig.frames, PosedConfig.fps):
            raise UserError("--frames and --fps choose instants of videos", "they go with --source rig")
        if lacking := [name for name in self.scene.layers if name not in SOURCES[self.source].layers]:
            having = [source for source in names("posed") if lacking[0] in SOURCES[source].layers]
            hint = f"of the sets that are read, these have {lacking[0]}: {', '.join(having)}"
            raise UserError(f"--source {self.source} has no {' and no '.join(lacking)}", hint)
        if not 0 <= self.verify_percent <= 100:
            raise UserError(f"--verify-percent {self.verify_percent:g} is no share", "0 to 100")
        scene = self.scene.resolved()
        placed = self.placed(Path("data") / folder_name(self.source, scene.res))
        paths: dict[str, Any] = {name: absolute(getattr(self, name)) for name in ("input", "uids")}
        cache = self.cache.expanduser().absolute()
        verify = self.verify_cameras and not SOURCES[self.source].ready
        made = placed | paths | self.granted()
        return dataclasses.replace(self, scene=scene, cache=cache, verify_cameras=verify, **made)

    def identity(self) -> dict[str, Any]:
        """JSON values by flag that must not change for a run to go on in its folder; written to run.json."""
        listing = {"source": self.source, "input": str(self.input) if self.input else None}
        listing |= {"uids": str(self.uids)} if self.uids else {}
        run = {"val_percent": self.val_percent, "config_hash": config_hash(self.scene)}
        return listing | self.grant_identity() | self.running_identity() | run | plain(self.scene)
