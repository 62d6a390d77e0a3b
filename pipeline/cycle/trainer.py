"""The trainer of a cycle: a process of its own, started, watched, and started again from its newest checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from pipeline.core.disk import append
from pipeline.core.errors import UserError
from pipeline.cycle.protocol import TRAIN, committed

TIMES = 3  # starts at one step, at most
USER = 2  # exit status of a UserError
LOG = "trainer.log"
TAIL = 15  # lines of the log, for error messages
STOP_S = 600.0  # to write the last checkpoint
LISTEN_S = 5.0  # to read the rest of the output after the end: child processes may keep the pipe open


def spawn(
    command: Sequence[str], threads: int | None, stdout: int | IO[bytes], stderr: int | IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start a process that trains with `threads` threads (None: no limit), and ends when the pipe at its stdin closes."""
    env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env=env,
        start_new_session=True,  # Ctrl-C is ours to pass on
    )


class Trainer:
    """Holds a trainer's process, run by `command`. Its stdin is a pipe from this process, so that it ends with this one.

    name: of its folder within the cycle's, `out`.
    """

    def __init__(self, out: Path, command: Sequence[str], threads: int | None, name: str = TRAIN) -> None:
        self.out, self.command, self.threads, self.name = out, command, threads, name
        self.process: subprocess.Popen[bytes] | None = None
        self.words: deque[str] = deque(maxlen=TAIL)
        self.finished = self.stopping = False
        self.listener: threading.Thread | None = None
        self.changing = threading.RLock()  # one thread watches the process, another one stops it
        self.starts: list[int] = []  # the step at each start

    def start(self) -> None:
        """Start the trainer, unless it was stopped. Raises UserError where it ended too often at the same step."""
        with self.changing:
            if self.stopping:
                return
            step = committed(self.out, self.name)[0]
            if self.starts[-TIMES:] == [step] * TIMES:
                raise UserError(f"the trainer ended {TIMES} times at step {step}; its last words:\n{self.last_words()}")
            self.starts.append(step)
            (self.out / self.name).mkdir(exist_ok=True)
            self.close()
            self.words.clear()
            self.process = spawn(self.command, self.threads, subprocess.PIPE, subprocess.STDOUT)
            assert self.process.stdout is not None
            self.listener = threading.Thread(target=self._listen, args=(self.process.stdout,), daemon=True)
            self.listener.start()

    def _listen(self, output: IO[bytes]) -> None:
        """Copy the trainer's output into the log. Read by a pipe: writing to a file on a full disk would end the trainer."""
        path = self.out / self.name / LOG
        with output:
            for line in output:
                self.words.append(line.decode(errors="replace"))
                with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
                    append(file, line)

    def poll(self) -> None:
        """Record that the trainer has finished, or restart it if it ended early. UserError if it cannot go on."""
        if self.stopping or self.finished or self.process is None or (status := self.process.poll()) is None:
            return
        if status == 0:
            self.finished = True
        elif status == USER:
            raise UserError(f"the trainer cannot go on:\n{self.last_words()}")
        else:
            self.start()

    @property
    def begun(self) -> bool:
        """True once the trainer was started."""
        return self.process is not None

    def ask_to_stop(self) -> None:
        """Ask the trainer to end with a checkpoint; no restart after that."""
        with self.changing:
            self.stopping = True
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Ask the trainer to end with a checkpoint, and wait for the end."""
        self.ask_to_stop()
        if self.process is not None and self.process.poll() is None:
            try:
                self.finished = self.process.wait(STOP_S) == 0
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.close()

    def close(self) -> None:
        """Kill the trainer, if it lives."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            self._hear()

    def last_words(self) -> str:
        """Last lines of the output of a trainer that has ended."""
        self._hear()
        return "".join(self.words).strip()

    def _hear(self) -> None:
        if self.listener is not None:
            self.listener.join(LISTEN_S)


class Trainers:
    """The trainers of a cycle of several models, as if they were one."""

    def __init__(self, each: Sequence[Trainer]) -> None:
        self.each = each

    @property
    def finished(self) -> bool:
        """True when all are."""
        return all(one.finished for one in self.each)

    @property
    def begun(self) -> bool:
        """True once all were started."""
        return all(one.begun for one in self.each)

    def start(self) -> None:
        """Start those that were not started. Raises UserError as Trainer.start."""
        for one in self.each:
            if not one.begun:
                one.start()

    def poll(self) -> None:
        """Look after each. Raises UserError as Trainer.poll."""
        for one in self.each:
            one.poll()

    def stop(self) -> None:
        """Ask all to end with a checkpoint, and wait for the ends."""
        for one in self.each:
            one.ask_to_stop()
        for one in self.each:
            one.stop()

    def close(self) -> None:
        """Kill those that live."""
        for one in self.each:
            one.close()
