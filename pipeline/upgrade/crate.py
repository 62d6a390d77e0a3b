"""The words of a binary USD, names of files among them: read without the rest of the file, and replaced in a copy of it.

A file holds all its words in one section, where its other sections find them by number. Sections may stand anywhere, so a copy
with other words is the file, its new words and its new table of contents.
"""

from __future__ import annotations

import io
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

MAGIC = b"PXR-USDC"
MAX_BYTES = 2**24  # of all words
MAX_SECTIONS = 64
TABLE = struct.Struct("<16sqq")  # name, first byte, bytes
SIZES = struct.Struct("<QQQ")  # number of words, their bytes, their bytes as they are compressed
TABLE_AT = 16  # byte at which the place of the table of contents stands


def is_crate(path: Path) -> bool:
    """True for a binary USD. Raises OSError."""
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def words(path: Path) -> list[str]:
    """All words of the file; [] of one that is damaged, too large or of a version before 0.4. Raises OSError."""
    with path.open("rb") as stream:
        return _read(stream)[1]


def words_of(data: bytes) -> list[str]:
    """All words of a file of these bytes, as of `words`."""
    return _read(io.BytesIO(data))[1]


def renamed(source: Path, new: Callable[[str], str], target: Path) -> Path:
    """Copy of a file with new(word) for each of its words. Raises OSError."""
    with source.open("rb") as stream, target.open("xb") as sink:
        sections, old = _read(stream)
        stream.seek(0)
        shutil.copyfileobj(stream, sink)
        if not old:
            return target
        text = b"".join(new(word).encode("utf-8", "surrogateescape").replace(b"\0", b"") + b"\0" for word in old)
        packed = b"\0" + _stored(text)
        start, body = sink.tell(), SIZES.pack(len(old), len(text), len(packed)) + packed
        sink.write(body)
        table = [row if row[0].rstrip(b"\0") != b"TOKENS" else (row[0], start, len(body)) for row in sections]
        place = sink.tell()
        sink.write(struct.pack("<Q", len(table)) + b"".join(TABLE.pack(*row) for row in table))
        sink.seek(TABLE_AT)
        sink.write(struct.pack("<q", place))
    return target


def _read(stream: BinaryIO) -> tuple[list[tuple[bytes, int, int]], list[str]]:
    """(table of contents, words); two empty lists for what is no file of this kind."""
    try:
        head = stream.read(24)
        if not head.startswith(MAGIC) or tuple(head[8:10]) < (0, 4):
            return [], []
        _go(stream, *struct.unpack_from("<q", head, TABLE_AT))
        (count,) = struct.unpack("<Q", stream.read(8))
        if count > MAX_SECTIONS:
            return [], []
        table = [TABLE.unpack(stream.read(TABLE.size)) for _ in range(count)]
        start = next(start for name, start, _ in table if name.rstrip(b"\0") == b"TOKENS")
        _go(stream, start)
        number, size, packed = SIZES.unpack(stream.read(SIZES.size))
        if max(size, packed) > MAX_BYTES:
            return [], []
        text = _unpacked(stream.read(packed), size)
    except (struct.error, StopIteration, ValueError, IndexError, OverflowError):
        return [], []
    found = [word.decode("utf-8", "surrogateescape") for word in text.split(b"\0")[:-1]]
    return (table, found) if len(found) == number and len(text) == size else ([], [])


def _go(stream: BinaryIO, place: int) -> None:
    if not 0 <= place < stream.seek(0, 2):
        raise ValueError("a place outside of the file")
    stream.seek(place)


def _unpacked(data: bytes, size: int) -> bytes:
    """Decompress blocks of LZ4, each with its length before it; 0 blocks stand for one without. Raises ValueError, IndexError."""
    if data[0] == 0:
        return _block(data[1:], size)
    made, at = b"", 1
    for _ in range(data[0]):
        (length,) = struct.unpack_from("<i", data, at)
        made += _block(data[at + 4 : at + 4 + max(length, 0)], size - len(made))
        at += 4 + length
    return made


def _block(data: bytes, size: int) -> bytes:
    """Decompress one block of LZ4 to `size` bytes at most. Raises ValueError, IndexError."""
    out, at = bytearray(), 0

    def length(of: int) -> int:
        nonlocal at
        while of >= 15 and (of - 15) % 255 == 0:
            byte = data[at]
            at, of = at + 1, of + byte
            if byte < 255:
                break
        return of

    while at < len(data):
        mark, at = data[at], at + 1
        literals = length(mark >> 4)
        out += data[at : at + literals]
        at += literals
        if at >= len(data):
            break
        back, at = data[at] | data[at + 1] << 8, at + 2
        count = length(mark & 15) + 4
        if not 0 < back <= len(out) or len(out) + count > size:
            raise ValueError("a copy of what is not there")
        piece = bytes(out[len(out) - back :][:count])
        out += (piece * (count // len(piece) + 1))[:count]
    return bytes(out)


def _stored(text: bytes) -> bytes:
    """One block of LZ4 that is all literals."""
    if len(text) < 15:
        return bytes([len(text) << 4]) + text
    more, rest = divmod(len(text) - 15, 255)
    return b"\xf0" + b"\xff" * more + bytes([rest]) + text
