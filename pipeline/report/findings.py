"""Findings as one page of HTML: tables, pictures, films, plots. It holds all that it shows, and asks no network for anything."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from pipeline.report import markup
from pipeline.report.charts import Plot, svg

FORMATS = {
    b"\x89PNG": "image/png",
    b"GIF8": "image/gif",
}  # by their first bytes; an MP4 names itself after its first number


@dataclass(frozen=True)
class Figure:
    """A PNG, GIF or MP4: a file, or its bytes. Films play by themselves, without sound, again and again."""

    source: Path | bytes
    caption: str = ""

    def address(self) -> str:
        """Data URI of the file. Raises ValueError if it is no PNG, GIF or MP4."""
        data = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        kind = "video/mp4" if data[4:8] == b"ftyp" else FORMATS.get(data[:4])
        if kind is None:
            what = "bytes" if isinstance(self.source, bytes) else self.source
            raise ValueError(f"{what}: a figure is a PNG, a GIF or an MP4")
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class Table:
    """Cells are shown as they are; the first of a row says what it is about, the others are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


Block: TypeAlias = "Figure | Table | Plot"


@dataclass(frozen=True)
class Section:
    """Heading, text (its line breaks stay) and blocks, in this order."""

    title: str
    text: str = ""
    blocks: Sequence[Block] = field(default_factory=tuple)


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write one file of HTML that needs no other, complete when it is there. Returns its path.

    All text is escaped, and a policy in the page forbids scripts and requests. Raises ValueError for a figure that is no PNG,
    GIF or MP4, and for a plot without points; UserError where the file cannot be written.
    """
    return markup.write(path, markup.render("findings.html", title=title, lead=lead, sections=sections, svg=svg))
