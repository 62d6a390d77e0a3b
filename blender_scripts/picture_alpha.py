"""What the alpha channels of pictures do: nothing to colours, where nothing asks for them, and the opacity of what an FBX paints.

Blender multiplies the colours of a picture by its alpha unless a material uses that alpha too; authors of files, and their
formats, mean the colours as the picture has them, whatever lies in its fourth channel: gloss, a mask, or nothing.
"""

import alpha
import bpy
import meshes
import numpy as np
from missing_images import trees

FOUR_CHANNELS = (32, 64, 128)  # bits of a pixel
CLEAR = 0.02  # opacity that nobody sees
MOST_PIXELS = 2**24  # of a picture that is looked through
MATHS = {
    "MULTIPLY": np.multiply,
    "ADD": np.add,
    "SUBTRACT": np.subtract,
    "LESS_THAN": np.less,
    "GREATER_THAN": np.greater,
    "ROUND": lambda value, _: np.round(value),
}


def keep_colours():
    """Show pictures whose alpha no material uses in their own colours. Not for a .blend, whose author saw them multiplied."""
    readers = [node for tree in trees() for node in tree.nodes if node.type == "TEX_IMAGE" and node.image]
    masks = {node.image for node in readers if "Alpha" in _read_by(node.outputs["Color"])}
    for node in readers:
        shows = _read_by(node.outputs["Color"]) and not node.outputs["Alpha"].is_linked
        if shows and node.image not in masks and node.image.alpha_mode == "STRAIGHT":
            node.image.alpha_mode = "CHANNEL_PACKED"


def use_of_fbx():
    """Let the alpha of pictures of the base colour be the opacity, as Blender's importer of FBX does with those that it finds."""
    for material in bpy.data.materials:
        surface = alpha.surface_of(material)
        if surface is None or surface.type != "BSDF_PRINCIPLED" or surface.inputs["Alpha"].is_linked:
            continue
        for link in surface.inputs["Base Color"].links:
            picture = link.from_node
            if picture.type == "TEX_IMAGE" and picture.image and picture.image.depth in FOUR_CHANNELS:
                material.node_tree.links.new(picture.outputs["Alpha"], surface.inputs["Alpha"])


def settle(file_format):
    """Make a constant 0 of an opacity that pictures hold at 0 everywhere, so that it is judged as one (`alpha.mend`).

    Pictures are not looked through where nothing would follow: a part is seen, and one that is not may be meant.
    """
    shown = {each for ob in meshes.rendered() for each in meshes.materials(ob)}
    opacities = {material: alpha.opacity_of(material) for material in shown}
    linked = {material: socket for material, socket in opacities.items() if socket is not None and socket.is_linked}
    sure = [socket for material, socket in opacities.items() if material not in linked]
    if file_format not in alpha.AMBIGUOUS and any(socket is None or socket.default_value > 0 for socket in sure):
        return
    for material, socket in linked.items():
        values = _values(socket)
        if values is not None and len(values) and values.max() < CLEAR:
            material.node_tree.links.remove(socket.links[0])
            socket.default_value = 0.0


def _values(socket):
    """All values that a socket may have, at most 256 for each picture that it comes from; None where they cannot be told."""
    if not socket.is_linked:
        return np.array([socket.default_value])
    node = socket.links[0].from_node
    if node.type == "TEX_IMAGE" and node.image:
        return _of_picture(node.image, socket.links[0].from_socket.name)
    if node.type != "MATH" or node.operation not in MATHS:
        return None
    first, second = (_values(one) for one in node.inputs[:2])
    if node.operation == "MULTIPLY" and any(one is not None and not one.any() for one in (first, second)):
        return np.zeros(1)
    if first is None or second is None or len(first) * len(second) > MOST_PIXELS:
        return None
    return np.unique(MATHS[node.operation](first[:, None], second[None]).astype(float))


def _of_picture(image, output):
    """Values of the alpha, or of the brightest channel, of a picture; None of one that is very large or not there."""
    if image.channels != 4 or not 0 < image.size[0] * image.size[1] <= MOST_PIXELS:
        return None
    pixels = np.empty(image.size[0] * image.size[1] * 4, np.float32)
    image.pixels.foreach_get(pixels)
    pixels = pixels.reshape(-1, 4)
    return np.unique(np.round((pixels[:, 3] if output == "Alpha" else pixels[:, :3].max(1)) * 255)) / 255


def _read_by(socket):
    """Names of the inputs that a socket is linked to."""
    return {link.to_socket.name for link in socket.links}
