"""Checkpoints: everything that a run needs to go on as if nothing had happened, in one atomic commit.

RUN/checkpoints/step-00000500.pt holds tensors and plain values and loads with weights_only; step-00000500.json beside it says for
people what it is, and is written last: a checkpoint without it was never finished, and is not looked at.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from pipeline.scene import UserError

FOLDER = "checkpoints"
NAME = re.compile(r"step-(\d{8})\.json")


def save(run: Path, step: int, state: dict[str, Any], facts: dict[str, Any], keep: int) -> Path:
    """Writes the checkpoint of a step; of those before, the newest keep - 1 and the best one (facts["best"]) stay."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    temporary = path.with_suffix(".pt.tmp")
    torch.save(state, temporary)
    _commit(temporary, path)
    note = path.with_suffix(".json.tmp")
    note.write_text(json.dumps({"step": step} | facts, indent=2))
    _commit(note, path.with_suffix(".json"))
    best = facts.get("best")
    for old in steps_in(run)[:-keep]:
        if old != best:  # the note goes first: what is left of a crash in between is no checkpoint
            (folder / f"step-{old:08d}.json").unlink(missing_ok=True)
            (folder / f"step-{old:08d}.pt").unlink(missing_ok=True)
    return path


def steps_in(run: Path) -> list[int]:
    """Steps of the finished checkpoints, ascending."""
    return sorted(int(match[1]) for path in (run / FOLDER).glob("*.json") if (match := NAME.fullmatch(path.name)))


def load(run: Path, step: int | None = None, device: str = "cpu") -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(state, facts) of a step, or of the newest; None where there is none.

    Raises UserError: there is no checkpoint of that step, or it cannot be read.
    """
    found = steps_in(run)
    if step is not None and step not in found:
        has = ", ".join(map(str, found)) or "none"
        raise UserError(f"{run} has no checkpoint of step {step}; it has {has}", "leave the step out for the newest")
    if not found:
        return None
    path = run / FOLDER / f"step-{found[-1] if step is None else step:08d}.pt"
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        facts = json.loads(path.with_suffix(".json").read_text())
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} cannot be read: {error}", "move it and its .json away; the one before is used then"
        ) from None
    return state, facts


def _commit(temporary: Path, path: Path) -> None:
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
