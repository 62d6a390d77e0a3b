"""Text in UTF-8 without a mark, as Blender's importers take it, of files whose writers chose another encoding."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

MARKS = (  # the longer first, whose start the shorter are
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
STARTS = {"ply": ("ply",), "stl": ("solid",), "fbx": (";", "fbxheader"), "obj": ("",), "mtl": ("",)}
STARTS |= dict.fromkeys(("usda", "usd"), ("#usda",))
HEAD, CHUNK = 512, 2**22  # bytes
OLD_MAC = "carriage returns"  # in the place of an encoding: lines end by these alone, which Blender takes for one line
COMMAS = (
    "decimal commas"  # in the place of an encoding: numbers as some writers have them in countries that write them so
)
ROWS = {"obj": rb"v", "stl": rb"vertex", "ply": rb""}  # words before coordinates
NUMBERS = rb"(?mi)^[ \t]*(?:v[tn]?|vertex|facet normal)?[ \t]*[-+\d][^\n]*$"  # lines of them
START = 2**14  # bytes in which coordinates are looked for
HOLDS = {
    "ply": b"format ascii",
    "stl": b"facet",
    "obj": b"",
    "mtl": b"",
    "usda": b"",
    "usd": b"",
}  # of the formats that are read by lines


def encoding(path: Path, file_format: str) -> str:
    """Python's name of the encoding of a text; "" if it is plain, no text, or of a format that may have any. Raises OSError."""
    if file_format not in STARTS:
        return ""
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    found = next((name for mark, name in MARKS if head.startswith(mark)), "") or _without_mark(head)
    if not found and b"\r" in head and not {b"\n", b"\0"} & {head[at : at + 1] for at in range(len(head))}:
        starts = head.lstrip().lower().startswith(STARTS[file_format][0].encode())
        return OLD_MAC if starts and file_format in HOLDS and HOLDS[file_format] in head.lower() else ""
    if not found and file_format in ROWS:
        return COMMAS if _has_commas(path, file_format) else ""
    text = head.decode(found, "ignore").lstrip().lower() if found else ""
    return found if text.startswith(STARTS[file_format]) else ""


def _has_commas(path: Path, file_format: str) -> bool:
    """True if coordinates have commas, and none has a point."""
    with path.open("rb") as stream:
        start = stream.read(START).lower()
    if file_format == "ply":
        start = start.partition(b"end_header")[2] if b"format ascii" in start else b""
    rows = re.findall(rb"(?m)^[ \t]*" + ROWS[file_format] + rb"[ \t]*([-+\d][-+\de.,\t ]*)\r?$", start)
    return any(re.search(rb"\d,\d", row) for row in rows) and not any(re.search(rb"\.|, |,\d+,", row) for row in rows)


def _without_mark(head: bytes) -> str:
    """UTF-16 of which nearly all letters are Latin ones, in either order of bytes; else ""."""
    for name, letters, zeros in (("utf-16-le", head[::2], head[1::2]), ("utf-16-be", head[1::2], head[::2])):
        if len(zeros) > 8 and zeros.count(0) > 0.9 * len(zeros) and all(letter >= 9 for letter in letters):
            return name
    return ""


def lines(path: Path, most: int) -> Iterator[bytes]:
    """Yield the lines of a text, or what `most` letters of a longer one are, in UTF-8. Raises OSError."""
    name = encoding(path, "mtl")
    if name == OLD_MAC:
        with path.open(encoding="latin-1", newline="\r") as text:
            for line in iter(lambda: text.readline(most), ""):
                yield line.replace("\r", "\n").encode("latin-1")
    elif name and name != COMMAS:
        with path.open(encoding=name, errors="replace", newline="\n") as text:
            yield from (line.encode() for line in iter(lambda: text.readline(most), ""))
    else:
        with path.open("rb") as stream:
            yield from iter(lambda: stream.readline(most), b"")


def plain(source: Path, name: str, folder: Path) -> Path:
    """Copy of a text of the encoding `name` in UTF-8, in a folder that is there. Raises OSError."""
    target = folder / source.name
    if name == OLD_MAC:
        with source.open("rb") as stream, target.open("xb") as sink:
            while chunk := stream.read(CHUNK):
                sink.write(chunk.replace(b"\r", b"\n"))
        return target
    if name == COMMAS:
        with source.open("rb") as stream, target.open("xb") as sink:
            while lines := stream.readlines(CHUNK):
                sink.write(re.sub(NUMBERS, lambda found: found[0].replace(b",", b"."), b"".join(lines)))
        return target
    decoder = codecs.getincrementaldecoder(name)("replace")
    with source.open("rb") as stream, target.open("xb") as sink:
        while chunk := stream.read(CHUNK):
            sink.write(decoder.decode(chunk).encode())
        sink.write(decoder.decode(b"", True).encode())
    return target
