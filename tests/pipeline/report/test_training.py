"""Status, check and page of training runs, from folders that look like theirs; test_train.py has a real one."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core import images
from pipeline.core.errors import UserError
from pipeline.report import training
from tests.conftest import lvsm_data_here

SCORES = {
    "psnr": 21.5,
    "nearest": 19.25,
    "best_input": 20.0,
    "mean": 18.0,
    "ssim": 0.7,
    "lpips": None,
    "nearest_lpips": None,
}


def line(step: int, **more: Any) -> dict[str, Any]:
    usual = {"loss": 1 / step, "grad_norm": 0.5, "void": 0.0, "waited_s": 0.0, "seconds": 0.5, "samples": 8}
    return {"step": step} | usual | more


def make(folder: Path, steps: int = 40, of: int = 40, **settings: Any) -> Path:
    """A training run's folder: a checkpoint, an evaluation and a picture every ten steps."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "strips").mkdir()
    (folder / "train.json").write_text(json.dumps({"preset": "small", "steps": of, "optim": {"lr": 1e-3}} | settings))
    lines = []
    for step in range(1, steps + 1):
        lines.append(line(step))
        if step % 10 == 0:
            lines.append({"step": step, "evaluation": SCORES | {"psnr": 18 + step / 10}})
            path = folder / "checkpoints" / f"step-{step:08d}.pt"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data/0", bytes(range(256)) * 8)
            path.with_suffix(".json").write_text(json.dumps({"step": step}))
            pixels = np.full((16, 64, 3), step, np.uint8)
            (folder / "strips" / f"step-{step:08d}.png").write_bytes(images.encode_png(pixels))
    write_log(folder, lines)
    return folder


def write_log(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(each) for each in (folder / "log.jsonl").read_text().splitlines()]


def test_status_of_a_finished_run(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    found = json.loads(lvsm_data_here("status", run, "--json").stdout)
    assert (found["state"], found["step"], found["steps"], found["checkpoints"]) == (
        "finished",
        40,
        40,
        [10, 20, 30, 40],
    )
    assert found["steps_per_s"] == pytest.approx(2) and found["skipped"] == 0
    said = lvsm_data_here("status", run).stdout
    assert "step 40 of 40" in said and "PSNR 22.00 dB (nearest input 19.25)" in said and "goes on" not in said


def test_status_of_a_run_under_way_and_of_one_that_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path / "run", steps=20, of=100)
    write_log(run, [each | ({"void": 1.0, "loss": None} if each["step"] == 7 else {}) for each in read_log(run)])
    under_way = training.status(training.read(run))
    assert (under_way["state"], under_way["left_s"], under_way["skipped"]) == ("running", pytest.approx(40), 1)
    monkeypatch.setattr(training, "FRESH_S", -1.0)
    stopped = training.status(training.read(run))
    assert (stopped["state"], stopped["left_s"]) == ("stopped", None)
    assert "goes on from the newest checkpoint" in training.status_text(stopped)


def test_a_good_run_is_ok(tmp_path: Path) -> None:
    done = lvsm_data_here("verify", make(tmp_path / "run"))
    assert done.returncode == 0 and re.match(r"ok: 4 checkpoints \(.* kB\), 40 steps, 4 pictures", done.stdout)


def cut_checkpoint(run: Path) -> None:
    path = run / "checkpoints/step-00000020.pt"
    path.write_bytes(path.read_bytes()[:-30])


def flipped_checkpoint(run: Path) -> None:
    path = run / "checkpoints/step-00000020.pt"
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(bytes(data))


def gone_checkpoint(run: Path) -> None:
    (run / "checkpoints/step-00000020.pt").unlink()


def another_checkpoints_facts(run: Path) -> None:
    (run / "checkpoints/step-00000020.json").write_text('{"step": 10}')


def step_twice(run: Path) -> None:
    write_log(run, [*read_log(run), line(40)])


def step_left_out(run: Path) -> None:
    write_log(run, [each for each in read_log(run) if each["step"] != 17])


def short_log(run: Path) -> None:
    write_log(run, [each for each in read_log(run) if each["step"] < 36])


def cut_picture(run: Path) -> None:
    path = run / "strips/step-00000030.png"
    path.write_bytes(path.read_bytes()[:60])


DAMAGE: dict[Callable[[Path], None], str] = {
    cut_checkpoint: r"step-00000020\.pt: ",
    flipped_checkpoint: r"step-00000020\.pt: .*(damaged|CRC)",
    gone_checkpoint: r"step-00000020\.pt: .*No such file",
    another_checkpoints_facts: r"step-00000020\.json: says step 10",
    step_twice: r"log\.jsonl: step 40 follows step 40",
    step_left_out: r"log\.jsonl: step 18 follows step 16",
    short_log: r"log\.jsonl: ends with step 35, before the checkpoint of step 40",
    cut_picture: r"step-00000030\.png: ",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    run = make(tmp_path / "run")
    damage(run)
    done = lvsm_data_here("verify", run)
    assert done.returncode == 1 and re.search(f"problem: {DAMAGE[damage]}", done.stdout), done.stdout


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    (run / "train.json").write_text("{")
    for verb in ("status", "verify", "view"):
        done = lvsm_data_here(verb, run)
        assert done.returncode == 2 and "is no training run that can be read" in done.stderr


def test_pages_of_one_and_of_two_runs(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    first, second = make(tmp_path / "a" / "run", wandb=evil), make(tmp_path / "b" / "run", steps=20, optim={"lr": 5e-4})
    assert lvsm_data_here("view", first).returncode == 0
    page = (first / "index.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert page.count("data:image/png") == 4 and "nearest input" in page and "No step was skipped." in page
    done = lvsm_data_here("view", first, second, "--out", tmp_path / "both.html")
    both = (tmp_path / "both.html").read_text()
    assert done.returncode == 0 and "a/run" in both and "b/run" in both and both.count("data:image/png") == 2
    assert "optim.lr" in both and "preset" not in both  # only what differs
    twin = make(tmp_path / "c" / "run", wandb=evil)
    assert lvsm_data_here("view", first, twin, "--out", tmp_path / "same.html").returncode == 0
    assert "All settings are the same." in (tmp_path / "same.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "view needs a folder"),
        (["run", "run"], "is given twice"),
        (["run", "--png", "x.png"], "--png is for runs with shards"),
        (["run", "other"], "view shows one run at a time"),
    ],
)
def test_what_cannot_be_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: str
) -> None:
    make(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    done = lvsm_data_here("view", *arguments)
    assert done.returncode == 2 and error in done.stderr


def test_more_runs_than_lines(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="5 runs are too many"):
        training.write_training_page([tmp_path / str(number) for number in range(5)], tmp_path / "page.html")
