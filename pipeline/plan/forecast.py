"""Forecast of a cycle from a pilot's measurements: hours, bytes, steps, as intervals of 90 %; deterministic."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.config.cycle import PER_LOOK, PER_OBJECT, PER_STEP, AnyCycle, Shares
from pipeline.cycle.open_shards import AT_ONCE, VAL_OBJECTS, objects_per_shard, with_caution

DRAWS = 4000
Z = 1.6449  # standard deviations around the mean that hold 90 % of a normal distribution
ONE_ONLY = 0.42  # standard deviation of the logarithm of a single measurement: half to double
BLOCKS = 50  # of consecutive steps, whose times are correlated
DRIFT = 0.1  # standard deviation of the logarithm of a machine's speed from day to day
PER_FILE = 6000  # bytes of a shard's file without its objects
ALIKE = 1.15  # ratio of two sides' times below which neither is the bottleneck


@dataclass(frozen=True)
class Range:
    """Interval that holds a value with 90 %, from low to high, and the likely value."""

    low: float
    likely: float
    high: float

    @classmethod
    def of(cls, likely: float, draws: np.ndarray) -> Range:
        """Range of plausible values (D,) around the likely one."""
        low, high = np.quantile(draws, (0.05, 0.95)).tolist()
        return cls(min(low, likely), likely, max(high, likely))


def wilson(good: int, count: int) -> Range:
    """Range of a share of which `good` in `count` were seen: Wilson's score interval, 90 %."""
    share, z = good / count, Z**2 / count
    centre = (share + z / 2) / (1 + z)
    half = Z / (1 + z) * math.sqrt(share * (1 - share) / count + z / (4 * count))
    return Range(max(0.0, min(share, centre - half)), share, min(1.0, max(share, centre + half)))


def means(values: Sequence[float], name: str, future: float = math.inf) -> np.ndarray:
    """Plausible means (DRAWS,) of `future` further values, from the seen `values`: a bootstrap, seeded by `name`.

    A bootstrap of few values is too narrow, and is widened like the t distribution (Hesterberg 2015). values: 0 or more.
    """
    seen, rng = np.asarray(values, float), np.random.default_rng(zlib.crc32(name.encode()))
    mean, count = float(seen.mean()), len(seen)
    if not mean:
        return np.zeros(DRAWS)
    if count == 1:
        return mean * np.exp(ONE_ONLY * rng.standard_normal(DRAWS))
    degrees = count - 1
    t = Z + (Z**3 + Z) / (4 * degrees) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * degrees**2)
    made = rng.choice(seen, (DRAWS, count)).mean(1) / mean
    chance = seen.std() / mean / math.sqrt(max(1.0, future)) * rng.standard_normal(DRAWS)
    drawn: np.ndarray = mean * made ** (t / Z * math.sqrt(count / degrees)) * np.exp(chance)
    return drawn


def in_blocks(values: Sequence[float]) -> list[float]:
    """Means of up to BLOCKS stretches of a series: correlated neighbours count once."""
    return [float(part.mean()) for part in np.array_split(np.asarray(values, float), min(BLOCKS, len(values)))]


def normal(name: str) -> np.ndarray:
    """Draws (DRAWS,) from the standard normal distribution, seeded by `name`."""
    drawn: np.ndarray = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(DRAWS)
    return drawn


@dataclass(frozen=True)
class Drawn:
    """Outcome of one object of the pilot. seconds: of a worker, without Blender's start. fetched: bytes of downloaded files.

    beside: True if a trainer worked at the same time.
    """

    delivered: bool
    seconds: float
    fetched: int
    jpeg_bytes: int
    beside: bool = True


@dataclass(frozen=True)
class Measurements:
    """Measurements of a pilot.

    start_s: until the first worker has an object and a Blender. idle_share: share of the workers' time spent waiting for files.
    shard_bytes: of `shards` shards with all delivered objects. step_s: of each step but the first. samples: per step and rank.
    train_start_s: from the trainer's start to the end of the first step. save_s, checkpoint_bytes: per checkpoint. look_s: of an
    evaluation on held-out objects, per object; 0 without evaluations. fetch_s: seconds between the arrivals of two items' files,
    [] where none are fetched here; least_fetch_s: fewer than that no item can take for long.
    """

    drawn: list[Drawn]
    reasons: dict[str, int]
    licenses: dict[str, int]
    workers: int
    start_s: float
    seconds: float
    idle_share: float
    shard_bytes: int
    shards: int
    step_s: list[float] = field(default_factory=list)
    samples: int = 1
    train_start_s: float = 0.0
    save_s: float = 0.0
    checkpoint_bytes: int = 0
    look_s: float = 0.0
    fetch_s: list[float] = field(default_factory=list)
    least_fetch_s: float = 0.0

    @property
    def delivered(self) -> int:
        return sum(one.delivered for one in self.drawn)


class Forecast:
    """Forecast of a cycle from a pilot. Each of `figures` is an array of plausible values, the likely value first.

    of_each: objects per shard. Raises UserError where the window does not fit into the budget.
    """

    def __init__(self, cfg: AnyCycle, shares: Shares, settings: dict[str, Any], found: Measurements) -> None:
        self.cfg, self.shares, self.settings, self.found = cfg, shares, settings, found
        self.held_out = cfg.held_out
        self.train = cfg.n - self.held_out
        self.file_bytes = PER_FILE * len(cfg.scene.res)
        self.object_bytes = max(1.0, found.shard_bytes - found.shards * self.file_bytes) / found.delivered
        held_bytes = self.held_out * self.object_bytes + -(-self.held_out // VAL_OBJECTS) * self.file_bytes
        expected = with_caution(self.held_out, held_bytes)
        self.of_each = objects_per_shard(cfg, shares.shards - held_bytes, expected, self.train)
        self.slots = -(-self.train // self.of_each)
        self.yields = wilson(found.delivered, len(found.drawn))
        self.figures = self._figures()

    def _first(self, values: Sequence[float], name: str, future: float = math.inf, drift: float = 0.0) -> np.ndarray:
        return np.concatenate(
            [[np.mean(values)], means(values, name, future) * np.exp(drift * normal(f"{name} drift"))]
        )

    def _seconds(self, delivered: bool) -> list[float]:
        """Seconds of each (not) delivered object; if any ran beside a trainer, which slows rendering, of these alone."""
        some = [one for one in self.found.drawn if one.delivered == delivered]
        return [one.seconds for one in some if one.beside] or [one.seconds for one in some]

    def _object_s(self) -> np.ndarray:
        """Seconds of a worker per delivered object, including the failed objects per delivered one."""
        good, bad = self._seconds(True), self._seconds(False)
        count, likely = self.found.delivered, self.yields.likely
        beta = np.random.default_rng(0).beta(count + 0.5, len(self.found.drawn) - count + 0.5, DRAWS)
        failures = 1 / np.concatenate([[likely], beta]) - 1
        lost = failures * self._first(bad or good, "failed", drift=DRIFT)
        made: np.ndarray = self._first(good, "delivered", self.cfg.n, DRIFT) + lost
        return made

    def _figures(self) -> dict[str, np.ndarray]:
        found, settings, train = self.found, self.settings, self.train
        gives = self.yields.likely, self.yields.low, self.yields.high
        drawn = self.cfg.n / np.concatenate([gives[:1], np.linspace(*gives[1:], DRAWS)])
        worked_s, fetched_s = self._object_s() / found.workers, self._fetched_s() * drawn / self.cfg.n
        object_s = np.maximum(worked_s, fetched_s)
        blocks = in_blocks(found.step_s)
        future = self.cfg.samples / found.samples * len(blocks) / len(found.step_s)
        step_s = self._first(blocks, "steps", future, DRIFT)
        at_once = found.samples * max(1, settings["ranks"], settings["ray_workers"])  # samples per step
        early = np.minimum(train, self.of_each * (1 + np.floor(found.train_start_s / object_s / self.of_each)))
        passes = self._passes(at_once / step_s * object_s)
        samples = early * self.cfg.first_passes + (train - early) * passes
        steps = np.ceil(samples / at_once)
        saves = steps / settings["checkpoint_every"] + self.slots
        train_s = steps * step_s + saves * found.save_s
        looks = steps // settings["eval_every"] + 1 if settings["eval_every"] else 0 * steps
        look_s = looks * min(settings["eval_objects"], self.held_out) * found.look_s
        first = (self.held_out + min(self.of_each, train)) * object_s
        tail = min(self.cfg.window, self.slots) / 2 * self.of_each * passes * step_s / at_once
        rest = np.maximum((train - self.of_each) * object_s + tail, found.train_start_s + train_s + look_s)
        fetched = self._first([one.fetched for one in found.drawn], "fetched", self.cfg.n)
        sizes = [one.jpeg_bytes for one in found.drawn if one.delivered]
        of_object = self.object_bytes / np.mean(sizes) * self._first(sizes, "sizes", self.cfg.n)
        return {
            "objects_drawn": drawn,
            "download_hours": self.cfg.n * fetched_s / 3600,
            "render_hours": self.cfg.n * worked_s / 3600,
            "train_hours": train_s / 3600,
            "look_hours": look_s / 3600,
            "hours": (found.start_s + first + rest) / 3600,
            "downloaded_gb": drawn * fetched / 1e9,
            "shards_gb": (self.cfg.n * of_object + self._files() * self.file_bytes) / 1e9,
            "peak_disk_gb": self._peak(of_object, steps, looks, train_s > train * object_s, fetched) / 1e9,
            "passes": passes,
            "samples": samples,
            "steps": steps,
        }

    def _fetched_s(self) -> np.ndarray:
        """Seconds from one item's files to the next one's, 0 where none are fetched here."""
        if not self.found.fetch_s:
            return np.zeros(1 + DRAWS)
        made: np.ndarray = np.maximum(self._first(self.found.fetch_s, "fetching", self.cfg.n), self.found.least_fetch_s)
        return made

    def _files(self) -> int:
        return self.slots + -(-self.held_out // VAL_OBJECTS)

    def _passes(self, samples_per_object: np.ndarray) -> np.ndarray:
        """Passes that keep the trainer busy. samples_per_object: samples trained on while one object is rendered."""
        if self.cfg.passes != "auto":
            return np.full(samples_per_object.shape, float(self.cfg.passes))
        made: np.ndarray = np.clip(np.ceil(samples_per_object), 1, self.cfg.max_passes)
        return made

    def _peak(
        self, of_object: np.ndarray, steps: np.ndarray, looks: np.ndarray, piles_up: np.ndarray, fetched: np.ndarray
    ) -> np.ndarray:
        """Peak disk in bytes. piles_up: True where training is slower, so that shards fill their share of the disk.

        The numbers of checkpoints and shards at the peak are drawn between those that stay and the most that can exist.
        """
        cfg, shares, settings = self.cfg, self.shares, self.settings
        chance = np.concatenate([[0.35], np.random.default_rng(1).uniform(0, 1, DRAWS)])
        files = np.minimum(settings["keep"] + np.round(3 * chance), 1 + steps // settings["checkpoint_every"])
        papers = chance * (PER_OBJECT * cfg.n + PER_STEP * steps + PER_LOOK * looks)
        most = np.minimum(shares.shards, cfg.n * of_object + self._files() * self.file_bytes)
        at_once = (cfg.window + AT_ONCE * chance) * (self.of_each * of_object + self.file_bytes)
        shards = np.where(piles_up, most, np.minimum(most, self.held_out * of_object + at_once))
        raw = np.minimum(shares.raw, 2 * cfg.downloads * fetched)
        made: np.ndarray = np.minimum(shares.total, files * self.found.checkpoint_bytes + papers + shards + raw)
        return made

    def ranges(self) -> dict[str, Range]:
        """Range of each figure, by name, in the order of WORDS."""
        made = {name: Range.of(float(draws[0]), draws[1:]) for name, draws in self.figures.items()}
        return {"yield_share": self.yields} | made

    def bottleneck(self) -> str:
        """Slower side: "downloading", "rendering", "training", "neither" (about equal) or "either" (cannot be told)."""
        render, fetch = self.figures["render_hours"], self.figures["download_hours"]
        apart = (self.figures["train_hours"] + self.figures["look_hours"]) / np.maximum(render, fetch)
        ratio = Range.of(float(apart[0]), apart[1:])
        if ratio.low > ALIKE:
            return "training"
        if ratio.high < 1 / ALIKE:
            return "downloading" if fetch[0] > render[0] else "rendering"
        return "neither" if ratio.high < ALIKE**2 and ratio.low > ALIKE**-2 else "either"
