"""Safe readers of untrusted tensor files, which execute no code: MATLAB 5, safetensors, torch.save, pickled NumPy arrays.

Each reader raises UserError for a file that is truncated, damaged or contains anything but tensors.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import pickle
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.core.errors import UserError

LARGEST = 1 << 31  # bytes of a decompressed variable at most; VGG-19 has 575 million
NO_TENSORS = "it is no file of torch.save, or one with more than tensors and plain values"
MALFORMED = (
    struct.error, zlib.error, pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
    RuntimeError, OverflowError, RecursionError, MemoryError,
)  # fmt: skip


@contextmanager
def _user_errors(what: str) -> Iterator[None]:
    try:
        yield
    except MALFORMED as error:
        name = (
            "" if type(error) is ValueError else f"{type(error).__name__}: "
        )  # the others' texts say too little alone
        said = f"{name}{error}".splitlines()[0]
        raise UserError(f"{what} cannot be read ({said})", "fetch it again, or name another file") from None


def _mmap(path: Path) -> memoryview:
    with path.open("rb") as stream:
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))  # ValueError for an empty file


# MATLAB 5: https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf

MAT_HEADER = 128
MAT_COMPRESSED, MAT_MATRIX = 15, 14
MAT_CELL, MAT_STRUCT, MAT_CHAR, MAT_NUMBERS = 1, 2, 4, range(6, 16)
MAT_TYPES = {
    1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8",
    16: "<u1", 17: "<u2", 18: "<u4",
}  # fmt: skip


def read_mat(path: Path) -> dict[str, Any]:
    """Read the variables of a MATLAB 5 file (save -v5, -v6, -v7) by name.

    Cells become lists in MATLAB's column-major order, structs dicts by field name (lists of dicts unless 1x1), text str,
    numbers arrays of MATLAB's shape, and all else (objects, function handles, sparse matrices) None.
    """
    with _user_errors(str(path)):
        data = _mmap(path)
        if bytes(data[:10]) == b"MATLAB 7.3" or bytes(data[126:128]) != b"IM":
            raise ValueError("not a little-endian MATLAB 5 file; in MATLAB, save(..., '-v7') writes one")
        variables, at = {}, MAT_HEADER
        while at < len(data):
            kind, body, at = _element(data, at)
            if kind == MAT_COMPRESSED:
                unpacker = zlib.decompressobj()
                unpacked = unpacker.decompress(body, LARGEST)
                if not unpacker.eof:
                    raise ValueError("a compressed variable that is cut off, or too large")
                kind, body, _ = _element(memoryview(unpacked), 0)
            if kind == MAT_MATRIX:
                name, value = _matrix(body)
                variables[name] = value
    return variables


def _element(data: memoryview, at: int) -> tuple[int, memoryview, int]:
    """(type, content, offset of the next element) of the element at offset `at`."""
    kind, size = struct.unpack_from("<II", data, at)
    start, small = at + 8, kind >> 16
    if small:  # up to four bytes sit in the tag itself
        kind, size, start = kind & 0xFFFF, small, at + 4
    body = data[start : start + size]
    if len(body) != size:
        raise ValueError("cut off")
    after = at + 8 if small else start + size
    return kind, body, after if kind == MAT_COMPRESSED else at + math.ceil((after - at) / 8) * 8


def _numbers(kind: int, body: memoryview) -> np.ndarray:
    return np.frombuffer(body, MAT_TYPES[kind])


def _matrix(body: memoryview) -> tuple[str, Any]:
    """(name, value) of one array, which may contain arrays."""
    if not len(body):
        return "", None
    _, flags, at = _element(body, 0)
    content = flags[0]
    if content not in (MAT_CELL, MAT_STRUCT, MAT_CHAR, *MAT_NUMBERS):
        return "", None
    kind, raw, at = _element(body, at)
    shape = tuple(int(size) for size in _numbers(kind, raw))
    _, raw, at = _element(body, at)
    name, count = bytes(raw).decode("ascii"), math.prod(shape)
    if min(shape) < 0 or count > len(body):  # impossible: each entry takes at least a byte
        raise ValueError("an array of impossible shape")
    if content == MAT_CELL:
        return name, [child for _, child in _children(body, at, count)]
    if content == MAT_STRUCT:
        return name, _struct(body, at, count)
    kind, raw, _ = _element(body, at)
    if content == MAT_CHAR:
        return name, bytes(raw).decode({4: "utf-16-le", 17: "utf-16-le", 18: "utf-32-le"}.get(kind, "utf-8"))
    return name, _numbers(kind, raw).reshape(shape, order="F")


def _struct(body: memoryview, at: int, count: int) -> dict[str, Any] | list[dict[str, Any]]:
    kind, raw, at = _element(body, at)
    width = int(_numbers(kind, raw)[0])
    _, raw, at = _element(body, at)
    names = [bytes(raw[i : i + width]).split(b"\0")[0].decode("ascii") for i in range(0, len(raw), width)]
    if count * len(names) > len(body):
        raise ValueError("a struct of impossible size")
    values = [value for _, value in _children(body, at, count * len(names))]
    structs = [dict(zip(names, values[i * len(names) :], strict=False)) for i in range(count)]
    return structs[0] if count == 1 else structs


def _children(body: memoryview, at: int, count: int) -> Iterator[tuple[str, Any]]:
    for _ in range(count):
        kind, inner, at = _element(body, at)
        yield _matrix(inner) if kind == MAT_MATRIX else ("", None)


# Safetensors, torch.save, pickles

SAFE_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the floating-point tensors of a safetensors file by name, in their stored dtype
    (https://huggingface.co/docs/safetensors)."""
    with _user_errors(str(path)):
        data = _mmap(path)
        (size,) = struct.unpack_from("<Q", data, 0)
        header, body = json.loads(bytes(data[8 : 8 + size])), data[8 + size :]
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors, filled = {}, 0
        for name, entry in sorted(entries.items(), key=lambda pair: pair[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            if begin != filled or end < begin:  # so that no bytes are read twice
                raise ValueError(f"{name} does not begin where the tensor before it ends")
            filled = end
            if entry["dtype"] not in SAFE_TYPES:
                continue
            raw = bytearray(body[begin:end])  # a copy: torch has no read-only tensors
            tensors[name] = torch.frombuffer(raw, dtype=SAFE_TYPES[entry["dtype"]]).reshape(entry["shape"])
        if filled != len(body):
            raise ValueError(f"its tensors take {filled} bytes, and it has {len(body)} for them")
    return tensors


def read_torch(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors, by name and on the CPU, of a state dict that torch.save wrote, bare or as "model" of a checkpoint."""
    with _user_errors(str(path)):
        content = load_plain(path)
        if isinstance(content, dict):
            content = content.get("model", content)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, and no weights by their names")
        return {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}


def load_plain(path: Path, device: str = "cpu") -> Any:
    """Read what torch.save wrote, if it is nothing but tensors and plain values.

    Raises ValueError for another file, and whatever torch.load raises for one that is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a pickle's protocol
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except (pickle.UnpicklingError, EOFError):  # torch's text tells how to execute what is in the file
            raise ValueError(NO_TENSORS) from None


RECONSTRUCT = np.ndarray(0).__reduce__()[0]  # its module depends on NumPy's version
NUMPY_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in NUMPY_GLOBALS:
            return NUMPY_GLOBALS[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which has no place in a file of arrays")


def read_pickled_arrays(data: bytes, what: str) -> dict[str, torch.Tensor]:
    """Read a pickle of nested dicts of float32 arrays as tensors by path, keys joined by "/". what: named in errors."""
    with _user_errors(what):
        return {
            "/".join(path): torch.from_numpy(array.copy())
            for path, array in _leaves(_ArraysOnly(io.BytesIO(data)).load())
        }


def _leaves(value: Any, *path: str) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, *path, str(key))
    elif isinstance(value, np.ndarray) and value.dtype == np.float32:
        yield path, value
    else:
        raise ValueError(f"{'/'.join(path)} is no array of float32")
