"""What a scene lacks to be trained on. Imports no torch: workers that make scenes ask this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lvsm_train.config.train import DataConfig, TrainConfig
from lvsm_train.data import view_sampling
from pipeline.config.source_table import SOURCES
from pipeline.core.records import HELD_OUT, Scene


@dataclass(frozen=True)
class Lacking:
    """Says what a scene lacks to be trained on. views: that a sample takes; held_views, gap: as in view_sampling.fits."""

    views: int
    held_views: int
    gap: tuple[int, int] | None

    def __call__(self, scene: Scene) -> str:
        """Return what the scene lacks, "" for nothing."""
        able = np.array([role not in HELD_OUT for role in scene.roles or [""] * scene.view_count])
        frame = scene.numbers.get("frame", np.arange(scene.view_count))[able]
        if view_sampling.fits(frame, self.views, self.held_views, self.gap):
            return ""
        if self.gap is None:
            return f"{len(frame)} views, {self.held_views + self.views} are needed"
        return f"no window of {self.gap[0]} to {self.gap[1]} frames with {self.views} views among {len(frame)}"


@dataclass(frozen=True)
class LackingForAny:
    """Says what a scene lacks for any of several trainers."""

    each: tuple[Lacking, ...]

    def __call__(self, scene: Scene) -> str:
        """Return what the scene lacks first, "" for nothing."""
        return next((said for one in self.each if (said := one(scene))), "")


def lacking(trainers: Sequence[TrainConfig], source: str) -> LackingForAny:
    """Make the check of scenes of a source for trainers, each with its own rule."""
    known = SOURCES[source]
    subject = "clips" if known.kind == "video" else "objects" if known.objects else ""
    return LackingForAny(tuple(_lacking(cfg.data, subject) for cfg in trainers))


def _lacking(data: DataConfig, subject: str) -> Lacking:
    gap = data.gap if view_sampling.is_scene(subject, data.scenes) else None
    return Lacking(data.inputs + data.targets, data.held_views, gap)
