"""Objects, views and poses of a training step: pure functions of a seed, a position and the cameras.

Training is an endless sequence of entries, epoch after epoch, each epoch with its own permutation. Step s with global batch
size G takes the entries s*G .. s*G+G-1, and an entry depends on its position alone. So a run resumes from its step number,
and the numbers of workers and ranks have no influence.
"""

from __future__ import annotations

import functools

import numpy as np

from pipeline.core.records import item_rng

SPREAD = 2.0  # the whole time of what moves, in mean distances of the cameras from their middle
POSE_SCALE = 1.35  # as in the code of arXiv 2410.17242: the largest coordinate of a clip's cameras becomes 1/1.35


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, objects: int) -> np.ndarray:
    """Order of the objects in an epoch: (objects,), read-only."""
    order = item_rng(seed, str(epoch), "epoch").permutation(objects)
    order.flags.writeable = False
    return order


def object_at(seed: int, position: int, objects: int, repeats: int = 1) -> int:
    """Object at a position of the endless sequence. objects: how many there are. repeats: consecutive entries of one object."""
    epoch, offset = divmod(position // repeats, objects)
    return int(permutation(seed, epoch, objects)[offset])


def view_count(seed: int, step: int, kind: str, least: int, most: int) -> int:
    """Number of "inputs" or "targets" (kind) in every sample of a step: uniform in least..most."""
    return least if least == most else int(item_rng(seed, str(step), kind).integers(least, most + 1))


def shape_number(seed: int, step: int, shapes: int) -> int:
    """Which of `shapes` shapes the pictures of a step have: each as often."""
    return 0 if shapes == 1 else int(item_rng(seed, str(step), "shape").integers(shapes))


def farthest_points(points: np.ndarray, count: int, start: int) -> np.ndarray:
    """Indices (count,) of points (N, D): `start`, then always the point farthest from all chosen ones (the first if equal)."""
    chosen = [start]
    nearest = np.full(len(points), np.inf)
    for _ in range(count - 1):
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(-1))
        nearest[chosen] = -1  # else a camera equal to a chosen one could be chosen twice
        chosen.append(int(nearest.argmax()))
    return np.array(chosen)


def in_place_and_time(centres: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Camera centres (V, 3) and times (V,) from 0 to 1 as points (V, 4), whose distances count both: see SPREAD. Of what stands
    still the centres alone."""
    if not time.any():
        return centres
    far = float(np.linalg.norm(centres - centres.mean(0), axis=-1).mean()) or 1.0
    return np.concatenate([centres, SPREAD * far * time[:, None]], -1)


def object_views(
    rng: np.random.Generator, views: int, inputs: int, targets: int, among: bool, centres: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Input views (inputs,) and target views (targets,) of an object with `views` >= inputs + targets of them.

    among: targets may be among the inputs. centres: (views, 3) of cameras, for inputs that are farthest points from a random
    first one.
    """
    pool = rng.permutation(views)
    if centres is not None:
        shown = farthest_points(centres, inputs, int(pool[0]))
        pool = np.concatenate([shown, pool[~np.isin(pool, shown)]])
    return _split(rng, pool, inputs, targets, among)


def _split(
    rng: np.random.Generator, pool: np.ndarray, inputs: int, targets: int, among: bool
) -> tuple[np.ndarray, np.ndarray]:
    candidates = rng.permutation(pool[: inputs + targets]) if among else pool[inputs:]
    return pool[:inputs], candidates[:targets]


def is_scene(subject: str, scenes: bool) -> bool:
    """True for what follows the rule of scenes (a window of frames): clips, and with `scenes` all but known objects.

    subject: "clips", "objects", or "" where nothing says so.
    """
    return subject == "clips" or (scenes and subject != "objects")


def fits(frame: np.ndarray, views: int, held_views: int, gap: tuple[int, int] | None) -> bool:
    """True if views at frames (V,), in any order, are enough for a sample of `views`. gap: of scenes, see `clip_fits`; None: of
    objects, `held_views` of whose views never train.
    """
    return len(frame) - held_views >= views if gap is None else clip_fits(np.sort(frame), views, gap)


def clip_fits(frame: np.ndarray, views: int, gap: tuple[int, int]) -> bool:
    """True if a clip with views at frames (V,), ascending, has a window of >= `views` views, gap[0]..gap[1] frames wide."""
    first, last = _windows(frame, views, gap)
    return bool((last >= first).any())


def clip_views(
    rng: np.random.Generator, frame: np.ndarray, inputs: int, targets: int, gap: tuple[int, int], among: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Input views (inputs,) and target views (targets,) of a clip with views at frames (V,), ascending.

    The first two inputs are the ends of a window, gap[0]..gap[1] frames apart, and all other views lie between them. The width
    is drawn first, uniformly, and then the start, so that widths are spread evenly in long clips too.
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
    """Nearest and farthest end (V,), (V,) of a window that starts at each view; nearest > farthest: there is none."""
    near = np.maximum(np.searchsorted(frame, frame + gap[0]), np.arange(len(frame)) + views - 1)
    return near, np.searchsorted(frame, frame + gap[1], side="right") - 1


def rotate_z(c2w: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Cameras c2w (B, V, 4, 4) in worlds rotated about z by angle (B,) radians, float32. Images do not change."""
    turn = np.zeros((len(angle), 4, 4))
    turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle)
    turn[:, 1, 0] = np.sin(angle)
    turn[:, 0, 1] = -turn[:, 1, 0]
    turn[:, 2, 2] = turn[:, 3, 3] = 1
    return (turn[:, None] @ c2w).astype(np.float32)


def normalise_poses(c2w: np.ndarray) -> np.ndarray:
    """Cameras c2w (V, 4, 4) of a clip's sample relative to their mean camera, and scaled: (V, 4, 4) float32.

    The mean camera has the mean centre and the mean forward axis; its down axis is the perpendicular part of the mean down. The
    largest coordinate of a centre becomes 1 / POSE_SCALE; cameras that never move are not scaled. For clips, whose world has an
    arbitrary scale and origin; never for objects.
    """
    c2w = np.asarray(c2w, np.float64)
    turn, centre, unit = mean_frame(c2w)
    relative = c2w.copy()
    relative[:, :3, :3] = turn @ c2w[:, :3, :3]
    relative[:, :3, 3] = (c2w[:, :3, 3] - centre) @ turn.T / unit
    return relative.astype(np.float32)


def mean_frame(c2w: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Frame that `normalise_poses` puts cameras (V, 4, 4) in: (turn, centre, unit): a point x is at turn (x - centre) / unit.

    turn: rotation (3, 3), its rows the axes of the mean camera. centre: (3,). unit: a length, 1 for cameras that never move.
    """
    down, forward, centre = np.moveaxis(c2w[:, :3, 1:].mean(0), -1, 0)
    if min(np.linalg.norm(forward), np.linalg.norm(np.cross(down, forward))) < 1e-6:
        down, forward = c2w[0, :3, 1], c2w[0, :3, 2]  # directions cancel out: take the first camera's
    forward = forward / np.linalg.norm(forward)
    right = np.cross(down, forward)
    right /= np.linalg.norm(right)
    turn = np.stack([right, np.cross(forward, right), forward])
    farthest = float(np.abs((c2w[:, :3, 3] - centre) @ turn.T).max())
    moves = farthest > 1e-9 * (1 + np.abs(centre).max())
    return turn, centre, POSE_SCALE * farthest if moves else 1.0
