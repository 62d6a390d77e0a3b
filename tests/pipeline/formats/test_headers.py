"""What files declare about their own size, and what becomes of those that declare more than they have or than fits."""

from __future__ import annotations

import base64
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.formats import headers
from tests import parts
from tests.conftest import put_anew
from tests.pipeline.worker.test_preflight import binary_stl, look, usdz


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return tmp_path_factory.mktemp("headers")


def box(**changes: Any) -> bytes:
    return parts.glb(parts.document(**({"buffers": parts.INSIDE, "images": []} | changes)))


def accessors(index: int, **changes: Any) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = parts.document()["accessors"]
    made[index] |= changes
    return made


INSTANCED = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": 3}}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "glb"),
        ({"accessors": accessors(0, count=9)}, "truncated"),
        ({"accessors": accessors(0, count=7, byteOffset=12)}, "glb"),
        ({"accessors": accessors(0, count=8, byteOffset=4)}, "truncated"),
        ({"accessors": accessors(0, bufferView=3)}, "broken_gltf"),
        ({"accessors": accessors(0, count=-1)}, "broken_gltf"),
        ({"accessors": accessors(0, count=True)}, "broken_gltf"),
        ({"accessors": accessors(0, count=1e30)}, "broken_gltf"),
        ({"accessors": accessors(0, count=10**400)}, "broken_gltf"),
        ({"accessors": accessors(0, componentType=[1])}, "broken_gltf"),
        ({"accessors": 5}, "broken_gltf"),
        ({"accessors": [5]}, "broken_gltf"),
        ({"buffers": [{"byteLength": len(parts.CUBE) + 3}]}, "glb"),  # padding
        ({"buffers": [{"byteLength": len(parts.CUBE) + 4}]}, "truncated"),
        ({"buffers": [{"byteLength": 400, "uri": "data:;base64,AAAA"}]}, "truncated"),
        ({"buffers": [{"byteLength": 400, "uri": "missing.bin"}]}, "missing_file"),
        ({"nodes": [{"mesh": 0}] * 3}, "too_many_polygons"),
        ({"nodes": [{"mesh": 0}] * 2}, "glb"),
        ({"nodes": [{"mesh": [0]}, {"mesh": 7}, {"mesh": None}]}, "glb"),
        ({"nodes": [{"mesh": 0, "children": [0]}]}, "broken_gltf"),
        ({"nodes": [{"mesh": 0, "children": [1, 1]}, {}]}, "broken_gltf"),
        ({"nodes": [{"mesh": 0, "children": [2]}, {"children": [2]}, {}]}, "broken_gltf"),
        ({"nodes": [{}, {"children": [2]}, {"children": [3]}, {"children": [1, 0]}]}, "broken_gltf"),
        ({"nodes": [{"mesh": 0, "children": 1}]}, "broken_gltf"),
        ({"nodes": [{"children": [index + 1]} for index in range(5000)] + [{"mesh": 0}]}, "glb"),
        ({"meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "mode": 5, "indices": 2}]}]}, "too_many_polygons"),
        ({"meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "mode": 1}] * 99}]}, "glb"),
        ({"meshes": [{"primitives": [{"attributes": 5, "mode": [1]}, 7]}, {"primitives": 5}]}, "glb"),
        (
            {
                "nodes": [{"mesh": 0, "extensions": INSTANCED}],
                "accessors": [*accessors(0), {"componentType": 5126, "count": 3, "type": "VEC3"}],
            },
            "too_many_polygons",
        ),
        (
            {"accessors": [*accessors(0), {"componentType": 5126, "count": 3 * 30 + 1, "type": "VEC3"}]},
            "too_many_polygons",
        ),
    ],
)
def test_what_a_gltf_declares(folder: Path, changes: dict[str, Any], reason: str) -> None:
    assert look(folder, "declares.glb", box(**changes), max_polygons=30) == reason


LARGE = 40_000
PICTURES = {
    "png": parts.png(LARGE, 7, (0, 0, 0), honest=False),
    "jpg": b"\xff\xd8\xff\xe0\0\x10" + bytes(14) + b"\xff\xff\xc2\0\x11\x08" + struct.pack(">HH", 7, LARGE) + bytes(10),
    "gif": b"GIF89a" + struct.pack("<HH", LARGE, 7) + bytes(60),
    "bmp": b"BM" + bytes(12) + struct.pack("<Iii", 40, LARGE, -7) + bytes(40),
    "VP8X.webp": b"RIFF\0\0\0\0WEBPVP8X" + bytes(8) + (LARGE - 1).to_bytes(3, "little") + (6).to_bytes(3, "little"),
    "dds": b"DDS " + bytes(8) + struct.pack("<II", 7, LARGE) + bytes(60),
    "psd": b"8BPS" + bytes(10) + struct.pack(">II", 7, LARGE) + bytes(60),
    "exr": b"\x76\x2f\x31\x01xxdataWindow\0box2i\0" + struct.pack("<Iiiii", 16, -5, 0, LARGE - 6, 6),
    "hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 7 +X 40000\n",
    "tiff": b"II*\0" + struct.pack("<IHHHIIHHIHH", 8, 2, 256, 4, 1, LARGE, 257, 3, 1, 7, 0),
    "be.tif": b"MM\0*" + struct.pack(">IHHHIIHHIHH", 8, 2, 256, 4, 1, LARGE, 257, 3, 1, 7, 0),
    "ktx": b"\xabKTX 11\xbb\r\n\x1a\n" + bytes(24) + struct.pack("<II", LARGE, 7) + bytes(60),
    "ktx2": b"\xabKTX 20\xbb\r\n\x1a\n" + bytes(8) + struct.pack("<II", LARGE, 7) + bytes(60),
    "jp2": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(36) + struct.pack(">II", 7, LARGE),
    "j2k": b"\xff\x4f\xff\x51" + bytes(4) + struct.pack(">II", LARGE, 7) + bytes(60),
    "tga": bytes(12) + struct.pack("<HH", LARGE, 7) + bytes(60),
}


@pytest.mark.parametrize("name", PICTURES)
def test_large_pictures_of_every_kind(folder: Path, name: str) -> None:
    data, suffix = PICTURES[name], "." + name.rpartition(".")[2]
    size = headers.picture_size(lambda offset, size: data[offset : offset + size], suffix)
    assert size is not None and set(size) == {LARGE, 7}
    if "j2" not in name and "jp2" not in name and "psd" not in name and "dds" not in name:
        assert size == (LARGE, 7)
    picture = folder / f"large.{name}"
    picture.write_bytes(data)
    document = json.dumps({"asset": {"version": "2.0"}, "images": [{"uri": picture.name}]}).encode()
    assert look(folder, "it.gltf", document) == "image_too_large"
    for length in range(len(data)):
        put_anew(picture, data[:length])
        assert look(folder, "it.gltf", document) in ("gltf", "image_too_large")


@pytest.mark.parametrize(("width", "height", "large"), [(32768, 8192, False), (32768, 8193, True), (32769, 1, True)])
def test_where_large_begins(folder: Path, width: int, height: int, large: bool) -> None:
    uri = "data:image/png;base64," + base64.b64encode(parts.png(width, height, (0, 0, 0), honest=False)[:60]).decode()
    expected = "image_too_large" if large else "gltf"
    assert look(folder, "it.gltf", json.dumps({"images": [{"uri": uri}]}).encode()) == expected


def test_pictures_that_files_embed(folder: Path) -> None:
    picture = PICTURES["png"]
    content = parts.node(b"Content", [b"R" + struct.pack("<I", len(picture)) + picture])
    assert look(folder, "it.fbx", parts.fbx(parts.node(b"Objects", [], [content]))) == "image_too_large"
    assert look(folder, "it.usdz", parts.archive(("it.usda", b"#usda 1.0"), ("a.png", picture))) == "image_too_large"


PLY = "ply\nformat {format} 1.0\nelement vertex {vertices}\nproperty {kind} x\nelement face {faces}\n"
PLY += "property list uchar int i\nend_header\n"


@pytest.mark.parametrize(
    ("header", "size", "reason"),
    [
        ({"format": "ascii", "vertices": 3, "kind": "float", "faces": 1}, 8, "ply"),
        ({"format": "ascii", "vertices": 3, "kind": "float", "faces": 1}, 6, "truncated"),
        ({"format": "binary_little_endian", "vertices": 3, "kind": "double", "faces": 1}, 25, "ply"),
        ({"format": "binary_little_endian", "vertices": 3, "kind": "double", "faces": 1}, 23, "truncated"),
        ({"format": "binary_big_endian", "vertices": 10**12, "kind": "uchar", "faces": 1}, 100, "truncated"),
        ({"format": "ascii", "vertices": "1e9", "kind": "float", "faces": 1}, 100, "broken_header"),
        ({"format": "ascii", "vertices": "9" * 30, "kind": "float", "faces": 1}, 100, "broken_header"),
        ({"format": "ascii", "vertices": 1, "kind": "float", "faces": 40}, 500, "too_many_polygons"),
        ({"format": "ascii", "vertices": 1, "kind": "float", "faces": 4000}, 500, "truncated"),
    ],
)
def test_counts_of_a_ply(folder: Path, header: dict[str, Any], size: int, reason: str) -> None:
    assert look(folder, "counts.ply", PLY.format(**header).encode() + b"0" * size, max_polygons=30) == reason


def test_triangles_of_an_stl(folder: Path) -> None:
    assert look(folder, "it.stl", binary_stl(30), max_polygons=30) == "stl"
    assert look(folder, "it.stl", binary_stl(31), max_polygons=30) == "too_many_polygons"


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (parts.fbx(parts.node(b"A", [parts.array(zlib.compress(bytes(800)), 100)])), "fbx"),
        (parts.fbx(parts.node(b"A", [parts.array(b"no zlib", 100)])), "fbx"),  # Blender says so
        (parts.fbx(parts.node(b"A", [parts.array(b"", 2**29), parts.array(b"", 2**29)])), "decompression_bomb"),
        (parts.fbx(parts.node(b"A", [parts.array(zlib.compress(os.urandom(10**5)), 12500)])), "fbx"),
        (parts.fbx(parts.node(b"A", [parts.array(zlib.compress(os.urandom(10**5)), 12499)])), "decompression_bomb"),
        (parts.fbx(parts.node(b"A", [b"Z\1", b"Y\1\1", b"C\1", b"I" + bytes(4), b"D" + bytes(8)])), "fbx"),
        (parts.fbx(parts.node(b"A", [b"?\1"])), "fbx"),
        (parts.fbx(b"\xff\0\0\0" + struct.pack("<IIB", 2**31, 0, 1) + b"A"), "truncated"),
        (b"Kaydara FBX Binary  \0\x1a\0" + struct.pack("<IQQQB", 7500, 60, 2**35, 0, 1) + b"A", "truncated"),
        (b"Kaydara FBX Binary  \0\x1a\0" + struct.pack("<IQQQB", 7500, 2**63, 2**63, 0, 1) + b"A", "fbx"),
        (b"Kaydara FBX Binary  \0\x1a\0" + struct.pack("<I", 7400), "fbx"),
        (parts.fbx_big_endian(b"A", b"d" + struct.pack(">III", 2**30, 1, 0)), "decompression_bomb"),
        (parts.fbx_big_endian(b"A", b"S" + struct.pack(">I", 1) + b"{"), "fbx"),  # it is no text with an open bracket
    ],
)
def test_nodes_of_an_fbx(folder: Path, made: bytes, reason: str) -> None:
    assert look(folder, "nodes.fbx", made) == reason


def test_an_end_mark_where_none_is_due_hides_nothing(folder: Path) -> None:
    """Blender's parser reads on after it."""
    bomb = parts.node(b"B", [parts.array(b"", 2**29), parts.array(b"", 2**29)])
    assert look(folder, "hidden.fbx", parts.fbx(parts.node(b"A", [], [bytes(13), bomb]))) == "decompression_bomb"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (usdz(), "bad_archive"),
        (usdz(("it.usda", b"#usda 1.0\n"))[:40], "bad_archive"),
        (usdz(("it.usda", b"#usda 1.0\n")).replace(b"PK\1\2", b"PK\0\0"), "bad_archive"),
        (usdz(("a/../it.usda", b"")), "bad_archive"),
        (usdz(("C:/it.usda", b"")), "bad_archive"),
        (usdz((r"..\it.usda", b"")), "bad_archive"),
        (usdz(("it.usda", bytes(100)), packing=zipfile.ZIP_DEFLATED), "bad_archive"),
        (usdz(("it.usda", parts.usda("references = @0/it.usda@").encode())), "usdz"),
        (usdz(("deep/it.usda", parts.usda("references = @../it.usda@").encode())), "usdz"),
        (usdz(("deep/it.usda", parts.usda("references = @../../it.usda@").encode())), "escapes_folder"),
        (usdz(("it.usda", parts.usda("references = @http://host/it.usda@").encode())), "escapes_folder"),
    ],
)
def test_members_of_a_usdz(folder: Path, data: bytes, reason: str) -> None:
    assert look(folder, "members.usdz", data) == reason


def test_a_usdz_of_very_many_members(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "MAX_MEMBERS", 10)
    assert look(folder, "many.usdz", usdz(*((f"{i}.png", b"") for i in range(9)))) == "usdz"
    assert look(folder, "many.usdz", usdz(*((f"{i}.png", b"") for i in range(11)))) == "too_complex"
