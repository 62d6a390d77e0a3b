"""Pictures in Basis Universal, which a glTF may have and Blender does not read: good ones, odd ones, and no decoder."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import Skip
from pipeline.upgrade import gltf_plain
from pipeline.worker import preflight
from tests.conftest import Render
from tests.pipeline.worker.test_gltf_features import File, is_red, pixels

# 8 x 8 pixels, as of `File.paint`, by the encoder of Basis Universal 2.50: zlib, base 85
KTX2 = {
    "ETC1S": (
        "c-mX-9TK5nWU!l;ONxsD2pEBw1BzjQ5ea7iu?`SV0b&&(-T_t90;O#j5qgk;4wPnM&|p~1$i%?RjBJNJob?|F<bgEMS>;8UC8<RW"
        "PKm{t#R{Q$nPsU(#fdozMtX(@AafYOX0igYHkw_?c8eWwfiRMo*bG#`tOl72h77_GMIH={2}}?L2RT_lR02%HBrk>;3<4mQg9wuv"
        "M9~B@rUNVuV5SmK3IM4$AfN"
    ),
    "UASTC": (
        "c-mX-9TK5nWU!l;ONxsD2pEBw1BzjQ5sE<|1Bi8icnXw82M3_E0~!re%fz6;u#Az3fti_sK>)6+9?tp?1oA){=&bUh%#ze12B*a0"
        "%wmPmyv(xHqT<9H1tUE}0|o{bkS?IM?^3K!>mNLa>lbHz`m5feof*a_Bo6?!&Lyn"
    ),
    "UASTC, zstd, four levels": (
        "c-mX-9TK5nWU!l;ONxsD2pEBw1Bzh)B*p^7OhCK=h;@MY4iKv_U;=MO2n~~SfYL@#aY-m&07^^Z5NE(4t^=i+7&I7`F)}eQGb8C?"
        "sE4!u1A#oqJs}b0MVTe3MGQ`f#hJwlp?R5QsYS(!ISNL4h6W4_8e8@MDhM<(Fo=t=eu;NwWP}+2m#CiPrnGlSP|?T#AHWbUA>6>`"
        "(a4iI*~RNtPFh+TM2Ev&28M?3QmjwwA3SFeXMOss-l84oM(0F>&mYAL7y(svKfC"
    ),
}


def ktx2(name: str) -> bytes:
    return zlib.decompress(base64.b85decode(KTX2[name]))


def with_ktx2(data: bytes, outside: Path | None = None) -> File:
    """A box that has this picture alone, within the file or in one of its own."""
    file = File()
    file.paint()
    file.use("KHR_texture_basisu")
    file.json["images"] = [
        {"uri": outside.name} if outside else {"bufferView": file.view(data), "mimeType": "image/ktx2"}
    ]
    file.json["textures"] = [{"extensions": {"KHR_texture_basisu": {"source": 0}}}]
    if outside:
        outside.write_bytes(data)
    return file


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("name", KTX2)
def test_pictures_in_basis_universal(name: str, outside: bool, tmp_path: Path, render: Render) -> None:
    pytest.importorskip("opengl_basisu")
    file = with_ktx2(ktx2(name), tmp_path / "it.ktx2" if outside else None)
    outcome = render(file.write(tmp_path / "box.gltf"), alpha=True)
    assert outcome.scene is not None, f"{outcome.reason}: {outcome.detail}"
    assert is_red(outcome)
    assert (outcome.scene.meta["mended"], outcome.scene.meta["missing_textures"]) == (["ktx2"], 0)


def test_a_picture_in_basis_universal_whose_other_one_is_not_there(tmp_path: Path, render: Render) -> None:
    pytest.importorskip("opengl_basisu")
    file = with_ktx2(ktx2("ETC1S"))
    file.json["images"].append({"uri": "gone.png"})
    file.json["textures"][0]["source"] = 1
    outcome = render(file.write(tmp_path / "box.gltf"), alpha=True)
    assert is_red(outcome)


def test_basis_universal_without_its_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gltf_plain, "READS_BASIS", False)
    with pytest.raises(Skip, match="install opengl-basisu") as caught:
        preflight.prepare(with_ktx2(ktx2("UASTC")).write(tmp_path / "box.gltf"))
    assert caught.value.reason == "unsupported_extension"


def changed(data: bytes, layout: str, at: int, *values: int) -> bytes:
    return data[:at] + struct.pack(layout, *values) + data[at + struct.calcsize(layout) :]


UASTC = ktx2("UASTC, zstd, four levels")
ODD = {  # that say what is not so; 80: the table of levels, with an offset, bytes and unpacked bytes of each
    "cut off in the head": UASTC[:30],
    "cut off in the table": UASTC[:90],
    "cut off in the pixels": UASTC[:-9],
    "a bomb": changed(UASTC, "<Q", 96, 2**33),
    "a bomb by its sides": changed(UASTC, "<II", 20, 16384, 16384),
    "levels elsewhere": changed(UASTC, "<Q", 80, 2**40),
    "ends of levels that leave 64 bits": changed(UASTC, "<QQ", 80, 2**64 - 1, 2**64 - 1),
    "four billion levels": changed(UASTC, "<I", 40, 2**32 - 1),
    "no width": changed(UASTC, "<I", 20, 0),
    "no words": ktx2("ETC1S")[:-60] + bytes(60),
    "words of a length that is not there": changed(ktx2("ETC1S"), "<QQ", 64, 90, 2**62),
    "another kind of pixels": changed(UASTC, "<I", 12, 37),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_ktx2_pictures_are_refused_by_name(name: str, tmp_path: Path, render: Render) -> None:
    pytest.importorskip("opengl_basisu")
    outcome = render(with_ktx2(ODD[name]).write(tmp_path / "box.gltf"), alpha=True)
    assert (outcome.reason, "cannot be decoded" in outcome.detail) == ("unsupported_extension", True)


def test_a_ktx2_picture_that_is_not_there_counts_as_missing(tmp_path: Path, render: Render) -> None:
    pytest.importorskip("opengl_basisu")
    path = tmp_path / "it.ktx2"
    file = with_ktx2(UASTC, path)
    path.unlink()
    outcome = render(file.write(tmp_path / "box.gltf"), alpha=True)
    assert outcome.scene is not None, f"{outcome.reason}: {outcome.detail}"
    assert (outcome.scene.meta["missing_textures"], outcome.scene.meta.get("mended")) == (1, None)
    assert np.ptp(pixels(outcome).astype(int), 1).max() < 12  # grey


def test_a_ktx2_picture_that_is_too_large(tmp_path: Path, render: Render) -> None:
    uri = tmp_path / "it.ktx2"
    file = with_ktx2(changed(UASTC, "<II", 20, 2**16, 2**16), uri)
    assert render(file.write(tmp_path / "box.gltf")).reason == "image_too_large"
