"""A stream of Items -> a stream of Outcomes, in completion order, with back-pressure: an item is drawn when a worker is free.

The stream of items may yield None: "nothing now, ask again"; so it is asked again after the next outcome, or soon.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import psutil

from pipeline.scene import Item, Outcome, UserError


class Worker(Protocol):
    """What `make_worker` makes: called once per item, closed at the end."""

    def __call__(self, item: Item) -> Outcome: ...

    def close(self) -> None: ...


MakeWorker = Callable[[], Worker]
Started = Callable[[int, Item], None]
ASK_AGAIN_S = 0.05
WORKER_MEMORY = 1.5e9  # bytes that a Blender of ordinary objects takes at its peak, with room
END = object()


def inline(make_worker: MakeWorker, items: Iterator[Item | None], started: Started) -> Iterator[Outcome]:
    """One item at a time in this process."""
    worker = make_worker()
    try:
        for item in items:
            if item is None:
                time.sleep(ASK_AGAIN_S)
                continue
            started(0, item)
            yield worker(item)
    finally:
        worker.close()


def on_ray(
    make_worker: MakeWorker,
    items: Iterator[Item | None],
    started: Started,
    *,
    workers: int | None,
    threads: int,
    address: str | None,
) -> Iterator[Outcome]:
    """`workers` Ray actors of `threads` CPUs each, on a private Ray of this machine or on the cluster at `address`.

    workers: None for as many as the cluster has CPUs for, which a private Ray has to be told.

    Only the machine's faults (a dead actor, worker or node, the memory monitor) put an item back, once; a second death
    makes it an Outcome with reason worker_died. Any other error of Ray is ours and is raised.
    """
    with connected(address, workers * threads if workers else None) as ray:
        workers = workers or max(1, int(ray.cluster_resources().get("CPU", 0)) // threads)
        pool = _Pool(ray, make_worker, threads)
        yield from pool.run(items, started, workers)
        pool.close()


@contextlib.contextmanager
def connected(address: str | None, cpus: int | None = None, show_output: bool = False) -> Iterator[Any]:
    """The module `ray`, connected to the cluster at `address`, or to a private Ray of this machine with so many CPUs.

    A program that is connected already keeps its connection. show_output: pass on what workers print. Raises UserError where
    nobody answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # an actor without GPUs still sees the machine's
    import ray

    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": show_output, "logging_level": "ERROR", "configure_logging": True}
    try:
        if address:
            _reach(address)
            ray.init(address=address, **quiet)
        else:
            ray.init(num_cpus=cpus, include_dashboard=False, address="local", **quiet)
    except ConnectionError as error:
        hint = "start one with: ray start --head; or leave --address out for a private Ray on this machine"
        raise UserError(f"no Ray cluster at {address}: {error}", hint) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raises ConnectionError where nobody listens: Ray itself would try for minutes. `auto` is left to Ray."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(str(error)) from None


def default_workers(threads: int) -> int:
    """One per `threads` cores, as far as the free memory reaches."""
    cores = len(os.sched_getaffinity(0))
    by_memory = int(psutil.virtual_memory().available / WORKER_MEMORY)
    return max(1, min(cores // threads, by_memory))


class _Host:
    """The body of a Ray actor. Makes its worker with the first item: an error in an actor's own start is a dead actor to
    Ray, which would pass for the machine's fault."""

    def __init__(self, make_worker: MakeWorker) -> None:
        self.make_worker = make_worker
        self.worker: Worker | None = None

    def run(self, item: Item) -> Outcome:
        self.worker = self.worker or self.make_worker()
        return self.worker(item)

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()


class _Pool:
    """Actors by slot. An actor that died is replaced in its slot."""

    def __init__(self, ray: Any, make_worker: MakeWorker, threads: int) -> None:
        self.ray = ray
        self.actor_class = ray.remote(num_cpus=threads)(_Host)
        self.make_worker = make_worker
        self.actors: dict[int, Any] = {}
        self.busy: dict[Any, tuple[int, Item]] = {}
        self.again: deque[Item] = deque()
        self.died: set[str] = set()
        self.ended = False
        errors = ray.exceptions
        self.machine_faults = (
            errors.WorkerCrashedError,
            errors.OutOfMemoryError,
            errors.NodeDiedError,
            errors.ActorDiedError,
        )

    def run(self, items: Iterator[Item | None], started: Started, workers: int) -> Iterator[Outcome]:
        """Keeps `workers` actors busy until the stream ends; yields outcomes as they come."""
        idle = deque(range(workers))
        self._fill(idle, items, started)
        while self.busy or not self.ended:
            outcome = self._wait(idle)
            self._fill(idle, items, started)  # before the yield: workers go on while the driver writes
            if outcome is not None:
                yield outcome
                self._fill(idle, items, started)

    def _wait(self, idle: deque[int]) -> Outcome | None:
        """The next outcome; None where it is time to ask the stream again, or an item has to be done again."""
        if not self.busy:
            time.sleep(ASK_AGAIN_S)
            return None
        patience = ASK_AGAIN_S if idle and not self.ended else None
        ready, _ = self.ray.wait(list(self.busy), num_returns=1, timeout=patience)
        if not ready:
            return None
        slot, item = self.busy.pop(ready[0])
        idle.append(slot)
        return self._outcome(ready[0], slot, item)

    def close(self) -> None:
        """Lets every worker end its Blender and remove its scratch folder."""
        for actor in self.actors.values():
            try:
                self.ray.get(actor.close.remote(), timeout=30)
            except (*self.machine_faults, self.ray.exceptions.GetTimeoutError):
                continue  # a dead worker has nothing left to close

    def _fill(self, idle: deque[int], items: Iterator[Item | None], started: Started) -> None:
        while idle:
            item: Any = self.again.popleft() if self.again else next(items, END)
            if item is END:
                self.ended = True
            if item is END or item is None:
                return
            slot = idle.popleft()
            if slot not in self.actors:
                self.actors[slot] = self.actor_class.remote(self.make_worker)
            self.busy[self.actors[slot].run.remote(item)] = (slot, item)
            started(slot, item)

    def _outcome(self, ready: Any, slot: int, item: Item) -> Outcome | None:
        try:
            outcome: Outcome = self.ray.get(ready)
            return outcome
        except self.machine_faults as fault:
            del self.actors[slot]
            if item.uid not in self.died:
                self.died.add(item.uid)
                self.again.append(item)
                return None
            return Outcome(item, None, "worker_died", str(fault), tries=2)
