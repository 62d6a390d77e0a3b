"""Ctrl-C, and what schedulers and terminals send: the first one asks for an orderly end, the second one ends at once."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130  # exit status, as shells have it for Ctrl-C


def say_interrupted() -> None:
    """Tell the user of this command, which Ctrl-C ends, what the same one will do."""
    again = "starts anew" if sys.argv[1:2] == ["export"] else "goes on where this one stopped"
    print(f"interrupted; the same command {again}", file=sys.stderr)


@contextlib.contextmanager
def first_interrupt(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Call `stop` at the first of ENDS, raise KeyboardInterrupt at the second; yields the list of signals received.

    A SIGHUP that is ignored, as under nohup, stays so; a SIGINT that shells ignore for jobs in the background does not. Outside
    the main thread, where Python handles no signals, nothing is caught and the list stays empty.
    """
    seen: list[int] = []

    def handler(number: int, frame: object) -> None:
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt
        stop()

    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    with handlers_kept():
        for number in ENDS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)
        yield seen


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Put the handlers of ENDS back at the end of the block, whatever a library has installed in it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDS}
    try:
        yield
    finally:
        for number, old in before.items():
            if old is not None:  # set by a library in C: Python cannot put it back
                signal.signal(number, old)
