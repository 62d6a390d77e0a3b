"""Pictures of files keep their colours and their meaning: with alpha channels, and of kinds that Blender does not read."""

from __future__ import annotations

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
