"""Door of `lvsm-data`: Ctrl-C ends the command with a line and status 130 wherever it comes, also while it still imports."""

from __future__ import annotations

import signal
import sys

from pipeline.core.signals import INTERRUPTED, say_interrupted


def main() -> None:
    """Run the command. Never returns."""
    interrupted: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        interrupted.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(signal.SIGINT, interrupt)
    try:
        from pipeline.cli import main as command  # here, since it takes a second

        command()
    finally:  # a library written in C makes an error of its own of an interruption: whatever it is, the reason is known
        if interrupted:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if getattr(sys.exc_info()[1], "code", None) != INTERRUPTED:
                say_interrupted()
            sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
