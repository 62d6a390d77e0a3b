"""Upload a run to its object store: each shard as soon as it is finished, and a copy of the ledger from time to time.

The local folder on the driver's machine holds the ledger, open shards and shards that wait for upload. If lost, the same command
on another machine restores the ledger's last copy, and reads shards that this copy lacks from the store.
"""

from __future__ import annotations

import contextlib
import itertools
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
from pipeline.core.disk import write_json
from pipeline.core.errors import UserError
from pipeline.storage.ledger import Ledger
from pipeline.storage.object_store import Store
from pipeline.storage.shards import SHARD_NAME, Shard, remove_shard, shard_on_disk, shard_paths

THREADS = 4  # uploads at once
AHEAD = 8  # finished shards that may wait for upload before rendering waits
MISSED_HEARTBEATS = 3  # heartbeat intervals after which a silent driver counts as dead
COPY_SHARE = 0.05  # largest share of time spent on copying the ledger
DRIVER = "driver.json"  # in the store: the last driver's heartbeat, with the name of its local folder
DESK = "desk.json"  # in the local folder: its random name
LEDGER = "ledger.sqlite"
SMALL_FILES = ("run.json", "status.json", "availability.csv")


class InFolder:
    """Sink of a run without an object store: its shards stay in the run's folder alone."""

    there: frozenset[str] = frozenset()

    def take(self, shard: str) -> None: ...

    def drop(self, name: str) -> None: ...

    def finish(self) -> None: ...

    def snapshot(self) -> dict[str, int]:
        return {}

    def as_found(self, name: str) -> Shard:
        raise FileNotFoundError(name)


class Uploads:
    """Sink that uploads to an object store, within a `with` block. out: the local folder. widths: resolutions of its shards.

    every_s: seconds between two copies of the ledger, and between two heartbeats.
    """

    def __init__(self, store: Store, out: Path, widths: Sequence[int], every_s: float) -> None:
        self.store, self.out, self.widths, self.every_s = store, out, tuple(widths), every_s
        self.there = self._only_whole()
        for path in itertools.chain.from_iterable(shard_paths(out / str(width)) for width in self.widths):
            if path.stem in self.there:  # a session was killed after its upload, before all local files were gone
                path.unlink()
        self.waiting: dict[str, Future[None]] = {}
        self._pool = ThreadPoolExecutor(THREADS, "upload")
        self._stop = threading.Event()
        self._regular = ThreadPoolExecutor(2, "copy")
        self._going: list[Future[None]] = []
        self._one_copy = threading.Lock()

    def __enter__(self) -> Uploads:
        self._going = [self._regular.submit(work) for work in (self._copy_regularly, self._claim_regularly)]
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        self.close()
        if kind is None:
            self.check()

    def close(self) -> None:
        """Stop uploading; waiting shards stay in the local folder. Call `finish` first if all went well."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        self._regular.shutdown()

    def take(self, shard: str) -> None:
        """Queue a finished shard for upload. Blocks while AHEAD shards wait; raises the error of a failed upload."""
        self.check()
        while len(self.waiting) >= AHEAD:
            time.sleep(0.05)
            self.check()
        self.waiting[shard] = self._pool.submit(self._upload, shard)

    def check(self) -> None:
        """Raise UserError if an upload, a ledger copy or a heartbeat failed; add arrived shards to `there`."""
        for shard in [name for name, future in self.waiting.items() if future.done()]:
            self.waiting.pop(shard).result()
            self.there.add(shard)
        for work in self._going:
            if work.done():
                work.result()

    def finish(self) -> None:
        """Wait until all finished shards, and then the ledger, are in the store."""
        for future in list(self.waiting.values()):
            future.result()
        self.check()
        self._copy()

    def snapshot(self) -> dict[str, int]:
        """Number of shards that wait for upload, and their bytes."""
        waiting = [name for name, future in list(self.waiting.items()) if not future.done()]
        sizes = [self._size(self.out / name) for shard in waiting for name in self._names(shard)]
        return {"waiting": len(waiting), "bytes": sum(sizes)}

    def as_found(self, name: str) -> Shard:
        """Read a shard of the store that the ledger lacks, from temporary copies of its files."""
        aside = self.out / "scratch" / "found"
        try:
            for file in self._names(name):
                self.store.get(file, aside / file)
            return shard_on_disk(aside, self.widths, name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def drop(self, name: str) -> None:
        """Delete the files of a shard from the store."""
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

    def _only_whole(self) -> set[str]:
        """Names of the shards that the store holds at all widths; files of any others are deleted.

        Those are of a machine that was lost while it uploaded. Their objects are rendered again, and would stand there twice.
        """
        by_width = [{Path(name).stem for name in self.store.names(str(width))} for width in self.widths]
        whole = {name for name in set.intersection(*by_width) if SHARD_NAME.match(name)}
        for name in filter(SHARD_NAME.match, set.union(*by_width) - whole):
            for file in self._names(name):
                self.store.delete(file)
        return whole

    def _upload(self, shard: str) -> None:
        for name in self._names(shard):
            self.store.put(self.out / name, name)
        remove_shard(self.out, self.widths, shard)  # only now, so that a session killed before uploads all widths again

    def _copy_regularly(self) -> None:
        pause_s = 0.0
        while not self._stop.wait(pause_s):
            start = time.monotonic()
            self._copy()
            pause_s = max(self.every_s, (time.monotonic() - start) / COPY_SHARE)

    def _claim_regularly(self) -> None:
        while not self._stop.wait(self.every_s):  # own thread: a ledger's copy may outlast a heartbeat
            claim(self.store, self.out, self.every_s)

    def _copy(self) -> None:
        copy = self.out / f"{LEDGER}.copy"
        with self._one_copy:
            with Ledger(self.out / LEDGER, readonly=True) as ledger:
                ledger.copy(copy)
            self.store.put(copy, LEDGER)
            copy.unlink()
            for name in SMALL_FILES:
                if (self.out / name).exists():
                    self.store.put(self.out / name, name)


Sink = InFolder | Uploads


def sink_of(cfg: RunConfig) -> contextlib.AbstractContextManager[Sink]:
    """Make the sink of a run: the store at its address, or its folder alone."""
    if cfg.store is None:
        return contextlib.nullcontext(InFolder())
    assert cfg.out is not None
    return Uploads(Store(cfg.store, cfg.store_timeout), cfg.out, cfg.scene.res, cfg.backup_s)


def claim(store: Store, out: Path, every_s: float, ended: bool = False) -> None:
    """Write this driver's heartbeat into the store: its local folder, host, process and time, and whether it has ended."""
    path = out / DRIVER
    who = {"desk": desk_name(out), "host": socket.gethostname(), "pid": os.getpid()}
    write_json(path, who | {"updated": time.time(), "every_s": every_s, "ended": ended})
    store.put(path, DRIVER)


def believed_s(heartbeat: dict[str, Any]) -> float:
    """Seconds for which a driver still counts as alive after its last heartbeat `told`; 0 or less if it ended or is overdue."""
    return (
        0.0
        if heartbeat["ended"]
        else float(heartbeat["updated"] + MISSED_HEARTBEATS * heartbeat["every_s"] - time.time())
    )


@contextlib.contextmanager
def attached(address: str | None, out: Path, every_s: float, timeout_s: float) -> Iterator[None]:
    """Make this process, which holds the local folder `out`, the writer of the store at `address` (None: no store).

    On a new machine, or if the run went on elsewhere, the local folder is first replaced by the ledger's last copy.
    Raises UserError while another machine's driver writes there.
    """
    if address is None:
        yield
        return
    store = Store(address, timeout_s)
    heartbeat = driver(store, out)
    if heartbeat and heartbeat["desk"] != desk_name(out):
        if (left_s := believed_s(heartbeat)) > 0:
            raise UserError(
                f"another run is writing to {address}: process {heartbeat['pid']} on {heartbeat['host']}",
                f"if it is dead, the same command goes on in {left_s:.0f} s",
            )
        _restore(store, out)
    if not (out / DESK).exists():
        write_json(out / DESK, {"desk": uuid.uuid4().hex})
    store.tidy()
    claim(store, out, every_s)
    yield
    claim(store, out, every_s, ended=True)


def driver(store: Store, out: Path) -> dict[str, Any] | None:
    """Fetch the last driver's heartbeat into the folder `out` and return it; None if the store has none."""
    path = out / DRIVER
    return json.loads(path.read_text()) if store.get(DRIVER, path) else None


def lives_elsewhere(copy: Path) -> bool:
    """True if the driver of a run that was copied from a store to `copy` may still be at work."""
    path = copy / DRIVER
    return path.exists() and not (copy / DESK).exists() and believed_s(json.loads(path.read_text())) > 0


def desk_name(out: Path) -> str:
    """Read the name of a local folder; "" if it has none."""
    path = out / DESK
    return str(json.loads(path.read_text())["desk"]) if path.exists() else ""


def _restore(store: Store, out: Path) -> None:
    """Empty the outdated local folder `out`, then fetch the ledger's last copy and SMALL_FILES from the store."""
    for path in out.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()
    for name in (LEDGER, *SMALL_FILES):
        store.get(name, out / name)
