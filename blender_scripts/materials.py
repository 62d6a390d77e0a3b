"""Random but coherent PBR materials for the procedural objects.

Colours are linear RGB triples in [0, 1], sampled in OKLCH so that "mid, saturated" means the same for every hue.
Texture coordinates come from two mesh layers that `procedural.py` writes: the point attribute `tex` (3D) and the
UV map `UVMap` (2D); both are measured in object lengths (longest bounding-box side = 1), so `size` below is the
length of one texture feature as a fraction of the object.
"""

from collections.abc import Callable
from itertools import pairwise

import bpy
import numpy as np

TEX_ATTRIBUTE = "tex"
UV_NAME = "UVMap"
IMAGE_PX = 256
TAU = 2 * np.pi
# One pixel of a 64 px view covers about 1/30 of the object: smaller features would be aliasing noise.
FEATURE_SIZE = (0.08, 0.28)

Colours = np.ndarray


def oklch_to_linear(lightness: float, chroma: float, hue: float) -> np.ndarray:
    """OKLCH (hue in radians) to linear sRGB; chroma is lowered until the colour fits the gamut."""
    for _ in range(40):
        a, b = chroma * np.cos(hue), chroma * np.sin(hue)
        long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
        medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
        short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
        rgb = np.array(
            [
                4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
                -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
                -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
            ]
        )
        if rgb.min() >= 0.0 and rgb.max() <= 1.0:
            break
        chroma *= 0.9
    return np.clip(rgb, 0.0, 1.0)


def palette(rng: np.random.Generator, count: int = 7) -> Colours:
    """(count, 3) colours of a few related hues; lightness steps evenly, so that any two of them contrast.

    The schemes are the angles between neighbouring hues: analogous, square, triad, complement, golden (all round).
    """
    spread = float(rng.choice([0.45, np.pi / 2, TAU / 3, np.pi, 2.4, 2.4]))
    base, vivid = rng.uniform(0, TAU), rng.uniform(0.11, 0.24)
    levels = rng.permutation(np.linspace(0.38, 0.8, count)) + rng.uniform(-0.03, 0.03, count)
    colours = []
    for k, lightness in enumerate(levels):
        kind, chroma, hue = rng.random(), vivid * rng.uniform(0.7, 1.3), base + spread * k + rng.normal(0, 0.2)
        if kind < 0.08:
            chroma = rng.uniform(0.0, 0.04)
        elif kind < 0.15:
            lightness = rng.uniform(0.2, 0.3)
        elif kind < 0.19:
            lightness, chroma = 0.87, 0.05
        colours.append(oklch_to_linear(lightness, chroma, hue))
    return np.array(colours)


class Graph:
    """A thin wrapper over a material's node tree: makes nodes, sets inputs by name and links sockets."""

    def __init__(self, tree: bpy.types.NodeTree, rng: np.random.Generator):
        self.tree, self.rng = tree, rng

    def node(self, kind: str, inputs: dict | None = None, **props) -> bpy.types.Node:
        """New node `ShaderNode<kind>`; an input value that is a socket is linked, anything else is set."""
        node = self.tree.nodes.new("ShaderNode" + kind)
        for name, value in props.items():
            setattr(node, name, value)
        for name, value in (inputs or {}).items():
            self.set(node, name, value)
        return node

    def set(self, node: bpy.types.Node, name: str, value) -> None:
        if isinstance(value, bpy.types.NodeSocket):
            self.tree.links.new(value, node.inputs[name])
        elif isinstance(value, np.ndarray):
            node.inputs[name].default_value = (*value, 1.0)
        else:
            node.inputs[name].default_value = value

    def coords(self, flat: bool) -> bpy.types.NodeSocket:
        """Texture coordinates: 2D from the UV map, or 3D from the point attribute."""
        if flat:
            return self.node("UVMap", uv_map=UV_NAME).outputs["UV"]
        return self.node("Attribute", attribute_name=TEX_ATTRIBUTE).outputs["Vector"]

    def ramp(
        self, fac: bpy.types.NodeSocket, colours: Colours, lo: float, hi: float, hard: bool
    ) -> bpy.types.NodeSocket:
        """Maps fac in [lo, hi] over the colours, in steps (hard) or smoothly."""
        node = self.node("ValToRGB", {"Fac": fac})
        ramp = node.color_ramp
        ramp.interpolation = "CONSTANT" if hard else "LINEAR"
        stops = np.linspace(lo, hi, len(colours) + int(hard))[: len(colours)]
        if hard:
            stops[0] = 0.0
        while len(ramp.elements) < len(colours):
            ramp.elements.new(1.0)
        for element, stop, colour in zip(ramp.elements, stops, colours, strict=True):
            element.position = float(stop)
            element.color = (*colour, 1.0)
        return node.outputs["Color"]


def feature(rng: np.random.Generator) -> float:
    """Texture feature size in object lengths, log-uniform."""
    return float(np.exp(rng.uniform(*np.log(FEATURE_SIZE))))


def checker(g: Graph, colours: Colours) -> bpy.types.NodeSocket:
    inputs = {"Vector": g.coords(g.rng.random() < 0.5), "Scale": 1 / feature(g.rng)}
    return g.node("TexChecker", inputs | {"Color1": colours[0], "Color2": colours[1]}).outputs["Color"]


def brick(g: Graph, colours: Colours) -> bpy.types.NodeSocket:
    """Bricks, or (with no row offset) a tiled grid, in two brick colours and a mortar colour."""
    rng, size = g.rng, feature(g.rng)
    inputs = {"Vector": g.coords(True), "Scale": 0.3 / size, "Mortar Size": rng.uniform(0.02, 0.06)}
    inputs |= {"Color1": colours[0], "Color2": colours[-1], "Mortar": colours[1]}
    inputs |= {
        "Brick Width": rng.uniform(0.3, 0.8),
        "Row Height": rng.uniform(0.2, 0.4),
        "Bias": rng.uniform(-0.4, 0.4),
    }
    return g.node("TexBrick", inputs, offset=float(rng.choice([0.0, 0.5]))).outputs["Color"]


def stripes(g: Graph, colours: Colours) -> bpy.types.NodeSocket:
    """Bands or rings, straight or wobbling; the wave node's period is 0.314 / scale."""
    rng, size = g.rng, feature(g.rng)
    inputs = {"Vector": g.coords(False), "Scale": 0.157 / size, "Phase Offset": rng.uniform(0, 6.0)}
    inputs |= {"Distortion": float(rng.choice([0.0, 2.0, 5.0])), "Detail": 0.0, "Detail Scale": rng.uniform(0.5, 1.5)}
    kind = "BANDS" if rng.random() < 0.65 else "RINGS"
    axes = {"bands_direction": str(rng.choice(["X", "Y", "Z", "DIAGONAL"]))}
    wave = g.node("TexWave", inputs, wave_type=kind, rings_direction=str(rng.choice(["X", "Y", "Z"])), **axes)
    return g.ramp(wave.outputs["Fac"], colours, 0.0, 1.0, rng.random() < 0.7)


def cells(g: Graph, colours: Colours) -> bpy.types.NodeSocket:
    """Voronoi cells: each cell one colour of the ramp, or rings around the cell centres."""
    rng, size = g.rng, feature(g.rng)
    node = g.node("TexVoronoi", {"Vector": g.coords(False), "Scale": 0.7 / size, "Detail": 0.0})
    node.distance = str(rng.choice(["EUCLIDEAN", "MANHATTAN", "CHEBYCHEV"]))
    if rng.random() < 0.6:
        split = g.node("SeparateColor", {"Color": node.outputs["Color"]})
        return g.ramp(split.outputs[0], colours, 0.0, 1.0, True)
    return g.ramp(node.outputs["Distance"], colours, 0.15, 0.75, rng.random() < 0.6)


def crackle(g: Graph, colours: Colours) -> bpy.types.NodeSocket:
    """Dark or bright joints between voronoi cells, like dry mud or a giraffe."""
    inputs = {"Vector": g.coords(False), "Scale": 0.6 / feature(g.rng)}
    node = g.node("TexVoronoi", inputs | {"Detail": 0.0}, feature="DISTANCE_TO_EDGE")
    width = g.rng.uniform(0.08, 0.2)
    return g.ramp(node.outputs["Distance"], colours[:2], 0.0, 2 * width, g.rng.random() < 0.6)


def dots(g: Graph, colours: Colours) -> bpy.types.NodeSocket:
    """Polka dots: the distance to the points of a regular (or slightly shaken) 2D lattice, cut at a radius."""
    rng = g.rng
    inputs = {"Vector": g.coords(True), "Scale": 0.7 / feature(rng), "Randomness": float(rng.choice([0.0, 0.0, 0.5]))}
    node = g.node("TexVoronoi", inputs | {"Detail": 0.0}, voronoi_dimensions="2D")
    return g.ramp(node.outputs["Distance"], colours[:2], 0.0, 2 * rng.uniform(0.22, 0.4), True)


def blotches(g: Graph, colours: Colours) -> bpy.types.NodeSocket:
    """Noise through a ramp; noise stays mostly within 0.3..0.7, hence the ramp's range."""
    rng = g.rng
    inputs = {"Vector": g.coords(False), "Scale": 0.6 / feature(rng), "Detail": float(rng.integers(0, 3))}
    noise = g.node("TexNoise", inputs | {"Distortion": float(rng.choice([0.0, 0.0, 1.5]))})
    return g.ramp(noise.outputs["Fac"], colours, 0.33, 0.67, rng.random() < 0.5)


def swirl(g: Graph, colours: Colours) -> bpy.types.NodeSocket:
    inputs = {"Vector": g.coords(False), "Scale": 0.3 / feature(g.rng), "Distortion": g.rng.uniform(0.8, 2.0)}
    node = g.node("TexMagic", inputs, turbulence_depth=int(g.rng.integers(1, 3)))
    return g.ramp(node.outputs["Fac"], colours, 0.1, 0.9, g.rng.random() < 0.4)


def gradient(g: Graph, colours: Colours) -> bpy.types.NodeSocket:
    """A smooth or stepped colour run across the part."""
    split = g.node("SeparateXYZ", {"Vector": g.coords(False)})
    reach = g.rng.uniform(0.15, 0.5)
    axis = split.outputs[int(g.rng.integers(3))]
    fac = g.node("MapRange", {"Value": axis, "From Min": -reach, "From Max": reach}).outputs["Result"]
    repeats = np.concatenate([colours] * int(g.rng.integers(1, 4)))
    return g.ramp(fac, repeats, 0.0, 1.0, g.rng.random() < 0.5)


def srgb(linear: np.ndarray) -> np.ndarray:
    """Linear to sRGB-encoded values, as 8-bit images hold them."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-6) ** (1 / 2.4) - 0.055)


def stroke_mask(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A glyph-like polyline of 2..4 segments; x and y are the pixels' coordinates in [0, 1], float32 images."""
    points = rng.uniform(-0.2, 0.2, (int(rng.integers(3, 6)), 2)) + rng.uniform(0.1, 0.9, 2)
    width, mask = rng.uniform(0.018, 0.045), np.zeros(x.shape, bool)
    for start, end in pairwise(points.tolist()):
        dx, dy = end[0] - start[0], end[1] - start[1]
        px, py = x - start[0], y - start[1]
        along = np.clip((px * dx + py * dy) / max(dx * dx + dy * dy, 1e-6), 0, 1)
        mask |= (px - along * dx) ** 2 + (py - along * dy) ** 2 < width**2
    return mask


def shape_mask(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """One random disc, ring, rotated rectangle or stroke as a boolean image."""
    kind, angle, size = int(rng.integers(4)), rng.uniform(0, np.pi), rng.uniform(0.06, 0.2)
    if kind == 3:
        return stroke_mask(rng, x, y)
    px, py = x - rng.uniform(0, 1), y - rng.uniform(0, 1)
    if kind == 0:
        return px * px + py * py < size * size
    if kind == 1:
        return np.abs(np.sqrt(px * px + py * py) - size) < 0.35 * size
    c, s, length = float(np.cos(angle)), float(np.sin(angle)), size * rng.uniform(0.8, 2.0)
    return (np.abs(c * px + s * py) < length) & (np.abs(c * py - s * px) < size * 0.6)


def painted(g: Graph, colours: Colours) -> bpy.types.NodeSocket:
    """An image of random shapes over a plain, gridded or half-and-half ground; it repeats every `tile` lengths."""
    rng = g.rng
    axis = ((np.arange(IMAGE_PX) + 0.5) / IMAGE_PX).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    index = np.zeros((IMAGE_PX, IMAGE_PX), int)
    ground = int(rng.integers(3))
    if ground == 1:
        lines = int(rng.integers(3, 7))
        index[((x * lines) % 1 < 0.2) | ((y * lines) % 1 < 0.2)] = 1
    elif ground == 2:
        index[x + rng.uniform(-0.5, 0.5) * y > 0.5] = 1
    for _ in range(int(rng.integers(6, 16))):
        index[shape_mask(rng, x, y)] = int(rng.integers(1, len(colours)))
    pixels = np.ones((IMAGE_PX, IMAGE_PX, 4), np.float32)
    pixels[..., :3] = srgb(colours)[index]
    image = bpy.data.images.new("painted", IMAGE_PX, IMAGE_PX)
    image.pixels.foreach_set(pixels.ravel())
    image.update()
    tile = rng.uniform(0.45, 0.9)
    vector = g.node("VectorMath", {0: g.coords(True), 1: (1 / tile,) * 3}, operation="MULTIPLY").outputs["Vector"]
    return g.node("TexImage", {"Vector": vector}, image=image).outputs["Color"]


def layered(g: Graph, colours: Colours) -> bpy.types.NodeSocket:
    """Two textures, one showing through the noise holes of the other."""
    makers = (checker, brick, stripes, dots)
    first, second = (makers[int(k)] for k in g.rng.permutation(len(makers))[:2])
    noise = g.node("TexNoise", {"Vector": g.coords(False), "Scale": 0.35 / feature(g.rng), "Detail": 1.0})
    mask = g.ramp(noise.outputs["Fac"], np.array([[0.0] * 3, [1.0] * 3]), 0.0, 1.0, True)
    mix = g.node("Mix", data_type="RGBA")
    for socket, value in ((0, mask), (6, first(g, colours)), (7, second(g, colours[::-1]))):
        g.tree.links.new(value, mix.inputs[socket])
    return mix.outputs[2]


TEXTURES: dict[str, tuple[float, Callable[[Graph, Colours], bpy.types.NodeSocket]]] = {
    "checker": (1.2, checker),
    "brick": (1.2, brick),
    "stripes": (1.5, stripes),
    "cells": (1.3, cells),
    "crackle": (0.8, crackle),
    "dots": (1.1, dots),
    "blotches": (1.4, blotches),
    "swirl": (0.6, swirl),
    "gradient": (0.9, gradient),
    "painted": (2.0, painted),
    "layered": (0.8, layered),
}


def weighted(rng: np.random.Generator, table: dict) -> Callable:
    """Draws the function of one entry of a registry {name: (weight, function)}."""
    weights = np.array([weight for weight, _ in table.values()])
    return list(table.values())[int(rng.choice(len(weights), p=weights / weights.sum()))][1]


def surface(g: Graph, shader: bpy.types.Node) -> None:
    """Random finish: roughness, metal, coat, sheen, mild bump."""
    rng = g.rng
    shader.inputs["Roughness"].default_value = rng.uniform(0.25, 1.0)
    if rng.random() < 0.18:
        shader.inputs["Metallic"].default_value = rng.uniform(0.5, 1.0)
    if rng.random() < 0.15:
        shader.inputs["Coat Weight"].default_value = rng.uniform(0.2, 0.8)
    if rng.random() < 0.08:
        shader.inputs["Sheen Weight"].default_value = rng.uniform(0.1, 0.4)
    if rng.random() < 0.2:
        noise = g.node("TexNoise", {"Vector": g.coords(False), "Scale": 0.6 / feature(rng), "Detail": 1.0})
        inputs = {"Height": noise.outputs["Fac"], "Strength": rng.uniform(0.2, 0.5), "Distance": 0.05}
        g.set(shader, "Normal", g.node("Bump", inputs).outputs["Normal"])


def make_material(rng: np.random.Generator, colours: Colours, textured: bool) -> bpy.types.Material:
    """One material in 2..4 of the palette's colours. Near-white and near-black come last: accents, not grounds."""
    material = bpy.data.materials.new("procedural")
    material.use_nodes = True
    shader = material.node_tree.nodes["Principled BSDF"]
    g = Graph(material.node_tree, rng)
    chosen = colours[rng.permutation(len(colours))[: int(rng.integers(2, 5))]]
    luminance = chosen @ [0.2126, 0.7152, 0.0722]
    chosen = chosen[np.argsort((luminance > 0.6) | (luminance < 0.04), kind="stable")]
    base = weighted(rng, TEXTURES)(g, chosen) if textured else chosen[0]
    g.set(shader, "Base Color", base)
    surface(g, shader)
    if rng.random() < 0.03:
        g.set(shader, "Emission Color", base)
        shader.inputs["Emission Strength"].default_value = rng.uniform(0.1, 0.3)
    return material


def make_materials(rng: np.random.Generator) -> list[bpy.types.Material]:
    """The 2..4 materials of one object; in 3 % of the objects one of them is glassy or see-through."""
    colours = palette(rng)
    materials = [make_material(rng, colours, k < 2 or rng.random() < 0.5) for k in range(int(rng.integers(2, 5)))]
    if rng.random() < 0.03:
        inputs = materials[-1].node_tree.nodes["Principled BSDF"].inputs
        name, value = [("Transmission Weight", 0.7), ("Alpha", 0.6)][int(rng.integers(2))]
        inputs[name].default_value = value
        inputs["Metallic"].default_value = 0.0
    return materials
