"""Films: what a player gets back is what was put in."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from lvsm_train.media.films import LEAST, write_film
from pipeline.core.errors import UserError


def frames(count: int, height: int = 33, width: int = 47) -> list[np.ndarray]:
    """A red square that moves over white, a blue one that stays."""
    made = []
    for number in range(count):
        frame = np.full((height, width, 3), 255, np.uint8)
        frame[5:20, number : number + 12] = (200, 40, 60)
        frame[22:30, 3:9] = (30, 90, 220)
        made.append(frame)
    return made


def played(path: Path) -> tuple[list[np.ndarray], float]:
    """All frames as a player shows them, and how many it shows a second."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.average_rate is not None
        return shown, float(stream.average_rate)


@pytest.mark.parametrize(("suffix", "mean", "worst"), [(".mp4", 0.5, 12), (".gif", 0.01, 1)])
def test_a_film_has_its_frames(suffix: str, mean: float, worst: int, tmp_path: Path) -> None:
    given = frames(12)
    path = write_film(tmp_path / "new" / f"film{suffix}", iter(given), 12.5)
    shown, rate = played(path)
    assert len(shown) == 12 and rate == pytest.approx(12.5)
    for made, wanted in zip(shown, given, strict=True):
        large = np.kron(wanted, np.ones((8, 8, 1), np.uint8))  # 33 * 8 is the first that is LEAST
        assert made.shape == large.shape and min(made.shape[:2]) >= LEAST
        off = np.abs(made.astype(int) - large)
        assert off.mean() < mean and off.max() <= worst
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_an_mp4_plays_in_browsers(tmp_path: Path) -> None:
    path = write_film(tmp_path / "odd.mp4", frames(3, 301, 257), 24)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.height, stream.width) == (302, 258)  # H.264 halves the sides of its colours
        assert stream.codec_context.colorspace == 1
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays before all of it has come
    shown = played(path)[0][1]
    np.testing.assert_allclose(shown[301, :250], shown[300, :250], atol=8)  # no dark edge where a row was added


def test_a_gif_loops_for_ever(tmp_path: Path) -> None:
    data = write_film(tmp_path / "film.gif", frames(4), 10).read_bytes()
    at = data.index(b"NETSCAPE2.0") + len(b"NETSCAPE2.0")
    assert data[at : at + 5] == b"\x03\x01\x00\x00\x00"  # no number of rounds


def test_a_film_of_one_frame(tmp_path: Path) -> None:
    for suffix in (".mp4", ".gif"):
        assert len(played(write_film(tmp_path / f"one{suffix}", frames(1), 10))[0]) == 1


def test_what_makes_no_film(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"an \.mp4 or a \.gif"):
        write_film(tmp_path / "film.avi", frames(2), 10)
    other = [*frames(2), frames(1, 40)[0]]
    for given, error in (([], "without frames"), (other, "in one film"), ([np.zeros((4, 4, 3))], "uint8")):
        with pytest.raises(ValueError, match=error):
            write_film(tmp_path / "film.mp4", given, 10)
    with pytest.raises(ValueError, match="0 frames a second"):
        write_film(tmp_path / "film.gif", frames(1), 0)
    assert not list(tmp_path.iterdir())
