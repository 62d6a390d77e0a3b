"""Tests whether poses fit their pictures, in ways that need nothing but the scene itself.

Silhouettes (where pictures have transparency): the visual hull is carved along viewing rays, and right poses leave a hull
that fills every silhouette (Laurentini 1994; Matusik et al., Image-Based Visual Hulls, 2000). Epipolar lines: matched
features must lie on each other's lines, in front of both cameras. Depth (where it was asked for): no point of one view's may
stand before what another's shows. None of the tests depends on the choice of the world's frame (a common rotation or shift).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.core import cameras, images
from pipeline.core.records import LEAST_SHARE, Posed
from pipeline.worker import epipolar
from pipeline.worker.epipolar import Says, View

SIDE = 256  # pixels of a silhouette's side
RAYS, FEW_RAYS = 160, 64  # per view; fewer where many cameras are tried
DEPTHS = 224  # points along each ray
SOLID, EMPTY = 128, 8  # alpha of 255: rays go through pixels above SOLID; pixels up to EMPTY hold nothing of the object
WHOLLY = 250  # in place of SOLID for pictures smaller than SIDE, whose enlarged edges are soft
SEEN = 3  # pictures whose frame must hold a point of the hull; outside its frame a picture says nothing
GOLDEN = (5**0.5 - 1) / 2  # multiples of which lie far apart, modulo 1
SILHOUETTE_VIEWS = 12  # most per scene whose hull is carved
OUTLIERS = 6  # of so many views that carve a hull, silhouettes alone blame at most one for what it does not fill
LEAST_CARVERS = 7  # others must carve it, or the hull of so few is full by chance
SWAPS = 3  # pairs of views, those without which the hull is fullest, that are tried as swapped
NAMED = 5  # most views that a line for the user names

# Thresholds between the values of right and of wrong cameras; docs/sources.md has the measurements.
HULL_FITS, HULL_WRONG = 0.997, 0.988
HULL_FITS_COARSE = 0.992  # in place of HULL_FITS for pictures smaller than SIDE
OUTLINE_FITS, OUTLINE_WRONG = 0.97, 0.96  # share of one view's silhouette that the hull of others fills
CONTROL = 0.95  # where wrong cameras fill the silhouettes more than this, silhouettes cannot confirm the right ones
APART_FITS, APART_WRONG = 0.8, 2.5  # median pixels of 512 between matches and their lines
FOCAL_GAIN = 0.85  # another focal length that brings matches this much nearer to their lines is the right one
FOCAL_PAIRS, FEW_PAIRS_GAIN = 4, 0.6  # in place of FOCAL_GAIN for scenes with matches in fewer pairs of views
FOCAL_RISE = 1.4  # a focal length is confirmed where those off by a quarter move matches away by this factor
MATCHES = 40  # least number that decides
FEW_MATCHES, FEW_LINES = 25, 0.05  # least number that refuses where at most this share lies on lines
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
    without depth. views: one for every view that was looked at.
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
    views: tuple[View, ...] = ()

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
        if wrong := [self.views[view].name for view in self.wrong]:
            more = ", ..." if len(wrong) > NAMED else ""
            parts.append(
                f"{len(wrong)} of {len(self.views)} views contradict the others ({', '.join(wrong[:NAMED])}{more})"
            )
        return f"{self.says}: {', '.join(parts) or 'neither silhouettes nor enough matches'}"

    @property
    def score(self) -> dict[str, Any]:
        """Verdict and figures as far as there are any, JSON-able."""
        names = ("hull", "floating", "lines", "apart", "rise") if self.matches else ("hull", "floating")
        figures = {name: getattr(self, name) for name in names}
        kept: dict[str, Any] = {name: found for name, value in figures.items() if (found := _number(value)) is not None}
        kept |= {"matches": self.matches} if self.matches else {}
        if self.views:
            kept["views"] = {
                "apart": [_number(view.apart, 2) for view in self.views],
                "undecided": [index for index, view in enumerate(self.views) if view.says == "undecided"],
            }
        return {"says": self.says, **kept}

    @property
    def wrong(self) -> list[int]:
        """Views whose cameras do not fit those of the others."""
        return [index for index, view in enumerate(self.views) if view.says == "does_not_fit"]

    def part(self, views: Sequence[int]) -> Verdict:
        """Verdict with these of the views alone."""
        return replace(self, views=tuple(self.views[view] for view in views) if self.views else ())


def _number(value: float | None, digits: int = 4) -> float | None:
    """Round what is a number; None for what is none or infinite."""
    return round(value, digits) if value is not None and np.isfinite(value) else None


def check(posed: Posed) -> Verdict:
    """Test the cameras of one scene, and of each of its views; `wrong` of the verdict names views without which it fits.

    Undecided, with all of its views, if the scene moves (views with times of their own), or a picture cannot be read.
    """
    names = posed.names or [f"view {index}" for index in range(len(posed.images))]
    untold = Verdict("undecided", views=tuple(View("undecided", name=name) for name in names))
    if posed.moves:
        return untold
    try:
        look = _Look(posed)
        views = epipolar.by_view(look.matches)
        whole = verdict = look.judged(range(len(views)))
        kept = _kept(views)
        if 1 < len(kept) < len(views):
            rest = look.judged(kept)
            # a scene that is wrong as a whole is not saved by the views that contradict the others least
            verdict = verdict if verdict.says == "does_not_fit" and rest.says == "undecided" else rest
        verdict, views = _without_outliers(look, verdict, views)
        views = _by_outline(look, verdict, views)
    except OSError:
        return untold
    if len(_kept(views)) < LEAST_SHARE * len(views):
        verdict = replace(whole, says="does_not_fit")
    return replace(verdict, views=tuple(replace(view, name=name) for view, name in zip(views, names, strict=True)))


def _kept(views: Sequence[View]) -> list[int]:
    """Places of the views that are not known to be wrong."""
    return [index for index, view in enumerate(views) if view.says != "does_not_fit"]


class _Look:
    """What a scene's pictures show, seen once each: matches between them, and silhouettes. Raises OSError like `images`."""

    def __init__(self, posed: Posed) -> None:
        self.posed, self.matches, self.outlines = posed, epipolar.Matches(posed), Outlines(posed)

    def judged(self, views: Sequence[int]) -> Verdict:
        """Verdict on a scene of these views."""
        shapes = self.outlines.spread(views)
        lines = epipolar.explained(self.matches, views)
        verdict = Verdict("undecided", floating=epipolar.floating(self.posed.part(views)))
        if shapes is not None:
            verdict = _with_hull(verdict, shapes)
        if lines.apart is not None:
            n = lines.matches
            gain = FOCAL_GAIN if lines.pairs >= FOCAL_PAIRS else FEW_PAIRS_GAIN
            focal = lines.scale if lines.gain < gain else 1.0
            good, chance = lines.good / n, lines.random / n
            verdict = replace(
                verdict, lines=good, chance=chance, matches=n, apart=lines.apart, focal=focal, rise=lines.rise
            )
        return replace(verdict, says=_says(verdict))


def _with_hull(verdict: Verdict, shapes: Silhouettes) -> Verdict:
    """Add the figures of silhouettes to a verdict."""
    hull, side = shapes.filled()
    control, coarse = shapes.shuffled().filled()[0], shapes.solid == WHOLLY
    return replace(verdict, hull=hull, control=control, longest_side=side, coarse=coarse)


def _without_outliers(look: _Look, verdict: Verdict, views: list[View]) -> tuple[Verdict, list[View]]:
    """Verdict on a scene whose silhouettes do not fit, and on its views: those are wrong without which all others fit.

    At most one of every OUTLIERS that carve, which must spoil the hull as a wrong one does, or two that have each other's poses;
    else the scene is wrong as it is.
    """
    kept, wrong = _kept(views), list[int]()
    rest = verdict
    while rest.hull is not None and rest.hull <= OUTLINE_WRONG:
        shapes = look.outlines.spread(kept)
        count = 0 if shapes is None else len(shapes.views)
        if shapes is None or count <= LEAST_CARVERS or (len(wrong) + 1) * OUTLIERS > len(wrong) + count:
            break
        wrong.append(shapes.views[int(np.argmax(shapes.filled_without([(place,) for place in range(count)])))])
        if views[wrong[-1]].says == "fits":
            break
        kept = [view for view in kept if view not in wrong]
        rest = look.judged(kept)
        if rest.says == "fits":
            return rest, _blamed(views, wrong)
    swapped = _swapped(look, views) if verdict.hull is not None and verdict.hull <= OUTLINE_WRONG else []
    if swapped and (rest := look.judged([view for view in _kept(views) if view not in swapped])).says == "fits":
        return rest, _blamed(views, swapped)
    return verdict, views


def _blamed(views: Sequence[View], wrong: Sequence[int]) -> list[View]:
    """Verdicts on views, of which these are wrong."""
    return [replace(view, says="does_not_fit") if index in wrong else view for index, view in enumerate(views)]


def _swapped(look: _Look, views: Sequence[View]) -> list[int]:
    """Two views with whose poses swapped the hull of all that carve is full, so that nothing else is wrong; none without such.

    Without two of them it may be full by chance: the two silhouettes prove it, each in the other's place.
    """
    shapes = look.outlines.spread(_kept(views))
    if shapes is None or len(shapes.views) <= LEAST_CARVERS:
        return []
    pairs = list(itertools.combinations(range(len(shapes.views)), 2))
    full = shapes.filled_without(pairs)
    for best in np.argsort(-full, kind="stable")[:SWAPS].tolist():
        two = [shapes.views[place] for place in pairs[best]]
        if full[best] <= HULL_WRONG or any(views[view].says == "fits" for view in two):
            continue
        if _hull_says(_with_hull(Verdict("undecided"), shapes.swapped(*pairs[best]))) == "fits":
            return two
    return []


def _by_outline(look: _Look, verdict: Verdict, views: list[View]) -> list[View]:
    """Verdicts on views that matches leave undecided, where the scene's silhouettes fit: does its hull fill theirs too?"""
    kept = _kept(views)
    untold = [index for index in kept if views[index].says == "undecided"]
    shapes = look.outlines.spread(kept) if untold and _hull_says(verdict) == "fits" else None
    if shapes is None:
        return views
    sure = shapes.views
    told: dict[int, Says] = dict.fromkeys(sure, "fits")
    others, half = [index for index in untold if index not in told], SILHOUETTE_VIEWS // 2
    for start in range(0, len(others), half):
        # one view's rays cannot tell that it shows too little, but those of others in a hull that it helps to carve
        group = look.outlines.of([*sure[:half], *others[start : start + half]])
        if group is None:
            continue
        full = group.filled()[0] >= (HULL_FITS_COARSE if verdict.coarse else HULL_FITS)
        those = group.part([place for place, index in enumerate(group.views) if index not in sure])
        for index, share in zip(those.views, shapes.shares(those)[0], strict=True):
            if share is not None:
                fits = full and share >= OUTLINE_FITS
                told[index] = "fits" if fits else "does_not_fit" if share <= OUTLINE_WRONG else "undecided"
    return [
        replace(view, says=told.get(index, view.says)) if index in untold else view for index, view in enumerate(views)
    ]


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
    elif verdict.lines is not None and verdict.matches >= FEW_MATCHES and verdict.lines <= FEW_LINES:
        votes.add("does_not_fit")
    if (outline := _hull_says(verdict)) is not None:
        votes.add(outline)
    return votes.pop() if len(votes) == 1 else "undecided"


def _hull_says(verdict: Verdict) -> Says | None:
    """Verdict by silhouettes alone; None where there are none, or wrong cameras would fill them too."""
    if verdict.hull is None or verdict.control is None:
        return None
    if verdict.hull <= HULL_WRONG:
        return "does_not_fit"
    if verdict.control > CONTROL:
        return None
    return "fits" if verdict.hull >= (HULL_FITS_COARSE if verdict.coarse else HULL_FITS) else "undecided"


# ---- silhouettes


@dataclass(frozen=True)
class Silhouettes:
    """alphas (V, SIDE, SIDE) in [0, 255], c2w (V, 4, 4), fxfycxcy (V, 4) in pixels of the alphas. solid: see SOLID. views: V
    places in the scene.
    """

    alphas: np.ndarray
    c2w: np.ndarray
    fxfycxcy: np.ndarray
    solid: int = SOLID
    views: tuple[int, ...] = ()

    def part(self, places: Sequence[int]) -> Silhouettes:
        """Take those at these of the V places alone."""
        some = list(places)
        views = tuple(self.views[place] for place in some)
        return replace(self, alphas=self.alphas[some], c2w=self.c2w[some], fxfycxcy=self.fxfycxcy[some], views=views)

    def shuffled(self) -> Silhouettes:
        """Silhouettes permuted among the cameras: a control with wrong poses."""
        order = np.random.default_rng(0).permutation(
            len(self.alphas)
        )  # random, since a turntable turned or mirrored may fit
        return replace(self, alphas=self.alphas[order])

    def swapped(self, one: int, other: int) -> Silhouettes:
        """Silhouettes of which those at two places have each other's poses."""
        order = list(range(len(self.alphas)))
        order[one], order[other] = other, one
        return replace(self, c2w=self.c2w[order])

    def filled(self, count: int = RAYS) -> tuple[float, float | None]:
        """Mean share of the silhouettes that the hull fills, and the longest side of the hull's box (None for no hull).

        A ray is not counted if its only points inside all silhouettes lie in the frames of fewer than SEEN pictures.
        """
        shares, side = self.shares(self, count)
        known = [share for share in shares if share is not None]
        return float(np.mean(known)) if known else 1.0, side

    def shares(self, of: Silhouettes, count: int = RAYS) -> tuple[list[float | None], float | None]:
        """Share of each silhouette of `of` that this hull fills, None where too little can be told; and the longest side."""
        wide = self._widened()
        shares: list[float | None] = []
        low, high = [], []
        for points in self._along(of, count):
            seen = self._seen(points.reshape(-1, 3), wide).reshape(points.shape[:2])
            inside = seen >= SEEN
            filled, carved = inside.any(1).sum(), (~seen.any(1)).sum()
            shares.append(float(filled / (filled + carved)) if filled + carved > 0.1 * len(points) else None)
            if inside.any():
                low.append(points[inside].min(0))
                high.append(points[inside].max(0))
        return shares, float((np.max(high, 0) - np.min(low, 0)).max()) if low else None

    def filled_without(self, parts: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Mean share (N,) of the other silhouettes that the hull fills without each of N parts of the views."""
        wide, count = self._widened(), len(self.alphas)
        full, all_of = np.zeros(len(parts)), np.zeros(len(parts))
        for own, points in enumerate(self._along(self, FEW_RAYS)):
            rows = np.ascontiguousarray(points.reshape(-1, 3).T)
            shown = np.stack([self._shown(view, rows, wide) for view in range(count)])
            shown = shown.reshape(count, *points.shape[:2])
            out, framed = (shown == 0).astype(np.int8), (shown == 2).astype(np.int8)
            outs, frames = out.sum(0), framed.sum(0)
            for number, part in enumerate(parts):
                if own not in part:
                    some = list(part)
                    seen = np.where(outs == out[some].sum(0), frames - framed[some].sum(0), 0)
                    inside, carved = (seen >= SEEN).any(1), ~seen.any(1)
                    full[number] += inside.sum()
                    all_of[number] += (inside | carved).sum()
        return full / np.maximum(all_of, 1)

    def _along(self, of: Silhouettes, count: int) -> Iterator[np.ndarray]:
        """Points (R, DEPTHS, 3) along rays through each silhouette of `of`, around where these look."""
        middle, reach = self._region([self._rays(view, count) for view in range(len(self.alphas))])
        for view in range(len(of.alphas)):
            rays, eye = of._rays(view, count), of.c2w[view, :3, 3]
            distance = np.linalg.norm(middle - eye)
            along = np.linspace(max(0.02 * distance, distance - reach), distance + reach, DEPTHS)
            yield eye + rays[:, None] * along[:, None]

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
        """Places (V, SIDE + 2, SIDE + 2) of pictures and a border: 0 where the object is not, 1 outside the frame where it may be
        (if the object reaches the edge), 2 within.
        """
        wide = np.pad(self.alphas > EMPTY, ((0, 0), (1, 1), (1, 1))).astype(np.uint8) * 2
        border = np.ones_like(wide[0])
        border[1:-1, 1:-1] = 0
        edge = wide[:, [1, -2]].any((1, 2)) | wide[:, :, [1, -2]].any((1, 2))
        return np.asarray(wide | (border & edge[:, None, None]))

    def _seen(self, points: np.ndarray, wide: np.ndarray) -> np.ndarray:
        """For each point (N, 3) the number of pictures whose frame holds the point; 0 if any silhouette excludes it."""
        left, rest, seen = np.arange(len(points)), np.ascontiguousarray(points.T), np.zeros(len(points), int)
        for view in self._apart:  # tests the points left so far
            shown = self._shown(view, rest, wide)
            kept = np.flatnonzero(shown)
            left, rest, seen = left[kept], rest[:, kept], seen[kept] + (shown[kept] - 1)
        count = np.zeros(len(points), int)
        count[left] = seen
        return count

    def _shown(self, view: int, points: np.ndarray, wide: np.ndarray) -> np.ndarray:
        """For each of the points (3, N): 0 where this view shows that the object is not, 1 outside its frame, 2 within."""
        x, y, z = self._matrices[view, :, :3] @ points + self._matrices[view, :, 3:]
        ahead = z > 0
        with np.errstate(over="ignore"):
            places = [np.divide(across, z, out=np.zeros_like(z), where=ahead) + 1 for across in (x, y)]
        column, row = (np.clip(place, 0, SIDE + 1).astype(int) for place in places)
        return np.asarray(wide[view].ravel()[row * (SIDE + 2) + column] * ahead)

    @functools.cached_property
    def _matrices(self) -> np.ndarray:
        return cameras.projection(self.c2w, self.fxfycxcy)

    @functools.cached_property
    def _apart(self) -> list[int]:
        """Views in an order in which each looks from elsewhere than those before it: they carve most at once."""
        count = len(self.alphas)
        return sorted(range(count), key=lambda view: view * GOLDEN % 1)


@dataclass(frozen=True)
class _Outline:
    """Silhouette of a view. alpha (SIDE, SIDE) in [0, 255]. scale (4,): of fxfycxcy to its pixels. small: see WHOLLY."""

    alpha: np.ndarray
    scale: np.ndarray
    small: bool


class Outlines:
    """Silhouettes of a scene, by its views. Those that were asked for last are kept: pictures are decoded once."""

    def __init__(self, posed: Posed) -> None:
        self.posed = posed
        self._outline = functools.lru_cache(3 * SILHOUETTE_VIEWS)(self._decoded)

    def spread(self, views: Sequence[int] | None = None) -> Silhouettes | None:
        """Silhouettes `of` SILHOUETTE_VIEWS spread evenly over these views, or over all."""
        some = range(len(self.posed.images)) if views is None else views
        return self.of([some[place] for place in cameras.spread(len(some), SILHOUETTE_VIEWS).tolist()])

    def of(self, views: Sequence[int]) -> Silhouettes | None:
        """Silhouettes of views; None if pictures are opaque, distorted, or fewer than 3 show where an object ends. OSError."""
        if not all(lens.is_pinhole for lens in self.posed.lenses):
            return None
        found = {view: outline for view in views if (outline := self._outline(view)) is not None}
        if len(found) < len(views):
            return None
        solid = WHOLLY if any(outline.small for outline in found.values()) else SOLID
        shown = {
            view: one for view, one in found.items() if (one.alpha > solid).any() and not (one.alpha > EMPTY).all()
        }
        if len(shown) < 3:
            return None
        chosen, scales = list(shown), np.stack([one.scale for one in shown.values()])
        c2w, fxfycxcy = (np.asarray(of, np.float64)[chosen] for of in (self.posed.c2w, self.posed.fxfycxcy))
        alphas = np.stack([one.alpha for one in shown.values()])
        return Silhouettes(alphas, c2w, fxfycxcy * scales, solid, tuple(chosen))

    def _decoded(self, view: int) -> _Outline | None:
        """Silhouette of a view; None if its picture is opaque."""
        picture = images.decode_straight(self.posed.images[view])
        if picture.shape[2] == 3:
            return None
        height, width = picture.shape[:2]
        alpha = images.resize_area(picture[..., 3:].astype(np.float32), (SIDE, SIDE))[..., 0]
        return _Outline(alpha, np.array([SIDE / width, SIDE / height] * 2), min(height, width) < SIDE)
