"""Ray actors on the nodes of a cluster: each has a seat on a node, gets several items per call, and is replaced when it dies.

An item is put back, once, when its worker or node died, or when its failure may be the node's. Nodes may join and leave.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.cluster.nodes import Nodes
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome
from pipeline.download.batches import Batches

ASK_AGAIN_S = 0.05
CALL_S = 0.2  # least duration to aim for per call to a worker, so that a call's overhead is below one percent
CALL_ITEMS = 64  # most items of one call
DEATHS = 2  # workers that died on an item, their nodes still alive, after which the item is given up
LOSSES = 4  # workers that died on an item, nodes lost or not: a lost node is rarely the item's fault
DRAIN = 16  # finished calls fetched at once, which bounds the outcomes that the driver holds
STILLBORN = 20  # workers in a row that die before their first item: the set-up is broken
CLOSE_S = 30.0  # for all workers together to close
NO_NODE_S = 900.0  # to wait for a node with room for a worker: an autoscaler needs minutes


class PoolWorker(Protocol):
    """The interface of a worker: called once per item, closed at the end."""

    def __call__(self, item: Item) -> Outcome: ...

    def ahead(self, items: list[Item]) -> None:
        """Start to fetch the current and the next items."""

    def close(self) -> None: ...


MakeWorker = Callable[[], PoolWorker]
Started = Callable[[int, Item], None]


class Host:
    """The body of a Ray actor. Makes its worker at the first `run`: an error in __init__ would look like a machine's fault."""

    def __init__(self, make_worker: MakeWorker) -> None:
        self.make_worker = make_worker
        self.worker: PoolWorker | None = None

    def ready(self) -> None:
        """Return as soon as the actor runs."""

    def run(self, items: list[Item], following: list[Item]) -> list[Outcome]:
        """One outcome per item, in order. following: the items of this actor's next calls."""
        self.worker = self.worker or self.make_worker()
        self.worker.ahead(items + following)
        return [self.worker(item) for item in items]

    def close(self) -> None:
        """Close the worker, if there is one."""
        if self.worker is not None:
            self.worker.close()


@dataclass
class _Seat:
    """A worker's place on a node. now: items of its running call; ahead: items of its next calls. since: start of the call."""

    number: int
    node: str
    actor: Any
    now: list[Item] = field(default_factory=list)
    ahead: list[Item] = field(default_factory=list)
    since: float = 0.0


class Pool:
    """ray: the connected module. start: node id -> actor of class `Host`. prefetch: give every worker its next items early, so
    that it fetches them meanwhile. key: items in a row with equal keys go to one worker (see `Batches`), at most `together` of
    them. most: limit of seats, however many workers there is room for."""

    def __init__(
        self,
        ray: Any,
        nodes: Nodes,
        start: Callable[[str], Any],
        prefetch: bool = False,
        key: Callable[[Item], str] | None = None,
        together: int = 1,
        most: int | None = None,
    ) -> None:
        self.ray, self.nodes, self.start, self.prefetch = ray, nodes, start, prefetch
        self.key, self.together, self.most = key, together, most
        self.seats: dict[int, _Seat] = {}
        self.idle: deque[_Seat] = deque()
        self.calls: dict[Any, _Seat] = {}
        self.put_back: deque[Item] = deque()
        self.deaths: defaultdict[str, list[str]] = defaultdict(list)  # uid -> nodes on which a worker died on the item
        self.shunned: dict[str, str] = {}  # uid -> node where the item failed
        self.item_s: float | None = None  # recent seconds per item
        self.empty_since: float | None = None
        self.stillborn = 0  # workers in a row that died before their first item
        self.closing: list[tuple[Any, Any]] = []  # (actor, its call of `close`)
        errors = ray.exceptions
        self.task_error = errors.RayTaskError
        self.machine_faults = (
            errors.WorkerCrashedError,
            errors.OutOfMemoryError,
            errors.NodeDiedError,
            errors.ActorDiedError,
            errors.ActorUnavailableError,  # its node is cut off
            errors.ActorUnschedulableError,  # its node went before it began
            errors.ObjectLostError,  # its node went before the outcome was fetched
        )

    def run(self, items: Iterator[Item | None], started: Started) -> Iterator[Outcome]:
        """Keep all seats busy until the stream ends; yield outcomes in completion order.

        Raises UserError if no node has room for a worker within NO_NODE_S, or if STILLBORN workers in a row cannot start.
        """
        batches = Batches(items, self.key)
        while True:
            self._take_seats(batches)
            self._fill(batches, started)
            if batches.exhausted and not self.put_back and not any(seat.now for seat in self.seats.values()):
                return
            outcomes = self._wait(batches)
            self._fill(batches, started)  # before the yield: workers go on while the driver writes
            yield from outcomes

    def close(self) -> None:
        """Close all workers (each ends its Blender and removes its scratch folder), for at most CLOSE_S."""
        for seat in list(self.seats.values()):
            self._dismiss(seat)
        until = time.monotonic() + CLOSE_S
        for _, end in self.closing:
            try:
                self.ray.get(end, timeout=max(0.1, until - time.monotonic()))
            except (*self.machine_faults, self.ray.exceptions.GetTimeoutError):
                continue  # a dead worker has nothing left to close
        self.nodes.grow(0)

    # ---- seats

    def _take_seats(self, batches: Batches) -> None:
        """Start workers while nodes have room, each on the node with the fewest."""
        if batches.exhausted and not self.put_back:
            return
        room = self.nodes.look()
        most = min(each for each in (sum(room.values()), self.nodes.most, self.most) if each is not None)
        if self.nodes.most:
            self.nodes.grow(min(each for each in (self.nodes.most, self.most) if each is not None))
        taken = Counter(seat.node for seat in self.seats.values())
        while len(self.seats) < most and (free := [node for node in room if taken[node] < room[node]]):
            node = min(free, key=lambda one: taken[one])
            taken[node] += 1
            number = next(number for number in range(len(self.seats) + 1) if number not in self.seats)
            seat = self.seats[number] = _Seat(number, node, self.start(node))
            self.calls[seat.actor.ready.remote()] = seat
        self._check_seats()

    def _check_seats(self) -> None:
        if self.seats:
            self.empty_since = None
            return
        self.empty_since = self.empty_since or time.monotonic()
        if self.nodes.request is None or time.monotonic() - self.empty_since > NO_NODE_S:
            wanted = ", ".join(f"{value:g} {name}" for name, value in self.nodes.share.bundle().items())
            raise UserError(
                f"no node of the Ray cluster has room for a worker ({wanted})", "fewer --threads, --gpus or --memory-gb"
            )

    def _leave(self, seat: _Seat) -> None:
        """Free the seat of a lost worker, and put its next items back in the queue."""
        self.seats.pop(seat.number, None)
        self.put_back.extend(seat.ahead)
        with contextlib.suppress(self.ray.exceptions.RaySystemError):  # the actor was never created
            self.ray.kill(seat.actor)  # the actor may be alive on a node that was cut off

    def _dismiss(self, seat: _Seat) -> None:
        """Close a worker that has no more items; an autoscaler may take its node away."""
        del self.seats[seat.number]
        self.closing.append((seat.actor, seat.actor.close.remote()))
        self.nodes.grow(len(self.seats))

    # ---- items

    def _fill(self, batches: Batches, started: Started) -> None:
        for _ in range(len(self.idle)):
            seat = self.idle.popleft()
            if self.seats.get(seat.number) is not seat:
                continue
            if seat.node in self.nodes.quarantined:
                self._leave(seat)
                continue
            given, few = seat.ahead or self._next(batches, seat.node), self._call_size()
            seat.now, seat.ahead = given[:few], given[few:]
            if not seat.now:
                if batches.exhausted and not self.put_back:
                    self._dismiss(seat)
                else:
                    self.idle.append(seat)
                continue
            if self.prefetch and not seat.ahead:
                seat.ahead = self._draw(batches)
            self.calls[seat.actor.run.remote(seat.now, seat.ahead)] = seat
            seat.since = time.monotonic()
            for item in seat.now:
                started(seat.number, item)

    def _next(self, batches: Batches, node: str) -> list[Item]:
        """Next items for a seat on `node`: first an item put back, by itself, and not on the node where it failed."""
        for place, item in enumerate(self.put_back):
            if self.shunned.get(item.uid) != node or self.nodes.alone(node):
                del self.put_back[place]
                return [item]
        if batch := self._draw(batches):
            return batch
        if batches.exhausted:  # take over items that wait at other seats
            for seat in self.seats.values():
                if seat.ahead:
                    batch, seat.ahead = seat.ahead, []
                    return batch
        return []

    def _draw(self, batches: Batches) -> list[Item]:
        """Items for one seat: those of a call, or of a whole batch, since a worker fetches a batch at once."""
        return batches.take(max(self._call_size(), self.together))

    def _call_size(self) -> int:
        """Number of items per call: more where items are quick."""
        return 1 if self.item_s is None else max(1, min(CALL_ITEMS, int(CALL_S / max(self.item_s, 1e-6))))

    def _wait(self, batches: Batches) -> list[Outcome]:
        """Wait for calls to end and return their outcomes; [] when it is time to look for work or nodes again."""
        if not self.calls:
            time.sleep(ASK_AGAIN_S)
            return []
        waiting = bool(self.idle) and not (batches.exhausted and not self.put_back)
        ready, rest = self.ray.wait(list(self.calls), timeout=ASK_AGAIN_S if waiting else 1.0)
        if ready and rest:
            ready += self.ray.wait(rest, num_returns=min(DRAIN, len(rest)), timeout=0)[0]
        return [outcome for call in ready for outcome in self._collect(call, self.calls.pop(call))]

    def _collect(self, call: Any, seat: _Seat) -> list[Outcome]:
        """Collect a finished call's outcomes. If the machine failed, put its items back in the queue."""
        items, seat.now = seat.now, []
        try:
            outcomes: list[Outcome] | None = self.ray.get(call)
        except self.machine_faults as fault:
            return self._died(seat, items, str(fault))
        except self.task_error as error:
            if isinstance(error.cause, UserError):  # for the user, without Ray's traceback
                raise error.cause from None
            raise
        self.idle.append(seat)
        if outcomes is None:  # the call was `ready`
            self.stillborn = 0
            return []
        self.item_s = self._smoothed((time.monotonic() - seat.since) / len(items))
        return [outcome for outcome in outcomes if self._final(outcome, seat.node)]

    def _smoothed(self, item_s: float) -> float:
        """Smooth the seconds per item: at most halved per call, since one quick item may come before many slow ones."""
        return item_s if self.item_s is None or item_s > self.item_s else max(item_s, self.item_s / 2)

    def _final(self, outcome: Outcome, node: str) -> bool:
        """True if the outcome stands. Else its item is put back, for another node."""
        if not outcome.passing:
            self.nodes.worked(node)
            return True
        self.nodes.failed(node, f"{outcome.reason} {outcome.detail}")
        if self.nodes.alone(node) or outcome.item.uid in self.shunned:
            return True
        self.shunned[outcome.item.uid] = node
        self.put_back.append(outcome.item)
        return False

    def _died(self, seat: _Seat, items: list[Item], why: str) -> list[Outcome]:
        """Put the items of a dead worker back, each to be tried by itself: any may be to blame. Outcomes of items given up."""
        self._leave(seat)
        self.stillborn += not items
        if self.stillborn >= STILLBORN:
            raise UserError(f"{STILLBORN} workers in a row died before they could begin, the last with: {why}")
        if not self.nodes.lost(seat.node):
            self.nodes.failed(seat.node, why)
        given_up = []
        for item in items:
            deaths = self.deaths[item.uid]
            deaths.append(seat.node)
            alive = sum(not self.nodes.lost(node) for node in deaths)  # asked now, since Ray notices a lost node late
            if alive >= DEATHS or len(deaths) >= LOSSES:
                given_up.append(Outcome(item, None, "worker_died", why, tries=len(deaths)))
            else:
                self.put_back.append(item)
        return given_up
