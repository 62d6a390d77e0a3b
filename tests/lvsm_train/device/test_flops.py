"""Operations, against PyTorch's own counter and against sums on paper."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from lvsm_train.config.presets import PRESETS  # noqa: E402
from lvsm_train.config.train import ModelConfig  # noqa: E402
from lvsm_train.device.flops import attentions, forward_flops, peak_flops, training_flops  # noqa: E402
from lvsm_train.models import blocks, prope  # noqa: E402
from lvsm_train.models.lvsm import BY_KIND  # noqa: E402
from tests.lvsm_train.models.test_lvsm import cameras, posed, tiny  # noqa: E402


def elementwise(x: Tensor, matrix: Tensor) -> Tensor:
    """What the cameras of PRoPE do to channels, without a product of matrices that would be counted."""
    return (matrix.repeat_interleave(x.shape[1] // matrix.shape[1], 1)[:, :, None, None] * x[..., None, :]).sum(-1)


@pytest.mark.parametrize("kind", list(BY_KIND))
@pytest.mark.parametrize("with_prope", [False, True], ids=["pluecker", "prope"])
def test_they_are_those_that_pytorch_counts(kind: str, with_prope: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prope, "_mix", elementwise)
    model = tiny(kind, prope=with_prope)
    given = (*posed(3, 2, (12, 8)), *cameras(3, 4, (12, 8), 7))
    asked: list[tuple[int, ...]] = []

    def watched(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        asked.append((q.shape[0], q.shape[1], q.shape[2], k.shape[2], q.shape[3]))
        return blocks.KERNELS["math"](q, k, v, bias)

    with blocks.attention(watched):
        with FlopCounterMode(display=False) as forward:
            image = model(*given)
        with FlopCounterMode(display=False) as backward:
            image.sum().backward()
    shape = (3, 2, 4, (12, 8))
    assert forward.get_total_flops() == forward_flops(model.config, *shape)
    # pictures and rays ask for no gradient, so that their tokens cost one product less
    tokenizers = 2 * 32 * 16 * 6 * 3 * (9 * 2 + 6 * 4)
    counted = forward.get_total_flops() + backward.get_total_flops()
    assert counted == training_flops(model.config, *shape) - tokenizers
    found = attentions(model.config, *shape)
    assert sorted(asked) == sorted(tuple(one[:5]) for one in found for _ in range(one.blocks))


def test_they_are_those_of_the_published_steps() -> None:
    official, objects = PRESETS["official-dec"].model, (4, 4, 8, (256, 256))
    assert training_flops(official, 8, 2, 6, (256, 256)) == pytest.approx(250e12, rel=0.01)
    assert training_flops(official, *objects) == pytest.approx(352e12, rel=0.01)
    uni = dataclasses.replace(official, kind="unidirectional", encoder_layers=12)
    assert training_flops(uni, *objects) == pytest.approx(52e12, rel=0.02)
    small = ModelConfig(dim=256, layers=6)
    assert training_flops(small, 16, 4, 4, (64, 64)) == pytest.approx(706e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
    ],
)
def test_a_gpu_is_known_by_its_name(name: str, tera: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0)) == (None if tera is None else tera * 1e12)
    assert peak_flops(torch.device("cpu")) is None
