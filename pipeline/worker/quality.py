"""Measures what an object's pictures show, and rejects those that show nothing or too little. The ledger records the reason."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TINY_COVERAGE = 0.005  # of the image; a normalised object covers 15-40 % of a view from the shell of cameras
VISIBLE_LEVELS = 8  # of 255; a pixel whose channels are all closer to the background than this cannot be told from it
BLACK_LEVELS = 8  # of 255; a pixel whose channels are all below is black
ALL_BLACK = 0.98  # share of the pixels inside the object: 1.0 of black ones, at most 0.41 of 580 objects of real files
COVERED = 0.5  # alpha
INSIDE = 0.999  # alpha; below, the background brightens a black surface beyond BLACK_LEVELS
ENOUGH_INSIDE = 0.1  # share of the covered pixels; below, as of wires and of glass, all that are covered are judged
MOVES = 0.0005  # share of an object's pixels that change in some picture; below, nobody sees that it moves
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # luma of sRGB bytes (BT.601), as JPEG has it


@dataclass(frozen=True)
class ViewStats:
    """One view. coverage: covered share of the image. touches_border: coverage reaches it. seen: share of the image that differs
    from the background. Of the object's own pixels (alpha above COVERED): their number, the share that differs from the
    background (visible), and the standard deviation of their grey levels (contrast). black: share of those inside the object.
    """

    coverage: float
    touches_border: bool
    seen: float
    pixels: int = 0
    visible: float = 1.0
    black: float = 0.0
    contrast: float = 0.0


def measure(rgb: np.ndarray, alpha: np.ndarray, pixels: int, background: np.ndarray | int = 255) -> ViewStats:
    """sRGB bytes (h, w, 3), composited, and alpha (h, w) in [0, 1] -> ViewStats.

    pixels: number in the whole image. The arrays may be a crop around the object, with a margin of background on every side
    that is not the image's border. background: sRGB bytes behind the object, (3,) or (h, w, 3) or one level for all.
    """
    covered = alpha > COVERED
    border = covered[0].any() or covered[-1].any() or covered[:, 0].any() or covered[:, -1].any()
    differs = (np.abs(rgb.astype(np.int16) - background) > VISIBLE_LEVELS).any(-1)
    own = rgb[covered]
    shares = (
        (
            len(own),
            float(differs[covered].mean()),
            float((_inside(rgb, alpha, own) < BLACK_LEVELS).all(-1).mean()),
            float((own @ GREY).std()),
        )
        if len(own)
        else ()
    )
    return ViewStats(float(alpha.sum()) / pixels, bool(border), float(np.count_nonzero(differs)) / pixels, *shares)


def _inside(rgb: np.ndarray, alpha: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Pixels (N, 3) that show the object alone, not the background too as its edges do; `own` where those are few."""
    inside = rgb[alpha > INSIDE]
    return inside if len(inside) >= ENOUGH_INSIDE * len(own) else own


class Motion:
    """Compares pictures of the same cameras at different instants. They share their noise, so that what differs has moved."""

    def __init__(self) -> None:
        self.first: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.shares: list[float] = []

    def add(self, camera: int, rgb: np.ndarray, covered: np.ndarray) -> None:
        """Compare a whole picture (H, W, 3) of sRGB bytes, whose object covers a mask (H, W), with the camera's first one."""
        if camera not in self.first:
            self.first[camera] = rgb, covered
            return
        before, there = self.first[camera]
        differs = (np.abs(rgb.astype(np.int16) - before) > VISIBLE_LEVELS).any(-1)
        own = there | covered
        self.shares.append(float(differs[own].mean()) if own.any() else 0.0)

    @property
    def facts(self) -> dict[str, float]:
        """motion: share of the object's pixels that differ from the camera's first picture, mean over all others."""
        return {"motion": round(float(np.mean(self.shares)), 4)} if self.shares else {}

    def verdict(self) -> tuple[str, str] | None:
        """(reason, detail) if nothing is seen to move in any of the pictures, else None."""
        most = max(self.shares, default=1.0)
        if most >= MOVES:
            return None
        said = f"its animation changes {most:.2%} of the object's pixels at most"
        return "does_not_move", f"{said}; render it without --frames, or choose another --animation"


def facts(stats: list[ViewStats]) -> dict[str, float]:
    """Facts of an object for ledger and shard: coverage and contrast as means over views, visible and black over pixels."""
    weights = np.array([view.pixels for view in stats], float)
    weights = weights / weights.sum() if weights.sum() else np.full(len(stats), 1 / len(stats))
    return {
        "coverage": round(float(np.mean([view.coverage for view in stats])), 4),
        "visible": round(float(weights @ [view.visible for view in stats]), 4),
        "black": round(float(weights @ [view.black for view in stats]), 4),
        "contrast": round(float(np.mean([view.contrast for view in stats])), 1),
    }


def verdict(stats: list[ViewStats], framed: bool, way_out: str = "") -> tuple[str, str] | None:
    """(reason, detail) if the object is to be left out, else None.

    framed: the cameras see the whole object, so that touching the border is a fault. way_out: what the user may try where
    nothing can be told from the background or all is black. Reasons: all_background (no view shows anything), tiny (half the
    views cover less than 0.5 %), blank (covered, but of the background's colour in most views), black (nothing but black
    pixels), touches_border (in most views).
    """
    coverage = np.array([view.coverage for view in stats])
    seen = np.array([view.seen for view in stats])
    border = float(np.mean([view.touches_border for view in stats]))
    way_out = way_out and f"; {way_out}"
    if coverage.max() == 0:
        return "all_background", f"no view of {len(stats)} shows anything"
    if np.median(coverage) < TINY_COVERAGE:
        return (
            "tiny",
            f"median coverage {np.median(coverage):.2%} of the image; leave out parts that lie far from the rest",
        )
    if np.median(seen) < TINY_COVERAGE:
        return "blank", f"median {np.median(seen):.2%} of the pixels differ from the background{way_out}"
    if (black := facts(stats)["black"]) >= ALL_BLACK:
        return "black", f"{black:.1%} of the pixels inside the object are black{way_out}"
    if framed and border > 0.5:
        return "touches_border", f"in {border:.0%} of the views"
    return None
