"""Whole runs through the command line: counts that add up, resume, locks, and kill -9 at random moments."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from pipeline.cluster import executors
from pipeline.config.render import RenderConfig, SceneConfig, again
from pipeline.config.rig import Rig
from pipeline.core.records import Outcome
from pipeline.run.driver import deliver
from pipeline.storage.object_table import uids_of
from tests.conftest import COMMAND, RUNS, lvsm_data, lvsm_data_here
from tests.warm import SMALLER

ROOT = Path(__file__).parents[3]
QUICK = ("--res", 32, "--views", 3, "--samples", 4)


def start(
    *arguments: object, program: tuple[object, ...] = SMALLER, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a shell starts it. env: all its variables."""
    command = [*map(str, (*program, *arguments))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env}
    RUNS.append(subprocess.Popen(command, start_new_session=True, **pipes))  # type: ignore[call-overload]
    return RUNS[-1]


def descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def named(pid: int, part: str) -> list[psutil.Process]:
    """Descendants whose command line has `part`; processes that end meanwhile are left out."""
    found = []
    for process in descendants(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            if part in " ".join(process.cmdline()):
                found.append(process)
    return found


def stored(out: Path, width: int = 32) -> list[str]:
    """Every uid in every shard, once per appearance."""
    uids: list[str] = []
    for path in (out / str(width)).glob("*.parquet"):
        file = pq.ParquetFile(path)
        uids += [file.read_row_group(i)["uid"][0].as_py() for i in range(file.num_row_groups)]
    return sorted(uids)


def pictures(out: Path, width: int = 32) -> dict[tuple[str, int], bytes]:
    rows = [row for path in (out / str(width)).glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return {(row["uid"], row["view"]): row["image"]["bytes"] for row in rows}


def wait_for(condition: object, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def count_in_ledger(out: Path) -> int:
    with (
        contextlib.suppress(sqlite3.OperationalError),
        contextlib.closing(sqlite3.connect(out / "ledger.sqlite")) as db,
    ):
        return int(db.execute("SELECT COUNT(*) FROM item").fetchone()[0])
    return 0


def test_a_second_outcome_of_an_item_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a node may send it that was thought lost."""
    once = executors.inline

    def twice(*given: Any) -> Iterator[Outcome]:
        for outcome in once(*given):
            yield outcome
            yield outcome

    monkeypatch.setattr(executors, "inline", twice)
    scene = SceneConfig(res=(16,), views=2, samples=1)
    summary = deliver(RenderConfig(n=4, out=tmp_path / "run", executor="inline", scene=scene).resolved())
    assert (summary.delivered, summary.complete, summary.reasons) == (4, True, {})
    uids = [uid for path in (tmp_path / "run" / "16").glob("*.parquet") for uid in uids_of(path)]
    assert sorted(uids) == procedural(4)


def procedural(count: int, seed: int = 0) -> list[str]:
    return [f"procedural-{seed}-{index:07d}" for index in range(count)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 procedural objects on Ray, with two workers."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run = lvsm_data("render", "--n", 8, *QUICK, "--workers", 2, "--out", out)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0].startswith("source: procedural (embedded) (others: --source local --input FOLDER | ")
    assert "requested 8: drawn 8 = delivered 8 + failed 0" in lines
    return out


def test_finished_run_verifies_and_shows_its_status(finished: Path) -> None:
    assert stored(finished) == procedural(8)
    check = lvsm_data("verify", finished)
    assert check.returncode == 0, check.stdout
    assert check.stdout.startswith("ok: ")
    assert "8 objects, 24 views, ledger agrees" in check.stdout
    status = json.loads(lvsm_data("status", finished, "--json").stdout)
    assert (status["state"], status["delivered"], status["failed"], status["views"]) == ("finished", 8, 0, 24)
    assert not list((finished / "journal").iterdir())
    assert not (finished / "scratch").exists()


def test_same_pixels_whatever_the_worker_and_the_order(finished: Path, tmp_path: Path) -> None:
    run = lvsm_data("render", "--n", 3, *QUICK, "--executor", "inline", "--out", tmp_path / "again")
    assert run.returncode == 0, run.stderr
    before, now = pictures(finished), pictures(tmp_path / "again")
    assert len(now) == 9
    assert all(before[key] == jpeg for key, jpeg in now.items())


def test_the_commands_that_render_an_object_again_do(finished: Path, tmp_path: Path) -> None:
    identity, uid = json.loads((finished / "run.json").read_text())["identity"], procedural(8)[5]
    listed, command = again(identity, uid).split("\n")
    subprocess.run(["bash", "-c", listed], cwd=tmp_path, check=True)
    words = shlex.split(command)
    assert words[:2] == ["lvsm-data", "render"]
    run = lvsm_data(*words[1:], "--executor", "inline", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    before, now = pictures(finished), pictures(tmp_path / "again")
    assert len(now) == 3 and all(before[key] == jpeg for key, jpeg in now.items())


def test_commands_that_render_an_object_again_are_quoted_and_complete() -> None:
    scene = SceneConfig(res=(64, 32), lights="studio", fov_x_deg=40.5, depth=True, denoise="on", background="random")
    cfg = RenderConfig(scene=scene, source="local", input=Path(__file__).parent, out=Path("x"), license=("cc0", "by"))
    identity = json.loads(json.dumps(cfg.resolved().identity(), default=str))
    listed, command = again(identity, "it's; rm -rf $HOME").split("\nlvsm-data ")
    assert shlex.split(listed) == ["printf", "%s\\n", "it's; rm -rf $HOME", ">", "one.txt"]
    flags = command.split(" --")
    for flag in (
        "source local",
        "license by cc0",
        "res 32 64",
        "lights studio",
        "fov-x-deg 40.5",
        "depth",
        "denoise on",
        "n 1",
    ):
        assert flag in flags, flag
    assert not {"engine", "seed", "views", "albedo", "quality"} & {flag.split()[0] for flag in flags}
    rigged = dataclasses.replace(cfg.resolved().scene, rig=Rig((tuple(np.eye(4).ravel().tolist()),) * 2), views=2)
    identity = json.loads(json.dumps(dataclasses.replace(cfg.resolved(), scene=rigged).identity(), default=str))
    assert "--poses POSES.json" in again(identity, "a")
    assert again({"source": "gobjaverse", "res": [64]}, "a") == ""


def test_same_command_again_does_nothing_and_more_goes_on(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    before = pictures(out)
    again = lvsm_data("render", "--n", 8, *QUICK, "--out", out)
    assert again.returncode == 0
    assert pictures(out) == before
    more = lvsm_data("render", "--n", 10, *QUICK, "--executor", "inline", "--out", out)
    assert more.returncode == 0, more.stderr
    assert stored(out) == procedural(10)
    other = lvsm_data("render", "--n", 10, *QUICK, "--quality", 80, "--out", out)
    assert other.returncode == 2
    assert "quality was not set, now 80" in other.stderr


def test_a_setting_that_came_later_does_not_end_an_old_run(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    path = out / "run.json"
    kept = json.loads(path.read_text())
    for name in ("projection", "ortho_scale", "albedo"):
        del kept["identity"][name]
    path.write_text(json.dumps(kept))
    again = lvsm_data("render", "--n", 8, *QUICK, "--out", out)
    assert again.returncode == 0, again.stderr
    other = lvsm_data("render", "--n", 8, *QUICK, "--projection", "ortho", "--out", out)
    assert other.returncode == 2 and "projection was perspective, now ortho" in other.stderr


def test_orthographic_views_cannot_be_taken_for_those_of_pinholes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ("--n", 2, "--res", 16, 32, "--views", 2, "--samples", 4, "--projection", "ortho", "--val-percent", 0)
    run = lvsm_data("render", *flags, "--executor", "inline", "--out", out)
    assert run.returncode == 0, run.stderr
    for width in (16, 32):
        table = pq.read_table(out / str(width))
        assert "fxfycxcy" not in table.column_names
        scale = width / 1.015  # a sphere of radius 0.5, and half a pixel at 64
        np.testing.assert_allclose(table["sxsycxcy"].to_pylist(), [[scale, scale, width / 2, width / 2]] * 4, rtol=1e-6)
    check = lvsm_data("verify", out)
    assert check.returncode == 0 and "2 objects" in check.stdout
    page = lvsm_data("view", out)
    assert page.returncode == 0 and '"ortho":true' in (out / "index.html").read_text().replace(" ", "")
    train = lvsm_data("train", "--data", out, "--steps", 2, "--res", 32, "--out", tmp_path / "train")
    assert train.returncode == 2 and "holds orthographic views" in train.stderr
    cycle = lvsm_data("cycle", "--n", 4, "--projection", "ortho", "--out", tmp_path / "cycle")
    assert cycle.returncode == 2 and "cannot train on orthographic views" in cycle.stderr
    assert not (tmp_path / "cycle").exists()


def test_deleted_shards_are_noticed_and_rendered_again(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    for path in (out / "32").glob("*.parquet"):
        path.unlink()
    assert lvsm_data("verify", out).returncode == 1
    run = lvsm_data("render", "--n", 8, *QUICK, "--executor", "inline", "--out", out)
    assert run.returncode == 0, run.stderr
    assert "no longer on disk" in run.stderr
    assert pictures(out) == pictures(finished)


def test_a_shard_that_lost_one_resolution_is_rendered_again_at_all(tmp_path: Path) -> None:
    options = ("--res", 16, 32, "--views", 2, "--samples", 2, "--executor", "inline", "--out", tmp_path / "run")
    assert lvsm_data("render", "--n", 2, *options).returncode == 0
    (tmp_path / "run" / "16" / "train-000000.parquet").unlink()
    assert lvsm_data("verify", tmp_path / "run").returncode == 1
    assert lvsm_data("render", "--n", 2, *options).returncode == 0
    assert stored(tmp_path / "run", 16) == stored(tmp_path / "run", 32) == procedural(2)
    assert lvsm_data("verify", tmp_path / "run").returncode == 0


def test_failures_are_replaced_counted_and_explained(assets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    folder.mkdir()
    for name in ("off_origin.glb", "red.ply", "tiny.glb", "degenerate.obj", "empty_scene.obj"):
        shutil.copy(assets / name, folder)
    (folder / "page.glb").write_text("<!DOCTYPE html><html>not found</html>")
    (folder / "pointer.glb").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (folder / "cut.glb").write_bytes((assets / "huge.glb").read_bytes()[:-40])
    (folder / "notes.txt").write_text("not an object")
    options = ("--source", "local", "--input", folder, *QUICK, "--executor", "inline", "--out", tmp_path / "run")
    enough = lvsm_data("render", "--n", 2, *options)
    assert enough.returncode == 0, enough.stderr
    assert "requested 2: drawn" in enough.stdout
    short = lvsm_data("render", "--n", 5, *options)
    assert short.returncode == 3
    reasons = "degenerate 1, empty 1, html_page 1, lfs_pointer 1, truncated 1"
    assert f"requested 5: drawn 8 = delivered 3 + failed 5 ({reasons})" in short.stdout
    assert "2 fewer than requested: the source has no more objects" in short.stdout
    assert stored(tmp_path / "run") == ["off_origin.glb", "red.ply", "tiny.glb"]
    status = lvsm_data("status", tmp_path / "run").stdout
    assert "cut.glb: truncated" in status
    assert "takes what it has got since; with --retry-failed also those that failed" in status
    retried = lvsm_data("render", "--n", 4, *options, "--retry-failed")
    assert retried.returncode == 3
    assert "trying 5 failed objects again" in retried.stderr
    assert reasons in retried.stdout


def test_second_run_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = start("render", "--n", 1000, *QUICK, "--executor", "inline", "--out", out)
    try:
        wait_for(lambda: count_in_ledger(out) > 0)
        second = lvsm_data("render", "--n", 1000, *QUICK, "--out", out)
        assert second.returncode == 2
        assert f"another run is writing to {out} (process {first.pid})" in second.stderr
        assert json.loads(lvsm_data("status", out, "--json").stdout)["state"] == "running"
    finally:
        first.kill()
        first.communicate(timeout=300)
    assert json.loads(lvsm_data("status", out, "--json").stdout)["state"] == "interrupted"


def test_sigterm_finishes_what_is_in_flight_and_the_same_command_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = (*QUICK, "--workers", 2, "--out", out)
    run = start("render", "--n", 1000, *options, program=(COMMAND,))  # what is installed, with all that its Ray starts
    wait_for(lambda: count_in_ledger(out) >= 3)
    run.terminate()  # as schedulers do; test_cycle.py has Ctrl-C, which goes to the whole foreground group
    stdout, stderr = run.communicate(timeout=300)
    assert run.returncode == 3, stderr
    assert "Traceback" not in stderr and "SIGTERM" not in stderr, stderr
    assert "objects in flight are finished first" in stderr
    assert "the same command goes on" in stdout
    done = len(stored(out))
    assert done >= 4
    assert stored(out) == procedural(done)  # nothing in between is lost
    assert lvsm_data("verify", out).returncode == 0
    again = lvsm_data("render", "--n", done + 2, *options, "--executor", "inline")
    assert again.returncode == 0, again.stderr
    assert stored(out) == procedural(done + 2)


def renderers(run: subprocess.Popen[str]) -> list[int]:
    """Blenders of a run."""
    return [process.pid for process in named(run.pid, "blender_scripts/worker.py")]


def kill(victim: str, run: subprocess.Popen[str], rng: random.Random) -> list[int]:
    """kill -9 of one process of a run, or of all. Answers the Blenders that there were."""
    blenders = renderers(run)
    assert blenders
    if victim == "driver":
        run.kill()
    elif victim == "worker":
        rng.choice(named(run.pid, "ray::Host")).kill()
    elif victim == "blender":
        os.kill(rng.choice(blenders), signal.SIGKILL)
    else:
        for process in [*descendants(run.pid), psutil.Process(run.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    return blenders


def test_kill_9_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    """Of a worker and a Blender, which the run outlives, and of the driver and everything, after which the command goes on."""
    out, total = tmp_path / "run", 44
    options = ("render", "--n", total, *QUICK, "--workers", 2, "--out", out)
    rng = random.Random(0)
    run = start(*options)
    survivors = found = 0
    for victim in ("worker", "blender", "driver", "everything"):
        wait_for(lambda run=run: renderers(run))  # type: ignore[misc]  # a run that goes on counts what it found before it has any
        enough = count_in_ledger(out) + 2 + rng.randrange(4)
        wait_for(lambda enough=enough, run=run: count_in_ledger(out) >= enough and renderers(run))  # type: ignore[misc]
        time.sleep(rng.random() / 4)
        assert run.poll() is None
        blenders = kill(victim, run, rng)
        if victim in ("worker", "blender"):
            continue
        _, stderr = run.communicate(timeout=300)
        assert run.returncode == -signal.SIGKILL
        if survivors:
            found += recovered(stderr)
            assert found >= survivors
        wait_for(lambda blenders=blenders: not any(map(psutil.pid_exists, blenders)))  # type: ignore[misc]  # none outlives its run
        survivors = count_in_ledger(out)
        if victim == "driver":
            run = start(*options)
    again = lvsm_data(*options)
    assert again.returncode == 0, again.stderr
    assert found + recovered(again.stderr) >= survivors
    assert stored(out) == procedural(total)
    check = lvsm_data("verify", out)
    assert check.returncode == 0, check.stdout


def recovered(stderr: str) -> int:
    """Objects that a run found in the journal and put into shards; the ledger hears of an object half a second later."""
    return sum(map(int, re.findall(r"recovered (\d+) objects", stderr)))


CLUSTER = """
import sys
from tests.warm import without_dashboard
without_dashboard()
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


def test_joins_a_ray_cluster(finished: Path, tmp_path: Path) -> None:
    """The same command with --address runs on a cluster that was there before, and leaves it running."""
    command = [sys.executable, "-W", "ignore", "-c", CLUSTER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as cluster:  # type: ignore[call-overload]
        try:
            address = cluster.stdout.readline().strip()
            run = lvsm_data("render", "--n", 4, *QUICK, "--address", address, "--out", tmp_path / "run")
            assert run.returncode == 0, run.stderr
            assert cluster.poll() is None
        finally:
            cluster.communicate(timeout=300)
    before = pictures(finished)
    assert stored(tmp_path / "run") == procedural(4)
    assert all(before[key] == jpeg for key, jpeg in pictures(tmp_path / "run").items())


def test_no_cluster_at_the_address_is_said(tmp_path: Path) -> None:
    run = lvsm_data("render", "--n", 1, *QUICK, "--address", "127.0.0.1:1", "--out", tmp_path, timeout=300)
    assert run.returncode == 2
    assert "no Ray cluster at 127.0.0.1:1" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", out], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        large = ("--res", 96, "--views", 2, "--samples", 1, "--quality", 100)  # a few of these fill it
        options = ("render", "--n", 400, *large, "--executor", "inline", "--out", out)
        full = lvsm_data(*options)
        assert full.returncode == 2, full.stderr
        assert "is full" in full.stderr
        assert "Traceback" not in full.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", out], check=True)
        done = count_in_ledger(out)
        assert done > 5
        more = done + 10  # the journal may have some that the ledger found no room for
        again = lvsm_data("render", "--n", more, *options[3:])
        assert again.returncode == 0, again.stderr
        assert stored(out, 96) == procedural(more)
    finally:
        subprocess.run(["umount", out], check=True)


def test_bad_input_gets_two_lines_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file,uid\na.glb,a\n")
    (tmp_path / "twice.jsonl").write_text('{"path": "a.glb", "uid": "x"}\n{"path": "b.glb", "uid": "x"}\n')
    (tmp_path / "broken.parquet").write_text("no parquet")
    (tmp_path / "latin.csv").write_bytes(b"path,uid\n\xe4.glb,a\n")
    local = ("render", "--executor", "inline", "--source", "local", "--out", tmp_path / "run", "--input")
    for arguments, says in [
        (("render", "--source", "local"), "--source local needs --input"),
        (("render", "--input", tmp_path), "--input does not go with --source procedural"),
        (("render", "--n", 0), "asks for nothing"),
        (("render", "--res", 2), "outside 8..8192"),
        (("render", "--samples", 0), "must be positive"),
        (("render", "--cameras", "sphere12"), "has 12 views"),
        ((*local, tmp_path / "nowhere"), "does not exist"),
        ((*local, tmp_path / "list.csv"), "entry 1 has no path"),
        ((*local, tmp_path / "twice.jsonl"), "appears twice"),
        ((*local, tmp_path / "broken.parquet"), "is not a Parquet file"),
        ((*local, tmp_path / "latin.csv"), "cannot be read as UTF-8"),
        (("render", "--out", tmp_path / "list.csv"), "cannot be written"),
        (("status", tmp_path), "holds no run"),
        (("verify", tmp_path / "nothing"), "is no folder"),
        (("view", tmp_path), "no"),
    ]:
        run = lvsm_data_here(*arguments)
        assert run.returncode == 2, (arguments, run.stderr)
        assert says in run.stderr
        assert run.stderr.startswith("error: ")
    run = lvsm_data("render", "--n", 0)
    assert (run.returncode, run.stdout, len(run.stderr.splitlines())) == (2, "", 2)
