"""How many samples a second reach a trainer: our shards against the formats that others train from, on the same pictures.

    pip install --no-deps webdataset braceexpand mosaicml-streaming catalogue brotli python-snappy cramjam zstd  # or without
    python benchmarks/loader.py --res 256

Textured discs on white stand for rendered objects, as JPEGs of about the same size. A sample is one object with eight of its
views, decoded, with cameras, in a batch. Everybody has as many workers (our threads, or DataLoader's processes), decodes JPEGs
by OpenCV, and finds all files in the page cache, so that this is about work and not about disks. "decoding alone" takes the very
JPEGs out of memory and does nothing but decode; ratios are to that. "one file per view" is PNG and JSON, as the LVSM authors'
loader has them. The README's DataLoader is besides compared with pyarrow, which reads row groups whole and decodes nothing.
Ratios of rates are of one round, in which all take turns; the median of the rounds counts. Those of CPU time are of the least
that each took in any round: they depend less on what else the machine does.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import json
import os
import pickle
import statistics
import sys
import tarfile
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
import tyro
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
import pipeline
from lvsm_train.data.batches import Data, DataConfig
from pipeline.core import cameras, images
from pipeline.core.records import Item, Scene, Views, item_rng
from pipeline.storage.shards import find_shards, read_objects
from pipeline.storage.writer import ShardWriter

VIEWS = 8  # of a sample
DECODE, READ = "decoding alone", "row groups by pyarrow"
Way = Callable[[], Iterator[Any]]


@dataclass(frozen=True)
class Options:
    """What to read."""

    objects: int = 100
    """Objects, each with --views views."""
    views: int = 32
    """Views per object."""
    res: int = 256
    """Image width."""
    batch: int = 8
    """Samples per batch."""
    workers: int | None = None
    """Threads or processes. Default: one per core."""
    seconds: float = 4.0
    """How long each is timed, after its first batches."""
    repeats: int = 3
    """Rounds; the median counts."""
    only: tuple[str, ...] = ()
    """Besides those that ratios are to: ways whose name holds one of these words. Default: all."""

    def takes(self, name: str) -> bool:
        """True for the ways to time."""
        return name in (DECODE, READ) or not self.only or any(word in name for word in self.only)


def picture(rng: np.random.Generator, res: int) -> np.ndarray:
    """A disc with a texture of several scales: its JPEG has about the bytes of a rendered object's."""
    levels = [
        cv2.resize(rng.normal(size=(n, n, 3)), (res, res), interpolation=cv2.INTER_CUBIC) / n for n in (4, 16, 48)
    ]
    colours = np.clip(128 + 160 * sum(levels), 0, 255)
    y, x = np.mgrid[-1 : 1 : res * 1j, -1 : 1 : res * 1j]
    return np.where((x * x + y * y < 0.5)[..., None], colours, 255).astype(np.uint8)


def make_shards(options: Options, out: Path) -> None:
    """Shards as lvsm-data writes them."""
    out.mkdir()
    writer = ShardWriter(out, (options.res,), (), {"config_hash": "0" * 16}, 64e6)
    hw, number = (options.res, options.res), 0
    for which in range(options.objects):
        rng = item_rng(0, str(which), "loader")
        jpegs = [images.encode_jpeg(picture(rng, options.res), 95) for _ in range(options.views)]
        k = np.tile(cameras.intrinsics(50, hw), (options.views, 1)).astype(np.float32)
        one = Scene(
            Item(str(which), "local"),
            cameras.sample("shell", rng, options.views),
            {options.res: Views(jpegs, k, hw)},
            {},
        )
        name, full = writer.add(one, "train", number)
        if full:
            writer.publish(name)
        number += full
    writer.close("train")


# ---- the same in the formats of others


def make_others(options: Options, folder: Path) -> None:
    """The objects of the shards as tars, as MDS where that is installed, and as one file per view."""
    tar = tarfile.open(folder / "objects.tar", "w")  # noqa: SIM115 (closed below)
    mds = contextlib.nullcontext()
    if streaming := _mosaic():
        columns = {"jpegs": "pkl", "c2w": "ndarray", "k": "ndarray"}
        mds = streaming.MDSWriter(out=str(folder / "mds"), columns=columns)
    with tar, mds:
        for rows in itertools.chain(*(read_objects(path) for path in find_shards(folder / "shards")[options.res])):
            if streaming:
                mds.write({"jpegs": rows.jpegs, "c2w": rows.c2w, "k": rows.intrinsics})
            members = {f"{view:03d}.jpg": jpeg for view, jpeg in enumerate(rows.jpegs)}
            members["cameras.pkl"] = pickle.dumps((rows.c2w, rows.intrinsics))
            for name, content in members.items():
                info = tarfile.TarInfo(f"{rows.uid}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            place = folder / "files" / rows.uid
            place.mkdir(parents=True)
            frames = []
            for view, jpeg in enumerate(rows.jpegs):
                (place / f"{view:03d}.png").write_bytes(images.encode_png(images.decode(jpeg)))
                w2c = np.linalg.inv(rows.c2w[view]).tolist()
                frames.append({"image_path": f"{view:03d}.png", "w2c": w2c, "fxfycxcy": rows.intrinsics[view].tolist()})
            (place / "scene.json").write_text(json.dumps({"scene_name": rows.uid, "frames": frames}))


UNUSED = {  # what streaming imports for datasets that nobody reads here, and which not every torch has a build of
    "torchvision.datasets": "VisionDataset",
    "torchvision.transforms.functional": "to_tensor",
    "transformers.feature_extraction_utils": "BatchFeature",
    "transformers.tokenization_utils_base": "BatchEncoding",
    "transformers.models.auto.tokenization_auto": "AutoTokenizer",
}


def _mosaic() -> Any:
    """The package of mosaicml-streaming, or None."""
    if importlib.util.find_spec("streaming") is None:
        return None
    for name, has in UNUSED.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(parts[end - 1]))
        setattr(sys.modules[name], has, type(has, (), {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("streaming")


def pick(jpegs: list[bytes], c2w: np.ndarray, k: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Eight random views of an object: pictures (8, 3, H, W) uint8, c2w, fxfycxcy."""
    views = np.random.default_rng().permutation(len(jpegs))[:VIEWS]
    pixels = [cv2.imdecode(np.frombuffer(jpegs[view], np.uint8), cv2.IMREAD_COLOR_RGB) for view in views]
    return (
        torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2)),
        torch.from_numpy(c2w[views]),
        torch.from_numpy(k[views]),
    )


class OneFilePerView(torch.utils.data.Dataset[Any]):
    """PNG and JSON, a folder per object."""

    def __init__(self, folder: Path) -> None:
        self.scenes = sorted(folder.glob("*/scene.json"))

    def __len__(self) -> int:
        return 1_000_000  # an epoch that does not end while it is timed

    def __getitem__(self, at: int) -> tuple[torch.Tensor, ...]:
        path = self.scenes[at % len(self.scenes)]
        frames = json.loads(path.read_text())["frames"]
        chosen = [frames[view] for view in np.random.default_rng().permutation(len(frames))[:VIEWS]]
        pixels = np.stack([np.asarray(Image.open(path.with_name(frame["image_path"]))) for frame in chosen])
        c2w = np.linalg.inv(np.array([frame["w2c"] for frame in chosen], np.float32))
        k = np.array([frame["fxfycxcy"] for frame in chosen], np.float32)
        return torch.from_numpy(pixels.transpose(0, 3, 1, 2)), torch.from_numpy(c2w), torch.from_numpy(k)


def _torch_loader(dataset: Any, options: Options, workers: int, **more: Any) -> Iterator[Any]:
    cv2.setNumThreads(1)
    return iter(torch.utils.data.DataLoader(dataset, options.batch, num_workers=workers, **more))


def webdataset_way(folder: Path, options: Options, workers: int) -> Iterator[Any]:
    """One tar; each process reads all of it, again and again, and shuffles within a buffer."""
    import webdataset

    def sample(members: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        jpegs = [members[name] for name in sorted(members) if name.endswith(".jpg")]
        return pick(jpegs, *pickle.loads(members["cameras.pkl"]))

    tar = str(folder / "objects.tar")
    dataset = webdataset.WebDataset(tar, resampled=True, shardshuffle=False, empty_check=False).shuffle(16).map(sample)
    return _torch_loader(dataset, options, workers)


class _OfMosaic:
    """Made where streaming can be imported."""

    def __new__(cls, streaming: Any, folder: Path, options: Options) -> Any:
        class Objects(streaming.StreamingDataset):  # type: ignore[misc, name-defined]
            def __getitem__(self, at: int) -> tuple[torch.Tensor, ...]:
                one = super().__getitem__(at)
                return pick(one["jpegs"], one["c2w"], one["k"])

        return Objects(
            local=str(folder / "mds"),
            shuffle=True,
            batch_size=options.batch,
            epoch_size=200_000,
            allow_unsafe_types=True,
        )


def decoding_alone(folder: Path, options: Options, workers: int) -> Iterator[Any]:
    """Batches of decoded pictures, out of memory and into nothing."""
    path = find_shards(folder / "shards")[options.res][0]
    jpegs = [np.frombuffer(jpeg, np.uint8) for rows in itertools.islice(read_objects(path), 40) for jpeg in rows.jpegs]

    def decode(start: int) -> None:
        for at in range(start, start + VIEWS):
            cv2.imdecode(jpegs[at % len(jpegs)], cv2.IMREAD_COLOR_RGB)

    with ThreadPoolExecutor(workers) as pool:
        for step in itertools.count():
            yield list(pool.map(decode, range(step, step + options.batch * VIEWS, VIEWS)))


class README(torch.utils.data.Dataset[Any]):
    """What the README hands to a DataLoader, without an end."""

    def __init__(self, folder: Path) -> None:
        self.views = pipeline.open(folder).views(VIEWS)

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, at: int) -> dict[str, Any]:
        return self.views[at % len(self.views)]


def reading(folder: Path, options: Options, ours: bool) -> Iterator[Any]:
    """Objects in random order, undecoded, in one thread: row groups by pyarrow, or what `pipeline.open` makes of them."""
    data = pipeline.open(folder)
    files = [pq.ParquetFile(path) for path in data.shards]
    places = [(file, group) for file in files for group in range(file.num_row_groups)]
    rng = np.random.default_rng(0)
    while True:
        batch = rng.integers(len(data), size=options.batch).tolist()
        if ours:
            yield [data[at] for at in batch]
        else:
            yield [places[at][0].read_row_group(places[at][1], use_threads=False) for at in batch]


@dataclass(frozen=True)
class Pace:
    """Samples a second, and seconds of CPU that one takes, over all threads and processes."""

    rate: float
    cpu_s: float


def pace(batches: Iterator[Any], options: Options) -> Pace:
    """Pace of a way, without the start."""
    for _ in itertools.islice(batches, 8):
        pass
    start, cpu, count = time.perf_counter(), cpu_now(), 0
    while time.perf_counter() - start < options.seconds:
        next(batches)
        count += options.batch
    spent, cpu = time.perf_counter() - start, cpu_now() - cpu
    if hasattr(batches, "close"):
        batches.close()
    return Pace(count / spent, cpu / count)


def cpu_now() -> float:
    """Seconds of CPU that this process and those that it started have taken; others on the machine do not count."""
    children = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(one.user + one.system for one in children)


def ways(folder: Path, options: Options, workers: int) -> dict[str, Way]:
    """Name -> batches without end."""

    def ours(cache: Any) -> Iterator[Any]:
        cfg = DataConfig((folder / "shards",), batch=options.batch, cache=cache, workers=workers)
        return Data(cfg).batches()

    made: dict[str, Way] = {
        DECODE: lambda: decoding_alone(folder, options, workers),
        "our shards": lambda: ours("none"),
        "our shards, in memory": lambda: ours("memory"),
        READ: lambda: reading(folder / "shards", options, ours=False),
        "pipeline.open, undecoded": lambda: reading(folder / "shards", options, ours=True),
        "the README's DataLoader": lambda: _torch_loader(README(folder / "shards"), options, workers, shuffle=True),
        "one file per view": lambda: _torch_loader(OneFilePerView(folder / "files"), options, workers, shuffle=True),
    }
    if importlib.util.find_spec("webdataset"):
        made["webdataset"] = lambda: webdataset_way(folder, options, workers)
    if streaming := _mosaic():
        made["mosaicml-streaming"] = lambda: _torch_loader(_OfMosaic(streaming, folder, options), options, workers)
    return made


def main() -> None:
    """Print a table."""
    options = tyro.cli(Options, description=__doc__)
    workers = options.workers or len(os.sched_getaffinity(0))
    paces: dict[str, list[Pace]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_shards(options, folder / "shards")
        make_others(options, folder)
        for _ in range(options.repeats):
            for name, way in ways(folder, options, workers).items():
                if not options.takes(name):
                    continue
                paces.setdefault(name, []).append(pace(way(), options))
        size = sum(path.stat().st_size for path in find_shards(folder / "shards")[options.res])
    kilobytes = size / options.objects / options.views / 1e3
    print(f"{options.res} pixels, {kilobytes:.1f} kB per view, {VIEWS} of {options.views} views, {workers} workers")
    print(f"{'':<26}samples/s  of {DECODE}: rate, CPU  of {READ}: rate, CPU")
    for name, found in paces.items():
        line = f"{name:<26}{statistics.median(one.rate for one in found):9.0f}"
        for base in (DECODE, READ):
            rate = statistics.median(one.rate / floor.rate for one, floor in zip(found, paces[base], strict=True))
            cpu = min(floor.cpu_s for floor in paces[base]) / min(one.cpu_s for one in found)
            line += f"{rate:20.2f}{cpu:6.2f}"
        print(line)


if __name__ == "__main__":
    main()
