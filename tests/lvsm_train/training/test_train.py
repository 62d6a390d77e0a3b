"""Training runs: they learn, they go on bit by bit where they stopped, and say what is wrong with a command."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lvsm_train.config.presets import PRESETS  # noqa: E402
from lvsm_train.config.train import DataConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig  # noqa: E402
from lvsm_train.data.batches import Data  # noqa: E402
from lvsm_train.evaluation.scores import baselines, measure  # noqa: E402
from lvsm_train.training.train import train_fn  # noqa: E402
from lvsm_train.weights import checkpoint  # noqa: E402
from lvsm_train.weights.trained import open_model  # noqa: E402
from pipeline.core import images  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from pipeline.report import training  # noqa: E402
from pipeline.storage.train_run import commits  # noqa: E402


def config(folder: Path, out: Path, **more: Any) -> TrainConfig:
    usual = TrainConfig(
        preset="small",
        model=ModelConfig(
            kind="unidirectional", dim=64, head_dim=32, layers=4, encoder_layers=2, prope=True, init="width_aware"
        ),
        data=DataConfig((folder,), inputs=3, targets=4, batch=4),
        loss=LossConfig(perceptual=0),
        optim=OptimConfig(optimizer="muon", lr=4e-3, warmup=10, final_lr=0.05, ema=0.9),
        out=out,
        steps=12,
        eval_every=6,
        checkpoint_every=4,
        device="cpu",
        precision="fp32",
        deterministic=True,
    )
    return dataclasses.replace(usual, **more).resolved()


def weights(out: Path) -> dict[str, Any]:
    found = checkpoint.load(out)
    assert found is not None
    return found[0]


def losses(out: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_it_learns_and_says_so(data: Path, tmp_path: Path) -> None:
    result = train_fn(config(data, tmp_path / "run", steps=60, eval_every=30))
    assert result.finished and result.step == 60 and result.scores is not None
    told = losses(tmp_path / "run")
    assert [step for step, _ in told] == list(range(1, 61))
    assert np.mean([loss for _, loss in told[-10:]]) < 0.5 * np.mean([loss for _, loss in told[:10]])
    assert images.size_of((tmp_path / "run" / "strips" / "step-00000060.png").read_bytes())[1] > 300
    assert json.loads((tmp_path / "run" / "train.json").read_text())["steps"] == 60
    assert training.verify(tmp_path / "run").problems == []
    assert training.status(training.read(tmp_path / "run"))["held_out_objects"]["psnr"] == pytest.approx(
        result.scores.psnr
    )


def test_a_run_that_was_cut_goes_on_bit_by_bit(data: Path, tmp_path: Path) -> None:
    train_fn(config(data, tmp_path / "whole"))
    threads = torch.get_num_threads()  # sums depend on how they are shared
    program = (
        f"import sys, pickle, torch; torch.set_num_threads({threads}); from lvsm_train.training.train import train_fn; "
        "train_fn(pickle.load(open(sys.argv[1], 'rb')))"
    )
    import pickle

    (tmp_path / "cfg").write_bytes(pickle.dumps(config(data, tmp_path / "cut")))
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "cfg")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not commits(tmp_path / "cut"):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert commits(tmp_path / "cut")
    result = train_fn(config(data, tmp_path / "cut"))
    assert result.finished
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    for part in ("model", "average"):
        _same(whole[part], cut[part])
    _same(whole["optimizers"], cut["optimizers"])


def _same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _same(a[key], b[key])
    elif isinstance(a, list):
        for one, other in zip(a, b, strict=True):
            _same(one, other)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def test_other_settings_need_another_folder(data: Path, tmp_path: Path) -> None:
    train_fn(config(data, tmp_path / "run", steps=4, eval_every=0))
    other = config(
        data, tmp_path / "run", steps=4, eval_every=0, data=DataConfig((data,), inputs=3, targets=4, batch=2)
    )
    with pytest.raises(UserError, match=r"was trained with other settings: batch was 4, now 2"):
        train_fn(other)


def test_a_run_is_prolonged_and_cooled_down(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"

    def rates() -> list[float]:
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return [line["lr"] for line in lines if "lr" in line]

    optim = OptimConfig(lr=1e-3, warmup=2, final_lr=0.1)
    train_fn(config(data, out, steps=6, eval_every=0, checkpoint_every=3, optim=optim))
    capsys.readouterr()
    longer = config(data, out, steps=9, eval_every=0, checkpoint_every=3, optim=optim)
    assert train_fn(longer).step == 9
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "6 steps are done, of 6 before and of 9 now: the learning rate is at 0.45 of its peak instead of 0.1" in said
    ), said
    before = rates()
    cooled = config(data, out, steps=13, eval_every=0, optim=dataclasses.replace(optim, cooldown=4))
    assert train_fn(cooled).step == 13
    assert "falls from step 9 on" in " ".join(capsys.readouterr().err.split())
    assert rates()[:9] == before and rates()[9:] == pytest.approx([0.1e-3] * 4)  # the cosine had come down to 10 %
    assert train_fn(cooled).step == 13 and len(rates()) == 13  # nothing is left to do
    for steps, cooldown, error in ((12, 0, "steps can only grow"), (14, 3, r"begins at step 11, and 13 are done")):
        with pytest.raises(UserError, match=error):
            train_fn(config(data, out, steps=steps, eval_every=0, optim=dataclasses.replace(optim, cooldown=cooldown)))


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"data": DataConfig(())}, "train needs --data"),
        ({"data": DataConfig((Path("/nowhere"),))}, "is no folder"),
        ({"model": ModelConfig(dim=60)}, "no multiple of head_dim"),
        ({"steps": 0}, "--steps 0 is too small"),
        ({"optim": OptimConfig(warmup=8, cooldown=5)}, "--warmup 8 and --cooldown 5 are more than --steps 12"),
        ({"optim": OptimConfig(lr=-1)}, "--lr"),
    ],
)
def test_bad_settings_are_named(more: dict[str, Any], error: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=error):
        config(data, tmp_path / "run", **more)


def test_a_device_that_is_not_here(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--device quantum"):
        train_fn(config(data, tmp_path / "run", device="quantum"))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_sound(name: str, data: Path) -> None:
    preset = PRESETS[name]
    dataclasses.replace(preset, data=dataclasses.replace(preset.data, data=(data,))).resolved()


def test_scores_of_a_perfect_and_of_a_white_model(data: Path) -> None:
    loader = Data(DataConfig((data,), inputs=3, targets=4, batch=4))
    samples = loader.planner.evaluation("val", 3, 4)
    perfect = measure(lambda batch: batch.target_rgb, loader.evaluation_batches(samples, 4))
    assert perfect.psnr == np.inf and perfect.ssim == pytest.approx(1) and perfect.targets == 8
    white = measure(lambda batch: torch.ones_like(batch.target_rgb), loader.evaluation_batches(samples, 4))
    assert white.psnr == pytest.approx(white.white)
    assert white.white < white.nearest <= white.best_input
    batch = next(loader.evaluation_batches(samples, 4))
    again = dataclasses.replace(
        batch, target_image=batch.image[:, 1:2], target_c2w=batch.c2w[:, 1:2], target_time=batch.time[:, 1:2]
    )
    for name in ("nearest", "best_input"):  # the input itself is the nearest to its own camera
        assert torch.equal(baselines(again)[name], again.target_rgb)
    loader.close()


def test_settings_survive_json(data: Path, tmp_path: Path) -> None:
    made = config(data, tmp_path / "run", loss=LossConfig(vgg=Path("/a/b.mat")))
    assert TrainConfig.from_json(made.as_json()) == made


def test_a_run_can_be_opened(data: Path, tmp_path: Path) -> None:
    train_fn(config(data, tmp_path / "run", steps=4, eval_every=0))
    opened = open_model(tmp_path / "run", device="cpu")
    assert opened.step == 4 and opened.cfg.model == config(data, tmp_path).model
    _same(dict(opened.net.state_dict()), weights(tmp_path / "run")["average"]["weights"])
    with pytest.raises(UserError, match="no checkpoint of step 3"):
        open_model(tmp_path / "run", 3)
    with pytest.raises(UserError, match="has no checkpoint"):
        open_model(tmp_path)


def test_steps_of_several_shapes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shaped = DataConfig((data,), inputs=3, targets=4, batch=4, aspect=("1:1", "16:9", "2:3"))
    done = train_fn(config(data, tmp_path / "run", data=shaped, steps=8, eval_every=8))
    assert done.scores is not None and len(losses(tmp_path / "run")) == 8
    assert "at 32x32 or 32x16 or 24x32 pixels" in capsys.readouterr().err
    assert json.loads((tmp_path / "run/card.json").read_text())["data"]["sizes"] == [[32, 32], [16, 32], [32, 24]]
    assert open_model(tmp_path / "run").cfg.data.aspect == shaped.aspect
    with pytest.raises(UserError, match="aspect"):  # other shapes make other weights
        train_fn(config(data, tmp_path / "run", data=dataclasses.replace(shaped, aspect=("1:1",)), steps=9))
