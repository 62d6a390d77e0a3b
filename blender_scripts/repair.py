"""Makes an imported scene look as its author meant, and flags what is missing."""

import bpy

NEUTRAL = (0.5, 0.5, 0.5, 1.0)
FLAT_NORMAL = (0.5, 0.5, 1.0, 1.0)


def repair(file_format):
    """Hide imported lights, fill missing textures, show vertex colours. Returns the flags that go into the shard."""
    for ob in bpy.context.scene.objects:
        if ob.type == "LIGHT":
            ob.hide_render = True  # never deleted: a light may be the parent of something visible
    flags = {"missing_textures": _fill_missing_images()}
    if file_format in ("ply", "obj", "stl"):
        flags["vertex_colors"] = _show_vertex_colors()
    return flags


def _fill_missing_images():
    """Replace images without pixels, magenta in Blender, by grey (normal maps: flat). Returns their number."""
    missing = 0
    for image in bpy.data.images:
        if image.source not in ("FILE", "TILED") or image.size[0]:  # reading the size tries to load the file
            continue
        feeds_normals = _feeds_normal_map(image)
        image.source = "GENERATED"
        image.generated_width = image.generated_height = 4
        image.generated_color = FLAT_NORMAL if feeds_normals else NEUTRAL
        missing += 1
    return missing


def _feeds_normal_map(image):
    trees = [material.node_tree for material in bpy.data.materials if material.node_tree] + list(bpy.data.node_groups)
    return any(
        link.to_node.type == "NORMAL_MAP"
        for tree in trees
        for link in tree.links
        if link.from_node.type == "TEX_IMAGE" and link.from_node.image == image
    )


def _show_vertex_colors():
    """Give meshes with vertex colours and no material one that shows the colours. True if there were any."""
    shown = False
    for ob in bpy.context.scene.objects:
        if ob.type != "MESH" or not ob.data.color_attributes or _has_material(ob):
            continue
        attribute = ob.data.color_attributes[0]
        material = bpy.data.materials.new("vertex colours")
        material.use_nodes = True
        nodes, links = material.node_tree.nodes, material.node_tree.links
        reader = nodes.new("ShaderNodeVertexColor")
        reader.layer_name = attribute.name
        links.new(reader.outputs["Color"], nodes["Principled BSDF"].inputs["Base Color"])
        ob.data.materials.clear()
        ob.data.materials.append(material)
        shown = True
    return shown


def _has_material(ob):
    return any(slot.material for slot in ob.material_slots)
