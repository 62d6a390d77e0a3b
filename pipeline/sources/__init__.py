"""Where objects come from. Adding a source is one file and one line here.

A source is a module with KIND ("object": to be rendered; "posed": views that exist already; "video": frames of a video), SAYS
(its name for people), HOWTO (the flags that choose it) and `items(cfg, seed, net)`, which lists and downloads no payload. How
its items' files come to a worker is one of two:

- `fetch(item, folder) -> Path`: in the worker, from this machine (`local`, `procedural`);
- `fetch_many(items, folder_of, net)`: ahead of the workers, by threads (pipeline/download/ahead.py). Items in a row with the
  same `batch(item)`, at most BATCH of them, come in one call, which yields (item, Path or Skip or Retry) once for each.
  `root_of(item, path)` is the folder that the file may read. `remote(cfg)`, where a source has it, says whether this
  run needs them at all.

A posed source has `load(item, path, cfg) -> Posed` besides, one of videos `load(item, path, cfg) -> Clip`.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

SOURCES = {
    "procedural": "pipeline.sources.procedural",
    "local": "pipeline.sources.local",
    "objaverse": "pipeline.sources.objaverse",
    "objaverse-xl": "pipeline.sources.objaverse_xl",
    "manifest": "pipeline.sources.manifest",
}
POSED = {
    "objaverse-mix": "pipeline.sources.objaverse_mix",
    "gobjaverse": "pipeline.sources.gobjaverse",
    "zero123": "pipeline.sources.zero123",
    "pixelsplat": "pipeline.sources.pixelsplat",
    "nerfstudio": "pipeline.sources.nerfstudio",
    "colmap": "pipeline.sources.colmap",
}
VIDEOS = {
    "realestate10k": "pipeline.sources.realestate10k",
    "acid": "pipeline.sources.realestate10k",
}


def load(name: str) -> ModuleType:
    """The source's module. KeyError for a name that is in none of the three."""
    return importlib.import_module((SOURCES | POSED | VIDEOS)[name])


def others(name: str) -> str:
    """The flags that choose another source than `name`, in one line."""
    return " | ".join(load(other).HOWTO for other in SOURCES if other != name)


def is_remote(cfg: Any) -> bool:
    """Whether the files of a run's source are brought ahead of the workers. cfg: a RunConfig."""
    source = load(cfg.source)
    decide: Callable[[Any], bool] | None = getattr(source, "remote", None)
    return decide(cfg) if decide else hasattr(source, "fetch_many")
