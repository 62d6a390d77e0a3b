"""Render engines: from a job's numbers to arrays of linear light. Cycles by default, EEVEE on request.

Cycles is a Python `RenderEngine`; its `render` method is wrapped once. One render call of Blender then serves all views of
a job: inside it, the session is reset and run for each camera, and the passes are read as float32 straight from the
engine's result. No codec, no file, no view transform, no dither, no compositor, and no set-up of the scene per view.
"""

import contextlib
import functools
import os
import sys
import tempfile
import time

import _cycles
import bpy
import cycles
import numpy as np
import outline
import surfaces
import timeline
from mathutils import Matrix

GPU_KINDS = ("OPTIX", "CUDA", "HIP", "ONEAPI", "METAL")
PASSES = {"Combined": "rgba", "Noisy Image": "noisy", "Depth": "depth", "Normal": "normals"}
PASSES |= {name: name for name in surfaces.SOCKETS}
REACH = 2  # pixels around an outline

_cycles_render = cycles.CyclesRender.render
_task = None


def _render(self, depsgraph):
    (_task or _cycles_render)(self, depsgraph)


cycles.CyclesRender.render = _render


@contextlib.contextmanager
def _quiet():
    """Discard Blender's progress lines on standard output; errors go to standard error, which stays."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _in_render_call(task):
    """Run task(engine, depsgraph) in place of Cycles' own render method. Raises RuntimeError if the task did not end."""
    global _task
    finished = []

    def to_its_end(engine, depsgraph):
        task(engine, depsgraph)
        finished.append(True)

    _task = to_its_end
    try:
        with _quiet():
            bpy.ops.render.render()
    finally:
        _task = None
    if not finished:
        raise RuntimeError("stopped inside the render call; the traceback that Blender printed stands above")


def visit_depsgraph(visit):
    """Call visit(depsgraph) with the *render* dependency graph of the current scene; no ray is traced."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.render.resolution_x = scene.render.resolution_y = 4
    if scene.camera is None:
        scene.camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
        scene.collection.objects.link(scene.camera)
    _in_render_call(lambda engine, depsgraph: visit(depsgraph))


@functools.cache
def devices():
    """Devices that Cycles sees: kind -> names, CPU first."""
    preferences = bpy.context.preferences.addons["cycles"].preferences
    found = {"CPU": []}
    for kind in ("CPU", *GPU_KINDS):
        with contextlib.suppress(TypeError, ValueError):  # a kind that this build of Cycles does not have
            names = [device.name for device in preferences.get_devices_for_type(kind) if device.type == kind]
            if names:
                found[kind] = names
    return found


def configure(job):
    """Scene settings that are the same for all views of a job. Returns the name of the device that renders."""
    scene = bpy.context.scene
    render = scene.render
    height, width = job["hw"]
    render.resolution_x, render.resolution_y, render.resolution_percentage = width, height, 100
    # never 1: Blender's TBB then keeps a thread spinning in sched_yield for ever (measured: 1.7 times slower, a core lost)
    render.threads_mode, render.threads = "FIXED", max(2, job["threads"])
    render.use_persistent_data = True
    render.film_transparent = True  # the parent composites on exact white
    render.use_compositing = render.use_sequencer = False
    view = scene.view_settings
    scene.display_settings.display_device = "sRGB"
    view.view_transform, view.look, view.exposure, view.gamma = "Standard", "None", 0, 1
    render.dither_intensity = 0
    layer = bpy.context.view_layer
    layer.use_pass_z = "depth" in job["passes"]
    layer.use_pass_normal = "normals" in job["passes"]
    if said := [name for name in job["passes"] if name in surfaces.SOCKETS]:
        surfaces.expose(said)
    _light(scene, job["lights"])
    if job["engine"] == "eevee":
        return _configure_eevee(scene, job)
    return _configure_cycles(scene, job)


def _light(scene, lights):
    """Make a world and suns of a set-up of lights, see pipeline/worker/lights.py."""
    world = scene.world = bpy.data.worlds.new("world")
    world.use_nodes = True
    if "hdri" in lights:
        _environment(world.node_tree, **lights["hdri"])
    else:
        # a smooth sky needs no importance map, whose making takes longer than it saves
        world.cycles.sampling_method = "NONE"
        _sky(world.node_tree, lights)
    for number, sun in enumerate(lights["suns"]):
        light = bpy.data.lights.new(f"sun {number}", "SUN")
        light.energy, light.color, light.angle = sun["strength"], sun["color"], np.radians(sun["angle_deg"])
        ob = bpy.data.objects.new(light.name, light)
        ob.matrix_world = Matrix(sun["matrix_world"])
        scene.collection.objects.link(ob)


def _environment(tree, path, turn, strength):
    """An equirectangular map, looked up in directions that are turned about z by `turn` radians."""
    picture = tree.nodes.new("ShaderNodeTexEnvironment")
    picture.image = bpy.data.images.load(path)
    turned = tree.nodes.new("ShaderNodeMapping")
    turned.inputs["Rotation"].default_value[2] = turn
    tree.links.new(tree.nodes.new("ShaderNodeTexCoord").outputs["Generated"], turned.inputs["Vector"])
    tree.links.new(turned.outputs["Vector"], picture.inputs["Vector"])
    background = tree.nodes["Background"]
    background.inputs["Strength"].default_value = strength
    tree.links.new(picture.outputs["Color"], background.inputs["Color"])


def _sky(tree, lights):
    """Radiance by direction: a base, and a lobe ((1 + d . direction) / 2)^2 of each colour over it."""
    background = tree.nodes["Background"].inputs["Color"]
    background.default_value = (*lights["world"], 1)
    if not lights["lobes"]:
        return

    def add(kind, operation, *inputs):
        node = tree.nodes.new(kind)
        node.operation = operation
        for socket, value in zip(node.inputs, inputs, strict=False):
            if isinstance(value, bpy.types.NodeSocket):
                tree.links.new(value, socket)
            else:
                socket.default_value = value
        return node.outputs

    direction = tree.nodes.new("ShaderNodeTexCoord").outputs["Generated"]
    total = tuple(lights["world"])
    for lobe in lights["lobes"]:
        cosine = add("ShaderNodeVectorMath", "DOT_PRODUCT", direction, lobe["direction"])["Value"]
        half = add("ShaderNodeMath", "MULTIPLY_ADD", cosine, 0.5, 0.5)[0]
        share = add("ShaderNodeMath", "MULTIPLY", half, half)[0]
        total = add("ShaderNodeVectorMath", "MULTIPLY_ADD", share, lobe["color"], total)[0]
    tree.links.new(total, background)


def _configure_cycles(scene, job):
    scene.render.engine = "CYCLES"
    settings = scene.cycles
    settings.samples = job["samples"]
    settings.use_adaptive_sampling = False
    settings.sampling_pattern = "TABULATED_SOBOL"
    settings.use_denoising = job["denoise"]
    if job["denoise"]:
        settings.denoiser = "OPENIMAGEDENOISE"
        # measured at 512 pixels: a sixth of the default's time for 0.5 to 1 dB less
        settings.denoising_prefilter, settings.denoising_quality = "NONE", "FAST"
    # the picture as it was before, see _keep_outline
    bpy.context.view_layer.cycles.denoising_store_passes = job["denoise"]
    settings.max_bounces, settings.diffuse_bounces, settings.glossy_bounces = 8, 3, 4
    settings.transmission_bounces = 8
    settings.transparent_max_bounces = 32  # below 16, stacked alpha cards (foliage, hair) turn black
    settings.sample_clamp_indirect = 10.0
    settings.blur_glossy = 1.0
    settings.caustics_reflective = settings.caustics_refractive = False
    settings.film_transparent_glass = False
    return _choose_device(scene, job["device"])


def _choose_device(scene, wanted):
    """Choose the first GPU kind with a device, else the CPU; return its name. wanted: auto, cpu or a GPU kind."""
    preferences = bpy.context.preferences.addons["cycles"].preferences
    found = devices()
    kinds = [kind for kind in GPU_KINDS if kind in found and wanted in ("auto", kind.lower())]
    if not kinds:
        scene.cycles.device = "CPU"
        return "CPU"
    preferences.compute_device_type = kinds[0]
    for device in preferences.get_devices_for_type(kinds[0]):  # refills the list that the factory reset emptied
        device.use = device.type == kinds[0]
    scene.cycles.device = "GPU"
    return f"{kinds[0]} {', '.join(found[kinds[0]])}"


def _configure_eevee(scene, job):
    names = {item.identifier for item in type(scene.render).bl_rna.properties["engine"].enum_items}
    scene.render.engine = "BLENDER_EEVEE_NEXT" if "BLENDER_EEVEE_NEXT" in names else "BLENDER_EEVEE"
    scene.eevee.taa_render_samples = job["samples"]
    scene.render.image_settings.file_format = "OPEN_EXR"
    scene.render.image_settings.color_mode = "RGBA"
    scene.render.image_settings.color_depth = "32"
    scene.render.image_settings.exr_codec = "NONE"
    for material in bpy.data.materials:
        material.use_backface_culling = False  # Cycles shows both sides
    return "EEVEE"


def render_views(job, instants, corners_in, emit):
    """Call emit(index, rectangle, passes, seconds) for each shot, in order. All cameras have the same pixel aspect.

    instants: (frame of the scene or None, [[index, number of the camera], ...]) of each. corners_in: render graph -> points
    (K, 3) whose convex hull holds the object, or None if not known (see `outline`).
    passes: {"rgba": (h, w, 4), "depth": (h, w, 1), "normals": (h, w, 3)} float32 of the rectangle [top, bottom, left,
    right), rows from the top, linear light. rgba is premultiplied over nothing; depth is along the camera's axis in world
    units; normals are in world axes. Outside the rectangle there is nothing.
    """
    scene, first = bpy.context.scene, job["cameras"][0]
    scene.camera.data.sensor_fit = "HORIZONTAL"
    scene.camera.data.clip_start, scene.camera.data.clip_end = 0.01, 100.0
    # once for all views: an engine's own copy of these cannot be written (Blender 4.5 crashes)
    scene.render.pixel_aspect_x, scene.render.pixel_aspect_y = first["pixel_aspect_x"], first["pixel_aspect_y"]
    for frame, shots in instants:
        if frame is not None:
            timeline.show(frame)
        if job["engine"] == "eevee":
            _render_eevee(job, shots, emit)
            continue
        # The first view has its own render call, which syncs what is new in the scene; in one call with the other views
        # everything would be synced, and the BVH built, again for every view.
        hull = []
        for part in filter(None, (shots[:1], shots[1:])):
            task = functools.partial(_render_cycles, job=job, shots=part, hull=hull, corners_in=corners_in, emit=emit)
            _in_render_call(task)


def _render_cycles(engine, depsgraph, job, shots, hull, corners_in, emit):
    """Set each view's camera on the evaluated copies that Cycles reads, which spares updates of the dependency graph."""
    scene, (height, width) = depsgraph.scene_eval, job["hw"]
    if not hull:
        hull.append(corners_in(depsgraph))
    for index, number in shots:
        start, camera = time.perf_counter(), job["cameras"][number]
        rectangle = outline.rectangle(hull[0], camera["projection"], job["hw"])
        _place(scene.camera, camera)
        _set_border(engine.render, rectangle, job["hw"])
        scene.cycles.seed = (job["seed"] + number) % 2**31  # what stands still looks the same at all times
        _cycles.reset(engine.session, bpy.data.as_pointer(), depsgraph.as_pointer())  # takes camera, border and seed
        _cycles.render(engine.session, depsgraph.as_pointer())
        top, bottom, left, right = rectangle
        passes = {}
        for layer_pass in engine.get_result().layers[0].passes:
            if layer_pass.name in PASSES:
                pixels = np.empty(height * width * layer_pass.channels, np.float32)
                layer_pass.rect.foreach_get(pixels)
                # Blender's rows start at the bottom, and Cycles writes a border's pixels into the lower left corner
                pixels = pixels.reshape(height, width, layer_pass.channels)[: bottom - top, : right - left]
                passes[PASSES[layer_pass.name]] = np.ascontiguousarray(pixels[::-1])
        if job["denoise"]:
            _keep_outline(passes)
        emit(index, rectangle, passes, time.perf_counter() - start)


def _keep_outline(passes):
    """Take the outline's pixels from the picture before the denoiser, which moves outlines by 0.05 pixels.

    They are covered in part, and within REACH of where nothing is: surfaces that are seen through stay denoised.
    """
    rgba, noisy = passes["rgba"], passes.pop("noisy")
    alpha = rgba[..., 3]
    near = alpha == 0
    for axis in (0, 1):
        wide = np.pad(near, [(REACH, REACH) if axis == each else (0, 0) for each in (0, 1)])
        near = np.lib.stride_tricks.sliding_window_view(wide, 2 * REACH + 1, axis).any(-1)
    outlined = near & (alpha > 0) & (alpha < 1)
    rgba[outlined] = noisy[outlined]


def _place(ob, camera):
    ob.matrix_world = Matrix(camera["matrix_world"])
    if "ortho_scale" in camera:
        ob.data.type, ob.data.ortho_scale = "ORTHO", camera["ortho_scale"]
    else:
        ob.data.sensor_width, ob.data.lens = camera["sensor_width"], camera["lens"]
    ob.data.shift_x, ob.data.shift_y = camera["shift_x"], camera["shift_y"]


def _set_border(render, rectangle, hw):
    """Set Blender's render border; its ends, rounded down to pixels, are put 0.01 pixels beyond the edges."""
    top, bottom, left, right = rectangle
    height, width = hw
    beyond = 0.01
    render.use_border = True
    render.border_min_x, render.border_max_x = (left + beyond) / width, (right + beyond) / width
    render.border_min_y, render.border_max_y = (height - bottom + beyond) / height, (height - top + beyond) / height


def _render_eevee(job, shots, emit):
    """Render with EEVEE, through an uncompressed float image in the scratch folder: EEVEE has no Python hook."""
    scene = bpy.context.scene
    rectangle = outline.rectangle(None, None, job["hw"])
    for index, number in shots:
        start = time.perf_counter()
        _place(scene.camera, job["cameras"][number])
        emit(index, rectangle, _read_through_exr(scene), time.perf_counter() - start)


def _read_through_exr(scene):
    with tempfile.TemporaryDirectory(dir=os.getcwd()) as folder:
        scene.render.filepath = os.path.join(folder, "view.exr")
        with _quiet():
            bpy.ops.render.render(write_still=True)
        image = bpy.data.images.load(scene.render.filepath)
        image.colorspace_settings.name = "Linear Rec.709"
        width, height = image.size
        pixels = np.empty(width * height * 4, np.float32)
        image.pixels.foreach_get(pixels)
        bpy.data.images.remove(image)
    return {"rgba": np.ascontiguousarray(pixels.reshape(height, width, 4)[::-1])}
