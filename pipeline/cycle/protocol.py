"""Files by which driver and trainer of a cycle tell each other their progress: three small ones, each replaced as a whole.

The driver says in OUT/window.json which shards there are (`Window`); the trainer says in each of its checkpoints how far it is
(`Cursor`), and in OUT/train/hunger.json whether it waits (`Waiting`). A cycle of several models has a trainer for each, with a
folder of its own: `train`, and `train-PRESET` for every further one. A train shard of a cycle is a slot: its number is its
place in the order of training.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.disk import read_json, write_json
from pipeline.core.errors import UserError
from pipeline.storage.train_run import CHECKPOINTS, SETTINGS, commits

WINDOW = "window.json"
LAYOUT = "layout.json"
TRAIN = "train"  # the first trainer's folder within a cycle's
HUNGER = "hunger.json"


@dataclass(frozen=True)
class Slot:
    """A closed train shard. objects: number in the shard, possibly 0. passes: how often each object is trained on."""

    objects: int
    passes: int

    @property
    def samples(self) -> int:
        return self.objects * self.passes


@dataclass(frozen=True)
class Window:
    """Closed train shards. slots: by number, from `life` before the first needed one. life: rounds that a slot is trained on.

    validated: True if all objects for validation are delivered. objects: number to train on, if all are delivered. end: number
    of slots in the end, None while unknown. pressed: True if the driver waits for disk.
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
        """Write OUT/window.json. Raises OSError, with the old file in place, where the disk is full."""
        slots = {number: [slot.objects, slot.passes] for number, slot in self.slots.items()}
        write_json(out / WINDOW, dataclasses.asdict(self) | {"slots": slots})

    @classmethod
    def read(cls, out: Path) -> Window | None:
        """Read OUT/window.json; None where there is none yet, or a damaged one, which the driver writes again."""
        with contextlib.suppress(UserError, AttributeError, KeyError, TypeError, ValueError):
            if found := _read_json(out / WINDOW):
                return cls(**found | {"slots": {int(number): Slot(*slot) for number, slot in found["slots"].items()}})
        return None


@dataclass(frozen=True)
class Cursor:
    """Position of training: all rounds before `round`, and `offset` entries of `round`. position: samples so far.

    done: slots before this one have had all their passes. counts: slot -> samples so far, of the other slots, and at the end of
    slots that fall short by less than a sample for each part of a step. place: share of the objects trained on so
    far, where one pass of P counts as 1/P of its object.
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
    def from_json(cls, fields: dict[str, Any]) -> Cursor:
        """Make a cursor from the values of `as_json`."""
        return cls(**fields | {"counts": {int(slot): count for slot, count in fields["counts"].items()}})


def layout(out: Path) -> dict[str, int] | None:
    """Read OUT/layout.json: val, objects (numbers for validation, to train on), shard_objects (per shard). None before.

    Raises UserError for a damaged one.
    """
    found = _read_json(out / LAYOUT)
    if found is not None and not all(isinstance(found.get(name), int) for name in ("val", "objects", "shard_objects")):
        raise UserError(f"{out / LAYOUT} is damaged", "put a copy of it back: it says which shard each object is in")
    return found


def folder_of(number: int, preset: str) -> str:
    """Name of a trainer's folder, by its number among --train-config and its preset."""
    return f"{TRAIN}-{preset}" if number else TRAIN


def trainers_of(out: Path) -> list[str]:
    """Names of the trainers' folders of a cycle, the first one's first."""
    return [TRAIN, *sorted(path.parent.name for path in out.glob(f"{TRAIN}-*/{SETTINGS}"))]


def done(out: Path) -> int:
    """Number of the train shards that all trainers of a cycle are done with, by their newest finished checkpoints."""
    return min(committed(out, name)[1].done for name in trainers_of(out))


def starving(out: Path) -> int | None:
    """Number of the first train shard that a trainer waits for while all of them wait; None while one has work."""
    waits = [Waiting.read(out, name).slot for name in trainers_of(out)]
    return None if None in waits else min(slot for slot in waits if slot is not None)


def committed(out: Path, name: str = TRAIN) -> tuple[int, Cursor]:
    """(step, cursor) of the newest finished checkpoint of a cycle's trainer; (0, the start) where there is none."""
    while steps := commits(out / name):
        found = _read_json(out / name / CHECKPOINTS / f"step-{steps[-1]:08d}.json")
        if found is not None:  # else the checkpoint was deleted since, and a newer one exists
            return (int(found["step"]), Cursor.from_json(found["cursor"])) if found.get("cursor") else (0, Cursor())
    return 0, Cursor()


@dataclass(frozen=True)
class Waiting:
    """Number of the train shard that the trainer waits for, with all its steps committed; None: the trainer does not wait."""

    slot: int | None = None

    def write(self, out: Path, name: str = TRAIN) -> None:
        """Write OUT/train/hunger.json, or that of another trainer. Raises OSError where the disk is full."""
        write_json(out / name / HUNGER, dataclasses.asdict(self))

    @classmethod
    def read(cls, out: Path, name: str = TRAIN) -> Waiting:
        """Read OUT/train/hunger.json, or that of another trainer; not waiting where there is none."""
        return cls(**_read_json(out / name / HUNGER) or {})


def _read_json(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(FileNotFoundError):
        found: dict[str, Any] = read_json(path)
        return found
    return None
