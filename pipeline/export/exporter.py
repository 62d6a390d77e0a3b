"""Objects of a run -> shots -> the writer of a format."""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from pipeline.config.export import ABSOLUTE, FORMATS, HUB, NO_SPLITS, WITH_TIMES, ExportConfig
from pipeline.config.shared import FACT_OF
from pipeline.core.cameras import BOUNDING_RADIUS
from pipeline.core.errors import Skip, UserError
from pipeline.core.paths import file_stem
from pipeline.core.text import quoted
from pipeline.dataset.copies import at_hand
from pipeline.dataset.opened import Dataset, Object
from pipeline.export import hub
from pipeline.export.folder import whole
from pipeline.export.runs import intact, lacking, opened
from pipeline.poses.capture import ROLES
from pipeline.poses.shots import Shots, Writer

UIDS = "uids.json"  # in the folder: names of scenes -> uids
WHITE = (255, 255, 255)


@dataclass
class Exported:
    """Result of an export. objects, views: written. refused: reason's detail -> objects. notes: for the user."""

    out: Path
    objects: int = 0
    views: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Lines for the user."""
        refused = [f"{count} objects are left out: {detail}" for detail, count in self.refused.most_common()]
        return [f"{self.objects:,} objects, {self.views:,} views: {self.out}", *refused, *self.notes]


def export(cfg: ExportConfig) -> Exported:
    """Write the views of a run in a format of FORMATS. cfg: resolved. Objects that the format cannot hold are counted.

    Raises UserError: nothing to read, unknown uids or views, no object that the format can hold, damaged
    shards, a disk that is full or cannot be written. It leaves no folder then.
    """
    assert cfg.out is not None and cfg.to is not None
    with whole(cfg.out) as part:
        made = _export_shards(cfg, part) if cfg.to == HUB else _export_views(cfg, part)
    made.notes = [note.replace(str(part), str(cfg.out)) for note in made.notes]
    return made


def _export_shards(cfg: ExportConfig, part: Path) -> Exported:
    """Write a run's shards as they stand, with their card, into the folder `part`, which becomes cfg.out."""
    assert cfg.out is not None and cfg.to is not None
    told = hub.write(at_hand(cfg.run, shards=None), part, cfg.out.name, cfg.res).told
    place = json.dumps(str(cfg.out))
    read = f"`load_dataset({place})` and `pipeline.open({place})` read it; `lvsm-data push` uploads it"
    return Exported(cfg.out, len(told.views), sum(told.views), notes=[*filter(None, [told.fewer]), read])


def _export_views(cfg: ExportConfig, part: Path) -> Exported:
    """Write views by the writer of a format into the folder `part`, which becomes cfg.out."""
    assert cfg.out is not None and cfg.to is not None
    data = opened(cfg.run, cfg.res)
    numbers = _numbers(cfg, data)
    roles = _split_indices(cfg)
    writer = make_writer(cfg.to, part, cfg.out)
    made, names, split = Exported(cfg.out, notes=lacking(cfg.run, len(data))), dict[str, str](), False
    console = Console(stderr=True)
    for number in track(numbers, "exporting", console=console, transient=True, disable=not sys.stderr.isatty()):
        try:
            with intact(cfg.run, data.uids[number]):
                one = data[data.uids[number]]
                views = _views(cfg, one, roles)
                shots = _shots(one, data.facts, *views, held_out=data.split_of(number) == "val")
                if shots.moves and cfg.to not in WITH_TIMES:
                    raise Skip(
                        "not_expressible", f"{cfg.to} has no place for times (--split-indices names views of one)"
                    )
                if shots.name in names:
                    raise Skip("not_expressible", "their names become those of other objects as files")
                writer.add(shots)
        except Skip as failure:
            made.refused[failure.detail] += 1
            continue
        made.objects, made.views = made.objects + 1, made.views + len(shots)
        names[shots.name], split = shots.uid, split or any(shots.roles)
    if not made.objects:
        raise UserError(
            f"--to {cfg.to}: {'; '.join(made.refused) or 'there is no object'}", "another format may hold it"
        )
    made.notes += writer.close()
    if split and cfg.to in NO_SPLITS:
        made.notes.append(f"{cfg.to} has no place for splits: views for training and for tests lie side by side")
    (part / UIDS).write_text(json.dumps(names, indent=0))
    return made


def make_writer(name: str, folder: Path, stands: Path) -> Writer:
    """Writer of a format, which writes into `folder`; what it writes will stand at `stands`."""
    module, _, maker = FORMATS[name].partition(":")
    at = {"stands": stands} if name in ABSOLUTE else {}
    writer: Writer = getattr(importlib.import_module(module), maker)(folder, **at)
    return writer


def _numbers(cfg: ExportConfig, data: Dataset) -> list[int]:
    """Numbers of the objects to export."""
    if unknown := [uid for uid in cfg.uid if uid not in data]:
        some = ", ".join(data.uids[:3])
        raise UserError(f"{cfg.run} has no object {unknown[0]}", f"there are {len(data):,}: {some}, ...")
    numbers = [data.number(uid) for uid in cfg.uid] if cfg.uid else list(range(len(data)))
    if cfg.only:
        facts = data.objects()
        wanted = [facts.get(FACT_OF[trait], []) for trait in cfg.only]
        numbers = [number for number in numbers if all(of and of[number] is True for of in wanted)]
        if not numbers:
            raise UserError(
                f"no object is {' and '.join(cfg.only)}", f"lvsm-data view {quoted(cfg.run)} --serve counts them"
            )
    return numbers[: cfg.n]


def _split_indices(cfg: ExportConfig) -> dict[str, Any]:
    """Content of --split-indices, {} without. Raises UserError."""
    if cfg.split_indices is None:
        return {}
    try:
        found = json.loads(cfg.split_indices.read_text())
        if not isinstance(found, dict) or not found:
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"{cfg.split_indices} cannot be read: {error}", '{"train": [0, 2], "test": [1]}') from None
    return found


def _views(cfg: ExportConfig, one: Object, splits: dict[str, Any]) -> tuple[list[int], list[str]]:
    """(views, roles) of an object: of --split-indices, else the run's. UserError for views that lack or stand in two splits."""
    count = len(one.jpegs)
    if not splits:
        views = list(range(0, count, cfg.every))
        views += [count - 1] if cfg.keep_ends and views[-1] != count - 1 else []
        own_roles = one.roles or [""] * count
        unnamed = "train" if any(own_roles) else ""  # beside views that have a role
        return views, [own_roles[view] or unnamed for view in views]
    own = splits if splits.keys() <= set(ROLES) else splits.get(one.uid)
    said = f"{cfg.split_indices}: {one.uid}"
    if not isinstance(own, dict) or not own or not own.keys() <= set(ROLES):
        raise UserError(f"{said} has no views of {', '.join(ROLES)} there", "--uid leaves other objects out")
    role_of: dict[int, str] = {}
    for role, views in own.items():
        for view in views if isinstance(views, list) else [views]:
            if not isinstance(view, int) or isinstance(view, bool) or not 0 <= view < count:
                raise UserError(f"{said} has no view {view}", f"it has views 0 to {count - 1}")
            if view in role_of:
                raise UserError(f"{said}: view {view} is in {role_of[view]} and in {role}", "a view has one role")
            role_of[view] = role
    return sorted(role_of), [role_of[view] for view in sorted(role_of)]


def _shots(one: Object, facts: dict[str, Any], views: list[int], roles: list[str], held_out: bool = False) -> Shots:
    settings = facts.get("settings") or {}
    background = one.meta.get("background", WHITE)
    if one.projection != "perspective":
        raise UserError(f"{one.uid} has orthographic views, which only --to {HUB} holds", "or export a run of pinholes")
    return Shots(
        name=file_stem(one.uid),
        uid=one.uid,
        jpegs=[one.jpegs[view] for view in views],
        c2w=one.c2w[views],
        fxfycxcy=one.fxfycxcy[views],
        hw=one.hw,
        roles=roles,
        alpha=[one.layers["alpha"][view] for view in views] if "alpha" in one.layers else None,
        background=background if isinstance(background, list | tuple) else None,
        depth=one.layer("depth")[views] if "depth" in one.layers else None,
        radius=BOUNDING_RADIUS.get(str(settings.get("normalize"))),
        held_out=held_out,
        times=[one.times[view] for view in views] if one.times else (),
    )
