"""Unlimited textured 3D objects that need no download, in the spirit of LRM-Zero's Zeroverse.

`build(seed)` composes 2..9 primitives (`shapes.py`), each possibly bent, cut by other primitives, dented or turned into
a wireframe, puts them together so that they touch, and gives them materials (`materials.py`). The result lies in a box
of longest side 1 around the origin, z up. Everything is a function of the seed alone, through one Philox generator.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import bpy
import numpy as np
from materials import TEX_ATTRIBUTE, UV_NAME, make_materials, weighted
from shapes import TAU, Shape, cage, from_mesh, largest_piece, primitive, to_mesh, waves

ASPECT = (1.4, 2.3)  # range of the greatest allowed ratio of longest to shortest principal extent
# Even offsets would shoot needles out of sharp corners.
WIRE = {"offset": 0.0, "use_even_offset": False}
SHARP_ANGLE = np.radians(35)


@dataclass(frozen=True)
class Part:
    """A shape placed in the object: world = scale * rotation @ local + offset; `material` indexes the object's list."""

    shape: Shape
    scale: float
    rotation: np.ndarray
    offset: np.ndarray
    material: int

    def points(self) -> np.ndarray:
        return self.scale * self.shape.verts @ self.rotation.T + self.offset

    def support(self, direction: np.ndarray) -> np.ndarray:
        """The part's farthest point along a direction."""
        points = self.points()
        return points[np.argmax(points @ direction)]


def unit(rng: np.random.Generator) -> np.ndarray:
    """A uniform random direction."""
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)


def turn(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rotation matrix about a unit axis, angle in radians."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def modified(base: Shape, others: list[Shape], kind: str, **settings) -> Shape:
    """The shape after one Blender modifier; `others` become the objects of its `object` setting, one at a time."""
    scene = bpy.context.scene
    objects = [bpy.data.objects.new("scratch", to_mesh(shape)) for shape in [base, *others]]
    for obj in objects:
        scene.collection.objects.link(obj)
    for k in range(max(1, len(others))):
        modifier = objects[0].modifiers.new("scratch", kind)
        if others:
            modifier.object = objects[k + 1]
        for name, value in settings.items():
            setattr(modifier, name, value)
    mesh = bpy.data.meshes.new_from_object(objects[0].evaluated_get(bpy.context.evaluated_depsgraph_get()))
    # A boolean may leave two faces back to back; validate() keeps one of them.
    mesh.validate()
    result = from_mesh(mesh)
    for scratch in [mesh, *(obj.data for obj in objects)]:
        bpy.data.meshes.remove(scratch)
    return result


def wireframe(rng: np.random.Generator) -> Shape:
    """A coarse solid's edges as bars, thick enough to show at 64 px."""
    shape = cage(rng).normalised()
    return modified(shape, [], "WIREFRAME", thickness=rng.uniform(0.07, 0.13), **WIRE).normalised()


def cut(rng: np.random.Generator, shape: Shape) -> Shape:
    """Subtract 1..3 primitives; the cut faces get material slot 1. A cut that removes too little or too much is undone."""
    cutters = []
    for _ in range(int(rng.integers(1, 4))):
        tool = primitive(rng)
        centre = shape.verts[int(rng.integers(len(shape.verts)))] * rng.uniform(0.0, 0.9)
        verts = tool.verts * (rng.uniform(0.35, 0.8) * rng.uniform(0.6, 1.4, 3)) @ random_rotation(rng).T + centre
        cutters.append(replace(tool, verts=verts, mats=np.ones_like(tool.mats)))
    # Unlike FAST, the MANIFOLD solver never leaves holes, and gives up (returns the input) on open meshes.
    result = largest_piece(modified(shape, cutters, "BOOLEAN", operation="DIFFERENCE", solver="MANIFOLD"))
    kept = result.volume() / shape.volume() if len(result.sizes) else 0.0
    return result if 0.3 < kept < 0.97 and len(result.sizes) < 20000 else shape


def dent(rng: np.random.Generator, shape: Shape) -> Shape:
    """Moves the surface along its normals by a wavy field."""
    amount = rng.uniform(0.02, 0.07) * waves(rng, 4, 6.0, 22.0)(shape.verts)
    return replace(shape, verts=shape.verts + amount[:, None] * shape.normals())


def warp(rng: np.random.Generator, shape: Shape) -> Shape:
    """Displace the vertices by a smooth vector field."""
    fields = [waves(rng, 2, 3.0, 7.0) for _ in range(3)]
    return replace(shape, verts=shape.verts + 0.09 * np.stack([field(shape.verts) for field in fields], 1))


def twist(rng: np.random.Generator, shape: Shape) -> Shape:
    x, y, z = shape.verts.T
    angle = rng.uniform(0.8, 3.0) * rng.choice([-1, 1]) * z
    c, s = np.cos(angle), np.sin(angle)
    return replace(shape, verts=np.stack([c * x - s * y, s * x + c * y, z], 1))


def taper(rng: np.random.Generator, shape: Shape) -> Shape:
    factor = 1 + rng.uniform(0.4, 0.8) * rng.choice([-1, 1]) * 2 * shape.verts[:, 2:]
    return replace(shape, verts=shape.verts * np.concatenate([factor, factor, np.ones_like(factor)], 1))


def bend(rng: np.random.Generator, shape: Shape) -> Shape:
    """Rolls the z axis onto an arc in the xz plane; its radius stays above the shape's half width."""
    radius = rng.uniform(0.55, 1.2)
    x, y, z = shape.verts.T
    angle = z / radius
    return replace(shape, verts=np.stack([radius - (radius - x) * np.cos(angle), y, (radius - x) * np.sin(angle)], 1))


def stretch(rng: np.random.Generator, shape: Shape) -> Shape:
    return replace(shape, verts=shape.verts * rng.uniform(0.4, 1.0, 3))


def plain(_rng: np.random.Generator, shape: Shape) -> Shape:
    return shape


DEFORMATIONS: dict[str, tuple[float, Callable[[np.random.Generator, Shape], Shape]]] = {
    "plain": (2.0, plain),
    "stretch": (2.0, stretch),
    "dent": (1.5, dent),
    "warp": (1.0, warp),
    "twist": (1.0, twist),
    "taper": (1.0, taper),
    "bend": (1.0, bend),
}


def make_shape(rng: np.random.Generator, cut_chance: float) -> Shape:
    """A finished part in local units: longest side 1, centred."""
    if rng.random() < 0.09:
        return wireframe(rng)
    shape = weighted(rng, DEFORMATIONS)(rng, primitive(rng)).normalised()
    if rng.random() < 0.3:
        shape = stretch(rng, shape).normalised()
    return cut(rng, shape).normalised() if rng.random() < cut_chance else shape


def new_part(rng: np.random.Generator, scale: float, cut_chance: float = 0.15) -> Part:
    return Part(make_shape(rng, cut_chance), scale, random_rotation(rng), np.zeros(3), int(rng.integers(4)))


def core_part(rng: np.random.Generator) -> Part:
    return new_part(rng, 1.0, 0.5)


def meet(part: Part, point: np.ndarray) -> Part:
    """Move the part so that its nearest vertex lies at `point`, unless the part contains the point already."""
    if part.shape.contains((point - part.offset) @ part.rotation / part.scale):
        return part
    points = part.points()
    nearest = points[np.argmin(((points - point) ** 2).sum(1))]
    return replace(part, offset=part.offset + point - nearest)


def join(part: Part, point: np.ndarray, direction: np.ndarray, embed: float) -> Part:
    """Moves the part so that its lowest point along `direction` lies `embed` times its extent below `point`."""
    free = replace(part, offset=np.zeros(3))
    low, high = free.support(-direction), free.support(direction)
    return meet(replace(part, offset=point - low - direction * embed * ((high - low) @ direction)), point)


def attach(rng: np.random.Generator, parts: list[Part], part: Part) -> Part:
    """Puts the part onto a random surface point of one of the others, facing roughly outwards."""
    host = parts[int(rng.integers(len(parts)))]
    points = host.points()
    point = points[int(rng.integers(len(points)))]
    outward = point - np.mean([p.offset for p in parts], axis=0) + 0.3 * unit(rng)
    return join(part, point, outward / np.linalg.norm(outward), rng.uniform(0.1, 0.4))


def scatter(rng: np.random.Generator) -> list[Part]:
    """A core with smaller parts all over it."""
    parts = [core_part(rng)]
    for _ in range(int(rng.integers(2, 7))):
        parts.append(attach(rng, parts, new_part(rng, rng.uniform(0.45, 0.9))))
    return parts


def cluster(rng: np.random.Generator) -> list[Part]:
    """Large parts grown through each other, as in Zeroverse."""
    parts = [core_part(rng)]
    for _ in range(int(rng.integers(2, 7))):
        part = replace(new_part(rng, rng.uniform(0.5, 1.0), 0.25), offset=rng.uniform(-0.4, 0.4, 3))
        points = parts[int(rng.integers(len(parts)))].points()
        parts.append(meet(part, points[np.argmin(((points - part.offset) ** 2).sum(1))]))
    return parts


def stack(rng: np.random.Generator) -> list[Part]:
    """A tower, a chain or a spiral: each part on the far end of the one before, along a turning direction."""
    parts, direction = [core_part(rng)], np.array([0.0, 0.0, 1.0])
    curl, shrink = turn(unit(rng), float(rng.choice([0.0, 0.5, 0.9]))), rng.uniform(0.75, 1.05)
    same = rng.random() < 0.35
    for _ in range(int(rng.integers(2, 6))):
        last, direction = parts[-1], curl @ direction
        part = replace(last, rotation=curl @ last.rotation) if same else new_part(rng, 1.0)
        part = replace(part, scale=last.scale * shrink, material=int(rng.integers(4)))
        parts.append(join(part, last.support(direction), direction, rng.uniform(0.15, 0.4)))
    return [*parts, attach(rng, parts, new_part(rng, rng.uniform(0.45, 0.8)))]


def wheel(rng: np.random.Generator) -> list[Part]:
    """A core with equal arms around an axis, and one or two odd parts that break the symmetry."""
    core, arm = core_part(rng), new_part(rng, rng.uniform(0.4, 0.8))
    count, lift, embed = int(rng.integers(3, 7)), rng.uniform(-0.6, 0.6), rng.uniform(0.15, 0.35)
    parts, second = [core], int(rng.integers(4))
    for k in range(count):
        around = turn(np.array([0.0, 0.0, 1.0]), k / count * TAU)
        direction = around @ np.array([np.cos(lift), 0.0, np.sin(lift)])
        copy = replace(arm, rotation=around @ arm.rotation, material=second if k % 2 else arm.material)
        parts.append(join(copy, core.support(direction), direction, embed))
    odd = [attach(rng, parts[:1], new_part(rng, rng.uniform(0.45, 0.8))) for _ in range(int(rng.integers(1, 3)))]
    return parts + odd


def creature(rng: np.random.Generator) -> list[Part]:
    """Mirrored pairs of limbs on a body, and a head on one side."""
    parts, body = [], core_part(rng)
    mirror = np.array([-1.0, 1.0, 1.0])
    for _ in range(int(rng.integers(1, 4))):
        limb, direction, embed = new_part(rng, rng.uniform(0.4, 0.9)), unit(rng), rng.uniform(0.15, 0.35)
        direction[0] = abs(direction[0]) + 0.5
        direction /= np.linalg.norm(direction)
        parts.append(join(limb, body.support(direction), direction, embed))
        baked = replace(limb.shape, verts=limb.shape.verts @ limb.rotation.T * mirror).flipped()
        twin = replace(limb, shape=baked, rotation=np.eye(3))
        parts.append(join(twin, body.support(direction * mirror), direction * mirror, embed))
    head = join(new_part(rng, rng.uniform(0.45, 0.8)), body.support(np.array([0, 1.0, 0])), np.array([0, 1.0, 0]), 0.25)
    return [body, head, *parts]


def table(rng: np.random.Generator) -> list[Part]:
    """A flat top on 3..5 legs, with things standing on it."""
    top = new_part(rng, 1.0, 0.3)
    up = np.array([0.0, 0.0, 1.0])
    flat = top.shape.verts @ top.rotation.T * [1.0, 1.0, rng.uniform(0.2, 0.4)]
    top = replace(top, shape=replace(top.shape, verts=flat), rotation=np.eye(3))
    leg, legs, embed = new_part(rng, rng.uniform(0.5, 0.8)), int(rng.integers(3, 6)), rng.uniform(0.15, 0.3)
    slim = leg.shape.verts * [0.45, 0.45, 1.0]
    leg = replace(leg, shape=replace(leg.shape, verts=slim), rotation=turn(up, rng.uniform(0, TAU)))
    parts, start = [top], rng.uniform(0, TAU)
    for k in range(legs):
        angle = start + k / legs * TAU
        point = top.support(np.array([np.cos(angle), np.sin(angle), -0.5]))
        parts.append(join(leg, point, -up, embed))
    for _ in range(int(rng.integers(1, 4))):
        point = top.points()[int(rng.integers(len(top.shape.verts)))]
        parts.append(join(new_part(rng, rng.uniform(0.4, 0.8)), point, up, rng.uniform(0.15, 0.3)))
    return parts


LAYOUTS: dict[str, tuple[float, Callable[[np.random.Generator], list[Part]]]] = {
    "scatter": (3.0, scatter),
    "cluster": (2.0, cluster),
    "stack": (1.5, stack),
    "wheel": (1.5, wheel),
    "creature": (1.3, creature),
    "table": (1.2, table),
}


def box_uv(shape: Shape) -> np.ndarray:
    """(loops, 2) texture coordinates: each polygon seen along the axis it faces most, in the verts' own units."""
    loops = shape.loops
    owner = np.repeat(np.arange(len(shape.sizes)), shape.sizes)
    starts = np.cumsum(shape.sizes) - shape.sizes
    following = np.arange(len(loops)) + 1
    following[starts + shape.sizes - 1] = starts
    normal = np.zeros((len(shape.sizes), 3))
    np.add.at(normal, owner, np.cross(shape.verts[loops], shape.verts[loops[following]]))
    axis = np.abs(normal).argmax(1)[owner]
    corner = shape.verts[loops]
    rows = np.arange(len(loops))
    return np.stack([corner[rows, (axis + 1) % 3], corner[rows, (axis + 2) % 3]], 1)


def emit(rng: np.random.Generator, part: Part, world: np.ndarray, length: float, slots: list) -> bpy.types.Object:
    """Links one object, which is returned, into the scene: world verts, smooth shading with sharp edges, and both texture layers.

    length: object lengths per local unit, which makes texture features equally large on small and large parts.
    """
    local = replace(part.shape, verts=part.shape.verts * length)
    mesh = to_mesh(replace(part.shape, verts=world))
    # Random shifts keep pattern edges off flat faces, where a 3D checker would flicker.
    rotation = random_rotation(rng) if rng.random() < 0.4 else np.eye(3)
    tex = local.verts @ rotation.T + rng.uniform(-0.15, 0.15, 3)
    mesh.attributes.new(TEX_ATTRIBUTE, "FLOAT_VECTOR", "POINT").data.foreach_set(
        "vector", tex.astype(np.float32).ravel()
    )
    angle = float(rng.choice([0.0, 0.0, rng.uniform(0, TAU)]))
    c, s = np.cos(angle), np.sin(angle)
    uv = box_uv(local) @ np.array([[c, s], [-s, c]]) + rng.uniform(0, 1, 2)
    mesh.uv_layers.new(name=UV_NAME).data.foreach_set("uv", uv.astype(np.float32).ravel())
    for material in slots:
        mesh.materials.append(material)
    mesh.shade_smooth()
    mesh.set_sharp_from_angle(angle=SHARP_ANGLE)
    ob = bpy.data.objects.new("part", mesh)
    bpy.context.scene.collection.objects.link(ob)
    return ob


def frame(rng: np.random.Generator, clouds: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """Squashes sticks and sheets along their principal axes, turns the object, and fits it to longest side 1.

    Returns the parts' points, and the scale of lengths (apart from the squash).
    """
    stacked = np.concatenate(clouds)
    axes = np.linalg.eigh(np.cov(stacked.T))[1]
    size = np.ptp(stacked @ axes, axis=0)
    squash = (axes * np.minimum(1.0, size.min() * rng.uniform(*ASPECT) / size)) @ axes.T
    turned = squash if rng.random() < 0.3 else random_rotation(rng) @ squash
    stacked = stacked @ turned.T
    low, high = stacked.min(0), stacked.max(0)
    scale = 1 / float((high - low).max())
    return [scale * (cloud @ turned.T - (low + high) / 2) for cloud in clouds], scale


def build(seed: int) -> list[bpy.types.Object]:
    """Builds one object, made of one or more mesh objects, which are returned, into the current scene.

    seed: 0 <= seed < 2**63. The scene gets meshes and materials only: no camera, light or world. The same seed gives
    the same vertices and material settings in every process on the same machine.
    """
    rng = np.random.Generator(np.random.Philox(key=seed))
    materials = make_materials(rng)
    parts = weighted(rng, LAYOUTS)(rng)
    worlds, scale = frame(rng, [part.points() for part in parts])
    made = []
    for part, world in zip(parts, worlds, strict=True):
        slots = [materials[(part.material + k) % len(materials)] for k in range(2)]
        made.append(emit(rng, part, world, part.scale * scale, slots))
    return made
