"""Benchmarks, which take hours and run by hand: what they import must be there all the same, and the first one must work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

FOLDER = Path(__file__).parents[1] / "benchmarks"
IMPORT_ALL = """
import importlib, pathlib, sys
folder = pathlib.Path(sys.argv[1])
sys.path[:0] = [str(folder), str(folder.parent)]
for path in sorted(folder.glob("*.py")):
    importlib.import_module(path.stem)
    print(path.stem)
"""


def test_every_benchmark_finds_what_it_imports() -> None:
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL, FOLDER], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == names and len(names) > 10


def test_rendering_is_compared_with_a_fresh_blender_for_each_object() -> None:
    """On next to nothing, whose figures mean nothing: the two ways have to go on understanding the same job."""
    work = ("--res", "16", "--views", "2", "--objects", "1", "--samples", "1", "--common-samples", "1")
    judged = ("--common-views", "1", "--reference-views", "1", "--reference-samples", "4")
    command = [sys.executable, FOLDER / "render.py", *work, *judged]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 objects x 2 views, 16 px" in done.stdout and "left out" not in done.stdout
