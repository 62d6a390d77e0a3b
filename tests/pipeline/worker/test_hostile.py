"""Everything that was downloaded is hostile until rendered: each file of tests/hostile.py through the real worker.

Watched all the while: whether anybody opens a file outside of the assets' folder, whether anything there changes, and
whether a server on this machine is called.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.render import RenderConfig, SceneConfig
from pipeline.core import cameras, images
from pipeline.core.errors import Skip
from pipeline.core.records import Item, Outcome
from pipeline.formats.references import WINDOWS
from pipeline.worker.blender import Blender, Frame, Limits
from pipeline.worker.render import Renderer, build_job
from pipeline.worker.worker import Worker, make_worker
from tests import hostile, parts

SMALL = SceneConfig(res=(32,), views=2, samples=4, device="cpu")
MEMORY_GB = 0.7  # of a Blender of these tests: an ordinary one takes 0.3
libc = ctypes.CDLL(None, use_errno=True)


class Watched:
    """A folder that nobody may touch: who opens, reads, writes or makes a file in it is noticed."""

    EVENTS = 0x20 | 0x1 | 0x2 | 0x4 | 0x100 | 0x200 | 0xC0  # open, access, modify, attrib, create, delete, move

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.before = self._tree()
        self.fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self.fd >= 0
        assert libc.inotify_add_watch(self.fd, os.fsencode(folder), self.EVENTS) >= 0

    def events(self) -> bytes:
        """The kernel's records of events since the last call."""
        try:
            return os.read(self.fd, 65536)
        except BlockingIOError:
            return b""

    def changed(self) -> bool:
        changed = self.before != self._tree()
        self.events()  # our own look
        return changed

    def _tree(self) -> list[tuple[str, int, int, int]]:
        stats = ((path, path.lstat()) for path in sorted(self.folder.rglob("*")))
        return [(str(path), status.st_ino, status.st_size, status.st_mtime_ns) for path, status in stats]


class Server:
    """Counts who calls."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.calls = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                self.socket.accept()[0].close()
                self.calls += 1


@dataclasses.dataclass
class World:
    """Assets, what they are after, and who watches."""

    assets: Path
    outside: Path
    cases: dict[str, hostile.Case]
    watched: Watched
    server: Server
    produce: Worker

    def run(self, path: str) -> Outcome:
        """The outcome of the real worker, after which nothing outside was opened, changed or called."""
        found = self.assets / path
        place = {"path": str(found), "root": str(found.parent)}
        outcome = self.produce(Item(uid=path, source="local", url=str(found), extra=place))
        assert self.watched.events() == b"", f"{path}: somebody opened a file outside"
        assert not self.watched.changed()
        assert self.server.calls == 0
        return outcome


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    base = tmp_path_factory.mktemp("hostile")
    server = Server()
    cases = {case.name: case for case in hostile.write(base / "assets", base / "outside", server.url)}
    cfg = RenderConfig(source="local", input=base / "assets", allow_blend=True, out=base / "out", scene=SMALL)
    worker = make_worker(cfg.resolved())
    assert isinstance(worker.maker, Renderer)
    blender = worker.maker.blender
    blender.limits = dataclasses.replace(blender.limits, memory_gb=MEMORY_GB, timeout_s=30)
    watched = Watched(base / "outside")
    yield World(base / "assets", base / "outside", cases, watched, server, worker)
    worker.close()
    server.socket.close()


NAMES = [*(case.name for case, _ in hostile.CASES), *hostile.BLENDS]


def colours(outcome: Outcome) -> np.ndarray:
    """(N, 3) bytes: what is not white in any view."""
    assert outcome.scene is not None, f"{outcome.reason}: {outcome.detail}"
    pictures = np.stack([images.decode(jpeg) for jpeg in outcome.scene.by_width[32].jpegs])
    shown = pictures[pictures.min(-1) < 245]
    assert len(shown) > 30
    return shown.astype(int)


def magenta(pixels: np.ndarray) -> bool:
    return bool(((pixels[:, 0] > pixels[:, 1] + 60) & (pixels[:, 2] > pixels[:, 1] + 60)).any())


def test_there_are_many_and_each_is_one_of_a_kind() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 30


@pytest.mark.parametrize("name", NAMES)
def test_hostile_files_end_with_their_reason(world: World, name: str) -> None:
    case = world.cases[name]
    outcome = world.run(case.path)
    assert outcome.reason == case.reason, outcome.detail
    if case.reason == hostile.RENDERED:  # nothing of what is outside is shown, and what is missing is counted
        assert not magenta(colours(outcome))
        assert outcome.scene is not None
        meta = outcome.scene.meta
        said = {key: meta[key] for key in ("missing_textures", "missing_materials", "mended") if meta.get(key)}
        assert said == case.facts
    else:
        assert outcome.scene is None
        assert outcome.detail
        outcome.detail.encode()  # fit for a ledger


# ---- the wall behind the look before


BEHIND = (  # every format whose importer follows names
    "gltf_picture_upwards gltf_buffer_upwards gltf_absolute gltf_picture_is_a_link obj_library_upwards mtl_absolute "
    "usda_reference_upwards usda_payload_absolute usda_sublayer_upwards dae_file_url fbx_text fbx_text_upwards "
    "blend_picture_outside blend_library_outside"
).split()


def straight_to_blender(wall: Blender, world: World, name: str) -> bytes:
    """Renders without any look before. Returns what happened outside meanwhile."""
    path = world.assets / world.cases[name].path
    cfg = SMALL.resolved()
    job = build_job(cfg, name, cameras.sample("shell", np.random.default_rng(0), cfg.views), 1)
    world.watched.events()
    with contextlib.suppress(Skip):  # empty, import_failed: whatever is left of it
        for answer in wall.render(job | {"path": str(path), "format": path.suffix[1:]}):
            if isinstance(answer, Frame) and wall.readable == [world.assets]:
                seen = images.srgb8(images.over(answer.full("rgba"))).reshape(-1, 3).astype(int)
                assert not magenta(seen), name
    return world.watched.events()


@pytest.fixture(scope="module", params=["closed", "open"])
def wall(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Blender]:
    """A Blender that may read the assets alone, and one that may also read what they are after."""
    readable = [world.assets] if request.param == "closed" else [world.assets.parent]
    with contextlib.closing(
        Blender(tmp_path_factory.mktemp("wall"), Limits(timeout_s=30), readable=readable)
    ) as blender:
        if blender.start()["files"]:
            pytest.skip("this kernel has no Landlock")
        yield blender


@pytest.mark.parametrize("name", BEHIND)
def test_blender_itself_cannot_open_what_is_outside(wall: Blender, world: World, name: str) -> None:
    """The open one does open it, which shows that these files are what they seem, and that somebody watches."""
    happened = straight_to_blender(wall, world, name)
    assert bool(happened) == (wall.readable != [world.assets])
    assert not world.watched.changed()
    assert world.server.calls == 0


@pytest.mark.parametrize("named", ["../../outside/secret.bin", "OUTSIDE/secret.bin"])
def test_the_second_reader_is_within_the_wall(wall: Blender, world: World, named: str) -> None:
    """Blender refuses the file, of an unknown version; assimp opens what it names, where it can."""
    named = named.replace("OUTSIDE", str(world.outside))
    text = parts.document(asset={"version": "2.0", "minVersion": "2.9"}, buffers=[{"uri": named, "byteLength": 232}])
    folder = world.assets / "second_reader"
    folder.mkdir(exist_ok=True)
    (folder / "it.gltf").write_text(json.dumps(text))
    world.cases["second_reader"] = hostile.Case("second_reader/it.gltf", "escapes_folder")
    happened = straight_to_blender(wall, world, "second_reader")
    assert bool(happened) == (wall.readable != [world.assets])
    assert not world.watched.changed()
    assert world.server.calls == 0


@pytest.mark.parametrize("name", ["gltf_http_picture", "usda_http_picture", "dae_http_document"])
def test_blender_itself_calls_nobody(wall: Blender, world: World, name: str) -> None:
    if wall.hello["tcp"]:
        pytest.skip("this system allows no network namespace, and its Landlock takes TCP from nobody")
    straight_to_blender(wall, world, name)
    assert world.server.calls == 0


# ---- which folder an object may read


def test_the_folder_that_an_object_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its source's root; else the folder that the user named; else its own folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    models, other = tmp_path / "models", tmp_path / "home" / "other"
    (models / "chair").mkdir(parents=True)
    other.mkdir(parents=True)
    path, elsewhere = models / "chair" / "it.glb", other / "it.glb"

    def root_and_readable(source: Path, path: Path, **extra: str) -> tuple[Path, list[Path]]:
        cfg = RenderConfig(source="local", input=source, out=tmp_path / "out", scene=SMALL).resolved()
        renderer = Renderer(cfg, tmp_path / "scratch")
        return renderer._root_of(Item("it", "local", url=str(path), extra=extra), path), renderer.blender.readable

    root, readable = root_and_readable(models, path)
    assert root == models
    assert models in readable and tmp_path not in readable
    assert root_and_readable(models, path, root=str(path.parent))[0] == path.parent
    assert root_and_readable(models, elsewhere)[0] == other
    (models / "list.csv").write_text("path\nchair/it.glb\n")
    assert root_and_readable(models / "list.csv", path)[0] == models
    for holds_the_home in (tmp_path, tmp_path / "home"):
        root, readable = root_and_readable(holds_the_home, elsewhere)
        assert root == other
        assert holds_the_home not in readable


# ---- what exporters leave behind


LEFT_BEHIND = {
    "windows": r"C:\Users\bob\textures\wood.png",
    "slashes": "D:/textures/wood.png",
    "unc": r"\\server\textures\wood.png",
    "mac": "/Users/bob/Desktop/wood.png",
    "upwards": r"..\..\..\nowhere\textures\wood.png",
}


def leave_behind(folder: Path, suffix: str, name: str) -> Path:
    """A box that names a picture which is not on this machine."""
    path = folder / f"it.{suffix}"
    if suffix == "obj":
        path.write_text(parts.obj("mtllib paint.mtl"))
        (folder / "paint.mtl").write_text(f"newmtl paint\nKd 0 0.5 0\nmap_Kd {name}\n")
    elif suffix == "dae":
        path.write_text(parts.dae(name if name.startswith("..") else f"file:///{name.lstrip('/')}"))
    else:
        path.write_bytes(parts.fbx_box(**{"Filename" if WINDOWS.match(name) else "RelativeFilename": name}))
    return path


@pytest.mark.parametrize("name", LEFT_BEHIND)
@pytest.mark.parametrize("suffix", ["obj", "fbx", "dae"])
def test_dead_paths_of_an_author_are_let_pass(world: World, suffix: str, name: str) -> None:
    """Leftover paths lead nowhere, and the object is shown without the files."""
    folder = world.assets / f"left_{suffix}_{name}"
    folder.mkdir()
    path = leave_behind(folder, suffix, LEFT_BEHIND[name])
    place = {"path": str(path), "root": str(folder)}
    outcome = world.produce(Item(uid="left", source="local", url=str(path), extra=place))
    assert not magenta(colours(outcome))


@pytest.mark.parametrize("suffix", ["gltf", "glb", "obj", "fbx", "dae", "usda", "usdz", "ply"])
def test_the_box_is_fine_where_it_means_no_harm(world: World, suffix: str) -> None:
    """A control: hostile files fail for what makes them hostile. Pictures within the folder are shown."""
    root = world.assets / f"fine_{suffix}"
    place = hostile.Place(root / "deep", root, "")
    place.folder.mkdir(parents=True)
    picture = parts.png(8, 8, (255, 0, 255))
    (root / "paint.png").write_bytes(picture)
    up, inside = "../paint.png", [{"uri": "../paint.png"}]
    made: dict[str, bytes | str] = {
        "gltf": json.dumps(parts.document(images=inside)),
        "glb": parts.glb(parts.document(buffers=parts.INSIDE, images=inside)),
        "obj": parts.obj("mtllib paint.mtl"),
        "fbx": parts.fbx_box(RelativeFilename=up),
        "dae": parts.painted_dae(up),
        "usda": parts.painted_usda(up),
        "ply": parts.painted_ply(up),
        "usdz": parts.archive(("it.usda", parts.painted_usda("paint.png").encode()), ("paint.png", picture)),
    }
    place.write("box.bin", parts.CUBE)
    place.write("paint.mtl", f"newmtl paint\nmap_Kd {up}\n")
    place.write(f"it.{suffix}", made[suffix])
    path = place.folder / f"it.{suffix}"
    item = Item(uid="fine", source="local", url=str(path), extra={"path": str(path), "root": str(root)})
    outcome = world.produce(item)
    assert magenta(colours(outcome))
