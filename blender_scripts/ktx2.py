"""Decodes pictures in Basis Universal (KTX2 with ETC1S or UASTC) of a glTF, which Blender does not read, by opengl_basisu.

Without that package no file with such pictures alone comes here (`pipeline/upgrade/gltf_plain.py`).
"""

import os
import struct
import zlib

import numpy as np
from io_scene_gltf2.blender.imp import image as importer
from io_scene_gltf2.io.com.path import uri_to_path
from io_scene_gltf2.io.imp.gltf2_io_binary import BinaryData

MAGIC = b"\xabKTX 20\xbb\r\n\x1a\n"
HEAD = 80  # bytes before the table of levels
MAX_PIXELS = 2**28  # as of any picture
undecoded = []  # what was wrong with pictures that have come so far; whoever imports empties it


def teach_importer():
    """Make Blender's glTF importer read such pictures. Call once, after bpy is imported."""
    data_of, from_file = BinaryData.get_image_data, importer.create_from_file

    def get_image_data(gltf, index):
        data = data_of(gltf, index)
        return data if data is None or bytes(data[: len(MAGIC)]) != MAGIC else png(bytes(data))

    def create_from_file(gltf, index):
        path = os.path.join(os.path.dirname(gltf.filename), uri_to_path(gltf.data.images[index].uri))
        return (importer.create_from_data if _is_ktx2(path) else from_file)(gltf, index)

    BinaryData.get_image_data, importer.create_from_file = staticmethod(get_image_data), create_from_file


def _is_ktx2(path):
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def png(data):
    """PNG (a memoryview) of the largest level of a KTX2; None, and a line in `undecoded`, if it cannot be decoded."""
    try:
        import opengl_basisu

        _check_sizes(data)
        pixels = np.ascontiguousarray(opengl_basisu.open(data).transcode("rgba8").data)
    except (ImportError, ValueError, struct.error) as error:
        undecoded.append(f"a KTX2 picture of {len(data)} bytes cannot be decoded ({error})")
        return None
    height, width, _ = pixels.shape
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (1, 0)))  # before each row: no filter
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 1)),
        (b"IEND", b""),
    )
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    return memoryview(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def _check_sizes(data):
    """Raise ValueError if a file says to unpack to more than its pixels are, or to more of them than any picture has."""
    width, height, *_, levels = struct.unpack_from("<6I", data, 20)
    blocks = -(-width // 4) * -(-height // 4)
    unpacked = max(struct.unpack_from("<QQQ", data, HEAD + 24 * level)[2] for level in range(max(1, min(levels, 32))))
    if width * height > MAX_PIXELS or unpacked > 16 * blocks:
        raise ValueError(f"{width} x {height} pixels that unpack to {unpacked} bytes")
