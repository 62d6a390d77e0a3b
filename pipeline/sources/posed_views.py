"""Helpers of the sources of posed views: reading cameras that others wrote, and refusing those that make no sense."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.views import ImportConfig
from pipeline.core import cameras, images
from pipeline.core.errors import Skip, UserError
from pipeline.core.records import Fetched, Item
from pipeline.download.fetch import Fetcher
from pipeline.formats import archives, bundles
from pipeline.formats.bundles import SceneOf

MAX_JSON = 64_000_000  # bytes
SMALLER = ("images_2", "images_4", "images_8")  # folders of copies that are smaller by this factor


def is_staged(cfg: ImportConfig) -> bool:
    """True if the input is a sequential archive, whose scenes have to be brought into folders first."""
    return cfg.input is not None and cfg.input.is_file() and archives.is_sequential(cfg.input)


def staged(
    items: Sequence[Item], folder_of: Callable[[Item], Path], net: Fetcher, scene_of: SceneOf
) -> Iterator[Fetched]:
    """Implement `fetch_many` for items of a sequential archive on this machine, which item.url names."""
    return bundles.Staging(Path(items[0].url), scene_of, net.disk_budget, folder_of).run(items)


def root_of(item: Item, path: Path) -> Path:
    """Folder that a scene's files may refer to: the scene's own."""
    return path


def input_of(cfg: ImportConfig) -> Path:
    """Path of --input. Raises UserError if --input was not given."""
    if cfg.input is None:
        raise UserError(f"--source {cfg.source} needs --input", "--input FOLDER")
    return cfg.input


def uid_of(folder: Path, root: Path) -> str:
    """Path of a scene's folder relative to the input; the input's name if the input itself is the scene."""
    relative = folder.relative_to(root).as_posix()
    return folder.absolute().name if relative == "." else relative


def paired(names: Sequence[str], suffix: str, no_image: str) -> list[str]:
    """Views of a scene that has VIEW.png and VIEW<suffix> of each; sorted, as `names` are. no_image: detail for no_images.

    Raises Skip: no_images, no_cameras, count_mismatch.
    """
    views, poses = ([name[: -len(end)] for name in names if name.endswith(end)] for end in (".png", suffix))
    if not views:
        raise Skip("no_images", no_image)
    if not poses:
        raise Skip("no_cameras", f"{len(views)} images and no {suffix} file")
    if views != poses:
        raise Skip("count_mismatch", f"{len(views)} images and {len(poses)} poses")
    return views


def hw_of(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) of a picture by its header. Raises Skip("broken_image")."""
    try:
        return images.size_of(data)
    except OSError as error:
        raise Skip("broken_image", f"{name}: {error}") from None


def inverted(w2c: np.ndarray) -> np.ndarray:
    """Invert w2c (V, 3 or 4, 4) -> c2w (V, 4, 4), keeping the axis convention. Raises Skip("bad_cameras")."""
    try:
        return np.asarray(np.linalg.inv(cameras.homogeneous(np.asarray(w2c)[:, :3])))
    except (np.linalg.LinAlgError, ValueError) as error:
        raise Skip("bad_cameras", f"poses that cannot be inverted: {error}") from None


def matrices(values: Sequence[Any]) -> np.ndarray:
    """Convert V matrices from JSON, 3x4 or 4x4 each -> (V, 4, 4) float64. Raises Skip("bad_cameras")."""
    try:
        rows = [np.asarray(value, np.float64) for value in values]
        if wrong := [row.shape for row in rows if row.shape not in ((3, 4), (4, 4))]:
            raise ValueError(f"a pose of shape {wrong[0]}")
        return np.stack([row if len(row) == 4 else cameras.homogeneous(row) for row in rows])
    except (ValueError, TypeError) as error:
        raise Skip("bad_cameras", str(error)) from None


def npy(data: bytes, name: str) -> np.ndarray:
    """Read a .npy file as float64, never pickled objects. Raises Skip("bad_cameras")."""
    try:
        return np.asarray(np.lib.format.read_array(io.BytesIO(data), allow_pickle=False), np.float64)
    except (ValueError, TypeError, EOFError, OSError, SyntaxError, MemoryError, OverflowError) as error:
        raise Skip("bad_cameras", f"{name}: {error}") from None


def json_map(path: Path, lacks: str, hint: str) -> dict[str, str]:
    """Read a JSON file that maps names to names. lacks: what the UserError says of a file that does not ("is no map ...")."""
    try:
        return {str(key): str(value) for key, value in json.loads(path.read_bytes()).items()}
    except (ValueError, RecursionError, AttributeError) as error:
        raise UserError(f"{path} {lacks}: {error}", hint) from None


def json_object(data: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON file that holds an object. Raises Skip("bad_cameras")."""
    if len(data) > MAX_JSON:
        raise Skip("bad_cameras", f"{name} is {len(data)} bytes long")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Skip("bad_cameras", f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Skip("bad_cameras", f"{name} holds no JSON object")
    return value


def number(record: Mapping[str, Any], name: str) -> float | None:
    """Get a finite number from a JSON object, None if absent. Raises Skip("bad_cameras")."""
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Skip("bad_cameras", f"{name} is {str(value)[:40]!r}, not a number")
    return float(value)


def focal(size: float, fov: float) -> float:
    """Focal length in pixels of a side of `size` pixels seen under `fov` radians. Raises Skip("bad_cameras")."""
    if not 0 < fov < math.pi:
        raise Skip("bad_cameras", f"a field of view of {fov:g} radians")
    return size / 2 / math.tan(fov / 2)


def fitted(fxfycxcy: np.ndarray, stated_hw: tuple[float, float], hw: tuple[int, int], name: str) -> np.ndarray:
    """Scale intrinsics (4,) from the stated size to the picture's size hw, which differs for smaller copies.

    Raises Skip("bad_cameras") if the aspect ratios differ by more than rounding.
    """
    sy, sx = hw[0] / stated_hw[0], hw[1] / stated_hw[1]
    if abs(sx - sy) > sx * (1.5 / min(hw) + 0.002):
        stated = f"{stated_hw[1]:g}x{stated_hw[0]:g}"
        raise Skip("bad_cameras", f"{name} is {hw[1]}x{hw[0]} pixels, its camera says {stated}")
    return np.asarray(fxfycxcy, np.float64) * [sx, sy, sx, sy]


def picture(name: str, folder: Path, roots: Sequence[Path]) -> Path:
    """Find the file that a camera file calls `name`, with or without suffix, or a smaller copy in images_2, _4 or _8.

    Raises Skip: escapes_folder, image_missing.
    """
    named = bundles.inside(name, folder, roots)
    head, _, rest = Path(name).as_posix().partition("/")
    copies = [bundles.inside(f"{smaller}/{rest}", folder, roots) for smaller in SMALLER if head == "images" and rest]
    for path in (named, *copies):
        for suffix in ("", ".png", ".jpg", ".jpeg", ".webp"):
            if os.path.isfile(whole := path.with_name(path.name + suffix)):  # False for names that no file system takes
                return whole
    raise Skip("image_missing", f"{name[:200]} in {folder}")
