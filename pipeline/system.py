"""Find, and on Debian install, system packages beside the Python packages. Standard library only: `make setup` runs this first.

python3.11 -m pipeline.system build run test
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable
from dataclasses import dataclass

LOCK_WAIT_S, LOCK_LOOK_S = 900.0, 2.0  # most seconds to wait for another apt, and between two tries


@dataclass(frozen=True)
class Need:
    """One requirement of the system. kind: command, header, module or library; package: its name in Debian 12.

    purpose: build (to install the Python packages), run (to render) or test (for `make test`).
    """

    kind: str
    what: str
    package: str
    purpose: str
    why: str


NEEDS = (
    Need("module", "ensurepip", "python3.11-venv", "build", "puts pip into .venv"),
    Need("command", "gcc", "gcc", "build", "compiles pillow-simd"),
    Need("header", "Python.h", "python3.11-dev", "build", "compiles pillow-simd"),
    Need("header", "jpeglib.h", "libjpeg-dev", "build", "compiles pillow-simd"),
    Need("header", "zlib.h", "zlib1g-dev", "build", "compiles pillow-simd"),
    # Blender links against X even where it never opens a window; `ldd bpy/__init__.so` names the libraries
    Need("library", "libX11.so.6", "libx11-6", "run", "Blender"),
    Need("library", "libXrender.so.1", "libxrender1", "run", "Blender"),
    Need("library", "libXfixes.so.3", "libxfixes3", "run", "Blender"),
    Need("library", "libXi.so.6", "libxi6", "run", "Blender"),
    Need("library", "libXext.so.6", "libxext6", "run", "Blender"),
    Need("library", "libxkbcommon.so.0", "libxkbcommon0", "run", "Blender"),
    Need("library", "libSM.so.6", "libsm6", "run", "Blender"),
    Need("library", "libICE.so.6", "libice6", "run", "Blender"),
    Need("library", "libGL.so.1", "libgl1", "run", "Blender"),
    Need("library", "libEGL.so.1", "libegl1", "run", "Blender's EEVEE on a GPU"),
    Need("command", "chromium", "chromium", "test", "looks at the HTML pages"),
    Need("command", "ffmpeg", "ffmpeg", "test", "makes and reads test videos"),
    Need("command", "git", "git", "test", "serves repositories to the tests of Objaverse-XL"),
)


def present(need: Need) -> bool:
    """True if the machine has `need`, found the way its user will look for it."""
    if need.kind == "library":
        return _loads(need.what)
    if need.kind == "header":
        return _compiles(need.what)
    if need.kind == "module":
        return importlib.util.find_spec(need.what) is not None
    return shutil.which(need.what) is not None


def missing(purposes: Iterable[str]) -> list[Need]:
    """Needs of the given purposes that the machine lacks."""
    wanted = set(purposes)
    return [need for need in NEEDS if need.purpose in wanted and not present(need)]


def apt_line(packages: Iterable[str], sudo: bool = True) -> str:
    """Command that installs all `packages` on Debian."""
    return f"{'sudo ' if sudo else ''}apt-get install -y --no-install-recommends {' '.join(sorted(set(packages)))}"


def _loads(soname: str) -> bool:
    try:
        ctypes.CDLL(soname)
    except OSError:
        return False
    return True


def _compiles(header: str) -> bool:
    if os.path.exists(os.path.join(sysconfig.get_path("include"), header)):  # Python's own, which gcc is told about
        return True
    command = ["gcc", "-E", "-x", "c", "-"]
    try:
        source = f"#include <stdio.h>\n#include <{header}>\n"
        return subprocess.run(command, input=source, text=True, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def _install(packages: list[str]) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    for command in ("apt-get update -q", apt_line(packages, sudo=False)):
        print(f"+ {command}", flush=True)
        _apt(command.split(), environment)


def _apt(command: list[str], environment: dict[str, str]) -> None:
    """Run an apt command, waiting while another process holds apt's lock: a machine that has just been booted updates itself.

    apt's DPkg::Lock::Timeout would wait for dpkg, but neither for the lists nor for the archives.
    """
    until, said = time.monotonic() + LOCK_WAIT_S, False
    while True:
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if "Could not get lock" not in done.stderr or done.returncode == 0 or time.monotonic() > until:
            sys.stderr.write(done.stderr)
            return done.check_returncode()
        if not said:
            said = True
            print(
                f"waiting for apt's lock, held by {_holder(done.stderr)}; at most {LOCK_WAIT_S / 60:.0f} minutes",
                flush=True,
            )
        time.sleep(LOCK_LOOK_S)


def _holder(words: str) -> str:
    """Extract "process 123 (unattended-upgr)" from apt's error text."""
    if (found := re.search(r"held by process (\d+)(?: \((.+?)\))?", words)) is None:
        return "another process"
    return f"process {found[1]}" + (f" ({found[2]})" if found[2] else "")


def main(purposes: list[str]) -> int:
    """Report everything that is missing at once. Root on Debian gets it installed; anyone else gets the command."""
    lacks = missing(purposes)
    if not lacks:
        return 0
    for need in lacks:
        print(f"missing: {need.what} ({need.why}; Debian package {need.package})")
    packages = [need.package for need in lacks]
    if shutil.which("apt-get") is None:
        print("next step: there is no apt-get here; install these with this system's package manager")
        return 1
    if os.geteuid() != 0:
        print(f"next step: {apt_line(packages)}")
        return 1
    print("this is root on a system with apt-get, so they are installed now", flush=True)
    try:
        _install(packages)
    except subprocess.CalledProcessError as error:
        print(f"that failed (exit status {error.returncode}); next step: {apt_line(packages, sudo=False)}")
        return 1
    if still := missing(purposes):
        print(f"still missing: {', '.join(need.what for need in still)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["build", "run"]))
