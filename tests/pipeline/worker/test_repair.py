"""Objects whose files, writers or readers made them invisible, grey, magenta or black are shown as their authors meant."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import images
from pipeline.core.records import Outcome
from tests.conftest import HERE, Render, put_anew

POINTS = np.array([(x, y, z) for x in (0, 2) for y in (0, 1.5) for z in (0, 1)], float)
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]  # outwards
RED = (0.8, 0.05, 0.05)


def triangles(quads: list[tuple[int, ...]], other: bool = False) -> list[tuple[int, ...]]:
    """Two triangles a quad, along one diagonal or the other."""
    return [corner for a, b, c, d in quads for corner in (((a, b, d), (b, c, d)) if other else ((a, b, c), (a, c, d)))]


def flipped(faces: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [face[::-1] for face in faces]


def obj(path: Path, *parts: tuple[np.ndarray, list[tuple[int, ...]]], material: str = "Kd 0.8 0.05 0.05") -> Path:
    """An OBJ file with one object per (points (N, 3 or 6), faces), and its material."""
    lines, first = ["mtllib m.mtl"], 1
    for number, (points, faces) in enumerate(parts):
        lines += [f"o part{number}", "usemtl m", *("v " + " ".join(map(str, point)) for point in points)]
        lines += ["f " + " ".join(str(first + corner) for corner in face) for face in faces]
        first += len(points)
    path.parent.mkdir(exist_ok=True)
    (path.parent / "m.mtl").write_text(f"newmtl m\n{material}\n")
    path.write_text("\n".join(lines))
    return path


def gltf(path: Path, materials: list[dict[str, Any]], parts: list[np.ndarray], **attributes: np.ndarray) -> Path:
    """A glTF file with a mesh per part, points (3 T, 3) of loose triangles, each of the material of its number."""
    blob, views, accessors, meshes = b"", [], [], []

    def add(values: np.ndarray) -> int:
        nonlocal blob
        data = values.astype("<f4")
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": data.nbytes})
        blob += data.tobytes()
        ends = {"min": data.min(0).tolist(), "max": data.max(0).tolist()}
        accessors.append(
            {"bufferView": len(views) - 1, "componentType": 5126, "count": len(data), "type": "VEC3"} | ends
        )
        return len(accessors) - 1

    for number, points in enumerate(parts):
        named = {name: add(values) for name, values in ({"POSITION": points} | attributes).items()}
        meshes.append({"primitives": [{"attributes": named, "material": number % len(materials)}]})
    uri = "data:application/octet-stream;base64," + base64.b64encode(blob).decode()
    content = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": list(range(len(parts)))}],
        "nodes": [{"mesh": number} for number in range(len(parts))],
        "meshes": meshes,
        "materials": materials,
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(blob), "uri": uri}],
    }
    path.write_text(json.dumps(content))
    return path


def shown(outcome: Outcome) -> np.ndarray:
    """sRGB bytes (N, 3) of the object's own pixels, in all views."""
    assert outcome.scene is not None, f"{outcome.reason}: {outcome.detail}"
    views = outcome.scene.by_width[64]
    pictures = np.stack([images.decode(jpeg) for jpeg in views.jpegs])
    alphas = np.stack([images.decode(png) for png in views.layers["alpha"]]).reshape(pictures.shape[:3])
    return pictures[alphas > 250]


def mended(outcome: Outcome) -> list[str]:
    assert outcome.scene is not None, f"{outcome.reason}: {outcome.detail}"
    found: list[str] = outcome.scene.meta.get("mended", [])
    return found


def is_red(outcome: Outcome) -> bool:
    red, green, blue = np.median(shown(outcome), axis=0)
    return bool(red > 100 and max(green, blue) < 0.6 * red)


def share_of(channel: int, outcome: Outcome) -> float:
    """Share of the pixels in which one of red, green and blue is the strongest by far."""
    pixels = shown(outcome).astype(int)
    others = np.delete(pixels, channel, 1).max(1)
    return float((pixels[:, channel] - others > 50).mean())


BOX = POINTS, triangles(QUADS)
COINCIDENT = {
    "two objects": [BOX, (POINTS, triangles(QUADS, other=True))],
    "quads and triangles": [(POINTS, QUADS), BOX],
    "one mesh, other diagonals": [(POINTS, triangles(QUADS) + triangles(QUADS, other=True))],
    "back to back": [BOX, (POINTS, flipped(triangles(QUADS, other=True)))],
    "three times": [BOX, (POINTS, QUADS), (POINTS, triangles(QUADS, other=True))],
    "a sticker": [BOX, (POINTS * (0.5, 0.5, 1) + (0.3, 0.2, 0), QUADS)],
    "on the ground": [BOX, (POINTS[::2] * (4, 4, 1) - (3, 3, 0), [(0, 1, 3, 2)])],
}


@pytest.mark.parametrize("name", COINCIDENT)
def test_surfaces_in_one_place_are_not_black(tmp_path: Path, render: Render, name: str) -> None:
    outcome = render(obj(tmp_path / "twice.obj", *COINCIDENT[name]), views=8, alpha=True)
    assert (shown(outcome).max(1) < 40).mean() < 0.002
    assert is_red(outcome)
    assert mended(outcome) == ["coincident_faces"]


@pytest.mark.parametrize(
    "parts", [[BOX], [BOX, (POINTS + np.array([2, 0, 0]), QUADS)], [BOX, (POINTS + np.array([0, 0, 1.001]), QUADS)]]
)
def test_surfaces_that_only_touch_stay_where_they_are(tmp_path: Path, render: Render, parts: list[Any]) -> None:
    assert mended(render(obj(tmp_path / "once.obj", *parts), alpha=True)) == []


@pytest.mark.parametrize("wound", ["outwards", "inwards"])
@pytest.mark.parametrize("stored", ["along", "against"])
def test_normals_against_their_faces_are_turned(tmp_path: Path, render: Render, wound: str, stored: str) -> None:
    faces = np.array(triangles(QUADS if wound == "outwards" else flipped(QUADS)))
    points = POINTS[faces]
    normals = np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) * (1 if stored == "along" else -1)
    material = {"pbrMetallicRoughness": {"baseColorFactor": [*RED, 1], "metallicFactor": 0}}
    path = gltf(tmp_path / "n.gltf", [material], [points.reshape(-1, 3)], NORMAL=normals.repeat(3, 0))
    outcome = render(path, alpha=True)
    assert is_red(outcome)
    assert mended(outcome) == ([] if stored == "along" else ["normals"])


def translucent(alpha: float, color: tuple[float, ...] = RED) -> dict[str, Any]:
    return {
        "alphaMode": "BLEND",
        "pbrMetallicRoughness": {"baseColorFactor": [*color, alpha], "metallicFactor": 0},
    }


def test_only_what_would_be_invisible_as_a_whole_is_shown_of_formats_that_are_clear(
    tmp_path: Path, render: Render
) -> None:
    box = POINTS[np.array(triangles(QUADS))].reshape(-1, 3)
    whole = render(gltf(tmp_path / "whole.gltf", [translucent(0)], [box]), alpha=True)
    assert is_red(whole)
    assert mended(whole) == ["alpha"]
    materials = [translucent(1), translucent(0, RED[::-1])]
    shell = render(gltf(tmp_path / "shell.gltf", materials, [box, box * 2 - (1, 0.75, 0.5)]), alpha=True)
    assert is_red(shell)
    assert mended(shell) == []
    assert shell.scene is not None and whole.scene is not None
    assert shell.scene.meta["raw_bounds"] == whole.scene.meta["raw_bounds"]  # what is invisible is not measured


def dae(path: Path, *effects: str) -> Path:
    """A Collada file with a tetrahedron for each effect's transparency, side by side: a red one, then a blue one."""
    head = '<COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1"><asset><up_axis>Z_UP</up_axis></asset>'
    xyz = "".join(f'<param name="{axis}" type="float"/>' for axis in "XYZ")
    kinds = {name: [] for name in ("effect", "material", "geometry", "node")}
    for number, effect in enumerate(effects):
        color = ("0.8 0.05 0.05", "0.05 0.05 0.8")[number]
        surface = f"<lambert><diffuse><color>{color} 1</color></diffuse>{effect}</lambert>"
        kinds["effect"].append(
            f'<effect id="e{number}"><profile_COMMON><technique sid="t">{surface}</technique></profile_COMMON></effect>'
        )
        kinds["material"].append(f'<material id="m{number}"><instance_effect url="#e{number}"/></material>')
        kinds["geometry"].append(
            f'<geometry id="g{number}"><mesh><source id="p{number}"><float_array id="a{number}" count="12">'
            f"0 0 0 2 0 0 0 2 0 0 0 2</float_array><technique_common>"
            f'<accessor source="#a{number}" count="4" stride="3">{xyz}</accessor></technique_common></source>'
            f'<vertices id="v{number}"><input semantic="POSITION" source="#p{number}"/></vertices>'
            f'<triangles count="4" material="s"><input semantic="VERTEX" source="#v{number}" offset="0"/>'
            f"<p>0 2 1 0 1 3 0 3 2 1 2 3</p></triangles></mesh></geometry>"
        )
        kinds["node"].append(
            f'<node id="n{number}"><translate>{3 * number} 0 0</translate><instance_geometry url="#g{number}">'
            f'<bind_material><technique_common><instance_material symbol="s" target="#m{number}"/>'
            f"</technique_common></bind_material></instance_geometry></node>"
        )
    libraries = (
        f"<library_{name}s>{''.join(kinds[name])}</library_{name}s>".replace("geometrys", "geometries")
        for name in ("effect", "material", "geometry")
    )
    scene = '<library_visual_scenes><visual_scene id="s">{}</visual_scene></library_visual_scenes>'
    tail = '<scene><instance_visual_scene url="#s"/></scene></COLLADA>'
    path.write_text(head + "".join(libraries) + scene.format("".join(kinds["node"])) + tail)
    return path


def transparency(color: str, amount: float | None, mode: str = "") -> str:
    opaque = f' opaque="{mode}"' if mode else ""
    share = "" if amount is None else f"<transparency><float>{amount}</float></transparency>"
    return f"<transparent{opaque}><color>{color}</color></transparent>{share}"


OPAQUE, INVISIBLE = transparency("1 1 1 1", 1, "A_ONE"), transparency("0 0 0 0", None, "A_ONE")
SKETCHED = transparency("1 1 1 1", 0)
# transparency of two parts, whether the second one is shown, and whether that was mended
COLLADA = {
    "white times 0": ([SKETCHED, SKETCHED], True, True),
    "black times 0": ([transparency("0 0 0 1", 0)] * 2, True, True),
    "black is opaque where red, green and blue count": ([OPAQUE, transparency("0 0 0 1", 1, "RGB_ZERO")], True, True),
    "beside glass": ([transparency("1 1 1 1", 0.4), SKETCHED], True, True),
    "beside parts that say nothing": (["", SKETCHED], True, True),
    "beside an opaque part": ([OPAQUE, SKETCHED], False, False),
    "no alpha, on purpose": (["", INVISIBLE], False, False),
}


@pytest.mark.parametrize("name", COLLADA)
def test_colladas_ways_to_say_opaque(tmp_path: Path, render: Render, name: str) -> None:
    effects, is_shown, wrong = COLLADA[name]
    outcome = render(dae(tmp_path / "parts.dae", *effects), alpha=True, views=8)
    assert mended(outcome) == (["alpha"] if wrong else [])
    assert (share_of(2, outcome) > 0.2) is is_shown
    assert share_of(0, outcome) > 0.2 or name == "beside glass"


def test_an_obj_without_opacity_is_shown_whole(tmp_path: Path, render: Render) -> None:
    outcome = render(obj(tmp_path / "d.obj", BOX, material="Kd 0.8 0.05 0.05\nd 0"), alpha=True)
    assert is_red(outcome)
    assert mended(outcome) == ["alpha"]


@pytest.mark.parametrize("is_painted", [True, False])
def test_a_part_without_opacity_is_shown_if_it_is_painted(tmp_path: Path, render: Render, is_painted: bool) -> None:
    """Nobody paints what nobody shall see; a part without a texture may be there to collide with."""
    path = obj(tmp_path / "two.obj", BOX, (POINTS + np.array([3, 0, 0]), QUADS))
    path.write_text(path.read_text().replace("o part1\nusemtl m", "o part1\nusemtl n\nvt 0 0\nvt 1 0\nvt 1 1"))
    path.write_text(re.sub(r"(?m)^f (9|1\d) (\d+) (\d+) (\d+)$", r"f \1/1 \2/2 \3/3 \4/1", path.read_text()))
    (tmp_path / "blue.png").write_bytes(images.encode_png(np.full((4, 4, 3), (10, 10, 200), np.uint8)))
    texture = "\nmap_Kd blue.png" if is_painted else ""
    (tmp_path / "m.mtl").write_text(f"newmtl m\nKd 0.8 0.05 0.05\nnewmtl n\nKd 0.05 0.05 0.8\nd 0{texture}\n")
    outcome = render(path, alpha=True)
    assert mended(outcome) == (["alpha"] if is_painted else [])
    assert (share_of(2, outcome) > 0.2) is is_painted
    assert share_of(0, outcome) > 0.2


def ply(path: Path, columns: str, kind: str, most: float, of: str = "vertex", form: str = "ascii") -> Path:
    """A PLY file of a red box: names of its colours, their kind, what they call full, and whether points or faces have them."""
    names = columns.split()
    rgb = [most if name in ("red", "diffuse_red", "r", "alpha") else 0 for name in names]
    codes = {"uchar": "B", "ushort": "H", "int": "i", "float": "f", "double": "d"}
    declared = "".join(f"property {kind} {name}\n" for name in names)
    header = f"ply\nformat {form} 1.0\nelement vertex 8\nproperty float x\nproperty float y\nproperty float z\n"
    header += declared if of == "vertex" else ""
    header += "element face 6\nproperty list uchar int vertex_indices\n" + (declared if of == "face" else "")
    header += "end_header\n"
    body = b""
    order = ">" if "big" in form else "<"
    for points, numbers in [*((point, ()) for point in POINTS), *(((), (4, *quad)) for quad in QUADS)]:
        own = rgb if of == ("vertex" if len(points) else "face") else []
        if form == "ascii":
            body += (" ".join(map(str, [*points, *numbers, *own])) + "\n").encode()
        else:
            layout = order + ("3f" if len(points) else "B4i") + codes[kind] * len(own)
            body += struct.pack(layout, *points, *numbers, *own)
    path.write_bytes(header.encode() + body)
    return path


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize(
    ("columns", "kind", "most"),
    [
        ("red green blue", "uchar", 255),
        ("diffuse_red diffuse_green diffuse_blue", "uchar", 255),
        ("r g b", "float", 1),
        ("red green blue alpha", "int", 255),
        ("red green blue", "ushort", 65535),
        ("red green blue", "float", 255),
    ],
)
@pytest.mark.parametrize("of", ["vertex", "face"])
def test_colours_of_ply(
    tmp_path: Path, render: Render, columns: str, kind: str, most: float, of: str, form: str
) -> None:
    outcome = render(ply(tmp_path / "red.ply", columns, kind, most, of, form), views=1, alpha=True)
    assert is_red(outcome)
    assert outcome.scene is not None
    assert outcome.scene.meta["has_vertex_colors"] is True


def textured_ply(path: Path, of: str, form: str) -> Path:
    """A PLY of a box that is red where its pictures say; two triangles and five squares, each with a place and a picture."""
    names = {"st": ("s", "t"), "uv": ("u", "v"), "texture": ("texture_u", "texture_v")}.get(of, ())
    head = f"ply\nformat {form} 1.0\ncomment TextureFile blue.png\ncomment TextureFile <this>_a.png\nelement vertex 8\n"
    if names:
        head = head.replace("comment TextureFile blue.png\n", "")
    head += "".join(f"property float {name}\n" for name in ("x", "y", "z", *names))
    faces = triangles(QUADS) if of == "triangles" else [*triangles(QUADS[:1]), *QUADS[1:]]
    head += f"element face {len(faces)}\nproperty list uchar int vertex_indices\n"
    head += "" if names else "property list uchar float texcoord\nproperty int texnumber\n"
    order, body = ">" if "big" in form else "<", b""

    def add(layout: str, *numbers: float) -> None:
        nonlocal body
        text = " ".join(map(str, numbers)) + "\n"
        body += text.encode() if form == "ascii" else struct.pack(order + layout, *numbers)

    red = (0.75, 0.25)  # to the right, below
    for point in POINTS:
        add("5f" if names else "3f", *point, *(red if names else ()))
    for face in faces:
        count = len(face)
        add(
            f"B{count}i" + ("" if names else f"B{2 * count}fi"),
            count,
            *face,
            *(() if names else (2 * count, *red * count, 1)),
        )
    path.write_bytes(head.encode() + b"end_header\n" + body)
    picture = np.full((8, 8, 3), (40, 40, 215), np.uint8)
    (path.parent / "blue.png").write_bytes(images.encode_png(picture))
    picture[4:, 4:] = (215, 40, 40)
    (path.parent / f"{path.stem}_a.png").write_bytes(images.encode_png(picture))
    return path


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("of", ["st", "uv", "texture", "triangles", "triangles and squares"])
def test_pictures_of_ply(tmp_path: Path, render: Render, of: str, form: str) -> None:
    outcome = render(textured_ply(tmp_path / "box.ply", of, form), views=1, alpha=True)
    assert is_red(outcome)
    assert outcome.scene is not None
    assert outcome.scene.meta["textured"] is True


def test_a_picture_of_a_ply_that_is_nowhere_is_counted(tmp_path: Path, render: Render) -> None:
    path = textured_ply(tmp_path / "box.ply", "triangles", "ascii")
    (tmp_path / "box_a.png").unlink()
    outcome = render(path, views=1, alpha=True)
    assert outcome.scene is not None
    assert outcome.scene.meta["missing_textures"] == 1
    assert np.ptp(shown(outcome).astype(int), 1).max() < 12  # grey


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ply")


@pytest.fixture(scope="module")
def file_colours() -> ModuleType:
    script = HERE.parent / "blender_scripts" / "file_colours.py"
    spec = importlib.util.spec_from_file_location("file_colours", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["ascii", "binary_little_endian", "binary_big_endian"]),
    st.lists(
        st.sampled_from(["list uchar float texcoord", "list int uchar texcoord", "int texnumber", "uchar red"]),
        max_size=4,
    ),
    st.binary(max_size=60) | st.text("0123456789.- enaif\n", max_size=60).map(str.encode),
)
def test_no_ply_does_harm(file_colours: ModuleType, folder: Path, form: str, declared: list[str], body: bytes) -> None:
    head = f"ply\nformat {form} 1.0\nelement vertex 1\nproperty float s\nproperty float t\nelement face 3\n"
    head += "".join(f"property {one}\n" for one in ["list uchar int vertex_indices", *declared]) + "end_header\n"
    put_anew(folder / "it.ply", head.encode() + body)
    for found in (file_colours.places_of_ply(folder / "it.ply"), file_colours.of_ply(folder / "it.ply")):
        assert all(isinstance(array, np.ndarray) for array in found.values())


def stl(path: Path, header: bytes, bits: list[int]) -> Path:
    """A binary STL file of a box: 80 bytes of header, and the last two bytes of each of its twelve facets; one is there twice."""
    faces = POINTS[np.array(triangles(QUADS))]
    faces, bits = np.concatenate([faces[:1], faces]), [bits[0], *bits]
    facets = b"".join(struct.pack("<12fH", 0, 0, 0, *face.ravel(), own) for face, own in zip(faces, bits, strict=True))
    path.write_bytes(header.ljust(80) + struct.pack("<I", len(faces)) + facets)
    return path


MAGICS = b"COLOR=" + bytes([204, 10, 10, 255])
STL = {
    "magics, of the whole": (MAGICS, [0] * 12, True),
    "magics, of the whole, said by facets": (MAGICS, [1 << 15 | 31 << 10] * 12, True),
    "magics, of facets": (b"made by COLOR=\x00\x00\xff\xff", [31] * 12, True),
    "viscam": (b"", [1 << 15 | 31 << 10] * 12, True),
    "something else": (b"", [1234, 1 << 15 | 31 << 10] * 6, False),
    "none": (b"", [0] * 12, False),
}


@pytest.mark.parametrize("name", STL)
def test_colours_of_stl(tmp_path: Path, render: Render, name: str) -> None:
    *file, coloured = STL[name]
    outcome = render(stl(tmp_path / "box.stl", *file), alpha=True)
    assert is_red(outcome) is coloured
    assert outcome.scene is not None
    assert outcome.scene.meta["has_vertex_colors"] is coloured


def test_each_facet_of_an_stl_has_its_own_colour(tmp_path: Path, render: Render) -> None:
    red, blue = 1 << 15 | 31 << 10, 1 << 15 | 31
    path = stl(tmp_path / "box.stl", b"", [red if number % 4 < 2 else blue for number in range(12)])
    pixels = shown(render(path, views=8, alpha=True)).astype(int)
    for own, other in ((0, 2), (2, 0)):
        assert 0.2 < (pixels[:, own] - pixels[:, other] > 60).mean() < 0.8


@pytest.mark.parametrize("most", [1, 255])
@pytest.mark.parametrize("material", ["", "Kd 1 1 1", "Kd 0.8 0.8 0.8"])
def test_colours_of_obj(tmp_path: Path, render: Render, material: str, most: int) -> None:
    points = np.hstack([POINTS, np.tile([most, 0, 0], (8, 1))])
    outcome = render(obj(tmp_path / "red.obj", (points, QUADS), material=material), alpha=True)
    assert is_red(outcome)
    assert shown(outcome)[:, 0].mean() < 240  # not brighter than light
    assert mended(outcome) == (["color_range"] if most > 1 else [])


def test_a_material_with_a_colour_of_its_own_keeps_it(tmp_path: Path, render: Render) -> None:
    points = np.hstack([POINTS, np.tile([0, 0, 1], (8, 1))])
    outcome = render(obj(tmp_path / "red.obj", (points, QUADS)), alpha=True)
    assert is_red(outcome)
    assert outcome.scene is not None
    assert outcome.scene.meta["has_vertex_colors"] is False


@pytest.mark.parametrize("name", ["painted_bare.fbx", "painted_white.fbx", "painted.abc"])
def test_colours_of_corners_are_shown(assets: Path, render: Render, name: str) -> None:
    assert is_red(render(assets / name, alpha=True))


@pytest.mark.parametrize(("how", "number"), [("constant", 1), ("uniform", 6), ("vertex", 8), ("faceVarying", 24)])
def test_colours_of_usd(tmp_path: Path, render: Render, how: str, number: int) -> None:
    corners = [corner for quad in QUADS for corner in quad]
    points = ", ".join(str(tuple(point)) for point in POINTS.tolist())
    (tmp_path / "box.usda").write_text(f"""#usda 1.0
def Mesh "box"
{{
    int[] faceVertexCounts = {[4] * 6}
    int[] faceVertexIndices = {corners}
    point3f[] points = [{points}]
    color3f[] primvars:displayColor = [{", ".join(["(0.8, 0, 0)"] * number)}] ( interpolation = "{how}" )
}}
""")
    assert is_red(render(tmp_path / "box.usda", alpha=True))


FACES_AND_POINTS = {"Cube": (6, 8), "Sphere": (100, 92), "Cylinder": (30, 42), "Cone": (20, 31), "Capsule": (90, 82)}


@pytest.mark.parametrize("how", ["uniform", "vertex", "wrong"])
@pytest.mark.parametrize("shape", FACES_AND_POINTS)
def test_colours_of_shapes_of_usd(tmp_path: Path, render: Render, shape: str, how: str) -> None:
    """Half of the faces or points are red, the others blue; as many as are wrong show as none."""
    number = {"uniform": FACES_AND_POINTS[shape][0], "vertex": FACES_AND_POINTS[shape][1], "wrong": 3}[how]
    colours = ["(0.8, 0, 0)"] * (number // 2) + ["(0, 0, 0.8)"] * (number - number // 2)
    path = tmp_path / "shape.usda"
    path.write_text(
        f'#usda 1.0\ndef {shape} "it"\n{{\n    color3f[] primvars:displayColor = [{", ".join(colours)}] (\n'
        f'        interpolation = "{how.replace("wrong", "uniform")}"\n    )\n}}\n'
    )
    outcome = render(path, views=4, alpha=True)
    if how == "wrong":
        assert np.ptp(shown(outcome).astype(int), 1).max() < 20
    else:
        assert min(share_of(0, outcome), share_of(2, outcome)) > 0.1


POINTS_OF_USD = (
    'def PointInstancer "top" {{{{\n{own}\npoint3f[] positions = [(0, 0, 0), (3, 0, 0)]\nint[] protoIndices = [0, 0]\n'
    'rel prototypes = </top/of>\ndef Xform "of" {{{{\n{inner}\n{{box}}\n}}}}\n}}}}'
)
HANDED_DOWN = {
    "parent": 'def Xform "top" {{\n{red}\ndef Xform "deep" {{\n{box}\n}}\n}}',
    "nearest": 'def Xform "top" {{\n{blue}\ndef Xform "deep" {{\n{red}\n{box}\n}}\n}}',
    "reference": 'def "top" (\n references = @beside.usd@\n) {{\n{red}\n}}',
    "within a reference": 'def "top" (\n payload = @painted.usd@</sub>\n) {{\n}}',
    "class": 'class "_red" {{\n{red}\n}}\ndef Xform "top" (\n inherits = </_red>\n) {{\n{box}\n}}',
    "instances": 'def Xform "top" {{\n{red}\ndef "a" (\n instanceable = true\n references = @beside.usd@\n) {{\n}}\n}}',
    "an instance": 'def "a" (\n instanceable = true\n references = @beside.usd@\n) {{\n{red}\n}}',
    "an instance within another": 'class "of" {{\ndef "a" (\n instanceable = true\n references = @beside.usd@\n) {{\n'
    '{red}\n}}\n}}\ndef "b" (\n instanceable = true\n references = </of>\n) {{\n}}',
    "points": POINTS_OF_USD.format(own="", inner="{red}"),
    "above points": POINTS_OF_USD.format(own="{red}", inner=""),
    "two points": POINTS_OF_USD.format(
        own='color3f[] primvars:displayColor = [(0.8, 0, 0), (0, 0, 0.8)] (\n interpolation = "vertex"\n)', inner=""
    ),
    "variant": 'def Xform "top" (\n variants = {{\n string of = "a"\n}}\n prepend variantSets = "of"\n) {{\n{box}\n'
    'variantSet "of" = {{\n"b" {{\n{blue}\n}}\n"a" {{\n{red}\n}}\n}}\n}}',
    "by numbers": 'def Xform "top" {{\ncolor3f[] primvars:displayColor = [(0, 0, 0.8), (0.8, 0, 0)] '
    '(\n interpolation = "constant"\n)'
    "\nint[] primvars:displayColor:indices = [1]\n{box}\n}}",
    "over time": 'def Xform "top" {{\ncolor3f[] primvars:displayColor.timeSamples = {{ 1: [(0.8, 0, 0)], 9: [(0, 0, 0.8)] }}\n'
    "{box}\n}}",
    "two instances": 'def "a" (\n instanceable = true\n references = @beside.usd@\n) {{\n{red}\n}}\n'
    'def "b" (\n instanceable = true\n references = @beside.usd@\n) {{\n{blue}\ndouble3 xformOp:translate = (0, 0, 2)\n'
    'uniform token[] xformOpOrder = ["xformOp:translate"]\n}}',
}


@pytest.fixture(scope="module")
def handed_down(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder for each of HANDED_DOWN: it.usda, the same as a binary it.usd and within an it.usdz."""
    folder = tmp_path_factory.mktemp("handed_down")
    corners = [corner for quad in QUADS for corner in quad]
    points = ", ".join(str(tuple(point)) for point in POINTS.tolist())
    box = f'def Mesh "box" {{\nint[] faceVertexCounts = {[4] * 6}\nint[] faceVertexIndices = {corners}\n'
    box += f"point3f[] points = [{points}]\n}}"
    red, blue = (
        f'color3f[] primvars:displayColor = [{colour}] (\n interpolation = "constant"\n)'
        for colour in ("(0.8, 0, 0)", "(0, 0, 0.8)")
    )
    head = '#usda 1.0\n(\n defaultPrim = "sub"\n upAxis = "Z"\n)\n'
    for name, text in HANDED_DOWN.items():
        (folder / name).mkdir()
        (folder / name / "beside.usd").write_text(f'{head}def Xform "sub" {{\n{box}\n}}\n')
        painted = f'{head}def Xform "sub" {{\n{red}\ndef Xform "mid" {{\n{box}\n}}\n}}\n'
        (folder / name / "painted.usd").write_text(painted)
        for file in ("it.usda", "it.usd"):
            (folder / name / file).write_text(head + text.format(red=red, blue=blue, box=box))
    command = [sys.executable, "-I", HERE / "binary_usd.py", folder]
    made = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    return folder


@pytest.mark.parametrize("file", ["it.usda", "it.usd", "it.usdz"])
@pytest.mark.parametrize("name", HANDED_DOWN)
def test_colours_that_a_prim_of_usd_hands_down(handed_down: Path, render: Render, name: str, file: str) -> None:
    outcome = render(handed_down / name / file, alpha=True)
    assert mended(outcome) == []
    if name.startswith("two"):
        assert min(share_of(0, outcome), share_of(2, outcome)) > 0.15
    else:
        assert is_red(outcome)
    assert outcome.scene is not None
    assert outcome.scene.meta["has_vertex_colors"] is True


def test_gltf_multiplies_colours_with_those_of_the_material(tmp_path: Path, render: Render) -> None:
    box = POINTS[np.array(triangles(QUADS))].reshape(-1, 3)
    yellow = {"pbrMetallicRoughness": {"baseColorFactor": [1, 1, 0, 1], "metallicFactor": 0}}
    violet = np.tile([1, 0, 1], (len(box), 1))
    assert is_red(render(gltf(tmp_path / "red.gltf", [yellow], [box], COLOR_0=violet), alpha=True))


def test_texture_nodes_without_an_image_are_neutral(assets: Path, render: Render) -> None:
    outcome = render(assets / "without_image.blend", views=4, alpha=True)
    pixels = shown(outcome).astype(int)
    assert np.ptp(pixels, axis=1).max() < 12  # grey, where Blender shows magenta
    assert pixels.max(1).min() > 25  # and no normal that is bent away
    assert outcome.scene is not None
    assert outcome.scene.meta["missing_textures"] == 4


def twice_in_usd(folder: Path, at: tuple[float, float, float]) -> Path:
    """Two instances of one box, the second moved."""
    corners = [corner for quad in QUADS for corner in quad]
    points = ", ".join(str(tuple(point)) for point in POINTS.tolist())
    one = (
        'def "NAME" (\n instanceable = true\n references = </box>\n) {\ndouble3 xformOp:translate = AT\n'
        'uniform token[] xformOpOrder = ["xformOp:translate"]\n}\n'
    )
    box = (
        'class Xform "box" {\ndef Mesh "mesh" {\n'
        f"int[] faceVertexCounts = {[4] * 6}\nint[] faceVertexIndices = {corners}\npoint3f[] points = [{points}]\n"
        "color3f[] primvars:displayColor = [(0.8, 0, 0)]\n}\n}\n"
    )
    places = "".join(one.replace("NAME", name).replace("AT", str(to)) for name, to in (("a", (0, 0, 0)), ("b", at)))
    path = folder / "twice.usda"
    path.write_text(f'#usda 1.0\n(\n upAxis = "Z"\n)\n{box}{places}')
    return path


@pytest.mark.parametrize(("at", "is_mended"), [((0, 0, 0), True), ((0.5, 0, 0), True), ((4, 0, 0), False)])
def test_instances_in_one_place_are_not_black(
    tmp_path: Path, render: Render, at: tuple[float, float, float], is_mended: bool
) -> None:
    outcome = render(twice_in_usd(tmp_path, at), alpha=True, views=8)
    assert mended(outcome) == (["coincident_faces"] if is_mended else [])
    assert (shown(outcome).max(1) < 40).mean() < 0.002
    assert is_red(outcome)
