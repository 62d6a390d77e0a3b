"""RealEstate10K (Zhou et al., arXiv 1805.09817) and ACID (Liu et al., arXiv 2012.09855): camera files for videos of YouTube.

Clips are cut out of their video ahead of the workers, all clips of one video in one go. The poses stay as the files have
them: the world of each clip, its scale and its up are structure from motion's own.
"""

from __future__ import annotations

import os
import re
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.clip import ClipConfig
from pipeline.core import cameras
from pipeline.core.disk import bytes_below, replacing
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.core.records import Clip, Fetched, Item, item_rng, video_of
from pipeline.download.fetch import Fetcher
from pipeline.formats import archives, bundles, trajectories
from pipeline.formats.trajectories import Trajectory
from pipeline.poses import capture
from pipeline.sources import posed_views
from pipeline.video import cut
from pipeline.video.ytdlp import VideoFetcher

SAYS = "clips of videos, by the camera files of RealEstate10K or ACID"
HOWTO = "lvsm-data clip --cameras RealEstate10K.tar.gz"
BATCH = 512  # clips of one video served by one request for its page; there are about ten
SLACK_US = 250_000  # cut around a clip: how far off its first and last frame may be without counting as missing
CAMERAS = "cameras.txt"  # beside a cut: the camera file that it was made for
MEMBER = re.compile(r"(?:(?:.*/)?(train|test|validation)/|(?:.*/)?)([^/]+)\.txt")


def items(cfg: ClipConfig, seed: int, net: Fetcher | None = None) -> Iterator[Item]:
    """One item per camera file, video by video in an order that the seed gives. uid: the file's name.

    UserError where there is no camera file, or none of the part that was asked for.
    """
    where = _with_random_access(cfg)
    chosen = _of_split(cfg, _listed(where))
    index = trajectories.evaluation_index(cfg.eval_index) if cfg.eval_index else None
    by_video: dict[str, list[Item]] = defaultdict(list)
    for split, key, place in chosen:
        if index is not None and key not in index:
            continue
        name = place if isinstance(place, str) else f"{key}.txt"
        try:
            url = trajectories.url_of(_read(where, place, head=True), name)
        except Skip as failure:
            raise UserError(str(failure), "camera files begin with the URL of their video") from None
        video = video_of(url)
        extra: dict[str, Any] = {"video": video, "split": split, "list": str(where), "place": place}
        if index is not None:
            extra["frames"] = sorted({*index[key].context, *index[key].target})
        elif cfg.scene.views:
            extra["views"] = cfg.scene.views
        by_video[video].append(Item(key, cfg.source, url=url, credit={"page": url}, extra=extra))
    if not by_video:
        raise UserError(
            f"{cfg.cameras} has none of the clips that {cfg.eval_index} names", "is it the index of this split?"
        )
    videos = sorted(by_video)
    for i in item_rng(seed, cfg.source, "order").permutation(len(videos)):
        yield from sorted(by_video[videos[i]], key=lambda item: item.uid)


def batch(item: Item) -> str:
    """Key of a batch: clips of one video come together."""
    return str(item.extra["video"])


def group(item: Item, cfg: ClipConfig) -> str:
    """Key of the items that train and val must not share: clips of one video."""
    return str(item.extra["video"])


root_of = posed_views.root_of


def fetch_many(items: Sequence[Item], folder_of: Callable[[Item], Path], net: Fetcher) -> Iterator[Fetched]:
    """Cut clips of one video into their folders. Raises UserError as `VideoFetcher.film` does."""
    assert isinstance(net, VideoFetcher)
    wanted: list[tuple[Item, np.ndarray]] = []
    for item in items:
        if cut.is_there(folder_of(item)):
            yield item, folder_of(item) / cut.CUT
            continue
        try:
            data = _read(Path(item.extra["list"]), item.extra["place"])
            trajectory = trajectories.parse(data, f"{item.uid}.txt")
            wanted.append((item, trajectory.times_us[_frames(item, trajectory)]))
            (folder_of(item) / CAMERAS).write_bytes(data)
        except Skip as failure:
            yield item, failure
    if not wanted:
        return
    disk_budget, claim = net.disk_budget, f"cuts of {wanted[0][0].uid}"
    try:
        with net.film(wanted[0][0].url) as film:
            if not film.owner:
                seconds = sum(float(np.ptp(times_us)) for _, times_us in wanted) / 1e6
                disk_budget.reserve(claim, film.bytes_of(seconds, len(wanted)))
            while wanted:
                item, times_us = wanted[0]
                try:
                    got: Path | Skip = film.cut(int(times_us.min()), int(times_us.max()), folder_of(item), SLACK_US)
                except Skip as failure:  # of this clip: the video may end before it
                    got = failure
                taken = bytes_below(folder_of(item))
                disk_budget.settle(film.owner or claim, max(0, disk_budget.held(film.owner or claim) - taken))
                disk_budget.settle(item.uid, taken)
                del wanted[0]
                yield item, got
    except (Skip, Retry) as failure:
        yield from ((item, failure) for item, _ in wanted)
    finally:
        disk_budget.release(claim)


def load(item: Item, path: Path, cfg: ClipConfig) -> Clip:
    """Read one clip's cameras and frame times. Raises Skip: bad_cameras, unsupported_camera, no_images."""
    trajectory = trajectories.parse((path.parent / CAMERAS).read_bytes(), f"{item.uid}.txt")
    frame = _frames(item, trajectory)
    c2w = capture.inverted(trajectory.w2c[frame])
    meta = {"video": item.url, "split": item.extra["split"], "views_found": len(trajectory.times_us)}
    return Clip(path, frame, trajectory.times_us[frame], c2w, trajectory.fxfycxcy[frame], meta)


def _frames(item: Item, trajectory: Trajectory) -> np.ndarray:
    """Indices of the wanted entries of a camera file. Raises Skip("bad_cameras")."""
    count = len(trajectory.times_us)
    if (named := item.extra.get("frames")) is None:
        return cameras.spread(count, item.extra.get("views"))
    if max(named) >= count:
        raise Skip("bad_cameras", f"the evaluation index names frame {max(named)} of {count}")
    return np.array(named)


# ---- where the camera files are


def _with_random_access(cfg: ClipConfig) -> Path:
    """Path of the camera files, as a folder or an archive with random access; a compressed tar is repacked once."""
    assert cfg.cameras is not None
    if cfg.cameras.is_dir() or not archives.is_sequential(cfg.cameras):
        return cfg.cameras
    about = cfg.cameras.stat()
    packed = cfg.cache / f"{cfg.cameras.name}-{about.st_size}-{about.st_mtime_ns}.zip"
    if not packed.exists():
        print(f"packing the camera files of {cfg.cameras.name} for random access, once: {packed}", file=sys.stderr)
        packed.parent.mkdir(parents=True, exist_ok=True)
        beside = packed.with_suffix(f".{os.getpid()}.part")
        try:
            with (
                replacing(packed, beside),
                zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
            ):
                for member, data in archives.walk(cfg.cameras):
                    if not member.fault and member.name.endswith(".txt"):
                        target.writestr(member.name, data)
        except Skip as failure:
            raise UserError(f"{cfg.cameras}: {failure}", "download it again") from None
    return packed


def _listed(where: Path) -> list[tuple[str, str, Any]]:
    """(split or "", key, place) of every camera file, sorted. place: relative path, or [where, size] in the archive."""
    members: Iterator[tuple[str, Any]]
    if where.is_dir():
        paths = (Path(folder) / name for folder, _, names in os.walk(where) for name in names)
        members = ((path.relative_to(where).as_posix(), path.relative_to(where).as_posix()) for path in paths)
    else:
        members = ((each.name, [each.where, each.size]) for each in archives.listed(where) if not each.fault)
    found = [(match[1] or "", match[2], place) for name, place in members if (match := MEMBER.fullmatch(name))]
    return sorted(found, key=lambda each: each[:2])


def _of_split(cfg: ClipConfig, found: list[tuple[str, str, Any]]) -> list[tuple[str, str, Any]]:
    """Keep the camera files of the requested split, each key once. UserError if there are none."""
    parts: Counter[str] = Counter(split for split, _, _ in found)
    asked: str = cfg.split or ("train" if "train" in parts else min(parts, default=""))
    chosen = [each for each in found if each[0] == asked]
    if not chosen:
        has = ", ".join(f"{name or 'no part'} {count}" for name, count in sorted(parts.items())) or "no camera file"
        raise UserError(
            f"{cfg.cameras} has no camera files of {asked or 'RealEstate10K'}: {has}", "KEY.txt, or train/KEY.txt"
        )
    if len(parts) > 1 and not cfg.split:
        rest = ", ".join(f"{name} {count}" for name, count in sorted(parts.items()) if name != asked)
        print(f"taking {asked} ({len(chosen)} clips), not {rest}; --split chooses", file=sys.stderr)
    return list({key: (split, key, place) for split, key, place in chosen}.values())


def _read(where: Path, place: Any, head: bool = False) -> bytes:
    """Read a camera file; with `head`, at least its first line."""
    if isinstance(place, str):
        if head:
            with (where / place).open("rb") as stream:
                return stream.readline(4096)
        return bundles.read_file(where / place)
    return archives.read(where, *place)
