"""How much longer than its slower half does a cycle take? Rendering on one core, training on another.

    python benchmarks/cycle.py --out data/overlap

Renders the objects alone on the first core, trains on them alone on the second, then does both at once as a cycle, each side on
its core. Passes are chosen so that both sides have as much to do. Prints a table in Markdown: seconds, and how many times as long
as the longer of the two the cycle took.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro

COMMAND = Path(sys.executable).with_name("lvsm-data")


@dataclass(frozen=True)
class Options:
    """What to render and to train on."""

    out: Path
    """Where it all goes; emptied first."""
    n: int = 200
    """Objects, of them 4 for validation."""
    res: int = 64
    """Width of the pictures."""
    views: int = 32
    """Views per object."""
    passes: int | None = None
    """How often each object is trained on. Default: so often that training takes as long as rendering, by a short trial."""
    batch: int = 8
    """Samples per step."""


def timed(command: list[object], core: int, trainer_core: int | None = None) -> float:
    """Seconds of a command on one core; its trainer, if it has one, goes to another."""
    begun = time.perf_counter()
    words = ["taskset", "-c", str(core), *map(str, command)]
    with subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        moved: set[int] = set()
        while process.poll() is None:
            if trainer_core is not None:
                moved |= move(process.pid, trainer_core, moved)
            time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{' '.join(words)} ended with {process.returncode}")
    return time.perf_counter() - begun


def move(pid: int, core: int, moved: set[int]) -> set[int]:
    """Gives the trainer of a cycle its own core; answers its process."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            if child.pid not in moved and "lvsm_train.cycle.trainer" in child.cmdline():
                for thread in child.threads():
                    os.sched_setaffinity(thread.id, {core})
                return {child.pid}
    return set()


def training(options: Options, data: Path, out: Path, steps: int, core: int) -> float:
    """Seconds of so many steps."""
    command = [COMMAND, "train", "--data", data, "--out", out, "--preset", "small", "--batch", options.batch]
    return timed([*command, "--steps", steps, "--eval-every", 0, "--checkpoint-every", 50, "--no-tensorboard"], core)


def main() -> None:
    """Print the table."""
    options = tyro.cli(Options, description=__doc__)
    first, second = sorted(os.sched_getaffinity(0))[:2]
    shutil.rmtree(options.out, ignore_errors=True)
    objects = options.n - 4
    share = ["--n", options.n, "--res", options.res, "--views", options.views, "--val-percent", 100 * 4 / options.n]
    rendering = timed([COMMAND, "render", *share, "--workers", 1, "--out", options.out / "render"], first)
    passes = options.passes
    if passes is None:
        short, longer = (
            training(options, options.out / "render", options.out / f"trial-{steps}", steps, second)
            for steps in (10, 40)
        )
        step_s = (longer - short) / 30
        passes = max(1, round((rendering - short) / step_s * options.batch / objects))
    steps = math.ceil(objects * passes / options.batch)
    alone = training(options, options.out / "render", options.out / "train", steps, second)
    command = [
        COMMAND,
        "cycle",
        *share,
        "--workers",
        1,
        "--train-threads",
        1,
        "--passes",
        passes,
        "--window",
        4,
    ]
    command += ["--data.batch", options.batch, "--train.eval-every", 0, "--train.checkpoint-every", 50]
    both = timed([*command, "--disk-budget", "2GB", "--out", options.out / "cycle"], first, second)
    audit = subprocess.run([COMMAND, "audit", options.out / "cycle", "--json"], stdout=subprocess.PIPE, check=True)
    assert json.loads(audit.stdout)["samples"] == objects * passes
    print("| | seconds | |\n|---|---|---|")
    print(f"| rendering alone, one core | {rendering:.0f} | {options.n} objects, {options.views} views |")
    print(f"| training alone, another | {alone:.0f} | {steps} steps, {passes} passes |")
    print(f"| the cycle, both | {both:.0f} | {both / max(rendering, alone):.2f} times the longer one |")


if __name__ == "__main__":
    main()
