"""Cuts of a video, made without decoding: packets from the key frame before a stretch to its end.

A cut is a NUT file, which keeps every time base, so that times stay exact; of the few codecs that NUT does not take (ProRes) a
Matroska file, which counts in milliseconds. A JSON file beside the cut has
what a decoder does not tell: when each frame is shown, on the clock of the whole video, and which matrix its colours use.
"""

from __future__ import annotations

import heapq
import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.core.disk import replacing
from pipeline.core.errors import Skip

CUT = "clip.nut"
CONTAINERS = ("nut", "matroska")  # for cuts, the better one first
FACTS = "clip.json"
# how much further back to seek, each time that a seek lands behind the time asked for
STEPS_BACK_S = (0, 1, 4, 16, 64, math.inf)
MICRO = 1_000_000
COUNTED = ("avi",)  # containers that hold frames in decoding order and do not say when each is shown
MATRIX = {
    1: "bt709",
    9: "bt2020",
    10: "bt2020",
}  # AVCOL_SPC_* of libavutil
BEGINNING = -(10**12)  # ticks: before any video's first frame, whose dts may be before its clock's start
REORDERED = 16  # frames that may be decoded between a frame's decoding and its showing, at most: H.264's limit
KEY_FRAME_S = 10.0  # longest usual distance between key frames in videos for the web
UNEVEN = 1.5
UNREADABLE = "unreadable_video"


@dataclass(frozen=True)
class Footage:
    """Facts about a cut. times_us: presentation times of its frames, sorted, in microseconds from the start of the whole video's
    container, as `ffmpeg -ss` counts. matrix: "bt709", "bt2020" or "bt601", by which its colours are decoded. hw: (height, width)
    of its upright frames. about: title, author and license from the video's page, each where known. rotation: degrees
    counterclockwise by which decoded frames are turned upright. counted: True if frames are told apart by their order alone.
    """

    times_us: tuple[int, ...]
    hw: tuple[int, int]
    codec: str
    matrix: str
    about: dict[str, str]
    rotation: int = 0
    counted: bool = False


class Film:
    """Open video, from which stretches are cut."""

    def __init__(self, container: Any, size: int, about: dict[str, str]) -> None:
        """Read the facts of an open PyAV `container`. size: bytes of the whole video. about: as in Footage."""
        self.container = container
        self.size = size
        self.owner = ""
        self.about = about
        self.stream = container.streams.video[0]
        self.tick: Fraction = self.stream.time_base
        self.start = Fraction(container.start_time or 0, MICRO)
        self.counted = container.format.name in COUNTED
        self.rotation: int | None = None  # known with the first cut

    def bytes_of(self, seconds: float, stretches: int) -> int:
        """Estimated upper bound of the bytes of `stretches` cuts, `seconds` long in all: a video's bytes are spread unevenly."""
        if not self.container.duration:
            return self.size
        share = (seconds + stretches * KEY_FRAME_S) / (self.container.duration / MICRO)
        return int(self.size * min(1.0, UNEVEN * share))

    def cut(self, first_us: int, last_us: int, folder: Path, slack_us: int) -> Path:
        """Write the frames shown from first_us to last_us, give or take slack_us, to folder/CUT, and their Footage beside it.

        Raises Skip: too_short (the video ends before last_us - slack_us), unreadable_video.
        """
        first, last = Fraction(first_us - slack_us, MICRO), Fraction(last_us + slack_us, MICRO)
        with replacing(folder / CUT) as temporary:
            with readable():
                times = self._copy(max(first, Fraction(0)), last, temporary)
            if times[-1] < last_us - slack_us:
                ends, asked = times[-1] / MICRO, last_us / MICRO
                raise Skip("too_short", f"the video ends at {ends:.3f} s, a pose is for {asked:.3f} s")
            facts = self._footage(times)
            (folder / FACTS).write_text(json.dumps(asdict(facts)))  # before the rename: a file named CUT has its facts
        return folder / CUT

    def _footage(self, times: list[int]) -> Footage:
        context, rotation = self.stream.codec_context, self.rotation or 0
        hw = context.height, context.width
        return Footage(
            tuple(times),
            hw[::-1] if rotation % 180 else hw,
            context.codec.canonical_name,
            matrix_of(context),
            self.about,
            rotation,
            self.counted,
        )

    def _copy(self, first: Fraction, last: Fraction, to: Path) -> list[int]:
        """Copy the packets from `first` to `last` (seconds) to a file; returns their frames' times, sorted, in microseconds."""
        with _writing(to, self.stream) as (output, copy):
            times: list[int] = []
            to_show: list[int] = []  # heap of pts
            behind = 0
            for number, packet in enumerate(self._counted() if self.counted else self._packets(first)):
                # nothing that follows is shown before its dts; Matroska and TS give the first packets after a seek none
                if packet.dts is not None and packet.dts * self.tick - self.start > last:
                    behind += 1
                    if behind > (REORDERED if self.counted else 0):
                        break
                if self.rotation is None:
                    self.rotation = self._rotation(packet)
                times.append(round((packet.pts * self.tick - self.start) * MICRO))
                heapq.heappush(
                    to_show, packet.pts
                )  # dts anew, ascending and never above pts: demuxers' own are not always
                packet.dts = to_show[0] - REORDERED + number if number < REORDERED else heapq.heappop(to_show)
                packet.stream = copy
                output.mux(packet)
        if not times:
            raise Skip(UNREADABLE, "no frame in it can be found")
        return sorted(times)

    def _rotation(self, key: Any) -> int:
        """Degrees by which frames are turned upright; PyAV says so of decoded frames alone. key: packet of a key frame."""
        context = self.stream.codec_context
        frames = [*key.decode(), *context.decode(None)]
        context.flush_buffers()
        return int(frames[0].rotation) if frames else 0

    def _seek(self, ticks: int) -> None:
        """Go to the last key frame before a time, in ticks of the stream; to the first one if the container refuses the time."""
        import av

        try:
            self.container.seek(ticks, stream=self.stream, backward=True)
        except av.error.FFmpegError:
            self.container.seek(int(self.start / self.tick), stream=self.stream, backward=True)

    def _counted(self) -> Iterator[Any]:
        """All packets, with times as if each was shown when it is decoded: by number, a frame's time is right."""
        self._seek(BEGINNING)
        for packet in self.container.demux(self.stream):
            if packet.dts is not None:
                packet.pts = packet.dts
                yield packet

    def _packets(self, first: Fraction) -> Iterator[Any]:
        """Packets in decoding order, from the last key frame that is shown at `first` (seconds) or before; without the frames
        shown before this key frame, which need earlier packets.
        """
        for back in STEPS_BACK_S:
            target = max(0.0, float(first) - back)
            if back and not math.isinf(back) and not target:
                continue
            self._seek(int((target + self.start) / self.tick) if not math.isinf(back) else BEGINNING)
            packets = (each for each in self.container.demux(self.stream) if each.pts is not None)
            key = next((each for each in packets if each.is_keyframe), None)
            if key is None or (key.pts * self.tick - self.start > first and not math.isinf(back)):
                continue
            shown = key.pts  # writing a packet changes its pts
            yield key
            yield from (each for each in packets if each.pts > shown)
            return


@contextmanager
def _writing(to: Path, stream: Any) -> Iterator[tuple[Any, Any]]:
    """Open a file for packets of a stream: the container and its stream. Raises Skip("unreadable_video") for an unknown codec."""
    import av

    codec = stream.codec_context.codec.canonical_name
    for name in CONTAINERS:
        with av.open(str(to), "w", format=name) as output:
            if codec in output.supported_codecs:
                yield output, output.add_stream_from_template(stream, opaque=True)
                return
    raise Skip(UNREADABLE, f"no container for {codec}")


def matrix_of(pictures: Any) -> str:
    """Matrix (see Footage) of a codec context's or a frame's colours; those that say nothing are BT.601's, as in FFmpeg."""
    return MATRIX.get(int(pictures.colorspace), "bt601")


@contextmanager
def opened(source: Path | io.RawIOBase, size: int, about: dict[str, str] | None = None) -> Iterator[Film]:
    """Open a video file or file object. size: its bytes. about: as in Footage. Raises Skip("unreadable_video")."""
    import av

    with readable(), av.open(str(source) if isinstance(source, Path) else source) as container:
        if not container.streams.video:
            raise Skip(UNREADABLE, "it has no pictures")
        yield Film(container, size, about or {})


def has_pictures(path: Path) -> bool:
    """True if a file is a video that FFmpeg can open, with pictures."""
    try:
        with opened(path, 0):
            return True
    except Skip:
        return False


@contextmanager
def readable() -> Iterator[None]:
    """Turn FFmpeg's errors into Skip("unreadable_video")."""
    import av

    try:
        yield
    except av.error.FFmpegError as error:
        raise Skip(UNREADABLE, str(error)) from None


def footage(cut: Path) -> Footage:
    """Footage that `Film.cut` wrote beside the file `cut`."""
    facts = json.loads((cut.parent / FACTS).read_text())
    return Footage(**facts | {"times_us": tuple(facts["times_us"]), "hw": tuple(facts["hw"])})


def is_there(folder: Path) -> bool:
    """True if `folder` holds a whole cut."""
    return (folder / CUT).is_file()
