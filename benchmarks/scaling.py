"""Whole runs with 1, 2, ... N workers, each on as many cores: does throughput grow with them?

    python benchmarks/scaling.py --workers 1 2

Every run is `lvsm-data render` as a user types it, held on k cores for k workers. Rates are between the k-th object and the
last one, so that the start of Ray and of the first Blenders does not count; efficiency is rate / (k x rate of one worker).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Options:
    """What to run."""

    workers: tuple[int, ...] = ()
    """Numbers of workers. Default: 1, 2, 4, ... up to the cores there are."""
    objects: int = 24
    """Procedural objects per worker."""
    res: int = 64
    """Image width."""
    views: int = 128
    """Views per object."""
    repeats: int = 3
    """Rounds through all numbers of workers; the best of each counts, because other work can only slow a run down."""


def rate(options: Options, workers: int, out: Path) -> float:
    """Objects per hour of one run, without its start."""
    cores = sorted(os.sched_getaffinity(0))[:workers]
    count = options.objects * workers
    command = [Path(sys.executable).with_name("lvsm-data"), "render", "--n", count, "--res", options.res]
    command += ["--views", options.views, "--workers", workers, "--out", out]
    subprocess.run(
        [str(part) for part in command],
        check=True,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    with contextlib.closing(sqlite3.connect(out / "ledger.sqlite")) as ledger:
        ended = [when for (when,) in ledger.execute("SELECT finished FROM item ORDER BY finished")]
    return 3600 * (len(ended) - workers) / (ended[-1] - ended[workers - 1])


def main() -> None:
    """Print a table."""
    options = tyro.cli(Options, description=__doc__)
    cores = len(os.sched_getaffinity(0))
    numbers = options.workers or tuple(2**k for k in range(cores.bit_length()) if 2**k <= cores)
    best = dict.fromkeys(numbers, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats):
            for workers in numbers:
                best[workers] = max(best[workers], rate(options, workers, Path(folder) / f"{repeat}-{workers}"))
    print(f"{'workers':>8}{'objects/h':>12}{'efficiency':>12}")
    for workers, found in best.items():
        print(f"{workers:8}{found:12.0f}{found * numbers[0] / workers / best[numbers[0]]:12.2f}")
    print(f"{options.res} px, {options.views} views, {cores} cores, {options.objects} objects per worker")


if __name__ == "__main__":
    main()
