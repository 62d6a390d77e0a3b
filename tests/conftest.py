"""What the tests share: 3D files made once, one Blender per set of settings, and the command line as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.config import RenderConfig, SceneConfig
from pipeline.produce import Producer
from pipeline.scene import Item, Outcome

HERE = Path(__file__).parent
SHARED_OBJECTS = HERE.parent.parent / "shared" / "objects"  # beside the checkout, where it is there at all
COMMAND = Path(sys.executable).parent / "lvsm-data"

Render = Callable[..., Outcome]


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that tests/assets.py makes."""
    folder = tmp_path_factory.mktemp("assets")
    made = subprocess.run(
        [sys.executable, "-I", HERE / "assets.py", folder], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    return folder


@pytest.fixture(scope="session")
def render(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Render]:
    """render(path, views=2, ...) -> Outcome: the real worker on one file; Blender stays up between calls."""
    producers: dict[SceneConfig, Producer] = {}
    out = tmp_path_factory.mktemp("render")

    def run(path: Path, uid: str | None = None, **settings: object) -> Outcome:
        scene = SceneConfig(**({"views": 2, "samples": 16} | settings))  # type: ignore[arg-type]
        if scene not in producers:
            cfg = RenderConfig(source="local", input=path.parent, allow_blend=True, out=out, scene=scene)
            producers[scene] = Producer(cfg.resolved())
        return producers[scene](Item(uid=uid or path.name, source="local", url=str(path)))

    yield run
    for producer in producers.values():
        producer.close()


def lvsm_data(*arguments: object, timeout: float = 300, **options: object) -> subprocess.CompletedProcess[str]:
    """The installed command, as a user runs it; never raises for its exit status."""
    command = [str(COMMAND), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)  # type: ignore[call-overload,no-any-return]
