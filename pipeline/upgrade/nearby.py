"""Finds files by their base name near a folder: pictures that a file names by where they were on another machine."""

from __future__ import annotations

import contextlib
import itertools
import os
import unicodedata

LOOKED = 20_000  # names that a search looks at
STEPS = 6  # from folder to folder that a search goes; beyond, a name means something else
MAX_PATH = 1023  # bytes; Blender truncates longer ones, and then opens another file


class Nearby:
    """Files below a root by base name: of each name those in the folder that is the fewest steps from a start.

    Links and hidden folders are left out, and what is beyond STEPS, or the first LOOKED names, step by step.
    """

    def __init__(self, start: str, root: str) -> None:
        self.root, self.found = root, dict[str, list[str]]()
        self.level, self.seen, self.looked, self.steps = [start], {start}, 0, 0

    def get(self, base: str) -> list[str]:
        """Sorted files of that base name, [] if there is none. Looks no farther than it has to."""
        while base not in self.found and self._step():
            pass
        return self.found.get(base, [])

    def of_stem(self, base: str, suffixes: tuple[str, ...]) -> list[str]:
        """[the only file] that has the stem of that base name, or all of it, before another suffix, one of these; else []."""
        stem = os.path.splitext(base)[0]
        if stem == base:
            return []
        found = [path for end in suffixes for of in {stem, base} for path in self.everything().get(of + end, [])]
        return found if len(found) == 1 else []

    def everything(self) -> dict[str, list[str]]:
        """Base name -> sorted files."""
        while self._step():
            pass
        return self.found

    def _step(self) -> bool:
        """Look into the folders that are one step farther. False if the search is at its end."""
        if not self.level or self.looked >= LOOKED or self.steps > STEPS:
            return False
        here: dict[str, list[str]] = {}
        following = []
        for folder in sorted(self.level):
            files, folders = _listed(folder)
            self.looked += len(files) + len(folders)
            for name in files:
                here.setdefault(base_name(name), []).append(os.path.join(folder, name))
            above = [os.path.dirname(folder)] if folder != self.root else []
            following += [os.path.join(folder, name) for name in folders] + above
        for key, paths in here.items():
            self.found.setdefault(key, sorted(paths))
        self.level = [folder for folder in dict.fromkeys(following) if folder not in self.seen]
        self.seen.update(self.level)
        self.steps += 1
        return True


def _listed(folder: str) -> tuple[list[str], list[str]]:
    """(files, folders) in a folder, sorted, without links and hidden ones; nothing of one that has more than LOOKED."""
    files, folders = [], []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in itertools.islice(entries, LOOKED + 1):
            if not entry.path.isprintable() or len(os.fsencode(entry.path)) > MAX_PATH:
                continue  # nothing that Blender could be told
            if entry.is_file(follow_symlinks=False):
                files.append(entry.name)
            elif entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                folders.append(entry.name)
    return ([], []) if len(files) + len(folders) > LOOKED else (sorted(files), sorted(folders))


def alike(one: list[str], other: list[str]) -> int:
    """Number of parts at the end that two paths share."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def base_name(name: str) -> str:
    """Last part of a path, by which it is looked for: in lower case, its accents as one letter each."""
    return unicodedata.normalize("NFC", slashed(name).split("/")[-1].casefold())


def slashed(name: str) -> str:
    """A name with the slashes of this system, without blanks around it."""
    return name.replace("\\", "/").strip()
