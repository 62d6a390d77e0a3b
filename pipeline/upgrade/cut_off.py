"""Tells texts of 3D formats that end before their end, as broken downloads do: readers show what is there, half an object."""

from __future__ import annotations

import re

from pipeline.core.errors import Skip
from pipeline.formats.headers import BLANK, PLY_WIDTHS, PlyElement, PlyHeader, Read

CHUNK = 2**22
TAIL = 2**16  # bytes at the end of a text in which its last statements are
ZEROS = bytes(16)  # of room that a download has reserved; a writer of C may leave one
MANY, SMALL = 50, 2**23  # points; bytes of an OBJ that ends with a line, beyond which its points are not looked through
MAX_ROWS = 2 * 10**6  # of a binary PLY that are gone through
FREE_FORM = re.compile(rb"(?m)^[ \t]*(cstype|curv2?|surf)\b")
QUOTED = re.compile(rb'"[^"\n]*"|^[ \t]*;[^\n]*', re.M)
WORDS = (b"usemtl", b"mtllib")
NUMBERS = {b"v": 3, b"vn": 3, b"vt": 1}  # the fewest that a statement has


def check_obj(read: Read, size: int) -> None:
    """Raise Skip("truncated") for an OBJ that shows that it is cut off.

    One that ends within a line ends within a statement, or leaves points without a face; others, which may end where a line
    does, leave all the last points without one.
    """
    if said := _obj(read, size):
        raise Skip("truncated", f"{said}; fetch it again")


def _obj(read: Read, size: int) -> str:
    """Sign that an OBJ is cut off, "" if there is none."""
    last = read(max(0, size - TAIL), TAIL)
    if last.endswith(ZEROS):
        return "it ends in zeros"
    lines = last.strip(BLANK).splitlines()
    end = last.split(b"\n")[-1].strip(BLANK)  # a remark says nothing: MeshLab's last line is one, without an end
    is_open = bool(lines) and not last.endswith((b"\n", b"\r")) and end != b"" and not end.startswith(b"#")
    if is_open and not _is_whole(lines):
        return f"it ends within a statement, {lines[-1][:40].decode('latin-1')!r}"
    if not is_open and size > SMALL:
        return ""
    points, used = _points(read(0, size).replace(b"\\\r\n", b" ").replace(b"\\\n", b" "))
    if not used or min(used) < 1 or max(used) > points:
        return ""
    free, tail = points - len(used), points - max(used)
    if is_open and free > 0.01 * points:
        return f"it ends without the end of a line, and {free} of its {points} points are in no face"
    if tail >= MANY and tail > 0.1 * points:
        return f"its last {tail} of {points} points are in no face"
    return ""


def _is_whole(lines: list[bytes]) -> bool:
    """True if the last line of an OBJ may be a whole statement, by what it is itself and what others of its kind are."""
    words = lines[-1].split()
    if words[0] in NUMBERS:
        others = [other for other in map(bytes.split, lines[:-1]) if other[:1] == words[:1]]
        decimals = {len(other[-1].partition(b".")[2]) for other in others}
        enough = len(words) > NUMBERS[words[0]] and len(words) >= len(others[-1] if others else ())
        is_shorter = len(decimals) == 1 and len(words[-1].partition(b".")[2]) < decimals.pop()
        return enough and not is_shorter and not words[-1].endswith((b"-", b"+", b"e", b"E"))
    if words[0] == b"f":
        return len(words) > 3 and len({re.sub(rb"\d+", b"0", word.replace(b"-", b"")) for word in words[1:]}) == 1
    return not any(word.startswith(words[0]) and word != words[0] for word in WORDS)


def _points(data: bytes) -> tuple[int, set[int]]:
    """(number of points, those that faces, lines and points name) of an OBJ; nothing named where it has free forms."""
    if FREE_FORM.search(data):
        return 0, set()
    points = len(re.findall(rb"(?m)^[ \t]*v[ \t]", data))
    named = b" ".join(re.findall(rb"(?m)^[ \t]*[flp][ \t]+([^\r\n]*)", data))
    words = re.sub(rb"/[^ \t]*", b"", named).split()
    return points, {int(word) for word in words if re.fullmatch(rb"-?\d{1,12}", word)}


def check_ply(read: Read, size: int, head: PlyHeader) -> None:
    """Raise Skip("truncated") for a PLY with fewer rows than its header says, or with a part of the last one."""
    elements = [element for element in head.elements if element.rows and element.properties]
    said = (_ply_bytes if head.order else _ply_text)(read, size, head, elements) if elements else ""
    if said:
        raise Skip("truncated", f"{said}; fetch it again")


def _ply_text(read: Read, size: int, head: PlyHeader, elements: list[PlyElement]) -> str:
    last = read(max(head.start, size - TAIL), min(TAIL, size - head.start))
    end, rows = size - len(last) + len(last.rstrip(BLANK)), sum(element.rows for element in elements)
    lines = 1 + sum(read(at, min(CHUNK, end - at)).count(b"\n") for at in range(head.start, end, CHUNK))
    row, first = read(head.start, TAIL).partition(b"\n")[0].split(), elements[0]
    if lines == 1 or not _is_row(row, first) or (not first.lists and len(row) > len(first.properties)):
        return ""  # a header that is not meant so; several rows on a line
    if lines < rows:
        text = read(head.start, end - head.start) if last.endswith((b"\n", b"\r")) and size <= SMALL else b""
        return "" if text and _names_all_points(text.splitlines(), elements) else f"{lines} rows of {rows}"
    whole = lines > rows or _is_row(last.rstrip(BLANK).rpartition(b"\n")[2].split(), elements[-1])
    return "" if whole else "it ends within its last row"


def _names_all_points(lines: list[bytes], elements: list[PlyElement]) -> bool:
    """True if the faces that are there have all points: then it is the number in the header that is wrong."""
    first = elements[0].rows
    rows = [line.split() for line in lines[first:]]
    named = {word for row in rows if row and row[0].isdigit() for word in row[1 : 1 + int(row[0])]}
    return len(elements) == 2 and 0 < first <= len(named)


def _is_row(words: list[bytes], element: PlyElement) -> bool:
    """True if a row of a text PLY has a word for each property, and for what lists say that they hold."""
    at = 0
    for types in element.properties:
        length = words[at : at + 1]
        at += 1 + (int(length[0]) if len(types) > 1 and length and length[0].isdigit() else 0)
    return at <= len(words)


def _ply_bytes(read: Read, size: int, head: PlyHeader, elements: list[PlyElement]) -> str:
    at = head.start
    for element in elements:
        ends = _row_end(read, at, head.order, element)
        # where the element ends if all lists are as long as those of the first row
        alike = at + element.rows * (ends - at)
        if element.lists and (alike > size or element is not elements[-1]):
            if ends > size or element.rows > MAX_ROWS:  # what a part of a row says is not believed
                return ""
            for _ in range(element.rows):
                at = _row_end(read, at, head.order, element)
                if at > size:
                    break
            alike = at
        if alike > size:
            return f"{size} bytes end within the rows of an element"
        at = alike
    return ""


def _row_end(read: Read, at: int, order: str, element: PlyElement) -> int:
    """First byte after a row of a binary PLY."""
    for types in element.properties:
        width = PLY_WIDTHS.get(types[0], 4)
        if len(types) > 1:
            length = int.from_bytes(read(at, width), "little" if order == "<" else "big")
            at += length * PLY_WIDTHS.get(types[1], 4)
        at += width
    return at


def check_fbx(read: Read, size: int) -> None:
    """Raise Skip("truncated") for an FBX of text in which a bracket is not closed."""
    text = QUOTED.sub(b"", read(0, size))
    if text.count(b"{") > text.count(b"}"):
        raise Skip("truncated", f"{text.count(b'{') - text.count(b'}')} brackets are open at its end; fetch it again")
