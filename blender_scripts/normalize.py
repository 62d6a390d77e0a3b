"""Measures the geometry that will be rendered, and moves and scales it: to a sphere of radius 0.5, or longest side 1.

That geometry is the render engine's own list: the instances of the *render* dependency graph at the current
frame. A first render call, stopped before any ray is traced, hands us that graph (see `engines.visit_depsgraph`), so
skinning, modifiers, geometry nodes, instances, curves, hidden objects and render-only settings all count as they will.
"""

import bpy
import engines
import numpy as np
from importers import Unusable
from mathutils import Matrix
from outline import Outline

# evaluated curves, texts, surfaces and metaballs appear a second time as meshes, so these types are enough
MEASURED = {"MESH", "POINTCLOUD", "CURVES", "VOLUME"}
TOLERANCE = 1e-3
CHUNK = 2**20  # points that are transformed at once


def normalize(how, limits):
    """Parent every root to one empty that carries scale and translation.

    Returns facts (transform, bounds, counts), and points (K, 3) whose hull holds all that is rendered (None: not known).

    how: "sphere" (the smallest sphere around the box's centre that holds all gets radius 0.5) or "box" (the longest side gets
    length 1). limits: {"max_polygons": int}. Raises Unusable: empty, not_finite, degenerate, absurd_scale, too_many_polygons,
    outlier_geometry, default_cube, normalize_failed.
    """
    scene = bpy.context.scene
    raw = _measure()
    _judge(raw, limits)
    low, high = raw["bounds"]
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
    low, high = measured["bounds"]
    error = max(np.abs(low + high).max() / 2, abs(_size(measured, how) - 1))
    if not error < TOLERANCE:  # a constraint, driver or simulation in world space fights the root
        raise Unusable("normalize_failed", f"bounds after normalising: {low.tolist()} to {high.tolist()}")
    raw_low, raw_high = raw["bounds"]
    facts = {
        "transform": [_short(row) for row in matrix],
        "raw_bounds": [_short(raw_low), _short(raw_high)],
        "polygons": raw["polygons"],
        "instances": raw["instances"],
        "frame": scene.frame_current,
        "animated": bool(bpy.data.actions),
        "materials": len(bpy.data.materials),
        "images": sum(image.source in ("FILE", "TILED", "GENERATED") for image in bpy.data.images),
    }
    displaced = any(material.displacement_method != "BUMP" for material in bpy.data.materials)
    return facts, None if displaced else measured["corners"]


def _size(measured, how):
    """Length that normalising makes 1: the sphere's diameter, or the box's longest side."""
    low, high = measured["bounds"]
    return 2 * measured["radius"] if how == "sphere" else float((high - low).max())


def _short(numbers):
    """Round float32 values to nine digits, enough to tell any two apart."""
    return [float(f"{number:.9g}") for number in numbers]


def _measure(outline=None):
    """Measure what the engine would render now, see `_measure_instances`. Raises Unusable("empty")."""
    found = {}
    engines.visit_depsgraph(lambda depsgraph: found.update(_measure_instances(depsgraph, outline)))
    if not found["instances"]:
        raise Unusable("empty", "nothing that the engine would render")
    return found


def _measure_instances(depsgraph, outline):
    """Bounds (2, 3), 0.1-99.9 percentile bounds, radius around the bounds' centre, polygon and instance counts.

    With an outline also its "corners"; None if points do not bound the geometry (curves and points have a thickness,
    volumes and particle hair have no points).
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
        if len(geometry[key][0]):
            places.setdefault(key, []).append(instance.matrix_world.copy())
            bounded = bounded and ob.type == "MESH" and not ob.particle_systems
    if not places:
        return {"instances": 0}
    placed = [(geometry[key][0], np.array(matrices, np.float64)) for key, matrices in places.items()]
    ends = [end for world in _worlds(placed) for end in (world.min(0), world.max(0))]
    bounds = np.array([np.min(ends, 0), np.max(ends, 0)])
    corners = None
    if outline and bounded:
        for world in _worlds(placed):
            outline.add(world)
        corners = outline.corners()
    samples = [(points[:: max(1, len(points) // 5000)], matrices) for points, matrices in placed]
    instances = sum(map(len, places.values()))
    only = geometry[next(iter(places))]
    return {
        "bounds": bounds,
        "core": np.percentile(np.concatenate(list(_worlds(samples))), [0.1, 99.9], axis=0),
        "radius": max(float(np.linalg.norm(world - bounds.mean(0), axis=1).max()) for world in _worlds(placed)),
        "polygons": sum(geometry[key][1] * len(matrices) for key, matrices in places.items()),
        "instances": instances,
        "default_cube": instances == 1 and _is_default_cube(*only),
        "corners": corners,
    }


def _worlds(placed):
    """World points (N, 3) of all instances, at most about CHUNK at a time. placed: [(points (P, 3), matrices (M, 4, 4))]."""
    for points, matrices in placed:
        step = max(1, CHUNK // len(points))
        for first in range(0, len(matrices), step):
            some = matrices[first : first + step]
            yield (np.matmul(points, some[:, :3, :3].swapaxes(1, 2)) + some[:, None, :3, 3]).reshape(-1, 3)


def _points_and_faces(ob):
    """Local points (N, 3) of whatever the object renders, and its number of faces."""
    if ob.type == "MESH":
        return _used_points(ob.data), len(ob.data.polygons)
    if ob.type in ("POINTCLOUD", "CURVES"):
        position = ob.data.attributes.get("position")
        points = np.empty(len(position.data) * 3 if position else 0, np.float32)
        if position:
            position.data.foreach_get("vector", points)
        return points.reshape(-1, 3).astype(np.float64), 0
    return np.array([tuple(corner) for corner in ob.bound_box], np.float64), 0


def _used_points(mesh):
    """Vertices that belong to a face (N, 3). Loose vertices and wires are not rendered."""
    if not len(mesh.loops):
        return np.empty((0, 3))
    points = np.empty(len(mesh.vertices) * 3, np.float32)
    mesh.attributes["position"].data.foreach_get("vector", points)  # one copy, unlike vertices.co
    corners = np.empty(len(mesh.loops), np.int32)
    mesh.attributes[".corner_vert"].data.foreach_get("value", corners)
    used = np.zeros(len(mesh.vertices), bool)
    used[corners] = True
    return points.reshape(-1, 3)[used].astype(np.float64)


def _is_default_cube(points, faces):
    """True for Blender's start-up cube: rendered when a file was never opened (allenai/objaverse-xl on .blend)."""
    if faces not in (6, 12):
        return False
    corners = np.unique(np.round(points, 4), axis=0)
    return len(corners) == 8 and np.all(np.abs(corners) == 1)


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
    if raw["default_cube"]:
        raise Unusable("default_cube", "nothing but Blender's start-up cube")
