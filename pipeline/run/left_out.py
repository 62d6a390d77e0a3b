"""Views that imported scenes do without (missing, broken, or contradicting the others), and those that nothing vouches for.

Counted from the ledger.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any

from pipeline.config.source_table import names
from pipeline.core.text import counted, reasons_text
from pipeline.storage.ledger import Ledger

SCENES, NAMED = 5, 8  # that are named, and views of one
FACTS = ("views_missing", "views_wrong")  # of scenes that do without some of their views


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
        more = f"; all: lvsm-data status {shlex.quote(at)}"
        return [f"left out: {self.text}; {uid}: {says}{more}"]

    @property
    def text(self) -> str:
        """Number of views and of scenes, and why."""
        views = f"{counted(sum(self.reasons.values()), 'view')} of {counted(self.scenes, 'scene')}"
        return f"{views} ({reasons_text(self.reasons)})"


@dataclass
class Untold:
    """Views that were taken although nothing shows whether their cameras are right. of: all views of their scenes, which are
    `scenes`. first: (uid, "views 3, 7 of 12") of some.
    """

    views: int = 0
    of: int = 0
    scenes: int = 0
    first: list[tuple[str, str]] = field(default_factory=list)

    def lines(self, at: str) -> list[str]:
        """Line for the user; none if something vouches for every view. at: the run, as `status` takes it."""
        if not self.views:
            return []
        uid, says = self.first[0]
        return [f"nothing vouches for {self.text}; {uid}: {says}; more: lvsm-data status {at}"]

    @property
    def text(self) -> str:
        """Number of views and of scenes, why, and what was done."""
        why = "too few matches with other views, and no silhouettes that tell"
        views = f"{self.views} of {counted(self.of, 'view')} of {counted(self.scenes, 'scene')}"
        return f"the cameras of {views} ({why}); they were taken as they are"


def untold(ledger: Ledger, source: str | None) -> Untold:
    """Count the views of delivered scenes whose cameras their pictures cannot tell. source: the run's, as for `left_out`."""
    found = Untold()
    for uid, facts in ledger.with_fact("$.cameras_fit.views.undecided") if source in names("posed") else ():
        told = facts["cameras_fit"]["views"]
        if not (places := told["undecided"]):
            continue
        found.views, found.of, found.scenes = found.views + len(places), found.of + len(told["apart"]), found.scenes + 1
        if len(found.first) < SCENES:
            more = ", ..." if len(places) > NAMED else ""
            named = f"view{'s' if len(places) > 1 else ''} {', '.join(map(str, places[:NAMED]))}{more}"
            every = len(places) == len(told["apart"])
            found.first.append((uid, "all views" if every else f"{named} of {len(told['apart'])}"))
    return found


def left_out(ledger: Ledger, source: str | None) -> LeftOut:
    """Count the views that delivered scenes of a run do without. source: the run's; only posed ones leave views out."""
    found = LeftOut()
    facts = {uid: of for fact in FACTS for uid, of in ledger.with_fact(f"$.{fact}")} if source in names("posed") else {}
    for uid, of in sorted(facts.items()):
        found.scenes += 1
        for reason, count in reasons_of(of).items():
            found.reasons[reason] = found.reasons.get(reason, 0) + count
        if len(found.first) < SCENES:
            found.first.append((uid, says(of)))
    return found


def reasons_of(facts: dict[str, Any]) -> dict[str, int]:
    """Why views of a scene were left out -> number of them; earlier versions left out missing pictures alone."""
    missing, wrong = facts.get("views_missing", 0), len(facts.get("views_wrong", []))
    reasons = dict(facts.get("left_out") or ({"image_missing": missing} if missing else {}))
    return reasons | ({"views_wrong": wrong} if wrong else {})


def says(facts: dict[str, Any]) -> str:
    """How many views of a scene were left out, and which were the first."""
    some = facts.get("left_out_views", [])
    wrong = [f"the camera of {name} contradicts the others" for name in facts.get("views_wrong", [])]
    count = sum(reasons_of(facts).values())
    named = [*some, *wrong][:NAMED]
    more = ", ..." if 0 < len(named) < count else ""
    return f"{counted(count, 'view')} left out{': ' if named else ''}{', '.join(named)}{more}"
