"""A look at a file before Blender opens it: cheap, exact reasons for what would otherwise fail late or in silence."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from pipeline.scene import Skip

FORMATS = frozenset("procedural glb gltf obj fbx stl ply usd usda usdc usdz dae abc blend".split())
LFS_MAGIC = b"version https://git-lfs"
MAGIC = {  # where a format can be told by its first bytes
    "glb": (b"glTF",),
    "usdz": (b"PK",),
    "usdc": (b"PXR-USDC",),
    "usda": (b"#usda",),
    "ply": (b"ply",),
    "abc": (b"Ogawa", b"\x89HDF"),
    "blend": (b"BLENDER", b"\x28\xb5\x2f\xfd", b"\x1f\x8b"),
}
UNREADABLE = {"EXT_meshopt_compression", "KHR_texture_basisu"}  # Blender 4.5 refuses files that require these


def check(path: Path) -> str:
    """The file's format, by its suffix. Raises Skip: unsupported_format, file_empty, lfs_pointer, html_page, wrong_magic,
    truncated, broken_gltf, unsupported_extension."""
    file_format = path.suffix.lower().lstrip(".")
    if file_format not in FORMATS:
        raise Skip("unsupported_format", f"{path.name}: {file_format or 'no suffix'}")
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise Skip("file_empty", path.name)
    if head.startswith(LFS_MAGIC):
        raise Skip("lfs_pointer", "a Git LFS pointer, not the file that it stands for")
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise Skip("html_page", "a web page under a model's name")
    if file_format in MAGIC and not head.startswith(MAGIC[file_format]):
        raise Skip("wrong_magic", f"{path.name} starts with {head[:8]!r}")
    if file_format == "glb":
        _check_gltf(_glb_json(path, size, head))
    elif file_format == "gltf":
        _check_gltf(path.read_bytes())
    elif file_format == "stl":
        _check_stl(head, size)
    return file_format


def _glb_json(path: Path, size: int, head: bytes) -> bytes:
    if len(head) < 20:
        raise Skip("truncated", f"{size} bytes are no GLB")
    _, version, length = struct.unpack_from("<III", head)
    chunk, kind = struct.unpack_from("<II", head, 12)
    if version != 2:
        raise Skip("unsupported_extension", f"glTF version {version}")
    if size < length or 20 + chunk > size:
        raise Skip("truncated", f"{size} bytes of {length}")
    if kind != 0x4E4F534A:
        raise Skip("broken_gltf", "the first chunk is not JSON")
    with path.open("rb") as stream:
        stream.seek(20)
        return stream.read(chunk)


def _check_gltf(text: bytes) -> None:
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Skip("broken_gltf", str(error)) from None
    if not isinstance(document, dict):
        raise Skip("broken_gltf", "the document is no JSON object")
    required = document.get("extensionsRequired", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise Skip("broken_gltf", "extensionsRequired is no list of names")
    if unreadable := UNREADABLE.intersection(required):
        raise Skip("unsupported_extension", ", ".join(sorted(unreadable)))


def _check_stl(head: bytes, size: int) -> None:
    """A binary STL says how many triangles of 50 bytes follow its 84-byte head; a text one starts with "solid"."""
    if head.startswith(b"solid") and b"facet" in head:
        return
    if size < 84:
        raise Skip("truncated", f"{size} bytes are no STL")
    (triangles,) = struct.unpack_from("<I", head, 80)
    if size < 84 + 50 * triangles and not head.startswith(b"solid"):
        raise Skip("truncated", f"{size} bytes, {triangles} triangles need {84 + 50 * triangles}")
