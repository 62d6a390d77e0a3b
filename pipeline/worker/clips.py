"""A cut of a video and poses with times -> a Scene: the frame nearest to each pose's time, cropped, at every resolution.

A seek by milliseconds lands near a frame, not on it. So a cut is decoded from its first frame on, and frames are told apart by
presentation time. OpenCV decodes, but reads all colours as BT.601: those of BT.709 (YouTube's) are corrected here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.config.clip import ClipScene
from pipeline.core import cameras, images, licenses
from pipeline.core.errors import Skip
from pipeline.core.records import Clip, Item, Scene, Views
from pipeline.poses.capture import check_intrinsics
from pipeline.video import cut as cuts
from pipeline.video.cut import Footage
from pipeline.worker.posed import FLAT_LEVELS, centre, rigid

SAME_US = 1000  # tolerance between PyAV's and OpenCV's time of a frame: containers may count in milliseconds


def _rgb_of_ycbcr(kr: float, kb: float) -> np.ndarray:
    """(3, 3): Y Cb Cr -> R G B for the luma weights of a standard (ITU-R BT.601: 0.299, 0.114; BT.709: 0.2126, 0.0722)."""
    kg = 1 - kr - kb
    return np.array([[1, 0, 2 - 2 * kr], [1, -(2 - 2 * kb) * kb / kg, -(2 - 2 * kr) * kr / kg], [1, 2 - 2 * kb, 0]])


BT601, BT709 = _rgb_of_ycbcr(0.299, 0.114), _rgb_of_ycbcr(0.2126, 0.0722)
SWAPPED = np.eye(3)[::-1]  # BGR <-> RGB
RGB_OF_BGR = {"bt601": SWAPPED, "bt709": BT709 @ np.linalg.inv(BT601) @ SWAPPED}  # by the stream's matrix


def to_scene(item: Item, clip: Clip, cfg: ClipScene, threads: int = 1) -> Scene:
    """The scene that shards store: every view at every width of cfg.res, with the numbers frame, asked_us and time_us.

    Raises Skip: bad_cameras, frame_missing (no frame within cfg.max_error_ms of a pose), unreadable_video, too_small
    (pictures are never enlarged), blank.
    """
    footage = cuts.footage(clip.path)
    c2w = rigid(clip.c2w)
    times_us = np.array(footage.times_us)
    which = nearest(times_us, clip.times_us)
    shown_us = times_us[which]
    error_us = np.abs(shown_us - clip.times_us)
    worst = error_us.argmax()
    if error_us[worst] > cfg.max_error_ms * 1000:
        raise Skip(
            "frame_missing",
            f"a pose is for {clip.times_us[worst] / 1e6:.3f} s, the nearest frame is shown at {shown_us[worst] / 1e6:.3f} s",
        )
    album = _Album(cfg, footage)
    for index, frame in frames(clip.path, footage, sorted(set(which.tolist())), threads):
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


def nearest(times: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """For each of asked (V,) the index of the nearest of times (N,), ascending; of two equally near ones, the first."""
    if len(times) == 1:
        return np.zeros(len(asked), np.int64)
    after = np.clip(np.searchsorted(times, asked), 1, len(times) - 1)
    before = after - 1
    return np.where(asked - times[before] <= times[after] - asked, before, after)


def frames(cut: Path, footage: Footage, wanted: list[int], threads: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index, frame (H, W, 3)) as OpenCV decodes: BGR by BT.601. wanted: ascending indices into footage.times_us.

    Raises Skip("unreadable_video") if the cut cannot be decoded, or lacks a wanted frame.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # silent: errors go to the ledger
    import cv2

    film = cv2.VideoCapture(str(cut), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads])
    try:
        times = np.array(footage.times_us)
        at = -1
        for want in wanted:
            while at < want:
                if not film.isOpened() or not film.grab():
                    raise Skip("unreadable_video", f"{footage.codec}, decoded to frame {at} of {len(times)} in the cut")
                shown = footage.times_us[0] + round(film.get(cv2.CAP_PROP_POS_MSEC) * 1000)
                at = max(at + 1, int(nearest(times, np.array([shown]))[0]))
                if abs(int(times[min(at, len(times) - 1)]) - shown) > SAME_US:
                    raise Skip(
                        "unreadable_video",
                        f"{footage.codec}: a frame shown at {shown / 1e6:.4f} s, where there is none",
                    )
            good, bgr = film.retrieve()
            if at != want or not good:
                raise Skip(
                    "unreadable_video", f"{footage.codec}: the frame shown at {times[want] / 1e6:.4f} s is missing"
                )
            yield want, np.asarray(bgr)
    finally:
        film.release()


class _Album:
    """Collects a clip's frames as JPEGs, at every resolution."""

    def __init__(self, cfg: ClipScene, footage: Footage) -> None:
        """Raises Skip("too_small") if the cropped frames are smaller than the largest of cfg.res."""
        self.cfg = cfg
        self.frame_hw = footage.hw
        self.to_rgb = RGB_OF_BGR[footage.matrix].astype(np.float32)
        self.hw = {width: cfg.hw(width, footage.hw) for width in cfg.res}
        self.corner, self.size = centre(footage.hw, self.hw[max(cfg.res)])
        self.jpegs: dict[int, dict[int, bytes]] = {width: {} for width in cfg.res}
        self.contrast: list[int] = []
        if self.size[0] < self.hw[max(cfg.res)][0] or self.size[1] < max(cfg.res):
            (height, width), (rows, columns) = self.size, self.hw[max(cfg.res)]
            raise Skip("too_small", f"frames of {width}x{height} pixels after the crop, {columns}x{rows} are asked for")

    def add(self, index: int, bgr: np.ndarray) -> None:
        """Add a decoded frame (H, W, 3). index: in the cut. Raises Skip("unreadable_video") if the size has changed."""
        import cv2

        if bgr.shape[:2] != self.frame_hw:
            raise Skip("unreadable_video", f"frames of {bgr.shape[1]}x{bgr.shape[0]} among {self.frame_hw[::-1]}")
        (top, left), (height, width) = self.corner, self.size
        rgb = cv2.transform(bgr[top : top + height, left : left + width], self.to_rgb)
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
