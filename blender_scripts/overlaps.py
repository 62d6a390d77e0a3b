"""Finds faces that lie in one plane and cover each other. Pure arrays; lengths are shares of the scene's size."""

import numpy as np

NEAR = 1e-6  # planes closer than this are one: Cycles tells those apart that are farther
PLANE = (
    1.1347e-3,
    1.7319e-5,
)  # steps of normals and distances that hash planes, odd so that no usual number lies between two
SKEW = np.array([0.5377, 0.7236, 0.4327])  # no usual normal is at right angles to it
INSIDE = 1e-3  # of a triangle, from its edges
SAMPLES = np.array([[0.6, 0.25, 0.15], [0.15, 0.6, 0.25], [0.25, 0.15, 0.6]])  # points of a triangle, on no diagonal
FEW = 8  # triangles of a plane, of which all three points are looked at; where there are more, the first
GRID = 512  # cells a side, at most, that sort a plane's triangles
ENTRIES = 2**22  # triangles in cells, at most; beyond, grids are made coarser
CHUNK, MOST = 2**21, 2**25  # pairs of points and triangles that are looked at together, and in all


def sharing_a_plane(normals, points):
    """Which rows of unit normals (N, 3) and points (N, 3) lie in the plane of another one: numbers (K,), planes (K,)."""
    normals = normals * np.copysign(1, normals @ SKEW)[:, None]
    keys = np.rint(normals / PLANE[0]).astype(np.int64) @ (1 << np.array([42, 31, 20]))
    keys += np.rint(np.einsum("ij,ij->i", normals, points) / PLANE[1]).astype(np.int64)
    order = np.argsort(keys)
    keys = keys[order]
    fresh = np.r_[True, keys[1:] != keys[:-1]]
    shared = ~(fresh & np.r_[fresh[1:], True])
    return order[shared], np.cumsum(fresh)[shared]


def covered(triangles, owners, planes):
    """Where a point of a triangle of one owner lies inside a triangle of another one, in one plane.

    triangles (T, 3, 3) around the origin, owners (T,) and planes (T,) as numbers. Returns the first's owner and the second's
    (K, 2), the point (K, 3) and the second's unit normal (K, 3).
    """
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    lengths = np.sqrt(np.einsum("ij,ij->i", normals, normals))
    order = np.flatnonzero(lengths > 1e-12)
    order = order[np.argsort(planes[order], kind="stable")]
    if not len(order):
        return np.empty((0, 2), np.int64), np.empty((0, 3)), np.empty((0, 3))
    triangles, owners, normals = triangles[order], owners[order], normals[order] / lengths[order, None]
    _, firsts, planes, counts = np.unique(planes[order], return_index=True, return_inverse=True, return_counts=True)
    flat = _flattened(triangles, np.abs(normals[firsts]).argmax(1)[planes])
    looked_at = np.flatnonzero(np.repeat(counts[planes] <= FEW, len(SAMPLES)) | (np.arange(3 * len(flat)) % 3 == 0))
    spots = np.einsum("sk,tkd->tsd", SAMPLES, flat).reshape(-1, 2)[looked_at]
    edges, origins = _inverse_edges(flat), flat[:, 0]
    found = [np.empty((0, 2), np.int64)]
    for spot, triangle in _meetings(flat, spots, looked_at // 3, planes, firsts, counts):
        (a, b, c, d), (x, y) = edges[triangle].T, (spots[spot] - origins[triangle]).T
        first, second = a * x + b * y, c * x + d * y
        inside = (first > INSIDE) & (second > INSIDE) & (first + second < 1 - INSIDE)
        found.append(np.stack([looked_at[spot[inside]], triangle[inside]], 1))
    sample, triangle = np.concatenate(found).T
    points = np.einsum("nk,nkd->nd", SAMPLES[sample % 3], triangles[sample // 3])
    away = np.einsum("ij,ij->i", normals[triangle], points - triangles[triangle, 0])
    kept = (np.abs(away) < NEAR) & (owners[sample // 3] != owners[triangle])
    pairs = np.stack([owners[sample // 3], owners[triangle]], 1)
    return pairs[kept], points[kept], normals[triangle[kept]]


def _flattened(triangles, axes):
    """Triangles (T, 3, 2) without the axis (T,) along which their plane is seen best."""
    others = np.stack([(axes + 1) % 3, (axes + 2) % 3], 1)
    return np.take_along_axis(triangles, others[:, None].repeat(3, 1), 2)


def _inverse_edges(flat):
    """Matrices (T, 4) that give a point's shares of both edges from a triangle's first corner; 0 for those without area."""
    (a, b), (c, d) = (flat[:, 1:] - flat[:, :1]).transpose(2, 1, 0)
    areas = a * d - b * c
    inverse = np.divide(1, areas, out=np.zeros_like(areas), where=areas != 0)
    return np.stack([d, -b, -c, a], 1) * inverse[:, None]


def _meetings(flat, spots, owners, planes, firsts, counts):
    """Yield (spots, other triangles), as numbers, that are in one cell of a grid over their plane; MOST of them at most.

    owners (S,): the triangles of the spots (S, 2). planes (T,), sorted; firsts, counts: of each plane's triangles.
    """
    ends = [reduce(reduce(flat[:, 0], flat[:, 1]), flat[:, 2]) for reduce in (np.minimum, np.maximum)]
    low = np.minimum.reduceat(ends[0], firsts)
    extent = np.maximum(np.maximum.reduceat(ends[1], firsts) - low, 1e-30)
    sides = np.clip(np.ceil(np.sqrt(counts)), 1, GRID).astype(np.int64)
    while True:
        first, last = (_cells(points, planes, low, extent, sides) for points in ends)
        wide, high = (last - first + 1).T
        if (wide * high).sum() <= ENTRIES or sides.max() == 1:
            break
        sides = np.maximum(sides // 2, 1)
    bases = np.cumsum(sides**2) - sides**2
    triangles = np.repeat(np.arange(len(flat)), wide * high)
    step = _counted(wide * high)
    cells = first[triangles] + np.stack([step % wide[triangles], step // wide[triangles]], 1)
    cells = bases[planes[triangles]] + cells[:, 1] * sides[planes[triangles]] + cells[:, 0]
    order = np.argsort(cells, kind="stable")
    cells, triangles = cells[order], triangles[order]
    where = _cells(spots, planes[owners], low, extent, sides)
    where = bases[planes[owners]] + where[:, 1] * sides[planes[owners]] + where[:, 0]
    begin = np.searchsorted(cells, where, "left")
    number = np.searchsorted(cells, where, "right") - begin
    total = np.cumsum(number)
    done, end = 0, int(np.searchsorted(total, MOST, "right"))
    while done < end:
        looked = total[done - 1] if done else 0
        some = np.arange(done, max(done + 1, min(end, int(np.searchsorted(total, looked + CHUNK, "right")))))
        spot = np.repeat(some, number[some])
        triangle = triangles[begin[spot] + _counted(number[some])]
        other = owners[spot] != triangle
        yield spot[other], triangle[other]
        done = some[-1] + 1


def _cells(points, planes, low, extent, sides):
    """Column and row (N, 2) of points (N, 2) in the grids of their planes (N,)."""
    share = (points - low[planes]) / extent[planes]
    return np.clip((share * sides[planes][:, None]).astype(np.int64), 0, (sides - 1)[planes][:, None])


def _counted(lengths):
    """0 to length - 1 for each length, one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
