"""The order of a cycle's training: which object of which shard comes when. Pure functions of the seed, and of what shards hold.

Shards enter one by one, in their order, and each stays `life` rounds: round r is of the shards r - life + 1 .. r, shuffled. In
its time a shard gives each of its objects `passes` times, evenly spread, so that every round has about as much of each of its
shards. No clock and no disk has a say, so a run that was killed goes on in the same order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from pipeline.core.records import item_rng
from pipeline.cycle.protocol import Cursor, Slot, Window


def entries(seed: int, number: int, slots: dict[int, Slot], life: int) -> np.ndarray:
    """The entries of a round, shuffled: (E, 2) slot, object. slots: those of the round, as far as there are so many."""
    found = []
    for slot in range(max(0, number - life + 1), number + 1):
        if slot in slots and slots[slot].samples:
            objects = np.flatnonzero(_share(seed, slot, slots[slot], life, number - slot))
            found.append(np.stack([np.full(len(objects), slot), objects % slots[slot].objects], -1))
    if not found:
        return np.zeros((0, 2), int)
    made = np.concatenate(found)
    return made[item_rng(seed, str(number), "round").permutation(len(made))]


def _share(seed: int, number: int, slot: Slot, life: int, age: int) -> np.ndarray:
    """(passes * objects,) which passes of which objects of a shard fall into the round in which it is so old.

    Pass p of the object of rank r among n comes after the share (p + (r + 1/2) / n) / passes of the shard's time.
    """
    rank = item_rng(seed, str(number), "slot").permutation(slot.objects)
    when = 2 * slot.objects * np.arange(slot.passes)[:, None] + 2 * rank[None] + 1
    made: np.ndarray = (when * life // (2 * slot.samples) == age).ravel()
    return made


@dataclass(frozen=True)
class Taken:
    """What a step is made of. entries: (G, 2) slot, object. first: their first one's number among all. after: the cursor then."""

    entries: np.ndarray
    first: int
    after: Cursor
    last: bool


class Rounds:
    """Takes entries in their order, from a cursor on."""

    def __init__(self, seed: int, cursor: Cursor) -> None:
        self.seed, self.cursor = seed, cursor
        self.round = cursor.round  # the next one to be drawn
        self.ahead: deque[tuple[int, int, int, int]] = deque()  # round, offset, slot, object
        self.over = False

    def take(self, window: Window, count: int, parts: int = 1) -> Taken | None:
        """The next `count` entries; fewer, but a multiple of `parts`, at the end. None: there are none, or not yet.

        Knows what comes after, or that nothing does: so the last step knows that it is the last.
        """
        if not self.ready(window, count, parts):
            return None
        count = min(count, len(self.ahead) // parts * parts)
        if not count:
            return None
        some = [self.ahead.popleft() for _ in range(count)]
        first, last = self.cursor.position, self.over and len(self.ahead) < parts
        self.cursor = self._moved(window, [slot for _, _, slot, _ in some], last)
        return Taken(np.array([each[2:] for each in some]), first, self.cursor, last)

    def ready(self, window: Window, count: int, parts: int = 1) -> bool:
        """Whether `take` would give something now, or know that there is nothing more."""
        while len(self.ahead) < count + parts and not self.over:
            if not self._draw(window):
                return False
        return True

    @property
    def waits_for(self) -> int:
        """The slot that is needed next."""
        return self.round

    def _draw(self, window: Window) -> bool:
        """Draws the next round, if its newest shard is there."""
        number = self.round
        if window.end is not None and number >= window.end + window.life - 1:
            self.over = True
            return True
        if number not in window.slots and (window.end is None or number < window.end):
            return False
        made = entries(self.seed, number, window.slots, window.life).tolist()
        done = self.cursor.offset if number == self.cursor.round else 0
        self.ahead.extend((number, place, *entry) for place, entry in enumerate(made) if place >= done)
        self.round += 1
        return True

    def _moved(self, window: Window, slots: list[int], last: bool) -> Cursor:
        before = self.cursor
        counts, place, done = dict(before.counts), before.place, before.done
        for slot in slots:
            counts[slot] = counts.get(slot, 0) + 1
            place += 1 / window.slots[slot].passes / window.objects
        while done in window.slots and counts.get(done, 0) == window.slots[done].samples:
            counts.pop(done, None)
            done += 1
        if last and window.end is not None:
            done = window.end
            while self.ahead:  # less than one for each of `parts`: it is left out, and stays in `counts`
                counts.setdefault(self.ahead.popleft()[2], 0)
        number, offset = self.ahead[0][:2] if self.ahead else (self.round, 0)
        return Cursor(number, offset, before.position + len(slots), done, counts, place)
