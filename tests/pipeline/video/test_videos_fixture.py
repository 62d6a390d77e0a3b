"""tests/videos.py is what it says: numbers that survive codecs, true times, exact blobs, faults in time."""

from __future__ import annotations

import functools
import http.client
import re
import subprocess
import tarfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from tests import videos
from tests.videos import Fault, VideoServer

NUMBERS = [0, 1, 2, 0xFFFF, 0x5555, 0xAAAA, *(1 << np.arange(3, 16)).tolist()]
FPS = [Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(60)]
VARIED = [Fraction(t) for t in "0 1/25 1/10 7/60 1/2 1001/1000 3/2".split()]
LATE = Fraction("0.7")


@functools.cache
def frames(count: int) -> list[np.ndarray]:
    return [videos.numbered(i, (90, 160)) for i in range(count)]


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def centre(rgb: np.ndarray) -> np.ndarray:
    left = (rgb.shape[1] - rgb.shape[0]) // 2
    return rgb[:, left : left + rgb.shape[0]]


def small_jpeg(rgb: np.ndarray, side: int) -> np.ndarray:
    """Area-resized, through a JPEG of quality 95."""
    small = cv2.resize(rgb, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.imdecode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 95])[1], cv2.IMREAD_COLOR)


# ---- numbers


@pytest.mark.parametrize(("codec", "name"), [("h264", "a.mp4"), ("vp9", "a.webm")])
@pytest.mark.parametrize("hw", [(180, 320), (270, 480), (288, 352)])
def test_numbers_survive_a_codec_resizing_and_jpeg(tmp_path: Path, codec: str, name: str, hw: tuple[int, int]) -> None:
    videos.make_video(tmp_path / name, [videos.numbered(n, hw) for n in NUMBERS], codec=codec, crf=28)
    assert [videos.read_number(small_jpeg(centre(rgb), 64)) for rgb in decoded(tmp_path / name)] == NUMBERS


def test_misread_numbers_are_noticed() -> None:
    one, other = (centre(videos.numbered(n)) for n in (6, 9))
    blend = ((one.astype(int) + other) // 2).astype(np.uint8)
    half = np.concatenate([one[:90], other[90:]])
    for bad in (blend, half, one[::-1], one[:, ::-1], np.zeros_like(one), one[:, 40:], one[:60, :60]):
        with pytest.raises(ValueError):
            videos.read_number(bad)
    with pytest.raises(ValueError):
        videos.numbered(1 << 16)
    assert np.std(videos.numbered(6)[:40]) > 15  # texture outside of the code


# ---- times


def independently(path: Path) -> tuple[list[float], float]:
    """Sorted pts_time of packets, and format.start_time, both as ffprobe prints them."""

    def ask(*options: str) -> list[str]:
        command = ["ffprobe", "-v", "error", "-of", "csv=p=0", *options, str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout.split()

    packets = ask("-select_streams", "v:0", "-show_entries", "packet=pts_time")
    return sorted(float(line.strip(",")) for line in packets), float(ask("-show_entries", "format=start_time")[0])


def exactly(fps: Fraction) -> list[Fraction]:
    return [i / fps for i in range(13)]


def in_ms(times: list[Fraction]) -> list[Fraction]:
    return [Fraction(round(1000 * time), 1000) for time in times]


CASES: list[
    tuple[str, dict[str, Any], list[Fraction] | str, str]
] = [  # file, how, times of all or the first, start_time
    *((f"{float(fps):.0f}.mp4", {"fps": fps}, exactly(fps), "0") for fps in FPS),
    *((f"{float(fps):.0f}.webm", {"fps": fps}, in_ms(exactly(fps)), "0") for fps in FPS),
    ("varied.mp4", {"times": VARIED}, VARIED, "0"),
    ("varied.webm", {"times": VARIED}, in_ms(VARIED), "0"),
    ("late.mp4", {"start": LATE}, "0 0.04", "0.7"),
    ("late.webm", {"start": LATE}, "0 0.04", "0.7"),
    ("audio.mp4", {"audio": True}, "0 0.04", "0"),
    ("late_audio.mp4", {"start": LATE, "audio": True}, "0.7 0.74", "0"),
    ("late_third.mp4", {"start": Fraction(1, 3), "audio": True, "fps": Fraction(24)}, "1/3 3/8", "0"),
    ("late_audio.webm", {"start": LATE, "audio": True}, "0.707 0.747", "-0.007"),
    ("end.mp4", {"moov_at_end": True}, "0 0.04", "0"),
    ("fragments.mp4", {"fragmented": True, "gop": 5}, "0 0.04", "0"),
    ("fragments_late.mp4", {"fragmented": True, "start": LATE}, "0 0.04", "0.7"),
    ("no_edits.mp4", {"edit_list": False}, "0 0.04", "0.08"),
    ("no_edits_audio.mp4", {"edit_list": False, "audio": True}, "0.08 0.12", "0"),
]


@pytest.mark.parametrize(("name", "how", "wanted", "start"), CASES, ids=[case[0] for case in CASES])
def test_times_are_those_of_the_file(
    tmp_path: Path, name: str, how: dict[str, Any], wanted: list[Fraction] | str, start: str
) -> None:
    path, count = tmp_path / name, len(how.get("times", range(13)))
    codec = "h264" if name.endswith(".mp4") else "vp9"
    made = videos.make_video(path, frames(count), codec=codec, **how)
    first = [Fraction(time) for time in wanted.split()] if isinstance(wanted, str) else wanted
    assert made[: len(first)] == first and len(made) == count
    if isinstance(wanted, str):
        assert [time - made[0] for time in made] == [i / how.get("fps", Fraction(25)) for i in range(count)]
    seen, begin = independently(path)
    assert begin == pytest.approx(float(start), abs=1e-6)
    assert np.allclose(np.array(seen) - begin, np.array(made, float), rtol=0, atol=2e-6)
    assert [videos.read_number(small_jpeg(centre(rgb), 64)) for rgb in decoded(path)] == list(range(count))
    assert videos.frame_times(path, since_start=False)[0] == pytest.approx(made[0] + Fraction(start), abs=1e-6)


def test_boxes_and_tracks(tmp_path: Path) -> None:
    def boxes(**how: Any) -> str:
        videos.make_video(tmp_path / "a.mp4", frames(13), **how)
        return " ".join(
            b.decode() for b in re.findall(rb"moov|mdat|moof|sidx|elst|mp4a", (tmp_path / "a.mp4").read_bytes())
        )

    assert boxes() == "moov elst mdat"
    assert boxes(moov_at_end=True) == "mdat moov elst"
    assert boxes(edit_list=False) == "moov mdat"
    assert boxes(fragmented=True, gop=5) == "moov elst sidx moof mdat moof mdat moof mdat"
    assert "mp4a" in boxes(audio=True)


@pytest.mark.parametrize("bframes", [0, 2])
def test_b_frames_are_there_when_asked_for(tmp_path: Path, bframes: int) -> None:
    videos.make_video(tmp_path / "a.mp4", frames(13), bframes=bframes, gop=6)
    kinds = "".join(f["pict_type"] for f in videos.probe(tmp_path / "a.mp4", "frame=pict_type")["frames"])
    assert ("BBP" in kinds) == (bframes == 2) and ("B" in kinds) == (bframes > 0)
    assert kinds.count("I") == 3


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for name, how in [
        ("a.webm", {}),
        ("a.mp4", {"times": [Fraction(0)]}),
        ("a.mp4", {"start": Fraction(1), "edit_list": False}),
    ]:
        with pytest.raises(ValueError):
            videos.make_video(tmp_path / name, frames(2), **how)  # type: ignore[arg-type]


# ---- camera files


def test_camera_files(tmp_path: Path) -> None:
    w2c = videos.circle_w2c(5)
    rotation, position = w2c[:, :, :3], -np.einsum("vji,vj->vi", w2c[:, :, :3], w2c[:, :, 3])
    assert np.allclose(rotation @ rotation.transpose(0, 2, 1), np.eye(3)) and np.allclose(np.linalg.det(rotation), 1)
    ahead = rotation[:, 2]
    assert np.allclose(ahead, -position / np.linalg.norm(position, axis=1)[:, None])
    assert (rotation[:, 1, 1] > 0.9).all()  # y points down
    text = videos.camera_file("http://x/a", [0, 40000, 80000, 120000, 160000], np.array([0.8, 1.4, 0.5, 0.5]), w2c)
    first, *lines = text.splitlines()
    numbers = np.array([line.split() for line in lines], float)
    assert first == "http://x/a" and numbers.shape == (5, 19) and lines[1].startswith("40000 0.800000000 ")
    assert np.allclose(numbers[:, 1:7], [0.8, 1.4, 0.5, 0.5, 0, 0]) and np.allclose(
        numbers[:, 7:].reshape(5, 3, 4), w2c, atol=1e-9
    )
    with pytest.raises(ValueError):
        videos.camera_file("http://x/a", [0], np.array([0.8, 1.4, 0.5, 0.5]), w2c)

    files = {"train": {"one": text}, "test": {"two": text, "three": "x"}}
    folder = videos.write_dataset(tmp_path / "data", files)
    assert (folder / "train" / "one.txt").read_text() == text
    with tarfile.open(videos.pack_dataset(tmp_path / "a.tar.gz", files)) as archive:
        names = [f"RealEstate10K/{split}/{key}.txt" for split in files for key in files[split]]
        assert [member.name for member in archive if member.isfile()] == names
        member = archive.extractfile(names[1])
        assert member is not None and member.read().decode() == text


# ---- the walk


def test_blobs_lie_where_their_points_project_to() -> None:
    hw = (360, 640)
    pictures, w2c, shares, points = videos.walk(hw, 8)
    fx, fy, cx, cy = shares * [hw[1], hw[0], hw[1], hw[0]]
    assert abs(fx / fy - 1) > 0.01 and abs(cx - hw[1] / 2) > 2 and abs(cy - hw[0] / 2) > 2
    off, off_small, moved = [], [], []
    for i, (rgb, pose) in enumerate(zip(pictures, w2c, strict=True)):
        x, y, z = pose[:, :3] @ points.T + pose[:, 3:]
        wanted = np.stack([fx * x / z + cx, fy * y / z + cy], -1)
        assert np.allclose(videos.project(points, pose, shares, hw), wanted)
        off.append(np.linalg.norm(videos.find_blobs(rgb, wanted) - wanted, axis=-1))
        moved.append(np.linalg.norm(videos.find_blobs(pictures[i - 1], wanted) - wanted, axis=-1))
        wanted = (wanted - [(hw[1] - hw[0]) / 2, 0]) * 256 / hw[0]
        off_small.append(np.linalg.norm(videos.find_blobs(small_jpeg(centre(rgb), 256), wanted) - wanted, axis=-1))
    for found, limit in ((off, 0.02), (off_small, 0.05)):
        assert np.nanmax(found) < limit and np.isfinite(found).sum(1).min() >= 8
    assert np.nanmedian(moved[1:]) > 2  # the next frame's pose is told from this one's
    assert np.isnan(videos.find_blobs(np.full_like(pictures[0], 90), wanted)).all()


# ---- the server


@pytest.fixture
def server(tmp_path: Path) -> Any:
    (tmp_path / "a.mp4").write_bytes(bytes(range(250)) * 400)
    (tmp_path / "b.webm").write_bytes(b"webm")
    with VideoServer(tmp_path) as made:
        yield made


def ask(
    server: VideoServer, path: str, span: str = "", method: str = "GET", timeout: float = 20
) -> tuple[int, Any, bytes]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=timeout)
    try:
        connection.request(method, path, headers={"Range": span} if span else {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("span", "first", "last"),
    [("bytes=0-99", 0, 99), ("bytes=50000-", 50000, 99999), ("bytes=-10", 99990, 99999), ("bytes=9-200000", 9, 99999)],
)
def test_ranges(server: VideoServer, span: str, first: int, last: int) -> None:
    whole = (server.folder / "a.mp4").read_bytes()
    status, headers, body = ask(server, "/a.mp4?x=1", span)
    assert (status, body) == (206, whole[first : last + 1])
    assert headers["Content-Range"] == f"bytes {first}-{last}/100000" and headers["Content-Length"] == str(len(body))
    assert server.requests == [("GET", "/a.mp4", span, len(body))] and server.bytes_sent == len(body)
    server.ranges = False
    status, headers, body = ask(server, "/a.mp4", span)
    assert (status, body, headers["Accept-Ranges"], headers["Content-Range"]) == (200, whole, None, None)


def test_plain_answers(server: VideoServer) -> None:
    status, headers, body = ask(server, "/a.mp4")
    assert (status, len(body), headers["Content-Type"], headers["Accept-Ranges"]) == (200, 100000, "video/mp4", "bytes")
    status, headers, body = ask(server, "/a.mp4", method="HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", "100000")
    assert ask(server, "/b.webm")[1]["Content-Type"] == "video/webm"
    status, headers, _ = ask(server, "/a.mp4", "bytes=100000-")
    assert (status, headers["Content-Range"]) == (416, "bytes */100000")
    assert ask(server, "/c.mp4")[0] == ask(server, "/../a.mp4")[0] == 404
    assert server.sent("/a.mp4") == 100000 and server.sent("/b.webm") == 4 and len(server.requests) == 6


@pytest.mark.parametrize("kind", ["404", "403", "410", "429", "500", "503", "html"])
def test_faults_instead_of_the_file(server: VideoServer, kind: str) -> None:
    server.faults["/a.mp4"] = Fault(kind, times=2, skip=1, retry_after=7)
    answers = [ask(server, "/a.mp4", method=method) for method in ("GET", "HEAD", "GET", "GET")]
    wanted = 200 if kind == "html" else int(kind)
    assert [status for status, _, _ in answers] == [200, wanted, wanted, 200]
    assert answers[2][1]["Retry-After"] == ("7" if kind == "429" else None)
    assert ("html" in answers[2][1]["Content-Type"]) == (kind == "html") and len(answers[2][2]) < 1000
    assert [one.bytes_sent == 100000 for one in server.requests] == [True, False, False, True]
    assert ask(server, "/b.webm")[0] == 200


@pytest.mark.parametrize(
    ("kind", "after_bytes", "error"),
    [
        ("truncated", 5000, http.client.IncompleteRead),
        ("truncated", -1, http.client.RemoteDisconnected),
        ("reset", 5000, ConnectionResetError),
        ("reset", -1, ConnectionResetError),
        ("hang", 5000, TimeoutError),
        ("hang", -1, TimeoutError),
    ],
)
def test_faults_within_the_file(server: VideoServer, kind: str, after_bytes: int, error: type[Exception]) -> None:
    server.faults["/a.mp4"] = Fault(kind, times=1, after_bytes=after_bytes)
    assert ask(server, "/a.mp4", method="HEAD")[0] == 200  # does not use it up
    with pytest.raises(error):
        ask(server, "/a.mp4", timeout=1 if kind == "hang" else 20)
    assert server.sent() == max(0, after_bytes)
    status, _, body = ask(server, "/a.mp4", "bytes=5000-")
    assert (status, len(body)) == (206, 95000)


def test_slow_takes_its_time_and_ends_with_the_server(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(bytes(4000))
    with VideoServer(tmp_path) as server:
        server.faults["/a.mp4"] = Fault("slow", rate=10_000)
        begun = time.monotonic()
        assert len(ask(server, "/a.mp4")[2]) == 4000
        assert time.monotonic() - begun > 0.3
        server.faults["/a.mp4"] = Fault("hang")
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=20)
        connection.request("GET", "/a.mp4")
        answer = connection.getresponse()
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    connection.close()
    with pytest.raises(ValueError):
        Fault("trunkated")
