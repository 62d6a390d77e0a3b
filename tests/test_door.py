"""The door of the command: interrupted while it starts, and paths that are no paths."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from pipeline import cli
from tests.conftest import lvsm_data_here

ROOT = Path(__file__).parents[1]
HERE = "from pathlib import Path\nimport time\nPath({!r}).touch()\n"
PASSES = "time.sleep(60)\n"
SWALLOWS = "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    raise ImportError('multiarray failed to import')\n"


def test_the_installed_command_goes_through_the_door() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["scripts"] == {"lvsm-data": "pipeline.__main__:main"}


@pytest.mark.parametrize(
    "library", ["numpy", "tyro", "pyarrow"]
)  # the first two before a verb begins, the last within one
@pytest.mark.parametrize("does", [PASSES, SWALLOWS], ids=["passes", "swallows"])
def test_ctrl_c_during_an_import_ends_quietly(tmp_path: Path, library: str, does: str) -> None:
    begun = tmp_path / "begun"
    (tmp_path / f"{library}.py").write_text(HERE.format(str(begun)) + does)
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "verify", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # also where the tests ignore it
    )
    deadline = time.monotonic() + 120
    while not begun.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)
    assert (said, process.returncode) == (("", "interrupted; the same command goes on where this one stopped\n"), 130)


@pytest.mark.parametrize(
    "arguments",
    [
        ("render", "--out", ""),
        ("import", "--input", ".", "--out="),
        ("export", "run", "--out", " "),
        ("paths", "--out", ""),
        ("manifest", "-o", ""),
        ("train", "--data", "x", "--out", ""),
        ("eval", "run", "--out", ""),
        ("view", "run", "--png", ""),
        ("licenses", "run", "--card", ""),
        ("render", "--out", "s3://bucket/run", "--desk", ""),
    ],
)
def test_an_empty_path_is_no_folder(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = lvsm_data_here(*arguments)
    flag = next(each.rstrip("=") for each in reversed(arguments) if each.startswith("-"))
    assert ended.returncode == 2 and ended.stderr.startswith(f"error: {flag} is empty\nhint: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "error"),
    [("~nobody-of-that-name/run", "nobody of that name has a home here"), ("x" * 300, "File name too long")],
    ids=["home", "long"],
)
@pytest.mark.parametrize("arguments", [("eval",), ("render", "--out"), ("import", "--input"), ("verify",)])
def test_a_path_that_no_machine_has_is_said(
    arguments: tuple[str, ...], path: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = lvsm_data_here(*arguments, path)
    assert ended.returncode == 2 and ended.stderr.startswith("error: ")
    assert path in ended.stderr and f": {error}\nhint: " in ended.stderr


def refuse(number: int, monkeypatch: pytest.MonkeyPatch) -> subprocess.CompletedProcess[str]:
    """The command, where the machine refuses to write a file with this error."""

    def verb() -> int:
        raise OSError(number, os.strerror(number), "/some/file")

    monkeypatch.setitem(cli.VERBS, "doctor", verb)
    return lvsm_data_here("doctor")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_place_that_nobody_can_write_to_is_said(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    done = refuse(number, monkeypatch)
    assert done.returncode == 2 and done.stderr.startswith(f"error: /some/file: {os.strerror(number)}\nhint: ")


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        refuse(errno.ENOENT, monkeypatch)
