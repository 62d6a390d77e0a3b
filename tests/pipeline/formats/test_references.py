"""Which files a file names, in every format and every way of writing it; and that no bytes at all do any harm."""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import Skip
from pipeline.formats.references import FINDERS, MAX_NAMES, companions, references
from tests import parts
from tests.conftest import put_anew


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("references")


def names(folder: Path, name: str, data: bytes | str) -> list[str]:
    path = folder / name
    put_anew(path, data.encode() if isinstance(data, str) else data)
    return references(path)


def outcome(folder: Path, name: str, data: bytes | str) -> list[str] | str:
    """The names, or the reason, which never comes without words."""
    try:
        return names(folder, name, data)
    except Skip as skip:
        return skip.reason if skip.detail else "no words"


def gltf(*uris: str) -> str:
    return json.dumps({"asset": {"version": "2.0"}, "images": [{"uri": uri} for uri in uris]})


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("it.gltf", gltf("a.png", "a%20b/%C3%A4.png", "a.png"), ["a.png", "a b/ä.png"]),
        (
            "it.gltf",
            gltf("data:image/png;base64,AAAA", "data:text/plain,x", "DATA:;base64,"),
            ["data:text/plain,x", "DATA:;base64,"],
        ),
        ("it.gltf", gltf("http://host/a.png", r"..\a.png", "C:/a.png"), ["http://host/a.png", r"..\a.png", "C:/a.png"]),
        ("it.gltf", json.dumps(parts.document()), ["box.bin", "paint.png"]),
        ("it.glb", parts.glb(parts.document(buffers=parts.INSIDE)), ["paint.png"]),
        ("it.GLTF", gltf("a.png"), ["a.png"]),
        ("it.obj", "mtllib a.mtl\nv 0 0 0\n", ["a.mtl", "it.mtl"]),
        ("it.obj", "# mtllib no.mtl\n  \tmtllib\ta b.mtl \r\nmtllib a b.mtl", ["a b.mtl", "it.mtl"]),
        ("it.obj", "mtllib a.mtl b.mtl", ["a.mtl b.mtl", "a.mtl", "b.mtl", "it.mtl"]),
        ("it.obj", 'mtllib "a b.mtl"\nmtllib \\\n  c.mtl\nusemtl mtllib d.mtl', ["a b.mtl", "c.mtl", "it.mtl"]),
        ("it.obj", b"mtllib caf\xe9.mtl", ["caf\udce9.mtl", "it.mtl"]),
        ("it.obj", "v 0 0 0", ["it.mtl"]),
        ("it.mtl", "newmtl a\nKd 1 1 1\nmap_Kd a.png\n\tmap_Ks  my wood.png  \n", ["a.png", "my wood.png"]),
        ("it.mtl", "map_Kd -s 1 1 1 -o 0.5 -0.5 -clamp on -mm 0 1 a b.png", ["a b.png"]),
        ("it.mtl", "bump -bm 0.2 -imfchan r -type sphere a.png\nmap_Bump b.png", ["a.png", "b.png"]),
        (
            "it.mtl",
            "disp a.png\ndecal b.png\nrefl -type cube_top c.png\nnorm d.png",
            ["a.png", "b.png", "c.png", "d.png"],
        ),
        ("it.mtl", 'map_d "a b.png"\nmap_Ke C:\\a\\b.png\nmap_Kd\n', ["a b.png", r"C:\a\b.png"]),
        ("it.mtl", "map_Kd -s 1 1 2.png", ["2.png"]),
        ("it.dae", parts.dae("a%20b.png"), ["a b.png"]),
        ("it.dae", parts.dae("&#46;./&lt;a&gt;.png"), ["../<a>.png"]),
        ("it.dae", parts.dae("<![CDATA[../a.png]]>"), ["../a.png"]),
        ("it.dae", parts.dae("<ref>file:///C:/a.png</ref>"), ["file:///C:/a.png"]),
        ("it.dae", parts.dae("a.png", url="other.dae#box"), ["a.png", "other.dae"]),
        ("it.dae", parts.dae("a.png").replace("utf-8", "utf-16").encode("utf-16"), ["a.png"]),
        ("it.usda", parts.usda("references = @a.usda@</it>"), ["a.usda"]),
        ("it.usda", parts.usda(layer="subLayers = [@./a.usda@, @b.usdc@]"), ["./a.usda", ",", "b.usdc"]),
        ("it.usda", parts.usda("payload = @@@a@b.usda@@@"), ["a", "b.usda"]),
        ("it.usda", parts.usda(extra="asset a = @a.png:SDF_FORMAT_ARGS:x=1@"), ["a.png"]),
        ("it.usda", parts.usda(extra="asset a = @p.usdz[0/a.png]@"), ["p.usdz[0/a.png]"]),
        ("it.usda", parts.usda(extra='string a = "one @ of two"'), []),
        ("it.usd", parts.usda("references = @a.usda@"), ["a.usda"]),
        ("it.usd", b"PXR-USDC @a.png@", []),
        ("it.usdz", parts.archive(("it.usda", b"x"), ("0/a.png", b"y")), ["it.usda", "0/a.png"]),
        ("it.fbx", parts.fbx_box(RelativeFilename=r"..\a.png", Filename="/b/a.png"), [r"..\a.png", "/b/a.png"]),
        ("it.fbx", parts.fbx_box(name="a/b.png"), ["a/b.png"]),
        ("it.fbx", parts.fbx_big_endian(b"FileName", b"S" + struct.pack(">I", 7) + b"a/b.png"), ["a/b.png"]),
        ("it.fbx", parts.fbx_box(name="Map #1", FileName="a\0"), ["a"]),
        ("it.fbx", '; FBX\n Filename: "a.png"\n RelativeFilename: "b&amp;c.png"\n', ["a.png", "b&c.png"]),
        ("it.ply", "ply\ncomment TextureFile a b.png\nend_header\ncomment TextureFile c.png\n", ["a b.png"]),
        ("it.stl", "solid mtllib a.mtl", []),
        ("it.abc", b"Ogawa @a.png@", []),
        ("it.blend", b"BLENDER//a.png", []),
        ("it.txt", "mtllib a.mtl", []),
    ],
)
def test_what_a_file_names(folder: Path, name: str, data: bytes | str, found: list[str]) -> None:
    assert names(folder, name, data) == found


def test_an_mtl_under_another_name(folder: Path) -> None:
    (folder / "paint.txt").write_text("map_Kd a.png")
    assert references(folder / "paint.txt", "mtl") == ["a.png"]


def test_names_across_the_pieces_in_which_a_file_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.formats.references.CHUNK", 11)
    for padding in range(25):
        found = names(folder, "it.obj", f"#{'x' * padding}\nmtllib a.mtl\nv 0 0 0\nmtllib b.mtl")
        assert found == ["a.mtl", "b.mtl", "it.mtl"]
        assert "a.usda" in names(folder, "it.usda", f"#usda 1.0 {'x' * padding}\n@a.usda@\n")
        assert names(folder, "it.dae", parts.dae("a.png" + " " * padding)) == ["a.png"]


def test_companions_are_below_the_root(tmp_path: Path) -> None:
    place = tmp_path / "models" / "chair"
    place.mkdir(parents=True)
    path = place / "it.gltf"
    path.write_text(
        gltf("a.png", r"..\wood\b.png", "../../c.png", "../../../d.png", "/e.png", "C:/f.png", "http://g/h.png", ".")
    )
    assert companions(path, tmp_path) == [
        PurePosixPath(name) for name in ("models/chair/a.png", "models/wood/b.png", "c.png")
    ]
    assert companions(path, place) == [PurePosixPath("a.png")]
    (place / "it.obj").write_text("mtllib x/../y.mtl\n")
    assert companions(place / "it.obj", place) == [PurePosixPath("y.mtl"), PurePosixPath("it.mtl")]
    (place / "it.usdz").write_bytes(parts.archive(("it.usda", b"x")))
    assert companions(place / "it.usdz", place) == []


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("it.gltf", "{", "broken_gltf"),
        ("it.glb", b"glTF", "truncated"),
        ("it.dae", "<a><b></a>", "broken_xml"),
        ("it.dae", '<?xml version="1.0" encoding="no-such"?><a/>', "broken_xml"),
        ("it.dae", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "xml_entities"),
        ("it.usdz", b"PK\3\4", "bad_archive"),
        ("it.obj", "".join(f"mtllib {i}\n" for i in range(MAX_NAMES + 1)), "too_complex"),
        ("it.mtl", "".join(f"map_Kd {i}\n" for i in range(MAX_NAMES + 1)), "too_complex"),
        ("it.usda", "#usda 1.0\n" + "@\n" * 200_000, "too_complex"),
        ("it.gltf", json.dumps({"images": [{"uri": str(i)} for i in range(MAX_NAMES + 1)]}), "too_complex"),
    ],
)
def test_reasons(folder: Path, name: str, data: bytes | str, reason: str) -> None:
    assert outcome(folder, name, data) == reason


def test_a_file_that_is_not_there(folder: Path) -> None:
    with pytest.raises(Skip, match=r"file_unreadable: it\.obj: No such file"):
        references(folder / "missing" / "it.obj")


SLOW = {
    "mtl": b"map_Kd " + b"-s 1 1 1 " * 200_000 + b"\n" + b"map_Kd " + b"-s" + b" 1" * 500_000,
    "obj": b"mtllib " + b" " * 2_000_000 + b"\nmtllib " + b"\\\n" * 500_000,
    "usda": b"#usda 1.0\n@" + b"x" * 4_000_000 + b"@" + b"@x" * 20_000,
    "dae": b"<a>" * 300_000,
    "fbx": b"; FBX\n" + b"Filename: " * 90_000,
    "ply": b"ply\n" + b"comment " * 500_000,
}


@pytest.mark.parametrize("suffix", SLOW)
def test_nothing_takes_long(folder: Path, suffix: str) -> None:
    start = time.process_time()  # that others are busy counts for nothing
    found = outcome(folder, f"slow.{suffix}", SLOW[suffix])
    assert isinstance(found, list) or found in ("too_complex", "broken_xml")
    assert time.process_time() - start < 6


TEXTS = (
    'mtllib map_Kd -s 1 @ @@@ " ../ a.png #usda <init_from> </init_from> <!DOCTYPE &#46; %2e {"images":[{"uri":" "}]}'
)
WORDS = st.sampled_from(
    [*TEXTS.encode().split(), b" ", b"\n", b"\\\n", b"\0\1Video", b"FilenameS", b"PK\3\4", b"glTF\2\0\0\0"]
)
BYTES = st.lists(WORDS | st.binary(max_size=6), max_size=14).map(b"".join)
STARTS = st.sampled_from(
    [b"", b"#usda 1.0\n", b"; FBX\n", parts.fbx_box(Filename="a")[:60], parts.glb(b"{}")[:20], b"PK\3\4"]
)


@settings(deadline=None, max_examples=400)
@given(suffix=st.sampled_from(sorted(FINDERS)), start=STARTS, rest=BYTES)
@example(suffix="fbx", start=b"", rest=b"Kaydara FBX Binary  \0\x1a\0" + b"\xff" * 40)
def test_any_bytes_end_in_names_or_a_reason(folder: Path, suffix: str, start: bytes, rest: bytes) -> None:
    found = outcome(folder, f"any.{suffix}", start + rest)
    assert found != "no words"
    assert isinstance(found, str) or (all(found) and len(found) == len(set(found)))


@settings(deadline=None, max_examples=200)
@given(
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=5),
    length=st.integers(0, 2000),
    made=st.sampled_from(
        [
            ("fbx", parts.fbx_box(Filename="../a.png")),
            ("usdz", parts.archive(("a.usda", parts.usda().encode()))),
            ("glb", parts.glb(parts.document(buffers=parts.INSIDE))),
            ("dae", parts.dae("a.png").encode()),
        ]
    ),
)
def test_damaged_files_end_in_names_or_a_reason(
    folder: Path, changes: list[tuple[int, int]], length: int, made: tuple[str, bytes]
) -> None:
    suffix, data = made[0], bytearray(made[1])
    for place, value in changes:
        data[place % len(data)] = value
    cut = bytes(data[: len(data) - length if length < len(data) else None])
    assert outcome(folder, f"damaged.{suffix}", cut) != "no words"


def test_names_that_are_no_text_come_back_as_they_were(folder: Path) -> None:
    (found,) = (name for name in names(folder, "it.mtl", b"map_Kd \xff\xfe.png"))
    assert os.fsencode(found) == b"\xff\xfe.png"
