"""Cameras that are kept of shards: read once, and anew where anything about a shard, or what was kept, is not as it was."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from lvsm_train.data import kept
from lvsm_train.data.index import Index, read_index
from pipeline.core.errors import UserError


@pytest.fixture
def large(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache, into which also small shards go."""
    monkeypatch.setattr(kept, "LEAST_BYTES", 0)
    monkeypatch.setattr(kept, "CACHE", tmp_path / "cache")
    kept._forget.cache_clear()
    return tmp_path / "cache"


def same_index(one: Index, other: Index) -> bool:
    pairs = [(getattr(one, each.name), getattr(other, each.name)) for each in dataclasses.fields(Index)]
    return all(np.array_equal(a, b) and a.dtype == b.dtype if isinstance(a, np.ndarray) else a == b for a, b in pairs)


def test_cameras_are_read_once(data: Path, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then only of shards that are new, have changed, or of which what was kept is broken or cannot be kept."""
    run = tmp_path / "run"
    shutil.copytree(data, run)
    reads: list[str] = []
    read = kept.read_shard
    monkeypatch.setattr(kept, "read_shard", lambda path: reads.append(path.name) or read(path))  # type: ignore[func-returns-value]
    first = read_index([run], None, 2)
    names = sorted(path.name for path in first.paths)
    assert sorted(reads) == names and first.licenses == {"unknown": 10}
    assert same_index(read_index([run], None, 2), first) and len(reads) == len(names)
    changed = run / "32" / names[0]
    os.utime(changed, (1, 1))  # as another file of this name
    assert same_index(read_index([run], None, 2), first) and len(reads) == len(names) + 1
    for path in large.glob("*.npz"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert same_index(read_index([run], None, 2), first) and len(reads) == 2 * len(names) + 1
    shutil.rmtree(large)
    large.write_text("no folder")
    assert same_index(read_index([run], None, 2), first) and len(reads) == 3 * len(names) + 1
    changed.write_bytes(changed.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        read_index([run], None, 2)


def test_what_nobody_reads_is_forgotten(data: Path, large: Path) -> None:
    read_index([data], None, 1)
    stale = large / "stale.npz"
    stale.touch()
    os.utime(stale, (0, 0))
    read_index([data], None, 1)
    assert stale.exists()  # nothing new came
    kept._forget.cache_clear()
    next(large.glob("[0-9a-f]*.npz")).unlink()
    read_index([data], None, 1)
    assert not stale.exists() and list(large.glob("*.npz"))
