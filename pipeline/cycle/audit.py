"""Audit of a cycle: objects and samples, counted in independent places, must add up. See docs/cycle.md."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.text import reasons_text
from pipeline.cycle.protocol import TRAIN, committed, layout, trainers_of
from pipeline.storage import journal as journals
from pipeline.storage.ledger import Kept, Ledger, train_shards
from pipeline.storage.object_table import uids_of
from pipeline.storage.run_folder import IDENTITY, identity_of, is_locked
from pipeline.storage.shards import shard_name, shard_paths
from pipeline.storage.train_run import TrainingLog


@dataclass
class Audit:
    """Counts of an audit. problems: what does not add up, one line each; empty is good. samples, logged, owed, step: of the
    first trainer; others: the same of further ones, each with its folder's `name`.
    """

    run: Path
    requested: int
    delivered: int
    reasons: dict[str, int]
    on_disk: int = 0
    held_out: int = 0
    deleted: int = 0
    samples: int = 0
    logged: int = 0
    owed: int = 0
    step: int = 0
    passes: dict[int, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Lines for the user: the sums of objects and samples, and the problems."""
        failed = sum(self.reasons.values())
        by_reason = f" ({reasons_text(self.reasons)})" if failed else ""
        missing = f" + {self.requested - self.delivered} missing" if self.delivered < self.requested else ""
        passes = ", ".join(f"{count} objects x {passes}" for passes, count in sorted(self.passes.items()))
        return [
            f"requested {self.requested} = delivered {self.delivered}{missing}",
            f"drawn {self.delivered + failed} = delivered {self.delivered} + failed {failed}{by_reason}",
            f"delivered {self.delivered} = on disk {self.on_disk} (of them {self.held_out} for validation) + "
            f"trained and deleted {self.deleted}",
            f"trained {self.samples} samples in {self.step} steps (log.jsonl: {self.logged}) of {self.owed} = "
            f"{passes or 'none yet'}",
            *(
                f"{one['name']}: trained {one['samples']} samples in {one['step']} steps (log.jsonl: {one['logged']})"
                for one in self.others
            ),
            *(f"problem: {problem}" for problem in self.problems),
            "it adds up" if not self.problems else f"it does not add up: {len(self.problems)} problems",
        ]

    def as_json(self) -> dict[str, Any]:
        """Counts and problems as JSON values."""
        return vars(self) | {"run": str(self.run)}


def audit(run: Path) -> Audit:
    """Audit the cycle in `run`, at rest or at work. Raises UserError where there is no cycle."""
    report = _counted(run)
    if report.problems and is_locked(run):  # count again: what only moved meanwhile is not a problem twice
        before, report = report, _counted(run)
        report.problems = [problem for problem in report.problems if problem in before.problems]
    return report


def _counted(run: Path) -> Audit:
    sizes = layout(run)
    with Ledger(run / "ledger.sqlite", readonly=True) as ledger:
        ledger.snapshot()
        counts, reasons, kept, booked = ledger.counts(), ledger.reasons(), ledger.kept(), ledger.delivered_in()
    identity = identity_of(run) if (run / IDENTITY).exists() else {}
    if "passes" not in identity:
        raise UserError(f"{run} is no cycle", "lvsm-data verify checks runs of render, import and clip")
    report = Audit(run, identity["n"], counts.get("delivered", 0), reasons)
    _objects(report, run, identity["res"], kept, booked)
    _samples(report, run, kept)
    if sizes and sizes["val"] + sizes["objects"] != identity["n"]:
        report.problems.append(
            f"{sizes['val']} objects for validation and {sizes['objects']} to train on are not {identity['n']}"
        )
    return report


def _objects(report: Audit, run: Path, widths: list[int], kept: dict[str, Kept], booked: dict[str, str]) -> None:
    """Find where each object is: in shards of each resolution, in a journal, or in a shard that was deleted."""
    paths = journals.left_in(run)
    journal = _uids(paths, lambda path: [batch.column("uid")[0].as_py() for batch in journals.read(path)])
    found: dict[str, str] = {uid: name for name, uids in journal.items() for uid in uids}
    for width in widths:
        here = _uids([path for path in shard_paths(run / str(width)) if path.stem not in journal], uids_of)
        for name, uids in here.items():
            if name in kept and kept[name].state == "deleted":
                continue  # the files are about to be deleted
            if name in kept and len(uids) != kept[name].objects:
                report.problems.append(f"{width}/{name} has {len(uids)} objects, the ledger says {kept[name].objects}")
            for uid in uids:
                if found.setdefault(uid, name) != name:
                    report.problems.append(f"{uid} is in {found[uid]} and in {name}")
        gone = [name for name, shard in kept.items() if shard.state == "complete" and name not in {*here, *journal}]
        report.problems += [f"{width}/{name} is complete, says the ledger, and is not there" for name in gone]
    deleted = {uid for uid, name in booked.items() if name in kept and kept[name].state == "deleted"}
    report.on_disk, report.deleted = len(found), len(deleted)
    report.held_out = sum(name.startswith("val") for name in found.values())
    if report.delivered != report.on_disk + report.deleted:
        report.problems.append(
            f"{report.delivered} delivered are not {report.on_disk} on disk and {report.deleted} deleted"
        )
    for uid in sorted(found.keys() | deleted):
        if booked.get(uid) != found.get(uid, booked.get(uid)):
            report.problems.append(f"{uid} is in {found.get(uid)}, the ledger says {booked.get(uid, 'nothing')}")
    for uid in sorted(booked.keys() - found.keys() - deleted):
        report.problems.append(f"{uid} was delivered into {booked[uid]}, and is neither there nor deleted")
    if deleted & found.keys():
        report.problems.append(f"{len(deleted & found.keys())} objects are deleted and on disk")


def _uids(paths: list[Path], read: Callable[[Path], list[str]]) -> dict[str, list[str]]:
    """Shard name -> uids in the shard's file. Files that a running cycle deletes meanwhile are left out."""
    found = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found[path.stem] = read(path)
    return found


def _samples(report: Audit, run: Path, kept: dict[str, Kept]) -> None:
    """Compare samples by the cursor of the newest checkpoint, by the log up to it, and by the passes of each shard."""
    slots = train_shards(kept)
    report.owed = sum(shard.objects * shard.passes for shard in slots.values())
    for shard in slots.values():
        if shard.objects:
            report.passes[shard.passes] = report.passes.get(shard.passes, 0) + shard.objects
    for name in trainers_of(run):
        problems = _samples_of(report, run, name, slots)
        report.problems += [f"{name}: {one}" for one in problems] if name != TRAIN else problems


def _samples_of(report: Audit, run: Path, name: str, slots: dict[int, Kept]) -> list[str]:
    """Count the samples of one trainer; returns what does not add up."""
    problems = []
    step, cursor = committed(run, name)
    log = TrainingLog(run / name).read(until=step)
    if name == TRAIN:
        report.step, report.samples, report.logged = step, cursor.position, log.samples
    else:
        report.others.append({"name": name, "step": step, "samples": cursor.position, "logged": log.samples})
    if log.samples != cursor.position:
        problems.append(f"the checkpoint counts {cursor.position} samples, log.jsonl {log.samples}")
    for number, shard in slots.items():
        owed, logged = shard.objects * shard.passes, log.slots.get(number, 0)
        counted = cursor.counts.get(number, owed if number < cursor.done else 0)
        if logged != counted:
            problems.append(
                f"of shard {shard_name('train', number)} {counted} samples were trained on, log.jsonl says {logged}"
            )
        if logged > owed:
            problems.append(f"shard {shard_name('train', number)} was trained on {logged} times, {owed} are its passes")
        if shard.state == "deleted" and number >= cursor.done and shard.objects:
            problems.append(f"shard {shard_name('train', number)} is deleted, and no checkpoint has done with it")
    return problems
