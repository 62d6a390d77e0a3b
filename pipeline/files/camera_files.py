"""Camera files of RealEstate10K (Zhou et al., arXiv 1805.09817) and ACID: where a video's camera was, frame by frame.

Line 1 is the video's URL. Every other line has 19 numbers: a time in microseconds; fx fy cx cy as shares of width and height,
with the image's corners at 0 and 1; two zeros that nobody documents; a 3x4 world-to-camera matrix by rows, OpenCV axes.
The prose of the data set's page counts its columns differently from its files; the files are followed here.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import numpy as np

from pipeline.scene import Skip

NUMBERS = 19  # per line
MAX_BYTES = 64_000_000  # of one file: 200,000 frames
YOUTUBE = re.compile(r"(?:.*\.)?(?:youtube\.com|youtube-nocookie\.com|youtu\.be)")
YOUTUBE_ID = re.compile(r"[0-9A-Za-z_-]{11}")


@dataclass(frozen=True)
class Trajectory:
    """One camera file. times_us: (V,) int64, microseconds from the start of the video. fxfycxcy: (V, 4) float64, shares of
    width and height. w2c: (V, 3, 4) float64, OpenCV axes.
    """

    url: str
    times_us: np.ndarray
    fxfycxcy: np.ndarray
    w2c: np.ndarray


def parse(data: bytes, name: str) -> Trajectory:
    """Raises Skip: no_images (no line but the URL), bad_cameras (anything that is no such file), unsupported_camera."""
    url = url_of(data, name)
    lines = [line for line in data.splitlines()[1:] if line.strip()]
    if not lines:
        raise Skip("no_images", f"{name} has no camera")
    try:
        rows = np.array([line.split() for line in lines], np.float64)
        times_us = np.array([int(line.split(maxsplit=1)[0]) for line in lines], np.int64)
    except (ValueError, OverflowError) as error:
        raise Skip("bad_cameras", f"{name}: {error}") from None
    if rows.shape[1] != NUMBERS or not np.isfinite(rows).all():
        raise Skip("bad_cameras", f"{name}: lines of {rows.shape[1]} finite numbers, {NUMBERS} are needed")
    if (times_us < 0).any():
        raise Skip("bad_cameras", f"{name}: a time of {times_us.min()} microseconds")
    if rows[:, 5:7].any():
        raise Skip("unsupported_camera", f"{name}: numbers where there should be zeros, which nobody documents")
    return Trajectory(url, times_us, rows[:, 1:5], rows[:, 7:].reshape(-1, 3, 4))


def url_of(head: bytes, name: str) -> str:
    """The first line. head: at least that much of the file. Raises Skip("bad_cameras")."""
    line = head.split(b"\n", 1)[0].strip()
    try:
        url = line.decode("ascii")
    except UnicodeDecodeError:
        url = ""
    if len(head) > MAX_BYTES or urlsplit(url).scheme not in ("http", "https"):
        raise Skip("bad_cameras", f"{name} begins with {line[:60]!r}, not with the URL of a video")
    return url


def video_of(url: str) -> str:
    """One name for all the ways to write a video's address: YouTube's id, else 16 hex digits of a hash."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        host = ""
    if YOUTUBE.fullmatch(host):
        asked = parse_qs(parts.query).get("v", [""])[0] or parts.path.rstrip("/").rsplit("/", 1)[-1]
        if YOUTUBE_ID.fullmatch(asked):
            return asked
    return hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
