"""Plan of new views: which photos a model sees, from where it renders, and at what size; with warnings of what will suffer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lvsm_train.config.shapes import HW, cropped_hw, whole_patches
from lvsm_train.config.synthesis import SynthesisConfig
from lvsm_train.data.samples import KINDS
from lvsm_train.synthesis import routes, stage
from lvsm_train.synthesis.album import Album, Pictures, framed, pictures
from lvsm_train.synthesis.model import Model
from lvsm_train.synthesis.routes import Cameras
from lvsm_train.synthesis.stage import Stage
from pipeline.core.errors import UserError
from pipeline.core.records import instants

LARGER = (
    1.2  # times the pixels of training, from which enlarging is better; shapes of as many pixels differ by rounding
)
MOST = 8  # times the side of pictures of training: more would take days, or all memory, and show nothing
LOSS = 0.02  # share of a picture; less is cropped without a warning
CHOICES = {
    "given": "as asked for",
    "far": "far from each other",
    "near": "near the path",
    "even": "evenly spread in their order",
}


@dataclass(frozen=True)
class Plan:
    """Views to render. shown: the inputs, by their numbers in `inputs`. c2w (F, 4, 4), fxfycxcy (F, 4): cameras of the new views,
    in the world of the photos. time: (F,), from 0 at the photos' first instant to 1 at their last one. stage: where a model of
    objects sees them. others, truth: photos that were taken there and their pictures, none but for --poses others. choice: how
    inputs were chosen. route: name of the path."""

    album: Album
    hw: HW
    is_scene: bool
    stage: Stage
    inputs: list[int]
    choice: str
    shown: Pictures
    route: str
    c2w: np.ndarray
    fxfycxcy: np.ndarray
    time: np.ndarray
    others: list[int]
    truth: Pictures | None
    warnings: list[str]

    @property
    def input_c2w(self) -> np.ndarray:
        """Poses (N, 4, 4) of the inputs, in the world of the photos."""
        return self.album.c2w[self.inputs]

    @property
    def input_time(self) -> np.ndarray:
        """Times (N,) of the inputs, as those of the views."""
        return self.album.time[self.inputs]


def plan(cfg: SynthesisConfig, model: Model, album: Album) -> Plan:
    """Plan what cfg (resolved) asks for. Raises UserError: too few photos, photos that are not there, a path that is none."""
    hw = _picture_hw(cfg, model, album)
    is_scene = _is_scene(cfg, model, album)
    place, moved = (stage.centred(album.c2w), []) if is_scene else _placed(cfg, album, hw)
    route: str = cfg.path_file.name if cfg.path_file else cfg.poses or ("views" if is_scene else "orbit")
    cams = _cameras(cfg, route, album, place, hw)
    inputs, choice = _inputs(cfg, model, album, is_scene, route, cams)
    others, truth = list[int](), None
    if route == "views":
        cams = Cameras(routes.through(album.c2w[inputs], cfg.frames))
    elif route == "others":
        others = _others(album, inputs)
        truth = pictures(album, others, hw)
        cams = Cameras(album.c2w[others], truth.fxfycxcy)
    assert cams is not None
    shown = pictures(album, inputs, hw)
    k = cams.fxfycxcy
    if k is None:
        k = np.repeat(np.median(shown.fxfycxcy, 0)[None], len(cams.c2w), 0)
    cropped = _of_crops(hw, shown, cams.lost, cfg.aspect)
    time = _time(cfg, model, album, others, len(cams.c2w))
    warnings = [
        *album.notes,
        *_of_time(model, album),
        *moved,
        *_of_sizes(model, hw),
        *cropped,
        *_of_kind(model, is_scene),
    ]
    if cfg.input and cfg.verify_cameras:
        warnings += album.doubts(inputs)
    return Plan(
        album, hw, is_scene, place, inputs, CHOICES[choice], shown, route, cams.c2w, k, time, others, truth, warnings
    )


# ---- size and kind


def _picture_hw(cfg: SynthesisConfig, model: Model, album: Album) -> HW:
    """(height, width) of the pictures, in whole patches: a size of training that is of the shape that is asked for, else as many
    pixels as in training."""
    trained = model.hw or (album.shape() if cfg.data else (cfg.res, cfg.res) if cfg.res else None)
    if trained is None:
        raise UserError(f"{cfg.run} does not say at which size it was trained, and its data are gone", "--res 256")
    width, height = cfg.shape or (album.shape() if cfg.aspect == "photos" else trained)[::-1]
    known = model.sizes or [trained]
    most = max(high for high, _ in known), max(wide for _, wide in known)
    if cfg.res is None and (cropped := cropped_hw((width, height), most, model.patch)) in known:
        return cropped
    wide = cfg.res or math.sqrt(trained[0] * trained[1] * width / height)
    high = wide * height / width
    if max(high, wide) > MOST * max(most):
        said = f"pictures of {wide:.0f}x{high:.0f} pixels are over {MOST} times as large as the {max(most)} of training"
        raise UserError(said, f"--res {max(most)}, or less; pictures of the trained size can be enlarged afterwards")
    return whole_patches(high, model.patch), whole_patches(wide, model.patch)


def _is_scene(cfg: SynthesisConfig, model: Model, album: Album) -> bool:
    """True where cameras are normalised as those of clips: the rule of training for shards; for photos what the model is for."""
    if cfg.kind or album.subject:
        return (cfg.kind or album.subject) in ("scene", "clips")
    return model.trained.cfg.data.scenes if cfg.data else model.is_scene


def _of_kind(model: Model, is_scene: bool) -> list[str]:
    """Warn where the model was trained on none of this kind."""
    if not model.kinds or model.kinds.get(KINDS[is_scene]):
        return []
    other = "--kind object" if is_scene else "--kind scene"
    return [
        f"the model was not trained on {KINDS[is_scene]}: expect little ({other} takes the photos as the other kind)"
    ]


def _of_sizes(model: Model, hw: HW) -> list[str]:
    """Warn of a size or shape that is not the trained one."""
    if not model.sizes or hw in model.sizes:
        return []
    at = " and ".join(f"{width}x{height}" for height, width in dict.fromkeys(model.sizes))
    larger = math.prod(hw) > LARGER * max(map(math.prod, model.sizes))
    way_out = (
        "pictures of the trained size, without --res, are better, also when they are enlarged afterwards"
        if larger
        else "without --res and --aspect they are as in training, and `train --aspect` makes models for several shapes"
    )
    return [
        f"pictures of {hw[1]}x{hw[0]} pixels, and the model was trained at {at}: expect blur and artefacts, the more the "
        f"farther size and shape are from that (docs/synthesis.md has figures); {way_out}"
    ]


def _of_crops(hw: HW, shown: Pictures, lost: float, aspect: str) -> list[str]:
    """Warn of what was cropped, and of photos that were enlarged. aspect: as it was asked for."""
    said = []
    if shown.lost > LOSS:
        way_out = (
            "that is the first photo's shape in whole patches: a larger --res comes nearer, --views names photos of one shape"
            if aspect == "photos"
            else "--aspect photos keeps the first photo's shape"
        )
        said.append(
            f"up to {shown.lost:.0%} of a photo is cropped at its sides, for pictures of {hw[1]}x{hw[0]}; {way_out}"
        )
    if lost > LOSS:
        said.append(
            f"{lost:.0%} of the pictures that the file of --poses speaks of is cropped at their sides; --aspect W:H with its "
            "shape keeps it"
        )
    if shown.enlarged > 1.001:
        said.append(
            f"photos are enlarged {shown.enlarged:.2g} times, and new views will be as blurred; --res takes less"
        )
    return said


# ---- where


def _placed(cfg: SynthesisConfig, album: Album, hw: HW) -> tuple[Stage, list[str]]:
    """Stage of an object, and a line where its world is moved."""
    k = np.asarray(album.posed.fxfycxcy[:1], np.float64)
    fx, fy, _, _ = framed(k, album.shape(), hw)[0][0]
    fov = math.degrees(2 * math.atan(min(hw[1] / 2 / fx, hw[0] / 2 / fy)))
    if cfg.world == "keep" or (cfg.world is None and (cfg.data or stage.as_in_training(album.c2w, fov))):
        return stage.AS_IS, []
    found = stage.fitted(album.c2w, fov)
    said = (
        f"the world is moved by {_text(-found.origin)}, turned so that up is z, and scaled by {found.scale:.3g}, so that what "
        "all cameras look at is where objects of training are; --world keep takes it as it is, --kind scene as a scene"
    )
    return found, [said]


def _text(numbers: np.ndarray) -> str:
    return " ".join(f"{number:.3g}" for number in numbers)


def _cameras(cfg: SynthesisConfig, route: str, album: Album, place: Stage, hw: HW) -> Cameras | None:
    """Cameras that do not depend on the inputs; None for those that do."""
    if cfg.path_file:
        return routes.of_file(cfg, hw)
    if route in ("views", "others"):
        return None
    return Cameras(place.back(routes.around(route, cfg.frames, place.to(album.c2w))))  # type: ignore[arg-type]


# ---- when


def _time(cfg: SynthesisConfig, model: Model, album: Album, others: Sequence[int], count: int) -> np.ndarray:
    """Times (F,) of the views. Raises UserError for --time of a model, or of photos, that know none."""
    knows, moves = model.trained.cfg.model.temporal, bool(album.time.any())
    if cfg.time is not None and not (knows and moves):
        lacks = f"the photos of {album.name} are of one instant" if knows else "the model does not know time"
        raise UserError(
            f"--time {cfg.time:g}: {lacks}", "leave it out; docs/time.md says how to train and what to render"
        )
    if cfg.time is not None or not moves:
        return np.full(count, cfg.time or 0.0, np.float32)
    return album.time[others] if others else np.linspace(0, 1, count, dtype=np.float32)


def _of_time(model: Model, album: Album) -> list[str]:
    """Warn of photos of several instants that a model takes as of one."""
    if model.trained.cfg.model.temporal or not album.time.any():
        return []
    many = instants(album.posed.times)
    return [f"the photos are of {many} instants, and this model takes them as of one: what moves will be blurred"]


# ---- inputs


def _inputs(
    cfg: SynthesisConfig, model: Model, album: Album, is_scene: bool, route: str, cams: Cameras | None
) -> tuple[list[int], str]:
    """Numbers of the photos that the model sees, and how they were chosen, a key of CHOICES."""
    if cfg.views:
        if beyond := [view for view in cfg.views if view >= len(album)]:
            raise UserError(f"{album.name} has no photo {beyond[0]}", f"it has photos 0 to {len(album) - 1}")
        return list(cfg.views), "given"
    count = cfg.inputs or model.inputs
    free = np.flatnonzero(~album.held_out)
    usable = free if len(free) >= count else np.arange(len(album))
    if len(usable) < count:
        said = f"{album.name} has {len(usable)} photos that can be used, and the model is to see {count}"
        raise UserError(said, f"--inputs {len(usable)}, or more photos")
    choose = cfg.choose or ("far" if not is_scene else "even" if cams is None else "near")
    c2w = album.c2w[usable]
    if choose == "near":
        if cams is None:
            raise UserError(
                f"--choose near needs a path, and --poses {route} has none before its inputs", "--choose far"
            )
        chosen = stage.near(c2w, cams.c2w, count)
    else:
        chosen = stage.far(c2w, count, album.time[usable]) if choose == "far" else stage.even(len(usable), count)
    return usable[chosen].tolist(), choose


def _others(album: Album, inputs: Sequence[int]) -> list[int]:
    """Photos to compare with: those that their set keeps for tests, where there are any, else all that are no inputs."""
    left = np.setdiff1d(np.arange(len(album)), inputs)
    held = left[album.held_out[left]]
    if not len(left):
        raise UserError(
            f"{album.name} has no photo but the {len(inputs)} inputs", f"--inputs {max(1, len(inputs) - 1)}"
        )
    return (held if len(held) else left).tolist()
