"""What parts of the page share: text that can only be read, figures, tables with bars."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

DETAIL_CHARS = 4000  # of a log tail, from its end
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # terminal colours and the like


def text(value: object) -> str:
    """Anything -> HTML text that can only be read, also inside an attribute."""
    return html.escape(CONTROL.sub("", str(value)))


def cards(pairs: Iterable[tuple[str, str, str]]) -> str:
    """(label, figure, small print) -> the inside of a list of figures."""
    return "".join(
        f"<div class=card><dt>{text(label)}</dt><dd>{text(figure)}<small>{text(note)}</small></dd></div>"
        for label, figure, note in pairs
    )


def bars(rows: dict[str, int], below: dict[str, str], head: str) -> str:
    """name -> count as a table with bars; `below` is HTML under a row."""
    most, total = max(rows.values()), sum(rows.values())
    lines = []
    for name, count in rows.items():
        lines.append(
            f"<tr><th scope=row>{text(name) or '<i>not recorded</i>'}</th><td class=number>{count:,}</td>"
            f"<td class=share><span class=bar style='width:{count / most * 64:.1f}%'></span> {count / total:.1%}</td></tr>"
        )
        if name in below:
            lines.append(f"<tr class=below><td colspan=3>{below[name]}</td></tr>")
    titles = f"<tr><th>{head}</th><th class=number>objects</th><th>share</th></tr>"
    return f"<table><thead>{titles}</thead><tbody>{''.join(lines)}</tbody></table>"


def failures(reasons: dict[str, int], examples: dict[str, list[tuple[str, str, int]]]) -> str:
    """A section. reasons: reason -> objects. examples: reason -> (uid, detail, tries) of some."""
    if not reasons:
        return "<section id=failures><h2>Failures</h2><p>No failures.</p></section>"
    below = {}
    for reason, some in examples.items():
        items = []
        for uid, detail, tries in some:
            tail = CONTROL.sub("", detail)[-DETAIL_CHARS:].strip()
            again = f" <small>{tries} tries</small>" if tries > 1 else ""
            inner = f"<details><summary>detail</summary><pre>{text(tail)}</pre></details>" if tail else ""
            items.append(f"<li><code>{text(uid)}</code>{again}{inner}</li>")
        title = f"{len(items)} of {reasons[reason]:,}" if reasons[reason] > len(items) else f"{len(items)}"
        below[reason] = (
            f"<details><summary>examples: {title}</summary><ul class=examples>{''.join(items)}</ul></details>"
        )
    return f"<section id=failures><h2>Failures by reason</h2>{bars(reasons, below, 'reason')}</section>"
