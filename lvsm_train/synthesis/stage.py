"""Stage: the world of photos moved so that what they show stands at the origin, z up. Which photos a model is shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lvsm_train.data.view_sampling import farthest_points, in_place_and_time, mean_frame
from pipeline.core import cameras

UPRIGHT = 0.5  # cosine of the angle to the mean up of the cameras, up to which the world's z counts as up
DISTANCES = (
    0.6,
    2.5,
)  # of cameras, as multiples of the one at which objects fill a picture, that count as those of training
FRAMED = 1.05  # of that distance, at which default cameras stand on average
TURNED = (
    0.5  # units of distance that a right angle between two cameras' axes counts as, in units of the cameras' spread
)


@dataclass(frozen=True)
class Stage:
    """Similarity from the world of photos: a point x there is scale * rotation (x - origin) on the stage.

    rotation: (3, 3). origin: (3,) in the world of the photos.
    """

    rotation: np.ndarray
    origin: np.ndarray
    scale: float = 1.0

    def to(self, c2w: np.ndarray) -> np.ndarray:
        """Cameras (N, 4, 4) of the world -> on the stage."""
        moved = np.array(c2w, np.float64)
        moved[:, :3, :3] = self.rotation @ moved[:, :3, :3]
        moved[:, :3, 3] = self.scale * (moved[:, :3, 3] - self.origin) @ self.rotation.T
        return moved

    def back(self, c2w: np.ndarray) -> np.ndarray:
        """Cameras (N, 4, 4) of the stage -> in the world of the photos."""
        moved = np.array(c2w, np.float64)
        moved[:, :3, :3] = self.rotation.T @ moved[:, :3, :3]
        moved[:, :3, 3] = moved[:, :3, 3] @ self.rotation / self.scale + self.origin
        return moved

    def matrix(self) -> np.ndarray:
        """World of the photos -> stage as a matrix (4, 4)."""
        made = np.eye(4)
        made[:3, :3] = self.scale * self.rotation
        made[:3, 3] = -made[:3, :3] @ self.origin
        return made


AS_IS = Stage(np.eye(3), np.zeros(3))


def centred(c2w: np.ndarray) -> Stage:
    """Stage with the point that cameras (N, 4, 4) look at in its origin, their up along z, unscaled."""
    up = -c2w[:, :3, 1].mean(0)
    length = float(np.linalg.norm(up))
    up = up / length if length > 1e-6 else np.array([0.0, 0.0, 1.0])
    if up[2] >= UPRIGHT:
        up = np.array([0.0, 0.0, 1.0])
    return Stage(_upright(up), cameras.looked_at(c2w))


def _upright(up: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) that turns the unit vector `up` to z by the shortest way."""
    cosine, axis = float(up[2]), np.cross(up, [0.0, 0.0, 1.0])
    if cosine < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.asarray(np.eye(3) + cross + cross @ cross / (1 + cosine))


def as_in_training(c2w: np.ndarray, fov_deg: float) -> bool:
    """True for cameras (N, 4, 4) that look at the origin from about as far as cameras of rendered objects do.

    fov_deg: the smaller field of view.
    """
    distance = float(np.linalg.norm(c2w[:, :3, 3], axis=-1).mean()) / cameras.fitting_distance(fov_deg, "sphere")
    return bool(
        np.linalg.norm(cameras.looked_at(c2w)) <= cameras.NEAR_ORIGIN and DISTANCES[0] <= distance <= DISTANCES[1]
    )


def fitted(c2w: np.ndarray, fov_deg: float) -> Stage:
    """Stage for an object: what cameras (N, 4, 4) look at in the origin, z up, and they as far as those of rendered objects."""
    found = centred(c2w)
    distance = float(np.linalg.norm(c2w[:, :3, 3] - found.origin, axis=-1).mean())
    return Stage(found.rotation, found.origin, FRAMED * cameras.fitting_distance(fov_deg, "sphere") / distance)


def of_clip(c2w: np.ndarray) -> Stage:
    """Stage on which all of these cameras (N, 4, 4) stand as those of a clip do in training."""
    turn, centre, unit = mean_frame(np.asarray(c2w, np.float64))
    return Stage(turn, centre, 1 / unit)


def far(c2w: np.ndarray, count: int, time: np.ndarray) -> list[int]:
    """Numbers of `count` of the cameras (V, 4, 4): the first, then always the one farthest from all chosen ones, of what moves in
    place and time (V,)."""
    return [int(view) for view in farthest_points(in_place_and_time(c2w[:, :3, 3], time), count, 0)]


def even(total: int, count: int) -> list[int]:
    """`count` numbers below `total`, evenly spread, with the first and the last (of one: the middle)."""
    if count == 1:
        return [total // 2]
    return [int(view) for view in np.round(np.linspace(0, total - 1, count))]


def near(c2w: np.ndarray, path: np.ndarray, count: int) -> list[int]:
    """Numbers of `count` of the cameras (V, 4, 4) that are near to the poses (F, 4, 4) of a path, ascending.

    One after the other, always the one that most reduces the sum over all poses of the distance to the nearest chosen camera. A
    distance is of centres, in units of their spread, plus of directions.
    """
    spread = float(np.linalg.norm(c2w[:, :3, 3] - c2w[:, :3, 3].mean(0), axis=-1).max()) or 1.0
    apart = np.linalg.norm(path[:, None, :3, 3] - c2w[None, :, :3, 3], axis=-1) / spread
    turned = TURNED * (1 - path[:, :3, 2] @ c2w[:, :3, 2].T)
    distance = apart + turned  # (F, V)
    chosen: list[int] = []
    nearest = np.full(len(path), distance.max() + 1)
    for _ in range(count):
        gain = np.minimum(nearest[:, None], distance).sum(0)
        gain[chosen] = np.inf
        chosen.append(int(gain.argmin()))
        nearest = np.minimum(nearest, distance[:, chosen[-1]])
    return sorted(chosen)
