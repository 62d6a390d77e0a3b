"""Credits that a run owes, and what the licenses of its objects mean for the whole set. Needs the ledger alone, no shards."""

from __future__ import annotations

import contextlib
import csv
import html
import json
import os
import re
import shlex
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pipeline.config.source_table import SOURCES
from pipeline.core.disk import replacing
from pipeline.core.errors import UserError
from pipeline.core.licenses import FAMILIES, UNKNOWN, Facts, details, family, normalise, tally
from pipeline.core.records import Item
from pipeline.core.text import cell, reasons_text, shown
from pipeline.storage.ledger import Ledger
from pipeline.storage.shards import is_web

COLUMNS = ("uid", "source", "title", "author", "license", "license_url", "page", "url", "sha256", "shard")
SHOWN = 30  # most licenses listed by name; a source may have thousands of texts of its own
SHOWN_IN_LINE = 4
CHANGES = {  # what was done to the originals, by the kind of their source
    "object": "3D files were centred, scaled to one size, lit anew and rendered to images.",
    "posed": "Pictures that existed already, with their cameras, were freed of lens distortion, put on white where they were "
    "transparent, cropped, made smaller and encoded as JPEG; nothing was rendered.",
    "video": "Frames were taken out of videos, cropped, made smaller and encoded as JPEG; nothing was rendered.",
}
HUB = set(  # license ids of the Hugging Face Hub that our license names can map to
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 cc cc-by-2.0 "
    "cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 "
    "cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 ecl-2.0 epl-1.0 "
    "epl-2.0 eupl-1.1 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by "
    "ofl-1.1 osl-3.0 pddl postgresql unknown unlicense wtfpl zlib".split()
)


@dataclass(frozen=True)
class Account:
    """Objects of a run by license, from one snapshot. Licenses and sources: name -> objects, most frequent first.

    unnamed: delivered objects whose license asks to name an author and whose author is not on record. table: the file with
    a line per object, if one was written.
    """

    run: Path
    delivered: dict[str, int]
    failed: dict[str, int]
    sources: dict[str, int]
    unnamed: int
    table: Path | None = None

    @property
    def total(self) -> int:
        """Number of delivered objects."""
        return sum(self.delivered.values())

    def where(self, wanted: Callable[[Facts], bool]) -> dict[str, int]:
        """License -> delivered objects, of the licenses whose facts satisfy `wanted`; those of family "unknown" are left out."""
        known = ((name, count) for name, count in self.delivered.items() if family(name) != UNKNOWN)
        return {name: count for name, count in known if wanted(FAMILIES[family(name)])}

    def unknown(self) -> dict[str, int]:
        """License -> delivered objects, of the licenses of family "unknown"."""
        return {name: count for name, count in self.delivered.items() if family(name) == UNKNOWN}


def account(run: Path, table: Path | None = None) -> Account:
    """Read a run's ledger, also while the run goes on; write the table of its delivered objects to `table`, if given.

    Raises UserError: there is no run, the table cannot be written.
    """
    with Ledger(run / "ledger.sqlite", readonly=True) as ledger:
        ledger.snapshot()
        groups = ledger.owed()
        if table is not None:
            with _replacing(table, "--attribution") as handle:
                _write_table(handle, ledger.works())
    by_license: dict[str, Counter[str]] = {"delivered": Counter(), "failed": Counter()}
    sources: Counter[str] = Counter()
    unnamed = 0
    for group in groups:
        by_license[group.state][group.license] += group.count
        if group.state == "delivered":
            sources[group.source or "not recorded"] += group.count
            unnamed += group.count if not group.named and FAMILIES[family(group.license)].attribution else 0
    delivered, failed = tally(by_license["delivered"]), tally(by_license["failed"])
    return Account(run, delivered, failed, dict(sources.most_common()), unnamed, table)


def _write_table(handle: TextIO, works: Iterator[tuple[Item, str]]) -> None:
    """Write the table one row at a time: ten million objects do not fit into memory."""
    lines = csv.writer(handle)
    lines.writerow(COLUMNS)
    for item, shard in works:
        title, author, page = (_line(item.credit.get(name)) for name in ("title", "author", "page"))
        url = _line(item.url) if is_web(item.url) else ""
        name, address = normalise(item.license), details(item.license)[1]
        cells = (item.uid, item.source, title, author, name, address, page, url, item.sha256, shard)
        lines.writerow(map(cell, cells))


def _line(value: object) -> str:
    """Foreign text on one line: spaces for control characters and line ends."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", str(value or "")).split())


# ---- what the licenses mean, for people and machines


def findings(found: Account) -> dict[str, str]:
    """Topic -> what the licenses of the delivered objects mean for the set as a whole, in one sentence."""
    unclear = [f"not known for {_objects(found.unknown())}"] if found.unknown() else []
    asked = found.where(lambda facts: facts.attribution)
    alike = found.where(lambda facts: facts.share_alike)
    unnamed = f"; of {found.unnamed:,} no author is on record" if found.unnamed else ""
    said = {
        "passing on": _passing_on(found),
        "commercial use": _commercial(found),
        "share alike": "; ".join(
            [f"asked for by {_objects(alike)}: images of them go out under the same license"][: len(alike)] + unclear
        )
        or "not asked for",
        "attribution": "; ".join([f"needed for {_objects(asked)}{unnamed}"][: len(asked)] + unclear) or "not needed",
    }
    if unknown := found.unknown():
        said["unknown"] = f"{_objects(unknown)}; nothing is allowed as long as nothing is known: ask, or leave them out"
    return said


def _passing_on(found: Account) -> str:
    forbidden = found.where(lambda facts: not facts.derivatives)
    if forbidden:
        return f"not as a whole: forbidden by {_objects(forbidden)}"
    if unknown := found.unknown():
        return f"not as a whole: not known for {_objects(unknown)}"
    return "allowed by every license"


def _commercial(found: Account) -> str:
    forbidden = found.where(lambda facts: not facts.commercial)
    unknown = found.unknown()
    reasons = [f"forbidden by {_objects(forbidden)}"] if forbidden else []
    reasons += [f"not known for {_objects(unknown)}"] if unknown else []
    return f"not allowed: {'; '.join(reasons)}" if reasons else "allowed by every license"


def _objects(licenses: dict[str, int]) -> str:
    """{"CC-BY-4.0": 12} -> 12 objects (CC-BY-4.0 12)."""
    count = sum(licenses.values())
    first = dict(list(licenses.items())[:SHOWN_IN_LINE])
    rest = ", ..." if len(licenses) > len(first) else ""
    return f"{count:,} object{'' if count == 1 else 's'} ({reasons_text(first)}{rest})"


def families(licenses: dict[str, int]) -> dict[str, int]:
    """Counts by license -> counts by family, in the order of FAMILIES."""
    counts: Counter[str] = Counter()
    for name, count in licenses.items():
        counts[family(name)] += count
    return {name: counts[name] for name in FAMILIES if counts[name]}


def as_dict(found: Account) -> dict[str, Any]:
    """Account and findings for machines, JSON-able."""
    return {
        "run": str(found.run),
        "delivered": found.total,
        "licenses": found.delivered,
        "families": families(found.delivered),
        "failed": {"licenses": found.failed, "families": families(found.failed)},
        "sources": found.sources,
        "derivatives_allowed": not (found.where(lambda facts: not facts.derivatives) or found.unknown()),
        "commercial_use_allowed": not (found.where(lambda facts: not facts.commercial) or found.unknown()),
        "share_alike": sum(found.where(lambda facts: facts.share_alike).values()),
        "attribution_needed": sum(found.where(lambda facts: facts.attribution).values()),
        "author_not_on_record": found.unnamed,
        "findings": findings(found),
        "hub_license": hub_license(found.delivered),
        "attribution": str(found.table) if found.table else None,
    }


def as_text(found: Account) -> str:
    """Account and findings as text for people."""
    lines = [f"{shown(found.run)}: {found.total:,} objects delivered, {sum(found.failed.values()):,} failed"]
    for title, counts in (("delivered", found.delivered), ("failed", found.failed)):
        if counts:
            by_family = ", ".join(f"{name} {count:,}" for name, count in families(counts).items())
            lines.append(f"{title} by family: {by_family}")
            lines += [f"  {count:>9,}  {name}  ({family(name)})" for name, count in list(counts.items())[:SHOWN]]
            lines += [f"  ... and {len(counts) - SHOWN:,} more licenses"] if len(counts) > SHOWN else []
    if found.total:
        lines += [f"{topic}: {said}" for topic, said in findings(found).items()]
    return "\n".join([*lines, *([f"attribution table: {shown(found.table)}"] if found.table else [])])


# ---- the paragraph for a dataset's card


def write_card(found: Account, path: Path) -> str:
    """Write the card's paragraph to `path` and return it. Raises UserError: nothing delivered, or no such place."""
    if not found.total:
        raise UserError(
            f"{shown(found.run)} has delivered nothing yet: there is nothing to say in a card", "render first"
        )
    if found.table and found.table.resolve() == path.resolve():
        raise UserError(f"--card and --attribution both name {path}", "give two files")
    text = card(found, path.parent)
    with _replacing(path, "--card") as handle:
        handle.write(text)
    return text


def card(found: Account, folder: Path | None = None) -> str:
    """Markdown for a dataset card, front matter included. folder: where the card will lie, for its relative link to the table."""
    table = _table_link(found, folder)
    return "\n".join(["---", *license_lines(found, table), "---", "", *license_section(found, table)])


def license_section(found: Account, table: str = "") -> list[str]:
    """Lines of a card's section on licenses. table: relative path from the card to the table of credits, if there is one."""
    licenses = list(found.delivered.items())
    rows = [f"| {_linked(name)} | {count:,} | {FAMILIES[family(name)].says} |" for name, count in licenses[:SHOWN]]
    if more := licenses[SHOWN:]:
        rows.append(f"| {len(more):,} more, see the table | {sum(count for _, count in more):,} | |")
    said = [f"- {topic.capitalize()}: {escaped(text)}." for topic, text in findings(found).items()]
    if table:
        whom = f"[{escaped(Path(table).name)}]({urllib.parse.quote(table)}) names title, author, license and page of each object."
    else:
        command = f"lvsm-data licenses {shlex.quote(shown(found.run))} --attribution attribution.csv"
        whom = f"Title, author, license and page of each object: `{command.replace('`', '')}` writes the table."
    return [
        "## Licenses and attribution",
        "",
        f"The images show {found.total:,} {nouns(found)}. Each keeps the license that its source states; it holds for the "
        "images too, and stands in the `license` column of every row.",
        "",
        *("| license | objects | what it asks |", "|---|---|---|", *rows, ""),
        *("| source | objects |", "|---|---|", *(f"| {escaped(k)} | {v:,} |" for k, v in found.sources.items()), ""),
        *(*said, ""),
        f"{whom} Keep it with the images wherever they go.",
        "",
        f"Changes to the originals: {' '.join(CHANGES[kind] for kind in _kinds(found))} Their authors do not endorse this.",
        "",
    ]


def _kinds(found: Account) -> list[str]:
    """Kinds of source that the set came from, in the order of CHANGES; sources that are not recorded were rendered."""
    kinds = {SOURCES[name].kind if name in SOURCES else "object" for name in found.sources}
    return [kind for kind in CHANGES if kind in kinds]


def nouns(found: Account) -> str:
    """Noun for what the set holds."""
    kinds = _kinds(found)
    return (
        {"object": "objects", "posed": "scenes", "video": "clips"}[kinds[0]]
        if len(kinds) == 1
        else "objects and scenes"
    )


def hub_license(licenses: dict[str, int]) -> str:
    """License id of the Hugging Face Hub for a set: that of the only license of all objects, else `other`."""
    if len(licenses) != 1:
        return "other"
    name = next(iter(licenses))
    whole = re.sub(r"-(only|or-later)$", "", name.lower())
    without_version = re.sub(r"-[\d.]+$", "", whole)
    if family(name) == UNKNOWN:
        return UNKNOWN
    wider = "cc" if name.startswith("CC-BY") else "other"
    return next((known for known in (whole, without_version, wider) if known in HUB), "other")


def license_lines(found: Account, table: str = "") -> list[str]:
    """Lines of a card's front matter that name the license. table: as in `license_section`."""
    name = hub_license(found.delivered)
    link = [f"license_link: {json.dumps(table)}"] if table else []
    return [f"license: {name}", *(["license_name: per-object", *link] if name == "other" else [])]


def _table_link(found: Account, folder: Path | None) -> str:
    """Relative path from the card to the table, as both are usually uploaded together; "" without a table."""
    if found.table is None:
        return ""
    return Path(os.path.relpath(found.table, folder)).as_posix() if folder else found.table.name


def _linked(name: str) -> str:
    title, address = details(name)
    label = escaped(title) if title == name else f"{escaped(title)} ({escaped(name)})"
    return f"[{label}]({urllib.parse.quote(address, safe=':/?#&=%+,;@~')})" if address else label


def escaped(text: str) -> str:
    """Escape any text so that Markdown shows it literally, also in a cell of a table."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(_line(text), quote=False))


@contextlib.contextmanager
def _replacing(path: Path, flag: str) -> Iterator[TextIO]:
    """Text file written beside `path` and renamed, so that no reader sees half of it. Raises UserError if that fails."""
    hint = f"give another {flag}, a file"
    if not path.name or path.is_dir():
        raise UserError(f"{flag} {path} is a folder", hint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            replacing(path) as temporary,
            temporary.open("w", encoding="utf-8", errors="replace", newline="") as handle,
        ):
            yield handle
    except OSError as error:
        raise UserError(f"{flag} {path} cannot be written: {error.strerror}", hint) from None
