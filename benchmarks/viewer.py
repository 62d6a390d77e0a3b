"""Does `view --serve` stay quick with 100,000 objects? Time until it answers, size and time of what a page asks for, memory.

    python benchmarks/viewer.py --objects 100000

Real shards and a real ledger, with pictures of 64 pixels of a few kinds; the server runs in this process. With Chromium: when the
page can be used, and its longest task while it is scrolled and filtered. With wrk: 64 clients at once.
"""

from __future__ import annotations

import contextlib
import http.client
import shutil
import subprocess
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
from pipeline.storage.shards import CAPTION
from pipeline.storage.writer import ShardWriter
from pipeline.viewer.gallery import Gallery
from pipeline.viewer.local_server import LocalServer
from tests.chromium import BROWSER, Tab, tab

RES, KINDS, PER_SHARD = 64, 64, 500
WORDS = ("chair", "table", "lamp", "car", "tree", "shoe", "house")
CLIENTS, SECONDS = 64, 10


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
    facts = {"config_hash": "0" * 16, "source": "objaverse"}
    writer = ShardWriter(out, (RES,), (CAPTION,), facts, 1e12)
    with Ledger(out / "ledger.sqlite") as ledger:
        for number in range(options.objects):
            own = item_rng(0, str(number), "viewer").random(3)
            meta = {"coverage": round(float(own[0]), 4), "contrast": round(float(50 * own[1]), 1), "black": 0.0}
            meta |= {"textured": bool(own[2] < 0.5), "animated": bool(own[0] < 0.1), "has_vertex_colors": False}
            meta |= {"polygons": int(10 ** (1 + 5 * own[1])), "materials": int(9 * own[2]), "visible": 1.0}
            chosen = [jpegs[(number + view) % KINDS] for view in range(options.views)]
            item = Item(
                f"{number:032x}",
                "objaverse",
                license="CC-BY-4.0",
                extra={CAPTION: f"a {WORDS[number % 7]} of kind {number}"},
            )
            one = Scene(item, poses, {RES: Views(chosen, k, (RES, RES))}, meta)
            ledger.record(Outcome(one.item, one), writer.add(one, "train", number // PER_SHARD)[0])
            if number % 20 == 0:
                ledger.record(Outcome(Item(f"lost-{number}", "objaverse"), None, "tiny", "it fills nothing"), None)
            if number % PER_SHARD == PER_SHARD - 1 or number == options.objects - 1:
                shard = writer.close("train")
                assert shard is not None
                ledger.add_shard(shard)


def in_browser(page: Tab) -> None:
    """Print how long the page is busy at the longest while people scroll, filter and sort."""
    for name, script in (
        ("scrolling", "scrollBy(0, 1500)"),
        ("jumping through the list", "scrollTo(0, Math.random() * document.body.scrollHeight)"),
        ("typing a word", "{ find.value = 'lamp'.slice(0, 1 + turn % 4); find.dispatchEvent(new Event('input')) }"),
        ("sorting", "{ sort.value = turn % 2 ? 'coverage' : 'polygons'; sort.dispatchEvent(new Event('change')) }"),
    ):
        watch = "const tasks = []; new PerformanceObserver(l => tasks.push(...l.getEntries())).observe({ type: 'longtask' });"
        parts = "const find = document.getElementById('find'), sort = document.getElementById('sort');"
        wait = "await new Promise(ends => setTimeout(ends, 60));"
        steps = f"for (let turn = 0; turn < 40; turn++) {{ {script}; {wait} }}"
        end = "await new Promise(ends => setTimeout(ends, 300)); return tasks.map(one => one.duration);"
        tasks = page.run(f"(async () => {{ {watch} {parts} {steps} {end} }})()")
        print(f"  {name:<26}{len(tasks)} tasks above 50 ms, at most {max(tasks, default=0):.0f} ms")
    page.run("document.getElementById('clear').click()")


def loaded(server: LocalServer, number: int, objects: int, scratch: Path) -> None:
    """Print what wrk says of CLIENTS clients that ask for pictures, objects and views at random."""
    script = scratch / "ask.lua"
    kinds = "local kinds = {'thumb/%d', 'object/%d', 'view/%d/0'}"
    ask = (
        f"return wrk.format('GET', '/{number}/' .. string.format(kinds[math.random(3)], math.random(0, {objects - 1})))"
    )
    script.write_text(f"{kinds}\nrequest = function() {ask} end\n")
    command = ["wrk", "-t2", f"-c{CLIENTS}", f"-d{SECONDS}s", "--timeout", "30s", "--latency", "-s", script, server.url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    told = [
        line.strip()
        for line in said.splitlines()
        if any(word in line for word in ("Requests/sec", "99%", "error", "Non-2xx"))
    ]
    print(f"{CLIENTS} clients of wrk: {'; '.join(' '.join(line.split()) for line in told)}")


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
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as open_ones:
        run = Path(scratch) / "run"
        run.mkdir()
        make(options, run)
        page = open_ones.enter_context(tab(Path(scratch), "--window-size=1280,900")) if BROWSER else None
        if page:
            page.open("about:blank")
        before = psutil.Process().memory_info().rss
        begun = time.perf_counter()
        gallery = Gallery(run)
        open_ones.callback(gallery.close)
        server = open_ones.enter_context(LocalServer(0, gallery.answer))
        server.begin()
        open_ones.callback(server.shutdown)
        print(f"{options.objects:,} objects: ready in {time.perf_counter() - begun:.2f} s")
        if page:
            page.open(server.url)
            page.wait("document.body.dataset.ready")
            print(f"can be used in Chromium {time.perf_counter() - begun:.2f} s after the start")
        measure(options, server, gallery.number)
        print(f"memory: {(psutil.Process().memory_info().rss - before) / 1e6:.0f} MB more than before")
        if page:
            in_browser(page)
        if shutil.which("wrk"):
            loaded(server, gallery.number, options.objects, Path(scratch))
        print(f"memory, after all: {(psutil.Process().memory_info().rss - before) / 1e6:.0f} MB more than before")


def measure(options: Options, server: LocalServer, number: int) -> None:
    """Print size and time of what the page asks for."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)

    def get(path: str) -> bytes:
        connection.request("GET", path)
        reply = connection.getresponse()
        body = reply.read()
        assert reply.status == 200, body
        return body

    base, rng = f"/{number}", np.random.default_rng(1)
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


if __name__ == "__main__":
    main()
