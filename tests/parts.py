"""3D files of every format, byte by byte: a box with two corners out of place, and whatever a test puts beside it."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any


def png(width: int, height: int, rgb: tuple[int, int, int], honest: bool = True) -> bytes:
    """A picture of one colour; one that is not honest has a single row."""
    rows = (b"\0" + bytes(rgb) * width) * height if honest else b"\0" + bytes(rgb)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


CORNERS = [(x, y, z) for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 2.0)]
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
TRIANGLES = [(a, b, c) for a, b, c, _ in QUADS] + [(a, c, d) for a, _, c, d in QUADS]
CUBE = (
    struct.pack("<24f", *sum(CORNERS, ())) + struct.pack("<16f", *[0.5] * 16) + struct.pack("<36H", *sum(TRIANGLES, ()))
)


def document(**changes: Any) -> dict[str, Any]:
    """A textured box as glTF; the buffer is CUBE."""
    material = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}, "metallicFactor": 0}}
    plain: dict[str, Any] = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "indices": 2, "material": 0}]}],
        "materials": [material],
        "textures": [{"source": 0}],
        "images": [{"uri": "paint.png"}],
        "buffers": [{"uri": "box.bin", "byteLength": len(CUBE)}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": start, "byteLength": size} for start, size in ((0, 96), (96, 64), (160, 72))
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 8, "type": "VEC3", "min": [0, 0, 0], "max": [1, 1, 2]},
            {"bufferView": 1, "componentType": 5126, "count": 8, "type": "VEC2"},
            {"bufferView": 2, "componentType": 5123, "count": 36, "type": "SCALAR"},
        ],
    }
    return plain | changes


def glb(text: dict[str, Any] | bytes, data: bytes = CUBE) -> bytes:
    """A binary glTF around a JSON document and its buffer."""
    body = text if isinstance(text, bytes) else json.dumps(text).encode()
    body += b" " * (-len(body) % 4)
    data += bytes(-len(data) % 4)
    chunks = struct.pack("<I4s", len(body), b"JSON") + body + struct.pack("<I4s", len(data), b"BIN\0") + data
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


INSIDE = [{"byteLength": len(CUBE)}]  # the buffer of a GLB


def obj(library: str) -> str:
    """A box whose faces use the material "paint"."""
    vertices = "".join(f"v {x} {y} {z}\nvt 0.5 0.5\n" for x, y, z in CORNERS)
    faces = "".join("f " + " ".join(f"{i + 1}/{i + 1}" for i in quad) + "\n" for quad in QUADS)
    return f"{library}\n{vertices}usemtl paint\n{faces}"


USD_PAINT = """def Material "M"
{
token outputs:surface.connect = </it/M/S.outputs:surface>
def Shader "S"
{
uniform token info:id = "UsdPreviewSurface"
color3f inputs:diffuseColor.connect = </it/M/T.outputs:rgb>
token outputs:surface
}
def Shader "T"
{
uniform token info:id = "UsdUVTexture"
asset inputs:file = @NAME@
float3 outputs:rgb
}
}"""
USD_BOUND = 'def Mesh "box" (\n prepend apiSchemas = ["MaterialBindingAPI"]\n)\n{\nrel material:binding = </it/M>\n'


def painted_usda(picture: str) -> str:
    """A box whose material shows a picture."""
    return usda(extra=USD_PAINT.replace("NAME", picture)).replace('def Mesh "box" { ', USD_BOUND)


def usda(metadata: str = "", extra: str = "", layer: str = "") -> str:
    """A box; metadata: of its parent prim; layer: of the file."""
    points = ", ".join(f"({x}, {y}, {z})" for x, y, z in CORNERS)
    counts, corners = ", ".join("4" for _ in QUADS), ", ".join(str(i) for quad in QUADS for i in quad)
    mesh = f'def Mesh "box" {{ int[] faceVertexCounts = [{counts}]\nint[] faceVertexIndices = [{corners}]\n'
    mesh += f"point3f[] points = [{points}]\n}}"
    return f'#usda 1.0\n(\n defaultPrim = "it"\n{layer}\n)\ndef Xform "it" ({metadata})\n{{\n{mesh}\n{extra}\n}}\n'


def dae(picture: str, head: str = "", url: str = "#box") -> str:
    """A box with a texture."""
    points = " ".join(f"{x} {y} {z}" for x, y, z in CORNERS)
    corners = " ".join(str(i) for triangle in TRIANGLES for i in triangle)
    accessor = '<accessor source="#a" count="8" stride="3">' + "".join(
        f'<param name="{axis}" type="float"/>' for axis in "XYZ"
    )
    return f"""<?xml version="1.0" encoding="utf-8"?>{head}
<COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1">
<asset><unit name="meter" meter="1"/><up_axis>Z_UP</up_axis></asset>
<library_images><image id="p"><init_from>{picture}</init_from></image></library_images>
<library_geometries><geometry id="box"><mesh><source id="s"><float_array id="a" count="24">{points}</float_array>
<technique_common>{accessor}</accessor></technique_common></source>
<vertices id="v"><input semantic="POSITION" source="#s"/></vertices>
<triangles count="12"><input semantic="VERTEX" source="#v" offset="0"/><p>{corners}</p></triangles></mesh></geometry>
</library_geometries><library_visual_scenes><visual_scene id="w"><node id="n"><instance_geometry url="{url}"/></node>
</visual_scene></library_visual_scenes><scene><instance_visual_scene url="#w"/></scene></COLLADA>"""


EFFECT = """<library_effects><effect id="e"><profile_COMMON>
<newparam sid="f"><surface type="2D"><init_from>paint 1.png</init_from></surface></newparam>
<newparam sid="s"><sampler2D><source>f</source></sampler2D></newparam>
<technique sid="t"><lambert><diffuse><texture texture="s" texcoord="UV"/></diffuse></lambert></technique>
</profile_COMMON></effect></library_effects><library_materials><material id="m"><instance_effect url="#e"/></material>
</library_materials><library_geometries>"""
BINDING = """<instance_geometry url="#box"><bind_material><technique_common><instance_material symbol="m" target="#m"/>
</technique_common></bind_material></instance_geometry>"""


def painted_ply(name: str) -> str:
    """A box whose points all are at one place of a picture."""
    head = f"ply\nformat ascii 1.0\ncomment TextureFile {name}\nelement vertex 8\n"
    head += "".join(f"property float {axis}\n" for axis in "xyzst")
    points = "".join(f"{x} {y} {z} 0.5 0.5\n" for x in (0, 1) for y in (0, 1) for z in (0, 1))
    faces = "4 0 1 3 2\n4 4 6 7 5\n4 0 4 5 1\n4 2 3 7 6\n4 0 2 6 4\n4 1 5 7 3\n"
    return f"{head}element face 6\nproperty list uchar int vertex_indices\nend_header\n{points}{faces}"


def painted_dae(picture: str) -> str:
    """A box whose material shows a picture."""
    made = dae(picture).replace("<library_geometries>", EFFECT, 1)
    made = made.replace('<image id="p">', '<image id="paint 1.png">')  # an id is no file, whatever it looks like
    made = made.replace('<triangles count="12">', '<triangles count="12" material="m">')
    return made.replace('<instance_geometry url="#box"/>', BINDING)


def fbx_text(scale: float = 100.0, up: int = 2, picture: str = "") -> str:
    """An FBX of text with a green box. scale: centimetres of its unit; up: number of the axis that points up, 1 or 2.

    picture: a file whose colours its material shows instead.
    """
    points = ",".join(str(number) for corner in CORNERS for number in corner)
    corners = ",".join(str(i if k < 3 else ~i) for quad in QUADS for k, i in enumerate(quad))
    return f"""; FBX 7.3.0 project file
FBXHeaderExtension:  {{
    FBXHeaderVersion: 1003
    FBXVersion: 7300
}}
GlobalSettings:  {{
    Version: 1000
    Properties70:  {{
        P: "UpAxis", "int", "Integer", "",{up}
        P: "UpAxisSign", "int", "Integer", "",1
        P: "FrontAxis", "int", "Integer", "",{3 - up}
        P: "FrontAxisSign", "int", "Integer", "",{3 - 2 * up}
        P: "CoordAxis", "int", "Integer", "",0
        P: "CoordAxisSign", "int", "Integer", "",1
        P: "UnitScaleFactor", "double", "Number", "",{scale}
    }}
}}
Objects:  {{
    Geometry: 1, "Geometry::box", "Mesh" {{
        Vertices: *24 {{
            a: {points}
        }}
        PolygonVertexIndex: *24 {{
            a: {corners}
        }}
        GeometryVersion: 124
        LayerElementMaterial: 0 {{
            Version: 101
            Name: ""
            MappingInformationType: "AllSame"
            ReferenceInformationType: "IndexToDirect"
            Materials: *1 {{
                a: 0
            }}
        }}
        Layer: 0 {{
            Version: 100
            LayerElement:  {{
                Type: "LayerElementMaterial"
                TypedIndex: 0
            }}
        }}
    }}
    Model: 2, "Model::box", "Mesh" {{
        Version: 232
    }}
    Texture: 4, "Texture::paint", "" {{
        Type: "TextureVideoClip"
        Version: 202
        FileName: "{picture}"
        RelativeFilename: "{picture}"
    }}
    Material: 3, "Material::green", "" {{
        Version: 102
        ShadingModel: "lambert"
        Properties70:  {{
            P: "DiffuseColor", "Color", "", "A",0,0.6,0
        }}
    }}
}}
Connections:  {{
    C: "OO",2,0
    C: "OO",1,2
    C: "OO",3,2
    {'C: "OP",4,3, "DiffuseColor"' if picture else ""}
}}
"""


def fbx(*nodes: bytes) -> bytes:
    """A binary FBX 7.4 of top-level nodes."""
    data = b"Kaydara FBX Binary  \0\x1a\0" + struct.pack("<I", 7400)
    for node in nodes:
        data += _at(node, len(data))
    return data + bytes(13)


def fbx_big_endian(name: bytes, *properties: bytes) -> bytes:
    """A binary FBX of one node, its numbers big-endian as Maya may write them."""
    size = sum(map(len, properties))
    head = struct.pack(">IIIIB", 7400, 40 + len(name) + size, len(properties), size, len(name))
    return b"Kaydara FBX Binary  \0\x1a\1" + head + name + b"".join(properties) + bytes(13)


def node(name: bytes, properties: Iterable[bytes] = (), children: Iterable[bytes] = ()) -> bytes:
    """An FBX node whose offsets count from its own start; `fbx` moves them."""
    properties = list(properties)
    values = b"".join(properties)
    head = struct.pack("<IIB", len(properties), len(values), len(name)) + name + values
    inner = b""
    for child in children:
        inner += _at(child, 4 + len(head) + len(inner))
    inner += bytes(13) if inner else b""
    return struct.pack("<I", 4 + len(head) + len(inner)) + head + inner


def _at(made: bytes, start: int) -> bytes:
    """Moves a node, and those within it, to an offset of the file."""
    data = bytearray(made)
    at = 0
    while at < len(data):
        end, _, size, letters = struct.unpack_from("<IIIB", data, at)
        if end == 0:
            at += 13
            continue
        struct.pack_into("<I", data, at, end + start)
        at += 13 + letters + size
    return bytes(data)


def text(value: str | bytes) -> bytes:
    """An FBX property that is a string."""
    data = value.encode() if isinstance(value, str) else value
    return b"S" + struct.pack("<I", len(data)) + data


def fbx_box(name: str = "paint", **names: str) -> bytes:
    """A box, a Video node, and the box's texture, which name files: RelativeFilename, Filename or FileName."""
    corners = [i if k < 3 else ~i for quad in QUADS for k, i in enumerate(quad)]  # the last of a face is inverted
    numbers = [number for corner in CORNERS for number in corner]
    mesh = [
        node(b"Vertices", [b"d" + struct.pack("<III24d", 24, 0, 192, *numbers)]),
        node(b"PolygonVertexIndex", [b"i" + struct.pack("<III24i", 24, 0, 96, *corners)]),
    ]
    files = [node(key.encode(), [text(value)]) for key, value in names.items()]
    objects = [
        node(b"Geometry", [long(1), text(b"box\0\1Geometry"), text("Mesh")], mesh),
        node(
            b"Model",
            [long(2), text(b"box\0\1Model"), text("Mesh")],
            [node(b"Version", [b"I" + struct.pack("<i", 232)])],
        ),
        node(b"Video", [long(3), text(name.encode() + b"\0\1Video"), text("Clip")], files),
        node(b"Texture", [long(4), text(b"map\0\1Texture"), text("")], files),
        node(
            b"Material",
            [long(5), text(b"paint\0\1Material"), text("")],
            [node(b"ShadingModel", [text("lambert")]), node(b"Properties70")],
        ),
    ]
    links = [node(b"C", [text("OO"), long(child), long(to)]) for child, to in ((1, 2), (2, 0), (3, 4), (5, 2))]
    links.append(node(b"C", [text("OP"), long(4), long(5), text("DiffuseColor")]))
    settings = node(b"GlobalSettings", [], [node(b"Properties70", [], [node(b"P", [text("")] * 4)])])
    return fbx(settings, node(b"Objects", [], objects), node(b"Connections", [], links))


def long(value: int) -> bytes:
    """An FBX property of 64 bits."""
    return b"L" + struct.pack("<q", value)


def array(data: bytes, length: int) -> bytes:
    return b"d" + struct.pack("<III", length, 1, len(data)) + data


def archive(*members: tuple[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", packing) as files:
        for name, data in members:
            files.writestr(zipfile.ZipInfo(name), data, packing)  # without a date: names of tests are made of it
    return made.getvalue()
