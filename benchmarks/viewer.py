"""Does `view --serve` stay quick with 100,000 objects? Time until it answers, size and time of what a page asks for, memory.

    python benchmarks/viewer.py --objects 100000

Real shards and a real ledger, with pictures of 64 pixels of a few kinds; the server runs in this process.
"""

from __future__ import annotations

import http.client
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline.core import cameras, images
from pipeline.core.records import Item, Outcome, Scene, Views, item_rng
from pipeline.storage.ledger import Ledger
from pipeline.storage.writer import ShardWriter
from pipeline.viewer.gallery import Gallery
from pipeline.viewer.local_server import LocalServer

RES, KINDS, PER_SHARD = 64, 64, 500


@dataclass(frozen=True)
class Options:
    """What to look through."""

    objects: int = 100_000
    """Objects of the run."""
    views: int = 4
    """Views of each."""
    asked: int = 300
    """Pictures and objects that are asked for, at random."""


def make(options: Options, out: Path) -> None:
    """Write a finished run, with one failure for every twenty objects."""
    rng = np.random.default_rng(0)
    jpegs = [images.encode_jpeg(rng.integers(0, 256, (RES, RES, 3), np.uint8), 80) for _ in range(KINDS)]
    k = np.tile(cameras.intrinsics(50, (RES, RES)), (options.views, 1)).astype(np.float32)
    poses = cameras.sample("shell", rng, options.views)
    writer = ShardWriter(out, (RES,), (), {"config_hash": "0" * 16}, 1e12)
    with Ledger(out / "ledger.sqlite") as ledger:
        for number in range(options.objects):
            own = item_rng(0, str(number), "viewer").random(3)
            meta = {"coverage": float(own[0]), "contrast": float(50 * own[1]), "textured": bool(own[2] < 0.5)}
            chosen = [jpegs[(number + view) % KINDS] for view in range(options.views)]
            item = Item(f"{number:032x}", "objaverse", license="CC-BY-4.0")
            one = Scene(item, poses, {RES: Views(chosen, k, (RES, RES))}, meta)
            ledger.record(Outcome(one.item, one), writer.add(one, "train", number // PER_SHARD)[0])
            if number % 20 == 0:
                ledger.record(Outcome(Item(f"lost-{number}", "objaverse"), None, "tiny", "it fills nothing"), None)
            if number % PER_SHARD == PER_SHARD - 1 or number == options.objects - 1:
                shard = writer.close("train")
                assert shard is not None
                ledger.add_shard(shard)


def timed(act: Callable[[], object], count: int = 1) -> tuple[float, float]:
    """Median and longest time in milliseconds of `count` calls."""
    spent = []
    for _ in range(count):
        begun = time.perf_counter()
        act()
        spent.append(1000 * (time.perf_counter() - begun))
    return float(np.median(spent)), max(spent)


def main() -> None:
    """Print a table."""
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        run.mkdir()
        make(options, run)
        before = psutil.Process().memory_info().rss
        begun = time.perf_counter()
        gallery = Gallery(run)
        print(f"{options.objects:,} objects: ready in {time.perf_counter() - begun:.2f} s")
        with LocalServer(0, gallery.answer) as server:
            server.begin()
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port)

            def get(path: str) -> bytes:
                connection.request("GET", path)
                reply = connection.getresponse()
                body = reply.read()
                assert reply.status == 200, body
                return body

            base, rng = f"/{gallery.number}", np.random.default_rng(1)
            print(f"columns: {len(get(base + '/columns')) / 1e6:.1f} MB; page: {len(get('/')) / 1e3:.0f} kB")
            some = iter(rng.integers(options.objects, size=4 * options.asked + 9).tolist())
            for name, count, act in (
                ("page", 5, lambda: get("/")),
                ("columns, again", 5, lambda: get(f"{base}/columns")),
                ("picture of the gallery", options.asked, lambda: get(f"{base}/thumb/{next(some)}")),
                ("an object", options.asked, lambda: get(f"{base}/object/{next(some)}")),
                ("a view", options.asked, lambda: get(f"{base}/view/{next(some)}/0")),
            ):
                median, longest = timed(act, count)
                print(f"{name:<24}{median:8.2f} ms, at most {longest:.0f} ms")
            print(f"memory: {(psutil.Process().memory_info().rss - before) / 1e6:.0f} MB more than before")
            server.shutdown()
        gallery.close()


if __name__ == "__main__":
    main()
