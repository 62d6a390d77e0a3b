"""Resolves the names in an asset's files: to files below the folder that it may read, or to nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
import posixpath
import re
import stat
import urllib.parse
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from pipeline.core.errors import Skip
from pipeline.formats import headers, references
from pipeline.formats.references import SCHEME, WINDOWS, Span, within_usdz
from pipeline.upgrade import crate, plain_text
from pipeline.upgrade.nearby import MAX_PATH, Nearby, alike, base_name, slashed

# exporters leave the author's own paths in these, which lead nowhere here; "picture": one that a gltf, dae or usd names
FORGIVING = {"obj", "mtl", "fbx", "dae", "picture"}
OPTIONAL = FORGIVING - {"dae"}  # without these an object is shown all the same
USD = {"usd", "usda", "usdc", "usdz"}
UNREAD = (".drc", ".abc")  # layers of formats for which Blender's USD has no plug-in
USD_LAYERS = (".usd", ".usda", ".usdc", ".usdz", ".mtlx", ".sdf", *UNREAD)  # of names whose content makes up the shape
ASSETS = (
    *UNREAD,
    *".obj .fbx .gltf .glb .stl .ply .dae .3ds .splat .spz".split(),
)  # which plug-ins of others take as layers
PICTURES = tuple(".png .jpg .jpeg .tga .bmp .tif .tiff .webp .exr .hdr .gif .dds .psd .jp2".split())
BINARY = "usdc"  # some of whose words only look like a layer's name, so what leads elsewhere is left to Blender's walls
PAINTED = {"mtl", "fbx", "picture"}  # of formats that name pictures alone, besides what is followed as a layer
LAYERS = USD | {"dae"}  # formats whose files may refer to further files of a format in here
CODES = ("cp1252", "cp932", "gbk", "cp1251", "cp437")  # of names: Western European, Japanese, Chinese, Cyrillic, DOS
MAX_MEMBER = 2**26  # bytes of a binary layer in an archive whose words are read
MAX_FILES = 5000  # that one asset may refer to, directly or not


class Folder:
    """Resolves an asset's references; the asset may read the files below `root` only.

    found: (source, name, file) of each. refused: (source, name) -> why, of what is optional and leads out of root, or to no
    file: it counts as missing, and no reader may come to see the name. missing: layer of a USD that is nowhere -> kind of the
    file that names it. originals: copy of a file -> the file, from whose folder its names lead.
    """

    def __init__(self, root: Path, originals: Mapping[Path, Path] | None = None) -> None:
        self.root, self.originals = Path(os.path.realpath(root)), originals or {}
        self.found: list[tuple[Path, str, Path]] = []
        self.refused: dict[tuple[Path, str], Skip] = {}
        self.missing: dict[str, str] = {}
        self._near: dict[Path, Nearby] = {}

    def follow(self, path: Path, kind: str, names: Iterable[str]) -> dict[str, Path]:
        """Check all files that `path` refers to by `names`, and, recursively, the files that these refer to.

        Returns name -> the file that was found for it, for those of `names` that have one. Raises Skip: escapes_folder,
        not_a_file (of what is not optional), too_complex, and what a look into the files finds; OSError.
        """
        files: dict[str, Path] = {}
        seen: set[Path] = {path}
        waiting = [(path, kind, names)]
        while waiting:
            source, kind, names = waiting.pop()
            if kind == "usdz":
                self.check_usdz(source)
            for name in names:
                of = "picture" if kind in USD and not _is_layer(name) else kind
                files_of = self._files(name, source, of)
                if of in USD and not files_of:
                    self.missing.setdefault(name, of)
                for found in files_of:
                    if source == path:
                        files.setdefault(name, found)
                    if found not in seen:
                        seen.add(found)
                        if next_kind := self._look(found, of):
                            waiting.append((found, next_kind, named_by(found, next_kind)))
            if len(seen) > MAX_FILES:
                raise Skip("too_complex", f"{path.name} leads to more than {MAX_FILES} files")
        return files

    def find(self, name: str, source: Path, kind: str) -> Path | None:
        """Return the file that `name` in `source` means, None if there is none. Raises Skip: escapes_folder, not_a_file."""
        return next(iter(self._files(name, source, kind)), None)

    def place(self, source: Path) -> Path:
        """Path from whose folder the names in a file lead: its own, unless it is a copy."""
        return self.originals.get(source, source)

    def opens(self, source: Path, name: str, found: Path) -> bool:
        """True if a reader that joins the folder of `source`, or of what it is a copy of, and `name` opens the file found."""
        return opens(self.place(source), name, found)

    def within(self, name: str, source: Path) -> str:
        """Absolute path that a relative name of a picture or layer without a file means, if it is below root; else ""."""
        path = os.path.normpath(self.place(source).parent.absolute() / name)
        relative = not os.path.isabs(name) and not SCHEME.match(name) and "\0" not in name
        if not relative or not name.lower().endswith((*PICTURES, *USD_LAYERS)):
            return ""
        return path if Path(os.path.realpath(path)).is_relative_to(self.root) else ""

    def check_refused(self, rewritten: Collection[Path]) -> None:
        """Raise Skip if a name that no reader may see stands in another file than those that are rewritten."""
        for (source, _), why in self.refused.items():
            if source not in rewritten:
                raise why

    def _files(self, name: str, source: Path, kind: str) -> list[Path]:
        """Files that Blender may open for `name`; if there is none, the nearest one with its base name."""
        place = outer(name)
        try:
            found = list(self._existing(place, source, kind))
        except Skip as why:
            if kind == BINARY:
                return []
            if kind not in OPTIONAL:
                raise
            self.refused[source, name] = why
            found = []
        near = None if found or kind in LAYERS else self._nearest(place, source, kind)
        # geometry has to stand where it is said to, at most in another case
        if near and (kind != "gltf" or near.parent == Path(os.path.realpath(self.place(source).parent))):
            check_regular(near, self.root)
            found = [near]
        if kind in OPTIONAL:
            found = [path for path in found if os.access(path, os.R_OK)]
        self.found += [(source, name, path) for path in found[:1]]
        return found

    def _nearest(self, name: str, source: Path, kind: str) -> Path | None:
        """File with the base name of `name` in any case: in the nearest folder, then the most alike, then the first.

        For want of one, of what can only be a picture, the only picture of its stem.
        """
        parts = [part.casefold() for part in slashed(urllib.parse.unquote(name)).split("/")]
        bases = [base_name(spelling) for spelling in _decoded(urllib.parse.unquote(name))]
        near = next(filter(None, map(self._nearby(source).get, bases)), [])
        if not near and kind in PAINTED:
            near = next(filter(None, (self._nearby(source).of_stem(base, PICTURES) for base in bases)), [])
        return Path(min(near, key=lambda path: -alike(path.casefold().split("/"), parts))) if near else None

    def moved(self, to: Path | None = None) -> dict[str, list[str]]:
        """Base name in lower case -> pictures that were found elsewhere than where the name leads.

        to: a copy of the files that name them, which stands elsewhere.
        """
        made: dict[str, list[str]] = {}
        for source, name, path in self.found:
            if path.suffix.lower() in PICTURES and not opens(to or self.place(source), name, path):
                for key in {base_name(name), base_name(urllib.parse.unquote(name))}:
                    made[key] = sorted({*made.get(key, ()), os.path.abspath(path)})
        return made

    def near(self, source: Path) -> dict[str, list[str]]:
        """Base name in lower case -> pictures and .blend files of the folder nearest to that of `source` which has one."""
        itself, kinds = base_name(source.name), (*PICTURES, ".blend")
        found = self._nearby(source).everything().items()
        return {key: files for key, files in found if key.endswith(kinds) and key != itself}

    def _nearby(self, source: Path) -> Nearby:
        start = Path(os.path.realpath(self.place(source).parent))
        start = start if start.is_relative_to(self.root) else self.root
        return self._near.setdefault(start, Nearby(str(start), str(self.root)))

    def _look(self, found: Path, kind: str) -> str:
        """Check a file that one of format `kind` refers to. Returns its format if it may refer to files itself, else ""."""
        if kind == "obj":
            return "mtl"
        with found.open("rb") as stream:
            read = headers.reader(stream)
            headers.check_picture(read, shown(found.name), found.suffix)
            if kind == "dae" and read(0, 512).lstrip().startswith(b"<"):
                return "dae"
        suffix = found.suffix.lower().lstrip(".")
        if suffix in USD and crate.is_crate(found):
            return BINARY
        return suffix if suffix in LAYERS else ""

    def check_usdz(self, path: Path) -> list[tuple[Span, str]]:
        """Check that layers inside name layers inside, and check the pictures inside like those of other formats.

        Returns the names of pictures that lead out of the archive, which are `refused`, or to no member of it, in the order of
        the file, each with the relative path of the member that has its base name or, as the only one, its stem, else "".
        """
        with path.open("rb") as stream:
            read = headers.reader(stream)
            members = list(headers.usdz_members(read, path.stat().st_size))
            for found in members:
                headers.check_picture(headers.part(read, found.offset, found.size), shown(found.name))
        names = [member.name for member in members]
        leave = []
        for member, span in within_usdz(path):
            folder = posixpath.dirname(member)
            if _leaves(member, span.name):
                why = Skip("escapes_folder", f"{shown(span.name)}, named by {shown(member)}")
                if _is_layer(span.name):
                    raise why
                self.refused[path, span.name] = why
            elif posixpath.normpath(posixpath.join(folder, span.name)) in names or not _is_picture(span.name):
                continue
            near = _member_like(span.name, names)
            if near or (path, span.name) in self.refused:
                leave.append((span, posixpath.relpath(near, folder or ".") if near else ""))
        return leave

    def _existing(self, name: str, source: Path, kind: str) -> Iterator[Path]:
        """Existing files in root that Blender may open for `name`. Raises Skip: escapes_folder, not_a_file."""
        with contextlib.suppress(UnicodeEncodeError):  # a lone surrogate is in no file's name
            if len(os.fsencode(self.place(source).parent / name)) > MAX_PATH or "\0" in name:
                raise Skip("escapes_folder", f"{shown(name)}, which is no path, or one of more than {MAX_PATH} bytes")
            for spelling in _spellings(name, kind):
                yield from self._resolve(spelling, source, kind)

    def _resolve(self, name: str, source: Path, kind: str) -> Iterator[Path]:
        forgiving = kind in FORGIVING
        text = slashed(name)
        upwards = ".." in text.split("/")
        if forgiving and text.lower().startswith("file:"):
            text = re.sub("^file:(//[^/]*(?=/))?(/(?=[a-z]:))?", "", text, flags=re.I)
        if (SCHEME.match(text) and (not forgiving or "://" in text)) or text.startswith("`"):
            raise Skip("escapes_folder", f"{shown(name)}, a URL or an expression")
        if WINDOWS.match(text) and not upwards:
            if forgiving:  # a Windows path leads nowhere here
                return
            raise Skip("escapes_folder", f"{shown(name)}, an absolute path")
        if text.startswith("/") and not forgiving:
            raise Skip("escapes_folder", f"{shown(name)}, an absolute path")
        if text.startswith("//") and upwards:  # to Blender // means relative to the .blend, and there is none
            raise Skip("escapes_folder", shown(name))
        for target in self._targets(text, source):
            real = Path(os.path.realpath(target))
            if not real.is_relative_to(self.root):
                if forgiving and not _exists(target, kind):
                    continue
                raise Skip("escapes_folder", f"{shown(name)} leads to {shown(str(real))}, outside of {self.root}")
            if os.path.exists(real) and not os.path.isdir(real):
                check_regular(Path(target), self.root)
                yield Path(target)

    def _targets(self, text: str, source: Path) -> list[str]:
        """Absolute paths that `text` may mean: readers differ in whether links are resolved before "..", and in the base.

        The first is what a reader does that knows nothing of links.
        """
        if text.startswith("/"):
            text = text.replace("//", "/")
        place = self.place(source)
        folders = (os.path.abspath(place.parent), os.path.dirname(os.path.realpath(place)))
        joined = [os.path.join(folder, text) for folder in folders]
        return list(dict.fromkeys([*joined, *map(os.path.normpath, joined)]))


def outer(name: str) -> str:
    """File that a name of USD leads to: of one within an archive, `a.usdz[b.png]`, the archive."""
    return re.sub(r"(\.usdz)\[.*", r"\1", name, flags=re.I | re.S)


def _is_layer(name: str) -> bool:
    """True for a name of USD that may stand for a part of the shape, as expressions may."""
    return name.startswith("`") or name.lower().rstrip("]").endswith(USD_LAYERS)


def named_by(path: Path, kind: str) -> list[str]:
    """Names of the files that `path` refers to; none for a usdz, whose files are members of it (`Folder.check_usdz`)."""
    if kind == "mtl" and plain_text.encoding(path, kind):
        maps = filter(None, map(references.map_of, plain_text.lines(path, references.LINE)))
        return [name for _, name in itertools.islice(maps, references.MAX_NAMES)]
    if kind == BINARY:
        found = dict.fromkeys(word for word in crate.words(path) if word.lower().endswith((*PICTURES, *USD_LAYERS)))
        return [*itertools.islice(found, references.MAX_NAMES)]
    return [] if kind == "usdz" else references.references(path, kind)


def unread(path: Path, root: Path) -> str:
    """Name of a file that a USD or a layer of it is made of and that Blender's USD has no plug-in for; "" if it names none."""
    layers = [path]
    if path.suffix.lower() != ".usdz":
        kind, folder = BINARY if crate.is_crate(path) else "usda", Folder(root)
        with contextlib.suppress(Skip):
            folder.follow(path, kind, named_by(path, kind))
        layers += [found for _, _, found in folder.found]
    names = (name for layer in dict.fromkeys(layers) for name in _words(layer))
    return next((name for name in names if outer(name).lower().endswith(ASSETS)), "")


def _words(layer: Path) -> Iterator[str]:
    """Yield what a USD of any kind names, and other words; nothing of other files. Of an archive, its members too."""
    if crate.is_crate(layer):
        yield from crate.words(layer)
    elif layer.suffix.lower() == ".usdz":
        yield from (span.name for _, span in references.within_usdz(layer))
        with layer.open("rb") as stream:
            read = headers.reader(stream)
            for member in headers.usdz_members(read, layer.stat().st_size):
                yield member.name
                if read(member.offset, len(crate.MAGIC)) == crate.MAGIC and member.size < MAX_MEMBER:
                    yield from crate.words_of(read(member.offset, member.size))
    elif references.is_usda(layer):
        yield from references.references(layer, "usda")


def opens(source: Path, name: str, found: Path) -> bool:
    """True if a reader that joins the folder of `source` and `name` opens the file that was found."""
    return "\\" not in name and os.path.normpath(source.parent / name) == os.path.normpath(found)


def check_regular(path: Path, root: Path) -> None:
    """Raise Skip unless `path` is a regular file in `root`. Opens nothing: a pipe would block for ever, a device never end."""
    try:
        real = Path(os.path.realpath(path))
        mode = real.stat().st_mode
    except (OSError, ValueError) as error:
        raise Skip("not_a_file", f"{shown(str(path))}: {error}") from None
    if not stat.S_ISREG(mode):
        raise Skip("not_a_file", f"{shown(path.name)} is a {_kind(mode)}")
    if not real.is_relative_to(root) or not Path(os.path.realpath(path.parent)).is_relative_to(root):
        raise Skip(
            "not_a_file", f"{shown(path.name)} is a link to {shown(str(real))}, outside of {root}; copy it there"
        )


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device"}
    return kinds.get(stat.S_IFMT(mode), "device")


def _is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURES)


def _member_like(name: str, names: list[str]) -> str:
    """Member of an archive with the base name of `name`; else the only picture with its stem; else ""."""
    base = base_name(name)
    found = [member for member in names if base_name(member) == base][:1]
    if not found:
        stem = posixpath.splitext(base)[0]
        found = [member for member in names if _is_picture(member) and posixpath.splitext(base_name(member))[0] == stem]
    return found[0] if len(found) == 1 else ""


def _leaves(member: str, name: str) -> bool:
    """True for a name in a member of an archive that leads out of the archive."""
    parts = slashed(name).split("/")
    if parts[0] == "" or SCHEME.match(name) or WINDOWS.match(name) or name.startswith("`"):
        return True
    depth = member.count("/")
    for part in parts:
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return True
    return False


def _spellings(name: str, kind: str) -> list[str]:
    """Ways to read a name: as it is, URL-decoded, and, for FORGIVING formats, variants that Blender tries for a missing file."""
    found = [name, urllib.parse.unquote(name)]
    if kind in FORGIVING:
        bare = name.replace('"', "")
        found += [bare, bare.replace("_", " "), os.path.basename(slashed(bare))]
    return list(dict.fromkeys(spelling for spelling in found if spelling))


def _decoded(name: str) -> list[str]:
    """A name, or, of one whose bytes are no UTF-8, what they say in the encodings of writers that knew no other."""
    try:
        data = name.encode("utf-8", "surrogateescape")
        return [data.decode()]
    except UnicodeEncodeError:  # a lone surrogate is in no file's name
        return [name]
    except UnicodeDecodeError:
        found = (data.decode(code, "replace") for code in CODES)
        return [text for text in found if "\ufffd" not in text]


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


def shown(name: str) -> str:
    """A name from a file, fit for a ledger: quoted, at most 200 characters, no lone surrogates."""
    return repr(name[:200].encode("utf-8", "replace").decode())
