"""Table of sources: the choices of --source, and the facts that flags need before a source's module is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

FOLDER = "--input FOLDER"


@dataclass(frozen=True)
class Source:
    """One source. kind: the verb that takes it, render (object), import (posed) or clip (video). module: its dotted name.

    input: None if the source takes no --input, "" if --input may be left out, else the hint where --input is missing.
    flags: fields of Listing that belong to this source alone. fetched: the list has licenses, and the files come from the
    web (a posed source says so by `remote`). endless: there is no list to choose from by name, score or license. objects: its
    poses are those of objects in a common frame, not of scenes whose world has an origin and a scale of its own. roles: its sets
    may split the views of a scene (train, val, test). times: they may say when a view was taken. ready: its pictures go into
    shards as they are, with nothing to verify.
    layers: what its sets say of pixels beside colour and coverage. captions: it has texts about its objects.
    """

    kind: Literal["object", "posed", "video"]
    module: str
    input: str | None = None
    flags: tuple[str, ...] = ()
    fetched: bool = False
    endless: bool = False
    objects: bool = False
    roles: bool = False
    times: bool = False
    ready: bool = False
    layers: tuple[str, ...] = ()
    captions: bool = False


# sources of captures on this machine -> their modules in pipeline/poses, in the order in which folders are recognised
CAPTURES = {
    "rig": "rig",
    "nerf-synthetic": "transforms",
    "d-nerf": "transforms",
    "nerfstudio": "transforms",
    "instant-ngp": "transforms",
    "colmap": "colmap",
    "neus": "neus",
    "llff": "llff",
    "co3d": "co3d",
    "re10k-frames": "realestate",
    "hypersim": "hypersim",
}
WITH_ROLES = ("nerf-synthetic", "d-nerf", "nerfstudio", "instant-ngp", "co3d")
WITH_LAYERS = {"hypersim": ("depth", "normals", "albedo")}
AUTO = "auto"  # in place of a posed source: what the input looks like
SOURCES = {  # in the order of --help
    "procedural": Source("object", "pipeline.sources.procedural", endless=True, objects=True),
    "local": Source("object", "pipeline.sources.local", input="--input FOLDER or --input MANIFEST.csv", objects=True),
    "objaverse": Source("object", "pipeline.sources.objaverse", flags=("lvis",), fetched=True, objects=True),
    "objaverse-xl": Source(
        "object", "pipeline.sources.objaverse_xl", flags=("xl_sources",), fetched=True, objects=True
    ),
    "manifest": Source("object", "pipeline.sources.manifest", flags=("manifest",), fetched=True, objects=True),
    "shards": Source(
        "posed",
        "pipeline.export.reimport",
        input="--input RUN or hf:OWNER/NAME",
        roles=True,
        times=True,
        ready=True,
        layers=("depth", "normals", "albedo"),
        captions=True,
    ),
    "objaverse-mix": Source("posed", "pipeline.sources.objaverse_mix", input="", objects=True),
    "gobjaverse": Source(
        "posed", "pipeline.sources.gobjaverse", input="", objects=True, layers=("depth", "normals", "albedo")
    ),
    "dome-objaverse": Source(
        "posed", "pipeline.sources.dome", input="", objects=True, layers=("depth", "normals"), captions=True
    ),
    "cap3d": Source("posed", "pipeline.sources.cap3d", input="", objects=True, layers=("depth",)),
    "arb-objaverse": Source("posed", "pipeline.sources.arb", input="", objects=True, layers=("normals", "albedo")),
    "zero123": Source("posed", "pipeline.sources.zero123", input=FOLDER, objects=True),
    "pixelsplat": Source("posed", "pipeline.sources.pixelsplat", input=FOLDER),
    "webdataset": Source("posed", "pipeline.export.tars", input=FOLDER, roles=True, times=True),
    **{
        name: Source(
            "posed",
            "pipeline.sources.captures",
            input=FOLDER,
            roles=name in WITH_ROLES,
            times=module in ("transforms", "rig"),
            layers=WITH_LAYERS.get(name, ()),
        )
        for name, module in CAPTURES.items()
    },
    "realestate10k": Source("video", "pipeline.sources.realestate10k", fetched=True),
    "acid": Source("video", "pipeline.sources.realestate10k", fetched=True),
}


def names(kind: str) -> tuple[str, ...]:
    """Names of all sources of one kind, in the table's order."""
    return tuple(name for name, source in SOURCES.items() if source.kind == kind)


if TYPE_CHECKING:
    ObjectSource = str
    PosedSource = str
    VideoSource = str
else:  # types of the flags, made from the table
    ObjectSource, VideoSource = (Literal[names(kind)] for kind in ("object", "video"))
    PosedSource = Literal[(AUTO, *names("posed"))]
