"""Other .blend files that a .blend links to: found by name where they have moved, or replaced."""

import alpha
import bpy
import relink

CHAINS = 3  # libraries that are found may link to further ones
COLOURS = (
    "basecolor",
    "base color",
    "diffuse",
    "diffusecolor",
    "albedo",
    "color",
)  # names of inputs of the missing groups


def find(files):
    """Read libraries that are missing from files of their base names, as of `relink.relink`. Returns how many were read."""
    found = 0
    for _ in range(CHAINS):
        missing = [
            (each, near) for each in bpy.data.libraries if each.is_missing and (near := relink.near(each, files))
        ]
        for library, near in missing:
            library.filepath = near
            library.reload()
            found += not library.is_missing
    return found


def missing():
    """Names of the libraries that are nowhere, sorted. What materials take from them is replaced: its colour stays."""
    names = {relink.parts(each.filepath)[-1] for each in bpy.data.libraries if each.is_missing}
    for material in bpy.data.materials if names else ():
        surface = alpha.surface_of(material)
        if surface is not None and surface.type == "GROUP" and (not surface.node_tree or surface.node_tree.is_missing):
            _stand_in(material.node_tree, surface)
    return sorted(names)


def _stand_in(tree, group):
    """Put a plain surface in the place of a node group that has no content, which would be black."""
    shader = tree.nodes.new("ShaderNodeBsdfPrincipled")
    inputs = {socket.name.casefold(): socket for socket in group.inputs}
    colour = next((inputs[name] for name in COLOURS if name in inputs and inputs[name].is_linked), None)
    if colour:
        tree.links.new(colour.links[0].from_socket, shader.inputs["Base Color"])
    tree.links.new(shader.outputs[0], tree.get_output_node("CYCLES").inputs["Surface"])
