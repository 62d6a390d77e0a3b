"""Checkpoints: everything that a run needs to go on as if nothing had happened, in one atomic commit.

RUN/checkpoints/step-00000500.pt holds tensors and plain values and loads with weights_only; step-00000500.json beside it says for
people what it is, and is written last: a checkpoint without it was never finished, and is not looked at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from pipeline.core.disk import patiently
from pipeline.core.errors import UserError
from pipeline.storage.train_run import CHECKPOINTS as FOLDER
from pipeline.storage.train_run import commits


def save(
    run: Path,
    step: int,
    state: dict[str, Any],
    facts: dict[str, Any],
    keep: int,
    every: int = 1,
    enough: Callable[[], bool] = lambda: True,
) -> Path:
    """Writes the checkpoint of a step; of those before, the newest keep - 1 and the best one (facts["best"]) stay.

    every: steps that are no multiple of it are extra, and go with the next checkpoint. A full disk is waited for until `enough`
    is true; then it raises OSError, and what was there is still there.
    """
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.iterdir():  # of a crash: no checkpoint, and a full disk needs every byte
        if left_over.suffix == ".tmp" or (left_over.suffix == ".pt" and not left_over.with_suffix(".json").exists()):
            left_over.unlink()
    path = folder / f"step-{step:08d}.pt"
    note = json.dumps({"step": step} | facts, indent=2).encode()
    patiently(lambda: _commit(lambda file: torch.save(state, file), path), folder, enough)
    patiently(lambda: _commit(lambda file: file.write(note), path.with_suffix(".json")), folder, enough)
    found = commits(run)
    stay = {found[-1], facts.get("best"), *[one for one in found if one % every == 0][-keep:]}
    for old in set(found) - stay:  # the note goes first: what is left of a crash in between is no checkpoint
        (folder / f"step-{old:08d}.json").unlink(missing_ok=True)
        (folder / f"step-{old:08d}.pt").unlink(missing_ok=True)
    return path


def load(run: Path, step: int | None = None, device: str = "cpu") -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(state, facts) of a step, or of the newest; None where there is none.

    Raises UserError: there is no checkpoint of that step, or it cannot be read.
    """
    found = commits(run)
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


def _commit(write: Callable[[IO[bytes]], Any], path: Path) -> None:
    """A file that is there as a whole, or not at all. Raises OSError where the disk is full."""
    temporary = path.with_suffix(f"{path.suffix}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)  # a full disk needs every byte
        if isinstance(error.__context__, OSError):  # torch raises something else in its place
            raise error.__context__ from None
        raise
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
