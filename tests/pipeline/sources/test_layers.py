"""Depth, normals and base colour of rendered sets: what shards hold lies on the objects that the sets' files were made of.

Every set's files are written here as the set defines them, from balls that rays hit; shards are read as docs/shard_format.md says
them.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.core.errors import Skip, UserError
from pipeline.core.records import Posed, Scene
from pipeline.worker import silhouettes
from tests import balls, foreign, importing, trees
from tests.importing import SOURCES, config, imported, only, zipped

os.environ["OPENCV_IO_ENABLE_OPENEXR"] = "1"
import cv2

SIZE, FOV = 64, 0.691111
FOCAL = 0.5 / np.tan(FOV / 2)  # widths
UID = foreign.UID
TURN = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenCV's axes of a camera -> Blender's


@dataclass
class Shot:
    """A view by the balls' own geometry. depth: 0 where nothing is; normals: of the world; base: sRGB bytes."""

    c2w: np.ndarray
    rgba: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    base: np.ndarray


def shot(scene: trees.Balls, c2w: np.ndarray) -> Shot:
    depth = trees.depth_of(scene, c2w, FOCAL, SIZE)
    grid = ((np.arange(SIZE) + 0.5) / SIZE - 0.5) / FOCAL
    right, down, forward, eye = c2w[:3].T
    points = eye + depth[..., None] * (grid[:, None, None] * down + grid[:, None] * right + forward)
    which = np.linalg.norm(points[:, :, None] - scene.centres, axis=-1).argmin(-1)
    out = (points - scene.centres[which]) / scene.radius * (depth > 0)[..., None]
    return Shot(c2w, trees.draw(scene, c2w, FOCAL, SIZE), depth, out, 255 - scene.colours[which])


@functools.cache
def shots() -> tuple[trees.Balls, tuple[Shot, ...]]:
    scene = trees.Balls.of(5, 0.42)
    places = [trees.on_sphere(47.0 * view, 60.0 * np.sin(view), 1.6 + 0.05 * view) for view in range(6)]
    return scene, tuple(shot(scene, trees.look_at(place)) for place in places)


def png16(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits from red, green, blue, alpha, or grey."""
    swapped = pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3]]
    return bytes(cv2.imencode(".png", np.round(swapped).astype(np.uint16))[1])


def exr(pixels: np.ndarray) -> bytes:
    """An OpenEXR file from red, green, blue and maybe alpha."""
    swapped = np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]].astype(np.float32))
    return bytes(cv2.imencode(".exr", swapped)[1])


def axes(one: Shot) -> bytes:
    """x, y, z, origin and fields of view, as G-Objaverse and Cap3D write them."""
    facts = dict(zip(("x", "y", "z", "origin"), one.c2w[:3].T.tolist(), strict=True))
    return json.dumps(facts | {"x_fov": FOV, "y_fov": FOV, "max_depth": 5.0}).encode()


def gobjaverse(folder: Path) -> Path:
    """Normals in Unity's axes of the world (x, y, z in blue, green, red); nonsense as depth where nothing is."""
    for view, one in enumerate(shots()[1]):
        nx, ny, nz = np.moveaxis(one.normals, -1, 0)
        depth = np.where(one.depth > 0, one.depth, [0.0, 0.2] * (SIZE // 2))
        nothing = np.where(one.depth > 0, 0, np.nan)
        data = {"_nd.exr": exr(np.stack([-nx + nothing, nz, -ny, depth], -1)), ".json": axes(one)}
        data |= {".png": trees.rgba_png(one.rgba), "_albedo.png": trees.rgba_png(one.base)}
        foreign.write_files(folder, {f"1/7/campos_512_v4/{view:05d}/{view:05d}{end}": one for end, one in data.items()})
    return folder


def gobjaverse_zip(folder: Path) -> Path:
    made = gobjaverse(folder / "made")
    return zipped(folder / "all.zip", {str(path.relative_to(made)): path.read_bytes() for path in made.rglob("*.*")})


def dome(folder: Path) -> Path:
    """As tests/trees.py writes it, with normals too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = trees.dome(folder, objects=1, size=SIZE)
    path = folder / "datasets" / made.repo / "dome_objaverse/0/10010.parquet"
    (scene,), rows = made.scenes.values(), pq.read_table(path).to_pylist()
    for row in rows:
        one = shot(scene, trees.dome_camera(row["view_id"], 1.5))
        shares = np.concatenate([(one.normals[..., ::-1] + 1) / 2, one.depth[..., None] / 5], -1)
        row["nd_png"] = png16(65535 * shares)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return folder / "datasets" / made.repo


def cap3d(folder: Path) -> Path:
    files = {}
    for view, one in enumerate(shots()[1]):
        depth = png16(np.where(one.depth > 0, 65535 * one.depth / 5, 65535))
        files |= {f"{view:05d}.json": axes(one), f"{view:05d}_depth.png": depth}
        files |= {f"{view:05d}.png": trees.rgba_png(one.rgba), f"{view:05d}_MatAlpha.png": b"not read"}
    folder.mkdir(parents=True, exist_ok=True)
    return zipped(folder / "outer.zip", {f"imgs/{UID}.zip": zipped(folder / "inner.zip", files).read_bytes()})


def arb(folder: Path, fov: bool = True) -> dict[str, bytes]:
    """Files of an object: two lights; normals along the camera's right, up and back in blue, green and red."""
    files, poses = {}, []
    for view, one in enumerate(shots()[1]):
        own = one.normals @ (one.c2w @ TURN)[:3, :3]
        for light, share in (("0", 1.0), ("1", 0.5)):
            rgba = (one.rgba * [share, share, share, 1]).astype(np.uint8)
            files[f"color_{light}_{view:02d}.png"] = trees.rgba_png(rgba)
        files[f"normal_{view:02d}.exr"] = exr((own[..., ::-1] + 1) / 2)
        files |= {f"albedo_{view:02d}.png": trees.rgba_png(one.base), f"orm_{view:02d}.png": b"not read"}
        poses.append((one.c2w @ TURN).tolist())
    facts = {"transform_matrix": poses, "azimuths": [0] * 6, "elevations": [0] * 6, "raidus": [1] * 6}
    files["camera.json"] = json.dumps(facts | ({"camera_angle_x": FOV} if fov else {})).encode()
    return files | {"lighting.json": b"{}"}


def arb_folder(folder: Path) -> Path:
    foreign.write_files(folder / "000-001" / UID, arb(folder))
    return folder


def arb_zip(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return zipped(folder / "000-001.zip", {f"000-001/{UID}/{name}": data for name, data in arb(folder).items()})


CASES: dict[str, tuple[str, Callable[[Path], Path], tuple[str, ...]]] = {
    "gobjaverse": ("gobjaverse", gobjaverse, ("depth", "normals", "albedo")),
    "gobjaverse-zip": ("gobjaverse", gobjaverse_zip, ("depth", "normals", "albedo")),
    "dome-objaverse": ("dome-objaverse", dome, ("depth", "normals")),
    "cap3d": ("cap3d", cap3d, ("depth",)),
    "arb-objaverse": ("arb-objaverse", arb_folder, ("normals", "albedo")),
    "arb-objaverse-zip": ("arb-objaverse", arb_zip, ("normals", "albedo")),
}


def layer(scene: Scene, width: int, name: str, view: int) -> np.ndarray:
    data, hw = scene.by_width[width].layers[name][view], scene.by_width[width].hw
    if name == "albedo":
        return np.asarray(Image.open(io.BytesIO(data)))
    return np.frombuffer(data, "<f4").reshape(*hw, *((3,) if name == "normals" else ()))


def on_the_balls(scene: Scene, truth: trees.Balls, width: int, layers: tuple[str, ...]) -> None:
    """Every pixel's rays are shot here, by what the stored columns say."""
    views = scene.by_width[width]
    for view, (c2w, k) in enumerate(zip(scene.c2w.astype(float), views.intrinsics.astype(float), strict=True)):
        # at half the size, what stands in a pixel is said of one of the four, the one below and right of its middle
        y, x = np.mgrid[:width, :width] + (0.5 if width == SIZE else 0.75)
        rays = np.stack([(x - k[2]) / k[0], (y - k[3]) / k[1], np.ones_like(x)], -1) @ c2w[:3, :3].T
        if "depth" in layers:
            depth = layer(scene, width, "depth", view)
            there = np.isfinite(depth)
            assert 0.01 < there.mean() < 0.5 and (depth[~there] == np.inf).all()
            points = c2w[:3, 3] + rays[there] * depth[there][:, None]
            from_centres = points[:, None] - truth.centres
            off = np.abs(np.linalg.norm(from_centres, axis=-1) - truth.radius)
            assert off.min(1).max() < 2e-3
        if "normals" in layers:
            normals = layer(scene, width, "normals", view)
            shown = (normals != 0).any(-1)
            assert 0.01 < shown.mean() < 0.5
            assert np.abs(np.linalg.norm(normals[shown], axis=-1) - 1).max() < 1e-3
            # where a ray meets a ball whose normal there this is: from the centre, one radius along the normal
            places = truth.centres[None] + truth.radius * normals[shown][:, None]
            towards = places - c2w[:3, 3]
            unit = rays[shown] / np.linalg.norm(rays[shown], axis=-1, keepdims=True)
            off = np.linalg.norm(np.cross(towards, unit[:, None]), axis=-1)
            assert off.min(1).max() < 4e-3
        if "albedo" in layers:
            base = layer(scene, width, "albedo", view)
            whole = np.isin(base.reshape(-1, 3), 255 - truth.colours).all(-1).reshape(base.shape[:2])
            alpha = np.asarray(Image.open(io.BytesIO(views.layers["alpha"][view])))
            assert (alpha == 255).sum() > 10 and whole[alpha == 255].mean() > 0.9 and (base[alpha == 0] == 0).all()


@pytest.mark.parametrize("case", CASES)
def test_what_sets_say_of_pixels_lies_on_the_object(case: str, tmp_path: Path) -> None:
    source, write, layers = CASES[case]
    given = write(tmp_path / "in")
    asked = dict.fromkeys(layers, True)
    scene = only(imported(source, given, tmp_path, res=(SIZE // 2, SIZE), alpha=True, **asked))
    truth = next(iter(trees.dome(tmp_path / "again", 1).scenes.values())) if source == "dome-objaverse" else shots()[0]
    assert scene.by_width[SIZE].layers.keys() == {"alpha", *layers}
    for width in (SIZE, SIZE // 2):
        on_the_balls(scene, truth, width, layers)
    plain = only(imported(source, given, tmp_path, res=(SIZE,)))
    assert not plain.by_width[SIZE].layers and plain.by_width[SIZE].jpegs == scene.by_width[SIZE].jpegs


@pytest.mark.parametrize("source", ["gobjaverse", "cap3d", "dome-objaverse"])
def test_cameras_are_proven_by_their_depth(source: str, tmp_path: Path) -> None:
    """Right ones leave no point in the air; a focal length off by a tenth, others' poses and other axes do."""
    case = CASES[source]
    cfg = config(source, case[1](tmp_path / "in"), tmp_path, depth=True)
    (item,) = SOURCES[source].items(cfg, 0)
    posed = SOURCES[source].load(item, Path(item.url), cfg)

    def judged(**changed: np.ndarray) -> tuple[str, float | None]:
        verdict = silhouettes.check(dataclasses.replace(posed, **changed))
        return verdict.says, verdict.floating

    says, floating = judged()
    assert says == "fits" and floating is not None and floating < 0.002
    for wrong in (
        {"fxfycxcy": posed.fxfycxcy * [0.9, 0.9, 1, 1]},
        {"fxfycxcy": posed.fxfycxcy * [1.1, 1.1, 1, 1]},
        {"c2w": np.roll(posed.c2w, 1, 0)},
        {"c2w": posed.c2w @ TURN},
        {"c2w": np.linalg.inv(posed.c2w)},
    ):
        assert judged(**wrong)[0] != "fits"
    assert judged(fxfycxcy=posed.fxfycxcy * [1.1, 1.1, 1, 1])[0] == "does_not_fit"


def test_a_ball_proves_no_cameras_by_its_depth(tmp_path: Path) -> None:
    ball = trees.Balls(np.zeros((3, 3)), 0.3, np.diag([220, 200, 240]).astype(np.uint8))
    views = [shot(ball, trees.look_at(trees.on_sphere(40.0 * view, 20.0, 1.5))) for view in range(6)]
    pictures = [trees.rgba_png(one.rgba) for one in views]
    k = np.tile([FOCAL * SIZE, FOCAL * SIZE, SIZE / 2, SIZE / 2], (6, 1))
    depths = [np.where(one.depth > 0, one.depth, np.inf).astype(np.float32) for one in views]
    c2w = np.stack([one.c2w for one in views])
    for poses in (c2w, np.roll(c2w, 2, 0)):
        posed = Posed(pictures, poses, k, layer=lambda name, view: depths[view])
        assert silhouettes.check(posed).floating is None


@pytest.mark.parametrize("tilt", [0.0, 0.2])
def test_hypersims_distances_become_depths(tilt: float, tmp_path: Path) -> None:
    """Distances from the camera's centre in metres, of scenes in inches; lenses with tilt too."""
    eyes = balls.walk(3, (64, 80))
    root = foreign.hypersim(tmp_path / "in", eyes, tilt)
    images, inch = root / "scenes/ai_001_001/images", 0.0254
    for frame, one in enumerate(eyes):
        y, x = np.mgrid[: one.hw[0], : one.hw[1]] + 0.5
        rays = one.rays(x, y)
        along, ball = balls._hits(one.position, rays, balls.RADIUS)
        met = ball >= 0
        points = one.position + rays * np.where(met, along, 0)[..., None]
        out = np.where(met[..., None], (points - balls.CENTRES[ball]) / balls.RADIUS, np.nan)
        values = {"depth_meters": np.where(met, np.linalg.norm(points - one.position, axis=-1) * inch, np.nan)}
        values |= {"normal_world": out}
        colours = np.where(met[..., None], balls.HUES[ball] * 0.25, 0)
        for part, files in (("geometry", values), ("final", {"diffuse_reflectance": colours})):
            data = {
                f"frame.{2 * frame:04d}.{kind}.hdf5": foreign.hdf5(array.astype(np.float16))
                for kind, array in files.items()
            }
            foreign.write_files(images / f"scene_cam_01_{part}_hdf5", data)
    asked = {"depth": True, "normals": True, "albedo": True}
    assert ends(imported("hypersim", root, tmp_path, crop="none", **asked)) == "layer_missing"
    (root / "scenes/ai_001_001/_detail/metadata_scene.csv").write_text(
        f"parameter_name,parameter_value\nmeters_per_asset_unit,{inch}\n"
    )
    scene = only(imported("hypersim", root, tmp_path, res=(80,), crop="none", **asked))
    views = scene.by_width[80]
    for view in range(3):
        c2w, k = scene.c2w[view].astype(float), views.intrinsics[view].astype(float)
        depth, normals = layer(scene, 80, "depth", view), layer(scene, 80, "normals", view)
        y, x = np.nonzero(np.isfinite(depth))
        rays = np.stack([(x + 0.5 - k[2]) / k[0], (y + 0.5 - k[3]) / k[1], np.ones(len(x))], -1)
        points = c2w[:3, 3] + (rays * depth[y, x][:, None]) @ c2w[:3, :3].T
        from_centres = points[:, None] - balls.CENTRES
        which = np.linalg.norm(from_centres, axis=-1).argmin(1)
        off = from_centres[np.arange(len(x)), which]
        assert len(x) > 50 and np.abs(np.linalg.norm(off, axis=-1) - balls.RADIUS).max() < 4e-3  # of half floats
        assert (normals[y, x] * off).sum(-1).min() > 0.97 * balls.RADIUS
        quarter = layer(scene, 80, "albedo", view)[y, x]
        assert (quarter.max(-1) == 137).all()  # a quarter of white, by the sRGB curve


def ends(found: dict[str, object]) -> str:
    (end,) = found.values()
    assert isinstance(end, Skip)
    return end.reason


def without(found: dict[str, object]) -> tuple[dict[str, int], list[str]]:
    """Why views of the one scene were left out, and what is said of them; the others are there."""
    scene = only(found)  # type: ignore[arg-type]
    assert scene.meta["views_found"] == len(scene.c2w) == 6 - scene.meta["views_missing"]
    assert all(len(views.layers["depth"]) == len(scene.c2w) for views in scene.by_width.values())
    return scene.meta["left_out"], scene.meta["left_out_views"]


LACKING: dict[str, tuple[bytes | None, str, str]] = {
    "missing": (None, "layer_missing", "00003_nd.exr"),
    "of another size": (exr(np.zeros((SIZE // 2, SIZE // 2, 4))), "broken_image", "00003.png: depth of shape"),
    "no picture": (b"no picture", "broken_image", "00003_nd.exr"),
    "cut off": (exr(np.ones((8, 8, 4)))[:200], "broken_image", "00003_nd.exr"),
    "a head alone": (b"\x76\x2f\x31\x01 and nothing", "broken_image", "00003_nd.exr"),
}


@pytest.mark.parametrize("how", LACKING)
def test_a_view_that_lacks_a_layer_is_left_out(tmp_path: Path, how: str) -> None:
    """Counted and named; where most lack it, the scene ends."""
    data, reason, said = LACKING[how]
    folder = gobjaverse(tmp_path / "in")

    def spoil(view: int) -> None:
        path = folder / f"1/7/campos_512_v4/{view:05d}/{view:05d}_nd.exr"
        path.unlink()
        if data is not None:
            path.write_bytes(data)

    spoil(3)
    whole = shots()[1]
    found = imported("gobjaverse", folder, tmp_path, depth=True)
    assert without(found)[0] == {reason: 1} and said in without(found)[1][0]
    right = np.stack([one.c2w for view, one in enumerate(whole) if view != 3])
    np.testing.assert_allclose(only(found).c2w, right, atol=1e-6)
    for view in (0, 1, 4):
        spoil(view)
    assert ends(imported("gobjaverse", folder, tmp_path, depth=True)) == reason


def zero123(folder: Path) -> Path:
    return foreign.write_files(folder / UID, foreign.zero123_files(balls.circle(6, 35 / 32, SIZE))).parent


def mix(folder: Path) -> Path:
    return foreign.write_files(folder / UID, foreign.mix_files(balls.circle(6, 35 / 32, SIZE))).parent


def pixelsplat(folder: Path) -> Path:
    folder.mkdir()
    importing.write_json(folder / "index.json", {"clip": "000000.torch"})
    torch.save([foreign.pixelsplat_clip(balls.walk(6, (SIZE, SIZE)))], folder / "000000.torch")
    return folder


# what writes a set; a view's picture: its file, its name
PICTURES: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "gobjaverse": (gobjaverse, "**/{0:05d}.png", "{0:05d}.png"),
    "dome-objaverse": (dome, "**/10010.parquet", "view {0}"),
    "cap3d": (cap3d, "outer.zip", "{0:05d}.png"),
    "arb-objaverse": (arb_folder, "**/color_?_{0:02d}.png", "_{0:02d}.png"),
    "zero123": (zero123, "**/{0:03d}.png", "{0:03d}.png"),
    "objaverse-mix": (mix, "**/{0:03d}.png", "{0:03d}.png"),
    "pixelsplat": (pixelsplat, "*.torch", "frame {0}"),
}


def without_headers(files: Path, views: range, own: str) -> None:
    """Write nonsense in place of these views' pictures into a file that may hold all of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if files.suffix == ".parquet":
        rows = pq.read_table(files).to_pylist()
        spoilt = [row | ({"image_png": b"no picture"} if row["view_id"] in views else {}) for row in rows]
        pq.write_table(pa.Table.from_pylist(spoilt), files)
    elif files.suffix == ".zip":
        with zipfile.ZipFile(files.with_name("inner.zip")) as archive:
            kept = {name: archive.read(name) for name in archive.namelist()}
        inner = zipped(files.with_name("inner.zip"), kept | {own.format(view): b"no picture" for view in views})
        zipped(files, {f"imgs/{UID}.zip": inner.read_bytes()})
    elif files.suffix == ".torch":
        (clip,) = torch.load(files)
        for view in views:
            clip["images"][view] = torch.zeros(99, dtype=torch.uint8)
        torch.save([clip], files)
    else:
        files.write_bytes(b"no picture")


@pytest.mark.parametrize("source", PICTURES)
def test_a_picture_without_a_header_costs_its_view_alone(tmp_path: Path, source: str) -> None:
    """In any set: left out, counted and named; where more than half are like that, the scene ends."""
    write, files, name = PICTURES[source]
    given = write(tmp_path / "in")

    def spoil(views: range) -> None:
        for path in {path for view in views for path in (tmp_path / "in").glob(files.format(view))}:
            without_headers(path, views, name)

    whole = only(imported(source, given, tmp_path / "whole", res=(SIZE,)))
    spoil(range(2, 3))
    scene = only(imported(source, given, tmp_path / "without", res=(SIZE,)))
    assert scene.meta["left_out"] == {"broken_image": 1} and scene.meta["views_found"] == whole.view_count - 1
    assert f"{name.format(2)}: no picture (it begins with" in scene.meta["left_out_views"][0]
    np.testing.assert_array_equal(scene.c2w, np.delete(whole.c2w, 2, 0))
    spoil(range(whole.view_count // 2 + 1))
    assert ends(imported(source, given, tmp_path / "ends", res=(SIZE,))) == "broken_image"


def test_a_frame_of_hypersim_without_its_depth_makes_place_for_another(tmp_path: Path) -> None:
    """`--views` takes as many of those that are whole."""
    root = foreign.hypersim(tmp_path / "in", balls.walk(6, (64, 80)))
    scene = root / "scenes/ai_001_001"
    (scene / "_detail/metadata_scene.csv").write_text("parameter_name,parameter_value\nmeters_per_asset_unit,1\n")
    for frame in (0, 2, 4, 8, 10):
        data = foreign.hdf5(np.full((64, 80), 2.0 if frame else 0.0, np.float16)[: 64 if frame else 7])
        foreign.write_files(scene / "images/scene_cam_01_geometry_hdf5", {f"frame.{frame:04d}.depth_meters.hdf5": data})
    found = only(imported("hypersim", root, tmp_path, depth=True, views=3))
    assert found.view_count == 3 and found.meta["left_out"]["broken_image"] == 1
    assert any("frame.0000.depth_meters.hdf5: " in said for said in found.meta["left_out_views"])
    everything = only(imported("hypersim", root, tmp_path, depth=True))
    assert everything.view_count == 4 and everything.meta["left_out"] == {"broken_image": 1, "layer_missing": 1}


def test_a_set_without_a_layer_is_a_refusal(tmp_path: Path) -> None:
    folder = gobjaverse(tmp_path / "in")
    (folder / "1/7/campos_512_v4/00003/00003_nd.exr").unlink()
    assert only(imported("gobjaverse", folder, tmp_path, albedo=True)).by_width[64].layers.keys() == {"albedo"}
    for source, flag in (
        ("cap3d", "normals"),
        ("nerf-synthetic", "depth"),
        ("colmap", "albedo"),
        ("arb-objaverse", "depth"),
    ):
        with pytest.raises(UserError, match=f"--source {source} has no {flag}") as refused:
            config(source, folder, tmp_path, **{flag: True})
        assert "gobjaverse" in str(refused.value.hint)


def test_normals_in_axes_of_the_camera_are_refused(tmp_path: Path) -> None:
    """Where a set's files are not what it says of them."""
    folder = gobjaverse(tmp_path / "in")
    for view, one in enumerate(shots()[1]):
        nx, ny, nz = np.moveaxis(one.normals @ one.c2w[:3, :3], -1, 0)
        path = folder / f"1/7/campos_512_v4/{view:05d}/{view:05d}_nd.exr"
        path.write_bytes(exr(np.stack([-nx, nz, -ny, one.depth], -1)))
    assert ends(imported("gobjaverse", folder, tmp_path, normals=True)) == "normals_do_not_fit"
    assert only(imported("gobjaverse", folder, tmp_path, depth=True))


def test_a_scene_of_arb_objaverse_has_one_light_and_says_what_was_assumed(tmp_path: Path) -> None:
    foreign.write_files(tmp_path / "in" / UID, arb(tmp_path, fov=False))
    seen = set()
    for seed in range(6):
        scene = only(imported("arb-objaverse", tmp_path / "in", tmp_path, seed=seed, views=4))
        seen.add(scene.meta["light"])
        assert scene.view_count == 4 and scene.meta["cameras"] == "field of view assumed"
        brightest = importing.pixels(scene.by_width[64].jpegs[0]).reshape(-1, 3).min(0)
        assert (brightest < 60).any() == (scene.meta["light"] in "01")
    assert seen == {"0", "1"}
    assert scene.by_width[64].intrinsics[0, 0] == pytest.approx(FOCAL * SIZE, rel=1e-5)
    for name, change, reason in (
        ("camera.json", b"{}", "bad_cameras"),
        ("camera.json", b'{"transform_matrix": [[1, 2]]}', "bad_cameras"),
        ("camera.json", json.dumps({"transform_matrix": [["x"] * 16] * 6}).encode(), "bad_cameras"),
    ):
        foreign.write_files(
            tmp_path / "wrong" / UID, {**arb(tmp_path), name: change, name.replace("_0_", "_1_"): change}
        )
        assert ends(imported("arb-objaverse", tmp_path / "wrong", tmp_path)) == reason
