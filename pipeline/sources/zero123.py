"""Zero-1-to-3's renderings of Objaverse (Liu et al., arXiv 2303.11328), views_release: 12 views of 772,870 objects.

<any folder>/<Objaverse uid>/NNN.png (512x512 RGBA) and NNN.npy; pipeline/poses/zero123.py has the cameras.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.config.views import ImportConfig
from pipeline.core import cameras
from pipeline.core.records import Fetched, Item, Posed
from pipeline.download.fetch import Fetcher
from pipeline.formats import bundles
from pipeline.poses import capture, zero123
from pipeline.sources import posed_views

SAYS = "Zero123 renderings of Objaverse"
HOWTO = "--source zero123 --input FOLDER (or .zip, .tar, .tar.gz)"
FILE = re.compile(r"(?:.*/)?([^/]+)/(\d{3}\.(?:png|npy))")
UID = re.compile(r"[0-9a-f]{32}")
BATCH = 64  # scenes of an archive per call of fetch_many; the next call goes on in the archive
remote, root_of = posed_views.is_staged, posed_views.root_of


def scene_of(name: str) -> tuple[str, str] | None:
    """Map a path in the collection to (uid, NNN.png or NNN.npy)."""
    found = FILE.fullmatch(name)
    return (found[1], found[2]) if found else None


def items(cfg: ImportConfig, seed: int, net: Fetcher | None = None) -> Iterator[Item]:
    """One item per folder of an object, also of those that are empty. uid: the folder's name where it is Objaverse's.

    Raises UserError where the input is no folder and no archive, or holds no scene.
    """
    return bundles.never_empty(_items(cfg, seed), f"{cfg.input} holds no folder with NNN.png and NNN.npy", HOWTO)


def _items(cfg: ImportConfig, seed: int) -> Iterator[Item]:
    root = posed_views.input_of(cfg)
    if not root.is_dir():
        yield from (found.item(cfg.source, root) for found in bundles.found(root, scene_of, seed))
        return
    for folder in bundles.folders(root, lambda folder: is_scene(folder, root), seed):
        uid = folder.name if UID.fullmatch(folder.name) else posed_views.uid_of(folder, root)
        yield Item(uid, cfg.source, url=str(folder))


def is_scene(folder: Path, root: Path) -> bool:
    """True for a folder named like an object of Objaverse (not even opened: there are 772,870) or without subfolders.

    The input itself is a scene only if it has views.
    """
    if folder == root:
        return any(FILE.fullmatch(f"/x/{child.name}") for child in folder.iterdir() if child.is_file())
    return bool(UID.fullmatch(folder.name)) or not any(child.is_dir() for child in folder.iterdir())


def batch(item: Item) -> str:
    """Key of a batch: items of one archive are fetched together."""
    return item.url


def fetch_many(items: Sequence[Item], folder_of: Callable[[Item], Path], net: Fetcher) -> Iterator[Fetched]:
    """Bring scenes of a .tar.gz or .7z into folders, from front to back."""
    return posed_views.staged(items, folder_of, net, scene_of)


def load(item: Item, path: Path, cfg: ImportConfig) -> Posed:
    """Read a scene. Skip: no_images, no_cameras, count_mismatch, bad_cameras, broken_image, unsafe_archive, broken_archive."""
    files = bundles.Files(item, path, scene_of)
    names = files.names()
    views = posed_views.paired(names, ".npy", f"{path.name} {'has poses alone' if names else 'is empty'}")
    chosen = [views[i] for i in cameras.spread(len(views), cfg.scene.views)]
    w2c_gl = capture.matrices([capture.npy(files.read(f"{view}.npy"), f"{view}.npy") for view in chosen])
    pictures = [files.read(f"{view}.png") for view in chosen]
    fxfycxcy = np.array([zero123.intrinsics(hw) for hw in posed_views.sizes_of(pictures)])
    named = [f"{view}.png" for view in chosen]
    return Posed(pictures, zero123.from_w2c_gl(w2c_gl), fxfycxcy, meta={"views_found": len(views)}, names=named)
