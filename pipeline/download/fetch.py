"""One URL -> one whole, verified file; many at once without hurting a host or filling the disk.

Bytes go to a temporary file beside the target, renamed once complete. A failure that may pass is tried again with growing
pauses, or after the host's Retry-After, and goes on where it was cut (Range); a permanent failure is never tried again.
"""

from __future__ import annotations

import email.utils
import hashlib
import os
import re
import socket
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.core.budget import DiskBudget
from pipeline.core.disk import replacing
from pipeline.core.errors import Retry, Skip, UserError

TRIES = 5
FIRST_PAUSE_S = 0.5  # doubles with every try
LONGEST_PAUSE_S = 300.0  # an item whose host asks for more in Retry-After fails at once
LEAST_BYTES_PER_S = 1000  # over `stall_s`; below, a connection counts as stalled
CONNECT_S = 15.0
GONE = (404, 410)
REFUSED = (401, 403, 451)
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
PROXIES = "http://HOST:PORT, https://, socks5:// or socks5h:// are understood; unset the variable to go without"
CREDENTIALS = re.compile(r"(?<=//)[^/@]*@")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass
class _Host:
    """State of a host: free connections, time of the next request, interval between requests."""

    connections: threading.Semaphore
    next_s: float = 0.0  # on the monotonic clock
    interval_s: float = 0.0  # between requests; 0 until the host complains
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self) -> None:
        with self.lock:
            start = max(time.monotonic(), self.next_s)
            self.next_s = start + self.interval_s
        time.sleep(max(0.0, start - time.monotonic()))

    def slow_down(self, pause_s: float) -> None:
        with self.lock:
            self.interval_s = min(10.0, max(0.1, 2 * self.interval_s))
            self.next_s = max(self.next_s, time.monotonic() + pause_s)

    def went_well(self) -> None:
        with self.lock:
            self.interval_s = 0.0 if self.interval_s < 0.05 else 0.9 * self.interval_s


@dataclass(frozen=True)
class FetchLimits:
    """per_host: connections at once. max_bytes: of one file. stall_s: seconds without progress. mirrors: (from, to) URLs.

    cache: a folder in the layout of the objaverse package, whose files are used; None for none. keep: store fetched
    files in `cache` for good. again: what holds many items is needed a second time, so that it stays while there is room.
    """

    per_host: int = 4
    max_bytes: float = 1e9
    stall_s: float = 60.0
    mirrors: tuple[tuple[str, str], ...] = ()
    cache: Path | None = None
    keep: bool = False
    again: bool = False


@dataclass(frozen=True)
class Wanted:
    """owner: name under which disk is reserved. sha256, size: of the file, "" and 0 where not known beforehand.

    fold: disk to reserve, in multiples of the file's size, where other files will be made from it. give_way: called with the
    bytes that lack room, before the download waits for it.
    """

    owner: str
    sha256: str = ""
    size: int = 0
    fold: int = 1
    give_way: Callable[[int], None] | None = None


class Passing(Exception):
    """A failure that may pass by itself. pause_s: seconds to wait that the host asked for, or None."""

    def __init__(self, reason: str, detail: str, pause_s: float | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.pause_s = pause_s


def _proxies() -> str:
    """Variables of the environment that name proxies, without what is secret in them."""
    named = {name: value for name, value in os.environ.items() if name.lower() in PROXY_VARIABLES and value}
    return ", ".join(f"{name}={CREDENTIALS.sub('', value)}" for name, value in sorted(named.items()))


def client(timeout: Any, **more: Any) -> Any:
    """HTTP client (httpx2) that follows redirects, and goes through the proxies of the environment. UserError for a wrong one."""
    import httpx2

    try:
        headers = {"User-Agent": "lvsm-data"}
        return httpx2.Client(follow_redirects=True, timeout=timeout, headers=headers, **more)
    except (ValueError, httpx2.InvalidURL) as error:
        raise UserError(f"a proxy cannot be used: {_proxies()} ({error})", PROXIES) from None


def _wake(connection: socket.socket) -> None:
    """End a connection so that a thread which waits for it goes on, as it would not if the socket were closed."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class Fetcher:
    """Downloader with its connections and the state of each host. One per process, shared by its threads."""

    def __init__(self, limits: FetchLimits, disk_budget: DiskBudget) -> None:
        import httpx2

        self.limits = limits
        self.disk_budget = disk_budget
        timeout = httpx2.Timeout(CONNECT_S, read=limits.stall_s, pool=None)
        self.timeout = timeout
        self.client = client(timeout, event_hooks={"request": [self._watch]})
        self.hosts: dict[str, _Host] = {}
        self.fetches: Counter[str] = Counter()  # of each archive, and openings of each video, by URL
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._connected: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._reading: set[Any] = set()  # sockets of any client, whose bodies are read

    def close(self) -> None:
        """Stop all transfers: threads that wait or read get Retry("stopped")."""
        self.stopped.set()
        self.disk_budget.close()
        with self._lock:
            for connection in (*self._connected, *self._reading):
                _wake(connection)
        self.client.close()

    def _watch(self, request: Any) -> None:
        """Have the sockets told that a request connects, those that wait for an answer too."""

        def connected(event: str, info: Mapping[str, Any]) -> None:
            if event.endswith(("connect_tcp.complete", "start_tls.complete")):
                connection = info["return_value"].get_extra_info("socket")
                with self._lock:
                    self._connected.add(connection)
                    if self.stopped.is_set():
                        _wake(connection)

        request.extensions = {**request.extensions, "trace": connected}

    def body(self, response: Any) -> Iterator[bytes]:
        """Yield the body of a response, block by block, until `close` cuts it off: then raises Retry("stopped")."""
        connection = response.extensions["network_stream"].get_extra_info("socket")
        with self._lock:
            self._reading.add(connection)
        try:
            for block in response.iter_raw():
                if self.stopped.is_set():
                    raise Retry("stopped")
                yield block
        finally:
            with self._lock:
                self._reading.discard(connection)

    def get(self, url: str, to: Path, *, owner: str, sha256: str = "", size: int = 0) -> Path:
        """Download `url` into the file `to`, whose disk is reserved under the name of `owner`; returns `to`.

        sha256, size: of the file, where known. Raises Skip: missing (404, 410), forbidden (401, 403, 451), refused (other
        4xx), modified (another sha256 than expected), too_large, unsupported_url. Raises Retry if it keeps failing for
        a reason that may pass: rate_limited, server_error, connection, timeout, cut_off, corrupt_download; and `stopped`
        after `close`.
        """
        return self.get_with(self.client, self.mirrored(url), to, Wanted(owner, sha256.lower(), size))

    def get_with(
        self, client: Any, url: str, to: Path, wanted: Wanted, headers: Mapping[str, str] | None = None
    ) -> Path:
        """Download as `get` does, but through another httpx2 client and with further headers; `url` is not mirrored."""
        if urlsplit(url).scheme not in ("http", "https"):
            raise Skip("unsupported_url", url)
        part = to.with_name(f"{to.name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        transfer = _Transfer(self, client, url, part, wanted, dict(headers or {}))
        with replacing(to, part):
            if wanted.size:
                transfer.make_room(wanted.size)
            self.tried(url, transfer.attempt)
            if wanted.sha256 and transfer.digest.hexdigest() != wanted.sha256:
                raise Skip("modified", f"sha256 is {transfer.digest.hexdigest()}, expected {wanted.sha256}")
        return to

    def tried(self, url: str, attempt: Any) -> Any:
        """Result of `attempt()`, called up to TRIES times while it raises Passing; raises Retry with the last reason."""
        with self._lock:
            host = self.hosts.setdefault(urlsplit(url).netloc, _Host(threading.Semaphore(self.limits.per_host)))
        for number in range(TRIES):
            if self.stopped.is_set():
                raise Retry("stopped")
            try:
                with host.connections:
                    host.wait()
                    result = attempt()
                host.went_well()
                return result
            except Passing as failure:
                if self.stopped.is_set():
                    raise Retry("stopped") from None
                pause_s = FIRST_PAUSE_S * 2**number if failure.pause_s is None else failure.pause_s
                if failure.reason == "rate_limited":
                    host.slow_down(min(pause_s, LONGEST_PAUSE_S))
                if number == TRIES - 1 or pause_s > LONGEST_PAUSE_S:
                    raise Retry(failure.reason, f"{failure.detail} ({number + 1} tries)") from None
                self.stopped.wait(pause_s)
        raise AssertionError

    def mirrored(self, url: str) -> str:
        """`url` with its start replaced by the first mirror that matches; unchanged if none does."""
        for before, after in self.limits.mirrors:
            if url.startswith(before):
                return after + url[len(before) :]
        return url


@dataclass
class _Transfer:
    """Download of one file: attempts share the bytes that already arrived. reserved: bytes of disk."""

    fetcher: Fetcher
    client: Any
    url: str
    part: Path
    wanted: Wanted
    headers: dict[str, str]
    reserved: int = 0

    def __post_init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self.have = 0
        self.etag = ""
        self.digest = hashlib.sha256()
        self.part.unlink(missing_ok=True)

    def make_room(self, size: int) -> None:
        """Wait for disk for the whole file of `size` bytes, and reserve it."""
        self._check_size(size)
        if (needed := size * self.wanted.fold) > self.reserved:
            if self.wanted.give_way:
                self.wanted.give_way(needed)
            self.fetcher.disk_budget.reserve(self.wanted.owner, needed - self.reserved)
            self.reserved = needed

    def _check_size(self, size: float) -> None:
        if size > self.fetcher.limits.max_bytes:
            limit = self.fetcher.limits.max_bytes / 1e6
            raise Skip("too_large", f"{size / 1e6:.0f} MB, the limit is {limit:.0f} MB; --max-file-mb raises it")

    def attempt(self) -> None:
        """Request the file once, resuming behind the bytes already here if the host allows. Raises Skip, Passing, Retry."""
        headers = self.headers | {"Accept-Encoding": "identity"}  # lengths and ranges of the file itself
        if self.have and self.etag:
            headers |= {"Range": f"bytes={self.have}-", "If-Range": self.etag}
        with passing(self.url):
            while True:
                with self.client.stream(
                    "GET", self.url, headers=headers, timeout=self.fetcher.timeout, follow_redirects=True
                ) as response:
                    check_status(response)
                    if missing := self._lacks_room(response):
                        response.close()
                    else:
                        return self._read(response)
                self.make_room(missing)  # without holding a connection open

    def _lacks_room(self, response: Any) -> int:
        """Reserve disk for the body if it is free now: then 0, else the size in bytes to `make_room` for first."""
        length = response.headers.get("content-length")
        begun = self.have if response.status_code == 206 else 0
        size = begun + int(length) if length and length.isdecimal() else int(self.fetcher.limits.max_bytes)
        self._check_size(size)
        more = size * self.wanted.fold - self.reserved
        if more <= 0 or self.fetcher.disk_budget.try_reserve(self.wanted.owner, more):
            self.reserved += max(0, more)
            return 0
        return size

    def _read(self, response: Any) -> None:
        found = response.headers.get("content-range", "")
        if response.status_code != 206 or not found.startswith(f"bytes {self.have}-"):
            self._restart()
        etag = response.headers.get("etag", "")
        self.etag = "" if etag.startswith("W/") else etag  # a weak one does not promise equal bytes
        declared = response.headers.get("content-length", "")
        expected = self.have + int(declared) if declared.isdecimal() else None
        with self.part.open("ab") as sink:
            window, window_bytes = time.monotonic(), 0
            for block in self.fetcher.body(response):
                sink.write(block)
                self.digest.update(block)
                self.have += len(block)
                self._check_size(self.have)
                window_bytes += len(block)
                if (seconds := time.monotonic() - window) > self.fetcher.limits.stall_s:
                    if window_bytes < LEAST_BYTES_PER_S * seconds:
                        raise Passing("timeout", f"{self.url}: {window_bytes / seconds:.0f} bytes/s")
                    window, window_bytes = time.monotonic(), 0
        if expected is not None and self.have != expected:
            raise Passing("cut_off", f"{self.url}: {self.have} of {expected} bytes")
        promised = _linked_sha256(response)
        if promised and self.digest.hexdigest() != promised:
            found = self.digest.hexdigest()
            self._restart()
            raise Passing("corrupt_download", f"{self.url}: sha256 is {found}, the host says {promised}")
        disk_budget, owner = self.fetcher.disk_budget, self.wanted.owner
        disk_budget.settle(owner, disk_budget.held(owner) - self.reserved + self.have * self.wanted.fold)
        self.reserved = self.have * self.wanted.fold


@contextmanager
def passing(url: str) -> Iterator[None]:
    """Turn errors of the connection to `url` into Skip or Passing."""
    import httpx2

    try:
        yield
    except httpx2.TimeoutException as error:
        raise Passing("timeout", f"{url}: {error or 'time-out'}") from None
    except httpx2.TooManyRedirects:
        raise Skip("refused", f"{url} redirects in circles") from None
    except httpx2.RemoteProtocolError as error:
        raise Passing("cut_off", f"{url}: {error}") from None
    except httpx2.TransportError as error:
        raise Passing("connection", f"{url}: {error}") from None
    except httpx2.InvalidURL as error:
        raise Skip("refused", f"{url}: {error}") from None


def check_status(response: Any) -> None:
    """Raise Skip or Passing if the status of an HTTP response (httpx2) is 400 or above."""
    if response.status_code >= 400:
        raise failure_of(response, f"HTTP {response.status_code} from {response.url}")


def failure_of(response: Any, detail: str) -> Skip | Passing:
    """Exception for an HTTP status from 400 up: Passing if the failure may pass, Skip if it is permanent."""
    status = response.status_code
    if status in GONE:
        return Skip("missing", detail)
    if status in REFUSED:
        return Skip("forbidden", detail)
    if status in (408, 425, 429):
        return Passing("rate_limited", detail, retry_after_s(response.headers))
    if status >= 500:
        return Passing("server_error", detail, retry_after_s(response.headers))
    if status == 416:
        return Passing("cut_off", detail)
    return Skip("refused", detail)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in lower-case hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header (RFC 9110, seconds or a date) asks for; None without one."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _linked_sha256(response: Any) -> str:
    """SHA-256 that the Hugging Face Hub gives for an LFS file, in a redirect or in the response; "" without one."""
    for answer in (*response.history, response):
        value = answer.headers.get("x-linked-etag", "").strip('"')
        if SHA256.fullmatch(value):
            return str(value)
    return ""
