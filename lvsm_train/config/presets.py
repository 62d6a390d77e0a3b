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
_OFFICIAL_ENCDEC = replace(_OFFICIAL.model, kind="encoder_decoder", encoder_layers=12, latents=3072)
_OFFICIAL_OBJECTS = replace(
    _OFFICIAL,
    preset="official-dec-objects",
    data=replace(_OFFICIAL.data, inputs=4, targets=8, scenes=False, target_among_inputs=False),
    loss=LossConfig(perceptual=1.0),
)
PUBLISHED_BATCH = 512  # samples of a step, of 64 GPUs
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
    "thesis64-time": replace(
        _THESIS64,
        preset="thesis64-time",
        model=replace(_THESIS64.model, temporal=True),
        data=replace(_THESIS64.data, inputs=8, batch=32),
    ),
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
    "official-encdec": replace(_OFFICIAL, preset="official-encdec", model=_OFFICIAL_ENCDEC),
    "official-dec-objects": _OFFICIAL_OBJECTS,
    "official-encdec-objects": replace(_OFFICIAL_OBJECTS, preset="official-encdec-objects", model=_OFFICIAL_ENCDEC),
}


def batch_note(cfg: TrainConfig, ranks: int) -> str:
    """Warning that steps of a published preset are smaller than the published ones, "" if they are not."""
    size = cfg.samples(ranks)
    if not cfg.preset.startswith("official") or size >= PUBLISHED_BATCH:
        return ""
    share = f"1/{PUBLISHED_BATCH // size}" if PUBLISHED_BATCH % size == 0 else f"{size / PUBLISHED_BATCH:.1%}"
    return (
        f"a step has {size} samples, {share} of the published {PUBLISHED_BATCH}, and the learning rate is made for these: "
        f"--global-batch {PUBLISHED_BATCH} has as many, in batches one after the other"
    )
