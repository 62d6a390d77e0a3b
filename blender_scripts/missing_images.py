"""Puts neutral grey (for normal maps: flat) where a texture's image is missing, which Blender shows magenta."""

import bpy

NEUTRAL = (0.5, 0.5, 0.5, 1.0)
FLAT_NORMAL = (0.5, 0.5, 1.0, 1.0)


def fill():
    """Replace images without pixels, and give one to texture nodes without. Returns the number of both."""
    readers = [node for tree in _trees() for node in tree.nodes if node.type in ("TEX_IMAGE", "TEX_ENVIRONMENT")]
    missing = 0
    for image in bpy.data.images:
        if image.source not in ("FILE", "TILED") or image.size[0]:  # reading the size tries to load the file
            continue
        _make_even(image, any(node.image == image and _feeds_normals(node) for node in readers))
        missing += 1
    for node in readers:
        if node.image is None and any(socket.is_linked for socket in node.outputs):
            node.image = bpy.data.images.new("missing", 4, 4)
            _make_even(node.image, _feeds_normals(node))
            missing += 1
    return missing


def _trees():
    """Node trees of materials, and groups."""
    return [material.node_tree for material in bpy.data.materials if material.node_tree] + list(bpy.data.node_groups)


def _make_even(image, is_normal_map):
    image.source = "GENERATED"
    image.generated_width = image.generated_height = 4
    image.generated_color = FLAT_NORMAL if is_normal_map else NEUTRAL


def _feeds_normals(node):
    """Whether a normal map reads what a node gives, through other nodes of its tree or not."""
    seen, todo = set(), [node]
    while todo:
        each = todo.pop()
        if each.type == "NORMAL_MAP":
            return True
        if each not in seen:
            seen.add(each)
            todo += [link.to_node for socket in each.outputs for link in socket.links]
    return False
