"""Optimisations that must not change results: chosen kernels, compiled blocks, recorded steps, recomputation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from lvsm_train.config.presets import PRESETS  # noqa: E402
from lvsm_train.config.train import DataConfig  # noqa: E402
from lvsm_train.device import activations, tuning  # noqa: E402
from lvsm_train.device.activations import Saved, blocks_to_recompute  # noqa: E402
from lvsm_train.device.flops import attentions, training_flops  # noqa: E402
from lvsm_train.device.graphs import Recorded  # noqa: E402
from lvsm_train.models import blocks  # noqa: E402
from lvsm_train.models.lvsm import BY_KIND, LVSM  # noqa: E402
from lvsm_train.training import train  # noqa: E402
from tests.lvsm_train.models.test_lvsm import cameras, gradients, largest, posed, tiny  # noqa: E402
from tests.lvsm_train.training.test_engine import short  # noqa: E402

DYNAMO = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # which it looks at
KIND = pytest.mark.parametrize("kind", list(BY_KIND))
CPU, GPU = torch.device("cpu"), torch.device("cuda")
HW = (12, 8)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Restore the process-wide kernel and compiler state after each test."""
    with blocks.attention("auto"):
        yield
    torch.compiler.reset()


def given(batch: int = 2, views: int = 2, targets: int = 2) -> tuple[Tensor, ...]:
    return (*posed(batch, views, HW), *cameras(batch, targets, HW, 7))


# Attention


def test_a_kernel_is_chosen_for_each_shape_and_used_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("unidirectional")
    asked = attentions(model.config, 2, 2, 3, HW)
    chosen = tuning.choose_attention(asked, CPU, torch.float32, ("flash", "math"))
    assert list(chosen) == asked and set(chosen.values()) <= {"flash", "math"}
    assert tuning.use_attention(tuning.choose_attention(asked, CPU, torch.float32)).startswith(
        "attention by auto (12 x 12)"
    )
    expected = model(*given(2, 2, 3))
    used: list[tuple[int, int]] = []

    def watched(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        used.append((q.shape[2], k.shape[2]))
        return blocks.KERNELS["math"](q, k, v, bias)

    monkeypatch.setitem(blocks.KERNELS, "cudnn", watched)
    said = tuning.use_attention({one: "cudnn" if one is asked[1] else "auto" for one in asked})
    assert said == "attention by auto (12 x 12), cudnn (6 x 6), auto (18 x 12)"
    assert largest(model(*given(2, 2, 3)) - expected) < 1e-5
    assert used == [(6, 6)] * asked[1].blocks


def test_a_kernel_that_cannot_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> Tensor:
        raise RuntimeError("No available kernel.")

    monkeypatch.setitem(blocks.KERNELS, "cudnn", refuses)
    asked = attentions(tiny("decoder_only").config, 1, 1, 1, HW)
    assert set(tuning.choose_attention(asked, CPU, torch.float32, ("cudnn", "auto")).values()) == {"auto"}


# Compilation


@DYNAMO
@KIND
def test_compiled_blocks_do_what_they_did(kind: str) -> None:
    model = tiny(kind, prope=True, layers=2, encoder_layers=1)
    image, slopes = gradients(model, *given())
    names, traced = list(model.state_dict()), counters["stats"]["unique_graphs"]
    tuning.compile_blocks(model, fixed=True, backend="aot_eager")
    for recomputed in (0, 2):
        model.set_recompute(recomputed)
        again, others = gradients(model, *given())
        assert largest(again - image) < 1e-5
        assert all(largest(others[name] - slopes[name]) < 1e-4 * largest(slopes[name]) for name in slopes)
    assert list(model.state_dict()) == names
    assert counters["stats"]["unique_graphs"] > traced and not counters["graph_break"]


@DYNAMO
def test_numbers_of_inputs_compile_nothing_after_the_second() -> None:
    model = tiny("decoder_only", layers=2)
    expected = [model(*given(2, views)) for views in range(1, 7)]
    tuning.compile_blocks(model, fixed=False, backend="aot_eager")
    found = [model(*given(2, views)) for views in (1, 2)]
    traced = counters["stats"]["unique_graphs"]
    found += [model(*given(2, views)) for views in range(3, 7)]
    assert counters["stats"]["unique_graphs"] == traced
    assert all(largest(a - b) < 1e-5 for a, b in zip(found, expected, strict=True))


@DYNAMO
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # that inductor earns
@pytest.mark.campaign
@KIND
def test_blocks_compiled_for_the_processor_do_what_they_did(kind: str) -> None:
    model = tiny(kind, prope=True)
    image, slopes = gradients(model, *given())
    tuning.compile_blocks(model, fixed=True)
    again, others = gradients(model, *given())
    assert largest(again - image) < 1e-5
    assert all(largest(others[name] - slopes[name]) < 1e-4 * largest(slopes[name]) for name in slopes)


def test_small_steps_are_recorded_and_large_ones_compiled() -> None:
    def way(name: str, batch: int, inputs: int, targets: int, res: int, fixed: bool = True) -> str:
        flops = training_flops(PRESETS[name].model, batch, inputs, targets, (res, res))  # type: ignore[index]
        assert tuning.compile_mode(CPU, flops, fixed) == "no"
        return tuning.compile_mode(GPU, flops, fixed)

    assert way("thesis64", 32, 4, 8, 64) == "graphs"
    assert way("thesis64", 32, 4, 8, 64, fixed=False) == "blocks"
    assert way("official-dec", 8, 2, 6, 256) == "blocks"


@DYNAMO
def test_evaluation_compiles_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose looks have other numbers of objects and targets than its steps, and a last batch that is smaller."""
    compile_blocks = functools.partial(tuning.compile_blocks, backend="aot_eager")
    monkeypatch.setattr(tuning, "compile_blocks", compile_blocks)
    traced: list[int] = []
    step = train.Behind.step

    def counting(self: object, *given: object) -> object:
        traced.append(counters["stats"]["unique_graphs"])
        return step(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(train.Behind, "step", counting)
    views = DataConfig((data,), inputs=2, targets=2, batch=3, workers=0)
    cfg = short(data, tmp_path, data=views, compile="blocks", steps=6, eval_every=2, eval_targets=5)
    result = train.train_fn(cfg)
    assert result.scores is not None and result.scores.targets == 10
    assert traced[0] > 0 and len(set(traced)) == 1 and len(traced) == 6


@DYNAMO
def test_compiled_blocks_keep_less_which_is_measured() -> None:
    model = tiny("unidirectional", prope=True, dim=64, head_dim=32)

    def forward(samples: int) -> Tensor:
        image: Tensor = model(*given(samples, 3, 2))
        return image

    before = activations.estimate_saved(model, forward, 4)
    tuning.compile_blocks(model, fixed=True, backend="aot_eager")
    model.set_recompute(1)
    after = activations.correct_for_compiled(before, model, forward, 4)
    assert [block.recompute for block in model.every_block()] == [True, False, False, False]
    model.set_recompute(0)
    assert sum(after.blocks) + after.rest == pytest.approx(
        activations._total_saved(model, lambda: forward(4)), rel=0.02
    )
    assert 0.3 < sum(after.blocks) / sum(before.blocks) < 0.95 and after.rest == before.rest
    tight = 0.6 * (sum(before.blocks) + before.rest)
    assert blocks_to_recompute(after, tight) < blocks_to_recompute(before, tight)


# Recorded steps


def test_a_recorded_step_adds_gradients_as_a_step_does() -> None:
    model = tiny("unidirectional")
    goal = torch.rand(2, 2, 3, *HW, generator=torch.Generator().manual_seed(9))

    def work(key: float, *batch: Tensor) -> dict[str, Tensor]:
        loss = key * (model(*batch[:-1]) - batch[-1]).square().mean()
        loss.backward()
        return {"loss": loss.detach()}

    _, slopes = gradients(model, *given())
    for parameter in model.parameters():
        parameter.grad = None
    step = Recorded(model, work)
    first = step(1.0, *given(), goal)
    step(1.0, *(torch.zeros_like(one) + 1 for one in given()), goal)  # what `first` says must outlive this
    for parameter in model.parameters():
        parameter.grad = None
    told = step(1.0, *given(), goal)
    assert torch.equal(first["loss"], told["loss"])
    assert all(torch.equal(p.grad, slopes[name]) for name, p in model.named_parameters())
    step(2.0, *given(), goal)  # accumulated, under another key
    assert all(largest(p.grad - 3 * slopes[name]) < 1e-6 for name, p in model.named_parameters())
    for parameter in model.parameters():  # of somebody who works elsewhere
        parameter.grad = torch.ones_like(parameter)
    step(1.0, *given(), goal)
    assert all(largest(p.grad - 1 - slopes[name]) < 1e-6 for name, p in model.named_parameters())
    assert len(step.recordings) == 2


# Recomputation


class Alive(TorchDispatchMode):
    """Record every storage that is allocated, to sum those still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                self.made[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        return made

    def total(self) -> int:
        return sum(size for reference, size in self.made.values() if not reference.expired())


def alive_after(model: LVSM, batch: tuple[Tensor, ...]) -> int:
    own = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *batch)}
    with Alive() as tracker:
        image = model(*batch)
        total = tracker.total() - sum(
            size for at, (reference, size) in tracker.made.items() if at in own and not reference.expired()
        )
    del image
    return total


@KIND
@pytest.mark.parametrize("rough", [False, True], ids=["fp32", "bf16"])
def test_what_a_step_keeps_is_known_beforehand(kind: str, rough: bool) -> None:
    model = tiny(kind, prope=True, dim=64, head_dim=32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=rough, cache_enabled=False):
        found = activations.estimate_saved(model, lambda batch: model(*given(batch, 3, 2)), 6)
        for count in (0, 2, 4):
            model.set_recompute(count)
            expected = found.rest + sum(found.blocks[count:])
            assert alive_after(model, given(6, 3, 2)) == pytest.approx(expected, rel=0.1)
    assert [block.recompute for block in model.every_block()] == [True] * 4
    assert activations.budget(model, CPU) is None


def test_the_fewest_blocks_that_fit_are_recomputed() -> None:
    found = Saved([10, 10, 30, 30], 20)
    assert [blocks_to_recompute(found, budget) for budget in (130, 129, 110, 90, 60, 5)] == [0, 1, 2, 3, 4, 4]


def test_measuring_leaves_a_model_as_it_was() -> None:
    model = tiny("decoder_only")
    model.set_recompute(1)
    image, slopes = gradients(model, *given())
    one = activations.measure_saved(model, lambda: model(*given()))
    assert one == activations.estimate_saved(model, lambda batch: model(*given(batch)), 2)
    again, others = gradients(model, *given())
    assert torch.equal(image, again) and all(torch.equal(slopes[name], others[name]) for name in slopes)
    assert [block.recompute for block in model.every_block()] == [True, False, False, False]
    assert dataclasses.asdict(model.config)["layers"] == len(one.blocks)
