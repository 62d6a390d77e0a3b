"""Whole cycles through the command line: what they keep to, and kill -9 of any of their processes at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

torch = pytest.importorskip("torch")

import pipeline  # noqa: E402
from lvsm_train.weights import checkpoint  # noqa: E402
from pipeline.config.render import again  # noqa: E402
from pipeline.core.disk import disk_below  # noqa: E402
from pipeline.cycle.protocol import committed  # noqa: E402
from pipeline.storage.shards import split_of  # noqa: E402
from pipeline.storage.train_run import TrainingLog  # noqa: E402
from tests import trees  # noqa: E402
from tests.conftest import lvsm_data, lvsm_data_here  # noqa: E402
from tests.hub import Hub  # noqa: E402
from tests.pipeline.cycle.test_cycle_parts import small_disk  # noqa: E402
from tests.pipeline.run.test_run import count_in_ledger, descendants, named, start, wait_for  # noqa: E402

TINY = ("--model.dim", 64, "--model.layers", 4, "--model.encoder-layers", 2, "--data.batch", 4, "--data.targets", 4)
SAME = ("--train.deterministic", "--train.device", "cpu", "--train.precision", "fp32", "--train-threads", 1)
SMALL = (
    "--n",
    20,
    "--res",
    32,
    "--views",
    10,
    "--samples",
    4,
    "--val-percent",
    15,
    "--shard-objects",
    2,
    "--window",
    3,
)
OFTEN = ("--train.eval-every", 10, "--train.checkpoint-every", 4, "--train.keep", 1, "--passes", 4)
BUDGET = 60e6


def options(out: Path, *more: object) -> tuple[object, ...]:
    return ("cycle", *SMALL, *TINY, *SAME, *OFTEN, "--disk-budget", f"{BUDGET / 1e6:.0f}MB", "--out", out, *more)


class Watcher:
    """Looks at the disk that a folder takes every 100 ms, from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.most, self.looks = folder, 0, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.most, self.looks = max(self.most, disk_below(self.folder)), self.looks + 1


def weights_of(trained: Path) -> dict[str, Any]:
    found = checkpoint.load(trained)
    assert found is not None
    return dict(found[0]["model"])


def same_model(one: Path, other: Path) -> bool:
    return same_weights(one / "train", other / "train")


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = weights_of(one), weights_of(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def curve(out: Path) -> list[tuple[int, float]]:
    return [(step, loss) for step, loss, *_ in TrainingLog(out / "train").read().curve]


def audit_of(out: Path) -> dict[str, Any]:
    run = lvsm_data("audit", out, "--json")
    told: dict[str, Any] = json.loads(run.stdout)
    assert (run.returncode == 0) == (not told["problems"])
    assert not told["problems"], told["problems"]
    return told


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cycle that nothing interrupted, without Ray: what was killed on Ray has to equal it."""
    out = tmp_path_factory.mktemp("cycle") / "whole"
    with Watcher(out) as watcher:
        run = lvsm_data(*options(out, "--executor", "inline"))
    assert run.returncode == 0, run.stdout + run.stderr
    assert watcher.looks > 20
    assert 1e6 < watcher.most <= BUDGET
    assert "it adds up" in run.stdout.splitlines()
    return out


def test_a_cycle_trains_on_everything_and_keeps_what_it_measures_with(whole: Path) -> None:
    told = audit_of(whole)
    assert (told["requested"], told["delivered"], told["held_out"], told["on_disk"], told["deleted"]) == (
        20,
        20,
        3,
        3,
        17,
    )
    assert told["samples"] == told["logged"] == told["owed"] == 17 * 4
    assert told["step"] == 17
    assert [path.stem for path in (whole / "32").iterdir()] == ["val-000000"]
    assert not list((whole / "journal").iterdir())


def test_a_cycle_of_objects_that_move(tmp_path: Path) -> None:
    """Three instants of two cameras, a model that knows time, and all adds up; what is left knows its times."""
    out = tmp_path / "cycle"
    moving = ("--n", 8, "--views", 4, "--frames", 3, "--time-cameras", "fixed", "--model.temporal", "--passes", 2)
    run = lvsm_data(*options(out, *moving, "--executor", "inline"))
    assert run.returncode == 0, run.stderr
    told = audit_of(out)
    assert told["delivered"] == 8 == told["deleted"] + told["on_disk"] and told["deleted"] > 4
    assert "linear.weight" in "".join(name for name in weights_of(out / "train") if name.startswith("input_time."))
    kept = pipeline.open(out)
    assert len(kept) and all(len(one.jpegs) == 12 and one.moves for one in kept)
    assert lvsm_data("verify", out).returncode == 0
    status = json.loads(lvsm_data("status", out, "--json").stdout)
    assert status["delivered"] == 8
    assert "--time-cameras fixed" in kept_again(kept.uids[0], out)


def test_two_models_of_one_cycle_are_those_of_two_cycles(tmp_path: Path) -> None:
    """Objects are rendered once, at two widths; each model is the one that a cycle of its own would train on this order."""
    size = ("--n", 12, "--res", 64, 96, "--passes", 2, "--data.inputs", 2, "--loss.perceptual", 0)
    more = (*size, "--executor", "inline", "--train.eval-every", 0, "--disk-budget", "90MB")
    outs = {"thesis64": tmp_path / "one", "base": tmp_path / "other", "both": tmp_path / "both"}
    for name, out in outs.items():
        configs = ("thesis64", "base") if name == "both" else (name,)
        with Watcher(out) as watcher:
            run = lvsm_data(*options(out, *more), "--train-config", *configs)
        assert run.returncode == 0, run.stdout + run.stderr
        assert watcher.most <= 90e6
    assert "training at 64 (thesis64) and 96 (base) pixels" in run.stdout
    told = audit_of(tmp_path / "both")
    (other,) = told["others"]
    assert (other["name"], other["samples"], other["logged"]) == ("train-base", told["samples"], told["owed"])
    assert told["on_disk"] == told["held_out"] and told["deleted"] == 12 - told["held_out"]
    for ours, theirs in (("both/train", "one/train"), ("both/train-base", "other/train")):
        assert same_weights(tmp_path / ours, tmp_path / theirs)
    assert "Another model on the same shards, train-base: step" in (tmp_path / "both/index.html").read_text()
    assert "train-base: step" in lvsm_data_here("status", tmp_path / "both").stdout
    refused = lvsm_data_here(*options(tmp_path / "both", *more), "--train-config", "base")
    assert refused.returncode == 2 and "train-config was ['thesis64', 'base']" in refused.stderr
    for wrong in (("small", "small"), ("small", "none")):
        assert lvsm_data_here(*options(tmp_path / "x", *more), "--train-config", *wrong).returncode == 2


def kept_again(uid: str, out: Path) -> str:
    """Commands that render an object of a cycle again."""
    return again(json.loads((out / "run.json").read_text())["identity"], uid)


def test_the_same_command_again_does_nothing(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole / "train/checkpoints").iterdir()}
    run = lvsm_data(*options(whole, "--executor", "inline"))
    assert run.returncode == 0, run.stderr
    assert {path: path.stat().st_mtime_ns for path in (whole / "train/checkpoints").iterdir()} == before
    other = lvsm_data(*options(whole, "--quality", 80))
    assert other.returncode == 2
    assert "quality was not set, now 80" in other.stderr


def test_a_stop_and_kills_change_nothing(whole: Path, tmp_path: Path) -> None:
    with Watcher(tmp_path / "run") as watcher:
        stop(options(tmp_path / "run"), tmp_path / "run")
        kills = chaos(options(tmp_path / "run"), tmp_path / "run", 3, random.Random(0))
        assert kills >= 2  # a fast machine ends before
    assert watcher.most <= BUDGET
    equal(tmp_path / "run", whole)


@pytest.mark.campaign
def test_thirty_kills_change_nothing(tmp_path: Path) -> None:
    many = ("--n", 80)
    done = lvsm_data(*options(tmp_path / "whole", *many), timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    with Watcher(tmp_path / "run") as watcher:
        assert chaos(options(tmp_path / "run", *many), tmp_path / "run", 30, random.Random(0)) == 30
    assert watcher.most <= BUDGET
    equal(tmp_path / "run", tmp_path / "whole")


def stop(command: tuple[object, ...], out: Path) -> None:
    """Ctrl-C in the midst of a cycle: objects in flight are finished, the trainer commits, and all adds up."""
    run = start(*command)
    wait_for(lambda: count_in_ledger(out) >= 9)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: the whole foreground group
    stdout, stderr = run.communicate(timeout=300)
    assert run.returncode == 3, stderr
    assert "stopping: objects in flight are finished first" in stderr
    assert "stopped; the same command goes on" in stdout.splitlines()
    told = audit_of(out)
    assert 9 <= told["delivered"] < 20
    status = json.loads(lvsm_data("status", out, "--json").stdout)
    assert (status["state"], status["delivered"]) == ("stopped", told["delivered"])


def equal(run: Path, whole: Path) -> None:
    """Both add up, and they trained alike to the last bit."""
    ours, theirs = audit_of(run), audit_of(whole)
    assert {**ours, "run": ""} == {**theirs, "run": ""}
    assert curve(run) == curve(whole)
    assert same_model(run, whole)


def chaos(command: tuple[object, ...], out: Path, kills: int, rng: random.Random) -> int:
    """kill -9 of a process of the cycle, or of all, so many times at random moments; then lets it end. Answers how many."""
    done, delivered = 0, -1
    while done < kills:
        run = start(*command)
        while done < kills and run.poll() is None:
            time.sleep(rng.uniform(0.3, 5))
            kind = rng.choice(("driver", "trainer", "worker", "blender", "all"))
            if kind in ("worker", "blender"):
                if count_in_ledger(out) == delivered:  # what dies twice at one object says that the object is hopeless
                    continue
                delivered = count_in_ledger(out)
            for victim in victims(run.pid, kind):
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
                    done += kind != "all" or victim.pid == run.pid
        if run.poll() is None:
            break
        assert run.returncode in (0, 2, -signal.SIGKILL), run.stderr.read() if run.stderr else ""
        run.communicate(timeout=300)
        if run.returncode == 0:
            return done
    if run.poll() is None:
        run.communicate(timeout=300)
    last = lvsm_data(*command)
    assert last.returncode == 0, last.stdout + last.stderr
    return done


def victims(pid: int, kind: str) -> list[psutil.Process]:
    parts = {"trainer": "lvsm_train.cycle.trainer", "worker": "ray::Host", "blender": "blender_scripts/worker.py"}
    if kind in parts:
        return named(pid, parts[kind])[:1]
    return [*([] if kind == "driver" else descendants(pid)), psutil.Process(pid)] if psutil.pid_exists(pid) else []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 120 MB of its own."""
    with small_disk(tmp_path / "disk", 120) as folder:
        yield folder


def fill(folder: Path) -> Path:
    """Takes all the disk that is free."""
    glutton = folder / "glutton"
    with contextlib.suppress(OSError), glutton.open("wb", buffering=0) as file:
        while file.write(b"x" * 65536):
            pass
    return glutton


def test_a_disk_that_others_fill_is_waited_for(whole: Path, disk: Path) -> None:
    out = disk / "run"
    run = start(*options(out, "--executor", "inline"))
    try:
        wait_for(lambda: count_in_ledger(out) >= 6)
        glutton = fill(disk)
        before = None
        while before != (before := (count_in_ledger(out), committed(out))):  # until nothing moves
            time.sleep(3)
        assert run.poll() is None  # and nothing has ended
        glutton.unlink()
        _, stderr = run.communicate(timeout=300)
    finally:
        run.kill()
    assert run.returncode == 0, stderr
    assert f"the disk of {out} is full: waiting" in stderr
    equal(out, whole)


def test_downloads_keep_to_their_share_and_go(tmp_path: Path) -> None:
    """Files from a server, some of which are none: every object is accounted for, and nothing of them stays."""
    with Hub(tmp_path / "root") as hub:
        lines = ["uid,url,license"]
        for number in range(16):
            path = tmp_path / f"root/www/{number}.glb"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(trees.glb(number) if number not in (3, 6) else b"<!DOCTYPE html><html>moved</html>")
            lines.append(f"object-{number},{hub.url}/{number}.glb,MIT")
        (tmp_path / "list.csv").write_text("\n".join(lines))
        words = [one for one in options(tmp_path / "run") if one not in ("--n", 20)]
        more = ("--n", 8, "--manifest", tmp_path / "list.csv", "--val-percent", 25, "--disk-budget", "100MB")
        with Watcher(tmp_path / "run") as watcher:
            run = lvsm_data(*words, *more, "--executor", "inline", env=hub.environment(tmp_path))
    assert run.returncode == 0, run.stdout + run.stderr
    assert "downloads 20.0 MB" in run.stdout
    assert watcher.most <= 100e6
    told = audit_of(tmp_path / "run")
    assert (told["delivered"], told["held_out"], told["deleted"]) == (8, 2, 6)
    assert told["reasons"].keys() == {"html_page"}
    assert not (tmp_path / "run" / "raw").exists()


UNDERESTIMATED = (
    "import sys; from pipeline import cli; from pipeline.cycle import open_shards; "
    "open_shards.CAUTION = open_shards.CAUTION_FEW = 0.2; "
    "sys.argv[0] = 'lvsm-data'; cli.main()"
)


@pytest.mark.campaign
def test_a_budget_that_turns_out_too_small_ends_with_what_it_takes(whole: Path, tmp_path: Path) -> None:
    """Shards five times as large as expected: younger ones step back, and where that does not help, nothing is lost."""

    def run(budget: float) -> subprocess.CompletedProcess[str]:
        words = [*options(tmp_path / "run"), "--disk-budget", f"{budget:.0f}"]  # the later flag counts
        command = [sys.executable, "-c", UNDERESTIMATED, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    refusals: list[str] = []
    least = BUDGET - 4.1e6  # next to nothing for shards
    sizes, ends = [least + 40e3 * more for more in range(30)], []
    for budget in sizes:
        done = run(budget)
        ends.append(done.returncode)
        if not done.returncode:
            break
        assert done.returncode == 2, done.stderr
        said = [words for words in ("leaves nothing", "have to fit", "is too small") if words in done.stderr]
        refusals += said
        assert len(said) == 1, done.stderr
    assert ends[-1] == 0
    assert "is too small" in refusals  # in the midst of the work, and not only before it
    equal(tmp_path / "run", whole)


def test_a_source_with_nothing_to_train_on_ends_all_the_same(assets: Path, tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    names = [f"{number}.ply" for number in range(40)]
    chosen = next(name for name in names if split_of(name, 15) == "val")
    shutil.copy(assets / "red.ply", tmp_path / "input" / chosen)
    words = [one for one in options(tmp_path / "run") if one not in ("--n", 20)]
    run = lvsm_data(*words, "--n", 2, "--source", "local", "--input", tmp_path / "input", "--executor", "inline")
    assert run.returncode == 3, run.stdout + run.stderr
    assert "delivered 1 = on disk 1 (of them 1 for validation) + trained and deleted 0" in run.stdout
    assert "1 fewer than requested: the source has no more objects" in run.stdout
    few = lvsm_data_here("cycle", "--n", 1)
    assert few.returncode == 2 and "--n 1 leaves nothing to train on" in few.stderr
