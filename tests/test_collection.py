"""Test ids: pytest-xdist wants the same from every process, so neither the clock nor chance nor the machine may decide them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import pytest_make_parametrize_id

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 200

# time.localtime and time.gmtime are what zipfile and gzip ask; datetime.now is C and stays
COLLECT = """
import sys, time
shift = float(sys.argv[1])
for name, unit in (("time", 1), ("time_ns", 10**9)):
    setattr(time, name, lambda real=getattr(time, name), unit=unit: real() + int(shift * unit))
for name in ("localtime", "gmtime"):
    setattr(time, name, lambda seconds=None, real=getattr(time, name): real(time.time() if seconds is None else seconds))
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "tests"]))
"""


def test_no_clock_no_chance_and_no_machine_is_in_a_test_id(tmp_path: Path) -> None:
    runs = []
    for number, shift in enumerate((0.0, 4e7 + 3)):  # more than a year later
        home = tmp_path / str(number)
        home.mkdir()
        # what a worker of xdist has is not passed on: pytest would take itself for one of them
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        env = clean | {"PYTHONHASHSEED": str(number), "TMPDIR": str(home), "HOME": str(home)}
        command = [sys.executable, "-c", COLLECT, str(shift)]
        runs.append(
            subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    said = [run.communicate(timeout=900)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said[0][-2000:] + said[1][-2000:]
    here, there = ([line for line in text.splitlines() if "::" in line] for text in said)
    assert len(here) > 1000
    assert [pair for pair in zip(here, there, strict=False) if pair[0] != pair[1]][:5] == []
    assert len(here) == len(there)
    bad = re.compile(r" at 0x|(\\x[0-9a-f]{2}){3}|" + re.escape(str(ROOT)))
    assert [name for name in here if len(name) > LONGEST or bad.search(name)] == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"plain", None),  # as pytest has it
        (b"\0\1", "2 bytes"),
        (b"caf\xe9", "4 bytes"),
        (b"q" * 500, "500 bytes"),
        ("y z", None),
        ("x" * 500, "x" * 60 + "..."),
        (7, None),
    ],
)
def test_ids_are_made_of_what_one_can_read(value: object, expected: str | None) -> None:
    assert pytest_make_parametrize_id(value) == expected
