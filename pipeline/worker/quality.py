"""Rejects scenes whose pictures show nothing, or too little. The ledger records the reason."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TINY_COVERAGE = 0.005  # of the image; a normalised object covers 10-30 % of a view from the shell of cameras
VISIBLE_LEVELS = 8  # of 255; a pixel closer to white than this looks white
COVERED = 0.5  # alpha


@dataclass(frozen=True)
class ViewStats:
    """One view. coverage: covered share of its area. touches_border: coverage reaches it. visible: share of pixels not white."""

    coverage: float
    touches_border: bool
    visible: float


def measure(rgb: np.ndarray, alpha: np.ndarray, pixels: int) -> ViewStats:
    """sRGB bytes (h, w, 3) on white and alpha (h, w) in [0, 1] -> ViewStats.

    pixels: number in the whole image. The arrays may be a crop around the object, with a margin of background on every side
    that is not the image's border.
    """
    covered = alpha > COVERED
    border = covered[0].any() or covered[-1].any() or covered[:, 0].any() or covered[:, -1].any()
    visible = np.count_nonzero((rgb < 255 - VISIBLE_LEVELS).any(-1))
    return ViewStats(float(alpha.sum()) / pixels, bool(border), visible / pixels)


def verdict(stats: list[ViewStats], framed: bool) -> tuple[str, str] | None:
    """(reason, detail) if the object is to be left out, else None.

    framed: the cameras see the whole object, so that touching the border is a fault. Reasons: all_background (no view
    shows anything), tiny (half the views cover less than 0.5 %), blank (covered, but white on white in most views),
    touches_border (in most views).
    """
    coverage = np.array([view.coverage for view in stats])
    visible = np.array([view.visible for view in stats])
    border = float(np.mean([view.touches_border for view in stats]))
    if coverage.max() == 0:
        return "all_background", f"no view of {len(stats)} shows anything"
    if np.median(coverage) < TINY_COVERAGE:
        return "tiny", f"median coverage {np.median(coverage):.2%} of the image"
    if np.median(visible) < TINY_COVERAGE:
        return "blank", f"median {np.median(visible):.2%} of the pixels differ from white"
    if framed and border > 0.5:
        return "touches_border", f"in {border:.0%} of the views"
    return None
