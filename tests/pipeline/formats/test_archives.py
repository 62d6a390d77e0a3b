"""Archives by people whom nobody knows: what is listed, what is read, and that nothing is ever written elsewhere."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import os
import re
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import py7zr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import Skip, UserError
from pipeline.formats import archives, seven_zip
from tests.conftest import put_anew
from tests.importing import seven_zipped, tarred, zipped

FILES = {"a/000.png": b"one" * 100, "a/000.npy": b"", "b c/000.png": os.urandom(5000), "ü/001.png": b"x"}
PACK: dict[str, Callable[[Path, Mapping[str, bytes]], Path]] = {
    ".zip": zipped,
    ".tar": tarred,
    ".tar.gz": tarred,
    ".tgz": tarred,
    ".7z": seven_zipped,
}


@pytest.fixture(autouse=True)
def canary(tmp_path: Path) -> Iterator[Path]:
    """Files around the folders that archives are unpacked into; they have to be as they were afterwards."""
    outside = [tmp_path / "canary", Path("/tmp/lvsm-data-canary")]
    for path in outside:
        path.write_bytes(b"alive")
    before = set(tmp_path.iterdir())
    yield tmp_path / "canary"
    assert all(path.read_bytes() == b"alive" for path in outside)
    new = {path.name for path in tmp_path.iterdir()} - {path.name for path in before}
    assert not {name for name in new if "evil" in name}
    outside[1].unlink()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("unpack")]


def pack(folder: Path, suffix: str, files: Mapping[str, bytes] = FILES) -> Path:
    return PACK[suffix](folder / f"archive{suffix}", files)


def content(path: Path) -> dict[str, bytes]:
    """Name -> bytes of the members without a fault, read the way the archive allows."""
    if archives.is_sequential(path):
        return {member.name: data for member, data in archives.walk(path) if not member.fault}
    return {
        member.name: archives.read(path, member.where, member.size)
        for member in archives.listed(path)
        if not member.fault
    }


def faults(path: Path) -> list[str]:
    return [member.fault for member in archives.listed(path)]


# ---- good ones


@pytest.mark.parametrize("suffix", PACK)
def test_what_went_in_comes_out(tmp_path: Path, suffix: str) -> None:
    path = pack(tmp_path, suffix)
    assert archives.suffix_of(path) == suffix
    members = list(archives.listed(path))
    assert {member.name: member.size for member in members} == {name: len(data) for name, data in FILES.items()}
    assert not any(member.fault for member in members)
    assert content(path) == FILES


def test_folders_are_no_files(tmp_path: Path) -> None:
    for suffix in (".zip", ".tar", ".7z"):
        (tmp_path / "in" / "empty").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "one.png").write_bytes(b"1")
        path = tmp_path / f"folders{suffix}"
        if suffix == ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.write(tmp_path / "in" / "empty", "empty")
                archive.write(tmp_path / "in" / "one.png", "./one.png")
        elif suffix == ".tar":
            with tarfile.open(path, "w") as tar:
                tar.add(tmp_path / "in", ".")
        else:
            with py7zr.SevenZipFile(path, "w") as seven:
                seven.writeall(tmp_path / "in", "in")
        assert [member.name.removeprefix("in/") for member in archives.listed(path)] == ["one.png"]


def test_a_7z_of_many_blocks_and_methods(tmp_path: Path) -> None:
    path = tmp_path / "blocks.7z"
    for i, filters in enumerate([None, [{"id": py7zr.FILTER_COPY}], [{"id": py7zr.FILTER_ZSTD, "level": 3}]]):
        with py7zr.SevenZipFile(path, "a" if i else "w", filters=filters) as seven:
            for j in range(3):
                seven.writestr(bytes([i, j]) * 1000, f"{i}/{j:03d}.png")
    assert [member.name for member, _ in archives.walk(path)] == [
        f"{i}/{j:03d}.png" for i in range(3) for j in range(3)
    ]
    assert content(path)["1/002.png"] == bytes([1, 2]) * 1000


def test_walking_stops_where_nobody_listens(tmp_path: Path) -> None:
    path = pack(tmp_path, ".7z", {f"{i:03d}.png": os.urandom(1000) for i in range(50)})
    members = archives.walk(path)
    assert next(members)[0].name == "000.png"
    members.close()  # type: ignore[attr-defined]  # the fixture sees to the thread


class Rearranged:
    """A decompressor of a py7zr that wraps the standard library's under another name."""

    def __init__(self, filters: object, unpacksize: int) -> None:
        self.wrapped = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)  # type: ignore[arg-type]

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self.wrapped.decompress(data, max_length)


@pytest.mark.parametrize("gone", ["_decompressor", "packpositions"])
def test_another_py7zr_is_refused_by_its_version(gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Internals that bound the memory must not be missed in silence."""
    path = pack(tmp_path, ".7z")
    seven_zip.library.cache_clear()
    if gone == "_decompressor":
        monkeypatch.setattr(py7zr.compressor, "LZMA1Decompressor", Rearranged)
    else:
        monkeypatch.delattr(py7zr.archiveinfo.PackInfo, gone)
    for reading in (archives.listed, archives.walk):
        with pytest.raises(
            UserError, match=rf"py7zr {re.escape(py7zr.__version__)} has changed .*(needs_input|{gone})"
        ):
            list(reading(path))
    monkeypatch.undo()
    assert len(list(archives.walk(path))) == len(FILES)


@pytest.mark.parametrize("kind", [py7zr.FILTER_LZMA2, py7zr.FILTER_LZMA])
def test_small_members_of_a_7z_do_not_pile_up(tmp_path: Path, kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """py7zr reads a block for each member; what it cannot use at once would stay in memory."""
    path, packed, taken = tmp_path / "many.7z", os.urandom(1_000_000), [0]
    with py7zr.SevenZipFile(path, "w", filters=[{"id": kind, "preset": 0}]) as seven:
        for i in range(1000):
            seven.writestr(packed[1000 * i : 1000 * i + 1000], f"{i // 12:04d}/{i % 12:03d}.png")
    read = seven_zip._SmallReads.read

    def counted(self: seven_zip._SmallReads, size: int = -1) -> bytes:
        data = read(self, size)
        taken[0] += len(data) if self.blocks else 0
        return data

    monkeypatch.setattr(seven_zip._SmallReads, "read", counted)
    for i, (_, data) in enumerate(archives.walk(path)):
        assert data == packed[1000 * i : 1000 * i + 1000]
        assert taken[0] < 1000 * i + 3 * seven_zip.READ_BYTES
    assert taken[0] >= 1_000_000


def test_a_decompressor_that_needs_no_input_gets_a_byte_all_the_same() -> None:
    """What it still has may not make another byte; py7zr calls an archive broken where nothing is read and nothing comes."""
    kept = SimpleNamespace(needs_input=False)
    stream = seven_zip._SmallReads(io.BytesIO(bytes(10 * seven_zip.READ_BYTES)))
    stream.blocks = {0: SimpleNamespace(decompressor=SimpleNamespace(chain=[kept]))}
    stream.seek(0)
    assert len(stream.read(1000)) == len(stream.read()) == 1
    kept.needs_input = True
    assert len(stream.read(1000)) == 1000
    assert len(stream.read()) == seven_zip.READ_BYTES


# ---- names


safe = st.lists(
    st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="/\\\0:"), min_size=1, max_size=20),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=200)
@given(safe)
def test_names_that_stay_are_taken(parts: list[str]) -> None:
    name = "/".join(parts)
    assert bool(archives.fault_of(name)) == (".." in parts or any(len(part.encode()) > 255 for part in parts))


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=40), st.sampled_from(["", "../", "/", "a/../", "C:", "..\\", "./", "//"]), st.data())
def test_no_name_leads_out(tail: str, head: str, data: st.DataObject) -> None:
    name = head + tail
    if archives.fault_of(name):
        return
    path = os.path.normpath(os.path.join("/root/folder", name))
    assert path == "/root/folder" or path.startswith("/root/folder/")
    assert "\\" not in name and "\0" not in name


BAD_NAMES = [
    "../evil",
    "a/../../evil",
    "/tmp/lvsm-data-canary",
    "C:evil",
    "c:\\evil",
    "..\\evil",
    "a\\b",
    "",
    "a\0b",
    "..",
    "a/..",
]
BAD_NAMES += ["x" * 300, "a/" * 600 + "b", "\ud800"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_have_a_fault_and_are_never_written(tmp_path: Path, name: str) -> None:
    assert archives.fault_of(name)
    (tmp_path / "into").mkdir()
    with pytest.raises(Skip, match="unsafe_archive"):
        archives.write(tmp_path / "into", name, b"evil")
    assert not list((tmp_path / "into").iterdir())


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    (into / "out").symlink_to(tmp_path)
    (into / "file").symlink_to(tmp_path / "canary")
    with pytest.raises(Skip, match="unsafe_archive"):
        archives.write(into, "out/evil", b"evil")
    with pytest.raises(FileExistsError):
        archives.write(into, "file", b"evil")


@pytest.mark.parametrize("name", ["../evil.png", "/tmp/lvsm-data-canary", "a/../../evil.png", "C:/evil.png"])
@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".7z"])
def test_members_that_lead_out(tmp_path: Path, suffix: str, name: str) -> None:
    files = {"good/000.png": b"good", "EVIL": b"evil"}
    path = pack(tmp_path, suffix, files if suffix == ".7z" else {"good/000.png": b"good", name: b"evil"})
    if suffix == ".7z":
        rename_in_7z(path, "EVIL", name)
    assert [bool(fault) for fault in faults(path)][:2] == [False, True]
    assert {name: data for name, data in content(path).items() if data} == {"good/000.png": b"good"}
    assert not (tmp_path / "evil.png").exists()


def rename_in_7z(path: Path, old: str, new: str) -> None:
    """py7zr refuses to write such a name, so its header is written a second time."""
    with py7zr.SevenZipFile(path, "a") as seven:
        for info in seven.header.files_info.files:
            if info["filename"] == old:
                info["filename"] = new
        seven.writestr(b"", "last/000.png")  # something has to be added for the header to be written
    with py7zr.SevenZipFile(path, "r") as seven:
        assert new in seven.getnames()


# ---- things that are no files


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_links_and_devices_in_a_tar(tmp_path: Path, canary: Path, suffix: str) -> None:
    more = [
        special("x/000.png", tarfile.SYMTYPE, str(canary)),
        special("x/001.png", tarfile.LNKTYPE, "../canary"),
        special("x/002.png", tarfile.FIFOTYPE),
        special("x/003.png", tarfile.CHRTYPE),
        special("x/004.png", tarfile.BLKTYPE),
    ]
    path = tarred(tmp_path / f"special{suffix}", {"good/000.png": b"good"}, *more)
    assert faults(path) == ["a link", "a link", "no plain file", "no plain file", "no plain file", ""]
    assert content(path) == {"good/000.png": b"good"}


def test_links_in_a_zip(tmp_path: Path, canary: Path) -> None:
    path = tmp_path / "links.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, kind in (("l/000.png", stat.S_IFLNK), ("f/000.png", stat.S_IFIFO), ("good/000.png", stat.S_IFREG)):
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind | 0o644) << 16
            archive.writestr(info, str(canary))
    assert faults(path) == ["no plain file", "no plain file", ""]


def test_links_in_a_7z(tmp_path: Path, canary: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "000.png").symlink_to(canary)
    (tmp_path / "in" / "001.png").write_bytes(b"good")
    path = tmp_path / "links.7z"
    with py7zr.SevenZipFile(path, "w") as seven:
        seven.writeall(tmp_path / "in", "x")
    assert sorted(faults(path)) == ["", "no plain file"]
    assert content(path) == {"x/001.png": b"good"}


# ---- bombs


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "RATIO_FROM", 1_000_000)
    zeros = {"a/000.png": bytes(5_000_000)}
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/000.png", zeros["a/000.png"])
    assert "claim to become" in faults(path)[0]
    with pytest.raises(UserError, match="archive_bomb"):
        list(archives.listed(tarred(tmp_path / "bomb.tar.gz", zeros)))
    with pytest.raises(Skip, match="archive_bomb"):
        list(archives.walk(tmp_path / "bomb.tar.gz"))
    with pytest.raises(UserError, match="archive_bomb"):
        list(archives.listed(seven_zipped(tmp_path / "bomb.7z", zeros)))
    with pytest.raises(Skip, match="archive_bomb"):
        list(archives.walk(tmp_path / "bomb.7z"))


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".7z"])
def test_members_larger_than_any_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    path = pack(tmp_path, suffix, {"a/000.png": os.urandom(3000), "b/000.png": b"good"})
    monkeypatch.setattr(archives, "MAX_MEMBER", 2000)
    assert [bool(fault) for fault in faults(path)] == [True, False]
    assert content(path) == {"b/000.png": b"good"}
    if not archives.is_sequential(path):
        with pytest.raises(Skip, match="archive_bomb"):
            archives.read(path, 0, 3000)


def test_a_pax_header_of_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tarfile reads such a header into memory; here it claims 4 GB, of which gzip makes 4 MB."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 4_000_000_000
    for path, opened in ((tmp_path / "pax.tar", open), (tmp_path / "pax.tar.gz", gzip.open)):
        with opened(path, "wb") as sink:  # type: ignore[operator]
            sink.write(info.tobuf() + bytes(4096))
        with pytest.raises(UserError, match="archive_bomb"):
            list(archives.listed(path))


def test_a_zip_member_that_is_larger_than_it_says(tmp_path: Path) -> None:
    path = zipped(tmp_path / "lies.zip", {})
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packed.compress(bytes(100_000)) + packed.flush()
    crc = zlib.crc32(bytes(100))
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, crc, len(body), 100, 5, 0) + b"a.png" + body
    entry = (
        struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 0, crc, len(body), 100, 5, 0, 0, 0, 0, 0, 0) + b"a.png"
    )
    path.write_bytes(local + entry + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(local), 0))
    (member,) = archives.listed(path)
    assert member.size == 100
    assert len(archives.read(path, member.where, member.size)) == 100  # and not a byte more


# ---- damage


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".7z"])
def test_cut_off_anywhere(tmp_path: Path, suffix: str) -> None:
    whole = pack(tmp_path, suffix, {f"{i}/000.png": os.urandom(700) for i in range(4)}).read_bytes()
    right = content(tmp_path / f"archive{suffix}")
    path = tmp_path / f"cut{suffix}"
    for length in [0, 1, 20, *range(100, len(whole), 151)]:
        put_anew(path, whole[:length])
        try:
            found = content(path)
        except (Skip, UserError):
            continue
        assert found.items() <= right.items()


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".7z"])
def test_damage_never_ends_in_another_exception(tmp_path: Path, suffix: str) -> None:
    whole = pack(tmp_path, suffix, {f"{i}/000.png": bytes(range(16)) for i in range(4)}).read_bytes()
    path = tmp_path / f"damaged{suffix}"
    step = 1 if len(whole) < 1500 else len(whole) // 300
    for at in range(0, len(whole), step):
        for value in (0, 255, whole[at] ^ 16):
            put_anew(path, whole[:at] + bytes([value]) + whole[at + 1 :])
            with contextlib.suppress(Skip, UserError):
                content(path)


def test_what_is_no_archive(tmp_path: Path) -> None:
    for suffix in PACK:
        path = tmp_path / f"text{suffix}"
        path.write_text("<html>404</html>" * 100)
        with pytest.raises(UserError, match="cannot be read"):
            list(archives.listed(path))
    with pytest.raises(UserError, match="known"):
        list(archives.listed(tmp_path / "canary"))


def test_encrypted(tmp_path: Path) -> None:
    path = tmp_path / "secret.7z"
    with py7zr.SevenZipFile(path, "w", password="x") as seven:
        seven.writestr(b"hidden", "a/000.png")
    assert faults(path) == ["encrypted"]
    with py7zr.SevenZipFile(path, "w", password="x", header_encryption=True) as seven:
        seven.writestr(b"hidden", "a/000.png")
    with pytest.raises(UserError):
        list(archives.listed(path))
