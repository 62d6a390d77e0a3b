"""Every preset starts to learn, and runs that cannot learn, or must not go on, say so."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import distributed  # noqa: E402

from lvsm_train.config.presets import PRESETS, batch_note  # noqa: E402
from lvsm_train.config.train import DataConfig, LossConfig, OptimConfig  # noqa: E402
from lvsm_train.device.ranks import process_group  # noqa: E402
from lvsm_train.losses import vgg  # noqa: E402
from lvsm_train.losses.vgg import CAFFE, Weights  # noqa: E402
from lvsm_train.training import guards  # noqa: E402
from lvsm_train.training.guards import NormGuard  # noqa: E402
from lvsm_train.training.train import train_fn  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from tests.lvsm_train.losses.test_loss import random_convs  # noqa: E402
from tests.lvsm_train.training.test_train import config, losses  # noqa: E402


def steps_of(out: Path) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if "loss" in line]


def narrow_convs() -> vgg.Convs:
    """An eighth of the channels of a random VGG-19, whose outputs are as large: a sixtieth of its work."""
    found = []
    for kernel, bias in random_convs():
        out, into = len(kernel) // 8, max(3, kernel.shape[1] // 8)
        found.append((kernel[:out, :into] * (kernel.shape[1] / into) ** 0.5, bias[:out]))
    return found


@pytest.mark.parametrize(("preset", "scale"), [*((preset, 1.0) for preset in PRESETS), ("base", 50.0)])
def test_every_preset_learns_from_its_first_steps_on(
    preset: str, scale: float, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recipe on a tiny model. Gradients of any size: the published limit of 5 stays with the published presets alone."""
    monkeypatch.setattr(vgg, "load", lambda *_: Weights("vgg19", narrow_convs(), CAFFE, "random"))
    known = PRESETS[preset]
    model = dataclasses.replace(known.model, dim=32, head_dim=16, layers=4, encoder_layers=2, latents=8)
    cfg = dataclasses.replace(
        known,
        model=model,
        data=dataclasses.replace(
            known.data, data=(data,), res=32, batch=2, inputs=2, targets=2, scenes=False, workers=0
        ),
        loss=dataclasses.replace(known.loss, mse=scale),
        optim=dataclasses.replace(known.optim, warmup=4, lr=2e-3),
        out=tmp_path,
        steps=24,
        eval_every=0,
        device="cpu",
        precision="fp32",
        tensorboard=False,
    )
    train_fn(cfg.resolved())
    lines = steps_of(tmp_path)
    assert sum(line["void"] for line in lines) == 0
    assert sum(line["loss"] for line in lines[-6:]) < 0.9 * sum(line["loss"] for line in lines[:6])


def test_norms_are_compared_with_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule written out in Python beside it, over more norms than are remembered, through a checkpoint and a new start."""
    monkeypatch.setattr(guards, "RECENT", 4)
    monkeypatch.setattr(guards, "BASELINE", 9)

    def ask(guard: NormGuard, norm: float, guarded: bool = True) -> bool:
        return bool(guard.is_outlier(torch.tensor(norm), guarded))

    guard, known, rng = NormGuard(2.0), collections.deque(maxlen=9), random.Random(0)  # type: ignore[var-annotated]
    found = []
    for step in range(60):
        norm = math.nan if step % 13 == 9 else rng.lognormvariate(0, 1)
        norm = float(torch.tensor(norm))
        found.append(ask(guard, norm))
        assert found[-1] == (len(known) >= 4 and not norm <= 2.0 * statistics.median(known))
        known += [norm] * math.isfinite(norm)
        assert not ask(guard, 1e9, guarded=False)  # neither judged nor remembered
        assert guard.state_dict()["norms"] == list(known)
        again = NormGuard(2.0)
        again.load_state_dict(guard.state_dict())
        assert again.state_dict() == guard.state_dict()
        guard = again if step % 7 == 0 else guard
    assert 5 < sum(found) < 40
    guard.forget()
    assert not ask(guard, 1e9)
    assert not any(ask(NormGuard(0.0), norm) for norm in (1.0,) * 9 + (1e9,))


def test_a_run_that_skips_every_step_ends(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "MAX_SKIPPED", 5)
    optim = OptimConfig(lr=2e-3, warmup=2, skip_above=1e-4)
    with pytest.raises(UserError, match=r"the last 5 steps were all skipped.*norm is") as refused:
        train_fn(config(data, tmp_path, optim=optim, eval_every=0))
    assert "--skip-above 0" in refused.value.hint
    assert len(steps_of(tmp_path)) == 4


def test_a_term_that_sets_in_late_is_no_spike(data: Path, tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    for name, value in (("RECENT", 4), ("BASELINE", 12)):
        monkeypatch.setattr(guards, name, value)
    optim = OptimConfig(lr=1e-3, warmup=2, spike_above=1.5, skip_above=0, skip_factor=2.0)
    loss = LossConfig(perceptual=0, ssim=20, perceptual_from=14)
    train_fn(config(data, tmp_path, steps=28, optim=optim, loss=loss, eval_every=0))
    told = dict(losses(tmp_path))
    assert told[15] > 5 * told[14]
    assert "times what it was" not in capfd.readouterr().err
    assert sum(line["void"] for line in steps_of(tmp_path)[14:18]) == 0


def test_a_refused_command_writes_nothing(data: Path, tmp_path: Path) -> None:
    train_fn(config(data, tmp_path, steps=4, eval_every=0))
    before = (tmp_path / "train.json").read_bytes()
    with pytest.raises(UserError, match="was trained with other settings"):
        train_fn(config(data, tmp_path, steps=4, eval_every=0, data=DataConfig((data,), inputs=3, targets=4, batch=2)))
    assert (tmp_path / "train.json").read_bytes() == before


def test_a_run_of_an_earlier_version_goes_on(data: Path, tmp_path: Path) -> None:
    """Its checkpoint knows no norms, and its settings no --skip-factor."""
    optim = OptimConfig(lr=1e-3, warmup=2)
    train_fn(config(data, tmp_path, steps=8, checkpoint_every=4, optim=optim, eval_every=0))
    for path in (tmp_path / "checkpoints").glob("step-00000008.*"):
        path.unlink()
    note = tmp_path / "checkpoints" / "step-00000004.json"
    facts = json.loads(note.read_text())
    for settings in (facts["identity"], facts["config"]):
        del settings["optim"]["skip_factor"]
    note.write_text(json.dumps(facts))
    state = torch.load(note.with_suffix(".pt"), weights_only=True)
    del state["norms"]
    torch.save(state, note.with_suffix(".pt"))
    assert train_fn(config(data, tmp_path, steps=8, checkpoint_every=4, optim=optim, eval_every=0)).finished
    other = dataclasses.replace(optim, skip_factor=5.0)
    with pytest.raises(UserError, match=r"skip-factor was 0\.0, now 5\.0"):
        train_fn(config(data, tmp_path, steps=8, checkpoint_every=4, optim=other, eval_every=0))


@pytest.mark.parametrize(("more", "hint"), [({"res": 36}, "--res 32"), ({"res": 12}, "--res 16")])
def test_pictures_without_whole_patches_are_refused_at_once(
    more: dict[str, Any], hint: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="have no whole patches of 8") as refused:
        config(data, tmp_path, data=DataConfig((data,), inputs=3, targets=4, **more))
    assert hint in refused.value.hint
    stages = ("20:4",)
    with pytest.raises(UserError, match="have no whole patches of 8"):
        config(data, tmp_path, data=DataConfig((data,), inputs=3, targets=4, res=32), curriculum=stages)


def test_stored_pictures_without_whole_patches_are_refused(data: Path, tmp_path: Path) -> None:
    """Nothing says their width before they are read."""
    cfg = config(data, tmp_path)
    cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, patch=12))
    with pytest.raises(UserError, match="32x32 have no whole patches of 12"):
        train_fn(cfg)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, and RANK is not set"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE is two, and WORLD_SIZE is two"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "1"}, "MASTER_ADDR is not set"),
        (
            {"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "1", "MASTER_ADDR": "127.0.0.1"},
            "rank 1 of 2 waits at 127.0.0.1:1",
        ),
    ],
)
def test_ranks_that_are_left_over_in_the_environment_are_named(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((UserError, distributed.DistError)) as error, process_group(1 / 600):
        pass
    words = f"{error.value} {getattr(error.value, 'hint', '')} {capfd.readouterr().err}"
    assert said in words and "unset WORLD_SIZE and RANK to train alone" in words


def test_the_loss_is_counted_beside_the_model(data: Path, tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    """And a run that began when networks were float32 unless asked otherwise stays so, where now the device decides."""
    monkeypatch.setattr(vgg, "load", lambda *_: Weights("vgg19", random_convs(), CAFFE, "random"))
    monkeypatch.setattr("lvsm_train.training.log.peak_flops", lambda device: 1e12)
    monkeypatch.setattr("lvsm_train.training.log.LINE_S", 0.0)
    views = DataConfig((data,), inputs=2, targets=2, batch=2, workers=0)
    short = {"data": views, "eval_every": 0, "checkpoint_every": 2, "tensorboard": False}
    train_fn(config(data, tmp_path, loss=LossConfig(perceptual=1, vgg_bf16=False), steps=2, **short))
    said = capfd.readouterr().err
    assert re.search(r"MFU \d+% \+ \d+% of the loss, ", said) and "bfloat16" not in said
    for path in (tmp_path / "checkpoints").iterdir():  # as if it had more steps to go
        path.write_text(path.read_text().replace('"steps": 2', '"steps": 3')) if path.suffix == ".json" else None
    monkeypatch.setattr("lvsm_train.losses.loss.has_bfloat16", lambda device: True)
    train_fn(config(data, tmp_path, loss=LossConfig(perceptual=1), steps=3, **short))
    assert "bfloat16" not in capfd.readouterr().err
    assert json.loads((tmp_path / "train.json").read_text())["loss"]["vgg_bf16"] is False


def test_published_presets_say_how_small_their_steps_are(data: Path, tmp_path: Path, capfd: Any) -> None:
    for name, known in PRESETS.items():
        note = batch_note(known, 1)
        assert bool(note) is name.startswith("official") and ("1/64 of the published 512" in note) is bool(note)
        assert not batch_note(dataclasses.replace(known, global_batch=512), 1) and not batch_note(known, 64)
    objects = PRESETS["official-encdec-objects"]
    assert (objects.data.inputs, objects.data.targets, objects.loss.perceptual) == (4, 8, 1.0)
    assert not objects.data.scenes and objects.model == PRESETS["official-encdec"].model
    train_fn(config(data, tmp_path, preset="official-dec-objects", steps=2, eval_every=0))
    assert "--global-batch 512 has as many" in capfd.readouterr().err


def test_a_cpu_run_says_early_what_it_takes(
    data: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvsm_train.training.log.LINE_S", 0.0)
    train_fn(config(data, tmp_path, eval_every=0))
    said = capfd.readouterr().err
    assert re.search(r"on this CPU 7 steps take about [\d.]+ s\n", said)
    assert "12 steps show that everything runs; pictures that one can look at take thousands" in said
    lines = re.findall(r"step (\d+)/12: loss .*gradient [\d.e-]+, .*, (0:\d\d:\d\d) left\n", said)
    assert len(lines) == 12 and lines[-1] == ("12", "0:00:00")


@pytest.mark.parametrize("own", [None, "ACTIVE"])
def test_threads_that_wait_sleep_unless_somebody_says_otherwise(own: str | None) -> None:
    code = "import lvsm_train, os, sys; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env |= {"OMP_WAIT_POLICY": own} if own else {}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", own or "PASSIVE"]  # torch reads it when it is loaded
