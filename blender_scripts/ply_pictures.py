"""Shows the pictures that the header of a PLY names, which Blender's importer leaves out."""

import contextlib

import bpy
import file_colours
import meshes
import numpy as np


def show(path, pictures):
    """Give the one mesh of the scene, read from a PLY, its pictures, if the file says where in them its points or corners are.

    pictures: file of each that the header names, in its order; "" for one that is not there, which counts as missing.
    """
    objects = meshes.rendered() if pictures else []
    if len(objects) != 1:
        return
    mesh = objects[0].data
    found = file_colours.places_of_ply(path)
    corners, lengths = meshes.corners(mesh), meshes.starts_and_lengths(mesh)[1]
    if len(found.get("vertex", ())) == len(mesh.vertices):
        places, numbers = found["vertex"][corners], np.zeros(len(lengths), int)
    elif np.array_equal(found.get("lengths", ()), lengths):
        places, numbers = np.nan_to_num(found["corner"]), found["picture"]
    else:
        return
    for layer in list(mesh.uv_layers):
        mesh.uv_layers.remove(layer)
    mesh.uv_layers.new(name="UVMap").data.foreach_set("uv", places.ravel())
    used, slots = np.unique(np.clip(numbers, 0, len(pictures) - 1), return_inverse=True)
    for number in used:
        mesh.materials.append(_material(pictures[number]))
    mesh.polygons.foreach_set("material_index", slots.astype(np.int32))


def _material(picture):
    material = bpy.data.materials.new("picture")
    material.use_nodes = True
    tree = material.node_tree
    reader = tree.nodes.new("ShaderNodeTexImage")
    with contextlib.suppress(RuntimeError):  # no picture
        reader.image = bpy.data.images.load(picture, check_existing=True) if picture else None
    tree.links.new(reader.outputs["Color"], tree.nodes["Principled BSDF"].inputs["Base Color"])
    return material
