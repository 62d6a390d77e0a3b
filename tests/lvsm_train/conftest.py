"""Fixtures for tests of the trainer."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of ten objects of coloured balls, two of them held out."""
    from benchmarks._balls import balls

    return balls(tmp_path_factory.mktemp("balls"), 10)
