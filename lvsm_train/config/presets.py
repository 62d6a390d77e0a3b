"""Settings to start from: our own recipe in three sizes, and the published ones (arXiv 2410.17242)."""

from __future__ import annotations

import dataclasses

from lvsm_train.config.train import DataConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig

_OURS = OptimConfig(optimizer="muon", lr=2e-3, warmup=100, final_lr=0.05, spike_above=3.0, ema=0.999)
_SCENES = DataConfig((), res=256, inputs=2, targets=6, batch=8, scenes=True, target_among_inputs=True, rotate=False)
PRESETS: dict[str, TrainConfig] = {
    "small": TrainConfig(
        preset="small",
        model=ModelConfig(
            kind="unidirectional",
            dim=128,
            head_dim=32,
            patch=8,
            layers=8,
            encoder_layers=4,
            prope=True,
            init="width_aware",
        ),
        data=DataConfig((), res=64, inputs=4, targets=8, batch=8),
        optim=_OURS,
        loss=LossConfig(perceptual=0),
        steps=2000,
    ),
    "thesis64": TrainConfig(
        preset="thesis64",
        model=ModelConfig(
            kind="unidirectional", dim=256, patch=8, layers=12, encoder_layers=6, prope=True, init="width_aware"
        ),
        data=DataConfig((), res=64, inputs=4, targets=8, batch=64),
        optim=_OURS,
        loss=LossConfig(perceptual=1.0),
        steps=20_000,
        eval_every=1000,
        checkpoint_every=1000,
    ),
    "base": TrainConfig(
        preset="base",
        model=ModelConfig(
            kind="unidirectional", dim=768, patch=8, layers=24, encoder_layers=12, prope=True, init="width_aware"
        ),
        data=DataConfig((), res=256, inputs=4, targets=8, batch=8),
        optim=dataclasses.replace(_OURS, lr=1e-3, warmup=1000),
        loss=LossConfig(perceptual=1.0),
        steps=100_000,
        eval_every=2000,
        checkpoint_every=2000,
    ),
    "official-dec": TrainConfig(
        preset="official-dec",
        model=ModelConfig(kind="decoder_only", dim=768, layers=24),
        data=_SCENES,
        optim=OptimConfig(),
        loss=LossConfig(perceptual=0.5),
        steps=100_000,
        eval_every=2000,
        checkpoint_every=2000,
    ),
    "official-encdec": TrainConfig(
        preset="official-encdec",
        model=ModelConfig(kind="encoder_decoder", dim=768, layers=24, encoder_layers=12, latents=3072),
        data=_SCENES,
        optim=OptimConfig(),
        loss=LossConfig(perceptual=0.5),
        steps=100_000,
        eval_every=2000,
        checkpoint_every=2000,
    ),
}
