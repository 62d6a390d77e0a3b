"""Layers of pictures that --aux predicts, from columns of the shards: depth, normals and alpha, as float16 numbers of a pixel.

Channels stand in the order of their names. depth: natural logarithm of the depth along the camera's axis, infinite where nothing
is; in another unit of the world only a constant is added. normals: in the camera's axes (OpenCV), 0 where nothing is: whatever
turns or moves a sample's world leaves them as they are. alpha: share of the pixel in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow.parquet as pq
import torch

from lvsm_train.config.parts import AUX, Layer
from lvsm_train.data.index import Files, Index, fill
from lvsm_train.data.shard_index import HINT, reading
from pipeline.core import images
from pipeline.core.errors import UserError
from pipeline.storage.shards import layer_of


def channels(names: Iterable[Layer]) -> int:
    """Numbers of a pixel that these layers have together."""
    return sum(AUX[name] for name in names)


def check_layers(index: Index, numbers: Iterable[int], names: Sequence[Layer]) -> None:
    """Raise UserError, with the flags to render with, if the shard of one of these objects lacks the column of a layer."""
    for which in sorted({int(index.path[number]) for number in numbers}):
        if lacking := [name for name in names if name not in index.layers[which]]:
            flags = " ".join(f"--{name}" for name in lacking)
            said = f"--aux {' '.join(lacking)}: {index.paths[which]} has no column of {' and none of '.join(lacking)}"
            raise UserError(
                said, f"render or import with {flags}, which frames of videos cannot have; or another --aux"
            )


def read_layers(index: Index, number: int, views: Sequence[int], names: Sequence[Layer], files: Files) -> np.ndarray:
    """Layers of some views of an object, (len(views), C, H, W) float16. Raises UserError if they cannot be read."""
    path, uid = index.paths[index.path[number]], index.uids[number]
    with reading(path):
        with pq.ParquetFile(path, metadata=files.footer(path), page_checksum_verification=True) as file:
            table = file.read_row_group(int(index.group[number]), list(names), use_threads=False).take(list(views))
        cells = {name: table[name].to_pylist() for name in names}
    height, width = index.stored_hw[number].tolist()
    c2w = index.c2w[index.of(number)][list(views)]
    try:
        decoded = {name: layer_of(name, cells[name], (height, width)) for name in names}
        made = [_prepared(name, values, (height, width), index.hw, c2w) for name, values in decoded.items()]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: {' or '.join(names)} of {uid} is missing or broken: {error}", HINT) from None
    return np.concatenate(made, 1)


def decode_layers(
    index: Index, numbers: Sequence[int], names: Sequence[Layer], device: torch.device, workers: int, quiet: bool = True
) -> torch.Tensor:
    """Layers of all views of these objects, (M, C, H, W) float16 on a device; those of other objects hold anything.

    Raises UserError if one cannot be read.
    """
    kept = torch.empty((len(index.c2w), channels(names), *index.hw), dtype=torch.float16, device=device)
    files = Files()

    def read(number: int, out: np.ndarray) -> None:
        out[:] = read_layers(index, number, range(index.views(number)), names, files)

    fill(kept, index, numbers, read, workers, "" if quiet else f"decoding {' and '.join(names)}")
    return kept


def _prepared(
    name: Layer, values: np.ndarray, stored_hw: tuple[int, int], hw: tuple[int, int], c2w: np.ndarray
) -> np.ndarray:
    """Channels (N, C, H, W) float16 for pictures of size hw, from a layer of N views as it is stored. c2w: (N, 4, 4).

    Raises ValueError for values that are no layer of pictures of size stored_hw.
    """
    if values.size != len(c2w) * stored_hw[0] * stored_hw[1] * AUX[name] or values.shape[1:3] != stored_hw:
        raise ValueError(f"{name} of shape {values.shape[1:]}, and pictures of {stored_hw}")
    values = values.reshape(*values.shape[:3], -1)
    if name == "alpha":
        values = np.stack([images.resize_area(one / np.float32(255), hw) for one in values])
    elif values.shape[1:3] != hw:  # as the renderer makes smaller ones: never mixed across edges
        values = np.stack([images.resize_nearest(one, hw) for one in values])
    if name == "normals":
        values = np.where(np.isfinite(values), values, 0)
        values = (values.reshape(len(values), -1, 3) @ c2w[:, :3, :3]).reshape(values.shape)
    if name == "depth":
        there = np.isfinite(values) & (values > 0)
        values = np.where(there, np.log(np.where(there, values, 1)), np.inf)
    return values.transpose(0, 3, 1, 2).astype(np.float16)
