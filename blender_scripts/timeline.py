"""When an animated object is shown: which of its animations, how long that is, and the instants of it that are rendered."""

import bpy
from importers import Unusable

ALTERNATIVES = (
    "glb",
    "gltf",
    "fbx",
)  # formats whose actions are animations to choose from; elsewhere they are parts of one
NAMED = 20  # names of animations in a message, at most


def is_animated():
    """True if anything in the file moves by keys or by a cache of Alembic or USD."""
    return bool(bpy.data.actions) or bool(_caches())


def choose(wanted, file_format):
    """Make one of a file's animations the one that plays. wanted: "first", "longest" or a name. Returns its name, "" for no name.

    Raises Unusable("no_such_animation") for a name that the file does not have.
    """
    playing = sorted({data.action.name for _, data in _animated() if data.action})
    names = sorted(action.name for action in bpy.data.actions)
    if wanted not in ("first", "longest") and wanted not in names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        there = ", ".join(repr(name[:80]) for name in names[:NAMED]) + more
        raise Unusable("no_such_animation", f"none is called {wanted!r}; the file has {there or 'none with a name'}")
    if file_format not in ALTERNATIVES or wanted == "first":
        return playing[0] if len(playing) == 1 else ""
    if wanted == "longest":
        wanted = max(names, key=lambda name: (_length(bpy.data.actions[name]), name in playing, name), default="")
    if wanted:
        _play(bpy.data.actions[wanted])
    return wanted


def span():
    """(first, last) frame of what plays, None if nothing does."""
    scene, ranges = bpy.context.scene, []
    for _, data in _animated():
        if data.action:
            ranges.append(tuple(data.action.frame_range))
        for track in data.nla_tracks:
            if not track.mute:
                ranges += [(strip.frame_start, strip.frame_end) for strip in track.strips if not strip.mute]
    if _caches():  # the importers set the scene's range to that of the cache
        ranges.append((scene.frame_start, scene.frame_end))
    if not ranges:
        return None
    return min(first for first, _ in ranges), max(last for _, last in ranges)


def seconds_of(between):
    """Seconds between two frames."""
    render = bpy.context.scene.render
    return (between[1] - between[0]) * render.fps_base / render.fps


def instants(asked, between):
    """(seconds from the animation's beginning, frames of the scene), a list each, of asked["count"] instants.

    asked: {"count": T, "fps": float or None, "duration": seconds or None, "end": "loop" or "clamp"}; with neither, the instants
    are spread over the animation. What lies beyond its end is its beginning again, or stays the end. between: of `span`.
    """
    first, last = between
    whole, count = seconds_of(between), asked["count"]
    rate = (last - first) / whole
    if asked["fps"]:
        seconds = [number / asked["fps"] for number in range(count)]
    else:
        length = whole if asked["duration"] is None else asked["duration"]
        # an animation that begins again shows its beginning once
        steps = count if asked["end"] == "loop" else count - 1
        seconds = [length * number / max(1, steps) for number in range(count)]
    within = [time % whole if asked["end"] == "loop" and time > whole * (1 + 1e-9) else time for time in seconds]
    return seconds, [first + min(time, whole) * rate for time in within]


def show(frame):
    """Set the scene to a frame, which need not be whole."""
    whole = int(frame // 1)
    bpy.context.scene.frame_set(whole, subframe=frame - whole)


def _animated():
    """(block, animation data) of all data blocks that have any: objects, shape keys, materials' trees, cameras, ..."""
    kinds = (bpy.data.objects, bpy.data.shape_keys, bpy.data.materials, bpy.data.armatures, bpy.data.meshes)
    blocks = [block for kind in kinds for block in kind]
    blocks += [material.node_tree for material in bpy.data.materials if material.node_tree]
    return [(block, block.animation_data) for block in blocks if block.animation_data]


def _caches():
    """Modifiers and constraints that read a shape or a place from a file for each frame."""
    return [one for ob in bpy.data.objects for one in ob.modifiers if one.type == "MESH_SEQUENCE_CACHE"] + [
        one for ob in bpy.data.objects for one in ob.constraints if one.type == "TRANSFORM_CACHE"
    ]


def _length(action):
    first, last = action.frame_range
    return last - first


def _play(action):
    """Give every block the action's slot of its name, and no other action."""
    slots = {(slot.target_id_type, slot.name_display): slot for slot in action.slots}
    for block, data in _animated():
        slot = slots.get((block.id_type, block.name))
        data.action = action if slot else None
        if slot:
            data.action_slot = slot
