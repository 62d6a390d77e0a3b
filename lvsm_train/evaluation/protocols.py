"""Protocols: the input and target views that an evaluation takes of each object, fixed for every model and seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lvsm_train.config.trained import Split
from lvsm_train.data.samples import KINDS, Planner, Sample, index_samples
from pipeline.core.errors import UserError
from pipeline.formats.trajectories import evaluation_index

COUNTS = (1, 2, 3, 4, 6, 8)  # numbers of inputs to compare


@dataclass(frozen=True)
class Protocol:
    """A protocol. inputs, targets: number of views per object, 0: as many as the index says. scenes: True for clips, False for
    objects, None for both. indexed: True if an index file names the views.
    """

    says: str
    inputs: int
    targets: int
    scenes: bool | None
    indexed: bool


OBJECTS = {False: "gslrm-objects", True: "time"}  # by whether a model that knows time meets objects that move
PROTOCOLS = {
    "gslrm-objects": Protocol("4 inputs of each object, far from each other, and 10 targets", 4, 10, False, False),
    "time": Protocol(
        "8 inputs of each object, far from each other in place and time, and 8 targets, at times that no input has",
        8,
        8,
        False,
        False,
    ),
    "clips": Protocol("of each clip the ends of a window as inputs, and 3 targets between them", 2, 3, True, False),
    "re10k": Protocol("2 inputs and 3 targets of each clip, as an index says", 2, 3, True, True),
    "index": Protocol("inputs and targets as an index says", 0, 0, None, True),
}


def choose(name: str | None, index: Path | None, is_scene: np.ndarray, timed: bool = False) -> str:
    """Name of the protocol: `name`, else the one that suits most objects. is_scene: (N,) as of Planner. timed: the model knows
    time, and objects move.

    Raises UserError for a protocol of clips on objects or of objects on clips, and for an index that is missing or not needed.
    """
    chosen = name or ("index" if index else "clips" if is_scene.mean() > 0.5 else OBJECTS[timed])
    protocol = PROTOCOLS[chosen]
    if protocol.scenes is not None and protocol.scenes not in is_scene:
        suits = ", ".join(one for one, entry in PROTOCOLS.items() if entry.scenes != protocol.scenes)
        raise UserError(
            f"--protocol {chosen} is for {KINDS[protocol.scenes]}; these are {KINDS[not protocol.scenes]}",
            f"for these there are {suits}",
        )
    if protocol.indexed and index is None:
        raise UserError(
            f"--protocol {chosen} needs --index FILE", 'pixelSplat\'s, or {clip: {"context": [0, 50], "target": [20]}}'
        )
    if index is not None and not protocol.indexed:
        raise UserError(f"--protocol {chosen} has no use for --index", "--protocol index asks for what the index says")
    return chosen


def plan(name: str, planner: Planner, split: Split = "val", index: Path | None = None) -> list[Sample]:
    """Samples of the protocol `name`, from the objects that the planner knows.

    split: "val", the objects not trained on, or "all"; without effect on an index, which names its objects. Ordered by a hash of
    the uid, or as in the index. Raises UserError where there is nothing to measure on, and for an index that does not fit.
    """
    protocol = PROTOCOLS[name]
    if protocol.indexed:
        assert index is not None
        return _indexed(protocol, index, planner)
    made = planner.evaluation(split, protocol.inputs, protocol.targets, scenes=protocol.scenes)
    if not made:
        known = len(planner.val) if split == "val" else len(planner.index.uids)
        lack = "a window of --gap-min to --gap-max frames" if protocol.scenes else "other views to ask for"
        raise UserError(
            f"none of {known} objects has {protocol.inputs} views to show and {lack}",
            "--data FOLDER names others; --split all takes all of a folder",
        )
    return made


def _indexed(protocol: Protocol, index: Path, planner: Planner) -> list[Sample]:
    made = index_samples(evaluation_index(index), planner.index, planner.is_scene)
    for one in made:
        has = len(one.inputs), len(one.targets)
        if protocol.inputs and has != (protocol.inputs, protocol.targets):
            raise UserError(
                f"{index} shows {has[0]} and asks for {has[1]} views of {one.uid}, not {protocol.inputs} and {protocol.targets}",
                "--protocol index takes it as it is",
            )
    return made


def by_inputs(name: str, planner: Planner, split: Split, samples: Sequence[Sample]) -> dict[int, list[Sample]]:
    """Samples by number of inputs; objects and targets are fixed, and a smaller number takes the first inputs of a larger one.

    Numbers are those of COUNTS for which all objects have views; an index limits them to the inputs that it names. A clip's first
    two inputs are the ends of a window. No target is an input at any number, so targets may differ from the protocol's.
    """
    protocol = PROTOCOLS[name]
    most = list(samples)
    if not protocol.indexed:
        kept = {sample.number for sample in samples}
        for count in reversed(COUNTS):
            planned = planner.evaluation(split, count, protocol.targets)
            more = [sample for sample in planned if sample.number in kept]
            if len(more) == len(kept):
                most = more
                break
    least = min(len(sample.inputs) for sample in most)
    return {
        count: [dataclasses.replace(sample, inputs=sample.inputs[:count]) for sample in most]
        for count in COUNTS
        if count <= least
    }


def partners(samples: Sequence[Sample]) -> list[Sample]:
    """Pick for each sample another object with equally many inputs, to be shown instead; in the order of `samples`.

    The targets of the picked samples are placeholders. Raises UserError where there is no other object.
    """
    made = []
    for place, sample in enumerate(samples):
        others = (samples[(place + step) % len(samples)] for step in range(1, len(samples)))
        same = (one for one in others if one.number != sample.number and len(one.inputs) == len(sample.inputs))
        if (other := next(same, None)) is None:
            raise UserError(f"{sample.uid} has no other object beside it whose inputs could be shown instead")
        made.append(dataclasses.replace(other, targets=other.inputs[:1] * len(sample.targets)))
    return made
