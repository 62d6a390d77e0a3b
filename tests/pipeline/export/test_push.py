"""A run on the Hub: uploaded to the one on this machine, killed on the way, and read by `datasets` and ourselves."""

from __future__ import annotations

import csv
import dataclasses
import errno
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import pipeline
from pipeline.core import cameras
from pipeline.core.errors import UserError
from pipeline.download.huggingface import identity
from pipeline.export import card, push
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import locked
from pipeline.storage.shards import (
    CAPTION,
    INTRINSICS,
    LAYERS,
    NUMBERS,
    ROLE,
    TIME,
    Rows,
    find_shards,
    read_objects,
    schema,
)
from pipeline.storage.writer import ShardWriter
from tests.buckets import BUCKET, Buckets
from tests.conftest import RUNS, lvsm_data_here
from tests.hub import Hub, known_alone
from tests.pipeline.dataset.test_opened import UIDS, VIEWS, scene

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub to its HTTP client

WIDTHS = (16, 160)
FACTS = {
    "config_hash": "0123456789abcdef",
    "seed": 7,
    "source": "local",
    "settings": {"normalize": "sphere", "hdri": "/home/someone/maps", "cameras": "shell"},
    "world": "z up",
}
FAILED = "no_faces"
ROLES = ["train", "val", "", "test", "train"]


def finished(out: Path, uids: tuple[str, ...] = tuple(UIDS), widths: tuple[int, ...] = WIDTHS) -> Path:
    """A run as its driver leaves it: several shards at each width, a ledger with licenses, credits and a failure."""
    writer = ShardWriter(out, widths, (), FACTS, 1e12)
    with Ledger(out / "ledger.sqlite") as ledger:
        for number, uid in enumerate(uids):
            one = scene(uid, widths)
            if number % 3 == 0:
                credit = {"author": "Ann [x](y)", "title": "=1+1"}
                one = dataclasses.replace(
                    one, item=dataclasses.replace(one.item, license="CC-BY-NC-4.0", credit=credit)
                )
            writer.add(one, "val" if number % 4 == 3 else "train", number // 5)
            if number % 5 == 4 or uid == uids[-1]:
                for split in ("train", "val"):
                    if shard := writer.close(split):
                        ledger.add_shard(shard)
        ledger._db.execute("INSERT INTO item (uid, state, reason, finished) VALUES ('bad', 'failed', ?, 0)", (FAILED,))
    (out / "run.json").write_text(json.dumps({"identity": {"input": "/home/someone/models"}}))
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("push") / "run")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", writers={"hf_me": "me", "hf_you": "you"}) as served:
        yield served


@pytest.fixture
def here(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Run `lvsm-data` in this process, which then knows no other Hub; gives what it said. Exit status as in `status`."""

    def said(*arguments: object, status: int = 0) -> str:
        done = lvsm_data_here(*arguments)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    with known_alone(hub, tmp_path, monkeypatch):
        yield said


# ---- what stands there afterwards


LOADED = """
import collections, hashlib, json, sys
import datasets
datasets.disable_progress_bars()
def seen(*name):
    found = datasets.load_dataset("me/try", *name)
    raw = {split: views.cast_column("image", datasets.Image(decode=False)) for split, views in found.items()}
    assert all(views[0]["image"].size for views in found.values())
    return {split: [[row["uid"], row["view"], hashlib.sha256(row["image"]["bytes"]).hexdigest(), row["c2w"]]
            for row in views] for split, views in raw.items()}
print(json.dumps([seen(), seen("16"), seen("160")]))
"""


def test_load_dataset_gives_each_view_once_per_configuration(run: Path, hub: Hub, here: Callable[..., str]) -> None:
    here("push", run, "--repo", "try")  # of the token's owner
    environment = hub.environment(hub.root / "home")
    done = subprocess.run([sys.executable, "-c", LOADED], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    bare, narrow, wide = json.loads(done.stdout)
    assert bare == narrow
    for found, width in ((narrow, 16), (wide, 160)):
        assert found.keys() == {"train", "val"}
        for split, rows in found.items():
            data = pipeline.open(run, width, split)
            expected = {
                (uid, view): (hashlib.sha256(jpeg).hexdigest(), pose.ravel().tolist())
                for uid in data.uids
                for view, (jpeg, pose) in enumerate(zip(data[uid].jpegs, data[uid].c2w, strict=True))
            }
            assert len(rows) == len(expected)
            assert {(uid, view): (digest, pose) for uid, view, digest, pose in rows} == expected
    text = (hub.root / "datasets/me/try/README.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        done = subprocess.run([sys.executable, "-c", block], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_we_read_what_stands_there(run: Path, hub: Hub, here: Callable[..., str]) -> None:
    here("push", run, "--repo", "me/try", "--revision", "v1")
    assert not list((hub.root / "datasets/me/try").rglob("*.parquet"))
    hub.clear()
    there, expected = pipeline.open("hf:me/try@v1", res=160), pipeline.open(run, res=160)
    assert there.uids == expected.uids
    for one in expected:
        found = there[one.uid]
        assert found.jpegs == one.jpegs and found.license == one.license and found.meta == one.meta
        np.testing.assert_array_equal(found.c2w, one.c2w)
    assert "ok: " in here("verify", "hf:me/try@v1") and "no ledger" in here("verify", "hf:me/try@v1")
    assert "without a ledger" in here("licenses", "hf:me/try@v1", status=2)
    assert "finished runs" in here("render", "--n", "1", "--out", "hf:me/new", status=2)


def test_a_hub_that_does_not_answer(here: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is not there, or hidden"):
        pipeline.open("hf:me/nothing")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    huggingface_hub.HfFileSystem.clear_instance_cache()
    with pytest.raises(UserError, match="cannot be reached"):
        pipeline.open("hf:me/nothing")


def test_the_card_says_what_is_there(run: Path, tmp_path: Path, here: Callable[..., str]) -> None:
    """Also `export --to hf`, which writes to a folder what `push` uploads."""
    here("push", run, "--repo", "me/try")
    here("export", run, "--to", "hf", "--out", tmp_path / "out")
    remote, local = tmp_path / "hub/datasets/me/try", tmp_path / "out"
    names = sorted(str(path.relative_to(remote)) for path in remote.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(local)) for path in local.rglob("*") if path.is_file())
    assert not any("ledger" in name or "run.json" in name for name in names)
    for name in names:
        same = (remote / name).read_bytes() == (local / name).read_bytes()
        assert same or name == "README.md"
    text = (remote / "README.md").read_text()
    assert text.replace("hf:me/try", "out").replace("me/try", "out") == (local / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "other" and head["license_link"] == "attribution.csv"
    assert [(one["config_name"], one.get("default")) for one in head["configs"]] == [("16", True), ("160", None)]
    views, val = len(UIDS) * VIEWS, sum(number % 4 == 3 for number in range(len(UIDS)))
    assert f"{len(UIDS)} objects in {views} views" in text and f"| `160` | val | {val} | {val * VIEWS} |" in text
    assert f"| {FAILED.replace('_', chr(92) + '_')} | 1 |" in text and f"Of {len(UIDS) + 1} objects" in text
    assert "CC-BY-NC-4.0" in text and "/home/someone" not in text and '"hdri": "maps"' in text
    credits = list(csv.DictReader((remote / "attribution.csv").read_text().splitlines()))
    assert {row["uid"].removeprefix("'") for row in credits} == set(UIDS) and {row["title"] for row in credits} == {
        "",
        "'=1+1",
    }
    sheet = Image.open(io.BytesIO((remote / "contact_sheet.jpg").read_bytes()))
    assert sheet.size == (VIEWS * 130 - 2, 8 * 66 - 2) and np.asarray(sheet).std() > 30


def test_every_column_has_its_line_in_the_card() -> None:
    names = {*schema((*LAYERS, *NUMBERS, ROLE, TIME, CAPTION, "image_sha")).names, "sxsycxcy"}
    assert names == card.COLUMNS.keys()


# ---- and back


def rows(run: Path, width: int) -> dict[str, Rows]:
    return {one.uid: one for path in find_shards(run)[width] for one in read_objects(path)}


def test_import_brings_it_back(run: Path, hub: Hub, tmp_path: Path, here: Callable[..., str]) -> None:
    here("push", run, "--repo", "me/try")
    options = (
        "--n",
        99,
        "--res",
        16,
        160,
        "--crop",
        "none",
        "--executor",
        "inline",
        "--raw-gb",
        0.1,
        "--max-file-mb",
        50,
    )
    here("import", "--input", "hf:me/try", *options, "--out", tmp_path / "back", status=3)
    for width in WIDTHS:
        expected, found = rows(run, width), rows(tmp_path / "back", width)
        assert found.keys() == expected.keys()
        for uid, one in found.items():
            was = expected[uid]
            assert one.jpegs == was.jpegs and one.shas == was.shas and one.hw == was.hw
            np.testing.assert_allclose(one.c2w, was.c2w, atol=1e-6)
            np.testing.assert_array_equal(one.intrinsics, was.intrinsics)
            assert (one.license, one.meta, one.source) == (was.license, was.meta, was.source)
    assert here("verify", tmp_path / "back").startswith("ok: ")
    with Ledger(run / "ledger.sqlite") as before, Ledger(tmp_path / "back/ledger.sqlite") as after:
        assert [work[0] for work in before.works()] == [work[0] for work in after.works()]
    assert not list((tmp_path / "back").rglob("raw/*"))


def test_import_reads_a_run_of_this_machine(tmp_path: Path, here: Callable[..., str]) -> None:
    """With layers, roles and captions, some of its views, some of its objects."""
    layers = ("alpha", "depth", "roughness")
    writer = ShardWriter(tmp_path / "run", (16,), (*layers, ROLE, CAPTION), FACTS, 1e12)
    for uid in ("a", "b", "c"):
        one = scene(uid, (16,), layers)
        item = dataclasses.replace(one.item, license="unknown", extra={CAPTION: f"the {uid}"})
        writer.add(dataclasses.replace(one, item=item, roles=ROLES), "train", 0)
    writer.close("train")
    (tmp_path / "uids.txt").write_text("a\nc\n")
    options = (
        "--res",
        16,
        "--crop",
        "none",
        "--executor",
        "inline",
        "--n",
        2,
        "--license",
        "CC0",
        "--out",
        tmp_path / "back",
    )
    some = ("--views", 3, "--alpha", "--depth", "--uids", tmp_path / "uids.txt")
    said = here("import", "--input", tmp_path / "run", *options, *some)
    assert "looks like shards" in said
    assert "left out: roughness, which" in said and "kept by" not in said
    expected, found = rows(tmp_path / "run", 16), rows(tmp_path / "back", 16)
    assert found.keys() == {"a", "c"}
    for uid, one in found.items():
        chosen = cameras.spread(VIEWS, 3)
        assert one.jpegs == [expected[uid].jpegs[view] for view in chosen]
        assert one.roles == [ROLES[view] for view in chosen]
        for name in ("alpha", "depth"):
            assert one.layers[name] == [expected[uid].layers[name][view] for view in chosen]
        assert one.license == "CC0-1.0" and one.caption == f"the {uid}"
    fewer = [*options[:-1], tmp_path / "fewer"]
    said = here("import", "--input", tmp_path / "run", *fewer, "--depth")
    assert f"left out: alpha, which {tmp_path / 'run'} has; kept by --alpha\n" in said


@pytest.mark.parametrize("column", ["c2w", "depth", "image"])
def test_what_is_damaged_is_not_imported(column: str, tmp_path: Path, here: Callable[..., str]) -> None:
    writer = ShardWriter(tmp_path / "run", (16,), ("depth",), FACTS, 1e12)
    for uid in ("a", "b", "c"):
        writer.add(scene(uid, (16,), ("depth",)), "train", 0)
    writer.close("train")
    (path,) = (tmp_path / "run/16").glob("*.parquet")
    group = pq.ParquetFile(path).metadata.row_group(1)
    chunk = next(one for one in map(group.column, range(group.num_columns)) if one.path_in_schema.startswith(column))
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 1
    path.write_bytes(data)
    options = ("--res", 16, "--crop", "none", "--depth", "--executor", "inline", "--out", tmp_path / "back")
    said = here("import", "--input", tmp_path / "run", "--n", 3, *options, status=3)
    assert "delivered 2 + failed 1 (file_unreadable 1)" in said
    assert rows(tmp_path / "back", 16).keys() == {"a", "c"}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--input", "RUN", "--res", 16), "--crop none takes them as they are"),
        (("--input", "RUN", "--res", 64), "has no pictures of 64 pixels"),
        (("--input", "RUN", "--res", 16, "--crop", "none", "--alpha"), "has no alpha"),
        (("--input", "hf:me/none", "--res", 16), "is not there, or hidden from you"),
        (("--source", "colmap", "--input", "hf:me/none"), "takes files of this machine"),
    ],
)
def test_imports_that_cannot_be(
    arguments: tuple[object, ...], error: str, run: Path, tmp_path: Path, here: Callable[..., str]
) -> None:
    given = [run if each == "RUN" else each for each in arguments]
    said = here("import", *given, "--executor", "inline", "--out", tmp_path / "back", status=2)
    assert error in said


def test_import_states_no_wrong_background(tmp_path: Path, here: Callable[..., str]) -> None:
    writer = ShardWriter(tmp_path / "run", (16,), (), FACTS | {"background": "hdri"}, 1e12)
    writer.add(scene("a", (16,)), "train", 0)
    writer.close("train")
    options = ("--res", 16, "--crop", "none", "--executor", "inline", "--out", tmp_path / "back")
    assert "background" in here("import", "--input", tmp_path / "run", *options, status=2)


def test_import_names_what_reads_orthographic_views(tmp_path: Path, here: Callable[..., str]) -> None:
    writer = ShardWriter(tmp_path / "run", (16,), (INTRINSICS["ortho"],), FACTS, 1e12)
    writer.add(scene("a", (16,)), "train", 0)
    writer.close("train")
    options = ("--res", 16, "--crop", "none", "--executor", "inline", "--out", tmp_path / "back")
    assert "`pipeline.open` reads it" in here("import", "--input", tmp_path / "run", *options, status=2)
    assert pipeline.open(tmp_path / "run")["a"].projection == "ortho"  # `export` and `train` refuse them


# ---- killed, and gone on with


STUBBORN = "from pipeline import cli; from pipeline.export import push; push.COMMIT_FILES = 3; cli.main()"


def test_killed_twice_it_goes_on_and_sends_nothing_twice(run: Path, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    shards = sorted(run.glob("16*/*.parquet"))
    last = identity(shards[-2], "0" * 64)
    command = [sys.executable, "-c", STUBBORN, "push", str(run), "--repo", "me/try"]

    def started() -> subprocess.Popen[str]:
        RUNS.append(
            subprocess.Popen(
                command,
                env=hub.environment(tmp_path / "home"),
                text=True,
                start_new_session=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        return RUNS[-1]

    for path, method in ((f"/upload/{last}", "PUT"), ("/commit/", "POST")):
        fault = hub.fault(path, "hang", methods=(method,), seconds=60)
        going, until = started(), time.monotonic() + 60
        while not fault.hits:
            assert going.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        os.killpg(going.pid, signal.SIGKILL)
        going.wait()
        assert not (hub.root / "datasets/me/try/README.md").exists()  # the card comes last
    out, err = started().communicate(timeout=120)
    assert RUNS[-1].returncode == 0, err
    assert re.search(r"[1-9]\d* stood there already", out), out
    sent = Counter(r.path for r in hub.matching("PUT") if r.status == 200)
    assert set(sent.values()) == {1} and len(sent) == len(shards)
    names = {str(path.relative_to(run)) for path in shards}
    assert {
        path for path in names if (hub.root / "datasets/me/try" / path).read_bytes() != (run / path).read_bytes()
    } == set()


def test_a_run_that_grew_sends_what_is_new(hub: Hub, tmp_path: Path, here: Callable[..., str]) -> None:
    here("push", finished(tmp_path / "run", tuple(UIDS[:5])), "--repo", "me/try")
    grown = finished(tmp_path / "grown")
    hub.clear()
    said = here("push", grown, "--repo", "me/try")
    assert "4 stood there already" in said  # two shards at two widths
    assert len(hub.matching("PUT")) == len(list(grown.glob("16*/*.parquet"))) - 4
    hub.clear()
    assert "0 files, 0 B sent" in here("push", grown, "--repo", "me/try")
    assert not hub.matching("PUT") and not hub.matching("POST", "/commit/")


# ---- refusals


def test_other_shards_there_are_not_mixed_with_ours(
    run: Path, hub: Hub, tmp_path: Path, here: Callable[..., str]
) -> None:
    other = finished(tmp_path / "other", ("a", "b", "c", "d"), (16, 24))
    here("push", run, "--repo", "me/try")
    hub.clear()
    said = here("push", other, "--repo", "me/try", status=2)
    assert "holds shards that are not of" in said and "--replace" in said
    assert not hub.matching("PUT") and not hub.matching("POST", "/commit/")
    here("push", other, "--repo", "me/try", "--replace")
    assert set(pipeline.open("hf:me/try", res=16).uids) == {"a", "b", "c", "d"}
    there = {
        str(path.relative_to(hub.root / "datasets/me/try")) for path in hub.root.glob("datasets/me/try/*/*.parquet")
    }
    assert there == {str(path.relative_to(other)) for path in other.glob("[0-9]*/*.parquet")}


@pytest.mark.parametrize(
    ("repo", "token", "error", "hint"),
    [
        ("me/try", "", "does not know who you are", "hf auth login"),
        ("try", "", "does not know who you are", "hf auth login"),
        ("me/try", "hf_bad", "does not know who you are (401", "HF_TOKEN"),
        ("you/try", "hf_me", "does not let you write there (403", "--repo OWNER/NAME"),
        ("a b", "hf_me", "is no name", "--repo OWNER/NAME"),
        ("../../try", "hf_me", "is no name", "--repo OWNER/NAME"),
        ("bad name", "", "--repo 'bad name' is no name", "--repo OWNER/NAME"),
        ("", "", "--repo '' is no name", "--repo OWNER/NAME"),
        ("me/", "", "--repo 'me/' is no name", "--repo OWNER/NAME"),
    ],
)
def test_the_hub_refuses(
    repo: str, token: str, error: str, hint: str, run: Path, here: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    said = here("push", run, "--repo", repo, status=2)
    assert error in said and hint in said and "Traceback" not in said


def test_faults_on_the_way(run: Path, hub: Hub, here: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    faults = (
        ("/upload/", "PUT", 400, "(400"),
        ("/preupload/", "POST", 404, "no such repository"),
        ("/commit/", "POST", 412, "another writer"),
    )
    for path, method, code, error in faults:
        fault = hub.fault(path, "status", times=None, methods=(method,), code=code)
        assert error in here("push", run, "--repo", "me/try", status=2)
        fault.left = 0
    here("push", run, "--repo", "me/try")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in here("push", run, "--repo", "me/try", status=2)


def test_a_public_one_does_not_become_private(run: Path, hub: Hub, here: Callable[..., str]) -> None:
    here("push", run, "--repo", "me/own", "--private")
    assert hub.private == {"me/own"}
    here("push", run, "--repo", "me/own", "--private")
    here("push", run, "--repo", "me/all")
    assert "there already, and public" in here("push", run, "--repo", "me/all", "--private", status=2)


def test_runs_that_cannot_go_out(tmp_path: Path, hub: Hub, here: Callable[..., str]) -> None:
    """None of them asks the Hub for anything."""
    begun = finished(tmp_path / "run", tuple(UIDS[:5]))
    with locked(begun):
        assert "being written by another process" in here("push", begun, "--repo", "me/try", status=2)
    writer = ShardWriter(begun, WIDTHS, (), FACTS, 1e12)
    writer.add(scene("new", WIDTHS), "train", 9)
    writer.leave()
    with Ledger(begun / "ledger.sqlite") as ledger:
        ledger._db.execute("INSERT INTO item (uid, state, finished) VALUES ('new', 'delivered', 0)")
    said = here("push", begun, "--repo", "me/try", status=2)
    assert "is not finished: 5 of 6 objects" in said and "goes on" in said
    assert "is not finished" in here("export", begun, "--to", "hf", "--out", tmp_path / "out", status=2)
    assert not (tmp_path / "out").exists()
    assert "is no folder" in here("push", tmp_path / "nothing", "--repo", "me/try", status=2)
    assert "takes shards whole" in here("export", begun, "--to", "hf", "--n", "1", status=2)
    leads_out = finished(tmp_path / "links", tuple(UIDS[:5]))
    path = next(leads_out.glob("16/*.parquet"))
    path.rename(tmp_path / "elsewhere.parquet")
    path.symlink_to(tmp_path / "elsewhere.parquet")
    assert "leads out of the run's folder" in here("push", leads_out, "--repo", "me/try", status=2)
    assert not hub.requests


def test_a_run_of_an_object_store_goes_out(run: Path, s3: Buckets, here: Callable[..., str]) -> None:
    for path in run.rglob("*"):
        if path.is_file():
            s3.client().put_object(Bucket=BUCKET, Key=f"runs/one/{path.relative_to(run)}", Body=path.read_bytes())
    here("push", f"s3://{BUCKET}/runs/one", "--repo", "me/try")
    assert pipeline.open("hf:me/try", res=16).uids == pipeline.open(run, res=16).uids


def test_a_stopped_run_goes_out_as_far_as_it_came(tmp_path: Path, hub: Hub, here: Callable[..., str]) -> None:
    stopped = finished(tmp_path / "run of mine", tuple(UIDS[:5]))
    fewer = "The run was to deliver 12, and ended 7 short."
    for asked, said in ((12, fewer), (5, "")):
        (stopped / "status.json").write_text(json.dumps({"state": "stopped", "n": asked}))
        out = tmp_path / f'a "{asked}"'
        told = here("export", stopped, "--to", "hf", "--out", out), here("push", stopped, "--repo", f"me/try{asked}")
        cards = [path / "README.md" for path in (out, hub.root / f"datasets/me/try{asked}")]
        for text in (*told, *(path.read_text() for path in cards)):
            assert (fewer in text) == bool(said) and ("was to deliver" in text) == bool(said)
        assert f"pipeline.open({json.dumps(str(out))})" in told[0]
    with Ledger(stopped / "ledger.sqlite") as ledger:
        ledger._db.execute("INSERT INTO item (uid, state, finished) VALUES ('new', 'delivered', 0)")
    assert f"`lvsm-data status '{stopped}'` shows" in here("push", stopped, "--repo", "me/try", status=2)


def test_disks_that_fail_are_named(
    run: Path, hub: Hub, here: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, said in ((errno.ENOSPC, "is full"), (errno.EACCES, "[Errno 13]")):

        def fails(*_: object, error: int = error) -> None:
            raise OSError(error, os.strerror(error), "README.md")

        monkeypatch.setattr(push.hub, "contents", fails)
        assert said in here("push", run, "--repo", "me/try", status=2)
    assert not hub.requests


def test_a_damaged_picture_of_the_sheet_is_named(tmp_path: Path, here: Callable[..., str]) -> None:
    damaged = finished(tmp_path / "run", tuple(UIDS[:5]))
    for shard in damaged.glob("160/*.parquet"):
        data = shard.read_bytes()
        shard.write_bytes(data.replace(b"\xff\xd8\xff", b"\xff\x00\xff"))
    said = here("export", damaged, "--to", "hf", "--out", tmp_path / "out", status=2)
    assert "cannot be read" in said and f"`lvsm-data verify {damaged}`" in said and not (tmp_path / "out").exists()
