"""Batches for a trainer from shards. The batch of a step depends on the seed and the step alone: see samples.py."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from lvsm_train.config import shapes
from lvsm_train.config.parts import DataConfig, Layer
from lvsm_train.config.shapes import HW
from lvsm_train.data import samples, view_sampling
from lvsm_train.data.index import Files, Index, decode_all, memory_free, read_index
from lvsm_train.data.kept import DecodedPictures, Memory
from lvsm_train.data.layers import channels, check_layers, decode_layers, read_layers
from lvsm_train.data.samples import Sample
from pipeline.storage.object_table import objects_told
from pipeline.storage.shards import TIME, columns_of, facts_of

__all__ = ["Batch", "Data", "DataConfig", "Sample"]

WHITE = [255, 255, 255]
MEMORY_SHARE = 0.4  # of free host memory that decoded images may take
TENSORS = ("image", "c2w", "fxfycxcy", "time", "target_image", "target_c2w", "target_fxfycxcy", "target_time")


@dataclass(frozen=True)
class Batch:
    """B samples with V inputs and T targets each, on one device.

    image: (B, V, 3, H, W) uint8 sRGB. c2w: (B, V, 4, 4) float32, OpenCV axes. fxfycxcy: (B, V, 4) float32, in pixels of
    these images. time: (B, V) float32, from 0 at an object's first time to 1 at its last, 0 of what stands still. target_image,
    target_c2w, target_fxfycxcy, target_time: likewise with T instead of V. uids: B names of objects.
    target_layers: (B, T, C, H, W) float16, what --aux predicts, as `data.layers` says; None without it.
    """

    image: torch.Tensor
    c2w: torch.Tensor
    fxfycxcy: torch.Tensor
    time: torch.Tensor
    target_image: torch.Tensor
    target_c2w: torch.Tensor
    target_fxfycxcy: torch.Tensor
    target_time: torch.Tensor
    uids: list[str]
    target_layers: torch.Tensor | None = None

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that a training step reads, in the order of TENSORS, and target_layers where they are there."""
        given = [getattr(self, name) for name in TENSORS]
        return given if self.target_layers is None else [*given, self.target_layers]

    @property
    def rgb(self) -> torch.Tensor:
        """Inputs in [0, 1], float32."""
        return self.image.float() / 255

    @property
    def target_rgb(self) -> torch.Tensor:
        """Targets in [0, 1], float32."""
        return self.target_image.float() / 255

    def cropped(self, hw: HW) -> Batch:
        """Middle of all pictures, of size hw; intrinsics follow. The same memory."""
        high, wide = self.image.shape[-2:]
        if hw == (high, wide):
            return self
        top, left = (high - hw[0]) // 2, (wide - hw[1]) // 2
        shift = self.fxfycxcy.new_tensor([0, 0, left, top])

        def middle(pictures: torch.Tensor) -> torch.Tensor:
            return pictures[..., top : top + hw[0], left : left + hw[1]]

        return replace(
            self,
            image=middle(self.image),
            fxfycxcy=self.fxfycxcy - shift,
            target_image=middle(self.target_image),
            target_fxfycxcy=self.target_fxfycxcy - shift,
            target_layers=None if self.target_layers is None else middle(self.target_layers),
        )

    def to(self, device: str | torch.device) -> Batch:
        """Copy to a device; asynchronously from pinned memory."""
        names = (*TENSORS, "target_layers")
        moved: dict[str, Any] = dict(
            zip(names, [one.to(device, non_blocking=True) for one in self.tensors], strict=False)
        )
        return replace(self, **moved)


def not_white(paths: Iterable[Path]) -> list[str]:
    """A note if pictures have another background, for which the foreground's scores would be read wrongly; else [].

    A run has one setting for all its shards, so that one of each folder is looked at.
    """
    one_each = {path.parent: path for path in paths}.values()
    found = {json.dumps(facts_of(path).get("background", WHITE)) for path in one_each}
    if others := sorted(found - {json.dumps(WHITE)}):
        return [
            f"the foreground is what is not white, and backgrounds here are {', '.join(others)}: it is the whole picture"
        ]
    return []


def moving(paths: Sequence[Path]) -> list[str]:
    """A note if scenes move, of which a model without --temporal knows no times; else []. Its folder's shards are alike."""
    folders = {path.parent: path for path in paths}
    timed = {folder for folder, path in folders.items() if TIME in columns_of(path)}
    known = [objects_told(path).get("instants", []) for path in paths if path.parent in timed]
    count = sum(instants is not None for of in known for instants in of)
    said = f"scenes that move: {count}; they train as if they stood still, all times at once; --temporal learns time"
    return [said] if count else []


Plan = Callable[[], tuple[Index, Sequence[Sample]]]


class End:
    """Type of the value that follows the last plan."""


END = End()


@dataclass(frozen=True)
class _Pending:
    """A batch under way. pixels, layers (of its targets): perhaps still being filled by `jobs`, None where the device has those
    of all views; rows: then (B, V + T) of its views in the index, else None. aux: layers are asked for."""

    samples: Sequence[Sample]
    rows: torch.Tensor | None
    c2w: torch.Tensor
    fxfycxcy: torch.Tensor
    time: torch.Tensor
    pixels: torch.Tensor | None
    layers: torch.Tensor | None
    jobs: list[Future[None]]
    aux: bool


class Data:
    """Batches from some shards. Each rank has its own, with the whole index.

    index: objects and cameras. planner: chooses views. notes: for the user. sizes: (height, width) of pictures; training steps
    have one of them, all else has the first. cached: where decoded images are kept, "memory", "device" or "none".
    """

    def __init__(
        self,
        cfg: DataConfig,
        rank: int = 0,
        world: int = 1,
        device: str | torch.device = "cpu",
        accumulate: int = 1,
        split: str = "",
        aux: Sequence[Layer] = (),
        patch: int = 1,
        temporal: bool = False,
    ) -> None:
        """Read the index, and decode all images if they are cached. accumulate: batches per step and rank. split: as in
        read_index. aux: layers that training batches have besides. patch: pictures of cfg.aspect are multiples of it.
        temporal: the model knows times.

        Raises UserError like DataConfig.check and read_index, for broken images, and for shards without these layers.
        """
        cfg.check()
        cv2.setNumThreads(1)  # our threads decode an image each; threads within OpenCV would only compete with them
        self.cfg, self.device = cfg, torch.device(device)
        # parts: batches of a step over all ranks; ours: this rank's. Their union does not depend on the number of ranks
        self.parts, self.ours = world * accumulate, range(rank, world * accumulate, world)
        if self.device.type == "cuda" and self.device.index is None:  # "cuda" is the first GPU in other threads
            self.device = torch.device("cuda", torch.cuda.current_device())
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        cores = max(1, len(os.sched_getaffinity(0)) // ranks_here)
        self.index = read_index(cfg.data, cfg.res, cores, split, cfg.check_images)
        self.sizes = shapes.sizes(cfg.aspect, self.index.hw, patch)
        self.planner = samples.Planner(cfg, self.index)
        self.notes = self.planner.notes + not_white(self.index.paths)
        self.notes += [] if temporal else moving(self.index.paths)
        self.aux = tuple(aux)
        check_layers(self.index, self.planner.train, self.aux)
        needed = len(self.index.c2w) * (3 + 2 * channels(self.aux)) * self.index.hw[0] * self.index.hw[1]
        fits = needed <= MEMORY_SHARE * memory_free() / ranks_here
        self.cached = ("memory" if fits else "none") if cfg.cache == "auto" else cfg.cache
        self.pixels: torch.Tensor | None = None
        self.layers: torch.Tensor | None = None
        if self.cached != "none":
            at = self.device if self.cached == "device" else torch.device("cpu")
            self.pixels = decode_all(self.index, at, cores, quiet=rank > 0)
            if self.aux and len(self.planner.train):  # of a cycle only what is held out is here
                self.layers = decode_layers(
                    self.index, self.planner.train.tolist(), self.aux, at, cores, quiet=rank > 0
                )
        elif slow := int((self.index.chunk[:, 1] == 0).sum()):
            self.notes.append(f"{slow} objects are not packed as lvsm-data does it: their pictures are slow to find")
        self.workers = cfg.workers if cfg.workers is not None else max(1, cores - 1 if self.pixels is None else 1)
        self.files = Files()
        self.memory = Memory()
        # of plans with an index of their own, whose objects come again: the shards of a cycle
        room = MEMORY_SHARE * memory_free() / ranks_here if cfg.cache != "none" else 0.0
        self.decoded = DecodedPictures(room)

    @property
    def hw(self) -> tuple[int, int]:
        """(height, width) of pictures that do not train, and without cfg.aspect of all."""
        return self.sizes[0]

    def summary(self) -> str:
        """Sizes and cache of the data, for display."""
        planner = self.planner
        at = " or ".join(dict.fromkeys(f"{width}x{height}" for height, width in self.sizes))
        return (
            f"{len(planner.train)} objects train at {at} pixels, {len(planner.val)} are held out; "
            f"decoded pictures in {self.cached if self.cached != 'none' else 'no cache: read as they are needed'}"
        )

    def epochs(self, steps: int) -> float:
        """Epochs that `steps` steps of all ranks make."""
        entries = steps * self.parts * self.cfg.batch / self.cfg.samples_per_object
        return entries / max(1, len(self.planner.train))

    def close(self) -> None:
        """Close shard files. Iterators must have ended."""
        self.files.close()

    def gather(self, some: Sequence[Sample]) -> Batch:
        """Load samples as a batch. Raises ValueError if their numbers of views differ, UserError for broken shards."""
        return self._finish(self._begin(lambda: (self.index, some), _run_now, False)).cropped(self.hw)

    def batches(self, start: int = 0) -> Generator[Batch, None, None]:
        """Yield this rank's batches of all steps from `start` on, endlessly, prefetched by threads. Close after use."""
        steps = itertools.count(start)
        plan = self.planner.training
        plans = (functools.partial(plan, step, part, self.parts) for step in steps for part in self.ours)
        with contextlib.closing(self._prefetched(plans, bool(self.aux))) as made:
            for number, batch in enumerate(made):
                yield self.shaped(batch, start + number // len(self.ours))

    def shaped(self, batch: Batch, step: int) -> Batch:
        """Batch of a training step in that step's size."""
        return batch.cropped(self.sizes[view_sampling.shape_number(self.cfg.seed, step, len(self.sizes))])

    def evaluation_batches(self, of: Sequence[Sample], size: int) -> Iterator[Batch]:
        """Yield batches of at most `size` samples in order; each has samples with equal numbers of views."""
        lists = samples.equal_views(of, size)
        with contextlib.closing(self._prefetched((functools.partial(list, some) for some in lists), False)) as made:
            yield from (batch.cropped(self.hw) for batch in made)

    def _prefetched(self, plans: Iterator[Callable[[], Sequence[Sample]]], aux: bool) -> Generator[Batch, None, None]:
        with contextlib.closing(self.poll((functools.partial(self._planned, plan) for plan in plans), aux)) as batches:
            yield from (batch for batch in batches if batch is not None)

    def _planned(self, plan: Callable[[], Sequence[Sample]]) -> tuple[Index, Sequence[Sample]]:
        return self.index, plan()

    def poll(self, plans: Iterator[Plan | None], aux: bool) -> Generator[Batch | None, None, None]:
        """Yield the batches of plans, which may have an index each, prefetched by threads. Close after use. aux: with layers.

        A plan may be None (no plan yet). Yields None while there is no plan and no batch under way.
        """
        if self.workers == 0:
            for each in plans:
                yield self._finish(self._begin(each, _run_now, aux)) if each else None
            return
        pool = ThreadPoolExecutor(self.workers, "data", self._start_thread)
        ahead: deque[Future[_Pending]] = deque()
        depth = max(self.cfg.prefetch, -(-self.workers // self.cfg.batch))  # fewer would leave threads idle
        more = True
        try:
            while True:
                while more and len(ahead) < depth:
                    plan: Plan | End | None = next(plans, END)
                    if plan is None:
                        break
                    if isinstance(plan, End):
                        more = False
                    else:
                        ahead.append(pool.submit(self._begin, plan, pool.submit, aux))
                if not ahead and not more:
                    return
                yield self._finish(ahead.popleft().result()) if ahead else None
        finally:
            pool.shutdown(cancel_futures=True)

    def _start_thread(self) -> None:
        if self.device.type == "cuda":  # the current GPU is a setting of each thread
            torch.cuda.set_device(self.device)

    def _begin(self, plan: Plan, submit: Callable[..., Future[None]], aux: bool) -> _Pending:
        """Prepare a batch on the host: choose views, compute cameras, and submit the decoding of images without waiting."""
        index, some = plan()
        cached = self.pixels is not None and index is self.index
        if len({(len(sample.inputs), len(sample.targets)) for sample in some}) != 1:
            raise ValueError("samples of one batch need equally many inputs, and equally many targets")
        views = [sample.inputs + sample.targets for sample in some]
        rows = np.array(views) + index.first[[sample.number for sample in some]][:, None]
        c2w = index.c2w[rows]
        if any(sample.angle for sample in some):
            c2w = view_sampling.rotate_z(c2w, np.array([sample.angle for sample in some]))
        for place, sample in enumerate(some):
            if sample.is_scene:
                c2w[place] = view_sampling.normalise_poses(c2w[place])
        given = c2w, index.fxfycxcy[rows], index.time[rows]
        pose, k, time = (self._pinned(torch.from_numpy(each)) for each in given)
        if cached and self.cached == "device":
            return _Pending(some, self._pinned(torch.from_numpy(rows)), pose, k, time, None, None, [], aux)
        pixels, inputs = self._empty((*rows.shape, 3, *self.index.hw)), len(some[0].inputs)
        layers, asked = None, rows[:, inputs:]
        if aux:
            layers = self._empty((*asked.shape, channels(self.aux), *self.index.hw), 2).view(torch.float16)
        if cached and self.pixels is not None:
            np.take(self.pixels.numpy(), rows, 0, pixels.numpy(), mode="clip")  # other modes copy first
            if layers is not None and self.layers is not None:
                np.take(self.layers.numpy(), asked, 0, layers.numpy(), mode="clip")
            return _Pending(some, None, pose, k, time, pixels, layers, [], aux)
        rows_of: dict[int, list[int]] = defaultdict(list)
        for each, sample in enumerate(some):
            rows_of[sample.number].append(each)
        objects, pictures = [*rows_of.items()], pixels.flatten(0, 1).numpy()
        parts = min(len(objects), max(1, self.workers))  # a job costs about as much as a small picture
        jobs = [submit(self._read, index, objects[at::parts], views, pictures) for at in range(1, parts)]
        if layers is not None:
            out, targets = layers.numpy(), np.array([sample.targets for sample in some])
            jobs += [submit(self._read_layers, index, number, within, targets, out) for number, within in objects]
        self._read(index, objects[::parts], views, pictures)
        return _Pending(some, None, pose, k, time, pixels, layers, jobs, aux)

    def _empty(self, shape: tuple[int, ...], size: int = 1) -> torch.Tensor:
        """Tensor of uint8 with any content, whose last axis holds numbers of `size` bytes; pinned for a GPU."""
        shape = (*shape[:-1], shape[-1] * size)
        pin = self.device.type == "cuda"
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True) if pin else self.memory.take(shape)

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _read(
        self,
        index: Index,
        objects: Iterable[tuple[int, list[int]]],
        views: Sequence[Sequence[int]],
        out: np.ndarray,
    ) -> None:
        """Decode views of objects, each once. objects: number and rows of each in a batch. views: (B, S).

        out: (B * S, 3, H, W).
        """
        size = len(views[0])
        for number, rows in objects:
            at = {view: place for row in rows for place, view in enumerate(views[row], row * size)}
            self._decode(index, number, at, out)
            for row in rows if len(at) < len(rows) * size else ():  # some views occur again
                out[row * size : (row + 1) * size] = out[[at[view] for view in views[row]]]

    def _decode(self, index: Index, number: int, at: dict[int, int], out: np.ndarray) -> None:
        """Put views of an object, by number, into rows of `out`; those that are kept need no decoding."""
        kept = None
        if index is not self.index:
            path, shape = index.paths[index.path[number]], (index.views(number), 3, *index.hw)
            kept = self.decoded.of(path, index.uids[number], shape)
        if kept is None:
            index.decode(number, [*at], index.packed(number, self.files), [out[place] for place in at.values()])
            return
        pictures, there = kept
        if missing := [view for view in at if not there[view]]:
            index.decode(number, missing, index.packed(number, self.files), [pictures[view] for view in missing])
            there[missing] = True
        for view, place in at.items():
            out[place] = pictures[view]

    def forget(self, path: Path) -> None:
        """Close a shard file and give up what is kept of it: it is not used any more."""
        self.files.forget(path)
        self.decoded.forget(path)

    def _read_layers(self, index: Index, number: int, within: list[int], views: np.ndarray, out: np.ndarray) -> None:
        """Read the layers of an object's targets, each once, into rows `within`. views: (B, T). out: (B, T, C, H, W)."""
        asked = sorted(set(views[within].flatten().tolist()))
        read = read_layers(index, number, asked, self.aux, self.files)
        for row in within:
            out[row] = read[np.searchsorted(asked, views[row])]

    def _finish(self, pending: _Pending) -> Batch:
        """Wait for decoding, and copy to the device."""
        for job in pending.jobs:
            job.result()
        counts = len(pending.samples[0].inputs), len(pending.samples[0].targets)
        pixels, layers = pending.pixels, pending.layers
        if pending.rows is not None:
            assert self.pixels is not None
            rows = pending.rows.to(self.device, non_blocking=True)
            pixels = _rows_of(self.pixels, rows)
            if pending.aux:
                assert self.layers is not None
                layers = _rows_of(self.layers, rows[:, counts[0] :])
        assert pixels is not None
        given = pixels, pending.c2w, pending.fxfycxcy, pending.time
        (image, target_image), (c2w, target_c2w), (k, target_k), (time, target_time) = (
            each.to(self.device, non_blocking=True).split(counts, 1) for each in given
        )
        return Batch(
            image=image,
            c2w=c2w,
            fxfycxcy=k,
            time=time,
            target_image=target_image,
            target_c2w=target_c2w,
            target_fxfycxcy=target_k,
            target_time=target_time,
            uids=[sample.uid for sample in pending.samples],
            target_layers=None if layers is None else layers.to(self.device, non_blocking=True),
        )


def _rows_of(kept: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows (B, S) of kept (M, ...): (B, S, ...)."""
    return kept.index_select(0, rows.flatten()).view(*rows.shape, *kept.shape[1:])


def _run_now(work: Callable[..., None], *given: Any) -> Future[None]:
    """Run `work` now and return a finished Future, with the signature of Executor.submit."""
    work(*given)
    done: Future[None] = Future()
    done.set_result(None)
    return done
