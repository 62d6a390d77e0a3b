"""Many items through one driver, small: benchmarks/scale.py as it is, and what an item leaves in memory."""

from __future__ import annotations

import functools
import gc
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import scale
from pipeline.config.render import RenderConfig, SceneConfig
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome
from pipeline.run.driver import Driver, Intake, Workers, opened
from pipeline.run.policy import ArrivalOrder
from pipeline.storage import uids
from pipeline.storage.ledger import Ledger
from pipeline.storage.uids import Uids
from pipeline.storage.uploads import InFolder

ROOT = Path(__file__).parents[3]
MANY = 1500


def test_a_driver_is_killed_and_each_uid_is_there_once(tmp_path: Path) -> None:
    """The benchmark itself compares manifest, ledger and shards, and fails where they differ."""
    command = [
        sys.executable,
        str(ROOT / "benchmarks/scale.py"),
        f"--n={MANY}",
        "--kill-at=0.4",
        f"--out={tmp_path / 'out'}",
    ]
    command += ["--workers=3", "--shard-mb=0.5", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    found = json.loads(done.stdout)
    assert found["delivered"] + found["failed"] == MANY and 0.075 * MANY < found["failed"] < 0.125 * MANY
    first, second = (one["items"] for one in found["sessions"])
    # what was delivered is not done again, only failures that the ledger had not yet taken in
    assert first == 0.4 * MANY and 0.6 * MANY <= second < MANY - 0.85 * first
    assert not (tmp_path / "out").exists()


def test_an_item_that_has_ended_leaves_next_to_nothing_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set of uids would be 100 bytes for each of them, and a list of entries 1000."""
    monkeypatch.setattr(uids, "RECENT", 256)
    monkeypatch.setattr("pipeline.run.progress.LINE_S", 3600.0)  # the first line of progress loads parts of rich
    cfg = RenderConfig(
        n=3000, out=tmp_path / "run", executor="inline", shard_mb=0.3, scene=SceneConfig(res=(scale.WIDTH,), views=1)
    ).resolved()
    memory: list[int] = []
    with opened(cfg) as ledger:
        policy = ArrivalOrder(cfg, ledger, InFolder())
        session, count = policy.session, policy.session.count

        def counting(outcome: Outcome) -> None:
            count(outcome)
            if sum(session.counts.values()) % 1000 == 0:
                ledger.flush()
                gc.collect()
                memory.append(tracemalloc.get_traced_memory()[0])

        monkeypatch.setattr(session, "count", counting)
        workers = Workers(session, make=functools.partial(scale.Sleeper, 0.0, 10.0, 1))  # a render that takes no time
        driver = Driver(policy, InFolder(), Intake(session), workers)
        tracemalloc.start()
        try:
            summary = driver.go()
        finally:
            tracemalloc.stop()
    assert summary.delivered == 3000 and len(memory) == 3
    assert min(memory[1] - memory[0], memory[2] - memory[1]) / 1000 < 40  # what is loaded once is in one of them


def test_many_uids_are_a_set() -> None:
    names = [f"object-{number}" for number in range(3000)]
    some = Uids(names[:1000])
    for name in names[500:2000]:
        some.add(name)
    assert len(some) == 2000 and all((name in some) == (number < 2000) for number, name in enumerate(names))
    assert some.known(names[2000:]) is None and len(some) == 3000 and names[2999] in some
    assert some.known(["new", names[5], "newer"]) == 1 and "new" not in some
    assert some.known(["new", "newer", "new"]) == 2 and len(some) == 3000


def test_recent_uids_join_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uids, "RECENT", 7)
    some = Uids()
    for number in [*range(40), *range(40)]:
        some.add(str(number))
    assert len(some) == 40 and all(str(number) in some for number in range(40)) and "40" not in some


def test_a_manifest_whose_uids_are_not_unique_is_found_out_across_blocks(tmp_path: Path) -> None:
    from pipeline.formats import tables
    from pipeline.sources import manifest

    path = tmp_path / "list.jsonl"
    lines = [{"uid": f"u{number}", "url": "https://x/y.glb"} for number in range(tables.ROWS_PER_BLOCK + 10)]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[3]]))
    with pytest.raises(UserError, match=rf"uid 'u3' appears twice \(entry {len(lines) + 1}\)"):
        list(manifest.items(RenderConfig(manifest=path), 0, None))  # type: ignore[arg-type]


def outcomes(count: int) -> Iterator[Outcome]:
    for number in range(count):
        yield Outcome(Item(f"u{number}", "test", license="MIT"), None, ("tiny", "empty")[number % 2])


def test_the_tally_is_what_counting_would_say(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        for outcome in outcomes(50):
            ledger.record(outcome, None)
        ledger.record(Outcome(Item("u3", "test", license="CC0-1.0"), None, "timeout"), None)
        assert ledger.reasons() == {"tiny": 25, "empty": 24, "timeout": 1}
        counted = ledger.db.execute(
            "SELECT state, reason, license, '', COUNT(*), SUM(views), SUM(bytes) FROM item GROUP BY 1, 2, 3"
        )
        assert sorted(counted) == sorted(ledger.db.execute("SELECT * FROM tally WHERE items > 0"))
        assert ledger.forget_failed() == 50 and ledger.counts() == {} and ledger.reasons() == {}


def test_what_is_recorded_is_on_disk_within_a_second(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger, Ledger(path, readonly=True) as reader:
        for outcome in outcomes(5):
            ledger.record(outcome, None)
        until = time.monotonic() + 30
        while reader.counts() != {"failed": 5} and time.monotonic() < until:
            time.sleep(0.05)
        assert reader.counts() == {"failed": 5}
