"""The whole life of a worker: item in, outcome out. Fetch, look, render, judge, encode."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from pipeline.config.clip import ClipConfig
from pipeline.config.run import RunConfig
from pipeline.config.views import ImportConfig
from pipeline.core.records import Item, Outcome, Scene
from pipeline.storage.writer import Packer
from pipeline.worker.render import Producer
from pipeline.worker.worker import Worker, timed


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


class Importer(Worker):
    """Takes views that exist already."""

    cfg: ImportConfig

    def __init__(self, cfg: ImportConfig) -> None:
        super().__init__(cfg)
        self.cfg = cfg

    def _produce(self, item: Item, timings: dict[str, float]) -> Scene:
        from pipeline.worker import silhouettes
        from pipeline.worker.posed import to_scene
        from pipeline.worker.silhouettes import FOUND, MARK

        with timed(timings, "fetch"):
            posed = self.source.load(item, self._bring(item, self._item_folder()), self.cfg)
        with timed(timings, "encode"):
            scene = to_scene(item, posed, self.cfg.scene)
        if item.extra.get(MARK):
            scene.meta[FOUND] = dataclasses.asdict(silhouettes.check(posed))
        return scene


class Clipper(Worker):
    """Takes frames out of videos."""

    cfg: ClipConfig

    def __init__(self, cfg: ClipConfig) -> None:
        super().__init__(cfg)
        self.cfg = cfg

    def _produce(self, item: Item, timings: dict[str, float]) -> Scene:
        from pipeline.worker import clips

        with timed(timings, "fetch"):
            clip = self.source.load(item, self._bring(item, self._item_folder()), self.cfg)
        with timed(timings, "encode"):
            return clips.to_scene(item, clip, self.cfg.scene, self.cfg.threads)


def make_worker(cfg: RunConfig) -> Worker:
    """What a run's items go through, by the kind of its source."""
    if isinstance(cfg, ClipConfig):
        return Clipper(cfg)
    return Importer(cfg) if isinstance(cfg, ImportConfig) else Producer(cfg)
