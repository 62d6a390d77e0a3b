"""Small copies of the layouts of public data sets, made from seeds; a Hub (tests/hub.py) serves them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

LICENSES = ("by", "by-nc", "cc0", "by-nd", "by-sa", "by-nc-sa")  # Sketchfab's slugs, dealt out in turn
XL_LICENSES = {"by": "Creative Commons - Attribution", "cc0": "CC0 Public Domain"}
XL_COLUMNS = ("fileIdentifier", "source", "license", "fileType", "sha256", "metadata")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(path: Path, data: bytes) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return data


def put_json(path: Path, value: object) -> None:
    text = json.dumps(value).encode()
    put(path, gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


# 3D files: three boxes and a tetrahedron, each with a colour.


def png(seed: int, size: int = 16) -> bytes:
    """A picture of coloured squares."""
    colours = np.random.default_rng(seed).integers(30, 255, (4, 4, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(colours.repeat(size // 4, 0).repeat(size // 4, 1)).save(out, "PNG")
    return out.getvalue()


def parts(seed: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Corners (n, 3), texture coordinates (n, 2) and colour (3,) of each part; every three corners are a triangle."""
    rng = np.random.default_rng(seed)
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 0], [1, 1], [0, 1]], float)
    faces = []
    for axis in range(3):
        for side in (0.0, 1.0):
            face = np.insert(square, axis, side, axis=1)
            faces.append(face if (side == 1) == (axis != 1) else face[::-1])
    box, tips = np.concatenate(faces), np.array([[0, 0, 1], [1, 0, 0], [-0.5, 0.9, 0], [-0.5, -0.9, 0]])
    tetrahedron = tips[[0, 1, 2, 0, 2, 3, 0, 3, 1, 1, 3, 2]]
    made = []
    for shape in (box, box, box, tetrahedron):
        corners = shape * rng.uniform(0.3, 0.7, 3) + rng.uniform(-0.6, 0.3, 3)
        uv = np.tile(square[:3], (len(shape) // 3, 1))
        made.append((corners.astype("<f4"), uv.astype("<f4"), rng.uniform(0.1, 0.9, 3).round(3)))
    return made


def gltf(seed: int, picture: str | None = None) -> tuple[dict[str, Any], bytes]:
    """A glTF document and its buffer; `picture` is the texture's uri, or None."""
    document: dict[str, Any] = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": f"thing {seed}"}],
        "meshes": [{"primitives": []}],
    }
    views: list[dict[str, int]] = []
    accessors: list[dict[str, Any]] = []
    materials = []
    buffer = b""
    for number, (corners, uv, colour) in enumerate(parts(seed)):
        for values, kind in ((corners, "VEC3"), (uv, "VEC2")):
            data = values.tobytes()
            views.append({"buffer": 0, "byteOffset": len(buffer), "byteLength": len(data)})
            bounds = {"min": values.min(0).tolist(), "max": values.max(0).tolist()}
            accessors.append(
                {"bufferView": len(views) - 1, "componentType": 5126, "count": len(values), "type": kind} | bounds
            )
            buffer += data
        surface: dict[str, Any] = {"baseColorFactor": [*colour.tolist(), 1.0], "metallicFactor": 0.0}
        if picture is not None and number == 0:
            surface = {"baseColorTexture": {"index": 0}, "metallicFactor": 0.0}
        materials.append({"pbrMetallicRoughness": surface, "doubleSided": True})
        attributes = {"POSITION": 2 * number, "TEXCOORD_0": 2 * number + 1}
        document["meshes"][0]["primitives"].append({"attributes": attributes, "material": number})
    document |= {"bufferViews": views, "accessors": accessors, "materials": materials}
    document["buffers"] = [{"byteLength": len(buffer)}]
    if picture is not None:
        document |= {"textures": [{"source": 0}], "images": [{"uri": picture}]}
    return document, buffer


def glb(seed: int, texture: bool = False) -> bytes:
    document, buffer = gltf(seed, "" if texture else None)
    if texture:
        image = png(seed)
        document["bufferViews"].append({"buffer": 0, "byteOffset": len(buffer), "byteLength": len(image)})
        document["images"] = [{"bufferView": len(document["bufferViews"]) - 1, "mimeType": "image/png"}]
        buffer += image
    buffer += bytes(-len(buffer) % 4)
    document["buffers"][0]["byteLength"] = len(buffer)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(buffer), 0x004E4942) + buffer
    return struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks


def write_glb(path: Path, seed: int, texture: bool = False) -> str:
    """A GLB that Blender renders; returns its sha256."""
    return sha256(put(path, glb(seed, texture)))


def gltf_files(seed: int) -> dict[str, bytes]:
    """scene/model.gltf with scene/model.bin and textures/paint.png beside its folder."""
    document, buffer = gltf(seed, "../textures/paint.png")
    document["buffers"][0]["uri"] = "model.bin"
    text = json.dumps(document).encode()
    return {"scene/model.gltf": text, "scene/model.bin": buffer, "textures/paint.png": png(seed)}


def obj_files(seed: int) -> dict[str, bytes]:
    """models/boxes/thing.obj with its .mtl beside it and the texture in a folder below."""
    lines, looks, first = ["mtllib thing.mtl"], [], 1
    for number, (corners, uv, colour) in enumerate(parts(seed)):
        lines += [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in corners] + [f"vt {u:g} {v:g}" for u, v in uv]
        lines.append(f"usemtl look{number}")
        lines += [f"f {i}/{i} {i + 1}/{i + 1} {i + 2}/{i + 2}" for i in range(first, first + len(corners), 3)]
        looks += [f"newmtl look{number}", f"Kd {colour[0]} {colour[1]} {colour[2]}"]
        looks += ["map_Kd tex/paint.png"] if number == 0 else []
        first += len(corners)
    texts = {"thing.obj": "\n".join(lines).encode(), "thing.mtl": "\n".join(looks).encode(), "tex/paint.png": png(seed)}
    return {f"models/boxes/{name}": data for name, data in texts.items()}


def stl(seed: int) -> bytes:
    triangles = np.concatenate([corners.reshape(-1, 3, 3) for corners, _, _ in parts(seed)])
    records = b"".join(bytes(12) + triangle.astype("<f4").tobytes() + bytes(2) for triangle in triangles)
    return bytes(80) + struct.pack("<I", len(triangles)) + records


# Objaverse 1.0


@dataclass
class Objaverse:
    uids: list[str]
    paths: dict[str, str]  # uid -> glbs/000-000/<uid>.glb
    licenses: dict[str, str]
    sha256: dict[str, str]
    annotations: dict[str, dict[str, Any]]
    lvis: dict[str, list[str]]
    repo: str = "allenai/objaverse"


def annotation(uid: str, number: int, license: str) -> dict[str, Any]:
    """What Sketchfab says of a model, in its own names."""
    user = f"maker{number % 5}"
    return {
        "uri": f"https://api.sketchfab.com/v3/models/{uid}",
        "uid": uid,
        "name": f"Thing № {number}",
        "staffpickedAt": None,
        "viewCount": 4 * number,
        "likeCount": number,
        "animationCount": 0,
        "viewerUrl": f"https://sketchfab.com/3d-models/{uid}",
        "embedUrl": f"https://sketchfab.com/models/{uid}/embed",
        "commentCount": 0,
        "isDownloadable": True,
        "publishedAt": "2021-03-18T09:36:25.430631",
        "tags": [{"name": "box", "slug": "box", "uri": "https://api.sketchfab.com/v3/tags/box"}],
        "categories": [],
        "thumbnails": {"images": []},
        "user": {
            "uid": hashlib.md5(user.encode()).hexdigest(),
            "username": user,
            "displayName": f"Maker {number % 5} & Söhne",
            "profileUrl": f"https://sketchfab.com/{user}",
            "account": "basic",
        },
        "description": "",
        "faceCount": 40,
        "vertexCount": 120,
        "isAgeRestricted": False,
        "archives": {"glb": {"type": "glb", "faceCount": 40, "vertexCount": 120, "textureCount": number % 2}},
        "license": license,
    }


def objaverse(root: Path, count: int = 12, chunks: int = 3, textures: bool = True) -> Objaverse:
    """datasets/allenai/objaverse below a Hub's root: objects dealt to 000-000, 000-001 and so on in turn."""
    base = root / "datasets" / "allenai" / "objaverse"
    made = Objaverse([], {}, {}, {}, {}, {})
    metadata: list[dict[str, Any]] = [{} for _ in range(chunks)]
    for number in range(count):
        uid = hashlib.md5(f"objaverse {number}".encode()).hexdigest()
        path = f"glbs/000-{number % chunks:03d}/{uid}.glb"
        made.uids.append(uid)
        made.paths[uid] = path
        made.licenses[uid] = LICENSES[number % len(LICENSES)]
        made.sha256[uid] = write_glb(base / path, number, textures and number % 2 == 1)
        made.annotations[uid] = metadata[number % chunks][uid] = annotation(uid, number, made.licenses[uid])
        made.lvis.setdefault(("chair", "teapot", "traffic_light")[number % 3], []).append(uid)
    put_json(base / "object-paths.json.gz", made.paths)
    put_json(base / "lvis-annotations.json.gz", made.lvis)
    for number, chunk in enumerate(metadata):
        put_json(base / "metadata" / f"000-{number:03d}.json.gz", chunk)
    return made


# Git


def git(*arguments: object, stdin: bytes = b"") -> str:
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(["git", *map(str, arguments)], input=stdin, env=env, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def git_repo(base: Path, org: str, name: str, files: Mapping[str, bytes | str | None]) -> str:
    """A commit on top of base/org/name.git, which is made if need be: bytes are a file, a str is where a symbolic link
    points, None removes. Returns the commit's sha, which depends on nothing but the arguments and what was there."""
    bare = base / org / f"{name}.git"
    if not bare.exists():
        git("init", "--quiet", "--bare", "--initial-branch=main", bare)
        for setting in ("allowFilter", "allowAnySHA1InWant", "allowReachableSHA1InWant"):
            git("-C", bare, "config", f"uploadpack.{setting}", "true")
        number = 0
    else:
        number = int(git("-C", bare, "rev-list", "--count", "main"))
    stream = b"commit refs/heads/main\ncommitter T <t@example.org> %d +0000\ndata 4\ntext" % (1_700_000_000 + number)
    stream += b"\nfrom refs/heads/main^0\n" if number else b"\n"
    for path, content in files.items():
        if content is None:
            stream += f"D {path}\n".encode()
            continue
        mode = "120000" if isinstance(content, str) else "100644"
        data = content.encode() if isinstance(content, str) else content
        stream += f"M {mode} inline {path}\ndata {len(data)}\n".encode() + data + b"\n"
    git("-C", bare, "fast-import", "--quiet", stdin=stream)
    return git("-C", bare, "rev-parse", "main")


def vanish(base: Path, org: str, name: str) -> None:
    shutil.rmtree(base / org / f"{name}.git")


def git_config(path: Path, target: str) -> dict[str, str]:
    """A git configuration that puts `target` (f"{hub.url}/git/", or f"file://{base}/") in the place of https://github.com/.
    Returns the environment that makes git read it."""
    put(path, f'[url "{target}"]\n\tinsteadOf = https://github.com/\n[protocol "file"]\n\tallow = always\n'.encode())
    return {"GIT_CONFIG_GLOBAL": str(path), "GIT_CONFIG_NOSYSTEM": "1"}


def lfs_pointer(data: bytes) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(data)}\nsize {len(data)}\n".encode()


# Objaverse-XL


@dataclass
class Row:
    """A line of a parquet file, and what `expect`s the one who follows it:

    found, modified (other bytes than the sha256 says), missing (no such file in the commit), gone (no such repository),
    symlink (to another file of the repository), escape (a link out of it), lfs, lfs_lost (a pointer to nothing)
    """

    identifier: str
    source: str
    license: str | None
    file_type: str
    sha256: str
    expect: str = "found"
    metadata: str = "{}"
    content: bytes = field(default=b"", repr=False)  # of the file, where it can be had

    def values(self) -> tuple[str | None, ...]:
        return self.identifier, self.source, self.license, self.file_type, self.sha256, self.metadata


def github(root: Path) -> list[Row]:
    """Repositories below root/git, their LFS objects below root/lfs, and the rows that name their files."""
    base, rows = root / "git", []

    def listed(repo: str, commit: str, path: str, content: bytes, license: str | None, expect: str = "found") -> None:
        address = f"https://github.com/{repo}/blob/{commit}/{path}"
        recorded = sha256(b"as it was" + content if expect == "modified" else content)
        rows.append(Row(address, "github", license, path.rsplit(".", 1)[1], recorded, expect, content=content))

    plain, odd, changed, outside = glb(101), glb(102, True), glb(103), put(root / "outside.glb", glb(104))
    files: dict[str, bytes | str | None] = {
        "models/plain.glb": plain,
        "odd names/a b#1 100% ü.glb": odd,
        "changed.glb": changed,
        "shortcut.glb": "models/plain.glb",
        "outside.glb": "../../../outside.glb",
        "README.md": b"# models\n",
    }
    scene, boxes = gltf_files(105), obj_files(106)
    first = git_repo(base, "acme", "models", files | scene | boxes)
    mit = "MIT License"
    listed("acme/models", first, "models/plain.glb", plain, mit)
    listed("acme/models", first, "scene/model.gltf", scene["scene/model.gltf"], mit)
    listed("acme/models", first, "models/boxes/thing.obj", boxes["models/boxes/thing.obj"], mit)
    listed("acme/models", first, "odd names/a b#1 100% ü.glb", odd, mit)
    listed("acme/models", first, "changed.glb", changed, mit, "modified")
    listed("acme/models", first, "models/never.glb", b"never", mit, "missing")
    listed("acme/models", first, "shortcut.glb", plain, mit, "symlink")
    listed("acme/models", first, "outside.glb", outside, mit, "escape")
    again, later = glb(107), glb(108)
    second = git_repo(base, "acme", "models", {"models/plain.glb": again, "models/later.glb": later})
    listed("acme/models", second, "models/plain.glb", again, mit)
    listed("acme/models", second, "models/later.glb", later, mit)

    big, lost = glb(109, True), glb(110)
    put(root / "lfs" / sha256(big), big)
    attributes = b"*.glb filter=lfs diff=lfs merge=lfs -text\n"
    pointers = {".gitattributes": attributes, "big.glb": lfs_pointer(big), "lost.glb": lfs_pointer(lost)}
    commit = git_repo(base, "bigfiles", "lfs", pointers)
    listed("bigfiles/lfs", commit, "big.glb", big, "GNU General Public License v3.0", "lfs")
    listed("bigfiles/lfs", commit, "lost.glb", lost, "GNU General Public License v3.0", "lfs_lost")

    solo = {f"part{number}.glb": glb(111 + number) for number in range(3)}
    commit = git_repo(base, "emil", "solo", solo)
    for path, data in solo.items():
        listed("emil/solo", commit, path, data, None)
    listed("gone/away", "0123456789" * 4, "model.glb", b"gone", "Apache License 2.0", "gone")
    return rows


@dataclass
class ObjaverseXL:
    rows: dict[str, list[Row]]  # by source
    repo: str = "allenai/objaverse-xl"


def write_rows(path: Path, rows: Iterable[Row], row_group_size: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = zip(*(row.values() for row in rows), strict=True)
    table = pa.table({name: pa.array(column, pa.string()) for name, column in zip(XL_COLUMNS, columns, strict=True)})
    pq.write_table(table, path, row_group_size=row_group_size)


def objaverse_xl(root: Path, hub_url: str, sketchfab: Objaverse, repos: Sequence[Row] | None = None) -> ObjaverseXL:
    """datasets/allenai/objaverse-xl, and below www/ what the rows of Thingiverse and the Smithsonian point to."""
    rows = {"github": list(github(root) if repos is None else repos), "thingiverse": [], "smithsonian": []}
    for number in range(4):
        data = put(root / "www" / f"download:{7000 + number}", stl(200 + number))
        address = f"https://www.thingiverse.com/thing:{500 + number // 2}/files?fileId={7000 + number}"
        license = ("Creative Commons - Attribution", "Creative Commons - Attribution - Non-Commercial")[number % 2]
        rows["thingiverse"].append(Row(address, "thingiverse", license, "stl", sha256(data), content=data))
    for number in range(3):
        path = f"content/document/3d_package:{number}/resources/thing-{number}-150k-4096.glb"
        data = put(root / "www" / path, glb(300 + number, True))
        rows["smithsonian"].append(Row(f"{hub_url}/{path}", "smithsonian", "CC0", "glb", sha256(data), content=data))
    rows["sketchfab"] = [
        Row(f"https://sketchfab.com/3d-models/{uid}", "sketchfab", license, "glb", sketchfab.sha256[uid])
        for uid, slug in sketchfab.licenses.items()
        for license in [XL_LICENSES.get(slug, f"Creative Commons - {slug}")]
    ]
    base = root / "datasets" / "allenai" / "objaverse-xl"
    for source, found in rows.items():
        write_rows(base / source / f"{source}.parquet", found)
        if source in ("github", "sketchfab"):
            write_rows(base / source / "alignment.parquet", found[: len(found) // 2])
    return ObjaverseXL(rows)


# Rendered views: three balls, drawn by asking for each ray what it hits; not by projecting anything.


@dataclass
class Balls:
    centres: np.ndarray  # (3, 3), world with z up
    radius: float
    colours: np.ndarray  # (3, 3) uint8

    @staticmethod
    def of(seed: int, reach: float) -> Balls:
        """Three red, green and blue balls that lie within `reach` of the origin and do not touch."""
        rng, radius = np.random.default_rng(seed), reach / 4
        while True:
            centres = rng.uniform(-reach, reach, (3, 3)).round(3)
            apart = np.linalg.norm(centres - centres[[1, 2, 0]], axis=1).min()
            if apart > 3 * radius and np.linalg.norm(centres, axis=1).max() < reach - radius:
                return Balls(centres, radius, np.diag([220, 200, 240]).astype(np.uint8))


def look_at(position: np.ndarray) -> np.ndarray:
    """Camera-to-world (4, 4) at `position`, towards the origin; OpenCV axes, upright in a world with z up."""
    z = -position / np.linalg.norm(position)
    x = np.cross(z, [0.0, 0.0, 1.0] if abs(z[2]) < 0.999 else [0.0, 1.0, 0.0])
    x /= np.linalg.norm(x)
    return np.vstack([np.stack([x, np.cross(z, x), z, position], 1), [0, 0, 0, 1]])


def on_sphere(azimuth: float, elevation: float, distance: float) -> np.ndarray:
    """Degrees -> a place in the world."""
    a, e = np.radians([azimuth, elevation])
    return distance * np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])


def draw(balls: Balls, c2w: np.ndarray, focal: float, size: int, fine: int = 2) -> np.ndarray:
    """RGBA (size, size, 4), focal length in widths; fine x fine rays for each pixel."""
    grid = ((np.arange(size * fine) + 0.5) / (size * fine) - 0.5) / focal
    right, down, forward, eye = c2w[:3].T
    rays = grid[:, None, None] * down + grid[:, None] * right + forward
    rays /= np.sqrt((rays**2).sum(-1, keepdims=True))
    away = eye - balls.centres
    along = np.einsum("yxi,bi->yxb", rays, away)  # not @: threads that spin, where a core is shared
    inner = along**2 - ((away**2).sum(1) - balls.radius**2)
    reached = np.where(inner > 0, -along - np.sqrt(np.maximum(inner, 0)), np.inf)
    hit = np.isfinite(reached).any(-1)
    colours = np.where(hit[..., None], balls.colours[reached.argmin(-1)], 0)
    cells = np.concatenate([colours, hit[..., None]], -1).reshape(size, fine, size, fine, 4).sum((1, 3))
    covered = np.maximum(cells[..., 3:], 1)
    rgba = np.concatenate([cells[..., :3] / covered, cells[..., 3:] * (255 / fine**2)], -1)
    return rgba.round().astype(np.uint8)


def rgba_png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


@dataclass
class GObjaverse:
    scenes: dict[str, Balls]  # item -> what stands there
    glbs: dict[str, str]  # item -> 000-xxx/<uid>.glb
    base: str = (
        "share/aigc3d"  # below a Hub's url; in the world https://virutalbuy-public.oss-cn-hangzhou.aliyuncs.com/
    )


def gobjaverse_cameras(seed: int) -> list[np.ndarray]:
    """40 camera-to-world matrices: a ring of 24 and one again, top, bottom, a ring of 12 and one again."""
    rng = np.random.default_rng(seed)
    distance, high, low = rng.uniform(1.05, 1.5), rng.uniform(5, 30), rng.uniform(-5, 5)
    angles = [(15.0 * i, high) for i in range(25)] + [(0.0, 90.0), (0.0, -90.0)]
    angles += [(30.0 * i, low) for i in range(13)]
    return [look_at(on_sphere(azimuth, elevation, distance)) for azimuth, elevation in angles]


def gobjaverse(
    root: Path, items: Sequence[str] = ("0/10010", "12/60004"), size: int = 64, missing: Sequence[str] = ("9/45999",)
) -> GObjaverse:
    """www/share/aigc3d: index, map to Objaverse, views as single files and as tars. `missing` items are in the index only."""
    base, fov = root / "www" / "share" / "aigc3d", 0.691111
    made = GObjaverse({}, {})
    for number, item in enumerate([*items, *missing]):
        uid = hashlib.md5(f"objaverse {number}".encode()).hexdigest()
        made.glbs[item] = f"000-{number % 3:03d}/{uid}.glb"
        if item in missing:
            continue
        made.scenes[item] = Balls.of(1000 + number, 0.22)
        for view, c2w in enumerate(gobjaverse_cameras(number)):
            stem = base / "objaverse" / item / "campos_512_v4" / f"{view:05d}" / f"{view:05d}"
            axes = dict(zip(("x", "y", "z", "origin"), c2w[:3].T.tolist(), strict=True))
            put_json(stem.with_suffix(".json"), axes | {"x_fov": fov, "y_fov": fov})
            put(stem.with_suffix(".png"), rgba_png(draw(made.scenes[item], c2w, 0.5 / np.tan(fov / 2), size)))
        archive = base / "objaverse_tar" / f"{item}.tar"
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "w") as tar:
            inside = item.split("/")[1]
            tar.add(base / "objaverse" / item, inside, filter=undated)
    put_json(base / "gobjaverse_280k.json", [*items, *missing])
    put_json(base / "gobjaverse_280k_index_to_objaverse.json", made.glbs)
    return made


def undated(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without TarInfo.replace, which Debian 12's Python 3.11.2 does not have."""
    info.mtime = 0
    return info


@dataclass
class ObjaverseMix:
    scenes: dict[str, Balls]  # uid -> what stands there
    cameras: list[np.ndarray]  # camera-to-world of the 12 views
    focal: float  # in widths
    archive: str  # below the repository
    repo: str = "BAAI/Objaverse-MIX"


def objaverse_mix(
    root: Path,
    objects: int = 2,
    chunk: str = "000-000",
    size: int = 64,
    elevation: float = 30.0,
    chunks: int = 1,
) -> ObjaverseMix:
    """datasets/BAAI/Objaverse-MIX/rendered_images/<chunk>.7z: pictures and nothing else. Another `elevation` is a surprise.

    chunks: the objects are those that `objaverse` deals to this one of so many.
    """
    import py7zr

    cameras = [look_at(on_sphere(30.0 * i, elevation, 2.0)) for i in range(12)]
    made = ObjaverseMix({}, cameras, 35 / 32, f"rendered_images/{chunk}.7z")
    archive = root / "datasets" / made.repo / made.archive
    archive.parent.mkdir(parents=True, exist_ok=True)
    with py7zr.SevenZipFile(archive, "w", filters=[{"id": py7zr.FILTER_LZMA2, "preset": 1}]) as packed:
        for number in range(int(chunk[-3:]) % chunks, objects, chunks):
            uid = hashlib.md5(f"objaverse {number}".encode()).hexdigest()
            made.scenes[uid] = Balls.of(2000 + number, 0.48)
            for view, c2w in enumerate(cameras):
                packed.writestr(rgba_png(draw(made.scenes[uid], c2w, 35 / 32, size)), f"{chunk}/{uid}/{view:03d}.png")
    return made


@dataclass
class Dome:
    scenes: dict[str, Balls]  # uid -> what stands there
    distances: dict[str, float]
    repo: str = "zeyuanyin/Dome-Objaverse"


def dome_camera(view: int, distance: float) -> np.ndarray:
    """Camera-to-world of a view by the data set's own words; OpenCV axes."""
    azimuth, elevation = 30.0 * (view % 12), 30.0 * (view // 12)
    position, a = on_sphere(azimuth, elevation, distance), np.radians(azimuth)
    right, forward = np.array([-np.sin(a), np.cos(a), 0.0]), -position / distance
    return np.vstack([np.stack([right, np.cross(forward, right), forward, position], 1), [0, 0, 0, 1]])


def depth_of(balls: Balls, c2w: np.ndarray, focal: float, size: int) -> np.ndarray:
    """Depth (size, size) along the optical axis at the pixels' centres, 0 where nothing is."""
    grid = ((np.arange(size) + 0.5) / size - 0.5) / focal
    right, down, forward, eye = c2w[:3].T
    rays = grid[:, None, None] * down + grid[:, None] * right + forward  # of length 1 along the axis
    away, square = eye - balls.centres, (rays**2).sum(-1, keepdims=True)
    along = np.einsum("yxi,bi->yxb", rays, away)
    inner = along**2 - square * ((away**2).sum(1) - balls.radius**2)
    reached = np.where(inner > 0, (-along - np.sqrt(np.maximum(inner, 0))) / square, np.inf).min(-1)
    return np.where(np.isfinite(reached), reached, 0.0)


def dome(root: Path, objects: int = 2, size: int = 64) -> Dome:
    """datasets/zeyuanyin/Dome-Objaverse: the list, and a Parquet file of 48 rows per object."""
    made, rows, focal = Dome({}, {}), [], 0.5 / np.tan(0.691150367 / 2)
    base = root / "datasets" / made.repo
    for number in range(objects):
        uid = hashlib.md5(f"objaverse {number}".encode()).hexdigest()
        made.scenes[uid], made.distances[uid] = Balls.of(3000 + number, 0.42), 1.5 + 0.25 * number
        views = []
        for view in range(48):
            c2w = dome_camera(view, made.distances[uid])
            nd = np.zeros((size, size, 4), np.uint16)
            nd[..., 3] = np.round(depth_of(made.scenes[uid], c2w, focal, size) / 5 * 65535)
            picture = rgba_png(draw(made.scenes[uid], c2w, focal, size))
            views.append({"view_id": view, "image_png": picture, "nd_png": cv2.imencode(".png", nd)[1].tobytes()})
        path = base / "dome_objaverse" / "0" / f"{10010 + number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(views), path)
        glb = f"glbs/000-000/{uid}.glb"
        known = {
            "object_id": f"0/{10010 + number}",
            "objaverse_uid": uid,
            "glb_path": glb,
            "caption": f"balls {number}",
        }
        rows.append(known | {"camera_distance": made.distances[uid]})
    (base / "metadata").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), base / "metadata" / "objects.parquet")
    return made
