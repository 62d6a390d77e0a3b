"""Videos whose frames say which they are, camera files of RealEstate10K for them, and a server that hands them out with faults.

Frame times are measured with ffprobe and not computed, so a caller compares with what the file says.
"""

from __future__ import annotations

import functools
import http.server
import io
import itertools
import json
import math
import re
import select
import socket
import struct
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import av
import cv2
import numpy as np

from tests.serving import BoundedServer

# ---- frames that carry their number

BITS = 16
GRID = 8  # cells along each side of the centre square; the code fills the middle half of its rows
DARK, BRIGHT = 16, 240  # not 0 and 255: ringing of a codec would clip, and shift the mean of a cell


def numbered(number: int, hw: tuple[int, int] = (180, 320)) -> np.ndarray:
    """RGB (H, W, 3): `number` and a checksum in black and white cells of the centre square, texture around them."""
    if not 0 <= number < 1 << BITS:
        raise ValueError(f"{number} does not fit in {BITS} bits")
    height, width = hw
    picture = np.roll(_texture(hw), 3 * number, axis=1)
    side = min(hw)
    top, left = (height - side) // 2, (width - side) // 2
    for cell, bit in enumerate(_code(number)):
        row, column = divmod(cell, GRID)
        rows = slice(top + (row + GRID // 4) * side // GRID, top + (row + GRID // 4 + 1) * side // GRID)
        picture[rows, left + column * side // GRID : left + (column + 1) * side // GRID] = BRIGHT if bit else DARK
    return picture


def read_number(rgb: np.ndarray) -> int:
    """The number of a frame, from its centre square at any size from 64; ValueError where it cannot be trusted."""
    side = rgb.shape[0]
    if rgb.ndim != 3 or rgb.shape[1] != side or side < 64:
        raise ValueError(f"not a square picture of at least 64 pixels: {rgb.shape}")
    grey = rgb.astype(np.float64).mean(-1)
    levels = []
    for row, column in itertools.product(range(GRID // 2), range(GRID)):
        y, x = (row + GRID // 4) * side / GRID, column * side / GRID
        near, far = 0.25 * side / GRID, 0.75 * side / GRID
        levels.append(grey[round(y + near) : round(y + far), round(x + near) : round(x + far)].mean())
    bits = np.array(levels) > 128
    if (np.abs(np.array(levels) - 128) < 50).any():  # two frames on top of each other, as deinterlacers and blends make
        raise ValueError(f"grey cells: {np.round(levels)}")
    number = int(sum(1 << i for i in range(BITS) if bits[i]))
    if list(bits) != _code(number):
        raise ValueError(f"the checksum of {number} does not fit")
    return number


def _code(number: int) -> list[bool]:
    """The number and its scrambled self, lowest bits first: no misread, torn or mirrored picture fits by chance."""
    both = number | (number * 40503 + 0x5A5A) % (1 << BITS) << BITS
    return [bool(both >> i & 1) for i in range(2 * BITS)]


@functools.cache
def _texture(hw: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(0)
    total = np.zeros((*hw, 3))
    for cells, weight in ((3, 1.0), (9, 0.6), (27, 0.3)):
        coarse = rng.standard_normal((cells, cells * 2, 3)) + rng.standard_normal((cells, cells * 2, 1))
        total += weight * cv2.resize(coarse, hw[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(120 + 35 * total, 0, 255).astype(np.uint8)


# ---- videos

_X265 = "log-level=none:scenecut=0"
_CODECS: dict[str, tuple[str, dict[str, str], int | None]] = {  # encoder, options, crf
    "h264": ("libx264", {"preset": "ultrafast", "x264-params": "scenecut=0"}, 18),
    "h264, open": ("libx264", {"preset": "ultrafast", "x264-params": "scenecut=0:open-gop=1:b-pyramid=normal"}, 18),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": _X265}, 18),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "b": "0"}, 20),
    "vp8": ("libvpx", {"deadline": "realtime", "cpu-used": "8", "b": "2000000"}, 20),
    "av1": ("libsvtav1", {"preset": "8"}, 18),
    "mpeg2": ("mpeg2video", {"qmin": "2", "qmax": "3", "b": "8000000"}, None),
    "mpeg4": ("mpeg4", {"qmin": "2", "qmax": "3", "b": "8000000"}, None),
    "prores": ("prores_ks", {}, None),
    "mjpeg": ("mjpeg", {"qmin": "2", "qmax": "3", "b": "20000000"}, None),
}
_MP4 = (".mp4", ".mov", ".m4v", ".3gp")
_FINEST = 1_000_000  # ticks of a track's clock in a second, at most
_AUDIO_RATE = 48000  # Hz; Opus has no other of the usual ones


def make_video(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    fps: Fraction = Fraction(25),
    times: Sequence[Fraction] | None = None,
    codec: str = "h264",
    bframes: int = 2,
    gop: int = 24,
    start: Fraction = Fraction(0),
    audio: bool = False,
    fragmented: bool = False,
    moov_at_end: bool = False,
    edit_list: bool = True,
    crf: int | None = None,
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
) -> list[Fraction]:
    """Writes the container that the name asks for; seconds from its start_time to each frame, as ffprobe has them.

    An .avi has no times of its own: frames are shown in their order, `fps` of them in a second. rotation: degrees
    counterclockwise by which a player turns what was written.

    times: of each frame, instead of `fps`. start: is added to all of them. audio: a second track, which starts at 0.
    edit_list=False: an .mp4 that lacks one, so B-frames delay it. The container says its start_time in whole microseconds,
    and a .webm all times in whole milliseconds.
    """
    encoder, options, usual_crf = _CODECS[codec]
    counted, is_mp4 = path.suffix == ".avi", path.suffix in _MP4
    if counted and (start or times is not None):
        raise ValueError("an .avi cannot say when a frame is shown")
    if start and not edit_list:
        raise ValueError("a start is lost without an edit list")
    pictures = list(frames)
    if times is not None and len(times) != len(pictures):
        raise ValueError(f"{len(pictures)} frames, {len(times)} times")
    seconds = [start + (Fraction(i) / fps if times is None else times[i]) for i in range(len(pictures))]
    clock = min(_FINEST, math.lcm(fps.numerator, *(second.denominator for second in seconds)))
    options = options | ({} if usual_crf is None else {"crf": str(usual_crf if crf is None else crf)})
    options |= {"g": str(gop)} if codec != "hevc" else {"x265-params": f"{_X265}:keyint={gop}:bframes={bframes}"}
    if codec.startswith(("h264", "mpeg")):  # after the preset, which has none
        options |= {"bf": str(bframes)} | ({"b_strategy": "0"} if codec.startswith("h264") else {})
    if counted or codec.startswith("mpeg"):  # ticks of frames
        clock = fps.numerator
    muxing = _mp4(fragmented, moov_at_end, edit_list, clock if start else 1000) if is_mp4 else {}
    with av.open(str(path), "w", options=muxing) as container:
        video = container.add_stream(encoder, rate=fps, options=options)
        assert isinstance(video, av.VideoStream)
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt = pix_fmt
        video.codec_context.time_base = 1 / fps if counted or codec.startswith("mpeg") else Fraction(1, clock)
        if rotation:
            video.set_display_rotation(rotation)
        track = (
            container.add_stream("libopus" if path.suffix in (".webm", ".mkv") else "aac", rate=_AUDIO_RATE)
            if audio
            else None
        )
        assert track is None or isinstance(track, av.AudioStream)
        done = 0
        for i, (picture, second) in enumerate(zip(pictures, seconds, strict=True)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = round(second * clock), Fraction(1, clock)
            after = seconds[i + 1] if i + 1 < len(seconds) else second + 1 / fps
            frame.duration = round(after * clock) - frame.pts
            while track is not None and done < after * _AUDIO_RATE:
                container.mux(track.encode(_tone(done)))
                done += 1024
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if track is not None:
            container.mux(track.encode(None))
    measured = seconds if counted else frame_times(path)
    if len(measured) != len(pictures):
        raise AssertionError(f"{len(pictures)} frames went into {path.name}, {len(measured)} came out")
    return measured


def _mp4(fragmented: bool, moov_at_end: bool, edit_list: bool, timescale: int) -> dict[str, str]:
    """timescale: what an edit list's units are a share of a second of; the usual 1000 would round a start."""
    if fragmented:  # delay_moov, as the edit list needs to know the first frames
        flags = ["frag_keyframe", "dash", "global_sidx", *(["delay_moov"] if edit_list else [])]
    else:
        flags = [] if moov_at_end else ["faststart"]
    options = {"use_editlist": str(int(edit_list)), "movie_timescale": str(timescale)}
    return options | ({"movflags": "+".join(flags)} if flags else {})


def _tone(first: int) -> av.AudioFrame:
    samples = 0.1 * np.sin(2 * np.pi * 440 / _AUDIO_RATE * (first + np.arange(1024)))
    frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = _AUDIO_RATE, first, Fraction(1, _AUDIO_RATE)
    return frame


def probe(path: Path, *entries: str) -> Any:
    """What ffprobe says of the first video stream: probe(path, "frame=pts,pict_type", "format=start_time")."""
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-of", "json", "-show_entries", ":".join(entries)]
    return json.loads(subprocess.run([*command, str(path)], check=True, capture_output=True, timeout=300).stdout)


def frame_times(path: Path, since_start: bool = True) -> list[Fraction]:
    """Seconds from the container's start_time (or from 0) to each frame of the first video stream, in order of presentation."""
    found = probe(path, "frame=pts", "stream=time_base", "format=start_time")
    unit, begin = Fraction(found["streams"][0]["time_base"]), Fraction(found["format"]["start_time"])
    return [frame["pts"] * unit - since_start * begin for frame in found["frames"]]


# ---- camera files of RealEstate10K


def camera_file(url: str, times_us: Sequence[int], fxfycxcy: np.ndarray, w2c: np.ndarray) -> str:
    """The text of one file: the URL, then a line per frame. fxfycxcy: shares of width and height, (4,) or (V, 4)."""
    lines = [url]
    for time_us, k, pose in zip(times_us, np.broadcast_to(fxfycxcy, (len(times_us), 4)), w2c, strict=True):
        numbers = [*k, 0.0, 0.0, *np.asarray(pose, np.float64)[:3, :4].ravel()]
        lines.append(" ".join([str(int(time_us)), *(f"{number:.9f}" for number in numbers)]))
    return "\n".join(lines) + "\n"


def circle_w2c(count: int) -> np.ndarray:
    """World-to-camera (V, 3, 4) of a camera that goes around the origin by a degree per frame and looks at it; OpenCV axes."""
    poses = []
    for i in range(count):
        angle = np.radians(i)
        position = np.array([2 * np.sin(angle), 0.3 * np.sin(3 * angle) - 0.4, -2 * np.cos(angle)])
        forward = -position / np.linalg.norm(position)
        right = np.cross([0.0, 1.0, 0.0], forward)
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward])
        poses.append(np.c_[rotation, -rotation @ position])
    return np.array(poses).reshape(-1, 3, 4)


def write_dataset(folder: Path, files: Mapping[str, Mapping[str, str]]) -> Path:
    """{"train": {key: text}} -> folder/train/key.txt."""
    for split, texts in files.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for key, text in texts.items():
            (folder / split / f"{key}.txt").write_text(text)
    return folder


def pack_dataset(path: Path, files: Mapping[str, Mapping[str, str]], prefix: str = "RealEstate10K") -> Path:
    """The same as a .tar.gz, which has folders of its own before the files, as the published one."""
    with tarfile.open(path, "w:gz") as archive:
        for name in (prefix, *(f"{prefix}/{split}" for split in files)):
            head = tarfile.TarInfo(name)
            head.type, head.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(head)
        for split, texts in files.items():
            for key, text in texts.items():
                head = tarfile.TarInfo(f"{prefix}/{split}/{key}.txt")
                head.size = len(text.encode())
                archive.addfile(head, io.BytesIO(text.encode()))
    return path


# ---- a walk through a room

ROOM = np.array([[-2.6, -1.5, -3.2], [2.6, 1.5, 4.4]])  # two corners; y points down
TEXELS = np.float32(120)  # of a wall, in a unit of length
BLOB_SIGMA = 0.012  # of a picture's height, as all lengths of blobs: the same in a centre square of any size
BLOB_REACH = 3.5  # sigmas: what a centroid is taken over
DISC = 5.0  # sigmas: a blob lies on a dark disc of this radius, so that the room's texture does not pull at it
EDGE = 0.5  # sigmas: over which the disc ends
DISC_LEVEL = 24.0
LEAST_LIGHT = 80.0  # grey levels that a blob stands out by, and the walls' texture does not
COLOURS = np.array([[1, 1, 1], [1, 1, 0.4], [0.4, 1, 1], [1, 0.7, 0.7], [0.7, 1, 0.7], [0.8, 0.8, 1]])


def walk(hw: tuple[int, int], count: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Frames, w2c (V, 3, 4), fxfycxcy as shares of width and height (4,), and the points (P, 3) where bright blobs are.

    A camera walks through a textured room and turns, by some pixels from each frame to the next. fx != fy in pixels, the
    principal point is off the centre. A blob is a Gaussian of fixed size around its projected point, integrated over pixels.
    """
    height, width = hw
    pixel_focal = 1.25 * height
    shares = np.array([pixel_focal * 1.02 / width, 1.25, 0.508, 0.487])
    poses = np.array([_walk_pose(i) for i in range(count)]).reshape(-1, 3, 4)
    return [_walk_frame(hw, shares, pose) for pose in poses], poses, shares, _walk_points()


def _walk_pose(i: int) -> np.ndarray:
    yaw, pitch, roll = 0.3 * np.sin(0.11 * i), 0.06 * np.sin(0.13 * i + 0.5), 0.03 * np.sin(0.17 * i + 1)
    position = np.array([0.6 * np.sin(0.08 * i + 1), 0.15 * np.sin(0.19 * i), -1.2 - 0.9 * np.cos(0.05 * i)])
    c2w, _ = cv2.Rodrigues(np.array([0, yaw, 0]))
    for axis in ([pitch, 0.0, 0.0], [0.0, 0.0, roll]):
        c2w = c2w @ cv2.Rodrigues(np.array(axis))[0]
    return np.c_[c2w.T, -c2w.T @ position]


@functools.cache
def _walk_points() -> np.ndarray:
    """A jittered grid as seen from where the walk starts, at very different depths."""
    rng = np.random.default_rng(3)
    slopes = np.stack(np.meshgrid(np.linspace(-0.72, 0.84, 7), np.linspace(-0.34, 0.34, 4), indexing="ij"), -1)
    slopes = slopes.reshape(-1, 2) + rng.uniform(-0.03, 0.03, (28, 2))
    rays, eye = np.c_[slopes, np.ones(28)], np.array([0.2, 0, -1.6])
    to_wall = np.max([(ROOM[0] - eye) / rays, (ROOM[1] - eye) / rays], 0).min(-1)
    return eye + rays * (to_wall * rng.uniform(0.55, 0.95, 28))[:, None]


def project(points: np.ndarray, w2c: np.ndarray, fxfycxcy: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Pixels (P, 2) of points (P, 3), the centre of pixel (0, 0) at (0.5, 0.5); NaN for those behind the camera."""
    x, y, z = w2c[:, :3] @ points.T + w2c[:, 3:]
    z = np.where(z > 0.05, z, np.nan)
    fx, fy, cx, cy = fxfycxcy
    return np.stack([(fx * x / z + cx) * hw[1], (fy * y / z + cy) * hw[0]], -1)


def _walk_frame(hw: tuple[int, int], shares: np.ndarray, w2c: np.ndarray) -> np.ndarray:
    height, width = hw
    picture = _room(hw, shares, w2c)
    sigma = BLOB_SIGMA * height
    y, x = np.mgrid[:height, :width] + 0.5
    light = np.zeros((height, width, 3))
    points = _walk_points()
    for i, (u, v) in enumerate(project(points, w2c, shares, hw)):
        if not (-2 * DISC * sigma < u < width + 2 * DISC * sigma and -2 * DISC * sigma < v < height + 2 * DISC * sigma):
            continue
        top, left = max(0, math.floor(v - DISC * sigma)), max(0, math.floor(u - DISC * sigma))
        part = np.s_[top : max(0, math.ceil(v + DISC * sigma)), left : max(0, math.ceil(u + DISC * sigma))]
        apart = np.hypot(x[part] - u, y[part] - v) / sigma
        room = np.clip((apart - DISC) / EDGE + 1, 0, 1)[..., None]
        picture[part] = room * picture[part] + (1 - room) * DISC_LEVEL
        spot = np.outer(_pixels_of_gaussian(v, sigma, height)[part[0]], _pixels_of_gaussian(u, sigma, width)[part[1]])
        light[part] = np.maximum(light[part], spot[..., None] * COLOURS[i % len(COLOURS)])
    return np.round(picture + (240 - DISC_LEVEL) * light).clip(0, 255).astype(np.uint8)


def _pixels_of_gaussian(centre: float, sigma: float, size: int) -> np.ndarray:
    """Means over pixels, with 1 at the peak; Gaussians are separable, so a blob is the product of two of these."""
    edges = [math.erf((i - centre) / (sigma * math.sqrt(2))) for i in range(size + 1)]
    return np.diff(edges) * sigma * math.sqrt(math.pi / 2)


def _room(hw: tuple[int, int], shares: np.ndarray, w2c: np.ndarray) -> np.ndarray:
    """Grey walls (H, W, 3) with 2 x 2 samples in a pixel."""
    height, width = hw[0] * 2, hw[1] * 2
    x = ((np.arange(width) + 0.5) / width - shares[2]) / shares[0]
    y = ((np.arange(height) + 0.5) / height - shares[3]) / shares[1]
    rotation = w2c[:, :3]
    position = -rotation.T @ w2c[:, 3]
    rays = np.stack(np.broadcast_arrays(x[None], y[:, None], 1.0), -1).astype(np.float32) @ rotation.astype(np.float32)
    ahead, behind = (ROOM[1] - position).astype(np.float32), (ROOM[0] - position).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        to_walls = np.maximum(ahead / rays, behind / rays)
    axis = to_walls.argmin(-1)
    met = position.astype(np.float32) + rays * np.take_along_axis(to_walls, axis[..., None], -1)
    texture = _wall_texture()
    u = (np.where(axis == 0, met[..., 2], met[..., 0]) * TEXELS + 31 * axis.astype(np.float32)) % (len(texture) - 1)
    v = (np.where(axis == 1, met[..., 2], met[..., 1]) * TEXELS + 57 * axis.astype(np.float32)) % (len(texture) - 1)
    grey = cv2.remap(texture, u, v, cv2.INTER_LINEAR)
    fine = cv2.resize(grey, hw[::-1], interpolation=cv2.INTER_AREA)
    return np.repeat(fine[..., None].astype(np.float64), 3, -1)


@functools.cache
def _wall_texture() -> np.ndarray:
    """Grey blotches of several sizes, none brighter than half of a blob."""
    rng = np.random.default_rng(5)
    total = np.zeros((1024, 1024))
    for cells, weight in ((24, 1.0), (64, 1.0), (128, 0.8)):
        total += weight * cv2.resize(rng.standard_normal((cells, cells)), (1024, 1024), interpolation=cv2.INTER_CUBIC)
    return np.clip(60 + 26 * total, 5, 115).astype(np.float32)


def find_blobs(rgb: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Centroids (P, 2) of the walk's blobs in pixels, each within a disc's radius of where it is expected.

    rgb: a whole frame or its centre square, at any size. NaN: out of sight, cut by the border, or another's disc too close.
    """
    height, width = rgb.shape[:2]
    sigma = BLOB_SIGMA * height
    margin = DISC * sigma
    found = np.full((len(expected), 2), np.nan)
    for i, place in enumerate(np.asarray(expected, np.float64)):
        inside = (place > margin).all() and (place < np.array([width, height]) - margin).all()
        if inside and not (np.hypot(*(np.delete(expected, i, 0) - place).T) < 2 * margin).any():
            left, top = np.maximum(0, np.floor(place - 2 * margin)).astype(int)
            right, bottom = np.ceil(place + 2 * margin).astype(int)
            patch = rgb[top:bottom, left:right].astype(np.float64).mean(-1)
            corner = np.array([left, top])
            found[i] = corner + _centroid(patch, place - corner, sigma)
    return found


def _centroid(grey: np.ndarray, place: np.ndarray, sigma: float) -> np.ndarray:
    y, x = np.mgrid[: grey.shape[0], : grey.shape[1]] + 0.5
    centre, reach = place, DISC - 1
    for _ in range(5):
        apart = np.hypot(x - centre[0], y - centre[1]) / sigma
        ring = grey[(apart > BLOB_REACH) & (apart < DISC - EDGE)]
        light = np.where(apart < reach, grey - (np.median(ring) if ring.size else 0), 0)
        light = np.clip(light - 0.1 * light.max(), 0, None)  # what JPEG leaves around a blob would pull at it
        if light.max() < LEAST_LIGHT:
            return np.full(2, np.nan)
        centre, reach = np.array([(light * x).sum(), (light * y).sum()]) / light.sum(), BLOB_REACH
    return centre if np.hypot(*(centre - place)) < DISC * sigma else np.full(2, np.nan)


# ---- a server

CONTENT_TYPES = {".mp4": "video/mp4", ".webm": "video/webm", ".html": "text/html; charset=utf-8"}
WITHIN = frozenset({"truncated", "hang", "slow", "reset"})  # the bytes of a file; other faults come instead of them
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>This video is unavailable.</body></html>"


class Request(NamedTuple):
    """What came in and how much went out. bytes_sent: of the body, counted just before they go."""

    method: str
    path: str  # unquoted, without the query
    range: str  # the header, "" where there is none
    bytes_sent: int


@dataclass
class Fault:
    """What goes wrong with the requests to one path.

    kind: a status as "404", "429" (with Retry-After); html (200 and a page); truncated, reset, hang (`after_bytes` of the
    body come, -1: not even a status line); slow (`rate` bytes per second). times: so many requests, None: all; after the first
    `skip`, as yt-dlp asks for a page before it downloads it as a file.
    """

    kind: str
    times: int | None = None
    skip: int = 0
    after_bytes: int = 1000
    retry_after: int = 1  # seconds
    rate: int = 20_000
    seconds: float = 60.0  # that a hang lasts, unless the server stops or the client goes
    hits: int = 0
    seen: int = 0

    def __post_init__(self) -> None:
        if self.kind not in WITHIN | {"html"} and not re.fullmatch(r"[45]\d\d", self.kind):
            raise ValueError(f"no such fault: {self.kind}")


@dataclass
class _Record:
    method: str
    path: str
    range: str
    sent: int = 0


class VideoServer:
    """`with VideoServer(folder) as server:` serves folder/<name> at server.url/<name> until the block ends.

    ranges=False: a Range is ignored. faults: path -> Fault, "/clip.mp4" for instance; may change at any time.
    """

    def __init__(self, folder: Path, ranges: bool = True) -> None:
        self.folder = folder
        self.ranges = ranges
        self.faults: dict[str, Fault] = {}
        self.cookies: set[str] = set()  # headers that came in
        self._records: list[_Record] = []
        self._errors: list[str] = []
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> VideoServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stopping.set()
        self._server.stop()
        if self._errors and kind is None:
            raise AssertionError("\n".join(self._errors))

    @property
    def requests(self) -> list[Request]:
        """All requests so far, those under way too."""
        with self._lock:
            return [Request(one.method, one.path, one.range, one.sent) for one in self._records]

    def matching(self, method: str | None = None, path: str | None = None) -> list[Request]:
        return [one for one in self.requests if method in (None, one.method) and path in (None, one.path)]

    @property
    def bytes_sent(self) -> int:
        """Of the bodies of all answers."""
        return self.sent()

    def sent(self, path: str | None = None) -> int:
        """Bytes of bodies that went out for `path`, None: for all."""
        return sum(one.bytes_sent for one in self.matching(None, path))

    def clear(self) -> None:
        """Forgets requests and faults."""
        with self._lock:
            self._records.clear()
            self.faults.clear()

    def _take_fault(self, record: _Record) -> Fault | None:
        with self._lock:
            fault = self.faults.get(record.path)
            if fault is None or (record.method == "HEAD" and fault.kind in WITHIN):  # no body that it could happen to
                return None
            fault.seen += 1
            if fault.seen <= fault.skip or (fault.times is not None and fault.hits >= fault.times):
                return None
            fault.hits += 1
            return fault


class _Server(BoundedServer):
    def __init__(self, owner: VideoServer) -> None:
        self.owner = owner
        super().__init__(_Handler, owner._errors, owner._stopping)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60  # of an idle connection
    server: _Server
    request: Any

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        owner = self.server.owner
        path = unquote(urlsplit(self.path).path)
        self.record = _Record(self.command, path, self.headers.get("Range", ""))
        with owner._lock:
            owner._records.append(self.record)
            owner.cookies.add(self.headers.get("Cookie", ""))
        fault = owner._take_fault(self.record)
        if fault and fault.kind == "html":
            self._send(200, {"Content-Type": "text/html; charset=utf-8"}, PAGE)
        elif fault and fault.kind not in WITHIN:
            wait = {"Retry-After": str(fault.retry_after)} if fault.kind == "429" else {}
            self._send(int(fault.kind), wait | {"Content-Type": "text/plain"}, b"an error by order")
        else:
            self._send(*self._answer(path), fault)

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        file = self.server.owner.folder / path[1:]
        if ".." in path.split("/") or not file.is_file():
            return 404, {"Content-Type": "text/plain"}, b"Not Found"
        data = file.read_bytes()
        headers = {"Content-Type": CONTENT_TYPES.get(file.suffix, "application/octet-stream")}
        if not self.server.owner.ranges:
            return 200, headers, data
        headers["Accept-Ranges"] = "bytes"
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.record.range)
        if span is None or span[0] == "bytes=-":
            return 200, headers, data
        if span[1]:
            first, last = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
        else:
            first, last = max(0, len(data) - int(span[2])), len(data) - 1
        if first > last:
            return 416, headers | {"Content-Range": f"bytes */{len(data)}"}, b""
        return 206, headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1]

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None = None) -> None:
        cut = fault is not None and fault.kind in ("truncated", "reset", "hang")
        if cut:
            self.close_connection = True
        if not (cut and fault is not None and fault.after_bytes < 0):
            lines = {"Date": self.date_time_string(), **headers, "Content-Length": str(len(body))}
            if self.close_connection:
                lines["Connection"] = "close"
            text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
            self.wfile.write(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{text}\r\n".encode("latin-1"))
        if self.command == "HEAD":
            return
        step = max(1, fault.rate // 20) if fault and fault.kind == "slow" else 1 << 16
        body = body[: max(0, fault.after_bytes)] if cut and fault is not None else body
        for first in range(0, len(body), step):
            piece = body[first : first + step]
            self.record.sent += len(piece)
            self.wfile.write(piece)
            if fault and fault.kind == "slow" and self.server.owner._stopping.wait(step / fault.rate):
                raise ConnectionError("the server stops")
        if fault and fault.kind == "hang":
            until = time.monotonic() + fault.seconds
            while time.monotonic() < until and not self.server.owner._stopping.wait(0.05):
                if select.select([self.connection], [], [], 0)[0]:  # the client has gone
                    break
        elif fault and fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.server.resets.add(self.request)
