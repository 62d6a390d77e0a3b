"""The whole life of a worker: item in, outcome out. Fetch, look, render, judge, encode."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import cameras, images, preflight, quality, sources
from pipeline.blender import NOWHERE, Blender, Frame, Limits
from pipeline.config import ClipConfig, ImportConfig, RenderConfig, RunConfig, SceneConfig
from pipeline.downloads import fetcher
from pipeline.lights import LIGHTS
from pipeline.prefetch import Prefetch
from pipeline.room import LOOK_AGAIN_S, is_full
from pipeline.scene import HEARTBEAT, Item, Outcome, Retry, Scene, Skip, Views, item_rng
from pipeline.writer import Packer

TRIES = 2  # a crash or a hang costs one more try, in a fresh process
HEARTBEAT_S = 1.0


class Worker:
    """Holds a scratch folder; called once per item, never fails: every end is an Outcome."""

    def __init__(self, cfg: RunConfig) -> None:
        assert cfg.out is not None
        self.cfg = cfg
        self.source = sources.load(cfg.source)
        shared = cfg.out / "scratch"
        self.scratch = Path(tempfile.mkdtemp(prefix="worker-", dir=shared if shared.is_dir() else None))
        self.name = f"{os.uname().nodename}:{os.getpid()}"
        self.prefetch: Prefetch | None = None
        if sources.is_remote(cfg) and cfg.address:  # else the driver downloads
            self.prefetch = Prefetch(self.source, fetcher(cfg, self.scratch / "raw", cfg.cache))

    def ahead(self, items: list[Item]) -> None:
        """What comes now and next. A worker of a cluster fetches it meanwhile."""
        if self.prefetch:
            self.prefetch.want(items)

    def __call__(self, item: Item) -> Outcome:
        """Does one item. A Retry is tried again at once, in a fresh Blender; then it is a failure like any other."""
        timings: dict[str, float] = {}
        start = time.perf_counter()
        tries = 0
        passing = False
        while True:
            tries += 1
            try:
                scene = self._produce(item, timings)
                reason = detail = ""
            except Retry as failure:
                if tries < TRIES:
                    continue
                scene, reason, detail, passing = None, failure.reason, failure.detail, True
            except Skip as failure:
                scene, reason, detail = None, failure.reason, failure.detail
            except Exception as error:  # the only broad one: a bug of ours costs one object and keeps its traceback
                if is_full(error):  # not this object's fault, and the driver says so, or ends
                    time.sleep(LOOK_AGAIN_S)
                    tries -= 1
                    continue
                self.start_afresh()
                scene, reason, detail = None, "bug", traceback.format_exc()
            timings["total"] = time.perf_counter() - start
            if self.prefetch:
                self.prefetch.drop(item.uid)
            return Outcome(item, scene, reason, detail, tries, self.name, timings, passing)

    def start_afresh(self) -> None:
        """Forgets whatever a bug may have left half done."""

    def close(self) -> None:
        """Removes the scratch folder."""
        if self.prefetch:
            self.prefetch.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _produce(self, item: Item, timings: dict[str, float]) -> Scene:
        raise NotImplementedError

    def _item_folder(self) -> Path:
        """An empty folder for what one item needs."""
        folder = self.scratch / "item"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def _bring(self, item: Item, folder: Path) -> Path:
        """The item's file: where a download put it, unless that was on another machine; else as its source fetches it."""
        ready = item.extra.get("path")
        if ready and os.path.exists(ready):
            return Path(ready)
        if hasattr(self.source, "fetch"):
            return Path(self.source.fetch(item, folder))
        return self.prefetch.take(item) if self.prefetch else Path(item.url)


class Packing:
    """A worker whose scenes are packed before they leave it."""

    def __init__(self, make: Callable[[], Worker], pack: Packer) -> None:
        self.worker = make()
        self.pack = pack
        self.ahead, self.close = self.worker.ahead, self.worker.close

    def __call__(self, item: Item) -> Outcome:
        """The worker's outcome."""
        outcome = self.worker(item)
        return dataclasses.replace(outcome, scene=self.pack(outcome.scene)) if outcome.scene else outcome


class Producer(Worker):
    """Renders objects: holds one Blender."""

    cfg: RenderConfig

    def __init__(self, cfg: RenderConfig) -> None:
        super().__init__(cfg)
        assert cfg.out is not None and cfg.timeout_s is not None
        self.cfg = cfg
        self.input = _folder_of_input(cfg)
        folders = [self.scratch, cfg.out / "raw", cfg.cache, *self.input]
        self.blender = Blender(self.scratch / "blender", Limits(timeout_s=cfg.timeout_s), readable=folders)
        self.last_beat = 0.0

    def start_afresh(self) -> None:
        """Ends Blender; the next item starts another."""
        self.blender.close()

    def close(self) -> None:
        """Ends Blender and removes the scratch folder."""
        self.blender.close()
        super().close()

    def _produce(self, item: Item, timings: dict[str, float]) -> Scene:
        with _timed(timings, "fetch"):
            path = self._bring(item, self._item_folder())
            root = self._root_of(item, path)
            file_format = preflight.check(path, root, self.cfg.scene.max_polygons)
        return self._render(item, {"path": str(path), "root": str(root), "format": file_format}, timings)

    def _root_of(self, item: Item, path: Path) -> Path:
        """The folder that an object may read: what its source says, else what the user named, else its own."""
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
        """Tells a driver on the same machine how far this item is. Lost on others: progress then counts whole objects."""
        if time.monotonic() - self.last_beat > HEARTBEAT_S:
            (self.scratch / HEARTBEAT).write_text(f"{views} {item.uid}")
            self.last_beat = time.monotonic()


class Importer(Worker):
    """Takes views that exist already."""

    cfg: ImportConfig

    def __init__(self, cfg: ImportConfig) -> None:
        super().__init__(cfg)
        self.cfg = cfg

    def _produce(self, item: Item, timings: dict[str, float]) -> Scene:
        from pipeline import consistency
        from pipeline.posed import to_scene
        from pipeline.vetting import FOUND, MARK

        with _timed(timings, "fetch"):
            posed = self.source.load(item, self._bring(item, self._item_folder()), self.cfg)
        with _timed(timings, "encode"):
            scene = to_scene(item, posed, self.cfg.scene)
        if item.extra.get(MARK):
            scene.meta[FOUND] = dataclasses.asdict(consistency.check(posed))
        return scene


class Clipper(Worker):
    """Takes frames out of videos."""

    cfg: ClipConfig

    def __init__(self, cfg: ClipConfig) -> None:
        super().__init__(cfg)
        self.cfg = cfg

    def _produce(self, item: Item, timings: dict[str, float]) -> Scene:
        from pipeline import clips

        with _timed(timings, "fetch"):
            clip = self.source.load(item, self._bring(item, self._item_folder()), self.cfg)
        with _timed(timings, "encode"):
            return clips.to_scene(item, clip, self.cfg.scene, self.cfg.threads)


def _folder_of_input(cfg: RenderConfig) -> list[Path]:
    """The folder with a user's files, or with the manifest of them. Not one that holds the home: credentials lie there."""
    folder = cfg.input if cfg.input is None or cfg.input.is_dir() else cfg.input.parent
    home = os.path.realpath(Path.home())
    return [folder] if folder and not Path(home).is_relative_to(os.path.realpath(folder)) else []


def make_worker(cfg: RunConfig) -> Worker:
    """What a run's items go through, by the kind of its source."""
    if isinstance(cfg, ClipConfig):
        return Clipper(cfg)
    return Importer(cfg) if isinstance(cfg, ImportConfig) else Producer(cfg)


@contextlib.contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Notes how long a stage took that came to its end."""
    start = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - start


def build_job(cfg: SceneConfig, uid: str, c2w: np.ndarray, threads: int) -> dict[str, Any]:
    """Settings and poses (V, 4, 4) -> the JSON that Blender takes, without the file to open. `cfg` is resolved."""
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


class Gallery:
    """Collects the frames of one object as encoded files, at every resolution of the run."""

    def __init__(self, cfg: SceneConfig) -> None:
        self.cfg = cfg
        self.stats: list[quality.ViewStats] = []
        self.jpegs: dict[int, list[bytes]] = {width: [] for width in cfg.res}
        self.layers: dict[int, dict[str, list[bytes]]] = {width: {} for width in cfg.res}

    def add(self, frame: Frame) -> None:
        """Composites on white and encodes: light and coverage by area in linear light, depth and normals by nearest pixel."""
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
                self._keep(width, "alpha", images.encode_png(images.paste(coverage, corner, hw, 0)))
            for name in ("depth", "normals"):
                if name in frame.passes:
                    self._keep(width, name, _raw(name, frame.full(name), width))

    def _keep(self, width: int, name: str, data: bytes) -> None:
        self.layers[width].setdefault(name, []).append(data)

    def views(self) -> dict[int, Views]:
        """Width -> Views, with each resolution's own intrinsics."""
        assert self.cfg.fov_x_deg is not None
        views = {}
        for width in self.cfg.res:
            k = cameras.intrinsics(self.cfg.fov_x_deg, (width, width)).astype(np.float32)
            fxfycxcy = np.tile(k, (self.cfg.views, 1))
            views[width] = Views(self.jpegs[width], fxfycxcy, (width, width), self.layers[width])
        return views


def _raw(name: str, pixels: np.ndarray, width: int) -> bytes:
    """Depth or normals (H, W, C) -> little-endian float32 bytes at `width`. Depth is infinite where nothing is."""
    small = images.resize_nearest(pixels, (width, width))
    if name == "depth":
        small = np.where(small < NOWHERE / 10, small, np.inf)
    return small.astype("<f4").tobytes()
