"""Copies for Blender of files that it would not understand or that name others by names of another machine.

Each writer puts one file, or two, into a folder of the worker; what they name is named by absolute paths, which
`upgrade.folder` has found below the folder that the object may read, or by a name that leads nowhere (`core.paths.leaf`).
"""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import shutil
import struct
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.core.paths import leaf
from pipeline.formats import references
from pipeline.formats.gltf import BIN_CHUNK, JSON_CHUNK, Document, data_uri_reader, is_embedded
from pipeline.formats.headers import Read, reader
from pipeline.formats.references import library_words, map_of
from pipeline.upgrade import crate, mtl, plain_text
from pipeline.upgrade.folder import Folder, outer

LINE = 2**20  # bytes
IDENTITY = np.eye(4).reshape(-1)


def gltf(document: Document, source: Path, files: Mapping[str, Path], folder: Path) -> Path:
    """Write a GLB 2.0 of `document` with the binary chunk of `source`. files: URI -> file; other URIs stay as they are."""
    for row in (*document.rows("buffers"), *document.rows("images")):
        uri = row.get("uri")
        if isinstance(uri, str) and not is_embedded(uri):
            found = files.get(uri)
            name = os.path.abspath(found) if found else leaf(urllib.parse.unquote(uri))
            row["uri"] = urllib.parse.quote(name, errors="replace")
    target = folder / f"{source.stem}.glb"
    text = json.dumps(document.json).encode()
    text += b" " * (-len(text) % 4)
    padding = -document.bin_size % 4
    body = 8 + document.bin_size + padding if document.bin_size else 0
    with target.open("xb") as sink:
        sink.write(struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + body, len(text), JSON_CHUNK) + text)
        if body:
            sink.write(struct.pack("<II", document.bin_size + padding, BIN_CHUNK))
            with source.open("rb") as stream:
                stream.seek(document.bin_offset)
                _copy(stream.read, sink.write, document.bin_size)
            sink.write(bytes(padding))
    return target


def _copy(read: Callable[[int], bytes], write: Callable[[bytes], object], size: int) -> None:
    while size > 0 and (block := read(min(size, 2**20))):
        write(block)
        size -= len(block)


def finish_skins(document: Document, source: Path, files: Mapping[str, Path]) -> None:
    """Do what skins of glTF 1.0 need and JSON cannot say, in place, in buffers of their own.

    Inverse bind matrices are multiplied by their `bindShapeMatrix`; numbers of joints that are floats become whole.
    """
    for skin in document.rows("skins"):
        shape = np.array(skin.pop("bindShapeMatrix", IDENTITY), np.float64)
        if shape.shape == (16,) and not np.array_equal(shape, IDENTITY):
            inverse = np.tile(np.eye(4).reshape(1, 16), (len(skin["joints"]), 1))
            if "inverseBindMatrices" in skin:
                inverse = _floats(document, skin["inverseBindMatrices"], 16, source, files)
            product = shape.reshape(4, 4) @ inverse.reshape(-1, 4, 4)  # columns are stored as rows
            skin["inverseBindMatrices"] = _add(document, product.astype("<f4"), 5126, "MAT4")
    for mesh in document.rows("meshes"):
        for primitive in mesh["primitives"]:
            attributes = primitive["attributes"]
            for name in (name for name in attributes if name.startswith("JOINTS_")):
                if document.rows("accessors")[attributes[name]]["componentType"] == 5126:
                    joints = _floats(document, attributes[name], 4, source, files)
                    attributes[name] = _add(document, joints.astype("<u2"), 5123, "VEC4")


def _floats(document: Document, number: int, width: int, source: Path, files: Mapping[str, Path]) -> np.ndarray:
    """(count, width) of an accessor of floats. Raises ValueError if there are fewer bytes."""
    row = document.rows("accessors")[number]
    view = document.rows("bufferViews")[row["bufferView"]]
    stride = view.get("byteStride") or 4 * width
    size = max(row["count"] - 1, 0) * stride + 4 * width
    data = _bytes(document, view["buffer"], source, files)(view.get("byteOffset", 0) + row.get("byteOffset", 0), size)
    if len(data) < size:
        raise ValueError(f"accessor {number} has {len(data)} bytes, {size} are needed")
    return np.ndarray((row["count"], width), "<f4", data, strides=(stride, 4)).astype(np.float64)


def _add(document: Document, values: np.ndarray, component: int, kind: str) -> int:
    """Add an accessor with a buffer of its own; returns its number."""
    data = values.tobytes()
    uri = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    view = {"buffer": len(document.rows("buffers")), "byteLength": len(data)}
    accessor = {"bufferView": len(document.rows("bufferViews")), "componentType": component}
    accessor |= {"count": len(values), "type": kind}  # type: ignore[dict-item]
    number = len(document.rows("accessors"))
    for key, row in (
        ("buffers", {"uri": uri, "byteLength": len(data)}),
        ("bufferViews", view),
        ("accessors", accessor),
    ):
        document.json.setdefault(key, []).append(row)
    return number


def _bytes(document: Document, number: int, source: Path, files: Mapping[str, Path]) -> Read:
    """Make a function that reads a buffer of a glTF: one of a data URI, of a file, or of the binary chunk."""
    uri = document.rows("buffers")[number].get("uri")
    if isinstance(uri, str) and is_embedded(uri):
        return data_uri_reader(uri)
    path, first = (files.get(str(uri)), 0) if uri else (source, document.bin_offset)

    def read(offset: int, size: int) -> bytes:
        if path is None:
            return b""
        with path.open("rb") as stream:
            stream.seek(first + offset)
            return stream.read(size)

    return read


def obj(source: Path, libraries: Sequence[Path], find: Callable[[str, Path], Path | None], folder: Path) -> Path:
    """Write an OBJ that names no MTL, beside one of its name, which Blender reads unasked: all `libraries`, pictures found."""
    with source.open("rb") as stream:
        comments = [(at, at + 1, b"#") for at in library_words(reader(stream))]
    target = rewritten(source, comments, folder)
    with target.with_suffix(".mtl").open("xb") as sink:
        for library in libraries:
            for line in mtl.plain(plain_text.lines(library, LINE)):
                sink.write(_map_line(line, library, find))
            sink.write(b"\n")
    return target


def _map_line(line: bytes, library: Path, find: Callable[[str, Path], Path | None]) -> bytes:
    """Rewrite a line of an MTL that names a picture; every other line stays."""
    named = map_of(line)
    if named is None:
        return line
    found = find(named[1], library)
    path = os.path.abspath(found) if found else leaf(named[1])
    return named[0] + re.sub(rb"[\r\n]", b"", os.fsencode(path)) + b"\n"


def rewritten(source: Path, changes: Iterable[tuple[int, int, bytes]], folder: Path, name: str = "") -> Path:
    """Copy of a file in which other bytes stand for some of its own. changes: (start, end, new), ascending, none overlapping."""
    target = folder / (name or source.name)
    with source.open("rb") as stream, target.open("xb") as sink:
        for start, end, new in changes:
            _copy(stream.read, sink.write, start - stream.tell())
            sink.write(new)
            stream.seek(end)
        shutil.copyfileobj(stream, sink)
    return target


def usd(layers: Sequence[Path], names: Folder, folder: Path) -> Path:
    """Write layers of USD that name each other, and other files by where they stand. Returns the copy of the first.

    names: has followed what stands in them. What leads nowhere stays, without steps upwards.
    """
    targets = {layer: folder / f"{number}-{leaf(layer.name)}" for number, layer in enumerate(layers)}
    files = {(layer, name): path for layer, name, path in names.found}

    def new(layer: Path, name: str) -> str:
        if path := files.get((layer, name)):
            return os.path.abspath(targets.get(path, path)) + name[len(outer(name)) :]
        return leaf(name) if (layer, name) in names.refused else names.within(name, layer) or inwards(name)

    for layer, target in targets.items():
        if crate.is_crate(layer):
            crate.renamed(layer, functools.partial(new, layer), target)
            continue
        spans = [(span, os.fsencode(new(layer, span.name))) for span in references.usda(layer)]
        rewritten(layer, [(span.start, span.end, to) for span, to in spans if b"@" not in to], folder, target.name)
    return targets[layers[0]]


def inwards(name: str) -> str:
    """A path without steps upwards, which would lead elsewhere from the folder of a copy."""
    return re.sub(r"(?<![^/\\])\.\.(?![^/\\])", "._", name)


def padded(name: bytes, size: int) -> bytes:
    """Relative path of exactly `size` bytes, for a file that has no room for more: with "./" before it; cut at its start."""
    missing = size - len(name)
    if missing <= 0:
        return name[-missing:]
    return (b"_" if missing == 1 else b"./" * (missing // 2) + b"/" * (missing % 2)) + name


def stl(source: Path, folder: Path) -> Path:
    """Write an STL of text in lower case, which alone Blender reads."""
    target = folder / source.name
    with source.open("rb") as stream, target.open("xb") as sink:
        _copy(lambda size: stream.read(size).lower(), sink.write, source.stat().st_size)
    return target


def anew(folder: Path) -> Path:
    """Make the folder, or empty it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
