"""Measures the geometry that can be seen, and moves and scales it: to a sphere of radius 0.5, or longest side 1.

That geometry is the render engine's own list: the instances of the *render* dependency graph at the current
frame. A first render call, stopped before any ray is traced, hands us that graph (see `engines.visit_depsgraph`), so
skinning, modifiers, geometry nodes, instances, curves, hidden objects and render-only settings all count as they will. What
no ray can hit does not count: faces without an area, instances of scale 0, surfaces of alpha 0.
"""

import itertools

import bpy
import engines
import meshes
import numpy as np
import surfaces
import timeline
from importers import Unusable
from mathutils import Matrix
from outline import Outline

# evaluated curves, texts, surfaces and metaballs appear a second time as meshes, so these types are enough
MEASURED = {"MESH", "POINTCLOUD", "CURVES", "VOLUME"}
TOLERANCE = 1e-3
FLAT = 1e-6  # width over length of what has no area; float32 coordinates hardly tell it from 0
THIN = 1e-4  # width over the length of a usual face of what nobody sees
LATER = (0.25, 0.5, 0.75, 1.0)  # shares of an animation at which something may be visible that its start does not show
CHUNK = 2**20  # points that are transformed at once
LEAST = 1e-4  # area of all faces over the square of the size; below, no camera that holds the whole sees 0.5 % of its picture
SAMPLED = 5000  # points of what an object shows, by which far outliers are found


def normalize(how, limits, frames=()):
    """Parent every root to one empty that carries scale and translation.

    Returns facts (transform, bounds, counts), and points (K, 3) whose hull holds all that is rendered (None: not known).

    how: "sphere" (the smallest sphere around the box's centre that holds all gets radius 0.5) or "box" (the longest side gets
    length 1). limits: {"max_polygons": int, "framed": True if all cameras hold the whole object}. frames: of an animation, those
    that are rendered: all that is seen at any of them counts, and the object moves while the world does not. Raises Unusable:
    empty, only_points, only_lines, not_finite, degenerate, absurd_scale, too_many_polygons, outlier_geometry, tiny,
    normalize_failed.
    """
    scene = bpy.context.scene
    raw, now = _measure_over(frames) if frames else (_measure_when_visible(),) * 2
    _judge(raw, limits)
    low, high = raw["bounds"]
    _judge_area(raw, _size(raw, how), limits)
    scale = 1.0 / _size(raw, how)
    matrix = Matrix.Scale(scale, 4) @ Matrix.Translation((-(low + high) / 2).tolist())

    root = bpy.data.objects.new("normalize", None)
    scene.collection.objects.link(root)
    for ob in scene.objects:
        if ob.parent is None and ob is not root:
            ob.parent = root
            ob.matrix_parent_inverse.identity()
    root.matrix_world = matrix

    measured = _measure(Outline())
    error = np.abs(measured["bounds"] - scale * (now["bounds"] - (low + high) / 2)).max()
    if not error < TOLERANCE:  # a constraint, driver or simulation in world space fights the root
        low, high = measured["bounds"]
        raise Unusable("normalize_failed", f"bounds after normalising: {low.tolist()} to {high.tolist()}")
    raw_low, raw_high = raw["bounds"]
    facts = {
        "transform": [_short(row) for row in matrix],
        "raw_bounds": [_short(raw_low), _short(raw_high)],
        "polygons": raw["polygons"],
        "instances": raw["instances"],
        "frame": scene.frame_current,
        "materials": len(bpy.data.materials),
        "images": sum(image.source in ("FILE", "TILED", "GENERATED") for image in bpy.data.images),
    }
    return facts, None if _is_displaced() else measured["corners"]


def corners_in(depsgraph):
    """Points (K, 3) whose hull holds all that a render graph shows now, None: not known. The object is normalised."""
    return None if _is_displaced() else _measure_instances(depsgraph, Outline()).get("corners")


def _is_displaced():
    """True if a material moves surfaces away from where their points are."""
    return any(material.displacement_method != "BUMP" for material in bpy.data.materials)


def _measure_over(frames):
    """(what is seen at any of the frames, what is seen now). Of those at which nothing can be seen nothing counts.

    Raises Unusable if nothing can be seen at any of them.
    """
    found = {frame: one for frame in frames if "bounds" in (one := _measure_at(frame))}
    if not found:
        now = _measure_when_visible()
        return now, now
    all_of, first = list(found.values()), next(iter(found))
    raw = {name: max(one[name] for one in all_of) for name in ("polygons", "instances", "area")}
    for name in ("bounds", "core"):
        ends = np.array([one[name] for one in all_of])
        raw[name] = np.array([ends[:, 0].min(0), ends[:, 1].max(0)])
    raw["radius"] = max(_measure_at(frame, raw["bounds"].mean(0))["radius"] for frame in found)
    timeline.show(first)
    return raw, found[first]


def _measure_at(frame, centre=None):
    """Measure what would be rendered at a frame, see `_measure_instances`."""
    timeline.show(frame)
    return _measure(centre=centre)


def _size(measured, how):
    """Length that normalising makes 1: the sphere's diameter, or the box's longest side."""
    low, high = measured["bounds"]
    return 2 * measured["radius"] if how == "sphere" else float((high - low).max())


def _short(numbers):
    """Round float32 values to nine digits, enough to tell any two apart."""
    return [float(f"{number:.9g}") for number in numbers]


def _measure_when_visible():
    """Measure at the current frame; if nothing can be seen there, at the first of a few later frames where something can.

    Animations often start at scale 0. Raises Unusable if nothing can be seen at any of them: "degenerate" if there are faces.
    """
    scene = bpy.context.scene
    measured = _measure()
    if "bounds" not in measured and (actions := bpy.data.actions):
        first, last = min(one.frame_range[0] for one in actions), max(one.frame_range[1] for one in actions)
        for share in LATER:
            scene.frame_set(round(first + share * (last - first)))
            if "bounds" in (measured := _measure()):
                break
    if "bounds" not in measured:
        if measured["polygons"]:
            raise Unusable("degenerate", f"all {measured['polygons']} faces have no area, scale 0 or alpha 0")
        raise Unusable(*_nothing_seen())
    return measured


def _nothing_seen():
    """(reason, detail) of a scene without a face: what else its meshes hold."""
    bare = [ob.data for ob in bpy.context.scene.objects if ob.type == "MESH" and not ob.data.polygons]
    points, lines = sum(len(mesh.vertices) for mesh in bare), sum(len(mesh.edges) for mesh in bare)
    if lines:
        return "only_lines", f"{lines} lines between {points} points, and no face; give them a surface first"
    if points:
        return "only_points", f"{points} points, and no face; make a surface of them first, as MeshLab does"
    return "empty", "nothing that the engine would render"


def _measure(outline=None, centre=None):
    """Measure what the engine would render now, see `_measure_instances`."""
    found = {}
    engines.visit_depsgraph(lambda depsgraph: found.update(_measure_instances(depsgraph, outline, centre)))
    return found


def _measure_instances(depsgraph, outline, centre=None):
    """Bounds (2, 3), 0.1-99.9 percentile bounds, radius around a centre (default: theirs), polygon and instance counts, area.

    area: at least that of all faces that can be seen; infinite where other things than faces are rendered.

    With an outline also its "corners"; None if points do not bound the geometry (curves and points have a thickness,
    volumes and particle hair have no points). Polygons alone if nothing can be seen.
    """
    geometry, places = {}, {}  # by what an object shows: its points and faces, and the matrices of its instances
    bounded = True
    for instance in depsgraph.object_instances:
        ob = instance.object
        if not instance.show_self or ob.type not in MEASURED:
            continue
        key = ob.data.as_pointer() if ob.data else 0
        if key not in geometry:
            geometry[key] = _points_and_faces(ob)
        places.setdefault(key, []).append(instance.matrix_world.copy())
        if len(geometry[key][0]):
            bounded = bounded and ob.type == "MESH" and not ob.particle_systems
    polygons = sum(geometry[key][1] * len(matrices) for key, matrices in places.items())
    seen = [(geometry[key], _with_area(np.array(matrices, np.float64))) for key, matrices in places.items()]
    placed = [(points, matrices) for (points, _, _), matrices in seen if len(points) and len(matrices)]
    if not placed:
        return {"polygons": polygons}
    # column by column: numpy takes five times as long over rows of three
    ends = [[end(column) for column in world.T] for world in _worlds(placed) for end in (np.min, np.max)]
    bounds = np.array([np.min(ends, 0), np.max(ends, 0)])
    corners = None
    if outline and bounded:
        for world in _worlds(placed):
            outline.add(world)
        corners = outline.corners()
    samples = [(points[:: max(1, len(points) // max(SAMPLED // len(all_of), 50))], all_of) for points, all_of in placed]
    return {
        "bounds": bounds,
        "core": np.percentile(np.concatenate(list(_worlds(samples))), [0.1, 99.9], axis=0),
        "radius": max(_farthest(world, bounds.mean(0) if centre is None else centre) for world in _worlds(placed)),
        "polygons": polygons,
        "instances": sum(len(matrices) for _, matrices in placed),
        "corners": corners,
        "area": sum(area * _widening(matrices) for (_, _, area), matrices in seen) if bounded else np.inf,
    }


def _farthest(points, centre):
    """Distance of the point (of N, 3) that is the farthest from a centre."""
    x, y, z = np.square(points - centre).T
    return float(np.sqrt((x + y + z).max()))


def _with_area(matrices):
    """Matrices (M, 4, 4) of which a scale of 0 leaves a surface, not a line or a point."""
    sizes = np.linalg.svd(np.nan_to_num(matrices[:, :3, :3]), compute_uv=False)
    return matrices[(sizes[:, 1] > FLAT * sizes[:, 0]) | ~np.isfinite(matrices).all((1, 2))]


def _widening(matrices):
    """Sum over matrices (M, 4, 4) of the most by which each multiplies an area."""
    sizes = np.linalg.svd(np.nan_to_num(matrices[:, :3, :3]), compute_uv=False)
    return float((sizes[:, 0] * sizes[:, 1]).sum())


def _worlds(placed):
    """World points (N, 3) of all instances, at most about CHUNK at a time. placed: [(points (P, 3), matrices (M, 4, 4))]."""
    for points, matrices in placed:
        step = max(1, CHUNK // len(points))
        for first in range(0, len(matrices), step):
            some = matrices[first : first + step]
            yield (np.matmul(points, some[:, :3, :3].swapaxes(1, 2)) + some[:, None, :3, 3]).reshape(-1, 3)


def _points_and_faces(ob):
    """Local points (N, 3) of whatever the object renders, its number of faces, and the area of those that can be seen."""
    if ob.type == "MESH":
        points, area = _visible_points(ob)
        return points, len(ob.data.polygons), area
    if ob.type in ("POINTCLOUD", "CURVES"):
        position = ob.data.attributes.get("position")
        points = np.empty(len(position.data) * 3 if position else 0, np.float32)
        if position:
            position.data.foreach_get("vector", points)
        return points.reshape(-1, 3).astype(np.float64), 0, 0.0
    return np.array([tuple(corner) for corner in ob.bound_box], np.float64), 0, 0.0


def _visible_points(ob):
    """Vertices (N, 3) of the faces of a mesh object that have an area and are not of alpha 0, and the area of these."""
    mesh = ob.data
    count = len(mesh.polygons)
    if not count:
        return np.empty((0, 3)), 0.0
    points, corners = meshes.points(mesh), meshes.corners(mesh)
    starts, sizes = meshes.starts_and_lengths(mesh)
    seen, areas = ~_is_clear(ob, count), np.zeros(count, np.float32)
    axes = np.ascontiguousarray(points.T)
    for size in np.flatnonzero(np.bincount(sizes)):
        chosen = sizes == size
        around = corners.reshape(-1, size) if chosen.all() else corners[starts[chosen][:, None] + np.arange(size)]
        is_wide, areas[chosen] = _has_area([axes[:, corner] for corner in around.T])
        seen[chosen] &= is_wide
    if not seen.all():
        corners = corners[np.repeat(seen, sizes)]
    used = np.zeros(len(points), bool)
    used[corners] = True
    return points[used].astype(np.float64), float(areas[seen].sum(dtype=np.float64))


def _has_area(corners):
    """Mask (F,) of faces that are wider than FLAT of their length, or than THIN of a usual face's: those can be seen. Areas (F,).

    corners: K arrays (3, F), one for each corner of a face.
    """
    if len(corners) < 3:
        return np.zeros(corners[0].shape[1], bool), 0.0
    if len(corners) == 4:  # half the cross product of the diagonals is the area too, and spares one
        sides = [(corners[2] - corners[0], corners[3] - corners[1])]
    else:
        spokes = [corner - corners[0] for corner in corners[1:]]
        sides = list(itertools.pairwise(spokes))
    area, longest = np.zeros_like(corners[0]), np.zeros_like(corners[0][0])
    for (x, y, z), (u, v, w) in sides:
        area += (y * w - z * v, z * u - x * w, x * v - y * u)
        longest = np.maximum(longest, np.maximum(x * x + y * y + z * z, u * u + v * v + w * w))
    squared = np.square(area).sum(0)  # of twice the area: width times length
    usual = np.partition(longest, (len(longest) - 1) // 2)[(len(longest) - 1) // 2]
    # what is not finite stays, and is judged with the bounds
    flat = (squared <= np.square(FLAT * longest)) & (squared <= longest * usual * THIN**2)
    return ~flat | ~np.isfinite(squared), np.sqrt(squared) / 2


def _is_clear(ob, count):
    """Mask (count,) of faces whose material is of alpha 0."""
    clear = np.array([surfaces.is_clear(slot.material) for slot in ob.material_slots], bool)
    if not clear.any():
        return np.zeros(count, bool)
    indices = np.empty(count, np.int32)
    ob.data.polygons.foreach_get("material_index", indices)
    return clear[np.minimum(indices, len(clear) - 1)]


def _judge(raw, limits):
    low, high = raw["bounds"]
    size = float((high - low).max())
    if not np.isfinite(raw["bounds"]).all():
        raise Unusable("not_finite", "a vertex is infinite or not a number")
    if size == 0:
        raise Unusable("degenerate", "all vertices in one point")
    if not 1e-7 < size < 1e7 or np.abs(raw["bounds"]).max() > 1e4 * size:
        raise Unusable(
            "absurd_scale", f"longest side {size:.3g}, farthest coordinate {np.abs(raw['bounds']).max():.3g}"
        )
    if raw["polygons"] > limits["max_polygons"]:
        raise Unusable("too_many_polygons", f"{raw['polygons']} polygons, the limit is {limits['max_polygons']}")
    core = float((raw["core"][1] - raw["core"][0]).max())
    if core * 100 < size:
        raise Unusable("outlier_geometry", f"99.8 % of the vertices span {core:.3g} of {size:.3g}: broken coordinates")


def _judge_area(raw, size, limits):
    share = raw["area"] / size**2
    if limits.get("framed") and share < LEAST:
        said = f"all faces together have {share:.2g} of the square of the size, {size:.3g}"
        raise Unusable("tiny", f"{said}; leave out what is far from the rest")
