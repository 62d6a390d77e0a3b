"""The common way to render a dataset, for benchmarks/render.py to compare with: one fresh Blender per object.

    python -I _reference_render.py JOB.json

JOB.json is what `pipeline.worker.render.build_job` makes, with "path", "format" and "out" (a folder). Import, repair,
normalisation, light, bounces and poses are those of blender_scripts/, so that the two ways can be compared pixel by pixel.
What differs is what people commonly write: no persistent data, one `bpy.ops.render.render(write_still=True)` per view,
128 samples and a denoiser with the settings that Blender comes with (adaptive sampling on, accurate prefilter), 8-bit PNG
files. The film is opaque: rays from the camera that miss see white, others the job's light. Without a job it does nothing,
for `make bench`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import bpy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "blender_scripts"))


def peak_rss_mb(pid: int | str = "self") -> float:
    """The most memory that the process ever held, in MB. Unlike ru_maxrss it knows nothing of what forked the process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc/{pid}/status has no VmHWM")


def in_fresh_process(job: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """The parent's side: {"stages": seconds with "start" (and exit) and "wall", "device", "peak_rss_mb"}.

    Raises RuntimeError with the last words of a process that failed, and subprocess.TimeoutExpired.
    """
    folder = Path(job["out"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").unlink(missing_ok=True)
    (folder / "job.json").write_text(json.dumps(job))
    environment = os.environ | {"HOME": str(folder), "BLENDER_USER_RESOURCES": str(folder), "LC_ALL": "C.UTF-8"}
    environment["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    command = [sys.executable, "-I", __file__, str(folder / "job.json")]
    start = time.perf_counter()
    with (folder / "log").open("wb") as log:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=timeout_s
        )
    wall = time.perf_counter() - start
    if done.returncode or not (folder / "result.json").exists():
        tail = (folder / "log").read_text(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"exit status {done.returncode}: {''.join(tail)}")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    result["stages"] |= {"start": wall - sum(result["stages"].values()), "wall": wall}
    return result


def load(job: dict[str, Any], stages: dict[str, float]) -> None:
    """Our importers and normalisation in an empty Blender, with the seconds of each stage."""
    import bpy
    import importers
    import normalize
    import repair

    start = time.perf_counter()
    bpy.ops.wm.read_factory_settings(use_empty=True)
    stages["reset"] = time.perf_counter() - start
    start = time.perf_counter()
    importers.load(job["path"], job["format"])
    repair.repair(job["format"], job["path"])
    stages["import"] = time.perf_counter() - start
    start = time.perf_counter()
    normalize.normalize(job["normalize"], job["limits"])
    stages["normalize"] = time.perf_counter() - start


def configure(job: dict[str, Any]) -> str:
    """Our light, bounces and view transform, then what the common way does in its own manner. Returns the device."""
    import bpy
    import engines

    device: str = engines.configure(job)
    scene = bpy.context.scene
    scene.render.use_persistent_data = False
    scene.render.film_transparent = False
    bpy.context.view_layer.cycles.denoising_store_passes = False
    show_white(scene.world.node_tree)
    scene.cycles.use_adaptive_sampling = True
    scene.cycles.sampling_pattern = "AUTOMATIC"
    if job["denoise"]:
        scene.cycles.denoising_prefilter, scene.cycles.denoising_quality = job["prefilter"], "HIGH"
    scene.render.image_settings.file_format = "PNG"
    scene.render.image_settings.color_mode = "RGB"
    scene.render.image_settings.color_depth = "8"
    return device


def show_white(tree: bpy.types.NodeTree) -> None:
    """Make the world white to rays from the camera alone."""
    output = tree.get_output_node("CYCLES")
    mix, path = tree.nodes.new("ShaderNodeMixShader"), tree.nodes.new("ShaderNodeLightPath")
    white = tree.nodes.new("ShaderNodeBackground")
    white.inputs["Color"].default_value = (1, 1, 1, 1)
    tree.links.new(path.outputs["Is Camera Ray"], mix.inputs[0])
    tree.links.new(output.inputs["Surface"].links[0].from_socket, mix.inputs[1])
    tree.links.new(white.outputs[0], mix.inputs[2])
    tree.links.new(mix.outputs[0], output.inputs["Surface"])


def pose(scene: bpy.types.Scene, camera: dict[str, Any]) -> None:
    """Puts the scene's camera where the job says."""
    from mathutils import Matrix

    scene.camera.matrix_world = Matrix(camera["matrix_world"])
    lens = scene.camera.data
    lens.sensor_fit, lens.sensor_width, lens.lens = "HORIZONTAL", camera["sensor_width"], camera["lens"]
    lens.shift_x, lens.shift_y = camera["shift_x"], camera["shift_y"]
    lens.clip_start, lens.clip_end = 0.01, 100.0
    scene.render.pixel_aspect_x, scene.render.pixel_aspect_y = camera["pixel_aspect_x"], camera["pixel_aspect_y"]


def render(job_file: str) -> None:
    """Renders the job's views to OUT/000.png ... and writes OUT/result.json when all of them are there."""
    import bpy

    job = json.loads(Path(job_file).read_text())
    out = Path(job["out"])
    stages: dict[str, float] = {}
    load(job, stages)
    device = configure(job)
    scene = bpy.context.scene
    start = time.perf_counter()
    for index, camera in enumerate(job["cameras"]):
        pose(scene, camera)
        scene.cycles.seed = (job["seed"] + index) % 2**31
        scene.render.filepath = str(out / f"{index:03d}.png")
        bpy.ops.render.render(write_still=True)
    stages["render"] = time.perf_counter() - start
    result = {"stages": stages, "device": device, "peak_rss_mb": peak_rss_mb()}
    (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        render(sys.argv[1])
    else:
        print("nothing to do: benchmarks/render.py starts this one with a job", file=sys.stderr)
