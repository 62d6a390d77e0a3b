"""Commands that start at once are those that are installed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import COMMAND, lvsm_data


def test_a_command_has_its_own_folder_environment_and_end(tmp_path: Path) -> None:
    env = os.environ | {"HOME": str(tmp_path / "home")}
    bad = ("render", "--n", "0", "--desk", "~/desk", "--out", "s3://x/y")
    for words, status in ((bad, 2), (("status", "--help"), 0)):
        installed = subprocess.run(
            [COMMAND, *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
        )
        done = lvsm_data(*words, cwd=tmp_path, env=env)
        assert (done.returncode, done.stdout, done.stderr) == (status, installed.stdout, installed.stderr)
        assert installed.returncode == status


def test_a_command_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        lvsm_data("render", "--n", 100, "--executor", "inline", "--out", tmp_path / "run", timeout=1)
    assert lvsm_data("status", tmp_path).returncode == 2  # and the next one is served
