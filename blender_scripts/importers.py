"""A file of any supported format -> the current scene of an empty Blender. One table, and what is tried where it fails."""

import json
import os
import re

import blend_file
import bpy
import ktx2
import motion
import ply_header
import procedural
import second_reader
import usd_colours

ENDS_TRACEBACK = re.compile(r"[\w.]*(Error|Exception)(: |$)")
GEOMETRY = {"MESH", "CURVE", "CURVES", "SURFACE", "META", "FONT", "VOLUME", "POINTCLOUD"}


class Unusable(Exception):
    """The object cannot be rendered; `reason` is a snake_case word for the parent's ledger."""

    def __init__(self, reason, detail=""):
        super().__init__(detail or reason)
        self.reason = reason


def _procedural(filepath, moves=False):
    with open(filepath) as recipe:
        seed = json.load(recipe)["seed"]
    parts = procedural.build(seed)
    if moves:
        motion.animate(seed, parts)


def _gltf(path):
    """Read a glTF; one with a picture that has no other beside it and cannot be decoded is unusable."""
    ktx2.undecoded.clear()
    bpy.ops.import_scene.gltf(filepath=path, merge_vertices=False)
    if ktx2.undecoded:
        raise Unusable("unsupported_extension", f"KHR_texture_basisu: {ktx2.undecoded[0]}; export it with PNG or JPEG")


def _fbx(path):
    bpy.ops.wm.fbx_import(filepath=path, use_custom_props=False)


def _fbx_by_add_on(path):
    """Read a binary FBX by the older importer, which reads some that the other refuses."""
    clear()
    bpy.ops.import_scene.fbx(filepath=path, use_custom_props=False)
    return {"read_by": "import_scene.fbx"}


def _usd(path, **options):
    """Read a USD by options of the importer. The collection of what its instances share, which is not rendered, leaves the scene.

    Normalising moves all that stands in the scene, and would move such instances twice. Instances with a colour to hand down
    become objects of their own.
    """
    hook = usd_colours.HandDown
    hook.of_instances = hook.wants_all = False
    bpy.ops.wm.usd_import(filepath=path, **options)
    if hook.of_instances or hook.wants_all:
        options |= {"support_scene_instancing": not hook.of_instances, "import_all_materials": hook.wants_all}
        clear()
        bpy.ops.wm.usd_import(filepath=path, **options)
    for layer in list(bpy.context.view_layer.layer_collection.children):
        if layer.collection.hide_render:
            bpy.context.scene.collection.children.unlink(layer.collection)
    bpy.context.view_layer.update()  # what left the scene leaves its list of objects


def _usd_shapes(path):
    """Read a USD without the colours and attributes of its meshes, on some of which the importer crashes."""
    clear()
    _usd(path, read_mesh_colors=False, read_mesh_attributes=False, validate_meshes=True)
    return {"mended": ["attributes"]}


def _ply(path):
    plain = ply_header.plain(path, os.getcwd())
    bpy.ops.wm.ply_import(filepath=plain)
    if plain == path:
        return {}
    os.remove(plain)
    return {"mended": ["header"]}


IMPORTERS = {
    "glb": _gltf,
    "gltf": _gltf,
    "obj": lambda path: bpy.ops.wm.obj_import(filepath=path),
    "fbx": _fbx,
    "stl": lambda path: bpy.ops.wm.stl_import(filepath=path),
    "ply": _ply,
    "usd": _usd,
    "usda": _usd,
    "usdc": _usd,
    "usdz": _usd,
    "dae": lambda path: bpy.ops.wm.collada_import(filepath=path),
    "abc": lambda path: bpy.ops.wm.alembic_import(filepath=path, as_background_job=False),
    "blend": blend_file.open_file,
}


def clear():
    """Empty Blender. Keeps preferences and add-ons, which no file can touch; `read_factory_settings` takes 7 times as long."""
    bpy.ops.wm.read_homefile(use_factory_startup=True, use_empty=True, load_ui=False)


def load(path, file_format, crashed=-1, tell=lambda number: None, moves=False):
    """Import `path` into the empty scene, by the first reader that finds a face; else by the last that takes it.

    moves: True where objects that are made here, not read, shall move.
    crashed: number of a reader that ended the process on this file; it is left out if there is another. tell: is called with
    each reader's number before it starts. Returns facts of how the file was read: {"read_by": the reader, unless it is the
    format's usual one, "mended": words for what was wrong}. Raises Unusable("import_failed") with what each reader said.
    """
    readers = dict(enumerate(_readers(os.path.abspath(path), file_format, moves)))
    if len(readers) > 1:
        readers.pop(crashed, None)
    facts, failures = None, []
    for number, reader in readers.items():
        tell(number)
        try:
            facts = _facts(reader())
        except (RuntimeError, OSError) as error:  # RuntimeError: any failure of an operator, Python tracebacks included
            failures.append(_said(error))
        else:
            if _has_faces():
                break
    if facts is None:
        raise Unusable("import_failed", "; ".join(dict.fromkeys(failures)))
    return facts


def _said(error):
    """Words of a reader about a failure, in one line; of a Python traceback the line that ends it, if Blender left it whole."""
    lines = [line.strip() for line in str(error).replace(", see console for detail", "").splitlines() if line.strip()]
    if "Traceback" in str(error):
        ends = [line for line in lines if ENDS_TRACEBACK.match(line)]
        return (ends or ["an error of the importer"])[-1][:500]
    return ". ".join(dict.fromkeys(line.removeprefix("Error: ") for line in lines))[:500]


def _readers(path, file_format, moves):
    """Functions that read the file, in the order in which they are tried."""
    if file_format == "procedural":
        return [lambda: _procedural(path, moves)]
    readers = [lambda: IMPORTERS[file_format](path)]
    if file_format == "fbx":
        readers.append(lambda: _fbx_by_add_on(path))
    if file_format.startswith("usd"):
        readers.append(lambda: _usd_shapes(path))
    if file_format in second_reader.FORMATS:
        readers.append(lambda: second_reader.read(path, file_format, clear))
    return readers


def _facts(returned):
    return returned if isinstance(returned, dict) else {}


def _has_faces():
    """True if an object has anything that may be rendered."""
    return any(ob.type != "MESH" or ob.data.polygons for ob in bpy.data.objects if ob.type in GEOMETRY)
