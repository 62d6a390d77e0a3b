"""Pictures that faces name, each its own, in files of Blender before 2.80: what its game engine and its viewport showed.

Mesh.mtpoly points to an array of MTexPoly, one for each face; before 2.63 Mesh.mtface to MTFace, before 2.43 Mesh.tface to
TFace. Each of these has `tpage`, a pointer to the Image, and `transp`, what its alpha does.
"""

from dataclasses import dataclass

import bpy
import numpy as np

ARRAYS = ("mtpoly", "mtface", "tface")  # the newest first
BY_FACES = 2**11  # bit of Material.mode: a render shows pictures of faces
SEE_THROUGH = (2, 4)  # values of transp: by alpha, blended or clipped


@dataclass(frozen=True)
class Faces:
    """Pictures of a mesh. names: of images. chosen (P,): number of each face's, -1 for none. clear (P,): its alpha counts.

    layer: name of the places in the pictures; "" for the mesh's only ones.
    """

    names: list
    chosen: np.ndarray
    clear: np.ndarray
    layer: str


def of_meshes(file):
    """Mesh's name -> Faces, of an `OldFile`. Raises one of `old_file.BROKEN`."""
    layers, found = _layers(file), {}
    for number, start in file.all_of(b"ME"):
        for field in (field for field in ARRAYS if field in file.structs[number]):
            (place,) = file.read(number, start, field)
            if place in file.places:
                found[file.name(number, start)] = _faces(file, *file.places[place], layers.get(place, ""))
                break
    return found


def materials(file):
    """Names of the materials that say that pictures of faces are rendered. Raises one of `old_file.BROKEN`."""
    return {file.name(*at) for at in file.all_of(b"MA") if any(mode & BY_FACES for mode in file.read(*at, "mode"))}


def _layers(file):
    """Pointer to the data of a layer -> its name."""
    found = {}
    for number, start, count in file.places.values():
        if number < len(file.kinds) and file.kinds[number] == "CustomDataLayer":
            for at in range(start, start + count * file.sizes[number], file.sizes[number]):
                (place,) = file.read(number, at, "data")
                found[place] = file.text(number, at, "name")
    return found


def _faces(file, number, start, count, layer):
    pages = file.column(number, start, count, "tpage")
    different, chosen = np.unique(pages, return_inverse=True)
    names = [file.name(*file.places[page][:2]) if page in file.places else "" for page in different.tolist()]
    known = np.array([bool(name) for name in names], bool)
    clear = np.isin(file.column(number, start, count, "transp"), SEE_THROUGH)
    return Faces(names, np.where(known[chosen], chosen, -1), clear, layer)


def show(found, painted, by_faces):
    """Give faces materials with their pictures. Returns the number of meshes that got any.

    found: as of `of_meshes`. A picture of their material (one of `painted`) stays, unless its name is in `by_faces`, or its faces
    name several pictures; so do materials with nodes.
    """
    made, meshes = {}, 0
    for mesh in (mesh for mesh in bpy.data.meshes if mesh.library is None and mesh.name in found):
        faces = found[mesh.name]
        if len(faces.chosen) != len(mesh.polygons):
            continue
        index = np.zeros(len(mesh.polygons), np.int32)
        mesh.polygons.foreach_get("material_index", index)
        slots, before = _slots(mesh), index.copy()
        for slot in np.unique(before).tolist():
            material, mine = slots[slot] if slot < len(slots) else None, before == slot
            pictures = np.unique(np.stack([faces.chosen, faces.clear], 1)[mine & (faces.chosen >= 0)], axis=0).tolist()
            pictures = [(number, clear) for number, clear in pictures if _picture(faces.names[number])]
            several = len({number for number, _ in pictures}) > 1
            if material and (
                material.use_nodes and not (material in painted and (several or material.name in by_faces))
            ):
                continue
            for number, clear in pictures:
                key = material, faces.names[number], clear, faces.layer
                if key not in made:
                    made[key] = material.copy() if material else bpy.data.materials.new("faces")
                    paint(made[key], _picture(faces.names[number]), True, faces.layer, bool(clear))
                if not mesh.materials:
                    mesh.materials.append(None)  # of faces without a picture
                mesh.materials.append(made[key])
                index[mine & (faces.chosen == number) & (faces.clear == clear)] = len(mesh.materials) - 1
        if (index != before).any():
            mesh.polygons.foreach_set("material_index", index)
            meshes += 1
    return meshes


def _slots(mesh):
    """Materials of a mesh, as the first object that shows it has them."""
    owner = next((ob for ob in bpy.data.objects if ob.data == mesh), None)
    return [slot.material for slot in owner.material_slots] if owner else list(mesh.materials)


def _picture(name):
    """Image of a file; None if there is none, as for test patterns and renders."""
    image = bpy.data.images.get((name, None)) if name else None
    return image if image and image.source != "GENERATED" and image.type == "IMAGE" else None


def paint(material, image, by_uv, layer, clear=False):
    """Give a material a picture: placed by UV of a layer, or by the object's box; clear: its alpha counts."""
    colour = material.diffuse_color[:]
    material.use_nodes = True
    tree = material.node_tree
    shader, picture = tree.nodes["Principled BSDF"], tree.nodes.new("ShaderNodeTexImage")
    shader.inputs["Base Color"].default_value = colour
    picture.image = image
    tree.links.new(picture.outputs["Color"], shader.inputs["Base Color"])
    if clear:
        tree.links.new(picture.outputs["Alpha"], shader.inputs["Alpha"])
    if by_uv:
        places = tree.nodes.new("ShaderNodeUVMap")
        places.uv_map = layer
        tree.links.new(places.outputs["UV"], picture.inputs["Vector"])
    else:
        places = tree.nodes.new("ShaderNodeTexCoord")
        tree.links.new(places.outputs["Generated"], picture.inputs["Vector"])
