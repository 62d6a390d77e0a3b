"""Intervals of 90 % for figures that were measured a few times; deterministic."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 4000
Z = 1.6449  # standard deviations around the mean that hold 90 % of a normal distribution
ONE_ONLY = 0.42  # standard deviation of the logarithm of a single measurement: half to double
BLOCKS = 50  # of consecutive steps, whose times are correlated


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
