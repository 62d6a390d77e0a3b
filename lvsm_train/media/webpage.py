"""Findings as one page of HTML: tables, pictures, films. It holds all that it shows, and asks no network for anything."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TypeAlias

from lvsm_train.media import plots
from lvsm_train.media.plots import Plot
from pipeline.core.disk import replacing

FORMATS = {b"\x89PNG": "image/png", b"GIF8": "image/gif"}  # by how they start; an MP4 says so behind its first number
STYLE = """
:root {
  color-scheme: light dark;
  --back: #f7f8f9; --card: #fff; --text: #1c2127; --quiet: #58616c; --edge: #dde1e6; --accent: #2563a8; --warn: #b4531a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #14171a; --card: #1c2024; --text: #e5e8eb; --quiet: #a3acb6; --edge: #323940; --accent: #7db3ec; --warn: #e9985f;
  }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
main { max-width: 1200px; margin: 0 auto; padding: 28px 24px 64px }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 8px; overflow-wrap: anywhere }
h2 { font-size: 19px; margin: 0 0 4px }
section { margin-top: 44px }
p { margin: 0 0 10px; max-width: 76ch; white-space: pre-line; overflow-wrap: anywhere }
figure { margin: 12px 0 18px }
figcaption { color: var(--quiet); font-size: 13.5px; margin-top: 4px; max-width: 76ch; overflow-wrap: anywhere }
.scroll { overflow-x: auto; max-width: 100% }
img, video { display: block; max-width: 100%; height: auto; border: 1px solid var(--edge); border-radius: 6px; background: #fff }
img { image-rendering: pixelated }
table { border-collapse: collapse; margin: 10px 0 14px } thead th { color: var(--quiet); font-size: 13px; font-weight: 400 }
th, td { padding: 5px 18px 5px 0; vertical-align: baseline; text-align: right; white-space: nowrap }
table { font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left; font-weight: 500 } tbody tr > * { border-top: 1px solid var(--edge) }
svg { display: block; width: 100%; min-width: 460px; max-width: 640px; padding: 8px }
svg { background: var(--card); border: 1px solid var(--edge); border-radius: 8px }
svg text { font-size: 12px; fill: var(--quiet) } svg .end { text-anchor: end } svg .middle { text-anchor: middle }
svg .grid { stroke: var(--edge) } svg .series0 { --ink: var(--accent) } svg .series1 { --ink: var(--warn) }
svg .series2, svg .series3 { --ink: var(--quiet) } svg polyline { fill: none; stroke: var(--ink); stroke-width: 1.8 }
svg circle, svg text.key { fill: var(--ink) }
svg .series1 polyline { stroke-dasharray: 7 4 } svg .series2 polyline { stroke-dasharray: 2 4 }
@media (max-width: 760px) { main { padding: 18px 14px 48px } section { margin-top: 34px } }
"""


@dataclass(frozen=True)
class Figure:
    """A PNG, GIF or MP4: a file, or its bytes. Films play by themselves, without sound, again and again."""

    source: Path | bytes
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Cells are shown as they are; the first of a row says what it is about, the others are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


Block: TypeAlias = "Figure | Table | Plot"


@dataclass(frozen=True)
class Section:
    """A heading, what is to be said, then the blocks in their order. Line breaks in the text stay."""

    title: str
    text: str = ""
    blocks: Sequence[Block] = field(default_factory=tuple)


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Writes one file of HTML that needs no other, complete when it is there.

    All text is escaped, and a policy in the page forbids scripts and requests. Raises ValueError for a figure that is no PNG,
    GIF or MP4, and for a plot without points.
    """
    body = "".join(_section(section) for section in sections)
    policy = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
    page = (
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        "<meta name=viewport content='width=device-width, initial-scale=1'>\n"
        f'<meta http-equiv=Content-Security-Policy content="{policy}">\n<link rel=icon href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(lead)}</p>\n{body}</main>\n</body>\n</html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _section(section: Section) -> str:
    text = f"<p>{escape(section.text)}</p>\n" if section.text else ""
    blocks = "".join(_block(block) for block in section.blocks)
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{text}{blocks}</section>\n"


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return _table(block)
    return _figure(plots.svg(block) if isinstance(block, Plot) else _media(block), block.caption)


def _figure(content: str, caption: str) -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><div class=scroll>{content}</div>{below}</figure>\n"


def _media(figure: Figure) -> str:
    data = figure.source if isinstance(figure.source, bytes) else figure.source.read_bytes()
    kind = "video/mp4" if data[4:8] == b"ftyp" else FORMATS.get(data[:4])
    if kind is None:
        what = "bytes" if isinstance(figure.source, bytes) else figure.source
        raise ValueError(f"{what}: a figure is a PNG, a GIF or an MP4")
    source = f'src="data:{kind};base64,{base64.b64encode(data).decode()}"'
    label = escape(figure.caption)
    if kind == "video/mp4":
        return f'<video {source} controls loop muted autoplay playsinline aria-label="{label}"></video>'
    return f'<img {source} alt="{label}">'


def _table(table: Table) -> str:
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in table.header)
    rows = "".join(
        "<tr>" + "".join(_cell(cell, first=not column) for column, cell in enumerate(row)) + "</tr>\n"
        for row in table.rows
    )
    return f"<div class=scroll><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n"


def _cell(cell: object, first: bool) -> str:
    text = escape(str(cell))
    return f"<th scope=row>{text}</th>" if first else f"<td>{text}</td>"
