"""Views that imported scenes do without, since their pictures or poses are missing or broken: counted from the ledger's facts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.core.text import reasons_text
from pipeline.storage.ledger import Ledger

SCENES = 5  # that are named


@dataclass
class LeftOut:
    """Views that were left out. reasons: why -> number of views. first: (uid, "K of N views left out: ...") of some scenes."""

    scenes: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    first: list[tuple[str, str]] = field(default_factory=list)

    def lines(self, at: str) -> list[str]:
        """Line for the user; none if nothing was left out. at: the run, as `status` takes it."""
        if not self.scenes:
            return []
        uid, says = self.first[0]
        more = f"; all: lvsm-data status {at}"
        return [f"left out: {self.text}; {uid}: {says}{more}"]

    @property
    def text(self) -> str:
        """Number of views and of scenes, and why."""
        return f"{sum(self.reasons.values())} views of {self.scenes} scenes ({reasons_text(self.reasons)})"


def left_out(ledger: Ledger) -> LeftOut:
    """Count the views that delivered scenes of a run do without."""
    found = LeftOut()
    for uid, facts in ledger.with_fact("$.views_missing"):
        found.scenes += 1
        for reason, count in reasons_of(facts).items():
            found.reasons[reason] = found.reasons.get(reason, 0) + count
        if len(found.first) < SCENES:
            found.first.append((uid, says(facts)))
    return found


def reasons_of(facts: dict[str, Any]) -> dict[str, int]:
    """Why views of a scene were left out -> number of them; earlier versions left out missing pictures alone."""
    reasons: dict[str, int] = facts.get("left_out") or {"image_missing": facts["views_missing"]}
    return reasons


def says(facts: dict[str, Any]) -> str:
    """How many views of a scene were left out, and which were the first."""
    some = facts.get("left_out_views", [])
    more = ", ..." if 0 < len(some) < facts["views_missing"] else ""
    count = facts["views_missing"]
    return f"{count} view{'s' if count > 1 else ''} left out{': ' if some else ''}{', '.join(some)}{more}"
