"""A run at an address as a folder of this machine: to look at, to check, to train on."""

from __future__ import annotations

import fcntl
import shutil
import sys
from pathlib import Path

from pipeline.config.shared import address_of, desk_of
from pipeline.core.errors import UserError
from pipeline.core.text import size
from pipeline.storage.ledger import Ledger
from pipeline.storage.object_store import Store
from pipeline.storage.shards import SHARD_NAME
from pipeline.storage.uploads import LEDGER, PAPERS, desk_name, driver

COPIES = "copy"  # folder in a local folder of a run
SPARE = 1e9  # bytes of the disk that stay free


def at_hand(run: Path, shards: int | None = 0, least: int | None = None) -> Path:
    """The folder itself; or of an address a copy of its papers, and of each width the first so many shards (None: all).

    least: pixels; only the smallest width that has so many. Processes that want the same wait for each other.
    Where this machine has the run's present local folder and no shards are asked for, that is it. Copies stay, below
    ~/.cache/lvsm-data/runs, and only what is new is copied again. Raises UserError: there is nothing, or no room for it.
    """
    address = address_of(run)
    if address is None:
        return run
    desk = desk_of(address)
    copy = desk / COPIES
    copy.mkdir(parents=True, exist_ok=True)
    with (copy / ".copying").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        return _copied(address, desk, copy, shards, least)


def _copied(address: str, desk: Path, copy: Path, shards: int | None, least: int | None) -> Path:
    store = Store(address)
    told = driver(store, copy)
    present = told is not None and told["desk"] == desk_name(desk)
    if present and shards == 0:
        return desk
    if present:
        _renew(desk, copy)
    elif not store.get(LEDGER, copy / LEDGER) and not store.folders():
        raise UserError(f"{address} holds no run", "give the --out of a run")
    for name in PAPERS:
        store.get(name, copy / name)
    widths = sorted(int(folder) for folder in store.folders() if folder.isdecimal())
    enough = [width for width in widths if least is None or width >= least]
    for width in enough if least is None else enough[:1] or widths[-1:]:
        _bring(store, str(width), copy, shards)
    return copy


def _renew(desk: Path, copy: Path) -> None:
    with Ledger(desk / LEDGER, readonly=True) as ledger:
        ledger.copy(copy / LEDGER)


def _bring(store: Store, width: str, copy: Path, most: int | None) -> None:
    """The shards of one width that are not here yet."""
    folder = copy / width
    folder.mkdir(exist_ok=True)
    found = {name: bytes_ for name, bytes_ in sorted(store.names(width).items()) if SHARD_NAME.match(Path(name).stem)}
    wanted = dict(list(found.items())[:most])
    for path in folder.iterdir():
        if path.name not in found or path.stat().st_size != found[path.name]:
            path.unlink()
    missing = {name: bytes_ for name, bytes_ in wanted.items() if not (folder / name).exists()}
    total, free = sum(missing.values()), shutil.disk_usage(copy).free - SPARE
    if total > free:
        raise UserError(
            f"{store.address}/{width} has {size(total)} more than is here, and {size(max(0, free))} of this disk are free",
            "a machine with a larger disk",
        )
    if missing:
        print(f"copying {len(missing)} shards, {size(total)}, to {folder}", file=sys.stderr, flush=True)
    for name in missing:
        store.get(f"{width}/{name}", folder / name)
