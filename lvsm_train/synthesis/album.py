"""Photos with their cameras, of a capture or of an object in shards, and how they become pictures of one size."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from lvsm_train.config.shapes import HW
from lvsm_train.config.synthesis import SynthesisConfig
from lvsm_train.data.shard_index import shares_of_time
from pipeline import sources
from pipeline.config.source_table import AUTO, SOURCES
from pipeline.config.views import ImportConfig, PosedConfig
from pipeline.core import cameras, images
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.core.records import HELD_OUT, Item, Posed
from pipeline.core.text import quoted
from pipeline.export.runs import intact, opened
from pipeline.poses.capture import check_intrinsics
from pipeline.sources import posed_views
from pipeline.sources.captures import recognised
from pipeline.storage.shards import TIME, find_shards, subject_of
from pipeline.worker import posed as importing
from pipeline.worker import silhouettes

LISTED = 1000  # captures of a folder that are looked through
CHECKED = 24  # photos whose cameras are checked, besides the inputs
WHERE = "docs/sources.md shows what belongs into a capture"


@dataclass(frozen=True)
class Album:
    """Photos of one object or scene. subject: "objects", "clips", or "" where nothing says it. says: as what a capture was
    read. notes: warnings for the user."""

    name: str
    posed: Posed
    subject: str = ""
    says: str = ""
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.posed.images)

    @property
    def c2w(self) -> np.ndarray:
        """Poses (V, 4, 4) float64, in the world of the photos."""
        return np.asarray(self.posed.c2w, np.float64)

    @property
    def time(self) -> np.ndarray:
        """Times (V,) float32 of the photos: from 0, of the first, to 1, of the last; all 0 where nothing is said."""
        times = np.array(self.posed.times or [np.nan] * len(self), np.float64)  # None becomes NaN
        return shares_of_time(times, np.array([len(self)]))

    @property
    def held_out(self) -> np.ndarray:
        """(V,) bool: photos that their set keeps for validation or tests."""
        return np.isin(self.posed.roles or [""] * len(self), HELD_OUT)

    def shape(self) -> HW:
        """(height, width) of the first photo."""
        with _told(self.name):
            return posed_views.hw_of(self.posed.images[0], self.posed.name(0))

    def doubts(self, inputs: Sequence[int]) -> list[str]:
        """Say where the cameras of these photos do not fit them, as `import` checks it."""
        some = sorted({*inputs, *cameras.spread(len(self), CHECKED).tolist()})
        verdict = silhouettes.check(self.posed.part(some))
        wrong = {some[view] for view in verdict.wrong} & set(inputs)
        if verdict.says != "does_not_fit" and not wrong:
            return []
        names = ", ".join(self.posed.name(view) for view in sorted(wrong)) or "photos"
        return [f"the cameras do not fit {names}, and new views will be wrong: {verdict}"]


def album(cfg: SynthesisConfig, width: int | None, decode: bool = False) -> Album:
    """Photos that cfg (resolved) names. width: of the pictures that are needed, in pixels, None for the largest. decode: leave
    out photos of a capture that do not decode; else their headers are read.

    Raises UserError: nothing that is known there, an uid that is not there, cameras that are none, damaged shards.
    """
    return _of_shards(cfg.data, cfg.uid, width) if cfg.data else _of_capture(cfg, decode)


# ---- shards


def _of_shards(run: Path, uid: str | None, width: int | None) -> Album:
    data = opened(run, _stored_width(run, width))
    if not len(data):
        raise UserError(f"{run} holds no object", "give the --out of a run that has delivered some")
    if uid and uid not in data:
        raise UserError(f"{run} has no object {uid}", f"there are {len(data):,}: {', '.join(data.uids[:3])}, ...")
    with intact(run, uid or "its first object"):
        one = data[uid or 0]
    if one.projection != "perspective":
        raise UserError(f"{one.uid} has orthographic views, and LVSM's rays are those of pinholes", "another --uid")
    names = [f"view {number}" for number in range(len(one.jpegs))]
    columns = [*one.numbers, *([TIME] if one.times else [])]
    white = data.facts.get("background", [255, 255, 255]) == [255, 255, 255]
    notes = [] if white else ["the background of this run is another than white"]
    posed = Posed(
        list(one.jpegs), one.c2w, one.fxfycxcy, roles=list(one.roles or []), names=names, times=one.times or ()
    )
    return Album(one.uid, posed, subject_of(data.facts, columns), notes=notes)


def _stored_width(run: Path, width: int | None) -> int | None:
    """Smallest width of a run's pictures that is `width` at least, else the largest; None where Dataset is to say."""
    if not run.is_dir():
        return None
    widths = [one for one, paths in find_shards(run).items() if paths]
    return min((one for one in widths if width and one >= width), default=max(widths))


# ---- captures


def _of_capture(cfg: SynthesisConfig, decode: bool) -> Album:
    assert cfg.input is not None
    source, says = recognised(cfg.input) if cfg.source == AUTO else (cfg.source, "")
    if source == "shards":
        raise UserError(f"{cfg.input} holds shards of lvsm-data", f"--data {quoted(cfg.input)} --uid UID")
    reading = ImportConfig(source=source, input=cfg.input, scene=PosedConfig(crop="none"))
    if sources.is_remote(reading):
        raise UserError(f"{cfg.input} is an archive, whose scenes have to be unpacked first", "--input FOLDER")
    found = list(itertools.islice(sources.load(source).items(reading, 0), LISTED))
    item = _chosen(found, cfg)
    posed = _loaded(item, reading, decode)
    return Album(item.uid, posed, "objects" if SOURCES[source].objects else "", says, _left_out(posed))


def _chosen(found: Sequence[Item], cfg: SynthesisConfig) -> Item:
    names = sorted(item.uid for item in found)
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    if cfg.uid is None and len(found) > 1:
        raise UserError(f"{cfg.input} holds {len(found)} captures: {some}", f"--uid {names[0]}, or the folder of one")
    for item in found:
        if cfg.uid in (None, item.uid):
            return item
    raise UserError(f"{cfg.input} has no capture {cfg.uid}", f"there are {some}")


def _loaded(item: Item, reading: ImportConfig, decode: bool) -> Posed:
    """Read a capture. Raises UserError where it cannot be used."""
    source, path = sources.load(reading.source), Path(item.url)
    with _told(item.uid):
        loads_whole = getattr(source, "LOADS_WHOLE", False)
        posed = source.load(item, path, reading, **({"whole": True} if decode and loads_whole else {}))
        if not isinstance(posed, Posed) or not posed.images:
            raise Skip("no_images", "it has no photos with cameras")
        if decode and not loads_whole:
            posed = posed_views.whole(posed, ())
        return Posed(**vars(posed) | {"c2w": importing.rigid(posed.c2w, posed.name)})


class BrokenPhoto(UserError):
    """A photo that does not decode: `album` leaves it out with `decode`."""


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn reasons for which `import` would leave a scene or a photo out into UserError."""
    try:
        yield
    except (Skip, Retry) as failure:
        kind = BrokenPhoto if failure.reason in posed_views.UNREADABLE else UserError
        raise kind(f"{name} cannot be used: {failure}", WHERE) from None


def _left_out(posed: Posed) -> list[str]:
    """Say which photos are left out, and why."""
    if not (count := posed.meta.get("views_missing")):
        return []
    return [f"{count} photos are left out: {'; '.join(posed.meta['left_out_views'][:3])}"]


# ---- pictures of one size


@dataclass(frozen=True)
class Pictures:
    """N pictures of one size. image: (N, H, W, 3) uint8. fxfycxcy: (N, 4). lost: the largest share that cropping took of a
    photo. enlarged: the largest factor, 1 where none was."""

    image: np.ndarray
    fxfycxcy: np.ndarray
    lost: float
    enlarged: float


def pictures(album: Album, views: Sequence[int], hw: HW) -> Pictures:
    """Make pictures of size hw of these photos: undistorted, put on white, cropped around the middle, resized in linear light.

    Intrinsics follow; nothing is stretched by more than what rounding the crop to pixels takes. Raises UserError for a photo
    that cannot be used.
    """
    with _told(album.name):
        made = [_picture(album.posed, view, hw) for view in views]
    image, k, lost, enlarged = zip(*made, strict=True)
    return Pictures(np.stack(image), np.stack(k), max(lost), max(enlarged))


def _picture(posed: Posed, view: int, hw: HW) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Picture of one photo: its pixels (H, W, 3), fxfycxcy (4,), share lost by cropping, factor of enlarging."""
    name, lens = posed.name(view), posed.lenses[view] if posed.lenses else cameras.PINHOLE
    try:
        straight = images.decode_straight(posed.images[view])
    except OSError as error:
        raise Skip("broken_image", f"{name}: {error}") from None
    (high, wide), k = straight.shape[:2], np.asarray(posed.fxfycxcy[view], np.float64)
    whole = high, wide
    check_intrinsics(name, k, whole)
    rgba = images.premultiplied(straight)
    if not lens.is_pinhole:
        mended = importing.undistortion(whole, k, lens)
        rgba, k = mended.take(rgba), mended.fxfycxcy
    (top, left), (height, width) = importing.centre(whole, hw)
    part = rgba[top : top + height, left : left + width]
    rgb = images.srgb8(images.over(_resized(part, hw)))
    k = cameras.resize_intrinsics(k - [0, 0, left, top], (height, width), hw)
    return rgb, k, 1 - height * width / (whole[0] * whole[1]), max(1.0, hw[1] / width)


def _resized(rgba: np.ndarray, hw: HW) -> np.ndarray:
    """Linear light (H, W, 4) at size hw: by area, or by straight lines between pixels where it grows."""
    if hw[0] <= rgba.shape[0] and hw[1] <= rgba.shape[1]:
        return images.resize_area(rgba, hw)
    return np.asarray(cv2.resize(rgba, (hw[1], hw[0]), interpolation=cv2.INTER_LINEAR))


def framed(k: np.ndarray, hw: HW, new_hw: HW) -> tuple[np.ndarray, float]:
    """Intrinsics (F, 4) of pictures of size hw -> those of their middle at size new_hw, and the share that cropping takes."""
    scale = max(new_hw[0] / hw[0], new_hw[1] / hw[1])
    kept = new_hw[0] * new_hw[1] / (scale * scale * hw[0] * hw[1])
    k = np.asarray(k, np.float64) * scale
    k[:, 2:] += (np.array(new_hw[::-1]) - scale * np.array(hw[::-1])) / 2
    return k, 1 - kept
