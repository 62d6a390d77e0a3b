"""Captures on this machine: folders of pictures with their cameras, in any format of pipeline/poses."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import itertools
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path, PureWindowsPath
from types import ModuleType

import numpy as np

from pipeline.config.shared import address_of
from pipeline.config.source_table import CAPTURES, names
from pipeline.config.views import ImportConfig
from pipeline.core import cameras, images
from pipeline.core.cameras import Lens
from pipeline.core.errors import Skip, UserError
from pipeline.core.records import Item, Posed
from pipeline.core.text import quoted, shown
from pipeline.download.fetch import Fetcher
from pipeline.formats import bundles
from pipeline.poses import rig, transforms
from pipeline.poses.capture import View, check_intrinsics, json_object
from pipeline.poses.pictures import Finder, pictures_in
from pipeline.sources import posed_views
from pipeline.video.stills import at_instants

SAYS = "captures"
HOWTO = f"{' | '.join(f'--source {name}' for name in CAPTURES)} --input FOLDER"
PARTS = (".bin", ".txt", ".npy", ".npz", ".jgz")  # suffixes of files that captures are read by, beside JSON
SPLIT = "transforms_train.json"
LOOKED_AT, FEW_FILES, FEW_JSON = (
    200,
    2000,
    20,
)  # folders of a level and files of a folder that are looked at to recognise them
LOOKS = (  # other posed sources, and patterns of files or folders that one folder of theirs holds
    ("shards", (r"(train|val)-\d{6}\.parquet",)),
    ("zero123", (r"\d{3}\.png", r"\d{3}\.npy")),
    ("gobjaverse", (r"campos_512_v4",)),
    ("pixelsplat", (r".+\.torch",)),
    ("webdataset", (r"(train|val|test)-\d{6}\.tar",)),
    ("dome-objaverse", (r"dome_objaverse", r"metadata")),
    ("cap3d", (r"compressed_imgs_perobj_\d+\.zip",)),
    ("cap3d", (r"\d{5}\.png", r"00000\.json", r"00001\.json")),
    ("gobjaverse", (r"(\d{5})/\1\.json",)),
    ("arb-objaverse", (r"camera\.json", r"color_\w+_\d+\.png")),
)
FOREIGN = (  # apps, by a file in a capture of theirs and what its first bytes hold, and how nerfstudio's tool converts it
    ("Polycam", "keyframes/*cameras/*.json", b"t_00", "polycam --data {given}"),
    ("Record3D", "metadata.json", b"poses", "record3d --data {beside}"),
    ("Record3D", "*/metadata.json", b"poses", "record3d --data {beside}"),
    ("Metashape", "*.xml", b"<chunk", "metashape --data {pictures} --xml {file}"),
    ("RealityCapture", "*.csv", b"#name,", "realitycapture --data {pictures} --csv {file}"),
)
HEAD = 4096  # bytes of a file that tell what it is
UNPACK = "--input FOLDER; an archive of captures has to be unpacked first"
LEAVES_OUT = LOADS_WHOLE = True
SAME_POSE = 1e-6  # of the largest number of two poses: closer ones are one


def reader(source: str) -> ModuleType:
    """Module of pipeline/poses that reads the captures of a source."""
    return importlib.import_module(f"pipeline.poses.{CAPTURES[source]}")


def recognised(given: Path) -> tuple[str, str]:
    """Return (source, what to say of it) for the captures at a path: a folder, or a file that belongs to one.

    Folders are looked at from above, a level at a time; the first that is a capture of any kind decides. Raises UserError where
    there is none.
    """
    if address_of(given):
        return "shards", f"{given} is read as shards of lvsm-data"
    if not given.exists():
        raise UserError(f"--input {given} does not exist")
    if given.suffix == ".json":
        return "nerfstudio", f"{shown(given)} looks like nerfstudio"
    level = [given.parent if given.suffix in PARTS else given] if given.is_dir() or given.suffix in PARTS else []
    for _ in range(bundles.DEPTH + 1):
        looks = [(folder, kinds) for folder in level[:LOOKED_AT] if (kinds := list(dict.fromkeys(_kinds(folder))))]
        if looks:
            folder, kinds = looks[0]
            others = f" (also like {', '.join(kinds[1:])}: --source takes one of these)" if kinds[1:] else ""
            return kinds[0], f"{shown(folder)} looks like {kinds[0]}{others}{_left_out(kinds[0], looks)}"
        level = [child for folder in level[:LOOKED_AT] for child in bundles.inner(folder)]
    hint = f"--source {' | '.join(names('posed'))}; docs/sources.md shows what belongs into each"
    hint = hint if given.is_dir() else f"{UNPACK}; {hint}"
    if given.is_dir() and pictures_in(given):
        hint = f"pictures alone say not where they were taken: COLMAP finds that, and makes a capture of them; {hint}"
    if given.is_dir() and (other := _frames_in(given)):
        hint = f"--input {quoted(other)} takes its frames as nerfstudio's; {hint}"
    if given.is_dir() and (foreign := _foreign(given)):
        raise foreign
    raise UserError(f"{given} looks like no capture that is known", hint)


def _foreign(given: Path) -> UserError | None:
    """Name the app whose own files a folder holds, and what makes a transforms.json of them; None of others."""
    pictures = given / "images"
    for app, pattern, holds, arguments in FOREIGN:
        for file in itertools.islice(given.glob(pattern), 1):
            named = {
                "given": given,
                "beside": file.parent,
                "pictures": pictures if pictures.is_dir() else given,
                "file": file,
            }
            with contextlib.suppress(OSError), file.open("rb") as stream:
                if holds in stream.read(HEAD):
                    words = [
                        word.format(**{name: shown(path) for name, path in named.items()}) for word in arguments.split()
                    ]
                    hint = f"ns-process-data {shlex.join(words)} --output-dir NEW (of nerfstudio), then --input NEW"
                    return UserError(f"{shown(given)} holds {app}'s own files ({file.relative_to(given)})", hint)
    return None


def _frames_in(folder: Path) -> Path | None:
    """File of a folder that is a transforms.json by another name: JSON with frames that have a transform_matrix."""
    for path in sorted(folder.glob("*.json"))[:FEW_JSON]:
        try:
            frames = json_object(bundles.read_file(path), path.name).get("frames")
        except Skip:
            continue
        if isinstance(frames, list) and any(isinstance(one, dict) and "transform_matrix" in one for one in frames[:1]):
            return path
    return None


def _left_out(source: str, looks: Sequence[tuple[Path, list[str]]]) -> str:
    """Sentence about folders that look like other sources alone, which an import of `source` leaves out; "" without any."""
    form = CAPTURES.get(source)
    others = [(folder, kinds) for folder, kinds in looks if not any(CAPTURES.get(kind, kind) == form for kind in kinds)]
    others = [(folder, kinds) for folder, kinds in others if source not in kinds]
    if not others:
        return ""
    folder, kinds = others[0]
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return f"; left out, since they look like others: {shown(folder)} ({kinds[0]}){more}: a run of --source {kinds[0]} takes it"


def _kinds(folder: Path) -> Iterator[str]:
    """Names of the sources whose scenes a folder looks like, the most telling first."""
    if (folder / SPLIT).is_file():
        yield "d-nerf" if _moves(folder / SPLIT) else "nerf-synthetic"
    elif rig.is_scene(folder):
        yield "rig"
    elif transforms.is_scene(folder):
        yield "nerfstudio"
    for name, module in CAPTURES.items():
        if module not in ("transforms", "rig") and reader(name).is_scene(folder):
            yield name
    children = list(itertools.islice(folder.iterdir(), FEW_FILES))
    files = {path.name for path in children}
    files |= {f"{path.name}/{path.name}.json" for path in children if (path / f"{path.name}.json").is_file()}
    for name, patterns in LOOKS:
        if all(any(re.fullmatch(pattern, file) for file in files) for pattern in patterns):
            yield name


def _moves(path: Path) -> bool:
    """True if a file of frames says times for them."""
    try:
        frames = json_object(bundles.read_file(path), path.name).get("frames")
    except Skip:
        return False
    return isinstance(frames, list) and any(isinstance(frame, dict) and "time" in frame for frame in frames[:1])


def _belongs(file: Path, form: ModuleType) -> bool:
    """True if a file is one that a capture of this format is read by, or any JSON where it is transforms.json by another name."""
    return file.suffix == ".json" if form is transforms else file.suffix in PARTS and form.is_scene(file.parent)


def items(cfg: ImportConfig, seed: int, net: Fetcher | None = None, ended: Container[str] = ()) -> Iterator[Item]:
    """One item per folder with a capture. uid: the folder relative to the input, or as `ended` has it. UserError without any."""
    root, form = posed_views.input_of(cfg), reader(cfg.source)
    if root.is_file():
        if not _belongs(root, form):
            raise UserError(f"{root} is no {form.SAYS}, and captures are folders", UNPACK)
        root = root.parent
        folders = iter([root])
    else:
        folders = bundles.folders(root, form.is_scene, seed)
    name: Callable[[Path], str] | None = getattr(form, "name_of", None)
    uids = ((name(folder) if name else posed_views.uid_of(folder, root, ended), folder) for folder in folders)
    found = (Item(uid, cfg.source, url=str(folder)) for uid, folder in uids)
    hint = f"--source {cfg.source} --input FOLDER; docs/sources.md shows what belongs into it"
    return bundles.never_empty(found, f"{root} holds no {form.SAYS}", hint)


def load(item: Item, path: Path, cfg: ImportConfig, whole: bool = False) -> Posed:
    """Read one scene; views whose picture is missing or broken, or whose camera is none, are left out and counted.

    whole: leave out those whose picture does not decode, or whose layers are not there or broken, too; else headers are read.
    Raises Skip: no_cameras, no_images, unsupported_camera, escapes_folder; one of OF_ONE_VIEW where fewer than LEAST_SHARE of the
    views are left.
    """
    given = posed_views.input_of(cfg)
    root, only = (given.parent, given.name) if given.is_file() else (given, "")
    capture = reader(cfg.source).read(path, Finder((path, root), cfg.follow_links), only)
    if cfg.source == "rig":
        capture = dataclasses.replace(capture, views=at_instants(capture.views, cfg.scene.frames, cfg.scene.fps))
    usable = _Usable(capture.views, path, cfg.scene.layers if whole else None, cfg.scene.alpha)
    chosen = usable.chosen(cfg.scene.views)
    views = [capture.views[i] for i in chosen]
    pictures, fxfycxcy, lenses = zip(*(usable.taken[i] for i in chosen), strict=True)
    times = [view.time for view in views] if any(view.time is not None for view in views) else ()
    meta = capture.meta | posed_views.left_out_facts(usable.left, len(capture.views))
    roles = [view.role for view in views] if any(view.role for view in views) else []
    c2w, names = np.stack([view.c2w for view in views]), [_name(view) for view in views]
    layer = None if all(view.layer is None for view in views) else functools.partial(_layer, views)
    return Posed(list(pictures), c2w, np.stack(fxfycxcy), lenses, roles, meta, layer, names, times)


class _Usable:
    """Views of a capture by their numbers: those that were read, and those that are left out."""

    def __init__(self, views: Sequence[View], path: Path, layers: Sequence[str] | None, alpha: bool) -> None:
        self.views, self.path, self.layers, self.alpha = views, path, layers, alpha
        self.taken: dict[int, tuple[bytes, np.ndarray, Lens]] = {}
        self.left: dict[int, Skip] = {}
        for number, view in enumerate(views):
            if view.picture is None:
                self.left[number] = Skip("image_missing", f"{_name(view)} is not {view.sought}")
            elif flaw := cameras.flaw(view.c2w):
                self.left[number] = Skip("bad_cameras", f"{_name(view)} has {flaw}")
        for number in _listed_twice(views, [number for number in range(len(views)) if number not in self.left]):
            said = f"{_name(views[number])} is listed more than once, with different poses; at most one can be right"
            self.left[number] = Skip("listed_twice", said)

    def chosen(self, most: int | None) -> list[int]:
        """Numbers of at most so many views, spread over those that are whole, all of which are `taken`."""
        while True:
            posed_views.check_enough(self.left, len(self.views), str(self.path))
            usable = [number for number in range(len(self.views)) if number not in self.left]
            chosen = [usable[i] for i in cameras.spread(len(usable), most)]
            if self.taken.keys() >= set(chosen):
                return chosen
            for number in chosen:
                if number not in self.taken:
                    self._take(number)

    def _take(self, number: int) -> None:
        try:
            self.taken[number] = _read(self.views[number], self.layers, self.alpha)
        except Skip as failure:
            if failure.reason not in posed_views.OF_ONE_VIEW:
                raise
            self.left[number] = failure


def _listed_twice(views: Sequence[View], numbers: Sequence[int]) -> list[int]:
    """Numbers, of those given, of the views whose picture is listed with different poses too, at most one of which is right.

    A picture at different times is one of a scene that moves, where that may be meant.
    """
    same: dict[tuple[Path | None, float | None], list[int]] = defaultdict(list)
    for number in numbers:
        picture = views[number].picture
        same[picture.resolve() if picture else None, views[number].time].append(number)
    return [number for those in same.values() if _differ([views[one].c2w for one in those]) for number in those]


def _differ(poses: Sequence[np.ndarray]) -> bool:
    off = SAME_POSE * max(1.0, float(np.abs(poses[0][:3]).max()))
    return any(not np.allclose(poses[0][:3], other[:3], rtol=0, atol=off) for other in poses[1:])


def _name(view: View) -> str:
    """Name of a view for messages and `meta`, which hold no path of a machine: of an absolute one its end."""
    name = view.name.replace("\\", "/")
    return (name.rpartition("/")[2] if PureWindowsPath(view.name).anchor else name)[: posed_views.NAMED_LENGTH]


def _read(view: View, layers: Sequence[str] | None, alpha: bool) -> tuple[bytes, np.ndarray, Lens]:
    """A view's picture, with its mask if alpha, fxfycxcy (4,) and lens. Raises Skip: OF_ONE_VIEW, unsupported_camera."""
    assert view.picture is not None
    name = _name(view)
    try:
        data = view.frame() if view.frame else bundles.read_file(view.picture)
    except Skip as failure:
        raise Skip(failure.reason, failure.detail.replace(str(view.picture), name)) from None
    hw = posed_views.hw_of(data, name)
    try:
        fxfycxcy, lens = view.camera(hw)
        check_intrinsics(name, fxfycxcy, hw)
    except Skip as failure:
        said = failure.detail if Path(name).name in failure.detail else f"{name}: {failure.detail}"
        raise Skip(failure.reason, said + _turned(data)) from None
    if layers is not None:
        posed_views.check_readable(data, name, view.layer, layers)
    if alpha and view.mask is not None:
        data = posed_views.masked(data, name, view.mask())
    return data, fxfycxcy, lens


def _turned(data: bytes) -> str:
    """Words on a picture that an EXIF tag turns; "" for others."""
    if (tag := images.orientation(data)) == 1:
        return ""
    return (
        f"; its EXIF orientation is {tag}, which camera files do not follow: poses and sizes are of the pixels as they are "
        "stored. If these are of upright pictures, `mogrify -auto-orient` turns the pixels"
    )


def _layer(views: list[View], name: str, index: int) -> np.ndarray:
    """Implement Posed.layer."""
    layer = views[index].layer
    assert layer is not None  # of a format, all views have layers or none
    return layer(name)
