"""Page of a run's folder: one HTML file that needs no server, no network and no library. See templates/run.html.

Foreign text (uids, licenses, log tails, facts) is hostile: it enters the page escaped, or inside one JSON block whose
`<` are escaped and which the script only ever shows as text.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core import images, licenses
from pipeline.core.disk import read_json
from pipeline.core.errors import A_RUN, UserError
from pipeline.core.text import duration, plain, quoted, size
from pipeline.report import cycle_section
from pipeline.report.charts import Clock, throughput
from pipeline.report.markup import render, write
from pipeline.report.tiles import THUMB_WIDTH, make_sheet, make_tiles
from pipeline.storage.ledger import Ledger
from pipeline.storage.object_table import uids_of
from pipeline.storage.run_folder import is_locked
from pipeline.storage.shards import CONVENTION, LAYERS, facts_of, find_shards
from pipeline.storage.train_run import TrainingLog

PAGE = "index.html"
EXAMPLES, DETAIL_CHARS = 20, 4000  # failures shown per reason, and last characters shown of a log

LIVE_OBJECTS, LIVE_VIEWS = 16, 8  # on a page that is rewritten regularly: objects, and views of each
LIVE_S, LIVE_SHARE = 30.0, 0.05  # least seconds between rewrites, and largest share of time spent on them
Made = TypeVar("Made")


@dataclass(frozen=True)
class Books:
    """Contents of the ledger. timeline: (unix time, state, views). status: the driver's last status file, or {}.

    driven: True if a driver holds the folder. story: of a cycle, else None.
    """

    counts: dict[str, int]
    reasons: dict[str, int]
    examples: dict[str, list[tuple[str, str, int]]]
    licenses: dict[str, int]
    timeline: list[tuple[float, str, int]]
    views: int
    by_shard: dict[str, int]
    deleted: set[str]
    status: dict[str, Any] = field(default_factory=dict)
    driven: bool = False
    story: cycle_section.Story | None = None


@dataclass(frozen=True)
class RunData:
    """Contents of the folder. shards: width in pixels -> files. objects: shard name -> objects, of the `widest` on disk.

    stored: bytes of all shard files. A cycle may delete shards before they are read.
    """

    folder: Path
    shards: dict[int, list[Path]]
    widest: list[Path]
    facts: dict[str, Any]
    objects: dict[str, int]
    books: Books | None
    stored: int


def write_page(folder: Path, out: Path, objects: int = 64) -> Path:
    """Write the page of a run's folder, or of a folder of shards alone, to `out`; it shows `objects` objects. Returns `out`.

    Raises UserError: nothing was ever rendered there, a shard cannot be read, the page cannot be written.
    """
    if objects < 1:
        raise UserError(f"--objects {objects} shows nothing", "for example --objects 64")
    run = _read_run(folder.absolute())
    tiles = _of_those_there(run.widest, lambda paths: make_tiles(paths, run.objects, objects))
    live = run.books is not None and run.books.driven and out.absolute() == run.folder / PAGE
    return write(out, _page(run, tiles, live))


def _page(run: RunData, tiles: list[dict[str, Any]], live: bool) -> Any:
    """Markup of the page. live: a driver rewrites the page regularly, so browsers are told to reload it."""
    books = run.books
    return render(
        "run.html",
        run=run,
        books=books,
        tiles=tiles,
        title=f"{run.folder.name} · lvsm-data",
        refresh=f"{LIVE_S:.0f}" if live and books and books.story else None,
        now=time.strftime("%Y-%m-%d %H:%M"),
        state=_state(books),
        notes=_notes(run),
        figures=_figures(run),
        settings=_settings(run.facts),
        cycle=cycle_section.section(books.story) if books and books.story else "",
        sheet_note=_sheet_note(run, tiles),
        no_failures=_no_failures(books),
        convention=CONVENTION,
        throughput=throughput(books.timeline) if books else "",
        licenses=books.licenses if books else licenses.tally(Counter(tile["facts"][0][1] for tile in tiles)),
    )


def _of_those_there(paths: list[Path], make: Callable[[list[Path]], Made]) -> Made:
    """Return make(shards of `paths`), called again without shards that a cycle has deleted meanwhile."""
    while True:
        there = [path for path in paths if path.exists()]
        try:
            return make(there)
        except FileNotFoundError:
            if all(path.exists() for path in there):
                raise


class LivePage:
    """Page OUT/index.html of a cycle, rewritten while the cycle runs. log: as its trainer has written it so far."""

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self.kept: tuple[list[Path], list[dict[str, Any]]] = ([], [])
        self.next = 0.0

    def refresh(self, log: TrainingLog) -> None:
        """Write the page if it is due. A failure, as by a full disk or a damaged shard, is ignored until it is due again."""
        if time.monotonic() >= self.next:
            start = time.monotonic()
            self._write(log, live=True)
            self.next = time.monotonic() + max(LIVE_S, (time.monotonic() - start) / LIVE_SHARE)

    def end(self, log: TrainingLog) -> None:
        """Write the final page, which browsers do not reload."""
        self._write(log, live=False)

    def _write(self, log: TrainingLog, live: bool) -> None:
        with contextlib.suppress(UserError, OSError, ValueError):
            run = _read_run(self.out, log)
            if live and run.books:
                run.books.status["state"] = "running"  # in the first second, status.json is the last session's
            write(self.out / PAGE, _page(run, self._tiles(run), live))

    def _tiles(self, run: RunData) -> list[dict[str, Any]]:
        """Tiles of validation objects, with few views each; remade only if the validation shards change, as none is deleted."""
        paths = [path for path in run.widest if path.name.startswith("val")]
        if self.kept[0] != paths:
            tiles = make_tiles(paths, run.objects, LIVE_OBJECTS)
            self.kept = paths, [tile | {"jpegs": _some(tile["jpegs"], LIVE_VIEWS)} for tile in tiles]
        return self.kept[1]


def _some(each: dict[Any, Made], count: int) -> dict[Any, Made]:
    names = list(each)
    return {name: each[name] for name in names[:: -(-len(names) // count) or 1]}


def write_sheet(folder: Path, out: Path, objects: int = 8) -> Path:
    """Write a PNG with a row of views for each of `objects` objects. Returns `out`. Raises UserError like `write_page`."""
    run = _read_run(folder.absolute())
    if not run.widest:
        raise UserError(
            f"{folder} holds no finished shard", f"lvsm-data status {quoted(folder)} shows how the run stands"
        )
    sheet = _of_those_there(run.widest, lambda paths: make_sheet(paths, run.objects, objects))
    return write(out, images.encode_png(sheet))


def _read_run(folder: Path, log: TrainingLog | None = None) -> RunData:
    """Read a run's folder. log: a cycle's training log, if the caller has read it already."""
    ledger = folder / "ledger.sqlite"
    try:
        shards = {width: paths for width, paths in find_shards(folder).items() if paths}
    except UserError:
        if not folder.is_dir():
            raise
        shards = {}
    if not shards and not ledger.exists():
        raise UserError(f"{folder} holds neither a run nor shards", A_RUN)
    books = _read_books(ledger, log) if ledger.exists() else None
    widest = shards[max(shards)] if shards else []
    if books:
        objects = {path.stem: books.by_shard.get(path.stem, 0) for path in widest}
    else:
        objects = _of_those_there(widest, lambda paths: {path.stem: len(uids_of(path)) for path in paths})
    stored = sum(_size(path) for paths in shards.values() for path in paths)
    return RunData(folder, shards, widest, _facts(folder, widest), objects, books, stored)


def _size(path: Path) -> int:
    """Bytes of a file, 0 if it is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _facts(folder: Path, widest: list[Path]) -> dict[str, Any]:
    for path in widest[::-1]:  # validation shards first: they are never deleted
        try:
            return facts_of(path)
        except UserError:
            if path.exists():
                raise
    planned = _json_file(folder / "run.json").get("facts")  # of a run that has no shard yet
    return planned if isinstance(planned, dict) else {}


def _json_file(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} if the file is missing or unreadable, so that the page tells what it can."""
    with contextlib.suppress(OSError, UserError):
        found: dict[str, Any] = read_json(path)
        return found
    return {}


def _read_books(path: Path, log: TrainingLog | None) -> Books:
    """Read everything from one snapshot, so that counts add up while a run goes on."""
    with Ledger(path, readonly=True) as ledger:
        ledger.snapshot()
        reasons = ledger.reasons()
        return Books(
            counts=ledger.counts(),
            reasons=reasons,
            examples={reason: _examples(ledger, reason) for reason in reasons},
            licenses=licenses.tally(ledger.licenses()),
            timeline=ledger.timeline(),
            views=ledger.totals()["views"],
            by_shard=Counter(ledger.delivered_in().values()),
            deleted={name for name, state in ledger.shards().items() if state == "deleted"},
            status=_json_file(path.with_name("status.json")),
            driven=is_locked(path.parent),
            story=cycle_section.read_story(path.parent, ledger, log),
        )


def _examples(ledger: Ledger, reason: str) -> list[tuple[str, str, int]]:
    """(uid, end of the detail, tries) of at most EXAMPLES items that failed for a reason."""
    some = ledger.examples(reason, EXAMPLES)
    return [(uid, plain(detail)[-DETAIL_CHARS:].strip(), tries) for uid, detail, tries in some]


# ---- what the page says


def _figures(run: RunData) -> list[tuple[str, str, str]]:
    settings = run.facts.get("settings") or {}
    widths = sorted(run.shards) or settings.get("res", [])
    files = [path for paths in run.shards.values() for path in paths]
    splits: Counter[str] = Counter()
    for name, count in run.objects.items():
        splits[name.split("-")[0]] += count
    by_split = f"{splits['train']:,} train + {splits['val']:,} val objects"
    resolutions = ", ".join(f"{width}" for width in widths) or "?"
    return [
        *(_count_cards(run.books) if run.books else [("Objects", f"{splits.total():,}", "in these shards")]),
        ("Views", _views(run), f"{settings.get('views') or 'as many as there are'} per object"),
        ("Resolutions", f"{resolutions} px", "width of the stored pictures"),
        ("Shards", f"{len(run.objects):,}", f"{size(run.stored)} in {len(files):,} files; {by_split}"),
        *(_speed_cards(run.books) if run.books else []),
    ]


def _count_cards(books: Books) -> list[tuple[str, str, str]]:
    delivered, failed = books.counts.get("delivered", 0), sum(books.reasons.values())
    asked = f"of {books.status['n']:,} requested" if isinstance(books.status.get("n"), int) else ""
    return [
        ("Drawn", f"{delivered + failed:,}", f"= {delivered:,} delivered + {failed:,} failed"),
        ("Delivered", f"{delivered:,}", asked),
        ("Failed", f"{failed:,}", f"{failed / (delivered + failed):.1%} of those drawn" if failed else "none"),
    ]


def _views(run: RunData) -> str:
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
    state = str(status.get("state") or "")
    if state == "running" and books and not books.driven:
        return f"interrupted {duration(time.time() - float(status.get('updated') or 0))} ago"
    return state


def _no_failures(books: Books | None) -> str:
    """Say that nothing failed; of a run that delivered nothing either, why, as far as it is known."""
    if books is None or any(books.counts.values()):
        return "No failures."
    why = str(books.status.get("why") or "").strip()
    return f"Nothing was delivered, and nothing failed: {why or 'no object has ended yet'}"


def _notes(run: RunData) -> list[str]:
    """Notes on delivered objects that are not in the shards on disk, and on what the folder lacks."""
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


def _settings(facts: dict[str, Any]) -> dict[str, Any]:
    """Settings that made the pictures, by name; None or empty if not known."""
    settings = facts.get("settings") or {}
    versions = ", ".join(f"{name} {version}" for name, version in (facts.get("versions") or {}).items())
    layers = ", ".join(name for name in LAYERS if settings.get(name)) or "none"
    return {
        "cameras": facts.get("cameras") or settings.get("cameras"),
        "lights": settings.get("lights"),
        "samples": f"{settings['samples']} per pixel" if settings.get("samples") else None,
        "denoise": settings.get("denoise"),
        "engine": " on ".join(str(settings[name]) for name in ("engine", "device") if settings.get(name)),
        "seed": facts.get("seed", settings.get("seed")),
        "JPEG quality": settings.get("quality") or ("by width" if "quality" in settings else None),
        "extra layers": layers if settings else None,
        "downsampling": facts.get("downsampling"),
        "versions": versions,
        "config hash": facts.get("config_hash"),
    }


def _sheet_note(run: RunData, tiles: list[dict[str, Any]]) -> str:
    if not tiles:
        return ""
    stored, here = max(run.shards), min(max(run.shards), THUMB_WIDTH)
    shrunk = "as stored" if stored == here else f"shrunk from {stored} px for this page"
    if run.books and run.books.story and all(tile["shard"].startswith("val") for tile in tiles):
        return f"{len(tiles):,} held-out objects, which stay. Pictures {here} px wide, {shrunk}. Choose one to see its views."
    total = sum(run.objects.values())
    apart = sum(bool(tile["why"]) for tile in tiles)
    spread = f"spread over {len(run.objects):,} shard{'s' if len(run.objects) != 1 else ''}"
    shown = f"{apart} that stand out, which say by what, and {len(tiles) - apart} {spread}" if apart else spread
    more = f" (--objects {total} for all, `view --serve` finds and sorts them)" if len(tiles) < total else ""
    return (
        f"{len(tiles):,} of {total:,} objects{more}: {shown}. "
        f"Pictures {here} px wide, {shrunk}. Choose one to see its views."
    )
