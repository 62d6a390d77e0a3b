"""A file of Arrow messages that a crash cannot hurt: each with its length and CRC-32 in front, so that a damaged end shows."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import IO

import pyarrow as pa

RECORD = struct.Struct("<QI")  # length and CRC-32 of the message that follows


def append(sink: IO[bytes], message: pa.Buffer) -> None:
    """One journal record: its length and CRC-32, then an Arrow IPC message."""
    sink.write(RECORD.pack(message.size, zlib.crc32(message)))
    sink.write(message)
    sink.flush()


def read(path: Path) -> list[pa.RecordBatch]:
    """The whole batches of a journal, whatever its end looks like: cut, or filled with zeros by a power cut."""
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
    if not messages:
        return []
    of = pa.ipc.read_schema(messages[0])
    return [pa.ipc.read_record_batch(message, of) for message in messages[1:]]
