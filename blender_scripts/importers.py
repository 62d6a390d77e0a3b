"""A file of any supported format -> the current scene of an empty Blender. One table, no cleverness."""

import json
import os

import bpy
import procedural


class Unusable(Exception):
    """The object cannot be rendered; `reason` is a snake_case word for the parent's ledger."""

    def __init__(self, reason, detail=""):
        super().__init__(detail or reason)
        self.reason = reason


def _procedural(filepath):
    with open(filepath) as recipe:
        procedural.build(json.load(recipe)["seed"])


def _blend(filepath):
    """Open the file with scripts off and link what its active scene would render into a new scene with default settings.

    The file's own scene may have compositor trees, borders, overrides, Freestyle scripts.
    """
    bpy.ops.wm.open_mainfile(filepath=filepath, use_scripts=False, load_ui=False)
    old = bpy.context.scene
    renderable = {ob for ob in _rendered(bpy.context.view_layer.layer_collection) if not ob.hide_render}
    new = bpy.data.scenes.new("render")
    new.frame_set(old.frame_current)
    for ob in sorted(renderable, key=lambda ob: ob.name):
        new.collection.objects.link(ob)
        _link_ancestors(new, ob)
    bpy.context.window.scene = new
    for scene in list(bpy.data.scenes):
        if scene is not new:
            bpy.data.scenes.remove(scene)


def _rendered(layer_collection):
    """Objects of a layer collection and of its children, except collections that are excluded or hidden from renders."""
    if layer_collection.exclude or layer_collection.collection.hide_render:
        return
    yield from layer_collection.collection.objects
    for child in layer_collection.children:
        yield from _rendered(child)


def _link_ancestors(scene, ob):
    """Link the parents of `ob` too: a parent that is not rendered still moves its children."""
    while ob.parent:
        ob = ob.parent
        if ob.name not in scene.collection.objects:
            scene.collection.objects.link(ob)


IMPORTERS = {
    "procedural": _procedural,
    "glb": lambda path: bpy.ops.import_scene.gltf(filepath=path, merge_vertices=False),
    "gltf": lambda path: bpy.ops.import_scene.gltf(filepath=path, merge_vertices=False),
    "obj": lambda path: bpy.ops.wm.obj_import(filepath=path),
    "fbx": lambda path: bpy.ops.import_scene.fbx(filepath=path, use_custom_props=False),
    "stl": lambda path: bpy.ops.wm.stl_import(filepath=path),
    "ply": lambda path: bpy.ops.wm.ply_import(filepath=path),
    "usd": lambda path: bpy.ops.wm.usd_import(filepath=path),
    "usda": lambda path: bpy.ops.wm.usd_import(filepath=path),
    "usdc": lambda path: bpy.ops.wm.usd_import(filepath=path),
    "usdz": lambda path: bpy.ops.wm.usd_import(filepath=path),
    "dae": lambda path: bpy.ops.wm.collada_import(filepath=path),
    "abc": lambda path: bpy.ops.wm.alembic_import(filepath=path, as_background_job=False),
    "blend": _blend,
}


def load(path, file_format):
    """Import `path` into the current scene. Raises Unusable("import_failed") with the end of the importer's error."""
    try:
        IMPORTERS[file_format](os.path.abspath(path))
    except RuntimeError as error:  # how bpy.ops reports every failure of an operator, Python tracebacks included
        raise Unusable("import_failed", str(error).strip()[-2000:]) from error
