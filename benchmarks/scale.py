"""Millions of items through one driver: does its memory stay flat, and how many does it schedule per second?

    python benchmarks/scale.py --n 10000000 --kill-at 0.5 --out /tmp/scale

A real run from a manifest of so many lines: source, selection, actors of Ray, journals, shards and ledger are real. Only the
worker is not: it sleeps instead of rendering, and answers with a scene of small JPEGs or, for some, with a reason; and nothing
is downloaded. With --kill-at the driver is killed (SIGKILL) there, and another session goes on. In the end every uid has to stand
in the ledger once, and every delivered one in the shards once.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline.config.render import RenderConfig, SceneConfig
from pipeline.config.source_table import SOURCES
from pipeline.core.images import encode_jpeg
from pipeline.core.records import Item, Outcome, Scene, Views
from pipeline.core.text import duration, size
from pipeline.run.driver import Driver, Intake, Workers, opened
from pipeline.run.policy import ArrivalOrder, Session
from pipeline.sources import manifest
from pipeline.storage.ledger import Ledger
from pipeline.storage.shards import shard_paths
from pipeline.storage.uploads import InFolder

WIDTH = 16  # of the pictures
LINES = 1 << 18  # of the manifest, made at once
REASONS = ("tiny", "empty", "timeout", "import_failed")
CURVE = (
    "curve.csv"  # of all sessions: session, seconds since its process began, items that have ended, bytes of the driver
)
STARTED = "started.json"  # seconds of a session until it has opened its folder, has drawn an item, has scheduled one
HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


@dataclass(frozen=True)
class Options:
    """What to run."""

    n: int = 100_000
    """Lines of the manifest."""
    out: Path = Path("/tmp/lvsm-scale")
    """Where it all goes; emptied first and last."""
    workers: int = 8
    """Actors. They sleep, so that they may be more than there are cores."""
    nodes: int = 0
    """Ray nodes on this machine, with so many workers together. 0: a private Ray, as without --address."""
    render_ms: float = 1.0
    """What a render takes."""
    fail_percent: float = 10.0
    """How many items fail."""
    views: int = 1
    """Views of each delivered one."""
    shard_mb: float = 4.0
    """Images per shard."""
    kill_at: float | None = None
    """Kill the driver when this share of the items has ended, then go on."""
    keep: bool = False
    """Leave everything in --out."""
    json: bool = False
    """Print JSON instead of a table."""
    session: int | None = None
    """Internal: be the driver of this session."""
    address: str | None = None
    """Internal: of its cluster."""


# ---- the manifest


def write_manifest(path: Path, count: int) -> None:
    """Lines with uids and sums that look random, and addresses as Objaverse-XL has them."""
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(
        path, pa.schema([(name, pa.string()) for name, kind in manifest.COLUMNS if kind is str])
    ) as sink:
        for start in range(0, count, LINES):
            rows = min(LINES, count - start)
            uids, titles = _hex(rng, rows, 32), _hex(rng, rows, 12)
            urls = pc.binary_join_element_wise("https://github.com/some/models/blob", _hex(rng, rows, 40), titles, "/")
            urls = pc.binary_join_element_wise(urls, "glb", ".")
            columns = {"uid": uids, "url": urls, "sha256": _hex(rng, rows, 64), "title": titles, "page": urls}
            columns |= {"file_identifier": urls}
            same = {"source": "github", "license": "CC-BY-4.0", "file_type": "glb", "author": "somebody"}
            columns |= {name: pa.repeat(value, rows) for name, value in same.items()}
            sink.write_table(pa.table(columns).select(sink.schema.names))


def _hex(rng: np.random.Generator, rows: int, digits: int) -> pa.Array:
    data = pa.py_buffer(HEX[rng.integers(0, 16, (rows, digits), dtype=np.uint8)])
    offsets = pa.py_buffer(np.arange(0, (rows + 1) * digits, digits, dtype=np.int32))
    return pa.Array.from_buffers(pa.string(), rows, [None, offsets, data])


# ---- the driver


class Sleeper:
    """A worker that takes as long as it is told."""

    def __init__(self, render_s: float, fail_percent: float, views: int) -> None:
        self.render_s, self.fail_percent, self.views = render_s, fail_percent, views
        rng = np.random.default_rng(0)
        self.jpegs = [encode_jpeg(rng.integers(0, 256, (WIDTH, WIDTH, 3), dtype=np.uint8), 50) for _ in range(views)]
        self.c2w = np.tile(np.eye(4, dtype=np.float32), (views, 1, 1))
        self.fxfycxcy = np.tile(np.array([WIDTH, WIDTH, WIDTH / 2, WIDTH / 2], np.float32), (views, 1))

    def __call__(self, item: Item) -> Outcome:
        """A scene of small JPEGs, or a reason: which of them hangs on the uid."""
        time.sleep(self.render_s)
        timings = {"render": self.render_s, "total": self.render_s}
        draw = zlib.crc32(item.uid.encode())
        if draw % 10_000 < 100 * self.fail_percent:
            return Outcome(
                item, None, REASONS[draw % len(REASONS)], "as it was told", worker="scale:1", timings=timings
            )
        by_width = {WIDTH: Views(self.jpegs, self.fxfycxcy, (WIDTH, WIDTH))}
        return Outcome(item, Scene(item, self.c2w, by_width, {"faces": draw}), worker="scale:1", timings=timings)

    def ahead(self, items: list[Item]) -> None:
        """Nothing to fetch."""

    def close(self) -> None:
        """Nothing to end."""


class Notes:
    """How a session of a run whose workers sleep goes: when it started, and a curve of what has ended."""

    def __init__(self, options: Options, out: Path) -> None:
        self.options, self.out = options, out
        self.began = psutil.Process().create_time()
        self.started = {"opened": self._seconds()}
        self.ending = threading.Event()

    def _seconds(self) -> float:
        return time.time() - self.began

    def note(self, what: str) -> None:
        """Note that the session is so far now."""
        self.started[what] = self._seconds()
        (self.out / f"{self.options.session}-{STARTED}").write_text(json.dumps(self.started))

    def sample(self, session: Session) -> None:
        """Append a line to the curve every second, until the session ends."""
        while not self.ending.wait(1):
            self.append(session)

    def append(self, session: Session) -> None:
        """Append a line to the curve."""
        rss = psutil.Process().memory_info().rss
        with (self.out / CURVE).open("a", newline="") as sink:
            csv.writer(sink).writerow(
                [self.options.session, f"{self._seconds():.2f}", sum(session.counts.values()), rss]
            )


class Noting(Workers):
    """Workers that sleep, and note when the first of them has an item."""

    def __init__(self, session: Session, notes: Notes) -> None:
        one = notes.options
        super().__init__(session, make=functools.partial(Sleeper, one.render_ms / 1000, one.fail_percent, one.views))
        self.notes = notes

    def outcomes(self, items: Iterator[Item | None], started: Callable[[int, Item], None]) -> Iterator[Outcome]:
        """Their outcomes. Of a session to be killed, until so many items have ended: then this process is."""

        def first(worker: int, item: Item) -> None:
            if "scheduled" not in self.notes.started:
                self.notes.note("scheduled")
            started(worker, item)

        self.notes.append(self.session)
        threading.Thread(target=self.notes.sample, args=(self.session,), daemon=True).start()
        self.notes.note("drawn")
        options = self.notes.options
        for outcome in super().outcomes(items, first):
            if options.kill_at is not None and sum(self.session.counts.values()) >= options.kill_at * options.n:
                self.notes.append(self.session)
                os.kill(os.getpid(), signal.SIGKILL)
            yield outcome


def drive(options: Options) -> None:
    """One session of the run, in this process."""
    listed = ModuleType("listed")  # the real list, but nothing is fetched
    vars(listed).update(
        {name: getattr(manifest, name) for name in ("SAYS", "HOWTO", "LEAVES_OUT", "items")}, remote=lambda cfg: False
    )
    sys.modules["listed"] = listed
    SOURCES["manifest"] = dataclasses.replace(SOURCES["manifest"], module="listed")
    scene = SceneConfig(res=(WIDTH,), views=options.views)
    cfg = RenderConfig(
        n=options.n,
        manifest=options.out / "manifest.parquet",
        out=options.out / "run",
        workers=options.workers,
        shard_mb=options.shard_mb,
        address=options.address,
        scene=scene,
    ).resolved()
    assert cfg.out is not None
    with opened(cfg) as ledger:
        notes, sink = Notes(options, cfg.out), InFolder()
        policy = ArrivalOrder(cfg, ledger, sink)
        notes.started["joined"] = notes._seconds()
        Driver(policy, sink, Intake(policy.session), Noting(policy.session, notes)).go()
        notes.ending.set()
        notes.append(policy.session)


# ---- from outside


def session(options: Options, number: int, address: str | None, kill_at: float | None = None) -> None:
    """Run a session to its end, or until that share of the items has ended and it is killed."""
    shared = ("n", "out", "workers", "render_ms", "fail_percent", "views", "shard_mb")
    flags = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in shared]
    more = {"--address": address, "--kill-at": kill_at}
    flags += [f"{name}={value}" for name, value in more.items() if value is not None]
    with (options.out / "log.txt").open("a") as log:
        command = [sys.executable, __file__, *flags, f"--session={number}"]
        driver = subprocess.run(command, stdout=log, stderr=log)
    if driver.returncode != (0 if kill_at is None else -signal.SIGKILL):
        sys.exit((options.out / "log.txt").read_text()[-3000:])


def curve(run: Path) -> list[tuple[int, float, int, int]]:
    """Session, seconds, items that have ended, bytes of memory."""
    if not (run / CURVE).exists():
        return []
    with (run / CURVE).open(newline="") as lines:
        found = [line for line in csv.reader(lines) if len(line) == 4]
    return [(int(number), float(seconds), int(ended), int(rss)) for number, seconds, ended, rss in found]


def check(options: Options) -> dict[str, int]:
    """Count outcomes and shards; assert that the ledger has each uid of the manifest once, and the shards each delivered one."""
    run = options.out / "run"
    asked = _sorted(pq.read_table(options.out / "manifest.parquet", columns=["uid"])["uid"].chunks)
    with Ledger(run / "ledger.sqlite", readonly=True) as ledger:
        rows = ledger.db.execute("SELECT uid FROM item ORDER BY uid")
        for start in range(0, len(asked), LINES):
            known = [uid for (uid,) in rows.fetchmany(LINES)]
            assert known == asked[start : start + LINES].astype(str).tolist(), "the ledger is not the manifest"
        assert rows.fetchone() is None, "the ledger knows of more than the manifest"
        counts = ledger.counts()
        delivered = [uid for (uid,) in ledger.db.execute("SELECT uid FROM item WHERE state = 'delivered' ORDER BY uid")]
    paths = shard_paths(run / str(WIDTH))
    stand = _sorted([chunk for path in paths for chunk in pq.read_table(path, columns=["uid"])["uid"].chunks])
    assert np.array_equal(stand, np.repeat(np.array(delivered, "S32"), options.views)), "shards and ledger differ"
    assert not list((run / "journal").iterdir()), "a journal is left"
    return counts | {"shards": len(paths)}


def _sorted(chunks: list[pa.Array]) -> np.ndarray:
    """(N,) S32: uids of 32 characters each, in order."""
    parts = [np.frombuffer(one.cast(pa.binary()).cast(pa.binary(32)).buffers()[1], "S32", len(one)) for one in chunks]
    return np.sort(np.concatenate(parts))


def figures(options: Options, seconds: float) -> dict[str, Any]:
    """Throughput, memory and sizes, from the curve and the folder."""
    run = options.out / "run"
    lines = curve(run)
    sessions = []
    for number in sorted({line[0] for line in lines}):
        mine = [line for line in lines if line[0] == number]
        started = json.loads((run / f"{number}-{STARTED}").read_text())
        last = mine[-1]
        # a short session has no line between its first and its last
        first = next((line for line in mine[:-1] if line[2] > mine[0][2]), mine[0])
        slices = [line for line in mine if line[1] >= started["scheduled"]]
        items = last[2] - mine[0][2]
        sessions.append(
            {
                "items": items,
                "start_s": started["scheduled"],
                "started": started,
                "items_per_s": (last[2] - first[2]) / max(1e-9, last[1] - first[1]),
                "rates": _rates(slices),
                "rss_max": max(line[3] for line in mine),
                "rss_start": first[3],
                "rss_end": last[3],
                "bytes_per_item": (last[3] - first[3]) / max(1, last[2] - first[2]),
            }
        )
    of_shards = sum(path.stat().st_size for path in shard_paths(run / str(WIDTH)))
    ledger = (run / "ledger.sqlite").stat().st_size
    return {"n": options.n, "seconds": seconds, "sessions": sessions, "ledger_bytes": ledger, "shard_bytes": of_shards}


def _rates(lines: list[tuple[int, float, int, int]]) -> list[float]:
    """Items per second in each tenth of a session's time."""
    seconds, ended = np.array([line[1] for line in lines]), np.array([line[2] for line in lines])
    edges = np.linspace(seconds[0], seconds[-1], 11)
    return [
        round(float(rate), 1) for rate in np.diff(np.interp(edges, seconds, ended)) / max(1e-9, edges[1] - edges[0])
    ]


def table(found: dict[str, Any]) -> str:
    """Text of the figures, for people to read."""
    lines = [
        f"{'session':>8}{'items':>12}{'start-up':>10}{'items/s':>10}{'slowest tenth':>15}{'memory at most':>16}{'growth':>14}"
    ]
    for number, one in enumerate(found["sessions"]):
        lines.append(
            f"{number:8}{one['items']:12}{one['start_s']:8.1f} s{one['items_per_s']:10.0f}{min(one['rates']):15.0f}"
            f"{size(one['rss_max']):>16}{one['bytes_per_item']:9.0f} B/it."
        )
    lines.append(
        f"{found['n']} items in {duration(found['seconds'])}: {found['delivered']} delivered in {found['shards']} shards "
        f"({size(found['shard_bytes'])}), {found.get('failed', 0)} failed; ledger {size(found['ledger_bytes'])}; each uid once"
    )
    return "\n".join(lines)


def main() -> None:
    """Print the table, or JSON."""
    options = tyro.cli(Options, description=__doc__)
    if options.session is not None:
        drive(options)
        return
    shutil.rmtree(options.out, ignore_errors=True)
    (options.out / "run").mkdir(parents=True)
    write_manifest(options.out / "manifest.parquet", options.n)
    cluster = None
    if options.nodes:
        from ray.cluster_utils import Cluster

        cluster = Cluster()
        for _ in range(options.nodes):
            cluster.add_node(num_cpus=-(-options.workers // options.nodes))
    address = cluster.address if cluster else None
    try:
        begun = time.perf_counter()
        if options.kill_at is not None:
            session(options, 0, address, options.kill_at)
        session(options, 1 if options.kill_at is not None else 0, address)
        found = figures(options, time.perf_counter() - begun)
    finally:
        if cluster:
            cluster.shutdown()
    found |= check(options)
    print(json.dumps(found, indent=1) if options.json else table(found))
    if not options.keep:
        shutil.rmtree(options.out)


if __name__ == "__main__":
    main()
