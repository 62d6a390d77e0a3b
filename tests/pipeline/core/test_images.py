"""Pixels against brute force: the sRGB formula, area averages by replication, JPEG markers read by hand."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.core import images

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)


def smooth(height: int = 96, width: int = 128) -> np.ndarray:
    """A picture without hard edges, in all three channels."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 17) * np.cos(y / 23), np.sin((x + y) / 31), np.cos(x / 29) * np.sin(y / 13)]
    return np.round(127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)


def noise(height: int = 40, width: int = 56) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def segments(jpeg: bytes) -> list[tuple[int, bytes]]:
    """(marker, payload) of a JPEG file up to its first scan."""
    assert jpeg[:2] == b"\xff\xd8"
    found, at = [], 2
    while True:
        mark, marker, length = struct.unpack_from(">BBH", jpeg, at)
        assert mark == 0xFF
        found.append((marker, jpeg[at + 4 : at + 2 + length]))
        if marker == 0xDA:
            return found
        at += 2 + length


# ---- light to bytes


def exact_srgb(linear: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1, in double precision, not rounded."""
    linear = np.clip(np.asarray(linear, np.float64), 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_srgb8_follows_the_formula(dtype: type) -> None:
    linear = np.concatenate([np.linspace(0, 1, 200_001), np.geomspace(1e-7, 1, 50_000)]).astype(dtype)
    linear.sort()
    ours = images.srgb8(linear)
    assert ours.dtype == np.uint8
    assert np.abs(ours - exact_srgb(linear)).max() < 0.53  # half a level of rounding and half a step of the table
    assert (np.diff(ours.astype(int)) >= 0).all()
    assert set(ours.tolist()) == set(range(256))


@settings(deadline=None, max_examples=200)
@given(st.floats(-1e6, 1e6, width=32))
def test_srgb8_is_never_more_than_a_level_off_and_clips(linear: float) -> None:
    ours = int(images.srgb8(np.float32([linear]))[0])
    assert abs(ours - int(np.round(exact_srgb(np.array(linear))))) <= 1
    if linear <= 0:
        assert ours == 0
    if linear >= 1:
        assert ours == 255


def test_srgb8_of_infinity_and_known_values() -> None:
    values = np.array([0, 1, np.inf, -np.inf, 0.5, 0.2158605, 0.0031308], np.float32)
    np.testing.assert_array_equal(images.srgb8(values), [0, 255, 255, 0, 188, 128, 10])
    assert images.srgb8(np.zeros((3, 4, 3), np.float32)).shape == (3, 4, 3)


def test_over_is_exact_where_nothing_is() -> None:
    rgba = np.zeros((2, 3, 4), np.float32)
    rgba[0, 0] = [0.25, 0.125, 0.5, 0.5]  # premultiplied
    rgba[0, 1] = [0.1, 0.2, 0.3, 1]
    rgb = images.over(rgba)
    assert (rgb[1] == 1).all()
    np.testing.assert_array_equal(rgb[0, 0], [0.75, 0.625, 1.0])
    np.testing.assert_array_equal(rgb[0, 1], rgba[0, 1, :3])
    assert (images.srgb8(rgb)[1] == 255).all()


@settings(deadline=None, max_examples=60)
@given(seeds, st.floats(0, 1))
def test_over_is_the_mean_of_the_pixels_parts(seed: int, alpha: float) -> None:
    colour = np.random.default_rng(seed).random(3)
    rgba = np.array([[[*(alpha * colour), alpha]]])
    np.testing.assert_allclose(images.over(rgba)[0, 0], alpha * colour + (1 - alpha) * 1.0, atol=1e-12)


# ---- resizing


def brute_area(pixels: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Every pixel cut into h x w equal parts, then plain means of H x W of them."""
    (height, width), (h, w) = pixels.shape[:2], hw
    fine = pixels.repeat(h, 0).repeat(w, 1).astype(np.float64)
    return fine.reshape(h, height, w, width, -1).mean((1, 3))


@settings(deadline=None, max_examples=60)
@given(st.tuples(sizes, sizes), st.tuples(sizes, sizes), seeds)
def test_resize_area_is_the_mean_of_what_lies_under_a_pixel(
    hw: tuple[int, int], new: tuple[int, int], seed: int
) -> None:
    pixels = np.random.default_rng(seed).random((*hw, 3)).astype(np.float32)
    resized = images.resize_area(pixels, new)
    assert resized.shape == (*new, 3)
    assert resized.dtype == np.float32
    assert resized.flags.c_contiguous
    np.testing.assert_allclose(resized, brute_area(pixels, new), atol=2e-6)
    assert resized.mean(dtype=np.float64) == pytest.approx(pixels.mean(dtype=np.float64), abs=1e-6)  # no light is lost
    assert resized.max() <= pixels.max() + 1e-6


@settings(deadline=None, max_examples=60)
@given(st.tuples(sizes, sizes), st.tuples(sizes, sizes), seeds)
def test_resizing_a_part_is_resizing_the_whole_it_lies_in(hw: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    (top, bottom), (left, right) = (np.sort(rng.choice(size + 1, 2, replace=False)) for size in hw)
    part = rng.random((bottom - top, right - left, 4)).astype(np.float32)
    whole = images.paste(part, (top, left), hw, 0)
    assert whole.shape == (*hw, 4)
    np.testing.assert_array_equal(whole[top:bottom, left:right], part)
    assert whole.sum(dtype=np.float64) == pytest.approx(part.sum(dtype=np.float64))
    resized = images.resize_area(part, new, ((top, left), hw))
    np.testing.assert_allclose(resized, images.resize_area(whole, new), atol=2e-6)


def test_resize_area_keeps_white_white_and_the_same_size_as_it_is() -> None:
    white = np.ones((512, 512, 3), np.float32)
    for width in (64, 100, 333):
        assert (images.srgb8(images.resize_area(white, (width, width))) == 255).all()
    pixels = np.random.default_rng(0).random((5, 7, 3))
    np.testing.assert_array_equal(images.resize_area(pixels, (5, 7)), pixels)


def test_resize_area_does_not_swap_rows_and_columns() -> None:
    pixels = np.zeros((4, 8, 1), np.float32)
    pixels[:2, 6:] = 1
    np.testing.assert_array_equal(images.resize_area(pixels, (2, 4))[..., 0], [[0, 0, 0, 1], [0, 0, 0, 0]])


@settings(deadline=None, max_examples=60)
@given(st.tuples(sizes, sizes), st.tuples(sizes, sizes))
def test_resize_nearest_takes_the_pixel_at_the_centre(hw: tuple[int, int], new: tuple[int, int]) -> None:
    pixels = np.arange(hw[0] * hw[1]).reshape(*hw, 1)
    resized = images.resize_nearest(pixels, new)
    assert resized.shape == (*new, 1)
    rows = [int((Fraction(2 * i + 1, 2) * hw[0]) / new[0]) for i in range(new[0])]  # exact, rounded down
    columns = [int((Fraction(2 * j + 1, 2) * hw[1]) / new[1]) for j in range(new[1])]
    np.testing.assert_array_equal(resized[..., 0], [[row * hw[1] + column for column in columns] for row in rows])


# ---- files


@pytest.mark.parametrize("quality", [50, 95, 100])
def test_jpeg_keeps_all_colour_samples(quality: int) -> None:
    frames = [payload for marker, payload in segments(images.encode_jpeg(noise(), quality)) if 0xC0 <= marker <= 0xC2]
    (frame,) = frames
    bits, height, width, components = struct.unpack_from(">BHHB", frame)
    assert (bits, height, width, components) == (8, 40, 56, 3)
    assert [frame[6 + 3 * i + 1] for i in range(3)] == [0x11] * 3  # 4:4:4


def test_jpeg_says_nothing_but_the_picture() -> None:
    jpeg = images.encode_jpeg(noise(), 95)
    allowed = {0xE0, 0xDB, 0xC0, 0xC4, 0xDA}  # JFIF, tables, baseline frame, Huffman tables, scan: no EXIF, no comment
    found = segments(jpeg)
    assert {marker for marker, _ in found} <= allowed
    jfif = [payload for marker, payload in found if marker == 0xE0]
    assert jfif == [b"JFIF\0\x01\x01\x00\x00\x01\x00\x01\x00\x00"]  # no thumbnail, no resolution
    assert jpeg == images.encode_jpeg(noise().copy(), 95)


def test_jpeg_is_close_to_the_picture() -> None:
    error = images.decode(images.encode_jpeg(smooth(), 95)).astype(float) - smooth()
    assert 10 * np.log10(255**2 / (error**2).mean()) > 40
    assert len(images.encode_jpeg(smooth(), 95)) > len(images.encode_jpeg(smooth(), 60))


def test_jpeg_keeps_a_white_background_white() -> None:
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[24:40, 24:40] = [200, 30, 30]
    assert (images.decode(images.encode_jpeg(picture, 95))[:16] == 255).all()


@settings(deadline=None, max_examples=30)
@given(st.tuples(sizes, sizes), seeds)
def test_png_is_lossless(hw: tuple[int, int], seed: int) -> None:
    gray = np.random.default_rng(seed).integers(0, 256, hw, np.uint8)
    data = images.encode_png(gray)
    decoded = images.decode(data)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, gray)
    assert data == images.encode_png(gray)


def test_without_pil_opencv_does_what_training_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    grey, jpeg = noise()[..., 0], images.encode_jpeg(smooth(), 90)
    expected = images.decode(jpeg)
    monkeypatch.setattr(images, "PIL", None)
    for pixels in (noise(), grey):
        assert np.array_equal(images.decode(images.encode_png(pixels, 1)), pixels)
    assert np.array_equal(images.decode(jpeg), expected)
    own = images.encode_jpeg(smooth(), 90)
    assert np.abs(images.decode(own).astype(int) - expected).max() <= 3 and len(own) < 1.1 * len(jpeg)
    assert next(payload for marker, payload in segments(own) if marker == 0xC0)[7::3] == b"\x11\x11\x11"
    for broken in (jpeg[:-9], b"", b"no picture"):
        with pytest.raises(OSError, match="no picture"):
            images.decode(broken)


def test_a_truncated_jpeg_is_an_oserror_wherever_it_ends() -> None:
    jpeg = images.encode_jpeg(smooth(24, 24), 95)
    for length in range(len(jpeg)):
        with pytest.raises(OSError):
            images.decode(jpeg[:length])


def test_a_truncated_png_is_an_oserror_or_whole() -> None:
    gray = smooth(24, 24)[..., 0]
    png = images.encode_png(gray)
    for length in range(len(png)):
        try:
            decoded = images.decode(png[:length])
        except OSError:
            continue
        np.testing.assert_array_equal(decoded, gray)  # only check sums and the end mark are missing
        assert length > len(png) - 30


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b"\xff\xd8\xff\xe0" + tail))
def test_what_is_no_picture_is_an_oserror(data: bytes) -> None:
    with pytest.raises(OSError):
        images.decode(data)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_damaged_jpeg_is_an_oserror_or_a_picture(place: int, value: int) -> None:
    damaged = bytearray(images.encode_jpeg(smooth(24, 24), 95))
    frame = damaged.index(b"\xff\xc0")
    place %= len(damaged)
    if frame + 5 <= place < frame + 9:  # the size; see the next test
        return
    damaged[place] = value
    with contextlib.suppress(OSError):
        assert images.decode(bytes(damaged)).ndim in (2, 3)


@pytest.mark.parametrize("side", [14_000, 65_000])
def test_a_jpeg_that_claims_an_absurd_size_is_an_oserror(side: int) -> None:
    """Two damaged bytes do that. From 13400 px squared on, Pillow raises DecompressionBombError, which is no OSError."""
    damaged = bytearray(images.encode_jpeg(smooth(24, 24), 95))
    struct.pack_into(">HH", damaged, damaged.index(b"\xff\xc0") + 5, side, side)
    with pytest.raises(OSError):
        images.decode(bytes(damaged))


def test_a_damaged_png_is_an_oserror_or_a_picture() -> None:
    png = images.encode_png(smooth(24, 24)[..., 0])
    rng = np.random.default_rng(0)
    for _ in range(3000):
        damaged = bytearray(png)
        damaged[rng.integers(8, 60)] = rng.integers(256)
        try:
            assert images.decode(bytes(damaged)).ndim in (2, 3)
        except OSError:
            continue


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "an empty file"),
        (b"BM" + bytes(80), "a BMP picture, and PNG, JPEG, WebP, TIFF and AVIF are read; convert it to PNG"),
        (b"GIF89a" + bytes(80), "a GIF picture"),
        (b"\0\0\0\x24ftypheic" + bytes(80), "a HEIC picture"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(80), "a JPEG XL picture"),
        (b"\xff\x0a" + bytes(80), "a JPEG XL picture"),
        (b"\x89PNG\r\n\x1a\nxx", "a broken PNG file of 10 bytes"),
        (b"\xff\xd8" + bytes(80), "a broken JPEG file of 82 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"<html>", "no picture (it begins with b'<html>')"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(data: bytes, said: str) -> None:
    for read in (images.size_of, images.decode_straight):
        with pytest.raises(OSError, match=re.escape(said)):
            read(data)
    if not said.startswith(("a BMP", "a GIF")):  # which PIL decodes where formats are not limited
        with pytest.raises(OSError, match=r"^(?!.*BytesIO)"):
            images.decode(data)


def test_orientation_tags_are_read_and_not_followed() -> None:
    picture = Image.new("RGB", (40, 20), (200, 10, 10))
    exif = picture.getexif()
    exif[0x0112] = 8
    for kind in ("JPEG", "PNG"):
        stream = io.BytesIO()
        picture.save(stream, kind, exif=exif)
        assert images.orientation(stream.getvalue()) == 8 and images.size_of(stream.getvalue()) == (20, 40)
    assert images.orientation(images.encode_png(np.zeros((4, 4), np.uint8))) == images.orientation(b"nothing") == 1


def test_contact_sheet_puts_every_picture_in_its_place() -> None:
    tiles = [[np.full((4, 6, 3), 10 * (3 * i + j), np.uint8) for j in range(2 + i)] for i in range(2)]
    sheet = images.contact_sheet(tiles, gap=2)
    assert sheet.shape == (10, 22, 3)
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            np.testing.assert_array_equal(sheet[6 * i : 6 * i + 4, 8 * j : 8 * j + 6], tile)
    assert (sheet[4:6] == 224).all()
    assert (sheet[:4, 16:] == 224).all()  # where a row is shorter


@pytest.mark.parametrize("quality", [50, 90, 95, 100])
def test_a_picture_of_noise_is_a_jpeg_too(quality: int) -> None:
    noise = np.clip(np.random.default_rng(0).normal(128, 90, (256, 256, 3)), 0, 255).astype(np.uint8)
    data = images.encode_jpeg(noise, quality)
    seen = images.decode(data).astype(float)
    assert seen.shape == noise.shape and np.abs(seen - noise).mean() < (40 if quality == 50 else 12)


def numbers_files() -> dict[str, tuple[bytes, np.ndarray]]:
    """Name -> (file, what it holds, channels red first), written by OpenCV, which takes blue first."""
    os.environ["OPENCV_IO_ENABLE_OPENEXR"] = "1"
    rng, made = np.random.default_rng(7), {}
    for name, shape in (("grey", (5, 9)), ("rgba", (5, 9, 4)), ("rgb", (5, 9, 3))):
        values = rng.integers(0, 65536, shape).astype(np.uint16)
        swapped = values if values.ndim == 2 else values[..., [2, 1, 0, 3][: shape[2]]]
        made[f"{name}.png"] = (cv2.imencode(".png", swapped)[1].tobytes(), values)
        floats = np.ascontiguousarray(swapped.astype(np.float32) - 3e4)
        made[f"{name}.exr"] = (cv2.imencode(".exr", floats)[1].tobytes(), values.astype(np.float32) - 3e4)
    return made


def test_numbers_are_read_as_they_stand_in_the_file() -> None:
    for name, (data, values) in numbers_files().items():
        found = images.decode_numbers(data)
        assert found.dtype == values.dtype and np.array_equal(found, values), name


def test_broken_pictures_of_numbers_are_errors_before_they_take_memory() -> None:
    whole = numbers_files()
    window = whole["rgba.exr"][0].index(b"dataWindow\0box2i\0") + len(b"dataWindow\0box2i\0") + 4
    huge = bytearray(whole["rgba.exr"][0])
    huge[window + 8 : window + 16] = struct.pack("<2i", 200_000, 200_000)
    for data in (
        bytes(huge),
        whole["rgba.exr"][0][:60],
        whole["rgba.png"][0][:20],
        b"",
        b"\x76\x2f\x31\x01",
        b"P6 1 1 255 abc",
    ):
        with pytest.raises(OSError):
            images.decode_numbers(data)


def test_means_over_what_is_covered_are_no_darker_at_edges() -> None:
    weighted = np.array([[[0.2, 0.4, 0.5], [0.0, 0.0, 0.0]]])  # half covered by (0.4, 0.8), and not at all
    assert np.allclose(images.of_surfaces(weighted), [[[0.4, 0.8], [0, 0]]])
