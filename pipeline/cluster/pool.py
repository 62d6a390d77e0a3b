"""Ray actors on the nodes of a cluster: each has a seat there, gets items by the handful, and is replaced when it dies.

An item is put back when the machine failed under it, once; and when its failure is one that another node may not have. Nodes that
join get seats, nodes that are lost lose theirs.
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
CALL_S = 0.2  # that a call to a worker should take at least: what it costs is then below one percent
MOST = 64  # items of one call
DEATHS = 2  # of a worker under an item, after which the item is given up
LOSSES = 4  # the same where the whole node went, which is rarely an item's fault
DRAIN = 16  # calls whose outcomes are fetched at once: what the driver holds of them
STILLBORN = 20
CLOSE_S = 30.0  # for all workers to end
NO_NODE_S = 900.0  # without a node that has room for a worker, before we give up: an autoscaler needs minutes


class PoolWorker(Protocol):
    """What `make_worker` makes: called once per item, closed at the end."""

    def __call__(self, item: Item) -> Outcome: ...

    def ahead(self, items: list[Item]) -> None:
        """What comes now and next, so that it can be fetched meanwhile."""

    def close(self) -> None: ...


MakeWorker = Callable[[], PoolWorker]
Started = Callable[[int, Item], None]


class Host:
    """The body of a Ray actor. Makes its worker with the first item: an error in an actor's own start is a dead actor to
    Ray, which would pass for the machine's fault."""

    def __init__(self, make_worker: MakeWorker) -> None:
        self.make_worker = make_worker
        self.worker: PoolWorker | None = None

    def ready(self) -> None:
        """Answers once the actor is there."""

    def run(self, items: list[Item], following: list[Item]) -> list[Outcome]:
        """One outcome for each item, in their order. following: what it will be given next."""
        self.worker = self.worker or self.make_worker()
        self.worker.ahead(items + following)
        return [self.worker(item) for item in items]

    def close(self) -> None:
        """Ends the worker."""
        if self.worker is not None:
            self.worker.close()


@dataclass
class _Seat:
    """A worker's place on a node. now: what it is at; ahead: what it gets next. since: when that call began."""

    number: int
    node: str
    actor: Any
    now: list[Item] = field(default_factory=list)
    ahead: list[Item] = field(default_factory=list)
    since: float = 0.0


class Pool:
    """ray: the module, connected. actor_class: what `Host` becomes on a node; answers an actor. prefetch: tell workers what comes
    next, so that they fetch it while they work. key: what items have in common that one worker should have, see Batches; of these
    at most `together` are given to it. most: seats, whatever there is room for."""

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
        self.again: deque[Item] = deque()
        self.deaths: defaultdict[str, list[str]] = defaultdict(list)  # uid -> on which nodes a worker died under it
        self.shunned: dict[str, str] = {}  # uid -> the node where it failed
        self.item_s: float | None = None  # what an item takes, lately
        self.empty_since: float | None = None
        self.stillborn = 0  # workers in a row that died before their first item
        self.closing: list[tuple[Any, Any]] = []  # actors that need nothing more, and their last calls
        errors = ray.exceptions
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
        """Keeps all seats busy until the stream ends; yields outcomes as they come.

        Raises UserError where no node has room for a worker for NO_NODE_S, and where workers do not come to life.
        """
        batches = Batches(items, self.key)
        while True:
            self._take_seats(batches)
            self._fill(batches, started)
            if batches.exhausted and not self.again and not any(seat.now for seat in self.seats.values()):
                return
            outcomes = self._wait(batches)
            self._fill(batches, started)  # before the yield: workers go on while the driver writes
            yield from outcomes

    def close(self) -> None:
        """Lets every worker end its Blender and remove its scratch folder."""
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
        """Workers where there is room for more; the emptiest node gets the next."""
        if batches.exhausted and not self.again:
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
        """A worker is lost: its seat is free, and what it was given is put back."""
        self.seats.pop(seat.number, None)
        self.again.extend(seat.ahead)
        with contextlib.suppress(self.ray.exceptions.RaySystemError):  # it never came to be
            self.ray.kill(seat.actor)  # it may live on where it cannot be reached

    def _dismiss(self, seat: _Seat) -> None:
        """A worker is done: what it took is free for others, or its node may go."""
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
            given, few = seat.ahead or self._next(batches, seat.node), self._handful()
            seat.now, seat.ahead = given[:few], given[few:]
            if not seat.now:
                if batches.exhausted and not self.again:
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
        """What a seat on a node gets: what has to be done again comes first, and alone; not on the node where it failed."""
        for place, item in enumerate(self.again):
            if self.shunned.get(item.uid) != node or self.nodes.alone(node):
                del self.again[place]
                return [item]
        if batch := self._draw(batches):
            return batch
        if batches.exhausted:  # what others have before them
            for seat in self.seats.values():
                if seat.ahead:
                    batch, seat.ahead = seat.ahead, []
                    return batch
        return []

    def _draw(self, batches: Batches) -> list[Item]:
        """For one seat: a call's worth, or all that belongs together, which one worker fetches at once."""
        return batches.take(max(self._handful(), self.together))

    def _handful(self) -> int:
        """How many items a call takes: many where they are small."""
        return 1 if self.item_s is None else max(1, min(MOST, int(CALL_S / max(self.item_s, 1e-6))))

    def _wait(self, batches: Batches) -> list[Outcome]:
        """The next outcomes; none where it is time to look again."""
        if not self.calls:
            time.sleep(ASK_AGAIN_S)
            return []
        waiting = bool(self.idle) and not (batches.exhausted and not self.again)
        ready, rest = self.ray.wait(list(self.calls), timeout=ASK_AGAIN_S if waiting else 1.0)
        if ready and rest:
            ready += self.ray.wait(rest, num_returns=min(DRAIN, len(rest)), timeout=0)[0]
        return [outcome for call in ready for outcome in self._ended(call, self.calls.pop(call))]

    def _ended(self, call: Any, seat: _Seat) -> list[Outcome]:
        """What came of a call."""
        items, seat.now = seat.now, []
        try:
            outcomes: list[Outcome] | None = self.ray.get(call)
        except self.machine_faults as fault:
            return self._lost(seat, items, str(fault))
        self.idle.append(seat)
        if outcomes is None:  # it is there
            self.stillborn = 0
            return []
        self.item_s = self._lately((time.monotonic() - seat.since) / len(items))
        return [outcome for outcome in outcomes if self._final(outcome, seat.node)]

    def _lately(self, item_s: float) -> float:
        """At most twice as fast as before, so that one quick item does not make a worker wait for many slow ones."""
        return item_s if self.item_s is None or item_s > self.item_s else max(item_s, self.item_s / 2)

    def _final(self, outcome: Outcome, node: str) -> bool:
        """Whether an item has ended; else it is put back."""
        if not outcome.passing:
            self.nodes.worked(node)
            return True
        self.nodes.failed(node, f"{outcome.reason} {outcome.detail}")
        if self.nodes.alone(node) or outcome.item.uid in self.shunned:
            return True
        self.shunned[outcome.item.uid] = node
        self.again.append(outcome.item)
        return False

    def _lost(self, seat: _Seat, items: list[Item], why: str) -> list[Outcome]:
        """A worker died, or its node. Of several items one may be to blame: each is tried again by itself."""
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
            alive = sum(not self.nodes.lost(node) for node in deaths)  # asked now: Ray may need a while to notice
            if alive >= DEATHS or len(deaths) >= LOSSES:
                given_up.append(Outcome(item, None, "worker_died", why, tries=len(deaths)))
            else:
                self.again.append(item)
        return given_up
