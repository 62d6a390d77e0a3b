"""Shows the colours that a file gives its points, corners or faces, where no material of its own says anything else."""

import bpy
import file_colours
import meshes
import numpy as np
import usd_colours
from alpha import surface_of

# formats whose importers, or whose authors in Blender, link colours to materials themselves
LINKED = ("glb", "gltf", "blend", "procedural")
NAME = "colours of the file"
EVEN, BRIGHT = 0.02, 0.35  # a material without a colour of its own: its channels differ by no more, and none is darker
WHITE = 0.999
WITHOUT_RANGE = ("obj", "ply")  # formats that leave open what the largest number of a colour is
BYTES = 1.5  # sRGB above is 0 to 255, not 0 to 1


def show(file_format, path):
    """Show the colours of meshes. True if some were 0 to 255 where Blender takes them for 0 to 1."""
    if file_format in LINKED:
        return False
    objects = meshes.rendered()
    if file_format in FROM_FILE and len(objects) == 1:
        FROM_FILE[file_format](objects[0].data, path)
    rescaled = [_rescale(ob.data) for ob in objects if file_format in WITHOUT_RANGE]
    shown = {}
    for ob in objects:
        _show(ob, shown)
    return any(rescaled)


def _add_of_ply(mesh, path):
    found = file_colours.of_ply(path)
    if len(found.get("vertex", ())) == len(mesh.vertices):
        _add(mesh, "POINT", found["vertex"])
    elif len(found.get("face", ())) == len(mesh.polygons):
        _add(mesh, "CORNER", np.repeat(found["face"], meshes.starts_and_lengths(mesh)[1], 0))


def _add_of_stl(mesh, path):
    """Give each triangle the colour of the facet at its place: Blender leaves out those that are there twice or have no area."""
    found = file_colours.of_stl(path)
    if found is None or len(mesh.loops) != 3 * len(mesh.polygons):
        return
    facets, colours = found
    triangles = meshes.points(mesh)[meshes.corners(mesh)].reshape(-1, 3, 3)
    numbers = _numbers(np.concatenate([facets, triangles]).reshape(-1, 3) + np.float32(0))  # one number for 0 and -0
    places = _numbers(np.sort(numbers.reshape(-1, 3), 1).astype(np.int32))
    of_place = np.ones((places.max() + 1, 3), np.float32)
    of_place[places[: len(facets)][::-1]] = colours[::-1]  # the first of one place
    _add(mesh, "CORNER", np.repeat(of_place[places[len(facets) :]], 3, 0))


FROM_FILE = {"ply": _add_of_ply, "stl": _add_of_stl}


def _numbers(rows):
    """Rows (N, 3) -> numbers (N,), equal for equal rows."""
    rows = np.ascontiguousarray(rows)
    return np.unique(rows.view(f"V{rows.itemsize * 3}").ravel(), return_inverse=True)[1]


def _add(mesh, domain, srgb):
    for attribute in list(mesh.color_attributes):
        mesh.color_attributes.remove(attribute)
    attribute = mesh.color_attributes.new(NAME, "FLOAT_COLOR", domain)
    attribute.data.foreach_set("color_srgb", np.pad(srgb, ((0, 0), (0, 1)), constant_values=1).ravel())


def _rescale(mesh):
    """Divide by 255 what was read as sRGB in [0, 1] but reaches beyond. True if it did."""
    scaled = False
    for attribute in mesh.color_attributes:
        if attribute.data_type == "FLOAT_COLOR" and len(attribute.data):
            srgb = np.nan_to_num(meshes.read(attribute.data, "color_srgb", 4))
            if srgb[:, :3].max() > BYTES:
                srgb[:, :3] = np.clip(srgb[:, :3] / 255, 0, 1)
                attribute.data.foreach_set("color_srgb", srgb.ravel())
                scaled = True
    return scaled


def _show(ob, shown):
    """Let the materials of an object that have no colour of their own show its colours. shown: those made so far."""
    mesh = ob.data
    attribute = mesh.color_attributes.get(usd_colours.NAME)
    if attribute is None and mesh.color_attributes:
        attribute = mesh.color_attributes[max(mesh.color_attributes.render_color_index, 0)]
    of_instance = attribute is None and mesh.get(usd_colours.OF_INSTANCE)
    if not of_instance and (attribute is None or (_has_material(ob) and _says_nothing(attribute))):
        return
    if not ob.material_slots:
        mesh.materials.append(None)
    for slot in ob.material_slots:
        if _is_plain(slot.material):
            key = (slot.material, None if of_instance else attribute.name)
            shown[key] = shown.get(key) or _material(*key)
            slot.material = shown[key]


def _has_material(ob):
    return any(slot.material for slot in ob.material_slots)


def _says_nothing(attribute):
    """True if all is white, or black as colours are that were never set."""
    colours = meshes.read(attribute.data, "color", 4)[:, :3]
    return not len(colours) or colours.min() > WHITE or colours.max() <= 0


def _is_plain(material):
    if material is None:
        return True
    node = surface_of(material)
    if not material.use_nodes:
        color = material.diffuse_color
    elif node is not None and node.type == "BSDF_PRINCIPLED" and not node.inputs["Base Color"].is_linked:
        color = node.inputs["Base Color"].default_value
    else:
        return False
    return max(color[:3]) - min(color[:3]) <= EVEN and min(color[:3]) >= BRIGHT


def _material(plain, name):
    """Copy of a material, or a new one, whose colour is that of the attribute `name`; None: that of the instance."""
    material = plain.copy() if plain and plain.use_nodes else bpy.data.materials.new("vertex colours")
    material.use_nodes = True
    tree = material.node_tree
    reader = tree.nodes.new("ShaderNodeVertexColor" if name else "ShaderNodeAttribute")
    if name:
        reader.layer_name = name
    else:
        reader.attribute_type, reader.attribute_name = "INSTANCER", usd_colours.NAME
    tree.links.new(reader.outputs["Color"], surface_of(material).inputs["Base Color"])
    return material
