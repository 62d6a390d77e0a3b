"""MTL files of writers that Blender does not follow, as lines that it does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.upgrade import mtl

PLAIN = b"# a comment\nnewmtl m\n\tKd 1 0 0\nmap_Kd Kd newmtl.png\nd 0.5\nmap_Ka b.png\nnewmtl n\nillum 2\n"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (PLAIN, PLAIN),
        (b"NEWMTL m\nKD 0 0 1\n", b"newmtl m\nKd 0 0 1\n"),
        (b"newmtl m\n  map_kd KD.png\n", b"newmtl m\n  map_Kd KD.png\n"),
        (b"newmtl m\nmap_Ka a b.png", b"newmtl m\nmap_Ka a b.png\nmap_Kd a b.png\n"),
        (
            b"newmtl m\nMAP_KA a.png\nnewmtl n\nmap_Kd b.png\n",
            b"newmtl m\nmap_Ka a.png\nmap_Kd a.png\nnewmtl n\nmap_Kd b.png\n",
        ),
        (b"newmtl m\nmap_Kd b.png\nmap_Ka a.png\n", b"newmtl m\nmap_Kd b.png\nmap_Ka a.png\n"),
        (b"newmtl m\nKD 0,8 0,05 1\nmap_Kd a1,2.png\n", b"newmtl m\nKd 0.8 0.05 1\nmap_Kd a1,2.png\n"),
        (b"newmtl m\nmap_Ka\n", b"newmtl m\nmap_Ka\n"),
    ],
)
def test_lines_become_what_blender_takes(written: bytes, meant: bytes) -> None:
    made = list(mtl.plain(written.splitlines(keepends=True)))
    assert b"".join(made) == meant
    assert all(line.count(b"\n") <= 1 for line in made)
    assert list(mtl.plain(made)) == made  # once is enough


words = st.sampled_from(
    [b"newmtl m", b"NewMtl M", b"map_Ka a.png", b"map_kd b.png", b"KD 1 1 1", b"", b"\t", b"x" * 99]
)


@given(st.lists(words | st.binary(max_size=9).map(lambda word: word.replace(b"\n", b"")), max_size=12))
def test_no_line_is_lost_and_twice_is_as_once(lines: list[bytes]) -> None:
    made = list(mtl.plain([line + b"\n" for line in lines]))
    assert len(made) >= len(lines)
    assert {line.strip().lower() for line in lines} <= {line.strip().lower() for line in made} | {b""}
    assert list(mtl.plain(made)) == made
