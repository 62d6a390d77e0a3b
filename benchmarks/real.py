"""What becomes of real 3D files, and what their pictures show: outcomes by format and reason, seconds of each stage by format,
and how well objects can be seen.

    python benchmarks/real.py FOLDER --out data/real
    python benchmarks/real.py FOLDER --list files.csv --out data/real --normalize box --lights uniform

Renders every file of FOLDER (or those of a CSV with a column `path`, relative to FOLDER) by `lvsm-data render`, goes on where
it stopped, and measures the JPEGs that stand in the shards, with their alpha. Nothing is fetched. Writes OUT/sheet-NN.png, 64
objects each. Of an object's pixels (alpha above one half): visible if they differ from the background by more than 8 of 255
levels, black below 8, magenta as Blender shows a missing texture. Contrast: standard deviation of their grey levels, the mean
over views.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from pipeline.core import images
from pipeline.sources.local import SUFFIXES
from pipeline.storage.shards import find_shards, read_objects
from pipeline.worker import quality

COMMAND = Path(sys.executable).parent / "lvsm-data"
SHEET = 8  # objects per row and column
STAGES = tuple("fetch reset import normalize render encode total".split())  # the look before is part of fetch
SLOWEST = 5  # files that are named
Ended = tuple[str, str, str, dict[str, float]]  # uid, state, reason, seconds of each stage that it came to


@dataclass(frozen=True)
class Options:
    """What to render, and how."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of the files."""
    out: Path
    """Run's folder."""
    list: Path | None = None
    """CSV with the files' paths within the folder, in a column `path`, and those of their repository, if any, in `repo`; in
    `faces`, if it is there, the number of faces that another loader finds, 0 where none reads any."""
    res: int = 64
    views: int = 8
    normalize: Literal["sphere", "box"] = "sphere"
    lights: Literal["dome", "uniform", "studio", "random"] = "dome"
    cameras: str = "shell"
    workers: int | None = None


@dataclass(frozen=True)
class Seen:
    """What the pictures of one object show. magenta: share of its pixels; textured: images or vertex colours are shown."""

    uid: str
    coverage: float
    visible: float
    black: float
    contrast: float
    magenta: float
    side: float
    textured: bool
    picture: np.ndarray


def paths(options: Options) -> dict[str, int | None]:
    """Files to render, relative to the folder, and the faces that another loader finds in each; None where nobody says."""
    if options.list is None:
        suffixes = SUFFIXES | {".blend"}
        found = (path for path in sorted(options.folder.rglob("*")) if path.suffix.lower() in suffixes)
        return {path.relative_to(options.folder).as_posix(): None for path in found}
    with options.list.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [f"{row['repo'].replace('/', '+')}/{row['path']}" if row.get("repo") else row["path"] for row in rows]
    return {name: int(row["faces"] or 0) if "faces" in row else None for name, row in zip(names, rows, strict=True)}


def render(options: Options, files: Iterable[str]) -> None:
    """Run `lvsm-data render` on the files; those that end as a reason are data, so its exit status says nothing."""
    manifest = options.folder / f".real-{options.out.name}.csv"
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows([["path"], *([path] for path in files)])
    count = sum(1 for _ in files)
    look = ("--normalize", options.normalize, "--lights", options.lights, "--cameras", options.cameras)
    flags = [*look, "--res", options.res, "--views", options.views, "--alpha", "--allow-blend", "--val-percent", 0]
    flags += ["--workers", options.workers] if options.workers else []
    command = [COMMAND, "render", "--source", "local", "--input", manifest, "--n", count, *flags]
    subprocess.run([*map(str, command), "--out", str(options.out)], check=False)


def look_at(uid: str, jpegs: list[bytes], alphas: list[bytes], meta: dict[str, Any]) -> Seen:
    """Measure the pictures of one object."""
    views, own, sides = [], [], []
    for jpeg, png in zip(jpegs, alphas, strict=True):
        rgb, alpha = images.decode(jpeg), images.decode(png) / 255
        views.append(quality.measure(rgb, alpha, alpha.size))
        own.append(rgb[alpha > quality.COVERED].astype(int))
        rows, columns = np.nonzero(alpha > quality.COVERED)
        sides.append(max(np.ptp(rows), np.ptp(columns)) + 1 if len(rows) else 0)
    red, green, blue = np.concatenate(own).T
    magenta = float(((red > 180) & (blue > 180) & (green < 60)).mean()) if len(red) else 0.0
    facts = quality.facts(views)
    textured = bool(meta["textured"] or meta["has_vertex_colors"])
    picture = images.decode(jpegs[0])
    return Seen(uid, **facts, magenta=magenta, side=float(np.median(sides)), textured=textured, picture=picture)


def outcomes(run: Path) -> list[Ended]:
    """(uid, state, reason, timings) of each file; also written to outcomes.csv, with detail and facts."""
    with sqlite3.connect(f"file:{run / 'ledger.sqlite'}?mode=ro", uri=True) as ledger:
        rows = ledger.execute("SELECT uid, state, reason, timings, detail, facts FROM item ORDER BY uid").fetchall()
    with (run / "outcomes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("uid", "state", "reason", "timings", "detail", "facts"), *rows])
    return [(uid, state, reason, json.loads(timings)) for uid, state, reason, timings, *_ in rows]


def report_geometry(ended: list[Ended], faces: dict[str, int | None]) -> None:
    """Print which share of the files in which another loader finds faces is delivered, and name the others."""
    whole = [row for row in ended if faces.get(row[0])]
    if whole:
        lost = [(uid, reason) for uid, state, reason, _ in whole if state != "delivered"]
        print(f"\nwith faces by another loader: {len(whole)}, delivered {1 - len(lost) / len(whole):.1%}; the others:")
        print("\n".join(f"  {reason:<24}{uid}" for uid, reason in sorted(lost, key=lambda pair: pair[1])))


def report_seconds(ended: list[Ended]) -> None:
    """Print mean seconds of each stage by format, over the files that came to it, and the slowest files."""
    by_format = {suffix: [row[3] for row in ended if _suffix(row[0]) == suffix] for suffix in _suffixes(ended)}
    print(f"\n{'seconds':<10}" + "".join(f"{stage:>11}" for stage in STAGES))
    for name, of in {**by_format, "all": [row[3] for row in ended]}.items():
        spent = [[timings[stage] for timings in of if stage in timings] for stage in STAGES]
        print(f"{name:<10}" + "".join(f"{np.mean(one):>11.2f}" if one else f"{'-':>11}" for one in spent))
    for uid, _, reason, timings in sorted(ended, key=lambda row: -row[3].get("total", 0.0))[:SLOWEST]:
        stage = max((name for name in timings if name != "total"), key=timings.__getitem__, default="")
        print(f"{timings.get('total', 0.0):>8.1f} s, most of it {stage}: {uid}{f' ({reason})' if reason else ''}")


def _suffix(uid: str) -> str:
    return Path(uid).suffix.lower()


def _suffixes(ended: list[Ended]) -> list[str]:
    return sorted({_suffix(uid) for uid, *_ in ended})


def report(ended: list[Ended], seen: list[Seen], res: int) -> None:
    """Print the tables."""
    print(f"\n{'format':<10}{'files':>7}{'delivered':>11}  reasons of the others")
    for suffix in _suffixes(ended):
        of = [row for row in ended if _suffix(row[0]) == suffix]
        reasons = Counter(reason for _, state, reason, _ in of if state != "delivered")
        delivered = len(of) - sum(reasons.values())
        print(
            f"{suffix:<10}{len(of):>7}{delivered:>11}  {', '.join(f'{name} {n}' for name, n in reasons.most_common())}"
        )
    plain = [one for one in seen if not one.textured]
    print(f"\n{len(seen)} objects, {len(plain)} of them without textures or vertex colours")
    rows = {
        "99 % of its pixels visible": f"{np.mean([one.visible >= 0.99 for one in seen]):.1%} of the objects",
        "less than half visible": f"{sum(one.visible < 0.5 for one in seen)} objects",
        "coverage, median": f"{np.median([one.coverage for one in seen]):.3f}",
        f"longest side, median of {res} pixels": f"{np.median(np.array([one.side for one in seen])):.0f}",
        "contrast, untextured, median": f"{np.median([one.contrast for one in plain]):.1f}",
        "contrast, untextured, 10th percentile": f"{np.percentile([one.contrast for one in plain], 10):.1f}",
        "over nine tenths black": f"{sum(one.black > 0.9 for one in seen)} objects",
        "magenta": f"{sum(one.magenta > 0.05 for one in seen)} objects",
    }
    for name, value in rows.items():
        print(f"{name:<40}{value}")


def main() -> None:
    """Render, measure, print, and write contact sheets."""
    options = tyro.cli(Options, description=__doc__)
    options = dataclasses.replace(options, folder=options.folder.absolute(), out=options.out.absolute())
    faces = paths(options)
    render(options, faces)
    shards = find_shards(options.out)[options.res]
    seen = [
        look_at(rows.uid, rows.jpegs, rows.layers["alpha"], rows.meta) for path in shards for rows in read_objects(path)
    ]
    ended = outcomes(options.out)
    report(ended, seen, options.res)
    report_seconds(ended)
    report_geometry(ended, faces)
    for number in range(0, len(seen), SHEET**2):
        of = [one.picture for one in seen[number : number + SHEET**2]]
        sheet = images.contact_sheet([of[start : start + SHEET] for start in range(0, len(of), SHEET)])
        (options.out / f"sheet-{number // SHEET**2:02}.png").write_bytes(images.encode_png(sheet))


if __name__ == "__main__":
    main()
