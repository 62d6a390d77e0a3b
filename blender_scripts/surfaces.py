"""Writes what materials say (albedo, roughness, metallic) into passes of their own, by AOV outputs in every material.

A material's surface is followed from its output through mixes, sums and groups to its BSDFs; what a mix does to their
light is done to their values. The pictures stay the same.
"""

import bpy

# BSDF -> what it says, by pass: the name of an input, or a number. OTHERS: of all that are not listed.
BSDFS = {
    "BSDF_PRINCIPLED": {"albedo": "Base Color", "roughness": "Roughness", "metallic": "Metallic"},
    "BSDF_METALLIC": {"albedo": "Base Color", "roughness": "Roughness", "metallic": 1.0},
    "BSDF_GLOSSY": {"albedo": "Color", "roughness": "Roughness", "metallic": 1.0},
    "BSDF_GLASS": {"albedo": "Color", "roughness": "Roughness", "metallic": 0.0},
    "BSDF_REFRACTION": {"albedo": "Color", "roughness": "Roughness", "metallic": 0.0},
}
OTHERS = {"albedo": "Color", "roughness": 1.0, "metallic": 0.0}
NOTHING = {"BSDF_TRANSPARENT", "HOLDOUT"}  # shows what is behind, and adds nothing to a mix
SOCKETS = {"albedo": ("NodeSocketColor", "RGBA", "Color"), "roughness": ("NodeSocketFloat", "FLOAT", "Value")}
SOCKETS["metallic"] = SOCKETS["roughness"]
PLAIN = 0.8  # what Cycles gives a surface without a material, diffuse


def expose(names):
    """Add passes `names` (of albedo, roughness, metallic) to the current view layer, and outputs for them to all materials."""
    for name in names:
        aov = bpy.context.view_layer.aovs.add()
        aov.name, aov.type = name, "COLOR" if name == "albedo" else "VALUE"
    _give_materials()
    for material in bpy.data.materials:
        if material.node_tree:
            _expose(material.node_tree, names)


def is_clear(material):
    """True if a material lets all light through by constants alone: alpha 0, or a white transparent surface."""
    if material is None or not material.node_tree:
        return False
    output = material.node_tree.get_output_node("CYCLES")
    return output is not None and _is_clear(output.inputs["Surface"])


def _is_clear(socket):
    if not socket.is_linked:
        return False
    node = socket.links[0].from_node
    if node.type == "REROUTE":
        return _is_clear(node.inputs[0])
    if node.type == "MIX_SHADER":
        share = _constant(node.inputs[0])
        ends = [node.inputs[1 + int(share)]] if share in (0.0, 1.0) else node.inputs[1:3]
        return all(_is_clear(end) for end in ends)
    if node.type == "BSDF_PRINCIPLED":
        return _constant(node.inputs["Alpha"]) == 0
    return (
        node.type == "BSDF_TRANSPARENT" and not node.inputs[0].is_linked and min(node.inputs[0].default_value[:3]) == 1
    )


def _constant(socket):
    """Value of a number's socket, None if it is linked."""
    return None if socket.is_linked else socket.default_value


def _give_materials():
    """Put Cycles' own default surface where there is no material, since only a material can write a pass."""
    plain = bpy.data.materials.new("plain")
    _diffuse(plain, (PLAIN, PLAIN, PLAIN, 1))
    for material in bpy.data.materials:
        if not material.use_nodes:
            _diffuse(material, material.diffuse_color)
    for kind in (bpy.data.meshes, bpy.data.curves, bpy.data.metaballs, bpy.data.hair_curves, bpy.data.pointclouds):
        for data in kind:
            if not data.materials:
                data.materials.append(plain)
    for ob in bpy.data.objects:
        for slot in ob.material_slots:
            if slot.material is None:
                slot.material = plain


def _diffuse(material, color):
    material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()
    bsdf, output = tree.nodes.new("ShaderNodeBsdfDiffuse"), tree.nodes.new("ShaderNodeOutputMaterial")
    bsdf.inputs["Color"].default_value = color
    tree.links.new(bsdf.outputs[0], output.inputs["Surface"])


def _expose(tree, names):
    output = tree.get_output_node("CYCLES")
    if output is None:
        return
    for name in names:
        value = _behind(tree, output.inputs["Surface"], name)
        if value is None:
            continue
        node = tree.nodes.new("ShaderNodeOutputAOV")
        node.aov_name = name
        _connect(tree, value, node.inputs[SOCKETS[name][2]])


def _behind(tree, socket, name):
    """Value (an output socket, a number or a colour) of what is linked to a shader input; None if it shows nothing."""
    if not socket.is_linked:
        return None
    return _value(tree, socket.links[0].from_socket, name)


def _value(tree, shader, name):
    node = shader.node
    if node.type == "REROUTE":
        return _behind(tree, node.inputs[0], name)
    if node.type == "MIX_SHADER":
        return _mixed(tree, node, name)
    if node.type == "ADD_SHADER":
        values = [_behind(tree, socket, name) for socket in sorted(node.inputs, key=_is_emission)]
        return next((value for value in values if value is not None), None)
    if node.type == "GROUP" and node.node_tree:
        return _of_group(node, shader, name)
    if node.type in NOTHING:
        return None
    said = BSDFS.get(node.type, OTHERS)[name]
    if isinstance(said, float):
        return said
    if said not in node.inputs:
        return (0, 0, 0, 1) if name == "albedo" else 0.0
    return _read(node.inputs[said])


def _read(socket):
    return socket.links[0].from_socket if socket.is_linked else socket.default_value


def _is_emission(socket):
    return socket.is_linked and socket.links[0].from_node.type == "EMISSION"


def _mixed(tree, node, name):
    """Mix of both values by the node's own factor; where one side shows nothing, the other side's."""
    first, second = (_behind(tree, socket, name) for socket in node.inputs[1:3])
    if first is None or second is None:
        return second if first is None else first
    mix = tree.nodes.new("ShaderNodeMix")
    mix.data_type = SOCKETS[name][1]
    factor, *ends = (socket for socket in mix.inputs if socket.enabled)
    _connect(tree, _read(node.inputs[0]), factor)
    for value, socket in zip((first, second), ends, strict=True):
        _connect(tree, value, socket)
    return next(socket for socket in mix.outputs if socket.enabled)


def _of_group(node, shader, name):
    """Value inside a group, brought out through a new output of the group, which all that use the group share."""
    tree, wanted = node.node_tree, f"{name} of {shader.identifier}"
    if wanted not in node.outputs:
        output = next((each for each in tree.nodes if each.type == "GROUP_OUTPUT" and each.is_active_output), None)
        inside = output and next((each for each in output.inputs if each.identifier == shader.identifier), None)
        value = _behind(tree, inside, name) if inside else None
        if value is None:
            return None
        tree.interface.new_socket(wanted, in_out="OUTPUT", socket_type=SOCKETS[name][0])
        _connect(tree, value, output.inputs[wanted])
    return node.outputs[wanted]


def _connect(tree, value, socket):
    if isinstance(value, bpy.types.NodeSocket):
        tree.links.new(value, socket)
    else:
        socket.default_value = value
