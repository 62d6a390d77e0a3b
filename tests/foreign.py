"""The balls of tests/balls.py in every foreign format, each written as the format itself is defined, without the pipeline.

Where a format allows it, fx != fy and the principal point is off the centre.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.balls import Eye, photo, pictures, png

UID = "0123456789abcdef0123456789abcdef"


def zero123_files(eyes: Sequence[Eye]) -> dict[str, bytes]:
    """NNN.png RGBA and NNN.npy: world-to-camera 3x4, camera axes right, up, back (Blender's)."""
    files = {}
    for i, (one, picture) in enumerate(zip(eyes, pictures(eyes), strict=True)):
        files[f"{i:03d}.png"] = png(picture)
        files[f"{i:03d}.npy"] = npy(blender_w2c(one))
    return files


def blender_w2c(one: Eye) -> np.ndarray:
    rotation = np.stack([one.right, one.up, one.back])
    return np.c_[rotation, -rotation @ one.position]


def npy(array: np.ndarray) -> bytes:
    """A .npy file of version 1.0, by hand."""
    kind = {"float64": "<f8", "float32": "<f4"}[array.dtype.name]
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {array.shape}, }}"
    head += " " * (-(10 + len(head) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + array.tobytes()


def gobjaverse_files(eyes: Sequence[Eye]) -> dict[str, bytes]:
    """NNNNN/NNNNN.png and .json: x right, y down, z forward, origin; fields of view in radians."""
    files = {}
    for i, (one, picture) in enumerate(zip(eyes, pictures(eyes), strict=True)):
        axes = {"x": one.right, "y": -one.up, "z": -one.back, "origin": one.position}
        facts: dict[str, Any] = {name: axis.tolist() for name, axis in axes.items()}
        facts["x_fov"] = 2 * np.arctan(one.hw[1] / 2 / one.k[0])
        facts["y_fov"] = 2 * np.arctan(one.hw[0] / 2 / one.k[1])
        files[f"{i:05d}/{i:05d}.json"] = json.dumps(facts).encode()
        files[f"{i:05d}/{i:05d}.png"] = png(picture)
        files[f"{i:05d}/{i:05d}_albedo.png"] = b"no picture: nobody should read it"
    return files


def mix_files(eyes: Sequence[Eye]) -> dict[str, bytes]:
    """NNN.png and nothing else."""
    return {f"{i:03d}.png": png(picture) for i, picture in enumerate(pictures(eyes))}


def opencv_w2c(one: Eye) -> np.ndarray:
    rotation = np.stack([one.right, -one.up, -one.back])
    return np.c_[rotation, -rotation @ one.position]


def pixelsplat_clip(eyes: Sequence[Eye], key: str = "clip") -> dict[str, Any]:
    """A record of a chunk: 18 numbers per view, images as JPEG bytes. Needs torch."""
    import torch

    rows = []
    for one in eyes:
        (height, width), (fx, fy, cx, cy) = one.hw, one.k
        rows.append([fx / width, fy / height, cx / width, cy / height, 0, 0, *opencv_w2c(one).flatten()])
    files = [photo(picture) for picture in pictures(eyes)]
    return {
        "url": "https://www.youtube.com/watch?v=0",
        "timestamps": torch.arange(len(eyes)) * 33366,
        "cameras": torch.tensor(rows, dtype=torch.float32),
        "images": [torch.tensor(list(data), dtype=torch.uint8) for data in files],
        "key": key,
    }


def opengl_c2w(one: Eye) -> list[list[float]]:
    matrix = np.eye(4)
    matrix[:3] = np.stack([one.right, one.up, one.back, one.position], -1)
    rows: list[list[float]] = matrix.tolist()
    return rows


def nerfstudio(
    folder: Path, eyes: Sequence[Eye], per_frame: bool = False, folders: str = "images", in_room: bool = False
) -> Path:
    """transforms.json with fl_x ...; images as PNG."""
    (folder / folders).mkdir(parents=True)
    frames, first = [], camera_of(eyes[0])
    for i, (one, picture) in enumerate(zip(eyes, pictures(eyes, in_room), strict=True)):
        (folder / folders / f"frame_{i:05d}.png").write_bytes(photo(picture, "PNG"))
        frame = {"file_path": f"images/frame_{i:05d}.png", "transform_matrix": opengl_c2w(one)}
        frames.append(frame | (camera_of(one) if per_frame else {}))
    text = {} if per_frame else first
    model = "OPENCV_FISHEYE" if len(eyes[0].bent) == 4 else "OPENCV"
    (folder / "transforms.json").write_text(json.dumps(text | {"camera_model": model, "frames": frames}))
    return folder


def camera_of(one: Eye) -> dict[str, float]:
    names = ("fl_x", "fl_y", "cx", "cy")
    named = ("k1", "k2", "k3", "k4") if len(one.bent) == 4 else ("k1", "k2", "p1", "p2", "k3")
    bent = dict(zip(named, one.bent, strict=False))
    return dict(zip(names, one.k, strict=True)) | bent | {"w": one.hw[1], "h": one.hw[0]}


def nerf_synthetic(folder: Path, eyes: Sequence[Eye]) -> Path:
    """transforms_train.json and _test.json with camera_angle_x; RGBA pictures, named without their suffix."""
    for split, part in (("train", slice(0, None, 2)), ("test", slice(1, None, 2))):
        (folder / split).mkdir(parents=True)
        frames = []
        for i, (one, picture) in enumerate(zip(eyes[part], pictures(eyes[part]), strict=True)):
            (folder / split / f"r_{i}.png").write_bytes(png(picture))
            frames.append({"file_path": f"./{split}/r_{i}", "rotation": 0.01, "transform_matrix": opengl_c2w(one)})
        angle = 2 * np.arctan(eyes[0].hw[1] / 2 / eyes[0].k[0])
        (folder / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
    return folder


def llff(folder: Path, eyes: Sequence[Eye], images: str = "images") -> Path:
    """poses_bounds.npy: down, right, backwards, centre, (height, width, focal) as columns, then two depths; images beside."""
    (folder / images).mkdir(parents=True)
    rows = []
    for i, (one, picture) in enumerate(zip(eyes, pictures(eyes), strict=True)):
        (folder / images / f"IMG_{i:03d}.png").write_bytes(photo(picture, "PNG"))
        hwf = np.array([*one.hw, one.k[0]])
        matrix = np.stack([-one.up, one.right, one.back, one.position, hwf], -1)
        rows.append([*matrix.flatten(), 0.5, 4.0])
    (folder / "poses_bounds.npy").write_bytes(npy(np.array(rows)))
    return folder


def neus(folder: Path, eyes: Sequence[Eye], name: str = "cameras_sphere.npz") -> Path:
    """world_mat_i = K [R|t], whose pixels count from the centre of the first; scale_mat_i; image/000.png ..."""
    (folder / "image").mkdir(parents=True)
    matrices = {}
    for i, (one, picture) in enumerate(zip(eyes, pictures(eyes), strict=True)):
        (folder / "image" / f"{i:03d}.png").write_bytes(photo(picture, "PNG"))
        fx, fy, cx, cy = one.k
        k = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])
        world = np.eye(4, dtype=np.float32)
        world[:3] = (2.5 if i % 2 else 1.0) * k @ opencv_w2c(one)  # a projection means the same times any factor
        matrices |= {f"world_mat_{i}": world, f"scale_mat_{i}": np.diag([0.9, 0.9, 0.9, 1]).astype(np.float32)}
    np.savez(folder / name, **matrices)
    return folder


def co3d(folder: Path, eyes: Sequence[Eye], kind: str = "ndc_isotropic") -> Path:
    """CATEGORY/frame_annotations.jgz and CATEGORY/SEQUENCE/images: PyTorch3D's row vectors, left, up, forward, and NDC."""
    (folder / "images").mkdir(parents=True)
    frames = []
    for i, (one, picture) in enumerate(zip(eyes, pictures(eyes), strict=True)):
        name = f"{folder.parent.name}/{folder.name}/images/frame{i + 1:06d}.jpg"
        (folder.parent.parent / name).write_bytes(photo(picture))
        rotation = np.stack([-one.right, one.up, -one.back], -1)
        height, width = one.hw
        unit = np.array([width, height]) / 2 if kind == "ndc_norm_image_bounds" else np.full(2, min(one.hw) / 2)
        focal, point = np.array(one.k[:2]) / unit, (np.array([width, height]) / 2 - np.array(one.k[2:])) / unit
        seen = {"R": rotation.tolist(), "T": (-one.position @ rotation).tolist(), "intrinsics_format": kind}
        seen |= {"focal_length": focal.tolist(), "principal_point": point.tolist()}
        frame = {"sequence_name": folder.name, "frame_number": i, "image": {"path": name, "size": [height, width]}}
        frames.append(frame | {"viewpoint": seen, "meta": {"frame_type": "test_known" if i == 2 else "train_known"}})
    frames.append(frames[0] | {"sequence_name": "another"})
    (folder.parent / "frame_annotations.jgz").write_bytes(gzip.compress(json.dumps(frames).encode()))
    return folder


def hdf5(array: np.ndarray) -> bytes:
    """A file with one data set called "dataset"."""
    made = io.BytesIO()
    with h5py.File(made, "w") as file:
        file.create_dataset("dataset", data=array)
    return made.getvalue()


def hypersim(root: Path, eyes: Sequence[Eye], tilt: float = 0.0) -> Path:
    """A scene with one camera's path, its second; tilt: radians by which the lens looks away from where the camera does."""
    scene, name = root / "scenes" / "ai_001_001", "cam_01"
    (scene / "_detail" / name).mkdir(parents=True)
    place = scene / "images" / f"scene_{name}_final_preview"
    place.mkdir(parents=True)
    (height, width), (fx, fy, cx, cy) = eyes[0].hw, eyes[0].k
    rays = np.array(
        [[width / 2 / fx, 0, (width / 2 - cx) / fx], [0, height / 2 / fy, (cy - height / 2) / fy], [0, 0, -1]]
    )
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    rotations = []
    for i, (one, picture) in enumerate(zip(eyes, pictures(eyes), strict=True)):
        (place / f"frame.{2 * i:04d}.tonemap.jpg").write_bytes(photo(picture))
        (place / f"frame.{2 * i:04d}.color.jpg").write_bytes(b"the same without tone mapping: not read")
        rotations.append(np.stack([one.right, one.up, one.back], -1) @ turn.T)
    files = {"positions": np.stack([one.position for one in eyes]), "orientations": np.array(rotations, np.float32)}
    files |= {"frame_indices": 2 * np.arange(len(eyes))}
    for kind, array in files.items():
        (scene / "_detail" / name / f"camera_keyframe_{kind}.hdf5").write_bytes(hdf5(array))
    values = {"scene_name": "ai_001_001", "settings_output_img_width": width, "settings_output_img_height": height}
    values |= {f"M_cam_from_uv_{i}{j}": repr(float((turn @ rays)[i, j])) for i in range(3) for j in range(3)}
    (root / "metadata_camera_parameters.csv").write_text(
        "\n".join(",".join(map(str, row)) for row in (values, values.values()))
    )
    return root


def lvsm(folder: Path, eyes: Sequence[Eye]) -> Path:
    """SPLIT/images/KEY and SPLIT/metadata/KEY.json, whose paths are those of another machine."""
    (folder / "images" / "5aca87f95a9412c6").mkdir(parents=True)
    (folder / "metadata").mkdir()
    frames = []
    for i, (one, picture) in enumerate(zip(eyes, pictures(eyes), strict=True)):
        (folder / "images" / "5aca87f95a9412c6" / f"{i:05d}.png").write_bytes(photo(picture, "PNG"))
        w2c = [*opencv_w2c(one).tolist(), [0, 0, 0, 1]]
        path = f"/mnt/data/re10k/test/images/5aca87f95a9412c6/{i:05d}.png"
        frames.append({"image_path": path, "fxfycxcy": list(map(float, one.k)), "w2c": w2c})
    facts = {"scene_name": "5aca87f95a9412c6", "frames": frames}
    (folder / "metadata" / "5aca87f95a9412c6.json").write_text(json.dumps(facts))
    return folder


def timed_frames(folder: Path, eyes: Sequence[Eye], cameras: Path) -> Path:
    """Pictures named by microseconds, and their camera file."""
    folder.mkdir(parents=True)
    lines = ["https://www.youtube.com/watch?v=0"]
    for i, (one, picture) in enumerate(zip(eyes, pictures(eyes), strict=True)):
        time, (height, width), (fx, fy, cx, cy) = 52_553_000 + 33_366 * i, one.hw, one.k
        (folder / f"{time}.png").write_bytes(photo(picture, "PNG"))
        numbers = [fx / width, fy / height, cx / width, cy / height, 0, 0, *opencv_w2c(one).flatten()]
        lines.append(" ".join([str(time), *(repr(float(number)) for number in numbers)]))
    cameras.parent.mkdir(parents=True, exist_ok=True)
    cameras.write_text("\n".join(lines) + "\n")
    return folder


COLMAP_MODELS = {  # name -> number, parameters of an Eye
    "SIMPLE_PINHOLE": (0, lambda k, b: (k[0], k[2], k[3])),
    "PINHOLE": (1, lambda k, b: k),
    "SIMPLE_RADIAL": (2, lambda k, b: (k[0], k[2], k[3], b[0])),
    "RADIAL": (3, lambda k, b: (k[0], k[2], k[3], b[0], b[1])),
    "OPENCV": (4, lambda k, b: (*k, *b[:4])),
    "OPENCV_FISHEYE": (5, lambda k, b: (*k, *b)),
    "FULL_OPENCV": (6, lambda k, b: (*k, *b)),
    "SIMPLE_RADIAL_FISHEYE": (8, lambda k, b: (k[0], k[2], k[3], b[0])),
    "RADIAL_FISHEYE": (9, lambda k, b: (k[0], k[2], k[3], b[0], b[1])),
    "THIN_PRISM_FISHEYE": (10, lambda k, b: (*k, b[0], b[1], 0.0, 0.0, b[2], b[3], 0.0, 0.0)),
}


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """Hamilton, real part first: the eigenvector of Bar-Itzhack's matrix."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    matrix = np.array(
        [
            [a - e - i, 0, 0, 0],
            [b + d, e - a - i, 0, 0],
            [c + g, f + h, i - a - e, 0],
            [h - f, c - g, d - b, a + e + i],
        ]
    )
    x, y, z, w = np.linalg.eigh(matrix, "L")[1][:, -1]
    return np.array([w, x, y, z]) * (1 if w >= 0 else -1)


def colmap(folder: Path, eyes: Sequence[Eye], model: str, binary: bool, at: str = "sparse/0") -> Path:
    """A model with one camera, points that nobody needs, and files of newer versions; images as JPEG."""
    where = folder / at
    where.mkdir(parents=True)
    (folder / "images" / "left eye").mkdir(parents=True)
    number, parameters = COLMAP_MODELS[model]
    values = parameters(eyes[0].k, eyes[0].bent)
    height, width = eyes[0].hw
    images = []
    for i, (one, picture) in enumerate(zip(eyes, pictures(eyes), strict=True)):
        name = f"left eye/{i:03d}.jpg"
        (folder / "images" / name).write_bytes(photo(picture))
        pose = opencv_w2c(one)
        images.append((len(eyes) - i, [*quaternion(pose[:, :3]), *pose[:, 3]], name))
    if binary:
        camera = struct.pack("<QiiQQ", 1, 7, number, width, height) + struct.pack(f"<{len(values)}d", *values)
        (where / "cameras.bin").write_bytes(camera)
        data = struct.pack("<Q", len(images))
        for i, (image, pose, name) in enumerate(images):
            data += struct.pack("<I7dI", image, *pose, 7) + name.encode() + b"\0"
            data += struct.pack("<Q", i) + struct.pack("<ddq", 1.5, 2.5, -1) * i
        (where / "images.bin").write_bytes(data)
        (where / "rigs.bin").write_bytes(b"\1\2\3")
        (where / "frames.bin").write_bytes(b"")
    else:
        head = "# Camera list with one line of data per camera:\n"
        numbers = " ".join(map(repr, map(float, values)))
        (where / "cameras.txt").write_text(f"{head}7 {model} {width} {height} {numbers}\n")
        lines = ["# Image list with two lines of data per image:"]
        for i, (image, pose, name) in enumerate(images):
            lines += [f"{image} {' '.join(map(repr, map(float, pose)))} 7 {name}", "1.5 2.5 -1" if i % 2 else ""]
        (where / "images.txt").write_text("\n".join(lines) + "\n")
        (where / "points3D.txt").write_text("# empty\n")
    return folder


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def read_json(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts
