"""Renders one object: builds Blender's job with its lights, encodes the frames, and judges them."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.render import RenderConfig, SceneConfig
from pipeline.core import cameras, images
from pipeline.core.errors import Retry, Skip
from pipeline.core.records import HEARTBEAT, Item, Scene, Views, item_rng, timed
from pipeline.worker import preflight, quality
from pipeline.worker.blender import NOWHERE, Blender, Frame, Limits

HEARTBEAT_S = 1.0


class Renderer:
    """Renders objects, in one Blender that stays up between them."""

    def __init__(self, cfg: RenderConfig, scratch: Path) -> None:
        assert cfg.out is not None and cfg.timeout_s is not None
        self.cfg, self.scratch = cfg, scratch
        self.input = _input_folder(cfg)
        folders = [scratch, cfg.out / "raw", cfg.cache, *self.input]
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
            file_format = preflight.check(path, root, self.cfg.scene.max_polygons)
        return self._render(item, {"path": str(path), "root": str(root), "format": file_format}, timings)

    def _root_of(self, item: Item, path: Path) -> Path:
        """Folder that the object may read: the source's `root`, else the user's input folder around it, else path.parent."""
        if root := item.extra.get("root"):
            return Path(root)
        return next((folder for folder in self.input if path.is_relative_to(folder)), path.parent)

    def _render(self, item: Item, file: dict[str, str], timings: dict[str, float]) -> Scene:
        scene_cfg = self.cfg.scene
        c2w = cameras.sample(scene_cfg.cameras, item_rng(scene_cfg.seed, item.uid, "cameras"), scene_cfg.views)
        job = build_job(scene_cfg, item.uid, c2w, threads=self.cfg.threads)
        job |= file
        gallery = Gallery(scene_cfg)
        facts: dict[str, Any] = {}
        timings |= {"render": 0.0, "encode": 0.0}
        for answer in self.blender.render(job):
            if isinstance(answer, Frame):
                timings["render"] += answer.seconds
                start = time.perf_counter()
                gallery.add(answer)
                self._beat(item, len(gallery.stats))
                timings["encode"] += time.perf_counter() - start
            else:
                facts = answer["facts"] | {"device": answer["device"], "blender": self.blender.hello["blender"]}
                timings |= answer["timings"]
        if len(gallery.stats) != scene_cfg.views:
            raise Retry("views_missing", f"{len(gallery.stats)} of {scene_cfg.views}")
        if bad := quality.verdict(gallery.stats, cameras.SAMPLERS[scene_cfg.cameras].framed):
            raise Skip(*bad)
        facts["coverage"] = round(float(np.mean([view.coverage for view in gallery.stats])), 4)
        return Scene(item, c2w, gallery.views(), facts)

    def _beat(self, item: Item, views: int) -> None:
        """Write the number of views so far, at most every HEARTBEAT_S. Only a driver that sees this folder reads it."""
        if time.monotonic() - self.last_beat > HEARTBEAT_S:
            (self.scratch / HEARTBEAT).write_text(f"{views} {item.uid}")
            self.last_beat = time.monotonic()


def _input_folder(cfg: RenderConfig) -> list[Path]:
    """[folder of the user's files or manifest], unless it holds the home folder, where credentials lie; else []."""
    folder = cfg.input if cfg.input is None or cfg.input.is_dir() else cfg.input.parent
    home = os.path.realpath(Path.home())
    return [folder] if folder and not Path(home).is_relative_to(os.path.realpath(folder)) else []


def build_job(cfg: SceneConfig, uid: str, c2w: np.ndarray, threads: int) -> dict[str, Any]:
    """Job for blender_scripts/worker.py from settings (resolved) and poses c2w (V, 4, 4), without the file to open."""
    assert cfg.fov_x_deg is not None
    hw = (cfg.width, cfg.width)
    fxfycxcy = cameras.intrinsics(cfg.fov_x_deg, hw)
    return {
        "hw": hw,
        "cameras": [cameras.blender_camera(pose, fxfycxcy, hw) for pose in c2w],
        "lights": LIGHTS[cfg.lights](item_rng(cfg.seed, uid, "lights")),
        "engine": cfg.engine,
        "device": cfg.device,
        "samples": cfg.samples,
        "denoise": cfg.denoise == "on",
        "seed": int(item_rng(cfg.seed, uid, "noise").integers(2**30)),
        "passes": [name for name in ("depth", "normals") if getattr(cfg, name)],
        "threads": threads,
        "limits": {"max_polygons": cfg.max_polygons},
    }


# ---- lights: a world color and suns; the background of the images stays white in all set-ups


def _sun(direction: np.ndarray, strength: float, color: tuple[float, ...] = (1, 1, 1)) -> dict[str, Any]:
    """A sun that shines from `direction` (3,) towards the origin; strength in W/m^2. Soft (10 deg), for less noise."""
    matrix = cameras.look_at(np.asarray(direction, float)) @ cameras.FLIP_YZ
    matrix[:3, 3] = 0
    return {"matrix_world": matrix.tolist(), "strength": strength, "color": list(color), "angle_deg": 10.0}


def _uniform(rng: np.random.Generator) -> dict[str, Any]:
    return {"world": [1.0, 1.0, 1.0], "suns": []}


def _studio(rng: np.random.Generator) -> dict[str, Any]:
    """The four suns of the Objaverse-XL renderer (key, fill, rim, bottom) at the lowest of its random strengths."""
    slant = np.sqrt(0.5)
    suns = [
        _sun(np.array([-0.5, -0.5, slant]), 3.0),
        _sun(np.array([0.5, 0.5, slant]), 2.0),
        _sun(np.array([-0.5, 0.5, slant]), 3.0),
        _sun(np.array([0.0, 0.0, -1.0]), 1.0),
    ]
    return {"world": [0.25, 0.25, 0.25], "suns": suns}


def _random(rng: np.random.Generator) -> dict[str, Any]:
    """One to three suns from anywhere above -30 deg, slightly tinted, over a white world of random strength."""
    suns = []
    for _ in range(int(rng.integers(1, 4))):
        azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 1)
        flat = np.sqrt(1 - height * height)
        direction = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), height])
        suns.append(_sun(direction, rng.uniform(0.5, 2.5), tuple(rng.uniform(0.85, 1, 3))))
    return {"world": [float(rng.uniform(0.3, 0.8))] * 3, "suns": suns}


LIGHTS: dict[str, Callable[[np.random.Generator], dict[str, Any]]] = {
    "uniform": _uniform,
    "studio": _studio,
    "random": _random,
}


# ---- frames


class Gallery:
    """Collects the frames of one object as encoded files, at every resolution of the run."""

    def __init__(self, cfg: SceneConfig) -> None:
        self.cfg = cfg
        self.stats: list[quality.ViewStats] = []
        self.jpegs: dict[int, list[bytes]] = {width: [] for width in cfg.res}
        self.layers: dict[int, dict[str, list[bytes]]] = {width: defaultdict(list) for width in cfg.res}

    def add(self, frame: Frame) -> None:
        """Composite a frame on white and encode. Linear light and alpha are area-averaged; depth and normals: nearest pixel."""
        top, _, left, _ = frame.rectangle
        for width in self.cfg.res:
            hw = (width, width)
            if whole := hw == frame.hw:
                rgba, corner = frame.passes["rgba"], (top, left)
            else:
                rgba, corner = images.resize_area(frame.passes["rgba"], hw, ((top, left), frame.hw)), (0, 0)
            rgb, alpha = images.srgb8(images.over_white(rgba)), np.clip(rgba[..., 3], 0, 1)
            self.jpegs[width].append(images.encode_jpeg(images.paste(rgb, corner, hw, 255), self.cfg.quality))
            if whole:
                self.stats.append(quality.measure(rgb, alpha, width * width))
            if self.cfg.alpha:
                coverage = np.round(alpha * 255).astype(np.uint8)
                self.layers[width]["alpha"].append(images.encode_png(images.paste(coverage, corner, hw, 0)))
            for name in ("depth", "normals"):
                if name in frame.passes:
                    self.layers[width][name].append(_raw(name, frame.full(name), width))

    def views(self) -> dict[int, Views]:
        """Image width -> Views, with the intrinsics in pixels of that width."""
        assert self.cfg.fov_x_deg is not None
        views = {}
        for width in self.cfg.res:
            k = cameras.intrinsics(self.cfg.fov_x_deg, (width, width)).astype(np.float32)
            fxfycxcy = np.tile(k, (self.cfg.views, 1))
            views[width] = Views(self.jpegs[width], fxfycxcy, (width, width), dict(self.layers[width]))
        return views


def _raw(name: str, pixels: np.ndarray, width: int) -> bytes:
    """Depth or normals (H, W, C) -> little-endian float32 bytes at `width`. Depth of the background is inf."""
    small = images.resize_nearest(pixels, (width, width))
    if name == "depth":
        small = np.where(small < NOWHERE / 10, small, np.inf)
    return small.astype("<f4").tobytes()
