"""`lvsm-data clip` as a user runs it: camera files, a video server on loopback, real yt-dlp, shards."""

from __future__ import annotations

import contextlib
import csv
import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest

from pipeline import sources
from pipeline.config.clip import ClipConfig, ClipScene
from pipeline.core import images
from pipeline.core.cameras import project
from pipeline.core.disk import bytes_below
from pipeline.core.records import Item, Outcome, video_of
from pipeline.download.ahead import Downloads
from pipeline.run.availability import write
from pipeline.run.driver import Intake
from pipeline.run.policy import Session
from pipeline.storage.ledger import Ledger
from pipeline.storage.shards import Rows, facts_of, find_shards, read_objects
from tests import videos
from tests.conftest import lvsm_data, lvsm_data_here
from tests.pipeline.run.test_run import start
from tests.serving import SocksProxy
from tests.videos import Fault, VideoServer

YOUTUBE = "https://www.youtube.com/watch?v="
FRAMES = 150
SHARES = np.array([0.9, 1.6, 0.5, 0.5])
FASTER = ("--executor", "inline", "--videos-per-hour", 0)
Times = Mapping[str, Sequence[Fraction]]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Times]:
    """A folder with four videos, and when their frames are shown."""
    folder = tmp_path_factory.mktemp("films")
    times = {}
    for name, settings in {
        "aaaaaaaaaaa.mp4": {"fps": Fraction(25), "gop": 12},
        "bbbbbbbbbbb.mp4": {"fps": Fraction(30000, 1001), "fragmented": True},
        "ccccccccccc.webm": {"codec": "vp9", "fps": Fraction(24)},
        "ddddddddddd.mp4": {"fps": Fraction(25), "start": Fraction(3, 2), "audio": True},
    }.items():
        times[name] = videos.make_video(folder / name, map(videos.numbered, range(FRAMES)), **settings)  # type: ignore[arg-type]
    return folder, times


@pytest.fixture
def server(films: tuple[Path, Times]) -> Iterator[VideoServer]:
    with VideoServer(films[0]) as served:
        yield served


def lines_of(clip: int) -> list[int]:
    """The frames that a clip has poses for."""
    return list(range(10 + 40 * clip, 45 + 40 * clip, 3))


def camera_files(times: Times, clips: int = 3, url: str = YOUTUBE) -> dict[str, str]:
    """KEY -> text. The key tells the video and the clip: a0, a1, ..."""
    made = {}
    for name, shown in times.items():
        for clip in range(clips):
            asked_us = [int(shown[i] * 1_000_000) for i in lines_of(clip)]
            poses = videos.circle_w2c(len(asked_us))
            made[f"{name[0]}{clip}"] = videos.camera_file(url + name, asked_us, SHARES, poses)
    return made


def mirror(server: VideoServer) -> tuple[str, str]:
    return "--mirror", f"{YOUTUBE}={server.url}/"


def objects(out: Path, width: int = 64) -> dict[str, Rows]:
    found = [rows for path in find_shards(out)[width] for rows in read_objects(path)]
    assert len({rows.uid for rows in found}) == len(found)
    return {rows.uid: rows for rows in found}


def check(rows: Rows) -> None:
    """The pictures show the frames that their camera file asked for."""
    seen = [videos.read_number(images.decode(jpeg)) for jpeg in rows.jpegs]
    lines = lines_of(int(rows.uid[1]))
    assert seen == [lines[line] for line in rows.numbers["frame"]]


def reasons(out: Path) -> dict[str, str]:
    with Ledger(out / "ledger.sqlite", readonly=True) as ledger:
        return {uid: reason for reason in ledger.reasons() for uid, _, _ in ledger.examples(reason, 1000)}


def availability(out: Path) -> dict[str, dict[str, str]]:
    with (out / "availability.csv").open(newline="", encoding="utf-8") as handle:
        return {row["url"].removeprefix(YOUTUBE): row for row in csv.DictReader(handle)}


def test_clips_of_videos_become_shards(films: tuple[Path, Times], server: VideoServer, tmp_path: Path) -> None:
    times = films[1]
    cameras = videos.pack_dataset(tmp_path / "RealEstate10K.tar.gz", {"train": camera_files(times), "test": {}})
    out = tmp_path / "out"
    done = lvsm_data(
        *("clip", "--cameras", cameras, "--n", 12, "--res", 64, 96, "--val-percent", 40, "--out", out),
        *("--cache", tmp_path / "cache", *mirror(server)),
    )
    assert done.returncode == 0, done.stderr
    assert "requested 12: drawn 12 = delivered 12 + failed 0" in done.stdout
    assert "videos: 4 of 4 had, 100%" in done.stdout
    assert "opened" not in done.stdout  # each of them once
    assert "disk beside the shards: at most 8 GB" in done.stdout
    for width in (64, 96):
        found = objects(out, width)
        assert len(found) == 12
        for rows in found.values():
            if width == 64:
                check(rows)
            scale = width / 180  # the square in the middle of 320 x 180
            assert np.allclose(rows.intrinsics, [0.9 * 320 * scale, 1.6 * 180 * scale, width / 2, width / 2], atol=1e-4)
    verified = lvsm_data("verify", out)
    assert verified.returncode == 0, verified.stdout
    parts = {path.stem: {video_of(rows.meta["video"]) for rows in read_objects(path)} for path in find_shards(out)[64]}
    val = set().union(*(found for name, found in parts.items() if name.startswith("val")))
    train = set().union(*(found for name, found in parts.items() if name.startswith("train")))
    assert val and train and not val & train
    for name in times:  # one look at the page, whatever the number of clips
        pages = [one for one in server.matching("GET", f"/{name}") if not one.range]
        assert len(pages) == 1, server.requests
    facts = facts_of(find_shards(out)[64][0])
    assert "no scene normalisation" in facts["convention"] and facts["world"] == "as the source has it"
    assert not (out / "raw").exists()
    page = lvsm_data("view", out)
    assert page.returncode == 0, page.stderr


def test_what_a_row_says(films: tuple[Path, Times], tmp_path: Path) -> None:
    folder, times = films
    named = tmp_path / "named"
    named.mkdir()
    (named / "Two rooms [aaaaaaaaaaa].mp4").symlink_to(folder / "aaaaaaaaaaa.mp4")
    (named / "ddddddddddd.mp4").symlink_to(folder / "ddddddddddd.mp4")
    by_id = {key: text.replace(".mp4\n", "\n").replace(".webm\n", "\n") for key, text in camera_files(times).items()}
    given = videos.write_dataset(tmp_path / "by_id", {"": by_id})
    out = tmp_path / "by_id_out"
    arguments = (
        "clip",
        "--source",
        "acid",
        "--cameras",
        given,
        "--videos",
        named,
        "--n",
        12,
        "--views",
        4,
        "--out",
        out,
    )
    done = lvsm_data(*arguments, *FASTER)
    assert done.returncode == 3 and "delivered 6 + failed 6 (missing 6)" in done.stdout
    assert "videos: 2 of 4 had, 50% (missing 2)" in done.stdout
    table = pd.concat(pd.read_parquet(path) for path in find_shards(out)[64])
    assert len(table) == 6 * 4 and set(table.source) == {"acid"}
    a = table[table.uid == "a0"].sort_values("view")
    lines = lines_of(0)
    assert a.frame.tolist() == [0, 3, 6, 9]
    assert a.asked_us.tolist() == [int(times["aaaaaaaaaaa.mp4"][lines[i]] * 1_000_000) for i in (0, 3, 6, 9)]
    assert (a.time_us - a.asked_us).abs().max() <= 1
    poses = videos.circle_w2c(len(lines))[[0, 3, 6, 9]]
    w2c = np.linalg.inv(np.stack([np.reshape(pose, (4, 4)) for pose in a.c2w]).astype(np.float64))
    assert np.allclose(w2c[:, :3], poses, atol=1e-5)
    meta = json.loads(a.meta.iloc[0])
    assert meta["video"] == YOUTUBE + "aaaaaaaaaaa" and meta["views_found"] == len(lines)
    assert meta["stream"] == {"hw": [180, 320], "codec": "h264", "matrix": "bt601"}
    assert meta["time_error_ms"]["max"] <= 0.001
    for rows in objects(out).values():
        check(rows)
    seen = availability(out)
    assert seen["aaaaaaaaaaa"] == {
        "video": "aaaaaaaaaaa",
        "url": YOUTUBE + "aaaaaaaaaaa",
        "clips": "3",
        "delivered": "3",
        "reasons": "",
    }
    assert seen["bbbbbbbbbbb"]["reasons"] == "missing 3"


FAULTS = {
    "404": ("404", "missing"),
    "403": ("403", "forbidden"),
    "410": ("410", "missing"),
    "500": ("500", "server_error"),
    "429": ("429", "rate_limited"),
    "html": ("html", "not_a_video"),
    "hang": ("hang", "timeout"),
    "reset": ("reset", "connection"),
    "truncated": ("truncated", "cut_off"),
}


def test_faults_end_as_their_reason_and_the_run_goes_on(films: tuple[Path, Times], tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    times = {}
    for kind in (*FAULTS, "none"):
        (folder / f"{kind}.mp4").symlink_to(films[0] / "aaaaaaaaaaa.mp4")
        asked_us = [int(films[1]["aaaaaaaaaaa.mp4"][i] * 1_000_000) for i in lines_of(0)]
        for clip in range(2):
            url = f"{YOUTUBE}{kind}.mp4"
            times[f"{kind}-{clip}"] = videos.camera_file(url, asked_us, SHARES, videos.circle_w2c(len(asked_us)))
    given = videos.write_dataset(tmp_path / "cameras", {"train": times})
    out = tmp_path / "out"
    with VideoServer(folder) as server:
        for kind, (fault, _) in FAULTS.items():
            within = kind in ("hang", "reset", "truncated")  # the page is there, what stands behind it is not
            after_bytes = -1 if kind in ("hang", "reset") else 1000
            server.faults[f"/{kind}.mp4"] = Fault(fault, after_bytes=after_bytes, skip=int(within))
        arguments = ("clip", "--cameras", given, "--n", len(times), "--out", out, *FASTER, *mirror(server))
        done = lvsm_data(*arguments, "--stall-s", 1, "--backoff-s", 0.05, "--downloads", 8, impatient=True)
        assert done.returncode == 3, done.stderr + done.stdout
        assert reasons(out) == {f"{kind}-{clip}": reason for kind, (_, reason) in FAULTS.items() for clip in range(2)}
        assert f"drawn {len(times)} = delivered 2 + failed {len(times) - 2} (" in done.stdout
        assert f"videos: 1 of {len(FAULTS) + 1} had, 10% (missing 2, " in done.stdout
        assert "the server limits how often we may ask: pausing 1 s" in done.stderr  # as its Retry-After says
        seen = availability(out)
        assert {name: row["reasons"] for name, row in seen.items()} == {
            **{f"{kind}.mp4": f"{reason} 2" for kind, (_, reason) in FAULTS.items()},
            "none.mp4": "",
        }
        server.clear()
        again = lvsm_data(*arguments, "--retry-failed")
        assert again.returncode == 0, again.stderr
        assert not server.matching(path="/none.mp4"), "a video was fetched though it had been"
    assert len(objects(out)) == len(times) and lvsm_data("verify", out).returncode == 0


def test_a_fault_that_passes_costs_nothing(films: tuple[Path, Times], server: VideoServer, tmp_path: Path) -> None:
    for name, kind in {
        "/aaaaaaaaaaa.mp4": "reset",
        "/bbbbbbbbbbb.mp4": "500",
        "/ccccccccccc.webm": "truncated",
    }.items():
        server.faults[name] = Fault(kind, times=2, after_bytes=500)
    server.faults["/ddddddddddd.mp4"] = Fault("429", times=1)
    given = videos.write_dataset(tmp_path / "cameras", {"train": camera_files(films[1])})
    arguments = ("clip", "--cameras", given, "--n", 12, "--out", tmp_path / "out", *FASTER, *mirror(server))
    done = lvsm_data(*arguments, impatient=True)
    assert done.returncode == 0, done.stderr + done.stdout
    for rows in objects(tmp_path / "out").values():
        check(rows)


def test_a_socks_proxy_is_gone_through(
    films: tuple[Path, Times], server: VideoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cams").mkdir()
    for key, text in camera_files({"aaaaaaaaaaa.mp4": films[1]["aaaaaaaaaaa.mp4"]}, clips=2).items():
        (tmp_path / "cams" / f"{key}.txt").write_text(text)
    asked = ("--cameras", tmp_path / "cams", *mirror(server), *FASTER, "--n", 2)
    for name in ("http_proxy", "https_proxy", "no_proxy", "NO_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with SocksProxy() as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        assert lvsm_data_here("clip", *asked, "--out", tmp_path / "run").returncode == 0
    for rows in objects(tmp_path / "run").values():
        check(rows)
    assert len(proxy.asked) >= 2  # for the page, and for the stream
    monkeypatch.setenv("ALL_PROXY", "socks4://somebody:secret@127.0.0.1:9")
    refused = lvsm_data_here("clip", *asked, "--out", tmp_path / "other")
    assert refused.returncode == 2 and "secret" not in refused.stderr
    error, hint = refused.stderr.strip().splitlines()[-2:]
    assert error.startswith("error: a proxy cannot be used: ALL_PROXY=socks4://127.0.0.1:9")
    assert "socks5://" in hint


def test_only_what_is_needed_of_a_long_video_is_fetched(tmp_path: Path) -> None:
    """Where the server takes ranges; else the file lies whole on the disk for as long as it is cut."""
    folder = tmp_path / "films"
    folder.mkdir()
    shown = videos.make_video(folder / "long.mp4", (videos.numbered(i) for i in range(900)), gop=25, crf=10)
    size = (folder / "long.mp4").stat().st_size
    asked = [int(time * 1_000_000) for time in shown[500:520]]
    text = videos.camera_file(YOUTUBE + "long.mp4", asked, SHARES, videos.circle_w2c(20))
    given = videos.write_dataset(tmp_path / "cameras", {"train": {"long": text}})
    for ranges in (True, False):
        out = tmp_path / f"out{ranges}"
        with VideoServer(folder, ranges=ranges) as server:
            arguments = ("clip", "--cameras", given, "--n", 1, "--out", out, *FASTER, *mirror(server))
            done = lvsm_data(*arguments)
            assert done.returncode == 0, done.stderr + done.stdout
            ranged = sum(one.bytes_sent for one in server.requests if one.range)
            whole = [one for one in server.requests if one.bytes_sent == size]
        rows = objects(out)["long"]
        assert [videos.read_number(images.decode(jpeg)) for jpeg in rows.jpegs] == list(range(500, 520))
        if ranges:
            assert ranged < size / 4, f"{ranged} of {size} bytes"
        else:
            assert whole
        assert not list(out.rglob("video*"))


def test_a_video_that_was_opened_again_is_said(films: tuple[Path, Times], server: VideoServer, tmp_path: Path) -> None:
    mirrors = (mirror(server)[1],)
    cfg = ClipConfig(cameras=tmp_path, out=tmp_path, cache=tmp_path, mirror=mirrors, scene=ClipScene(res=(64,)))
    net = sources.fetcher(cfg, tmp_path, None)
    intake = Intake(cast(Session, SimpleNamespace(cfg=cfg)))
    intake.downloads = cast(Downloads, SimpleNamespace(net=net))
    first, second, *_ = (f"{YOUTUBE}{name}" for name in films[1])
    for url in (first, second):
        with net.film(url):
            pass
    assert intake.lines() == []
    with net.film(first):
        pass
    assert intake.lines() == ["opened 2 videos 3 times, as not all their items were asked for at once"]
    net.close()


def test_videos_and_cuts_stay_within_their_disk(films: tuple[Path, Times], tmp_path: Path) -> None:
    """Three videos would fit at once, whole as a server without ranges sends them, but not with what is cut out of them."""
    given = videos.write_dataset(tmp_path / "cameras", {"train": camera_files(films[1])})
    out = tmp_path / "out"
    budget = 3.3 * max(path.stat().st_size for path in films[0].iterdir())
    seen: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            seen.append(bytes_below(out / "raw"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with VideoServer(films[0], ranges=False) as server:
        arguments = ("clip", "--cameras", given, "--n", 12, "--out", out, *FASTER, *mirror(server), "--downloads", 4)
        done = lvsm_data(*arguments, "--raw-gb", budget / 1e9, "--max-file-mb", budget / 1e6)
    stop.set()
    watcher.join()
    assert done.returncode == 0, done.stderr + done.stdout
    assert 0 < max(seen) <= budget, f"{max(seen)} of {budget:.0f} bytes"


def test_after_kill_9_nothing_is_lost_and_nothing_is_fetched_twice(
    films: tuple[Path, Times], server: VideoServer, tmp_path: Path
) -> None:
    given = videos.write_dataset(tmp_path / "cameras", {"train": camera_files(films[1])})
    out = tmp_path / "out"
    arguments = ("clip", "--cameras", given, "--n", 12, "--out", out, *FASTER, *mirror(server), "--downloads", 1)
    for name in ("/ccccccccccc.webm", "/aaaaaaaaaaa.mp4"):
        server.faults[name] = Fault("hang", after_bytes=-1)
    process = start(*arguments)

    def had() -> set[str]:
        """Clips that are delivered, or cut and wait for their turn."""
        raw = out / "raw"
        folders = [folder for folder in raw.iterdir() if (folder / "clip.nut").exists()] if raw.is_dir() else []
        with contextlib.suppress(FileNotFoundError):  # one was delivered meanwhile
            return delivered(out) | {(folder / "uid").read_text() for folder in folders}
        return set()

    def whole() -> list[str]:
        """Videos all of whose clips the run has."""
        there = had()
        return [name for name in films[1] if {f"{name[0]}{clip}" for clip in range(3)} <= there]

    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (delivered(out) and whole()):
        time.sleep(0.1)
    assert whole(), process.communicate(timeout=5)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=300)
    kept = whole()
    server.clear()
    again = lvsm_data(*arguments)
    assert again.returncode == 0, again.stderr + again.stdout
    found = objects(out)
    assert len(found) == 12
    for rows in found.values():
        check(rows)
    assert lvsm_data("verify", out).returncode == 0
    assert kept
    for name in kept:
        assert not server.matching(path=f"/{name}"), f"{name} was fetched again"


def delivered(out: Path) -> set[str]:
    if not (out / "ledger.sqlite").exists():
        return set()
    with Ledger(out / "ledger.sqlite", readonly=True) as ledger:
        return set(ledger.delivered_in())


def test_an_evaluation_index_chooses_clips_and_frames(films: tuple[Path, Times], tmp_path: Path) -> None:
    folder, times = films
    by_id = {key: text.replace(".mp4\n", "\n").replace(".webm\n", "\n") for key, text in camera_files(times).items()}
    given = videos.write_dataset(tmp_path / "cameras", {"train": by_id, "test": by_id})
    index = tmp_path / "index.json"
    index.write_text(
        json.dumps({"a1": {"context": [9, 1], "target": [4, 5]}, "b0": None, "zz": {"context": [0], "target": [1]}})
    )
    out = tmp_path / "out"
    arguments = ("clip", "--cameras", given, "--split", "test", "--videos", folder, "--n", 9, "--out", out, *FASTER)
    done = lvsm_data(*arguments, "--eval-index", index)
    assert done.returncode == 3 and "delivered 1 + failed 0" in done.stdout, done.stderr
    (rows,) = objects(out).values()
    assert rows.uid == "a1" and rows.numbers["frame"].tolist() == [1, 4, 5, 9] and rows.meta["split"] == "test"
    check(rows)
    index.write_text(json.dumps({"a1": {"context": [99], "target": [4]}}))
    done = lvsm_data(*arguments[:-4], "--out", tmp_path / "other", *FASTER, "--eval-index", index)
    assert done.returncode == 3 and reasons(tmp_path / "other") == {"a1": "bad_cameras"}


def test_names_of_videos_stay_as_they_are_in_the_table(tmp_path: Path) -> None:
    """One of 64 begins with -, which a spreadsheet takes for a formula: who looks a video up needs its name."""
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.record(Outcome(Item("a0", "realestate10k", f"{YOUTUBE}-bcdefghijk"), None, "missing", ""), None)
        write(tmp_path, ledger)
    assert availability(tmp_path)["-bcdefghijk"]["url"] == f"{YOUTUBE}-bcdefghijk"


def test_a_report_says_what_can_be_had_and_asks_once(films: tuple[Path, Times], tmp_path: Path) -> None:
    folder, times = films
    (tmp_path / "films").mkdir()
    for name in times:
        (tmp_path / "films" / name).symlink_to(folder / name)
    given = videos.write_dataset(tmp_path / "cameras", {"test": camera_files(times)})
    index = tmp_path / "index.json"
    keys = ["a0", "a1", "b0", "c0", "d0", "zz"]
    index.write_text(json.dumps({key: {"context": [0, 5], "target": [2]} for key in keys} | {"c1": None}))
    out = tmp_path / "out"
    with VideoServer(tmp_path / "films") as server:
        server.faults["/bbbbbbbbbbb.mp4"] = Fault("404")
        server.faults["/ccccccccccc.webm"] = Fault("403")
        arguments = ("clip", "--cameras", given, "--eval-index", index, "--out", out, *FASTER, *mirror(server))
        first = lvsm_data_here(*arguments, "--report", "--backoff-s", 0.01)
        assert first.returncode == 0, first.stderr
        lines = first.stdout.splitlines()
        assert lines[0] == "asked for: 6 clips, 1 of them without a camera file"
        assert "can be had: 3 clips, 50.0%, of 2 videos" in lines
        assert "cannot be had: 1 clips, 16.7%, of 1 videos (missing 1)" in lines
        assert "means over all 6 clips of the index, yours would be one over 3" in first.stdout
        assert (out / "available.txt").read_text() == "a0\na1\nd0\n"
        assert not (out / "raw").exists() and not server.matching("GET", "/ddddddddddd.mp4")[1:]
        with (out / "report.csv").open(newline="") as handle:
            rows = {row["clip"]: row for row in csv.DictReader(handle)}
        assert {key: row["state"] for key, row in rows.items()} == {
            **dict.fromkeys(("a0", "a1", "d0"), "there"),
            "b0": "gone",
            "c0": "unknown",
        }
        server.clear()
        again = lvsm_data_here(*arguments, "--report")
        assert "can be had: 4 clips" in again.stdout
        assert {request.path for request in server.requests} == {"/ccccccccccc.webm"}  # the others are known
        with (out / "looked.jsonl").open("a") as file:
            file.write('["aaaaaaaaaaa')  # cut
        run = lvsm_data_here(*arguments, "--uids", out / "available.txt", "--n", 4)
    assert run.returncode == 0 and set(objects(out)) == {"a0", "a1", "c0", "d0"}


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (("clip",), "clip needs --cameras", "RealEstate10K.tar.gz"),
        (("clip", "--cameras", "{tmp}/nowhere"), "does not exist", ""),
        (("clip", "--cameras", "{tmp}/empty"), "no camera files", "train/KEY.txt"),
        (("clip", "--cameras", "{cameras}", "--split", "test"), "no camera files of test: train 1", ""),
        (("clip", "--cameras", "{cameras}", "--videos", "{tmp}/empty"), "holds no video", "YouTube id"),
        (("clip", "--cameras", "{cameras}", "--cookies", "{tmp}/bad.txt"), "bad.txt cannot be read", "Netscape"),
        (("clip", "--cameras", "{cameras}", "--eval-index", "{tmp}/bad.txt"), "is no evaluation index", "context"),
        (("clip", "--cameras", "{cameras}", "--height-crop", "-3"), "--height-crop -3 is negative", "whole frame"),
        (("clip", "--cameras", "{cameras}", "--videos-per-hour", "-1"), "--videos-per-hour must be 0 or more", ""),
        (("clip", "--cameras", "{cameras}", "--keep-raw"), "--keep-raw does not go with clip", "--videos DIR"),
        (("clip", "--cameras", "{tmp}/junk"), "begins with b'hello', not with the URL of a video", ""),
    ],
)
def test_bad_input_gets_two_lines(arguments: tuple[str, ...], error: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "a.txt").write_text("hello\n1 2 3\n")
    (tmp_path / "bad.txt").write_text("this is neither\n")
    text = videos.camera_file("http://127.0.0.1:9/a.mp4", [0], SHARES, videos.circle_w2c(1))
    cameras = videos.write_dataset(tmp_path / "cameras", {"train": {"a": text}})
    asked = [one.format(tmp=tmp_path, cameras=cameras) for one in arguments]
    done = lvsm_data_here(*asked, "--n", 1, "--out", tmp_path / "out", "--executor", "inline")
    assert done.returncode == 2, done.stdout + done.stderr
    assert error in done.stderr and hint in done.stderr


def test_after_clip_crop_and_resize_points_are_where_the_columns_say(tmp_path: Path) -> None:
    """A walk past known points, filmed by a known camera with a principal point off the centre."""
    frames, w2c, shares, points = videos.walk((480, 854), 20)
    folder = tmp_path / "films"
    folder.mkdir()
    shown = videos.make_video(folder / "wwwwwwwwwww.mp4", frames, crf=10)
    text = videos.camera_file(YOUTUBE + "wwwwwwwwwww", [int(time * 1_000_000) for time in shown], shares, w2c)
    given = videos.write_dataset(tmp_path / "cameras", {"train": {"walk": text}})
    seen = 0
    for crop in ((), ("--height-crop", 144), ("--height-crop", 0)):
        out = tmp_path / f"out{len(crop)}{crop[-1:]}"
        arguments = (
            "clip",
            "--cameras",
            given,
            "--videos",
            folder,
            "--n",
            1,
            "--res",
            256,
            "--out",
            out,
            *FASTER,
            *crop,
        )
        done = lvsm_data(*arguments)
        assert done.returncode == 0, done.stderr + done.stdout
        (rows,) = objects(out, 256).values()
        assert rows.hw == ((256, 256) if not crop else (144, 256))
        errors = []
        for jpeg, c2w, fxfycxcy in zip(rows.jpegs, rows.c2w.astype(np.float64), rows.intrinsics, strict=True):
            expected, depth = project(points, c2w, fxfycxcy)
            found = videos.find_blobs(images.decode(jpeg), np.where(depth[:, None] > 0, expected, -1e3))
            errors.append(np.linalg.norm(found - expected, axis=-1))
        measured = np.concatenate(errors)
        measured = measured[np.isfinite(measured)]
        seen += len(measured)
        assert measured.max() < 0.25, f"{crop}: {measured.max():.3f} px"
    assert seen > 300
