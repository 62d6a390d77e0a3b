"""Workers of a run: in this process, by Ray actors of this machine, or on a cluster."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from pipeline import sources
from pipeline.cluster import executors
from pipeline.cluster.nodes import Share
from pipeline.config.shared import default_workers
from pipeline.core.records import Item, Outcome
from pipeline.run.session import Session
from pipeline.worker.worker import Packing, make_worker


class Workers:
    """Executor of a session. apart: True keeps workers off nodes with a GPU. make: makes a worker; default: by the source."""

    def __init__(self, session: Session, apart: bool = False, make: Callable[[], Any] | None = None) -> None:
        self.session, self.apart = session, apart
        self.packing = functools.partial(
            Packing, make or functools.partial(make_worker, session.cfg), session.writer.pack
        )

    def connected(self) -> contextlib.AbstractContextManager[object]:
        """Context manager of the connection to a cluster, which outlives the workers: metrics use the connection to the end."""
        cfg = self.session.cfg
        return executors.connected(cfg.address) if cfg.executor == "ray" and cfg.address else contextlib.nullcontext()

    def outcomes(self, items: Iterator[Item | None], started: Callable[[int, Item], None]) -> Iterator[Outcome]:
        """Process items; yields outcomes in completion order. started(worker, item) is called when a worker takes an item."""
        return self._executor()(self.packing, items, started)

    def _executor(self) -> Callable[..., Iterator[Outcome]]:
        cfg, missing = self.session.cfg, self.session.cfg.n - self.session.delivered
        if cfg.executor == "inline" or missing <= 0:  # nothing is missing when a cycle only has to train
            return executors.inline
        if not cfg.address:
            workers = min(cfg.workers or default_workers(cfg.threads), missing)
            return functools.partial(executors.on_ray, workers=workers, share=Share(cfg.threads), say=self.session.say)
        source = sources.load(cfg.source)
        return functools.partial(
            executors.on_ray,
            workers=cfg.workers,
            share=Share(cfg.threads, cfg.gpus, cfg.memory_gb * 1e9),
            address=cfg.address,
            apart=self.apart,
            key=source.batch if hasattr(source, "BATCH") else None,
            together=getattr(source, "BATCH", 1),
            most=missing,
            say=self.session.say,
        )
