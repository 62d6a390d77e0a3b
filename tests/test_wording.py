"""Docstrings can be read without the code: their first word is a verb or the noun that comes out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RIDDLE = re.compile(
    r"(?:The (?:same|rest|others?)|Of|As|Whether|What|Its?|They|Those|These|That|This|Such|So|Where|Who|How|If|For people)\b"
)
SHARE = 0.01  # of all docstrings may begin so


def docstrings(text: str) -> list[str]:
    """Docstrings of a module and of its classes and functions."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = [ast.get_docstring(node) for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    return [docstring for docstring in found if docstring is not None]


@pytest.mark.parametrize(
    ("docstring", "riddle"),
    [
        ("The same, sorted.", True),
        ("Whether all that may be deleted has been.", True),
        ("It stands on disk.", True),
        ("Of all gradients together.", True),
        ("True when every shard has been deleted.", False),
        ("Offset of a row group in bytes.", False),
        ("Reserve disk for the whole shard.", False),
    ],
)
def test_what_passes_for_a_riddle(docstring: str, riddle: bool) -> None:
    assert docstrings(f'"""{docstring}"""') == [docstring]
    assert bool(RIDDLE.match(docstring)) == riddle


def test_docstrings_begin_with_a_verb_or_with_what_comes_out() -> None:
    told = [
        (path.relative_to(ROOT), docstring)
        for package in ("pipeline", "lvsm_train")
        for path in sorted((ROOT / package).rglob("*.py"))
        for docstring in docstrings(path.read_text(encoding="utf-8"))
    ]
    riddles = [f"{path}: {docstring.splitlines()[0]}" for path, docstring in told if RIDDLE.match(docstring)]
    assert len(told) > 1000
    assert len(riddles) < SHARE * len(told), "\n".join(riddles)
