"""A cut of a video and poses with times -> a Scene: the frame nearest to each pose's time, cropped, at every resolution.

A seek by milliseconds lands near a frame, not on it. So a cut is decoded from its first frame on, and frames are told apart by
presentation time.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pipeline.config.clip import ClipScene
from pipeline.core import cameras, images, licenses
from pipeline.core.errors import Skip
from pipeline.core.records import Clip, Item, Scene, Views
from pipeline.poses.capture import check_intrinsics
from pipeline.video import cut as cuts
from pipeline.video import frames
from pipeline.video.cut import Footage
from pipeline.worker.posed import FLAT_LEVELS, centre, rigid


def to_scene(item: Item, clip: Clip, cfg: ClipScene, threads: int = 1) -> Scene:
    """The scene that shards store: every view at every width of cfg.res, with the numbers frame, asked_us and time_us.

    Raises Skip: bad_cameras, frame_missing (no frame within cfg.max_error_ms of a pose), unreadable_video, too_small
    (pictures are never enlarged), blank.
    """
    footage = cuts.footage(clip.path)
    c2w = rigid(clip.c2w)
    times_us = np.array(footage.times_us)
    which = frames.nearest(times_us, clip.times_us)
    shown_us = times_us[which]
    error_us = np.abs(shown_us - clip.times_us)
    worst = error_us.argmax()
    if error_us[worst] > cfg.max_error_ms * 1000:
        raise Skip(
            "frame_missing",
            f"a pose is for {clip.times_us[worst] / 1e6:.3f} s, the nearest frame is shown at {shown_us[worst] / 1e6:.3f} s",
        )
    album = _Album(cfg, footage)
    for index, frame in frames.of_cut(clip.path, footage, sorted(set(which.tolist())), threads):
        album.add(index, frame)
    facts = {
        "stream": {"hw": list(footage.hw), "codec": footage.codec, "matrix": footage.matrix},
        "time_error_ms": {"mean": round(float(error_us.mean()) / 1e3, 3), "max": round(float(error_us.max()) / 1e3, 3)},
    }
    numbers = {"frame": clip.frame, "asked_us": clip.times_us, "time_us": shown_us}
    return Scene(
        _named(item, footage.about), c2w.astype(np.float32), album.views(which, clip.shares), clip.meta | facts, numbers
    )


def _named(item: Item, about: dict[str, str]) -> Item:
    """The item with the title, author and license that the video's page states; its own license where the page states none."""
    credit = item.credit | {name: about[name] for name in ("title", "author") if name in about}
    stated = licenses.normalise(about.get("license"))
    return dataclasses.replace(item, credit=credit, license=item.license if stated == licenses.UNKNOWN else stated)


class _Album:
    """Collects a clip's frames as JPEGs, at every resolution."""

    def __init__(self, cfg: ClipScene, footage: Footage) -> None:
        """Raises Skip("too_small") if the cropped frames are smaller than the largest of cfg.res."""
        self.cfg = cfg
        self.frame_hw = footage.hw
        self.hw = {width: cfg.hw(width, footage.hw) for width in cfg.res}
        self.corner, self.size = centre(footage.hw, self.hw[max(cfg.res)])
        self.jpegs: dict[int, dict[int, bytes]] = {width: {} for width in cfg.res}
        self.contrast: list[int] = []
        if self.size[0] < self.hw[max(cfg.res)][0] or self.size[1] < max(cfg.res):
            (height, width), (rows, columns) = self.size, self.hw[max(cfg.res)]
            raise Skip("too_small", f"frames of {width}x{height} pixels after the crop, {columns}x{rows} are asked for")

    def add(self, index: int, frame: np.ndarray) -> None:
        """Add a decoded frame (H, W, 3) RGB. index: in the cut. Raises Skip("unreadable_video") if the size has changed."""
        if frame.shape[:2] != self.frame_hw:
            raise Skip("unreadable_video", f"frames of {frame.shape[1]}x{frame.shape[0]} among {self.frame_hw[::-1]}")
        (top, left), (height, width) = self.corner, self.size
        rgb = frame[top : top + height, left : left + width]
        for new_width in sorted(self.cfg.res, reverse=True):
            small = images.shrink(rgb, self.hw[new_width])
            self.jpegs[new_width][index] = images.encode_jpeg(small, self.cfg.quality)
        self.contrast.append(int(small.max()) - int(small.min()))

    def views(self, which: np.ndarray, shares: np.ndarray) -> dict[int, Views]:
        """Image width -> Views, with intrinsics after crop and resize. which: (V,) frame index per view. shares: see `Clip`."""
        if np.median(self.contrast) < FLAT_LEVELS:
            raise Skip("blank", f"median contrast {np.median(self.contrast):.0f} of 255 levels")
        height, width = self.frame_hw
        whole = shares * [width, height, width, height]
        for view, one in enumerate(whole):
            check_intrinsics(f"view {view}", one, self.frame_hw)
        top, left = self.corner
        cropped = whole - [0, 0, left, top]
        made = {}
        for new_width, hw in self.hw.items():
            fxfycxcy = cameras.resize_intrinsics(cropped, self.size, hw).astype(np.float32)
            made[new_width] = Views([self.jpegs[new_width][index] for index in which.tolist()], fxfycxcy, hw)
        return made
