"""Properties of the models; tests/lvsm_train/weights/test_official.py compares them with their definition."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import get_args

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from lvsm_train.models import blocks  # noqa: E402
from lvsm_train.models.lvsm import BY_KIND, LVSM, EncoderDecoder, Latents, ModelConfig, Views, build, plucker_rays  # noqa: E402
from pipeline.core.cameras import project, sample  # noqa: E402

TINY = ModelConfig(dim=32, head_dim=16, patch=4, layers=4, encoder_layers=2, latents=12)
KIND = pytest.mark.parametrize("kind", list(BY_KIND))
PROPE = pytest.mark.parametrize("with_prope", [False, True], ids=["pluecker", "prope"])


def perturbed(model: LVSM, seed: int = 1) -> LVSM:
    """Small model with weights that make every part matter: gains differ from 1 and blocks change their input much."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
            else:
                parameter.normal_(0, 1.5 * parameter.shape[1] ** -0.5, generator=generator)
    return model


def tiny(kind: str, seed: int = 1, **changes: object) -> LVSM:
    return perturbed(build(dataclasses.replace(TINY, kind=kind, **changes), 0), seed)


def cameras(batch: int, views: int, hw: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Any rotations, centres around the origin, and no two focal lengths alike."""
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(batch, views, 3, 3, generator=generator, dtype=torch.float64))
    c2w = torch.eye(4, dtype=torch.float64).repeat(batch, views, 1, 1)
    c2w[..., :3, :3] = rotation * torch.linalg.det(rotation)[..., None, None]
    c2w[..., :3, 3] = torch.randn(batch, views, 3, generator=generator, dtype=torch.float64)
    height, width = hw
    k = torch.tensor([1.1 * width, 1.2 * height, 0.5 * width, 0.5 * height])
    return c2w.float(), k * (1 + 0.1 * torch.rand(batch, views, 4, generator=generator))


def posed(
    batch: int = 2, views: int = 2, hw: tuple[int, int] = (12, 8), seed: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    image = torch.rand(batch, views, 3, *hw, generator=torch.Generator().manual_seed(seed))
    return image, *cameras(batch, views, hw, seed + 100)


def gradients(model: LVSM, *inputs: object) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and gradients of its squared distance to a fixed image by parameter name."""
    model.zero_grad()
    image = model(*inputs)
    goal = torch.rand(image.shape, generator=torch.Generator().manual_seed(9))
    ((image - goal) ** 2).mean().backward()
    return image.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def largest(difference: Tensor) -> float:
    return float(difference.detach().abs().max())


# Rays


@pytest.mark.parametrize("autocast", [False, True])
def test_points_on_a_ray_project_to_its_pixel(autocast: bool) -> None:
    """Two derivations of one convention: rays of the trainer against the projection of the renderer."""
    c2w = sample("shell", np.random.default_rng(1), 6)
    k = np.array([70.0, 80.0, 30.0, 21.0], np.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        rays = plucker_rays(torch.from_numpy(c2w), torch.from_numpy(np.tile(k, (6, 1))), (40, 64)).numpy()
    assert rays.shape == (6, 6, 40, 64)
    assert rays.dtype == np.float32
    moment, direction = rays[:, :3], rays[:, 3:]
    np.testing.assert_allclose(np.linalg.norm(direction, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose((moment * direction).sum(1), 0, atol=1e-6)  # a moment is normal to its line
    for view, row, column, depth in [(0, 0, 0, 1.5), (2, 39, 63, 0.3), (5, 20, 7, 4.0)]:
        d, m = direction[view, :, row, column], moment[view, :, row, column]
        nearest = np.cross(d, m)  # the line's point nearest to the origin of the world
        centre = c2w[view, :3, 3]
        along = float((centre - nearest) @ d)
        np.testing.assert_allclose(nearest + along * d, centre, atol=1e-5)  # the line passes through the camera
        pixel, z = project((centre + depth * d)[None], c2w[view], k)
        np.testing.assert_allclose(pixel[0], [column + 0.5, row + 0.5], atol=1e-3)
        assert z[0] > 0


# Shapes, sizes, order


@KIND
@PROPE
def test_any_number_of_views_and_targets_of_any_size_each_in_its_place(kind: str, with_prope: bool) -> None:
    model = tiny(kind, prope=with_prope)
    for views, targets, hw, target_hw in [(1, 3, (8, 8), (8, 8)), (3, 2, (12, 8), (8, 16))]:
        inputs = posed(2, views, hw)
        asked = cameras(2, targets, target_hw, 7)
        together = model(*inputs, *asked, target_hw)
        assert together.shape == (2, targets, 3, *target_hw)
        assert together.dtype == torch.float32
        assert 0 < together.detach().min() < together.detach().max() < 1
        assert largest(together[0] - together[1]) > 0.01 and (
            targets == 1 or largest(together[:, 0] - together[:, 1]) > 0.01
        )
        for b in range(2):
            for t in range(targets):
                alone = model(*(x[b : b + 1] for x in inputs), *(x[b : b + 1, t : t + 1] for x in asked), target_hw)
                assert largest(alone[0, 0] - together[b, t]) < 1e-5
    assert model(*posed(1, 2), *cameras(1, 1, (12, 8), 7)).shape == (1, 1, 3, 12, 8)


@KIND
def test_one_encoding_serves_many_targets(kind: str) -> None:
    model = tiny(kind)
    inputs, first, second = posed(), cameras(2, 2, (12, 8), 7), cameras(2, 1, (8, 8), 8)
    scene = model.encode(*inputs)
    assert torch.equal(model.decode(scene, *first, (12, 8)), model(*inputs, *first))
    assert torch.equal(model.decode(scene, *second, (8, 8)), model(*inputs, *second, (8, 8)))


@pytest.mark.parametrize(("kind", "with_prope"), [(k, p) for k in BY_KIND for p in (False, True)])
def test_the_order_of_inputs_matters_only_where_the_first_is_the_frame_of_latents(kind: str, with_prope: bool) -> None:
    model = tiny(kind, prope=with_prope)
    inputs, asked = posed(2, 3), cameras(2, 2, (12, 8), 7)
    difference = largest(model(*inputs, *asked) - model(*(x[:, [2, 0, 1]] for x in inputs), *asked))
    if kind == "encoder_decoder" and with_prope:
        assert difference > 1e-3
    else:
        assert difference < 1e-5


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda i, t: (i[0][..., :7], *i[1:], *t), "12x7"),
        (lambda i, t: (*i, *t, (10, 8)), "10x8"),
        (lambda i, t: ((i[0] * 255).byte(), *i[1:], *t), "uint8"),
        (lambda i, t: (i[0][:, :, :1], *i[1:], *t), r"\(B, V, 3, H, W\)"),
        (lambda i, t: (i[0][:, :0], i[1][:, :0], i[2][:, :0], *t), r"\(B, V, 3, H, W\)"),
        (lambda i, t: (i[0], i[1][:, :1], *i[2:], *t), "one camera per view"),
        (lambda i, t: (*i[:2], i[2][:, :1], *t), "fxfycxcy"),
        (lambda i, t: (*i, t[0][..., :3, :], t[1]), "c2w"),
        (lambda i, t: (*i, t[0][:1], t[1][:1]), "scenes"),
    ],
)
@KIND
def test_inputs_that_do_not_fit_are_refused(kind: str, spoil: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(kind)(*spoil(posed(), cameras(2, 2, (12, 8), 7)))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 40}, "head_dim 16"),
        ({"layers": 0}, "layers 0"),
        ({"kind": "encoder_decoder", "encoder_layers": 4}, "leave none"),
        ({"kind": "unidirectional", "encoder_layers": 0}, "encoder_layers 0"),
        ({"kind": "decoder"}, "decoder_only"),
        ({"init": "xavier"}, "width_aware"),
        ({"prope": True, "dim": 36, "head_dim": 12}, "multiple of 8"),
    ],
)
def test_configs_that_make_no_model_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(dataclasses.replace(TINY, **changes), 0)


def test_a_config_survives_json() -> None:
    assert ModelConfig(**json.loads(json.dumps(dataclasses.asdict(TINY)))) == TINY
    assert set(get_args(ModelConfig.__annotations__["kind"]) or BY_KIND) == set(BY_KIND)


# Initial weights


@KIND
def test_weights_come_from_the_seed_and_from_nothing_else(kind: str) -> None:
    config = dataclasses.replace(TINY, kind=kind)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build(config, 5).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = build(config, 5).state_dict(), build(config, 6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].dim() == 2)
    matrices = [w.flatten()[:64] for w in first.values() if w.dim() == 2]
    assert not any(torch.equal(a, b) for i, a in enumerate(matrices) for b in matrices[:i])  # a stream for each


@KIND
@pytest.mark.parametrize("init", ["official", "width_aware"])
def test_initial_weights_are_as_wide_as_the_recipe_says(kind: str, init: str) -> None:
    model = build(dataclasses.replace(TINY, kind=kind, dim=128, init=init, latents=128), 0)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert (weight == 1).all(), name
            continue
        numbered = [int(part) for part in name.split(".") if part.isdigit()]
        depth = 4 if kind == "decoder_only" else 2
        if init == "official":
            expected = 0.02 / math.sqrt(2 * (numbered[0] + 1)) if numbered else 0.02
        elif name == "latents":
            expected = 1.0
        else:
            inputs = {"image_tokens": 16 * 9, "ray_tokens": 16 * 6}.get(name.split(".")[0], 128)
            expected = (4 * inputs if "down" in name else inputs) ** -0.5
            expected /= math.sqrt(2 * depth) if "down" in name or "attn.out" in name else 1
        assert float(weight.detach().std()) == pytest.approx(expected, rel=0.03), name
        assert abs(float(weight.detach().mean())) < 0.05 * expected, name


# Precision and speed


@KIND
@PROPE
def test_under_autocast_rays_and_tokens_stay_exact(kind: str, with_prope: bool) -> None:
    model = tiny(kind, prope=with_prope)
    inputs, asked = posed(), cameras(2, 2, (12, 8), 7)
    tokens: list[Tensor] = []
    for tokenizer in (model.image_tokens, model.ray_tokens):
        tokenizer.register_forward_hook(lambda module, given, made: tokens.append(made.detach()))
    exact = model(*inputs, *asked)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, slopes = gradients(model, *inputs, *asked)
    assert torch.equal(tokens[0], tokens[2]) and torch.equal(tokens[1], tokens[3])
    assert rough.dtype == torch.float32 and rough.isfinite().all()
    assert 1e-6 < largest(rough - exact) < 0.15  # these weights amplify; trained ones are much tamer
    assert float((rough - exact).detach().square().mean().sqrt()) < 0.02
    assert all(slope.isfinite().all() for slope in slopes.values())


@KIND
@PROPE
def test_recomputing_gives_the_same_gradients(kind: str, with_prope: bool) -> None:
    model = tiny(kind, prope=with_prope)
    arguments = (*posed(), *cameras(2, 2, (12, 8), 7))
    image, slopes = gradients(model, *arguments)
    calls: list[int] = []
    for block in model.every_block():
        block.register_forward_pre_hook(lambda *_: calls.append(1))  # recomputing ends before a block does
    for count, expected in [(None, 8), (3, 7), (0, 4)]:
        calls.clear()
        model.set_recompute(count)
        again, others = gradients(model, *arguments)
        assert len(calls) == expected
        assert torch.equal(image, again)
        assert all(torch.equal(slopes[name], others[name]) for name in slopes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, slopes = gradients(model, *arguments)
        model.set_recompute()
        _, others = gradients(model, *arguments)
    assert all(torch.equal(slopes[name], others[name]) for name in slopes)


@KIND
@PROPE
def test_every_parameter_is_used_and_every_block_is_listed(kind: str, with_prope: bool) -> None:
    model = tiny(kind, prope=with_prope)
    _, slopes = gradients(model, *posed(), *cameras(2, 2, (12, 8), 7))
    assert all(largest(slope) > 0 for slope in slopes.values())
    assert len(model.every_block()) == TINY.layers


@KIND
def test_dynamo_traces_the_whole_model(kind: str) -> None:
    model = tiny(kind, prope=True, layers=2, encoder_layers=1)
    arguments = (*posed(), *cameras(2, 2, (12, 8), 7))
    with torch.no_grad():
        expected = model(*arguments)
        traced = torch.compile(model, backend="eager", fullgraph=True)(*arguments)
    assert largest(traced - expected) < 1e-5
    torch.compiler.reset()


def test_the_attention_kernel_can_be_chosen() -> None:
    q, k, v = torch.randn(3, 2, 2, 5, 16, generator=torch.Generator().manual_seed(1)).unbind(0)
    bias = torch.tensor([0.0, -math.inf, 0.3, 0.0, 1.0]).expand(2, 1, 1, 5)
    score = torch.einsum("bhnd,bhmd->bhnm", q, k) / 4
    for chosen in ("auto", "math", "flash"):
        with blocks.attention(chosen):
            assert largest(blocks.attend(q, k, v) - score.softmax(-1) @ v) < 1e-5
            assert largest(blocks.attend(q, k, v, bias) - (score + bias).softmax(-1) @ v) < 1e-5
    with blocks.attention(lambda q, k, v, bias: v):
        assert torch.equal(blocks.attend(q, k, v), v)
    assert not torch.equal(blocks.attend(q, k, v), v)
    with pytest.raises(ValueError, match="flash"):
        blocks.set_attention("xformers")


# Latents


def encoded(**changes: object) -> tuple[EncoderDecoder, Latents, tuple[Tensor, Tensor, tuple[int, int]]]:
    model = tiny("encoder_decoder", **changes)
    assert isinstance(model, EncoderDecoder)
    scene = model.encode(*posed())
    return model, scene._replace(tokens=scene.tokens.detach()), (*cameras(2, 2, (12, 8), 7), (12, 8))


@PROPE
def test_latents_have_no_order(with_prope: bool) -> None:
    model, scene, asked = encoded(prope=with_prope)
    shuffled = scene._replace(tokens=scene.tokens[:, torch.randperm(12, generator=torch.Generator().manual_seed(1))])
    assert largest(model.decode(scene, *asked) - model.decode(shuffled, *asked)) < 1e-5


@pytest.mark.parametrize("more", [1, 5, 37])
def test_latents_of_weight_zero_are_not_there(more: int) -> None:
    model, scene, asked = encoded()
    plain = model.decode(scene, *asked)
    strangers = torch.randn(2, more, 32, generator=torch.Generator().manual_seed(1))
    padded = scene._replace(tokens=torch.cat([scene.tokens, strangers], 1))
    weight = torch.cat([torch.ones(2, 12), torch.zeros(2, more)], 1)
    assert torch.equal(model.decode(padded, *asked, weight), plain)
    assert largest(model.decode(padded, *asked) - plain) > 1e-3
    weight[:, :12] = 0.7 + 0.3 * torch.rand(2, 12, generator=torch.Generator().manual_seed(2))
    assert torch.equal(model.decode(padded, *asked, weight), model.decode(scene, *asked, weight[:, :12]))
    weight[0, 0], weight[1, 12] = 0, 1  # from here on the two scenes keep different ones
    first = model.decode(padded, *asked, weight)[:1]
    less = Latents(scene.tokens[:1, 1:], scene.frame[:1])
    assert largest(first - model.decode(less, asked[0][:1], asked[1][:1], (12, 8), weight[:1, 1:12])) < 1e-5
    assert model.decode(scene, *asked, torch.zeros(2, 12)).isfinite().all()


def test_a_weight_is_a_number_of_copies() -> None:
    model, scene, asked = encoded()
    plain = model.decode(scene, *asked)
    split = scene._replace(tokens=torch.cat([scene.tokens, scene.tokens[:, :7]], 1))
    weight = torch.cat([torch.full((2, 7), 0.5), torch.ones(2, 5), torch.full((2, 7), 0.5)], 1)
    assert largest(model.decode(split, *asked, weight) - plain) < 1e-5
    assert largest(model.decode(split, *asked, torch.ones(2, 19)) - plain) > 1e-3
    assert torch.equal(model.decode(scene, *asked, torch.ones(2, 12)), plain)
    double = torch.cat([torch.full((2, 7), 2.0), torch.ones(2, 5)], 1)
    assert largest(model.decode(split, *asked) - model.decode(scene, *asked, double)) < 1e-5
    weight = torch.ones(2, 12).index_fill(1, torch.tensor([3]), 0.0)
    weight[0, 3] = 0.5
    weight.requires_grad_()
    model.decode(scene, *asked, weight).sum().backward()
    assert weight.grad is not None and weight.grad.isfinite().all() and (weight.grad != 0).sum() == 23
    weight = torch.ones(2, 12, requires_grad=True)
    model.decode(scene, *asked, weight).sum().backward()
    assert weight.grad is not None and (weight.grad != 0).all()


@pytest.mark.parametrize(
    ("weight", "message"), [(-1.0, "-1"), (math.inf, "inf"), (math.nan, "nan"), (None, r"\(2, 3\)")]
)
def test_weights_that_mean_nothing_are_refused(weight: float | None, message: str) -> None:
    model, scene, asked = encoded()
    given = torch.ones(2, 3) if weight is None else torch.ones(2, 12).index_fill(1, torch.tensor([3]), weight)
    with pytest.raises(ValueError, match=message):
        model.decode(scene, *asked, given)


# One way


@PROPE
def test_targets_of_the_unidirectional_model_know_nothing_of_each_other(with_prope: bool) -> None:
    model = tiny("unidirectional", prope=with_prope)
    inputs, (c2w, k) = posed(), cameras(2, 3, (12, 8), 7)
    scene = model.encode(*inputs)
    assert isinstance(scene, Views) and len(scene.keys_values) == 2
    assert scene.keys_values[0][0].shape == (2, 2, 2 * 6, 16)  # of the inputs alone, however many targets come
    before = model.decode(scene, c2w, k, (12, 8))
    other = cameras(2, 3, (12, 8), 8)[0]
    after = model.decode(scene, torch.cat([c2w[:, :1], other[:, 1:2], c2w[:, 2:]], 1), k, (12, 8))
    assert largest((after - before)[:, [0, 2]]) < 1e-6
    assert largest((after - before)[:, 1]) > 0.01


# PRoPE


def moved(c2w: Tensor, far: float = 1.0) -> Tensor:
    """Cameras in a rotated and shifted world frame."""
    change, _ = cameras(1, 1, (8, 8), 77)
    change = change[0, 0].double()
    change[:3, 3] *= far
    return (change @ c2w.double()).float()


@KIND
def test_prope_does_not_see_the_frame_of_the_world_and_pluecker_does(kind: str) -> None:
    (image, c2w, k), (target_c2w, target_k) = posed(), cameras(2, 2, (12, 8), 7)
    for with_prope, far, bound in [(True, 1.0, 1e-5), (True, 100.0, 1e-3), (False, 1.0, None)]:
        model = tiny(kind, prope=with_prope)
        before = model(image, c2w, k, target_c2w, target_k)
        after = model(image, moved(c2w, far), k, moved(target_c2w, far), target_k)
        assert largest(after - before) < bound if bound else largest(after - before) > 0.01
        assert largest(model(image, c2w, k, moved(target_c2w), target_k) - before) > 0.01  # it does look at cameras
