"""The machines of a Ray cluster: how many workers each has room for, and which are not to be trusted any more."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LOOK_S = 2.0  # between two looks at what the cluster has
STRIKES = 5  # failures in a row, with nothing between that worked, after which a node gets no more work


@dataclass(frozen=True)
class Share:
    """What a worker takes of its node. gpus: a fraction lets several share one. memory: bytes; 0: it is not counted."""

    cpus: int = 1
    gpus: float = 0.0
    memory: float = 0.0

    def bundle(self) -> dict[str, float]:
        """As Ray's resources are named."""
        return {
            name: value for name, value in (("CPU", self.cpus), ("GPU", self.gpus), ("memory", self.memory)) if value
        }

    def fits(self, resources: dict[str, float]) -> int:
        """How many workers a node with these resources has room for."""
        return min(int(resources.get(name, 0) / value + 1e-9) for name, value in self.bundle().items())


class Nodes:
    """Asks Ray which nodes there are. share: of one worker. most: workers in all, None for as many as fit.

    apart: leave nodes with a GPU to others, as long as there are nodes without. request: tells an autoscaler what there should
    be room for. say: hears what a user should know.
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
        self.names: dict[str, str] = {}  # by id, of all that were ever seen
        self.room: dict[str, int] = {}
        self.gone: set[str] = set()
        self.quarantined: dict[str, str] = {}
        self.strikes: Counter[str] = Counter()
        self._looked = float("-inf")
        self._asked_for = 0

    def look(self) -> dict[str, int]:
        """Node id -> how many workers it may have now; looks at the cluster every LOOK_S seconds."""
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
        """Whether a node is no longer there; says so once."""
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
        """Asks the cluster's autoscaler, where it has one, for room for so many workers."""
        if self.request and workers != self._asked_for:
            self._asked_for = workers
            self.request([self.share.bundle()] * workers)

    def failed(self, node: str, why: str) -> None:
        """Something failed there that might have worked elsewhere. The last node that is left is never given up."""
        self.strikes[node] += 1
        if self.strikes[node] >= STRIKES and node not in self.quarantined and len(set(self.room) - {node}):
            self.quarantined[node] = why
            self.room.pop(node, None)
            last = (why.strip().splitlines() or ["no reason"])[-1]
            self.say(f"node {self.names[node]} gets no more work: {STRIKES} failures in a row, the last: {last}")

    def worked(self, node: str) -> None:
        """Something ended well there."""
        self.strikes.pop(node, None)

    def alone(self, node: str) -> bool:
        """Whether there is no other node to try."""
        return not set(self.room) - {node}
