"""Videos of fixed cameras become views with times: the right frame of each at each instant, whatever the container."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.config.views import ImportConfig, PosedConfig
from pipeline.core import cameras, images
from pipeline.core.errors import Skip, UserError
from pipeline.core.records import Item, Posed
from pipeline.poses import llff, rig
from pipeline.sources import captures
from pipeline.video import stills
from tests.conftest import lvsm_data_here

FRAMES, RATE, SIDE, CAMERAS = 25, 10, 64, 3
STEP = 8  # grey levels from frame to frame


def write_video(path: Path, codec: str = "libx264", first: int = 0, frames: int = FRAMES, **options: str) -> Path:
    """The left half of frame n has the grey level STEP * (n + 1); it is shown from (first + n) / RATE seconds on."""
    with av.open(str(path), "w") as film:
        stream = film.add_stream(codec, rate=RATE, options=options)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.color_range = 1  # limited, which is what yuv420p means
        for number in range(frames):
            pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
            pixels[:, : SIDE // 2] = STEP * (number + 1)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = first + number, Fraction(1, RATE)
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    return path


def number_of(png: bytes) -> int:
    """Number of the frame that a picture shows."""
    pixels = images.decode(png)
    return round(float(pixels[:, : pixels.shape[1] // 4].mean()) / STEP) - 1


POSES = cameras.look_at(1.5 * np.array([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0.5]]))
K = np.array([70.0, 70, SIDE / 2, SIDE / 2])


def with_transforms(folder: Path, names: list[str]) -> Path:
    frames = [
        {"file_path": name, "transform_matrix": pose.tolist()}
        for name, pose in zip(names, cameras.to_opengl(POSES), strict=True)
    ]
    camera = dict(zip(("fl_x", "fl_y", "cx", "cy"), K.tolist(), strict=True)) | {"w": SIDE, "h": SIDE}
    (folder / "transforms.json").write_text(json.dumps(camera | {"frames": frames}))
    return folder


def with_bounds(folder: Path) -> Path:
    """A row per video in the order of their names, by formulas of its own: down, right, backwards, centre, size and focal."""
    rows = [
        np.r_[np.c_[pose[:3, 1], pose[:3, 0], -pose[:3, 2], pose[:3, 3], [SIDE, SIDE, K[0]]].ravel(), 0.5, 3.0]
        for pose in POSES
    ]
    np.save(folder / llff.FILE, np.stack(rows))
    return folder


def load(folder: Path, **scene: object) -> Posed:
    cfg = ImportConfig(source="rig", input=folder, scene=PosedConfig(**scene))  # type: ignore[arg-type]
    return captures.load(Item("one", "rig", url=str(folder)), folder, cfg)


@pytest.mark.parametrize("calibration", ["transforms", "bounds"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_each_view_is_the_frame_of_its_time(tmp_path: Path, calibration: str, suffix: str) -> None:
    names = [f"cam{camera:02d}.{suffix}" for camera in range(CAMERAS)]
    where = tmp_path / "videos" if calibration == "bounds" else tmp_path
    where.mkdir(exist_ok=True)
    for name in names:
        # frames in another order than they are shown, which AVI has no times for; few key frames
        write_video(where / name, bf="0" if suffix == "avi" else "2", g="7")
    folder = with_bounds(tmp_path) if calibration == "bounds" else with_transforms(tmp_path, names)
    assert captures.recognised(folder)[0] == "rig"
    posed = load(folder, frames=4)
    assert list(posed.times) == pytest.approx(np.repeat([0, 0.8, 1.6, 2.4], CAMERAS).tolist())
    assert [number_of(png) for png in posed.images] == np.repeat([0, 8, 16, 24], CAMERAS).tolist()
    np.testing.assert_allclose(posed.c2w, np.tile(POSES, (4, 1, 1)), atol=1e-6)
    np.testing.assert_allclose(posed.fxfycxcy, np.tile(K, (12, 1)), atol=1e-4)
    assert posed.moves
    posed = load(folder, frames=4, fps=2.5)
    assert [number_of(png) for png in posed.images[::CAMERAS]] == [0, 4, 8, 12]
    assert len(load(folder, frames=40, fps=5.0).images) == CAMERAS * 13  # what no video shows is left out


def test_a_video_that_begins_late_is_counted_from_its_first_frame(tmp_path: Path) -> None:
    late = write_video(tmp_path / "late.mkv", first=17)
    first, last = stills.span(late) or (0, 0)
    assert first == Fraction(17, RATE) and last - first == pytest.approx(2.4)
    asked = [stills.frame_at(late, first + Fraction(str(seconds))) for seconds in (0, 0.1, 1.04, 1.06, 9)]
    assert [number_of(png) for png in asked] == [0, 1, 10, 11, 24]


def test_the_shortest_video_decides_and_a_broken_one_is_left_out(tmp_path: Path) -> None:
    names = [f"cam{camera}.mp4" for camera in range(CAMERAS)]
    for name, frames in zip(names, (FRAMES, 11, FRAMES), strict=True):
        write_video(tmp_path / name, frames=frames)
    folder = with_transforms(tmp_path, names)
    assert list(load(folder, frames=2).times)[::CAMERAS] == pytest.approx([0, 1.0])
    (tmp_path / names[1]).write_bytes(b"no video")
    posed = load(folder, frames=2)
    assert len(posed.images) == 4 and list(posed.times)[::2] == pytest.approx([0, 2.4])
    assert posed.meta["left_out"] == {"broken_image": 2}
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(Skip, match=r"cam0\.mp4"):
        load(folder, frames=2)


def test_videos_beside_pictures_are_no_rig(tmp_path: Path) -> None:
    """What a capture's pictures were taken from may lie beside them."""
    write_video(tmp_path / "source.mp4")
    folder = with_transforms(tmp_path, ["a.png", "b.png", "c.png"])
    assert not rig.is_scene(folder) and captures.recognised(folder)[0] == "nerfstudio"
    with_bounds(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(images.encode_png(np.zeros((8, 8, 3), np.uint8)))
    assert not rig.is_scene(folder)


def test_poses_and_videos_must_be_as_many(tmp_path: Path) -> None:
    write_video(tmp_path / "cam0.mp4")
    with pytest.raises(Skip, match=r"3 poses in poses_bounds\.npy and 1 videos"):
        load(with_bounds(tmp_path))


@pytest.mark.parametrize(
    ("source", "scene", "error"),
    [
        ("nerfstudio", {"frames": 4}, "choose instants of videos"),
        ("nerfstudio", {"fps": 4.0}, "choose instants of videos"),
        ("rig", {"frames": 0}, "must be positive"),
        ("rig", {"fps": -1.0}, "must be positive"),
    ],
)
def test_flags(tmp_path: Path, source: str, scene: dict[str, object], error: str) -> None:
    with pytest.raises(UserError, match=error):
        ImportConfig(source=source, input=tmp_path, scene=PosedConfig(**scene)).resolved()  # type: ignore[arg-type]


def test_end_to_end(tmp_path: Path) -> None:
    """The command finds out what it is, stores times, and a second one goes on."""
    names = [f"cam{camera}.mp4" for camera in range(CAMERAS)]
    given = tmp_path / "given" / "stage"
    given.mkdir(parents=True)
    for name in names:
        write_video(given / name)
    with_transforms(given, names)
    command = ("import", "--input", tmp_path / "given", "--frames", 5, "--res", 32, "--out", tmp_path / "out")
    done = lvsm_data_here(*command, "--license", "CC0-1.0", "--executor", "inline", "--no-verify-cameras", "--n", 1)
    assert done.returncode == 0, done.stderr
    import pipeline

    (one,) = pipeline.open(tmp_path / "out")
    assert len(one.jpegs) == 5 * CAMERAS and sorted(set(one.times)) == pytest.approx([0, 0.6, 1.2, 1.8, 2.4])
    assert [number_of(jpeg) for jpeg in one.jpegs[::CAMERAS]] == [0, 6, 12, 18, 24]
