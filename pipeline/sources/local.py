"""Objects that are on disk: every supported file of a folder, or the lines of a manifest."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.config import RenderConfig
from pipeline.scene import Item, Skip, UserError

KIND = "object"
SAYS = "local files"
HOWTO = "--source local --input FOLDER"
SUFFIXES = {f".{name}" for name in "glb gltf obj fbx stl ply usd usda usdc usdz dae abc".split()}
COLUMNS = ("path", "uid", "license", "sha256")


def items(cfg: RenderConfig) -> Iterator[Item]:
    """One item per file, in sorted order. uid: the manifest's, else the path relative to the folder.

    Raises UserError for a missing input, a manifest without a path column, or two lines with one uid.
    """
    assert cfg.input is not None
    if not cfg.input.exists():
        raise UserError(f"--input {cfg.input} does not exist")
    if cfg.input.is_dir():
        suffixes = SUFFIXES | ({".blend"} if cfg.allow_blend else set())
        paths = (path for path in sorted(cfg.input.rglob("*")) if path.suffix.lower() in suffixes and path.is_file())
        for path in paths:
            yield Item(uid=path.relative_to(cfg.input).as_posix(), source="local", url=str(path))
        return
    _check_manifest(cfg.input)
    extra = {} if cfg.allow_blend else {"no_blend": True}
    for row in _rows(cfg.input):
        path = cfg.input.parent / str(row["path"])
        license_name, sha256 = str(row.get("license") or "unknown"), str(row.get("sha256") or "")
        yield Item(_uid(row), "local", url=str(path), license=license_name, sha256=sha256, extra=extra)


def _uid(row: dict[str, Any]) -> str:
    return str(row.get("uid") or Path(str(row["path"])).as_posix())


def _check_manifest(path: Path) -> None:
    """Before anything is rendered: every line has a path, and no uid comes twice."""
    seen: set[str] = set()
    try:
        for number, row in enumerate(_rows(path), 1):
            if not row.get("path"):
                raise UserError(f"{path}: entry {number} has no path", f"the columns are {', '.join(COLUMNS)}")
            uid = _uid(row)
            if uid in seen:
                raise UserError(f"{path}: uid {uid!r} appears twice (entry {number})", "uids must be unique")
            seen.add(uid)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from None
    if not seen:
        raise UserError(f"{path} lists no object", f"the columns are {', '.join(COLUMNS)}")


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    """Lines of a manifest as dicts; the format follows the suffix."""
    match path.suffix.lower():
        case ".csv":
            with path.open(newline="", encoding="utf-8-sig") as lines:
                yield from csv.DictReader(lines)
        case ".jsonl":
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        row = json.loads(line)
                    except json.JSONDecodeError as error:
                        raise UserError(f"{path}: line {number} is not JSON: {error}") from None
                    if not isinstance(row, dict):
                        raise UserError(f"{path}: line {number} is no JSON object", '{"path": "chair.glb"} is one')
                    yield row
        case ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            try:
                for batch in pq.ParquetFile(path).iter_batches():
                    yield from batch.to_pylist()
            except pa.ArrowInvalid as error:
                raise UserError(f"{path} is not a Parquet file: {error}") from None
        case other:
            raise UserError(f"--input {path}: {other or 'no suffix'} is no manifest", "use .parquet, .csv or .jsonl")


def fetch(item: Item, folder: Path) -> Path:
    """The file itself, never a copy. Raises Skip: file_missing, checksum_mismatch, blend_not_allowed."""
    path = Path(item.url)
    if not path.is_file():
        raise Skip("file_missing", str(path))
    if path.suffix.lower() == ".blend" and item.extra.get("no_blend"):
        raise Skip("blend_not_allowed", "pass --allow-blend to open .blend files (scripts stay off)")
    if item.sha256:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != item.sha256.lower():
            raise Skip("checksum_mismatch", f"sha256 is {found}, the manifest says {item.sha256}")
    return path
