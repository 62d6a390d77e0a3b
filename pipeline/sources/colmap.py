"""Folders with a COLMAP model: sparse/0, sparse, or the model itself, and the pictures in images/ beside it.

Of several models (sparse/0, sparse/1, ...) the first is taken. Poses stay in the model's own world, which has no unit and
no up. Where images/ is missing, images_2, images_4 or images_8 stand in for it, with the intrinsics of their size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.config.views import ImportConfig
from pipeline.core import cameras
from pipeline.core.errors import Skip
from pipeline.core.records import Item, Posed
from pipeline.download.fetch import Fetcher
from pipeline.formats import bundles, colmap
from pipeline.sources import posed_views

SAYS = "COLMAP models with their images"
HOWTO = "--source colmap --input FOLDER"
MODELS = ("sparse/0", "sparse", ".")


def items(cfg: ImportConfig, seed: int, net: Fetcher | None = None) -> Iterator[Item]:
    """One item per folder with a model. uid: the folder relative to the input. UserError where there is none."""
    root = posed_views.input_of(cfg)
    folders = bundles.folders(root, lambda folder: _model(folder) is not None, seed)
    found = (Item(posed_views.uid_of(folder, root), cfg.source, url=str(folder)) for folder in folders)
    hint = f"{HOWTO}; a model is cameras and images, .bin or .txt, in {', '.join(MODELS[:2])} or the folder"
    return bundles.never_empty(found, f"{root} holds no COLMAP model", hint)


def _model(folder: Path) -> Path | None:
    return next((folder / name for name in MODELS if colmap.is_model(folder / name)), None)


def _images(folder: Path, model: Path) -> tuple[Path, bool]:
    """Return (folder that holds images/, True if it exists): the scene's folder, or one above a model given as input."""
    for place in (folder, folder.parent, folder.parent.parent) if model.samefile(folder) else (folder,):
        if any((place / name).is_dir() for name in ("images", *posed_views.SMALLER)):
            return place, True
    return folder, False


def load(item: Item, path: Path, cfg: ImportConfig) -> Posed:
    """Read one scene. Raises Skip: no_cameras, no_images (none registered), bad_cameras, unsupported_camera, image_missing,
    broken_image, escapes_folder.
    """
    model = _model(path)
    if model is None:
        raise Skip("no_cameras", f"no COLMAP model in {path}")
    known, registered = colmap.read(model)
    if not registered:
        raise Skip("no_images", "the model has no registered image")
    chosen = [registered[i] for i in cameras.spread(len(registered), cfg.scene.views)]
    place, in_images = _images(path, model)
    roots = (path, place, posed_views.input_of(cfg))
    pictures, fxfycxcy, distortion = [], [], []
    for image in chosen:
        if image.camera not in known:
            raise Skip("bad_cameras", f"{image.name} has camera {image.camera}, which the model lacks")
        file = _picture(image.name, place, in_images, roots)
        data = bundles.read_file(file)
        camera = known[image.camera]
        k, coefficients = camera.numbers()
        pictures.append(data)
        fxfycxcy.append(posed_views.fitted(k, camera.hw, posed_views.hw_of(data, image.name), image.name))
        distortion.append(coefficients)
    quaternions = np.stack([image.quaternion for image in chosen])
    if not (np.isfinite(quaternions).all() and (np.linalg.norm(quaternions, axis=-1) > 1e-6).all()):
        raise Skip("bad_cameras", "a rotation that is no quaternion")
    w2c = np.concatenate(
        [cameras.rotation_of(quaternions), np.stack([image.translation for image in chosen])[..., None]], -1
    )
    lens = np.stack(distortion) if np.any(distortion) else None
    return Posed(pictures, posed_views.inverted(w2c), np.stack(fxfycxcy), lens, {"views_found": len(registered)})


def _picture(name: str, place: Path, in_images: bool, roots: tuple[Path, ...]) -> Path:
    """File of an image `name`, which is relative to the folder of images and must stay in it."""
    if not in_images:
        return posed_views.picture(name, place, roots)
    folder = next(place / known for known in ("images", *posed_views.SMALLER) if (place / known).is_dir())
    bundles.inside(name, folder, (folder, *roots))
    return posed_views.picture(f"images/{name}", place, roots)
