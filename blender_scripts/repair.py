"""Makes an imported scene look as its author meant, and flags what is missing."""

import alpha
import apart
import bpy
import colours
import missing_images
import picture_alpha
import winding


def repair(file_format, path):
    """Hide imported lights and mend what files, writers and readers get wrong. Returns the flags that go into the shard.

    mended: what was wrong and is not any more, sorted; left out if nothing was. alpha: invisible by mistake. color_range:
    colours 0 to 255 taken for 0 to 1. coincident_faces: moved apart. normals: against their faces. unchecked: what was not
    looked for everywhere, since the scene is too large. pictures: of kinds that Blender does not read.
    """
    if file_format == "procedural":  # our own, which is as it is meant
        return {"missing_textures": 0}
    for ob in bpy.context.scene.objects:
        if ob.type == "LIGHT":
            ob.hide_render = True  # never deleted: a light may be the parent of something visible
    missing, decoded = missing_images.fill()
    flags = {"missing_textures": missing}
    picture_alpha.settle(file_format)
    if file_format != "blend":
        picture_alpha.keep_colours()
    mended = {
        "alpha": alpha.mend(file_format, path),
        "color_range": colours.show(file_format, path),
        "normals": winding.agree(),
        "pictures": bool(decoded),
    }
    mended["coincident_faces"], all_looked_at = apart.separate()
    if any(mended.values()):
        flags["mended"] = sorted(name for name, was_wrong in mended.items() if was_wrong)
    if not all_looked_at:
        flags["unchecked"] = ["coincident_faces"]
    return flags
