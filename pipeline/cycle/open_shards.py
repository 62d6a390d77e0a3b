"""Shards of a cycle that are being filled, and the disk reserved for them."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipeline.config.cycle import AnyCycle, Shares
from pipeline.core.budget import DiskBudget
from pipeline.core.disk import SAY_AGAIN_S, warn_full
from pipeline.core.errors import Skip, UserError
from pipeline.core.text import size
from pipeline.storage.ledger import Kept
from pipeline.storage.shards import Shard
from pipeline.storage.writer import PARQUET_EXTRA

SPARE, SPARE_SHARE = 50e6, 0.05  # free disk left alone: bytes, and on a small disk this share
VAL_OBJECTS = 64  # per shard
BYTES_PER_PIXEL = 0.75  # guess, before the first shard is closed
CAUTION, CAUTION_FEW = 1.25, 1.5  # factor by which a shard may exceed the mean; of a mean over few objects
FEW = 16  # objects
MOST_SHARD = 512e6  # bytes
MOST_SHARE = 10  # windows per cycle, at least: the last window is trained on after rendering has ended
AT_ONCE = 5  # shards beside the window: one being deleted; one being closed and one being filled, which count twice


@dataclass
class OpenShard:
    """A shard that is being filled. order: uids so far, in the order of the source. missing: uids of `order` that have not ended.

    full: True if `order` is complete. reserved: True if disk for the whole shard is reserved. written: bytes needed until the
    shard is closed, for the objects so far.
    """

    name: str
    number: int
    order: list[str] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    full: bool = False
    reserved: bool = False
    written: int = 0


class OpenShards:
    """Shards that are being filled, by name (`open`), within `shares.shards` bytes. kept: shards closed by earlier sessions."""

    def __init__(
        self, cfg: AnyCycle, shares: Shares, kept: Mapping[str, Kept], clock: Callable[[], float] = time.monotonic
    ) -> None:
        assert cfg.out is not None
        self.clock = clock
        self.cfg, self.shares, self.out = cfg, shares, cfg.out
        self.disk_budget = DiskBudget(
            cfg.out, shares.shards, min(SPARE, SPARE_SHARE * shutil.disk_usage(cfg.out).total), patient=True
        )
        self.open: dict[str, OpenShard] = {}
        self.closed_objects = sum(shard.objects for shard in kept.values())
        self.closed_bytes = sum(shard.bytes for shard in kept.values())
        self._waited = 0.0
        self._since: float | None = None
        self._said = -math.inf

    def expected(self) -> float:
        """Bytes to expect per object in shards, with a safety factor."""
        if not self.closed_objects:
            return BYTES_PER_PIXEL * self.cfg.pixels + PARQUET_EXTRA
        return with_caution(self.closed_objects, self.closed_bytes)

    def all_of(self, shard: OpenShard, of_each: int) -> int:
        """Bytes for a shard of `of_each` objects, counted twice: at its closing, journal and files exist side by side."""
        return max(shard.written, math.ceil(2 * of_each * self.expected()))

    def reserve(self, shard: OpenShard, of_each: int) -> bool:
        """Reserve disk for the whole shard (`all_of`). False if it does not fit yet. UserError if it never will."""
        if not shard.reserved:
            wanted = self.all_of(shard, of_each)
            if not self.closed_objects:  # `expected` is a guess then: no reason to refuse
                wanted = min(wanted, self.disk_budget.held(shard.name) + max(0, self.disk_budget.free))
            shard.reserved = self.disk_budget.held(shard.name) >= wanted or self._grow(shard, wanted)
        return shard.reserved

    def fits(self, shard: OpenShard) -> bool:
        """Reserve disk for `shard.written`; True if it fits. If need be, younger shards give up what they only reserved."""
        if self.disk_budget.held(shard.name) >= shard.written or self._grow(shard, shard.written):
            return True
        for later in self.open.values():
            if later.number > shard.number:
                self.disk_budget.settle(later.name, min(later.written, self.disk_budget.held(later.name)))
        return self._grow(shard, shard.written)

    def close(self, shard: OpenShard, made: Shard | None, disk: int) -> None:
        """Record that the shard is published as `made` (None: it holds nothing) and occupies `disk` bytes."""
        self.disk_budget.settle(shard.name, disk)
        if made is not None:
            self.closed_objects += len(made.entries)
            self.closed_bytes += made.file_bytes
        del self.open[shard.name]

    def _grow(self, shard: OpenShard, wanted: int) -> bool:
        try:
            return self.disk_budget.try_reserve(shard.name, wanted - self.disk_budget.held(shard.name))
        except Skip:
            raise self.too_small(shard, wanted) from None

    def too_small(self, shard: OpenShard, wanted: int) -> UserError:
        """Make the error for a shard that does not fit when nothing is left to delete."""
        need = self.shares.total + wanted - self.disk_budget.held(shard.name) - min(0, self.disk_budget.free)
        return UserError(
            f"the disk budget of {size(self.shares.total)} is too small: the trainer waits for a shard that does not fit",
            f"the same command with --disk-budget {math.ceil(need / 1e6) + 1}MB goes on",
        )

    # ---- who waits

    @property
    def blocked(self) -> bool:
        """True while rendering waits for disk."""
        return self._since is not None

    def waited(self) -> float:
        """Seconds that rendering has waited for disk in this session."""
        return self._waited + (self.clock() - self._since if self._since is not None else 0)

    def mark_blocked(self, blocked: bool) -> bool:
        """Mark rendering as waiting for disk, or as going on. True if rendering was not marked so before."""
        if blocked == self.blocked:
            return False
        self._waited, self._since = self.waited(), self.clock() if blocked else None
        return True

    def lacks_disk(self, shard: OpenShard, wanted: int) -> bool:
        """True if other programs have filled the disk; warns on stderr, at intervals."""
        if not self.disk_budget.lacks_disk(wanted - self.disk_budget.held(shard.name)):
            return False
        if self.clock() - self._said > SAY_AGAIN_S:
            self._said = self.clock()
            warn_full(self.out)
        return True


def with_caution(objects: int, total: float) -> float:
    """Bytes to expect per object, with a safety factor, if `objects` objects took `total` bytes."""
    return (CAUTION if objects >= FEW else CAUTION_FEW) * total / objects


def objects_per_shard(cfg: AnyCycle, free: float, expected: float, objects: int) -> int:
    """Objects per shard, so that the window and some more fit into `free` bytes of disk, at `expected` bytes per object.

    objects: number to train on. Raises UserError where not even the smallest shards fit.
    """
    at_once, least = cfg.window + AT_ONCE, cfg.shard_objects or 1
    most = int(free // (at_once * expected))
    if most < least:
        lacking = at_once * expected * least - free
        raise UserError(
            f"{size(max(0, free))} of the disk budget are left to train on, and {at_once} shards of {least} objects have to fit",
            f"{math.ceil(lacking / 1e6) + 1} MB more for --disk-budget, or a smaller --window",
        )
    return cfg.shard_objects or min(
        most, max(1, int(MOST_SHARD // expected)), max(1, objects // (MOST_SHARE * cfg.window))
    )
