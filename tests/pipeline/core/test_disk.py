"""Files that are replaced as a whole: the old one or the new one, and never anything beside."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipeline.core import disk as disks
from pipeline.core.disk import replace_text, replacing, write_json
from tests.pipeline.cycle.test_cycle_parts import fill, small_disk


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("beside", [None, "other.part"])
def test_a_file_is_replaced_as_a_whole(tmp_path: Path, beside: str | None, sync: bool) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")
    with replacing(path, beside and tmp_path / beside, sync) as temporary:
        assert temporary.name == (beside or "file.json.tmp")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_what_fails_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(after: bytes | None, error: type[BaseException] | None) -> None:
        with replacing(path) as temporary:
            if after is not None:
                temporary.write_bytes(after)
            if error:
                raise error

    for after in (b"half", b"", None):
        with pytest.raises(error):
            fail(after, error)
    with pytest.raises(FileNotFoundError):
        fail(None, None)  # nothing was written
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_old_file_alone(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        write_json(disk / "facts.json", {"old": 1})
        fill(disk, 8192)
        with pytest.raises(OSError, match="No space left"):
            write_json(disk / "facts.json", {"new": "x" * 20_000})
        with pytest.raises(OSError, match="No space left"), replacing(disk / "facts.json", sync=True) as temporary:
            temporary.write_bytes(bytes(20_000))
        assert sorted(os.listdir(disk)) == ["facts.json", "others"]
        assert (disk / "facts.json").read_text() == '{\n  "old": 1\n}'


def test_a_disk_that_is_full_when_it_syncs_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(disks, "fsync", full)
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="No space left"), replacing(tmp_path / "file", sync=True) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "file").read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_a_text_that_a_killed_process_left_half_written_is_gone_with_the_next(tmp_path: Path) -> None:
    (tmp_path / "status.tmp").write_text("half")
    replace_text(tmp_path / "status.json", "whole")
    assert os.listdir(tmp_path) == ["status.json"]


def test_the_next_writers_temporary_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is written by `view` and by the cycle that it shows: the second may begin when the first has just renamed."""
    path, rename = tmp_path / "page", os.replace

    def renamed_and_begun_anew(temporary: Path, to: Path) -> None:
        rename(temporary, to)
        temporary.write_text("of the second")

    monkeypatch.setattr(os, "replace", renamed_and_begun_anew)
    with replacing(path) as temporary:
        temporary.write_text("of the first")
    assert path.read_text() == "of the first" and temporary.read_text() == "of the second"
