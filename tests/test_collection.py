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
LONGEST, MANY = 200, 1000  # characters of an id; tests

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


def collected(home: Path, number: int, shift: float) -> list[str]:
    """Test ids in a process with a clock, a hash seed, a home and a folder for temporary files of its own."""
    home.mkdir()
    # what a worker of xdist has is not passed on: pytest would take itself for one of them
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env = clean | {"PYTHONHASHSEED": str(number), "TMPDIR": str(home), "HOME": str(home)}
    command = [sys.executable, "-c", COLLECT, str(shift)]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return [line for line in run.stdout.splitlines() if "::" in line]


def test_no_clock_no_chance_and_no_machine_is_in_a_test_id(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    there = collected(tmp_path / "there", 1, 4e7 + 3)  # more than a year later
    assert len(there) > MANY
    here = [item.nodeid for item in request.session.items]  # of this run, if it is one of all tests
    if len(here) < MANY:
        here = collected(tmp_path / "here", 0, 0.0)
    assert sorted(set(here) - set(there))[:5] == [] and len(here) == len(set(here))
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
        ("two\nlines", "two lines..."),
        (7, None),
    ],
)
def test_ids_are_made_of_what_one_can_read(value: object, expected: str | None) -> None:
    assert pytest_make_parametrize_id(value) == expected
