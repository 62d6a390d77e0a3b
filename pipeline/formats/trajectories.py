"""Camera files of RealEstate10K (Zhou et al., arXiv 1805.09817) and ACID: where a video's camera was, frame by frame.

Line 1 is the video's URL. Every other line has 19 numbers: a time in microseconds; fx fy cx cy as shares of width and height,
with the image's corners at 0 and 1; two zeros that nobody documents; a 3x4 world-to-camera matrix by rows, OpenCV axes.
The prose of the data set's page counts its columns differently from its files; the files are followed here.
"""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from pipeline.core.errors import Skip, UserError

NUMBERS = 19  # per line
MAX_BYTES = 64_000_000  # of one file: 200,000 frames


@dataclass(frozen=True)
class Trajectory:
    """One camera file. times_us: (V,) int64, microseconds from the start of the video. fxfycxcy: (V, 4) float64, shares of
    width and height. w2c: (V, 3, 4) float64, OpenCV axes. Both as the file has them, also where they are NaN or infinite.
    """

    url: str
    times_us: np.ndarray
    fxfycxcy: np.ndarray
    w2c: np.ndarray


def parse(data: bytes, name: str) -> Trajectory:
    """Parse a camera file. Raises Skip: no_images (only the URL), bad_cameras (malformed), unsupported_camera."""
    url = url_of(data, name)
    times, rows = [], []
    for number, line in enumerate(data.splitlines()[1:], 2):
        if fields := line.split():
            try:
                times.append(int(fields[0]))
                rows.append([float(field) for field in fields])
            except ValueError as error:
                raise Skip("bad_cameras", f"{name}, line {number}: {error}") from None
            if len(fields) != NUMBERS or not 0 <= times[-1] < 2**63:
                said = f"{len(fields)} numbers, {NUMBERS} are needed, the first a time in microseconds"
                raise Skip("bad_cameras", f"{name}, line {number}: {said}: {line[:40]!r}")
            if any(rows[-1][5:7]):
                said = "numbers where there should be zeros, which nobody documents"
                raise Skip("unsupported_camera", f"{name}, line {number}: {said}")
    if not rows:
        raise Skip("no_images", f"{name} has no camera")
    numbers = np.array(rows)
    return Trajectory(url, np.array(times, np.int64), numbers[:, 1:5], numbers[:, 7:].reshape(-1, 3, 4))


def url_of(head: bytes, name: str) -> str:
    """URL in the first line. head: the file, or at least its first line. Raises Skip("bad_cameras")."""
    line = head.removeprefix(codecs.BOM_UTF8).split(b"\n", 1)[0].strip()
    try:
        url = line.decode("ascii")
    except UnicodeDecodeError:
        url = ""
    if len(head) > MAX_BYTES or urlsplit(url).scheme not in ("http", "https"):
        raise Skip("bad_cameras", f"{name} begins with {line[:60]!r}, not with the URL of a video")
    return url


@dataclass(frozen=True)
class Example:
    """Frames of one clip, as indices from 0 into the entries of its camera file."""

    context: tuple[int, ...]
    target: tuple[int, ...]


def evaluation_index(path: Path) -> dict[str, Example]:
    """Read an evaluation index: key of a clip -> Example, without clips that have null. UserError if the file is not one."""
    try:
        found = json.loads(path.read_bytes())
        examples = {str(key): _example(value) for key, value in found.items() if value is not None}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        hint = '{key: {"context": [0, 50], "target": [10, 20, 30]}} is needed'
        raise UserError(f"{path} is no evaluation index: {error or type(error).__name__}", hint) from None
    if not examples:
        raise UserError(f"{path} names no clip")
    return examples


def _example(value: Any) -> Example:
    context, target = ([int(frame) for frame in value[name]] for name in ("context", "target"))
    if not context or not target or min(context + target) < 0:
        raise ValueError(f"context {context[:8]} and target {target[:8]} name no frames")
    return Example(tuple(context), tuple(target))
