"""Bounds an object in a picture: boxes that hold all its points, projected by every camera.

Most of a picture is background, which costs rays too. Cycles therefore traces only the rectangle of each view that can show
the object; every camera ray outside would miss, so the picture is the same, bit for bit.
"""

import numpy as np

CELLS = 20  # per axis of the normalised cube: more are tighter (a cell is about 1.2 pixels at 64), fewer project faster
PAD = 2  # pixels; the pixel filter reaches 0.75 beyond a pixel's centre
NEAR = 1e-3  # least depth of a corner; nearer ones project nowhere useful, so the whole picture is traced


class Outline:
    """Collects points of an object that fills the cube [-0.5, 0.5]^3; one tight box for each cell that holds any."""

    def __init__(self):
        self.low = np.full((CELLS**3, 3), np.inf)
        self.high = np.full((CELLS**3, 3), -np.inf)

    def add(self, points):
        """Add points (N, 3) of the object."""
        cell = np.clip(((points + 0.5) * CELLS).astype(np.int32), 0, CELLS - 1) @ np.array([CELLS * CELLS, CELLS, 1])
        order = np.argsort(cell, kind="stable")
        used, starts = np.unique(cell[order], return_index=True)
        self.low[used] = np.minimum(self.low[used], np.minimum.reduceat(points[order], starts))
        self.high[used] = np.maximum(self.high[used], np.maximum.reduceat(points[order], starts))

    def corners(self):
        """Corners (K, 3) of the boxes. Their convex hull holds the object's points and every face between them."""
        used = self.low[:, 0] <= self.high[:, 0]
        ends = np.stack([self.low[used], self.high[used]])
        choice = np.indices((2, 2, 2)).reshape(3, 8)
        return np.stack([ends[choice[axis], :, axis] for axis in range(3)], -1).reshape(-1, 3)


def rectangle(corners, projection, hw):
    """Pixels [top, bottom, left, right) of an image of size hw that can show the hull of the corners (K, 3).

    projection (3, 4): world to homogeneous pixels, OpenCV convention, pixel centres at +0.5. corners None: the whole image.
    """
    height, width = hw
    if corners is None:
        return 0, height, 0, width
    projection = np.asarray(projection)
    x, y, depth = projection[:, :3] @ corners.T + projection[:, 3:]
    if depth.min() < NEAR:
        return 0, height, 0, width
    left, right = _range(x / depth, width)
    top, bottom = _range(y / depth, height)
    return top, bottom, left, right


def _range(pixels, size):
    """Padded pixel range in [0, size), of at least one pixel even off the picture: an engine cannot render none."""
    first = min(max(int(np.floor(pixels.min())) - PAD, 0), size - 1)
    return first, min(max(int(np.ceil(pixels.max())) + PAD, first + 1), size)
