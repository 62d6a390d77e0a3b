"""Gives meshes of a USD the colours that prims above them hand down, which Blender's importer leaves there."""

import math

import bpy
import meshes
import numpy as np
import usd_subsets

NAME = "displayColor"
OF_INSTANCE = "colour of the instance"  # mark of a mesh that shows a colour of NAME of each place that it has


class HandDown(bpy.types.USDHook):
    """Called by Blender's importer at its end, with the open stage and what has become of each prim.

    of_instances: in the last import an instance had a colour to hand down, which what it shares with others cannot show.
    wants_all: a mesh is bound to a material that was not imported.
    """

    bl_idname = "USD_handed_down_colours"
    bl_label = "Colours that prims hand down"
    of_instances = wants_all = False

    @staticmethod
    def on_import(context):
        stage = context.get_stage()
        HandDown.of_instances = any(_colour(prim) for prim in _instances(stage))
        HandDown.wants_all = False
        prims = context.get_prim_map()
        for path, made in prims.items():
            for cloud in (one for one in made if isinstance(one, bpy.types.PointCloud)):
                _paint_places(stage.GetPrimAtPath(path), cloud, prims)
            for mesh in (one for one in made if isinstance(one, bpy.types.Mesh)):
                prim = stage.GetPrimAtPath(path)
                _paint_mesh(prim, mesh)
                HandDown.wants_all |= usd_subsets.finish(prim, mesh, prims)
        return True


def teach_importer():
    """Make Blender's USD importer hand colours down. Call once."""
    bpy.utils.expose_bundled_modules()  # pxr, which takes half a second to import: with the first USD
    bpy.utils.register_class(HandDown)


def _instances(stage):
    """Iterate over prims that share what is below them with others, those within what is shared too."""
    from pxr import Usd

    roots = [stage.GetPseudoRoot(), *stage.GetPrototypes()]
    return (prim for root in roots for prim in Usd.PrimRange(root) if prim.IsInstance())


def _colour(prim):
    """The one colour (3 numbers of linear light) that a prim has or that is handed down to it; None if there is none."""
    from pxr import Usd, UsdGeom

    primvar = UsdGeom.PrimvarsAPI(prim).FindPrimvarWithInheritance(NAME)
    values = primvar.ComputeFlattened(Usd.TimeCode.EarliestTime()) if primvar else None
    if not values or len(values) != 1 or primvar.GetInterpolation() != UsdGeom.Tokens.constant:
        return None
    colour = [float(value) for value in values[0]]
    return colour if len(colour) == 3 and all(map(math.isfinite, colour)) else None


def _paint_mesh(prim, mesh):
    """Give a mesh without colours the one that its prim has or is handed down, or its own ones of faces and points.

    Of meshes with attributes on which it crashes Blender's importer has read none; those of the faces of shapes as Cube and
    Sphere it reads from anywhere.
    """
    from pxr import Usd, UsdGeom

    has_read = NAME in mesh.color_attributes
    if has_read and prim.IsA(UsdGeom.Mesh):
        return
    if not has_read and (colour := _colour(prim)):
        _paint(mesh, colour)
        return
    primvar = UsdGeom.PrimvarsAPI(prim).GetPrimvar(NAME)
    kinds, how = UsdGeom.Tokens, primvar.GetInterpolation() if primvar and primvar.HasValue() else ""
    if has_read and how != kinds.uniform:
        return
    if has_read:
        mesh.color_attributes.remove(mesh.color_attributes[NAME])
    values = primvar.ComputeFlattened(Usd.TimeCode.EarliestTime()) if how else None
    counts = {kinds.uniform: len(mesh.polygons), kinds.vertex: len(mesh.vertices), kinds.varying: len(mesh.vertices)}
    if not values or len(values) != counts.get(how):
        return
    colours = np.nan_to_num(np.array(values, np.float32).reshape(len(values), -1)[:, :3])
    if how == kinds.uniform:
        colours = np.repeat(colours, meshes.starts_and_lengths(mesh)[1], 0)
    attribute = mesh.color_attributes.new(NAME, "FLOAT_COLOR", "CORNER" if how == kinds.uniform else "POINT")
    attribute.data.foreach_set("color", np.pad(colours, ((0, 0), (0, 1)), constant_values=1).ravel())


def _paint_places(prim, cloud, prims):
    """Give places (of a PointInstancer) the colours that it has for each, and mark the meshes that stand there."""
    from pxr import Usd, UsdGeom

    primvar = UsdGeom.PrimvarsAPI(prim).GetPrimvar(NAME)
    values = primvar.ComputeFlattened(Usd.TimeCode.EarliestTime()) if primvar and primvar.HasValue() else None
    if not values or len(values) != len(cloud.points) or primvar.GetInterpolation() == UsdGeom.Tokens.constant:
        return
    attribute = cloud.attributes.new(NAME, "FLOAT_COLOR", "POINT")
    attribute.data.foreach_set("color", [part for value in values for part in (*map(float, value), 1.0)])
    shown = tuple(f"{path}/" for path in UsdGeom.PointInstancer(prim).GetPrototypesRel().GetForwardedTargets())
    for mesh in (one for path, made in prims.items() if f"{path}/".startswith(shown) for one in made):
        if isinstance(mesh, bpy.types.Mesh):
            mesh[OF_INSTANCE] = True


def _paint(mesh, colour):
    attribute = mesh.color_attributes.new(NAME, "FLOAT_COLOR", "POINT")
    attribute.data.foreach_set("color", [*colour, 1.0] * len(mesh.vertices))
