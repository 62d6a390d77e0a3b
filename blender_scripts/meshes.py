"""Meshes that are rendered, and their data as arrays."""

import bpy
import numpy as np


def rendered(instanced=True):
    """Mesh objects of the view layer that are rendered; with `instanced`, also those of collections that it has instances of."""
    # None stands for what was removed a moment ago
    objects = dict.fromkeys(filter(None, bpy.context.view_layer.objects))
    for ob in list(objects) if instanced else ():
        for collection in _instanced_by(ob):
            objects |= dict.fromkeys(collection.all_objects)
    return [
        ob
        for ob in objects
        if ob.type == "MESH" and not ob.hide_render and not ob.data.is_editmode and ob.data.polygons
    ]


def _instanced_by(ob):
    """Collections that an object shows: its own, and, as points of a USD do, those that its geometry nodes name."""
    own = ob.instance_collection if ob.instance_type == "COLLECTION" else None
    groups = [modifier.node_group for modifier in ob.modifiers if modifier.type == "NODES" and modifier.node_group]
    nodes = [node for group in groups for node in group.nodes if node.type == "COLLECTION_INFO"]
    return filter(None, [own, *(node.inputs["Collection"].default_value for node in nodes)])


def read(collection, name, width=1, kind=np.float32):
    """One property of all elements of a collection of Blender: (N, width), of width 1 (N,)."""
    values = np.empty(len(collection) * width, kind)
    collection.foreach_get(name, values)
    return values.reshape(-1, width) if width > 1 else values


def points(mesh):
    """Places of the vertices (N, 3) float32, in one copy, unlike those of `mesh.vertices`."""
    return read(mesh.attributes["position"].data, "vector", 3)


def corners(mesh):
    """Vertices (C,) of the polygons, one polygon after the other."""
    return read(mesh.attributes[".corner_vert"].data, "value", 1, np.int32)


def starts_and_lengths(mesh):
    """First corner and number of corners of each polygon, (P,) and (P,)."""
    starts = read(mesh.polygons, "loop_start", 1, np.int32)
    return starts, np.diff(starts, append=len(mesh.loops))


def normals(mesh):
    """Unit normals (P, 3) of the polygons as they are wound. `mesh.polygon_normals` would follow normals that the file stores."""
    return read(mesh.polygons, "normal", 3)


def materials(ob):
    """Materials of the object's polygons, in the order of its slots; None where there is none."""
    attribute = ob.data.attributes.get("material_index")
    slots = ob.material_slots
    indices = np.flatnonzero(np.bincount(read(attribute.data, "value", 1, np.int32))) if attribute else [0]
    return [slots[min(index, len(slots) - 1)].material if slots else None for index in indices]
