"""Paths, durations, sizes, counts, strings of strangers and files that are no pictures, formatted for display."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

CONTROL = re.compile(  # sequences that terminals obey, whole where they end; then what is left of control characters
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
DIRECTIONS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # marks that turn the direction of what follows
FORMULA = tuple("=+-@＝＋－＠")  # what makes a spreadsheet compute a cell

PICTURES = "PNG, JPEG, WebP, TIFF and AVIF are read"
KINDS = {  # first bytes, or those from the fifth on -> pictures that are not read
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"ftyphe": "HEIC",
    b"ftypmif": "HEIC",
    b"JXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"jP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"#?RADIANCE": "HDR",
    b"8BPS": "Photoshop",
    b"P5": "PGM",
    b"P6": "PPM",
}
BROKEN = {b"\x89PNG": "PNG", b"\xff\xd8": "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF"}  # by their first bytes


def plain(text: str) -> str:
    """`text` without what a terminal would obey: escape sequences, control characters and turns of direction; lines stay."""
    return DIRECTIONS.sub("", CONTROL.sub("", text))


def cell(text: object) -> str:
    """`text` in one cell of a CSV file: plain, and nothing that a spreadsheet would compute (an apostrophe stands before it)."""
    found = plain(str(text))
    return f"'{found}" if found.lstrip().startswith(FORMULA) else found


class PlainStream:
    """Text stream that writes everything `plain`. rich, whose sequences are our own, writes to `stream` itself."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        """Write to the stream. Returns the number of characters of `text`."""
        self.stream.write(plain(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def plain_output() -> Iterator[None]:
    """Make everything that is printed in the block `plain`: uids, licenses and reasons are strings of strangers."""
    out, errors = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = PlainStream(out), PlainStream(errors)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, errors


def shown(path: Path) -> str:
    """`path` relative to the current folder where it lies below, else unchanged."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def quoted(path: Path) -> str:
    """`path` as `shown`, as a shell takes it: for commands that are suggested."""
    return shlex.quote(shown(path))


def duration(seconds: float | None) -> str:
    """Seconds -> 1:02:03, or ? when unknown."""
    if seconds is None:
        return "?"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"


def duration_words(seconds: float) -> str:
    """Seconds -> 3.1 s, 14 min, 2.5 h."""
    for unit, unit_s in (("s", 1.0), ("min", 60.0)):
        if seconds < 120 * unit_s:
            return f"{round(seconds / unit_s, 1):.3g} {unit}"
    return f"{seconds / 3600:.3g} h"


def size(count: float) -> str:
    """Bytes -> 12.3 MB (powers of 1000, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def reasons_text(reasons: dict[str, int]) -> str:
    """{"empty": 2, "timeout": 1} -> "empty 2, timeout 1"."""
    return ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1]))


def counted(count: int, noun: str) -> str:
    """1, "view" -> 1 view; 2, "view" -> 2 views."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def last_line(detail: str) -> str:
    """Last line of what is known of a failure, which says most; "" of nothing."""
    return detail.strip().splitlines()[-1] if detail.strip() else ""


def no_picture(data: bytes) -> str:
    """Say what a file is that cannot be read as a picture, by its first bytes, and what helps."""
    if not data:
        return "an empty file; copy it again"
    if data.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS in place of the picture; `git lfs pull` brings it"
    if broken := [kind for start, kind in BROKEN.items() if data.startswith(start)]:
        return f"a broken {broken[0]} file of {len(data)} bytes; copy it again"
    if known := [kind for start, kind in KINDS.items() if data.startswith(start) or data[4:].startswith(start)]:
        return f"a {known[0]} picture, and {PICTURES}; convert it to PNG"
    return f"no picture (it begins with {data[:8]!r}); {PICTURES}"
