"""Which views an evaluation shows and asks for: fixed, and what was promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lvsm_train.config.train import DataConfig  # noqa: E402
from lvsm_train.data.index import read_index  # noqa: E402
from lvsm_train.data.samples import Planner, Sample  # noqa: E402
from lvsm_train.evaluation import protocols  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from tests import noise  # noqa: E402


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four objects to train on, three for validation: of 20, of 13 and of 4 views."""
    out = noise.write(tmp_path_factory.mktemp("objects"), [noise.scene(f"train-{i}", (24,)) for i in range(4)])
    return noise.write(out, [noise.scene(f"val-{views}", (24,), views) for views in (20, 13, 4)], "val")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of 30 frames, every third of the video."""
    scenes = [noise.scene(f"clip{i}", (24,), 30, np.arange(0, 90, 3)) for i in range(4)]
    return noise.write(tmp_path_factory.mktemp("clips"), scenes, "val")


def planner(folder: Path, **more: Any) -> Planner:
    cfg = DataConfig((folder,), **more)
    return Planner(cfg, read_index(cfg.data, None, 1))


def test_objects_have_four_inputs_and_ten_targets(objects: Path) -> None:
    made = protocols.plan("gslrm-objects", planner(objects))
    assert {sample.uid: len(sample.targets) for sample in made} == {"val-20": 10, "val-13": 9}  # one has 4 views alone
    for sample in made:
        assert len(set(sample.inputs)) == 4 and not set(sample.inputs) & set(sample.targets)
    for seed in (1, 2):
        assert protocols.plan("gslrm-objects", planner(objects, seed=seed, inputs=2, batch=3)) == made
    every = protocols.plan("gslrm-objects", planner(objects), "all")
    assert {sample.uid for sample in every} == {"val-20", "val-13", *(f"train-{i}" for i in range(4))}
    assert set(made) < set(every)


def test_clips_have_two_inputs_with_three_targets_between(clips: Path) -> None:
    plan = planner(clips, scenes=True, gap_min=20, gap_max=60)
    made = protocols.plan("clips", plan)
    assert len(made) == 4
    for sample in made:
        first, last = sample.inputs
        assert len(sample.targets) == 3 and first < min(sample.targets) and max(sample.targets) < last
        assert 20 <= 3 * (last - first) <= 60


def test_more_and_more_of_the_same_inputs(objects: Path, clips: Path) -> None:
    plan = planner(objects)
    samples = protocols.plan("gslrm-objects", plan)
    plans = protocols.by_inputs("gslrm-objects", plan, "val", samples)
    assert list(plans) == [1, 2, 3, 4, 6, 8]
    for place, most in enumerate(plans[8]):
        for count, some in plans.items():
            assert some[place].inputs == most.inputs[:count] and some[place].targets == most.targets
        assert not set(most.inputs) & set(most.targets)
        of_protocol = next(sample for sample in samples if sample.uid == most.uid)
        assert of_protocol.inputs == most.inputs[:4]
    few = planner(clips, scenes=True, gap_min=20, gap_max=24)  # windows of 7 to 9 views
    assert list(protocols.by_inputs("clips", few, "val", protocols.plan("clips", few))) == [1, 2, 3, 4, 6]


def write_index(path: Path, inputs: list[int], targets: list[int], *clips: str) -> Path:
    path.write_text(json.dumps({clip: {"context": inputs, "target": targets} for clip in clips} | {"gone": None}))
    return path


def test_an_index_says_which_frames(clips: Path, tmp_path: Path) -> None:
    plan = planner(clips, scenes=True)
    path = write_index(tmp_path / "index.json", [3, 60], [9, 30, 51], "clip2", "clip0", "elsewhere")
    made = protocols.plan("re10k", plan, "val", path)
    assert [(one.uid, one.inputs, one.targets) for one in made] == [
        ("clip2", (1, 20), (3, 10, 17)),
        ("clip0", (1, 20), (3, 10, 17)),
    ]
    assert protocols.plan("index", plan, "val", path) == made
    assert list(protocols.by_inputs("re10k", plan, "val", made)) == [1, 2]
    odd = write_index(tmp_path / "odd.json", [3, 60], [9], "clip1")
    assert len(protocols.plan("index", plan, "val", odd)[0].targets) == 1
    with pytest.raises(UserError, match="shows 2 and asks for 1 views of clip1, not 2 and 3"):
        protocols.plan("re10k", plan, "val", odd)
    with pytest.raises(UserError, match="none of the clips"):
        protocols.plan("re10k", plan, "val", write_index(tmp_path / "none.json", [1, 60], [9, 30, 51], "clip0"))


def test_what_suits_the_data() -> None:
    index = Path("index.json")
    objects, both, clips = (np.array(kinds) for kinds in ([False, False], [False, True, True], [True]))
    suits = {"objects": "gslrm-objects", "both": "clips", "clips": "clips"}
    for name, kinds in {"objects": objects, "both": both, "clips": clips}.items():
        assert protocols.choose(None, None, kinds) == suits[name]
        assert protocols.choose(None, index, kinds) == protocols.choose("index", index, kinds) == "index"
    assert protocols.choose("gslrm-objects", None, both) == "gslrm-objects"
    for name, file, kinds, error in (
        ("re10k", index, objects, "--protocol re10k is for clips; these are objects"),
        ("gslrm-objects", None, clips, "--protocol gslrm-objects is for objects; these are clips"),
        ("re10k", None, clips, "--protocol re10k needs --index"),
        ("clips", index, clips, "has no use for --index"),
    ):
        with pytest.raises(UserError, match=error):
            protocols.choose(name, file, kinds)


def test_nothing_to_measure_on(clips: Path, tmp_path: Path) -> None:
    small = noise.write(tmp_path, [noise.scene("small", (24,), 4)], "val")
    with pytest.raises(UserError, match="none of 1 objects has 4 views to show and other views to ask for"):
        protocols.plan("gslrm-objects", planner(small))
    wide = planner(clips, scenes=True, gap_min=100, gap_max=120)
    with pytest.raises(UserError, match="none of 4 objects has 2 views to show and a window"):
        protocols.plan("clips", wide)


def test_partners_are_other_objects_with_as_many_inputs() -> None:
    samples = [Sample(f"{n}", n, tuple(range(2 + n % 2)), (5,) * (1 + n)) for n in range(4)]
    made = protocols.partners(samples)
    assert [one.number for one in made] == [2, 3, 0, 1]
    for sample, other in zip(samples, made, strict=True):
        assert (len(other.inputs), len(other.targets)) == (len(sample.inputs), len(sample.targets))
    with pytest.raises(UserError, match="no other object"):
        protocols.partners(samples[:2])
