"""Findings as one self-contained page of HTML: tables, pictures, films, plots. The page loads nothing from the network."""

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
}  # by the first bytes of a file; an MP4 has its type from byte 4 on


@dataclass(frozen=True)
class Figure:
    """PNG, GIF or MP4: a file, or its bytes. Films play by themselves, muted, in a loop."""

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
    """Table whose cells are shown as given; the first cell of a row is its label, the others are numbers."""

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
