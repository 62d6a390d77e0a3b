"""Verify all that a run claims: what is in its shards, and that the ledger says the same."""

from __future__ import annotations

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from pipeline.core import images
from pipeline.core.errors import UserError
from pipeline.core.records import video_of
from pipeline.core.text import counted
from pipeline.storage import journal
from pipeline.storage.ledger import Ledger
from pipeline.storage.object_table import objects_told, uid_of
from pipeline.storage.run_folder import IDENTITY, identity_of, locked
from pipeline.storage.shards import (
    PNGS,
    Rows,
    complete_shards,
    facts_of,
    find_shards,
    image_sha,
    open_shard,
    rows_of,
    schema,
    set_aside,
    shard_on_disk,
)

RIGID_TOLERANCE = 1e-4  # of R^T R and det R, in float32


@dataclass
class Report:
    """Result of `verify`. problems: one line each; empty is good. objects, views: at each of the widths, in pixels.

    damaged: names of shards with a file that has a problem. misbooked: of those of which the ledger says otherwise.
    """

    problems: list[str] = field(default_factory=list)
    objects: int = 0
    views: int = 0
    files: int = 0
    ledger: bool = False
    widths: tuple[int, ...] = ()
    damaged: list[str] = field(default_factory=list)
    misbooked: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Verdict in one line."""
        verdict = f"{len(self.problems)} problems" if self.problems else "ok"
        beside = "ledger agrees" if self.ledger and not self.problems else "ledger read" if self.ledger else "no ledger"
        at = f" at each of {' and '.join(map(str, self.widths))} px" if len(self.widths) > 1 else ""
        return f"{verdict}: {self.files} shard files, {self.objects} objects, {self.views} views{at}, {beside}"


@dataclass(frozen=True)
class Place:
    """Shard, views, poses, license and video of an object, which must be equal at every resolution."""

    shard: str
    views: int
    poses: bytes
    license: str
    video: str


def verify(folder: Path) -> Report:
    """Check all shard files and the ledger, if any, of a run or one resolution. Raises UserError if there is nothing to check."""
    report = Report()
    try:
        found = find_shards(folder)
    except UserError:
        if (folder / "ledger.sqlite").exists():
            report.ledger = True
            _check_ledger(folder, {}, report)
        if not report.problems:
            raise
        return report
    by_width: dict[int, dict[str, Place]] = {}
    console = Console(stderr=True)
    for width, paths in found.items():
        where = by_width[width] = {}
        shown = track(paths, f"checking {width} px", console=console, transient=True, disable=not sys.stderr.isatty())
        for path in shown:
            report.files += 1
            before = len(report.problems)
            objects = _check_file(path, width, report)
            if len(report.problems) > before and path.stem not in report.damaged:
                report.damaged.append(path.stem)
            for uid, place in objects:
                if uid in where:
                    report.problems.append(f"{path.name}: {uid} stands in {where[uid].shard} already")
                where[uid] = place
    widest = by_width[max(by_width)]
    report.objects, report.views = len(widest), sum(place.views for place in widest.values())
    report.widths = tuple(sorted(by_width))
    _compare_widths(folder, by_width, report)
    _check_leaks(widest, report)
    if (folder / "ledger.sqlite").exists():
        report.ledger = True
        _check_ledger(folder, widest, report)
    return report


def repair(folder: Path, report: Report) -> list[str]:
    """Take the damaged shards of a run away, and have its ledger say what the others hold: what is gone is then made again.

    Returns lines for the user. Raises UserError where there is no ledger, or another process writes to the run.
    """
    if not report.ledger:
        raise UserError(
            f"{folder} has no ledger, which says what is to be made again", "repair the folder of a whole run"
        )
    widths = report.widths
    with locked(folder), Ledger(folder / "ledger.sqlite") as ledger:
        aside = [path for name in report.damaged for path in set_aside(folder, widths, name)]
        there, kept = complete_shards(folder, widths), ledger.kept()
        before = ledger.counts().get("delivered", 0)
        for name in sorted(there & set(report.misbooked)):
            ledger.add_shard(shard_on_disk(folder, widths, name), kept[name].passes if name in kept else 0)
        for name in ledger.forget_missing(there | {path.stem for path in journal.left_in(folder)}):
            aside += set_aside(folder, widths, name)  # where one resolution was missing, the others
        lost = before - ledger.counts().get("delivered", 0)
    lines = [f"set aside: {path.relative_to(folder)}" for path in sorted(aside)]
    return [*lines, f"{counted(lost, 'object')} to be made again: by the command that made the run"]


def _compare_widths(folder: Path, by_width: dict[int, dict[str, Place]], report: Report) -> None:
    """Report missing resolutions, and resolutions whose objects, shards, views or poses differ from the widest."""
    most = max(by_width)
    for width, where in by_width.items():
        odd = sorted(uid for uid in where.keys() | by_width[most].keys() if where.get(uid) != by_width[most].get(uid))
        if odd:
            report.problems.append(f"{width} px and {most} px hold different objects, for example {odd[0]}")
    if (folder / IDENTITY).exists():
        asked = identity_of(folder)["res"]
        for width in sorted(set(asked) - set(by_width)):
            report.problems.append(f"{width} px is missing: the run is of {', '.join(map(str, asked))} px")


def _check_leaks(on_disk: dict[str, Place], report: Report) -> None:
    """Report videos with clips in both train and val, as clips of one video show the same rooms."""
    parts: dict[str, set[str]] = {}
    for place in on_disk.values():
        if place.video:
            parts.setdefault(video_of(place.video), set()).add(place.shard.split("-")[0])
    for video in sorted(video for video, found in parts.items() if len(found) > 1):
        report.problems.append(f"clips of video {video} stand in both train and val")


def _check_file(path: Path, width: int, report: Report) -> list[tuple[str, Place]]:
    """Check one shard file: problems go into the report; returns its objects."""
    found: list[tuple[str, Place]] = []
    try:
        facts = facts_of(path)
        stored = pq.read_schema(path)
        wanted = schema(tuple(stored.names))
        if not stored.equals(wanted):
            report.problems.append(f"{path.name}: columns differ from the format: {stored.names}")
            return found
        if facts["width"] != width:
            report.problems.append(f"{path.name}: says width {facts['width']}, stands in {width}")
        with open_shard(path) as file:
            for group in range(file.num_row_groups):
                if place := _check_group(file, group, path, width, report):
                    found.append(place)
        told = objects_told(path).get("uid")
        if told and len(found) == len(told) and told != [uid for uid, _ in found]:
            report.problems.append(f"{path.name}: the table of objects in its footer names others than its rows")
    except (UserError, pa.ArrowException, OSError, ValueError) as error:
        report.problems.append(f"{path.name}: {error}")
    if not found:
        report.problems.append(f"{path.name}: holds no object that can be read")
    return found


def _check_group(file: pq.ParquetFile, group: int, path: Path, width: int, report: Report) -> tuple[str, Place] | None:
    """Check one object of a shard file: problems go into the report; None if it cannot be read."""
    uid = f"object {group}"
    try:
        uid = uid_of(file, group)
        table = file.read_row_group(group)
        rows = rows_of(table)
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        report.problems.append(f"{path.name}: {uid}: cannot be read: {error}")
        return None
    problems = check_object(rows, width)
    uids, views = set(table["uid"].to_pylist()), table["view"].to_pylist()
    if len(uids) > 1:
        problems.append(f"its row group holds {len(uids)} objects")
    if views != list(range(len(views))):
        problems.append(f"its views are {views[:8]}..., not 0, 1, 2, ...")
    report.problems += [f"{path.name}: {rows.uid}: {problem}" for problem in problems]
    poses = hashlib.sha256(rows.c2w.tobytes()).digest()
    return rows.uid, Place(path.stem, len(views), poses, rows.license, rows.meta.get("video", ""))


def check_object(rows: Rows, width: int) -> list[str]:
    """Problems of one object as read back, one line each; empty if there are none."""
    with ThreadPoolExecutor() as pool:
        problems = list(filter(None, pool.map(lambda jpeg: _check_picture(jpeg, (*rows.hw, 3)), rows.jpegs)))
    damaged = [view for view, sha in enumerate(rows.shas or ()) if image_sha(rows.jpegs[view] or b"") != sha]
    if damaged:
        problems.append(f"bytes of views {damaged[:8]} are not those that were written (image_sha)")
    if rows.hw[1] != width:
        problems.append(f"width {rows.hw[1]} among {width}")
    if not (np.isfinite(rows.c2w).all() and np.isfinite(rows.intrinsics).all()):
        return [*problems, "poses are not finite"]
    rotation = rows.c2w[:, :3, :3].astype(np.float64)
    rigid = np.abs(np.swapaxes(rotation, 1, 2) @ rotation - np.eye(3)).max()
    if rigid > RIGID_TOLERANCE or np.abs(np.linalg.det(rotation) - 1).max() > RIGID_TOLERANCE:
        problems.append(f"rotations are not orthonormal (off by {rigid:.2g})")
    if not np.array_equal(rows.c2w[:, 3], np.tile(np.array([0, 0, 0, 1], np.float32), (len(rows.c2w), 1))):
        problems.append("the last row of a c2w is not 0 0 0 1")
    if (rows.intrinsics[:, :2] <= 0).any():
        problems.append(
            "a focal length is not positive" if rows.projection == "perspective" else "a scale is not positive"
        )
    pixels = rows.hw[0] * rows.hw[1]
    for name, size in (("depth", 4 * pixels), ("normals", 12 * pixels)):
        if any(len(layer) != size for layer in rows.layers.get(name, ())):
            problems.append(f"{name} has not {size} bytes per view")
    for name in PNGS:
        shape = (*rows.hw, 3) if name == "albedo" else rows.hw
        found = [_check_picture(png, shape) for png in rows.layers.get(name, ())]
        problems += [f"{name}: {problem}" for problem in found if problem]
    return problems


def _check_picture(file: bytes, shape: tuple[int, ...]) -> str:
    try:
        pixels = images.decode(file)
    except OSError as error:
        return f"an image does not decode: {error}"
    return "" if pixels.shape == shape else f"an image has shape {pixels.shape}, not {shape}"


def _check_ledger(folder: Path, on_disk: dict[str, Place], report: Report) -> None:
    with Ledger(folder / "ledger.sqlite", readonly=True) as ledger:
        delivered, licenses = ledger.delivered_in(), ledger.licenses_of()
        states = ledger.shards()
    open_shards = {path.stem for path in journal.left_in(folder)}
    for uid, place in on_disk.items():
        if delivered.get(uid) != place.shard:
            report.problems.append(f"{uid} stands in {place.shard}, the ledger says {delivered.get(uid, 'nothing')}")
            report.misbooked.append(place.shard)
        elif (license_name := licenses.get(uid, place.license)) != place.license:
            report.problems.append(f"{uid} has license {place.license!r}, the ledger says {license_name!r}")
    for uid, shard in delivered.items():
        if uid not in on_disk and shard not in open_shards and states.get(shard) != "deleted":
            report.problems.append(f"{uid}: the ledger says {shard}, no shard holds it")
            report.misbooked.append(shard)
