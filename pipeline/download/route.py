"""Item -> its file, by the kind of its address: Hugging Face Hub, commit of a GitHub repository, any URL, local path."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import objaverse

from pipeline.core.disk import bytes_below
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.core.paths import below, own_folder
from pipeline.core.records import Fetched, Item
from pipeline.download import git, huggingface
from pipeline.download.fetch import Fetcher, Wanted, sha256_of
from pipeline.formats import archives, references

OBJAVERSE = "allenai/objaverse"
OBJAVERSE_FOLDER = Path(objaverse._VERSIONED_PATH).name  # where the objaverse package looks too: one cache for both
BLOB = re.compile(r"https://github\.com/([^/]+)/([^/]+)/blob/([0-9a-f]{40})/(.+)")
FILE_TYPE = re.compile(r"[a-z0-9]{1,8}")
KEPT_CHECKOUTS = "github/files"  # in the cache folder, by uid
FILES_PER_CHECKOUT = 64


def github_parts(url: str) -> tuple[str, str, str] | None:
    """(organization, repository, path) of a file's address on GitHub; None for another address."""
    found = BLOB.fullmatch(url)
    return (found[1], found[2], found[4]) if found else None


def repository(url: str) -> str:
    """Repository and commit of a GitHub file address, as "https://github.com/<org>/<repo>@<commit>"; "" for another address."""
    found = BLOB.fullmatch(url)
    return f"https://github.com/{found[1]}/{found[2]}@{found[3]}" if found else ""


def batch(item: Item) -> str:
    """Key of an item's batch: consecutive items with equal keys are fetched by one call."""
    return repository(item.url) or item.uid


def file_type(item: Item) -> str:
    """Type of an item's file: a lower-case suffix without the dot; "" if neither `extra` nor the address tells."""
    suffix = Path(unquote(urlsplit(item.url).path)).suffix.lower().lstrip(".")
    found: str = item.extra.get("type") or suffix
    return found if FILE_TYPE.fullmatch(found) else ""


def fetch_many(items: Sequence[Item], folder_of: Callable[[Item], Path], net: Fetcher) -> Iterator[Fetched]:
    """Bring the files of a batch into one folder per item; yields each item once, with its file or the failure.

    A file in the cache folder is used in place, as is one that an earlier session left in the item's folder.
    """
    if not repository(items[0].url):
        for item in items:
            try:
                yield item, _one(item, folder_of, net)
            except (Skip, Retry) as failure:
                yield item, failure
        return
    place = folder_of
    if net.limits.keep and net.limits.cache:
        kept = net.limits.cache / KEPT_CHECKOUTS

        def place(item: Item) -> Path:
            return own_folder(kept, item.uid)

    missing = []
    for item in items:
        parts = github_parts(item.url)
        assert parts is not None
        try:
            found = _at_hand(item, parts, place(item), net)
        except Skip as failure:
            yield item, failure
            continue
        if found:
            yield item, found
        else:
            missing.append((item, parts[2]))
    if missing:
        address, _, commit = repository(items[0].url).rpartition("@")
        yield from git.fetch(f"{address}.git", commit, missing, place, net)


def _at_hand(item: Item, parts: tuple[str, str, str], folder: Path, net: Fetcher) -> Path | None:
    """Path of a repository's file on this machine: in `folder` from an earlier session, or as the objaverse package saves
    repositories, as "files", "zip" or "tar", the last two unpacked into `folder`, with the files it names. None if not found.
    Raises Skip("escapes_folder").
    """
    organization, name, path = parts
    if (file := below(folder / git.TREE, path)).is_file():
        return file
    if not (net.limits.cache and item.sha256):  # only the SHA-256 tells which commit is saved there
        return None
    saved = below(net.limits.cache / "github" / "repos", organization)
    if (file := below(saved, f"{name}/{path}")).is_file() and _matches(file, item.sha256):
        return file
    for suffix, prefix in ((".zip", ""), (".tar", f"{name}/")):  # objaverse puts a top folder into tar archives only
        archive = saved / f"{name}{suffix}"
        if not archive.is_file():
            continue
        try:
            members = {each.name.removeprefix(prefix): each for each in archives.listed(archive) if not each.fault}
            if path in members and (got := _unpacked(archive, members, path, folder / git.TREE, item.sha256)):
                net.disk_budget.settle(item.uid, bytes_below(folder))
                return got
        except (UserError, Skip):  # a saved archive that cannot be read is no reason not to fetch
            continue
    return None


def _unpacked(archive: Path, members: dict[str, archives.Member], path: str, tree: Path, sha256: str) -> Path | None:
    data = archives.read(archive, members[path].where, members[path].size)
    if hashlib.sha256(data).hexdigest() != sha256:
        return None
    new, done = {path}, set[str]()
    while new:
        for name in new:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(archives.read(archive, members[name].where, members[name].size))
        done |= new
        named = (str(found) for name in new for found in references.companions(tree / name, tree))
        new = {name for name in named if name in members} - done
    return tree / path


def root_of(item: Item, file: Path) -> Path:
    """Folder that an item's file may read other files from: the repository's root, else the file's own folder."""
    parts = github_parts(item.url)
    return file.parents[len(PurePosixPath(parts[2]).parts) - 1] if parts else file.parent


def _one(item: Item, folder_of: Callable[[Item], Path], net: Fetcher) -> Path:
    if "://" not in item.url:
        return _local(item)
    cached = below(net.limits.cache, cached_at(item)) if net.limits.cache else None
    if cached and cached.is_file() and _matches(cached, item.sha256):
        return cached
    to = cached if cached and net.limits.keep else folder_of(item) / f"object.{file_type(item) or 'unknown'}"
    if to.is_file() and _matches(to, item.sha256):
        return to
    wanted = Wanted(item.uid, item.sha256, int(item.extra.get("size", 0)))
    if address := huggingface.parse(item.url):
        return huggingface.get(net, *address, to, wanted)
    return net.get(item.url, to, owner=wanted.owner, sha256=wanted.sha256, size=wanted.size)


def cached_at(item: Item) -> str:
    """Path in the cache folder: where the objaverse package would keep the file, else a name hashed from the address."""
    address = huggingface.parse(item.url)
    if address and address[0] == OBJAVERSE:
        return f"{OBJAVERSE_FOLDER}/{address[1]}"
    place: str | None = item.extra.get("cached")
    name = hashlib.blake2b(item.url.encode(), digest_size=16).hexdigest()
    return place or f"files/{name}.{file_type(item) or 'unknown'}"


def _matches(path: Path, sha256: str) -> bool:
    return not sha256 or sha256_of(path) == sha256


def _local(item: Item) -> Path:
    path = Path(item.url)
    if not path.is_file():
        raise Skip("missing", str(path))
    if not _matches(path, item.sha256):
        raise Skip("modified", f"{path} has another sha256 than {item.sha256}")
    return path
