"""Our models against the official ones: tensors that those produced, and the definition written once more in small steps.

PRoPE too, against attention written pair by pair.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402

import lvsm_train  # noqa: E402
from lvsm_train.config.train import LossConfig, OptimConfig  # noqa: E402
from lvsm_train.losses.loss import Loss  # noqa: E402
from lvsm_train.models import prope  # noqa: E402
from lvsm_train.models.blocks import attend  # noqa: E402
from lvsm_train.models.lvsm import LVSM, ModelConfig, build  # noqa: E402
from lvsm_train.training.optim import Optimizers  # noqa: E402
from lvsm_train.weights.official import config_of, from_official, official_names, to_official  # noqa: E402
from lvsm_train.weights.trained import open_model  # noqa: E402
from tests.lvsm_train.models.test_lvsm import cameras, gradients, largest, posed, tiny  # noqa: E402

PARITY = Path(__file__).parents[4] / "shared" / "parity" / "decoder_only.pt"
OFFICIAL = pytest.mark.parametrize("kind", ["decoder_only", "encoder_decoder"])


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


# Tensors of the official modules


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    if not PARITY.exists():
        pytest.skip(f"{PARITY} is not here")
    return torch.load(PARITY, weights_only=True)  # type: ignore[no-any-return]


def inputs_of(case: dict[str, Any]) -> list[Tensor]:
    image, c2w, k = (case["batch"][name] for name in ("image", "c2w", "fxfycxcy"))
    shown, asked = case["input_index"], case["target_index"]
    return [image[:, shown], c2w[:, shown], k[:, shown], c2w[:, asked], k[:, asked]]


@pytest.mark.parametrize("nonsquare", [False, True])
def test_every_step_is_the_official_one(recorded: dict[str, Any], nonsquare: bool) -> None:
    case = recorded["case_nonsquare"] if nonsquare else recorded
    model = from_official(recorded["state_dict"])
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    watched = {
        "image_tokens": "image_tokenizer",
        "ray_tokens": "target_pose_tokenizer",
        "blocks.0": "transformer_blocks.0",
        "blocks.1": "transformer_blocks.1",
    }
    for ours, theirs in watched.items():
        hook = lambda module, given, made, name=theirs: seen.update({name: (given[0], made)})  # noqa: E731
        model.get_submodule(ours).register_forward_hook(hook)
    with torch.no_grad():
        image = model(*inputs_of(case))
    assert float((image - case["output"]).abs().max()) < 1e-5
    for name, (given, made) in seen.items():
        expected = case["intermediates"][name]
        assert relative(given, expected["input"]) < 1e-5, name
        assert relative(made.reshape(expected["output"].shape), expected["output"]) < 1e-5, name
    assert len(seen) == len(watched)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(*inputs_of(case))
    assert rough.isfinite().all()
    assert 0 < float((rough - case["output"]).abs().max()) < 0.02  # the official one is 0.0085 off


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_of_official_weights_renders_as_the_official_model(
    recorded: dict[str, Any], suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"scene{suffix}"
    if suffix == ".pt":
        torch.save({"model": recorded["state_dict"]}, path)
    else:
        save_file(recorded["state_dict"], path)
    net = open_model(path, device="cpu", preset="official-dec").net
    assert float((net(*inputs_of(recorded)) - recorded["output"]).abs().max()) < 1e-5


def test_gradients_are_the_official_ones(recorded: dict[str, Any]) -> None:
    model = from_official(recorded["state_dict"], config_of(recorded["state_dict"]))
    loss = torch.nn.functional.mse_loss(model(*inputs_of(recorded)), recorded["target_image"])
    assert float(loss.detach()) == pytest.approx(recorded["l2_loss"], rel=1e-5)
    loss.backward()
    names = official_names(model.config)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert relative(parameter.grad, recorded["grads"][names[name]]) < 1e-4, name


@pytest.mark.parametrize("clip", [1.0, 0.05])
def test_training_goes_as_the_official_one(recorded: dict[str, Any], clip: float) -> None:
    trace = recorded["train_trace" if clip == 1 else f"train_trace_clip{clip}"]
    said = recorded["optim"]
    beta1, beta2 = said["betas"]
    optim = OptimConfig(
        lr=said["lr"], beta1=beta1, beta2=beta2, weight_decay=said["wd"], warmup=said["warmup"], clip=clip
    )
    model = from_official(recorded["state_dict"]).requires_grad_(True)
    optimizers, loss = Optimizers(model, optim, said["total"]), Loss(LossConfig(perceptual=0))
    target = recorded["batch"]["image"][:, recorded["target_index"]].flatten(0, 1)
    for then in trace:
        value, _ = loss(model(*inputs_of(recorded)).flatten(0, 1), target, then["step"])
        value.backward()
        moved = optimizers.step(then["step"])
        assert float(value.detach()) == pytest.approx(then["loss"], rel=1e-4)
        assert float(moved.norm) == pytest.approx(then["grad_norm"], rel=1e-4)
        assert optimizers.all[0].param_groups[0]["lr"] == pytest.approx(then["lr"], rel=1e-6)
        assert not moved.void
    if clip == 1:
        ours = to_official(model)
        for name, theirs in recorded["state_dict_after_8_steps"].items():
            assert relative(ours[name], theirs) < 1e-4, name


def test_the_official_start_is_as_wide_as_ours(recorded: dict[str, Any]) -> None:
    config = config_of(recorded["state_dict"])
    names = official_names(config)
    for name, parameter in build(config, 3).named_parameters():
        theirs = recorded["init_stats"][names[name]]
        assert tuple(parameter.shape) == tuple(theirs["shape"])
        assert float(parameter.detach().std()) == pytest.approx(theirs["std"], rel=0.05), name


# The definition once more: float64, official names, one pixel, one patch, one head, one token at a time


def ray(c2w: np.ndarray, k: np.ndarray, x: int, y: int) -> Tensor:
    direction = c2w[:3, :3] @ np.array([(x + 0.5 - k[2]) / k[0], (y + 0.5 - k[3]) / k[1], 1.0])
    direction = direction / math.sqrt(float((direction**2).sum()))
    return torch.from_numpy(np.concatenate([np.cross(c2w[:3, 3], direction), direction]))


def patches(image: Tensor | None, c2w: Tensor, k: Tensor, hw: tuple[int, int], patch: int) -> Tensor:
    """Patch vectors of one view, the rows that a tokenizer multiplies."""
    rows = []
    for top in range(0, hw[0], patch):
        for left in range(0, hw[1], patch):
            numbers = []
            for y in range(top, top + patch):
                for x in range(left, left + patch):
                    if image is not None:
                        numbers.append(2 * image[:, y, x].double() - 1)
                    numbers.append(ray(c2w.double().numpy(), k.double().numpy(), x, y))
            rows.append(torch.cat(numbers))
    return torch.stack(rows)


def layer_norm(x: Tensor, gain: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return gain * centred / ((centred**2).mean(1, keepdim=True) + 1e-5) ** 0.5


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return gain * x / ((x**2).mean(1, keepdim=True) + 1e-5) ** 0.5


def block(x: Tensor, weights: dict[str, Tensor], name: str, head_dim: int) -> Tensor:
    w = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
    dim = x.shape[1]
    qkv = layer_norm(x, w["norm1.weight"]) @ w["attn.to_qkv.weight"].T
    heads = []
    for start in range(0, dim, head_dim):
        q, k, v = (qkv[:, part * dim + start : part * dim + start + head_dim] for part in range(3))
        q, k = rms_norm(q, w["attn.q_norm.weight"]), rms_norm(k, w["attn.k_norm.weight"])
        rows = []
        for i in range(len(x)):
            share = torch.exp(q[i] @ k.T / math.sqrt(head_dim))
            rows.append((share / share.sum()) @ v)
        heads.append(torch.stack(rows))
    x = x + torch.cat(heads, 1) @ w["attn.fc.weight"].T
    inside = layer_norm(x, w["norm2.weight"]) @ w["mlp.mlp.0.weight"].T
    return x + (inside * 0.5 * (1 + torch.erf(inside / math.sqrt(2)))) @ w["mlp.mlp.2.weight"].T


def blocks(x: Tensor, weights: dict[str, Tensor], stack: str, layers: int, head_dim: int) -> Tensor:
    for i in range(layers):
        x = block(x, weights, f"{stack}.{i}", head_dim)
    return x


def to_image(x: Tensor, weights: dict[str, Tensor], hw: tuple[int, int], patch: int) -> Tensor:
    numbers = layer_norm(x, weights["image_token_decoder.0.weight"]) @ weights["image_token_decoder.1.weight"].T
    numbers = 1 / (1 + torch.exp(-numbers))
    rows = []
    for y in range(hw[0]):
        for x_ in range(hw[1]):
            token = (y // patch) * (hw[1] // patch) + x_ // patch
            first = ((y % patch) * patch + x_ % patch) * 3
            rows.append(numbers[token, first : first + 3])
    return torch.stack(rows).T.reshape(3, *hw)


def reference(weights: dict[str, Tensor], config: ModelConfig, *given: Any) -> Tensor:
    """Output of the official model for a batch, scene by scene and target by target."""
    image, c2w, k, target_c2w, target_k, target_hw = given
    hw, p, d = tuple(image.shape[-2:]), config.patch, config.head_dim
    scenes = []
    for b in range(len(image)):
        seen = [patches(image[b, v], c2w[b, v], k[b, v], hw, p) for v in range(image.shape[1])]
        views = torch.cat(seen) @ weights["image_tokenizer.1.weight"].T
        if config.kind == "encoder_decoder":
            n, layers = config.latents, config.encoder_layers
            views = torch.cat([weights["n_light_field_latent"], views])
            views = blocks(views, weights, "transformer_encoder", layers, d)[:n]
        targets = []
        for t in range(target_c2w.shape[1]):
            own = patches(None, target_c2w[b, t], target_k[b, t], target_hw, p)
            own = own @ weights["target_pose_tokenizer.1.weight"].T
            if config.kind == "encoder_decoder":
                x = layer_norm(torch.cat([own, views]), weights["transformer_input_layernorm_decoder.weight"])
                x = blocks(x, weights, "transformer_decoder", config.layers - config.encoder_layers, d)[: len(own)]
            else:
                x = layer_norm(torch.cat([views, own]), weights["transformer_input_layernorm.weight"])
                x = blocks(x, weights, "transformer_blocks", config.layers, d)[-len(own) :]
            targets.append(to_image(x, weights, target_hw, p))
        scenes.append(torch.stack(targets))
    return torch.stack(scenes)


@OFFICIAL
def test_the_model_is_its_definition(kind: str) -> None:
    model = tiny(kind)
    given = (*posed(2, 2, (8, 12)), *cameras(2, 3, (12, 8), 7), (12, 8))
    image, slopes = gradients(model, *given)
    weights = {name: weight.double().requires_grad_() for name, weight in to_official(model).items()}
    expected = reference(weights, model.config, *given)
    assert float((image - expected.detach()).abs().max()) < 1e-5
    goal = torch.rand(image.shape, generator=torch.Generator().manual_seed(9))
    ((expected - goal) ** 2).mean().backward()
    for name, theirs in official_names(model.config).items():
        slope = weights[theirs].grad
        assert slope is not None
        assert relative(slopes[name], slope) < 1e-4, name


# PRoPE, pair by pair


def dense(c2w: Tensor, k: Tensor, hw: tuple[int, int], row: int, column: int, head_dim: int) -> Tensor:
    """D of one token (head_dim, head_dim): the block matrix of the paper, float64."""
    fx, fy, cx, cy = k.double()
    normalised = torch.eye(4, dtype=torch.float64)
    normalised[0, 0], normalised[0, 2] = fx / hw[1], cx / hw[1] - 0.5
    normalised[1, 1], normalised[1, 2] = fy / hw[0], cy / hw[0] - 0.5
    d = torch.block_diag(
        *[normalised @ torch.linalg.inv(c2w.double())] * (head_dim // 8), torch.eye(head_dim // 2)
    ).double()
    start, quarter, each = head_dim // 2, head_dim // 4, head_dim // 8
    for i in range(quarter):
        angle = (row if i < each else column) * prope.BASE ** -((i % each) / each)
        a, b = start + i, start + quarter + i
        d[a, a], d[a, b] = math.cos(angle), -math.sin(angle)
        d[b, a], d[b, b] = math.sin(angle), math.cos(angle)
    return d


def test_prope_is_attention_by_relative_transforms() -> None:
    head_dim, patch, hw = 16, 4, (8, 12)
    c2w, k = cameras(1, 2, hw, 5)
    codes = prope.camera_codes(c2w, k, hw, patch, head_dim)
    places = [(v, row, column) for v in range(2) for row in range(2) for column in range(3)]
    q, key, value = torch.randn(3, 1, len(places), 2, head_dim, generator=torch.Generator().manual_seed(1)).unbind(0)
    turned = prope.query(q, codes), prope.key(key, codes), prope.key(value, codes)
    found = attend(*(x.transpose(1, 2) for x in turned)).transpose(1, 2)
    found = prope.output(found, codes)
    d = [dense(c2w[0, v], k[0, v], hw, row, column, head_dim) for v, row, column in places]
    for head in range(2):
        for i in range(len(places)):
            relative = [d[i] @ torch.linalg.inv(other) for other in d]
            score = [q[0, i, head].double() @ relative[j] @ key[0, j, head].double() for j in range(len(places))]
            share = (torch.stack(score) / math.sqrt(head_dim)).softmax(0)
            expected = sum(share[j] * (relative[j] @ value[0, j, head].double()) for j in range(len(places)))
            assert largest(found[0, i, head] - expected) < 1e-4
    nowhere = prope.without_camera(1, len(places), head_dim, q.device)
    assert torch.equal(prope.query(q, nowhere), q) and torch.equal(prope.output(q, nowhere), q)


# Names


def official_model(kind: str) -> tuple[LVSM, dict[str, Tensor]]:
    model = tiny(kind)
    return model, to_official(model)


@OFFICIAL
def test_weights_go_over_and_come_back(kind: str) -> None:
    model, weights = official_model(kind)
    again = lvsm_train.from_official({"model": weights | {"loss_computer.vgg.0.weight": torch.zeros(1)}, "step": 5})
    ours = model.state_dict()
    assert set(ours) == set(official_names(model.config))
    assert all(torch.equal(ours[name], weight) for name, weight in again.state_dict().items())
    back = lvsm_train.to_official(again)
    assert list(back) == list(weights) and all(torch.equal(back[name], weights[name]) for name in weights)
    given = (*posed(), *cameras(2, 2, (12, 8), 7))
    assert torch.equal(model(*given), again(*given))
    with torch.no_grad():
        next(iter(model.parameters())).zero_()
    assert float(weights["image_tokenizer.1.weight"].abs().max()) > 0  # copies


@OFFICIAL
def test_weights_say_which_model_they_are_of(kind: str) -> None:
    model, weights = official_model(kind)
    found = config_of(weights)
    names = ["kind", "dim", "head_dim", "patch", "layers", "prope"]
    names += ["encoder_layers", "latents"] if kind == "encoder_decoder" else []
    assert {name: getattr(found, name) for name in names} == {name: getattr(model.config, name) for name in names}
    assert from_official(weights, model.config).config == model.config


@OFFICIAL
def test_a_checkpoint_of_half_precision_is_taken_over(kind: str) -> None:
    _, weights = official_model(kind)
    model = from_official({name: weight.bfloat16() for name, weight in weights.items()})
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("kind", "spoil", "message"),
    [
        (
            "decoder_only",
            {"transformer_blocks.1.norm2.weight": None},
            "1 weights are missing, first transformer_blocks.1.norm2",
        ),
        ("decoder_only", {"pose_embedding.weight": torch.ones(3)}, "1 weights are unexpected, first pose_embedding"),
        ("decoder_only", {"transformer_blocks.2.attn.fc.weight": torch.ones(32, 31)}, r"\(32, 31\)"),
        ("decoder_only", {"transformer_blocks.6.norm1.weight": torch.ones(32)}, "missing, first transformer_blocks.4"),
        ("decoder_only", {"transformer_blocks.0.attn.q_norm.weight": None}, "qk-norm"),
        ("decoder_only", {"transformer_blocks.0.attn.q_norm.weight": torch.ones(5)}, "head_dim 5"),
        ("decoder_only", {"image_tokenizer.1.weight": torch.ones(32, 143)}, "143 numbers"),
        ("decoder_only", {"image_tokenizer.1.weight": torch.ones(32)}, "2 dimensions"),
        ("encoder_decoder", {"n_light_field_latent": None}, "transformer_blocks"),
        ("encoder_decoder", {"n_light_field_latent": torch.ones(12, 31)}, r"\(12, 31\)"),
        ("encoder_decoder", {"optimizer": 3}, "a int"),
    ],
)
def test_weights_that_are_not_whole_are_refused(kind: str, spoil: dict[str, Any], message: str) -> None:
    _, weights = official_model(kind)
    for name, value in spoil.items():
        weights.pop(name, None)
        if value is not None:
            weights[name] = value
    with pytest.raises(ValueError, match=message):
        from_official(weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "encoder_decoder"}, "kind encoder_decoder, and the weights decoder_only"),
        ({"kind": "unidirectional"}, "no unidirectional"),
        ({"prope": True}, "prope"),
        ({"layers": 5}, "layers 5, and the weights 4"),
        ({"head_dim": 8}, "head_dim 8, and the weights 16"),
    ],
)
def test_a_config_of_another_model_is_refused(changes: dict[str, Any], message: str) -> None:
    model, weights = official_model("decoder_only")
    with pytest.raises(ValueError, match=message):
        from_official(weights, dataclasses.replace(model.config, **changes))


@pytest.mark.parametrize("changes", [{"kind": "unidirectional"}, {"kind": "decoder_only", "prope": True}])
def test_models_that_the_official_code_cannot_run_are_not_exported(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the official LVSM has no"):
        to_official(tiny(**changes))


def test_what_is_no_checkpoint_is_refused() -> None:
    for nothing in ({}, {"model": 3}, {"model": {}}):
        with pytest.raises(ValueError):
            from_official(nothing)
