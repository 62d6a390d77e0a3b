"""Cycles of every kind of source: archives of views and videos come from servers, are trained on and go, whatever is killed."""

from __future__ import annotations

import contextlib
import random
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

torch = pytest.importorskip("torch")

from pipeline.core.errors import UserError  # noqa: E402
from pipeline.core.records import video_of  # noqa: E402
from pipeline.storage.ledger import Ledger  # noqa: E402
from pipeline.storage.shards import split_of  # noqa: E402
from pipeline.storage.writer import ShardWriter  # noqa: E402
from tests import trees, videos  # noqa: E402
from tests.conftest import lvsm_data, lvsm_data_here  # noqa: E402
from tests.hub import Hub  # noqa: E402
from tests.noise import FACTS, scene  # noqa: E402
from tests.pipeline.cycle.test_cycle import SAME, Watcher, audit_of, equal, victims  # noqa: E402
from tests.pipeline.run.test_clip import SHARES, YOUTUBE, mirror  # noqa: E402
from tests.pipeline.run.test_run import start, wait_for  # noqa: E402
from tests.videos import Fault, VideoServer  # noqa: E402

TINY = ("--model.dim", 64, "--model.layers", 2, "--model.encoder-layers", 1, "--data.batch", 4)
FEW = ("--data.inputs", 2, "--data.targets", 2, "--passes", 2, "--window", 2, "--shard-objects", 2)
OFTEN = ("--train.eval-every", 0, "--train.checkpoint-every", 3, "--train.keep", 1)
DISK = ("--disk-budget", "70MB", "--raw-gb", 0.01, "--max-file-mb", 10, "--val-percent", 20)
CLIPS, FRAMES = 5, 12  # of each video, and of each clip


@dataclass
class Served:
    """What a cycle takes. flags: of its source. environment: of its process. fetched(): name -> how often it was fetched."""

    flags: tuple[object, ...]
    fetched: Callable[[], dict[str, int]]
    environment: dict[str, str] | None = None

    def options(self, n: int, out: Path) -> tuple[object, ...]:
        return ("cycle", *self.flags, "--n", n, *TINY, *SAME, *FEW, *OFTEN, "--executor", "inline", "--out", out)


def objects(folder: Path, ended: ExitStack, n: int, size: int) -> Served:
    """Objaverse on the Hub: a file each."""
    hub = ended.enter_context(Hub(folder / "root"))
    trees.objaverse(folder / "root", count=n + n // 2, chunks=2)
    flags = ("--source", "objaverse", "--license", "any", "--res", size, "--views", 12, "--samples", 1, *DISK)
    return Served(flags, lambda: dict(hub.payloads()), hub.environment(folder))


def archives(folder: Path, ended: ExitStack, n: int, size: int) -> Served:
    """Objaverse-MIX on the Hub: two archives of n / 2 objects and some."""
    hub = ended.enter_context(Hub(folder / "root"))
    trees.objaverse(folder / "root", count=n + n // 2, chunks=2)
    for chunk in range(2):
        trees.objaverse_mix(folder / "root", objects=n + n // 2, chunk=f"000-{chunk:03d}", size=size, chunks=2)
    flags = ("--source", "objaverse-mix", "--res", size, *DISK)
    return Served(flags, lambda: dict(hub.payloads()), hub.environment(folder))


def films(folder: Path, ended: ExitStack, n: int, size: int) -> Served:
    """Videos of CLIPS clips each, and of a second each."""
    return filmed(folder, ended, n, size)[0]


def filmed(folder: Path, ended: ExitStack, n: int, size: int) -> tuple[Served, VideoServer]:
    """The same, and the server that they come from."""
    (folder / "films").mkdir()
    (folder / "cams").mkdir()
    for number in range(-(-n // CLIPS) + n // 10):
        name = f"film-{number:06d}"
        hw = (90, 160) if size < 90 else (180, 320)
        shown = videos.make_video(folder / f"films/{name}.mp4", (videos.numbered(i, hw) for i in range(CLIPS * 25)))
        for clip in range(CLIPS):
            asked_us = [int(shown[25 * clip + i] * 1_000_000) for i in range(FRAMES)]
            text = videos.camera_file(f"{YOUTUBE}{name}.mp4", asked_us, SHARES, videos.circle_w2c(FRAMES))
            (folder / f"cams/{name}-{clip}.txt").write_text(text)
    server = ended.enter_context(VideoServer(folder / "films"))
    flags = ("--source", "realestate10k", "--cameras", folder / "cams", "--res", size, *mirror(server), *DISK)
    more = ("--data.gap-min", 6, "--data.gap-max", 11, "--cache", folder / "cache", "--videos-per-hour", 0)

    def fetched() -> dict[str, int]:
        asked = [request.path for request in server.matching("GET")]
        return {path: asked.count(path) for path in set(asked)}

    return Served((*flags, *more), fetched), server


KINDS = {"archives of views": archives, "videos": films}


@pytest.fixture
def ended() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("kind", KINDS)
def test_a_cycle_of_what_is_fetched_adds_up(kind: str, tmp_path: Path, ended: ExitStack) -> None:
    compared(KINDS[kind](tmp_path, ended, 16, 32), tmp_path, 16, kills=2)


def test_what_cannot_be_trained_on_fails_and_a_source_that_ends_is_said(tmp_path: Path) -> None:
    """A run of 14 objects, three of them with two views: each is accounted for, and a shard that is closed never changes."""
    writer = ShardWriter(tmp_path / "run", (32,), (), FACTS, 1e12)
    few = ("object-3", "object-7", "object-11")
    for number in range(14):
        uid = f"object-{number}"
        writer.append("train-000000", writer.pack(scene(uid, (32,), views=2 if uid in few else 6)))
    writer.publish("train-000000")
    out = tmp_path / "out"
    flags = (
        "--source",
        "shards",
        "--input",
        tmp_path / "run",
        "--res",
        32,
        "--disk-budget",
        "60MB",
        "--val-percent",
        20,
    )
    command = Served(flags, dict).options(40, out)
    first = lvsm_data_here(*command)
    assert first.returncode == 3, first.stderr
    lines = first.stdout.splitlines()
    assert "requested 40 = delivered 11 + 29 missing" in lines and "it adds up" in lines
    assert "drawn 14 = delivered 11 + failed 3 (too_few_views 3)" in lines
    assert "29 fewer than requested: the source has no more objects" in lines
    with Ledger(out / "ledger.sqlite", readonly=True) as ledger:
        assert {uid: detail for uid, detail, _ in ledger.examples("too_few_views", 9)} == dict.fromkeys(
            few, "2 views, 4 are needed"
        )
        before = ledger.kept()
    again = lvsm_data_here(*command, "--retry-failed")
    assert again.returncode == 3
    with Ledger(out / "ledger.sqlite", readonly=True) as ledger:
        assert ledger.kept() == before


def test_failures_in_an_open_shard_are_tried_again(tmp_path: Path, ended: ExitStack) -> None:
    """One video is missing and another hangs when the cycle is killed; both are there when it goes on with --retry-failed."""
    served, server = filmed(tmp_path, ended, 20, 32)
    command = (*served.options(25, out := tmp_path / "run"), "--shard-objects", 30, "--stall-s", 60)
    training = [name for name in sorted(films_of(tmp_path)) if split_of(video_of(YOUTUBE + name), 20) == "train"]
    gone, hangs = training[:2]
    server.faults[f"/{gone}"] = Fault("404")
    server.faults[f"/{hangs}"] = Fault("hang", after_bytes=-1)
    run = start(*command)
    # others took the places of those that failed, and are behind those that hang
    wait_for(lambda: ended_of(out) == {"failed": CLIPS, "delivered": 20})
    run.kill()
    run.communicate(timeout=300)
    with Ledger(out / "ledger.sqlite", readonly=True) as ledger:  # which the journal may be ahead of
        assert ledger.reasons() == {"missing": CLIPS}
    server.clear()
    last = lvsm_data(*command, "--retry-failed")
    assert last.returncode == 0, last.stdout + last.stderr
    assert f"tried {CLIPS} failed objects again; 0 stay as they are" in last.stdout
    told = audit_of(out)
    assert told["reasons"] == {} and told["delivered"] == 25


def test_that_nothing_for_validation_can_be_made_is_said_with_its_reason(tmp_path: Path, ended: ExitStack) -> None:
    served = films(tmp_path, ended, 10, 32)
    wide = ("--data.gap-min", 40, "--data.gap-max", 60)
    for verb in ("cycle", "plan"):
        refused = lvsm_data_here(verb, *served.options(10, tmp_path / verb)[1:], *wide)
        assert refused.returncode == 2, refused.stdout
        error, hint = refused.stderr.strip().splitlines()[-2:]
        said = (
            "error: no object for validation could be made"
            if verb == "cycle"
            else "error: none of 15 objects could be made"
        )
        assert error.startswith(said) and "too_few_views" in error
        assert "no window of 40 to 60 frames with 4 views among 12" in hint


def films_of(folder: Path) -> list[str]:
    return [path.name for path in (folder / "films").iterdir()]


def ended_of(out: Path) -> dict[str, int]:
    with contextlib.suppress(UserError, sqlite3.Error), Ledger(out / "ledger.sqlite", readonly=True) as ledger:
        return ledger.counts()
    return {}


@pytest.mark.campaign
@pytest.mark.parametrize("kind", [*KINDS, "objects"])
def test_ten_kills_and_a_disk_for_a_tenth_change_nothing(kind: str, tmp_path: Path, ended: ExitStack) -> None:
    """All shards to train on have a tenth of the disk that they would take together."""
    n, out = 300, tmp_path / "run"
    served = (KINDS | {"objects": objects})[kind](tmp_path, ended, n, 128)
    more = ("--val-percent", 4, "--train.checkpoint-every", 1)
    said = whole_of(served, tmp_path / "whole", n, *more)
    once = served.fetched()
    with Ledger(tmp_path / "whole/ledger.sqlite", readonly=True) as ledger:
        kept = ledger.kept().items()
    train, val = (sum(shard.bytes for name, shard in kept if name.startswith(split)) for split in ("train", "val"))
    share = re.search(r"= shards ([\d.]+) MB", said)
    assert share
    budget = 70 - float(share[1]) + (val + train / 10) / 1e6
    with Watcher(out / "128") as shards, Watcher(out / "journal") as journals:
        killed((*served.options(n, out), *more, "--disk-budget", f"{budget:.2f}MB"), out, served, 10)
    equal(out, tmp_path / "whole")
    fetched_as_promised(once, served.fetched(), 10)
    print(
        f"{kind}: shards to train on {train:,} bytes, to measure with {val:,}; at once {shards.most:,} + {journals.most:,}"
    )
    assert shards.most + journals.most < val + train / 5  # files of whole blocks, and both at the same moment


def compared(served: Served, folder: Path, n: int, kills: int) -> None:
    """A cycle without an accident adds up and keeps to its disk; one that is killed so often equals it, bit for bit."""
    whole_of(served, folder / "whole", n)
    once = served.fetched()
    killed(served.options(n, folder / "run"), folder / "run", served, kills)
    equal(folder / "run", folder / "whole")
    fetched_as_promised(once, served.fetched(), kills)


def whole_of(served: Served, out: Path, n: int, *more: object) -> str:
    """A cycle without an accident; what it printed."""
    with Watcher(out) as watcher:
        run = lvsm_data(*served.options(n, out), *more, env=served.environment)
    assert run.returncode == 0, run.stdout + run.stderr
    assert watcher.most <= 70e6
    assert "it adds up" in run.stdout.splitlines()
    told = audit_of(out)
    assert told["delivered"] == n == told["held_out"] + told["deleted"]
    assert not (out / "raw").exists()
    return run.stdout


def fetched_as_promised(once: dict[str, int], twice: dict[str, int], kills: int) -> None:
    """How often files were fetched by a cycle, and by that and one that was killed so often.

    An opened video brings a clip at least: for its index, for the clip's stretch, and for the file where neither is known.
    """
    for name in (name for name in once if name.endswith((".7z", ".glb"))):  # archives too: there is room for both
        assert once[name] == 1 and twice[name] <= 2 + kills, (name, once[name], twice[name])
    for name in (name for name in once if name.endswith(".mp4")):
        assert once[name] <= 3 * CLIPS and twice[name] <= 3 * (2 * CLIPS + kills), (name, once[name], twice[name])


def killed(command: tuple[object, ...], out: Path, served: Served, kills: int, seed: int = 0) -> None:
    """kill -9 of the driver, with all or alone, or of the trainer, so many times at random moments; then the command ends."""
    rng, done = random.Random(seed), 0
    while done < kills:
        run = start(*command, env=served.environment)
        while done < kills and run.poll() is None:
            time.sleep(rng.uniform(0.5, 6))
            for victim in victims(run.pid, kind := rng.choice(("driver", "trainer", "all"))):
                try:
                    victim.kill()
                    done += kind == "trainer" or victim.pid == run.pid
                except psutil.NoSuchProcess:
                    pass
        if run.poll() == 0:
            break
        if done < kills or run.poll() is not None:
            run.communicate(timeout=300)
            continue
        run.kill()
        run.communicate(timeout=300)
    last = lvsm_data(*command, env=served.environment)
    assert last.returncode == 0, last.stdout + last.stderr
