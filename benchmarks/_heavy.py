"""A heavy textured object for benchmarks: a GLB of any number of triangles with colour, roughness, metal and normal maps.

    python benchmarks/_heavy.py heavy.glb

Stands in for the scans and sculptures of Objaverse: a bumpy knot whose material is glossy metal here and rough there, so that
its picture is as noisy as path tracing gets under a white sky. Made from numbers, so no file of anybody's is needed.
"""

from __future__ import annotations

import functools
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import images

FLOAT, UINT = 5126, 5125
GLB, JSON_CHUNK, BIN_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942


def noise(uv: np.ndarray, seed: int, octaves: int) -> np.ndarray:
    """Periodic band-limited noise (N,) in about [-1, 1] at uv (N, 2), whose period is 1 in both."""
    rng = np.random.default_rng(seed)
    total = np.zeros(len(uv))
    for octave in range(octaves):
        for _ in range(6):
            waves = rng.integers(-(2 ** (octave + 1)), 2 ** (octave + 1) + 1, 2)
            total += np.sin(2 * np.pi * (uv @ waves + rng.random())) / 2**octave
    return np.asarray(total / 5)


def knot(uv: np.ndarray) -> np.ndarray:
    """Points (N, 3) of a trefoil tube with bumps at uv (N, 2)."""
    t, around = 2 * np.pi * uv[:, 0], 2 * np.pi * uv[:, 1]

    def centre(t: np.ndarray) -> np.ndarray:
        flat = 2 + np.cos(3 * t)
        return np.stack([flat * np.cos(2 * t), flat * np.sin(2 * t), np.sin(3 * t)], -1)

    tangent = centre(t + 1e-4) - centre(t - 1e-4)
    tangent /= np.linalg.norm(tangent, axis=-1, keepdims=True)
    side = np.cross(tangent, [0, 0, 1.0])
    side /= np.linalg.norm(side, axis=-1, keepdims=True)
    radius = 0.55 + 0.06 * noise(uv, 1, 4)
    ring = side * np.cos(around)[:, None] + np.cross(side, tangent) * np.sin(around)[:, None]
    return np.asarray(centre(t) + radius[:, None] * ring)


def grid(columns: int, rows: int) -> np.ndarray:
    """Cell corners (columns * rows, 2) of the unit square, the last ones at 1."""
    u, v = np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows), indexing="ij")
    return np.stack([u.ravel(), v.ravel()], -1)


def textures(size: int) -> dict[str, np.ndarray]:
    """The three glTF maps (size, size, 3) uint8: base colour; occlusion-roughness-metal; tangent-space normal."""
    uv = grid(size, size)
    bumps = noise(uv, 2, 6).reshape(size, size)
    slope_u, slope_v = np.gradient(bumps, axis=0) * 20, np.gradient(bumps, axis=1) * 20
    normal = np.stack([-slope_u, -slope_v, np.ones_like(bumps)], -1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    channels = [noise(uv, seed, 5).reshape(size, size) for seed in (3, 4, 5, 6, 7)]
    color = np.stack(channels[:3], -1) * 0.25 + 0.5
    metal = (channels[3] > 0.1).astype(float)
    roughness = np.clip(0.45 + 0.35 * channels[4], 0.1, 1)
    maps = {"color": color, "rough": np.stack([np.ones_like(metal), roughness, metal], -1), "normal": normal / 2 + 0.5}
    return {name: np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8) for name, pixels in maps.items()}


def write_glb(path: Path, triangles: int = 120_000, texture: int = 1024) -> None:
    """Writes the object with about that many triangles and three maps of `texture` pixels."""
    rows = max(8, int((triangles / 8) ** 0.5))
    columns = max(8, triangles // (2 * rows))
    uv = grid(columns + 1, rows + 1)
    points = knot(uv)
    du, dv = np.array([1e-4, 0]), np.array([0, 1e-4])
    along, across = knot(uv + du) - knot(uv - du), knot(uv + dv) - knot(uv - dv)
    normals = np.cross(along, across)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    corner = (np.arange(columns)[:, None] * (rows + 1) + np.arange(rows)).ravel()
    faces = np.stack([corner, corner + rows + 1, corner + rows + 2, corner, corner + rows + 2, corner + 1], -1)
    pictures = [images.encode_png(picture.swapaxes(0, 1)) for picture in textures(texture).values()]  # u along the rows
    blobs = [points.astype("<f4"), normals.astype("<f4"), uv.astype("<f4"), faces.astype("<u4")]
    parts = [blob.tobytes() for blob in blobs] + pictures
    path.write_bytes(_glb(_description(parts, points, faces.size, len(pictures)), parts))


def _description(parts: list[bytes], points: np.ndarray, indices: int, pictures: int) -> dict[str, Any]:
    offsets = np.cumsum([0] + [len(part) + -len(part) % 4 for part in parts])
    views = [
        {"buffer": 0, "byteOffset": int(start), "byteLength": len(part)}
        for start, part in zip(offsets[:-1], parts, strict=True)
    ]
    count = len(points)
    low, high = points.astype("<f4").min(0).tolist(), points.astype("<f4").max(0).tolist()
    accessor = functools.partial(dict, componentType=FLOAT, count=count)
    return {
        "asset": {"version": "2.0"},
        "buffers": [{"byteLength": int(offsets[-1])}],
        "bufferViews": views,
        "accessors": [
            accessor(bufferView=0, type="VEC3", min=low, max=high),
            accessor(bufferView=1, type="VEC3"),
            accessor(bufferView=2, type="VEC2"),
            {"bufferView": 3, "componentType": UINT, "count": indices, "type": "SCALAR"},
        ],
        "images": [{"bufferView": 4 + number, "mimeType": "image/png"} for number in range(pictures)],
        "textures": [{"source": number} for number in range(pictures)],
        "materials": [
            {
                "pbrMetallicRoughness": {"baseColorTexture": {"index": 0}, "metallicRoughnessTexture": {"index": 1}},
                "normalTexture": {"index": 2},
            }
        ],
        "meshes": [
            {"primitives": [{"attributes": {"POSITION": 0, "NORMAL": 1, "TEXCOORD_0": 2}, "indices": 3, "material": 0}]}
        ],
        "nodes": [{"mesh": 0, "name": "knot"}],
        "scenes": [{"nodes": [0]}],
        "scene": 0,
    }


def _glb(description: dict[str, Any], parts: list[bytes]) -> bytes:
    """Binary glTF 2.0: a header, a JSON chunk padded with blanks, a binary chunk padded with zeros."""
    text = json.dumps(description).encode()
    text += b" " * (-len(text) % 4)
    body = b"".join(part + b"\0" * (-len(part) % 4) for part in parts)
    header = struct.pack("<3I", GLB, 2, 12 + 8 + len(text) + 8 + len(body))
    chunks = struct.pack("<2I", len(text), JSON_CHUNK) + text + struct.pack("<2I", len(body), BIN_CHUNK) + body
    return header + chunks


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/_heavy.py FILE.glb")
    write_glb(Path(sys.argv[1]))
