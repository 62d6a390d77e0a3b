"""Texts of 3D formats that are cut off are told from whole ones, wherever they are cut and however their writers end them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import Skip
from pipeline.worker import preflight
from tests import parts

SIDE = 20
PLACES = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
QUADS = np.stack([PLACES[:-1, :-1], PLACES[1:, :-1], PLACES[1:, 1:], PLACES[:-1, 1:]], -1).reshape(-1, 4)
POINTS = np.random.default_rng(0).uniform(-1, 1, (SIDE * SIDE, 3))
VERTICES = [f"{x:.6f} {y:.6f} {z:.6f}" for x, y, z in POINTS]


def obj(corner: str = "{0}") -> str:
    faces = [" ".join(corner.format(place + 1) for place in quad) for quad in QUADS.tolist()]
    return "".join(f"v {vertex}\n" for vertex in VERTICES) + "".join(f"f {face}\n" for face in faces)


def ply(kind: str = "ascii") -> bytes:
    head = f"ply\nformat {kind} 1.0\nelement vertex {len(POINTS)}\n" + "".join(
        f"property float {axis}\n" for axis in "xyz"
    )
    head += f"element face {2 * len(QUADS)}\nproperty list uchar int vertex_indices\nend_header\n"
    triangles = QUADS[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)
    if kind == "ascii":
        rows = [*VERTICES, *("3 " + " ".join(map(str, face)) for face in triangles.tolist())]
        return (head + "\n".join(rows) + "\n").encode()
    faces = np.empty(len(triangles), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, triangles
    return head.encode() + POINTS.astype("<f4").tobytes() + faces.tobytes()


def ply_of_returns() -> bytes:
    """A binary PLY whose header has the line ends of old Macs, as Rhino's exporter writes it."""
    head, end, rows = ply("binary_little_endian").partition(b"end_header\n")
    assert b"\n" not in rows[:100]  # else the first one would pass for the end of the header's last line
    return (head + end).replace(b"\n", b"\r") + rows


def stl() -> str:
    facets = "".join(
        "facet normal 0 0 1\nouter loop\n"
        + "".join(f"vertex {VERTICES[place]}\n" for place in quad[:3])
        + "endloop\nendfacet\n"
        for quad in QUADS.tolist()
    )
    return f"solid it\n{facets}endsolid it\n"


WHOLE = {
    "lines.obj": obj(),
    "places.obj": obj("{0}/{0}/"),
    "no_end.obj": obj().rstrip(),
    "comment.obj": obj() + "# 361 faces\n\n# End of File",
    "zero.obj": obj() + "\0",
    "returns.obj": obj().replace("\n", "\r\n").rstrip(),
    "one_free.obj": "v 0 0 0\n" + obj("-{0}").rstrip(),
    "free_comment.obj": obj() + "v 0.5 0.5 0.5\n" * 40 + "# End of File",
    "free.obj": obj() + "v 0.5 0.5 0.5\n" * 30,
    "few.obj": "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 9 9 9\nf 1 2 3\n",
    "long.obj": "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\nf 1 2 \\\n 4 3",
    "surface.obj": "\n".join(f"v {vertex}" for vertex in VERTICES) + "\ncstype bezier\nf 1 2 3\nsurf 0 1 0 1 1 2 3",
    "text.ply": ply(),
    "no_end.ply": ply().rstrip(),
    "blank.ply": ply().replace(b"3 ", b"\n3 ") + b"\n\n",
    "one_line.ply": b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nend_header\n0 0 0 1 1 1\n",
    "binary.ply": ply("binary_little_endian"),
    "returns.ply": ply_of_returns(),
    "text.stl": stl(),
    "no_end.stl": stl().rstrip(),
    "box.fbx": parts.fbx_text().replace("Geometry::box", "Geometry::{{box") + "; a comment {\n",
}


def look(path: Path, data: str | bytes) -> str:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    try:
        return preflight.check(path)
    except Skip as skip:
        return skip.reason


@pytest.mark.parametrize("name", WHOLE)
def test_whole_texts_pass(tmp_path: Path, name: str) -> None:
    assert look(tmp_path / name, WHOLE[name]) == name.partition(".")[2]


@pytest.mark.parametrize(
    "name", ["lines.obj", "places.obj", "returns.obj", "text.ply", "binary.ply", "returns.ply", "text.stl", "box.fbx"]
)
def test_texts_that_are_cut_anywhere_are_truncated(tmp_path: Path, name: str) -> None:
    whole = WHOLE[name] if isinstance(WHOLE[name], bytes) else WHOLE[name].encode()
    faces = whole.find(b"\nf ")
    starts = {"ply": whole.find(b"end_header"), "stl": 60, "fbx": whole.find(b"Vertices")}
    first = starts.get(name.partition(".")[2], faces + 100)
    for end in np.linspace(first, 0.95 * len(whole), 60).astype(int).tolist():
        assert look(tmp_path / name, whole[:end]) == "truncated", end
    if name not in ("binary.ply", "returns.ply"):
        assert look(tmp_path / name, whole[: int(0.8 * len(whole))] + bytes(5000)) == "truncated"
        lines = whole.splitlines(keepends=True)
        assert look(tmp_path / name, b"".join(lines[: int(0.8 * len(lines))])) == "truncated"


@pytest.mark.parametrize(
    "end", ["v 0.123456 0.12", "v 0.123456 0.123456 0.1234", "v 0.1 0.2 -", "vn 0.1", "usem", "m", "f 1/1 2/2 3/", "f"]
)
def test_an_obj_that_ends_within_a_statement_is_truncated(tmp_path: Path, end: str) -> None:
    assert look(tmp_path / "it.obj", obj() + end) == "truncated"
