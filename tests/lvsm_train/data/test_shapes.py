"""Pictures of several shapes: steps draw one each, crops are the middle, and cameras follow."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from lvsm_train.config import shapes  # noqa: E402
from lvsm_train.config.parts import ModelConfig  # noqa: E402
from lvsm_train.config.train import TrainConfig  # noqa: E402
from lvsm_train.data.batches import Data  # noqa: E402
from pipeline.core import cameras  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from tests import noise  # noqa: E402

SHAPES = ("1:1", "16:9", "2:3")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise.ten_and_three(tmp_path_factory.mktemp("noise"))


@given(
    st.floats(0.1, 99),
    st.floats(0.1, 99),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(1, 16),
    st.integers(0, 15),
)
def test_crops_are_whole_patches_as_large_as_they_can_be(
    width: float, height: float, patches: tuple[int, int], patch: int, more: int
) -> None:
    hw = patches[0] * patch + more % patch, patches[1] * patch + more % patch
    high, wide = shapes.cropped_hw((width, height), hw, patch)
    assert high % patch == wide % patch == 0
    assert patch <= high <= hw[0] and patch <= wide <= hw[1]
    asked = width / height
    full = min(hw[1], hw[0] * asked), min(hw[0], hw[1] / asked)  # without patches
    assert all(
        abs(side - most) <= patch / 2 + more or side == patch for side, most in zip((wide, high), full, strict=True)
    )


@pytest.mark.parametrize("aspect", ["wide", "16/9", "0:1", "1:0", "-1:2", "1:1:1", "1e9:1", ""])
def test_shapes_that_are_none_are_named(aspect: str, run: Path) -> None:
    with pytest.raises(UserError, match="is no shape"):
        Data(noise.config(run, aspect=(aspect,)))


def test_a_step_has_one_shape_whose_middle_and_cameras_follow(run: Path) -> None:
    """At 48 pixels: crops of the very pictures, cut where the principal point says."""
    plain = Data(noise.config(run))
    several = Data(noise.config(run, aspect=SHAPES), patch=8)
    assert several.sizes == [(48, 48), (24, 48), (48, 32)] and several.hw == (48, 48)  # 27 and 32 pixels
    seen = set()
    for step in range(20):
        whole, batch = next(plain.batches(step)), next(several.batches(step))
        hw = tuple(batch.image.shape[-2:])
        seen.add(hw)
        top, left = (48 - hw[0]) // 2, (48 - hw[1]) // 2
        cut = (..., slice(top, top + hw[0]), slice(left, left + hw[1]))
        assert torch.equal(batch.image, whole.image[cut]) and torch.equal(batch.target_image, whole.target_image[cut])
        assert batch.target_image.shape[-2:] == hw and torch.equal(batch.c2w, whole.c2w)
        point = np.array([[0.1, -0.2, 0.15]])
        for name in ("", "target_"):
            pose, before, after = (
                getattr(each, name + what)[0].numpy().astype(float)
                for each, what in ((whole, "c2w"), (whole, "fxfycxcy"), (batch, "fxfycxcy"))
            )
            moved = cameras.project(point, pose, before)[0] - cameras.project(point, pose, after)[0]
            np.testing.assert_allclose(moved[:, 0], [[left, top]] * len(pose), atol=1e-3)
    assert seen == set(several.sizes)


def test_what_does_not_train_has_the_first_shape(run: Path) -> None:
    data = Data(noise.config(run, aspect=("16:9", "1:1")), patch=8)
    samples = data.planner.evaluation("val", 3, 2)
    assert {batch.image.shape[-2:] for batch in data.evaluation_batches(samples, 2)} == {(24, 48)}
    assert data.gather(samples[:1]).image.shape[-2:] == (24, 48) and data.hw == (24, 48)
    assert "at 48x24 or 48x48 pixels" in data.summary()


def test_ranks_and_parts_of_a_step_share_its_shape(run: Path) -> None:
    settings = noise.config(run, aspect=SHAPES, batch=2)
    ranks = [Data(settings, rank, 2, accumulate=2, patch=8) for rank in range(2)]
    for step in range(6):
        made = [data.batches(step) for data in ranks]
        assert len({next(batches).image.shape[-2:] for batches in made for _ in range(2)}) == 1


def test_runs_from_before_there_were_shapes_keep_their_identity(run: Path) -> None:
    cfg = TrainConfig(data=noise.config(run))
    assert "aspect" not in cfg.identity()["data"]
    shaped = dataclasses.replace(cfg, data=noise.config(run, aspect=SHAPES), model=ModelConfig(patch=8))
    assert shaped.identity()["data"]["aspect"] == list(SHAPES)
    assert TrainConfig.from_json(json.loads(json.dumps(shaped.as_json()))) == shaped
