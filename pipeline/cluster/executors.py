"""A stream of Items -> a stream of Outcomes, in completion order, with back-pressure: an item is drawn when a worker is free.

The stream of items may yield None: "nothing now, ask again"; so it is asked again after the next outcome, or soon.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pipeline.cluster.nodes import Nodes, Share
from pipeline.cluster.pool import ASK_AGAIN_S, Host, MakeWorker, Pool, Started
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome


def _on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
    share: Share | None = None,
    address: str | None = None,
    apart: bool = False,
    key: Callable[[Item], str] | None = None,
    together: int = 1,
    most: int | None = None,
    say: Callable[[str], None] = _on_stderr,
) -> Iterator[Outcome]:
    """`workers` Ray actors, each with its share of a node, on a private Ray of this machine or on the cluster at `address`.

    workers: None for as many as the cluster has room for, which a private Ray has to be told. apart, say: see `Nodes`. key,
    together, most: see `Pool`; on a cluster workers fetch for themselves, and hear early what comes next.

    Only the machine's faults (a dead actor, worker or node, the memory monitor) put an item back, once; a second death
    makes it an Outcome with reason worker_died. Any other error of Ray is ours and is raised.
    """
    share = share or Share()
    with connected(address, workers * share.cpus if workers else None) as ray:
        nodes = Nodes(ray, share, workers, apart, _request if address else None, say)
        start = partial(_start, ray, share, make_worker)
        pool = Pool(ray, nodes, start, bool(address), key, together, most)
        yield from pool.run(items, started)
        pool.close()


def _start(ray: Any, share: Share, make_worker: MakeWorker, node: str) -> Any:
    """An actor on that node, and on no other."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    actor_class = ray.remote(
        num_cpus=share.cpus, num_gpus=share.gpus, memory=share.memory or None, scheduling_strategy=there
    )(Host)
    return actor_class.remote(make_worker)


def _request(bundles: list[dict[str, float]]) -> None:
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=bundles)


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
        if "AuthenticationError" in repr(error.__cause__) or "AuthenticationError" in str(error.__cause__):
            hint = "it asks for a token: set RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
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
