"""Which objects, which views and which poses a training step sees: pure functions of a seed, a position and the cameras.

Training is one endless sequence of entries, epoch after epoch, each epoch a permutation of its own. Step s of a global batch of G
takes the entries s*G .. s*G+G-1, and what an entry is depends on its position alone. So a run resumes from its step
number, and neither the workers nor the ranks show.
"""

from __future__ import annotations

import functools

import numpy as np

from pipeline.core.records import item_rng

POSE_SCALE = 1.35  # of arXiv 2410.17242's code: the farthest camera of a clip ends at 1/1.35


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, objects: int) -> np.ndarray:
    """The order of an epoch: (objects,), read-only."""
    order = item_rng(seed, str(epoch), "epoch").permutation(objects)
    order.flags.writeable = False
    return order


def object_at(seed: int, position: int, objects: int, repeats: int = 1) -> int:
    """Which of so many objects an entry of the endless sequence is. repeats: entries in a row that are of one object."""
    epoch, place = divmod(position // repeats, objects)
    return int(permutation(seed, epoch, objects)[place])


def view_count(seed: int, step: int, of: str, least: int, most: int) -> int:
    """How many views all samples of a step have of a kind ("inputs", "targets"): uniform in least..most."""
    return least if least == most else int(item_rng(seed, str(step), of).integers(least, most + 1))


def farthest_points(points: np.ndarray, count: int, start: int) -> np.ndarray:
    """Indices (count,) of points (N, D): `start`, then always the one that is farthest from those taken (the first of equals)."""
    chosen = [start]
    nearest = np.full(len(points), np.inf)
    for _ in range(count - 1):
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(-1))
        nearest[chosen] = -1  # doubles of a camera must not be taken twice
        chosen.append(int(nearest.argmax()))
    return np.array(chosen)


def object_views(
    rng: np.random.Generator, centres: np.ndarray, inputs: int, targets: int, farthest: bool, among: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Views of an object to show (inputs,) and to ask for (targets,), of V >= inputs + targets with centres (V, 3).

    farthest: inputs by farthest points from a random first. among: targets are drawn from all inputs + targets views.
    """
    pool = rng.permutation(len(centres))
    if farthest:
        shown = farthest_points(centres, inputs, int(pool[0]))
        pool = np.concatenate([shown, pool[~np.isin(pool, shown)]])
    return _split(rng, pool, inputs, targets, among)


def _split(
    rng: np.random.Generator, pool: np.ndarray, inputs: int, targets: int, among: bool
) -> tuple[np.ndarray, np.ndarray]:
    asked = rng.permutation(pool[: inputs + targets]) if among else pool[inputs:]
    return pool[:inputs], asked[:targets]


def clip_fits(frame: np.ndarray, views: int, gap: tuple[int, int]) -> bool:
    """Whether a clip whose views stand at frames (V,), ascending, has a window of so many views as wide as `gap` allows."""
    first, last = _windows(frame, views, gap)
    return bool((last >= first).any())


def clip_views(
    rng: np.random.Generator, frame: np.ndarray, inputs: int, targets: int, gap: tuple[int, int], among: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Views of a clip, at frames (V,) ascending, to show (inputs,) and to ask for (targets,).

    The first two inputs are the ends of a window, gap[0]..gap[1] frames apart, and all other views are between them. The width is
    uniform, then the place: long clips are not all wide windows, nor all narrow ones.
    """
    first, last = _windows(frame, inputs + targets, gap)
    starts = np.flatnonzero(last >= first)
    widest = frame[last[starts]] - frame[starts]
    width = int(rng.integers(gap[0], widest.max() + 1))
    start = int(rng.choice(starts[widest >= width]))
    ends = np.arange(first[start], last[start] + 1)
    end = int(ends[np.abs(frame[ends] - frame[start] - width).argmin()])
    pool = np.concatenate([[start, end], rng.permutation(np.arange(start + 1, end))])
    return _split(rng, pool, inputs, targets, among)


def _windows(frame: np.ndarray, views: int, gap: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Of each view as a window's start (V,): the nearest and the farthest view that may end it; nearest > farthest: none may."""
    near = np.maximum(np.searchsorted(frame, frame + gap[0]), np.arange(len(frame)) + views - 1)
    return near, np.searchsorted(frame, frame + gap[1], side="right") - 1


def rotate_z(c2w: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Cameras (B, V, 4, 4) in worlds that are turned about z by angle (B,) radians, float32. Pictures stay as they are."""
    turn = np.zeros((len(angle), 4, 4))
    turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle)
    turn[:, 1, 0] = np.sin(angle)
    turn[:, 0, 1] = -turn[:, 1, 0]
    turn[:, 2, 2] = turn[:, 3, 3] = 1
    return (turn[:, None] @ c2w).astype(np.float32)


def normalise_poses(c2w: np.ndarray) -> np.ndarray:
    """Cameras (V, 4, 4) of one sample of a clip, seen from their mean camera and scaled: (V, 4, 4) float32.

    The mean camera has the mean centre, looks along the mean forward axis, and its down is the mean down as far as that is
    perpendicular. The largest coordinate of a centre becomes 1 / POSE_SCALE; cameras that never move are only turned. For clips,
    whose world has a scale and an origin of its own; never for objects.
    """
    c2w = np.asarray(c2w, np.float64)
    down, forward, centre = np.moveaxis(c2w[:, :3, 1:].mean(0), -1, 0)
    if min(np.linalg.norm(forward), np.linalg.norm(np.cross(down, forward))) < 1e-6:
        down, forward = c2w[0, :3, 1], c2w[0, :3, 2]  # they look in all directions: no mean is better than the first
    forward = forward / np.linalg.norm(forward)
    right = np.cross(down, forward)
    right /= np.linalg.norm(right)
    mean = np.stack([right, np.cross(forward, right), forward], -1)  # its columns are the axes
    made = c2w.copy()
    made[:, :3, :3] = mean.T @ c2w[:, :3, :3]
    made[:, :3, 3] = (c2w[:, :3, 3] - centre) @ mean
    farthest = np.abs(made[:, :3, 3]).max()
    if farthest > 1e-9 * (1 + np.abs(centre).max()):
        made[:, :3, 3] /= POSE_SCALE * farthest
    return made.astype(np.float32)
