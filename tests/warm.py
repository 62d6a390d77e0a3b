"""Processes of `lvsm-data` that start at once: one that has imported what they need forks for each of them.

A command imports for a second of CPU before it begins, one that trains for three. Each still is a process of its own, with
its own environment, folder, files and end; only what it imports is there already, but for the libraries that read the
environment while they are imported.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

COMMAND = Path(sys.executable).parent / "lvsm-data"
SMALLER = (sys.executable, __file__)  # the same command with a smaller Ray
OURS = ("pipeline.cli", "pipeline.run.driver", "pipeline.report.page", "pipeline.report.verify", "pipeline.video.ytdlp")
ALL = (
    *OURS,
    "cv2",
    "av",
    "httpx2",
    "httpcore2",
    "asyncio",
    "jinja2",
    "pandas",
    "typeguard",
    "tyro._backends._tyro_backend",
)
TORCH = (
    "torch._dynamo",
    "lvsm_train.training.launch",
    "lvsm_train.cycle.settings",
    "pipeline.cycle.driver",
    "pipeline.plan.plan",
)
AT_IMPORT = {"huggingface_hub", "yt_dlp"}  # they read the environment
AHEAD = dict.fromkeys(("train", "eval", "latent", "cycle", "plan"), (*ALL, *TORCH))


class Warm:
    """Runner of commands, one at a time. Its process starts with the first one, and ends with `close`."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.one = threading.Lock()

    def run(
        self,
        *arguments: str,
        timeout: float,
        impatient: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the command, its output captured; raises TimeoutExpired. impatient: it waits next to nothing between two tries."""
        with self.one, tempfile.TemporaryDirectory(prefix="warm-") as folder:
            process = self._started()
            assert process.stdin is not None and process.stdout is not None
            job = {"arguments": arguments, "impatient": impatient, "env": dict(os.environ if env is None else env)}
            job |= {"cwd": str(cwd or Path.cwd()), "into": folder}
            print(json.dumps(job), file=process.stdin, flush=True)
            pid = int(process.stdout.readline())
            watch = threading.Timer(timeout, os.kill, (pid, 9))
            watch.start()
            start = time.monotonic()
            status = int(process.stdout.readline())
            watch.cancel()
            out, err = ((Path(folder) / name).read_text() for name in ("stdout", "stderr"))
        if time.monotonic() - start >= timeout:
            raise subprocess.TimeoutExpired(arguments, timeout, out, err)
        return subprocess.CompletedProcess([str(COMMAND), *arguments], status, out, err)

    def _started(self) -> subprocess.Popen[str]:
        if self.process is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.process = subprocess.Popen([sys.executable, __file__], **pipes)  # type: ignore[call-overload]
        return self.process

    def close(self) -> None:
        """End the process; a command that it may still have goes on."""
        if self.process is not None:
            self.process.communicate()
            self.process = None


def serve() -> None:
    """Serve one command after the other: a line of JSON each. Back come its process id and, when it ends, its exit status."""
    sys.path[0] = str(COMMAND.parent)  # as it is in the installed command
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # whatever an import may say
    without_dashboard()
    for line in orders:
        job = json.loads(line)
        for module in AHEAD.get(job["arguments"][0], ALL):
            with contextlib.suppress(ImportError):  # the command says so itself
                importlib.import_module(module)
        assert not AT_IMPORT & sys.modules.keys()
        pid = os.fork()
        if pid == 0:
            answers.close()
            become(**job)
        print(pid, file=answers, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)


def without_dashboard(put: Callable[[object, str, object], None] = setattr) -> None:
    """Let a Ray of this process leave out what shows it to people and what grows clusters: most of the CPU of its start."""
    from ray._private import node, ray_constants, services

    for name in ("start_api_server", "start_log_monitor", "start_monitor"):
        assert hasattr(node.Node, name)
        put(node.Node, name, lambda *_, **__: None)
    build = services._build_python_executable_command_memory_profileable
    agent = [sys.executable, "-I", "-S", str(Path(__file__).with_name("idle_agent.py"))]

    def command(component: str, *given: Any, **more: Any) -> list[str]:
        return agent if component == ray_constants.PROCESS_TYPE_DASHBOARD_AGENT else build(component, *given, **more)

    put(services, build.__name__, command)


def become(arguments: list[str], impatient: bool, env: dict[str, str], cwd: str, into: str) -> None:
    """Be the command, in a child of the process that serves; ends this process as the command ends."""
    from pipeline import cli
    from pipeline.download import fetch
    from pipeline.video import ytdlp

    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(into) / name, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # TMPDIR may be another one
    if impatient:
        fetch.FIRST_PAUSE_S = ytdlp.SHORT_PAUSE_S = 0.02
    sys.argv = [str(COMMAND), *arguments]
    cli.main()


def alone() -> None:
    """Be the command that this process was started with, its Ray a small one: for tests that kill commands."""
    sys.path[0] = str(COMMAND.parent)  # as it is in the installed command
    from pipeline import cli

    without_dashboard()
    sys.argv[0] = str(COMMAND)
    cli.main()


if __name__ == "__main__":
    alone() if sys.argv[1:] else serve()
