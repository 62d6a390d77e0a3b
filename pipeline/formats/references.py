"""The external files that a model file names, found without opening them: hostile bytes, read in bounded pieces."""

from __future__ import annotations

import html
import itertools
import os
import posixpath
import re
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from xml.parsers import expat

from pipeline.core.errors import Skip
from pipeline.formats import gltf, headers

CHUNK = 2**22
MAX_NAMES, MAX_HITS = 10_000, 100_000  # different names; places that look like one
LINE = 4096  # bytes; no system opens a longer name, so a longer one may be cut off
BLANK = bytes(range(33))  # Blender's readers of text skip all of these
MAPS = (b"map_", b"bump", b"disp", b"decal", b"refl", b"norm")
OPTION = re.compile(
    rb"-[a-z]+((\s+[-+]?[0-9.]+(e[-+]?\d+)?){1,3}|\s+(on|off|[rgbmlz]|sphere|cube_\w{1,8}))(?=\s)[\0- ]*", re.I
)
WINDOWS = re.compile(r"[A-Za-z]:")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def references(path: Path, file_format: str = "") -> list[str]:
    """List the files that `path` names, in the order of the file, each once, as written but for the escapes of its format.

    Decoded: percent signs (glTF, Collada), entities (Collada), quotation marks and options around names (OBJ, MTL).
    Left alone: backslashes, drive letters, URLs, `..`; bytes that are no UTF-8 come as surrogate escapes (`os.fsencode`
    turns them back). Without data URIs. Some names may be no file's: of a usda, whatever may be one; of an obj, the mtl of
    its own name, which Blender reads unasked. A usdz gives its members. Nothing for stl, procedural, abc, usdc and blend,
    whose names are compressed or nowhere: there the confinement of Blender is all. file_format: where the suffix does not
    tell (an mtl under another name).

    Raises Skip: file_unreadable, too_complex, broken_gltf, broken_xml, xml_entities, and what `gltf.load` and
    `headers.usdz_members` raise. No other exception.
    """
    find = FINDERS.get(file_format or path.suffix.lower().lstrip("."))
    found: dict[str, None] = {}
    try:
        for name in filter(None, find(path) if find else ()):
            found[name] = None
            _limit(found, f"names of files in {path.name}", MAX_NAMES)
    except OSError as error:
        raise Skip("file_unreadable", f"{path.name}: {error.strerror}") from None
    return list(found)


def companions(path: Path, root: Path) -> list[PurePosixPath]:
    """Paths, relative to `root`, of the files that `path` names, whether or not they exist: for fetching them.

    Absolute paths, URLs and what is outside of `root` are left out. One step only: call again on an mtl, a usda or a dae
    among the paths. Raises what `references` raises.
    """
    names = [] if path.suffix.lower() == ".usdz" else references(path)
    folder = os.path.relpath(os.path.abspath(path.parent), os.path.abspath(root))
    found = []
    for name in names:
        plain = name.replace("\\", "/")
        if "\0" in plain or plain.startswith("/") or WINDOWS.match(plain) or SCHEME.match(plain):
            continue
        inside = posixpath.normpath(posixpath.join(folder, plain))
        if inside not in (".", "..", folder) and not inside.startswith("../"):
            found.append(PurePosixPath(inside))
    return list(dict.fromkeys(found))


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _limit(found: Collection[Any], what: str, most: int) -> None:
    if len(found) > most:
        raise Skip("too_complex", f"more than {most} {what}")


def _hits(read: headers.Read, *words: bytes) -> list[int]:
    """Offsets in the file at which any of the words starts, ascending. Raises Skip("too_complex")."""
    found: set[int] = set()
    overlap = max(map(len, words)) - 1
    start = 0
    while data := read(start, CHUNK):
        for word in words:
            at = data.find(word)
            while at >= 0:
                found.add(start + at)
                _limit(found, f"times {word!r}", MAX_HITS)
                at = data.find(word, at + 1)
        if len(data) < CHUNK:
            break
        start += CHUNK - overlap
    return sorted(found)


# ---- glTF, Collada


def _gltf(path: Path) -> Iterator[str]:
    return map(urllib.parse.unquote, gltf.uris(gltf.load(path)))


@dataclass(frozen=True)
class Span:
    """A name in a file, decoded, and the bytes [start, end) of the file that it stands in.

    of_image: of Collada: it is an image's, so a file; elsewhere an init_from may also be the id of an image.
    """

    name: str
    start: int
    end: int
    of_image: bool = True


def _dae(path: Path) -> list[str]:
    """List pictures (init_from) and documents (url, source). Blender reads no Collada that expat does not read."""
    pictures, documents = collada(path)
    return [*(span.name for span in pictures), *documents]


def collada(path: Path) -> tuple[list[Span], list[str]]:
    """(pictures, other documents) that a Collada file names. Raises Skip: broken_xml, xml_entities, too_complex; OSError."""
    pictures: list[Span] = []
    documents: list[str] = []
    inside: list[str] | None = None  # the text of an init_from
    begins, of_image = 0, False

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal inside, of_image
        of_image = of_image or tag.rpartition(":")[2] == "image"
        if tag.rpartition(":")[2] in ("init_from", "ref"):
            inside = []
        named = [attributes[key].partition("#")[0] for key in ("url", "source", "ref") if key in attributes]
        documents.extend(urllib.parse.unquote(name[:LINE]) for name in named if name)
        _limit(documents, "names of files", MAX_HITS)

    def text(part: str) -> None:
        nonlocal begins
        if inside is not None and sum(map(len, inside)) < LINE:
            begins = begins if inside else parser.CurrentByteIndex
            inside.append(part)

    def end(tag: str) -> None:
        nonlocal inside, of_image
        of_image = of_image and tag.rpartition(":")[2] != "image"
        if inside and tag.rpartition(":")[2] in ("init_from", "ref"):
            name = urllib.parse.unquote("".join(inside).strip())
            pictures.append(Span(name, begins, parser.CurrentByteIndex, of_image))
            _limit(pictures, "names of files", MAX_HITS)
        if tag.rpartition(":")[2] in ("init_from", "ref"):
            inside = None

    def doctype(*_: Any) -> None:
        raise Skip("xml_entities", f"{path.name} declares a document type, which no Collada file needs")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = text, doctype
    with path.open("rb") as stream:
        _feed(parser, stream)
    return pictures, documents


def _feed(parser: expat.XMLParserType, stream: BinaryIO) -> None:
    fed = 0
    try:
        while chunk := stream.read(CHUNK):
            parser.Parse(chunk, False)
            fed += len(chunk)
            if fed - parser.CurrentByteIndex > 16 * CHUNK:  # expat would parse the tag again with every chunk
                raise Skip("too_complex", f"one XML tag of more than {16 * CHUNK} bytes")
        parser.Parse(b"", True)
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two: unknown encodings
        raise Skip("broken_xml", str(error)) from None


# ---- OBJ, MTL, PLY


def _obj(path: Path) -> Iterator[str]:
    yield from libraries(path)
    yield f"{path.stem}.mtl"


def libraries(path: Path) -> Iterator[str]:
    """Yield the MTL files that an OBJ names. Raises Skip("too_complex"); OSError."""
    with path.open("rb") as stream:
        read = headers.reader(stream)
        for at in library_words(read):
            line = re.split(rb"(?<!\\)\n", read(at + 6, LINE).replace(b"\r\n", b"\n"), maxsplit=1)[0]
            name = _unquoted(line.replace(b"\\\n", b"  ").strip(BLANK))
            yield _text(name)
            several = name.split()  # what the format says; Blender takes one name with blanks
            if len(several) > 1 and all(part.lower().endswith(b".mtl") for part in several):
                yield from map(_text, several)


def library_words(read: headers.Read) -> Iterator[int]:
    """Yield the offsets of the word "mtllib" at which a line of an OBJ names MTL files. Raises Skip("too_complex")."""
    for at in _hits(read, b"mtllib"):
        before = read(max(0, at - LINE), min(at, LINE)).rpartition(b"\n")[2]
        if not before.strip(BLANK):  # else within a comment or a name
            yield at


def _unquoted(name: bytes) -> bytes:
    return name[1:-1] if len(name) > 2 and name[:1] == name[-1:] == b'"' else name


def _mtl(path: Path) -> Iterator[str]:
    with path.open("rb") as stream:
        for number, line in enumerate(iter(lambda: stream.readline(CHUNK), b"")):
            if number > 10 * MAX_HITS:
                raise Skip("too_complex", f"{path.name} has more than {number} lines")
            if named := map_of(line):
                yield named[1]


def map_of(line: bytes) -> tuple[bytes, str] | None:
    """(what stands before the name, the name) of a line of an MTL that names a picture; None for other lines."""
    word, _, name = line.strip(BLANK).replace(b"\t", b" ").partition(b" ")
    if not word.lower().startswith(MAPS):
        return None
    name, at = name.strip(BLANK), 0
    while option := OPTION.match(name, at):
        at = option.end()
    return word + b" " + name[:at], _text(_unquoted(name[at:]))


def ply(path: Path) -> Iterator[str]:
    """Yield the pictures that a PLY names, by whose places in this order its faces go. Raises OSError."""
    with path.open("rb") as stream:
        head = stream.read(2**20).partition(b"end_header")[0]
    for found in re.finditer(rb"^comment[ \t]+TextureFile[ \t]+([^\r\n]{1,4096})", head, re.I | re.M):
        yield _text(found[1].strip(BLANK)).replace("<this>", path.stem)  # as MeshLab does


# ---- FBX


def is_fbx_text(path: Path) -> bool:
    """True for an FBX of text. Raises OSError."""
    with path.open("rb") as stream:
        return stream.read(len(headers.FBX_MAGIC)) != headers.FBX_MAGIC


def fbx(path: Path) -> Iterator[Span]:
    """Yield files of Texture and Video nodes; if one names none, Blender takes the node's name: one like a path counts.

    Raises Skip("too_complex"); OSError.
    """
    with path.open("rb") as stream:
        read = headers.reader(stream)
        if is_fbx_text(path):
            yield from _fbx_as_text(read)
        for found in headers.fbx_properties(read, path.stat().st_size):
            value = read(found.offset, min(found.size, LINE)) if found.kind == b"S" else b""
            if found.node in (b"RelativeFilename", b"Filename", b"FileName"):
                yield Span(_text(value.rstrip(b"\0")), found.offset, found.offset + found.size)
            elif found.node in (b"Texture", b"Video") and b"\0\1" in value:
                name = value.partition(b"\0\1")[0]
                if b"/" in name or b"\\" in name:
                    yield Span(_text(name), found.offset, found.offset + len(name))


def _fbx_as_text(read: headers.Read) -> Iterator[Span]:
    """Yield files of an FBX that is text."""
    for at in _hits(read, b"ilename:", b"ileName:"):
        if found := re.match(rb'[ \t]*"([^"\r\n]*)"', read(at + 8, LINE)):
            yield Span(html.unescape(_text(found[1])), at + 8 + found.start(1), at + 8 + found.end(1))


# ---- USD


def is_usda(path: Path) -> bool:
    """True for a USD of text. Raises OSError."""
    with path.open("rb") as stream:
        return stream.read(5) == b"#usda"


def usda(path: Path) -> Iterator[Span]:
    """Yield what a USD of text names; nothing for other USD. Raises Skip("too_complex"); OSError."""
    with path.open("rb") as stream:
        if is_usda(path):
            yield from _assets(headers.reader(stream))


def _assets(read: headers.Read, before: int = 0) -> Iterator[Span]:
    """Yield all text between two @ of a line: some is no reference, but no reference is missed.

    before: bytes of the file before the first that `read` reads.
    """
    marks = _hits(read, b"@")
    for start, end in itertools.pairwise(marks):
        text = read(start + 1, min(end - start - 1, LINE))
        if b"\n" not in text:
            name = text.partition(b":SDF_FORMAT_ARGS:")[0]
            first = before + start + 1 + len(name) - len(name.lstrip(BLANK))
            name = name.strip(BLANK)
            yield Span(_text(name), first, before + end if len(text) == LINE else first + len(name))


def _usdz(path: Path) -> Iterator[str]:
    with path.open("rb") as stream:
        yield from (member.name for member in headers.usdz_members(headers.reader(stream), path.stat().st_size))


def within_usdz(path: Path) -> Iterator[tuple[str, Span]]:
    """Yield (member, name) for every file that a text layer in a usdz names, relative to the member.

    Raises Skip: bad_archive, archive_bomb, too_complex; OSError.
    """
    with path.open("rb") as stream:
        read = headers.reader(stream)
        for member in headers.usdz_members(read, path.stat().st_size):
            if read(member.offset, 5) == b"#usda":
                layer = headers.part(read, member.offset, member.size)
                yield from ((member.name, span) for span in _assets(layer, member.offset))


def _names(spans: Callable[[Path], Iterable[Span]]) -> Callable[[Path], Iterable[str]]:
    return lambda path: (span.name for span in spans(path))


FINDERS: dict[str, Callable[[Path], Iterable[str]]] = {
    "gltf": _gltf,
    "glb": _gltf,
    "dae": _dae,
    "obj": _obj,
    "mtl": _mtl,
    "ply": ply,
    "fbx": _names(fbx),
    "usd": _names(usda),
    "usda": _names(usda),
    "usdz": _usdz,
}
