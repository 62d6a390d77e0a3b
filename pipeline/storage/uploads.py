"""From the local folder to the store: finished shards go there as soon as they are, and a copy of the ledger from time to time.

The local folder is the run's on the driver's machine: ledger, open shards, shards that wait. It can be lost: on another machine
the same command brings back the ledger's last copy, and what it had not heard of stands in the shards themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.config.run import RunConfig
from pipeline.core.disk import put
from pipeline.core.errors import UserError
from pipeline.storage.ledger import Ledger
from pipeline.storage.object_store import Store
from pipeline.storage.shards import SHARD_NAME, Shard, shard_on_disk

AT_ONCE = 4
AHEAD = 8  # finished shards that may wait; then rendering waits for them
WORDS = 3  # of a driver that may be missing before it passes for dead
COPY_SHARE = 0.05  # of the time that copies of a large ledger may take
DRIVER = "driver.json"  # in the store: whose local folder is the present one, and when it was last heard of
DESK = "desk.json"  # in the local folder: its name
LEDGER = "ledger.sqlite"
PAPERS = ("run.json", "status.json", "availability.csv")


class InFolder:
    """Sink of a run without an object store: its shards stay where they are, and are nowhere else."""

    there: frozenset[str] = frozenset()

    def take(self, shard: str) -> None: ...

    def drop(self, name: str) -> None: ...

    def finish(self) -> None: ...

    def snapshot(self) -> dict[str, int]:
        return {}

    def as_found(self, name: str) -> Shard:
        raise FileNotFoundError(name)


class Uploads:
    """Sink in an object store, within a `with` block. out: the local folder. widths: of its shards.

    every_s: seconds between two copies of the ledger.
    """

    def __init__(self, store: Store, out: Path, widths: Sequence[int], every_s: float) -> None:
        self.store, self.out, self.widths, self.every_s = store, out, tuple(widths), every_s
        self.there = self._listed()
        self.waiting: dict[str, Future[None]] = {}
        self._pool = ThreadPoolExecutor(AT_ONCE, "upload")
        self._stop = threading.Event()
        self._regular = ThreadPoolExecutor(2, "copy")
        self._going: list[Future[None]] = []
        self._one_copy = threading.Lock()

    def __enter__(self) -> Uploads:
        self._going = [self._regular.submit(work) for work in (self._copy_often, self._claim_often)]
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        self.close()
        if kind is None:
            self.check()

    def close(self) -> None:
        """Stop; what waits stays in the local folder. `finish` comes first where all went well."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        self._regular.shutdown()

    def take(self, shard: str) -> None:
        """Move a finished shard to the store. Waits while too many shards wait; raises what went wrong."""
        self.check()
        while len(self.waiting) >= AHEAD:
            time.sleep(0.05)
            self.check()
        self.waiting[shard] = self._pool.submit(self._bring, shard)

    def check(self) -> None:
        """Raises UserError where the store does not take what it is given."""
        for shard in [name for name, future in self.waiting.items() if future.done()]:
            self.waiting.pop(shard).result()
            self.there.add(shard)
        for work in self._going:
            if work.done():
                work.result()

    def finish(self) -> None:
        """Waits until all that was finished is there, and the ledger with it."""
        for future in list(self.waiting.values()):
            future.result()
        self.check()
        self._copy()

    def snapshot(self) -> dict[str, int]:
        """Shards that wait, and their bytes."""
        waiting = [name for name, future in list(self.waiting.items()) if not future.done()]
        sizes = [self._size(self.out / name) for shard in waiting for name in self._names(shard)]
        return {"waiting": len(waiting), "bytes": sum(sizes)}

    def as_found(self, name: str) -> Shard:
        """A shard of the store that the ledger has not heard of, as its files tell of it."""
        aside = self.out / "scratch" / "found"
        try:
            for file in self._names(name):
                self.store.get(file, aside / file)
            return shard_on_disk(aside, self.widths, name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def drop(self, name: str) -> None:
        """Removes what there is of a shard."""
        for file in self._names(name):
            self.store.delete(file)
        self.there.discard(name)

    def _names(self, shard: str) -> list[str]:
        return [f"{width}/{shard}.parquet" for width in self.widths]

    @staticmethod
    def _size(path: Path) -> int:
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_size
        return 0

    def _listed(self) -> set[str]:
        """Shards that are in the store at all widths."""
        found = [{Path(name).stem for name in self.store.names(str(width))} for width in self.widths]
        return {name for name in set.intersection(*found) if SHARD_NAME.match(name)}

    def _bring(self, shard: str) -> None:
        for name in self._names(shard):
            self.store.put(self.out / name, name)
        for name in self._names(shard):  # all widths are there: until then the next session would bring them again
            (self.out / name).unlink()

    def _copy_often(self) -> None:
        pause_s = 0.0
        while not self._stop.wait(pause_s):
            start = time.monotonic()
            self._copy()
            pause_s = max(self.every_s, (time.monotonic() - start) / COPY_SHARE)

    def _claim_often(self) -> None:
        while not self._stop.wait(self.every_s):  # a copy of a large ledger may take longer than others wait for a word
            claim(self.store, self.out, self.every_s)

    def _copy(self) -> None:
        copy = self.out / f"{LEDGER}.copy"
        with self._one_copy:
            with Ledger(self.out / LEDGER, readonly=True) as ledger:
                ledger.copy(copy)
            self.store.put(copy, LEDGER)
            copy.unlink()
            for name in PAPERS:
                if (self.out / name).exists():
                    self.store.put(self.out / name, name)


Sink = InFolder | Uploads


def sink_of(cfg: RunConfig) -> contextlib.AbstractContextManager[Sink]:
    """Make the sink of a run: the store at its address, or its folder alone."""
    if cfg.store is None:
        return contextlib.nullcontext(InFolder())
    assert cfg.out is not None
    return Uploads(Store(cfg.store), cfg.out, cfg.scene.res, cfg.backup_s)


def claim(store: Store, out: Path, every_s: float, ended: bool = False) -> None:
    """Write into the store that the driver of this local folder lives, and will say so again, or that it has ended."""
    path = out / DRIVER
    who = {"desk": desk_name(out), "host": socket.gethostname(), "pid": os.getpid()}
    put(path, who | {"updated": time.time(), "every_s": every_s, "ended": ended})
    store.put(path, DRIVER)


def believed_s(told: dict[str, Any]) -> float:
    """For how long a driver will be believed to live, by what it said; not more than 0 where it has ended."""
    return 0.0 if told["ended"] else float(told["updated"] + WORDS * told["every_s"] - time.time())


@contextlib.contextmanager
def attached(address: str | None, out: Path, every_s: float) -> Iterator[None]:
    """Make this process, which holds the local folder `out`, the writer of the store at `address` (None: no store).

    The local folder is brought up to date first: on a new machine, or if the run went on elsewhere, with the ledger's last copy.
    Raises UserError while another machine's driver writes there.
    """
    if address is None:
        yield
        return
    store = Store(address)
    told = driver(store, out)
    if told and told["desk"] != desk_name(out):
        if (left_s := believed_s(told)) > 0:
            raise UserError(
                f"another run is writing to {address}: process {told['pid']} on {told['host']}",
                f"if it is dead, the same command goes on in {left_s:.0f} s",
            )
        _bring_back(store, out)
    if not (out / DESK).exists():
        put(out / DESK, {"desk": uuid.uuid4().hex})
    store.tidy()
    claim(store, out, every_s)
    yield
    claim(store, out, every_s, ended=True)


def driver(store: Store, out: Path) -> dict[str, Any] | None:
    """Fetch what the last driver said of itself into the folder `out`; None where there was none."""
    path = out / DRIVER
    return json.loads(path.read_text()) if store.get(DRIVER, path) else None


def lives_elsewhere(copy: Path) -> bool:
    """True if the driver of a run that was copied from a store may still be at work."""
    path = copy / DRIVER
    return path.exists() and not (copy / DESK).exists() and believed_s(json.loads(path.read_text())) > 0


def desk_name(out: Path) -> str:
    """Read the name of a local folder; "" where it has none."""
    path = out / DESK
    return str(json.loads(path.read_text())["desk"]) if path.exists() else ""


def _bring_back(store: Store, out: Path) -> None:
    """Restore the local folder from its last copy: what was here is of an earlier time."""
    for path in out.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()
    for name in (LEDGER, *PAPERS):
        store.get(name, out / name)
