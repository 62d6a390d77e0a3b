"""Cuts of a video, made without decoding: packets from the key frame before a stretch to its end.

A cut is a NUT file: NUT takes every codec and keeps every time base, so that times stay exact. A JSON file beside the cut has
what a decoder does not tell: when each frame is shown, on the clock of the whole video, and which matrix its colours use.
"""

from __future__ import annotations

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
FACTS = "clip.json"
# how much further back to seek, each time that a seek lands behind the time asked for
STEPS_BACK_S = (0, 1, 4, 16, 64, math.inf)
MICRO = 1_000_000
BT709 = 1  # AVCOL_SPC_BT709 of libavutil
KEY_FRAME_S = 10.0  # longest usual distance between key frames in videos for the web
UNEVEN = 1.5
UNREADABLE = "unreadable_video"


@dataclass(frozen=True)
class Footage:
    """Facts about a cut. times_us: presentation times of its frames, sorted, in microseconds from the start of the whole video's
    container, as `ffmpeg -ss` counts. matrix: "bt709" or "bt601", to decode its colours with. hw: (height, width) of its frames.
    about: title, author and license from the video's page, each where known.
    """

    times_us: tuple[int, ...]
    hw: tuple[int, int]
    codec: str
    matrix: str
    about: dict[str, str]


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
        context = self.stream.codec_context
        self.hw = (context.height, context.width)
        self.codec = context.name
        self.matrix = "bt709" if int(context.colorspace) == BT709 else "bt601"

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
            with _readable():
                times = self._copy(max(first, Fraction(0)), last, temporary)
            if times[-1] < last_us - slack_us:
                ends, asked = times[-1] / MICRO, last_us / MICRO
                raise Skip("too_short", f"the video ends at {ends:.3f} s, a pose is for {asked:.3f} s")
            facts = Footage(tuple(times), self.hw, self.codec, self.matrix, self.about)
            (folder / FACTS).write_text(json.dumps(asdict(facts)))  # before the rename: a file named CUT has its facts
        return folder / CUT

    def _copy(self, first: Fraction, last: Fraction, to: Path) -> list[int]:
        """Copy the packets from `first` to `last` (seconds) to a file; returns their frames' times, sorted, in microseconds."""
        import av

        with av.open(str(to), "w", format="nut") as output:
            copy = output.add_stream_from_template(self.stream, opaque=True)
            times = []
            for packet in self._packets(first):
                if packet.dts * self.tick - self.start > last:  # nothing that follows is shown before its dts
                    break
                times.append(round((packet.pts * self.tick - self.start) * MICRO))
                packet.stream = copy
                output.mux(packet)
        if not times:
            raise Skip(UNREADABLE, "no frame in it can be found")
        return sorted(times)

    def _packets(self, first: Fraction) -> Iterator[Any]:
        """Packets in decoding order, from the last key frame that is shown at `first` (seconds) or before; without the frames
        shown before this key frame, which need earlier packets.
        """
        for back in STEPS_BACK_S:
            target = max(0.0, float(first) - back)
            self.container.seek(int((target + self.start) / self.tick), stream=self.stream, backward=True)
            packets = (each for each in self.container.demux(self.stream) if None not in (each.pts, each.dts))
            key = next((each for each in packets if each.is_keyframe), None)
            if key is None or (key.pts * self.tick - self.start > first and target > 0):
                continue
            shown = key.pts  # writing a packet changes its pts
            yield key
            yield from (each for each in packets if each.pts > shown)
            return


@contextmanager
def opened(source: Path | io.RawIOBase, size: int, about: dict[str, str] | None = None) -> Iterator[Film]:
    """Open a video file or file object. size: its bytes. about: as in Footage. Raises Skip("unreadable_video")."""
    import av

    with _readable(), av.open(str(source) if isinstance(source, Path) else source) as container:
        if not container.streams.video:
            raise Skip(UNREADABLE, "it has no pictures")
        yield Film(container, size, about or {})


@contextmanager
def _readable() -> Iterator[None]:
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
