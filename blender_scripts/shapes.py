"""Closed primitive meshes for the procedural objects, as numpy arrays, and deformations of them.

Nearly everything is a loft: rings of the same number of points, joined by quads and closed by two caps (or, for tori
and knots, into a loop). Primitives come out of `primitive` centred, with the longest bounding-box side 1.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import bmesh
import bpy
import numpy as np
from materials import weighted

TAU = 2 * np.pi


@dataclass(frozen=True)
class Shape:
    """A mesh of P polygons. verts: (N, 3). loops: (L,) vertex per corner, by polygon. sizes: (P,) corners. mats: (P,) slots."""

    verts: np.ndarray
    loops: np.ndarray
    sizes: np.ndarray
    mats: np.ndarray

    def triangles(self) -> np.ndarray:
        """(T, 3) fan triangulation; right for volumes even where a concave cap's fan overlaps itself."""
        starts = np.cumsum(self.sizes) - self.sizes
        fan = np.repeat(starts, self.sizes - 2)
        step = np.arange(len(fan)) - np.repeat(np.cumsum(self.sizes - 2) - (self.sizes - 2), self.sizes - 2)
        return self.loops[np.stack([fan, fan + step + 1, fan + step + 2], 1)]

    def volume(self) -> float:
        a, b, c = np.moveaxis(self.verts[self.triangles()], 1, 0)
        return float((a * np.cross(b, c)).sum() / 6)

    def normals(self) -> np.ndarray:
        """(N, 3) area-weighted unit vertex normals."""
        tris = self.triangles()
        a, b, c = np.moveaxis(self.verts[tris], 1, 0)
        total = np.zeros_like(self.verts)
        for corner in range(3):
            np.add.at(total, tris[:, corner], np.cross(b - a, c - a))
        return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)

    def contains(self, point: np.ndarray) -> bool:
        """True if `point` (3,) is inside: the triangles' solid angles add up to 4 pi there, outside to 0."""
        a, b, c = np.moveaxis(self.verts[self.triangles()] - point, 1, 0)
        la, lb, lc = (np.linalg.norm(edge, axis=1) for edge in (a, b, c))
        below = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
        return abs(float(np.arctan2((a * np.cross(b, c)).sum(1), below).sum())) > np.pi

    def flipped(self) -> "Shape":
        return Shape(self.verts, self.loops[::-1], self.sizes[::-1], self.mats[::-1])

    def normalised(self) -> "Shape":
        low, high = self.verts.min(0), self.verts.max(0)
        return replace(self, verts=(self.verts - (low + high) / 2) / (high - low).max())


def from_mesh(mesh: bpy.types.Mesh) -> Shape:
    """Vertices and faces of a Blender mesh, copied."""
    verts = np.empty(3 * len(mesh.vertices), np.float32)
    loops = np.empty(len(mesh.loops), np.int32)
    sizes, mats = np.empty(len(mesh.polygons), np.int32), np.empty(len(mesh.polygons), np.int32)
    mesh.vertices.foreach_get("co", verts)
    mesh.loops.foreach_get("vertex_index", loops)
    mesh.polygons.foreach_get("loop_total", sizes)
    mesh.polygons.foreach_get("material_index", mats)
    return Shape(verts.reshape(-1, 3).astype(float), loops, sizes, mats)


def largest_piece(shape: Shape) -> Shape:
    """The connected piece with the most vertices; pieces that a cut has severed would float in the air."""
    owner = np.repeat(np.arange(len(shape.sizes)), shape.sizes)
    label = np.arange(len(shape.verts))
    while True:
        lowest = np.full(len(shape.sizes), len(label))
        np.minimum.at(lowest, owner, label[shape.loops])
        spread = label.copy()
        np.minimum.at(spread, shape.loops, lowest[owner])
        spread = spread[spread]
        if (spread == label).all():
            break
        label = spread
    keep = label == np.bincount(label, minlength=1).argmax()
    if keep.all():
        return shape
    corners = keep[shape.loops]
    faces = np.bincount(owner, corners, minlength=len(shape.sizes)) > 0
    renumber = np.cumsum(keep) - 1
    return Shape(shape.verts[keep], renumber[shape.loops[corners]], shape.sizes[faces], shape.mats[faces])


def to_mesh(shape: Shape) -> bpy.types.Mesh:
    """A new Blender mesh with the shape's faces and coordinates."""
    mesh = bpy.data.meshes.new("procedural")
    mesh.vertices.add(len(shape.verts))
    mesh.loops.add(len(shape.loops))
    mesh.polygons.add(len(shape.sizes))
    mesh.vertices.foreach_set("co", shape.verts.astype(np.float32).ravel())
    mesh.loops.foreach_set("vertex_index", shape.loops.astype(np.int32))
    mesh.polygons.foreach_set("loop_start", (np.cumsum(shape.sizes) - shape.sizes).astype(np.int32))
    mesh.polygons.foreach_set("material_index", shape.mats.astype(np.int32))
    mesh.update(calc_edges=True)
    return mesh


def loft(rings: np.ndarray, closed: bool = False) -> Shape:
    """rings (R, K, 3) to a closed mesh with outward normals; `closed` joins the last ring to the first."""
    count, around = rings.shape[:2]
    index = np.arange(count * around).reshape(count, around)
    side, up = np.roll(index, -1, 1), np.roll(index, -1, 0)
    quads = np.stack([index, side, np.roll(up, -1, 1), up], -1)[: count if closed else count - 1]
    loops, sizes = quads.ravel(), np.full(quads.shape[0] * around, 4)
    if not closed:
        loops = np.concatenate([loops, index[0][::-1], index[-1]])
        sizes = np.concatenate([sizes, [around, around]])
    shape = Shape(rings.reshape(-1, 3), loops, sizes, np.zeros(len(sizes), np.int32))
    return shape if shape.volume() >= 0 else shape.flipped()


def revolve(radius: np.ndarray, height: np.ndarray, around: int, power: float = 2.0) -> Shape:
    """Surface of revolution about z; power != 2 makes the cross-section a superellipse (8 is a rounded square)."""
    angle = np.arange(around) / around * TAU
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    circle = np.sign(circle) * np.abs(circle) ** (2 / power)
    flat = np.maximum(radius, 0.004)[:, None, None] * circle
    return loft(np.concatenate([flat, np.broadcast_to(height[:, None, None], (*flat.shape[:2], 1))], -1))


def extrude(outline: np.ndarray, height: float, bevel: float) -> Shape:
    """A prism over the closed outline (K, 2); the bevel shrinks its ends towards the middle (star-like outlines)."""
    rise = np.linspace(0, 1, 12)
    ends = np.array([1 - bevel, 1 - 0.3 * bevel])
    scale = np.concatenate([ends, np.ones(12), ends[::-1]])
    z = np.concatenate([[0, 0.3 * bevel], 0.75 * bevel + rise * (height - 1.5 * bevel), [height - 0.3 * bevel, height]])
    if bevel == 0.0:
        scale, z = np.ones(12), rise * height
    flat = scale[:, None, None] * outline
    return loft(np.concatenate([flat, np.broadcast_to(z[:, None, None], (*flat.shape[:2], 1))], -1))


def subdivide_outline(corners: np.ndarray, per_side: int) -> np.ndarray:
    """Adds points along the edges, so that bends and twists of the extruded shape stay smooth."""
    share = (np.arange(per_side) / per_side)[None, :, None]
    return (corners[:, None] * (1 - share) + np.roll(corners, -1, 0)[:, None] * share).reshape(-1, 2)


def waves(rng: np.random.Generator, count: int, low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
    """A smooth random scalar field in about [-1, 1]: sinusoids of low..high radians per unit length, perhaps ridged."""
    direction = rng.normal(size=(count, 3))
    vectors = direction / np.linalg.norm(direction, axis=1, keepdims=True) * rng.uniform(low, high, (count, 1))
    phase, ridged = rng.uniform(0, TAU, count), rng.random() < 0.35

    def field(points: np.ndarray) -> np.ndarray:
        value = np.sin(points @ vectors.T + phase).sum(1) / np.sqrt(count)
        return 1 - 2 * np.abs(value) if ridged else value

    return field


def tube(path: np.ndarray, radius: np.ndarray, around: int, closed: bool) -> Shape:
    """Sweeps a circle along path (n, 3) with frames carried along it; a closed path's leftover twist is spread out."""
    tangent = np.roll(path, -1, 0) - np.roll(path, 1, 0) if closed else np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    side = np.empty_like(path)
    carried = np.cross(tangent[0], np.eye(3)[np.argmin(np.abs(tangent[0]))])
    for k, axis in enumerate(tangent):
        carried = carried - axis * (carried @ axis)
        carried = carried / np.linalg.norm(carried)
        side[k] = carried
    up = np.cross(tangent, side)
    angle = np.arange(around) / around * TAU
    if closed:
        leftover = np.arctan2(side[-1] @ up[0], side[-1] @ side[0])
        angle = angle - (np.arange(len(path)) / len(path) * leftover)[:, None]
    angle = np.broadcast_to(angle, (len(path), around))[..., None]
    ring = np.cos(angle) * side[:, None] + np.sin(angle) * up[:, None]
    return loft(path[:, None] + radius[:, None, None] * ring, closed)


def box(rng: np.random.Generator) -> Shape:
    a, b, c = rng.uniform(0.45, 1.0, 3)
    corners = np.array([[-a, -b], [a, -b], [a, b], [-a, b]]) / 2
    return extrude(subdivide_outline(corners, 8), c, float(rng.choice([0.0, 0.0, 0.08, 0.2])))


def prism(rng: np.random.Generator) -> Shape:
    sides = int(rng.choice([3, 5, 6, 8]))
    angle = np.arange(sides) / sides * TAU
    outline = subdivide_outline(np.stack([np.cos(angle), np.sin(angle)], 1) / 2, 6)
    return extrude(outline, rng.uniform(0.3, 1.4), float(rng.choice([0.0, 0.1])))


def star(rng: np.random.Generator) -> Shape:
    """A star, gear, flower or random blob outline r(angle), extruded."""
    teeth, depth = int(rng.integers(4, 11)), rng.uniform(0.2, 0.55)
    angle = np.arange(12 * teeth) / (12 * teeth) * TAU
    phase = teeth * angle
    profiles = [
        1 - depth * np.abs(((phase / np.pi) % 2) - 1),
        1 - 0.6 * depth * (np.sin(phase) > 0),
        1 - 0.5 * depth * (1 + np.sin(phase)),
        1 - 0.5 * depth * (1 + np.sin(2 * angle + 1.5 * np.sin(angle + depth * 9)) * np.cos(3 * angle)),
    ]
    radius = profiles[int(rng.integers(len(profiles)))] / 2
    outline = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return extrude(outline, rng.uniform(0.15, 0.7), float(rng.choice([0.0, 0.06])))


# Corners of letter-like outlines in a 3 x 3 square, counter-clockwise.
LETTERS = (
    ((0, 0), (3, 0), (3, 1), (1, 1), (1, 3), (0, 3)),
    ((0, 0), (3, 0), (3, 3), (2, 3), (2, 1), (1, 1), (1, 3), (0, 3)),
    ((1, 0), (2, 0), (2, 2), (3, 2), (3, 3), (0, 3), (0, 2), (1, 2)),
    ((1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3), (1, 2), (0, 2), (0, 1), (1, 1)),
    ((0, 0), (2, 0), (2, 2), (3, 2), (3, 3), (1, 3), (1, 1), (0, 1)),
    ((1, 0), (2, 0), (2, 1.5), (3, 1.5), (1.5, 3), (0, 1.5), (1, 1.5)),
    ((0, 0), (1, 0), (1, 1), (2, 1), (2, 0), (3, 0), (3, 3), (2, 3), (2, 2), (1, 2), (1, 3), (0, 3)),
)


def letter(rng: np.random.Generator) -> Shape:
    corners = np.array(LETTERS[int(rng.integers(len(LETTERS)))], float) / 3 - 0.5
    return extrude(subdivide_outline(corners, 3), rng.uniform(0.25, 0.8), 0.0)


def cylinder(rng: np.random.Generator) -> Shape:
    """A cylinder, cone or frustum, straight or with rounded rims."""
    top, height = float(rng.choice([1.0, 1.0, 0.05, rng.uniform(0.2, 0.8)])), rng.uniform(0.5, 2.4)
    t = np.linspace(0, 1, 14)
    radius, z = 0.5 + (0.5 * top - 0.5) * t, (t - 0.5) * height
    if rng.random() < 0.5:
        rim = rng.uniform(0.04, 0.12)
        radius = np.concatenate([[radius[0] - rim], radius, [radius[-1] - rim]])
        z = np.concatenate([[z[0] - rim], z, [z[-1] + rim]])
    return revolve(radius, z, int(rng.choice([24, 40])))


def ball(rng: np.random.Generator) -> Shape:
    """A sphere, ellipsoid-like superellipsoid or capsule."""
    polar = np.linspace(0.02, np.pi - 0.02, 24)
    bend, power = float(rng.choice([1.0, 1.0, 0.5, 1.6])), float(rng.choice([2.0, 2.0, 5.0, 1.2]))
    radius, z = np.sin(polar) ** bend, -np.sign(np.cos(polar)) * np.abs(np.cos(polar)) ** bend
    if rng.random() < 0.3:
        z = z + np.sign(z) * rng.uniform(0.2, 0.9)
    return revolve(radius, z, 40, power)


def lathe(rng: np.random.Generator) -> Shape:
    """A solid of revolution with a random smooth or stepped profile: vases, bottles, chess pieces, spools."""
    knots = rng.uniform(0.12, 0.5, int(rng.integers(4, 8)))
    t = np.linspace(0, 1, 36)
    where = t * (len(knots) - 1)
    if rng.random() < 0.3:
        radius = knots[np.minimum((t * len(knots)).astype(int), len(knots) - 1)]
    else:
        k = np.minimum(where.astype(int), len(knots) - 2)
        ease = 0.5 - 0.5 * np.cos(np.pi * (where - k))
        radius = knots[k] * (1 - ease) + knots[k + 1] * ease
    return revolve(radius, t * rng.uniform(0.7, 1.6), int(rng.choice([6, 32, 40])), float(rng.choice([2.0, 2.0, 6.0])))


def cup(rng: np.random.Generator) -> Shape:
    """A hollow vessel: the profile climbs outside and comes down inside."""
    t = np.linspace(0, 1, 14)
    flare, wall, depth = rng.uniform(-0.2, 0.25), rng.uniform(0.06, 0.14), rng.uniform(0.4, 1.1)
    outer = 0.38 + flare * t + rng.uniform(-0.1, 0.12) * np.sin(np.pi * t)
    inner = np.maximum(outer - wall, 0.06)[::-1]
    z = t * depth
    radius = np.concatenate([[0.05], outer, inner, [0.05]])
    height = np.concatenate([[0.0], z, np.maximum(z, wall)[::-1] + 0.001, [wall]])
    return revolve(radius, height, int(rng.choice([6, 32, 40])), float(rng.choice([2.0, 2.0, 6.0])))


def slab(rng: np.random.Generator) -> Shape:
    """A height field over a disc or rounded square: concentric rings across the top, round the rim, and back below."""
    spread = np.linspace(0.01, 0.5, 22)
    radius = np.concatenate([spread, spread[::-1]])
    thick = np.repeat([0.5, -0.5], 22) * rng.uniform(0.06, 0.25)
    shape = revolve(radius, thick, 64, float(rng.choice([2.0, 8.0])))
    field = waves(rng, 4, 4.0, 14.0)
    height = field(shape.verts * [1, 1, 0]) * rng.uniform(0.06, 0.16)
    under = np.where(shape.verts[:, 2] > 0, 1.0, rng.choice([1.0, 0.0, -0.5]))
    # A flat or opposite underside must stay below the deepest valley of the top.
    drop = np.where((shape.verts[:, 2] < 0) & (under < 0.5), -np.abs(height).max() * 1.6, 0.0)
    return replace(shape, verts=shape.verts + np.stack([0 * height, 0 * height, height * under + drop], 1))


def torus(rng: np.random.Generator) -> Shape:
    """Rings and frames: few segments around make polygonal frames and square sections."""
    minor, major = rng.uniform(0.1, 0.36), int(rng.choice([3, 4, 6, 48, 48, 48]))
    around = int(rng.choice([4, 6, 20, 20]))
    u, v = np.meshgrid(np.arange(major) / major * TAU, (np.arange(around) + 0.5) / around * TAU, indexing="ij")
    radius = 1 + minor * np.cos(v)
    rings = np.stack([radius * np.cos(u), radius * np.sin(u), minor * rng.uniform(0.7, 2.5) * np.sin(v)], -1)
    return loft(rings, closed=True)


def spline(rng: np.random.Generator) -> Shape:
    """A tube along a helix, an arch, a random smooth curve (open or closed) or a torus knot."""
    kind = int(rng.integers(5))
    t = np.linspace(0, 1, 128, endpoint=kind < 3)
    width = rng.uniform(0.07, 0.16)
    if kind == 0:
        turns = rng.uniform(1.5, 4)
        shrink = 1 - rng.uniform(0, 0.7) * t
        path = np.stack([shrink * np.cos(turns * TAU * t), shrink * np.sin(turns * TAU * t), t * turns * 0.6], 1) / 2
    elif kind == 1:
        reach = rng.uniform(0.5, 0.85) * TAU
        path = np.stack([np.cos(reach * t), 0.4 * np.sin(3 * t), np.sin(reach * t)], 1) / 2
    elif kind == 4:
        p, q = [(2, 3), (3, 2), (2, 5), (3, 4)][int(rng.integers(4))]
        radius = 1 + 0.45 * np.cos(q * TAU * t)
        path = np.stack([radius * np.cos(p * TAU * t), radius * np.sin(p * TAU * t), 0.6 * np.sin(q * TAU * t)], 1) / 2
        width = min(width, 0.12)
    else:
        # Whole periods close the curve (kind 3); other frequencies leave it open.
        frequency = rng.integers(1, 4, 3) if kind == 3 else rng.uniform(0.5, 1.4, 3)
        path = 0.5 * np.sin(TAU * t[:, None] * frequency + rng.uniform(0, TAU, 3))
        path += 0.15 * np.sin(TAU * t[:, None] * 2 + rng.uniform(0, TAU, 3))
    radius = width * (1 + rng.uniform(0, 0.5) * np.sin(TAU * t * int(rng.integers(1, 7))))
    return tube(path, radius, int(rng.choice([4, 6, 14, 14])), closed=kind >= 3)


def polyhedron(bm: bmesh.types.BMesh) -> Shape:
    mesh = bpy.data.meshes.new("scratch")
    bm.to_mesh(mesh)
    bm.free()
    shape = from_mesh(mesh)
    bpy.data.meshes.remove(mesh)
    return shape


def rock(rng: np.random.Generator) -> Shape:
    """The convex hull of random points on an ellipsoid: a faceted stone."""
    points = rng.normal(size=(int(rng.integers(8, 30)), 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    bm = bmesh.new()
    for point in points * rng.uniform(0.5, 1.0, 3):
        bm.verts.new(point)
    hull = bmesh.ops.convex_hull(bm, input=bm.verts)
    bmesh.ops.delete(bm, geom=[v for v in hull["geom_interior"] if isinstance(v, bmesh.types.BMVert)], context="VERTS")
    bmesh.ops.recalc_face_normals(bm, faces=bm.faces)
    return polyhedron(bm)


def icosphere(rng: np.random.Generator) -> Shape:
    """An icosphere, faceted or smooth, with spikes on some of them."""
    bm = bmesh.new()
    bmesh.ops.create_icosphere(bm, subdivisions=int(rng.choice([1, 2, 4])), radius=0.5)
    if rng.random() < 0.5 and len(bm.faces) < 400:
        length = rng.uniform(0.15, 0.4)
        poked = bmesh.ops.poke(bm, faces=bm.faces)["verts"]
        for vert in poked:
            vert.co *= 1 + length / vert.co.length
    return polyhedron(bm)


def cage(rng: np.random.Generator) -> Shape:
    """A coarse shape for the wireframe treatment: every edge becomes a bar."""
    kind = int(rng.integers(4))
    if kind == 0:
        bm = bmesh.new()
        bmesh.ops.create_icosphere(bm, subdivisions=int(rng.integers(1, 3)), radius=0.5)
        return polyhedron(bm)
    if kind == 1:
        t = np.linspace(0, 1, int(rng.integers(3, 6)))
        return revolve(rng.uniform(0.25, 0.6, len(t)), t * rng.uniform(0.6, 1.4), int(rng.integers(4, 9)))
    if kind == 2:
        u, v = np.meshgrid(np.arange(8) / 8 * TAU, np.arange(4) / 4 * TAU, indexing="ij")
        return loft(
            np.stack([(1 + 0.4 * np.cos(v)) * np.cos(u), (1 + 0.4 * np.cos(v)) * np.sin(u), 0.4 * np.sin(v)], -1), True
        )
    return rock(rng)


PRIMITIVES: dict[str, tuple[float, Callable[[np.random.Generator], Shape]]] = {
    "box": (1.6, box),
    "prism": (0.9, prism),
    "star": (1.1, star),
    "letter": (1.0, letter),
    "cylinder": (1.2, cylinder),
    "ball": (1.2, ball),
    "lathe": (1.3, lathe),
    "cup": (1.0, cup),
    "slab": (1.0, slab),
    "torus": (1.1, torus),
    "spline": (1.3, spline),
    "rock": (0.7, rock),
    "icosphere": (0.8, icosphere),
}


def primitive(rng: np.random.Generator) -> Shape:
    """A random closed solid, centred, longest side 1."""
    return weighted(rng, PRIMITIVES)(rng).normalised()
