"""Helpers of the sources of posed views: reading cameras that others wrote, and refusing those that make no sense."""

from __future__ import annotations

import io
import itertools
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import sources
from pipeline.config.views import ImportConfig
from pipeline.core import images
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.core.records import LEAST_SHARE, Fetched, Item, Posed
from pipeline.core.text import reasons_text
from pipeline.download import huggingface
from pipeline.download.fetch import Fetcher
from pipeline.download.ranges import NoRanges
from pipeline.formats import archives, bundles
from pipeline.formats.bundles import SceneOf
from pipeline.poses.shots import off_background

BUFFER = 1 << 20  # bytes that are fetched of a zip at once
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)
# names that say nothing by themselves: folders inside of a capture, numbers, and what many people call a folder
INSIDE = re.compile(r"sparse|dense|colmap|colmap_\w+|distorted|mvs")
SHAPES = {"depth": (), "normals": (3,), "albedo": (3,)}  # of a pixel's values
# reasons that leave a view out
UNREADABLE = ("broken_image", "layer_missing")
OF_ONE_VIEW = (*UNREADABLE, "image_missing", "bad_cameras", "no_cameras", "listed_twice")
NAMED, NAMED_LENGTH = 8, 200  # views left out that `meta` names, and characters about each
SAME_LEVELS, MOSTLY = 8, 0.95  # of 255; share of the pixels around an object that say it stands on one colour
UNKNOWN = (1, 1)  # size of a picture whose header cannot be read
NAMELESS = re.compile(rf"\d{{1,3}}|images|input|data|{INSIDE.pattern}")


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


def asked_for(found: Iterator[Item], cfg: ImportConfig, where: str, howto: str) -> Iterator[Item]:
    """Pass on the items that --uids allows. where: what was looked through. UserError, with its hint `howto`, if none is left."""
    names = sources.asked_for(cfg)
    wanted = (item for item in found if names is None or item.uid in names)
    return bundles.never_empty(wanted, f"{where} holds no object that was asked for", howto)


def zips_on_the_hub(
    repo: str, name: str, numbers: Sequence[int], net: Fetcher | None
) -> Iterator[tuple[int, str, zipfile.ZipFile]]:
    """Yield (number, URL, opened zip) of those numbered files of a repository that are there. name: a format with one place.

    Only what is read of a zip is fetched. UserError if the Hub does not answer.
    """
    assert net is not None
    for number in numbers:
        url = huggingface.url_of(repo, name.format(number))
        try:
            with opened_zip(url, net) as archive:
                yield number, url, archive
        except Skip as error:
            if error.reason != "missing":  # not all need be there
                raise UserError(f"{url} cannot be read: {error}", "give a copy by --input") from None
        except (Retry, NoRanges, *BROKEN_ZIP) as error:
            raise UserError(f"{url} cannot be read: {error}", "the same command goes on later") from None


def opened_zip(url: str, net: Fetcher) -> zipfile.ZipFile:
    """Open a zip of the Hub, of which only what is read is fetched. Raises Skip, Retry, NoRanges, BROKEN_ZIP."""
    address = huggingface.parse(url)
    assert address is not None
    return zipfile.ZipFile(io.BufferedReader(huggingface.opened(net, *address), BUFFER))


def out_of_zip(
    items: Sequence[Item], net: Fetcher, extract: Callable[[Item, zipfile.ZipFile], Path]
) -> Iterator[Fetched]:
    """Implement `fetch_many` for items of one zip of the Hub, which item.url names. extract: brings an item; Skip, Retry."""
    try:
        archive = opened_zip(items[0].url, net)
    except (Skip, Retry) as failure:
        yield from ((item, failure) for item in items)
        return
    except (NoRanges, *BROKEN_ZIP) as error:
        yield from ((item, Retry("connection", str(error))) for item in items)
        return
    with archive:
        for item in items:
            try:
                yield item, extract(item, archive)
            except (Skip, Retry) as failure:
                yield item, failure


def member_of(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """Read a file of a zip. Raises Skip: missing, too_large (more than `most` bytes), broken_archive."""
    try:
        info = archive.getinfo(name)
        if info.file_size > most:
            raise Skip("too_large", f"{name} has {info.file_size} bytes")
        return archive.read(info)
    except KeyError:
        raise Skip("missing", name) from None
    except BROKEN_ZIP as error:
        raise Skip("broken_archive", f"{name}: {error}") from None


def uid_of(folder: Path, root: Path, ended: Container[str] = ()) -> str:
    """Path of a scene's folder relative to the input; if the input itself is the scene, its name and of what is above it as
    much as says which scene it is: flower/sparse/0 is flower, but captures/0 is captures/0.

    ended: uids of the run; those of earlier versions, which called captures/0 captures, stay.
    """
    if folder != root:
        return folder.relative_to(root).as_posix()
    names = [name for name in folder.absolute().parts if name != "/"]
    said = max((place for place, name in enumerate(names) if not NAMELESS.fullmatch(name)), default=None)
    if said is None:
        return folder.absolute().name or "scene"
    below = list(itertools.takewhile(lambda name: not INSIDE.fullmatch(name), names[said + 1 :]))
    while below and not below[-1].isdecimal():  # images, data and the like say nothing
        below.pop()
    return names[said] if names[said] in ended else "/".join((names[said], *below))


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


def sizes_of(pictures: Sequence[bytes]) -> list[tuple[int, int]]:
    """(height, width) of pictures by their headers; UNKNOWN of those without one: `whole` leaves these out."""
    found = []
    for data in pictures:
        try:
            found.append(images.size_of(data))
        except OSError:
            found.append(UNKNOWN)
    return found


def numbers(data: bytes, name: str, channels: int) -> np.ndarray:
    """Read a picture of numbers (H, W, channels), or (H, W) for one channel, float32 as stored. Raises Skip("broken_image")."""
    try:
        found = images.decode_numbers(data)
    except OSError as error:
        raise Skip("broken_image", f"{name}: {error}") from None
    if found.shape[2:] != ((channels,) if channels > 1 else ()):
        raise Skip("broken_image", f"{name}: {found.shape} numbers, where {channels} of each pixel are needed")
    return found.astype(np.float32)


# ---- views that are left out


def check_readable(data: bytes, name: str, layer: Callable[[str], np.ndarray] | None, layers: Sequence[str]) -> None:
    """Raise Skip (UNREADABLE) where a picture does not decode, or one of the layers cannot be had as large as it is."""
    hw = colours(data, name).shape[:2]
    for kind in layers:
        beside(layer, kind, name, hw)


def beside(layer: Callable[[str], np.ndarray] | None, kind: str, name: str, hw: tuple[int, ...]) -> np.ndarray:
    """Values of the pixels of the picture `name`, of size hw, see Posed.layer. Raises Skip: layer_missing, broken_image."""
    if layer is None:
        raise Skip("layer_missing", f"{kind}: there is none; without --{kind} the scene is taken")
    values = layer(kind)
    if values.shape != (*hw, *SHAPES[kind]):
        raise Skip("broken_image", f"{name}: {kind} of shape {values.shape} for {hw[1]}x{hw[0]} pixels")
    return values


def whole(posed: Posed, layers: Sequence[str]) -> Posed:
    """Leave out the views of a scene whose picture or layers cannot be read. Raises Skip where too few are left."""
    left: dict[int, Skip] = {}
    for view, data in enumerate(posed.images):
        try:
            check_readable(data, posed.name(view), posed.of(view), layers)
        except Skip as failure:
            if failure.reason not in UNREADABLE:
                raise
            left[view] = failure
    check_enough(left, len(posed.images), "it")
    facts = left_out_facts(left, posed.meta.get("views_found", len(posed.images)))
    part = posed.part([view for view in range(len(posed.images)) if view not in left])
    return replace(part, meta=posed.meta | facts)


def check_enough(left: Mapping[int, Skip], count: int, where: str) -> None:
    """Raise Skip where too few of the views of a scene stay, with the reason of most of those that are left out."""
    if len(left) < count and count - len(left) >= LEAST_SHARE * count:
        return
    reasons = Counter(failure.reason for failure in left.values())
    reason = max(reasons, key=lambda name: reasons[name])
    first = next(failure for failure in left.values() if failure.reason == reason)
    what = "pictures are not there" if list(reasons) == ["image_missing"] else "views cannot be used"
    why = f"{reasons_text(reasons)}; " if len(reasons) > 1 else ""
    said = f"{len(left)} of {count} {what} in {where} ({why}the first: {first.detail})"
    raise Skip(reason, f"{said}; at least {LEAST_SHARE:.0%} must be")


def left_out_facts(left: Mapping[int, Skip], count: int) -> dict[str, Any]:
    """Facts for meta: views_found; of those of `count` that are left out their number, why, and the first of them."""
    facts: dict[str, Any] = {"views_found": count - len(left)}
    if left:
        some = [failure.detail[:NAMED_LENGTH] for failure in left.values()][:NAMED]
        reasons = dict(Counter(failure.reason for failure in left.values()))
        facts |= {"views_missing": len(left), "left_out": reasons, "left_out_views": some}
    return facts


# ---- pixels


def colours(data: bytes, name: str) -> np.ndarray:
    """Read a picture as sRGB bytes (H, W, 3), whatever its transparency. Raises Skip("broken_image")."""
    try:
        return images.decode_straight(data)[..., :3]
    except OSError as error:
        raise Skip("broken_image", f"{name}: {error}") from None


def masked(data: bytes, name: str, mask: bytes) -> bytes:
    """Give an opaque picture the transparency that its mask says, white where the object covers; others stay as they are.

    What its background added to edges is taken away, if that is of one colour. Raises Skip("broken_image").
    """
    try:
        straight = images.decode_straight(data)
    except OSError as error:
        raise Skip("broken_image", f"{name}: {error}") from None
    if straight.shape[2] == 4:
        return data
    coverage = colours(mask, f"the mask of {name}").max(-1)
    if coverage.shape != straight.shape[:2]:
        (height, width), hw = coverage.shape, straight.shape[:2]
        raise Skip("broken_image", f"the mask of {name} is {width}x{height} pixels, the picture {hw[1]}x{hw[0]}")
    around = straight[coverage == 0].astype(int)
    behind = np.median(around, 0).astype(int) if len(around) else np.full(3, 255)
    plain = len(around) and (np.abs(around - behind).max(-1) <= SAME_LEVELS).mean() > MOSTLY
    rgba = off_background(straight, coverage, behind.tolist()) if plain else np.dstack([straight, coverage])
    return images.encode_png(rgba, level=1)


def covered(data: bytes, name: str) -> np.ndarray:
    """Mask (H, W) of a picture's pixels that are not wholly transparent. Raises Skip("broken_image")."""
    try:
        straight = images.decode_straight(data)
    except OSError as error:
        raise Skip("broken_image", f"{name}: {error}") from None
    return np.asarray(straight[..., 3] > 0) if straight.shape[2] == 4 else np.ones(straight.shape[:2], bool)


def depths(values: np.ndarray, least: float = 0.0) -> np.ndarray:
    """Depth (H, W) float32: infinite where `values` are no numbers, or not above `least`."""
    return np.where(np.isfinite(values) & (values > least), values, np.inf).astype(np.float32)


def normals(vectors: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Normals (H, W, 3) float32 of length 1: 0 where nothing is `there` (H, W), or the vector has no direction."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    with np.errstate(all="ignore"):
        found = np.where(there[..., None] & (length > 1e-3), vectors / length, 0)
    return np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)


def json_map(path: Path, lacks: str, hint: str) -> dict[str, str]:
    """Read a JSON file that maps names to names. lacks: what the UserError says of a file that does not ("is no map ...")."""
    try:
        return {str(key): str(value) for key, value in json.loads(path.read_bytes()).items()}
    except (ValueError, RecursionError, AttributeError) as error:
        raise UserError(f"{path} {lacks}: {error}", hint) from None
