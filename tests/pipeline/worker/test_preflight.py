"""Every reason of the look before Blender's, and that no bytes at all end in anything but a format or a reason."""

from __future__ import annotations

import io
import json
import os
import struct
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import Skip
from pipeline.formats import headers, references
from pipeline.upgrade import folder as folders
from pipeline.worker import preflight
from tests import parts
from tests.conftest import put_anew


def glb(document: Any = None, tail: bytes = b"", version: int = 2, kind: bytes = b"JSON") -> bytes:
    """A minimal binary glTF around a JSON document; `tail` is the rest of the file (a BIN chunk)."""
    text = document if isinstance(document, bytes) else json.dumps(document or {"asset": {"version": "2.0"}}).encode()
    text += b" " * (-len(text) % 4)
    length = 20 + len(text) + len(tail)
    return struct.pack("<4sII", b"glTF", version, length) + struct.pack("<I4s", len(text), kind) + text + tail


def usdz(*members: tuple[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    """An archive with these files, not aligned as USD wants it."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, packing)  # without today's date
    return made.getvalue()


def binary_stl(triangles: int = 2) -> bytes:
    return b"a head of eighty bytes".ljust(80) + struct.pack("<I", triangles) + bytes(50 * triangles)


TEXT_STL = b"solid it\n facet normal 0 0 1\n  outer loop\n   vertex 0 0 0\n  endloop\n endfacet\nendsolid it\n"

GOOD = {
    "glb": glb(tail=struct.pack("<I4s", 4, b"BIN\0") + bytes(4)),
    "gltf": b'{"asset": {"version": "2.0"}}',
    "obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n",
    "fbx": b"Kaydara FBX Binary  \0\x1a\0" + bytes(20),
    "stl": binary_stl(),
    "ply": b"ply\nformat ascii 1.0\nend_header\n",
    "usd": b"PXR-USDC" + bytes(20),
    "usda": b"#usda 1.0\n",
    "usdc": b"PXR-USDC" + bytes(20),
    "usdz": usdz(("it.usda", b"#usda 1.0\n"), ("0/paint.png", b"\x89PNG")),
    "dae": b'<?xml version="1.0"?><COLLADA></COLLADA>',
    "abc": b"Ogawa\xff\0\1" + struct.pack("<QQ", 16, 0),
    "blend": b"BLENDER-v405",
    "procedural": b'{"seed": 1}',
}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
SUFFIXES = sorted(preflight.FORMATS)
REASONS = set(
    "unsupported_format file_empty lfs_pointer html_page wrong_magic truncated broken_gltf unsupported_extension not_a_file "
    "unsupported_version missing_file empty "
    "escapes_folder broken_xml xml_entities broken_header bad_archive too_many_polygons image_too_large archive_bomb "
    "decompression_bomb too_complex".split()
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One for the module: hypothesis calls a test often, a function's own folder is made once."""
    return tmp_path_factory.mktemp("preflight")


def look(folder: Path, name: str, data: bytes, max_polygons: int = 20_000_000) -> str:
    """The check's result: the file's format, or the reason, which always has a detail."""
    path = folder / name
    put_anew(path, data)
    try:
        return preflight.check(path, max_polygons=max_polygons)
    except Skip as skip:
        return skip.reason if skip.detail else "no words"


def test_the_table_has_every_format() -> None:
    assert set(GOOD) == preflight.FORMATS


@pytest.mark.parametrize("suffix", GOOD)
def test_good_files_pass(folder: Path, suffix: str) -> None:
    assert look(folder, f"good.{suffix}", GOOD[suffix]) == suffix
    assert look(folder, f"GOOD.2.{suffix.upper()}", GOOD[suffix]) == suffix


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("text.stl", TEXT_STL),
        ("empty_mesh.stl", binary_stl(0)),
        ("binary_named_solid.stl", b"solid" + binary_stl(3)[5:]),
        ("padded.stl", binary_stl(3) + b"trailing"),
        ("capitals.stl", TEXT_STL.upper()),
        ("text.glb", GOOD["gltf"]),
        ("binary.gltf", GOOD["glb"]),
        ("zstd.blend", b"\x28\xb5\x2f\xfd" + bytes(20)),
        ("gzip.blend", b"\x1f\x8b\x08" + bytes(20)),
        ("text.fbx", b"; FBX 7.3.0 project file\n"),
        ("text.usd", b"#usda 1.0\n"),
        ("bom.gltf", b"\xef\xbb\xbf" + GOOD["gltf"]),
        ("draco.glb", glb({"extensionsRequired": ["KHR_draco_mesh_compression"]})),
        ("used_only.glb", glb({"extensionsUsed": ["EXT_meshopt_compression"]})),
        ("padded.glb", glb() + b"after the end"),
        ("meshopt.glb", glb({"extensionsRequired": ["EXT_meshopt_compression"]})),
        ("basisu.gltf", b'{"extensionsRequired": ["KHR_texture_basisu"], "textures": [{"source": 0}]}'),
        ("later.gltf", b'{"asset": {"version": "2.1"}}'),
        ("anonymous.gltf", b"{}"),
        ("old.gltf", b'{"asset": {"version": "1.0"}, "meshes": {}}'),
        ("nul.gltf", GOOD["gltf"] + b"\0\0"),
        ("wide.gltf", GOOD["gltf"].decode().encode("utf-16")),
    ],
)
def test_good_variants_pass(folder: Path, name: str, data: bytes) -> None:
    assert look(folder, name, data) == Path(name).suffix[1:]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("picture.png", b"\x89PNG", "unsupported_format"),
        ("no_suffix", GOOD["glb"], "unsupported_format"),
        ("chair.glb.zip", b"PK\x03\x04", "unsupported_format"),
        (".glb", GOOD["glb"], "unsupported_format"),
        ("page.dae", b"\n <HTML><body>404</body></HTML>", "html_page"),
        ("page.glb", b"<!DOCTYPE html><title>rate limit exceeded</title>", "html_page"),
        ("short.glb", glb()[:19], "truncated"),
        ("cut_json.glb", glb()[:-1], "truncated"),
        ("cut_bin.glb", GOOD["glb"][:-1], "truncated"),
        ("long_chunk.glb", glb()[:12] + struct.pack("<I", 10**6) + glb()[16:], "truncated"),
        ("old.glb", glb(version=1), "broken_gltf"),  # of version 1 another number stands for JSON
        ("new.glb", glb(version=3), "unsupported_version"),
        ("new.gltf", b'{"asset": {"version": "3.0"}}', "unsupported_version"),
        ("older.gltf", b'{"asset": {"version": "0.8"}, "meshes": {}}', "unsupported_version"),
        ("newer.gltf", b'{"asset": {"version": "2.1", "minVersion": "2.1"}}', "unsupported_version"),
        ("bin_first.glb", glb(kind=b"BIN\0"), "broken_gltf"),
        ("not_json.glb", glb(b"{asset}"), "broken_gltf"),
        ("list.glb", glb(b"[1, 2]"), "broken_gltf"),
        ("list.gltf", b"[]", "broken_gltf"),
        ("cut.gltf", GOOD["gltf"][:-1], "broken_gltf"),
        ("latin.gltf", b'{"asset": "\xff\xfe"}', "broken_gltf"),
        ("vendor.glb", glb({"extensionsRequired": ["ACME_shape"]}), "unsupported_extension"),
        ("basisu.gltf", b'{"extensionsRequired": ["KHR_texture_basisu"], "textures": [{}]}', "unsupported_extension"),
        ("short.stl", binary_stl()[:83], "truncated"),
        ("cut.stl", binary_stl()[:-1], "truncated"),
        ("cut_text.stl", b"solid it\n", "truncated"),
        ("cut_within.stl", TEXT_STL[: TEXT_STL.index(b"endloop") - 3], "truncated"),
        ("cut_named_solid.stl", b"solid" + binary_stl(3)[5:-1], "truncated"),
        ("hdf5.abc", b"\x89HDF\r\n\x1a\n" + bytes(20), "unsupported_format"),
        ("zip.stl", b"PK\x03\x04" + bytes(200), "wrong_magic"),
        ("gz.obj", b"\x1f\x8b\x08\0", "wrong_magic"),
        ("picture.obj", b"\xff\xd8\xff\xe0\0\x10JFIF", "wrong_magic"),
        ("blend.obj", b"BLENDER-v405" + bytes(9), "wrong_magic"),  # never opened where --allow-blend is not asked
        ("no_facet.stl", b"solid it\nendsolid it\n", "empty"),
    ],
)
def test_each_reason(folder: Path, name: str, data: bytes, reason: str) -> None:
    assert look(folder, name, data) == reason


@pytest.mark.parametrize("content", sorted({*GOOD} - {"blend", "procedural", "usd"}))
def test_a_file_is_what_its_content_says(folder: Path, content: str) -> None:
    """Whatever its name says, except that a .blend has to be asked for and that a text of one JSON format is one of it."""
    data = {"stl": TEXT_STL, "dae": b'<?xml version="1.0"?>\n<COLLADA version="1.4.1"></COLLADA>'}.get(
        content, GOOD[content]
    )
    for suffix in sorted({*GOOD} - {"blend", "procedural"}):
        found = look(folder, f"misnamed.{suffix}", data)
        if {content, suffix} <= {"glb", "gltf"} or {content, suffix} <= {"usd", "usda", "usdc"}:
            assert found in (suffix, "wrong_magic")
        else:
            assert found == content, suffix


@pytest.mark.parametrize(
    "head", [b"v 1 2 3\n" * 9, b"\n" * 4000, b"# " * 2000, b"v " * 2000, b"  \r\n" * 900, b"v 1 1 " * 700]
)
def test_what_a_file_is_takes_no_time_to_say(head: bytes) -> None:
    start = time.thread_time()
    assert headers.kind(head) in ("", "obj")
    assert time.thread_time() - start < 1  # what grows with the square of the length takes minutes


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reasons_of_every_format(folder: Path, suffix: str) -> None:
    assert look(folder, f"empty.{suffix}", b"") == "file_empty"
    assert look(folder, f"pointer.{suffix}", LFS) == "lfs_pointer"
    assert look(folder, f"page.{suffix}", b"<!doctype html>") == "html_page"


@pytest.mark.parametrize("suffix", sorted(preflight.MAGIC))
def test_another_formats_bytes_are_the_wrong_magic(folder: Path, suffix: str) -> None:
    assert look(folder, f"other.{suffix}", b"\x7fELF" + bytes(100)) == "wrong_magic"
    assert look(folder, f"cut.{suffix}", GOOD[suffix][:1]) == "wrong_magic"


@pytest.mark.parametrize("length", range(1, len(GOOD["glb"])))
def test_a_glb_cut_anywhere_has_a_reason(folder: Path, length: int) -> None:
    assert look(folder, "cut.glb", GOOD["glb"][:length]) == ("wrong_magic" if length < 4 else "truncated")


@pytest.mark.parametrize(
    "text",
    [
        b'{"extensionsRequired": 5}',
        b'{"extensionsRequired": null}',
        b'{"extensionsRequired": [{"name": "A"}]}',
        b'{"extensionsRequired": [["A"]]}',
        b'{"extensionsRequired": "KHR_texture_basisu"}',
        b'{"accessors": [' + b"9" * 5000 + b"]}",  # more digits than Python turns into a number
        b"[" * 100_000,  # deeper than Python's stack
        b'{"a":' * 100_000,
    ],
    ids=["number", "null", "objects", "lists", "text", "digits", "deep_list", "deep_object"],
)
def test_odd_json_ends_in_a_format_or_a_reason(folder: Path, text: bytes) -> None:
    assert look(folder, "odd.gltf", text) in ("gltf", "broken_gltf", "unsupported_extension")
    assert look(folder, "odd.glb", glb(text)) in ("glb", "broken_gltf", "unsupported_extension")


# ---- what an object may read


COPY = "a copy"  # that names nothing outside of the folder


def judge(path: Path, root: Path | None = None) -> str:
    """`look`, for a file that exists already; COPY in place of its format if Blender is not to see what it names."""
    staging = path.parent / "staging"
    try:
        checked = preflight.prepare(path, root, scratch=staging)
    except Skip as skip:
        return skip.reason if skip.detail else "no words"
    if checked.path == path:
        return checked.format
    inside = Path(os.path.realpath(root or path.parent))
    for copy in sorted(checked.path.parent.iterdir()):
        for name in references.references(copy):
            found = Path(os.path.realpath(copy.parent / os.path.normpath(name.replace("\\", "/"))))
            assert not found.exists() or found.is_relative_to(inside), f"{copy.name} names {name}"
    return COPY


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """root/models/chair for an object; pictures in root and beside root."""
    (tmp_path / "root" / "models" / "chair").mkdir(parents=True)
    for place in ("", "root", "root/models/chair"):
        (tmp_path / place / "wood.png").write_bytes(parts.png(2, 2, (90, 60, 30)))
    return tmp_path / "root"


def write_gltf(tree: Path, uri: str) -> Path:
    path = tree / "models" / "chair" / "it.gltf"
    path.write_text(json.dumps({"asset": {"version": "2.0"}, "images": [{"uri": uri}]}))
    return path


@pytest.mark.parametrize(
    ("uri", "with_root", "alone"),
    [
        ("wood.png", "gltf", "gltf"),
        ("./wood.png", "gltf", "gltf"),
        ("missing.png", "gltf", "gltf"),
        ("wood%2Epng", "gltf", "gltf"),
        ("../../wood.png", "gltf", COPY),
        (r"..\..\wood.png", "gltf", COPY),
        ("../missing.png", "gltf", "gltf"),
        ("../../../wood.png", COPY, COPY),
        ("../../../missing.png", "gltf", "gltf"),
        ("../../../root/wood.png", "gltf", COPY),
        ("C:/wood.png", COPY, COPY),  # found by its base name
        (r"\\server\share\wood.png", COPY, COPY),
        ("/nowhere/wood.png", COPY, COPY),
        ("C:/other.png", "gltf", "gltf"),
        ("http://host/wood.png", COPY, COPY),
        ("data:image/png;base64,AAAA", "gltf", "gltf"),
        ("\ud800.png", "gltf", "gltf"),
    ],
)
def test_a_gltf_reads_below_its_root_alone(tree: Path, uri: str, with_root: str, alone: str) -> None:
    path = write_gltf(tree, uri)
    assert (judge(path, tree), judge(path)) == (with_root, alone)


def test_a_picture_that_may_not_be_read_is_missing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gltf(tree, "wood.png")
    (path.parent / "wood.png").write_bytes(parts.png(60000, 60000, (0, 0, 0), honest=False))
    assert judge(path) == "image_too_large"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert judge(path) == "gltf"


def test_links_are_followed_before_they_are_judged(tree: Path, tmp_path: Path) -> None:
    chair = tree / "models" / "chair"
    path = write_gltf(tree, "link.png")
    (chair / "link.png").symlink_to(tree / "wood.png")
    assert (judge(path, tree), judge(path)) == ("gltf", COPY)
    (tmp_path / "way_in").symlink_to(tree)
    assert judge(tmp_path / "way_in" / "models" / "chair" / "it.gltf", tmp_path / "way_in") == "gltf"
    assert judge(tmp_path / "way_in" / "models" / "chair" / "it.gltf", tree) == "gltf"
    (tree / "alias.gltf").symlink_to(path)
    assert judge(tree / "alias.gltf", tree) == COPY  # it names what lies beside the file that it leads to
    assert judge(tree / "alias.gltf", chair) == "not_a_file"  # what it names would be looked for beside the link
    (tmp_path / "far").symlink_to(chair)
    # a picture outside, from the link's folder; one inside, from where it leads to
    for name, end in (("../wood.png", COPY), ("../../wood.png", "gltf")):
        assert judge(tmp_path / "far" / write_gltf(tree, name).name, tree) == end
    (chair / "alias.gltf").symlink_to(tmp_path / "it.gltf")
    (tmp_path / "it.gltf").write_text("{}")
    assert judge(chair / "alias.gltf", tree) == "not_a_file"
    (chair / "broken.gltf").symlink_to(chair / "missing")
    assert judge(chair / "broken.gltf", tree) == "not_a_file"
    assert judge(chair / "missing.gltf", tree) == "not_a_file"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("map_Kd wood.png", "obj"),
        ("map_Kd OUTSIDE/wood.png", COPY),
        ("map_Kd OUTSIDE/missing.png", "obj"),
        ("map_Kd ROOT/wood.png", "obj"),  # an absolute path into the object's own folders
        ("map_Kd file://OUTSIDE/wood.png", COPY),
        ("map_Kd file:///C:/wood.png", "obj"),
        ("map_Kd http://host/wood.png", COPY),
        ("map_Kd wood: the second.png", "obj"),
        (r"map_Kd C:\textures\wood.png", "obj"),
        (r"map_Kd C:\..\..\..\..\wood.png", COPY),
        (r"map_Kd ..\..\..\wood.png", COPY),
        (r"map_Kd ..\..\..\missing.png", "obj"),
        (r"map_Kd \\server\share\wood.png", "obj"),
        (r"map_Kd \\..\wood.png", COPY),
        ("map_Kd -blendu on -s 2 2 2 ../../../wood.png", COPY),
        ('map_Kd ../../."./wood.png', COPY),
        ("map_Kd " + "a/" * 600 + "wood.png", COPY),
        ("Kd 1 1 1", "obj"),
    ],
)
def test_what_exporters_leave_behind_passes_where_it_leads_nowhere(tree: Path, line: str, reason: str) -> None:
    chair = tree / "models" / "chair"
    (chair / "it.obj").write_text("mtllib it.mtl\nv 0 0 0\n")
    (chair / "it.mtl").write_text(line.replace("OUTSIDE", str(tree.parent)).replace("ROOT", str(tree)))
    assert judge(chair / "it.obj", tree) == reason


def test_an_fbx_that_would_search_a_folder_outside(tree: Path) -> None:
    """Blender's FBX reader looks through the folder of a name for a file of that name, in any case."""
    path = tree / "models" / "chair" / "it.fbx"
    for name, reason in (
        ("nowhere.png", "fbx"),
        ("../../nowhere.png", "fbx"),
        ("../../../nowhere.png", COPY),
        ("../../../no_folder/nowhere.png", "fbx"),
        (f"{tree.parent}/nowhere.png", COPY),
        (f"{tree.parent}/nowhere.png".upper(), COPY),
        ("/Users/bob/nowhere.png", "fbx"),
    ):
        path.write_bytes(parts.fbx_box(Filename=name))
        assert judge(path, tree) == reason, name


def test_names_are_followed_from_file_to_file(tree: Path) -> None:
    chair = tree / "models" / "chair"
    (chair / "a.usda").write_text(parts.usda("references = @b.usda@"))
    (chair / "b.usda").write_text(parts.usda("references = @a.usda@"))  # round and round
    assert judge(chair / "a.usda") == "usda"
    (chair / "b.usda").write_text(parts.usda("references = @../../../c.usda@"))
    assert judge(chair / "a.usda", tree) == "escapes_folder"
    (chair / "b.usda").unlink()
    assert judge(chair / "a.usda", tree) == "usda"
    (chair / "it.obj").write_text("mtllib paint.txt\n")
    (chair / "paint.txt").write_text("map_Kd ../../../wood.png")
    assert judge(chair / "it.obj", tree) == COPY


def test_an_asset_of_very_many_files(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MAX_FILES", 20)
    for index in range(20):
        (tree / f"{index}.png").touch()
    for count, reason in ((19, "gltf"), (20, "too_complex")):
        uris = [{"uri": f"{index}.png"} for index in range(count)]
        (tree / "it.gltf").write_text(json.dumps({"asset": {"version": "2.0"}, "images": uris}))
        assert judge(tree / "it.gltf") == reason


def test_a_file_that_may_not_be_read(tree: Path) -> None:
    path = write_gltf(tree, "wood.png")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("nothing is closed to root")
    assert judge(path) == "file_unreadable"


# ---- whatever the bytes are


any_start = st.sampled_from([b"", b"solid ", b"solid facet", LFS, b"<html", *(data[:12] for data in GOOD.values())])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
documents = st.dictionaries(
    st.sampled_from(["asset", "extensionsRequired", "extensionsUsed"]), json_values, max_size=3
).map(lambda document: json.dumps(document).encode())


@settings(deadline=None, max_examples=300)
@given(suffix=st.sampled_from(SUFFIXES), start=any_start, rest=st.binary(max_size=120))
def test_random_bytes_end_in_a_format_or_a_reason(folder: Path, suffix: str, start: bytes, rest: bytes) -> None:
    of_content = headers.kind(start + rest)
    assert look(folder, f"random.{suffix}", start + rest) in REASONS | {suffix, of_content}


@settings(deadline=None, max_examples=200)
@given(text=documents | st.binary(max_size=60), cut=st.integers(0, 200))
@example(text=b'{"extensionsRequired": {"KHR_texture_basisu": 1}}', cut=0)
def test_random_documents_end_in_a_format_or_a_reason(folder: Path, text: bytes, cut: int) -> None:
    data = glb(text or b"{}")
    assert look(folder, "random.glb", data[: len(data) - cut] or b"?") in REASONS | {"glb"}
    assert look(folder, "random.gltf", text) in REASONS | {"gltf", headers.kind(text)}


@settings(deadline=None, max_examples=300)
@given(
    changes=st.lists(st.tuples(st.integers(0, len(GOOD["glb"]) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    length=st.integers(1, len(GOOD["glb"])) | st.just(len(GOOD["glb"])),
)
def test_a_damaged_glb_ends_in_a_format_or_a_reason(folder: Path, changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(GOOD["glb"])
    for place, value in changes:
        data[place] = value
    assert look(folder, "damaged.glb", bytes(data[:length])) in REASONS | {"glb"}


@settings(deadline=None, max_examples=100)
@given(name=st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=20))
def test_names_of_any_letters_end_in_a_format_or_a_reason(folder: Path, name: str) -> None:
    if name not in (".", ".."):
        expected = "unsupported_format" if Path(name).suffix.lower()[1:] not in preflight.FORMATS else None
        assert expected in (None, look(folder, name, b"\x7fELF" + bytes(100)))
