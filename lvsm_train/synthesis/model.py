"""Trained model as a function from posed pictures to new views: what `lvsm_train.load` returns."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from lvsm_train.config import shapes
from lvsm_train.config.shapes import HW
from lvsm_train.data.index import read_index
from lvsm_train.data.samples import KINDS
from lvsm_train.data.view_sampling import normalise_poses
from lvsm_train.device.devices import autocast
from lvsm_train.weights.trained import Trained, open_model
from pipeline.config.shared import address_of
from pipeline.core import cameras
from pipeline.core.errors import UserError

Array: TypeAlias = "np.ndarray | torch.Tensor"
AT_ONCE = 8  # views decoded in one call


def load(where: Path | str, step: int | None = None, device: str = "auto", preset: str | None = None) -> Model:
    """Load a trained model: the folder of a run of lvsm-data train (at a step, by default of the newest checkpoint), an exported
    model, a checkpoint of the official LVSM (of which `preset`), or hf:OWNER/NAME; see `open_model`.

    device: cpu, cuda, cuda:1, ...; auto: a GPU if there is one. Raises UserError where there is nothing to load.
    """
    return Model(open_model(where, step, device, preset))


class Model:
    """Trained model. Pictures are sRGB, (N, H, W, 3): uint8, or float in [0, 1]. c2w (N, 4, 4): camera to world, OpenCV axes
    (+x right, +y down, +z forward). fxfycxcy (N, 4): in pixels of these pictures, the centre of the first pixel at 0.5.
    NumPy arrays or tensors.

    inputs: number of pictures that it was shown in training. patch: both sides of a picture are multiples of it. hw: (height,
    width) of the pictures of training, None if that is not known any more; sizes: all of them, where it was trained at several
    (--aspect). is_scene: True if it was trained on clips alone,
    whose cameras are normalised. kinds: number of clips and of objects that it was trained on, empty if that is not known.
    """

    def __init__(self, trained: Trained) -> None:
        self.trained, self.net = trained, trained.net
        cfg = trained.cfg
        self.inputs, self.patch = cfg.data.inputs, cfg.model.patch
        self.device = next(trained.net.parameters()).device
        said = trained.card.get("data")
        card = said if isinstance(said, dict) else {}
        self.kinds: dict[str, int] = card.get("kinds", {})
        clips, objects = (self.kinds.get(KINDS[scene], 0) for scene in (True, False))
        self.is_scene = bool(clips and not objects) if clips or objects else cfg.data.scenes
        self.sizes = _sizes(card, trained)
        self.hw = self.sizes[0] if self.sizes else None

    def render(
        self,
        images: Array,
        c2w: Array,
        fxfycxcy: Array,
        target_c2w: Array,
        target_fxfycxcy: Array,
        *,
        time: Array | None = None,
        target_time: Array | None = None,
        hw: HW | None = None,
        is_scene: bool | None = None,
        batch: int = AT_ONCE,
    ) -> np.ndarray:
        """N posed pictures of one object or scene, and F cameras -> what these see, (F, H, W, 3) float32 in [0, 1].

        images (N, H, W, 3), c2w (N, 4, 4), fxfycxcy (N, 4), target_c2w (F, 4, 4), target_fxfycxcy (F, 4): see `Model`.
        time (N,), target_time (F,): from 0 to 1, of models that know time; 0 by default, others pass over them.
        hw: (height, width) of the new views, by default of the pictures. is_scene: normalise all cameras together as in training
        on clips; by default as the model was trained. Cameras of objects are taken as they are: the object at the origin, within
        0.5 of it, z up. batch: views rendered together. Raises ValueError for shapes and values that are not so.
        """
        own, others = self.normalised(c2w, target_c2w, is_scene)
        encoded = self.encode(images, own, fxfycxcy, time)
        return np.concatenate(list(encoded.views(others, target_fxfycxcy, hw, batch, target_time)))

    def normalised(self, c2w: Array, target_c2w: Array, is_scene: bool | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Cameras (N, 4, 4), (F, 4, 4) as the network takes them, float32. Raises ValueError for poses that are not rigid."""
        own, others = _poses(c2w, "c2w"), _poses(target_c2w, "target_c2w")
        if not (self.is_scene if is_scene is None else is_scene):
            return own.astype(np.float32), others.astype(np.float32)
        together = normalise_poses(np.concatenate([own, others]))
        return together[: len(own)], together[len(own) :]

    def encode(self, images: Array, c2w: Array, fxfycxcy: Array, time: Array | None = None) -> Encoded:
        """Read N posed pictures once, to render any number of views of them. c2w: as of `normalised`. time: as of `render`."""
        pictures = _pictures(images)
        k = _numbers(fxfycxcy, (len(pictures), 4), "fxfycxcy")
        if len(c2w) != len(pictures):
            raise ValueError(f"{len(pictures)} pictures and {len(c2w)} poses: give one pose per picture")
        height, width = pictures.shape[1:3]
        if height % self.patch or width % self.patch:
            raise ValueError(f"pictures of {height}x{width} (height x width) have no whole patches of {self.patch}")
        pixels = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))[None].to(self.device)
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        with torch.no_grad(), autocast(self.trained.cfg.precision, self.device):
            when = self._tensor(_times(time, len(pictures), "time"))
            scene = self.net.encode(pixels, self._tensor(_poses(c2w, "c2w")), self._tensor(k), time=when)
        return Encoded(self, scene, (height, width))

    def _tensor(self, numbers: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(numbers, np.float32))[None].to(self.device)


@dataclass(frozen=True)
class Encoded:
    """Pictures that a model has read. scene: as of LVSM.encode. hw: (height, width) of the pictures."""

    model: Model
    scene: Any
    hw: HW

    def views(
        self, c2w: Array, fxfycxcy: Array, hw: HW | None = None, batch: int = AT_ONCE, time: Array | None = None
    ) -> Iterator[np.ndarray]:
        """Yield what F cameras see, up to `batch` at a time: (n, H, W, 3) float32 in [0, 1]. c2w: as of `Model.normalised`.
        time: as target_time of `Model.render`."""
        poses = _poses(c2w, "target_c2w")
        k = _numbers(fxfycxcy, (len(poses), 4), "target_fxfycxcy")
        times = _times(time, len(poses), "target_time")
        model, size = self.model, self.hw if hw is None else _size(hw)
        if not isinstance(batch, Integral) or batch < 1:
            raise ValueError(f"batch is {batch}: give a number of views, 1 or more")
        for at in range(0, len(poses), batch):
            pose, own, when = (model._tensor(numbers[at : at + batch]) for numbers in (poses, k, times))
            with torch.no_grad(), autocast(model.trained.cfg.precision, model.device):
                made = model.net.decode(self.scene, pose, own, size, time=when)[0]
            yield made.float().clamp(0, 1).movedim(1, -1).cpu().numpy()


def _size(hw: HW) -> HW:
    """(height, width) as plain numbers. Raises ValueError for what is none; whole patches are for the network to check."""
    try:
        height, width = map(operator.index, hw)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise ValueError(f"hw is {hw}: give (height, width) in pixels, such as (64, 64)")
    return height, width


def _pictures(images: Array) -> np.ndarray:
    """Pictures (N, H, W, 3) as a NumPy array. Raises ValueError for what are none."""
    try:
        pictures = _array(images)
    except ValueError:
        raise ValueError("images are of different sizes, or no arrays: give (N, H, W, 3)") from None
    if pictures.ndim != 4 or pictures.shape[3] != 3 or not pictures.size:
        raise ValueError(f"images are {pictures.shape}: give (N, H, W, 3)")
    if pictures.dtype != np.uint8:
        if not np.issubdtype(pictures.dtype, np.floating):
            raise ValueError(f"images are {pictures.dtype}: give uint8, or floats in [0, 1]")
        if not (np.isfinite(pictures).all() and pictures.min() >= 0 and pictures.max() <= 1):
            raise ValueError(f"images go from {pictures.min():g} to {pictures.max():g}: floats lie in [0, 1]")
    return pictures


def _poses(c2w: Array, name: str) -> np.ndarray:
    """Poses (N, 4, 4) float64. Raises ValueError, which calls them `name`, for others, and for those that are not rigid."""
    poses = _floats(c2w, name)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or not len(poses):
        raise ValueError(f"{name} is {poses.shape}: give (N, 4, 4)")
    cameras.check_rigid(poses, name=lambda number: f"{name}[{number}]")
    return poses


def _numbers(given: Array, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Intrinsics of this shape, float64. Raises ValueError, which calls them `name`, for others."""
    numbers = _floats(given, name)
    if numbers.shape != shape:
        raise ValueError(f"{name} is {numbers.shape}: give {shape}")
    if not np.isfinite(numbers).all() or not (numbers[:, :2] > 0).all():
        raise ValueError(f"{name} has numbers that are not finite, or focal lengths that are not positive")
    return numbers


def _times(given: Array | None, count: int, name: str) -> np.ndarray:
    """Times (count,) float64, 0 where none are given. Raises ValueError, which calls them `name`, for others."""
    times = np.zeros(count) if given is None else _floats(given, name)
    if times.shape != (count,) or not np.isfinite(times).all():
        raise ValueError(f"{name} is {times.shape}: give ({count},), finite")
    return times


def _floats(given: Array, name: str) -> np.ndarray:
    """Numbers as float64. Raises ValueError, which calls them `name`, for what are none."""
    try:
        return _array(given).astype(np.float64)
    except (TypeError, ValueError):  # NumPy's do not say which argument it is
        raise ValueError(f"{name} is no array of numbers") from None


def _array(given: Array) -> np.ndarray:
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
        return (given.float() if given.dtype == torch.bfloat16 else given).numpy()  # NumPy has no bfloat16
    return np.asarray(given)


def _sizes(card: Mapping[str, Any], trained: Trained) -> list[HW]:
    """(height, width) of pictures of training: as the card says, or the shards that it used, where they are still there."""
    with contextlib.suppress(ValueError, TypeError):
        return [(int(height), int(width)) for height, width in card.get("sizes") or [card.get("size", ())]]
    cfg = trained.cfg.data
    if cfg.data and not any(map(address_of, cfg.data)):  # which would be copied here, all of them
        with contextlib.suppress(UserError):
            return shapes.sizes(cfg.aspect, read_index(cfg.data, cfg.res, 1).hw, trained.cfg.model.patch)
    return []
