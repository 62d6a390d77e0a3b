"""Renders one object: builds Blender's job with its lights, encodes the frames, and judges them."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.render import PASSES, RenderConfig, SceneConfig
from pipeline.core import cameras, images
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.core.records import HEARTBEAT, Item, Scene, Views, item_rng, timed
from pipeline.worker import preflight, quality
from pipeline.worker.blender import NOWHERE, Blender, Frame, Limits
from pipeline.worker.lights import Background, background, lights_of

HEARTBEAT_S = 1.0
RAW = ("depth", "normals")  # passes that are stored as float32
WAY_OUT = "another --lights or --background may show it"


class Renderer:
    """Renders objects, in one Blender that stays up between them."""

    def __init__(self, cfg: RenderConfig, scratch: Path) -> None:
        assert cfg.out is not None and cfg.timeout_s is not None
        self.cfg, self.scratch = cfg, scratch
        self.input = _input_folder(cfg)
        maps = [Path(cfg.scene.hdri)] if cfg.scene.hdri else []
        folders = [scratch, cfg.out / "raw", cfg.cache, *maps, *self.input]
        self.blender = Blender(scratch / "blender", Limits(timeout_s=cfg.timeout_s), readable=folders)
        self.last_beat = 0.0

    def close(self) -> None:
        """End Blender; the next item starts another."""
        self.blender.close()

    def make(self, item: Item, bring: Callable[[Item], Path], timings: dict[str, float]) -> Scene:
        """Check and render the item's file, see `Maker`. Raises Skip for an unusable object, Retry for a dead Blender."""
        with timed(timings, "fetch"):
            path = bring(item)
            root = self._root_of(item, path)
            checked = preflight.prepare(path, root, self.cfg.scene.max_polygons, self.scratch)
        try:
            return self._render(item, checked, root, timings)
        except Skip as skip:
            why = preflight.why_empty(path, root, checked) if skip.reason == "empty" else None
            raise why or skip from None

    def _root_of(self, item: Item, path: Path) -> Path:
        """Folder that the object may read: the source's `root`, else the user's input folder around it, else path.parent."""
        if root := item.extra.get("root"):
            return Path(root)
        return next((folder for folder in self.input if path.is_relative_to(folder)), path.parent)

    def _render(self, item: Item, file: preflight.Checked, root: Path, timings: dict[str, float]) -> Scene:
        scene_cfg = self.cfg.scene
        c2w = poses(scene_cfg, item.uid)
        job = build_job(scene_cfg, item.uid, c2w, threads=self.cfg.threads)
        job |= {"path": str(file.path), "root": str(root), "format": file.format, "pictures": file.pictures}
        job |= {"only": self.cfg.only, "textures": file.textures}
        behind, facts = background(scene_cfg, item.uid, job["lights"])
        gallery = Gallery(scene_cfg, c2w, behind)
        seconds: list[float] = []
        timings |= {"render": 0.0, "encode": 0.0}
        self._check_device()
        for answer in self.blender.render(job):
            if isinstance(answer, Frame):
                timings["render"] += answer.seconds
                start = time.perf_counter()
                gallery.add(answer)
                self._beat(item, len(gallery.stats))
                timings["encode"] += time.perf_counter() - start
            else:
                seconds = answer["times"]
                gallery.expect(bool(seconds))
                facts |= _joined(file.facts, answer["facts"]) | {
                    "device": answer["device"],
                    "blender": self.blender.hello["blender"],
                }
                timings |= answer["timings"]
        if len(gallery.stats) != len(gallery.shots):
            raise Retry("views_missing", f"{len(gallery.stats)} of {len(gallery.shots)}")
        if bad := quality.verdict(gallery.stats, scene_cfg.framed, WAY_OUT) or gallery.motion.verdict():
            raise Skip(*bad)
        facts |= quality.facts(gallery.stats) | gallery.motion.facts
        if not scene_cfg.is_timed:
            return Scene(item, c2w, gallery.views(), facts)
        instants = [instant for _, instant in gallery.shots]
        times = [seconds[at] if seconds else 0.0 for at in instants]
        return Scene(item, c2w[gallery.cameras], gallery.views(), facts, {"frame": np.array(instants)}, times=times)

    def _check_device(self) -> None:
        """Raise UserError, or on a cluster, where another node may have it, Retry, if the GPU that was asked for is not there."""
        wanted, there = self.cfg.scene.device, self.blender.start()["devices"]
        if wanted in ("auto", "cpu") or wanted.upper() in there:
            return
        said = f"--device {wanted}: Blender finds no such device here; it finds {', '.join(there) or 'the CPU alone'}"
        if self.cfg.address:
            raise Retry("no_device", said)
        raise UserError(
            said, "--device auto takes the CPU where there is no GPU; `lvsm-data doctor` says what is missing"
        )

    def _beat(self, item: Item, views: int) -> None:
        """Write the number of views so far, at most every HEARTBEAT_S. Only a driver that sees this folder reads it."""
        if time.monotonic() - self.last_beat > HEARTBEAT_S:
            (self.scratch / HEARTBEAT).write_text(f"{views} {item.uid}")
            self.last_beat = time.monotonic()


def _joined(before: dict[str, Any], loaded: dict[str, Any]) -> dict[str, Any]:
    """Facts of the look before and of Blender: numbers of what is missing add up, and so does what was mended."""
    made = before | loaded
    if "missing_textures" in before:
        made["missing_textures"] = before["missing_textures"] + loaded.get("missing_textures", 0)
    if mended := {*before.get("mended", ()), *loaded.get("mended", ())}:
        made["mended"] = sorted(mended)
    return made


def _input_folder(cfg: RenderConfig) -> list[Path]:
    """[folder of the user's files or manifest], unless it holds the home folder, where credentials lie; else []."""
    folder = cfg.input if cfg.input is None or cfg.input.is_dir() else cfg.input.parent
    home = os.path.realpath(Path.home())
    return [folder] if folder and not Path(home).is_relative_to(os.path.realpath(folder)) else []


def poses(cfg: SceneConfig, uid: str) -> np.ndarray:
    """c2w (V, 4, 4) float32 of an object: the rig's, then those drawn; a function of the settings (resolved) and the uid."""
    fixed = cfg.rig.poses() if cfg.rig else np.empty((0, 4, 4))
    rng = item_rng(cfg.seed, uid, "cameras")
    drawn = cameras.sample(cfg.sampler, rng, cfg.views - len(fixed), cfg.fov_x_deg, cfg.normalize)
    return np.concatenate([fixed.astype(np.float32), drawn])


def probes(cfg: SceneConfig) -> list[tuple[int, int]]:
    """(camera, instant) of pictures beside `cfg.shots()` that tell whether an object moves: of cameras that see one instant,
    two, a third of the time away from their own. None where any camera sees several.
    """
    shots, away = cfg.shots(), max(1, round(cfg.frames / 3))
    if len({camera for camera, _ in shots}) < len(shots):
        return []
    return [(camera, (instant + away) % cfg.frames) for camera, instant in dict.fromkeys((shots[0], shots[-1]))]


def timing(cfg: SceneConfig) -> dict[str, Any] | None:
    """Instants of a job for blender_scripts/timeline.py, None where one is enough; of each instant [index, camera] of its shots.

    The probes have the indices that follow those of the shots.
    """
    if not cfg.is_timed:
        return None
    shots: list[list[tuple[int, int]]] = [[] for _ in range(cfg.frames)]
    for index, (camera, instant) in enumerate(cfg.shots() + probes(cfg)):
        shots[instant].append((index, camera))
    asked = {"count": cfg.frames, "fps": cfg.fps, "duration": cfg.duration, "end": cfg.animation_end}
    return asked | {"animation": cfg.animation, "shots": shots}


def build_job(cfg: SceneConfig, uid: str, c2w: np.ndarray, threads: int) -> dict[str, Any]:
    """Job for blender_scripts/worker.py from settings (resolved) and poses c2w (V, 4, 4), without the file to open."""
    hw = (cfg.width, cfg.width)
    is_ortho = cfg.projection == "ortho"
    return {
        "hw": hw,
        "cameras": [cameras.blender_camera(pose, cfg.intrinsics(hw), hw, is_ortho) for pose in c2w],
        "lights": lights_of(cfg, uid),
        "engine": cfg.engine,
        "device": cfg.device,
        "samples": cfg.samples,
        "denoise": cfg.denoise == "on",
        "seed": int(item_rng(cfg.seed, uid, "noise").integers(2**30)),
        "passes": [name for name in PASSES if getattr(cfg, name)],
        "threads": threads,
        "limits": {"max_polygons": cfg.max_polygons, "framed": cfg.framed},
        "normalize": cfg.normalize,
        "time": timing(cfg),
    }


class Gallery:
    """Collects the frames of one object as encoded files, at every resolution of the run."""

    def __init__(self, cfg: SceneConfig, c2w: np.ndarray, background: Background) -> None:
        self.cfg, self.c2w, self.background = cfg, c2w, background
        self.shots = [(camera, 0) for camera in range(len(c2w))]
        self.probes: list[tuple[int, int]] = []
        self._often: Counter[int] = Counter()
        self.motion = quality.Motion()
        self.stats: list[quality.ViewStats] = []
        self.jpegs: dict[int, list[bytes]] = {width: [] for width in cfg.res}
        self.layers: dict[int, dict[str, list[bytes]]] = {width: defaultdict(list) for width in cfg.res}

    def expect(self, moves: bool) -> None:
        """Take frames of all instants where the object moves, else one of each camera."""
        if moves:
            self.shots, self.probes = self.cfg.shots(), probes(self.cfg)
        self._often = Counter(camera for camera, _ in self.shots + self.probes)

    @property
    def cameras(self) -> list[int]:
        """Number of the camera of each picture."""
        return [camera for camera, _ in self.shots]

    def add(self, frame: Frame) -> None:
        """Put a frame on its background and encode. Linear light is area-averaged; depth and normals: nearest pixel."""
        camera, _ = (self.shots + self.probes)[frame.index]
        top, _, left, _ = frame.rectangle
        for width in self.cfg.res:
            hw = (width, width)
            if whole := hw == frame.hw:
                rgba, corner = frame.passes["rgba"], (top, left)
            else:
                rgba, corner = images.resize_area(frame.passes["rgba"], hw, ((top, left), frame.hw)), (0, 0)
            sky = self.background(self.c2w[camera], width)
            behind = sky if sky.ndim == 1 else sky[corner[0] :, corner[1] :][: rgba.shape[0], : rgba.shape[1]]
            rgb, alpha = images.srgb8(images.over(rgba, behind)), np.clip(rgba[..., 3], 0, 1)
            picture = images.paste(rgb, corner, hw, images.srgb8(sky))
            if whole and self._often[camera] > 1:
                self.motion.add(camera, picture, images.paste(alpha > quality.COVERED, corner, hw, 0))
            if frame.index >= len(self.shots):
                continue
            self.jpegs[width].append(images.encode_jpeg(picture, self.cfg.jpeg_quality(width)))
            if whole:
                self.stats.append(quality.measure(rgb, alpha, width * width, images.srgb8(behind)))
            if self.cfg.alpha:
                coverage = np.round(alpha * 255).astype(np.uint8)
                self.layers[width]["alpha"].append(images.encode_png(images.paste(coverage, corner, hw, 0)))
            for name in PASSES:
                if name in frame.passes:
                    encoded = _raw(name, frame.full(name), width) if name in RAW else _png(name, frame, width)
                    self.layers[width][name].append(encoded)

    def views(self) -> dict[int, Views]:
        """Image width -> Views, with the intrinsics in pixels of that width."""
        views = {}
        for width in self.cfg.res:
            intrinsics = np.tile(self.cfg.intrinsics((width, width)).astype(np.float32), (len(self.shots), 1))
            views[width] = Views(self.jpegs[width], intrinsics, (width, width), dict(self.layers[width]))
        return views


def _png(name: str, frame: Frame, width: int) -> bytes:
    """A material's pass as an 8-bit PNG: the mean over what covers the pixel, as its alpha counts; 0 where nothing does."""
    hw, corner = (width, width), (frame.rectangle[0], frame.rectangle[2])
    values = frame.passes[name][..., :3] if name == "albedo" else frame.passes[name][..., :1]
    small = images.resize_area(np.concatenate([values, frame.passes["rgba"][..., 3:]], -1), hw, (corner, frame.hw))
    shares = images.of_surfaces(small)
    levels = images.srgb8(shares) if name == "albedo" else np.round(shares[..., 0] * 255).astype(np.uint8)
    return images.encode_png(images.paste(levels, corner, hw, 0))


def _raw(name: str, pixels: np.ndarray, width: int) -> bytes:
    """Depth or normals (H, W, C) -> little-endian float32 bytes at `width`. Depth of the background is inf."""
    small = images.resize_nearest(pixels, (width, width))
    if name == "depth":
        small = np.where(small < NOWHERE / 10, small, np.inf)
    return small.astype("<f4").tobytes()
