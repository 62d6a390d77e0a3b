"""Collections of scenes: folders, or archives that are never unpacked as a whole. And the files of one scene, wherever they lie.

A collection's layout is a function `scene_of(path in the collection) -> (scene, file) | None`. Files are told apart by
what it calls them, so no name out of an archive ever becomes a path.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from pipeline.core.budget import DiskBudget
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.core.records import Got, Item, item_rng
from pipeline.formats import archives
from pipeline.formats.archives import Member

SceneOf = Callable[[str], tuple[str, str] | None]
MAX_FILES = 10_000  # of one scene
DEPTH = 5  # folders below the input


@dataclass
class Found:
    """A scene of an archive: file -> (where, size) of its members, and why not to touch it, or ""."""

    key: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    fault: str = ""
    lower: set[str] = field(default_factory=set)

    def add(self, name: str, member: Member) -> None:
        """One more file. Two of one name, also if only their case differs, are a fault, and so is a faulty member."""
        if name.lower() in self.lower:
            self.fault = self.fault or f"two files are called {name!r}"
        elif len(self.files) >= MAX_FILES:
            self.fault = self.fault or f"more than {MAX_FILES} files"
        else:
            self.files[name] = (member.where, member.size)
            self.lower.add(name.lower())
        self.fault = self.fault or member.fault

    def item(self, source: str, archive: Path, **more: Any) -> Item:
        """As a line of a source's list."""
        files = [[name, *place] for name, place in self.files.items()]
        return Item(self.key, source, url=str(archive), extra={"files": files, "fault": self.fault} | more)


def found(archive: Path, scene_of: SceneOf, seed: int) -> Iterator[Found]:
    """The scenes of an archive: of a .zip in an order that the seed gives, else in the archive's.

    Of a tar file lazily: a scene ends where the next begins, and what comes of it later is ignored.
    """
    if archives.suffix_of(archive) in (".zip", ".7z"):
        groups = index(archive, scene_of)
        keys = list(groups)
        if not archives.is_sequential(archive):
            keys = [keys[i] for i in item_rng(seed, "archive", "order").permutation(len(keys))]
        yield from (groups[key] for key in keys)
        return
    seen: set[str] = set()
    now: Found | None = None
    for key, name, member in _placed(archive, scene_of):
        if now is not None and now.key != key:
            yield now
            seen.add(now.key)
            now = None
        if key not in seen:
            now = now or Found(key)
            now.add(name, member)
    if now is not None:
        yield now


def key_of(item: Item) -> str:
    """What the archive calls the scene of an item."""
    key: str = item.extra.get("key", item.uid)
    return key


def known_of(item: Item) -> Found:
    """What the item's list knew of it."""
    files = {name: (where, size) for name, where, size in item.extra.get("files", [])}
    return Found(key_of(item), files, item.extra.get("fault", ""))


def index(archive: Path, scene_of: SceneOf) -> dict[str, Found]:
    """All scenes of an archive by key, in the order of their first files. Raises UserError where it cannot be read."""
    groups: dict[str, Found] = {}
    for key, name, member in _placed(archive, scene_of):
        groups.setdefault(key, Found(key)).add(name, member)
    return groups


def _placed(archive: Path, scene_of: SceneOf) -> Iterator[tuple[str, str, Member]]:
    for member in archives.listed(archive):
        if place := scene_of(member.name):
            yield *place, member


def folders(root: Path, is_scene: Callable[[Path], bool], seed: int, depth: int = DEPTH) -> Iterator[Path]:
    """Folders at or below `root` that are scenes, none within another, in an order that the seed gives. Lists lazily."""
    if is_scene(root):
        yield root
    elif depth:
        inner = sorted(child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
        for i in item_rng(seed, root.name, "order").permutation(len(inner)):
            yield from folders(root / inner[i], is_scene, seed, depth - 1)


def never_empty(items: Iterator[Item], what: str, hint: str) -> Iterator[Item]:
    """The same items; UserError where there is none."""
    none = True
    for item in items:
        none = False
        yield item
    if none:
        raise UserError(what, hint)


# ---- one scene


class Files:
    """The files of one scene: a folder, or members of an archive. Only those that `scene_of` knows."""

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
            self.members = known_of(item).files
        else:
            raise Skip("missing", str(path))

    def names(self) -> list[str]:
        """Sorted."""
        return sorted(self.paths or self.members)

    def read(self, name: str) -> bytes:
        """The bytes of one file. Raises Skip: image_missing, broken_archive, archive_bomb."""
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
    """A file that should be an image or a pose. Raises Skip: image_missing, broken_image (absurdly large)."""
    try:
        if path.stat().st_size > archives.MAX_MEMBER:
            raise Skip("broken_image", f"{path} is larger than any picture")
        return path.read_bytes()
    except OSError as error:
        raise Skip("image_missing", f"{path}: {error.strerror}") from None


def inside(name: str, folder: Path, roots: Sequence[Path]) -> Path:
    """A path that a file of the scene names, relative to `folder`. Raises Skip("escapes_folder").

    roots: the folders that it, and whatever link it goes through, has to stay in.
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
    """A place in a sequential archive, kept between batches: going on costs nothing, going back costs all that was read."""

    archive: Path
    members: Iterator[tuple[Member, bytes]]
    last: int = -1

    def __iter__(self) -> Iterator[tuple[Member, bytes]]:
        for member, data in self.members:
            self.last = member.where
            yield member, data

    def close(self) -> None:
        self.members.close()  # type: ignore[attr-defined]  # a generator


_idle: WeakKeyDictionary[DiskBudget, _Cursor] = (
    WeakKeyDictionary()
)  # at most one for each run; it ends with the run's Room
_lock = threading.Lock()


def _cursor(disk_budget: DiskBudget, archive: Path, first: float) -> _Cursor:
    """One that stands before the member `first`."""
    with _lock:
        cursor = _idle.pop(disk_budget, None)
    if cursor and cursor.archive == archive and cursor.last < first:
        return cursor
    if cursor:
        cursor.close()
    return _Cursor(archive, archives.walk(archive))


def _put_back(disk_budget: DiskBudget, cursor: _Cursor) -> None:
    """Keeps it for the next batch."""
    with _lock:
        other = _idle.pop(disk_budget, None)
        _idle[disk_budget] = cursor
    if other:
        other.close()


def let_go(disk_budget: DiskBudget) -> None:
    """Closes what is kept open between batches, for example because the archive is about to be deleted."""
    with _lock:
        cursor = _idle.pop(disk_budget, None)
    if cursor:
        cursor.close()


@dataclass
class _Waiting:
    item: Item
    size: int
    missing: set[str]
    begun: bool = False


class Staging:
    """Files of some scenes of one sequential archive, on their way into folders. Each item is yielded once by `run`."""

    def __init__(
        self, archive: Path, scene_of: SceneOf, disk_budget: DiskBudget, folder_of: Callable[[Item], Path]
    ) -> None:
        self.archive = archive
        self.scene_of = scene_of
        self.disk_budget = disk_budget
        self.folder_of = folder_of
        self.waiting: dict[str, _Waiting] = {}
        self.first: float = float("inf")

    def run(self, items: Iterable[Item], known: Mapping[str, Found] | None = None) -> Iterator[Got]:
        """known: what the archive has, by key; default: what the items say. Yields a scene with its last file.

        Skip: unsafe_archive, no_images, broken_archive, archive_bomb, too_large, interleaved (its files lie between those
        of others, and there is no room for all of them). Retry: stopped.
        """
        for item in items:
            key = key_of(item)
            there = known_of(item) if known is None else known.get(key, Found(key))
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
            _put_back(self.disk_budget, cursor) if whole else cursor.close()
        yield from [(one.item, failure) for one in self.waiting.values()]

    def _is_there(self, item: Item, there: Found) -> bool:
        """Whether an earlier session left all of it; what is only a part of it is removed."""
        files = {self.folder_of(item) / name: size for name, (_, size) in there.files.items()}
        if all(path.is_file() and path.stat().st_size == size for path, size in files.items()):
            return True
        for path in files:
            path.unlink(missing_ok=True)
        self.disk_budget.release(item.uid)
        return False

    def _take(self, member: Member, data: bytes) -> Got | None:
        """Writes one member where its scene is wanted; the scene's end where that is one."""
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
        """Disk for a whole scene. Waits for it unless scenes are half done, which only what comes later can finish."""
        if one.begun:
            return
        if not any(other.begun for other in self.waiting.values()):
            self.disk_budget.reserve(one.item.uid, one.size)
        elif not self.disk_budget.try_reserve(one.item.uid, one.size):
            raise Skip("interleaved", f"the files of scenes alternate in {self.archive.name}; --raw-gb gives more room")
        one.begun = True
