"""What downloads and uploads talk to, on 127.0.0.1: a Hugging Face Hub with its CDN, plain files, Git and Git LFS, with faults on
demand.

    root/datasets/<owner>/<name>/<path>   a dataset repository; *.glb *.parquet *.7z *.tar *.zip are LFS files, others blobs
    root/models/<owner>/<name>/<path>     a model's repository, known as models/<owner>/<name>; *.safetensors *.pt *.bin are large
    root/branches/<branch>/<owner>/<name> another branch of it
    root/www/<path>                       every other path
    root/git/<owner>/<name>.git           bare repositories, served at /git/ by `git http-backend`
    root/lfs/<oid>                        what the Git LFS batch API hands out and takes in

The CDN is a second port, as in the real world it is another host: huggingface_hub follows no redirect there with a HEAD and drops
its token on the way. Uploads go the way of Git LFS: huggingface_hub takes it where HF_HUB_DISABLE_XET is set.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import json
import os
import re
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlsplit

import huggingface_hub
import pytest
import yaml
from huggingface_hub.utils._http import close_session

from pipeline.report.attribution import HUB
from tests.serving import BoundedServer

LFS_SUFFIXES = (".glb", ".parquet", ".7z", ".tar", ".zip", ".safetensors", ".pt", ".bin")
INSTEAD = frozenset({"status", "429", "html", "redirect_loop", "hang"})  # of an answer
WITHIN = frozenset(
    {"truncate", "reset", "slow", "wrong_bytes", "no_length", "ignore_range", "endless"}
)  # the bytes of a file
CHUNK = 1 << 16
REPO = "(?:datasets/|(?=models/))((?:models/)?[^/]+/[^/]+)"  # datasets/me/try -> me/try, models/me/try -> models/me/try


@dataclass
class Request:
    """One request. `ended` is noted just before the last bytes go, so that a client is never faster than its record."""

    method: str
    path: str  # unquoted, without the query
    query: str
    headers: dict[str, str]  # lower case
    cdn: bool
    started: float
    body: bytes = b""
    status: int = 0
    sent: int = 0  # bytes of the body
    ended: float = float("inf")
    file: str = ""  # below the Hub's root, for a request that is answered with a file
    fault: str = ""

    @property
    def range(self) -> str | None:
        return self.headers.get("range")

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")

    @property
    def token(self) -> str:
        return (self.authorization or "").removeprefix("Bearer ")


@dataclass
class Fault:
    path_part: str
    kind: str
    left: int | None
    methods: tuple[str, ...]
    options: dict[str, Any]
    hits: int = 0


@dataclass
class Reply:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @staticmethod
    def of(value: object, status: int = 200, kind: str = "application/json", **headers: str) -> Reply:
        named = {name.replace("_", "-"): content for name, content in headers.items()}
        return Reply(status, {"Content-Type": kind, **named}, json.dumps(value).encode())

    @staticmethod
    def error(status: int, code: str, message: str, **headers: str) -> Reply:
        return Reply.of({"error": message}, status, X_Error_Code=code, X_Error_Message=message, **headers)


class Hub:
    """`with Hub(root, gated={"owner/name": "hf_token"}) as hub:` serves until the block ends. writers: token -> whose it is."""

    def __init__(
        self, root: Path, gated: Mapping[str, str] | None = None, writers: Mapping[str, str] | None = None
    ) -> None:
        self.root = root
        self.gated = dict(gated or {})
        self.writers = dict(writers or {})
        self.private: set[str] = set()
        self.requests: list[Request] = []
        self.page_size = 1000  # of a repository's tree
        self.stopping = threading.Event()
        self._faults: list[Fault] = []
        self._commits: dict[str, list[str]] = {}
        self._hashes: dict[tuple[Path, int, int], dict[str, str]] = {}
        self._errors: list[str] = []
        self._lock = threading.RLock()
        self._servers = [_Server(self, cdn) for cdn in (False, True)]
        self.url, self.cdn_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def __enter__(self) -> Hub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stopping.set()
        for server in self._servers:
            server.stop()
        if self._errors and kind is None:
            raise AssertionError("\n".join(self._errors))

    def environment(self, home: Path) -> dict[str, str]:
        """For a subprocess that shall find this Hub, no other, and no settings or token of the developer's."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "GIT_", "XDG_"))}
        settings = {"HF_ENDPOINT": self.url, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        settings |= {"HF_HUB_DISABLE_XET": "1"} | ({"HF_TOKEN": next(iter(self.writers))} if self.writers else {})
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
        return kept | settings | quiet | {"HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1"}

    # What a test orders, and what it asks afterwards.

    def fault(
        self, path_part: str, kind: str, times: int | None = 1, methods: Collection[str] = ("GET",), **options: Any
    ) -> Fault:
        """The next `times` (None: all) requests whose path contains `path_part` go wrong. Kinds and their options:

        status (code, headers, body)    429 (retry_after)    html    redirect_loop    hang (seconds=30)
        truncate, reset (keep=0.5: this part of the body comes; bytes if an int; -1: reset before the status line)
        slow (rate: bytes per second)   wrong_bytes   no_length   ignore_range   endless (limit=64 MB, as disks do end)

        The last two lines wait for a request that is answered with bytes of a file (ignore_range: for one with a Range), so
        a redirect to the CDN does not use them up.
        """
        if kind not in INSTEAD | WITHIN:
            raise ValueError(f"no such fault: {kind}")
        made = Fault(path_part, kind, times, tuple(methods), options)
        with self._lock:
            self._faults.append(made)
        return made

    def clear(self) -> None:
        """Forgets all faults and requests."""
        with self._lock:
            self._faults.clear()
            self.requests.clear()

    def new_commit(self, repo: str) -> str:
        """main moves on. Files are what they are on disk; older commits stay known and serve the same files."""
        with self._lock:
            known = self._commits.setdefault(repo, [])
            known.append(hashlib.sha1(f"{repo} {len(known)}".encode()).hexdigest())
            return known[-1]

    def commit(self, repo: str) -> str:
        with self._lock:
            return (self._commits.get(repo) or [self.new_commit(repo)])[-1]

    def matching(self, method: str | None = None, path_part: str = "") -> list[Request]:
        with self._lock:
            return [r for r in self.requests if method in (None, r.method) and path_part in r.path]

    def count(self, method: str | None = None, path_part: str = "") -> int:
        return len(self.matching(method, path_part))

    def payloads(self) -> Counter[str]:
        """File (datasets/..., www/..., lfs/...) -> GETs that brought bytes of it. Two means that something came twice."""
        found = self.matching("GET")
        return Counter(r.file for r in found if r.file and r.status in (200, 206) and r.sent)

    def sent(self, path_part: str = "") -> int:
        """Bytes of all answers' bodies."""
        return sum(r.sent for r in self.matching(None, path_part))

    def peak(self, path_part: str = "") -> int:
        """The most requests that were in progress at one time."""
        ends = [(r.ended, -1) for r in self.matching(None, path_part)]
        now = most = 0
        for _, step in sorted(ends + [(r.started, 1) for r in self.matching(None, path_part)]):
            now += step
            most = max(most, now)
        return most

    @property
    def peak_connections(self) -> int:
        return self.peak()

    def take_fault(self, request: Request, kinds: Iterable[str]) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                wanted = fault.kind in kinds and request.method in fault.methods and fault.path_part in request.path
                if wanted and fault.left != 0 and (fault.kind != "ignore_range" or request.range):
                    fault.left = None if fault.left is None else fault.left - 1
                    fault.hits += 1
                    request.fault = fault.kind
                    return fault
        return None

    # Answers.

    def answer(self, request: Request, raw_path: str) -> Reply:
        if found := re.fullmatch(r"/loop/(\d+)", request.path):
            return Reply(302, {"Location": f"/loop/{int(found[1]) + 1}"})
        if request.cdn:
            return self._cdn(request)
        if request.path == "/api/whoami-v2":
            return self._refused_writer(request) or Reply.of({"type": "user", "name": self.writers[request.token]})
        if request.path == "/api/validate-yaml":
            return self._validate(json.loads(request.body)["content"])
        if request.path == "/api/repos/create":
            return self._create(request)
        if found := re.fullmatch(r"/(?:datasets/)?((?!git/)[^/]+/[^/]+)\.git/info/lfs/objects/batch", request.path):
            repo = found[1] if request.path.startswith("/datasets/") else f"models/{found[1]}"
            if (self.root / self.home(repo)).is_dir():
                return self._lfs_upload(request, repo)
        if found := re.fullmatch(rf"/api/{REPO}/(preupload|commit|branch)/([^/]+)", raw_path):
            return self._write(request, *map(unquote, found.groups()))
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", raw_path):
            kind, repo, revision, path = (unquote(part or "") for part in found.groups())
            return self._resolve(request, repo if kind else f"models/{repo}", revision, path)
        if found := re.fullmatch(rf"/api/{REPO}(?:/([a-z-]+)/([^/]+)(?:/(.+))?)?", raw_path):
            repo, verb, revision, path = (unquote(part or "") for part in found.groups())
            return self._api(request, repo, verb or "revision", revision or "main", path)
        if request.path.endswith(".git/info/lfs/objects/batch"):
            return self._lfs_batch(request)
        if request.path.startswith("/git/"):
            return self._git(request)
        return self._file(request, "www", request.path[1:], {}, "md5")

    def home(self, repo: str) -> str:
        """Folder below the root of a repository's main branch."""
        return repo if repo.startswith("models/") else f"datasets/{repo}"

    def tree(self, repo: str, revision: str = "main") -> str:
        """Folder below the root with the files of a repository at a revision."""
        branch = f"branches/{revision}/{repo}"
        return branch if (self.root / branch).is_dir() else self.home(repo)

    def _inside(self, folder: str, path: str) -> Path | None:
        """The file root/folder/path, unless there is none or the path leaves the folder."""
        if ".." in path.split("/") or not (found := self.root / folder / path).is_file():
            return None
        return found

    def hashes(self, path: Path) -> dict[str, str]:
        stat = path.stat()
        key = (path, stat.st_mtime_ns, stat.st_size)
        if key not in self._hashes:
            data = path.read_bytes()
            made = {name: hashlib.new(name, data).hexdigest() for name in ("sha256", "md5")}
            self._hashes[key] = made | {"git": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
        return self._hashes[key]

    def _file(self, request: Request, folder: str, path: str, headers: dict[str, str], etag: str) -> Reply:
        """A file with ETag, ranges and conditions."""
        if (found := self._inside(folder, path)) is None:
            return Reply.of({"error": "Not Found"}, 404)
        tag = f'"{self.hashes(found)[etag]}"'
        request.file = f"{folder}/{path}"
        data = found.read_bytes()
        headers = {"ETag": tag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"} | headers
        asked = request.headers
        if "if-match" in asked and asked["if-match"] not in ("*", tag):
            return Reply(412, headers)
        if asked.get("if-none-match") in ("*", tag):
            return Reply(304, headers)
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", request.range or "")
        if span is None or span[0] == "bytes=-" or asked.get("if-range", tag) != tag:
            return Reply(200, headers, data)
        if span[1]:
            first, last = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
        else:
            first, last = max(0, len(data) - int(span[2])), len(data) - 1
        if first > last:
            return Reply(416, headers | {"Content-Range": f"bytes */{len(data)}"})
        return Reply(206, headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1])

    def _refusal(self, request: Request, repo: str, revision: str, gated: bool) -> Reply | None:
        """The Hub tells nobody without a token whether a repository is missing or private."""
        if not (self.root / self.home(repo)).is_dir():
            return Reply.error(404 if request.token else 401, "RepoNotFound", "Repository not found")
        if gated and repo in self.gated and request.token != self.gated[repo]:
            message = f"Access to dataset {repo} is restricted."
            return Reply.error(403 if request.token else 401, "GatedRepo", message)
        if repo in self.private and request.token not in self.writers:
            return Reply.error(401, "RepoNotFound", "Repository not found")
        known = ("main", "refs/heads/main", self.commit(repo), *self._commits[repo])
        if revision not in known and self.tree(repo, revision) == self.tree(repo):
            return Reply.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _resolve(self, request: Request, repo: str, revision: str, path: str) -> Reply:
        if refusal := self._refusal(request, repo, revision, gated=True):
            return refusal
        commit = revision if re.fullmatch(r"[0-9a-f]{40}", revision) else self.commit(repo)
        tree = self.tree(repo, revision)
        if tree != self.home(repo):  # caches keep the files of two commits apart
            commit = hashlib.sha1(f"{commit} {revision}".encode()).hexdigest()
        found = self._inside(tree, path)
        if found is None:
            return Reply.error(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit)
        if not path.endswith(LFS_SUFFIXES):
            return self._file(request, tree, path, {"X-Repo-Commit": commit}, "git")
        sha256 = self.hashes(found)["sha256"]
        cdn = f"{self.cdn_url}/cdn/{quote(tree.removeprefix('datasets/'))}/{quote(path)}"
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(found.stat().st_size),
            "X-Linked-ETag": f'"{sha256}"',
            "Location": f"{cdn}?sha256={sha256}&Signature=signed",
        }
        return Reply(302, headers, b"Found. Redirecting")

    def _cdn(self, request: Request) -> Reply:
        if request.authorization:  # as S3 does, where the address is signed already
            return Reply(400, {}, b"<Code>InvalidArgument</Code>Only one auth mechanism allowed")
        if request.path.startswith("/lfs/"):
            return self._file(request, "lfs", request.path[len("/lfs/") :], {}, "sha256")
        if request.path.startswith("/upload/"):
            return self._take(request)
        path = request.path.removeprefix("/cdn/")
        disposition = f'inline; filename="{path.rsplit("/", 1)[-1]}";'
        folder = "" if path.startswith(("branches/", "models/")) else "datasets"
        return self._file(request, folder, path, {"Content-Disposition": disposition}, "sha256")

    def _api(self, request: Request, repo: str, verb: str, revision: str, path: str) -> Reply:
        """Listings are public for gated repositories, too."""
        if refusal := self._refusal(request, repo, revision, gated=False):
            return refusal
        if verb == "revision":
            tree = self.tree(repo, revision)
            files = [entry for entry in self._entries(tree, "", True) if entry["type"] == "file"]
            siblings = [
                {"rfilename": one["path"], "size": one["size"], "blobId": one["oid"]} | _lfs(one) for one in files
            ]
            sha = revision if revision in self._commits[repo] or tree != self.tree(repo) else self.commit(repo)
            info = {
                "id": repo.removeprefix("models/"),
                "author": repo.split("/")[-2],
                "sha": sha,
                "private": repo in self.private,
                "tags": [],
            }
            gated = "auto" if repo in self.gated else False
            return Reply.of(info | {"gated": gated, "disabled": False, "siblings": siblings})
        if verb == "paths-info" and request.method == "POST":
            if "json" in request.headers.get("content-type", ""):
                wanted = json.loads(request.body)["paths"]
            else:
                wanted = [value for name, value in parse_qsl(request.body.decode()) if name == "paths"]
            return Reply.of([made for name in wanted if (made := self._entry(self.tree(repo, revision), name))])
        if verb != "tree":
            return Reply.of({"error": "Not Found"}, 404)
        tree = self.tree(repo, revision)
        if path and not (self.root / tree / path).exists():
            return Reply.error(404, "EntryNotFound", f"{path} does not exist on {revision}")
        query = {name: values[0] for name, values in parse_qs(request.query).items()}
        entries = list(self._entries(tree, path, query.get("recursive", "").lower() in ("1", "true")))
        first = int(base64.b64decode(query.get("cursor", "MA==")))
        reply = Reply.of(entries[first : first + self.page_size])
        if first + self.page_size < len(entries):
            cursor = quote(base64.b64encode(b"%d" % (first + self.page_size)), safe="")
            more = "&".join(f"{name}={quote(value)}" for name, value in query.items() if name != "cursor")
            reply.headers["Link"] = f'<{self.url}{quote(request.path)}?{more}&cursor={cursor}>; rel="next"'
        return reply

    def _entries(self, tree: str, path: str, recursive: bool) -> Iterable[dict[str, Any]]:
        base = self.root / tree
        for found in sorted((base / path).rglob("*") if recursive else (base / path).iterdir()):
            yield cast(dict[str, Any], self._entry(tree, str(found.relative_to(base))))

    def _entry(self, tree: str, path: str) -> dict[str, Any] | None:
        found = self.root / tree / path
        if ".." in path.split("/") or not found.exists():
            return None
        if found.is_dir():
            return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}
        hashes, size = self.hashes(found), found.stat().st_size
        entry = {"type": "file", "oid": hashes["git"], "size": size, "path": path}
        if path.endswith(LFS_SUFFIXES):
            pointer = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{hashes['sha256']}\nsize {size}\n".encode()
            )
            entry["oid"] = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
            entry["lfs"] = {"oid": hashes["sha256"], "size": size, "pointerSize": len(pointer)}
        return entry

    # Uploads, as huggingface_hub speaks: which files are large, these to the store, then a commit of all.

    def _refused_writer(self, request: Request, repo: str = "") -> Reply | None:
        if not request.token or request.token not in self.writers:
            return Reply.error(401, "", "Invalid username or password.")
        if repo and repo.split("/")[-2] != self.writers[request.token]:
            return Reply.error(403, "", f"You don't have the rights to write to {repo}")
        return None

    def _validate(self, content: str) -> Reply:
        """Front matter of a card: YAML whose license and configurations are such."""
        head = yaml.safe_load(content.split("---\n")[1])
        names = [config["config_name"] for config in head.get("configs", [])]
        bad = [f'"license" {head["license"]} is no license'] if head["license"] not in (*HUB, "other") else []
        bad += ['"configs" needs names that are texts'] if not all(isinstance(name, str) for name in names) else []
        return Reply.of({"errors": [{"message": each} for each in bad], "warnings": []}, 400 if bad else 200)

    def _create(self, request: Request) -> Reply:
        asked = json.loads(request.body)
        repo = f"{asked['organization'] or self.writers.get(request.token)}/{asked['name']}"
        made = Reply.of({"url": f"{self.url}/{'datasets/' * (asked['type'] == 'dataset')}{repo}", "name": repo})
        repo = {"dataset": repo, "model": f"models/{repo}"}[asked.get("type", "model")]
        if refusal := self._refused_writer(request, repo):
            return refusal
        if (self.root / self.home(repo)).is_dir():
            return dataclasses.replace(made, status=409)
        (self.root / self.home(repo)).mkdir(parents=True)
        if asked.get("visibility") == "private":
            self.private.add(repo)
        return made

    def _write(self, request: Request, repo: str, verb: str, revision: str) -> Reply:
        if refusal := self._refused_writer(request, repo):
            return refusal
        if verb == "branch":
            new = self.root / "branches" / revision / repo
            if new.is_dir():
                return Reply.of({"error": "Reference already exists"}, 409)
            shutil.copytree(self.root / self.home(repo), new)
            return Reply.of({})
        if refusal := self._refusal(request, repo, revision, gated=True):
            return refusal
        tree = self.tree(repo, revision)
        if verb == "preupload":
            files = []
            for asked in json.loads(request.body)["files"]:
                large = asked["path"].endswith(LFS_SUFFIXES) or asked["size"] > 10_000_000
                entry = self._entry(tree, asked["path"])
                mode = "lfs" if large else "regular"
                oid = {"oid": (entry.get("lfs") or entry)["oid"]} if entry else {}
                files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False} | oid)
            return Reply.of({"files": files})
        return self._commit(request, repo, tree)

    def _commit(self, request: Request, repo: str, tree: str) -> Reply:
        lines = [json.loads(line) for line in request.body.splitlines()]
        for line in lines:
            if line["key"] == "lfsFile" and not (self.root / "lfs" / line["value"]["oid"]).is_file():
                return Reply.error(400, "", f"LFS pointer of {line['value']['path']} leads nowhere")
        for line in lines:
            if line["key"] == "header":
                continue
            place = self.root / tree / line["value"]["path"]
            assert place.is_relative_to(self.root / tree) and ".." not in place.parts
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            if line["key"] == "lfsFile":
                os.link(self.root / "lfs" / line["value"]["oid"], place)
            elif line["key"] == "file":
                place.write_bytes(base64.b64decode(line["value"]["content"]))
            else:
                assert line["key"] == "deletedFile"
        sha = self.new_commit(repo)
        url = f"{self.url}/{repo.removeprefix('models/') if repo != self.home(repo) else repo}/commit/{sha}"
        return Reply.of({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def _lfs_upload(self, request: Request, repo: str) -> Reply:
        kind = "application/vnd.git-lfs+json"
        if refusal := self._refused_writer(request, repo):
            return refusal
        asked = json.loads(request.body)
        assert (asked["operation"], asked["hash_algo"]) == ("upload", "sha256") and "basic" in asked["transfers"]
        objects = []
        for wanted in asked["objects"]:
            made = {"oid": wanted["oid"], "size": wanted["size"]}
            if not self._inside("lfs", wanted["oid"]):
                made["actions"] = {"upload": {"href": f"{self.cdn_url}/upload/{wanted['oid']}?Signature=signed"}}
            objects.append(made)
        return Reply.of({"transfer": "basic", "objects": objects, "hash_algo": "sha256"}, 200, kind)

    def _take(self, request: Request) -> Reply:
        """A large file on its way to the store."""
        oid = request.path.removeprefix("/upload/")
        if request.method != "PUT" or hashlib.sha256(request.body).hexdigest() != oid:
            return Reply(400, {}, b"<Code>XAmzContentSHA256Mismatch</Code>")
        place = self.root / "lfs" / oid
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(request.body)
        return Reply(200, {"ETag": f'"{oid[:32]}"'})

    def _bare(self, request: Request) -> tuple[str, str] | None:
        """(owner/name.git, the rest) of a /git/ path, with or without .git; None where there is no such repository."""
        found = re.fullmatch(r"/git/([^/]+/[^/]+?)(?:\.git)?(/.*)", request.path)
        if found and ".." not in found[0].split("/") and (self.root / "git" / f"{found[1]}.git").is_dir():
            return f"{found[1]}.git", found[2]
        return None

    def _git(self, request: Request) -> Reply:
        if (found := self._bare(request)) is None:  # GitHub asks for a password where it has no repository
            return Reply(401, {"WWW-Authenticate": 'Basic realm="GitHub"'}, b"Repository not found.")
        env = {
            "PATH": os.environ["PATH"],
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_PROJECT_ROOT": str((self.root / "git").resolve()),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": f"/{found[0]}{found[1]}",
            "QUERY_STRING": request.query,
            "REQUEST_METHOD": request.method,
            "CONTENT_TYPE": request.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(request.body)),
            "GIT_PROTOCOL": request.headers.get("git-protocol", ""),
        }
        body = gzip.decompress(request.body) if request.headers.get("content-encoding") == "gzip" else request.body
        env["CONTENT_LENGTH"] = str(len(body))
        done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, timeout=300)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
        return Reply(int(headers.pop("Status", "200").split()[0]), headers, content)

    def _lfs_batch(self, request: Request) -> Reply:
        kind = "application/vnd.git-lfs+json"
        if request.path.startswith("/git/") and self._bare(request) is None:
            return Reply.of({"message": "Not found"}, 404, kind)
        if kind not in request.headers.get("accept", ""):
            return Reply.of({"message": f"Accept is not {kind}"}, 406, kind)
        asked = json.loads(request.body)
        if asked["operation"] != "download":
            return Reply.of({"message": "Forbidden"}, 403, kind)
        objects = []
        for wanted in asked["objects"]:
            made = {"oid": wanted["oid"], "size": wanted["size"]}
            if self._inside("lfs", wanted["oid"]):
                href = {"href": f"{self.cdn_url}/lfs/{wanted['oid']}?Signature=signed", "expires_in": 3600}
                objects.append(made | {"authenticated": True, "actions": {"download": href}})
            else:
                objects.append(made | {"error": {"code": 404, "message": "Object does not exist on the server"}})
        return Reply.of({"transfer": "basic", "objects": objects, "hash_algo": "sha256"}, 200, kind)


@contextlib.contextmanager
def known_alone(hub: Hub, home: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """In this process huggingface_hub knows this Hub alone, as its first writer, with an empty cache below `home`."""
    constants = huggingface_hub.constants
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}")
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hf"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "no token"))
    patch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    patch.setenv("HF_TOKEN", next(iter(hub.writers)))
    patch.setenv("HOME", str(home))
    huggingface_hub.HfFileSystem.clear_instance_cache()
    yield
    close_session()
    huggingface_hub.HfFileSystem.clear_instance_cache()


def _lfs(entry: dict[str, Any]) -> dict[str, Any]:
    """What a listing says of a large file, {} of another."""
    lfs = entry.get("lfs")
    return {"lfs": {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}} if lfs else {}


class _Server(BoundedServer):
    def __init__(self, hub: Hub, cdn: bool) -> None:
        self.hub, self.cdn = hub, cdn
        super().__init__(_Handler, hub._errors, hub.stopping)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60  # of an idle connection
    server: _Server
    request: Any

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.server.hub
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.record = Request(
            self.command, unquote(parts.path), parts.query, headers, self.server.cdn, time.monotonic()
        )
        with hub._lock:
            hub.requests.append(self.record)
        try:
            self._respond(parts.path)
        finally:
            self.record.ended = min(self.record.ended, time.monotonic())

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _respond(self, raw_path: str) -> None:
        hub = self.server.hub
        self.record.body = self._read_body()
        if fault := hub.take_fault(self.record, INSTEAD):
            self._instead(fault.kind, fault.options)
            return
        reply = hub.answer(self.record, raw_path)
        file = self.record.file and reply.status in (200, 206)
        if file and (fault := hub.take_fault(self.record, WITHIN)):
            self._within(fault.kind, fault.options, reply, raw_path)
        else:
            self._send(reply)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(64).split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _head(self, status: int, headers: Mapping[str, str]) -> bytes:
        self.record.status = status
        closing = {"Connection": "close"} if self.close_connection else {}
        lines = {"Date": self.date_time_string(), **headers, **closing}.items()
        text = "".join(f"{name}: {value}\r\n" for name, value in lines)
        return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{text}\r\n".encode("latin-1")

    def _send(self, reply: Reply, keep: int | None = None, rate: float = 0, chunked: bool = False) -> None:
        """An answer; `keep` of its bytes, `rate` of them per second, and with no length if `chunked`."""
        length = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(reply.body))}
        head = self._head(reply.status, reply.headers | ({} if reply.status in (204, 304) else length))
        body = b"" if self.command == "HEAD" else reply.body[:keep]
        step = max(1, int(rate / 20)) if rate else CHUNK
        pieces = [body[i : i + step] for i in range(0, len(body), step)] or [b""]
        for number, piece in enumerate(pieces):
            self.record.sent += len(piece)
            last = number == len(pieces) - 1
            if last:
                self.record.ended = time.monotonic()
            if chunked:
                piece = b"%x\r\n%s\r\n" % (len(piece), piece) if piece else b""
                piece += b"0\r\n\r\n" if last and self.command != "HEAD" else b""
            self.wfile.write(head + piece)
            head = b""
            if rate and self.server.hub.stopping.wait(0.05):
                raise ConnectionError("the Hub stops")

    def _instead(self, kind: str, options: dict[str, Any]) -> None:
        if kind == "status":
            body = options.get("body", b"an error by order")
            self._send(Reply(options.get("code", 500), dict(options.get("headers", {})), body))
        elif kind == "429":
            self._send(Reply(429, {"Retry-After": str(options.get("retry_after", 1))}, b"Too Many Requests"))
        elif kind == "html":
            page = b"<!DOCTYPE html><html><head><title>Please sign in</title></head><body>portal</body></html>"
            self._send(Reply(200, {"Content-Type": "text/html; charset=utf-8"}, page))
        elif kind == "redirect_loop":
            self._send(Reply(302, {"Location": "/loop/1"}))
        else:
            until = time.monotonic() + options.get("seconds", 30)
            while time.monotonic() < until and not self.server.hub.stopping.wait(0.05):
                if select.select([self.connection], [], [], 0)[0]:  # the client has gone
                    break
            self.close_connection = True

    def _within(self, kind: str, options: dict[str, Any], reply: Reply, raw_path: str) -> None:
        if kind in ("truncate", "reset"):
            self.close_connection = True
            keep = options.get("keep", 0.5)
            if keep != -1:
                self._send(reply, keep if isinstance(keep, int) else int(len(reply.body) * keep))
            if kind == "reset":
                self.record.ended = time.monotonic()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.server.resets.add(self.request)
        elif kind == "slow":
            self._send(reply, rate=options.get("rate", 1000))
        elif kind == "wrong_bytes":
            data = bytearray(reply.body)
            data[len(data) // 2] ^= 0xFF
            self._send(Reply(reply.status, reply.headers, bytes(data)))
        elif kind == "no_length":
            self._send(reply, chunked=True)
        elif kind == "ignore_range":
            headers = {name: value for name, value in self.record.headers.items() if name != "range"}
            self._send(self.server.hub.answer(dataclasses.replace(self.record, headers=headers), raw_path))
        else:
            self.close_connection = True
            headers = {name: value for name, value in reply.headers.items() if name != "Content-Range"}
            self.wfile.write(self._head(200, headers | {"Transfer-Encoding": "chunked"}))
            while self.record.sent < options.get("limit", 1 << 26) and not self.server.hub.stopping.wait(0.002):
                self.record.sent += CHUNK
                self.wfile.write(b"%x\r\n%s\r\n" % (CHUNK, bytes(CHUNK)))
