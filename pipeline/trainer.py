"""The trainer of a cycle: a process of its own, started, watched, and started again from its newest checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from pipeline.scene import UserError
from pipeline.window import TRAIN, committed

TIMES = 3  # that it may end without a new checkpoint in between
STOPPED = 3  # exit status: it ended on request, with a checkpoint
USER = 2  # exit status: what was asked for cannot be done
SAYS = "trainer.log"
TAIL = 15  # lines of it, for a user
STOP_S = 600.0  # for its last checkpoint


class Trainer:
    """Holds the process. command: what to run. It ends when this process does, in whatever way: its stdin is a pipe from here."""

    def __init__(self, out: Path, command: Sequence[str], threads: int | None) -> None:
        self.out, self.command, self.threads = out, command, threads
        self.process: subprocess.Popen[bytes] | None = None
        self.said: IO[bytes] | None = None
        self.finished = False
        self.starts: list[int] = []  # the step at each start

    def start(self) -> None:
        """Starts it. Raises UserError where it ended too often at the same step."""
        step = committed(self.out)[0]
        if self.starts[-TIMES:] == [step] * TIMES:
            raise UserError(f"the trainer ended {TIMES} times at step {step}; its last words:\n{self.last_words()}")
        self.starts.append(step)
        folder = self.out / TRAIN
        folder.mkdir(exist_ok=True)
        environment = os.environ | ({"OMP_NUM_THREADS": str(self.threads)} if self.threads else {})
        self.close()
        self.said = (folder / SAYS).open("wb")
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=self.said,
            stderr=self.said,
            env=environment,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )

    def look(self) -> None:
        """Has it ended? Then it has finished, or is started again. Raises UserError where that makes no sense."""
        if self.finished or self.process is None or (status := self.process.poll()) is None:
            return
        if status == 0:
            self.finished = True
        elif status == USER:
            raise UserError(f"the trainer cannot go on:\n{self.last_words()}")
        else:
            self.start()

    def stop(self) -> None:
        """Asks it to end with a checkpoint, and waits for that."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.finished = self.process.wait(STOP_S) == 0
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.close()

    def close(self) -> None:
        """Ends it at once, if it lives."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        if self.said is not None:
            self.said.close()

    def last_words(self) -> str:
        """The end of what it said."""
        path = self.out / TRAIN / SAYS
        text = path.read_text(errors="replace") if path.exists() else ""
        return "\n".join(text.strip().splitlines()[-TAIL:])
