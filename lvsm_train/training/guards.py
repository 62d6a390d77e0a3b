"""A process that hangs holds a GPU, and all other ranks, for ever: it had better end."""

from __future__ import annotations

import faulthandler
import math
import os
import statistics
import sys
import threading
import time
from collections import deque

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


USUAL, RECENT = 200, 20  # steps: what is usual is told by the first so many of USUAL + RECENT, what is now by the last
MOST = 3  # times that a run goes back; who needs more has another problem


class Spikes:
    """Watches losses: a spike is a median of the last RECENT that is `above` times the median of the USUAL before them.

    A median, since one bad batch is none: it is clipped, or void, and over. Losses that are no numbers count as large ones.
    """

    def __init__(self, above: float) -> None:
        self.above = above
        self.losses: deque[float] = deque(maxlen=USUAL + RECENT)
        self.times = 0

    def seen(self, loss: float) -> bool:
        """Takes in the loss of a step; is it a spike now? Losses before one are forgotten, for what comes is not like them."""
        self.losses.append(loss if math.isfinite(loss) else math.inf)
        if not self.above or len(self.losses) < USUAL // 2 + RECENT:
            return False
        told = list(self.losses)
        found = statistics.median(told[-RECENT:]) > self.above * statistics.median(told[:-RECENT])
        if found:
            self.losses.clear()
            self.times += 1
        return found

    def state_dict(self) -> dict[str, float | list[float]]:
        """For a checkpoint."""
        return {"losses": list(self.losses), "times": self.times}

    def load_state_dict(self, state: dict[str, float | list[float]]) -> None:
        """Goes on from there."""
        assert isinstance(state["losses"], list) and isinstance(state["times"], int)
        self.losses = deque(state["losses"], self.losses.maxlen)
        self.times = state["times"]
