"""A process that hangs holds a GPU, and all other ranks, for ever: it had better end."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time

HUNG = 70  # exit status


class Watchdog:
    """Within a `with` block the process ends, with the stacks of its threads, unless `alive` is called often enough."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self._until = time.monotonic() + 60 * minutes
        self._over = threading.Event()

    def __enter__(self) -> Watchdog:
        self.alive()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        faulthandler.cancel_dump_traceback_later()

    def alive(self) -> None:
        """Something was done."""
        self._until = time.monotonic() + 60 * self.minutes
        # of C, for a hang that keeps Python's lock, so that the thread below cannot speak
        faulthandler.dump_traceback_later(90 * self.minutes, exit=True, file=2)

    def _watch(self) -> None:
        while not self._over.wait(max(0.01, self._until - time.monotonic())):
            if time.monotonic() >= self._until:
                print(
                    f"error: no step, evaluation or checkpoint ended within {self.minutes:g} minutes (--hang-minutes)\n"
                    "hint: the same command goes on from the newest checkpoint; this is where the process stood:",
                    file=sys.__stderr__,
                    flush=True,
                )
                faulthandler.dump_traceback(file=2)
                os._exit(HUNG)
