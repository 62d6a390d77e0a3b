"""The machines of a Ray cluster: how many workers each has room for, and which get no more work."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LOOK_S = 2.0  # between two queries of the cluster's nodes
STRIKES = 5  # failures in a row after which a node gets no more work


@dataclass(frozen=True)
class Share:
    """Resources that one worker takes of its node. gpus: may be a fraction of a GPU. memory: bytes; 0: not counted."""

    cpus: int = 1
    gpus: float = 0.0
    memory: float = 0.0

    def bundle(self) -> dict[str, float]:
        """Ray's resource names -> amounts; resources of which none is taken are left out."""
        return {
            name: value for name, value in (("CPU", self.cpus), ("GPU", self.gpus), ("memory", self.memory)) if value
        }

    def fits(self, resources: dict[str, float]) -> int:
        """Number of workers that a node with these resources has room for."""
        return min(int(resources.get(name, 0) / value + 1e-9) for name, value in self.bundle().items())


class Nodes:
    """Tracks the cluster's nodes. share: resources of one worker. most: limit of workers in all, None for as many as fit.

    apart: use no node that has a GPU, as long as a node without one has room (the GPUs are for a trainer). request: asks an
    autoscaler to make room for a list of bundles. say: prints a line for the user.
    """

    def __init__(
        self,
        ray: Any,
        share: Share,
        most: int | None = None,
        apart: bool = False,
        request: Callable[[list[dict[str, float]]], None] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.ray, self.share, self.most, self.apart, self.request, self.say = ray, share, most, apart, request, say
        self.names: dict[str, str] = {}  # node id -> name, of every node ever seen
        self.room: dict[str, int] = {}
        self.gone: set[str] = set()
        self.quarantined: dict[str, str] = {}
        self.strikes: Counter[str] = Counter()
        self._looked = float("-inf")
        self._asked_for = 0

    def look(self) -> dict[str, int]:
        """Node id -> number of workers that it may have now. Asks Ray at most every LOOK_S seconds."""
        if time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            alive = self._alive()
            for key in [key for key in self.room if key not in alive]:
                self._missing(key)
            for key, node in alive.items():
                self.names.setdefault(key, f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})")
            usable = {key: node["Resources"] for key, node in alive.items() if key not in self.quarantined}
            if self.apart and any(
                "GPU" not in resources and self.share.fits(resources) for resources in usable.values()
            ):
                usable = {key: resources for key, resources in usable.items() if "GPU" not in resources}
            self.room = {key: count for key, resources in usable.items() if (count := self.share.fits(resources))}
        return self.room

    def _alive(self) -> dict[str, Any]:
        return {node["NodeID"]: node for node in self.ray.nodes() if node["Alive"]}

    def lost(self, node: str) -> bool:
        """True if Ray no longer lists the node as alive; tells the user the first time."""
        if node not in self.gone and node in self._alive():
            return False
        self._missing(node)
        return True

    def _missing(self, node: str) -> None:
        self.room.pop(node, None)
        if node not in self.gone:
            self.gone.add(node)
            self.say(f"node {self.names[node]} is lost: what it was at is done elsewhere")

    def grow(self, workers: int) -> None:
        """Ask the cluster's autoscaler, if it has one, for room for `workers` workers in all."""
        if self.request and workers != self._asked_for:
            self._asked_for = workers
            self.request([self.share.bundle()] * workers)

    def failed(self, node: str, why: str) -> None:
        """Count a failure that may be the node's fault; after STRIKES in a row it gets no more work, unless it is the last."""
        self.strikes[node] += 1
        if self.strikes[node] >= STRIKES and node not in self.quarantined and len(set(self.room) - {node}):
            self.quarantined[node] = why
            self.room.pop(node, None)
            last = (why.strip().splitlines() or ["no reason"])[-1]
            self.say(f"node {self.names[node]} gets no more work: {STRIKES} failures in a row, the last: {last}")

    def worked(self, node: str) -> None:
        """Reset the node's failures in a row."""
        self.strikes.pop(node, None)

    def alone(self, node: str) -> bool:
        """True if no other node has room for a worker."""
        return not set(self.room) - {node}
