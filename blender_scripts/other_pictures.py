"""Decodes pictures of kinds that Blender does not read, by Pillow: GIF, and others that old exporters and glTF files hold."""

import io
import os
import struct
import zlib

import bpy

KINDS = "GIF PCX PPM ICO QOI AVIF WEBP PNG JPEG PSD TIFF DDS BMP TGA".split()  # none that starts another program
# what hostile bytes make of a decoder
BROKEN = (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError)
BROKEN += (SyntaxError, TypeError, ValueError, struct.error, zlib.error)
MAX_BYTES = 2**28
MAX_PIXELS = 2**28  # as of any picture


def decode(image):
    """Give an image without pixels those of its file, or of what it has packed: of the first frame. False if that fails."""
    from PIL import Image

    Image.init()
    try:
        with Image.open(io.BytesIO(_data(image)), formats=KINDS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return False
            made = io.BytesIO()
            picture.convert("RGBA").save(made, "PNG", compress_level=1)
    except (*BROKEN, Image.DecompressionBombError):
        return False
    image.source = "GENERATED"  # one that has failed is tried again only as another
    image.source = "FILE"
    image.pack(data=made.getvalue(), data_len=made.getbuffer().nbytes)
    return bool(image.size[0])


def _data(image):
    if image.packed_file:
        return bytes(image.packed_file.data)
    path = bpy.path.abspath(image.filepath, library=image.library)
    if not os.path.isfile(path) or os.path.getsize(path) > MAX_BYTES:
        return b""
    with open(path, "rb") as file:
        return file.read()
