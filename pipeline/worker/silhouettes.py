"""Tests whether poses fit their pictures, in ways that need nothing but the scene itself.

Silhouettes (where pictures have transparency): the visual hull is carved along viewing rays, and right poses leave a hull
that fills every silhouette (Laurentini 1994; Matusik et al., Image-Based Visual Hulls, 2000). Epipolar lines: matched
features must lie on each other's lines, in front of both cameras. Depth (where it was asked for): no point of one view's may
stand before what another's shows. None of the tests depends on the choice of the world's frame (a common rotation or shift).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from pipeline.config.views import MixCameras
from pipeline.core import cameras, images
from pipeline.core.records import Posed
from pipeline.worker import epipolar

SIDE = 256  # pixels of a silhouette's side
RAYS, FEW_RAYS = 160, 64  # per view; fewer where many cameras are tried
DEPTHS = 224  # points along each ray
SOLID, EMPTY = 128, 8  # alpha of 255: rays go through pixels above SOLID; pixels up to EMPTY hold nothing of the object
WHOLLY = 250  # in place of SOLID for pictures smaller than SIDE, whose enlarged edges are soft
SEEN = 3  # pictures whose frame must hold a point of the hull; outside its frame a picture says nothing
SILHOUETTE_VIEWS = 12  # most per scene
ELEVATIONS = (-30.0, -20.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0, 60.0)
FOVS = (30.0, 39.6, 49.134, 60.0)
FOV_MARGIN = 0.002  # another field of view has to fill the silhouettes better by this share

Says = Literal["fits", "does_not_fit", "undecided"]


# Thresholds between the values of right and of wrong cameras; docs/sources.md has the measurements.
HULL_FITS, HULL_WRONG = 0.997, 0.988
HULL_FITS_COARSE = 0.992  # in place of HULL_FITS for pictures smaller than SIDE
CONTROL = 0.95  # where wrong cameras fill the silhouettes more than this, silhouettes cannot confirm the right ones
APART_FITS, APART_WRONG = 0.8, 2.5  # median pixels of 512 between matches and their lines
FOCAL_GAIN = 0.85  # another focal length that brings matches this much nearer to their lines is the right one
FOCAL_PAIRS, FEW_PAIRS_GAIN = 4, 0.6  # in place of FOCAL_GAIN for scenes with matches in fewer pairs of views
FOCAL_RISE = 1.4  # a focal length is confirmed where those off by a quarter move matches away by this factor
MATCHES = 40  # least number that decides
FLOATING_FITS, FLOATING_WRONG = 0.01, 0.1  # share of points of depth that stand before surfaces

TO_CHECK = "vet"  # key in Item.extra: a worker is to check the cameras of this item
VERDICT_KEY = "_cameras_fit"  # key in Scene.meta of that worker's Verdict, for the driver


@dataclass(frozen=True)
class Verdict:
    """hull: mean share of a silhouette that the hull fills, None without silhouettes. control: `hull` with the silhouettes
    permuted among cameras; if that is as high, the object is too symmetric to tell. longest_side: of the hull's box,
    world units. lines: share of the matches within 3 pixels (of 512) of their lines. chance: `lines` of random pairings.
    matches: number. apart: their median distance. focal: factor by which longer focal lengths would fit the matches better; rise:
    factor by which other focal lengths fit worse, near 1 where matches do not tell.
    coarse: True if pictures are smaller than SIDE. floating: share of points of depth that contradict other views' depth, None
    without depth.
    """

    says: Says
    hull: float | None = None
    control: float | None = None
    longest_side: float | None = None
    lines: float | None = None
    chance: float | None = None
    matches: int = 0
    apart: float | None = None
    focal: float = 1.0
    rise: float = float("inf")
    coarse: bool = False
    floating: float | None = None

    def __str__(self) -> str:
        parts = [] if self.hull is None else [f"silhouettes filled {self.hull:.1%} (control {self.control or 0:.1%})"]
        if self.lines is not None and self.apart is not None:
            parts.append(
                f"matches on their epipolar lines {self.lines:.0%} of {self.matches} (chance {self.chance or 0:.0%}), "
                f"median distance {self.apart:.2g} px of {epipolar.FEATURE_SIDE}"
            )
        if self.focal != 1:
            parts.append(f"focal lengths {self.focal:g} times as long fit better")
        elif self.apart is not None and self.rise < FOCAL_RISE:
            parts.append("other focal lengths fit as well")
        parts += [] if self.floating is None else [f"{self.floating:.1%} of the points of depth stand before surfaces"]
        return f"{self.says}: {', '.join(parts) or 'neither silhouettes nor enough matches'}"

    @property
    def score(self) -> dict[str, Any]:
        """Verdict and figures as far as there are any, JSON-able."""
        names = ("hull", "floating", "lines", "apart", "rise") if self.matches else ("hull", "floating")
        figures = {name: getattr(self, name) for name in names}
        kept = {name: round(value, 4) for name, value in figures.items() if value is not None and np.isfinite(value)}
        return {"says": self.says, **kept, **({"matches": self.matches} if self.matches else {})}


def check(posed: Posed) -> Verdict:
    """Test the cameras of one scene; undecided if it moves (views with times of their own), or a picture cannot be read."""
    if "times" in posed.meta:
        return Verdict("undecided")
    try:
        shapes = silhouettes(posed)
        lines = epipolar.explained(posed)
    except OSError:
        return Verdict("undecided")
    verdict = Verdict("undecided", floating=epipolar.floating(posed))
    if shapes is not None:
        hull, side = shapes.filled()
        verdict = replace(
            verdict, hull=hull, control=shapes.shuffled().filled()[0], longest_side=side, coarse=shapes.solid == WHOLLY
        )
    if lines.apart is not None and lines.apart_scaled is not None:
        n = lines.matches
        gain = FOCAL_GAIN if lines.pairs >= FOCAL_PAIRS else FEW_PAIRS_GAIN
        focal = lines.scale if lines.apart_scaled < gain * lines.apart else 1.0
        good, chance = lines.good / n, lines.random / n
        verdict = replace(
            verdict, lines=good, chance=chance, matches=n, apart=lines.apart, focal=focal, rise=lines.rise
        )
    return replace(verdict, says=_says(verdict))


def _says(verdict: Verdict) -> Says:
    """Verdict by the figures: all tests must agree that can tell, and silhouettes that might be fuller confirm nothing."""
    votes: set[Says] = set()
    if verdict.floating is not None:
        if verdict.floating >= FLOATING_WRONG:
            return "does_not_fit"
        votes.add("fits" if verdict.floating <= FLOATING_FITS else "undecided")
    if verdict.apart is not None and verdict.matches >= MATCHES:
        if verdict.apart >= APART_WRONG or verdict.focal != 1:
            votes.add("does_not_fit")
        elif verdict.apart <= APART_FITS:
            votes.add("fits" if verdict.rise >= FOCAL_RISE else "undecided")
    if verdict.hull is not None and verdict.control is not None:
        if verdict.hull <= HULL_WRONG:
            votes.add("does_not_fit")
        elif verdict.control <= CONTROL:
            votes.add("fits" if verdict.hull >= (HULL_FITS_COARSE if verdict.coarse else HULL_FITS) else "undecided")
    return votes.pop() if len(votes) == 1 else "undecided"


def judge(verdicts: Sequence[Verdict]) -> tuple[Says, str]:
    """Verdict on a source from several of its scenes, and a line that explains the verdict to a user.

    A scene may look wrong for reasons of its own (culled faces, motion), but hardly right by chance: so half of the scenes
    that are decided suffice for "fits", and "does_not_fit" takes three quarters.
    """
    fit = sum(verdict.says == "fits" for verdict in verdicts)
    wrong = sum(verdict.says == "does_not_fit" for verdict in verdicts)
    says: Says = "undecided"
    if fit and fit >= wrong:
        says = "fits"
    elif wrong >= 3 * fit and wrong:
        says = "does_not_fit"
    figures = []
    told = (("hull", "silhouettes filled"), ("floating", "points of depth before surfaces"))
    for name, what in (*told, ("lines", "matches on their epipolar lines")):
        values = [value for verdict in verdicts if (value := getattr(verdict, name)) is not None]
        if values:
            figures.append(f"{what} {np.median(values):.1%}")
    rest = len(verdicts) - fit - wrong
    line = f"{fit} scenes fit, {wrong} do not, {rest} cannot tell"
    return says, f"{line}; median: {', '.join(figures)}" if figures else line


# ---- silhouettes


@dataclass(frozen=True)
class Silhouettes:
    """alphas (V, SIDE, SIDE) in [0, 255], c2w (V, 4, 4), fxfycxcy (V, 4) in pixels of the alphas. solid: see SOLID."""

    alphas: np.ndarray
    c2w: np.ndarray
    fxfycxcy: np.ndarray
    solid: int = SOLID

    def shuffled(self) -> Silhouettes:
        """Silhouettes permuted among the cameras: a control with wrong poses."""
        order = np.random.default_rng(0).permutation(
            len(self.alphas)
        )  # random, since a turntable turned or mirrored may fit
        return replace(self, alphas=self.alphas[order])

    def filled(self, count: int = RAYS) -> tuple[float, float | None]:
        """Mean share of the silhouettes that the hull fills, and the longest side of the hull's box (None for no hull).

        A ray is not counted if its only points inside all silhouettes lie in the frames of fewer than SEEN pictures.
        """
        directions = [self._rays(view, count) for view in range(len(self.alphas))]
        middle, reach = self._region(directions)
        wide = self._widened()
        shares, low, high = [], [], []
        for view, rays in enumerate(directions):
            eye = self.c2w[view, :3, 3]
            distance = np.linalg.norm(middle - eye)
            along = np.linspace(max(0.02 * distance, distance - reach), distance + reach, DEPTHS)
            points = eye + rays[:, None] * along[:, None]
            seen = self._seen(points.reshape(-1, 3), wide).reshape(points.shape[:2])
            inside = seen >= SEEN
            filled, carved = inside.any(1).sum(), (~seen.any(1)).sum()
            if filled + carved > 0.1 * len(rays):
                shares.append(filled / (filled + carved))
            if inside.any():
                low.append(points[inside].min(0))
                high.append(points[inside].max(0))
        side = float((np.max(high, 0) - np.min(low, 0)).max()) if low else None
        return float(np.mean(shares)) if shares else 1.0, side

    def _rays(self, view: int, count: int) -> np.ndarray:
        """Unit directions (R, 3) in the world through evenly chosen solid pixels of a silhouette, R at most `count`."""
        rows, columns = np.nonzero(self.alphas[view] > self.solid)
        chosen = cameras.spread(len(rows), count)
        fx, fy, cx, cy = self.fxfycxcy[view]
        x, y = (columns[chosen] + 0.5 - cx) / fx, (rows[chosen] + 0.5 - cy) / fy
        rays = np.stack([x, y, np.ones_like(x)], -1) @ self.c2w[view, :3, :3].T
        return rays / np.linalg.norm(rays, axis=-1, keepdims=True)

    def _region(self, directions: list[np.ndarray]) -> tuple[np.ndarray, float]:
        """Point (3,) nearest to the silhouettes' mean rays, and the radius around it in which to look for the hull."""
        eyes = self.c2w[:, :3, 3]
        axes = np.stack([rays.mean(0) for rays in directions])
        axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
        across = np.eye(3) - axes[:, :, None] * axes[:, None]
        middle = np.linalg.lstsq(across.sum(0), (across @ eyes[:, :, None]).sum(0)[:, 0], rcond=None)[0]
        cosine = np.array([(rays @ axis).min() for rays, axis in zip(directions, axes, strict=True)])
        reach = np.linalg.norm(middle - eyes, axis=-1) * np.sqrt(1 - cosine**2) / np.maximum(cosine, 0.1)
        return middle, 1.75 * float(np.median(reach))

    def _widened(self) -> np.ndarray:
        """Masks (V, SIDE + 2, SIDE + 2) of where the object may be; the extra border is set if the object reaches the edge."""
        wide = np.pad(self.alphas > EMPTY, ((0, 0), (1, 1), (1, 1)))
        border = np.zeros_like(wide[0])
        border[[0, -1]] = border[:, [0, -1]] = True
        edge = wide[:, [1, -2]].any((1, 2)) | wide[:, :, [1, -2]].any((1, 2))
        return np.asarray(wide | (border & edge[:, None, None]))

    def _seen(self, points: np.ndarray, wide: np.ndarray) -> np.ndarray:
        """For each point (N, 3) the number of pictures whose frame holds the point; 0 if any silhouette excludes it."""
        left, seen = np.arange(len(points)), np.zeros(len(points), int)
        for mask, c2w, fxfycxcy in zip(wide, self.c2w, self.fxfycxcy, strict=True):  # tests the points left so far
            with np.errstate(all="ignore"):
                pixels, depth = cameras.project(points[left], c2w, fxfycxcy)
                place = np.nan_to_num(np.clip(np.floor(pixels) + 1, 0, SIDE + 1)).astype(int)
            kept = (depth > 0) & mask[place[:, 1], place[:, 0]]
            left, place = left[kept], place[kept]
            seen[left] += ((place > 0) & (place <= SIDE)).all(-1)
        inside = np.zeros_like(seen)
        inside[left] = seen[left]
        return inside


@dataclass(frozen=True)
class Suggestion:
    """The best-fitting cameras of a turntable, and the share of the silhouettes that these and the present ones fill."""

    best: MixCameras
    filled: float
    filled_now: float

    def __str__(self) -> str:
        fields = ("elevation_deg", "fov_x_deg", "radius", "clockwise")
        flags = [_flag(name, getattr(self.best, name)) for name in fields]
        return f"{' '.join(flags)} fits: {self.filled:.3f} instead of {self.filled_now:.3f}"


def _flag(name: str, value: float | bool) -> str:
    dashed = name.replace("_", "-")
    return (f"--{dashed}" if value else f"--no-{dashed}") if isinstance(value, bool) else f"--{dashed} {value:g}"


def best_turntable(scenes: Sequence[Posed], now: MixCameras) -> Suggestion | None:
    """The turntable that fits the scenes' silhouettes best: direction, elevation, field of view and radius. None without any.

    scenes: as loaded with the cameras `now`. The azimuth of view 0 only turns the world, so pictures cannot tell it. Radius
    and field of view follow from the objects' size, which is 1 along the longest side.
    """
    shapes = [found for posed in scenes if (found := silhouettes(posed)) is not None]
    if not shapes:
        return None

    def filled(mix: MixCameras) -> float:
        return float(np.mean([_turned(shape, now, mix).filled(FEW_RAYS)[0] for shape in shapes]))

    scored = {now: filled(now)}

    def better(mixes: list[MixCameras], margin: float = 0.0) -> MixCameras:
        for mix in mixes:
            if mix not in scored:
                scored[mix] = filled(mix) - margin
        return max(scored, key=lambda mix: scored[mix])

    best = better([replace(now, elevation_deg=up, clockwise=way) for way in (False, True) for up in ELEVATIONS])
    best = better([replace(best, elevation_deg=best.elevation_deg + change) for change in (-2.5, 2.5)])
    # the score hardly depends on the field of view: require a clear gain
    best = better([replace(best, fov_x_deg=fov) for fov in FOVS], FOV_MARGIN)
    best = better([replace(best, elevation_deg=best.elevation_deg + change) for change in (-2.5, 2.5)])
    sides = [side for shape in shapes if (side := _turned(shape, now, best).filled()[1]) is not None]
    if sides and abs(np.median(sides) - 1) > 0.1:
        best = replace(best, radius=float(np.round(best.radius / np.median(sides), 2)))
    return Suggestion(best, filled(best), scored[now])


def _turned(shapes: Silhouettes, now: MixCameras, mix: MixCameras) -> Silhouettes:
    """Silhouettes of turntable `now` with the cameras of turntable `mix`."""
    x, y = shapes.c2w[:, 0, 3], shapes.c2w[:, 1, 3]
    steps = (np.arctan2(y, x) - np.radians(now.azimuth_deg)) * (-1 if now.clockwise else 1)
    azimuth = np.radians(mix.azimuth_deg) + steps * (-1 if mix.clockwise else 1)
    elevation = np.radians(mix.elevation_deg)
    flat = np.cos(elevation)
    eyes = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.full_like(azimuth, np.sin(elevation))], -1)
    zoom = np.tan(np.radians(now.fov_x_deg) / 2) / np.tan(np.radians(mix.fov_x_deg) / 2)
    fxfycxcy = shapes.fxfycxcy * [zoom, zoom, 1, 1]
    return replace(shapes, c2w=cameras.look_at(mix.radius * eyes), fxfycxcy=fxfycxcy)


def silhouettes(posed: Posed) -> Silhouettes | None:
    """Silhouettes of up to SILHOUETTE_VIEWS views; None if pictures are opaque, distorted, or fewer than 3. Raises OSError."""
    if not all(lens.is_pinhole for lens in posed.lenses):
        return None
    alphas, chosen, scales, solid = [], [], [], SOLID
    for view in cameras.spread(len(posed.images), SILHOUETTE_VIEWS):
        picture = images.decode_straight(posed.images[view])
        if picture.shape[2] == 3:
            return None
        alpha = images.resize_area(picture[..., 3:].astype(np.float32), (SIDE, SIDE))[..., 0]
        solid = WHOLLY if min(picture.shape[:2]) < SIDE else solid
        if (alpha > solid).any() and not (alpha > EMPTY).all():
            alphas.append(alpha)
            chosen.append(view)
            scales.append(np.array([SIDE / picture.shape[1], SIDE / picture.shape[0]] * 2))
    if len(alphas) < 3:
        return None
    c2w, fxfycxcy = np.asarray(posed.c2w, np.float64)[chosen], np.asarray(posed.fxfycxcy, np.float64)[chosen]
    return Silhouettes(np.stack(alphas), c2w, fxfycxcy * np.stack(scales), solid)
