"""Scenes of archives on their way into folders: each once, whole or with a reason, and never more passes than needed."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.budget import DiskBudget
from pipeline.core.records import Item
from pipeline.formats import archives, bundles
from tests.pipeline.formats.test_archives import pack


def scene_of(name: str) -> tuple[str, str] | None:
    parts = name.split("/")
    return (parts[-2], parts[-1]) if len(parts) > 1 else None


def staged(path: Path, uids: list[str], disk_budget: DiskBudget, into: Path) -> dict[str, Any]:
    known = (
        bundles.index(path, scene_of)
        if path.name.endswith("7z")
        else {f.key: f for f in bundles.found(path, scene_of, 0)}
    )
    got = {}
    for item, end in bundles.Staging(path, scene_of, disk_budget, folder_in(into)).run(
        [Item(uid, "x") for uid in uids], known
    ):
        assert item.uid not in got
        got[item.uid] = end
    assert list(got.keys() ^ set(uids)) == []
    return got


def folder_in(into: Path) -> Callable[[Item], Path]:
    def folder_of(item: Item) -> Path:
        (into / item.uid).mkdir(parents=True, exist_ok=True)
        return into / item.uid

    return folder_of


@pytest.mark.parametrize("suffix", [".tar.gz", ".7z"])
def test_batches_go_on_where_the_last_ended(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"x/{uid}/{i:03d}.png": f"{uid}{i}".encode() for uid in "abcdefgh" for i in range(3)}
    path = pack(tmp_path, suffix, files)
    walks = []
    walk = archives.walk
    monkeypatch.setattr(archives, "walk", lambda path: walks.append(path) or walk(path))  # type: ignore[func-returns-value]
    disk_budget = DiskBudget(tmp_path, 1e6)
    for batch, times in (("ab", 1), ("ce", 1), ("gh", 1), ("d", 2), ("zf", 2), ("zb", 2)):
        got = staged(path, list(batch), disk_budget, tmp_path / "into")
        assert len(walks) == times
        for uid, folder in got.items():
            if uid == "z":
                assert folder.reason == "no_images"
            else:
                assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
                    f"{i:03d}.png": f"{uid}{i}".encode() for i in range(3)
                }
    bundles.close_cursor(disk_budget)


def test_what_an_earlier_session_left_is_used_or_replaced(tmp_path: Path) -> None:
    path = pack(tmp_path, ".7z", {f"{uid}/{i:03d}.png": f"{uid}{i}".encode() for uid in "ab" for i in range(2)})
    disk_budget = DiskBudget(tmp_path, 1e6)
    for name, data in (("a/000.png", b"a?"), ("a/001.png", b"a!"), ("b/000.png", b"cut")):
        (tmp_path / "into" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "into" / name).write_bytes(data)
    staged(path, ["a", "b"], disk_budget, tmp_path / "into")
    assert (tmp_path / "into/a/000.png").read_bytes() == b"a?"  # whole, as far as sizes tell
    assert (tmp_path / "into/b/000.png").read_bytes() == b"b0"
    assert disk_budget.held("b") == 4


def test_a_faulty_member_costs_its_own_scene_alone(tmp_path: Path) -> None:
    files = {"a/000.png": b"a", "b/000.png": b"b", "b/000.PNG": b"?", "c/000.png": b"c"}
    for suffix in (".7z", ".zip", ".tar"):
        found = {scene.key: scene.fault for scene in bundles.found(pack(tmp_path, suffix, files), scene_of, 0)}
        assert found["a"] == found["c"] == "" and "000.PNG" in found["b"]
    got = staged(tmp_path / "archive.7z", ["a", "b", "c"], DiskBudget(tmp_path, 1e6), tmp_path / "into")
    assert got["b"].reason == "unsafe_archive"
    assert isinstance(got["a"], Path) and isinstance(got["c"], Path)


def test_the_same_name_twice(tmp_path: Path) -> None:
    path = tmp_path / "twice.tar"
    with tarfile.open(path, "w") as tar:
        for data in (b"1", b"2"):
            info = tarfile.TarInfo("a/000.png")
            info.size = 1
            tar.addfile(info, io.BytesIO(data))
    (scene,) = bundles.found(path, scene_of, 0)
    assert "two files" in scene.fault


def test_scenes_that_alternate_wait_for_no_room_that_nobody_can_make(tmp_path: Path) -> None:
    files = {f"{uid}/{i:03d}.png": os.urandom(1000) for i in range(2) for uid in "abc"}
    path = pack(tmp_path, ".7z", files)
    got = staged(path, list("abc"), DiskBudget(tmp_path, 4500), tmp_path / "into")
    assert isinstance(got["a"], Path) and isinstance(got["b"], Path)
    assert got["c"].reason == "interleaved"


def test_a_scene_larger_than_the_budget(tmp_path: Path) -> None:
    path = pack(tmp_path, ".7z", {"a/000.png": os.urandom(9000), "b/000.png": b"b"})
    got = staged(path, ["a", "b"], DiskBudget(tmp_path, 5000), tmp_path / "into")
    assert got["a"].reason == "too_large" and isinstance(got["b"], Path)


def test_a_damaged_end_costs_what_comes_after_it(tmp_path: Path) -> None:
    path = pack(tmp_path, ".tar.gz", {f"{uid}/000.png": os.urandom(300_000) for uid in "abc"})
    known = {scene.key: scene for scene in bundles.found(path, scene_of, 0)}
    path.write_bytes(path.read_bytes()[:700_000])
    staging = bundles.Staging(path, scene_of, DiskBudget(tmp_path, 1e7), folder_in(tmp_path / "into"))
    got = {item.uid: end for item, end in staging.run([Item(uid, "x") for uid in "abc"], known)}
    assert isinstance(got["a"], Path) and isinstance(got["b"], Path)
    assert got["c"].reason == "broken_archive"  # type: ignore[union-attr]
