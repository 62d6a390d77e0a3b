"""Batches of a stream of items: consecutive items with equal keys go together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pipeline.core.records import Item

END = object()


class Batches:
    """Items of a stream, taken in batches. key: equal for all items of one batch. ended: the stream has no more items."""

    def __init__(self, items: Iterator[Item | None], key: Callable[[Item], str] | None = None) -> None:
        self.items = items
        self.key = key
        self.ended = False
        self._held_back: Item | None = None

    def take(self, most: int) -> list[Item]:
        """Next batch, at most `most` items; empty if the stream has ended or has none now. May hold back an item for the next."""
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
        """True when `take` will only return empty lists from now on."""
        return self.ended and self._held_back is None
