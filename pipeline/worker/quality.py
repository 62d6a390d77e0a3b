"""Verdicts on what was rendered, before anything is written. A verdict is a reason in the ledger."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TINY_COVERAGE = 0.005  # of the image; a normalised object covers 10-30 % of a shell view
VISIBLE_LEVELS = 8  # of 255; below this a pixel is white to an eye
COVERED = 0.5  # alpha


@dataclass(frozen=True)
class ViewStats:
    """Of one view: share of its area that is covered, whether coverage reaches the border, share of pixels that are not white."""

    coverage: float
    touches_border: bool
    visible: float


def measure(rgb: np.ndarray, alpha: np.ndarray, pixels: int) -> ViewStats:
    """sRGB bytes (h, w, 3) on white and coverage (h, w) in [0, 1] -> ViewStats.

    pixels: of the whole image. The arrays may be the part of it that holds the object, with a margin of background
    wherever the part does not end at the image's own border.
    """
    covered = alpha > COVERED
    border = covered[0].any() or covered[-1].any() or covered[:, 0].any() or covered[:, -1].any()
    visible = np.count_nonzero((rgb < 255 - VISIBLE_LEVELS).any(-1))
    return ViewStats(float(alpha.sum()) / pixels, bool(border), visible / pixels)


def verdict(stats: list[ViewStats], framed: bool) -> tuple[str, str] | None:
    """(reason, detail) where the object is not worth a place in a shard, else None.

    framed: the cameras hold the whole object, so that touching the border shows a fault. Reasons: all_background (no view
    covers anything), tiny (half the views cover less than 0.5 %), blank (covered, but white on white in most views),
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
