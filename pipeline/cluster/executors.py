"""A stream of Items -> a stream of Outcomes, in completion order, with back-pressure: an item is drawn when a worker is free.

The stream of items may yield None for "no item now": then another one is asked for after the next outcome, or ASK_AGAIN_S later.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pipeline.cluster.nodes import Nodes, Share
from pipeline.cluster.pool import ASK_AGAIN_S, Host, MakeWorker, Pool, Started
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome
from pipeline.core.signals import handlers_kept


def inline(make_worker: MakeWorker, items: Iterator[Item | None], started: Started) -> Iterator[Outcome]:
    """Work on one item at a time, in this process."""
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
    say: Callable[[str], None] = print,
) -> Iterator[Outcome]:
    """Work with `workers` Ray actors, each with its share of a node, on a private Ray or on the cluster at `address`.

    workers: None for as many as the cluster has room for (a private Ray needs a number). apart, say: see `Nodes`. key, together,
    most: see `Pool`. On a cluster workers fetch their items themselves, and get the next ones early.
    A dead actor, worker or node and the memory monitor put an item back, once; a second death makes an Outcome with
    reason worker_died. Any other error of Ray is a bug here and is raised.
    """
    share = share or Share()
    with connected(address, workers * share.cpus if workers else None) as ray:
        nodes = Nodes(ray, share, workers, apart, _request if address else None, say)
        start = partial(_start, ray, share, make_worker)
        pool = Pool(ray, nodes, start, bool(address), key, together, most)
        yield from pool.run(items, started)
        pool.close()


def _start(ray: Any, share: Share, make_worker: MakeWorker, node: str) -> Any:
    """Start an actor of class `Host` on that node, and on no other."""
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
    """The module `ray`, connected to the cluster at `address`, else to a private Ray on this machine with `cpus` CPUs.

    A program that is connected already keeps its connection. show_output: print what workers print. UserError: no answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # an actor without GPUs still sees the machine's
    import ray

    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": show_output, "logging_level": "ERROR", "configure_logging": True}
    try:
        with handlers_kept():  # Ray's own for SIGTERM would end the run at once
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
    """Raise ConnectionError if nothing listens at the address: Ray itself would try for minutes. Does not check `auto`."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(str(error)) from None
