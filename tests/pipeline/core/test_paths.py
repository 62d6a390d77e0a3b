"""Names that strangers chose stay below the folder that they belong to, whatever they are."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.core.errors import Skip
from pipeline.core.paths import below, leaf, own_folder

ROOT = Path("/run/folder")
NAMES = st.one_of(
    st.text(max_size=300),
    st.lists(st.sampled_from(["..", ".", "", "a", "\\", "~", "\0", "C:", "..\\x", "é" * 200]), max_size=8).map(
        "/".join
    ),
)


@given(NAMES)
def test_a_name_is_below_its_folder_or_refused(name: str) -> None:
    with contextlib.suppress(Skip):
        path = below(ROOT, name)
        assert os.path.normpath(path).startswith(f"{ROOT}/") and "\0" not in str(path)


@given(NAMES)
def test_an_owner_has_one_folder_directly_below(owner: str) -> None:
    path = own_folder(ROOT, owner)
    assert path.parent == ROOT and path.name not in ("", ".", "..") and os.path.normpath(path) == str(path)


@given(NAMES, NAMES)
def test_two_owners_share_no_folder(one: str, other: str) -> None:
    assert (own_folder(ROOT, one) == own_folder(ROOT, other)) == (one == other)


@given(st.text(max_size=200))
@example("..")
@example("a/../..\\..")
@example("\ud800\0/`@[")
def test_a_leaf_leads_nowhere_else(name: str) -> None:
    made = leaf(name)
    assert Path(os.path.normpath(ROOT / made)).parent == ROOT
    assert len(made.encode()) <= 255 and made.isprintable()
    assert not set(made) & set("/\\`@[]")


def test_leaves_keep_the_base_name() -> None:
    assert [leaf(name) for name in ("a/b.png", r"C:\x\é f.png", "b.png", "/")] == [
        "b.png",
        "é f.png",
        "b.png",
        "missing",
    ]


@pytest.mark.parametrize("name", ["a.glb", "glbs/000-001/x y.glb", "a/./b", "...", "..a/b..", "~root/x"])
def test_usual_names_pass(name: str) -> None:
    assert below(ROOT, name) == ROOT / name


@pytest.mark.parametrize("name", ["", ".", "/", "..", "/etc", "a/../../b", "a/..", "x\0", "é" * 128])
def test_unusual_ones_do_not(name: str) -> None:
    with pytest.raises(Skip, match="escapes_folder"):
        below(ROOT, name)
