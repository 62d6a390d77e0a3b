"""Decoding: frames of a video as upright RGB pictures, told apart by when they are shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import Skip
from pipeline.video import cut as cuts
from pipeline.video.cut import MICRO, UNREADABLE, Footage

SWSCALE = {"bt601": 5, "bt709": 1, "bt2020": 9}  # SWS_CS_* of libswscale
SAME_US = 1500  # tolerance between a frame's time in the video and in its cut: both may count in milliseconds


def rgb(frame: Any, matrix: str, rotation: float) -> np.ndarray:
    """(H, W, 3) uint8 of a frame that PyAV decoded. matrix, rotation: as in Footage."""
    picture: np.ndarray = frame.reformat(format="rgb24", src_colorspace=SWSCALE[matrix]).to_ndarray()
    return np.rot90(picture, round(rotation / 90) % 4)


def nearest(times: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """For each of asked (V,) the index of the nearest of times (N,), ascending; of two equally near ones, the first."""
    if len(times) == 1:
        return np.zeros(len(asked), np.int64)
    after = np.clip(np.searchsorted(times, asked), 1, len(times) - 1)
    before = after - 1
    return np.where(asked - times[before] <= times[after] - asked, before, after)


def of_cut(cut: Path, footage: Footage, wanted: Sequence[int], threads: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index, frame (H, W, 3) RGB) of a cut. wanted: ascending indices into footage.times_us.

    Raises Skip("unreadable_video") if the cut cannot be decoded, or lacks a wanted frame.
    """
    times, left = np.array(footage.times_us), list(wanted)
    at = -1
    with cuts.readable():
        for number, (shown, frame) in enumerate(_decoded(cut, footage, threads)):
            if not left:
                return
            at = number if footage.counted else max(at + 1, int(nearest(times, np.array([shown]))[0]))
            if at > left[0]:
                break
            if not footage.counted and abs(int(times[min(at, len(times) - 1)]) - shown) > SAME_US:
                where = f"{footage.codec}: a frame shown at {shown / MICRO:.4f} s, where there is none"
                raise Skip(UNREADABLE, where)
            if at == left[0]:
                yield left.pop(0), rgb(frame, footage.matrix, footage.rotation)
    if left and at > left[0]:
        raise Skip(UNREADABLE, f"{footage.codec}: the frame shown at {times[left[0]] / MICRO:.4f} s is missing")
    if left:
        raise Skip(UNREADABLE, f"{footage.codec}, decoded to frame {at} of {len(times)} in the cut")


def _decoded(cut: Path, footage: Footage, threads: int) -> Iterator[tuple[int, Any]]:
    """(time shown in microseconds, frame) in the order of showing; the time means nothing where footage.counted."""
    import av

    with av.open(str(cut)) as container:
        stream: Any = container.streams.video[0]
        stream.codec_context.thread_count = threads
        first = None
        for packet in container.demux(stream):
            if first is None:
                first = packet.pts  # of the key frame, which is shown before all others
            for frame in packet.decode():
                if frame.pts is not None:
                    shown = footage.times_us[0] + round((frame.pts - (first or 0)) * stream.time_base * MICRO)
                    yield shown, frame
