"""Videos of the web, through yt-dlp: the smallest stream that suffices, and only the parts of it that are needed.

YouTube counts how many videos a client asks for. So requests for pages are rate-limited; reads of streams are not.
Where a server takes ranges, only the stretches that are cut are fetched; else the whole file, for as long as it is cut.
"""

from __future__ import annotations

import io
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.config.clip import ClipConfig
from pipeline.core.budget import DiskBudget
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.core.paths import file_stem
from pipeline.core.records import video_of
from pipeline.download.fetch import LONGEST_PAUSE_S, Fetcher, FetchLimits, Passing, Wanted, retry_after_s
from pipeline.download.ranges import NoRanges, Remote
from pipeline.video import cut, js_runtime, refusals
from pipeline.video.cut import Film
from pipeline.video.rate_limit import RateLimiter

SUFFIXES = (
    ".mp4",
    ".webm",
    ".mkv",
    ".mov",
    ".m4v",
    ".avi",
    ".flv",
    ".ts",
    ".m2ts",
    ".mts",
    ".mpg",
    ".3gp",
    ".wmv",
    ".ogv",
)
FORMAT = re.compile(r"\.f[0-9a-z_-]+$", re.IGNORECASE)  # which yt-dlp appends to names of streams that were not merged
NAMES = (  # without suffix: the name alone; yt-dlp's own template, title [id]; youtube-dl's, title-id
    re.compile(r"(.+)"),
    re.compile(r".*\[([0-9A-Za-z_-]{11})\]"),
    re.compile(r".*-([0-9A-Za-z_-]{11})"),
)
TRIES = 4
SHORT_PAUSE_S = 0.5  # after a failure of the connection; doubles
REFUSED = ("bot_check", "client_refused", "no_js_runtime", "rate_limited")  # due to this client, whichever the video
IN_A_ROW = 5  # videos refused for these reasons: then the run stops
REMEMBERED = 64  # pages; the addresses of YouTube's streams are good for hours
REMEMBER_S = 3600
WHOLE_AND_CUTS = 3  # disk for a video and its cuts, in sizes of the video: cuts overlap, as they begin at a key frame
WHOLE_FILES = ("http", "https")  # protocols; others bring a video in pieces
SLOW = ("av01",)  # codecs whose decoding takes longest


def cookies_of(path: Path) -> str:
    """Text of a cookie file in Netscape's format. Raises UserError if it is none.

    yt-dlp gets the text alone, as it would write the cookies that servers set into the file.
    """
    hint = "a cookies.txt in Netscape's format is needed: seven fields a line, with tabs between them"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--cookies {path} cannot be read: {error}", hint) from None
    lines = [line for line in text.splitlines() if line.strip() and not re.match(r"#(?!HttpOnly_)", line)]
    if not lines or any(line.count("\t") != 6 for line in lines):
        raise UserError(f"--cookies {path} cannot be read: {lines[0][:20] + '...' if lines else 'it is empty'}", hint)
    return text


class VideoFetcher(Fetcher):
    """Fetcher that also opens videos, given the address of their page."""

    def __init__(self, limits: FetchLimits, disk_budget: DiskBudget, cfg: ClipConfig) -> None:
        super().__init__(limits, disk_budget)
        self.cfg = cfg
        self.cookies = cookies_of(cfg.cookies) if cfg.cookies else ""
        self.limiters: dict[str, RateLimiter] = {}
        self.refused_in_a_row = 0
        self.pages: OrderedDict[str, tuple[float, dict[str, Any]]] = OrderedDict()
        self.files = named(cfg.videos) if cfg.videos else None
        self.lock = threading.Lock()

    @cached_property
    def runtimes(self) -> dict[str, str]:
        """JavaScript runtimes for yt-dlp, name -> version. Slow the first time: asks every program for its version."""
        return js_runtime.js_runtimes()

    @contextmanager
    def film(self, url: str) -> Iterator[Film]:
        """Open the video of a page for cutting. If Film.owner is set, disk for the cuts is already reserved under that name.

        Raises Skip and Retry with the reasons of `refusals`, of `Fetcher.get` and of `cut`; UserError after IN_A_ROW videos in
        a row were refused.
        """
        if self.files is not None:
            if (path := self.files.get(video_of(url))) is None:
                raise Skip("missing", f"no file in {self.cfg.videos} is named {video_of(url)}")
            with cut.opened(path, path.stat().st_size) as film:
                yield film
            return
        stream = self._stream(self.mirrored(url))
        with self.lock:
            self.fetches[url] += 1
        try:
            if stream.get("protocol") not in WHOLE_FILES:
                raise NoRanges
            remote = Remote(self, stream["url"], stream.get("http_headers") or {})
        except NoRanges:
            with self._whole(stream) as path, cut.opened(path, path.stat().st_size, _about(stream)) as film:
                film.owner = path.parent.name
                yield film
        except Skip as failure:
            if failure.reason != "forbidden":
                raise
            with self.lock:  # YouTube's streams are refused for a while, or to an address that has grown old
                self.pages.pop(self.mirrored(url), None)
            raise Retry(failure.reason, failure.detail) from None
        else:
            with cut.opened(remote, remote.size, _about(stream)) as film:
                yield film

    def look(self, url: str) -> None:
        """Ask for the page of a video, or look for its file. Raises what `film` raises before it reads a stream."""
        if self.files is None:
            self._stream(self.mirrored(url))
        else:
            with self.film(url):
                pass

    @contextmanager
    def _whole(self, stream: dict[str, Any]) -> Iterator[Path]:
        """Path of the whole file, removed at the end. Disk is reserved for the file and all cuts at once, so that threads that
        hold a video do not wait for each other.
        """
        folder = Path(tempfile.mkdtemp(prefix="video-", dir=self.disk_budget.folder))
        owner, path = folder.name, folder / "video"
        try:
            if stream.get("protocol") in WHOLE_FILES:
                wanted = Wanted(owner, fold=WHOLE_AND_CUTS)
                yield self.get_with(self.client, stream["url"], path, wanted, stream.get("http_headers"))
            else:
                self.disk_budget.reserve(
                    owner, min(self.disk_budget.budget, WHOLE_AND_CUTS * int(self.limits.max_bytes))
                )
                yield self._downloaded(stream, path)
        finally:
            shutil.rmtree(folder)
            self.disk_budget.release(owner)

    def _stream(self, url: str) -> dict[str, Any]:
        """Metadata from yt-dlp of the page `url` and of the stream chosen there. Asks again where that may help."""
        with self.lock:
            known = self.pages.get(url)
        if known and time.monotonic() - known[0] < REMEMBER_S:
            return known[1]
        limiter = self._limiter(urlsplit(url).netloc)
        for number in range(TRIES):
            limiter.wait()
            try:
                stream = self._metadata(url)
            except Skip:
                self.refused_in_a_row = 0
                raise
            except Passing as refused:
                self._wait_after(refused, number, limiter)
            else:
                self.refused_in_a_row = 0
                with self.lock:
                    self.pages[url] = (time.monotonic(), stream)
                    while len(self.pages) > REMEMBERED:
                        self.pages.popitem(last=False)
                return stream
        raise AssertionError

    def _limiter(self, host: str) -> RateLimiter:
        """Rate limiter of a host, which all processes and sessions that have one `cache` share."""
        with self.lock:
            if host not in self.limiters:
                file = self.cfg.cache.expanduser() / f"asked-{file_stem(host)}.json"
                self.limiters[host] = RateLimiter(self.cfg.videos_per_hour, self.stopped, file)
            return self.limiters[host]

    def _wait_after(self, refused: Passing, number: int, limiter: RateLimiter) -> None:
        """Pause all threads (rate limit) or this one; raise the failure, or UserError, if the video is not to be tried again."""
        failure = Retry(refused.reason, refused.detail)
        ours = failure.reason in REFUSED
        if number == TRIES - 1 or (ours and failure.reason != "rate_limited"):
            with self.lock:
                self.refused_in_a_row += ours
                if self.refused_in_a_row >= IN_A_ROW:
                    raise UserError(
                        f"{self.refused_in_a_row} videos in a row were refused, the last with {failure}",
                        "the same command with --retry-failed goes on, once that is mended",
                    )
            raise failure
        if failure.reason == "rate_limited":
            pause_s = min(refused.pause_s or self.cfg.backoff_s * 2**number, LONGEST_PAUSE_S)
            pause_s *= random.uniform(1, 1.1)  # clients that were refused together should not come back together
            if limiter.pause(pause_s):
                print(f"the server limits how often we may ask: pausing {pause_s:.0f} s", file=sys.stderr)
        else:
            self.stopped.wait(SHORT_PAUSE_S * 2**number)

    def _metadata(self, url: str) -> dict[str, Any]:
        """Ask for the page's metadata once. Raises Skip, Passing."""
        with self._youtube_dl() as ydl:
            found: dict[str, Any] = ydl.extract_info(url, download=False)
        if found.get("_type", "video") != "video" or not found.get("url"):
            raise Skip("not_a_video", f"{url} is a page with several videos, or none")
        return found

    def _downloaded(self, stream: dict[str, Any], path: Path) -> Path:
        """Download a stream in pieces (HLS, DASH) to `path`, with yt-dlp's own downloader. Raises Skip, Retry."""

        def watch(progress: dict[str, Any]) -> None:
            if self.stopped.is_set():
                raise Retry("stopped")
            if (progress.get("downloaded_bytes") or 0) > self.limits.max_bytes:
                limit = self.limits.max_bytes / 1e6
                raise Skip("too_large", f"more than {limit:.0f} MB; --max-file-mb raises it")

        try:
            with self._youtube_dl(outtmpl={"default": str(path)}, progress_hooks=[watch]) as ydl:
                ydl.process_info(dict(stream))
        except Passing as refused:
            raise Retry(refused.reason, refused.detail) from None
        if not path.is_file():
            raise Retry("cut_off", f"{stream.get('webpage_url')}: yt-dlp brought no file")
        return path

    @contextmanager
    def _youtube_dl(self, **more: Any) -> Iterator[Any]:
        """YoutubeDL that prints nothing; its errors are raised as Skip or Passing. more: further options."""
        import yt_dlp

        logger = _QuietLogger()
        settings = {
            "quiet": True,
            "no_warnings": True,
            "noprogress": True,
            "logger": logger,
            "color": {"stdout": "never", "stderr": "never"},
            "noplaylist": True,
            "format": lambda context: chosen(context["formats"], self.cfg.scene.stream_height),
            "socket_timeout": self.limits.stall_s,
            "extractor_retries": 0,
            "retries": 2,
            "fragment_retries": 2,
            "fixup": "never",
            "cookiefile": io.StringIO(self.cookies) if self.cookies else None,
            "js_runtimes": {name: {} for name in self.runtimes},
        }
        try:
            with yt_dlp.YoutubeDL(settings | more) as ydl:
                yield ydl
        except yt_dlp.utils.YoutubeDLError as error:
            raise self._refusal(error, logger) from None

    def _refusal(self, error: Any, logger: _QuietLogger) -> Skip | Passing:
        cause = error
        while cause is not None and not hasattr(cause, "status"):
            cause = getattr(cause, "cause", None) or (getattr(cause, "exc_info", None) or (None, None))[1]
        failure = refusals.refusal(
            f"{logger.cause}{error}",
            status=getattr(cause, "status", None),
            has_runtime=bool(self.runtimes),
        )
        if isinstance(failure, Skip):
            return failure
        response = getattr(cause, "response", None)
        pause_s = retry_after_s(response.headers) if response is not None else None
        return Passing(failure.reason, failure.detail, pause_s)


class _QuietLogger:
    """Logger for yt-dlp that prints nothing, as the ledger has the reasons. cause: its warning that a challenge failed, which
    explains a later error about missing formats.
    """

    def __init__(self) -> None:
        self.cause = ""

    def debug(self, message: str) -> None: ...

    def warning(self, message: str) -> None:
        if "challenge solving failed" in message:
            self.cause = f"{message.splitlines()[0]}; "

    def error(self, message: str) -> None: ...


def chosen(formats: list[dict[str, Any]], height: int) -> Iterator[dict[str, Any]]:
    """Yield the stream with the fewest rows of at least `height`, else the one with the most; among equals prefer SDR, one file
    over pieces, no sound, what is decoded fast, small size, in this order. Yields nothing if no stream has pictures.
    """
    usable = [
        each
        for each in formats
        if each.get("vcodec") != "none"
        and not each.get("has_drm")
        and each.get("protocol") != "mhtml"  # pages of thumbnails
    ]
    if usable:
        yield min(usable, key=lambda each: _cost(each, height))


def _cost(stream: dict[str, Any], height: int) -> tuple[Any, ...]:
    sides = [side for side in (stream.get("height"), stream.get("width")) if side]
    rows = min(sides) if sides else height  # the short side, also of upright videos; a stream without any may do
    size = stream.get("filesize") or stream.get("filesize_approx") or stream.get("tbr") or 0
    in_pieces = stream.get("protocol") not in WHOLE_FILES
    hdr = stream.get("dynamic_range") not in (None, "SDR")
    sound, slow = stream.get("acodec") not in (None, "none"), str(stream.get("vcodec")).startswith(SLOW)
    return (rows < height, abs(rows - height), hdr, in_pieces, sound, slow, size)


def _about(stream: dict[str, Any]) -> dict[str, str]:
    """Title, author and license of a video, each only where its page says so: YouTube's own license permits no reuse."""
    said = {
        "title": stream.get("title"),
        "author": stream.get("channel") or stream.get("uploader"),
        "license": (stream.get("license") or "").removesuffix(" (reuse allowed)"),
    }
    return {name: str(value) for name, value in said.items() if value}


def named(folder: Path) -> dict[str, Path]:
    """Name of a video -> its file, by any of NAMES. Raises UserError if `folder` has no video.

    Of several files with one name: the plainest name with pictures, since yt-dlp may leave sound and pictures apart.
    """
    found: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        stem = FORMAT.sub("", path.stem)
        for rank, pattern in enumerate(NAMES):
            if match := pattern.fullmatch(stem):
                found[match[1]].append((rank, path))
    if not found:
        raise UserError(f"--videos {folder} holds no video", f"files named by YouTube id, {' '.join(SUFFIXES)}")
    return {name: _with_pictures([path for _, path in sorted(paths)]) for name, paths in found.items()}


def _with_pictures(paths: list[Path]) -> Path:
    """First of several files that has pictures, else the first."""
    return next((path for path in paths if len(paths) == 1 or cut.has_pictures(path)), paths[0])
