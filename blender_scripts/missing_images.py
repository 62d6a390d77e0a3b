"""Puts neutral grey (for normal maps: flat) where a texture's image is missing, which Blender shows magenta."""

import os

import bpy
import other_pictures

NEUTRAL = (0.5, 0.5, 0.5, 1.0)
FLAT_NORMAL = (0.5, 0.5, 1.0, 1.0)


def fill():
    """Replace images without pixels, and give one to texture nodes without.

    Returns the number of both, and that of images of other kinds than Blender reads, which were decoded instead.
    """
    readers = [node for tree in trees() for node in tree.nodes if node.type in ("TEX_IMAGE", "TEX_ENVIRONMENT")]
    missing, decoded = 0, 0
    for image in bpy.data.images:
        if not _is_missing(image):
            continue
        if image.source != "SEQUENCE" and other_pictures.decode(image):
            decoded += 1
            continue
        _make_even(image, any(node.image == image and _feeds_normals(node) for node in readers))
        missing += 1
    for node in readers:
        if node.image is None and any(socket.is_linked for socket in node.outputs):
            node.image = bpy.data.images.new("missing", 4, 4)
            _make_even(node.image, _feeds_normals(node))
            missing += 1
    return missing, decoded


def trees():
    """Node trees of materials, and groups."""
    return [material.node_tree for material in bpy.data.materials if material.node_tree] + list(bpy.data.node_groups)


def _is_missing(image):
    if image.source in ("FILE", "TILED", "MOVIE"):
        return not image.size[0]  # reading the size tries to load the file
    path = bpy.path.abspath(image.filepath, library=image.library)
    return image.source == "SEQUENCE" and not image.packed_file and not os.path.exists(path)


def _make_even(image, is_normal_map):
    image.source = "GENERATED"
    image.generated_width = image.generated_height = 4
    image.generated_color = FLAT_NORMAL if is_normal_map else NEUTRAL


def _feeds_normals(node):
    """True if a normal map reads what a node gives, through other nodes or not, inside and outside of groups."""
    seen, todo = set(), list(node.outputs)
    while todo:
        socket = todo.pop()
        if socket in seen:
            continue
        seen.add(socket)
        for link in socket.links:
            if link.to_node.type == "NORMAL_MAP":
                return True
            todo += _goes_on(link)
    return False


def _goes_on(link):
    """Output sockets of which a link's value may come out, changed or not."""
    node, name = link.to_node, link.to_socket.identifier
    if node.type == "GROUP_OUTPUT":
        users = (
            each for tree in trees() for each in tree.nodes if each.type == "GROUP" and each.node_tree == node.id_data
        )
        return [socket for user in users for socket in user.outputs if socket.identifier == name]
    if node.type == "GROUP" and node.node_tree:
        inside = (each for each in node.node_tree.nodes if each.type == "GROUP_INPUT")
        return [socket for each in inside for socket in each.outputs if socket.identifier == name]
    return list(node.outputs)
