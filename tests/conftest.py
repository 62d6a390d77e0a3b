"""What the tests share: 3D files made once, one Blender, and the command line as a user runs it."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from pipeline import cli
from pipeline.config.render import RenderConfig, SceneConfig
from pipeline.core.records import Item, Outcome
from pipeline.worker.blender import Blender, Limits
from pipeline.worker.render import Renderer
from pipeline.worker.worker import Worker, make_worker
from tests.warm import COMMAND as COMMAND
from tests.warm import Warm

if TYPE_CHECKING:
    from tests.buckets import Buckets

HERE = Path(__file__).parent
SHARED_OBJECTS = HERE.parent.parent / "shared" / "objects"  # beside the checkout, where it is there at all
WARM = Warm()
# `ray start` leaves a token in ~/.ray, after which Ray asks for it in every process, also where a test has set another HOME
os.environ["RAY_AUTH_MODE"] = "disabled"

Render = Callable[..., Outcome]
RUNS: list[subprocess.Popen[str]] = []  # that the test at hand has started

MOST_OF_AN_ID = 60
LONG = (
    "test_run.py",
    "test_cycle.py",
    "test_docs.py",
    "test_cluster.py",
    "test_engine.py",
    "test_object_store.py",
    "test_scale.py",
)

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # others may be busy
settings.load_profile("patient")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Test ids that are the same in every process: a file's bytes may hold the time, and nobody reads them or long texts."""
    if isinstance(val, bytes) and not (len(val) <= MOST_OF_AN_ID and val.isascii() and val.decode().isprintable()):
        return f"{len(val)} bytes"
    if isinstance(val, str) and (len(val) > MOST_OF_AN_ID or "\n" in val):
        return f"{' '.join(val[:MOST_OF_AN_ID].split())}..."
    return None


gc.disable()  # while what stays to the end is imported and collected, which is not looked through again afterwards


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the modules that take minutes first: a worker that began one of them last would end alone."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_sessionfinish() -> None:
    WARM.close()


@pytest.fixture(autouse=True)
def no_run_outlives_its_test() -> Iterator[None]:
    """What a test that fails leaves behind would slow down those after it, and fail one of them by a warning."""
    yield
    while RUNS:
        run = RUNS.pop()
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        for pipe in (run.stdout, run.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that tests/assets.py makes: once, whichever of pytest's processes comes first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "assets"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            part = folder.with_suffix(".part")
            part.mkdir(exist_ok=True)
            command = [sys.executable, "-I", HERE / "assets.py", part]
            made = subprocess.run(command, cwd=part, capture_output=True, text=True, timeout=300)
            assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
            part.rename(folder)
    return folder


@pytest.fixture(scope="session")
def blender(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Blender]:
    """One Blender for all who need no other: it stays up between tests, and starts anew after a crash.

    It may read whatever tests have made, so that none of their folders takes a process of its own.
    """
    limits, made = Limits(timeout_s=600), tmp_path_factory.getbasetemp()
    with contextlib.closing(Blender(tmp_path_factory.mktemp("blender"), limits, readable=[made, assets])) as shared:
        yield shared


@pytest.fixture(scope="session")
def render(blender: Blender, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Render]:
    """render(path, views=2, ...) -> Outcome: the real worker on one file, in the Blender that all share.

    root: folder that the file may read, if not its own.
    """
    workers: dict[SceneConfig, Worker] = {}
    out = tmp_path_factory.mktemp("render")

    def run(path: Path, uid: str | None = None, root: Path | None = None, **settings: object) -> Outcome:
        scene = SceneConfig(**({"views": 2, "samples": 16} | settings))  # type: ignore[arg-type]
        if scene not in workers:
            cfg = RenderConfig(source="local", input=path.parent, allow_blend=True, out=out, scene=scene)
            workers[scene] = worker = make_worker(cfg.resolved())
            assert isinstance(worker.maker, Renderer)
            worker.maker.blender, worker.maker.scratch = blender, blender.scratch  # a folder that this Blender may read
        place = {"root": str(root)} if root else {}
        return workers[scene](Item(uid=uid or path.name, source="local", url=str(path), extra=place))

    yield run
    for worker in workers.values():
        worker.close()


class Lent:
    """The Blender that all share, in the place of one that a worker would start and end."""

    def __init__(self, shared: Blender) -> None:
        self._shared = shared

    def __getattr__(self, name: str) -> object:
        return getattr(self._shared, name)

    def close(self) -> None:
        """Leave it running."""


@pytest.fixture
def blender_lent(blender: Blender, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process render in the Blender that all share."""
    monkeypatch.setattr("pipeline.worker.render.Blender", lambda *_, **__: Lent(blender))


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Buckets]:
    """An object store on this machine, of which the environment tells; its server ends with the test."""
    from tests import buckets  # for few tests only: moto takes long to import

    with buckets.serving() as served:
        for name, value in served.environment.items():
            monkeypatch.setenv(name, value)
        yield served


def lvsm_data(
    *arguments: object,
    timeout: float = 900,
    impatient: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; never raises for its exit status.

    impatient: it waits next to nothing between two tries.
    """
    return WARM.run(*map(str, arguments), timeout=timeout, impatient=impatient, env=env, cwd=cwd)


def lvsm_data_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The same in this process, where words and the exit status are the point: nothing has to start, a traceback is raised."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["lvsm-data", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    return subprocess.CompletedProcess(arguments, int(end.value.code or 0), out.getvalue(), err.getvalue())


def put_anew(path: Path, data: bytes) -> None:
    """For files that change hundreds of times: ext4 flushes one that is emptied and written again, which takes 3 ms."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
