"""The loop inside Blender: one JSON job per line on standard input, JSON replies (and raw pixels) on a descriptor of their own.

    python -I worker.py REPLY_FD

Knows no OpenCV and no shards: the parent (`pipeline/blender.py`) sends numbers that Blender takes as they are. A Python
error here ends the process; the parent sees that as a crash, with this process's last lines as the reason.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed Ray worker must not leave a Blender behind
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import bpy  # noqa: E402
import engines  # noqa: E402
import importers  # noqa: E402
import normalize  # noqa: E402
import repair  # noqa: E402


class Channel:
    """Replies to the parent: a JSON line, then `bytes` bytes of payload where the line says so."""

    def __init__(self, fd):
        self.stream = os.fdopen(fd, "wb", buffering=0)

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


def load(job, timings):
    """Empties Blender, imports the job's file, repairs and normalises it. Returns the facts that go into the shard."""
    start = time.perf_counter()
    bpy.ops.wm.read_factory_settings(use_empty=True)
    timings["reset"] = time.perf_counter() - start

    start = time.perf_counter()
    importers.load(job["path"], job["format"])
    facts = repair.repair(job["format"])
    timings["import"] = time.perf_counter() - start

    start = time.perf_counter()
    facts |= normalize.normalize(job["limits"])
    timings["normalize"] = time.perf_counter() - start
    return facts


def render(job, channel):
    """One object: facts first, then every view as soon as it is there."""
    timings = {}
    facts = load(job, timings)
    device = engines.configure(job)
    channel.send({"type": "loaded", "facts": facts, "device": device, "timings": timings})
    for index, camera in enumerate(job["cameras"]):
        start = time.perf_counter()
        passes = engines.render_view(job, camera, index)
        seconds = time.perf_counter() - start
        layout = [[name, list(pixels.shape)] for name, pixels in passes.items()]
        channel.send({"type": "view", "index": index, "passes": layout, "seconds": seconds}, list(passes.values()))
    channel.send({"type": "done", "rss_mb": rss_mb()})


def main():
    channel = Channel(int(sys.argv[1]))
    channel.send({"type": "ready", "blender": bpy.app.version_string, "devices": engines.devices()})
    for line in sys.stdin:
        try:
            render(json.loads(line), channel)
        except importers.Unusable as error:
            channel.send({"type": "skip", "reason": error.reason, "detail": str(error), "rss_mb": rss_mb()})


main()
