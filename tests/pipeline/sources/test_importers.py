"""Every importer, against balls whose places are known: what is stored lies where the stored columns say."""

from __future__ import annotations

import gzip
import json
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config.views import MixCameras
from pipeline.core.errors import Skip, UserError
from pipeline.core.records import Item, Posed, Scene
from pipeline.formats import hdf5
from pipeline.sources import captures, posed_views
from pipeline.worker import silhouettes
from pipeline.worker.posed import Importer, to_scene
from tests import balls, foreign, importing
from tests.conftest import put_anew
from tests.importing import config, imported, only, seven_zipped, tarred, under, write_json, zipped

LIMITS = {64: 0.06, 512: 0.03}  # pixels
PHOTO = (540, 600)
FISH = (-0.02, 0.012, -0.004, 0.001)
BARREL = (-0.21, 0.06, 0.0021, -0.0013, 0.0, 0.0, 0.0, 0.0)
PINCUSHION = (0.17, 0.03, -0.0011, 0.0017, 0.01, 0.0, 0.0, 0.0)
RATIONAL = (0.3, -0.05, 0.001, 0.001, 0.01, 0.42, -0.02, 0.005)


def zero123(at: Path) -> Path:
    foreign.write_files(at / "views_release" / foreign.UID, foreign.zero123_files(balls.circle(12, 35 / 32, 512)[:4]))
    return at


def gobjaverse(at: Path) -> Path:
    files = foreign.gobjaverse_files(balls.circle(3, 1.38889, 512, 15.0))
    foreign.write_files(at / "0" / "10005" / "campos_512_v4", files)
    return at


def mix(at: Path) -> Path:
    files = foreign.mix_files(balls.circle(12, 35 / 32, 512))
    foreign.write_files(at / "rendered_images" / "000-000" / "000-000" / foreign.UID, files)
    return at


def pixelsplat(at: Path) -> Path:
    (at / "train").mkdir()
    torch.save([foreign.pixelsplat_clip(balls.walk(3, PHOTO), "5aca87f95a9412c6")], at / "train" / "000000.torch")
    (at / "train" / "index.json").write_text('{"5aca87f95a9412c6": "000000.torch"}')
    return at


def six(at: Path) -> Path:
    """nerfstudio's distortion_params in place of single names: k1 k2 k3 k4 p1 p2."""
    folder = foreign.nerfstudio(at / "scene", balls.walk(3, PHOTO, BARREL))
    facts = foreign.read_json(folder / "transforms.json")
    k1, k2, p1, p2, k3 = (facts.pop(name) for name in ("k1", "k2", "p1", "p2", "k3"))
    write_json(folder / "transforms.json", facts | {"distortion_params": [k1, k2, k3, 0.0, p1, p2]})
    return at


def bent_pinhole(at: Path) -> Path:
    """camera_model PINHOLE with coefficients, which nerfstudio undoes for any perspective model."""
    folder = foreign.nerfstudio(at / "scene", balls.walk(3, PHOTO, BARREL))
    write_json(folder / "transforms.json", foreign.read_json(folder / "transforms.json") | {"camera_model": "PINHOLE"})
    return at


def studio(bent: tuple[float, ...] = (0.0,) * 8, **options: bool) -> Callable[[Path], Path]:
    return lambda at: foreign.nerfstudio(at / "scene", balls.walk(3, PHOTO, bent), **options).parent


def colmap(model: str, binary: bool, bent: tuple[float, ...] = (0.0,) * 8) -> Callable[[Path], Path]:
    return lambda at: foreign.colmap(at / "scene", balls.walk(3, PHOTO, bent), model, binary).parent


def square_pixels(at: Path) -> Path:
    return foreign.nerf_synthetic(at / "lego", balls.circle(12, 1.1, 512, 20.0)[:4])


def plain(source: str) -> Callable[[Path], Path]:
    """Scenes of the formats with one focal length and the principal point in the middle, or not."""
    centred, free = balls.circle(12, 1.1, 512, 20.0)[:3], balls.walk(3, PHOTO)
    return {
        "llff": lambda at: foreign.llff(at / "fern", centred),
        "neus": lambda at: foreign.neus(at / "dtu_scan65", free).parent,
        "idr": lambda at: foreign.neus(at / "scan65", free, "cameras.npz"),
        "co3d": lambda at: foreign.co3d(at / "apple" / "110_13051_23361", free).parents[1],
        "co3d v1": lambda at: foreign.co3d(at / "apple" / "110_13051_23361", free, "ndc_norm_image_bounds").parents[1],
        "hypersim": lambda at: foreign.hypersim(at, free),
        "hypersim tilted": lambda at: foreign.hypersim(at, free, tilt=0.13),
        "lvsm": lambda at: foreign.lvsm(at / "test", free).parent,
        "frames": lambda at: foreign.timed_frames(
            at / "train" / "key", free, at / "RealEstate10K/train/key.txt"
        ).parents[1],
    }[source]


CASES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "zero123": ("zero123", zero123),
    "gobjaverse": ("gobjaverse", gobjaverse),
    "objaverse-mix": ("objaverse-mix", mix),
    "pixelsplat": ("pixelsplat", pixelsplat),
    "nerfstudio": ("nerfstudio", studio()),
    "nerfstudio per frame": ("nerfstudio", studio(per_frame=True)),
    "nerfstudio barrel": ("nerfstudio", studio(BARREL)),
    "nerfstudio PINHOLE that bends": ("nerfstudio", bent_pinhole),
    "nerfstudio distortion_params": ("nerfstudio", six),
    "nerfstudio fisheye": ("nerfstudio", studio(FISH)),
    "nerf synthetic": ("nerfstudio", square_pixels),
    "llff": ("llff", plain("llff")),
    "neus": ("neus", plain("neus")),
    "idr": ("neus", plain("idr")),
    "co3d": ("co3d", plain("co3d")),
    "co3d v1": ("co3d", plain("co3d v1")),
    "hypersim": ("hypersim", plain("hypersim")),
    "hypersim tilt-shift": ("hypersim", plain("hypersim tilted")),
    "re10k of LVSM": ("re10k-frames", plain("lvsm")),
    "re10k frames": ("re10k-frames", plain("frames")),
    "colmap text": ("colmap", colmap("PINHOLE", False)),
    "colmap binary": ("colmap", colmap("PINHOLE", True)),
    "colmap OPENCV": ("colmap", colmap("OPENCV", True, BARREL)),
    "colmap FULL_OPENCV pincushion": ("colmap", colmap("FULL_OPENCV", False, PINCUSHION)),
    "colmap OPENCV_FISHEYE": ("colmap", colmap("OPENCV_FISHEYE", True, FISH)),
    "colmap THIN_PRISM_FISHEYE": ("colmap", colmap("THIN_PRISM_FISHEYE", False, FISH)),
    "colmap FULL_OPENCV rational": ("colmap", colmap("FULL_OPENCV", True, RATIONAL)),
}


@pytest.mark.parametrize("case", CASES)
def test_balls_are_where_the_stored_columns_say(case: str, tmp_path: Path) -> None:
    source, make = CASES[case]
    (tmp_path / "in").mkdir()
    scene = only(imported(source, make(tmp_path / "in"), tmp_path, res=(64, 512)))
    for width, limit in LIMITS.items():
        off = importing.errors(scene, width)
        assert len(off) >= 6, "too few balls stand alone"
        print(f"{case:32s} {width:4d}: {off.max():.3f} px at most, {off.mean():.3f} on average, {len(off)} balls")
        assert off.max() < limit


# ---- wherever the files lie


def small() -> dict[str, bytes]:
    return foreign.zero123_files(balls.circle(12, 35 / 32, 96)[:3])


UIDS = [f"{digit}" * 32 for digit in "abc"]


def collection() -> dict[str, bytes]:
    return {name: data for uid in UIDS for name, data in under(f"views/{uid}", small()).items()}


def same_scenes(ends: dict[str, Scene | Skip]) -> None:
    assert sorted(ends) == UIDS
    for end in ends.values():
        assert isinstance(end, Scene), end
        assert importing.errors(end, 64).max() < 0.06


@pytest.mark.parametrize("suffix", ["", ".zip", ".tar", ".tar.gz", ".7z"])
def test_zero123_from_folders_and_archives(tmp_path: Path, suffix: str) -> None:
    pack = {".zip": zipped, ".7z": seven_zipped}.get(suffix, tarred)
    given = tmp_path / f"in{suffix}"
    if suffix:
        pack(given, collection() | {"views/readme.txt": b"no scene"})
    else:
        foreign.write_files(given, collection())
    same_scenes(imported("zero123", given, tmp_path))  # type: ignore[arg-type]


def test_scenes_are_shuffled_by_the_seed_where_the_list_is_at_hand(tmp_path: Path) -> None:
    files = {f"{i:032x}/000.png": b"?" for i in range(40)}
    for given in (zipped(tmp_path / "in.zip", files), foreign.write_files(tmp_path / "in", files)):
        orders = []
        for seed in (0, 0, 1):
            cfg = config("zero123", given, tmp_path)
            orders.append([item.uid for item in importing.SOURCES["zero123"].items(cfg, seed, None)])
        assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2]) != orders[0]


@pytest.mark.parametrize("depth", ["rendered_images/000-000/000-000", "000-000", ""])
@pytest.mark.parametrize("kind", ["folder", "7z", "folder of 7z"])
def test_objaverse_mix_in_every_depth(tmp_path: Path, depth: str, kind: str) -> None:
    files = foreign.mix_files(balls.circle(12, 35 / 32, 96))
    files = {name: data for uid in UIDS for name, data in under(f"{depth}/{uid}".strip("/"), files).items()}
    given = tmp_path / ("in.7z" if kind == "7z" else "in")
    if kind == "folder":
        foreign.write_files(given, files)
    else:
        given.mkdir() if kind == "folder of 7z" else None
        seven_zipped(given / "000-000.7z" if kind == "folder of 7z" else given, files)
    ends = imported("objaverse-mix", given, tmp_path)
    same_scenes(ends)  # type: ignore[arg-type]
    assert only({"": ends[UIDS[0]]}).meta["cameras"] == "assumed"


def test_objaverse_mix_takes_other_cameras(tmp_path: Path) -> None:
    eyes = balls.circle(12, 1.38889, 96, elevation=15.0, radius=1.6)
    files = foreign.mix_files(
        [eyes[(3 - i) % 12] for i in range(12)]
    )  # starts at 90 degrees and goes round the other way
    foreign.write_files(tmp_path / "in" / foreign.UID, files)
    mix = MixCameras(radius=1.6, elevation_deg=15.0, fov_x_deg=39.5978, azimuth_deg=90.0, clockwise=True)
    assert importing.errors(only(imported("objaverse-mix", tmp_path / "in", tmp_path, mix=mix)), 64).max() < 0.06


@pytest.mark.parametrize("kind", ["levels", "flat", "tars", "zip", "tar.gz"])
def test_gobjaverse_in_every_layout(tmp_path: Path, kind: str) -> None:
    """And the uid is Objaverse's where the published map lies beside."""
    files = foreign.gobjaverse_files(balls.circle(3, 1.38889, 96, 15.0))
    given = tmp_path / "in"
    given.mkdir()
    if kind == "levels":
        foreign.write_files(given / "0/10005/campos_512_v4", files)
    elif kind == "flat":
        foreign.write_files(given / "0/10005", files)
    elif kind == "tars":
        (given / "0").mkdir()
        tarred(given / "0/10005.tar", under("10005/campos_512_v4", files))
    else:
        given = tmp_path / f"in.{kind}"
        (zipped if kind == "zip" else tarred)(given, under("gobjaverse/0/10005/campos_512_v4", files))
    name = "gobjaverse_280k_index_to_objaverse.json"
    scene = only(imported("gobjaverse", given, tmp_path / "without"))
    assert scene.item.uid == "0/10005"
    assert importing.errors(scene, 64).max() < 0.06
    (tmp_path / "cache" / "gobjaverse").mkdir(parents=True)
    write_json(tmp_path / "cache" / "gobjaverse" / name, {"0/10005": f"000-012/{foreign.UID}.glb"})
    scene = only(imported("gobjaverse", given, tmp_path))
    assert scene.item.uid == foreign.UID and scene.item.credit["page"].endswith(foreign.UID)


def test_views_that_gobjaverse_has_twice_are_taken_once(tmp_path: Path) -> None:
    files = foreign.gobjaverse_files(balls.circle(12, 1.38889, 64, 15.0)[:1])
    many = {
        f"{i:05d}/{i:05d}{suffix}": files[f"00000/00000{suffix}"] for i in range(40) for suffix in (".json", ".png")
    }
    foreign.write_files(tmp_path / "in/0/1", many)
    scene = only(imported("gobjaverse", tmp_path / "in", tmp_path))
    assert len(scene.c2w) == scene.meta["views_found"] == 38


def test_dl3dv_pictures_are_smaller_than_their_file_says(tmp_path: Path) -> None:
    """images_4 in place of images, w and h of the full size: intrinsics shrink with the pictures."""
    folder = foreign.nerfstudio(tmp_path / "in" / "1K" / "0a1b", balls.walk(3, PHOTO), folders="images_4")
    facts = foreign.read_json(folder / "transforms.json")
    facts |= {name: 4 * facts[name] for name in ("w", "h", "fl_x", "fl_y", "cx", "cy")}
    facts["applied_transform"] = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]
    write_json(folder / "transforms.json", facts)
    scene = only(imported("nerfstudio", tmp_path / "in", tmp_path))
    assert scene.item.uid == "1K/0a1b"
    assert importing.errors(scene, 64).max() < 0.06
    assert scene.meta["applied_transform"][0] == [0, 1, 0, 0]


@pytest.mark.parametrize("at", ["sparse/0", "sparse", "."])
@pytest.mark.parametrize("model", foreign.COLMAP_MODELS)
def test_colmap_models(tmp_path: Path, model: str, at: str) -> None:
    bent = {
        "SIMPLE_RADIAL": (-0.1, *[0.0] * 7),
        "RADIAL": (-0.1, 0.02, *[0.0] * 6),
        "OPENCV_FISHEYE": FISH,
        "THIN_PRISM_FISHEYE": FISH,
        "SIMPLE_RADIAL_FISHEYE": (-0.03, 0.0, 0.0, 0.0),
        "RADIAL_FISHEYE": (-0.03, 0.01, 0.0, 0.0),
    }.get(model, (0.0,) * 8)
    eyes = [
        replace(one, k=(one.k[0], one.k[0] if model[0] in "SR" else one.k[1], *one.k[2:]))
        for one in balls.walk(3, (90, 120), bent)
    ]
    foreign.colmap(tmp_path / "in", eyes, model, at != "sparse", at)
    scene = only(imported("colmap", tmp_path / "in", tmp_path))
    assert scene.item.uid == "in"
    assert importing.errors(scene, 64).max() < 0.08
    if at == "sparse/0":
        given = tmp_path / "in" / at
        np.testing.assert_array_equal(only(imported("colmap", given, tmp_path)).c2w, scene.c2w)


# ---- captures as people have them


Change = Callable[[Path, dict[str, Any]], None]  # changes a scene's folder, and what its transforms.json holds


def renamed(change: Callable[[str], str]) -> Change:
    def apply(folder: Path, facts: dict[str, Any]) -> None:
        for frame in facts["frames"]:
            frame["file_path"] = change(frame["file_path"])

    return apply


def linked(folder: Path, facts: dict[str, Any]) -> None:
    (folder / "images").rename(folder.parent.parent / "elsewhere")
    (folder / "images").symlink_to(folder.parent.parent / "elsewhere")


def upper(folder: Path, facts: dict[str, Any]) -> None:
    for path in (folder / "images").iterdir():
        path.rename(path.with_suffix(".PNG"))


def degrees(folder: Path, facts: dict[str, Any]) -> None:
    fx, fy = facts.pop("fl_x"), facts.pop("fl_y")
    facts |= {"x_fov": 2 * np.degrees(np.arctan(60 / fx)), "y_fov": 2 * np.degrees(np.arctan(45 / fy))}


def radians(folder: Path, facts: dict[str, Any]) -> None:
    fx, fy = facts.pop("fl_x"), facts.pop("fl_y")
    facts |= {"camera_angle_x": 2 * np.arctan(60 / fx), "camera_angle_y": 2 * np.arctan(45 / fy)}


EVERYDAY: dict[str, Change] = {
    "as it should be": lambda folder, facts: None,
    "images/ is a link": linked,
    "absolute": lambda folder, facts: renamed(lambda name: str(folder.absolute() / name))(folder, facts),
    "absolute of another machine": renamed(lambda name: f"/home/jane/captures/flower/{name}"),
    "absolute of another system": renamed(lambda name: "C:\\Users\\jane\\flower\\" + name.replace("/", "\\")),
    "backslashes": renamed(lambda name: ".\\" + name.replace("/", "\\")),
    "dots": renamed(lambda name: f"./images/../{name}"),
    "without a suffix": renamed(lambda name: name.removesuffix(".png")),
    "in another case": upper,
    "folder in another case": lambda folder, facts: (folder / "images").rename(folder / "Images") and None,
    "folders in another case": lambda folder, facts: (
        (folder / "images").rename(folder / "Pictures"),
        renamed(lambda name: name.replace("images", "PICTURES/../pictures"))(folder, facts),
    )[1],
    "without a suffix and in another case": lambda folder, facts: (
        upper(folder, facts),
        renamed(lambda name: name.removesuffix(".png").upper())(folder, facts),
    )[0],
    "accents apart from their letters": lambda folder, facts: (
        (folder / "images").rename(folder / unicodedata.normalize("NFD", "Küche")),
        renamed(lambda name: name.replace("images", "Küche"))(folder, facts),
    )[1],
    "spaces as in URLs": lambda folder, facts: (
        (folder / "images").rename(folder / "my küche 100%"),
        renamed(lambda name: name.replace("images", "my%20k%C3%BCche%20100%25"))(folder, facts),
    )[1],
    "percents that are none": lambda folder, facts: (
        (folder / "images").rename(folder / "100%25"),
        renamed(lambda name: name.replace("images", "100%25"))(folder, facts),
    )[1],
    "x_fov": degrees,
    "camera_angle": radians,
}
TEXTS: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "comments": lambda text: (
        b'// instant-ngp allows "these"\n/* and { these */' + text.replace("{", "{ // so\n", 1).encode()
    ),
    "trailing commas": lambda text: (
        text.replace("]", ",]").replace("}", ", // so\n }").replace('"frames"', '"note": "1,] {,}", "frames"').encode()
    ),
}


@pytest.mark.parametrize("case", EVERYDAY)
def test_everyday_captures(tmp_path: Path, case: str) -> None:
    folder = foreign.nerfstudio(tmp_path / "in" / "scene", balls.walk(3, (90, 120)))
    facts = foreign.read_json(folder / "transforms.json")
    EVERYDAY[case](folder, facts)
    write_json(folder / "transforms.json", facts)
    scene = only(imported("nerfstudio", tmp_path / "in", tmp_path))
    assert importing.errors(scene, 64).max() < 0.06
    assert scene.meta["views_found"] == 3 and "views_missing" not in scene.meta


@pytest.mark.parametrize("case", TEXTS)
def test_everyday_json(tmp_path: Path, case: str) -> None:
    folder = foreign.nerfstudio(tmp_path / "in", balls.walk(3, (90, 120)))
    path = folder / "transforms.json"
    path.write_bytes(TEXTS[case](path.read_text()))
    other = tmp_path / "other" / "cameras.json"
    shutil.copytree(folder, other.parent)
    (other.parent / "transforms.json").rename(other)
    for given in (folder, path, other):  # the file may be given in place of its folder, by any name
        scene = only(imported("nerfstudio", given, tmp_path))
        assert scene.item.uid == ("other" if given == other else "in")
        assert importing.errors(scene, 64).max() < 0.06
    with pytest.raises(UserError, match=r"is no transforms\.json, and captures are folders"):
        imported("nerfstudio", zipped(tmp_path / "x.zip", {"transforms.json": b"{}"}), tmp_path)


@pytest.mark.parametrize("form", ["colmap", "llff", "neus", "co3d"])
def test_folders_of_pictures_in_another_case(form: str, tmp_path: Path) -> None:
    """As a camera or another system names them, on a disk that tells cases apart."""
    (tmp_path / "in").mkdir()
    given = colmap("PINHOLE", True)(tmp_path / "in") if form == "colmap" else plain(form)(tmp_path / "in")
    (pictures,) = (path for path in (tmp_path / "in").rglob("image*") if path.is_dir())
    pictures.rename(pictures.with_name(pictures.name.upper()))
    scene = only(imported(form, given, tmp_path))
    assert "views_missing" not in scene.meta and importing.errors(scene, 64).max() < 0.06


def neus_with_masks(at: Path, in_room: bool) -> tuple[Path, list[np.ndarray]]:
    """DTU's names: image/000000.png and mask/000.png, white on black in three channels. Returns the coverage too."""
    eyes = balls.walk(4, (90, 120))
    folder, masks = foreign.neus(at, eyes), []
    (folder / "mask").mkdir()
    for view, (bare, picture) in enumerate(zip(balls.pictures(eyes), balls.pictures(eyes, in_room), strict=True)):
        masks.append(np.round(255 * bare[..., 3]).astype(np.uint8))
        Image.fromarray(np.repeat(masks[-1][..., None], 3, -1)).save(folder / f"mask/{view:03d}.png")
        (folder / f"image/{view:03d}.png").unlink()
        (folder / f"image/{view:06d}.png").write_bytes(balls.photo(picture, "PNG"))
    return folder, masks


@pytest.mark.parametrize("in_room", [False, True], ids=["on white", "before a background"])
def test_masks_of_neus_are_the_alpha_column(tmp_path: Path, in_room: bool) -> None:
    folder, masks = neus_with_masks(tmp_path / "in", in_room)
    plain = only(imported("neus", folder, tmp_path, res=(120,), crop="none")).by_width[120]
    assert not plain.layers
    scene = only(imported("neus", folder, tmp_path, res=(120,), crop="none", alpha=True))
    views = scene.by_width[120]
    for view, mask in enumerate(masks):
        np.testing.assert_array_equal(importing.pixels(views.layers["alpha"][view]), mask)
        own, before = importing.pixels(views.jpegs[view]).astype(int), importing.pixels(plain.jpegs[view]).astype(int)
        assert (
            np.abs(own - before)[mask == 255].mean() < 2 and own[cv2.dilate(mask, np.ones((17, 17))) == 0].min() == 255
        )
        assert (
            in_room or np.percentile(np.abs(own - before), 99) <= 3
        )  # what stood on white is the same at its edges too
    assert 0 < scene.meta["coverage"] < 0.5


def test_a_view_of_neus_without_its_mask_is_left_out(tmp_path: Path) -> None:
    folder, masks = neus_with_masks(tmp_path / "in", False)
    (folder / "mask/001.png").unlink()
    Image.fromarray(masks[2][:40]).save(folder / "mask/002.png")
    scene = only(imported("neus", folder, tmp_path, alpha=True))
    assert scene.view_count == 2 and scene.meta["left_out"] == {"layer_missing": 1, "broken_image": 1}
    named = "; ".join(scene.meta["left_out_views"])
    assert (
        "mask/ has no mask of 000001.png" in named and "image/000002.png is 120x40 pixels, the picture 120x90" in named
    )
    assert only(imported("neus", folder, tmp_path)).view_count == 4
    shutil.rmtree(folder / "mask")
    (end,) = imported("neus", folder, tmp_path, alpha=True).values()
    assert isinstance(end, Skip) and end.reason == "layer_missing"


def test_frames_whose_pictures_are_missing_are_left_out(tmp_path: Path) -> None:
    folder = foreign.nerfstudio(tmp_path / "in", balls.walk(4, (90, 120)))
    (folder / "images/frame_00001.png").unlink()
    scene = only(imported("nerfstudio", folder, tmp_path))
    assert (scene.meta["views_found"], scene.meta["views_missing"], len(scene.c2w)) == (3, 1, 3)
    assert importing.errors(scene, 64).max() < 0.06
    (folder / "images/frame_00002.png").unlink()
    assert len(only(imported("nerfstudio", folder, tmp_path)).c2w) == 2
    (folder / "images/frame_00003.png").unlink()
    (end,) = imported("nerfstudio", folder, tmp_path).values()
    assert isinstance(end, Skip) and end.reason == "image_missing" and "3 of 4 pictures are not there" in end.detail


def test_a_broken_frame_is_left_out_like_one_whose_picture_is_missing(tmp_path: Path) -> None:
    """Named with what is wrong; of --views K the K are of those that are whole; half of them at least must be."""
    folder = foreign.nerfstudio(tmp_path / "in", balls.walk(8, (90, 120)))
    facts = foreign.read_json(folder / "transforms.json")
    names = [folder / frame["file_path"] for frame in facts["frames"]]
    names[0].write_bytes(names[0].read_bytes()[:-300])  # its header is whole
    names[2].write_bytes(b"BM" + bytes(60))
    facts["frames"][4]["transform_matrix"][0][3] = float("nan")
    write_json(folder / "transforms.json", facts)
    scene = only(imported("nerfstudio", folder, tmp_path))
    assert importing.errors(scene, 64).max() < 0.06
    assert (scene.meta["views_found"], scene.meta["views_missing"], len(scene.c2w)) == (5, 3, 5)
    assert scene.meta["left_out"] == {"bad_cameras": 1, "broken_image": 2} == scene.facts["left_out"]
    assert sorted(said.partition(".png")[0] for said in scene.meta["left_out_views"]) == [
        f"images/frame_0000{number}" for number in (0, 2, 4)
    ]
    assert any("a BMP picture" in said and "convert it to PNG" in said for said in scene.meta["left_out_views"])
    for frame in facts["frames"]:  # of which no path of a machine goes into shards
        frame["file_path"] = f"/home/jane/{frame['file_path']}"
    write_json(folder / "transforms.json", facts)
    (tmp_path / "in/images/frame_00005.png").chmod(0)
    said = only(imported("nerfstudio", folder, tmp_path)).meta["left_out_views"]
    assert all(each.startswith("frame_0000") and str(tmp_path) not in each for each in said)
    (tmp_path / "in/images/frame_00005.png").chmod(0o644)
    few = only(imported("nerfstudio", folder, tmp_path, views=4))
    assert len(few.c2w) == 4 and importing.errors(few, 64).max() < 0.06
    names[6].unlink()
    assert len(only(imported("nerfstudio", folder, tmp_path)).c2w) == 4
    names[7].write_bytes(b"")
    (end,) = imported("nerfstudio", folder, tmp_path).values()
    assert isinstance(end, Skip) and end.reason == "broken_image"
    said = "(broken_image 3, bad_cameras 1, image_missing 1; the first: "
    assert end.detail.startswith(f"5 of 8 views cannot be used in {folder} {said}")
    assert "at least 50% must be" in end.detail


def test_axes_of_twice_the_length_are_mended_beside_a_pose_that_is_none(tmp_path: Path) -> None:
    folder = foreign.nerfstudio(tmp_path / "in", balls.walk(4, (90, 120)))
    facts = foreign.read_json(folder / "transforms.json")
    for frame in facts["frames"]:
        frame["transform_matrix"] = (np.array(frame["transform_matrix"]) * [2, 2, 2, 1]).tolist()
    facts["frames"][1]["transform_matrix"] = None
    write_json(folder / "transforms.json", facts)
    scene = only(imported("nerfstudio", folder, tmp_path))
    assert len(scene.c2w) == 3 and importing.errors(scene, 64).max() < 0.06


@pytest.mark.parametrize("form", ["llff", "neus", "co3d", "hypersim", "lvsm", "frames"])
def test_one_pose_that_is_none_costs_one_view_in_every_format(form: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    given = plain(form)(tmp_path / "in")
    if form == "llff":
        path = given / "poses_bounds.npy"
        rows = np.load(path)
        rows[1, 3] = np.inf
        np.save(path, rows)
    elif form == "neus":
        path = next(given.rglob("cameras_sphere.npz"))
        arrays = dict(np.load(path))
        arrays["world_mat_1"][1, 1] = np.nan
        np.savez(path, **arrays)
    elif form == "co3d":
        path = next(given.rglob("frame_annotations.jgz"))
        frames = json.loads(gzip.decompress(path.read_bytes()))
        frames[1]["viewpoint"]["R"] = None
        path.write_bytes(gzip.compress(json.dumps(frames).encode()))
    elif form == "hypersim":
        with h5py.File(next(given.rglob("*positions.hdf5")), "r+") as file:
            file["dataset"][1, 2] = np.nan
    elif form == "frames":
        path = next(given.rglob("key.txt"))
        lines = path.read_text().splitlines()
        lines[2] = " ".join([*lines[2].split()[:-1], "nan"])
        path.write_text("\n".join(lines))
    else:
        path = next(given.rglob("metadata/*.json"))
        facts = foreign.read_json(path)
        facts["frames"][1]["w2c"][0][0] = float("inf")
        write_json(path, facts)
    scene = only(imported({"lvsm": "re10k-frames", "frames": "re10k-frames"}.get(form, form), given, tmp_path))
    assert scene.meta["left_out"] == {"bad_cameras": 1} and len(scene.c2w) == 2
    assert importing.errors(scene, 64).max() < 0.06


@pytest.mark.parametrize(
    ("folder", "uid"),
    [
        ("captures/0", "captures/0"),
        ("captures/1", "captures/1"),
        ("captures/data/007", "captures/data/007"),
        ("captures/0/images", "captures/0"),
        ("captures/0/sparse/0", "captures/0"),
        ("flower/sparse/0", "flower"),
        ("flower/dense/0", "flower"),
        ("flower/data", "flower"),
        ("flower", "flower"),
    ],
)
def test_uids_of_captures_that_are_given_by_themselves(folder: str, uid: str, tmp_path: Path) -> None:
    """Folders that people number are told apart; runs of earlier versions go on with the uid that they have."""
    path = tmp_path / folder
    assert posed_views.uid_of(path, path) == uid == posed_views.uid_of(path, path, {"other"})
    assert posed_views.uid_of(path, path, {folder.split("/")[0]}) == folder.split("/")[0]


def test_a_picture_with_two_poses_is_left_out_by_name(tmp_path: Path) -> None:
    folder = foreign.nerfstudio(tmp_path / "in", balls.walk(4, (90, 120)))
    facts = foreign.read_json(folder / "transforms.json")
    frames = facts["frames"]
    again = frames[1] | {"transform_matrix": frames[3]["transform_matrix"], "file_path": "./images/frame_00001.png"}
    write_json(folder / "transforms.json", facts | {"frames": [*frames, again]})
    scene = only(imported("nerfstudio", folder, tmp_path))
    assert scene.meta["left_out"] == {"listed_twice": 2}
    assert [said.partition(" ")[0] for said in scene.meta["left_out_views"]] == [
        frames[1]["file_path"],
        again["file_path"],
    ]
    assert (scene.meta["views_found"], len(scene.c2w)) == (3, 3) and importing.errors(scene, 64).max() < 0.06
    same = again | {"transform_matrix": frames[1]["transform_matrix"]}
    write_json(folder / "transforms.json", facts | {"frames": [*frames, same]})
    scene = only(imported("nerfstudio", folder, tmp_path))
    assert "left_out" not in scene.meta and scene.meta["views_found"] == 5
    more = [frame | {"transform_matrix": frames[0]["transform_matrix"]} for frame in frames[1:]]
    write_json(folder / "transforms.json", facts | {"frames": frames + more})
    (end,) = imported("nerfstudio", folder, tmp_path).values()
    assert isinstance(end, Skip) and end.reason == "listed_twice"
    assert (
        "(the first: images/frame_00001.png is listed more than once, with different poses; at most one" in end.detail
    )


@pytest.mark.parametrize(
    ("model", "pictures"),
    [
        ("dense/0/sparse", "dense/0/images"),
        ("dense/sparse", "dense/images"),
        ("colmap/sparse/0", "images"),
        ("colmap_sparse/0", "images"),
        ("distorted/sparse/0", "input"),
        ("sparse/0", "images_2"),
    ],
)
def test_colmap_projects(tmp_path: Path, model: str, pictures: str) -> None:
    folder = foreign.colmap(tmp_path / "in", balls.walk(3, (90, 120)), "PINHOLE", True, model)
    if pictures != "images":
        (folder / pictures).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images").rename(folder / pictures)
    scene = only(imported("colmap", tmp_path / "in", tmp_path))
    assert scene.item.uid == "in" and importing.errors(scene, 64).max() < 0.08


def test_of_several_colmap_models_the_one_with_most_pictures_is_taken(tmp_path: Path) -> None:
    eyes = balls.walk(6, (90, 120), step=0.3)
    for name, part in (("a", eyes[:2]), ("b", eyes), ("c", eyes[:4])):
        foreign.colmap(tmp_path / name, part, "PINHOLE", True)
    (tmp_path / "in" / "sparse").mkdir(parents=True)
    (tmp_path / "b" / "images").rename(tmp_path / "in" / "images")
    for number, name in enumerate("abc"):
        (tmp_path / name / "sparse/0").rename(tmp_path / "in" / "sparse" / str(number))
    foreign.colmap(tmp_path / "in" / "dense" / "0", eyes[:3], "PINHOLE", False, "sparse")
    scene = only(imported("colmap", tmp_path / "in", tmp_path))
    assert len(scene.c2w) == 6 and importing.errors(scene, 64).max() < 0.08
    (tmp_path / "in" / "images").rename(tmp_path / "away")  # the undistorted project is whole, the others are not
    assert len(only(imported("colmap", tmp_path / "in", tmp_path)).c2w) == 3


def test_a_scene_is_encoded_once_however_many_views_are_wrong(tmp_path: Path) -> None:
    """And a picture that does not decode is left out before the cameras are compared."""
    folder = foreign.nerf_synthetic(tmp_path / "in", balls.circle(12, 1.1, 128, 20.0))
    facts = foreign.read_json(folder / "transforms_train.json")
    facts["frames"][2]["transform_matrix"] = facts["frames"][4]["transform_matrix"]
    write_json(folder / "transforms_train.json", facts)
    cfg = replace(config("nerf-synthetic", tmp_path / "in", tmp_path), verify_cameras=True)
    encoded: list[int] = []

    def encode(item: Item, loaded: Posed) -> Scene:
        encoded.append(len(loaded.images))
        return to_scene(item, loaded, cfg.scene)

    (item,) = captures.items(cfg, 0)
    importer = Importer(cfg, encode)
    scene = importer.make(item, lambda item: Path(item.url), {})
    assert scene.meta["views_wrong"] == ["./train/r_2"] and encoded == [11] == [scene.view_count]
    cut = folder / "test/r_0.png"
    cut.write_bytes(cut.read_bytes()[:-100])
    scene = importer.make(item, lambda item: Path(item.url), {})
    assert scene.meta["views_wrong"] == ["./train/r_2"] and scene.meta["left_out"] == {"broken_image": 1}
    assert encoded == [11, 12, 10] and scene.view_count == 10 == len(scene.meta["cameras_fit"]["views"]["apart"])


@pytest.mark.parametrize("place", ["input", "rgb", "Color"])
def test_colmap_pictures_in_a_folder_of_another_name(tmp_path: Path, place: str) -> None:
    """Where there is no images/; masks of the same names are no pictures."""
    folder = foreign.colmap(tmp_path / "in", balls.walk(3, (90, 120)), "PINHOLE", True)
    (folder / "images").rename(folder / place)
    assert importing.errors(only(imported("colmap", folder, tmp_path)), 64).max() < 0.08
    shutil.copytree(folder / place, folder / "images")
    (folder / "images/left eye/001.jpg").unlink()  # of undistorted pictures: the one in input/ is another
    assert only(imported("colmap", folder, tmp_path)).meta["left_out"] == {"image_missing": 1}
    shutil.rmtree(folder / "images")
    (folder / place).rename(folder / "masks")
    (end,) = imported("colmap", folder, tmp_path).values()
    assert isinstance(end, Skip) and end.reason == "image_missing"


def test_scannetpps_pictures_lie_beside_the_folder_of_its_files(tmp_path: Path) -> None:
    """Those of the lens and undistorted ones, each with its own file."""
    made = foreign.nerfstudio(tmp_path / "made", balls.walk(3, (90, 120)))
    facts = foreign.read_json(made / "transforms.json")
    for frame in facts["frames"]:
        frame["file_path"] = Path(frame["file_path"]).name
    folder = tmp_path / "in/0a5c/dslr"
    (folder / "nerfstudio").mkdir(parents=True)
    for name, place in (
        ("transforms.json", "resized_images"),
        ("transforms_undistorted.json", "resized_undistorted_images"),
    ):
        shutil.copytree(made / "images", folder / place)
        write_json(folder / "nerfstudio" / name, facts)
    first = folder / "resized_images/frame_00000.png"
    first.write_bytes(first.read_bytes()[:-100])
    scene = only(imported("nerfstudio", tmp_path / "in", tmp_path))
    assert importing.errors(scene, 64).max() < 0.08 and scene.meta["left_out"] == {"broken_image": 1}
    scene = only(imported("nerfstudio", folder / "nerfstudio/transforms_undistorted.json", tmp_path))
    assert importing.errors(scene, 64).max() < 0.08 and scene.view_count == 3


def test_numbers_in_quotes_are_numbers(tmp_path: Path) -> None:
    folder = foreign.nerfstudio(tmp_path / "in", balls.walk(3, (90, 120)))
    facts = foreign.read_json(folder / "transforms.json")
    quoted = {name: str(value) for name, value in facts.items() if isinstance(value, int | float)}
    write_json(folder / "transforms.json", facts | quoted)
    assert importing.errors(only(imported("nerfstudio", folder, tmp_path)), 64).max() < 0.06
    for wrong in ("wide", "", "inf", "nan", True, [120]):
        write_json(folder / "transforms.json", facts | {"fl_x": wrong})
        (end,) = imported("nerfstudio", folder, tmp_path).values()
        assert isinstance(end, Skip) and end.reason == "bad_cameras" and "not a number" in end.detail


KEYS: dict[str, list[tuple[str, object]]] = {
    "unsupported_camera": [
        ("shutter_type", "ROLLING_TOP_TO_BOTTOM"),
        ("readout_time", 0.02),
        ("type", "ORTHO"),
        ("type", "PANO"),
        ("is_360", True),
        ("shift_x", 0.1),
        ("rolling_shutter", [0, 0.01, 0, 0]),
        ("orthographic_scale", 2.0),
        ("pixel_aspect_ratio", 1.5),
    ],
    "": [
        ("shutter_type", "GLOBAL"),
        ("readout_time", 0),
        ("type", "PERSP"),
        ("type", "train"),
        ("panoptic_path", "a.png"),
        ("dataset", "mipnerf360"),
        ("scene_360", "garden"),
        ("is_360", False),
        ("camera_type", "perspective"),
        ("pixel_aspect_x", 1),
        ("intrinsics", "intrinsics.txt"),
    ],
}


@pytest.mark.parametrize("reason", KEYS)
def test_keys_that_speak_of_other_cameras_are_not_passed_over(tmp_path: Path, reason: str) -> None:
    """And those that only sound like it, or say that nothing is out of the ordinary, refuse nothing."""
    folder = foreign.nerfstudio(tmp_path / "in", balls.walk(3, (90, 120)))
    facts = foreign.read_json(folder / "transforms.json")
    for name, value in KEYS[reason]:
        write_json(folder / "transforms.json", facts | {name: value})
        (end,) = imported("nerfstudio", folder, tmp_path).values()
        assert (end.reason if isinstance(end, Skip) else "") == reason, (name, value)
        assert not reason or f"{name} is {value}" in str(end)


@pytest.mark.parametrize("name", ["K", "intrinsic_matrix", "camera_intrinsics"])
def test_a_matrix_of_intrinsics_that_says_otherwise_is_not_passed_over(name: str, tmp_path: Path) -> None:
    folder = foreign.nerfstudio(tmp_path / "in", balls.walk(3, (90, 120)))
    facts = foreign.read_json(folder / "transforms.json")
    fx, fy, cx, cy = (facts[key] for key in ("fl_x", "fl_y", "cx", "cy"))
    same, shares = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], [fx / facts["w"], fy / facts["h"], 0.5, 0.5]
    for value, fits in (
        (same, True),
        (shares, True),
        ([[fx / 2, 0, cx], *same[1:]], False),
        ([fx, 2 * fy, cx, cy], False),
    ):
        write_json(folder / "transforms.json", facts | {name: value})
        (end,) = imported("nerfstudio", folder, tmp_path).values()
        assert isinstance(end, Skip) != fits
        assert fits or (end.reason == "bad_cameras" and f"{name} says focal lengths" in end.detail)


def test_other_poses_beside_those_that_are_read_are_not_passed_over(tmp_path: Path) -> None:
    """instant-ngp goes by the poses at both ends of an exposure, and turns those that Mitsuba wrote."""
    folder = foreign.nerfstudio(tmp_path / "in", balls.walk(3, (90, 120)))
    facts = foreign.read_json(folder / "transforms.json")
    *others, last = facts["frames"]
    moved = [[*row[:3], row[3] + 0.1] for row in last["transform_matrix"][:3]] + [[0, 0, 0, 1]]
    for more, top, reason in (
        (
            {"transform_matrix_start": last["transform_matrix"], "transform_matrix_end": moved},
            {},
            "transform_matrix_end",
        ),
        ({"transform_matrix_start": moved}, {}, "transform_matrix_start"),
        (
            {"transform_matrix_start": last["transform_matrix"], "transform_matrix_end": last["transform_matrix"]},
            {},
            "",
        ),
        ({}, {"normal_mts_args": ["-D", "spp=64"]}, "normal_mts_args"),
        ({}, {"from_mitsuba": False}, ""),
    ):
        write_json(folder / "transforms.json", facts | top | {"frames": [*others, last | more]})
        (end,) = imported("instant-ngp", folder, tmp_path).values()
        if reason:
            assert isinstance(end, Skip) and end.reason == "unsupported_camera" and f"{reason} is said" in end.detail
        else:
            assert not isinstance(end, Skip)


def test_colmap_text_with_a_byte_order_mark(tmp_path: Path) -> None:
    folder = foreign.colmap(tmp_path / "in", balls.walk(3, (90, 120)), "PINHOLE", False)
    for name in ("cameras", "images"):
        path = folder / f"sparse/0/{name}.txt"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert importing.errors(only(imported("colmap", folder, tmp_path)), 64).max() < 0.08


def test_the_splits_of_nerf_synthetic_are_roles(tmp_path: Path) -> None:
    foreign.nerf_synthetic(tmp_path / "in", balls.circle(12, 1.1, 96, 20.0)[:6])
    scene = only(imported("nerfstudio", tmp_path / "in", tmp_path))
    assert list(scene.roles) == ["train"] * 3 + ["test"] * 3
    assert list(only(imported("nerfstudio", tmp_path / "in", tmp_path, views=2)).roles) == ["train", "test"]
    one = only(imported("nerfstudio", tmp_path / "in" / "transforms_test.json", tmp_path))
    assert list(one.roles) == ["test"] * 3


def test_other_ways_to_name_splits_are_roles_too(tmp_path: Path) -> None:
    """nerfstudio's lists of names, and ScanNet++'s frames of tests."""
    folder = foreign.nerfstudio(tmp_path / "in", balls.walk(4, (90, 120)))
    facts = foreign.read_json(folder / "transforms.json")
    assert not only(imported("nerfstudio", folder, tmp_path)).roles
    names = [frame["file_path"] for frame in facts["frames"]]
    write_json(folder / "transforms.json", facts | {"train_filenames": names[:2], "val_filenames": [f"./{names[3]}"]})
    assert list(only(imported("nerfstudio", folder, tmp_path)).roles) == ["train", "train", "", "val"]
    write_json(folder / "transforms.json", facts | {"frames": facts["frames"][:3], "test_frames": facts["frames"][3:]})
    assert list(only(imported("nerfstudio", folder, tmp_path)).roles) == ["", "", "", "test"]


@pytest.mark.parametrize("scale", [0.33, 4.0])
def test_axes_that_are_all_longer_by_one_factor_are_made_unit(tmp_path: Path, scale: float) -> None:
    folder = foreign.nerfstudio(tmp_path / "in", balls.walk(3, (90, 120)))
    facts = foreign.read_json(folder / "transforms.json")
    for frame in facts["frames"]:
        frame["transform_matrix"] = (np.array(frame["transform_matrix"]) * [scale, scale, scale, 1]).tolist()
    write_json(folder / "transforms.json", facts)
    scene = only(imported("nerfstudio", folder, tmp_path))
    assert importing.errors(scene, 64).max() < 0.06 and scene.meta["rotation_scale"] == pytest.approx(scale)


def test_a_model_given_as_input_has_the_name_of_its_project(tmp_path: Path) -> None:
    folder = foreign.colmap(tmp_path / "flower", balls.walk(3, (90, 120)), "PINHOLE", True)
    (tmp_path / "0").mkdir()
    foreign.nerfstudio(tmp_path / "0" / "007", balls.walk(3, (90, 120)))
    for source, given, uid in (
        ("colmap", folder / "sparse/0", "flower"),
        ("colmap", folder / "sparse", "flower"),
        ("nerfstudio", tmp_path / "0" / "007", f"{tmp_path.name}/0/007"),
        ("nerfstudio", tmp_path / "0", "007"),
    ):
        assert only(imported(source, given, tmp_path)).item.uid == uid


RECOGNISED: dict[str, tuple[Callable[[Path], object], str]] = {
    "nerfstudio": (lambda at: foreign.nerfstudio(at / "a" / "b", balls.walk(3, (90, 120))), "nerfstudio"),
    "one file": (lambda at: foreign.nerfstudio(at, balls.walk(3, (90, 120)), folders="images_4"), "nerfstudio"),
    "nerf synthetic": (
        lambda at: foreign.nerf_synthetic(at / "lego", balls.circle(12, 1.1, 96, 20.0)[:4]),
        "nerf-synthetic",
    ),
    "colmap": (
        lambda at: foreign.colmap(at / "x", balls.walk(3, (90, 120)), "PINHOLE", True, "dense/0/sparse"),
        "colmap",
    ),
    "llff": (plain("llff"), "llff"),
    "neus": (plain("neus"), "neus"),
    "co3d": (plain("co3d"), "co3d"),
    "hypersim": (plain("hypersim"), "hypersim"),
    "lvsm": (plain("lvsm"), "re10k-frames"),
    "frames": (plain("frames"), "re10k-frames"),
    "zero123": (zero123, "zero123"),
    "gobjaverse": (gobjaverse, "gobjaverse"),
    "pixelsplat": (pixelsplat, "pixelsplat"),
    "dome": (
        lambda at: foreign.write_files(at, {"metadata/objects.parquet": b"", "dome_objaverse/0/1.parquet": b""}),
        "dome-objaverse",
    ),
    "cap3d": (lambda at: zipped(at / "compressed_imgs_perobj_00.zip", {}), "cap3d"),
    "cap3d, unpacked": (lambda at: foreign.write_files(at / "x", flat(six_files())), "cap3d"),
    "gobjaverse, file by file": (lambda at: foreign.write_files(at / "0" / "1", six_files()), "gobjaverse"),
    "arb": (lambda at: foreign.write_files(at / "x", {"camera.json": b"", "color_3_00.png": b""}), "arb-objaverse"),
}


def six_files() -> dict[str, bytes]:
    return foreign.gobjaverse_files(balls.circle(12, 35 / 32, 64)[:6])


def flat(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name.split("/")[-1]: data for name, data in files.items()}


@pytest.mark.parametrize("case", RECOGNISED)
def test_what_a_folder_holds_is_recognised(tmp_path: Path, case: str) -> None:
    make, source = RECOGNISED[case]
    (tmp_path / "in").mkdir(exist_ok=True)
    make(tmp_path / "in" if case != "one file" else tmp_path / "in" / "one")
    found, says = captures.recognised(tmp_path / "in")
    assert found == source and f"looks like {source}" in says


def test_what_is_recognised_twice_is_said(tmp_path: Path) -> None:
    folder = foreign.colmap(tmp_path / "in", balls.walk(3, (90, 120)), "PINHOLE", True)
    foreign.llff(folder, balls.circle(12, 1.1, 96, 20.0)[:3], "images_4")
    source, says = captures.recognised(folder)
    assert source == "colmap" and "also like llff" in says
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="looks like no capture"):
        captures.recognised(tmp_path / "empty")
    made = foreign.nerfstudio(tmp_path / "named", balls.walk(3, (90, 120)))
    (made / "transforms.json").rename(made / "transforms_opencv.json")
    write_json(made / "another.json", [1])
    with pytest.raises(UserError, match="looks like no capture") as other:
        captures.recognised(made)
    assert f"--input {made / 'transforms_opencv.json'} takes its frames" in other.value.hint
    (tmp_path / "captures.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="looks like no capture") as packed:
        captures.recognised(tmp_path / "captures.zip")
    assert "has to be unpacked first" in packed.value.hint
    (tmp_path / "empty" / "a.JPG").write_bytes(b"")
    with pytest.raises(UserError) as alone:
        captures.recognised(tmp_path / "empty")
    assert "pictures alone" in str(alone.value.hint)


OWN_FILES = {  # of apps, and what converts them
    "Polycam": ("keyframes/corrected_cameras/17.json", '{"t_00": 1.0}', "polycam --data {0}"),
    "Record3D": ("EXR_RGBD/metadata.json", '{"poses": []}', "record3d --data {0}/EXR_RGBD"),
    "Metashape": (
        "my cameras.xml",
        '<?xml?><document><chunk label="1"/>',
        "metashape --data {0}/images --xml '{0}/my cameras.xml'",
    ),
    "RealityCapture": ("cameras.csv", "#name,x,y,alt", "realitycapture --data {0}/images --csv {0}/cameras.csv"),
}


@pytest.mark.parametrize("app", OWN_FILES)
def test_apps_own_files_are_named_with_what_converts_them(tmp_path: Path, app: str) -> None:
    name, text, command = OWN_FILES[app]
    foreign.write_files(tmp_path / "in", {name: text.encode(), "images/1.jpg": b""})
    with pytest.raises(UserError, match=f"holds {app}'s own files") as refused:
        captures.recognised(tmp_path / "in")
    assert f"ns-process-data {command.format(tmp_path / 'in')} --output-dir NEW" in refused.value.hint
    foreign.write_files(tmp_path / "in", {name: b"something else"})
    with pytest.raises(UserError, match="looks like no capture"):
        captures.recognised(tmp_path / "in")


def test_what_an_import_leaves_out_is_said(tmp_path: Path) -> None:
    """Folders of one kind beside others: those that the first one's format reads too are not left out."""
    eyes = balls.circle(12, 1.1, 96, 20.0)[:3]
    for name in ("a", "b"):
        foreign.nerfstudio(tmp_path / "in" / name, eyes)
    foreign.nerf_synthetic(tmp_path / "in" / "c", eyes)
    assert captures.recognised(tmp_path / "in")[1].endswith("looks like nerfstudio")
    for name in ("d", "e", "f"):
        foreign.llff(tmp_path / "in" / name, eyes)
    source, says = captures.recognised(tmp_path / "in")
    assert source == "nerfstudio" and says.endswith("/d (llff) and 2 more: a run of --source llff takes it")


def test_llff_pictures_must_be_as_many_as_poses(tmp_path: Path) -> None:
    """And smaller copies stand in for those that are not there; a size of another shape is refused."""
    folder = foreign.llff(tmp_path / "in", balls.circle(12, 1.1, 96, 20.0)[:3], "images_4")
    assert importing.errors(only(imported("llff", folder, tmp_path)), 64).max() < 0.06
    (folder / "images_4/IMG_000.png").unlink()
    (end,) = imported("llff", folder, tmp_path).values()
    assert isinstance(end, Skip) and end.reason == "count_mismatch" and "3 poses and 2 pictures" in end.detail
    rows = np.load(folder / "poses_bounds.npy")
    for wrong, reason in (
        (rows[:2] * np.nan, "bad_cameras"),
        (rows[:2, :15], "bad_cameras"),
        (rows[:2] * -1, "bad_cameras"),
    ):
        (folder / "poses_bounds.npy").write_bytes(foreign.npy(np.ascontiguousarray(wrong)))
        (end,) = imported("llff", folder, tmp_path).values()
        assert isinstance(end, Skip) and end.reason == reason


@pytest.mark.parametrize("missing", [(2,), (5,), (1, 4), (0,), (1, 3, 5), (4, 5)])
@pytest.mark.parametrize(
    "beside", ["numbers in their names", "names in the COLMAP model beside", "names in a folder beside"]
)
def test_an_llff_picture_that_is_missing_is_left_out_where_it_is_certain_which(
    tmp_path: Path, missing: tuple[int, ...], beside: str
) -> None:
    """By the numbers in the names, a COLMAP model of the same cameras beside, or masks; a model of others says nothing."""
    model, masks = "model" in beside, "folder" in beside
    eyes = balls.circle(12, 1.1, 96, 20.0)[:6]
    folder = foreign.llff(tmp_path / "in", eyes)
    if model:
        foreign.colmap(tmp_path / "made", eyes, "PINHOLE", False)
        for name in ("cameras.txt", "images.txt"):
            text = (tmp_path / "made/sparse/0" / name).read_text()
            for view in range(6):
                text = text.replace(f"left eye/{view:03d}.jpg", f"IMG_{view:03d}.png")
            foreign.write_files(folder / "sparse/0", {name: text.encode()})
    if masks:
        foreign.write_files(folder / "masks", {f"IMG_{view:03d}.jpg": b"" for view in range(6)})
    for view in missing:
        (folder / f"images/IMG_{view:03d}.png").unlink()
    (end,) = imported("llff", folder, tmp_path).values()
    certain = model or masks or missing not in ((0,), (1, 3, 5))
    if not certain:
        assert isinstance(end, Skip) and end.reason == "count_mismatch"
        return
    assert isinstance(end, Scene) and importing.errors(end, 64).max() < 0.1
    right = np.stack([np.stack([one.right, -one.up, -one.back, one.position], -1) for one in eyes])
    np.testing.assert_allclose(end.c2w[:, :3], np.delete(right, missing, 0), atol=1e-6)
    assert end.meta["left_out"] == {"image_missing": len(missing)}
    assert end.meta["pictures_matched"] == f"by the {beside}"
    if model and missing == (0,):
        rows = np.load(folder / "poses_bounds.npy")
        rows[:, 3] += 0.1 * np.arange(6)
        (folder / "poses_bounds.npy").write_bytes(foreign.npy(rows))
        (end,) = imported("llff", folder, tmp_path).values()
        assert isinstance(end, Skip) and end.reason == "count_mismatch"


def test_what_is_wrong_with_npz_cameras(tmp_path: Path) -> None:
    folder = foreign.neus(tmp_path / "in", balls.walk(4, (90, 120)))
    whole = dict(np.load(folder / "cameras_sphere.npz"))
    skewed = whole["world_mat_1"].copy()
    skewed[0] += 0.2 * skewed[1]
    (folder / "image/001.png").unlink()  # the others are found by their numbers
    assert importing.errors(only(imported("neus", folder, tmp_path)), 64).max() < 0.06
    for changes, reason in (
        ({"world_mat_0": skewed}, "unsupported_camera"),
        ({"world_mat_0": np.zeros((4, 4))}, "without"),
        ({"world_mat_0": np.zeros((2, 2))}, "without"),
        ({"world_mat_0": np.full((4, 4), np.inf)}, "without"),
        ({"world_mat_0": whole["world_mat_0"] * np.array([[2], [2], [1], [1]])}, "without"),  # of another size
        ({f"world_mat_{number}": np.zeros((4, 4)) for number in (0, 2)}, "bad_cameras"),
    ):
        np.savez(folder / "cameras_sphere.npz", **whole | changes)
        (end,) = imported("neus", folder, tmp_path).values()
        if reason == "without":  # one view of three
            assert isinstance(end, Scene) and end.meta["left_out"] == {"bad_cameras": 1}, end
            assert end.meta["left_out_views"][0].startswith(("image/000.png", "000.png")), end.meta
            continue
        assert isinstance(end, Skip) and end.reason == reason, changes
    (folder / "cameras_sphere.npz").write_bytes(b"PK no archive")
    (end,) = imported("neus", folder, tmp_path).values()
    assert isinstance(end, Skip) and end.reason == "bad_cameras"


def test_what_is_wrong_with_hypersims_files(tmp_path: Path) -> None:
    root = plain("hypersim")(tmp_path)
    assert only(imported("hypersim", root, tmp_path)).item.uid == "ai_001_001/cam_01"
    table, path = root / "metadata_camera_parameters.csv", next(root.rglob("*positions.hdf5"))
    whole, text = path.read_bytes(), table.read_text()
    for change, reason in (
        (lambda: path.write_bytes(whole[: len(whole) // 2]), "bad_cameras"),
        (lambda: path.write_bytes(whole.replace(b"HDF", b"HDG")), "bad_cameras"),
        (lambda: path.write_bytes(foreign.hdf5(np.zeros((2, 3)))), "bad_cameras"),
        (
            lambda: (path.write_bytes(whole), put_anew(table, text.replace("ai_001_001", "ai_001_002").encode())),
            "no_cameras",
        ),
        (lambda: table.unlink(), "no_cameras"),
    ):
        change()
        (end,) = imported("hypersim", root, tmp_path).values()
        assert isinstance(end, Skip) and end.reason == reason


def test_scenes_that_move_say_their_times_and_are_not_judged(tmp_path: Path) -> None:
    folder = foreign.nerf_synthetic(tmp_path / "in" / "jacks", balls.circle(12, 1.1, 96, 20.0)[:4])
    for split in ("train", "test"):
        facts = foreign.read_json(folder / f"transforms_{split}.json")
        for i, frame in enumerate(facts["frames"]):
            frame["time"] = i / 4
        write_json(folder / f"transforms_{split}.json", facts)
    assert captures.recognised(tmp_path / "in")[0] == "d-nerf"
    scene = only(imported("d-nerf", tmp_path / "in", tmp_path))
    assert list(scene.times) == [0, 0.25, 0, 0.25] and list(scene.roles) == ["train"] * 2 + ["test"] * 2
    cfg = config("d-nerf", tmp_path / "in", tmp_path)
    (item,) = captures.items(cfg, 0)
    verdict = silhouettes.check(captures.load(item, Path(item.url), cfg))
    assert verdict.says == "undecided" and verdict.score["views"]["undecided"] == [0, 1, 2, 3]


def test_keys_of_realestate10k_are_uids_and_roles_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert list(imported("re10k-frames", plain("lvsm")(tmp_path / "a"), tmp_path)) == ["5aca87f95a9412c6"]
    scene = only(imported("co3d", plain("co3d")(tmp_path / "b"), tmp_path))
    assert scene.item.uid == "apple/110_13051_23361" and list(scene.roles) == ["train", "train", "test"]


def test_pixelsplat_with_two_splits_and_without_an_index(tmp_path: Path) -> None:
    for split, keys in (("train", "ab"), ("test", "bc")):
        (tmp_path / "in" / split).mkdir(parents=True)
        torch.save(
            [foreign.pixelsplat_clip(balls.walk(3, (90, 120)), key) for key in keys],
            tmp_path / "in" / split / "000000.torch",
        )
        if split == "train":
            write_json(tmp_path / "in" / split / "index.json", dict.fromkeys(keys, "000000.torch"))
    ends = imported("pixelsplat", tmp_path / "in", tmp_path, views=2)
    assert {uid: end.meta["split"] for uid, end in ends.items() if isinstance(end, Scene)} == {
        "a": "train", "b": "test", "c": "test", "train/b": "train",
    }  # fmt: skip
    assert all(isinstance(end, Scene) and len(end.c2w) == 2 and end.meta["views_found"] == 3 for end in ends.values())
    assert list(imported("pixelsplat", tmp_path / "in" / "test" / "000000.torch", tmp_path)) == ["b", "c"]


def test_the_input_may_be_one_scene(tmp_path: Path) -> None:
    zero, many = foreign.write_files(tmp_path / UIDS[0], small()), balls.circle(12, 35 / 32, 96)
    table = foreign.write_files(tmp_path / UIDS[1], foreign.mix_files(many))
    levels = foreign.write_files(tmp_path / "10005", under("campos_512_v4", foreign.gobjaverse_files(many[:3])))
    for source, given in (("zero123", zero), ("objaverse-mix", table), ("gobjaverse", levels)):
        scene = only(imported(source, given, tmp_path))
        assert scene.item.uid == given.name
        assert importing.errors(scene, 64).max() < 0.06


@pytest.mark.parametrize("source", importing.SOURCES)
def test_an_input_without_scenes_is_the_users_business(tmp_path: Path, source: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="holds no"):
        imported(source, tmp_path / "in", tmp_path)


def test_an_hdf5_file_leads_to_no_other(tmp_path: Path) -> None:
    """Links to other files, data kept in them, virtual and huge data sets, and groups are refused; chunks are read."""
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(range(96)))
    (tmp_path / "other.hdf5").write_bytes(foreign.hdf5(np.eye(3)))
    with h5py.File(tmp_path / "bad.hdf5", "w") as file:
        file["link"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "dataset")
        file["soft"] = h5py.SoftLink("/chunks")
        file.create_dataset("outside", (12,), "<f8", external=[(str(secret), 0, 96)])
        file.create_dataset("huge", (1 << 20, 1 << 20), "<f8", chunks=(1024, 1024))
        file.create_dataset("words", data=[b"a", b"b"])
        layout = h5py.VirtualLayout((3, 3), "<f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "dataset", (3, 3))
        file.create_virtual_dataset("virtual", layout)
        file.create_group("group")
        file.create_dataset("chunks", data=np.arange(12.0).reshape(4, 3), chunks=(2, 3), compression="gzip")
    for name in ("link", "soft", "outside", "huge", "words", "virtual", "group", "nothing"):
        with pytest.raises(ValueError, match=name):
            hdf5.array(tmp_path / "bad.hdf5", name)
    np.testing.assert_array_equal(hdf5.array(tmp_path / "bad.hdf5", "chunks"), np.arange(12.0).reshape(4, 3))
