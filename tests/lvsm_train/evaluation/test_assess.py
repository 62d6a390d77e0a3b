"""`lvsm-data eval`: from a trained run to a table, a summary, films and a page."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks._balls import balls  # noqa: E402
from lvsm_train.config.train import DataConfig, LossConfig, ModelConfig, TrainConfig  # noqa: E402
from lvsm_train.config.trained import EvalConfig  # noqa: E402
from lvsm_train.data.batches import Data  # noqa: E402
from lvsm_train.evaluation.assess import assess  # noqa: E402
from lvsm_train.models import lvsm  # noqa: E402
from lvsm_train.weights import checkpoint  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from tests import noise  # noqa: E402
from tests.chromium import faults_of  # noqa: E402
from tests.conftest import lvsm_data_here  # noqa: E402
from tests.pipeline.report.test_page import dom, needs_browser  # noqa: E402

TINY = ModelConfig(
    kind="unidirectional", dim=32, head_dim=16, layers=2, encoder_layers=1, prope=True, init="width_aware"
)
MEANS = ("psnr", "foreground_psnr", "ssim", "nearest", "best_input", "mean", "white")
SSIMS = ("nearest_ssim", "best_input_ssim", "mean_ssim", "white_ssim")


def untrained(out: Path, *data: Path, **more: Any) -> Path:
    """A run's folder with a checkpoint of its first weights: nothing here depends on how good they are."""
    cfg = TrainConfig(model=TINY, data=DataConfig(data, **more), loss=LossConfig(perceptual=0), precision="fp32")
    state = {"model": lvsm.build(TINY, 0).state_dict(), "average": {}}
    checkpoint.save(out, 7, state, {"best": None, "config": cfg.as_json(), "scores": {}}, 1)
    return out


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of ten objects, of which two are for validation, 12 views each."""
    return untrained(tmp_path_factory.mktemp("run"), data)


@pytest.fixture(scope="module")
def told(run: Path) -> dict[str, Any]:
    """What the command says and writes about it."""
    done = lvsm_data_here("eval", run, "--controls", "--no-lpips", "--video", 2, "--frames", 6, "--batch", 1)
    assert done.returncode == 0, done.stderr
    (out,) = (run / "eval").iterdir()
    summary = json.loads((out / "summary.json").read_text())
    with (out / "objects.csv").open() as file:
        return {"stdout": done.stdout, "out": out, "summary": summary, "rows": list(csv.DictReader(file))}


def test_rows_add_up_to_the_summary(told: dict[str, Any]) -> None:
    rows, summary = told["rows"], told["summary"]
    assert [row["uid"] for row in rows] and {row["uid"] for row in rows} == {"ball-4", "ball-9"}
    weights = [int(row["targets"]) for row in rows]
    assert sum(weights) == summary["facts"]["images"] == 16  # 12 views less 4
    for name in (*MEANS, *SSIMS):
        values = [float(row[name]) for row in rows]
        assert np.average(values, weights=weights) == pytest.approx(summary["means_over_images"][name], rel=1e-9)
        assert np.mean(values) == pytest.approx(summary["means_over_objects"][name], rel=1e-9)
    assert all(row["lpips"] == "" for row in rows) and summary["means_over_images"]["lpips"] is None
    views = sum(weights)
    seconds = sum(float(row["ms_per_view"]) * count / 1000 for row, count in zip(rows, weights, strict=True))
    assert summary["speed"]["fps"] == pytest.approx(views / seconds)
    assert float(rows[0]["rays_per_s"]) == pytest.approx(32 * 32 * float(rows[0]["fps"]))


def test_controls_stand_beside_the_plain_score(told: dict[str, Any]) -> None:
    summary = told["summary"]
    found = {one["says"]: one for one in summary["controls"]}
    assert list(found) == ["another object's inputs", "target cameras shuffled", "the world turned and moved"]
    for one in found.values():
        assert one["plain"] == pytest.approx(summary["means_over_images"]["psnr"])
        assert one["difference"] == pytest.approx(one["changed"] - one["plain"])
    assert abs(found["the world turned and moved"]["difference"]) < 1e-3  # PRoPE
    assert [one["expected"] for one in found.values()] == ["falls", "falls", "stays"]
    assert found["another object's inputs"]["difference"] != 0 != found["target cameras shuffled"]["difference"]
    assert list(summary["by_inputs"]) == ["1", "2", "3", "4", "6", "8"]


def test_what_is_said(told: dict[str, Any]) -> None:
    summary, said = told["summary"], told["stdout"]
    for name in ("psnr", "nearest", "white"):
        assert f"PSNR {summary['means_over_images'][name]:6.2f} dB" in said
    for name in ("ssim", *SSIMS):
        assert f"SSIM {summary['means_over_images'][name]:.3f}" in said
    assert "2 objects, 16 images, step 7" in said and "gslrm-objects-00000007/index.html" in said
    assert said.count("ms per view") == 1 and "PSNR by number of inputs" in said


def test_films_have_their_frames(told: dict[str, Any]) -> None:
    assert sorted(told["summary"]["films"].values()) == ["film-1.mp4", "film-2.mp4"]
    for name in told["summary"]["films"].values():
        with av.open(str(told["out"] / name)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 6


def test_the_page_shows_it_all(told: dict[str, Any]) -> None:
    html = (told["out"] / "index.html").read_text()
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert headings == ["Summary", "Objects", "Novel views", "Controls", "Number of inputs", "All objects"]
    assert html.count("<video") == 2 and html.count("<img") == 2 and html.count("<svg") == 1
    for name in ("psnr", "nearest", "best_input", "mean", "white"):
        assert f"<td>{told['summary']['means_over_images'][name]:.2f}</td>" in html
    for name in ("ssim", *SSIMS):
        assert f"<td>{told['summary']['means_over_images'][name]:.3f}</td>" in html


@needs_browser
def test_a_browser_shows_the_page_without_complaint(told: dict[str, Any], tmp_path: Path) -> None:
    _, _, console = dom(told["out"] / "index.html", "", tmp_path)
    assert console == [] and faults_of(told["out"] / "index.html", tmp_path) == []


def config(folder: Path, tmp_path: Path, **more: Any) -> EvalConfig:
    usual = {"run": folder, "out": tmp_path / "out", "video": 0, "lpips": False, "device": "cpu"}
    return EvalConfig(**(usual | more)).resolved()


def test_the_same_again_but_for_the_time(run: Path, told: dict[str, Any], tmp_path: Path) -> None:
    found = assess(config(run, tmp_path, batch=2))
    again = dataclasses.asdict(found.images.scores())
    for name in MEANS:
        assert again[name] == pytest.approx(told["summary"]["means_over_images"][name], rel=1e-5)
    assert len(assess(config(run, tmp_path, objects=1)).samples) == 1


def test_other_objects_are_all_taken_but_those_that_trained(run: Path, tmp_path: Path) -> None:
    other = balls(tmp_path / "more", 12)  # ball-0 ... ball-9 as in training, and two more
    found = assess(config(run, tmp_path, data=(other,)))
    assert {sample.uid for sample in found.samples} == {"ball-4", "ball-9", "ball-10", "ball-11"}
    assert "8 of 12 objects are left out" in " ".join(found.notes)
    assert len(assess(config(run, tmp_path, data=(other,), split="all")).samples) == 12
    only = noise.write(tmp_path / "only", [noise.scene("ball-0", (32,))])
    with pytest.raises(UserError, match="trained on all of these"):
        assess(config(run, tmp_path, data=(only,)))


def test_another_background_than_white_is_said(run: Path, tmp_path: Path) -> None:
    for name, background in (("black", [0, 0, 0]), ("white", [255, 255, 255])):
        other = balls(tmp_path / name, 12, background=background)
        for split in ("val", "all"):
            notes = " ".join(assess(config(run, tmp_path, data=(other,), objects=1, split=split)).notes)
            assert ("backgrounds here are [0, 0, 0]" in notes) == (name == "black")
        with contextlib.closing(Data(DataConfig((other,), res=32))) as data:  # what `train` prints too
            assert ("backgrounds here are [0, 0, 0]" in " ".join(data.notes)) == (name == "black")


def test_clips_by_their_windows_and_by_an_index(tmp_path: Path) -> None:
    frames = np.arange(0, 90, 3)
    scenes = [noise.scene(f"clip{i}", (24,), 30, frames) for i in range(3)]
    data = noise.write(noise.write(tmp_path / "clips", scenes[:1]), scenes[1:], "val")
    run = untrained(tmp_path / "run", data, scenes=True, gap_min=20, gap_max=60, inputs=2)
    found = assess(config(run, tmp_path, video=1, frames=5, controls=True))
    assert found.facts["protocol"] == "clips" and len(found.samples) == 2
    with av.open(str(found.films[found.ranked()[1]])) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8  # there and back
    index = tmp_path / "index.json"
    index.write_text(json.dumps({f"clip{i}": {"context": [3, 60], "target": [9, 30, 51]} for i in range(3)}))
    found = assess(config(run, tmp_path, protocol="re10k", index=index))
    assert [sample.uid for sample in found.samples] == ["clip1", "clip2"]  # clip0 was trained on
    assert found.facts["images"] == 6


def test_lpips_that_cannot_be_had_is_said_in_a_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lvsm_train.losses.metrics import Lpips

    def nowhere(*given: object) -> Lpips:
        raise UserError("the weights are not here\nand more")

    monkeypatch.setattr(Lpips, "load", nowhere)
    found = assess(config(run, tmp_path, lpips=True))
    assert found.images.scores().lpips is None and found.notes == ["LPIPS was not measured: the weights are not here"]
    assert "LPIPS was not measured" in (found.out / "index.html").read_text()
    with pytest.raises(UserError, match="not here"):
        assess(config(run, tmp_path, lpips=True, lpips_weights=tmp_path / "file"))


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"run": Path("/nowhere")}, "/nowhere is no folder"),
        ({"data": (Path("/nowhere"),)}, "/nowhere is no folder"),
        ({"step": 3}, "has no checkpoint of step 3; it has 7"),
        ({"protocol": "re10k"}, "is for clips; these are objects"),
        ({"protocol": "index", "index": Path("/nowhere.json")}, "is no evaluation index"),
        ({"device": "quantum"}, "--device quantum"),
        ({"res": 20}, "20x20 have no whole patches of 8"),
        ({"batch": 0}, "--batch 0"),
        ({"video": 4}, "--video 4"),
        ({"frames": 1}, "--frames 1"),
    ],
)
def test_what_is_wrong_is_named(more: dict[str, Any], error: str, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(error)):
        assess(config(run, tmp_path, **more))


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    done = lvsm_data_here("eval", tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path} has no checkpoint\nhint: ")
