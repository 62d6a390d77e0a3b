"""What a scene lacks to be trained on. Imports no torch: workers that make scenes ask this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lvsm_train.config.train import DataConfig, TrainConfig
from lvsm_train.data import view_sampling
from pipeline.config.source_table import SOURCES, Source
from pipeline.core.records import HELD_OUT, Scene


@dataclass(frozen=True)
class Lacking:
    """Says what a scene lacks to be trained on. views: that must train; gap: of clips, widths of the window."""

    views: int
    gap: tuple[int, int] | None

    def __call__(self, scene: Scene) -> str:
        """Return what the scene lacks, "" for nothing."""
        able = np.array([role not in HELD_OUT for role in scene.roles or [""] * scene.view_count])
        if self.gap is None:
            return "" if able.sum() >= self.views else f"{able.sum()} views, {self.views} are needed"
        frame = np.sort(scene.numbers.get("frame", np.arange(scene.view_count))[able])
        if view_sampling.clip_fits(frame, self.views, self.gap):
            return ""
        return f"no window of {self.gap[0]} to {self.gap[1]} frames with {self.views} views among {len(frame)}"


@dataclass(frozen=True)
class LackingForAny:
    """Says what a scene lacks for any of several trainers."""

    each: tuple[Lacking, ...]

    def __call__(self, scene: Scene) -> str:
        """Return what the scene lacks first, "" for nothing."""
        return next((said for one in self.each if (said := one(scene))), "")


def lacking(trainers: Sequence[TrainConfig], source: str) -> LackingForAny:
    """Make the check of scenes of a source for trainers: clips, and with `scenes` captures, have windows of frames."""
    return LackingForAny(tuple(_lacking(cfg.data, SOURCES[source]) for cfg in trainers))


def _lacking(data: DataConfig, source: Source) -> Lacking:
    if source.kind == "video" or (data.scenes and not source.objects):
        return Lacking(data.inputs + data.targets, data.gap)
    return Lacking(data.held_views + data.inputs + data.targets, None)
