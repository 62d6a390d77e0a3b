"""Files by which the two sides of a cycle tell each other how far they are: three, small, each replaced as a whole.

The driver says in OUT/window.json which shards there are (`Window`); the trainer says in each of its checkpoints how far it is
(`Cursor`), and in OUT/train/hunger.json whether it waits (`Waiting`). A train shard of a cycle is a slot: its number says when it
is trained on.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.disk import put
from pipeline.storage.train_run import CHECKPOINTS, commits

WINDOW = "window.json"
LAYOUT = "layout.json"
TRAIN = "train"  # the trainer's folder within a cycle's
HUNGER = "hunger.json"


@dataclass(frozen=True)
class Slot:
    """A closed train shard. objects: in it, possibly none. passes: how often each of them is trained on."""

    objects: int
    passes: int

    @property
    def samples(self) -> int:
        return self.objects * self.passes


@dataclass(frozen=True)
class Window:
    """slots: by number, closed, from some rounds before the first that is still needed on. life: rounds that a slot stays.

    validated: whether all objects for validation are there. objects: that will be trained on, if all are delivered. end: how many
    slots there will be, None while that is open. pressed: whether the driver waits for disk.
    """

    life: int
    objects: int
    slots: dict[int, Slot] = field(default_factory=dict)
    validated: bool = False
    end: int | None = None
    pressed: bool = False

    @property
    def begun(self) -> bool:
        """True when there is something to train on, or never will be."""
        return self.validated and (bool(self.slots) or self.end is not None)

    def write(self, out: Path) -> None:
        """Raises OSError, with the old one in place, where the disk is full."""
        slots = {number: [slot.objects, slot.passes] for number, slot in self.slots.items()}
        put(out / WINDOW, dataclasses.asdict(self) | {"slots": slots})

    @classmethod
    def read(cls, out: Path) -> Window | None:
        """Read OUT/window.json; None where there is none yet."""
        told = _told(out / WINDOW)
        if told is None:
            return None
        return cls(**told | {"slots": {int(number): Slot(*slot) for number, slot in told["slots"].items()}})


@dataclass(frozen=True)
class Cursor:
    """Position of training: all before `round`, and `offset` entries of that round. position: samples so far.

    done: slots before this one have had all their passes. counts: of the others, and at the end of those that fall short by less
    than a sample for each part of a step, slot -> samples so far. place: share of the objects that have been trained on, a pass
    of P passes counting as 1/P of its object.
    """

    round: int = 0
    offset: int = 0
    position: int = 0
    done: int = 0
    counts: dict[int, int] = field(default_factory=dict)
    place: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self) | {"counts": {str(slot): count for slot, count in self.counts.items()}}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Cursor:
        """Make a cursor of what `as_json` returned."""
        return cls(**told | {"counts": {int(slot): count for slot, count in told["counts"].items()}})


def layout(out: Path) -> dict[str, int] | None:
    """Read what was decided once validation objects were there: val, objects to train on, shard_objects. None before."""
    return _told(out / LAYOUT)


def committed(out: Path) -> tuple[int, Cursor]:
    """(step, cursor) of the newest finished checkpoint of a cycle's trainer; (0, the start) where there is none."""
    while steps := commits(out / TRAIN):
        told = _told(out / TRAIN / CHECKPOINTS / f"step-{steps[-1]:08d}.json")
        if told is not None:  # else it has gone since, and there is a newer one
            return (int(told["step"]), Cursor.from_json(told["cursor"])) if told.get("cursor") else (0, Cursor())
    return 0, Cursor()


@dataclass(frozen=True)
class Waiting:
    """The trainer waits for train shard number `slot`; None: it does not wait. All that it has done is committed then."""

    slot: int | None = None

    def write(self, out: Path) -> None:
        """Raises OSError where the disk is full."""
        put(out / TRAIN / HUNGER, dataclasses.asdict(self))

    @classmethod
    def read(cls, out: Path) -> Waiting:
        """The trainer's last word."""
        return cls(**_told(out / TRAIN / HUNGER) or {})


def _told(path: Path) -> dict[str, Any] | None:
    try:
        told: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return told
