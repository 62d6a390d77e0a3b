"""Helpers of the sources of posed views: reading cameras that others wrote, and refusing those that make no sense."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.config.views import ImportConfig
from pipeline.core import images
from pipeline.core.errors import Skip, UserError
from pipeline.core.records import Fetched, Item
from pipeline.download.fetch import Fetcher
from pipeline.formats import archives, bundles
from pipeline.formats.bundles import SceneOf

# names that say nothing: folders inside of a capture, and numbers of models
NAMELESS = re.compile(r"\d{1,3}|sparse|dense|colmap|colmap_\w+|distorted|images|input|data|mvs")


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
    """Path of a scene's folder relative to the input; if the input itself is the scene, its name and of what is above it as
    much as says which scene it is: flower/sparse/0 is flower.
    """
    if folder != root:
        return folder.relative_to(root).as_posix()
    named = (one.name for one in (folder.absolute(), *folder.absolute().parents))
    return next((name for name in named if name and not NAMELESS.fullmatch(name)), folder.absolute().name or "scene")


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


def json_map(path: Path, lacks: str, hint: str) -> dict[str, str]:
    """Read a JSON file that maps names to names. lacks: what the UserError says of a file that does not ("is no map ...")."""
    try:
        return {str(key): str(value) for key, value in json.loads(path.read_bytes()).items()}
    except (ValueError, RecursionError, AttributeError) as error:
        raise UserError(f"{path} {lacks}: {error}", hint) from None
