"""Objects that are on disk: every supported file of a folder, or the lines of a manifest."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config.shared import Listing
from pipeline.core import licenses
from pipeline.core.errors import Skip, UserError
from pipeline.core.records import Item
from pipeline.download.fetch import Fetcher, sha256_of
from pipeline.formats import tables
from pipeline.upgrade.folder import PICTURES

SAYS = "local files"
HOWTO = "--source local --input FOLDER"
SUFFIXES = {f".{name}" for name in "glb gltf obj fbx stl ply usd usda usdc usdz dae abc".split()}
PARTS = {*PICTURES, ".mtl", ".bin", ".ktx2"}  # suffixes of what objects are made of
NAMED = 8  # kinds of files that are not read, of which the number is said
COLUMNS = ("path", "uid", "license", "sha256")


def items(cfg: Listing, seed: int, net: Fetcher | None) -> Iterator[Item]:
    """One item per file, in sorted order. uid: the manifest's, else the path relative to the folder.

    Says in one line which other files of a folder are not read. Raises UserError for a missing input, a folder without a file
    that is, a manifest without a path column, or two lines with one uid.
    """
    assert cfg.input is not None
    if not cfg.input.exists():
        raise UserError(f"--input {cfg.input} does not exist")
    if cfg.input.is_dir():
        suffixes = SUFFIXES | ({".blend"} if cfg.allow_blend else set())
        paths, left = _objects(cfg.input, suffixes)
        if not paths:
            kinds = f"glb, obj, fbx and {len(suffixes) - 3} more are read; {_kinds(left)}"
            raise UserError(f"--input {cfg.input} holds no 3D file", kinds)
        if left:
            print(f"not read of {cfg.input}: {_kinds(left)}", file=sys.stderr)
        for path in paths:
            yield Item(uid=path.relative_to(cfg.input).as_posix(), source="local", url=str(path))
        return
    _check_manifest(cfg.input)
    extra = {} if cfg.allow_blend else {"no_blend": True}
    for row in tables.rows(cfg.input):
        path = cfg.input.parent / str(row["path"])
        license_name, sha256 = licenses.normalise(str(row.get("license") or "")), str(row.get("sha256") or "")
        yield Item(_uid(row), "local", url=str(path), license=license_name, sha256=sha256, extra=extra)


def _objects(folder: Path, suffixes: set[str]) -> tuple[list[Path], Counter[str]]:
    """(files of these suffixes in `folder` and below, sorted; number of others by their kind). Follows no linked folder."""
    paths, left = [], Counter[str]()

    def closed(error: OSError) -> None:
        left["folders that cannot be opened"] += 1

    for place, folders, names in os.walk(folder, onerror=closed):
        left["linked folders"] += sum(os.path.islink(os.path.join(place, name)) for name in folders)
        for path in (Path(place, name) for name in names):
            suffix = path.suffix.lower()
            if suffix not in suffixes and suffix not in PARTS:
                left[suffix if suffix[1:].isascii() and suffix[1:].isalnum() else "of other names"] += 1
            elif suffix in suffixes and path.is_file():
                paths.append(path)
            elif suffix in suffixes:
                left["links to no file, or pipes"] += 1
    return sorted(paths), +left


def _kinds(left: Counter[str]) -> str:
    """How many files of each kind are not read, the most frequent first."""
    hint = {".blend": " (--allow-blend opens them, scripts off)"}
    said = [f"{kind} {count}{hint.get(kind, '')}" for kind, count in left.most_common(NAMED)]
    rest = left.total() - sum(count for _, count in left.most_common(NAMED))
    return ", ".join([*said, *([f"others {rest}"] if rest else [])]) or "it is empty"


def _uid(row: dict[str, Any]) -> str:
    return str(row.get("uid") or Path(str(row["path"])).as_posix())


def _check_manifest(path: Path) -> None:
    """Raise UserError unless every line has a path and no uid comes twice, before anything is rendered."""
    seen: set[str] = set()
    for number, row in enumerate(tables.rows(path), 1):
        if not row.get("path"):
            raise UserError(f"{path}: entry {number} has no path", f"the columns are {', '.join(COLUMNS)}")
        uid = _uid(row)
        if uid in seen:
            raise UserError(f"{path}: uid {uid!r} appears twice (entry {number})", "uids must be unique")
        seen.add(uid)
    if not seen:
        raise UserError(f"{path} lists no object", f"the columns are {', '.join(COLUMNS)}")


def fetch(item: Item, folder: Path) -> Path:
    """Return the file itself, never a copy. Raises Skip: file_missing, checksum_mismatch, blend_not_allowed."""
    path = Path(item.url)
    if not path.is_file():
        raise Skip("file_missing", str(path))
    if path.suffix.lower() == ".blend" and item.extra.get("no_blend"):
        raise Skip("blend_not_allowed", "pass --allow-blend to open .blend files (scripts stay off)")
    if item.sha256 and (found := sha256_of(path)) != item.sha256.lower():
        raise Skip("checksum_mismatch", f"sha256 is {found}, the manifest says {item.sha256}")
    return path
