"""Is the trainer right and quick on this machine's GPU? In eight minutes, with no more than this tree and torch's packages.

    make gpu-check                                               # shards are made here, without Blender
    python benchmarks/gpu_check.py --data RUN --official LVSM    # your own, and the authors' classes beside ours

Writes gpu-check.json and prints the same as a table. Each part is a process of its own with its own time: one that fails, or
takes too long, is a row that says so. thesis64, the last, trains for as long as is left, four minutes at most. Without a GPU, or
with --tiny, all parts run in this process, with models and data so small that it takes a minute: that shows that the check works,
and its times mean nothing. _gpu_parts.py has the parts. Networks of the loss have random weights where only speed matters.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import _gpu_parts as parts
from _gpu_parts import PARTS, Options, Row

from lvsm_train.evaluation.scores import finite
from pipeline.core.disk import write_json
from pipeline.core.errors import UserError

GRACE_S = 15.0  # for a part to end after it was interrupted
AROUND_S = 30.0  # of a part that trains: to start, to decode, to compile, to evaluate
LEAST_S = 10.0  # below which a part is not begun


def check(options: Options) -> dict[str, Any]:
    """Run all parts, and return what gpu-check.json has."""
    begun = time.monotonic()
    tiny = options.tiny or not torch.cuda.is_available()
    options = dataclasses.replace(options, tiny=tiny)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        options = with_data(options, Path(scratch))
        for name in PARTS:
            left = options.seconds - (time.monotonic() - begun)
            limit = min(PARTS[name].seconds, left - GRACE_S)
            clock = time.perf_counter()
            if not tiny and limit < LEAST_S:
                row = Row(name, error=f"no time was left of {options.seconds:g} s")
            else:
                row = run(name, options, rows) if tiny else isolated(name, within(options, limit), rows, limit)
            rows.append(dataclasses.replace(row, seconds=round(time.perf_counter() - clock, 1)))
            print(line(rows[-1]), flush=True)
    return {
        "machine": machine(tiny),
        "command": " ".join(["gpu_check.py", *sys.argv[1:]]),
        "tiny": tiny,
        "seconds": round(time.monotonic() - begun, 1),
        "rows": [finite(dataclasses.asdict(row)) for row in rows],
    }


def with_data(options: Options, scratch: Path) -> Options:
    """Options with a folder of shards: the given one, or one of balls that is made here."""
    if options.data:
        return options
    from _balls import balls

    sizes = (10, 12, 32) if options.tiny else (200, 24, 64)
    return dataclasses.replace(options, data=balls(scratch / "balls", *sizes), made=True)


def within(options: Options, limit: float) -> Options:
    """Options whose training ends so long before `limit` that what follows has its time."""
    return dataclasses.replace(options, train_seconds=max(1.0, min(options.train_seconds, limit - AROUND_S)))


def run(name: str, options: Options, before: list[Row]) -> Row:
    """Run a part in this process. Whatever it raises becomes its error."""
    try:
        return Row(name, PARTS[name].run(options, before))
    except parts.Left as left:
        return Row(name, error=str(left), left_out=True)
    except (Exception, KeyboardInterrupt) as error:  # a broken part must not cost the others
        said = " ".join(str(error).split())[:300]
        hint = f" ({error.hint})" if isinstance(error, UserError) and error.hint else ""
        return Row(name, error=f"{type(error).__name__}: {said}{hint}")


def isolated(name: str, options: Options, before: list[Row], limit: float) -> Row:
    """Run a part in a process of its own. After `limit` seconds it is interrupted, as by Ctrl-C, and after GRACE_S ended."""
    given = json.dumps(
        {"part": name, "options": options.as_json(), "rows": [dataclasses.asdict(one) for one in before]}
    )
    late = ""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, __file__, "--", given],
            stdout=said,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background ignore it
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            late = f"was ended after {limit:.0f} s"
            process.send_signal(signal.SIGINT)
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        said.seek(0)
        lines = said.read().decode(errors="replace").splitlines()
    if lines and lines[-1].startswith(ROW):
        row = Row(**json.loads(lines[-1].removeprefix(ROW)))
        return dataclasses.replace(row, error=f"{late}: {row.error}") if late and row.error else row
    return Row(name, error=f"{late or f'ended with {process.returncode}'}: {' / '.join(lines[-3:])[-300:]}")


ROW = "row: "


def part(given: dict[str, Any]) -> None:
    """Be the process of `isolated`: print the row as the last line."""
    row = run(given["part"], Options.from_json(given["options"]), [Row(**one) for one in given["rows"]])
    print(f"\n{ROW}{json.dumps(dataclasses.asdict(row))}", flush=True)


def machine(tiny: bool) -> dict[str, Any]:
    """Facts of the machine."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {
        "gpu": gpu,
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "python": platform.python_version(),
        "note": "tiny: times mean nothing" if tiny else "",
    }


def line(row: Row) -> str:
    """Line of the table, in Markdown."""
    figures = ", ".join(f"{name} {shown(value)}" for name, value in row.figures.items())
    said = ("left out: " if row.left_out else "**failed**: ") + row.error if row.error else figures
    return f"| {row.part} | {said} | {row.seconds:.0f} s |"


def shown(value: Any) -> str:
    """Text of a figure: four digits of a number, as it is otherwise."""
    return f"{value:.4g}" if isinstance(value, float) else "not known" if value is None else str(value)


def main() -> int:
    """Print a table and write the file. Exit status 1 if a part failed."""
    if sys.argv[1:2] == ["--"]:
        part(json.loads(sys.argv[2]))
        return 0
    options = tyro.cli(Options, description=__doc__)
    print(
        f"| part | {'tiny: times mean nothing' if options.tiny or not torch.cuda.is_available() else 'figures'} | took |"
    )
    print("|---|---|---|")
    found = check(options)
    write_json(options.out, found)
    print(f"\n{found['machine']}: {found['seconds']:.0f} s, {options.out}")
    return int(any(row["error"] and not row["left_out"] for row in found["rows"]))


if __name__ == "__main__":
    sys.exit(main())
