"""Single files out of a commit of a Git repository: no history, no other files, no password prompt.

The commit and its trees come without contents (`--depth 1 --filter=blob:none`); a sparse checkout then brings the wanted
files, then those that they refer to (.mtl, .bin, textures). Git LFS pointers are resolved through the LFS batch API,
so that git-lfs need not be installed. https://git-scm.com/docs/partial-clone, https://github.com/git-lfs/git-lfs (docs/api).
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pipeline.core.disk import bytes_below
from pipeline.core.errors import Retry, Skip
from pipeline.core.paths import below
from pipeline.core.records import Fetched, Item
from pipeline.download.fetch import CONNECT_S, Fetcher, Passing, check_status, sha256_of
from pipeline.formats.references import companions

TREE = "tree"  # in an item's folder: the files of the repository, at their paths
POLL_S = 0.1
TIMES_STALL = 20  # a git command's time limit, in multiples of `stall_s`
ROUNDS = 3  # checkouts for files that other files name: an .obj names an .mtl, which names pictures
LINKS = 8  # lookups of one path: each symbolic link takes one, the file itself too
LFS_POINTER = re.compile(rb"version https://git-lfs\S*\noid sha256:([0-9a-f]{64})\nsize (\d+)")
SAFE = (
    ("core.hooksPath", os.devnull),
    ("core.symlinks", "false"),  # a link is written as a small text file: nothing can lead out of the folder
    ("core.fsmonitor", "false"),
    ("protocol.ext.allow", "never"),
    ("filter.lfs.smudge", ""),
    ("filter.lfs.process", ""),
    ("filter.lfs.required", "false"),
    ("advice.detachedHead", "false"),
    ("gc.auto", "0"),
)
GONE = re.compile(  # git's complaints about a repository or commit that was deleted, renamed away or made private
    r"not found|could not read Username|Authentication failed|terminal prompts disabled|does not (?:appear to be|exist)"
    r"|not our ref|unadvertised object|couldn't find remote ref|access rights|returned error: (?:401|403|404|410|451)",
    re.IGNORECASE,
)
LIMITED = re.compile(r"returned error: 429|Too Many Requests|rate limit", re.IGNORECASE)


def fetch(
    address: str, commit: str, wanted: Sequence[tuple[Item, str]], folder_of: Callable[[Item], Path], net: Fetcher
) -> Iterator[Fetched]:
    """Bring files of one commit into FOLDER/tree/<path in the repository>, with the files that they refer to.

    address: as git takes it. wanted: items and their files' paths. Yields every item once, with its file or the failure.
    Skip: missing (repository, commit or file), modified (another sha256), lfs_pointer (its content cannot be had),
    too_large; Retry: connection, rate_limited, timeout.
    """
    owner = f"{address}@{commit}"
    work = Path(tempfile.mkdtemp(prefix="git-", dir=net.disk_budget.folder))
    try:
        try:
            net.disk_budget.reserve(owner, int(net.limits.max_bytes))  # the size of a checkout is not known beforehand
            repository = _Repository(address, commit, work, net)
            net.tried(address, repository.open)
            repository.bring([path for _, path in wanted])
        except (Skip, Retry) as failure:
            yield from ((item, failure) for item, _ in wanted)
            return
        for item, path in wanted:
            try:
                got = repository.hand_over(item, path, folder_of(item))
                net.disk_budget.settle(item.uid, bytes_below(folder_of(item)))
                yield item, got
            except (Skip, Retry) as failure:
                yield item, failure
    finally:
        shutil.rmtree(work, ignore_errors=True)
        net.disk_budget.release(owner)


class _Repository:
    """A partial clone of one commit in a folder of its own."""

    def __init__(self, address: str, commit: str, work: Path, net: Fetcher) -> None:
        self.address = address
        self.commit = commit
        self.work = work
        self.net = net
        self.modes: dict[str, str] = {}
        self.present: set[str] = set()

    def open(self) -> None:
        """Fetch the commit without contents, and list its files. Raises Skip, Passing, Retry("stopped")."""
        shutil.rmtree(self.work)
        self.work.mkdir()
        self._git("init", "-q")
        self._git("remote", "add", "origin", self.address)
        self._git("config", "remote.origin.promisor", "true")
        self._git("config", "remote.origin.partialclonefilter", "blob:none")
        self._git("fetch", "-q", "--depth", "1", "--no-tags", "--filter=blob:none", "origin", self.commit)
        listed = self._git("ls-tree", "-r", "-z", "--full-tree", self.commit)
        for line in filter(None, listed.split("\0")):
            facts, path = line.split("\t", 1)
            self.modes[path] = facts.split()[0]

    def bring(self, paths: Iterable[str]) -> None:
        """Check out the paths that the commit has, and the files that these refer to. Raises Skip, Retry."""
        new = {real for path in paths if (real := self._real(path))}
        for _ in range(ROUNDS + 1):
            if not new:
                return
            self.present |= new
            self.net.tried(self.address, self._checkout)
            new = {found for path in new for found in self._named_by(path)} - self.present

    def hand_over(self, item: Item, path: str, folder: Path) -> Path:
        """Copy an item's file and the files it needs into FOLDER/tree; returns the file's path there. Raises Skip, Retry."""
        real = self._real(path)
        if not real:
            raise Skip("missing", f"{self.address} has no {path} at {self.commit}")
        self._resolve_pointer(real)
        if item.sha256 and (found := sha256_of(self.work / real)) != item.sha256:
            raise Skip("modified", f"sha256 is {found}, expected {item.sha256}")
        beside = folder / f"{TREE}.part"
        shutil.rmtree(beside, ignore_errors=True)
        for each in self._belongs_to(real):
            self._resolve_pointer(each)
            target = below(beside, path if each == real else each)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.work / each, target)
        shutil.rmtree(folder / TREE, ignore_errors=True)
        os.replace(beside, folder / TREE)
        return folder / TREE / path

    def _belongs_to(self, real: str) -> set[str]:
        """Paths of a file and of all files that it names, directly or not, if checked out."""
        found, new = {real}, {real}
        while new:
            new = {path for name in new for path in self._named_by(name) if path in self.present} - found
            found |= new
        return found

    def _named_by(self, path: str) -> list[str]:
        file = self.work / path
        if not file.is_file():
            return []
        try:
            named = companions(file, self.work)
        except Skip:  # broken or hostile: preflight reads the file too, and reports it
            return []
        return [real for name in named if (real := self._real(str(name)))]

    def _real(self, path: str) -> str:
        """Path of a file in the repository after following symbolic links; "" if `path` is no file of the commit.

        Objaverse-XL writes paths unencoded; percent-encoded paths, as in an address, are understood too.
        """
        path = path if path in self.modes else unquote(path)
        for _ in range(LINKS):
            mode = self.modes.get(path, "")
            if mode.startswith("100"):
                return path
            if mode != "120000":
                return ""
            target = self._git("cat-file", "blob", f"{self.commit}:{path}")
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        return ""

    def _checkout(self) -> None:
        patterns = "".join(f"/{_escaped(path)}\n" for path in sorted(self.present))
        self._git("sparse-checkout", "set", "--no-cone", "--stdin", given=patterns)
        self._git("checkout", "-q", "--force", "--detach", self.commit)

    def _resolve_pointer(self, path: str) -> None:
        """Replace a Git LFS pointer by its content; leave other files alone. Raises Skip("lfs_pointer") if that fails."""
        file = self.work / path
        if file.stat().st_size > 1024 or not (pointer := LFS_POINTER.match(file.read_bytes())):
            return
        sha256, size = pointer[1].decode(), int(pointer[2])
        url = self._lfs_url(sha256, size)
        try:
            self.net.get(url, file, owner=f"{self.address}@{self.commit}", sha256=sha256, size=size)
        except Skip as failure:
            raise Skip("lfs_pointer", f"{failure.reason}: {failure.detail}") from None

    def _lfs_url(self, sha256: str, size: int) -> str:
        asked = {"operation": "download", "transfers": ["basic"], "objects": [{"oid": sha256, "size": size}]}
        kind = "application/vnd.git-lfs+json"
        headers = {"Accept": kind, "Content-Type": kind}
        url = self.net.mirrored(f"{self.address}/info/lfs/objects/batch")

        def attempt() -> Any:
            import httpx2

            try:
                response = self.net.client.post(url, json=asked, headers=headers, timeout=self.net.timeout)
                check_status(response)
                return response.json()
            except httpx2.TransportError as error:
                raise Passing("connection", f"{url}: {error}") from None
            except ValueError as error:
                raise Skip("lfs_pointer", f"{url} answered no JSON: {error}") from None

        try:
            answer = self.net.tried(url, attempt)
            return str(answer["objects"][0]["actions"]["download"]["href"])
        except (KeyError, IndexError, TypeError):
            raise Skip("lfs_pointer", f"the repository's LFS store does not have {sha256}") from None
        except Skip as failure:
            raise Skip("lfs_pointer", f"{failure.reason}: {failure.detail}") from None

    def _git(self, *arguments: str, given: str = "") -> str:
        """Run git and return its output; kill it if it takes too long or too much disk, or once `net` is stopped."""
        options = [part for name, value in SAFE for part in ("-c", f"{name}={value}")]
        stall_s = max(1, int(self.net.limits.stall_s))
        quiet = {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "SSH_ASKPASS": "true", "GIT_LFS_SKIP_SMUDGE": "1"}
        slow = {"GIT_HTTP_LOW_SPEED_LIMIT": "1000", "GIT_HTTP_LOW_SPEED_TIME": str(stall_s), "LC_ALL": "C.UTF-8"}
        with (
            tempfile.TemporaryFile() as stdout_file,
            tempfile.TemporaryFile() as stderr_file,
            tempfile.TemporaryFile() as stdin_file,
        ):
            stdin_file.write(given.encode())
            stdin_file.seek(0)
            process = subprocess.Popen(
                ["git", *options, *arguments],
                cwd=self.work,
                env=os.environ | quiet | slow,
                stdin=stdin_file,
                stdout=stdout_file,
                stderr=stderr_file,
                start_new_session=True,
            )
            self._watch(process, time.monotonic() + CONNECT_S + TIMES_STALL * stall_s)
            stdout_file.seek(0)
            stderr_file.seek(0)
            if process.returncode:
                raise _failure(self.address, stderr_file.read().decode(errors="replace").strip())
            return stdout_file.read().decode(errors="surrogateescape")

    def _watch(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        """Wait for git. Kills it to raise Retry("stopped"), Skip("too_large") or Passing("timeout")."""
        running = True
        while running:
            try:
                process.wait(POLL_S)
                running = False
            except subprocess.TimeoutExpired:
                pass
            size = bytes_below(self.work)
            if self.net.stopped.is_set():
                end: Exception = Retry("stopped")
            elif size > self.net.limits.max_bytes:  # of the wanted files alone, packed and unpacked
                end = Skip("too_large", f"{self.address}: the checkout has passed {size / 1e6:.0f} MB")
            elif running and time.monotonic() > deadline:
                end = Passing("timeout", f"{self.address}: git was still at it")
            else:
                continue
            if running:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            raise end


def _failure(address: str, complaint: str) -> Exception:
    last = complaint.splitlines()[-1] if complaint else "git failed without a word"
    detail = f"{address}: {last}"
    if LIMITED.search(complaint):
        return Passing("rate_limited", detail)
    if GONE.search(complaint):
        return Skip("missing", detail)
    return Passing("connection", detail)


def _escaped(path: str) -> str:
    """A path as a pattern of a sparse checkout that matches itself alone."""
    return re.sub(r"([*?\[\]\\!# ])", r"\\\1", path)
