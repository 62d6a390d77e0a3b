"""Do renderers wait for downloads? The same objects from this disk, and from a host that takes its time.

    python benchmarks/downloads.py

A server on loopback gives every file at a fixed rate per connection. Three runs of `lvsm-data render` in turn: files on this
disk (what renderers can do at most), downloads ahead as by default, and one download at a time. Rates are between the
first objects and the last ones, so that the start of Ray and of the first Blenders does not count.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import trees
from tests.hub import Hub


@dataclass(frozen=True)
class Options:
    """What to run."""

    objects: int = 60
    """Objects per run."""
    file_mb: float = 2.0
    """Size of each file."""
    connection_mb_s: float = 1.0
    """What the host gives to one connection."""
    res: int = 64
    """Image width."""
    views: int = 32
    """Views per object."""
    repeats: int = 3
    """Rounds; the median counts."""


def make(options: Options, folder: Path) -> None:
    """The files, below what the server shows."""
    folder.mkdir(parents=True)
    for number in range(options.objects):
        data, padding = trees.glb(number), int(options.file_mb * 1e6)
        data += struct.pack("<I4s", padding, b"NOTE") + bytes(padding)  # a chunk that nobody reads
        (folder / f"{number}.glb").write_bytes(data[:8] + struct.pack("<I", len(data)) + data[12:])


def rate(options: Options, manifest: Path, out: Path, *flags: str) -> float:
    """Objects per hour of one run, without its start."""
    command = [str(Path(sys.executable).with_name("lvsm-data")), "render", "--manifest", str(manifest), *flags]
    command += [
        "--license",
        "any",
        "--n",
        str(options.objects),
        "--res",
        str(options.res),
        "--views",
        str(options.views),
    ]
    command += ["--max-file-mb", str(options.file_mb + 1), "--out", str(out), "--cache", str(out / "cache")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with contextlib.closing(sqlite3.connect(out / "ledger.sqlite")) as ledger:
        ended = [when for (when,) in ledger.execute("SELECT finished FROM item ORDER BY finished")]
    skipped = len(os.sched_getaffinity(0))
    return 3600 * (len(ended) - 1 - skipped) / (ended[-1] - ended[skipped])


def main() -> None:
    """Print a table."""
    options = tyro.cli(Options, description=__doc__)
    rates: dict[str, list[float]] = {"on this disk": [], "downloads ahead": [], "one at a time": []}
    with tempfile.TemporaryDirectory() as scratch, Hub(Path(scratch) / "root") as hub:
        folder = Path(scratch)
        make(options, folder / "root/www")
        hub.fault(".glb", "slow", times=None, rate=options.connection_mb_s * 1e6)
        for name, prefix in (("disk", folder / "root/www"), ("web", hub.url)):
            lines = [f"{number},{prefix}/{number}.glb\n" for number in range(options.objects)]
            (folder / f"{name}.csv").write_text("uid,url\n" + "".join(lines))
        ways = {
            "on this disk": ("disk",),
            "downloads ahead": ("web",),
            "one at a time": ("web", "--downloads", "1"),
        }
        for repeat in range(options.repeats):
            for name, (manifest, *flags) in ways.items():
                out = folder / f"out-{repeat}-{name.replace(' ', '-')}"
                rates[name].append(rate(options, folder / f"{manifest}.csv", out, *flags))
    most = statistics.median(rates["on this disk"])
    print(f"{options.objects} objects of {options.file_mb:g} MB, {options.connection_mb_s:g} MB/s per connection")
    for name, found in rates.items():
        middle = statistics.median(found)
        print(f"{name:<18}{middle:8.0f} objects/h{middle / most:8.2f} of what the renderers can do")


if __name__ == "__main__":
    main()
