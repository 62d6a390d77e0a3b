"""RealEstate10K, ACID and DL3DV as pixelSplat packs them (Charatan et al., arXiv 2312.12337): chunks of about 100 MB.

[train/ or test/]NNNNNN.torch is a list of {url, timestamps int64 (N,), cameras float32 (N, 18), images: N files as uint8,
key}; index.json beside it maps key -> file. A camera is fx fy cx cy, as shares of width and height with the image's corners
at 0 and 1, then two zeros, then a 3x4 world-to-camera matrix with OpenCV axes. See dcharatan/real_estate_10k_tools.
"""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.views import ImportConfig
from pipeline.core import cameras
from pipeline.core.errors import Skip, UserError
from pipeline.core.records import Item, Posed, item_rng, video_of
from pipeline.download.fetch import Fetcher
from pipeline.formats import bundles, pickles
from pipeline.poses import pixelsplat
from pipeline.sources import posed_views

SAYS = "RealEstate10K, ACID or DL3DV in pixelSplat's chunks"
HOWTO = "--source pixelsplat --input FOLDER (with train/ and test/, or one of them)"


def items(cfg: ImportConfig, seed: int, net: Fetcher | None = None) -> Iterator[Item]:
    """One item per clip, chunk by chunk in an order that the seed gives. uid: the clip's key.

    A key that a second folder has too gets the folder's name. UserError where there is neither index nor chunk.
    """
    return bundles.never_empty(_items(cfg, seed), f"{cfg.input} holds no index.json and no .torch file", HOWTO)


def _items(cfg: ImportConfig, seed: int) -> Iterator[Item]:
    root = posed_views.input_of(cfg)
    if root.is_file():
        yield from (Item(key, cfg.source, url=str(root)) for key in _keys(root))
        return
    seen: set[str] = set()
    for folder in sorted({path.parent for pattern in ("*", "*/*", "*/*/*") for path in root.glob(f"{pattern}.torch")}):
        chunks = _index(folder) if (folder / "index.json").is_file() else None
        names = sorted(chunks) if chunks is not None else sorted(path.name for path in folder.glob("*.torch"))
        for i in item_rng(seed, folder.name, "order").permutation(len(names)):
            path = folder / names[i]
            for key in _keys(path) if chunks is None else sorted(chunks[names[i]]):
                split = posed_views.uid_of(folder, root) if folder != root else ""
                uid = f"{split}/{key}" if key in seen else key
                seen.add(key)
                yield Item(uid, cfg.source, url=str(path), extra={"key": key, "split": split})


def group(item: Item, cfg: ImportConfig) -> str:
    """Key of the items that train and val must not share: clips of one video, which the chunk names. Reads the chunk."""
    path = Path(item.url)
    with contextlib.suppress(Skip, OSError):  # `load` says what is wrong
        url = _clips(path, path.stat().st_mtime_ns).get(bundles.key_of(item), {}).get("url")
        return video_of(url) if isinstance(url, str) else item.uid
    return item.uid


def _index(folder: Path) -> dict[str, list[str]]:
    """Read index.json as a map from a chunk's name to its keys. Raises UserError."""
    lacks, hint = "is no map from keys to chunks", "without it, chunks are read"
    chunks: dict[str, list[str]] = defaultdict(list)
    for key, name in posed_views.json_map(folder / "index.json", lacks, hint).items():
        chunks[name].append(key)
    return chunks


def _keys(path: Path) -> list[str]:
    try:
        return list(_clips(path, path.stat().st_mtime_ns))
    except Skip as error:
        raise UserError(f"{path}: {error}", "move it away, or download it again") from None


@functools.lru_cache(maxsize=2)
def _clips(path: Path, mtime_ns: int) -> dict[str, dict[str, Any]]:
    """Map key -> record of one chunk; cached, since its clips follow each other. Raises Skip as pickles.read does."""
    records = pickles.read(path)
    if not isinstance(records, list) or not all(isinstance(record, dict) and "key" in record for record in records):
        raise Skip("broken_torch_file", f"{path.name} is no list of clips with a key")
    return {str(record["key"]): record for record in records}


def load(item: Item, path: Path, cfg: ImportConfig) -> Posed:
    """Read one clip. Raises Skip: missing (chunk or clip), escapes_folder, unsafe_pickle, broken_torch_file, no_images,
    no_cameras, count_mismatch, bad_cameras, broken_image.
    """
    root = posed_views.input_of(cfg).resolve()
    if not path.resolve().is_relative_to(root):
        raise Skip("escapes_folder", f"index.json names {path}")
    if not path.is_file():
        raise Skip("missing", f"{path} is not there")
    clip = _clips(path, path.stat().st_mtime_ns).get(bundles.key_of(item))
    if clip is None:
        raise Skip("missing", f"{path.name} has no clip {bundles.key_of(item)}")
    pictures, rows = _fields(clip)
    chosen = cameras.spread(len(pictures), cfg.scene.views)
    files = [pictures[view].tobytes() for view in chosen]
    c2w, fxfycxcy = pixelsplat.cameras_of(rows[chosen], np.array(posed_views.sizes_of(files), np.float64))
    meta = {"views_found": len(pictures), "split": item.extra.get("split", "")}
    if isinstance(clip.get("url"), str):
        meta["video"] = clip["url"]
    return Posed(files, c2w, fxfycxcy, meta=meta, names=[f"frame {view}" for view in chosen])


def _fields(clip: dict[str, Any]) -> tuple[list[np.ndarray], np.ndarray]:
    """Return a clip's encoded images and its cameras, (N, 18) float64. Raises Skip."""
    pictures, rows = clip.get("images"), clip.get("cameras")
    if not isinstance(pictures, list) or not pictures:
        raise Skip("no_images", "a clip without images")
    if not all(isinstance(data, np.ndarray) and data.ndim == 1 and data.dtype == np.uint8 for data in pictures):
        raise Skip("broken_image", "images that are not files as bytes")
    if not isinstance(rows, np.ndarray):
        raise Skip("no_cameras", "a clip without cameras")
    if rows.ndim != 2 or rows.shape[1] != 18:
        raise Skip("bad_cameras", f"cameras of shape {rows.shape} instead of (N, 18)")
    if len(rows) != len(pictures):
        raise Skip("count_mismatch", f"{len(pictures)} images and {len(rows)} cameras")
    rows = rows.astype(np.float64)
    if not np.isfinite(rows).all():
        raise Skip("bad_cameras", "cameras with numbers that are none")
    if rows[:, 4:6].any():
        raise Skip("unsupported_camera", "numbers where RealEstate10K has zeros, which nobody documents")
    return pictures, rows
