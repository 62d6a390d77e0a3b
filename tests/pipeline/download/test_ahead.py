"""Downloads ahead of the renderers: real files over real sockets, handed on in any order, each accounted for once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.config.render import RenderConfig
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome
from pipeline.download import ahead, fetch
from pipeline.download.ahead import Downloads
from pipeline.sources import fetcher, manifest
from tests.hub import Hub

COUNT = 60


class Bench:
    """A host with COUNT small files, and the items that name them."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.raw = folder / "raw"
        self.hub = hub
        for number in range(COUNT):
            path = folder / f"root/www/{number:03d}.glb"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes([number]) * 10_000)
        self.items = [Item(f"uid-{number}", "manifest", f"{hub.url}/{number:03d}.glb") for number in range(COUNT)]
        self.failed: list[Outcome] = []

    def open(self, finished: set[str] | None = None, threads: int = 4, **flags: object) -> Downloads:
        cfg = RenderConfig(source="manifest", **flags)  # type: ignore[arg-type]
        return Downloads(manifest, fetcher(cfg, self.raw, self.raw.parent / "cache"), threads, finished or set())

    def stream(self, downloads: Downloads, items: Iterator[Item | None] | None = None) -> Iterator[Item]:
        return (each for each in downloads.stream(items or iter(self.items), self.failed.append) if each or nap())


def nap() -> bool:
    time.sleep(0.005)
    return False


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(fetch, "FIRST_PAUSE_S", 0.01)
    with Hub(tmp_path / "root") as hub:
        yield Bench(tmp_path, hub)


def test_every_item_comes_once_with_its_file(bench: Bench) -> None:
    opened = bench.open()
    seen = {}
    for item in bench.stream(opened):
        seen[item.uid] = Path(item.extra["path"]).read_bytes()[0]
        opened.remove(item.uid)
    opened.close()
    assert seen == {f"uid-{number}": number for number in range(COUNT)}
    assert opened.net.disk_budget.used == 0
    assert not list(bench.raw.iterdir())


def test_they_run_ahead_of_who_asks(bench: Bench) -> None:
    opened = bench.open()
    stream = bench.stream(opened)
    next(stream)
    ready = manifest.BATCH - 1  # the one that was taken aside
    wait_for(lambda: len(list(bench.raw.glob("*/object.glb"))) >= min(COUNT, ready))  # though nobody asked for more
    opened.close()


def test_they_keep_to_the_disk_they_may_have(bench: Bench) -> None:
    opened = bench.open(raw_gb=55e-6, max_file_mb=0.02)  # five files
    kept = []
    for item in bench.stream(opened):
        kept.append(item)
        assert len(list(bench.raw.glob("*/object*"))) <= 5
        if len(kept) == 5:
            assert not opened.net.disk_budget.try_reserve("more", 10_000)
            for each in kept:
                opened.remove(each.uid)
            kept.clear()
    opened.close()
    assert opened.net.disk_budget.peak <= 55_000


def test_failures_are_outcomes_and_the_rest_goes_on(bench: Bench) -> None:
    bench.hub.fault("007.glb", "status", times=None, code=404)
    bench.hub.fault("013.glb", "status", times=None, code=500)
    opened = bench.open()
    got = {item.uid for item in bench.stream(opened)}
    opened.close()
    assert {outcome.item.uid: outcome.reason for outcome in bench.failed} == {
        "uid-7": "missing",
        "uid-13": "server_error",
    }
    assert len(got) == COUNT - 2


def test_a_bug_of_ours_costs_the_objects_it_hits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, sha256: str) -> bool:
        raise ZeroDivisionError(path)

    opened = bench.open()
    (bench.raw.parent / "cache/files").mkdir(parents=True)
    monkeypatch.setattr("pipeline.download.route._matches", broken)
    from pipeline.download.route import cached_at

    (bench.raw.parent / "cache" / cached_at(bench.items[5])).write_bytes(b"x")
    got = {item.uid for item in bench.stream(opened)}
    opened.close()
    (outcome,) = bench.failed
    assert (outcome.item.uid, outcome.reason) == ("uid-5", "bug")
    assert "ZeroDivisionError" in outcome.detail
    assert len(got) == COUNT - 1


def test_nothing_now_is_passed_on(bench: Bench) -> None:
    def drawn() -> Iterator[Item | None]:
        for item in bench.items[:3]:
            yield item
            yield None

    opened = bench.open()
    assert {item.uid for item in bench.stream(opened, drawn())} == {"uid-0", "uid-1", "uid-2"}
    opened.close()


def test_a_dead_host_ends_it_all(bench: Bench) -> None:
    bench.hub.fault(".glb", "status", times=None, code=503)
    opened = bench.open()
    with pytest.raises(UserError, match="20 downloads in a row failed"):
        list(bench.stream(opened))
    opened.close()
    assert len(bench.failed) == ahead.IN_A_ROW


def test_files_of_an_earlier_session_are_taken_over(bench: Bench) -> None:
    opened = bench.open()
    stream = bench.stream(opened)
    first = next(stream)
    wait_for(lambda: len(list(bench.raw.glob("*/object.glb"))) > 20)
    opened.close()
    there = len(list(bench.raw.glob("*/object.glb")))
    (bench.raw / "stray").mkdir()
    part = bench.raw / opened.net.disk_budget.folder_of("uid-59").name / "object.glb.part"
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(b"half")
    before = -1
    while before != (before := bench.hub.count("GET")):  # until requests that were cut off are on record
        time.sleep(0.5)
    opened = bench.open(finished={first.uid})
    assert not (bench.raw / "stray").exists()
    assert not opened.net.disk_budget.folder_of(first.uid).exists()
    got = {item.uid for item in bench.stream(opened, (item for item in bench.items if item.uid != first.uid))}
    opened.close()
    assert len(got) == COUNT - 1
    assert bench.hub.count("GET") - before == COUNT - there


@pytest.mark.parametrize(("kind", "options"), [("slow", {"rate": 10}), ("hang", {"seconds": 900})])
def test_stopping_is_prompt_and_leaves_what_is_whole(bench: Bench, kind: str, options: dict[str, float]) -> None:
    """While hosts answer slowly, and while they do not answer."""
    bench.hub.fault(".glb", kind, times=None, **options)
    opened = bench.open(stall_s=900.0)
    stream = opened.stream(iter(bench.items), bench.failed.append)
    assert next(stream) is None
    wait_for(lambda: bench.hub.count("GET") >= 4)
    start = time.monotonic()
    opened.close()
    assert time.monotonic() - start < 300  # of a thousand seconds
    assert list(stream) == []
    assert not bench.failed
    assert not list(bench.raw.rglob("*.part"))
