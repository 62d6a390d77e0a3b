"""Verification that the cameras of an import fit its pictures: of the first scenes before a shard is written, then of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline import sources
from pipeline.config.cycle import Cycling
from pipeline.config.run import RunConfig
from pipeline.config.views import ImportConfig
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome
from pipeline.run import turntables
from pipeline.worker.epipolar import Says
from pipeline.worker.silhouettes import TO_CHECK, VERDICT_KEY, Verdict

SCENES = 8  # to verify before anything is written; fewer if --n is smaller
SUGGEST_FROM = 4  # scenes on which other cameras are tried
REASON = "cameras_do_not_fit"


class Vetting:
    """Turns scenes whose cameras do not fit into failures. Holds back the first outcomes of an import until `need` scenes have
    been verified, or no more come; a run whose first scenes do not fit ends.

    verified: True if an earlier session has. Then, and in other runs, `need` is 0, and no outcome is held back.
    """

    def __init__(self, cfg: RunConfig, verified: bool) -> None:
        self.cfg = cfg
        first = cfg.held_out if isinstance(cfg, Cycling) else cfg.n  # what a cycle does not train on comes first
        self.need = min(SCENES, first) if isinstance(cfg, ImportConfig) and cfg.verify_cameras and not verified else 0
        self.marked = 0
        self.held: list[Outcome] = []
        self.verdicts: list[Verdict] = []
        self.unchecked = 0
        self.decided = not self.need

    @property
    def scenes(self) -> int:
        """Number of scenes that are held back."""
        return sum(outcome.scene is not None for outcome in self.held)

    def mark(self, item: Item) -> Item:
        """Mark the item for verification, if more scenes are needed; else return the item unchanged."""
        if self.decided or self.marked >= self.need:
            return item
        self.marked += 1
        return dataclasses.replace(item, extra=item.extra | {TO_CHECK: True})

    def take(self, outcome: Outcome) -> list[Outcome]:
        """Outcomes that may be recorded now, with `outcome` or without. Raises UserError where the first cameras do not fit."""
        judged = self._judged(outcome)
        if self.decided:
            return [judged]
        if outcome.scene is None:
            self.marked -= TO_CHECK in outcome.item.extra  # it gives no verdict: mark another one
            return [judged]
        self.held.append(judged)
        return self.conclude() if len(self.verdicts) >= self.need else []

    def _judged(self, outcome: Outcome) -> Outcome:
        """Take an outcome's verdict; a scene whose cameras do not fit becomes a failure."""
        found = outcome.scene.meta.pop(VERDICT_KEY, None) if outcome.scene is not None else None
        if found is None:
            self.unchecked += outcome.scene is not None
            return outcome
        verdict: Verdict = found
        self.verdicts.append(verdict)
        if verdict.says != "does_not_fit":
            return outcome
        detail = (
            f"{verdict}; right poses, axes and focal lengths are needed, --no-verify-cameras takes them as they are"
        )
        return dataclasses.replace(outcome, scene=None, reason=REASON, detail=detail)

    def conclude(self) -> list[Outcome]:
        """Decide by the verdicts so far; returns the outcomes held back. Raises UserError where the cameras do not fit."""
        held, self.held = self.held, []
        if not self.verdicts or self.decided:
            return held
        fit, figures = judge(self.verdicts)
        assumed = getattr(sources.load(self.cfg.source), "CAMERAS_ASSUMED", False)
        if fit == "does_not_fit" or (fit == "undecided" and assumed):
            hint = self._suggestion(held) if assumed else ""
            hint = hint or "--no-verify-cameras takes the cameras as they are; docs/sources.md says what is compared"
            raise UserError(f"the cameras of {self.cfg.source} do not fit its pictures: {figures}", hint)
        self.decided = True
        return held

    def lines(self) -> list[str]:
        """Verdict over all scenes of this session, in one line; none if no scene was checked."""
        if not self.verdicts or not self.decided:
            return []
        counts = {
            says: sum(verdict.says == says for verdict in self.verdicts)
            for says in ("fits", "does_not_fit", "undecided")
        }
        parts = [f"{counts['fits']} scenes fit", f"{counts['undecided']} cannot be told by their pictures"]
        parts[1] += " and were taken as they are" if counts["undecided"] else ""
        parts += [f"{counts['does_not_fit']} do not and were left out ({REASON})"] if counts["does_not_fit"] else []
        taken = [verdict for verdict in self.verdicts if verdict.says != "does_not_fit"]
        wrong = sum(len(verdict.wrong) for verdict in taken)
        parts += [f"{wrong} views of scenes that were taken do not and were left out (views_wrong)"] if wrong else []
        untold = sum(view.says == "undecided" for verdict in taken for view in verdict.views)
        parts += [f"{self.unchecked} were not looked at"] if self.unchecked else []
        _, figures = judge(self.verdicts)
        medians = figures.partition("; ")[2]
        all_fit = counts["fits"] == len(self.verdicts) and not (self.unchecked or wrong or untold)
        head = "cameras fit" if all_fit else "cameras"
        return [f"{head}: {', '.join(parts)}{'; ' + medians if medians else ''}"]

    def _suggestion(self, held: list[Outcome]) -> str:
        """Describe the turntable that fits best the files of the scenes held back; "" if there is none."""
        assert isinstance(self.cfg, ImportConfig)
        source = sources.load(self.cfg.source)
        seen = [outcome.item for outcome in held if outcome.scene is not None or outcome.reason == REASON][
            :SUGGEST_FROM
        ]
        scenes = [source.load(item, Path(item.extra.get("path", item.url)), self.cfg) for item in seen]
        found = turntables.best_turntable(scenes, self.cfg.scene.mix)
        return str(found) if found else ""


def judge(verdicts: Sequence[Verdict]) -> tuple[Says, str]:
    """Verdict on a source from several of its scenes, and a line that explains the verdict to a user.

    A scene may look wrong for reasons of its own (culled faces, motion), but hardly right by chance: so half of the scenes
    that are decided suffice for "fits", and "does_not_fit" takes three quarters.
    """
    fit = sum(verdict.says == "fits" for verdict in verdicts)
    wrong = sum(verdict.says == "does_not_fit" for verdict in verdicts)
    says: Says = "undecided"
    if fit and fit >= wrong:
        says = "fits"
    elif wrong >= 3 * fit and wrong:
        says = "does_not_fit"
    figures = []
    told = (("hull", "silhouettes filled"), ("floating", "points of depth before surfaces"))
    for name, what in (*told, ("lines", "matches on their epipolar lines")):
        values = [value for verdict in verdicts if (value := getattr(verdict, name)) is not None]
        if values:
            figures.append(f"{what} {np.median(values):.1%}")
    rest = len(verdicts) - fit - wrong
    line = f"{fit} scenes fit, {wrong} do not, {rest} cannot tell"
    return says, f"{line}; median: {', '.join(figures)}" if figures else line
