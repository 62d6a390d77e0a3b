"""Order of a cycle's training: which object of which shard comes when. Pure functions of the seed and the shards' sizes.

Shards enter one by one, in order, and each stays `life` rounds: round r shuffles entries of the shards r - life + 1 .. r. While
it stays, a shard gives each of its objects `passes` times, evenly spread, so that a round has about equally many entries of
each of its shards. Neither time nor disk has an influence, so a run that was killed goes on in the same order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from pipeline.core.records import item_rng
from pipeline.cycle.protocol import Cursor, Slot, Window


def entries(seed: int, number: int, slots: dict[int, Slot], life: int) -> np.ndarray:
    """Entries of round `number`, shuffled: (E, 2) slot, object. slots: by number; the round's missing ones do not exist."""
    found = []
    for slot in range(max(0, number - life + 1), number + 1):
        if slot in slots and slots[slot].samples:
            objects = np.flatnonzero(_in_round(seed, slot, slots[slot], life, number - slot))
            found.append(np.stack([np.full(len(objects), slot), objects % slots[slot].objects], -1))
    if not found:
        return np.zeros((0, 2), int)
    together = np.concatenate(found)
    return together[item_rng(seed, str(number), "round").permutation(len(together))]


def _in_round(seed: int, number: int, slot: Slot, life: int, age: int) -> np.ndarray:
    """Mask (passes * objects,): passes of objects of shard `number` that come when the shard has been there `age` rounds.

    Pass p of the object that a permutation puts at r of n comes after (p + (r + 1/2) / n) / passes of the shard's life.
    """
    rank = item_rng(seed, str(number), "slot").permutation(slot.objects)
    when = 2 * slot.objects * np.arange(slot.passes)[:, None] + 2 * rank[None] + 1
    mask: np.ndarray = (when * life // (2 * slot.samples) == age).ravel()
    return mask


@dataclass(frozen=True)
class StepEntries:
    """entries: (G, 2) slot, object. first: position of the first entry in the run. after: cursor after the step."""

    entries: np.ndarray
    first: int
    after: Cursor
    last: bool


class Rounds:
    """Hands out entries in order, from `cursor` on."""

    def __init__(self, seed: int, cursor: Cursor) -> None:
        self.seed, self.cursor = seed, cursor
        self.round = cursor.round  # next one to be drawn: its newest slot is needed next
        self.queue: deque[tuple[int, int, int, int]] = deque()  # round, offset, slot, object
        self.over = False

    def take(self, window: Window, count: int, parts: int = 1) -> StepEntries | None:
        """Next `count` entries; at the end fewer, but a multiple of `parts`. None if there are no more, or not yet.

        Draws one more part queue, so that the last step is known to be the last.
        """
        if not self.ready(window, count, parts):
            return None
        count = min(count, len(self.queue) // parts * parts)
        if not count:
            return None
        some = [self.queue.popleft() for _ in range(count)]
        first, last = self.cursor.position, self.over and len(self.queue) < parts
        self.cursor = self._moved(window, [slot for _, _, slot, _ in some], last)
        return StepEntries(np.array([each[2:] for each in some]), first, self.cursor, last)

    def ready(self, window: Window, count: int, parts: int = 1) -> bool:
        """True if `take` would return entries now, or there are no more."""
        while len(self.queue) < count + parts and not self.over:
            if not self._draw(window):
                return False
        return True

    def _draw(self, window: Window) -> bool:
        """Draw the next round, or set `over`. False if the round's newest shard is not there yet."""
        number = self.round
        if window.end is not None and number >= window.end + window.life - 1:
            self.over = True
            return True
        if number not in window.slots and (window.end is None or number < window.end):
            return False
        drawn = entries(self.seed, number, window.slots, window.life).tolist()
        done = self.cursor.offset if number == self.cursor.round else 0
        self.queue.extend((number, offset, *entry) for offset, entry in enumerate(drawn) if offset >= done)
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
            while self.queue:  # fewer entries than `parts`: not trained on, and their slots stay in `counts`
                counts.setdefault(self.queue.popleft()[2], 0)
        number, offset = self.queue[0][:2] if self.queue else (self.round, 0)
        return Cursor(number, offset, before.position + len(slots), done, counts, place)
