"""Builds meshes and materials of a file by assimp, for files that Blender's own importers fail on.

Geometry comes in its bind pose, in world space, as triangles: one object per material.
"""

import os
import urllib.parse

import bpy
import numpy as np

NAME = "assimp"
Z_UP = {"ply", "stl"}  # the others come with y up
FORMATS = {"dae", "fbx", "obj", "glb", "gltf"} | Z_UP
LINEAR = {"glb", "gltf"}  # formats whose vertex colours are linear light


def read(path, file_format, clear):
    """Call `clear`, which empties the scene, and build what the file shows. Returns facts: {"read_by": "assimp"}.

    Raises RuntimeError, before anything is cleared, if nothing comes of it.
    """
    meshes, materials = _parse(path)
    clear()
    built = [_material(material, os.path.dirname(path), file_format) for material in materials]
    for mesh in meshes:
        data = _mesh(mesh, file_format)
        if file_format != "ply":  # without materials: colours of its vertices are shown
            data.materials.append(built[mesh.material_index])
        bpy.context.scene.collection.objects.link(bpy.data.objects.new("object", data))
    return {"read_by": NAME}


def _parse(path):
    """(meshes of triangles, all materials), as assimp has them. Raises RuntimeError with what it says."""
    try:
        import assimp_py
    except ImportError as error:
        raise RuntimeError(str(error)) from error
    steps = "Triangulate SortByPType PreTransformVertices JoinIdenticalVertices ValidateDataStructure".split()
    flags = sum(getattr(assimp_py, f"Process_{step}") for step in steps)
    try:
        scene = assimp_py.import_file(path, flags)
    except ValueError as error:  # points and lines
        raise RuntimeError(str(error)) from error
    meshes = [mesh for mesh in scene.meshes if mesh.num_faces and mesh.num_indices == 3 * mesh.num_faces]
    if not meshes:
        raise RuntimeError("assimp finds no faces")
    if any(np.asarray(mesh.indices).max() >= mesh.num_vertices for mesh in meshes):
        raise RuntimeError("assimp gives a triangle without a vertex")
    return meshes, scene.materials


def _mesh(mesh, file_format):
    """Blender's mesh of one of assimp's."""
    points = _turned(_rows(mesh.vertices, 3), file_format)
    corners = np.asarray(mesh.indices, np.int32)
    data = bpy.data.meshes.new("mesh")
    data.vertices.add(len(points))
    data.vertices.foreach_set("co", points.ravel())
    data.loops.add(len(corners))
    data.loops.foreach_set("vertex_index", corners)
    data.polygons.add(len(corners) // 3)
    data.polygons.foreach_set("loop_start", np.arange(0, len(corners), 3, dtype=np.int32))
    if mesh.texcoords:
        uv = np.asarray(mesh.texcoords[0], np.float32).reshape(len(points), -1)[:, :2]
        data.uv_layers.new(name="UVMap").data.foreach_set("uv", uv[corners].ravel())
    if mesh.colors:
        layer = data.color_attributes.new("Col", "FLOAT_COLOR" if file_format in LINEAR else "BYTE_COLOR", "POINT")
        colors = np.asarray(mesh.colors[0], np.float32).reshape(len(points), 4)
        layer.data.foreach_set("color" if file_format in LINEAR else "color_srgb", colors.ravel())
    data.update(calc_edges=True)
    data.validate()  # before the normals, whose code crashes on triangles of one point
    if mesh.normals and file_format != "stl":  # whose writers put anything there
        data.polygons.foreach_set("use_smooth", np.ones(len(data.polygons), bool))
        data.normals_split_custom_set_from_vertices(_turned(_rows(mesh.normals, 3), file_format).tolist())
    return data


def _rows(values, width):
    return np.asarray(values, np.float32).reshape(-1, width)


def _turned(vectors, file_format):
    """Vectors (N, 3) with z up, as Blender's importers give them."""
    if file_format in Z_UP:
        return vectors
    x, y, z = vectors.T
    return np.stack([x, -z, y], -1)


def _material(found, folder, file_format):
    """Blender's material of one of assimp's: colour, part transparency, and the picture of the colour.

    An opacity of 0 is opaque: Collada's files mean different things by it. Pictures of Collada that are not there were
    counted before, and are left out, as Blender's importer does.
    """
    material = bpy.data.materials.new(str(found.get("NAME", "material")))
    material.use_nodes = True
    nodes, links = material.node_tree.nodes, material.node_tree.links
    shader = nodes["Principled BSDF"]
    color = found.get("COLOR_DIFFUSE", (0.8, 0.8, 0.8))
    shader.inputs["Base Color"].default_value = (*color[:3], 1.0)
    shader.inputs["Alpha"].default_value = found.get("OPACITY") or 1.0
    names = next((names for kind, names in sorted(found.get("TEXTURES", {}).items()) if kind == 1 and names), [])
    if names and not names[0].startswith("*"):  # a star: within the file
        image = _picture(names[0], folder)
        if image.size[0] or file_format != "dae":
            picture = nodes.new("ShaderNodeTexImage")
            picture.image = image
            links.new(picture.outputs["Color"], shader.inputs["Base Color"])
        else:
            bpy.data.images.remove(image)
    return material


def _picture(name, folder):
    """Image of a file that a stranger names: below `folder`, by its path or its last part. Without pixels if there is none.

    A whole path is the parent's, which has found the file below the folder that the object may read, and refuses others.
    """
    plain = urllib.parse.unquote(name).removeprefix("file://").replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".", "..")]
    whole = [plain] if os.path.isabs(plain) else []
    places = [*whole, os.path.join(folder, *parts), os.path.join(folder, *parts[-1:])]
    try:
        return bpy.data.images.load(next((place for place in places if os.path.isfile(place)), places[-1]))
    except RuntimeError:  # no such file, or no picture
        image = bpy.data.images.new(parts[-1] if parts else "picture", 1, 1)
        image.source, image.filepath = "FILE", places[-1]
        return image
