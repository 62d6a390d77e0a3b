"""The parent of a confined Blender process: starts it, sends jobs, ends it where it hangs or takes too much, and recycles it."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipeline.core.errors import Retry, Skip
from pipeline.core.images import paste

SCRIPT = Path(__file__).resolve().parents[2] / "blender_scripts" / "worker.py"
START_TIMEOUT_S = 120.0
WATCH_S = 0.2  # seconds between two looks at the process's memory
LOG_LINES = 50
FOLDERS = 256  # readable folders per process; beyond, the oldest are dropped
NOWHERE = 1e10  # Cycles' depth where no surface is
FAULTS = {-number for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)}
# how C++ and Python say what ended them, how its fault handler does, and what anybody calls an error
ERRORS = [
    re.compile(r"\s*what\(\): +\S"),
    re.compile(r"[\w.]*(?:Error|Exception|Interrupt|Exit)(?::|$)"),
    re.compile(r"Fatal Python error: "),
    re.compile(r"[^:]{0,40}\b(?:fatal|error|assert\w*)\b", re.I),
]
ALL_SAID = "lvsm-data: all is said"  # which the process prints after what it has to say about an unusable file
CAUSES = [  # how importers of Blender, USD and Python say what is wrong with a file
    # not only at a line's start: Blender leaves lines that it cuts short without an end
    re.compile(r".*?(?:Runtime|Coding) Error: in \S+ at line \d+ of \S+ -- (.+)"),
    re.compile(r".*?ERROR \(io\.(?!fbx)\w+\): \S+ \w+: (.+)"),
    re.compile(r"([\w.]*(?:Error|Exception): .+)"),
]
ADVICE = "open it in the program that it comes from and save it anew, or fetch it again"
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "TZ", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Limits:
    """When to give up on an object, and when to replace a healthy process (memory grows in spite of the reset).

    Time is wall-clock time, since an object that waits for ever uses no CPU. Memory is resident memory: a GPU driver
    reserves a hundred GB of address space, so there is no RLIMIT_AS or RLIMIT_DATA.
    """

    timeout_s: float = 600.0  # per object: import and all views
    recycle_objects: int = 200
    recycle_rss_mb: float = 6000.0  # or half of memory_gb, so that memory of earlier objects fails no later one
    memory_gb: float = field(default_factory=lambda: min(16.0, 0.8 * psutil.virtual_memory().available / 1e9))


@dataclass(frozen=True)
class Frame:
    """One rendered view: index of the camera, passes by name as float32 (h, w, C) in linear light, render seconds.

    The passes hold the rectangle [top, bottom, left, right) of the image of size hw; outside the rectangle is background.
    """

    index: int
    passes: dict[str, np.ndarray]
    rectangle: tuple[int, int, int, int]
    hw: tuple[int, int]
    seconds: float

    def full(self, name: str) -> np.ndarray:
        """A pass as (H, W, C), filled with Cycles' background: 0, or depth NOWHERE."""
        top, _, left, _ = self.rectangle
        return paste(self.passes[name], (top, left), self.hw, NOWHERE if name == "depth" else 0)


class Blender:
    """One persistent Blender process. `render` starts it when there is none and leaves it running.

    scratch: its own folder (working folder and user settings). environment: variables besides the usual ones. readable:
    folders with the jobs' files, at any depth; where the kernel has Landlock (`start` tells), the process can open no
    others. Not thread-safe: one owner, one job at a time.
    """

    def __init__(
        self,
        scratch: Path,
        limits: Limits,
        environment: dict[str, str] | None = None,
        readable: Iterable[Path] = (),
    ) -> None:
        self.scratch = scratch
        self.limits = limits
        self.environment = environment or {}
        self.readable = [Path(os.path.realpath(folder)) for folder in readable]
        self.process: subprocess.Popen[bytes] | None = None
        self.log: collections.deque[str] = collections.deque(maxlen=LOG_LINES)
        self.hello: dict[str, Any] = {}
        self.rss_mb = 0.0
        self.served = 0
        self._allowed_s = 0.0
        self._granted: dict[Path, tuple[int, int] | None] = {}
        self._watched = 0.0
        self._crashed = ("", -1)  # file whose import has just ended the process, and the number of its reader
        self._reply_fd = -1
        self._unread = bytearray()

    def start(self) -> dict[str, Any]:
        """Start the process if there is none. Returns its greeting:

        {"blender": version, "network": True if the process can reach one, "tcp": True if by TCP too, "files": True if it can
        open files that it does not need, "devices": {kind: names}}
        """
        if self.process is None:
            self._spawn()
            self._allowed_s = START_TIMEOUT_S
            try:
                self.hello = self._message(time.monotonic() + START_TIMEOUT_S)
            except (Retry, Skip):
                self.close()
                raise
        return self.hello

    def render(self, job: dict[str, Any]) -> Iterator[dict[str, Any] | Frame]:
        """Run one job: yield {"facts", "device", "timings"} first, then a Frame per camera, in order.

        job["root"] (default: the folder of job["path"]) is the folder that the object may read; a process that cannot read it
        is replaced. Raises Skip if Blender finds the object unusable; Skip("out_of_memory") above `limits.memory_gb`;
        Retry("blender_crash") if the process died; Retry("timeout") after `limits.timeout_s`. After a Retry or out_of_memory
        the process is gone. A job that comes again, at once, after its import ended the process by a fault is read by
        another reader, where there is one (`blender_scripts/importers.py`).
        """
        crashed = self._crashed[1] if self._crashed[0] == job["path"] else -1
        self._crashed, reader = ("", -1), -1
        self._open_to(Path(os.path.realpath(job.get("root") or Path(job["path"]).parent)))
        self.start()
        self._allowed_s = self.limits.timeout_s
        deadline = time.monotonic() + self._allowed_s
        finished = False
        self.log.clear()
        try:
            self._send(job | {"crashed": crashed})
            while True:
                message = self._message(deadline)
                kind = message.pop("type")
                if kind == "reading":
                    reader = message["reader"]
                elif kind == "loaded":
                    reader = -1
                    yield message
                elif kind == "view":
                    passes, rectangle = self._passes(message, deadline), tuple(message["rectangle"])
                    yield Frame(message["index"], passes, rectangle, tuple(job["hw"]), message["seconds"])
                else:
                    break
            finished = True
            self.served += 1
            self.rss_mb = message["rss_mb"]
            if kind == "skip":
                self._hear_out()
                said = self._said(message["detail"]) if message["reason"] == "import_failed" else message["detail"]
                raise Skip(message["reason"], said)
        finally:
            if not finished or self._worn_out():
                if crashed < 0 and self.process and self.process.returncode in FAULTS:
                    self._crashed = (job["path"], reader)
                self.close()

    def close(self) -> None:
        """Kill the process group and wait for its end. The next `render` or `start` starts another."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        os.close(self._reply_fd)
        self._log_reader.join(timeout=5)
        self.process = None

    def _worn_out(self) -> bool:
        too_large_mb = min(self.limits.recycle_rss_mb, self.limits.memory_gb * 500)
        return self.served >= self.limits.recycle_objects or self.rss_mb > too_large_mb

    def _open_to(self, root: Path) -> None:
        """Stop Blender unless `root` was granted when it started. Landlock grants inodes: a folder made anew needs another."""
        above = [folder for folder in self.readable if root.is_relative_to(folder)]
        if not above:
            self.readable = [*self.readable[-FOLDERS + 1 :], root]
        if not any(self._granted.get(folder) == _identity(folder) for folder in above):
            self.close()

    def _spawn(self) -> None:
        self.scratch.mkdir(parents=True, exist_ok=True)
        read_fd, write_fd = os.pipe()
        # -I and a neutral working folder: a stray cycles.py in the user's folder must not shadow Blender's add-on
        command = [sys.executable, "-I", str(SCRIPT), str(write_fd), *map(str, self.readable)]
        self._granted = {folder: _identity(folder) for folder in self.readable}
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        home = str(self.scratch)  # Blender's settings and session folder, deleted with the scratch folder
        environment |= {"HOME": home, "TMPDIR": home, "BLENDER_USER_RESOURCES": home, "LC_ALL": "C.UTF-8"}
        # keeps compiled GPU kernels; a subfolder, since the user's whole cache may hold credentials
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lvsm-data"
        with contextlib.suppress(OSError):  # without a cache they are compiled again
            cache.mkdir(parents=True, exist_ok=True)
        environment |= {
            "XDG_CACHE_HOME": str(cache),
            "CUDA_CACHE_PATH": f"{cache}/cuda",
            "OPTIX_CACHE_PATH": f"{cache}/optix",
        } | self.environment
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.scratch,
            env=environment,
            pass_fds=(write_fd,),
            start_new_session=True,
        )
        os.close(write_fd)
        self._reply_fd = read_fd
        self._unread.clear()
        self.log.clear()
        self.served, self.rss_mb = 0, 0.0
        self._log_reader = threading.Thread(target=self._drain, args=(self.process.stdout,), daemon=True)
        self._log_reader.start()

    def _drain(self, stdout: Any) -> None:
        with stdout:
            for line in stdout:
                text = line.decode(errors="replace").rstrip()
                if text:
                    self.log.append(text)

    def _send(self, job: dict[str, Any]) -> None:
        assert self.process is not None and self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Retry("blender_crash", self._last_words()) from None

    def _message(self, deadline: float) -> dict[str, Any]:
        block = bytearray(65536)
        while (end := self._unread.find(b"\n")) < 0:
            received = self._receive(block, deadline)
            self._unread += block[:received]
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        message: dict[str, Any] = json.loads(line)
        return message

    def _passes(self, message: dict[str, Any], deadline: float) -> dict[str, np.ndarray]:
        payload = np.empty(message["bytes"], np.uint8)
        have = min(len(self._unread), len(payload))
        payload[:have] = np.frombuffer(self._unread[:have], np.uint8)
        del self._unread[:have]
        while have < len(payload):
            have += self._receive(payload.data[have:], deadline)
        names, shapes = zip(*message["passes"], strict=True)
        parts = np.split(payload.view(np.float32), np.cumsum([np.prod(shape) for shape in shapes])[:-1])
        return {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}

    def _receive(self, into: bytearray | memoryview, deadline: float) -> int:
        """Wait for bytes of the process, at most as many as fit `into`; returns how many came."""
        self._wait(deadline)
        if received := os.readv(self._reply_fd, [into]):
            return received
        raise Retry("blender_crash", self._last_words())

    def _wait(self, deadline: float) -> None:
        while True:
            now = time.monotonic()
            if now - self._watched >= WATCH_S:
                self._watched = now
                self._watch_memory()
            if select.select([self._reply_fd], [], [], max(0.0, min(WATCH_S, deadline - now)))[0]:
                return
            if time.monotonic() >= deadline:
                raise Retry("timeout", f"not done within {self._allowed_s:g} s\n{self._tail()}")

    def _watch_memory(self) -> None:
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):  # `_wait` notices the end of the process
            used_gb = psutil.Process(self.process.pid).memory_info().rss / 1e9
            if used_gb > self.limits.memory_gb:
                said = f"Blender took {used_gb:.1f} GB, the limit is {self.limits.memory_gb:.1f} GB"
                raise Skip("out_of_memory", f"{said}; fewer workers leave more for each\n{self._tail()}")

    def _last_words(self) -> str:
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        self._log_reader.join(timeout=5)
        code = self.process.returncode
        how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit status {code}"
        if code == -signal.SIGKILL:
            how += " (not from us; the kernel, where the machine runs out of memory)"
            return f"Blender ended with {how}\n{self._tail()}"
        said = [line for line in self.log if not line.startswith("Extension modules: ")]
        return "\n".join([f"Blender ended with {how}", *said, *error_line(said)])

    def _hear_out(self) -> None:
        """Wait for all that was printed about an unusable file, which comes by a pipe of its own; or the next job gets it."""
        end = time.monotonic() + 1.0
        while ALL_SAID not in self.log and time.monotonic() < end:
            time.sleep(0.01)

    def _said(self, detail: str) -> str:
        """Why no reader took a file: what they say, the cause that they printed, and what helps."""
        lines = list(self.log)
        causes = [found[1] for pattern in CAUSES for line in lines if (found := pattern.match(line))]
        more = [cause for cause in causes[:1] if (cause.partition(": ")[2] or cause) not in detail]
        return "; ".join([detail, *more, ADVICE])

    def _tail(self) -> str:
        return "\n".join(self.log)


def error_line(lines: list[str]) -> list[str]:
    """[the line that says what ended the process], or [] if none does. lines: what it printed, a fault with its stack."""
    for pattern in ERRORS:
        if found := next((line for line in reversed(lines) if pattern.match(line)), None):
            return [found.strip()]
    return []


def _identity(folder: Path) -> tuple[int, int] | None:
    """(device, inode): differs for a folder that was deleted and made again. None if there is none."""
    with contextlib.suppress(OSError):
        status = folder.stat()
        return status.st_dev, status.st_ino
    return None
