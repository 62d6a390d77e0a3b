"""Scenes that are broken, incomplete or made to do harm: each ends as a Skip with a reason, and costs no other scene."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.core.errors import Skip, UserError
from pipeline.core.records import Item, Scene
from pipeline.sources import captures, gobjaverse, objaverse_mix, zero123
from tests import balls, foreign, importing
from tests.conftest import put_anew
from tests.importing import config, imported, seven_zipped, tarred, under, write_json, zipped

UID = foreign.UID
Files = dict[str, bytes]


def reason(source: str, given: Path, work: Path, **scene: Any) -> str:
    """Why the one scene failed, or "without ..." where views of it were left out for a reason; "" where all is well."""
    (end,) = imported(source, given, work, **scene).values()
    if not isinstance(end, Scene):
        return end.reason
    return " ".join(["without", *end.meta["left_out"]]) if "left_out" in end.meta else ""


def views() -> Files:
    return foreign.zero123_files(balls.circle(12, 35 / 32, 96)[:3])


# ---- zero123


def npy(array: np.ndarray) -> bytes:
    return foreign.npy(np.asarray(array, np.float64))


POSE = foreign.blender_w2c(balls.circle(12, 35 / 32, 96)[1])
ZERO123: dict[str, tuple[Callable[[Files], Files], str]] = {
    "good": (lambda files: files, ""),
    "other files": (lambda files: files | {"readme.txt": b"", "0001.png": b"", "001.PNG.bak": b""}, ""),
    "no images": (lambda files: {"000.npy": npy(POSE)}, "no_images"),
    "no poses": (lambda files: {name: data for name, data in files.items() if "png" in name}, "no_cameras"),
    "an image too few": (
        lambda files: {name: data for name, data in files.items() if name != "001.png"},
        "count_mismatch",
    ),
    "a pose too few": (
        lambda files: {name: data for name, data in files.items() if name != "001.npy"},
        "count_mismatch",
    ),
    "no pose": (lambda files: files | {"001.npy": b"no array"}, "bad_cameras"),
    "pose cut off": (lambda files: files | {"001.npy": npy(POSE)[:-9]}, "bad_cameras"),
    "pose of another shape": (lambda files: files | {"001.npy": npy(np.eye(3))}, "bad_cameras"),
    "pose of nan": (lambda files: files | {"001.npy": npy(POSE * np.nan)}, "bad_cameras"),
    "pose of zeros": (lambda files: files | {"001.npy": npy(POSE * 0)}, "bad_cameras"),
    "pose mirrored": (lambda files: files | {"001.npy": npy(POSE * [[-1], [1], [1]])}, "bad_cameras"),
    "pose of objects": (lambda files: files | {"001.npy": npy(POSE).replace(b"<f8", b"|O ")}, "bad_cameras"),
    "image cut off": (lambda files: files | {"001.png": files["001.png"][:500]}, "without broken_image"),
    "image empty": (lambda files: files | {"001.png": b""}, "without broken_image"),
    "image of another kind": (lambda files: files | {"001.png": b"GIF89a" + bytes(40)}, "without broken_image"),
    "images of another kind": (
        lambda files: files | dict.fromkeys(("000.png", "001.png"), b"GIF89a" + bytes(40)),
        "broken_image",
    ),
}


@pytest.mark.parametrize("case", ZERO123)
@pytest.mark.parametrize("suffix", ["", ".zip", ".7z"])
def test_zero123(tmp_path: Path, case: str, suffix: str) -> None:
    change, right = ZERO123[case]
    files = under(UID, change(views()))
    if suffix:
        given = (zipped if suffix == ".zip" else seven_zipped)(tmp_path / f"in{suffix}", files)
    else:
        given = foreign.write_files(tmp_path / "in", files)
    assert reason("zero123", given, tmp_path) == right


def test_an_empty_folder_of_zero123(tmp_path: Path) -> None:
    (tmp_path / "in" / "views_release" / UID).mkdir(parents=True)
    assert reason("zero123", tmp_path / "in", tmp_path) == "no_images"


def test_one_bad_scene_costs_no_other(tmp_path: Path) -> None:
    files = under("a" * 32, views()) | under("b" * 32, views() | {"001.npy": b""}) | under("c" * 32, views())
    link = importing.tarfile.TarInfo(f"{'d' * 32}/000.png")
    link.type, link.linkname = importing.tarfile.SYMTYPE, "/etc/passwd"
    ends = imported("zero123", tarred(tmp_path / "in.tar.gz", files, link), tmp_path)
    assert {uid[0]: getattr(end, "reason", "") for uid, end in ends.items()} == {
        "a": "", "b": "bad_cameras", "c": "", "d": "unsafe_archive",
    }  # fmt: skip


# ---- gobjaverse


def gobjaverse_with(**changes: Any) -> Callable[[Files], Files]:
    def change(files: Files) -> Files:
        facts = json.loads(files["00001/00001.json"]) | changes
        return files | {"00001/00001.json": json.dumps({k: v for k, v in facts.items() if v is not ...}).encode()}

    return change


GOBJAVERSE: dict[str, tuple[Callable[[Files], Files], str]] = {
    "good": (lambda files: files, ""),
    "no y_fov": (gobjaverse_with(y_fov=...), ""),
    "no x_fov": (gobjaverse_with(x_fov=...), "bad_cameras"),
    "fov in degrees": (gobjaverse_with(x_fov=39.6), "bad_cameras"),
    "fov as text": (gobjaverse_with(x_fov="0.69"), ""),
    "no origin": (gobjaverse_with(origin=...), "bad_cameras"),
    "origin of two": (gobjaverse_with(origin=[1, 2]), "bad_cameras"),
    "axes of text": (gobjaverse_with(x=["a", "b", "c"]), "bad_cameras"),
    "axes not normal": (gobjaverse_with(x=[2, 0, 0]), "bad_cameras"),
    "no JSON": (lambda files: files | {"00001/00001.json": b"{"}, "bad_cameras"),
    "a list": (lambda files: files | {"00001/00001.json": b"[]"}, "bad_cameras"),
    "nested for ever": (lambda files: files | {"00001/00001.json": b"[" * 100_000}, "bad_cameras"),
    "a camera too few": (lambda files: {k: v for k, v in files.items() if k != "00001/00001.json"}, "count_mismatch"),
    "no cameras": (lambda files: {k: v for k, v in files.items() if "json" not in k}, "no_cameras"),
}


@pytest.mark.parametrize("case", GOBJAVERSE)
def test_gobjaverse(tmp_path: Path, case: str) -> None:
    change, right = GOBJAVERSE[case]
    foreign.write_files(
        tmp_path / "in/0/7/campos_512_v4", change(foreign.gobjaverse_files(balls.circle(12, 35 / 32, 96)[:3]))
    )
    assert reason("gobjaverse", tmp_path / "in", tmp_path) == right


def test_a_broken_tar_of_gobjaverse_costs_itself(tmp_path: Path) -> None:
    (tmp_path / "in/0").mkdir(parents=True)
    (tmp_path / "in/0/7.tar").write_bytes(b"no tar" * 200)
    assert reason("gobjaverse", tmp_path / "in", tmp_path) == "broken_archive"
    write_json(tmp_path / "in" / gobjaverse.MAPS[0], ["no map"])
    with pytest.raises(UserError, match="not the map"):
        reason("gobjaverse", tmp_path / "in", tmp_path)


# ---- objaverse-mix


def test_objaverse_mix_with_gaps(tmp_path: Path) -> None:
    files = foreign.mix_files(balls.circle(12, 35 / 32, 96)[:4])
    del files["001.png"]
    assert (
        reason("objaverse-mix", foreign.write_files(tmp_path / "in", under(UID, files)).parent / "in", tmp_path)
        == "views_missing"
    )


# ---- pixelsplat


def clip(**changes: Any) -> dict[str, Any]:
    made = foreign.pixelsplat_clip(balls.walk(3, (90, 120))) | changes
    return {key: value for key, value in made.items() if value is not ...}


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


CAMERAS = clip()["cameras"]
CLIPS: dict[str, tuple[dict[str, Any], str]] = {
    "good": (clip(), ""),
    "no images": (clip(images=[]), "no_images"),
    "images missing": (clip(images=...), "no_images"),
    "images as pixels": (clip(images=[torch.zeros(3, 9, 9)] * 3), "broken_image"),
    "images of noise": (clip(images=[torch.zeros(99, dtype=torch.uint8)] * 3), "broken_image"),
    "no cameras": (clip(cameras=...), "no_cameras"),
    "a camera too few": (clip(cameras=CAMERAS[:2]), "count_mismatch"),
    "17 numbers": (clip(cameras=CAMERAS[:, :17]), "bad_cameras"),
    "cameras of nan": (clip(cameras=CAMERAS * float("nan")), "bad_cameras"),
    "numbers where zeros belong": (clip(cameras=CAMERAS + torch.eye(18)[4]), "unsupported_camera"),
    "singular": (clip(cameras=torch.cat([CAMERAS[:, :6], 0 * CAMERAS[:, 6:]], 1)), "bad_cameras"),
    "another key": (clip(key="other"), "missing"),
}


@pytest.mark.parametrize("case", CLIPS)
def test_pixelsplat(tmp_path: Path, case: str) -> None:
    record, right = CLIPS[case]
    (tmp_path / "in").mkdir()
    torch.save([record], tmp_path / "in/000000.torch")
    write_json(tmp_path / "in/index.json", {"clip": "000000.torch"})
    assert reason("pixelsplat", tmp_path / "in", tmp_path) == right


def test_chunks_of_pixelsplat(tmp_path: Path) -> None:
    given, canary = tmp_path / "in", tmp_path / "canary"
    given.mkdir()
    torch.save([clip()], tmp_path / "outside.torch")
    torch.save([clip(url=Harm(canary))], given / "evil.torch")
    torch.save({"key": "no list"}, given / "dict.torch")
    (given / "text.torch").write_text("no chunk")
    write_json(
        given / "index.json",
        {"a": "../outside.torch", "b": "evil.torch", "c": "text.torch", "d": "gone.torch", "e": "dict.torch"},
    )
    ends = imported("pixelsplat", given, tmp_path)
    assert {uid: end.reason for uid, end in ends.items() if isinstance(end, Skip)} == {
        "a": "escapes_folder", "b": "unsafe_pickle", "c": "broken_torch_file", "d": "missing", "e": "broken_torch_file",
    }  # fmt: skip
    assert not canary.exists()
    for text in ("[]", "{", '{"a": {}}'):
        (given / "index.json").write_text(text)
        try:
            assert set(imported("pixelsplat", given, tmp_path)) == {"a"}
        except UserError as error:
            assert "index.json" in str(error)  # noqa: PT017


# ---- nerfstudio


def studio(folder: Path, frame: dict[str, Any] | None = None, **shared: Any) -> Path:
    """A good folder with one frame and the shared fields changed; ... takes a field away."""
    foreign.nerfstudio(folder, balls.walk(3, (90, 120)))
    facts = foreign.read_json(folder / "transforms.json") | shared
    if frame is not None:
        facts["frames"][1] = {k: v for k, v in (facts["frames"][1] | frame).items() if v is not ...}
    write_json(folder / "transforms.json", {k: v for k, v in facts.items() if v is not ...})
    return folder


NERFSTUDIO: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "good": ({}, {}, ""),
    "a suffix missing": ({"file_path": "images/frame_00001"}, {}, ""),
    "a frame twice": ({"file_path": "images/frame_00000.png"}, {}, "listed_twice"),
    "3x4 poses": ({"transform_matrix": foreign.opengl_c2w(balls.walk(3, (90, 120))[1])[:3]}, {}, ""),
    "no camera_model": ({}, {"camera_model": ...}, ""),
    "camera_model in small letters": ({}, {"camera_model": "pinhole"}, ""),
    "fisheye": ({}, {"camera_model": "OPENCV_FISHEYE", "k1": 0.01}, ""),
    "ngp's fisheye": ({}, {"camera_model": ..., "is_fisheye": True, "k3": 0.01, "k4": 0.001}, ""),
    "a fisheye and none": ({}, {"camera_model": "OPENCV", "is_fisheye": True, "k3": 0.01}, "unsupported_camera"),
    "a pinhole that bends": ({}, {"camera_model": "PINHOLE", "k1": 0.01, "k2": 0.001}, ""),
    "a panorama without a focal length": (
        {},
        {"camera_model": "EQUIRECTANGULAR", "fl_x": ..., "fl_y": ...},
        "unsupported_camera",
    ),
    "no fisheye": ({}, {"is_fisheye": False, "equirectangular": False, "rolling_shutter": [0, 0, 0, 0]}, ""),
    "a circle of a fisheye": ({}, {"camera_model": "OPENCV_FISHEYE", "fisheye_crop_radius": 44}, ""),
    "nerfstudio's six": ({}, {"distortion_params": [-0.1, 0.02, 0.001, 0.0, 0.001, 0.001]}, ""),
    "panorama": ({"camera_model": "EQUIRECTANGULAR"}, {}, "unsupported_camera"),
    "k4": ({}, {"k4": 0.1}, "unsupported_camera"),
    "k5": ({}, {"k5": 0.1}, "unsupported_camera"),
    "omega with another model": ({}, {"omega": 0.9}, "unsupported_camera"),
    "omega of text": ({}, {"camera_model": "FOV", "omega": "0.9"}, ""),
    "distortion_params of another length": ({}, {"distortion_params": [0.1, 0.2, 0.0, 0.0]}, "unsupported_camera"),
    "distortion_params of text": ({}, {"distortion_params": ["a"] * 6}, "bad_cameras"),
    "equirectangular": ({}, {"equirectangular": True}, "unsupported_camera"),
    "latlong": ({}, {"latlong": 1}, "unsupported_camera"),
    "orthographic": ({}, {"orthographic": True}, "unsupported_camera"),
    "orthographic in a frame": ({"orthographic": True}, {}, "unsupported_camera"),
    "f-theta": ({}, {"ftheta_p0": 0.0, "ftheta_p1": 0.01}, "unsupported_camera"),
    "rolling shutter": ({}, {"rolling_shutter": [0, 0, 0.02, 0]}, "unsupported_camera"),
    "skew": ({}, {"skew": 0.7}, "unsupported_camera"),
    "camera_type": ({}, {"camera_type": "fisheye"}, "unsupported_camera"),
    "camera_type perspective": ({}, {"camera_type": "perspective"}, ""),
    "a lens that nobody knows": ({}, {"lens_distortion": {"k": [1, 2]}}, "unsupported_camera"),
    "a lens of 35 mm": ({"theta": 0.3, "phi": 1.1}, {"lens": 35.0, "time_offset": 2}, ""),
    "a lens by name": ({}, {"lens": "fisheye_equidistant"}, "unsupported_camera"),
    "x_fov and fl_x that disagree": ({}, {"x_fov": 90}, "bad_cameras"),
    "x_fov of 180": ({}, {"fl_x": ..., "x_fov": 180}, "bad_cameras"),
    "no frames": ({}, {"frames": []}, "no_images"),
    "frames missing": ({}, {"frames": ...}, "no_cameras"),
    "frames of text": ({}, {"frames": ["a"]}, "no_cameras"),
    "no focal length": ({}, {"fl_x": ..., "fl_y": ...}, "no_cameras"),
    "focal length of text": ({}, {"fl_x": "wide"}, "bad_cameras"),
    "focal length 0": ({}, {"fl_x": 0}, "bad_cameras"),
    "focal length true": ({}, {"fl_x": True}, "bad_cameras"),
    "an angle of 200 degrees": ({}, {"fl_x": ..., "camera_angle_x": 3.5}, "bad_cameras"),
    "pictures of no size": ({}, {"w": 0, "h": 0}, "bad_cameras"),
    "pictures of another shape": ({}, {"w": 90, "h": 120}, "bad_cameras"),
    "twice the size, which is not said": ({}, {"w": ..., "h": ..., "cx": 116, "cy": 88}, "bad_cameras"),
    "no pose": ({"transform_matrix": ...}, {}, "without bad_cameras"),
    "pose of text": ({"transform_matrix": "identity"}, {}, "without bad_cameras"),
    "pose of ragged rows": ({"transform_matrix": [[1, 2], [3]]}, {}, "without bad_cameras"),
    "pose 2x2": ({"transform_matrix": [[1, 0], [0, 1]]}, {}, "without bad_cameras"),
    "pose of nan": ({"transform_matrix": (np.eye(4) * np.nan).tolist()}, {}, "without bad_cameras"),
    "pose of infinity": (
        {"transform_matrix": (np.eye(4) + np.diag([np.inf] * 3, 1)).tolist()},
        {},
        "without bad_cameras",
    ),
    "pose mirrored": ({"transform_matrix": np.diag([-1.0, 1, 1, 1]).tolist()}, {}, "without bad_cameras"),
    "a focal length of its own that is none": ({"fl_x": "wide"}, {}, "without bad_cameras"),
    "a size of its own that is none": ({"w": 90, "h": 120}, {}, "without bad_cameras"),
    "pose scaled": ({"transform_matrix": (np.eye(4) * [2, 2, 2, 1]).tolist()}, {}, "without bad_cameras"),
    "no file_path": ({"file_path": ...}, {}, "bad_cameras"),
    "file_path a number": ({"file_path": 7}, {}, "bad_cameras"),
    "image missing": ({"file_path": "images/frame_00009.png"}, {}, "without image_missing"),
    "a folder for an image": ({"file_path": "images"}, {}, "without image_missing"),
    "a text for an image": ({"file_path": "transforms.json"}, {}, "without broken_image"),
    "upwards": ({"file_path": "../../outside.png"}, {}, "escapes_folder"),
    "upwards in images": ({"file_path": "images/../../../outside.png"}, {}, "escapes_folder"),
    "absolute": ({"file_path": "/etc/passwd"}, {}, "escapes_folder"),
    "NUL": ({"file_path": "images/\0.png"}, {}, "escapes_folder"),
    "upwards as in URLs": ({"file_path": "%2e%2e%2F..%2Foutside.png"}, {}, "escapes_folder"),
    "NUL as in URLs": ({"file_path": "images/%00.png"}, {}, "escapes_folder"),
    "too long": ({"file_path": "x" * 5000}, {}, "without image_missing"),
    "through a link": ({"file_path": "link/outside.png"}, {}, ""),
    "lens that folds": ({}, {"k1": -4.0, "k2": 30.0, "p1": 3.0}, "bad_distortion"),
}


@pytest.mark.parametrize("case", NERFSTUDIO)
def test_nerfstudio(tmp_path: Path, case: str) -> None:
    frame, shared, right = NERFSTUDIO[case]
    (tmp_path / "outside.png").write_bytes(balls.photo(balls.pictures(balls.walk(3, (90, 120)))[0], "PNG"))
    folder = studio(tmp_path / "in" / "scene", frame or None, **shared)
    (folder / "link").symlink_to(tmp_path)
    assert reason("nerfstudio", tmp_path / "in", tmp_path) == right


@pytest.mark.parametrize(
    "said", [{"orthographic": True}, {"camera_model": "ORTHOPHOTO"}, {"rolling_shutter_time": 0.1}]
)
def test_a_camera_that_is_not_read_is_named_with_what_to_do(tmp_path: Path, said: dict[str, Any]) -> None:
    studio(tmp_path / "in" / "scene", None, **said)
    cfg = config("nerfstudio", tmp_path / "in", tmp_path)
    (item,) = captures.items(cfg, 0)
    with pytest.raises(Skip) as refused:
        captures.load(item, Path(item.url), cfg)
    assert refused.value.reason == "unsupported_camera" and "perspective" in refused.value.detail
    assert str(next(iter(said.values())))[:5] in refused.value.detail and "undistort" not in refused.value.detail


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"frames": 1e999}', '"\\ud800"', "NaN"])
def test_transforms_that_are_no_transforms(tmp_path: Path, text: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/transforms.json").write_text(text)
    assert reason("nerfstudio", tmp_path / "in", tmp_path) in ("bad_cameras", "no_cameras")


def test_links_are_followed_unless_they_must_not(tmp_path: Path) -> None:
    folder = studio(tmp_path / "in" / "scene")
    (folder / "images").rename(tmp_path / "in" / "pictures")
    (folder / "images").symlink_to(tmp_path / "in" / "pictures")
    for given, right in ((tmp_path / "in", ""), (folder, "escapes_folder")):
        assert reason("nerfstudio", given, tmp_path) == ""
        cfg = replace(config("nerfstudio", given, tmp_path), follow_links=False)
        (item,) = captures.items(cfg, 0)
        with pytest.raises(Skip, match=right) if right else contextlib.nullcontext():
            captures.load(item, Path(item.url), cfg)


# ---- colmap

EYES = balls.walk(3, (90, 120))
TEXT: dict[str, tuple[str, Callable[[str], str], str]] = {
    "good": ("images", lambda text: text, ""),
    "no points": ("images", lambda text: text.replace("1.5 2.5 -1", ""), ""),
    "no image": ("images", lambda text: "# nothing\n", "no_images"),
    "no camera": ("cameras", lambda text: "\n", "bad_cameras"),
    "fisheye": ("cameras", lambda text: text.replace("PINHOLE", "OPENCV_FISHEYE"), "bad_cameras"),  # needs 8 parameters
    "a model of tomorrow": ("cameras", lambda text: text.replace("PINHOLE", "HOLOGRAM"), "unsupported_camera"),
    "a parameter too few": ("cameras", lambda text: text.rsplit(" ", 1)[0], "bad_cameras"),
    "a parameter of text": ("cameras", lambda text: text.rsplit(" ", 1)[0] + " x", "bad_cameras"),
    "nan": ("cameras", lambda text: text.rsplit(" ", 1)[0] + " nan", "bad_cameras"),
    "negative": ("cameras", lambda text: text.replace(" 120 90 ", " -120 -90 "), "bad_cameras"),
    "another shape": ("cameras", lambda text: text.replace(" 120 90 ", " 90 120 "), "bad_cameras"),
    "twice the size": ("cameras", lambda text: text.replace(" 120 90 ", " 240 180 "), ""),
    "a line too short": ("images", lambda text: text.replace(" 7 left", " left"), "bad_cameras"),
    "a quaternion of 0": ("images", lambda text: zero_quaternion(text), "without bad_cameras"),
    "a translation of nan": ("images", lambda text: zero_quaternion(text, "nan", 5), "without bad_cameras"),
    "another image": ("images", lambda text: text.replace("000.jpg", "009.jpg"), "without image_missing"),
    "other images": ("images", lambda text: text.replace("/00", "/01"), "image_missing"),
    "upwards": ("images", lambda text: text.replace("left eye/000.jpg", "../../../outside.jpg"), "escapes_folder"),
    "absolute": ("images", lambda text: text.replace("left eye/000.jpg", "/etc/passwd"), "escapes_folder"),
}


def zero_quaternion(text: str, zero: str = "0", first: int = 1) -> str:
    """The first image with a quaternion of 0, or with other numbers from another field on."""
    lines = text.splitlines()
    fields = lines[1].split()
    lines[1] = " ".join([*fields[:first], *[zero] * (8 - first if first > 4 else 4), *fields[8 if first > 4 else 5 :]])
    return "\n".join(lines)


@pytest.mark.parametrize("case", TEXT)
def test_colmap_text(tmp_path: Path, case: str) -> None:
    name, change, right = TEXT[case]
    folder = foreign.colmap(tmp_path / "in", EYES, "PINHOLE", binary=False)
    path = folder / f"sparse/0/{name}.txt"
    path.write_text(change(path.read_text()))
    assert reason("colmap", tmp_path / "in", tmp_path) == right


def test_colmap_binary(tmp_path: Path) -> None:
    folder = foreign.colmap(tmp_path / "in", EYES, "PINHOLE", binary=True)
    for name in ("cameras.bin", "images.bin"):
        path = folder / "sparse/0" / name
        whole = path.read_bytes()
        for length in range(0, len(whole), 7):
            put_anew(path, whole[:length])
            assert reason("colmap", tmp_path / "in", tmp_path) == "bad_cameras"
        for data in (struct.pack("<Q", 2**60) + whole[8:], whole[:8] + b"\xff" * 60):
            path.write_bytes(data)
            assert reason("colmap", tmp_path / "in", tmp_path) in ("bad_cameras", "unsupported_camera")
        path.write_bytes(whole)
    assert reason("colmap", tmp_path / "in", tmp_path) == ""


def detail(source: str, given: Path, work: Path) -> str:
    """What is said of the one scene, which fails."""
    (end,) = imported(source, given, work).values()
    assert isinstance(end, Skip), end
    return end.detail


def test_damaged_models_are_named_with_file_and_place(tmp_path: Path) -> None:
    folder = foreign.colmap(tmp_path / "binary", EYES, "PINHOLE", binary=True) / "sparse/0"
    whole = (folder / "images.bin").read_bytes()
    second = 8 + 64 + len("left eye/000.jpg") + 1 + 8
    (folder / "images.bin").write_bytes(whole[: second + 30])
    said = detail("colmap", tmp_path / "binary", tmp_path)
    assert said.startswith(
        f"{folder / 'images.bin'} is cut off or damaged: it has {second + 30} bytes, and image 2 of 3 "
    )
    assert f"needs those from {second} to {second + 64}" in said and "copy the model again" in said
    (folder / "images.bin").write_bytes(whole[:-3])  # within the points of the last image
    assert f"it has {len(whole) - 3} bytes, and image 3 of 3 " in detail("colmap", tmp_path / "binary", tmp_path)
    (folder / "cameras.bin").write_bytes((folder / "cameras.bin").read_bytes()[:40])
    assert f"{folder / 'cameras.bin'} is cut off or damaged: it has 40 bytes, and camera 1 of 1 " in detail(
        "colmap", tmp_path / "binary", tmp_path
    )
    folder = foreign.colmap(tmp_path / "text", EYES, "PINHOLE", binary=False) / "sparse/0"
    lines = (folder / "images.txt").read_text().splitlines()
    lines[3] = lines[3].replace(" 7 ", " seven ")
    (folder / "images.txt").write_text("\n".join(lines))
    said = detail("colmap", tmp_path / "text", tmp_path)
    assert said.startswith(f"{folder / 'images.txt'}, line 4: invalid literal") and "'seven'" in said


def test_folders_in_which_pictures_of_a_model_were_sought_are_named(tmp_path: Path) -> None:
    folder = foreign.colmap(tmp_path / "in", EYES, "PINHOLE", binary=True, at="dense/sparse")
    (folder / "dense/images").mkdir()  # an undistorted model's own
    assert "(the first: left eye/000.jpg is not in dense/images)" in detail("colmap", folder, tmp_path)


def test_pictures_and_frames_are_named_in_what_is_said(tmp_path: Path) -> None:
    """Where all views fail alike, the first of them, its file and what to do."""
    folder = studio(tmp_path / "bmp")
    pictures = sorted((folder / "images").iterdir())
    for path in pictures:
        path.write_bytes(b"BM" + bytes(60))
    said = detail("nerfstudio", folder, tmp_path)
    assert f"3 of 3 views cannot be used in {folder} (the first: images/frame_00000.png: a BMP picture, and PNG" in said
    turned = studio(tmp_path / "turned", None, w=90, h=120)
    for path in sorted((turned / "images").iterdir()):
        with Image.open(path) as picture:
            exif = picture.getexif()
            exif[0x0112] = 6
            picture.save(path, "PNG", exif=exif)
    said = detail("nerfstudio", turned, tmp_path)
    assert "frame_00000.png is 120x90 pixels, its camera says 90x120; its EXIF orientation is 6" in said
    assert "mogrify -auto-orient" in said
    without = studio(tmp_path / "unnamed", {"file_path": ...})
    assert "frame 1 of transforms.json has file_path 'None'" in detail("nerfstudio", without, tmp_path)
    both = studio(tmp_path / "both", None, is_fisheye=True)
    assert "camera_model OPENCV and is_fisheye True contradict each other" in detail("nerfstudio", both, tmp_path)


def test_what_is_gone_since_it_was_listed(tmp_path: Path) -> None:
    for module, source in (
        (zero123, "zero123"),
        (captures, "colmap"),
        (captures, "nerfstudio"),
        (objaverse_mix, "objaverse-mix"),
    ):
        (tmp_path / "in").mkdir(exist_ok=True)
        cfg = config(source, tmp_path / "in", tmp_path)
        with pytest.raises(Skip) as end:
            module.load(Item("gone", source, url=str(tmp_path / "in/gone")), tmp_path / "in/gone", cfg)
        assert end.value.reason in ("missing", "no_cameras")
