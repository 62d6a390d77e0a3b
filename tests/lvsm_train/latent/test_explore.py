"""The laboratory of latents end to end: pictures, films, numbers and the page of a run that was trained a little."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lvsm_train.config.train import ModelConfig  # noqa: E402
from lvsm_train.config.trained import OPERATIONS, LatentConfig  # noqa: E402
from lvsm_train.data.batches import Data  # noqa: E402
from lvsm_train.latent import grids, workbench  # noqa: E402
from lvsm_train.latent.atlas import FINDINGS  # noqa: E402
from lvsm_train.latent.explore import explained, explore  # noqa: E402
from lvsm_train.latent.latent_page import Report  # noqa: E402
from lvsm_train.latent.operations import EDITS, MIXTURES  # noqa: E402
from lvsm_train.losses.metrics import Lpips  # noqa: E402
from lvsm_train.training.train import train_fn  # noqa: E402
from lvsm_train.weights.trained import open_model  # noqa: E402
from pipeline.core import images  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from tests.lvsm_train.training.test_train import config  # noqa: E402

ENCDEC = ModelConfig(
    kind="encoder_decoder", dim=32, head_dim=16, layers=2, encoder_layers=1, latents=6, prope=True, init="width_aware"
)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train_fn(config(data, out, model=ENCDEC, steps=8, eval_every=0, checkpoint_every=8, tensorboard=False))
    return out


def settings(run: Path, **more: Any) -> LatentConfig:
    usual = LatentConfig(run, views=2, frames=3, pca_objects=5, batch=4, lpips=False, device="cpu")
    return dataclasses.replace(usual, **more).resolved()


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    """All operations on two named objects, one of which was trained on."""
    return explore(settings(run, objects=("ball-4", "ball-1")))


def test_everything_that_is_told_of_is_there(report: Report, run: Path) -> None:
    assert report.out == run / "latent"
    assert len(report.notes) == 1 and "this model has learned next to nothing" in report.notes[0]  # in its eight steps
    assert (
        report.notes[0] in report.lines() and "has learned next to nothing" in (report.out / "index.html").read_text()
    )
    told = json.loads((report.out / "latent.json").read_text())
    assert [each["uid"] for each in told["objects"]] == ["ball-4", "ball-1"]
    assert told["facts"]["lpips"] is None and told["facts"]["latents"] == 6
    names = {study["name"] for study in told["studies"]}
    assert names >= {
        "reorder",
        "values",
        "rotate",
        "rotate-other",
        "noise",
        "noise-chosen",
        "fade",
        "remove",
        "add",
        "add-other",
    }
    assert names >= {
        "keep-random",
        "keep-strongest",
        "keep-weakest",
        "keep-norm",
        "duplicate",
        "swap",
        "swap-hungarian",
    }
    assert names >= {f"{name}-{path}" for name in ("slot", "hungarian", "transport") for path in ("linear", "slerp")}
    assert names >= {"union-linear", "sizes-slot", "sizes-hungarian", "sizes-transport", "sizes-union"}
    assert names >= {"pca-tokens-kept", "pca-tokens-walk", "pca-scenes-kept", "pca-scenes-walk"}
    for study in told["studies"]:
        rows = len(study["steps"]) + 1 + ("to_second" in study["steps"][0])
        height, width = images.size_of((report.out / study["picture"]).read_bytes())
        assert height >= rows * grids.LEAST and width > 2 * grids.LEAST
        for film in study.get("films", []):
            assert (report.out / film).read_bytes()[:12].find(b"ftyp" if film.endswith("mp4") else b"GIF89a") in (0, 4)
    assert sum(len(study.get("films", [])) for study in told["studies"]) == 2 * 11
    assert len(told["influence"][0]["rms_change"]) == 6 and len(told["pca"]["nearest"][0]["nearest"]) == 4


def test_what_is_true_by_construction_holds_and_is_measured(report: Report) -> None:
    promised = [law for law in report.laws if law.bound is not None]
    assert len(promised) == 7 + 2 * 4 and all(law.holds for law in promised)
    assert min(law.largest for law in report.laws if law.bound is None) > 1e-4
    studies = {study["name"]: study["steps"] for study in report.studies if study["objects"][0] == "ball-4"}
    assert all(step["largest_change"] <= 1e-5 for step in studies["reorder"])
    assert studies["add"][0]["largest_change"] == 0 and studies["add"][0]["psnr"] is None
    assert studies["swap"][-1]["to_second"]["largest_change"] <= 1e-5 < studies["swap"][-1]["largest_change"]
    for name in ("slot-slerp", "transport-linear", "union-linear", "sizes-hungarian"):
        assert studies[name][0]["largest_change"] == 0 == studies[name][-1]["to_second"]["largest_change"]
        assert studies[name][4]["largest_change"] > 1e-4


def test_the_page_holds_all_and_asks_for_nothing(report: Report) -> None:
    page = (report.out / "index.html").read_text()
    for title in ("True by construction", "Found", "Other values", "What each token is for", "Principal components"):
        assert f"<h2>{title}</h2>" in page
    assert page.count("data:video/mp4") == 11 and "http://" not in page and "https://" not in page
    assert any(line.startswith("true by construction: 15 of 15 hold") for line in report.lines())


def test_what_a_model_has_learned_is_a_share_of_what_differs() -> None:
    target = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    grey = target.mean((-2, -1), keepdim=True).expand_as(target)
    for share in (0.0, 0.5, 1.0):
        assert explained([grey.lerp(target, share)], [target]) == pytest.approx(1 - (1 - share) ** 2, abs=1e-5)
    assert explained([torch.zeros_like(target)], [target]) < 0


def test_frames_of_two_scenes_are_alike(run: Path) -> None:
    trained, cfg = open_model(run, device="cpu"), settings(run, objects=("ball-4", "ball-1"))
    loader = Data(trained.data_config(cfg))
    bench = workbench.open_bench(trained, loader, cfg)
    plain = loader.planner.named(cfg.objects, 3, 2)
    apart = bench.frame_difference()
    assert apart is not None
    poses = [loader.index.c2w[loader.index.of(sample.number)] for sample in plain]
    ways = [sum(workbench.pose_difference(pose, poses[0][plain[0].inputs[0]])) for pose in poses[1]]
    assert sum(apart) == pytest.approx(min(ways), abs=1e-5)
    for sample in bench.samples:
        assert len(sample.inputs) == 3 and len(sample.targets) == 2 and not set(sample.inputs) & set(sample.targets)
    loader.close()


def test_some_operations_on_one_object_and_chosen_tokens(run: Path, tmp_path: Path) -> None:
    cfg = settings(run, objects=("ball-9",), only=("values", "swap"), tokens=("1", "3:5"), out=tmp_path / "few")
    report = explore(cfg)
    assert report.facts["tokens"] == [1, 3, 4]
    assert {study["name"] for study in report.studies} == {"values"}
    assert "swap was left out: it needs two objects" in report.notes
    assert explore(cfg).as_json() == report.as_json()  # random numbers are the seed's
    other = explore(dataclasses.replace(cfg, only=("noise",), seed=1))
    assert other.as_json() != explore(dataclasses.replace(cfg, only=("noise",))).as_json()


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"objects": ("nobody",)}, "no object nobody among 10"),
        ({"tokens": ("6",)}, "a scene has tokens 0 to 5"),
        ({"tokens": ("a:b",)}, "neither a number nor a range"),
        ({"objects": ("ball-1", "ball-1")}, "twice"),
        ({"frames": 2}, "--frames 2 is too small"),
        ({"data": (Path("/nowhere"),)}, "is no folder"),
        ({"step": 3}, "no checkpoint of step 3"),
        ({"lpips": True, "lpips_weights": Path("/nowhere.tar.gz")}, "is no file"),
    ],
)
def test_bad_input_is_named(more: dict[str, Any], error: str, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=error):
        explore(settings(run, out=tmp_path / "out", **more))


def test_other_models_are_refused(data: Path, tmp_path: Path) -> None:
    train_fn(config(data, tmp_path / "run", steps=1, eval_every=0, checkpoint_every=1, tensorboard=False))
    with pytest.raises(UserError, match="is a run of a unidirectional model") as refused:
        explore(settings(tmp_path / "run"))
    assert "--kind encoder_decoder" in str(refused.value.hint)


def test_lpips_that_cannot_be_had_is_a_note(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UserError("pip cannot fetch it", "elsewhere")

    monkeypatch.setattr(Lpips, "load", refuse)
    cfg = settings(run, objects=("ball-4",), only=("reorder",), out=tmp_path, lpips=True)
    assert explore(cfg).notes[0] == "LPIPS was not measured: pip cannot fetch it"


def test_operations_are_all_known() -> None:
    assert set(OPERATIONS) == {*EDITS, *MIXTURES, *FINDINGS}
