"""One URL -> one verified file, over real sockets: what passes is tried again, what stays is not, disk is reserved first."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from pipeline.core.budget import DiskBudget
from pipeline.core.errors import Retry, Skip
from pipeline.download import fetch
from pipeline.download.fetch import Fetcher, FetchLimits
from tests.hub import Hub

DATA = os.urandom(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
BUDGET = 2_000_000


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "tree/www").mkdir(parents=True)
    (tmp_path / "tree/www/a.bin").write_bytes(DATA)
    with Hub(tmp_path / "tree") as hub:
        yield hub


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Fetcher]:
    """Fetcher that gives a connection up after 0.6 seconds, or as many as the test says: a busy server is slow too."""
    monkeypatch.setattr(fetch, "FIRST_PAUSE_S", 0.02)
    (tmp_path / "raw").mkdir()
    limits = FetchLimits(stall_s=getattr(request, "param", 0.6), max_bytes=1_000_000)
    net = Fetcher(limits, DiskBudget(tmp_path / "raw", BUDGET))
    yield net
    net.close()


def get(net: Fetcher, hub: Hub, owner: str = "a", path: str = "a.bin", **known: object) -> bytes:
    to = net.disk_budget.folder / owner / "file"
    assert net.get(f"{hub.url}/{path}", to, owner=owner, **known) == to  # type: ignore[arg-type]
    return to.read_bytes()


def left_over(net: Fetcher) -> list[Path]:
    return [path for path in net.disk_budget.folder.rglob("*") if path.is_file()]


def test_a_file_comes_whole_and_its_disk_is_accounted_for(hub: Hub, net: Fetcher) -> None:
    assert get(net, hub, sha256=SHA256.upper()) == DATA
    assert net.disk_budget.held("a") == len(DATA)
    assert hub.count() == 1
    net.disk_budget.release("a")
    assert net.disk_budget.used == 0


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("status", {"code": 500}),
        ("status", {"code": 503}),
        ("status", {"code": 408}),
        ("429", {"retry_after": 0}),
        ("truncate", {}),
        ("truncate", {"keep": 0}),
        ("reset", {}),
        ("reset", {"keep": -1}),
        ("hang", {}),
        ("slow", {"rate": 200}),
    ],
)
def test_what_passes_is_tried_again(hub: Hub, net: Fetcher, kind: str, options: dict[str, object]) -> None:
    hub.fault("a.bin", kind, times=2, **options)
    assert get(net, hub, sha256=SHA256) == DATA
    assert hub.count("GET") == 3


@pytest.mark.parametrize("kind", ["truncate", "reset"])
def test_a_cut_download_goes_on_where_it_was_cut(hub: Hub, net: Fetcher, kind: str) -> None:
    hub.fault("a.bin", kind, keep=200_000)
    assert get(net, hub) == DATA
    first, second = hub.matching("GET")
    assert second.status == 206
    assert second.range and second.range.startswith("bytes=")
    assert second.range == "bytes=200000-" or kind == "reset"  # a reset throws away what was not read yet
    assert second.sent < len(DATA)
    assert first.sent == 200_000


def test_a_host_that_ignores_ranges_sends_it_all_again(hub: Hub, net: Fetcher) -> None:
    hub.fault("a.bin", "truncate")
    hub.fault("a.bin", "ignore_range")
    assert get(net, hub, sha256=SHA256) == DATA


def test_a_file_that_changed_meanwhile_is_not_patched_together(hub: Hub, net: Fetcher, tmp_path: Path) -> None:
    other = os.urandom(len(DATA))
    fault = hub.fault("a.bin", "truncate")
    real = hub.answer

    def answer(request: object, raw_path: str) -> object:
        if fault.hits:
            (tmp_path / "tree/www/a.bin").write_bytes(other)
        return real(request, raw_path)  # type: ignore[arg-type]

    hub.answer = answer  # type: ignore[assignment]
    assert get(net, hub) == other


@pytest.mark.parametrize(
    ("path", "fault", "reason"),
    [
        ("none.bin", {}, "missing"),
        ("a.bin", {"kind": "status", "code": 404}, "missing"),
        ("a.bin", {"kind": "status", "code": 410}, "missing"),
        ("a.bin", {"kind": "status", "code": 401}, "forbidden"),
        ("a.bin", {"kind": "status", "code": 403}, "forbidden"),
        ("a.bin", {"kind": "status", "code": 451}, "forbidden"),
        ("a.bin", {"kind": "status", "code": 400}, "refused"),
        ("a.bin", {"kind": "redirect_loop"}, "refused"),
        ("a.bin", {"kind": "wrong_bytes"}, "modified"),
        ("a.bin", {"kind": "html"}, "modified"),
        ("a.bin", {"kind": "endless"}, "too_large"),
    ],
)
def test_what_stays_is_never_asked_again(
    hub: Hub, net: Fetcher, path: str, fault: dict[str, object], reason: str
) -> None:
    if fault:
        hub.fault(path, times=None, **fault)  # type: ignore[arg-type]
    with pytest.raises(Skip) as caught:
        get(net, hub, path=path, sha256=SHA256)
    assert caught.value.reason == reason
    assert hub.count("GET", path) == 1
    assert not left_over(net)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"kind": "status", "code": 502}, "server_error"),
        ({"kind": "truncate", "keep": 0}, "cut_off"),
        ({"kind": "reset", "keep": -1}, "connection"),
        ({"kind": "429", "retry_after": 0}, "rate_limited"),
    ],
)
def test_what_goes_on_failing_ends_with_its_reason(
    hub: Hub, net: Fetcher, fault: dict[str, object], reason: str
) -> None:
    hub.fault("a.bin", times=None, **fault)  # type: ignore[arg-type]
    with pytest.raises(Retry) as caught:
        get(net, hub)
    assert caught.value.reason in (reason, "connection", "cut_off")
    assert reason in ("connection", "cut_off") or caught.value.reason == reason
    assert hub.count("GET") == fetch.TRIES
    assert not left_over(net)


def test_a_host_that_is_not_there(net: Fetcher, tmp_path: Path) -> None:
    with pytest.raises(Retry) as caught:
        net.get("http://127.0.0.1:9/x", tmp_path / "x", owner="x")
    assert caught.value.reason == "connection"


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "file:///etc/passwd", "/etc/passwd"])
def test_only_the_web(net: Fetcher, tmp_path: Path, url: str) -> None:
    with pytest.raises(Skip) as caught:
        net.get(url, tmp_path / "x", owner="x")
    assert caught.value.reason == "unsupported_url"


@pytest.mark.parametrize("net", [60.0], indirect=True)
def test_retry_after_is_heeded_by_everybody_who_asks_that_host(hub: Hub, net: Fetcher) -> None:
    hub.fault("a.bin", "429", retry_after=1)
    start = time.monotonic()
    get(net, hub, "a")
    assert time.monotonic() - start >= 1
    hub.fault("a.bin", "429", retry_after=1)
    threads = [threading.Thread(target=get, args=(net, hub, name)) for name in ("b", "c")]
    (host,) = net.hosts.values()
    before = host.interval_s
    threads[0].start()
    while host.interval_s <= before:  # until its refusal is known here
        time.sleep(0.01)
    threads[1].start()
    for thread in threads:
        thread.join()
    refused, *later = hub.matching("GET")[2:]
    assert refused.status == 429
    assert all(request.started >= refused.started + 1 for request in later)


def test_a_host_that_asks_for_hours_is_left_alone(hub: Hub, net: Fetcher) -> None:
    hub.fault("a.bin", "429", times=None, retry_after=7200)
    with pytest.raises(Retry) as caught:
        get(net, hub)
    assert caught.value.reason == "rate_limited"
    assert hub.count("GET") == 1


def test_retry_after_in_both_of_its_forms() -> None:
    assert fetch.retry_after_s({"retry-after": "7"}) == 7
    before = time.time()
    later = int(before) + 3600
    in_an_hour = fetch.retry_after_s({"retry-after": formatdate(later, usegmt=True)})
    assert in_an_hour is not None and later - time.time() <= in_an_hour <= later - before
    assert fetch.retry_after_s({"retry-after": "soon"}) is None
    assert fetch.retry_after_s({}) is None


def test_no_host_sees_more_connections_than_it_may(hub: Hub, tmp_path: Path) -> None:
    hub.fault("a.bin", "slow", times=None, rate=2_000_000)
    net = Fetcher(FetchLimits(per_host=3), DiskBudget(tmp_path, 1e8))
    threads = [threading.Thread(target=get, args=(net, hub, str(number))) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    net.close()
    assert hub.peak_connections == 3
    assert hub.count("GET") == 9


def test_disk_is_reserved_before_a_body_is_read(hub: Hub, net: Fetcher) -> None:
    net.disk_budget.reserve("others", BUDGET - 100_000)
    done = threading.Event()
    thread = threading.Thread(target=lambda: (get(net, hub), done.set()))
    thread.start()
    assert not done.wait(0.5)
    assert net.disk_budget.used <= BUDGET - 100_000
    assert not left_over(net)
    net.disk_budget.release("others")
    thread.join()
    assert done.is_set()
    assert net.disk_budget.peak <= BUDGET


def test_a_file_of_unknown_length_keeps_to_the_limit(hub: Hub, net: Fetcher) -> None:
    hub.fault("a.bin", "no_length")
    assert get(net, hub) == DATA
    assert net.disk_budget.held("a") == len(DATA)  # what was reserved for the worst is given back


def test_a_file_over_the_limit_is_not_read(hub: Hub, tmp_path: Path) -> None:
    net = Fetcher(FetchLimits(max_bytes=1000), DiskBudget(tmp_path, 1e8))
    with pytest.raises(Skip) as caught:
        get(net, hub)
    net.close()
    assert caught.value.reason == "too_large"
    assert "--max-file-mb" in caught.value.detail


def test_room_is_first_come_first_served(tmp_path: Path) -> None:
    disk_budget = DiskBudget(tmp_path, 100)
    disk_budget.reserve("first", 60)
    got: list[str] = []

    def wait(owner: str, size: int) -> None:
        disk_budget.reserve(owner, size)
        got.append(owner)

    large, small = (threading.Thread(target=wait, args=pair) for pair in (("large", 90), ("small", 10)))
    for number, thread in enumerate((large, small), 1):  # the small one would fit, but is behind
        thread.start()
        while len(disk_budget._queue) < number:
            time.sleep(0.01)
    time.sleep(0.1)
    assert not got and not disk_budget.try_reserve("third", 1)
    disk_budget.release("first")
    large.join()
    small.join()
    assert got == ["large", "small"]
    with pytest.raises(Skip, match="too_large"):
        disk_budget.reserve("huge", 101)


def test_closing_sends_home_who_waits_and_who_reads(hub: Hub, net: Fetcher) -> None:
    net.disk_budget.reserve("others", BUDGET - 400_000)
    hub.fault("a.bin", "slow", times=None, rate=250)  # twenty minutes
    ended: list[str] = []

    def run(owner: str) -> None:
        with pytest.raises(Retry) as caught:
            get(net, hub, owner)
        ended.append(caught.value.reason)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("reads", "waits")]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    start = time.monotonic()
    net.close()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start < 300
    assert ended == ["stopped", "stopped"]


def test_a_mirror_stands_in_for_a_host(hub: Hub, tmp_path: Path) -> None:
    net = Fetcher(FetchLimits(mirrors=(("https://example.org/things/", f"{hub.url}/"),)), DiskBudget(tmp_path, 1e8))
    assert net.get("https://example.org/things/a.bin", tmp_path / "a", owner="a").read_bytes() == DATA
    net.close()
