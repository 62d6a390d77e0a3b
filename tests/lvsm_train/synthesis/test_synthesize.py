"""`lvsm-data synthesize`: photos of captures and objects of shards in, the pictures that `eval` measures out."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lvsm_train.config.train import DataConfig, LossConfig, ModelConfig, TrainConfig  # noqa: E402
from lvsm_train.config.trained import EvalConfig  # noqa: E402
from lvsm_train.data.batches import Data  # noqa: E402
from lvsm_train.data.samples import Sample  # noqa: E402
from lvsm_train.evaluation import protocols  # noqa: E402
from lvsm_train.evaluation.assess import assess  # noqa: E402
from lvsm_train.evaluation.scores import render_of  # noqa: E402
from lvsm_train.models import lvsm  # noqa: E402
from lvsm_train.weights import checkpoint  # noqa: E402
from lvsm_train.weights.trained import open_model  # noqa: E402
from pipeline.config import rig  # noqa: E402
from pipeline.config.export import ExportConfig  # noqa: E402
from pipeline.core import cameras, images  # noqa: E402
from pipeline.dataset.opened import Dataset, Object  # noqa: E402
from pipeline.export.exporter import export  # noqa: E402
from tests.conftest import lvsm_data_here  # noqa: E402

UID = "ball-4"
TINY = ModelConfig(kind="decoder_only", dim=32, head_dim=16, layers=2)
SEES = 12.0  # times the first weights: pictures then depend on what is shown, as those of a model that was trained for long


def run_of(out: Path, *data: Path, **more: Any) -> Path:
    """A run's folder with a checkpoint; it does not matter how good its model is, but that inputs and cameras matter to it."""
    cfg = TrainConfig(model=TINY, data=DataConfig(data, **more), loss=LossConfig(perceptual=0), precision="fp32")
    first = lvsm.build(TINY, 0).state_dict()
    weights = {name: SEES * one if one.dim() > 1 else one for name, one in first.items()}
    facts = {"best": None, "config": cfg.as_json(), "scores": {}}
    checkpoint.save(out, 7, {"model": weights, "average": {}}, facts, 1)
    return out


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without PRoPE, so that it matters where in the world cameras stand."""
    return run_of(tmp_path_factory.mktemp("run"), data)


@pytest.fixture(scope="module")
def one(data: Path) -> Object:
    return Dataset(data)[UID]


@pytest.fixture(scope="module")
def sample(run: Path, data: Path) -> Sample:
    """Inputs and targets that `eval` takes of the object."""
    found = Data(DataConfig((data,), cache="none"))
    planned = protocols.plan("gslrm-objects", found.planner, "all")
    found.close()
    return next(one for one in planned if one.uid == UID)


@pytest.fixture(scope="module")
def measured(run: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """PSNR of the object in dB, as `eval` measures it."""
    out = tmp_path_factory.mktemp("eval")
    assess(EvalConfig(run=run, split="all", lpips=False, video=0, out=out).resolved())
    with (out / "objects.csv").open() as file:
        return next(float(row["psnr"]) for row in csv.DictReader(file) if row["uid"] == UID)


@pytest.fixture(scope="module")
def asked(one: Object, sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of the targets' cameras, as `lvsm-data paths` writes one."""
    path = tmp_path_factory.mktemp("poses") / "targets.json"
    targets = list(sample.targets)
    path.write_text(json.dumps(rig.ours(one.c2w[targets].astype(float), one.fxfycxcy[targets].astype(float), one.hw)))
    return path


@pytest.fixture(scope="module")
def rendered(run: Path, data: Path, sample: Sample) -> np.ndarray:
    """Pictures of the targets as `eval` renders them, (F, H, W, 3) in levels of 255."""
    found = Data(DataConfig((data,), cache="none"))
    with torch.no_grad():
        made = render_of(open_model(run, device="cpu").net)(found.gather([sample]))[0].clamp(0, 1)
    found.close()
    return (255 * made.movedim(1, -1)).numpy()


def pictures_in(out: Path) -> np.ndarray:
    return np.stack([images.decode(path.read_bytes()) for path in sorted((out / "pictures").iterdir())])


def psnr(made: np.ndarray, truth: np.ndarray) -> float:
    """Mean over pictures, in dB."""
    error = ((made.astype(float) - truth) ** 2).mean((1, 2, 3)) / 255**2
    return float((-10 * np.log10(error)).mean())


def synthesize(*arguments: object) -> tuple[str, str]:
    done = lvsm_data_here("synthesize", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def views_of(capture: Path, form: str, one: Object) -> list[int]:
    """Number in the capture of each view of the object, by its pose."""
    from lvsm_train.config.synthesis import SynthesisConfig
    from lvsm_train.synthesis.album import album

    there = album(SynthesisConfig(run=capture, input=capture), None).c2w
    apart = np.abs(there[None] - one.c2w[:, None]).max((2, 3))
    assert apart.min(1).max() < 1e-5, form
    return apart.argmin(1).tolist()


def test_an_object_of_shards_comes_out_as_eval_measures_it(
    run: Path,
    data: Path,
    one: Object,
    sample: Sample,
    asked: Path,
    measured: float,
    rendered: np.ndarray,
    tmp_path: Path,
) -> None:
    said, warned = synthesize(
        run, "--data", data, "--uid", UID, "--views", *sample.inputs, "--poses", asked, "--out", tmp_path / "o"
    )
    made = pictures_in(tmp_path / "o")
    assert psnr(made, one.some_images(sample.targets)) == pytest.approx(measured, abs=0.02)
    assert np.abs(made - rendered).max() < 0.51
    assert warned == "" and "views/s on cpu" in said
    other = [view for view in range(12) if view not in sample.inputs][:4]
    synthesize(run, "--data", data, "--uid", UID, "--views", *other, "--poses", asked, "--out", tmp_path / "other")
    assert psnr(made, pictures_in(tmp_path / "other")) < 35  # pictures depend on what is shown: the test can fail


@pytest.mark.parametrize("form", ["nerfstudio", "colmap", "nerf-synthetic"])
def test_exported_photos_come_back_as_eval_measures_them(
    form: str,
    run: Path,
    data: Path,
    one: Object,
    sample: Sample,
    asked: Path,
    measured: float,
    rendered: np.ndarray,
    tmp_path: Path,
) -> None:
    """JPEGs as they stand in the shards, and PNGs; poses as numbers of their formats."""
    export(ExportConfig(data, form, tmp_path / "photos", uid=(UID,)).resolved())
    number = views_of(tmp_path / "photos", form, one)
    inputs = [number[view] for view in sample.inputs]
    arguments = ["--input", tmp_path / "photos", "--views", *inputs, "--poses", asked, "--out", tmp_path / "made"]
    _, warned = synthesize(run, *arguments)
    made = pictures_in(tmp_path / "made")
    assert psnr(made, one.some_images(sample.targets)) == pytest.approx(measured, abs=0.1)
    assert np.abs(made - rendered).max() < 1.5
    assert warned == ""
    cams = json.loads((tmp_path / "made" / "cameras.json").read_text())
    assert np.allclose(cams["c2w"], one.c2w[list(sample.targets)], atol=1e-6)
    assert np.allclose(cams["inputs"]["c2w"], one.c2w[list(sample.inputs)], atol=1e-5)
    assert np.allclose(cams["inputs"]["fxfycxcy"], one.fxfycxcy[list(sample.inputs)], atol=1e-3)
    assert len(cams["pictures"]) == len(made) and (tmp_path / "made" / cams["pictures"][0]).is_file()
    assert cameras.flaw(np.array(cams["c2w"][0])) == ""
