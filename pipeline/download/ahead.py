"""Downloads that run ahead of the renderers, within a budget of disk: from one driver, or in each worker of a cluster."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import queue
import shutil
import time
import traceback
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from pipeline.core.disk import bytes_below
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.core.records import Item, Outcome
from pipeline.download.batches import Batches
from pipeline.download.fetch import Fetcher

MOMENTS = 4096
AHEAD = 4  # items under way or ready, times the number of downloads
IN_A_ROW = 20  # batches failing with Retry, and no success or Skip between: then the connection is to blame
UID = "uid"  # a file in an item's folder that holds the item's uid


class BatchFetcher:
    """Threads that fetch batches of one source's items into folders of `net.disk_budget.folder`, one per item."""

    def __init__(self, source: ModuleType, net: Fetcher, threads: int) -> None:
        self.source = source
        self.net = net
        self.batch_size: int = getattr(source, "BATCH", 1)  # items in a batch
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="download")

    def key(self, item: Item) -> str:
        """Key that the items of one batch share."""
        return str(self.source.batch(item)) if hasattr(self.source, "BATCH") else item.uid

    def start(self, batch: Sequence[Item], tell: Callable[[Item, Path | BaseException], object]) -> None:
        """Fetch a batch in a thread, which calls `tell` once per item, with the path of its file or with the error."""
        waiting = {item.uid: item for item in batch}

        def fetch() -> None:
            for item, got in self.source.fetch_many(batch, self._make_folder, self.net):
                tell(waiting.pop(item.uid), got)

        def ended(
            future: Future[None],
        ) -> None:  # of items that the source never yielded, with the error that stopped it
            error = None if future.cancelled() else future.exception()
            for item in waiting.values():
                tell(item, error or RuntimeError("the source did not say what became of it"))

        self._pool.submit(fetch).add_done_callback(ended)

    def remove(self, uid: str) -> None:
        """Remove an item's files and release their disk."""
        shutil.rmtree(self.net.disk_budget.folder_of(uid), ignore_errors=True)
        self.net.disk_budget.release(uid)

    def stop(self) -> None:
        """End the downloads under way. Complete files stay for the next session."""
        self.net.close()

    def close(self) -> None:
        """Stop, and wait for the threads."""
        self.stop()
        self._pool.shutdown(cancel_futures=True)

    def _make_folder(self, item: Item) -> Path:
        folder = self.net.disk_budget.folder_of(item.uid)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / UID).write_text(item.uid)
        return folder


class Downloads(BatchFetcher):
    """Downloads of the driver: items in, items with their file on disk out, for workers on the same machine.

    finished: uids that need no file any more; files that an earlier session left for these are removed.
    """

    def __init__(self, source: ModuleType, net: Fetcher, threads: int, finished: Container[str]) -> None:
        super().__init__(source, net, threads)
        self.ahead = max(AHEAD * threads, self.batch_size)
        self.results: queue.SimpleQueue[tuple[Item, Path | BaseException]] = queue.SimpleQueue()
        self.under_way = 0  # items given to a thread and not yielded yet
        # when the first item was given to a thread, and when each came or failed: of a long run the last ones
        self.moments: deque[float] = deque(maxlen=MOMENTS)
        self.in_a_row = 0
        self.failing = ""  # key of the batch that failed last: a batch counts once, however many items it has
        self._take_over(finished)

    def stream(self, drawn: Iterator[Item | None], failed: Callable[[Outcome], None]) -> Iterator[Item | None]:
        """Yield items as soon as their files are there, with the path in extra["path"]; None if no file is ready yet.

        failed is called, in the caller's thread, with the Outcome of each item whose file cannot be had. Raises UserError
        after IN_A_ROW failures in a row, OSError if the disk is full.
        """
        batches = Batches(drawn, self.key)
        while not self.net.stopped.is_set():
            while not batches.exhausted and self.under_way < self.ahead:
                group = batches.take(self.batch_size)
                if not group:
                    break
                self.under_way += len(group)
                if not self.moments:
                    self.moments.append(time.monotonic())
                self.start(group, self._came)
            try:
                item, got = self.results.get_nowait()
            except queue.Empty:
                if batches.exhausted and not self.under_way:
                    return
                yield None
                continue
            self.under_way -= 1
            if isinstance(got, Path):
                self.in_a_row = 0
                found = {"path": str(got), "root": str(self.source.root_of(item, got))}
                yield dataclasses.replace(item, extra=item.extra | found)
            else:
                self._give_up(item, got, failed)

    def _came(self, item: Item, got: Path | BaseException) -> None:
        self.moments.append(time.monotonic())
        self.results.put((item, got))

    def snapshot(self) -> dict[str, int]:
        """Numbers of items under way and of files ready for a renderer, and the bytes of disk that both hold."""
        ready = self.results.qsize()
        return {"under_way": self.under_way - ready, "ready": ready, "bytes": self.net.disk_budget.used}

    def _give_up(self, item: Item, error: BaseException, failed: Callable[[Outcome], None]) -> None:
        self.remove(item.uid)
        if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
            raise error
        if isinstance(error, Skip | Retry):
            reason, detail = error.reason, error.detail
        else:
            reason, detail = "bug", "".join(traceback.format_exception(error))
        failed(Outcome(item, None, reason, detail))
        batch = self.key(item)
        if not isinstance(error, Retry):
            self.in_a_row = 0
        elif batch != self.failing:
            self.in_a_row, self.failing = self.in_a_row + 1, batch
        if self.in_a_row >= IN_A_ROW:
            hint = "look at the connection; the same command with --retry-failed goes on"
            raise UserError(f"{IN_A_ROW} downloads in a row failed, the last with {reason}: {detail}", hint)

    def _take_over(self, finished: Container[str]) -> None:
        """Keep and count the folders that an earlier session left for items still to come; remove all others."""
        for folder in sorted(self.net.disk_budget.folder.iterdir()):
            name = folder / UID
            uid = name.read_text() if name.is_file() else ""
            if not uid or uid in finished or self.net.disk_budget.folder_of(uid) != folder:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                self.net.disk_budget.settle(uid, bytes_below(folder))


class Prefetch(BatchFetcher):
    """Downloads in a worker of a cluster: one thread fetches the next items' files while the present item is rendered."""

    def __init__(self, source: ModuleType, net: Fetcher) -> None:
        super().__init__(source, net, threads=1)
        self.coming: dict[str, Future[Path]] = {}

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

        for _, group in itertools.groupby(new, self.key):
            self.start(list(group), tell)

    def take(self, item: Item) -> Path:
        """Wait for the file of a wanted item; returns its path. Raises Skip or Retry if it cannot be fetched."""
        return self.coming[item.uid].result()

    def drop(self, uid: str) -> None:
        """Remove the files of an item that is done with, and release their disk."""
        coming = self.coming.pop(uid, None)
        if coming is not None:
            coming.add_done_callback(lambda _: self.remove(uid))
