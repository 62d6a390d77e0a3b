"""Copy a run from its object store to a folder of this machine, to inspect, verify or train on."""

from __future__ import annotations

import fcntl
import shutil
import sys
from pathlib import Path

from pipeline.config.shared import HUB_SCHEME, address_of, desk_of
from pipeline.core.errors import UserError
from pipeline.core.text import size
from pipeline.storage.ledger import Ledger
from pipeline.storage.object_store import Store
from pipeline.storage.shards import SHARD_NAME
from pipeline.storage.uploads import LEDGER, SMALL_FILES, desk_name, driver

COPIES = "copy"  # subfolder of a run's local folder
SPARE = 1e9  # bytes of disk to leave free


def at_hand(run: Path, shards: int | None = 0, least: int | None = None) -> Path:
    """Folder of a run; for an address, a local copy of its ledger, SMALL_FILES and first `shards` shards per width (None: all).

    least: copy only the smallest width of at least so many pixels, else the widest. Concurrent calls for a run take turns.
    With `shards` = 0, the local folder itself if the run's last driver used it. Copies are kept below ~/.cache/lvsm-data/runs,
    and only shards that are new are copied again. Raises UserError: the address holds no run, or the disk has no room.
    """
    address = address_of(run)
    if address is None:
        return run
    if address.startswith(HUB_SCHEME) and shards == 0:
        raise UserError(
            f"{run} is a dataset without a ledger", "its card says how it was made and what its licenses are"
        )
    desk = desk_of(address)
    copy = desk / COPIES
    copy.mkdir(parents=True, exist_ok=True)
    with (copy / ".copying").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        return _copy_run(address, desk, copy, shards, least)


def _copy_run(address: str, desk: Path, copy: Path, shards: int | None, least: int | None) -> Path:
    store = Store(address)
    heartbeat = driver(store, copy)
    present = heartbeat is not None and heartbeat["desk"] == desk_name(desk)
    if present and shards == 0:
        return desk
    if present:
        with Ledger(desk / LEDGER, readonly=True) as ledger:
            ledger.copy(copy / LEDGER)
    elif not store.get(LEDGER, copy / LEDGER) and not store.folders():
        raise UserError(f"{address} holds no run", "give the --out of a run")
    for name in SMALL_FILES:
        store.get(name, copy / name)
    widths = sorted(int(folder) for folder in store.folders() if folder.isdecimal())
    enough = [width for width in widths if least is None or width >= least]
    for width in enough if least is None else enough[:1] or widths[-1:]:
        _copy_shards(store, str(width), copy, shards)
    return copy


def _copy_shards(store: Store, width: str, copy: Path, most: int | None) -> None:
    """Copy the first `most` shards of one width missing in `copy`; delete files unlike the store's. UserError: no room."""
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
