"""Prefetching in a worker of a cluster: the next items' files come while the present item is rendered."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType

from pipeline.core.records import Item
from pipeline.download.ahead import BatchFetcher
from pipeline.download.fetch import Fetcher


class Prefetch:
    """One thread that fetches for one source into folders of `net.disk_budget.folder`, one per item, gone after `drop`."""

    def __init__(self, source: ModuleType, net: Fetcher) -> None:
        self.coming: dict[str, Future[Path]] = {}
        self._fetcher = BatchFetcher(source, net, 1)

    def want(self, items: Sequence[Item]) -> None:
        """Start fetching the new ones of `items` (the present and the next), in order; drop every item that is not in `items`."""
        for uid in self.coming.keys() - {item.uid for item in items}:
            self.drop(uid)
        new = [item for item in items if item.uid not in self.coming]
        coming = {item.uid: Future[Path]() for item in new}
        self.coming |= coming

        def tell(item: Item, got: Path | BaseException) -> None:
            if isinstance(got, Path):
                coming[item.uid].set_result(got)
            else:
                coming[item.uid].set_exception(got)

        for _, group in itertools.groupby(new, self._fetcher.key):
            self._fetcher.start(list(group), tell)

    def take(self, item: Item) -> Path:
        """Wait for the file of a wanted item; returns its path. Raises Skip or Retry if it cannot be fetched."""
        return self.coming[item.uid].result()

    def drop(self, uid: str) -> None:
        """Remove the files of an item that is done with, and release their disk."""
        coming = self.coming.pop(uid, None)
        if coming is not None:
            coming.add_done_callback(lambda _: self._fetcher.remove(uid))

    def close(self) -> None:
        """Stop the downloads under way, and wait for the thread."""
        self._fetcher.close()
