"""Tables of users, read and written as rows of dicts: CSV, JSON lines or Parquet, by the file's suffix."""

from __future__ import annotations

import csv
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.disk import replacing
from pipeline.core.errors import UserError

SUFFIXES = (".parquet", ".csv", ".jsonl")
ROWS_PER_GROUP = 65536
ROWS_PER_BLOCK = 16384
KEYS = ("uid", "sha256", "file_identifier", "fileIdentifier")  # columns of score tables that name an object
SCORES = ("aesthetic_score", "score", "aesthetic")


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table. UserError if the file is not what its suffix says."""
    try:
        yield from _rows(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from None


def captions(path: Path) -> dict[str, str]:
    """Name -> text of a table with columns uid and caption, or, as Cap3D's CSV files are, of two columns without names.

    Raises UserError for a file that is neither.
    """
    lines: Iterable[tuple[Any, Any]] = ((row.get("uid"), row.get("caption")) for row in rows(path))
    try:
        if path.suffix.lower() == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                first = next(csv.reader(file), [])
            if not {"uid", "caption"} <= set(first):
                if len(first) != 2:
                    raise UserError(f"{path} has no columns uid and caption", "or two columns without names")
                lines = _pairs(path)
        found = {str(name): str(text).strip() for name, text in lines if name and text}
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not found:
        raise UserError(f"{path} holds no caption", "columns uid and caption, or two columns without names")
    return found


@functools.lru_cache(maxsize=4)
def names_in(path: Path) -> frozenset[str]:
    """Read lines of a text file, or all fields of a .csv or .tsv; a path such as 000-001/abc.glb also gives abc."""
    found: set[str] = set()
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            delimiter = {".csv": ",", ".tsv": "\t"}.get(path.suffix.lower())
            for fields in csv.reader(lines, delimiter=delimiter) if delimiter else ([line] for line in lines):
                found.update(name for field in fields if (name := field.strip()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--uids {path} cannot be read as UTF-8 text: {error}") from None
    found |= {Path(name).stem for name in found if "/" in name and "://" not in name}
    if not found:
        raise UserError(f"--uids {path} names nothing", "one uid per line")
    return frozenset(found)


@functools.lru_cache(maxsize=4)
def names_scored(path: Path, least: float, column: str | None) -> frozenset[str]:
    """Names (by any of KEYS) in the rows of a table whose score is at least `least`. column: the score's; default: of SCORES."""
    found: set[str] = set()
    score_column = column
    for number, row in enumerate(rows(path), 1):
        if number == 1:
            score_column = _score_column(path, row, column)
            if not any(key in row for key in KEYS):
                raise UserError(f"--scores {path} names no objects", f"one of the columns {', '.join(KEYS)} is needed")
        assert score_column is not None
        if _number(path, number, row[score_column]) >= least:
            found.update(str(row[key]) for key in KEYS if row.get(key))
    return frozenset(found)


def _score_column(path: Path, row: dict[str, Any], column: str | None) -> str:
    wanted = (column,) if column else SCORES
    if found := [name for name in wanted if name in row]:
        return found[0]
    raise UserError(
        f"--scores {path} has no column {' or '.join(wanted)}", f"--score-column takes one of {', '.join(row)}"
    )


def _number(path: Path, number: int, value: Any) -> float:
    if value in (None, ""):
        return float("-inf")
    try:
        return float(value)
    except ValueError:
        raise UserError(f"--scores {path}: row {number} has no number but {value!r}") from None


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        for line in csv.reader(file):
            if len(line) >= 2:
                yield line[0], line[1]


def blocks(path: Path, columns: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """Yield those of `columns` that the table has, as lists of some thousand values; None where a row has no value.

    Millions of rows of a Parquet file take a tenth of the time of `rows`.
    """
    if path.suffix.lower() == ".parquet":
        yield from _parquet_blocks(path, columns)
        return
    lines = rows(path)
    while block := list(itertools.islice(lines, ROWS_PER_BLOCK)):
        there = [name for name in columns if any(name in row for row in block)]
        yield {name: [row.get(name) for row in block] for name in there} or {"": [None] * len(block)}


def _parquet_blocks(path: Path, columns: Sequence[str] | None) -> Iterator[dict[str, list[Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:  # pre-buffering would keep all that was read
            there = [name for name in file.schema_arrow.names if columns is None or name in columns]
            for batch in file.iter_batches(ROWS_PER_BLOCK, columns=there):
                yield {name: batch.column(name).to_pylist() for name in there} or {"": [None] * batch.num_rows}
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file: {error}") from None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
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
            for block in _parquet_blocks(path, None):
                for values in zip(*block.values(), strict=True):
                    yield dict(zip(block, values, strict=True))
        case other:
            raise UserError(f"{path}: {other or 'no suffix'} is no table", f"use {', '.join(SUFFIXES)}")


def write(path: Path, lines: Iterable[dict[str, Any]], columns: Sequence[tuple[str, type]]) -> int:
    """Write dicts with these columns to a temporary file, then rename it; returns the count. Same rows, same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [name for name, _ in columns]
    count = itertools.count()
    counted = (line for line, _ in zip(lines, count, strict=False))  # advances `count` with every line
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            _write_parquet(temporary, counted, columns)
            return next(count)
        with temporary.open("w", newline="", encoding="utf-8") as sink:
            if path.suffix == ".csv":
                table = csv.DictWriter(sink, names, lineterminator="\n")
                table.writeheader()
                table.writerows(counted)
            else:
                sink.writelines(json.dumps({name: line[name] for name in names}) + "\n" for line in counted)
    return next(count)


def _write_parquet(path: Path, lines: Iterator[dict[str, Any]], columns: Sequence[tuple[str, type]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(itertools.islice(lines, ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))
