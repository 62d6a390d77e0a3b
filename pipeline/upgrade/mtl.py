"""Lines of an MTL as Blender takes them: words in its case, decimal points, the ambient picture for want of another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.upgrade import plain_text

LINE = 2**20  # bytes; what is longer names nothing
WORDS = "newmtl Ka Kd Ks Ke Ns Ni Tr Tf illum d map_Ka map_Kd map_Ks map_Ke map_Ns map_d map_Bump bump refl norm Pr Pm Ps".split()
NUMBERS = {b"Ka", b"Kd", b"Ks", b"Ke", b"Ns", b"Ni", b"Tr", b"d", b"Pr", b"Pm"}
KNOWN = {word.lower().encode(): word.encode() for word in WORDS}


def is_plain(path: Path) -> bool:
    """True if an MTL stays as it is. Raises OSError."""
    return all([line] == rewritten for line, rewritten in _rewritten(plain_text.lines(path, LINE)))


def plain(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines, those that are not plain rewritten."""
    for _, rewritten in _rewritten(lines):
        yield from rewritten


def _rewritten(lines: Iterable[bytes]) -> Iterator[tuple[bytes, list[bytes]]]:
    """Yield each line and those that stand for it: before the next material, or at the end, the picture that is wanting."""
    ambient: list[bytes] = []
    painted = False
    for line in lines:
        word, _, rest = line.strip().replace(b"\t", b" ").partition(b" ")
        known = KNOWN.get(word.lower(), word)
        before: list[bytes] = []
        if known == b"newmtl":
            before = [] if painted else ambient
            ambient, painted = [], False
        if known == b"map_Ka" and rest.strip():
            ambient = [b"map_Kd " + rest.strip() + b"\n"]
        painted = painted or known == b"map_Kd"
        plain = line if known == word else line.replace(word, known, 1)
        if known in NUMBERS:
            plain = re.sub(rb"(?<=\d),(?=\d)", b".", plain)
        yield line, [*before, plain]
    if ambient and not painted:
        yield b"", [b"\n", *ambient]
