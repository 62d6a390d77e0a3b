"""`lvsm-data doctor` and what stands behind it: no machine that lacks something may see a traceback."""

from __future__ import annotations

import fcntl
import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipeline import doctor, system
from pipeline.download import reach
from pipeline.video import js_runtime
from pipeline.video.js_runtime import Runtime, Solver
from pipeline.worker import blender
from tests.conftest import COMMAND, lvsm_data
from tests.hub import Hub
from tests.serving import SocksProxy

ROOT = Path(__file__).parent.parent
LEVELS = {"ok", "note", "problem"}


def by_name(checks: list[doctor.Check]) -> dict[str, doctor.Check]:
    return {check.name: check for check in checks}


def test_a_whole_installation_has_no_problem() -> None:
    ran = lvsm_data("doctor")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^ok +bpy +4\.5\.\d+$", ran.stdout, re.MULTILINE)
    assert re.search(r"^ok +Blender +4\.5\.\d+.*starts in \d", ran.stdout, re.MULTILINE)
    assert all(len(line) <= doctor.COLUMNS or "-> " in line for line in ran.stdout.splitlines())


def test_json_is_for_machines() -> None:
    ran = lvsm_data("doctor", "--json")
    found = json.loads(ran.stdout)
    assert {check["level"] for check in found} <= LEVELS
    assert {"bpy", "PIL", "libraries", "Blender", "GPU", "ffmpeg", "JavaScript", "disk"} <= {
        check["name"] for check in found
    }
    assert all(check["says"] for check in found)


def test_the_network_is_told_host_by_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    (tmp_path / "root/www").mkdir(parents=True)
    (tmp_path / "root/www/large.bin").write_bytes(bytes(3_000_000))
    with Hub(tmp_path / "root") as hub, SocksProxy() as proxy:
        gone = hub.cdn_url.rpartition(":")[0] + ":1"
        urls = (f"{hub.url}/large.bin", f"{hub.url}/none", f"{gone}/")
        monkeypatch.setattr(doctor, "CHECKS", ())
        plain, small, dead = doctor.examine(urls)
        assert (plain.level, small.level, dead.level) == ("ok", "ok", "note")
        assert re.match(r"answers after \d+\.\d\d s, [\d.]+ [MG]B/s; asked for", plain.says)
        assert re.match(
            r"answers after \d+\.\d\d s; asked for", small.says
        )  # a host that knows no such file answers too
        assert re.match(r"no answer after \d+\.\d s: .*refused", dead.says) and "HTTPS_PROXY" in dead.fix
        monkeypatch.setenv("ALL_PROXY", proxy.url.replace("//", "//me:secret@"))
        (through,) = doctor.examine(urls[:1])
        assert through.says.startswith(f"answers through {proxy.url} after") and "secret" not in through.says
        assert proxy.asked
    monkeypatch.setenv("ALL_PROXY", "socks4://me:secret@127.0.0.1:1")
    (wrong,) = doctor.examine(urls)
    assert "ALL_PROXY=socks4://127.0.0.1:1" in wrong.says and "socks5://" in wrong.fix
    monkeypatch.delenv("ALL_PROXY")
    (nonsense,) = doctor.examine(("nonsense",))
    assert nonsense.says == "--network nonsense is no URL"
    assert len({urlsplit(url).hostname for url in reach.HOSTS}) == len(reach.HOSTS)


def test_it_works_without_a_path(tmp_path: Path) -> None:
    ran = lvsm_data("doctor", "--json", env={"PATH": str(tmp_path), "HOME": str(tmp_path)}, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    levels = {check["name"]: check["level"] for check in json.loads(ran.stdout)}
    assert levels["chromium"] == levels["git"] == "note"
    assert levels["yt-dlp"] == "ok", "it stands beside Python, on the PATH or not"
    assert COMMAND.exists()


@pytest.mark.parametrize(
    ("pillow", "simd", "active", "x86", "level"),
    [
        (None, "12.1.1.post0", "12.1.1.post0", True, "ok"),
        ("12.1.1", None, "12.1.1", True, "note"),
        ("12.1.1", "12.1.1.post0", "12.1.1", True, "problem"),
        ("12.1.1", "12.1.1.post0", "12.1.1.post0", True, "problem"),
        (None, "12.1.1.post0", "12.1.1", True, "problem"),
        (None, "12.1.1.post0", "", True, "problem"),
        (None, None, "", True, "problem"),
        ("12.1.1", None, "12.1.1", False, "ok"),
        (None, None, "", False, "problem"),
    ],
)
def test_which_pil(pillow: str | None, simd: str | None, active: str, x86: bool, level: str) -> None:
    check = doctor.judge_pil(pillow, simd, active, x86)
    assert check.level == level
    assert bool(check.fix) == (level != "ok")
    if pillow and x86:
        assert "uninstall -y pillow &&" in check.fix
        assert "--force-reinstall --no-deps pillow-simd" in check.fix


def test_a_pil_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise ImportError("The _imaging extension was built for another version of Pillow")

    monkeypatch.setattr("pipeline.core.images.version", broken)
    assert by_name(doctor.check_pil())["PIL"].level == "problem"


def test_a_broken_blender_is_a_problem_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "worker.py"
    script.write_text("import sys\nprint('libXi.so.6: cannot open shared object file', flush=True)\nsys.exit(3)\n")
    monkeypatch.setattr(blender, "SCRIPT", script)
    check = by_name(doctor.check_blender())["Blender"]
    assert check.level == "problem"
    assert "exit status 3" in check.says and "libXi.so.6: cannot open" in check.says
    assert check.fix


def test_a_blender_that_hangs_is_a_problem_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "worker.py"
    script.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(blender, "SCRIPT", script)
    monkeypatch.setattr(blender, "START_TIMEOUT_S", 0.5)
    assert "not done within 0.5 s" in by_name(doctor.check_blender())["Blender"].says


def test_missing_libraries_come_with_their_packages() -> None:
    ldd = "\tlibm.so.6 => /lib/libm.so.6 (0x0)\n\tlibXi.so.6 => not found\n\tlibodd.so.9 => not found\n"
    assert doctor.not_found(ldd) == ["libXi.so.6", "libodd.so.9"]
    check = doctor.judge_libraries({"libXi.so.6", "libodd.so.9"})
    assert check.level == "problem"
    assert "apt-get install -y --no-install-recommends libxi6;" in check.fix and "libodd.so.9" in check.fix
    assert doctor.judge_libraries(set()).level == "ok"


def test_the_gpu_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.judge_gpus({"CPU": ["EPYC"], "OPTIX": ["H200"]}) == doctor.Check("GPU", "ok", "OPTIX: H200")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "CPU only" in doctor.judge_gpus({"CPU": ["EPYC"]}).says


@pytest.mark.parametrize(
    ("network", "tcp", "files", "level", "words"),
    [
        (False, False, False, "ok", ["without a network", "no files but"]),
        (True, True, False, "note", ["reach the network: this", "userns", "chroot"]),
        (True, False, False, "note", ["reach the network, though not by TCP: this", "userns"]),
        (False, False, True, "note", ["your files", "Landlock", "5.13", "lsm="]),
        (True, True, True, "note", ["network", "your files", "userns", "lsm="]),
    ],
)
def test_the_isolation_line(network: bool, tcp: bool, files: bool, level: str, words: list[str]) -> None:
    check = doctor.judge_isolation(network, tcp, files)
    assert check.level == level
    assert all(word in check.says + check.fix for word in words)
    assert bool(check.fix) == (level != "ok")


DENO = Runtime("deno", "2.9.8", "2.3.0", True)
NODE = Runtime("node", "20.20.2", "22.0.0", False)
SOLVER = Solver("0.8.0", "0.8.0")


@pytest.mark.parametrize(
    ("found", "solver", "level", "says"),
    [
        ([DENO], SOLVER, "ok", "deno 2.9.8; yt-dlp-ejs 0.8.0"),
        ([DENO, NODE], SOLVER, "ok", "deno 2.9.8; yt-dlp-ejs 0.8.0"),
        ([DENO], Solver("0.8.3", "0.8.0"), "ok", "deno 2.9.8; yt-dlp-ejs 0.8.3"),
        ([DENO], Solver("", "0.8.0"), "note", "no yt-dlp-ejs;"),
        ([DENO], Solver("0.7.0", "0.8.0"), "note", "yt-dlp-ejs 0.7.0 (yt-dlp wants 0.8.0);"),
        ([], SOLVER, "note", "no deno, node, bun or quickjs;"),
        ([NODE], SOLVER, "note", "node 20.20.2 is too old (yt-dlp wants 22.0.0 or later);"),
        ([], Solver("", "0.8.0"), "note", "no deno, node, bun or quickjs; no yt-dlp-ejs;"),
    ],
)
def test_the_javascript_line(found: list[Runtime], solver: Solver, level: str, says: str) -> None:
    check = doctor.judge_js_runtime(found, solver)
    assert (check.name, check.level) == ("JavaScript", level)
    assert check.says == says or check.says == f"{says} only fetching from YouTube needs them"
    assert check.fix.endswith("-m pip install deno yt-dlp-ejs==0.8.0") if level == "note" else not check.fix
    assert js_runtime.usable(found, solver) == ({"deno": "2.9.8"} if level == "ok" else {})


@pytest.mark.parametrize("beside_python", [True, False])
def test_runtimes_are_asked_for_their_version(
    beside_python: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {
        "deno": "deno 2.9.8 (stable, release, x86_64-unknown-linux-gnu)",
        "node": "v20.20.2",
        "qjs": "QuickJS version 2025-04-26\nusage: qjs [options] [file [args]]",
        "bun": "a bun without a number",
    }
    for name, answer in answers.items():
        (tmp_path / name).write_text(f"#!/bin/sh\nprintf '%s\\n' '{answer}'\n")
        (tmp_path / name).chmod(0o755)
    elsewhere = str(tmp_path / "elsewhere")
    monkeypatch.setenv("PATH", elsewhere if beside_python else str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path) if beside_python else elsewhere)
    found = {runtime.name: runtime for runtime in js_runtime.found_runtimes()}
    assert found["deno"] == Runtime("deno", "2.9.8", found["deno"].least, True)
    assert found["node"] == Runtime("node", "20.20.2", found["node"].least, False)
    assert (found["quickjs"].version, found["quickjs"].supported) == ("2025-04-26", True)
    assert not found["bun"].supported

    monkeypatch.setattr(js_runtime, "solver", lambda: SOLVER)
    assert js_runtime.js_runtimes() == {"deno": "2.9.8", "quickjs": "2025-04-26"}
    assert by_name(doctor.check_videos())["JavaScript"].level == "ok"
    monkeypatch.setattr(js_runtime, "solver", lambda: Solver("", "0.8.0"))
    assert js_runtime.js_runtimes() == {}


def test_a_yt_dlp_that_cannot_be_asked_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yt_dlp", None)
    (check,) = doctor.check_videos()
    assert (check.name, check.level) == ("JavaScript", "note")
    assert check.level == "note" and check.fix == "make setup"


def test_the_fix_brings_a_runtime_and_the_solver() -> None:
    wants = importlib.metadata.requires("yt-dlp") or []
    assert f"yt-dlp-ejs=={js_runtime.solver().wanted}; extra == 'default'" in wants
    assert any(line.startswith("deno") and line.endswith("; extra == 'deno'") for line in wants)


def test_lines_are_aligned_and_wrapped() -> None:
    checks = [doctor.Check("a", "ok", "fine"), doctor.Check("longer", "problem", "word " * 40, "do this")]
    told = doctor.lines(checks)
    assert told[0].index("fine") == told[1].index("word")
    assert max(map(len, told)) <= doctor.COLUMNS
    assert told[-1].strip() == "-> do this"


def test_what_is_missing_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs = (
        system.Need("library", "libnosuch.so.7", "libnosuch7", "run", "tests"),
        system.Need("header", "nosuch.h", "libnosuch-dev", "build", "tests"),
        system.Need("module", "nosuch", "python3-nosuch", "build", "tests"),
        system.Need("command", "nosuch", "nosuch", "test", "tests"),
        system.Need("module", "json", "python3", "run", "is there"),
    )
    monkeypatch.setattr(system, "NEEDS", needs)
    assert [need.what for need in system.missing(["build", "run"])] == ["libnosuch.so.7", "nosuch.h", "nosuch"]

    (tmp_path / "apt-get").write_text("#!/bin/sh\nexit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert system.main(["run", "test"]) == 1
    assert "sudo apt-get install -y --no-install-recommends libnosuch7 nosuch" in capsys.readouterr().out

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert system.main(["run"]) == 1
    assert "exit status 100" in capsys.readouterr().out

    monkeypatch.setenv("PATH", "")
    assert system.main(["run"]) == 1
    assert "no apt-get here" in capsys.readouterr().out


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an apt-get that wants two locks in it, speaks as that of Debian 12 does, and installs what is missing."""
    program = tmp_path / "apt-get"
    program.write_text(
        f"""#!{sys.executable}
import fcntl, os, struct, sys
folder, verb = {str(tmp_path)!r}, sys.argv[1]
path = folder + {{"update": "/lists", "install": "/lock-frontend"}}[verb]
stream = open(path, "w")
try:
    fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    told = fcntl.fcntl(stream, fcntl.F_GETLK, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0))
    print(f"E: Could not get lock {{path}}. It is held by process {{struct.unpack('hhqqi', told)[4]}} (python3)", file=sys.stderr)
    open(folder + "/refused-" + verb, "w").close()
    sys.exit(100)
with open(folder + "/said", "a") as said:
    print(verb, file=said)
if verb == "install":
    os.symlink("/bin/true", folder + "/nosuch")
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(system, "NEEDS", (system.Need("command", "nosuch", "nosuch", "run", "tests"),))
    monkeypatch.setattr(system, "LOCK_LOOK_S", 0.05)
    return tmp_path


HOLD = """
import fcntl, os, sys, time
stream = open(sys.argv[1] + "/" + sys.argv[2], "w")
fcntl.lockf(stream, fcntl.LOCK_EX)
print("held", flush=True)
while not os.path.exists(f"{sys.argv[1]}/refused-{sys.argv[3]}"): time.sleep(0.01)
time.sleep(0.2)
"""


@pytest.mark.parametrize(("lock", "verb"), [("lists", "update"), ("lock-frontend", "install")])
def test_a_lock_that_another_apt_holds_is_waited_for(
    apt: Path, capfd: pytest.CaptureFixture[str], lock: str, verb: str
) -> None:
    command = [sys.executable, "-c", HOLD, str(apt), lock, verb]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert system.main(["run"]) == 0
    said = capfd.readouterr().out
    assert said.count(f"waiting for apt's lock, held by process {other.pid} (python3); at most 15 minutes\n") == 1
    assert (apt / "said").read_text().split() == ["update", "install"]


def test_a_lock_that_is_held_for_ever_ends_with_the_command(
    apt: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "LOCK_WAIT_S", 0.3)
    with (apt / "lists").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        assert system.main(["run"]) == 1
    said = capfd.readouterr()
    assert "exit status 100); next step: apt-get install -y" in said.out
    assert f"It is held by process {os.getpid()}" in said.err
    assert not (apt / "said").exists()


def test_every_requirement_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    names = {re.split(r"[^A-Za-z0-9_.-]", line)[0].replace("_", "-").lower() for line in wanted}
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = {line.split("==")[0].lower() for line in lines if not line.startswith("#")}
    assert names - {"pillow", "lvsm-data"} <= pins  # the latter: one choice of packages within another
    assert "pillow" not in pins, "pillow-simd takes its place"
    assert all("==" in line and "+" not in line for line in lines if not line.startswith("#"))
