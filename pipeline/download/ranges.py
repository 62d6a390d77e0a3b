"""A file on a server as a file object to read and seek in: only what is read is fetched, in windows."""

from __future__ import annotations

import io
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from pipeline.core.errors import Skip
from pipeline.download.fetch import Fetcher, Passing, check_status, passing

FIRST_WINDOW = 64_000  # bytes; doubles for each window that follows straight on the last
LONGEST_WINDOW = 256_000  # two seconds of a stream of 480 rows; bytes fetched behind the end of a clip are wasted
KEPT = 4  # windows: a demuxer goes to and fro between an index and the packets it points to
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class NoRanges(Exception):
    """The server sends whole files only."""


class Remote(io.RawIOBase):
    """Read-only file object for a URL. `read` raises Skip and Retry with the reasons of `Fetcher.get`."""

    def __init__(self, net: Fetcher, url: str, headers: Mapping[str, str]) -> None:
        """Fetch the first window. Raises NoRanges, Skip, Retry."""
        self.net = net
        self.url = url
        self.headers = dict(headers) | {"Accept-Encoding": "identity"}
        self.at = 0
        self.size = -1
        self.windows: OrderedDict[int, bytes] = OrderedDict()
        self.straight_on = (0, FIRST_WINDOW)  # where the next window would begin, and how long it would be
        self._window(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        """Position of the next read, in bytes from the start."""
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position (before the start: 0) as io.IOBase.seek does; returns bytes from the start."""
        self.at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence])
        return self.at

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, fewer where a window ends; b"" at the end of the file."""
        if self.at >= self.size:
            return b""
        start, window = self._window(self.at)
        piece = window[self.at - start :]
        piece = piece if size < 0 else piece[:size]
        self.at += len(piece)
        return piece

    def readinto(self, buffer: Any) -> int:
        """`read` into a buffer of bytes; returns their number."""
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def _window(self, at: int) -> tuple[int, bytes]:
        """(start, bytes) of the window that holds the byte `at`, fetched if it is not kept."""
        for start, window in self.windows.items():
            if start <= at < start + len(window):
                self.windows.move_to_end(start)
                return start, window
        expected, length = self.straight_on
        length = length if at == expected else FIRST_WINDOW
        window = self.net.tried(self.url, lambda: self._ask(at, length))
        self.straight_on = (at + len(window), min(2 * length, LONGEST_WINDOW))
        self.windows[at] = window
        while len(self.windows) > KEPT:
            self.windows.popitem(last=False)
        return at, window

    def _ask(self, start: int, length: int) -> bytes:
        end = start + length - 1 if self.size < 0 else min(start + length, self.size) - 1
        headers = self.headers | {"Range": f"bytes={start}-{end}"}
        with (
            passing(self.url),
            self.net.client.stream("GET", self.url, headers=headers, timeout=self.net.timeout) as response,
        ):
            check_status(response)
            if response.status_code != 206:
                raise NoRanges if self.size < 0 else Passing("cut_off", f"{self.url} sends no ranges any more")
            data = b"".join(self.net.body(response))
            found = CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
            if found is None or int(found[1]) != start or len(data) != int(found[2]) - start + 1:
                raise Passing("cut_off", f"{self.url}: {len(data)} bytes from {start}, asked for up to {end}")
            if self.size not in (-1, int(found[3])):
                raise Skip("modified", f"{self.url} had {self.size} bytes, now it has {found[3]}")
            self.size = int(found[3])
            return data
