"""Pictures of materials and of faces of Blender before 2.80, in a file written by hand: Blender 4.5 writes no such file."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HERE

PAGES = {  # of each mesh: (place of the image, what its alpha does) of its faces
    "bare": [(50, 0), (51, 0), (0, 0), (50, 2), (99, 0)],
    "kept": [(51, 0)] * 5,
    "several": [(50, 0), (51, 0), (50, 0), (50, 0), (51, 0)],
    "other": [(50, 0)] * 4,  # of another number of faces
}
READ = """
import gzip, json, random, sys
sys.path.insert(0, sys.argv[-2])
import bpy, face_pictures, old_blend, old_file

bpy.ops.wm.read_factory_settings(use_empty=True)
old_blend.WITH_NODES = (9, 0, 0)
for name, kind in (("paint", "IMAGE"), ("clouds", "CLOUDS")):
    texture = bpy.data.textures.new(name, kind)
    if kind == "IMAGE":
        texture.image = bpy.data.images.new("picture", 4, 4)
for name in ("painted", "placed", "cloudy", "plain"):
    bpy.data.materials.new(name)
for name in ("wood", "stone"):
    image = bpy.data.images.new(name, 4, 4)
    image.pack()
    image.source = "FILE"
for name, materials in {"bare": (), "kept": ("painted",), "several": ("placed", "plain"), "other": ("plain",)}.items():
    mesh = bpy.data.meshes.new(name)
    strip = [(2 * x, 2 * x + 2, 2 * x + 3, 2 * x + 1) for x in range(5)]
    mesh.from_pydata([(x, y, 0) for x in range(6) for y in (0, 1)], [], strip)
    for material in materials:
        mesh.materials.append(bpy.data.materials[material])
    mesh.polygons[4].material_index = len(materials) > 1
facts = old_blend.restore(sys.argv[-1])


def shown(material):  # name of the picture of its colour, and what else that gives
    tree = material.node_tree if material and material.use_nodes else None
    links = [link for link in tree.links if link.from_node.type == "TEX_IMAGE"] if tree else []
    return [link.from_node.image.name for link in links[:1]] + [link.to_socket.name for link in links[1:]]


def pictures(mesh):
    return [shown(mesh.materials[face.material_index] if mesh.materials else None) for face in mesh.polygons]


faces = {mesh.name: pictures(mesh) for mesh in bpy.data.meshes}
own = [bpy.data.materials[name] for name in ("painted", "placed", "cloudy", "plain")]
trees = {one.name: one.node_tree for one in own if one.use_nodes}
links = {name: [(link.from_node.type, link.to_socket.name) for link in tree.links] for name, tree in trees.items()}
layers = [node.uv_map for tree in trees.values() for node in tree.nodes if node.type == "UVMAP"]
whole, rng = open(sys.argv[-1], "rb").read(), random.Random(0)
for _ in range(3000):
    broken = bytearray(whole[: rng.choice([len(whole), rng.randrange(13, len(whole))])])
    for _ in range(rng.randrange(4)):
        broken[rng.randrange(12, len(broken))] = rng.randrange(256)
    try:
        file = old_file.OldFile(bytes(broken))
        old_blend.textures_of_materials(file), face_pictures.of_meshes(file), face_pictures.materials(file)
    except old_file.BROKEN:
        pass
print("FOUND" + json.dumps([facts, links, layers, faces]))
"""


def old_file(order: str, wide: bool, array: str) -> bytes:
    """A .blend of three materials and four meshes, with the structures that say what they show, and as many bytes of others.

    array: field of the meshes in which pictures of their faces stand.
    """
    pointer, width = ("Q", 8) if wide else ("I", 4)
    names = ["name[24]", "id", "r", "mode", "*mtex[18]", "texco", "mapto", "*tex", "uvname[32]", "*ima", "pad[3]"]
    names += [f"*{field}" for field in ("mtpoly", "mtface", "tface")] + ["*tpage", "transp", "*data", "name[32]"]
    face = {"mtpoly": "MTexPoly", "mtface": "MTFace", "tface": "TFace"}[array]
    types = {
        "char": 1,
        "short": 2,
        "float": 4,
        "ID": 24,
        "int": 4,
        "Material": 32 + 18 * width,
        "MTex": 36 + width,
        "Tex": 24 + width,
        "Mesh": 24 + 3 * width,
        face: 10 + width,
        "CustomDataLayer": 32 + width,
        "Image": 24,
    }
    fields = {
        "ID": [("char", "name[24]")],
        "Material": [("ID", "id"), ("float", "r"), ("int", "mode"), ("MTex", "*mtex[18]")],
        "MTex": [("short", "texco"), ("short", "mapto"), ("Tex", "*tex"), ("char", "uvname[32]")],
        "Tex": [("ID", "id"), ("Tex", "*ima")],
        "Mesh": [("ID", "id"), (face, "*mtpoly"), (face, "*mtface"), (face, "*tface")],
        face: [("Image", "*tpage"), ("short", "transp"), ("short", "texco"), ("short", "mapto"), ("int", "r")],
        "CustomDataLayer": [("char", "name[32]"), ("Tex", "*data")],
        "Image": [("ID", "id")],
    }
    numbers = {name: place for place, name in enumerate(types)}
    dna = b"SDNA" + _texts(b"NAME", order, names) + _padded(_texts(b"TYPE", order, list(types)), 4, b"SDNA")
    dna += b"TLEN" + struct.pack(f"{order}{len(types)}h", *types.values())
    dna += bytes(-len(dna) % 4) + b"STRC" + struct.pack(f"{order}i", len(fields))
    for kind, members in fields.items():
        dna += struct.pack(f"{order}hh", numbers[kind], len(members))
        for of, name in members:
            dna += struct.pack(f"{order}hh", numbers[of], names.index(name))
    made = b"BLENDER" + (b"-" if wide else b"_") + (b"v" if order == "<" else b"V") + b"249"
    at = list(fields)

    def block(code: bytes, where: int, kind: str, body: bytes, count: int = 1) -> bytes:
        code = code if order == "<" else code.rjust(4, b"\0")
        return (
            struct.pack(f"{order}4si{pointer}ii", code, len(body), where, at.index(kind) if kind else 0, count) + body
        )

    def slots(*where: int) -> bytes:
        return struct.pack(f"{order}18{pointer}", *where, *[0] * (18 - len(where)))

    def mtex(texco: int, mapto: int, to: int, layer: bytes) -> bytes:
        return struct.pack(f"{order}hh{pointer}32s", texco, mapto, to, layer)

    head = {
        name: b"MA" + name.ljust(22, b"\0") + struct.pack(f"{order}fi", 1, 0)
        for name in (b"painted", b"placed", b"cloudy")
    }
    made += block(b"MA", 10, "Material", head[b"painted"] + slots(20, 21))
    made += block(b"MA", 11, "Material", head[b"placed"] + slots(0, 22))
    made += block(b"MA", 12, "Material", head[b"cloudy"] + slots(23, 99))
    made += block(b"DATA", 20, "MTex", mtex(16, 2, 31, b"")) + block(b"DATA", 21, "MTex", mtex(16, 3, 30, b"second"))
    made += block(b"DATA", 22, "MTex", mtex(1, 1, 30, b"")) + block(b"DATA", 23, "MTex", mtex(1, 1, 31, b""))
    for where, name in ((30, b"paint"), (31, b"clouds")):
        made += block(b"TE", where, "Tex", b"TE" + name.ljust(22, b"\0") + struct.pack(order + pointer, 0))
    for where, name in ((50, b"wood"), (51, b"stone")):
        made += block(b"IM", where, "Image", b"IM" + name.ljust(22, b"\0"))
    for number, (name, pages) in enumerate(PAGES.items()):
        where = 60 + number
        places = [where if field == array else 0 for field in ("mtpoly", "mtface", "tface")]
        made += block(
            b"ME",
            70 + number,
            "Mesh",
            b"ME" + name.encode().ljust(22, b"\0") + struct.pack(f"{order}3{pointer}", *places),
        )
        made += block(
            b"DATA",
            where,
            face,
            b"".join(struct.pack(f"{order}{pointer}hhhi", *page, 0, 0, 0) for page in pages),
            len(pages),
        )
    made += block(
        b"DATA",
        80,
        "CustomDataLayer",
        b"".join(struct.pack(f"{order}32s{pointer}", b"UVTex", 60 + number) for number in range(4)),
        4,
    )
    return made + block(b"DNA1", 40, "", dna) + block(b"ENDB", 0, "", b"")


def _texts(mark: bytes, order: str, texts: list[str]) -> bytes:
    data = mark + struct.pack(f"{order}i", len(texts)) + b"".join(text.encode() + b"\0" for text in texts)
    return data + bytes(-len(data) % 4)


def _padded(data: bytes, to: int, before: bytes) -> bytes:
    return data + bytes(-len(before + data) % to)


@pytest.mark.parametrize(
    ("order", "wide", "array"), [("<", False, "mtface"), (">", True, "mtpoly"), ("<", True, "tface")]
)
def test_pictures_of_old_materials_and_faces_are_shown(tmp_path: Path, order: str, wide: bool, array: str) -> None:
    path = tmp_path / "old.blend"
    path.write_bytes(old_file(order, wide, array))
    command = [sys.executable, "-I", "-c", READ, str(HERE.parent / "blender_scripts"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    facts, links, layers, faces = json.loads(done.stdout.partition("FOUND")[2].splitlines()[0])
    assert facts == {"mended": ["old_materials"], "missing_textures": 1}  # the clouds
    assert set(links) == {"painted", "placed"}
    assert sorted(links["painted"]) == [
        ["BSDF_PRINCIPLED", "Surface"],
        ["TEX_IMAGE", "Base Color"],
        ["UVMAP", "Vector"],
    ]
    assert sorted(links["placed"]) == [
        ["BSDF_PRINCIPLED", "Surface"],
        ["TEX_COORD", "Vector"],
        ["TEX_IMAGE", "Base Color"],
    ]
    assert layers == ["second"]
    assert faces == {
        "bare": [["wood"], ["stone"], [], ["wood", "Alpha"], []],
        "kept": [["picture"]] * 5,
        "several": [["wood"], ["stone"], ["wood"], ["wood"], ["stone"]],
        "other": [[]] * 5,
    }
