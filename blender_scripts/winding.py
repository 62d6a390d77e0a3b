"""Turns stored normals that point to the other side of their face than its winding says, which Cycles shades black."""

import meshes
import numpy as np

AGAINST = -0.05  # cosine with the face's normal below which a corner's normal points to the other side
REVERSED = -0.5  # mean cosine below which a face's normals are turned round; above, they lean over and are mirrored
SHARE = 1e-3  # of a mesh's area; slivers may have any normal, and nobody sees them


def agree():
    """Bring normals to the side of their faces where all corners of a face are on the other side. True if there were such."""
    stored = dict.fromkeys(ob.data for ob in meshes.rendered() if ob.data.has_custom_normals)
    return sum(_agree(mesh) for mesh in stored) > 0


def _agree(mesh):
    stored = meshes.read(mesh.corner_normals, "vector", 3)
    starts, lengths = meshes.starts_and_lengths(mesh)
    faces = np.repeat(meshes.normals(mesh), lengths, 0)
    cosines = np.einsum("ij,ij->i", stored, faces)
    against = np.maximum.reduceat(cosines, starts) < AGAINST
    areas = meshes.read(mesh.polygons, "area")
    if not areas[against].sum() > SHARE * areas.sum():
        return False
    turned = np.repeat(against & (np.add.reduceat(cosines, starts) < REVERSED * lengths), lengths)
    leaning = np.repeat(against, lengths) & ~turned
    stored[turned] *= -1
    stored[leaning] -= 2 * cosines[leaning, None] * faces[leaning]
    mesh.normals_split_custom_set(stored)
    return True
