"""From the published recipe to ours, one change at a time, on the same objects: what does each bring?

    lvsm-data render --n 600 --res 64 --views 32 --seed 6 --out data/objects
    lvsm-data render --n 64 --res 64 --views 32 --seed 7 --val-percent 99 --out data/unseen
    python benchmarks/recipes.py --data data/objects data/unseen --out runs/recipes

With --aux, of shards that were rendered with --depth --normals --alpha: `small` as long, with and without these heads, two seeds.

Every recipe trains the same steps on the same batches, with a model of as many layers of the same width; the last one also for as
long as the first one took. The published learning rate belongs to a width of 768 and 100,000 steps: all get the one that suits
this width. Runs that are finished are not repeated. Prints a table, and draws curves on OUT/index.html.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline.report.charts import Plot
from pipeline.report.findings import Section, Table, write_page

OFFICIAL = "--kind decoder_only --no-prope --init official --optimizer adamw --ema 0 --final-lr 0"
RECIPES = {  # each with what the one before has
    "published": OFFICIAL,
    "unidirectional": OFFICIAL.replace("decoder_only", "unidirectional"),
    "Muon": "--no-prope --init official --ema 0 --final-lr 0",
    "width-aware start": "--no-prope --ema 0 --final-lr 0",
    "PRoPE: small": "",
}
AUX = "--aux depth normals alpha"
SEEDS = (0, 1)
LONG = "small, as long"
COLUMNS = ("recipe", "steps", "CPU min", "unseen objects", "over nearest view", "on the object", "SSIM")


@dataclass(frozen=True)
class Options:
    """What to train on."""

    data: tuple[Path, ...]
    """Folders of runs of lvsm-data."""
    out: Path
    """Where the runs go."""
    steps: int = 450
    """Steps of each recipe."""
    long_steps: int = 2400
    """Steps of `small` once more, so that it takes as long as the published recipe: to be found by trying."""
    aux: bool = False
    """Compare `small` with and without --aux instead."""
    aux_steps: int | None = None
    """Steps with --aux, so that they take as long as --long-steps without: to be found by trying. Default: as many."""
    eval_objects: int = 64
    """Objects that do not train, to measure on."""


def run(options: Options, name: str, flags: str, steps: int) -> Path:
    """Train unless that was done; returns the folder."""
    out = options.out / "".join(letter if letter.isalnum() else "-" for letter in name)
    log = out / "log.jsonl"
    if log.exists() and json.loads(log.read_text().splitlines()[-1])["step"] >= steps:
        return out
    command = [Path(sys.executable).with_name("lvsm-data"), "train", "--data", *options.data, "--out", out]
    command += ["--preset", "small", "--steps", steps, "--checkpoint-every", steps, *flags.split()]
    command += [
        "--eval-every",
        max(1, steps // 8),
        "--eval-objects",
        options.eval_objects,
        "--lr",
        "2e-3",
        "--warmup",
        100,
    ]
    before = os.times()
    subprocess.run([str(part) for part in command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = os.times()
    (out / "cpu_seconds").write_text(str(after.children_user - before.children_user))
    return out


def curve(out: Path) -> list[tuple[float, float]]:
    """(minutes of one core, PSNR on unseen objects) at each evaluation, with steps of equal cost."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    minutes = float((out / "cpu_seconds").read_text()) / 60 / lines[-1]["step"]
    return [(line["step"] * minutes, line["evaluation"]["psnr"]) for line in lines if "evaluation" in line]


def row(name: str, out: Path) -> list[str]:
    """Cells of a recipe's row, from the log in its folder."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    last = [line for line in lines if "evaluation" in line][-1]
    scores = last["evaluation"]
    minutes = float((out / "cpu_seconds").read_text()) / 60
    over = scores["psnr"] - scores["nearest"]
    figures = (
        f"{scores['psnr']:.2f} dB",
        f"{over:+.2f} dB",
        f"{scores['foreground_psnr']:.2f} dB",
        f"{scores['ssim']:.3f}",
    )
    return [name, str(last["step"]), f"{minutes:.0f}", *figures]


def with_and_without_aux(options: Options) -> list[list[str]]:
    """Rows of a table: `small` with and without --aux, for each seed."""
    steps = {"": options.long_steps, AUX: options.aux_steps or options.long_steps}
    named = {f"small {flags}".strip() + f", seed {seed}": (flags, seed) for seed in SEEDS for flags in steps}
    return [
        row(name, run(options, name, f"{flags} --seed {seed}", steps[flags])) for name, (flags, seed) in named.items()
    ]


def print_table(rows: list[list[str]]) -> None:
    """Print rows in Markdown."""
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows):
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Print a table, in Markdown."""
    options = tyro.cli(Options, description=__doc__)
    if options.aux:
        print_table(with_and_without_aux(options))
        return
    runs = {name: run(options, name, flags, options.steps) for name, flags in RECIPES.items()}
    runs[LONG] = run(options, LONG, "", options.long_steps)
    rows = [row(name, out) for name, out in runs.items()]
    print_table(rows)
    lines = {"published": curve(runs["published"]), "small": curve(runs[LONG])}
    scores = json.loads((runs[LONG] / "log.jsonl").read_text().splitlines()[-1])["evaluation"]
    end = math.ceil(max(x for line in lines.values() for x, _ in line))
    lines["nearest view"] = [(0.0, scores["nearest"]), (float(end), scores["nearest"])]
    plot = Plot(lines, "minutes of one core", "PSNR of unseen objects, dB")
    page = options.out / "index.html"
    write_page(
        page,
        "Recipes",
        "What each change brings, on the same objects.",
        [Section("", "", [plot, Table(COLUMNS, rows)])],
    )
    print(f"page: {page}")


if __name__ == "__main__":
    main()
