"""Plug-ins that say where objects come from. Adding one: a module here, and a line in pipeline/config/source_table.py.

A source's module has SAYS (the source's name for people), HOWTO (the flags that choose it) and `items(cfg, seed, net)`, which
lists and downloads no payload. The items' files come to a worker in one of two ways:

- `fetch(item, folder) -> Path`: in the worker, from this machine (`local`, `procedural`);
- `fetch_many(items, folder_of, net)`: ahead of the workers, by threads (pipeline/download/ahead.py). Consecutive items with
  equal `batch(item)`, at most BATCH of them, come in one call, which yields (item, Path or Skip or Retry) once for each.
  `root_of(item, path)` is the folder that the file may read. `remote(cfg)`, where a source has it, decides in place of the
  table's `fetched` whether this run needs `fetch_many` at all.

Optional: `group(item, cfg)`, the key of items that train and val must not share (default: the uid; a shard's meta.video says the
same), LEAVES_OUT (`items` takes `ended`, uids that it may leave out), CAMERAS_ASSUMED (the poses are a guess and must be
verified), LOADS_WHOLE (`load` takes `whole`, which reads all that a view needs, and takes others for those that lack some of it).
A posed source has `load(item, path, cfg) -> Posed` besides, or a Scene that is ready; one of videos `load(...) -> Clip`.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.config.clip import ClipConfig
from pipeline.config.cycle import Cycling
from pipeline.config.shared import Fetching, Listing
from pipeline.config.source_table import SOURCES, names
from pipeline.config.views import ImportConfig
from pipeline.core.budget import DiskBudget
from pipeline.download.fetch import Fetcher, FetchLimits
from pipeline.formats import tables
from pipeline.video.ytdlp import VideoFetcher


def load(name: str) -> ModuleType:
    """Module of the source `name`. KeyError if the table has no such source."""
    return importlib.import_module(SOURCES[name].module)


def others(name: str) -> str:
    """Flags that choose each other source of this kind than `name`, in one line."""
    howtos = (load(other).HOWTO for other in names(SOURCES[name].kind) if other != name)
    return " | ".join(dict.fromkeys(howtos))


def is_remote(cfg: Any) -> bool:
    """True if files of the run's source are fetched or unpacked ahead of the workers. cfg: a RunConfig or ManifestConfig."""
    decide: Callable[[Any], bool] | None = getattr(load(cfg.source), "remote", None)
    return decide(cfg) if decide else SOURCES[cfg.source].fetched


def fetcher(cfg: Fetching, folder: Path, cache: Path) -> Fetcher:
    """Make the Fetcher of a run: a VideoFetcher for videos. folder: where fetched files wait, within cfg.raw_gb."""
    folder.mkdir(parents=True, exist_ok=True)
    again = isinstance(cfg, Cycling)  # for objects to validate with, and for those to train on
    limits = FetchLimits(cfg.per_host, cfg.max_file_mb * 1e6, cfg.stall_s, cfg.mirrors, cache, cfg.keep_raw, again)
    disk_budget = DiskBudget(folder, cfg.raw_gb * 1e9, patient=cfg.patient)
    return VideoFetcher(limits, disk_budget, cfg) if isinstance(cfg, ClipConfig) else Fetcher(limits, disk_budget)


def asked_for(cfg: Listing | ImportConfig | ClipConfig) -> frozenset[str] | None:
    """Names that both --uids and --scores allow; None if neither was given. UserError for unusable files."""
    chosen = [tables.names_in(cfg.uids)] if cfg.uids else []
    if isinstance(cfg, Listing) and cfg.scores is not None:
        assert cfg.min_score is not None
        chosen.append(tables.names_scored(cfg.scores, cfg.min_score, cfg.score_column))
    return frozenset.intersection(*chosen) if chosen else None
