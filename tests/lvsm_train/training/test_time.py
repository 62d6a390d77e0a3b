"""Models that know time, through every verb: shards of discs that move, training, evaluation, latents, new views."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lvsm_train.config.synthesis import SynthesisConfig  # noqa: E402
from lvsm_train.config.train import LossConfig, ModelConfig  # noqa: E402
from lvsm_train.config.trained import EvalConfig, LatentConfig  # noqa: E402
from lvsm_train.data.batches import Data, DataConfig  # noqa: E402
from lvsm_train.data.samples import Planner  # noqa: E402
from lvsm_train.evaluation.assess import assess  # noqa: E402
from lvsm_train.latent.explore import explore  # noqa: E402
from lvsm_train.synthesis.synthesize import read, synthesize  # noqa: E402
from lvsm_train.training.train import train_fn  # noqa: E402
from lvsm_train.weights.trained import open_model  # noqa: E402
from pipeline.core import cameras, images  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from pipeline.core.records import Item, Scene, Views  # noqa: E402
from pipeline.storage.shards import TIME  # noqa: E402
from pipeline.storage.writer import ShardWriter  # noqa: E402
from tests.lvsm_train.training.test_train import config  # noqa: E402
from tests.noise import FACTS  # noqa: E402

CAMERAS, INSTANTS, SIDE = 3, 7, 32
MODEL = ModelConfig(
    kind="encoder_decoder",
    dim=32,
    head_dim=16,
    layers=2,
    encoder_layers=1,
    latents=6,
    prope=True,
    init="width_aware",
    temporal=True,
)


def picture(camera: int, time: float, number: int) -> bytes:
    """A disc of a colour of its own that goes from left to right with time, on white; each camera sees it higher."""
    y, x = np.mgrid[:SIDE, :SIDE]
    inside = (x - 6 - 20 * time) ** 2 + (y - 8 - 7 * camera) ** 2 < 20
    pixels = np.full((SIDE, SIDE, 3), 255, np.uint8)
    pixels[inside] = np.array([40 + 13 * number, 200 - 11 * number, 60], np.uint8)
    return images.encode_jpeg(pixels, 95)


def write(out: Path, count: int = 9) -> Path:
    """Objects that move, seen by the same cameras at all instants, in seconds of their own; the last one stands still."""
    poses = cameras.look_at(1.6 * np.array([[1.0, 0, 0.2], [0, 1, 0.2], [-1, 0, 0.2]])).astype(np.float32)
    k = np.tile(np.float32([40, 40, SIDE / 2, SIDE / 2]), (CAMERAS * INSTANTS, 1))
    writer = ShardWriter(out, (SIDE,), ("frame", TIME), FACTS | {"source": "procedural"}, 1e12)
    for split, numbers in (("train", range(count - 3)), ("val", range(count - 3, count))):
        for number in numbers:
            moves = number != count - 1
            instant = np.repeat(np.arange(INSTANTS), CAMERAS)
            shares = instant / (INSTANTS - 1) * moves
            made = [picture(view % CAMERAS, float(share), number) for view, share in enumerate(shares)]
            views = Views(made, k, (SIDE, SIDE))
            times = (shares * (2 + number) + 5).tolist()
            c2w = np.tile(poses, (INSTANTS, 1, 1))
            scene = Scene(Item(f"disc-{number}", "procedural"), c2w, {SIDE: views}, {}, {"frame": instant}, times=times)
            writer.add(scene, split, 0)
        writer.close(split)
    return out


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("moving"))


@pytest.fixture(scope="module")
def run(moving: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    loss = LossConfig(perceptual=0, temporal_gradient=0.1)
    data = DataConfig((moving,), inputs=4, targets=4, batch=4, workers=0)
    train_fn(config(moving, out, model=MODEL, data=data, loss=loss, steps=12, eval_every=0, checkpoint_every=12))
    return out


def test_training_sees_times_and_reports_the_temporal_gradient(run: Path, moving: Path) -> None:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert steps and all(np.isfinite(line["loss"]) for line in steps)
    assert any("temporal_gradient" in json.dumps(line) for line in steps)
    opened = Data(DataConfig((moving,), inputs=4, targets=4, batch=4, workers=0), temporal=True)
    assert not [note for note in opened.notes if "stood still" in note]
    batch = next(opened.batches())
    assert batch.time.shape == (4, 4) and float(batch.time.max()) <= 1 and len(batch.time.unique()) > 2
    for one in range(4):  # each picture is of its time: the disc's column says it
        for pixels, time in zip(batch.image[one], batch.time[one].tolist(), strict=True):
            columns = (pixels.float().mean(0) < 200).nonzero()[:, 1]
            assert abs(float(columns.float().mean()) - (6 + 20 * time)) < 1.5


def test_inputs_of_an_evaluation_are_spread_over_time_and_targets_between(moving: Path) -> None:
    opened = Data(DataConfig((moving,), inputs=4, targets=4, workers=0), temporal=True)
    planner = Planner(opened.cfg, opened.index)
    sample = next(one for one in planner.evaluation("all", 4, 6) if opened.index.moves(one.number))
    time = opened.index.time[opened.index.of(sample.number)]
    shown, asked = time[list(sample.inputs)], time[list(sample.targets)]
    assert len(set(shown.tolist())) > 1 and {0.0, 1.0} <= set(shown.tolist())
    assert not set(shown.tolist()) & set(asked.tolist())


def test_evaluation_says_how_time_matters(run: Path, tmp_path: Path) -> None:
    found = assess(
        EvalConfig(
            run=run, protocol=None, lpips=False, video=1, frames=3, controls=True, static=run, out=tmp_path / "eval"
        ).resolved()
    )
    assert found.facts["protocol"] == "time"
    assert all(row.static == pytest.approx(row.model) for row in found.distances)  # it is the same model here
    assert found.distances and sum(row.images for row in found.distances) >= 8
    assert "target times shuffled" in [control.says for control in found.controls]
    told = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert len(told["time_films"]) == 3 and all(
        (tmp_path / "eval" / name).is_file() for name in told["time_films"].values()
    )
    assert [row["images"] for row in told["distances_in_time"]] == [row.images for row in found.distances]
    page = (tmp_path / "eval" / "index.html").read_text()
    assert "blend of neighbours" in page and "static model, dB" in page and "a fixed camera through time" in page
    assert any("of the time from an input" in line for line in found.lines())


def test_latents_over_time(run: Path, moving: Path) -> None:
    usual = LatentConfig(run, views=2, frames=3, pca_objects=3, batch=4, lpips=False, device="cpu")
    report = explore(dataclasses.replace(usual, objects=("disc-6", "disc-0"), only=("time",)).resolved())
    told = json.loads((report.out / "latent.json").read_text())["instants"]
    assert told["object"] == "disc-6" and told["times"] == pytest.approx(np.linspace(0, 1, INSTANTS).tolist())
    assert len(told["change_of_tokens"]) == MODEL.latents and 0 < told["share_of_variance"] < 1
    psnr = told["psnr"]
    ends = [psnr[name][place] for place in (0, -1) for name in ("encoded there", "between the first and the last")]
    assert ends[0] == ends[1] and ends[2] == ends[3]  # at its ends the line is the tokens themselves
    shapes = {name: tuple(one.shape) for name, one in report.tensors.items() if name.startswith("instants/")}
    assert shapes == {
        "instants/times": (INSTANTS,),
        "instants/directions": (INSTANTS, MODEL.latents, MODEL.dim),
        "instants/change": (MODEL.latents,),
    }
    assert (report.out / "instants.png").is_file() and (report.out / "instants-tokens.png").is_file()
    # of what stands still, and without such an object, it says what it lacks
    still = dataclasses.replace(usual, objects=("disc-8",), only=("time",), out=report.out / "still").resolved()
    assert any("time was left out: it needs a model that knows time" in note for note in explore(still).notes)


def test_new_views_at_any_time(run: Path, moving: Path, tmp_path: Path) -> None:
    def asked(name: str, **more: object) -> SynthesisConfig:
        cfg = SynthesisConfig(run=run, data=moving, uid="disc-6", out=tmp_path / name, device="cpu", frames=5)
        return dataclasses.replace(cfg, **more).resolved()  # type: ignore[arg-type]

    seen = read(asked("orbit"))
    assert seen.plan.time.tolist() == [0, 0.25, 0.5, 0.75, 1] and len(set(seen.plan.input_time.tolist())) > 1
    synthesize(asked("orbit"), seen)
    assert json.loads((tmp_path / "orbit" / "cameras.json").read_text())["time"] == seen.plan.time.tolist()
    frozen = read(asked("frozen", time=0.25))
    assert frozen.plan.time.tolist() == [0.25] * 5
    others = read(asked("others", poses="others", frames=SynthesisConfig.frames))
    album = others.plan.album
    assert others.plan.time.tolist() == album.time[others.plan.others].tolist()
    first, later = (
        next(seen.views(seen.plan.c2w[:1], seen.plan.fxfycxcy[:1], np.array([time]))) for time in (0.0, 1.0)
    )
    assert np.abs(first - later).max() > 1e-4
    with pytest.raises(UserError, match="are of one instant"):
        read(asked("still", uid="disc-8", time=0.5))
    with pytest.raises(UserError, match="is no share"):
        asked("wrong", time=1.5)


def test_a_model_without_time_says_so_of_photos_that_move(moving: Path, tmp_path: Path) -> None:
    plain = dataclasses.replace(MODEL, temporal=False)
    data = DataConfig((moving,), inputs=4, targets=4, batch=4, workers=0)
    train_fn(config(moving, tmp_path / "run", model=plain, data=data, steps=1, eval_every=0, checkpoint_every=1))
    warned: list[str] = []
    cfg = SynthesisConfig(run=tmp_path / "run", data=moving, uid="disc-6", out=tmp_path / "out", device="cpu", frames=2)
    read(cfg.resolved(), warned.append)
    assert any("are of 7 instants, and this model takes them as of one" in line for line in warned)
    with pytest.raises(UserError, match="the model does not know time"):
        read(dataclasses.replace(cfg, time=0.5).resolved())
    assert not open_model(tmp_path / "run", device="cpu").cfg.model.temporal
