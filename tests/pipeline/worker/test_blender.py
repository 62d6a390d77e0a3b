"""The wall between us and Blender: crashes, hangs, recycling, EEVEE; always with the real process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.config import render, shared
from pipeline.config.render import RenderConfig, SceneConfig
from pipeline.core import cameras
from pipeline.core.errors import Retry, Skip
from pipeline.core.records import Item
from pipeline.worker.blender import SCRIPT, Blender, Frame, Limits
from pipeline.worker.render import Renderer, build_job
from pipeline.worker.worker import make_worker
from tests.conftest import lvsm_data_here

SMALL = SceneConfig(res=(32,), views=3, samples=4).resolved()
# longer than the moment between the first answer and a signal, on any machine
MANY = SceneConfig(res=(32,), views=1000, samples=4).resolved()


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
    for module in (render, shared):
        monkeypatch.setattr(module, "LOOK", shared.LOOK + 1)
    assert {name for name in before if before[name] != cfg.identity()[name]} == {"look", "config_hash"}


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
    why = refusal()
    assert hello["network"] == bool(why)
    if why:
        pytest.skip(f"this system gives nobody a network namespace: {why}")
    interfaces = Path(f"/proc/{blender.process.pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    assert re.search(r"Max core file size +0 +0 ", Path(f"/proc/{blender.process.pid}/limits").read_text())


def refusal(user: int | None = None) -> str:
    """What the system says to whoever wants a network namespace, as oneself or in a user namespace; "" where it gives one."""
    words = ""
    for flags in (["--net"], ["--user", "--net"]):
        asked = subprocess.run(["unshare", *flags, "true"], user=user, cwd="/", capture_output=True, text=True)
        if asked.returncode == 0:
            return ""
        words = asked.stderr.strip()
    return words or "unshare failed"


CONFINE = """
import encodings.idna, errno, json, os, socket, sys
scripts, port, folder, somebody_else = sys.argv[1:]
sys.path.insert(0, scripts)
import confine
if somebody_else:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
left = confine.confine([f"{folder}/readable"], [f"{folder}/writable"])

def works(action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EPERM, errno.EXDEV)
    return True

def write(path):
    with open(path, "w") as stream:
        stream.write("x")

connected = True
try:
    socket.create_connection(("127.0.0.1", int(port)), timeout=5).close()
except OSError:
    connected = False
print(json.dumps(left | {
    "connected": connected,
    "who": [os.getuid(), os.getgid()],
    "read": [name for name in ("readable", "writable", "closed") if works(os.listdir, f"{folder}/{name}")],
    "write": [name for name in ("readable", "writable", "closed") if works(write, f"{folder}/{name}/new")],
    "link": works(os.link, f"{folder}/readable/file", f"{folder}/writable/link"),
    "through": works(os.listdir, f"{folder}/readable/way_out"),
    "execute": works(os.execv, "/bin/true", ["true"]),
    "environment": works(open, f"/proc/{os.getppid()}/environ"),
    "itself": works(open, "/proc/self/statm"),
}))
"""


@pytest.mark.parametrize("somebody_else", [False, True])
def test_nothing_is_reached_from_inside(somebody_else: bool) -> None:
    """No server on this machine, no file but those in the folders that were named; who is not root stays who he is."""
    if somebody_else and os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as server:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("readable", "writable", "closed"):
            (folder / part).mkdir()
            (folder / part).chmod(0o777)
            (folder / part / "file").write_text("content")
            (folder / part / "file").chmod(0o666)
        (folder / "readable" / "way_out").symlink_to(folder / "closed")
        arguments = [str(SCRIPT.parent), str(server.getsockname()[1]), name, "nobody" if somebody_else else ""]
        run = subprocess.run([sys.executable, "-I", "-c", CONFINE, *arguments], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        found = json.loads(run.stdout)
        assert found["who"] == ([65534, 65534] if somebody_else else [os.getuid(), os.getgid()])
        why = refusal(65534 if somebody_else else None)
        assert found["network"] == bool(why)
        assert found["connected"] == found["tcp"]
        if found["files"]:
            pytest.skip("this kernel has no Landlock")
        assert (found["read"], found["write"]) == (["readable", "writable"], ["writable"])
        allowed = {what for what in ("link", "through", "execute", "environment", "itself") if found[what]}
        assert allowed == {"itself"}
    if why:
        pytest.skip(f"files are closed, and the network is not: this system gives no namespace for it ({why})")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_is_a_retry_with_the_last_words(assets: Path, blender: Blender, number: signal.Signals) -> None:
    answers = blender.render(job_for(assets / "off_origin.glb", MANY))
    next(answers)
    assert blender.process is not None
    os.kill(blender.process.pid, number)
    with pytest.raises(Retry) as failure:
        list(answers)
    assert failure.value.reason == "blender_crash"
    assert f"signal {number.name}" in failure.value.detail
    assert len([a for a in blender.render(job_for(assets / "off_origin.glb")) if isinstance(a, Frame)]) == 3


def test_a_hang_is_killed_with_its_whole_group(assets: Path, blender: Blender, monkeypatch: pytest.MonkeyPatch) -> None:
    list(blender.render(job_for(assets / "off_origin.glb")))  # the first takes longer
    monkeypatch.setattr(blender, "limits", Limits(timeout_s=5))
    assert blender.process is not None
    pid = blender.process.pid
    answers = blender.render(job_for(assets / "off_origin.glb", MANY))
    next(answers)
    os.kill(pid, signal.SIGSTOP)  # as deaf as a Blender stuck in a driver
    with pytest.raises(Retry) as failure:
        list(answers)
    assert failure.value.reason == "timeout"
    assert not psutil.pid_exists(pid)


def test_process_is_replaced_after_its_share_of_objects(assets: Path, tmp_path: Path) -> None:
    wall = Blender(tmp_path, Limits(recycle_objects=2), readable=[assets])
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
    worker = make_worker(cfg)
    assert isinstance(worker.maker, Renderer)
    renderer = worker.maker
    item = Item("off_origin.glb", "local", url=str(assets / "off_origin.glb"))
    calm = threading.Event()

    def murder() -> None:
        victims: set[int] = set()
        while not calm.wait(0.01):
            process = renderer.blender.process
            if process is not None and process.pid not in victims:
                victims.add(process.pid)
                os.kill(process.pid, signal.SIGSEGV)

    thread = threading.Thread(target=murder)
    thread.start()
    killed = worker(item)
    calm.set()
    thread.join()
    assert (killed.scene, killed.reason, killed.tries) == (None, "blender_crash", 2)
    assert "SIGSEGV" in killed.detail
    assert worker(item).scene is not None
    worker.close()
    assert not worker.scratch.exists()


def test_our_bugs_keep_their_traceback_and_cost_one_object(assets: Path, tmp_path: Path) -> None:
    cfg = RenderConfig(source="local", input=assets, out=tmp_path, scene=SMALL).resolved()
    worker = make_worker(cfg)
    outcome = worker(Item("odd", "local", url=None))  # type: ignore[arg-type]
    assert outcome.reason == "bug"
    assert "TypeError" in outcome.detail
    worker.close()


def test_an_idle_process_costs_no_cpu(assets: Path, blender: Blender) -> None:
    """With one render thread, Blender's scheduler spins for ever on a second one."""
    list(blender.render(job_for(assets / "off_origin.glb")))
    assert blender.process is not None
    process = psutil.Process(blender.process.pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(1)
    assert sum(process.cpu_times()[:2]) - before < 0.2


SECRETS = "HF_TOKEN GITHUB_TOKEN AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY GOOGLE_APPLICATION_CREDENTIALS".split()


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path]:
    """The environment of a Blender that somebody with credentials started, and the folder that it was started in.

    That folder holds its scratch folder, and the caches of whoever started it.
    """
    folder = tmp_path_factory.mktemp("surroundings")
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.closing(Blender(folder / "scratch", Limits(timeout_s=60))) as wall,
    ):
        for name in SECRETS:
            patch.setenv(name, "secret")
        patch.setenv("PYTHONPATH", "/secret")
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        wall.start()
        assert wall.process is not None
        return psutil.Process(wall.process.pid).environ(), folder


def test_no_credentials_reach_blender(surroundings: tuple[dict[str, str], Path]) -> None:
    environment, folder = surroundings
    assert not {*SECRETS, "PYTHONPATH"} & set(environment)
    assert "secret" not in " ".join(environment.values())
    assert environment["HOME"] == str(folder / "scratch")


def test_the_cache_is_a_folder_of_our_own(surroundings: tuple[dict[str, str], Path]) -> None:
    """The whole of ~/.cache holds tokens (huggingface/token)."""
    environment, folder = surroundings
    assert environment["XDG_CACHE_HOME"] == str(folder / "cache" / "lvsm-data")
    assert (folder / "cache" / "lvsm-data").is_dir()


def test_limits_of_the_process(blender: Blender) -> None:
    blender.start()
    assert blender.process is not None
    process = psutil.Process(blender.process.pid)
    assert process.rlimit(psutil.RLIMIT_FSIZE) == (2**30, 2**30)
    assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "1000"
    assert re.search(r"NoNewPrivs:\s+1", Path(f"/proc/{process.pid}/status").read_text()) or blender.hello["files"]
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert int(re.search(r"CapEff:\s+(\w+)", status)[1], 16) in (0, 2)  # type: ignore[index]  # CAP_DAC_OVERRIDE
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 2**30  # ours are as they were


def test_another_folder_takes_another_process_once(assets: Path, tmp_path: Path) -> None:
    """A folder below a readable one needs none; one that was deleted and made again is another folder."""

    def put(name: str) -> Path:
        (tmp_path / name).mkdir(parents=True)
        return Path(shutil.copy(assets / "off_origin.glb", tmp_path / name))

    with contextlib.closing(Blender(tmp_path / "scratch", Limits(), readable=[tmp_path / "one"])) as wall:
        pids = []
        for path in (put("one/a"), put("one/b"), put("two"), put("one/c"), tmp_path / "two" / "off_origin.glb"):
            assert len(list(wall.render(job_for(path)))) == 1 + SMALL.views
            assert wall.process is not None
            pids.append(wall.process.pid)
        assert pids[0] == pids[1] != pids[2] == pids[3] == pids[4]
        shutil.rmtree(tmp_path / "two")
        assert len(list(wall.render(job_for(put("two"))))) == 1 + SMALL.views
        assert wall.process.pid != pids[-1]
        job = job_for(put("three/deep")) | {"root": str(tmp_path / "three")}
        assert len(list(wall.render(job))) == 1 + SMALL.views
        assert wall.readable == [tmp_path / "one", tmp_path / "two", tmp_path / "three"]


def test_an_object_that_takes_the_memory_is_out(assets: Path, tmp_path: Path) -> None:
    with contextlib.closing(Blender(tmp_path, Limits(memory_gb=0.05), readable=[assets])) as wall:
        with pytest.raises(Skip) as failure:
            list(wall.render(job_for(assets / "off_origin.glb")))
        assert failure.value.reason == "out_of_memory"
        assert "the limit is 0.1 GB" in failure.value.detail
        assert wall.process is None
    assert 0 < Limits().memory_gb <= 16


def test_a_start_that_fails_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr("pipeline.worker.blender.SCRIPT", tmp_path / "worker.py")
    monkeypatch.setattr("pipeline.worker.blender.START_TIMEOUT_S", 0.5)
    wall = Blender(tmp_path / "scratch", Limits())
    with pytest.raises(Retry):
        wall.start()
    assert wall.process is None


def test_depth_and_normals_agree_with_the_pose(assets: Path, blender: Blender) -> None:
    """The box fills the unit cube: every depth must put its pixel on the cube, and normals are its faces'."""
    cfg = SceneConfig(res=(32,), views=2, samples=1, depth=True, normals=True, normalize="box").resolved()
    poses = cameras.sample("shell", np.random.default_rng(5), 2, normalize="box")
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


def test_a_gpu_that_is_not_there_ends_the_run(tmp_path: Path, blender: Blender, blender_lent: None) -> None:
    """Never in silence on the CPU instead."""
    kinds = [kind for kind in ("cuda", "hip", "oneapi") if kind.upper() not in blender.start()["devices"]]
    if not kinds:
        pytest.skip("this machine has GPUs of all kinds")
    small = ("--n", 2, "--res", 16, "--views", 1, "--samples", 1, "--executor", "inline")
    done = lvsm_data_here("render", *small, "--device", kinds[0], "--out", tmp_path / "run")
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"error: --device {kinds[0]}: Blender finds no such device here; it finds" in done.stderr
    assert "hint: --device auto" in done.stderr and "Traceback" not in done.stderr
