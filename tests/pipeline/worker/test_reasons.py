"""What cannot be rendered ends with the right reason, and with words that say what is wrong and what helps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.worker.blender import ADVICE
from tests import parts
from tests.conftest import Render
from tests.pipeline.worker.test_pictures import RED, painted
from tests.pipeline.worker.test_repair import is_red, mended

FAR = parts.obj("") + "v {}\nv {}\nv {}\nf 9 10 11\n"
POINTS = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"


@pytest.mark.parametrize(
    ("name", "data", "reason", "words"),
    [
        ("points.obj", POINTS, "only_points", "3 points, and no face"),
        ("lines.obj", POINTS + "l 1 2\nl 2 3\n", "only_lines", "2 lines between 3 points"),
        ("nothing.dae", parts.dae("").replace('<instance_geometry url="#box"/>', ""), "empty", "nothing"),
        ("typo.usda", parts.usda().replace("def Mesh", "def = Mesh"), "import_failed", "typo.usda:"),
        pytest.param("cut.usdc", "PXR-USDC" + "\0" * 40, "import_failed", "too small to contain", id="cut.usdc"),
        ("none.ply", "ply\nformat ascii 1.0\nelement vertex 0\nend_header\n", "import_failed", "PLY Importer: "),
        ("few.gltf", None, "import_failed", "IndexError"),
        ("far_point.obj", FAR.format("1 0 0", "0 1 0", "1e5 0 0"), "tiny", "leave out what is far from the rest"),
        (
            "far_face.obj",
            FAR.format("1e4 1 0", "1e4 0 0", "1e4 0 1"),
            "tiny",
            "all faces together have 1e-07 of the square",
        ),
        ("less_far.obj", FAR.format("100 1 0", "100 0 0", "100 0 1"), "tiny", "leave out parts that lie far"),
        ("junk.fbx", "Kaydara FBX Binary  \0\x1a\0" + "\1" * 99, "import_failed", "FBX Import"),
    ],
)
def test_reasons(tmp_path: Path, render: Render, name: str, data: str | None, reason: str, words: str) -> None:
    path = tmp_path / name
    if data is None:  # places in a list that is shorter
        (tmp_path / "box.bin").write_bytes(parts.CUBE)
        document = parts.document(materials=[{}], textures=[], images=[])
        document["accessors"][0]["count"] = document["accessors"][1]["count"] = 1
        data = json.dumps(document)
    path.write_text(data)
    outcome = render(path)
    assert (outcome.scene, outcome.reason) == (None, reason)
    assert words in outcome.detail
    if reason == "import_failed":
        assert "\n" not in outcome.detail and "Traceback" not in outcome.detail
        assert outcome.detail.endswith(f"; {ADVICE}")


@pytest.mark.parametrize(
    ("form", "name"),
    [("gltf", "box.obj"), ("obj", "box.fbx"), ("usda", "box.stl"), ("usda", "box.usdz"), ("dae", "box.ply")],
)
def test_files_under_the_name_of_another_format(tmp_path: Path, render: Render, form: str, name: str) -> None:
    Image.new("RGB", (4, 4), RED).save(tmp_path / "paint.png")
    path = painted(tmp_path, form)
    outcome = render(path.rename(tmp_path / name), views=1, alpha=True)
    assert is_red(outcome)
    assert mended(outcome) == ["suffix"]
