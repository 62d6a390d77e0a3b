"""Checks a file before Blender opens it: cheap, exact reasons for what would fail late or in silence, or read other files."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.core.errors import Skip
from pipeline.formats import gltf, headers
from pipeline.formats.references import SCHEME, WINDOWS, references, within_usdz

FORMATS = frozenset("procedural glb gltf obj fbx stl ply usd usda usdc usdz dae abc blend".split())
LFS_MAGIC = b"version https://git-lfs"
MAGIC = {  # first bytes, for formats that have them
    "glb": (b"glTF",),
    "usdz": (b"PK",),
    "usdc": (b"PXR-USDC",),
    "usda": (b"#usda",),
    "ply": (b"ply",),
    "abc": (b"Ogawa", b"\x89HDF"),
    "blend": (b"BLENDER", b"\x28\xb5\x2f\xfd", b"\x1f\x8b"),
}
FORGIVING = {"obj", "mtl", "fbx", "dae"}  # exporters leave the author's own paths in these, which lead nowhere here
LAYERS = {"usd", "usda", "usdc", "usdz", "dae"}  # formats whose files may refer to further files of a format in here
MAX_FILES = 5000  # that one asset may refer to, directly or not
MAX_PATH = 1023  # bytes; Blender truncates longer ones, and then opens another file


def check(path: Path, root: Path | None = None, max_polygons: int = 20_000_000) -> str:
    """The file's format, by its suffix. root: folder that the asset may read, with all subfolders; default: its own folder.

    No picture is decoded, and no file outside of `root` is opened. Raises Skip:
    unsupported_format, file_empty, lfs_pointer, html_page, wrong_magic, truncated;
    not_a_file (the file, or one that it refers to, is no regular file within root);
    escapes_folder (a reference leaves root, or is a URL; an exporter's leftover path that leads nowhere is accepted);
    broken_gltf, unsupported_extension, broken_xml, xml_entities, broken_header, bad_archive;
    too_many_polygons, image_too_large, decompression_bomb, archive_bomb, too_complex (more than any model has);
    file_unreadable (with the system's reason).
    """
    file_format = path.suffix.lower().lstrip(".")
    if file_format not in FORMATS:
        raise Skip("unsupported_format", f"{path.name}: {file_format or 'no suffix'}")
    root = path.parent if root is None else root
    _check_regular(path, Path(os.path.realpath(root)))
    try:
        _check_bytes(path, file_format)
        if file_format != "procedural":
            _check_content(path, file_format, root, max_polygons)
    except OSError as error:
        raise Skip("file_unreadable", f"{path.name}: {error.strerror}") from None
    return file_format


def _check_regular(path: Path, root: Path) -> None:
    """Raise Skip unless `path` is a regular file in `root`. Opens nothing: a pipe would block for ever, a device never end."""
    try:
        real = Path(os.path.realpath(path))
        mode = real.stat().st_mode
    except (OSError, ValueError) as error:
        raise Skip("not_a_file", f"{_shown(str(path))}: {error}") from None
    if not stat.S_ISREG(mode):
        raise Skip("not_a_file", f"{_shown(path.name)} is a {_kind(mode)}")
    if not real.is_relative_to(root) or not Path(os.path.realpath(path.parent)).is_relative_to(root):
        raise Skip(
            "not_a_file", f"{_shown(path.name)} is a link to {_shown(str(real))}, outside of {root}; copy it there"
        )


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device"}
    return kinds.get(stat.S_IFMT(mode), "device")


def _check_bytes(path: Path, file_format: str) -> None:
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise Skip("file_empty", path.name)
    if head.startswith(LFS_MAGIC):
        raise Skip("lfs_pointer", "a Git LFS pointer, not the file that it stands for")
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise Skip("html_page", "a web page under a model's name")
    if file_format in MAGIC and not head.startswith(MAGIC[file_format]):
        raise Skip("wrong_magic", f"{path.name} starts with {head[:8]!r}")


def _check_content(path: Path, file_format: str, root: Path, max_polygons: int) -> None:
    folder = Folder(root)
    if file_format in ("glb", "gltf"):
        document = gltf.load(path)
        uris = {uri: urllib.parse.unquote(uri) for uri in gltf.uris(document)}
        found = folder.follow(path, file_format, uris.values())
        with path.open("rb") as stream:
            sizes = {uri: found[name] for uri, name in uris.items() if name in found}
            gltf.check(document, sizes, headers.reader(stream), max_polygons)
        return
    folder.follow(path, file_format, _named_by(path, file_format))
    with path.open("rb") as stream:
        read, size = headers.reader(stream), path.stat().st_size
        match file_format:
            case "stl":
                headers.check_stl(read(0, 512), size, max_polygons)
            case "ply":
                headers.check_ply(read, size, max_polygons)
            case "abc":
                headers.check_abc(read, size)
            case "fbx":
                headers.check_fbx(read, size)


def _named_by(path: Path, kind: str) -> list[str]:
    """Names of the files that `path` refers to; none for a usdz, whose files are members of it (`Folder._check_usdz`)."""
    return [] if kind == "usdz" else references(path, kind)


class Folder:
    """Resolves an asset's references; the asset may read the files below `root` only."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))

    def follow(self, path: Path, kind: str, names: Iterable[str]) -> dict[str, int]:
        """Check all files that `path` refers to by `names`, and, recursively, the files that these refer to.

        Returns name -> bytes for those of `names` that exist.
        """
        sizes: dict[str, int] = {}
        seen: set[Path] = {path}
        waiting = [(path, kind, names)]
        while waiting:
            source, kind, names = waiting.pop()
            if kind == "usdz":
                self._check_usdz(source)
            for name in names:
                for found in self._existing(name, source, kind):
                    if source == path:
                        sizes[name] = found.stat().st_size
                    if found not in seen:
                        seen.add(found)
                        if next_kind := self._look(found, kind):
                            waiting.append((found, next_kind, _named_by(found, next_kind)))
            if len(seen) > MAX_FILES:
                raise Skip("too_complex", f"{path.name} leads to more than {MAX_FILES} files")
        return sizes

    def _look(self, found: Path, kind: str) -> str:
        """Check a file that one of format `kind` refers to. Returns its format if it may refer to files itself, else ""."""
        if kind == "obj":
            return "mtl"
        with found.open("rb") as stream:
            read = headers.reader(stream)
            headers.check_picture(read, _shown(found.name), found.suffix)
            if kind == "dae" and read(0, 512).lstrip().startswith(b"<"):
                return "dae"
        suffix = found.suffix.lower().lstrip(".")
        return suffix if suffix in LAYERS else ""

    def _check_usdz(self, path: Path) -> None:
        """Check that references of the layers inside stay inside, and check the pictures inside like those of other formats."""
        for member, name in within_usdz(path):
            parts = _plain(name).split("/")
            depth = member.count("/")
            for part in parts:
                depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
                if depth < 0 or parts[0] == "" or SCHEME.match(name) or WINDOWS.match(name):
                    raise Skip("escapes_folder", f"{_shown(name)}, named by {_shown(member)}")
        with path.open("rb") as stream:
            read = headers.reader(stream)
            for found in headers.usdz_members(read, path.stat().st_size):
                headers.check_picture(headers.part(read, found.offset, found.size), _shown(found.name))

    def _existing(self, name: str, source: Path, kind: str) -> Iterator[Path]:
        """Existing files in root that Blender may open for `name`. Raises Skip: escapes_folder, not_a_file."""
        with contextlib.suppress(UnicodeEncodeError):  # a lone surrogate is in no file's name
            if len(os.fsencode(source.parent / name)) > MAX_PATH or "\0" in name:
                raise Skip("escapes_folder", f"{_shown(name)}, which is no path, or one of more than {MAX_PATH} bytes")
            for spelling in _spellings(name, kind):
                yield from self._resolve(spelling, source, kind)

    def _resolve(self, name: str, source: Path, kind: str) -> Iterator[Path]:
        forgiving = kind in FORGIVING
        text = _plain(name)
        upwards = ".." in text.split("/")
        if forgiving and text.lower().startswith("file:"):
            text = re.sub("^file:(//[^/]*(?=/))?(/(?=[a-z]:))?", "", text, flags=re.I)
        if (SCHEME.match(text) and (not forgiving or "://" in text)) or text.startswith("`"):
            raise Skip("escapes_folder", f"{_shown(name)}, a URL or an expression")
        if WINDOWS.match(text) and not upwards:
            if forgiving:  # a Windows path leads nowhere here
                return
            raise Skip("escapes_folder", f"{_shown(name)}, an absolute path")
        if text.startswith("/") and not forgiving:
            raise Skip("escapes_folder", f"{_shown(name)}, an absolute path")
        if text.startswith("//") and upwards:  # to Blender // means relative to the .blend, and there is none
            raise Skip("escapes_folder", _shown(name))
        for target in self._targets(text, source):
            real = Path(os.path.realpath(target))
            if not real.is_relative_to(self.root):
                if forgiving and not _exists(target, kind):
                    continue
                raise Skip("escapes_folder", f"{_shown(name)} leads to {_shown(str(real))}, outside of {self.root}")
            if os.path.exists(real) and not os.path.isdir(real):
                _check_regular(Path(target), self.root)
                yield Path(target)

    def _targets(self, text: str, source: Path) -> set[str]:
        """Absolute paths that `text` may mean: readers differ in whether links are resolved before "..", and in the base."""
        if text.startswith("/"):
            text = text.replace("//", "/")
        folders = (os.path.dirname(os.path.realpath(source)), os.path.abspath(source.parent))
        joined = {os.path.join(folder, text) for folder in folders}
        return joined | {os.path.normpath(target) for target in joined}


def _spellings(name: str, kind: str) -> list[str]:
    """Ways to read a name: as it is, URL-decoded, and, for FORGIVING formats, variants that Blender tries for a missing file."""
    found = [name, urllib.parse.unquote(name)]
    if kind in FORGIVING:
        bare = name.replace('"', "")
        found += [bare, bare.replace("_", " "), os.path.basename(_plain(bare))]
    return list(dict.fromkeys(spelling for spelling in found if spelling))


def _plain(name: str) -> str:
    return name.replace("\\", "/").strip()


def _exists(target: str, kind: str) -> bool:
    """True if `target` exists; for FBX, if its folder does, in any case: Blender's FBX reader searches that folder."""
    if kind != "fbx":
        return os.path.lexists(target)
    place = "/"
    for part in Path(target).parts[1:-1]:
        if not os.path.isdir(os.path.join(place, part)):
            with contextlib.suppress(OSError):
                part = next((other for other in os.listdir(place) if other.lower() == part.lower()), part)
        place = os.path.join(place, part)
    return os.path.isdir(place)


def _shown(name: str) -> str:
    """A name from a file, fit for a ledger: quoted, at most 200 characters, no lone surrogates."""
    return repr(name[:200].encode("utf-8", "replace").decode())
