"""Files of `torch.save`, read and written without torch, and without running anything: tensors are NumPy arrays.

A file is a zip archive with a pickle (<name>/data.pkl) beside the bytes of each storage (<name>/data/<key>, not compressed),
or, before torch 1.6, a row of pickles with the storages behind them. See torch/serialization.py. Of all that a pickle may
name, only tensors, storages and dicts are built; anything else ends in Skip("unsafe_pickle").
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from pipeline.core.disk import replacing
from pipeline.core.errors import Skip

LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: its mark, and how long its name and extra field are
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLE = 1 << 28  # bytes of the pickle alone, without storages
DTYPES = {
    "ByteStorage": "<u1",
    "CharStorage": "<i1",
    "ShortStorage": "<i2",
    "IntStorage": "<i4",
    "LongStorage": "<i8",
    "HalfStorage": "<f2",
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "BoolStorage": "?",
    "UntypedStorage": "<u1",
}
MALFORMED = (  # what pickle and zipfile raise for damaged or hostile input
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, OSError, ValueError, KeyError, IndexError, TypeError,
    AttributeError, ImportError, AssertionError, OverflowError, MemoryError, RecursionError, NotImplementedError, RuntimeError,
)  # fmt: skip


class _Kind(NamedTuple):
    """A storage class, as far as the pickle needs one. A tuple, so that a pickle can set no attribute of it."""

    dtype: np.dtype[Any]


class _Call(NamedTuple):
    """A function that a pickle may call. A tuple, so that a pickle cannot redirect it."""

    does: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.does(*arguments)


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> np.ndarray:
    """torch._utils._rebuild_tensor(_v2): a view of a flat storage. NumPy itself checks its bounds."""
    if min((offset, *size, *stride)) < 0 or len(size) != len(stride) or len(size) > 32:
        raise ValueError("a tensor of impossible shape")
    width = storage.itemsize
    if 0 in size:
        return np.empty(size, storage.dtype)
    return np.ndarray(size, storage.dtype, storage, offset * width, tuple(step * width for step in stride))


def _ordered(*pairs: Any) -> dict[Any, Any]:
    return dict(*pairs[:1])


def _bytes(text: str, encoding: str) -> bytes:
    """_codecs.encode, by which pickle's protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("an encoding that pickle never asks for")
    return text.encode("latin1")


ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _Call(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("collections", "OrderedDict"): _Call(_ordered),
    ("_codecs", "encode"): _Call(_bytes),
    **{("torch", name): _Kind(np.dtype(dtype)) for name, dtype in DTYPES.items()},
    ("torch.storage", "UntypedStorage"): _Kind(np.dtype("<u1")),
}


class _Unpickler(pickle.Unpickler):
    """Unpickler of tensors only. storages: (dtype, key, number of elements) of a persistent id -> flat array."""

    def __init__(self, stream: IO[bytes], storages: Callable[[np.dtype[Any], str, int], np.ndarray]) -> None:
        super().__init__(stream, encoding="utf-8")
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        raise Skip("unsafe_pickle", f"it asks for {module}.{name}, which has no place in a file of tensors")

    def persistent_load(self, pid: Any) -> np.ndarray:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], _Kind):
            raise Skip("unsafe_pickle", "a persistent id that is no storage")
        kind, key, count = pid[1].dtype, str(pid[2]), int(pid[4])
        return self.storages(kind, key, count)


def read(path: Path) -> Any:
    """Return the object that `torch.save` was given: lists, tuples, dicts, strings, numbers, and NumPy arrays for its tensors.

    Arrays are views of the mapped file wherever the file holds the bytes as they are. Raises Skip: missing,
    unsafe_pickle, broken_torch_file (cut off, damaged, or not written by torch.save).
    """
    try:
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return _read_zip(path, mapped) if mapped[:4] == b"PK\x03\x04" else _read_legacy(mapped)
    except FileNotFoundError:
        raise Skip("missing", str(path)) from None
    except MALFORMED as error:
        raise Skip("broken_torch_file", f"{path.name}: {error or type(error).__name__}") from None


def _read_zip(path: Path, mapped: mmap.mmap) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        (prefix,) = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
        if f"{prefix}/byteorder" in members and archive.read(f"{prefix}/byteorder") != b"little":
            raise ValueError("big-endian tensors")
        if members[f"{prefix}/data.pkl"].file_size > MAX_PICKLE:
            raise ValueError("a pickle of absurd size")
        text = archive.read(f"{prefix}/data.pkl")

        def storage(kind: np.dtype[Any], key: str, count: int) -> np.ndarray:
            info = members[f"{prefix}/data/{key}"]
            if info.compress_type == zipfile.ZIP_STORED:
                return _mapped(mapped, _start(mapped, info), count, kind, info.file_size)
            return np.frombuffer(archive.read(info), kind, count)

        return _Unpickler(io.BytesIO(text), storage).load()


def _start(mapped: mmap.mmap, info: zipfile.ZipInfo) -> int:
    """Offset in the file at which the bytes of a stored member begin."""
    mark, name, extra = LOCAL_HEADER.unpack_from(mapped, info.header_offset)
    if mark != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no member at {info.header_offset}")
    return info.header_offset + LOCAL_HEADER.size + int(name) + int(extra)


def _mapped(mapped: mmap.mmap, start: int, count: int, kind: np.dtype[Any], size: int) -> np.ndarray:
    if count < 0 or count * kind.itemsize > size:
        raise ValueError(f"a storage of {size} bytes that claims {count} elements")
    if count == 0:
        return np.empty(0, kind)
    return np.frombuffer(mapped, kind, count, start)


def _read_legacy(mapped: mmap.mmap) -> Any:
    """Read magic, protocol, system, object, storage keys (a pickle each), then per storage an int64 count and bytes."""
    stream: Any = mapped  # without `peek`, so that pickle reads no byte ahead
    places: dict[str, tuple[int, np.dtype[Any], int]] = {}

    def note(kind: np.dtype[Any], key: str, count: int) -> np.ndarray:
        places[key] = (count, kind, 0)
        return np.broadcast_to(np.zeros((), kind), count) if count else np.empty(0, kind)

    def none(kind: np.dtype[Any], key: str, count: int) -> np.ndarray:
        raise ValueError("a storage where none belongs")

    if _Unpickler(stream, none).load() != LEGACY_MAGIC or _Unpickler(stream, none).load() != LEGACY_PROTOCOL:
        raise ValueError("not written by torch.save")
    if not _Unpickler(stream, none).load().get("little_endian"):
        raise ValueError("big-endian tensors")
    begin = mapped.tell()
    _Scan(stream, note).load()
    for key in _Unpickler(stream, none).load():
        count, kind, _ = places[key]
        (found,) = struct.unpack("<q", mapped.read(8))
        if found != count:
            raise ValueError(f"storage {key} has {found} elements instead of {count}")
        places[key] = (count, kind, mapped.tell())
        mapped.seek(count * kind.itemsize, 1)

    def storage(kind: np.dtype[Any], key: str, count: int) -> np.ndarray:
        count, kind, start = places[key]
        return _mapped(mapped, start, count, kind, len(mapped) - start)

    mapped.seek(begin)
    return _Unpickler(stream, storage).load()


class _Scan(_Unpickler):
    """Unpickler that builds no tensors: it finds the end of the object's pickle, and the storages that are needed."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return _Call(lambda *arguments: None) if isinstance(found, _Call) and module == "torch._utils" else found


# ---- writing


def write(path: Path, value: Any) -> None:
    """Write a value for `torch.load(path, weights_only=True)`: lists, dicts, strings, whole numbers, and arrays as tensors.

    Raises TypeError for other values, and for arrays of a kind that DTYPES lacks.
    """
    storages: list[np.ndarray] = []
    text = b"\x80\x02" + _pickled(value, storages) + b"."
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr("archive/data.pkl", text)
        archive.writestr("archive/byteorder", "little")
        for key, storage in enumerate(storages):
            archive.writestr(f"archive/data/{key}", storage.tobytes())
        archive.writestr("archive/version", "3\n")


def _pickled(value: Any, storages: list[np.ndarray]) -> bytes:
    """Opcodes of pickle's protocol 2 that build a value; arrays are appended to `storages`."""
    if isinstance(value, str):
        data = value.encode()
        return b"X" + struct.pack("<I", len(data)) + data
    if isinstance(value, bool) or not isinstance(value, int | list | tuple | dict | np.ndarray):
        raise TypeError(f"a {type(value).__name__} has no place in a file of tensors")
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, np.ndarray):
        return _pickled_tensor(value, storages)
    if isinstance(value, dict):
        pairs = b"".join(_pickled(key, storages) + _pickled(each, storages) for key, each in value.items())
        return b"}(" + pairs + b"u"
    items = b"".join(_pickled(each, storages) for each in value)
    return b"](" + items + b"e" if isinstance(value, list) else b"(" + items + b"t"


def _pickled_tensor(array: np.ndarray, storages: list[np.ndarray]) -> bytes:
    name = next((name for name, kind in DTYPES.items() if np.dtype(kind) == array.dtype), None)
    if name is None:
        raise TypeError(f"an array of {array.dtype} has no place in a file of tensors")
    whole = np.ascontiguousarray(array)
    stride = tuple(step // whole.itemsize for step in whole.strides)
    said = [
        _pickled(each, storages) for each in ("storage", str(len(storages)), "cpu", whole.size, whole.shape, stride)
    ]
    storages.append(whole)
    kind, key, device, count, size, steps = said
    storage = b"(" + kind + f"ctorch\n{name}\n".encode() + key + device + count + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"J\0\0\0\0" + size + steps + b"\x89" + hooks + b"tR"
