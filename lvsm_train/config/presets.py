"""Settings to start from: our own recipe in three sizes, and the published ones (arXiv 2410.17242)."""

from __future__ import annotations

from dataclasses import replace

from lvsm_train.config.train import DataConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig

_THESIS64 = TrainConfig(
    preset="thesis64",
    model=ModelConfig(kind="unidirectional", dim=256, layers=12, encoder_layers=6, prope=True, init="width_aware"),
    data=DataConfig((), res=64, inputs=4, targets=8, batch=64),
    optim=OptimConfig(
        optimizer="muon", lr=2e-3, warmup=100, final_lr=0.05, skip_above=0, skip_factor=5.0, spike_above=3.0, ema=0.999
    ),
    loss=LossConfig(perceptual=1.0),
    steps=20_000,
    eval_every=1000,
    checkpoint_every=1000,
)
_OFFICIAL = TrainConfig(
    preset="official-dec",
    model=ModelConfig(kind="decoder_only", dim=768, layers=24),
    data=DataConfig((), res=256, inputs=2, targets=6, batch=8, scenes=True, target_among_inputs=True, rotate=False),
    steps=100_000,
    eval_every=2000,
    checkpoint_every=2000,
)
PRESETS: dict[str, TrainConfig] = {
    "small": TrainConfig(
        preset="small",
        model=replace(_THESIS64.model, dim=128, head_dim=32, layers=8, encoder_layers=4),
        data=replace(_THESIS64.data, batch=8),
        optim=_THESIS64.optim,
        loss=LossConfig(perceptual=0),
        steps=2000,
    ),
    "thesis64": _THESIS64,
    "base": replace(
        _THESIS64,
        preset="base",
        model=replace(_THESIS64.model, dim=768, layers=24, encoder_layers=12),
        data=replace(_THESIS64.data, res=256, batch=8),
        optim=replace(_THESIS64.optim, lr=1e-3, warmup=1000),
        steps=100_000,
        eval_every=2000,
        checkpoint_every=2000,
    ),
    "official-dec": _OFFICIAL,
    "official-encdec": replace(
        _OFFICIAL,
        preset="official-encdec",
        model=replace(_OFFICIAL.model, kind="encoder_decoder", encoder_layers=12, latents=3072),
    ),
}
