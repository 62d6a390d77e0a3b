"""Flags of a cycle, and how its disk is divided."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pipeline.config.render import RenderConfig
from pipeline.config.shared import address_of, default_workers, folder_name
from pipeline.config.source_table import SOURCES
from pipeline.core.disk import disk_below
from pipeline.core.errors import UserError
from pipeline.core.text import size

UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
FREE_SHARE = 0.8  # of the free disk, as the default budget
RAW_SHARE = 0.2  # of the budget, at most, for downloads that wait to be rendered
# bytes of logs, ledger and pages: per run, and further bytes per object, training step and evaluation
PAPERS = 24e6
PER_OBJECT, PER_STEP, PER_LOOK = 1500, 300, 200_000
PER_WORKER = 8e6  # bytes of scratch per worker
LEAST_HELD = 8  # objects for validation, where this is at most a tenth of --n


@dataclass(frozen=True)
class CycleConfig(RenderConfig):
    """Render and train at once, on a disk that holds a part of the data."""

    disk_budget: str | None = None
    """Most disk that downloads, scratch, shards and checkpoints take together, for example 50GB. Default: 80 % of the free."""
    train_config: str = "small"
    """A preset of `train`, where the defaults of all --train, --model, --data, --loss and --optim flags come from."""
    passes: str = "auto"
    """How often each object is trained on. auto: as often as it takes for the trainer not to wait, up to --max-passes."""
    max_passes: int = 64
    """Most of --passes auto: more would learn a few objects by heart."""
    window: int = 8
    """Shards that are shuffled together, and on disk at once."""
    shard_objects: int | None = None
    """Objects per shard. Default: as many as fit into the budget --window times and some more."""
    train_threads: int | None = None
    """CPU cores of the trainer. Default: half of them where it trains on a CPU; --workers has the rest."""
    patient: ClassVar[bool] = True

    def resolved(self) -> Self:
        """Fill in defaults. UserError where flags contradict each other."""
        if self.passes != "auto" and (not self.passes.isdecimal() or int(self.passes) < 1):
            raise UserError(f"--passes {self.passes} is no number of passes", "--passes 8, or --passes auto")
        for name in ("max_passes", "window", "shard_objects", "train_threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value} is too small", "1 or more")
        if self.n < 2:
            raise UserError(f"--n {self.n} leaves nothing to train on", "one object at least is for validation")
        if self.scene.projection == "ortho":
            raise UserError(
                "LVSM's rays are those of pinholes: a cycle cannot train on orthographic views", "drop --projection"
            )
        if self.val_percent <= 0:
            raise UserError("a cycle keeps some objects to measure with", "--val-percent 1, for example")
        if self.retry_failed or self.keep_raw:
            raise UserError("--retry-failed and --keep-raw do not go with a cycle", "`lvsm-data render` has them")
        if address_of(self.out):
            raise UserError(
                f"--out {address_of(self.out)}: a cycle deletes what it has trained on, and needs a folder",
                "a folder; on a cluster one that the driver and the trainer's nodes share",
            )
        if self.disk_budget is not None:
            bytes_of(self.disk_budget)
        out = self.out or Path("cycles") / folder_name(self.source, self.scene.res)
        return RenderConfig.resolved(dataclasses.replace(self, out=out))

    def identity(self) -> dict[str, Any]:
        """JSON values that must not change for a cycle to go on in its folder; the disk budget may."""
        own = ("n", "passes", "max_passes", "window", "shard_objects")
        return super().identity() | {name: getattr(self, name) for name in own}

    @property
    def held_out(self) -> int:
        """Number of the --n objects kept for validation: --val-percent, raised to LEAST_HELD where that is at most a tenth."""
        wanted = max(1, min(LEAST_HELD, self.n // 10), round(self.n * self.val_percent / 100))
        return min(wanted, self.n - 1)

    @property
    def samples(self) -> float:
        """Samples to train on (objects times passes); of --passes auto, an estimate by `first_passes`."""
        return (self.n - self.held_out) * self.first_passes

    @property
    def first_passes(self) -> int:
        """Passes over shards closed before the pace of either side is known; over every shard if --passes is a number."""
        return max(1, self.max_passes // 4) if self.passes == "auto" else int(self.passes)

    def with_cores(self, trains_on_cpu: bool) -> CycleConfig:
        """Copy that divides this machine's cores between trainer and renderers; on a cluster, `workers` stays as given."""
        cores = len(os.sched_getaffinity(0))
        mine = self.train_threads or (max(1, cores // 2) if trains_on_cpu else None)
        workers = self.workers
        if workers is None and not self.address:
            workers = max(1, min((cores - (mine or 1)) // self.threads, default_workers(self.threads)))
        return dataclasses.replace(self, train_threads=mine, workers=workers)

    def within(self, shares: Shares) -> CycleConfig:
        """Limit downloads to `shares.raw`, in a copy; a larger file is left out, as too_large."""
        if not shares.raw:
            return self
        most_mb = min(self.max_file_mb, shares.raw / 1e6)
        return dataclasses.replace(self, raw_gb=shares.raw / 1e9, max_file_mb=most_mb)

    def budget(self) -> float:
        """Disk budget in bytes: --disk-budget, or FREE_SHARE of the disk that is free or used by the cycle."""
        assert self.out is not None
        if self.disk_budget is not None:
            return bytes_of(self.disk_budget)
        there = next(path for path in (self.out, *self.out.parents) if path.exists())
        used = disk_below(self.out) if self.out.exists() else 0
        return FREE_SHARE * (shutil.disk_usage(there).free + used)


@dataclass(frozen=True)
class PlanConfig(CycleConfig):
    """What a cycle with the same flags will take."""

    pilot: int = 20
    """Objects that are rendered to find out: at least one for each of the workers, and no more than --n."""

    def resolved(self) -> Self:
        """Fill in defaults. Raises UserError where flags contradict each other."""
        if self.pilot < 1:
            raise UserError(f"--pilot {self.pilot} would measure nothing", "for example --pilot 20")
        return super().resolved()


def bytes_of(text: str) -> float:
    """Parse a size: "50GB" -> 5e10; units are powers of 1000. Raises UserError."""
    match = SIZE.fullmatch(text.strip())
    if not match or not float(match[1]):
        raise UserError(f"--disk-budget {text} is no size", "for example --disk-budget 50GB")
    return float(match[1]) * UNITS[match[2].lower()]


@dataclass(frozen=True)
class Shares:
    """Division of a disk budget, in bytes. papers: ledger, logs, pictures, pages. raw: downloads that wait to be rendered."""

    total: float
    papers: float
    checkpoints: float
    raw: float
    scratch: float

    @property
    def shards(self) -> float:
        return self.total - self.papers - self.checkpoints - self.raw - self.scratch

    def line(self) -> str:
        """Format all shares as one line."""
        return f"disk: at most {size(self.total)} = shards {size(self.shards)}, {self.rest()}"

    def rest(self) -> str:
        """Format all shares but the shards'."""
        raw = f", downloads {size(self.raw)}" if self.raw else ""
        checkpoints, scratch, papers = (size(each) for each in (self.checkpoints, self.scratch, self.papers))
        return f"checkpoints {checkpoints}{raw}, scratch {scratch}, logs and pages {papers}"


def divide(cfg: CycleConfig, budget: float, checkpoints: float, steps: int, looks: int) -> Shares:
    """Divide a budget. checkpoints: bytes of the most at once. looks: evaluations. UserError if no disk is left."""
    papers = PAPERS + PER_OBJECT * cfg.n + PER_STEP * steps + PER_LOOK * looks
    here = SOURCES[cfg.source].fetched and not cfg.address  # cluster workers fetch to their own disks
    raw = min(cfg.raw_gb * 1e9, RAW_SHARE * budget) if here else 0.0
    scratch = PER_WORKER * (cfg.workers or os.cpu_count() or 1)
    shares = Shares(budget, papers, checkpoints, raw, scratch)
    if shares.shards <= 0:
        least = (papers + checkpoints + scratch) / (1 - RAW_SHARE if raw else 1)
        raise UserError(
            f"a disk budget of {size(budget)} leaves nothing for shards: {shares.rest()}",
            f"more than --disk-budget {math.ceil(least / 1e6)}MB, a smaller model, or --train.keep 1",
        )
    return shares
