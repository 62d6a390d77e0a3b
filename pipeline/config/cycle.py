"""Flags of a cycle, and how its disk is divided."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pipeline.config.clip import ClipConfig
from pipeline.config.render import RenderConfig
from pipeline.config.shared import Fetching, Running, address_of, default_workers, folder_name
from pipeline.config.source_table import AUTO, SOURCES
from pipeline.config.views import ImportConfig
from pipeline.core.disk import disk_below
from pipeline.core.errors import UserError
from pipeline.core.text import size

UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
FREE_SHARE = 0.8  # of the free disk, as the default budget
# of the budget, at most, for downloads that wait: of files of objects, and of what holds many items (archives, videos)
RAW_SHARE, RAW_SHARE_OF_MANY = 0.2, 0.5
# bytes of logs, ledger and pages: per run, and further bytes per object, training step and evaluation
PAPERS = 24e6
PER_OBJECT, PER_STEP, PER_LOOK = 1500, 300, 200_000
PER_WORKER = 8e6  # bytes of scratch per worker
GUESSED_VIEWS = 32  # of a scene whose source says how many there are
LEAST_HELD = 8  # objects for validation, where this is at most a tenth of --n


@dataclass(frozen=True)
class Cycling(Fetching, Running):
    """Flags of a cycle, whatever its source. Mixed into the config of the verb that would fill shards from this source alone."""

    if TYPE_CHECKING:  # of that verb's config
        source: Any = ""
        scene: Any = None

    disk_budget: str | None = None
    """Most disk that downloads, scratch, shards and checkpoints take together, for example 50GB. Default: 80 % of the free."""
    train_config: tuple[str, ...] = ("small",)
    """A preset of `train`, where the defaults of all --train, --model, --data, --loss and --optim flags come from. Several: a
    model of each, all on the same shards, each at its own width of --res."""
    passes: str = "auto"
    """How often each object is trained on. auto: as often as it takes for the trainer not to wait, up to --max-passes."""
    max_passes: int = 64
    """Most of --passes auto: more would learn a few objects by heart."""
    window: int = 8
    """Shards that are shuffled together, and on disk at once."""
    shard_objects: int | None = None
    """Objects per shard. Default: as many as fit into the budget --window times and some more."""
    train_threads: int | None = None
    """CPU cores of each trainer. Default: half of them for all, where they train on a CPU; --workers has the rest."""
    patient: ClassVar[bool] = True

    def resolved(self) -> Self:
        """Fill in defaults. UserError where flags contradict each other."""
        if self.passes != "auto" and (not self.passes.isdecimal() or int(self.passes) < 1):
            raise UserError(f"--passes {self.passes} is no number of passes", "--passes 8, or --passes auto")
        for name in ("max_passes", "window", "shard_objects", "train_threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value} is too small", "1 or more")
        if len(set(self.train_config)) < len(self.train_config) or not self.train_config:
            raise UserError(f"--train-config {' '.join(self.train_config)} is no choice of presets", "each once")
        if self.n < 2:
            raise UserError(f"--n {self.n} leaves nothing to train on", "one object at least is for validation")
        if getattr(self.scene, "projection", "") == "ortho":
            raise UserError(
                "LVSM's rays are those of pinholes: a cycle cannot train on orthographic views", "drop --projection"
            )
        if getattr(self.scene, "crop", "square") == "none":
            raise UserError("--crop none leaves pictures of many shapes, and a cycle trains on one", "--crop square")
        if getattr(self.scene, "height_crop", None) == 0:
            raise UserError(
                "--height-crop 0 leaves pictures of many shapes, and a cycle trains on one", "--height-crop 36"
            )
        if self.source == AUTO:
            raise UserError("a cycle has to know its source", f"--source {' | '.join(SOURCES)}")
        if self.val_percent <= 0:
            raise UserError("a cycle keeps some objects to measure with", "--val-percent 1, for example")
        if getattr(self, "report", False):
            raise UserError("--report makes no cycle", "`lvsm-data clip --report` has it")
        if self.keep_raw:
            raise UserError("--keep-raw does not go with a cycle, whose disk is limited", "`lvsm-data render` has it")
        if address_of(self.out):
            raise UserError(
                f"--out {address_of(self.out)}: a cycle deletes what it has trained on, and needs a folder",
                "a folder; on a cluster one that the driver and the trainer's nodes share",
            )
        if self.disk_budget is not None:
            bytes_of(self.disk_budget)
        out = self.out or Path("cycles") / folder_name(self.source, self.scene.res)
        made: Self = super(Cycling, dataclasses.replace(self, out=out)).resolved()  # type: ignore[misc]
        return made

    def identity(self) -> dict[str, Any]:
        """JSON values that must not change for a cycle to go on in its folder; the disk budget may."""
        own = ("n", "passes", "max_passes", "window", "shard_objects")
        made: dict[str, Any] = super().identity()  # type: ignore[misc]
        several = {"train_config": list(self.train_config)} if len(self.train_config) > 1 else {}
        return made | {name: getattr(self, name) for name in own} | several

    @property
    def pixels(self) -> float:
        """Pixels that an item is expected to have in shards, all widths and views together: a guess where its source decides."""
        views = getattr(self.scene, "pictures", None) or self.scene.views or GUESSED_VIEWS
        return float(views * sum(width * self.height(width) for width in self.scene.res))

    def height(self, width: int) -> int:
        """Rows of the stored images of a width."""
        return round(width * getattr(self.scene, "rows", max(self.scene.res)) / max(self.scene.res))

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

    def with_cores(self, trains_on_cpu: bool) -> Self:
        """Copy that divides this machine's cores between trainer and renderers; on a cluster, `workers` stays as given."""
        cores = len(os.sched_getaffinity(0))
        trainers = len(self.train_config)
        mine = self.train_threads or (max(1, cores // 2 // trainers) if trains_on_cpu else None)
        workers = self.workers
        if workers is None and not self.address:
            rest = cores - trainers * (mine or 1)
            workers = max(1, min(rest // self.threads, default_workers(self.threads)))
        return dataclasses.replace(self, train_threads=mine, workers=workers)

    def within(self, shares: Shares) -> Self:
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
class CycleConfig(Cycling, RenderConfig):
    """Render and train at once, on a disk that holds a part of the data."""


@dataclass(frozen=True)
class ImportCycleConfig(Cycling, ImportConfig):
    """Take views that exist already and train at once, on a disk that holds a part of the data."""


@dataclass(frozen=True)
class ClipCycleConfig(Cycling, ClipConfig):
    """Cut clips out of videos and train at once, on a disk that holds a part of the data."""


AnyCycle = CycleConfig | ImportCycleConfig | ClipCycleConfig
CYCLES: dict[str, type[AnyCycle]] = {"object": CycleConfig, "posed": ImportCycleConfig, "video": ClipCycleConfig}


@dataclass(frozen=True)
class Planning(Cycling):
    """Flags of `plan` beside those of the cycle that is planned."""

    pilot: int = 20
    """Objects that are made to find out: at least one for each of the workers, and no more than --n."""

    def resolved(self) -> Self:
        """Fill in defaults. Raises UserError where flags contradict each other."""
        if self.pilot < 1:
            raise UserError(f"--pilot {self.pilot} would measure nothing", "for example --pilot 20")
        return super().resolved()


@dataclass(frozen=True)
class PlanConfig(Planning, CycleConfig):
    """What a cycle with the same flags will take."""


@dataclass(frozen=True)
class ImportPlanConfig(Planning, ImportCycleConfig):
    """What a cycle of existing views with the same flags will take."""


@dataclass(frozen=True)
class ClipPlanConfig(Planning, ClipCycleConfig):
    """What a cycle of clips with the same flags will take."""


AnyPlan = PlanConfig | ImportPlanConfig | ClipPlanConfig
PLANS: dict[str, type[AnyPlan]] = {"object": PlanConfig, "posed": ImportPlanConfig, "video": ClipPlanConfig}


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


def divide(cfg: AnyCycle, budget: float, checkpoints: float, steps: int, looks: int, fetches: bool = True) -> Shares:
    """Divide a budget. checkpoints: bytes of the most at once. looks: evaluations. fetches: files of sources whose files are
    fetched, or unpacked, do come to the disk first. UserError if no disk is left.
    """
    papers = PAPERS + PER_OBJECT * cfg.n + PER_STEP * steps + PER_LOOK * looks
    source = SOURCES[cfg.source]
    fetches = fetches and (source.fetched or source.kind == "posed")
    here = fetches and not cfg.address  # cluster workers fetch to their own disks
    share = RAW_SHARE if source.kind == "object" else RAW_SHARE_OF_MANY
    raw = min(cfg.raw_gb * 1e9, share * budget) if here else 0.0
    scratch = PER_WORKER * (cfg.workers or os.cpu_count() or 1)
    shares = Shares(budget, papers, checkpoints, raw, scratch)
    if shares.shards <= 0:
        least = (papers + checkpoints + scratch) / (1 - share if raw else 1)
        raise UserError(
            f"a disk budget of {size(budget)} leaves nothing for shards: {shares.rest()}",
            f"more than --disk-budget {math.ceil(least / 1e6)}MB, a smaller model, or --train.keep 1",
        )
    return shares
