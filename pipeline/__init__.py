"""Everything from a list of items to a finished shard, and `open` to read shards. Imports neither torch nor bpy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.dataset.opened import Dataset

__all__ = ["open"]


def open(run: Path | str, res: int | None = None, split: str | None = None, check: bool = False) -> Dataset:
    """Open a run to read its objects, as in `pipeline.open("data/demo")[0].images`.

    run: folder of a run or of one resolution, or an address (s3://BUCKET/RUN, hf:OWNER/NAME). res: width of the pictures, where
    there are several. split: "train" or "val" alone. check: compare what is read with its checksums.

    Raises UserError where there is nothing to read.
    """
    from pipeline.dataset.opened import Dataset  # not before it is needed: importing this package has to be fast

    return Dataset(run, res, split, check)
