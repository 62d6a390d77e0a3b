"""Checkpoints: everything that a run needs to resume exactly, committed atomically.

RUN/checkpoints/step-00000500.pt holds tensors and plain values and loads with weights_only; step-00000500.json beside it has
the facts for people, and is written last: a checkpoint without its .json is unfinished and ignored.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import IO, Any

import torch

from lvsm_train.weights.readers import load_plain
from pipeline.core.disk import patiently, replacing
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
    """Write the checkpoint of a step; of the older ones keep the newest keep - 1 and the best (step facts["best"]).

    every: checkpoints of steps that are no multiple of `every` are extra, and are deleted with the next one. Waits while the
    disk is full; once `enough` is true raises OSError instead, with the older checkpoints intact.
    """
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.iterdir():  # unfinished files of a crash; a full disk needs every byte
        if left_over.suffix == ".tmp" or (left_over.suffix == ".pt" and not left_over.with_suffix(".json").exists()):
            left_over.unlink()
    path = folder / f"step-{step:08d}.pt"
    note = json.dumps({"step": step} | facts, indent=2).encode()
    patiently(lambda: _commit(lambda file: torch.save(state, file), path), folder, enough)
    patiently(lambda: _commit(lambda file: file.write(note), path.with_suffix(".json")), folder, enough)
    steps = commits(run)
    stay = {steps[-1], facts.get("best"), *[one for one in steps if one % every == 0][-keep:]}
    for old in set(steps) - stay:  # the .json first: after a crash in between, the .pt alone is no checkpoint
        (folder / f"step-{old:08d}.json").unlink(missing_ok=True)
        (folder / f"step-{old:08d}.pt").unlink(missing_ok=True)
    return path


def load(run: Path, step: int | None = None, device: str = "cpu") -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(state, facts) of the checkpoint of `step`, by default the newest that can be read; None if the run has no checkpoint.

    Says on stderr which newer ones cannot be read. Raises UserError if the run has none of that step, or none can be read.
    """
    steps = commits(run)
    if step is not None and not isinstance(step, Integral):
        raise UserError(f"step {step!r} is no whole number", "leave the step out for the newest")
    if step is not None and step not in steps:
        has = ", ".join(map(str, steps)) or "none"
        raise UserError(f"{run} has no checkpoint of step {step}; it has {has}", "leave the step out for the newest")
    left = steps if step is None else [step]
    while left:
        path = run / FOLDER / f"step-{left.pop():08d}.pt"
        try:
            state = load_plain(path, device)
            return state, json.loads(path.with_suffix(".json").read_text())
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            said = f"{path} cannot be read: {' '.join(str(error).split())[:200]}"
            if not left:
                raise UserError(said, "move the folder of checkpoints away to begin anew") from None
            print(f"{said}\nthe one before is used, of step {left[-1]}", file=sys.stderr)
    return None


def _commit(write: Callable[[IO[bytes]], Any], path: Path) -> None:
    """Write a file atomically and durably. Raises OSError if the disk is full."""
    try:
        with replacing(path, sync=True) as temporary, temporary.open("wb") as file:
            write(file)
    except (OSError, RuntimeError) as error:
        if isinstance(error.__context__, OSError):  # torch wraps it in a RuntimeError
            raise error.__context__ from None
        raise
