"""Faces that cover each other in one plane are found, and no others, however many lie in it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[3] / "blender_scripts" / "overlaps.py"


@pytest.fixture(scope="module")
def overlaps() -> ModuleType:
    spec = importlib.util.spec_from_file_location("overlaps", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sheet(side: int, other: bool = False) -> np.ndarray:
    """Triangles (2 side^2, 3, 3) of a square of size 1 around the origin, cut along one diagonal or the other."""
    rows, columns = np.mgrid[:side, :side].reshape(2, -1)
    a, b, c, d = (
        np.stack([columns + x, rows + y, 0 * rows], 1) / side - 0.5 for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))
    )
    cut = ((a, b, d), (b, c, d)) if other else ((a, b, c), (a, c, d))
    return np.concatenate([np.stack(corners, 1) for corners in cut]) * (1, 1, 0)


def found(overlaps: ModuleType, triangles: np.ndarray) -> np.ndarray:
    """Pairs of triangles (K, 2) of which one covers a point of the other."""
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    numbers, planes = overlaps.sharing_a_plane(normals, triangles[:, 0])
    pairs, points, _ = overlaps.covered(triangles[numbers], numbers, planes)
    assert len(points) == len(pairs)
    return np.array(pairs)


def turned(triangles: np.ndarray) -> np.ndarray:
    """Triangles in a plane of no special direction."""
    axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    return triangles @ axes + 0.03


@pytest.mark.parametrize("side", [1, 3, 100])
def test_a_sheet_of_many_faces_covers_nothing(overlaps: ModuleType, side: int) -> None:
    assert len(found(overlaps, turned(sheet(side)))) == 0


def test_a_fan_of_long_triangles_covers_nothing_and_takes_no_time(overlaps: ModuleType) -> None:
    angles = np.linspace(0, 2 * np.pi, 5001)
    rim = np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1) / 2
    start = time.process_time()
    assert len(found(overlaps, turned(np.stack([0 * rim[1:], rim[:-1], rim[1:]], 1)))) == 0
    assert time.process_time() - start < 20


@pytest.mark.parametrize("backwards", [False, True])
def test_every_face_of_two_sheets_in_one_place_is_found(overlaps: ModuleType, backwards: bool) -> None:
    first, second = sheet(10), sheet(10, other=True)
    second = second[:, ::-1] if backwards else second
    pairs = found(overlaps, turned(np.concatenate([first, second])))
    assert set(pairs.ravel()) == set(range(len(first) + len(second)))
    assert ((pairs < len(first)).sum(1) == 1).all()  # one of each sheet


@pytest.mark.parametrize("away", [1e-5, 0.1])
def test_sheets_that_are_apart_are_not(overlaps: ModuleType, away: float) -> None:
    assert len(found(overlaps, turned(np.concatenate([sheet(4), sheet(4, other=True) + np.array([0, 0, away])])))) == 0


def test_a_small_face_on_a_large_one_is_found(overlaps: ModuleType) -> None:
    pairs = found(overlaps, turned(np.concatenate([sheet(1), sheet(1) * 0.1 + (0.2, 0.1, 0)])))
    assert {2, 3} <= set(pairs[:, 0])
    assert set(pairs[:, 1]) <= {0, 1}


LARGE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import bpy, apart

def scene(*sizes):
    bpy.ops.wm.read_homefile(use_factory_startup=True, use_empty=True)
    for size in sizes:
        for _ in range(2):  # in one place
            bpy.ops.mesh.primitive_cube_add(size=size, location=(3 * size, 0, 0))

said = []
for polygons, in_a_plane in ((24, 24), (24, 12), (23, 24)):
    apart.POLYGONS, apart.IN_A_PLANE = polygons, in_a_plane
    scene(1, 2)
    before = [[tuple(v.co) for v in ob.data.vertices] for ob in bpy.context.scene.objects]
    ends = apart.separate()
    after = [[tuple(v.co) for v in ob.data.vertices] for ob in bpy.context.scene.objects]
    said.append([*ends, [one != other for one, other in zip(before, after)]])
print("SAID", json.dumps(said))
"""


def test_of_very_many_faces_the_largest_are_moved() -> None:
    made = subprocess.run(
        [sys.executable, "-Ic", LARGE, SCRIPT.parent], check=True, capture_output=True, text=True, timeout=120
    )
    said = json.loads(made.stdout.rpartition("SAID")[2])
    assert said == [
        [True, True, [False, True, False, True]],
        [True, False, [False, False, False, True]],
        [False, False, [False] * 4],
    ]
