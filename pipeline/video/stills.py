"""Single frames of videos of fixed cameras, at instants that all of them show."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import images
from pipeline.core.errors import Skip
from pipeline.poses.capture import View
from pipeline.video.cut import COUNTED, MICRO, STEPS_BACK_S, matrix_of
from pipeline.video.frames import rgb

NOTHING = "broken_image"  # reason for a view whose video cannot be read: others may be


def at_instants(views: Sequence[View], count: int, fps: float | None) -> list[View]:
    """Views at `count` instants of cameras whose `picture` is a video: instant by instant, each with its time in seconds from the
    videos' beginning. fps: instants per second; None: spread from the first frame to the last one that all videos show.

    Instants that some video does not show are left out. A video that cannot be read leaves its views unreadable.
    """
    spans = {view.picture: found for view in views if view.picture and (found := span(view.picture))}
    shortest = min((float(last - first) for first, last in spans.values()), default=0.0)
    if fps is None:
        times = np.linspace(0, shortest, count).tolist()
    else:
        times = [number / fps for number in range(count) if number / fps <= shortest]
    return [
        dataclasses.replace(
            view, name=f"{view.name} at {time:.3f} s", time=time, frame=_frame_of(view.picture, spans, time)
        )
        for time in times
        for view in views
    ]


def _frame_of(
    video: Path | None, spans: dict[Path, tuple[Fraction, Fraction]], time: float
) -> Callable[[], bytes] | None:
    """Function that reads the frame of a video at a time from its first frame on."""
    if video is None:
        return None
    first = spans[video][0] if video in spans else Fraction(0)
    return functools.partial(frame_at, video, first + Fraction(time).limit_denominator(MICRO))


def frame_at(video: Path, asked: Fraction) -> bytes:
    """Frame of a video shown nearest to a time, in seconds of its own clock, as a PNG file. Raises Skip("broken_image")."""
    import av

    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            found = _nearest(container, stream, asked)
            if found is None:
                raise Skip(NOTHING, f"{video.name} has no frame at {float(asked):.3f} s")
            return images.encode_png(rgb(found, matrix_of(found), found.rotation))
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise Skip(NOTHING, f"{video.name}: {error}") from None


def _nearest(container: Any, stream: Any, asked: Fraction) -> Any:
    """Frame shown nearest to a time, None if there is none."""
    if container.format.name in COUNTED:
        times = sorted(_times(container, stream))
        number = min(range(len(times)), key=lambda i: abs(times[i] * stream.time_base - asked), default=0)
        container.seek(0, stream=stream, backward=True)
        return next(itertools.islice(container.decode(stream), number, None), None)
    for back in STEPS_BACK_S:  # a seek may land behind the time asked for
        target = max(0.0, float(asked) - back)
        container.seek(int(target / stream.time_base), stream=stream, backward=True)
        best = None
        for frame in container.decode(stream):
            if frame.pts is None:
                continue
            apart = abs(frame.pts * stream.time_base - asked)
            if best is not None and apart >= abs(best.pts * stream.time_base - asked):
                return best
            if best is None and frame.pts * stream.time_base > asked and target > 0:
                break
            best = frame
        if best is not None:
            return best
    return None


def span(video: Path) -> tuple[Fraction, Fraction] | None:
    """Times of a video's first and last frame on its own clock, in seconds; None if it cannot be read."""
    import av

    try:
        with av.open(str(video)) as container:
            stream: Any = container.streams.video[0]
            times = _times(container, stream)
            return (min(times) * stream.time_base, max(times) * stream.time_base) if times else None
    except (av.error.FFmpegError, IndexError, ValueError):
        return None


def _times(container: Any, stream: Any) -> list[int]:
    """When frames are shown, in ticks of the stream, in no order."""
    kind = "dts" if container.format.name in COUNTED else "pts"
    return [time for packet in container.demux(stream) if (time := getattr(packet, kind)) is not None]
