"""Who may import whom, read from the source itself."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIPELINE = sorted((ROOT / "pipeline").rglob("*.py"))
SCRIPTS = sorted((ROOT / "blender_scripts").rglob("*.py"))

DOORS = {  # dependency -> the only modules that may know it
    "ray": {"executors", "metrics"},
    "sqlite3": {"ledger"},
    "PIL": {"images"},
    "cv2": {"images", "posed", "epipolar", "clips"},
    "av": {"cuts"},
    "yt_dlp": {"videos", "js_runtime"},
    "py7zr": {"files.seven_zip"},
    "huggingface_hub": {"hub"},
    "httpx2": {"fetch", "hub", "checkout"},
    "pyarrow": {"shards", "writer", "journals", "verify", "stores", "files.tables", "sources.objaverse_xl"},
    "bpy": set(),
    "torch": set(),
    "lvsm_train": {"cli"},
    "blender_scripts": set(),
    "mathutils": set(),
}


def name_of(path: Path) -> str:
    """Path below pipeline/ as a dotted name: sources/local.py -> sources.local."""
    return ".".join(path.relative_to(ROOT / "pipeline").with_suffix("").parts).removesuffix(".__init__") or "__init__"


def imports(path: Path) -> Iterator[str]:
    """Every name that a file imports, also inside functions: `from pipeline import images` gives pipeline.images."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            yield module
            if module in ("pipeline", "pipeline.files", "pipeline.sources"):
                yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (str(argument.value) for argument in node.args if isinstance(argument, ast.Constant))


def ours(path: Path) -> set[str]:
    """Modules of the pipeline that a file imports, by their first name."""
    found = {name.split(".")[1] for name in imports(path) if name.startswith("pipeline.")}
    return {name for name in found if (ROOT / "pipeline" / name).exists() or (ROOT / f"pipeline/{name}.py").exists()}


def test_the_walk_sees_imports(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        "import a.b\nfrom c import d\ndef f():\n    from pipeline import scene\n    import e as g\n"
    )
    assert set(imports(tmp_path / "one.py")) == {"a.b", "c", "pipeline", "pipeline.scene", "e"}
    assert ours(ROOT / "pipeline" / "run.py") >= {"executors", "scene", "shards"}


@pytest.mark.parametrize("dependency", DOORS)
def test_one_door_per_dependency(dependency: str) -> None:
    found = {name_of(path) for path in PIPELINE if dependency in {imported.split(".")[0] for imported in imports(path)}}
    assert found <= DOORS[dependency]
    if DOORS[dependency]:
        assert found  # else the rule would be about nothing


def test_blender_scripts_know_blender_and_nothing_of_ours() -> None:
    knows_blender = set()
    for path in SCRIPTS:
        roots = {imported.split(".")[0] for imported in imports(path)}
        assert not roots & {"pipeline", "lvsm_train", "ray", "pyarrow", "PIL", "torch", "tests"}, path
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
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "pipeline" in loaded
    assert not loaded & {"ray", "pyarrow", "torch", "bpy", "PIL", "cv2", "pandas", "datasets", "objaverse"}
