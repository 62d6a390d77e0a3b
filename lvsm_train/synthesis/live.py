"""Views rendered one by one as a page asks for them: the newest wish first, and what each of them is worth."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from lvsm_train.device.devices import now
from lvsm_train.synthesis.routes import Viewpoint
from lvsm_train.synthesis.synthesize import Read, levels
from pipeline.config import rig
from pipeline.core import images
from pipeline.core.cameras import BOUNDING_RADIUS
from pipeline.export.camera_paths import novelty
from pipeline.report.findings import Figure

FARTHEST, NEAREST = 10.0, 0.01  # bounds of how far a viewpoint is away, times the distance of the farthest camera
THUMB = 96  # pixels of width of the photos' small pictures
SAME_DEG, SAME = 0.05, 1e-3  # angle, and share of what is far, below which a camera is that of a photo
ALONE, ALONE_DEG = 0.5, 30.0  # what is far from a single photo: a share of its distance from what it shows; degrees


@dataclass(frozen=True)
class Wish:
    """View to render. lens: 0 as the first camera has it, n as the n-th input."""

    viewpoint: Viewpoint
    lens: int = 0


class Newest:
    """Mailbox for one wish: a newer one takes the place of the one that waits, whose Future is cancelled."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waits: tuple[Wish, Future[dict[str, Any]]] | None = None
        self.is_open = True

    def ask(self, wish: Wish) -> Future[dict[str, Any]]:
        """Leave a wish. The Future ends with its answer, or cancelled: by a newer wish, or since the mailbox is closed."""
        answer: Future[dict[str, Any]] = Future()
        with self._changed:
            old, self._waits = self._waits, (wish, answer)
            self._changed.notify()
        if old:
            old[1].cancel()
        if not self.is_open:
            answer.cancel()
        return answer

    def take(self) -> tuple[Wish, Future[dict[str, Any]]] | None:
        """Wait for a wish. None: the mailbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waits or not self.is_open)
            taken, self._waits = self._waits, None
            return taken if self.is_open else None

    def close(self) -> None:
        """End `take`, and cancel the wish that waits. Also for handlers of signals."""
        with self._changed:
            self.is_open, waits, self._waits = False, self._waits, None
            self._changed.notify()
        if waits:
            waits[1].cancel()


class Live:
    """Viewpoints around what the photos show, and what a model makes of them.

    first: where the planned path begins. inputs: where the photos were taken. farthest, nearest: bounds of the lengths of a
    viewpoint, in units of the stage. lenses: fxfycxcy (4,) by `Wish.lens`. rendered: number of views so far.
    """

    def __init__(self, seen: Read) -> None:
        made = seen.plan
        self.seen, self.newest, self.rendered = seen, Newest(), 0
        placed = made.stage.to(np.concatenate([made.c2w[:1], made.input_c2w]))
        self.first, *self.inputs = map(Viewpoint.of, placed)
        self.lenses = [made.fxfycxcy[0], *made.shown.fxfycxcy]
        reach = float(np.linalg.norm(placed[:, :3, 3], axis=-1).max()) or 1.0
        self.farthest, self.nearest = FARTHEST * reach, NEAREST * reach
        self._apart = _apart(made.input_c2w, ALONE * float(np.linalg.norm(placed[1, :3, 3])) / made.stage.scale)

    def work(self) -> None:
        """Answer wishes until the mailbox is closed."""
        while taken := self.newest.take():
            wish, answer = taken
            if answer.set_running_or_notify_cancel():
                answer.set_result(self.answer(wish))

    def answer(self, wish: Wish) -> dict[str, Any]:
        """View as JSON: picture (a data URI of a PNG), ms, near and warnings (for people), and camera, in the world of
        the photos as a file that --poses takes."""
        made, device = self.seen.plan, self.seen.model.device
        c2w = made.stage.back(wish.viewpoint.c2w()[None])
        k = self.lenses[wish.lens][None]
        begun = now(device)
        (view,) = next(self.seen.views(c2w, k, np.median(made.time)[None]))
        picture = images.encode_png(levels(view), level=1)
        seconds = now(device) - begun
        self.rendered += 1
        near, warnings = self._worth(c2w)
        return {
            "picture": Figure(picture).address(),
            "ms": 1000 * seconds,
            "near": near,
            "warnings": warnings,
            "camera": rig.ours(c2w, k, made.hw),
        }

    def _worth(self, c2w: np.ndarray) -> tuple[str, list[str]]:
        """Say how far a camera (1, 4, 4) is from the photos, and warn where a model can only guess."""
        made = self.seen.plan
        (view,), (angle,), (distance,) = novelty(c2w, made.input_c2w)
        name = made.album.posed.name(made.inputs[view])
        near, warnings = f"{angle:.0f}° and {distance:.3g} from {name}, the nearest photo", []
        if angle < SAME_DEG and distance < SAME * self._apart[1]:
            near = f"where {name} was taken"
        if angle > self._apart[0] or distance > self._apart[1]:
            warnings.append("far from all photos: what it shows is made up, more or less")
        radius = BOUNDING_RADIUS["sphere"]
        if not made.is_scene and np.linalg.norm(made.stage.to(c2w)[0, :3, 3]) < radius:
            warnings.append("within the sphere that holds objects of training, where no camera of training was")
        return near, warnings

    def page(self) -> dict[str, Any]:
        """Facts that the page's script works with: all numbers are of `Viewpoint`, by its names."""
        made = self.seen.plan
        return {
            "first": dataclasses.asdict(self.first),
            "inputs": [dataclasses.asdict(one) for one in self.inputs],
            "farthest": self.farthest,
            "nearest": self.nearest,
            "spans": [float(made.hw[1] / k[0]) for k in self.lenses],  # width of what is seen, per distance
        }

    def thumbnails(self) -> list[tuple[str, str]]:
        """Name and small picture, as a data URI, of each photo that the model saw."""
        made = self.seen.plan
        height, width = made.hw
        small = (max(1, round(THUMB * height / width)), THUMB)
        pictures = [images.shrink(one, small) if width > THUMB else one for one in made.shown.image]
        names = [made.album.posed.name(view) for view in made.inputs]
        return [(name, Figure(images.encode_png(one)).address()) for name, one in zip(names, pictures, strict=True)]


def _apart(c2w: np.ndarray, alone: float) -> tuple[float, float]:
    """Largest angle in degrees and distance of a camera (N, 4, 4) from the nearest other one: what is far, and no less than that
    of rounding. alone: distance where there is a single one."""
    if len(c2w) == 1:
        return ALONE_DEG, alone
    each = [novelty(c2w[view : view + 1], np.delete(c2w, view, 0))[1:] for view in range(len(c2w))]
    angle, distance = np.max(each, 0)[:, 0] + 1e-6
    return float(angle), float(distance)
