"""Listing and unpacking .7z archives: the only module that knows py7zr, and the limits that it needs around it."""

from __future__ import annotations

import contextlib
import functools
import io
import lzma
import queue
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.core.errors import UserError

READ_BYTES = 1 << 16  # bytes of the archive that are unpacked at a time
BROKEN = (  # what py7zr raises for damaged archives; some of their input it checks only by using it
    zlib.error, lzma.LZMAError, OSError, EOFError, struct.error, ValueError, KeyError, IndexError, TypeError, AttributeError,
    AssertionError, NotImplementedError, RuntimeError, OverflowError, MemoryError,
)  # fmt: skip


@functools.cache
def library() -> Any:
    """Return py7zr, tried out on a tiny archive. UserError if internals are gone by which `_SmallReads` bounds the memory."""
    import py7zr

    packed = io.BytesIO()
    with py7zr.SevenZipFile(packed, "w", filters=[{"id": py7zr.FILTER_LZMA, "preset": 0}]) as archive:
        archive.writestr(b"x", "x")
    source: Any = _SmallReads(io.BytesIO(packed.getvalue()))
    try:
        with py7zr.SevenZipFile(source) as archive:
            source.unpacking(archive)
            archive.testzip()
        _ = next(_inner(block.decompressor.chain[0]).needs_input for block in source.blocks.values())
    except (AttributeError, StopIteration, TypeError) as error:
        what = f"py7zr {py7zr.__version__} has changed inside, and .7z archives cannot be read with it: {error}"
        raise UserError(
            what, "pip install 'py7zr>=1,<2' brings one that is known to work, as make setup does"
        ) from None
    return py7zr


@dataclass(frozen=True)
class Entry:
    """Member of an archive. name, size: as declared. fault: why the member must not be read, or ""."""

    name: str
    size: int
    is_folder: bool
    fault: str


def listed(path: Path) -> list[Entry]:
    """All members, folders too, in the archive's order. Raises one of BROKEN; UserError as `library` does."""
    with path.open("rb") as stream, _opened(stream) as archive:
        encrypted = archive.needs_password()
        entries = []
        for info in archive.list():
            fault = "encrypted" if encrypted else "" if info.is_file else "no plain file"
            entries.append(Entry(info.filename, info.uncompressed or 0, info.is_directory, fault))
        return entries


@contextlib.contextmanager
def _opened(stream: Any) -> Iterator[Any]:
    """Open an archive with py7zr, which unpacks in one thread and in order because it gets a stream and not a path.

    py7zr's own exceptions become ValueError, one of BROKEN.
    """
    from py7zr.exceptions import ArchiveError, PasswordRequired

    try:
        with library().SevenZipFile(stream) as archive:
            yield archive
    except (ArchiveError, PasswordRequired) as error:
        raise ValueError(str(error) or type(error).__name__) from None


class _Stopped(Exception):
    """The generator `walk` was closed; the unpacking thread has to end."""


Hand = Callable[[tuple[str, bytes] | BaseException | None], None]


def walk(path: Path, wanted: Callable[[str], bool]) -> Generator[tuple[str, bytes], None, None]:
    """Yield (name, bytes) of the wanted files in order, names without "." and empty parts. Raises one of BROKEN; UserError.

    py7zr pushes, we pull: it unpacks in a thread that is never more than two files ahead, and ends with this generator.
    """
    library()
    handed: queue.Queue[tuple[str, bytes] | BaseException | None] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def hand(what: tuple[str, bytes] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return handed.put(what, timeout=0.2)
            except queue.Full:
                continue
        raise _Stopped

    def unpack() -> None:
        with contextlib.suppress(_Stopped):
            try:
                _unpack(path, wanted, hand)
            except BROKEN as error:
                hand(error)
            hand(None)

    thread = threading.Thread(target=unpack, name=f"unpack {path.name}", daemon=True)
    thread.start()
    try:
        while (what := handed.get()) is not None:
            if isinstance(what, BaseException):
                raise what
            yield what
    finally:
        stop.set()
        thread.join()


def _unpack(path: Path, wanted: Callable[[str], bool], hand: Hand) -> None:
    from py7zr.io import NullIO, Py7zIO, WriterFactory

    class Sink(NullIO):
        def __init__(self, name: str) -> None:
            self.name = name
            self.parts: list[bytes] = []

        def write(self, data: bytes | bytearray) -> int:
            self.parts.append(bytes(data))
            return len(data)

        def close(self) -> None:  # the member is whole, and its CRC is right
            data = b"".join(self.parts)
            self.parts.clear()  # py7zr keeps this object to the end
            hand((self.name, data))

    class Sinks(WriterFactory):
        def create(self, filename: str) -> Py7zIO:
            return Sink(Path(filename).relative_to(nowhere).as_posix())

    # py7zr checks names against a folder, following links; an empty one of its own keeps the current one out of it
    with tempfile.TemporaryDirectory() as nowhere, path.open("rb") as stream:
        source = _SmallReads(stream)
        with _opened(source) as archive:
            names = [info.filename for info in archive.list() if wanted(info.filename)]
            source.unpacking(archive)
            archive.extract(nowhere, targets=names, factory=Sinks())


class _SmallReads(io.RawIOBase):
    """Stream of a .7z that gives py7zr no more bytes than its decompressor can use.

    py7zr reads on for every member and keeps what a decompressor cannot use yet: of many small members, the whole archive.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.blocks: dict[int, Any] = {}  # offset in the archive -> py7zr's Folder; empty until the header is read
        self.block: Any = None  # the one that is being read

    def unpacking(self, archive: Any) -> None:
        """Limit reads from now on: the header is read, and py7zr goes on to the members."""
        if (streams := archive.header.main_streams) is not None:
            places = (archive.afterheader + place for place in streams.packinfo.packpositions)
            self.blocks = dict(zip(places, streams.unpackinfo.folders, strict=False))

    def read(self, size: int = -1) -> bytes:
        if not self.blocks:
            return self.stream.read(size)
        chain = self.block and self.block.decompressor
        if chain and chain.chain and not getattr(_inner(chain.chain[0]), "needs_input", True):  # some cannot say
            size = (
                1  # not 0: what is left may not suffice for another byte, and py7zr gives up where neither side moves
            )
        return self.stream.read(min(size, READ_BYTES) if size >= 0 else READ_BYTES)

    def seek(self, offset: int, whence: int = 0) -> int:
        self.block = self.blocks.get(offset, self.block)
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _inner(decompressor: Any) -> Any:
    """Decompressor of the standard library within one of py7zr's."""
    return getattr(decompressor, "_decompressor", decompressor)
