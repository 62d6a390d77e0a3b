"""Shots: posed views of one scene on their way into another tool's format."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.core import cameras, images
from pipeline.core.errors import Skip
from pipeline.core.records import HELD_OUT, instants, item_rng

POINTS = 20_000  # most points that are unprojected from depth
INDEX = "evaluation_index.json"
EVERY = 8  # one of so many views is for tests, where a format needs a split and none is asked for
THIN = 0.5  # coverage below which the colour of a pixel is not taken from that pixel alone
SAME_PX = 1e-3  # pixels by which intrinsics may differ and still count as one camera's


@dataclass(frozen=True)
class Points:
    """P points of the surfaces. xyz (P, 3), rgb (P, 3) uint8; view (P,) and xy (P, 2): the pixel that each was taken from."""

    xyz: np.ndarray
    rgb: np.ndarray
    view: np.ndarray
    xy: np.ndarray

    def __len__(self) -> int:
        return len(self.xyz)


@dataclass(frozen=True)
class Shots:
    """V views of one scene. name: of files and folders, without dots and slashes; uid: as the run has it.

    jpegs: V files. c2w (V, 4, 4), OpenCV axes. fxfycxcy (V, 4) in pixels, the centre of the first at (0.5, 0.5). hw: size of all.
    alpha: V PNGs, None without. background: what the JPEGs were put on, sRGB levels (3,), None if it is not one colour.
    depth (V, H, W) along the camera's axis, infinite where nothing is; None without. radius: of a sphere around the origin that
    holds the scene, None if not known. times: V, None where none is known; () without. roles: V of train, val, test; "" where
    nobody has asked for a split. held_out: True if the run keeps the scene for validation.
    """

    name: str
    uid: str
    jpegs: Sequence[bytes]
    c2w: np.ndarray
    fxfycxcy: np.ndarray
    hw: tuple[int, int]
    roles: Sequence[str]
    alpha: Sequence[bytes] | None = None
    background: Sequence[int] | None = (255, 255, 255)
    depth: np.ndarray | None = None
    radius: float | None = None
    held_out: bool = False
    times: Sequence[float | None] = ()

    def __len__(self) -> int:
        return len(self.jpegs)

    def split(self) -> Shots:
        """Copy in which each view has a role: every EVERY-th is for tests where none has one, the last one of a few."""
        if any(self.roles):
            return self
        step = min(EVERY, len(self))
        roles = ["test" if place % step == step - 1 and len(self) > 1 else "train" for place in range(len(self))]
        return dataclasses.replace(self, roles=roles)

    @property
    def scene_split(self) -> str:
        """Split of the scene as a whole: train only if all its views are for training, where all are seen."""
        return "test" if self.held_out or set(HELD_OUT) & set(self.roles) else "train"

    @property
    def evaluation(self) -> dict[str, list[int]] | None:
        """Entry of an evaluation index: input views and those to render, by number. None unless views are for either."""
        context, target = self.with_role("train"), self.with_role("test") or self.with_role("val")
        return {"context": context, "target": target} if context and target else None

    def with_role(self, role: str) -> list[int]:
        """Numbers of the views that have a role."""
        return [view for view, own in enumerate(self.roles) if own == role]

    def time(self, view: int) -> dict[str, float]:
        """Entry of a view that says its time, {} where none is known."""
        time = self.times[view] if self.times else None
        return {} if time is None else {"time": time}

    @property
    def moves(self) -> bool:
        """True if views are of different times."""
        return instants(self.times) > 1

    def one_camera(self, what: str) -> np.ndarray:
        """Return the intrinsics (4,) that all views share, square pixels and the centre in the middle included.

        Raises Skip("not_expressible"), which says that `what` has no place for anything else.
        """
        k = self.fxfycxcy[0]
        if np.abs(self.fxfycxcy - k).max() > SAME_PX:
            raise Skip("not_expressible", f"{what} has one camera for all views, and intrinsics differ")
        if abs(k[0] - k[1]) > SAME_PX:
            raise Skip("not_expressible", f"{what} has one focal length, and fx is {k[0]:.5g}, fy {k[1]:.5g}")
        if np.abs(k[2:] - [self.hw[1] / 2, self.hw[0] / 2]).max() > SAME_PX:
            raise Skip("not_expressible", f"{what} has its centre in the middle, not at {k[2]:.5g}, {k[3]:.5g}")
        return np.asarray(k, np.float64)

    def rgba(self, view: int) -> bytes:
        """PNG of a view with straight alpha: what the background added is taken away again, in linear light.

        Where little is covered, what JPEG changed would count many times over: the colours around it count there, by coverage.
        Opaque where the run has no alpha. Raises Skip("not_expressible") for a background of many colours.
        """
        rgb = images.decode(self.jpegs[view])
        if self.alpha is None:
            return images.encode_png(np.dstack([rgb, np.full(self.hw, 255, np.uint8)]))
        if self.background is None:
            raise Skip("not_expressible", "the background is no single colour and cannot be taken away again")
        return images.encode_png(off_background(rgb, images.decode(self.alpha[view]), self.background))

    def near_far(self) -> tuple[np.ndarray, np.ndarray]:
        """Nearest and farthest depth (V,), (V,) along the axis of each view, from depth or the sphere around the scene.

        Raises Skip("not_expressible") if neither is known.
        """
        if self.depth is not None:
            seen = np.where(np.isfinite(self.depth), self.depth, np.nan).reshape(len(self), -1)
            if np.isfinite(seen).any(1).all():
                return np.nanmin(seen, 1), np.nanmax(seen, 1)
        if self.radius is None:
            raise Skip("not_expressible", "near and far are needed, and the run has neither depth nor a known size")
        middle = -np.einsum("vi,vi->v", self.c2w[:, :3, 2], self.c2w[:, :3, 3])  # of the origin, along the axis
        return np.maximum(middle - self.radius, 1e-3), middle + self.radius

    def points(self) -> Points:
        """Points of the surfaces from depth, sorted by view; none without depth."""
        if self.depth is None:
            return Points(np.empty((0, 3)), np.empty((0, 3), np.uint8), np.empty(0, int), np.empty((0, 2)))
        return unprojected(self.uid, self.jpegs, self.depth, self.c2w, self.fxfycxcy)

    def w2c(self) -> np.ndarray:
        """World-to-camera (V, 4, 4) float64, OpenCV axes."""
        return cameras.w2c(self.c2w.astype(np.float64))


def unprojected(
    uid: str, jpegs: Sequence[bytes], depth: np.ndarray, c2w: np.ndarray, fxfycxcy: np.ndarray, most: int = POINTS
) -> Points:
    """Points of the surfaces that V views show, sorted by view: `most` pixels at the largest, chosen by uid, with their colours.

    jpegs: V files. depth: (V, H, W) along the camera's axis, infinite where nothing is. c2w (V, 4, 4), fxfycxcy (V, 4).
    """
    view, row, column = np.nonzero(np.isfinite(depth))
    chosen = np.sort(item_rng(0, uid, "points").permutation(len(view))[:most])
    view, row, column = view[chosen], row[chosen], column[chosen]
    z = depth[view, row, column].astype(np.float64)
    k = fxfycxcy[view].astype(np.float64)
    xy = np.stack([column, row], -1) + 0.5
    local = np.concatenate([(xy - k[:, 2:]) / k[:, :2] * z[:, None], z[:, None]], -1)
    world = np.einsum("pij,pj->pi", c2w[view, :3, :3].astype(np.float64), local) + c2w[view, :3, 3]
    colours = np.empty((len(view), 3), np.uint8)
    for number in np.unique(view):
        own = view == number
        colours[own] = images.decode(jpegs[number])[row[own], column[own]]
    return Points(world, colours, view, xy)


def off_background(rgb: np.ndarray, coverage: np.ndarray, background: Sequence[int]) -> np.ndarray:
    """sRGB bytes (H, W, 3) on a background and coverage (H, W) -> sRGB bytes with straight alpha (H, W, 4), see `Shots.rgba`."""
    share = coverage[..., None] / np.float32(255)
    behind = images.linear(np.array(background, np.uint8))
    light = images.linear(rgb) - (1 - share) * behind
    own = np.minimum(share / THIN, 1)
    around = _sums_around(light) / np.maximum(_sums_around(share), 1 / 255)
    straight = own * light / np.maximum(share, 1 / 255) + (1 - own) * around
    straight[coverage == 0] = 0  # black as Blender writes it, not what JPEG left of the background
    return np.dstack([images.srgb8(np.clip(straight, 0, 1)), coverage])


def _sums_around(values: np.ndarray, reach: int = 2) -> np.ndarray:
    """Sums (H, W, C) over the square of pixels up to `reach` away from each."""
    for axis in (0, 1):
        pad = [(reach + 1, reach) if one == axis else (0, 0) for one in range(3)]
        sums = np.cumsum(np.pad(values, pad), axis, dtype=np.float64)
        size = values.shape[axis]
        values = np.take(sums, range(2 * reach + 1, 2 * reach + 1 + size), axis) - np.take(sums, range(size), axis)
    return values


class Writer(Protocol):
    """What an export makes of scenes: called once for each, then closed."""

    def add(self, shots: Shots) -> None:
        """Write one scene. Raises Skip("not_expressible") if the format has no place for it, with nothing written."""

    def close(self) -> list[str]:
        """Write what is about all scenes. Returns lines for the user."""


class Folders:
    """Writer for formats with a folder for each scene. notes: for the user.

    write: (shots, folder of the scene) -> a note about scenes like that one, or None.
    """

    def __init__(self, root: Path, write: Callable[[Shots, Path], str | None], *notes: str) -> None:
        self.root, self.write, self.notes = root, write, list(notes)

    def add(self, shots: Shots) -> None:
        """Write a scene into ROOT/NAME."""
        note = self.write(shots, self.root / shots.name)
        self.notes += [note] if note and note not in self.notes else []

    def close(self) -> list[str]:
        """Return the notes."""
        return self.notes


def write_index(folder: Path, entries: Mapping[str, dict[str, list[int]]]) -> list[str]:
    """Write the `evaluation` of scenes by name, as pixelSplat and LVSM read it, if there is any. Returns lines for the user."""
    if not entries:
        return []
    (folder / INDEX).write_text(json.dumps(entries))
    return [f"{folder / INDEX}: which views of each scene are given, and which to render"]


def write_pictures(shots: Shots, folder: Path, pattern: str = "{:05d}.jpg") -> list[str]:
    """Write the JPEGs of all views, byte by byte, into a folder. Returns their names."""
    folder.mkdir(parents=True)
    names = [pattern.format(view) for view in range(len(shots))]
    for name, jpeg in zip(names, shots.jpegs, strict=True):
        (folder / name).write_bytes(jpeg)
    return names


def write_ply(path: Path, points: np.ndarray, colours: np.ndarray) -> None:
    """Write points (P, 3) with colours (P, 3) uint8 as binary PLY."""
    kinds = [*((axis, "<f4") for axis in "xyz"), *((name, "u1") for name in ("red", "green", "blue"))]
    rows = np.empty(len(points), kinds)
    for place, axis in enumerate("xyz"):
        rows[axis] = points[:, place]
    for place, name in enumerate(("red", "green", "blue")):
        rows[name] = colours[:, place]
    names = {"<f4": "float", "u1": "uchar"}
    head = [f"property {names[kind]} {name}" for name, kind in kinds]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}", *head, "end_header", ""]
    path.write_bytes("\n".join(lines).encode() + rows.tobytes())
