"""Every source as a user runs it: the real command, the real clients, a Hub and Git repositories on loopback."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from huggingface_hub.utils import close_session

from pipeline.config.shared import Listing
from pipeline.download import route
from tests import trees
from tests.conftest import COMMAND, SHARED_OBJECTS, lvsm_data, lvsm_data_here
from tests.hub import Hub

QUICK = ("--res", 32, "--views", 2, "--samples", 1, "--executor", "inline")
OBJAVERSE = ("--source", "objaverse")
XL = ("--source", "objaverse-xl")


class World:
    """A Hub with small generated datasets, and a user with an empty home.

    run, start: the command in a process of its own. here, render: in this one, which takes a third of the time.
    """

    def __init__(self, folder: Path, hub: Hub, here: Callable[..., str] | None = None) -> None:
        self.folder = folder
        self.hub = hub
        self.here = here or self.run
        self.cache = folder / "home/.objaverse"
        self.environment = hub.environment(folder / "home")
        self.environment |= trees.git_config(folder / "gitconfig", f"{hub.url}/git/")

    def run(self, *arguments: object, expect: int = 0, **environment: str) -> str:
        done = lvsm_data(*arguments, env=self.environment | environment, cwd=self.folder)
        assert done.returncode == expect, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout + done.stderr

    def render(self, *arguments: object, expect: int = 0, **environment: str) -> str:
        """The verb, with github.com and thingiverse.com on the Hub; with `environment` in a process of its own."""
        mirrors = (
            "--mirror",
            f"https://www.thingiverse.com/={self.hub.url}/",
            f"https://github.com/={self.hub.url}/git/",
        )
        whole = ("render", *arguments, *QUICK, *mirrors, "--out", "out")
        return self.run(*whole, expect=expect, **environment) if environment else self.here(*whole, expect=expect)

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        """The command without waiting for it."""
        command, nowhere = [COMMAND, *map(str, arguments)], subprocess.DEVNULL
        return subprocess.Popen(command, env=self.environment, cwd=self.folder, stdout=nowhere, stderr=nowhere)

    def ended(self, out: str = "out") -> dict[str, str]:
        """uid -> reason, "" for delivered."""
        with sqlite3.connect(self.folder / out / "ledger.sqlite") as db:
            return dict(db.execute("SELECT uid, reason FROM item"))

    def reasons(self, out: str = "out") -> Counter[str]:
        return Counter(self.ended(out).values())

    def fetched(self) -> Counter[str]:
        """Payloads only, by name."""
        suffixes = (".glb", ".stl")
        return Counter({k: n for k, n in self.hub.payloads().items() if k.endswith(suffixes) or "download:" in k})


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blender_lent: None) -> Iterator[World]:
    with Hub(tmp_path / "root") as hub:
        (tmp_path / "home").mkdir()

        def here(*arguments: object, expect: int = 0, endpoint: str = hub.url) -> str:
            """endpoint: another Hub than the world's."""
            template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            with monkeypatch.context() as patch:
                patch.chdir(tmp_path)
                for name, value in trees.git_config(tmp_path / "gitconfig", f"{hub.url}/git/").items():
                    patch.setenv(name, value)
                patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
                patch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
                patch.setattr(
                    "huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None)
                )  # between tries
                done = lvsm_data_here(*arguments, "--cache", made.cache)
            assert done.returncode == expect, done.stdout + done.stderr
            return done.stdout + done.stderr

        made = World(tmp_path, hub, here)
        yield made
        close_session()


def listed(world: World, *arguments: object) -> list[str]:
    """The uids that `manifest` writes, in its order."""
    world.here("manifest", *arguments, "-o", "list.parquet")
    return [row["uid"] for row in rows(world.folder / "list.parquet")]


def objaverse(world: World, count: int = 12) -> trees.Objaverse:
    return trees.objaverse(world.folder / "root", count=count, chunks=3)


def rows(path: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(path).to_pylist())


def test_objaverse_from_nothing_to_shards(world: World) -> None:
    made = objaverse(world)
    gone, cut, wrong, busy, down, page = sorted(uid for uid in made.uids if made.licenses[uid] != "by-nd")[:6]
    world.hub.fault(gone, "status", times=None, code=404)
    world.hub.fault(cut, "truncate")
    world.hub.fault(wrong, "wrong_bytes")
    world.hub.fault(busy, "429", retry_after=1)
    world.hub.fault(down, "status", code=503)
    (world.folder / f"root/datasets/{made.repo}/{made.paths[page]}").write_bytes(b"<!DOCTYPE html><html>sorry</html>")
    said = world.run("render", *OBJAVERSE, "--n", 20, *QUICK, "--out", "out", expect=3)
    taken = {uid for uid in made.uids if made.licenses[uid] != "by-nd"}
    assert world.ended() == dict.fromkeys(taken, "") | {gone: "missing", page: "html_page"}
    assert f"drawn {len(taken)} = delivered {len(taken) - 2} + failed 2 (" in said
    assert f"passed over {12 - len(taken)} for their license (CC-BY-ND-4.0 {12 - len(taken)})" in said
    again = {made.paths[cut], made.paths[wrong]}
    assert all(count == 1 + any(path in key for path in again) for key, count in world.fetched().items())
    assert not list((world.folder / "out").glob("raw/*/*"))
    assert not list(world.cache.rglob("*.glb"))


def test_the_shards_say_whose_they_are(world: World) -> None:
    made = objaverse(world)
    world.render(*OBJAVERSE, "--n", 10)
    for path in (world.folder / "out/32").glob("*.parquet"):
        for row in rows(path):
            facts, meta = made.annotations[row["uid"]], json.loads(row["meta"])
            assert row["source"] == "objaverse"
            assert row["license"].startswith("CC")
            assert meta["credit"]["title"] == facts["name"]
            assert meta["credit"]["author"] == facts["user"]["displayName"]
            assert meta["credit"]["page"] == facts["viewerUrl"]
    listed = lvsm_data_here("licenses", world.folder / "out", "--attribution", world.folder / "credits.csv").stdout
    assert "CC-BY-4.0" in listed
    with (world.folder / "credits.csv").open(newline="", encoding="utf-8") as lines:
        table = {row["uid"]: row for row in csv.DictReader(lines)}
    assert len(table) == 10
    assert all(table[uid]["author"] == made.annotations[uid]["user"]["displayName"] for uid in table)


def test_nothing_is_fetched_twice(world: World) -> None:
    objaverse(world)
    world.render(*OBJAVERSE, "--n", 4)
    world.render(*OBJAVERSE, "--n", 8)
    world.render(*OBJAVERSE, "--n", 8)
    assert world.reasons() == {"": 8}
    assert set(world.fetched().values()) == {1}
    assert world.hub.count("GET", "object-paths.json.gz") == 1
    assert max(Counter(r.path for r in world.hub.matching("GET", "metadata/")).values()) == 1


def test_a_killed_run_goes_on_and_fetches_only_what_was_cut(world: World) -> None:
    objaverse(world, 30)
    fault = world.hub.fault("/cdn/", "slow", times=None, rate=20_000)
    arguments = ("render", *OBJAVERSE, "--n", 20, *QUICK, "--out", "out", "--downloads", 2)
    driver = world.start(*arguments)
    ledger = world.folder / "out/ledger.sqlite"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (ledger.exists() and len(delivered(ledger)) >= 4):
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = delivered(ledger)
    assert len(before) >= 4
    ready = len(list((world.folder / "out/raw").glob("*/object.glb")))
    fault.left = 0
    seen = world.fetched()
    world.render(*OBJAVERSE, "--n", 20, "--downloads", 2)
    assert world.reasons() == {"": 20}
    assert not list((world.folder / "out").glob("raw"))
    twice = [key for key, count in world.fetched().items() if count > 1]
    assert len(twice) <= 2, twice  # the two that were on their way
    assert sum(world.fetched().values()) - sum(seen.values()) <= 20 - len(before) - ready + 2


def delivered(ledger: Path) -> list[str]:
    try:
        with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as db:
            return [uid for (uid,) in db.execute("SELECT uid FROM item WHERE state = 'delivered'")]
    except sqlite3.OperationalError:
        return []


def test_the_cache_is_the_objaverse_packages_own() -> None:
    said = "import objaverse; print(objaverse.BASE_PATH, objaverse._VERSIONED_PATH, sep='\\n')"
    told = subprocess.run([sys.executable, "-c", said], check=True, capture_output=True, text=True, timeout=300)
    here = Listing.cache.expanduser()
    assert told.stdout.splitlines() == [str(here), str(here / route.OBJAVERSE_FOLDER)]


def test_what_the_objaverse_package_left_is_used(world: World) -> None:
    made = objaverse(world)
    versioned = world.cache / "hf-objaverse-v1"
    shutil.copytree(world.folder / "root/datasets" / made.repo, versioned)
    said = world.render(*OBJAVERSE, "--n", 10)
    assert "delivered 10" in said
    assert not world.hub.requests
    assert len(list(versioned.rglob("*.glb"))) == 12  # and it stays


def test_a_list_that_was_cut_is_fetched_anew(world: World) -> None:
    made = objaverse(world)
    versioned = world.cache / "hf-objaverse-v1"
    versioned.mkdir(parents=True)
    whole = (world.folder / "root/datasets" / made.repo / "object-paths.json.gz").read_bytes()
    (versioned / "object-paths.json.gz").write_bytes(whole[:-20])
    world.render(*OBJAVERSE, "--n", 2)
    assert (versioned / "object-paths.json.gz").read_bytes() == whole


def test_a_table_that_was_cut_is_fetched_anew(world: World) -> None:
    made = trees.objaverse_xl(world.folder / "root", world.hub.url, objaverse(world))
    whole = (world.folder / "root/datasets" / made.repo / "smithsonian/smithsonian.parquet").read_bytes()
    for cut in (whole[:-20], b"PA", b""):
        trees.put(world.cache / "smithsonian/smithsonian.parquet", cut)
        world.here("manifest", *XL, "--xl-sources", "smithsonian", "--n", 3, "-o", "list.csv")
        assert (world.cache / "smithsonian/smithsonian.parquet").read_bytes() == whole


def test_kept_files_serve_the_objaverse_package(world: World) -> None:
    made = objaverse(world)
    world.render(*OBJAVERSE, "--n", 10, "--keep-raw")
    kept = {path.stem for path in world.cache.rglob("*.glb")}
    assert len(kept) == 10
    script = (
        "import json, sys, urllib.request, objaverse\n"
        "def refuse(*a, **k): raise AssertionError(a)\n"
        "urllib.request.urlretrieve = refuse\n"
        "uids = json.loads(sys.argv[1])\n"
        "print(json.dumps([objaverse.load_objects(uids), sorted(objaverse.load_uids()),\n"
        "                  {u: a['license'] for u, a in objaverse.load_annotations(uids).items()}]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(sorted(kept))],
        env=world.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    objects, uids, licenses = json.loads(done.stdout.splitlines()[-1])
    assert set(objects) == kept and all(Path(path).is_file() for path in objects.values())
    assert uids == sorted(made.uids)
    assert licenses == {uid: made.licenses[uid] for uid in kept}


def test_choosing(world: World) -> None:
    made = objaverse(world)
    world.render(*OBJAVERSE, "--lvis", "teapot", "--n", 9, expect=3)
    assert set(world.ended()) == {uid for uid in made.lvis["teapot"] if made.licenses[uid] != "by-nd"}
    assert set(listed(world, *OBJAVERSE, "--license", "cc0", "by", "--n", 9)) == {
        uid for uid in made.uids if made.licenses[uid] in ("cc0", "by")
    }
    named = [uid for uid in made.uids if made.licenses[uid] == "by"]
    (world.folder / "list.csv").write_text("".join(f"{n},000-000/{uid}\n" for n, uid in enumerate(named)))
    assert set(listed(world, *OBJAVERSE, "--uids", "list.csv", "--n", 99)) == set(named)
    lines = "sha256,file_identifier,aesthetic_score\n"
    lines += "".join(f"x{n},https://sketchfab.com/3d-models/{uid},{4 + n / 4}\n" for n, uid in enumerate(made.uids))
    (world.folder / "scores.csv").write_text(lines)
    scored = ("--scores", "scores.csv", "--min-score", "5.5", "--license", "any")
    assert set(listed(world, *OBJAVERSE, *scored, "--n", 99)) == set(made.uids[6:])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--lvis", "chairr"), "no category"),
        (("--uids", "absent.txt"), "is no file"),
        (("--scores", "scores.csv"), "go together"),
        (("--uids", "others.txt"), "no object of Objaverse"),
        (("--mirror", "nonsense"), "FROM=TO"),
        (("--max-file-mb", "9000"), "does not fit"),
    ],
)
def test_a_mistake_gets_a_message(world: World, arguments: tuple[str, ...], says: str) -> None:
    objaverse(world)
    (world.folder / "scores.csv").write_text("uid,score\na,1\n")
    (world.folder / "others.txt").write_text("nobody\n")
    assert says in world.here("render", *OBJAVERSE, *arguments, *QUICK, "--out", "out", expect=2)


def test_without_a_connection_it_says_so_and_offline_uses_what_is_there(world: World) -> None:
    objaverse(world)
    said = world.here("render", *OBJAVERSE, *QUICK, "--out", "out", "--n", 3, expect=2, endpoint="http://127.0.0.1:9")
    assert "cannot be had" in said and "HF_ENDPOINT" in said
    said = world.render(*OBJAVERSE, "--n", 3, expect=2, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in said
    world.render(*OBJAVERSE, "--n", 10, "--keep-raw")
    shutil.rmtree(world.folder / "out")
    before = len(world.hub.requests)
    world.render(*OBJAVERSE, "--n", 10, HF_HUB_OFFLINE="1")
    assert len(world.hub.requests) == before


def test_a_host_that_is_down_ends_the_run_not_the_source(world: World) -> None:
    objaverse(world, 40)
    fault = world.hub.fault("glbs/", "status", times=None, code=500, headers={"Retry-After": "0"})
    said = world.render(*OBJAVERSE, "--n", 25, "--downloads", 16, "--per-host", 16, expect=2)
    assert "20 downloads in a row failed, the last with server_error" in said
    assert world.reasons() == {"server_error": 20}
    fault.left = 0
    world.render(*OBJAVERSE, "--n", 25, "--retry-failed")
    assert world.reasons() == {"": 25}


def test_a_gated_repository_takes_the_token(world: World) -> None:
    made = objaverse(world)
    world.hub.gated[made.repo] = "hf_secret"
    assert "HF_TOKEN" in world.render(*OBJAVERSE, "--n", 2, expect=2)
    world.render(*OBJAVERSE, "--n", 2, HF_TOKEN="hf_secret")
    assert {r.authorization for r in world.hub.requests if "/cdn/" in r.path} == {None}  # told to nobody else


def fetched_bytes(folder: Path) -> int:
    """Of objects' files, whole and in part, which come and go meanwhile."""
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(here, name)).st_size if name.startswith("object") else 0
    return total


def test_the_disk_budget_holds(world: World) -> None:
    objaverse(world, 24)
    for path in (world.folder / "root").rglob("*.glb"):
        data = path.read_bytes() + struct.pack("<I4s", 400_000, b"NOTE") + bytes(400_000)  # a chunk nobody reads
        path.write_bytes(data[:8] + struct.pack("<I", len(data)) + data[12:])
    peak = 0
    arguments = ("render", *OBJAVERSE, "--n", 16, *QUICK, "--out", "out", "--raw-gb", "0.001", "--max-file-mb", "1")
    driver = world.start(*arguments)
    while driver.poll() is None:
        peak = max(peak, fetched_bytes(world.folder / "out/raw"))
        time.sleep(0.005)
    assert driver.returncode == 0
    assert 400_000 < peak <= 1_000_000
    assert world.reasons() == {"": 16}


def test_objaverse_xl_accounts_for_every_line(world: World) -> None:
    sketchfab = objaverse(world)
    made = trees.objaverse_xl(world.folder / "root", world.hub.url, sketchfab)
    said = world.render(*XL, "--license", "any", "--n", 60, expect=3)
    meaning = {
        "missing": "missing",
        "gone": "missing",
        "escape": "missing",
        "modified": "modified",
        "lfs_lost": "lfs_pointer",
    }
    everything = [row for rows_ in made.rows.values() for row in rows_]
    sums = {row.sha256: row for row in everything}
    failed = Counter(meaning[row.expect] for row in sums.values() if row.expect in meaning)
    assert world.reasons() == failed | {"": len(sums) - failed.total()}
    assert f"drawn {len(sums)} = " in said
    assert set(world.fetched().values()) == {1}
    by_uid = {row["uid"]: row for path in (world.folder / "out/32").glob("*.parquet") for row in rows(path)}
    assert {row["source"] for row in by_uid.values()} == {"github", "sketchfab", "smithsonian", "thingiverse"}
    assert {row["sha256"] for row in by_uid.values()} == {s for s, row in sums.items() if row.expect not in meaning}
    assert {uid for uid, row in by_uid.items() if row["source"] == "sketchfab"} == set(sketchfab.uids)


def test_a_repository_is_asked_for_what_is_wanted_and_no_more(world: World) -> None:
    files = {f"m{number}.glb": trees.glb(number) for number in range(3)}
    ballast = {f"other/{number}.bin": os.urandom(200_000) for number in range(10)}
    commit = trees.git_repo(world.folder / "root/git", "acme", "large", files | ballast)
    lines = "uid,url,license\n"
    lines += "".join(f"{name},https://github.com/acme/large/blob/{commit}/{name},MIT\n" for name in files)
    (world.folder / "list.csv").write_text(lines)
    world.render("--manifest", "list.csv", "--n", 3)
    assert world.reasons() == {"": 3}
    assert world.hub.sent("/git/") < 100_000
    assert world.hub.count("POST", "git-upload-pack") <= 3


@pytest.mark.parametrize("saved", ["files", "zip", "tar"])
def test_repositories_that_the_objaverse_package_saved_are_used(world: World, saved: str) -> None:
    files = trees.obj_files(7)
    path = next(name for name in files if name.endswith(".obj"))
    base = world.cache / "github/repos/acme"
    for name, data in files.items():
        trees.put(base / "models" / name, data)
    if saved != "files":
        inside = {"root_dir": base / "models"} if saved == "zip" else {"root_dir": base, "base_dir": "models"}
        shutil.make_archive(str(base / "models"), saved, **inside)  # type: ignore[arg-type]
        shutil.rmtree(base / "models")
    address = f"https://github.com/acme/models/blob/{'0' * 40}/{path}"
    line = f"uid,url,license,sha256\nit,{address},MIT,{trees.sha256(files[path])}\n"
    (world.folder / "list.csv").write_text(line)
    world.render("--manifest", "list.csv", "--n", 1)
    assert world.ended() == {"it": ""}
    assert not world.hub.requests
    (row,) = {row["meta"] for path in (world.folder / "out/32").glob("*.parquet") for row in rows(path)}
    assert json.loads(row)["images"] and not json.loads(row)["missing_textures"]


def test_the_default_licenses_leave_out_what_may_not_be_passed_on(world: World) -> None:
    trees.objaverse_xl(world.folder / "root", world.hub.url, objaverse(world))
    said = world.render(*XL, "--xl-sources", "github", "sketchfab", "--n", 60, expect=3)
    licenses = {row["license"] for path in (world.folder / "out/32").glob("*.parquet") for row in rows(path)}
    assert "unknown" not in licenses and not any("ND" in name for name in licenses)
    assert "passed over" in said and "unknown 3" in said


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_manifest_repeats_a_choice(world: World, kind: str) -> None:
    made = objaverse(world)
    listing = ("manifest", *OBJAVERSE, "--n", 6, "--seed", 3)
    said = (world.run if kind == "parquet" else world.here)(*listing, "-o", f"a.{kind}")
    assert "6 objects in" in said and "licenses: " in said
    world.here(*listing, "-o", f"b.{kind}")
    assert (world.folder / f"a.{kind}").read_bytes() == (world.folder / f"b.{kind}").read_bytes()
    if kind == "parquet":
        for row in rows(world.folder / "a.parquet"):
            assert row["sha256"] == made.sha256[row["uid"]]
            assert row["size"] == (world.folder / f"root/datasets/{made.repo}/{made.paths[row['uid']]}").stat().st_size
            assert row["file_type"] == "glb"
            assert row["author"] == made.annotations[row["uid"]]["user"]["displayName"]
    world.render("--manifest", f"a.{kind}", "--n", 6)
    by_list = world.ended()
    assert len(by_list) == 6
    if kind == "parquet":
        shutil.rmtree(world.folder / "out")
        world.render(*OBJAVERSE, "--n", 6, "--seed", 3)
        assert world.ended() == by_list
    else:
        world.here("manifest", *OBJAVERSE, "--n", 6, "--seed", 3, "-o", "a.parquet")
        assert {row["uid"] for row in rows(world.folder / "a.parquet")} == by_list.keys()


def test_the_order_does_not_depend_on_what_is_left_out(world: World) -> None:
    trees.objaverse_xl(world.folder / "root", world.hub.url, objaverse(world))
    listing = (*XL, "--n", 99, "--license")
    everything = listed(world, *listing, "any")
    assert listed(world, *listing, "any", "--seed", 1) != everything
    smaller = listed(world, *listing, "any", "--xl-sources", "sketchfab", "smithsonian")
    assert smaller == [uid for uid in everything if uid in smaller]
    free = listed(world, *listing, "cc0")
    assert free and free == [uid for uid in everything if uid in free]


@pytest.mark.skipif(not SHARED_OBJECTS.is_dir(), reason="the official example objects are not here")
def test_the_official_example_objects_come_through_the_xl_path(world: World) -> None:
    files = {path.name: path.read_bytes() for path in sorted(SHARED_OBJECTS.iterdir())}
    assert {name: trees.sha256(data) for name, data in files.items()} == OFFICIAL
    commit = trees.git_repo(world.folder / "root/git", "mattdeitke", "objaverse-xl-test-files", files)
    base = f"https://github.com/mattdeitke/objaverse-xl-test-files/blob/{commit}"
    made = [
        trees.Row(f"{base}/{name}", "github", None, name.rsplit(".", 1)[1], OFFICIAL[name], content=data)
        for name, data in files.items()
    ]
    trees.objaverse_xl(world.folder / "root", world.hub.url, objaverse(world), made)
    world.render(*XL, "--xl-sources", "github", "--license", "any", "--allow-blend", "--n", 10)
    assert world.reasons() == {"": 10}
    shutil.rmtree(world.folder / "out")
    said = world.render(*XL, "--xl-sources", "github", "--license", "any", "--n", 10, expect=3)
    assert "passed over 1 .blend files" in said
    assert world.reasons() == {"": 9}


OFFICIAL = {  # scripts/rendering/example-objects.json of allenai/objaverse-xl
    "example.obj": "d2b9a5d7c47dc93526082c9b630157ab6bce4fd8669610d942176f4a36444e71",
    "example-linked.gltf": "f15f7541614940dedd1ce373dee9cde1cc63471db84081259a44488aca267408",
    "example.dae": "cd567dfd1605a5fd60af1b8ac67e44b6af25b9e3f160da66047bb1187d02a071",
    "example.abc": "879bc9d2d85e4f3866f0cfef41f5236f9fff5f973380461af9f69cdbed53a0da",
    "example.blend": "ac69da6df0c83b593902c71238a7721f575233723730150230da95d583466562",
    "example-embedded.gltf": "bc4cc8a78bc57d3c41ddaca9135d2b4e66b59e97846e2b796e5cc6b09c62b273",
    "example.glb": "04e6377317d6818e32c5cbd1951e76deb3641bbf4f6db6933046221d5fbf1c5c",
    "example.fbx": "7037575f47816118e5a34e7c0da9927e1be7be3f5b4adfac337710822eb50fa9",
    "example.stl": "10fd5944c3fe32cb25fdcf46319cbda250b98bd22fd87fc41de5769b118d5262",
    "example.ply": "aa5c41753ad8a91562122d8cafbe1a940146fc3d227b7086eb8c830da36cb42b",
}
