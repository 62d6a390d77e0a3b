"""One worker: fetches an item, has a maker turn its file into a scene, and gives an Outcome, whatever happens."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pipeline import sources
from pipeline.config.clip import ClipConfig
from pipeline.config.run import RunConfig
from pipeline.config.views import ImportConfig
from pipeline.core.disk import LOOK_AGAIN_S, is_full
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.core.records import Item, Outcome, Scene
from pipeline.download.ahead import Prefetch
from pipeline.storage.writer import Packer
from pipeline.worker import clips, posed
from pipeline.worker.render import Renderer

TRIES = 2  # a crash or a hang costs one more try, in a fresh process


class Maker(Protocol):
    """Turns items of one kind of source into scenes."""

    def make(self, item: Item, bring: Callable[[Item], Path], timings: dict[str, float]) -> Scene:
        """The item's scene; adds the seconds of each stage to `timings`. bring: fetches the item's file. Raises Skip, Retry."""

    def close(self) -> None:
        """End the processes that the maker holds; the next `make` starts them anew."""


class Worker:
    """Owner of a scratch folder and a maker. Called once per item; never raises, every failure is an Outcome too."""

    def __init__(self, cfg: RunConfig, scratch: Path, maker: Maker) -> None:
        self.scratch, self.maker = scratch, maker
        self.source = sources.load(cfg.source)
        self.name = f"{os.uname().nodename}:{os.getpid()}"
        self.prefetch: Prefetch | None = None
        if sources.is_remote(cfg) and cfg.address:  # else the driver downloads
            self.prefetch = Prefetch(self.source, sources.fetcher(cfg, self.scratch / "raw", cfg.cache))

    def ahead(self, items: list[Item]) -> None:
        """Start to fetch the current and the next items, where this worker fetches for itself (on a cluster)."""
        if self.prefetch:
            self.prefetch.want(items)

    def __call__(self, item: Item) -> Outcome:
        """Do one item. After a Retry the item is tried once more, at once; a second Retry is a failure like any other."""
        timings: dict[str, float] = {}
        start = time.perf_counter()
        tries = 0
        passing = False
        while True:
            tries += 1
            try:
                scene = self.maker.make(item, self._bring, timings)
                reason = detail = ""
            except Retry as failure:
                if tries < TRIES:
                    continue
                scene, reason, detail, passing = None, failure.reason, failure.detail, True
            except Skip as failure:
                scene, reason, detail = None, failure.reason, failure.detail
            except UserError:  # of all items alike: the run ends
                raise
            except Exception as error:  # the only broad one: a bug of ours costs one object and keeps its traceback
                if is_full(error):  # not this object's fault, and the driver says so, or ends
                    time.sleep(LOOK_AGAIN_S)
                    tries -= 1
                    continue
                self.maker.close()
                scene, reason, detail = None, "bug", traceback.format_exc()
            timings["total"] = time.perf_counter() - start
            if self.prefetch:
                self.prefetch.drop(item.uid)
            return Outcome(item, scene, reason, detail, tries, self.name, timings, passing)

    def close(self) -> None:
        """Close the maker, end downloads and remove the scratch folder."""
        self.maker.close()
        if self.prefetch:
            self.prefetch.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _bring(self, item: Item) -> Path:
        """The item's file: where the driver downloaded it, if this machine has that path; else fetched by its source."""
        folder = self.scratch / "item"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        ready = item.extra.get("path")
        if ready and os.path.exists(ready):
            return Path(ready)
        if hasattr(self.source, "fetch"):
            return Path(self.source.fetch(item, folder))
        return self.prefetch.take(item) if self.prefetch else Path(item.url)


def make_worker(cfg: RunConfig) -> Worker:
    """A worker with a scratch folder of its own, and with the maker for the kind of the run's source."""
    assert cfg.out is not None
    shared = cfg.out / "scratch"
    scratch = Path(tempfile.mkdtemp(prefix="worker-", dir=shared if shared.is_dir() else None))
    if isinstance(cfg, ClipConfig):
        encode = functools.partial(clips.to_scene, cfg=cfg.scene, threads=cfg.threads)
        return Worker(cfg, scratch, posed.Importer(cfg, encode))
    if isinstance(cfg, ImportConfig):
        return Worker(cfg, scratch, posed.Importer(cfg, functools.partial(posed.to_scene, cfg=cfg.scene)))
    return Worker(cfg, scratch, Renderer(cfg, scratch))


Lacks = Callable[[Scene], str]


class Checked:
    """A worker whose scenes lack nothing: others fail as too_few_views. lacks: says what a scene lacks, "" for nothing."""

    def __init__(self, worker: Worker, lacks: Lacks) -> None:
        self.worker, self.lacks = worker, lacks
        self.ahead, self.close = worker.ahead, worker.close

    def __call__(self, item: Item) -> Outcome:
        """The worker's outcome."""
        outcome = self.worker(item)
        said = self.lacks(outcome.scene) if isinstance(outcome.scene, Scene) else ""
        return dataclasses.replace(outcome, scene=None, reason="too_few_views", detail=said) if said else outcome


def checked_worker(cfg: RunConfig, lacks: Lacks) -> Checked:
    """Make a worker that delivers only scenes which something can be done with. lacks: as in Checked."""
    return Checked(make_worker(cfg), lacks)


class Packing:
    """A worker whose scenes are packed before they leave it."""

    def __init__(self, make: Callable[[], Worker | Checked], pack: Packer) -> None:
        self.worker = make()
        self.pack = pack
        self.ahead, self.close = self.worker.ahead, self.worker.close

    def __call__(self, item: Item) -> Outcome:
        """The worker's outcome, its scene replaced by a Packed."""
        outcome = self.worker(item)
        return dataclasses.replace(outcome, scene=self.pack(outcome.scene)) if outcome.scene else outcome
