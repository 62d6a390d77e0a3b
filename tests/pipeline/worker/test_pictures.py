"""Pictures of files keep their colours and their meaning: with alpha channels, and of kinds that Blender does not read."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import parts
from tests.conftest import Render
from tests.pipeline.worker.test_repair import is_red, mended, shown

RED = (210, 15, 15)
MTL = "newmtl paint\nKd 1 1 1\nmap_Kd paint.png\n"


def paint(path: Path, alpha: int) -> Path:
    Image.new("RGBA", (4, 4), (*RED, alpha)).save(path)
    return path


def painted(folder: Path, form: str, picture: str = "paint.png") -> Path:
    """A box whose colour is a picture."""
    made = {
        "obj": parts.obj("mtllib paint.mtl"),
        "ply": parts.painted_ply(picture),
        "dae": parts.painted_dae(picture),
        "usda": parts.painted_usda(picture),
        "fbx": parts.fbx_text(picture=picture),
        "gltf": json.dumps(parts.document(images=[{"uri": picture}])),
    }
    (folder / "box.bin").write_bytes(parts.CUBE)
    (folder / "paint.mtl").write_text(MTL.replace("paint.png", picture))
    path = folder / f"box.{form}"
    path.write_text(made[form])
    return path


@pytest.mark.parametrize("form", ["obj", "ply", "dae", "usda", "gltf"])
def test_alpha_that_nothing_asks_for_leaves_colours_alone(tmp_path: Path, render: Render, form: str) -> None:
    path = painted(tmp_path, form)
    pictures = []
    for alpha in (255, 3):
        paint(tmp_path / "paint.png", alpha)
        outcome = render(path, views=1, alpha=True)
        assert is_red(outcome)
        assert mended(outcome) == []
        pictures.append(shown(outcome).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 2


def test_alpha_of_an_fbx_is_its_opacity_wherever_its_picture_is_found(tmp_path: Path, render: Render) -> None:
    """As Blender's importer has it, which does not ask the material."""
    paint(tmp_path / "paint.png", 128)
    found = [
        render(painted(tmp_path, "fbx", name), views=1, uid="box") for name in ("paint.png", r"C:\\art\\paint.png")
    ]
    assert [mended(outcome) for outcome in found] == [[], ["links"]]
    views = [outcome.scene.by_width[64].jpegs[0] for outcome in found if outcome.scene]
    assert views[0] == views[1]
    paint(tmp_path / "paint.png", 255)
    assert is_red(render(painted(tmp_path, "fbx"), views=1, alpha=True))


@pytest.mark.parametrize("form", ["obj", "fbx", "mask", "blend"])
def test_what_pictures_make_invisible_as_a_whole_is_shown(tmp_path: Path, render: Render, form: str) -> None:
    paint(tmp_path / "paint.png", 2)
    path = painted(tmp_path, {"mask": "gltf", "blend": "gltf"}.get(form, form))
    (tmp_path / "paint.mtl").write_text(f"{MTL}map_d paint.png\n")
    if path.suffix == ".gltf":
        document = json.loads(path.read_text())
        document["materials"][0]["alphaMode"] = form.upper()
        path.write_text(json.dumps(document))
    outcome = render(path, views=1, alpha=True)
    assert is_red(outcome)
    assert mended(outcome) == ["alpha"]


def test_a_part_that_a_picture_makes_invisible_stays_so_beside_others(tmp_path: Path, render: Render) -> None:
    paint(tmp_path / "paint.png", 0)
    (tmp_path / "box.bin").write_bytes(parts.CUBE)
    green = {"pbrMetallicRoughness": {"baseColorFactor": [0, 0.6, 0, 1], "metallicFactor": 0}}
    around = {"mesh": 1, "scale": [2, 2, 2], "translation": [-0.5, -0.5, -1]}
    document = parts.document(nodes=[{"mesh": 0}, around], scenes=[{"nodes": [0, 1]}])
    shell = document["materials"][0] | {"alphaMode": "BLEND"}
    primitive = document["meshes"][0]["primitives"][0]
    document |= {"materials": [green, shell]}
    document["meshes"] = [{"primitives": [primitive]}, {"primitives": [primitive | {"material": 1}]}]
    path = tmp_path / "shell.gltf"
    path.write_text(json.dumps(document))
    outcome = render(path, views=1, alpha=True)
    assert mended(outcome) == []
    red, green_, blue = np.median(shown(outcome), axis=0)
    assert green_ > 2 * max(red, blue)


@pytest.mark.parametrize(("form", "kind"), [("obj", "GIF"), ("dae", "GIF"), ("obj", "PCX"), ("obj", "PPM")])
def test_pictures_that_blender_does_not_read_are_decoded(tmp_path: Path, render: Render, form: str, kind: str) -> None:
    name = f"paint.{kind.lower()}"
    Image.new("RGB", (4, 4), RED).save(tmp_path / name, kind)
    outcome = render(painted(tmp_path, form, name), views=1, alpha=True)
    assert is_red(outcome)
    assert mended(outcome) == ["pictures"]
    assert outcome.scene is not None and outcome.scene.meta["missing_textures"] == 0


def gif() -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (4, 4), RED).save(made, "GIF")
    return made.getvalue()


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_picture_within_a_gltf_is_decoded_or_counts_as_missing(
    tmp_path: Path, render: Render, is_whole: bool
) -> None:
    picture = gif() if is_whole else gif()[:20]
    uri = "data:image/gif;base64," + base64.b64encode(picture).decode()
    path = tmp_path / "box.gltf"
    path.write_text(json.dumps(parts.document(images=[{"uri": uri}])))
    (tmp_path / "box.bin").write_bytes(parts.CUBE)
    outcome = render(path, views=1, alpha=True)
    assert mended(outcome) == (["pictures"] if is_whole else [])
    assert outcome.scene is not None and outcome.scene.meta["missing_textures"] == int(not is_whole)
    if is_whole:
        assert is_red(outcome)
    else:
        assert np.ptp(shown(outcome).astype(int), axis=1).max() < 12  # grey, where Blender shows magenta


@pytest.mark.parametrize("kind", ["GIF", "PCX", "PPM", "ICO"])
def test_broken_pictures_of_other_kinds_do_no_harm(tmp_path: Path, render: Render, kind: str) -> None:
    made = io.BytesIO()
    Image.new("RGB", (16, 16), RED).save(made, kind)
    rng, whole = np.random.default_rng(0), np.frombuffer(made.getvalue(), np.uint8)
    document = parts.document(images=[])
    material = document["materials"][0]
    document |= {"materials": [], "textures": [], "meshes": []}
    primitive = parts.document()["meshes"][0]["primitives"][0]
    for number in range(30):  # in one file, since each object costs a render
        broken = whole.copy()
        places = rng.integers(0, len(broken), 3)
        broken[places] = rng.integers(0, 256, 3)
        (tmp_path / f"{number}.{kind.lower()}").write_bytes(broken[: rng.integers(1, len(broken) + 1)].tobytes())
        document["images"].append({"uri": f"{number}.{kind.lower()}"})
        document["textures"].append({"source": number})
        colour = material["pbrMetallicRoughness"] | {"baseColorTexture": {"index": number}}
        document["materials"].append(material | {"pbrMetallicRoughness": colour})
        document["meshes"].append({"primitives": [primitive | {"material": number}]})
    document["nodes"] = [{"mesh": number, "translation": [2 * number, 0, 0]} for number in range(30)]
    document["scenes"] = [{"nodes": list(range(30))}]
    (tmp_path / "box.bin").write_bytes(parts.CUBE)
    (tmp_path / "boxes.gltf").write_text(json.dumps(document))
    outcome = render(tmp_path / "boxes.gltf", views=1)
    assert outcome.reason in ("", "image_too_large")
    assert not outcome.scene or outcome.scene.meta["missing_textures"] > 0


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("NEWMTL paint\nMAP_KD paint.png\n", "materials"),
        ("newmtl paint\nKd 0 0 0\nmap_Ka paint.png\n", "materials"),
        ("newmtl paint\rmap_Kd paint.png\r", "encoding"),
    ],
)
def test_materials_of_writers_that_blender_does_not_follow(
    tmp_path: Path, render: Render, text: str, word: str
) -> None:
    Image.new("RGB", (4, 4), RED).save(tmp_path / "paint.png")
    path = painted(tmp_path, "obj")
    (tmp_path / "paint.mtl").write_bytes(text.encode())
    outcome = render(path, views=1, alpha=True)
    assert is_red(outcome)
    assert mended(outcome) == [word]


def test_several_files_of_materials_on_one_line(tmp_path: Path, render: Render) -> None:
    Image.new("RGB", (4, 4), RED).save(tmp_path / "paint.png")
    path = painted(tmp_path, "obj")
    (tmp_path / "other.mtl").write_text("newmtl other\nKd 0 0 1\n")
    path.write_text(path.read_text().replace("mtllib paint.mtl", "mtllib other.mtl paint.mtl"))
    outcome = render(path, views=1, alpha=True)
    assert is_red(outcome)
    assert mended(outcome) == ["materials"]


@pytest.mark.parametrize("form", ["obj", "ply", "usda"])
def test_texts_whose_lines_end_as_on_old_macs(tmp_path: Path, render: Render, form: str) -> None:
    Image.new("RGB", (4, 4), RED).save(tmp_path / "paint.png")
    path = painted(tmp_path, form)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r"))
    outcome = render(path, views=1, alpha=True)
    assert is_red(outcome)
    assert mended(outcome) == ["encoding"]
