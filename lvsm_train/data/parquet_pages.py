"""Byte strings from a Parquet column chunk as our writer makes it: uncompressed, plain encoding, no nulls.

The values' bytes then stand in the file as they are, so that a reader that knows where the chunk lies needs no footer. Any other
chunk raises ValueError, for the caller to read it by pyarrow.
"""

from __future__ import annotations

import struct
from typing import Any

LENGTH = struct.Struct("<I")
DATA_PAGE, PLAIN, RLE = 0, 0, 3  # PageType and Encoding of parquet.thrift


def byte_strings(chunk: bytes | memoryview, count: int) -> list[tuple[int, int]]:
    """Start and end of each value of a chunk of `count` values.

    Raises ValueError if the chunk is not plain, has nulls, or is broken: values have to fill their pages exactly.
    """
    found: list[tuple[int, int]] = []
    view, at = memoryview(chunk), 0
    try:
        while len(found) < count:
            head, start = _struct(view, at)
            data = head[5]  # DataPageHeader: 1 values, 2 encoding, 3 encoding of the definition levels
            if head[1] != DATA_PAGE or head[2] != head[3] or data[2] != PLAIN or data[3] != RLE:
                raise ValueError("a page that is not plain")
            at, end = start, start + head[3]
            at += LENGTH.size + LENGTH.unpack_from(view, at)[0]  # definition levels: which are null
            for _ in range(data[1]):
                start = at + LENGTH.size
                at = start + LENGTH.unpack_from(view, at)[0]
                found.append((start, at))
            if at != end or end > len(view):
                raise ValueError("values that do not fill their page")
    except (KeyError, TypeError, IndexError, RecursionError, struct.error) as error:
        raise ValueError(f"no page: {error}") from None
    if len(found) != count or at != len(view):
        raise ValueError("more or fewer values than there should be")
    return found


def _struct(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """Parse a struct of Thrift's compact protocol at `at`: (fields by number, offset of its end)."""
    fields: dict[int, Any] = {}
    number = 0
    while data[at]:
        delta, kind = data[at] >> 4, data[at] & 15
        at += 1
        if delta:
            number += delta
        else:
            number, at = _integer(data, at)
        fields[number], at = _value(data, at, kind)
    return fields, at + 1


def _value(data: memoryview, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):  # true and false stand in the type itself
        return kind == 1, at
    if kind in (4, 5, 6):
        return _integer(data, at)
    if kind == 8:
        length, at = _varint(data, at)
        return None, at + length
    if kind == 12:
        return _struct(data, at)
    raise ValueError(f"a page header with a field of type {kind}")


def _integer(data: memoryview, at: int) -> tuple[int, int]:
    raw, at = _varint(data, at)
    return (raw >> 1) ^ -(raw & 1), at


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
