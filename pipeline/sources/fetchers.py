"""Choice between Fetcher and VideoFetcher: the one place that knows both."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.clip import ClipConfig
from pipeline.config.shared import Fetching
from pipeline.core.budget import DiskBudget
from pipeline.download.fetch import Fetcher, FetchLimits
from pipeline.video.ytdlp import VideoFetcher


def fetcher(cfg: Fetching, folder: Path, cache: Path) -> Fetcher:
    """Make the Fetcher of a run: a VideoFetcher for videos. folder: where fetched files wait, within cfg.raw_gb."""
    folder.mkdir(parents=True, exist_ok=True)
    limits = FetchLimits(cfg.per_host, cfg.max_file_mb * 1e6, cfg.stall_s, cfg.mirrors, cache, cfg.keep_raw)
    disk_budget = DiskBudget(folder, cfg.raw_gb * 1e9, patient=cfg.patient)
    return VideoFetcher(limits, disk_budget, cfg) if isinstance(cfg, ClipConfig) else Fetcher(limits, disk_budget)
