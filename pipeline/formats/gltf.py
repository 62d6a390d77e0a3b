"""Checks of a glTF by its JSON alone: how much it declares, how often, and whether the file is long enough for that."""

from __future__ import annotations

import binascii
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.core.errors import Skip
from pipeline.formats import headers

MAX_JSON = 256_000_000  # bytes; pictures may stand in it as text
MAX_VALUES = 5_000_000  # of JSON; they take a hundred times the bytes that "{}," has
JSON_CHUNK, BIN_CHUNK = 0x4E4F534A, 0x004E4942
MESHOPT = ("KHR_meshopt_compression", "EXT_meshopt_compression")
COMPONENTS = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
NUMBERS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
PADDING = 3  # bytes by which a declared length may exceed what is there


@dataclass(frozen=True)
class Document:
    """A glTF's JSON, and where a GLB's binary chunk lies in the file.

    old: it is glTF 1.0, whose collections are objects with names; `pipeline.upgrade.gltf_old` makes it 2.0. odd: it is 2.0, but
    Blender does not take the file's bytes as they are (see `load`).
    """

    json: dict[str, Any]
    bin_offset: int = 0
    bin_size: int = 0
    old: bool = False
    odd: bool = False

    def rows(self, key: str) -> list[dict[str, Any]]:
        """Return a top-level array of objects, [] if there is none. Raises Skip("broken_gltf") for anything else."""
        rows = self.json.get(key, [])
        rows = list(rows.values()) if self.old and isinstance(rows, dict) else rows
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise Skip("broken_gltf", f"{key} is no list of objects")
        return rows


def load(path: Path) -> Document:
    """Read a .glb or .gltf, told apart by their first bytes.

    Forgiven: a byte order mark, other encodings, NUL at the end, NaN (becomes 0), bytes after the end of a
    GLB, later minor versions and none at all. Raises Skip: truncated, unsupported_version, broken_gltf, too_complex; OSError.
    """
    with path.open("rb") as stream:
        size = path.stat().st_size
        head = stream.read(20)
        if head[:4] != b"glTF":
            return _document(head + stream.read(MAX_JSON + 1 - len(head)))
        if len(head) < 20:
            raise Skip("truncated", f"{size} bytes are no GLB")
        _, version, length, chunk, kind = struct.unpack("<IIIII", head)
        if version not in (1, 2):
            raise Skip("unsupported_version", f"glTF version {version}; 1 and 2 can be read")
        if (size < length and version == 2) or 20 + chunk > size:  # writers of version 1 got the length wrong
            raise Skip("truncated", f"{size} bytes of {length}")
        if kind != (JSON_CHUNK if version == 2 else 0):
            raise Skip("broken_gltf", "the first chunk is not JSON")
        document = _document(stream.read(min(chunk, MAX_JSON + 1)), size != length)
        if version == 1:
            return replace(document, bin_offset=20 + chunk, bin_size=size - 20 - chunk)
        head = stream.read(8)
        if len(head) < 8 or struct.unpack("<II", head)[1] != BIN_CHUNK:
            return document
        return replace(document, bin_offset=28 + chunk, bin_size=min(struct.unpack("<II", head)[0], size - 28 - chunk))


def _document(text: bytes, odd: bool = False) -> Document:
    """Make a Document of JSON. odd: something else about the file is."""
    if len(text) > MAX_JSON:
        raise Skip("too_complex", f"more than {MAX_JSON} bytes of JSON")
    values = sum(text.count(mark) for mark in (b",", b"{", b"["))
    if values > MAX_VALUES:
        raise Skip("too_complex", f"about {values} values of JSON, {MAX_VALUES} are taken")
    constants: list[str] = []

    def zero(name: str) -> int:  # for NaN and infinity, which JSON does not have
        constants.append(name)
        return 0

    plain = text if text[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in text[:4] else text.rstrip(b"\0")
    try:
        odd = odd or json.detect_encoding(plain) != "utf-8"
        document: Any = json.loads(plain, parse_constant=zero)
        odd = odd or plain != text or bool(constants)
    except (ValueError, RecursionError) as error:
        raise Skip("broken_gltf", str(error)) from None
    if not isinstance(document, dict):
        raise Skip("broken_gltf", "the document is no JSON object")
    asset = document.get("asset")
    versions = {"version": "", "minVersion": ""} | (asset if isinstance(asset, dict) else {})
    version, least = str(versions["version"]), str(versions["minVersion"])
    if version[:2] in ("", "1", "1.") and any(
        isinstance(document.get(key), dict) for key in ("nodes", "meshes", "buffers")
    ):
        return Document(document, old=True)
    if version[:2] not in ("", "2", "2.") or least not in ("", "2", "2.0"):
        raise Skip("unsupported_version", f"glTF version {(least or version)[:40]}; 1.0 and 2.0 can be read")
    if version != "2.0":
        document["asset"] = {"version": "2.0"}
        odd = True
    return Document(document, odd=odd)


def uris(document: Document, kinds: Iterable[str] = ("buffers", "images")) -> list[str]:
    """External files of buffers and images, as written. Data URIs without base64 count: Blender takes them for names."""
    found = [row.get("uri") for key in kinds for row in document.rows(key)]
    return [uri for uri in found if isinstance(uri, str) and uri and not is_embedded(uri)]


def needed_buffers(document: Document) -> set[int]:
    """Numbers of the buffers that bufferViews are in; not of those that stand for bytes which are there compressed."""
    found: set[int] = set()
    for row in document.rows("bufferViews"):
        extensions = row.get("extensions")
        packed = [extensions.get(name) for name in MESHOPT] if isinstance(extensions, dict) else []
        number = next((one.get("buffer") for one in packed if isinstance(one, dict)), row.get("buffer"))
        found.update({number} if isinstance(number, int) else ())
    return found


def is_embedded(uri: str) -> bool:
    return uri.startswith("data:") and ";base64," in uri


def check(document: Document, sizes: dict[str, int], read: headers.Read, max_polygons: int) -> None:
    """Check what the JSON declares. sizes: bytes of each existing external buffer, by URI. read: reads the GLB.

    Raises Skip: broken_gltf (also nodes in a circle), truncated (buffers and accessors that end
    beyond their bytes), too_many_polygons (instances counted), image_too_large (embedded ones).
    """
    buffers = [_buffer(index, row, document, sizes) for index, row in enumerate(document.rows("buffers"))]
    views = document.rows("bufferViews")
    _check_packed(views)
    counts = [_accessor(index, row, views, buffers) for index, row in enumerate(document.rows("accessors"))]
    if counts and max(counts) > 3 * max_polygons:
        raise Skip("too_many_polygons", f"an accessor of {max(counts)}; the limit is {max_polygons} polygons")
    _check_tree(document.rows("nodes"))
    polygons = _polygons(document, counts)
    if polygons > max_polygons:
        raise Skip("too_many_polygons", f"{polygons} triangles, instances counted; the limit is {max_polygons}")
    _check_images(document, views, read)


def _whole(row: dict[str, Any], key: str, default: int | None = None) -> int:
    value = row.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise Skip("broken_gltf", f"{key} is {str(value)[:40]}, a whole number was to be there")
    return value


def _buffer(index: int, row: dict[str, Any], document: Document, sizes: dict[str, int]) -> int | None:
    """Bytes that a buffer really has; None if unknown (no such file: Blender will say so)."""
    uri, have = row.get("uri"), None
    if isinstance(uri, str) and is_embedded(uri):
        have = len(uri.partition(";base64,")[2]) * 3 // 4
    elif isinstance(uri, str):
        have = sizes.get(uri)
    elif index == 0 and document.bin_offset:
        have = document.bin_size
    says = _whole(row, "byteLength", 0)
    if have is not None and says > have + PADDING and not document.old:  # accessors have to fit, in any case
        raise Skip("truncated", f"buffer {index} says {says} bytes and has {have}")
    return have


def _check_packed(views: list[dict[str, Any]]) -> None:
    """Raise Skip("decompression_bomb") if compressed bufferViews say to become more than any file's."""
    total = 0
    for row in views:
        extensions = row.get("extensions")
        for one in extensions.values() if isinstance(extensions, dict) else ():
            if isinstance(one, dict) and "count" in one:
                total += _whole(one, "count") * _whole(one, "byteStride", 0)
    if total > headers.MAX_UNPACKED:
        raise Skip("decompression_bomb", f"bufferViews that say to unpack to {total} bytes")


def _accessor(index: int, row: dict[str, Any], views: list[dict[str, Any]], buffers: list[int | None]) -> int:
    """Count of an accessor. Raises Skip if its bufferView is too short for that."""
    count = _whole(row, "count", 0)
    width = COMPONENTS.get(_whole(row, "componentType", 0), 0) * NUMBERS.get(str(row.get("type")), 0)
    if "bufferView" not in row or not count:
        return count
    number = _whole(row, "bufferView")
    if number >= len(views):
        raise Skip("broken_gltf", f"accessor {index} is of bufferView {number}, there are {len(views)}")
    view = views[number]
    needed = _whole(row, "byteOffset", 0) + (count - 1) * (_whole(view, "byteStride", 0) or width) + width
    have = _whole(view, "byteLength", 0)
    buffer = _whole(view, "buffer", 0)
    of_buffer = buffers[buffer] if buffer < len(buffers) else 0
    if of_buffer is not None:
        have = min(have, of_buffer - _whole(view, "byteOffset", 0))
    if needed > have:
        raise Skip(
            "truncated", f"accessor {index} needs {needed} bytes of bufferView {number}, which has {max(have, 0)}"
        )
    return count


def _check_tree(nodes: list[dict[str, Any]]) -> None:
    """Raise Skip("broken_gltf") if a node has two parents or is its own ancestor."""
    parents: dict[int, int] = {}
    for parent, row in enumerate(nodes):
        children = row.get("children", [])
        if not isinstance(children, list):
            raise Skip("broken_gltf", f"node {parent}: children is no list")
        for child in children:
            if not isinstance(child, int) or not 0 <= child < len(nodes) or child in parents:
                raise Skip(
                    "broken_gltf", f"node {parent}: child {str(child)[:40]} does not exist or has another parent"
                )
            parents[child] = parent
    seen: set[int] = set()
    for node in parents:
        path: set[int] = set()
        while node in parents and node not in seen:
            seen.add(node)
            path.add(node)
            node = parents[node]
        if node in path:
            raise Skip("broken_gltf", f"node {node} is among its own ancestors")


def _polygons(document: Document, counts: list[int]) -> int:
    """Triangles of all nodes' meshes, instances counted."""
    meshes = [sum(_triangles(primitive, counts) for primitive in _primitives(row)) for row in document.rows("meshes")]
    total = 0
    for row in document.rows("nodes"):
        mesh = row.get("mesh")
        if isinstance(mesh, int) and 0 <= mesh < len(meshes):
            total += meshes[mesh] * _instances(row, counts)
    return total


def _primitives(mesh: dict[str, Any]) -> list[dict[str, Any]]:
    primitives = mesh.get("primitives", [])
    return [row for row in primitives if isinstance(row, dict)] if isinstance(primitives, list) else []


def _triangles(primitive: dict[str, Any], counts: list[int]) -> int:
    attributes = primitive.get("attributes")
    points = _count(attributes.get("POSITION") if isinstance(attributes, dict) else None, counts)
    corners = _count(primitive["indices"], counts) if "indices" in primitive else points
    mode = primitive.get("mode", 4)
    return corners // 3 if mode == 4 else max(corners - 2, 0) if mode in (5, 6) else 0


def _count(accessor: Any, counts: list[int]) -> int:
    return counts[accessor] if isinstance(accessor, int) and 0 <= accessor < len(counts) else 0


def _instances(node: dict[str, Any], counts: list[int]) -> int:
    """Number of instances of a node: 1, or more by EXT_mesh_gpu_instancing."""
    extensions = node.get("extensions")
    instancing = extensions.get("EXT_mesh_gpu_instancing") if isinstance(extensions, dict) else None
    attributes = instancing.get("attributes") if isinstance(instancing, dict) else None
    if not isinstance(attributes, dict):
        return 1
    return max((_count(accessor, counts) for accessor in attributes.values()), default=1)


def _check_images(document: Document, views: list[dict[str, Any]], read: headers.Read) -> None:
    for index, row in enumerate(document.rows("images")):
        uri, view = row.get("uri"), row.get("bufferView")
        name = f"image {index}"
        if isinstance(uri, str) and is_embedded(uri):
            headers.check_picture(data_uri_reader(uri), name)
        elif (
            isinstance(view, int)
            and 0 <= view < len(views)
            and views[view].get("buffer", 0) == 0
            and document.bin_offset
        ):
            start = document.bin_offset + _whole(views[view], "byteOffset", 0)
            headers.check_picture(headers.part(read, start, _whole(views[view], "byteLength", 0)), name)


def data_uri_reader(uri: str) -> headers.Read:
    """Make a reader of a data URI that decodes no more than it is asked for."""
    start = uri.index(";base64,") + 8

    def read(offset: int, size: int) -> bytes:
        first, last = offset // 3, -(-(offset + size) // 3)
        try:
            part = binascii.a2b_base64(uri[start + 4 * first : start + 4 * last])
        except ValueError:  # also text that is not ASCII
            return b""
        return part[offset - 3 * first :][:size]

    return read
