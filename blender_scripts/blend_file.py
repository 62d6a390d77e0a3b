"""Opens a .blend with scripts off and puts what its active scene would render into a new scene with default settings.

The file's own scene may have compositor trees, borders, overrides, Freestyle scripts.
"""

import contextlib

import bpy
import old_blend


def open_file(filepath):
    """Make a scene of the file's rendered objects the current one.

    Returns facts: mended "edit_mode" if any was being edited, and those of `old_blend`.
    """
    bpy.ops.wm.open_mainfile(filepath=filepath, use_scripts=False, load_ui=False)
    facts = old_blend.restore(filepath)
    old = bpy.context.scene
    edited = _leave_modes(old)
    rendered = {ob for ob in _rendered(bpy.context.view_layer.layer_collection) if not ob.hide_render}
    ancestors = {parent for ob in rendered for parent in _ancestors(ob)} - rendered
    new = bpy.data.scenes.new("render")
    new.frame_set(old.frame_current)
    for ob in sorted(rendered | ancestors, key=lambda ob: (ob.name, ob.library.filepath if ob.library else "")):
        new.collection.objects.link(ob)
    for ob in ancestors:  # a parent that is not rendered still moves its children
        ob.hide_render = True
    bpy.context.window.scene = new
    for scene in list(bpy.data.scenes):
        if scene is not new:
            bpy.data.scenes.remove(scene)
    _part_instances(new)
    return facts | ({"mended": [*facts.get("mended", ()), "edit_mode"]} if edited else {})


def _leave_modes(scene):
    """Put all objects into object mode. True if one was in edit mode, in which a mesh is rendered as nothing."""
    edited = False
    for ob in scene.objects:
        if ob.mode != "OBJECT":
            edited = edited or ob.mode == "EDIT"
            # those that cannot leave, as linked ones, are rendered as they are
            with contextlib.suppress(RuntimeError), bpy.context.temp_override(active_object=ob, object=ob):
                bpy.ops.object.mode_set(mode="OBJECT")
    return edited


def _part_instances(scene):
    """Make objects of the instances that show objects which stand in the scene too.

    Normalising moves what stands in the scene, and would move such instances twice.
    """
    here = set(scene.objects)
    shared = [ob for ob in scene.objects if ob.instance_type == "COLLECTION" and here & _shown_by(ob)]
    if shared:
        with bpy.context.temp_override(selected_objects=shared, selected_editable_objects=shared):
            bpy.ops.object.duplicates_make_real()


def _shown_by(ob, above=()):
    """Objects that an instance of a collection shows, and those that they show in turn."""
    collection = ob.instance_collection
    if collection is None or collection in above:
        return set()
    found = set(collection.all_objects)
    return found.union(*(_shown_by(inner, (*above, collection)) for inner in found))


def _rendered(layer_collection):
    """Objects of a layer collection and of its children, except collections that are excluded or hidden from renders."""
    if layer_collection.exclude or layer_collection.collection.hide_render:
        return
    yield from layer_collection.collection.objects
    for child in layer_collection.children:
        yield from _rendered(child)


def _ancestors(ob):
    while ob := ob.parent:
        yield ob
