"""Camera files of RealEstate10K and evaluation indices, as they are and as they should not be."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import images
from pipeline.core.errors import Skip, UserError
from pipeline.core.records import Item, Scene, Views, video_of
from pipeline.formats import trajectories
from pipeline.formats.trajectories import Example
from pipeline.report.verify import verify
from pipeline.storage.writer import ShardWriter

URL = "https://www.youtube.com/watch?v=dQw4w9WgXcQ"
ROW = (  # as the data set's page shows one, with the rest of its matrix
    "81372956 0.503745549 0.895547612 0.5 0.5 0.0 0.0 "
    "0.999918759 -0.004297813 -0.012000900 0.164250594 0.004379848 0.999967217 0.006817908 -0.028917018 "
    "0.011971204 -0.006869916 0.999904752 0.011216254"
)


def text(*rows: str, url: str = URL) -> bytes:
    return "\n".join([url, *rows, ""]).encode()


def test_a_row_of_the_data_set() -> None:
    found = trajectories.parse(text(ROW, ROW), "a.txt")
    assert found.url == URL
    assert found.times_us.tolist() == [81372956] * 2 and found.times_us.dtype == np.int64
    assert found.fxfycxcy[0].tolist() == [0.503745549, 0.895547612, 0.5, 0.5]
    assert found.w2c.shape == (2, 3, 4)
    assert found.w2c[0, :, 3].tolist() == [0.164250594, -0.028917018, 0.011216254]
    assert found.w2c[0, 1, 0] == 0.004379848  # by rows


def test_a_byte_order_mark_is_none_of_the_address() -> None:
    found = trajectories.parse(codecs.BOM_UTF8 + text(ROW), "a.txt")
    assert found.url == URL and len(found.times_us) == 1


def test_line_ends_of_windows_and_empty_lines() -> None:
    found = trajectories.parse(text(ROW, "", ROW).replace(b"\n", b"\r\n"), "a.txt")
    assert found.url == URL and len(found.times_us) == 2


def test_times_keep_every_microsecond() -> None:
    late = "9007199254740993" + ROW[8:]  # 2**53 + 1, which a float64 does not hold
    assert trajectories.parse(text(late), "a.txt").times_us[0] == 9007199254740993


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "bad_cameras"),
        (b"hello\n" + ROW.encode(), "bad_cameras"),
        (b"\xff\xfe\n", "bad_cameras"),
        (b"file:///etc/passwd\n" + ROW.encode(), "bad_cameras"),
        (text(), "no_images"),
        (text(ROW[:-12]), "bad_cameras"),
        (text(ROW, ROW + " 1"), "bad_cameras"),
        (text(ROW.replace("0.5 0.5", "x 0.5")), "bad_cameras"),
        (text("-1" + ROW[8:]), "bad_cameras"),
        (text("1.5" + ROW[8:]), "bad_cameras"),
        (text("9" * 40 + ROW[8:]), "bad_cameras"),
        (text(ROW.replace(" 0.0 0.0 ", " 0.1 0.0 ")), "unsupported_camera"),
    ],
)
def test_what_is_no_camera_file(data: bytes, reason: str) -> None:
    with pytest.raises(Skip) as failure:
        trajectories.parse(data, "a.txt")
    assert failure.value.reason == reason and failure.value.detail


def test_what_is_wrong_is_named_by_its_line() -> None:
    with pytest.raises(Skip, match=r"a\.txt, line 4: could not convert string to float: .*x"):
        trajectories.parse(text(ROW, "", ROW.replace("0.5 0.5", "x 0.5")), "a.txt")
    with pytest.raises(Skip, match=r"a\.txt, line 3: 20 numbers, 19 are needed"):
        trajectories.parse(text(ROW, ROW + " 1"), "a.txt")


def test_numbers_that_are_none_belong_to_their_frame_alone() -> None:
    found = trajectories.parse(text(ROW, ROW.replace("0.5 0.5", "nan inf")), "a.txt")
    assert np.isfinite(found.fxfycxcy[0]).all() and not np.isfinite(found.fxfycxcy[1]).all()


@given(st.binary(max_size=400) | st.text(max_size=300).map(lambda words: f"{URL}\n{words}".encode()))
def test_any_bytes_are_a_trajectory_or_a_reason(data: bytes) -> None:
    try:
        found = trajectories.parse(data, "a.txt")
    except Skip:
        return
    assert len(found.times_us) == len(found.fxfycxcy) == len(found.w2c) > 0


@pytest.mark.parametrize(
    "url",
    [
        URL,
        "http://youtube.com/watch?v=dQw4w9WgXcQ",
        "https://www.youtube.com/watch?list=x&v=dQw4w9WgXcQ&t=3s",
        "https://youtu.be/dQw4w9WgXcQ",
        "https://www.youtube.com/embed/dQw4w9WgXcQ/",
        "https://m.youtube.com/watch?v=dQw4w9WgXcQ",
    ],
)
def test_one_video_has_one_name(url: str) -> None:
    assert video_of(url) == "dQw4w9WgXcQ"


@given(st.text(max_size=60), st.text(max_size=60))
def test_other_addresses_have_their_own(one: str, other: str) -> None:
    assert (video_of(one) and (video_of(one) == video_of(other)) == (one == other)) or "youtu" in one + other


def test_an_evaluation_index(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"a": {"context": [50, 4], "target": [9, 20, 31]}, "b": None}))
    index = trajectories.evaluation_index(path)
    assert index == {"a": Example((50, 4), (9, 20, 31))}  # in the index's own order


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"a": null}',
        '{"a": {"context": [1]}}',
        '{"a": {"context": [], "target": [1]}}',
        '{"a": {"context": [-1], "target": [1]}}',
        '{"a": {"context": ["x"], "target": [1]}}',
        '{"a": 3}',
        "[" * 100_000,
    ],
)
def test_what_is_no_evaluation_index(content: str, tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"index\.json (is no evaluation index|names no clip)"):
        trajectories.evaluation_index(path)


@pytest.mark.parametrize(
    ("other", "leaks"), [("https://youtu.be/dQw4w9WgXcQ", True), ("https://youtu.be/aaaaaaaaaaa", False)]
)
def test_verify_finds_a_video_in_both_parts(other: str, leaks: bool, tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, (16,), (), {"config_hash": "0"}, 1e9)
    jpeg = images.encode_jpeg(np.full((16, 16, 3), 99, np.uint8), 90)
    views = Views([jpeg], np.array([[16, 16, 8, 8]], np.float32), (16, 16))
    for part, url in (("train", URL), ("val", other)):
        meta = {"video": url}
        writer.add(Scene(Item(part, "realestate10k"), np.eye(4, dtype=np.float32)[None], {16: views}, meta), part, 0)
        writer.close(part)
    found = verify(tmp_path).problems
    assert found == (["clips of video dQw4w9WgXcQ stand in both train and val"] if leaks else [])
