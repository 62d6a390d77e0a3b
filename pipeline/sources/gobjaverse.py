"""G-Objaverse (Qiu et al., RichDreamer, arXiv 2311.16918): 40 views of 280,000 objects of Objaverse, rendered by TIDE.

<dict>/<inst>/[campos_512_v4/]NNNNN/NNNNN.png (512x512 RGBA) and NNNNN.json with x, y, z, origin: the columns of an OpenCV
camera-to-world matrix in a world with z up; x_fov, y_fov in radians. Views 24 and 39 repeat 0 and 27. Published file by file, and
as <dict>/<inst>.tar.

NNNNN_albedo.png is the materials' base colour. NNNNN_nd.exr has in blue, green and red the normal in Unity's axes of the world,
x, y, z, which are -y, z and -x of ours; in alpha the depth along the axis, meaningless where it is nearer than the object can be.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import sources
from pipeline.config.views import ImportConfig
from pipeline.core import cameras
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.core.records import Fetched, Item, Posed, item_rng
from pipeline.download.fetch import Fetcher
from pipeline.formats import bundles
from pipeline.poses import capture
from pipeline.sources import objaverse, posed_views

SAYS = "G-Objaverse renderings"
HOWTO = "--source gobjaverse (fetched file by file), or with --input FOLDER"
BASE = "https://virutalbuy-public.oss-cn-hangzhou.aliyuncs.com/share/aigc3d"  # spelt so
MAPS = (
    "gobjaverse_280k_index_to_objaverse.json",
    "gobjaverse_index_to_objaverse.json",
)  # "dict/inst" -> "000-NNN/<uid>.glb"
UNIQUE = tuple(view for view in range(40) if view not in (24, 39))
FILE = re.compile(r"(?:(.*)/)?(\d{5})(\.json|\.png|_albedo\.png|_nd\.exr)")
ENDS = {"depth": "_nd.exr", "normals": "_nd.exr", "albedo": "_albedo.png"}  # of the files that hold them
REACH = 0.867  # of an object in a cube of side 1 from its centre
LEVEL = "campos_512_v4"
BATCH = 64  # of one archive
root_of = posed_views.root_of


def scenes_with(layers: Sequence[str]) -> bundles.SceneOf:
    """`scene_of` that knows the files of these layers, beside pictures and cameras."""
    return functools.partial(scene_of, ends=(".json", ".png", *(ENDS[name] for name in layers)))


def scene_of(name: str, ends: Sequence[str] = (".json", ".png")) -> tuple[str, str] | None:
    """Map a path in the collection to ("dict/inst" or "inst", NNNNN.png or .json), with or without folders in between."""
    found = FILE.fullmatch(name)
    if not found or found[3] not in ends:
        return None
    folders = (found[1] or "").split("/")
    if folders[-1] == found[2]:
        folders.pop()
    if folders and folders[-1] == LEVEL:
        folders.pop()
    key = "/".join(folders[-2:] if len(folders) < 2 or folders[-2].isdecimal() else folders[-1:])
    return (key, found[2] + found[3]) if key else None


def remote(cfg: ImportConfig) -> bool:
    """True if files have to be fetched or unpacked before a worker can read them."""
    return cfg.input is None or posed_views.is_staged(cfg)


def items(cfg: ImportConfig, seed: int, net: Fetcher | None = None) -> Iterator[Item]:
    """One item per object. uid: Objaverse's, where one of MAPS lies in the input or in --cache; else "dict/inst".

    Raises UserError where the input holds no scene, or the list cannot be had.
    """
    nothing = f"{cfg.input or 'the list'} holds no object that was asked for"
    return bundles.never_empty(_remote(cfg, seed, net) if cfg.input is None else _local(cfg, seed), nothing, HOWTO)


def _remote(cfg: ImportConfig, seed: int, net: Fetcher | None) -> Iterator[Item]:
    """List objects by Objaverse's folders, by which its licenses and authors are listed."""
    assert net is not None
    known = _map(cfg) or _fetched_map(cfg, net)
    names = sources.asked_for(cfg)
    folders: dict[str, list[str]] = defaultdict(list)
    for key, glb in known.items():
        if names is None or not names.isdisjoint((key, _uid(glb))):
            folders[glb.split("/")[0]].append(key)
    views = [UNIQUE[i] for i in cameras.spread(len(UNIQUE), cfg.scene.views)]
    layers = list(cfg.scene.layers)
    hub_is_reachable = True  # else licenses and authors stay unknown: G-Objaverse itself is not on the Hub
    for folder in item_rng(seed, "gobjaverse", "order").permutation(sorted(folders)):
        facts: dict[str, Any] = {}
        if hub_is_reachable:
            try:
                facts = objaverse.metadata(net, cfg.cache, str(folder))
            except UserError:
                hub_is_reachable = False
        keys = sorted(folders[str(folder)])
        for i in item_rng(seed, str(folder), "order").permutation(len(keys)):
            key, uid = keys[i], _uid(known[keys[i]])
            rights, extra = objaverse.rights_of(uid, facts.get(uid, {})), {"key": key, "views": views, "layers": layers}
            yield Item(uid, cfg.source, f"{BASE}/objaverse/{key}", **rights, extra=extra)


def _uid(glb: str) -> str:
    return Path(glb).stem


def _item(cfg: ImportConfig, key: str, known: dict[str, str], url: str, extra: dict[str, Any]) -> Item:
    uid = _uid(known[key]) if key in known else key
    credit = {"page": f"{objaverse.PAGE}{uid}"} if key in known else {}
    return Item(uid, cfg.source, url=url, credit=credit, extra={"key": key} | extra)


def _map(cfg: ImportConfig) -> dict[str, str]:
    """ "dict/inst" -> "000-NNN/<uid>.glb", from the first of MAPS that is on this machine; empty without."""
    folders = [folder for folder in (cfg.input, cfg.cache / "gobjaverse") if folder is not None and folder.is_dir()]
    for path in (folder / name for folder in folders for name in MAPS):
        if path.is_file():
            return posed_views.json_map(path, "is not the map of G-Objaverse", "delete it; it is fetched again")
    return {}


def _fetched_map(cfg: ImportConfig, net: Fetcher) -> dict[str, str]:
    address = f"{BASE}/{MAPS[0]}"
    try:
        net.get(address, cfg.cache / "gobjaverse" / MAPS[0], owner=address)
    except (Skip, Retry) as error:
        hint = f"put {MAPS[0]} into {cfg.cache / 'gobjaverse'}, or give --input FOLDER"
        raise UserError(f"{address} cannot be had: {error}", hint) from None
    finally:
        net.disk_budget.release(address)
    return _map(cfg)


def _local(cfg: ImportConfig, seed: int) -> Iterator[Item]:
    root, known = posed_views.input_of(cfg), _map(cfg)
    if not root.is_dir():
        layers = list(cfg.scene.layers)
        for found in bundles.found(root, scenes_with(layers), seed):
            item = found.item(cfg.source, root)
            yield _item(cfg, found.key, known, url=item.url, extra=item.extra | {"layers": layers})
        return
    for folder in bundles.folders(root, is_scene, seed):
        yield _item(cfg, posed_views.uid_of(folder, root), known, url=str(folder), extra={})
    tars = sorted(root.glob("**/*.tar"))
    for i in item_rng(seed, "tars", "order").permutation(len(tars)):
        key = posed_views.uid_of(tars[i].with_suffix(""), root)
        yield _item(cfg, key, known, url=str(tars[i]), extra={"alone": True})


def is_scene(folder: Path) -> bool:
    """True if a folder holds views, in one of the two published layouts."""
    return (folder / LEVEL).is_dir() or any(
        re.fullmatch(r"\d{5}(\.json)?", child.name) and _holds(child) for child in folder.iterdir()
    )


def _holds(child: Path) -> bool:
    return child.is_file() or (child / f"{child.name}.json").is_file()


def batch(item: Item) -> str:
    """Key of a batch: the object where objects are fetched one by one, else the archive."""
    return item.uid if "views" in item.extra else item.url


def fetch_many(items: Sequence[Item], folder_of: Callable[[Item], Path], net: Fetcher) -> Iterator[Fetched]:
    """Fetch the requested views, two files each and those of layers; or bring scenes of a .tar.gz or .7z into folders."""
    layers = items[0].extra.get("layers", [])
    if "views" not in items[0].extra:
        yield from posed_views.staged(items, folder_of, net, scenes_with(layers))
        return
    ends = dict.fromkeys([".json", ".png", *(ENDS[name] for name in layers)])
    for item in items:
        folder = folder_of(item)
        try:
            for view, end in itertools.product(item.extra["views"], ends):
                name = f"{view:05d}{end}"
                if not (folder / name).is_file():  # an earlier session may have fetched it
                    _get(net, f"{item.url}/{LEVEL}/{view:05d}/{name}", folder / name, item, end in ENDS.values())
            yield item, folder
        except (Skip, Retry) as failure:
            yield item, failure


def _get(net: Fetcher, url: str, path: Path, item: Item, spare: bool) -> None:
    """Fetch a file of an object. spare: a view may lack it, and is left out then. Raises Skip, Retry."""
    try:
        net.get(url, path, owner=item.uid)
    except Skip as failure:
        if not spare or failure.reason != "missing":
            raise


def load(item: Item, path: Path, cfg: ImportConfig) -> Posed:
    """Read a scene. Skip: no_images, no_cameras, count_mismatch, bad_cameras, broken_image, unsafe_archive, broken_archive."""
    scenes = scenes_with(cfg.scene.layers)
    files = bundles.Files(_opened(item, path, scenes), path, scenes)
    names = [name for name in files.names() if int(name[:5]) in UNIQUE and name[5:] in (".json", ".png")]
    views = posed_views.paired(names, ".json", f"no NNNNN.png in {path.name}")
    chosen = [views[i] for i in cameras.spread(len(views), cfg.scene.views)]
    pictures, poses_found, fxfycxcy = [files.read(f"{view}.png") for view in chosen], [], []
    for view, hw in zip(chosen, posed_views.sizes_of(pictures), strict=True):
        facts = capture.json_object(files.read(f"{view}.json"), f"{view}.json")
        poses_found.append(c2w_of(facts, view))
        fxfycxcy.append(fxfycxcy_of(facts, hw, view))
    layer = functools.partial(_layer, files, chosen, np.stack(poses_found))
    meta = {"views_found": len(views)}
    named = [f"{view}.png" for view in chosen]
    return Posed(pictures, np.stack(poses_found), np.array(fxfycxcy), meta=meta, layer=layer, names=named)


def _layer(files: bundles.Files, views: Sequence[str], c2w: np.ndarray, name: str, index: int) -> np.ndarray:
    """Implement Posed.layer."""
    file = views[index] + ENDS[name]
    if file not in files.names():
        raise Skip("layer_missing", f"{name}: no {file}")
    if name == "albedo":
        return posed_views.colours(files.read(file), file)
    red, green, blue, along = np.moveaxis(posed_views.numbers(files.read(file), file, 4), -1, 0)
    depth = posed_views.depths(along, max(0.0, float(np.linalg.norm(c2w[index, :3, 3])) - REACH))
    return depth if name == "depth" else posed_views.normals(np.stack([-red, -blue, green], -1), np.isfinite(depth))


def _opened(item: Item, path: Path, scenes: bundles.SceneOf) -> Item:
    """Add to a single-scene .tar's item its members, unlisted so far. Raises Skip: broken_archive, unsafe_archive."""
    if "alone" not in item.extra:
        return item
    try:
        found = list(bundles.found(path, scenes, 0))
    except UserError as error:
        raise Skip("broken_archive", str(error)) from None
    if len(found) > 1:
        raise Skip("unsafe_archive", f"{len(found)} scenes in {path.name}, where one belongs")
    return found[0].item(item.source, path) if found else item


def c2w_of(facts: dict[str, Any], view: str) -> np.ndarray:
    try:
        columns = np.array([facts[name] for name in ("x", "y", "z", "origin")], np.float64)
    except (KeyError, ValueError, TypeError) as error:
        raise Skip("bad_cameras", f"{view}.json: {type(error).__name__} {error}") from None
    if columns.shape != (4, 3):
        raise Skip("bad_cameras", f"{view}.json: axes of shape {columns.shape}")
    return cameras.homogeneous(columns.T)


def fxfycxcy_of(facts: dict[str, Any], hw: tuple[int, int], view: str) -> list[float]:
    fov_x = capture.number(facts, "x_fov")
    fov_y = capture.number(facts, "y_fov")
    if fov_x is None:
        raise Skip("bad_cameras", f"{view}.json has no x_fov")
    fx = capture.focal(hw[1], fov_x)
    return [fx, fx if fov_y is None else capture.focal(hw[0], fov_y), hw[1] / 2, hw[0] / 2]
