"""Passes of what materials say, of every way in which a material can say it, in the shards' own encoding too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.config.render import PASSES, SceneConfig
from pipeline.core import images
from pipeline.core.errors import UserError
from pipeline.worker.blender import Blender, Frame
from pipeline.worker.render import build_job, poses
from tests.conftest import Render

# albedo, roughness, metallic; the materials of tests/assets.py
SAID = {
    "principled": (0.5, 0.2, 0.1, 0.3, 1.0),
    "diffuse": (0.1, 0.6, 0.2, 1.0, 0.0),
    "mixed 3 to 1": (0.6, 0.0, 0.2, 0.3, 0.25),
    "half transparent": (0.7, 0.6, 0.1, 0.4, 0.0),
    "glowing": (0.2, 0.7, 0.7, 0.9, 0.0),
    "in a group": (0.3, 0.1, 0.6, 0.7, 1.0),
    "without nodes": (0.3, 0.3, 0.65, 1.0, 0.0),
    "none": (0.8, 0.8, 0.8, 1.0, 0.0),
}
ASKED = {"albedo": True, "roughness": True, "metallic": True}


def test_each_kind_of_material_is_understood(assets: Path, blender: Blender) -> None:
    cfg = SceneConfig(res=(64,), views=6, samples=16, **ASKED).resolved()
    path = assets / "surfaces.blend"
    job = build_job(cfg, "surfaces", poses(cfg, "surfaces"), 1) | {"path": str(path), "format": "blend"}
    seen = []
    for frame in (answer for answer in blender.render(job) if isinstance(answer, Frame)):
        alpha = frame.passes["rgba"][..., 3]
        whole = alpha > 0.999  # in front of one sphere alone, or of several: below, only what is common counts
        values = np.concatenate(
            [frame.passes["albedo"][..., :3], frame.passes["roughness"], frame.passes["metallic"]], -1
        )
        seen.append(values[whole])
        through = (alpha > 0.4) & (alpha < 0.6)  # the half transparent sphere before nothing, among edges of others
        seen.append(values[through] / alpha[through][:, None])
    found = np.concatenate(seen)
    apart = np.stack([np.abs(found - said).max(-1) for said in SAID.values()], -1)
    for name, distance in zip(SAID, apart.T, strict=True):
        assert (distance < 2e-3).sum() > 40, f"{name} is nowhere"
    assert (
        apart.min(-1) < 2e-3
    ).mean() > 0.8  # the rest are edges between two, or something behind the transparent one


def test_pictures_stay_the_same_and_layers_are_what_was_measured(assets: Path, render: Render) -> None:
    plain = render(assets / "surfaces.blend", views=2)
    asked = render(assets / "surfaces.blend", views=2, alpha=True, **ASKED)
    assert plain.scene is not None and asked.scene is not None
    views = asked.scene.by_width[64]
    assert views.jpegs == plain.scene.by_width[64].jpegs
    for number in range(2):
        alpha, albedo, roughness, metallic = (
            images.decode(views.layers[name][number]) for name in ("alpha", "albedo", "roughness", "metallic")
        )
        assert albedo.shape == (64, 64, 3) and roughness.shape == metallic.shape == (64, 64)
        assert not albedo[alpha == 0].any() and not roughness[alpha == 0].any() and not metallic[alpha == 0].any()
        found = np.concatenate([images.linear(albedo), roughness[..., None] / 255, metallic[..., None] / 255], -1)
        apart = np.stack([np.abs(found[alpha == 255] - said).max(-1) for said in SAID.values()], -1).min(-1)
        assert (apart < 0.01).mean() > 0.7
        assert np.median(roughness[(alpha > 60) & (alpha < 200)]) > 60  # edges are not darker for being half covered


@pytest.mark.parametrize("name", PASSES)
def test_only_cycles_has_passes(name: str) -> None:
    with pytest.raises(UserError, match=f"--{name}: only Cycles"):
        SceneConfig(engine="eevee", **{name: True}).resolved()  # type: ignore[arg-type]
