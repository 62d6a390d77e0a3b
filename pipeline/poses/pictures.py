"""Pictures of a capture on this machine: names as camera files write them -> files of its folder."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote

from pipeline.core.errors import Skip

SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".avif")
SMALLER = ("images_2", "images_4", "images_8")  # folders of copies that are smaller by this factor


def pictures_in(folder: Path) -> list[str]:
    """Names of the pictures in a folder, sorted; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(name for name in os.listdir(folder) if Path(name).suffix.lower() in SUFFIXES[1:] and name[0] != ".")


def named(folder: Path, name: str) -> Path:
    """Path `folder`/`name`, or that of the folder there whose name is equal but for its case."""
    if (folder / name).is_dir() or not folder.is_dir():
        return folder / name
    alike = (child for child in sorted(os.listdir(folder)) if _alike(child) == _alike(name))
    return next((folder / child for child in alike if (folder / child).is_dir()), folder / name)


def _alike(name: str) -> str:
    """Spelling that names share which some systems take for one: macOS splits accents off their letters, others do not."""
    return unicodedata.normalize("NFC", name).lower()


class Finder:
    """Finds what a camera file names, in any case and any spelling of accents.

    roots: folders that files must stay in, after links are followed unless follow_links.
    """

    def __init__(self, roots: Sequence[Path], follow_links: bool = True) -> None:
        self.roots = [Path(os.path.abspath(root)) for root in roots]
        self.resolved = [root.resolve() for root in roots]
        self.follow_links = follow_links
        self.listed: dict[Path, dict[str, str]] = {}
        self.folders: dict[Path, Path] = {}

    def within(self, *folders: Path) -> Finder:
        """Finder that takes files of these folders too."""
        return Finder([*self.roots, *folders], self.follow_links)

    def find(self, name: str, folder: Path) -> Path | None:
        """File that a camera file in `folder` calls `name`, with or without its suffix, in any case of it and of its folders.

        None if there is none. Backslashes may stand for slashes, and %20 for a space, as in URLs. An absolute name of another
        machine means the longest end of it that is in `folder`. Raises Skip("escapes_folder").
        """
        if "\0" in unquote(name):
            raise Skip("escapes_folder", f"{name[:80]!r} is no path")
        for spelt in dict.fromkeys((name, name.replace("\\", "/"), unquote(name))):
            if os.path.isabs(spelt) or PureWindowsPath(spelt).drive:
                found = self._absolute(spelt, folder)
            else:
                found = self._there(folder, spelt)
            if found is not None:
                return found
        return None

    def _absolute(self, name: str, folder: Path) -> Path | None:
        path = Path(os.path.normpath(name))
        if any(path.is_relative_to(root) for root in (*self.roots, *self.resolved)):
            return self._there(Path("/"), name)
        parts = [part for part in PureWindowsPath(name).parts[1:] if part not in (".", "..")]
        for at in range(len(parts)):
            if (found := self._there(folder, "/".join(parts[at:]))) is not None:
                return found
        if any(os.path.isdir(self._folder(folder / "/".join(parts[at:-1]))) for at in range(len(parts) - 1)):
            return None  # its folder is here, and it is not
        raise Skip("escapes_folder", f"{name[:80]!r} leads out of {folder}; copy the pictures into it")

    def _there(self, folder: Path, name: str) -> Path | None:
        """File `folder`/`name`. Raises Skip("escapes_folder") for one outside of the roots, whether it exists or not."""
        path = Path(os.path.normpath(folder / name))
        if not any(path.is_relative_to(root) for root in (*self.roots, *self.resolved)):
            raise Skip("escapes_folder", f"{name[:80]!r} leads out of {folder}; copy the pictures into it")
        found = self._spelt(path)
        real = (found or path).resolve()
        if not self.follow_links and not any(real.is_relative_to(root) for root in self.resolved):
            raise Skip("escapes_folder", f"{name[:80]!r} is a link out of {folder}; --follow-links takes it")
        return found

    def _spelt(self, path: Path) -> Path | None:
        for suffix in SUFFIXES:
            if os.path.isfile(whole := path.with_name(path.name + suffix)):  # False for names that no file system takes
                return whole
        folder = self._folder(path.parent)
        names = self._names(folder)
        for suffix in SUFFIXES:
            if (known := names.get(_alike(path.name + suffix))) and os.path.isfile(whole := folder / known):
                return whole
        return None

    def _folder(self, path: Path) -> Path:
        """Folder that a path within the roots means, in any case of the names below them."""
        if path not in self.folders:
            at = next((root for root in (*self.roots, *self.resolved) if path.is_relative_to(root)), path)
            for part in path.relative_to(at).parts:
                at = at / part if os.path.isdir(at / part) else at / self._names(at).get(_alike(part), part)
            self.folders[path] = at
        return self.folders[path]

    def _names(self, folder: Path) -> dict[str, str]:
        """Names in a folder as `_alike` spells them; read once."""
        if folder not in self.listed:
            try:
                self.listed[folder] = {_alike(name): name for name in sorted(os.listdir(folder), reverse=True)}
            except OSError:
                self.listed[folder] = {}
        return self.listed[folder]

    def copy(self, name: str, folder: Path) -> Path | None:
        """`find`, or a smaller copy in images_2, images_4 or images_8 of what is named in images/."""
        if (found := self.find(name, folder)) is not None:
            return found
        head, _, rest = Path(name.replace("\\", "/")).as_posix().partition("/")
        copies = (self.find(f"{smaller}/{rest}", folder) for smaller in SMALLER if head.lower() == "images" and rest)
        return next((copy for copy in copies if copy is not None), None)
