"""Checks a file before Blender opens it: cheap, exact reasons for what would fail late or in silence, or read other files."""

from __future__ import annotations

import html
import os
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from pipeline.core.errors import Skip
from pipeline.core.paths import leaf
from pipeline.formats import gltf, headers, references
from pipeline.formats.references import Span
from pipeline.upgrade import copies, crate, cut_off, gltf_old, gltf_plain, mtl, plain_text
from pipeline.upgrade.folder import BINARY, UNREAD, USD, Folder, check_regular, named_by, outer, shown, unread
from pipeline.upgrade.nearby import slashed

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
ARCHIVES = {
    b"PK\x03\x04": "ZIP",
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "RAR",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}
STAGED = "staged"  # folder of the worker's in which copies for Blender stand
DECODED = "decoded"  # the same for texts in other encodings
RENAMED = "renamed"  # the same for USD under another format's name, which readers of USD go by
HEAD = 4096  # bytes that tell what a file is


@dataclass
class Checked:
    """A file that may go to Blender.

    path: the file, or a copy of it that Blender understands. facts: what was missing or mended, for the shard: missing_materials
    (number of MTL files that are nowhere), missing_textures, mended. pictures: base name in lower case -> files, the nearest
    first, for pictures that the file names and that are not there. missing: layers of a USD that are nowhere.
    textures: file of each picture that a PLY names, "" for one that is nowhere.
    """

    path: Path
    format: str
    facts: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, list[str]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    textures: tuple[str, ...] = ()

    def with_word(self, word: str) -> Checked:
        """Make one that says that one more thing was mended."""
        return replace(self, facts=self.facts | {"mended": sorted({*self.facts.get("mended", ()), word})})


def check(path: Path, root: Path | None = None, max_polygons: int = 20_000_000) -> str:
    """The file's format, by its suffix, if `prepare` finds nothing against it."""
    return prepare(path, root, max_polygons).format


def prepare(
    path: Path, root: Path | None = None, max_polygons: int = 20_000_000, scratch: Path | None = None
) -> Checked:
    """Check a file, and make a copy that Blender understands where it needs one.

    root: folder that the asset may read, with all subfolders; default: its own folder. scratch: folder of the worker, in which
    "staged" is made anew; None: no copy is made.

    No picture is decoded, and no file outside of `root` is opened. A picture or a material file outside of it counts as
    missing, and the copy does not name it. Raises Skip:
    unsupported_format, file_empty, lfs_pointer (the file, or a buffer that it needs), html_page, wrong_magic, truncated;
    not_a_file (the file, or one that it needs, is no regular file within root);
    escapes_folder (a buffer or another part of the shape is named by a URL or a path that leaves root);
    missing_file (a buffer that is needed);
    broken_gltf, unsupported_version, unsupported_extension, broken_xml, xml_entities, broken_header, bad_archive;
    too_many_polygons, image_too_large, decompression_bomb, archive_bomb, too_complex (more than any model has);
    file_unreadable (with the system's reason).
    """
    file_format = path.suffix.lower().lstrip(".")
    if file_format not in FORMATS:
        raise Skip("unsupported_format", f"{path.name}: {file_format or 'no suffix'}")
    root = path.parent if root is None else root
    check_regular(path, Path(os.path.realpath(root)))
    try:
        encoding = plain_text.encoding(path, file_format)
        if encoding and not scratch:
            return Checked(path, file_format)
        text = plain_text.plain(path, encoding, copies.anew(scratch / DECODED)) if encoding and scratch else path
        if file_format == "procedural":
            _check_bytes(text, file_format)
            return Checked(path, file_format)
        found = _content(text, file_format)
        _check_bytes(text, found)
        named = text
        if found != file_format and found in USD and scratch:
            named = copies.rewritten(text, (), copies.anew(scratch / RENAMED), f"{text.stem}.{found}")
        checked = _Asset(named, found, Folder(root, {named: path}), scratch).checked(max_polygons)
        checked = checked if text == path else checked.with_word("encoding")
        return checked if found == file_format else checked.with_word("suffix")
    except OSError as error:
        raise Skip("file_unreadable", f"{path.name}: {error.strerror}") from None


def why_empty(path: Path, root: Path, checked: Checked) -> Skip | None:
    """Why Blender found nothing in a file of which it could show something if it were whole; None if nothing tells."""
    if checked.format in USD and (name := unread(path, root)):
        said = f"{shown(name)}, which {path.name} is made of, is of a format that Blender's USD has no plug-in for"
        return Skip("unsupported_extension", f"{said}; flatten it to USD in the program that it comes from")
    if checked.missing:
        return Skip(
            "missing_file", f"{checked.missing[0][:200]!r}, which {path.name} is made of, is not there; fetch it too"
        )
    return None


def _content(path: Path, file_format: str) -> str:
    """Format of a file by its first bytes, where they belong to another one than its name's."""
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    found = headers.kind(head)
    same = {found, file_format} <= {"glb", "gltf"} or {found, file_format} <= USD - {"usdz"}
    return file_format if same or not found or head.startswith(MAGIC.get(file_format, ())) else found


def _check_bytes(path: Path, file_format: str) -> None:
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise Skip("file_empty", path.name)
    if head.startswith(LFS_MAGIC):
        raise Skip("lfs_pointer", "a Git LFS pointer, not the file that it stands for")
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise Skip("html_page", "a web page under a model's name")
    packed = next((name for magic, name in ARCHIVES.items() if head.startswith(magic)), "")
    if packed and not head.startswith(MAGIC.get(file_format, ())):
        raise Skip("wrong_magic", f"{path.name} is a {packed} archive, and no {file_format}; unpack it")
    if (file_format in MAGIC and not head.startswith(MAGIC[file_format])) or (
        file_format == "obj" and b"\0" in head[:16]
    ):
        raise Skip("wrong_magic", f"{path.name} starts with {head[:8]!r}, as no {file_format} does")


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
            case "usd" | "usda" | "usdc":
                return self._usd()
            case "usdz":
                return self._usdz()
            case "fbx":
                return self._fbx()
        with self.path.open("rb") as stream:
            read, size = headers.reader(stream), self.path.stat().st_size
            match self.format:
                case "stl":
                    headers.check_stl(read, size, max_polygons)
                    if b"FACET" in read(0, 512) and self.scratch:
                        return Checked(copies.stl(self.path, copies.anew(self.scratch / STAGED)), "stl")
                case "ply":
                    cut_off.check_ply(read, size, headers.check_ply(read, size, max_polygons))
                    return self._ply()
                case "abc":
                    headers.check_abc(read, size)
        # which pictures a .blend names, only Blender can read
        near = self.folder.near(self.path) if self.format == "blend" else {}
        return Checked(self.path, self.format, pictures=near)

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
        basis = gltf_plain.take_basis(document, files)
        rewritten = gltf_plain.plain(document) or document.old or document.odd or basis
        gone = gltf_plain.leave_out(document, files)
        relinked = not all(
            self.folder.opens(self.path, slashed(urllib.parse.unquote(uri)), file) for uri, file in files.items()
        )
        if not (rewritten or relinked or gone or self.folder.refused):
            return Checked(self.path, self.format)
        facts = {"missing_textures": gone} if gone else {}
        mended = [word for word, did in (("gltf_1", document.old), ("ktx2", basis), ("links", relinked)) if did]
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
                    f"{shown(uri)}, which holds geometry of {self.path.name}, is not there; fetch it too",
                )
            if _is_pointer(files[uri]):
                raise Skip("lfs_pointer", f"{shown(uri)} is a Git LFS pointer, not the geometry that it stands for")

    def _obj(self) -> Checked:
        with self.path.open("rb") as stream:
            cut_off.check_obj(headers.reader(stream), self.path.stat().st_size)
        named = dict.fromkeys(name for name in references.libraries(self.path) if name)
        own = self.folder.place(self.path).with_suffix(".mtl")  # read unasked
        unasked = [own.name] if os.path.lexists(own) and own.name not in named else []
        self.folder.follow(self.path, "obj", [*named, *unasked])
        files = {name: found for name in [*named, *unasked] if (found := self.folder.find(name, self.path, "obj"))}
        files = {name: found for name, found in files.items() if not _is_pointer(found)}
        # of a line of several the whole counts, too, as a name with blanks
        several = {name for name in named if len(name.split()) > 1 and set(name.split()) <= set(named)}
        refused = {name for source, name in self.folder.refused if source == self.path}
        gone = len((named.keys() | (refused & {*unasked})) - several - files.keys())
        facts: dict[str, Any] = {"missing_materials": gone} if gone else {}
        libraries = list(dict.fromkeys(files.values()))
        decoded = any(plain_text.encoding(path, "mtl") for path in libraries)
        # of several files on one line Blender reads none
        odd = not all(map(mtl.is_plain, libraries)) or bool(several - files.keys())
        relinked = not all(self.folder.opens(self.path, name, found) for name, found in files.items())
        stands_elsewhere = self.folder.place(self.path) != self.path and libraries
        if not (relinked or decoded or odd or self.folder.refused or stands_elsewhere):
            return Checked(self.path, "obj", facts, self.folder.moved())
        path = self.path
        if self.scratch:
            path = copies.obj(path, libraries, self._picture, copies.anew(self.scratch / STAGED))
        checked = Checked(path, "obj", facts | ({"mended": ["links"]} if relinked or self.folder.moved() else {}))
        checked = checked.with_word("materials") if odd else checked
        return checked.with_word("encoding") if decoded else checked

    def _ply(self) -> Checked:
        files = self.folder.follow(self.path, "picture", references.references(self.path, "ply"))
        relinked = not all(self.folder.opens(self.path, name, file) for name, file in files.items())
        textures = tuple(os.path.abspath(files[name]) if name in files else "" for name in references.ply(self.path))
        return Checked(self.path, "ply", {"mended": ["links"]} if relinked else {}, textures=textures)

    def _dae(self) -> Checked:
        spans, documents = references.collada(self.path)
        pictures = [span for span in spans if span.of_image]
        self.folder.follow(self.path, "dae", [*documents, *(span.name for span in spans if not span.of_image)])
        files = self.folder.follow(self.path, "picture", [span.name for span in pictures])
        self.folder.check_refused([] if documents else [self.path])  # a copy would not find documents
        relinked = not (documents or all(self.folder.opens(self.path, name, found) for name, found in files.items()))
        # the importer leaves these out, and says nothing
        gone = len({span.name for span in pictures} - files.keys())
        facts: dict[str, Any] = ({"missing_textures": gone} if gone else {}) | (
            {"mended": ["links"]} if relinked else {}
        )
        if not (relinked or self.folder.refused):
            return Checked(self.path, "dae", facts)

        def new(span: Span) -> bytes:
            found = files.get(span.name)
            return escape(urllib.parse.quote(os.path.abspath(found) if found else leaf(span.name))).encode()

        return Checked(self._rewritten(pictures, new), "dae", facts)

    def _usd(self) -> Checked:
        kind = BINARY if crate.is_crate(self.path) else "usda"
        files = self.folder.follow(self.path, kind, named_by(self.path, kind))
        found = {path for _, _, path in self.folder.found} - {self.path}
        layers = {path for path in found if references.is_usda(path) or crate.is_crate(path)}
        self.folder.check_refused([self.path, *layers])
        relinked = not all(self.folder.opens(source, outer(name), to) for source, name, to in self.folder.found)
        # some words of a binary file only look like names
        gone = sum(of != BINARY for of in self.folder.missing.values())
        gone += len({to for of, _, to in self.folder.found if to.suffix.lower() in UNREAD and references.is_usda(of)})
        facts: dict[str, Any] = ({"missing_layers": gone} if gone else {}) | ({"mended": ["links"]} if relinked else {})
        missing = tuple(self.folder.missing)
        if not (relinked or self.folder.refused or (self.folder.place(self.path) != self.path and files)):
            return Checked(self.path, self.format, facts, missing=missing)
        path = self.path
        if self.scratch:
            elsewhere = [
                source for source, name, to in self.folder.found if not self.folder.opens(source, outer(name), to)
            ]
            within = (
                sorted(layers) if not layers.isdisjoint([*elsewhere, *(of for of, _ in self.folder.refused)]) else []
            )
            path = copies.usd([path, *within], self.folder, copies.anew(self.scratch / STAGED))
        return Checked(path, self.format, facts, missing=missing)

    def _usdz(self) -> Checked:
        inside = dict(self.folder.check_usdz(self.path))
        gone = sum(name.lower().endswith(UNREAD) for name in references.references(self.path, "usdz"))
        facts: dict[str, Any] = {"missing_layers": gone} if gone else {}
        if not inside:
            return Checked(self.path, "usdz", facts)

        def new(span: Span) -> bytes:
            size, near = span.end - span.start, inside[span].encode()
            return copies.padded(near if 0 < len(near) <= size else leaf(span.name).encode(), size)

        mended = any(0 < len(near.encode()) <= span.end - span.start for span, near in inside.items())
        return Checked(self._rewritten(inside, new), "usdz", facts | ({"mended": ["links"]} if mended else {}))

    def _fbx(self) -> Checked:
        self.folder.follow(self.path, "fbx", references.references(self.path, "fbx"))
        with self.path.open("rb") as stream:
            headers.check_fbx(headers.reader(stream), self.path.stat().st_size)
            if is_text := references.is_fbx_text(self.path):
                cut_off.check_fbx(headers.reader(stream), self.path.stat().st_size)
        if not self.folder.refused:
            return Checked(self.path, "fbx", pictures=self.folder.moved(self.path))

        def new(span: Span) -> bytes:
            size = span.end - span.start
            refused = (self.path, span.name) in self.folder.refused
            name = leaf(span.name) if refused else copies.inwards(span.name)
            if is_text:
                return os.fsencode(html.escape(name))
            return copies.padded(name.encode(), size) if refused else os.fsencode(name).ljust(size, b"\0")

        path = self._rewritten((span for span in references.fbx(self.path) if span.name), new)
        return Checked(path, "fbx", pictures=self.folder.moved(path))

    def _rewritten(self, spans: Iterable[Span], new: Callable[[Span], bytes]) -> Path:
        """Copy of the file with other names; without a scratch folder the file itself."""
        if not self.scratch:
            return self.path
        changes = [(span.start, span.end, new(span)) for span in spans]
        return copies.rewritten(self.path, changes, copies.anew(self.scratch / STAGED))

    def _picture(self, name: str, source: Path) -> Path | None:
        return self.folder.find(name, source, "picture")


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(LFS_MAGIC)) == LFS_MAGIC
