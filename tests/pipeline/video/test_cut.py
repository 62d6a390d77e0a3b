"""Frames by when they are shown: every kind of video, cut and decoded, gives exactly the frames that were asked for."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.clip import ClipScene
from pipeline.core import images
from pipeline.core.cameras import homogeneous
from pipeline.core.errors import Skip
from pipeline.core.records import Clip, Item, Scene
from pipeline.video import cut as cuts
from pipeline.video import frames
from pipeline.worker import clips, posed
from tests import videos

COUNT = 130
SLACK_US = 250_000
NTSC = Fraction(30000, 1001)
UNEVEN = [Fraction(i, 25) + Fraction((7 * i) % 11, 1000) + (Fraction(1, 3) if i > 60 else 0) for i in range(COUNT)]
KINDS: dict[str, dict[str, Any]] = {
    "24": {"fps": Fraction(24)},
    "25": {"fps": Fraction(25), "bframes": 3},
    "29.97": {"fps": NTSC, "gop": 100},
    "60": {"fps": Fraction(60), "bframes": 3},
    "no B-frames": {"bframes": 0},
    "index at the end": {"moov_at_end": True},
    "fragments": {"fps": NTSC, "fragmented": True},
    "fragments, delayed by B-frames": {"fragmented": True, "edit_list": False, "bframes": 3},
    "B-frames without an edit list": {"edit_list": False, "bframes": 3},
    "variable": {"times": UNEVEN, "bframes": 3},
    "start": {"start": Fraction(7, 3), "bframes": 2},
    "start, with sound": {"start": Fraction(3, 2), "audio": True},
    "vp9": {"codec": "vp9", "fps": Fraction(24)},
    "vp9, 29.97": {"codec": "vp9", "fps": NTSC},
    "vp9, variable": {"codec": "vp9", "times": UNEVEN},
    "vp9, start, with sound": {"codec": "vp9", "start": Fraction(3, 2), "audio": True},
    "open groups, mp4": {"codec": "h264, open", "bframes": 3},
    "hevc, mp4": {"codec": "hevc", "bframes": 3},
    "10 bits, mp4": {"pix_fmt": "yuv420p10le", "bframes": 2},
    "av1, mp4": {"codec": "av1"},
    "mpeg4, mp4": {"codec": "mpeg4", "bframes": 2},
    "no B-frames, mkv": {"bframes": 0, "suffix": ".mkv"},
    "B-frames, mkv": {"bframes": 3, "suffix": ".mkv"},
    "open groups, mkv": {"codec": "h264, open", "bframes": 3, "suffix": ".mkv"},
    "variable, mkv": {"times": UNEVEN, "bframes": 3, "suffix": ".mkv"},
    "start, with sound, mkv": {"start": Fraction(3, 2), "audio": True, "bframes": 2, "suffix": ".mkv"},
    "hevc of 10 bits, mkv": {"codec": "hevc", "pix_fmt": "yuv420p10le", "bframes": 3, "suffix": ".mkv"},
    "av1 of 10 bits, mkv": {"codec": "av1", "pix_fmt": "yuv420p10le", "suffix": ".mkv"},
    "mpeg2, mkv": {"codec": "mpeg2", "bframes": 2, "suffix": ".mkv"},
    "B-frames, ts": {"bframes": 3, "suffix": ".ts"},
    "open groups, ts": {"codec": "h264, open", "bframes": 3, "suffix": ".ts"},
    "29.97, with sound, ts": {"fps": NTSC, "audio": True, "bframes": 2, "suffix": ".ts"},
    "hevc, ts": {"codec": "hevc", "bframes": 3, "suffix": ".ts"},
    "mpeg2, ts": {"codec": "mpeg2", "bframes": 2, "suffix": ".ts"},
    "B-frames, avi": {"bframes": 3, "suffix": ".avi"},
    "open groups, avi": {"codec": "h264, open", "bframes": 3, "suffix": ".avi"},
    "mpeg4, avi": {"codec": "mpeg4", "bframes": 2, "suffix": ".avi"},
    "mjpeg, avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "suffix": ".avi"},
    "B-frames, mov": {"bframes": 3, "suffix": ".mov"},
    "prores, mov": {"codec": "prores", "fps": NTSC, "pix_fmt": "yuv422p10le", "suffix": ".mov"},
    "B-frames, flv": {"bframes": 3, "suffix": ".flv"},
    "vp8, webm": {"codec": "vp8", "suffix": ".webm"},
    "av1, webm": {"codec": "av1", "suffix": ".webm"},
}
Film = tuple[Path, list[Fraction]]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Film]:
    folder = tmp_path_factory.mktemp("films")
    made: dict[str, Film] = {}

    def make(kind: str) -> Film:
        if kind not in made:
            settings = dict(KINDS[kind])
            path = (
                folder / f"{len(made)}{settings.pop('suffix', '.webm' if settings.get('codec') == 'vp9' else '.mp4')}"
            )
            made[kind] = path, videos.make_video(path, map(videos.numbered, range(COUNT)), **settings)
        return made[kind]

    return make


def clip_of(cut: Path, times_us: list[int]) -> Clip:
    c2w = homogeneous(videos.circle_w2c(len(times_us)))
    shares = np.tile([0.9, 1.6, 0.5, 0.5], (len(times_us), 1))
    return Clip(cut, np.arange(len(times_us)), np.array(times_us), c2w, shares)


def taken(path: Path, asked_us: list[int], folder: Path, **settings: Any) -> Scene:
    folder.mkdir(exist_ok=True)
    with cuts.opened(path, path.stat().st_size) as open_film:
        cut = open_film.cut(min(asked_us), max(asked_us), folder, SLACK_US)
    return clips.to_scene(Item("clip", "realestate10k"), clip_of(cut, asked_us), ClipScene(**settings))


def numbers(scene: Scene, width: int = 64) -> list[int]:
    return [videos.read_number(images.decode(jpeg)) for jpeg in scene.by_width[width].jpegs]


@pytest.mark.parametrize("kind", KINDS)
def test_the_frames_are_those_that_were_asked_for(kind: str, film: Callable[[str], Film], tmp_path: Path) -> None:
    path, times = film(kind)
    settings = KINDS[kind]
    for first, last, step in ((0, 5, 1), (37, 90, 1), (63, 125, 7), (COUNT - 3, COUNT, 1)):
        wanted = list(range(first, last, step))
        asked_us = [int(times[i] * 1_000_000) for i in wanted]  # cut off to whole microseconds, as camera files are
        scene = taken(path, asked_us, tmp_path / str(first))
        assert numbers(scene) == wanted
        off = scene.numbers["time_us"] - scene.numbers["asked_us"]
        # Opus begins with 7 ms that nobody hears; ffprobe 5 counts from them, later versions from what is heard
        assert np.abs(off).max() <= (7000 if settings.get("audio") and path.suffix in (".webm", ".mkv") else 1)
        assert scene.numbers["asked_us"].tolist() == asked_us


@pytest.mark.parametrize("kind", ["29.97", "variable", "vp9"])
def test_a_time_between_frames_takes_the_nearer_one(kind: str, film: Callable[[str], Film], tmp_path: Path) -> None:
    path, times = film(kind)
    wanted = list(range(40, 60))
    asked = [times[i] + (times[i + 1] - times[i]) * Fraction(45, 100) for i in wanted]
    scene = taken(path, [int(time * 1_000_000) for time in asked], tmp_path)
    assert numbers(scene) == wanted
    asked = [times[i] + (times[i + 1] - times[i]) * Fraction(55, 100) for i in wanted]
    assert numbers(taken(path, [int(time * 1_000_000) for time in asked], tmp_path)) == [i + 1 for i in wanted]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("turn", [90, 180, 270])
def test_frames_are_upright_as_phones_ask_for(turn: int, suffix: str, tmp_path: Path) -> None:
    lying = [np.rot90(videos.numbered(i, (320, 180)), -turn // 90) for i in range(40)]
    times = videos.make_video(tmp_path / f"phone{suffix}", lying, rotation=turn)
    wanted = list(range(20, 30))
    scene = taken(tmp_path / f"phone{suffix}", [int(times[i] * 1_000_000) for i in wanted], tmp_path / "cut")
    assert numbers(scene) == wanted
    assert scene.meta["stream"]["hw"] == [320, 180]


def test_times_out_of_order_and_twice(film: Callable[[str], Film], tmp_path: Path) -> None:
    path, times = film("25")
    wanted = [50, 30, 30, 70, 31]
    assert numbers(taken(path, [int(times[i] * 1_000_000) for i in wanted], tmp_path)) == wanted


def test_a_clip_behind_the_end_is_too_short(film: Callable[[str], Film], tmp_path: Path) -> None:
    path, times = film("25")
    end_us = int(times[-1] * 1_000_000)
    with pytest.raises(Skip, match=r"too_short: the video ends at 5\.160 s, a pose is for 8\.160 s"):
        taken(path, [end_us - 1_000_000, end_us + 3_000_000], tmp_path)
    assert not cuts.is_there(tmp_path)
    with pytest.raises(Skip, match=r"too_short"):
        taken(path, [end_us + 3_000_000], tmp_path)


def test_a_gap_between_frames_is_no_frame(film: Callable[[str], Film], tmp_path: Path) -> None:
    path, times = film("variable")
    middle = int((times[60] + times[61]) / 2 * 1_000_000)  # a third of a second, in which nothing new is shown
    with pytest.raises(Skip, match="frame_missing"):
        taken(path, [int(times[50] * 1_000_000), middle], tmp_path)
    assert numbers(taken(path, [middle], tmp_path, max_error_ms=250.0)) in ([60], [61])


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"<html>Sign in</html>", "Invalid data"), (b"", "Invalid data|End of file")],
    ids=["page", "empty"],
)
def test_what_is_no_video_is_unreadable(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(content)
    with pytest.raises(Skip, match=f"unreadable_video.*({why})"), cuts.opened(tmp_path / "video.mp4", len(content)):
        pass


def test_sound_alone_is_unreadable(film: Callable[[str], Film], tmp_path: Path) -> None:
    import subprocess

    path, _ = film("start, with sound")
    command = ["ffmpeg", "-v", "error", "-i", path, "-vn", "-c", "copy", tmp_path / "sound.mp4"]
    subprocess.run(command, check=True, timeout=300)
    with pytest.raises(Skip, match="unreadable_video: it has no pictures"), cuts.opened(tmp_path / "sound.mp4", 1):
        pass


def test_a_damaged_video_ends_with_a_reason(film: Callable[[str], Film], tmp_path: Path) -> None:
    path, times = film("25")
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(8):
        broken = data.copy()
        for at in rng.integers(2000, len(data), 400):
            broken[at] ^= 0xFF
        (tmp_path / "broken.mp4").write_bytes(broken)
        with contextlib.suppress(Skip):
            scene = taken(tmp_path / "broken.mp4", [int(time * 1_000_000) for time in times[30:60]], tmp_path)
            assert np.abs(scene.numbers["time_us"] - scene.numbers["asked_us"]).max() <= 1


@pytest.mark.parametrize(("matrix", "name"), [("bt709", "bt709"), ("smpte170m", "bt601")])
def test_colours_are_read_by_the_standard_that_the_video_names(matrix: str, name: str, tmp_path: Path) -> None:
    """The patches of a chart, encoded by ffmpeg with either matrix, come out as they went in."""
    import subprocess

    chart = np.zeros((192, 192, 3), np.uint8)
    patches = np.random.default_rng(3).integers(30, 226, (6, 6, 3))
    patches[0, :4] = [[255, 255, 255], [0, 0, 0], [128, 128, 128], [200, 60, 60]]
    for row, column in np.ndindex(6, 6):
        chart[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32] = patches[row, column]
    cv2.imwrite(str(tmp_path / "chart.png"), chart[..., ::-1])
    scale = f"scale=out_color_matrix={matrix}:out_range=tv:flags=accurate_rnd+full_chroma_int"
    tags = ["-colorspace", matrix, "-color_primaries", matrix, "-color_trc", matrix]
    command = ["ffmpeg", "-v", "error", "-loop", "1", "-i", tmp_path / "chart.png", "-t", "1", "-vf", scale, *tags]
    subprocess.run(
        [*command, "-pix_fmt", "yuv444p", "-c:v", "libx264", "-qp", "0", tmp_path / "chart.mp4"],
        check=True,
        timeout=300,
    )
    scene = taken(tmp_path / "chart.mp4", [200_000], tmp_path, res=(192,), quality=100)
    assert scene.meta["stream"]["matrix"] == name
    seen = images.decode(scene.by_width[192].jpegs[0])
    off = [
        np.abs(
            seen[row * 32 + 8 : row * 32 + 24, column * 32 + 8 : column * 32 + 24].mean((0, 1)) - patches[row, column]
        )
        for row, column in np.ndindex(6, 6)
    ]
    assert np.max(off) < 3  # of 255; read by the other standard, they are off by up to 20


@given(
    times=st.lists(st.integers(0, 10**9), min_size=1, max_size=40, unique=True).map(sorted),
    asked=st.lists(st.integers(0, 10**9), min_size=1, max_size=40),
)
def test_nearest_is_the_nearest(times: list[int], asked: list[int]) -> None:
    found = frames.nearest(np.array(times), np.array(asked))
    for time, index in zip(asked, found.tolist(), strict=True):
        assert index == min(range(len(times)), key=lambda i: (abs(times[i] - time), i))


@given(
    hw=st.tuples(st.integers(16, 2000), st.integers(16, 2000)),
    shape=st.tuples(st.integers(8, 512), st.integers(8, 512)),
)
def test_the_middle_is_cut_at_the_asked_shape(hw: tuple[int, int], shape: tuple[int, int]) -> None:
    (top, left), (height, width) = posed.centre(hw, shape)
    assert 0 <= top <= top + height <= hw[0] and 0 <= left <= left + width <= hw[1]
    assert height == hw[0] or width == hw[1]
    assert abs(2 * top + height - hw[0]) <= 1 and abs(2 * left + width - hw[1]) <= 1
    assert abs(height * shape[1] / shape[0] - width) <= max(1, shape[1] / shape[0])


def test_shrink_is_the_exact_area_average_in_linear_light() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (93, 121, 3), dtype=np.uint8)
    for hw in ((64, 64), (31, 40), (93, 121), (17, 121)):
        exact = images.srgb8(images.resize_area(images.linear(rgb), hw))
        assert np.abs(images.shrink(rgb, hw).astype(int) - exact).max() <= 1


def test_the_cut_says_what_it_is(film: Callable[[str], Film], tmp_path: Path) -> None:
    path, times = film("29.97")
    with cuts.opened(path, path.stat().st_size) as open_film:
        cut = open_film.cut(1_000_000, 2_000_000, tmp_path, SLACK_US)
    facts = cuts.footage(cut)
    expected = [round(time * 1_000_000) for time in times]
    assert set(facts.times_us) <= set(expected)
    assert facts.times_us[0] <= 750_000 and facts.times_us[-1] >= 2_200_000
    assert dataclasses.asdict(facts) | {"times_us": ()} == {
        "times_us": (),
        "hw": (180, 320),
        "codec": "h264",
        "matrix": "bt601",
        "about": {},
        "rotation": 0,
        "counted": False,
    }
    assert cut.stat().st_size < path.stat().st_size
