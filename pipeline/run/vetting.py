"""Verification that the cameras of an import fit its pictures, on the first scenes, before a shard is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pipeline import sources
from pipeline.config.run import RunConfig
from pipeline.config.views import ImportConfig
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome
from pipeline.worker import silhouettes
from pipeline.worker.silhouettes import TO_CHECK, VERDICT_KEY, Verdict

SCENES = 8  # to verify; fewer if --n is smaller
SUGGEST_FROM = 4  # scenes on which other cameras are tried


class Vetting:
    """Holds back the first outcomes of an import until `need` scenes have been verified, or no more come.

    verified: True if an earlier session has. Then, and in other runs, `need` is 0, and no outcome is held back.
    """

    def __init__(self, cfg: RunConfig, verified: bool) -> None:
        self.cfg = cfg
        self.need = min(SCENES, cfg.n) if isinstance(cfg, ImportConfig) and cfg.verify_cameras and not verified else 0
        self.marked = 0
        self.held: list[Outcome] = []
        self.verdicts: list[Verdict] = []
        self.conclusion = ""

    @property
    def scenes(self) -> int:
        """Number of scenes that are held back."""
        return sum(outcome.scene is not None for outcome in self.held)

    def mark(self, item: Item) -> Item:
        """Mark the item for verification, if more scenes are needed; else return the item unchanged."""
        if self.conclusion or self.marked >= self.need:
            return item
        self.marked += 1
        return dataclasses.replace(item, extra=item.extra | {TO_CHECK: True})

    def take(self, outcome: Outcome) -> list[Outcome]:
        """Outcomes that may be recorded now, with `outcome` or without. Raises UserError where the cameras do not fit."""
        if self.conclusion or not self.need:
            return [outcome]
        self.held.append(outcome)
        if TO_CHECK in outcome.item.extra:
            if outcome.scene is None:
                self.marked -= 1  # a failed object gives no verdict: mark another one
            else:
                self.verdicts.append(Verdict(**outcome.scene.meta.pop(VERDICT_KEY)))
        return self.conclude() if len(self.verdicts) >= self.need else []

    def conclude(self) -> list[Outcome]:
        """Decide by the verdicts so far; returns the outcomes held back. Raises UserError where the cameras do not fit."""
        held, self.held = self.held, []
        if not self.verdicts or self.conclusion:
            return held
        fit, figures = silhouettes.judge(self.verdicts)
        assumed = getattr(sources.load(self.cfg.source), "CAMERAS_ASSUMED", False)
        if fit == "does_not_fit" or (fit == "undecided" and assumed):
            hint = self._suggestion(held) if assumed else ""
            hint = hint or "--no-verify-cameras takes the cameras as they are; docs/sources.md says what is compared"
            raise UserError(f"the cameras of {self.cfg.source} do not fit its pictures: {figures}", hint)
        self.conclusion = f"cameras {'fit' if fit == 'fits' else 'may fit, the pictures cannot tell'}: {figures}"
        return held

    def _suggestion(self, held: list[Outcome]) -> str:
        """Describe the turntable that fits best the files of the scenes held back; "" if there is none."""
        assert isinstance(self.cfg, ImportConfig)
        source = sources.load(self.cfg.source)
        seen = [outcome.item for outcome in held if outcome.scene is not None][:SUGGEST_FROM]
        scenes = [source.load(item, Path(item.extra.get("path", item.url)), self.cfg) for item in seen]
        found = silhouettes.best_turntable(scenes, self.cfg.scene.mix)
        return str(found) if found else ""
