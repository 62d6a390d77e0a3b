"""From nothing to a model that knows what it was shown: render, train, look. Thresholds count steps, never minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from lvsm_train.config.train import DataConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig  # noqa: E402
from lvsm_train.data.batches import Data  # noqa: E402
from lvsm_train.evaluation.scores import measure, render_of  # noqa: E402
from lvsm_train.training.train import train_fn  # noqa: E402
from lvsm_train.weights.trained import open_model  # noqa: E402
from tests.conftest import lvsm_data_here  # noqa: E402


def test_views_that_train_are_known_in_the_end(tmp_path: Path, blender_lent: None) -> None:
    """A convention that is wrong somewhere between Blender and the rays ends at about 18 dB, whatever the steps."""
    few = ("--n", 3, "--res", 64, "--views", 4, "--seed", 1, "--val-percent", 0)
    made = lvsm_data_here("render", *few, "--executor", "inline", "--out", tmp_path / "data")
    assert made.returncode == 0, made.stderr
    cfg = TrainConfig(
        model=ModelConfig(
            kind="unidirectional",
            dim=128,
            head_dim=32,
            patch=16,
            layers=2,
            encoder_layers=1,
            prope=True,
            init="width_aware",
        ),
        data=DataConfig((tmp_path / "data",), inputs=2, targets=2, batch=3, workers=0, rotate=False),
        loss=LossConfig(perceptual=0),
        optim=OptimConfig(optimizer="muon", lr=2e-2, warmup=20, final_lr=0.02, ema=0.97),
        out=tmp_path / "run",
        steps=350,
        eval_every=0,
        checkpoint_every=350,
        device="cpu",
        precision="fp32",
        tensorboard=False,
    ).resolved()
    assert train_fn(cfg).finished
    loader = Data(cfg.data)
    samples = loader.planner.evaluation("all", 2, 2)
    with torch.no_grad():
        scores = measure(
            render_of(open_model(tmp_path / "run", device="cpu").net), loader.evaluation_batches(samples, 3)
        )
    loader.close()
    assert scores.targets == 6
    assert scores.psnr > 30 > 25 > scores.best_input, scores.line()
