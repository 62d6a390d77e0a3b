"""Streams of items through both executors, with workers that are killed, that raise, and that cannot even start."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray

from pipeline.cluster import executors, pool
from pipeline.core.records import Item, Outcome
from tests.warm import without_dashboard

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers need not find the tests


class Toy:
    """Leaves a mark for everything that happens to it; dies as the uid says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark("made")

    def mark(self, what: str) -> int:
        """Record that `what` happened. Returns how often before, in any process."""
        path = self.folder / what
        with path.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        return len(path.read_text().split()) - 1

    def __call__(self, item: Item) -> Outcome:
        before = self.mark(item.uid)
        if item.uid.startswith("always") or (item.uid.startswith("once") and before == 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if item.uid.startswith("bug"):
            raise ValueError("a bug of ours")
        return Outcome(item, None, "done", worker=str(os.getpid()))

    def ahead(self, items: list[Item]) -> None:
        pass

    def close(self) -> None:
        self.mark("closed")


class Stillborn(Toy):
    def __init__(self, folder: Path) -> None:
        raise ImportError("a bug of ours")


def marks(folder: Path, what: str) -> list[str]:
    path = folder / what
    return path.read_text().split() if path.exists() else []


def items(*uids: str) -> Iterator[Item]:
    return (Item(uid, "toy") for uid in uids)


def ignore(slot: int, item: Item) -> None:
    pass


# ---- in this process


def test_inline_does_every_item_once_in_order(tmp_path: Path) -> None:
    begun: list[tuple[int, str]] = []
    stream = items("a", "b", "c")
    outcomes = executors.inline(partial(Toy, tmp_path), stream, lambda slot, item: begun.append((slot, item.uid)))
    assert begun == []  # nothing is drawn before somebody asks
    assert next(outcomes).item.uid == "a"
    assert begun == [(0, "a")]
    assert [outcome.item.uid for outcome in outcomes] == ["b", "c"]
    assert begun == [(0, "a"), (0, "b"), (0, "c")]
    assert [len(marks(tmp_path, what)) for what in ("made", "a", "b", "c", "closed")] == [1] * 5


def test_inline_draws_an_item_only_when_the_last_is_done(tmp_path: Path) -> None:
    stream = items("a", "b", "c")
    outcomes = executors.inline(partial(Toy, tmp_path), stream, ignore)
    next(outcomes)
    assert next(stream).uid == "b"
    outcomes.close()  # type: ignore[attr-defined]
    assert len(marks(tmp_path, "closed")) == 1  # also where nobody reads on


def test_inline_lets_our_bugs_through(tmp_path: Path) -> None:
    outcomes = executors.inline(partial(Toy, tmp_path), items("a", "bug", "b"), ignore)
    assert next(outcomes).item.uid == "a"
    with pytest.raises(ValueError, match="a bug of ours"):
        next(outcomes)
    assert marks(tmp_path, "b") == []
    assert len(marks(tmp_path, "closed")) == 1
    with pytest.raises(ImportError):
        next(executors.inline(partial(Stillborn, tmp_path), items("a"), ignore))


def test_inline_asks_again_where_there_is_nothing_now(tmp_path: Path) -> None:
    def stream() -> Iterator[Item | None]:
        yield None
        yield from items("a")
        yield None
        yield None
        yield from items("b")

    assert [outcome.item.uid for outcome in executors.inline(partial(Toy, tmp_path), stream(), ignore)] == ["a", "b"]
    assert list(executors.inline(partial(Toy, tmp_path), items(), ignore)) == []


# ---- on Ray; starting and stopping one takes seconds, so each test asks many things at once


@pytest.fixture
def quick_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    without_dashboard(monkeypatch.setattr)


@pytest.mark.usefixtures("quick_ray")
def test_ray_does_every_item_once_whatever_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "CALL_ITEMS", 1)  # else items of the same call are done again too
    workers = 2
    uids = ["a", "once-1", "b", "always", "c", "d", "once-2", "e", "f"]
    drawn: list[str] = []
    begun: list[tuple[int, str]] = []
    outcomes: list[Outcome] = []
    ahead: list[int] = []
    waits = 0

    def stream() -> Iterator[Item | None]:
        nonlocal waits
        for uid in uids:
            while len(drawn) == 5 and len(outcomes) < 5:  # "nothing now": the rest comes when the first five have ended
                waits += 1
                yield None
            drawn.append(uid)
            ahead.append(len(drawn) - len(outcomes))
            yield Item(uid, "toy")

    results = executors.on_ray(
        partial(Toy, tmp_path),
        stream(),
        lambda slot, item: begun.append((slot, item.uid)),
        workers=workers,
    )
    for outcome in results:
        outcomes.append(outcome)

    assert sorted(outcome.item.uid for outcome in outcomes) == sorted(uids)
    assert drawn == uids
    assert max(ahead) <= workers + 1  # one may wait for the reader of outcomes
    assert waits >= 1
    by_uid = {outcome.item.uid: outcome for outcome in outcomes}
    for uid, outcome in by_uid.items():
        if uid == "always":
            assert (outcome.reason, outcome.tries, outcome.scene) == ("worker_died", 2, None)
            assert outcome.detail
        else:
            assert outcome.reason == "done"
    runs = {uid: len(marks(tmp_path, uid)) for uid in uids}
    assert runs == {uid: 2 if uid[:2] in ("on", "al") else 1 for uid in uids}
    assert Counter(uid for _, uid in begun) == runs
    assert {slot for slot, _ in begun} == set(range(workers))
    for uid in ("once-1", "once-2", "always"):  # again in a process of its own
        assert len(set(marks(tmp_path, uid))) == 2
    deaths = 4
    made, closed = marks(tmp_path, "made"), marks(tmp_path, "closed")
    assert len(made) <= workers + deaths
    assert set(closed) <= set(made)
    assert {outcome.worker for outcome in outcomes[-1:]} - {""} <= set(closed)  # who lived to the end was closed
    assert not ray.is_initialized()


@pytest.mark.usefixtures("quick_ray")
def test_ray_lets_our_bugs_through(tmp_path: Path) -> None:
    """Also where a worker cannot start, else every item of an endless source would end as worker_died.

    Whoever is connected already stays so. With workers=None: as many as there are CPUs.
    """
    stillborn = executors.on_ray(partial(Stillborn, tmp_path), items("a"), ignore, workers=1)
    outcomes = executors.on_ray(partial(Toy, tmp_path), items("a", "bug", "b", "c"), ignore, workers=None)

    def in_one_ray() -> None:
        with executors.connected(None):
            with pytest.raises(Exception, match="a bug of ours"):
                list(stillborn)
            assert ray.is_initialized()
            list(outcomes)

    with pytest.raises(ValueError, match="a bug of ours"):
        in_one_ray()
    assert len(marks(tmp_path, "bug")) == 1  # trying again would not help
    assert not ray.is_initialized()
