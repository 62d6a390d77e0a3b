"""Our way of rendering against the common one: same objects, poses, resolution and cores, interleaved in one run.

    python benchmarks/render.py --setting small --repeats 5 --input FOLDER --json result.json
    python benchmarks/render.py --check benchmarks/baseline.json

A: a fresh Blender per object, 128 samples and denoiser, PNG files (benchmarks/_reference_render.py says what is the same).
B: one Blender that stays, pixels straight out of Cycles, this project's defaults, JPEG in memory (`Renderer`), shard.
C: the floor, the seconds that Cycles says it spent in its own sample loop for B's views, in a run that does nothing else.
Quality is PSNR of whole views in sRGB bytes on white, against the same views with many samples and no denoiser.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from _objects import collect, job_of, pictures, psnr, truth_of
from _reference_render import in_fresh_process, peak_rss_mb

from pipeline import sources
from pipeline.config.render import RenderConfig, SceneConfig
from pipeline.core import images
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.core.records import Item
from pipeline.storage.writer import ShardWriter
from pipeline.worker.blender import Blender, Frame, Limits
from pipeline.worker.render import Renderer
from pipeline.worker.worker import Worker, make_worker

SETTINGS = {"quick": (64, 16, 3), "small": (64, 128, 4), "large": (512, 32, 2)}  # pixels, views, procedural objects
WAYS = {"A": "fresh Blender per object", "B": "lvsm-data, one Blender", "C": "Cycles' sample loop alone"}
STAGES = ("start", "fetch", "reset", "import", "normalize", "render", "encode", "write", "wall")
# of C's run; B's encode and write come after
PROFILE = ("import", "normalize", "sync", "bvh", "trace", "denoise", "read")
VERBOSE = {"GLOG_v": "3", "GLOG_logtostderr": "1"}  # Cycles then reports what every session spent on what
SECONDS = {
    "sync": r"Total time spent synchronizing data: ([\d.e-]+)",
    "session": r"Total render time: ([\d.e-]+)",
    "without_bvh": r"Render time \(without synchronization\): ([\d.e-]+)",
    "trace": r"^ +Path Tracing +([\d.]+)",
    "denoise": r"^ +Denoiser +([\d.]+)",
}
SLACK = {"B/A": 0.85, "B/C": 1.15, "PSNR": 0.5}  # of a check: factors for ratios, decibels for quality
TIMEOUT_S = 1800.0
say = functools.partial(print, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Bench:
    """Objects per hour, ms per view, PSNR and memory: our way (B) against a fresh Blender per object (A)."""

    setting: Literal["quick", "small", "large"] = "quick"
    """quick: 64 px, 16 views, 3 + 1 objects; small: 64 px, 128 views, 4 + 1; large: 512 px, 32 views, 2 + 1."""
    res: int | None = None
    """Image width. Default: the setting's, as for the next two."""
    views: int | None = None
    """Views per object."""
    objects: int | None = None
    """Procedural objects. A heavy one (120,000 triangles, three textures) always comes with them."""
    input: Path | None = None
    """Folder whose files are rendered too."""
    seed: int = 0
    """Chooses procedural objects, cameras and noise."""
    threads: int | None = None
    """Cores for each way; this process and its children are pinned to as many. Default: all."""
    device: Literal["auto", "cpu", "optix", "cuda", "hip", "oneapi", "metal"] = "auto"
    """Where Cycles traces, in both ways."""
    repeats: int = 1
    """Times that everything is timed; the median counts, per object and stage."""
    common_samples: int = 128
    """Samples of A."""
    common_denoise: Literal["accurate", "fast", "off"] = "accurate"
    """Denoiser of A, by its prefilter. accurate is Blender's default."""
    common_views: int | None = None
    """Views per object that A really renders; the time of the others is taken to be the same. Default: all."""
    samples: int | None = None
    """Samples of B and C. Default: the project's."""
    check: Path | None = None
    """Compare the ratios with those of this file, and end with status 1 where one is clearly worse."""
    save_baseline: Path | None = None
    """Write the ratios to this file, for --check."""
    reference_views: int = 4
    """Views per object (the first ones) whose quality is measured; 0 for none."""
    reference_samples: int = 4096
    """Samples of the views that quality is measured against."""
    out: Path | None = None
    """Folder that keeps A's PNG files. Default: a temporary one."""
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    """Write all numbers here too."""


@dataclass
class Result:
    """What one object gave: seconds by stage (with "wall"), once per repeat and way; PSNR by kind of image."""

    stages: dict[str, list[dict[str, float]]] = field(default_factory=lambda: {way: [] for way in WAYS})
    peak_rss_mb: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})
    psnr_db: dict[str, list[float]] = field(default_factory=dict)


class Run:
    """The whole comparison: `time` as often as asked, then `judge`."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        res, views, objects = SETTINGS[bench.setting]
        self.bench, self.folder, self.png = bench, folder, (bench.out or folder / "png").absolute()
        self.threads = bench.threads or len(os.sched_getaffinity(0))
        scene = SceneConfig((bench.res or res,), bench.views or views, bench.seed, bench.samples, device=bench.device)
        self.scene = scene.resolved()
        self.items = self._items(objects if bench.objects is None else bench.objects)
        self.results = {item.uid: Result() for item in self.items}
        self.failed: dict[str, str] = {}
        self.jpegs: dict[str, list[bytes]] = {}
        self.starts: list[float] = []
        self.closes: list[float] = []
        self.devices: set[str] = set()
        self.blender_version = ""

    def _items(self, count: int) -> list[Item]:
        items = collect(self.folder, self.scene, count)
        if self.bench.input is not None:
            cfg = RenderConfig(input=self.bench.input.absolute(), allow_blend=True, scene=self.scene)
            items += sources.load("local").items(cfg, self.scene.seed, None)
        return items

    def alive(self) -> list[Item]:
        """Objects that have not failed in either way."""
        return [item for item in self.items if item.uid not in self.failed]

    def time(self) -> None:
        """One repeat: A, B and C in turns on every object. B's Blender starts once, and its start is counted."""
        options: dict[str, Any] = {"input": self.folder, "allow_blend": True, "out": self.folder, "scene": self.scene}
        cfg = RenderConfig(source="local", threads=self.threads, timeout_s=TIMEOUT_S, **options)
        writer = ShardWriter(self.folder / "shards", self.scene.res, (), {"config_hash": ""}, 1e9)
        with (
            contextlib.closing(make_worker(cfg.resolved())) as worker,
            contextlib.closing(Blender(self.folder / "floor", Limits(TIMEOUT_S), VERBOSE, [self.folder])) as floor,
        ):
            assert isinstance(worker.maker, Renderer)
            start = time.perf_counter()
            self.blender_version = worker.maker.blender.start()["blender"]
            self.starts.append(time.perf_counter() - start)
            for item in self.alive():
                ways = {
                    "A": self._fresh,
                    "B": functools.partial(self._ours, worker=worker, blender=worker.maker.blender, writer=writer),
                    "C": functools.partial(self._floor, blender=floor),
                }
                if all(self._attempt(way, item, measure) for way, measure in ways.items()):
                    walls = (f"{way} {self.results[item.uid].stages[way][-1]['wall']:.2f} s" for way in WAYS)
                    self._say(item, ", ".join(walls))
            start = time.perf_counter()
            writer.close("train")
            self.closes.append(time.perf_counter() - start)

    def judge(self) -> None:
        """PSNR of the first views of every object, as A wrote them, as B stored them, and of B before JPEG."""
        with contextlib.closing(
            Blender(self.folder / "truth", Limits(timeout_s=86400), readable=[self.folder])
        ) as blender:
            for item in self.alive():
                if self._attempt("quality", item, functools.partial(self._compare, blender=blender)):
                    values = self.results[item.uid].psnr_db
                    self._say(item, ", ".join(f"{kind} {np.mean(values[kind]):.1f} dB" for kind in values))

    def _attempt(self, what: str, item: Item, measure: Any) -> bool:
        """True if measure(item) worked. An object that fails is named and left out of everything from here on."""
        try:
            measure(item)
        except (Skip, Retry, OSError, RuntimeError, subprocess.TimeoutExpired) as failure:
            self.failed[item.uid] = f"{what}: {failure}"
            self._say(item, f"left out of both ways, {self.failed[item.uid]}")
        return item.uid not in self.failed

    def _say(self, item: Item, text: str) -> None:
        say(f"[{self.items.index(item) + 1}/{len(self.items)}] {item.uid}: {text}")

    def _job(self, item: Item) -> dict[str, Any]:
        return job_of(item, self.scene, self.threads)

    def _fresh(self, item: Item) -> None:
        denoise = self.bench.common_denoise
        common = {"samples": self.bench.common_samples, "denoise": denoise != "off", "prefilter": denoise.upper()}
        job = self._job(item) | common | {"out": str(self.png / item.uid)}
        job["cameras"] = job["cameras"][: self.bench.common_views]
        done = in_fresh_process(job, TIMEOUT_S)
        stages = done["stages"]
        others = stages["render"] * (self.scene.views / len(job["cameras"]) - 1)
        stages |= {"render": stages["render"] + others, "wall": stages["wall"] + others}
        self._keep(item, "A", stages, done["peak_rss_mb"], done["device"])

    def _ours(self, item: Item, worker: Worker, blender: Blender, writer: ShardWriter) -> None:
        outcome = worker(item)
        if outcome.scene is None:
            raise Skip(outcome.reason, outcome.detail)
        start = time.perf_counter()
        writer.add(outcome.scene, "train", len(self.closes))
        write = time.perf_counter() - start
        stages = outcome.timings | {"write": write, "wall": outcome.timings["total"] + write}
        process = blender.process  # none where it has just been recycled
        rss_mb = peak_rss_mb(process.pid) if process else blender.rss_mb
        self._keep(item, "B", stages, rss_mb, outcome.scene.meta["device"])
        self.jpegs[item.uid] = outcome.scene.by_width[self.scene.width].jpegs[: self.bench.reference_views]

    def _floor(self, item: Item, blender: Blender) -> None:
        """B's job once more, without whatever comes after Cycles, and with Cycles' own account of its time."""
        blender.start()
        blender.log = collections.deque()  # all lines, not only the last ones
        loaded, *frames = blender.render(self._job(item))
        assert isinstance(loaded, dict)
        text = self._whole_log(blender)
        spent = {name: sum(map(float, re.findall(line, text, re.MULTILINE))) for name, line in SECONDS.items()}
        seconds = sum(frame.seconds for frame in frames if isinstance(frame, Frame))
        stages = loaded["timings"] | {name: spent[name] for name in ("sync", "trace", "denoise")}
        prepared = spent["session"] - spent["without_bvh"]  # data and BVH of the first view, what changed of the others
        stages |= {"bvh": prepared - spent["sync"], "read": seconds - spent["session"]}
        assert blender.process is not None
        self._keep(item, "C", stages | {"wall": spent["trace"]}, peak_rss_mb(blender.process.pid), loaded["device"])

    def _whole_log(self, blender: Blender) -> str:
        """Blender's log of all views; it may lag behind its pictures. RuntimeError where some never come."""
        for _ in range(100):
            text = "\n".join(list(blender.log))
            if len(re.findall(SECONDS["without_bvh"], text)) == self.scene.views:
                return text
            time.sleep(0.05)
        raise RuntimeError("Cycles did not account for every view")

    def _keep(self, item: Item, way: str, stages: dict[str, float], rss_mb: float, device: str) -> None:
        self.results[item.uid].stages[way].append(stages)
        self.results[item.uid].peak_rss_mb[way].append(rss_mb)
        self.devices.add(device)

    def _compare(self, item: Item, blender: Blender) -> None:
        job = self._job(item)
        job["cameras"] = job["cameras"][: self.bench.reference_views]
        truth = self._pictures(blender, truth_of(job, self.bench.reference_samples))
        files = [self.png / item.uid / f"{index:03d}.png" for index in range(len(truth))]
        kinds = {
            "A": [images.decode(file.read_bytes()) for file in files],
            "B": [images.decode(jpeg) for jpeg in self.jpegs[item.uid]],
            "B before JPEG": self._pictures(blender, job),
        }
        self.results[item.uid].psnr_db = {kind: list(map(psnr, made, truth)) for kind, made in kinds.items()}

    def _pictures(self, blender: Blender, job: dict[str, Any]) -> list[np.ndarray]:
        return pictures([answer for answer in blender.render(job) if isinstance(answer, Frame)])


def mean_psnr(results: list[Result], kind: str) -> float:
    """Over all measured views; 0 where none was measured."""
    return statistics.fmean([value for result in results for value in result.psnr_db.get(kind, [])] or [0.0])


def medians(run: Run, way: str, names: tuple[str, ...]) -> dict[str, float]:
    """Seconds by stage: the median of the repeats, then the mean of the objects that worked in all ways."""
    timings = [run.results[item.uid].stages[way] for item in run.alive()]
    return {name: statistics.fmean(statistics.median(t.get(name, 0) for t in ts) for ts in timings) for name in names}


def summary(run: Run, way: str) -> dict[str, Any]:
    """Numbers of one way over the objects that worked in all of them."""
    alive = [run.results[item.uid] for item in run.alive()]
    stages = medians(run, way, STAGES)
    if way == "B":
        stages["start"] = statistics.median(run.starts) / len(alive)
        close = statistics.median(run.closes) / len(alive)  # the journal of all objects -> one Parquet file
        stages |= {"write": stages["write"] + close, "wall": stages["wall"] + stages["start"] + close}
    return {
        "objects_per_hour": 3600 / stages["wall"],
        "wall_ms_per_view": 1000 * stages["wall"] / run.scene.views,
        "psnr_db": mean_psnr(alive, way),
        "peak_rss_mb": max(max(result.peak_rss_mb[way]) for result in alive),
        "stages_ms_per_object": {name: 1000 * seconds for name, seconds in stages.items()},
    }


def ratios(run: Run, ways: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Ratios that a change must not make worse. B/A is of objects per hour, B/C of seconds (without the start of Blender)."""
    steady = ways["B"]["stages_ms_per_object"]["wall"] - ways["B"]["stages_ms_per_object"]["start"]
    return {
        "B/A": ways["B"]["objects_per_hour"] / ways["A"]["objects_per_hour"],
        "B/C": steady / ways["C"]["stages_ms_per_object"]["wall"],
        "PSNR": ways["B"]["psnr_db"],
    }


def tables(run: Run, ways: dict[str, dict[str, Any]], ratio: dict[str, float]) -> list[str]:
    """The report, line by line."""
    alive = [run.results[item.uid] for item in run.alive()]
    lines = [f"{'':28}{'objects/h':>10}{'ms/view':>10}{'PSNR dB':>10}{'RSS MB':>10}"]
    for way, numbers in ways.items():
        shown = "".join(f"{number:10.1f}" if number else f"{'':10}" for number in list(numbers.values())[:4])
        lines.append(f"{way} {WAYS[way]:26}{shown}")
    before = mean_psnr(alive, "B before JPEG")
    lines += [
        f"B/A {ratio['B/A']:.2f} (objects/h), B/C {ratio['B/C']:.2f} (seconds); B before JPEG {before:.1f} dB",
        "",
    ]
    lines += ["ms/object" + "".join(f"{stage:>10}" for stage in STAGES)]
    for way in ("A", "B"):
        lines.append(f"{way:9}" + "".join(f"{ms:10.1f}" for ms in ways[way]["stages_ms_per_object"].values()))
    lines += ["A: start is process start and exit, render holds the PNG files; B: encode runs beside render", ""]
    profile = medians(run, "C", PROFILE)
    lines += ["profile  " + "".join(f"{stage:>10}" for stage in PROFILE)]
    lines += ["ms/object" + "".join(f"{1000 * seconds:10.1f}" for seconds in profile.values()), ""]
    lines += [f"{'object':14}{'A s':>9}{'B s':>9}{'C s':>9}{'A dB':>8}{'B dB':>8}"]
    for item in run.alive():
        result = run.results[item.uid]
        walls = [statistics.median(stages["wall"] for stages in result.stages[way]) for way in WAYS]
        quality = [statistics.fmean(result.psnr_db.get(way, [0.0])) for way in ("A", "B")]
        lines += [f"{item.uid[:13]:14}" + "".join(f"{v:9.2f}" for v in walls) + "".join(f"{v:8.1f}" for v in quality)]
    scene, bench = run.scene, run.bench
    lines += [
        "",
        f"{len(alive)} objects x {scene.views} views, {scene.width} px, {run.threads} threads, lights {scene.lights}",
    ]
    lines += [f"A {bench.common_samples} spp, denoise {bench.common_denoise}; B {scene.samples}, {scene.denoise}"]
    if bench.common_views:
        lines += [f"A rendered {bench.common_views} views of each object; its render time is scaled to all of them"]
    return lines + [f"left out: {uid}, {reason}" for uid, reason in run.failed.items()]


def worse(found: dict[str, float], wanted: dict[str, float]) -> list[str]:
    """Name in words each ratio that fell clearly behind a stored baseline."""
    checks = {
        "B/A": found["B/A"] < wanted["B/A"] * SLACK["B/A"],
        "B/C": found["B/C"] > wanted["B/C"] * SLACK["B/C"],
        "PSNR": found["PSNR"] < wanted["PSNR"] - SLACK["PSNR"],
    }
    return [f"{name} is {found[name]:.2f}, the baseline {wanted[name]:.2f}" for name, bad in checks.items() if bad]


def machine(run: Run) -> str:
    """Processor, cores, Blender, device."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    name = found[1] if found else platform.machine()
    cores = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    return f"{name}, {cores}, Blender {run.blender_version}, Cycles on {' and '.join(sorted(run.devices))}"


def compare(bench: Bench, folder: Path) -> int:
    """Runs everything and prints it. Exit status 1 where an object failed or a check did."""
    run = Run(bench, folder)
    say("a Blender for nothing, so that neither way pays for a cold disk")
    subprocess.run([sys.executable, "-I", "-c", "import bpy"], check=True)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: run.threads])
    for _ in range(max(1, bench.repeats)):
        run.time()
    if bench.reference_views:
        run.judge()
    if not run.alive():
        say("no object worked in both ways")
        return 1
    ways = {way: summary(run, way) for way in WAYS}
    ratio = ratios(run, ways)
    facts = {"machine": machine(run), "command": f"python {shlex.join(sys.argv)}"}
    print("\n".join([*tables(run, ways, ratio), *facts.values()]))
    if bench.json_file is not None:
        objects = {item.uid: dataclasses.asdict(run.results[item.uid]) for item in run.alive()}
        settings = {"bench": dataclasses.asdict(bench), "scene": dataclasses.asdict(run.scene)}
        report = facts | settings | {"ratios": ratio, "ways": ways, "objects": objects, "failed": run.failed}
        bench.json_file.write_text(json.dumps(report, indent=2, default=str))
    if bench.save_baseline is not None:
        bench.save_baseline.write_text(json.dumps({name: round(value, 2) for name, value in ratio.items()}) + "\n")
    bad = []
    if bench.check is not None:
        bad = worse(ratio, json.loads(bench.check.read_text()))
        say("\n".join(bad) or "no worse than the baseline")
    return 1 if bad or run.failed else 0


def main() -> int:
    """Exit status 2 where the flags make no sense."""
    bench = tyro.cli(Bench)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return compare(bench, Path(folder))
    except UserError as error:
        say(f"error: {error} {error.hint}")
    return 2


if __name__ == "__main__":
    sys.exit(main())
