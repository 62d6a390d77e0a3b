"""Benchmarks, which take hours and run by hand: what they import must be there all the same, and the first one must work."""

from __future__ import annotations

import importlib.util
import re
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


def test_seconds_of_each_stage_are_means_of_the_files_that_came_to_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("real", FOLDER / "real.py")
    assert spec is not None and spec.loader is not None
    real = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "real", real)  # where its dataclasses look for their module
    spec.loader.exec_module(real)
    render = {"fetch": 1.0, "import": 2.0, "render": 4.0, "total": 7.0}
    quick = {"fetch": 3.0, "import": 1.0, "render": 2.0, "total": 6.0}
    ended = [("a.glb", "delivered", "", render), ("deep/b.GLB", "delivered", "", quick)]
    real.report_seconds(
        [*ended, ("c.obj", "failed", "empty", {"fetch": 5.0, "total": 5.0}), ("d.obj", "failed", "gone", {})]
    )
    lines = capsys.readouterr().out.split("\n")[1:]
    assert re.split(r" +", lines[0]) == ["seconds", *real.STAGES]
    assert re.split(r" +", lines[1]) == [".glb", "2.00", "-", "1.50", "-", "3.00", "-", "6.50"]
    assert re.split(r" +", lines[2]) == [".obj", "5.00", "-", "-", "-", "-", "-", "5.00"]
    assert re.split(r" +", lines[3]) == ["all", "3.00", "-", "1.50", "-", "3.00", "-", "6.00"]
    assert "7.0 s, most of it render: a.glb" in lines[4] and "5.0 s, most of it fetch: c.obj (empty)" in lines[6]
