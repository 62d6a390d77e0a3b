"""Batches of the trainer against the shards they come from: the real writer, real JPEGs, threads, a killed process."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

torch = pytest.importorskip("torch")

from lvsm_train.data import batches, index, parquet_pages, view_sampling  # noqa: E402
from lvsm_train.data.batches import Data, DataConfig, Sample  # noqa: E402
from lvsm_train.data.index import Index, memory_free, read_index  # noqa: E402
from pipeline.core import cameras, images  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from pipeline.core.records import Item, Scene, Views  # noqa: E402
from pipeline.storage.shards import TIME, Rows, read_objects  # noqa: E402
from pipeline.storage.writer import ShardWriter  # noqa: E402
from tests.noise import VIEWS, config, digests, scene, ten_and_three, views_of, write  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ten_and_three(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def stored(run: Path) -> dict[tuple[str, int], Rows]:
    """(uid, width) -> what our reader of shards finds."""
    found = {}
    for width in (24, 48):
        for path in (run / str(width)).glob("*.parquet"):
            found |= {(rows.uid, width): rows for rows in read_objects(path)}
    return found


# ---- memory


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9), st.integers(1, 9)), max_size=60))
def test_memory_is_used_again_when_nobody_holds_it(steps: list[tuple[bool, int, int]]) -> None:
    """What is held keeps its values, also where only a part, a view or an array of it is held."""
    memory, held = batches.Memory(), []
    keep = (
        lambda one: one,
        lambda one: one[:, 1:],
        lambda one: one.numpy()[:1],
        lambda one: one.flatten(1).float().byte(),
    )
    most = 0
    for number, (drop, rows, columns) in enumerate(steps):
        if drop and held:
            held.pop(number % len(held))
        made = memory.take((rows, columns, 2))
        assert made.shape == (rows, columns, 2) and made.dtype == torch.uint8
        made.fill_(number)
        held.append((number, keep[number % len(keep)](made)))
        del made
        most = max(most, len(held))
        assert all((np.asarray(one) == value).all() for value, one in held)
    held.clear()
    assert len(memory._free) <= most + 1


# ---- the same batches, however they are made


@pytest.mark.parametrize("changes", [{}, {"inputs_from": 1}, {"samples_per_object": 3}, {"farthest_inputs": True}])
def test_ranks_share_one_batch(run: Path, changes: dict[str, Any]) -> None:
    whole = Data(config(run, batch=6, cache="none", **changes))
    parts = [Data(config(run, batch=3, cache="none", **changes), rank, 2) for rank in range(2)]
    for step in range(5):
        batch, halves = next(whole.batches(step)), [next(part.batches(step)) for part in parts]
        assert batch.uids == halves[0].uids + halves[1].uids
        for name in batches.TENSORS:
            assert torch.equal(getattr(batch, name), torch.cat([getattr(half, name) for half in halves]))
    assert whole.epochs(10) == parts[1].epochs(10) == 6 / changes.get("samples_per_object", 1)


@pytest.mark.parametrize(
    "changes", [{}, {"samples_per_object": 2, "res": 32}, {"target_among_inputs": True, "batch": 1}]
)
def test_neither_threads_nor_the_cache_show(run: Path, changes: dict[str, Any]) -> None:
    ways = [{"cache": cache, "workers": workers} for cache in ("memory", "none") for workers in (0, 1, 3)]
    made = [digests(config(run, **changes, **way)) for way in ways]
    assert all(one == made[0] for one in made)
    assert len(set(made[0])) == 6
    assert digests(config(run, seed=1, **changes)) != made[0]


def test_a_view_is_decoded_once_per_batch(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, decode = [], Index.decode
    monkeypatch.setattr(
        Index, "decode", lambda *given: (decoded.extend((given[1], view) for view in given[2]), decode(*given))
    )
    opened = Data(config(run, cache="none", samples_per_object=4))
    assert len({*next(opened.batches(0)).uids}) == 1
    assert len(decoded) == len(set(decoded)) <= VIEWS < 4 * 5


def test_a_killed_run_goes_on_as_if_nothing_had_happened(run: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.noise import config, digest, Data\n"
        "for batch in Data(config(Path(sys.argv[1]), workers=2, cache='none')).batches(): print(digest(batch), flush=True)"
    )
    command = [sys.executable, "-c", code, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as process:
        assert process.stdout is not None
        seen = [next(process.stdout).strip() for _ in range(4)]
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert seen + digests(config(run, workers=1), 4, start=4) == digests(config(run), 8)


# ---- what is in a batch


@pytest.mark.parametrize("res", [None, 24, 48, 32, 12])
def test_batches_hold_what_the_shards_hold(run: Path, stored: dict[tuple[str, int], Rows], res: int | None) -> None:
    opened = Data(config(run, res=res, rotate=False))
    width = res or 48
    assert opened.hw == (width, width)
    for step in range(3):
        plan, batch = opened.planner.training(step, 0, 1), next(opened.batches(step))
        assert batch.image.shape == (4, 3, 3, width, width) and batch.image.dtype == torch.uint8
        assert batch.target_image.shape == (4, 2, 3, width, width)
        assert batch.uids == [sample.uid for sample in plan]
        for place, sample in enumerate(plan):
            rows = stored[sample.uid, 24 if width <= 24 else 48]
            for view, picture, c2w, k in views_of(batch, sample, place):
                expected = images.shrink(images.decode(rows.jpegs[view]), (width, width))
                np.testing.assert_array_equal(picture, expected.transpose(2, 0, 1))
                np.testing.assert_array_equal(c2w, rows.c2w[view])
                new_k = cameras.resize_intrinsics(rows.intrinsics[view], rows.hw, (width, width))
                np.testing.assert_array_equal(k, new_k.astype(np.float32))
    assert batch.rgb.dtype == torch.float32 and float(batch.target_rgb.max()) <= 1


def test_a_point_is_where_the_intrinsics_say_at_every_width(tmp_path: Path) -> None:
    rng, hw = np.random.default_rng(0), (72, 96)
    c2w = cameras.sample("shell", rng, 8)
    k = np.tile(np.array([100, 90, 50, 33], np.float32), (8, 1))
    point = np.array([[0.1, -0.2, 0.15]])
    pixel = cameras.project(point, c2w, k)[0][:, 0]
    y, x = np.mgrid[:72, :96] + 0.5
    pictures = []
    for at in pixel:  # a soft dark spot in linear light, wide enough for JPEG and for pixels that are not whole
        dark = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * 5.0**2))
        pictures.append(images.encode_jpeg(images.srgb8(np.repeat(1 - 0.9 * dark[..., None], 3, 2)), 100))
    write(tmp_path, [Scene(Item("one", "local"), c2w, {96: Views(pictures, k, hw)}, {})])
    for width in (96, 64, 40, 32):
        opened = Data(config(tmp_path, res=width, inputs=4, targets=4, rotate=False))
        batch, (sample, *_) = next(opened.batches(0)), opened.planner.training(0, 0, 1)
        assert opened.hw == (width * 3 // 4, width)
        rows, columns = np.mgrid[: opened.hw[0], :width] + 0.5
        for view, picture, pose, intrinsics in views_of(batch, sample, 0):
            dark = 1 - images.linear(picture[0]).astype(float)
            seen = np.array([(dark * columns).sum(), (dark * rows).sum()]) / dark.sum()
            there = cameras.project(point, pose, intrinsics)[0][0]
            np.testing.assert_allclose(seen, there, atol=0.05)
            np.testing.assert_allclose(there, pixel[view] * width / 96, atol=1e-4)


def test_turning_the_world_leaves_pictures_alone(run: Path) -> None:
    opened, still = Data(config(run)), Data(config(run, rotate=False))
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 3))
    angles = []
    for step in range(8):
        turned, plain = next(opened.batches(step)), next(still.batches(step))
        assert [sample.angle for sample in still.planner.training(step, 0, 1)] == [0.0] * 4
        assert torch.equal(turned.fxfycxcy, plain.fxfycxcy)
        for place, sample in enumerate(opened.planner.training(step, 0, 1)):
            rows = still.index.c2w[still.index.of(sample.number)]
            where = view_sampling.rotate_z(np.eye(4)[None, None], np.array([sample.angle]))[0, 0]
            np.testing.assert_array_equal(where[2], [0, 0, 1, 0])  # about z, whatever the angle
            for view, _, c2w, k in views_of(turned, sample, place):
                before, depth = cameras.project(points, rows[view], k)
                after, new_depth = cameras.project(points @ where[:3, :3].T, c2w, k)
                np.testing.assert_allclose(after, before, atol=2e-4)
                np.testing.assert_allclose(new_depth, depth, atol=1e-5)
            angles.append(sample.angle)
    assert len(set(angles)) == 32 and 0 < min(angles) < 1 and 5 < max(angles) < 2 * np.pi


# ---- what can be wrong


def test_settings_that_make_no_sense(run: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"inputs": 0},
        {"inputs_from": 4},
        {"res": 4},
        {"scenes": True, "inputs": 1},
        {"batch": 0},
    ]
    wrong += [
        {"scenes": True, "gap_min": 9, "gap_max": 8},
        {"scenes": True, "held_views": 1},
        {"workers": -1},
        {"res": 64},
    ]
    for changes in wrong:
        with pytest.raises(UserError):
            Data(config(run, **changes))
    for folders in ((), (run / "nothing",)):
        with pytest.raises(UserError):
            Data(config(*folders))


def test_widths_are_those_that_all_folders_have(run: Path, tmp_path: Path) -> None:
    write(tmp_path, [scene(f"more-{number}", (30,)) for number in range(3)])
    opened = Data(config(run, tmp_path, cache="none"))
    assert opened.hw == (30, 30)
    assert {path.parent.name for path in opened.index.paths} == {"48", "30"}
    assert Data(config(run / "24", cache="none")).hw == (24, 24)


def test_pictures_of_two_shapes_are_told(tmp_path: Path) -> None:
    write(tmp_path, [scene("square", (24,)), scene("wide", (24,), height=0.5)])
    with pytest.raises(UserError, match=r"wide become 24x12 .* square 24x24"):
        Data(config(tmp_path))


def test_scenes_that_move_are_told(run: Path, tmp_path: Path) -> None:
    made = ShardWriter(tmp_path, (24,), (TIME,), {"config_hash": "0" * 16}, 1e12)
    for uid, times in (
        ("still", [0.5] * VIEWS),
        ("moves", [number % 2 / 2 for number in range(VIEWS)]),
        ("unknown", []),
    ):
        made.add(dataclasses.replace(scene(uid, (24,)), times=times), "train", 0)
    made.close("train")
    opened = Data(config(tmp_path))
    said = "scenes that move: 1; they train as if they stood still, all times at once; --temporal learns time"
    assert said in opened.notes and said not in Data(config(tmp_path), temporal=True).notes
    # times of a batch: shares of the object's own time, 0 of what stands still and of what says none
    for uid, times in (
        ("still", [0.0] * VIEWS),
        ("moves", [number % 2 for number in range(VIEWS)]),
        ("unknown", [0.0] * VIEWS),
    ):
        number = opened.index.uids.index(uid)
        assert opened.index.time[opened.index.of(number)].tolist() == times
        assert opened.index.moves(number) == (uid == "moves")
        batch = opened.gather([Sample(uid, number, (1, 2), (3, 0))])
        assert batch.time.tolist() == [[times[1], times[2]]] and batch.target_time.tolist() == [[times[3], times[0]]]
    assert "stood still" not in " ".join(Data(config(run)).notes)


@pytest.mark.parametrize("cache", ["none", "memory"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", ["gone", "cut", "zeros", "no picture", "cut picture"])
def test_broken_shards_are_named(tmp_path: Path, cache: str, workers: int, fault: str) -> None:
    path = write(tmp_path, [scene(f"o{i}", (24,)) for i in range(4)]) / "24/train-000000.parquet"
    index = read_index((tmp_path,), None, 1)
    whole, (start, length) = path.read_bytes(), index.chunk[2].tolist()
    jpeg = whole.index(b"\xff\xd8\xff", start)  # the first of this object
    end = whole.index(b"\xff\xd9", jpeg)
    broken = {
        "cut": whole[: start + length // 2],
        "zeros": whole[:start] + bytes(length) + whole[start + length :],
        "no picture": whole[:jpeg] + b"picture?" + whole[jpeg + 8 :],
        "cut picture": whole[: end - 40] + bytes(42) + whole[end + 2 :],
    }

    def work() -> None:
        opened = Data(config(tmp_path, cache=cache, workers=workers))
        if cache == "none":
            break_it()
        for _ in itertools.islice(opened.batches(), 40):
            pass

    def break_it() -> None:
        path.unlink() if fault == "gone" else path.write_bytes(broken[fault])

    if cache == "memory":
        break_it()
    with pytest.raises(UserError) as caught:
        work()
    assert (fault == "gone" and cache == "memory") or "train-000000.parquet" in str(caught.value)


@pytest.mark.parametrize("reader", [index.simplejpeg, None], ids=["simplejpeg", "OpenCV"])
@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0", "progressive", "grey", "turned"])
def test_jpegs_of_every_kind_have_the_bits_that_pil_sees(
    reader: object, sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "simplejpeg", reader)
    turned = Image.Exif()
    turned[0x0112] = 6  # a viewer would turn the picture
    how: dict[str, dict[str, Any]] = {"progressive": {"progressive": True}, "turned": {"exif": turned}, "grey": {}}
    rng = np.random.default_rng(0)
    for (high, wide), quality in itertools.product([(1, 1), (17, 32), (64, 63)], [30, 75, 98]):
        picture = Image.fromarray(rng.integers(0, 255, (high // 4 + 1, wide // 4 + 1, 3), np.uint8)).resize(
            (wide, high)
        )
        file = io.BytesIO()
        picture.convert("L" if sampling == "grey" else "RGB").save(
            file, "JPEG", quality=quality, **how.get(sampling, {"subsampling": sampling})
        )
        seen = index._rgb(memoryview(file.getvalue()), np.empty((high, wide, 3), np.uint8))
        assert np.array_equal(seen, np.asarray(Image.open(file).convert("RGB")))
    assert index._rgb(memoryview(b"text"), np.empty((9, 9, 3), np.uint8)) is None


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd9", b"\xff\xd8\xff\xd9"])
def test_what_is_no_picture_of_its_size_is_told(tmp_path: Path, content: bytes) -> None:
    one = scene("one", (24,))
    one.by_width[24].jpegs[5] = content or scene("other", (48,)).by_width[48].jpegs[5]
    write(tmp_path, [one])
    with pytest.raises(UserError, match="view 5 of one is no whole JPEG of 24x24 pixels"):
        Data(config(tmp_path))


@pytest.mark.parametrize("matrix", [np.diag([2.0, 2, 2, 1]), np.diag([1.0, 1, -1, 1])], ids=["scaled", "mirrored"])
def test_poses_that_are_not_rigid_are_told(tmp_path: Path, matrix: np.ndarray) -> None:
    bad = scene("bad", (24,))
    bad.c2w[3] = bad.c2w[3] @ matrix
    write(tmp_path, [scene("good", (24,)), bad])
    with pytest.raises(UserError, match=r"train-000000.parquet has poses that are not rigid: .*axes"):
        Data(config(tmp_path))


def test_poses_that_are_no_numbers(tmp_path: Path) -> None:
    bad = scene("bad", (24,))
    bad.c2w[3, 1, 2] = np.nan
    write(tmp_path, [scene("good", (24,)), bad])
    with pytest.raises(UserError, match=r"train-000000\.parquet has cameras"):
        Data(config(tmp_path))


def test_shards_that_others_have_packed_anew(run: Path, tmp_path: Path) -> None:
    for path in (run / "48").glob("*.parquet"):
        with pq.ParquetFile(path) as file, pq.ParquetWriter(tmp_path / path.name, file.schema_arrow) as writer:
            for group in range(file.num_row_groups):
                writer.write_table(file.read_row_group(group))
    opened = Data(config(tmp_path, cache="none"))
    assert "slow" in opened.notes[0]
    assert digests(config(tmp_path, cache="none", workers=2)) == digests(config(run))


def test_more_files_than_may_stay_open(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = digests(config(run))
    for most in (0, 1):
        monkeypatch.setattr("lvsm_train.data.index.OPEN_FILES", most)
        assert digests(config(run, cache="none", workers=3)) == expected


def test_what_fits_into_memory_is_kept_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_free() > 1e8
    assert Data(config(run)).cached == "memory"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    needed = 13 * VIEWS * 3 * 48 * 48
    for free, expected in ((needed * 8 / 0.4 + 8, "memory"), (needed * 8 / 0.4 - 8, "none")):
        monkeypatch.setattr(batches, "memory_free", lambda free=free: int(free))
        assert Data(config(run)).cached == expected
    assert Data(config(run, cache="memory")).cached == "memory"
    assert Data(config(run, cache="device")).pixels is not None
    assert digests(config(run, cache="device", workers=1)) == digests(config(run, cache="none"))


# ---- column chunks, byte by byte


@pytest.fixture(scope="module")
def chunk(run: Path) -> tuple[bytes, list[bytes]]:
    """A column chunk, and what pyarrow reads there."""
    path = run / "24/val-000000.parquet"
    index = read_index((run / "24",), None, 1)
    number = index.uids.index("val-1")
    offset, length = index.chunk[number].tolist()
    expected = pc.struct_field(pq.ParquetFile(path).read_row_group(1)["image"], "bytes").to_pylist()
    return path.read_bytes()[offset : offset + length], expected


def test_chunks_are_read_as_pyarrow_reads_them(chunk: tuple[bytes, list[bytes]]) -> None:
    batches, expected = chunk
    assert [batches[start:end] for start, end in parquet_pages.byte_strings(batches, VIEWS)] == expected
    for count in (VIEWS - 1, VIEWS + 1):
        with pytest.raises(ValueError):
            parquet_pages.byte_strings(batches, count)
    for other in (b"", batches[:-1], batches + b"\0", b"\x1c" * 5000, b"\xff" * 5000, bytes(5000)):
        with pytest.raises(ValueError):
            parquet_pages.byte_strings(other, VIEWS)


@settings(max_examples=300)
@given(st.data())
def test_damaged_chunks_are_refused_or_still_whole(chunk: tuple[bytes, list[bytes]], draw: st.DataObject) -> None:
    batches, expected = chunk
    at = draw.draw(st.integers(0, 60) | st.integers(0, len(batches) - 1))
    damaged = batches[:at] + draw.draw(st.binary(max_size=6)) + batches[at + draw.draw(st.integers(0, 6)) :]
    try:
        found = parquet_pages.byte_strings(damaged, VIEWS)
    except ValueError:
        return
    assert len(found) == len(expected)
    assert all(0 <= start <= end <= len(damaged) for start, end in found)


def test_settings_are_json() -> None:
    fields = dataclasses.asdict(config(Path("run")))
    assert json.loads(json.dumps(fields, default=str))["gap_max"] == 192


def test_a_picture_of_several_pages(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [images.encode_jpeg(rng.integers(0, 256, (256, 256, 3), np.uint8) // 2, 95) for _ in range(14)]
    poses = cameras.sample("shell", rng, 14)
    write(
        tmp_path,
        [Scene(Item("big", "local"), poses, {256: Views(pictures, np.full((14, 4), 9, np.float32), (256, 256))}, {})],
    )
    index = read_index((tmp_path,), None, 1)
    offset, length = index.chunk[0].tolist()
    chunk = index.paths[0].read_bytes()[offset : offset + length]
    assert [chunk[start:end] for start, end in parquet_pages.byte_strings(chunk, 14)] == pictures
    assert length > 1_500_000  # a page ends at 1 MiB


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_other_bytes_than_were_written_are_told_if_asked(tmp_path: Path, cache: str) -> None:
    one = scene("one", (24,))
    path = write(tmp_path, [one]) / "24/train-000000.parquet"
    mine = one.by_width[24].jpegs[5]
    at = path.read_bytes().index(mine)
    damaged = bytearray(path.read_bytes())
    scan = mine.index(b"\xff\xda") + 20  # behind the header of the pixels
    damaged[at + scan] ^= 16
    path.write_bytes(bytes(damaged))
    assert images.decode(bytes(damaged[at : at + len(mine)])).shape == (24, 24, 3)
    plain = config(tmp_path, cache=cache, batch=1, inputs=7, targets=6)

    def gather(cfg: DataConfig) -> None:
        opened = Data(cfg)
        opened.gather(opened.planner.named(["one"], 7, 6))

    gather(plain)
    with pytest.raises(UserError, match="the bytes of view 5 of one are not those that were written"):
        gather(dataclasses.replace(plain, check_images=True))
