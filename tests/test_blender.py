"""The wall between us and Blender: crashes, hangs, recycling, EEVEE; always with the real process."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline import cameras, config
from pipeline.blender import SCRIPT, Blender, Frame, Limits
from pipeline.config import RenderConfig, SceneConfig
from pipeline.produce import Producer, build_job
from pipeline.scene import Item, Retry, Skip

SMALL = SceneConfig(res=(32,), views=3, samples=4).resolved()


def job_for(path: Path, cfg: SceneConfig = SMALL) -> dict[str, object]:
    poses = cameras.sample("shell", np.random.default_rng(0), cfg.views)
    return build_job(cfg, path.name, poses, 1) | {"path": str(path), "format": path.suffix[1:]}


@pytest.mark.parametrize(
    ("settings", "samples", "denoise"),
    [
        ({"res": (64,)}, 32, "off"),
        ({"res": (128,)}, 32, "off"),
        ({"res": (64, 512)}, 16, "on"),
        ({"res": (512,), "denoise": "off"}, 32, "off"),
        ({"res": (64,), "denoise": "on"}, 16, "on"),
        ({"res": (512,), "samples": 7}, 7, "on"),
    ],
)
def test_samples_and_denoiser_follow_the_resolution(settings: dict[str, Any], samples: int, denoise: str) -> None:
    resolved = SceneConfig(**settings).resolved()
    assert (resolved.samples, resolved.denoise) == (samples, denoise)
    assert resolved.resolved() == resolved


def test_another_look_is_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = RenderConfig().resolved()
    before = cfg.identity()
    monkeypatch.setattr(config, "LOOK", config.LOOK + 1)
    assert {name for name in before if before[name] != cfg.identity()[name]} == {"look", "config_hash"}


@pytest.fixture
def blender(tmp_path: Path):  # type: ignore[no-untyped-def]
    wall = Blender(tmp_path / "scratch", Limits(timeout_s=60))
    yield wall
    wall.close()


def test_reset_leaves_nothing_of_the_object_before(assets: Path, blender: Blender) -> None:
    def pixels(path: Path) -> np.ndarray:
        frames = [answer for answer in blender.render(job_for(path)) if isinstance(answer, Frame)]
        return np.stack([frame.full("rgba") for frame in frames])

    fresh = pixels(assets / "off_origin.glb")
    for between in ("hidden.blend", "embedded.fbx", "rigged.glb", "red.ply"):
        pixels(assets / between)
    np.testing.assert_array_equal(pixels(assets / "off_origin.glb"), fresh)


def test_blender_has_no_network_and_leaves_no_core(blender: Blender) -> None:
    hello = blender.start()
    assert blender.process is not None
    mine, its = (os.readlink(f"/proc/{who}/ns/net") for who in ("self", blender.process.pid))
    assert hello["network"] == (mine == its)
    if hello["network"]:
        pytest.skip("this system allows no network namespace")
    interfaces = Path(f"/proc/{blender.process.pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    assert re.search(r"Max core file size +0 +0 ", Path(f"/proc/{blender.process.pid}/limits").read_text())


CONFINE = """
import encodings.idna, os, socket, sys
sys.path.insert(0, sys.argv[1])
import confine
if len(sys.argv) > 3:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
gone = confine.confine()
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=5).close()
    reached = True
except OSError:
    reached = False
print(gone, reached, os.getuid(), os.getgid())
"""


@pytest.mark.parametrize("somebody_else", [False, True])
def test_nothing_is_reached_from_inside(somebody_else: bool) -> None:
    """Not even a server on this machine; and who is not root stays who he is."""
    if somebody_else and os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    with socket.create_server(("127.0.0.1", 0)) as server:
        arguments = [str(SCRIPT.parent), str(server.getsockname()[1]), *(["nobody"] if somebody_else else [])]
        run = subprocess.run([sys.executable, "-I", "-c", CONFINE, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    gone, reached, *identity = run.stdout.split()
    assert identity == (["65534", "65534"] if somebody_else else [str(os.getuid()), str(os.getgid())])
    assert (gone == "True") != (reached == "True")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_is_a_retry_with_the_last_words(assets: Path, blender: Blender, number: signal.Signals) -> None:
    answers = blender.render(job_for(assets / "off_origin.glb"))
    next(answers)
    assert blender.process is not None
    os.kill(blender.process.pid, number)
    with pytest.raises(Retry) as failure:
        list(answers)
    assert failure.value.reason == "blender_crash"
    assert f"signal {number.name}" in failure.value.detail
    assert len([a for a in blender.render(job_for(assets / "off_origin.glb")) if isinstance(a, Frame)]) == 3


def test_a_hang_is_killed_with_its_whole_group(assets: Path, tmp_path: Path) -> None:
    wall = Blender(tmp_path, Limits(timeout_s=4))
    wall.start()
    assert wall.process is not None
    pid = wall.process.pid
    answers = wall.render(job_for(assets / "off_origin.glb"))
    next(answers)
    os.kill(pid, signal.SIGSTOP)  # as deaf as a Blender stuck in a driver
    start = time.monotonic()
    with pytest.raises(Retry) as failure:
        list(answers)
    assert failure.value.reason == "timeout"
    assert time.monotonic() - start < 20
    assert not psutil.pid_exists(pid)


def test_process_is_replaced_after_its_share_of_objects(assets: Path, tmp_path: Path) -> None:
    wall = Blender(tmp_path, Limits(recycle_objects=2))
    pids = []
    for _ in range(4):
        wall.start()
        assert wall.process is not None
        pids.append(wall.process.pid)
        list(wall.render(job_for(assets / "off_origin.glb")))
    wall.close()
    assert pids[0] == pids[1]
    assert pids[1] != pids[2]
    assert pids[2] == pids[3]


def test_recycling_by_memory_and_after_a_skip(assets: Path, tmp_path: Path) -> None:
    wall = Blender(tmp_path, Limits(recycle_rss_mb=1))
    with pytest.raises(Skip):
        list(wall.render(job_for(assets / "empty_scene.obj")))
    assert wall.process is None


def test_one_crash_costs_a_retry_two_cost_the_object(assets: Path, tmp_path: Path) -> None:
    """A thread kills Blender again and again: the first object is tried twice and recorded; the next one is fine."""
    cfg = RenderConfig(source="local", input=assets, out=tmp_path, scene=SMALL).resolved()
    producer = Producer(cfg)
    item = Item("off_origin.glb", "local", url=str(assets / "off_origin.glb"))
    calm = threading.Event()

    def murder() -> None:
        victims: set[int] = set()
        while not calm.wait(0.01):
            process = producer.blender.process
            if process is not None and process.pid not in victims:
                victims.add(process.pid)
                os.kill(process.pid, signal.SIGSEGV)

    thread = threading.Thread(target=murder)
    thread.start()
    killed = producer(item)
    calm.set()
    thread.join()
    assert (killed.scene, killed.reason, killed.tries) == (None, "blender_crash", 2)
    assert "SIGSEGV" in killed.detail
    assert producer(item).scene is not None
    producer.close()
    assert not producer.scratch.exists()


def test_our_bugs_keep_their_traceback_and_cost_one_object(assets: Path, tmp_path: Path) -> None:
    cfg = RenderConfig(source="local", input=assets, out=tmp_path, scene=SMALL).resolved()
    producer = Producer(cfg)
    outcome = producer(Item("odd", "local", url=None))  # type: ignore[arg-type]
    assert outcome.reason == "bug"
    assert "TypeError" in outcome.detail
    producer.close()


def test_an_idle_process_costs_no_cpu(assets: Path, blender: Blender) -> None:
    """With one render thread, Blender's scheduler spins for ever on a second one."""
    list(blender.render(job_for(assets / "off_origin.glb")))
    assert blender.process is not None
    process = psutil.Process(blender.process.pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(1.5)
    assert sum(process.cpu_times()[:2]) - before < 0.3


def test_no_credentials_reach_blender(assets: Path, blender: Blender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    blender.start()
    assert blender.process is not None
    environment = psutil.Process(blender.process.pid).environ()
    assert "HF_TOKEN" not in environment
    assert environment["HOME"] == str(blender.scratch)


def test_depth_and_normals_agree_with_the_pose(assets: Path, blender: Blender) -> None:
    """The box fills the unit cube: every depth must put its pixel on the cube, and normals are its faces'."""
    cfg = SceneConfig(res=(32,), views=2, samples=1, depth=True, normals=True).resolved()
    poses = cameras.sample("shell", np.random.default_rng(5), 2)
    job = build_job(cfg, "x", poses, 1) | {"path": str(assets / "off_origin.glb"), "format": "glb"}
    frames = [answer for answer in blender.render(job) if isinstance(answer, Frame)]
    k = cameras.intrinsics(cfg.fov_x_deg or 0, (32, 32))
    for pose, frame in zip(poses, frames, strict=True):
        depth, normals = frame.full("depth")[..., 0], frame.full("normals")
        hit = (depth < 100) & (frame.full("rgba")[..., 3] == 1)
        assert hit.sum() > 50
        rows, columns = np.nonzero(hit)
        rays = np.stack([(columns + 0.5 - k[2]) / k[0], (rows + 0.5 - k[3]) / k[1], np.ones(len(rows))], -1)
        points = (rays * depth[hit][:, None]) @ pose[:3, :3].T + pose[:3, 3]
        assert np.abs(np.abs(points).max(-1) - 0.5).max() < 0.06  # within a pixel's slant of a face
        np.testing.assert_allclose(np.abs(normals[hit]).max(-1), 1, atol=1e-3)
        assert ((normals[hit] * (rays @ pose[:3, :3].T)).sum(-1) < 0).mean() > 0.99  # faces look at the camera


def test_eevee_shows_the_same_object(assets: Path, blender: Blender) -> None:
    """Cycles and EEVEE agree on where the box is. A machine without any OpenGL cannot run EEVEE."""
    frames = {}
    for engine in ("cycles", "eevee"):
        cfg = SceneConfig(res=(64,), views=1, samples=4, engine=engine).resolved()  # type: ignore[arg-type]
        try:
            answers = list(blender.render(job_for(assets / "off_origin.glb", cfg)))
        except Retry as failure:
            if engine == "eevee" and "GPU" in failure.detail:
                pytest.skip("EEVEE needs OpenGL through EGL, which this machine does not have")
            raise
        frames[engine] = [answer for answer in answers if isinstance(answer, Frame)]
    for one, other in zip(frames["cycles"], frames["eevee"], strict=True):
        alpha = np.abs(one.full("rgba")[..., 3] - other.full("rgba")[..., 3])
        assert alpha.mean() < 0.01
