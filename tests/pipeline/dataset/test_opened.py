"""Reading a run from Python: what was written comes back, by uid and number, in threads, forks and spawned processes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.core import cameras, images
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Scene, Views, item_rng
from pipeline.dataset import opened
from pipeline.dataset.opened import Dataset
from pipeline.storage.shards import INTRINSICS, ROLE, Rows
from pipeline.storage.writer import ShardWriter
from tests.buckets import BUCKET, Buckets

FACTS = {"config_hash": "0123456789abcdef", "seed": 7}
VIEWS = 5
LAYERS = ("alpha", "depth", "normals", "albedo")


def scene(uid: str, widths: tuple[int, ...] = (16,), layers: tuple[str, ...] = ()) -> Scene:
    """Pictures of noise at poses and intrinsics of their own."""
    rng = item_rng(0, uid, "test")
    by_width = {}
    for width in widths:
        hw = (width // 2, width)
        jpegs = [images.encode_jpeg(rng.integers(0, 256, (*hw, 3), np.uint8), 90) for _ in range(VIEWS)]
        made: dict[str, list[bytes]] = {}
        for name in layers:
            if name in ("depth", "normals"):
                shape = hw if name == "depth" else (*hw, 3)
                made[name] = [rng.random(shape).astype("<f4").tobytes() for _ in range(VIEWS)]
            else:
                shape = (*hw, 3) if name == "albedo" else hw
                made[name] = [images.encode_png(rng.integers(0, 256, shape, np.uint8)) for _ in range(VIEWS)]
        by_width[width] = Views(jpegs, rng.uniform(1, 9, (VIEWS, 4)).astype(np.float32), hw, made)
    return Scene(Item(uid, "local", license="CC0-1.0"), cameras.sample("shell", rng, VIEWS), by_width, {"number": uid})


UIDS = [f"object {number}" for number in range(11)] + ["ü/../'\"", "-1"]


def write(out: Path, widths: tuple[int, ...] = (16,), layers: tuple[str, ...] = (), ortho: bool = False) -> Path:
    optional = (*layers, *([INTRINSICS["ortho"]] if ortho else []))
    writer = ShardWriter(out, widths, optional, FACTS, 1e12)
    for number, uid in enumerate(UIDS):
        split = "val" if number % 4 == 3 else "train"
        writer.add(scene(uid, widths, layers), split, number // 5)
        if number % 5 == 4:
            writer.close("train")
    writer.close("train")
    writer.close("val")
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("opened") / "run")


def test_facts_of_all_objects_are_read_without_the_objects(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset(run)
    monkeypatch.setattr(Dataset, "table", None)
    facts = data.objects()
    assert facts["uid"] == data.uids and facts["number"] == data.uids and facts["views"] == [VIEWS] * len(data)
    assert facts["split"] == [data.split_of(uid) for uid in data.uids]
    places = zip(facts["shard"], facts["row_group"], strict=True)
    assert list(places) == [(data.shard_of(uid), data._place(uid)[1]) for uid in data.uids]
    assert Dataset(run, split="val").objects()["uid"] == [uid for uid in data.uids if data.split_of(uid) == "val"]


def test_a_shard_that_became_another_one_is_told(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    data = Dataset(tmp_path / "run")
    first, *_, last = (Path(shard) for shard in data.shards)
    shutil.copy(last, first)
    with pytest.raises(UserError, match=rf"{first.name} is not what it was when it was opened"):
        data.objects()


def check(data: Dataset) -> None:
    for uid in data.uids:
        expected, found = scene(uid), data[uid]
        views = expected.by_width[16]
        assert (found.uid, found.license, found.meta["number"]) == (uid, "CC0-1.0", uid)
        assert found.jpegs == views.jpegs and found.hw == (8, 16)
        np.testing.assert_array_equal(found.c2w, expected.c2w)
        np.testing.assert_array_equal(found.fxfycxcy, views.intrinsics)


def test_what_was_written_comes_back(run: Path) -> None:
    data = pipeline.open(run)
    assert sorted(data.uids) == sorted(UIDS) and len(data) == len(UIDS) and data.facts["seed"] == 7
    check(data)
    assert [one.uid for one in data] == data.uids == [data[number].uid for number in range(len(data))]
    assert data[-1].uid == data.uids[-1] and "object 3" in data and "object 99" not in data
    pictures = data["object 3"].images
    assert pictures.shape == (VIEWS, 8, 16, 3) and pictures.dtype == np.uint8
    for picture, jpeg in zip(pictures, scene("object 3").by_width[16].jpegs, strict=True):
        np.testing.assert_array_equal(picture, images.decode(jpeg))


def test_splits_and_resolutions(tmp_path: Path, run: Path) -> None:
    train, val = pipeline.open(run, split="train"), pipeline.open(str(run), split="val")
    assert set(val.uids) == set(UIDS[3::4]) and set(train.uids) | set(val.uids) == set(UIDS)
    two = write(tmp_path / "two", (16, 24))
    assert pipeline.open(two / "24").width == pipeline.open(two, res=24).width == 24
    assert pipeline.open(two, res=24)[0].hw == (12, 24)
    for arguments, error in (
        ((two,), r"has pictures of 16, 24 pixels"),
        ((two, 32), r"no pictures of 32 pixels"),
        ((run, 16, "test"), "no split 'test'"),
        ((tmp_path / "nothing",), "is no folder"),
        ((tmp_path,), "holds no finished shard"),
    ):
        with pytest.raises(UserError, match=error):
            pipeline.open(*arguments)
    for say, hint in ((lambda: None, "of captures, lvsm-data import"), ((tmp_path / "ledger.sqlite").touch, "status")):
        say()
        with pytest.raises(UserError) as refused:
            pipeline.open(tmp_path)
        assert hint in refused.value.hint


def test_what_is_not_there(run: Path) -> None:
    data = pipeline.open(run)
    with pytest.raises(KeyError, match="nobody is not among 13 objects"):
        data["nobody"]
    for number in (13, -14):
        with pytest.raises(IndexError):
            data[number]
    with pytest.raises(KeyError, match="has no depth; it has no layers"):
        data[0].layer("depth")
    with pytest.raises(AttributeError, match="has fxfycxcy, no sxsycxcy"):
        _ = data[0].sxsycxcy


def test_layers_and_orthographic_views(tmp_path: Path) -> None:
    data = pipeline.open(write(tmp_path / "run", (16,), LAYERS, ortho=True))
    one, expected = data["object 5"], scene("object 5", (16,), LAYERS).by_width[16]
    for name, shape, kind in (
        ("alpha", (VIEWS, 8, 16), np.uint8),
        ("depth", (VIEWS, 8, 16), np.float32),
        ("normals", (VIEWS, 8, 16, 3), np.float32),
        ("albedo", (VIEWS, 8, 16, 3), np.uint8),
    ):
        layer = one.layer(name)
        assert layer.shape == shape and layer.dtype == kind
        if name in ("depth", "normals"):
            assert layer.tobytes() == b"".join(expected.layers[name])
    np.testing.assert_array_equal(one.sxsycxcy, expected.intrinsics)
    with pytest.raises(AttributeError, match="has sxsycxcy, no fxfycxcy"):
        _ = one.fxfycxcy


def test_damage_is_told(tmp_path: Path) -> None:
    run = write(tmp_path / "run")
    path = run / "16/train-000000.parquet"
    at = path.read_bytes().index(scene("object 1").by_width[16].jpegs[0])
    data = bytearray(path.read_bytes())
    data[at + 30] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"train-000000\.parquet: object 1 cannot be read"):
        pipeline.open(run, check=True)["object 1"]
    path.write_bytes(bytes(data[:-9]))
    with pytest.raises(UserError, match=r"train-000000\.parquet cannot be read"):
        pipeline.open(run)


# ---- many readers


def test_views_are_drawn_by_seed_and_uid_alone(run: Path) -> None:
    data = pipeline.open(run)
    for count in (3, VIEWS + 2):
        first, again = data.views(count, seed=1), pipeline.open(run).views(count, seed=1)
        other = data.views(count, seed=2)
        assert len(first) == len(UIDS)
        seen = [first[number] for number in range(len(first))]
        for number, sample in enumerate(seen):
            assert sample["image"].shape == (count, 8, 16, 3) and sample["c2w"].shape == (count, 4, 4)
            np.testing.assert_array_equal(sample["c2w"], again[number]["c2w"])
            one = data[sample["uid"]]
            for picture, pose, k in zip(sample["image"], sample["c2w"], sample["fxfycxcy"], strict=True):
                view = int(np.flatnonzero((one.c2w == pose).all((1, 2)))[0])
                np.testing.assert_array_equal(picture, one.images[view])
                np.testing.assert_array_equal(k, one.fxfycxcy[view])
        assert any((sample["c2w"] != other[number]["c2w"]).any() for number, sample in enumerate(seen))


def _all(data: Dataset) -> list[tuple[str, list[bytes]]]:
    return [(one.uid, one.jpegs) for one in data]


def test_threads_forks_and_pickles_read_the_same(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "OPEN_FILES", 2)  # fewer than there are shards
    data = pipeline.open(run)
    expected = _all(data)  # its files are open now
    with ThreadPoolExecutor(6) as pool:
        assert all(made == expected for made in pool.map(lambda _: _all(data), range(12)))
    assert _all(pickle.loads(pickle.dumps(data))) == expected
    with multiprocessing.get_context("fork").Pool(2) as forks:
        assert all(made == expected for made in forks.map(_all, [data] * 4))


def test_a_data_loader_of_torch_reads_it(run: Path) -> None:
    torch = pytest.importorskip("torch")
    data = pipeline.open(run)
    loader = torch.utils.data.DataLoader(data.views(3), batch_size=4, num_workers=2)
    batches = list(loader)
    assert [uid for batch in batches for uid in batch["uid"]] == data.uids
    assert batches[0]["image"].shape == (4, 3, 8, 16, 3) and batches[0]["c2w"].dtype == torch.float32


def test_reading_needs_little() -> None:
    program = (
        "import sys, pipeline.dataset.opened; bad = {'torch', 'cv2', 'psutil', 'ray', 'bpy', 'rich', 'sqlite3'}; "
        "sys.exit(' '.join(bad & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- from an object store


def test_a_store_is_read_as_it_stands(run: Path, s3: Buckets) -> None:
    for path in (run / "16").iterdir():
        s3.client().put_object(Bucket=BUCKET, Key=f"runs/one/16/{path.name}", Body=path.read_bytes())
    s3.client().put_object(Bucket=BUCKET, Key="runs/one/16/train-000009.parquet.tmp", Body=b"half")
    data = pipeline.open(f"s3://{BUCKET}/runs/one")
    assert data.uids == pipeline.open(run).uids and data.width == 16
    check(pickle.loads(pickle.dumps(data)))
    with pytest.raises(UserError, match="holds no finished shard"):
        pipeline.open(f"s3://{BUCKET}/nothing")


def test_rows_and_objects_have_the_same_fields() -> None:
    assert opened.Object.__dataclass_fields__.keys() == Rows.__dataclass_fields__.keys()


def test_views_that_their_set_keeps_never_train(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, (16,), (ROLE,), FACTS, 1e12)
    roles = ["test", "train", "val", "train", ""]
    for uid in ("a", "b"):
        writer.add(dataclasses.replace(scene(uid), roles=roles), "train", 0)
    writer.add(dataclasses.replace(scene("kept"), roles=["test"] * VIEWS), "train", 0)
    writer.close("train")
    data = Dataset(tmp_path, split="train")
    assert data["a"].trains.tolist() == [False, True, False, True, True]
    for seed in range(4):
        for number in (0, 1):
            shown, one = data.views(6, seed)[number]["c2w"], data[number]
            assert {pose.tobytes() for pose in shown} == {one.c2w[view].tobytes() for view in (1, 3, 4)}
    with pytest.raises(UserError, match="kept has no view that trains"):
        data.views(2)[2]
    both = {pose.tobytes() for pose in Dataset(tmp_path).views(VIEWS)[0]["c2w"]}
    assert len(both) == VIEWS  # who asks for no split gets all
