"""Crash-safe file of Arrow IPC messages: length and CRC-32 precede each, so that a damaged end is detected."""

from __future__ import annotations

import struct
import zlib
from io import FileIO
from pathlib import Path

import pyarrow as pa

from pipeline.core import disk

RECORD = struct.Struct("<QI")  # length and CRC-32 of the message that follows


def left_in(out: Path) -> list[Path]:
    """Journals in a run's folder, sorted: of shards that are open, or that a killed run left behind."""
    return sorted((out / "journal").glob("*.arrow"))


def append(sink: FileIO, message: bytes | pa.Buffer) -> None:
    """Append one journal record: length and CRC-32, then an Arrow IPC message. sink: opened without a buffer.

    Raises OSError if the record cannot be written whole; the file then keeps its previous length.
    """
    content = memoryview(message)
    disk.append(sink, RECORD.pack(content.nbytes, zlib.crc32(content)), content)


def read(path: Path) -> list[pa.RecordBatch]:
    """Record batches of a journal that are whole, whatever the end of the file: cut off, or zeros after a power cut."""
    return mend(path)[0]


def schema_of(path: Path) -> pa.Schema | None:
    """Schema of a journal's record batches; None if not even that is whole."""
    messages, _ = _messages(path)
    return pa.ipc.read_schema(messages[0]) if messages else None


def mend(path: Path) -> tuple[list[pa.RecordBatch], int]:
    """Whole record batches of a journal, and the byte offset after the last whole record, where the file can be truncated."""
    messages, end = _messages(path)
    if not messages:
        return [], 0
    of = pa.ipc.read_schema(messages[0])
    return [pa.ipc.read_record_batch(message, of) for message in messages[1:]], end


def _messages(path: Path) -> tuple[list[pa.Buffer], int]:
    """Whole Arrow messages of a journal, the schema first, and the offset of their end."""
    data = pa.memory_map(str(path)).read_buffer() if path.stat().st_size else pa.py_buffer(b"")
    messages: list[pa.Buffer] = []
    start = 0
    while start + RECORD.size <= data.size:
        length, crc = RECORD.unpack(data[start : start + RECORD.size])
        if not 0 < length <= data.size - start - RECORD.size:
            break
        message = data.slice(start + RECORD.size, length)
        if zlib.crc32(message) != crc:
            break
        messages.append(message)
        start += RECORD.size + length
    return messages, start
