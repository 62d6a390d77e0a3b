"""Runs whose shards go to an object store: a server on 127.0.0.1, real renders, a killed driver, a lost machine."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from pipeline.config.shared import address_of, desk_of
from pipeline.core.errors import UserError
from pipeline.storage import object_store
from pipeline.storage.object_store import Store
from pipeline.storage.shards import find_shards, read_objects
from tests.buckets import BUCKET, Buckets
from tests.conftest import lvsm_data
from tests.pipeline.run.test_run import count_in_ledger, start, wait_for

MANY = 18
TINY = ("--res", 16, 24, "--views", 2, "--samples", 1, "--shard-mb", 0.005, "--val-percent", 30)


def objects(folder: Path) -> dict[str, list[tuple[bytes, ...]]]:
    """uid -> the pictures of each time that it stands in a shard, width by width."""
    found: dict[str, list[tuple[bytes, ...]]] = {}
    for paths in find_shards(folder).values():
        for path in paths:
            for rows in read_objects(path):
                found.setdefault(rows.uid, []).append(tuple(rows.jpegs))
    return found


def fetched(s3: Buckets, prefix: str, to: Path) -> Path:
    """What stands in the bucket, as another tool sees it."""
    for key in s3.sizes(prefix):
        path = to / key.removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(s3.client().get_object(Bucket=BUCKET, Key=key)["Body"].read())
    return to


# ---- files


def test_a_file_is_there_as_a_whole_or_not_at_all(s3: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"s3://{BUCKET}/deep/run")
    assert store.names("64") == {} and store.folders() == [] and not store.has("64/a")
    (tmp_path / "a").write_bytes(os.urandom(12_000_000))  # more than one part
    store.put(tmp_path / "a", "64/a")
    (tmp_path / "b").write_bytes(b"second")
    store.put(tmp_path / "b", "64/a")  # again, with other bytes: replaced as a whole
    store.put(tmp_path / "a", "64/c")
    assert store.names("64") == {"a": 6, "c": 12_000_000}
    assert store.folders()[0] == "64"
    assert store.get("64/c", tmp_path / "x" / "c") and not store.get("64/none", tmp_path / "none")
    assert (tmp_path / "x" / "c").read_bytes() == (tmp_path / "a").read_bytes()
    assert not (tmp_path / "none").exists()
    with store.open("64/a") as file:
        assert file.read() == b"second"

    real = object_store.fs.copy_files

    def cut(source: str, destination: str, *systems: object) -> None:
        Path(tmp_path / "half").write_bytes(Path(source).read_bytes()[:100])
        real(str(tmp_path / "half"), destination, *systems)

    monkeypatch.setattr(object_store.fs, "copy_files", cut)
    store.timeout_s = 0.5
    with pytest.raises(UserError, match="100 of 12000000 bytes"):
        store.put(tmp_path / "a", "64/never")
    assert store.names("64") == {"a": 6, "c": 12_000_000}
    assert len(store.names("uploading")) >= 1
    store.tidy()
    assert store.names("uploading") == {}
    store.delete("64/a")
    store.delete("64/a")
    assert store.names("64") == {"c": 12_000_000}


def test_failures_are_tried_again_and_hopeless_ones_are_told_at_once(
    s3: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(f"s3://{BUCKET}/run")
    (tmp_path / "a").write_bytes(b"bytes")
    s3.failing = 0.15
    for number in range(12):
        store.put(tmp_path / "a", f"64/{number}")
    s3.failing = 0.0
    assert store.names("64") == {str(number): 5 for number in range(12)}
    assert s3.failures > 3
    start_s = time.monotonic()
    with pytest.raises(UserError, match="nobodys"):
        Store("s3://nobodys/run").put(tmp_path / "a", "a")
    assert time.monotonic() - start_s < object_store.GIVE_UP_S / 10
    with pytest.raises(UserError, match="nosuch://x/y"):
        Store("nosuch://x/y")


def test_a_store_that_does_not_answer_is_said_soon_and_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """S3's client itself tries for up to 80 seconds before it says what is wrong."""
    monkeypatch.setattr(object_store, "SILENCE_S", 0.1)
    store = Store(f"file://{tmp_path}", 0.3)
    tried = threading.Event()

    class Silent:
        def get_file_info(self, path: str) -> None:
            tried.wait(0.5)
            raise OSError("could not connect")

    store.fs = Silent()
    with pytest.raises(UserError, match="cannot be used: could not connect"):
        store.has("driver.json")
    said = f"file://{tmp_path}: no answer yet; trying for at most 0.3 s"
    assert capsys.readouterr().err.splitlines() == [said]


def test_addresses() -> None:
    assert address_of(Path("s3://bucket/a/run/")) == "s3://bucket/a/run"
    assert address_of(Path("gs://bucket")) == "gs://bucket"
    assert address_of(Path("file:///mnt/run")) == "file:///mnt/run"
    assert [address_of(path) for path in (None, Path("data/try"), Path("/data/s3/x"), Path("c:x"))] == [None] * 4
    assert desk_of("s3://bucket/a/run") != desk_of("s3://bucket/a-run")
    assert desk_of("s3://bucket/a/run").name.startswith("bucket-a-run-")


# ---- runs


def test_a_run_goes_to_a_store_that_fails_and_is_killed_and_loses_its_machine(s3: Buckets, tmp_path: Path) -> None:
    """The same objects, bit by bit, as a run on this disk; each exactly once, whatever happened in between."""
    plain = lvsm_data("render", "--n", MANY, *TINY, "--executor", "inline", "--out", tmp_path / "plain")
    assert plain.returncode == 0, plain.stderr
    s3.failing = 0.08
    address = f"s3://{BUCKET}/runs/one"

    def run(desk: Path, n: int) -> tuple[object, ...]:
        flags = ("--executor", "inline", "--backup-s", 0.5, "--out", address, "--desk", desk)
        return ("render", "--n", n, *TINY, *flags)

    first = start(*run(tmp_path / "desk", MANY))
    wait_for(lambda: s3.sizes("runs/one/16/") and "runs/one/ledger.sqlite" in s3.sizes("runs/one/"))
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert 0 < count_in_ledger(tmp_path / "desk") < MANY
    # the same machine goes on at once
    second = start(*run(tmp_path / "desk", MANY))
    wait_for(lambda: count_in_ledger(tmp_path / "desk") >= 5)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    # it is lost; another one has to be sure that it is
    shutil.rmtree(tmp_path / "desk")
    early = lvsm_data(*run(tmp_path / "other", MANY))
    assert early.returncode in (0, 2)
    if early.returncode == 2:
        assert "another run is writing to" in early.stderr and "if it is dead" in early.stderr
        time.sleep(1.6)
    last = lvsm_data(*run(tmp_path / "other", MANY))
    assert last.returncode == 0, last.stderr
    assert f"requested {MANY}: drawn {MANY} = delivered {MANY} + failed 0" in last.stdout
    assert f"lvsm-data view {address}" in last.stdout
    assert s3.failures > 3
    s3.failing = 0.0

    there = objects(fetched(s3, "runs/one/", tmp_path / "there"))
    assert there == objects(tmp_path / "plain")
    assert Counter(len(times) for times in there.values()) == {2: MANY}  # once at each width
    assert not s3.sizes("runs/one/uploading/")
    assert not list((tmp_path / "other").glob("*/*.parquet"))  # the desk keeps nothing that is there

    home = {**os.environ, "HOME": str(tmp_path / "home")}  # of somebody else
    status = lvsm_data("status", address, env=home)
    assert f"delivered {MANY} of {MANY}, failed 0" in status.stdout
    verify = lvsm_data("verify", address, env=home)
    assert verify.returncode == 0, verify.stdout + verify.stderr
    view = lvsm_data("view", address, env=home)
    assert view.returncode == 0, view.stderr
    size = (
        "--dim",
        32,
        "--layers",
        2,
        "--encoder-layers",
        1,
        "--patch",
        8,
        "--batch",
        2,
        "--inputs",
        1,
        "--targets",
        1,
    )
    quick = ("--eval-every", 0, "--device", "cpu", "--out", tmp_path / "trained")
    trained = lvsm_data("train", "--data", address, "--res", 16, "--steps", 2, *size, *quick, env=home)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    # a desk of an earlier time: what happened elsewhere counts
    more = lvsm_data(*run(tmp_path / "third", MANY + 1))
    assert f"drawn {MANY + 1} = delivered {MANY + 1}" in more.stdout, more.stderr
    stale = lvsm_data(*run(tmp_path / "other", MANY + 2))
    assert f"drawn {MANY + 2} = delivered {MANY + 2}" in stale.stdout, stale.stderr
    assert Counter(map(len, objects(fetched(s3, "runs/one/", tmp_path / "again")).values())) == {2: MANY + 2}


def test_a_shared_folder_is_a_store_too(tmp_path: Path) -> None:
    address = f"file://{tmp_path}/shared"
    flags = ("--executor", "inline", "--out", address, "--desk", tmp_path / "desk")
    done = lvsm_data("render", "--n", 3, *TINY, *flags)
    assert done.returncode == 0, done.stderr
    assert set(objects(tmp_path / "shared")) == {f"procedural-0-{index:07d}" for index in range(3)}
    whole = objects(tmp_path / "shared")
    for path in (tmp_path / "shared").glob("16/*.parquet"):
        # a machine was lost whose shards had arrived at one width; no later shard takes this number
        shutil.copy(path, path.with_stem(f"{path.stem[:-6]}000099"))
        path.unlink()  # and somebody removes what was made
    again = lvsm_data("render", "--n", 3, *TINY, *flags)
    assert "making what they held again" in again.stderr
    assert objects(tmp_path / "shared") == whole


def test_rendering_waits_for_uploads_and_ends_where_they_never_succeed(
    s3: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.dataset.copies import at_hand
    from pipeline.report.status import read_status
    from pipeline.storage.ledger import Ledger
    from pipeline.storage.uploads import AHEAD, Uploads, attached

    out = tmp_path / "desk"
    (out / "16").mkdir(parents=True)
    address = f"s3://{BUCKET}/run"
    gate = threading.Event()
    with attached(address, out, 60, 60), Ledger(out / "ledger.sqlite"):
        store = Store(address)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))  # somebody else sees that it runs
        store.put(out / "ledger.sqlite", "ledger.sqlite")
        assert read_status(at_hand(Path(address)))["state"] == "running"
        put = store.put

        def slow(local: Path, name: str) -> None:
            assert gate.wait(30)
            put(local, name)

        store.put = slow  # type: ignore[method-assign]
        names = [f"train-{number:06d}" for number in range(AHEAD + 1)]
        for name in names:
            (out / "16" / f"{name}.parquet").write_bytes(b"shard")
        with Uploads(store, out, (16,), 60) as uploads:
            for name in names[:-1]:
                uploads.take(name)
            assert uploads.snapshot() == {"waiting": AHEAD, "bytes": 5 * AHEAD}
            threading.Timer(0.3, gate.set).start()
            uploads.take(names[-1])
            assert gate.is_set()  # it waited
            uploads.finish()
            assert uploads.there == set(names)
        assert store.names("16") == {f"{name}.parquet": 5 for name in names}
        store.timeout_s = 1.0
        (out / "16" / "train-000099.parquet").write_bytes(b"shard")
        uploads = Uploads(store, out, (16,), 60)
        s3.failing = 1.0
        uploads.take("train-000099")
        with pytest.raises(UserError, match="cannot be used"):
            uploads.finish()
        uploads.close()
        s3.failing = 0.0
        assert (out / "16" / "train-000099.parquet").exists()
