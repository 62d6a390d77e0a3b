"""Sources whose files are fetched: no file that nobody asked for, and none twice."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from huggingface_hub.utils import close_session

from pipeline.core.budget import DiskBudget
from pipeline.core.errors import Retry, Skip
from pipeline.download.fetch import Fetcher, FetchLimits
from pipeline.sources import gobjaverse, objaverse_mix, posed_views
from tests import balls, foreign, importing
from tests.hub import Hub
from tests.importing import config, seven_zipped, staged, under, write_json

UID = foreign.UID


def listed(path: Path, value: object) -> None:
    """A list of Objaverse."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.json.gz").write_bytes(gzip.compress(json.dumps(value).encode()))


def test_gobjaverse_fetches_only_the_views_that_are_asked_for(tmp_path: Path) -> None:
    eyes = balls.circle(12, 35 / 32, 64)
    files = foreign.gobjaverse_files(eyes)
    many = {
        f"{i:05d}/{i:05d}{end}": files[f"{i % 12:05d}/{i % 12:05d}{end}"]
        for i in range(40)
        for end in (".json", ".png")
    }
    many |= {name.replace(".png", "_albedo.png"): data for name, data in many.items() if name.endswith(".png")}
    www = tmp_path / "tree/www/share/aigc3d"
    foreign.write_files(www / "objaverse/0/10005/campos_512_v4", many)
    write_json(www / gobjaverse.MAPS[0], {"0/10005": f"000-000/{UID}.glb", "0/10006": f"000-000/{'b' * 32}.glb"})
    (tmp_path / "raw").mkdir()
    with Hub(tmp_path / "tree") as hub:
        mirror = (gobjaverse.BASE.removesuffix("/share/aigc3d"), hub.url)
        net = Fetcher(FetchLimits(mirrors=(mirror,)), DiskBudget(tmp_path / "raw", 1e7))
        listed(tmp_path / "cache/hf-objaverse-v1/metadata/000-000", {UID: {"license": "cc0"}})
        cfg = config("gobjaverse", None, tmp_path / "cache", views=4)
        items = list(gobjaverse.items(cfg, 0, net))
        assert {item.uid: item.license for item in items} == {UID: "CC0-1.0", "b" * 32: "unknown"}
        got = staged("gobjaverse", cfg, items, tmp_path / "raw", net)
        assert hub.count(path_part="campos") == 2 * 4 + 1  # the other object's first file is missing
        assert hub.count(path_part="albedo") == 0
        again = staged("gobjaverse", cfg, items[:1], tmp_path / "raw", net)
        assert len(again) == 1 and hub.count(path_part=gobjaverse.MAPS[0]) == 1
        wider = config("gobjaverse", None, tmp_path / "cache", views=4, albedo=True)
        (known,) = (item for item in gobjaverse.items(wider, 0, net) if item.uid == UID)
        (more,) = staged("gobjaverse", wider, [known], tmp_path / "raw", net).values()
        assert hub.count(path_part="_albedo") == 4 and hub.count(path_part="_nd") == 0
        deeper = config("gobjaverse", None, tmp_path / "cache", views=4, depth=True)
        (known,) = (item for item in gobjaverse.items(deeper, 0, net) if item.uid == UID)
        (bare,) = staged("gobjaverse", deeper, [known], tmp_path / "raw", net).values()
        assert isinstance(bare, Path)
        with pytest.raises(Skip, match=r"4 of 4 .*_nd\.exr"):  # a few might do without theirs
            posed_views.whole(gobjaverse.load(known, bare, deeper), deeper.scene.layers)
        net.close()
    assert isinstance(more, Path)
    with_albedo = importing.to_scene(known, gobjaverse.load(known, more, wider), wider.scene)
    assert with_albedo.by_width[64].layers.keys() == {"albedo"}
    (scene,) = (item for item in items if item.uid == UID)
    end = importing.to_scene(scene, gobjaverse.load(scene, got[UID], cfg), cfg.scene)  # type: ignore[arg-type]
    assert len(end.c2w) == 4 and importing.errors(end, 64).max() < 0.06
    assert isinstance(got["b" * 32], Skip) and got["b" * 32].reason == "missing"


def test_objaverse_mix_brings_each_archive_once_and_never_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uids = {folder: [f"{folder}{i}" * 8 for i in range(10, 14)] for folder in "01"}
    pictures = foreign.mix_files(balls.circle(12, 35 / 32, 96))
    repo = tmp_path / "tree/datasets/BAAI/Objaverse-MIX/rendered_images"
    repo.mkdir(parents=True)
    for folder, names in uids.items():
        files = {name: data for uid in names[:3] for name, data in under(f"000-00{folder}/{uid}", pictures).items()}
        seven_zipped(repo / f"000-00{folder}.7z", files)
    paths = {uid: f"glbs/000-00{folder}/{uid}.glb" for folder, names in uids.items() for uid in names}
    paths |= {"e" * 24: "glbs/000-002/e.glb"}
    lists = {"object-paths": paths} | {
        f"metadata/000-00{i}": {uid: {"license": "by"} for uid in paths} for i in range(3)
    }
    for name, value in lists.items():
        listed(tmp_path / "tree/datasets/allenai/objaverse" / name, value)
    (tmp_path / "raw").mkdir()
    cfg = config("objaverse-mix", None, tmp_path / "cache")
    got: dict[str, Path | Skip | Retry] = {}
    with Hub(tmp_path / "tree") as hub:
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        net = Fetcher(FetchLimits(), DiskBudget(tmp_path / "raw", 1e9))
        items = list(objaverse_mix.items(cfg, 0, net))
        assert {(item.uid, item.license) for item in items} == {(uid, "CC-BY-4.0") for uid in paths}
        for i in range(0, len(items), 2):  # in small batches, of one archive each
            for key in {item.url for item in items[i : i + 2]}:
                batch = [item for item in items[i : i + 2] if objaverse_mix.batch(item) == key]
                got |= staged("objaverse-mix", cfg, batch, tmp_path / "raw", net)
                assert len(list((tmp_path / "raw").rglob("*.7z"))) <= 1
        brought = {name: count for name, count in hub.payloads().items() if name.endswith(".7z")}
        assert list(net.fetches.values()) == [1, 1]
        net.close()
        close_session()
    assert list(brought.values()) == [1, 1]
    for folder, names in uids.items():
        assert all(isinstance(got[uid], Path) for uid in names[:3]), folder
        assert getattr(got[names[3]], "reason", "") == "no_images"
    assert getattr(got["e" * 24], "reason", "") == "missing"
    uid = uids["0"][0]
    (item,) = (item for item in items if item.uid == uid)
    end = importing.to_scene(item, objaverse_mix.load(item, got[uid], cfg), cfg.scene)  # type: ignore[arg-type]
    assert importing.errors(end, 64).max() < 0.06
