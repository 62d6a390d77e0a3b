"""Fixtures for tests of the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: synchronisation would dominate the time of models as small as those of tests."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of ten objects of coloured balls, two of them held out."""
    from tests.lvsm_train.training.test_train import balls

    return balls(tmp_path_factory.mktemp("balls"), 10)
