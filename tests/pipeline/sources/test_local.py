"""Folders and manifests of one's own files: what is taken, what is said of the rest, and which license is stored."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.core.records import Item
from pipeline.sources import local
from tests.conftest import lvsm_data


def items(path: Path, allow_blend: bool = False) -> list[Item]:
    cfg: Any = SimpleNamespace(input=path, allow_blend=allow_blend)
    return list(local.items(cfg, 0, None))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for (
        name
    ) in "b.GLB deep/er/a.obj deep/a.mtl paint.png .hidden.stl c.3ds d.3ds e.blend f.o\x1bf README x.y/g.ply".split(
        " "
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "gone.fbx").symlink_to(tmp_path / "nowhere")
    (tmp_path / "linked").symlink_to(tmp_path / "deep")
    os.mkfifo(tmp_path / "pipe.stl")
    return tmp_path


def test_what_is_not_read_of_a_folder_is_said_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [item.uid for item in items(folder)] == [".hidden.stl", "b.GLB", "deep/er/a.obj", "x.y/g.ply"]
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "\x1b" not in line
    said = line.removeprefix(f"not read of {folder}: ").strip().split(", ", 2)
    assert said[0] == ".3ds 2"
    for kind in (
        ".blend 1 (--allow-blend opens them, scripts off)",
        "linked folders 1",
        "links to no file, or pipes 2",
    ):
        assert kind in line
    assert "of other names 2" in line and "png" not in line
    assert "e.blend" in [item.uid for item in items(folder, allow_blend=True)]
    assert ".blend" not in capsys.readouterr().err


def test_nothing_is_said_of_a_folder_of_which_all_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.obj", "a.mtl", "a.png", "b.gltf", "b.bin"):
        (tmp_path / name).write_bytes(b"")
    assert len(items(tmp_path)) == 2
    assert capsys.readouterr().err == ""


def test_a_folder_without_an_object_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    nobody = ["--address", "127.0.0.1:1"]  # a Ray cluster would be missed if one was asked for
    done = lvsm_data("render", "--source", "local", "--input", tmp_path / "in", "--out", tmp_path / "out", *nobody)
    assert done.returncode == 2
    assert "holds no 3D file" in done.stderr and "it is empty" in done.stderr
    (tmp_path / "in/a.max").touch()
    with pytest.raises(UserError, match="holds no 3D file") as refused:
        items(tmp_path / "in")
    assert ".max 1" in refused.value.hint


def test_licenses_are_stored_by_the_name_that_shards_have(tmp_path: Path) -> None:
    lines = ["path,license", "a.glb,cc by 4.0", "b.glb,", "c.glb,MIT License", "d.glb,my own words"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    assert [item.license for item in items(tmp_path / "list.csv")] == ["CC-BY-4.0", "unknown", "MIT", "my own words"]
    (tmp_path / "a.glb").touch()
    assert items(tmp_path)[0].license == "unknown"
