"""The check of a GPU, in its tiny version on a CPU: all parts run, what fails is a row, and it needs no more than it says."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from benchmarks import gpu_check
from benchmarks.gpu_check import PARTS, Options, Row, parts
from pipeline.core.errors import UserError

SCRIPT = Path(gpu_check.__file__)
# what a machine for training has, and what is carried there as wheels, each with what it imports
ALLOWED = """
torch torchgen functorch triton sympy mpmath networkx jinja2 markupsafe filelock fsspec typing_extensions packaging
numpy pyarrow cv2 tyro docstring_parser typeguard rich pygments markdown_it mdurl psutil tensorboardX google
lvsm_train pipeline training
""".split()
ALONE = """
import importlib.machinery, runpy, sys
class Few(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.split(".")[0]
        known = top in sys.stdlib_module_names or top in ALLOWED or top.startswith("_")
        return super().find_spec(name, path, target) if known else None
sys.meta_path[:] = [importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter, Few]
sys.argv = [SCRIPT, "--tiny", "--out", OUT]
runpy.run_path(SCRIPT, run_name="__main__")
"""


def test_it_needs_no_more_than_it_says(tmp_path: Path) -> None:
    """Nor does it write anywhere but into its file."""
    out = tmp_path / "here" / "gpu-check.json"
    out.parent.mkdir()
    code = f"ALLOWED, SCRIPT, OUT = {ALLOWED!r}, {str(SCRIPT)!r}, {str(out)!r}\n{ALONE}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    rows = {row["part"]: row for row in found["rows"]}
    assert list(rows) == list(PARTS) and found["tiny"] is True
    assert {name for name, row in rows.items() if row["error"]} == {"official", "rendering"}
    assert all(row["left_out"] for row in rows.values() if row["error"])
    for name in ("small", "thesis64", "base", "official-dec", "official-encdec"):
        figures = rows[f"{name} speed"]["figures"]
        assert figures["steps/s"] > 0 and figures["MFU"] is None and figures["launches"] is None
    assert rows["resume"]["figures"] == {"steps": 6, "losses": "equal bit by bit"}
    assert 0 < rows["parity"]["figures"]["unidirectional bf16"] < 0.1
    assert rows["loader"]["figures"]["ratio"] > 0 and rows["thesis64"]["figures"]["nearest PSNR"] > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"] and len(list(out.parent.iterdir())) == 1
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(table) == len(PARTS) + 1 and "times mean nothing" in table[0]


def test_what_fails_is_a_row(data_of_balls: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    def broken(options: Options, before: list[Row]) -> dict[str, Any]:
        assert [row.part for row in before] == ["fine"] and before[0].figures == {"answer": 42}
        raise UserError("no\nroom", "make some")

    some = {
        "fine": parts.Part(lambda options, before: {"answer": 42}, 9),
        "broken": parts.Part(broken, 9),
        "stopped": parts.Part(lambda options, before: (_ for _ in ()).throw(KeyboardInterrupt), 9),
        "after": parts.Part(lambda options, before: {"pi": 3.14159, "none": None}, 9),
    }
    monkeypatch.setattr(gpu_check, "PARTS", some)
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--tiny", "--data", str(data_of_balls), "--out", str(out)])
    assert gpu_check.main() == 1
    said = capsys.readouterr().out
    assert "| broken | **failed**: UserError: no room (make some) | 0 s |" in said
    assert "| after | pi 3.142, none not known | 0 s |" in said and "KeyboardInterrupt" in said
    assert [bool(row["error"]) for row in json.loads(out.read_text())["rows"]] == [False, True, True, False]


def test_parts_are_processes_and_end_in_time(data_of_balls: Path, tmp_path: Path) -> None:
    options = Options(data=data_of_balls, tiny=True, device="cpu", out=tmp_path / "x.json")
    row = gpu_check.isolated("loader", options, [], 120.0)
    assert not row.error and row.figures["samples/s"] > 0
    row = gpu_check.isolated("loader", options, [], 0.05)
    assert row.error.startswith("was ended after 0 s") and not row.figures
    row = gpu_check.isolated("resume", dataclasses.replace(options, data=tmp_path / "nowhere"), [], 120.0)
    assert "UserError" in row.error and "is no folder" in row.error
    assert Options.from_json(options.as_json()) == options
    assert gpu_check.within(options, 100.0).train_seconds == 70.0


def test_training_takes_the_time_that_is_left() -> None:
    rows = [Row("thesis64 speed", {"steps/s": 40.0})]
    assert parts._steps_for(Options(train_seconds=200.0), rows) == 7200
    assert parts._steps_for(Options(train_seconds=200.0), []) == 900 and parts._steps_for(Options(tiny=True), rows) < 50


@pytest.fixture(scope="module")
def data_of_balls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from benchmarks._balls import balls

    return balls(tmp_path_factory.mktemp("balls"), 10)
