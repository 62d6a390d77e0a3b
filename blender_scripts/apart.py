"""Moves surfaces that lie in one place apart, by a ten-thousandth of the scene's size.

Where two faces coincide, a ray that leaves one meets the other at once, and Cycles renders both black. Of two such faces the
smaller one, else the later one, moves to the side that its normal points to. Faces that nothing outside can see, as where
two solids touch, stay as they are.
"""

import bpy
import meshes
import numpy as np
import overlaps
from mathutils import Matrix

APART = 1e-4  # of the scene's size, per layer: 0.05 pixels of a picture of 512
SHARE = 1e-3  # of all area: below, nobody sees what is black
LAYERS = 8  # coincident surfaces that are told apart
POLYGONS = 5_000_000  # of a scene: 4 s; where there are more, nothing is looked for
IN_A_PLANE = 500_000  # polygons in planes of others that are looked at: 12 s at most; where there are more, the largest
PARTS = 10_000  # objects of a scene, those of its instances counted
NESTED = 8  # instances within instances that are looked into
LOOKS = 256  # places, at most, from which the outside is looked for
SLANTS = (
    (0, 0),
    (1, 0),
    (-1, 0),
    (0, 1),
    (0, -1),
    (3, 1),
    (-3, -1),
    (-1, 3),
    (1, -3),
)  # directions, from a surface's own


def separate():
    """Move coincident faces of the scene's meshes apart.

    Returns (True if there were any that can be seen, True if all faces were looked at). Instances of collections become objects
    if one of them has to be moved.
    """
    bpy.context.view_layer.update()
    objects, instances = meshes.rendered(instanced=False), _instances()
    count = sum(len(ob.data.polygons) for ob in objects)
    more = sum(len(ob.data.polygons) for ob, _ in instances)
    if count > POLYGONS or (not objects and not instances):
        return False, count <= POLYGONS
    fits = count + more <= POLYGONS and len(objects) + len(instances) <= PARTS
    parts = [_Part(ob, ob.matrix_world) for ob in objects]
    parts += [_Part(ob, matrix) for ob, matrix in instances] if fits else []
    if not parts:
        return False, False
    moved, all_looked_at = _separate(parts, len(objects))
    if moved is None:
        _make_real()
        return separate()
    return moved, all_looked_at and fits


def _separate(parts, movable):
    """Do what `separate` does for parts; moved is None if other ones than the first `movable`, instances, would have to move."""
    boxes = np.concatenate([part.box() for part in parts])
    centre, size = boxes.mean(0), float(np.linalg.norm(np.ptp(boxes, 0)))
    if not 0 < size < np.inf:
        return False, True
    areas = np.concatenate([part.areas() for part in parts])
    pairs, points, normals, all_looked_at = _coincident(parts, centre, size, areas)
    if _moved_share(pairs, areas) < SHARE:
        return False, all_looked_at
    starts = np.cumsum([0, *(part.count for part in parts)])
    pairs = pairs[_exposed(np.searchsorted(starts, pairs, "right"), points * size + centre, normals, size)]
    if _moved_share(pairs, areas) < SHARE:
        return False, all_looked_at
    layers = _layers(pairs, areas)
    if layers[starts[movable] :].any():
        return None, all_looked_at
    for part, first in zip(parts, starts, strict=False):
        mine = layers[first : first + part.count]
        if mine.any():
            _move(part, mine, APART * size)
    return True, all_looked_at


def _instances():
    """(mesh object, matrix in the world) of what the scene's instances of collections show, PARTS + 1 at most."""
    found = []
    waiting = [(ob, ob.matrix_world) for ob in filter(None, bpy.context.view_layer.objects) if not ob.hide_render]
    for _ in range(NESTED):
        inner = []
        for ob, matrix in waiting:
            collection = ob.instance_collection if ob.instance_type == "COLLECTION" else None
            if collection is None or len(found) > PARTS:
                continue
            base = matrix @ Matrix.Translation(-collection.instance_offset)
            shown = [(each, base @ each.matrix_world) for each in collection.all_objects if not each.hide_render]
            found += [(each, place) for each, place in shown if each.type == "MESH" and each.data.polygons]
            inner += [pair for pair in shown if pair[0].instance_type == "COLLECTION"]
        waiting = inner
    return found


def _make_real():
    """Make objects of the scene's instances of collections."""
    shared = [
        ob for ob in bpy.context.view_layer.objects if ob.instance_type == "COLLECTION" and ob.instance_collection
    ]
    with bpy.context.temp_override(selected_objects=shared, selected_editable_objects=shared):
        bpy.ops.object.duplicates_make_real()
    for ob in shared:
        ob.instance_type = "NONE"


def _coincident(parts, centre, size, areas):
    """Coincident polygons (K, 2), counted through all parts, and where: points (K, 3), / size from the centre, and normals.

    Last comes True if all polygons were looked at.
    """
    normals = np.concatenate([part.normals() for part in parts])
    points = np.concatenate([part.at(part.starts) for part in parts])
    polygons, planes = overlaps.sharing_a_plane(normals, (points - centre) / size)
    fits = len(polygons) <= IN_A_PLANE
    if not fits:
        kept = _largest(planes, areas[polygons])
        polygons, planes = polygons[kept], planes[kept]
    triangles, owners, planes = _triangles(parts, polygons, planes)
    return *overlaps.covered((triangles - centre) / size, owners, planes), fits


def _largest(planes, areas):
    """Mask (K,) of IN_A_PLANE polygons in the planes (K,) whose polygons have the largest mean area (K,), whole planes first."""
    _, planes, counts = np.unique(planes, return_inverse=True, return_counts=True)
    order = np.argsort(-np.bincount(planes, areas) / counts, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    kept = np.zeros(len(planes), bool)
    kept[np.argsort(rank[planes], kind="stable")[:IN_A_PLANE]] = True
    return kept


def _moved_share(pairs, areas):
    return areas[_layers(pairs, areas) > 0].sum() / max(areas.sum(), 1e-30)


class _Part:
    """A mesh object as arrays: local points (N, 3), corners (C,) and, of each polygon, its first corner and its length (P,)."""

    def __init__(self, ob, matrix):
        self.ob, mesh = ob, ob.data
        self.count = len(mesh.polygons)
        self.matrix = np.array(matrix)
        self.points, self.corners = meshes.points(mesh), meshes.corners(mesh)
        self.starts, self.lengths = meshes.starts_and_lengths(mesh)

    def at(self, corners):
        """Places of corners (...,) in the world (..., 3)."""
        return self.points[self.corners[corners]] @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def normals(self):
        """Unit normals (P, 3) in the world, to the side from which the corners run counter-clockwise."""
        axes = self.matrix[:3, :3]
        cofactors = np.stack([np.cross(axes[1], axes[2]), np.cross(axes[2], axes[0]), np.cross(axes[0], axes[1])])
        normals = meshes.normals(self.ob.data) @ cofactors.T
        return normals / np.maximum(np.sqrt(np.einsum("ij,ij->i", normals, normals)), 1e-30)[:, None]

    def box(self):
        """Corners (8, 3) of the box around it in the world."""
        return np.array(self.ob.bound_box) @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def areas(self):
        """Areas (P,) in the object's own units times its mean scale."""
        return meshes.read(self.ob.data.polygons, "area") * abs(np.linalg.det(self.matrix[:3, :3])) ** (2 / 3)


def _triangles(parts, polygons, planes):
    """Points (T, 3, 3) in the world, polygons (T,) and planes (T,) of the triangles that make up the polygons given."""
    of_plane = np.full(sum(part.count for part in parts), -1)
    of_plane[polygons] = planes
    points, owners, first = [], [], 0
    for part in parts:
        mine = of_plane[first : first + part.count] >= 0
        if (part.lengths[mine] > 4).any():
            part.ob.data.calc_loop_triangles()
            owner = meshes.read(part.ob.data.loop_triangle_polygons, "value", 1, np.int32)
            corners = meshes.read(part.ob.data.loop_triangles, "loops", 3, np.int32)[mine[owner]]
            owner = owner[mine[owner]]
        else:
            owner = np.flatnonzero(mine)
            quads = owner[part.lengths[owner] == 4]
            fan = (part.starts[owner][:, None] + [0, 1, 2], part.starts[quads][:, None] + [0, 2, 3])
            corners, owner = np.concatenate(fan), np.concatenate([owner, quads])
        points.append(part.at(corners))
        owners.append(owner + first)
        first += part.count
    owners = np.concatenate(owners)
    return np.concatenate(points), owners, of_plane[owners]


def _exposed(objects, points, normals, size):
    """Which rows' pair of objects (K, 2) coincides where something outside can see it: mask (K,).

    points (K, 3), normals (K, 3): a place where they coincide, in the world. Some of each pair are tried; of the pairs after
    the first LOOKS none, and those count as seen.
    """
    depsgraph = bpy.context.evaluated_depsgraph_get()
    _, kinds = np.unique(np.sort(objects, 1), axis=0, return_inverse=True)
    kinds = kinds.ravel()
    seen = np.ones(kinds.max() + 1, bool)
    looks = max(1, min(16, LOOKS // len(seen)))
    for kind in range(min(LOOKS, len(seen))):
        rows = np.flatnonzero(kinds == kind)
        tried = rows[np.linspace(0, len(rows) - 1, min(looks, len(rows))).astype(int)]
        seen[kind] = any(_sees_out(depsgraph, points[row], normals[row], size) for row in tried)
    return seen[kinds]


def _sees_out(depsgraph, point, normal, size):
    """Look from both sides of a surface into a few directions: True if one leads out of the scene."""
    across = np.cross(normal, overlaps.SKEW)
    across /= np.linalg.norm(across)
    along = np.cross(normal, across)
    for side in (normal, -normal):
        origin = (point + side * size * APART).tolist()
        for slant in SLANTS:
            direction = side + slant[0] * across + slant[1] * along
            if not bpy.context.scene.ray_cast(depsgraph, origin, direction.tolist())[0]:
                return True
    return False


def _layers(pairs, areas):
    """Layer of each polygon (P,): 0 stays; of two that coincide the clearly smaller one, else the later one lies higher."""
    layers = np.zeros(len(areas), np.int64)
    pairs = np.unique(np.sort(pairs, 1), axis=0)
    swapped = areas[pairs[:, 1]] > 1.5 * areas[pairs[:, 0]]
    pairs[swapped] = pairs[swapped, ::-1]
    for _ in range(LAYERS):
        before = layers.copy()
        np.maximum.at(layers, pairs[:, 1], before[pairs[:, 0]] + 1)
        if (layers == before).all():
            break
    return np.minimum(layers, LAYERS)


def _move(part, layers, step):
    """Move the polygons of each layer (P,) by layer x step along their normals. Points that layers share are split first."""
    ob = part.ob
    if ob.data.users > 1:
        ob.data = ob.data.copy()
    mesh = ob.data
    stored = meshes.read(mesh.corner_normals, "vector", 3) if mesh.has_custom_normals else None
    at_corner = np.repeat(layers, part.lengths)
    both, which = np.unique(part.corners.astype(np.int64) * (LAYERS + 1) + at_corner, return_inverse=True)
    points, layer_of = both // (LAYERS + 1), both % (LAYERS + 1)
    extra = np.r_[False, points[1:] == points[:-1]]
    if mesh.shape_keys:
        extra[:] = False  # keys hold a place for each point, and none for new ones
    places = np.where(extra, len(mesh.vertices) - 1 + np.cumsum(extra), points)
    if extra.any():
        _split(ob, points[extra], places[which].astype(np.int32))
    normals = np.zeros((len(both), 3))
    np.add.at(normals, which, np.repeat(part.normals(), part.lengths, 0))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    moved = layer_of > 0
    shift = (normals[moved] * layer_of[moved, None] * step) @ np.linalg.pinv(part.matrix[:3, :3]).T
    keys = mesh.shape_keys.key_blocks if mesh.shape_keys else []
    for data, name in [(mesh.attributes["position"].data, "vector"), *((key.data, "co") for key in keys)]:
        coordinates = meshes.read(data, name, 3)
        coordinates[places[moved]] += shift
        data.foreach_set(name, coordinates.ravel())
    mesh.update(calc_edges=bool(extra.any()))
    if stored is not None:
        mesh.normals_split_custom_set(stored)


def _split(ob, points, corners):
    """Append copies of points (K,) with all that belongs to them, and give the mesh its new corners (C,)."""
    mesh = ob.data
    before = len(mesh.vertices)
    mesh.vertices.add(len(points))
    for attribute in mesh.attributes:
        if attribute.domain == "POINT" and attribute.data_type in WIDTHS:
            name, width, kind = WIDTHS[attribute.data_type]
            values = meshes.read(attribute.data, name, width, kind)
            values[before:] = values[points]
            attribute.data.foreach_set(name, values.ravel())
    if ob.vertex_groups:
        for new, old in enumerate(points.tolist(), before):
            for weight in mesh.vertices[old].groups:
                ob.vertex_groups[weight.group].add([new], weight.weight, "REPLACE")
    mesh.attributes[".corner_vert"].data.foreach_set("value", corners)


# kind of an attribute -> the property that holds its values, how many, and their type
WIDTHS = {
    "FLOAT_VECTOR": ("vector", 3, np.float32),
    "FLOAT_COLOR": ("color", 4, np.float32),
    "BYTE_COLOR": ("color", 4, np.float32),
    "FLOAT": ("value", 1, np.float32),
    "INT": ("value", 1, np.int32),
    "BOOLEAN": ("value", 1, bool),
    "FLOAT2": ("vector", 2, np.float32),
}
