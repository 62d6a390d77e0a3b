"""A run's folder: its lock, its identity in run.json, and the facts that its shards record."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.render import BACKGROUNDS, RenderConfig
from pipeline.config.run import RunConfig
from pipeline.config.shared import config_hash, plain
from pipeline.core.cameras import SAMPLERS
from pipeline.core.disk import read_json, write_json
from pipeline.core.errors import UserError
from pipeline.core.images import version as pil_version
from pipeline.core.text import counted, quoted
from pipeline.storage import journal
from pipeline.storage.ledger import Ledger
from pipeline.storage.shards import complete_shards, damage_of, number_of, set_aside, shard_on_disk

IDENTITY = "run.json"
FOOTERS = 256  # of the newest shards, which a power cut may have hit, are read at a session's start: each takes 10 ms
NORMALIZED = {"sphere": "in a sphere of radius 0.5", "box": "longest side 1"}


def run_facts(cfg: RunConfig) -> dict[str, Any]:
    """Facts for the file metadata of every shard of a run: settings, source, cameras, versions."""
    facts = {
        "config_hash": config_hash(cfg.scene),
        "settings": dataclasses.asdict(cfg.scene),
        "source": cfg.source,
        "seed": cfg.scene.seed,
        "downsampling": "area average in linear light",
    }
    versions = {"lvsm-data": importlib.metadata.version("lvsm-data"), "pil": pil_version()}
    if not isinstance(cfg, RenderConfig):
        return facts | {
            "background": [255, 255, 255],
            "cameras": f"as {cfg.source} has them",
            "world": "as the source has it",
            "versions": versions,
        }
    sampler = SAMPLERS[cfg.scene.sampler]
    view = f"fov_x {cfg.scene.fov_x_deg:g} deg"
    if cfg.scene.ortho_scale is not None:
        view = f"orthographic, {cfg.scene.ortho_scale:g} world units wide"
    drawn, fixed = f"{cfg.scene.sampler}: {sampler.says}", len(cfg.scene.rig.c2w) if cfg.scene.rig else 0
    stand = f"{fixed} of a rig, then {drawn}" if fixed else drawn
    return facts | {
        "cameras": f"{f'{fixed} of a rig' if fixed == cfg.scene.views else stand}; {view}",
        "background": BACKGROUNDS.get(cfg.scene.background, "as meta says"),
        "world": f"z up; objects are centred at the origin, {NORMALIZED[cfg.scene.normalize]}",
        "versions": versions | {"bpy": importlib.metadata.version("bpy")},
    }


def identity_of(run: Path) -> dict[str, Any]:
    """Settings by which a run is known, from run.json. Raises UserError if that is damaged, and OSError where there is none."""
    hint = "put a copy of it back, or move it away: the command that made the run writes it again"
    identity = read_json(run / IDENTITY, hint).get("identity")
    if not isinstance(identity, dict):
        raise UserError(f"{run / IDENTITY} is damaged, it does not say what was asked for", hint)
    return identity


def check_identity(cfg: RunConfig, ledger: Ledger) -> None:
    """Write run.json until an item has ended; from then on raise UserError if settings that shape the pictures changed."""
    assert cfg.out is not None
    path = cfg.out / IDENTITY
    now = cfg.identity()
    if not path.exists() or not ledger.counts():
        write_json(path, {"identity": now, "facts": run_facts(cfg)})
        return
    before = plain(type(cfg.scene)()) | identity_of(cfg.out)  # settings that came later: their defaults
    changed = [
        f"{name.replace('_', '-')} was {_shown(before.get(name))}, now {_shown(now.get(name))}"
        for name in sorted(now.keys() | before.keys())
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise UserError(
            f"{cfg.out} was made with other settings: {'; '.join(changed)}",
            "use the same settings to go on, or another --out",
        )


def _shown(value: Any) -> Any:
    return "not set" if value is None else value


def whole_shards(
    out: Path,
    widths: Sequence[int],
    ledger: Ledger,
    passes: int = 0,
    discard: Callable[[Path, Sequence[int], str], object] = set_aside,
) -> tuple[set[str], list[str]]:
    """Names of the complete shards on disk, booked in the ledger where it lacks them; and notes on damaged ones, for the user.

    A shard is damaged if its size, or the footer of one of the newest, is not what was written, or if it cannot be read where the
    ledger lacks it; `discard` then takes it away. passes: how often a cycle trains on shards that the ledger lacks.
    """
    kept, found, notes = ledger.kept(), complete_shards(out, widths), []
    open_shards = {path.stem for path in journal.left_in(out)}
    closed = sorted(found - open_shards, key=number_of)  # while there is a journal, it is the truth
    for place, name in enumerate(closed):
        damage = ""
        if name in kept:
            newest = place >= len(closed) - FOOTERS
            damage = damage_of(out, widths, name, kept[name].bytes, kept[name].objects if newest else None)
        else:
            try:
                ledger.add_shard(shard_on_disk(out, widths, name), passes)
            except UserError as error:
                damage = str(error)
        if damage:
            discard(out, widths, name)
            found.remove(name)
            notes.append(f"{name} is damaged, and taken away: {damage}")
    return found, notes


def says_lost(count: int) -> list[str]:
    """Note for the user on objects that the ledger had and a damaged journal lost; none if all are there."""
    return [f"{counted(count, 'object')} of an interrupted session are damaged: making them again"] if count else []


def says_gone(gone: Sequence[str], where: str = "on disk") -> list[str]:
    """Note for the user on shards that are not where they were; none if all are."""
    some = ", ".join(gone[:3]) + (" ..." if gone[3:] else "")
    return [f"{counted(len(gone), 'shard')} no longer {where} ({some}): making what they held again"] if gone else []


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock a run's folder; the kernel unlocks it however the process ends. Raises UserError if another process holds the lock."""
    with (out / ".lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise UserError(
                f"another run is writing to {out} (process {holder})",
                f"lvsm-data status {quoted(out)} shows it; wait for it, stop it, or use another --out",
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def is_locked(run: Path) -> bool:
    """True if a driver holds the run's folder now."""
    path = run / ".lock"
    if not path.exists():
        return False
    with path.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
