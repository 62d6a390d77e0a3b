"""The life of a worker, whatever the kind of its source: item in, outcome out."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from pipeline import sources
from pipeline.config.run import RunConfig
from pipeline.core.disk import LOOK_AGAIN_S, is_full
from pipeline.core.errors import Retry, Skip
from pipeline.core.records import Item, Outcome, Scene
from pipeline.download.in_worker import Prefetch
from pipeline.sources.fetchers import fetcher

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


@contextlib.contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Notes how long a stage took that came to its end."""
    start = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - start
