"""`lvsm-data doctor`: check what is installed and what works, and name fixes. Imports neither bpy nor torch."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline import system
from pipeline.core.errors import Retry, UserError
from pipeline.core.text import shown, size
from pipeline.download import reach
from pipeline.video import js_runtime
from pipeline.worker import blender

COLUMNS = 100
DISK_GB, MEMORY_GB, SHM_GB, OPEN_FILES = 5, 2, 1, 8192  # below these, doctor adds a note
TOOLS = {
    "ffmpeg": "reads videos",
    "yt-dlp": "fetches videos",
    "git": "fetches objects that live in Git repositories",
    "chromium": "only `make test` needs it, to look at the HTML pages",
}


@dataclass(frozen=True)
class Check:
    """One finding. level: ok, note (something does less than it could) or problem (rendering will not work)."""

    name: str
    level: str
    says: str
    fix: str = ""


def examine(network: tuple[str, ...] | None = None) -> list[Check]:
    """Run every check, in the order in which problems are best repaired. network: as in check_network, None for no such check."""
    checks = [check for function in CHECKS for check in function()]
    return checks if network is None else checks + check_network(network)


def lines(checks: list[Check]) -> list[str]:
    """Format checks as aligned text, wrapped at 100 columns; a fix stays on one line, so that it can be copied."""
    width = max((len(check.name) for check in checks), default=0)
    made = []
    for check in checks:
        head = f"{check.level:<7}  {check.name:<{width}}  "
        indent = " " * len(head)
        made += textwrap.wrap(check.says, COLUMNS, initial_indent=head, subsequent_indent=indent) or [head.rstrip()]
        if check.fix:
            made.append(f"{' ' * 9}-> {check.fix}")
    return made


def _version(distribution: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(distribution)
    return None


def _pip() -> str:
    return f"{shown(Path(sys.executable))} -m pip"


def check_python() -> list[Check]:
    says = f"{platform.python_version()} in {sys.prefix}"
    if sys.version_info[:2] == (3, 11):
        return [Check("Python", "ok", says)]
    return [Check("Python", "problem", f"{says}; bpy has wheels for 3.11 alone", "install Python 3.11, make setup")]


def check_packages() -> list[Check]:
    """Check versions of the packages that rendering and training need, without importing them."""
    checks = []
    for name in ("lvsm-data", "bpy", "numpy", "pyarrow", "ray", "torch"):
        version = _version(name)
        if version is None and name == "torch":
            checks.append(Check(name, "note", "not installed; only training needs it", "make setup-train"))
        elif version is None:
            checks.append(Check(name, "problem", "not installed", "make setup"))
        elif name == "numpy" and int(version.split(".")[0]) > 1:
            checks.append(Check(name, "problem", f"{version}; bpy 4.5 needs 1.x", f"{_pip()} install 'numpy<2'"))
        else:
            checks.append(Check(name, "ok", version))
    return checks


def judge_pil(pillow: str | None, simd: str | None, active: str, x86: bool) -> Check:
    """Judge the installed PIL. pillow, simd: installed versions or None. active: PIL.__version__, "" if PIL cannot be imported.

    Both distributions own the same PIL folder: whichever was installed last overwrote the other's files.
    """
    take_out = f"{_pip()} uninstall -y pillow && " if pillow else ""
    put_back = f"{_pip()} install --force-reinstall --no-deps pillow-simd{'==' + simd if simd else ''}"
    mend = take_out + put_back if x86 else f"{_pip()} install --force-reinstall --no-deps pillow"
    if not active:
        return Check("PIL", "problem", "cannot be imported", mend)
    if pillow and simd:
        says = f"pillow {pillow} and pillow-simd {simd} overwrite each other; active is {active}"
        return Check("PIL", "problem", says, mend)
    if not x86:  # pillow-simd exists for x86 alone
        return Check("PIL", "ok", f"pillow {active}")
    if pillow:
        return Check("PIL", "note", f"plain pillow {active}; pillow-simd encodes and decodes faster", mend)
    if simd == active:
        return Check("PIL", "ok", f"pillow-simd {active}")
    return Check("PIL", "problem", f"active is {active}, but {simd and 'pillow-simd ' + simd} is installed", mend)


def check_pil() -> list[Check]:
    try:
        from pipeline.core.images import version

        active = version()
    except ImportError:  # no PIL, or a mix of files of pillow and pillow-simd
        active = ""
    return [judge_pil(_version("pillow"), _version("pillow-simd"), active, platform.machine() == "x86_64")]


def not_found(ldd: str) -> list[str]:
    """Names of the libraries that `ldd` reports as not found."""
    return [line.split("=>")[0].strip() for line in ldd.splitlines() if line.rstrip().endswith("=> not found")]


def judge_libraries(absent: set[str]) -> Check:
    """Judge the shared libraries. absent: sonames that the loader does not find."""
    if not absent:
        return Check("libraries", "ok", "all that Blender links against")
    packages = {need.what: need.package for need in system.NEEDS}
    known = [packages[name] for name in absent if name in packages]
    unknown = sorted(name for name in absent if name not in packages)
    fixes = [system.apt_line(known)] if known else []
    if unknown:
        fixes.append(f"install the packages that bring {' '.join(unknown)} (apt-file search NAME finds them)")
    return Check("libraries", "problem", f"missing: {', '.join(sorted(absent))}", "; ".join(fixes))


def check_libraries() -> list[Check]:
    absent = {need.what for need in system.missing(["run"]) if need.kind == "library"}
    spec = importlib.util.find_spec("bpy")
    if spec and spec.origin and shutil.which("ldd"):
        found = subprocess.run(["ldd", spec.origin], capture_output=True, text=True)
        absent |= set(not_found(found.stdout))
    return [judge_libraries(absent)]


def check_blender() -> list[Check]:
    """Start a real Blender once; judge its isolation and its GPUs."""
    with tempfile.TemporaryDirectory(prefix="lvsm-doctor-") as scratch:
        worker = blender.Blender(Path(scratch), blender.Limits(timeout_s=blender.START_TIMEOUT_S))
        start = time.perf_counter()
        try:
            hello = worker.start()
        except Retry as error:
            how, *log = error.detail.splitlines()
            says = f"does not start: {how}" + (f"; its last line: {log[-1]}" if log else "")
            return [
                Check(
                    "Blender", "problem", says, f"{shown(Path(sys.executable))} -c 'import bpy' shows the whole error"
                )
            ]
        finally:
            worker.close()
        seconds = time.perf_counter() - start
    started = Check("Blender", "ok", f"{hello['blender']}, starts in {seconds:.1f} s")
    return [started, judge_isolation(hello["network"], hello["tcp"], hello["files"]), judge_gpus(hello["devices"])]


def judge_isolation(network: bool, tcp: bool, files: bool) -> Check:
    """Judge the isolation of Blender, which opens untrusted files. network, tcp, files: True if within reach (confine.py)."""
    left, fixes = [], []
    if network:
        how = "" if tcp else ", though not by TCP"
        left.append(f"the network{how}: this system gives it no namespace of its own")
        fixes.append(
            "sysctl kernel.unprivileged_userns_clone=1 (Debian) or kernel.apparmor_restrict_unprivileged_userns=0 "
            "(Ubuntu); in a container: --cap-add SYS_ADMIN; in a chroot: none can be had"
        )
    if files:
        left.append("your files: this kernel has no Landlock, or it is off")
        fixes.append("Linux 5.13 or later with landlock among lsm= of its command line (/sys/kernel/security/lsm)")
    if not left:
        return Check("isolation", "ok", "Blender runs without a network, and opens no files but an object's own")
    says = f"Blender can reach {'; and '.join(left)}; open only objects that you trust"
    return Check("isolation", "note", says, "; ".join(fixes))


def judge_gpus(devices: dict[str, list[str]]) -> Check:
    gpus = [f"{kind}: {', '.join(names)}" for kind, names in devices.items() if kind != "CPU"]
    if gpus:
        return Check("GPU", "ok", "; ".join(gpus))
    if shutil.which("nvidia-smi"):
        fix = "in a container: --gpus all -e NVIDIA_DRIVER_CAPABILITIES=all (Cycles needs compute and graphics)"
        return Check("GPU", "note", "CPU only: nvidia-smi is here, but Cycles sees no GPU", fix)
    return Check("GPU", "note", f"CPU only ({', '.join(devices.get('CPU', []))}); rendering works, slower")


def check_tools() -> list[Check]:
    """Check the programs that some commands use."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # yt-dlp lives beside Python
    checks = []
    for name, purpose in TOOLS.items():
        if found := shutil.which(name, path=path):
            checks.append(Check(name, "ok", found))
        else:
            fix = "make setup" if name == "yt-dlp" else system.apt_line([name])
            checks.append(Check(name, "note", f"not installed; {purpose}", fix))
    return checks


def judge_js_runtime(found: list[js_runtime.Runtime], solver: js_runtime.Solver) -> Check:
    """Judge JavaScript. found: runtimes that yt-dlp sees, of any version. solver: scripts that solve YouTube's challenges."""
    usable = [f"{runtime.name} {runtime.version}" for runtime in found if runtime.supported]
    if usable and solver.fits:
        return Check("JavaScript", "ok", f"{', '.join(usable)}; yt-dlp-ejs {solver.installed}")
    lacks = []
    if not usable:
        old = [
            f"{runtime.name} {runtime.version} is too old (yt-dlp wants {runtime.least} or later)" for runtime in found
        ]
        lacks += old or ["no deno, node, bun or quickjs"]
    if not solver.installed:
        lacks.append("no yt-dlp-ejs")
    elif not solver.fits:
        lacks.append(f"yt-dlp-ejs {solver.installed} (yt-dlp wants {solver.wanted})")
    says = f"{'; '.join(lacks)}; only fetching from YouTube needs them"
    return Check("JavaScript", "note", says, f"{_pip()} install deno yt-dlp-ejs=={solver.wanted}")


def check_videos() -> list[Check]:
    """Check that yt-dlp can solve the challenges that YouTube sets in JavaScript."""
    try:
        return [judge_js_runtime(js_runtime.found_runtimes(), js_runtime.solver())]
    except ImportError as error:  # no yt-dlp, or a version with other modules
        return [Check("JavaScript", "note", f"yt-dlp cannot be asked: {error}", "make setup")]


def _at_least(name: str, have_gb: float, need_gb: float, says: str, fix: str) -> Check:
    enough = have_gb >= need_gb
    return Check(name, "ok" if enough else "note", says, "" if enough else fix)


def check_room() -> list[Check]:
    """Check free disk, memory and shared memory."""
    disk = shutil.disk_usage(Path.cwd()).free / 1e9
    memory = psutil.virtual_memory()
    free, cores = memory.available / 1e9, len(os.sched_getaffinity(0))
    memory_says = f"{free:.1f} GB free of {memory.total / 1e9:.1f} GB, {cores} cores"
    checks = [
        _at_least("disk", disk, DISK_GB, f"{disk:.1f} GB free in this folder", "make room, or point --out elsewhere"),
        _at_least("memory", free, MEMORY_GB, memory_says, "a Blender takes about 1.5 GB: give --workers 1"),
    ]
    shm = Path("/dev/shm")
    if shm.is_dir():
        size = shutil.disk_usage(shm).total / 1e9
        fix = "Ray keeps objects there; in a container: --shm-size=2g"
        checks.append(_at_least("/dev/shm", size, SHM_GB, f"{size:.1f} GB", fix))
    return checks


def check_open_files() -> list[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    says = f"{soft} per process, may be raised to {'any number' if hard == unlimited else hard}"
    if hard == unlimited or hard >= OPEN_FILES:  # Ray raises its own limit as far as it may
        return [Check("open files", "ok", says)]
    return [Check("open files", "note", says, "Ray wants more; in a container: --ulimit nofile=65536")]


def check_network(urls: tuple[str, ...]) -> list[Check]:
    """Check which hosts answer, through which proxy and how fast. urls: to ask in place of those of all sources."""
    try:
        answers = reach.answers(urls)
    except UserError as error:
        return [Check("network", "note", str(error), error.hint)]
    checks = []
    for answer in answers:
        way = f" through {answer.proxy}" if answer.proxy else ""
        if answer.error:
            fix = (
                "look at the connection, or at the proxy"
                if answer.proxy
                else "look at the connection, or set HTTPS_PROXY"
            )
            says = f"no answer{way} after {answer.seconds:.1f} s: {answer.error}; needed for {answer.purpose}"
            checks.append(Check(answer.host, "note", says, fix))
            continue
        speed = f", {size(answer.bytes_per_s)}/s" if answer.bytes_per_s else ""
        checks.append(Check(answer.host, "ok", f"answers{way} after {answer.seconds:.2f} s{speed}; {answer.purpose}"))
    return checks


CHECKS: tuple[Callable[[], list[Check]], ...] = (
    check_python,
    check_packages,
    check_pil,
    check_libraries,
    check_blender,
    check_tools,
    check_videos,
    check_room,
    check_open_files,
)
