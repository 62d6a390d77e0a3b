"""What a glTF file may ask for, feature by feature, as a red box of known size: files made here, through the real worker."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.core import images
from pipeline.core.records import Outcome
from tests.conftest import Render

QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]  # outwards
CORNERS = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float32)
BOX = CORNERS[[corner for a, b, c, d in QUADS for corner in (a, b, c, a, c, d)]]  # (36, 3), loose triangles
RED = [0.7, 0.02, 0.02, 1.0]
KINDS = {np.dtype("<f4"): 5126, np.dtype("<u2"): 5123, np.dtype("u1"): 5121, np.dtype("i1"): 5120}
SHAPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


class File:
    """A glTF under construction: one red box, to which the features below are done."""

    def __init__(self) -> None:
        self.blob = b""
        self.json: dict[str, Any] = {"asset": {"version": "2.0"}, "accessors": [], "bufferViews": [], "scene": 0}
        self.material: dict[str, Any] = {"pbrMetallicRoughness": {"baseColorFactor": RED, "metallicFactor": 0}}
        self.primitive: dict[str, Any] = {"attributes": {"POSITION": self.add(BOX)}, "material": 0}
        self.mesh: dict[str, Any] = {"primitives": [self.primitive]}
        self.node: dict[str, Any] = {"mesh": 0}
        self.json |= {"materials": [self.material], "meshes": [self.mesh], "nodes": [self.node]}
        self.json["scenes"] = [{"nodes": [0]}]

    def view(self, data: bytes, **more: Any) -> int:
        """Append bytes; the number of their view."""
        self.blob += bytes(-len(self.blob) % 4)
        self.json["bufferViews"].append({"buffer": 0, "byteOffset": len(self.blob), "byteLength": len(data), **more})
        self.blob += data
        return len(self.json["bufferViews"]) - 1

    def add(self, values: Any, kind: str = "<f4", **more: Any) -> int:
        """Append an array (N,) or (N, K), or (N, 16) of matrices; the number of its accessor."""
        array = np.asarray(values, kind)
        rows = array.reshape(len(array), -1)
        accessor = {"bufferView": self.view(rows.tobytes()), "componentType": KINDS[array.dtype], "count": len(rows)}
        accessor |= {"type": SHAPES[rows.shape[1]], "min": rows.min(0).tolist(), "max": rows.max(0).tolist(), **more}
        self.json["accessors"].append(accessor)
        return len(self.json["accessors"]) - 1

    def use(self, name: str, required: bool = True) -> None:
        """Declare an extension."""
        for kind in ("extensionsUsed", *(("extensionsRequired",) if required else ())):
            self.json.setdefault(kind, []).append(name)

    def paint(self, kind: str = "png") -> None:
        """Take the colour from a picture that is red on its left and blue on its right; all corners look at its left."""
        picture = np.full((8, 8, 3), (215, 40, 40), np.uint8)
        picture[:, 4:] = (40, 40, 215)
        data = images.encode_png(picture) if kind == "png" else images.encode_jpeg(picture, 95)
        self.json["images"] = [{"bufferView": self.view(data), "mimeType": f"image/{kind}"}]
        self.json["textures"] = [{"source": 0}]
        self.material["pbrMetallicRoughness"] = {"baseColorTexture": {"index": 0}, "metallicFactor": 0}
        self.primitive["attributes"]["TEXCOORD_0"] = self.add(np.full((36, 2), 0.2))

    def write(self, path: Path) -> Path:
        """Write it, with its buffer inside."""
        uri = "data:application/octet-stream;base64," + base64.b64encode(self.blob).decode()
        self.json["buffers"] = [{"byteLength": len(self.blob), "uri": uri}]
        path.write_text(json.dumps(self.json))
        return path


def plain(file: File) -> None:
    pass


def morph(file: File) -> None:
    file.primitive["targets"] = [{"POSITION": file.add(BOX * [2, 0, 0])}]  # its right side, by 2
    file.mesh["weights"] = [1.0]


def morph_by_sparse_accessor(file: File) -> None:
    right = np.flatnonzero(BOX[:, 0] == 1)
    sparse = {
        "count": len(right),
        "indices": {"bufferView": file.view(right.astype("<u2").tobytes()), "componentType": 5123},
        "values": {"bufferView": file.view(np.tile(np.array([2, 0, 0], "<f4"), (len(right), 1)).tobytes())},
    }
    file.json["accessors"].append(
        {"componentType": 5126, "count": 36, "type": "VEC3", "sparse": sparse, "min": [0, 0, 0], "max": [2, 0, 0]}
    )
    file.primitive["targets"] = [{"POSITION": len(file.json["accessors"]) - 1}]
    file.mesh["weights"] = [1.0]


def skin(file: File) -> None:
    """Two joints: the one of the right side stands 2 farther to the right than where it was bound."""
    right = BOX[:, 0] == 1
    file.primitive["attributes"]["JOINTS_0"] = file.add(np.stack([right, 0 * right, 0 * right, 0 * right], -1), "<u2")
    file.primitive["attributes"]["WEIGHTS_0"] = file.add(np.tile([1.0, 0, 0, 0], (36, 1)))
    bound = np.stack([np.eye(4), np.eye(4)])
    file.json["skins"] = [{"joints": [1, 2], "inverseBindMatrices": file.add(bound.transpose(0, 2, 1).reshape(2, 16))}]
    file.node["skin"] = 0
    file.json["nodes"] += [{"name": "root", "children": [2]}, {"name": "tip", "translation": [2, 0, 0]}]
    file.json["scenes"][0]["nodes"] = [0, 1]


def morph_and_skin(file: File) -> None:
    """The target moves the right side by 1, its joint by 1 more."""
    skin(file)
    file.json["nodes"][2]["translation"] = [1, 0, 0]
    file.primitive["targets"] = [{"POSITION": file.add(BOX * [1, 0, 0])}]
    file.mesh["weights"] = [1.0]


def sparse_positions(file: File) -> None:
    """Positions whose right side stands elsewhere than their buffer says."""
    right = np.flatnonzero(BOX[:, 0] == 1)
    accessor = file.json["accessors"][file.primitive["attributes"]["POSITION"]]
    accessor["sparse"] = {
        "count": len(right),
        "indices": {"bufferView": file.view(right.astype("<u2").tobytes()), "componentType": 5123},
        "values": {"bufferView": file.view((BOX[right] * [3, 1, 1]).astype("<f4").tobytes())},
    }
    accessor["max"] = [3, 1, 1]


def instancing(file: File) -> None:
    file.use("EXT_mesh_gpu_instancing")
    places = {"TRANSLATION": file.add([[0, 0, 0], [2, 0, 0]])}
    file.node["extensions"] = {"EXT_mesh_gpu_instancing": {"attributes": places}}


def hierarchy_and_mirrored(file: File) -> None:
    file.node |= {"scale": [-3, 1, 1]}
    file.json["nodes"].append({"children": [0], "rotation": [0, 0, 0, 1], "translation": [9, 9, 9]})
    file.json["scenes"][0]["nodes"] = [1]


def quantization(file: File) -> None:
    file.use("KHR_mesh_quantization")
    file.primitive["attributes"]["POSITION"] = file.add(BOX * [3, 1, 1], "<u2")


def quantized_and_normalized(file: File) -> None:
    file.use("KHR_mesh_quantization")
    file.primitive["attributes"]["POSITION"] = file.add(BOX * 127, "i1", normalized=True)
    file.node["scale"] = [3, 1, 1]


def indices_and_strips(file: File) -> None:
    """One side as a strip of two triangles, the others as a list."""
    file.primitive["indices"] = file.add(np.arange(6, 36), "<u2")
    strip = dict(file.primitive, mode=5, indices=file.add([0, 1, 5, 2], "<u2"))
    file.mesh["primitives"].append(strip)


def interleaved(file: File) -> None:
    rows = np.concatenate([BOX, np.tile([0.0, 1, 0], (36, 1))], 1).astype("<f4")
    view = file.view(rows.tobytes(), byteStride=24)
    attributes = file.primitive["attributes"]
    for name, offset in (("POSITION", 0), ("NORMAL", 12)):
        ends = {"min": [0, 0, 0], "max": [1, 1, 1]} if name == "POSITION" else {}
        kind = {"bufferView": view, "byteOffset": offset, "componentType": 5126, "count": 36, "type": "VEC3"}
        file.json["accessors"].append(kind | ends)
        attributes[name] = len(file.json["accessors"]) - 1


def texture(file: File) -> None:
    file.paint()


def texture_jpeg(file: File) -> None:
    file.paint("jpeg")


def texture_webp(file: File) -> None:
    """A picture that only an extension names."""
    file.paint()
    file.use("EXT_texture_webp")
    picture = cv2.imdecode(np.frombuffer(file.blob[file.json["bufferViews"][1]["byteOffset"] :], np.uint8), 1)
    webp = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
    file.json["images"] = [{"bufferView": file.view(webp), "mimeType": "image/webp"}]
    file.json["textures"] = [{"extensions": {"EXT_texture_webp": {"source": 0}}}]


def texture_ktx2_beside_another(file: File) -> None:
    """The one in Basis Universal is broken, and nobody has to read it."""
    file.paint()
    file.use("KHR_texture_basisu", required=False)
    file.json["images"].append({"bufferView": file.view(b"\xabKTX 20\xbb\r\n\x1a\n"), "mimeType": "image/ktx2"})
    file.json["textures"] = [{"source": 0, "extensions": {"KHR_texture_basisu": {"source": 1}}}]


def texture_transform(file: File) -> None:
    """Corners look at the blue half, and are moved to the red one."""
    file.paint()
    file.use("KHR_texture_transform")
    file.primitive["attributes"]["TEXCOORD_0"] = file.add(np.full((36, 2), 0.8))
    moved = {"KHR_texture_transform": {"offset": [-0.6, 0]}}
    file.material["pbrMetallicRoughness"]["baseColorTexture"]["extensions"] = moved


def second_texture_coordinates(file: File) -> None:
    file.paint()
    file.primitive["attributes"]["TEXCOORD_1"] = file.primitive["attributes"]["TEXCOORD_0"]
    file.primitive["attributes"]["TEXCOORD_0"] = file.add(np.full((36, 2), 0.8))
    file.material["pbrMetallicRoughness"]["baseColorTexture"]["texCoord"] = 1


def vertex_colours(file: File) -> None:
    del file.primitive["material"]
    file.primitive["attributes"]["COLOR_0"] = file.add(np.tile(RED[:3], (36, 1)))


def vertex_colours_and_white_material(file: File) -> None:
    file.material["pbrMetallicRoughness"]["baseColorFactor"] = [1, 1, 1, 1]
    file.primitive["attributes"]["COLOR_0"] = file.add(np.tile([180, 5, 5, 255], (36, 1)), "u1", normalized=True)


def unlit(file: File) -> None:
    file.use("KHR_materials_unlit")
    file.material["extensions"] = {"KHR_materials_unlit": {}}


def surface(name: str, **values: Any) -> Callable[[File], None]:
    """A material's extension that must not hide the base colour."""

    def add(file: File) -> None:
        file.use(name, required=False)
        file.material["extensions"] = {name: values}

    return add


def specular_glossiness(file: File) -> None:
    file.use("KHR_materials_pbrSpecularGlossiness", required=False)
    del file.material["pbrMetallicRoughness"]
    values = {"diffuseFactor": RED, "specularFactor": [0, 0, 0], "glossinessFactor": 0}
    file.material["extensions"] = {"KHR_materials_pbrSpecularGlossiness": values}


def emissive(file: File) -> None:
    file.material |= {"emissiveFactor": RED[:3], "pbrMetallicRoughness": {"baseColorFactor": [0, 0, 0, 1]}}


def variants(file: File) -> None:
    file.use("KHR_materials_variants", required=False)
    file.json["extensions"] = {"KHR_materials_variants": {"variants": [{"name": "blue"}]}}
    file.json["materials"].append({"pbrMetallicRoughness": {"baseColorFactor": [0, 0, 1, 1]}})
    other = {"mappings": [{"material": 1, "variants": [0]}]}
    file.primitive["extensions"] = {"KHR_materials_variants": other}


def lights_and_cameras(file: File) -> None:
    """A blue lamp and a camera of the file are not the dataset's."""
    file.use("KHR_lights_punctual", required=False)
    lamp = {"type": "point", "color": [0, 0, 1], "intensity": 1e5}
    file.json["extensions"] = {"KHR_lights_punctual": {"lights": [lamp]}}
    file.json["cameras"] = [{"type": "perspective", "perspective": {"yfov": 1, "znear": 0.1}}]
    file.json["nodes"] += [
        {"translation": [0, 3, 0], "extensions": {"KHR_lights_punctual": {"light": 0}}},
        {"camera": 0},
    ]
    file.json["scenes"][0]["nodes"] = [0, 1, 2]


def alpha_mask(file: File) -> None:
    file.material |= {"alphaMode": "MASK", "alphaCutoff": 0.5}


def alpha_that_is_opaque(file: File) -> None:
    """The mode says that alpha does not count."""
    file.material["pbrMetallicRoughness"]["baseColorFactor"] = [*RED[:3], 0.1]


def animation(file: File) -> None:
    """Its first frame: the box in its place."""
    times, places = file.add([0.0, 1.0]), file.add([[0, 0, 0], [50.0, 0, 0]])
    sampler = {"input": times, "output": places, "interpolation": "LINEAR"}
    channel = {"sampler": 0, "target": {"node": 0, "path": "translation"}}
    file.json["animations"] = [{"samplers": [sampler], "channels": [channel]}]


def a_second_scene(file: File) -> None:
    """The scene that the file shows is the second one."""
    file.json["nodes"].append({"mesh": 0, "translation": [20, 0, 0]})
    file.json |= {"scenes": [{"nodes": [1]}, {"nodes": [0]}], "scene": 1}


def invisible_node(file: File) -> None:
    file.use("KHR_node_visibility", required=False)
    hidden = {"mesh": 0, "translation": [20, 0, 0], "extensions": {"KHR_node_visibility": {"visible": False}}}
    file.json["nodes"].append(hidden)
    file.json["scenes"][0]["nodes"] = [0, 1]


WIDE = {
    morph,
    morph_and_skin,
    morph_by_sparse_accessor,
    skin,
    sparse_positions,
    instancing,
    hierarchy_and_mirrored,
    quantization,
    quantized_and_normalized,
}
FEATURES: dict[str, Callable[[File], None]] = {
    made.__name__: made
    for made in (
        *(plain, *sorted(WIDE, key=lambda made: made.__name__), indices_and_strips, interleaved),
        *(texture, texture_jpeg, texture_webp, texture_ktx2_beside_another),
        *(texture_transform, second_texture_coordinates),
        *(vertex_colours, vertex_colours_and_white_material, unlit, specular_glossiness, emissive, variants),
        *(lights_and_cameras, alpha_mask, alpha_that_is_opaque, animation, a_second_scene, invisible_node),
    )
} | {
    "sheen": surface("KHR_materials_sheen", sheenColorFactor=[0.2, 0, 0], sheenRoughnessFactor=0.5),
    "clearcoat": surface("KHR_materials_clearcoat", clearcoatFactor=0.3),
    "specular": surface("KHR_materials_specular", specularFactor=0.2),
    "ior": surface("KHR_materials_ior", ior=1.3),
    "iridescence": surface("KHR_materials_iridescence", iridescenceFactor=0.1),
    "transmission": surface("KHR_materials_transmission", transmissionFactor=0.1),
    "volume": surface("KHR_materials_volume", thicknessFactor=0.1, attenuationDistance=9, attenuationColor=[1, 1, 1]),
    "emissive strength": surface("KHR_materials_emissive_strength", emissiveStrength=2),
    "anisotropy": surface("KHR_materials_anisotropy", anisotropyStrength=0.5),
    "dispersion": surface("KHR_materials_dispersion", dispersion=0.1),
    "an extension that nobody knows": surface("ACME_materials_mood", mood="good"),
}


@pytest.mark.parametrize("name", FEATURES)
def test_a_red_box_is_a_red_box(name: str, tmp_path: Path, render: Render) -> None:
    file = File()
    FEATURES[name](file)
    outcome = render(file.write(tmp_path / "box.gltf"), alpha=True)
    assert outcome.scene is not None, f"{outcome.reason}: {outcome.detail}"
    low, high = np.array(outcome.scene.meta["raw_bounds"])
    wide = 3 if FEATURES[name] in WIDE else 1
    np.testing.assert_allclose(high - low, [wide, 1, 1], atol=0.03)
    assert is_red(outcome)
    assert outcome.scene.meta["animated"] == (name == "animation")


DRACO = """
import sys, bpy
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.import_scene.gltf(filepath=sys.argv[1])
bpy.ops.export_scene.gltf(filepath=sys.argv[2], export_format="GLB", export_draco_mesh_compression_enable=True)
"""


def test_draco(tmp_path: Path, render: Render) -> None:
    """A box that Blender's own exporter has packed."""
    path = tmp_path / "packed.glb"
    command = [sys.executable, "-Ic", DRACO, File().write(tmp_path / "box.gltf"), path]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    if b"KHR_draco_mesh_compression" not in path.read_bytes():
        pytest.skip("this Blender has no library for Draco")
    outcome = render(path, alpha=True)
    assert outcome.scene is not None, f"{outcome.reason}: {outcome.detail}"
    assert is_red(outcome)
    low, high = np.array(outcome.scene.meta["raw_bounds"])
    np.testing.assert_allclose(high - low, [1, 1, 1], atol=0.01)


def pixels(outcome: Outcome) -> np.ndarray:
    """sRGB bytes (N, 3) of the box, in all views."""
    assert outcome.scene is not None
    views = outcome.scene.by_width[64]
    pictures = np.stack([images.decode(jpeg) for jpeg in views.jpegs])
    alphas = np.stack([images.decode(png) for png in views.layers["alpha"]])
    return pictures[alphas > 250]


def is_red(outcome: Outcome) -> bool:
    red, green, blue = np.median(pixels(outcome), 0)
    return bool(red > 90 and max(green, blue) < 0.5 * red)
