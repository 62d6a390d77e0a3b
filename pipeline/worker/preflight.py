"""Checks a file before Blender opens it: cheap, exact reasons for what would fail late or in silence, or read other files."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.core.errors import Skip
from pipeline.formats import gltf, headers, references
from pipeline.formats.references import SCHEME, WINDOWS, within_usdz
from pipeline.upgrade import copies, gltf_old, gltf_plain
from pipeline.upgrade.nearby import MAX_PATH, Nearby, alike, base_name, slashed

FORMATS = frozenset("procedural glb gltf obj fbx stl ply usd usda usdc usdz dae abc blend".split())
LFS_MAGIC = b"version https://git-lfs"
MAGIC = {  # first bytes, for formats that have them
    "glb": (b"glTF", b"{"),  # the latter is a .gltf by another name
    "usdz": (b"PK",),
    "usdc": (b"PXR-USDC",),
    "usda": (b"#usda",),
    "ply": (b"ply",),
    "abc": (b"Ogawa", b"\x89HDF"),
    "blend": (b"BLENDER", b"\x28\xb5\x2f\xfd", b"\x1f\x8b"),
}
# exporters leave the author's own paths in these, which lead nowhere here; "picture": one that a gltf or usd names
FORGIVING = {"obj", "mtl", "fbx", "dae", "picture"}
USD = {"usd", "usda", "usdc", "usdz"}
USD_LAYERS = (".usd", ".usda", ".usdc", ".usdz", ".abc", ".mtlx", ".sdf")  # of names whose content makes up the shape
PICTURES = tuple(".png .jpg .jpeg .tga .bmp .tif .tiff .webp .exr .hdr .gif .dds .psd .jp2".split())
STAGED = "staged"  # folder of the worker's in which copies for Blender stand
LAYERS = {"usd", "usda", "usdc", "usdz", "dae"}  # formats whose files may refer to further files of a format in here
MAX_FILES = 5000  # that one asset may refer to, directly or not


@dataclass
class Checked:
    """A file that may go to Blender.

    path: the file, or a copy of it that Blender understands. facts: what was missing or mended, for the shard: missing_materials
    (number of MTL files that are nowhere), missing_textures, mended. pictures: base name in lower case -> files, the nearest
    first, for pictures that the file names and that are not there.
    """

    path: Path
    format: str
    facts: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, list[str]] = field(default_factory=dict)


def check(path: Path, root: Path | None = None, max_polygons: int = 20_000_000) -> str:
    """The file's format, by its suffix, if `prepare` finds nothing against it."""
    return prepare(path, root, max_polygons).format


def prepare(
    path: Path, root: Path | None = None, max_polygons: int = 20_000_000, scratch: Path | None = None
) -> Checked:
    """Check a file, and make a copy that Blender understands where it needs one.

    root: folder that the asset may read, with all subfolders; default: its own folder. scratch: folder of the worker, in which
    "staged" is made anew; None: no copy is made.

    No picture is decoded, and no file outside of `root` is opened. Raises Skip:
    unsupported_format, file_empty, lfs_pointer (the file, or a buffer that it needs), html_page, wrong_magic, truncated;
    not_a_file (the file, or one that it refers to, is no regular file within root);
    escapes_folder (a reference leads to a file outside of root, or is a URL; a needed one that leaves root at all);
    missing_file (a buffer that is needed);
    broken_gltf, unsupported_version, unsupported_extension, broken_xml, xml_entities, broken_header, bad_archive;
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
        if file_format == "procedural":
            return Checked(path, file_format)
        return _Asset(path, file_format, Folder(root), scratch).checked(max_polygons)
    except OSError as error:
        raise Skip("file_unreadable", f"{path.name}: {error.strerror}") from None


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


class _Asset:
    """One file and what it refers to: checked, and copied for Blender where that is needed."""

    def __init__(self, path: Path, file_format: str, folder: Folder, scratch: Path | None) -> None:
        self.path, self.format, self.folder, self.scratch = path, file_format, folder, scratch

    def checked(self, max_polygons: int) -> Checked:
        """Do all that `prepare` says."""
        match self.format:
            case "glb" | "gltf":
                return self._gltf(max_polygons)
            case "obj":
                return self._obj()
            case "dae":
                return self._dae()
            case "usda" | "usd" if references.is_usda(self.path):
                return self._usda()
        self.folder.follow(self.path, self.format, _named_by(self.path, self.format))
        with self.path.open("rb") as stream:
            read, size = headers.reader(stream), self.path.stat().st_size
            match self.format:
                case "stl":
                    head = read(0, 512)
                    headers.check_stl(head, size, max_polygons)
                    if b"FACET" in head and self.scratch:
                        return Checked(copies.stl(self.path, copies.anew(self.scratch / STAGED)), "stl")
                case "ply":
                    headers.check_ply(read, size, max_polygons)
                case "abc":
                    headers.check_abc(read, size)
                case "fbx":
                    headers.check_fbx(read, size)
        # which pictures a .blend names, only Blender can read
        near = self.folder.near(self.path) if self.format == "blend" else {}
        return Checked(self.path, self.format, pictures=near | self.folder.moved())

    def _gltf(self, max_polygons: int) -> Checked:
        document = gltf.load(self.path)
        if document.old:
            document = replace(document, json=gltf_old.upgraded(document.json))
        files: dict[str, Path] = {}
        for key, kind in (("buffers", "gltf"), ("images", "picture")):
            uris = {uri: urllib.parse.unquote(uri) for uri in gltf.uris(document, (key,))}
            found = self.folder.follow(self.path, kind, uris.values())
            files |= {uri: found[name] for uri, name in uris.items() if name in found}
        self._need_buffers(document, files)
        with self.path.open("rb") as stream:
            sizes = {uri: file.stat().st_size for uri, file in files.items()}
            gltf.check(document, sizes, headers.reader(stream), max_polygons)
        rewritten = gltf_plain.plain(document) or document.old or document.odd
        gone = gltf_plain.leave_out(document, files)
        relinked = not all(_opens(self.path, slashed(urllib.parse.unquote(uri)), file) for uri, file in files.items())
        if not (rewritten or relinked or gone):
            return Checked(self.path, self.format)
        facts = {"missing_textures": gone} if gone else {}
        mended = [word for word, did in (("gltf_1", document.old), ("links", relinked)) if did]
        path = self.path
        if self.scratch:
            try:
                if document.old:
                    copies.finish_skins(document, path, files)
                path = copies.gltf(document, path, files, copies.anew(self.scratch / STAGED))
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise Skip("broken_gltf", f"a skin is out of order ({type(error).__name__}: {error})") from None
        return Checked(path, self.format, facts | ({"mended": mended} if mended else {}))

    def _need_buffers(self, document: gltf.Document, files: dict[str, Path]) -> None:
        """Raise Skip unless the buffers that bufferViews are in can be read."""
        rows = document.rows("buffers")
        for number in sorted(gltf.needed_buffers(document)):
            uri = rows[number].get("uri") if 0 <= number < len(rows) else None
            if not isinstance(uri, str) or gltf.is_embedded(uri):
                continue
            if uri not in files:
                raise Skip(
                    "missing_file",
                    f"{_shown(uri)}, which holds geometry of {self.path.name}, is not there; fetch it too",
                )
            if _is_pointer(files[uri]):
                raise Skip("lfs_pointer", f"{_shown(uri)} is a Git LFS pointer, not the geometry that it stands for")

    def _obj(self) -> Checked:
        named = dict.fromkeys(name for name in references.libraries(self.path) if name)
        own = self.path.with_suffix(".mtl")  # read unasked
        unasked = [own.name] if os.path.lexists(own) and own.name not in named else []
        self.folder.follow(self.path, "obj", [*named, *unasked])
        files = {name: found for name in named if (found := self.folder.find(name, self.path, "obj"))}
        files = {name: found for name, found in files.items() if not _is_pointer(found)}
        # of a line of several the whole counts, too, as a name with blanks
        several = {name for name in named if len(name.split()) > 1 and set(name.split()) <= set(named)}
        gone = len(named.keys() - several - files.keys())
        facts: dict[str, Any] = {"missing_materials": gone} if gone else {}
        if all(_opens(self.path, name, found) for name, found in files.items()):
            return Checked(self.path, "obj", facts, self.folder.moved())
        path = self.path
        if self.scratch:
            libraries = list(dict.fromkeys([*files.values(), *([own] if unasked else [])]))
            path = copies.obj(path, libraries, self._picture, copies.anew(self.scratch / STAGED))
        return Checked(path, "obj", facts | {"mended": ["links"]})

    def _dae(self) -> Checked:
        spans, documents = references.collada(self.path)
        pictures = [span for span in spans if span.of_image]
        self.folder.follow(self.path, "dae", [*documents, *(span.name for span in spans if not span.of_image)])
        files = self.folder.follow(self.path, "picture", [span.name for span in pictures])
        if documents or all(_opens(self.path, name, found) for name, found in files.items()):
            return Checked(self.path, "dae")
        path = self.path
        if self.scratch:
            path = copies.dae(path, pictures, self._picture, copies.anew(self.scratch / STAGED))
        return Checked(path, "dae", {"mended": ["links"]})

    def _usda(self) -> Checked:
        files = self.folder.follow(self.path, "usda", _named_by(self.path, "usda"))
        if all(_opens(self.path, name, found) for name, found in files.items()):
            return Checked(self.path, self.format)
        path = self.path
        if self.scratch:
            path = copies.usda(path, lambda name, _: files.get(name), copies.anew(self.scratch / STAGED))
        return Checked(path, self.format, {"mended": ["links"]})

    def _picture(self, name: str, source: Path) -> Path | None:
        return self.folder.find(name, source, "picture")


def _opens(source: Path, name: str, found: Path) -> bool:
    """True if a reader that joins the folder of `source` and `name` opens the file that was found."""
    return "\\" not in name and os.path.normpath(source.parent / name) == os.path.normpath(found)


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(LFS_MAGIC)) == LFS_MAGIC


def _named_by(path: Path, kind: str) -> list[str]:
    """Names of the files that `path` refers to; none for a usdz, whose files are members of it (`Folder._check_usdz`)."""
    return [] if kind == "usdz" else references.references(path, kind)


class Folder:
    """Resolves an asset's references; the asset may read the files below `root` only. found: (source, name, file) of each."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.found: list[tuple[Path, str, Path]] = []
        self._near: dict[Path, Nearby] = {}

    def follow(self, path: Path, kind: str, names: Iterable[str]) -> dict[str, Path]:
        """Check all files that `path` refers to by `names`, and, recursively, the files that these refer to.

        Returns name -> the file that was found for it, for those of `names` that have one.
        """
        files: dict[str, Path] = {}
        seen: set[Path] = {path}
        waiting = [(path, kind, names)]
        while waiting:
            source, kind, names = waiting.pop()
            if kind == "usdz":
                self._check_usdz(source)
            for name in names:
                of = "picture" if kind in USD and not name.lower().endswith(USD_LAYERS) else kind
                for found in self._files(name, source, of):
                    if source == path:
                        files.setdefault(name, found)
                    if found not in seen:
                        seen.add(found)
                        if next_kind := self._look(found, of):
                            waiting.append((found, next_kind, _named_by(found, next_kind)))
            if len(seen) > MAX_FILES:
                raise Skip("too_complex", f"{path.name} leads to more than {MAX_FILES} files")
        return files

    def find(self, name: str, source: Path, kind: str) -> Path | None:
        """Return the file that `name` in `source` means, None if there is none. Raises Skip: escapes_folder, not_a_file."""
        return next(iter(self._files(name, source, kind)), None)

    def _files(self, name: str, source: Path, kind: str) -> list[Path]:
        """Files that Blender may open for `name`; if there is none, the nearest one with its base name."""
        found = list(self._existing(name, source, kind))
        near = None if found or kind in LAYERS else self._nearest(name, source)
        # geometry has to stand where it is said to, at most in another case
        if near and (kind != "gltf" or near.parent == Path(os.path.realpath(source.parent))):
            _check_regular(near, self.root)
            found = [near]
        self.found += [(source, name, path) for path in found[:1]]
        return found

    def _nearest(self, name: str, source: Path) -> Path | None:
        """File with the base name of `name` in any case: in the nearest folder, then the most alike, then the first."""
        parts = [part.casefold() for part in slashed(urllib.parse.unquote(name)).split("/")]
        near = self._nearby(source).get(base_name(urllib.parse.unquote(name)))
        return Path(min(near, key=lambda path: -alike(path.casefold().split("/"), parts))) if near else None

    def moved(self) -> dict[str, list[str]]:
        """Base name in lower case -> pictures that were found elsewhere than where the name leads."""
        made: dict[str, list[str]] = {}
        for source, name, path in self.found:
            if path.suffix.lower() in PICTURES and not _opens(source, name, path):
                for key in {base_name(name), base_name(urllib.parse.unquote(name))}:
                    made[key] = sorted({*made.get(key, ()), os.path.abspath(path)})
        return made

    def near(self, source: Path) -> dict[str, list[str]]:
        """Base name in lower case -> pictures of the folder nearest to that of `source` which has one."""
        return {key: files for key, files in self._nearby(source).everything().items() if key.endswith(PICTURES)}

    def _nearby(self, source: Path) -> Nearby:
        start = Path(os.path.realpath(source.parent))
        start = start if start.is_relative_to(self.root) else self.root
        return self._near.setdefault(start, Nearby(str(start), str(self.root)))

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
            parts = slashed(name).split("/")
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
        text = slashed(name)
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
        found += [bare, bare.replace("_", " "), os.path.basename(slashed(bare))]
    return list(dict.fromkeys(spelling for spelling in found if spelling))


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
