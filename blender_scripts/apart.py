"""Moves surfaces that lie in one place apart, by a ten-thousandth of the scene's size.

Where two faces coincide, a ray that leaves one meets the other at once, and Cycles renders both black. Of two such faces the
smaller one, else the later one, moves to the side that its normal points to. Faces that nothing outside can see, as where
two solids touch, stay as they are.
"""

import bpy
import meshes
import numpy as np

APART = 1e-4  # of the scene's size, per layer: 0.05 pixels of a picture of 512
NEAR = 3e-6  # of the scene's size: planes closer than this are one
PLANE = (
    1.1347e-3,
    1.7319e-5,
)  # steps of normals and distances that hash planes, odd so that no usual number lies between two
LAYERS = 8  # coincident surfaces that are told apart
INSIDE = 1e-3  # of a triangle, from its edges
SAMPLES = np.array([[0.6, 0.25, 0.15], [0.15, 0.6, 0.25], [0.25, 0.15, 0.6]])  # points of a triangle, on no diagonal
CROWD = 64  # triangles of one plane: where there are more, one point of each is looked at, not three
GRID = 512  # cells a side, at most, that sort a plane's triangles
PAIRS = 2**22  # candidates looked at together
LOOKS = 16  # points per pair of objects from which the outside is looked for
SKEW = np.array([0.5377, 0.7236, 0.4327])  # no usual normal is at right angles to it


def separate():
    """Move coincident faces of the scene's meshes apart. True if there were any that can be seen."""
    objects = meshes.rendered(instanced=False)
    if not objects:
        return False
    bpy.context.view_layer.update()
    parts = [_Part(ob) for ob in objects]
    boxes = np.concatenate([_box(ob) for ob in objects])
    centre, size = boxes.mean(0), float(np.linalg.norm(np.ptp(boxes, 0)))
    if not 0 < size < np.inf:
        return False
    polygons, planes = _sharing_a_plane(parts, centre, size)
    if not len(polygons):
        return False
    triangles, owners, planes = _triangles(parts, polygons, planes)
    over, under, points, normals = _covered((triangles - centre) / size, owners, planes)
    if not len(over):
        return False
    starts = np.cumsum([0, *(part.count for part in parts)])
    seen = _exposed(np.searchsorted(starts, [over, under], "right").T, points * size + centre, normals, size)
    layers = _layers(over[seen], under[seen], np.concatenate([part.areas() for part in parts]))
    for part, first in zip(parts, starts, strict=False):
        mine = layers[first : first + part.count]
        if mine.any():
            _move(part, mine, APART * size)
    return bool(seen.any())


class _Part:
    """A mesh object as arrays: local points (N, 3), corners (C,) and, of each polygon, its first corner and its length (P,)."""

    def __init__(self, ob):
        self.ob, mesh = ob, ob.data
        self.count = len(mesh.polygons)
        self.matrix = np.array(ob.matrix_world)
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

    def areas(self):
        """Areas (P,) in the object's own units times its mean scale."""
        return meshes.read(self.ob.data.polygons, "area") * abs(np.linalg.det(self.matrix[:3, :3])) ** (2 / 3)


def _box(ob):
    """Corners (8, 3) of an object's box in the world."""
    matrix = np.array(ob.matrix_world)
    return np.array(ob.bound_box) @ matrix[:3, :3].T + matrix[:3, 3]


def _sharing_a_plane(parts, centre, size):
    """Numbers of the polygons, counted through all parts, that lie in the plane of another one, and numbers of their planes."""
    normals = np.concatenate([part.normals() for part in parts])
    first = np.concatenate([part.at(part.starts) for part in parts]) - centre
    normals *= np.copysign(1, normals @ SKEW)[:, None]
    distances = np.einsum("ij,ij->i", normals, first) / size
    keys = np.rint(normals / PLANE[0]).astype(np.int64) @ (1 << np.array([42, 31, 20]))
    keys += np.rint(distances / PLANE[1]).astype(np.int64)
    order = np.argsort(keys)
    keys = keys[order]
    fresh = np.r_[True, keys[1:] != keys[:-1]]
    shared = ~(fresh & np.r_[fresh[1:], True])
    return order[shared], np.cumsum(fresh)[shared]


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


def _covered(triangles, owners, planes):
    """Pairs of polygons (K,), (K,) of one plane where a point (K, 3) of the first lies inside the second; normals (K, 3)."""
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    order = np.flatnonzero(lengths > 1e-12)
    order = order[np.argsort(planes[order], kind="stable")]
    triangles, owners, normals = triangles[order], owners[order], normals[order] / lengths[order, None]
    _, firsts, planes, counts = np.unique(planes[order], return_index=True, return_inverse=True, return_counts=True)
    if not len(order):
        return owners, owners, triangles[:, 0], normals
    # the two axes that a plane is seen along best
    dropped = np.abs(normals[firsts]).argmax(1)[planes]
    axes = np.stack([(dropped + 1) % 3, (dropped + 2) % 3], 1)
    flat = np.take_along_axis(triangles, axes[:, None].repeat(3, 1), 2)
    points = np.einsum("sk,tkd->tsd", SAMPLES, triangles)
    spots = np.einsum("sk,tkd->tsd", SAMPLES, flat)
    found = [np.empty((0, 2), np.int64)]
    for sample, triangle in _candidates(flat, spots, planes, firsts, counts):
        of = sample // len(SAMPLES)
        apart = owners[of] != owners[triangle]
        sample, of, triangle = sample[apart], of[apart], triangle[apart]
        a, b, c = flat[triangle].swapaxes(0, 1)
        spot = spots.reshape(-1, 2)[sample]
        area = _cross(b - a, c - a)
        weights = np.stack([_cross(b - a, spot - a), _cross(c - b, spot - b), _cross(a - c, spot - c)]) / area
        away = np.einsum("ij,ij->i", normals[triangle], points.reshape(-1, 3)[sample] - triangles[triangle, 0])
        inside = (weights.min(0) > INSIDE) & (np.abs(away) < NEAR)
        found.append(np.stack([sample[inside], triangle[inside]], 1))
    sample, triangle = np.concatenate(found).T
    return owners[sample // len(SAMPLES)], owners[triangle], points.reshape(-1, 3)[sample], normals[triangle]


def _cross(a, b):
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _candidates(flat, spots, planes, firsts, counts):
    """Yield (samples, triangles), numbers of points and of triangles of one plane that meet in a cell of the plane's grid."""
    low = np.minimum.reduceat(flat.min(1), firsts)
    extent = np.maximum.reduceat(flat.max(1), firsts) - low
    sides = np.clip(np.ceil(np.sqrt(counts)), 1, GRID).astype(np.int64)
    bases = np.cumsum(sides**2) - sides**2
    per_unit = (sides[:, None] / np.maximum(extent, 1e-30))[planes][:, None]
    most = (sides - 1)[planes][:, None, None]
    cells = np.clip(((flat - low[planes][:, None]) * per_unit).astype(np.int64), 0, most)
    first, last = cells.min(1), cells.max(1)
    wide, high = (last - first + 1).T
    triangles = np.repeat(np.arange(len(flat)), wide * high)
    step = np.arange(len(triangles)) - np.repeat(np.cumsum(wide * high) - wide * high, wide * high)
    column, row = first[triangles, 0] + step % wide[triangles], first[triangles, 1] + step // wide[triangles]
    cell = bases[planes[triangles]] + row * sides[planes[triangles]] + column
    order = np.argsort(cell, kind="stable")
    cell, triangles = cell[order], triangles[order]
    where = np.clip(((spots - low[planes][:, None]) * per_unit).astype(np.int64), 0, most)
    where = (bases[planes][:, None] + where[..., 1] * sides[planes][:, None] + where[..., 0]).ravel()
    begin, end = np.searchsorted(cell, where, "left"), np.searchsorted(cell, where, "right")
    crowded = np.repeat(counts[planes] > CROWD, len(SAMPLES))
    end = np.where(crowded & (np.arange(len(where)) % len(SAMPLES) > 0), begin, end)
    total = np.cumsum(end - begin)
    begun = 0
    while begun < len(where):
        done = max(begun + 1, int(np.searchsorted(total, (total[begun - 1] if begun else 0) + PAIRS, "right")))
        some = np.arange(begun, done)
        samples = np.repeat(some, (end - begin)[some])
        step = np.arange(len(samples)) - np.repeat(
            np.cumsum((end - begin)[some]) - (end - begin)[some], (end - begin)[some]
        )
        yield samples, triangles[begin[samples] + step]
        begun = done


def _exposed(pairs, points, normals, size):
    """Of each row, whether its pair of objects (K, 2) coincides where something outside can see it: mask (K,).

    points (K, 3), normals (K, 3): a place where they coincide, in the world. Some of each pair are tried.
    """
    depsgraph, scene = bpy.context.evaluated_depsgraph_get(), bpy.context.scene
    _, kinds = np.unique(np.sort(pairs, 1), axis=0, return_inverse=True)
    kinds = kinds.ravel()
    seen = np.zeros(kinds.max() + 1, bool)
    for kind in range(len(seen)):
        rows = np.flatnonzero(kinds == kind)
        for row in rows[np.linspace(0, len(rows) - 1, min(LOOKS, len(rows))).astype(int)]:
            if _sees_out(scene, depsgraph, points[row], normals[row], size):
                seen[kind] = True
                break
    return seen[kinds]


def _sees_out(scene, depsgraph, point, normal, size):
    """Look from both sides of a surface into a few directions: True if one leads out of the scene."""
    across = np.cross(normal, SKEW)
    across /= np.linalg.norm(across)
    along = np.cross(normal, across)
    for side in (normal, -normal):
        origin = (point + side * size * APART).tolist()
        for slant in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (3, 1), (-3, -1), (-1, 3), (1, -3)):
            direction = side + slant[0] * across + slant[1] * along
            if not scene.ray_cast(depsgraph, origin, direction.tolist())[0]:
                return True
    return False


def _layers(over, under, areas):
    """Layer of each polygon (P,): 0 stays; of two that coincide the clearly smaller one, else the later one lies higher."""
    layers = np.zeros(len(areas), np.int64)
    first, second = np.minimum(over, under), np.maximum(over, under)
    swapped = areas[second] > 1.5 * areas[first]
    pairs = np.unique(np.where(swapped, (second, first), (first, second)).T, axis=0)
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
