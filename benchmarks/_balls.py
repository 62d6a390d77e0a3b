"""Shards of procedural pictures, made in seconds without Blender: for tests of the trainer, and for machines without data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline.core import cameras, images
from pipeline.core.records import Item, Scene, Views
from pipeline.storage.writer import ShardWriter


def balls(folder: Path, objects: int, views: int = 12, res: int = 32, **facts: Any) -> Path:
    """Shards of three coloured balls on white each, drawn exactly: `objects` of them, a fifth of these held out.

    res: width of the pictures in pixels. facts: metadata.
    """
    hw = res, res
    writer = ShardWriter(folder, (res,), (), {"config_hash": "0"} | facts, 1e9)
    k = cameras.intrinsics(50.0, hw)
    pixels = np.arange(res) + 0.5
    local = np.concatenate([(np.stack(np.meshgrid(pixels, pixels), -1) - k[2:]) / k[:2], np.ones((*hw, 1))], -1)
    local /= np.linalg.norm(local, axis=-1, keepdims=True)
    for number in range(objects):
        rng = np.random.default_rng(number)
        u, v, w = rng.random((views, 3)).T
        c2w = cameras.look_at(cameras._sphere(u, v, 2.05 + 0.5 * w)).astype(np.float32)
        centres, radii, colours = (
            rng.uniform(-0.25, 0.25, (3, 3)),
            rng.uniform(0.12, 0.25, 3),
            rng.uniform(0, 0.9, (3, 3)),
        )
        jpegs = [images.encode_jpeg(_picture(pose, local, centres, radii, colours), 95) for pose in c2w]
        seen = {res: Views(jpegs, np.tile(k, (views, 1)).astype(np.float32), hw)}
        writer.add(Scene(Item(f"ball-{number}", "test"), c2w, seen, {}), "val" if number % 5 == 4 else "train", 0)
    writer.close("train")
    writer.close("val")
    return folder


def _picture(
    pose: np.ndarray, local: np.ndarray, centres: np.ndarray, radii: np.ndarray, colours: np.ndarray
) -> np.ndarray:
    """Picture (H, W, 3) from a camera. local: directions of its pixels (H, W, 3)."""
    origin, direction = pose[:3, 3], local @ pose[:3, :3].T
    picture, nearest = np.ones(local.shape), np.full(local.shape[:2], np.inf)
    for centre, radius, colour in zip(centres, radii, colours, strict=True):
        b = direction @ (origin - centre)
        root = b * b - ((origin - centre) @ (origin - centre) - radius**2)
        depth = np.where(root > 0, -b - np.sqrt(np.maximum(root, 0)), np.inf)
        hit = depth < nearest
        normal = (origin + depth[..., None] * direction - centre) / radius
        shade = 0.6 + 0.4 * np.nan_to_num(normal[..., 2:], posinf=0, neginf=0)
        picture, nearest = np.where(hit[..., None], colour * shade, picture), np.minimum(depth, nearest)
    return np.round(picture * 255).astype(np.uint8)
