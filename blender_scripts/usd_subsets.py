"""Gives faces of a USD's mesh that are in none of its subsets its own material; Blender's importer gives them a subset's."""

import bpy
import meshes
import numpy as np


def finish(prim, mesh, made):
    """Give the rest of the faces of a mesh what its prim is bound to. True if that is a material that was not imported.

    made: path of a prim -> what has become of it.
    """
    from pxr import Usd, UsdGeom, UsdShade

    subsets = UsdShade.MaterialBindingAPI(prim).GetMaterialBindSubsets() if prim.IsA(UsdGeom.Mesh) else []
    rest = np.ones(len(mesh.polygons), bool)
    for subset in subsets:
        indices = np.array(subset.GetIndicesAttr().Get(Usd.TimeCode.EarliestTime()) or [], np.int64)
        rest[indices[(indices >= 0) & (indices < len(rest))]] = False
    if not subsets or not rest.any():
        return False
    bound = UsdShade.MaterialBindingAPI(prim).ComputeBoundMaterial()[0]
    found = [one for one in made.get(bound.GetPath(), ()) if isinstance(one, bpy.types.Material)] if bound else []
    if bound and not found:
        return True
    chosen = meshes.read(mesh.polygons, "material_index", 1, np.int32).ravel()
    chosen[rest] = len(mesh.materials)
    mesh.materials.append(found[0] if found else None)
    mesh.polygons.foreach_set("material_index", chosen)
    return False
