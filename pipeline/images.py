"""Pixels: linear light to sRGB bytes, resizing by area, JPEG and PNG. The only module that knows PIL."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image


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


def over_white(rgba: np.ndarray) -> np.ndarray:
    """Premultiplied linear RGBA (H, W, 4) -> linear RGB (H, W, 3) on white. Where alpha is 0, white is exactly 1."""
    return rgba[..., :3] + (1 - rgba[..., 3:])


@functools.cache
def _area_weights(size: int, new_size: int) -> np.ndarray:
    """(new_size, size) weights: how much of each old pixel lies in each new one. Rows sum to 1."""
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


def paste(pixels: np.ndarray, corner: tuple[int, int], hw: tuple[int, int], background: float) -> np.ndarray:
    """Pixels (h, w, ...) at (top, left) of an image of size hw that is `background` elsewhere."""
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
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=quality, subsampling=0, optimize=True)
    return stream.getvalue()


def encode_png(pixels: np.ndarray) -> bytes:
    """Bytes (H, W) or (H, W, 3) -> a lossless 8-bit PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def decode(data: bytes) -> np.ndarray:
    """An image file -> bytes (H, W, 3) or (H, W). Raises OSError where it is broken or truncated."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image)
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what PIL raises besides, on broken files
        raise OSError(str(error)) from error


def version() -> str:
    """Which PIL is active, for `doctor`."""
    import PIL

    return str(PIL.__version__)


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
