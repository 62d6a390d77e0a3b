"""A stream of items by the handful: those that belong together, as far as they follow each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pipeline.core.records import Item

END = object()


class Batches:
    """Takes items from a stream. key: what the items of one batch share. ended: whether the stream has no more."""

    def __init__(self, items: Iterator[Item | None], key: Callable[[Item], str] | None = None) -> None:
        self.items = items
        self.key = key
        self.ended = False
        self._held_back: Item | None = None

    def take(self, most: int) -> list[Item]:
        """At most so many items; none where the stream has nothing now, or has ended. Keeps the first of the next batch."""
        batch: list[Item] = []
        while len(batch) < most and not (self.ended and self._held_back is None):
            item = self._held_back or next(self.items, END)
            self._held_back = None
            if item is END:
                self.ended = True
                break
            if item is None:
                break
            assert isinstance(item, Item)
            if batch and self.key and self.key(item) != self.key(batch[0]):
                self._held_back = item
                break
            batch.append(item)
        return batch

    @property
    def exhausted(self) -> bool:
        """Whether `take` will never give anything again."""
        return self.ended and self._held_back is None
