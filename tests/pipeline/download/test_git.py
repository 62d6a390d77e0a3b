"""Single files out of Git commits, over smart HTTP and with the real git."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core.budget import DiskBudget
from pipeline.core.errors import Retry, Skip
from pipeline.core.records import Item
from pipeline.download import fetch, git, route
from pipeline.download.fetch import Fetcher, FetchLimits
from tests import trees
from tests.hub import Hub

ADDRESS = "https://github.com/acme/models.git"


class Remote:
    """A user's git that finds github.com on loopback."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.base = folder / "root/git"
        self.hub = hub
        (folder / "raw").mkdir()
        mirrors = (("https://github.com/", f"{hub.url}/git/"),)
        self.net = Fetcher(FetchLimits(max_bytes=2e6, stall_s=2, mirrors=mirrors), DiskBudget(folder / "raw", 5e6))
        self.folder = folder

    def commit(self, files: dict[str, bytes | str | None], repo: str = "models") -> str:
        return trees.git_repo(self.base, "acme", repo, files)

    def get(self, commit: str, *paths: str, address: str = ADDRESS, **known: str) -> dict[str, Path | Skip | Retry]:
        wanted = [(Item(path, "github", sha256=known.get("sha256", "")), path) for path in paths]

        def folder_of(item: Item) -> Path:
            folder = self.net.disk_budget.folder / trees.sha256(item.uid.encode())
            folder.mkdir(exist_ok=True)
            return folder

        return {item.uid: got for item, got in git.fetch(address, commit, wanted, folder_of, self.net)}

    def reason(self, commit: str, path: str, **known: str) -> str:
        got = self.get(commit, path, **known)[path]
        assert isinstance(got, Skip | Retry), got
        return got.reason


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    monkeypatch.setattr(fetch, "FIRST_PAUSE_S", 0.02)
    with Hub(tmp_path / "root") as hub:
        for name, value in trees.git_config(tmp_path / "gitconfig", f"{hub.url}/git/").items():
            monkeypatch.setenv(name, value)
        remote = Remote(tmp_path, hub)
        yield remote
        remote.net.close()
        assert not list(remote.net.disk_budget.folder.glob("git-*")), "a checkout was left behind"


def tree_of(path: Path | Skip | Retry) -> set[str]:
    assert isinstance(path, Path), path
    root = next(parent for parent in path.parents if parent.name == git.TREE)
    return {file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()}


def test_a_file_brings_what_it_names(remote: Remote) -> None:
    boxes, scene = trees.obj_files(1), trees.gltf_files(2)
    commit = remote.commit(boxes | scene | {"big.bin": bytes(500_000), "README.md": b"x"})
    model = next(path for path in boxes if path.endswith(".obj"))
    gltf = next(path for path in scene if path.endswith(".gltf"))
    got = remote.get(commit, model, gltf)
    assert tree_of(got[model]) == set(boxes)
    assert tree_of(got[gltf]) == set(scene)
    for path, made in ((model, boxes), (gltf, scene)):
        file = got[path]
        assert isinstance(file, Path) and file.read_bytes() == made[path]
    assert remote.net.disk_budget.used == sum(map(len, boxes.values())) + sum(map(len, scene.values()))


def test_commits_of_one_repository_do_not_mix(remote: Remote) -> None:
    first = remote.commit({"a.glb": b"one"})
    second = remote.commit({"a.glb": b"two"})
    for commit, data in ((first, b"one"), (second, b"two"), (first, b"one")):
        got = remote.get(commit, "a.glb")["a.glb"]
        assert isinstance(got, Path) and got.read_bytes() == data


@pytest.mark.parametrize(
    "name", ["plain.glb", "a b#1 100% ü[x]*?!.glb", "-dash.glb", "deep/er/x.glb", "#x.glb", "!y.glb"]
)
def test_any_name_is_found_and_no_other_comes(remote: Remote, name: str) -> None:
    commit = remote.commit({name: b"this", "a b#1 100% ü_xx.glb": b"other", "zz.glb": b"other"})
    assert tree_of(remote.get(commit, name)[name]) == {name}


def test_percent_encoded_paths_are_understood(remote: Remote) -> None:
    commit = remote.commit({"a b.glb": b"this"})
    got = remote.get(commit, "a%20b.glb")["a%20b.glb"]
    assert isinstance(got, Path) and got.read_bytes() == b"this"


def test_links_are_followed_inside_and_never_out(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "secret.glb").write_bytes(b"secret")
    links: dict[str, bytes | str | None] = {
        "real/x.glb": b"this",
        "short.glb": "real/x.glb",
        "real/back.glb": "../short.glb",
        "out.glb": "../../../../secret.glb",
        "root.glb": str(tmp_path / "secret.glb"),
        "loop.glb": "loop2.glb",
        "loop2.glb": "loop.glb",
        "folder": "real",
    }
    commit = remote.commit(links)
    got = remote.get(commit, "short.glb", "real/back.glb", "out.glb", "root.glb", "loop.glb", "folder")
    for name in ("short.glb", "real/back.glb"):
        file = got[name]
        assert isinstance(file, Path) and file.read_bytes() == b"this" and not file.is_symlink()
    for name in ("out.glb", "root.glb", "loop.glb", "folder"):
        assert isinstance(got[name], Skip) and got[name].reason == "missing"


def test_found_modified_missing(remote: Remote) -> None:
    commit = remote.commit({"a.glb": b"this"})
    assert isinstance(remote.get(commit, "a.glb", sha256=trees.sha256(b"this"))["a.glb"], Path)
    assert remote.reason(commit, "a.glb", sha256=trees.sha256(b"that")) == "modified"
    assert remote.reason(commit, "b.glb") == "missing"
    assert remote.reason("0123456789" * 4, "a.glb") == "missing"


def test_a_repository_that_is_gone_asks_nobody_for_a_password(remote: Remote) -> None:
    got = remote.get("0123456789" * 4, "a.glb", "b.glb", address="https://github.com/acme/gone.git")
    assert {failure.reason for failure in got.values() if isinstance(failure, Skip)} == {"missing"}
    assert len(got) == 2
    assert remote.hub.count("GET", "gone.git") <= 2  # never tried again


def test_pointers_are_resolved_or_reported(remote: Remote, tmp_path: Path) -> None:
    big, other = trees.glb(5), trees.glb(6)
    trees.put(tmp_path / "root/lfs" / trees.sha256(big), big)
    attributes = b"*.glb filter=lfs diff=lfs merge=lfs -text\n"
    pointers = {".gitattributes": attributes, "big.glb": trees.lfs_pointer(big), "lost.glb": trees.lfs_pointer(other)}
    commit = remote.commit(dict(pointers))
    got = remote.get(commit, "big.glb", "lost.glb", sha256=trees.sha256(big))
    file = got["big.glb"]
    assert isinstance(file, Path) and file.read_bytes() == big
    assert isinstance(got["lost.glb"], Skip) and got["lost.glb"].reason == "lfs_pointer"


@pytest.mark.parametrize(("fault", "code"), [("status", 503), ("429", 429), ("reset", 0)])
def test_what_passes_is_tried_again(remote: Remote, fault: str, code: int) -> None:
    commit = remote.commit({"a.glb": b"this"})
    options = {"code": code} if fault == "status" else {"retry_after": 0} if fault == "429" else {"keep": -1}
    remote.hub.fault("info/refs", fault, **options)
    assert isinstance(remote.get(commit, "a.glb")["a.glb"], Path)


def test_a_host_that_hangs_is_given_up(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TRIES", 1)
    monkeypatch.setattr(git, "CONNECT_S", 1)
    monkeypatch.setattr(git, "TIMES_STALL", 1)
    commit = remote.commit({"a.glb": b"this"})
    remote.hub.fault("info/refs", "hang", times=None, seconds=900)
    start = time.monotonic()
    assert remote.reason(commit, "a.glb") in ("timeout", "connection")
    assert time.monotonic() - start < 300


def test_stopping_ends_git(remote: Remote) -> None:
    commit = remote.commit({"a.glb": b"this"})
    remote.hub.fault("info/refs", "hang", times=None, seconds=900)
    threading.Timer(0.5, remote.net.close).start()
    start = time.monotonic()
    assert remote.reason(commit, "a.glb") == "stopped"
    assert time.monotonic() - start < 300


def test_a_checkout_that_grows_too_large_is_cut_off(remote: Remote) -> None:
    commit = remote.commit({"a.obj": b"v 0 0 0\n" + trees.png(1) + os.urandom(6_000_000)})
    remote.hub.fault("git-upload-pack", "slow", times=None, methods=("POST",), rate=4_000_000)
    assert remote.reason(commit, "a.obj") == "too_large"
    assert remote.net.disk_budget.used == 0


def test_a_hostile_repository_runs_nothing_and_writes_nothing_outside(remote: Remote, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    script = f"#!/bin/sh\ntouch {canary}\n".encode()
    commit = remote.commit(
        {
            ".gitattributes": b"*.glb filter=evil\n",
            ".gitmodules": f'[submodule "x"]\n\tpath = x\n\turl = ext::sh -c touch% {canary}\n'.encode(),
            ".gitconfig": f'[filter "evil"]\n\tsmudge = touch {canary}\n'.encode(),
            "hooks/post-checkout": script,
            "a.glb": b"this",
        }
    )
    got = remote.get(commit, "a.glb")["a.glb"]
    assert isinstance(got, Path) and got.read_bytes() == b"this"
    assert not canary.exists()


@pytest.mark.parametrize(
    "uid", ["../victim", "../../root/victim", "VICTIM", "a/../../victim", "..", ".", "", "x\0y", "-x" * 200]
)
def test_no_uid_leads_out_of_the_cache(remote: Remote, tmp_path: Path, uid: str) -> None:
    victim = tmp_path / "victim"
    (victim / git.TREE).mkdir(parents=True)
    (victim / git.TREE / "mine.txt").write_text("mine")
    uid = str(victim) if uid == "VICTIM" else uid
    commit = remote.commit({"a.glb": b"this"})
    cache = tmp_path / "cache"
    remote.net.limits = dataclasses.replace(remote.net.limits, keep=True, cache=cache)
    item = Item(uid, "github", url=f"https://github.com/acme/models/blob/{commit}/a.glb")
    for _ in range(2):  # fetched, then found
        [(_, got)] = route.fetch_many([item], lambda item: remote.net.disk_budget.folder_of(item.uid), remote.net)
        assert isinstance(got, Path) and got.read_bytes() == b"this"
        kept = cache / route.KEPT_CHECKOUTS
        assert got.relative_to(kept).parts[1:] == (git.TREE, "a.glb")
        assert {path.name for path in cache.iterdir()} == {"github"} and len(list(kept.iterdir())) == 1
    assert [path.name for path in victim.rglob("*")] == [git.TREE, "mine.txt"]


@pytest.mark.parametrize(
    "address",
    [
        "https://github.com/acme/models/blob/COMMIT/../../../../../secret.glb",
        "https://github.com/acme/models/blob/COMMIT//etc/passwd",
        "https://github.com/../../blob/COMMIT/secret.glb",
        "https://huggingface.co/datasets/allenai/objaverse/resolve/main/../../secret.glb",
        "https://huggingface.co/datasets/allenai/objaverse/resolve/main/%2e%2e/%2e%2e/secret.glb",
        "https://huggingface.co/datasets/a/b/resolve/main//etc/passwd",
        "https://huggingface.co/datasets/a/b/resolve/main/x%00y.glb",
    ],
)
@pytest.mark.parametrize("keep", [True, False])
def test_no_address_leads_to_files_of_this_machine(remote: Remote, tmp_path: Path, address: str, keep: bool) -> None:
    commit = remote.commit({"a.glb": b"this"})
    (tmp_path / "secret.glb").write_bytes(b"secret")
    cache = tmp_path / "cache"
    (cache / "github/repos/acme/models").mkdir(parents=True)
    remote.net.limits = dataclasses.replace(remote.net.limits, keep=keep, cache=cache)
    item = Item("x", "github", url=address.replace("COMMIT", commit), sha256=trees.sha256(b"secret"))
    [(_, got)] = route.fetch_many([item], lambda item: remote.net.disk_budget.folder_of(item.uid), remote.net)
    assert isinstance(got, Skip) and got.reason in ("escapes_folder", "missing"), got
    assert (tmp_path / "secret.glb").read_bytes() == b"secret"
