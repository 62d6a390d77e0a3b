"""Render engines: from a job's numbers to arrays of linear light. Cycles by default, EEVEE on request.

Cycles is a Python `RenderEngine`; its `render` method is wrapped once, so that after the last sample the passes are read
as float32 straight from the engine's result: no codec, no file, no view transform, no dither, no compositor.
"""

import contextlib
import functools
import os
import tempfile

import bpy
import cycles
import numpy as np
from mathutils import Matrix

GPU_KINDS = ("OPTIX", "CUDA", "HIP", "ONEAPI", "METAL")
PASSES = {"Combined": "rgba", "Depth": "depth", "Normal": "normals"}

_cycles_render = cycles.CyclesRender.render
_captured = {}
_visitor = None


def _render_and_capture(self, depsgraph):
    if _visitor is not None:
        _visitor(depsgraph)
        return
    _cycles_render(self, depsgraph)
    scene = depsgraph.scene
    height, width = scene.render.resolution_y, scene.render.resolution_x
    _captured.clear()
    for layer_pass in self.get_result().layers[0].passes:
        if layer_pass.name in PASSES:
            pixels = np.empty(height * width * layer_pass.channels, np.float32)
            layer_pass.rect.foreach_get(pixels)
            _captured[PASSES[layer_pass.name]] = pixels.reshape(height, width, layer_pass.channels)[::-1]


cycles.CyclesRender.render = _render_and_capture


@contextlib.contextmanager
def _visiting(visitor):
    global _visitor
    _visitor = visitor
    try:
        yield
    finally:
        _visitor = None


def visit_depsgraph(visit):
    """Calls visit(depsgraph) with the *render* dependency graph of the current scene; no ray is traced."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.render.resolution_x = scene.render.resolution_y = 4
    if scene.camera is None:
        scene.camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
        scene.collection.objects.link(scene.camera)
    with _visiting(visit):
        bpy.ops.render.render()


@functools.cache
def devices():
    """Back ends that Cycles sees: kind -> names, CPU first."""
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
    render.film_transparent = True  # composited on exact white by the parent
    render.use_compositing = render.use_sequencer = False
    view = scene.view_settings
    scene.display_settings.display_device = "sRGB"
    view.view_transform, view.look, view.exposure, view.gamma = "Standard", "None", 0, 1
    render.dither_intensity = 0
    layer = bpy.context.view_layer
    layer.use_pass_z = "depth" in job["passes"]
    layer.use_pass_normal = "normals" in job["passes"]
    _light(scene, job["lights"])
    if job["engine"] == "eevee":
        return _configure_eevee(scene, job)
    return _configure_cycles(scene, job)


def _light(scene, lights):
    """lights: {"world": [r, g, b], "suns": [{"direction", "strength", "color", "angle_deg"}]} -> a world and suns."""
    world = scene.world = bpy.data.worlds.new("world")
    world.use_nodes = True
    world.node_tree.nodes["Background"].inputs["Color"].default_value = (*lights["world"], 1)
    for number, sun in enumerate(lights["suns"]):
        light = bpy.data.lights.new(f"sun {number}", "SUN")
        light.energy, light.color, light.angle = sun["strength"], sun["color"], np.radians(sun["angle_deg"])
        ob = bpy.data.objects.new(light.name, light)
        ob.matrix_world = Matrix(sun["matrix_world"])
        scene.collection.objects.link(ob)


def _configure_cycles(scene, job):
    scene.render.engine = "CYCLES"
    settings = scene.cycles
    settings.samples = job["samples"]
    settings.use_adaptive_sampling = False
    settings.use_denoising = job["denoise"]
    if job["denoise"]:
        settings.denoiser = "OPENIMAGEDENOISE"
        settings.denoising_prefilter = "FAST"
    settings.max_bounces, settings.diffuse_bounces, settings.glossy_bounces = 8, 3, 4
    settings.transmission_bounces = 8
    settings.transparent_max_bounces = 32  # below 16, stacked alpha cards (foliage, hair) turn black
    settings.sample_clamp_indirect = 10.0
    settings.blur_glossy = 1.0
    settings.caustics_reflective = settings.caustics_refractive = False
    settings.film_transparent_glass = False
    return _choose_device(scene, job["device"])


def _choose_device(scene, wanted):
    """wanted: auto, cpu or a GPU kind. The first kind that has a device is used; the CPU always is there."""
    preferences = bpy.context.preferences.addons["cycles"].preferences
    found = devices()
    kinds = [kind for kind in GPU_KINDS if kind in found and wanted in ("auto", kind.lower())]
    if not kinds:
        scene.cycles.device = "CPU"
        return "CPU"
    preferences.compute_device_type = kinds[0]
    for device in preferences.get_devices_for_type(kinds[0]):  # fills the list that the factory reset has emptied
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


def render_view(job, camera, index):
    """One view -> {"rgba": (H, W, 4), "depth": (H, W, 1), "normals": (H, W, 3)} float32, rows from the top, linear light.

    rgba is premultiplied over nothing; depth is along the camera's axis in world units; normals are in world axes.
    """
    scene = bpy.context.scene
    ob = scene.camera
    ob.matrix_world = Matrix(camera["matrix_world"])
    data = ob.data
    data.sensor_fit, data.sensor_width, data.lens = "HORIZONTAL", camera["sensor_width"], camera["lens"]
    data.shift_x, data.shift_y = camera["shift_x"], camera["shift_y"]
    data.clip_start, data.clip_end = 0.01, 100.0
    scene.render.pixel_aspect_x, scene.render.pixel_aspect_y = camera["pixel_aspect_x"], camera["pixel_aspect_y"]
    scene.cycles.seed = (job["seed"] + index) % 2**31
    if job["engine"] == "eevee":
        return _render_through_exr(scene)
    bpy.ops.render.render()
    return {name: np.ascontiguousarray(pixels) for name, pixels in _captured.items()}


def _render_through_exr(scene):
    """EEVEE has no Python hook: its result goes through an uncompressed float image in the scratch folder."""
    with tempfile.TemporaryDirectory(dir=os.getcwd()) as folder:
        scene.render.filepath = os.path.join(folder, "view.exr")
        bpy.ops.render.render(write_still=True)
        image = bpy.data.images.load(scene.render.filepath)
        image.colorspace_settings.name = "Linear Rec.709"
        width, height = image.size
        pixels = np.empty(width * height * 4, np.float32)
        image.pixels.foreach_get(pixels)
        bpy.data.images.remove(image)
    return {"rgba": np.ascontiguousarray(pixels.reshape(height, width, 4)[::-1])}
