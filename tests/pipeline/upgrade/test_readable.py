"""Files that Blender does not read as they are, by the real worker: older glTF, what is compressed, names of another machine."""

from __future__ import annotations

import base64
import copy
import json
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import images
from pipeline.core.errors import Skip
from pipeline.core.records import Outcome
from pipeline.formats import gltf
from pipeline.upgrade import copies, crate, gltf_old, plain_text
from pipeline.worker import preflight
from tests import parts
from tests.conftest import Render, put_anew

RED = (200, 0, 0)


@pytest.fixture(scope="module", name="render")
def render_alike(render: Render) -> Render:
    """Renders a file as the one object of its folder, so that equal scenes have equal pixels."""
    return lambda path, root=None: render(path, "it", root or path.parent, res=(32,), samples=4)


def jpegs(outcome: Outcome) -> list[bytes]:
    assert outcome.scene is not None, f"{outcome.reason}: {outcome.detail}"
    return outcome.scene.by_width[32].jpegs


def color(outcome: Outcome) -> list[int]:
    """Mean of what is not white."""
    pictures = np.stack([images.decode(jpeg) for jpeg in jpegs(outcome)])
    return list(pictures[pictures.min(-1) < 240].mean(0).astype(int))


def is_red(outcome: Outcome) -> bool:
    red, green, blue = color(outcome)
    return red > 100 and max(green, blue) < red - 80


def facts(outcome: Outcome) -> dict[str, Any]:
    assert outcome.scene is not None
    return {
        key: outcome.scene.meta[key]
        for key in ("mended", "missing_materials", "missing_textures")
        if outcome.scene.meta.get(key)
    }


def write(folder: Path, name: str, document: dict[str, Any] | bytes) -> Path:
    """A glTF beside its buffer and its picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "box.bin").write_bytes(parts.CUBE)
    (folder / "paint.png").write_bytes(parts.png(8, 8, RED))
    path = folder / name
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    return path


@pytest.fixture(scope="module")
def plain(render: Render, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """JPEGs of the box as glTF 2.0."""
    path = write(tmp_path_factory.mktemp("plain"), "it.gltf", parts.document(materials=[MATTE]))
    outcome = render(path)
    assert is_red(outcome) and not facts(outcome)
    return jpegs(outcome)


MATTE = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}, "metallicFactor": 0, "roughnessFactor": 1}}


# ---- glTF 1.0


def old(**changes: Any) -> dict[str, Any]:
    """The box as glTF 1.0, with a shader; vertex colours are there and not used."""
    points = {"bufferView": "v", "byteOffset": 0, "byteStride": 12, "componentType": 5126, "count": 8, "type": "VEC3"}
    made: dict[str, Any] = {
        "asset": {"version": "1.0"},
        "scene": "s",
        "scenes": {"s": {"nodes": ["n"]}},
        "nodes": {"n": {"meshes": ["m"]}},
        "meshes": {
            "m": {
                "primitives": [
                    {
                        "attributes": {"POSITION": "p", "TEXCOORD_0": "t", "COLOR_0": "c"},
                        "indices": "i",
                        "material": "paint",
                        "mode": 4,
                    }
                ]
            }
        },
        "materials": {"paint": {"technique": "shader", "values": {"diffuse": "texture", "shininess": 10}}},
        "techniques": {"shader": {"parameters": {"diffuse": {"type": 35678}, "shininess": {"type": 5126, "value": 1}}}},
        "textures": {"texture": {"source": "picture", "sampler": "sampler"}},
        "samplers": {"sampler": {"wrapS": 10497}},
        "images": {"picture": {"uri": "paint.png"}},
        "buffers": {"b": {"uri": "box.bin", "byteLength": len(parts.CUBE), "type": "arraybuffer"}},
        "bufferViews": {
            "v": {"buffer": "b", "byteOffset": 0, "byteLength": 160},
            "w": {"buffer": "b", "byteOffset": 160},  # its length was not asked for
        },
        "accessors": {
            "p": points,
            "t": {
                "bufferView": "v",
                "byteOffset": 96,
                "byteStride": 0,
                "componentType": 5126,
                "count": 8,
                "type": "VEC2",
            },
            "c": dict(points),
            "i": {"bufferView": "w", "byteOffset": 0, "componentType": 5123, "count": 36, "type": "SCALAR"},
        },
    }
    return made | changes


def old_glb(document: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    return struct.pack("<4sIIII", b"glTF", 1, 20 + len(text) + len(body), len(text), 0) + text + body


def test_gltf_1_looks_like_gltf_2(render: Render, plain: list[bytes], tmp_path: Path) -> None:
    outcome = render(write(tmp_path, "it.gltf", old()))
    assert jpegs(outcome) == plain
    assert facts(outcome) == {"mended": ["gltf_1"]}


def test_gltf_1_in_a_glb_with_its_picture_inside(render: Render, plain: list[bytes], tmp_path: Path) -> None:
    picture = parts.png(8, 8, RED)
    document = old(
        images={
            "picture": {
                "uri": "data:,",
                "extensions": {"KHR_binary_glTF": {"bufferView": "x", "mimeType": "image/png"}},
            }
        },
        buffers={"other": {"uri": "data:,", "byteLength": 0}, "binary_glTF": {"byteLength": 9, "uri": "data:,"}},
    )
    document["bufferViews"]["x"] = {"byteOffset": len(parts.CUBE), "byteLength": len(picture)}
    for view in document["bufferViews"].values():
        view["buffer"] = "binary_glTF"
    assert jpegs(render(write(tmp_path, "it.glb", old_glb(document, parts.CUBE + picture)))) == plain


def test_common_and_web_materials(render: Render, plain: list[bytes], tmp_path: Path) -> None:
    common = {"extensions": {"KHR_materials_common": {"technique": "PHONG", "values": {"diffuse": "texture"}}}}
    document = old(materials={"paint": common}, extensionsUsed=["KHR_materials_common"])
    assert jpegs(render(write(tmp_path, "it.gltf", document))) == plain
    web = {"extensions": {"KHR_techniques_webgl": {"technique": 0, "values": {"u_diffuse": {"index": 0}}}}}
    document = parts.document(
        materials=[web],
        extensionsUsed=["KHR_techniques_webgl"],
        extensionsRequired=["KHR_techniques_webgl"],
        extensions={"KHR_techniques_webgl": {"techniques": [{"uniforms": {"u_diffuse": {"type": 35678}}}]}},
    )
    assert jpegs(render(write(tmp_path, "web.gltf", document))) == plain


def test_colours_of_old_materials() -> None:
    def surface(values: dict[str, Any], **common: Any) -> dict[str, Any]:
        document = old(materials={"paint": {"extensions": {"KHR_materials_common": {"values": values} | common}}})
        made: dict[str, Any] = gltf_old.upgraded(document)["materials"][0]
        return made

    assert surface({"diffuse": [0.5, 0, 0, 0]})["pbrMetallicRoughness"]["baseColorFactor"] == [0.5, 0, 0, 0]
    assert "alphaMode" not in surface({"diffuse": [0.5, 0, 0, 0]})  # opaque, whatever its alpha
    glass = surface({"diffuse": [0.5, 0, 0, 1], "transparency": 0.25}, transparent=True)
    assert (glass["alphaMode"], glass["pbrMetallicRoughness"]["baseColorFactor"][3]) == ("BLEND", 0.25)
    assert surface({"emission": [0, 9, 0, 1]})["emissiveFactor"] == [0, 1, 0]
    lamp = surface({"emission": [0, 1, 0, 1]}, technique="CONSTANT")
    assert lamp["pbrMetallicRoughness"]["baseColorFactor"] == [0, 1, 0, 1]
    assert lamp["extensions"] == {"KHR_materials_unlit": {}}


def test_a_skin_of_gltf_1(tmp_path: Path) -> None:
    """The bind shape is multiplied into the inverse bind matrices; joints that are floats become whole."""
    shape, inverse = np.eye(4), np.eye(4)
    shape[:3, 3], inverse[:3, :3] = (1, 2, 3), 2 * np.eye(3)
    joints = np.zeros((8, 4), "<f4")
    data = parts.CUBE + inverse.T.astype("<f4").tobytes() + joints.tobytes()
    document = old(buffers={"b": {"uri": "data:;base64," + base64.b64encode(data).decode(), "byteLength": len(data)}})
    document["bufferViews"] |= {"k": {"buffer": "b", "byteOffset": 232, "byteLength": 64}}
    document["bufferViews"] |= {"j": {"buffer": "b", "byteOffset": 296, "byteLength": 128}}
    document["accessors"]["k"] = {"bufferView": "k", "componentType": 5126, "count": 1, "type": "MAT4"}
    document["accessors"]["j"] = {"bufferView": "j", "componentType": 5126, "count": 8, "type": "VEC4"}
    document["nodes"] = {"n": {"meshes": ["m"], "skin": "skin", "skeletons": ["bone"]}, "bone": {"jointName": "one"}}
    document["skins"] = {
        "skin": {"jointNames": ["one"], "inverseBindMatrices": "k", "bindShapeMatrix": list(shape.T.reshape(-1))}
    }
    document["meshes"]["m"]["primitives"][0]["attributes"] |= {"JOINT": "j", "WEIGHT": "j"}
    path = write(tmp_path, "it.gltf", document)
    upgraded = gltf.Document(gltf_old.upgraded(gltf.load(path).json), old=True)
    copies.finish_skins(upgraded, path, {})
    skin, attributes = upgraded.rows("skins")[0], upgraded.rows("meshes")[0]["primitives"][0]["attributes"]
    assert skin["joints"] == [1] and "bindShapeMatrix" not in skin
    found = copies._floats(upgraded, skin["inverseBindMatrices"], 16, path, {}).reshape(4, 4).T
    assert np.array_equal(found, inverse @ shape)
    assert upgraded.rows("accessors")[attributes["JOINTS_0"]]["componentType"] == 5123


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes": {"n": 5}},
        {"nodes": {"n": {"meshes": 7}}},
        {"materials": {"paint": []}},
        {"accessors": {"p": {}}},
        {"skins": {"s": {"jointNames": ["nobody"]}}},
        {"animations": {"a": {"channels": [{"sampler": 1, "target": 5}]}}},
        {"meshes": {"m": {"primitives": [5]}}},
        {"buffers": 5},
        {"techniques": 5},
    ],
)
def test_a_damaged_gltf_1_has_a_reason(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write(tmp_path, "it.gltf", old(**changes))
    with pytest.raises(Skip) as caught:
        preflight.prepare(path, scratch=tmp_path / "scratch")
    assert caught.value.reason in ("broken_gltf", "truncated")


# ---- glTF 2.0 that Blender refuses, or shows otherwise than it is meant


def pack_vertices(data: bytes, stride: int) -> bytes:
    """Meshopt of version 0 whose groups are all stored in full."""
    rows = np.frombuffer(data, np.uint8).reshape(-1, stride)
    delta = np.diff(rows.astype(np.int8), axis=0, prepend=rows[:1].astype(np.int8)).astype(np.int8)
    zigzag = (delta.astype(np.int16) << 1 ^ delta.astype(np.int16) >> 15).astype(np.uint8)
    groups = -(-len(rows) // 16)
    padded = np.zeros((16 * groups, stride), np.uint8)
    padded[: len(rows)] = zigzag
    columns = b"".join(b"\xff" * -(-groups // 4) + padded[:, column].tobytes() for column in range(stride))
    return b"\xa0" + columns + rows[0].tobytes().rjust(max(32, stride), b"\0")


def pack_triangles(indices: list[int]) -> bytes:
    """Meshopt whose triangles are all written out."""
    last, data = 0, b""
    for number, index in enumerate(indices):
        delta = index - last
        last = index
        data += (b"\xff" if number % 3 == 0 else b"") + bytes([delta << 1 if delta >= 0 else (-delta << 1) - 1])
    return b"\xe1" + b"\xff" * (len(indices) // 3) + data + bytes(16)


@pytest.mark.parametrize("extension", ["EXT_meshopt_compression", "KHR_meshopt_compression"])
@pytest.mark.parametrize("name", ["it.gltf", "it.glb"])
def test_meshopt(render: Render, plain: list[bytes], tmp_path: Path, extension: str, name: str) -> None:
    indices = [corner for triangle in parts.TRIANGLES for corner in triangle]
    packed = [pack_vertices(parts.CUBE[:96], 12), pack_vertices(parts.CUBE[96:160], 8), pack_triangles(indices)]
    document = parts.document(materials=[MATTE], extensionsUsed=[extension], extensionsRequired=[extension])
    at = 0
    for view, data, (stride, count, mode) in zip(
        document["bufferViews"],
        packed,
        [(12, 8, "ATTRIBUTES"), (8, 8, "ATTRIBUTES"), (2, 36, "TRIANGLES")],
        strict=True,
    ):
        inside = {
            "buffer": 0,
            "byteOffset": at,
            "byteLength": len(data),
            "byteStride": stride,
            "count": count,
            "mode": mode,
        }
        view |= {"buffer": 1, "extensions": {extension: inside}}
        at += len(data)
    body = b"".join(packed)
    document["buffers"] = [
        {"byteLength": at},
        {"byteLength": len(parts.CUBE), "extensions": {extension: {"fallback": True}}},
    ]
    if name == "it.gltf":
        document["buffers"][0]["uri"] = "packed.bin"
        (tmp_path / "packed.bin").write_bytes(body)
    path = write(tmp_path, name, document if name == "it.gltf" else parts.glb(document, body))
    assert jpegs(render(path)) == plain
    cut = copy.deepcopy(document)
    cut["bufferViews"][0]["extensions"][extension]["byteLength"] = 40
    outcome = render(write(tmp_path, name, cut if name == "it.gltf" else parts.glb(cut, body)))
    assert (outcome.reason, "meshopt" in outcome.detail) == ("import_failed", True)


def test_other_encodings_and_versions(render: Render, plain: list[bytes], tmp_path: Path) -> None:
    document = parts.document(materials=[MATTE])
    text = json.dumps(document).encode()
    odd = {
        "mark": b"\xef\xbb\xbf" + text,
        "wide": text.decode().encode("utf-16"),
        "nul": text + b"\0\0",
        "nan": text.replace(b'"min": [0, 0, 0]', b'"min": [NaN, 0, 0]'),
        "later": text.replace(b'"2.0"', b'"2.1"'),
        "number": json.dumps(document | {"scenes": [{"nodes": [0], "name": 42}], "scene": "0"}).encode(),
        "lit": json.dumps(document | {"extensionsRequired": ["KHR_materials_iridescence"]}).encode(),
        "more": parts.glb(document | {"buffers": parts.INSIDE}) + b"after the end",
    }
    for name, data in odd.items():
        assert jpegs(render(write(tmp_path / name, "it.glb" if name == "more" else "it.gltf", data))) == plain, name


def test_what_a_scene_shows(render: Render, plain: list[bytes], tmp_path: Path) -> None:
    """Of several scenes the first, if none is named; nothing that is invisible, nor what is below it."""
    far = {"mesh": 0, "translation": [9, 0, 0]}
    hidden = {"children": [2], "extensions": {"KHR_node_visibility": {"visible": False}}}
    several = {
        "first": {"nodes": [{"mesh": 0}, far], "scenes": [{"nodes": [0]}, {"nodes": [1]}]},
        "named": {"nodes": [far, {"mesh": 0}], "scenes": [{"nodes": [0]}, {"nodes": [1]}], "scene": 1},
        "hidden": {
            "nodes": [{"mesh": 0}, hidden, far],
            "scenes": [{"nodes": [0, 1]}],
            "extensionsUsed": ["KHR_node_visibility"],
            "extensionsRequired": ["KHR_node_visibility"],
        },
    }
    for name, changes in several.items():
        path = write(tmp_path / name, "it.gltf", parts.document(materials=[MATTE], **changes))
        assert jpegs(render(path)) == plain, name


def test_pictures_that_are_nowhere_lose_no_object(render: Render, tmp_path: Path) -> None:
    glossy = {
        "KHR_materials_pbrSpecularGlossiness": {
            "specularGlossinessTexture": {"index": 0},
            "diffuseFactor": [1, 0, 0, 1],
        }
    }
    document = parts.document(materials=[{"extensions": glossy}], images=[{"uri": "gone.png"}])
    outcome = render(write(tmp_path / "glossy", "it.gltf", document | {"extensionsUsed": [*glossy]}))
    assert facts(outcome) == {"missing_textures": 1}
    for uri in ("gone.png", "../../gone.png", "C:/gone.png", "/nowhere/gone.png"):
        outcome = render(write(tmp_path / "plain", "it.gltf", parts.document(images=[{"uri": uri}])))
        assert facts(outcome) == {"missing_textures": 1}, uri


def test_buffers_that_are_not_there_are_named(tmp_path: Path) -> None:
    def reason(**changes: Any) -> str:
        with pytest.raises(Skip) as caught:
            preflight.prepare(write(tmp_path, "it.gltf", parts.document(**changes)))
        return caught.value.reason

    size = {"byteLength": len(parts.CUBE)}
    assert reason(buffers=[{"uri": "gone.bin"} | size]) == "missing_file"
    (tmp_path / "pointer.bin").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n".ljust(300)
    )
    assert reason(buffers=[{"uri": "pointer.bin"} | size]) == "lfs_pointer"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "far.bin").write_bytes(parts.CUBE)
    assert reason(buffers=[{"uri": "far.bin"} | size]) == "missing_file"  # another model's, as likely as not
    assert reason(buffers=[{"uri": "C:/box.bin"} | size]) == "escapes_folder"
    (tmp_path / "pointer.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert preflight.check(write(tmp_path, "it.gltf", parts.document(images=[{"uri": "pointer.png"}]))) == "gltf"


# ---- named by another machine


NAMES = {
    "windows": r"C:\Users\me\tex\Paint.png",
    "mac": "/Users/me/tex/paint.png",
    "case": "TEX/PAINT.PNG",
    "backslash": r".\tex\paint.png",
    "percent": "tex/paint%2Epng",
    "elsewhere": "../old/place/paint.png",
    "share": r"\\server\tex\paint.png",
}


def named_by(folder: Path, suffix: str, name: str) -> Path:
    """A box in folder/models whose picture of this name lies in folder/models/a & b/tex."""
    models = folder / "models"
    (models / "a & b" / "tex").mkdir(parents=True)
    (models / "a & b" / "tex" / "paint.png").write_bytes(parts.png(8, 8, RED))
    for decoy in ("z", "a & b/tex/deeper", ".hidden"):  # farther, or as near and later in the alphabet, or hidden
        (models / decoy / "tex").mkdir(parents=True)
        (models / decoy / "tex" / "paint.png").write_bytes(parts.png(8, 8, (0, 0, 200)))
    path = models / f"it.{suffix}"
    match suffix:
        case "gltf":
            (models / "box.bin").write_bytes(parts.CUBE)
            path.write_text(json.dumps(parts.document(materials=[MATTE], images=[{"uri": name}])))
        case "obj":
            path.write_text(parts.obj("mtllib it.mtl"))
            (models / "it.mtl").write_text(f"newmtl paint\nKd 1 1 1\nmap_Kd -s 1 1 1 {name}\n")
        case "usda":
            path.write_text(parts.painted_usda(name))
        case "dae":
            path.write_text(parts.painted_dae(name.replace("&", "&amp;")))
        case "ply":
            path.write_text(parts.painted_ply(name))
    return path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", ["gltf", "obj", "usda", "dae", "ply"])
def test_pictures_are_found_by_their_base_name(render: Render, tmp_path: Path, suffix: str, name: str) -> None:
    outcome = render(named_by(tmp_path, suffix, NAMES[name]), tmp_path)
    assert is_red(outcome)
    assert facts(outcome) == {"mended": ["links"]}


@pytest.mark.parametrize("suffix", ["gltf", "obj", "usda", "dae", "ply"])
def test_no_picture_outside_of_the_root_is_taken(render: Render, tmp_path: Path, suffix: str) -> None:
    path = named_by(tmp_path, suffix, "/Users/me/tex/Wood.png")
    (tmp_path / "Wood.png").write_bytes(parts.png(8, 8, RED))  # beside the root
    (path.parent / "Wood.png").symlink_to(tmp_path / "Wood.png")
    outcome = render(path, path.parent)
    assert not is_red(outcome)
    assert facts(outcome) == {"missing_textures": 1}
    (path.parent / "deep").mkdir()
    (path.parent / "deep" / "WOOD.png").write_bytes(parts.png(8, 8, RED))
    outcome = render(path, path.parent)
    assert is_red(outcome)  # a file below the root of that name is another
    assert facts(outcome) == {"mended": ["links"]}


@pytest.mark.parametrize("suffix", ["gltf", "obj", "usda", "dae", "ply", "fbx", "blend"])
def test_pictures_under_another_suffix_are_found_by_their_stem(
    render: Render, binaries: Path, tmp_path: Path, suffix: str
) -> None:
    if suffix in ("fbx", "blend"):
        path = Path(shutil.copy(binaries / f"it.{suffix}", tmp_path))
    else:
        path = named_by(tmp_path, suffix, "old/tex/Oak.tga")
    base = "Oak.tga" if path.parent != tmp_path else "Paint.png"
    stem = base.partition(".")[0]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / f"{stem}.JPEG").write_bytes(parts.png(8, 8, RED))
    (tmp_path / f"{stem}.txt").write_text("no picture")
    outcome = render(path, tmp_path)
    assert is_red(outcome)
    assert facts(outcome) == {"mended": ["links"]}
    (tmp_path / f"{base}.bmp").write_bytes(parts.png(8, 8, RED))
    outcome = render(path, tmp_path)
    assert not is_red(outcome)  # two that may be meant
    assert facts(outcome) == {"missing_textures": 1}


@pytest.mark.parametrize(
    ("name", "there", "is_found"),
    [
        ("textures/paint.tga", ["textures/paint.png"], True),
        ("Textures/PAINT.png", ["textures/paint.png"], True),
        ("old/textures/paint.png", ["paint.png"], True),
        ("textures/paint.tga", ["textures/paint.png", "other/paint.jpg"], False),
        ("./textures/paint.png", ["textures/paint.png"], None),
    ],
)
def test_pictures_inside_a_usdz_are_found_by_their_names(
    render: Render, tmp_path: Path, name: str, there: list[str], is_found: bool | None
) -> None:
    """None: it is where it is said to be."""
    path = tmp_path / "it.usdz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("it.usda", parts.painted_usda(name))
        for member in there:
            archive.writestr(member, parts.png(8, 8, RED))
    outcome = render(path)
    assert is_red(outcome) == (is_found is not False)
    assert facts(outcome) == {True: {"mended": ["links"]}, False: {"missing_textures": 1}, None: {}}[is_found]


BINARIES = """
import sys, bpy
out = sys.argv[1]
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.mesh.primitive_cube_add(size=1, scale=(1, 1, 2))
paint = bpy.data.materials.new("paint")
paint.use_nodes = True
picture = paint.node_tree.nodes.new("ShaderNodeTexImage")
picture.image = bpy.data.images.new("paint", 4, 4)
picture.image.source = "FILE"
picture.image.filepath = "/Users/me/tex/Paint.png"
paint.node_tree.links.new(picture.outputs["Color"], paint.node_tree.nodes["Principled BSDF"].inputs["Base Color"])
bpy.context.object.data.materials.append(paint)
bpy.ops.export_scene.fbx(filepath=f"{out}/it.fbx", path_mode="ABSOLUTE")
picture.image.filepath = "C:\\\\tex\\\\Paint.png"
bpy.ops.wm.save_as_mainfile(filepath=f"{out}/it.blend", check_existing=False, relative_remap=False)
for name, path in (("drive", "C:\\\\tex\\\\Paint.png"), ("mac", "/Users/me/tex/PAINT.png"), ("there", "//pictures/paint.png")):
    picture.image.filepath = path
    bpy.ops.wm.usd_export(filepath=f"{out}/{name}.usdc", export_textures_mode="KEEP", relative_paths=name == "there")
picture.image.filepath = f"{out}/../outside.png"
bpy.ops.wm.usd_export(filepath=f"{out}/outside.usdc", export_textures_mode="KEEP", relative_paths=False)
"""


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of binary files, with the picture that they mean below it, and one beside it that they must not have."""
    folder = tmp_path_factory.mktemp("binaries") / "models"
    (folder / "pictures").mkdir(parents=True)
    subprocess.run([sys.executable, "-Ic", BINARIES, folder], check=True, capture_output=True, timeout=120)
    for path in (folder / "pictures" / "paint.png", folder.parent / "outside.png"):
        path.write_bytes(parts.png(8, 8, RED))
    return folder


def test_pictures_of_binary_files_are_found_inside_blender(render: Render, binaries: Path) -> None:
    for suffix in ("fbx", "blend"):
        assert is_red(render(binaries / f"it.{suffix}")), suffix
    assert facts(render(binaries / "it.blend")) == {"mended": ["links"]}


def test_pictures_of_a_binary_usd(render: Render, binaries: Path, tmp_path: Path) -> None:
    """By names of other machines, also through a layer of text; never from outside of the folder."""
    folder = binaries
    (folder / "top.usda").write_text("#usda 1.0\n(\n subLayers = [@drive.usdc@]\n)\n")
    for name in ("drive.usdc", "mac.usdc", "there.usdc", "top.usda"):
        outcome = render(folder / name)
        assert is_red(outcome), name
        assert facts(outcome) == ({} if name == "there.usdc" else {"mended": ["links"]})
    outcome = render(folder / "outside.usdc")
    assert not is_red(outcome)
    assert facts(outcome) == {"missing_textures": 1}
    assert any("outside.png" in word for word in crate.words(folder / "outside.usdc"))
    checked = preflight.prepare(folder / "outside.usdc", scratch=tmp_path / "scratch")
    assert "outside.png" in crate.words(checked.path)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=30), st.data())
def test_words_of_a_binary_usd(folder: Path, words: list[str], data: st.DataObject) -> None:
    """What is written is read again; whatever is damaged ends in words, or in none."""
    source, target = folder / "it.usdc", folder / "copy.usdc"
    text = b"".join(word.encode() + b"\0" for word in words)
    packed = b"\0" + crate._stored(text)
    made = b"PXR-USDC\0\x09".ljust(16, b"\0") + struct.pack("<q", 88) + bytes(64)
    made += struct.pack("<Q", 1) + struct.pack("<16sqq", b"TOKENS", 128, 24 + len(packed))
    made += struct.pack("<QQQ", len(words), len(text), len(packed)) + packed
    put_anew(source, made)
    target.unlink(missing_ok=True)
    assert crate.words(source) == words
    assert crate.words(crate.renamed(source, lambda word: word + "x", target)) == [word + "x" for word in words]
    damaged = bytearray(made)
    damaged[data.draw(st.integers(0, len(made) - 1))] = data.draw(st.integers(0, 255))
    put_anew(source, bytes(damaged[: data.draw(st.integers(0, len(made)))]))
    assert all(isinstance(word, str) for word in crate.words(source))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crates")


def test_mtl_files_are_found_or_counted(render: Render, tmp_path: Path) -> None:
    (tmp_path / "mats").mkdir()
    (tmp_path / "mats" / "Paint.mtl").write_text("newmtl paint\nKd 1 1 1\nmap_Kd paint.png\n")
    (tmp_path / "mats" / "paint.png").write_bytes(parts.png(8, 8, RED))
    path = tmp_path / "it.obj"
    for line in (r"mtllib C:\work\paint.mtl", r"mtllib .\mats\Paint.mtl", "mtllib gone.mtl mats\\paint.mtl"):
        path.write_text(parts.obj(line))
        outcome = render(path)
        assert is_red(outcome), line
        gone = {"missing_materials": 1} if "gone" in line else {}
        assert facts(outcome) == {"mended": ["links"]} | gone
    path.write_text(parts.obj("mtllib gone.mtl"))
    assert facts(render(path)) == {"missing_materials": 1}
    (tmp_path / "gone.mtl").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert facts(render(path)) == {"missing_materials": 1}


FACETS = "".join(
    "facet normal 0 0 0\nouter loop\n"
    + "".join("vertex {} {} {}\n".format(*parts.CORNERS[corner]) for corner in triangle)
    + "endloop\nendfacet\n"
    for triangle in parts.TRIANGLES
)
TEXTS = {
    "obj": parts.obj("mtllib häuser.mtl"),
    "ply": "ply\nformat ascii 1.0\nelement vertex 8\nproperty float x\nproperty float y\nproperty float z\nelement face 12\n"
    + "property list uchar int vertex_indices\nend_header\n"
    + "".join("{} {} {}\n".format(*corner) for corner in parts.CORNERS)
    + "".join("3 {} {} {}\n".format(*triangle) for triangle in parts.TRIANGLES),
    "stl": f"solid it\n{FACETS}endsolid it\n",
    "usda": parts.painted_usda("häuser.png"),
    "fbx": parts.fbx_text(picture="häuser.png"),
}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("suffix", TEXTS)
def test_texts_in_other_encodings(render: Render, tmp_path: Path, suffix: str, encoding: str) -> None:
    (tmp_path / "häuser.png").write_bytes(parts.png(8, 8, RED))
    (tmp_path / "häuser.mtl").write_bytes("newmtl paint\nmap_Kd häuser.png\n".encode(encoding))
    path = tmp_path / f"it.{suffix}"
    path.write_bytes(TEXTS[suffix].encode(encoding))
    outcome = render(path)
    assert "encoding" in facts(outcome)["mended"]
    assert not facts(outcome).keys() - {"mended"}
    assert is_red(outcome) == (suffix in ("obj", "usda", "fbx"))
    (tmp_path / "häuser.mtl").write_text("newmtl paint\nmap_Kd häuser.png\n")
    path.write_text(TEXTS[suffix])
    assert jpegs(render(path)) == jpegs(outcome)


def test_an_mtl_in_another_encoding(render: Render, tmp_path: Path) -> None:
    (tmp_path / "paint.png").write_bytes(parts.png(8, 8, RED))
    (tmp_path / "it.mtl").write_bytes("newmtl paint\nmap_Kd paint.png\n".encode("utf-16"))
    (tmp_path / "it.obj").write_text(parts.obj("mtllib it.mtl"))
    outcome = render(tmp_path / "it.obj")
    assert is_red(outcome)
    assert facts(outcome) == {"mended": ["encoding"]}


@pytest.mark.parametrize("suffix", ["obj", "ply", "stl", "STL"])
def test_numbers_with_decimal_commas(render: Render, tmp_path: Path, suffix: str) -> None:
    """As programs write them in countries that do; names keep theirs."""
    (tmp_path / "a1,5.mtl").write_text("newmtl paint\nKd 0,8 0 0\n")
    text = TEXTS[suffix.lower()].replace("häuser", "a1,5").replace("\nv ", "\nv  ")
    text = re.sub(r"(?<!ascii )([0-2])\.0", lambda found: {"0": "0,0", "1": "1,5", "2": "2,0E+00"}[found[1]], text)
    path = tmp_path / f"it.{suffix.lower()}"
    path.write_text(text.upper() if suffix == "STL" else text)
    outcome = render(path)
    assert "encoding" in facts(outcome)["mended"]
    assert outcome.scene is not None
    low, high = np.array(outcome.scene.meta["raw_bounds"])
    assert sorted(np.round(high - low, 4)) == [1.5, 1.5, 2.0]
    if suffix == "obj":
        assert is_red(outcome)


def test_numbers_with_points_and_lists_by_commas_stay(tmp_path: Path) -> None:
    for row in ("v 1,5 0.5 2", "v 1,2,3", "v 1, 2, 3", "v 1 2 3"):
        (tmp_path / "it.obj").write_text(f"# 1,5\n{row}\n")
        assert plain_text.encoding(tmp_path / "it.obj", "obj") == "", row


@pytest.mark.parametrize(("name", "code"), [("Bäume", "latin-1"), ("木材", "cp932"), ("木材", "gbk")])
def test_pictures_whose_names_are_no_utf_8(render: Render, tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / f"{name}.png").write_bytes(parts.png(8, 8, RED))
    (tmp_path / "it.mtl").write_bytes(f"newmtl paint\nmap_Kd {name}.png\n".encode(code))
    path = tmp_path / "it.obj"
    path.write_text(parts.obj("mtllib it.mtl"))
    outcome = render(path)
    assert is_red(outcome)
    assert facts(outcome) == {"mended": ["links"]}


def test_an_stl_in_capitals(render: Render, tmp_path: Path) -> None:
    (tmp_path / "it.stl").write_text(f"solid it\n{FACETS}endsolid it\n".upper().replace("\n", "\r\n"))
    (tmp_path / "low.stl").write_text(f"solid it\n{FACETS}endsolid it\n")
    assert jpegs(render(tmp_path / "it.stl")) == jpegs(render(tmp_path / "low.stl"))
