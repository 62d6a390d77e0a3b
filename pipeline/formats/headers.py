"""Sizes that files declare, read from a few bytes of each: nothing is decoded or trusted."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from pipeline.core.errors import Skip

Read = Callable[[int, int], bytes]  # (offset, size) -> at most `size` bytes; fewer at the end of the file

WINDOW = 2**16
BLANK = bytes(range(33))
LAST = 1024  # bytes, at the end of a text, in which its last words are
MAX_SIDE, MAX_PIXELS = 32768, 2**28  # of a picture: 16384 x 16384 are 4 GB as Blender's floats
MAX_UNPACKED = 2**32  # bytes, of all that one file holds compressed
MAX_MEMBERS, MAX_NODES, MAX_DEPTH = 10_000, 2_000_000, 64
SMALL_ARRAY = 2**16  # bytes of zlib, which can stand for no more than 1032 times as many
FBX_MAGIC = b"Kaydara FBX Binary  \0\x1a"  # then 1 where numbers are big-endian, else 0
FBX_WIDTHS = {b"Z": 1, b"Y": 2, b"B": 1, b"C": 1, b"I": 4, b"F": 4, b"D": 8, b"L": 8}
FBX_ARRAYS = {b"b": 1, b"c": 1, b"i": 4, b"l": 8, b"f": 4, b"d": 8}
PLY_WIDTHS = dict.fromkeys("char uchar int8 uint8".split(), 1)
PLY_WIDTHS |= dict.fromkeys("short ushort int16 uint16".split(), 2)
PLY_WIDTHS |= dict.fromkeys("double float64".split(), 8)  # all others have 4 bytes


def reader(stream: BinaryIO) -> Read:
    """Make a function that reads anywhere in an open file. Consecutive small reads share a system call."""
    start, window = 0, b""

    def read(offset: int, size: int) -> bytes:
        nonlocal start, window
        if not start <= offset <= offset + size <= start + len(window):
            start, window = offset, os.pread(stream.fileno(), max(size, WINDOW), offset)
        return window[offset - start : offset - start + size]

    return read


def part(read: Read, start: int, size: int) -> Read:
    """Make a function that reads a stretch of a file as if it were a file."""
    return lambda offset, wanted: read(start + offset, max(0, min(wanted, size - offset)))


KINDS = (  # of a file's first bytes, whatever its name says
    (re.compile(rb"glTF[\x01\x02]\0\0\0"), "glb"),
    (re.compile(re.escape(FBX_MAGIC)), "fbx"),
    (re.compile(rb"; FBX \d"), "fbx"),
    (re.compile(rb"ply(?:\r\n|\n|\r)(format|comment|obj_info)"), "ply"),
    (re.compile(rb"Ogawa"), "abc"),
    (re.compile(rb"PXR-USDC"), "usdc"),
    (re.compile(rb"#usda 1"), "usda"),
    (re.compile(rb"PK\x03\x04.{26}[^\0]{0,200}?\.usd[ac]?", re.S), "usdz"),
    (re.compile(rb"\s*(<\?xml.{0,400}?)?<COLLADA\b", re.S), "dae"),
    (re.compile(rb"\s*\{.{0,400}?\"(asset|accessors|scenes?|nodes|buffers)\"\s*:", re.S), "gltf"),
    (re.compile(rb"solid\b[^\n]{0,200}\n\s*facet\b", re.I), "stl"),
    (
        re.compile(
            rb"(?:[ \t]*(?:#[^\n]*|(?:mtllib|o|g|s|usemtl|vt|vn) [^\n]*)?\r?\n)*[ \t]*v(?: +-?[\d.]+(?:e[-+]?\d+)?){3}"
        ),
        "obj",
    ),
)


def kind(head: bytes) -> str:
    """Format of a file whose first bytes are `head`, "" where they do not tell; never blend, which has to be asked for."""
    return next((name for pattern, name in KINDS if pattern.match(head)), "")


# ---- pictures


def check_picture(read: Read, name: str, suffix: str = "") -> None:
    """Raise Skip("image_too_large") if a picture's header declares more than MAX_SIDE or MAX_PIXELS."""
    try:
        size = picture_size(read, suffix)
    except (struct.error, OverflowError):  # cut off within the header: no picture
        return
    if size and (max(size) > MAX_SIDE or size[0] * size[1] > MAX_PIXELS):
        raise Skip(
            "image_too_large", f"{name} says {size[0]} x {size[1]} pixels; {MAX_SIDE} a side, 2^28 in all are taken"
        )


def picture_size(read: Read, suffix: str = "") -> tuple[int, int] | None:
    """(width, height) of a picture of any kind that Blender opens; None for anything else.

    suffix: of the file's name; TGA has no other mark. Raises struct.error where the file ends within its header.
    """
    head = read(0, 64)
    for magic, layout, offset in FIXED:
        if head.startswith(magic):
            width, height = struct.unpack_from(layout, head, offset)
            return (abs(height), abs(width)) if magic in (b"DDS ", b"8BPS") else (abs(width), abs(height))
    if head[:2] == b"BM" and head[15:18] == bytes(3):  # the upper bytes of the length of its second header
        width, height = struct.unpack_from("<ii", head, 18)
        return abs(width), abs(height)
    if head.startswith(b"\xff\xd8\xff"):
        return _jpeg(read)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp(head)
    if head[:4] in (b"II*\0", b"MM\0*"):
        return _tiff(read, "<" if head[:2] == b"II" else ">")
    if head.startswith(b"\x76\x2f\x31\x01") and (
        found := re.search(rb"dataWindow\0box2i\0.{4}(.{16})", read(0, WINDOW), re.S)
    ):
        left, bottom, right, top = struct.unpack("<iiii", found[1])
        return abs(right - left) + 1, abs(top - bottom) + 1
    if head.startswith(b"#?") and (found := re.search(rb"\n[-+]Y (\d{1,9}) [-+]X (\d{1,9})", read(0, WINDOW))):
        return int(found[2]), int(found[1])
    if suffix.lower() == ".tga":
        width, height = struct.unpack_from("<HH", head, 12)
        return width, height
    return None


FIXED = (  # magic, layout and offset of two numbers
    (b"\x89PNG\r\n\x1a\n", ">II", 16),
    (b"GIF87a", "<HH", 6),
    (b"GIF89a", "<HH", 6),
    (b"DDS ", "<II", 12),
    (b"8BPS", ">II", 14),
    (b"\xabKTX 11\xbb", "<II", 36),
    (b"\xabKTX 20\xbb", "<II", 20),
    (b"\0\0\0\x0cjP  ", ">II", 48),
    (b"\xff\x4f\xff\x51", ">II", 8),
)


def _jpeg(read: Read) -> tuple[int, int] | None:
    at = 2
    for _ in range(1000):
        marker, kind, length = struct.unpack(">BBH", read(at, 4))
        if marker != 0xFF:
            return None
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", read(at + 5, 4))
            return width, height
        at += 1 if kind == 0xFF else 2 + length
    return None


def _webp(head: bytes) -> tuple[int, int] | None:
    if head[12:16] == b"VP8X":
        width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    elif head[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", head, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (number & 0x3FFF for number in struct.unpack_from("<HH", head, 26))
    return width, height


def _tiff(read: Read, order: str) -> tuple[int, int] | None:
    (at,) = struct.unpack(f"{order}I", read(4, 4))
    (count,) = struct.unpack(f"{order}H", read(at, 2))
    found = {}
    for entry in range(count):
        tag, kind = struct.unpack(f"{order}HH", read(at + 2 + 12 * entry, 4))
        if tag in (256, 257):  # width and height, of 2 or 4 bytes
            (found[tag],) = struct.unpack(
                f"{order}{'H' if kind == 3 else 'I'}", read(at + 10 + 12 * entry, 2 if kind == 3 else 4)
            )
    return (found[256], found[257]) if len(found) == 2 else None


# ---- meshes


def check_stl(read: Read, size: int, max_polygons: int) -> None:
    """Check a binary STL: 50 bytes for each declared triangle after a head of 84. A text STL starts with "solid".

    Raises Skip: truncated (a text that does not end with endsolid, too), too_many_polygons, empty.
    """
    head = read(0, 512)
    text = head.lstrip().lower()
    if text.startswith(b"solid") and b"facet" in text:
        last = read(max(0, size - LAST), LAST).rstrip(BLANK).lower()
        if not re.search(rb"endsolid[^\r\n]*$", last):
            raise Skip("truncated", f"a text of {size} bytes that ends without endsolid; fetch it again")
        return
    if text.startswith(b"solid") and b"endsolid" in text:
        raise Skip("empty", "a text STL without a facet")
    if size < 84:
        raise Skip("truncated", f"{size} bytes are no STL")
    (triangles,) = struct.unpack_from("<I", head, 80)
    is_text = head.startswith(b"solid") and all(byte >= 32 or byte in b"\t\r\n" for byte in head)
    if size < 84 + 50 * triangles and not is_text:
        raise Skip("truncated", f"{size} bytes, {triangles} triangles need {84 + 50 * triangles}")
    if triangles > max_polygons and size >= 84 + 50 * triangles:
        raise Skip("too_many_polygons", f"{triangles} triangles, the limit is {max_polygons}")


@dataclass(frozen=True)
class PlyElement:
    """An element of a PLY. properties: (type,) of each, or (type of its length, type) of a list."""

    rows: int
    properties: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def lists(self) -> bool:
        """True if any property is a list."""
        return any(len(types) > 1 for types in self.properties)


@dataclass(frozen=True)
class PlyHeader:
    """What a PLY says of itself. order: of its bytes, "<" or ">", "" for a text. start: byte of its first row."""

    order: str
    start: int
    elements: list[PlyElement]


def check_ply(read: Read, size: int, max_polygons: int) -> PlyHeader:
    """Check a PLY. Raises Skip: broken_header, truncated (more rows declared than fit), too_many_polygons."""
    head, found, _ = read(0, 2**20).partition(b"end_header")
    if not found:
        raise Skip("truncated", f"no end_header in the first {len(head)} bytes")
    lines = [line.split() for line in head.decode("latin-1").splitlines()]
    text = ["format", "ascii", "1.0"] in lines
    needed, rows, width = 0, 0, 0
    elements: list[PlyElement] = []
    for words in [*lines, ["element", "end", "0"]]:
        if words[:1] == ["element"] and len(words) == 3:
            needed += rows * max(width, 1)
            if not words[2].isdecimal() or len(words[2]) > 18:
                raise Skip("broken_header", f"{' '.join(words)[:80]}: no number that a count could have")
            rows, width = int(words[2]), 0
            elements.append(PlyElement(rows))
            if words[1] == "face" and rows > max_polygons:
                reason = "truncated" if rows > size else "too_many_polygons"
                raise Skip(reason, f"{rows} faces in {size} bytes; the limit is {max_polygons}")
        elif words[:1] == ["property"] and len(words) >= 3:
            kind = words[2] if words[1] == "list" else words[1]
            width += 2 if text else PLY_WIDTHS.get(kind, 4)  # of a list, its length: it may be empty
            if elements:
                elements[-1].properties.append(tuple(words[2:4] if words[1] == "list" else words[1:2]))
    start = len(head) + len(found)
    have = size - start  # with the end of the header's line; a text's last line may lack its own
    if needed > have:
        raise Skip("truncated", f"{have} bytes of data, the header's counts need {needed} at least")
    order = "" if text else ">" if ["format", "binary_big_endian", "1.0"] in lines else "<"
    newline = b"\n" if b"\n" in head else b"\r"
    return PlyHeader(order, start + len(read(start, WINDOW).partition(newline)[0]) + 1, elements[:-1])


def check_abc(read: Read, size: int) -> None:
    """Check an Alembic file (Ogawa): the writer ends by storing where its root is. Raises Skip: truncated, unsupported_format."""
    head = read(0, 16)
    if head.startswith(b"\x89HDF"):
        said = "an Alembic file of the older kind, HDF5, which Blender cannot read; `abcconvert -toOgawa IN OUT` makes the newer"
        raise Skip("unsupported_format", said)
    if head.startswith(b"Ogawa"):
        (root,) = struct.unpack("<Q", head[8:].ljust(8, b"\0"))
        children = read(root, 8) if 16 <= root <= size - 8 else b""
        if head[5:6] != b"\xff" or not children or struct.unpack("<Q", children)[0] > size // 8:
            raise Skip("truncated", f"{size} bytes, in which the root of the archive is not")


# ---- FBX


@dataclass(frozen=True)
class Property:
    """A string (S), bytes (R) or array of a binary FBX. node: its owner's name. says: declared bytes of the unpacked array."""

    node: bytes
    kind: bytes
    offset: int
    size: int
    says: int = 0


def check_fbx(read: Read, size: int) -> None:
    """Check an FBX. Raises Skip: decompression_bomb, image_too_large (embedded pictures), and what `fbx_properties` raises.

    What is malformed is left to Blender. Of arrays that are not small, what they unpack to is counted, not believed.
    """
    unpacked = 0
    for found in fbx_properties(read, size):
        unpacked += found.says
        if unpacked > MAX_UNPACKED:
            raise Skip("decompression_bomb", f"arrays that unpack to more than {MAX_UNPACKED} bytes")
        if found.says and found.size > SMALL_ARRAY and _unpacks_to_more(read, found):
            raise Skip("decompression_bomb", f"an array says {found.says} bytes and unpacks to more")
        if found.node == b"Content" and found.kind in b"RS":
            check_picture(part(read, found.offset, found.size), "an embedded picture")


def fbx_properties(read: Read, size: int) -> Iterator[Property]:
    """Yield strings and arrays of a binary FBX, in the file's order, as far as Blender's parser comes.

    Raises Skip: too_complex (nesting, number of nodes), truncated (a node of more properties than bytes).
    """
    if read(0, len(FBX_MAGIC)) == FBX_MAGIC:
        with contextlib.suppress(struct.error, OverflowError):  # the file ends within a node
            yield from _walk_fbx(read, size)


def _walk_fbx(read: Read, size: int) -> Iterator[Property]:
    order = ">" if read(len(FBX_MAGIC), 1) == b"\1" else "<"
    (version,) = struct.unpack(f"{order}I", read(23, 4))
    layout = struct.Struct(order + ("QQQB" if version >= 7500 else "IIIB"))
    at, ends = 27, [size]
    for _ in range(MAX_NODES):
        end, properties, _, letters = layout.unpack(read(at, layout.size))
        name = read(at + layout.size, letters)
        at += layout.size + letters
        if end == 0:  # an end mark, unless it stands where none is due: then Blender reads on
            if len(ends) == 1 or at > ends[-1]:
                return
            if at == ends[-1]:
                ends.pop()
            continue
        if size < 2 * properties < 2**40:  # more could not even be reserved, and Blender says so at once
            raise Skip("truncated", f"a node of {properties} properties in {size} bytes")
        if end > size or end < at or properties >= 2**39:
            return
        for _ in range(properties):
            found = _fbx_property(read, at, name, order)
            at = found.offset + found.size
            if at > size:
                return
            if found.kind not in FBX_WIDTHS:
                yield found
        if at > end:
            return
        if at < end:
            ends.append(end)
        if len(ends) > MAX_DEPTH:
            raise Skip("too_complex", f"nodes within nodes, deeper than {MAX_DEPTH}")
    raise Skip("too_complex", f"more than {MAX_NODES} nodes")


def _fbx_property(read: Read, at: int, node: bytes, order: str) -> Property:
    """Parse the property at an offset of the file. order: of its bytes, "<" or ">". Raises struct.error for an unknown kind."""
    kind = read(at, 1)
    if kind in FBX_WIDTHS:
        return Property(node, kind, at + 1, FBX_WIDTHS[kind])
    if kind in (b"S", b"R"):
        return Property(node, kind, at + 5, *struct.unpack(f"{order}I", read(at + 1, 4)))
    if kind not in FBX_ARRAYS:
        raise struct.error(f"no property is a {kind!r}")
    length, encoding, packed = struct.unpack(f"{order}III", read(at + 1, 12))
    return Property(node, kind, at + 13, packed, length * FBX_ARRAYS[kind] if encoding == 1 else 0)


def _unpacks_to_more(read: Read, found: Property) -> bool:
    """True if an array, unpacked piece by piece, becomes longer than it declares."""
    unpack, made = zlib.decompressobj(), 0
    end = found.offset + found.size
    try:
        for at in range(found.offset, end, WINDOW):
            pending = read(at, min(WINDOW, end - at))
            while pending and made <= found.says:
                made += len(unpack.decompress(pending, 2**20))
                pending = unpack.unconsumed_tail
            if made > found.says or unpack.eof:
                break
    except zlib.error:  # Blender will say so
        return False
    return made > found.says


# ---- USDZ


@dataclass(frozen=True)
class Member:
    """A file within an archive. name: as written. offset, size: of its bytes in the archive."""

    name: str
    offset: int
    size: int


def usdz_members(read: Read, size: int) -> Iterator[Member]:
    """Yield the members in the order in which USD finds them, by their local headers. Nothing is unpacked.

    Raises Skip: bad_archive (compressed, encrypted or cut off, which USDZ forbids; names that leave the archive),
    archive_bomb (what they say to unpack to).
    """
    at = unpacked = 0
    for _ in range(MAX_MEMBERS):
        head = read(at, 30)
        if head[:4] != b"PK\3\4":
            break
        if len(head) < 30:
            raise Skip("bad_archive", "it ends within a member's header")
        _, _, flags, method, _, _, packed, says, letters, extra = struct.unpack("<IHHHIIIIHH", head)
        name = read(at + 30, letters).decode("utf-8", "replace")
        offset = at + 30 + letters + extra
        unpacked += says
        if unpacked > MAX_UNPACKED or says > 100 * packed + 2**20:
            raise Skip("archive_bomb", f"{name[:200]!r} says to unpack to {says} bytes")
        if method or flags & 9 or packed != says:
            raise Skip("bad_archive", f"{name[:200]!r} is compressed or encrypted; members of a USDZ are stored")
        if offset + packed > size:
            raise Skip("bad_archive", f"{name[:200]!r} ends beyond the archive")
        parts = name.replace("\\", "/").split("/")
        if not name or ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in name:
            raise Skip("bad_archive", f"a member is called {name[:200]!r}, which leaves the archive")
        yield Member(name, offset, packed)
        at = offset + packed
    else:
        raise Skip("too_complex", f"more than {MAX_MEMBERS} members")
    if at == 0 or read(at, 4) not in (b"PK\1\2", b"PK\5\6"):
        raise Skip("bad_archive", f"no member and no directory at byte {at}")
