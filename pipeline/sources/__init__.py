"""Where objects come from. Adding a source is one file and one line here.

A source is a module with KIND ("object"), SAYS (its name for people), HOWTO (the flags that choose it), `items(cfg)`,
which lists and never downloads, and `fetch(item, folder)`, which gives the path of an item's file.
"""

import importlib
from types import ModuleType

SOURCES = {
    "procedural": "pipeline.sources.procedural",
    "local": "pipeline.sources.local",
}


def load(name: str) -> ModuleType:
    """The source's module. KeyError for a name that is not in SOURCES."""
    return importlib.import_module(SOURCES[name])


def others(name: str) -> str:
    """How to choose another source than `name`, in one line."""
    return "; ".join(f"{load(other).HOWTO} for {load(other).SAYS}" for other in SOURCES if other != name)
