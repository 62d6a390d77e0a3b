"""Scores against an independent computation, controls, cameras' flights, the stopwatch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks._balls import balls  # noqa: E402
from lvsm_train.config.train import DataConfig, ModelConfig  # noqa: E402
from lvsm_train.data.batches import Batch, Data  # noqa: E402
from lvsm_train.evaluation import assess, flight  # noqa: E402
from lvsm_train.evaluation.scores import (  # noqa: E402
    BASELINES,
    LPIPS_AT_ONCE,
    ImageScores,
    examine,
    measure,
    nearest,
    render_of,
    strip,
)
from lvsm_train.evaluation.stopwatch import Lap, Timed  # noqa: E402
from lvsm_train.losses.metrics import ssim  # noqa: E402
from lvsm_train.models import lvsm  # noqa: E402
from pipeline.core import cameras  # noqa: E402

TINY = ModelConfig(kind="unidirectional", dim=32, head_dim=16, layers=2, encoder_layers=1, init="width_aware")


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[Batch]:
    """Three objects on two batches: 3 inputs and 4 targets each."""
    data = Data(DataConfig((balls(tmp_path_factory.mktemp("balls"), 15),), workers=0))
    made = list(data.evaluation_batches(data.planner.evaluation("val", 3, 4), 2))
    data.close()
    return made


def noisy(batch: Batch) -> torch.Tensor:
    """What a bad model would render; some of it is beyond [0, 1]."""
    noise = torch.randn(batch.target_image.shape, generator=torch.Generator().manual_seed(3))
    return batch.target_rgb + 0.1 * noise * torch.arange(1, 5)[:, None, None, None]


def decibels(made: np.ndarray, target: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((made.astype(np.float64) - target) ** 2)))


def test_scores_are_what_numpy_says(batches: list[Batch]) -> None:
    found = examine(noisy, batches)
    wanted: dict[str, list[float]] = {name: [] for name in ("psnr", *BASELINES)}
    for batch in batches:
        inputs, targets, made = (x.numpy().astype(np.float64) for x in (batch.rgb, batch.target_rgb, noisy(batch)))
        for b, t in np.ndindex(targets.shape[:2]):
            target = targets[b, t]
            wanted["psnr"].append(decibels(made[b, t].clip(0, 1), target))
            apart = np.linalg.norm(batch.c2w.numpy()[b, :, :3, 3] - batch.target_c2w.numpy()[b, t, :3, 3], axis=-1)
            each = [decibels(view, target) for view in inputs[b]]
            wanted["nearest"].append(each[int(apart.argmin())])
            wanted["best_input"].append(max(each))
            wanted["mean"].append(decibels(inputs[b].mean(0), target))
            wanted["white"].append(decibels(np.ones_like(target), target))
    for name, values in wanted.items():
        np.testing.assert_allclose(found.values[name], values, rtol=1e-5)
        assert getattr(found.scores(), name) == pytest.approx(np.mean(values), rel=1e-5)
    assert found.scores().targets == 12 and measure(noisy, batches) == found.scores()
    assert list(found.by_object()) == [uid for batch in batches for uid in batch.uids]


def test_means_over_images_and_over_objects() -> None:
    values = {name: np.array([10.0, 20, 30, 60]) for name in ("psnr", "foreground_psnr", "ssim", *BASELINES)}
    found = ImageScores(np.array(["a", "a", "a", "b"]), values)
    assert found.scores().psnr == 30 and found.scores().targets == 4
    assert {uid: scores.psnr for uid, scores in found.by_object().items()} == {"a": 20, "b": 60}
    assert found.over_objects().psnr == 40 and found.over_objects().targets == 2
    assert found.only(["b"]).scores().ssim == 60


def test_what_is_no_number_spoils_no_mean_and_is_counted(batches: list[Batch]) -> None:
    first = batches[0]
    blank = torch.full_like(first.target_image, 255)
    blank[:, 1:] = first.target_image[:, 1:]
    batch = dataclasses.replace(first, target_image=blank)  # the first target of both objects shows nothing

    def render(given: Batch) -> torch.Tensor:
        made = noisy(given)
        made[:, 0] = 0.9
        made[:, 3] = given.target_rgb[:, 3]
        return made

    scores, kept = measure(render, [batch]), examine(render, [batch]).values
    assert (scores.equal, scores.blank, scores.targets) == (2, 2, 8)
    assert np.isinf(kept["psnr"][3::4]).all() and np.isnan(kept["foreground_psnr"][0::4]).all()
    assert scores.psnr == pytest.approx(np.delete(kept["psnr"], [3, 7]).mean())
    assert scores.foreground_psnr == pytest.approx(kept["foreground_psnr"][[1, 2, 5, 6]].mean())
    assert scores.white == pytest.approx(np.delete(kept["white"], [0, 4]).mean())  # equal to the blank ones


def test_a_model_that_renders_nan_is_not_flattered(batches: list[Batch]) -> None:
    def broken(batch: Batch) -> torch.Tensor:
        made = noisy(batch)
        made[:, 2] = torch.nan
        return made

    scores = measure(broken, batches)
    assert np.isnan([scores.psnr, scores.foreground_psnr, scores.ssim]).all() and scores.blank == 0
    assert np.isfinite(scores.nearest)


def test_a_perfect_and_a_white_model(batches: list[Batch]) -> None:
    perfect = measure(lambda batch: batch.target_rgb, batches)
    assert perfect.psnr == np.inf and perfect.ssim == pytest.approx(1) and perfect.equal == perfect.targets
    white = measure(lambda batch: torch.ones_like(batch.target_rgb), batches)
    assert white.psnr == pytest.approx(white.white) and white.psnr < white.nearest


class Lightness(torch.nn.Module):
    """Stands for LPIPS: how far apart two pictures are on average."""

    def forward(self, render: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        assert len(render) <= LPIPS_AT_ONCE
        return (render - target).abs().mean((1, 2, 3))


def test_baselines_by_ssim_and_lpips(batches: list[Batch]) -> None:
    few, found = examine(noisy, batches, Lightness()), examine(noisy, batches, Lightness(), whole=True)  # type: ignore[arg-type]
    wanted: dict[str, list[float]] = {f"{name}_{metric}": [] for name in BASELINES for metric in ("ssim", "lpips")}
    for batch in batches:
        for b, t in np.ndindex(*batch.target_image.shape[:2]):
            target, inputs = batch.target_rgb[b, t], batch.rgb[b]
            apart = (batch.c2w[b, :, :3, 3] - batch.target_c2w[b, t, :3, 3]).norm(dim=-1)
            each = [decibels(view.numpy(), target.numpy()) for view in inputs]
            shown = {
                "nearest": inputs[int(apart.argmin())],
                "best_input": inputs[int(np.argmax(each))],
                "mean": inputs.mean(0),
                "white": torch.ones_like(target),
            }
            for name, picture in shown.items():
                wanted[f"{name}_ssim"].append(float(ssim(picture[None], target[None])))
                wanted[f"{name}_lpips"].append(float((picture - target).abs().mean()))
    scores = found.scores()
    for key, values in wanted.items():
        np.testing.assert_allclose(found.values[key], values, rtol=1e-4, atol=1e-6)
        name, _, metric = key.rpartition("_")
        assert scores.of(name, metric) == pytest.approx(np.mean(values), rel=1e-4)
        assert few.scores().of(name, metric) is None or key == "nearest_lpips"
    assert scores.psnr == few.scores().psnr and scores.of("white", "psnr") == scores.white


def test_lpips_of_the_model_and_of_the_nearest_input(batches: list[Batch]) -> None:
    found = examine(noisy, batches, Lightness())  # type: ignore[arg-type]
    wanted = [(noisy(batch).clamp(0, 1) - batch.target_rgb).abs().mean((2, 3, 4)).flatten() for batch in batches]
    np.testing.assert_allclose(found.values["lpips"], torch.cat(wanted).numpy(), rtol=1e-5)
    beside = [(nearest(batch) - batch.target_rgb).abs().mean((2, 3, 4)).flatten() for batch in batches]
    np.testing.assert_allclose(found.values["nearest_lpips"], torch.cat(beside).numpy(), rtol=1e-5)
    assert "LPIPS" in found.scores().line() and "LPIPS" not in measure(noisy, batches).line()


# ---- controls


def render(config: ModelConfig, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        made: torch.Tensor = render_of(lvsm.build(config, 0))(batch)
    return made


def test_a_moved_world_matters_without_prope_alone(batches: list[Batch]) -> None:
    moved = assess.moved_world(batches[0])
    prope = dataclasses.replace(TINY, prope=True)
    assert (render(prope, moved) - render(prope, batches[0])).abs().max() < 1e-4
    assert (render(TINY, moved) - render(TINY, batches[0])).abs().max() > 1e-2
    both = [torch.cat([one.c2w, one.target_c2w], 1).double().numpy() for one in (batches[0], moved)]
    before, after = (cameras.w2c(c2w[:, :1]) @ c2w for c2w in both)
    np.testing.assert_allclose(after, before, atol=1e-6)  # cameras stand to each other as they did
    assert np.abs(both[1] - both[0]).max() > 0.1 and torch.equal(moved.image, batches[0].image)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_shuffled_cameras_are_a_derangement(count: int, batches: list[Batch]) -> None:
    whole = batches[0]
    batch = dataclasses.replace(
        whole,
        target_image=whole.target_image[:, :count],
        target_c2w=whole.target_c2w[:, :count],
        target_fxfycxcy=torch.arange(2 * count * 4).view(2, count, 4).float(),
    )
    made = assess.shuffled_cameras(batch)
    assert torch.equal(made.target_image, batch.target_image) and torch.equal(made.c2w, batch.c2w)
    for b in range(2):
        before, after = batch.target_fxfycxcy[b, :, 0].tolist(), made.target_fxfycxcy[b, :, 0].tolist()
        assert sorted(after) == before and all(one != other for one, other in zip(before, after, strict=True))
        order = [before.index(one) for one in after]
        assert torch.equal(made.target_c2w[b], batch.target_c2w[b, order])
    with pytest.raises(ValueError, match="no other"):
        assess.shuffled_cameras(dataclasses.replace(batch, target_image=batch.target_image[:, :1]))


def test_another_objects_inputs_come_with_their_cameras(batches: list[Batch]) -> None:
    batch = batches[0]
    other = dataclasses.replace(batch, image=batch.image.flip(0), c2w=batch.c2w.flip(0))
    made = assess.with_inputs_of(batch, other)
    assert torch.equal(made.image[0], batch.image[1]) and torch.equal(made.c2w[0], batch.c2w[1])
    assert torch.equal(made.target_image, batch.target_image) and torch.equal(made.target_c2w, batch.target_c2w)


# ---- flights


def inputs(views: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return cameras.sample("shell", rng, views), rng.uniform(20, 60, (views, 4)).astype(np.float32)


@pytest.mark.parametrize("path", [flight.orbit, flight.between])
def test_cameras_in_flight_are_rigid(path: Any) -> None:
    c2w, _ = path(*inputs(), 17)
    assert c2w.shape == (17, 4, 4)
    np.testing.assert_allclose(cameras.nearest_rigid(c2w, 1e-5), c2w, atol=1e-6)


def test_an_orbit_is_as_far_out_as_the_inputs() -> None:
    given, k = inputs()
    c2w, made = flight.orbit(given, k, 12)
    radius = np.linalg.norm(given[:, :3, 3], axis=-1).mean()
    np.testing.assert_allclose(np.linalg.norm(c2w[:, :3, 3], axis=-1), radius, rtol=1e-5)
    np.testing.assert_array_equal(made, np.tile(k[0], (12, 1)))
    pixel, depth = cameras.project(np.zeros((1, 3)), c2w, made)
    np.testing.assert_allclose(pixel[:, 0], made[:, 2:], atol=1e-3)  # the origin stays in the middle
    assert (depth > 0).all()
    first = np.arctan2(given[0, 1, 3], given[0, 0, 3])
    assert np.arctan2(c2w[0, 1, 3], c2w[0, 0, 3]) == pytest.approx(first, abs=1e-5)


def test_a_flight_between_inputs_passes_them_all() -> None:
    given, k = inputs()
    c2w, made = flight.between(given, k, 9)
    np.testing.assert_allclose(c2w[[0, 4, 8]], given, atol=1e-6)
    np.testing.assert_allclose(made[[0, 4, 8]], k, atol=1e-5)
    np.testing.assert_allclose(c2w[2, :3, 3], (given[0, :3, 3] + given[1, :3, 3]) / 2, atol=1e-6)
    half, whole = given[0, :3, :3].T @ c2w[2, :3, :3], given[0, :3, :3].T @ given[1, :3, :3]
    np.testing.assert_allclose(half @ half, whole, atol=1e-5)  # a rotation by half the angle about the same axis
    alone, _ = flight.between(given[:1], k[:1], 4)
    np.testing.assert_allclose(alone, np.tile(given[0], (4, 1, 1)), atol=1e-6)


def test_frames_are_what_the_model_renders(batches: list[Batch]) -> None:
    net, batch = lvsm.build(TINY, 0), batches[1]
    with torch.no_grad():
        wanted = net(batch.rgb, batch.c2w, batch.fxfycxcy, batch.target_c2w, batch.target_fxfycxcy)[0]
        path = batch.target_c2w[0].numpy(), batch.target_fxfycxcy[0].numpy()
        frames = list(flight.render_frames(net, batch, *(np.tile(one, (3, *[1] * (one.ndim - 1))) for one in path)))
    assert len(frames) == 12 > flight.AT_ONCE
    for number, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - (wanted[number % 4] * 255).permute(1, 2, 0).numpy()).max() < 1


# ---- time


def test_the_stopwatch_renders_as_the_model_and_counts_no_first_batch(batches: list[Batch]) -> None:
    timed = Timed(lvsm.build(TINY, 0))
    calls: list[int] = []
    plain = timed.net.encode
    timed.net.encode = lambda *given, **more: (calls.append(len(given[0])), plain(*given, **more))[1]  # type: ignore[method-assign]
    with torch.no_grad():
        for batch in (batches[0], batches[0], batches[1]):
            assert torch.equal(timed(batch), render_of(lvsm.build(TINY, 0))(batch))
    assert calls == [2, 2, 2, 1, 1]  # two shapes, each once more than it was asked for
    assert set(timed.laps) == {uid for batch in batches for uid in batch.uids}
    lap = timed.laps[batches[0].uids[0]]
    assert (lap.scenes, lap.views, lap.pixels) == (2, 8, 8 * 32 * 32) and min(lap.encode_s, lap.decode_s) > 0


def test_rates_of_laps() -> None:
    rates = (Lap(2, 8, 800, 0.1, 0.4) + Lap(2, 12, 1200, 0.3, 0.6)).rates()
    assert rates == pytest.approx({"encode_ms": 100, "ms_per_view": 50, "rays_per_s": 2000, "fps": 20})


def test_strips_are_written(batches: list[Batch], tmp_path: Path) -> None:
    from pipeline.core import images

    path = strip(noisy, batches[0], tmp_path / "new" / "strip.png")
    sheet = images.decode(path.read_bytes())
    assert sheet.shape == (2 * 34 - 2, 9 * 34 - 2, 3)  # 3 inputs, 3 pairs
    np.testing.assert_array_equal(sheet[34:66, 3 * 34 : 3 * 34 + 32], batches[0].target_image[1, 0].permute(1, 2, 0))
