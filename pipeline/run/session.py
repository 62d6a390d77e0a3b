"""One session of a run: the state that its driver, its policy and its workers share."""

from __future__ import annotations

import sys

from pipeline.config.clip import ClipConfig
from pipeline.config.run import RunConfig
from pipeline.core.records import Outcome
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import run_facts
from pipeline.storage.shards import LAYERS, NUMBERS
from pipeline.storage.writer import ShardWriter


def writer_of(cfg: RunConfig) -> ShardWriter:
    """Make the shard writer of a run's folder; cfg is resolved."""
    assert cfg.out is not None
    optional = tuple(name for name in LAYERS if getattr(cfg.scene, name, False))
    optional += NUMBERS if isinstance(cfg, ClipConfig) else ()
    return ShardWriter(cfg.out, cfg.scene.res, optional, run_facts(cfg), cfg.shard_mb * 1e6)


class Session:
    """State of a run with a recovered ledger. notes: lines for stderr before work begins; said: lines to repeat at the end."""

    def __init__(self, cfg: RunConfig, ledger: Ledger, writer: ShardWriter, notes: list[str]) -> None:
        assert cfg.out is not None
        self.cfg, self.out, self.ledger, self.writer = cfg, cfg.out, ledger, writer
        self.notes = list(notes)
        if cfg.retry_failed and (count := ledger.forget_failed()):
            self.notes.append(f"trying {count} failed objects again")
        self.counts = ledger.counts()
        self.finished = ledger.finished_uids()
        self.under_way: set[str] = set()
        self.stopping = False
        self.said: list[str] = []

    @property
    def delivered(self) -> int:
        return self.counts.get("delivered", 0)

    def count(self, outcome: Outcome) -> None:
        """Count an outcome that has been recorded."""
        self.finished.add(outcome.item.uid)
        state = "delivered" if outcome.scene else "failed"
        self.counts[state] = self.counts.get(state, 0) + 1

    def say(self, line: str) -> None:
        """Print a line on stderr now, and keep it for the end."""
        print(line, file=sys.stderr, flush=True)
        self.said.append(line)

    def stop(self) -> None:
        """Ask for the end: no new item begins, and items under way are finished."""
        self.stopping = True
