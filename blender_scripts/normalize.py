"""Measures the geometry that will be rendered, and moves and scales it to the origin, longest side 1.

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


def normalize(limits):
    """Parent every root to one empty that carries scale and translation.

    Returns facts (transform, bounds, counts), and points (K, 3) whose hull holds all that is rendered (None: not known).

    limits: {"max_polygons": int}. Raises Unusable: empty, not_finite, degenerate, absurd_scale, too_many_polygons,
    outlier_geometry, default_cube, normalize_failed.
    """
    scene = bpy.context.scene
    raw = _measure()
    _judge(raw, limits)
    low, high = raw["bounds"]
    scale = 1.0 / float((high - low).max())
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
    error = max(np.abs(low + high).max() / 2, abs((high - low).max() - 1))
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
    """Bounds (2, 3), 0.1-99.9 percentile bounds, polygon and instance counts.

    With an outline also its "corners"; None if points do not bound the geometry (curves and points have a thickness,
    volumes and particle hair have no points).
    """
    cache, boxes, sampled = {}, [], []
    polygons = instances = 0
    bounded = True
    cube = None
    for instance in depsgraph.object_instances:
        ob = instance.object
        if not instance.show_self or ob.type not in MEASURED:
            continue
        key = ob.data.as_pointer() if ob.data else 0
        if key not in cache:
            cache[key] = _points_and_faces(ob)
        points, faces = cache[key]
        if not len(points):
            continue
        matrix = np.array(instance.matrix_world, np.float64)
        world = points @ matrix[:3, :3].T + matrix[:3, 3]
        boxes += [world.min(0), world.max(0)]
        bounded = bounded and ob.type == "MESH" and not ob.particle_systems
        if outline and bounded:
            outline.add(world)
        sampled.append(world[:: max(1, len(world) // 5000)])
        polygons += faces
        instances += 1
        cube = (points, faces)
    if not boxes:
        return {"instances": 0}
    stacked = np.concatenate(sampled)
    return {
        "bounds": np.array([np.min(boxes, 0), np.max(boxes, 0)]),
        "core": np.percentile(stacked, [0.1, 99.9], axis=0),
        "polygons": polygons,
        "instances": instances,
        "default_cube": instances == 1 and _is_default_cube(*cube),
        "corners": outline.corners() if outline and bounded else None,
    }


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
