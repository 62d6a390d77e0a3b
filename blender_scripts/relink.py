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
        parts = [part.casefold() for part in image.filepath.replace("\\", "/").split("/")]
        files = pictures.get(unicodedata.normalize("NFC", parts[-1]))
        if files:
            image.source = "FILE"
            image.filepath = min(files, key=lambda path: -_alike(path.casefold().split("/"), parts))
            image.reload()
            found += image.size[0] > 0
    return found


def _alike(one, other):
    """Number of parts at the end that two paths share."""
    same = 0
    while same < min(len(one), len(other)) and one[-1 - same] == other[-1 - same]:
        same += 1
    return same
