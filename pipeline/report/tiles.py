"""Objects that a page shows: their choice, pictures small enough to embed, poses and facts."""

from __future__ import annotations

import base64
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import cameras, images
from pipeline.storage.object_table import objects_told
from pipeline.storage.shards import Rows, read_object, read_objects

THUMB_WIDTH = 128  # pixels; smaller pictures are embedded as they are stored
STRIP_OBJECTS, STRIP_VIEWS = 64, 32  # objects with several views embedded (others: one), and views of each
OUTSTANDING = ("coverage", "contrast", "black", "polygons")  # facts whose extremes people who judge a run want to see
SHEET_VIEWS = 12  # most views in a row of the PNG
POSES = 256  # most poses per object
IMAGE_BYTES = 6_600_000  # bytes of all pictures before base64, for a page below 10 MB
FALLBACKS = (
    (128, 85),
    (128, 70),
    (96, 70),
    (64, 70),
    (48, 60),
)  # (width, JPEG quality) tried in turn until a strip fits


def make_tiles(paths: list[Path], counts: dict[str, int], objects: int) -> list[dict[str, Any]]:
    """Tiles of `objects` objects: of more, a quarter that stand out, then others spread evenly over the shards.

    Of these, the first ones of each shard, so that little more is read. why: what an object stands out by, or "".
    """
    apart = outstanding(paths, objects // 4) if objects < sum(counts.values()) else {}
    wanted = _wanted(paths, counts, objects - len(apart))
    total = sum(wanted.values()) + len(apart)
    strips = set(_spread(total, STRIP_OBJECTS))
    budget = IMAGE_BYTES / max(1, len(strips) + (total - len(strips)) / STRIP_VIEWS)
    tiles: list[dict[str, Any]] = []

    def add(path: Path, rows: Rows, why: str = "") -> None:
        strip = STRIP_VIEWS if len(tiles) in strips else 1
        tiles.append(_tile(rows, path.stem, budget, strip) | {"why": why})

    for (path, group), why in apart.items():
        add(path, read_object(path, group), why)
    for path, count in wanted.items():
        others = (rows for group, rows in enumerate(read_objects(path)) if (path, group) not in apart)
        for rows in itertools.islice(others, count):
            add(path, rows)
    return tiles


def outstanding(paths: list[Path], count: int) -> dict[tuple[Path, int], str]:
    """Objects at either end of OUTSTANDING: (shard, row group) -> by what; at most `count`, of shards whose footers tell."""
    places: list[tuple[Path, int]] = []
    values: dict[str, list[float | None]] = {name: [] for name in OUTSTANDING}
    for path in paths if count else []:
        facts = objects_told(path)
        of = len(facts.get("uid", []))
        places += [(path, group) for group in range(of)]
        for name, known in values.items():
            known += facts.get(name, [None] * of)
    ranked = []
    for name, known in values.items():
        there = sorted((value, at) for at, value in enumerate(known) if value is not None)
        if there and there[0][0] < there[-1][0]:
            ranked += [(f"least {name}", iter(there)), (f"most {name}", reversed(there))]
    found: dict[tuple[Path, int], str] = {}
    for what, ends in itertools.cycle(ranked):
        if len(found) >= min(count, len(places)):
            break
        value, at = next(((value, at) for value, at in ends if places[at] not in found), (0.0, -1))
        if at >= 0:
            found[places[at]] = f"{what}: {value:,}" if isinstance(value, int) else f"{what}: {value:.3g}"
    return found


def make_sheet(paths: list[Path], counts: dict[str, int], objects: int, width: int | None = None) -> np.ndarray:
    """Picture with a row per object: its first views side by side, as they are stored, or at most `width` pixels wide each.

    Objects whose pictures have another shape than the first one's are left out.
    """
    wanted = _wanted(paths, counts, objects)
    picked = [rows for path, count in wanted.items() for rows in itertools.islice(read_objects(path), count)]
    picked = [rows for rows in picked if rows.hw == picked[0].hw]
    pixels = [[images.decode(jpeg) for jpeg in rows.jpegs[:SHEET_VIEWS]] for rows in picked]
    if width and picked and picked[0].hw[1] > width:
        pixels = [[images.srgb8(_resize(images.linear(one), width)) for one in row] for row in pixels]
    return images.contact_sheet(pixels)


def _wanted(paths: list[Path], counts: dict[str, int], objects: int) -> Counter[Path]:
    """Number of objects to take from each shard, `objects` in all if there are enough."""
    owners = [path for path in paths for _ in range(counts[path.stem])]
    return Counter(owners[i] for i in _spread(len(owners), objects))


def _spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices below `count`, evenly, with the first and (from two on) the last."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, wanted)).round()}) if count else []


def _tile(rows: Rows, shard: str, budget: float, strip: int) -> dict[str, Any]:
    """Description of an object with pictures of `strip` views as base64 JPEG."""
    made = described(rows, shard)
    pictured = [made["views"][i] for i in _spread(len(made["views"]), strip)]
    jpegs = _thumbnails([rows.jpegs[i] for i in pictured], budget * strip / STRIP_VIEWS, rows.hw)
    return made | {"jpegs": {view: base64.b64encode(jpeg).decode() for view, jpeg in zip(pictured, jpegs, strict=True)}}


def described(rows: Rows, shard: str) -> dict[str, Any]:
    """Object in the form that the pages' scripts read, without pictures: facts, and poses as the first three rows of c2w.

    focus: the point that the cameras of a capture look at, None where that is the origin, and for objects whose box is known.
    times: of each of the poses, None where it is not known; [] of what does not move.
    """
    bounds = _bounds(rows.meta)
    kept = _spread(len(rows.jpegs), POSES)
    k = rows.intrinsics[kept]
    plain, nested = _facts_of_object(rows)
    return {
        "uid": rows.uid,
        "shard": shard,
        "source": rows.source,
        "caption": rows.caption,
        "hw": list(rows.hw),
        "count": len(rows.jpegs),
        "facts": plain,
        "more": nested,
        "bounds": bounds,
        "focus": None if bounds else _focus(rows.c2w),
        "views": kept,
        "times": [rows.times[view] for view in kept] if rows.times and rows.moves else [],
        "c2w": _numbers(rows.c2w[kept, :3].reshape(-1, 12)),
        "ortho": rows.projection == "ortho",
        "k": _numbers(k[:1] if (k == k[0]).all() else k),
    }


def _numbers(values: np.ndarray) -> list[Any]:
    """Round to four decimals, a tenth of a pixel on any screen. NaN becomes 0: JSON has no NaN, and `verify` reports it."""
    return list(np.round(np.nan_to_num(values.astype(float)), 4).tolist())


def _bounds(meta: dict[str, Any]) -> list[Any] | None:
    """Box [low, high] of the object in the cameras' world; None if its facts hold no original box and transform."""
    try:
        raw = np.array(meta["raw_bounds"], float).reshape(2, 3)
        transform = np.array(meta["transform"], float).reshape(4, 4)
    except (KeyError, TypeError, ValueError):
        return None
    corners = np.array(list(itertools.product(*raw.T))) @ transform[:3, :3].T + transform[:3, 3]
    return _numbers(np.array([corners.min(0), corners.max(0)])) if np.isfinite(corners).all() else None


def _focus(c2w: np.ndarray) -> list[Any] | None:
    sound = c2w[np.isfinite(c2w).all((1, 2))].astype(float)
    point = cameras.looked_at(sound) if len(sound) else np.zeros(3)
    return None if np.linalg.norm(point) <= cameras.NEAR_ORIGIN else _numbers(point)


def _facts_of_object(rows: Rows) -> tuple[list[tuple[str, str]], str]:
    """(label, text) of the facts that are one value, and the others as JSON."""
    plain = [("license", rows.license or "not recorded")]
    nested = {}
    for name, value in sorted(rows.meta.items(), key=lambda pair: (pair[0] != "polygons", pair[0])):
        if isinstance(value, list | dict):
            nested[name] = value
        else:
            text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
            plain.append((name.replace("_", " "), {"True": "yes", "False": "no"}.get(text, text)))
    return plain, json.dumps(nested) if nested else ""


def _thumbnails(jpegs: list[bytes], budget: float, hw: tuple[int, int]) -> list[bytes]:
    """JPEG files as stored if small enough, else re-encoded until all together fit `budget` bytes."""
    if hw[1] <= THUMB_WIDTH and sum(map(len, jpegs)) <= budget:
        return jpegs
    linear = [_shrink(jpeg, min(THUMB_WIDTH, hw[1])) for jpeg in jpegs]
    small: list[bytes] = []
    for width, quality in FALLBACKS:
        small = [_encode(light, min(width, hw[1]), quality) for light in linear]
        if sum(map(len, small)) <= budget:
            break
    return small


def _shrink(jpeg: bytes, width: int) -> np.ndarray | None:
    """Decode a JPEG to linear light, `width` pixels wide. None for a broken file."""
    try:
        pixels = images.decode(jpeg)
    except OSError:
        return None
    return _resize(images.linear(pixels), width)


def _encode(light: np.ndarray | None, width: int, quality: int) -> bytes:
    """Encode linear light as JPEG; nothing for None: the page then shows a broken picture, as the shard holds one."""
    return b"" if light is None else images.encode_jpeg(images.srgb8(_resize(light, width)), quality)


def _resize(light: np.ndarray, width: int) -> np.ndarray:
    return images.resize_area(light, (max(1, round(width * light.shape[0] / light.shape[1])), width))
