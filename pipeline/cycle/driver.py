"""The cycle: render shards, train on them and delete used shards, all at once under one disk budget. See docs/cycle.md."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.cycle import AnyCycle, Shares
from pipeline.core.disk import write_json
from pipeline.core.errors import FEWER_THAN_ASKED
from pipeline.core.text import quoted, shown
from pipeline.cycle.audit import Audit, audit
from pipeline.cycle.protocol import trainers_of
from pipeline.cycle.snapshot import take_snapshot
from pipeline.cycle.source_order import LivePage, SourceOrder
from pipeline.cycle.trainer import Trainer, Trainers
from pipeline.run.driver import Driver, Intake, Summary, Workers, opened
from pipeline.storage.ledger import Ledger
from pipeline.storage.train_run import SETTINGS, TrainingLog
from pipeline.storage.uploads import InFolder
from pipeline.worker.worker import Lacks, checked_worker


@dataclass(frozen=True)
class Ended:
    """End of a cycle's session. complete: the trainer has used all shards."""

    summary: Summary
    complete: bool
    audit: Audit
    log: TrainingLog

    @property
    def status(self) -> int:
        """Exit status: 1 if the audit found problems, 3 if fewer objects were made or used than asked for, else 0."""
        if self.audit.problems:
            return 1
        return 0 if self.complete and self.summary.complete else FEWER_THAN_ASKED

    def lines(self, compared: Sequence[str] = ()) -> list[str]:
        """Lines for the user: audit, waiting times, scores of the model. compared: lines to insert near the end."""
        summary, out = self.summary, self.summary.out
        lines = [f"bug in lvsm-data, please report: {bug}" for bug in summary.bugs]
        lines += summary.notes + self.audit.lines()
        with Ledger(out / "ledger.sqlite", readonly=True) as ledger:
            now = take_snapshot(out, ledger, self.log)
        lines += now.lines() if now else []
        for name in trainers_of(out):
            lines.append(f"lvsm-data eval {quoted(out / name)} tells more of the model")
        lines.append(f"page: {shown(out)}/index.html")
        lines += compared
        if not self.complete:
            lines.append("stopped; the same command goes on")
        elif not summary.complete:
            missing = summary.n - summary.delivered
            lines.append(f"{missing} fewer than requested: the source has no more objects")
        return lines


def cycle(
    cfg: AnyCycle,
    shares: Shares,
    command: Sequence[str],
    settings: Sequence[dict[str, Any]],
    live_page: LivePage,
    lacks: Lacks | None = None,
) -> Ended:
    """Run a cycle, or go on with one.

    settings: of each trainer, with the folder `out`. command: starts a trainer, followed by the name of its folder, where it
    reads its settings. lacks: see `checked_worker`.

    Raises UserError like `deliver`.
    """
    assert cfg.out is not None
    names = [Path(each["out"]).name for each in settings]
    trainers = [Trainer(cfg.out, [*command, name], cfg.train_threads, name) for name in names]
    with opened(cfg) as ledger, contextlib.closing(Trainers(trainers)) as trainer:
        for name, each in zip(names, settings, strict=True):
            (cfg.out / name).mkdir(exist_ok=True)
            write_json(cfg.out / name / SETTINGS, each)
        policy = SourceOrder(cfg, ledger, shares, trainer, live_page)
        make = functools.partial(checked_worker, cfg, lacks) if lacks else None
        # nodes with a GPU are the trainer's
        workers = Workers(policy.session, apart=any(each.get("ray_workers") for each in settings), make=make)
        summary = Driver(policy, InFolder(), Intake(policy.session), workers).go()
        return Ended(summary, policy.complete, audit(cfg.out), policy.supervisor.log)
