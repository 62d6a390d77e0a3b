"""Collections of scenes, in folders or in archives that are never unpacked as a whole; and the files of one scene.

A collection's layout is a function `scene_of(path in the collection) -> (scene, file) | None`. Files are told apart by
the names that `scene_of` gives, so no name out of an archive ever becomes a path.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

from pipeline.core.budget import DiskBudget
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.core.records import Fetched, Item, item_rng
from pipeline.formats import archives
from pipeline.formats.archives import Member

SceneOf = Callable[[str], tuple[str, str] | None]
MAX_FILES = 10_000  # of one scene
DEPTH = 5  # folders below the input


@dataclass
class ArchivedScene:
    """A scene of an archive. files: name -> (where, size) of a member. fault: why not to read the scene, or ""."""

    key: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    fault: str = ""
    lower: set[str] = field(default_factory=set)

    def add(self, name: str, member: Member) -> None:
        """Add a file. Two files of one name (ignoring case), too many files, or a faulty member make the scene faulty."""
        if name.lower() in self.lower:
            self.fault = self.fault or f"two files are called {name!r}"
        elif len(self.files) >= MAX_FILES:
            self.fault = self.fault or f"more than {MAX_FILES} files"
        else:
            self.files[name] = (member.where, member.size)
            self.lower.add(name.lower())
        self.fault = self.fault or member.fault

    def item(self, source: str, archive: Path) -> Item:
        """Make the Item that a source lists for this scene."""
        files = [[name, *place] for name, place in self.files.items()]
        return Item(self.key, source, url=str(archive), extra={"files": files, "fault": self.fault})


def found(archive: Path, scene_of: SceneOf, seed: int) -> Iterator[ArchivedScene]:
    """Yield the scenes of an archive: those of a .zip in an order that the seed gives, else in the archive's order.

    Tar files are read lazily: a scene ends where the next begins; files of it that come later are ignored.
    """
    if archives.suffix_of(archive) in (".zip", ".7z"):
        groups = index(archive, scene_of)
        keys = list(groups)
        if not archives.is_sequential(archive):
            keys = [keys[i] for i in item_rng(seed, "archive", "order").permutation(len(keys))]
        yield from (groups[key] for key in keys)
        return
    seen: set[str] = set()
    for key, placed in itertools.groupby(_placed(archive, scene_of), key=lambda one: one[0]):
        if key not in seen:
            seen.add(key)
            scene = ArchivedScene(key)
            for _, name, member in placed:
                scene.add(name, member)
            yield scene


def key_of(item: Item) -> str:
    """Key of an item's scene in its archive."""
    key: str = item.extra.get("key", item.uid)
    return key


def stored_scene(item: Item) -> ArchivedScene:
    """Restore from an item the scene that `ArchivedScene.item` stored in it."""
    files = {name: (where, size) for name, where, size in item.extra.get("files", [])}
    return ArchivedScene(key_of(item), files, item.extra.get("fault", ""))


def index(archive: Path, scene_of: SceneOf) -> dict[str, ArchivedScene]:
    """Map key -> scene of an archive, in the order of their first files. UserError if the archive cannot be read."""
    groups: dict[str, ArchivedScene] = {}
    for key, name, member in _placed(archive, scene_of):
        groups.setdefault(key, ArchivedScene(key)).add(name, member)
    return groups


def _placed(archive: Path, scene_of: SceneOf) -> Iterator[tuple[str, str, Member]]:
    for member in archives.listed(archive):
        if place := scene_of(member.name):
            yield *place, member


def folders(root: Path, is_scene: Callable[[Path], bool], seed: int, depth: int = DEPTH) -> Iterator[Path]:
    """Yield folders at or below `root` that are scenes, none within another, in an order that the seed gives; lazily."""
    if is_scene(root):
        yield root
    elif depth:
        children = inner(root)
        for i in item_rng(seed, root.name, "order").permutation(len(children)):
            yield from folders(children[i], is_scene, seed, depth - 1)


def inner(folder: Path) -> list[Path]:
    """Folders in a folder, sorted by name, but for hidden ones."""
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def never_empty(items: Iterator[Item], what: str, hint: str) -> Iterator[Item]:
    """Pass items on. UserError if there is none."""
    if (first := next(items, None)) is None:
        raise UserError(what, hint)
    yield first
    yield from items


# ---- one scene


class Files:
    """Files of one scene that `scene_of` knows, in a folder or an archive."""

    def __init__(self, item: Item, path: Path, scene_of: SceneOf) -> None:
        """Raises Skip: unsafe_archive, missing."""
        if fault := item.extra.get("fault"):
            raise Skip("unsafe_archive", fault)
        self.path = path
        self.paths: dict[str, Path] = {}
        self.members: dict[str, tuple[int, int]] = {}
        if path.is_dir():
            for file in _files_below(path, 3):
                if place := scene_of(f"{path.name}/{file.relative_to(path).as_posix()}"):
                    self.paths.setdefault(place[1], file)
        elif path.is_file():
            self.members = stored_scene(item).files
        else:
            raise Skip("missing", str(path))

    def names(self) -> list[str]:
        """Names of all files, sorted."""
        return sorted(self.paths or self.members)

    def read(self, name: str) -> bytes:
        """Read one file. Raises Skip: image_missing, broken_archive, archive_bomb."""
        if name in self.paths:
            return read_file(self.paths[name])
        if name in self.members:
            return archives.read(self.path, *self.members[name])
        raise Skip("image_missing", f"no {name} in {self.path.name}")


def _files_below(folder: Path, depth: int) -> Iterator[Path]:
    for child in sorted(folder.iterdir()):
        if child.is_file():
            yield child
        elif depth and child.is_dir():
            yield from _files_below(child, depth - 1)


def read_file(path: Path) -> bytes:
    """Read a file that should be an image or a pose. Raises Skip: image_missing, broken_image (absurdly large)."""
    try:
        if path.stat().st_size > archives.MAX_MEMBER:
            raise Skip("broken_image", f"{path} is larger than any picture")
        return path.read_bytes()
    except OSError as error:
        raise Skip("image_missing", f"{path}: {error.strerror}") from None


def inside(name: str, folder: Path, roots: Sequence[Path]) -> Path:
    """Resolve a path that a file of the scene names, relative to `folder`. Raises Skip("escapes_folder").

    roots: folders that the path has to stay in, also after links are followed.
    """
    if "\0" in name:
        raise Skip("escapes_folder", f"{name[:80]!r} is no path")
    path = folder / name
    resolved = path.resolve()
    if Path(name).is_absolute() or not any(resolved.is_relative_to(root.resolve()) for root in roots):
        raise Skip("escapes_folder", f"{name[:80]!r} leads out of {folder}; copy the pictures into it")
    return path


# ---- from sequential archives into folders


@dataclass
class _Cursor:
    """Position in a sequential archive, kept between batches: going on is free, going back means reading again from the start."""

    archive: Path
    members: Iterator[tuple[Member, bytes]]
    last: int = -1

    def __iter__(self) -> Iterator[tuple[Member, bytes]]:
        for member, data in self.members:
            self.last = member.where
            yield member, data

    def close(self) -> None:
        self.members.close()  # type: ignore[attr-defined]  # a generator


_idle: WeakKeyDictionary[DiskBudget, _Cursor] = WeakKeyDictionary()  # at most one per run; ends with its DiskBudget
_lock = threading.Lock()


def _idle_cursor(disk_budget: DiskBudget, instead: _Cursor | None = None) -> _Cursor | None:
    """Take the cursor that is kept between batches, and keep `instead` from now on."""
    with _lock:
        cursor = _idle.pop(disk_budget, None)
        if instead:
            _idle[disk_budget] = instead
    return cursor


def _cursor(disk_budget: DiskBudget, archive: Path, first: float) -> _Cursor:
    """Take the idle cursor if it stands before the member `first`, else open a new one."""
    cursor = _idle_cursor(disk_budget)
    if cursor and cursor.archive == archive and cursor.last < first:
        return cursor
    if cursor:
        cursor.close()
    return _Cursor(archive, archives.walk(archive))


def close_cursor(disk_budget: DiskBudget, instead: _Cursor | None = None) -> None:
    """Close the cursor kept between batches, for example because its archive will be deleted, and keep `instead`, if any."""
    if cursor := _idle_cursor(disk_budget, instead):
        cursor.close()


@dataclass
class _Waiting:
    item: Item
    size: int
    missing: set[str]
    begun: bool = False


class Staging:
    """Copies scenes of one sequential archive into folders, within the disk budget. `run` yields each item once."""

    def __init__(
        self, archive: Path, scene_of: SceneOf, disk_budget: DiskBudget, folder_of: Callable[[Item], Path]
    ) -> None:
        self.archive = archive
        self.scene_of = scene_of
        self.disk_budget = disk_budget
        self.folder_of = folder_of
        self.waiting: dict[str, _Waiting] = {}
        self.first: float = float("inf")

    def run(self, items: Iterable[Item], known: Mapping[str, ArchivedScene] | None = None) -> Iterator[Fetched]:
        """Yield each scene with its last file. known: scenes of the archive by key; default: those stored in the items.

        Skip: unsafe_archive, no_images, broken_archive, archive_bomb, too_large, interleaved (its files lie between those
        of others, and there is no room for all of them). Retry: stopped.
        """
        for item in items:
            key = key_of(item)
            there = stored_scene(item) if known is None else known.get(key, ArchivedScene(key))
            if there.fault:
                yield item, Skip("unsafe_archive", there.fault)
            elif not there.files:
                yield item, Skip("no_images", f"nothing of it is in {self.archive.name}")
            elif self._is_there(item, there):
                yield item, self.folder_of(item)
            else:
                self.waiting[key] = _Waiting(item, sum(size for _, size in there.files.values()), set(there.files))
                self.first = min(self.first, *(where for where, _ in there.files.values()))
        if not self.waiting:
            return
        cursor = _cursor(self.disk_budget, self.archive, self.first)
        whole = False
        try:
            for member, data in cursor:
                if (got := self._take(member, data)) is not None:
                    yield got
                if not self.waiting:
                    whole = True
                    return
            failure: Skip | Retry = Skip("broken_archive", f"{self.archive.name} ended before the scene did")
        except (Skip, Retry) as error:
            failure = error
        finally:
            close_cursor(self.disk_budget, instead=cursor) if whole else cursor.close()
        yield from [(one.item, failure) for one in self.waiting.values()]

    def _is_there(self, item: Item, there: ArchivedScene) -> bool:
        """True if an earlier session left the whole scene in its folder; parts of one are removed."""
        files = {self.folder_of(item) / name: size for name, (_, size) in there.files.items()}
        if all(path.is_file() and path.stat().st_size == size for path, size in files.items()):
            return True
        for path in files:
            path.unlink(missing_ok=True)
        self.disk_budget.release(item.uid)
        return False

    def _take(self, member: Member, data: bytes) -> Fetched | None:
        """Write one member if its scene is wanted. Returns the item's end if this was its last file or failed, else None."""
        place = self.scene_of(member.name)
        one = self.waiting.get(place[0]) if place else None
        if place is None or one is None or place[1] not in one.missing:
            return None
        key, name = place
        folder = self.folder_of(one.item)
        try:
            if member.fault:
                raise Skip("unsafe_archive", member.fault)
            self._reserve(one)
            archives.write(folder, name, data)
        except Skip as failure:
            del self.waiting[key]
            return one.item, failure
        one.missing.remove(name)
        if one.missing:
            return None
        del self.waiting[key]
        return one.item, folder

    def _reserve(self, one: _Waiting) -> None:
        """Reserve disk for a whole scene. Waits, unless other scenes are half done: only later members can finish these."""
        if one.begun:
            return
        if not any(other.begun for other in self.waiting.values()):
            self.disk_budget.reserve(one.item.uid, one.size)
        elif not self.disk_budget.try_reserve(one.item.uid, one.size):
            raise Skip("interleaved", f"the files of scenes alternate in {self.archive.name}; --raw-gb gives more room")
        one.begun = True
