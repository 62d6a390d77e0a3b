"""Shows what is invisible only because a file's transparency was written, or read, the wrong way round.

Collada, FBX and OBJ have two ways each to say how opaque a material is, and exporters mix them up: 0 then means "not
transparent". In other formats alpha 0 means what it says, and only an object that nothing would be seen of is shown.
"""

import contextlib
import re
from xml.etree import ElementTree

import meshes
import numpy as np

AMBIGUOUS = ("dae", "fbx", "obj")
OPAQUE = 0.99
LUMINANCE = np.array([0.212671, 0.71516, 0.072169])  # of red, green and blue, as Collada's specification weighs them


def mend(file_format, path):
    """Correct constant alphas of the materials that are shown. True if some were wrong."""
    sockets = {each: _alpha(each) for ob in meshes.rendered() for each in meshes.materials(ob)}
    stated = _of_collada(path) if file_format == "dae" else {}
    levels = {material: 1.0 if socket is None else socket.default_value for material, socket in sockets.items()}
    levels |= {material: stated[name][0] for material in levels if (name := _written_name(material)) in stated}
    # those that can be the wrong way round
    doubtful = [material for material in levels if stated.get(_written_name(material), (0, not stated))[1]]
    if levels and not any(levels.values()):
        levels = dict.fromkeys(levels, 1.0)
    elif file_format in AMBIGUOUS:
        said = [levels[material] for material in doubtful]
        if 0 in said and max(said) < OPAQUE:
            levels |= {material: 1 - levels[material] for material in doubtful}
        levels |= {each: 1.0 for each, level in levels.items() if level == 0 and _is_painted(each)}
    wrong = [each for each, socket in sockets.items() if socket and abs(socket.default_value - levels[each]) > 1e-4]
    for material in wrong:
        sockets[material].default_value = levels[material]
    return bool(wrong)


def surface_of(material):
    """Shader node that is linked to a material's output, or None."""
    output = material and material.node_tree and material.node_tree.get_output_node("CYCLES")
    links = output.inputs["Surface"].links if output else ()
    return links[0].from_node if links else None


def opacity_of(material):
    """Input of a material's surface that says how opaque it is, linked or not; None where it has none."""
    node = surface_of(material)
    if node is not None and node.type == "BSDF_PRINCIPLED":
        return node.inputs["Alpha"]
    if node is not None and node.type == "MIX_SHADER" and _comes_from(node.inputs[1], "BSDF_TRANSPARENT"):
        return node.inputs[0]  # how materials without light are read
    return None


def _alpha(material):
    """Socket that holds a material's constant alpha; None where a texture says it, or nothing."""
    socket = opacity_of(material)
    if socket is None or not socket.is_linked:
        return socket
    factor = socket.links[0].from_node
    if factor.type == "MATH" and factor.operation == "MULTIPLY":  # of a texture's alpha and a factor
        return next((each for each in factor.inputs[:2] if not each.is_linked and each.default_value == 0), None)
    return None


def _comes_from(socket, kind):
    return socket.is_linked and socket.links[0].from_node.type == kind


def _is_painted(material):
    """True if a texture gives the base colour: nobody paints what nobody shall see."""
    node = surface_of(material)
    return node is not None and node.type == "BSDF_PRINCIPLED" and node.inputs["Base Color"].is_linked


def _written_name(material):
    """Name in the file, without the number that Blender gives to the second one of a name."""
    return re.sub(r"\.\d{3}$", "", material.name) if material else None


def _of_collada(path):
    """Opacity that the specification gives each material of a Collada file, and whether it is one that exporters mix up.

    Returns {name: (opacity, doubtful)}; materials that say nothing, or say it by a texture, are left out.
    """
    with open(path, "rb") as file:
        text = file.read()
    effects = {effect.get("id"): _opacity(effect) for effect in _section(text, b"effect")}
    found = {}
    for material in _section(text, b"material"):
        opacity = effects.get(next((each.get("url", "")[1:] for each in material.iter("instance_effect")), None))
        if opacity:
            found[material.get("name") or material.get("id")] = opacity
    return found


def _section(text, kind):
    """Elements of a library of a Collada file; of one that is not well-formed, none."""
    start, end = text.find(b"<library_%ss" % kind), b"</library_%ss>" % kind
    stop = text.find(end, start)
    with contextlib.suppress(ElementTree.ParseError):
        if 0 <= start < stop:
            return list(ElementTree.fromstring(text[start : stop + len(end)]).iter(kind.decode()))
    return []


def _opacity(effect):
    """(opacity, doubtful) of an effect, None where it says nothing constant. Collada 1.4, "Determining Transparency"."""
    transparent, transparency = next(effect.iter("transparent"), None), next(effect.iter("transparency"), None)
    color = None if transparent is None else transparent.find("color")
    amount = None if transparency is None else transparency.find("float")
    if (color is None and transparent is not None) or (color is None and amount is None):
        return None
    try:
        rgba = np.array((color.text if color is not None else "1 1 1 1").replace(",", ".").split(), float)
        share = 1.0 if amount is None else float(amount.text.replace(",", "."))
    except (ValueError, AttributeError):
        return None
    if len(rgba) != 4:
        return None
    mode = "A_ONE" if transparent is None else transparent.get("opaque", "A_ONE")
    light = share * (rgba[:3] @ LUMINANCE if mode.startswith("RGB") else rgba[3])
    opacity = min(max(1 - light if mode.endswith("ZERO") else light, 0.0), 1.0)
    return float(opacity), amount is not None
