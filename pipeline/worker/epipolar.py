"""Tests claimed poses: do matched features of two views lie on each other's epipolar lines, and what depth says on surfaces?

Matches are chosen without the poses: RANSAC keeps those that any one fundamental matrix explains, and the share of these that
the claimed poses explain too is counted. Where a set has depth, points of one view's depth are looked at from the others: they
may be hidden there, but never stand before what is seen.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pipeline.core import cameras, images
from pipeline.core.errors import Skip
from pipeline.core.records import Posed

FEATURE_SIDE = 512  # longest side, in pixels, of a picture in which features are detected
FEATURE_VIEWS = 8  # per set of views
FEATURES = 1200  # most per view
NEAR_LINE = 3.0  # pixels of FEATURE_SIDE between a feature and its epipolar line
LEAST_MATCHES = 20  # of a pair of views, consistent with one fundamental matrix
LEAST_SHIFT = 8.0  # median pixels between matched features; a smaller motion proves nothing
SCALES = (0.6, 0.7, 0.8, 0.9, 1.1, 1.25, 1.4, 1.6)  # focal lengths that are tried in place of the stated one
BESIDE = (0.8, 1.25)  # of SCALES: focal lengths that must fit worse, or the stated one is not confirmed
SAME_PLACE = 1e-6  # of the cameras' distances from the origin: closer ones stand at one place
ENOUGH = 400  # matches after which no further set of views is tried
PARTNERS, TRIES = 4, 10  # other views with which each view is compared, and most that are tried for them
STRONGEST = 64  # features of a view by which it is found alike
ALIKE_AMONG = 256  # views in a row that are looked through for alike ones
# of the distance to the next best counterpart: nearer ones count, in a search and as matches
CLEARLY, DISTINCT = 0.8, 0.75
VIEW_FITS, VIEW_WRONG = 1.0, 2.5  # median pixels between the matches of a view, or of a pair of views, and their lines
LEAST_PAIRS = 2  # of a view, to say that it fits; 1 in scenes of two views
DEPTH_VIEWS, POINTS = 8, 1500  # views whose depth is compared, and most points of each
DEPTH_OFF = 0.01  # of a point's depth: nearer ones count as equal
TELLING = 0.1  # share of points that wrong cameras must put before surfaces, or right ones are not confirmed
LEAST_POINTS = 300  # seen or contradicted; fewer decide nothing

Says = Literal["fits", "does_not_fit", "undecided"]


@dataclass(frozen=True)
class _Picture:
    """Features of a view, the strongest first: places (N, 2) on the image plane at depth 1 (undistorted), descriptors (N, 128) of
    bytes, pixels of FEATURE_SIDE per unit.
    """

    places: np.ndarray
    descriptors: np.ndarray
    focal: float
    c2w: np.ndarray


@dataclass(frozen=True)
class _Pair:
    """Matched places a, b (M, 2) of two views."""

    one: _Picture
    other: _Picture
    a: np.ndarray
    b: np.ndarray

    def apart(self) -> np.ndarray:
        """Pixels (M,) of FEATURE_SIDE between matches and their lines, see `_apart`."""
        return _apart(self.one, self.other, self.a, self.b)

    def rolled(self) -> _Pair:
        """Pair with places matched at random."""
        return replace(self, b=np.roll(self.b, len(self.b) // 2, 0))

    def zoomed(self, scale: float) -> _Pair:
        """Pair of cameras whose focal lengths are `scale` times as long."""
        one, other = (replace(picture, focal=picture.focal * scale) for picture in (self.one, self.other))
        return _Pair(one, other, self.a / scale, self.b / scale)


def _features(posed: Posed, view: int) -> _Picture:
    import cv2

    straight = images.decode_straight(posed.images[view])
    scale = min(1.0, FEATURE_SIDE / max(straight.shape[:2]))
    hw = (max(1, round(straight.shape[0] * scale)), max(1, round(straight.shape[1] * scale)))
    covered: np.ndarray | None = None
    if straight.shape[2] == 4:  # features on the silhouette's outline belong to no point in space
        rgba = images.resize_area(images.premultiplied(straight), hw)
        rgb = images.srgb8(images.over(rgba))
        covered = np.asarray(cv2.erode((rgba[..., 3] > 0.99).astype(np.uint8), np.ones((5, 5), np.uint8)))
    else:
        rgb = images.shrink(straight, hw)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    points, descriptors = cv2.SIFT_create(FEATURES).detectAndCompute(grey, covered)  # type: ignore[attr-defined]
    strongest = np.argsort([-point.response for point in points], kind="stable").astype(int)
    fx, fy, cx, cy = posed.fxfycxcy[view] * np.array([hw[1] / straight.shape[1], hw[0] / straight.shape[0]] * 2)
    places = np.array([point.pt for point in points], np.float64).reshape(-1, 2) + 0.5
    places = (places - [cx, cy]) / [fx, fy]
    if posed.lenses and not posed.lenses[view].is_pinhole:
        places = posed.lenses[view].straighten(places)
    # SIFT's descriptors are whole numbers up to 255
    found = np.zeros((0, 128), np.uint8) if descriptors is None else descriptors.astype(np.uint8)
    focal = float(np.sqrt(fx * fy)) * FEATURE_SIDE / max(hw)  # so that thresholds are relative to the picture's size
    shown = strongest[np.isfinite(places[strongest]).all(-1)]
    return _Picture(places[shown], found[shown], focal, np.asarray(posed.c2w[view], np.float64))


@dataclass(frozen=True)
class Lines:
    """Counts of matches that some geometry explains, of those that the poses explain (good), and of random pairings that they do.

    apart: median distance in pixels of FEATURE_SIDE between matches and their lines, infinite for what is behind a camera; None
    without matches. scale: factor of all focal lengths among SCALES that makes it least; gain: by what factor. rise: factor by
    which shorter and longer focal lengths (BESIDE) both move matches away at least; near 1, matches do not tell the focal
    length. pairs: of views whose matches tell of it.
    """

    matches: int = 0
    good: int = 0
    random: int = 0
    apart: float | None = None
    scale: float = 1.0
    gain: float = 1.0
    pairs: int = 0
    rise: float = 1.0


class Matches:
    """Matched features of a scene's views, found without their poses. Views are read, and pairs of them compared, once each.

    Raises OSError for a picture that cannot be read.
    """

    def __init__(self, posed: Posed) -> None:
        self.count = len(posed.images)
        self.picture = functools.cache(functools.partial(_features, posed))
        self.between = functools.cache(self._between)

    def _between(self, i: int, j: int) -> _Pair | None:
        """Compare views i < j; None where too few features match, or nothing moved between them."""
        one, other = self.picture(i), self.picture(j)
        a, b = _sound_matches(one, other)
        return _Pair(one, other, a, b) if len(a) >= LEAST_MATCHES else None

    @functools.cached_property
    def neighbours(self) -> dict[tuple[int, int], _Pair]:
        """Pairs of views (i < j) by which every view is compared with PARTNERS others, as far as so many match.

        Of each view those that look most alike are tried first: poses have no say, since they may be wrong.
        """
        found: dict[tuple[int, int], _Pair | None] = {}
        for block in np.array_split(np.arange(self.count), -(-self.count // ALIKE_AMONG)):
            alike = _alike([self.picture(view).descriptors for view in block.tolist()])
            for row, view in enumerate(block.tolist()):
                having = sum(pair is not None and view in key for key, pair in found.items())
                for other in block[np.argsort(-alike[row], kind="stable")][:TRIES].tolist():
                    if having >= PARTNERS:
                        break
                    key = (min(view, other), max(view, other))
                    if view != other and key not in found:
                        found[key] = self.between(*key)
                        having += found[key] is not None
        return {key: pair for key, pair in found.items() if pair is not None}


def _alike(descriptors: list[np.ndarray]) -> np.ndarray:
    """Likeness (V, V) of views: how many of the strongest features of either have one clear counterpart in the other."""
    unit = np.zeros((len(descriptors), STRONGEST, 128), np.float32)
    for view, rows in enumerate(descriptors):
        some = rows[:STRONGEST].astype(np.float32)
        unit[view, : len(some)] = some / np.maximum(np.linalg.norm(some, axis=-1, keepdims=True), 1e-9)
    everything = unit.reshape(-1, 128)
    votes = np.zeros((len(unit), len(unit)), int)
    for view, own in enumerate(unit):
        cosines = (own @ everything.T).reshape(STRONGEST, len(unit), STRONGEST)
        second, best = np.moveaxis(np.partition(cosines, STRONGEST - 2, -1)[..., -2:], -1, 0)
        votes[view] = ((1 - best < CLEARLY**2 * (1 - second)) & (best > 0)).sum(
            0
        )  # squared distances are 2 - 2 cosines
    np.fill_diagonal(votes, 0)
    return np.asarray(votes + votes.T)


@dataclass(frozen=True)
class View:
    """Verdict on one view. apart: median over the views with which it is compared of the median distance between matches and
    lines in pixels of FEATURE_SIDE, infinite for what is behind a camera; None without matches. name: for its user.
    """

    says: Says
    apart: float | None = None
    name: str = ""


def by_view(matches: Matches) -> list[View]:
    """Verdict on every view of a scene, from its neighbours. Raises OSError for a picture that cannot be read."""
    apart = {key: float(np.median(pair.apart())) for key, pair in matches.neighbours.items()}
    wrong = _blamed({key: not distance <= VIEW_WRONG for key, distance in apart.items()})
    verdicts = []
    for view in range(matches.count):
        others = wrong - {view}
        own = [distance for key, distance in apart.items() if view in key and not others.intersection(key)]
        if not own:
            verdicts.append(View("undecided"))
            continue
        median = float(np.median(own))
        sure = len(own) >= min(LEAST_PAIRS, matches.count - len(wrong) - 1) and median <= VIEW_FITS
        verdicts.append(View("does_not_fit" if view in wrong else "fits" if sure else "undecided", median))
    return verdicts


def _blamed(contradict: Mapping[tuple[int, int], bool]) -> set[int]:
    """Views that contradict most of their neighbours, of which some agree with others: the worst first, then without it anew."""
    wrong: set[int] = set()
    while True:
        pairs: dict[int, dict[int, bool]] = defaultdict(dict)
        for (i, j), bad in contradict.items():
            if not wrong & {i, j}:
                pairs[i][j] = pairs[j][i] = bad
        trusted = {view for view, others in pairs.items() if not all(others.values())}
        scores = [
            (sum(others.values()) / len(others), len(others), -view)
            for view, others in pairs.items()
            if 2 * sum(others.values()) > len(others)
            if any(bad and other in trusted for other, bad in others.items())
        ]
        if not scores:
            return wrong
        wrong.add(-max(scores)[2])


def explained(matches: Matches, views: Sequence[int]) -> Lines:
    """Compare matches of several of the views with the poses: of those spread widely first, then of closer ones."""
    found: list[_Pair] = []
    for part in (1, 4, 16):
        count = len(views) // part
        some = sorted(views[place] for place in cameras.spread(count, FEATURE_VIEWS).tolist()) if count > 1 else []
        pairs = [matches.between(i, j) for i, j in itertools.combinations(some, 2)]
        found += [pair for pair in pairs if pair is not None]
        if sum(len(pair.a) for pair in found) >= ENOUGH:
            break
    if not found:
        return Lines()
    apart = np.concatenate([pair.apart() for pair in found])
    random = sum(int((pair.rolled().apart() < NEAR_LINE).sum()) for pair in found)
    telling = found
    if len(apart) < ENOUGH:  # a few may be nearer to their lines with another focal length by chance
        kept = set(views)
        near = [pair for key, pair in matches.neighbours.items() if kept.issuperset(key)]
        telling = list({id(pair): pair for pair in (*found, *near)}.values())
    medians = {
        scale: float(np.median(np.concatenate([pair.zoomed(scale).apart() for pair in telling])))
        for scale in (1.0, *SCALES)
    }
    best, stated = min(medians, key=lambda scale: medians[scale]), max(medians[1.0], 1e-9)
    rise, gain = min(medians[scale] for scale in BESIDE) / stated, medians[best] / stated
    good = int((apart < NEAR_LINE).sum())
    return Lines(len(apart), good, random, float(np.median(apart)), best, gain, len(telling), rise)


def _sound_matches(one: _Picture, other: _Picture) -> tuple[np.ndarray, np.ndarray]:
    """Matched places (M, 2) of two views, less those that the best-fitting fundamental matrix does not explain."""
    import cv2

    nothing = np.zeros((0, 2))
    if min(len(one.places), len(other.places)) < LEAST_MATCHES:
        return nothing, nothing
    first, second = _counterparts(one.descriptors, other.descriptors)
    if len(first) < LEAST_MATCHES:
        return nothing, nothing
    a, b = _unique(one.places[first], other.places[second])
    pixels_a, pixels_b = a * one.focal, b * other.focal
    if len(a) < LEAST_MATCHES or np.median(np.linalg.norm(pixels_a - pixels_b, axis=-1)) < LEAST_SHIFT:
        return nothing, nothing
    cv2.setRNGSeed(0)
    _, sound = cv2.findFundamentalMat(pixels_a, pixels_b, cv2.FM_RANSAC, NEAR_LINE / 2, 0.999, 2000)
    if sound is None or sound.sum() < 0.4 * len(a):
        return nothing, nothing
    return a[sound[:, 0] > 0], b[sound[:, 0] > 0]


def _counterparts(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (M,) into two views' descriptors (N, 128): of those that are each other's nearest, and clearly so."""
    a, b = one.astype(np.float32), other.astype(np.float32)
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * (a @ b.T)
    rows, best = np.arange(len(a)), squared.argmin(1)
    nearest = squared[rows, best]
    squared[rows, best] = np.inf
    clear = np.flatnonzero(nearest < DISTINCT**2 * squared.min(1))
    squared[rows, best] = nearest
    mutual = clear[squared[:, best[clear]].argmin(0) == clear]
    return mutual, best[mutual]


def _unique(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Remove repeated matches: SIFT gives a place one descriptor per dominant direction."""
    _, first = np.unique(np.round(np.concatenate([a, b], 1), 6), axis=0, return_index=True)
    first.sort()
    return a[first], b[first]


def _apart(one: _Picture, other: _Picture, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pixels (M,) of FEATURE_SIDE between matches and each other's epipolar lines; infinite for what is behind a camera."""
    between = cameras.w2c(other.c2w) @ one.c2w  # from one camera to the other
    rotation, shift = between[:3, :3], between[:3, 3]
    length = np.linalg.norm(shift)
    ray_a, ray_b = np.c_[a, np.ones(len(a))], np.c_[b, np.ones(len(b))]
    if length < SAME_PLACE * (1e-9 + np.linalg.norm(one.c2w[:3, 3]) + np.linalg.norm(other.c2w[:3, 3])):
        return _turned_apart(ray_a @ rotation.T, b, other.focal)
    x, y, z = shift / length
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ rotation
    line_b, line_a = ray_a @ essential.T, ray_b @ essential
    off = np.abs((ray_b * line_b).sum(-1))
    with np.errstate(all="ignore"):
        apart = np.maximum(off / np.hypot(*line_b.T[:2]) * other.focal, off / np.hypot(*line_a.T[:2]) * one.focal)
        turned = ray_a @ rotation.T  # depth_a * turned + shift = depth_b * ray_b, in the least squares
        normal = _cross(turned, ray_b)
        squared = (normal**2).sum(-1)
        depth_a = (_cross(ray_b, shift) * normal).sum(-1) / squared
        depth_b = (_cross(turned, shift) * normal).sum(-1) / squared
    return np.where((depth_a > 0) & (depth_b > 0), np.nan_to_num(apart, nan=np.inf), np.inf)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross products (M, 3) of vectors (M, 3) with others (M, 3) or one (3,): a third of the time of numpy's for so few."""
    (ax, ay, az), (bx, by, bz) = a.T, b.T
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], -1)


def _turned_apart(rays: np.ndarray, places: np.ndarray, focal: float) -> np.ndarray:
    """Pixels (M,) between rays (M, 3) and places (M, 2) of a camera that only turned: to each match belongs a point, no line."""
    with np.errstate(all="ignore"):
        off = np.linalg.norm(rays[:, :2] / rays[:, 2:] - places, axis=-1) * focal
    return np.where(rays[:, 2] > 0, np.nan_to_num(off, nan=np.inf), np.inf)


def floating(posed: Posed) -> float | None:
    """Share of points that contradict: unprojected from one view's depth, they stand before what another view's depth shows.

    Of these and of points that lie on what it shows; hidden points and the outlines of things do not count. None where this
    cannot tell: without depth, with too few points, and where the depth of views agrees with each other's cameras too (a ball).
    """
    if posed.layer is None:
        return None
    views = cameras.spread(len(posed.images), DEPTH_VIEWS).tolist()
    try:
        depths = [posed.layer("depth", view) for view in views]
    except Skip:
        return None
    places = [(np.asarray(posed.c2w[view], np.float64), np.asarray(posed.fxfycxcy[view], np.float64)) for view in views]
    share = _contradicting(depths, places)
    control = _contradicting(depths, places[1:] + places[:1])
    return share if share is not None and max(share, control or 0) > TELLING else None


def _contradicting(depths: list[np.ndarray], places: list[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """Share of points of each depth (H, W) before what the others show. places: c2w (4, 4) and fxfycxcy (4,) of each."""
    before = on = 0
    for depth, place in zip(depths, places, strict=True):
        points = _points(depth, *place)
        for other, seen_from in zip(depths, places, strict=True):
            if other is not depth and len(points):
                counts = _floating(points, other, *seen_from)
                before, on = before + counts[0], on + counts[1]
    return before / (before + on) if before + on >= LEAST_POINTS else None


def _points(depth: np.ndarray, c2w: np.ndarray, fxfycxcy: np.ndarray) -> np.ndarray:
    """Points (N, 3) of the world that a view's depth (H, W) shows, at most POINTS, spread evenly."""
    y, x = np.nonzero(np.isfinite(depth))
    some = cameras.spread(len(x), POINTS)
    y, x = y[some], x[some]
    z = depth[y, x].astype(np.float64)
    fx, fy, cx, cy = fxfycxcy
    rays = np.stack([(x + 0.5 - cx) / fx, (y + 0.5 - cy) / fy, np.ones(len(x))], -1)
    return np.asarray((rays * z[:, None]) @ c2w[:3, :3].T + c2w[:3, 3])


def _floating(points: np.ndarray, depth: np.ndarray, c2w: np.ndarray, fxfycxcy: np.ndarray) -> tuple[int, int]:
    """Numbers of points (N, 3) before and on the surfaces that a view's depth (H, W) shows in the 3x3 pixels around each."""
    import cv2

    with np.errstate(all="ignore"):
        pixels, z = cameras.project(points, c2w, fxfycxcy)
        shown = (z > 0) & (pixels >= 1).all(-1) & (pixels < np.array(depth.shape[::-1]) - 1).all(-1)
    (x, y), z = pixels[shown].astype(int).T, z[shown]
    around = np.ones((3, 3), np.uint8)
    near, far = cv2.erode(depth, around)[y, x], cv2.dilate(depth, around)[y, x]
    off = DEPTH_OFF * z
    before = z < near - off
    return int(before.sum()), int((~before & (z <= far + off) & np.isfinite(far)).sum())
