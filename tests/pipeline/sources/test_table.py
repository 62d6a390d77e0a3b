"""The table of sources: a new source is one module and one line, and what the table says of a module is so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import sources
from pipeline.config import source_table
from pipeline.config.source_table import SOURCES
from pipeline.report.status import read_status
from tests.conftest import lvsm_data_here

TOY = """
from pathlib import Path

from pipeline.core.records import Item

SAYS = "toys"
HOWTO = "--source toy"


def items(cfg, seed, net):
    yield Item("duck", "toy", license="CC0-1.0")


def fetch(item, folder):
    path = folder / "duck.obj"
    path.write_text("v 0 0 0\\nv 1 0 0\\nv 0 1 0\\nv 0 0 1\\nf 1 3 2\\nf 1 2 4\\nf 2 3 4\\nf 1 4 3\\n")
    return path
"""
LINE = '    "toy": Source("object", "toy"),\n'
WITH_LINE = """
import sys, types
module = sys.modules["pipeline.config.source_table"] = types.ModuleType("pipeline.config.source_table")
exec(sys.argv.pop(1), vars(module))
from pipeline.cli import main
main()
"""


@pytest.fixture
def with_toy(tmp_path: Path) -> object:
    """The command line, with a file for the new source beside the others, and a line for it in the table."""
    (tmp_path / "toy.py").write_text(TOY)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        table = Path(source_table.__file__).read_text()
        first_posed = next(line for line in table.splitlines() if '"posed", "pipeline' in line)
        command = [
            sys.executable,
            "-c",
            WITH_LINE,
            table.replace(first_posed, LINE + first_posed),
            *map(str, arguments),
        ]
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "150"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return run


def test_a_new_source_is_one_module_and_one_line(with_toy, tmp_path: Path, blender_lent: None) -> None:  # type: ignore[no-untyped-def]
    """Help, wrong choices, hints and a whole run know the source; Blender renders its one object."""
    assert ",manifest,toy}" in with_toy("render", "--help").stdout
    assert "toy" not in with_toy("import", "--help").stdout
    assert "'toy')" in with_toy("manifest", "--source", "nope").stderr
    assert "invalid choice 'toy'" in lvsm_data_here("render", "--source", "toy").stderr
    refused = with_toy("render", "--source", "toy", "--input", tmp_path)
    assert refused.returncode == 2 and "--input does not go with --source toy" in refused.stderr
    tiny = ("--res", 64, "--views", 2, "--samples", 4, "--executor", "inline", "--n", 1, "--val-percent", 0)
    done = with_toy("render", "--source", "toy", *tiny, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("source: toys (others: --source procedural | --source local")
    assert read_status(tmp_path / "run")["delivered"] == 1
    assert lvsm_data_here("verify", tmp_path / "run").returncode == 0
    drawn = lvsm_data_here("render", *tiny, "--out", tmp_path / "drawn").stdout
    assert drawn.startswith("source: procedural (embedded) (others: ") and "toy" not in drawn


@pytest.mark.parametrize("name", SOURCES)
def test_the_table_and_the_modules_agree(name: str) -> None:
    source, module = SOURCES[name], sources.load(name)
    assert module.SAYS and module.HOWTO
    assert (source.fetched or hasattr(module, "remote")) == hasattr(module, "fetch_many")
    assert not (source.fetched and hasattr(module, "remote"))  # one of the two decides
    assert hasattr(module, "load") == (source.kind != "object")
    assert f"--source {name}" in module.HOWTO or name in ("manifest", "realestate10k", "acid")
