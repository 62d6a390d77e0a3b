"""Finds the colours that prims of a USD of text hand down to the meshes below them, which Blender's importer leaves there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MAX_BYTES = 2**25  # of a layer; larger ones hold meshes, and their own colours
MAX_DEPTH, MAX_LAYERS = 200, 16  # of blocks within blocks, of layers within layers
MAX_ARCS, MAX_COLOURS = 1000, 10_000  # references that are followed, colours that are kept
NAME = "primvars:displayColor"
ARCS = ("references", "payload", "inherits", "specializes")
SHAPES = "Mesh Cube Sphere Cylinder Cone Capsule Plane BasisCurves NurbsCurves NurbsPatch Points".split()
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
TOKEN = re.compile(
    r'"""(?:[^\\]|\\.)*?"""'
    r"|'''(?:[^\\]|\\.)*?'''"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'(?:[^'\\\n]|\\.)*'"
    r"|#[^\n]*"
    r"|@@@[^\n]*?@@@|@[^@\n]*@"
    r"|<[^<>\n]*>"
    r"""|\[[^\[\]"'@<#]*\]"""
    r"|[{}()=]"
    r"|[A-Za-z_][\w:]*",
    re.S,
)
Colour = list[float]


def handed_down(path: Path, files: dict[tuple[Path, str], Path]) -> dict[str, Colour]:
    """Prim path -> colour (3 numbers of linear light), of prims that give it to all below them which have none of their own.

    path: a layer of text. files: (layer, name in it) -> file, of the layers that it names. A prim of another layer goes by the
    path that it has in the whole. Raises OSError.
    """
    try:
        return _Layers(files).colours(path)
    except ValueError:  # not what the format says, and Blender's importer will say so
        return {}


@dataclass
class _Layer:
    """What a layer says: colour of each prim, prims that stand for others (prim, file or "", path there), its default prim."""

    colours: dict[str, Colour] = field(default_factory=dict)
    arcs: list[tuple[str, str, str]] = field(default_factory=list)
    default: str = ""


class _Layers:
    """A layer and all that it names, each read once."""

    def __init__(self, files: dict[tuple[Path, str], Path]) -> None:
        self.files, self.read, self.left = files, dict[Path, _Layer](), MAX_ARCS

    def colours(self, path: Path, above: tuple[Path, ...] = ()) -> dict[str, Colour]:
        """Colours of the prims of a layer and of what they stand for; a prim's own are stronger."""
        layer = self.layer(path)
        found = dict(layer.colours)
        for prim, name, target in layer.arcs:
            other = self.files.get((path, name)) if name else path
            self.left -= 1
            if other is None or self.left < 0 or len(above) > MAX_LAYERS or len(found) > MAX_COLOURS:
                continue
            there = layer.colours if other == path else {}
            if other != path and other not in above:
                there = self.colours(other, (*above, path))
            target = target or self.layer(other).default
            for place, colour in there.items():
                if not prim or place == target or place.startswith(f"{target}/"):
                    found.setdefault(place if not prim else prim + place[len(target) :], colour)
        return found

    def layer(self, path: Path) -> _Layer:
        if path not in self.read:
            self.read[path] = _parsed(path)
        return self.read[path]


def _parsed(path: Path) -> _Layer:
    with path.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES or not data.startswith(b"#usda"):
        return _Layer()
    words = (match[0] for match in TOKEN.finditer(data.decode("utf-8", "replace")) if match[0][0] != "#")
    return _Parser(words).parse()


class _Parser:
    """Reads prims, what they stand for, and their colours; steps over everything else."""

    def __init__(self, words: Iterator[str]) -> None:
        self.words, self.layer = words, _Layer()

    def parse(self) -> _Layer:
        self._body("", {}, 0)
        return self.layer

    def _body(self, prim: str, chosen: dict[str, str], depth: int) -> None:
        """Read up to the end of a prim's block (of the layer: to its end). chosen: variant of each set of the prim."""
        if depth > MAX_DEPTH:
            raise ValueError("blocks within blocks")
        before = ""
        for word in self.words:
            if word == "}":
                return
            if word in ("def", "over", "class") and before != "=":
                self._prim(prim, depth)
            elif word == "variantSet":
                self._variants(prim, chosen, depth)
            elif word == "(":
                self._metadata(prim, chosen)
            elif word == "{":
                self._skip("{", "}")
            elif before == NAME and word == "=":
                self._colour(prim)
            before = word

    def _prim(self, above: str, depth: int) -> None:
        kind = name = ""
        chosen: dict[str, str] = {}
        for word in self.words:
            if word[0] in "\"'":
                name = word[1:-1]
            elif word == "(":
                self._metadata(f"{above}/{name}", chosen)
            elif word == "{":
                break
            else:
                kind = word
        self._body(f"{above}/{name}", chosen, depth + 1)
        if kind in SHAPES:  # whose colours the importer reads
            self.layer.colours.pop(f"{above}/{name}", None)

    def _variants(self, prim: str, chosen: dict[str, str], depth: int) -> None:
        """Read the chosen variant of a set as if it were the prim's own block, and no other."""
        name, variant = next(self.words, "")[1:-1], ""
        for word in self.words:
            if word == "}":
                return
            if word[0] in "\"'":
                variant = word[1:-1]
            elif word == "(":
                self._metadata(prim if chosen.get(name) == variant else None, chosen)
            elif word == "{" and variant and chosen.get(name) == variant:
                self._body(prim, chosen, depth + 1)
            elif word == "{" and variant:
                self._skip("{", "}")

    def _metadata(self, prim: str | None, chosen: dict[str, str]) -> None:
        """Read parentheses: what a prim stands for, its variants, the layer's sublayers and default prim. None: nothing of it."""
        depth, key, before, name = 1, "", "", ""
        for word in self.words:
            depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(word, 0)
            if depth == 0:
                break
            if word == "=":
                if before in (*ARCS, "variants", "subLayers", "defaultPrim") and (depth == 1 or key != "variants"):
                    key = before
                elif key != "variants":
                    key = ""
                else:
                    name = before
            elif prim is None:
                pass
            elif key in ARCS and word[0] in "@<":
                self._arc(prim, word, follows=before[:1] == "@")
            elif key == "subLayers" and word[0] == "@":
                self._arc("", word)
            elif key == "defaultPrim" and word[0] == '"' and not prim:
                self.layer.default, key = f"/{word[1:-1]}", ""
            elif key == "variants" and word[0] == '"':
                chosen[name] = word[1:-1]
            before = word

    def _arc(self, prim: str, word: str, follows: bool = False) -> None:
        """Note what a prim stands for: a file; a path in this layer, or, where it follows a file, in that one."""
        if word[0] == "@":
            self.layer.arcs.append((prim, word.strip("@").partition(":SDF_FORMAT_ARGS:")[0].strip(), ""))
        else:
            name = self.layer.arcs.pop()[1] if follows else ""
            self.layer.arcs.append((prim, name, word[1:-1]))

    def _colour(self, prim: str) -> None:
        """Note the one colour of a prim; one of several is no prim's below."""
        numbers = [float(number) for number in NUMBER.findall(next(self.words, ""))]
        if len(numbers) == 3 and prim:
            self.layer.colours.setdefault(prim, numbers)

    def _skip(self, opens: str, closes: str) -> None:
        depth = 1
        for word in self.words:
            depth += (word == opens) - (word == closes)
            if depth == 0:
                return
