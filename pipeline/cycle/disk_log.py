"""OUT/disk.csv: the disk that a cycle takes, a line every few seconds, kept over all its sessions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from pipeline.core.disk import append

DISK = "disk.csv"  # the fields of Note, without a head
BREAK_S = 60.0  # a longer time between two lines lies between two sessions


@dataclass(frozen=True)
class Note:
    """A line. when: unix time. used, shards, checkpoints, budget: bytes; most: the most that was used since the line before.

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
    """Raises OSError, with nothing written, where the disk is full."""
    numbers = (round(value, 2) if isinstance(value, float) else value for value in astuple(note))
    with (out / DISK).open("ab", buffering=0) as file:
        append(file, (",".join(f"{number}" for number in numbers) + "\n").encode())


def read(out: Path) -> list[Note]:
    """All lines, in order; [] where there is none yet. What is no line is left out."""
    try:
        text = (out / DISK).read_text()
    except FileNotFoundError:
        return []
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [note for line in lines if (note := _note(line)) is not None]


def _note(line: str) -> Note | None:
    """None for what a power cut has left of a line."""
    try:
        when, used, shards, budget, most, checkpoints, blocked_s = map(float, line.split(","))
    except ValueError:
        return None
    return Note(when, int(used), int(shards), int(budget), int(most), int(checkpoints), blocked_s)


def sessions(notes: Sequence[Note]) -> list[list[Note]]:
    """Split notes, in order, into one list for each session."""
    found: list[list[Note]] = []
    for note in notes:
        if found and 0 <= note.when - found[-1][-1].when <= BREAK_S:
            found[-1].append(note)
        else:
            found.append([note])
    return found
