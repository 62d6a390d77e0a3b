"""Arb-Objaverse (Li et al., IDArb, arXiv 2412.12083): 12 views of 68,000 objects of Objaverse, each under several lights.

On the Hub, data/000-NNN.zip holds 000-NNN/UID/ of the objects of Objaverse's folder of that name: color_LIGHT_VV.png (RGBA),
albedo_VV.png, normal_VV.exr, camera.json. Of a zip its directory and the files that are asked for are read. A scene has the
pictures under one light, drawn from the seed and the uid.

transform_matrix of camera.json has a camera-to-world matrix of each view, with Blender's axes, in a world with z up. Its field of
view is not in the files that are known; where camera.json says none of FOVS, it is BlenderProc's own, which rendered the set.
Blue, green and red of normal_VV.exr are the normal along the camera's right, up and back, 0 for -1 and 1 for 1.
"""

from __future__ import annotations

import functools
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.config.views import ImportConfig
from pipeline.core import cameras
from pipeline.core.disk import replacing
from pipeline.core.errors import Skip
from pipeline.core.records import Fetched, Item, Posed, item_rng
from pipeline.download.fetch import Fetcher
from pipeline.formats import archives, bundles
from pipeline.poses import capture
from pipeline.sources import objaverse, posed_views

SAYS = "Arb-Objaverse renderings"
HOWTO = "--source arb-objaverse (fetched object by object), or with --input FOLDER or 000-NNN.zip"
REPO = "lizb6626/Arb-Objaverse"
ZIP = "data/000-{:03d}.zip"
FOLDERS = 160  # of Objaverse; not all have a zip
CAMERA = "camera.json"
FILE = re.compile(r"(?:.*/)?([^/]+)/(camera\.json|(?:color_[0-9A-Za-z]{1,8}|albedo|normal)_\d{2,3}\.(?:png|exr))")
COLOUR = re.compile(r"color_([0-9A-Za-z]+)_(\d+)\.png")
FILES = {"normals": "normal_{}.exr", "albedo": "albedo_{}.png"}
UID = re.compile(r"[0-9a-f]{32}")
FOVS = ("camera_angle_x", "x_fov", "fov")  # radians, of the width
FOV = 0.691111  # of BlenderProc where nothing is set
BATCH = 64
root_of = posed_views.root_of


def scene_of(name: str) -> tuple[str, str] | None:
    """Map a path in the collection to (uid, name of a file)."""
    found = FILE.fullmatch(name)
    return (found[1], found[2]) if found else None


def remote(cfg: ImportConfig) -> bool:
    """True if files have to be fetched or unpacked before a worker can read them."""
    return cfg.input is None or posed_views.is_staged(cfg)


def items(cfg: ImportConfig, seed: int, net: Fetcher | None = None) -> Iterator[Item]:
    """One item per object. uid: Objaverse's. UserError where there is none, or the Hub does not answer."""
    found = _remote(cfg, seed, net) if cfg.input is None else _local(cfg, cfg.input, seed)
    return posed_views.asked_for(found, cfg, str(cfg.input or REPO), HOWTO)


def _remote(cfg: ImportConfig, seed: int, net: Fetcher | None) -> Iterator[Item]:
    """List objects zip by zip: each is a folder of Objaverse, by which its licenses and authors are listed."""
    numbers = item_rng(seed, "arb-objaverse", "order").permutation(FOLDERS).tolist()
    for number, url, archive in posed_views.zips_on_the_hub(REPO, ZIP, numbers, net):
        assert net is not None
        found: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for name in archive.namelist():
            if place := scene_of(name):
                found[place[0]][place[1]] = name
        facts = objaverse.metadata(net, cfg.cache, f"000-{number:03d}")
        uids = sorted(found)
        for i in item_rng(seed, str(number), "order").permutation(len(uids)).tolist():
            files = _asked(found[uids[i]], uids[i], cfg)
            extra = {"members": [found[uids[i]][name] for name in files if name in found[uids[i]]]}
            yield Item(uids[i], cfg.source, url, **objaverse.rights_of(uids[i], facts.get(uids[i], {})), extra=extra)


def _local(cfg: ImportConfig, given: Path, seed: int) -> Iterator[Item]:
    zips = [given] if given.is_file() else sorted([*given.glob("*.zip"), *given.glob("data/*.zip")])
    for path in zips:
        for scene in bundles.found(path, scene_of, seed):
            item = scene.item(cfg.source, path)
            yield Item(item.uid, cfg.source, item.url, credit=_credit(item.uid), extra=item.extra)
    if given.is_dir():
        for folder in bundles.folders(given, is_scene, seed):
            uid = folder.name if UID.fullmatch(folder.name) else posed_views.uid_of(folder, given)
            yield Item(uid, cfg.source, url=str(folder), credit=_credit(uid))


def _credit(uid: str) -> dict[str, str]:
    return {"page": f"{objaverse.PAGE}{uid}"} if UID.fullmatch(uid) else {}


def is_scene(folder: Path) -> bool:
    """True if a folder holds an object's pictures with their cameras."""
    return (folder / CAMERA).is_file() and any(COLOUR.fullmatch(child.name) for child in folder.iterdir())


def _views(names: Iterable[str], uid: str, cfg: ImportConfig) -> tuple[str, list[str]]:
    """Light and views, by their numbers, that a scene is made of. names: of its files. ("", []) without a colour picture."""
    by_light: defaultdict[str, list[str]] = defaultdict(list)
    for found in map(COLOUR.fullmatch, sorted(names)):
        if found:
            by_light[found[1]].append(found[2])
    if not by_light:
        return "", []
    lights = sorted(by_light)
    light = lights[int(item_rng(cfg.scene.seed, uid, "light").integers(len(lights)))]
    return light, [by_light[light][i] for i in cameras.spread(len(by_light[light]), cfg.scene.views)]


def _asked(names: Iterable[str], uid: str, cfg: ImportConfig) -> list[str]:
    """Names of the files that a run needs of an object."""
    light, views = _views(names, uid, cfg)
    layers = [FILES[layer].format(view) for layer in cfg.scene.layers for view in views]
    return [CAMERA, *(f"color_{light}_{view}.png" for view in views), *layers]


def batch(item: Item) -> str:
    """Key of a batch: the zip, whose directory is read once for it."""
    return item.url


def fetch_many(items: Sequence[Item], folder_of: Callable[[Item], Path], net: Fetcher) -> Iterator[Fetched]:
    """Fetch files of objects out of one zip; or bring scenes of a .tar.gz or .7z into folders."""
    if "members" not in items[0].extra:
        return posed_views.staged(items, folder_of, net, scene_of)

    def extract(item: Item, archive: zipfile.ZipFile) -> Path:
        """Bring the files of an object that are not there yet, and return their folder."""
        folder, members = folder_of(item), item.extra["members"]
        sizes = [archive.getinfo(name).file_size for name in members if name in archive.NameToInfo]
        missing = [name for name in members if not (folder / PurePosixPath(name).name).is_file()]
        if missing:
            net.disk_budget.reserve(item.uid, sum(sizes))
        for name in missing:
            data = posed_views.member_of(archive, name, archives.MAX_MEMBER)
            with replacing(folder / PurePosixPath(name).name) as part:
                part.write_bytes(data)
        return folder

    return posed_views.out_of_zip(items, net, extract)


def load(item: Item, path: Path, cfg: ImportConfig) -> Posed:
    """Read a scene. Skip: no_images, no_cameras, bad_cameras, broken_image, image_missing, unsafe_archive, broken_archive."""
    files = bundles.Files(item, path, scene_of)
    names = files.names()
    light, views = _views(names, item.uid, cfg)
    if not views:
        raise Skip("no_images", f"no color_LIGHT_VV.png in {path.name}")
    if CAMERA not in names:
        raise Skip("no_cameras", f"{len(views)} images and no {CAMERA}")
    facts = capture.json_object(files.read(CAMERA), CAMERA)
    named = [f"color_{light}_{view}.png" for view in views]
    pictures = [files.read(name) for name in named]
    hws = posed_views.sizes_of(pictures)
    fovs = [value for name in FOVS if (value := capture.number(facts, name)) is not None]
    focals = [capture.focal(hw[1], fovs[0] if fovs else FOV) for hw in hws]
    fxfycxcy = [[fx, fx, hw[1] / 2, hw[0] / 2] for fx, hw in zip(focals, hws, strict=True)]
    c2w = _poses(facts, [int(view) for view in views])
    meta = {"views_found": sum(name.startswith(f"color_{light}_") for name in names), "light": light}
    meta |= {} if fovs else {"cameras": "field of view assumed"}
    layer = functools.partial(_layer, files, pictures, views, c2w)
    return Posed(pictures, c2w, np.array(fxfycxcy), meta=meta, layer=layer, names=named)


def _poses(facts: dict[str, Any], views: Sequence[int]) -> np.ndarray:
    """c2w (V, 4, 4) of views by their numbers. Raises Skip("bad_cameras")."""
    listed = facts.get("transform_matrix")
    if not isinstance(listed, list) or len(listed) <= max(views):
        raise Skip("bad_cameras", f"{CAMERA} has no transform_matrix of view {max(views)}")
    try:
        chosen = [np.array(listed[view], np.float64).reshape(-1, 4) for view in views]
    except (ValueError, TypeError) as error:
        raise Skip("bad_cameras", f"{CAMERA}: {error}") from None
    return cameras.from_opengl(capture.matrices(chosen))


def _layer(
    files: bundles.Files, pictures: Sequence[bytes], views: Sequence[str], c2w: np.ndarray, name: str, index: int
) -> np.ndarray:
    """Implement Posed.layer."""
    file = FILES[name].format(views[index]) if name in FILES else ""
    if file not in files.names():
        raise Skip("layer_missing", f"{name}: no {file}" if file else f"{name}: there is none")
    if name == "albedo":
        return posed_views.colours(files.read(file), file)
    right_up_back = 2 * posed_views.numbers(files.read(file), file, 3)[..., ::-1] - 1
    there = posed_views.covered(pictures[index], file)
    if there.shape != right_up_back.shape[:2]:
        raise Skip("broken_image", f"{file} is as large as {right_up_back.shape[:2]}, its picture as {there.shape}")
    return posed_views.normals(right_up_back @ cameras.to_opengl(c2w[index])[:3, :3].T, there)
