"""How long a training step takes: ours against the LVSM authors' classes on the same batch, on one device, in one run.

    python benchmarks/training.py --official ../LVSM             # a GPU with 80 GB or more; benchmarks/_official.py
    python benchmarks/training.py --official ../LVSM --tiny      # small enough for a CPU: shows that it runs, and no more

Three pairs: the official model and batch (2 inputs, 6 targets, 256 pixels, batch 8); objects (4 and 8, batch 4), where ours is
unidirectional; and a small model (64 pixels, 4 and 4, batch 64). Both of a pair see the same random batch, have squared error
as loss, clip, and move all weights by fused AdamW. The authors' classes recompute every block and run eagerly, as they ship;
ours recompute what does not fit, choose kernels by measurement, and are compiled or recorded. Rounds alternate; medians count.
MFU: model operations, attention counted and recomputation not, over the GPU's dense bf16 peak. Memory is each one's own.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import _official
import torch
import tyro
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from lvsm_train.config.presets import PRESETS
from lvsm_train.config.train import ModelConfig, OptimConfig
from lvsm_train.device import activations, tuning
from lvsm_train.device.devices import device_of
from lvsm_train.device.flops import attentions, peak_flops, training_flops
from lvsm_train.device.graphs import Recorded
from lvsm_train.models import lvsm
from lvsm_train.training.optim import Optimizers
from lvsm_train.weights.official import from_official
from pipeline.core import cameras
from pipeline.core.errors import UserError

Batch = tuple[Tensor, ...]  # image, c2w, fxfycxcy of inputs; c2w, fxfycxcy, image of targets
OPTIM = OptimConfig(skip_above=0, warmup=0)


@dataclass(frozen=True)
class Options:
    """What to time."""

    official: Path | None = None
    """A checkout of the authors' code. Without it ours are timed alone."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ..."""
    compile: Literal["auto", "no", "blocks", "graphs"] = "auto"
    """How our steps are compiled."""
    rounds: int = 5
    """How often each is timed."""
    steps: int = 10
    """Steps of a round."""
    tiny: bool = False
    """Two layers of width 64 at 32 pixels, batch 2."""


@dataclass(frozen=True)
class Case:
    """A model and a batch of B scenes with V inputs and T targets, square pictures of `res` pixels."""

    name: str
    config: ModelConfig
    batch: int
    inputs: int
    targets: int
    res: int

    @property
    def shape(self) -> tuple[int, int, int, tuple[int, int]]:
        return self.batch, self.inputs, self.targets, (self.res, self.res)


@dataclass
class Timed:
    """A way to make a step, and how it did. own_bytes: what is there between steps."""

    case: Case
    says: str
    step: Callable[[], object]
    own_bytes: int = 0
    seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)


def pairs(tiny: bool) -> list[tuple[Case, Case]]:
    """(the authors', ours) of each comparison."""
    official = PRESETS["official-dec"].model
    small = dataclasses.replace(official, dim=256, layers=6)
    if tiny:
        official = small = dataclasses.replace(official, dim=64, layers=2)
    one_way = dataclasses.replace(official, kind="unidirectional", encoder_layers=official.layers // 2)

    def case(name: str, config: ModelConfig, *shape: int) -> Case:
        return Case(name, config, *((2, *shape[1:3], 32) if tiny else shape))

    scenes, objects, quick = (8, 2, 6, 256), (4, 4, 8, 256), (64, 4, 4, 64)
    return [
        (case("decoder-only, 2+6", official, *scenes), case("decoder-only, 2+6", official, *scenes)),
        (case("decoder-only, 4+8", official, *objects), case("unidirectional, 4+8", one_way, *objects)),
        (case("small, 4+4", small, *quick), case("small, 4+4", small, *quick)),
    ]


def batch_of(case: Case, device: torch.device) -> Batch:
    """Noise, seen by cameras around it."""
    generator = torch.Generator().manual_seed(0)
    views = case.inputs + case.targets
    image = torch.rand(case.batch, views, 3, case.res, case.res, generator=generator)
    eyes = torch.randn(case.batch * views, 3, generator=generator).numpy()
    c2w = torch.from_numpy(cameras.look_at(eyes)).float().unflatten(0, (case.batch, views))
    k = torch.from_numpy(cameras.intrinsics(50, (case.res, case.res))).float().expand(case.batch, views, 4)
    v = case.inputs
    return tuple(one.to(device) for one in (image[:, :v], c2w[:, :v], k[:, :v], c2w[:, v:], k[:, v:], image[:, v:]))


def ours(case: Case, way: str, device: torch.device) -> Timed:
    """A step as `lvsm-data train` makes it."""
    net = lvsm.build(case.config, 0).to(device)
    batch = batch_of(case, device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    attention = tuning.use_attention(tuning.choose_attention(attentions(case.config, *case.shape), device, dtype))

    def work(key: object, *given: Tensor) -> dict[str, Tensor]:
        with _official.autocast(device):
            image = net(*given[:-1])
        loss = (image - given[-1]).square().mean()
        loss.backward()
        return {"loss": loss.detach()}

    def forward(samples: int) -> Tensor:
        with _official.autocast(device):
            image: Tensor = net(*(one[:samples] for one in batch[:-1]))
        return image

    free = activations.budget(net, device)
    recomputed = 0
    if free is not None:
        recomputed = activations.blocks_to_recompute(activations.estimate_saved(net, forward, case.batch), free)
        net.set_recompute(recomputed)
    if way == "auto":
        way = tuning.compile_mode(device, training_flops(case.config, *case.shape), fixed=True)
    if way != "no":
        tuning.compile_blocks(net, fixed=True)
    run = Recorded(net, work) if way == "graphs" else work
    optimizers = Optimizers(net, OPTIM, 1_000_000)

    def step() -> None:
        run(None, *batch)
        optimizers.step(0)

    return Timed(case, f"ours; {attention}; {recomputed} recomputed; compiled: {way}", step)


def theirs(case: Case, checkout: Path, device: torch.device) -> Timed:
    """A step as the authors' trainer makes it."""
    net = _official.official(checkout, case.config, case.inputs, case.targets, case.res)
    apart = difference(net, case)
    net = net.to(device)
    image, c2w, k, target_c2w, target_k, target = batch_of(case, device)
    views = torch.cat([image, target], 1), torch.cat([c2w, target_c2w], 1), torch.cat([k, target_k], 1)
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in parameters if one.dim() != 1], "weight_decay": OPTIM.weight_decay},
        {"params": [one for one in parameters if one.dim() == 1], "weight_decay": 0.0},
    ]
    fused = torch.optim.AdamW(groups, lr=OPTIM.lr, betas=(OPTIM.beta1, OPTIM.beta2), fused=True)

    def step() -> None:
        with _official.autocast(device):
            loss = (_official.render(net, *views) - target).square().mean()
        loss.backward()
        for parameter in parameters:
            if parameter.grad is not None:
                torch.nan_to_num_(parameter.grad, nan=0.0, posinf=1e-3, neginf=-1e-3)
        nn.utils.clip_grad_norm_(parameters, OPTIM.clip).item()
        fused.step()
        fused.zero_grad(set_to_none=True)

    return Timed(case, f"official; ours with its weights differs by at most {apart:.0e} (float32, CPU)", step)


@torch.no_grad()
def difference(net: nn.Module, case: Case) -> float:
    """The largest, of one scene's pictures, with weights that are wide enough to show something: are both the same function?"""
    small = dataclasses.replace(case, batch=1, res=case.config.patch * 4)
    image, c2w, k, target_c2w, target_k, target = batch_of(small, torch.device("cpu"))
    views = torch.cat([image, target], 1), torch.cat([c2w, target_c2w], 1), torch.cat([k, target_k], 1)
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    for weight in net.parameters():
        weight.mul_(1 if weight.dim() == 1 else 5)
    same = from_official(net.state_dict())
    apart = same(image, c2w, k, target_c2w, target_k) - _official.render(net, *views)
    net.load_state_dict(before)
    return float(apart.abs().max())


def measure(ways: list[Timed], options: Options, device: torch.device) -> None:
    """Rounds in turns, after one that warms up."""
    for number in range(options.rounds + 1):
        for way in ways:
            before = _allocated(device)
            spent, peak = _round(way.step, options.steps, device)
            if number == 0:
                way.own_bytes += _allocated(device) - before  # moments of the optimiser, graphs
            else:
                way.seconds.append(spent / options.steps)
                way.peak_bytes.append(peak - before + way.own_bytes)


def _round(step: Callable[[], object], steps: int, device: torch.device) -> tuple[float, int]:
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if on_gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, torch.cuda.max_memory_allocated(device) if on_gpu else 0


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def show(ways: list[Timed], device: torch.device) -> None:
    """A line for each, and how many times as quick ours is, per scene."""
    peak = peak_flops(device)
    rates = []
    for way in ways:
        case, seconds = way.case, statistics.median(way.seconds)
        flops = training_flops(case.config, *case.shape) / seconds
        rates.append(case.batch / seconds)
        figures = [
            f"{seconds * 1e3:9.1f} ms/step",
            f"{case.batch * (case.inputs + case.targets) / seconds:8.1f} images/s",
            f"{rates[-1]:7.2f} scenes/s",
            f"{flops / 1e12:8.3f} TFLOP/s",
        ]
        if peak:
            figures.append(f"MFU {flops / peak:.1%}")
        if device.type == "cuda":
            figures.append(f"{max(way.peak_bytes) / 1e9:.1f} GB")
        print(f"{case.name:<22}{'  '.join(figures)}\n    {way.says}")
    if len(ways) == 2:
        print(f"    ours: {rates[1] / rates[0]:.2f} x the official scenes/s")


def main() -> None:
    """Print three pairs."""
    options = tyro.cli(Options, description=__doc__)
    device = device_of(options.device)
    torch.set_float32_matmul_precision("high")
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads")
    for reference, own in pairs(options.tiny):
        makers: list[Callable[[], Timed]] = [lambda own=own: ours(own, options.compile, device)]
        if (checkout := options.official) is not None:
            makers.insert(0, lambda reference=reference: theirs(reference, checkout, device))
        ways = []
        for make in makers:
            before = _allocated(device)
            ways.append(make())
            ways[-1].own_bytes = _allocated(device) - before
        measure(ways, options, device)
        show(ways, device)
        del ways
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}\nhint: {error.hint}")
