"""--aux: depth, normals and alpha of a sphere whose geometry is known, from the shard to the weights."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from lvsm_train.config.parts import AUX, DataConfig, LossConfig, ModelConfig, OptimConfig  # noqa: E402
from lvsm_train.config.train import TrainConfig  # noqa: E402
from lvsm_train.cycle.settings import settings  # noqa: E402
from lvsm_train.data.batches import TENSORS, Batch, Data  # noqa: E402
from lvsm_train.device.flops import forward_flops, training_flops  # noqa: E402
from lvsm_train.device.graphs import Recorded  # noqa: E402
from lvsm_train.device.ranks import Ranks  # noqa: E402
from lvsm_train.losses.layers import WEIGHTS, layer_loss  # noqa: E402
from lvsm_train.models import blocks  # noqa: E402
from lvsm_train.models.lvsm import BY_KIND, build  # noqa: E402
from lvsm_train.training.gradients import Gradients  # noqa: E402
from lvsm_train.training.train import train_fn  # noqa: E402
from lvsm_train.weights import official  # noqa: E402
from lvsm_train.weights.trained import open_model  # noqa: E402
from pipeline.config.render import SceneConfig  # noqa: E402
from pipeline.core import cameras, images  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from pipeline.core.records import Item, Scene, Views  # noqa: E402
from pipeline.storage.writer import ShardWriter  # noqa: E402
from tests.lvsm_train.models.test_lvsm import TINY, posed  # noqa: E402
from tests.lvsm_train.models.test_lvsm import cameras as cameras_of  # noqa: E402
from tests.lvsm_train.training.test_train import config, losses  # noqa: E402

ALL = tuple(AUX)
CENTRE, RADIUS, RES, VIEWS = np.array([0, 0, 0.1]), 0.4, 32, 8  # on the axis that worlds are turned about
CPU = torch.device("cpu")


def seen(c2w: np.ndarray, k: np.ndarray, at: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth (H, W), infinite where nothing is, normals in axes of the world (H, W, 3), and how far inside the sphere rays pass.

    at: where in a pixel, from its upper left corner.
    """
    y, x = np.mgrid[:RES, :RES] + at
    rays = np.stack([(x - k[2]) / k[0], (y - k[3]) / k[1], np.ones_like(x)], -1) @ c2w[:3, :3].astype(float).T
    start = c2w[:3, 3].astype(float) - CENTRE
    a, b = (rays**2).sum(-1), rays @ start
    inside = b * b - a * (start @ start - RADIUS**2)
    depth = np.where(inside > 0, (-b - np.sqrt(np.maximum(inside, 0))) / a, np.inf)
    points = start + rays * np.where(np.isfinite(depth), depth, 0)[..., None]
    return depth, np.where(np.isfinite(depth)[..., None], points / RADIUS, 0), inside


def view(c2w: np.ndarray, k: np.ndarray) -> tuple[bytes, dict[str, bytes]]:
    """Picture of a sphere coloured by its normals, and its layers as shards hold them."""
    depth, normals, _ = seen(c2w, k)
    covered = np.mean([np.isfinite(seen(c2w, k, at)[0]) for at in (0.25, 0.5, 0.75)], 0)
    rgb = np.where(np.isfinite(depth)[..., None], normals * 0.4 + 0.5, 1)
    layers = {
        "depth": depth.astype("<f4").tobytes(),
        "normals": normals.astype("<f4").tobytes(),
        "alpha": images.encode_png(np.round(covered * 255).astype(np.uint8)),
    }
    return images.encode_jpeg(np.round(rgb * 255).astype(np.uint8), 95), layers


def spheres(
    folder: Path, layers: tuple[str, ...] = ALL, spoilt: dict[str, bytes] | None = None, name: str = "sphere"
) -> Path:
    """Five spheres, of which one is held out. spoilt: in place of every cell of a column."""
    writer = ShardWriter(folder, (RES,), layers, {"config_hash": "0"}, 1e9)
    k = cameras.intrinsics(50.0, (RES, RES))
    for number in range(5):
        c2w = cameras.sample("shell", np.random.default_rng(number), VIEWS)
        jpegs, found = zip(*(view(pose, k) for pose in c2w), strict=True)
        kept = {layer: [one[layer] for one in found] for layer in layers}
        kept |= {layer: [cell] * VIEWS for layer, cell in (spoilt or {}).items()}
        seen_at = Views(list(jpegs), np.tile(k, (VIEWS, 1)).astype(np.float32), (RES, RES), kept)
        split = "val" if number == 4 else "train"
        writer.add(Scene(Item(f"{name}-{number}", "test"), c2w, {RES: seen_at}, {}), split, 0)
    writer.close("train")
    writer.close("val")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spheres(tmp_path_factory.mktemp("spheres"))


def settings_of(*folders: Path, **more: Any) -> DataConfig:
    return DataConfig(folders, **({"inputs": 2, "targets": 3, "batch": 4, "workers": 0} | more))


def batches(cfg: DataConfig, count: int = 3, aux: tuple[Any, ...] = ALL) -> tuple[Data, list[Batch]]:
    opened = Data(cfg, aux=aux)
    made = opened.batches()
    found = list(itertools.islice(made, count))
    made.close()
    opened.close()
    return opened, found


def trained(folder: Path, out: Path, aux: tuple[Any, ...] = ALL, **more: Any) -> TrainConfig:
    model = ModelConfig(
        kind="unidirectional", dim=64, head_dim=32, layers=4, encoder_layers=2, prope=True, init="width_aware", aux=aux
    )
    usual = {"model": model, "data": settings_of(folder), "eval_every": 0, "tensorboard": False, "checkpoint_every": 99}
    return config(folder, out, **(usual | more))


# ---- what is in a batch


def _check(layers: np.ndarray, c2w: np.ndarray, k: np.ndarray, turned: np.ndarray) -> int:
    """Compare the layers (5, H, W) of a target with the sphere as a camera c2w (4, 4) sees it. turned: camera to world that
    normals are seen from. Returns the number of pixels on the sphere."""
    depth, normals, inside = seen(c2w, k)
    sure = np.abs(inside) > 1e-3  # rays that graze the sphere are not the same after rounding
    there = np.isfinite(depth) & sure
    assert np.array_equal(np.isfinite(layers[0])[sure], np.isfinite(depth)[sure])
    np.testing.assert_allclose(layers[0][there], np.log(depth[there]), atol=1e-3)
    own = np.moveaxis(layers[1:4], 0, -1)
    np.testing.assert_allclose(own[sure], (normals @ turned[:3, :3])[sure], atol=4e-3)
    assert (own[there][:, 2] < 0).all()  # they face the camera, which looks along +z
    assert ((layers[4] == 1) == (layers[4] > 0.99)).all() and (
        layers[4][np.isfinite(depth) & (inside > 0.1)] == 1
    ).all()
    return int(there.sum())


@pytest.mark.parametrize("more", [{"rotate": True}, {"rotate": False}, {"target_among_inputs": True, "targets": 4}])
def test_targets_are_what_the_geometry_says(run: Path, more: dict[str, Any]) -> None:
    """The sphere stands on the axis that worlds are turned about, so that turned cameras see it as it says."""
    opened, found = batches(settings_of(run, **more))
    pixels = 0
    for step, batch in enumerate(found):
        layers = batch.target_layers
        assert layers is not None and layers.shape == (4, opened.cfg.targets, 5, RES, RES)
        assert layers.dtype == torch.float16 and len(batch.tensors) == len(TENSORS) + 1
        plan = opened.planner.training(step, 0, 1)
        assert any(sample.angle for sample in plan) == opened.cfg.rotate
        poses, k = batch.target_c2w.numpy(), batch.target_fxfycxcy.numpy()
        for place in np.ndindex(4, opened.cfg.targets):
            pixels += _check(layers.float().numpy()[place], poses[place], k[place], poses[place])
    assert pixels > 50 * 4 * 3 * 3


def test_poses_that_are_normalised_change_nothing(run: Path) -> None:
    """Of clips the world is turned, moved and scaled: layers are those of the camera that the shard has."""
    opened, found = batches(settings_of(run, scenes=True, gap_min=1, gap_max=7))
    for step, batch in enumerate(found):
        for place, sample in enumerate(opened.planner.training(step, 0, 1)):
            for target, which in enumerate(sample.targets):
                pose = opened.index.c2w[opened.index.of(sample.number)][which]
                assert not np.allclose(batch.target_c2w[place, target], pose, atol=0.1)
                assert batch.target_layers is not None
                layers = batch.target_layers[place, target].float().numpy()
                _check(layers, pose, batch.target_fxfycxcy[place, target].numpy(), pose)


def test_neither_threads_nor_the_cache_show(run: Path) -> None:
    ways = [("memory", 0), ("device", 1), ("none", 0), ("none", 2), ("memory", 2)]
    made = [batches(settings_of(run, cache=cache, workers=workers), 4)[1] for cache, workers in ways]
    for other in made[1:]:
        for one, again in zip(made[0], other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one.tensors, again.tensors, strict=True))
    first = made[0][0]
    moved = first.to("cpu")
    assert moved.target_layers is not None and torch.equal(moved.target_layers, first.tensors[-1])
    plain = batches(settings_of(run), 1, ())[1][0]
    assert plain.target_layers is None and len(plain.tensors) == len(TENSORS)
    assert all(torch.equal(a, b) for a, b in zip(plain.tensors, first.tensors, strict=False))


def test_names_choose_channels_and_evaluation_reads_none(run: Path) -> None:
    whole = batches(settings_of(run), 1)[1][0].target_layers
    some = batches(settings_of(run), 1, ("depth", "alpha"))[1][0].target_layers
    assert whole is not None and some is not None and torch.equal(some, whole[:, :, [0, 4]])
    opened = Data(settings_of(run, cache="none"), aux=ALL)
    samples = opened.planner.evaluation("val", 2, 3)
    assert next(opened.evaluation_batches(samples, 4)).target_layers is None
    assert opened.gather(samples).target_layers is None
    opened.close()


def test_smaller_pictures_take_whole_pixels_of_surfaces(run: Path) -> None:
    """As smaller shards are made: depth and normals are those of one pixel, alpha is the mean."""
    large = batches(settings_of(run), 1)[1][0].target_layers
    small = batches(settings_of(run, res=RES // 2), 1)[1][0].target_layers
    assert large is not None and small is not None and small.shape[-2:] == (RES // 2, RES // 2)
    assert torch.equal(small[:, :, :4], large[:, :, :4, 1::2, 1::2])
    mean = large[:, :, 4].float().unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).mean((-1, -3))
    assert float((small[:, :, 4].float() - mean).abs().max()) < 1e-3


# ---- what is refused


def test_shards_without_the_columns_are_named(run: Path, tmp_path: Path) -> None:
    bare = spheres(tmp_path / "bare", ("alpha",), name="other")
    said = r"--aux depth normals: .*bare/32/train-000000.parquet has no column of depth and none of normals"
    with pytest.raises(UserError, match=said) as refused:
        Data(settings_of(run, bare), aux=ALL)
    assert "--depth --normals" in refused.value.hint
    Data(settings_of(run, bare), aux=("alpha",)).close()
    with pytest.raises(UserError, match="--aux depth"):  # before a step, or anything of a run, is made
        train_fn(trained(bare, tmp_path / "run", ("depth",)))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    "spoilt",
    [
        {"depth": b"abc"},
        {"depth": b""},
        {"normals": bytes(4 * RES * RES)},
        {"alpha": b"no PNG"},
        {"alpha": images.encode_png(np.zeros((RES // 2, RES // 2), np.uint8))},
        {"alpha": images.encode_png(np.zeros((RES, RES, 3), np.uint8))},
    ],
)
def test_broken_layers_are_named(spoilt: dict[str, bytes], tmp_path: Path) -> None:
    broken = spheres(tmp_path / "broken", spoilt=spoilt)
    for cache in ("memory", "none"):
        with pytest.raises(UserError, match=r"depth or normals or alpha of sphere-\d is missing or broken"):
            batches(settings_of(broken, cache=cache), 1)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"aux": ("dept",)}, r"aux 'dept' is unknown: choose of depth, normals, alpha"),
        ({"aux": ("depth", "depth")}, "names one twice"),
        ({"loss": LossConfig(perceptual=0, aux_weight=0)}, "--aux-weight 0"),
        ({"loss": LossConfig(perceptual=0, aux_weight=float("nan"))}, "--aux-weight nan"),
    ],
)
def test_bad_settings_are_named(more: dict[str, Any], error: str, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=error):
        trained(run, tmp_path / "run", **more)


def test_a_cycle_has_to_render_what_it_learns_from(tmp_path: Path) -> None:
    cfg = TrainConfig(model=dataclasses.replace(TINY, patch=8, aux=ALL))
    scene = SceneConfig(depth=True).resolved()
    with pytest.raises(UserError, match=r"--model.aux normals alpha is learned from columns") as refused:
        settings(cfg, tmp_path, scene, 100)
    assert refused.value.hint == "add --normals --alpha"
    scene = dataclasses.replace(scene, normals=True, alpha=True)
    assert settings(cfg, tmp_path, scene, 100).model.aux == ALL


def test_settings_survive_json_and_order_does_not_matter(run: Path, tmp_path: Path) -> None:
    made = trained(run, tmp_path / "run", ("alpha", "depth"))
    assert made.model.aux == ("depth", "alpha")
    assert TrainConfig.from_json(json.loads(json.dumps(made.as_json()))) == made
    old = made.as_json()
    del old["model"]["aux"], old["loss"]["aux_weight"]  # as of an earlier version
    assert TrainConfig.from_json(old) == trained(run, tmp_path / "run", ())


# ---- the loss


def test_the_loss_is_zero_at_the_truth_whatever_the_unit(run: Path) -> None:
    layers = batches(settings_of(run), 1)[1][0].target_layers
    assert layers is not None
    truth = layers.float()
    made = {"depth": torch.where(torch.isfinite(truth[:, :, :1]), truth[:, :, :1], 7), "normals": 3 * truth[:, :, 1:4]}
    made["depth"] = made["depth"] + torch.randn(4, 3, 1, 1, 1)  # another factor of each image's depth
    made["alpha"] = torch.where(truth[:, :, 4:] > 0.5, 50.0, -50.0)
    total, terms = layer_loss(made, layers)
    assert float(terms["depth"]) < 1e-5 and float(terms["normals"]) < 1e-3
    assert total.item() == pytest.approx(sum(WEIGHTS[name] * float(term) for name, term in terms.items()))
    empty = torch.cat([torch.full_like(layers[:, :, :1], torch.inf), torch.zeros_like(layers[:, :, 1:])], 2)
    nothing = layer_loss(made, empty)[1]
    assert float(nothing["depth"]) == float(nothing["normals"]) == 0  # where nothing is, nothing is asked for


def test_the_loss_is_the_formula_and_a_mean_over_images(run: Path) -> None:
    layers = batches(settings_of(run), 1)[1][0].target_layers
    assert layers is not None
    random = torch.Generator().manual_seed(0)
    made = {name: torch.randn(4, 3, size, RES, RES, generator=random) for name, size in AUX.items()}
    terms = layer_loss(made, layers)[1]
    expected: dict[str, list[float]] = {name: [] for name in AUX}
    for place in np.ndindex(4, 3):
        truth, ours = layers[place].double().numpy(), {name: one[place].double().numpy() for name, one in made.items()}
        there = np.isfinite(truth[0])
        off = ours["depth"][0][there] - truth[0][there]
        expected["depth"].append(np.abs(off - off.mean()).mean())
        theirs, own = truth[1:4][:, there], ours["normals"][:, there]
        cosine = (theirs * own).sum(0) / np.linalg.norm(theirs, axis=0) / np.linalg.norm(own, axis=0)
        expected["normals"].append((1 - cosine).mean())
        share = 1 / (1 + np.exp(-ours["alpha"][0]))
        expected["alpha"].append(-(truth[4] * np.log(share) + (1 - truth[4]) * np.log(1 - share)).mean())
    for name, each in expected.items():
        assert float(terms[name]) == pytest.approx(np.mean(each), rel=1e-5)
    halves = [
        layer_loss({name: one[part] for name, one in made.items()}, layers[part])[0] for part in (np.s_[:1], np.s_[1:])
    ]
    assert layer_loss(made, layers)[0].item() == pytest.approx(
        halves[0].item() / 4 + halves[1].item() * 3 / 4, rel=1e-5
    )


# ---- the model


@pytest.mark.parametrize("kind", list(BY_KIND))
def test_heads_change_no_other_weight_and_no_picture(kind: Any, run: Path) -> None:
    plain = dataclasses.replace(TINY, kind=kind)
    without, having = build(plain, 3), build(dataclasses.replace(plain, aux=ALL), 3)
    own, more = without.state_dict(), having.state_dict()
    assert {name for name in more if name not in own} == {
        f"aux.{one}.{part}.weight" for one in ALL for part in ("norm", "linear")
    }
    assert all(torch.equal(own[name], more[name]) for name in own)
    batch = batches(settings_of(run, res=RES // 2), 1)[1][0]
    given = batch.rgb, batch.c2w, batch.fxfycxcy, batch.target_c2w, batch.target_fxfycxcy
    picture, made = having(*given, aux=True)
    assert torch.equal(picture, without(*given)) and torch.equal(picture, having(*given))
    assert {name: one.shape[2] for name, one in made.items()} == AUX
    layer_loss(made, batch.tensors[-1])[0].backward()
    reached = {
        name for name, weight in having.named_parameters() if weight.grad is not None and weight.grad.abs().max() > 0
    }
    assert reached >= set(more) - {"head.norm.weight", "head.linear.weight"}
    assert not reached & {"head.norm.weight", "head.linear.weight"}


def test_operations_of_heads_are_counted() -> None:
    model = build(dataclasses.replace(TINY, aux=("depth", "normals")), 0)
    with blocks.attention("math"), FlopCounterMode(display=False) as counter:
        model(*posed(2, 2, (12, 8)), *cameras_of(2, 2, (12, 8), 7), aux=True)
    assert counter.get_total_flops() > forward_flops(model.config, 2, 2, 2, (12, 8))
    assert training_flops(model.config, 2, 2, 2, (12, 8)) == 3 * counter.get_total_flops()


# ---- a run


def test_every_term_of_one_batch_is_learned(run: Path) -> None:
    batch = batches(settings_of(run, res=RES // 2, batch=2, rotate=False), 1)[1][0]
    net = build(ModelConfig(dim=64, head_dim=32, patch=4, layers=2, init="width_aware", aux=ALL), 0)
    given = batch.rgb, batch.c2w, batch.fxfycxcy, batch.target_c2w, batch.target_fxfycxcy
    adam, told = torch.optim.Adam(net.parameters(), lr=3e-3), []
    for _ in range(80):
        picture, made = net(*given, aux=True)
        beside, terms = layer_loss(made, batch.tensors[-1])
        error = (picture - batch.target_rgb).square().mean()
        adam.zero_grad()
        (error + 10 * beside).backward()
        adam.step()
        told.append({"mse": float(error.detach()), **{name: float(term) for name, term in terms.items()}})
    for name in told[0]:
        assert told[-1][name] < 0.5 * told[0][name], name
    covered = batch.tensors[-1][:, :, 4] > 0.5
    share = float(covered.float().mean())
    right = float(((made["alpha"][:, :, 0] > 0) == covered).float().mean())
    assert right > max(share, 1 - share) + 0.1, (right, share)


def test_the_loss_of_a_run_stays_that_of_pictures(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train_fn(trained(run, out, steps=20, eval_every=10)).finished
    lines = [line for line in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if "loss" in line]
    for name in ("mse", *(f"aux_{name}" for name in ALL)):
        assert lines[-1][name] < lines[0][name], name
    assert all(line["loss"] == line["mse"] for line in lines)
    net, batch = open_model(out, device="cpu").net, batches(settings_of(run), 1)[1][0]
    given = batch.rgb, batch.c2w, batch.fxfycxcy, batch.target_c2w, batch.target_fxfycxcy
    assert net(*given).shape == batch.target_image.shape and net.config.aux == ALL


def test_a_run_goes_on_bit_by_bit_and_only_with_the_same_heads(run: Path, tmp_path: Path) -> None:
    train_fn(trained(run, tmp_path / "whole", steps=6, checkpoint_every=3))
    train_fn(trained(run, tmp_path / "cut", steps=6, checkpoint_every=3))
    for path in (tmp_path / "cut" / "checkpoints").glob("step-00000006.*"):
        path.unlink()
    assert train_fn(trained(run, tmp_path / "cut", steps=6, checkpoint_every=3)).step == 6
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    with pytest.raises(UserError, match=r"aux was \['depth', 'normals', 'alpha'\], now \[\]"):
        train_fn(trained(run, tmp_path / "cut", (), steps=6, checkpoint_every=3))


def test_weights_go_from_runs_with_heads_to_runs_without_and_back(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"steps": 1, "optim": OptimConfig(lr=1e-9, warmup=0)}
    train_fn(trained(run, tmp_path / "two", ("depth", "normals"), **few))
    capsys.readouterr()
    train_fn(trained(run, tmp_path / "one", ("depth", "alpha"), start_from=tmp_path / "two", **few))
    said = " ".join(capsys.readouterr().err.split())
    assert f"--start-from {tmp_path / 'two'}: its --aux alpha is new; its --aux normals is left out" in said
    before, after = (open_model(tmp_path / name, device="cpu").net.state_dict() for name in ("two", "one"))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before.keys() & after.keys())
    assert {name for name in after if name.startswith("aux.")} >= {"aux.depth.linear.weight", "aux.alpha.linear.weight"}
    train_fn(trained(run, tmp_path / "none", (), start_from=tmp_path / "one", **few))
    assert "its --aux alpha depth is left out" in " ".join(capsys.readouterr().err.split())
    model = ModelConfig(kind="decoder_only", dim=64, head_dim=32, layers=1, aux=ALL)
    plain = build(dataclasses.replace(model, aux=()), 5)
    torch.save({"model": official.to_official(plain)}, tmp_path / "official.pt")
    export = {"export_official": tmp_path / "again.pt", "start_from": tmp_path / "official.pt"}
    train_fn(trained(run, tmp_path / "ours", model=model, **export, **few))
    assert "its --aux alpha depth normals is new" in " ".join(capsys.readouterr().err.split())
    again = torch.load(tmp_path / "again.pt", weights_only=True)["model"]
    theirs = official.to_official(plain)
    assert again.keys() == theirs.keys()
    assert all(torch.allclose(again[name], theirs[name], atol=1e-6) for name in theirs)


def test_recorded_steps_and_measurements_read_layers_too(run: Path, tmp_path: Path) -> None:
    cfg = trained(run, tmp_path, accumulate=2)
    net = build(cfg.model, 0)
    gradients, (first, second) = Gradients(cfg, net, CPU, Ranks()), batches(cfg.data, 2)[1]
    terms = gradients([first, second], 0)
    expected = {name: weight.grad.clone() for name, weight in net.named_parameters() if weight.grad is not None}
    assert "aux.depth.linear.weight" in expected
    net.zero_grad()
    gradients.recorded = Recorded(net, gradients._backward)
    again = gradients([first, second], 0)
    assert len(gradients.recorded.recordings) == 1  # of the second batch the same graph is played, with its own layers
    assert {name: float(one) for name, one in again.items()} == {name: float(one) for name, one in terms.items()}
    assert all(torch.equal(weight.grad, expected[name]) for name, weight in net.named_parameters() if name in expected)
    net.aux["alpha"].linear.weight.data.fill_(
        torch.inf
    )  # what overflows shows in the loss, so that the step is skipped
    assert gradients([first, second], 0)["loss"].isnan()
    zeros = gradients._forward_of_zeros((RES, RES))(2)
    net.zero_grad()
    zeros.backward()
    assert all(weight.grad is not None for weight in net.parameters())
