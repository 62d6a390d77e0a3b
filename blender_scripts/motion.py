"""Motions of procedural objects: parts that turn, swing, travel and stretch; smooth, periodic, from the seed."""

from collections.abc import Callable, Sequence

import bpy
import numpy as np
from materials import weighted
from mathutils import Matrix
from procedural import unit
from shapes import TAU

RATE = 24  # frames per second
PERIOD = 48  # frames until all stands as at the beginning
MOVING = 0.7  # share of the parts that move, beside the first one, which seldom does
FIRST = 0.25  # how often it does

Motion = Callable[[np.ndarray], list[Matrix]]  # phases in [0, 2 pi] -> places of a part, relative to its pivot


def animate(seed: int, parts: Sequence[bpy.types.Object]) -> None:
    """Key the parts' places over PERIOD frames from frame 0 on. The last key is the first one again.

    seed: as of `procedural.build`. The parts' points stand in the world's coordinates; they are moved to be around a pivot.
    """
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, 1], np.uint64)))
    chances = np.where(np.arange(len(parts)) == 0, FIRST, MOVING)
    moves = rng.random(len(parts)) < chances
    if not moves.any():
        moves[rng.integers(len(parts))] = True
    scene = bpy.context.scene
    scene.render.fps, scene.frame_start, scene.frame_end = RATE, 0, PERIOD
    action = bpy.data.actions.new("motion")
    strip = action.layers.new("motion").strips.new(type="KEYFRAME")
    phases = np.arange(PERIOD + 1) / PERIOD * TAU
    for number, (part, is_moving) in enumerate(zip(parts, moves, strict=True)):
        if not is_moving:
            continue
        points = np.array([vertex.co for vertex in part.data.vertices])
        pivot, motion = weighted(rng, MOTIONS)(rng, points)
        part.data.transform(Matrix.Translation(-pivot))
        part.rotation_mode = "QUATERNION"
        part.name = f"part {number}"
        data = part.animation_data_create()
        data.action = action
        data.action_slot = action.slots.new("OBJECT", part.name)
        _key(strip.channelbag(data.action_slot, ensure=True), pivot, motion(phases))


def _key(channels, pivot: np.ndarray, places: list[Matrix]) -> None:
    """Write places of an object, relative to its pivot, as keys at frames 0, 1, ..., with straight lines between them."""
    parts = [place.decompose() for place in places]
    turns = [parts[0][1]]
    for _, turn, _ in parts[1:]:
        turns.append(-turn if turn.dot(turns[-1]) < 0 else turn)  # the shorter way round
    values = {
        "location": np.array([pivot + shift for shift, _, _ in parts]),
        "rotation_quaternion": np.array(turns),
        "scale": np.array([scale for _, _, scale in parts]),
    }
    for name, rows in values.items():
        for index, column in enumerate(rows.T):
            points = channels.fcurves.new(name, index=index).keyframe_points
            points.add(len(column))
            points.foreach_set("co", np.stack([np.arange(len(column)), column], 1).ravel())
            for point in points:
                point.interpolation = "LINEAR"


def _contact(points: np.ndarray) -> np.ndarray:
    """Point of a part that is nearest to the object's middle, where it is joined to the others."""
    return points[np.argmin(np.square(points).sum(1))]


def turning(rng: np.random.Generator, points: np.ndarray) -> tuple[np.ndarray, Motion]:
    """A whole turn about an axis through the part's middle."""
    axis, way, start = unit(rng), rng.choice([-1, 1]), rng.uniform(0, TAU)
    return points.mean(0), lambda phases: [Matrix.Rotation(way * phase + start, 4, axis) for phase in phases]


def swinging(rng: np.random.Generator, points: np.ndarray) -> tuple[np.ndarray, Motion]:
    """To and fro about an axis where the part is joined."""
    axis, widest, start = unit(rng), rng.uniform(0.4, 0.9), rng.uniform(0, TAU)
    return _contact(points), lambda phases: [
        Matrix.Rotation(widest * np.sin(phase + start), 4, axis) for phase in phases
    ]


def travelling(rng: np.random.Generator, points: np.ndarray) -> tuple[np.ndarray, Motion]:
    """Around an ellipse."""
    one, two, start = 0.2 * rng.normal(size=3), 0.1 * rng.normal(size=3), rng.uniform(0, TAU)
    return points.mean(0), lambda phases: [
        Matrix.Translation(one * np.sin(phase + start) + two * np.cos(phase + start)) for phase in phases
    ]


def stretching(rng: np.random.Generator, points: np.ndarray) -> tuple[np.ndarray, Motion]:
    """Longer and shorter along an axis, thinner and thicker across it, from where the part is joined."""
    along, most, start = int(rng.integers(3)), rng.uniform(0.3, 0.55), rng.uniform(0, TAU)

    def motion(phases: np.ndarray) -> list[Matrix]:
        factors = 1 + most * np.sin(phases + start)
        scales = [[factor if axis == along else factor**-0.5 for axis in range(3)] for factor in factors]
        return [Matrix.Diagonal((*scale, 1)) for scale in scales]

    return _contact(points), motion


MOTIONS: dict[str, tuple[float, Callable[[np.random.Generator, np.ndarray], tuple[np.ndarray, Motion]]]] = {
    "turning": (1.0, turning),
    "swinging": (1.0, swinging),
    "travelling": (1.0, travelling),
    "stretching": (0.7, stretching),
}
