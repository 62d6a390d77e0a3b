"""Frames out of videos for camera files of RealEstate10K: cuts that are decoded once, against one ffmpeg per frame.

    python -m benchmarks.clips

The same videos from the same server on loopback, in turn, each way from nothing to what it leaves on the disk:

- **A**, this project: `lvsm-data clip` with workers on Ray, and with the executor "inline". Leaves finished shards: frames
  cropped to a square, resized in linear light, as JPEG of quality 95, with their poses.
- **B**, the common way (cashiwamochi/RealEstate10K_Downloader, yilundu/cross_attention_renderer): video after video, the whole
  of it by yt-dlp, then one `ffmpeg -ss SECONDS.mmm -i VIDEO -vframes 1 -q:v 1 -f image2 TIMESTAMP.jpg` per annotated frame, as
  many at once as there are cores; then the video goes. B does less: whole frames as loose files; no crop, no resize, no
  shards, no poses.

B takes every k-th frame of all clips; the time of its ffmpegs and the bytes of its frames are scaled to all of them, the time of
its downloads counts as it is. "Whole run" counts everything from the command on: Python, Ray, yt-dlp. "After the start" is A
from its first clips to its last, and B without its downloads. The frames carry numbers, so what each way took is read from
its pictures. The videos are made once and kept in --cache.

    python -m benchmarks.clips --profile

runs A's steps in this process instead, in one thread, and says what each costs per frame.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pkgutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import av
import cv2
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline.config.clip import ClipScene
from pipeline.core import cameras, images
from pipeline.core.records import Clip, Item
from pipeline.sources import realestate10k
from pipeline.storage import shards
from pipeline.storage.writer import ShardWriter
from pipeline.video import cut as cuts
from pipeline.worker import clips
from tests import videos

HW = (480, 854)
FPS = Fraction(30000, 1001)
GOP = 150  # frames, about 5 s
BITS_PER_SECOND = 1_000_000  # about what YouTube spends on H.264 of 480 rows
MEAN_CLIP = 130  # frames; RealEstate10K has ten million in 80,000 clips
CODE = 120  # pixels: side of the square in the centre whose middle half says which frame it is
MADE = 1  # counted up by every change to what the videos show
SAMPLE_S = 0.05  # between looks at the disk


@dataclass(frozen=True)
class Options:
    """What to run."""

    videos: int = 3
    """Videos on the server."""
    seconds: float = 90.0
    """Length of each."""
    clips: int = 8
    """Clips of each video, of about 130 frames in a row."""
    res: int = 256
    """Image width of the shards; below 256 the numbers of frames cannot be read any more."""
    workers: int = 2
    """Workers of A on Ray."""
    every: int = 10
    """B takes every so many frames of each clip; as many are looked at."""
    repeats: int = 3
    """Rounds of A and B in turn."""
    cache: Path = Path(tempfile.gettempdir()) / "lvsm-data-benchmark-clips"
    """Where the videos are kept."""
    profile: bool = False
    """Say what a frame costs A in one process, instead of comparing."""


# ---- the videos


@functools.cache
def texture(seed: int) -> np.ndarray:
    """(1600, 1600, 3): blotches of several sizes, and things with edges."""
    rng = np.random.default_rng(seed)
    side = 1600
    total = np.zeros((side, side, 3))
    for cells, weight in ((6, 30), (24, 22), (96, 12), (384, 7)):
        coarse = rng.standard_normal((cells, cells, 3)) / 2 + rng.standard_normal((cells, cells, 1))
        total += weight * cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    wall = np.clip(120 + total, 0, 255).astype(np.uint8)
    for _ in range(120):
        corner, size = rng.integers(0, side, 2), rng.integers(20, 260, 2)
        colour, line = tuple(rng.integers(20, 236, 3).tolist()), int(rng.choice([-1, 3, 6]))
        cv2.rectangle(wall, corner.tolist(), (corner + size).tolist(), colour, line, cv2.LINE_AA)
    return wall


def picture(seed: int, number: int) -> np.ndarray:
    """RGB (480, 854, 3): a frame of a camera that wanders over a wall, comes closer and tilts; its number in the centre."""
    t = float(number / FPS) + 17 * seed
    zoom, roll = 0.9 + 0.25 * np.sin(0.23 * t), 0.15 * np.sin(0.31 * t)
    x, y = 800 + 330 * np.sin(0.35 * t + seed), 800 + 380 * np.cos(0.27 * t)
    c, s = zoom * np.cos(roll), zoom * np.sin(roll)
    to_wall = np.array(
        [
            [c, -s, x - (c * HW[1] - s * HW[0]) / 2],
            [s, c, y - (s * HW[1] + c * HW[0]) / 2],
            [2e-4 * np.sin(0.4 * t), 2e-4 * np.cos(0.5 * t), 1],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    seen = cv2.warpPerspective(texture(seed), to_wall, HW[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT)
    band = slice(CODE // 4, 3 * CODE // 4)
    centre_of(seen)[band] = videos.numbered(number, (CODE, CODE))[band]
    return seen


def centre_of(rgb: np.ndarray) -> np.ndarray:
    """The square that holds the number, in a whole frame or in its centre square at any size."""
    side = round(CODE * rgb.shape[0] / HW[0])
    top, left = (rgb.shape[0] - side) // 2, (rgb.shape[1] - side) // 2
    return rgb[top : top + side, left : left + side]


def make_video(path: Path, seed: int, count: int) -> None:
    """H.264 with B-frames, in BT.709 as YouTube has it. `tests.videos.make_video` would hold all its pictures at once."""
    options = {"preset": "veryfast", "b": str(BITS_PER_SECOND), "g": str(GOP), "sc_threshold": "0", "bf": "3"}
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = HW
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(seed, number), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.pts, frame.time_base = number, 1 / FPS
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@dataclass(frozen=True)
class Stretch:
    """A clip: consecutive frames of a video, and what its camera file says when they are shown."""

    key: str
    video: int
    frames: range

    @property
    def times_us(self) -> list[int]:
        """RealEstate10K has both: times rounded to microseconds, and cut off at milliseconds."""
        exact = [number / FPS * 1_000_000 for number in self.frames]
        return [int(time // 1000 * 1000) if self.video % 2 else round(time) for time in exact]


def stretches(options: Options) -> list[Stretch]:
    """Draw stretches of 90 to 170 frames, each somewhere in its share of its video."""
    rng = np.random.default_rng(0)
    share = int(options.seconds * FPS) / options.clips
    made = []
    for video in range(options.videos):
        for number in range(options.clips):
            length = min(int(rng.integers(MEAN_CLIP - 40, MEAN_CLIP + 41)), int(share))
            first = int(number * share + rng.random() * (share - length))
            made.append(Stretch(f"{video:02d}-{number:02d}", video, range(first, first + length)))
    return made


@dataclass(frozen=True)
class World:
    """What both ways start from."""

    options: Options
    server: videos.VideoServer
    files: list[Path]
    clips: list[Stretch]
    cameras: Path

    @property
    def frames(self) -> int:
        return sum(len(clip.frames) for clip in self.clips)

    @property
    def size(self) -> int:
        """Bytes of all videos."""
        return sum(path.stat().st_size for path in self.files)

    def url(self, video: int) -> str:
        return f"{self.server.url}/{self.files[video].name}"


@contextlib.contextmanager
def world(options: Options, folder: Path) -> Iterator[World]:
    """Makes the videos that are not there, serves them, and writes camera files for them below `folder`."""
    count = int(options.seconds * FPS)
    shown = options.cache / f"{MADE}-{count}"
    shown.mkdir(parents=True, exist_ok=True)
    files = [shown / f"{seed}.mp4" for seed in range(options.videos)]
    for seed, path in enumerate(files):
        if not path.exists():
            print(f"making {path}", file=sys.stderr)
            part = path.with_suffix(f".{os.getpid()}.part")
            make_video(part, seed, count)
            os.replace(part, path)
    with videos.VideoServer(shown) as server:
        # yt-dlp looks at the head of a file and hangs up; what lies in this buffer then counts as sent
        server._server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        made = World(options, server, files, stretches(options), folder / "cameras")
        poses = {clip.key: videos.circle_w2c(len(clip.frames)) for clip in made.clips}
        shares = np.array([0.9, 1.6, 0.5, 0.5])
        texts = {
            clip.key: videos.camera_file(made.url(clip.video), clip.times_us, shares, poses[clip.key])
            for clip in made.clips
        }
        videos.write_dataset(made.cameras, {"train": texts})
        yield made


# ---- both ways


class Disk:
    """Looks at a folder again and again, in a thread: the most bytes that each of `parts` ever had."""

    def __init__(self, folder: Path, parts: dict[str, Callable[[Path], bool]]) -> None:
        self.folder = folder
        self.parts = parts
        self.peaks = dict.fromkeys(parts, 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Disk:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            found = list(sizes(self.folder))
            for name, belongs in self.parts.items():
                self.peaks[name] = max(self.peaks[name], sum(size for path, size in found if belongs(path)))


def sizes(folder: Path) -> Iterator[tuple[Path, int]]:
    """Files below a folder, relative to it, and their bytes; without those that go while it looks."""
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                yield (path := Path(where, name)).relative_to(folder), path.stat().st_size


Place = tuple[str, int]  # a clip's key, and which of its frames


@dataclass(frozen=True)
class Look:
    """How many of the frames that were looked at are others than asked for, and their PSNR in dB against what went in."""

    frames: int
    wrong: int
    psnr: float


@dataclass(frozen=True)
class Run:
    """seconds: for all frames. rate: frames per second after the start. fetched: bytes. disk: name -> bytes at the peak."""

    seconds: float
    rate: float
    fetched: int
    disk: dict[str, int]
    look: Look


def ours(world: World, folder: Path, *flags: str) -> Run:
    """`lvsm-data clip` as a user types it."""
    options = world.options
    command = [Path(sys.executable).with_name("lvsm-data"), "clip", "--cameras", world.cameras, "--n", len(world.clips)]
    command += ["--res", options.res, "--videos-per-hour", 0, "--out", folder, *flags]
    parts: dict[str, Callable[[Path], bool]] = {
        "videos and cuts": lambda path: path.parts[0] == "raw",
        "all but finished shards": lambda path: path.suffix != ".parquet",
        "all": lambda path: True,
    }
    world.server.clear()
    with Disk(folder, parts) as disk:
        start = time.perf_counter()
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{done.stdout}\n{done.stderr}")
    taken = {}
    for shard in shards.shard_paths(folder / str(options.res)):
        for rows in shards.read_objects(shard):
            for place in range(0, len(rows.jpegs), options.every):
                taken[rows.uid, place] = images.decode(rows.jpegs[place])
    first = 1 if "inline" in flags else options.workers
    return Run(seconds, rate(folder, first), world.server.bytes_sent, disk.peaks, look(world, taken))


def rate(folder: Path, first: int) -> float:
    """Frames per second of a run from when its `first` clips were done to its last one."""
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
        ended = ledger.execute("SELECT finished, views FROM item ORDER BY finished").fetchall()
    return sum(views for _, views in ended[first:]) / (ended[-1][0] - ended[first - 1][0])


def theirs(world: World, folder: Path) -> Run:
    """yt-dlp, then an ffmpeg for every frame."""
    options = world.options
    frames = folder / "frames"
    downloading = extracting = 0.0
    world.server.clear()
    with (
        Disk(folder, {"largest video": lambda path: path.parts[0] == "video"}) as disk,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,  # of threads that wait for processes
    ):
        for video in range(options.videos):
            path = folder / "video" / f"{video}.mp4"
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "yt_dlp", "-q", "-o", str(path), world.url(video)], check=True)
            downloading += time.perf_counter() - start
            start = time.perf_counter()
            jobs = []
            for clip in world.clips:
                if clip.video == video:
                    (frames / clip.key).mkdir(parents=True)
                    jobs += [(path, at, frames / clip.key / f"{at}.jpg") for at in clip.times_us[:: options.every]]
            list(pool.map(extract, jobs))
            extracting += time.perf_counter() - start
            path.unlink()
    taken = {}
    for clip in world.clips:
        for place in range(0, len(clip.frames), options.every):
            data = (frames / clip.key / f"{clip.times_us[place]}.jpg").read_bytes()
            taken[clip.key, place] = images.decode(data)
    scale = world.frames / len(taken)
    loose = int(sum(size for _, size in sizes(frames)) * scale)
    peaks = disk.peaks | {"frames": loose, "all": loose + disk.peaks["largest video"]}
    seconds = downloading + extracting * scale
    after = world.frames / (extracting * scale)
    return Run(seconds, after, world.server.bytes_sent, peaks, look(world, taken))


def extract(job: tuple[Path, int, Path]) -> None:
    """One frame of a video at a time in microseconds, of which the common scripts keep the milliseconds."""
    video, time_us, to = job
    at = f"{time_us // 1_000_000}.{time_us // 1000 % 1000:03d}"
    command = ["ffmpeg", "-nostdin", "-ss", at, "-i", str(video), "-vframes", "1", "-q:v", "1", "-f", "image2", str(to)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


# ---- comparing


def look(world: World, taken: dict[Place, np.ndarray]) -> Look:
    """All at the size of the shards; loose frames are cropped and resized as ours are."""
    size = (world.options.res, world.options.res)
    by_key = {clip.key: clip for clip in world.clips}
    wrong, errors = 0, []
    for (key, place), rgb in taken.items():
        clip = by_key[key]
        number = clip.frames[place]
        wrong += number_in(rgb) != number
        right = square(picture(clip.video, number), size)
        errors.append(np.mean((square(rgb, size).astype(np.float64) - right) ** 2))
    return Look(len(errors), wrong, float(10 * np.log10(255**2 / np.mean(errors))))


def number_in(rgb: np.ndarray) -> int:
    """Which frame of its video this is; -1 where it cannot be told."""
    try:
        return videos.read_number(centre_of(rgb))
    except ValueError:
        return -1


def square(rgb: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """The centre square at a size; what has it already stays as it is."""
    (top, left), (height, width) = clips.centre((rgb.shape[0], rgb.shape[1]), hw)
    return images.shrink(rgb[top : top + height, left : left + width], hw)


def spread(numbers: Iterable[float], digits: int = 1) -> str:
    """Median and range."""
    found = sorted(numbers)
    return f"{statistics.median(found):.{digits}f} ({found[0]:.{digits}f}-{found[-1]:.{digits}f})"


def averaged(numbers: list[float]) -> str:
    """Mean and range."""
    return f"{statistics.mean(numbers):.1f} ({min(numbers):.1f}-{max(numbers):.1f})"


def compare(options: Options) -> None:
    """Print rates, bytes, disk and what was taken."""
    ways = {
        f"A, {options.workers} workers on Ray": lambda world, folder: ours(
            world, folder, "--workers", str(options.workers)
        ),
        "A, inline": lambda world, folder: ours(world, folder, "--executor", "inline"),
        "B, ffmpeg per frame": theirs,
    }
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as scratch, world(options, Path(scratch)) as made:
        for _ in range(options.repeats):
            for name, way in ways.items():
                with tempfile.TemporaryDirectory() as folder:
                    runs[name].append(way(made, Path(folder)))
    slow = runs["B, ffmpeg per frame"]
    covered = made.frames / (options.videos * int(options.seconds * FPS))
    print(f"{options.videos} videos of {options.seconds:g} s, {HW[1]}x{HW[0]}, together {made.size / 1e6:.1f} MB")
    print(f"{len(made.clips)} clips of them, {made.frames} frames, {covered:.0%} of all")
    print(f"A: shards of {options.res} px. B does less: whole frames as loose files, no crop, no resize, no poses;")
    print(f"   it took {slow[0].look.frames} frames, scaled to {made.frames}")
    columns = ("whole run", "A/B", "after the start", "A/B", "bytes fetched")
    print(f"{'frames/s':<24}{columns[0]:>22}{columns[1]:>18}{columns[2]:>22}{columns[3]:>18}{columns[4]:>15}")
    for name, found in runs.items():
        whole, after = spread(made.frames / run.seconds for run in found), spread(run.rate for run in found)
        gains = [b.seconds / a.seconds for a, b in zip(found, slow, strict=True)]
        gains_after = [a.rate / b.rate for a, b in zip(found, slow, strict=True)]
        gain, gain_after = ("", "") if found is slow else (averaged(gains), averaged(gains_after))
        fetched = statistics.median(run.fetched for run in found) / made.size
        print(f"{name:<24}{whole:>22}{gain:>18}{after:>22}{gain_after:>18}{fetched:>15.2f}")
    print("rates: median (range); A/B: mean (range) of the rounds; bytes: as a share of the videos")
    print("disk at its peak, MB:")
    for name, found in runs.items():
        peaks = {part: max(run.disk[part] for run in found) / 1e6 for part in found[0].disk}
        print(f"{name:<24}" + ", ".join(f"{part} {size:.1f}" for part, size in peaks.items()))
    print("frames looked at:")
    for name, found in runs.items():
        wrong, frames = sum(run.look.wrong for run in found), sum(run.look.frames for run in found)
        print(f"{name:<24}{wrong} of {frames} are others than asked for; PSNR {found[0].look.psnr:.1f} dB")


# ---- where A's time goes


class Stages:
    """CPU seconds of functions, each without the timed ones that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which notes its time under `name`."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                took = time.process_time() - start
                self.seconds[name] += took - self._inner.pop()
                self._inner[-1] += took

        return wrapper


STAGES = {  # of what a step calls, in the order in which a frame goes through it
    "to upright RGB": "pipeline.video.frames.rgb",
    "to linear light": "cv2.LUT",
    "area average": "cv2.resize",
    "to sRGB bytes": "pipeline.core.images.shrink",
    "JPEG": "pipeline.core.images.encode_jpeg",
}


@contextlib.contextmanager
def patched(stages: Stages) -> Iterator[None]:
    """Times STAGES in here; what is left of a frame's time is mostly decoding."""
    with contextlib.ExitStack() as stack:
        for name, target in STAGES.items():
            stack.enter_context(mock.patch(target, stages.timed(name, pkgutil.resolve_name(target))))
        yield


def profile(options: Options) -> None:
    """Print milliseconds per frame of every step."""
    rounds: list[dict[str, float]] = []
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch, world(options, Path(scratch)) as made:
        for repeat in range(options.repeats):
            stages = Stages()
            with patched(stages):
                step(made, Path(scratch) / str(repeat), stages)
            rounds.append(stages.seconds)
    print(f"{made.frames} frames, ms of CPU per frame, one thread: median (range) of {options.repeats}")
    for name in ("cut", *STAGES, "else", "shards"):
        print(f"{name:<20}{spread((found[name] / made.frames * 1e3 for found in rounds), 2):>22}")
    print(f"{'together':<20}{spread((sum(found.values()) / made.frames * 1e3 for found in rounds), 2):>22}")


def step(world: World, folder: Path, stages: Stages) -> None:
    """Decode, convert and write every clip, one after the other, as A does."""
    cfg = ClipScene(res=(world.options.res,))
    writer = ShardWriter(folder, cfg.res, shards.NUMBERS, {"config_hash": ""}, 64e6)
    to_scene = stages.timed("else", clips.to_scene)
    closed = 0
    for clip in world.clips:
        count = len(clip.frames)
        (folder / clip.key).mkdir()
        with cuts.opened(path := world.files[clip.video], path.stat().st_size) as film:
            cut = stages.timed("cut", film.cut)(
                clip.times_us[0], clip.times_us[-1], folder / clip.key, realestate10k.SLACK_US
            )
        c2w, shares = cameras.homogeneous(videos.circle_w2c(count)), np.tile([0.9, 1.6, 0.5, 0.5], (count, 1))
        item = Item(clip.key, "realestate10k", url=world.url(clip.video))
        scene = to_scene(item, Clip(cut, np.arange(count), np.array(clip.times_us), c2w, shares), cfg)
        _, shard = stages.timed("shards", writer.add)(scene, "train", closed)
        closed += shard is not None
    stages.timed("shards", writer.close)("train")


def main() -> None:
    """Compares, or profiles."""
    options = tyro.cli(Options, description=__doc__)
    profile(options) if options.profile else compare(options)


if __name__ == "__main__":
    main()
