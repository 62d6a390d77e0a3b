"""Finds pictures that a file names by where they were on another machine."""

import unicodedata

import bpy


def relink(pictures):
    """Give images without pixels the nearest file of their base name. Returns how many found one.

    pictures: base name in lower case -> files that the object may read, of the nearest folder, sorted.
    """
    found = 0
    for image in bpy.data.images:
        if (
            image.source not in ("FILE", "TILED") or image.packed_file or image.size[0]
        ):  # the size tries to load the file
            continue
        if file := near(image, pictures) or of_stem(image, pictures):
            image.source = "FILE"
            image.filepath = file
            image.reload()
            found += image.size[0] > 0
    return found


def of_stem(image, pictures):
    """The only picture of an image's stem, under another suffix; "" if there is none."""
    base = _base(image)
    stems = {base, base.rpartition(".")[0]} - {""}
    found = {
        file
        for name, files in pictures.items()
        if name.rpartition(".")[0] in stems and not name.endswith(".blend")
        for file in files
    }
    return found.pop() if len(found) == 1 else ""


def _base(block):
    return unicodedata.normalize("NFC", parts(block.filepath)[-1].casefold())


def near(block, files):
    """File that is most like the path of an image or library: the nearest of its base name, "" if there is none."""
    wanted = [part.casefold() for part in parts(block.filepath)]
    found = files.get(_base(block), ())
    return min(found, key=lambda path: -_alike(path.casefold().split("/"), wanted), default="")


def parts(path):
    """Names of a path of any system."""
    return path.replace("\\", "/").split("/")


def _alike(one, other):
    """Number of parts at the end that two paths share."""
    same = 0
    while same < min(len(one), len(other)) and one[-1 - same] == other[-1 - same]:
        same += 1
    return same
