"""What a run is on the Hugging Face Hub: its shards as they stand, a card, a sample picture and the table of credits.

    README.md  attribution.csv  contact_sheet.jpg  64/train-000000.parquet  512/train-000000.parquet

`export --to hf` writes it to a folder, `push` uploads it. `datasets` and `pipeline.open` read both.
"""

from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.core import images
from pipeline.core.errors import UserError
from pipeline.export import card
from pipeline.export.runs import intact, quoted
from pipeline.report.attribution import account
from pipeline.report.status import read_status
from pipeline.report.tiles import THUMB_WIDTH, make_sheet
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import is_locked
from pipeline.storage.shards import columns_of, complete_shards, counts_of, facts_of, files_of, widths_in
from pipeline.storage.uploads import LEDGER, lives_elsewhere

CARD = "README.md"
SHEET_OBJECTS, SHEET_QUALITY = 8, 90


@dataclass(frozen=True)
class Contents:
    """Dataset of a run. files: path in the dataset -> file here, the card last. told: what the card says."""

    files: dict[str, Path]
    told: card.Told


def contents(run: Path, made: Path, name: str, res: int | None = None) -> Contents:
    """Dataset that a run is. Writes what is no shard into the folder `made`.

    run: folder of a run that is not being written. name: of the dataset, as it will be loaded. res: this width alone.
    Raises UserError, with nothing written: the run goes on, has objects in no shard, or has no shards of this width.
    """
    shards, counts = _shards(run, res)
    parts = {width: _parts(paths, counts) for width, paths in shards.items()}
    with Ledger(run / LEDGER, readonly=True) as ledger:
        failed = ledger.reasons()
    shown = shards[min((width for width in shards if width >= THUMB_WIDTH), default=max(shards))]
    objects = {name: len(views) for name, views in counts.items()}
    with intact(run, "a picture"):
        sheet = make_sheet(shown, objects, SHEET_OBJECTS, THUMB_WIDTH)
    made.mkdir(parents=True, exist_ok=True)
    (made / card.SHEET).write_bytes(images.encode_jpeg(sheet, SHEET_QUALITY))
    asked = read_status(run)["n"]
    told = card.Told(
        name, account(run, made / card.TABLE), facts_of(shown[0]), columns_of(shown[0]), parts, failed, asked
    )
    (made / CARD).write_text(card.text(told), encoding="utf-8")
    files = {f"{width}/{path.name}": path for width, paths in shards.items() for path in paths}
    return Contents(files | {file: made / file for file in (card.SHEET, card.TABLE, CARD)}, told)


def _parts(paths: list[Path], counts: dict[str, list[int]]) -> dict[str, card.Part]:
    """Splits of one resolution's shards, as far as there are any."""
    of = {split: [path for path in paths if path.name.startswith(split)] for split in card.SPLITS}
    return {
        split: card.Part(
            [count for path in own for count in counts[path.stem]], sum(path.stat().st_size for path in own)
        )
        for split, own in of.items()
        if own
    }


def _shards(run: Path, res: int | None) -> tuple[dict[int, list[Path]], dict[str, list[int]]]:
    """(width -> shards of a run, shard's name -> number of views of each of its objects, the same at all widths).

    Raises UserError if the shards do not hold all that the run delivered.
    """
    if not run.is_dir():
        raise UserError(f"{run} is no folder", "give the --out of a run")
    goes_on = f"the command that made it goes on; `lvsm-data status {quoted(run)}` shows how it stands"
    if is_locked(run) or lives_elsewhere(run):
        raise UserError(f"{run} is being written by another process", "wait for its end, or stop it")
    with Ledger(run / LEDGER, readonly=True) as ledger:
        delivered = ledger.counts().get("delivered", 0)
    widths = widths_in(run)
    names = sorted(complete_shards(run, widths)) if widths else []
    if not names:
        raise UserError(f"{run} holds no finished shard", goes_on)
    shards = {width: [path for name in names for path in files_of(run, [width], name)] for width in widths}
    for path in itertools.chain(*shards.values()):
        if not path.resolve().is_relative_to(run.resolve()):
            raise UserError(f"{path} is a link that leads out of the run's folder", "move the file itself there")
    counts = {path.stem: counts_of(path) for path in shards[widths[0]]}
    there = sum(map(len, counts.values()))
    if there != delivered:
        raise UserError(f"{run} is not finished: {there:,} of {delivered:,} objects stand in shards", goes_on)
    if res is not None and res not in shards:
        raise UserError(f"{run} has no pictures of {res} pixels", f"it has {', '.join(map(str, widths))}")
    return (shards if res is None else {res: shards[res]}), counts


def write(run: Path, out: Path, name: str, res: int | None = None) -> Contents:
    """Write the dataset into the folder `out`, to be loaded by `name`. Shards are further names of the run's files, where the
    disk allows it.

    Raises UserError like `contents`.
    """
    made = contents(run, out, name, res)
    for file, path in made.files.items():
        if (place := out / file) != path:
            place.parent.mkdir(parents=True, exist_ok=True)
            _link(path, place)
    return made


def _link(path: Path, place: Path) -> None:
    try:
        os.link(path, place)
    except OSError:  # another disk, or one without links
        shutil.copyfile(path, place)
