"""Unlimited objects without a download: item i of a seed is a recipe that Blender builds (blender_scripts/procedural.py).

In the spirit of Zeroverse (LRM-Zero, arXiv 2406.09371): compositions of primitives with cuts, displacement and wireframes.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.shared import Listing
from pipeline.core.records import Item, item_rng
from pipeline.download.fetch import Fetcher
from pipeline.sources import asked_for

SAYS = "procedural (embedded)"
UID = re.compile(r"procedural-\d+-\d{7,}")
HOWTO = "--source procedural"


def items(cfg: Listing, seed: int, net: Fetcher | None) -> Iterator[Item]:
    """Yield items without end, or those that --uids names. A uid names the seed: objects of different seeds never collide."""
    asked = asked_for(cfg)
    numbered = (f"procedural-{seed}-{index:07d}" for index in itertools.count())
    for uid in numbered if asked is None else sorted(filter(UID.fullmatch, asked)):
        yield Item(uid=uid, source="procedural", license="CC0-1.0")


def fetch(item: Item, folder: Path) -> Path:
    """Write the object's recipe: {"seed": int}, which depends on the uid alone."""
    path = folder / "object.procedural"
    seed = int(item_rng(0, item.uid, "procedural").integers(2**62))
    path.write_text(json.dumps({"seed": seed}))
    return path
