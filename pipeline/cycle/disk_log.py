"""OUT/disk.csv: disk use of a cycle, a line every few seconds, over all sessions."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from pipeline.core.disk import append

DISK = "disk.csv"  # the fields of Note, without a header
BREAK_S = 60.0  # a longer time between two lines lies between two sessions


@dataclass(frozen=True)
class Note:
    """Line of disk.csv. when: unix time. used, shards, checkpoints, budget: bytes; most: peak of `used` since the line before.

    blocked_s: seconds since the line before in which rendering waited for disk.
    """

    when: float
    used: int
    shards: int
    budget: int
    most: int
    checkpoints: int
    blocked_s: float


def add(out: Path, note: Note) -> None:
    """Append a line to OUT/disk.csv. Raises OSError, with nothing written, where the disk is full."""
    numbers = (round(value, 2) if isinstance(value, float) else value for value in astuple(note))
    with (out / DISK).open("ab", buffering=0) as file:
        append(file, (",".join(f"{number}" for number in numbers) + "\n").encode())


def read(out: Path) -> list[Note]:
    """Notes of all lines of OUT/disk.csv, in order; [] where there is none yet. Broken lines are left out."""
    try:
        text = (out / DISK).read_text()
    except FileNotFoundError:
        return []
    notes = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        with contextlib.suppress(ValueError):  # a power cut has damaged the line
            when, *sizes, blocked_s = map(float, line.split(","))
            used, shards, budget, most, checkpoints = map(int, sizes)
            notes.append(Note(when, used, shards, budget, most, checkpoints, blocked_s))
    return notes


def sessions(notes: Sequence[Note]) -> list[list[Note]]:
    """Split notes, in order, into one list for each session."""
    found: list[list[Note]] = []
    for note in notes:
        if found and 0 <= note.when - found[-1][-1].when <= BREAK_S:
            found[-1].append(note)
        else:
            found.append([note])
    return found
