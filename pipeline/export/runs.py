"""A run as its exports read it: what is damaged, or lacks, is named with the command that shows it."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.shared import address_of
from pipeline.core.errors import UserError
from pipeline.core.text import shown
from pipeline.dataset.opened import HINT, Dataset
from pipeline.storage.ledger import Ledger
from pipeline.storage.uploads import LEDGER


def quoted(run: Path) -> str:
    """Path of a run, or its address, as a shell takes it."""
    return shlex.quote(address_of(run) or shown(run))


def verify(run: Path) -> str:
    """Command that says what is broken in a run."""
    return f"`lvsm-data verify {quoted(run)}`"


def opened(run: Path, res: int | None) -> Dataset:
    """Data set of a run, whose pages are compared with their checksums. Raises UserError."""
    with intact(run, "a shard"):
        return Dataset(run, res, check=True)


@contextlib.contextmanager
def intact(run: Path, what: str) -> Iterator[None]:
    """Turn what damaged pages and pictures of `what` raise into UserError; an error of the disk is raised as it is."""
    try:
        yield
    except UserError as error:
        raise UserError(
            str(error), f"{verify(run)} says what is broken" if error.hint == HINT else error.hint
        ) from error
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{run}: {what} cannot be read: {error}", f"{verify(run)} says what is broken") from error


def lacking(run: Path, there: int) -> list[str]:
    """Line that says how many delivered objects stand in no shard, if any. there: objects in shards.

    run: a run's folder, or one resolution's in it. Nothing is said of addresses and of shards without a ledger.
    """
    folder = next((one for one in (run, run.absolute().parent) if (one / LEDGER).is_file()), None)
    if address_of(run) or folder is None:
        return []
    with Ledger(folder / LEDGER, readonly=True) as ledger:
        delivered = ledger.counts().get("delivered", 0)
    if there >= delivered:
        return []
    return [f"only {there:,} of {delivered:,} delivered objects stand in shards: {verify(folder)}"]
