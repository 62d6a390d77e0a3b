"""The loop inside Blender: one JSON job per line on standard input, JSON replies (and raw pixels) on a descriptor of their own.

    python -I worker.py REPLY_FD [READABLE_FOLDER ...]

The process may write to its working folder and to XDG_CACHE_HOME (compiled GPU kernels), and read the folders named.

The parent (`pipeline/worker/blender.py`) sends cameras and settings in Blender's conventions. A Python error here ends the
process; the parent treats that as a crash, with this process's last lines as the reason.
"""

import contextlib
import faulthandler
import fcntl
import json
import os
import resource
import sys
import time

ALL_SAID = "lvsm-data: all is said"  # follows what was printed about an unusable file
PIPE_BYTES = 1 << 20  # Linux's limit for unprivileged users
faulthandler.enable()  # a crash prints its Python line; the parent keeps the last lines
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import confine  # noqa: E402

LEFT_OPEN = confine.confine(sys.argv[2:], [os.getcwd(), os.environ.get("XDG_CACHE_HOME", "")])

import bpy  # noqa: E402
import engines  # noqa: E402
import importers  # noqa: E402
import ktx2  # noqa: E402
import libraries  # noqa: E402
import meshopt  # noqa: E402
import normalize  # noqa: E402
import picture_alpha  # noqa: E402
import ply_pictures  # noqa: E402
import relink  # noqa: E402
import repair  # noqa: E402
import timeline  # noqa: E402
import traits  # noqa: E402
import usd_colours  # noqa: E402


class Channel:
    """Replies to the parent: a JSON line, then as many bytes of payload as its "bytes" says."""

    def __init__(self, fd):
        self.stream = os.fdopen(fd, "wb", buffering=0)
        with contextlib.suppress(OSError):  # room for a large view, so that rendering goes on while the parent encodes
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def send(self, message, payload=()):
        message["bytes"] = sum(part.nbytes for part in payload)
        self.stream.write(json.dumps(message).encode() + b"\n")
        for part in payload:
            view = memoryview(part).cast("B")
            while view:
                view = view[self.stream.write(view) :]


def rss_mb():
    """Resident memory of this process in MB."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 1e6


def load(job, timings, channel):
    """Empty Blender, import the job's file, repair and normalise it.

    Returns facts for the shard, corners (K, 3) or None, and the instants of the job as (seconds, frames of the scene), both
    empty where nothing moves.
    """
    start = time.perf_counter()
    importers.clear()
    timings["reset"] = time.perf_counter() - start

    start = time.perf_counter()

    def tell(number):
        channel.send({"type": "reading", "reader": number})

    read = importers.load(job["path"], job["format"], job["crashed"], tell, moves=bool(job["time"]))
    ply_pictures.show(job["path"], job.get("textures", []))
    relinked = libraries.find(job.get("pictures", {})) + relink.relink(job.get("pictures", {}))
    if relinked and job["format"] == "fbx" and "read_by" not in read:
        picture_alpha.use_of_fbx()
    facts = joined(read, repair.repair(job["format"], job["path"]), {"mended": ["links"]} if relinked else {})
    if lost := libraries.missing():
        facts["missing_libraries"] = lost
    facts |= traits.traits()
    traits.check(job.get("only", ()), facts)
    playing, seconds, frames = instants(job) if job["time"] and facts["animated"] else ({}, [], [])
    timings["import"] = time.perf_counter() - start

    start = time.perf_counter()
    try:
        measured, corners = normalize.normalize(job["normalize"], job["limits"], frames)
    except importers.Unusable as error:
        if error.reason == "empty" and lost:
            raise importers.Unusable(
                "missing_file", f"{lost[0][:200]!r}, which it links to, is not there; fetch it too"
            ) from None
        raise
    timings["normalize"] = time.perf_counter() - start
    return facts | measured | playing, corners, (seconds, frames)


def instants(job):
    """Facts of the animation that plays, and the job's instants as seconds and frames; nothing of one that takes no time."""
    name = timeline.choose(job["time"]["animation"], job["format"])
    between = timeline.span()
    if not between or between[0] == between[1]:
        return {}, [], []
    seconds, frames = timeline.instants(job["time"], between)
    length = timeline.seconds_of(between)
    return {"animation": {"name": name, "seconds": round(length, 6), "end": job["time"]["end"]}}, seconds, frames


def joined(*parts):
    """Facts of all parts; numbers of missing textures add up, and words of what was mended, left out if there are none."""
    facts = {name: value for part in parts for name, value in part.items()}
    facts["missing_textures"] = sum(part.get("missing_textures", 0) for part in parts)
    words = {word for part in parts for word in part.get("mended", ())}
    return facts | ({"mended": sorted(words)} if words else {})


def render(job, channel):
    """Render one object: send its facts, then every view as soon as it is done."""
    timings = {}
    facts, corners, (times, frames) = load(job, timings, channel)
    device = engines.configure(job)
    channel.send({"type": "loaded", "facts": facts, "device": device, "timings": timings, "times": times})

    def emit(index, rectangle, passes, seconds):
        layout = [[name, list(pixels.shape)] for name, pixels in passes.items()]
        message = {"type": "view", "index": index, "rectangle": rectangle, "passes": layout, "seconds": seconds}
        channel.send(message, list(passes.values()))

    shown, corners_in = [(None, [[view, view] for view in range(len(job["cameras"]))])], lambda _: corners
    if frames:
        shown, corners_in = zip(frames, job["time"]["shots"], strict=True), normalize.corners_in
    engines.render_views(job, shown, corners_in, emit)
    channel.send({"type": "done", "rss_mb": rss_mb()})


def main():
    """Greet the parent, then serve one job per line until standard input ends."""
    channel = Channel(int(sys.argv[1]))
    ktx2.teach_importer()
    meshopt.teach_importer()
    usd_colours.teach_importer()
    facts = {"blender": bpy.app.version_string, "devices": engines.devices()} | LEFT_OPEN
    channel.send({"type": "ready"} | facts)
    for line in sys.stdin:
        try:
            render(json.loads(line), channel)
        except importers.Unusable as error:
            print(ALL_SAID, file=sys.stderr, flush=True)
            channel.send({"type": "skip", "reason": error.reason, "detail": str(error), "rss_mb": rss_mb()})


main()
