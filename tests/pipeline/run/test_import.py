"""`lvsm-data import` as a user runs it: fetched or on disk, checked, resumed, and never the whole archive unpacked."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.core.records import Item
from pipeline.sources import dome
from pipeline.storage import journal
from pipeline.storage.ledger import Ledger
from pipeline.worker import clips
from tests import balls, foreign, importing, trees
from tests.conftest import lvsm_data_here
from tests.hub import Hub
from tests.importing import config
from tests.pipeline.sources import test_layers
from tests.pipeline.sources.test_sources import World

BUCKET = "https://virutalbuy-public.oss-cn-hangzhou.aliyuncs.com/"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with Hub(tmp_path / "root") as hub:
        (tmp_path / "home").mkdir()
        yield World(tmp_path, hub)


def run(world: World, *arguments: object, expect: int = 0) -> str:
    fixed = ("--executor", "inline", "--out", "out", "--mirror", f"{BUCKET}={world.hub.url}/")
    return world.run("import", *arguments, *fixed, expect=expect)


def shards(world: World) -> dict[int, list[str]]:
    """Width -> uids, one per row."""
    found = {}
    for folder in (world.folder / "out").iterdir():
        if folder.name.isdecimal():
            found[int(folder.name)] = [uid for path in folder.glob("*.parquet") for uid in column(path)]
    return found


def column(path: Path) -> list[str]:
    return list(pq.read_table(path, columns=["uid"])["uid"].to_pylist())


def mix(world: World, objects: int = 3, elevation: float = 30.0) -> trees.ObjaverseMix:
    trees.objaverse(world.folder / "root", count=3, chunks=1)
    return trees.objaverse_mix(world.folder / "root", objects=objects, elevation=elevation)


def test_objaverse_mix_is_fetched_checked_and_stored_at_both_sizes(world: World) -> None:
    made = mix(world)
    said = run(world, "--source", "objaverse-mix", "--n", 3, "--res", 32, 64)
    assert "cameras fit: " in said and "delivered 3" in said
    wanted = Counter(dict.fromkeys(made.scenes, 12))
    assert {width: Counter(uids) for width, uids in shards(world).items()} == {32: wanted, 64: wanted}
    assert world.hub.payloads()[f"datasets/{made.repo}/{made.archive}"] == 1
    assert not (world.folder / "out/raw").exists()


def test_cameras_that_do_not_fit_write_no_shard_and_better_ones_are_named(world: World) -> None:
    mix(world, objects=1, elevation=10.0)
    said = run(world, "--source", "objaverse-mix", "--n", 1, "--res", 64, expect=2)
    assert "the cameras of objaverse-mix do not fit its pictures" in said
    assert "--elevation-deg 10" in said
    assert shards(world) == {64: []}
    assert not list((world.folder / "out/journal").iterdir())
    shutil.rmtree(world.folder / "out")
    assert "cameras fit" in run(world, "--source", "objaverse-mix", "--n", 1, "--res", 64, "--elevation-deg", 10)
    shutil.rmtree(world.folder / "out")
    assert "cameras" not in run(world, "--source", "objaverse-mix", "--n", 1, "--res", 64, "--no-verify-cameras")


def test_gobjaverse_takes_the_views_it_needs_and_counts_what_is_gone(world: World) -> None:
    made = trees.gobjaverse(world.folder / "root", ["0/10005", "1/2"], missing=["9/45999"])
    said = run(world, "--source", "gobjaverse", "--n", 5, "--res", 64, expect=3)
    assert "drawn 3 = delivered 2 + failed 1 (missing 1)" in said
    uids = {Path(path).stem for item, path in made.glbs.items() if item in made.scenes}
    assert Counter(shards(world)[64]) == Counter(dict.fromkeys(uids, 38))
    assert set(world.hub.payloads().values()) == {1}
    assert not world.hub.count("GET", "/00024/") and not world.hub.count("GET", ".exr")


def test_dome_objaverse_object_by_object(world: World) -> None:
    """From the Hub and from a copy; each object's file is fetched once, its license is Objaverse's."""
    trees.objaverse(world.folder / "root", count=2, chunks=1)
    made = trees.dome(world.folder / "root")
    said = run(world, "--source", "dome-objaverse", "--n", 2, "--res", 64)
    assert "cameras fit: 2 scenes fit" in said and "delivered 2" in said
    assert Counter(shards(world)[64]) == Counter(dict.fromkeys(made.scenes, 48))
    assert set(world.hub.payloads().values()) == {1}
    rows = [row for path in (world.folder / "out/64").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert {row["license"] for row in rows} <= {"CC-BY-4.0", "CC-BY-NC-4.0"}
    assert {row["caption"] for row in rows} == {"balls 0", "balls 1"}
    assert not any("caption" in json.loads(row["meta"]) for row in rows)
    shutil.rmtree(world.folder / "out")
    copy = world.folder / "root/datasets" / made.repo
    (world.folder / "texts.csv").write_text(f"uid,caption\n{min(made.scenes)},better words\n")
    table = ("--depth", "--captions", "texts.csv")
    run(world, "--source", "dome-objaverse", "--input", copy, "--n", 2, "--res", 32, "--views", 12, *table)
    assert Counter(shards(world)[32]) == Counter(dict.fromkeys(made.scenes, 12))
    found = {one.uid: one for one in pipeline.open(world.folder / "out")}
    texts = {uid: f"balls {number}" for number, uid in enumerate(made.scenes)} | {min(made.scenes): "better words"}
    assert {uid: one.caption for uid, one in found.items()} == texts
    assert all(one.meta["cameras_fit"]["floating"] < 0.01 for one in found.values())
    assert "ok: " in world.run("verify", "out")
    (copy / "dome_objaverse/0/10010.parquet").write_bytes(b"no table")
    shutil.rmtree(world.folder / "out")
    assert "broken_image 1" in run(
        world, "--source", "dome-objaverse", "--input", copy, "--n", 2, "--res", 32, expect=3
    )


def test_arb_objaverse_object_by_object(world: World) -> None:
    """Of a zip on the Hub its directory and what is asked of each object are read: one light, four views, no other map."""
    trees.objaverse(world.folder / "root", count=2, chunks=1)
    folder, uids = world.folder / "root/datasets/lizb6626/Arb-Objaverse/data", [f"{i:032x}" for i in range(3)]
    folder.mkdir(parents=True)
    whole = {f"000-000/{uid}/{name}": data for uid in uids for name, data in test_layers.arb(folder).items()}
    noise = np.random.default_rng(0).bytes(3_000_000)
    path = importing.zipped(folder / "000-000.zip", {"large.bin": noise} | whole)
    asked = ("--source", "arb-objaverse", "--n", 2, "--res", 64, "--views", 4, "--normals", "--no-verify-cameras")
    assert "delivered 2" in run(world, *asked)
    assert set(Counter(shards(world)[64]).values()) == {4} and set(shards(world)[64]) <= set(uids)
    sent = sum(request.sent for request in world.hub.requests if request.file.endswith(path.name))
    assert 0 < sent < path.stat().st_size / 2
    rows = pq.read_table(next((world.folder / "out/64").glob("*.parquet"))).to_pylist()
    assert {len(row["normals"]) for row in rows} == {12 * 64 * 64} and "albedo" not in rows[0]
    assert "ok: " in world.run("verify", "out")
    shutil.rmtree(world.folder / "out")
    said = world.run(
        "import", "--input", folder, "--n", 1, "--res", 64, "--executor", "inline", "--out", "out", expect=2
    )
    assert "--source" in said  # zips say nothing of what is in them


def cap3d(folder: Path, name: str = "compressed_imgs_perobj_07.zip", count: int = 3) -> tuple[Path, list[str]]:
    """A zip of zips, one of three views per object, and much that nobody asked for."""
    files = foreign.gobjaverse_files(balls.circle(12, 1.38889, 64, 15.0)[:3])
    folder.mkdir(parents=True, exist_ok=True)
    made = importing.zipped(folder / "inner.zip", {Path(name).name: data for name, data in files.items()})
    inner = made.read_bytes()
    made.unlink()
    uids = [f"{number:032x}" for number in range(count)]
    whole = {f"imgs/{uid}.zip": inner for uid in uids} | {"imgs/large.bin": np.random.default_rng(0).bytes(3_000_000)}
    return importing.zipped(folder / name, whole), uids


def test_cap3d_object_by_object(world: World) -> None:
    """Of an outer zip on the Hub its directory and the objects that are asked for are read, and not the rest."""
    folder = world.folder / "root/datasets/tiange/Cap3D/RenderedImage_perobj_zips"
    folder.mkdir(parents=True)
    path, uids = cap3d(folder)
    said = run(world, "--source", "cap3d", "--n", 2, "--res", 64, "--license", "ODC-By 1.0")
    assert "delivered 2" in said
    assert len(set(shards(world)[64])) == 2 and set(shards(world)[64]) <= set(uids)
    sent = sum(request.sent for request in world.hub.requests if request.file.endswith(path.name))
    assert 0 < sent < path.stat().st_size / 2
    shutil.rmtree(world.folder / "out")
    assert "delivered 3" in run(world, "--source", "cap3d", "--input", path, "--n", 3, "--res", 32)
    (world.folder / "uids.txt").write_text(uids[1])
    shutil.rmtree(world.folder / "out")
    one = ("--uids", "uids.txt", "--n", 1, "--res", 32)
    run(world, "--source", "cap3d", "--input", path, *one)
    assert set(shards(world)[32]) == {uids[1]}


def test_cap3d_as_it_was_unpacked(tmp_path: Path) -> None:
    """Objects' zips, and folders of them; broken ones cost themselves."""
    outer, uids = cap3d(tmp_path / "a")
    with zipfile.ZipFile(outer) as archive:
        archive.extractall(tmp_path / "in", [f"imgs/{uid}.zip" for uid in uids])
    with zipfile.ZipFile(tmp_path / "in/imgs" / f"{uids[0]}.zip") as archive:
        archive.extractall(tmp_path / "in/imgs" / "unpacked")
    (tmp_path / "in/imgs" / f"{uids[1]}.zip").write_bytes(b"PK no zip")
    ends = importing.imported("cap3d", tmp_path / "in", tmp_path)
    assert {uid: getattr(end, "reason", "") for uid, end in ends.items()} == {
        uids[0]: "", uids[1]: "broken_archive", uids[2]: "", "imgs/unpacked": "",
    }  # fmt: skip
    for uid in (uids[0], "imgs/unpacked"):
        assert importing.errors(importing.only({uid: ends[uid]}), 64).max() < 0.06


def test_the_depth_of_dome_objaverse_lies_on_its_objects(tmp_path: Path) -> None:
    """Unprojected by the cameras that are loaded: within a thousandth of the object's surface, in all four rings."""
    made = trees.dome(tmp_path, objects=1)
    copy = tmp_path / "datasets" / made.repo
    cfg = config("dome-objaverse", copy, tmp_path)
    (item,) = dome.items(cfg, 0)
    posed = dome.load(item, Path(item.url), cfg)
    balls = made.scenes[item.uid]
    rows = pq.read_table(copy / "dome_objaverse/0/10010.parquet").to_pylist()
    for view, row in enumerate(rows):
        depth = cv2.imdecode(np.frombuffer(row["nd_png"], np.uint8), cv2.IMREAD_UNCHANGED)[..., 3] / 65535 * 5
        y, x = np.nonzero(depth)
        fx, fy, cx, cy = posed.fxfycxcy[view]
        z = depth[y, x]
        points = np.stack([(x + 0.5 - cx) / fx * z, (y + 0.5 - cy) / fy * z, z, np.ones_like(z)], -1)
        world = (points @ posed.c2w[view].T)[:, :3]
        off = np.abs(np.linalg.norm(world[:, None] - balls.centres, axis=-1) - balls.radius).min(1)
        assert len(off) > 50 and off.max() < 1e-3


def test_going_on_fetches_nothing_twice(world: World) -> None:
    trees.gobjaverse(world.folder / "root", ["0/1", "0/2", "0/3"], missing=[])
    run(world, "--source", "gobjaverse", "--n", 1, "--res", 64)
    run(world, "--source", "gobjaverse", "--n", 3, "--res", 64)
    assert len(set(shards(world)[64])) == 3
    assert set(world.hub.payloads().values()) == {1}


def test_a_compressed_archive_is_read_scene_by_scene(world: World) -> None:
    eyes = balls.circle(4, 35 / 32, 64)
    with tarfile.open(world.folder / "views_release.tar.gz", "w:gz") as tar:
        for number in range(12):
            folder = foreign.write_files(world.folder / "made" / f"{number:032x}", foreign.zero123_files(eyes))
            tar.add(folder, f"views_release/{folder.name}")
    source = ("--source", "zero123", "--input", "views_release.tar.gz", "--res", 64, "--raw-gb", "0.0002")
    run(world, *source, "--max-file-mb", "0.1", "--n", 5)
    run(world, *source, "--max-file-mb", "0.1", "--n", 12)
    assert Counter(shards(world)[64]) == Counter({f"{number:032x}": 4 for number in range(12)})


@pytest.mark.parametrize("source", ["nerfstudio", "colmap"])
def test_folders_and_what_is_wrong_in_some(world: World, source: str) -> None:
    eyes = balls.walk(3, (80, 96))
    for name in ("a", "b", "broken"):
        if source == "nerfstudio":
            foreign.nerfstudio(world.folder / "in" / name, eyes)
        else:
            foreign.colmap(world.folder / "in" / name, eyes, "PINHOLE", True)
    pictures = [path for path in (world.folder / "in/broken").rglob("*") if path.suffix in (".png", ".jpg", ".jpeg")]
    for path in sorted(pictures)[:2]:
        path.write_bytes(b"not a picture")
    said = run(world, "--source", source, "--input", "in", "--n", 3, "--res", 64, expect=3)
    assert "delivered 2 + failed 1 (broken_image 1)" in said
    assert f"source: {source} captures" in said
    assert "cameras: 0 scenes fit, 2 cannot be told by their pictures and were taken as they are" in said
    assert Counter(shards(world)[64]) == Counter({"a": 3, "b": 3})
    assert "ok: " in world.run("verify", "out")


def in_a_room(folder: Path, wrong: bool, tilted: int | None = None) -> None:
    """Seven photographs in a textured room; wrong: with each other's poses. tilted: a view whose pose looks 20 degrees up."""
    eyes = balls.walk(7, (216, 240), step=0.2)
    foreign.nerfstudio(folder, eyes, in_room=True)
    facts = foreign.read_json(folder / "transforms.json")
    if tilted is not None:
        pose = np.array(facts["frames"][tilted]["transform_matrix"])
        sine, cosine = np.sin(np.radians(20)), np.cos(np.radians(20))
        pose[:3, :3] = pose[:3, :3] @ [[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]
        facts["frames"][tilted]["transform_matrix"] = pose.tolist()
        (folder / "transforms.json").write_text(json.dumps(facts))
    if wrong:
        poses = [frame["transform_matrix"] for frame in facts["frames"]]
        for i, frame in enumerate(facts["frames"]):
            frame["transform_matrix"] = poses[(3 * i + 1) % 7]
        (folder / "transforms.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("n", [3, 9])
def test_scenes_whose_cameras_do_not_fit_are_left_out_by_themselves(world: World, n: int) -> None:
    """Among the first scenes, before anything is written, and later."""
    for i in range(n + n // 3):
        in_a_room(world.folder / "in" / f"{i:02d}", wrong=i % 4 == 3, tilted=4 if i == 1 else None)
    said = run(world, "--source", "nerfstudio", "--input", "in", "--n", n + 1, "--res", 64, expect=3)
    assert f"delivered {n} + failed {n // 3} (cameras_do_not_fit {n // 3})" in said
    assert f"cameras: {n} scenes fit, 0 cannot be told by their pictures, {n // 3} do not and were left out" in said
    assert "1 views of scenes that were taken do not and were left out (views_wrong)" in said
    views = Counter(shards(world)[64])
    assert views == {f"{i:02d}": 6 if i == 1 else 7 for i in range(n + n // 3) if i % 4 != 3}
    with Ledger(world.folder / "out/ledger.sqlite", readonly=True) as ledger:
        rows = dict(ledger.db.execute("SELECT uid, facts FROM item WHERE state = 'delivered'"))
        (detail,) = ledger.db.execute("SELECT detail FROM item WHERE uid = '03'").fetchone()
    fit, left = json.loads(rows["00"])["cameras_fit"], json.loads(rows["01"])
    assert fit["says"] == left["cameras_fit"]["says"] == "fits" and len(fit["views"]["apart"]) == 7
    assert left["views_wrong"] == ["images/frame_00004.png"] and max(left["cameras_fit"]["views"]["apart"]) < 0.8
    assert len(left["cameras_fit"]["views"]["apart"]) == 6 and "views_wrong" not in json.loads(rows["00"])
    assert "median distance" in detail and "--no-verify-cameras" in detail
    meta = json.loads(pq.read_table(next((world.folder / "out/64").glob("train*")))["meta"][0].as_py())
    assert meta["cameras_fit"]["apart"] < 0.8 and not [name for name in meta if name.startswith("_")]
    assert "ok: " in world.run("verify", "out")
    if n == 3:
        shutil.rmtree(world.folder / "out")
        few = ("--n", 4, "--verify-percent", 0)
        said = run(world, "--source", "nerfstudio", "--input", "in", *few, "--res", 64, expect=3)
        assert "(cameras_do_not_fit 1)" in said  # the first ones always are looked at
        shutil.rmtree(world.folder / "out")
        said = run(world, "--source", "nerfstudio", "--input", "in", "--n", 4, "--res", 64, "--no-verify-cameras")
        assert "delivered 4" in said and "cameras" not in said


def test_terms_of_ones_own_pictures(world: World) -> None:
    """License and credit stand in the rows, the account allows what they allow, and the card says what was done."""
    in_a_room(world.folder / "in/garden", wrong=False)
    own = ("--source", "nerfstudio", "--input", "in", "--n", 1, "--res", 64, "--license", "cc by 4.0")
    said = run(world, *own, "--credit", "Jane Doe", "page=https://example.org/garden")
    assert "CC-BY-4.0" in said
    row = pq.read_table(next((world.folder / "out/64").glob("*.parquet"))).to_pylist()[0]
    assert row["license"] == "CC-BY-4.0" and row["role"] == ""
    assert json.loads(row["meta"])["credit"] == {"author": "Jane Doe", "page": "https://example.org/garden"}
    listed = world.run("licenses", "out", "--attribution", "credits.csv", "--card", "card.md")
    assert "passing on: allowed by every license" in listed and "nothing is allowed" not in listed
    assert "Jane Doe" in (world.folder / "credits.csv").read_text()
    card = (world.folder / "card.md").read_text()
    assert "1 scenes" in card and "nothing was rendered" in card and "lit anew" not in card
    assert "license: cc-by-4.0" in card
    assert "license was CC-BY-4.0, now CC0-1.0" in run(world, *own[:-1], "CC0", expect=2)
    assert "is not understood" in run(world, *own[:-1], "mine", expect=2)
    assert "names no author" in run(world, *own, "--credit", "writer=Jane", expect=2)


def test_terms_of_clips_are_the_pages_where_it_states_any() -> None:
    item = Item("a", "realestate10k", license="CC-BY-4.0", credit={"author": "Jane"})
    assert clips._named(item, {"title": "House"}).license == "CC-BY-4.0"
    named = clips._named(item, {"author": "Joe", "license": "Creative Commons Attribution license (reuse allowed)"})
    assert named.license != "unknown" and named.credit == {"author": "Joe"}


def test_a_single_view_teaches_nothing(world: World) -> None:
    foreign.nerfstudio(world.folder / "in/one", balls.walk(3, (80, 96))[:1])
    one = ("--source", "nerfstudio", "--input", "in", "--n", 1, "--res", 64)
    assert "single_view 1" in run(world, *one, expect=3)
    shutil.rmtree(world.folder / "out")
    assert "delivered 1" in run(world, *one, "--views", 1)


def test_a_journal_of_a_version_without_roles_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        foreign.nerfstudio(world.folder / "in" / name, balls.walk(3, (80, 96)))
    here = ("--source", "nerfstudio", "--input", "in", "--res", 64)
    run(world, *here, "--n", 1)
    (shard,) = (world.folder / "out/64").glob("train*")
    before = pq.read_table(shard)
    of = before.schema.remove(before.schema.get_field_index("role")).remove_metadata()
    sink = (world.folder / "out/journal" / f"{shard.stem}.arrow").open("wb", buffering=0)
    journal.append(sink, of.serialize())
    for batch in before.drop_columns("role").replace_schema_metadata().to_batches():
        journal.append(sink, batch.serialize())
    sink.close()
    shard.unlink()
    run(world, *here, "--n", 2)
    tables = [pq.read_table(path) for path in (world.folder / "out/64").glob("*.parquet")]
    assert not any("role" in table.column_names for table in tables)  # all shards of a run have the same columns
    assert sorted({row["uid"] for table in tables for row in table.to_pylist()}) == ["a", "b"]
    assert "ok: " in world.run("verify", "out")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--source", "nerfstudio"), "needs --input"),
        (("--source", "colmap", "--input", "absent"), "does not exist"),
        (("--source", "zero123", "--input", "empty"), "--source zero123"),
        (("--source", "nerfstudio", "--input", "empty", "--views", "0"), "--views must be positive"),
    ],
)
def test_a_mistake_gets_a_message(
    tmp_path: Path, arguments: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    done = lvsm_data_here("import", *arguments, "--n", 1, "--executor", "inline", "--out", "out")
    assert done.returncode == 2 and says in done.stderr
