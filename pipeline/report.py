"""A run's folder -> one HTML page that needs nothing else: no server, no network, no library. See report.html.

What others wrote (uids, licenses, log tails, facts) is hostile: it enters the page escaped, or inside one JSON block whose
`<` are escaped and which the script only ever shows as text.
"""

from __future__ import annotations

import html
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import licenses
from pipeline.ledger import Ledger
from pipeline.progress import duration, size
from pipeline.report_chart import Clock, throughput
from pipeline.report_tiles import THUMB_WIDTH, make_sheet, make_tiles
from pipeline.scene import UserError
from pipeline.shards import CONVENTION, facts_of, find_shards, uids_of

EXAMPLES = 20  # per reason
DETAIL_CHARS = 4000  # of a log tail, from its end
STALE_S = 60.0  # a running driver writes its status every second
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # terminal colours and the like


@dataclass(frozen=True)
class Books:
    """What the ledger says. timeline: (unix time, state, views). status: the driver's last status file, or {}."""

    counts: dict[str, int]
    reasons: dict[str, int]
    examples: dict[str, list[tuple[str, str, int]]]
    licenses: dict[str, int]
    timeline: list[tuple[float, str, int]]
    views: int
    by_shard: dict[str, int]
    deleted: set[str]
    status: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What the folder holds. shards: width in pixels -> files. objects: shard name -> objects, of the shards on disk."""

    folder: Path
    shards: dict[int, list[Path]]
    facts: dict[str, Any]
    objects: dict[str, int]
    books: Books | None

    @property
    def widest(self) -> list[Path]:
        return self.shards[max(self.shards)] if self.shards else []


def write_page(folder: Path, out: Path, objects: int = 64) -> Path:
    """Writes the page of a run's folder, or of a folder of shards alone, to `out`; shows that many objects. Returns `out`.

    Raises UserError: nothing was ever rendered there, a shard cannot be read, the page cannot be written.
    """
    if objects < 1:
        raise UserError(f"--objects {objects} shows nothing", "for example --objects 64")
    run = _read_run(folder.absolute())
    tiles = make_tiles(run.widest, run.objects, objects)
    books = run.books
    parts = {
        "TITLE": f"{_text(run.folder.name)} · lvsm-data",
        "HEADER": _header(run),
        "SHEET_NOTE": _sheet_note(run, tiles),
        "CONVENTION": _text(CONVENTION),
        "FAILURES": _failures(books) if books else "",
        "THROUGHPUT": f"<section id=throughput><h2>Throughput</h2>{throughput(books.timeline)}</section>"
        if books
        else "",
        "LICENSES": _licenses(run, tiles),
        "DATA": json.dumps({"objects": tiles}, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    # One pass, so that no inserted text is searched for placeholders.
    page = re.sub(r"<!--([A-Z_]+)-->", lambda match: parts[match[1]], template)
    return _write(out, page.encode(errors="replace"))


def write_sheet(folder: Path, out: Path, objects: int = 8) -> Path:
    """Writes a PNG with a row of views for each of `objects` objects. Returns `out`. Raises UserError like `write_page`."""
    run = _read_run(folder.absolute())
    if not run.widest:
        raise UserError(f"{folder} holds no finished shard", f"lvsm-data status {folder} shows how the run stands")
    return _write(out, make_sheet(run.widest, run.objects, objects))


def _write(out: Path, data: bytes) -> Path:
    temporary = out.with_name(f"{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{out} cannot be written: {error.strerror}", "give another --out, a file") from None
    return out


def _read_run(folder: Path) -> Run:
    ledger = folder / "ledger.sqlite"
    try:
        shards = {width: paths for width, paths in find_shards(folder).items() if paths}
    except UserError:
        if not folder.is_dir():
            raise
        shards = {}
    if not shards and not ledger.exists():
        raise UserError(f"{folder} holds neither a run nor shards", "give the --out of a run")
    books = _read_books(ledger) if ledger.exists() else None
    widest = shards[max(shards)] if shards else []
    facts = facts_of(widest[0]) if widest else _planned(folder)
    if books:
        objects = {path.stem: books.by_shard.get(path.stem, 0) for path in widest}
    else:
        objects = {path.stem: len(uids_of(path)) for path in widest}
    return Run(folder, shards, facts, objects, books)


def _planned(folder: Path) -> dict[str, Any]:
    """The facts of a run that has no shard yet, as far as its run.json knows them."""
    facts = _json_file(folder / "run.json").get("facts", {})
    return facts if isinstance(facts, dict) else {}


def _json_file(path: Path) -> dict[str, Any]:
    """{} where there is none, or none that can be read: the page tells what it can."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_books(path: Path) -> Books:
    """Everything from one snapshot, so that counts add up while a run goes on."""
    with Ledger(path, readonly=True) as ledger:
        ledger.snapshot()
        reasons = ledger.reasons()
        return Books(
            counts=ledger.counts(),
            reasons=reasons,
            examples={reason: ledger.examples(reason, EXAMPLES) for reason in reasons},
            licenses=licenses.tally(ledger.licenses()),
            timeline=ledger.timeline(),
            views=ledger.totals()["views"],
            by_shard=Counter(ledger.delivered_in().values()),
            deleted={name for name, state in ledger.shards().items() if state == "deleted"},
            status=_json_file(path.with_name("status.json")),
        )


# ---- the parts of the page that Python writes


def _text(value: object) -> str:
    """Anything -> HTML text that can only be read, also inside an attribute."""
    return html.escape(CONTROL.sub("", str(value)))


def _cards(pairs: Iterable[tuple[str, str, str]]) -> str:
    """(label, figure, small print) -> the figures at the top."""
    return "".join(
        f"<div class=card><dt>{_text(label)}</dt><dd>{_text(figure)}<small>{_text(note)}</small></dd></div>"
        for label, figure, note in pairs
    )


def _header(run: Run) -> str:
    facts, settings = run.facts, run.facts.get("settings") or {}
    widths = sorted(run.shards) or settings.get("res", [])
    files = [path for paths in run.shards.values() for path in paths]
    stored = sum(path.stat().st_size for path in files)
    splits: Counter[str] = Counter()
    for name, count in run.objects.items():
        splits[name.split("-")[0]] += count
    by_split = f"{splits['train']:,} train + {splits['val']:,} val objects"
    resolutions = ", ".join(f"{width}" for width in widths) or "?"
    cards = [
        *(_count_cards(run.books) if run.books else [("Objects", f"{splits.total():,}", "in these shards")]),
        ("Views", _views(run), f"{settings.get('views') or 'as many as there are'} per object"),
        ("Resolutions", f"{resolutions} px", "width of the stored pictures"),
        ("Shards", f"{len(run.objects):,}", f"{size(stored)} in {len(files):,} files; {by_split}"),
        *(_speed_cards(run.books) if run.books else []),
    ]
    notes = "".join(f"<p class=note>{_text(note)}</p>" for note in _notes(run))
    source = _text(facts.get("source") or "unknown")
    return (
        f"<h1>{_text(run.folder.name)}</h1><p class=sub>source <b>{source}</b> · <code>{_text(run.folder)}</code>"
        f"{_state(run.books)} · page of {time.strftime('%Y-%m-%d %H:%M')}</p>{notes}"
        f"<dl class=cards>{_cards(cards)}</dl>{_settings(facts, settings)}"
    )


def _count_cards(books: Books) -> list[tuple[str, str, str]]:
    delivered, failed = books.counts.get("delivered", 0), sum(books.reasons.values())
    asked = f"of {books.status['n']:,} requested" if isinstance(books.status.get("n"), int) else ""
    return [
        ("Drawn", f"{delivered + failed:,}", f"= {delivered:,} delivered + {failed:,} failed"),
        ("Delivered", f"{delivered:,}", asked),
        ("Failed", f"{failed:,}", f"{failed / (delivered + failed):.1%} of those drawn" if failed else "none"),
    ]


def _views(run: Run) -> str:
    if run.books:
        return f"{run.books.views:,}"
    per_object = (run.facts.get("settings") or {}).get("views")
    return f"{sum(run.objects.values()) * per_object:,}" if isinstance(per_object, int) else "?"


def _speed_cards(books: Books) -> list[tuple[str, str, str]]:
    clock = Clock.of(books.timeline)
    if clock.seconds <= 0:
        return [("Throughput", "–", "needs two objects that ended at different times")]
    sessions = f"in {len(clock.pauses) + 1} sessions" if clock.pauses else "first object to last"
    return [
        ("Active time", duration(clock.seconds), f"h:min:s, {sessions}"),
        (
            "Throughput",
            f"{clock.objects / clock.seconds * 3600:,.0f} objects/h",
            f"{clock.views / clock.seconds:,.1f} views/s",
        ),
    ]


def _state(books: Books | None) -> str:
    status = books.status if books else {}
    if not status.get("state"):
        return ""
    state, updated = str(status["state"]), float(status.get("updated") or 0)
    if state == "running" and (age := time.time() - updated) > STALE_S:
        state = f"interrupted {duration(age)} ago"
    return f" · <b>{_text(state)}</b>"


def _notes(run: Run) -> list[str]:
    """Where the delivered objects are, as far as not all of them are in the shards on disk."""
    if run.books is None:
        return ["No ledger in this folder: failures and throughput are not known here."]
    deleted = sum(count for name, count in run.books.by_shard.items() if name in run.books.deleted)
    in_shards = sum(run.objects.values())
    waiting = run.books.counts.get("delivered", 0) - in_shards - deleted
    notes = []
    if waiting > 0:
        notes.append(f"Delivered, but still in the journal of a shard that is not full: {waiting:,}.")
    if deleted:
        notes.append(f"Delivered, but in shards that were deleted after use: {deleted:,}.")
    if not run.shards:
        notes.append("No finished shard on disk, so there are no pictures and no cameras to show.")
    return notes


def _settings(facts: dict[str, Any], settings: dict[str, Any]) -> str:
    """What made the pictures, by name."""
    versions = ", ".join(f"{name} {version}" for name, version in (facts.get("versions") or {}).items())
    layers = ", ".join(name for name in ("alpha", "depth", "normals") if settings.get(name)) or "none"
    rows = {
        "cameras": facts.get("cameras") or settings.get("cameras"),
        "lights": settings.get("lights"),
        "samples": f"{settings['samples']} per pixel" if settings.get("samples") else None,
        "denoise": settings.get("denoise"),
        "engine": " on ".join(str(settings[name]) for name in ("engine", "device") if settings.get(name)),
        "seed": facts.get("seed", settings.get("seed")),
        "JPEG quality": settings.get("quality"),
        "extra layers": layers if settings else None,
        "downsampling": facts.get("downsampling"),
        "versions": versions,
        "config hash": facts.get("config_hash"),
    }
    cells = (f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in rows.items() if v not in (None, ""))
    return f"<dl class=settings>{''.join(cells)}</dl>"


def _sheet_note(run: Run, tiles: list[dict[str, Any]]) -> str:
    if not tiles:
        return ""
    stored, here = max(run.shards), min(max(run.shards), THUMB_WIDTH)
    shrunk = "as stored" if stored == here else f"shrunk from {stored} px for this page"
    return (
        f"{len(tiles):,} of {sum(run.objects.values()):,} objects, spread over {len(run.objects):,} shards. "
        f"Pictures {here} px wide, {shrunk}. Choose one to see its views."
    )


def _bars(rows: dict[str, int], below: dict[str, str], head: str) -> str:
    """name -> count as a table with bars; `below` is HTML under a row."""
    most, total = max(rows.values()), sum(rows.values())
    lines = []
    for name, count in rows.items():
        lines.append(
            f"<tr><th scope=row>{_text(name) or '<i>not recorded</i>'}</th><td class=number>{count:,}</td>"
            f"<td class=share><span class=bar style='width:{count / most * 64:.1f}%'></span> {count / total:.1%}</td></tr>"
        )
        if name in below:
            lines.append(f"<tr class=below><td colspan=3>{below[name]}</td></tr>")
    titles = f"<tr><th>{head}</th><th class=number>objects</th><th>share</th></tr>"
    return f"<table><thead>{titles}</thead><tbody>{''.join(lines)}</tbody></table>"


def _failures(books: Books) -> str:
    if not books.reasons:
        return "<section id=failures><h2>Failures</h2><p>No failures.</p></section>"
    below = {}
    for reason, examples in books.examples.items():
        items = []
        for uid, detail, tries in examples:
            tail = CONTROL.sub("", detail)[-DETAIL_CHARS:].strip()
            again = f" <small>{tries} tries</small>" if tries > 1 else ""
            inner = f"<details><summary>detail</summary><pre>{_text(tail)}</pre></details>" if tail else ""
            items.append(f"<li><code>{_text(uid)}</code>{again}{inner}</li>")
        title = f"{len(items)} of {books.reasons[reason]:,}" if books.reasons[reason] > len(items) else f"{len(items)}"
        below[reason] = (
            f"<details><summary>examples: {title}</summary><ul class=examples>{''.join(items)}</ul></details>"
        )
    return f"<section id=failures><h2>Failures by reason</h2>{_bars(books.reasons, below, 'reason')}</section>"


def _licenses(run: Run, tiles: list[dict[str, Any]]) -> str:
    counts = run.books.licenses if run.books else licenses.tally(Counter(tile["facts"][0][1] for tile in tiles))
    if not counts:
        return ""
    note = "Delivered objects by license." if run.books else f"Of the {len(tiles)} objects shown above."
    return f"<section id=licenses><h2>Licenses</h2><p class=note>{note}</p>{_bars(counts, {}, 'license')}</section>"
