"""Says what an imported object has: textures, vertex colours, animation. Facts of its shard, and what `--only` goes by."""

import bpy
import meshes
import timeline
import usd_colours
from importers import Unusable

FACT = {"textured": "textured", "colored": "has_vertex_colors", "animated": "animated"}  # of --only -> name of the fact
READS_COLOURS = {"VERTEX_COLOR", "ATTRIBUTE"}


def traits():
    """{"textured", "has_vertex_colors", "animated"} -> bool, of what the scene's materials, actions and caches use."""
    nodes = [node for tree in _trees() for node in tree.nodes]
    return {
        "textured": any(node.type == "TEX_IMAGE" and _has_pixels(node.image) for node in nodes),
        "has_vertex_colors": any(node.type in READS_COLOURS for node in nodes)
        and any(ob.data.color_attributes or ob.data.get(usd_colours.OF_INSTANCE) for ob in meshes.rendered()),
        "animated": timeline.is_animated(),
    }


def check(wanted, found):
    """Raise Unusable("not_textured", ...) unless the object has all that is wanted. wanted: keys of FACT; found: of `traits`."""
    for name in wanted:
        if not found[FACT[name]]:
            raise Unusable(f"not_{name}", f"left out by --only {name}")


def _trees():
    """Node trees of the materials of the scene's objects, groups within them included, each once."""
    objects = {*bpy.context.scene.objects, *meshes.rendered()}
    materials = {slot.material for ob in objects for slot in ob.material_slots}
    found, left = [], [material.node_tree for material in materials if material and material.node_tree]
    while left:
        tree = left.pop()
        if tree not in found:
            found.append(tree)
            left += [node.node_tree for node in tree.nodes if node.type == "GROUP" and node.node_tree]
    return found


def _has_pixels(image):
    """True for an image that was read; what replaces a missing one is generated."""
    return image is not None and image.source != "GENERATED" and bool(image.size[0])
