"""Files that Blender's importers fail on, each by another fault: what is mended, and what another reader makes of them."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.core import images
from pipeline.core.records import Outcome
from pipeline.worker.blender import error_line
from tests import parts
from tests.conftest import HERE, Render

BOX = [[0, 0, 0], [1, 1, 2]]  # bounds of the box that tests/parts.py writes


def meta(outcome: Outcome) -> dict[str, object]:
    """Facts of a delivered object."""
    assert outcome.scene is not None, f"{outcome.reason}: {outcome.detail}"
    return outcome.scene.meta


def colour(outcome: Outcome) -> np.ndarray:
    """Mean (3,) bytes of what is not white in any view."""
    assert outcome.scene is not None, f"{outcome.reason}: {outcome.detail}"
    pictures = np.stack([images.decode(jpeg) for jpeg in outcome.scene.by_width[64].jpegs])
    mean: np.ndarray = pictures[pictures.min(-1) < 200].mean(0)
    return mean


# ---- .blend


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("child_first", [[-0.5, -0.5, -0.5], [3.5, 0.5, 0.5]]),
        ("child_last", [[-0.5, -0.5, -0.5], [3.5, 0.5, 0.5]]),
        ("parent_left_out", [[8.5, -0.5, -0.5], [9.5, 0.5, 0.5]]),
    ],
)
def test_parents_are_there_once_and_shown_if_they_are_rendered(
    assets: Path, render: Render, name: str, raw: list[list[float]]
) -> None:
    found = meta(render(assets / f"{name}.blend"))
    np.testing.assert_allclose(found["raw_bounds"], raw, atol=1e-5)
    assert found["instances"] == (1 if name == "parent_left_out" else 2)
    assert "mended" not in found


def test_instances_of_what_is_shown_itself_too(assets: Path, render: Render) -> None:
    found = meta(render(assets / "shared_instances.blend"))
    assert found["instances"] == 2
    np.testing.assert_allclose(found["raw_bounds"], [[-0.5, -0.5, -0.5], [6.5, 0.5, 0.5]], atol=1e-5)


@pytest.mark.parametrize("how", ["one", "both", "hidden"])
@pytest.mark.parametrize("mode", ["edit", "sculpt", "weight_paint"])
def test_files_that_were_saved_in_the_midst_of_work(assets: Path, render: Render, mode: str, how: str) -> None:
    found = meta(render(assets / f"saved_in_{mode}_{how}.blend"))
    np.testing.assert_allclose(found["raw_bounds"], [[-1, -1, -1], [1, 1, 1]], atol=1e-5)
    assert found["instances"] == 2
    assert found["polygons"] == (6 + 6 * 16 if mode == "edit" else 12)  # two rounds of subdivision: its modifiers count
    assert found.get("mended") == (["edit_mode"] if mode == "edit" else None)


def test_a_text_that_was_being_edited(assets: Path, render: Render) -> None:
    assert meta(render(assets / "saved_in_edit_text.blend"))["mended"] == ["edit_mode"]


# ---- FBX


@pytest.mark.parametrize(("scale", "up", "raw"), [(1.0, 2, BOX), (100.0, 2, BOX), (100.0, 1, [[0, -2, 0], [1, 0, 1]])])
def test_an_fbx_of_text(tmp_path: Path, render: Render, scale: float, up: int, raw: list[list[int]]) -> None:
    path = tmp_path / "text.fbx"
    path.write_text(parts.fbx_text(scale, up))
    outcome = render(path)
    np.testing.assert_allclose(meta(outcome)["raw_bounds"], np.array(raw) * scale / 100, atol=1e-6)
    red, green, blue = colour(outcome)
    assert green > red + 60 and green > blue + 60
    assert "read_by" not in meta(outcome)


# ---- PLY


def ply(end: bytes, blanks: bool = False) -> bytes:
    """A red box whose lines end in `end`, its binary data as it is; blanks: more of them than need be, and tabs."""
    lines = ["ply", "format binary_little_endian 1.0", "comment  by  hand", "element vertex 8"]
    lines += [f"property float {axis}" for axis in "xyz"] + [
        f"property uchar {name}" for name in ("red", "green", "blue")
    ]
    lines += ["element face 6", "property list uchar int vertex_indices", "end_header"]
    if blanks:
        lines[3:] = [f" {line.replace(' ', chr(9) + '  ')} " for line in lines[3:-1]] + ["end_header"]
    rows = np.zeros(8, [("at", "<f4", 3), ("colour", "u1", 3)])
    rows["at"], rows["colour"] = parts.CORNERS, (200, 10, 10)
    faces = np.zeros(6, [("corners", "u1"), ("of", "<i4", 4)])
    faces["corners"], faces["of"] = 4, parts.QUADS
    return end.join(line.encode() for line in lines) + end + rows.tobytes() + faces.tobytes()


@pytest.mark.parametrize("blanks", [False, True], ids=["plain", "blanks"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
def test_headers_of_a_ply_may_have_any_blanks_and_line_ends(
    tmp_path: Path, render: Render, end: bytes, blanks: bool
) -> None:
    path = tmp_path / "box.ply"
    path.write_bytes(ply(end, blanks))
    outcome = render(path)
    np.testing.assert_allclose(meta(outcome)["raw_bounds"], BOX, atol=1e-6)
    assert meta(outcome)["polygons"] == 6
    red, green, _ = colour(outcome)
    assert red > green + 60
    assert meta(outcome).get("mended") == (["header"] if blanks or end == b"\r" else None)
    assert path.read_bytes() == ply(end, blanks)


def test_a_ply_of_text_with_returns_alone(tmp_path: Path, render: Render) -> None:
    head = ["ply", "format ascii 1.0", "element vertex 3", *(f"property float {axis}" for axis in "xyz")]
    head += ["element face 1", "property list uchar int vertex_indices", "end_header"]
    (tmp_path / "text.ply").write_bytes("\r".join([*head, "0 0 0", "1 0 0", "0 1 0.5", "3 0 1 2", ""]).encode())
    assert meta(render(tmp_path / "text.ply"))["polygons"] == 1


def test_a_ply_with_fewer_faces_than_it_says(tmp_path: Path, render: Render) -> None:
    """Blender's importer refuses the whole file; its faces can be shown, since they have all of its points."""
    head = ["ply", "format ascii 1.0", "element vertex 3", *(f"property float {axis}" for axis in "xyz")]
    head += ["element face 20", "property list uchar int vertex_indices", "end_header"]
    (tmp_path / "faces.ply").write_text("\n".join([*head, "0 0 0", "1 0 0", "0 1 0.5", *["3 0 1 2"] * 12, ""]))
    found = meta(render(tmp_path / "faces.ply"))
    assert found["read_by"] == "assimp"
    np.testing.assert_allclose(found["raw_bounds"], [[0, 0, 0], [1, 1, 0.5]], atol=1e-6)


def test_a_file_on_which_the_other_reader_crashes_ends_as_without_it(tmp_path: Path, render: Render) -> None:
    """Blender's importer refuses a face of no corners, and assimp writes where it must not."""
    head = ["ply", "format ascii 1.0", "element vertex 3", *(f"property float {axis}" for axis in "xyz")]
    head += ["element face 2", "property list uchar int vertex_indices", "end_header"]
    (tmp_path / "faces.ply").write_text("\n".join([*head, "0 0 0", "1 0 0", "0 1 0.5", "3 0 1 2", "0", ""]))
    outcome = render(tmp_path / "faces.ply")
    assert outcome.scene is not None or (outcome.reason, outcome.tries) == ("import_failed", 2)


# ---- Collada


def strips() -> str:
    """A box of triangle strips, which Blender leaves out."""
    quads = "".join(f"<p>{a} {b} {d} {c}</p>" for a, b, c, d in parts.QUADS)
    box = parts.dae("none.png").replace("triangles", "tristrips").replace('count="12"', 'count="6"')
    return re.sub("<p>.*?</p>", quads, box, flags=re.S)


def commas() -> str:
    """A box with decimal commas, as exporters wrote them on machines with such a locale."""
    box = parts.dae("none.png")
    return re.sub('(?<=id="a" count="24">)[^<]*', lambda found: found[0].replace(".", ","), box)


def painted(picture: str, texcoord: str = "") -> str:
    """A box with a texture; without coordinates named for it, Blender's parser gives the whole file up."""
    effect = (
        '<library_effects><effect id="e"><profile_COMMON><newparam sid="su"><surface type="2D"><init_from>p</init_from>'
        '</surface></newparam><newparam sid="sa"><sampler2D><source>su</source></sampler2D></newparam><technique sid="c">'
        f'<lambert><diffuse><texture texture="sa"{texcoord}/></diffuse></lambert></technique></profile_COMMON></effect>'
        '</library_effects><library_materials><material id="m"><instance_effect url="#e"/></material></library_materials>'
    )
    bind = (
        '<instance_geometry url="#box"><bind_material><technique_common><instance_material symbol="mm" target="#m"/>'
        "</technique_common></bind_material></instance_geometry>"
    )
    box = parts.dae(picture).replace("<library_geometries>", f"{effect}<library_geometries>")
    return box.replace("<triangles", '<triangles material="mm"').replace('<instance_geometry url="#box"/>', bind)


def degenerate() -> str:
    """A box with normals and triangles of one point, so many that Blender's importer writes beyond its memory."""
    normals = (
        '<source id="n"><float_array id="na" count="24">' + "0 0 1 " * 8 + "</float_array><technique_common><accessor "
        'source="#na" count="8" stride="3"><param name="X" type="float"/><param name="Y" type="float"/>'
        '<param name="Z" type="float"/></accessor></technique_common></source><vertices'
    )
    box = parts.dae("none.png").replace("<vertices", normals, 1).replace('count="12"', 'count="5012"')
    box = box.replace('offset="0"/>', 'offset="0"/><input semantic="NORMAL" source="#n" offset="0"/>')
    return box.replace("</p>", " 0 0 1" * 5000 + "</p>")


@pytest.mark.parametrize("made", [strips, commas, degenerate], ids=lambda made: made.__name__)
def test_collada_that_blender_cannot_read_is_read_by_assimp(tmp_path: Path, render: Render, made: object) -> None:
    assert callable(made)
    path = tmp_path / f"{made.__name__}.dae"
    path.write_text(made())
    outcome = render(path)
    found = meta(outcome)
    np.testing.assert_allclose(found["raw_bounds"], BOX, atol=1e-5)
    if made is degenerate:
        assert outcome.tries <= 2  # the crash, which depends on where the memory lies, and the other reader
    assert found.get("read_by") == ("assimp" if made is not degenerate or outcome.tries == 2 else None)
    assert found["polygons"] == 12


@pytest.mark.parametrize("named", ["tex/paint.png", r".\tex\paint.png", r"C:\work\paint.png"])
def test_pictures_of_what_assimp_reads(tmp_path: Path, render: Render, named: str) -> None:
    (tmp_path / "tex").mkdir()
    for place in (tmp_path, tmp_path / "tex"):
        (place / "paint.png").write_bytes(parts.png(8, 8, (10, 10, 200)))
    (tmp_path / "painted.dae").write_text(painted(named))
    outcome = render(tmp_path / "painted.dae")
    assert meta(outcome)["read_by"] == "assimp"
    red, _, blue = colour(outcome)
    assert blue > red + 60


def test_what_nobody_can_read_ends_with_the_words_of_blenders_importer(tmp_path: Path, render: Render) -> None:
    (tmp_path / "broken.dae").write_text(parts.dae("none.png").replace("triangles", "squares"))
    (tmp_path / "broken.fbx").write_bytes(b"Kaydara FBX, but for the rest" + bytes(200))
    assert render(tmp_path / "broken.dae").reason == "empty"
    outcome = render(tmp_path / "broken.fbx")
    assert outcome.reason == "import_failed"
    assert "FBX Import" in outcome.detail


# ---- USD


def test_instances_in_a_usd(tmp_path: Path, render: Render) -> None:
    place = """(
    instanceable = true
    references = </cube>
)
{
    double3 xformOp:translate = (AT, 0, 0)
    uniform token[] xformOpOrder = ["xformOp:translate"]
}
"""
    head = '#usda 1.0\n(\n    metersPerUnit = 1\n    upAxis = "Z"\n)\n'
    cube = 'def Xform "cube"\n{\n    def Cube "mesh"\n    {\n        double size = 1\n    }\n}\n'
    more = "".join(f'def "copy{at}" {place.replace("AT", str(at))}' for at in (3, 7))
    (tmp_path / "copies.usda").write_text(head + cube + more)
    found = meta(render(tmp_path / "copies.usda"))
    assert found["instances"] == 3
    np.testing.assert_allclose(found["raw_bounds"], [[-0.5, -0.5, -0.5], [7.5, 0.5, 0.5]], atol=1e-5)


def test_layers_that_are_not_there(tmp_path: Path, render: Render) -> None:
    """An object that is made of them alone has a reason that names one; of others their number is said."""
    text = "#usda 1.0\n(\n    subLayers = [@./gone.usda@]\n)\n"
    (tmp_path / "all.usda").write_text(text)
    outcome = render(tmp_path / "all.usda")
    assert (outcome.reason, "./gone.usda" in outcome.detail) == ("missing_file", True)
    (tmp_path / "part.usda").write_text(text + 'def Cube "cube"\n{\n    double size = 1\n}\n')
    assert meta(render(tmp_path / "part.usda"))["missing_layers"] == 1


@pytest.mark.parametrize("bound", ["mesh", "above", "nothing"])
def test_faces_of_a_usd_that_are_in_no_subset_keep_the_material_of_their_mesh(
    tmp_path: Path, render: Render, bound: str
) -> None:
    """The importer gives them that of the first subset, and reads no other."""
    api, kinds = (
        'prepend apiSchemas = ["MaterialBindingAPI"]',
        {"red": "(0.8, 0.02, 0.02)", "blue": "(0.02, 0.02, 0.8)"},
    )
    paints = "".join(
        f'def Material "{name}"\n{{\ntoken outputs:surface.connect = </it/{name}/S.outputs:surface>\ndef Shader "S"\n{{\n'
        f'uniform token info:id = "UsdPreviewSurface"\ncolor3f inputs:diffuseColor = {kind}\ntoken outputs:surface\n}}\n}}\n'
        for name, kind in kinds.items()
    )
    subset = (
        f'def GeomSubset "s" (\n{api}\n)\n{{\nuniform token elementType = "face"\nuniform token familyName = "materialBind"\n'
        "int[] indices = [0, 1, 2]\nrel material:binding = </it/blue>\n}\n"
    )
    red = "rel material:binding = </it/red>\n"
    text = parts.usda(api, paints + (red if bound == "above" else ""))
    text = text.replace('def Mesh "box" {', f'def Mesh "box" (\n{api}\n)\n{{\n{subset}{red if bound == "mesh" else ""}')
    (tmp_path / "it.usda").write_text(text)
    outcome = render(tmp_path / "it.usda", views=8)
    assert outcome.scene is not None, outcome.detail
    pictures = np.stack([images.decode(jpeg) for jpeg in outcome.scene.by_width[64].jpegs]).astype(int)
    red_, green, blue = pictures.reshape(-1, 3).T
    shares = (red_ - blue > 50).mean(), (blue - red_ > 50).mean(), ((abs(red_ - blue) < 8) & (green < 240)).mean()
    assert [share > 0.02 for share in shares] == [bound != "nothing", True, bound == "nothing"], shares


def of_asset(name: str) -> str:
    """A USD whose mesh is in another file, as Draco's plug-in writes it."""
    mesh = f'def Mesh "box" (\n prepend references = @{name}@\n) {{ }}'
    return f'#usda 1.0\n(\n defaultPrim = "it"\n)\ndef Xform "it"\n{{\n{mesh}\n}}\n'


@pytest.mark.parametrize("form", ["usda", "layer", "usdz"])
@pytest.mark.parametrize("name", ["./box.drc", "box.abc", "box.OBJ"])
def test_meshes_of_formats_that_blenders_usd_does_not_read(
    tmp_path: Path, render: Render, form: str, name: str
) -> None:
    (tmp_path / name).write_bytes(b"DRACO\2\2")
    path = tmp_path / f"it.{form}"
    match form:
        case "usdz":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("it.usda", of_asset(name))
                archive.write(tmp_path / name, name)
        case "layer":
            (tmp_path / "inner.usda").write_text(of_asset(name))
            path = tmp_path / "it.usda"
            path.write_text(of_asset("inner.usda"))
        case _:
            path.write_text(of_asset(name))
    outcome = render(path)
    assert outcome.reason == "unsupported_extension"
    assert name.removeprefix("./") in outcome.detail
    if form == "usda" and name != "box.OBJ":
        path.write_text(of_asset(name) + 'def Cube "cube"\n{\n    double size = 1\n}\n')
        assert meta(render(path))["missing_layers"] == 1


def test_a_binary_usd_whose_meshes_are_in_another_format(tmp_path: Path, render: Render) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "it.usd").write_text(of_asset("./box.drc"))
    subprocess.run(
        [sys.executable, "-I", HERE / "binary_usd.py", tmp_path], check=True, capture_output=True, timeout=120
    )
    for name in ("it.usd", "it.usdz"):
        outcome = render(tmp_path / "one" / name)
        assert (outcome.reason, "box.drc" in outcome.detail) == ("unsupported_extension", True), name


def test_a_usd_on_whose_colours_the_importer_crashes(tmp_path: Path, render: Render) -> None:
    """A cube, which is no mesh, with a colour for each face: shown in none."""
    colours = ", ".join(["(1, 0, 0)", "(0, 1, 0)"] * 3)
    (tmp_path / "faces.usda").write_text(
        '#usda 1.0\n(\n    metersPerUnit = 1\n    upAxis = "Z"\n)\ndef Cube "cube"\n{\n    double size = 3\n'
        f'    color3f[] primvars:displayColor = [{colours}] (\n        interpolation = "uniform"\n    )\n}}\n'
    )
    outcome = render(tmp_path / "faces.usda")
    found = meta(outcome)
    np.testing.assert_allclose(found["raw_bounds"], [[-1.5] * 3, [1.5] * 3], atol=1e-5)
    assert found.get("mended") == (
        ["attributes"] if outcome.tries == 2 else None
    )  # it depends on where the memory lies


# ---- crashes

STACK = ["Current thread 0x00007f50a3025b80 (most recent call first):", '  File "ops.py", line 109 in __call__']


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["Info: read", "Fatal Python error: Segmentation fault", *STACK], "Fatal Python error: Segmentation fault"),
        (["terminate called", "  what():  bad header", "Fatal Python error: Aborted", *STACK], "what():  bad header"),
        (["Traceback (most recent call last):", *STACK, "KeyError: 'x'"], "KeyError: 'x'"),
        (["Traceback (most recent call last):", *STACK, "numpy.AxisError: 3", "Blender quit"], "numpy.AxisError: 3"),
        (["ERROR (io.ply): no vertices", "PLY import took 1 ms"], "ERROR (io.ply): no vertices"),
    ],
)
def test_a_crash_ends_with_its_error(lines: list[str], error: str) -> None:
    assert error_line(lines) == [error]


def test_a_crash_without_an_error() -> None:
    assert error_line(["Info: read", *STACK]) == []
