"""Objaverse-MIX (BAAI, of Argus-3D, arXiv 2402.12225): 12 pictures of each object of Objaverse, and no cameras.

160 archives of about 4.65 GB on the Hugging Face Hub, rendered_images/000-NNN.7z, one per folder of Objaverse. Within:
[000-NNN/][000-NNN/]<uid>/NNN.png, 512x512 RGBA. Neither layout nor cameras are documented by those who published it; the
cameras are those of --mix-*, by default what allenai/objaverse-rendering's script makes of its own defaults.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np

from pipeline import sources
from pipeline.config.views import ImportConfig
from pipeline.core import cameras
from pipeline.core.budget import DiskBudget
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.core.paths import below
from pipeline.core.records import Fetched, Item, Posed, item_rng
from pipeline.download import huggingface
from pipeline.download.fetch import Fetcher, Wanted
from pipeline.formats import bundles, seven_zip
from pipeline.formats.bundles import ArchivedScene
from pipeline.sources import objaverse, posed_views, zero123

CAMERAS_ASSUMED = True
SAYS = "Objaverse-MIX pictures"
HOWTO = "--source objaverse-mix (fetched archive by archive), or with --input FOLDER or 000-NNN.7z"
REPO = "BAAI/Objaverse-MIX"
BATCH = 256  # objects that one pass through an archive brings, of about 5,000
batch, root_of = zero123.batch, posed_views.root_of
FILE = re.compile(r"(?:.*/)?([^/]+)/(\d{1,5})\.(png|jpg|jpeg|webp)", re.IGNORECASE)


def scene_of(name: str) -> tuple[str, str] | None:
    """Map a path in the collection to (uid, NNNNN.png)."""
    found = FILE.fullmatch(name)
    return (found[1], f"{int(found[2]):05d}.{found[3].lower()}") if found else None


def remote(cfg: ImportConfig) -> bool:
    """True if archives have to be fetched or unpacked before a worker can read them."""
    return cfg.input is None or posed_views.is_staged(cfg) or (cfg.input.is_dir() and bool(_archives(cfg.input)))


def items(cfg: ImportConfig, seed: int, net: Fetcher | None = None) -> Iterator[Item]:
    """One item per object, archive by archive. uid: Objaverse's. What an archive lacks ends as no_images.

    Raises UserError where the input holds no scene, or Objaverse's list cannot be had.
    """
    nothing = f"{cfg.input or REPO} holds no object that was asked for"
    return bundles.never_empty(_remote(cfg, seed, net) if cfg.input is None else _local(cfg, seed), nothing, HOWTO)


def _remote(cfg: ImportConfig, seed: int, net: Fetcher | None) -> Iterator[Item]:
    assert net is not None
    seven_zip.library()  # before the first archive is fetched
    paths = objaverse.object_paths(net, cfg.cache)
    names = sources.asked_for(cfg)
    folders: dict[str, list[str]] = defaultdict(list)
    for uid, path in paths.items():
        if names is None or uid in names:
            folders[path.split("/")[1]].append(uid)
    for folder in item_rng(seed, "objaverse-mix", "order").permutation(sorted(folders)):
        url = huggingface.url_of(REPO, f"rendered_images/{folder}.7z")
        facts = objaverse.metadata(net, cfg.cache, str(folder))
        for uid in sorted(folders[str(folder)]):  # the order within archives, so that batches follow each other in one
            yield Item(uid, cfg.source, url=url, **objaverse.rights_of(uid, facts.get(uid, {})))


def _archives(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.7z"), *folder.glob("*/*.7z")])


def _local(cfg: ImportConfig, seed: int) -> Iterator[Item]:
    root = posed_views.input_of(cfg)
    inputs = (_archives(root) if root.is_dir() else []) or [root]
    for i in item_rng(seed, "archives", "order").permutation(len(inputs)):
        if inputs[i].is_dir():
            for folder in bundles.folders(root, lambda folder: is_scene(folder, root), seed):
                yield Item(folder.absolute().name, cfg.source, url=str(folder))
        else:
            yield from (found.item(cfg.source, inputs[i]) for found in bundles.found(inputs[i], scene_of, seed))


def is_scene(folder: Path, root: Path) -> bool:
    """True if zero123.is_scene says so; for the input itself, if it has pictures."""
    if folder == root:
        return any(scene_of(f"x/{child.name}") for child in folder.iterdir() if child.is_file())
    return zero123.is_scene(folder, root)


def fetch_many(items: Sequence[Item], folder_of: Callable[[Item], Path], net: Fetcher) -> Iterator[Fetched]:
    """Fetch the archive, unless the batch before had it, and bring the requested objects into folders in one pass."""
    if "://" not in items[0].url:
        yield from posed_views.staged(items, folder_of, net, scene_of)
        return
    try:
        with _archives_of(net.disk_budget).open(items[0], folder_of, net) as path:
            known = _index(path, path.stat().st_mtime_ns)
            yield from bundles.Staging(path, scene_of, net.disk_budget, folder_of).run(items, known)
    except (Skip, Retry) as failure:
        yield from ((item, failure) for item in items)
    except UserError as error:
        yield from ((item, Skip("broken_archive", str(error))) for item in items)


@functools.lru_cache(maxsize=2)
def _index(path: Path, mtime_ns: int) -> dict[str, ArchivedScene]:
    return bundles.index(path, scene_of)


class _Archives:
    """Archives of a run that are on disk: the one that is read, and of a cycle, which comes back to those that hold objects for
    validation, the ones before it as long as there is room for the next.
    """

    def __init__(self) -> None:
        self.turn = threading.Lock()  # held by the batch that reads an archive
        self.url = ""
        self.here: dict[str, tuple[str, Path]] = {}  # URL -> (owner of its disk, "" if it is not the run's; file)

    @contextlib.contextmanager
    def open(self, item: Item, folder_of: Callable[[Item], Path], net: Fetcher) -> Iterator[Path]:
        """Yield the archive's path once other batches are done with theirs. Raises Skip, Retry as downloads do."""
        with self.turn:
            if self.url != item.url:
                bundles.close_cursor(net.disk_budget)
                self.url = item.url
            if item.url not in self.here or not self.here[item.url][1].is_file():
                self._make_room(net, max((_size(path) for _, path in self.here.values()), default=0))
                self.here[item.url] = self._fetched(item, folder_of, net)
            yield self.here[item.url][1]

    def _make_room(self, net: Fetcher, size: int) -> None:
        """Remove archives, the oldest first, until one of `size` bytes has room, and as much again for what comes out of it.

        All of them where none is needed again.
        """
        while self.here and not (net.limits.again and net.disk_budget.free >= 2 * size):
            owner, path = self.here.pop(next(iter(self.here)))
            if owner:  # fetched by this run, not found in a cache
                path.unlink(missing_ok=True)
                net.disk_budget.release(owner)

    def _fetched(self, item: Item, folder_of: Callable[[Item], Path], net: Fetcher) -> tuple[str, Path]:
        address = huggingface.parse(item.url)
        assert address is not None
        cached = below(net.limits.cache / "objaverse-mix", address[1]) if net.limits.cache else None
        if cached and (cached.is_file() or net.limits.keep):
            return "", cached if cached.is_file() else huggingface.get(net, *address, cached, Wanted(item.url))
        # as if an item: the archive of an earlier session is found and accounted for like one
        path = below(folder_of(Item(item.url, item.source)), Path(address[1]).name)
        if path.is_file():
            return item.url, path
        wanted = Wanted(item.url, give_way=lambda size: self._make_room(net, size))
        got = huggingface.get(net, *address, path, wanted)
        net.fetches[item.url] += 1
        return item.url if got == path else "", got  # the Hub's own cache may have it


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


_by_budget: WeakKeyDictionary[DiskBudget, _Archives] = WeakKeyDictionary()
_lock = threading.Lock()


def _archives_of(disk_budget: DiskBudget) -> _Archives:
    with _lock:
        return _by_budget.setdefault(disk_budget, _Archives())


def load(item: Item, path: Path, cfg: ImportConfig) -> Posed:
    """Read one scene, with the cameras of cfg.scene.mix: as many on the circle as there are pictures.

    Raises Skip: no_images, views_missing (numbers with gaps), broken_image, unsafe_archive, broken_archive.
    """
    files = bundles.Files(item, path, scene_of)
    names = files.names()
    if not names:
        raise Skip("no_images", f"nothing in {path.name}")
    numbers = [int(name.split(".")[0]) for name in names]
    if numbers != list(range(len(names))):
        raise Skip("views_missing", f"{len(names)} pictures, numbered {numbers[:3]} to {numbers[-1]}")
    mix = cfg.scene.mix
    c2w = cameras.circle(len(names), mix.elevation_deg, mix.radius, mix.azimuth_deg, mix.clockwise)
    chosen = cameras.spread(len(names), cfg.scene.views)
    pictures = [files.read(names[view]) for view in chosen]
    fxfycxcy = np.array([cameras.intrinsics(mix.fov_x_deg, hw) for hw in posed_views.sizes_of(pictures)])
    meta = {"views_found": len(names), "cameras": "assumed"}
    return Posed(pictures, c2w[chosen], fxfycxcy, meta=meta, names=[names[view] for view in chosen])
