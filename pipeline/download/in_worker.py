"""In a worker of a cluster: fetches what comes next while the present object is rendered, on the machine that needs it."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType

from pipeline.core.records import Item
from pipeline.download.fetch import Fetcher


class Prefetch:
    """One thread that fetches for one source into folders of `net.room.folder`, one per item, gone after `drop`."""

    def __init__(self, source: ModuleType, net: Fetcher) -> None:
        self.source = source
        self.net = net
        self.coming: dict[str, Future[Path]] = {}
        self._pool = ThreadPoolExecutor(1, "prefetch")

    def want(self, items: Sequence[Item]) -> None:
        """What comes now and next: starts with what is new, in this order, and drops what is no longer wanted."""
        for uid in self.coming.keys() - {item.uid for item in items}:
            self.drop(uid)
        new = [item for item in items if item.uid not in self.coming]
        self.coming |= {item.uid: Future() for item in new}
        for _, group in itertools.groupby(new, self._batch):
            batch = list(group)
            waiting = {item.uid: self.coming[item.uid] for item in batch}
            self._pool.submit(self._fetch, batch, waiting).add_done_callback(partial(self._ended, waiting))

    def take(self, item: Item) -> Path:
        """Where the file of a wanted item lies, once it does. Raises Skip or Retry where it cannot be had."""
        return self.coming[item.uid].result()

    def drop(self, uid: str) -> None:
        """An item is done with: its files go, and their disk is given back."""
        coming = self.coming.pop(uid, None)
        if coming is not None:
            coming.add_done_callback(lambda _: self._clean(uid))

    def close(self) -> None:
        """Ends what is under way."""
        self.net.close()
        self._pool.shutdown(cancel_futures=True)

    def _clean(self, uid: str) -> None:
        shutil.rmtree(self.net.disk_budget.folder_of(uid), ignore_errors=True)
        self.net.disk_budget.release(uid)

    def _batch(self, item: Item) -> str:
        return str(self.source.batch(item)) if hasattr(self.source, "BATCH") else item.uid

    def _fetch(self, batch: list[Item], waiting: dict[str, Future[Path]]) -> None:
        for item, got in self.source.fetch_many(batch, self._make_folder, self.net):
            future = waiting.pop(item.uid)
            if isinstance(got, Path):
                future.set_result(got)
            else:
                future.set_exception(got)

    @staticmethod
    def _ended(waiting: dict[str, Future[Path]], batch: Future[None]) -> None:
        """What the source did not account for ends with the error that stopped it."""
        error = None if batch.cancelled() else batch.exception()
        for future in waiting.values():
            future.set_exception(error or RuntimeError("the source did not say what became of it"))

    def _make_folder(self, item: Item) -> Path:
        folder = self.net.disk_budget.folder_of(item.uid)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
