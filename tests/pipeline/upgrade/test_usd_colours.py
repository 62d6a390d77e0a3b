"""Colours that prims of a USD hand down: what the words of a layer mean, and that no words do harm."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.upgrade.usd_colours import handed_down
from tests.conftest import put_anew

RED = "color3f[] primvars:displayColor = [(0.5, 1e-1, 0)]"


def found(folder: Path, text: str) -> dict[str, list[float]]:
    path = folder / "it.usda"
    put_anew(path, text.encode("utf-8", "surrogatepass"))
    return handed_down(path, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("usd_colours")


@pytest.mark.parametrize(
    ("body", "paths"),
    [
        (f'def "a" {{ {RED} }}', ["/a"]),
        (f'def Xform "a" ( doc = """{{ {RED} """ ) {{ string s = "}}{{" # }}\n def Scope "b" {{ {RED} }} }}', ["/a/b"]),
        (f'def Mesh "a" {{ {RED} }}', []),  # its own, which the importer reads
        ('def "a" { color3f[] primvars:displayColor = [(0, 0, 0), (1, 1, 1)] }', []),
        ('def "a" { color3f[] primvars:displayColor.timeSamples = { 0: [(0, 0, 0)] } }', []),
        ('def "a" { int[] primvars:displayColor:indices = [0] }', []),
        (f'def "a" {{ dictionary d = {{ string x = "" }} matrix4d m = ( (1), (0) ) {RED} }}', ["/a"]),
        (f'def "a" ( references = </b> ) {{ }}\ndef "b" {{ def "c" {{ {RED} }} }}', ["/a/c", "/b/c"]),
        (f'def "a" ( references = </a> ) {{ def "c" {{ {RED} }} }}', ["/a/c"]),
        (f'def "a" {{ variantSet "v" = {{ "x" {{ {RED} }} }} }}', []),  # of which none is chosen
        (f'def "a" {{ {RED}', ["/a"]),
        ("def", []),
    ],
)
def test_what_a_layer_says(folder: Path, body: str, paths: list[str]) -> None:
    assert found(folder, f"#usda 1.0\n{body}") == {path: [0.5, 0.1, 0] for path in paths}


WORDS = (
    'def over class variantSet "a" "b" Mesh Xform ( ) { } = [ ] @a.usda@ @ </a> < > references variants string " # """'
)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from([*WORDS.split(), RED, "\n"]), max_size=40).map(" ".join) | st.text(max_size=80))
def test_no_words_do_harm(folder: Path, body: str) -> None:
    for path, colour in found(folder, f"#usda 1.0\n{body}").items():
        assert path.startswith("/") and len(colour) == 3


@pytest.mark.parametrize("word", ['def "a" {', "(", "[", "<", '"', "'", '"""', "@", "@@@x", '\\"""', "variantSet {"])
def test_nothing_takes_long(folder: Path, word: str) -> None:
    start = time.process_time()
    found(folder, "#usda 1.0\n" + word * (2_000_000 // len(word)))
    assert time.process_time() - start < 5
