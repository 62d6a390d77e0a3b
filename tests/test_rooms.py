"""Who may import whom, read from the source itself."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIPELINE = sorted((ROOT / "pipeline").rglob("*.py"))
SCRIPTS = sorted((ROOT / "blender_scripts").rglob("*.py"))

LAYOUT = {
    "pipeline": (
        "core formats poses upgrade config storage dataset download video sources worker cluster run cycle plan report export "
        "viewer system doctor cli __main__"
    ).split(),
    "lvsm_train": "config models device weights losses data media evaluation synthesis training cycle latent".split(),
}
ROOF = ("__main__", "cli", "doctor", "system")  # of pipeline: no room, and nobody imports them but each other
SHELVES = ("poses", "sources", "latent")  # plug-ins side by side: more of them than a room may have modules
DOORS = {  # dependency -> the only modules of pipeline that may know it
    "ray": {"cluster.executors", "cluster.prometheus"},
    "sqlite3": {"storage.ledger"},
    "PIL": {"core.images"},
    "cv2": {"core.images", "worker.posed", "worker.epipolar"},
    "av": {"video.cut", "video.frames", "video.stills", "core.images"},
    "yt_dlp": {"video.ytdlp", "video.js_runtime"},
    "objaverse": {"download.route", "sources.objaverse", "sources.objaverse_xl"},
    "py7zr": {"formats.seven_zip"},
    "h5py": {"formats.hdf5"},
    "jinja2": {"report.markup"},
    "huggingface_hub": {"download.huggingface", "export.push"},
    "httpx2": {"download.fetch", "download.huggingface", "download.git", "export.push"},
    "pyarrow": {
        "storage.shards",
        "storage.object_table",
        "storage.writer",
        "storage.journal",
        "storage.object_store",
        "report.verify",
        "formats.tables",
        "sources.objaverse_xl",
    },
    "bpy": set(),
    "torch": set(),
    "lvsm_train": {"cli"},
    "blender_scripts": set(),
    "mathutils": set(),
}


def name_of(path: Path) -> str:
    """Dotted name of a module of ours: pipeline/sources/local.py -> pipeline.sources.local."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def place(module: str) -> tuple[str, str]:
    """Package and room of a module: pipeline.worker.blender -> (pipeline, worker)."""
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0]


MODULES = {
    name_of(path): path
    for package in LAYOUT
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.parent != ROOT / package or path.stem != "__init__"
    if path.stem != "__init__" or place(name_of(path))[1] == "sources"
}


PACKAGES = {name for name, path in MODULES.items() if path.stem == "__init__"}


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Every name that a file imports, also inside functions and for types alone: `from a import b` gives a and a.b."""
    return frozenset(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (str(argument.value) for argument in node.args if isinstance(argument, ast.Constant))


def ours(path: Path) -> set[str]:
    """Modules of ours that a file imports."""
    return {name for name in imports(path) if name in MODULES}


def test_the_walk_sees_imports(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        "import a.b\nfrom c import d\ndef f():\n    from pipeline.core import records\n    import e as g\n"
    )
    assert set(imports(tmp_path / "one.py")) == {"a.b", "c", "c.d", "pipeline.core", "pipeline.core.records", "e"}
    assert ours(ROOT / "pipeline" / "run" / "driver.py") >= {"pipeline.cluster.executors", "pipeline.core.records"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module: str) -> None:
    """A module imports its own room and rooms that stand before it; the trainer any room of pipeline, never the roof."""
    package, room = place(module)
    for other_package, other in map(place, sorted(ours(MODULES[module]))):
        if other_package == package:
            assert LAYOUT[package].index(other) <= LAYOUT[package].index(room), f"{module} imports {package}.{other}"
        else:
            assert room == "cli" or (package == "lvsm_train" and other not in ROOF), f"{module} imports {other}"


def test_no_import_circles() -> None:
    for _ in TopologicalSorter({module: ours(path) for module, path in MODULES.items()}).static_order():
        pass  # raises CycleError, which names the circle


@pytest.mark.parametrize(("package", "room"), [(one, room) for one in LAYOUT for room in LAYOUT[one]])
def test_rooms_stay_small(package: str, room: str) -> None:
    modules = [module for module in MODULES if place(module) == (package, room) and module not in PACKAGES]
    assert 1 <= len(modules) <= (15 if room in SHELVES else 10), modules


@pytest.mark.parametrize("dependency", DOORS)
def test_one_door_per_dependency(dependency: str) -> None:
    found = {
        name_of(path).removeprefix("pipeline.")
        for path in PIPELINE
        if dependency in {imported.split(".")[0] for imported in imports(path)}
    }
    assert found <= DOORS[dependency]
    if DOORS[dependency]:
        assert found  # else the rule would be about nothing


def test_blender_scripts_know_blender_and_nothing_of_ours() -> None:
    knows_blender = set()
    for path in SCRIPTS:
        roots = {imported.split(".")[0] for imported in imports(path)}
        assert not roots & {"pipeline", "lvsm_train", "ray", "pyarrow", "torch", "tests"}, path
        assert "PIL" not in roots or path.name == "other_pictures.py", path
        if "bpy" in roots:
            knows_blender.add(path.name)
    assert "worker.py" in knows_blender


@pytest.mark.parametrize("folder", ["pipeline", "blender_scripts", "lvsm_train", "benchmarks"])
def test_no_module_is_named_like_the_standard_librarys(folder: str) -> None:
    named = {path.stem for path in (ROOT / folder).rglob("*.py")}
    assert not named & set(sys.stdlib_module_names)


def test_one_broad_except() -> None:
    broad = []
    for path in PIPELINE + SCRIPTS:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{path}:{node.lineno} catches everything"
                caught = {ast.unparse(part) for part in getattr(node.type, "elts", [node.type])}
                assert "BaseException" not in caught, f"{path}:{node.lineno}"
                broad += [path.name] * ("Exception" in caught)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
                assert not {ast.unparse(argument) for argument in node.args} & {"Exception", "BaseException"}, path
    assert broad == ["worker.py"]


def test_the_command_line_starts_without_the_heavy_libraries(tmp_path: Path) -> None:
    code = "import sys, json, pipeline.cli; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "pipeline" in loaded
    assert not loaded & {"ray", "pyarrow", "torch", "bpy", "PIL", "cv2", "pandas", "datasets", "objaverse", "jinja2"}
