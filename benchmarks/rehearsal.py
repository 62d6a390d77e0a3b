"""A rehearsal of RealEstate10K at full scale: 10,000 videos with YouTube's faults, 60,000 clips, through the real driver.

    python -m benchmarks.rehearsal [--videos 10000 --clips 6]

Real are the driver, ledger, shards, downloads' threads, the rate limit, cuts and frames; a server on loopback serves one small
video under every name. Only the answer of yt-dlp to "what is behind this page" is made up: removed, private, blocked in this
region, rate-limited for a while, slow, or a stream; in yt-dlp's own words, which `pipeline/video/refusals.py` reads.

Printed: clips per second, memory of the process at each tenth of the run, requests against what the rate limit allows in every
window of a minute and an hour, and whether the yield by reason is what was put in.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline.config.clip import ClipConfig, ClipScene
from pipeline.core.errors import Skip
from pipeline.download.fetch import Passing
from pipeline.run.driver import deliver
from pipeline.storage.ledger import Ledger
from pipeline.video import refusals, ytdlp
from pipeline.video.rate_limit import BURST_S
from tests import videos

PAGE = "https://www.youtube.com/watch?v="
FATES = {  # words of yt-dlp -> share of the videos
    "Video unavailable. This video has been removed by the uploader": 0.20,
    "Private video. Sign in if you've been granted access to this video": 0.10,
    "The uploader has not made this video available in your country": 0.05,
}
THROTTLED, SLOW = 0.02, 0.02  # shares of the requests that are told to wait, and of the videos that come slowly
FRAMES = (2, 9)  # of each clip


def main(videos: int = 10_000, clips: int = 6, per_hour: float = 40_000, threads: int = 4) -> None:
    """Run the rehearsal. per_hour: of the rate limit, so that hours become minutes."""
    with tempfile.TemporaryDirectory() as folder:
        rehearse(Path(folder), videos, clips, per_hour, threads)


def fate(video: str) -> str:
    """Words of yt-dlp about a video, "" where nothing is wrong with it. By a hash of its name."""
    share = int.from_bytes(hashlib.blake2b(video.encode(), digest_size=8).digest(), "little") / 2**64
    for words, part in FATES.items():
        if share < part:
            return words
        share -= part
    return ""


def rehearse(folder: Path, count: int, clips: int, per_hour: float, threads: int) -> None:
    """Write camera files and a video, run `clip` over all of them, and print what came of it."""
    (folder / "films").mkdir()
    shown = videos.make_video(folder / "films/a.mp4", (videos.numbered(i, (90, 160)) for i in range(12)), gop=6)
    asked_us = [int(shown[i] * 1_000_000) for i in FRAMES]
    poses, shares = videos.circle_w2c(len(asked_us)), np.array([0.9, 1.6, 0.5, 0.5])
    names = [f"{number:011d}" for number in range(count)]
    for name in names:
        (folder / "cams" / name[-2:]).mkdir(parents=True, exist_ok=True)
        text = videos.camera_file(PAGE + name, asked_us, shares, poses)
        for clip in range(clips):
            (folder / "cams" / name[-2:] / f"{name}-{clip}.txt").write_text(text)
    asked: list[float] = []
    cfg = ClipConfig(
        cameras=folder / "cams",
        n=count * clips,
        out=folder / "out",
        cache=folder / "cache",
        executor="inline",
        downloads=threads,
        videos_per_hour=per_hour,
        backoff_s=0.05,
        scene=ClipScene(res=(64,)),
    ).resolved()
    with videos.VideoServer(folder / "films") as server, answering(server, asked), memory() as levels:
        began = time.monotonic()
        summary = deliver(cfg)
        seconds = time.monotonic() - began
    fates = Counter(refusals.refusal(words).reason if words else "" for words in map(fate, names))
    good = fates.pop("")
    print(f"{count:,} videos, {count * clips:,} clips in {seconds:,.0f} s: {count * clips / seconds:,.0f} clips/s")
    print(f"memory (MB) at each tenth: {' '.join(f'{level / 1e6:.0f}' for level in tenths(levels))}")
    expected = {reason: number * clips for reason, number in fates.items()}
    print(f"delivered {summary.delivered:,} of {good * clips:,} that can be had; failed {dict(summary.reasons)}")
    assert summary.delivered == good * clips and summary.reasons == expected, (good * clips, expected)
    for window in (60.0, 3600.0):
        most = busiest(asked, window)
        allowed = max(1.0, per_hour * BURST_S / 3600) + per_hour * window / 3600
        print(f"requests in the busiest {window:.0f} s: {most:,}, allowed {allowed:,.0f}; {len(asked):,} in all")
        assert most <= allowed + 1
    with Ledger(folder / "out/ledger.sqlite", readonly=True) as ledger:
        ends: Counter[str] = Counter()
        for _, reason, number in ledger.ends_by_url():
            ends[reason] += number
    assert ends == Counter({"": good * clips} | expected)
    print("the ledger agrees")


@contextmanager
def answering(server: Any, asked: list[float]) -> Iterator[None]:
    """Within, yt-dlp's answers are made up. asked: gets the time of each request."""
    tries: Counter[str] = Counter()
    lock = threading.Lock()

    def metadata(net: ytdlp.VideoFetcher, url: str) -> dict[str, Any]:
        video = url.rpartition("=")[2]
        with lock:
            asked.append(time.monotonic())
            tries[video] += 1
            again = tries[video] > 1
        chance = int(hashlib.blake2b(f"{video} luck".encode(), digest_size=4).hexdigest(), 16) / 2**32
        if chance < THROTTLED and not again:
            raise Passing("rate_limited", "HTTP Error 429: Too Many Requests", 0.2)
        if chance > 1 - SLOW:
            time.sleep(0.3)
        if words := fate(video):
            failure = refusals.refusal(words)
            assert isinstance(failure, Skip), words
            raise failure
        return {"url": f"{server.url}/a.mp4", "protocol": "http", "webpage_url": url}

    with mock.patch.object(ytdlp.VideoFetcher, "_metadata", metadata):
        yield


@contextmanager
def memory() -> Iterator[list[int]]:
    """Resident memory of this process, every half second."""
    levels, over, process = [], threading.Event(), psutil.Process()

    def look() -> None:
        while not over.wait(0.5):
            levels.append(process.memory_info().rss)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield levels
    finally:
        over.set()
        thread.join()


def tenths(levels: list[int]) -> list[int]:
    """Highest level in each tenth of a series."""
    return [int(part.max()) for part in np.array_split(np.array(levels or [0]), 10) if len(part)]


def busiest(times: list[float], window: float) -> int:
    """Most of `times`, ascending, within any `window` seconds."""
    first = most = 0
    for last, time_s in enumerate(times):
        while times[first] < time_s - window:
            first += 1
        most = max(most, last - first + 1)
    return most


if __name__ == "__main__":
    tyro.cli(main)
