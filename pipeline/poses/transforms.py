"""transforms.json of nerfstudio, instant-ngp and DL3DV, and transforms_train, _val, _test.json of NeRF's Blender scenes.

Poses are camera-to-world with OpenGL axes (+x right, +y up, -z forward). They stay in the world that the file speaks of:
`applied_transform` says how that came about and is only noted, since undoing it would move all cameras alike.
Intrinsics are for pictures of w x h; where the pictures are smaller (images_4 of DL3DV), they are scaled with them. Names that
speak of a camera's geometry are honoured, or the camera is refused: nothing of it is passed over.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import cameras
from pipeline.core.cameras import Lens
from pipeline.core.errors import Skip
from pipeline.formats import bundles
from pipeline.poses import lenses
from pipeline.poses.capture import (
    ROLES,
    Capture,
    View,
    fitted,
    focal,
    json_object,
    matrices,
    matrices_of,
    number,
    unsized,
)
from pipeline.poses.pictures import Finder
from pipeline.poses.shots import Folders, Shots, Writer, write_pictures, write_ply

SAYS = "transforms.json"
FILES = ("transforms.json", "transforms_train.json", "transforms_val.json", "transforms_test.json")
COEFFICIENTS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "sx1", "sy1", "omega")
PARAMS = ("k1", "k2", "k3", "k4", "p1", "p2")  # of distortion_params, in nerfstudio's order
READ = {"is_fisheye", "fisheye_crop_radius", "distortion_params", "camera_model", *COEFFICIENTS}
GEOMETRY = re.compile(  # names of what changes where a point is seen
    r"[kps]\d+|s[xy]\d+|omega|xi|skew|.*shutter.*|read_?out.*|shift_?[xy]|ftheta.*|camera_?type|projection.*|lens.*"
    r"|pano|(?:is_?)?360.*|.*(?:fish.?eye|distort|equirect|lat_?long|ortho|panoram|spherical|omnidir|cylindr|stereo|vr_?180).*",
    re.IGNORECASE,
)
KINDS = re.compile(
    r"type|kind|mode|model|camera", re.IGNORECASE
)  # names of what may be a camera's kind, by their value
POSES = re.compile(
    r"transform_matrix_(start|end)|normal_mts_args|from_mitsuba"
)  # for which instant-ngp takes other poses
MATRIX = re.compile(r"K|(?:camera_?)?intrinsics?(?:_?mat(?:rix)?)?|camera_?mat(?:rix)?", re.IGNORECASE)
ASPECT = re.compile(r"pixel_?aspect(?:_?ratio)?(?:_?[xy])?", re.IGNORECASE)
SAME_FOCAL = 0.01  # share by which focal lengths may differ that are said in two ways
BESIDE = {  # ScanNet++'s files -> the folder beside theirs that holds the pictures
    "transforms.json": "resized_images",
    "transforms_undistorted.json": "resized_undistorted_images",
}
ROLE = "_role"  # key that `read` adds to frames
PLAIN = ("perspective", "persp", "pinhole", "global", "none", "")  # values that say: nothing out of the ordinary
NGP_MODELS = {
    "": "OPENCV",
    "PERSPECTIVE": "OPENCV",
    "FISHEYE": "OPENCV_FISHEYE",
}  # other names for a model of PARAMETERS


def is_scene(folder: Path) -> bool:
    """True if the folder holds one of FILES."""
    return any((folder / name).is_file() for name in FILES)


def read(folder: Path, finder: Finder, only: str = "") -> Capture:
    """Read the capture in a folder. only: the one of FILES to read. Raises Skip: no_cameras, no_images, bad_cameras, ..."""
    names = [only] if only else [name for name in FILES if (folder / name).is_file()]
    if not names:
        raise Skip("no_cameras", f"no transforms.json in {folder}")
    frames: list[dict[str, Any]] = []
    meta: dict[str, Any] = {}
    for name in names[:1] if names[0] == FILES[0] else names:
        shared = json_object(bundles.read_file(folder / name), name)
        split = name.removesuffix(".json").removeprefix("transforms").strip("_")
        for key, role in (("frames", split), ("test_frames", "test")):  # the latter: ScanNet++
            listed = shared.pop(key, [] if key != "frames" else None)
            if not isinstance(listed, list) or not all(isinstance(frame, dict) for frame in listed):
                raise Skip("no_cameras", f"{name} has no list of {key}")
            frames += [shared | frame | {ROLE: role} for frame in listed]
        _name_roles(frames, shared)
        if "applied_transform" in shared:
            meta["applied_transform"] = matrices([shared["applied_transform"]])[0].tolist()
    if not frames:
        raise Skip("no_images", f"{names[0]} lists no frame")
    frames = _unique(frames, names[0])
    poses = matrices_of([frame.get("transform_matrix") for frame in frames])
    if (scale := _common_scale(poses)) != 1:
        poses[:, :3, :3] /= scale  # rays keep their directions
        meta["rotation_scale"] = round(scale, 6)
    if (beside := folder.parent / BESIDE.get(names[0], "")) != folder.parent and beside.is_dir():
        finder = finder.within(beside)
        for frame in frames:
            frame["file_path"] = _beside(frame["file_path"], folder, beside)
    views = [_view(frame, pose, folder, finder) for frame, pose in zip(frames, cameras.from_opengl(poses), strict=True)]
    return Capture(views, meta)


def _beside(name: str, folder: Path, beside: Path) -> str:
    """Name of a picture: in the folder beside, where a bare name is not in the folder itself."""
    return name if Path(name).name != name or (folder / name).exists() else f"../{beside.name}/{name}"


def _view(frame: dict[str, Any], pose: np.ndarray, folder: Path, finder: Finder) -> View:
    name, camera = frame["file_path"], functools.partial(_camera, frame)
    return View(name, finder.copy(name, folder), pose, camera, frame[ROLE], number(frame, "time"))


def _name_roles(frames: list[dict[str, Any]], shared: Mapping[str, Any]) -> None:
    """Set the roles that nerfstudio's train_filenames, val_filenames and test_filenames name."""
    for role in ROLES:
        named = shared.get(f"{role}_filenames")
        if isinstance(named, list):
            of = {str(name).removeprefix("./") for name in named}
            for frame in frames:
                if str(frame.get("file_path")).removeprefix("./") in of:
                    frame[ROLE] = role


def _common_scale(poses: np.ndarray) -> float:
    """Factor by which the axes of all finite poses (V, 4, 4) are longer than 1; 1 where they differ, or hardly are."""
    lengths = np.linalg.norm(poses[:, :3, :3], axis=1)
    lengths = lengths[np.isfinite(lengths).all(1)]
    if not len(lengths) or lengths.min() <= 0 or np.ptp(lengths) > 1e-3 * lengths.min():
        return 1.0
    scale = float(np.median(lengths))
    return scale if abs(scale - 1) > 1e-3 else 1.0


def _unique(frames: list[dict[str, Any]], file: str) -> list[dict[str, Any]]:
    """Keep one of the frames with the same picture and pose. Raises Skip("bad_cameras") for a frame without file_path."""
    for place, frame in enumerate(frames):
        if not isinstance(named := frame.get("file_path"), str) or not named:
            said = f"frame {place} of {file} has file_path {str(named)[:40]!r}"
            raise Skip("bad_cameras", f"{said}, and the name of a picture is needed")
    return list({(frame["file_path"], repr(frame.get("transform_matrix"))): frame for frame in frames}.values())


def _camera(frame: Mapping[str, Any], hw: tuple[int, int]) -> tuple[np.ndarray, Lens]:
    """Intrinsics of a frame: fxfycxcy (4,) in pixels of a picture of size hw, and its lens."""
    stated = _lens(frame)  # first, since other cameras need no focal length
    values = {name: number(frame, name) for name in ("w", "h", "cx", "cy")}
    if "w" in frame and min(values["w"] or 0, values["h"] or 0) < 1:
        raise Skip("bad_cameras", f"pictures of {values['w']}x{values['h']} pixels")
    width, height = values["w"] or float(hw[1]), values["h"] or float(hw[0])
    fx, fy = _focal(frame, "x", width), _focal(frame, "y", height)
    fx, fy = fy if fx is None else fx, fx if fy is None else fy  # square pixels where one is not said
    if fx is None or fy is None:
        raise Skip("no_cameras", "neither fl_x nor camera_angle_x nor x_fov says a focal length")
    cx, cy = values["cx"], values["cy"]
    made = [fx, fy, width / 2 if cx is None else cx, height / 2 if cy is None else cy]
    if values["w"] is None:
        unsized(np.array(made), hw)
    _check_matrices(frame, np.array(made), (height, width))
    crop = (number(frame, "fisheye_crop_radius") or 0.0) / width
    lens = dataclasses.replace(stated, crop=crop) if crop > 0 else stated
    return fitted(np.array(made), (height, width), hw, Path(frame["file_path"]).name), lens


def _focal(frame: Mapping[str, Any], axis: str, size: float) -> float | None:
    """Focal length along an axis in pixels, None if not stated. Raises Skip("bad_cameras"), also where readers would disagree.

    instant-ngp takes x_fov (degrees) first; nerfstudio knows fl_x alone; both take fl_x before camera_angle_x (radians).
    """
    fov, pixels, angle = (number(frame, name) for name in (f"{axis}_fov", f"fl_{axis}", f"camera_angle_{axis}"))
    by_fov = None if fov is None else focal(size, math.radians(fov))
    if by_fov and pixels and abs(by_fov / pixels - 1) > SAME_FOCAL:
        raise Skip("bad_cameras", f"{axis}_fov {fov:g} means {by_fov:.5g} pixels, fl_{axis} says {pixels:g}")
    if pixels is not None:
        return pixels
    return by_fov if by_fov or angle is None else focal(size, angle)


def _check_matrices(frame: Mapping[str, Any], fxfycxcy: np.ndarray, hw: tuple[float, float]) -> None:
    """Raise Skip("bad_cameras") where a matrix K (pixels, or shares of the picture) says other focal lengths than the rest."""
    for name, value in frame.items():
        if not MATRIX.fullmatch(name):
            continue
        try:
            said = np.array(value, np.float64)
        except (ValueError, TypeError):
            continue  # a name, or a record
        focals = (
            said[:2] if said.shape == (4,) else np.diag(said)[:2] if said.shape in ((3, 3), (3, 4), (4, 4)) else None
        )
        if focals is not None and not any(
            np.allclose(focals * unit, fxfycxcy[:2], rtol=SAME_FOCAL, atol=0) for unit in (1, np.array(hw[::-1]))
        ):
            raise Skip("bad_cameras", f"{name} says focal lengths {focals.tolist()}, the rest {fxfycxcy[:2].tolist()}")


def _lens(frame: Mapping[str, Any]) -> Lens:
    """Lens of a frame, without its crop. Raises Skip: bad_cameras, unsupported_camera (what is said of it is not honoured)."""
    for name, value in frame.items():
        if name == "lens" and isinstance(value, int | float):  # millimetres, which fl_x or an angle say too
            continue
        if ASPECT.fullmatch(name) and number(frame, name) not in (None, 1.0):
            raise Skip("unsupported_camera", f"{name} is {str(value)[:40]}; {lenses.NEEDED}")
        if POSES.fullmatch(name) and _says_something(value) and value != frame.get("transform_matrix"):
            said = (
                f"{name} is said, for which instant-ngp takes other poses than transform_matrix has, and others do not"
            )
            raise Skip("unsupported_camera", f"{said}; leave it out if transform_matrix is right")
        speaks = value if KINDS.fullmatch(name) and isinstance(value, str) else name
        if name not in READ and GEOMETRY.fullmatch(speaks) and _says_something(value):
            raise Skip("unsupported_camera", f"{name} is {str(value)[:40]}; {lenses.NEEDED}")
    stated = frame.get("camera_model", "")
    model = str(stated or "").upper()
    model = NGP_MODELS.get(model, model)
    if model not in lenses.PARAMETERS:
        return lenses.lens(str(stated), {})  # raises
    values = {name: value for name in COEFFICIENTS if (value := number(frame, name))}
    params = frame.get("distortion_params")
    if params is not None and _says_something(params):
        values = _params(params)
    if frame.get("is_fisheye") and lenses.BENDS[model] == "none":
        if stated:  # nerfstudio goes by camera_model alone, instant-ngp by is_fisheye alone
            said = f"camera_model {stated} and is_fisheye {frame['is_fisheye']} contradict each other"
            raise Skip("unsupported_camera", f"{said}, and readers follow one or the other; leave the wrong one out")
        model = "OPENCV_FISHEYE"
    # nerfstudio takes these for any perspective model, PINHOLE too
    known = {"k1", "k2", "k3", "p1", "p2", *lenses.PARAMETERS[model]} | (
        {"k4"} if params or "FISHEYE" in model else set()
    )
    if foreign := sorted(values.keys() - known):
        raise Skip("unsupported_camera", f"{foreign[0]} {values[foreign[0]]:g} with {stated or model}; {lenses.NEEDED}")
    return lenses.lens(model, values)


def _params(params: Any) -> dict[str, float]:
    if not isinstance(params, list) or len(params) != len(PARAMS):
        raise Skip("unsupported_camera", f"distortion_params {str(params)[:40]}; {', '.join(PARAMS)} are needed")
    named = dict(zip(PARAMS, params, strict=True))
    return {name: value for name in PARAMS if (value := number(named, name))}


def _says_something(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() not in PLAIN
    if isinstance(value, list):
        return any(_says_something(one) for one in value)
    return bool(value)


# ---- writing


def nerfstudio(root: Path) -> Writer:
    """Writer of nerfstudio's layout: NAME/transforms.json and NAME/images."""
    return Folders(
        root,
        _write_nerfstudio,
        "ns-train ... --data FOLDER/NAME nerfstudio-data --orientation-method none --center-method none "
        "--auto-scale-poses False keeps the poses as they are",
    )


def instant_ngp(root: Path) -> Writer:
    """Writer of instant-ngp's layout, which scales poses by 0.33 and moves them by 0.5 itself."""
    return Folders(root, _write_instant_ngp)


def nerf_synthetic(root: Path) -> Writer:
    """Writer of the layout of NeRF's synthetic scenes: NAME/transforms_{train,val,test}.json, and PNGs with alpha."""
    said = "readers with fixed bounds (near 2, far 6) want cameras at a distance of 4: set yours, or scale the poses"
    return Folders(root, _write_nerf_synthetic, said)


def _write_nerfstudio(shots: Shots, folder: Path) -> None:
    names = [f"images/{name}" for name in write_pictures(shots, folder / "images")]
    points = shots.points()
    about = {"camera_model": "OPENCV", "orientation_override": "none"}
    if len(points):
        write_ply(folder / "points.ply", points.xyz, points.rgb)
        about["ply_file_path"] = "points.ply"
    of = {role: shots.with_role(role) for role in ROLES}
    of["val"] = of["val"] or of["test"]  # its trainer looks at val, and fails where it lacks beside others
    splits = {f"{role}_filenames": [names[view] for view in views] for role, views in of.items() if views and of["val"]}
    _write_json(folder, about | splits | _frames(shots, names))


def _write_instant_ngp(shots: Shots, folder: Path) -> None:
    names = [f"images/{name}" for name in write_pictures(shots, folder / "images")]
    bound = (
        {"aabb_scale": 1} if shots.radius else {"aabb_scale": 16}
    )  # a box of one unit holds 3 units of the poses' world
    _write_json(folder, bound | _frames(shots, names))


def _write_nerf_synthetic(shots: Shots, folder: Path) -> None:
    k = shots.one_camera("NeRF's synthetic layout")
    shots = shots.split()
    pngs = [shots.rgba(view) for view in range(len(shots))]
    c2w_gl = cameras.to_opengl(shots.c2w.astype(np.float64))
    angle = 2 * math.atan(shots.hw[1] / 2 / k[0])
    held = shots.with_role("test") or shots.with_role("val")
    for role in ROLES:
        (folder / role).mkdir(parents=True)
        frames = []
        for place, view in enumerate(shots.with_role(role) or held):  # readers fail where one of the three is empty
            (folder / role / f"r_{place}.png").write_bytes(pngs[view])
            pose = {"transform_matrix": c2w_gl[view].tolist()}
            frames.append({"file_path": f"./{role}/r_{place}"} | shots.time(view) | pose)
        text = json.dumps({"camera_angle_x": angle, "frames": frames}, indent=1)
        (folder / f"transforms_{role}.json").write_text(text)


def _frames(shots: Shots, names: list[str]) -> dict[str, Any]:
    """Intrinsics, at the top where all views share them, and frames."""
    c2w_gl = cameras.to_opengl(shots.c2w.astype(np.float64))
    size = {"w": shots.hw[1], "h": shots.hw[0]}
    each = [dict(zip(("fl_x", "fl_y", "cx", "cy"), map(float, k), strict=True)) for k in shots.fxfycxcy]
    shared = all(one == each[0] for one in each)
    frames = [
        {"file_path": names[view]}
        | shots.time(view)
        | {"transform_matrix": pose.tolist()}
        | ({} if shared else own | size)
        for view, (pose, own) in enumerate(zip(c2w_gl, each, strict=True))
    ]
    return (each[0] | size if shared else {}) | {"frames": frames}


def _write_json(folder: Path, content: dict[str, Any]) -> None:
    (folder / "transforms.json").write_text(json.dumps(content, indent=1))
