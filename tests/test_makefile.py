"""Which Python `make` takes: the one it is told, or else one that uv finds or brings. uv and Python are scripts here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).resolve().parents[1] / "Makefile"
UV = """#!/bin/bash
echo "$*" >> said
case "$2" in
    install) [ -z "$BROKEN" ] && echo > installed ;;
    find) [ -e installed ] && echo /somewhere/python3.11 ;;
esac
"""
PYTHON3 = """#!/bin/bash
[ "$*" = "-m venv build/uv" ] || exit 1
mkdir -p build/uv/bin
printf '#!/bin/bash\\necho "pip $*" >> said; cp uv build/uv/bin/uv' > build/uv/bin/pip
chmod +x build/uv/bin/pip
"""
OURS = f"""#!/bin/bash
exec {sys.executable} "$@"
"""
OTHER = """#!/bin/bash
exit 1
"""


class Place:
    """A folder with our Makefile, and a path with nothing on it but bash and what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "path"
        self.path.mkdir()
        shutil.copy(MAKEFILE, folder)
        self.program(folder / "uv", UV)
        for name in ("bash", "mkdir", "chmod", "cp"):
            (self.path / name).symlink_to(str(shutil.which(name)))

    def program(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def make(self, **environment: str) -> tuple[str, str]:
        """The path that it prints, which is empty where it fails, and what it says."""
        command = [str(shutil.which("make")), "-s", "python311"]
        env = {"PATH": str(self.path)} | environment
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=300)
        assert (done.returncode == 0) == bool(done.stdout)
        return done.stdout.strip(), done.stderr

    def said(self) -> list[str]:
        path = self.folder / "said"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_one_on_the_path_is_taken(place: Place) -> None:
    place.program(place.path / "python3.11", OURS)
    place.program(place.path / "uv", UV)
    assert place.make() == (str(place.path / "python3.11"), "")
    assert place.make(PYTHON=sys.executable) == (sys.executable, "")
    assert place.said() == []


@pytest.mark.parametrize("other", [False, True])
def test_uv_brings_one_once(place: Place, other: bool) -> None:
    if other:
        place.program(place.path / "python3.11", OTHER)
    place.program(place.path / "uv", UV)
    found, words = place.make()
    assert (found, words) == ("/somewhere/python3.11", "'python3.11' is not Python 3.11: asking uv for it\n")
    assert place.said() == ["python find --system 3.11", "python install 3.11", "python find --system 3.11"]
    assert place.make()[0] == found
    assert place.said()[3:] == ["python find --system 3.11"]


def test_pip_brings_uv_once(place: Place) -> None:
    place.program(place.path / "python3", PYTHON3)
    assert place.make()[0] == place.make()[0] == "/somewhere/python3.11"
    assert place.said().count("pip install -q uv") == place.said().count("python install 3.11") == 1


@pytest.mark.parametrize("uv", [False, True])
def test_without_one_the_next_step_is_told(place: Place, uv: bool) -> None:
    if uv:
        place.program(place.path / "uv", UV)
    found, words = place.make(BROKEN="yes")
    assert found == ""
    assert "Python 3.11 is needed (bpy has wheels for no other), and uv (https://docs.astral.sh/uv)" in words
    assert "next step: apt-get install python3.11" in words and "make PYTHON=/path/to/python3.11" in words


def test_set_up_begins_with_it(place: Place) -> None:
    place.program(place.path / "python3.11", OURS)
    (place.folder / "pipeline").mkdir()
    (place.folder / "pipeline" / "system.py").write_text("import sys\nsys.exit(f'asked for {sys.argv[1:]}')\n")
    for name in ("pyproject.toml", "requirements.lock"):
        (place.folder / name).touch()
    command = [str(shutil.which("make")), "setup-test"]
    done = subprocess.run(command, cwd=place.folder, env={"PATH": str(place.path)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "asked for ['build', 'run', 'test']" in done.stderr and done.stdout == ""
