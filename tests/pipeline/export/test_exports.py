"""Exports as other tools read them: a point of the world falls on the pixel that our columns say, by maths that is not ours."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import importlib
import io
import json
import math
import os
import sys
import tarfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
import webdataset

from pipeline.config.export import FORMATS, ExportConfig
from pipeline.config.views import ImportConfig, PosedConfig
from pipeline.core import cameras, images
from pipeline.core.errors import Skip, UserError
from pipeline.core.records import Item, Posed, Scene, Views, item_rng
from pipeline.dataset.opened import Dataset
from pipeline.export import exporter, hub
from pipeline.export.exporter import Exported, export
from pipeline.formats import pickles
from pipeline.poses.capture import ROLES
from pipeline.storage.ledger import Ledger
from pipeline.storage.shards import INTRINSICS, ROLE, TIME
from pipeline.storage.writer import ShardWriter
from pipeline.worker.posed import to_scene
from tests import foreign
from tests.conftest import lvsm_data_here

HW = (48, 64)
VIEWS = 9
POINTS = np.random.default_rng(3).uniform(-0.28, 0.28, (40, 3))  # in the sphere that objects are in
UIDS = ("chair", "glbs/000-001/ab.c.glb", "Ü '\"</x>")
FACTS = {"config_hash": "0", "source": "local", "settings": {"normalize": "sphere"}}
GREY = (160, 160, 160)
JUDGES = Path(sys.prefix) / "judges"  # what `make setup-test` installs without its many dependencies


def scene(uid: str, kind: str, hw: tuple[int, int] = HW, views: int = VIEWS) -> Scene:
    """Views of noise. kind: plain (one pinhole, white), rich (alpha, depth, intrinsics of their own, on grey), zero123."""
    rng = item_rng(0, uid, "test")
    c2w = cameras.sample("shell", rng, views)
    k = np.tile(cameras.intrinsics(49.1343426412 if kind == "zero123" else 50.0, hw), (views, 1))
    layers: dict[str, list[bytes]] = {}
    if kind == "rich":
        k = k * rng.uniform(0.9, 1.1, (views, 4))
        layers["depth"] = [rng.uniform(1.5, 2.5, hw).astype("<f4").tobytes() for _ in range(views)]
    pictures = []
    for _ in range(views):
        rgb, share = rng.uniform(0, 1, (*hw, 3)), np.ones(hw)
        if kind != "plain":
            share = np.kron(rng.uniform(0, 1, (hw[0] // 16, hw[1] // 16)) > 0.3, np.ones((16, 16)))
            layers.setdefault("alpha", []).append(images.encode_png(np.round(share * 255).astype(np.uint8)))
        smooth = np.kron(rgb[::16, ::16], np.ones((16, 16, 1)))  # JPEG keeps flat blocks
        behind = images.linear(np.array(GREY if kind == "rich" else (255,) * 3, np.uint8))
        picture = images.srgb8(smooth * share[..., None] + (1 - share[..., None]) * behind)
        pictures.append(images.encode_jpeg(picture, 98))
    meta = {"background": list(GREY)} if kind == "rich" else {}
    return Scene(Item(uid, "local"), c2w, {hw[1]: Views(pictures, k.astype(np.float32), hw, layers)}, meta)


def write(out: Path, kind: str, hw: tuple[int, int] = HW, views: int = VIEWS, facts: dict[str, Any] = FACTS) -> Path:
    layers = {"plain": (), "rich": ("alpha", "depth"), "zero123": ("alpha",)}[kind]
    writer = ShardWriter(out, (hw[1],), layers, facts, 1e12)
    for uid in UIDS:
        writer.add(scene(uid, kind, hw, views), "train", 0)
    writer.close("train")
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("export") / "plain", "plain")


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("export") / "rich", "rich")


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("export") / "square", "zero123", (64, 64), 12)


def exported(run: Path, to: str, out: Path, **more: Any) -> Exported:
    return export(ExportConfig(run, to=to, out=out, **more).resolved())


def names(out: Path) -> dict[str, str]:
    """Uid -> name of its scene."""
    return {uid: name for name, uid in json.loads((out / "uids.json").read_text()).items()}


def expected(one: Scene) -> np.ndarray:
    """Pixels (V, P, 2) of POINTS by our columns, spelt out."""
    (views,) = one.by_width.values()
    local = np.linalg.inv(one.c2w.astype(np.float64)) @ np.concatenate([POINTS.T, np.ones((1, len(POINTS)))])
    k = views.intrinsics.astype(np.float64)
    return np.swapaxes(k[:, :2, None] * local[:, :2] / local[:, 2:3] + k[:, 2:, None], 1, 2)


# ---- judged by others' code


@pytest.mark.parametrize("kind", ["plain", "rich"])
def test_colmap_reads_its_projects(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run = request.getfixturevalue(kind)
    made = exported(run, "colmap", tmp_path / "out")
    assert ["no points without depth" in note for note in made.notes] == ([True] if kind == "plain" else [])
    for uid, name in names(tmp_path / "out").items():
        one = scene(uid, kind)
        model = pycolmap.Reconstruction(tmp_path / "out" / name / "sparse" / "0")
        assert model.num_images() == VIEWS and model.num_cameras() == (1 if kind == "plain" else VIEWS)
        pixels = expected(one)
        for image in model.images.values():
            view = int(image.name[:5])
            picture = tmp_path / "out" / name / "images" / image.name
            assert picture.read_bytes() == one.by_width[64].jpegs[view]
            local = image.cam_from_world() * POINTS
            found = model.cameras[image.camera_id].img_from_cam(local)
            np.testing.assert_allclose(found, pixels[view], atol=1e-3)
        if kind == "rich":  # points lie where depth says: each projects into a pixel whose depth it has
            (views,) = one.by_width.values()
            depth = np.stack([np.frombuffer(data, "<f4").reshape(HW) for data in views.layers["depth"]])
            some = np.array([point.xyz for point in list(model.points3D.values())[:200]])
            for number, point in list(model.points3D.items())[::20]:  # and falls on the pixel of its track
                (seen,) = point.track.elements
                image = model.images[seen.image_id]
                pixel = image.points2D[seen.point2D_idx]
                found = model.cameras[image.camera_id].img_from_cam(image.cam_from_world() * point.xyz)
                np.testing.assert_allclose(found, pixel.xy, atol=1e-3)
                view, (column, row) = int(image.name[:5]), pixel.xy.astype(int)
                assert pixel.point3D_id == number
                assert (point.color == images.decode(views.jpegs[view])[row, column]).all()
            hits = 0
            for pose, k, own in zip(one.c2w.astype(np.float64), views.intrinsics, depth, strict=True):
                local = (np.linalg.inv(pose) @ np.concatenate([some.T, np.ones((1, len(some)))]))[:3]
                at = np.floor(k[:2, None] * local[:2] / local[2] + k[2:, None]).astype(int)
                inside = (at >= 0).all(0) & (at[0] < HW[1]) & (at[1] < HW[0])
                hits += int(np.isclose(own[at[1, inside], at[0, inside]], local[2, inside], atol=1e-4).sum())
            assert hits >= 200


@pytest.fixture(scope="module")
def nerfstudio() -> types.ModuleType:
    """The module with nerfstudio's reader. Its viewer is left out, and so is TensorBoard's writer."""
    if not JUDGES.is_dir():
        pytest.skip("`make setup-test` installs nerfstudio into .venv/judges")
    pytest.importorskip("torch")
    sys.path.append(str(JUDGES))
    for name, members in (("viser", ("transforms",)), ("torch.utils.tensorboard", ("SummaryWriter",))):
        sys.modules.setdefault(name, types.ModuleType(name))
        for member in members:
            setattr(sys.modules[name], member, types.ModuleType(f"{name}.{member}"))
    sys.modules.setdefault("viser.transforms", types.ModuleType("viser.transforms"))
    return importlib.import_module("nerfstudio.data.dataparsers.nerfstudio_dataparser")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["plain", "rich"])
def test_nerfstudio_reads_its_layout(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, nerfstudio: types.ModuleType
) -> None:
    import torch

    run = request.getfixturevalue(kind)
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": [0, 2, 4, 5], "val": [1], "test": [8, 3]}))
    exported(run, "nerfstudio", tmp_path / "out", split_indices=split)
    for uid, name in names(tmp_path / "out").items():
        one, pixels = scene(uid, kind), expected(scene(uid, kind))
        parser = nerfstudio.NerfstudioDataParserConfig(
            data=tmp_path / "out" / name, center_method="none", auto_scale_poses=False, load_3D_points=False
        ).setup()
        for part, views in (("train", [0, 2, 4, 5]), ("test", [3, 8])):
            found = parser.get_dataparser_outputs(part)
            assert len(found.image_filenames) == len(views)
            for number, (path, view) in enumerate(zip(found.image_filenames, views, strict=True)):
                assert path.read_bytes() == one.by_width[64].jpegs[view]
                rays = found.cameras.generate_rays(number, coords=torch.tensor(pixels[view][:, ::-1].copy()).float())
                to_points = POINTS - rays.origins.numpy()
                along = rays.directions.numpy()
                aside = np.linalg.norm(np.cross(to_points, along), axis=-1) / np.linalg.norm(to_points, axis=-1)
                assert aside.max() < 2e-5 and (np.einsum("ij,ij->i", to_points, along) > 0).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("split", "train", "val"),
    [
        ({"train": [0, 2], "test": [3]}, [0, 2], [3]),
        ({"train": [0, 2], "val": [1]}, [0, 2], [1]),
        ({"train": [0, 2]}, [0, 2], []),  # by its own rule, which takes a tenth
    ],
)
def test_nerfstudios_trainer_finds_the_split_that_it_looks_at(
    split: dict[str, list[int]],
    train: list[int],
    val: list[int],
    plain: Path,
    tmp_path: Path,
    nerfstudio: types.ModuleType,
) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(split))
    exported(plain, "nerfstudio", tmp_path / "out", split_indices=path, uid=("chair",))
    jpegs = scene("chair", "plain").by_width[64].jpegs
    parser = nerfstudio.NerfstudioDataParserConfig(data=tmp_path / "out" / "chair", load_3D_points=False).setup()
    for part, views in (("train", train), ("val", val)):
        files = parser.get_dataparser_outputs(part).image_filenames
        assert [one.read_bytes() for one in files] == [jpegs[view] for view in views]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
def test_webdataset_reads_its_tars(plain: Path, tmp_path: Path) -> None:
    made = exported(plain, "webdataset", tmp_path / "out")
    assert "WebDataset(" in made.notes[0]
    seen = set()
    tars = [str(path) for path in sorted((tmp_path / "out").glob("train-*.tar"))]
    for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False):
        facts = json.loads(sample["json"])
        one = scene(facts["uid"], "plain")
        (views,) = one.by_width.values()
        assert sample["jpg"] == views.jpegs[facts["view"]]
        np.testing.assert_array_equal(np.array(facts["c2w"], np.float32), one.c2w[facts["view"]])
        np.testing.assert_array_equal(np.array(facts["fxfycxcy"], np.float32), views.intrinsics[facts["view"]])
        seen.add((facts["uid"], facts["view"]))
    assert len(seen) == len(UIDS) * VIEWS


def test_torch_reads_pixelsplats_chunks(rich: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    made = exported(rich, "pixelsplat", tmp_path / "out")
    assert "64x48" in made.notes[0]
    index = json.loads((tmp_path / "out/train/index.json").read_text())
    assert set(index) == set(names(tmp_path / "out").values())
    chunk = torch.load(tmp_path / "out/train/000000.torch", weights_only=True)
    for record in chunk:
        one = scene(record["url"], "rich")
        (views,) = one.by_width.values()
        assert [image.numpy().tobytes() for image in record["images"]] == views.jpegs
        assert record["timestamps"].dtype == torch.int64 and record["cameras"].dtype == torch.float32
        w2c = np.tile(np.eye(4), (VIEWS, 1, 1))
        w2c[:, :3] = record["cameras"][:, 6:].reshape(-1, 3, 4).double().numpy()
        k = record["cameras"][:, :4].double().numpy() * [HW[1], HW[0], HW[1], HW[0]]
        local = w2c @ np.concatenate([POINTS.T, np.ones((1, len(POINTS)))])
        found = np.swapaxes(k[:, :2, None] * local[:, :2] / local[:, 2:3] + k[:, 2:, None], 1, 2)
        np.testing.assert_allclose(found, expected(one), atol=1e-3)


@pytest.mark.parametrize(
    "value",
    [
        [{"a": np.arange(6, dtype=np.int64).reshape(2, 3), "ü": "text", "n": -5, "l": [1, (2, "x")]}],
        np.float32([[1.5, -2]]),
        np.empty((0, 4), np.uint8),
        {"t": np.arange(12, dtype=np.float64).reshape(3, 4).T},
        [],
        {},
    ],
)
def test_torch_loads_what_is_written_without_it(value: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pickles.write(tmp_path / "file.pt", value)

    def same(found: Any, given: Any) -> None:
        if isinstance(given, np.ndarray):
            found = np.asarray(found)
            assert found.dtype == given.dtype and found.shape == given.shape and (found == given).all()
        elif isinstance(given, list | tuple):
            assert type(found) is type(given) and len(found) == len(given)
            for one, other in zip(found, given, strict=True):
                same(one, other)
        elif isinstance(given, dict):
            assert found.keys() == given.keys()
            for key in given:
                same(found[key], given[key])
        else:
            assert found == given

    same(torch.load(tmp_path / "file.pt", weights_only=True), value)
    same(pickles.read(tmp_path / "file.pt"), value)
    with pytest.raises(TypeError, match="no place in a file of tensors"):
        pickles.write(tmp_path / "other.pt", [{1.5}])


# ---- judged by the formats' definitions


def project(matrices: np.ndarray) -> np.ndarray:
    """Pixels (V, P, 2) of POINTS by projections (V, 3 or 4, 4)."""
    clip = matrices[:, :3] @ np.concatenate([POINTS.T, np.ones((1, len(POINTS)))])
    return np.swapaxes(clip[:, :2] / clip[:, 2:3], 1, 2)


def test_llff_as_its_readers_take_it(plain: Path, tmp_path: Path) -> None:
    exported(plain, "llff", tmp_path / "out")
    for uid, name in names(tmp_path / "out").items():
        one = scene(uid, "plain")
        rows = np.load(tmp_path / "out" / name / "poses_bounds.npy")
        assert rows.shape == (VIEWS, 17) and rows.dtype == np.float64
        matrix, (near, far) = rows[:, :15].reshape(-1, 3, 5), rows[:, 15:].T
        down, right, backward, centre = (matrix[:, :, place] for place in range(4))
        height, width, focal = matrix[:, :, 4].T
        assert (height == HW[0]).all() and (width == HW[1]).all()
        arms = POINTS[None] - centre[:, None]
        z = -np.einsum("vpi,vi->vp", arms, backward)
        x, y = np.einsum("vpi,vi->vp", arms, right) / z, np.einsum("vpi,vi->vp", arms, down) / z
        found = np.stack([focal[:, None] * x + width[:, None] / 2, focal[:, None] * y + height[:, None] / 2], -1)
        np.testing.assert_allclose(found, expected(one), atol=1e-3)
        assert (z > near[:, None]).all() and (z < far[:, None]).all()


def test_neus_as_its_readers_take_it(rich: Path, tmp_path: Path) -> None:
    exported(rich, "neus", tmp_path / "out")
    for uid, name in names(tmp_path / "out").items():
        one, folder = scene(uid, "rich"), tmp_path / "out" / name
        arrays = np.load(folder / "cameras_sphere.npz")
        assert len(arrays.files) == 2 * VIEWS == 2 * len(list((folder / "image").iterdir()))
        found = project(np.stack([arrays[f"world_mat_{view}"].astype(np.float64) for view in range(VIEWS)]))
        np.testing.assert_allclose(found + 0.5, expected(one), atol=2e-3)  # whole numbers are centres there
        np.testing.assert_allclose(arrays["scale_mat_0"], np.diag([0.5, 0.5, 0.5, 1]))
        mask = images.decode((folder / "mask" / "000.png").read_bytes())
        assert (mask[..., 0] == images.decode(one.by_width[64].layers["alpha"][0])).all() and mask.shape == (*HW, 3)


def test_lvsm_as_its_dataset_takes_it(rich: Path, tmp_path: Path) -> None:
    made = exported(rich, "lvsm", tmp_path / "out")
    assert "9 views" in made.notes[1]
    listed = (tmp_path / "out/train/full_list.txt").read_text().splitlines()
    assert len(listed) == len(UIDS)
    uid_of = {name: uid for uid, name in names(tmp_path / "out").items()}
    for path in listed:
        facts = json.loads(Path(path).read_text())
        assert "." not in facts["scene_name"] and Path(path).stem == facts["scene_name"]
        one = scene(uid_of[facts["scene_name"]], "rich")
        k = np.array([frame["fxfycxcy"] for frame in facts["frames"]])
        w2c = np.array([frame["w2c"] for frame in facts["frames"]])
        calibration = np.tile(np.eye(3), (VIEWS, 1, 1))
        calibration[:, [0, 1], [0, 1]], calibration[:, :2, 2] = k[:, :2], k[:, 2:]
        np.testing.assert_allclose(project(calibration @ w2c[:, :3]), expected(one), atol=1e-3)
        for frame, jpeg in zip(facts["frames"], one.by_width[64].jpegs, strict=True):
            assert Path(frame["image_path"]).read_bytes() == jpeg


def test_instant_ngp_as_its_loader_takes_it(rich: Path, tmp_path: Path) -> None:
    exported(rich, "instant-ngp", tmp_path / "out")
    for uid, name in names(tmp_path / "out").items():
        facts = json.loads((tmp_path / "out" / name / "transforms.json").read_text())
        assert facts["aabb_scale"] == 1 and not {"k3", "k4", "x_fov"} & facts.keys()
        one = scene(uid, "rich")
        for view, frame in enumerate(facts["frames"]):
            right, up, backward, centre = np.array(frame["transform_matrix"])[:3].T
            arms = POINTS - centre
            x, y = (arms @ right) / -(arms @ backward), -(arms @ up) / -(arms @ backward)
            found = np.stack([frame["fl_x"] * x + frame["cx"], frame["fl_y"] * y + frame["cy"]], -1)
            np.testing.assert_allclose(found, expected(one)[view], atol=1e-3)
            assert (frame["w"], frame["h"]) == (64, 48)


@pytest.mark.parametrize("kind", ["plain", "square"])
def test_nerf_synthetic_as_its_loader_takes_it(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    exported(request.getfixturevalue(kind), "nerf-synthetic", tmp_path / "out")
    hw = HW if kind == "plain" else (64, 64)
    for uid, name in names(tmp_path / "out").items():
        one = scene(uid, "plain") if kind == "plain" else scene(uid, "zero123", hw, 12)
        (views,) = one.by_width.values()
        seen: dict[str, list[int]] = {}
        for role in ("train", "val", "test"):
            facts = json.loads((tmp_path / "out" / name / f"transforms_{role}.json").read_text())
            focal = 0.5 * hw[1] / math.tan(0.5 * facts["camera_angle_x"])
            for frame in facts["frames"]:
                right, up, backward, centre = np.array(frame["transform_matrix"])[:3].T
                view = int(np.abs(one.c2w[:, :3, 3] - centre).sum(-1).argmin())
                seen.setdefault(role, []).append(view)
                arms = POINTS - centre
                x, y = (arms @ right) / -(arms @ backward), -(arms @ up) / -(arms @ backward)
                found = np.stack([focal * x + hw[1] / 2, focal * y + hw[0] / 2], -1)
                np.testing.assert_allclose(found, expected(one)[view], atol=1e-3)
                png = (tmp_path / "out" / name / f"{frame['file_path']}.png").read_bytes()
                rgba = images.decode_straight(png)
                back = images.srgb8(images.over(images.premultiplied(rgba)))
                off = np.abs(back.astype(int) - images.decode(views.jpegs[view]).astype(int))
                assert rgba.shape == (*hw, 4) and np.percentile(off, 99) <= 2, off.max()
        assert not set(seen["train"]) & set(seen["test"]) and len(seen["train"]) + len(seen["test"]) == len(one.c2w)


# ---- there and back


def back(source: str, out: Path, **scene: Any) -> dict[str, Posed]:
    """Uid -> views of an export as `import` reads them."""
    from pipeline import sources

    cfg = ImportConfig(source=source, input=out, scene=PosedConfig(**scene)).resolved()
    module = sources.load(source)
    uid_of = {name: uid for uid, name in names(out).items()}
    found = {}
    for item in module.items(cfg, 0):
        found[uid_of.get(item.uid, item.uid)] = module.load(item, Path(item.url), cfg)
    return found


@pytest.mark.parametrize(
    ("to", "source"),
    [
        ("nerfstudio", "nerfstudio"),
        ("instant-ngp", "instant-ngp"),
        ("colmap", "colmap"),
        ("pixelsplat", "pixelsplat"),
        ("lvsm", "re10k-frames"),
        ("webdataset", "webdataset"),
    ],
)
def test_what_goes_out_comes_back(to: str, source: str, rich: Path, tmp_path: Path) -> None:
    exported(rich, to, tmp_path / "out")
    found = back(source, tmp_path / "out")
    assert set(found) == set(UIDS)
    for uid, posed in found.items():
        one = scene(uid, "rich")
        (views,) = one.by_width.values()
        assert posed.images == views.jpegs
        np.testing.assert_allclose(posed.c2w, one.c2w, atol=1e-6)
        np.testing.assert_allclose(posed.fxfycxcy, views.intrinsics, rtol=1e-6)
    cfg = PosedConfig(res=(64,), views=VIEWS, crop="none").resolved()
    made = to_scene(Item("chair", "local"), found["chair"], cfg)
    one = scene("chair", "rich")
    np.testing.assert_allclose(made.c2w, one.c2w, atol=1e-6)
    np.testing.assert_allclose(made.by_width[64].intrinsics, one.by_width[64].intrinsics, rtol=1e-6)
    assert made.by_width[64].jpegs == one.by_width[64].jpegs


@pytest.mark.parametrize("to", ["llff", "nerf-synthetic"])
def test_formats_of_one_camera_come_back(to: str, plain: Path, tmp_path: Path) -> None:
    exported(plain, to, tmp_path / "out")
    for uid, posed in back(to, tmp_path / "out").items():
        one = scene(uid, "plain")
        (views,) = one.by_width.values()
        order = range(VIEWS)
        if to == "nerf-synthetic":  # the splits follow each other, and every eighth view is for tests
            order = [*range(7), 8, 7, 7]
            assert posed.roles == ["train"] * 8 + ["val", "test"]
            decoded = [images.decode_straight(data)[..., :3] for data in posed.images]
            assert all(
                (rgb == images.decode(views.jpegs[view])).all() for rgb, view in zip(decoded, order, strict=True)
            )
        else:
            assert posed.images == views.jpegs
        np.testing.assert_allclose(posed.c2w, one.c2w[list(order)], atol=1e-6)
        np.testing.assert_allclose(posed.fxfycxcy, views.intrinsics[list(order)], rtol=1e-6)


def test_tars_come_back_with_their_splits_by_the_command(plain: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": [5, 1, 2], "test": [0]}))
    exported(plain, "webdataset", tmp_path / "tars", split_indices=split)
    options = ("--res", 64, "--crop", "none", "--executor", "inline", "--val-percent", 0, "--out", tmp_path / "back")
    done = lvsm_data_here("import", "--input", tmp_path / "tars", "--n", 3, *options)
    assert done.returncode == 0 and "looks like webdataset" in done.stdout + done.stderr, done.stderr
    again = Dataset(tmp_path / "back")
    assert set(again.uids) == set(UIDS)
    for one in again:
        jpegs = scene(one.uid, "plain").by_width[64].jpegs
        kept = dict(zip(one.jpegs, one.roles or (), strict=True))
        assert kept == {jpegs[0]: "test", jpegs[1]: "train", jpegs[2]: "train", jpegs[5]: "train"}


def test_tars_that_cannot_be_read_are_refused(plain: Path, tmp_path: Path) -> None:
    exported(plain, "webdataset", tmp_path / "out", uid=("chair",))
    tar = tmp_path / "out/train-000000.tar"
    with tarfile.open(tar) as file:
        members = {member.name: file.extractfile(member).read() for member in file.getmembers()}  # type: ignore[union-attr]

    def told(changes: dict[str, bytes | None]) -> str:
        with tarfile.open(tar, "w") as file:
            for name, data in (members | changes).items():
                if data is not None:
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    file.addfile(member, io.BytesIO(data))
        with pytest.raises(Skip) as failure:
            back("webdataset", tmp_path / "out")
        return failure.value.reason

    facts = json.loads(members["chair_0003.json"])
    assert told({"chair_0003.json": None}) == "count_mismatch"
    for wrong in ({"c2w": None}, {"c2w": [[math.nan] * 4] * 4}, {"fxfycxcy": [1, 2]}, {"fxfycxcy": "wide"}):
        assert told({"chair_0003.json": json.dumps(facts | wrong).encode()}) == "bad_cameras"
    assert told({"chair_0003.json": b"[]"}) == "bad_cameras"
    tar.write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match=r"train-000000\.tar"):
        back("webdataset", tmp_path / "out")


def test_zero123_comes_back(square: Path, tmp_path: Path) -> None:
    exported(square, "zero123", tmp_path / "out")
    assert json.loads((tmp_path / "out/valid_paths.json").read_text()) == list(names(tmp_path / "out").values())
    for uid, posed in back("zero123", tmp_path / "out").items():
        one = scene(uid, "zero123", (64, 64), 12)
        np.testing.assert_allclose(posed.c2w, one.c2w, atol=1e-6)
        np.testing.assert_allclose(posed.fxfycxcy, one.by_width[64].intrinsics, rtol=1e-5)
        assert images.decode_straight(posed.images[0]).shape == (64, 64, 4)


def test_neus_comes_back_with_its_masks(rich: Path, tmp_path: Path) -> None:
    exported(rich, "neus", tmp_path / "out")
    for uid, posed in back("neus", tmp_path / "out", alpha=True).items():
        one = scene(uid, "rich")
        np.testing.assert_allclose(posed.c2w, one.c2w, atol=1e-6)
        for data, alpha, jpeg in zip(
            posed.images, one.by_width[64].layers["alpha"], one.by_width[64].jpegs, strict=True
        ):
            rgba = images.decode_straight(data)
            np.testing.assert_array_equal(rgba[..., 3], images.decode(alpha))
            again = images.srgb8(images.over(images.premultiplied(rgba), images.linear(np.array(GREY, np.uint8))))
            assert np.percentile(np.abs(again.astype(int) - images.decode(jpeg)), 99) <= 2


def test_colours_on_grey_are_taken_off_it(rich: Path, tmp_path: Path) -> None:
    from pipeline.export import exporter

    data = Dataset(rich)
    one = data["chair"]
    shots = exporter._shots(one, data.facts, [0], [""])
    rgba = images.decode_straight(shots.rgba(0))
    again = images.srgb8(images.over(images.premultiplied(rgba), images.linear(np.array(GREY, np.uint8))))
    off = np.abs(again.astype(int) - one.images[0].astype(int))
    assert np.percentile(off, 99) <= 2 and (rgba[..., 3] == one.layer("alpha")[0]).all()
    assert (rgba[..., 3] == 0).any() and not rgba[rgba[..., 3] == 0].any()  # black, no noise, where nothing is


def test_thin_edges_have_the_colour_of_what_they_belong_to() -> None:
    from pipeline.poses.shots import Shots

    row, column = np.mgrid[:64, :64] + 0.5
    share = np.clip((20 - np.hypot(row - 32, column - 32)) / 3 + 0.5, 0, 1)  # a disc, three pixels of edge
    coverage = np.round(share * 255).astype(np.uint8)
    share, colour = coverage[..., None] / 255, np.array([200, 40, 30], np.uint8)
    for level in (255, 160):
        behind = np.full(3, level, np.uint8)
        picture = images.srgb8(share * images.linear(colour) + (1 - share) * images.linear(behind))
        rest = {
            "c2w": np.eye(4)[None],
            "fxfycxcy": np.ones((1, 4)),
            "hw": (64, 64),
            "roles": [""],
            "background": behind.tolist(),
        }
        shots = Shots("a", "a", [images.encode_jpeg(picture, 90)], alpha=[images.encode_png(coverage)], **rest)
        rgba = images.decode_straight(shots.rgba(0))
        off = np.abs(rgba[..., :3].astype(int) - colour).max(-1)
        thin = (coverage > 0) & (coverage < 64)
        assert thin.sum() > 50 and off[thin].mean() < 45 and off[coverage == 255].max() < 20, (
            level
        )  # 67 and 53 by themselves
        back = images.srgb8(images.over(images.premultiplied(rgba), images.linear(behind)))
        assert np.abs(back.astype(int) - images.decode(shots.jpegs[0])).mean() < 1.5


# ---- which views, and what is refused


def test_every_k_th_view_and_the_last(plain: Path, tmp_path: Path) -> None:
    made = exported(plain, "nerfstudio", tmp_path / "out", every=3, keep_ends=True, uid=("chair",))
    assert (made.objects, made.views) == (1, 4)
    jpegs = scene("chair", "plain").by_width[64].jpegs
    folder = tmp_path / "out" / "chair" / "images"
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == [jpegs[view] for view in (0, 3, 6, 8)]


def test_only_objects_of_a_kind_go_out(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "run", (64,), (), FACTS, 1e12)
    kinds = {"a": (True, False), "b": (True, True), "c": (False, True), "d": (True, None)}
    for uid, (textured, animated) in kinds.items():
        one = scene(uid, "plain")
        one.meta.update({"textured": textured} | ({} if animated is None else {"animated": animated}))
        writer.add(one, "train", 0)
    writer.close("train")

    def uids(*only: str, **more: Any) -> set[str]:
        out = tmp_path / "-".join(("out", *only, *more))
        exported(tmp_path / "run", "nerfstudio", out, only=only, **more)
        return set(names(out))

    assert uids("textured") == {"a", "b", "d"} and uids("textured", "animated") == {"b"}
    assert uids("animated", n=1) == {"b"} and uids("textured", uid=("d", "c")) == {"d"}
    with pytest.raises(UserError, match="no object is colored"):
        uids("colored")
    with pytest.raises(UserError, match="--only"):
        ExportConfig(tmp_path / "run", to="hf", out=tmp_path / "hf", only=("textured",)).resolved()


def test_splits_by_uid(plain: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"chair": {"train": [5, 1], "test": [0]}}))
    exported(plain, "pixelsplat", tmp_path / "out", split_indices=split, uid=("chair",))
    (record,) = pickles.read(tmp_path / "out/test/000000.torch")  # training would see views that are for tests
    jpegs = scene("chair", "plain").by_width[64].jpegs
    assert [image.tobytes() for image in record["images"]] == [jpegs[view] for view in (0, 1, 5)]
    assert not (tmp_path / "out/train").exists()
    made = exported(plain, "lvsm", tmp_path / "lvsm", split_indices=split, uid=("chair",))
    assert not any("view selector" in note for note in made.notes)  # there is nothing to train on
    for folder in ("out", "lvsm"):  # views by their places in the export
        index = json.loads((tmp_path / folder / "test/evaluation_index.json").read_text())
        assert index == {names(tmp_path / folder)["chair"]: {"context": [1, 2], "target": [0]}}
    split.write_text(json.dumps({"train": [5], "val": [0]}))
    said = {to: exported(plain, to, tmp_path / to, split_indices=split).notes for to in ("pixelsplat", "colmap")}
    assert any("exactly 2 given views" in note for note in said["pixelsplat"])
    assert any("no place for splits" in note for note in said["colmap"])


def test_the_split_that_views_have_goes_out_with_them(tmp_path: Path) -> None:
    """So that views for tests train nowhere else either; what no role names trains, and --split-indices goes before."""
    run = tmp_path / "run"
    writer = ShardWriter(run, (64,), (ROLE,), FACTS, 1e12)
    roles = {"chair": ["train", "test", "", "train", "test", "", "train", "train", "test"], "plain": [""] * VIEWS}
    for uid, own in roles.items():
        writer.add(dataclasses.replace(scene(uid, "plain"), roles=own), "train", 0)
    writer.close("train")
    exported(run, "nerfstudio", tmp_path / "ns", every=2)
    facts = {uid: json.loads((tmp_path / "ns" / uid / "transforms.json").read_text()) for uid in roles}
    assert facts["chair"]["train_filenames"] == [f"images/{place:05d}.jpg" for place in (0, 1, 3)]  # of views 0 2 4 6 8
    assert facts["chair"]["test_filenames"] == [f"images/{place:05d}.jpg" for place in (2, 4)]
    assert not any(key.endswith("_filenames") for key in facts["plain"])
    exported(run, "nerf-synthetic", tmp_path / "nerf", uid=("chair",))
    frames = {role: foreign.read_json(tmp_path / f"nerf/chair/transforms_{role}.json")["frames"] for role in ROLES}
    assert {role: len(of) for role, of in frames.items()} == {"train": 6, "val": 3, "test": 3}
    exported(run, "lvsm", tmp_path / "lvsm")
    assert [(tmp_path / f"lvsm/{split}/metadata/chair.json").exists() for split in ("train", "test")] == [False, True]
    exported(run, "webdataset", tmp_path / "tars", uid=("chair",))
    with tarfile.open(tmp_path / "tars/test-000000.tar") as tar:
        assert len(tar.getnames()) == 2 * 3
    assert any("no place for splits" in note for note in exported(run, "colmap", tmp_path / "colmap").notes)
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": [1], "val": [0]}))
    exported(run, "nerf-synthetic", tmp_path / "other", uid=("chair",), split_indices=split)
    frames = {role: foreign.read_json(tmp_path / f"other/chair/transforms_{role}.json")["frames"] for role in ROLES}
    assert {role: len(of) for role, of in frames.items()} == {"train": 1, "val": 1, "test": 1}  # val again for tests


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two scenes, of which one moves: its views are of different times, that of one is not known."""
    run = tmp_path_factory.mktemp("moving") / "run"
    writer = ShardWriter(run, (64,), (TIME,), FACTS, 1e12)
    writer.add(dataclasses.replace(scene("chair", "plain"), times=TIMES), "train", 0)
    writer.add(scene("plain", "plain"), "train", 0)
    writer.close("train")
    return run


TIMES = [0.0, 0.25, 0.5, 0.0, None, 0.25, 0.5, 0.0, 1 / 3]


@pytest.mark.parametrize(
    ("to", "source", "times"),
    [
        ("nerfstudio", "nerfstudio", TIMES),
        ("instant-ngp", "instant-ngp", TIMES),
        ("webdataset", "webdataset", TIMES),
        ("nerf-synthetic", "d-nerf", [*TIMES[:7], TIMES[8], TIMES[7], TIMES[7]]),  # every eighth view is for tests
    ],
)
def test_times_go_out_and_come_back(
    to: str, source: str, times: list[float | None], moving: Path, tmp_path: Path
) -> None:
    exported(moving, to, tmp_path / "out")
    found = back(source, tmp_path / "out")
    assert list(found["chair"].times) == times and found["chair"].moves
    assert list(found["plain"].times) == [] and not found["plain"].moves


def test_formats_without_times_refuse_what_moves(moving: Path, tmp_path: Path) -> None:
    for to in ("colmap", "llff", "lvsm", "pixelsplat"):
        with pytest.raises(UserError, match=rf"{to} has no place for times \(--split-indices names views of one\)"):
            exported(moving, to, tmp_path / to, uid=("chair",))
    assert exported(moving, "colmap", tmp_path / "still", uid=("plain",)).objects == 1
    (tmp_path / "split.json").write_text('{"train": [0, 3, 7]}')  # the views at time 0
    one = exported(moving, "colmap", tmp_path / "one", uid=("chair",), split_indices=tmp_path / "split.json")
    assert one.views == 3


def test_a_run_that_is_imported_keeps_its_times(moving: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    flags = ("--no-verify-cameras", "--crop", "none", "--executor", "inline", "--n", 2, "--views", 9)
    done = lvsm_data_here("import", "--source", "shards", "--input", moving, *flags, "--out", out)
    assert done.returncode == 0, done.stderr
    data = Dataset(out)
    assert data.objects()["instants"] == [4 if uid == "chair" else None for uid in data.uids]
    assert data["chair"].times == TIMES and data["plain"].times == [None] * VIEWS
    verified = lvsm_data_here("verify", out)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_objects_that_the_run_holds_out_are_not_for_training(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "run", (64,), (), FACTS, 1e12)
    for uid, split in zip(UIDS, ("train", "val", "train"), strict=True):
        writer.add(scene(uid, "plain"), split, 0)
    for split in ("train", "val"):
        writer.close(split)
    for to in ("pixelsplat", "lvsm", "webdataset", "nerfstudio"):
        exported(tmp_path / "run", to, tmp_path / to)
    name = names(tmp_path / "lvsm")
    for split, held in (("train", [UIDS[0], UIDS[2]]), ("test", [UIDS[1]])):
        wanted = sorted(name[uid] for uid in held)
        assert sorted(json.loads((tmp_path / "pixelsplat" / split / "index.json").read_text())) == wanted
        listed = (tmp_path / "lvsm" / split / "full_list.txt").read_text().split("\n")[:-1]
        assert sorted(Path(path).stem for path in listed) == wanted
    for split, wanted_views in (("train", 2 * VIEWS), ("val", VIEWS)):
        with tarfile.open(tmp_path / "webdataset" / f"{split}-000000.tar") as tar:
            members = [member for member in tar.getnames() if member.endswith(".jpg")]
        own = [member for member in members if member.startswith(f"{name[UIDS[1]]}_")]
        assert len(members) == wanted_views and len(own) == (VIEWS if split == "val" else 0)
    facts = json.loads((tmp_path / "nerfstudio" / name[UIDS[1]] / "transforms.json").read_text())
    assert "val_filenames" not in facts  # its views are a scene of their own, to train on


@pytest.mark.parametrize(
    ("to", "run", "error"),
    [
        ("llff", "rich", "LLFF has one camera for all views, and intrinsics differ"),
        ("nerf-synthetic", "rich", "one camera for all views"),
        ("zero123", "plain", r"49.134 degrees and squares, these have 50.000 degrees .render --fov-x-deg 49.13434"),
        ("neus", "plain", "the run has no alpha"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    to: str, run: str, error: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=error):
        exported(request.getfixturevalue(run), to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_orthographic_views_are_no_pinholes(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "run", (64,), (INTRINSICS["ortho"],), FACTS, 1e12)
    writer.add(scene("chair", "plain"), "train", 0)
    writer.close("train")
    for to in FORMATS:
        with pytest.raises(UserError, match="orthographic views, which only --to hf holds"):
            exported(tmp_path / "run", to, tmp_path / to)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--uid", "nobody"), "has no object nobody"),
        (("--every", "0"), "--every and --n must be 1 or more"),
        (("--keep-ends",), "--keep-ends has no effect without --every"),
        (("--res", "32"), "has no pictures of 32 pixels"),
        (("--split-indices", "no.json"), "cannot be read"),
        (("--split-indices", "beyond.json"), "has no view 9"),
        (("--split-indices", "twice.json"), "view 1 is in train and in test"),
        (("--split-indices", "other.json"), "has no views of train, val, test there"),
    ],
)
def test_flags_that_cannot_be(
    arguments: tuple[str, ...], error: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (
        ("beyond", {"train": [0, 9]}),
        ("twice", {"train": [0, 1], "test": [1]}),
        ("other", {"else": {"train": [0]}}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    done = lvsm_data_here("export", plain, "--out", "new", *arguments)
    assert done.returncode == 2 and error in done.stderr, done.stderr
    assert not (tmp_path / "new").exists()


def test_an_export_never_mixes_with_what_is_there(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = lvsm_data_here("export", plain, "--out", tmp_path)
    assert done.returncode == 2 and "is there already" in done.stderr and (tmp_path / "mine.txt").exists()


# ---- stopped, on a full disk, of a damaged run


@pytest.mark.parametrize("to", ["nerfstudio", "lvsm", "hf"])
@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "the same command starts anew"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "is full"),
        (OSError(errno.EROFS, "Read-only file system"), 2, "cannot be written"),
    ],
)
def test_a_stopped_export_leaves_nothing_under_its_name(
    to: str, raised: BaseException, status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write(tmp_path / "run", "plain")
    with Ledger(run / "ledger.sqlite") as ledger:
        for uid in UIDS:
            ledger._db.execute("INSERT INTO item (uid, state, finished) VALUES (?, 'delivered', 0)", (uid,))
    out, part = tmp_path / "out", tmp_path / ".out.part"
    command = ("export", run, "--to", to, "--out", out)

    def stops(*_: Any) -> None:
        assert part.is_dir() and not out.exists()
        raise raised

    with monkeypatch.context() as patch:
        patch.setattr(exporter, "_views", stops)
        patch.setattr(hub, "_link", stops)
        done = lvsm_data_here(*command)
    assert done.returncode == status and said in done.stderr, done.stderr
    assert not out.exists() and not part.exists()
    (part / "chair").mkdir(parents=True)  # as a killed process leaves it
    (part / "chair" / "half").write_bytes(b"half")
    handle = os.open(part, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert "being written by another process" in lvsm_data_here(*command).stderr and (part / "chair/half").exists()
    os.close(handle)
    done = lvsm_data_here(*command)
    assert done.returncode == 0 and str(out) in done.stdout and ".part" not in done.stdout, done.stderr
    assert not part.exists() and not list(out.rglob("half"))
    texts = [path for kind in ("json", "txt", "md") for path in out.rglob(f"*.{kind}")]
    assert texts and not any(".out.part" in path.read_text() for path in texts)
    if to == "lvsm":
        (listed,) = out.rglob("full_list.txt")
        for path in listed.read_text().split():
            assert all(Path(frame["image_path"]).is_file() for frame in json.loads(Path(path).read_text())["frames"])


def test_damage_is_named(tmp_path: Path) -> None:
    """Pages by their checksums; pictures where a format decodes them."""
    run = write(tmp_path / "run", "rich")
    (shard,) = run.rglob("*.parquet")
    sound = shard.read_bytes()
    at = sound.index(scene(UIDS[1], "rich").by_width[64].jpegs[3])
    shard.write_bytes(sound[: at + 300] + bytes([sound[at + 300] ^ 255]) + sound[at + 301 :])
    done = lvsm_data_here("export", run, "--out", tmp_path / "out")
    assert done.returncode == 2 and UIDS[1] in done.stderr and f"lvsm-data verify {run}" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()
    writer = ShardWriter(tmp_path / "other", (64,), ("alpha", "depth"), FACTS, 1e12)
    one = scene("chair", "rich")
    one.by_width[64].jpegs[2] = b"no picture"
    writer.add(one, "train", 0)
    writer.close("train")
    done = lvsm_data_here("export", tmp_path / "other", "--to", "neus", "--out", tmp_path / "out")
    assert done.returncode == 2 and "chair cannot be read" in done.stderr and "lvsm-data verify" in done.stderr
    assert not (tmp_path / "out").exists()


def test_objects_that_lack_are_said(tmp_path: Path) -> None:
    run = write(tmp_path / "run of mine", "plain")
    with Ledger(run / "ledger.sqlite") as ledger:
        for uid in (*UIDS, "lost"):
            ledger._db.execute("INSERT INTO item (uid, state, finished) VALUES (?, 'delivered', 0)", (uid,))
    for folder in (run, run / "64"):
        said = lvsm_data_here("export", folder, "--out", tmp_path / f"out-{folder.name}").stdout
        assert f"only 3 of 4 delivered objects stand in shards: `lvsm-data verify '{run}'`" in said


def test_widths_are_chosen_by_a_flag(tmp_path: Path) -> None:
    write(tmp_path / "run", "plain")
    write(tmp_path / "run", "plain", (96, 128))
    for command in (("export",), ("paths", "--run")):
        done = lvsm_data_here(*command, tmp_path / "run", "--out", tmp_path / "out")
        assert done.returncode == 2 and "choose one: --res 64" in done.stderr, done.stderr


def test_the_default_folder_is_beside_the_run(tmp_path: Path) -> None:
    run = write(tmp_path / "run", "plain")
    (run / "run.json").write_text("{}")
    for folder, out in ((run, "run-colmap"), (run / "64", "run-64-colmap")):
        assert ExportConfig(folder, to="colmap").resolved().out == tmp_path / out
