"""Pictures that materials of Blender before 2.80 show. It reads such files but for what materials have to do with textures.

Written there: Material.mtex, pointers to MTex, which says what it colours and points to Tex. All else about them Blender reads.
"""

import bpy
import face_pictures
import old_file

WITH_NODES = (2, 80, 0)
COLOUR, BY_UV = 1, 16  # bits of MTex.mapto; of MTex.texco


def restore(path):
    """Give materials without nodes the pictures of their colour, and faces their own. Returns facts.

    mended: "old_materials" if any got one. missing_textures: number of other textures of colours, as clouds, which stay away.
    """
    if bpy.data.version >= WITH_NODES:
        return {}
    try:
        file = old_file.opened(path)
        wanted, faces = textures_of_materials(file), face_pictures.of_meshes(file)
        by_faces = face_pictures.materials(file)
    except old_file.BROKEN:
        return {}
    painted, missing = set(), 0
    for material in (one for one in bpy.data.materials if one.library is None and not one.use_nodes):
        for texture, by_uv, layer in wanted.get(material.name, ()):
            found = bpy.data.textures.get(texture)
            if found is None or found.type in ("NONE", ""):
                continue
            if found.type == "IMAGE" and found.image:
                face_pictures.paint(material, found.image, by_uv, layer)
                painted.add(material)
                break
            missing += 1
    shown = face_pictures.show(faces, painted, by_faces)
    facts = {"mended": ["old_materials"]} if painted or shown else {}
    return facts | ({"missing_textures": missing} if missing else {})


def textures_of_materials(file):
    """Material's name -> [(name of a texture of its colour, True if places are UV, name of their layer)] of an `OldFile`.

    Raises one of `old_file.BROKEN`.
    """
    found = {}
    for number, start in file.all_of(b"MA"):
        slots = (file.places[slot] for slot in file.read(number, start, "mtex") if slot in file.places)
        found[file.name(number, start)] = list(_coloured(file, slots))
    return found


def _coloured(file, slots):
    """Yield what those slots of a material say that change its colour."""
    for number, start, _ in slots:
        (mapto,), (texco,) = (file.read(number, start, name) for name in ("mapto", "texco"))
        (texture,) = file.read(number, start, "tex")
        if mapto & COLOUR and texture in file.places:
            layer = file.text(number, start, "uvname")
            yield file.name(*file.places[texture][:2]), bool(texco & BY_UV), layer
