"""Archives of pictures: what is in them, and chosen members of them. Nothing is ever written where a member's name points.

.zip and .tar are read in place, in any order. .tar.gz, .tgz and .7z are one compressed stream (or a few), so they are read from
front to back: `listed` for names, `walk` for names and bytes. Whoever made the archive is not trusted: a member that is
no plain file, whose name leads elsewhere, or that is larger than any picture keeps a `fault`, and reading it is refused.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import re
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from pipeline.core.errors import Skip, UserError
from pipeline.formats import seven_zip

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z")
SEQUENTIAL = (".tar.gz", ".tgz", ".7z")
MAX_MEMBER = 256_000_000  # bytes of a member: no encoded picture is larger
MAX_RATIO = 200  # unpacked to packed; pictures hardly shrink at all
RATIO_FROM = 64_000_000  # unpacked bytes; below, a ratio proves nothing
MAX_NAME = 1024  # bytes
ZIP_PLAIN = (0, stat.S_IFREG)  # file types that stand for a file: 0 where a DOS program wrote the archive
BROKEN = (*seven_zip.BROKEN, tarfile.TarError, zipfile.BadZipFile)  # what damaged archives raise


@dataclass(frozen=True)
class Member:
    """A file in an archive. name: clean, relative, with slashes. size: bytes, as declared. where: the index in a .zip or
    sequential archive, the offset of the bytes in a .tar. fault: why the member must not be read, "" if it may.
    """

    name: str
    size: int
    where: int
    fault: str = ""


def suffix_of(path: Path) -> str:
    """Return the one of SUFFIXES that a file's name ends in, or ""."""
    return max((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), key=len, default="")


def is_sequential(path: Path) -> bool:
    """True if members can only be reached from front to back."""
    return suffix_of(path) in SEQUENTIAL


def fault_of(name: str) -> str:
    """Return why a member must not have this name; "" for a relative path with slashes that stays in its folder."""
    if not name or "\0" in name:
        return "an empty name or one with NUL"
    if name.startswith("/") or "\\" in name or re.match(r"[A-Za-z]:", name):
        return f"{name[:80]!r} is absolute or not a path with slashes"
    if ".." in name.split("/"):
        return f"{name[:80]!r} leads out of its folder"
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "a name that is not UTF-8"
    if len(encoded) > MAX_NAME or any(len(part) > 255 for part in encoded.split(b"/")):
        return "a name too long for a file"
    return ""


def _member(name: str, size: int, where: int, fault: str = "") -> Member:
    fault = fault_of(name) or fault or (f"{size} bytes are no picture" if not 0 <= size <= MAX_MEMBER else "")
    clean = "/".join(part for part in name.split("/") if part not in ("", "."))
    return Member(clean, size, where, fault)


def listed(path: Path) -> Iterator[Member]:
    """Yield the files of an archive in order, faulty ones too; lazily for .tar and .tar.gz.

    Raises UserError if the archive cannot be read to its end, or was made to do harm.
    """
    try:
        match suffix_of(path):
            case ".zip":
                yield from _zip_members(path)
            case ".tar":
                with path.open("rb") as stream:
                    yield from _tar_walk(_Bounded(stream))
            case ".tar.gz" | ".tgz":
                with path.open("rb") as packed, gzip.GzipFile(fileobj=packed) as stream:
                    yield from _tar_walk(_Forward(stream, packed))
            case ".7z":
                yield from _seven_members(path)
            case _:
                raise UserError(f"{path} is no archive that is known here", f"known: {' '.join(SUFFIXES)}, or a folder")
    except BROKEN as error:
        raise UserError(
            f"{path} cannot be read: {error or type(error).__name__}", "download or pack it again"
        ) from None
    except Skip as error:
        raise UserError(f"{path}: {error}", "this archive was made to do harm; do not use it") from None


def read(path: Path, where: int, size: int) -> bytes:
    """Read a member of a .zip or .tar, given `where` and `size` of its Member. Raises Skip: broken_archive, archive_bomb."""
    if size > MAX_MEMBER:
        raise Skip("archive_bomb", f"a member of {size} bytes in {path.name}")
    try:
        if suffix_of(path) == ".zip":
            data = _zip_read(path, where, size)
        else:
            with path.open("rb") as stream:
                stream.seek(where)
                data = stream.read(size)
    except BROKEN as error:
        raise Skip("broken_archive", f"{path.name}: {error or type(error).__name__}") from None
    if len(data) != size:
        raise Skip("broken_archive", f"{path.name}: a member has {len(data)} bytes, {size} were declared")
    return data


def walk(path: Path) -> Iterator[tuple[Member, bytes]]:
    """Yield the files of a sequential archive with their bytes (b"" if faulty), in order. Holds one member at a time.

    Raises Skip: broken_archive, archive_bomb.
    """
    try:
        if suffix_of(path) == ".7z":
            yield from _seven_walk(path)
            return
        with path.open("rb") as packed, gzip.GzipFile(fileobj=packed) as stream:
            forward = _Forward(stream, packed)
            for member in _tar_walk(forward):
                yield member, b"" if member.fault else _exactly(forward, member.size)
    except BROKEN as error:
        raise Skip("broken_archive", f"{path.name}: {error or type(error).__name__}") from None


def write(folder: Path, name: str, data: bytes) -> Path:
    """Write bytes to a new file folder/name. Raises Skip("unsafe_archive") for a name that leads out of the folder."""
    fault = fault_of(name)
    target = folder / name
    if fault or not target.parent.resolve().is_relative_to(folder.resolve()):
        raise Skip("unsafe_archive", fault or f"{name!r} leads out of its folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as sink:  # never through a link that is there already
        sink.write(data)
    return target


# ---- zip


def _zip_members(path: Path) -> Iterator[Member]:
    for index, info in enumerate(_zip(path, path.stat().st_mtime_ns).infolist()):
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir() or kind == stat.S_IFDIR:
            continue
        fault = "encrypted" if info.flag_bits & 1 else "" if kind in ZIP_PLAIN else "no plain file"
        if info.file_size > RATIO_FROM / 8 and info.file_size > MAX_RATIO * max(info.compress_size, 1):
            fault = f"{info.compress_size} bytes that claim to become {info.file_size}"
        raw = info.orig_filename  # before zipfile cuts it at NUL
        yield _member(raw, info.file_size, index, fault)


@functools.lru_cache(maxsize=2)
def _zip(path: Path, mtime_ns: int) -> zipfile.ZipFile:
    """Open a .zip, and keep it open in this process: the directory of a large archive takes seconds to read."""
    return zipfile.ZipFile(path)


def _zip_read(path: Path, index: int, size: int) -> bytes:
    archive = _zip(path, path.stat().st_mtime_ns)
    with archive.open(archive.infolist()[index]) as stream:
        data = stream.read(size)
        return data if not stream.read(1) else b""  # more than declared; the second read also checks the CRC


# ---- tar


class _Bounded:
    """Stream of a plain tar that refuses to read gigabytes into memory because a header says so."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        return self.stream.read(_within_limit(size))


def _within_limit(size: int) -> int:
    if not 0 <= size <= MAX_MEMBER + tarfile.BLOCKSIZE:
        raise Skip("archive_bomb", f"a header of {size} bytes")
    return size


class _Forward:
    """Unpacking stream for tarfile: goes forward, and at most one block back. Raises Skip("archive_bomb")."""

    def __init__(self, stream: Any, packed: IO[bytes]) -> None:
        self.stream = stream
        self.packed = packed
        self.at = 0
        self.ahead = 0  # position of the stream itself
        self.last = b""

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence or offset < self.ahead - len(self.last):
            raise tarfile.ReadError("members out of order")
        while offset > self.ahead:
            if not self._pull(min(offset - self.ahead, 1 << 20)):
                break
        self.at = min(offset, self.ahead)
        return self.at

    def read(self, size: int = -1) -> bytes:
        missing = _within_limit(size)
        behind = self.ahead - self.at
        parts = [self.last[len(self.last) - behind :][:size]] if behind > 0 else []
        missing -= sum(map(len, parts))
        while missing > 0 and (block := self._pull(missing)):
            parts.append(block)
            missing -= len(block)
        data = b"".join(parts)
        self.at += len(data)
        return data

    def _pull(self, size: int) -> bytes:
        block = self.stream.read(min(size, 1 << 20))
        self.ahead += len(block)
        self.last = (self.last + block)[-tarfile.BLOCKSIZE :]
        if self.ahead > RATIO_FROM and self.ahead > MAX_RATIO * max(self.packed.tell(), 1):
            raise Skip("archive_bomb", f"{self.packed.tell()} packed bytes became {self.ahead}")
        return block


def _tar_walk(stream: Any) -> Iterator[Member]:
    """Yield members of an unpacked tar stream, which then stands at the member's bytes."""
    with tarfile.open(fileobj=stream, mode="r:", errorlevel=1) as tar:
        end = 0
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps millions of them
            end = tar.offset
            if info.isdir():
                continue
            plain = info.isreg() and not info.issparse()
            kind = "a link" if info.issym() or info.islnk() else "no plain file"
            stream.seek(info.offset_data)
            yield _member(info.name, info.size, info.offset_data, "" if plain else kind)
        stream.seek(end)  # tarfile takes a damaged header for the end
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"damaged at byte {end}")


def _exactly(stream: Any, size: int) -> bytes:
    data: bytes = stream.read(size)
    if len(data) != size:
        raise tarfile.ReadError("cut off")
    return data


# ---- 7z


def _seven_members(path: Path) -> Iterator[Member]:
    size, entries = path.stat().st_size, seven_zip.listed(path)
    total = sum(entry.size for entry in entries)
    if total > RATIO_FROM and total > MAX_RATIO * size:
        raise Skip("archive_bomb", f"{size} bytes that claim to become {total}")
    times = Counter(_member(entry.name, 0, 0).name for entry in entries)
    for index, entry in enumerate(entries):
        if not entry.is_folder:
            member = _member(entry.name, entry.size, index, entry.fault)
            twice = "a name that comes twice" if times[member.name] > 1 else ""
            yield replace(member, fault=member.fault or twice)


def _seven_walk(path: Path) -> Iterator[tuple[Member, bytes]]:
    members = {member.name: member for member in _seven_members(path) if not member.fault}
    with contextlib.closing(seven_zip.walk(path, lambda name: _member(name, 0, 0).name in members)) as files:
        for name, data in files:
            yield members[name], data
