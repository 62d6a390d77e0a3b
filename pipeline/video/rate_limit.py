"""Rate limit for requests of videos. It is a file, so that it holds for all processes of a machine and for the next session:
the server counts by address, whoever asks.
"""

from __future__ import annotations

import fcntl
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.errors import Retry

BURST_S = 300  # seconds' worth of the hourly rate that may be asked for at once
LONGEST_S = 3600.0  # a pause that ends later than this is one of a clock that was wrong


class RateLimiter:
    """Token bucket, and pauses that hold for everybody. clock: seconds since 1970; file: None for a limit of this object alone.

    tokens: requests that may be made at once; filled_s: when they were counted; open_s: when the newest pause ends.
    """

    def __init__(
        self,
        per_hour: float,
        stopped: threading.Event,
        file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.clock, self.stopped, self.file = clock, stopped, file
        self.interval_s = 3600 / per_hour if per_hour else 0.0
        self.burst = max(1.0, BURST_S / self.interval_s) if per_hour else 1.0
        self.tokens = self.burst
        self.filled_s = self.open_s = clock()
        self.lock = threading.Lock()

    def wait(self) -> None:
        """Wait until this thread may ask for a video. Raises Retry("stopped")."""
        while (left := self._left()) > 0:
            if self.stopped.wait(min(left, 5.0)):
                break
        if self.stopped.is_set():
            raise Retry("stopped")

    def pause(self, seconds: float) -> bool:
        """Let no thread ask for `seconds`. True if this pause ends over a second later than any before."""
        with self._held():
            until = self.clock() + seconds
            longer = until > self.open_s + 1
            self.open_s = max(self.open_s, until)
            return longer

    def _left(self) -> float:
        """Seconds to wait before a token is there; if 0, takes the token."""
        with self._held():
            now = self.clock()
            if now < self.open_s:
                return self.open_s - now
            if not self.interval_s:
                return 0.0
            self.tokens = min(self.burst, self.tokens + (now - self.filled_s) / self.interval_s)
            self.filled_s = now
            if self.tokens < 1:
                return (1 - self.tokens) * self.interval_s
            self.tokens -= 1
            return 0.0

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Within, this thread alone changes the state, which is the file's before and after."""
        with self.lock:
            if self.file is None:
                yield
                return
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                stream = self.file.open("a+b")
            except OSError as error:
                print(
                    f"{self.file} cannot be written ({error}): other programs' requests are not counted",
                    file=sys.stderr,
                )
                self.file = None
                yield
                return
            with stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                stream.seek(0)
                self._read(stream.read())
                yield
                stream.truncate(0)
                stream.write(json.dumps([self.tokens, self.filled_s, self.open_s]).encode())

    def _read(self, text: bytes) -> None:
        """Take over a file's state; an empty or damaged one changes nothing. Times to come are those of a wrong clock."""
        now = self.clock()
        try:
            tokens, filled_s, open_s = (float(each) for each in json.loads(text))
        except (ValueError, TypeError):
            return
        self.tokens = min(max(0.0, tokens), self.burst)
        self.filled_s = min(filled_s, now)
        self.open_s = min(open_s, now + LONGEST_S)
