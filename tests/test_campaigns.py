"""Long campaigns, run with `make campaigns`: memory over 500 objects, and many kills of one run."""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.memory import Options, measure
from tests.conftest import lvsm_data
from tests.pipeline.run.test_run import QUICK, count_in_ledger, descendants, named, procedural, start, stored

pytestmark = pytest.mark.campaign


def test_memory_stays_flat_over_500_objects(tmp_path: Path) -> None:
    resident = np.array(measure(Options(objects=500, res=64, views=4), tmp_path))
    assert resident[250:].max() - resident[50:150].mean() < 60  # MB, without recycling
    slope = np.polyfit(np.arange(250), resident[250:], 1)[0]
    assert slope < 0.1  # MB per object; the reference renderer's reset leaks 15


def test_thirty_kills_of_one_run(tmp_path: Path) -> None:
    """kill -9 of a random process of a run, again and again: every object ends up in the shards exactly once."""
    out, total, rng = tmp_path / "run", 700, random.Random(0)
    options = ("render", "--n", total, *QUICK, "--workers", 2, "--shard-mb", 0.02, "--out", out)
    for _ in range(30):
        before = count_in_ledger(out)
        run = start(*options)
        deadline = time.monotonic() + 300
        while run.poll() is None and count_in_ledger(out) <= before and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(2 * rng.random())
        victims = [[psutil.Process(run.pid)] if run.poll() is None else [], named(run.pid, "ray::Host")]
        victims += [named(run.pid, "blender_scripts/worker.py"), descendants(run.pid)]
        for victim in rng.choice(victims)[: rng.choice([1, 1, 2, 99])]:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        with contextlib.suppress(psutil.NoSuchProcess):  # whatever was hit, the session ends here
            run.kill()
        run.communicate(timeout=300)
    last = lvsm_data(*options)
    assert last.returncode == 0, last.stderr
    assert stored(out) == procedural(total)
    assert lvsm_data("verify", out).returncode == 0
