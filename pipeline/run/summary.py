"""Summary of a run for the user, with counts that add up."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.text import duration, reasons_text, shown, size


@dataclass
class Summary:
    """Counts of a run. drawn = delivered + failed, over all sessions of the run."""

    n: int
    out: Path
    delivered: int
    reasons: dict[str, int]
    seconds: float = 0.0
    views: int = 0
    shard_bytes: int = 0
    stopped: bool = False
    bugs: list[str] = field(default_factory=list)
    licenses: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    store: str | None = None

    @property
    def complete(self) -> bool:
        return self.delivered >= self.n

    def lines(self) -> list[str]:
        """Lines for the user: requested, drawn = delivered + failed by reason, then details, licenses, sizes."""
        failed = sum(self.reasons.values())
        by_reason = f" ({reasons_text(self.reasons)})" if failed else ""
        at = self.store or shown(self.out)
        lines = [f"bug in lvsm-data, please report: {bug}" for bug in self.bugs]
        lines.append(
            f"requested {self.n}: drawn {self.delivered + failed} = delivered {self.delivered} + failed {failed}{by_reason}"
        )
        if not self.complete:
            why = "stopped; the same command goes on" if self.stopped else "the source has no more objects"
            lines.append(f"{self.n - self.delivered} fewer than requested: {why}")
        if failed:
            lines.append(f"details: lvsm-data status {at}")
        lines += self.notes
        if set(self.licenses) - {"unknown", "CC0-1.0"}:  # attribution is due
            lines.append(f"licenses: {reasons_text(self.licenses)}; whom to name: lvsm-data licenses {at}")
        lines.append(
            f"{self.views} views, {size(self.shard_bytes)} of shards in {at}, {duration(self.seconds)} this session"
        )
        lines.append(f"look at them: lvsm-data view {at}")
        return lines
