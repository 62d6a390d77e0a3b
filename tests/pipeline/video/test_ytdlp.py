"""Choosing a stream, asking no more often than allowed, and streams that come in pieces."""

from __future__ import annotations

import subprocess
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.clip import ClipConfig, ClipScene
from pipeline.core import images
from pipeline.core.errors import Retry, UserError
from pipeline.storage.shards import find_shards, read_objects
from pipeline.video.rate_limit import RateLimiter
from pipeline.video.ytdlp import chosen, cookies_of, named
from tests import videos
from tests.conftest import lvsm_data
from tests.videos import Fault, VideoServer

SHARES = np.array([0.9, 1.6, 0.5, 0.5])


def stream(name: str, height: int | None, size: int = 1, **more: Any) -> dict[str, Any]:
    width = None if height is None else height * 16 // 9
    usual = {"protocol": "https", "vcodec": "avc1.4d401f", "acodec": "none", "height": height, "width": width}
    return usual | {"format_id": name, "filesize": size} | more


LADDER = [stream(f"{height}p", height) for height in (144, 240, 360, 480, 720, 1080, 2160)]


@pytest.mark.parametrize(
    ("res", "expected"), [((64,), "144p"), ((128,), "240p"), ((256,), "480p"), ((64, 256), "480p"), ((512,), "1080p")]
)
def test_the_smallest_stream_that_suffices(res: tuple[int, ...], expected: str) -> None:
    (found,) = chosen(LADDER, ClipScene(res=res).stream_height)
    assert found["format_id"] == expected


@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        (ClipScene(res=(640,), height_crop=0), "720p"),
        (ClipScene(res=(448,), height_crop=256), "480p"),
        (ClipScene(res=(256,), height_crop=144), "240p"),
    ],
)
def test_the_crop_counts(scene: ClipScene, expected: str) -> None:
    (found,) = chosen(LADDER, scene.stream_height)
    assert found["format_id"] == expected


@pytest.mark.parametrize(
    ("streams", "expected"),
    [
        ([stream("small", 144), stream("less small", 240)], "less small"),  # none suffices: the best there is
        ([stream("big", 480, 9), stream("small", 480, 5)], "small"),
        ([stream("av1", 480, 1, vcodec="av01.0.04M.08"), stream("avc", 480, 5)], "avc"),
        ([stream("av1", 480, 1, vcodec="av01.0.04M.08"), stream("avc", 720, 5)], "av1"),
        ([stream("pieces", 480, 1, protocol="m3u8_native"), stream("file", 480, 5)], "file"),
        ([stream("pieces", 480, 1, protocol="m3u8_native"), stream("file", 720, 5)], "pieces"),
        ([stream("sound", 480, 5, acodec="mp4a"), stream("silent", 480, 5)], "silent"),
        ([stream("hdr", 480, 1, dynamic_range="HDR10"), stream("sdr", 480, 5)], "sdr"),
        ([stream("upright", 854, 1, width=480), stream("wide", 1080)], "upright"),
        ([stream("drm", 480, has_drm=True), stream("free", 1080)], "free"),
        ([stream("direct", None, vcodec=None)], "direct"),
        ([stream("thumbnails", 480, protocol="mhtml", vcodec="none")], None),
        ([stream("sound alone", None, vcodec="none")], None),
    ],
)
def test_what_is_chosen(streams: list[dict[str, Any]], expected: str | None) -> None:
    for order in (streams, streams[::-1]):
        assert [each["format_id"] for each in chosen(order, 384)] == ([expected] if expected else [])


class Hours(threading.Event):
    """Nobody stops, and whoever waits moves the clock on."""

    now = 1000.0

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None and timeout > 0
        self.now += timeout
        return self.is_set()


def test_the_limiter_lets_a_few_through_and_then_one_by_one() -> None:
    hours = Hours()
    limiter = RateLimiter(3600 / 8, hours, clock=lambda: hours.now)
    limiter.tokens = limiter.burst = 3.0
    for _ in range(3):
        limiter.wait()
    assert hours.now == 1000
    for number in range(1, 6):
        limiter.wait()
        assert hours.now == 1000 + 8 * number
    hours.now += 1e6  # nobody asks for long: there are three again, and no more
    for _ in range(4):
        limiter.wait()
    assert hours.now == 1000 + 8 * 5 + 1e6 + 8


def test_no_hour_sees_more_than_youtube_allows() -> None:
    limiter = RateLimiter(ClipConfig.videos_per_hour, threading.Event())
    assert limiter.burst + 3600 / limiter.interval_s < 300


def test_a_pause_holds_everybody_and_stopping_ends_it() -> None:
    hours = Hours()
    limiter = RateLimiter(0, hours, clock=lambda: hours.now)
    limiter.wait()
    assert limiter.pause(30) and not limiter.pause(20)
    limiter.wait()
    assert hours.now == 1030
    stopped = threading.Event()
    limiter = RateLimiter(0, stopped)
    limiter.pause(3600)
    threading.Timer(0.1, stopped.set).start()
    with pytest.raises(Retry, match="stopped"):
        limiter.wait()  # for an hour, if it did not end


def test_the_limit_holds_for_all_processes_and_the_next_session(tmp_path: Path) -> None:
    hours = Hours()

    def limiter() -> RateLimiter:
        return RateLimiter(3600 / 10, hours, tmp_path / "cache" / "asked.json", lambda: hours.now)

    first = limiter()
    burst = int(first.burst)
    for _ in range(burst):
        first.wait()
    assert hours.now == 1000
    limiter().wait()  # another process, or the same command again
    assert hours.now == 1010
    first.pause(500)
    limiter().wait()
    assert hours.now == 1510
    for text in ("", "[1, 2", "[1e99, 1e99, 1e99]", '{"a": 1}'):  # a damaged file, a clock that was wrong
        (tmp_path / "cache" / "asked.json").write_text(text)
        before = hours.now
        limiter().wait()
        assert hours.now <= before + 3700
    (tmp_path / "file").write_text("")
    alone = RateLimiter(3600 / 8, hours, tmp_path / "file" / "asked.json", lambda: hours.now)
    alone.wait()  # says that it counts its own requests alone


def test_files_are_found_by_id(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    names = {
        "aaaaaaaaaaa": "aaaaaaaaaaa.mp4",
        "b-_bbbbbbbb": "inner/A title [b-_bbbbbbbb].webm",
        "ccccccccccc": "ccccccccccc.MKV",
        "ddddddddddd": "My house-ddddddddddd.mp4",  # youtube-dl's template
        "-eeeeeeeeee": "Another - house--eeeeeeeeee.mp4",
        "fffffffffff": "fffffffffff.f137.mp4",
        "ggggggggggg": "A title [ggggggggggg].f248-drc.webm",
        "hhhhhhhhhhh": "Title-hhhhhhhhhhh.f136.mp4",
    }
    for name in (*names.values(), "notes.txt", "inner/x-aaaaaaaaaaa.mp4", "ccccccccccc.mkv.part"):
        (tmp_path / name).write_bytes(b"")
    found = named(tmp_path)
    assert {name: found[name].relative_to(tmp_path).as_posix() for name in names} == names


def test_of_pictures_and_sound_that_lie_apart_the_pictures_are_taken(tmp_path: Path) -> None:
    videos.make_video(tmp_path / "both.webm", map(videos.numbered, range(20)), codec="vp9", audio=True)
    for kind, format_id in (("-vn", "251"), ("-an", "307")):
        command = ["ffmpeg", "-v", "error", "-i", tmp_path / "both.webm", kind, "-c", "copy"]
        subprocess.run([*command, tmp_path / f"A title [aaaaaaaaaaa].f{format_id}.webm"], check=True, timeout=300)
    assert named(tmp_path)["aaaaaaaaaaa"].name == "A title [aaaaaaaaaaa].f307.webm"


@pytest.mark.parametrize(
    "text", ["", "# Netscape HTTP Cookie File\n", '[{"name": "SID"}]', "\x00\xff", "a b c d e f g\n"]
)
def test_cookies_that_are_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "cookies.txt"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"cookies\.txt cannot be read"):
        cookies_of(path)


def dataset(folder: Path, url: str, times: list[Fraction], keys: list[str]) -> Path:
    """A camera file for frames 40 to 60 of each of some videos at url/KEY.mp4."""
    asked = [int(time * 1_000_000) for time in times[40:60]]
    text = {key: videos.camera_file(f"{url}/{key}", asked, SHARES, videos.circle_w2c(20)) for key in keys}
    return videos.write_dataset(folder, {"train": {key.split(".")[0]: one for key, one in text.items()}})


def test_cookies_are_sent_and_their_file_stays_as_it_was(tmp_path: Path) -> None:
    film = tmp_path / "films"
    film.mkdir()
    times = videos.make_video(film / "a.mp4", map(videos.numbered, range(80)))
    cookies = tmp_path / "cookies.txt"
    cookies.write_text("# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tSID\tsecret\n")
    cookies.chmod(0o444)
    before = cookies.read_bytes()
    with VideoServer(film) as server:
        given = dataset(tmp_path / "cameras", server.url, times, ["a.mp4"])
        arguments = ("clip", "--cameras", given, "--n", 1, "--out", tmp_path / "out", "--cookies", cookies)
        done = lvsm_data(*arguments, "--executor", "inline")
        assert done.returncode == 0, done.stderr
        assert "SID=secret" in server.cookies
    assert cookies.read_bytes() == before


def test_a_stream_in_pieces(tmp_path: Path) -> None:
    """HLS: yt-dlp puts the pieces together, and the frames are still those that were asked for."""
    film = tmp_path / "films"
    film.mkdir()
    times = videos.make_video(tmp_path / "whole.mp4", map(videos.numbered, range(80)), gop=20)
    pieces = ["-c", "copy", "-f", "hls", "-hls_time", "1", "-hls_playlist_type", "vod", film / "list.m3u8"]
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "whole.mp4", *pieces], check=True, timeout=300)
    assert len(list(film.glob("*.ts"))) > 2
    with VideoServer(film) as server:
        given = dataset(tmp_path / "cameras", server.url, times, ["list.m3u8"])
        out = tmp_path / "out"
        done = lvsm_data("clip", "--cameras", given, "--n", 1, "--out", out, "--executor", "inline")
        assert done.returncode == 0, done.stderr + done.stdout
        assert len({one.path for one in server.requests if one.path.endswith(".ts")}) > 2
        again = lvsm_data(
            *("clip", "--cameras", given, "--n", 1, "--out", tmp_path / "small", "--executor", "inline"),
            *("--max-file-mb", 0.02),
        )
        assert again.returncode == 3 and "too_large 1" in again.stdout, again.stdout
    (rows,) = read_objects(find_shards(out)[64][0])
    assert [videos.read_number(images.decode(jpeg)) for jpeg in rows.jpegs] == list(range(40, 60))


def test_a_server_that_refuses_us_again_and_again_ends_the_run(tmp_path: Path) -> None:
    film = tmp_path / "films"
    film.mkdir()
    times = videos.make_video(film / "a.mp4", map(videos.numbered, range(80)))
    keys = [f"v{i}.mp4" for i in range(9)]
    for key in keys:
        (film / key).symlink_to(film / "a.mp4")
    with VideoServer(film) as server:
        given = dataset(tmp_path / "cameras", server.url, times, keys)
        for key in keys:
            server.faults[f"/{key}"] = Fault("429", retry_after=0)
        arguments = ("clip", "--cameras", given, "--n", 9, "--out", tmp_path / "out", "--executor", "inline")
        done = lvsm_data(*arguments, "--backoff-s", 0.01, "--downloads", 1, "--videos-per-hour", 0)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "5 videos in a row were refused, the last with rate_limited" in done.stderr
        assert "--videos-per-hour" in done.stderr and "Traceback" not in done.stderr
        server.clear()
        again = lvsm_data(*arguments, "--retry-failed", "--videos-per-hour", 0)
        assert again.returncode == 0, again.stderr
    assert len([rows for path in find_shards(tmp_path / "out")[64] for rows in read_objects(path)]) == 9
