"""The test Hub answers real clients as the real servers do, its faults are what they say, and its trees are what they claim."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import huggingface_hub as hf
import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import errors
from huggingface_hub.utils._http import close_session
from PIL import Image

from tests import trees
from tests.hub import Hub

MIX = "BAAI/Objaverse-MIX"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A Hub and what it serves."""
    root = tmp_path_factory.mktemp("hub")
    with Hub(root, gated={MIX: "hf_right"}) as hub:
        objaverse = trees.objaverse(root)
        xl = trees.objaverse_xl(root, hub.url, objaverse)
        gobjaverse, mix = trees.gobjaverse(root), trees.objaverse_mix(root)
        yield SimpleNamespace(root=root, hub=hub, objaverse=objaverse, xl=xl, gobjaverse=gobjaverse, mix=mix)
    close_session()


@pytest.fixture
def hub(world: SimpleNamespace) -> Iterator[Hub]:
    world.hub.clear()
    yield world.hub
    world.hub.clear()


@pytest.fixture
def http() -> Iterator[httpx2.Client]:
    with httpx2.Client(timeout=5, follow_redirects=True, trust_env=False) as client:
        yield client


def download(hub: Hub, path: str, repo: str = "allenai/objaverse", /, **options: Any) -> Path:
    options = {"token": False} | options
    return Path(hf.hf_hub_download(repo, path, repo_type="dataset", endpoint=hub.url, **options))


# Hugging Face


@pytest.mark.parametrize("where", ["local_dir", "cache_dir"])
def test_hf_hub_download(hub: Hub, world: SimpleNamespace, tmp_path: Path, where: str) -> None:
    uid = world.objaverse.uids[0]
    path = world.objaverse.paths[uid]
    for _ in range(2):
        assert trees.sha256(download(hub, path, **{where: tmp_path}).read_bytes()) == world.objaverse.sha256[uid]
    assert [(r.method, r.path, r.status) for r in hub.requests] == [
        ("HEAD", f"/datasets/allenai/objaverse/resolve/main/{path}", 302),
        ("GET", f"/cdn/allenai/objaverse/{path}", 200),
        ("HEAD", f"/datasets/allenai/objaverse/resolve/main/{path}", 302),
    ]
    hub.clear()
    plain = download(hub, "object-paths.json.gz", **{where: tmp_path})
    assert [(r.method, r.status, r.cdn) for r in hub.requests] == [("HEAD", 200, False), ("GET", 200, False)]
    assert hub.payloads() == {"datasets/allenai/objaverse/object-paths.json.gz": 1}
    assert hub.sent() == plain.stat().st_size


def test_hf_resumes_what_was_cut(
    hub: Hub, world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf.constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # 10 MB: what is smaller starts again
    uid = world.objaverse.uids[1]
    size = (world.root / "datasets" / "allenai" / "objaverse" / world.objaverse.paths[uid]).stat().st_size
    hub.fault(uid, "truncate", keep=2500)
    got = download(hub, world.objaverse.paths[uid], local_dir=tmp_path)
    assert trees.sha256(got.read_bytes()) == world.objaverse.sha256[uid]
    first, second = hub.matching("GET")
    assert (first.range, first.status, first.sent, first.fault) == (None, 200, 2500, "truncate")
    assert (second.range, second.status, second.sent) == ("bytes=2000-", 206, size - 2000)
    assert hub.payloads()[f"datasets/allenai/objaverse/{world.objaverse.paths[uid]}"] == 2


def test_hf_trusts_the_length_alone(hub: Hub, world: SimpleNamespace, tmp_path: Path) -> None:
    """Why our own downloads compare checksums."""
    uid = world.objaverse.uids[2]
    hub.fault(uid, "wrong_bytes")
    got = download(hub, world.objaverse.paths[uid], local_dir=tmp_path)
    assert trees.sha256(got.read_bytes()) != world.objaverse.sha256[uid]
    hub.fault(uid, "html")
    with pytest.raises(OSError, match="Consistency check failed"):
        download(hub, world.objaverse.paths[uid], local_dir=tmp_path / "again")


def test_gated(hub: Hub, world: SimpleNamespace, tmp_path: Path) -> None:
    for token, status in ((False, 401), ("hf_wrong", 403)):
        with pytest.raises(errors.GatedRepoError) as refused:
            download(hub, world.mix.archive, MIX, token=token, local_dir=tmp_path)
        assert refused.value.response.status_code == status
    assert hub.payloads() == {}
    download(hub, world.mix.archive, MIX, token="hf_right", local_dir=tmp_path)
    head, get = hub.requests[-2:]
    assert (head.method, head.token, get.method, get.authorization) == ("HEAD", "hf_right", "GET", None)
    assert hf.HfApi(endpoint=hub.url, token=False).dataset_info(MIX).gated == "auto"  # listings are public


def test_what_is_not_there(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(errors.RemoteEntryNotFoundError):
        download(hub, "glbs/none.glb", local_dir=tmp_path)
    with pytest.raises(errors.RevisionNotFoundError):
        download(hub, "object-paths.json.gz", revision="v9", local_dir=tmp_path)
    for token, status in ((False, 401), ("hf_any", 404)):
        with pytest.raises(errors.RepositoryNotFoundError) as refused:
            download(hub, "a", "nobody/nothing", token=token, local_dir=tmp_path)
        assert refused.value.response.status_code == status


def test_listings(hub: Hub, world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    api = hf.HfApi(endpoint=hub.url, token=False)
    uid = world.objaverse.uids[0]
    wanted = [world.objaverse.paths[uid], "object-paths.json.gz", "glbs", "nothing"]
    lfs, plain, folder = api.get_paths_info(world.objaverse.repo, wanted, repo_type="dataset", expand=False)
    assert isinstance(lfs, hf.RepoFile) and lfs.lfs and lfs.lfs.sha256 == world.objaverse.sha256[uid]
    assert isinstance(plain, hf.RepoFile) and plain.lfs is None and isinstance(folder, hf.RepoFolder)
    raw = (world.root / "datasets" / "allenai" / "objaverse" / plain.path).read_bytes()
    assert plain.blob_id == trees.git("hash-object", "--stdin", stdin=raw)
    assert [(r.method, r.path) for r in hub.requests] == [("POST", "/api/datasets/allenai/objaverse/paths-info/main")]
    monkeypatch.setattr(hub, "page_size", 4)
    tree = list(api.list_repo_tree(world.objaverse.repo, "glbs", recursive=True, repo_type="dataset"))
    assert {e.path for e in tree if isinstance(e, hf.RepoFile)} == set(world.objaverse.paths.values())
    assert hub.count("GET", "/tree/main/glbs") == 4  # 12 files and 3 folders
    info = api.dataset_info(world.objaverse.repo)
    assert info.sha == hub.commit(world.objaverse.repo) and info.siblings
    assert {s.rfilename for s in info.siblings} > set(world.objaverse.paths.values())


def test_commits(hub: Hub, world: SimpleNamespace, tmp_path: Path) -> None:
    before = hub.commit(MIX)
    after = hub.new_commit(MIX)
    path = download(hub, world.mix.archive, MIX, token="hf_right", cache_dir=tmp_path)
    assert after in path.parts and before != after
    assert before in download(hub, world.mix.archive, MIX, token="hf_right", revision=before, cache_dir=tmp_path).parts
    assert sum(hub.payloads().values()) == 1  # the same blob


def test_a_subprocess_finds_the_hub(hub: Hub, world: SimpleNamespace, tmp_path: Path) -> None:
    code = "import huggingface_hub as h; h.hf_hub_download('allenai/objaverse-xl', 'smithsonian/smithsonian.parquet',"
    code += " repo_type='dataset')"
    environment = hub.environment(tmp_path) | {"HF_TOKEN": "hf_mine"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    head, get = hub.requests
    assert (head.token, get.authorization, get.cdn) == ("hf_mine", None, True)
    assert [*tmp_path.glob("hf/hub/datasets--allenai--objaverse-xl/snapshots/*/smithsonian/*.parquet")]


def test_the_objaverse_package_reads_the_tree(hub: Hub, world: SimpleNamespace, tmp_path: Path) -> None:
    code = """
import json, os, urllib.request
real = urllib.request.urlretrieve
hub = os.environ["HF_ENDPOINT"]
urllib.request.urlretrieve = lambda url, path: real(url.replace("https://huggingface.co", hub), path)
import objaverse
uids = objaverse.load_uids()
found = objaverse.load_annotations(uids[:5]), objaverse.load_lvis_annotations(), objaverse.load_objects(uids[:4])
open("said.json", "w").write(json.dumps([uids, *found]))
"""
    command, env = [sys.executable, "-c", code], hub.environment(tmp_path)
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    uids, annotations, lvis, objects = json.loads((tmp_path / "said.json").read_text())
    truth = world.objaverse
    assert (uids, lvis) == (truth.uids, truth.lvis)
    assert annotations == {uid: truth.annotations[uid] for uid in uids[:5]}
    for uid, path in objects.items():
        assert path == str(tmp_path / ".objaverse" / "hf-objaverse-v1" / truth.paths[uid])
        assert trees.sha256(Path(path).read_bytes()) == truth.sha256[uid]


def test_objaverse_xl_parquets(hub: Hub, world: SimpleNamespace, http: httpx2.Client) -> None:
    base = world.root / "datasets" / "allenai" / "objaverse-xl"
    github = pq.ParquetFile(base / "github" / "github.parquet")
    assert tuple(github.schema_arrow.names) == trees.XL_COLUMNS and github.num_row_groups == 4
    assert {row.expect for row in world.xl.rows["github"]} >= {"found", "modified", "missing", "gone", "symlink", "lfs"}
    for source, rows in world.xl.rows.items():
        table = pq.read_table(base / source / f"{source}.parquet").to_pylist()
        assert [tuple(line.values()) for line in table] == [row.values() for row in rows]
    for row in world.xl.rows["smithsonian"]:
        assert trees.sha256(http.get(row.identifier).content) == row.sha256
    for row in world.xl.rows["thingiverse"]:
        number = row.identifier.partition("fileId=")[2]
        assert trees.sha256(http.get(f"{hub.url}/download:{number}").content) == row.sha256


# HTTP and its faults


def test_ranges_and_conditions(hub: Hub, world: SimpleNamespace, http: httpx2.Client) -> None:
    data, url = (world.root / "www" / "download:7000").read_bytes(), f"{hub.url}/download:7000"
    head = http.head(url)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(data)), b"")
    tag = head.headers["etag"]
    for span, part in (("10-19", slice(10, 20)), ("90-", slice(90, None)), ("-7", slice(-7, None))):
        got = http.get(url, headers={"Range": f"bytes={span}", "If-Range": tag})
        assert (got.status_code, got.content) == (206, data[part])
        first, last, _ = part.indices(len(data))
        assert got.headers["content-range"] == f"bytes {first}-{last - 1}/{len(data)}"
    assert http.get(url, headers={"Range": "bytes=10-", "If-Range": '"old"'}).content == data
    beyond = http.get(url, headers={"Range": f"bytes={len(data)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(data)}")
    assert http.get(url, headers={"If-Match": '"old"'}).status_code == 412
    assert http.get(url, headers={"If-None-Match": tag}).status_code == 304
    assert http.get(f"{hub.url}/%2e%2e/outside.glb").status_code == 404
    signed = http.get(
        f"{hub.cdn_url}/cdn/allenai/objaverse/object-paths.json.gz", headers={"Authorization": "Bearer x"}
    )
    assert signed.status_code == 400


def drained(http: httpx2.Client, url: str, at_most: int = 1 << 20) -> tuple[bytes, Exception | None]:
    """What comes of a body, and how it ends."""
    got = b""
    try:
        with http.stream("GET", url) as answer:
            for piece in answer.iter_raw():
                got += piece
                if len(got) > at_most:
                    break
    except httpx2.TransportError as error:
        return got, error
    return got, None


def test_faults(hub: Hub, world: SimpleNamespace, http: httpx2.Client) -> None:
    """Each kind once, and then the file as it is."""
    url, data = f"{hub.url}/download:7001", (world.root / "www" / "download:7001").read_bytes()

    def status(code: int, **headers: str) -> Callable[[httpx2.Response], bool]:
        return lambda got: got.status_code == code and all(got.headers[name] == headers[name] for name in headers)

    whole: list[tuple[str, dict[str, Any], Callable[[httpx2.Response], bool]]] = [
        ("status", {"code": 503, "headers": {"Retry-After": "7"}}, status(503, **{"retry-after": "7"})),
        ("429", {"retry_after": 3}, status(429, **{"retry-after": "3"})),
        ("html", {}, lambda got: got.status_code == 200 and got.text.startswith("<!DOCTYPE html>")),
        ("no_length", {}, lambda got: got.content == data and "content-length" not in got.headers),
        ("wrong_bytes", {}, lambda got: sum(a != b for a, b in zip(got.content, data, strict=True)) == 1),
        ("slow", {"rate": 8000}, lambda got: got.content == data and got.elapsed.total_seconds() > len(data) / 10_000),
    ]
    for kind, options, as_promised in whole:
        fault = hub.fault("download:7001", kind, **options)
        assert as_promised(http.get(url)), kind
        assert fault.hits == 1
        assert http.get(url).content == data
    hub.fault("download:7001", "ignore_range")
    assert http.get(url).content == data  # not used up
    got = http.get(url, headers={"Range": "bytes=5-"})
    assert (got.status_code, got.content) == (200, data)
    assert http.get(url, headers={"Range": "bytes=5-"}).status_code == 206
    hub.fault("download:7001", "redirect_loop")
    with pytest.raises(httpx2.TooManyRedirects):
        http.get(url)
    assert http.get(url).content == data


def test_broken_connections(hub: Hub, world: SimpleNamespace, http: httpx2.Client) -> None:
    url, data = f"{hub.url}/download:7002", (world.root / "www" / "download:7002").read_bytes()
    hub.fault("7002", "truncate", keep=0.25)
    got, error = drained(http, url)
    assert got == data[: len(data) // 4] and isinstance(error, httpx2.RemoteProtocolError)
    hub.fault("7002", "reset", keep=100)
    assert isinstance(drained(http, url)[1], httpx2.ReadError)
    hub.fault("7002", "reset", keep=-1)
    got, error = drained(http, url)
    assert got == b"" and isinstance(error, httpx2.ReadError)
    hub.fault("7002", "endless")
    got, error = drained(http, url)
    assert len(got) > 1 << 20 and error is None
    assert drained(http, url) == (data, None)
    hub.fault("7002", "hang", times=None, methods=("GET", "HEAD"))
    for ask in (http.get, http.head):
        with pytest.raises(httpx2.ReadTimeout):
            ask(url, timeout=0.2)
    while len(hub.requests) < 7:  # what was hung up on may not have been read yet
        time.sleep(0.01)
    assert [r.fault for r in hub.requests] == ["truncate", "reset", "reset", "endless", "", "hang", "hang"]


def test_it_counts_what_is_in_progress(hub: Hub, http: httpx2.Client) -> None:
    for number in range(4):
        http.get(f"{hub.url}/download:{7000 + number}")
    assert (hub.peak_connections, hub.count("GET", "download:")) == (1, 4)
    hub.fault("download:", "slow", times=None, rate=2000)
    urls = [f"{hub.url}/download:{7000 + number}" for number in (0, 1, 1)]
    threads = [threading.Thread(target=http.get, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (hub.peak(), hub.peak("download:7001"), hub.peak("download:7000")) == (3, 2, 1)
    assert hub.payloads() == {f"www/download:{7000 + n}": count for n, count in enumerate((2, 3, 1, 1))}


def test_it_stops_whoever_hangs_on(tmp_path: Path) -> None:
    trees.put(tmp_path / "www" / "a", bytes(1 << 20))
    before, began = threading.active_count(), time.monotonic()
    with httpx2.Client(timeout=600, trust_env=False) as client:
        with Hub(tmp_path) as hub:
            hub.fault("a", "hang", seconds=900)
            hub.fault("a", "slow", rate=1_000)
            threads = [threading.Thread(target=drained, args=(client, f"{hub.url}/a")) for _ in range(2)]
            for thread in threads:
                thread.start()
            while hub.count() < 2:
                time.sleep(0.01)
        for thread in threads:
            thread.join(300)
    assert threading.active_count() <= before and time.monotonic() - began < 300


# Git


@pytest.fixture
def run_git(hub: Hub, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    environment = hub.environment(tmp_path) | trees.git_config(tmp_path / "gitconfig", f"{hub.url}/git/")

    def run(*arguments: object, timeout: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
        command = ["git", *map(str, arguments)]
        env = environment | {"GIT_TERMINAL_PROMPT": "0"} | more
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=timeout)

    return run


def test_partial_clone(
    hub: Hub, world: SimpleNamespace, tmp_path: Path, run_git: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    rows = {(row.identifier.split("/")[6], row.identifier.split("/", 7)[7]): row for row in world.xl.rows["github"]}
    first, second = [commit for commit, path in rows if path == "models/plain.glb"]
    shallow = ("--quiet", "--filter=blob:none", "--depth=1")
    cloned = run_git("clone", *shallow, "--no-checkout", "https://github.com/acme/models.git", "here")
    assert cloned.returncode == 0, cloned.stderr
    assert run_git("-C", "here", "rev-parse", "HEAD").stdout.strip() == second
    here = tmp_path / "here"
    for commit in (first, second):
        assert run_git("-C", here, "fetch", *shallow, "origin", commit).returncode == 0
        assert run_git("-C", here, "sparse-checkout", "set", "--no-cone", "/models/", "/shortcut.glb").returncode == 0
        out = run_git("-C", here, "checkout", "--quiet", commit)
        assert out.returncode == 0, out.stderr
        assert trees.sha256((here / "models/plain.glb").read_bytes()) == rows[commit, "models/plain.glb"].sha256
        assert (here / "shortcut.glb").readlink() == Path("models/plain.glb")
        assert not (here / "changed.glb").exists()
    missing = run_git("-C", here, "rev-list", "--objects", "--missing=print", second).stdout
    assert f"?{trees.git('hash-object', '--stdin', stdin=rows[first, 'changed.glb'].content)}" in missing
    assert hub.count("POST", "/git/acme/models.git/git-upload-pack") > 4
    by_file = trees.git_config(tmp_path / "other", f"file://{world.root}/git/")
    assert run_git("clone", *shallow, "https://github.com/emil/solo", "solo", **by_file).returncode == 0
    assert len([*(tmp_path / "solo").glob("*.glb")]) == 3 and hub.count(None, "solo") == 0


def test_no_repository_and_no_answer(hub: Hub, run_git: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    gone = run_git("ls-remote", "https://github.com/gone/away.git")
    assert gone.returncode == 128 and "could not read Username" in gone.stderr
    assert hub.requests[-1].status == 401
    hub.fault("/git/acme", "status", code=403)
    assert "403" in run_git("ls-remote", "https://github.com/acme/models.git").stderr
    hub.fault("/git/acme", "hang")
    with pytest.raises(subprocess.TimeoutExpired):
        run_git("ls-remote", "https://github.com/acme/models.git", timeout=0.5)


def test_a_repository_vanishes(
    hub: Hub, world: SimpleNamespace, run_git: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    made = [trees.git_repo(world.root / "git", "short", "lived", {"a": content}) for content in (b"1", b"2", None)]
    assert len(set(made)) == 3
    assert run_git("ls-remote", "https://github.com/short/lived").stdout.startswith(made[-1])
    trees.vanish(world.root / "git", "short", "lived")
    assert run_git("ls-remote", "https://github.com/short/lived").returncode == 128


def test_lfs_batch(hub: Hub, world: SimpleNamespace, http: httpx2.Client) -> None:
    there, lost = [row for row in world.xl.rows["github"] if row.expect.startswith("lfs")]
    objects = [{"oid": row.sha256, "size": len(row.content)} for row in (there, lost)]
    asked, kind = {"operation": "download", "transfers": ["basic"], "objects": objects}, "application/vnd.git-lfs+json"
    url = f"{hub.url}/git/bigfiles/lfs.git/info/lfs/objects/batch"
    answer = http.post(url, json=asked, headers={"Accept": kind})
    assert (answer.status_code, answer.headers["content-type"], answer.json()["transfer"]) == (200, kind, "basic")
    one, other = answer.json()["objects"]
    assert http.get(one["actions"]["download"]["href"]).content == there.content
    assert other["error"]["code"] == 404 and "actions" not in other
    assert http.post(url, json=asked).status_code == 406
    assert http.post(url.replace("bigfiles", "nobody"), json=asked, headers={"Accept": kind}).status_code == 404


# Pictures


def misses(balls: trees.Balls, c2w: np.ndarray, focal: float, picture: bytes) -> list[float]:
    """Pixels between where each ball that nothing hides should be and where it is."""
    rgba = np.asarray(Image.open(io.BytesIO(picture))).astype(float)
    size = rgba.shape[1]
    assert rgba.shape == (size, size, 4) and not rgba[0, 0].any()
    found = []
    x, y, z = (np.linalg.inv(c2w) @ np.c_[balls.centres, np.ones(3)].T)[:3]
    for ball in range(3):
        weight = rgba[..., 3] * (rgba[..., :3].argmax(-1) == ball)
        whole = np.pi * (balls.radius / z[ball] * focal * size) ** 2
        if weight.sum() / 255 < 0.97 * whole:
            continue
        centre = [(weight.sum(axis) * (np.arange(size) + 0.5)).sum() / weight.sum() for axis in (0, 1)]
        expected = np.array([x[ball], y[ball]]) / z[ball] * focal * size + size / 2
        found.append(float(np.linalg.norm(expected - centre)))
    return found


def test_gobjaverse_pictures_fit_their_cameras(hub: Hub, world: SimpleNamespace, http: httpx2.Client) -> None:
    made = world.gobjaverse
    index = http.get(f"{hub.url}/{made.base}/gobjaverse_280k.json").json()
    assert index == [*made.scenes, "9/45999"] and set(made.glbs) == set(index)
    found = []
    for item, balls in made.scenes.items():
        for view in range(40):
            stem = f"{hub.url}/{made.base}/objaverse/{item}/campos_512_v4/{view:05d}/{view:05d}"
            camera = http.get(f"{stem}.json").json()
            c2w = np.eye(4)
            c2w[:3] = np.stack([camera[name] for name in ("x", "y", "z", "origin")], 1)
            assert np.allclose(c2w[:3, :3] @ c2w[:3, :3].T, np.eye(3)) and np.linalg.det(c2w) > 0.999
            focal = 0.5 / np.tan(camera["x_fov"] / 2)
            found += misses(balls, c2w, focal, http.get(f"{stem}.png").content)
    assert len(found) > 180 and max(found) < 0.3
    assert http.get(f"{hub.url}/{made.base}/objaverse/9/45999/campos_512_v4/00000/00000.json").status_code == 404
    assert http.head(f"{hub.url}/{made.base}/objaverse_tar/12/60004.tar").status_code == 200


def test_objaverse_mix_pictures_fit_the_usual_cameras(world: SimpleNamespace, tmp_path: Path) -> None:
    py7zr = pytest.importorskip("py7zr")
    tilted = trees.objaverse_mix(tmp_path, objects=1, elevation=10)
    for root, made, fits in ((world.root, world.mix, True), (tmp_path, tilted, False)):
        with py7zr.SevenZipFile(root / "datasets" / made.repo / made.archive) as archive:
            archive.extractall(tmp_path / str(fits))
        found = []
        for uid, balls in made.scenes.items():
            for view in range(12):
                theta, phi = 2 * np.pi * view / 12, np.radians(60)
                place = [np.sin(phi) * np.cos(theta), np.sin(phi) * np.sin(theta), np.cos(phi)]
                picture = (tmp_path / str(fits) / "000-000" / uid / f"{view:03d}.png").read_bytes()
                found += misses(balls, trees.look_at(2 * np.array(place)), made.focal, picture)
        assert (len(found) > 50 and max(found) < 0.3) if fits else max(found) > 2
