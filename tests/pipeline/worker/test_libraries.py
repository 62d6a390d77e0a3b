"""A .blend that links to others: they are found by name, replaced where they only paint, and named where they are the object."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Render
from tests.pipeline.worker.test_repair import is_red, mended

MAKE = """
import bpy, sys
folder = sys.argv[-1]

def save(name):
    bpy.ops.wm.save_as_mainfile(filepath=f"{folder}/{name}.blend")

def box(name):
    bpy.ops.mesh.primitive_cube_add()
    material = bpy.data.materials.new(name)
    material.use_nodes = True
    bpy.context.object.data.materials.append(material)
    return material.node_tree

bpy.ops.wm.read_factory_settings(use_empty=True)
box("red").nodes["Principled BSDF"].inputs["Base Color"].default_value = (0.8, 0.02, 0.02, 1)
shape = bpy.data.collections.new("shape")
shape.objects.link(bpy.context.object)
group = bpy.data.node_groups.new("surface", "ShaderNodeTree")
group.interface.new_socket("Base Color", in_out="INPUT", socket_type="NodeSocketColor")
group.interface.new_socket("Shader", in_out="OUTPUT", socket_type="NodeSocketShader")
ends = [group.nodes.new(f"NodeGroup{end}put") for end in ("In", "Out")]
shader = group.nodes.new("ShaderNodeBsdfPrincipled")
group.links.new(ends[0].outputs[0], shader.inputs["Base Color"])
group.links.new(shader.outputs[0], ends[1].inputs[0])
shape.use_fake_user = group.use_fake_user = True
save("library")

def linked(kind, name):
    bpy.ops.wm.read_factory_settings(use_empty=True)
    with bpy.data.libraries.load(f"{folder}/library.blend", link=True, relative=True) as (_, to):
        setattr(to, kind, [name])
    return getattr(to, kind)[0]

shape = linked("collections", "shape")
instance = bpy.data.objects.new("instance", None)
instance.instance_type, instance.instance_collection = "COLLECTION", shape
bpy.context.scene.collection.objects.link(instance)
save("linked")
surface = linked("node_groups", "surface")
tree = box("painted")
user, colour = tree.nodes.new("ShaderNodeGroup"), tree.nodes.new("ShaderNodeRGB")
user.node_tree, colour.outputs[0].default_value = surface, (0.8, 0.02, 0.02, 1)
tree.links.new(colour.outputs[0], user.inputs[0])
tree.links.new(user.outputs[0], tree.nodes["Material Output"].inputs["Surface"])
save("painted")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("libraries")
    subprocess.run([sys.executable, "-I", "-c", MAKE, str(folder)], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("name", ["linked", "painted"])
@pytest.mark.parametrize("place", ["beside", "elsewhere", "nowhere"])
def test_libraries_of_a_blend(tmp_path: Path, render: Render, made: Path, name: str, place: str) -> None:
    path = Path(shutil.copy(made / f"{name}.blend", tmp_path))
    if place != "nowhere":
        folder = tmp_path / {"beside": ".", "elsewhere": "parts"}[place]
        folder.mkdir(exist_ok=True)
        shutil.copy(made / "library.blend", folder / "library.blend")
    outcome = render(path, views=1, alpha=True)
    if (name, place) == ("linked", "nowhere"):
        assert (outcome.scene, outcome.reason) == (None, "missing_file")
        assert "'library.blend'" in outcome.detail
        return
    assert is_red(outcome)
    assert mended(outcome) == (["links"] if place == "elsewhere" else [])
    assert outcome.scene is not None
    assert outcome.scene.meta.get("missing_libraries", []) == (["library.blend"] if place == "nowhere" else [])
