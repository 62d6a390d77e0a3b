"""Films: frames to an .mp4 that every browser plays, or to a .gif that plays where videos do not."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import ColorRange, Colorspace

from pipeline.core import images
from pipeline.core.disk import replacing
from pipeline.core.errors import UserError

LEAST = 256  # pixels of the shorter side: players blur smaller films when they enlarge them
CRF = "16"  # of H.264; 18 passes for visually lossless


def write_film(path: Path, frames: Iterable[np.ndarray], fps: float) -> Path:
    """Write frames (H, W, 3) uint8, all of one size, at `fps` per second as .mp4 or .gif, by the suffix of `path`.

    Small frames are enlarged by a whole factor, pixel by pixel, until no side is below LEAST. An .mp4 is H.264 in yuv420p
    (BT.709), whose sides are even: an odd side repeats its last row or column. A .gif has one palette for all frames, loops
    for ever, and counts time in hundredths of a second. The folder is made; the file appears once complete.
    Raises UserError for another suffix, ValueError for no frames, frames of different sizes, or fps not above 0.
    """
    writers = {".mp4": _mp4, ".gif": _gif}
    if path.suffix not in writers:
        raise UserError(f"{path}: a film is an .mp4 or a .gif", f"for example {path.with_suffix('.mp4').name}")
    if not fps > 0:
        raise ValueError(f"{fps} frames a second")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, path.with_name(f"{path.stem}.part{path.suffix}")) as temporary:
        writers[path.suffix](temporary, _enlarged(frames), Fraction(fps).limit_denominator(1000))
    return path


def _enlarged(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the frames, enlarged as `write_film` says. ValueError for no frames, a wrong format, or different sizes."""
    size = None
    for frame in frames:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise ValueError(f"a frame of {frame.shape} {frame.dtype}; films need (H, W, 3) uint8")
        size = size or frame.shape
        if frame.shape != size:
            raise ValueError(f"frames of {size} and {frame.shape} in one film")
        height, width = size[:2]
        factor = -(-LEAST // min(height, width))
        yield images.resize_nearest(frame, (height * factor, width * factor)) if factor > 1 else frame
    if size is None:
        raise ValueError("a film without frames")


def _mp4(path: Path, frames: Iterator[np.ndarray], rate: Fraction) -> None:
    first = _even(next(frames))
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": CRF, "preset": "medium"})
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context  # else players guess the matrix from the size, and colours shift
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = ColorRange.MPEG
        for pixels in itertools.chain([first], map(_even, frames)):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame = frame.reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation="AREA",
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _even(pixels: np.ndarray) -> np.ndarray:
    odd = [(0, side % 2) for side in pixels.shape[:2]]
    return np.ascontiguousarray(np.pad(pixels, [*odd, (0, 0)], "edge"))


def _gif(path: Path, frames: Iterator[np.ndarray], rate: Fraction) -> None:
    first = next(frames)
    height, width = first.shape[:2]
    graph = Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=1 / rate)
    split, palette = graph.add("split"), graph.add("palettegen", "reserve_transparent=0")
    use, sink = graph.add("paletteuse", "dither=sierra2_4a"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for number, pixels in enumerate(itertools.chain([first], frames)):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
        frame.pts, frame.time_base = number, 1 / rate
        source.push(frame)
    source.push(None)
    with av.open(str(path), "w", options={"loop": "0"}) as container:
        stream = container.add_stream("gif", rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "pal8"
        for made in _pulled(sink):
            container.mux(stream.encode(made))
        container.mux(stream.encode(None))


def _pulled(sink: av.filter.context.FilterContext) -> Iterator[av.VideoFrame]:
    while True:
        try:
            frame = sink.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        assert isinstance(frame, av.VideoFrame)
        yield frame
