"""Pixels: linear light to sRGB bytes, resizing by area, JPEG, PNG, WebP, TIFF and AVIF. The only module that imports PIL."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np

from pipeline.core.text import no_picture

try:
    import PIL
    from PIL import Image, ImageFile
except ModuleNotFoundError:  # a machine that only trains: OpenCV, which training has, encodes and decodes there
    PIL = None  # type: ignore[assignment]

TIFF = (b"II*\0", b"MM\0*")  # first bytes of the two byte orders
EXR = b"\x76\x2f\x31\x01"
MAX_PIXELS = 50_000_000  # of a picture from elsewhere, checked against its header before decoding


@functools.cache
def _srgb_table() -> np.ndarray:
    linear = np.arange(65536) / 65535
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(curve * 255).astype(np.uint8)


def srgb8(linear: np.ndarray) -> np.ndarray:
    """Linear light (...), 1.0 = white -> sRGB bytes (...). Clips to [0, 1]; no tone curve, no dither."""
    index = np.clip(linear, 0, 1) * 65535 + 0.5
    return _srgb_table()[index.astype(np.uint16)]


@functools.cache
def _linear_table() -> np.ndarray:
    curve = np.arange(256) / 255
    return np.where(curve <= 0.04045, curve / 12.92, ((curve + 0.055) / 1.055) ** 2.4).astype(np.float32)


def linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB bytes (...) -> linear light (...) float32, 1.0 = white: the inverse of `srgb8`."""
    light: np.ndarray = _linear_table()[srgb]
    return light


def over(rgba: np.ndarray, background: np.ndarray | float = 1.0) -> np.ndarray:
    """Premultiplied linear RGBA (H, W, 4) -> linear RGB (H, W, 3) on a background, white if not given: exact where alpha is 0.

    background: linear light, (3,) or (H, W, 3).
    """
    return rgba[..., :3] + (1 - rgba[..., 3:]) * background


def read_hdr(path: str) -> np.ndarray:
    """A .hdr or .exr file -> linear light (H, W, 3) float32, no value below 0. Raises OSError where it is no such picture."""
    os.environ.setdefault("OPENCV_IO_ENABLE_OPENEXR", "1")  # OpenCV asks when it reads the first .exr
    import cv2

    bgr = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    if bgr is None or bgr.ndim != 3 or bgr.dtype != np.float32 or not np.isfinite(bgr).all():
        raise OSError(f"{path} is no environment map")
    return np.ascontiguousarray(np.maximum(bgr[..., 2::-1], 0))


def sample_bilinear(pixels: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Colours (..., 3) of pixels (H, W, 3) float32 at x, y (...), pixel centres at +0.5; the border's beyond it."""
    import cv2

    at_x, at_y = ((values - 0.5).astype(np.float32).reshape(len(values), -1) for values in (x, y))
    found = cv2.remap(pixels, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found).reshape(*x.shape, pixels.shape[2])


@functools.cache
def _area_weights(size: int, new_size: int) -> np.ndarray:
    """(new_size, size) weights: the share of each old pixel in each new one. Rows sum to 1."""
    edges = np.linspace(0, size, new_size + 1)
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(size)[None]
    overlap = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)
    return (overlap / (high - low)).astype(np.float32)


def resize_area(
    pixels: np.ndarray, hw: tuple[int, int], place: tuple[tuple[int, int], tuple[int, int]] | None = None
) -> np.ndarray:
    """(H, W, C) float -> (h, w, C) by exact area average. For light, pass linear light.

    place: (top, left), (H, W) of the whole image where `pixels` are a part of it and the rest is 0.
    """
    (top, left), whole = place or ((0, 0), pixels.shape[:2])
    if pixels.shape[:2] == whole == hw:
        return pixels
    rows = _area_weights(whole[0], hw[0])[:, top : top + pixels.shape[0]]
    columns = _area_weights(whole[1], hw[1])[:, left : left + pixels.shape[1]]
    shrunk = np.tensordot(rows, pixels, (1, 0))
    return np.ascontiguousarray(np.moveaxis(np.tensordot(columns, shrunk, (1, 1)), 0, 1))


def shrink(rgb: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """sRGB bytes (H, W, 3) -> (h, w, 3) by exact area average in linear light: `resize_area` for opaque pictures, faster."""
    import cv2

    if rgb.shape[:2] == hw:
        return rgb
    return srgb8(cv2.resize(cv2.LUT(rgb, _linear_table()), (hw[1], hw[0]), interpolation=cv2.INTER_AREA))


def paste(
    pixels: np.ndarray, corner: tuple[int, int], hw: tuple[int, int], background: np.ndarray | float
) -> np.ndarray:
    """Pixels (h, w, ...) at (top, left) of an image of size hw that is `background` (one value, or an image) elsewhere."""
    if pixels.shape[:2] == hw:
        return pixels
    top, left = corner
    whole = np.full((*hw, *pixels.shape[2:]), background, pixels.dtype)
    whole[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return whole


def resize_nearest(pixels: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """(H, W, C) -> (h, w, C) by taking the pixel at the centre: depth and normals must not be mixed across edges."""
    rows = ((np.arange(hw[0]) + 0.5) * pixels.shape[0] / hw[0]).astype(int)
    columns = ((np.arange(hw[1]) + 0.5) * pixels.shape[1] / hw[1]).astype(int)
    return np.ascontiguousarray(pixels[rows][:, columns])


def encode_jpeg(rgb: np.ndarray, quality: int) -> bytes:
    """sRGB bytes (H, W, 3) -> a JPEG without chroma subsampling and without metadata: same pixels, same bytes.

    Huffman tables fitted to the image save a fifth of the bytes at 64 pixels (the standard tables alone take 420).
    """
    if PIL is None:
        return _by_opencv(".jpg", rgb, JPEG_QUALITY=quality, JPEG_OPTIMIZE=1, JPEG_SAMPLING_FACTOR=0x111111)
    image = Image.fromarray(rgb)
    try:
        return _jpeg(image, quality)
    except OSError:  # PIL's buffer for libjpeg has a byte or two per pixel; a very noisy picture overflows it
        with _larger_blocks(4 * rgb.size):
            return _jpeg(image, quality)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, subsampling=0, optimize=True)
    return stream.getvalue()


def is_plain_jpeg(data: bytes) -> bool:
    """True for a JPEG such as `encode_jpeg` writes: sRGB without chroma subsampling, whole, with nothing beside the picture."""
    if PIL is None or data[:2] != b"\xff\xd8" or data.find(b"\xff\xd9", data.find(b"\xff\xda")) != len(data) - 2:
        return False  # no JPEG, cut off, or followed by something
    with _opened(data) as image:
        sampled = {(across, down) for _, across, down, _ in image.layer}  # type: ignore[attr-defined]
        beside = image.info.keys() - {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        segments = {name for name, _ in image.applist}  # type: ignore[attr-defined]
        return image.mode == "RGB" and sampled == {(1, 1)} and not beside and segments <= {"APP0"}


@contextlib.contextmanager
def _larger_blocks(size: int) -> Iterator[None]:
    before = ImageFile.MAXBLOCK
    ImageFile.MAXBLOCK = max(before, size)
    try:
        yield
    finally:
        ImageFile.MAXBLOCK = before


def encode_png(pixels: np.ndarray, level: int = 6) -> bytes:
    """Bytes (H, W) or (H, W, 3) -> a lossless 8-bit PNG. level: zlib's, from 1, fast, to 9, small."""
    if PIL is None:
        return _by_opencv(".png", pixels, PNG_COMPRESSION=level)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=level)
    return stream.getvalue()


def decode(data: bytes) -> np.ndarray:
    """An image file -> bytes (H, W, 3) or (H, W). Raises OSError where it is broken or truncated."""
    if PIL is None:
        return _pixels_by_opencv(data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image)
    except PIL.UnidentifiedImageError:
        raise OSError(no_picture(data)) from None
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL raises these too on broken files
        raise OSError(str(error)) from error


def _by_opencv(kind: str, pixels: np.ndarray, **flags: int) -> bytes:
    """File of (H, W) or (H, W, 3). flags: IMWRITE_ of OpenCV."""
    import cv2

    swapped = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    listed = [number for name, value in flags.items() for number in (getattr(cv2, f"IMWRITE_{name}"), value)]
    return cv2.imencode(kind, swapped, listed)[1].tobytes()


def _pixels_by_opencv(data: bytes) -> np.ndarray:
    import cv2

    cut = data[:2] == b"\xff\xd8" and data[-2:] != b"\xff\xd9"  # OpenCV fills a cut JPEG with grey
    pixels = None if cut or not data else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise OSError("no picture, or a broken one")
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def size_of(data: bytes) -> tuple[int, int]:
    """(height, width) of an image file as its header says, without decoding. Raises OSError where it is no picture."""
    if _is_webp(data):
        return _webp_size(data)
    if _is_avif(data):
        return _avif_size(data)
    with _opened(data) as image:
        return image.height, image.width


def orientation(data: bytes) -> int:
    """EXIF's orientation of a PNG, JPEG or TIFF: 1 upright or not said, 2 to 8 mirrored or turned."""
    try:
        with _opened(data) as image:
            return int(image.getexif().get(0x0112, 1))
    except (OSError, SyntaxError, ValueError, TypeError, struct.error):
        return 1


def decode_straight(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A PNG, JPEG, WebP, TIFF or AVIF -> sRGB bytes (H, W, 3), or (H, W, 4) with straight alpha where it has transparency.

    Pixels are those of the file: orientation tags and colour profiles are ignored, as everything that computes poses
    ignores them. 16 bits become 8, linearly. Raises OSError where the file is broken, claims more than `max_pixels`, or is no
    colour picture (floats).
    """
    height, width = size_of(data)
    if height * width > max_pixels:
        raise OSError(f"{width}x{height} pixels are more than {max_pixels / 1e6:.0f} million")
    if _is_webp(data):
        return _decode_webp(data)
    if _is_avif(data):
        return _decode_avif(data)
    if data[:4] in TIFF:
        return _decode_tiff(data)
    with _opened(data) as image:
        if image.mode in ("F", "I"):
            raise OSError(f"pixels of mode {image.mode} are no colours; convert it to 8 bits")
        transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
        try:
            if image.mode.startswith("I;"):
                return _grey_levels(np.asarray(image), image.info.get("transparency"))
            return np.asarray(image.convert("RGBA" if transparent else "RGB"))
        except (OSError, SyntaxError, ValueError, IndexError, struct.error, EOFError, zlib.error) as error:
            raise OSError(f"a broken {image.format} file ({error}); copy it again") from error


def _grey_levels(grey: np.ndarray, clear: int | None) -> np.ndarray:
    """16-bit grey (H, W) -> sRGB bytes (H, W, 3): the upper bits, as PIL takes them of colours; (H, W, 4) with a clear level."""
    levels = np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, -1)
    return levels if clear is None else np.dstack([levels, np.where(grey == clear, 0, 255).astype(np.uint8)])


def decode_numbers(data: bytes) -> np.ndarray:
    """A PNG of 8 or 16 bits or an OpenEXR file -> its numbers (H, W) or (H, W, C), channels R, G, B, A. Raises OSError."""
    os.environ.setdefault("OPENCV_IO_ENABLE_OPENEXR", "1")
    import cv2

    height, width = _exr_size(data) if data[:4] == EXR else size_of(data)
    if not 0 < height * width <= MAX_PIXELS:
        raise OSError(f"{width}x{height} pixels")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise OSError(str(error)) from error
    if pixels is None or pixels.shape[:2] != (height, width):
        raise OSError("a broken picture of numbers")
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])


def _exr_size(data: bytes) -> tuple[int, int]:
    """(height, width) by the data window in the header of an OpenEXR file. Raises OSError if there is none."""
    found = re.search(rb"dataWindow\0box2i\0\x10\0\0\0(.{16})", data[:65536], re.DOTALL)
    if not found:
        raise OSError("a broken OpenEXR header")
    left, top, right, bottom = struct.unpack("<4i", found[1])
    return bottom - top + 1, right - left + 1


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open a PNG, a JPEG or the header of a TIFF; any other format raises OSError: fewer parsers, fewer surprises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of tags that are cut off; the pixels are what counts
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "TIFF"))
    except PIL.UnidentifiedImageError:
        raise OSError(no_picture(data)) from None
    except (
        SyntaxError,
        ValueError,
        struct.error,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise OSError(str(error)) from error
    with image:
        yield image


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _webp_size(data: bytes) -> tuple[int, int]:
    """(height, width) of the canvas, from the first chunk of a WebP file (RFC 9649). Raises OSError if it is broken."""
    head, kind = data[20:30], data[12:16]
    if len(head) == 10 and kind == b"VP8X":
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (4, 7))
    elif len(head) == 10 and kind == b"VP8L" and head[0] == 0x2F:
        bits = int.from_bytes(head[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif len(head) == 10 and kind == b"VP8 " and head[3:6] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    else:
        raise OSError("a broken WebP header")
    return height, width


def _decode_webp(data: bytes) -> np.ndarray:
    """WebP file -> sRGB bytes (H, W, 3 or 4), by OpenCV, which bundles libwebp; a PIL build may lack it."""
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3 or pixels.shape[:2] != _webp_size(data):
        raise OSError("a broken WebP file")
    return np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])


def _decode_tiff(data: bytes) -> np.ndarray:
    """TIFF file of 8 or 16 bits -> sRGB bytes (H, W, 3 or 4), by OpenCV, which bundles libtiff; a PIL build may lack it."""
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16) or pixels.shape[:2] != size_of(data):
        raise OSError("a broken TIFF file, or one whose pixels are no colours")
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, -1)
    if pixels.shape[2] not in (3, 4):
        raise OSError(f"a TIFF of shape {pixels.shape}: its pixels are no colours")
    levels = pixels if pixels.dtype == np.uint8 else np.round(pixels / 257).astype(np.uint8)
    return np.ascontiguousarray(levels[..., [2, 1, 0, 3][: pixels.shape[2]]])


def _is_avif(data: bytes) -> bool:
    return data[4:12] in (b"ftypavif", b"ftypavis")


def _avif_size(data: bytes) -> tuple[int, int]:
    """(height, width) from the `ispe` property of an AVIF file. Raises OSError for one of several parts: tiles, transparency."""
    head = data[: max(data.find(b"mdat"), 0)]
    at = head.find(b"ispe")
    if at < 0 or len(head) < at + 16:
        raise OSError("a broken AVIF header")
    if b"auxC" in head or b"grid" in head:
        raise OSError("an AVIF of tiles or with transparency; convert it to PNG")
    width, height = struct.unpack_from(">II", head, at + 8)
    return height, width


def _decode_avif(data: bytes) -> np.ndarray:
    """AVIF file -> sRGB bytes (H, W, 3), by PyAV, which bundles dav1d."""
    import av

    try:
        with av.open(io.BytesIO(data), "r") as file:
            pixels = next(file.decode(video=0)).to_ndarray(format="rgb24")
    except (av.error.FFmpegError, StopIteration, IndexError, ValueError) as error:
        raise OSError(f"a broken AVIF file: {error}") from error
    if pixels.shape[:2] != _avif_size(data):
        raise OSError("a broken AVIF file: its picture has another size")
    return np.ascontiguousarray(pixels)


def premultiplied(straight: np.ndarray) -> np.ndarray:
    """sRGB bytes with straight alpha (H, W, 4) or without (H, W, 3) -> premultiplied linear light (H, W, 4) float32."""
    light = linear(straight[..., :3])
    if straight.shape[2] == 3:
        return np.concatenate([light, np.ones_like(light[..., :1])], -1)
    alpha = straight[..., 3:].astype(np.float32) / 255
    return np.concatenate([light * alpha, alpha], -1)


def of_surfaces(weighted: np.ndarray) -> np.ndarray:
    """Values times coverage, and coverage as the last channel (h, w, C + 1) -> means over what is covered (h, w, C) in 0..1."""
    return np.asarray(np.clip(weighted[..., :-1] / np.maximum(weighted[..., -1:], 1e-4), 0, 1))


def version() -> str:
    """Version of PIL, Pillow's or Pillow-SIMD's."""
    return PIL.__version__


def contact_sheet(rows: list[list[np.ndarray]], gap: int = 2) -> np.ndarray:
    """Rows of equally large images (H, W, 3) -> one picture on light grey."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 224, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            y, x = i * (height + gap), j * (width + gap)
            sheet[y : y + height, x : x + width] = image
    return sheet
