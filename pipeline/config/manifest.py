"""Flags of `manifest`: a reproducible list of objects."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.config.shared import Listing
from pipeline.core.errors import UserError


@dataclass(frozen=True)
class ManifestConfig(Listing):
    """A reproducible list of objects, without their files."""

    n: int = 1000
    """Lines to write; fewer where the source has no more."""
    seed: int = 0
    """Chooses the objects and their order; `render` with the same seed takes the same ones."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The file: .parquet, .csv or .jsonl. Default: manifests/SOURCE-N.parquet."""

    def resolved(self) -> ManifestConfig:
        """Fill in defaults. UserError where flags contradict each other."""
        listed = self.listed()
        if self.n < 1 or self.seed < 0:
            raise UserError("--n must be positive, --seed 0 or more", "for example --n 1000 --seed 0")
        out = self.out or Path("manifests") / f"{listed['source']}-{self.n}.parquet"
        if out.suffix not in (".parquet", ".csv", ".jsonl"):
            raise UserError(f"--out {out}: {out.suffix or 'no suffix'} is no manifest", "use .parquet, .csv or .jsonl")
        return dataclasses.replace(self, out=out.absolute(), **listed)
