"""Models that know time: what times change, what they do not, and how they enter attention."""

from __future__ import annotations

import itertools

import pytest
import torch

from lvsm_train.config.parts import KINDS, ModelConfig
from lvsm_train.models import prope
from lvsm_train.models.lvsm import LVSM, build
from pipeline.core import cameras

HW, INPUTS, TARGETS = (16, 16), 3, 2


def config(kind: str, is_prope: bool, temporal: bool = True) -> ModelConfig:
    return ModelConfig(
        kind=kind,  # type: ignore[arg-type]
        dim=32,
        head_dim=16,
        layers=4,
        encoder_layers=2,
        latents=5,
        prope=is_prope,
        init="width_aware",
        temporal=temporal,
    )


def scene(seed: int = 0) -> list[torch.Tensor]:
    """Pictures, cameras and intrinsics of INPUTS inputs, cameras and intrinsics of TARGETS targets, of two objects."""
    generator = torch.Generator().manual_seed(seed)
    eyes = torch.nn.functional.normalize(torch.randn(2, INPUTS + TARGETS, 3, generator=generator), dim=-1) * 1.5
    c2w = torch.from_numpy(cameras.look_at(eyes.numpy())).float()
    k = torch.tensor([20.0, 20, 8, 8]).expand(2, INPUTS + TARGETS, 4)
    image = torch.rand(2, INPUTS, 3, *HW, generator=generator)
    return [image, c2w[:, :INPUTS], k[:, :INPUTS], c2w[:, INPUTS:], k[:, INPUTS:]]


EACH = pytest.mark.parametrize(("kind", "is_prope"), list(itertools.product(KINDS, (False, True))))
TIMES = torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.9, 0.4]])
ASKED = torch.tensor([[0.25, 0.75], [0.6, 0.1]])


@EACH
def test_each_time_matters_to_what_depends_on_it_alone(kind: str, is_prope: bool) -> None:
    """A target's time changes that target; an input's time changes all targets of its object, and no other object."""
    net = build(config(kind, is_prope), 0).eval()
    given = scene()
    with torch.no_grad():
        plain = net(*given, time=TIMES, target_time=ASKED)
        later = ASKED.clone()
        later[0, 1] += 0.1
        changed = (net(*given, time=TIMES, target_time=later) - plain).abs().amax((-3, -2, -1))
        assert (changed > 1e-5).tolist() == [[False, True], [False, False]]
        shown = TIMES.clone()
        shown[1, 2] += 0.1
        changed = (net(*given, time=shown, target_time=ASKED) - plain).abs().amax((-3, -2, -1))
        assert (changed > 1e-5).tolist() == [[False, False], [True, True]]


@EACH
def test_no_time_is_time_zero(kind: str, is_prope: bool) -> None:
    net = build(config(kind, is_prope), 0).eval()
    given = scene()
    with torch.no_grad():
        zero = net(*given, time=torch.zeros(2, INPUTS), target_time=torch.zeros(2, TARGETS))
        assert torch.equal(net(*given), zero)
        encoded = net.encode(*given[:3], time=TIMES)
        made = net.decode(encoded, *given[3:], HW, time=ASKED)
        assert torch.equal(made, net(*given, time=TIMES, target_time=ASKED))


@EACH
def test_models_without_time_pass_over_times(kind: str, is_prope: bool) -> None:
    net = build(config(kind, is_prope, temporal=False), 0).eval()
    with torch.no_grad():
        assert torch.equal(net(*scene(), time=TIMES, target_time=ASKED), net(*scene()))
    assert not any("time" in name for name, _ in net.named_parameters())


def test_codes_of_time_are_relative() -> None:
    """With PRoPE's codes alone, attention between two views depends on the difference of their times, and on no other."""
    generator = torch.Generator().manual_seed(0)
    _, c2w, k, _, _ = scene()
    q, other = torch.randn(2, 2, INPUTS * 4, 2, 16, generator=generator)

    def scores(time: torch.Tensor) -> torch.Tensor:
        codes = prope.camera_codes(c2w, k, HW, 8, 16, time)
        return torch.einsum("bnhd,bmhd->bhnm", prope.query(q, codes), prope.key(other, codes))

    plain = scores(TIMES)
    assert torch.allclose(scores(TIMES + 0.3), plain, atol=1e-4)
    assert not torch.allclose(scores(TIMES * 1.3), plain, atol=1e-2)
    assert torch.allclose(scores(torch.zeros_like(TIMES)), scores(torch.ones_like(TIMES)), atol=1e-4)
    # what is attended to comes back as it was, whatever the code
    codes = prope.camera_codes(c2w, k, HW, 8, 16, TIMES)
    assert torch.allclose(prope.output(prope.key(q, codes), codes), q, atol=1e-4)


def test_times_of_another_shape_are_refused() -> None:
    net: LVSM = build(config("unidirectional", True), 0)
    with pytest.raises(ValueError, match="give one per view"):
        net(*scene(), time=ASKED, target_time=ASKED)
